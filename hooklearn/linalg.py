"""The linear algebra that hooklearn exists for: spectral filters, whitening, subspaces.

Everything here is a function of tensors; nothing knows about models. The moments it works on: :mod:`hooklearn.moments`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.linalg import get_lapack_funcs
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from hooklearn.types import InputError, NumericalError

Filter = Literal["soft", "hard", "quadratic"]
Sides = Literal["both", "x", "g"]


def damped(second: Float[Tensor, "d d"], damping: float) -> Float[Tensor, "d d"]:
    """``M + damping * tr(M)/d * I``: damping relative to the mean eigenvalue."""
    d = second.shape[0]
    level = damping * second.diagonal().sum() / d
    return second + level.clamp_min(torch.finfo(second.dtype).tiny) * torch.eye(
        d, dtype=second.dtype, device=second.device
    )


def cholesky(spd: Float[Tensor, "d d"], what: str = "matrix") -> Float[Tensor, "d d"]:
    """Cholesky factor, with one honest retry in float64 and a NumericalError that gives the condition."""
    factor, info = torch.linalg.cholesky_ex(spd)
    if int(info) == 0:
        return factor
    factor, info = torch.linalg.cholesky_ex(spd.double())
    if int(info) == 0:
        return factor.to(spd.dtype)
    if not bool(spd.isfinite().all()):
        raise NumericalError(f"{what} holds NaN or infinity")
    values = torch.linalg.eigvalsh(spd.double())
    raise NumericalError(
        f"{what} is not positive definite (eigenvalues {values[0]:.2e} .. {values[-1]:.2e}, condition number "
        f"{float(values.abs().max() / values.abs().min().clamp_min(1e-300)):.1e}); raise the damping"
    )


def condition_number(spd: Float[Tensor, "d d"]) -> float:
    """``||M|| ||M^-1||`` in the 1-norm, estimated from a Cholesky factor in float64 (LAPACK's pocon; within a factor of
    ten in practice). Infinite where M is not positive definite to working precision."""
    wide = spd.detach().double()
    factor, info = torch.linalg.cholesky_ex(wide)
    return _condition(wide, factor) if int(info) == 0 else math.inf


def _condition(spd: Float[Tensor, "d d"], factor: Float[Tensor, "d d"]) -> float:
    """:func:`condition_number` of a matrix whose factor is known, both float64."""
    lower = factor.cpu().numpy()
    (pocon,) = get_lapack_funcs(("pocon",), dtype=lower.dtype)
    with _scipy_alone():
        reciprocal, _ = pocon(lower, float(spd.abs().sum(0).max()), uplo="L")
    return 1 / reciprocal if reciprocal > 0 else math.inf


def precondition(
    update: Float[Tensor, "d_out d_in"],
    x_factor: Float[Tensor, "d_in d_in"] | None,
    g_factor: Float[Tensor, "d_out d_out"] | None,
) -> Float[Tensor, "d_out d_in"]:
    """``B^-1 C A^-1`` from Cholesky factors of A (input side) and B (gradient side); None leaves a side alone.

    The inverse of a Kronecker-factored Fisher (Martens & Grosse, 2015), applied to one update. Rows do not mix on the
    input side, nor columns on the gradient side: of an update that is spread over processes each solves for its own.
    """
    if isinstance(update, DTensor):
        kept = update.placements
        if g_factor is not None:
            update = _on_own_part(update, 1, g_factor.device, lambda columns: precondition(columns, None, g_factor))
        if x_factor is not None:
            update = _on_own_part(update, 0, x_factor.device, lambda rows: precondition(rows, x_factor, None))
        return update.redistribute(placements=kept)
    if g_factor is not None:
        update = torch.cholesky_solve(update, g_factor)
    if x_factor is not None:
        update = torch.cholesky_solve(update.T, x_factor).T
    return update


def whitened(
    update: Float[Tensor, "d_out d_in"],
    x_factor: Float[Tensor, "d_in d_in"] | None,
    g_factor: Float[Tensor, "d_out d_out"] | None,
) -> Float[Tensor, "d_out d_in"]:
    """``L_B^-1 U L_A^-T``: half of :func:`precondition`. Inner products of these are those of the metric's inverse."""
    if g_factor is not None:
        update = torch.linalg.solve_triangular(g_factor, update, upper=False)
    if x_factor is not None:
        update = torch.linalg.solve_triangular(x_factor, update.T, upper=False).T
    return update


def _on_own_part(update: DTensor, dim: int, device: torch.device, solve: Callable[[Tensor], Tensor]) -> DTensor:
    """On ``device``, with the update cut along ``dim``: by way of the whole, since gloo has nothing more direct."""
    cut = update.redistribute(placements=[Replicate()]).redistribute(placements=[Shard(dim)])
    own = solve(cut.to_local().to(device)).to(update.to_local().device).contiguous()
    return DTensor.from_local(
        own, cut.device_mesh, [Shard(dim)], run_check=False, shape=cut.shape, stride=cut.stride()
    )  # fmt: skip


def sign_fixed(basis: Float[Tensor, "d rank"]) -> Float[Tensor, "d rank"]:
    """Make the largest-magnitude coordinate of every column positive: signs no longer depend on the solver."""
    if basis.shape[1] == 0:
        return basis
    top = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return basis * torch.where(top < 0, -1.0, 1.0).to(basis.dtype)


DEPENDENT = 1e-6
"""Sine of the angle to the span of the others at which float32 no longer tells a vector from rounding."""


def orthonormal(vectors: Float[Tensor, "d rank"]) -> Float[Tensor, "d rank"]:
    """Orthonormal basis of the span, ``qr(E).Q``, with fixed signs.

    Raises:
        InputError: a vector lies in the span of those before it: QR would make up a direction in its place.
    """
    wide = vectors.double()
    q, r = torch.linalg.qr(wide)
    own = F.pad(r.diagonal().abs(), (0, wide.shape[1] - len(q.T)))  # more vectors than dimensions: nothing of its own
    if bool((made_up := own <= DEPENDENT * wide.norm(dim=0)).any()):
        raise InputError(
            f"direction {int(made_up.int().argmax())} (of {wide.shape[1]}, counted from 0) is zero or lies in the span "
            f"of those before it (sine below {DEPENDENT:g}); leave it out"
        )
    return sign_fixed(q.to(vectors.dtype))


def project(
    update: Float[Tensor, "d_out d_in"],
    x_basis: Float[Tensor, "d_in k"] | None,
    g_basis: Float[Tensor, "d_out k"] | None,
) -> Float[Tensor, "d_out d_in"]:
    """``P_g U P_x`` for orthonormal bases. For a fixed linear projection, projecting every token and
    projecting the summed update are the same thing.

    Examples:
        >>> project(torch.ones(2, 2), torch.tensor([[1.0], [0.0]]), None)
        tensor([[1., 0.],
                [1., 0.]])
    """
    if g_basis is not None:
        g_basis = g_basis.to(update)
        update = g_basis @ (g_basis.T @ update)
    if x_basis is not None:
        x_basis = x_basis.to(update)
        update = (update @ x_basis) @ x_basis.T
    return update


def escape(
    update: Float[Tensor, "d_out d_in"],
    x_basis: Float[Tensor, "d_in k"] | None,
    g_basis: Float[Tensor, "d_out k"] | None,
) -> float:
    """Containment: ``||U - P_g U P_x|| / ||U||``, in float64; 0 for a zero update."""
    wide = update.double()
    norm = float(wide.norm())
    if norm == 0:
        return 0.0
    return float((wide - project(wide, x_basis, g_basis)).norm()) / norm


def pca(second: Float[Tensor, "d d"], rank: int) -> tuple[Float[Tensor, "d rank"], Float[Tensor, " rank"]]:
    """Top eigenvectors and eigenvalues, largest first, signs fixed."""
    top, values = top_eigh(second.double(), rank)
    return sign_fixed(top.to(second.dtype)), values.to(second.dtype)


def top_eigh(symmetric: Float[Tensor, "d d"], rank: int) -> tuple[Float[Tensor, "d rank"], Float[Tensor, " rank"]]:
    """The ``rank`` largest eigenvalues and their vectors, largest first.

    By LAPACK's solver for all of them, or where they are :data:`FEW` by the one for a subset, which torch lacks.
    """
    d = symmetric.shape[0]
    if rank == 0:  # of an expert that no token was sent to, say
        return symmetric.new_zeros(d, 0), symmetric.new_zeros(0)
    if rank * FEW > d:
        values, vectors = torch.linalg.eigh(symmetric)
        return vectors[:, d - rank :].flip(1), values[d - rank :].flip(0)
    from scipy.linalg import eigh

    with _scipy_alone():
        some, some_vectors = eigh(symmetric.cpu().numpy(), subset_by_index=[d - rank, d - 1])
    found = torch.from_numpy(some_vectors).flip(1), torch.from_numpy(some).flip(0)
    return found[0].to(symmetric.device), found[1].to(symmetric.device)


FEW = 10
"""A tenth of all eigenvectors: up to there those alone are faster (576 wide, float64, two cores: all 23 ms, 8 of them
12, 128 of them 43; 1536 wide: all 319, 8 of them 166)."""


def _scipy_alone() -> AbstractContextManager[Any]:
    """SciPy's OpenBLAS on one thread, inside this block. The others would wait for more work after it, spinning, on the
    cores that torch computes on: the filter of a 576 x 1536 update took 82 ms in place of 30 (two cores; LOG.md)."""
    return _thread_pools().limit(limits=1, user_api="blas")


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


def generalised_eigh(
    forget: Float[Tensor, "d d"], retain: Float[Tensor, "d d"], rank: int
) -> tuple[Float[Tensor, "d rank"], Float[Tensor, " rank"], float]:
    """Top solutions of ``F v = lambda R v`` with ``E^T R E = I``: directions of most forget per retain energy.

    ``R`` must be positive definite (damp it first). E is oblique; ``orthonormal(E)`` spans the same space. The third is
    the condition number of R.

    Raises:
        NumericalError: R is not, or so ill-conditioned that no digit of the answer would be right.
    """
    metric = retain.double()
    factor = cholesky(metric, "retain moments")
    condition = _condition(metric, factor)
    if condition * torch.finfo(torch.float64).eps > 1:
        raise NumericalError(f"retain moments have condition number {condition:.1e}; raise the damping")
    half = torch.linalg.solve_triangular(factor, forget.double(), upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    top, values = top_eigh((whitened + whitened.T) / 2, rank)
    oblique = torch.linalg.solve_triangular(factor.T, top, upper=True)
    return sign_fixed(oblique.to(forget.dtype)), values.to(forget.dtype), condition


def leace(
    covariance: Float[Tensor, "d d"], cross: Float[Tensor, "d k"], least: float = 0.01
) -> tuple[Float[Tensor, "d rank"], Float[Tensor, "d rank"], Float[Tensor, " rank"]]:
    """Least-squares concept erasure (Belrose et al. 2023): what it reads, what it takes away, and singular values.

    With ``W`` the pseudo-inverse square root of the covariance of x, ``U`` and ``s > least`` of the SVD of ``W cross``
    (``cross``: covariance of x with the labels): ``R = W U`` and ``E = W^+ U``. ``P = I - E R^T`` is the oblique
    projector that leaves no covariance with a label (``P cross = 0``: no linear classifier beats chance) and moves x
    least. It is affinely equivariant, ``A P A^-1`` for ``A x + b``.

    Examples:
        >>> read, erased, _ = leace(torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[1.0], [1.0]]))
        >>> torch.eye(2) - erased @ read.T
        tensor([[ 0.8000, -0.8000],
                [-0.2000,  0.2000]])
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    k = numerical_rank(values.flip(0), (len(values), len(values)))
    values, vectors = values[len(values) - k :], vectors[:, len(values) - k :]
    u, s, _ = torch.linalg.svd(values.rsqrt()[:, None] * (vectors.T @ cross.double()), full_matrices=False)
    u, s = u[:, s > least], s[s > least]
    read, erased = vectors @ (values.rsqrt()[:, None] * u), vectors @ (values.sqrt()[:, None] * u)
    return read.to(covariance), erased.to(covariance), s.to(covariance)


def shrunk(covariance: Float[Tensor, "d d"], n: int) -> Float[Tensor, "d d"]:
    """Mixed with ``tr(S)/d I``, by the share that is optimal where n and d are both large (Bodnar, Gupta & Parolya
    2014, arXiv 1308.2608), cut to [0, 1]: about ``r / n`` where r directions of many hold the variance.

    Examples:
        >>> shrunk(torch.diag(torch.tensor([3.0, 1.0])), n=16).diag()
        tensor([2.5000, 1.5000])
    """
    s = covariance.double()
    level = s.diagonal().mean()
    uneven = s.square().sum() - len(s) * level**2
    share = ((len(s) * level) ** 2 / n / uneven).clamp(0, 1).nan_to_num(0)  # 0 / 0 where nothing varies
    return ((1 - share) * s + share * level * torch.eye(len(s), dtype=s.dtype, device=s.device)).to(covariance)


def numerical_rank(singular_values: Float[Tensor, " k"], shape: tuple[int, int]) -> int:
    """How many singular values are above rounding: ``max(shape) * eps * s_max``, as numpy's matrix_rank."""
    if singular_values.numel() == 0 or float(singular_values[0]) <= 0:
        return 0
    eps = torch.finfo(torch.float32).eps
    return int((singular_values > max(shape) * eps * singular_values[0]).sum())


def spectral_filter(
    update: Float[Tensor, "d_out d_in"],
    rank: int,
    *,
    kind: Filter = "soft",
    sides: Sides = "both",
    basis_of: Float[Tensor, "d_out d_in"] | None = None,
) -> Float[Tensor, "d_out d_in"]:
    """RepSelect's collapse of the top ``rank`` principal components (Sondej, Yang & Mahdi, 2026).

    ``basis_of`` gives the components (default: the update itself). With ``s`` its singular values and ``s_k``
    the smallest kept one, component i of one side is scaled by ``s_k/s_i`` (soft), ``(s_k/s_i)^2`` (quadratic)
    or 0 (hard); with both sides the factors multiply, so soft/both maps ``s_i`` to ``s_k^2/s_i``. The rank is
    clamped to the numerical rank: beyond it ``s_k`` is rounding noise and would erase the update.

    Examples:
        >>> spectral_filter(torch.diag(torch.tensor([8.0, 4.0, 1.0])), rank=2).diag()
        tensor([2., 4., 1.])
    """
    return collapsed(update, top_components(update if basis_of is None else basis_of, rank), kind, sides)


Components = tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "d_in k"]]


def top_components(source: Float[Tensor, "d_out d_in"], rank: int) -> Components:
    """The first ``rank`` left vectors, singular values (float64) and right vectors, clamped to the numerical rank.

    Of the Gram matrix on the smaller side, in float64: squaring the spectrum costs half of its digits, and float64 has
    twice those of float32.
    """
    if rank < 0:
        raise InputError(f"rank must be 0 or more, got {rank}")
    wide = source.double()
    tall = wide.shape[0] > wide.shape[1]
    a = wide.T if tall else wide
    if rank == 0 or not bool(a.any()):
        return source.new_zeros(source.shape[0], 0), wide.new_zeros(0), source.new_zeros(source.shape[1], 0)
    vectors, squares = top_eigh(a @ a.T, min(rank, a.shape[0]))
    s = squares.clamp_min(0).sqrt()
    k = numerical_rank(s, (a.shape[0], a.shape[1]))
    left, s = vectors[:, :k], s[:k]
    right = (a.T @ left) / s
    u, v = (right, left) if tall else (left, right)
    return u.to(source), s, v.to(source)


def first_components(components: Components, rank: int) -> Components:
    """The first of them, up to ``rank``."""
    u, s, v = components
    return u[:, :rank], s[:rank], v[:, :rank]


def collapsed(
    update: Float[Tensor, "d_out d_in"], components: Components, kind: Filter = "soft", sides: Sides = "both"
) -> Float[Tensor, "d_out d_in"]:
    """:func:`spectral_filter` from components that are known."""
    u, s, v = components
    if len(s) == 0:
        return update
    ratio = s[-1] / s
    factor = {"soft": ratio, "quadratic": ratio.square(), "hard": torch.zeros_like(ratio)}[kind]
    lost = (1.0 - factor).to(update)
    u, v = u.to(update), v.to(update)
    out = update.clone()
    if sides in ("both", "x"):
        out.addmm_((out @ v) * lost, v.T, alpha=-1)
    if sides in ("both", "g"):
        out.addmm_(u, lost[:, None] * (u.T @ out), alpha=-1)
    return out


def whitened_update(update: Float[Tensor, "d_out d_in"], tau: float) -> Float[Tensor, "d_out d_in"]:
    """``tau^2 (G G^T + tau^2 I)^-1 G``: the smooth soft/both filter without an SVD, on the smaller side."""
    g = update if update.shape[0] <= update.shape[1] else update.T
    gram = g @ g.T
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    out = tau**2 * torch.cholesky_solve(g, cholesky(gram + tau**2 * eye, "G G^T + tau^2 I"))
    return out if g is update else out.T


def principal_cosines(a: Float[Tensor, "d k"], b: Float[Tensor, "d m"]) -> Float[Tensor, " min"]:
    """Cosines of the principal angles between two spans given by orthonormal bases."""
    return torch.linalg.svdvals(a.double().T @ b.double()).clamp(0, 1)


def random_basis(d: int, rank: int, seed: int) -> Float[Tensor, "d rank"]:
    """A uniformly random orthonormal basis, from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return orthonormal(torch.randn(d, rank, generator=generator))
