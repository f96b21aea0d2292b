"""An attack: what is done to every arm alike, and one curve per setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hooklearn.attack.curve import Arena, Attack
from hooklearn.attack.look import one_look, reweighted
from hooklearn.types import Curve


@dataclass(frozen=True, kw_only=True)
class Shrink(Attack):
    """Every linear weight is made a little smaller."""

    name: ClassVar[str] = "shrink"
    source: ClassVar[str] = "an example"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    same_question: ClassVar[bool] = True
    factor: float = 0.95

    def settings(self) -> list[str]:
        return [f"factor={self.factor:g}"]

    def curves(self, arena: Arena) -> list[Curve]:
        def shrunk(model):
            return reweighted(model, lambda _, weight: self.factor * weight)

        return [one_look(arena, self, setting, attacked=shrunk) for setting in self.settings()]
