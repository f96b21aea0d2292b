"""Second moments of both sides of every site, beside the forward and backward pass that they ride on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.harness import Bench, Row, Spread, Stages, alternate, at_most, check_same, peak_memory, timed
from hooklearn.data import batches
from hooklearn.locate.capture import tapes
from hooklearn.locate.moments import site_moments
from hooklearn.moments import Moments, MomentSum


def rows(bench: Bench) -> Iterator[Row]:
    size = 1024 if bench.quick or bench.small else 2048
    stream = batches(bench.cut(size // 64, 64, 63), max_tokens=1024)

    def passes() -> None:
        for _ in tapes(bench.model, stream, bench.sites, labels="sampled"):
            pass

    def moments() -> dict:
        return site_moments(bench.model, stream, bench.sites, labels="sampled")

    far = _check(bench, stream, moments())
    with peak_memory(bench.device) as peak:
        moments()
    times = alternate({"with moments": moments, "passes": passes}, rounds=bench.rounds)
    extra = [a / b - 1 for a, b in zip(times.seconds["with moments"], times.seconds["passes"], strict=True)]
    tokens, stages = sum(b.n_tokens for b in stream), Stages()
    with stages.watching({"sums": [(MomentSum, "add")]}):
        whole = timed(moments)
    yield at_most(
        "second moments of x and g at all MLP sites, against the forward + backward they ride on",
        Spread.of(extra), 0.8, unit="x", note=f"{tokens} tokens, all carry loss, labels sampled (K-FAC)",
        numbers=times.numbers(tokens) | {"largest distance from float64": far, "peak bytes": peak[0]}
        | stages.numbers("once more", whole) | _products(bench),
    )  # fmt: skip


def _products(bench: Bench) -> dict[str, float]:
    """Seconds of one ``X^T X`` of the widest side: as sums form it, as a whole, and with a bfloat16 result, which would
    lose the sums."""
    rows = torch.ones(512, max(s.d_in for s in bench.sites), device=bench.device)
    half, into = rows.bfloat16(), MomentSum(rows.shape[1], device=bench.device)
    given = half if bench.dtype is torch.bfloat16 else rows
    sides = {
        "X^T X of 512 rows, up to the diagonal": lambda: into.add(given),
        "X^T X of 512 rows, whole": lambda: rows.T @ rows,
        "X^T X of 512 rows, in bfloat16": lambda: half.T @ half,
    }
    return alternate(sides, rounds=4 * bench.rounds).numbers()


def _check(bench: Bench, stream: list, found: dict) -> float:
    """One site against sums in float64 of what its layer multiplied with."""
    site = bench.sites[-1]
    taped = [t[site.name] for _, t in tapes(bench.model, stream, [site], labels="sampled")]
    whole = Moments.of(*[t.x.double() for t in taped])
    ours = {"x": found[site.name].x.second}
    return check_same("moments of x", ours, {"x": whole.second.to(torch.float64)}, 1e-4)
