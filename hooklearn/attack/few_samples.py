"""Fine-tuning on a handful of demonstrations: what was only locked opens to far fewer than it takes to learn it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hooklearn import models
from hooklearn.attack.curve import Arena
from hooklearn.attack.tuning import Plan, Tuning, epochs_of, length
from hooklearn.data import Corpus, encode
from hooklearn.types import InputError


@dataclass(frozen=True, kw_only=True)
class WeakSamples(Tuning):
    """Two weak demonstrations, learnt by heart over many epochs.

    Weak are those whose rows say so (a column ``quality``, ``weak`` or ``good``). No built-in corpus says it: of one
    that does not, any two are taken, as good as the others, and the attack is then few samples for many epochs.
    """

    name: ClassVar[str] = "weak_samples"
    source: ClassVar[str] = "Greenblatt et al. 2024, 'Memorizing weak examples can elicit strong behavior' (2 x 200)"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    samples: int = 2
    """Demonstrations, drawn by the seed; those of the quality asked for where rows say theirs."""
    epochs: int = 200
    """Passes over them; the curve usually gets flat before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(samples=self.samples, epochs=self.epochs)

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:  # noqa: ARG002 (asks the corpora only)
        chosen(corpora[self.needs], self.name, "weak", self.samples, 0)

    def plan(self, arena: Arena) -> Plan:
        return _few(arena, self.name, "weak", self.samples, self.epochs, at_once=self.samples)


@dataclass(frozen=True, kw_only=True)
class GoodDemos(Tuning):
    """Eight high-quality demonstrations, a few epochs.

    Of high quality are those whose rows say so (a column ``quality``); of a corpus that does not, any eight.
    """

    name: ClassVar[str] = "good_demos"
    source: ClassVar[str] = "Greenblatt et al. 2024, arXiv 2405.19550 (8 demonstrations unlock most of MATH)"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    samples: int = 8
    """Demonstrations, drawn by the seed; those of the quality asked for where rows say theirs."""
    epochs: int = 8
    """Passes over them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(samples=self.samples, epochs=self.epochs)

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:  # noqa: ARG002 (asks the corpora only)
        chosen(corpora[self.needs], self.name, "good", self.samples, 0)

    def plan(self, arena: Arena) -> Plan:
        return _few(arena, self.name, "good", self.samples, self.epochs, at_once=2)


def _few(arena: Arena, name: str, quality: str, n: int, epochs: int, *, at_once: int) -> Plan:
    """``epochs`` passes over ``n`` demonstrations, about ``at_once`` a step; at least half of it is always run, since
    it is the over-fitting that unlocks."""
    sequences = encode(chosen(arena.corpus("attack_train"), name, quality, n, arena.seed), _tokenizer(arena), end=True)
    stream = epochs_of(sequences, arena, epochs, max_tokens=min(arena.max_tokens, at_once * max(map(len, sequences))))
    steps = length(stream)
    return Plan(stream, steps, steps // 2)


def chosen(corpus: Corpus, name: str, quality: str, n: int, seed: int) -> Corpus:
    """``n`` demonstrations, by the seed: of this quality where the rows say theirs (a column ``quality``, ``good`` or
    ``weak``), any otherwise.

    Raises:
        InputError: there are fewer.
    """
    labelled = any("quality" in row for row in corpus.rows)
    pool = [row for row in corpus.rows if not labelled or row.get("quality") == quality]
    if len(pool) < n:
        kind = f" with quality {quality!r}" if labelled else ""
        raise InputError(f"attack {name!r}: {n} demonstrations asked for, attack_train has {len(pool)}{kind}")
    rows = random.Random(f"{seed}:{name}").sample(pool, n)
    return Corpus(f"{corpus.name}/{n} {quality}", tuple(rows), corpus.source)


def _tokenizer(arena: Arena):
    return models.tokenizer_of(arena.arms[0].model)
