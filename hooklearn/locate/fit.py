"""Fitting subspaces that distinguish forget from retain data, and judging them on data they were not fitted on.

One pass over each class collects streaming moments (per token) and item means (per text); every fitter, rank and
null is derived from those, so trying ten of them costs one capture. Directions are fitted on one part of the groups
and judged on the other.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooklearn import linalg, models, parallel
from hooklearn.data import Corpus, TokenBatch, batches, encode
from hooklearn.forward import Precision
from hooklearn.linalg import Moments, MomentSum, Sides
from hooklearn.locate.capture import tapes
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.types import NAN, InputError, Side, Site, Tape

if TYPE_CHECKING:
    import pandas as pd

FITTERS = {
    "pca": "top eigenvectors of the forget moments (high variance, not yet selective)",
    "contrast": "generalised eigenvectors: most forget energy per unit of retain energy",
    "mean_diff": "difference of class means, rank 1",
    "probe": "logistic regression; further ranks by iterative null-space projection",
    "random": "a random subspace: the null that every other fitter must beat",
}
FITTER_SOURCES = {
    "pca": "Pearson 1901; RepSelect's components",
    "contrast": "generalised eigenproblem; contrastive PCA (Abid et al. 2018) without its free parameter",
    "mean_diff": "Marks & Tegmark 2023, arXiv 2310.06824",
    "probe": "INLP (Ravfogel et al. 2020, arXiv 2004.07667)",
    "random": "Haar measure",
}
Fitter = Literal["pca", "contrast", "mean_diff", "probe", "random"]
HELD_OUT = 1 / 3
"""Share of the groups on which separation is measured."""
DAMPING = 0.01
NULL_DRAWS = 4
"""Shuffles and random subspaces behind each null; their mean is reported."""

# ----------------------------------------------------------------------------------- one collection


@dataclass(frozen=True)
class ClassData:
    """What one class (forget or retain) showed at every site and side."""

    moments: Mapping[tuple[str, Side], Moments]
    """Per token, over labelled positions of the fitted groups."""
    fitted: Mapping[tuple[str, Side], Float[Tensor, "_item _d"]]
    """Item means of the fitted groups."""
    held_out: Mapping[tuple[str, Side], Float[Tensor, "_item _d"]]
    tokens: Mapping[str, int]
    """Per site, how many labelled tokens of the fitted groups it was given: all, except for an expert."""


@dataclass(frozen=True)
class Collected:
    """One capture of both classes, from which any fitter and rank can be derived."""

    sites: Sequence[Site]
    sides: tuple[Side, ...]
    forget: ClassData
    retain: ClassData

    def fit(self, fitter: str, rank: int, *, seed: int = 0, judge: bool = True) -> Subspaces:
        """Fit one kind of subspace everywhere that both classes reach.

        Experts that a class never or rarely reaches are named in a warning; see :attr:`Subspaces.tokens`.

        Raises:
            InputError: unknown fitter, a rank above the smallest dimension, or no site that both classes reach.
        """
        if fitter not in FITTERS:
            raise InputError(f"unknown fitter {fitter!r}; valid: {', '.join(FITTERS)}")
        out: dict[tuple[str, Side], Subspace] = {}
        found: dict[int, Subspace] = {}  # gate and up read the same tensor: fitted and judged once
        tokens = {site.name: (self.forget.tokens[site.name], self.retain.tokens[site.name]) for site in self.sites}
        for site in self.sites:
            if not min(tokens[site.name]):
                continue  # nothing to compare
            for side in self.sides:
                if not 1 <= rank <= site.width(side):
                    raise InputError(f"rank {rank} at {site.name} ({side}): must be between 1 and {site.width(side)}")
                shared = id(self.forget.moments[site.name, side])
                if shared not in found:
                    space = self._fit_one(site, side, fitter, rank, seed)
                    found[shared] = self._judged(space, seed) if judge else space
                out[site.name, side] = replace(found[shared], site=site)
        spaces = Subspaces(out, tokens)
        if rare := spaces.rare():
            some = ", ".join(f"{name} (forget {f}, retain {r})" for name, (f, r) in itertools.islice(rare.items(), 3))
            more = ", ..." if len(rare) > 3 else ""
            warnings.warn(f"{len(rare)} expert sites were given few tokens or none: {some}{more}", stacklevel=2)
        if not out:
            raise InputError("locate: no site was given tokens of both classes; give more text")
        return spaces

    def _fit_one(self, site: Site, side: Side, fitter: str, rank: int, seed: int) -> Subspace:
        key = (site.name, side)
        forget, retain = self.forget.moments[key], self.retain.moments[key]
        condition = NAN
        if fitter == "pca":
            vectors, values = linalg.pca(forget.mean_second(), rank)
        elif fitter == "contrast":
            metric = linalg.damped(retain.mean_second(), DAMPING)
            condition = linalg.condition_number(metric)
            vectors, values = linalg.generalised_eigh(forget.mean_second(), metric, min(rank, forget.n))
        elif fitter == "mean_diff":
            difference = (forget.mean - retain.mean)[:, None]
            vectors, values = difference, difference.norm()[None]
        elif fitter == "random":
            vectors = linalg.random_basis(site.width(side), rank, seed + _number(site, side))
            values = torch.ones(rank)
        else:
            vectors, values = _probe_directions(self.forget.fitted[key], self.retain.fitted[key], rank)
        return replace(Subspace.of(site, side, fitter, vectors, values, moments=(forget, retain)), condition=condition)

    def _judged(self, space: Subspace, seed: int) -> Subspace:
        key = (space.site.name, space.side)
        data = (
            self.forget.fitted[key], self.retain.fitted[key],
            self.forget.held_out[key], self.retain.held_out[key],
        )  # fmt: skip
        place = seed + 1 + _number(space.site, space.side)
        nulls = range(place, place + NULL_DRAWS)
        random_aucs = [_separation(linalg.random_basis(space.basis.shape[0], space.rank, n), data) for n in nulls]
        return replace(
            space,
            auc=_separation(space.basis, data),
            auc_shuffled=fmean(_separation(space.basis, data, shuffle=n) for n in nulls),
            auc_random=fmean(random_aucs),
        )


def _number(site: Site, side: Side) -> int:
    """A stable small number per place, to seed its nulls."""
    return sum(map(ord, f"{site.name}{side}")) * 7919 + site.layer


def held_out_groups(*corpora: Corpus, seed: int) -> set[str]:
    """A third of the groups of each, on which nothing is fitted; corpora with the same groups share them."""
    held: set[str] = set()
    for corpus in corpora:
        groups = sorted(set(corpus.groups))
        random.Random(seed).shuffle(groups)  # the same groups: the same order
        held.update(groups[: max(1, round(HELD_OUT * len(groups)))])
    return held


def collect(
    model: Any,
    forget: Corpus,
    retain: Corpus,
    sites: Sequence[Site],
    *,
    sides: Sides = "x",
    seed: int = 0,
    precision: Precision = "auto",
    max_tokens: int = 1024,
) -> Collected:
    """Stream both classes once; a third of the groups of each is held out, shared groups for both."""
    wanted: tuple[Side, ...] = ("x", "g") if sides == "both" else (sides,)
    held = held_out_groups(forget, retain, seed=seed)
    for corpus in (forget, retain):
        if not set(corpus.groups) - held:
            n = len(set(corpus.groups))
            raise InputError(f"locate holds a third of the groups out; corpus {corpus.name!r} has {n} in all")

    def one(corpus: Corpus) -> ClassData:
        return _collect_class(model, corpus, sites, wanted, held, precision, max_tokens)

    return Collected(list(sites), wanted, one(forget), one(retain))


def _collect_class(
    model: Any,
    corpus: Corpus,
    sites: Sequence[Site],
    sides: tuple[Side, ...],
    held: set[str],
    precision: Precision,
    max_tokens: int,
) -> ClassData:
    sequences = encode(corpus, models.tokenizer_of(model))
    group_of = corpus.groups
    fitted = [s for s in sequences if group_of[s.item] not in held]
    held_out = [s for s in sequences if group_of[s.item] in held]
    gradients = "g" in sides
    device = models.device_of(model)
    sums: dict[tuple[str, Side], MomentSum] = {}
    shared: dict[tuple[str, Side], tuple[str, Side]] = {}
    means: dict[bool, list[dict[tuple[str, Side], Tensor]]] = {True: [], False: []}
    tokens = dict.fromkeys((site.name for site in sites), 0)
    for is_fitted, part in ((True, fitted), (False, held_out)):
        stream = batches(part, max_tokens=max_tokens, share=True)
        for batch, taped in tapes(
            model, stream, sites, gradients=gradients, positions="labelled", precision=precision, shared=True
        ):
            first_with: dict[int, tuple[str, Side]] = {}
            means[is_fitted].append({})
            for site in sites:
                tape = taped[site.name]
                tokens[site.name] += len(tape.x) * is_fitted
                for side in sides:
                    key = (site.name, side)
                    rows = _rows(tape, side)
                    means[is_fitted][-1][key] = _item_means(rows, tape.of(batch.owner), batch)
                    if is_fitted:
                        shared[key] = first_with.setdefault(id(rows), key)
                        if shared[key] == key:
                            sums.setdefault(key, MomentSum(site.width(side), device=device)).add(rows)
    shared = parallel.agreed(shared)  # a process without a batch has seen none
    named, moments = {site.name: site for site in sites}, {}
    for name, side in dict.fromkeys(shared.values()):
        own = sums.pop((name, side), None) or MomentSum(named[name].width(side), device=device)
        moments[name, side] = own.everywhere().moments(f"{name} ({side})")
    of_items = {is_fitted: parallel.gather(parts) for is_fitted, parts in means.items()}
    return ClassData(
        {key: moments[leader] for key, leader in shared.items()},
        {key: torch.cat([part[key] for part in of_items[True]]) for key in shared},
        {key: torch.cat([part[key] for part in of_items[False]]) for key in shared},
        {name: int(parallel.total(n)) for name, n in tokens.items()},
    )


def _rows(tape: Tape, side: Side) -> Tensor:
    if side == "x":
        return tape.x
    assert tape.g is not None
    return tape.g


def _item_means(
    rows: Float[Tensor, "token d"], owner: Int[Tensor, " token"], batch: TokenBatch
) -> Float[Tensor, "item d"]:
    """Of the items that any of these tokens belongs to."""
    n = len(batch.sequences)
    owner = owner.to(rows.device)
    sums = torch.zeros(n, rows.shape[1], device=rows.device).index_add(0, owner, rows.float())
    counts = torch.zeros(n, device=rows.device).index_add(0, owner, torch.ones_like(rows[:, 0]).float())
    return (sums[counts > 0] / counts[counts > 0, None]).cpu()


# --------------------------------------------------------------------------------------- separation


def _stacked(forget: Tensor, retain: Tensor) -> tuple[np.ndarray, np.ndarray]:
    rows = torch.cat([forget, retain]).double().numpy()
    return rows, np.r_[np.ones(len(forget)), np.zeros(len(retain))]


def _logistic(rows: np.ndarray, truth: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, truth)


def _separation(basis: Tensor, data: tuple[Tensor, Tensor, Tensor, Tensor], *, shuffle: int | None = None) -> float:
    """Held-out AUC of a logistic probe on the projections; NaN where a part has one class only.

    ``shuffle``: of labels that mean nothing, in either part. With true labels in the test part a null at a
    direction that separates well would be near 0 or near 1, by the toss of a coin.
    """
    from sklearn.metrics import roc_auc_score

    rows, truth = _stacked(data[0] @ basis, data[1] @ basis)
    test, answers = _stacked(data[2] @ basis, data[3] @ basis)
    if len(set(truth)) < 2 or len(set(answers)) < 2:
        return NAN
    if shuffle is not None:
        generator = np.random.default_rng(shuffle)
        truth, answers = generator.permutation(truth), generator.permutation(answers)
    return float(roc_auc_score(answers, _logistic(rows, truth).decision_function(test)))


def _probe_directions(
    forget: Float[Tensor, "item d"], retain: Float[Tensor, "item d"], rank: int
) -> tuple[Tensor, Tensor]:
    """Logistic directions; each further one is fitted after the former are projected out (INLP)."""
    found: list[Tensor] = []
    a, b = forget.double(), retain.double()
    for _ in range(rank):
        rows, truth = _stacked(a, b)
        pipeline = _logistic(rows, truth)
        scale = pipeline[0].scale_
        direction = torch.from_numpy(pipeline[-1].coef_[0] / scale)
        size = direction.norm()
        if size < 1e-12:
            break
        direction = direction / size
        found.append(direction)
        a, b = a - torch.outer(a @ direction, direction), b - torch.outer(b @ direction, direction)
    if not found:
        raise InputError("probe: the classes cannot be told apart by any direction")
    vectors = torch.stack(found, 1).float()
    return vectors, torch.arange(len(found), 0, -1).float()


# ------------------------------------------------------------------------------------------- doors


def fit_subspaces(
    model: Any,
    forget: Corpus,
    retain: Corpus,
    sites: Sequence[Site],
    *,
    fitter: str = "contrast",
    rank: int = 8,
    sides: Sides = "x",
    seed: int = 0,
    precision: Precision = "auto",
    max_tokens: int = 1024,
) -> Subspaces:
    """Collect and fit in one go, without the held-out statistics (``hl.locate`` has them)."""
    collected = collect(
        model,
        forget,
        retain,
        sites,
        sides=sides,
        seed=seed,
        precision=precision,
        max_tokens=max_tokens,
    )
    return collected.fit(fitter, rank, seed=seed, judge=False)


def sweep(collected: Collected, fitters: Sequence[str], ranks: Sequence[int], *, seed: int = 0) -> pd.DataFrame:
    """Every fitter at every rank over one capture: "which layer, which rank?" as a data frame."""
    import pandas as pd

    return pd.concat(
        [
            collected.fit(fitter, rank, seed=seed).to_dataframe()
            for fitter in fitters
            for rank in (ranks if fitter not in ("mean_diff",) else [1])
        ],
        ignore_index=True,
    )
