"""A fitter: a function of what the two classes showed at one place. Vectors are columns, best first."""

from __future__ import annotations

import torch
from torch import Tensor

from hooklearn import linalg
from hooklearn.locate.fitters import Seen


def whitened_mean(forget: Seen, retain: Seen, rank: int, seed: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Difference of class means, measured in units of what retain text does (rank 1)."""
    metric = linalg.damped(retain.moments.covariance(), 0.01)
    direction = torch.linalg.solve(metric, forget.moments.mean - retain.moments.mean)[:, None]
    return direction, direction.norm()[None]
