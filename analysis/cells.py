"""The folder of a sweep as runs: its finished cells, the seeds of one method at one budget pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import pandas as pd
from pydantic import BaseModel, ConfigDict, StringConstraints

from analysis.reading import SWEEP, Run, input_error, read_json, read_run, shaped
from analysis.verdict import judge

SCHEMA_VERSION = 1
NAMED = 4
"""Cells without a result that a note names, at most."""


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


def opened(run: Run | str | Path) -> list[Run]:
    """A run as it is, or read from its folder; that of a sweep as its :func:`families`.

    Raises:
        InputError: see :func:`families` and ``read_run``.
    """
    return families(run) if _is_sweep(run) else [read_run(run)]


def sweep_of(run: Run | str | Path) -> dict[str, Any] | None:
    """``sweep.json``, where this is the folder of a sweep."""
    return read_sweep(run) if _is_sweep(run) else None


def without_result(run: Run | str | Path) -> list[str]:
    """A note on the cells of a sweep that have not ended; empty where there are none, and for a run."""
    if not _is_sweep(run):
        return []
    cells = read_sweep(run)["cells"]
    missing = [c["folder"] for c in cells if c["status"] != "done"]
    if not missing:
        return []
    more = f" and {len(missing) - NAMED} more" * (len(missing) > NAMED)
    return [
        f"{Path(run).name}: {len(missing)} of {len(cells)} cells have no result: {', '.join(missing[:NAMED])}{more}"
    ]


def _is_sweep(run: Run | str | Path) -> TypeGuard[str | Path]:
    return isinstance(run, str | Path) and (Path(run) / SWEEP).is_file()


def families(folder: str | Path, record: dict[str, Any] | None = None) -> list[Run]:
    """A judged run per method and budget, in the order of the sweep; its record also has the ``label``.

    Raises:
        InputError: no sweep there, or none of its cells has ended.
    """
    folder = Path(folder)
    of: dict[str, list[Any]] = {}
    for cell in (record or read_sweep(folder))["cells"]:
        if cell["status"] == "done":
            of.setdefault(cell["family"], []).append(cell)
    if not of:
        raise input_error(f"{folder}: no cell of this sweep has ended")
    return [_family(folder, name, cells) for name, cells in of.items()]


def _family(folder: Path, name: str, cells: Sequence[Any]) -> Run:
    run = pool([read_run(folder / cell["folder"]) for cell in cells], name)
    named = run.record | {"label": cells[0]["label"]}
    return replace(run, folder=folder / name, record=named, verdict=judge(run, write=False).to_dict())


def read_sweep(folder: str | Path) -> dict[str, Any]:
    """``sweep.json``.

    Raises:
        InputError: it is not there, damaged, or of another schema version.
    """
    path = Path(folder) / SWEEP
    if not path.is_file():
        raise input_error(f"{folder} is not the folder of a sweep: it has no {SWEEP}")
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
