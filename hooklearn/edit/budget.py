"""The exact budget: where on its path an edit uses up what it may disrupt.

Every method ends with its binding disruption in [0.95, 1] of the budget, so that methods are compared at *equal*
disruption and never at whatever their last epoch gave. KL grows with the square of the scale near zero, which
makes the search short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hooklearn import models
from hooklearn.edit.method import Updates, combine, delta_of, norm
from hooklearn.measure import DisruptionMeter
from hooklearn.types import Budget, Disruption, Trace, TracePoint

LANDING = (0.95, 1.0)
"""The share of the budget in which an edit must land."""


@dataclass(frozen=True)
class Landing:
    """Where the solver ended."""

    updates: Updates
    disruption: Disruption
    stop: str


@dataclass
class Walk:
    """Measures points of a path and keeps the trace."""

    model: Any
    meter: DisruptionMeter
    budget: Budget
    forget_score: Callable[[], float]
    tokens: Callable[[], int]
    started: float = field(default_factory=time.perf_counter)
    points: list[TracePoint] = field(default_factory=list)
    measured: Disruption | None = None

    def used(self, updates: Updates, scale: float, step: int) -> float:
        """Share of the budget that these updates use; adds a trace point."""
        with models.edited(self.model, delta_of(updates)):
            self.measured = self.meter.measure(near=self.meter.has_near)
            forget = self.forget_score()
        near = self.measured.near_ce
        self.points.append(
            TracePoint(
                step=step, scale=scale, tokens=self.tokens(),
                seconds=time.perf_counter() - self.started, kl=self.measured.kl.value,
                near_ce=near.value if near else math.nan, forget=forget,
            )
        )  # fmt: skip
        return self.measured.used(self.budget)

    def landed(self, updates: Updates) -> Landing:
        assert self.measured is not None
        return Landing(updates, self.measured, f"budget ({self.measured.binding(self.budget)})")

    @property
    def trace(self) -> Trace:
        return Trace(tuple(self.points))


def solve(walk: Walk, path: Iterator[Updates], *, ray: bool, reference_norm: float) -> Landing:
    """Follow the path to the budget.

    Args:
        ray: the path is a single direction of free length.
        reference_norm: norm of the edited weights; a ray's first trial is a thousandth of it.
    """
    if ray:
        return _solve_ray(walk, next(path), reference_norm)
    return _solve_polyline(walk, path)


def _solve_ray(walk: Walk, direction: Updates, reference_norm: float) -> Landing:
    size = norm(direction)
    if size == 0:
        return _unreached(walk, direction, "budget not reached: the update is zero")
    unit = {n: u / size for n, u in direction.items()}

    def used(scale: float) -> float:
        return walk.used(_scaled(unit, scale), scale, 0)

    scale = search(used, start=1e-3 * reference_norm, limit=10 * reference_norm)
    if scale is None:
        return _unreached(walk, direction, "budget not reached: the model does not react")
    if walk.budget.near_ce is not None and walk.meter.has_near:
        scale = _first_crossing(used, scale, walk)
    return walk.landed(_scaled(unit, scale))


def _first_crossing(used: Callable[[float], float], scale: float, walk: Walk) -> float:
    """Near CE may rise, fall and rise again along a ray: take its first crossing from zero."""
    keep = walk.measured
    if used(scale / 2) <= LANDING[1]:
        walk.measured = keep
        return scale
    found = search(used, start=scale / 4, high=scale / 2)
    assert found is not None
    return found


def _solve_polyline(walk: Walk, path: Iterator[Updates]) -> Landing:
    before: Updates | None = None
    for step, after in enumerate(path, start=1):
        share = walk.used(after, 1.0, step)
        if LANDING[0] <= share <= LANDING[1]:
            return walk.landed(after)
        if share > LANDING[1]:
            start = before if before is not None else {n: 0 * u for n, u in after.items()}

            def between(s: float, a: Updates = start, b: Updates = after) -> Updates:
                return combine(a, b, 1 - s, s)

            def used(s: float, step: int = step) -> float:
                return walk.used(between(s), s, step)

            scale = search(used, start=0.5, high=1.0, quadratic=before is None)
            assert scale is not None
            return walk.landed(between(scale))
        before = after
    if before is None:
        raise ValueError("the method's path is empty")
    return _unreached(walk, before, "budget not reached: the method ended before")


def _unreached(walk: Walk, updates: Updates, why: str) -> Landing:
    walk.used(updates, 1.0, len(walk.points))
    assert walk.measured is not None
    return Landing(updates, walk.measured, why)


def _scaled(updates: Updates, scale: float) -> Updates:
    return {n: scale * u for n, u in updates.items()}


def search(
    used: Callable[[float], float],
    *,
    start: float,
    high: float | None = None,
    limit: float = math.inf,
    quadratic: bool = True,
    max_evaluations: int = 40,
) -> float | None:
    """The scale at which ``used`` lands in [0.95, 1]; ``used`` was last called with the value returned.

    Bracketing with a local power law: ``used ~ scale^p``, p = 2 at first (KL), then fitted to the last two points;
    whatever it proposes is kept inside the bracket. ``high`` is a scale known to be over the budget.

    Returns:
        None when ``limit`` is reached without using up the budget.
    """
    aim = sum(LANDING) / 2
    low = 0.0
    scale, power = start, 2.0
    last: tuple[float, float] | None = None
    for _ in range(max_evaluations):
        share = used(scale)
        if LANDING[0] <= share <= LANDING[1]:
            return scale
        if share < LANDING[0]:
            low = scale
        else:
            high = scale
        if (
            last is not None
            and 0 < share < math.inf
            and 0 < last[1] < math.inf
            and scale != last[0]
        ):
            slope = math.log(share / last[1]) / math.log(scale / last[0])
            power = min(4.0, max(0.5, slope)) if math.isfinite(slope) else 2.0
        last = (scale, share)
        scale = _propose(scale, share, aim, power if quadratic else 1.0, low, high)
        if scale > limit:
            return None
        if high is not None and high - low < 1e-9 * high:
            break
    # a jump across the landing zone (NaN beyond some scale, say): stay on the safe side of it
    if low > 0:
        used(low)
        return low
    return None


def _propose(
    scale: float, share: float, aim: float, power: float, low: float, high: float | None
) -> float:
    if share > 0 and math.isfinite(share):
        guess = scale * (aim / share) ** (1 / power)
    else:
        guess = scale * (4.0 if share <= 0 else 0.25)
    if high is None:
        return min(guess, scale * 64) if share > 1e-4 else scale * 8
    inside = low + 0.02 * (high - low), high - 0.02 * (high - low)
    if low > 0 and not inside[0] < guess < inside[1]:
        return math.sqrt(low * high)
    return min(max(guess, inside[0]), inside[1])
