"""Fine-tuning as the relearning attack does it, beside Hugging Face's Trainer and a loop written by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import torch

from benchmarks.harness import (
    Bench,
    Row,
    Side,
    Stages,
    alternate,
    at_least,
    at_most,
    peak_memory,
    profiled,
    share_of_products,
    timed,
)
from benchmarks.peers import huggingface
from hooklearn import editing, models
from hooklearn.data import ROW, cycle
from hooklearn.train import fit

LR = 3e-5


def rows(bench: Bench) -> Iterator[Row]:
    sequences = bench.encoded("attack_train", 8 if bench.quick else 16, end=True)
    size = 4  # sequences a step, the same on every side
    width = max(map(len, sequences))
    padded = huggingface.padded(sequences, size)
    before = {n: p.detach().clone() for n, p in bench.plain.named_parameters()}

    def plainly(work) -> None:  # type: ignore[no-untyped-def]
        work()
        with torch.no_grad():
            for n, p in bench.plain.named_parameters():
                p.copy_(before[n])

    def ours() -> None:
        with editing.restored(bench.model):
            params = models.all_parameters(bench.model)
            rule = torch.optim.Adam(params, lr=LR, fused=True)
            stream = cycle(sequences, max_tokens=size * width, seed=0, epochs=1, share=ROW)
            fit(bench.model, stream, rule=rule, max_norm=1.0, params=params)

    def trainer() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bf16 = bench.dtype is torch.bfloat16
            loop = huggingface.trainer(
                bench.plain, sequences, size=size, epochs=1, learning_rate=LR, folder=folder, bf16=bf16
            )
            bench.plain.requires_grad_(True)
            plainly(loop.train)

    def by_hand(kept_only: bool) -> None:
        plainly(lambda: huggingface.train(bench.plain, padded, bench.autocast, learning_rate=LR, kept_only=kept_only))

    sides = {
        "ours": ours, "Trainer": trainer, "by hand": lambda: by_hand(False),
        "by hand, labelled logits": lambda: by_hand(True),
    }  # fmt: skip
    with peak_memory(bench.device) as peak:
        ours()
    times = alternate(sides, rounds=2 if bench.quick else 3)
    tokens = sum(map(len, sequences))
    note = f"{len(sequences)} demonstrations, {size} a step, {tokens} tokens, all weights, Adam; weights put back after"
    yield at_least(
        "relearning attack per token against HF Trainer", times.ratio("Trainer", "ours"), 2.0, unit="x", note=note,
        numbers=times.numbers(tokens) | {"peak bytes: ours": peak[0]}
        | _profile("ours", ours, bench.device) | _profile("Trainer", trainer, bench.device),
    )  # fmt: skip
    yield at_most(
        "relearning attack per token against a minimal loop by hand", times.ratio("ours", "by hand"), 1.05, unit="x",
        note=f"{note}; the loop has logits at all positions, as ``model(**batch).loss`` does",
    )  # fmt: skip
    yield Row(
        "the same, the loop written to make only labelled logits", "", times.ratio("ours", "by hand, labelled logits"),
        None, unit="x", note=note,
    )  # fmt: skip


def _profile(side: str, work: Side, device: str) -> dict[str, float]:
    """Where the seconds of a round go: to the optimizer, and under torch's profiler to matrix products."""
    stages, adam = Stages(), [(torch.optim.Adam, "step"), (torch.optim.AdamW, "step")]
    with stages.watching({"optimizer": adam}):
        whole = timed(work)
    return stages.numbers(f"{side} once more", whole) | {
        f"% of the time, under a profiler: {side}, matrix products": share_of_products(profiled(work, device))
    }
