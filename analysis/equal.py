"""Runs at equal unlearning and at equal compute, from the way of each edit (``trace.parquet``).

Besides equal disruption there are two more ways to be fair:

**Equal unlearning.** The forget score (completion probability of items that were trained on) that *every* run and
seed reached within its budget, the largest of their lowest scores. Per run: the far KL at which its way first meets
that score, sqrt(KL) interpolated between the two points around it (KL grows with the square of the length of an
update), and what had been spent by then: tokens and seconds until a point at or below the score was seen. A run that
never lowered the score (in some seed) was never there: its numbers are NaN, and it does not hold the others to where
they began.

**Equal compute.** The fewest tokens after which every run and seed had been looked at once. Per run: the lowest
forget score within its budget by then.

Tokens are those that went through the model, forward or backward, disruption readings included. A one-shot method
knows its direction before its first reading, so nearly all of its cost stands at its first point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.reading import Run
from analysis.tables import mean, number

Way = Any
"""The rows of a trace: a data frame that the type checker leaves alone."""
TOLERANCE = 1e-9
"""Relative: a point is within the budget if its KL is not above that of the edit, up to rounding."""


def equal_unlearning(runs: Mapping[str, Run]) -> pd.DataFrame:
    """A row per run that has a trace: far KL and cost of the same forget score, means over seeds.

    ``times the least`` is tokens relative to the cheapest run.
    """
    ways = ways_of(runs)
    if not ways:
        return pd.DataFrame()
    target = shared_score(ways)
    rows = []
    for name, of_run in ways.items():
        found = [_at_score(way, target) for way in of_run]
        columns = {key: [f[key] for f in found] for key in found[0]}
        rows.append(
            {"run": name, "forget score": target}
            | {key: float(np.mean(values)) for key, values in columns.items()}  # NaN where one seed never got there
            | {"far KL stderr": _stderr(columns["far KL"]), "seeds": len(found)}
        )
    frame = pd.DataFrame(rows)
    if bool(frame["tokens"].notna().all()):
        frame = frame.astype({"tokens": int})
    frame["times the least"] = frame["tokens"] / frame["tokens"].min()
    return frame


def equal_compute(runs: Mapping[str, Run]) -> pd.DataFrame:
    """A row per run that has a trace: the forget score it had reached after the same number of tokens."""
    ways = ways_of(runs)
    if not ways:
        return pd.DataFrame()
    spent = max(int(w["tokens"][w["tokens"] > 0].min()) for of_run in ways.values() for w in of_run)
    rows = []
    for name, of_run in ways.items():
        best = [_best_by(way, spent) for way in of_run]
        scores = [b["forget"] for b in best]
        rows.append(
            {
                "run": name, "tokens": spent, "forget score": mean(scores), "forget score stderr": _stderr(scores),
                "far KL": mean(b["kl"] for b in best), "seeds": len(best),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def ways_of(runs: Mapping[str, Run]) -> dict[str, list[Way]]:
    """run -> per seed the points of its way within its budget, in the order of time; without a trace: none."""
    ways: dict[str, list[Way]] = {}
    for name, run in runs.items():
        ended = {e.get("seed"): number((e.get("disruption") or {}).get("kl")) for e in run.edits}
        measured: Way = run.trace.dropna(subset=["kl", "forget"])
        for seed, points in measured.groupby("seed"):
            kept: Way = points[points["kl"] <= ended.get(seed, np.inf) * (1 + TOLERANCE)]
            if bool((kept["tokens"] > 0).any()):
                ways.setdefault(name, []).append(kept)
    return ways


def shared_score(ways: Mapping[str, Sequence[Way]]) -> float:
    """The forget score that every way reached that lowered it at all; NaN where none did."""
    lowest = [float(way["forget"].min()) for of_run in ways.values() for way in of_run if _lowered(way)]
    return max(lowest, default=float("nan"))


def _lowered(way: Way) -> bool:
    """The edit had an effect within its budget: some point is below the first, the unedited model."""
    return bool(way["forget"].min() < way["forget"].iloc[0]) or bool(way["tokens"].iloc[0] > 0)


def _at_score(way: Way, target: float) -> dict[str, float]:
    """Where a way first meets a score: its disruption there, and what had been spent when such a point was seen.

    NaN where it never does, or did nothing.
    """
    there = way[(way["forget"] <= target) & (way["tokens"] > 0)]
    if there.empty or not _lowered(way):
        return dict.fromkeys(("far KL", "near CE", "tokens", "seconds"), float("nan"))
    seen = there.iloc[0]
    by_kl = way.sort_values("kl", kind="stable")
    at = int(np.argmax(by_kl["forget"].to_numpy() <= target))
    after, before = by_kl.iloc[at], by_kl.iloc[max(at - 1, 0)]
    fall = before["forget"] - after["forget"]
    share = (before["forget"] - target) / fall if fall > 0 else 1.0
    root = np.sqrt(before["kl"]) + share * (np.sqrt(after["kl"]) - np.sqrt(before["kl"]))
    near = before["near_ce"] + share * (after["near_ce"] - before["near_ce"])
    return {
        "far KL": float(root**2), "near CE": float(near),
        "tokens": float(seen["tokens"]), "seconds": float(seen["seconds"]),
    }  # fmt: skip


def _best_by(way: Way, tokens: int) -> Any:
    by_then = way[way["tokens"] <= tokens]
    return by_then.loc[by_then["forget"].idxmin()]


def _stderr(values: Sequence[float]) -> float:
    """Over seeds; NaN for one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
