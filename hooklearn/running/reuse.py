"""The edit of a run, taken over from another that made the same: a trial of the sweep, or a cell of an earlier one.

The same is what follows from the same method, options, budget and seed (and referee, where the method asks one) on the
same weights and texts: of the corpora, those that an edit reads. What is asked about, and which attacks follow, may
differ.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hooklearn import disk, store
from hooklearn.edit import Method
from hooklearn.jsonable import jsonable
from hooklearn.types import InputError

ASKED = ("model", "budget", "max_tokens", "deterministic")
PLACES = ("sites", "layers")
READ = ("model", "never", *(f"corpora.{role}" for role in ("forget", "retain", "reference", "disruption", "near")))


def parts(seed: int) -> tuple[str, str, str]:
    """Trace, weights and record of an edit; the record last, which says that the others are whole."""
    return f"parts/trace-seed{seed}.parquet", f"delta-seed{seed}.safetensors", f"parts/edit-seed{seed}.json"


def runs_in(*folders: Path) -> list[Path]:
    """Where runs may lie in the folders of runs and sweeps."""
    return [p for folder in folders for p in (folder, *folder.glob("cells/*"), *folder.glob("tuning/*/*"))]


def check_there(folders: Iterable[Path]) -> None:
    """Raises InputError for a folder that holds no run and no sweep: nothing could ever be taken from there."""
    for folder in folders:
        if not any((folder / name).is_file() for name in ("run.json", "sweep.json")):
            raise InputError(f"edits_from: {folder} holds no run and no sweep (no run.json, no sweep.json)")


def take(candidates: Iterable[Path], folder: store.RunFolder, method: Method, seed: int) -> bool:
    """Whether the edit of ``seed`` stands in the folder now: one of the runs ``candidates`` had made the same."""
    trace, delta, about = parts(seed)
    refereed = method.refereed
    if refereed and _of_an_object(folder.record):
        return False
    wanted = _follows_from(folder.record, method.name, method.options(), refereed)
    for run in candidates:
        if not all((run / name).is_file() for name in (trace, delta, about)):
            continue
        try:
            record, made = store.open_run(run), disk.load_json(run / about)
        except InputError:  # damaged: an edit can be made anew
            continue
        follows = _follows_from(record, made["method"], made["options"], refereed)
        if wanted == follows and not _reads_otherwise(folder.record, record):
            where = os.path.relpath(run, folder.folder)
            for name in (trace, delta):
                _link(run / name, folder.path(name))
            folder.save_json(about, made | {"taken_from": where})
            folder.event("edit taken", seed=seed, taken_from=where)
            return True
    return False


def _reads_otherwise(*records: Mapping[str, Any]) -> bool:
    """Whether the tokenizers, or chat templates, of two runs differ; records from before these were noted have none."""
    one, other = (store.hashes(record).get(store.TOKENIZER) for record in records)
    return None not in (one, other) and one != other


def _of_an_object(record: Mapping[str, Any]) -> bool:
    """Whether the referee was an object in Python: its name does not say what it does."""
    return (record["config"]["behaviour"].get("referee") or {}).get("name") is not None


def _follows_from(record: Mapping[str, Any], method: str, options: Mapping[str, Any], refereed: bool) -> Any:
    config, hashes = record["config"], store.hashes(record)
    asked = {key: config.get(key) for key in ASKED} | {key: config["edit"].get(key) for key in PLACES}
    precision = record["environment"].get("precision")  # what `auto` was
    # not its threshold: that is set on held-out text, which has no say in an edit
    referee = (record.get("referee") or {}).get("kind") if refereed else None
    return jsonable([method, options, asked, precision, referee, {what: hashes.get(what) for what in READ}])


def _link(source: Path, target: Path) -> None:
    """One file under two names: nothing that writes a run changes a file, it puts another in its place."""
    target.unlink(missing_ok=True)
    with suppress(OSError):  # a disk without links, or another disk
        target.hardlink_to(source)
        return
    disk.check_room(target.parent, source.stat().st_size, target.name)
    with source.open("rb") as handle:
        disk.write_atomic(target, lambda out: shutil.copyfileobj(handle, out))
