"""Few-shot elicitation: a handful of demonstrations in the prompt, no training."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hooklearn.attack.curve import Arena, Attack
from hooklearn.attack.look import asking, one_look
from hooklearn.attack.watcher import Watcher
from hooklearn.data import Corpus, Row
from hooklearn.types import Curve, InputError


@dataclass(frozen=True, kw_only=True)
class FewShot(Attack):
    """A few demonstrations from the attacker's data are put before every held-out prompt."""

    name: ClassVar[str] = "few_shot"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026 (5 demonstrations)"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = True
    shots: int = 3
    """Demonstrations before every prompt."""
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

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:  # noqa: ARG002 (asks the corpora only)
        for row in corpora["heldout"].rows:
            self._pool(row, corpora[self.needs].rows)

    def _history(self, row: Row, i: int, demonstrations: tuple[Row, ...], seed: int) -> list[dict[str, str]]:
        """Demonstrations before the row's own earlier turns."""
        chosen = random.Random(f"{seed}:{i % self.draws}").sample(self._pool(row, demonstrations), self.shots)
        return [*(turn for d in chosen for turn in _turns(d)), *row.get("history", [])]

    def _pool(self, row: Row, demonstrations: tuple[Row, ...]) -> list[Row]:
        """Those that answer something; of the row's own template where there is a choice."""
        answers = [d for d in demonstrations if "messages" in d or {"prompt", "completion"} <= d.keys()]
        like = [d for d in answers if d.get("template") == row.get("template")]
        pool = like or answers
        if len(pool) < self.shots:
            raise InputError(
                f"attack 'few_shot': {self.shots} shots asked for, {len(pool)} demonstrations with prompt and "
                "completion, or messages, in attack_train"
            )
        return pool


def _turns(demonstration: Row) -> list[dict[str, str]]:
    """Question and answer, and what came before them; a system prompt stands at the head of a conversation only."""
    if "messages" not in demonstration:
        asked, answer = demonstration["prompt"], demonstration["completion"]
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    *before, last = demonstration["messages"]
    answer = {"role": "assistant", "content": demonstration.get("completion", last["content"])}
    return [*(turn for turn in before if turn["role"] != "system"), answer]
