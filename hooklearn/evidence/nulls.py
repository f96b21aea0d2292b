"""Null distributions: what a number would be by chance, drawn by permutation or known in closed form.

Two arms that behave alike may be swapped, group by group, without changing anything: that is the null behind every
comparison with a model that never had the behaviour. A subspace that has nothing to do with another may be rotated:
that is the null behind every overlap, and its first two moments are known exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BOOTSTRAPS = 400
"""Resamples behind a standard error: its own relative error is then 1 / sqrt(800), under 4 %."""


# ------------------------------------------------------------------------- items that belong together


def _codes(groups: Sequence[str]) -> tuple[NDArray[np.intp], int]:
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    return codes, len(names)


LINES = 19
"""Random steps behind the null of mode connectivity."""
DRAWS = 2499
"""Behind each null. All deciding measures (five) of all seeds are judged together: this many can show p = .05 after
Holm's correction of up to 25 seeds."""


def swaps(groups: Sequence[str], draws: int, rng: np.random.Generator) -> Mask:
    """``[draws, item]``: True where the arms (or labels) of an item change places; a group moves as a whole."""
    codes, n = _codes(groups)
    return rng.integers(0, 2, (draws, n)).astype(bool)[:, codes]


def relabelled(labels: Mask, groups: Sequence[str], draws: int, rng: np.random.Generator) -> Mask:
    """``[draws, item]``: the labels as chance might have dealt them. In a group that holds both classes they change
    places, the whole group at once; groups of one class deal theirs among each other, so that as many hold each."""
    codes, n = _codes(groups)
    size, ones = np.bincount(codes, minlength=n), np.bincount(codes[labels], minlength=n)
    single = (ones == 0) | (ones == size)
    swapped = rng.integers(0, 2, (draws, n)).astype(bool) & ~single
    swapped[:, single] = (ones > 0)[single] ^ rng.permuted(np.tile((ones > 0)[single], (draws, 1)), axis=1)
    return labels ^ swapped[:, codes]


def resamples(groups: Sequence[str], draws: int, rng: np.random.Generator) -> Array:
    """``[draws, item]`` bootstrap weights, each row summing to 1; a group is drawn as a whole. NaN for one group alone:
    how much another would differ is unknown, and not nothing."""
    codes, n = _codes(groups)
    if n < 2:
        return np.full((draws, len(groups)), np.nan)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws)[:, codes].astype(float)
    return weights / weights.sum(1, keepdims=True)


def spread(draws: Array) -> float:
    """Standard error from resampled values; NaN where fewer than two are known."""
    known = draws[np.isfinite(draws)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def left_out(groups: Sequence[str]) -> list[NDArray[np.intp]]:
    """For every group the items that remain without it."""
    codes, n = _codes(groups)
    return [np.flatnonzero(codes != i) for i in range(n)]


def jackknife(values: Sequence[float]) -> float:
    """Standard error from values that each leave one unit out (Tukey); NaN below two units."""
    n, found = len(values), np.array(values, float)
    return float(np.sqrt((n - 1) / n * np.square(found - found.mean()).sum())) if n > 1 else float("nan")


def jackknife_sums(rows: Array, statistic: Callable[[Array], float]) -> float:
    """Standard error of ``statistic(rows.sum(0))`` for ``[unit, quantity]`` rows that add up over units (sites)."""
    total = rows.sum(0)
    return jackknife([statistic(total - row) for row in rows] if len(rows) > 1 else [])


def finite(draws: Array) -> tuple[float, ...]:
    return tuple(draws[np.isfinite(draws)].tolist())


# -------------------------------------------------------------------------------------- closed forms


def _levels(n: int) -> Array:
    """Evenly spaced probabilities: ``n`` quantiles there stand for ``n`` draws, without their noise."""
    return (np.arange(n) + 0.5) / n


def normal_quantiles(mean: float, sd: float, n: int) -> tuple[float, ...]:
    return tuple((mean + sd * stats.norm.ppf(_levels(n))).tolist())


def beta_quantiles(mean: float, variance: float, n: int) -> tuple[float, ...]:
    """Of the Beta distribution with these moments: for shares, which cannot leave [0, 1]."""
    if variance <= 0 or not 0 < mean < 1:
        return (mean,) * n
    size = mean * (1 - mean) / variance - 1
    return tuple(stats.beta.ppf(_levels(n), mean * size, (1 - mean) * size).tolist())


def rotated_moments(weights_square: float, spectrum: Array) -> tuple[float, float]:
    """Mean and variance of ``sum_ij w_i l_j Q_ij^2`` for a uniformly random rotation Q.

    That is the share of an update's energy that a form with eigenvalues ``l`` sees, once the update is turned at
    random: w are the update's squared singular values divided by their sum. With w~ and l~ centred, invariance
    under permutations and signs leaves one constant, fixed by the Beta distribution of a single Q_ij^2:

        mean = mean(l),    variance = 2 |w~|^2 |l~|^2 / ((d - 1) (d + 2))

    Args:
        weights_square: sum of ``w_i^2``; 1 for rank one, 1/d when all directions are alike.
        spectrum: all ``d`` eigenvalues; ones and zeros for a projection (then the mean is k/d).
    """
    d = len(spectrum)
    mean = float(spectrum.mean())
    centred = float(np.square(spectrum - mean).sum())
    if d < 2:
        return mean, 0.0
    return mean, 2 * max(0.0, weights_square - 1 / d) * centred / ((d - 1) * (d + 2))


def random_frame(d: int, k: int, rng: np.random.Generator) -> Array:
    """``[d, k]`` orthonormal columns from the Haar measure: signs of R fixed, or QR would prefer some directions."""
    q, r = np.linalg.qr(rng.normal(size=(d, k)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def projection(k: int, d: int) -> Array:
    """The spectrum of an orthogonal projection on k of d dimensions."""
    return np.r_[np.ones(k), np.zeros(d - k)]


# --------------------------------------------------------------------------------------- separation


def auc(scores: Array, labels: Mask) -> Array:
    """``[..., item]`` scores -> ``[...]`` area under the ROC curve, ties counting half; NaN with one class."""
    n1, n0 = int(labels.sum()), int((~labels).sum())
    if n1 == 0 or n0 == 0:
        return np.full(scores.shape[:-1], np.nan)
    ranks = stats.rankdata(scores, axis=-1)
    return (ranks[..., labels].sum(-1) - n1 * (n1 + 1) / 2) / (n1 * n0)


def auc_by_fold(scores: Array, labels: Mask, folds: NDArray[np.intp]) -> Array:
    """Mean AUC within folds, weighted by their size: scores of different probes are never compared."""
    inside = [folds == fold for fold in np.unique(folds)]
    return _mean_over([auc(scores[..., i], labels[i]) for i in inside], [int(i.sum()) for i in inside])


def swapped_auc_by_fold(scores: Array, others: Array, labels: Mask, folds: NDArray[np.intp], masks: Mask) -> Array:
    """``[draw, layer]``: :func:`auc_by_fold` of ``[layer, item]`` scores that give way to ``others`` where ``masks``
    ``[draw, item]`` says so.

    The same numbers without a sort for every draw: all pairs are compared once, for either source of both scores, and
    a draw adds up those that it holds.
    """
    inside = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    parts = [_swapped_auc(scores[:, i], others[:, i], labels[i], masks[:, i]) for i in inside]
    return _mean_over(parts, [len(i) for i in inside])


def _swapped_auc(scores: Array, others: Array, labels: Mask, masks: Mask) -> Array:
    n1, n0 = int(labels.sum()), int((~labels).sum())
    if n1 == 0 or n0 == 0:
        return np.full((len(masks), len(scores)), np.nan)
    held = [np.concatenate([~masks[:, own], masks[:, own]], 1).astype(float) for own in (labels, ~labels)]
    wins = []
    for one, other in zip(scores, others, strict=True):  # layer by layer
        high, low = (np.concatenate([one[own], other[own]]) for own in (labels, ~labels))
        above = (high[:, None] > low) + 0.5 * (high[:, None] == low)
        wins.append(((held[0] @ above) * held[1]).sum(-1))
    return np.stack(wins, -1) / (n1 * n0)


def _mean_over(parts: Sequence[Array], sizes: Sequence[int]) -> Array:
    """Weighted by size, leaving out what is NaN."""
    values = np.stack(parts)
    weights = np.array(sizes, float).reshape(-1, *[1] * (values.ndim - 1)) * np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.nansum(values * weights, 0) / weights.sum(0)
