"""Means with their errors, for the figures: over seeds that share their items, and of a count."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

Frame = Any
"""A data frame that the type checker leaves alone: pandas' annotations are unions of everything."""


def pooled(rows: Frame, by: Sequence[str] = ("arm", "step")) -> Frame:
    """Mean over seeds with its standard error.

    All seeds share the held-out items, so the items' error does not shrink with the number of
    seeds; the seeds' own spread is added to it. ``n`` is items per seed.
    """
    measured = rows.dropna(subset=["value"])
    # without pandas: dozens of tables of a few rows each, and a groupby costs milliseconds however few there are
    cells: dict[tuple[Any, ...], list[tuple[float, float, float]]] = {}
    scores = zip(*(measured[c].to_numpy(float).tolist() for c in ("value", "stderr")), measured["n"], strict=True)
    for key, score in zip(zip(*(measured[c] for c in by), strict=True), scores, strict=True):
        cells.setdefault(key, []).append(score)
    table = [(*key, *_pooled(scores)) for key, scores in sorted(cells.items())]
    return pd.DataFrame(table, columns=[*by, "value", "stderr", "n", "seeds"])


def _pooled(scores: Sequence[tuple[float, float, float]]) -> tuple[float, float, float, int]:
    """(value, stderr, n) of each seed -> mean, its standard error, least n, and how many seeds."""
    values, errors, n = zip(*scores, strict=True)
    squares = [e**2 for e in errors if not math.isnan(e)]
    parts = [math.fsum(squares) / len(squares)] if squares else []
    if len(values) > 1:
        parts.append(statistics.variance(values) / len(values))
    return math.fsum(values) / len(values), math.sqrt(sum(parts)) if parts else math.nan, min(n), len(values)


def held(rows: Frame) -> Frame:
    """Curves that ended before those of other seeds, because they were flat, go on at their last value."""
    keys = ["attack", "setting", "arm", "metric", "split"]
    parts = [rows]
    ends = rows.groupby([*keys, "seed"])["step"].transform("max")
    whole = rows.groupby(keys)["step"].transform("max")
    early = rows[(ends < whole) & (rows["step"] == ends) & rows["converged"].astype(bool)]
    for key, last in early.groupby([*keys, "seed"], sort=False):
        curve = rows[(rows[keys] == list(key[:-1])).all(axis=1)]
        later = sorted({int(s) for s in curve["step"] if s > int(last["step"].iloc[0])})
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
