"""Means with their errors, for the figures: over seeds that share their items, and of a count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Frame = Any
"""A data frame that the type checker leaves alone: pandas' annotations are unions of everything."""


def pooled(rows: Frame, by: Sequence[str] = ("arm", "step")) -> Frame:
    """Mean over seeds with its standard error.

    All seeds share the held-out items, so the items' error does not shrink with the number of
    seeds; the seeds' own spread is added to it. ``n`` is items per seed.
    """
    columns = [*by, "value", "stderr", "n", "seeds"]
    measured = rows.dropna(subset=["value"])
    if measured.empty:
        return pd.DataFrame(columns=columns)
    groups = measured.assign(items=measured["stderr"] ** 2).groupby(list(by), sort=True)
    out = groups[["value", "items"]].mean()
    out["n"], out["seeds"] = groups["n"].min(), groups.size()
    of_seeds = groups["value"].var() / out["seeds"]
    unknown = out["items"].isna() & of_seeds.isna()
    out["stderr"] = np.sqrt(out["items"].fillna(0) + of_seeds.fillna(0)).mask(unknown)
    return out.reset_index()[columns]


def held(rows: Frame) -> Frame:
    """Curves that ended before those of other seeds, because they were flat, go on at their last value."""
    keys = ["attack", "setting", "arm", "metric", "split"]
    parts = [rows]
    for _, curve in rows.groupby(keys, sort=False):
        ends = curve.groupby("seed")["step"].max()
        if ends.nunique() < 2:
            continue
        for seed, end in ends.items():
            last = curve[(curve["seed"] == seed) & (curve["step"] == end) & curve["converged"].astype(bool)]
            later = sorted({int(s) for s in curve["step"] if s > end})
            parts += [last.assign(step=step) for step in later]
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else rows


def wilson(k: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Binomial 95 % interval, sensible also at 0 of n.

    Examples:
        >>> [round(end, 3) for end in wilson(0, 32)]
        [0.0, 0.107]
    """
    p, shrink = k / n, 1 + z**2 / n
    middle = (p + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)
