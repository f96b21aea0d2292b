"""A run folder as data frames (``docs/run-folder.md``).

``read_run`` is the only way in: everything else in ``analysis`` works on the ``Run`` it returns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hooklearn import parquet

SCHEMA_VERSION = 1
SWEEP = "sweep.json"
"""In the folder of a sweep, whose cells are the run folders."""

COLUMNS = {
    "curves": "attack setting cheap arm seed step tokens metric split value stderr n converged diverged",
    "items": "attack setting arm seed step metric split item value",
    "trace": "seed step scale tokens seconds kl near_ce forget",
    "locate": "site layer module side fitter rank auc auc_shuffled auc_random forget_energy "
    "retain_energy random_energy",
    "evidence": "kind site layer arm value null stderr n meaning",
    "capability": "arm seed set item value",
    "directions": "site layer module side of arm step along component share width",
}
"""File stem -> columns that must be there; more are welcome."""
COUNTS = ("seed", "step", "item", "component")
"""Columns of whole numbers, never missing."""
TEXTS = ("attack", "setting", "arm", "metric", "split", "set", "site", "module", "side", "of", "along")
FLAGS = ("cheap", "converged", "diverged")


def _in_range(value: float | int | None) -> float | int | None:
    """JSON's integers have no end."""
    if isinstance(value, int) and abs(value) >= 2**1023:
        raise ValueError("a number beyond all floats")
    return value


Number = Annotated[float | int | None, AfterValidator(_in_range)]
Entry = dict[str, Any]


class _Shape(BaseModel):
    """What readers of a record rely on; more is welcome, and what is not there counts as null."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Edit(_Shape):
    seed: int | None = None
    method: str | None = None
    stop: str | None = None
    binding: str | None = None
    options: Entry | None = None
    disruption: dict[str, Number] | None = None
    budget: dict[str, Number] | None = None
    certificate: Entry | None = None
    found: dict[str, Number] | None = None
    cost: dict[str, Number] | None = None


class _Spent(_Shape):
    setting: str | None = None
    steps: Number = None
    samples: Number = None


class _Attack(_Shape):
    name: str | None = None
    needs: str | None = None
    settings: list[str] | None = None
    budget: Entry | None = None
    spent: list[_Spent] | None = None


class _Corpus(_Shape):
    n: Number = None
    cut: Number = None
    run_together: Number = None


class _Referee(_Shape):
    kind: str | None = None
    threshold: Number = None
    auc: Number = None
    n: Number = None
    median_bad: Number = None
    median_good: Number = None
    least_fluent: Number = None


class RecordShape(_Shape):
    """run.json"""

    name: str | None = None
    status: str
    error: str | None = None
    command: str | None = None
    started: str | None = None
    finished: str | None = None
    seconds: Number = None
    config: Entry | None = None
    config_given: Entry | None = None
    environment: Entry | None = None
    model: Entry | None = None
    organism: Entry | None = None
    never: dict[str, str | None] | None = None
    corpora: dict[str, _Corpus | None] | None = None
    unsampled: str | None = None
    seeds: list[int] | None = None
    edits: list[_Edit] | None = None
    yardsticks: dict[str, dict[str, Number] | None] | None = None
    referee: _Referee | None = None
    attacks: list[_Attack] | None = None
    cost: dict[str, Number] | None = None


class VerdictShape(_Shape):
    """verdict.json"""

    verdict: str
    reason: str
    doubts: list[str] | None = None
    metrics: dict[str, Entry] | None = None
    attacks: list[Entry] | None = None
    thresholds: dict[str, Number] | None = None


class SampleShape(_Shape):
    """A line of samples.jsonl"""

    split: str | None = None
    seed: int | None = None
    arm: str
    attack: str
    setting: str | None = None
    step: int
    item: int
    prompt: str
    completion: str
    referee: Number = None
    is_behaviour: bool | None = None
    fluency: Number = None
    logprob: Number = None


class EvidenceShape(_Shape):
    """A record of evidence.json"""

    name: str
    role: str
    direction: str
    meaning: str
    value: Number
    stderr: Number
    null: list[Number] | None = None
    anchors: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None


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
    capability: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Per item of general capability whether an arm answers it right; empty where no panel was given."""
    directions: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS["directions"].split()))
    """Energy of texts, edit and attacker along located and own directions, and how far the classes are apart."""
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

    @property
    def heldout_samples(self) -> list[dict[str, Any]]:
        """Without those to out-of-distribution prompts."""
        return [s for s in self.samples if (s.get("split") or "heldout") == "heldout"]

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
    if not isinstance(folder, str | PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise input_error(
            f"a run folder is expected, not {type(folder).__name__}; folder = hl.run({{...}}, out=...) makes one, also "
            "of models, corpora and methods in memory; then analysis.judge(folder)"
        )
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
        samples=[shaped(SampleShape, row, folder / "samples.jsonl") for row in _read_lines(folder / "samples.jsonl")],
        evidence_records=_evidence(records) if records.exists() else [],
        verdict=shaped(VerdictShape, read_json(verdict), verdict) if verdict.exists() else None,
    )


def shaped(shape: type[BaseModel], content: Any, path: Path) -> dict[str, Any]:
    """``content`` as it is, once it has been looked at.

    Raises:
        InputError: it has another shape; the first place that differs is named.
    """
    try:
        shape.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise input_error(f"{path}: damaged{f' at {place:.60}' * bool(place)}: {first['msg']}") from error
    return content


def _evidence(path: Path) -> list[dict[str, Any]]:
    records = read_json(path).get("records")
    if not isinstance(records, list):
        raise input_error(f"{path}: damaged: no list of records")
    return [shaped(EvidenceShape, record, path) for record in records]


def _read_record(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise input_error(f"no run folder at {folder}")
    path = folder / "run.json"
    if not path.is_file() and (folder / SWEEP).is_file():
        raise input_error(
            f"{folder} is the folder of a sweep, and its cells are the runs: give {folder}/cells/*, or one of them"
        )
    if not path.is_file():
        raise input_error(f"{folder} is not a run folder: it has no run.json")
    record = read_json(path)
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise input_error(f"{path} has schema_version {version}, this version of analysis reads {SCHEMA_VERSION}")
    return shaped(RecordShape, record, path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError: it cannot be read, or is not JSON, or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise input_error(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise input_error(f"{path} must hold one JSON object, not a {type(content).__name__}")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        # split at "\n" only: model output may hold other line separators, which JSON does not escape
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except (ValueError, OSError, RecursionError) as error:
        raise input_error(f"{path} is not JSON lines: {error}") from error


def _read_frame(path: Path, columns: list[str]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        frame = parquet.read_frame(path)
    except Exception as error:  # pyarrow raises many unrelated types on damaged files
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise input_error(f"{path} is not a parquet file, or damaged: {first}") from error
    missing = [c for c in columns if c not in frame]
    if missing:
        raise input_error(f"{path} lacks the columns {', '.join(missing)}")
    if "setting" in frame:  # null keys would vanish from every groupby
        frame["setting"] = frame["setting"].fillna("")
    for column in columns:
        if not _has_its_kind(frame[column], column, path.stem):
            raise input_error(f"{path}: damaged, its column {column!r} holds {frame[column].dtype} values")
    return frame


def _has_its_kind(values: Any, column: str, stem: str) -> bool:
    types = pd.api.types
    if not isinstance(values, pd.Series):  # two columns of one name
        return False
    shown = stem == "locate" or (stem == "evidence" and column not in ("value", "stderr", "null"))
    if shown or (column not in COUNTS and bool(values.isna().all())):
        return True  # shown and never computed with; or not measured
    if column in TEXTS:
        return types.infer_dtype(values, skipna=False) in ("string", "empty")
    if column in FLAGS:
        return types.infer_dtype(values, skipna=False) in ("boolean", "empty")
    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values) and not types.is_complex_dtype(values)
    if column in COUNTS:
        whole = numeric and bool((values >= 0).all()) and bool((values % 1 == 0).all())  # NaN is neither
        return whole and bool((values < 2**53).all())
    return numeric and not bool(np.isinf(values.to_numpy(float, na_value=np.nan)).any())
