"""The natural-gradient edit in several rounds: the gradient is taken anew where the last step ended.

One shot follows the tangent at the unedited model. Bad completions that have become unlikely push no less than
before, and good ones that are already likely pull no less: the gradient of a later state knows better. ``on_policy``
goes further: what goes down is then what the model says itself (:mod:`hooklearn.edit.own_answers`), redrawn as it
changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from hooklearn import editing, models
from hooklearn.data import Corpus
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit.budget import search
from hooklearn.edit.descent import nowhere
from hooklearn.edit.method import Method, Problem, Updates, combine, delta_of, inner, norm
from hooklearn.edit.natural import Metric
from hooklearn.edit.own_answers import OwnAnswers, apart, judge
from hooklearn.measure import TEMPERATURE
from hooklearn.types import InputError

TEXTS = 4
"""Reference texts on which the length of a step is found."""


@dataclass(frozen=True, kw_only=True)
class NaturalRounds(Method):
    """Natural-gradient edit in several short steps, bad down and good up, the gradients taken anew after each."""

    name: ClassVar[str] = "natural_rounds"
    source: ClassVar[str] = "hooklearn; natural-gradient descent (Amari 1998) with K-FAC factors"
    ray: ClassVar[bool] = False
    forget_weight: float = 0.3
    """w, as in ``natural``."""
    damping: float = 0.01
    """As in ``natural``."""
    rank: int | None = None
    """Cut every step to the best rank-``rank`` approximation a site per unit of KL, as ``natural`` does with
    ``truncation: svd``; None keeps all. Without it, rounds come to know few good completions by heart."""
    step_kl: float = 6e-4
    """Nats per token of the first step, on a few reference texts; after n steps n^2 of it, as KL grows with the square
    of the way: four cost about .01."""
    rounds: int = 12
    """The cap, where the budget is not reached before."""
    on_policy: int = 0
    """Answers that the model itself is drawn to every forget prompt, anew in each round; those that a referee calls the
    behaviour are then what goes down, and the edit ends where they are fewer than four. 0: the given completions."""
    new_tokens: int = 24
    """Of such an answer."""
    temperature: float = TEMPERATURE
    """At which they are drawn."""
    reward: Literal["judge", "apart"] = "judge"
    """Who calls them so. ``judge``: the referee that will judge the edited model's samples, or the one that was given;
    ``apart``: one made of halves of forget and retain, for this alone."""

    def __post_init__(self) -> None:
        if self.forget_weight < 0 or self.damping <= 0 or self.step_kl <= 0 or self.rounds < 1:
            raise InputError(
                "natural_rounds: forget_weight must be 0 or more, damping, step_kl and rounds positive, got "
                f"{self.forget_weight}, {self.damping}, {self.step_kl} and {self.rounds}"
            )
        if self.rank is not None and self.rank < 1:
            raise InputError(f"natural_rounds: rank must be 1 or more, got {self.rank}")
        if self.on_policy < 0 or self.new_tokens < 1 or self.temperature <= 0:
            raise InputError(
                "natural_rounds: on_policy must be 0 or more, new_tokens and temperature positive, got "
                f"{self.on_policy}, {self.new_tokens} and {self.temperature}"
            )
        if self.forget_weight == 0:
            self.refuse("on_policy", why="with forget_weight 0 nothing goes down")
        if not self.on_policy:
            self.refuse("new_tokens", "temperature", "reward", why="nothing is sampled with on_policy 0")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain", "reference")

    @property
    def refereed(self) -> bool:
        return self.on_policy > 0 and self.reward == "judge"

    def path(self, problem: Problem) -> Iterator[Updates]:
        own = self._own_answers(problem)
        metric = Metric(problem, self.damping)
        meter = DisruptionMeter(problem.model, problem.corpus("reference").take(TEXTS), rough=0)
        problem.tokens += meter.tokens
        there: Updates = nowhere(problem)
        length = (
            1e-3 * sum(float(models.weight(problem.model, s).detach().square().sum()) for s in problem.sites) ** 0.5
        )
        for n in range(1, self.rounds + 1):
            bad: Corpus | str | None = "forget" if own is None else own.bad(there, n)
            if bad is None:
                return
            with editing.edited(problem.model, delta_of(there)):
                forget, retain = problem.fresh_gradient(bad), problem.fresh_gradient("retain")
            step = self._direction(metric, forget, retain)

            def share(scale: float, there: Updates = there, step: Updates = step, n: int = n) -> float:
                model = problem.model
                problem.tokens += meter.tokens
                with editing.edited(model, delta_of(there)), editing.edited(model, delta_of(step), scale):
                    return meter.measure().kl.value / (n**2 * self.step_kl)

            scale = search(share, start=length / norm(step), landing=(0.7, 1.0))
            assert scale is not None  # no limit was given
            there = {name: there[name].to(update.device).add_(update, alpha=scale) for name, update in step.items()}
            length = scale * norm(step)
            yield {name: update.clone() for name, update in there.items()}

    def _own_answers(self, problem: Problem) -> OwnAnswers | None:
        if not self.on_policy:
            return None
        referee = judge(problem) if self.reward == "judge" else apart(problem)
        return OwnAnswers(problem, referee, self.on_policy, self.new_tokens, self.temperature)

    def _direction(self, metric: Metric, forget: Updates, retain: Updates) -> Updates:
        down, up = metric.solve(forget, retain)
        w_down = self.forget_weight / math.sqrt(max(inner(forget, down), 1e-60))
        w_up = 1 / math.sqrt(max(inner(retain, up), 1e-60))
        if self.rank is not None:
            return metric.truncated(combine(forget, retain, w_down, -w_up), self.rank)
        return combine(down, up, w_down, -w_up)
