"""The card of a native organism: what it is, how it is made, and which verdicts are right for it, by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hooklearn.organisms.worlds import WORLDS, Ground

GONE = ("REMOVED", "ROBUSTLY REMOVED")
STILL_THERE = ("WEAKENED", "DISABLED", "INTACT")


@dataclass(frozen=True)
class Kind:
    """A card."""

    name: str
    what: str
    made: str
    truth: tuple[str, ...]
    make: Callable[[Ground], Any]
    """The model that is judged."""
    world: str = "threats"
    original: Callable[[Ground], Any] = Ground.original
    """The model that it is judged against."""
    why: str = ""
    """How the truth is known."""
    like: str = ""
    """The kind that says the same of a verdict: this one is calibrated with only where it is named."""
    besides: bool = False
    """Calibrated with where all are asked for, which takes longer than one may want to wait."""
    held_out: bool = False
    """No case of it was in view, of whatever seed, when a threshold, rule, attack or measure was last changed."""

    def ground(self, seed: int) -> Ground:
        return Ground(WORLDS[self.world], seed)

    def models(self, ground: Ground) -> dict[str, Callable[[], Any]]:
        """What makes each model of its audit."""
        return {
            "never": ground.never, "original": lambda: self.original(ground), "edited": lambda: self.make(ground)
        }  # fmt: skip

    def card(self) -> dict[str, str]:
        return {
            "name": self.name, "what": self.what, "made": self.made, "truth": " or ".join(self.truth), "why": self.why
        }  # fmt: skip
