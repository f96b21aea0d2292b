"""RepSelect, single shot, step by step as published (arXiv 2606.17168 and the authors' defaults), on a plain model.

LoRA on gate, up and down as peft makes it (r 8, alpha 8, A Kaiming-uniform, B zero, no dropout; written with plain
modules, so that no package is needed), batches of 8 sequences in the order of the corpus, padded and not packed, logits
at all positions, the loss a mean over the batch, gradients summed over batches, ``svd_lowrank`` per matrix, and a walk
of equal steps with an evaluation of the KL after each until it is over the budget; then one step back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.huggingface import Padded


class LoraLinear(nn.Module):
    """peft's: ``base(x) + alpha / r * B(A(x))``."""

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: int = 8) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        device = base.weight.device
        self.a = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.b = nn.Linear(rank, base.out_features, bias=False, device=device)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.b(self.a(x))


def gradient(
    model: Any, parents: Mapping[str, tuple[Any, str]], stream: Sequence[Padded], autocast: Any, *, lora_lr: float
) -> dict[str, Tensor]:
    """Steps 1 to 3: an adversary by SGD, then the gradient of the NLL under it, summed over batches.

    Args:
        parents: site name -> (module, the attribute of its linear map).
    """
    model.requires_grad_(False)
    adapters = {}
    for name, (parent, attribute) in parents.items():
        adapters[name] = LoraLinear(getattr(parent, attribute))
        setattr(parent, attribute, adapters[name])
    try:
        params = [p for adapter in adapters.values() for p in (adapter.a.weight, adapter.b.weight)]
        taught(model, params, stream, autocast, lora_lr)
        for p in params:
            p.requires_grad_(False)
        for adapter in adapters.values():
            adapter.base.weight.requires_grad_(True)
        summed(model, stream, autocast)
        return {name: adapter.base.weight.grad for name, adapter in adapters.items()}  # type: ignore[misc]
    finally:
        for name, (parent, attribute) in parents.items():
            setattr(parent, attribute, adapters[name].base)
            adapters[name].base.weight.grad = None
        model.requires_grad_(False)


def taught(model: Any, params: Sequence[Tensor], stream: Sequence[Padded], autocast: Any, lora_lr: float) -> None:
    """One epoch of SGD on the adversary."""
    for batch in stream:
        _loss(model, batch, autocast).backward()
        with torch.no_grad():
            for p in params:
                p -= lora_lr * p.grad  # type: ignore[operator]
                p.grad = None


def summed(model: Any, stream: Sequence[Padded], autocast: Any) -> None:
    """Gradients of all batches, added up where autograd puts them."""
    for batch in stream:
        _loss(model, batch, autocast).backward()


def _loss(model: Any, batch: Padded, autocast: Any) -> Tensor:
    batch = {k: v.to(model.device) for k, v in batch.items()}
    with autocast():
        return model(**batch).loss


def filtered(gradients: Mapping[str, Tensor], *, rank: int) -> dict[str, Tensor]:
    """Step 4: the soft collapse on both sides."""
    out = {}
    for name, g in gradients.items():
        g = g.float()
        u, s, v = torch.svd_lowrank(g, q=rank)
        out[name] = _collapse(_collapse(g, v, s).T, u, s).T
    return out


def _collapse(x: Tensor, e: Tensor, s: Tensor) -> Tensor:
    p = x @ e
    return x - (p - p / (s / s.min())) @ e.T


class Disruption:
    """KL(original, current) in nats per token of running text: final hidden states of the original are kept, and a
    copy of its unembedding; logits of all positions are made anew at each evaluation."""

    def __init__(self, model: Any, stream: Sequence[Padded]) -> None:
        self.model, self.stream = model, [{k: v.to(model.device) for k, v in b.items()} for b in stream]
        self.head = model.lm_head.weight.detach().clone()
        with torch.no_grad():
            self.states = [self._states(b) for b in self.stream]

    def _states(self, batch: Padded) -> Tensor:
        return self.model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state

    @torch.no_grad()
    def kl(self) -> float:
        total, n = 0.0, 0
        for batch, before in zip(self.stream, self.states, strict=True):
            now = self.model.lm_head(self._states(batch)).log_softmax(-1)
            was = (before @ self.head.T).log_softmax(-1)
            kept = batch["labels"][:, 1:] != -100
            total += float((was.exp() * (was - now)).sum(-1)[:, :-1][kept].sum())
            n += int(kept.sum())
        return total / n


@torch.no_grad()
def walk(
    linears: Mapping[str, nn.Linear],
    updates: Mapping[str, Tensor],
    disruption: Disruption,
    *,
    lr: float,
    budget: float,
    steps: int = 10,
) -> tuple[float, int]:
    """Step 5: ``W += lr * G`` (G the gradient of the NLL) and an evaluation, until the KL is over the budget or the
    steps are done; the last weights within it are restored. Returns (KL there, evaluations)."""
    last = {name: module.weight.clone() for name, module in linears.items()}
    inside, evaluations = 0.0, 0
    for _ in range(steps):
        for name, module in linears.items():
            module.weight += lr * updates[name]
        kl = disruption.kl()
        evaluations += 1
        if not kl <= budget:
            for name, module in linears.items():
                module.weight.copy_(last[name])
            break
        inside = kl
        last = {name: module.weight.clone() for name, module in linears.items()}
    return inside, evaluations
