"""The house style of every figure: colours, axes, labels. Nothing here knows what is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that a notebook shows by itself, without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=110, bbox_inches="tight", facecolor=PAPER)
        return picture.getvalue()


INK, MUTED, GRID, PAPER = "#22252b", "#6a7079", "#e2e4e8", "#fefefe"


@dataclass(frozen=True, slots=True)
class Look:
    """How one arm is drawn, everywhere. Colours after Okabe and Ito: safe for colour-blind eyes."""

    colour: str
    dash: Any = "-"
    width: float = 1.6
    marker: str = "o"


ARMS = {
    "edited": Look("#d55e00", width=2.1),
    "original": Look("#4a4e57", marker="s"),
    "never": Look("#0072b2", dash=(0, (4, 2)), marker="D"),
    "matched": Look("#a8508a", dash=(0, (1, 1.4)), marker="^"),
}
"""In order of importance; drawn from last to first, so that the edited arm lies on top."""

THINGS = {
    "benign": Look("#009e73", dash=(0, (4, 2)), marker="v"),
    "edit": Look(INK, width=2.1),
    "attacker": Look("#a8508a", width=2.1, marker="^"),
    "on never": Look("#a8508a", dash=(0, (1, 1.4)), marker="v"),
    "forget": Look("#d55e00", dash=(0, (4, 2)), width=1.3, marker="s"),
    "retain": Look("#0072b2", dash=(0, (4, 2)), width=1.3, marker="D"),
}
"""What has energy along a direction; texts as in the explorer, and no colour that the page does not follow."""

METRICS = {
    "completion": "completion probability",
    "preference": "preference for the behaviour",
    "sampled": "sampled rate",
}
SMALL, TEXT, TITLE = 8.0, 8.5, 9.5
PATCH: Any = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
"""Behind words that a line may run through."""

SEPARATION = LinearSegmentedColormap.from_list(
    "separation", ["#f3f4f1", "#c9dfe0", "#7db8c9", "#2f7fae", "#12456f", "#0a2746"]
)
RATIO = LinearSegmentedColormap.from_list(
    "ratio", ["#8a4a10", "#d9955a", "#f1dcc6", "#f5f5f3", "#cfdcec", "#6f9cc8", "#174f86"]
)


Margins = tuple[float, float, float, float]
"""Left, right, bottom and top of one panel, in inches."""


def grid(
    panels: int, columns: int, width: float, height: float, margins: Margins | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples and its axes in reading order, already in the house style.

    With ``margins`` the axes of all panels have the same place, also across figures; without, they
    get what their labels leave.
    """
    columns = max(1, min(columns, panels))
    rows = math.ceil(panels / columns)
    size = (width * columns, height * rows)
    figure = ShownFigure(figsize=size, layout=None if margins else "constrained")
    figure.set_facecolor(PAPER)
    if margins:
        left, right, bottom, top = margins
        figure.subplots_adjust(
            left=left / size[0], right=1 - right / size[0],
            bottom=bottom / size[1], top=1 - top / size[1],
            wspace=(left + right) / (width - left - right),
            hspace=(bottom + top) / (height - bottom - top),
        )  # fmt: skip
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for extra in axes[panels:]:
        extra.remove()
    kept = list(axes[:panels])
    for ax in kept:
        house(ax)
    return figure, kept


def house(ax: Axes) -> None:
    ax.set_facecolor("none")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.tick_params(colors=MUTED, labelsize=SMALL, length=3, width=0.8)
    ax.tick_params(axis="y", length=0, left=False)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.xaxis.label.set(color=MUTED, size=SMALL)
    ax.yaxis.label.set(color=MUTED, size=SMALL)


def clear(ax: Axes) -> None:
    """Nothing is drawn there any more; ticks, labels and style stay, and the horizontal axis takes what comes."""
    for container in list(ax.containers):
        container.remove()
    for artist in (*ax.lines, *ax.collections, *ax.texts):
        artist.remove()
    ax.relim()
    ax.set_autoscalex_on(True)


def title(ax: Axes, text: str, note: str = "") -> None:
    """A bold title and, under it, a quieter note; dollar signs in them are dollar signs."""
    plain: Any = {"parse_math": False}
    # y is where matplotlib would put it, after it had measured every label of the axes
    ax.set_title(text, loc="left", y=1.0, fontsize=TITLE, color=INK, fontweight="bold", pad=18, **plain)
    ax.annotate(note, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=SMALL, color=MUTED, **plain)


def empty(text: str) -> Figure:
    """What is not measured is said, not left out."""
    figure, (ax,) = grid(1, 1, 3.4, 1.0)
    ax.set_axis_off()
    ax.text(0, 0.5, text, fontsize=TEXT, color=MUTED, va="center", transform=ax.transAxes)
    return figure


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved as little as needed so that neighbours are at least ``gap`` apart."""
    order = np.argsort(positions, kind="stable")
    groups: list[list[float]] = []
    for p in np.asarray(positions, float)[order]:
        groups.append([p])
        while len(groups) > 1 and _first(groups[-1], gap) - _last(groups[-2], gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [_first(g, gap) + gap * i for g in groups for i in range(len(g))]
    moved = np.empty(len(placed))
    moved[order] = placed
    return [float(p) for p in moved]


def _first(group: list[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _last(group: list[float], gap: float) -> float:
    return _first(group, gap) + gap * (len(group) - 1)


def label_ends(ax: Axes, ends: Mapping[str, float], gap: float = 0.1, colours: Mapping[str, str] | None = None) -> None:
    """Names of arms (or things) at the right edge, at the height of their lines' ends: no legend to decode."""
    to_scale = ax.yaxis.get_transform().transform
    low, high = to_scale(np.array(ax.get_ylim()))
    heights = spread([(float(to_scale(y)) - low) / (high - low) for y in ends.values()], gap)
    above = np.argsort(np.argsort(-np.asarray(heights), kind="stable"))
    heights = [min(y, 1 - gap * int(k)) for y, k in zip(heights, above, strict=True)]
    for name, y in zip(ends, heights, strict=True):
        colour = (colours or {}).get(name) or look(name).colour
        ax.text(
            1.025, y, name, color=colour, fontsize=TEXT, va="center", transform=ax.transAxes,
            fontweight="bold" if name == "edited" else "normal",
        )  # fmt: skip


def look(name: str) -> Look:
    """Of an arm, or of one of ``THINGS``."""
    return ARMS.get(name) or THINGS.get(name, Look(MUTED))
