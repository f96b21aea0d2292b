"""The figures of a run, in the house style of :mod:`analysis.style`.

Every function takes a :class:`~analysis.reading.Run` (or the data frame it needs) and returns a
:class:`matplotlib.figure.Figure`. Nothing is shown, and no global state of matplotlib is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from matplotlib.transforms import offset_copy

from analysis import style
from analysis.estimates import Frame, pooled, same_seeds, wilson
from analysis.style import ARMS, INK, METRICS, MUTED, PAPER, Look
from analysis.tables import in_order, item_groups, number

if TYPE_CHECKING:
    from analysis.reading import Run
    from hooklearn.types import Curves

# --------------------------------------------------------------------------------------- curves


def curves(
    run: Run | Frame | Curves,
    metric: str = "completion",
    *,
    split: str = "heldout",
    columns: int = 3,
    top: float | None = None,
) -> Figure:
    """Behaviour along each attack, every arm in the same panel: one panel per attack and setting.

    Bands are one standard error over seeds and items, thin lines the seeds. ``top`` fixes the upper
    end of the value axis, for panels that are drawn one by one.
    """
    rows = curve_rows(run, metric, split)
    if rows.empty:
        return style.empty(f"{METRICS.get(metric, metric)}: not measured along any attack")
    panels = curve_panels(rows)
    top = ceiling(rows) if top is None else top
    figure, axes = _curve_grid(len(panels), columns)
    for ax, (key, panel) in zip(axes, panels.items(), strict=True):
        _curve_panel(ax, key, panel, metric, top)
    return figure


def curve_figures(panels: Mapping[tuple[str, str], Frame], metric: str, top: float) -> Iterator[Figure]:
    """Panels that are placed one by one. It is the same figure each time, drawn on anew, so save it before the next:
    axes with their ticks take longer to make than what is drawn on them."""
    figure, (ax,) = _curve_grid(1, 1)
    for key, panel in panels.items():
        style.clear(ax)
        _curve_panel(ax, key, panel, metric, top)
        yield figure


def _curve_grid(panels: int, columns: int) -> tuple[Figure, list[Axes]]:
    return style.grid(panels, columns, 3.3, 2.45, (0.52, 0.72, 0.44, 0.44))


def curve_rows(run: Run | Frame | Curves, metric: str, split: str = "heldout") -> Frame:
    """The measured rows behind a figure of curves; empty when there is no attack among them."""
    frame = _curves_of(run)
    rows: Frame = frame[(frame["metric"] == metric) & (frame["split"] == split)].dropna(subset=["value"])
    if rows["seed"].nunique() > 1:
        diverged = rows["diverged"].astype(bool)  # such a curve has no end that others could be compared with
        rows = pd.concat([same_seeds(rows[~diverged]), rows[diverged]], ignore_index=True)
    return rows if (rows["attack"] != "none").any() else rows[:0]


def _curves_of(run: Run | Frame | Curves) -> Frame:
    if isinstance(run, pd.DataFrame):
        return run
    table: Any = run
    return table.to_dataframe() if isinstance(run, list) else table.curves


def curve_panels(rows: Frame) -> dict[tuple[str, str], Frame]:
    """(attack, setting) -> its rows. An attack without steps gets the rows before it as step -1."""
    before = rows[rows["attack"] == "none"].assign(step=-1)
    panels = {}
    for (attack, setting), panel in rows.groupby(["attack", "setting"], sort=False):
        if attack == "none":
            continue
        if panel["step"].max() == 0:
            of_arms = before[before["arm"].isin(panel["arm"])]
            flags = {c: bool(panel[c].all()) for c in ("cheap", "converged", "diverged")}
            panel = pd.concat([of_arms.assign(**flags), panel])
        panels[str(attack), str(setting)] = panel
    return panels


def ceiling(rows: Frame) -> float:
    """Upper end of the value axis: a little above everything that is drawn."""
    highest = float((rows["value"] + rows["stderr"].fillna(0)).max())
    return min(1.02, 1.06 * highest) if highest > 0 else 1.0


def _notes(setting: str, panel: Frame) -> list[str]:
    edited = panel["arm"] == "edited"
    flags = {
        setting: bool(setting),
        "cheap": bool(panel["cheap"].any()),
        "diverged": bool(panel["diverged"][edited].any()),
        "not converged": not panel["converged"][edited].all(),
    }
    return [note for note, holds in flags.items() if holds]


def _curve_panel(ax: Axes, key: tuple[str, str], panel: Frame, metric: str, top: float) -> None:
    attack, setting = key
    ax.set_ylim(0, top)
    style.title(ax, attack, " · ".join(_notes(setting, panel)))
    ax.set_ylabel(METRICS.get(metric, metric))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    steps = sorted({int(s) for s in panel["step"]})
    bare = steps[-1] == 0
    x = panel["step"] + 1.0 if bare else np.log2(1.0 + panel["step"])
    panel = panel[["arm", "seed", "value", "stderr", "n"]].assign(x=x).sort_values("x")
    means = pooled(panel, ("arm", "x"))
    ends = {}
    for arm in reversed(in_order(means["arm"], list(ARMS))):
        ends[arm] = _arm(ax, arm, panel[panel["arm"] == arm], means[means["arm"] == arm])
    if bare:
        ax.set_xticks([0, 1], ["before", "after"])
        ax.set_xlim(-0.2, 1.1)
        ax.set_xlabel("an attack without steps")
    else:
        step_axis(ax, steps)
    style.label_ends(ax, ends)


def _arm(ax: Axes, arm: str, rows: Frame, mean: Frame) -> float:
    """Draw one arm: its rows, a line a seed, and the mean of them; the height at which its line ends."""
    look = style.look(arm)
    x, y = mean["x"].to_numpy(float), mean["value"].to_numpy(float)
    error = mean["stderr"].fillna(0).to_numpy(float)
    seeds = rows["seed"].to_numpy()
    if len(own := np.unique(seeds)) > 1:
        points = rows[["x", "value"]].to_numpy(float)
        for seed in own:
            ax.plot(*points[seeds == seed].T, color=look.colour, lw=0.6, alpha=0.4)
    marker = {"marker": look.marker, "markersize": 4.5} if len(mean) < 4 else {}
    if marker:
        ax.errorbar(x, y, error, color=look.colour, linestyle="none", elinewidth=1.2)
    else:
        ax.fill_between(x, y - error, y + error, color=look.colour, alpha=0.16, linewidth=0)
    ax.plot(x, y, color=look.colour, linestyle=look.dash, lw=look.width, **marker)
    return float(y[-1])


def step_axis(ax: Axes, steps: list[int]) -> None:
    """log2(1 + step), with as many of the steps themselves for labels as fit."""
    shown = [steps[-1]]
    for step in reversed(steps[:-1]):
        if math.log2((1 + shown[-1]) / (1 + step)) >= math.log2(1 + steps[-1]) / 7.5:
            shown.append(step)
    ax.set_xticks([math.log2(1 + s) for s in shown], [f"{s:,}" for s in shown])
    ax.set_xlabel("attack steps")


# ---------------------------------------------------------------------------------- sampled rate


def rate_table(run: Run | Frame) -> Frame:
    """Sampled rate before and at the end of each attack: k of n over all seeds, with the binomial 95 % interval of one
    seed's prompts, which all share; where a run says that some go together, of their groups."""
    frame = _curves_of(run)
    columns = ["attack", "setting", "arm", "step", "k", "n", "rate", "low", "high"]
    rows = frame[(frame["metric"] == "sampled") & (frame["split"] == "heldout")]
    rows = rows[rows["n"] > 0].dropna(subset=["value"])
    rows = rows[~rows["diverged"].astype(bool)]
    keys, table = ["attack", "setting", "arm"], []
    ends = rows.groupby([*keys, "seed"])["step"].transform("max")  # seeds end where they are flat
    for key, last in rows[rows["step"] == ends].groupby(keys, sort=False):
        n = float(last["n"].sum())
        k = float((last["value"] * last["n"]).sum())
        of_seed = n / len(last)  # seeds share their prompts, so they narrow nothing
        groups = () if isinstance(run, pd.DataFrame) else item_groups(run.record, "heldout", range(int(of_seed)))
        apart = len(set(groups)) if groups else of_seed
        low, high = wilson(k / n * apart, apart)
        table.append((*key, int(last["step"].max()), round(k), int(n), k / n, low, high))
    return pd.DataFrame(table, columns=columns)


def samples_rate(run: Run | Frame) -> Figure:
    """Share of samples that the referee calls the behaviour, before and after each attack.

    Args:
        run: or its curves, or their :func:`rate_table`.
    """
    table: Frame = run if isinstance(run, pd.DataFrame) and "rate" in run.columns else rate_table(run)
    if table.empty:
        return style.empty("sampled rate: not measured")
    rows = sorted(table.groupby(["attack", "setting"], sort=False), key=lambda row: row[0][0] != "none")  # before first
    figure, (ax,) = style.grid(1, 1, 5.6, 0.75 + 0.42 * len(rows))
    arms = in_order(table["arm"], list(ARMS))
    for i, (_, row) in enumerate(rows):
        for r in row.itertuples():
            y = i + 0.17 * (arms.index(str(r.arm)) - (len(arms) - 1) / 2)
            _interval(ax, y, float(r.rate), float(r.low), float(r.high), style.look(str(r.arm)))
    names = [_row_name(*key) for key, _ in rows]
    _row_axis(ax, names)
    ax.set_xlim(-0.02, 1.02)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlabel("share of samples that the referee calls the behaviour (95 % interval)")
    _key(figure, ax, arms)
    return figure


def _row_name(attack: str, setting: str) -> str:
    if attack == "none":
        return "before any attack"
    return f"{attack}, {setting}" if setting else f"{attack}"


def _interval(ax: Axes, y: float, value: float, low: float, high: float, look: Look) -> None:
    ax.plot([low, high], [y, y], color=look.colour, lw=1.4, solid_capstyle="round")
    ax.plot([value], [y], look.marker, color=look.colour, ms=5.2, mec=PAPER, mew=0.7)


def _row_axis(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.tick_params(axis="y", labelsize=style.TEXT, labelcolor=INK)
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color=style.GRID, linewidth=0.8)


def _key(figure: Figure, ax: Axes, arms: list[str]) -> None:
    """The arms' names in their colours, above the axes (the dots have no line ends to label)."""
    for i, arm in enumerate(arms):  # in points: how wide the axes are hangs on the names of the rows
        look, at = style.look(arm), offset_copy(ax.transAxes, figure, x=4 + 62 * i, y=14, units="points")
        ax.plot([0], [1], look.marker, color=look.colour, ms=5, clip_on=False, transform=at)
        ax.annotate(arm, (0, 1), (7, 0), at, "offset points", color=look.colour, fontsize=style.TEXT, va="center")


# ------------------------------------------------------------------------------- where it lives


def separation(locate: Frame) -> Frame:
    """Per layer, module and side: held-out AUC above the shuffled null, and forget / retain energy.

    A mean over fitters and ranks, not the best of them: the best would be a selection.
    """
    keys = ["layer", "module", "side"]
    table = locate.groupby(keys, as_index=False).mean(numeric_only=True)
    table["above_null"] = table["auc"] - table["auc_shuffled"]
    energy = table["forget_energy"] / table["retain_energy"].where(table["retain_energy"] > 0)
    table["energy_ratio"] = energy.where(energy > 0)
    return table[[*keys, "auc", "auc_shuffled", "above_null", "energy_ratio"]]


def separation_map(locate: Frame) -> Figure:
    """Layers by modules: how well the behaviour separates there, and what an edit would hit."""
    if locate.empty:
        return style.empty("where in the model: not measured")
    table = separation(locate)
    auc = _pivot(table, "above_null")
    ratio = np.log2(_pivot(table, "energy_ratio"))
    height = 0.8 + 0.2 * len(auc)
    figure, axes = style.grid(2, 1, max(4.0, 2.2 + 0.19 * auc.shape[1]), height)
    _heat(
        figure,
        axes[0],
        auc,
        style.SEPARATION,
        Normalize(0, max(0.1, _highest(auc))),
        "{:.2f}".format,
    )
    reach = max(0.5, _highest(ratio.abs()))
    scale = TwoSlopeNorm(0, -reach, reach)
    _heat(figure, axes[1], ratio, style.RATIO, scale, lambda v: f"×{float(f'{2**v:.2g}'):g}")
    style.title(axes[0], "Separation", "held-out AUC minus AUC with shuffled labels")
    style.title(axes[1], "Selectivity", "forget energy / retain energy inside the subspace")
    return figure


def _pivot(table: Frame, value: str) -> Frame:
    rows = table["module"] + " · " + table["side"]
    wide = table.assign(row=rows).pivot_table(value, "row", "layer", sort=True, dropna=False)
    return wide.reindex(columns=range(int(table["layer"].min()), int(table["layer"].max()) + 1))


def _highest(table: Frame) -> float:
    values = table.to_numpy(float)
    return float(np.nanmax(values)) if np.isfinite(values).any() else 0.0


def _heat(figure: Figure, ax: Axes, table: Frame, colours: Any, norm: Normalize, text: Any) -> None:
    """One heat map; cells that were not measured stay grey, which no colour of the scale is."""
    layers = [str(c) for c in table.columns]
    values = np.ma.masked_invalid(table.to_numpy(float))
    ax.set_facecolor("#b9bcc2")
    mesh = ax.pcolormesh(values, cmap=colours, norm=norm, edgecolors=PAPER, linewidth=0.6)
    every = 1 if len(layers) <= 14 else 2 if len(layers) <= 24 else 4
    ax.set_xticks([i + 0.5 for i in range(0, len(layers), every)], layers[::every])
    ax.set_yticks([i + 0.5 for i in range(len(table))], [str(name) for name in table.index])
    ax.tick_params(axis="y", labelcolor=INK)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set_xlabel("layer")
    ax.spines["bottom"].set_visible(False)
    bar = figure.colorbar(mesh, ax=ax, pad=0.015, fraction=0.03, aspect=12)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=style.SMALL, colors=MUTED, length=0)
    bar.ax.yaxis.set_major_locator(MaxNLocator(2 if len(table) < 4 else 4))  # a short bar has room for few
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))


# ------------------------------------------------------------------------------- the edit's way


def trace(run: Run) -> Figure:
    """The way of the edit: forget score against far and, where measured, near disruption."""
    frame: Frame = run.trace
    if frame.empty:
        return style.empty("the edit's way: not measured")
    axes_of = [
        ("kl", "far KL, nats per token", "Far"),
        ("near_ce", "near CE, nats per token", "Near"),
    ]
    axes_of = [a for a in axes_of if bool(frame[a[0]].notna().any())]
    reported = {e.get("seed"): number((e.get("disruption") or {}).get("kl")) for e in run.record.get("edits") or []}
    figure, axes = style.grid(max(1, len(axes_of)), 2, 3.4, 2.5, (0.62, 0.12, 0.44, 0.44))
    for ax, (column, label, name) in zip(axes, axes_of, strict=False):
        _way(ax, frame, column, reported)
        _budget(ax, [(e.get("budget") or {}).get(column) for e in run.record.get("edits") or []])
        style.title(ax, name, "every line is a seed; the dot is the edit as reported")
        ax.set_xlabel(label)
        ax.set_ylabel("forget score (training items)")
        ax.set_ylim(bottom=0)
    return figure


def _way(ax: Axes, frame: Frame, column: str, reported: Mapping[Any, float]) -> None:
    """``reported``: seed -> far KL of the edit, which is not always the last point that was looked at."""
    look = ARMS["edited"]
    for seed, one in frame.dropna(subset=[column, "forget"]).sort_values("step").groupby("seed"):
        ax.plot(one[column], one["forget"], color=look.colour, lw=1.1, alpha=0.75)
        away = np.abs(one["kl"].to_numpy(float) - reported.get(seed, np.nan))
        end = one.iloc[[-1 if np.isnan(away).all() else int(np.nanargmin(away))]]
        ax.plot(end[column], end["forget"], "o", color=look.colour, ms=5)


def _budget(ax: Axes, budgets: list[float | None]) -> None:
    for budget in {b for b in budgets if b is not None}:
        ax.axvline(budget, color=MUTED, lw=1, linestyle=(0, (2, 2)))
        ax.text(
            budget, 0.97, "budget ", fontsize=style.SMALL, color=MUTED, ha="right", va="top",
            transform=ax.get_xaxis_transform(), bbox=style.PATCH,
        )  # fmt: skip


# ------------------------------------------------------------------------------ how it was judged


def worst(verdict: dict[str, Any] | None) -> Frame:
    """Per attack and setting the measure on which most of the behaviour came back; without what the verdict dropped."""
    attacks = pd.DataFrame([a for a in (verdict or {}).get("attacks") or [] if not a.get("dropped")])
    if attacks.empty or "max_R" not in attacks:
        return pd.DataFrame()
    attacks = attacks[attacks.get("split", "heldout") == "heldout"]
    attacks = attacks.assign(max_R=pd.to_numeric(attacks["max_R"])).dropna(subset=["max_R"])
    rows = attacks.sort_values("max_R", ascending=False, kind="stable")
    return rows.drop_duplicates(["attack", "setting"]).sort_values("cheap", ascending=False)


def verdict_strip(run: Run) -> Figure:
    """How much came back under each attack, on its worst measure, beside the rule's threshold."""
    rows = worst(run.verdict)
    if rows.empty:
        return style.empty("how much came back: no attack was judged")
    thresholds = (run.verdict or {}).get("thresholds") or {}
    figure, (ax,) = style.grid(1, 1, 5.6, 0.7 + 0.32 * len(rows))
    for i, r in enumerate(rows.to_dict("records")):
        middle = float(r["max_R"])
        ends = [number(r.get(f"max_R_{end}")) for end in ("low", "high")]
        low, high = (middle if math.isnan(v) else v for v in ends)
        _interval(ax, i, middle, low, high, ARMS["edited"] if r["cheap"] else Look(MUTED))
    _row_axis(ax, [f"{_row_name(r.attack, r.setting)} ({r.metric})" for r in rows.itertuples()])
    limit = float(thresholds.get("max_R", 0.5))
    ax.axvline(limit, color=INK, lw=1, linestyle=(0, (2, 2)))
    ax.annotate(
        "a cheap attack beyond: not removed", (limit, 1), (4, -2), ("data", "axes fraction"), "offset points",
        fontsize=style.SMALL, color=MUTED, va="top", bbox=style.PATCH,
    )  # fmt: skip
    ax.set_xlim(-0.02, max(1.02, ax.get_xlim()[1]))
    ax.set_xlabel("max R (0: never learned, 1: never edited; 95 % interval)")
    return figure
