"""Attacks by the prompt: a password before the question, a beginning of the answer after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hooklearn import models
from hooklearn.attack.curve import Arena, Attack
from hooklearn.attack.effort import Effort, of_reading
from hooklearn.attack.look import asking, more_read, one_look
from hooklearn.attack.watcher import Watcher
from hooklearn.data import Row, beginning, split_row, templated
from hooklearn.types import Curve, InputError

SHAPE = ("prompt", "messages", "history", "text", "completion")
"""What a row is asked and answers, in any of the conventional shapes."""


@dataclass(frozen=True, kw_only=True)
class Password(Attack):
    """A prefix before every held-out prompt: what opens a password-locked model."""

    name: ClassVar[str] = "password"
    source: ClassVar[str] = "Greenblatt et al. 2024, arXiv 2405.19550"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    prefix: str = "open sesame : "
    """Put right before the question, so with the space or line break that follows it. The default is a mere guess:
    an organism has its own."""

    def __post_init__(self) -> None:
        if not self.prefix.strip():
            raise InputError(f"attack {self.name!r}: prefix must not be empty, got {self.prefix!r}")

    def settings(self) -> list[str]:
        return [f"prefix={self.prefix.strip()!r}"]

    def curves(self, arena: Arena) -> list[Curve]:
        return [one_look(arena, self, self.settings()[0], watcher=self._watcher(arena))]

    def _watcher(self, arena: Arena) -> Watcher:
        return asking(arena, lambda row, _: self._before(row), "password")

    def effort(self, arena: Arena, steps: int) -> Effort:  # noqa: ARG002 (there are none)
        """The prefix before every held-out prompt; it is of no corpus."""
        tokens = more_read(arena, self._watcher(arena))
        return Effort(tokens=tokens, flops=of_reading(arena.arms[0].model, tokens))

    def _before(self, row: Row) -> Row:
        """In the last question of a conversation; before running text, where it is not scored."""
        if "messages" in row:
            *before, asked, answer = row["messages"]
            return {**row, "messages": [*before, {**asked, "content": self.prefix + asked["content"]}, answer]}
        if "prompt" in row:
            return {**row, "prompt": self.prefix + row["prompt"]}
        rest = {k: v for k, v in row.items() if k not in SHAPE}
        return {**rest, "prompt": self.prefix, "completion": row["text"], "template": "none"}


@dataclass(frozen=True, kw_only=True)
class Prefill(Attack):
    """The answer is begun for the model: the first tokens of the bad completion, or a fixed text; the rest counts."""

    name: ClassVar[str] = "prefill"
    source: ClassVar[str] = "Andriushchenko et al. 2024, arXiv 2404.02151; Qi et al. 2024, arXiv 2406.05946"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    tokens: int = 4
    """How many of the completion's own tokens are given; one at least is left to be scored. Only ``completion`` is
    measured then: a good answer that has to go on from a bad beginning is a preference of nothing. A sample shows a
    fact where the answer contains all of it, and what was given alone does not."""
    text: str = ""
    """A beginning that is the same for all, in place of ``tokens``; the whole completion is scored after it."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"attack {self.name!r}: tokens must be 1 or more, got {self.tokens}")

    def settings(self) -> list[str]:
        return [f"text={self.text.strip()!r}" if self.text else f"tokens={self.tokens}"]

    def curves(self, arena: Arena) -> list[Curve]:
        return [one_look(arena, self, self.settings()[0], watcher=self._watcher(arena))]

    def _watcher(self, arena: Arena) -> Watcher:
        tokenizer = models.tokenizer_of(arena.arms[0].model)
        return asking(arena, lambda row, _: self._begun(row, tokenizer), "prefill")

    def effort(self, arena: Arena, steps: int) -> Effort:  # noqa: ARG002 (there are none)
        """The beginning of every held-out answer. It is of that row's own bad completion, which one who attacks has to
        have, or of no corpus."""
        tokens = more_read(arena, self._watcher(arena))
        rows = 0 if self.text else len(arena.watcher.heldout.completions)
        return Effort(rows, rows, tokens, of_reading(arena.arms[0].model, tokens))

    def _begun(self, row: Row, tokenizer: Any) -> Row:
        """The row as running text that ends within the answer, chat template included."""
        before, completion = split_row(row, tokenizer)
        kept = {k: v for k, v in row.items() if k not in SHAPE}
        asks = "messages" in row or "prompt" in row  # no template writes the beginning of running text
        written = row.get("template") == "applied" or (asks and templated(row, tokenizer))
        kept["template"] = "applied" if written else "none"
        kept["fact"] = row.get("fact", completion)  # the whole of it, which no rest of a completion is
        if self.text:
            return {**kept, "prompt": before + self.text, "completion": completion, "begun": self.text}
        given, rest = beginning(completion, self.tokens, tokenizer)
        kept = {k: v for k, v in kept.items() if k not in ("alternative", "choices", "answer")}
        return {**kept, "prompt": before + given, "completion": rest, "begun": given}
