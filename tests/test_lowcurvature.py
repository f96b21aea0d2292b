"""Whitened, low-curvature and subspace-projected gradients: closed forms against the long way round."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import corpus
from editing import alike, first_update, problem_of
from torch import Tensor

from hooklearn import editing, integrity, linalg, models
from hooklearn.data import encode
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import LANDING, Problem, run_edit
from hooklearn.edit.lowcurvature import (
    KFAC,
    OWN,
    SSPU,
    Eigen,
    Whitened,
    high_curvature,
    low_curvature,
    own_directions,
    threshold,
    whitened_svd,
)  # fmt: skip
from hooklearn.edit.method import Updates, inner, norm
from hooklearn.edit.repselect import RepSelect
from hooklearn.forward import sequence_logprobs
from hooklearn.locate.capture import capture
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.measure import completion_probability
from hooklearn.types import Budget, InputError

SINGLE = 1e-4
"""Relative, float32 through decompositions."""
CONTAINED = 1e-5
"""Relative escape of what was projected in float32."""
TINY = [Whitened(rank=8), Whitened(quantile=0.8, form="svd"), KFAC(), SSPU(forget_rank=16, retain_rank=8)]


@pytest.fixture(scope="module")
def problem(threatening: Any) -> Problem:
    """Gradients and moments of this one are shared by the tests, which only read them."""
    return problem_of(threatening)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spectrum(*values: float, d_out: int = 6, d_in: int = 9) -> Tensor:
    """A matrix with these singular values."""
    k = len(values)
    u, v = linalg.orthonormal(randn(d_out, k)), linalg.orthonormal(randn(d_in, k, seed=1))
    return (u * torch.tensor(values)) @ v.T


# ---------------------------------------------------------------------------------------- whitened


@pytest.mark.parametrize(("d_out", "d_in"), [(6, 9), (9, 6)])
@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_whitening_is_a_function_of_singular_values(d_out: int, d_in: int, tau: float) -> None:
    """The solve, the SVD form and the formula as it is written, wide and tall: the same matrix."""
    g = randn(d_out, d_in)
    written = tau**2 * torch.linalg.inv(g @ g.T + tau**2 * torch.eye(d_out)) @ g
    for form in (linalg.whitened_update(g, tau), whitened_svd(g, tau)):
        assert float((form - written).norm() / written.norm()) < SINGLE
    s = torch.linalg.svdvals(g)
    assert torch.allclose(
        torch.linalg.svdvals(written), (tau**2 * s / (s**2 + tau**2)).sort(descending=True).values, atol=1e-4
    )


def test_tau_is_a_rank_or_a_quantile() -> None:
    """Clamped to what is above rounding: in a matrix of rank 4 there is no sixth singular value to whiten at."""
    g = spectrum(8.0, 4.0, 2.0, 1.0)
    s = torch.linalg.svdvals(g)
    assert [threshold(s, (6, 9), rank=r) for r in (1, 3, 6, 500)] == pytest.approx([8.0, 2.0, 1.0, 1.0], rel=SINGLE)
    assert threshold(s, (6, 9), share=2 / 3) == pytest.approx(4.0, rel=SINGLE)
    assert threshold(torch.zeros(6), (6, 9), rank=2) == 0.0


def test_both_forms_of_the_method_are_one(problem: Problem) -> None:
    """To a hundredth of s_1 and further down, where a float32 Gram matrix fails (control)."""
    for options in ({"rank": 4}, {"quantile": 0.5}, {}):
        solve, svd = (first_update(Whitened(**options, form=form), problem) for form in ("solve", "svd"))
        assert alike(solve, svd) < 0.01, options
    deep = spectrum(1.0, 1e-1, 1e-2, 1e-3, 1e-4)
    exact = whitened_svd(deep.double(), 1e-3)
    single = linalg.whitened_update(deep, 1e-3)
    double = linalg.whitened_update(deep.double(), 1e-3)
    assert float((double - exact).norm() / exact.norm()) < 1e-6
    assert float((single - exact).norm() / exact.norm()) > 1e-3


def test_whitening_is_a_smooth_repselect(problem: Problem) -> None:
    """Nearer to RepSelect's soft filter of both sides at the same rank than the gradient itself is."""
    smooth, filtered = first_update(Whitened(rank=8), problem), first_update(RepSelect(rank=8), problem)
    plain = problem.gradient("forget")
    cosines = [float((smooth[n] * filtered[n]).sum() / smooth[n].norm() / filtered[n].norm()) for n in plain]
    before = [float((plain[n] * filtered[n]).sum() / plain[n].norm() / filtered[n].norm()) for n in plain]
    assert min(cosines) > 0.8
    assert all(c > b for c, b in zip(cosines, before, strict=True))


# ------------------------------------------------------------------------------------ low curvature


def test_high_curvature_by_hand() -> None:
    """Products of (3, 1) and (4, 2, 0): 12 6 0 / 4 2 0, in all 24."""
    curvature = torch.outer(torch.tensor([3.0, 1.0]), torch.tensor([4.0, 2.0, 0.0]))

    def shown(**how: Any) -> list[list[int]]:
        return high_curvature(curvature, **how).int().tolist()

    assert shown(top=0) == [[0, 0, 0], [0, 0, 0]]
    assert shown(top=3) == [[1, 1, 0], [1, 0, 0]]
    assert shown(share=0.5) == [[1, 0, 0], [0, 0, 0]], "12 of 24 are half"
    assert shown(share=0.51) == [[1, 1, 0], [0, 0, 0]]
    assert shown(share=0.99) == [[1, 1, 0], [1, 1, 0]], "no curvature is left to remove, and nothing else is"


@pytest.mark.parametrize("how", [{"share": 0.7}, {"top": 5}])
def test_low_curvature_is_a_projection_in_the_kronecker_product(how: dict[str, Any]) -> None:
    """The same from the dense matrix B (x) A of all weights against all weights, and component by component."""
    x, g, update = randn(30, 5), randn(30, 4, seed=1) * torch.tensor([3.0, 1.0, 0.5, 2.0]), randn(4, 5, seed=2)
    a, b = x.T @ x / 30, g.T @ g / 30
    closed = low_curvature(update, Eigen.of(a), Eigen.of(b), **how)

    values, vectors = torch.linalg.eigh(torch.kron(b, a).double())  # rows of vec(G) are outputs
    count = how.get("top") or next(k for k in range(1, 21) if float(values[-k:].sum() / values.sum()) >= how["share"])
    off = vectors[:, : 20 - count]
    dense = (off @ (off.T @ update.double().flatten())).view(4, 5)
    assert 0 < count < 20 and float((closed - dense).norm() / dense.norm()) < SINGLE

    by_hand, u, v = torch.zeros(4, 5), torch.linalg.eigh(b), torch.linalg.eigh(a)
    curved = sorted((-float(u[0][i] * v[0][j]), i, j) for i in range(4) for j in range(5))
    for _, i, j in curved[count:]:
        by_hand += (u[1][:, i] @ update @ v[1][:, j]) * torch.outer(u[1][:, i], v[1][:, j])
    assert float((closed - by_hand).norm() / by_hand.norm()) < SINGLE


def test_what_is_left_is_where_the_retain_loss_is_flat(problem: Problem) -> None:
    """Curvature <D, B D A> per squared length falls with the share; with nothing removed it is gradient ascent."""
    gradient = problem.gradient("forget")

    def curvature(d: Updates) -> float:
        total = 0.0
        for name, moments in problem.retain_moments.items():
            a, b = (moments.side(side).mean_second() for side in ("x", "g"))
            total += float((d[name] * (b @ d[name] @ a)).sum())
        return total / inner(d, d)

    assert alike(first_update(KFAC(top=0), problem), gradient) < SINGLE
    kept = [first_update(KFAC(share=share), problem) for share in (0.3, 0.9, 0.99)]
    steps = [curvature(d) for d in (gradient, *kept)]
    assert steps == sorted(steps, reverse=True) and steps[2] < steps[0] / 10
    for d in kept:  # an orthogonal projection: its effect is its squared length
        assert inner(d, gradient) == pytest.approx(inner(d, d), rel=SINGLE) and 0 < norm(d) < norm(gradient)
    assert all(torch.equal(u, first_update(KFAC(), problem)[n]) for n, u in kept[1].items()), "0.9 is the default"


# --------------------------------------------------------------------------------------------- SSPU


def test_own_directions_of_planted_spans() -> None:
    """Of a span that shares one direction with another, lies at 30 degrees to it with one, and has one of its own."""
    e = torch.linalg.qr(randn(12, 12)).Q
    tilted = math.cos(math.radians(30)) * e[:, 1] + math.sin(math.radians(30)) * e[:, 5]
    forget, retain = torch.stack([e[:, 0], tilted, e[:, 7]], 1), e[:, :4]
    basis, sines = own_directions(forget, retain)
    assert sines.tolist() == pytest.approx([1.0, 0.5], abs=SINGLE)
    assert float((basis.T @ retain).abs().max()) < CONTAINED
    assert float(linalg.principal_cosines(basis, e[:, [5, 7]])[-1]) > 1 - CONTAINED
    assert own_directions(forget, torch.zeros(12, 0))[0].shape == (12, 3), "nothing to keep off: all of it"
    assert own_directions(retain, retain)[0].shape == (12, 0)
    assert 0 < OWN < 0.5


@pytest.mark.parametrize("sides", ["x", "g", "both"])
def test_sspu_is_a_loop_over_tokens(threatening: Any, sides: Any) -> None:
    """Every x_t (and g_t) projected on its own directions, then the outer products; it is off the retain-relevant
    directions, which the gradient is not (positive control)."""
    made = problem_of(threatening, forget=corpus("forget").take(4))
    method = SSPU(forget_rank=16, retain_rank=8, sides=sides)
    update, spaces = first_update(method, made), method.promise(made)
    assert spaces is not None
    taped = capture(threatening, made.stream("forget"), made.sites, precision="float32")
    for name in ("blocks.1.mlp.gate", "blocks.2.mlp.out"):
        bases = dict(zip("xg", spaces.bases(name), strict=True))
        by_hand = torch.zeros_like(update[name])
        for x, g in zip(taped[name].x, taped[name].g, strict=True):  # type: ignore[arg-type]
            row = {"x": x, "g": g}
            for side, basis in bases.items():
                if basis is not None:
                    row[side] = sum(((row[side] @ b) * b for b in basis.T), torch.zeros_like(row[side]))
            by_hand += torch.outer(row["g"], row["x"])
        assert float((update[name] - by_hand).norm() / by_hand.norm()) < SINGLE
        for side, basis in bases.items():
            if basis is None:
                continue
            retain = linalg.pca(made.retain_moments[name].side(side).mean_second(), 8)[0]  # type: ignore[arg-type]
            written, plain = (u if side == "x" else u.T for u in (update[name], made.gradient("forget")[name]))
            assert float((written @ retain).norm() / written.norm()) < CONTAINED
            assert float((plain @ retain).norm() / plain.norm()) > 0.1


def test_sspu_is_certified(threatening: Any, meter: DisruptionMeter) -> None:
    """The delta at its final length lies in the promised directions."""
    result = run_edit(problem_of(threatening), SSPU(forget_rank=16, retain_rank=8), meter, Budget(0.01))
    assert result.certificate.worst < CONTAINED and "12 located subspaces (sspu" in result.certificate.promise


def test_given_directions_take_the_place_of_pca(threatening: Any) -> None:
    """Rows of an SAE's decoder, say, at one side of each site; a site without any is an error that names it."""
    made = problem_of(threatening)
    rows = {(s.name, "x"): Subspace.of(s, "x", "sae", randn(s.d_in, 3), torch.ones(3)) for s in made.sites}
    made.subspaces = Subspaces(rows)
    method = SSPU(retain_rank=4)
    update = first_update(method, made)
    for name, u in update.items():
        retain = linalg.pca(made.retain_moments[name].side("x").mean_second(), 4)[0]
        both = linalg.orthonormal(torch.cat([rows[name, "x"].basis, retain], 1))
        assert linalg.escape(u, both, None) < CONTAINED, "their span, less what is retain-relevant"
        assert float((u @ retain).norm() / u.norm()) < CONTAINED
        assert int(torch.linalg.matrix_rank(u, rtol=1e-4)) == 3
    few = problem_of(threatening, subspaces=made.subspaces.where(lambda s: s.site.layer > 0))
    with pytest.raises(InputError, match="no subspace was located at blocks.0.mlp.gate"):
        first_update(method, few)


def test_retain_directions_that_cover_everything_are_an_error(problem: Problem) -> None:
    """Nothing is left on the x side of any site: not a zero edit, but a line that says what to lower."""
    few = problem_of(problem.model)
    few.sites = [s for s in problem.sites if s.d_in == 64]
    with pytest.raises(InputError, match="no forget direction is left beside 64 retain directions; lower retain_rank"):
        first_update(SSPU(forget_rank=8, retain_rank=64), few)


# ---------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize("method", TINY)
@pytest.mark.parametrize("near_ce", [None, 0.02])
def test_they_land_on_the_budget(threatening: Any, meter: DisruptionMeter, method: Any, near_ce: float | None) -> None:
    """In [0.95, 1] of the tighter budget; the forget items suffer, the model is left bit for bit as it was."""
    some = encode(corpus("forget").take(12), models.tokenizer_of(threatening))
    known = float(completion_probability(sequence_logprobs(threatening, some)).mean())
    before, budget = integrity.weights_hash(threatening), Budget(0.01, near_ce)
    result = run_edit(problem_of(threatening), method, meter, budget)
    assert integrity.weights_hash(threatening) == before == result.delta.base_hash
    assert LANDING[0] <= result.disruption.used(budget) <= LANDING[1]
    assert result.stop == f"budget ({result.disruption.binding(budget)})"
    with editing.edited(threatening, result.delta):
        assert float(completion_probability(sequence_logprobs(threatening, some)).mean()) < known - 0.01
    if near_ce is None:
        again = run_edit(problem_of(threatening), method, meter, budget)
        assert all(torch.equal(u, again.delta.updates[n]) for n, u in result.delta.updates.items()), "same seed"


def test_methods_on_a_shared_problem_do_not_disturb_each_other(problem: Problem, threatening: Any) -> None:
    """Whatever was tried before on the same problem, a method gives the bits that it gives alone."""
    methods = [SSPU(forget_rank=16, retain_rank=4), *TINY, SSPU(forget_rank=16, retain_rank=8, sides="g")]
    together = [first_update(m, problem) for m in methods]
    for method, found in zip(methods, together, strict=True):
        alone = first_update(method, problem_of(threatening))
        assert all(torch.equal(found[n], alone[n]) for n in alone), method


# ------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize("method", [KFAC(), SSPU(forget_rank=4, retain_rank=4)])
def test_the_retain_side_needs_a_corpus(threatening: Any, method: Any) -> None:
    """Retain or reference will do (positive control); whitening needs neither."""
    assert first_update(method, problem_of(threatening, retain=None))
    assert first_update(Whitened(), problem_of(threatening, retain=None, reference=None))
    with pytest.raises(InputError, match="retain curvature needs a 'retain' or a 'reference' corpus"):
        first_update(method, problem_of(threatening, retain=None, reference=None))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Whitened, {"rank": 0}, "whitened: rank must be 1 or more, got 0"),
        (Whitened, {"quantile": 1.0}, "whitened: quantile must be between 0 and 1, got 1.0"),
        (Whitened, {"rank": 4, "quantile": 0.5}, "give rank or quantile, not both .got 4 and 0.5"),
        (Whitened, {"form": "qr"}, "form: .*'solve' or 'svd' .*qr"),
        (KFAC, {"share": 0}, "kfac: share must be between 0 and 1, got 0"),
        (KFAC, {"top": -1}, "kfac: top must be 0 or more, got -1"),
        (KFAC, {"share": 0.5, "top": 3}, "give share or top, not both .got 0.5 and 3"),
        (KFAC, {"shares": 0.5}, "no option 'shares'; .*did you mean 'share'"),
        (SSPU, {"forget_rank": 0}, "sspu: forget_rank must be 1 or more and retain_rank 0 or more, got 0 and 32"),
        (SSPU, {"sides": "y"}, "sides: .*y"),
    ],
)
def test_bad_options_are_named(cls: Any, options: dict[str, Any], message: str) -> None:
    """Value and what would be valid; the defaults are (positive control)."""
    assert cls.with_options({}).options() == cls().options()
    with pytest.raises(InputError, match=message):
        cls.with_options(options)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (KFAC(top=64 * 128), r"kfac: top 8192 leaves nothing of blocks.0.mlp.gate \(128 x 64\)"),
        (SSPU(forget_rank=65), r"sspu: rank 65 at blocks.0.mlp.gate \(x\): must be at most 64"),
        (SSPU(retain_rank=70), r"sspu: rank 70 at blocks.0.mlp.gate \(x\): must be at most 64"),
    ],
)
def test_numbers_too_large_for_a_site_name_it(problem: Problem, method: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        first_update(method, problem)
