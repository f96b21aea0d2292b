"""Files that analysis writes: whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from analysis.reading import input_error
from hooklearn.jsonable import jsonable


def write_bytes(path: Path, content: bytes) -> None:
    """On the disk when this returns, and so is the folder that says where."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not path.parent.is_dir():  # the error would name the temporary file
        raise input_error(f"{path} cannot be written: there is no folder {path.parent}")
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot, and the file itself is there
            os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """UTF-8; what cannot be encoded becomes a question mark."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, content: Any) -> None:
    """NaN and infinity become null: not measured is never 0."""
    write_text(path, json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")
