"""Capture beside plain Hugging Face (forward, backward, ``p.grad``) and beside TransformerLens' hooks and cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.harness import Bench, Row, alternate, at_most, check_same, peak_memory
from benchmarks.peers import huggingface, transformerlens
from hooklearn import models
from hooklearn.data import batches
from hooklearn.locate.capture import tapes, weight_gradients

TOLERANCE = 1e-3
"""Relative distance of a site's gradient in float32, on two of the sequences: the two sides sum in different orders."""


def rows(bench: Bench) -> Iterator[Row]:
    sequences = bench.cut(16, 64, 24)
    stream, padded = batches(sequences), huggingface.padded(sequences, 16)
    model, sites, linears = bench.model, bench.sites, bench.linears(bench.plain)
    tokens = sum(map(len, sequences))

    def ours() -> dict:
        return weight_gradients(model, stream, sites)[0]

    def hooks_only() -> None:
        for _, taped in tapes(model, stream, sites):
            for tape in taped.values():
                tape.x.sum(0), tape.g.sum(0)  # type: ignore[union-attr]

    def plain() -> dict:
        return huggingface.gradients(bench.plain, linears, padded, bench.autocast)

    def plain_all() -> dict:
        return huggingface.gradients(bench.plain, linears, padded, bench.autocast, all_weights=True)

    def lens() -> None:
        transformerlens.cache(model, [models.hook_names(s) for s in sites], padded, bench.autocast)

    some = sequences[:2]
    far = check_same(
        "weight gradients",
        weight_gradients(model, batches(some), sites, precision="float32")[0],
        huggingface.gradients(bench.plain, linears, huggingface.padded(some, 2), contextlib.nullcontext),
        TOLERANCE,
    )
    with peak_memory(bench.device) as peak:
        ours()
    with peak_memory(bench.device) as peak_plain:
        plain()
    times = alternate(
        {"ours": ours, "ours, no weight gradients": hooks_only, "plain": plain, "plain, all weights": plain_all,
         "TransformerLens": lens},
        rounds=bench.rounds,
    )  # fmt: skip
    numbers = times.numbers(tokens) | {
        "largest relative distance of a gradient, float32": far,
        "peak bytes: ours": peak[0],
        "peak bytes: plain": peak_plain[0],
    }
    how = f"16 x 64 tokens, 24 of each carry loss; {str(bench.dtype).removeprefix('torch.')} on both sides"
    yield at_most(
        "capture of x and g, and the weight gradients, against plain HF to the same gradients",
        times.ratio("ours", "plain"), 1.10, unit="x", note=f"{how}; HF computes gradients of the MLP weights only",
        numbers=numbers,
    )  # fmt: skip
    yield at_most(
        "the same without weight gradients (x, g and their sums)",
        times.ratio("ours, no weight gradients", "plain"), 1.0, unit="x", note=how,
    )  # fmt: skip
    yield Row(
        "capture against TransformerLens' hooks and cache", "", times.ratio("ours, no weight gradients",
        "TransformerLens"), None, unit="x", note=f"{how}; as its documentation has it, all logits, all gradients",
    )  # fmt: skip
