"""Files that are whole or absent: atomic writes, safe reads, the run folder (docs/run-folder.md).

JSON, JSON lines, parquet and safetensors, never pickle. Whatever is wrong with a file or the disk,
the user sees an InputError of one line. The lock is POSIX' ``flock``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import operator
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata as packages
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Self, get_args

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooklearn import memory, parallel
from hooklearn.jsonable import jsonable
from hooklearn.types import InputError, NumericalError

SCHEMA_VERSION = 1
RESERVE = 256 * 1024
"""Bytes that a run keeps while it goes on: given up when it fails, so that its record fits on a full disk."""
_FORMAT = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = tuple(_FORMAT)
Status = Literal["running", "done", "failed", "interrupted"]
StrPath = str | Path
_BAD_JSON = (ValueError, RecursionError)


def clear_os_error(exc: OSError, path: StrPath) -> InputError:
    """The one line a user needs when the disk refuses ``path``, e.g. because it is full."""
    return InputError(f"{path}: {exc.strerror or one_line(exc)}")


@contextmanager
def _clear_errors(path: StrPath, *damage: type[Exception]) -> Iterator[None]:
    """Says in one line what the disk refused, or which ``damage`` was found in the file."""
    try:
        yield
    except InputError:
        raise
    except OSError as exc:
        raise clear_os_error(exc, path) from exc
    except damage as exc:
        raise InputError(f"{path}: damaged, or another format ({one_line(exc)})") from exc


def one_line(exc: BaseException) -> str:
    if (exhausted := memory.exhausted(exc)) is not None:
        return exhausted
    text = " ".join(str(exc).split())
    return text if isinstance(exc, InputError) else f"{type(exc).__name__}: {text}".rstrip(": ")


def write_atomic(path: StrPath, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes bytes, or what a function writes to a handle: ``path`` is old or new, never half, and on the disk
    when this returns.

    Raises InputError where the disk is full, the folder missing or not writable ...
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _clear_errors(path):
        try:
            with temporary.open("xb") as handle:
                handle.write(content) if isinstance(content, bytes) else content(handle)
                _sync(handle)
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def _sync(handle: IO[Any]) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    """A rename is a change of the folder: without this a power cut could take it back."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(handle)


def save_json(path: StrPath, value: object) -> None:
    """NaN and infinity become null: not measured is never 0. Unfolds dataclasses and arrays."""
    write_atomic(path, json.dumps(jsonable(value), indent=1, allow_nan=False).encode() + b"\n")


def load_json(path: StrPath) -> Any:
    """Raises InputError where the file is missing or not JSON."""
    with _clear_errors(path, *_BAD_JSON):
        return json.loads(Path(path).read_bytes())


def save_lines(path: StrPath, rows: Iterable[object]) -> None:
    """JSON lines, one value a line; NaN as in :func:`save_json`."""
    write_atomic(path, b"".join(map(_line, rows)))


def load_lines(path: StrPath) -> list[Any]:
    """Raises InputError for bad lines, except a torn last one (its writer was killed): left out."""
    with _clear_errors(path, *_BAD_JSON):
        *whole, last = Path(path).read_bytes().split(b"\n")
        rows = json.loads(b"[" + b",\n".join(whole) + b"]")  # errors name the line
    with suppress(*_BAD_JSON):
        rows.append(json.loads(last))
    return rows


def _line(row: object) -> bytes:
    return json.dumps(jsonable(row), allow_nan=False).encode() + b"\n"


def save_frame(path: StrPath, frame: pd.DataFrame) -> None:
    """Parquet, without the index."""
    write_atomic(path, frame.to_parquet(engine="pyarrow", index=False))


def load_frame(path: StrPath) -> pd.DataFrame:
    """Raises InputError where the file is missing or damaged."""
    # pyarrow raises many unrelated types on damaged files
    with _clear_errors(path, Exception), Path(path).open("rb") as handle:
        return pd.read_parquet(handle, engine="pyarrow")


def save_tensors(path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Safetensors, from any device; names, order, values and dtypes come back exactly.

    Raises InputError for dtypes other than floats, NumericalError for NaN and infinity.
    """
    for name, tensor in tensors.items():
        _check_floats(path, name, tensor, NumericalError)
    # Readers sort by name; a sum over the sites must not change its last bit after a reload.
    header = {**(metadata or {}), "tensor_order": json.dumps(list(tensors))}
    write_atomic(path, lambda handle: write_tensors(handle, tensors, header))


def write_tensors(handle: IO[bytes] | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The safetensors format, one tensor at a time: no more than one is copied, or put together from the processes
    over which it is spread (each of them then has to call this; without a handle it only gives its parts)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _FORMAT[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that numbers begin where processors like them to
    if handle is not None:
        handle.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        data = parallel.whole(tensor.detach())
        if handle is not None:
            handle.write(data.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def load_tensors(
    path: StrPath, place: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. The file is mapped, its header checked against its size: no allocation.

    Args:
        place: name and tensor -> what is kept of it, before the next is read.
    Raises InputError for a missing or damaged file, dtypes other than floats, NaN and infinity.
    """
    damage = (SafetensorError, TypeError, *_BAD_JSON)
    with _clear_errors(path, *damage), safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        order = json.loads(metadata.pop("tensor_order", "null")) or file.keys()
        if sorted(order) != sorted(file.keys()):
            raise InputError(f"{path}: damaged, its list of tensors does not match its tensors")
        tensors = {}
        for name in order:
            tensor = file.get_tensor(name)
            _check_floats(path, name, tensor, InputError)
            tensors[name] = place(name, tensor)
    return tensors, metadata


def _check_floats(path: StrPath, name: str, tensor: Tensor, error: type[Exception]) -> None:
    if tensor.dtype not in DTYPES:
        raise InputError(f"{path}: {name!r} is {tensor.dtype}; expected one of {DTYPES}")
    if not parallel.whole(tensor.isfinite().all()):
        raise error(f"{path}: {name!r} holds NaN or infinity")


class RunFolder:
    """The one writer of a run folder; as a context manager it records how the run ended."""

    def __init__(self, folder: Path, record: dict[str, Any], lock: IO[str]) -> None:
        self.folder, self.record, self._lock = folder, record, lock
        self._clock = time.monotonic() - (record.get("seconds") or 0.0)

    @classmethod
    def create(
        cls,
        path: StrPath,
        record: Mapping[str, Any],
        resume: bool = False,
        same: Callable[[Any, Any], bool] = operator.eq,
    ) -> Self:
        """Locks the folder and writes run.json; ``resume`` continues the run that is there, if any.

        Args:
            same: whether two configs ask for the same.

        Raises InputError where the folder holds something else, a run (without ``resume``) or a run
        of another config, or where another process is writing it.
        """
        folder = Path(path)
        lock = claim(folder, "run.json")
        try:
            earlier = open_run(folder) if (folder / "run.json").exists() else {}
            if earlier and not resume:
                raise InputError(
                    f"{folder}: already holds a run (status {earlier['status']}); "
                    "use another --out, or --resume to continue it"
                )
            if earlier and not same(earlier.get("config"), jsonable(record.get("config"))):
                raise InputError(f"{folder}: holds a run of another config; use another --out")
            begun = {"schema_version": SCHEMA_VERSION, "started": now(), **record, **earlier}
            run = cls(folder, begun, lock)
            write_atomic(run.path(".reserve"), os.urandom(RESERVE))  # noise: nothing can make it smaller
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
        save_frame(self.path(name), frame)

    def save_json(self, name: str, value: object) -> None:
        save_json(self.path(name), value)

    def event(self, name: str, /, **values: object) -> None:
        """Appends to events.jsonl; on the disk when it returns."""
        path = self.path("events.jsonl")
        with _clear_errors(path), path.open("a+b") as handle:
            _cut_torn_line(handle)
            handle.write(_line({"time": now(), "event": name, **values}))
            _sync(handle)

    def update(self, **values: object) -> None:
        """Sets fields of run.json, and ``seconds``: a killed run still has its cost so far."""
        self.record |= {**values, "seconds": self.seconds()}
        save_json(self.path("run.json"), self.record)

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
                self.finish(ending, one_line(exc))
        elif self.record["status"] == "running":
            self.finish("done")


def claim(folder: Path, record: str) -> IO[str]:
    """An empty folder, or one that holds ``record``, is this process' own until the handle is closed.

    Raises InputError where it holds something else, or is another process'.
    """
    with _clear_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_links(folder)
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if names and record not in names:
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


def open_run(path: StrPath) -> dict[str, Any]:
    """Raises InputError where there is no run, it is damaged, or of another schema version."""
    file = Path(path) / "run.json"
    if not file.is_file():
        raise InputError(f"{path}: not a run folder (no run.json)")
    record = load_json(file)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{file}: schema version {version}; hooklearn reads {SCHEMA_VERSION}")
    if record.get("status") not in get_args(Status):
        raise InputError(f"{file}: damaged, status {record.get('status')!r}")
    return record


def is_done(path: StrPath) -> bool:
    """Whether a run lies there that has ended well. Raises like :func:`open_run` where it is damaged."""
    return (Path(path) / "run.json").is_file() and open_run(path)["status"] == "done"


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


def file_hash(path: StrPath) -> str:
    """SHA-256 in hex. Raises InputError where the file cannot be read."""
    with _clear_errors(path), Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
