"""The run folder (docs/run-folder.md): one writer, a record from its first moment on, and what it was made with.

The lock is POSIX' ``flock``.
"""

from __future__ import annotations

import fcntl
import operator
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata as packages
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Self, get_args

import pandas as pd
import torch

from hooklearn import disk
from hooklearn.jsonable import jsonable
from hooklearn.types import InputError

SCHEMA_VERSION = 1
TOKENIZER = "tokenizer, or chat template,"
"""Among :func:`hashes`."""
RESERVE = 256 * 1024
"""Bytes that a run keeps while it goes on: given up when it fails, so that its record fits on a full disk."""
Status = Literal["running", "done", "failed", "interrupted"]
CONCLUDED = ("verdict.json", "report.json", "report.html", "report.md", "README.md")
"""What ``analysis`` writes into a run folder: it follows from the record, and is dropped where more is to come."""


class RunFolder:
    """The one writer of a run folder; as a context manager it records how the run ended."""

    def __init__(self, folder: Path, record: dict[str, Any], lock: IO[str]) -> None:
        self.folder, self.record, self._lock = folder, record, lock
        self._clock = time.monotonic() - (record.get("seconds") or 0.0)

    @classmethod
    def create(
        cls,
        path: disk.StrPath,
        record: Mapping[str, Any],
        resume: bool = False,
        same: Callable[[Any, Any], bool] = operator.eq,
    ) -> Self:
        """Locks the folder and writes run.json; ``resume`` continues the run that is there, if any.

        Args:
            same: whether what a config asks for can go on in the folder of an earlier one: the same, or more of it.

        Raises InputError where the folder holds something else, a run (without ``resume``) or a run
        of another config, or where another process is writing it.
        """
        folder = Path(path)
        lock = claim(folder, "run.json")
        try:
            earlier = open_run(folder) if (folder / "run.json").exists() else {}
            if earlier and not resume:
                raise InputError(
                    f"{folder}: already holds a run (status {earlier['status']}); use another --out, or --resume to "
                    "continue it with the same config"
                )
            if earlier and not same(earlier.get("config"), jsonable(record.get("config"))):
                told = "; ".join(differences(earlier.get("config"), jsonable(record.get("config"))))
                raise InputError(f"{folder}: holds a run of another config ({told}); use another --out")
            check_inputs(folder, earlier, record)
            asked = {key: record[key] for key in ("config", "config_given", "seeds") if key in record}
            begun = {"schema_version": SCHEMA_VERSION, "started": now(), **record, **earlier, **asked}
            run = cls(folder, begun, lock)
            if earlier and (earlier["status"] != "done" or earlier.get("seeds") != jsonable(begun.get("seeds"))):
                for name in CONCLUDED:  # before it runs on: a writer that is killed here drops the rest the next time
                    run.path(name).unlink(missing_ok=True)
            disk.write_atomic(run.path(".reserve"), os.urandom(RESERVE))  # noise: nothing can make it smaller
            run.update(status="running", error=None, finished=None)
            # "running" here: the one who wrote it was killed, and could not say so
            after = {"after": earlier["status"]} if earlier else {}
            run.event("resumed" if earlier else "started", environment=record.get("environment"), **after)
        except BaseException:
            lock.close()
            raise
        return run

    def seconds(self) -> float:
        """What the run took so far, with what processes before this one took."""
        return time.monotonic() - self._clock

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        """Files appear whole, so on resume this means finished."""
        return self.path(name).exists()

    def save_frame(self, name: str, frame: pd.DataFrame) -> None:
        disk.save_frame(self.path(name), frame)

    def save_json(self, name: str, value: object) -> None:
        disk.save_json(self.path(name), value)

    def event(self, name: str, /, **values: object) -> None:
        """Appends to events.jsonl; on the disk when it returns."""
        path = self.path("events.jsonl")
        with disk.clear_errors(path), path.open("a+b") as handle:
            _cut_torn_line(handle)
            handle.write(disk.json_line({"time": now(), "event": name, **values}))
            disk.sync(handle)

    def update(self, **values: object) -> None:
        """Sets fields of run.json, and ``seconds``: a killed run still has its cost so far."""
        self.record |= {**values, "seconds": self.seconds()}
        disk.save_json(self.path("run.json"), self.record)

    def finish(self, status: Status, error: str | None = None, **updates: object) -> None:
        """The last word of this writer; releases the lock, even if the disk refuses."""
        try:
            with suppress(OSError):
                self.path(".reserve").unlink()
            self.update(status=status, error=error, finished=now(), **updates)
            self.event(status, error=error)
        finally:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if exc is not None:
            ending = "interrupted" if isinstance(exc, KeyboardInterrupt) else "failed"
            with suppress(InputError):  # on a full disk, what broke the run matters more
                self.finish(ending, disk.one_line(exc))
        elif self.record["status"] == "running":
            self.finish("done")


def check_inputs(folder: Path, earlier: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raises InputError where a model, a corpus or a delta is not the one that the run in this folder began with: a
    config names files, and says nothing of what is in them, or of a delta that was given beside it."""
    given, given_now = _attacks_given(earlier), _attacks_given(record)
    if given and given_now is False:
        raise InputError(
            f"{folder}: holds the attacks on a delta that was given; give the same one (hooklearn attack --delta FILE, "
            "hl.run(..., delta=)), or use another --out"
        )
    if given is False and given_now:
        raise InputError(f"{folder}: holds a run that makes its own edit, and a delta is given; use another --out")
    before, now = (hashes(r) for r in (earlier, record))
    changed = [what for what in before if what in now and before[what] != now[what]]
    if changed:
        what = changed[0]
        raise InputError(
            f"{folder}: holds a run that began with another {what} (hash {before[what][:8]}, now {now[what][:8]}), and "
            "what was measured on the two cannot be mixed; put it back, or use another --out"
        )


def _attacks_given(record: Mapping[str, Any]) -> bool | None:
    """Whether a run attacks a delta that was given; None where nothing says so: a record of an earlier version does
    only by its edits."""
    if "delta" in record:
        return record["delta"] is not None
    first = next(iter(record.get("edits") or []), None)
    return first.get("method") == "delta" if isinstance(first, Mapping) else None


def hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """Of every model and corpus of a run and of the delta that was given, as far as its record has them."""
    weights = {name: record.get(name) for name in ("model", "never", "checkpoint", "delta")}
    corpora = {f"corpora.{role}": about for role, about in (record.get("corpora") or {}).items()}
    found = {w: about.get("hash") for w, about in {**weights, **corpora}.items() if isinstance(about, Mapping)}
    if isinstance(weights["model"], Mapping):  # by it all models read; records from before that was noted have none
        found[TOKENIZER] = weights["model"].get("tokenizer")
    return {what: digest for what, digest in found.items() if isinstance(digest, str)}


def differences(earlier: Any, now: Any, most: int = 3) -> list[str]:
    """Where two configs differ, key by key, in words: ``budget.kl was 0.01, is 0.02``; no more than ``most``, first
    those that both have (an earlier version may have known fewer)."""
    one, other = _flat(earlier), _flat(now)
    keys = [k for k in dict.fromkeys([*one, *other]) if one.get(k) != other.get(k)]
    keys.sort(key=lambda k: not (k in one and k in other))
    told = [f"{k} was {_short(one.get(k))}, is {_short(other.get(k))}" for k in keys[:most]]
    return [*told, f"and {len(keys) - most} more"] if len(keys) > most else told


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {k: v for name, one in inside for k, v in _flat(one, f"{key}.{name}" if key else str(name)).items()}
    return found or {key: value}


def _short(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


LOGS = "logs"
"""Where loggers write, which begin before the run does."""


def claim(folder: Path, record: str) -> IO[str]:
    """An empty folder, or one that holds ``record``, is this process' own until the handle is closed.

    Raises InputError where it holds something else, or is another process'.
    """
    with disk.clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_links(folder)
        if names := foreign(folder, record):
            raise InputError(f"{folder}: not a run, it holds {names[0]!r}; use another --out")
        with ExitStack() as undo:
            owner = folder / ".lock"
            lock = undo.enter_context(owner.open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                pid = owner.read_text().strip()
                raise InputError(f"{folder}: process {pid} is writing this run") from exc
            owner.write_text(str(os.getpid()))
            for left in [*folder.glob(".*.tmp"), *folder.glob("parts/.*.tmp")]:  # of a writer that was killed
                left.unlink()
            undo.pop_all()
        return lock


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Of processes with this lock file one is inside at a time, and the others wait; a killed one is out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def foreign(folder: Path, record: str) -> list[str]:
    """What a folder holds that is to hold ``record``, and does not."""
    if not folder.is_dir():
        return []
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != LOGS)
    return [] if record in names else names


def _refuse_links(folder: Path) -> None:
    """A folder from elsewhere may hold links, and what is written into it must stay in it."""
    for path in folder.iterdir():
        if path.is_symlink() and (path.is_dir() or path.name in (".lock", "events.jsonl")):
            raise InputError(f"{folder}: {path.name!r} is a link to {path.readlink()}; a run is only written in place")


def _cut_torn_line(handle: BinaryIO) -> None:
    """Drops the half-written last line of a crash; the next event would be lost with it."""
    handle.seek(max(handle.seek(0, os.SEEK_END) - 1, 0))
    if handle.read() not in (b"", b"\n"):
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)


def open_run(path: disk.StrPath) -> dict[str, Any]:
    """Raises InputError where there is no run, it is damaged, or of another schema version."""
    file = Path(path) / "run.json"
    if not file.is_file():
        raise InputError(f"{path}: not a run folder (no run.json)")
    record = disk.load_json(file)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{file}: schema version {version}; hooklearn reads {SCHEMA_VERSION}")
    if record.get("status") not in get_args(Status):
        raise InputError(f"{file}: damaged, status {record.get('status')!r}")
    return record


def is_done(path: disk.StrPath) -> bool:
    """Whether a run lies there that has ended well. Raises like :func:`open_run` where it is damaged."""
    return (Path(path) / "run.json").is_file() and open_run(path)["status"] == "done"


def is_concluded(path: disk.StrPath, record: Mapping[str, Any], *, same: Callable[[Any, Any], bool]) -> bool:
    """Whether a run of this very config and these seeds has ended well here: nothing is left to measure, and what was
    concluded from its record stays true. Raises like :meth:`RunFolder.create` where its inputs are others now."""
    folder = Path(path)
    if not is_done(folder):
        return False
    earlier = open_run(folder)
    asked = [jsonable(record.get(key)) for key in ("config", "seeds")]
    if not same(earlier.get("config"), asked[0]) or earlier.get("seeds") != asked[1]:
        return False
    check_inputs(folder, earlier, record)
    edits = [p.stem.removeprefix("trace-") for p in folder.glob("parts/trace-*.parquet")]
    kept = ["curves.parquet", "items.parquet", *(["trace.parquet"] if edits else [])]
    return all((folder / name).exists() for name in [*kept, *(f"delta-{seed}.safetensors" for seed in edits)])


def environment() -> dict[str, Any]:
    """What numbers may depend on: versions, platform, threads, git. Nothing that names a person."""
    names = ("hooklearn", "torch", "transformers", "transformer_lens", "numpy")
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in names},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The checkout that tracks this module, not one that merely surrounds its installation."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
