"""The figure of a comparison: what an edit disrupted, and how much of the behaviour attacks brought back."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from analysis import style
from analysis.comparison import QUANTITIES, Comparison
from analysis.reading import input_error
from analysis.style import ARMS, INK, METRICS, MUTED, PAPER

DISRUPTION = {"far KL": "far KL, nats per token", "near CE": "near CE, nats per token"}
CROWDED = 30
"""Runs from which the points are drawn as pixels, so that the figure stays small."""
SUFFIXES = (".png", ".svg", ".pdf")
LINE = 11.0
"""Height of a name, in points."""


def tradeoff(found: Comparison, metric: str = "completion", quantity: str = "any") -> Figure:
    """A point per run: disruption against the behaviour after the attacks; lower and further left is better.

    Dashed: the controls under the same attacks. In a sweep's comparison the budgets of one method are joined.

    Args:
        quantity: ``any`` (the worst under any attack), ``cheap`` or ``before``.
    """
    column = f"{metric}: {QUANTITIES[quantity]}"
    table: Any = found.table
    rows = table.dropna(subset=[column]) if column in table else table[:0]
    if rows.empty:
        return style.empty(f"{METRICS.get(metric, metric)}: not measured in these runs")
    rows = rows.assign(way=rows["label" if "label" in rows else "run"])
    panels = [name for name in DISRUPTION if rows[name].notna().any()]
    if not panels:
        return style.empty("what the edits disrupted: not measured")
    levels = _levels(found, metric, quantity)
    height = max(3.3, 1.0 + rows["way"].nunique() * LINE / 72)  # room for the names
    figure, axes = style.grid(len(panels), 2, 4.6, height, (0.6, 1.2, 0.5, 0.5))
    top = 1.12 * max([float(rows[f"{column} high"].max()), *(value for _, _, value in levels)])
    for ax, name in zip(axes, panels, strict=True):
        ax.set_ylim(min(0.0, float(rows[f"{column} low"].min())), top or 1.0)
        _controls(ax, levels)
        _points(ax, rows.dropna(subset=[name]), name, column)
        ax.set_xlabel(DISRUPTION[name])
        ax.set_ylabel(f"{METRICS.get(metric, metric)}, {QUANTITIES[quantity]}")
        ax.yaxis.set_major_locator(MaxNLocator(5))
        style.title(ax, name.partition(" ")[0].capitalize(), "every point is an edit (95 % interval)")
    return figure


def _levels(found: Comparison, metric: str, quantity: str) -> list[tuple[str, str, float]]:
    """Control arm, its name, and its level under the same attacks: mean over the runs that share it."""
    if found.controls.empty:
        return []
    rows: Any = found.controls
    rows = rows[(rows["metric"] == metric) & (rows["quantity"] == QUANTITIES[quantity])]
    means = rows.groupby(["arm", "of"], sort=False)["value"].mean().dropna()
    return [(arm, f"{arm} of {of}" if of else arm, float(value)) for (arm, of), value in means.items()]


def _points(ax: Axes, rows: Any, name: str, column: str) -> None:
    look = ARMS["edited"]
    x, y = rows[name].to_numpy(float), rows[column].to_numpy(float)
    low, high = rows[f"{column} low"].to_numpy(float), rows[f"{column} high"].to_numpy(float)
    _disruption_axis(ax, name, x)
    drawn: dict[str, Any] = {"color": look.colour, "rasterized": len(rows) > CROWDED}
    ax.vlines(x, low, high, lw=1.1, alpha=0.55, **drawn)
    for _, one in rows.groupby("way", sort=False):
        way = one.sort_values(name)
        ax.plot(way[name], way[column], "-", lw=0.9, alpha=0.5, **drawn)
    ax.plot(x, y, look.marker, ms=5.5, mec=PAPER, mew=0.7, **drawn)
    _names(ax, rows, name, column)


def _disruption_axis(ax: Axes, name: str, x: np.ndarray) -> None:
    """Far KL is positive and read in ratios; near CE may be negative and is read in differences."""
    spread = x.max() - x.min()
    if name == "far KL" and (x > 0).all():
        ax.set_xscale("log")
        ax.set_xlim(x.min() / 1.6, x.max() * 1.6)
        marks = sorted({float(f"{v:.2g}") for v in np.geomspace(x.min(), x.max(), 4)})
        ax.xaxis.set_major_locator(FixedLocator(marks))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        edge = 0.15 * spread or 0.2 * abs(float(x[0])) or 1.0
        ax.set_xlim(x.min() - edge, x.max() + edge)
        ax.axvline(0, color=style.GRID, lw=0.8, zorder=0)
        ax.xaxis.set_major_locator(MaxNLocator(5))


def _names(ax: Axes, rows: Any, name: str, column: str) -> None:
    """The name of a run, or of a method at the last of its budgets, to the right of the point; moved apart, with a line
    back, where names would meet."""
    labels = [
        (str(way), *one.sort_values(name)[[name, column]].iloc[-1]) for way, one in rows.groupby("way", sort=False)
    ]
    ax.figure.canvas.draw()
    heights = ax.transData.transform([(x, y) for _, x, y in labels])[:, 1] * 72 / ax.figure.dpi
    spread = style.spread(list(map(float, heights)), LINE)
    floor = ax.get_window_extent().y0 * 72 / ax.figure.dpi + LINE / 2
    lift = max(0.0, floor - min(spread))
    for (text, x, y), height, put in zip(labels, heights, spread, strict=True):
        moved = put + lift - height
        back = {"arrowstyle": "-", "color": MUTED, "lw": 0.5, "shrinkA": 0, "shrinkB": 3} if abs(moved) > 4 else None
        ax.annotate(
            text, (x, y), (9, moved), "data", "offset points", fontsize=style.SMALL, color=INK, va="center",
            arrowprops=back, parse_math=False, annotation_clip=False, bbox=style.PATCH,
        )  # fmt: skip


def _controls(ax: Axes, levels: list[tuple[str, str, float]]) -> None:
    for arm, name, value in levels:
        colour = style.look(arm).colour
        ax.axhline(value, color=colour, lw=1.1, linestyle=(0, (4, 2)), zorder=1)
        ax.annotate(
            name, (0, value), (2, 3), ax.get_yaxis_transform(), "offset points", color=colour, fontsize=style.TEXT,
            parse_math=False,
        )  # fmt: skip


def check_metric(metric: str) -> None:
    """Raises InputError for one that is not known."""
    if metric not in METRICS:
        raise input_error(f"--metric {metric!r}; valid: {', '.join(METRICS)}")


def picture(found: Comparison, metric: str, suffix: str) -> bytes:
    """The figure as a file of the kind that the suffix names.

    Raises:
        InputError: an unknown metric or suffix.
    """
    check_metric(metric)
    if suffix not in SUFFIXES:
        raise input_error(f"a figure's file cannot end in {suffix!r}; valid: {', '.join(SUFFIXES)}")
    out = io.BytesIO()
    tradeoff(found, metric).savefig(out, format=suffix[1:], dpi=160)
    return out.getvalue()
