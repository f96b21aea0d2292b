"""A judged run as one plain object: what ``hooklearn run --json`` prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.estimates import over_seeds, same_seeds
from analysis.reading import Run, read_run
from analysis.tables import ARMS, METRICS, grouped, in_order, mean, number
from analysis.verdict import judge

MAIN = METRICS[0]
"""The measure that stands at the top; the others are nested below their names."""


def outcome(run: Run | str | Path) -> dict[str, Any]:
    """Verdict, disruption, behaviour and cost; NaN where something was not measured.

    ``behaviour[attack][arm]`` holds ``before`` (any attack), ``after`` (its last step), ``worst``
    (its worst step), and ``n`` and ``stderr`` of the worst: means over seeds on held-out items, the
    worst setting counting. On top the completion probability, below ``preference`` and ``sampled``
    the same of these.
    """
    run = read_run(run)
    verdict = run.verdict or judge(run, write=False).to_dict()
    cost = run.record.get("cost") or {}
    return {
        "run": str(run.folder),
        "verdict": verdict["verdict"],
        "reason": verdict["reason"],
        "disruption": _disruption(run),
        "behaviour": behaviour(run.curves.loc[run.curves["split"] == "heldout"]),
        "cost": {key: cost.get(key) for key in ("seconds", "tokens", "peak_bytes")},
    }


def _disruption(run: Run) -> dict[str, Any]:
    """Means over seeds, and the budget that all of them had."""
    found = [edit.get("disruption") or {} for edit in run.edits]
    budget = next((edit.get("budget") or {} for edit in run.edits), {})
    return {
        "kl": mean(d.get("kl") for d in found),
        "near_ce": mean(d.get("near_ce") for d in found),
        "budget": {key: budget.get(key) for key in ("kl", "near_ce")},
    }


def behaviour(rows: pd.DataFrame) -> dict[str, Any]:
    """attack -> arm -> its numbers; attack ``none`` only where there is no other."""
    cells = grouped(same_seeds(rows.loc[~rows["diverged"].astype(bool)]), "attack", "arm", "metric")
    attacks = in_order(set(rows["attack"]) - {"none"}, ()) or in_order(rows["attack"], ())
    every = grouped(rows, "attack", "arm")  # also those that diverged, whose numbers are NaN
    return {
        attack: {arm: _arm(cells, attack, arm) for arm in in_order({r for a, r in every if a == attack}, ARMS)}
        for attack in attacks
    }


def _arm(cells: dict[Any, pd.DataFrame], attack: str, arm: str) -> dict[str, Any]:
    found = {metric: _numbers(cells.get(("none", arm, metric)), cells.get((attack, arm, metric))) for metric in METRICS}
    return {**found[MAIN], **{m: v for m, v in found.items() if m != MAIN}}


def _numbers(before: pd.DataFrame | None, attacked: pd.DataFrame | None) -> dict[str, Any]:
    points = _points(attacked)
    last = {setting: step for setting, step, *_ in points}  # in the order of steps
    after = [value for setting, step, value, *_ in points if step == last[setting]]
    _, _, worst, n, stderr = max(points, key=lambda p: p[2], default=("", 0, math.nan, 0, math.nan))
    return {
        "before": mean(before["value"]) if before is not None else math.nan,
        "after": max(after, default=math.nan),
        "worst": worst,
        "n": n,
        "stderr": stderr,
    }


def _points(rows: pd.DataFrame | None) -> list[tuple[str, int, float, int, float]]:
    """(setting, step, mean over seeds, items, its error), by step."""
    if rows is None:
        return []
    points = []
    for (setting, step), cell in grouped(rows.dropna(subset=["value"]), "setting", "step").items():
        scores = zip(map(number, cell["value"]), map(number, cell["stderr"]), cell["n"], strict=True)
        value, stderr, n, _ = over_seeds(list(scores))
        points.append((setting, int(step), value, int(n), stderr))
    return sorted(points, key=lambda p: p[1])
