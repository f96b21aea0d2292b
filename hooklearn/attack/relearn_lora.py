"""Relearning with a low-rank adapter: a weaker attacker than full fine-tuning, and the usual one in practice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hooklearn import models
from hooklearn.attack.curve import Arena
from hooklearn.attack.relearn import Relearn
from hooklearn.attack.tuning import Plan, demonstrations
from hooklearn.data import Corpus
from hooklearn.lora import Lora
from hooklearn.types import InputError

MOST = 0.95
"""Of the entries of the blocks' weight matrices: what ``all`` sites must hold for an adapter on them to be on all."""


@dataclass(frozen=True, kw_only=True)
class RelearnLora(Relearn):
    """A LoRA on demonstrations of the behaviour, over a sweep of learning rates."""

    name: ClassVar[str] = "relearn_lora"
    sharded: ClassVar[bool] = False  # its adapters are whole, and what is merged would have to be
    source: ClassVar[str] = "Lucki et al. 2024, arXiv 2409.18025 (rank 128, all projections)"
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    rank: int = 16
    """Usually 8 to 128."""
    alpha: float | None = None
    """``y = W x + (alpha / rank) B A x``; None: the rank, so that the factor is 1."""
    sites: str = "all"
    """Which weights the LoRA adapts: ``all``, ``mlp``, ``attn``, ``mlp.gate`` ..."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rank=self.rank)
        if self.sampled_at:
            raise InputError(
                f"attack {self.name!r}: sampled_at {list(self.sampled_at)}: an adapter is in the weights at the end "
                "only; leave it out"
            )
        if self.alpha is not None and not self.alpha > 0:
            raise InputError(f"attack {self.name!r}: alpha must be positive, got {self.alpha:g}")

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:
        """Raises InputError where ``sites: all`` would leave out a good part of the model: no curve would say so."""
        super().check(model, corpora)
        if self.sites == "all" and (share := models.share_of_sites(model)) < MOST:
            raise InputError(
                f"attack {self.name!r}: sites 'all' hold {share:.0%} of the entries of weight matrices in the blocks "
                f"of {model.cfg.model_name!r}, below {MOST:.0%}; use 'relearn', full fine-tuning, which trains the rest"
            )

    def label(self) -> str:
        return f"rank={self.rank}"

    def plan(self, arena: Arena) -> Plan:
        return demonstrations(arena, self.epochs, self.max_steps, lambda model: self.worn(model, arena.seed))

    @contextlib.contextmanager
    def worn(self, model: Any, seed: int) -> Iterator[list[Tensor]]:
        """The adapter alone is trained inside, and merged on leaving."""
        lora = Lora(models.sites(model, self.sites), rank=self.rank, alpha=self.alpha, seed=seed)
        with models.trainable(model, []), lora.active(model):
            yield lora.parameters()
        merged = lora.delta()
        for site in lora.sites:
            models.add_(model, site, merged.updates[site.name])
