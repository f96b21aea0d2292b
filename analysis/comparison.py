"""The outcome of ``analysis.compare`` and the forms it takes: data frames, Markdown, CSV, LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.reading import input_error
from analysis.style import METRICS
from analysis.tables import EASIER, inert, latex, latex_cell, markdown, mean
from analysis.tuning import tuning_markdown

FEW = 4
"""Runs that stand side by side as columns; more are rows, and only differences to the best are printed."""
QUANTITIES = {"before": "before", "cheap": "worst, cheap attacks", "any": "worst, any attack"}
BY = {"cheap by": "cheap", "any by": "any"}
"""Columns of a LaTeX table: which attack a worst case is of."""
COMPACT = ("method", "far KL", "near CE", *QUANTITIES)
"""Those that are shown where none are asked for."""
ENDS = ("", " low", " high")
"""Of the name of a column with an interval: the value, and its two ends."""
BESIDE = ("far KL", "near CE", "seconds", "peak GiB", "seeds", "verdict")
"""What stands beside the behaviours in the brief table: what an edit cost, over how many seeds where one run has
several, and what was judged of it."""


@dataclass(frozen=True)
class Comparison:
    """A row per run, a row per paired difference, and what to know when reading them."""

    table: pd.DataFrame
    """At equal disruption: a row per run."""
    differences: pd.DataFrame
    """``run_a - run_b`` per metric and quantity; clear when the interval excludes 0."""
    notes: tuple[str, ...]
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The unedited and the never-learned model under the same attacks: run, arm, metric, quantity, value, low, high;
    ``of``: the runs that have the same ones, empty where all of these runs do."""
    attacks: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Attack by attack, at the worst of its settings and steps: run, arm, metric, attack, value, low, high; ``by``: at
    which; ``of`` as in ``controls``."""
    unlearning: pd.DataFrame = field(default_factory=pd.DataFrame)
    """At equal unlearning (:mod:`analysis.equal`): what the same forget score cost each run."""
    compute: pd.DataFrame = field(default_factory=pd.DataFrame)
    """At equal compute: how far each run had come after the same number of tokens."""
    tuning: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Of sweeps: how options were chosen (:func:`analysis.tuning.tuning_table`)."""
    gaps: tuple[str, ...] = ()
    """Of the notes, those that say why places of the table are empty; they are printed above it."""
    organisms: tuple[str, ...] = ()
    """Names of the organisms among the runs: what was fine-tuned in is easier to take out than what was pre-trained."""

    def to_dataframe(self) -> pd.DataFrame:
        return self.table.copy()

    def to_csv(self) -> str:
        return self.table.to_csv(index=False)

    def to_parquet(self) -> bytes:
        """The table with its types, which csv does not keep; read by ``pandas.read_parquet``."""
        return self.table.to_parquet(index=False)

    def metrics(self) -> list[str]:
        """Those that were measured."""
        return [c.removesuffix(": before low") for c in self.table if c.endswith(": before low")]

    def metric(self, asked: str | None = None) -> str:
        """The one that is asked for, or the first that was measured.

        Raises:
            InputError: it was not measured.
        """
        asked = asked or next(iter(self.metrics()), next(iter(METRICS)))
        _check_among("metric", [asked], self.metrics())
        return asked

    def to_latex(self, metrics: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> str:
        """A booktabs table: a block per metric, in it a row per run and one per control under the same attacks, 95 %
        intervals in brackets.

        Args:
            metrics: None: all that were measured.
            columns: of the table (``method``, ``verdict``, ``far KL`` ...), and of the metric: ``before``, ``cheap``
                and ``any`` (the worst under cheap and under any attacks), ``cheap by`` and ``any by`` (which that was).
                None: those of ``COMPACT`` that say something.
        Raises:
            InputError: a metric that was not measured, or a column that is not there.
        """
        measured = self.metrics()
        facts = [c for c in self.table if c != "run" and c.partition(":")[0] not in measured]
        facts = [c for c in facts if not c.endswith((" low", " high"))]
        _check_among("metric", metrics or [], measured)
        _check_among("column", columns or [], [*facts, *QUANTITIES, *BY])
        names = self.names()
        shown = list(columns or [c for c in COMPACT if c in QUANTITIES or self._says(c, names)])
        blocks = {
            METRICS.get(m, m): [
                [[name, *(_in_latex(row, m, c) for c in shown)] for name, row in group]
                for group in (zip(names, self.table.to_dict("records"), strict=True), self._control_rows(m))
            ]
            for m in metrics or measured
        }
        words = QUANTITIES | {name: f"{QUANTITIES[q]}, by" for name, q in BY.items()}
        foot = f"Instilled ({', '.join(self.organisms)}): {EASIER}." if self.organisms else ""
        return latex(["", *(words.get(c, c) for c in shown)], blocks, foot)

    def names(self) -> list[str]:
        """Of the rows: a sweep's labels where they tell them apart, else the runs'."""
        labels = list(self.table["label"]) if "label" in self.table else []
        return labels if labels and len(set(labels)) == len(labels) else list(self.table["run"])

    def _says(self, column: str, names: Sequence[str]) -> bool:
        """Whether a column has something to say that the names do not."""
        values: Any = self.table[column]
        told = column == "method" and all(value in name for value, name in zip(values, names, strict=True))
        return bool(values.notna().any()) and not told

    def _control_rows(self, metric: str) -> list[tuple[str, dict[str, Any]]]:
        """Name of a control and its levels, as if it were a run: mean over the runs that share it."""
        if self.controls.empty:
            return []
        rows: Any = self.controls[self.controls["metric"] == metric]
        levels = {key: of.groupby("quantity")["value"].mean() for key, of in rows.groupby(["arm", "of"], sort=False)}
        return [
            (control_name(arm, of), {f"{metric}: {q}": value for q, value in found.items()})
            for (arm, of), found in levels.items()
        ]

    def to_markdown(self) -> str:
        """A column per run, the controls, the other two ways to be equal, the differences, the notes."""
        few = len(self.table) <= FEW
        parts = ["\n".join(f"- {inert(note)}" for note in self.gaps)] if self.gaps else []
        parts.append(markdown(self.by_run() if few else self.in_short()))
        if len(self.controls):
            heading = "The controls, under the same attacks (mean over the runs that share them):"
            parts += [heading, markdown(self.by_control())]
        if len(self.unlearning):
            score = f"{self.unlearning['forget score'].iloc[0]:.3g}"
            parts += [
                f"At equal unlearning (forget score {score}, the best that every run reached within its budget):",
                markdown(self.unlearning),
            ]
        if len(self.compute):
            parts += [
                "At equal compute (the fewest tokens after which every run had been looked at once):",
                markdown(self.compute),
            ]
        if len(self.differences):
            shown = self.differences if few else self.to_the_best()
            frame = shown.drop(columns=["low", "high"])
            frame["difference"] = with_interval(shown, "difference", "low", "high")
            which = "" if few else (
                f" to the run that is lowest under any attack (picked of {len(self.table)} on these items, and with so "
                "many differences some look clear by chance)"
            )  # fmt: skip
            parts += [
                f"Differences{which}, paired by item, and by seed where runs have the same (95 % interval of each by "
                "itself):",
                markdown(frame),
            ]
        parts.append(tuning_markdown(self.tuning))
        parts.append("\n".join(f"- {inert(note)}" for note in self.notes if note not in self.gaps))
        return "\n\n".join(filter(None, parts))

    _repr_markdown_ = to_markdown

    def brief_markdown(self) -> str:
        """:meth:`brief`, how options were chosen, and the notes."""
        notes = "\n".join(f"- {inert(note)}" for note in self.notes)
        return "\n\n".join(filter(None, [markdown(self.brief()), tuning_markdown(self.tuning), notes]))

    def __repr__(self) -> str:
        return f"Comparison of {len(self.table)} runs\n{self.by_run().to_string(index=False)}"

    def to_the_best(self) -> pd.DataFrame:
        """Differences under the worst attack to the run that is lowest there, per metric."""
        worst = QUANTITIES["any"]
        columns = {m: f"{m}: {worst}" for m in self.differences["metric"].unique()}
        known = {m: c for m, c in columns.items() if len(self.table[c].dropna())}
        best = {m: self.table.loc[self.table[c].idxmin(), "run"] for m, c in known.items()}
        rows: Any = self.differences[self.differences["quantity"] == worst]
        lowest = rows["metric"].map(best)
        return rows[(rows["run_a"] == lowest) | (rows["run_b"] == lowest)]

    def by_row(self) -> pd.DataFrame:
        """A row per run; numbers with their intervals as one cell."""
        frame = self.table.copy()
        for column in [c for c in frame if f"{c} low" in frame]:
            bounds = [f"{column} low", f"{column} high"]
            frame[column] = with_interval(frame, column, *bounds)
            frame = frame.drop(columns=bounds)
        return frame

    def in_short(self) -> pd.DataFrame:
        """A row per run, without what each was brought back by."""
        frame = self.by_row()
        return frame.drop(columns=[c for c in frame if c.endswith(", by")])

    def brief(self) -> pd.DataFrame:
        """A row per run and per control: of every measure, and general capability, what stood before an arrow and what
        stands after it, and what the edit cost. Of behaviours that is the worst under any attack with its 95 %
        interval, and before it, where they do not do the same, the worst under cheap ones."""
        metrics, capability = self.metrics(), "general capability"
        after = {m: self._after(m) for m in metrics}
        rows = [
            {"": name}
            | {
                m: _arrows(row[f"{m}: before"], *([row[f"{w}{end}"] for end in ENDS] for w in after[m]))
                for m in metrics
            }
            | {capability: _arrows(*(row.get(f"{capability}: {when}", math.nan) for when in ("before", "after")))}
            | {column: row.get(column) for column in BESIDE}
            for name, row in zip(self.names(), self.table.to_dict("records"), strict=True)
        ]
        arms: dict[str, dict[str, Any]] = {}
        for m in metrics:
            for arm, found in self._control_rows(m):
                value = {m: _arrows(*(found.get(what, math.nan) for what in (f"{m}: before", *after[m])))}
                arms.setdefault(arm, {"": arm}).update(value)
        frame = pd.DataFrame([*rows, *arms.values()]).dropna(axis=1, how="all")
        whole = [column for column in ("seconds", "seeds") if column in frame]
        frame = frame.assign(**{column: frame[column].round().astype("Int64") for column in whole})
        return frame if max(self.table["seeds"]) > 1 else frame.drop(columns="seeds", errors="ignore")

    def _after(self, metric: str) -> list[str]:
        """Columns of the worst after attacks: of cheap ones and of any, or of any where that is the same."""
        cheap, every = (f"{metric}: {QUANTITIES[q]}" for q in ("cheap", "any"))
        alike = (self.table[cheap] == self.table[every]) | self.table[cheap].isna()
        return [every] if bool(alike.all()) else [cheap, every]

    def by_attack(self, metric: str | None = None) -> pd.DataFrame:
        """A row per run and per control, a column per attack: what was there before any, and at the worst of the
        attack's settings and steps; intervals are in ``attacks``.

        Args:
            metric: None: the first that was measured.
        Raises:
            InputError: it was not measured.
        """
        metric = self.metric(metric)
        before = f"{metric}: before"
        table: dict[Any, dict[str, Any]] = {}
        for run, name, value in zip(self.table["run"], self.names(), self.table[before], strict=True):
            table["edited", run] = {"": name, "before": value}
        for name, levels in self._control_rows(metric):
            table[name] = {"": name, "before": levels.get(before, math.nan)}
        rows: Any = self.attacks[self.attacks["metric"] == metric] if len(self.attacks) else self.attacks
        for row in rows.to_dict("records"):
            arm = row["arm"]
            key = (arm, row["run"]) if arm == "edited" else control_name(arm, row["of"])
            table[key].setdefault(row["attack"], []).append(row["value"])
        return pd.DataFrame(
            [{k: mean(v) if isinstance(v, list) else v for k, v in row.items()} for row in table.values()]
        )

    def attacks_markdown(self, metric: str | None = None) -> str:
        """:meth:`by_attack` and the notes."""
        metric = self.metric(metric)
        name = METRICS.get(metric, metric).capitalize()
        notes = "\n".join(f"- {inert(note)}" for note in self.notes)
        heading = f"{name}, at the worst setting and step of each attack:"
        return "\n\n".join(filter(None, [heading, markdown(self.by_attack(metric)), notes]))

    def by_run(self) -> pd.DataFrame:
        """The same with a column per run."""
        frame = self.by_row()
        return frame.set_index("run").T.rename_axis("", axis=0).rename_axis("", axis=1).reset_index()

    def by_control(self) -> pd.DataFrame:
        """A row per metric and quantity, a column per control arm: mean over the runs that share them."""
        rows = ["metric", "quantity"] if not any(self.controls["of"]) else ["of", "metric", "quantity"]
        wide = self.controls.pivot_table("value", rows, "arm", sort=False, observed=True)
        return wide.rename_axis("", axis=1).reset_index()


def control_name(arm: str, of: str) -> str:
    """Of a control arm, and of which runs where not all have the same."""
    return f"{arm} of {of}" if of else arm


def _in_latex(row: Mapping[str, Any], metric: str, column: str) -> str:
    """One place of the table, escaped already."""
    if column in BY:
        return latex_cell(row.get(f"{metric}: {QUANTITIES[BY[column]]}, by"))
    column = f"{metric}: {QUANTITIES[column]}" if column in QUANTITIES else column
    low, high = (row.get(f"{column} {end}", float("nan")) for end in ("low", "high"))
    value = latex_cell(row.get(column))
    return value if np.isnan(low) else f"{value} {{\\scriptsize [{latex_cell(low)}, {latex_cell(high)}]}}"


def _check_among(what: str, given: Sequence[str], valid: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in valid]:
        raise input_error(f"no {what} {unknown[0]!r} in this comparison; valid: {', '.join(valid)}")


def _arrows(*values: float | Sequence[float]) -> str | None:
    """``0.33 → 0.012 [0.01, 0.02]`` of values, some with the ends of their interval; None where there is none."""
    each = [[v] if isinstance(v, int | float) else list(v) for v in values]
    if all(math.isnan(value) for value, *_ in each):
        return None
    return " → ".join(
        ("-" if math.isnan(value) else f"{value:.3g}")
        + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends and not math.isnan(ends[0]) else "")
        for value, *ends in each
    )


def with_interval(frame: pd.DataFrame, *columns: str) -> list[str | None]:
    """``0.12 [0.1, 0.14]`` of value, low and high; None where nothing was measured."""
    rows = frame[list(columns)].to_numpy(float)
    return [None if np.isnan(v) else f"{v:.3g} [{low:.3g}, {high:.3g}]" for v, low, high in rows]
