"""The figure of a calibration: what was said of each organism, beside what is true of it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis import style
from analysis.calibrate import COLUMNS, SPLITS, TITLES, Calibration, Case
from analysis.rules import VERDICTS
from analysis.style import INK, MUTED

RIGHT, WRONG, FALSE_REMOVAL = "#0072b2", "#e69f00", "#d55e00"


def confusion(calibration: Calibration) -> Figure:
    """A row per organism, a column per verdict, a panel per split with cases; numbers: seeds with that verdict.

    Framed cells are right; a mark outside of one is an error, a red one the error that matters: gone, it was said, of
    something that is still there.
    """
    if not calibration.cases:
        return style.empty("no case to calibrate with")
    order = sorted(calibration.cases, key=lambda c: VERDICTS.index(c.truth))
    organisms = list(dict.fromkeys(c.organism for c in order))
    height = 1.0 + 0.24 * len(organisms)
    splits = [split for split in SPLITS if any(c.split == split for c in calibration.cases)]
    figure, axes = style.grid(len(splits), 2, 4.6, height, margins=(1.35, 0.1, 0.5, 0.45))
    for ax, split in zip(axes, splits, strict=True):
        mine = [c for c in calibration.cases if c.split == split]
        _panel(ax, mine, organisms, {c.organism: c for c in order})
        right = sum(c.right for c in mine)
        style.title(ax, TITLES[split], f"{right} of {len(mine)} verdicts right; frames: what is true")
    return figure


def _panel(ax: Axes, cases: Sequence[Case], organisms: Sequence[str], known: dict[str, Case]) -> None:
    for row, organism in enumerate(organisms):
        for column, verdict in enumerate(COLUMNS):
            count = sum((c.organism, c.verdict) == (organism, verdict) for c in cases)
            accepted = verdict in known[organism].accepted
            if accepted:
                box = Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, fill=False, edgecolor=MUTED, linewidth=0.8)
                ax.add_patch(box)
            if count:
                false_removal = "REMOVED" in verdict and not known[organism].removed
                colour = RIGHT if accepted else FALSE_REMOVAL if false_removal else WRONG
                fill = Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, color=colour, linewidth=0)
                ax.add_patch(fill)
                ax.text(column, row, str(count), ha="center", va="center", color="white", fontsize=style.TEXT)
    ax.set_xlim(-0.5, len(COLUMNS) - 0.5)
    ax.set_ylim(len(organisms) - 0.5, -0.5)
    ax.set_xticks(range(len(COLUMNS)), [v.replace(" ", "\n").lower() for v in COLUMNS], fontsize=style.SMALL - 1)
    ax.set_yticks(range(len(organisms)), organisms, fontsize=style.SMALL, color=INK)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="x", length=0)
