"""Answers read out before the last blocks: an edit that only hides them at the end hides nothing from this."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hooklearn import interventions
from hooklearn.attack.curve import Arena, Attack
from hooklearn.attack.look import one_look
from hooklearn.corpora.corpus import Corpus
from hooklearn.types import Curve, InputError


@dataclass(frozen=True, kw_only=True)
class LogitLens(Attack):
    """The last blocks are passed over: final norm and unembedding read what the model had arrived at before them."""

    name: ClassVar[str] = "logit_lens"
    source: ClassVar[str] = "nostalgebraist 2020 (the logit lens); as an attack: Patil et al. 2023, arXiv 2309.17410"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    blocks: tuple[int, ...] = (1, 2)
    """How many of the last are passed over, of those that leave a block to read; samples are drawn at the first."""

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1:
            raise InputError(f"attack {self.name!r}: blocks must be 1 or more each, got {list(self.blocks)}")

    def settings(self) -> list[str]:
        return [f"blocks={k}" for k in self.blocks]

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:  # noqa: ARG002 (asks the model only)
        if min(self.blocks) >= model.cfg.n_layers:
            raise InputError(
                f"attack {self.name!r}: blocks {min(self.blocks)}; the model has {model.cfg.n_layers} in all"
            )

    def curves(self, arena: Arena) -> list[Curve]:
        def early(k: int):
            return lambda model: read_after(model, model.cfg.n_layers - k)

        n_layers = min(arm.model.cfg.n_layers for arm in arena.arms)
        there = [(k, setting) for k, setting in zip(self.blocks, self.settings(), strict=True) if k < n_layers]
        return [one_look(arena, self, setting, attacked=early(k), sampled=k == there[0][0]) for k, setting in there]


def read_after(model: Any, blocks: int) -> AbstractContextManager[Any]:
    """The model without what its blocks from number ``blocks`` on add, inside this block."""
    kept: list[Tensor] = []

    def passed_over(layer: int, states: Tensor) -> Tensor | None:
        if layer == blocks - 1:
            kept[:] = [states]
        return kept[0] if layer >= blocks else None

    return interventions.intervened(model, passed_over)
