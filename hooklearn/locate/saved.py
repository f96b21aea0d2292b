"""Activations that were recorded elsewhere (nnsight, plain hooks), as if they had been captured here.

with model.trace(prompts): ...  # nnsight
torch.save({"blocks.5.mlp.out": saved}, "forget.pt")
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooklearn.locate.directions import read_tensors
from hooklearn.locate.fit import ClassData, Collected, held_out
from hooklearn.moments import Moments
from hooklearn.types import InputError, Side, Site


def read_activations(
    forget: str | Path | Mapping[str, Any],
    retain: str | Path | Mapping[str, Any],
    sites: Sequence[Site],
    *,
    side: Side = "x",
    names: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Collected:
    """Two files of activations as one collection: ``.fit("contrast", 8)`` is then what ``hl.locate`` does.

    Args:
        forget, retain: ``.safetensors`` or ``.pt`` files, or mappings: name -> ``[item, d]``, ``[item, token, d]`` (all
            tokens count) or, with items of different lengths, a list of ``[token, d]``.
        sites: what they were recorded at (``hl.sites(model, ...)``); ``side``: ``x`` inputs, ``g`` output gradients.
        names: site name -> their name, where it is another.
        seed: of the third of the items that is held out. Where both have equally many, item ``i`` of either is taken to
            be one group, as answers to one prompt are.
    Raises:
        InputError: a name that is not there, shapes that do not fit, NaN, or fewer than two items.
    """
    called = {site.name: (names or {}).get(site.name, site.name) for site in sites}
    bad, good = (_items(source, sites, called, side) for source in (forget, retain))
    counts = [len(next(iter(items.values()))) for items in (bad, good)]
    paired = counts[0] == counts[1]
    groups = [[str(i) if paired else f"{c}-{i}" for i in range(n)] for c, n in enumerate(counts)]
    held = held_out(groups, seed)
    classes = [_class(items, g, held, side) for items, g in zip((bad, good), groups, strict=True)]
    return Collected(list(sites), (side,), *classes)


def _items(source: Any, sites: Sequence[Site], called: Mapping[str, str], side: Side) -> dict[str, list[Tensor]]:
    """Per site, one ``[token, d]`` an item."""
    where = str(source) if isinstance(source, str | Path) else "activations"
    tensors = read_tensors(Path(source)) if isinstance(source, str | Path) else source
    if not isinstance(tensors, Mapping):
        raise InputError(f"{where}: expected a mapping of names to tensors, got a {type(tensors).__name__}")
    out: dict[str, list[Tensor]] = {}
    for site in sites:
        name = called[site.name]
        if name not in tensors:
            near = difflib.get_close_matches(name, map(str, tensors), n=1)
            hint = f"; nearest: {near[0]!r}" if near else f"; it has {', '.join(map(str, list(tensors)[:4]))}"
            raise InputError(f"{where}: no activations {name!r}{hint}")
        given = tensors[name]
        items = [t[None] if t.ndim == 1 else t for t in (given if isinstance(given, list | tuple) else given.unbind())]
        if any(t.ndim != 2 or t.shape[1] != site.width(side) or not len(t) for t in items):
            shapes = sorted({tuple(t.shape) for t in items})
            raise InputError(
                f"{where}: {name!r} has items of shape {shapes[:3]}; side {side!r} of {site.name} needs "
                f"[token, {site.width(side)}], at least one token an item"
            )
        if len(items) < 2 or not all(bool(t.isfinite().all()) for t in items):
            raise InputError(f"{where}: {name!r} needs at least two items, all of them finite")
        out[site.name] = [t.detach().float().cpu() for t in items]  # where all that is fitted is
    if len({len(items) for items in out.values()}) > 1:
        raise InputError(f"{where}: items differ in number: { {n: len(items) for n, items in out.items()} }")
    return out


def _class(items: Mapping[str, list[Tensor]], groups: Sequence[str], held: set[str], side: Side) -> ClassData:
    keep = torch.tensor([g not in held for g in groups])
    moments, fitted, left, tokens = {}, {}, {}, {}
    for name, each in items.items():
        key = (name, side)
        means = torch.stack([t.mean(0) for t in each])
        moments[key] = Moments.of(*(t for t, kept in zip(each, keep, strict=True) if kept))
        fitted[key], left[key] = means[keep], means[~keep]
        tokens[name] = moments[key].n
    return ClassData(moments, fitted, left, tokens)
