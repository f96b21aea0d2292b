"""Walking: what every method that takes steps shares, with an adversary beside it or without.

The model is unedited whenever control is given back; where the walk stands is a dictionary of updates.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import editing, forward, losses, models
from hooklearn.data import TokenBatch, cycle
from hooklearn.edit.method import Method, Problem, Updates, delta_of
from hooklearn.edit.unedited import Teacher, training_sequences
from hooklearn.losses import LossSum
from hooklearn.train import Objective, Rule, fit, nll
from hooklearn.types import InputError, NumericalError

BatchLoss = Callable[[Any, TokenBatch], Float[Tensor, ""]]
"""(model, batch) -> nats; the mean over sequences or tokens, as the method's paper has it."""
Retain = Literal["nll", "kl"]


def training_stream(problem: Problem, role: str, epochs: int) -> Iterator[TokenBatch]:
    """Batches of a corpus for ``epochs`` passes."""
    return cycle(training_sequences(problem, role), max_tokens=problem.max_tokens, seed=problem.seed, epochs=epochs)


def nowhere(problem: Problem) -> Updates:
    """The start of a walk: zeros and not nothing, as what ``edited`` puts back are the weights that its delta names."""
    return {s.name: torch.zeros(s.d_out, s.d_in) for s in problem.sites}


@contextlib.contextmanager
def advancing(problem: Problem, updates: Updates) -> Iterator[list[Tensor]]:
    """The model at ``original + updates``, its sites' weights (handed out as stored) trainable.

    On leaving, ``updates`` says where they stand now (new tensors: what was yielded before stays as it was), and the
    model is unedited bit for bit. Nothing is recorded when the block raises.
    """
    model, sites = problem.model, problem.sites
    params = models.parameters_of(model, sites)
    with editing.edited(model, delta_of(updates)), models.trainable(model, params):
        yield list(params)
        moved = {s.name: models.weight(model, s).detach().clone() for s in sites}
    for s in sites:
        updates[s.name] = moved[s.name].sub_(models.weight(model, s).detach())


def one_step(problem: Problem, batch: TokenBatch, rule: Rule, objective: Objective = nll) -> None:
    """One turn of the loop on one batch; its tokens are counted."""
    run = fit(problem.model, [batch], rule=rule, objective=objective, precision=problem.precision)
    problem.tokens += run.tokens


def descend(
    problem: Problem,
    stream: Iterator[TokenBatch],
    objective: Objective,
    learning_rate: float,
    every: int,
    *,
    usual: float,
    option: str = "learning_rate",
) -> Iterator[Updates]:
    """Adam on the stored weights of the sites; yields where it stands after every few steps.

    ``option`` is what the rate is called where it can be set, and ``usual`` its default: a loss that breaks down is
    blamed on it.
    """
    rule = torch.optim.Adam(models.parameters_of(problem.model, problem.sites), lr=learning_rate)
    updates, step = nowhere(problem), 0
    while chunk := list(itertools.islice(stream, every)):
        with blaming(f"{option} {learning_rate:g} ({usual:g} is usual)"), advancing(problem, updates):
            run = fit(problem.model, chunk, rule=rule, objective=objective, precision=problem.precision, first=step)
        problem.tokens += run.tokens
        step += run.steps
        yield dict(updates)


@dataclass(frozen=True, kw_only=True)
class Walked(Method):
    """Adam on the sites' weights; yields where it stands every few steps."""

    ray: ClassVar[bool] = False
    learning_rate: float = 2e-5
    """Adam's. The walk ends where it crosses the budget, so it decides how finely and not how far."""
    epochs: int = 10
    """The cap on passes over forget (``good_only``: over retain), where the budget is not reached before."""
    every: int = 2
    """Steps between two looks at the budget."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.epochs < 1 or self.every < 1:
            raise InputError(
                f"method {self.name!r}: learning_rate, epochs and every must be positive, got "
                f"{self.learning_rate}, {self.epochs}, {self.every}"
            )


@dataclass(frozen=True, kw_only=True)
class Descent(Walked):
    """Walks an objective; final classes say which."""

    @abstractmethod
    def objective(self, problem: Problem) -> tuple[str, Objective]:
        """(the corpus that is walked through, the loss on one of its batches)."""

    def path(self, problem: Problem) -> Iterator[Updates]:
        role, objective = self.objective(problem)
        stream = training_stream(problem, role, self.epochs)
        usual = type(self).learning_rate
        yield from descend(problem, stream, objective, self.learning_rate, self.every, usual=usual)


@dataclass(frozen=True, kw_only=True)
class BesideRetain(Descent):
    """A loss on forget beside one on retain, by Adam; final classes say what the first is."""

    positive: ClassVar[tuple[str, ...]] = ("gamma",)
    """Options that must be above 0."""
    gamma: float = 1.0
    """Weight of the loss on forget."""
    alpha: float = 1.0
    """Weight of the loss on retain, nats per token; with 0 no retain corpus is needed."""
    retain: Retain = "nll"
    """``nll`` trains on the good completions; ``kl`` holds what the unedited model says at their tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.positive:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"method {self.name!r}: {name} must be a positive number, got {value}")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"method {self.name!r}: alpha must be 0 or more, got {self.alpha}")
        if self.alpha == 0:
            self.refuse("retain", why="with alpha 0 there is no loss on retain")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",) if self.alpha else ()

    @abstractmethod
    def forget_loss(self, problem: Problem) -> BatchLoss:
        """Called once, the model being unedited; the loss is called on batches of forget sequences."""

    def objective(self, problem: Problem) -> tuple[str, Objective]:
        forget = self.forget_loss(problem)
        keep = _retain_loss(problem, self.retain) if self.alpha else None

        def loss(model: Any, batch: TokenBatch) -> LossSum:
            total = self.gamma * forget(model, batch)
            if keep is not None:
                total = total + self.alpha * keep(model)
            return LossSum(total, 1)

        return "forget", loss


def _retain_loss(problem: Problem, kind: Retain) -> Callable[[Any], Float[Tensor, ""]]:
    """Mean loss per token of the next retain batch, without end."""
    stream = training_stream(problem, "retain", sys.maxsize)
    objective = nll if kind == "nll" else Teacher.of(problem, "retain").kl

    def loss(model: Any) -> Tensor:
        batch = next(stream)
        problem.tokens += batch.n_tokens
        return objective(model, batch).mean

    return loss


class HandRule(ABC):
    """A rule written by hand: what to do with the gradients of ``params`` is all that differs."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = params

    @abstractmethod
    def step(self) -> None: ...

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 (torch's interface)
        for parameter in self.params:
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """One per parameter, as stored; zeros for what the loss does not depend on."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]


@contextlib.contextmanager
def blaming(options: str) -> Iterator[None]:
    """A loss that breaks down in here is due to numbers that the user gave."""
    try:
        yield
    except NumericalError as error:
        raise InputError(f"{options}: too high for this model ({error})") from error


def confusion(model: Any, batch: TokenBatch) -> LossSum:
    """Minus the predictive entropy, nats per token: lowest where the model has no idea."""
    return -1.0 * losses.entropy(forward.logits(model, batch))
