"""Figures of several runs at once: the way of each edit, and what every attack brought back.

analysis.ways(runs)          # equal disruption, equal unlearning and equal compute in one figure
analysis.attack_map(runs)    # runs by attacks: 0 as if never learned, 1 as if never edited
attack_levels(compare(runs))    # the same of one measure, as measured, with the controls as rows
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from analysis import style
from analysis.comparison import Comparison
from analysis.equal import shared_score, ways_of
from analysis.plots import worst
from analysis.reading import Run, input_error, read_run
from analysis.style import INK, METRICS, MUTED, PAPER
from analysis.tables import number

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#a8508a", "#b58900", "#4a4e57")
"""Of methods, in the order of the runs; after Okabe and Ito."""
DASHED: dict[str, Any] = {"color": MUTED, "lw": 0.9, "linestyle": (0, (3, 2)), "zorder": 1}
BACK = LinearSegmentedColormap.from_list("back", ["#f5f5f3", "#f6d7ba", "#e8924f", "#c14e00"])


# -------------------------------------------------------------------------------------- the ways


def ways(runs: Sequence[Run | str | Path]) -> Figure:
    """Forget score against far KL and against tokens, a line per run, a colour per method; points beyond the edit's
    own disruption are left out. Dashed: where runs are compared at equal disruption, unlearning and compute."""
    read = [read_run(r) for r in runs]
    found = ways_of({str(r.folder): r for r in read})
    if not found:
        return style.empty("the ways of the edits: not measured")
    method = {str(r.folder): str(r.edits[0].get("method")) for r in read if r.edits}
    colour = {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(dict.fromkeys(method.values()))}
    lines = [(method[name], way) for name, of_run in found.items() for way in of_run]
    figure, (left, right) = style.grid(2, 2, 4.3, 3.0, (0.55, 1.15, 0.5, 0.5))
    top = 1.06 * max(float(way["forget"].max()) for _, way in lines)
    for ax in (left, right):
        ax.set_ylim(0, top)
        ax.set_ylabel("forget score (training items)")
        ax.yaxis.set_major_locator(MaxNLocator(5))
    for name, way in lines:
        by_kl = way.sort_values("kl")
        _line(left, by_kl["kl"], by_kl["forget"], colour[name])
        by_then = way.sort_values("tokens")
        _line(right, by_then["tokens"], by_then["forget"].cummin(), colour[name], drawstyle="steps-post")
    reached = shared_score(found)
    left.axhline(reached, **DASHED)
    _mark(left, max(float(way["kl"].max()) for _, way in lines), "equal disruption")
    _mark(right, max(int(way["tokens"][way["tokens"] > 0].min()) for _, way in lines), "equal compute")
    left.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    left.set_xlim(0, 1.12 * left.dataLim.x1)
    left.xaxis.set_major_locator(FixedLocator(_root_ticks(left.dataLim.x1)))
    left.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    left.set_xlabel("far KL, nats per token (root scale)")
    right.set_xlabel("tokens through the model")
    right.xaxis.set_major_locator(MaxNLocator(4))
    right.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    style.title(left, "What it cost elsewhere", "a line per run: unedited at the left, the edit at the right end")
    style.title(right, "What it cost to make", "lowest score within the budget by then")
    _ends(left, lines, colour, {"equal unlearning": reached} if np.isfinite(reached) else {})
    _ends(right, lines, colour, {})
    return figure


def _line(ax: Axes, x: Any, y: Any, colour: str, **how: Any) -> None:
    ax.plot(x, y, color=colour, lw=1.5, alpha=0.85, clip_on=False, **how)
    ax.plot(x.iloc[-1:], y.iloc[-1:], "o", color=colour, ms=5, mec=PAPER, mew=0.7, clip_on=False)


def _mark(ax: Axes, x: float, text: str) -> None:
    """A level on the axis of costs; its name stands on the side that has more room."""
    ax.axvline(x, **DASHED)
    right = x > ax.dataLim.x1 / 2
    ax.text(
        x, 0.03, f" {text} ", ha="right" if right else "left", transform=ax.get_xaxis_transform(),
        fontsize=style.SMALL, color=MUTED,
    )  # fmt: skip


def _root_ticks(top: float) -> list[float]:
    return [0.0] + sorted({float(f"{top * share:.1g}") for share in (0.05, 0.3, 1.0)})


def _ends(ax: Axes, lines: Sequence[tuple[str, Any]], colour: dict[str, str], marks: dict[str, float]) -> None:
    """Methods' names at the height of their lines' ends, those of levels at theirs: outside, where no line runs."""
    names = dict.fromkeys(name for name, _ in lines)
    ends = {n: fmean(float(way["forget"].min()) for m, way in lines if m == n) for n in names}
    plain = {n.replace("_", " "): c for n, c in colour.items()}
    style.label_ends(ax, marks | {n.replace("_", " "): y for n, y in ends.items()}, 0.085, plain)


# ------------------------------------------------------------------------------ runs by attacks


def attack_table(runs: Sequence[Run | str | Path]) -> pd.DataFrame:
    """A row per judged run: its verdict, and the worst R (over measures, settings and steps) before and under each
    attack, on held-out items.

    Raises:
        InputError: a run that was not judged.
    """
    rows = []
    for run in map(read_run, runs):
        if run.verdict is None:
            raise input_error(f"{run.folder} was not judged; call analysis.judge on it first")
        before = [number(m.get("R0")) for m in (run.verdict.get("metrics") or {}).values()]
        row: dict[str, Any] = {
            "run": run.folder.name,
            "verdict": run.verdict["verdict"],
            "before": max((b for b in before if b == b), default=np.nan),
        }
        found = worst(run.verdict)
        for attack in [a["name"] for a in run.record.get("attacks") or []]:
            values = found.loc[found["attack"] == attack, "max_R"] if len(found) else []
            row[attack] = float(max(values, default=np.nan))
        rows.append(row)
    return pd.DataFrame(rows)


def attack_map(runs: Sequence[Run | str | Path]) -> Figure:
    """Runs by attacks: how much of the behaviour is there on the worst measure, and the verdict beside it."""
    table = attack_table(runs)
    values = table.drop(columns=["run", "verdict"])
    figure, ax = _mesh(values, list(table["run"]), 1.0)
    for i, verdict in enumerate(table["verdict"]):
        ax.text(1.015, i + 0.5, verdict, va="center", fontsize=style.TEXT, fontweight="bold", color=INK,
                transform=ax.get_yaxis_transform())  # fmt: skip
    style.title(ax, "How much of it is there", "worst measure and step: 0 as if never learned, 1 as if never edited")
    return figure


def attack_levels(found: Comparison, metric: str | None = None) -> Figure:
    """Runs, and under them the controls, by attacks: the measure at the attack's worst setting and step; the runs are
    in the order of the worst that any of the attacks does, the lowest on top.

    Raises:
        InputError: it was not measured.
    """
    metric = found.metric(metric)
    n, table = len(found.table), found.by_attack(metric).set_index("")
    in_turn = np.argsort(table.iloc[:n].max(axis=1).to_numpy(float), kind="stable")
    table = table.iloc[[*in_turn, *range(n, len(table))]]
    figure, ax = _mesh(table, [str(name) for name in table.index], float(np.nanmax(table.to_numpy(float))))
    ax.axhline(n, color=INK, lw=1.2)
    style.title(ax, METRICS.get(metric, metric).capitalize(), "at the worst setting and step of each attack")
    return figure


def _mesh(values: pd.DataFrame, rows: Sequence[str], top: float) -> tuple[Figure, Axes]:
    """A heat map from 0 to ``top`` with its numbers, a column per attack; what was not measured is grey."""
    shown = values.to_numpy(float)
    figure, (ax,) = style.grid(1, 1, 2.6 + 0.62 * values.shape[1], 1.25 + 0.42 * len(rows))
    ax.pcolormesh(np.ma.masked_invalid(shown), cmap=BACK, norm=Normalize(0, top), edgecolors=PAPER, linewidth=2)
    ax.set_facecolor("#e2e4e8")
    digits = 2 if top > 0.5 else 3
    for (i, j), v in np.ndenumerate(shown):
        text = "–" if np.isnan(v) else f"{v:.{digits}f}"
        dark = v > 0.7 * top
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=style.TEXT, color=PAPER if dark else INK)
    ax.set_yticks([i + 0.5 for i in range(len(rows))], rows, parse_math=False)
    names = [str(c).replace("_", "\n") for c in values.columns]
    ax.set_xticks([j + 0.5 for j in range(len(names))], names, parse_math=False)
    ax.tick_params(axis="both", labelsize=style.TEXT, labelcolor=INK, length=0)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)
    ax.invert_yaxis()
    return figure, ax
