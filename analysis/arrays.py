"""``items.parquet`` and ``curves.parquet`` of a run as arrays: what :mod:`analysis.scores` is made of.

**Ends.** An attack by training may stop at another step in every seed (when the edited arm is flat), and the dearer
measures are taken at its end only. So last looks are matched by their role and not by their number: the last step of
``steps`` is where the longest seed ended, and there every seed has its own last look. A seed that came to rest keeps
it from where it stopped. A last look counts as one only if it was taken where the attack ended, at the same step in
all arms of the seed. Where fine-tuning went on and nothing but its start was measured, nobody looked: the attacker is
left out (``Scores.unseen``) like one that was not asked for; where looks were taken and the arms share none of them,
the last step is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.reading import Run
from analysis.scores import CONTROLS, Array, Attacker, Scores, attacker_name
from analysis.tables import METRICS, in_order, item_groups


class Course(NamedTuple):
    """What ``curves.parquet`` says of an attacker, whatever the metric: how it went, and where it ended."""

    flags: Mapping[str, bool]
    flat: Mapping[Any, bool]
    """(arm, seed) -> came to rest."""
    ended: Mapping[Any, float]
    """(arm, seed) -> last step."""


Courses = Mapping[tuple[str, str], Course]
"""(attack, setting) -> its course."""


class Rows(NamedTuple):
    """Rows of ``items.parquet``: the columns by themselves, as a frame is slow to divide."""

    attacker: NDArray[np.intp]
    """Number of its attack and setting, in the order of their names."""
    arm: NDArray[np.intp]
    """Number of its arm, in the order of their names."""
    seed: NDArray
    step: NDArray
    item: NDArray
    value: Array

    def where(self, wanted: NDArray) -> Rows:
        """``wanted``: of every row whether, or which."""
        return self._make(column[wanted] for column in self)

    def by(self, numbers: NDArray[np.intp]) -> dict[int, Rows]:
        return {int(i): self.where(numbers == i) for i in np.unique(numbers)}


def courses(run: Run) -> Courses:
    keys = list(zip(run.curves["attack"], run.curves["setting"], strict=True))
    columns = {name: run.curves[name].to_numpy() for name in _OF_A_CURVE}
    rows: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    return {key: _course({name: column[mine] for name, column in columns.items()}) for key, mine in rows.items()}


_OF_A_CURVE = ("arm", "seed", "step", "metric", "split", "value", "cheap", "converged", "diverged")


def _course(curves: Mapping[str, NDArray]) -> Course:
    flat: dict[Any, bool] = {}
    ended: dict[Any, float] = {}
    for arm, seed, step, converged in zip(
        *(curves[k].tolist() for k in ("arm", "seed", "step", "converged")), strict=True
    ):
        flat[arm, seed] = flat.get((arm, seed), True) and bool(converged)
        ended[arm, seed] = max(ended.get((arm, seed), step), step)
    return Course(_flags(curves), flat, ended)


def read_scores(run: Run, known: Courses | None = None) -> list[Scores]:
    """One ``Scores`` per metric and split, in their usual order; ``known``: the run's :func:`courses`, if at hand."""
    known = courses(run) if known is None else known
    rows, attackers, arms = _rows(run.items)
    groups: Any = run.items.groupby(["metric", "split"]).indices
    return [
        _scores(run, metric, split, rows.where(groups[metric, split]), attackers, arms, known)
        for metric in in_order({m for m, _ in groups}, METRICS)
        for split in in_order({s for m, s in groups if m == metric}, ("heldout", "ood"))
    ]


def _rows(items: pd.DataFrame) -> tuple[Rows, list[tuple[str, str]], list[str]]:
    """With the names of attackers, (attack, setting), and of arms, that they are numbered by."""
    attackers, arms = items.groupby(["attack", "setting"]), items.groupby("arm")
    numbers = (by.ngroup().to_numpy() for by in (attackers, arms))
    columns = (items[name].to_numpy() for name in ("seed", "step", "item"))
    names: Any = (by.size().index.tolist() for by in (attackers, arms))
    return Rows._make([*numbers, *columns, items["value"].to_numpy(float)]), *names


def _scores(
    run: Run, metric: str, split: str, rows: Rows, names: Sequence[tuple[str, str]], arms: Sequence[str], known: Courses
) -> Scores:
    rows = rows.where(np.isin(rows.item, _common_items(rows)))
    groups = {names[i]: group for i, group in rows.by(rows.attacker).items()}
    known = {key: known.get(key) or _course({name: np.zeros(0, object) for name in _OF_A_CURVE}) for key in groups}
    unseen = [key for key, group in groups.items() if _only_its_start(group, known[key])]
    groups = {key: group for key, group in groups.items() if key not in unseen}
    seeds = _common_seeds((group for key, group in groups.items() if not known[key].flags["diverged"]), arms)
    items = np.unique(rows.item)
    alike = {str(a.get("name")) for a in run.record.get("attacks") or [] if a.get("same_question")}
    before: dict[str, Array] = {}
    attackers = []
    for (attack, setting), group in groups.items():
        course = known[attack, setting]
        steps, y = _arrays(group, arms, course, seeds, items)
        if attack == "none":
            before = {arm: values[:, 0] for arm, values in y.items()}
        else:
            attackers.append(Attacker(attack, steps, y, setting, same_question=attack in alike, **course.flags))
    left_out = len(np.unique(rows.seed[np.array([arm == "edited" for arm in arms])[rows.arm]])) - len(seeds)
    unasked = tuple(attacker_name(*key) for key in unseen)
    together = item_groups(run.record, split, items.tolist())
    numbers, own = tuple(items.tolist()), tuple(seeds.tolist())
    return Scores(metric, split, before, tuple(attackers), left_out, numbers, together, unasked, own)


def _only_its_start(rows: Rows, course: Course) -> bool:
    """Fine-tuning of which this metric saw nothing but step 0, which is the model before the attack."""
    return bool((rows.step == 0).all()) and any(step > 0 for step in course.ended.values())


def _common_items(rows: Rows) -> NDArray:
    """Items that every attacker, arm, seed and step has."""
    cell = np.zeros_like(rows.arm)
    for column in (rows.attacker, rows.arm, rows.seed, rows.step):
        values, number = np.unique(column, return_inverse=True)
        cell = cell * len(values) + number
    items, item = np.unique(rows.item, return_inverse=True)
    seen = np.unique(cell * len(items) + item) % len(items)
    return items[np.bincount(seen) == len(np.unique(cell))]


def _common_seeds(groups: Iterable[Rows], arms: Sequence[str]) -> Array:
    """Seeds that all have, where a control with a single seed stands for every seed. An attacker that diverged is not
    asked: nothing is sampled after that, and it must not take the seed from the others."""
    sets = [(arms[arm], set(own.seed.tolist())) for g in groups for arm, own in g.by(g.arm).items()]
    binding = [s for arm, s in sets if len(s) > 1 or arm not in CONTROLS]
    return np.array(sorted(reduce(set.intersection, binding)) if binding else [])


def _flags(curves: Mapping[str, NDArray]) -> dict[str, bool]:
    """cheap, converged, diverged. Attacks without steps have nothing to converge."""
    there = len(curves["arm"]) > 0
    tested = np.isin(curves["arm"], ("edited", "matched"))
    stepless = there and bool((curves["step"] == 0).all())
    return {
        "cheap": there and all(map(bool, curves["cheap"])),
        "converged": stepless or bool(tested.any() and all(map(bool, curves["converged"][tested]))),
        "diverged": any(map(bool, curves["diverged"])),
        "past_best": _past_best({name: column[tested] for name, column in curves.items()}),
    }


FALLEN = 0.05
"""Of the best, and as much as a flat curve may still vary."""


def _past_best(tested: Mapping[str, NDArray]) -> bool:
    """In every arm and seed; see :func:`past_best`."""
    curves: dict[Any, list[tuple[float, float]]] = {}
    names = ("metric", "split", "arm", "seed", "step", "value")
    for metric, split, arm, seed, step, value in zip(*(tested[name].tolist() for name in names), strict=True):
        if (metric, split) == ("completion", "heldout"):
            curves.setdefault((arm, seed), []).append((step, value))
    return len(curves) > 0 and all(
        past_best(*np.array(sorted(looks, key=lambda look: look[0])).T) for looks in curves.values()
    )


def past_best(steps: Array, y: Array) -> bool:
    """The curve rose, and at twice the steps of its best look or more it is, and has stayed, below that.

    Examples:
        >>> past_best(np.array([0, 4, 8, 16, 32]), np.array([0.1, 0.5, 0.6, 0.4, 0.2]))
        True
        >>> past_best(np.array([0, 4, 8, 16, 32]), np.array([0.1, 0.09, 0.1, 0.05, 0.01]))  # it never taught anything
        False
    """
    k = int(np.argmax(y))
    below = (1 - FALLEN) * y[k]
    return bool(y[0] <= below and steps[-1] >= 2 * steps[k] > 0 and (y[k + 1 :] <= below).all())


class _Arm(NamedTuple):
    """One arm under one attacker, a row per seed."""

    y: Array
    """``[seed, step, item]``"""
    seen: NDArray[np.bool_]
    """``[seed, step]``: there is a look, or one to stand for it."""
    last: NDArray[np.intp]
    """``[seed]`` index of the last look; -1 where the attack went on after it."""


def _arrays(
    rows: Rows, names: Sequence[str], course: Course, seeds: Array, items: Array
) -> tuple[Array, dict[str, Array]]:
    """Steps that all arms and seeds share, and arm -> ``[seed, step, item]``."""
    steps = np.unique(rows.step)
    arms = {names[i]: _arm(names[i], own, steps, seeds, items, course) for i, own in rows.by(rows.arm).items()}
    _match_ends(arms, np.array([course.flat.get(("edited", seed), False) for seed in seeds], bool))
    y = {name: arm.y for name, arm in arms.items()}
    present = np.logical_and.reduce([arm.seen.all(axis=0) for arm in arms.values()])
    if not present.any():  # the arms share no step: nothing can be said, and NaN says it
        return np.zeros(1), {arm: np.full_like(v[:, :1], np.nan) for arm, v in y.items()}
    if not steps[present].any() and steps.any():  # nor can anything where they share their start alone
        present[-1] = True
        for values in y.values():
            values[:, -1] = np.nan
    return steps[present].astype(float), {arm: v[:, present] for arm, v in y.items()}


def _arm(name: str, rows: Rows, steps: Array, seeds: Array, items: Array, course: Course) -> _Arm:
    """Rows of one arm on the steps of all; one that came to rest where its attack ended keeps its last value. A seed
    that it lacks is NaN: it diverged there."""
    own = np.unique(rows.seed)
    cube, seen = _cube(rows, own, steps, items)
    last = np.full(len(own), -1)
    for s, seed in enumerate(own):
        at = int(np.flatnonzero(seen[s])[-1])
        if steps[at] < course.ended.get((name, seed), 0):
            continue
        last[s] = at
        if course.flat.get((name, seed), False):
            _hold(cube[s], seen[s], at)
    if len(own) == 1 and name in CONTROLS:
        pick = np.zeros(len(seeds), int)
        return _Arm(cube[pick], seen[pick], last[pick])
    has = np.isin(seeds, own)
    pick = np.searchsorted(own, np.where(has, seeds, own[0]))
    y = np.where(has[:, None, None], cube[pick], np.nan)
    return _Arm(y, seen[pick] & has[:, None], np.where(has, last[pick], -1))


def _match_ends(arms: Mapping[str, _Arm], at_rest: NDArray[np.bool_]) -> None:
    """Every seed's last look becomes its look where the longest seed ended, in place.

    Only where every seed has one. A seed that came to rest keeps it from where it stopped; of another it is the end
    and nothing else, so that a curve that was still rising does not look flat.
    """
    last = np.stack([arm.last for arm in arms.values()])
    ends = last.max(axis=0)
    seeds = np.arange(len(ends))
    if (last < 0).any() or not all(arm.seen[seeds, ends].all() for arm in arms.values()):
        return
    longest = ends.max(initial=0)
    for arm in arms.values():
        for s, end in enumerate(ends):
            look = arm.y[s, end].copy()
            if at_rest[s]:
                _hold(arm.y[s], arm.seen[s], end)
            else:
                arm.seen[s, end] = False
            arm.y[s, longest], arm.seen[s, longest] = look, True
        arm.seen[:, longest + 1 :] = False  # steps of seeds that are left out


def _cube(rows: Rows, seeds: NDArray, steps: Array, items: Array) -> tuple[Array, NDArray[np.bool_]]:
    """``[seed, step, item]``, mean over repeated rows, NaN where there is no row; ``[seed, step]``: there are rows."""
    shape = (len(seeds), len(steps), len(items))
    places = (np.searchsorted(seeds, rows.seed), np.searchsorted(steps, rows.step), np.searchsorted(items, rows.item))
    index = np.ravel_multi_index(places, shape)
    size = int(np.prod(shape))
    count = np.bincount(index, minlength=size)
    total = np.bincount(index, weights=rows.value, minlength=size)
    cube = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)
    return cube, count.reshape(shape)[..., 0] > 0


def _hold(y: Array, seen: NDArray[np.bool_], end: int) -> None:
    """The look at ``end`` stands for all that would have come after it."""
    y[end + 1 :] = y[end]
    seen[end + 1 :] = True
