"""The edit of a run, taken over from another that made the same: a sweep need not make anew what a trial has made.

The same is what follows from the same method, budget and seed on the same weights and texts: of the corpora, those that
an edit reads. What is asked about and what attacks train on may differ, as on the two splits of a sweep.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hooklearn import disk, store
from hooklearn.jsonable import jsonable
from hooklearn.types import InputError

ASKED = ("model", "edit", "budget", "max_tokens", "deterministic")
READ = ("model", "never", *(f"corpora.{role}" for role in ("forget", "retain", "reference", "disruption", "near")))


def parts(seed: int) -> tuple[str, str, str]:
    """Trace, weights and record of an edit; the record last, which says that the others are whole."""
    return f"parts/trace-seed{seed}.parquet", f"delta-seed{seed}.safetensors", f"parts/edit-seed{seed}.json"


def take(earlier: Path, folder: store.RunFolder, seed: int) -> bool:
    """Whether the edit of ``seed`` stands in the folder now: it lay in ``earlier``, whole, and is the same."""
    try:
        record = store.open_run(earlier)
    except InputError:
        return False
    trace, delta, about = parts(seed)
    if not all((earlier / name).is_file() for name in (trace, delta, about)) or _same(record) != _same(folder.record):
        return False
    where = os.path.relpath(earlier, folder.folder)
    for name in (trace, delta):
        _link(earlier / name, folder.path(name))
    folder.save_json(about, disk.load_json(earlier / about) | {"taken_from": where})
    folder.event("edit taken", seed=seed, taken_from=where)
    return True


def _same(record: Mapping[str, Any]) -> Any:
    config, hashes = record["config"], store.hashes(record)
    return jsonable([{key: config.get(key) for key in ASKED}, {what: hashes.get(what) for what in READ}])


def _link(source: Path, target: Path) -> None:
    """One file under two names: nothing that writes a run changes a file, it puts another in its place."""
    target.unlink(missing_ok=True)
    with suppress(OSError):  # a disk without links
        target.hardlink_to(source)
        return
    disk.check_room(target.parent, source.stat().st_size, target.name)
    with source.open("rb") as handle:
        disk.write_atomic(target, lambda out: shutil.copyfileobj(handle, out))
