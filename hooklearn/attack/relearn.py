"""Attacks by fine-tuning: on the behaviour itself, on independent facts, on text that has nothing to do with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from hooklearn import models
from hooklearn.attack.curve import Arena, Attack, training_curve
from hooklearn.data import TokenBatch, cycle, encode
from hooklearn.types import Curve, InputError


def rate(learning_rate: float) -> str:
    return f"lr={learning_rate:g}"


@dataclass(frozen=True, kw_only=True)
class Relearn(Attack):
    """Full fine-tuning on demonstrations of the behaviour, over a sweep of learning rates."""

    name: ClassVar[str] = "relearn"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026; Qi et al. 2024, arXiv 2412.07097 for the sweep"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = False
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    epochs: int = 8
    """The cap; the curve usually gets flat before."""
    max_steps: int | None = None
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0 or self.epochs < 1:
            raise InputError(
                f"attack {self.name!r}: learning_rates must be positive and epochs at least 1, got "
                f"{list(self.learning_rates)} and {self.epochs}"
            )
        if self.optimizer not in ("adam", "sgd"):
            raise InputError(f"attack {self.name!r}: optimizer {self.optimizer!r}; valid: adam, sgd")

    def settings(self) -> list[str]:
        return [rate(lr) for lr in self.learning_rates]

    def curves(self, arena: Arena) -> list[Curve]:
        corpus = arena.corpus("attack_train")
        tokenizer = models.tokenizer_of(arena.arms[0].model)
        sequences = encode(corpus, tokenizer, end=True)

        def stream() -> Iterable[TokenBatch]:
            return cycle(sequences, max_tokens=arena.max_tokens, seed=arena.seed, epochs=self.epochs)

        total = sum(1 for _ in stream())
        steps = min(total, self.max_steps or total)
        return [
            training_curve(
                arena,
                attack=self.name,
                setting=rate(lr),
                cheap=self.cheap,
                stream=stream,
                learning_rate=lr,
                steps=steps,
                min_steps=-(-total // self.epochs) * 2,
                optimizer=self.optimizer,
                sampled=lr == max(self.learning_rates),
            )
            for lr in self.learning_rates
        ]


@dataclass(frozen=True, kw_only=True)
class LowMutualInformation(Relearn):
    """Relearning on facts T that say nothing about the held-out facts V: what comes back was never gone."""

    name: ClassVar[str] = "low_mi"
    source: ClassVar[str] = "Deeb & Roger 2024, arXiv 2410.08827 (retraining on T)"
    cheap: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Erode(Attack):
    """Fine-tuning on unrelated text: what was only suppressed often comes back by itself."""

    name: ClassVar[str] = "erode"
    source: ClassVar[str] = "Greenblatt & Roger's discussion; Qi et al. 2023, arXiv 2310.03693"
    needs: ClassVar[str] = "unrelated"
    cheap: ClassVar[bool] = True
    learning_rates: tuple[float, ...] = (1e-4,)
    steps: int = 32
    max_length: int = 128

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0 or self.steps < 1:
            raise InputError(
                f"attack {self.name!r}: learning_rates must be positive and steps at least 1, got "
                f"{list(self.learning_rates)} and {self.steps}"
            )

    def settings(self) -> list[str]:
        return [rate(lr) for lr in self.learning_rates]

    def curves(self, arena: Arena) -> list[Curve]:
        tokenizer = models.tokenizer_of(arena.arms[0].model)
        sequences = encode(arena.corpus("unrelated"), tokenizer, max_length=self.max_length)

        def stream() -> Iterable[TokenBatch]:
            endless = cycle(sequences, max_tokens=arena.max_tokens, seed=arena.seed, epochs=10_000)
            return itertools.islice(endless, self.steps)

        return [
            training_curve(
                arena,
                attack=self.name,
                setting=rate(lr),
                cheap=self.cheap,
                stream=stream,
                learning_rate=lr,
                steps=self.steps,
                min_steps=self.steps // 2,
                sampled=lr == max(self.learning_rates),
            )
            for lr in self.learning_rates
        ]
