"""One-shot updates that keep off what the model shares: whitened, low-curvature and subspace-projected gradients.

Each is the summed forget gradient under one linear map per site; no step depends on another, so each is a ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooklearn import linalg
from hooklearn.edit.method import CURVATURE, Method, Problem, Updates, check_read
from hooklearn.linalg import Sides
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.moments import Moments
from hooklearn.types import InputError, Side, Site

# ---------------------------------------------------------------------------------------- whitened


def threshold(
    singular_values: Float[Tensor, " k"], shape: tuple[int, int], *, rank: int | None = None, share: float = 0.0
) -> float:
    """tau, at a rank or at a quantile of the spectrum (largest first); 0 for a zero matrix.

    The rank is clamped to the numerical rank, and the quantile is of the singular values above rounding: further
    down tau would be noise, and the whole update with it.

    Args:
        rank: ``tau = s_rank``, counted from 1.
        share: without a rank, ``tau`` is this quantile: 0.9 has a tenth of the spectrum above it.
    """
    known = linalg.numerical_rank(singular_values, shape)
    if known == 0:
        return 0.0
    if rank is not None:
        return float(singular_values[min(rank, known) - 1])
    return float(torch.quantile(singular_values[:known], share))


def whitened_svd(update: Float[Tensor, "d_out d_in"], tau: float) -> Float[Tensor, "d_out d_in"]:
    """``U diag(tau^2 s / (s^2 + tau^2)) V^T``: what :func:`hooklearn.linalg.whitened_update` is, factor by factor."""
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    return (u * (tau**2 * s / (s**2 + tau**2))) @ vh


@dataclass(frozen=True, kw_only=True)
class Whitened(Method):
    """The forget gradient whitened by itself, ``tau^2 (G G^T + tau^2 I)^-1 G``: a smooth RepSelect in one solve.

    Singular values far above tau become ``tau^2 / s`` (as soft/both of RepSelect), those far below stay.
    """

    name: ClassVar[str] = "whitened"
    source: ClassVar[str] = "hooklearn; the smooth form of RepSelect (Sondej, Yang & Mahdi 2026, arXiv 2606.17168)"
    rank: int | None = None
    """tau is the singular value at this rank, per site; 128 when neither rank nor quantile is given."""
    quantile: float | None = None
    """Or tau is this quantile of the site's singular values above rounding, in (0, 1)."""
    form: Literal["solve", "svd"] = "solve"
    """``solve``: one Cholesky solve on the smaller side, in float64 (the Gram matrix squares the spectrum: in float32
    the update is 2 % wrong at tau = s_1 / 1000); ``svd``: the same by its factors, float32."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.quantile is not None:
            raise InputError(f"whitened: give rank or quantile, not both (got {self.rank} and {self.quantile})")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"whitened: rank must be 1 or more, got {self.rank}")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise InputError(f"whitened: quantile must be between 0 and 1, got {self.quantile}")

    def path(self, problem: Problem) -> Iterator[Updates]:
        yield {name: self._whitened(update) for name, update in problem.gradient("forget").items()}

    def _whitened(self, update: Tensor) -> Tensor:
        rank = 128 if self.rank is None and self.quantile is None else self.rank
        shape = (update.shape[0], update.shape[1])
        tau = threshold(torch.linalg.svdvals(update), shape, rank=rank, share=self.quantile or 0.0)
        if tau == 0:
            return update  # a zero gradient
        if self.form == "svd":
            return whitened_svd(update, tau)
        return linalg.whitened_update(update.double(), tau).to(update.dtype)


# ------------------------------------------------------------------------------------ low curvature


def high_curvature(
    curvature: Float[Tensor, "d_out d_in"], *, share: float = 0.0, top: int | None = None
) -> Bool[Tensor, "d_out d_in"]:
    """The ``top`` components of highest curvature, or the fewest that hold ``share`` of its sum."""
    flat, order = curvature.flatten().double().sort(descending=True, stable=True)
    if top is None:
        mass = flat.cumsum(0)
        top = int((mass < share * mass[-1]).sum()) + 1
    chosen = torch.zeros(curvature.numel(), dtype=torch.bool, device=curvature.device)
    chosen[order[:top]] = True
    return chosen.view_as(curvature)


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues (0 or more) and vectors of one Kronecker factor."""

    values: Float[Tensor, " d"]
    vectors: Float[Tensor, "d d"]

    @staticmethod
    def of(second: Float[Tensor, "d d"]) -> Eigen:
        values, vectors = torch.linalg.eigh(second.double())
        return Eigen(values.clamp_min(0), vectors)


def low_curvature(
    update: Float[Tensor, "d_out d_in"], x: Eigen, g: Eigen, *, share: float = 0.0, top: int | None = None
) -> Float[Tensor, "d_out d_in"]:
    """The update without its components of high curvature in the eigenbasis of ``B (x) A``.

    Component (i, j) is ``u_i (u_i^T G v_j) v_j^T``, u_i and v_j being eigenvectors of B and A; its curvature is the
    product of their eigenvalues. Exact zero there, exact identity elsewhere: an orthogonal projection of vec(G).
    """
    parts = g.vectors.T @ update.double() @ x.vectors
    parts[high_curvature(torch.outer(g.values, x.values), share=share, top=top)] = 0
    return (g.vectors @ parts @ x.vectors.T).to(update.dtype)


@dataclass(frozen=True, kw_only=True)
class KFAC(Method):
    """Low-curvature edit: the forget gradient without the components that the retain text's loss is curved along.

    Curvature is K-FAC's on retain and reference text (labels sampled from the model), ranked per site. The paper
    projects the *weights* on high curvature to drop what was memorised; here it is the update that keeps off it.
    """

    name: ClassVar[str] = "kfac"
    source: ClassVar[str] = (
        "Merullo et al. 2025, arXiv 2510.24256 (the basis and the mass); CrispEdit, Ikram et al. 2026, arXiv "
        "2602.15823 (projecting an update off it)"
    )
    share: float | None = None
    """Remove the fewest components that hold this share of the curvature, in (0, 1); 0.9 when neither is given."""
    top: int | None = None
    """Or remove exactly this many per site; 0 is gradient ascent up to rounding."""

    def __post_init__(self) -> None:
        if self.share is not None and self.top is not None:
            raise InputError(f"kfac: give share or top, not both (got {self.share} and {self.top})")
        if self.share is not None and not 0 < self.share < 1:
            raise InputError(f"kfac: share must be between 0 and 1, got {self.share}")
        if self.top is not None and self.top < 0:
            raise InputError(f"kfac: top must be 0 or more, got {self.top}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (CURVATURE,)

    def path(self, problem: Problem) -> Iterator[Updates]:
        share = 0.9 if self.share is None else self.share
        out, last = {}, None
        for site in problem.sites:
            if self.top is not None and self.top >= site.d_in * site.d_out:
                raise InputError(f"kfac: top {self.top} leaves nothing of {site.name} ({site.d_out} x {site.d_in})")
        gradient = problem.gradient("forget")
        for name, moments in problem.retain_moments_in_turn():
            one = moments.side("x")
            if bool(gradient[name].any()):  # an expert that forget does not reach either is left alone
                check_read(one, name)
            if last is None or last[0] is not one:  # gate and up share their inputs
                last = (one, Eigen.of(one.mean_second()))
            g = Eigen.of(moments.side("g").mean_second())
            out[name] = low_curvature(gradient[name], last[1], g, share=share, top=self.top)
        yield out


# -------------------------------------------------------------------------------------------- SSPU

OWN = 0.1
"""A forget direction is its own where the sine of its angle to all retain directions is above this (6 degrees)."""


def own_directions(
    forget: Float[Tensor, "d k"], retain: Float[Tensor, "d m"]
) -> tuple[Float[Tensor, "d rank"], Float[Tensor, " rank"]]:
    """What of one span lies off another: an orthonormal basis orthogonal to ``retain``, and its sines.

    The singular values of ``(I - R R^T) F`` are the sines of the principal angles between the two spans; directions
    that they share (sine below :data:`OWN`) would be rounding noise and are left out.
    """
    off = forget.double() - linalg.project(forget.double().T, retain.double(), None).T
    u, sines, _ = torch.linalg.svd(off, full_matrices=False)
    kept = sines > OWN
    return u[:, kept].to(forget.dtype), sines[kept].to(forget.dtype)


@dataclass(frozen=True, kw_only=True)
class SSPU(Method):
    """Subspace-projected unlearning: the forget gradient on forget-relevant directions and off retain-relevant ones.

    The paper's directions are decoder rows of a sparse autoencoder; give such as located subspaces and they are the
    forget-relevant ones. Otherwise both kinds are principal components of the moments. The paper walks an RMU loss
    with a penalty on what leaves the subspace; here the projection is exact, of one summed gradient.
    """

    name: ClassVar[str] = "sspu"
    source: ClassVar[str] = "Wang et al. 2025, arXiv 2505.24428; PCA where no SAE is at hand"
    confines: ClassVar[bool] = True
    forget_rank: int = 64
    """Forget-relevant directions a side."""
    retain_rank: int = 32
    """Retain-relevant directions that are taken out of them."""
    sides: Sides = "x"
    """Project inputs, output gradients or both."""

    def __post_init__(self) -> None:
        if self.forget_rank < 1 or self.retain_rank < 0:
            raise InputError(
                f"sspu: forget_rank must be 1 or more and retain_rank 0 or more, got {self.forget_rank} and "
                f"{self.retain_rank}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return (CURVATURE,)

    def path(self, problem: Problem) -> Iterator[Updates]:
        spaces = self._spaces(problem)
        out = {n: linalg.project(u, *spaces.bases(n)) for n, u in problem.gradient("forget").items()}
        if all(float(u.norm()) == 0 for u in out.values()):
            raise InputError(
                f"sspu: no forget direction is left beside {self.retain_rank} retain directions; lower retain_rank or "
                f"raise forget_rank ({self.forget_rank})"
            )
        yield out

    def promise(self, problem: Problem) -> Subspaces | None:
        return self._spaces(problem)

    def _spaces(self, problem: Problem) -> Subspaces:
        cache = problem.__dict__.setdefault("_sspu", {})
        key = (self.forget_rank, self.retain_rank, self.sides)
        if key not in cache:
            places: dict[str, list[tuple[Site, Side]]] = {}
            for site, side in self._places(problem):
                places.setdefault(site.name, []).append((site, side))
            cache[key] = Subspaces(
                {
                    (name, side): self._space(problem, site, side, retain.side(side))
                    for name, retain in problem.retain_moments_in_turn()
                    for site, side in places.get(name, ())
                }
            )
        return cache[key]

    def _places(self, problem: Problem) -> list[tuple[Site, Side]]:
        if problem.subspaces is not None:
            self.refuse("forget_rank", "sides", why="the forget directions are those of the subspaces that were given")
            return [(s.site, s.side) for s in problem.subspaces.values() if s.site in problem.sites]
        sides: tuple[Side, ...] = ("x", "g") if self.sides == "both" else (self.sides,)
        return [(site, side) for site in problem.sites for side in sides]

    def _space(self, problem: Problem, site: Site, side: Side, retain: Moments) -> Subspace:
        forget = problem.forget_moments[site.name].side(side)
        if forget.n:  # an expert that forget does not reach either is left alone
            check_read(retain, site.name)
        if problem.subspaces is not None:
            relevant = problem.subspaces[site.name, side].basis
        else:
            relevant = _components(forget, self.forget_rank, site, side)
        basis, sines = own_directions(relevant, _components(retain, self.retain_rank, site, side))
        return Subspace.of(site, side, "sspu", basis, sines, moments=(forget, retain))


def _components(moments: Moments, rank: int, site: Site, side: Side) -> Float[Tensor, "d rank"]:
    """Top principal directions of the un-centred moments; no more than there are tokens."""
    if rank > site.width(side):
        raise InputError(f"sspu: rank {rank} at {site.name} ({side}): must be at most {site.width(side)}")
    if rank == 0:
        return torch.zeros(site.width(side), 0)
    return linalg.pca(moments.mean_second(), min(rank, moments.n))[0]
