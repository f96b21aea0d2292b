"""The part of a report that sets its run beside others, under the attacks that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import markup
from analysis.compare import compare
from analysis.comparison import QUANTITIES, with_interval
from analysis.reading import Run
from analysis.style import METRICS
from analysis.tradeoff import tradeoff

Content = dict[str, Any]

FACTS = ("verdict", "method", "far KL", "near CE", "seconds")
"""What stands in the table besides the behaviour, where the comparison knows it."""


def beside(run: Run, others: Sequence[Run | str | Path]) -> Content:
    """Table, figures, this run's paired differences, and what to know when reading them; {} without others.

    Raises:
        InputError: see ``compare``.
    """
    if not others:
        return {}
    found = compare([run, *others])
    me = found.table["run"].iloc[0]
    rows: Any = found.by_row()
    metrics = [m for m in METRICS if f"{m}: {QUANTITIES['before']}" in rows]
    shown = [c for c in FACTS if c in rows] + [
        c for m in METRICS for q in QUANTITIES.values() if (c := f"{m}: {q}") in rows
    ]
    figures = [
        (METRICS[m], markup.embed(tradeoff(found, m), f"{METRICS[m]} before and after the attacks: {_told(rows, m)}"))
        for m in metrics
    ]
    mine: Any = found.differences[(found.differences["run_a"] == me) | (found.differences["run_b"] == me)]
    return {
        "me": me,
        "columns": shown,
        "rows": rows[["run", *shown]].to_dict("records"),
        "figures": figures,
        "differences": mine.assign(value=with_interval(mine, "difference", "low", "high")).to_dict("records"),
        "notes": list(found.notes),
        "data": markup.csv_link(found.table, "comparison"),
    }


def _told(rows: Any, metric: str) -> str:
    """A figure in words: every run's two numbers."""
    columns = [f"{metric}: {QUANTITIES[q]}" for q in ("before", "any")]
    told = [(row["run"], *(row[c] or "not measured" for c in columns)) for row in rows.to_dict("records")]
    return "; ".join(f"{run} {before} to {after}" for run, before, after in told)
