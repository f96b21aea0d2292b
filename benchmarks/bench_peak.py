"""How near forward and backward come to the fastest this machine multiplies matrices, at that moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness import Bench, Row, Side, Spread, alternate, at_least, gemm, profiled, share_of_products
from hooklearn import models
from hooklearn.data import ROW, TokenBatch, batches
from hooklearn.locate.capture import tapes


def executed(model: Any, stream: Sequence[TokenBatch]) -> float:
    """FLOPs of a frozen forward and backward pass, as executed.

    ``4 P_l t`` (P_l: parameters of the blocks' linear maps, t tokens with padding; half forward, half for the gradient
    of the inputs), ``12 b L^2 d`` a layer for attention (b rows of L tokens; 4 forward, 8 backward, nothing is saved by
    causality), ``4 V d k`` for the unembedding of the k positions that carry loss. Norms, activations and casts: none.
    """
    cfg = model.cfg
    linear = sum(s.d_in * s.d_out for s in models.sites(model, "all"))
    width = cfg.n_heads * cfg.d_head
    total = 0.0
    for batch in stream:
        b, length = batch.ids.shape
        total += 4.0 * linear * b * length + 12.0 * cfg.n_layers * b * length**2 * width
        total += 4.0 * cfg.d_vocab * cfg.d_model * int(batch.labels.sum())
    return total


def where_time_goes(work: Side, device: str, share: float, top: int = 8) -> dict[str, float]:
    """Per cent of the time of one pass by operation, the largest first: what is no product is bound by memory.

    Args:
        share: of the peak, in per cent, that the whole pass reaches.
    """
    spent = profiled(work, device)
    whole, products = sum(spent.values()), share_of_products(spent)
    largest = sorted(spent.items(), key=lambda item: -item[1])[:top]
    return {f"% of the pass: {name}": 100 * t / whole for name, t in largest} | {
        "% of the pass: matrix products in all": products,
        "% of the peak, were all but products free (calculated)": 100 * share / products,
    }  # fmt: skip


def rows(bench: Bench) -> Iterator[Row]:
    size = 1024 if bench.quick or bench.small else 2048
    stream = batches(bench.cut(size // 64, 64, 24), max_tokens=size, share=ROW)
    flops = executed(bench.model, stream)
    multiply, each = gemm(bench.device, bench.dtype)

    def work() -> None:
        for _ in tapes(bench.model, stream, bench.sites):
            pass

    times = alternate({"work": work, "gemm": multiply}, rounds=2 * bench.rounds)
    pairs = zip(times.seconds["work"], times.seconds["gemm"], strict=True)
    share = Spread.of([100 * (flops / w) / (each / g) for w, g in pairs])
    tokens = sum(b.n_tokens for b in stream)
    yield at_least(
        "forward + backward, packed, share of the GEMM peak", share, 60.0, unit="%",
        note=f"{tokens} tokens in rows of {stream[0].ids.shape[1]}, 24 of 64 carry loss; frozen weights; "
        f"{str(bench.dtype).removeprefix('torch.')}; FLOPs by the formula in docs/performance.md",
        numbers=times.numbers()
        | {"tokens/s": tokens / times.of("work").median, "FLOP per token": flops / tokens,
           "GEMM FLOP/s": each / times.of("gemm").median}
        | where_time_goes(work, bench.device, share.median),
    )  # fmt: skip
