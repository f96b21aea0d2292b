"""Fitting beside scikit-learn: exact streaming moments and their eigenvectors, against IncrementalPCA."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.harness import Bench, Row, alternate
from benchmarks.peers.scikit import incremental_pca
from hooklearn import linalg
from hooklearn.moments import MomentSum

D, RANK, BATCH = 1536, 32, 1024


def rows(bench: Bench) -> Iterator[Row]:
    d = 128 if bench.small else D
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, d + 1) ** -0.5
    data = [torch.randn(BATCH, d, generator=generator) * spread for _ in range(4 if bench.quick else 8)]
    found = {}

    def ours() -> None:
        sums = MomentSum(d)
        for rows in data:
            sums.add(rows)
        found["ours"] = linalg.pca(sums.moments().covariance(), RANK)[0]

    def scikit() -> None:
        found["scikit"] = incremental_pca(data, RANK)

    times = alternate({"ours": ours, "IncrementalPCA": scikit}, rounds=bench.rounds)
    exact = linalg.pca(torch.cat(data).T.double().cov(), RANK)[0]
    cosines = {name: float(linalg.principal_cosines(basis, exact).min()) for name, basis in found.items()}
    yield Row(
        "PCA of streamed activations against scikit-learn's IncrementalPCA", "", times.ratio("IncrementalPCA", "ours"),
        None, unit="x",
        note=f"{len(data)} x {BATCH} rows of {d}, rank {RANK}; smallest cosine with the PCA of all rows: ours "
        f"{cosines['ours']:.4f}, theirs {cosines['scikit']:.4f}",
        numbers=times.numbers(BATCH * len(data)) | {f"smallest cosine: {k}": v for k, v in cosines.items()},
    )  # fmt: skip
