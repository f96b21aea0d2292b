"""Which sites and layers a name means: ``mlp.out``, ``attn``, ``8-20``. Needs no model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hooklearn.types import InputError, Site


def matches(site: Site, name: str) -> bool:
    """Whether a name as in ``sites=`` means this site: all, its module, a part of that, or its whole name."""
    if name in ("all", site.module, site.name, site.module.split(".")[0]):
        return True
    group, _, rest = site.module.partition(".experts.")  # every expert, one expert, one matrix of every expert
    number, _, part = rest.partition(".")
    return bool(rest) and name in (f"{group}.experts", f"{group}.experts.{number}", f"{group}.experts.{part}")


def chosen_layers(layers: Iterable[int] | int | str | None, n_layers: int) -> set[int]:
    """``8-20``, ``3,8-10``, numbers, or None for all. Raises InputError where there are no such layers."""
    if layers is None:
        return set(range(n_layers))
    if isinstance(layers, str):
        layers = _parse_layers(layers)
    chosen = {layers} if isinstance(layers, int) else set(layers)
    wrong = sorted(chosen - set(range(n_layers)))
    if wrong or not chosen:
        if not chosen:
            raise InputError(f"layers are none at all; write them as '8-20' or '3,8-10', among 0-{n_layers - 1}")
        raise InputError(f"layers {sorted(chosen)}: {wrong} are not among 0-{n_layers - 1}")
    return chosen


def _parse_layers(text: str) -> list[int]:
    layers = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise InputError(f"layers {text!r}: write them as '8-20' or '3,8-10'")
        first, last = match.groups()
        if last is not None and int(last) < int(first):
            raise InputError(f"layers {text!r}: {first}-{last} ends before it begins; write the lower one first")
        layers += range(int(first), int(last or first) + 1)
    return layers
