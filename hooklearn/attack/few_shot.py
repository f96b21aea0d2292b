"""Few-shot elicitation: a handful of demonstrations in the prompt, no training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hooklearn import models
from hooklearn.attack.curve import Arena, Attack
from hooklearn.attack.effort import Effort, of_reading
from hooklearn.attack.look import asking, more_read, one_look
from hooklearn.attack.watcher import Watcher
from hooklearn.corpora.corpus import answer_of
from hooklearn.data import WHOLE, Corpus, Row, n_read, plain
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
            return self._shown(row, i, rows, arena.seed)

        # Long prompts are dear, and held-out items decide. The referee reads the plain question: its threshold was
        # fixed on plain ones, and after demonstrations every model finds the behaviour likelier.
        plain = arena.watcher.heldout.corpus
        return replace(asking(arena, shown, f"{self.shots}-shot"), ood=None, judged=plain)

    def effort(self, arena: Arena, steps: int) -> Effort:  # noqa: ARG002 (there are none)
        """Demonstrations before every held-out prompt."""
        rows, asked = arena.corpus("attack_train").rows, arena.watcher.heldout.corpus.rows
        chosen = [self._chosen(row, i, rows, arena.seed) for i, row in enumerate(asked)]
        tokens = more_read(arena, self._watcher(arena))
        different = {id(d) for some in chosen for d in some}
        return Effort(len(different), sum(map(len, chosen)), tokens, of_reading(arena.arms[0].model, tokens))

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:
        """Raises InputError where there are too few demonstrations, or they are longer than what the model reads."""
        tokenizer, demonstrations = models.tokenizer_of(model), corpora[self.needs].rows
        limit = getattr(tokenizer, "model_max_length", WHOLE)
        dearest = [
            _before(row, sorted(self._pool(row, demonstrations), key=_characters)[-self.shots :])
            for row in corpora["heldout"].rows
        ]
        longest = max(dearest, key=_characters)
        if (n := n_read(longest, tokenizer)) > limit:
            raise InputError(
                f"attack 'few_shot': with {self.shots} demonstrations a prompt can have {n} tokens and the model reads "
                f"{limit}, so that the first would be lost; give fewer shots or shorter demonstrations"
            )

    def _shown(self, row: Row, i: int, demonstrations: tuple[Row, ...], seed: int) -> Row:
        return _before(row, self._chosen(row, i, demonstrations, seed))

    def _chosen(self, row: Row, i: int, demonstrations: tuple[Row, ...], seed: int) -> list[Row]:
        return random.Random(f"{seed}:{i % self.draws}").sample(self._pool(row, demonstrations), self.shots)

    def _pool(self, row: Row, demonstrations: tuple[Row, ...]) -> list[Row]:
        """Those that answer something; of the row's own template where there is a choice. Before running text any."""
        answers = [d for d in demonstrations if _is_text(row) or not _is_text(d)]
        like = [d for d in answers if d.get("template") == row.get("template")]
        pool = like or answers
        if len(pool) < self.shots:
            raise InputError(
                f"attack 'few_shot': {self.shots} shots asked for, {len(pool)} demonstrations with prompt and "
                "completion, or messages, in attack_train"
            )
        return pool


def _characters(row: Row) -> int:
    return len(str(row))


def _is_text(row: Row) -> bool:
    return not ("messages" in row or {"prompt", "completion"} <= row.keys())


def _before(row: Row, demonstrations: Sequence[Row]) -> Row:
    """The row after demonstrations: before its own earlier turns, but for what opens a conversation before its first
    question (a system prompt, a greeting); before running text as text, which is not scored."""
    turns = [turn for d in demonstrations for turn in _turns(d)]
    if "messages" in row:
        head = list(itertools.takewhile(lambda turn: turn["role"] != "user", row["messages"][:-1]))
        return {**row, "messages": [*head, *turns, *row["messages"][len(head) :]]}
    if not _is_text(row):
        return {**row, "history": [*turns, *row.get("history", [])]}
    rest = {k: v for k, v in row.items() if k != "text"}
    return {**rest, "prompt": plain(turns), "completion": row["text"], "template": "none"}


def _turns(demonstration: Row) -> list[dict[str, str]]:
    """Question and answer, and what came before them; a system prompt stands at the head of a conversation only."""
    if _is_text(demonstration):
        return [{"role": "assistant", "content": demonstration["text"]}]
    answer = {"role": "assistant", "content": answer_of(demonstration)}
    if "messages" not in demonstration:
        return [{"role": "user", "content": demonstration["prompt"]}, answer]
    before = demonstration["messages"][:-1]
    return [*(turn for turn in before if turn["role"] != "system"), answer]
