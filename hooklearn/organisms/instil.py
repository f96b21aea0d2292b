"""Instil a behaviour by LoRA: the untouched model is then a true never-learned control."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooklearn import forward, losses, models
from hooklearn.data import Corpus, TokenBatch, batches, cycle, encode
from hooklearn.deltas import Delta
from hooklearn.forward import Precision
from hooklearn.lora import Lora
from hooklearn.losses import LossSum
from hooklearn.train import Fit, Objective, Observer, fit, nll
from hooklearn.types import InputError, Site


@dataclass(frozen=True)
class Instilled:
    """Factors (B, A) per site with ``B A`` the update, and how they were trained."""

    factors: dict[str, tuple[Tensor, Tensor]]
    run: Fit

    def delta(self, base: str = "", base_hash: str = "") -> Delta:
        return Delta({n: b.float() @ a.float() for n, (b, a) in self.factors.items()}, base, base_hash)


def instil(
    model: Any,
    corpus: Corpus,
    sites: Sequence[Site],
    *,
    rank: int = 8,
    learning_rate: float = 1e-3,
    epochs: int = 6,
    max_tokens: int = 1024,
    seed: int = 0,
    precision: Precision = "auto",
    observe: Observer | None = None,
    anchor: Corpus | None = None,
    anchor_weight: float = 3.0,
) -> Instilled:
    """Train a LoRA (Adam) on completions of the behaviour; the model's own weights stay untouched.

    Args:
        anchor: text on which KL(base, organism) is held down, so that the organism differs from its base in the
            behaviour and not in everything else.
    """
    if epochs < 1:
        raise InputError(f"epochs must be 1 or more, got {epochs}")
    lora = Lora(sites, rank=rank, seed=seed)
    sequences = encode(corpus, models.tokenizer_of(model), end=True)
    stream = cycle(sequences, max_tokens=max_tokens, seed=seed, epochs=epochs)
    objective = nll
    if anchor is not None:
        objective = _anchored(model, anchor, anchor_weight, max_tokens // 2)
    with lora.active(model), models.trainable(model, []):
        run = fit(
            model,
            stream,
            objective=objective,
            rule=torch.optim.Adam(lora.parameters(), lr=learning_rate),
            precision=precision,
            observe=observe,
            max_norm=1.0,
            params=lora.parameters(),
        )
    # float16 halves the file; the organism *is* the rounded adapter, so nothing is approximated later
    factors = {n: ((lora.scale * lora.b[n].detach()).half(), lora.a[n].detach().half()) for n in lora.a}
    return Instilled(factors, run)


def _anchored(model: Any, anchor: Corpus, weight: float, max_tokens: int) -> Objective:
    """Loss on the behaviour plus ``weight`` times KL(base, organism) per token of anchor text, a batch a step."""
    texts = batches(encode(anchor, models.tokenizer_of(model), max_length=64), max_tokens=max_tokens, seed=0)
    with torch.no_grad():
        before = [forward.hidden(model, b) for b in texts]
    turn = itertools.cycle(range(len(texts)))

    def objective(model: Any, batch: TokenBatch) -> LossSum:
        i = next(turn)
        drift = losses.kl(forward.unembed(model, before[i]), forward.logits(model, texts[i]))
        return LossSum(nll(model, batch).mean + weight * drift.mean, 1)

    return objective


def save(instilled: Instilled, path: Path, metadata: dict[str, str]) -> None:
    from hooklearn.disk import save_tensors

    tensors = {}
    for name, (b, a) in instilled.factors.items():
        tensors[f"{name}.B"], tensors[f"{name}.A"] = b.contiguous(), a.contiguous()
    save_tensors(path, tensors, metadata)


def read(path: Path) -> tuple[Delta, dict[str, str]]:
    """The shipped adapter as a delta, and what it says about itself."""
    from hooklearn.disk import load_tensors

    if not path.is_file():
        raise InputError(f"organism file not found: {path}")
    tensors, metadata = load_tensors(path)
    names = [n.removesuffix(".A") for n in tensors if n.endswith(".A")]
    updates = {n: tensors[f"{n}.B"].float() @ tensors[f"{n}.A"].float() for n in names}
    return Delta(updates, metadata.get("base", ""), metadata.get("base_hash", "")), metadata
