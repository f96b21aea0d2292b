"""Peak memory of an edit above the model, and what ten times the tokens, or fewer sites at a time, do to it."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Bench, Row, at_most, peak_memory
from hooklearn.data import ROW, batches
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import Method, Natural, Problem, RepSelect, run_edit
from hooklearn.locate.capture import tapes, weight_gradients
from hooklearn.types import Budget

BATCH = 512
FEW = 30
"""Sites whose curvature is held at a time."""


def rows(bench: Bench) -> Iterator[Row]:
    model, sites = bench.model, bench.sites
    edited = 4.0 * sum(s.d_in * s.d_out for s in sites)
    forget, retain, prose = (bench.corpus(r, 4) for r in ("forget", "retain", "reference"))
    disruption = bench.corpus("disruption", 4)
    few = min(FEW, len(sites) // 3)
    Problem(model, sites, forget, max_tokens=BATCH).gradient("forget")  # what is allocated once and for all

    def passes() -> None:
        for _ in tapes(model, Problem(model, sites, prose, max_tokens=BATCH).stream("forget"), sites):
            pass

    batch = _peak(bench, passes)

    def edit(method: Method, site_batch: int | None = None) -> float:
        problem = Problem(model, sites, forget, retain, prose, keep=False, max_tokens=BATCH, site_batch=site_batch)
        return _peak(bench, lambda: run_edit(problem, method, DisruptionMeter(model, disruption), Budget(0.01)))

    numbers = {"edited sites, bytes": edited, "one batch, bytes": batch}
    for method, site_batch in ((RepSelect(rank=64), None), (Natural(forget_weight=0.3, damping=1.0), few)):
        held = 0.0 if site_batch is None else _curvature(sites[:site_batch])
        peak = edit(method, site_batch)
        label = method.name + ("" if site_batch is None else f", {site_batch} sites at a time")
        yield at_most(
            f"peak memory of an edit above the model ({label}), in edited sites", (peak - batch - held) / edited, 3.5,
            goal="<= 1.5 + one optimizer (2)",
            note="less one batch" + ("" if site_batch is None else " and the second moments of one site batch")
            + f"; sites {edited / 2**20:.0f} MiB, batch {batch / 2**20:.0f} MiB; optimizer: Adam's moments of them",
            numbers=numbers | {"peak bytes above the model": peak, "second moments, bytes": held},
        )  # fmt: skip
    if not bench.quick:
        everything = edit(Natural(forget_weight=0.3, damping=1.0))
        yield Row(
            f"the same, natural, all {len(sites)} sites at once", "", (everything - batch) / edited, None,
            note="second moments of all sites included", numbers={"peak bytes above the model": everything},
        )  # fmt: skip
    # the first finds memory that edits have just given back, and is not counted
    _, once, tenfold = (_streamed(bench, n) for n in (1, 1, 10))
    yield at_most(
        "ten times the tokens: peak memory of a gradient", tenfold / once,
        1.02, unit="x", note=f"the whole process; 1,024 and 10,240 tokens in batches of {BATCH}",
        numbers={"peak bytes of the process: once": once, "peak bytes of the process: tenfold": tenfold},
    )  # fmt: skip


def _curvature(sites: list) -> float:
    """Bytes of the second moments: one a site and side, gate and up sharing their inputs."""
    inputs = {(s.layer, s.module if s.module == "mlp.out" else "shared"): s.d_in for s in sites}
    return 4.0 * (sum(d * d for d in inputs.values()) + sum(s.d_out**2 for s in sites))


def _streamed(bench: Bench, times: int) -> float:
    stream = batches(bench.cut(16 * times, 64, 24), max_tokens=BATCH, share=ROW)
    with peak_memory(bench.device) as found:
        weight_gradients(bench.model, stream, bench.sites)
    return float(found[1])


def _peak(bench: Bench, work) -> float:  # type: ignore[no-untyped-def]
    with peak_memory(bench.device) as found:
        work()
    return float(found[0])
