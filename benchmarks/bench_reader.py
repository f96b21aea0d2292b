"""A look at held-out items: scores by the plain model with what rows share read once, beside the bridge's own pass."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Bench, Row, alternate, check_same, peak_memory
from hooklearn import forward
from hooklearn.data import ROW, batches
from hooklearn.interventions import at_every_layer

TOLERANCE = 1e-3
"""Relative distance of summed log-probabilities in float32: the two sides attend in different orders."""


def rows(bench: Bench) -> Iterator[Row]:
    sequences = [*bench.encoded("forget", 32), *bench.encoded("retain", 32)]  # two completions to every prompt
    tokens = forward.count_tokens(batches(sequences, max_tokens=2048, share=ROW))

    def ours(precision: forward.Precision = "auto") -> dict[str, object]:
        return {"scores": forward.sequence_logprobs(bench.model, sequences, precision=precision)[:, 0]}

    def bridge(precision: forward.Precision = "auto") -> dict[str, object]:
        with at_every_layer(bench.model, lambda layer, states: None):  # noqa: ARG005 (someone who looks on)
            return ours(precision)

    far = check_same("scores", ours("float32"), bridge("float32"), TOLERANCE)
    with peak_memory(bench.device) as peak:
        ours()
    times = alternate({"ours": ours, "bridge": bridge}, rounds=bench.rounds)
    yield Row(
        "a look at 64 completions against the bridge's own pass", "", times.ratio("bridge", "ours"), None, unit="x",
        note=f"{tokens} tokens, two completions to each of 32 prompts; the other side is what a hooked model gets",
        numbers=times.numbers(tokens) | {
            "largest relative distance of a score, float32": far, "peak bytes: ours": peak[0],
        },
    )  # fmt: skip
