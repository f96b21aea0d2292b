"""Fitting subspaces that distinguish forget from retain data, and judging them on data they were not fitted on.

One pass over each class collects streaming moments (per token) and item means (per text); every fitter, rank and
null is derived from those, so trying ten of them costs one capture. Directions are fitted on one part of the groups
and judged on the other.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooklearn import linalg, losses, models, parallel
from hooklearn.data import Corpus, TokenBatch, batches, encode
from hooklearn.forward import Precision
from hooklearn.linalg import Sides
from hooklearn.locate.capture import sums_dtype, tapes
from hooklearn.locate.fitters import EVERY_FITTER, Fitter, Found, Seen, logistic, stacked
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.moments import Moments, MomentSum
from hooklearn.traits import row_of
from hooklearn.types import NAN, InputError, Side, Site, Tape

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT = 1 / 3
"""Share of the groups on which separation is measured."""
NULL_DRAWS = 4
"""Shuffles and random subspaces behind each null; their mean is reported."""

# ----------------------------------------------------------------------------------- one collection


@dataclass(frozen=True)
class ClassData:
    """What one class (forget or retain) showed at every site and side."""

    moments: Mapping[tuple[str, Side], Moments]
    """Per scored token of the fitted groups: its x, and the g of the position that predicts it."""
    fitted: Mapping[tuple[str, Side], Float[Tensor, "_item _d"]]
    """Item means of the fitted groups."""
    held_out: Mapping[tuple[str, Side], Float[Tensor, "_item _d"]]
    tokens: Mapping[str, int]
    """Per site, how many of these it was given (side x where both are asked for): all, except for an expert."""


@dataclass(frozen=True)
class Collected:
    """One capture of both classes, from which any fitter and rank can be derived."""

    sites: Sequence[Site]
    sides: tuple[Side, ...]
    forget: ClassData
    retain: ClassData
    _known: dict[tuple[str, int], tuple[int, Found]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """(fitter, id of the moments) -> the rank asked for and what was found; nested ones begin with a lower rank's."""

    def fit(self, fitter: str, rank: int, *, seed: int = 0, judge: bool = True) -> Subspaces:
        """Fit one kind of subspace everywhere that both classes reach.

        Experts that a class never or rarely reaches are named in a warning; see :attr:`Subspaces.tokens`.

        Raises:
            InputError: unknown fitter, a rank above the smallest dimension, no site that both classes reach, or one
                where all that a class showed is zero.
        """
        chosen = EVERY_FITTER.get(fitter)
        out: dict[tuple[str, Side], Subspace] = {}
        found: dict[int, Subspace] = {}  # gate and up read the same tensor: fitted and judged once
        tokens = {site.name: (self.forget.tokens[site.name], self.retain.tokens[site.name]) for site in self.sites}
        for site in self.sites:
            if not min(c.moments[site.name, side].n for c in (self.forget, self.retain) for side in self.sides):
                continue  # nothing to compare
            for side in self.sides:
                if not 1 <= rank <= site.width(side):
                    raise InputError(f"rank {rank} at {site.name} ({side}): must be between 1 and {site.width(side)}")
                shared = id(self.forget.moments[site.name, side])
                if shared not in found:
                    space = self._fit_one(site, side, chosen, rank, seed)
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

    def judge(self, spaces: Subspaces, *, seed: int = 0) -> Subspaces:
        """Subspaces that were found elsewhere, with the statistics that fitted ones have."""
        out: dict[tuple[str, Side], Subspace] = {}
        for key, space in spaces.items():
            moments = (self.forget.moments[key], self.retain.moments[key])
            measured = Subspace.of(*space.place, space.fitter, space.vectors, space.values, moments=moments)
            out[key] = self._judged(measured, seed)
        return Subspaces(out)

    def _fit_one(self, site: Site, side: Side, fitter: Fitter, rank: int, seed: int) -> Subspace:
        key = (site.name, side)
        forget, retain = (Seen(c.moments[key], c.fitted[key]) for c in (self.forget, self.retain))
        where = f"{site.name} ({side})"
        for name, seen in (("forget", forget), ("retain", retain)):
            if not bool(seen.moments.second.diagonal().any()):
                raise InputError(
                    f"locate: all {seen.moments.n} {name} rows at {where} are zero, any direction would do; leave this "
                    "site or side out"
                )
        known = self._known.get((fitter.name, id(forget.moments)))
        if known is None or not fitter.nested or known[0] < rank:
            seed = seed + _number(site, side)
            known = self._known[fitter.name, id(forget.moments)] = (
                rank,
                fitter.vectors(forget, retain, rank, seed, where),
            )
        vectors, values, condition = known[1]
        moments = (forget.moments, retain.moments)
        space = Subspace.of(site, side, fitter.name, vectors[:, :rank], values[:rank], moments=moments)
        return replace(space, condition=condition)

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
    """A third of the groups of each, on which nothing is fitted; corpora with the same groups share them.

    Rows without a group go by their number: answers to the same prompts, row by row, stay together.

    Raises:
        InputError: a corpus has no group left to fit on.
    """
    held = held_out([corpus.groups for corpus in corpora], seed)
    for corpus in corpora:
        if not set(corpus.groups) - held:
            n = len(set(corpus.groups))
            raise InputError(f"locate holds a third of the groups out; corpus {corpus.name!r} has {n} in all")
    return held


def held_out(every: Iterable[Iterable[str]], seed: int) -> set[str]:
    """:func:`held_out_groups` of groups that are at hand.

    The smallest first; what a larger one shares with it counts towards its own third, so that none loses more.
    """
    held: set[str] = set()
    seen: set[str] = set()
    for names in sorted(map(set, every), key=len):
        groups = sorted(names - seen)
        random.Random(seed).shuffle(groups)  # the same groups: the same order
        wanted = max(1, round(HELD_OUT * len(names))) - len(names & held)
        held.update(groups[: max(0, wanted)])
        seen |= names
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
    device, dtype = models.device_of(model), sums_dtype(model)
    sums: dict[tuple[str, Side], MomentSum] = {}
    shared: dict[tuple[str, Side], tuple[str, Side]] = {}
    means: dict[bool, list[dict[tuple[str, Side], Tensor]]] = {True: [], False: []}
    tokens = dict.fromkeys((site.name for site in sites), 0)
    for is_fitted, part in ((True, fitted), (False, held_out)):
        stream = batches(part, max_tokens=max_tokens, share=row_of(model))
        for batch, taped in tapes(
            model, stream, sites, gradients=gradients, positions="labelled", precision=precision, shared=True
        ):
            first_with: dict[int, tuple[str, Side]] = {}
            means[is_fitted].append({})
            for site in sites:
                tape = taped[site.name]
                tokens[site.name] += len(_rows(tape, sides[0])) * is_fitted
                for side in sides:
                    key = (site.name, side)
                    rows = _rows(tape, side)
                    means[is_fitted][-1][key] = item_means(rows, batch, tape.of(batch.owner, side))
                    if is_fitted:
                        shared[key] = first_with.setdefault(id(rows), key)
                        if shared[key] == key:
                            sums.setdefault(key, MomentSum(site.width(side), dtype=dtype, device=device)).add(rows)
    shared = parallel.agreed(shared)  # a process without a batch has seen none
    named, moments = {site.name: site for site in sites}, {}
    for name, side in dict.fromkeys(shared.values()):
        own = sums.pop((name, side), None) or MomentSum(named[name].width(side), dtype=dtype, device=device)
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


def item_means(
    rows: Float[Tensor, "token d"], batch: TokenBatch, owner: Int[Tensor, " token"] | None = None
) -> Float[Tensor, "item d"]:
    """Of the items that any of these tokens belongs to; all of a batch's labelled tokens where no owner is given."""
    n = len(batch.sequences)
    owner, rows = (batch.owner if owner is None else owner).to(rows.device), losses.wide(rows)
    sums = rows.new_zeros(n, rows.shape[1]).index_add(0, owner, rows)
    counts = rows.new_zeros(n).index_add(0, owner, torch.ones_like(rows[:, 0]))
    return (sums[counts > 0] / counts[counts > 0, None]).cpu()


# --------------------------------------------------------------------------------------- separation


def _separation(basis: Tensor, data: tuple[Tensor, Tensor, Tensor, Tensor], *, shuffle: int | None = None) -> float:
    """Held-out AUC of a logistic probe on the projections; NaN where a part has one class only.

    ``shuffle``: of labels that mean nothing, in either part. With true labels in the test part a null at a
    direction that separates well would be near 0 or near 1, by the toss of a coin.
    """
    from sklearn.metrics import roc_auc_score

    basis = basis.to(data[0])
    rows, truth = stacked(data[0] @ basis, data[1] @ basis)
    test, answers = stacked(data[2] @ basis, data[3] @ basis)
    if len(set(truth)) < 2 or len(set(answers)) < 2:
        return NAN
    if shuffle is not None:
        generator = np.random.default_rng(shuffle)
        truth, answers = generator.permutation(truth), generator.permutation(answers)
    return float(roc_auc_score(answers, logistic(rows, truth).decision_function(test)))


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

    frames = []
    for fitter in fitters:
        wanted = [1] if fitter in ("mean_diff", "leace") else ranks
        # the highest rank first: the eigenvectors of the others are among its own
        fitted = {r: collected.fit(fitter, r, seed=seed).to_dataframe() for r in sorted(set(wanted), reverse=True)}
        frames += [fitted[rank] for rank in wanted]
    return pd.concat(frames, ignore_index=True)
