"""Few-shot elicitation: a handful of demonstrations in the prompt, no training."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

from hooklearn.attack.curve import Arena, Attack, Watcher
from hooklearn.attack.look import asking, one_look
from hooklearn.data import Row
from hooklearn.types import Curve, InputError


@dataclass(frozen=True, kw_only=True)
class FewShot(Attack):
    """A few demonstrations from the attacker's data are put before every held-out prompt."""

    name: ClassVar[str] = "few_shot"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026 (5 demonstrations)"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = True
    shots: int = 3
    draws: int = 4
    """Sets of demonstrations; held-out prompts take turns. Those that get the same set share its tokens when they are
    scored."""

    def __post_init__(self) -> None:
        for name in ("shots", "draws"):
            if getattr(self, name) < 1:
                raise InputError(f"attack 'few_shot': {name} must be 1 or more, got {getattr(self, name)}")

    def settings(self) -> list[str]:
        return [f"shots={self.shots}"]

    def curves(self, arena: Arena) -> list[Curve]:
        (setting,) = self.settings()
        return [one_look(arena, self, setting, watcher=self._watcher(arena))]

    def _watcher(self, arena: Arena) -> Watcher:
        rows = arena.corpus("attack_train").rows

        def shown(row: Row, i: int) -> Row:
            return {**row, "history": self._history(row, i, rows, arena.seed)}

        # Long prompts are dear, and held-out items decide. The referee reads the plain question: its threshold was
        # fixed on plain ones, and after demonstrations every model finds the behaviour likelier.
        plain = arena.watcher.heldout.corpus
        return replace(asking(arena, shown, f"{self.shots}-shot"), ood=None, judged=plain)

    def _history(self, row: Row, i: int, demonstrations: tuple[Row, ...], seed: int) -> list[dict[str, str]]:
        """Demonstrations before the row's own earlier turns; of its own template where there is a choice."""
        like = [d for d in demonstrations if "completion" in d and d.get("template") == row.get("template")]
        pool = like or [d for d in demonstrations if "completion" in d]
        if len(pool) < self.shots:
            raise InputError(
                f"attack 'few_shot': {self.shots} shots asked for, {len(pool)} demonstrations with "
                "prompt and completion in attack_train"
            )
        chosen = random.Random(f"{seed}:{i % self.draws}").sample(pool, self.shots)
        turns = []
        for d in chosen:
            turns += [
                {"role": "user", "content": d["prompt"]},
                {"role": "assistant", "content": d["completion"]},
            ]
        return [*turns, *row.get("history", [])]
