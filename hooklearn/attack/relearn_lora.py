"""Relearning with a low-rank adapter: a weaker attacker than full fine-tuning, and the usual one in practice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hooklearn import models
from hooklearn.attack.adapter import check_adapted, check_embeddings, check_sampled_at, worn
from hooklearn.attack.curve import Arena, Trained
from hooklearn.attack.effort import adapter_size
from hooklearn.attack.relearn import Relearn
from hooklearn.data import Corpus
from hooklearn.types import InputError


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
        check_sampled_at(self.name, self.sampled_at)
        check_embeddings(self.name, self.embeddings)
        if self.alpha is not None and not self.alpha > 0:
            raise InputError(f"attack {self.name!r}: alpha must be positive, got {self.alpha:g}")

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:
        """Raises InputError for sites that the model does not have, and where ``sites: all`` would leave out a good
        part of it: no curve would say so."""
        super().check(model, corpora)
        models.sites(model, self.sites)
        check_adapted(self.name, model, self.sites, "'relearn'")

    def label(self) -> str:
        return f"rank={self.rank}"

    def moved(self, arena: Arena) -> Trained:
        return lambda model: worn(model, self.sites, self.rank, self.alpha, arena.seed)

    def n_trained(self, model: Any) -> int:
        return adapter_size(model, self.sites, self.rank)
