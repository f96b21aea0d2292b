"""Streaming moments of row vectors: exact, mergeable, constant in memory. Covariance and curvature are made of them.

Sums are float32 or better, whatever the rows are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import parallel
from hooklearn.types import NumericalError


@dataclass(frozen=True)
class Moments:
    """n, sum and un-centred second moment of row vectors; exact, streaming and mergeable.

    Chan, Golub & LeVeque (1983) for the merge; un-centred sums need no correction term. ``second`` is a sum,
    divided by n only when asked for.
    """

    n: int
    sum: Float[Tensor, " d"]
    second: Float[Tensor, "d d"]

    @staticmethod
    def zero(d: int, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Moments:
        return Moments(
            0,
            torch.zeros(d, dtype=dtype, device=device),
            torch.zeros(d, d, dtype=dtype, device=device),
        )

    @staticmethod
    def of(*parts: Float[Tensor, "token d"]) -> Moments:
        """The moments of rows in memory, in float32 or better."""
        dtype = torch.promote_types(parts[0].dtype, torch.float32)
        sums = MomentSum(parts[0].shape[1], dtype=dtype, device=parts[0].device)
        for rows in parts:
            sums.add(rows)
        return sums.moments()

    def merge(self, other: Moments) -> Moments:
        """The moments of the concatenated data."""
        return Moments(self.n + other.n, self.sum + other.sum, self.second + other.second)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        return self.sum / max(1, self.n)

    def mean_second(self) -> Float[Tensor, "d d"]:
        """E[x x^T]."""
        return self.second / max(1, self.n)

    def covariance(self) -> Float[Tensor, "d d"]:
        mean = self.mean.double()
        return (self.mean_second().double() - torch.outer(mean, mean)).to(self.second.dtype)

    def energy(self, basis: Float[Tensor, "d rank"]) -> float:
        """Share of E||x||^2 that lies in the span of an orthonormal basis, in [0, 1]."""
        total = float(self.second.diagonal().double().sum())
        if total <= 0:
            return float("nan")
        inside = (basis.to(self.second) * (self.second @ basis.to(self.second))).double().sum()
        return float(inside) / total


def add_product(
    into: Float[Tensor, "d k"], a: Float[Tensor, "token d"], b: Float[Tensor, "token k"]
) -> Float[Tensor, "d k"]:
    """``into += a^T b`` in place, summed in the precision of ``into`` whatever the rows are.

    The product of two bfloat16 numbers fits into float32 without rounding, so for bfloat16 rows the processor's (or the
    card's) bfloat16 unit gives the float32 answer at several times its speed; torch lets it when told ``medium``.
    """
    with _exact_products(a, b):
        return into.addmm_(a.T.to(into), b.to(into))


@contextlib.contextmanager
def _exact_products(*rows: Tensor) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if all(r.dtype is torch.bfloat16 for r in rows) else before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


BLOCK = 256
"""Rows of a second moment that are formed at a time, up to the diagonal. Wider blocks compute more that is thrown away,
narrower ones are slow products (1536 wide, 2048 tokens, float32: 21 ms, against 34 for the whole square)."""


class MomentSum:
    """The streaming side of :class:`Moments`: rows are added batch by batch in one matrix's memory.

    ``X^T X`` is symmetric, so blocks of its rows are formed up to the diagonal only: half the arithmetic. float32 sums
    or better. (BLAS has a product for that, and scipy offers it, but its threads go on spinning for some hundredths of
    a second after each call and take torch's cores away.)
    """

    def __init__(self, d: int, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
        self.n = 0
        self._sum = torch.zeros(d, dtype=dtype, device=device)
        self._second = torch.zeros(d, d, dtype=dtype, device=device)

    def add(self, rows: Float[Tensor, "token d"], zeros: int = 0) -> None:
        """``zeros``: rows of zeros that were seen as well."""
        self.n += rows.shape[0] + zeros
        if not rows.shape[0]:
            return
        given, rows = rows, rows.to(self._second)
        with _exact_products(given):
            for start in range(0, len(self._second), BLOCK):
                end = start + BLOCK
                self._second[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end])
        self._sum += rows.sum(0)

    def everywhere(self) -> MomentSum:
        """With what the other processes added to theirs (:mod:`hooklearn.parallel`); each of them has to ask."""
        self.n = int(parallel.total(self.n))
        parallel.add_(self._sum)
        parallel.add_(self._second)
        return self

    def moments(self, what: str = "rows") -> Moments:
        """What was added so far; the matrix is the sum's own, so what is added later is in it as well.

        Raises:
            NumericalError: it is not finite; ``what`` says whose it is.
        """
        second = self._second
        # a NaN or an overflow anywhere in a row is one on the diagonal
        if not bool(self._sum.isfinite().all() and second.diagonal().isfinite().all()):
            raise NumericalError(f"moments of {what} are not finite: NaN, infinity, or squares that overflow")
        second += second.tril_().tril(-1).T  # in place: sums of all sites are most of an edit's memory
        return Moments(self.n, self._sum, second)
