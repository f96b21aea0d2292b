"""How long an attack takes to bring half of it back: steps and tokens, for every arm beside its controls.

Pure: a data frame of curves in (``curves.parquet``, or ``Curve.to_dataframe``), a data frame out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.measures import half_life

NAN = float("nan")

Frame = Any
"""A data frame that the type checker leaves alone: pandas' annotations are unions of everything."""

UNIT = ["metric", "split", "seed"]
COLUMNS = ["attack", "setting", "seed", "metric", "split", "arm", "level", "step", "tokens"]


class Recovery(NamedTuple):
    step: float
    tokens: float


def half_recovery(curves: Frame, share: float = 0.5) -> pd.DataFrame:
    """The step (and the attacker's tokens) at which each arm first shows ``share`` of the original's initial level.

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
    before = _initial(curves[curves["attack"] == "none"])
    attacked = curves[curves["attack"] != "none"]
    rows: list[tuple[Any, ...]] = []
    for (attack, setting, seed), whole in attacked.groupby(["attack", "setting", "seed"], sort=False, dropna=False):
        looks = {arm: of.groupby("step")[["tokens"]].first() for arm, of in whole.groupby("arm")}
        for (metric, split), group in whole.groupby(["metric", "split"], sort=False):
            unit = (metric, split, seed)
            level = share * before.get(unit, _initial(group).get(unit, NAN))
            for arm, of_arm in group.groupby("arm", sort=False):
                measured = of_arm.set_index("step")["value"].reindex(looks[arm].index)
                found = first_reached(looks[arm].assign(value=measured).reset_index(), level)
                rows.append((attack, setting, seed, metric, split, arm, level, found.step, found.tokens))
    return pd.DataFrame(rows, columns=COLUMNS)


def _initial(rows: Frame) -> dict[Any, float]:
    """(metric, split, seed) -> the original's value at the first look."""
    original = rows[rows["arm"] == "original"].sort_values("step")
    return {unit: float(of["value"].iloc[0]) for unit, of in original.groupby(UNIT)}


def first_reached(looks: Frame, level: float) -> Recovery:
    """Of one arm's looks, in order: ``step``, ``tokens``, ``value`` (NaN where it was not measured)."""
    steps, tokens, y = (looks[c].to_numpy(float) for c in ("step", "tokens", "value"))
    reached = np.flatnonzero(y >= level)
    if not len(reached):
        return Recovery(NAN, NAN)
    upto = reached[0] + 1  # whatever became of the arm later, it was there
    step = half_life(steps[:upto], y[:upto], level)
    return Recovery(step, float(np.interp(step, steps, tokens)))
