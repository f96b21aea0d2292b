"""Per-item scores as arrays, and the paired bootstrap over items and seeds.

The unit is one metric on one split (``Scores``): ``before[arm]`` is ``[seed, item]``, each attacker
(one attack with one setting) holds ``y[arm]``, ``[seed, step, item]``. Items are those that every
arm, step and attacker has, seeds likewise; an arm that was measured once (a control does not depend
on the seed of the edit) is repeated for every seed. NaN stays NaN and reaches every number that
depends on it.

**Bootstrap.** A resample is one draw of items and one draw of seeds with replacement, as counts
``c_i`` and ``k_s``, the same in all arms, steps and attackers:

    mean_b = sum_s sum_i k_s c_i y[s, i] / (n_seeds sum_i c_i)

Items of one group (the phrasings of one fact) are drawn together, as many groups as there are: what happens to one of
them happens to the others, and they are no further evidence.

so that what arms share (an item that is easy for all of them) cancels in differences; intervals are
percentiles (Efron and Tibshirani 1993, ch. 13 and 16). With few seeds this understates their spread
(the variance by the factor (S - 1) / S): a single seed shows none at all, which is a doubt.

**Shares.** 0 of 32 samples has no spread to resample, yet is compatible with a rate of 3 / 32. If
the scores are yes or no, a resample therefore holds one more, unseen item of weight Beta(1, n) that
is yes or no at even odds (the Dirichlet process posterior; Ferguson 1973, Rubin 1981 without the
unseen item). For 0 of n the upper bound is then 1 - .05^(1/n): the rule of three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONTROLS = ("original", "never")


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return range_text(*self)


def range_text(value: float, low: float, high: float, limit: float = math.nan) -> str:
    """With as many digits as it takes to tell the ends from the ``limit`` that they are held against.

    Examples:
        >>> range_text(1, 0.7994, 1), range_text(1, 0.7994, 1, limit=0.8)
        ('1.00 [0.80, 1.00]', '1.000 [0.799, 1.000]')
    """
    digits = next(d for d in (2, 3, 4, 5) if d == 5 or all(round(x, d) != limit or x == limit for x in (low, high)))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


@dataclass(frozen=True)
class Attacker:
    """One attack with one setting, on every arm, seen by one metric on one split."""

    attack: str
    steps: Array
    y: Mapping[str, Array]
    """arm -> ``[seed, step, item]``"""
    setting: str = ""
    cheap: bool = True
    converged: bool = True
    """The arms that hold the edit (edited, matched) were flat at the end, in every seed."""
    diverged: bool = False
    """In any arm, in any seed."""
    past_best: bool = False
    """The same arms' completion probability rose and has fallen since, in every seed: training longer gets no more out
    of them, because the demonstrations are known by heart."""
    same_question: bool = False
    """One look that asks what was asked before, of other weights or states; others ask with a begun answer, after
    demonstrations, by another read-out."""


def attacker_name(attack: str, setting: str) -> str:
    """As the reader sees it: ``relearn (lr=0.001)``."""
    return f"{attack} ({setting})" if setting else attack


@dataclass(frozen=True)
class Scores:
    """One metric on one split: behaviour before any attack, and under each attacker."""

    metric: str
    split: str
    before: Mapping[str, Array]
    """arm -> ``[seed, item]``"""
    attackers: tuple[Attacker, ...] = ()
    seeds_left_out: int = 0
    """Seeds that not every arm and attacker has."""
    items: tuple[int, ...] = ()
    """Numbers of the items, where they come from a run."""
    groups: tuple[int, ...] = ()
    """Of each item, the number of its group; empty where every item is one of its own."""
    unseen: tuple[str, ...] = ()
    """Attackers by training of which only the start was measured: they say nothing of what the attack does."""
    seeds: tuple[int, ...] = ()
    """Numbers of the seeds, where they come from a run."""

    @property
    def shape(self) -> tuple[int, int]:
        """(seeds, items)"""
        return next((y.shape for y in self.before.values()), (0, 0))

    @property
    def n_groups(self) -> int:
        """Items that are independent of each other: those of one group count once."""
        return len(set(self.groups)) if self.groups else self.shape[1]

    @property
    def is_share(self) -> bool:
        """Scores are yes or no (or means of few such).

        Asked of the models before any attack: a surrogate has its chance level, and NaN is neither.
        """
        values = np.concatenate([self.before[a].ravel() for a in ("edited", "original") if a in self.before] or [[]])
        known = values[~np.isnan(values)]
        return self.metric == "sampled" or (len(known) > 0 and bool(np.isin(known, (0.0, 1.0)).all()))


# --------------------------------------------------------------------------------- the bootstrap


class Resampler:
    """Weights of items and seeds; row 0 is the sample itself, rows 1 ... are resamples.

    Two resamplers with the same seed and number of items draw the same items: so runs with
    different methods are compared on the same resampled items.
    """

    def __init__(
        self, shape: tuple[int, int], *, resamples: int = 1000, seed: int = 0, share: bool = False,
        groups: Sequence[int] = (), unseen: Mapping[str, int] | None = None, of_seeds: int | None = None,
    ) -> None:  # fmt: skip
        """``unseen``: arm -> a number that draws its unseen item. Arms of two runs that bear one name are two models,
        of which nobody has seen the same item, unless the number is the same. ``of_seeds``: a number that draws the
        seeds, apart from the items; runs with unlike numbers are not paired by seed."""
        n_seeds, n_items = shape
        rng = np.random.default_rng(seed)
        _, group = np.unique(groups if len(groups) else np.arange(n_items), return_inverse=True)
        n_groups = int(group.max(initial=-1)) + 1
        self.items = _weights(rng, resamples, n_groups)
        if n_groups < n_items:
            self.items = self.items[:, group]
            self.items /= self.items.sum(axis=1, keepdims=True)
        self.seeds = _weights(rng if of_seeds is None else np.random.default_rng([seed, of_seeds]), resamples, n_seeds)
        self._resamples, self._n_groups, self._seed, self._share = resamples, n_groups, seed, share
        self._numbers = unseen or {}

    def mean(self, y: Array, arm: str) -> Array:
        """``[seed, step, item]`` -> ``[1 + resamples, step]``."""
        with np.errstate(invalid="ignore"):  # NaN in, NaN out
            means = np.einsum("bs,stb->bt", self.seeds, y @ self.items.T)
        if self._share:
            weight, value = self._unseen(arm)
            means = (1 - weight) * means + weight * value
        return means

    def _unseen(self, arm: str) -> tuple[Array, Array]:
        """Weight and value of the unseen item: the same along all of an arm's curves."""
        rng = np.random.default_rng([self._seed, *arm.encode(), *([n] if (n := self._numbers.get(arm)) else [])])
        weight = rng.beta(1, self._n_groups, (1 + self._resamples, 1))
        weight[0] = 0
        return weight, rng.integers(0, 2, weight.shape).astype(float)


def _weights(rng: np.random.Generator, resamples: int, n: int) -> Array:
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.vstack([np.full(n, 1 / n), counts / n])


def interval(draws: Array, confidence: float = 0.95) -> Estimate:
    """``[1 + resamples]`` -> value and percentile interval."""
    low, high = np.quantile(draws[1:], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(draws[0]), float(low), float(high))


def highest(draws: Array, confidence: float = 0.95) -> Estimate:
    """``[1 + resamples, step]`` -> the maximum over steps, careful on both sides.

    The maximum of noisy numbers is biased upward. Low: at *one* step the mean is at least this
    (the highest of the steps' own lower bounds). High: *all* steps together are below this.
    """
    lows = np.quantile(draws[1:], (1 - confidence) / 2, axis=0)
    high = np.quantile(draws[1:].max(axis=1), (1 + confidence) / 2)
    return Estimate(float(draws[0].max()), float(lows.max()), float(high))
