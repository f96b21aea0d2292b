"""Files that are whole or absent: atomic writes, safe reads.

JSON, JSON lines, parquet and safetensors, never pickle. Whatever is wrong with a file or the disk,
the user sees an InputError of one line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooklearn import memory, parallel, parquet
from hooklearn.jsonable import jsonable
from hooklearn.types import InputError, NumericalError

_FORMAT = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = tuple(_FORMAT)
StrPath = str | Path
_BAD_JSON = (ValueError, RecursionError)


def clear_os_error(exc: OSError, path: StrPath) -> InputError:
    """The one line a user needs when the disk refuses ``path``, e.g. because it is full."""
    words = exc.strerror
    if words is None and isinstance(exc, FileNotFoundError):  # safetensors' own
        words = os.strerror(errno.ENOENT)
    return InputError(f"{path}: {words or one_line(exc)}")


@contextmanager
def clear_errors(path: StrPath, *damage: type[Exception]) -> Iterator[None]:
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
    with clear_errors(path):
        try:
            with temporary.open("xb") as handle:
                handle.write(content) if isinstance(content, bytes) else content(handle)
                sync(handle)
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def check_room(folder: Path, size: int, what: str) -> None:
    """Told before the work and not after it, where the disk has not got ``size`` bytes for its result.

    Raises:
        InputError: how much is free, and how much is needed.
    """
    with clear_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{folder}: {what} takes {size / 1e6:.0f} MB, and its disk has {free / 1e6:.0f} MB left; free some, or "
            "write elsewhere"
        )


def sync(handle: IO[Any]) -> None:
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
    with clear_errors(path, *_BAD_JSON):
        return json.loads(Path(path).read_bytes())


def save_lines(path: StrPath, rows: Iterable[object]) -> None:
    """JSON lines, one value a line; NaN as in :func:`save_json`."""
    write_atomic(path, b"".join(map(json_line, rows)))


def load_lines(path: StrPath) -> list[Any]:
    """Raises InputError for bad lines, except a torn last one (its writer was killed): left out."""
    with clear_errors(path, *_BAD_JSON):
        *whole, last = Path(path).read_bytes().split(b"\n")
        rows = json.loads(b"[" + b",\n".join(whole) + b"]")  # errors name the line
    with suppress(*_BAD_JSON):
        rows.append(json.loads(last))
    return rows


def json_line(row: object) -> bytes:
    try:  # most rows are in JSON's own types, and a run has some ten thousand
        line = json.dumps(row, allow_nan=False)
    except (TypeError, ValueError):
        line = json.dumps(jsonable(row), allow_nan=False)
    return line.encode() + b"\n"


def save_frame(path: StrPath, frame: pd.DataFrame) -> None:
    """Parquet, without the index."""
    write_atomic(path, frame.to_parquet(engine="pyarrow", index=False))


def load_frame(path: StrPath) -> pd.DataFrame:
    """Raises InputError where the file is missing or damaged."""
    # pyarrow raises many unrelated types on damaged files
    with clear_errors(path, Exception):
        return parquet.read_frame(path)


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
    with clear_errors(path, *damage), safe_open(path, framework="pt") as file:
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


def file_hash(path: StrPath) -> str:
    """SHA-256 in hex. Raises InputError where the file cannot be read."""
    with clear_errors(path), Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
