"""The exact budget: where on its path an edit uses up what it may disrupt.

Every method ends with its binding disruption in [0.95, 1] of the budget, so that methods are compared at *equal*
disruption and never at whatever their last epoch gave. KL grows with the square of the scale near zero, which
makes the search short. Where the budget has a level for the forget score too, what is reached first ends the edit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hooklearn import callbacks, editing
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit.method import Updates, combine, delta_of, norm
from hooklearn.types import Budget, Disruption, InputError, Trace, TracePoint

LANDING = (0.95, 1.0)
"""The share of the budget in which an edit must land."""
ROUGH = (0.5, 1.5)
"""Near enough on a few texts for the search on all of them to begin there."""
FIRST_POINT, WHOLE_PATH = 0.1, 1.5
"""Shares that a path's first point uses, and its last, where its steps had to be made to fit. Where the first point is
over the budget, all that would be left of the method is a part of its first steps."""
FIRST_READING = 0.1
"""The share, by a few texts, from which a path is read on all of them: they may be wrong by a factor of ten."""
JUMPED = "the disruption jumps across it"
LONGEST, HARDLY = 10, 0.01
"""A ray's longest update, in norms of the edited weights; and the far KL there below which the model hardly reacts."""


Binding = Literal["kl", "near_ce", "forget"]
Refit = Callable[[float], Iterator[Updates] | None]
"""(share of the budget at the first point of a path, over it, or at its end, short of it) -> the path with steps that
fit better, or None."""


@dataclass(frozen=True)
class Landing:
    """Where the solver ended."""

    updates: Updates
    disruption: Disruption
    stop: str
    binding: Binding


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
    forgotten: float = 0.0
    """Share of the way to the budget's level, as measured last."""
    passing: Callable[[int, float], None] | None = None
    """Told of each point of a path that is passed over, with the share of the budget that it is taken to use."""
    horizon: float = FIRST_READING
    """The share from which a path's next point is read on all texts."""
    _guessed: float = math.nan
    """What a few texts said of a path's last point; ``_ratio``: how much more all of them said, the last time."""
    _ratio: float = 1.0

    def begin(self, forget: float) -> None:
        """The way starts at the unedited model, where by definition nothing is disrupted and nothing was spent."""
        if self.budget.forget is not None and not self.budget.forget < forget:
            raise InputError(
                f"budget.forget {self.budget.forget:.4g} is not below what the unedited model gives the forget items, "
                f"{forget:.4g}: there is nothing to take away"
            )
        near = 0.0 if self.meter.has_near else math.nan
        self.points.append(TracePoint(step=0, scale=0.0, tokens=0, seconds=0.0, kl=0.0, near_ce=near, forget=forget))

    def used(self, updates: Updates, scale: float, step: int) -> float:
        """Share of the budget that these updates use; adds a trace point. ``scale`` is for a ray."""
        with editing.edited(self.model, delta_of(updates), scale):
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
        last = self.points[-1]
        callbacks.evaluated(step, {"kl": last.kl, "near_ce": last.near_ce, "forget": forget}, model=self.model)
        self.forgotten = self.budget.forgotten(self.points[0].forget, forget)
        return self.share()

    def share(self) -> float:
        """Of the budget, as measured last."""
        assert self.measured is not None
        return max(self.measured.used(self.budget), self.forgotten)

    def roughly_used(self, updates: Updates, scale: float) -> float:
        """The same on a few texts, to find where the search begins; leaves no trace."""
        assert self.meter.rough is not None
        with editing.edited(self.model, delta_of(updates), scale):
            return self.meter.rough.measure().used(self.budget)

    def well_inside(self, updates: Updates, scale: float) -> bool:
        """Less than half of the budget, as far as a few texts can tell; False where there is no smaller meter, and
        where they could not tell, as the forget score may end the edit."""
        if self.meter.rough is None or self.budget.forget is not None:
            return False
        return self.roughly_used(updates, scale) < ROUGH[0]

    def passes_over(self, updates: Updates, step: int) -> bool:
        """Whether a path's point lies before the horizon, as far as a few texts can tell that have been put right."""
        if self.meter.rough is None or self.budget.forget is not None:
            return False
        self._guessed = self.roughly_used(updates, 1.0)
        share = self._ratio * self._guessed
        if not share < self.horizon:
            return False
        if self.passing is not None:
            self.passing(step, share)
        return True

    def put_right(self, share: float) -> None:
        """All texts say ``share`` of the point of which a few spoke last: the next reading is half way to the budget
        (in the logarithm), as a reading costs more than the steps between two points."""
        if min(share, self._guessed) > NOTHING:
            self._ratio = share / self._guessed
        self.horizon = max(FIRST_READING, math.sqrt(max(share, 0.0)))

    def landed(self, updates: Updates, why_not: str) -> Landing:
        """Where the walk ends, as measured last; it says so where that is not the budget."""
        assert self.measured is not None
        reached = LANDING[0] <= self.share() <= LANDING[1]
        level = self.forgotten > self.measured.used(self.budget)
        binding: Binding = "forget" if level else self.measured.binding(self.budget)
        return Landing(
            updates, self.measured, f"budget ({binding})" if reached else f"budget not reached: {why_not}", binding
        )

    def too_little(self) -> str:
        """Why a ray's longest update does not use the budget, as measured last."""
        assert self.measured is not None
        if (kl := self.measured.kl.value) < HARDLY:
            return "the model hardly reacts"
        return f"an update of {LONGEST} times the norm of the edited weights takes far KL {kl:.3g}; ask for less"

    @property
    def trace(self) -> Trace:
        return Trace(tuple(self.points))


def solve(
    walk: Walk,
    path: Iterator[Updates],
    *,
    ray: bool,
    reference_norm: float,
    on_direction: Callable[[], None] = lambda: None,
    refit: Refit = lambda _: None,
) -> Landing:
    """Follow the path to the budget.

    Args:
        ray: the path is a single direction of free length.
        reference_norm: norm of the edited weights; a ray's first trial is a thousandth of it.
        on_direction: called when a ray's direction is known and nothing else is needed any more.
        refit: asked for the path anew where its first point is over the budget already, or its end short of it.
    """
    if ray:
        direction = next(path)
        on_direction()
        return _solve_ray(walk, direction, reference_norm)
    return _solve_polyline(walk, path, refit)


def _solve_ray(walk: Walk, direction: Updates, reference_norm: float) -> Landing:
    size, limit = norm(direction), LONGEST * reference_norm
    if size == 0:
        walk.used(direction, 1.0, 0)
        return walk.landed(direction, "the update is zero")

    def used(scale: float) -> float:
        return walk.used(direction, scale, 0)

    start = 1e-3 * reference_norm / size
    if walk.meter.rough is not None:
        start = search(
            lambda scale: walk.roughly_used(direction, scale), start=start, limit=limit / size, landing=ROUGH
        ) or start  # fmt: skip
    scale = search(used, start=start, limit=limit / size)
    if scale is None:
        return walk.landed(_scaled(direction, limit / size), walk.too_little())
    if walk.budget.near_ce is not None and walk.meter.has_near:
        scale = _first_crossing(used, scale, walk, direction)
    return walk.landed(_scaled(direction, scale), JUMPED)


def _first_crossing(used: Callable[[float], float], scale: float, walk: Walk, direction: Updates) -> float:
    """Near CE may rise, fall and rise again along a ray: take its first crossing from zero, as far as three looks on
    the way there can tell."""
    keep = walk.measured, walk.forgotten
    for high in (scale / 8, scale / 4, scale / 2):
        if not walk.well_inside(direction, high) and not used(high) <= LANDING[1]:  # NaN is over
            found = search(used, start=high / math.sqrt(2), high=high)
            assert found is not None
            return found
    walk.measured, walk.forgotten = keep
    return scale


def _solve_polyline(walk: Walk, path: Iterator[Updates], refit: Refit) -> Landing:
    """Points that by a few texts lie well before the budget are passed over; none is relied on before it was read."""
    inside: Updates | None = None
    passed: Updates | None = None
    """The last point since ``inside`` that was passed over."""
    step = 0
    for step, after in enumerate(path, start=1):
        if walk.passes_over(after, step):
            passed = after
            continue
        share = walk.used(after, 1.0, step)
        if LANDING[0] <= share <= LANDING[1]:
            return walk.landed(after, JUMPED)
        if share > LANDING[1]:
            if step == 1 and (again := refit(share)) is not None:
                return _anew(walk, again, refit)
            return _between_points(walk, inside, passed, after, step)
        inside, passed = after, None
        walk.put_right(share)
    if passed is not None:
        share = walk.used(passed, 1.0, step)
        if LANDING[0] <= share <= LANDING[1]:
            return walk.landed(passed, JUMPED)
        if share > LANDING[1]:
            return _between_points(walk, inside, None, passed, step)
        inside = passed
    if inside is None:
        raise ValueError("the method's path is empty")
    if (again := refit(walk.share())) is not None:
        return _anew(walk, again, refit)
    return walk.landed(inside, "the method ended before")


def _anew(walk: Walk, path: Iterator[Updates], refit: Refit) -> Landing:
    """What was walked before is no part of the way that is taken; it has cost its tokens and seconds."""
    del walk.points[1:]
    walk.horizon = FIRST_READING
    return _solve_polyline(walk, path, refit)


def _between_points(walk: Walk, inside: Updates | None, passed: Updates | None, over: Updates, step: int) -> Landing:
    """The budget lies on the way from ``inside`` (nothing when None), perhaps by ``passed``, to ``over``."""
    if passed is not None:
        share = walk.used(passed, 1.0, step)
        if LANDING[0] <= share <= LANDING[1]:
            return walk.landed(passed, JUMPED)
        inside, over = (inside, passed) if share > LANDING[1] else (passed, over)
    start = inside if inside is not None else {name: 0 * u for name, u in over.items()}

    def between(s: float) -> Updates:
        return combine(start, over, 1 - s, s)

    scale = search(lambda s: walk.used(between(s), 1.0, step), start=0.5, high=1.0)
    assert scale is not None
    return walk.landed(between(scale), JUMPED)


def _scaled(updates: Updates, scale: float) -> Updates:
    return {n: scale * u for n, u in updates.items()}


def search(
    used: Callable[[float], float],
    *,
    start: float,
    high: float | None = None,
    limit: float = math.inf,
    max_evaluations: int = 40,
    landing: tuple[float, float] = LANDING,
) -> float | None:
    """The scale at which ``used`` lands in ``landing``; ``used`` was last called with the value returned.

    Follows the local power law (at first the square law of KL) until the budget is bracketed, then interpolates it
    between the two ends of the bracket, and bisects (in the logarithm) when one end has not moved twice in a row.
    Where ``used`` jumps across the landing zone (to NaN, say) the answer is on the safe side of the jump.

    Args:
        high: a scale known to be over the budget.
    Returns:
        None when the budget is not used up at ``limit`` either.
    """
    low: _Point | None = None
    top: _Point | None = None if high is None else _Point(high, math.inf)
    last: _Point | None = None
    scale, side, repeats = start, False, 0
    for _ in range(max_evaluations):
        now = _Point(scale, used(scale))
        if landing[0] <= now.share <= landing[1]:
            return scale
        over = not now.share < landing[0]  # NaN is over
        repeats = repeats + 1 if over == side else 0
        side = over
        if over:
            top = now
        else:
            low = now
        if top is None:
            if scale >= limit:
                return None
            scale = min(_extrapolated(last, now), limit)
        elif low is None:
            scale = min(_extrapolated(last, now), now.scale / 2 if repeats >= 2 else now.scale)
        elif top.scale - low.scale < 1e-7 * top.scale:
            break
        else:
            scale = math.sqrt(low.scale * top.scale) if repeats >= 2 else _between(low, top)
        last = now
    safe = low.scale if low else 0.0
    used(safe)
    return safe


@dataclass(frozen=True)
class _Point:
    scale: float
    share: float


AIM = sum(LANDING) / 2
NOTHING = 3e-5
"""Below this share nothing was used yet, or something got *better*: no law to be seen."""


def _extrapolated(last: _Point | None, now: _Point) -> float:
    """Where the power law through the last two points meets the aim."""
    if now.share < NOTHING:
        return now.scale * 8
    if not math.isfinite(now.share):
        return now.scale / 4
    power = 2.0
    if last is not None and NOTHING < last.share < math.inf:
        power = min(4.0, max(0.25, _power(last, now)))
    return now.scale * min(200.0, max(0.02, (AIM / now.share) ** (1 / power)))


def _power(a: _Point, b: _Point) -> float:
    return math.log(b.share / a.share) / math.log(b.scale / a.scale)


def _between(low: _Point, top: _Point) -> float:
    """Where the power law through both ends meets the aim, kept off the ends."""
    middle = math.sqrt(low.scale * top.scale)
    if not (low.share > 0 and math.isfinite(top.share)):
        return middle
    power = _power(low, top)
    guess = low.scale * (AIM / low.share) ** (1 / power) if power > 0 else middle
    width = math.log(top.scale / low.scale)
    return min(max(guess, low.scale * math.exp(0.03 * width)), top.scale * math.exp(-0.03 * width))
