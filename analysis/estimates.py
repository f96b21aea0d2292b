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
    table = [(*key, *over_seeds(scores)) for key, scores in sorted(cells.items())]
    return pd.DataFrame(table, columns=[*by, "value", "stderr", "n", "seeds"])


def over_seeds(scores: Sequence[tuple[float, float, float]]) -> tuple[float, float, float, int]:
    """(value, stderr, n) of each seed -> mean, its standard error, least n, and how many seeds."""
    values, errors, n = zip(*scores, strict=True)
    squares = [e**2 for e in errors if not math.isnan(e)]
    parts = [math.fsum(squares) / len(squares)] if squares else []
    if len(values) > 1:
        parts.append(statistics.variance(values) / len(values))
    return math.fsum(values) / len(values), math.sqrt(sum(parts)) if parts else math.nan, min(n), len(values)


def same_seeds(rows: Frame) -> Frame:
    """Curves so that the mean over seeds is one over the same seeds at every step, as in :mod:`analysis.arrays`.

    Seeds stop where the edited model is flat. Every seed's last look becomes its look where the longest of them ended;
    of one that came to rest it stands for all later steps, of another for the end and nothing else. Steps that a seed
    lacks are left out.
    """
    if rows["seed"].nunique() < 2:
        return rows
    rows, curve = rows.reset_index(drop=True), ["attack", "setting", "arm", "metric", "split"]
    ends = rows.groupby(["attack", "setting", "seed"])["step"].transform("max")
    longest = rows.groupby(["attack", "setting"])["step"].transform("max")
    edited = rows[rows["arm"] == "edited"].groupby(["attack", "setting", "seed"])["converged"].all()
    rest = {key for key, flat in edited.items() if flat}
    at_rest = pd.Series([key in rest for key in zip(rows["attack"], rows["setting"], rows["seed"], strict=True)])
    last = (rows["step"] == ends) & (ends < longest)
    parts = [rows[~last | at_rest], rows[last].assign(step=longest[last])]
    held: list[tuple[int, int]] = []  # row, and a later step at which it stands
    waits = last & at_rest
    for _, of_curve in rows.groupby(curve):
        steps = of_curve["step"].unique()
        for row in of_curve.index[waits[of_curve.index]]:
            held += [(row, s) for s in steps if rows.at[row, "step"] < s < longest[row]]
    if held:
        parts.append(rows.loc[[row for row, _ in held]].assign(step=[step for _, step in held]))
    every = pd.concat(parts, ignore_index=True)
    seeds = every.groupby([*curve, "step"])["seed"].transform("nunique")
    return every[seeds == every.groupby(curve)["seed"].transform("nunique")]


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
