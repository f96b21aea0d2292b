"""The table of a sweep: its cells pooled over seeds and compared, beside how their options were chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, StringConstraints

from analysis.compare import compare
from analysis.comparison import Comparison
from analysis.reading import Run, input_error, read_json, read_run, shaped
from analysis.tables import METRICS, markdown, number
from analysis.tradeoff import picture
from analysis.verdict import judge
from analysis.writing import write_bytes, write_text

SCHEMA_VERSION = 1
RECORD = "sweep.json"


class _Cell(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    folder: Annotated[str, StringConstraints(pattern=r"^cells/[\w.+-]*\w[\w.+-]*$")]
    """Below the sweep's own: a verdict is written into it."""
    family: str
    label: str
    status: str
    error: str | None = None


class _Tuned(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    trials: list[dict[str, Any]]
    chosen: dict[str, Any] | None = None
    value: float | int | None = None


class _Record(BaseModel):
    """What is read out of sweep.json."""

    model_config = ConfigDict(extra="allow", strict=True)
    cells: list[_Cell]
    tuning: dict[str, _Tuned]


@dataclass(frozen=True, repr=False)
class SweepTable(Comparison):
    """A comparison whose runs are methods at budgets, pooled over seeds, with what the tuning split said."""

    tuning: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A row per method and budget that was searched: chosen options, trials, the value that decided."""
    missing: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Cells that failed or have not been run."""

    def to_markdown(self) -> str:
        parts = [super().to_markdown()]
        if len(self.tuning):
            parts += ["Options, chosen on the tuning split, and what the reporting split says:", markdown(self.tuning)]
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
    runs = [_pooled(folder, name, cells) for name, cells in _families(record).items()]
    if not runs:
        raise input_error(f"{folder}: no cell of this sweep has ended")
    found = compare([replace(run, verdict=judge(run, write=False).to_dict()) for run in runs])
    labels = {c["family"]: c["label"] for c in record["cells"]}
    table = found.table.assign(label=[labels[run] for run in found.table["run"]])
    table["options"] = [_options(record, run) for run in table["run"]]
    result = SweepTable(**{**vars(found), "table": table}, tuning=_tuning(record, table), missing=_missing(record))
    if write:
        _judge_cells(record, folder)
        _write(result, folder)
    return result


def read_sweep(folder: str | Path) -> dict[str, Any]:
    """``sweep.json``.

    Raises:
        InputError: it is not there, damaged, or of another schema version.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise input_error(f"{folder} is not the folder of a sweep: it has no {RECORD}")
    record = read_json(path)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise input_error(
            f"{path} has schema_version {record.get('schema_version')}, this version of analysis reads {SCHEMA_VERSION}"
        )
    return shaped(_Record, record, path)


def pool(runs: Sequence[Run], name: str) -> Run:
    """Runs of the same edit, each with seeds of its own, as one run."""
    frames = {
        stem: pd.concat([getattr(run, stem) for run in runs], ignore_index=True)
        for stem in ("curves", "items", "trace", "locate", "evidence", "capability", "directions")
    }
    first = runs[0]
    record = first.record | {
        "name": name,
        "edits": [edit for run in runs for edit in run.edits],
        "seeds": [seed for run in runs for seed in run.record.get("seeds") or []],
    }
    return replace(
        first, record=record, **frames, verdict=None,
        samples=[s for run in runs for s in run.samples],
        evidence_records=[e for run in runs for e in run.evidence_records],
    )  # fmt: skip


def _families(record: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    families: dict[str, list[Mapping[str, Any]]] = {}
    for cell in record["cells"]:
        if cell["status"] == "done":
            families.setdefault(cell["family"], []).append(cell)
    return families


def _pooled(folder: Path, name: str, cells: Sequence[Mapping[str, Any]]) -> Run:
    return pool([read_run(folder / cell["folder"]) for cell in cells], name)


def _judge_cells(record: Mapping[str, Any], folder: Path) -> None:
    for cell in record["cells"]:
        if cell["status"] == "done" and not (folder / cell["folder"] / "verdict.json").is_file():
            judge(folder / cell["folder"])


def _options(record: Mapping[str, Any], family: str) -> str:
    """What was chosen; ``as given`` for a method without a search."""
    tuned = record["tuning"].get(family)
    return _words(tuned["chosen"]) if tuned else "as given"


def _tuning(record: Mapping[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    """Both splits side by side: what the choice was made on, and what is reported."""
    tuning = (record.get("fixed") or {}).get("tuning") or {}
    metric, attack = tuning.get("metric", METRICS[0]), tuning.get("attack")
    tuned_on = f"tuning split: {metric}" + (f" after {attack['name']}" if attack else " before any attack")
    reported_as = f"{metric}: worst, any attack" if attack else f"{metric}: before"
    reported = dict(zip(table["run"], table[reported_as], strict=True)) if reported_as in table else {}
    rows = [
        {
            "run": family, "chosen": _words(found["chosen"]),
            "trials": f"{len(found['trials'])} of {tuning.get('trials')}",
            "ended": sum(not math.isnan(number(t["value"])) for t in found["trials"]),
            tuned_on: number(found["value"]),
            f"reporting split: {reported_as}": number(reported.get(family)),
        }
        for family, found in record["tuning"].items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _words(options: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items()) if options else "-"


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
    metric = next((m for m in METRICS if f"{m}: before" in found.table), METRICS[0])
    write_bytes(folder / "tradeoff.png", picture(found, metric, ".png"))
