"""What a saved notebook or a page without scripts shows of the explorer: one picture, one table."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from analysis import markup, style
from analysis.explorer.numbers import Array
from analysis.explorer.payload import FORGET, RETAIN, Packed

ROWS = 12
TOKENS = 3_000
"""Most tokens in the picture: every beginning of a sample is a fair sample, and a notebook stays small."""
COLUMNS = {
    "site": "site", "side": "side", "fitter": "fitter", "rank": "rank", "auc": "held-out AUC",
    "auc_shuffled": "null: shuffled", "auc_random": "null: random", "forget_energy": "forget energy",
    "retain_energy": "retain energy", "random_energy": "random energy",
}  # fmt: skip
COLOURS = ("#c65300", "#0068a8", "#7d838c")
"""Forget, retain, unrelated, as in the explorer."""


def picture_and_table(packed: Packed, place: int | None = None) -> tuple[bytes, Markup]:
    """A PNG of the map and of one place's tokens, and an HTML table of the places that separate best."""
    return picture(packed, packed.header["open"] if place is None else place), table(packed)


def picture(packed: Packed, place: int) -> bytes:
    figure, (left, middle, right) = style.grid(3, 3, 3.5, 3.6)
    _map(left, packed, place)
    _tokens(middle, packed, place)
    _histogram(right, packed, place)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, facecolor=style.PAPER)
    return out.getvalue()


def _map(ax: Axes, packed: Packed, place: int) -> None:
    places = pd.DataFrame(packed.header["places"])
    here = places.iloc[place]
    own = places[places["side"] == here["side"]]
    own = own.assign(above=own["auc"].astype(float) - own["auc_shuffled"].astype(float))
    modules = list(dict.fromkeys(own["module"]))
    wide = own.pivot_table("above", "layer", "module", dropna=False)[modules]
    values = np.ma.masked_invalid(wide.to_numpy(float))
    ax.pcolormesh(
        values, cmap=style.SEPARATION, norm=Normalize(0, max(0.1, float(values.max() or 0))), edgecolors="w", lw=0.5
    )
    ax.invert_yaxis()
    ax.set_facecolor("#b9bcc2")
    ax.set_xticks(np.arange(len(modules)) + 0.5, modules, rotation=60, ha="right", rotation_mode="anchor")
    every = max(1, len(wide) // 8)
    ax.set_yticks(np.arange(0, len(wide), every) + 0.5, [str(v) for v in wide.index[::every]])
    row = list(wide.index).index(here["layer"])
    ax.plot(modules.index(here["module"]) + 0.5, row + 0.5, "s", mfc="none", mec="#e69f00", mew=1.8, ms=8)
    ax.grid(visible=False)
    style.title(ax, "Separation", "held-out AUC above shuffled labels")


def _tokens(ax: Axes, packed: Packed, place: int) -> None:
    entry, block = packed.header["places"][place], packed.block(place)
    on = block["codes"][:TOKENS] * block["scale"]
    second = min(1, entry["count"] - 1)
    corpus = packed.array("text_corpus")[packed.array("token_text")[: len(on)]]
    ax.scatter(on[:, 0], on[:, second], s=3, c=np.array(COLOURS)[corpus], alpha=0.4, linewidths=0, rasterized=True)
    ax.set_xlim(*_reach(on[:, 0]))
    ax.set_ylim(*_reach(on[:, second]))
    ax.set_xlabel("component 1")
    ax.set_ylabel(f"component {second + 1}")
    style.title(ax, f"{entry['site']} ({entry['side']})", f"{len(on):,} of {len(block['codes']):,} tokens")


def _reach(values: Array) -> tuple[float, float]:
    """What is shown of an axis: all but the most extreme tokens."""
    low, high = np.percentile(values, (0.2, 99.8)).tolist() if len(values) else (-1.0, 1.0)
    return low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9


def _histogram(ax: Axes, packed: Packed, place: int) -> None:
    block = packed.block(place)
    on = block["codes"][:, 0] * block["scale"][0]
    text = packed.array("token_text")[: len(on)]
    corpus, held = packed.array("text_corpus")[text], packed.array("text_held")[text] == 1
    low, high = _reach(on)
    edges = np.linspace(low, high, 41)
    for kind, name, dash in ((FORGET, "forget", "-"), (RETAIN, "retain", "--")):
        own = on[held & (corpus == kind)]
        if len(own):
            share = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0] / len(own)
            ax.stairs(share, edges, color=COLOURS[kind], ls=dash, lw=1.6, label=name)
    ax.set_yticks([])
    ax.set_xlabel("component 1")
    ax.legend(frameon=False, fontsize=style.SMALL)
    auc = packed.token_auc(place, 0)
    style.title(ax, "Forget against retain", f"held-out tokens, AUC {markup.plus_minus(auc.value, auc.stderr)}")


def table(packed: Packed) -> Markup:
    """The places that separate best, with their nulls."""
    places = sorted(packed.header["places"], key=lambda p: -_above(p))[:ROWS]
    heads = _joined(Markup('<th scope="col">{}</th>').format(name) for name in COLUMNS.values())
    cells = ['<th scope="row">{}</th>', *["<td>{}</td>"] * (len(COLUMNS) - 1)]
    rows = _joined(
        Markup("<tr>{}</tr>").format(
            _joined(Markup(cell).format(_shown(p[key])) for cell, key in zip(cells, COLUMNS, strict=True))
        )
        for p in places
    )
    total = len(packed.header["places"])
    share = f"The {len(places)} of {total}" if total > len(places) else f"The {total}"
    note = f"{share} places, by held-out AUC above the shuffled null."
    return Markup("<table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        note, heads, rows
    )


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _above(place: dict[str, Any]) -> float:
    auc, null = place["auc"], place["auc_shuffled"]
    return auc - null if auc is not None and null is not None else -1.0


def _shown(value: Any) -> str:
    return markup.visible(value) if isinstance(value, str) else markup.num(value)
