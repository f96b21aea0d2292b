"""Figures of the directions that a run followed through an attack: what texts, edit and attacker have along them.

analysis.spectra(run)                 # along each one's own directions
analysis.energy_by_component(run)     # along the located ones
analysis.reemergence(run)             # what the attack brought back along them

Drawn from ``directions.parquet``, at the places that separate best; a run has it where ``locate.tokens`` is set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis import style
from analysis.plots import step_axis
from analysis.reading import Run, read_run
from analysis.style import ARMS, MUTED
from analysis.tables import in_order

Frame = Any
"""A data frame that the type checker leaves alone."""
NAMES = {
    ("edit", "edited"): "edit",
    ("attack", "edited"): "attacker",
    ("attack", "never"): "on never",
    ("forget", "original"): "forget",
    ("retain", "original"): "retain",
}
"""(of, arm) -> what the figures call it."""
MARGINS = (0.68, 0.85, 0.44, 0.5)
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FLOOR = 1e-5
"""Shares below this are drawn here: the axis is logarithmic."""


def spectra(run: Run | str | Path) -> Figure:
    """How much of it lies in few directions: shares of forget and retain text along the eigenvectors of their second
    moment, of edit and attacker's update along their singular directions. Steep: a few directions hold nearly all."""
    rows = _last(_of(run, "own"))
    return _panels(rows, "spectra: not measured", "number of its own direction")


def energy_by_component(run: Run | str | Path) -> Figure:
    """The same four along the *located* components. An edit above the dashed line (a random direction) acts on
    them, an attacker above it writes them again; what a never-learned model is taught along them is the yardstick."""
    return _panels(_last(_of(run, "located")), "energy by component: not measured", "located component", null=True)


def reemergence(run: Run | str | Path) -> Figure:
    """Squared distance of the class means inside the located components along the attack: 1 as before the edit.
    Back at the original's: the directions came back; at never's: they stay away, or are learnt anew."""
    rows: Frame = _of(run, "located")
    rows = rows[rows["of"] == "classes"]
    if rows.empty:
        return style.empty("re-emergence: not measured")
    places = _places(rows)
    figure, axes = style.grid(len(places), 4, 2.75, 2.45, MARGINS)
    whole: Frame = rows.groupby(["site", "side", "arm", "step"], as_index=False)["share"].sum()
    top = 1.08 * max(1.0, float(whole["share"].max()))
    for ax, (site, side) in zip(axes, places, strict=True):
        own = whole[(whole["site"] == site) & (whole["side"] == side)]
        ax.set_ylim(0, top)
        ends = {}
        for arm in reversed(in_order(own["arm"], list(ARMS))):
            line = own[own["arm"] == arm].sort_values("step")
            x, y, look = np.log2(1 + line["step"].to_numpy(float)), line["share"].to_numpy(float), style.look(arm)
            ax.plot(x, y, color=look.colour, linestyle=look.dash, lw=look.width, marker=look.marker, ms=3.5)
            ends[arm] = float(y[-1])
        step_axis(ax, sorted({int(s) for s in own["step"]}))
        style.label_ends(ax, ends)
        style.title(ax, site, f"{_side(side)}, one seed")
        ax.set_ylabel("squared distance of class means / original's")
        ax.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def _of(run: Run | str | Path, along: str) -> Frame:
    rows: Frame = read_run(run).directions
    return rows[rows["along"] == along]


def _last(rows: Frame) -> Frame:
    """Texts, the edit, and what the attacker had added by the end, to the edited model and to the never-learned one."""
    what = [NAMES.get(key) for key in zip(rows["of"], rows["arm"], strict=True)]
    named: Frame = rows.assign(what=what).dropna(subset=["what"])
    attack = named["of"] == "attack"
    return named[~attack | (named["step"] == named["step"][attack].max())]


def _places(rows: Frame) -> list[tuple[str, str]]:
    ordered = rows.sort_values("layer", kind="stable")
    return list(dict.fromkeys(zip(ordered["site"], ordered["side"], strict=True)))


def _side(side: str) -> str:
    return {"x": "inputs x", "g": "gradients g"}.get(side, side)


def _panels(rows: Frame, nothing: str, across: str, *, null: bool = False) -> Figure:
    if rows.empty:
        return style.empty(nothing)
    places = _places(rows)
    figure, axes = style.grid(len(places), 4, 2.75, 2.45, MARGINS)
    low = max(FLOOR, 0.6 * float(rows["share"].clip(lower=FLOOR).min()))
    columns = ["what", "component", "share", "width"]
    groups = dict(list(rows.sort_values("component").groupby(["site", "side"])[columns]))
    for ax, (site, side) in zip(axes, places, strict=True):
        own = groups[site, side]
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(_power))
        ax.set_ylim(low, 1.5)
        ends = {}
        if null:
            ends["random"] = 1 / float(own["width"].iloc[0])
            ax.axhline(ends["random"], color=MUTED, lw=1, linestyle=(0, (2, 2)))
        style.label_ends(ax, ends | _lines(ax, own, list(style.THINGS)))
        style.title(ax, site, _side(side))
        ax.set_ylabel("share of its energy")
        ax.set_xlabel(across)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _power(value: float, _: object) -> str:
    """A power of ten as text: a formula is parsed anew for every label."""
    return "10" + str(round(math.log10(value))).translate(RAISED)


def _lines(ax: Axes, rows: Frame, order: Sequence[str]) -> dict[str, float]:
    """Draws them, by component; the heights at which they end."""
    ends: dict[str, float] = {}
    for what in reversed(in_order(rows["what"], order)):
        line = rows[rows["what"] == what]
        look, y = style.look(what), line["share"].clip(lower=FLOOR).to_numpy(float)
        marker = {"marker": look.marker, "ms": 4} if len(line) <= 16 else {}
        ax.plot(line["component"] + 1, y, color=look.colour, linestyle=look.dash, lw=look.width, **marker)
        ends[what] = float(y[-1])
    return ends
