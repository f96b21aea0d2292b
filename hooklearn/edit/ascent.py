"""The plain baselines: gradient ascent, GradDiff, and the ordinary answer (train on the good completions)."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hooklearn import models
from hooklearn.data import TokenBatch, cycle, encode
from hooklearn.edit.method import Method, Problem, Updates, delta_of
from hooklearn.edit.unedited import Teacher
from hooklearn.losses import LossSum
from hooklearn.train import Objective, fit, nll
from hooklearn.types import InputError, NumericalError


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Method):
    """One step up the forget loss: exactly REINFORCE with reward -1 on the given completions."""

    name: ClassVar[str] = "gradient_ascent"
    source: ClassVar[str] = "Jang et al. 2022, arXiv 2210.01504; Williams 1992 for the REINFORCE view"

    def path(self, problem: Problem) -> Iterator[Updates]:
        yield problem.gradient("forget")


@dataclass(frozen=True, kw_only=True)
class Descent(Method):
    """Walks an objective with Adam on the sites' weights; yields where it stands every few steps."""

    ray: ClassVar[bool] = False
    learning_rate: float = 2e-5
    epochs: int = 10
    every: int = 2
    """Steps between two looks at the budget."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.epochs < 1 or self.every < 1:
            raise InputError(
                f"method {self.name!r}: learning_rate, epochs and every must be positive, got "
                f"{self.learning_rate}, {self.epochs}, {self.every}"
            )

    def objective(self, problem: Problem) -> tuple[str, Objective]:
        """(the corpus that is walked through, the loss on one of its batches)."""
        raise NotImplementedError

    def path(self, problem: Problem) -> Iterator[Updates]:
        role, objective = self.objective(problem)
        stream = training_stream(problem, role, self.epochs)
        yield from descend(problem, stream, objective, self.learning_rate, self.every)


def training_stream(problem: Problem, role: str, epochs: int) -> Iterator[TokenBatch]:
    tokenizer = models.tokenizer_of(problem.model)
    sequences = encode(problem.corpus(role), tokenizer, end=True)
    return cycle(sequences, max_tokens=problem.max_tokens, seed=problem.seed, epochs=epochs)


def descend(
    problem: Problem,
    stream: Iterator[TokenBatch],
    objective: Objective,
    learning_rate: float,
    every: int,
) -> Iterator[Updates]:
    """Adam on the stored weights of the sites, the model being unedited between two chunks."""
    model, sites = problem.model, problem.sites
    params = models.parameters_of(model, sites)
    rule = torch.optim.Adam(params, lr=learning_rate)
    # zeros and not nothing: what edited() puts back are the weights that its delta names
    updates: Updates = {s.name: torch.zeros(s.d_out, s.d_in) for s in sites}
    while True:
        chunk = list(itertools.islice(stream, every))
        if not chunk:
            return
        with models.edited(model, delta_of(updates)), models.trainable(model, params):
            with _blaming(learning_rate):
                run = fit(model, chunk, rule=rule, objective=objective, precision=problem.precision)
            moved = {s.name: models.weight(model, s).detach().clone() for s in sites}
        problem.tokens += run.tokens
        updates = {s.name: moved[s.name] - models.weight(model, s).detach() for s in sites}
        yield updates


@contextlib.contextmanager
def _blaming(learning_rate: float) -> Iterator[None]:
    """A loss that breaks down in here is due to a number that the user gave."""
    try:
        yield
    except NumericalError as error:
        raise InputError(f"learning_rate {learning_rate:g} is too high: {error} (2e-05 is usual)") from error


@dataclass(frozen=True, kw_only=True)
class GradDiff(Descent):
    """Gradient difference: forget loss up, retain loss down, by Adam."""

    name: ClassVar[str] = "graddiff"
    source: ClassVar[str] = "Liu, Liu & Stone 2022, arXiv 2203.12817; open-unlearning's form"
    gamma: float = 1.0
    """Weight of -NLL on forget."""
    alpha: float = 1.0
    """Weight of the retain loss."""
    retain: Literal["nll", "kl"] = "nll"
    """``nll`` trains on the good completions; ``kl`` holds what the unedited model says at their tokens."""

    def objective(self, problem: Problem) -> tuple[str, Objective]:
        retain = training_stream(problem, "retain", sys.maxsize)
        keep = nll if self.retain == "nll" else Teacher.of(problem, "retain").kl

        def loss(model: Any, batch: TokenBatch) -> LossSum:
            kept = next(retain)
            problem.tokens += kept.n_tokens
            up, down = nll(model, batch), keep(model, kept)
            mean = self.alpha * down.mean - self.gamma * up.mean
            return LossSum(mean, 1)

        return "forget", loss


@dataclass(frozen=True, kw_only=True)
class GoodOnly(Descent):
    """The ordinary answer: Adam on the good completions alone, stopped at the same budget."""

    name: ClassVar[str] = "good_only"
    source: ClassVar[str] = "supervised fine-tuning"

    def objective(self, problem: Problem) -> tuple[str, Objective]:
        del problem
        return "retain", nll
