"""The K-FAC metric of the retain text from sketches of its factors: how much of the metric is in a few directions?

``A ~ V diag(l) V^T + mean of the rest``, likewise B, damped as in :mod:`hooklearn.edit.natural`. A power of a sketch is
a sketch, so both the solve and the truncated SVD are products with ``rank`` columns. The moments are streamed whole all
the same. Each solve takes less time, and a factor less room (1536 wide, 32 pairs, 576 right-hand sides, one thread:
4 ms in place of 206); but exact eigenpairs take longer to find than a Cholesky factor (951 ms in place of 116), so it
is for the question above and for many solves in one metric, not for one fast edit.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hooklearn import linalg
from hooklearn.edit.ekfac import SiteMetric
from hooklearn.edit.method import Problem, Updates, check_read
from hooklearn.linalg import Sides
from hooklearn.locate.capture import Labels
from hooklearn.moments import Moments
from hooklearn.sketch import Sketch


class SketchedMetric(SiteMetric):
    """``B'^-1 G A'^-1`` with both of them sketched, one site at a time."""

    def __init__(self, problem: Problem, damping: float, rank: int, sides: Sides, labels: Labels) -> None:
        """
        Args:
            rank: eigenpairs kept a side; from the width of a side on it is whole.
        """
        self.problem = problem
        self.damping = damping
        self.rank = rank
        self.sides: Sides = sides
        self.labels: Labels = labels

    def factors(self) -> Iterator[tuple[str, Sketch | None, Sketch | None]]:
        """(site, A', B'); None for a side that is not whitened. Gate and up share their inputs, and so their A'."""
        last: tuple[Moments, Sketch] | None = None
        for name, moments in self.problem.retain_moments_in_turn(self.labels):
            x = g = None
            if self.sides != "g":
                one = moments.side("x")
                if last is None or last[0] is not one:
                    last = (one, self._factor(one, name))
                x = last[1]
            if self.sides != "x":
                g = self._factor(moments.side("g"), name)
            yield name, x, g

    def _factor(self, moments: Moments, where: str) -> Sketch:
        check_read(moments, where)
        return Sketch.of(moments.mean_second(), self.rank).damped(self.damping)

    def solved(self, *gradients: Updates) -> Iterator[tuple[str, list[Tensor]]]:
        for name, x, g in self.factors():
            yield name, [_both(gradient[name], x, g, power=-1.0) for gradient in gradients]

    def truncated(self, gradient: Updates, rank: int) -> Updates:
        """Truncated SVD of ``B'^-1/2 G A'^-1/2``, mapped back: the best rank-k update per unit of KL."""
        out = {}
        for name, x, g in self.factors():
            u, s, v = linalg.top_components(_both(gradient[name], x, g, power=-0.5), rank)
            out[name] = _both((u * s.to(u.dtype)) @ v.T, x, g, power=-0.5)
        return out


def _both(update: Tensor, x: Sketch | None, g: Sketch | None, *, power: float) -> Tensor:
    """``B^power U A^power``, without the sides that are None."""
    if g is not None:
        update = g.times(update, power=power)
    return update if x is None else x.times(update.T, power=power).T
