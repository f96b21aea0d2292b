"""A run folder as data frames (``docs/run-folder.md``), and the small tables made from them.

``read_run`` is the only way in: everything else in ``analysis`` works on the ``Run`` it returns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SCHEMA_VERSION = 1
METRICS = ("completion", "preference", "sampled")
ARMS = ("original", "edited", "matched", "never")

COLUMNS = {
    "curves": "attack setting cheap arm seed step tokens metric split value stderr n converged diverged",
    "items": "attack setting arm seed step metric split item value",
    "trace": "seed step scale tokens seconds kl near_ce forget",
    "locate": "site layer module side fitter rank auc auc_shuffled auc_random forget_energy "
    "retain_energy random_energy",
    "evidence": "kind site layer arm value null stderr n meaning",
}
"""File stem -> columns that must be there; more are welcome."""


def input_error(message: str) -> Exception:
    """``hooklearn.types.InputError``, imported only now: that module needs torch, tables do not."""
    from hooklearn.types import InputError

    return InputError(message)


@dataclass(frozen=True)
class Run:
    """Everything a run folder holds, except tensors."""

    folder: Path
    record: dict[str, Any]
    """run.json"""
    curves: pd.DataFrame
    items: pd.DataFrame
    trace: pd.DataFrame
    locate: pd.DataFrame
    evidence: pd.DataFrame
    samples: list[dict[str, Any]] = field(default_factory=list)
    evidence_records: list[dict[str, Any]] = field(default_factory=list)
    """evidence.json: each with its null, as ``analysis.evidence`` judges them."""
    verdict: dict[str, Any] | None = None
    """verdict.json, where the run has been judged."""

    @property
    def name(self) -> str:
        return str(self.record.get("name") or self.folder.name)

    @property
    def edits(self) -> list[dict[str, Any]]:
        """One per seed; empty for an audit of two models as they are."""
        return list(self.record.get("edits") or [])

    def __repr__(self) -> str:
        attacks = sorted(set(self.curves["attack"]) - {"none"})
        return (
            f"Run({self.name!r}, {self.record.get('status', 'unknown')}, "
            f"{len(self.edits)} edits, attacks: {', '.join(attacks) or 'none'})"
        )


def read_run(folder: str | Path | Run) -> Run:
    """Read a run folder; parquet files that are not there become empty frames.

    Raises:
        InputError: no such folder, no ``run.json``, or another schema version.
    """
    if isinstance(folder, Run):
        return folder
    folder = Path(folder)
    frames = {}
    record = _read_record(folder)
    for stem in COLUMNS:
        frames[stem] = _read_frame(folder / f"{stem}.parquet", COLUMNS[stem].split())
    verdict, records = folder / "verdict.json", folder / "evidence.json"
    return Run(
        folder=folder,
        record=record,
        **frames,
        samples=_read_lines(folder / "samples.jsonl"),
        evidence_records=read_json(records)["records"] if records.exists() else [],
        verdict=read_json(verdict) if verdict.exists() else None,
    )


def _read_record(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise input_error(f"no run folder at {folder}")
    path = folder / "run.json"
    if not path.is_file():
        raise input_error(f"{folder} is not a run folder: it has no run.json")
    record = read_json(path)
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise input_error(f"{path} has schema_version {version}, this version of analysis reads {SCHEMA_VERSION}")
    return record


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise input_error(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise input_error(f"{path} must hold one JSON object, not a {type(content).__name__}")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    # split at "\n" only: model output may hold other line separators, which JSON does not escape
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise input_error(f"{path} is not JSON lines: {error}") from error


def _read_frame(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises many unrelated types on damaged files
        raise input_error(f"{path} is not a parquet file, or damaged: {error}") from error
    missing = [c for c in columns if c not in frame]
    if missing:
        raise input_error(f"{path} lacks the columns {', '.join(missing)}")
    if "setting" in frame:  # null keys would vanish from every groupby
        frame["setting"] = frame["setting"].fillna("")
    return frame


# ---------------------------------------------------------------------------------- small tables


def summary_table(run: Run | str | Path) -> pd.DataFrame:
    """One row per arm: behaviour before and after each attack, and what the arm costs elsewhere.

    ``<metric>: before`` is attack ``none``; ``<metric>: <attack>`` is the worst case, i.e. the
    highest mean over seeds at any step under any setting that did not diverge, on held-out items.
    ``far KL`` and ``near CE`` are nats per token against the original; for the never-learned model
    they are the yardstick: how far it is from the original itself.
    """
    run = read_run(run)
    rows = run.curves.loc[run.curves["split"] == "heldout"]
    arms = in_order(rows["arm"], ARMS)
    groups = grouped(rows, "metric", "attack")
    columns: dict[str, Any] = {"arm": arms}
    for metric in in_order(rows["metric"], METRICS):
        for attack in in_order({a for m, a in groups if m == metric}, ("none",)):
            worst = _worst(groups[metric, attack])
            name = "before" if attack == "none" else attack
            columns[f"{metric}: {name}"] = [worst.get(arm, float("nan")) for arm in arms]
    columns["far KL"] = [_disruption(run, arm, "kl") for arm in arms]
    columns["near CE"] = [_disruption(run, arm, "near_ce") for arm in arms]
    return pd.DataFrame(columns)


def _worst(rows: pd.DataFrame) -> dict[str, float]:
    """arm -> highest mean over the seeds that were measured."""
    settled = rows.loc[~rows["diverged"].astype(bool)]
    worst: dict[str, float] = {}
    for (arm, _, _), cell in grouped(settled, "arm", "setting", "step").items():
        worst[arm] = float(np.fmax(worst.get(arm, np.nan), mean(cell["value"])))
    return worst


def _disruption(run: Run, arm: str, key: str) -> float:
    if arm == "original":
        return 0.0
    if arm == "edited":
        return mean(edit.get("disruption", {}).get(key) for edit in run.edits)
    yardstick = (run.record.get("yardsticks") or {}).get(arm) or {}
    return number(yardstick.get(key))


def grouped(frame: pd.DataFrame, *columns: str) -> dict[Any, pd.DataFrame]:
    """Values of the columns -> the rows that hold them."""
    return dict(list(frame.groupby(list(columns))))


def number(value: Any) -> float:
    """JSON's null is NaN: not measured."""
    return float("nan") if value is None else float(value)


def mean(values: Any) -> float:
    """Mean over what was measured; NaN for nothing."""
    known = [v for v in map(number, values) if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def in_order(names: Any, first: Sequence[str]) -> list[str]:
    """The names that are known, in their usual order, then the others by name."""
    names = set(names)
    return [n for n in first if n in names] + sorted(names - set(first))


def markdown(frame: pd.DataFrame, digits: int = 3) -> str:
    """A GitHub table. NaN is a dash: not measured.

    Examples:
        >>> print(markdown(pd.DataFrame({"arm": ["edited", "never"], "R": [0.25, float("nan")]})))
        | arm | R |
        | --- | ---: |
        | edited | 0.25 |
        | never | - |
    """
    header = [str(c) for c in frame.columns]
    numeric = [pd.api.types.is_numeric_dtype(t) for t in frame.dtypes]
    lines = [header, ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(v, digits) for v in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
