"""Cost against tokens, layers, sites and rank over a decade: slopes on logarithmic axes, and the figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks import results
from benchmarks.harness import Bench, Row, at_most, timed
from hooklearn import linalg
from hooklearn.data import ROW, batches
from hooklearn.locate.capture import weight_gradients

SLOPE = 1.1
"""1 is linear; a tenth is left to noise."""


def rows(bench: Bench) -> Iterator[Row]:
    repeats = 1 if bench.quick else 2
    model, sites = bench.model, bench.sites
    some = 512
    gradients = {n: g for n, g in weight_gradients(model, batches(bench.cut(4, 64, 24)), sites)[0].items()}
    largest = max(gradients.values(), key=lambda g: g.numel())

    def tokens(n: int) -> Callable[[], object]:
        stream = batches(bench.cut(n // 64, 64, 24), max_tokens=some, share=ROW)
        return lambda: weight_gradients(model, stream, sites)

    def layers(n: int) -> Callable[[], object]:
        """The sites of the top n layers: backward stops at the lowest of them. The forward pass is not theirs."""
        own = [s for s in sites if s.layer >= model.cfg.n_layers - n]
        stream = batches(bench.cut(8, 64, 24), max_tokens=some, share=ROW)
        return lambda: weight_gradients(model, stream, own)

    def filtered(n: int) -> Callable[[], object]:
        own = list(gradients.values())[:n]
        return lambda: [linalg.spectral_filter(g, 32) for g in own]

    def rank(n: int) -> Callable[[], object]:
        return lambda: linalg.spectral_filter(largest, n)

    deep, narrow = model.cfg.n_layers, min(largest.shape)
    axes = {
        "tokens": (tokens, _decade(512, 1 if bench.quick else 10)),
        "layers": (layers, [n for n in (1, 2, 3, 5, 10, 20, 30) if n <= deep]),
        "sites": (filtered, [n for n in (3, 6, 12, 30, 60, 90) if n <= len(sites)]),
        "rank": (rank, [n for n in (8, 16, 32, 64, 128, 256) if n <= narrow]),
    }
    seconds = {}
    for axis, (make, sizes) in axes.items():
        make(sizes[0])()
        seconds[axis] = [min(timed(side) for _ in range(repeats)) for side in map(make, sizes)]
        slope = _slope(sizes, seconds[axis])
        yield at_most(
            f"cost against {axis}: slope on logarithmic axes", slope, SLOPE, goal="linear or better (<= 1.1)",
            note=f"{sizes[0]} to {sizes[-1]}; best of {repeats}",
            numbers=dict(zip(map(str, sizes), seconds[axis], strict=True)),
        )  # fmt: skip
    if not bench.small:
        _draw({a: sizes for a, (_, sizes) in axes.items()}, seconds)


def _decade(start: int, times: int) -> list[int]:
    return [start * n for n in (1, 2, 5, 10) if n <= max(times, 2)]


def _slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _draw(sizes: dict[str, list[int]], seconds: dict[str, list[float]]) -> None:
    """Ticks where it was measured; the dotted line is linear growth from the first point on."""
    from matplotlib.ticker import NullLocator

    from analysis import style

    figure, panels = style.grid(len(sizes), len(sizes), 2.8, 2.9)
    for axes, axis in zip(panels, sizes, strict=True):
        n, t = np.array(sizes[axis]), np.array(seconds[axis])
        axes.loglog(n, t, "o-", color=style.INK, markersize=5)
        axes.loglog(n, t[0] * n / n[0], ":", color=style.MUTED)
        style.title(axes, axis, f"slope {_slope(n, t):.2f}; 1 is linear")
        ticks = [k for k in (0.03, 0.1, 0.3, 1, 3, 10, 30) if t.min() / 2 < k < max(t.max(), t[0] * n[-1] / n[0]) * 1.5]
        axes.set_yticks(ticks, [f"{k:g} s" for k in ticks])
        shown = n[:: 2 if len(n) > 5 else 1]
        axes.set_xticks(shown, [f"{k:,}" for k in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
    figure.savefig(results.PAGE.with_name(results.FIGURE), dpi=130)
