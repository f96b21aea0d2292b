"""The outcome of ``analysis.compare`` and the forms it takes: data frames, Markdown, CSV, LaTeX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import markdown

FEW = 4
"""Runs that stand side by side as columns; more are rows, and only differences to the best are printed."""
QUANTITIES = {"before": "before", "cheap": "worst, cheap attacks", "any": "worst, any attack"}


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
    unlearning: pd.DataFrame = field(default_factory=pd.DataFrame)
    """At equal unlearning (:mod:`analysis.equal`): what the same forget score cost each run."""
    compute: pd.DataFrame = field(default_factory=pd.DataFrame)
    """At equal compute: how far each run had come after the same number of tokens."""

    def to_dataframe(self) -> pd.DataFrame:
        return self.table.copy()

    def to_csv(self) -> str:
        return self.table.to_csv(index=False)

    def to_parquet(self) -> bytes:
        """The table with its types, which csv does not keep; read by ``pandas.read_parquet``."""
        return self.table.to_parquet(index=False)

    def to_latex(self) -> str:
        """A booktabs table with a column per run (many runs: a row each), intervals in brackets."""
        frame = self.by_run() if len(self.table) <= FEW else self.in_short()
        return frame.to_latex(index=False, escape=True, na_rep="-", float_format="%.3g")

    def to_markdown(self) -> str:
        """A column per run, the controls, the other two ways to be equal, the differences, the notes."""
        few = len(self.table) <= FEW
        parts = [markdown(self.by_run() if few else self.in_short())]
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
            which = "" if few else " to the run that is lowest under any attack"
            parts += [f"Differences{which}, paired by item and seed (95 % interval):", markdown(frame)]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)

    _repr_markdown_ = to_markdown

    def __repr__(self) -> str:
        return f"Comparison of {len(self.table)} runs\n{self.by_run().to_string(index=False)}"

    def to_the_best(self) -> pd.DataFrame:
        """Differences under the worst attack to the run that is lowest there, per metric."""
        worst = QUANTITIES["any"]
        columns = {m: f"{m}: {worst}" for m in self.differences["metric"].unique()}
        best = {m: self.table.loc[self.table[c].idxmin(), "run"] for m, c in columns.items()}
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

    def by_run(self) -> pd.DataFrame:
        """The same with a column per run."""
        frame = self.by_row()
        return frame.set_index("run").T.rename_axis("", axis=0).rename_axis("", axis=1).reset_index()

    def by_control(self) -> pd.DataFrame:
        """A row per metric and quantity, a column per control arm: mean over the runs that share them."""
        rows = ["metric", "quantity"] if not any(self.controls["of"]) else ["of", "metric", "quantity"]
        wide = self.controls.pivot_table("value", rows, "arm", sort=False, observed=True)
        return wide.rename_axis("", axis=1).reset_index()


def with_interval(frame: pd.DataFrame, *columns: str) -> list[str | None]:
    """``0.12 [0.1, 0.14]`` of value, low and high; None where nothing was measured."""
    rows = frame[list(columns)].to_numpy(float)
    return [None if np.isnan(v) else f"{v:.3g} [{low:.3g}, {high:.3g}]" for v, low, high in rows]
