"""The natural-gradient edit: most forget effect per nat of disruption.

To first order a small update ``D`` changes the forget loss by ``<G_f, D>`` and costs ``1/2 D^T F D`` nats of KL on
retain text, F the Fisher information there. So under a KL budget the best update is ``D ~ F^-1 G``. With
Kronecker factors (Martens & Grosse 2015) per site, ``F ~ A (x) B``, ``A = E[x x^T]``, ``B = E[g g^T]`` (labels
sampled from the model, so that it is the Fisher and not the gradient covariance; ``labels: true`` is that one),

    D = B'^-1 G A'^-1,     M' = M + damping * tr(M)/d * I .

``G`` is not the forget gradient alone. Bad completions are pushed *down* and good completions to the same prompts
pulled *up*; both are normalised in the metric itself before they are mixed,

    G = w * G_f / |G_f|_{F^-1}  -  G_r / |G_r|_{F^-1} .

Too large a ``w`` costs good text of the same form that the edit has *not* seen. Where that begins is known beforehand,
to first order, by cross-fitting: with the retain text in two halves, ``G_r = G_1 + G_2``, what pulling one half up
does for the other stands for what it does for text that neither holds, and so unseen good text breaks even at

    w_0 = 4 <G_1, F^-1 G_2> |G_f|_{F^-1} / (<G_r, F^-1 G_f> |G_r|_{F^-1}) .

(4: pulling up both halves does twice that, and a half sees half of what ``G_r`` sees of bad going down.)
``contrast: balanced`` counts ``w`` in units of ``w_0``.

Within given subspaces, orthonormal bases V_x and V_g of a site, the same reasoning gives the best update *there*, which
is not the projection of ``D``:

    D = V_g (V_g^T B' V_g)^-1 (V_g^T G V_x) (V_x^T A' V_x)^-1 V_x^T .

With forget-side moments C_x, C_g the same update can be written in generalised eigenvectors of (C, A'), scaled to
``E^T A' E = I``: ``E_g E_g^T G E_x E_x^T`` with all vectors is exactly ``D`` since ``E E^T = A'^-1``; with the top
``rank`` of them (largest forget-to-retain ratio) the update lies in the located subspace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hooklearn import linalg
from hooklearn.edit.ekfac import EigenMetric, SiteMetric
from hooklearn.edit.elicited import Adversary, elicited_gradient
from hooklearn.edit.method import CURVATURE, HALVES, Method, Problem, Updates, check_read, combine, inner
from hooklearn.edit.repselect import contrast
from hooklearn.edit.sketched import SketchedMetric
from hooklearn.linalg import Sides
from hooklearn.locate.capture import Labels
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.moments import Moments
from hooklearn.types import InputError, Side

Mixture = Literal["mixture", "balanced", "project", "fisher", "none"]


@dataclass(frozen=True, kw_only=True)
class Natural(Method):
    """Natural-gradient edit: bad down, good up, whitened by the curvature of the retain text (K-FAC)."""

    name: ClassVar[str] = "natural"
    source: ClassVar[str] = "hooklearn; K-FAC (Martens & Grosse 2015, arXiv 1503.05671) under a KL budget"
    confines: ClassVar[bool] = True
    forget_weight: float = 1.0
    """w: bad down this much for good up 1; 0 only pulls the good up."""
    damping: float = 0.01
    """As a share of the mean curvature of a side. With little of it the update goes where retain text hardly looks,
    which is right for single facts; there it can also learn a handful of good completions by heart, so a tendency
    wants about 1: only what retain text uses more than the average is then held."""
    contrast: Mixture = "mixture"
    """``mixture`` as above; ``balanced``: the same, ``forget_weight`` being a share of the weight at which good text of
    the same form that was not given begins to suffer (about .5 is good); ``project``: G_f without its component along
    G_r, per site; ``fisher``: good just held, in the metric and over all sites; ``none``: G_f alone."""
    sides: Sides = "both"
    """Whiten both sides, or one only."""
    rank: int | None = None
    """Confine to this many generalised eigenvectors a side; None keeps all."""
    truncation: Literal["directions", "svd"] = "directions"
    """``svd``: best rank-``rank`` approximation per unit of KL (Eckart-Young in the metric)."""
    curvature: Literal["kfac", "ekfac"] = "kfac"
    """``ekfac``: K-FAC's basis with the curvature measured along it (:mod:`hooklearn.edit.ekfac`); a second pass over
    the retain text, and as much memory again as the moments and the edited weights take."""
    labels: Literal["sampled", "true"] = "sampled"
    """Of the retain text's own loss, whose gradients are g: ``sampled`` from the model, which makes ``E[g g^T]`` the
    Fisher information; ``true``: the text's own next tokens, the empirical Fisher."""
    sketch_rank: int | None = None
    """Keep this many eigenpairs of A and of B each, and the mean of the other eigenvalues in place of these; None, and
    anything from a side's width on, keeps all. The moments are still streamed whole."""
    adversaries: tuple[str, ...] = ()
    """Take G_f also where forget has been taught first, for an epoch: ``lora@0.01`` (rank 8, SGD at this rate),
    ``full@1e-4`` (the edited weights, Adam). G_f is then the mean over the model as it is and all of these, each
    gradient of length 1."""

    def __post_init__(self) -> None:
        if self.forget_weight < 0 or self.damping <= 0:
            raise InputError(
                f"natural: forget_weight must be 0 or more and damping positive, got "
                f"{self.forget_weight} and {self.damping}"
            )
        if self.rank is not None and self.rank < 1:
            raise InputError(f"natural: rank must be 1 or more, got {self.rank}")
        for adversary in self.adversaries:
            Adversary.of(adversary)
        if self.rank is None:
            self.refuse("truncation", why="it says how to cut to a rank, and none is given")
        if self.contrast in ("project", "fisher", "none"):
            self.refuse("forget_weight", why=f"contrast {self.contrast!r} is no mixture")
        elif self.forget_weight == 0:
            self.refuse("adversaries", why="with forget_weight 0 nothing of forget goes down")
        if self.curvature == "ekfac" and (self.sides != "both" or self.rank is not None):
            raise InputError("natural: curvature 'ekfac' is of both sides and all directions; leave out sides and rank")
        self._check_sketch()

    def _check_sketch(self) -> None:
        if self.sketch_rank is None:
            return
        if self.sketch_rank < 1:
            raise InputError(f"natural: sketch_rank must be 1 or more, got {self.sketch_rank}")
        if self.curvature == "ekfac":
            raise InputError(
                f"natural: sketch_rank {self.sketch_rank} is of K-FAC's factors, and curvature 'ekfac' measures along "
                "all of their directions; leave one of them out"
            )
        if self.rank is not None and self.truncation == "directions":
            raise InputError(
                f"natural: sketch_rank {self.sketch_rank} would not be used: a rank of truncation 'directions' is "
                "found in the whole moments; take truncation 'svd', or leave one of them out"
            )

    @property
    def trains(self) -> bool:
        return any(Adversary.of(a).kind == "full" for a in self.adversaries)

    @property
    def sharded(self) -> bool:
        whole = self.rank is None and self.sketch_rank is None
        return self.curvature == "kfac" and whole and not self.adversaries

    @property
    def needs(self) -> tuple[str, ...]:
        return (CURVATURE,) if self.contrast == "none" else ("retain",)

    def path(self, problem: Problem) -> Iterator[Updates]:
        own_directions = self.rank is not None and self.truncation == "directions"
        if problem.subspaces is not None and (own_directions or self.curvature == "ekfac"):
            raise InputError(
                "natural: within given subspaces the curvature is 'kfac', and a rank needs truncation 'svd' (what "
                "truncation 'directions' keeps are subspaces of its own)"
            )
        if problem.subspaces is not None and self.sketch_rank is not None:
            raise InputError(
                f"natural: sketch_rank {self.sketch_rank} is of the whole factors, and within given subspaces only "
                "their part there is solved with; leave one of them out"
            )
        if problem.site_batch is not None and (own_directions or self.curvature == "ekfac"):
            raise InputError(
                f"natural: site_batch {problem.site_batch} would change nothing: curvature 'ekfac', and a rank of "
                "truncation 'directions', hold all sites at once"
            )
        if self.curvature == "ekfac":
            yield self._solved(problem, EigenMetric(problem, self.damping, self._labels))
            return
        metric = self._metric(problem)
        if self.rank is None:
            yield self._solved(problem, metric)
        elif self.truncation == "svd":
            yield metric.truncated(self._gradient(problem, metric), self.rank)
        else:
            yield _confined(self._gradient(problem, metric), self._directions(problem))

    def _metric(self, problem: Problem) -> Metric | SketchedMetric:
        if self.sketch_rank is None:
            return Metric(problem, self.damping, self.sides, self._labels)
        return SketchedMetric(problem, self.damping, self.sketch_rank, self.sides, self._labels)

    def _solved(self, problem: Problem, metric: SiteMetric) -> Updates:
        """``F^-1 G``; the mixture needs both solutions for its norms, and they are all it needs."""
        if self.contrast not in ("mixture", "balanced", "fisher"):
            return metric.solve(self._gradient(problem, metric))[0]
        given = [self._forget(problem, take=True), *(problem.taken_gradient(of) for of in self._goods)]
        products = Products()
        down: Updates = {}
        up: Updates = {}
        for name, solved in metric.solved(*given):
            products.add([gradients[name] for gradients in given], solved)
            down[name], up[name] = solved[0], _total(solved[1:])
            if not problem.keep:  # all of these are as large as the edited weights
                for gradients in given:
                    del gradients[name]
        w_down, w_up = self._weights(products, problem)
        for name, update in down.items():
            update.mul_(w_down).add_(up.pop(name), alpha=w_up)
        return down

    def _gradient(self, problem: Problem, metric: SiteMetric) -> Updates:
        if self.contrast == "none":
            return self._forget(problem)
        if self.contrast == "project":
            return contrast(self._forget(problem), problem.gradient("retain"))
        forget, *goods = given = [self._forget(problem), *(problem.gradient(of) for of in self._goods)]
        products = Products()
        for name, solved in metric.solved(*given):
            products.add([gradients[name] for gradients in given], solved)
        retain = {name: _total([good[name] for good in goods]) for name in forget}
        return combine(forget, retain, *self._weights(products, problem))

    def _forget(self, problem: Problem, *, take: bool = False) -> Updates:
        """``G_f``; ``take``: for the caller to take apart where nothing is kept."""
        if self.adversaries:
            return elicited_gradient(problem, [Adversary.of(a) for a in self.adversaries])
        return problem.taken_gradient("forget") if take else problem.gradient("forget")

    @property
    def _labels(self) -> Labels:
        """In the words of :func:`hooklearn.locate.capture.tapes`."""
        return "given" if self.labels == "true" else "sampled"

    @property
    def _goods(self) -> tuple[str, ...]:
        """Good text in one piece or in two."""
        return HALVES if self.contrast == "balanced" else ("retain",)

    def _weights(self, of: Products, problem: Problem) -> tuple[float, float]:
        """Weights of G_f and G_r."""
        if self.contrast == "fisher":
            return 1.0, -max(0.0, of.forget_up / of.retain_up)
        w = self.forget_weight
        if self.contrast == "balanced":
            problem.found["break_even"] = even = of.break_even()
            problem.found["forget_weight"] = w = w * even
        return w / math.sqrt(max(of.forget_down, 1e-60)), -1.0 / math.sqrt(max(of.retain_up, 1e-60))

    # ------------------------------------------------------------------- confined to directions

    def _directions(self, problem: Problem) -> Subspaces:
        """Generalised eigenvectors (forget moments, damped retain moments), most selective first."""
        assert self.rank is not None
        cache = problem.__dict__.setdefault("_natural_directions", {})
        key = (self.rank, self.damping, self.sides, self.labels)
        if key not in cache:
            found = {}
            for site in problem.sites:
                for side in _sides(self.sides):
                    forget = problem.forget_moments[site.name].side(side)
                    retain = problem.curvature(self._labels)[site.name].side(side)
                    k = min(self.rank, forget.n, site.width(side))
                    oblique, values, _ = linalg.generalised_eigh(
                        forget.mean_second(), linalg.damped(retain.mean_second(), self.damping), k
                    )
                    found[site.name, side] = Subspace.of(
                        site, side, "natural", oblique, values, moments=(forget, retain)
                    )
            cache[key] = Subspaces(found)
        return cache[key]

    def promise(self, problem: Problem) -> Subspaces | None:
        if problem.subspaces is not None:
            return problem.subspaces
        if self.rank is None or self.truncation == "svd":
            return None
        return self._directions(problem)


def _sides(sides: Sides) -> tuple[Side, ...]:
    return ("x", "g") if sides == "both" else (sides,)


def _confined(gradient: Updates, spaces: Subspaces) -> Updates:
    """``E_g E_g^T G E_x E_x^T``: what the chosen directions can carry of the natural gradient."""
    out = {}
    for name, update in gradient.items():
        for side in ("x", "g"):
            space = spaces.get(name, side)
            if space is not None:
                e = space.vectors.to(update)
                update = update @ e @ e.T if side == "x" else e @ (e.T @ update)
        out[name] = update
    return out


def _total(parts: Sequence[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


@dataclass
class Products:
    """Inner products over all sites, site by site: ``<G_f, F^-1 G_f>`` and so on."""

    forget_down: float = 0.0
    forget_up: float = 0.0
    retain_up: float = 0.0
    across: float = 0.0
    """``<G_1, F^-1 G_2>`` of two halves of the retain text."""

    def add(self, gradients: Sequence[Tensor], solved: Sequence[Tensor]) -> None:
        """Gradients of one site, of the forget text and of the retain text or its halves; ``F^-1`` applied to each."""
        forget, *goods = gradients
        down, *ups = solved
        up = _total(ups)
        self.forget_down += _inner(forget, down)
        self.forget_up += _inner(forget, up)
        self.retain_up += _inner(_total(goods), up)
        self.across += _inner(goods[0], ups[-1])

    def break_even(self) -> float:
        """``w_0``.

        Raises:
            InputError: there is none.
        """
        if self.across <= 0:
            raise InputError(
                "natural: pulling one half of the retain text up does nothing for the other, so it balances nothing; "
                "give more retain text, or take contrast: mixture"
            )
        if self.forget_up <= 0:
            raise InputError(
                "natural: pushing the forget text down does the retain text no harm, so nothing has to be balanced; "
                "take contrast: mixture"
            )
        return 4 * self.across / self.forget_up * math.sqrt(self.forget_down / self.retain_up)


def _inner(a: Tensor, b: Tensor) -> float:
    return inner({"": a}, {"": b})


class Metric(SiteMetric):
    """The K-FAC metric of the retain text: A' and B' per site, factored when they are needed and not kept. Within given
    subspaces of those only."""

    def __init__(self, problem: Problem, damping: float, sides: Sides = "both", labels: Labels = "sampled") -> None:
        self.problem = problem
        self.labels: Labels = labels
        self.damping = damping
        self.sides = sides

    def factors(self) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
        """(site, Cholesky factor of A', of B'), in the coordinates of the subspaces where some are given; gate and up
        share their inputs, and so their A'."""
        last: tuple[Moments, Tensor | None, Tensor] | None = None
        for name, moments in self.problem.retain_moments_in_turn(self.labels):
            x = g = None
            x_basis, g_basis = self._bases(name)
            if self.sides != "g":
                one = moments.side("x")
                if last is None or last[0] is not one or last[1] is not x_basis:
                    last = (one, x_basis, self._factor(one, x_basis, f"{name} (x)"))
                x = last[2]
            if self.sides != "x":
                g = self._factor(moments.side("g"), g_basis, f"{name} (g)")
            yield name, x, g

    def _bases(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        spaces = self.problem.subspaces
        return (None, None) if spaces is None else spaces.bases(name)

    def _factor(self, moments: Moments, basis: Tensor | None, where: str) -> Tensor:
        check_read(moments, where)
        second = linalg.damped(moments.mean_second(), self.damping)
        if basis is not None:
            basis = basis.to(second)
            second = basis.T @ second @ basis
        return linalg.cholesky(second, f"retain moments of {where}")

    def _inside(self, name: str, update: Tensor) -> Tensor:
        """In the coordinates of the subspaces."""
        x, g = self._bases(name)
        update = update if x is None else update @ x.to(update)
        return update if g is None else g.to(update).T @ update

    def _outside(self, name: str, update: Tensor) -> Tensor:
        x, g = self._bases(name)
        update = update if x is None else update @ x.to(update).T
        return update if g is None else g.to(update) @ update

    def solved(self, *gradients: Updates) -> Iterator[tuple[str, list[Tensor]]]:
        """(site, ``F^-1 G`` of each), one site at a time."""
        for name, x, g in self.factors():
            inside = (self._inside(name, gradient[name]) for gradient in gradients)
            yield name, [self._outside(name, linalg.precondition(one, x, g)) for one in inside]

    def truncated(self, gradient: Updates, rank: int) -> Updates:
        """Truncated SVD of ``L_B^-1 G L_A^-T``, mapped back: the best rank-k update per unit of KL."""
        out = {}
        for name, x, g in self.factors():
            u, s, v = linalg.top_components(linalg.whitened(self._inside(name, gradient[name]), x, g), rank)
            kept = (u * s.to(u.dtype)) @ v.T
            if g is not None:
                kept = torch.linalg.solve_triangular(g.T, kept, upper=True)
            if x is not None:
                kept = torch.linalg.solve_triangular(x.T, kept.T, upper=True).T
            out[name] = self._outside(name, kept)
        return out
