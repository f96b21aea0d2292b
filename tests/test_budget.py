"""The solver of the budget, on functions drawn by hand: exact, short, first crossing, safe beside a cliff."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hooklearn.edit.budget import LANDING, Landing, Walk, search, solve
from hooklearn.edit.method import Updates, norm
from hooklearn.types import Budget, Disruption, InputError, Score, TracePoint


class Counted:
    """Remembers where a function was evaluated."""

    def __init__(self, function: Callable[[float], float]) -> None:
        self.function = function
        self.at: list[float] = []

    def __call__(self, scale: float) -> float:
        self.at.append(scale)
        return self.function(scale)


def landed(share: float) -> bool:
    return LANDING[0] <= share <= LANDING[1]


# ------------------------------------------------------------------------------------------- search


@given(power=st.floats(0.5, 4), level=st.floats(-8, 8))
def test_power_laws_are_solved_in_a_few_evaluations(power: float, level: float) -> None:
    """From far too small to far too large (eight decades either way), for every local power KL or CE may have.

    KL itself (power 2) takes at most one evaluation per two decades, and one to land.
    """
    used = Counted(lambda s: 10**level * s**power)
    scale = search(used, start=1.0)
    assert scale is not None and landed(used.function(scale)) and used.at[-1] == scale
    assert len(used.at) <= 20
    kl = Counted(lambda s: 10**level * s**2)
    search(kl, start=1.0)
    assert len(kl.at) <= 8


MONOTONE: dict[str, Callable[[float], float]] = {
    "linear then square": lambda s: 3 * s + 50 * s**2,
    "saturating, barely above": lambda s: 1.05 * (1 - math.exp(-(s**2))),
    "exponential": lambda s: math.expm1(min(s, 700)) / 1e4,
    "steep": lambda s: s**12,
    "flat, then steep": lambda s: 0.5 * min(s, 1) + max(0.0, s - 1) ** 4,
    "logarithmic": lambda s: math.log1p(s) / 5,
    "better at first (near CE), then worse": lambda s: -2 * s + s**2,
}


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("start", [1e-4, 1.0, 1e3])
def test_other_shapes_are_solved_too(name: str, start: float) -> None:
    """Not only power laws; the landing is exact, and ``used`` was last asked at the answer."""
    used = Counted(MONOTONE[name])
    scale = search(used, start=start)
    assert scale is not None and landed(used.function(scale)) and used.at[-1] == scale
    assert len(used.at) <= 25


@pytest.mark.parametrize("kl", [0.001, math.nan, math.inf])
@pytest.mark.parametrize("near", [0.001, math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_over_every_budget(kl: float, near: float) -> None:
    """Far and near, whichever comes first; a near reading that no budget asks for does not count (control)."""
    found = Disruption(Score(kl), Score(0.0), Score(near))
    fine = math.isfinite(kl) and math.isfinite(near)
    assert found.used(Budget(0.01, near_ce=0.02)) == (pytest.approx(0.1) if fine else math.inf)
    assert found.used(Budget(0.01)) == (pytest.approx(0.1) if math.isfinite(kl) else math.inf)
    at_fault = "near_ce" if math.isfinite(kl) and not math.isfinite(near) else "kl"
    assert found.binding(Budget(0.01, near_ce=0.02)) == at_fault and found.binding(Budget(0.01)) == "kl"


@given(low=st.floats(0, 0.9), power=st.floats(0.5, 3))
def test_between_two_known_points_too(low: float, power: float) -> None:
    """The last stretch of an iterative method: at 0 a part of the budget is used, at 1 it is over."""
    used = Counted(lambda s: low + 0.5 * s**power + 0.1 * s if s else low)
    if used.function(1.0) <= 1:
        return
    scale = search(used, start=0.5, high=1.0)
    assert scale is not None and 0 < scale < 1 and landed(used.function(scale))


def test_a_model_that_does_not_react_has_no_answer() -> None:
    """None at the limit, which is tried and never passed; a budget that is met just before it is found."""
    used = Counted(lambda s: 1e-9 * s)
    assert search(used, start=1.0, limit=10.0) is None
    assert max(used.at) == 10.0
    assert search(Counted(lambda s: 0.0), start=1.0, limit=10.0) is None
    just = Counted(lambda s: 0.96 * (s / 9.5) ** 8)
    scale = search(just, start=1.0, limit=10.0)
    assert scale is not None and landed(just.function(scale)) and max(just.at) <= 10


@pytest.mark.parametrize("beyond", [math.nan, math.inf, 7.0])
@pytest.mark.parametrize("start", [1e-3, 5.0])
def test_beside_a_cliff_the_answer_is_on_the_safe_side(beyond: float, start: float) -> None:
    """NaN, infinity or a jump beyond some scale: the largest scale before it, to a millionth; measured last."""
    used = Counted(lambda s: 0.3 * s if s < 2 else beyond)
    scale = search(used, start=start)
    assert scale is not None and 2 * (1 - 1e-6) < scale < 2 and used.at[-1] == scale


def test_where_every_scale_is_over_the_answer_is_to_change_nothing() -> None:
    """NaN everywhere: scale 0, not a guess, and not an endless search."""
    used = Counted(lambda s: math.nan if s else 0.0)
    assert search(used, start=1.0) == 0.0
    assert used.at[-1] == 0.0 and len(used.at) < 50


# ------------------------------------------------------------------------------------ rays and paths


class Drawn(Walk):
    """A walk over a model drawn by hand: the budgets used are functions of the update's norm."""

    def __init__(self, kl: Any, near: Any = None, budget: Budget | None = None) -> None:
        budget = budget or Budget(0.01, 0.02 if near else None)
        super().__init__(None, SimpleNamespace(rough=None, has_near=near is not None), budget, lambda: 0.0, lambda: 0)
        self.kl, self.near = kl, near

    def used(self, updates: Updates, scale: float, step: int) -> float:
        size = scale * norm(updates)
        near = Score(self.budget.near_ce * self.near(size)) if self.near else None
        self.measured = Disruption(Score(self.budget.kl * self.kl(size)), Score(0.0), near)
        self.points.append(TracePoint(step, scale, 0, 0.0, self.measured.kl.value))
        return self.measured.used(self.budget)


def direction(size: float = 1.0) -> Updates:
    return {"a": size * torch.tensor([[0.6, 0.0]]), "b": size * torch.tensor([[0.8]])}


def ray(walk: Drawn, size: float = 1.0) -> Landing:
    return solve(walk, iter([direction(size)]), ray=True, reference_norm=1.0)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_ray_lands_whatever_the_length_of_its_update(size: float) -> None:
    """Only the direction counts; what is reported is what was measured at the end of the ray."""
    walk = Drawn(lambda s: (s / 0.3) ** 2)
    landing = ray(walk, size)
    assert landing.stop == "budget (kl)" and landed(landing.disruption.used(walk.budget))
    assert norm(landing.updates) == pytest.approx(0.3, rel=0.03)
    assert landing.disruption.kl.value == pytest.approx(0.01 * (norm(landing.updates) / 0.3) ** 2)
    assert len(walk.trace.points) <= 8


@pytest.mark.parametrize("off", [0.5, 1.0, 2.0])
def test_a_few_texts_say_where_to_begin(off: float) -> None:
    """A rough meter that is wrong by a factor of two leaves three readings of the whole one, and the same landing;
    without it there are more (the positive control)."""
    exact, begun = (Drawn(lambda s: (s / 0.3) ** 2, lambda s: -s) for _ in range(2))
    ray(exact, 1e-6)
    begun.meter.rough = object()
    begun.roughly_used = lambda updates, scale: off * (scale * norm(updates) / 0.3) ** 2
    landing = ray(begun, 1e-6)
    assert landing.stop == "budget (kl)" and norm(landing.updates) == pytest.approx(0.3, rel=0.03)
    assert len(begun.trace.points) <= 3 < len(exact.trace.points)


@pytest.mark.parametrize("ends", [False, True], ids=["the path goes on", "the path ends there"])
def test_a_point_passed_over_by_mistake_is_read_before_it_is_relied_on(ends: bool) -> None:
    """A few texts say .4 of a point that is at 1.3: the edit still lands, between the last inside point and it."""
    walk = Drawn(lambda s: s**2)
    walk.meter.rough = object()
    walk.roughly_used = lambda updates, scale: (0.3 if norm(updates) < 1.2 else 9.0) * norm(updates) ** 2
    sizes = [0.5, 0.9, 1.14] + ([] if ends else [1.5])
    landing = solve(walk, iter([direction(s) for s in sizes]), ray=False, reference_norm=1.0)
    assert landing.stop == "budget (kl)" and landed(landing.disruption.used(walk.budget))
    assert norm(landing.updates) < 1.0


@pytest.mark.parametrize("off", [0.3, 1.0, 3.0])
def test_a_slow_walk_is_read_a_few_times(off: float) -> None:
    """Of 60 points that each use a little more, nine at most are read on all texts, also where the few are wrong by
    a factor that stays; the landing is that of reading every point (the positive control)."""
    sizes = [k / 50 for k in range(1, 61)]
    walks = [Drawn(lambda s: s**2) for _ in range(2)]
    walks[1].meter.rough = object()
    walks[1].roughly_used = lambda updates, scale: off * (scale * norm(updates)) ** 2
    every, few = (solve(w, iter([direction(s) for s in sizes]), ray=False, reference_norm=1.0) for w in walks)
    assert norm(few.updates) == norm(every.updates) == pytest.approx(0.98)
    assert few.stop == every.stop == "budget (kl)"
    assert len(walks[1].points) <= 9 < 49 == len(walks[0].points)


def test_a_path_whose_first_point_is_over_is_asked_for_anew() -> None:
    """At twelve times the budget; the next one ends at a quarter of it; the third is walked, and is all of the way.
    Where there is no other, a part of the first step is all that is left (the control)."""
    asked: list[float] = []
    paths = [[0.25, 0.5], [k / 5 for k in range(1, 9)]]

    def refit(share: float) -> Any:
        asked.append(share)
        return iter([direction(size) for size in paths.pop(0)])

    walk, control = Drawn(lambda s: s**2), Drawn(lambda s: s**2)
    walk.begin(1.0)
    landing = solve(walk, iter([direction(12**0.5)]), ray=False, reference_norm=1.0, refit=refit)
    assert asked == pytest.approx([12, 0.25]) and landing.stop == "budget (kl)"
    assert [p.kl for p in walk.points[:5]] == pytest.approx([0.01 * (k / 5) ** 2 for k in range(5)])
    assert norm(landing.updates) == pytest.approx(1.0, rel=0.03)
    solve(control, iter([direction(12**0.5)]), ray=False, reference_norm=1.0)
    assert control.points[0].kl == pytest.approx(0.12)


def test_what_is_passed_over_is_told() -> None:
    """Step and share of each point that is not read, and of no other: of five, three lie before the next reading."""
    told: list[tuple[int, float]] = []
    walk = Drawn(lambda s: s**2)
    walk.passing = lambda step, share: told.append((step, round(share, 2)))
    walk.meter.rough = object()
    walk.roughly_used = lambda updates, scale: norm(updates) ** 2
    solve(walk, iter([direction(s) for s in (0.1, 0.3, 0.6, 0.7, 0.99)]), ray=False, reference_norm=1.0)
    assert told == [(1, 0.01), (2, 0.09), (4, 0.49)]


def test_the_tighter_of_two_budgets_binds() -> None:
    """Far or near, whichever is used up first, and it is said which."""
    far = ray(Drawn(lambda s: s**2, lambda s: 0.1 * s**2))
    near = ray(Drawn(lambda s: 0.1 * s**2, lambda s: s**2))
    assert (far.stop, near.stop) == ("budget (kl)", "budget (near_ce)")


def test_near_ce_stops_at_its_first_crossing() -> None:
    """Neighbours get worse, then better, then worse again: the way back down is not the answer."""

    def bump(s: float) -> float:
        return 2 * math.exp(-(((s - 0.4) / 0.15) ** 2)) + (s / 0.9) ** 6

    crossing = next(s / 1000 for s in range(1, 1000) if bump(s / 1000) >= 1)
    landing = ray(Drawn(lambda s: s**2, bump))
    assert landing.stop == "budget (near_ce)"
    assert norm(landing.updates) == pytest.approx(crossing, rel=0.02)


def test_near_ce_stops_at_a_crossing_far_before_the_last() -> None:
    """Neighbours are worse for a while early on the way, and better from there to the far budget: looked at half of the
    way alone, nothing would be seen of it (control: then the far budget binds)."""

    def early(s: float) -> float:
        return 3.0 * math.exp(-(((s - 0.2) / 0.1) ** 2)) - 0.5

    crossing = next(s / 1000 for s in range(1, 1000) if early(s / 1000) >= 1)
    landing = ray(Drawn(lambda s: s**2, early))
    assert early(0.5) < 0 and early(1.0) < 0
    assert landing.stop == "budget (near_ce)"
    assert norm(landing.updates) == pytest.approx(crossing, rel=0.02)


def test_what_cannot_be_read_half_way_is_over() -> None:
    """NaN on the way is no room to pass: the answer lies before it."""
    landing = ray(Drawn(lambda s: s**2, lambda s: math.nan if 0.4 < s < 0.6 else -1.0))
    assert norm(landing.updates) <= 0.4


def test_getting_better_is_free() -> None:
    """A near CE that falls never binds."""
    landing = ray(Drawn(lambda s: s**2, lambda s: -s))
    assert landing.stop == "budget (kl)" and landing.disruption.near_ce.value < 0


@pytest.mark.parametrize(
    ("kl", "size", "why"),
    [
        (lambda s: 1e-6 * s, 1.0, "the model hardly reacts"),
        (lambda s: s, 0.0, "the update is zero"),
        (lambda s: 0.1 if s < 0.5 else math.nan, 1.0, "the disruption jumps across it"),
        (lambda s: math.nan if s else 0.0, 1.0, "the disruption jumps across it"),
    ],
)
def test_what_cannot_reach_the_budget_says_why(kl: Any, size: float, why: str) -> None:
    """Never silently elsewhere; and never over the budget, or at a disruption that is not a number."""
    walk = Drawn(kl)
    landing = ray(walk, size)
    assert landing.stop == f"budget not reached: {why}"
    assert landing.disruption.used(walk.budget) < LANDING[0]


def test_a_budget_beyond_what_an_edit_can_take_is_told_from_a_model_that_hardly_reacts() -> None:
    """Text is destroyed at 4 nats a token already."""
    walk = Drawn(lambda s: 4e-7 * s, budget=Budget(1e6))
    why = "an update of 10 times the norm of the edited weights takes far KL 4; ask for less"
    assert ray(walk).stop == f"budget not reached: {why}"


def test_a_path_is_left_at_the_first_step_over_the_budget() -> None:
    """Solved between the last step inside and the first one outside; later steps are never computed."""
    walk, taken = Drawn(lambda s: s**2), []

    def path() -> Iterator[Updates]:
        for size in (0.3, 0.7, 1.3, 9.0):
            taken.append(size)
            yield direction(size)

    landing = solve(walk, path(), ray=False, reference_norm=1.0)
    assert taken == [0.3, 0.7, 1.3]
    assert landing.stop == "budget (kl)" and LANDING[0] ** 0.5 <= norm(landing.updates) <= 1
    assert [p.step for p in walk.trace.points][:3] == [1, 2, 3]


def test_a_first_step_over_the_budget_is_shortened() -> None:
    """From the unedited model."""
    landing = solve(Drawn(lambda s: s**2), iter([direction(40.0)]), ray=False, reference_norm=1.0)
    assert landing.stop == "budget (kl)" and norm(landing.updates) <= 1


def test_a_path_that_ends_early_says_so_where_it_ended() -> None:
    """The last step is the edit; an empty path is the method's mistake."""
    landing = solve(Drawn(lambda s: s**2), iter([direction(0.1), direction(0.2)]), ray=False, reference_norm=1.0)
    assert landing.stop == "budget not reached: the method ended before"
    assert norm(landing.updates) == pytest.approx(0.2) and landing.disruption.kl.value == pytest.approx(4e-4)
    with pytest.raises(ValueError, match="path is empty"):
        solve(Drawn(lambda s: s), iter([]), ray=False, reference_norm=1.0)


@pytest.mark.parametrize(
    "given", [{"kl": 0.0}, {"kl": -1.0}, {"kl": math.nan}, {"near_ce": 0.0}, {"near_ce": math.inf}]
)
def test_budgets_are_positive_numbers(given: dict[str, float]) -> None:
    """0, negative, NaN and infinity are refused by name; near_ce may be left out."""
    assert Budget(0.01).near_ce is None
    with pytest.raises(InputError, match=f"budget.{next(iter(given))} must be a positive number"):
        Budget(**given)


def test_a_last_point_that_was_passed_over_is_taken_where_it_lands() -> None:
    """A few texts thought it far inside; all say that it is in [.95, 1]. Nothing is walked again. Where it is inside
    indeed, the method is asked again (positive control)."""

    def ended(size: float) -> tuple[Landing, list[float]]:
        walk, asked = Drawn(lambda s: (s / 0.3) ** 2), []
        walk.meter.rough = object()
        walk.roughly_used = lambda updates, scale: 0.1 * (scale * norm(updates) / 0.3) ** 2
        landing = solve(
            walk, iter([direction(size)]), ray=False, reference_norm=1.0, refit=lambda share: asked.append(share)
        )
        return landing, asked

    landing, asked = ended(0.297)
    assert landing.stop == "budget (kl)" and asked == []
    landing, asked = ended(0.2)
    assert landing.stop == "budget not reached: the method ended before" and len(asked) == 1
