"""A record as one file: what was measured, without what is large or can be made again.

``pack`` puts a run folder, or that of a sweep, into a zip; ``compare`` takes it as it takes the folder. Unzipped, a
sweep goes on where it stood (``hooklearn sweep FILE --out DIR --resume``): what is there is not run again.

Left out are weights (deltas, subspaces, tokens), reports, and what a run that goes on keeps for itself.
"""

from __future__ import annotations

import functools
import io
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from analysis.cells import read_sweep
from analysis.reading import SWEEP, input_error, read_json
from analysis.writing import write_bytes

LEFT_OUT = ("*.safetensors", "report.*", "README.md", "sweep.parquet", "table.*", "tradeoff.png", ".*")
"""Names of files; the last are the writer's own (``docs/run-folder.md``)."""
FOLDERS_LEFT_OUT = ("parts", "logs")
LARGEST = 1 << 30
"""Bytes that a packed record may hold when it is unpacked: a zip can promise any size."""
_WHEN = (1980, 1, 1, 0, 0, 0)
"""The time of every member, so that the same record is the same file."""


def pack(folder: str | Path, out: str | Path) -> Path:
    """Write the record of a run, or of a sweep's finished cells, to one zip.

    Raises:
        InputError: no run or sweep there, or it has not ended; of a sweep, no cell has.
    """
    folder, out = Path(folder), Path(out)
    if out.suffix != ".zip":
        raise input_error(f"{out}: a packed record is a .zip")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(_members(folder)):
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _WHEN)
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, path.read_bytes())
    write_bytes(out, content.getvalue())
    return out


def unpacked(run: str | Path) -> Path:
    """The folder of a run or sweep; of a packed one, a folder that lives as long as this process.

    Raises:
        InputError: a zip that is damaged, too large, or holds no record.
    """
    path = Path(run)
    if path.suffix != ".zip" or not path.is_file():
        return path
    return Path(_unzipped(path.resolve(), path.stat().st_mtime_ns).name) / path.stem


def _members(folder: Path) -> Iterator[Path]:
    if (folder / SWEEP).is_file():
        read_sweep(folder)
        done = [run for run in sorted(folder.rglob("run.json")) if read_json(run).get("status") == "done"]
        if not any(run.parent.parent.name == "cells" for run in done):
            raise input_error(f"{folder}: no cell of this sweep has ended")
        yield folder / SWEEP
        for run in done:
            yield from _files(run.parent)
    elif not (folder / "run.json").is_file():
        raise input_error(f"{folder} is neither a run folder nor that of a sweep: it has no run.json, and no {SWEEP}")
    elif (status := read_json(folder / "run.json").get("status")) == "running":
        raise input_error(f"{folder}: this run has not ended (status {status})")
    else:
        yield from _files(folder)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if (
            path.is_file()
            and not set(inside.parts[:-1]) & set(FOLDERS_LEFT_OUT)
            and not any(inside.match(pattern) for pattern in LEFT_OUT)
        ):
            yield path


@functools.cache  # which keeps the folder until the process ends
def _unzipped(path: Path, _written: int) -> tempfile.TemporaryDirectory[str]:
    """A folder with the record in a folder of the file's name, which names the run."""
    home = tempfile.TemporaryDirectory(prefix="hooklearn-")
    try:
        with zipfile.ZipFile(path) as archive:
            if not {"run.json", SWEEP} & set(archive.namelist()):
                raise input_error(f"{path} holds no record: neither run.json nor {SWEEP}")
            size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST:
                raise input_error(f"{path} would unpack to {size:,} bytes, more than {LARGEST:,}")
            archive.extractall(Path(home.name) / path.stem)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise input_error(f"{path} is damaged, or no zip: {error}") from error
    return home
