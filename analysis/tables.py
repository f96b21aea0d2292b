"""The small tables made from a run: one row per arm, general capability, and markdown of either."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimates import same_seeds
from analysis.reading import Run, read_run

METRICS = ("completion", "preference", "sampled")
ARMS = ("original", "edited", "matched", "never")
ALL = "all"
"""Of the sets of a panel: all of them together."""
EASIER = "what is fine-tuned in is easier to take out than what was pre-trained"
"""What is said of every result on an instilled organism."""


def summary_table(run: Run | str | Path) -> pd.DataFrame:
    """One row per arm: behaviour before and after each attack, and what the arm costs elsewhere.

    ``<metric>: before`` is attack ``none``; ``<metric>: <attack>`` is the worst case, i.e. the
    highest mean over seeds at any step under any setting that did not diverge, on held-out items.
    ``far KL`` and ``near CE`` are nats per token against the original; for the never-learned model
    they are the yardstick: how far it is from the original itself. ``general capability``, where a
    panel was given, is the share of its items that the arm answers right before any attack.
    """
    run = read_run(run)
    rows = run.curves.loc[run.curves["split"] == "heldout"]
    arms = in_order(rows["arm"], ARMS)
    worst = _worst(rows)
    columns: dict[str, Any] = {"arm": arms}
    for metric in in_order(rows["metric"], METRICS):
        for attack in in_order(rows.loc[rows["metric"] == metric, "attack"], ("none",)):
            name = "before" if attack == "none" else attack
            columns[f"{metric}: {name}"] = [worst.get((metric, attack, arm), float("nan")) for arm in arms]
    columns["far KL"] = [_disruption(run, arm, "kl") for arm in arms]
    columns["near CE"] = [_disruption(run, arm, "near_ce") for arm in arms]
    if not run.capability.empty:
        table: Any = capability_table(run)
        found = {row.arm: row.value for row in table.itertuples() if row.set == ALL}
        columns["general capability"] = [found.get(arm, float("nan")) for arm in arms]
    return pd.DataFrame(columns)


def edit_name(edit: Mapping[str, Any]) -> str:
    """The method of an edit; of a model that was edited elsewhere, its folder."""
    elsewhere = (edit.get("options") or {}).get("checkpoint")
    return f"checkpoint {Path(str(elsewhere)).name}" if elsewhere else str(edit.get("method") or "-")


def capability_table(run: Run | str | Path) -> pd.DataFrame:
    """General capability: a row per set of items (the last: all of them) and arm.

    ``value`` is the share of items that are answered right, ``change`` its difference to the unedited
    model, paired by item; both with their standard error over items (those of a group as one), seeds averaged first.
    """
    run = read_run(run)
    rows: Any = run.capability
    items: Any = rows["item"].unique() if len(rows) else []
    groups = pd.Series(item_groups(run.record, "capability", items) or items, index=items)
    found = []
    sets = list(dict.fromkeys(rows["set"]))
    for name in sets if sets == [ALL] else [*sets, ALL]:
        chosen = rows if name == ALL else rows[rows["set"] == name]
        right: Any = chosen.pivot_table("value", "item", "arm", aggfunc="mean")
        for arm in in_order(right.columns, ARMS):
            change = right[arm] - right["original"] if arm != "original" and "original" in right else None
            value, stderr = _mean_over_items(right[arm], groups)
            by, by_stderr = (np.nan, np.nan) if change is None else _mean_over_items(change, groups)
            found.append(
                {
                    "set": name, "arm": arm, "value": value, "stderr": stderr, "n": int(right[arm].count()),
                    "change": by, "change_stderr": by_stderr,
                }
            )  # fmt: skip
    return pd.DataFrame(found, columns=["set", "arm", "value", "stderr", "n", "change", "change_stderr"])


def _mean_over_items(values: Any, groups: Any) -> tuple[float, float]:
    """Mean and its standard error, where items of one group go together (Liang & Zeger 1986; each of its own: the
    usual one). NaN of a single group."""
    known = values.dropna()
    n, mean = len(known), float(known.mean())
    sums: Any = (known - mean).groupby(groups.reindex(known.index)).sum()
    g = len(sums)
    return mean, float(np.sqrt(g / (g - 1) * (sums**2).sum()) / n) if g > 1 else np.nan


def _worst(rows: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    """(metric, attack, arm) -> highest mean over the seeds that were measured."""
    settled = same_seeds(rows.loc[~rows["diverged"].astype(bool)])
    means = settled.groupby(["metric", "attack", "arm", "setting", "step"])["value"].mean()
    return means.groupby(["metric", "attack", "arm"]).max().to_dict()


def _disruption(run: Run, arm: str, key: str) -> float:
    if arm == "original":
        return 0.0
    if arm == "edited":
        return mean((edit.get("disruption") or {}).get(key) for edit in run.edits)
    yardstick = (run.record.get("yardsticks") or {}).get(arm) or {}
    return number(yardstick.get(key))


def grouped(frame: pd.DataFrame, *columns: str) -> dict[Any, pd.DataFrame]:
    """Values of the columns -> the rows that hold them."""
    return dict(list(frame.groupby(list(columns))))


def item_groups(record: Mapping[str, Any], role: str, items: Sequence[int]) -> tuple[int, ...]:
    """Of every item, as the record has it where some go together (its corpus' ``item_groups``); empty: none do."""
    known: Any = ((record.get("corpora") or {}).get(role) or {}).get("item_groups")
    if not isinstance(known, list) or not all(isinstance(group, int) for group in known) or not len(items):
        return ()
    return tuple(known[i] for i in items) if 0 <= min(items) <= max(items) < len(known) else ()


def number(value: Any) -> float:
    """JSON's null is NaN: not measured."""
    return float("nan") if value is None else float(value)


def share(part: Any, whole: Any) -> float:
    """Of two numbers of a record; NaN where one was not measured, or there is no whole."""
    return number(part) / number(whole) if number(whole) else float("nan")


def mean(values: Any) -> float:
    """Mean over what was measured; NaN for nothing."""
    known = [v for v in map(number, values) if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def in_order(names: Any, first: Sequence[str]) -> list[str]:
    """The names that are known, in their usual order, then the others by name."""
    names = set(names)
    return [n for n in first if n in names] + sorted(names - set(first))


def markdown(frame: pd.DataFrame, digits: int = 3) -> str:
    """A GitHub table. NaN is a dash: not measured.

    Examples:
        >>> print(markdown(pd.DataFrame({"arm": ["edited", "never"], "R": [0.25, float("nan")]})))
        | arm | R |
        | --- | ---: |
        | edited | 0.25 |
        | never | - |
    """
    header = [inert(str(c)) for c in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(t) for t in frame.dtypes]
    lines = [header, ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(v, digits) for v in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return inert(str(value))


_TEX_NAMES = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
_TEX = str.maketrans({c: rf"\{c}" for c in "&%$#_{}"} | {c: rf"\text{n}{{}}" for c, n in _TEX_NAMES.items()})


def latex(header: Sequence[str], blocks: Mapping[str, Sequence[Sequence[Sequence[str]]]], foot: str = "") -> str:
    """A booktabs table in blocks, each with a heading and in it groups of rows that are set off from each other.

    Cells are LaTeX already (:func:`latex_cell`), but for the first of a row, its name; ``foot`` is a line below.
    """
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", _row(map(latex_cell, header))]
    for heading, groups in blocks.items():
        lines += [r"\midrule", _row([rf"\multicolumn{{{len(header)}}}{{l}}{{\emph{{{latex_cell(heading)}}}}}"])]
        for i, group in enumerate(group for group in groups if group):
            lines += [r"\addlinespace"] * bool(i) + [_row([latex_cell(name), *cells]) for name, *cells in group]
    below = [_row([rf"\multicolumn{{{len(header)}}}{{l}}{{\footnotesize {latex_cell(foot)}}}"])] if foot else []
    return "\n".join([*lines, r"\bottomrule", *below, r"\end{tabular}", ""])


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_cell(value: Any) -> str:
    r"""Text escaped; a number to two digits, from 1 on to three; what was not measured as a dash.

    Examples:
        >>> print(latex_cell("gradient_ascent"), latex_cell(-0.0296), latex_cell(1.52e-05), latex_cell(float("nan")))
        gradient\_ascent $-0.030$ $1.5\times 10^{-5}$ --
    """
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "--"
    if not isinstance(value, float):
        return str(value).translate(_TEX)
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:#.{2 if abs(value) < 1 else 3}g}"
    digits, _, power = text.partition("e")
    return rf"${digits}\times 10^{{{int(power)}}}$" if power else f"${text}$"


def inert(text: str) -> str:
    """One line that neither ends a table cell, nor is HTML or a link, nor steers a terminal."""
    line = "".join(c if c.isprintable() else " " if c in "\r\n\t" else ascii(c)[1:-1] for c in text)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"\](?=[(\[])|[|`!]", lambda found: f"\\{found[0]}", line)
