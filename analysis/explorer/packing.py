"""Fits a sample into few bytes: the places that separate best in full, the others with fewer tokens.

pack(sample)                       # bytes, below LIMIT
Packing(sample).place(3)           # one place in full, for a notebook that asks for it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import markup
from analysis.explorer.numbers import Array
from analysis.explorer.payload import CORPORA, LENS, PLACE, VERSION, container, layout, padded, plain_json
from analysis.reading import input_error

LIMIT = 2_950_000
"""Bytes; base64 makes four of three, so a page grows by less than 4 MB."""
THIN = 8
"""Most components of a place for which there is no room in full."""
FEWEST = 5_000
"""A place with fewer tokens than this is not called full."""
LENS_TOKENS = 6
LETTERS = 80
"""Characters of one token that are shown."""
OUTLIERS = 99.8
"""Percentile of the coordinates beyond which int8 codes are cut off: a few huge ones must not flatten the rest."""


def pack(sample: Any, *, limit: int = LIMIT, redact: bool = False) -> bytes:
    """A sample as bytes, at most ``limit`` of them.

    Args:
        sample: a :class:`analysis.explorer.payload.Sample`, or whatever has its fields.
        redact: blocks in place of every token.
    Raises:
        InputError: too many places for the limit.
    """
    return Packing(sample, limit=limit, redact=redact).data


class Packing:
    """A sample and how it was packed. ``data`` is the payload."""

    def __init__(self, sample: Any, *, limit: int = LIMIT, redact: bool = False) -> None:
        self.sample = sample
        strings = Strings(redact)
        self.kept, shared = _shared(sample, strings, limit)
        self.lens = _lens(sample, strings)
        index = "u2" if len(strings.table) < 2**16 else "u4"
        shared["text_tokens"] = shared["text_tokens"].astype(index)
        order = np.argsort(-_merit(sample.places), kind="stable")
        self.header: dict[str, Any] = {
            "version": VERSION, "index": index, "lens": LENS_TOKENS, "corpora": CORPORA, "open": int(order[0]),
            "sampled": len(self.kept), "texts": len(shared["items"]), "facts": dict(sample.facts),
            "time": sample.time.to_dict("records"), "strings": strings.table,
        }  # fmt: skip
        # the places' own entries and the arrays' are not written yet: some 330 and 80 bytes each
        taken = len(plain_json(self.header)) + sum(a.nbytes + 80 for a in shared.values()) + 330 * len(sample.places)
        tiers, items = self._plan(order, np.dtype(index).itemsize, len(shared["items"]), limit - taken)
        self.items = shared["items"] = shared["items"][:items]
        self._texts, self._tiers = shared, tiers
        self.data = self._write(shared, tiers)

    def opened(self, place: int) -> bytes:
        """``data`` as the page has it once this place was opened: in full."""
        return self._write(self._texts, {**self._tiers, place: self._full(place, len(self.kept))})

    def place(self, place: int) -> bytes:
        """A place in full: it takes the place of the thin one in ``data``; same tokens, texts and strings."""
        entry = {**self._row(place), **self._full(place, len(self.kept)), "at": 0}
        return container({"version": VERSION, "place": place, "entry": entry}, self._block(place, entry))

    def _write(self, shared: Mapping[str, Array], tiers: Mapping[int, Mapping[str, int]]) -> bytes:
        parts, at = [], 0
        arrays, places = {}, []
        self.header |= {"items": len(self.items), "arrays": arrays, "places": places}
        for name, array in shared.items():
            arrays[name] = {"dtype": array.dtype.str[1:], "shape": array.shape, "at": at}
            parts.append(padded(array))
            at += len(parts[-1])
        for place in range(len(self.sample.places)):
            places.append({**self._row(place), **tiers[place], "at": at})
            parts.append(self._block(place, places[-1]))
            at += len(parts[-1])
        return container(self.header, b"".join(parts))

    def _row(self, place: int) -> dict[str, Any]:
        return self.sample.places.iloc[place][PLACE.split()].to_dict()

    def _full(self, place: int, tokens: int) -> dict[str, int]:
        k = self._counts[place]
        frames = len(self._followed(place))
        return {"count": int(k), "of": int(k), "tokens": tokens, "bits": 16, "frames": frames}

    def _followed(self, place: int) -> Array:
        """Of the tokens that are kept the first ones, as far as they were followed at this place."""
        given = self.sample.frames.get(place)
        return self.kept[:0] if given is None else self.kept[self.kept < given.shape[1]]

    @property
    def _counts(self) -> Array:
        return np.bincount(self.sample.components["place"], minlength=len(self.sample.places))

    def _plan(self, order: Array, index: int, texts: int, room: int) -> tuple[dict[int, dict[str, int]], int]:
        """Per place how much of it is stored, and how many texts: all of them thin, then the best in full."""
        counts, n = self._counts, len(self.kept)
        # bytes of a component, whatever the tier
        each = 4 * 7 + index * len(LENS) * LENS_TOKENS + 8 * len(self.sample.time)
        for thin in (THIN, 4, 2, 1):
            k = np.minimum(counts, thin)
            fixed = int((k * (each + 4 * k) + 100).sum())
            items = min(texts, max(40, room // 4 // int(k.sum())))
            few = min(n, max(40, room // 5 // int(k.sum())))
            left = room - fixed - int(k.sum()) * (items + few)
            if left > 0:
                break
        else:
            raise input_error(
                f"{len(counts)} places do not fit into {room:,} bytes; take fewer sites or layers, or raise the limit"
            )
        tiers = {}
        for place in order.tolist():
            own = int(k[place])
            tiers[place] = {"count": own, "of": int(counts[place]), "tokens": few, "bits": 8, "frames": 0}
            full = self._full(place, 0)
            moving = 4 + 2 * len(self.sample.frames.get(place, ())) * full["frames"]
            more = full["count"] * (each + 4 * full["count"] + 2 * items + moving)
            more -= own * (each + 4 * own + items + few)
            tokens = min(n, (left - more) // (2 * full["count"]))
            if tokens >= min(n, FEWEST):
                left -= more + 2 * full["count"] * tokens
                tiers[place] = {**full, "tokens": tokens}
        return tiers, items

    def _block(self, place: int, entry: Mapping[str, Any]) -> bytes:
        s, k = self.sample, entry["count"]
        first = int(np.searchsorted(s.components["place"], place))
        own = slice(first, first + k)
        rows = s.components.iloc[own]
        codes, scale = _coded(s.codes[:, own][self.kept[: entry["tokens"]]], s.scales[own], entry["bits"], OUTLIERS)
        items, item_scale = _coded(s.item_codes[:, own][self.items], s.item_scales[own], entry["bits"], 100)
        followed = s.frames[place][:, self._followed(place)] if entry["frames"] else None
        arrays = {
            "energy": rows[list(CORPORA)], "cosine": rows["cosine"], "value": rows["value"],
            "disruption": s.disruption[place][:k, :k], "scale": scale, "item_scale": item_scale,
            "means": s.means[:, own] if len(s.time) else (), "lens": self.lens[own], "items": items, "codes": codes,
            "frame_scale": s.frame_scales.get(place), "frames": followed,
        }  # fmt: skip
        return b"".join(
            padded(np.asarray(arrays[name] if 0 not in shape else (), dtype).reshape(shape))
            for name, dtype, shape in layout(entry, self.header)
        )


class Strings:
    """The table of strings; number 0 is the empty one. What would not print is made visible."""

    def __init__(self, redact: bool = False) -> None:
        self.redact = redact
        self.table = [""]
        self._number = {"": 0}
        self._of: dict[str, int] = {}

    def numbers(self, texts: Iterable[str]) -> list[int]:
        found = []
        for text in texts:
            if text not in self._of:
                self._of[text] = self._add(self._shown(text))
            found.append(self._of[text])
        return found

    def _shown(self, text: str) -> str:
        if self.redact:
            return " " * text.startswith(" ") + "▮" * min(6, len(text.strip()))
        shown = markup.visible(text[:LETTERS]).replace("\n", "⏎").replace("\t", "⇥")
        return shown if len(text) <= LETTERS else f"{shown}… ({len(text):,} characters)"

    def _add(self, shown: str) -> int:
        if shown not in self._number:
            self._number[shown] = len(self.table)
            self.table.append(shown)
        return self._number[shown]


def interleaved(strata: Sequence[Any]) -> Array:
    """An order in which every beginning holds the strata in about their shares; within one, the order is kept."""
    groups = pd.Series(strata).groupby(np.asarray(strata))
    share = (groups.cumcount() + 0.5) / groups.transform("size")
    return np.argsort(share.to_numpy(), kind="stable")


def _shared(sample: Any, strings: Strings, limit: int) -> tuple[Array, dict[str, Array]]:
    """Which tokens are kept, and the arrays of texts; of long texts as many as an eighth of the limit has room for."""
    text = sample.tokens["text"].to_numpy(np.int64)
    lengths = sample.texts["tokens"].map(len).to_numpy()
    by_first = pd.unique(text)
    shown = np.zeros(len(lengths), bool)
    shown[by_first[np.cumsum(lengths[by_first]) <= limit // 16]] = True
    kept = np.flatnonzero(shown[text])
    spelled = [strings.numbers(t) if s else [] for t, s in zip(sample.texts["tokens"], shown, strict=True)]
    corpus = sample.texts["corpus"].map(CORPORA.index).to_numpy(np.uint8)
    held = sample.texts["held_out"].to_numpy(np.uint8)
    judged = np.flatnonzero(corpus < 2)
    return kept, {
        "text_start": np.cumsum([0, *map(len, spelled)]).astype(np.uint32),
        "text_tokens": np.array([n for t in spelled for n in t], np.uint32),
        "text_corpus": corpus,
        "text_held": held,
        "token_text": text[kept].astype(np.uint32),
        "token_position": sample.tokens["position"].to_numpy(np.uint32)[kept],
        "items": judged[interleaved(2 * corpus[judged] + held[judged])].astype(np.uint32),
    }


def _lens(sample: Any, strings: Strings) -> Array:
    """``[C, 4, LENS_TOKENS]`` numbers of strings, 0 where there is none."""
    out = np.zeros((len(sample.components), len(LENS), LENS_TOKENS), np.uint32)
    for i, column in enumerate(LENS):
        for c, tokens in enumerate(sample.components[column]):
            found = strings.numbers(list(tokens)[:LENS_TOKENS])
            out[c, i, : len(found)] = found
    return out


def _merit(places: pd.DataFrame) -> Array:
    """Held-out separation above its null; places that were not judged come last."""
    return (places["auc"] - places["auc_shuffled"]).fillna(-1.0).to_numpy(float)


def _coded(codes: Array, scales: Array, bits: int, percentile: float) -> tuple[Array, Array]:
    """int16 as it is; int8 up to a percentile."""
    if bits == 16 or not len(codes):
        return codes, scales
    reach = np.maximum(np.percentile(np.abs(codes.astype(np.float32)), percentile, axis=0), 1.0)
    return np.clip(np.rint(codes * (127 / reach)), -127, 127), scales * (reach / 127)
