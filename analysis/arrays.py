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

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.reading import Run
from analysis.scores import CONTROLS, Array, Attacker, Scores, attacker_name
from analysis.tables import METRICS, grouped, in_order, item_groups


class Course(NamedTuple):
    """What ``curves.parquet`` says of an attacker, whatever the metric: how it went, and where it ended."""

    flags: Mapping[str, bool]
    flat: Mapping[Any, bool]
    """(arm, seed) -> came to rest."""
    ended: Mapping[Any, float]
    """(arm, seed) -> last step."""


Courses = Mapping[tuple[str, str], Course]
"""(attack, setting) -> its course."""


def courses(run: Run) -> Courses:
    return {key: _course(rows) for key, rows in grouped(run.curves, "attack", "setting").items()}


def _course(curves: pd.DataFrame) -> Course:
    of_seed: Any = curves.groupby(["arm", "seed"])
    return Course(_flags(curves), of_seed["converged"].all().to_dict(), of_seed["step"].max().to_dict())


def read_scores(run: Run, known: Courses | None = None) -> list[Scores]:
    """One ``Scores`` per metric and split, in their usual order; ``known``: the run's :func:`courses`, if at hand."""
    groups, known = grouped(run.items, "metric", "split"), courses(run) if known is None else known
    return [
        _scores(run, metric, split, groups[metric, split], known)
        for metric in in_order({m for m, _ in groups}, METRICS)
        for split in in_order({s for m, s in groups if m == metric}, ("heldout", "ood"))
    ]


def _scores(run: Run, metric: str, split: str, rows: pd.DataFrame, known: Courses) -> Scores:
    rows = rows.loc[np.isin(rows["item"], _common_items(rows))]
    groups = grouped(rows, "attack", "setting")
    known = {key: known.get(key) or _course(run.curves.head(0)) for key in groups}
    unseen = [key for key, group in groups.items() if _only_its_start(group, known[key])]
    groups = {key: group for key, group in groups.items() if key not in unseen}
    seeds = _common_seeds(group for key, group in groups.items() if not known[key].flags["diverged"])
    items = np.unique(rows["item"].to_numpy())
    alike = {str(a.get("name")) for a in run.record.get("attacks") or [] if a.get("same_question")}
    before: dict[str, Array] = {}
    attackers = []
    for (attack, setting), group in groups.items():
        course = known[attack, setting]
        steps, y = _arrays(group, course, seeds, items)
        if attack == "none":
            before = {arm: values[:, 0] for arm, values in y.items()}
        else:
            attackers.append(Attacker(attack, steps, y, setting, same_question=attack in alike, **course.flags))
    left_out = rows.loc[rows["arm"] == "edited", "seed"].nunique() - len(seeds)
    names = tuple(attacker_name(*key) for key in unseen)
    groups = item_groups(run.record, split, items.tolist())
    numbers, own = tuple(items.tolist()), tuple(seeds.tolist())
    return Scores(metric, split, before, tuple(attackers), left_out, numbers, groups, names, own)


def _only_its_start(rows: pd.DataFrame, course: Course) -> bool:
    """Fine-tuning of which this metric saw nothing but step 0, which is the model before the attack."""
    return bool((rows["step"] == 0).all()) and any(step > 0 for step in course.ended.values())


def _common_items(rows: pd.DataFrame) -> NDArray:
    """Items that every attacker, arm, seed and step has."""
    cells = rows.groupby(["attack", "setting", "arm", "seed", "step"]).ngroup()
    seen = cells.groupby(rows["item"]).nunique()
    return seen.index[seen == cells.nunique()].to_numpy()


def _common_seeds(groups: Iterable[pd.DataFrame]) -> Array:
    """Seeds that all have, where a control with a single seed stands for every seed. An attacker that diverged is not
    asked: nothing is sampled after that, and it must not take the seed from the others."""
    sets = [(arm, set(s.unique())) for g in groups for arm, s in g.groupby("arm")["seed"]]
    binding = [s for arm, s in sets if len(s) > 1 or arm not in CONTROLS]
    return np.array(sorted(reduce(set.intersection, binding)) if binding else [])


def _flags(curves: pd.DataFrame) -> dict[str, bool]:
    """cheap, converged, diverged. Attacks without steps have nothing to converge."""
    tested = curves[curves["arm"].isin(("edited", "matched"))]
    stepless = len(curves) > 0 and bool((curves["step"] == 0).all())
    return {
        "cheap": len(curves) > 0 and bool(curves["cheap"].astype(bool).all()),
        "converged": stepless or (len(tested) > 0 and bool(tested["converged"].astype(bool).all())),
        "diverged": bool(curves["diverged"].astype(bool).any()),
        "past_best": _past_best(tested),
    }


FALLEN = 0.05
"""Of the best, and as much as a flat curve may still vary."""


def _past_best(tested: Any) -> bool:
    """In every arm and seed; see :func:`past_best`."""
    rows = tested[(tested["metric"] == "completion") & (tested["split"] == "heldout")].sort_values("step")
    curves = [own[["step", "value"]].to_numpy(float) for _, own in rows.groupby(["arm", "seed"])]
    return len(curves) > 0 and all(past_best(*curve.T) for curve in curves)


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


def _arrays(rows: pd.DataFrame, course: Course, seeds: Array, items: Array) -> tuple[Array, dict[str, Array]]:
    """Steps that all arms and seeds share, and arm -> ``[seed, step, item]``."""
    steps = np.unique(rows["step"].to_numpy())
    columns: Any = rows[["seed", "step", "item", "value"]]  # a table with text is slow to divide
    groups = columns.groupby(rows["arm"])
    arms = {str(arm): _arm(str(arm), of_arm, steps, seeds, items, course) for arm, of_arm in groups}
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


def _arm(name: str, rows: pd.DataFrame, steps: Array, seeds: Array, items: Array, course: Course) -> _Arm:
    """Rows of one arm on the steps of all; one that came to rest where its attack ended keeps its last value. A seed
    that it lacks is NaN: it diverged there."""
    own = np.unique(rows["seed"].to_numpy())
    cube = _cube(rows, own, steps, items)
    seen = _cube(rows.assign(value=1.0), own, steps, items)[..., 0] == 1
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


def _cube(rows: pd.DataFrame, seeds: NDArray, steps: Array, items: Array) -> Array:
    """``[seed, step, item]``, mean over repeated rows; NaN where there is no row."""
    shape = (len(seeds), len(steps), len(items))
    index = np.ravel_multi_index(
        (
            np.searchsorted(seeds, rows["seed"].to_numpy()),
            np.searchsorted(steps, rows["step"].to_numpy()),
            np.searchsorted(items, rows["item"].to_numpy()),
        ),
        shape,
    )
    size = int(np.prod(shape))
    count = np.bincount(index, minlength=size)
    total = np.bincount(index, weights=rows["value"].to_numpy(float), minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)


def _hold(y: Array, seen: NDArray[np.bool_], end: int) -> None:
    """The look at ``end`` stands for all that would have come after it."""
    y[end + 1 :] = y[end]
    seen[end + 1 :] = True
