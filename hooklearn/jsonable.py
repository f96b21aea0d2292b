"""Values in JSON's own types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any


def jsonable(value: Any) -> Any:
    """NaN and infinity become None: not measured is never 0. Unfolds dataclasses, arrays and tensors.

    What JSON has no type for stays as it is, so that writing it is an error and not a surprise.
    """
    if value is None or isinstance(value, str | int):  # most of what there is, and no abstract class to ask
        return value
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float):  # of numpy too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value):
        return {f.name: jsonable(getattr(value, f.name)) for f in fields(value)}
    return jsonable(value.tolist()) if hasattr(value, "tolist") else value
