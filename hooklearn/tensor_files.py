"""The safetensors of a Hugging Face folder, read and written tensor by tensor.

Weights in one file (``model.safetensors``), or in several with an index of which tensor is in which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooklearn import builtin, disk, parallel
from hooklearn.types import InputError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FILE_BYTES = 5 * 10**9
"""Of one file at most, unless a single tensor is larger."""


class TensorFiles:
    """Where each tensor lies."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self.folder = folder
        self.files = files
        """Name of a tensor -> its file."""

    @classmethod
    def of(cls, name: str) -> TensorFiles:
        """Of a built-in name, a folder or a hub id (which is fetched, if that has not been done).

        Raises:
            InputError: no safetensors there, or a damaged index.
        """
        if name in builtin.names():
            folder = builtin.fetch(name)
        elif (given := Path(name).expanduser()).is_dir():
            folder = given
        else:
            try:
                folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
            except Exception as error:  # offline, not there, not allowed: a dozen kinds
                said = str(error).splitlines()
                raise InputError(f"model {name!r} could not be fetched: {said[0] if said else type(error)}") from error
        if (folder / INDEX).is_file():
            try:
                return cls(folder, dict(json.loads((folder / INDEX).read_bytes())["weight_map"]))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(f"model {name!r}: {INDEX} is damaged ({type(error).__name__})") from error
        if not (folder / SINGLE).is_file():
            raise InputError(
                f"model {name!r}: model.shard and model.offload read {SINGLE} or {INDEX}, and neither is in {folder}; "
                "write the folder again with save_pretrained"
            )
        try:
            with safe_open(folder / SINGLE, framework="pt") as file:
                return cls(folder, dict.fromkeys(file.keys(), SINGLE))
        except SafetensorError as error:
            raise InputError(f"{folder / SINGLE}: damaged, or another format ({error})") from error

    def read(self, name: str, shape: torch.Size) -> Tensor:
        """One tensor, in memory of its own. Raises InputError where it is missing, damaged or of another shape."""
        asked, place = name, self.files.get(name)
        if place is None:  # a checkpoint of the model without its head: names lack their first word
            name = name.partition(".")[2]
            place = self.files.get(name)
        if not isinstance(place, str) or Path(place).name != place:
            raise InputError(f"{self.folder}: no tensor {asked!r} there; write the folder again with save_pretrained")
        try:
            with safe_open(self.folder / place, framework="pt") as file:  # closed, or all of it stays mapped
                found = file.get_tensor(name).clone()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.folder / place}: damaged, or not there ({error})") from error
        if found.dtype not in disk.DTYPES:
            raise InputError(f"{self.folder / place}: {name!r} is {found.dtype}; expected one of {disk.DTYPES}")
        if found.shape != shape:
            raise InputError(f"{self.folder / place}: {name!r} is {list(found.shape)}, the model's {list(shape)}")
        return found


def write(folder: Path, tensors: Mapping[str, Tensor], file_bytes: int = FILE_BYTES) -> None:
    """Every process has to call it where they are sharded; the first writes.

    Raises:
        InputError: what the disk refuses.
    """
    parts = list(_filled(tensors, file_bytes))
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    names = [SINGLE] if len(parts) == 1 else names
    for file, part in zip(names, parts, strict=True):
        if parallel.rank() == 0:
            disk.write_atomic(
                folder / file, lambda handle, part=part: disk.write_tensors(handle, part, {"format": "pt"})
            )
        else:
            disk.write_tensors(None, part, {})
    if len(parts) > 1 and parallel.rank() == 0:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        where = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        disk.save_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _filled(tensors: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """In their order, as many to a file as fit."""
    now: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        more = tensor.numel() * tensor.element_size()
        if now and size + more > most:
            yield now
            now, size = {}, 0
        now[name] = tensor
        size += more
    yield now
