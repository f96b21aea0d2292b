"""A symmetric matrix as its first eigenpairs and the mean of all others: what a curvature factor can be sketched as."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import linalg
from hooklearn.types import InputError


@dataclass(frozen=True)
class Sketch:
    """``V diag(values) V^T + rest (I - V V^T)``: ``rank * d`` numbers in place of ``d * d``.

    Any power of it is the same with other values, so nothing of size d x d is ever inverted or factored again.

    Examples:
        >>> sketch = Sketch.of(torch.diag(torch.tensor([8.0, 3.0, 1.0])), rank=1)
        >>> sketch.values, sketch.rest
        (tensor([8.]), tensor(2.))
        >>> sketch.times(torch.ones(3, 1), power=-1).T
        tensor([[0.1250, 0.5000, 0.5000]])
    """

    vectors: Float[Tensor, "d rank"]
    """Orthonormal."""
    values: Float[Tensor, " rank"]
    """Largest first, 0 or more."""
    rest: Float[Tensor, ""]
    """The mean of the other eigenvalues, so that the trace is kept; the least of all where there are no others."""

    @staticmethod
    def of(second: Float[Tensor, "d d"], rank: int) -> Sketch:
        """The best of this rank in the Frobenius norm, of a positive semi-definite matrix; found in float64. A rank
        above d is d.

        Raises:
            InputError: the rank is below 1.
        """
        if rank < 1:
            raise InputError(f"the rank of a sketch must be 1 or more, got {rank}")
        wide, d = second.double(), len(second)
        vectors, values = linalg.top_eigh(wide, min(rank, d))
        values = values.clamp_min(0)  # below it is rounding
        others = d - len(values)
        rest = ((wide.diagonal().sum() - values.sum()) / others).clamp_min(0) if others else values[-1]
        return Sketch(vectors.to(second), values.to(second), rest.to(second))

    def damped(self, damping: float) -> Sketch:
        """With ``damping * tr / d`` added to all eigenvalues, as in :func:`hooklearn.linalg.damped`."""
        d, rank = self.vectors.shape
        level = damping * (self.values.sum() + (d - rank) * self.rest) / d
        level = level.clamp_min(torch.finfo(level.dtype).tiny)
        return Sketch(self.vectors, self.values + level, self.rest + level)

    def times(self, rows: Float[Tensor, "d k"], *, power: float = 1.0) -> Float[Tensor, "d k"]:
        """``M^power`` times a matrix: -1 solves, -1/2 is the symmetric half of that. Below 0 the sketch must be
        positive (damp it first)."""
        others = self.rest**power
        inside = (self.values**power - others)[:, None] * (self.vectors.T @ rows)
        return (others * rows).addmm_(self.vectors, inside)
