"""``report.json``: what a report says as numbers, with the hashes of all that it was made from.

    schema_version  1
    run, status, command, environment, model, organism, never, corpora, seeds, redacted
    verdict         verdict, reason, doubts, within_budget, battery, thresholds
    summary         the table of the report, a row per arm (:func:`analysis.tables.summary_table`)
    edits           per seed: method, disruption, budget, stop, cost
    files           name -> SHA-256 of every file that the run folder held
    pages           name -> SHA-256 of report.md and of the model card, as they were written
    page            SHA-256 of report.html without its own copy of this record

``report.html`` holds a copy (a link that downloads it), so that the page can be checked against itself and its run:
``hooklearn verify``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from analysis.reading import SWEEP, Run, input_error, read_json, shaped
from analysis.tables import summary_table
from hooklearn.jsonable import jsonable

SCHEMA_VERSION = 1
RECORD = "report.json"
MADE = (RECORD, "report.html", "report.md", "README.md", "events.jsonl")
"""Files that a report writes, and the one to which lines may still be added."""
OF_THE_RUN = ("status", "command", "environment", "model", "organism", "never", "corpora", "seeds")
KINDS = (".json", ".jsonl", ".parquet", ".safetensors")
_LINK = re.compile(r'(href="data:application/json;base64,)([A-Za-z0-9+/=]*)(")')
"""Text on a page is escaped: a quotation mark of a model can never look like this."""


def record_of(run: Run, *, redact: bool = False, pages: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything but ``page``, in JSON's own types.

    Args:
        pages: name -> text of what is written beside ``report.html``.
    """
    verdict = run.verdict or {}
    kept = ("verdict", "reason", "doubts", "within_budget", "battery", "thresholds")
    known = ("method", "seed", "options", "stop", "binding", "disruption", "budget", "within_budget", "found", "cost")
    return jsonable(
        {
            "schema_version": SCHEMA_VERSION,
            "run": run.name,
            **{
                key: run.record.get(key)
                for key in ("status", "command", "environment", "model", "organism", "never", "corpora", "seeds")
            },
            "redacted": redact,
            "verdict": {key: verdict.get(key) for key in kept},
            "summary": summary_table(run).to_dict("records"),
            "edits": [{key: edit.get(key) for key in known} for edit in run.edits],
            "files": hashes(run.folder),
            "pages": {name: page_hash(text) for name, text in (pages or {}).items()},
        }
    )


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run that a report rests on."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix in KINDS and not p.name.startswith("."))
    return {name: file_hash(folder / name) for name in names if name not in MADE}


def file_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Raises InputError where the folder has no report, or one of another schema version."""
    path = folder / RECORD
    if not path.is_file() and (folder / SWEEP).is_file():
        raise input_error(
            f"{folder} is the folder of a sweep, which has no report; hooklearn report {folder}/cells/* writes one for "
            "each cell, and each is verified by itself"
        )
    if not path.is_file():
        raise input_error(f"{folder}: has no {RECORD}; hooklearn report {folder} writes it")
    return checked(read_json(path), path)


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    verdict: str | None = None
    reason: str | None = None
    thresholds: dict[str, float | int | None] | None = None


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | int | None]  # pyright: ignore[reportIncompatibleVariableOverride]
    arm: str


class _Record(BaseModel):
    """What is read out of a report again."""

    model_config = ConfigDict(extra="allow", strict=True)
    verdict: _Verdict
    summary: list[_Row]
    files: dict[Annotated[str, StringConstraints(pattern=r"^[^/\\\x00]+$")], str]
    """Names in the folder of the run, and none outside it."""
    pages: dict[Annotated[str, StringConstraints(pattern=r"^[^/\\\x00]+$")], str] = {}
    """The same, of what is not of the run; reports of an earlier version have none."""


def checked(record: dict[str, Any], path: Path) -> dict[str, Any]:
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise input_error(f"{path}: report schema version {version}, this version of analysis reads {SCHEMA_VERSION}")
    return shaped(_Record, record, path)


# ------------------------------------------------------------------------------- the page's own copy


def sealed(page: str, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A page whose link is still empty -> the page with the record in it, and the record with the page's hash."""
    whole = record | {"page": page_hash(page)}
    data = base64.b64encode(json.dumps(whole, allow_nan=False).encode()).decode()
    return _LINK.sub(lambda link: link[1] + data + link[3], page, count=1), whole


def opened(page: str, path: Path) -> tuple[str, dict[str, Any]]:
    """A page -> the same with its link emptied, and the record that was in it.

    Raises:
        InputError: there is no record in it.
    """
    link = _LINK.search(page)
    if link is None or not link[2]:
        raise input_error(f"{path}: not a report, or one that an older version wrote: it holds no record of itself")
    try:
        record = json.loads(base64.b64decode(link[2], validate=True))
    except (ValueError, RecursionError) as error:
        raise input_error(f"{path}: the record in it is damaged ({error})") from error
    if not isinstance(record, dict):
        raise input_error(f"{path}: the record in it is damaged (a {type(record).__name__})")
    return page[: link.start(2)] + page[link.end(2) :], checked(record, path)


def page_hash(page: str) -> str:
    """Of the bytes as they stand in the file."""
    return hashlib.sha256(page.encode("utf-8", "replace")).hexdigest()
