"""The table of a sweep: its cells pooled over seeds and compared, beside how their options were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import families
from analysis.cells import pool as pool
from analysis.cells import read_sweep as read_sweep
from analysis.compare import compare
from analysis.comparison import Comparison
from analysis.tables import markdown
from analysis.tradeoff import picture
from analysis.tuning import tuning_table, words
from analysis.verdict import judge
from analysis.writing import write_bytes, write_text


@dataclass(frozen=True, repr=False)
class SweepTable(Comparison):
    """A comparison whose runs are methods at budgets, pooled over seeds, with the cells that are missing from it."""

    missing: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Cells that failed or have not been run."""

    def to_markdown(self) -> str:
        parts = [super().to_markdown()]
        if len(self.missing):
            parts += ["Cells without a result:", markdown(self.missing)]
        return "\n\n".join(parts)

    _repr_markdown_ = to_markdown


def sweep_table(folder: str | Path, *, write: bool = True) -> SweepTable:
    """Compare the finished cells of a sweep.

    Args:
        write: also ``sweep.parquet``, ``table.*`` and ``tradeoff.png``, and the verdict of every cell by itself.

    Raises:
        InputError: no sweep there, or none of its cells has ended.
    """
    folder = Path(folder)
    record = read_sweep(folder)
    found = compare(families(folder, record))
    table = found.table.assign(options=[_options(record, run) for run in found.table["run"]])
    changed = {"table": table, "tuning": tuning_table(record, table)}
    result = SweepTable(**{**vars(found), **changed}, missing=_missing(record))
    if write:
        _judge_cells(record, folder)
        _write(result, folder)
    return result


def _judge_cells(record: Mapping[str, Any], folder: Path) -> None:
    for cell in record["cells"]:
        if cell["status"] == "done" and not (folder / cell["folder"] / "verdict.json").is_file():
            judge(folder / cell["folder"])


def _options(record: Mapping[str, Any], family: str) -> str:
    """What was chosen; ``as given`` for a method without a search."""
    tuned = record["tuning"].get(family)
    return words(tuned["chosen"]) if tuned else "as given"


def _missing(record: Mapping[str, Any]) -> pd.DataFrame:
    rows = [
        {"cell": c["folder"], "status": c["status"], "error": c["error"] or ""}
        for c in record["cells"]
        if c["status"] != "done"
    ]
    return pd.DataFrame(rows)


def _write(found: SweepTable, folder: Path) -> None:
    write_bytes(folder / "sweep.parquet", found.table.to_parquet(engine="pyarrow", index=False))
    write_text(folder / "table.md", found.to_markdown() + "\n")
    write_text(folder / "table.csv", found.to_csv())
    write_text(folder / "table.tex", found.to_latex())
    write_bytes(folder / "tradeoff.png", picture(found, None, ".png"))
