"""How the options of a sweep's methods were chosen: what was tried, what the tuning split said, and what is reported.

A search budget is the same for every label, and a method may have several (the same one on a wider grid, say): so the
trials of a method are counted over all of its labels at a budget, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.tables import METRICS, markdown, number

ALL_TRIALS = "trials of the method"
HEADING = "Options, chosen on the tuning split, and what the reporting split says:"


def tuning_table(
    record: Mapping[str, Any], table: pd.DataFrame, names: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Both splits side by side: a row per method and budget that was searched, empty where none was.

    Args:
        record: ``sweep.json``.
        table: of a comparison, where what is reported stands.
        names: label and budget -> the run in ``table``, where it is called otherwise there.
    Returns:
        run, method, what was searched; ``tried``, a list of mappings (``options``, ``value``: lower is better, NaN
        where a trial did not end); what was chosen; trials (of those there were to be), how many ended, and how many
        the method had under all of its labels at this budget; the value that decided, and the one that is reported.
    """
    tuning = (record.get("fixed") or {}).get("tuning") or {}
    metric, attack = tuning.get("metric", METRICS[0]), tuning.get("attack")
    tuned_on = f"tuning split: {metric}" + (f" after {attack['name']}" if attack else " before any attack")
    reported_as = f"{metric}: worst, any attack" if attack else f"{metric}: before"
    reported = dict(zip(table["run"], table[reported_as], strict=True)) if reported_as in table else {}
    methods = _methods(record)
    given = Counter[tuple[str, str]]()
    for family, found in record["tuning"].items():
        given[methods[family]] += len(found["trials"])
    rows = [
        {
            "run": (names or {}).get(family, family),
            "method": methods[family][0],
            "searched": ", ".join(dict.fromkeys(key for trial in found["trials"] for key in trial["options"])),
            "tried": [{"options": t["options"], "value": number(t["value"])} for t in found["trials"]],
            "chosen": words(found["chosen"]),
            "trials": f"{len(found['trials'])} of {tuning.get('trials')}",
            "ended": sum(not math.isnan(number(t["value"])) for t in found["trials"]),
            ALL_TRIALS: given[methods[family]],
            tuned_on: number(found["value"]),
            f"reporting split: {reported_as}": number(reported.get(family if names is None else names.get(family))),
        }
        for family, found in record["tuning"].items()
    ]
    return pd.DataFrame(rows)


def tuning_markdown(tuning: pd.DataFrame) -> str:
    """The table with its heading; empty where nothing was searched."""
    if tuning.empty:
        return ""
    shown = tuning.assign(tried=[_tried(found) for found in tuning["tried"]])
    return f"{HEADING}\n\n{markdown(shown)}"


def words(options: Mapping[str, Any] | None) -> str:
    """``rank=8, layers=0-2``; a dash for none."""
    return ", ".join(f"{k}={v}" for k, v in options.items()) if options else "-"


def _tried(trials: Sequence[Mapping[str, Any]]) -> str:
    """``4: 0.31, 16: 0.28``: every setting with its value; of several options with their names."""
    single = all(len(trial["options"]) == 1 for trial in trials)
    told = []
    for trial in trials:
        setting = next(iter(trial["options"].values())) if single else words(trial["options"])
        told.append(f"{setting}: " + ("-" if math.isnan(trial["value"]) else f"{trial['value']:.3g}"))
    return (", " if single else "; ").join(told)


def _methods(record: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Label and budget, as cells and trials are named -> (method, budget)."""
    declared = record.get("declared") or {}
    labels = {cell["family"]: cell["label"] for cell in record["cells"]}
    found = {}
    for family in record["tuning"]:
        label = labels.get(family, family)
        name = (declared.get(label) or {}).get("name", label)
        found[family] = (name, family.removeprefix(f"{label}-"))
    return found
