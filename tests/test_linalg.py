"""The linear algebra, as theorems. Tolerances are relative to the largest number in play."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from threadpoolctl import ThreadpoolController
from torch import Tensor

from hooklearn import linalg, moments
from hooklearn.linalg import Sides
from hooklearn.moments import Moments, MomentSum, add_product
from hooklearn.sketch import Sketch
from hooklearn.types import InputError, NumericalError

SINGLE = 2e-5
"""float32 sums over at most a few hundred products: some hundred roundings of 6e-8."""
DOUBLE = 1e-9
"""float64, through factorisations of matrices with a condition number below 1e5."""

seeds = st.integers(0, 2**31)
sizes = st.integers(2, 12)
kinds = st.sampled_from(["soft", "quadratic", "hard"])


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spd(d: int, seed: int) -> Tensor:
    """Positive definite, float64, condition number at most some thousands."""
    a = randn(d, 2 * d, seed=seed, dtype=torch.float64)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def with_spectrum(values: Tensor, d_out: int, d_in: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(matrix, U, V) with exactly these singular values."""
    k = len(values)
    u, v = linalg.random_basis(d_out, k, seed), linalg.random_basis(d_in, k, seed + 1)
    return (u * values) @ v.T, u, v


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-30)
    return float((a - b).abs().max()) <= tolerance * scale


def sine(a: Tensor, b: Tensor) -> float:
    """Sine of the largest principal angle; unlike arccos it resolves small angles."""
    a, b = a.double(), b.double()
    return float(torch.linalg.matrix_norm(b - a @ (a.T @ b), ord=2))


# ------------------------------------------------------------------------------------------- moments


@given(seeds, sizes, st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_streamed_moments_are_batch_moments(seed: int, d: int, lengths: list[int]) -> None:
    """Rows added batch by batch, empty batches included, give the moments of all rows at once."""
    rows = randn(sum(lengths), d, seed=seed)
    streamed = Moments.of(*rows.split(lengths))
    assert streamed.n == len(rows)
    assert close(streamed.sum, rows.sum(0), SINGLE)
    assert close(streamed.second, rows.T @ rows, SINGLE)
    if len(rows) > 1:
        expected = torch.cov(rows.T, correction=0).reshape(d, d)
        assert close(streamed.covariance(), expected, 10 * SINGLE), "a difference of like numbers"


@given(seeds, sizes)
def test_merging_moments_is_concatenating_data(seed: int, d: int) -> None:
    """merge is commutative bit for bit, associative up to rounding, zero is neutral."""
    a, b, c = (Moments.of(randn(n, d, seed=seed + n)) for n in (3, 5, 1))
    ab, ba = a.merge(b), b.merge(a)
    assert torch.equal(ab.second, ba.second) and torch.equal(ab.sum, ba.sum) and ab.n == ba.n == 8
    left, right = ab.merge(c), a.merge(b.merge(c))
    assert left.n == right.n and close(left.second, right.second, SINGLE)
    assert torch.equal(a.merge(Moments.zero(d)).second, a.second)


def test_moments_accumulate_half_precision_in_float32() -> None:
    """4096 ones in bfloat16 sum to 4096; a bfloat16 accumulator would stop at 256 (the positive control)."""
    rows = torch.ones(4096, 1, dtype=torch.bfloat16)
    control = torch.zeros((), dtype=torch.bfloat16)
    for row in rows:
        control += row[0]
    assert float(control) == 256
    assert float(Moments.of(rows).second) == 4096


@given(seeds, st.integers(2, 10), st.integers(1, 10))
def test_energy_is_a_share(seed: int, d: int, rank: int) -> None:
    """All energy lies in the whole space; two complementary subspaces share it."""
    moments = Moments.of(randn(20, d, seed=seed))
    basis = linalg.random_basis(d, d, seed)
    k = min(rank, d - 1)
    assert moments.energy(basis) == pytest.approx(1, abs=SINGLE)
    assert moments.energy(basis[:, :k]) + moments.energy(basis[:, k:]) == pytest.approx(1, abs=SINGLE)


def test_energy_of_nothing_is_not_measured() -> None:
    """No data: NaN, never 0."""
    energy = Moments.zero(3).energy(torch.eye(3)[:, :1])
    assert energy != energy


# ---------------------------------------------------------------------------------------- projection


@given(seeds, sizes, sizes, st.integers(1, 6))
def test_projectors_are_idempotent_and_symmetric(seed: int, d_out: int, d_in: int, rank: int) -> None:
    """P = Q Q^T is symmetric and P P = P; projecting an update twice is projecting it once."""
    x = linalg.random_basis(d_in, min(rank, d_in), seed)
    g = linalg.random_basis(d_out, min(rank, d_out), seed + 1)
    p = linalg.project(torch.eye(d_in), x, None)
    assert close(p, p.T, SINGLE) and close(p @ p, p, SINGLE)
    once = linalg.project(randn(d_out, d_in, seed=seed), x, g)
    assert close(linalg.project(once, x, g), once, SINGLE)


@given(seeds, sizes, sizes, st.integers(1, 6))
def test_projecting_every_token_is_projecting_the_sum(seed: int, d_out: int, d_in: int, rank: int) -> None:
    """sum_t (P g_t)(P x_t)^T = P_g (sum_t g_t x_t^T) P_x: one projection of the sum will do."""
    x, g = randn(7, d_in, seed=seed), randn(7, d_out, seed=seed + 1)
    qx, qg = linalg.random_basis(d_in, min(rank, d_in), seed), linalg.random_basis(d_out, 1, seed)
    per_token = (g @ qg @ qg.T).T @ (x @ qx @ qx.T)
    assert close(per_token, linalg.project(g.T @ x, qx, qg), SINGLE)


def test_an_update_keeps_its_precision_where_a_basis_has_less() -> None:
    """A basis from a file is float32, whatever the weights are: the update is projected in float64 nevertheless."""
    update, basis = torch.randn(4, 6, dtype=torch.float64), linalg.random_basis(6, 2, 0)
    found = linalg.project(update, basis, None)
    assert found.dtype is torch.float64 and torch.equal(found, linalg.project(update, basis.double(), None))


@given(seeds, st.integers(3, 12), st.integers(3, 12))
def test_escape_certifies_containment(seed: int, d_out: int, d_in: int) -> None:
    """Escape is 0 inside and for a zero update; what has a part outside escapes by its share."""
    x, g = linalg.random_basis(d_in, d_in, seed), linalg.random_basis(d_out, d_out, seed + 1)
    inside = g[:, :1] @ x[:, :1].T
    assert linalg.escape(inside, x[:, :2], g[:, :2]) < SINGLE
    assert linalg.escape(torch.zeros(d_out, d_in), x[:, :1], None) == 0
    outside = g[:, :1] @ x[:, 2:3].T
    assert linalg.escape(3 * inside + 4 * outside, x[:, :2], g[:, :2]) == pytest.approx(0.8, abs=SINGLE)
    assert linalg.escape(outside, x[:, :2], None) == pytest.approx(1, abs=SINGLE)


@given(seeds, sizes, st.integers(1, 6))
def test_orthonormal_keeps_the_span(seed: int, d: int, rank: int) -> None:
    """qr(E).Q is orthonormal, spans what E spans, and its largest coordinates are positive."""
    e = randn(d, min(rank, d), seed=seed)
    q = linalg.orthonormal(e)
    assert close(q.T @ q, torch.eye(q.shape[1]), SINGLE)
    assert close(q @ (q.T @ e), e, SINGLE)
    assert bool((q.gather(0, q.abs().argmax(0, keepdim=True)) > 0).all())


@given(seeds, sizes, st.floats(-6, 6))
def test_orthonormal_makes_no_direction_up(seed: int, d: int, size: float) -> None:
    """Of what lies in the span of others (or is zero), whatever its length, there is no basis; one at an angle of 1e-4
    to them, however short, is one of its own (the control)."""
    first, other = linalg.random_basis(d + 1, 2, seed).T * torch.tensor([[10.0**size], [1.0]])
    near = first / first.norm() + 1e-4 * other
    assert linalg.orthonormal(torch.stack([first, near], 1)).shape == (d + 1, 2)
    for dependent in (first, -3 * first, torch.zeros(d + 1)):
        with pytest.raises(InputError, match=r"direction 1 \(of 3, counted from 0\) is zero or lies in the span"):
            linalg.orthonormal(torch.stack([first, dependent, other], 1))
    with pytest.raises(InputError, match="direction 1 "):
        linalg.orthonormal(torch.tensor([[1.0, 2.0]]))


@given(seeds, sizes)
def test_random_basis_is_seeded_and_leaves_the_global_generator_alone(seed: int, d: int) -> None:
    """Same seed, same basis; another seed, another one; ``torch.manual_seed`` users notice nothing."""
    state = torch.random.get_rng_state()
    one, two = linalg.random_basis(d, 2, seed), linalg.random_basis(d, 2, seed)
    assert torch.equal(one, two)
    assert not torch.equal(one, linalg.random_basis(d, 2, seed + 1))
    assert torch.equal(state, torch.random.get_rng_state())


@given(seeds, st.integers(3, 10))
def test_pca_gives_eigenvectors_largest_first(seed: int, d: int) -> None:
    """M v = lambda v, values fall, and the sign of the data's eigenvectors does not show."""
    second = spd(d, seed)
    vectors, values = linalg.pca(second, 3)
    assert close(second @ vectors, vectors * values, DOUBLE)
    assert bool((values.diff() <= 0).all())
    assert torch.equal(linalg.sign_fixed(-vectors), vectors)


def test_principal_cosines() -> None:
    """1 for a shared direction, cos(angle) for a tilted one, 0 for an orthogonal one."""
    angle = torch.tensor(0.3)
    a = torch.eye(4)[:, :3]
    b = torch.stack([torch.eye(4)[0], torch.tensor([0, angle.cos(), 0, angle.sin()])], 1)
    expected = torch.tensor([1.0, float(angle.cos())], dtype=torch.float64)
    assert close(linalg.principal_cosines(a, b), expected, SINGLE)
    assert float(linalg.principal_cosines(a[:, :1], a[:, 1:2])) == 0


# ----------------------------------------------------------------------------------- spectral filter


@given(seeds, sizes, sizes, kinds, st.sampled_from(["both", "x", "g"]))
def test_rank_zero_is_the_identity_bit_for_bit(seed: int, d_out: int, d_in: int, kind, sides) -> None:
    """RepSelect without components *is* the plain update."""
    update = randn(d_out, d_in, seed=seed)
    assert torch.equal(linalg.spectral_filter(update, 0, kind=kind, sides=sides), update)


@pytest.mark.parametrize(
    ("kind", "sides", "expected"),
    [
        ("soft", "both", lambda s, k: s[k - 1] ** 2 / s),
        ("soft", "x", lambda s, k: s[k - 1].expand_as(s)),
        ("soft", "g", lambda s, k: s[k - 1].expand_as(s)),
        ("quadratic", "both", lambda s, k: s[k - 1] ** 4 / s**3),
        ("quadratic", "x", lambda s, k: s[k - 1] ** 2 / s),
        ("hard", "both", lambda s, k: 0 * s),
        ("hard", "x", lambda s, k: 0 * s),
    ],
)
@given(seed=seeds, k=st.integers(1, 5), transposed=st.booleans())
def test_what_the_filter_does_to_the_spectrum(kind, sides, expected, seed, k, transposed) -> None:
    """The closed forms of METHODS: the top k of the spectrum are mapped, the tail is unchanged."""
    s = 1.6 ** -torch.arange(6.0)
    d_out, d_in = (9, 7) if transposed else (7, 9)
    update, u, v = with_spectrum(s, d_out, d_in, seed)
    mapped = torch.cat([expected(s[:k], k), s[k:]])
    assert close(linalg.spectral_filter(update, k, kind=kind, sides=sides), (u * mapped) @ v.T, SINGLE)


@pytest.mark.parametrize("kind", ["soft", "quadratic", "hard"])
@pytest.mark.parametrize("sides", ["both", "x", "g"])
@given(seed=seeds, k=st.integers(2, 5), other=st.booleans())
def test_the_filter_is_a_loop_over_tokens(kind, sides, seed: int, k: int, other: bool) -> None:
    """Of G = sum_t g_t x_t^T: each of the k principal directions is dampened, or taken out, in every x_t and every g_t,
    one after the other, and the outer products are summed then. The directions are those of G or of another matrix.
    Without that, and on other sides (positive controls), it is something else."""
    x, g = (randn(30, d, seed=seed + d, dtype=torch.float64) for d in (8, 7))
    whole = (g + 1.0).T @ (x + 1.0)  # what tokens have in common makes the first direction strong
    basis_of = randn(7, 8, seed=seed, dtype=torch.float64) + 1.0 if other else whole
    u, s, vh = torch.linalg.svd(basis_of)
    by_hand = torch.zeros(7, 8, dtype=torch.float64)
    for x_t, g_t in zip(x + 1.0, g + 1.0, strict=True):
        for i in range(k):
            kept = {"soft": s[k - 1] / s[i], "quadratic": (s[k - 1] / s[i]) ** 2, "hard": 0.0}[kind]
            if sides != "g":
                x_t = x_t - (1 - kept) * (vh[i] @ x_t) * vh[i]
            if sides != "x":
                g_t = g_t - (1 - kept) * (u[:, i] @ g_t) * u[:, i]
        by_hand += torch.outer(g_t, x_t)

    def filtered(on: Sides) -> Tensor:
        return linalg.spectral_filter(whole, k, kind=kind, sides=on, basis_of=basis_of)

    assert close(filtered(sides), by_hand, DOUBLE) and not close(whole, by_hand, 0.01)
    if other:  # by its own directions, one side is as good as the other
        assert not any(close(filtered(on), by_hand, 0.01) for on in ("both", "x", "g") if on != sides)


@given(seeds, st.integers(1, 4))
def test_hard_collapse_removes_the_components(seed: int, k: int) -> None:
    """basis^T out = 0 on both sides, and filtering again changes nothing; before, they held the energy."""
    update, u, v = with_spectrum(3.0 ** -torch.arange(6.0), 8, 8, seed)
    out = linalg.spectral_filter(update, k, kind="hard", basis_of=update)
    assert float((u[:, :k].T @ update).norm()) > 0.9
    assert float((u[:, :k].T @ out).norm()) < SINGLE and float((out @ v[:, :k]).norm()) < SINGLE
    assert close(linalg.spectral_filter(out, k, kind="hard", basis_of=update), out, SINGLE)


@given(seeds, st.integers(1, 4))
def test_components_may_come_from_another_matrix(seed: int, k: int) -> None:
    """Hard collapse along the retain gradient leaves nothing of its top components, whatever the update."""
    update, other = randn(6, 8, seed=seed), randn(6, 8, seed=seed + 1)
    u, _, vh = torch.linalg.svd(other, full_matrices=False)
    out = linalg.spectral_filter(update, k, kind="hard", basis_of=other)
    assert float((u[:, :k].T @ out).norm()) < 10 * SINGLE and float((out @ vh[:k].T).norm()) < 10 * SINGLE


@given(seeds, st.integers(4, 20))
def test_the_rank_is_clamped_to_the_numerical_rank(seed: int, rank: int) -> None:
    """A rank-3 update filtered at any higher rank is filtered at 3; unclamped it would all but vanish."""
    update, u, v = with_spectrum(torch.tensor([4.0, 2.0, 1.0]), 10, 8, seed)
    assert linalg.numerical_rank(torch.linalg.svdvals(update), (10, 8)) == 3
    out = linalg.spectral_filter(update, rank)
    assert torch.equal(out, linalg.spectral_filter(update, 3))
    assert float(torch.linalg.svdvals(out)[0]) == pytest.approx(1, abs=SINGLE)


def test_a_zero_update_stays_zero_and_a_negative_rank_is_refused() -> None:
    assert torch.equal(linalg.spectral_filter(torch.zeros(3, 4), 2), torch.zeros(3, 4))
    with pytest.raises(InputError, match="-1"):
        linalg.spectral_filter(torch.zeros(3, 4), -1)


@given(seeds, st.floats(0.05, 3), st.booleans())
def test_whitened_update_is_the_smooth_filter(seed: int, tau: float, transposed: bool) -> None:
    """tau^2 (G G^T + tau^2)^-1 G = U diag(tau^2 s / (s^2 + tau^2)) V^T, for wide and for tall updates."""
    s = 2.0 ** -torch.arange(5.0)
    update, u, v = with_spectrum(s, 5, 9, seed)
    expected = (u * (tau**2 * s / (s**2 + tau**2))) @ v.T
    if transposed:
        update, expected = update.T, expected.T
    # the Gram matrix squares a condition number of up to 1 / tau = 20
    assert close(linalg.whitened_update(update, tau), expected, 400 * SINGLE)


# ----------------------------------------------------------------------- metrics and eigenproblems


@given(seeds, st.integers(2, 8), st.integers(1, 8))
def test_generalised_eigenvectors(seed: int, d: int, rank: int) -> None:
    """F E = R E diag(v), E^T R E = I, values fall, and the values are the ratios of the two energies."""
    forget, retain, k = spd(d, seed), spd(d, seed + 1), min(rank, d)
    e, values, _ = linalg.generalised_eigh(forget, retain, k)
    assert e.shape == (d, k) and bool((values.diff() <= 0).all())
    assert close(e.T @ retain @ e, torch.eye(k, dtype=torch.float64), DOUBLE)
    assert close(forget @ e, retain @ e * values, DOUBLE)
    ratios = (e * (forget @ e)).sum(0) / (e * (retain @ e)).sum(0)
    assert close(ratios, values, DOUBLE)


@given(seeds, st.integers(2, 8))
def test_all_generalised_eigenvectors_are_the_inverse_metric(seed: int, d: int) -> None:
    """E E^T = R^-1 with all of them, whatever F is; with fewer it is not (positive control)."""
    forget, retain = spd(d, seed), spd(d, seed + 1)
    e, *_ = linalg.generalised_eigh(forget, retain, d)
    assert close(e @ e.T, torch.linalg.inv(retain), DOUBLE)
    fewer, *_ = linalg.generalised_eigh(forget, retain, d - 1)
    assert not close(fewer @ fewer.T, torch.linalg.inv(retain), 1e-3)


@given(seeds, st.integers(2, 6), st.integers(2, 6))
def test_inner_products_of_whitened_updates_are_those_of_the_inverse_metric(seed: int, d_out: int, d_in: int) -> None:
    """<W U, W V> = <U, F^-1 V>, and F^-1 changes the product (positive control)."""
    x, g = (torch.linalg.cholesky(spd(d, seed + i)) for i, d in enumerate((d_in, d_out)))
    u, v = (randn(d_out, d_in, seed=seed + 2 + i).double() for i in range(2))
    true = (u * linalg.precondition(v, x, g)).sum()
    found = (linalg.whitened(u, x, g) * linalg.whitened(v, x, g)).sum()
    assert close(found, true, DOUBLE)
    assert not close((u * v).sum(), true, DOUBLE)


@given(seeds, st.integers(2, 6), st.integers(2, 6))
def test_precondition_is_the_inverse_kronecker_fisher(seed: int, d_out: int, d_in: int) -> None:
    """B^-1 C A^-1, and the same as solving with the dense (B (x) A) on the flattened update."""
    a, b = spd(d_in, seed), spd(d_out, seed + 1)
    c = randn(d_out, d_in, seed=seed, dtype=torch.float64)
    fa, fb = linalg.cholesky(a), linalg.cholesky(b)
    out = linalg.precondition(c, fa, fb)
    assert close(out, torch.linalg.inv(b) @ c @ torch.linalg.inv(a), DOUBLE)
    dense = torch.linalg.solve(torch.kron(b, a), c.flatten())
    assert close(out, dense.view(d_out, d_in), DOUBLE)
    assert close(linalg.precondition(c, fa, None), c @ torch.linalg.inv(a), DOUBLE)
    assert close(linalg.precondition(c, None, fb), torch.linalg.inv(b) @ c, DOUBLE)
    assert torch.equal(linalg.precondition(c, None, None), c)


@given(seeds, sizes, st.floats(1e-4, 1))
def test_damping_is_relative_to_the_mean_eigenvalue(seed: int, d: int, damping: float) -> None:
    """Scaling the data scales the damped matrix; a zero matrix becomes barely positive, not singular."""
    m = spd(d, seed)
    assert close(linalg.damped(5 * m, damping), 5 * linalg.damped(m, damping), DOUBLE)
    rise = torch.linalg.eigvalsh(linalg.damped(m, damping)) - torch.linalg.eigvalsh(m)
    assert close(rise, (damping * m.trace() / d).expand(d), 1e-6)
    assert float(linalg.damped(torch.zeros(d, d), damping).diagonal().min()) > 0


def test_cholesky_names_the_eigenvalues_of_what_it_refuses() -> None:
    """Indefinite: a NumericalError with its name and both ends of the spectrum; else the factor."""
    factor = linalg.cholesky(spd(4, 0))
    assert close(factor @ factor.T, spd(4, 0), DOUBLE)
    with pytest.raises(NumericalError, match=r"retain moments .*-1\.00e\+00 \.\. 2\.00e\+00.*damping"):
        linalg.cholesky(torch.diag(torch.tensor([2.0, -1.0])), "retain moments")


def test_contrast_finds_a_planted_concept_that_pca_misses() -> None:
    """Three quiet directions that only forget data use, under a loud shared background.

    The retain-whitened eigenproblem finds them to 1e-3 (damping times sampling noise over background leaves
    some 6e-4); the top principal components are background, at right angles to the concept.
    """
    d, n, loud = 40, 12_000, 2.0
    basis = linalg.random_basis(d, 23, 0)
    background, concept = basis[:, :20], basis[:, 20:]
    forget, retain = MomentSum(d), MomentSum(d)
    for batch in range(4):
        shared = loud * randn(n // 4, 20, seed=batch) @ background.T
        forget.add(shared + randn(n // 4, 3, seed=100 + batch) @ concept.T)
        retain.add(loud * randn(n // 4, 20, seed=200 + batch) @ background.T)
    forget, retain = forget.moments(), retain.moments()
    metric = linalg.damped(retain.mean_second(), 0.01)
    found, values, _ = linalg.generalised_eigh(forget.mean_second(), metric, 4)
    assert sine(concept, linalg.orthonormal(found[:, :3])) < 1e-3
    assert float(values[2]) > 3 * float(values[3]), "and the spectrum says that there are three"
    loudest, _ = linalg.pca(forget.mean_second(), 3)
    assert sine(concept, loudest) > 0.99


@given(seeds, sizes, sizes, st.integers(0, 12), kinds, st.sampled_from(["both", "x", "g"]))
def test_the_gram_form_of_the_filter_is_the_svd_form(seed: int, d_out: int, d_in: int, k: int, kind, sides) -> None:
    """A few eigenvectors of the Gram matrix in float64 do what a whole SVD does, to 1e-4 over two decades: what the
    filter leaves is as small as ``s_k``, and taking the rest away in float32 rounds at 1e-7 of ``s_1``."""
    s = 10.0 ** -torch.linspace(0, 2, min(d_out, d_in))
    update, _, _ = with_spectrum(s, d_out, d_in, seed)
    ours = linalg.spectral_filter(update, k, kind=kind, sides=sides)
    u, exact, vh = torch.linalg.svd(update.double(), full_matrices=False)
    k = min(k, linalg.numerical_rank(exact, (d_out, d_in)))
    assert close(ours, linalg.collapsed(update, (u[:, :k], exact[:k], vh[:k].T), kind, sides), 1e-4)


@given(seeds, sizes)
def test_bfloat16_rows_are_summed_as_if_they_were_float32(seed: int, d: int) -> None:
    """Products of two bfloat16 numbers fit in float32; a product that is *rounded* to bfloat16 is far off (control)."""
    rows = (randn(64, d, seed=seed) + 1).bfloat16()
    exact = rows.double().T @ rows.double()
    before = torch.get_float32_matmul_precision()
    assert close(Moments.of(rows).second.double(), exact, SINGLE)
    with patch.object(moments, "BLOCK", 3):  # several blocks of rows, the last one short
        assert close(Moments.of(rows).second.double(), exact, SINGLE)
    assert close(add_product(torch.zeros(d, d), rows, rows).double(), exact, SINGLE)
    assert not close((rows.T @ rows).double(), exact, SINGLE)
    assert torch.get_float32_matmul_precision() == before


def test_scipy_works_alone_and_only_then() -> None:
    """Where its own OpenBLAS is there, one thread of it inside the block; two before (control) and after it."""

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in ThreadpoolController().info() if pool["user_api"] == "blas"]

    if not threads():
        pytest.skip("SciPy has no OpenBLAS of its own here")
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        assert set(threads()) == {2}
        with linalg._scipy_alone():
            assert set(threads()) == {1}
        assert set(threads()) == {2}


# ------------------------------------------------------------------------------------------- erasure


def two_classes(seed: int, d: int = 6, n: int = 300) -> tuple[Tensor, Tensor]:
    """Rows, float64, and which of two classes (of 3 n/4 and n/4) they are of: means differ, spreads are uneven."""
    labels = (torch.arange(n) % 4 == 0).double()
    spread = torch.linspace(0.5, 3, d, dtype=torch.float64)
    return randn(n, d, seed=seed, dtype=torch.float64) * spread + 4 * labels[:, None] * randn(
        1, d, seed=seed + 1, dtype=torch.float64
    ), labels


def covariances(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows, and of rows with one-hot labels."""
    one_hot = torch.stack([labels, 1 - labels], 1)
    return torch.cov(rows.T, correction=0), (rows - rows.mean(0)).T @ (one_hot - one_hot.mean(0)) / len(rows)


def eraser(covariance: Tensor, cross: Tensor) -> Tensor:
    read, erased, _ = linalg.leace(covariance, cross)
    return torch.eye(len(covariance), dtype=covariance.dtype) - erased @ read.T


@given(seeds)
def test_leace_leaves_nothing_that_a_linear_classifier_finds(seed: int) -> None:
    """Logistic regression on the erased rows guesses the larger class, at the entropy of the labels; on the raw rows,
    and where a random direction is projected out (controls), it does not."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    rows, labels = two_classes(seed)
    covariance, cross = covariances(rows, labels)

    def fitted(erase: Tensor) -> tuple[float, float]:
        x = ((rows - rows.mean(0)) @ erase.T).numpy()
        model = LogisticRegression(C=1e6, tol=1e-8, max_iter=2000).fit(x, labels.numpy())
        return model.score(x, labels.numpy()), log_loss(labels.numpy(), model.predict_proba(x))

    chance = (0.75, -0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert fitted(eraser(covariance, cross)) == pytest.approx(chance, abs=1e-6)
    other = linalg.random_basis(6, 1, seed).double()
    for control in (torch.eye(6).double(), torch.eye(6).double() - other @ other.T):
        accuracy, loss = fitted(control)
        assert accuracy > 0.8 and loss < 0.8 * chance[1]


@given(seeds)
def test_leace_is_the_least_oblique_projector(seed: int) -> None:
    """P P = P, no covariance with a label is left, and it is what scipy's root and pseudo-inverses give; the orthogonal
    projector off the same span, which leaves none either, moves the rows more."""
    rows, labels = two_classes(seed)
    covariance, cross = covariances(rows, labels)
    p = eraser(covariance, cross)
    assert close(p @ p, p, DOUBLE) and float((p @ cross).abs().max()) < DOUBLE * float(cross.abs().max())
    half = torch.linalg.pinv(torch.from_numpy(sqrtm(covariance.numpy()).real))
    u = torch.linalg.svd(half @ cross)[0][:, :1]
    by_hand = torch.eye(6) - torch.linalg.pinv(half) @ u @ u.T @ half
    assert close(p, by_hand, 1e-6)
    direction = cross[:, :1] / cross[:, :1].norm()
    across = torch.eye(6) - direction @ direction.T
    assert not close(p, p.T, 0.01), "oblique"
    moved = [float(((rows - rows.mean(0)) @ (torch.eye(6) - q).T).square().sum()) for q in (p, across)]
    assert float((across @ cross).abs().max()) < 1e-6 and moved[0] < 0.99 * moved[1]


@given(seeds)
def test_leace_is_affinely_equivariant(seed: int) -> None:
    """Of ``A x + b`` it is ``A P A^-1``, and the same share of the label is found; the orthogonal projector is not."""
    rows, labels = two_classes(seed)
    a = linalg.random_basis(6, 6, seed).double() @ torch.diag(torch.linspace(0.3, 2, 6).double())
    moved = rows @ a.T + randn(1, 6, seed=seed + 2, dtype=torch.float64)
    before, after = covariances(rows, labels), covariances(moved, labels)
    inverse = torch.linalg.inv(a)
    assert close(eraser(*after), a @ eraser(*before) @ inverse, 1e-7)
    assert close(linalg.leace(*after)[2], linalg.leace(*before)[2], DOUBLE)
    across = [torch.eye(6) - linalg.project(torch.eye(6).double(), linalg.orthonormal(c[:, :1]), None)
              for _, c in (before, after)]  # fmt: skip
    assert not close(across[1], a @ across[0] @ inverse, 0.01)


def test_leace_by_hand() -> None:
    """Covariance diag(4, 1), label covariance (1, 1): W U = (1/2, 2)/sqrt(5), W^+ U = (2, 2)/sqrt(5)."""
    covariance, cross = torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[1.0], [1.0]])
    assert close(eraser(covariance, cross), torch.tensor([[0.8, -0.8], [-0.2, 0.2]]), SINGLE)
    assert float(linalg.leace(covariance, cross)[2]) == pytest.approx(math.sqrt(1.25))
    assert linalg.leace(covariance, 0.008 * cross)[0].shape == (2, 0), "a label that nothing tells"


def test_leace_of_fewer_rows_than_dimensions() -> None:
    """The pseudo-inverse knows no direction that no row has; three classes have rank 2."""
    rows = randn(5, 12, seed=0)
    covariance = Moments.of(rows).covariance()
    label = torch.tensor([1.0, 1, 0, 0, 0])[:, None]
    read, _, _ = linalg.leace(covariance, (rows - rows.mean(0)).T @ (label - label.mean()) / 5)
    spanned = linalg.orthonormal((rows - rows.mean(0))[:4].T)
    assert read.shape == (12, 1) and linalg.escape(read.T, spanned, None) < 1e-4
    rows, kinds = randn(90, 12, seed=1, dtype=torch.float64), torch.eye(3).double()[torch.arange(90) % 3]
    rows += kinds @ randn(3, 12, seed=2, dtype=torch.float64)
    cross = (rows - rows.mean(0)).T @ (kinds - kinds.mean(0)) / 90
    read, erased, _ = linalg.leace(torch.cov(rows.T, correction=0), cross)
    assert read.shape == (12, 2) and close(read.T @ erased, torch.eye(2).double(), DOUBLE)


def test_shrinking_helps_where_rows_are_few() -> None:
    """Of the true covariance and its inverse the shrunk one is the better estimate at 40 rows of 30; at 100 000 it is
    the plain one. Where all directions are alike nothing is changed; of 3 rows it is still positive definite."""
    truth = spd(30, 0)
    half = linalg.cholesky(truth)

    def sample(n: int) -> Tensor:
        return torch.cov((randn(n, 30, seed=n, dtype=torch.float64) @ half.T).T, correction=0)

    few = sample(40)
    assert float((linalg.shrunk(few, 40) - truth).norm()) < 0.9 * float((few - truth).norm())
    inverse = torch.linalg.inv(truth)
    errors = [float((torch.linalg.inv(s) - inverse).norm()) for s in (linalg.shrunk(few, 40), few)]
    assert errors[0] < 0.3 * errors[1]
    assert close(linalg.shrunk(sample(100_000), 100_000), sample(100_000), 0.01)
    for alike in (torch.eye(4), torch.zeros(4, 4)):
        assert torch.equal(linalg.shrunk(alike, 9), alike)
    smallest = [float(torch.linalg.eigvalsh(s)[0]) for s in (linalg.shrunk(sample(3), 3), sample(3))]
    assert smallest[0] > 0.01 > smallest[1]


@pytest.mark.parametrize("d", [5, 40])
def test_no_eigenvectors_of_a_matrix(d: int) -> None:
    """Rank 0, of an expert that no token was sent to, say: an empty basis by either solver."""
    vectors, values = linalg.top_eigh(torch.eye(d, dtype=torch.float64), 0)
    assert vectors.shape == (d, 0) and values.shape == (0,)
    assert linalg.top_eigh(torch.eye(d, dtype=torch.float64), 1)[0].shape == (d, 1), "positive control"


# ------------------------------------------------------------------------------------------- sketches


def dense(sketch: Sketch) -> Tensor:
    return sketch.times(torch.eye(len(sketch.vectors), dtype=sketch.vectors.dtype))


@given(seeds, sizes, sizes, st.integers(0, 3), st.sampled_from([0.01, 0.1, 1.0]))
def test_a_sketch_of_full_rank_is_the_exact_solve(seed: int, d: int, k: int, more: int, damping: float) -> None:
    """From ``rank = d`` on, whatever the damping, it solves as the Cholesky factor of the damped matrix does; with one
    pair it does not (control)."""
    m, rows = spd(d, seed), randn(d, k, seed=seed + 1, dtype=torch.float64)
    exact = linalg.precondition(rows, None, linalg.cholesky(linalg.damped(m, damping)))
    assert close(Sketch.of(m, d + more).damped(damping).times(rows, power=-1), exact, DOUBLE)
    if d > 2:
        assert not close(Sketch.of(m, 1).damped(damping).times(rows, power=-1), exact, 1e-4)


@given(seeds, sizes, st.integers(1, 12))
def test_a_sketch_keeps_the_trace_and_the_first_pairs(seed: int, d: int, rank: int) -> None:
    """So damping, a share of the mean eigenvalue, means the same; spectrum: the first, then the mean of the others.
    Of all such matrices with these vectors it is the nearest: moving ``rest`` either way is farther."""
    m = spd(d, seed)
    sketch, k = Sketch.of(m, rank), min(rank, d)
    values = torch.linalg.eigvalsh(m).flip(0)
    expected = torch.cat([values[:k], values[k:].mean().expand(d - k)]) if k < d else values
    assert close(torch.linalg.eigvalsh(dense(sketch)).flip(0), expected, DOUBLE)
    assert close(dense(sketch).trace(), m.trace(), DOUBLE)
    assert close(dense(sketch.damped(0.3)), linalg.damped(dense(sketch), 0.3), DOUBLE)
    if k < d:
        off = [Sketch(sketch.vectors, sketch.values, sketch.rest * f) for f in (0.9, 1.0, 1.1)]
        low, here, high = (float((dense(s) - m).norm()) for s in off)
        assert here < min(low, high)


@given(seeds, sizes, st.integers(1, 12), sizes)
def test_powers_of_a_sketch_undo_each_other(seed: int, d: int, rank: int, k: int) -> None:
    """``M M^-1 = 1``, and the symmetric half twice is the whole."""
    sketch, rows = Sketch.of(spd(d, seed), rank).damped(0.1), randn(d, k, seed=seed, dtype=torch.float64)
    solved = sketch.times(rows, power=-1)
    assert close(sketch.times(solved), rows, DOUBLE)
    assert close(sketch.times(sketch.times(rows, power=-0.5), power=-0.5), solved, DOUBLE)


@given(seeds, st.integers(3, 12), st.data())
def test_a_sketch_is_exact_where_the_rest_is_isotropic(seed: int, d: int, data: st.DataObject) -> None:
    """Some spikes over a flat floor: as many pairs as spikes are enough, one fewer is not (control)."""
    spikes = data.draw(st.integers(2, d - 1))
    basis = torch.linalg.qr(randn(d, d, seed=seed, dtype=torch.float64)).Q
    values = torch.ones(d, dtype=torch.float64)
    values[:spikes] = 5.0 + torch.arange(spikes, 0, -1)
    m, rows = (basis * values) @ basis.T, randn(d, d, seed=seed, dtype=torch.float64)
    exact = linalg.precondition(rows, None, linalg.cholesky(m))
    assert close(Sketch.of(m, spikes).times(rows, power=-1), exact, DOUBLE)
    assert not close(Sketch.of(m, spikes - 1).times(rows, power=-1), exact, 1e-4)


def test_a_sketch_of_nothing_is_damped_and_none_of_rank_0() -> None:
    """No gradient at all: the damped matrix is as positive as it gets, as the whole one would be."""
    zero = Sketch.of(torch.zeros(4, 4), 2).damped(0.1)
    assert float(zero.rest) == float(zero.values[0]) == torch.finfo(torch.float32).tiny
    assert close(dense(zero), linalg.damped(torch.zeros(4, 4), 0.1), SINGLE)
    with pytest.raises(InputError, match="rank of a sketch must be 1 or more, got 0"):
        Sketch.of(torch.eye(3), 0)
