"""The natural-gradient edit in several rounds: the gradient is taken anew where the last step ended.

One shot follows the tangent at the unedited model. Bad completions that have become unlikely push no less than
before, and good ones that are already likely pull no less: the gradient of a later state knows better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from hooklearn import editing, models
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit.budget import search
from hooklearn.edit.descent import nowhere
from hooklearn.edit.method import Method, Problem, Updates, delta_of, inner, norm
from hooklearn.edit.natural import Metric
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
    step_kl: float = 6e-4
    """Nats per token of the first step, on a few reference texts; after n steps n^2 of it, as KL grows with the square
    of the way: four cost about .01."""
    rounds: int = 12
    """The cap, where the budget is not reached before."""

    def __post_init__(self) -> None:
        if self.forget_weight < 0 or self.damping <= 0 or self.step_kl <= 0 or self.rounds < 1:
            raise InputError(
                "natural_rounds: forget_weight must be 0 or more, damping, step_kl and rounds positive, got "
                f"{self.forget_weight}, {self.damping}, {self.step_kl} and {self.rounds}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain", "reference")

    def path(self, problem: Problem) -> Iterator[Updates]:
        metric = Metric(problem, self.damping)
        meter = DisruptionMeter(problem.model, problem.corpus("reference").take(TEXTS), rough=0)
        there = nowhere(problem)
        length = (
            1e-3 * sum(float(models.weight(problem.model, s).detach().square().sum()) for s in problem.sites) ** 0.5
        )
        for n in range(1, self.rounds + 1):
            with editing.edited(problem.model, delta_of(there)):
                forget, retain = problem.fresh_gradient("forget"), problem.fresh_gradient("retain")
            step = self._direction(metric, forget, retain)

            def share(scale: float, there: Updates = there, step: Updates = step, n: int = n) -> float:
                model = problem.model
                with editing.edited(model, delta_of(there)), editing.edited(model, delta_of(step), scale):
                    return meter.measure().kl.value / (n**2 * self.step_kl)

            scale = search(share, start=length / norm(step), landing=(0.7, 1.0))
            assert scale is not None  # no limit was given
            there = {name: there[name].to(update.device).add_(update, alpha=scale) for name, update in step.items()}
            length = scale * norm(step)
            yield {name: update.clone() for name, update in there.items()}

    def _direction(self, metric: Metric, forget: Updates, retain: Updates) -> Updates:
        down, up = metric.solve(forget, retain)
        w_down = self.forget_weight / math.sqrt(max(inner(forget, down), 1e-60))
        w_up = 1 / math.sqrt(max(inner(retain, up), 1e-60))
        return {name: w_down * down[name] - w_up * up[name] for name in down}
