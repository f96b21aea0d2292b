"""Fitters: which directions of a space distinguish what forget and retain data showed there.

A fitter is a function of what the two classes showed at one side of one site. It knows neither models nor texts, and it
is judged elsewhere (``locate.fit``), on groups that it never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import linalg
from hooklearn.moments import Moments
from hooklearn.plugins import Shelf, summary
from hooklearn.types import NAN, InputError

DAMPING = 0.01


@dataclass(frozen=True)
class Seen:
    """What one class showed at one side of one site, over the groups that are fitted on."""

    moments: Moments
    """Per scored token: its x, or the g of the position that predicts it."""
    items: Float[Tensor, "item d"]
    """The mean over the tokens of each text."""


class Found(NamedTuple):
    vectors: Float[Tensor, "d rank"]
    """Best first; they need not be orthogonal, and may be fewer than asked for."""
    values: Float[Tensor, " rank"]
    condition: float = NAN
    """Condition number of the eigenproblem that was solved, if one with a metric was."""


Fit = Callable[[Seen, Seen, int, int], tuple[Tensor, Tensor] | Found]
"""(forget, retain, rank, seed) -> vectors and values. Equal arguments give equal results."""


@dataclass(frozen=True)
class Fitter:
    """A way to find directions, with what it is and where it comes from."""

    name: str
    summary: str
    source: str
    fit: Fit
    nested: bool = False
    """The vectors of a lower rank are the first of those of a higher one, whatever the seed."""

    def vectors(self, forget: Seen, retain: Seen, rank: int, seed: int, where: str) -> Found:
        """Raises InputError where it found nothing, or what is no basis of this space."""
        given: Any = self.fit(forget, retain, rank, seed)
        if not (isinstance(given, tuple) and len(given) in (2, 3) and all(isinstance(t, Tensor) for t in given[:2])):
            raise InputError(f"fitter {self.name!r} at {where}: gave {given!r:.60}, not vectors and values")
        found = Found(*given)
        d, shape = forget.items.shape[1], tuple(found.vectors.shape)
        if len(shape) != 2 or shape[0] != d or not 1 <= shape[1] <= rank or tuple(found.values.shape) != shape[1:]:
            raise InputError(
                f"fitter {self.name!r} at {where}: gave vectors {list(shape)} and values {list(found.values.shape)}; "
                f"expected [{d}, k] and [k], k from 1 to {rank}"
            )
        if not (bool(found.vectors.isfinite().all()) and bool(found.values.isfinite().all())):
            raise InputError(f"fitter {self.name!r} at {where}: gave NaN or infinity")
        return found


def _pca(forget: Seen, retain: Seen, rank: int, seed: int) -> Found:  # noqa: ARG001 (one interface)
    second = forget.moments.mean_second()
    vectors, values = linalg.pca(second, rank)
    k = linalg.numerical_rank(values, (len(second), len(second)))  # beyond it any direction would do
    return Found(vectors[:, :k], values[:k])


def _contrast(forget: Seen, retain: Seen, rank: int, seed: int) -> Found:  # noqa: ARG001
    metric = linalg.damped(retain.moments.mean_second(), DAMPING)
    vectors, values, condition = linalg.generalised_eigh(forget.moments.mean_second(), metric, rank)
    k = int((values > torch.finfo(values.dtype).eps * values[:1]).sum())  # beyond it any direction would do
    return Found(vectors[:, :k], values[:k], condition)


def _mean_diff(forget: Seen, retain: Seen, rank: int, seed: int) -> Found:  # noqa: ARG001
    difference = (forget.moments.mean - retain.moments.mean)[:, None]
    return Found(difference, difference.norm()[None])


def _leace(forget: Seen, retain: Seen, rank: int, seed: int) -> Found:  # noqa: ARG001
    """The directions that LEACE reads, ``W^T U``, in the covariance of all tokens.

    ``P = I - W^+ U U^T W`` erases the label from x. An update that reads only ``W^T U`` acts on exactly what P takes
    away (``dW P = 0``): it changes nothing but by what the label can linearly be told by. The direction that is erased,
    ``W^+ U``, is for two classes the difference of their means (``mean_diff``): an update that reads it answers to all
    else that varies along it too. Its value is the multiple correlation of label and x. The covariance is shrunk, as
    the authors' package does by default: with few tokens for its width the inverse of the plain one is mostly noise. P
    erases all of the label nevertheless.
    """
    bad, good = forget.moments, retain.moments
    both = bad.merge(good)
    # the label has variance 1: what counts as none must not depend on how many tokens either class has
    cross = math.sqrt(bad.n * good.n) / both.n * (bad.mean.double() - good.mean.double())
    read, _, values = linalg.leace(linalg.shrunk(both.covariance(), both.n), cross[:, None])
    if not len(values):
        raise InputError(
            f"leace: the classes cannot be told apart by any direction ({bad.n} forget and {good.n} retain tokens)"
        )
    return Found(linalg.sign_fixed(read), values)


def _random(forget: Seen, retain: Seen, rank: int, seed: int) -> Found:  # noqa: ARG001
    return Found(linalg.random_basis(forget.items.shape[1], rank, seed), torch.ones(rank))


def _probe(forget: Seen, retain: Seen, rank: int, seed: int) -> Found:  # noqa: ARG001
    """Logistic directions; each further one is fitted after the former are projected out (INLP)."""
    found: list[Tensor] = []
    a, b = forget.items.double(), retain.items.double()
    for _ in range(rank):
        rows, truth = stacked(a, b)
        pipeline = logistic(rows, truth)
        scale = pipeline[0].scale_
        direction = torch.from_numpy(pipeline[-1].coef_[0] / scale)
        # The scaler takes it out of what is left to look in; on rows that lie there the part outside says nothing.
        basis = torch.stack(found, 1) if found else direction.new_zeros(len(direction), 0)
        for _ in range(2):  # in floating point once is not enough
            direction = direction - basis @ (basis.T @ direction)
        size = direction.norm()
        if size < 1e-12:
            break
        direction = direction / size
        found.append(direction)
        a, b = a - torch.outer(a @ direction, direction), b - torch.outer(b @ direction, direction)
    if not found:
        raise InputError("probe: the classes cannot be told apart by any direction")
    vectors = torch.stack(found, 1).float()
    return Found(vectors, torch.arange(len(found), 0, -1).float())


def stacked(forget: Tensor, retain: Tensor) -> tuple[np.ndarray, np.ndarray]:
    rows = torch.cat([forget, retain]).double().numpy()
    return rows, np.r_[np.ones(len(forget)), np.zeros(len(retain))]


def logistic(rows: np.ndarray, truth: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, truth)


FITTERS: dict[str, Fitter] = {
    f.name: f
    for f in (
        Fitter(
            "pca", "top eigenvectors of the forget moments (high variance, not yet selective)",
            "Pearson 1901; RepSelect's components", _pca, nested=True,
        ),
        Fitter(
            "contrast", "generalised eigenvectors: most forget energy per unit of retain energy",
            "generalised eigenproblem; contrastive PCA (Abid et al. 2018) without its free parameter", _contrast,
            nested=True,
        ),
        Fitter(
            "mean_diff", "difference of class means, rank 1", "Marks & Tegmark 2023, arXiv 2310.06824", _mean_diff
        ),
        Fitter(
            "leace", "what least-squares concept erasure reads: by it the label can linearly be told, rank 1",
            "LEACE (Belrose et al. 2023, arXiv 2306.03819)", _leace,
        ),
        Fitter(
            "probe", "logistic regression; further ranks by iterative null-space projection",
            "INLP (Ravfogel et al. 2020, arXiv 2004.07667)", _probe,
        ),
        Fitter(
            "random", "a random subspace: the null that every other fitter must beat", "Haar measure", _random
        ),
    )
}  # fmt: skip


def _accept(name: str, found: Any, package: str) -> Fitter:
    return Fitter(name, summary(found), package, found)


EVERY_FITTER: Shelf[Fitter] = Shelf("fitter", "hooklearn.fitters", FITTERS, _accept)
"""These, and those of other packages."""
