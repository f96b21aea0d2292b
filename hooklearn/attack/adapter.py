"""Fine-tuning by a low-rank adapter in place of all weights: what attackers by relearning and by erosion share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hooklearn import models
from hooklearn.attack.curve import Arena, Trained
from hooklearn.attack.effort import adapter_size
from hooklearn.attack.tuning import Tuning
from hooklearn.data import Corpus
from hooklearn.lora import Lora
from hooklearn.types import InputError

MOST = 0.95
"""Of the entries of the blocks' weight matrices: what ``all`` sites must hold for an adapter on them to be on all."""


@contextlib.contextmanager
def worn(model: Any, sites: str, rank: int, alpha: float | None, seed: int) -> Iterator[list[Tensor]]:
    """The adapter alone is trained inside, and merged into the weights on leaving.

    Args:
        alpha: ``y = W x + (alpha / rank) B A x``; None: the rank, so that the factor is 1.
    """
    lora = Lora(models.sites(model, sites), rank=rank, alpha=alpha, seed=seed)
    with models.trainable(model, []), lora.active(model):
        yield lora.parameters()
    merged = lora.delta()
    for site in lora.sites:
        models.add_(model, site, merged.updates[site.name])


def check_adapted(name: str, model: Any, sites: str, instead: str) -> None:
    """Raises InputError where ``sites: all`` would leave out a good part of the model: no curve would say so."""
    if sites == "all" and (share := models.share_of_sites(model)) < MOST:
        raise InputError(
            f"attack {name!r}: sites 'all' hold {share:.0%} of the entries of weight matrices in the blocks "
            f"of {model.cfg.model_name!r}, below {MOST:.0%}; use {instead}, full fine-tuning, which trains the rest"
        )


def check_sampled_at(name: str, steps: tuple[int, ...]) -> None:
    """Raises InputError where samples are asked for on the way of an adapter, which no hook of theirs reaches."""
    if steps:
        raise InputError(
            f"attack {name!r}: sampled_at {list(steps)}: an adapter is in the weights at the end only; leave it out"
        )


def check_embeddings(name: str, embeddings: bool) -> None:
    """Raises InputError where an adapter is told to spare embeddings, which it never moves."""
    if not embeddings:
        raise InputError(f"attack {name!r}: embeddings false would change nothing: an adapter has none; leave it out")


@dataclass(frozen=True, kw_only=True)
class MaybeAdapted(Tuning):
    """Abstract: full fine-tuning, or by an adapter where it is given a rank."""

    rank: int | None = None
    """A LoRA of this rank on all weight matrices of the blocks is trained; None: full fine-tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            self.at_least(rank=self.rank)
            check_sampled_at(self.name, self.sampled_at)
            check_embeddings(self.name, self.embeddings)

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:
        """Raises InputError where an adapter of ``rank`` cannot be on all of the blocks' weights."""
        super().check(model, corpora)
        if self.rank is None:
            return
        if models.is_sharded(model):
            raise InputError(
                f"attack {self.name!r}: rank {self.rank} does not work on spread weights (model.shard, "
                "model.offload); leave rank out"
            )
        check_adapted(self.name, model, "all", "rank: null")

    def label(self) -> str:
        return " ".join(filter(None, (super().label(), "" if self.rank is None else f"rank={self.rank}")))

    def moved(self, arena: Arena) -> Trained:
        rank = self.rank
        return super().moved(arena) if rank is None else lambda model: worn(model, "all", rank, None, arena.seed)

    def n_trained(self, model: Any) -> int:
        return super().n_trained(model) if self.rank is None else adapter_size(model, "all", self.rank)
