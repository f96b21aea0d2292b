"""Mechanistic evidence layer by layer: where the behaviour is still there, every arm in the same panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.evidence import judge
from analysis.reading import Run, read_run
from analysis.style import ARMS
from analysis.tables import in_order

PANELS = {
    "logit_lens": ("Logit lens", "log-probability, nats per token"),
    "patching_depth": ("Patched into the original", "log-probability, nats per token"),
    "probe_tendency": ("Probe for the tendency", "0 without it, 1 unedited"),
}
"""Kind of evidence -> its title and the unit of its values."""


def by_layer(run: Run | str | Path) -> Figure:
    """What each layer still holds of the behaviour: logit lens, patching depth, tendency probe, where measured.

    The note gives the share that was kept, with its 95 % interval, as the verdict reads it; of several seeds that of
    the one that kept most.
    """
    run = read_run(run)
    rows: Any = run.evidence
    kinds = [k for k in PANELS if len(_of(rows, k))]
    if not kinds:
        return style.empty("evidence by layer: not measured")
    findings = judge.findings(run.evidence_records)
    several = len({f.seed for f in findings}) > 1
    # of several seeds the one that speaks against a removal most: no other may hide it
    known = sorted((f for f in findings if f.kept == f.kept), key=lambda f: f.kept_low)
    kept = {f.name: f for f in known}
    figure, axes = style.grid(len(kinds), 3, 3.55, 2.75, (0.62, 0.78, 0.44, 0.5))
    for ax, kind in zip(axes, kinds, strict=True):
        name, unit = PANELS[kind]
        _panel(ax, _of(rows, kind))
        found = kept.get(kind)
        note = f"{found.kept:.0%} kept [{found.kept_low:.0%}, {found.kept_high:.0%}]" if found else ""
        note += f", seed {found.seed}" if found and several else ""
        style.title(ax, name, note)
        ax.set_ylabel(unit)
    return figure


def _of(rows: Any, kind: str) -> Any:
    return rows[(rows["kind"] == kind) & (rows["layer"] >= 0) & rows["value"].notna()]


def _panel(ax: Axes, rows: Any) -> None:
    ends: dict[str, float] = {}
    for arm in reversed(in_order(rows["arm"], [*ARMS, "relearned", "benign"])):
        mean: Any = rows[rows["arm"] == arm].groupby("layer")[["value", "stderr"]].mean()
        look = style.look(arm)
        x, y, error = mean.index.to_numpy(float), mean["value"].to_numpy(float), mean["stderr"].fillna(0).to_numpy()
        ax.fill_between(x, y - error, y + error, color=look.colour, alpha=0.16, linewidth=0)
        ax.plot(x, y, color=look.colour, linestyle=look.dash, lw=look.width, marker=look.marker, ms=4)
        ends[arm] = float(y[-1])
    style.label_ends(ax, ends)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("after layer")
