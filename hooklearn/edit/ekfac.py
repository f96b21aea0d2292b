"""The eigenvalue-corrected metric: K-FAC's basis, and the curvature that retain text really has along it.

K-FAC takes the curvature of the component (i, j) to be the product of two averages, ``E[(u_i g)^2] E[(v_j x)^2]``. Here
it is the average of the product, ``S_ij = E[(u_i g)^2 (v_j x)^2]``, the diagonal of the per-token Fisher in that basis
(George et al. 2018, arXiv 1806.03884, section 3). It needs a second pass over the text, and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from hooklearn import memory
from hooklearn.edit.lowcurvature import Eigen
from hooklearn.edit.method import Problem, Updates, check_read
from hooklearn.forward import count_tokens
from hooklearn.locate.capture import Labels, tapes
from hooklearn.moments import Moments
from hooklearn.types import NumericalError


class SiteMetric(ABC):
    """A metric of the retain text that is one matrix a site; Euclidean across sites."""

    @abstractmethod
    def solved(self, *gradients: Updates) -> Iterator[tuple[str, list[Tensor]]]:
        """(site, ``F'^-1 G`` of each), one site at a time."""

    def solve(self, *gradients: Updates) -> list[Updates]:
        """``F'^-1 G`` of each."""
        out: list[Updates] = [{} for _ in gradients]
        for name, solutions in self.solved(*gradients):
            for of, solution in zip(out, solutions, strict=True):
                of[name] = solution
        return out


class EigenMetric(SiteMetric):
    """``F ~ (U (x) V) diag(S) (U (x) V)^T`` of the retain text, per site."""

    def __init__(self, problem: Problem, damping: float, labels: Labels = "sampled") -> None:
        """
        Args:
            damping: as a share of the mean of S.
            labels: of the basis and of S alike.
        """
        self.damping = damping
        self.labels: Labels = labels
        self.u: dict[str, Tensor] = {}
        self.v: dict[str, Tensor] = {}
        last: tuple[Moments, Tensor] | None = None
        for name, moments in problem.curvature(labels).items():
            one = moments.side("x")
            check_read(one, name)
            if last is None or last[0] is not one:  # gate and up share their inputs
                last = (one, Eigen.of(one.mean_second()).vectors.to(one.second))
            self.v[name] = last[1]
            self.u[name] = Eigen.of(moments.side("g").mean_second()).vectors.to(one.second)
        memory.give_back()
        self.curvature = self._curvature(problem)

    def _curvature(self, problem: Problem) -> dict[str, Tensor]:
        """``S``, over the very text and labels that gave the basis."""
        roles = [r for r, c in (("retain", problem.retain), ("reference", problem.reference)) if c]
        stream = [b for role in roles for b in problem.curvature_stream(role)]
        problem.tokens += count_tokens(stream)
        total = {s.name: self.u[s.name].new_zeros(s.d_out, s.d_in) for s in problem.sites}
        rows = 0
        for batch, taped in tapes(
            problem.model, stream, problem.sites, labels=self.labels, precision=problem.precision, seed=problem.seed
        ):
            for name, tape in taped.items():
                assert tape.g is not None
                u, v = self.u[name], self.v[name]
                total[name] += (tape.g.to(u) @ u).square().T @ (tape.x.to(v) @ v).square()
            rows += int(batch.mask.sum())
        for name, s in total.items():
            if not bool(s.isfinite().all()):
                raise NumericalError(f"the curvature at {name} is not finite")
        return {name: s / rows for name, s in total.items()}

    def solved(self, *gradients: Updates) -> Iterator[tuple[str, list[Tensor]]]:
        """``F'`` has ``damping * mean(S)`` added to S."""
        for name, s in self.curvature.items():
            u, v = self.u[name], self.v[name]
            scale = s + self.damping * s.mean()
            yield name, [u @ ((u.T @ gradient[name] @ v) / scale) @ v.T for gradient in gradients]
