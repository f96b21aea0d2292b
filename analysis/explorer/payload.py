"""The bytes behind the explorer: one file that Python, the notebook and the static page all read.

    HLX1 | length of the header (uint32) | header (JSON) | body

The body holds a few shared arrays (texts, tokens) and one block a place, in the fixed order of :func:`layout`.
Projections are stored, never activations: int16 where there is room, int8 for the rest of the places
(``analysis.explorer.packing`` decides). What a model or a corpus said is plain text in one table of strings.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.explorer import numbers
from analysis.explorer.numbers import Array, Auc, Readout
from analysis.reading import input_error
from hooklearn.jsonable import jsonable

VERSION = 1
MAGIC = b"HLX1"
CORPORA = ("forget", "retain", "unrelated")
LENS = ("writes", "writes_against", "reads", "reads_against")
PLACE = "site layer module side fitter rank width auc auc_shuffled auc_random forget_energy retain_energy random_energy"
"""Columns of a place."""
FORGET, RETAIN = 0, 1


@dataclass(frozen=True)
class Sample:
    """What is shown: N tokens of I texts on C components. ``hooklearn.locate.tokens.TokenSample`` has these fields."""

    places: pd.DataFrame
    """One row a place, columns ``PLACE``; energies are of the whole subspace."""
    components: pd.DataFrame
    """One row a component, in the order of the places: place, component, value, forget, retain, unrelated, cosine,
    and the lists of tokens ``LENS``."""
    disruption: Sequence[Array]
    """Per place ``[k, k]``: half the sum over the chosen components is the KL of projecting them out."""
    texts: pd.DataFrame
    """corpus, held_out, tokens (their strings; an empty list for a text that is not shown)."""
    tokens: pd.DataFrame
    """text, position; in an order whose every beginning is itself a fair sample."""
    codes: Array
    """int16 ``[N, C]``; times ``scales [C]`` these are coordinates."""
    scales: Array
    item_codes: Array
    """int16 ``[I, C]``: means over the scored tokens of a text."""
    item_scales: Array
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """model, n_tokens (per corpus), disruption_on, disruption_tokens."""
    time: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"arm": [], "step": []}))
    """The points at which an attack was looked at: arm, step."""
    means: Array = field(default_factory=lambda: np.zeros((0, 0, 2), np.float32))
    """``[time, C, 2]``: mean coordinate of held-out forget and retain tokens."""
    frames: Mapping[int, Array] = field(default_factory=dict[int, Array])
    """place -> int16 ``[edited, n, k]``: the first n tokens at the points of the edited arm."""
    frame_scales: Mapping[int, Array] = field(default_factory=dict[int, Array])
    spaces: Any = None
    """The ``Subspaces`` behind the places, where they are at hand."""


def load(path: str | Path) -> Sample:
    """What ``TokenSample.save`` wrote, such as ``tokens.safetensors`` of a run folder.

    Raises:
        InputError: no such file, or not one of these.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise input_error(f"{path}: no such file; TokenSample.save writes it")
    try:
        with safe_open(path, framework="np") as file:
            meta = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, TypeError) as error:
        raise input_error(f"{path}: damaged, or another format ({error})") from error
    if (meta.get("kind"), meta.get("version")) != ("token sample", str(VERSION)):
        raise input_error(f"{path}: {meta.get('kind')} version {meta.get('version')}, not a token sample {VERSION}")
    try:
        tables = {name: pd.DataFrame(columns) for name, columns in json.loads(meta["tables"]).items()}
        places = range(len(tables["places"]))
        moving = [p for p in places if f"frames.{p}" in arrays]
        sample = Sample(
            **tables,
            **{name: arrays[name] for name in ("codes", "scales", "item_codes", "item_scales", "means")},
            disruption=[arrays[f"disruption.{p}"] for p in places],
            frames={p: arrays[f"frames.{p}"] for p in moving},
            frame_scales={p: arrays[f"frame_scales.{p}"] for p in moving},
            facts=dict(json.loads(meta["facts"])),
        )
        _check(sample)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise input_error(f"{path}: damaged, its tables and arrays do not fit each other ({error!r:.80})") from error
    return sample


def _check(s: Sample) -> None:
    """Raises ValueError where a table lacks a column, or points at what is not there."""
    wanted = {
        "places": PLACE.split(), "components": ["place", "component", "value", *CORPORA, "cosine", *LENS],
        "texts": ["corpus", "held_out", "tokens"], "tokens": ["text", "position"], "time": ["arm", "step"],
    }  # fmt: skip
    for name, columns in wanted.items():
        if missing := set(columns) - set(getattr(s, name)):
            raise ValueError(f"{name} lacks {sorted(missing)[0]}")
    components = len(s.components)
    if s.codes.shape != (len(s.tokens), components) or s.item_codes.shape != (len(s.texts), components):
        raise ValueError("codes")
    if s.scales.shape != (components,) or s.item_scales.shape != (components,):
        raise ValueError("scales")
    for index, rows in ((s.components["place"], s.places), (s.tokens["text"], s.texts)):
        if not np.isin(index, np.arange(len(rows))).all():
            raise ValueError("an index without its row")
    if not all(np.isfinite(a).all() for a in (s.scales, s.item_scales, s.means, *s.disruption)):
        raise ValueError("NaN or infinity")


# ------------------------------------------------------------------------------------------ format


def layout(entry: Mapping[str, Any], header: Mapping[str, Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of what the block of a place holds, in order."""
    k, points = entry["count"], header["time"]
    code = f"i{entry['bits'] // 8}"
    edited = sum(p["arm"] == "edited" for p in points)
    moving = k if entry["frames"] else 0
    return [
        ("energy", "f4", (k, 3)), ("cosine", "f4", (k,)), ("value", "f4", (k,)), ("disruption", "f4", (k, k)),
        ("scale", "f4", (k,)), ("item_scale", "f4", (k,)), ("means", "f4", (len(points), k, 2)),
        ("lens", header["index"], (k, len(LENS), header["lens"])), ("items", code, (header["items"], k)),
        ("codes", code, (entry["tokens"], k)), ("frame_scale", "f4", (moving,)),
        ("frames", "i2", (edited, entry["frames"], moving)),
    ]  # fmt: skip


def padded(array: Array) -> bytes:
    """Little-endian bytes, filled up to a multiple of eight: typed arrays need to be aligned."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return data + bytes(-len(data) % 8)


def container(header: Mapping[str, Any], body: bytes) -> bytes:
    text = plain_json(header)
    text += b" " * (-len(text) % 8)
    return MAGIC + struct.pack("<I", len(text)) + text + body


def plain_json(value: Any) -> bytes:
    """NaN is null: not measured is never 0."""
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


# --------------------------------------------------------------------------------------- unpacking


@dataclass(frozen=True)
class Packed:
    """A payload, read: the header, and arrays as views of the bytes."""

    header: Mapping[str, Any]
    body: memoryview

    def array(self, name: str) -> Array:
        spec = self.header["arrays"][name]
        return self._view(spec["dtype"], tuple(spec["shape"]), spec["at"])

    def block(self, place: int) -> dict[str, Array]:
        entry = self.header["places"][place]
        at, out = entry["at"], {}
        for name, dtype, shape in layout(entry, self.header):
            out[name] = self._view(dtype, shape, at)
            at += -(-out[name].nbytes // 8) * 8
        return out

    def _view(self, dtype: str, shape: tuple[int, ...], at: int) -> Array:
        return np.frombuffer(self.body, f"<{dtype}", math.prod(shape), at).reshape(shape)

    def readout(self, place: int, components: Sequence[int]) -> Readout:
        """The live numbers of the explorer for these components of a place."""
        block, pick = self.block(place), sorted(components)
        items = self.array("items")
        rows = block["items"][:, pick] * block["item_scale"][pick].astype(float)
        is_forget, is_held = self.array("text_corpus")[items] == FORGET, self.array("text_held")[items] == 1
        forget, retain, unrelated = block["energy"][pick].astype(float).sum(0).tolist()
        return Readout(
            numbers.held_out_auc(rows, is_forget, is_held), forget, retain, unrelated,
            len(pick) / self.header["places"][place]["width"],
            numbers.quadratic(block["disruption"].astype(float), pick),
        )  # fmt: skip

    def token_auc(self, place: int, component: int) -> Auc:
        """Of single held-out tokens along one component, as they are: no probe, no sign."""
        codes = self.block(place)["codes"][:, component].astype(float)
        text = self.array("token_text")[: len(codes)]
        corpus, held = self.array("text_corpus")[text], self.array("text_held")[text] == 1
        forget, retain = held & (corpus == FORGET), held & (corpus == RETAIN)
        return numbers.auc(codes[forget], codes[retain], text[forget], text[retain])

    def signal(self, place: int, components: Sequence[int]) -> Array:
        """Per attack point the squared distance of the class means inside the chosen directions."""
        means = self.block(place)["means"][:, list(components)].astype(float)
        return np.square(means[..., FORGET] - means[..., RETAIN]).sum(1)


def unpack(data: bytes) -> Packed:
    """Raises InputError for anything but a payload of this version."""
    if bytes(data[:4]) != MAGIC:
        raise input_error("these bytes are no explorer payload")
    (length,) = struct.unpack_from("<I", data, 4)
    header = json.loads(bytes(data[8 : 8 + length]))
    if header.get("version") != VERSION:
        raise input_error(f"explorer payload version {header.get('version')}; this hooklearn reads {VERSION}")
    return Packed(header, memoryview(data)[8 + length :])
