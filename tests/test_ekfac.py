"""The eigenvalue-corrected metric against the per-token Fisher it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from editing import alike, first_update, problem_of

from hooklearn.edit import Problem, method_of
from hooklearn.edit.ekfac import EigenMetric
from hooklearn.edit.natural import Natural
from hooklearn.locate.capture import tapes
from hooklearn.types import InputError

SINGLE = 1e-4
"""Relative, float32 sums over some thousand tokens."""


@pytest.fixture(scope="module")
def problem(threatening: Any) -> Problem:
    return problem_of(threatening)


def test_it_is_the_fisher_along_its_own_basis(problem: Problem) -> None:
    """``S_ij`` is ``E[(g^T D x)^2]`` for ``D = u_i v_j^T``: what one such update costs. K-FAC's product of averages,
    in the same basis, is off by a tenth or more in half of the components."""
    metric = EigenMetric(problem, damping=1.0)
    site = problem.sites[1]
    stream = [b for role in ("retain", "reference") for b in problem.curvature_stream(role)]
    taped = tapes(problem.model, stream, [site], labels="sampled", precision=problem.precision, seed=problem.seed)
    g, x = (
        torch.cat(parts).double() for parts in zip(*[(t[site.name].g, t[site.name].x) for _, t in taped], strict=True)
    )
    u, v, s = metric.u[site.name].double(), metric.v[site.name].double(), metric.curvature[site.name].double()
    for i, j in ((-1, -1), (-1, 0), (0, -1), (5, 7)):
        d = torch.outer(u[:, i], v[:, j])
        cost = ((g @ d) * x).sum(1).square().mean()
        assert float(s[i, j]) == pytest.approx(float(cost), rel=SINGLE)
    product = torch.outer((g @ u).square().mean(0), (x @ v).square().mean(0))
    off = (product / s).log().abs()
    assert float(off.median()) > 0.1


def test_it_solves_what_it_says(problem: Problem) -> None:
    """The damped metric applied to the solution gives the gradient back; far damping gives the gradient's direction."""
    gradient = problem.gradient("forget")
    metric = EigenMetric(problem, damping=0.1)
    [solved] = metric.solve(gradient)
    back = {}
    for name, d in solved.items():
        s, u, v = metric.curvature[name], metric.u[name], metric.v[name]
        back[name] = u @ ((u.T @ d @ v) * (s + 0.1 * s.mean())) @ v.T
    assert alike(back, gradient) < SINGLE
    metric.damping = 1e7
    [flat] = metric.solve(gradient)
    name = problem.sites[0].name
    assert torch.cosine_similarity(flat[name].flatten(), gradient[name].flatten(), 0) > 1 - 1e-5


def test_as_an_option_of_natural(problem: Problem) -> None:
    """It is another edit than K-FAC's, and says what it cannot be combined with."""
    update = first_update(method_of("natural", {"curvature": "ekfac"}), problem)
    assert update.keys() == {s.name for s in problem.sites}
    assert alike(update, first_update(Natural(), problem)) > 0.1
    with pytest.raises(InputError, match="all directions"):
        method_of("natural", {"curvature": "ekfac", "rank": 4})


def test_labels_are_those_of_the_basis_and_of_the_second_pass(problem: Problem) -> None:
    """With the text's own labels the sum of ``S`` is ``E[|g|^2 |x|^2]`` at these, the trace of the empirical Fisher in
    whatever basis; sampled ones, the default, give another (control), and another edit."""
    site = problem.sites[1]
    stream = [b for role in ("retain", "reference") for b in problem.curvature_stream(role)]
    taped = [t[site.name] for _, t in tapes(problem.model, stream, [site], precision=problem.precision)]
    g, x = torch.cat([t.g for t in taped]).double(), torch.cat([t.x for t in taped]).double()
    total = float((g.square().sum(1) * x.square().sum(1)).mean())  # the trace of the Fisher, in whatever basis
    true, sampled, default = (
        float(EigenMetric(problem, 1.0, *labels).curvature[site.name].double().sum())
        for labels in (("given",), ("sampled",), ())
    )  # fmt: skip
    assert true == pytest.approx(total, rel=SINGLE) and sampled == default
    assert abs(sampled / total - 1) > 0.05
    one, other = (first_update(Natural(curvature="ekfac", labels=labels), problem) for labels in ("true", "sampled"))
    assert alike(one, other) > 0.1
