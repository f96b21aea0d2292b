"""The figure of a comparison: what an edit disrupted, and how much of the behaviour attacks brought back."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis import style
from analysis.comparison import QUANTITIES, Comparison, control_name
from analysis.reading import input_error
from analysis.style import INK, METRICS, MUTED, PAPER, Look

DISRUPTION = {"far KL": "far KL, nats per token", "near CE": "near CE, nats per token"}
SAME = 1.1
"""Far KL of all runs within this ratio: they share it, and an axis for it would say nothing. An edit ends in [.95, 1]
of its budget."""
CROWDED = 30
"""Runs from which the points are drawn as pixels, so that the figure stays small."""
SUFFIXES = (".png", ".svg", ".pdf")
LINE = 12.0
"""Height of a name, in points."""
WRAP = 40
"""Characters of a name on one line."""
COLOURS = ("#d55e00", "#009e73", "#a8508a", "#c58a00", "#3d8fc4", "#7a5c3e")
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Okabe and Ito's, darkened where they are words on paper, without what the controls have; each colour with each marker
tells 36 methods apart."""

Level = tuple[str, str, float]
"""Control arm, its name, and its level."""


def tradeoff(found: Comparison, metric: str = "completion", quantity: str = "any") -> Figure:
    """Disruption against the behaviour after the attacks, in the form that fits the runs.

    Where all of them share the far KL (within ``SAME``; so at equal disruption) or it was not measured: a row per run,
    the lowest on top, with the behaviour before (hollow) and after the attacks (filled), its interval, and the
    disruption in figures. Otherwise a point per run over each kind of disruption; lower and further left is better, and
    in a sweep's comparison the budgets of one method are joined. A colour a method.

    Dashed: the controls under the same attacks.

    Args:
        quantity: ``any`` (the worst under any attack), ``cheap`` or ``before``.
    """
    column = f"{metric}: {QUANTITIES[quantity]}"
    table: Any = found.table.assign(name=found.names())
    rows = table.dropna(subset=[column]) if column in table else table[:0]
    if rows.empty:
        return style.empty(f"{METRICS.get(metric, metric)}: not measured in these runs")
    rows = rows.assign(way=rows["label" if "label" in rows else "run"])
    looks = _looks(rows)
    levels = _levels(found, metric, quantity)
    if _shared(rows["far KL"].to_numpy(float)):
        return _dots(rows, metric, quantity, looks, levels)
    return _scatter(rows, metric, quantity, looks, levels)


def _shared(kl: np.ndarray) -> bool:
    known = kl[~np.isnan(kl)]
    return not len(known) or bool(known.min() > 0 and known.max() <= SAME * known.min()) or bool((known == 0).all())


def _looks(rows: Any) -> dict[str, Look]:
    """way -> its colour and marker: the colour is its method's, also where several ways are of one."""
    methods = rows["method"] if rows["method"].nunique() > 1 else rows["way"]
    places = {method: i for i, method in enumerate(dict.fromkeys(methods))}
    looks: dict[str, Look] = {}
    used: Counter[str] = Counter()
    for way, method in dict(zip(rows["way"], methods, strict=True)).items():
        i = places[method]
        marker = MARKERS[(i + i // len(COLOURS) + used[method]) % len(MARKERS)]
        looks[way] = Look(COLOURS[i % len(COLOURS)], marker=marker)
        used[method] += 1
    return looks


def _levels(found: Comparison, metric: str, quantity: str) -> list[Level]:
    """Each control's level under the same attacks: mean over the runs that share it."""
    if found.controls.empty:
        return []
    rows: Any = found.controls
    rows = rows[(rows["metric"] == metric) & (rows["quantity"] == QUANTITIES[quantity])]
    means = rows.groupby(["arm", "of"], sort=False)["value"].mean().dropna()
    return [(arm, control_name(arm, of), float(value)) for (arm, of), value in means.items()]


# ------------------------------------------------------------------------------------ a row per run


def _dots(rows: Any, metric: str, quantity: str, looks: Mapping[str, Look], levels: Sequence[Level]) -> Figure:
    column, start = (f"{metric}: {QUANTITIES[q]}" for q in (quantity, "before"))
    rows = rows.sort_values(column, kind="stable").reset_index(drop=True)
    names = [_wrapped(name) for name in rows["name"]]
    kinds = [kind for kind in DISRUPTION if rows[kind].notna().any()]
    step = max(1 + name.count("\n") for name in names) * LINE / 72 + 0.1
    left, right = 0.3 + _width(names), 0.3 + 0.85 * len(kinds)
    shelves = _shelves(levels)
    top = 0.75 + (1 + max(shelves, default=0)) * LINE / 72
    inches = 4.4
    figure, (ax,) = style.grid(1, 1, left + inches + right, top + step * len(rows) + 0.6, (left, right, 0.6, top))
    high = 1.05 * max(float(rows[[f"{column} high", start]].max().max()), *(v for *_, v in levels), 0.0)
    ax.set_xlim(min(0.0, float(rows[f"{column} low"].min())), high or 1.0)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    for (arm, name, value), shelf in zip(levels, shelves, strict=True):
        colour = style.look(arm).colour
        ax.axvline(value, color=colour, lw=1.1, linestyle=(0, (4, 2)), zorder=1)
        past = value > 0.6 * (high or 1.0)
        ax.annotate(
            name, (value, 1), (2 if not past else -2, 4 + LINE * shelf), ax.get_xaxis_transform(), "offset points",
            color=colour, fontsize=style.TEXT, ha="right" if past else "left", parse_math=False,
        )  # fmt: skip
    for at, row in rows.iterrows():
        look = looks[row["way"]]
        ax.hlines(at, row[f"{column} low"], row[f"{column} high"], color=look.colour, lw=1.6, alpha=0.45)
        if start != column:
            ax.hlines(at, *sorted((row[start], row[column])), color=look.colour, lw=0.9, linestyle=(0, (1, 2)))
            ax.plot(row[start], at, "o", color=look.colour, mfc=PAPER, ms=8, mew=1.2)
        ax.plot(row[column], at, "o", color=look.colour, ms=6, mec=PAPER, mew=0.7)
        for k, kind in enumerate(kinds):
            text = "-" if np.isnan(row[kind]) else f"{row[kind]:.2g}"
            _beside(ax, text, at, 0.75 + 0.85 * k)
    for k, kind in enumerate(kinds):
        _beside(ax, kind, -0.5, 0.75 + 0.85 * k, 4)
    ax.set_yticks(range(len(rows)), names, color=INK, fontsize=style.TEXT, parse_math=False)
    ax.grid(axis="y", color=style.GRID, linewidth=0.6)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(METRICS.get(metric, metric))
    marks = f"filled: {QUANTITIES[quantity]}, with its 95 % interval" + ("; hollow: before" if start != column else "")
    shared = len(rows) > 1 and "far KL" in kinds
    _title(ax, left, top, "At equal disruption" if shared else QUANTITIES[quantity].capitalize(), marks)
    return figure


def _beside(ax: Axes, text: str, row: float, inches: float, up: float = 0) -> None:
    """A figure to the right of a row, or above the rows."""
    ax.annotate(
        text, (1, row), (72 * inches, up), ax.get_yaxis_transform(), "offset points", ha="right",
        va="bottom" if up else "center", fontsize=style.SMALL, color=MUTED, annotation_clip=False,
    )  # fmt: skip


def _shelves(levels: Sequence[Level]) -> list[int]:
    """A height above the axes for each control's name: one each, in the order of their levels."""
    return [int(k) for k in np.argsort(np.argsort([-value for *_, value in levels], kind="stable"), kind="stable")]


# ---------------------------------------------------------------------------------- a point per run


def _scatter(rows: Any, metric: str, quantity: str, looks: Mapping[str, Look], levels: Sequence[Level]) -> Figure:
    column = f"{metric}: {QUANTITIES[quantity]}"
    panels = [kind for kind in DISRUPTION if rows[kind].notna().any()]
    names = [_wrapped(name) for name in (*looks, *(name for _, name, _ in levels))]
    lines = sum(1 + name.count("\n") for name in names)
    height = max(3.6, 1.4 + lines * LINE / 72)
    room = 0.55 + _width(names)
    gap, inches = 0.65, 3.4
    size = (len(panels) * (gap + inches) + room, height)
    figure, axes = style.grid(len(panels), 2, size[0] / len(panels), height)
    figure.set_layout_engine("none")
    top = 1.08 * max([float(rows[f"{column} high"].max()), *(value for *_, value in levels)])
    for i, (ax, kind) in enumerate(zip(axes, panels, strict=True)):
        x = (i * (gap + inches) + gap) / size[0]
        ax.set_position((x, 0.55 / height, (inches - 0.1) / size[0], 1 - 1.2 / height))
        ax.set_ylim(min(0.0, float(rows[f"{column} low"].min())), top or 1.0)
        _disruption_axis(ax, kind, rows[kind].dropna().to_numpy(float))
        for arm, _, value in levels:
            ax.axhline(value, color=style.look(arm).colour, lw=1.1, linestyle=(0, (4, 2)), zorder=1)
        _points(ax, rows.dropna(subset=[kind]), kind, column, looks)
        ax.set_xlabel(DISRUPTION[kind])
        ax.yaxis.set_major_locator(MaxNLocator(5))
        style.title(ax, kind.partition(" ")[0].capitalize(), "a point an edit (95 % interval)" if i == 0 else "")
    axes[0].set_ylabel(f"{METRICS.get(metric, metric)}, {QUANTITIES[quantity]}")
    _name_points(axes[-1], rows, panels[-1], column, looks, levels)
    return figure


def _points(ax: Axes, rows: Any, kind: str, column: str, looks: Mapping[str, Look]) -> None:
    for name, one in rows.groupby("way", sort=False):
        way, look = one.sort_values(kind), looks[name]
        drawn: dict[str, Any] = {"color": look.colour, "rasterized": len(rows) > CROWDED}
        ax.vlines(way[kind], way[f"{column} low"], way[f"{column} high"], lw=1.1, alpha=0.45, **drawn)
        ax.plot(way[kind], way[column], look.marker, ls="-", lw=0.9, ms=6, mec=PAPER, mew=0.7, **drawn)


def _disruption_axis(ax: Axes, kind: str, x: np.ndarray) -> None:
    """Far KL over more than a factor of 4 is read in ratios; less of it, and near CE (which may be negative), in
    differences."""
    low, high = float(x.min()), float(x.max())
    if kind == "far KL" and low > 0 and high > 4 * low:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.4, high * 1.4)
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 60 * low else (1.0,), numticks=12))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        return
    edge = 0.12 * (high - low) or 0.2 * abs(low) or 1.0
    ax.set_xlim(low - edge, high + edge)
    if kind != "far KL":
        ax.axvline(0, color=style.GRID, lw=0.8, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _name_points(
    ax: Axes, rows: Any, kind: str, column: str, looks: Mapping[str, Look], levels: Sequence[Level]
) -> None:
    """In one list to the right, each at the height of its point (of a method the last of its budgets) or control, with
    its marker; moved apart where they would meet. No line runs through a name."""
    ends = {way: one.sort_values(kind).iloc[-1] for way, one in rows.groupby("way", sort=False)}
    entries = [(name, float(end[column]), looks[name]) for name, end in ends.items()]
    entries += [(name, value, Look(style.look(arm).colour, marker="_")) for arm, name, value in levels]
    points = 72 / ax.figure.dpi
    window = ax.get_window_extent()
    wrapped = [_wrapped(name) for name, *_ in entries]
    gap = LINE * max(1 + name.count("\n") for name in wrapped)
    heights = [float(ax.transData.transform((0, y))[1] - window.y0) * points for _, y, _ in entries]
    placed = _kept_in(style.spread(heights, gap), heights, gap, window.height * points)
    for text, height, put, (_, _, look) in zip(wrapped, heights, placed, entries, strict=True):
        edge: dict[str, Any] = {"xycoords": "axes points", "textcoords": "axes points", "annotation_clip": False}
        right = window.width * points
        arrow = {"arrowstyle": "-", "color": look.colour, "lw": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (right, height), (right + 18, put), arrowprops=arrow, **edge)
        rim = (look.colour, 1.4) if look.marker == "_" else (PAPER, 0.7)
        ax.plot((right + 23) / right, put / (window.height * points), look.marker, color=look.colour, ms=5.5,
                mec=rim[0], mew=rim[1], transform=ax.transAxes, clip_on=False)  # fmt: skip
        ax.annotate(
            text, (right + 30, put), (right + 30, put), fontsize=style.SMALL, va="center", parse_math=False,
            color=look.colour if look.marker == "_" else INK, **edge,
        )  # fmt: skip


def _kept_in(placed: list[float], wanted: Sequence[float], gap: float, height: float) -> list[float]:
    """Pushed up from below the axes and down from above them, in the order that they have."""
    order = np.lexsort((wanted, placed))
    low, high = -gap / 4, height + gap / 2
    kept = list(placed)
    for k in order:
        kept[k] = low = max(kept[k], low)
        low += gap
    for k in order[::-1]:
        kept[k] = high = min(kept[k], high)
        high -= gap
    return kept


# ------------------------------------------------------------------------------------------- shared


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, WRAP)) or name


def _width(names: Sequence[str], size: float = style.TEXT) -> float:
    """Of the widest name, in inches."""
    figure = Figure()
    texts = [Text(0, 0, name, figure=figure, fontsize=size, parse_math=False) for name in names]
    renderer = FigureCanvasAgg(figure).get_renderer()
    return max(text.get_window_extent(renderer).width for text in texts) / figure.dpi


def _title(ax: Axes, left: float, top: float, text: str, note: str) -> None:
    """At the left edge of the figure, above names and axes."""
    plain: Any = {"parse_math": False, "ha": "left", "annotation_clip": False}
    x = 72 * (0.15 - left)
    ax.annotate(text, (0, 1), (x, 72 * top - 20), "axes fraction", "offset points", fontsize=style.TITLE, color=INK,
                fontweight="bold", **plain)  # fmt: skip
    ax.annotate(note, (0, 1), (x, 72 * top - 34), "axes fraction", "offset points", fontsize=style.SMALL, color=MUTED,
                **plain)  # fmt: skip


def check_metric(metric: str) -> None:
    """Raises InputError for one that is not known."""
    if metric not in METRICS:
        raise input_error(f"--metric {metric!r}; valid: {', '.join(METRICS)}")


def picture(found: Comparison, metric: str | None, suffix: str, quantity: str = "any") -> bytes:
    """The figure as a file of the kind that the suffix names; without a metric, of the first that was measured.

    Raises:
        InputError: an unknown metric, quantity or suffix.
    """
    metric = metric or next(iter(found.metrics()), "completion")
    check_metric(metric)
    if quantity not in QUANTITIES:
        raise input_error(f"no quantity {quantity!r} of a figure; valid: {', '.join(QUANTITIES)}")
    return saved(tradeoff(found, metric, quantity), suffix)


def saved(figure: Figure, suffix: str) -> bytes:
    """As a file of that kind.

    Raises:
        InputError: an unknown suffix.
    """
    if suffix not in SUFFIXES:
        raise input_error(f"a figure's file cannot end in {suffix!r}; valid: {', '.join(SUFFIXES)}")
    out = io.BytesIO()
    figure.savefig(out, format=suffix[1:], dpi=160)
    return out.getvalue()
