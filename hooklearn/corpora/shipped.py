"""The folder ``data/``: where it is, how its lines are read, and the order in which items are dealt out."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from hooklearn.corpora.corpus import Row
from hooklearn.types import InputError


def data_folder() -> Path:
    """``data/`` of a checkout, or the copy that ships in the wheel."""
    package = Path(__file__).parents[1]
    return package / "_data" if (package / "_data").is_dir() else package.parent / "data"


@functools.cache
def read_rows(relative: str) -> tuple[Row, ...]:
    """The objects of a JSON-lines file below ``data/``."""
    text = (data_folder() / relative).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


def rank(key: str) -> str:
    """Sorts items in an order that depends on the item and on nothing else."""
    return hashlib.sha256(key.encode()).hexdigest()


def dealt(shares: dict[str, int]) -> list[str]:
    """Part names, each as often as its share: items in the order of their rank get one after the other."""
    return [name for name, share in shares.items() for _ in range(share)]


def check_part(name: str, part: str, valid: Sequence[str]) -> None:
    if part not in valid:
        raise InputError(f"corpus {name!r} has no part {part!r}; valid: {', '.join(valid)}")
