"""How long an attack takes to bring half of it back: steps and tokens, for every arm beside its controls.

:func:`half_recovery` is pure: a data frame of curves in (``curves.parquet``, or ``Curve.to_dataframe``), a data frame
out. :func:`recovery_table` is what a reader is shown of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.measures import half_life
from analysis.reading import Run, read_run
from analysis.tables import METRICS, in_order, number

NAN = float("nan")

Frame = Any
"""A data frame that the type checker leaves alone: pandas' annotations are unions of everything."""

UNIT = ["metric", "split", "seed"]
ARMS = ("edited", "original", "never")
"""Whose times stand side by side: the edited model's, and its controls'."""
COLUMNS = ["attack", "setting", "seed", "metric", "split", "arm", "level", "step", "tokens"]


class Recovery(NamedTuple):
    step: float
    tokens: float


def half_recovery(curves: Frame, share: float = 0.5, *, above: str | None = None) -> pd.DataFrame:
    """The step (and the attacker's tokens) at which each arm first shows ``share`` of the original's initial level.

    ``above``: an arm, ``never`` say, from whose initial level on the share is counted, as for the half lives of the
    verdict: a completion probability does not begin at 0, and half of the original's can be where never stands.

    The initial level is the original's before any attack (attack ``none``); where the frame has no such rows, its
    first look under the same attack. The question is the same for all arms, so an attack that *teaches* the behaviour
    brings the never-learned model there too: what counts is how much sooner the edited one arrives.

    Between two looks the way is linear in ``log2(1 + step)``, as for the half lives of the verdict. A metric that was
    not measured at every step at which the arm was looked at (preference and samples may stand at the start and the end
    only) is not interpolated across those steps: it is not known when it was reached.

    Returns:
        One row per attack, setting, seed, metric, split and arm: ``level`` (what had to be reached), ``step`` and
        ``tokens``; both 0 where it was there from the start, NaN (a dash in tables) where it was never reached, or
        where it is not known when: a look before that was not measured.
    """
    before, floor = (_initial(curves[curves["attack"] == "none"], arm) for arm in ("original", above))
    attacked = curves[curves["attack"] != "none"]
    rows: list[tuple[Any, ...]] = []
    for (attack, setting, seed), whole in attacked.groupby(["attack", "setting", "seed"], sort=False, dropna=False):
        looks = {arm: of.groupby("step")[["tokens"]].first() for arm, of in whole.groupby("arm")}
        for (metric, split), group in whole.groupby(["metric", "split"], sort=False):
            unit = (metric, split, seed)
            low = floor.get(unit, _initial(group, above).get(unit, 0.0))
            level = low + share * (before.get(unit, _initial(group, "original").get(unit, NAN)) - low)
            for arm, of_arm in group.groupby("arm", sort=False):
                measured = of_arm.set_index("step")["value"].reindex(looks[arm].index)
                found = first_reached(looks[arm].assign(value=measured).reset_index(), level)
                rows.append((attack, setting, seed, metric, split, arm, level, found.step, found.tokens))
    return pd.DataFrame(rows, columns=COLUMNS)


def _initial(rows: Frame, arm: str | None) -> dict[Any, float]:
    """(metric, split, seed) -> an arm's value at the first look; nothing without one."""
    of_arm = rows[rows["arm"] == arm].sort_values("step")
    return {unit: float(of["value"].iloc[0]) for unit, of in of_arm.groupby(UNIT)}


def first_reached(looks: Frame, level: float) -> Recovery:
    """Of one arm's looks, in order: ``step``, ``tokens``, ``value`` (NaN where it was not measured)."""
    steps, tokens, y = (looks[c].to_numpy(float) for c in ("step", "tokens", "value"))
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return Recovery(NAN, NAN)
    upto = reached[0] + 1  # whatever became of the arm later, it was there
    step = half_life(steps[:upto], y[:upto], level)
    return Recovery(step, float(np.interp(step, steps, tokens)))


def recovery_table(run: Run | str | Path, metric: str | None = None) -> pd.DataFrame:
    """Until half of the behaviour is there, attack by attack, for the edited model beside its controls.

    Attacks by training only (others have no steps), without settings that diverged in any arm; held-out items. Several
    seeds: the median, of which one that never got there is later than all that did; so NaN (a dash) is "not by most of
    the seeds", or not known when (:func:`half_recovery`). Samples are counted as they are read, as many a step as the
    record says of the whole attack; those of an earlier version do not say.

    Args:
        metric: None: all that were measured.

    Returns:
        One row per metric, attack and setting: ``samples``, the different ones that the attacker has (NaN where the
        record does not tell), ``level`` (half way from never to what the original did before any attack), and for
        ``edited``, ``original`` and ``never`` as far as they were measured ``ARM: steps``, ``ARM: samples`` and ``ARM:
        tokens``; 0 where it was there from the start.

    Raises:
        InputError: see ``read_run``.
    """
    run = read_run(run)
    curves: Frame = run.curves[(run.curves["split"] == "heldout") & run.curves["arm"].isin(ARMS)]
    arms = [arm for arm in ARMS if arm in set(curves["arm"])]
    times = [f"{arm}: {what}" for arm in arms for what in ("steps", "samples", "tokens")]
    samples, a_step = _samples(run), _samples_a_step(run)
    rows: list[dict[str, Any]] = []
    found: Frame = half_recovery(curves[curves["attack"].isin(["none"]) | _trained(curves)], above="never")
    if metric is not None:  # only now: what was looked at is known by all metrics
        found = found[found["metric"] == metric]
    for (attack, setting, measured), of in found.groupby(["attack", "setting", "metric"], sort=False):
        row = {"metric": measured, "attack": attack, "setting": setting, "samples": samples.get(attack, NAN)}
        row |= {"level": float(of.drop_duplicates("seed")["level"].mean())} | dict.fromkeys(times, NAN)
        for arm, of_arm in of.groupby("arm"):
            steps, read = _median(of_arm["step"]), a_step.get((attack, setting), NAN)
            row |= {f"{arm}: steps": steps, f"{arm}: samples": steps * read if steps else 0.0}
            row[f"{arm}: tokens"] = _median(of_arm["tokens"])
        rows.append(row)
    order = in_order(found["metric"], METRICS)
    rows.sort(key=lambda row: order.index(row["metric"]))
    return pd.DataFrame(rows, columns=["metric", "attack", "setting", "samples", "level", *times])


def _trained(curves: Frame) -> Frame:
    """Rows of attacks that take steps, of settings that diverged nowhere."""
    by = [curves["attack"], curves["setting"]]
    broken = curves["diverged"].astype(bool).groupby(by).transform("any")
    return (curves["step"].groupby(by).transform("max") > 0) & ~broken


def _samples(run: Run) -> dict[str, float]:
    """attack -> how many different samples its attacker has: its own option, or all of the corpus that it needs."""
    corpora = run.record.get("corpora") or {}
    found = {}
    for attack in run.record.get("attacks") or []:
        n = number((corpora.get(attack.get("needs")) or {}).get("n"))
        own = number((attack.get("budget") or {}).get("samples"))
        found[str(attack.get("name"))] = own if own == own else n
    return found


def _samples_a_step(run: Run) -> dict[tuple[str, str], float]:
    """(attack, setting) -> rows that a step reads, the mean over the whole attack."""
    return {
        (str(attack.get("name")), str(one.get("setting") or "")): number(one.get("samples")) / one["steps"]
        for attack in run.record.get("attacks") or []
        for one in attack.get("spent") or []
        if one.get("steps")
    }


def _median(times: Frame) -> float:
    """Never is later than any time; NaN where the middle one is never."""
    middle = float(np.median(times.fillna(np.inf)))
    return middle if np.isfinite(middle) else NAN
