"""Attacks by full fine-tuning: on the behaviour itself, on independent facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hooklearn.attack.curve import Arena
from hooklearn.attack.tuning import Plan, Tuning, demonstrations
from hooklearn.data import Corpus
from hooklearn.types import InputError


@dataclass(frozen=True, kw_only=True)
class Relearn(Tuning):
    """Full fine-tuning on demonstrations of the behaviour, over a sweep of learning rates."""

    name: ClassVar[str] = "relearn"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026; Qi et al. 2024, arXiv 2412.07097 for the sweep"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = False
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    epochs: int = 8
    """The cap; the curve usually gets flat before."""
    max_steps: int | None = None
    """A second cap, in steps; None: the epochs alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(epochs=self.epochs, max_steps=1 if self.max_steps is None else self.max_steps)
        if self.max_steps is not None:
            self.samples_within(self.max_steps)

    def plan(self, arena: Arena) -> Plan:
        return demonstrations(arena, self.epochs, self.max_steps)


@dataclass(frozen=True, kw_only=True)
class LowMutualInformation(Relearn):
    """Relearning on facts T that say nothing about the held-out facts V: what comes back was never gone."""

    name: ClassVar[str] = "low_mi"
    source: ClassVar[str] = "Deeb & Roger 2024, arXiv 2410.08827 (retraining on T)"
    cheap: ClassVar[bool] = True

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:
        """Raises InputError where the two say by their groups that they are about the same facts."""
        super().check(model, corpora)
        named = [{str(r["group"]) for r in corpora[role].rows if "group" in r} for role in ("attack_train", "heldout")]
        if both := sorted(named[0] & named[1]):
            raise InputError(
                f"attack {self.name!r} trains on facts that say nothing about the held-out ones, and {len(both)} "
                f"groups are in attack_train and in heldout ({both[0]!r:.40} is one); keep them apart, or use relearn"
            )
