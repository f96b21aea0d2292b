"""What the attacks by fine-tuning share: a sweep of learning rates over one plan of batches."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hooklearn import models
from hooklearn.attack.climbing import rungs, stable_rates
from hooklearn.attack.curve import Arena, Attack, Stream, Trained, all_but_embeddings, all_weights, training_curve
from hooklearn.attack.effort import Effort, of_training, sizes
from hooklearn.data import Encoded, cycle, encode
from hooklearn.traits import row_of
from hooklearn.types import Curve, InputError


@dataclass(frozen=True)
class Plan:
    """What an arm is trained on, and for how long."""

    stream: Stream
    steps: int
    """The cap; the edited arm stops before where its curve is flat ..."""
    min_steps: int
    """... but not before this."""
    also_at: tuple[int, ...] = ()
    """Steps that are looked at beside those of the log scale."""
    note: str = ""
    """What the curve should say of its steps, e.g. where a phase ends."""


@dataclass(frozen=True, kw_only=True)
class Tuning(Attack):
    """Abstract: one curve per learning rate; a subclass says what is trained on."""

    sharded: ClassVar[bool] = True
    learning_rates: tuple[float, ...]
    """Always a sweep that goes up: a rate N times lower can fail in far more than N times the steps."""
    optimizer: str = "adam"
    """``adam`` or ``sgd``."""
    embeddings: bool = True
    """Whether full fine-tuning moves them too. Of a small model they are a fifth of the weights and, on a CPU, most of
    what a step costs beside its products."""
    first_look: int = 2
    """The first step after which a curve is looked at; later ones are the powers of two, and the last."""
    sampled_at: tuple[int, ...] = ()
    """Steps after which samples are drawn at the highest rate, beside the end: how soon the behaviour is back."""
    climb: int = 0
    """Up to how many more rates beyond the highest of the list, each three times the one before, while the unedited
    model stands them: to the highest at which it can be trained. It is tried first, so that all edits get the same
    ones."""

    def __post_init__(self) -> None:
        if not self.learning_rates or not min(self.learning_rates) > 0:
            raise InputError(f"attack {self.name!r}: learning_rates must be positive, got {list(self.learning_rates)}")
        if self.optimizer not in ("adam", "sgd"):
            raise InputError(f"attack {self.name!r}: optimizer {self.optimizer!r}; valid: adam, sgd")
        if self.first_look < 1:
            raise InputError(f"attack {self.name!r}: first_look must be 1 or more, got {self.first_look}")
        if self.climb < 0:
            raise InputError(f"attack {self.name!r}: climb must be 0 or more, got {self.climb}")
        if self.sampled_at and min(self.sampled_at) < 1:
            raise InputError(f"attack {self.name!r}: sampled_at must be steps from 1 on, got {list(self.sampled_at)}")

    @abstractmethod
    def plan(self, arena: Arena) -> Plan: ...

    def label(self) -> str:
        """What a setting says before its learning rate."""
        return ""

    def moved(self, arena: Arena) -> Trained:  # noqa: ARG002 (an adapter is drawn by the seed)
        """What is trained: all weights."""
        return all_weights if self.embeddings else all_but_embeddings

    def n_trained(self, model: Any) -> int:
        """How many parameters that are."""
        blocks, _ = sizes(model)
        return sum(p.numel() for p in models.all_parameters(model)) if self.embeddings else blocks

    def effort(self, arena: Arena, steps: int) -> Effort:
        model = arena.arms[0].model
        return of_training(model, itertools.islice(self.plan(arena).stream(), steps), self.n_trained(model))

    def settings(self) -> list[str]:
        """Those of the listed rates; where it climbs there are more."""
        return [self.setting(lr) for lr in self.learning_rates]

    def reachable(self) -> list[str]:
        above = rungs(max(self.learning_rates), self.climb)
        return [*self.settings(), *(self.setting(lr) for lr in above)]

    def setting(self, learning_rate: float) -> str:
        words = " ".join(filter(None, (self.label(), "" if self.optimizer == "adam" else self.optimizer)))
        return f"{words} lr={learning_rate:g}".strip()

    def rates(self, arena: Arena, stream: Stream) -> list[float]:
        """The listed ones, and those that it climbs to."""
        higher = stable_rates(
            arena, stream, max(self.learning_rates), self.climb, optimizer=self.optimizer, trained=self.moved(arena)
        )
        return [*self.learning_rates, *higher]

    def curves(self, arena: Arena) -> list[Curve]:
        return list(self.one_by_one(arena))

    def one_by_one(self, arena: Arena) -> Iterator[Curve]:
        plan = self.plan(arena)
        self.check_batches(arena)
        rates = self.rates(arena, plan.stream)
        for lr in rates:
            if self.setting(lr) not in arena.finished:
                yield self.curve(arena, plan, lr, sampled=lr == max(rates))

    def curve(self, arena: Arena, plan: Plan, learning_rate: float, *, sampled: bool) -> Curve:
        """One learning rate; samples are drawn at the highest."""
        curve = training_curve(
            arena, attack=self.name, setting=self.setting(learning_rate), cheap=self.cheap, stream=plan.stream,
            learning_rate=learning_rate, steps=plan.steps, min_steps=plan.min_steps, optimizer=self.optimizer,
            sampled=sampled, trained=self.moved(arena),
            also_at=plan.also_at, first_look=self.first_look, sampled_at=self.sampled_at,
        )  # fmt: skip
        return _noted(curve, plan.note)

    def last(self, arena: Arena) -> int:
        """The step after which it ends, unless the curve is flat before."""
        return self.plan(arena).steps

    def check_batches(self, arena: Arena) -> None:
        if self.sampled_at:
            self.samples_within(self.last(arena))

    def samples_within(self, steps: int) -> None:
        """Raises InputError where samples are asked for after the end."""
        if self.sampled_at and max(self.sampled_at) > steps:
            raise InputError(
                f"attack {self.name!r}: sampled_at {list(self.sampled_at)}, and it ends after {steps} steps; valid: "
                f"1 to {steps}"
            )

    def at_least(self, **options: int) -> None:
        """Raises InputError for an option below 1."""
        for name, value in options.items():
            if value < 1:
                raise InputError(f"attack {self.name!r}: {name} must be 1 or more, got {value}")


def _noted(curve: Curve, note: str) -> Curve:
    arms = {name: replace(arm, note="; ".join(filter(None, (note, arm.note)))) for name, arm in curve.arms.items()}
    return replace(curve, arms=arms)


def demonstrations(arena: Arena, epochs: int, max_steps: int | None) -> Plan:
    """``epochs`` passes over the attacker's data; two of them are always run."""
    sequences = encode(arena.corpus("attack_train"), models.tokenizer_of(arena.arms[0].model), end=True)
    stream = epochs_of(sequences, arena, epochs)
    total = length(stream)
    return Plan(stream, min(total, max_steps or total), -(-total // epochs) * 2)


def epochs_of(sequences: Sequence[Encoded], arena: Arena, epochs: int, *, max_tokens: int | None = None) -> Stream:
    """A stream of ``epochs`` passes."""
    return lambda: cycle(
        sequences, max_tokens=max_tokens or arena.max_tokens, seed=arena.seed, epochs=epochs, share=_shared(arena)
    )


def steps_of(sequences: Sequence[Encoded], arena: Arena, steps: int) -> Stream:
    """A stream of ``steps`` batches, in as many passes as that takes."""
    return lambda: itertools.islice(
        cycle(sequences, max_tokens=arena.max_tokens, seed=arena.seed, epochs=steps, share=_shared(arena)), steps
    )


def _shared(arena: Arena) -> int:
    """All arms get the same batches."""
    return min(row_of(arm.model) for arm in arena.arms)


def length(stream: Stream) -> int:
    return sum(1 for _ in stream())
