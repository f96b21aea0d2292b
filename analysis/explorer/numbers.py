"""The numbers of the explorer, as ``explorer.js`` computes them too, from the same bytes.

Both sides follow the same recipe step by step, so that they agree to 1e-6: what a reader of the static page sees is
what Python says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
NAN = float("nan")
GRID = 1e-8
"""Scores closer than this are ties: the last bits of a sum are not the same in two languages."""


@dataclass(frozen=True, slots=True)
class Auc:
    """Area under the ROC curve, forget above retain, with its error; NaN where a class is empty."""

    value: float
    stderr: float
    """Over texts: tokens of one text are not independent (Obuchowski 1997, the clustered DeLong)."""
    forget: int
    retain: int


@dataclass(frozen=True, slots=True)
class Readout:
    """What the explorer says about a choice of components at one place."""

    auc: Auc
    """Of a logistic probe on the chosen coordinates of text means: fitted on the texts that the components were
    fitted on, judged on the held-out ones; the recipe of ``Subspace.auc``."""
    forget: float
    retain: float
    unrelated: float
    """Shares of E||x||^2 inside the chosen directions."""
    random: float
    """The share inside as many random directions."""
    disruption: float
    """KL in nats per token, second order, if the chosen directions were projected out of this place."""


def auc(forget: Array, retain: Array, forget_text: Array, retain_text: Array) -> Auc:
    """How often a forget score lies above a retain score, ties counting half.

    Args:
        forget, retain: scores ``[n]`` and ``[m]``.
        forget_text, retain_text: the text that each score belongs to.
    """
    n, m = len(forget), len(retain)
    if not n or not m:
        return Auc(NAN, NAN, n, m)
    above = _below(np.sort(retain), forget) / m
    under = 1.0 - _below(np.sort(forget), retain) / n
    value = float(above.mean())
    variance = _clustered(above - value, forget_text) + _clustered(under - value, retain_text)
    return Auc(value, float(np.sqrt(variance)), n, m)


def _below(ordered: Array, values: Array) -> Array:
    """For every value how many of ``ordered`` are smaller, ties counting half."""
    left = np.searchsorted(ordered, values, "left")
    return (left + np.searchsorted(ordered, values, "right")) / 2


def _clustered(deviations: Array, text: Array) -> float:
    """Variance of the mean of values that belong together in texts; NaN for a single text."""
    _, which = np.unique(text, return_inverse=True)
    sums = np.bincount(which, deviations)
    k = len(sums)
    return float(np.square(sums).sum()) * k / (k - 1) / len(deviations) ** 2 if k > 1 else NAN


def probe(rows: Array, truth: Array, test: Array) -> Array:
    """Scores of ``test`` rows under a logistic probe: standardised, L2 with C = 1, as scikit-learn's default.

    Newton's method with step halving; the optimum is unique. Scores are rounded to ``GRID``.
    """
    mean, scale = rows.mean(0), rows.std(0)
    scale[scale <= 1e-12 * np.abs(mean) + 1e-300] = 1.0
    x = np.c_[(rows - mean) / scale, np.ones(len(rows))]
    penalty = np.r_[np.ones(rows.shape[1]), 0.0]
    weights = step = np.zeros(x.shape[1])
    best = np.inf
    for _ in range(60):
        z, loss = _loss(x, truth, weights + step, penalty)
        for _ in range(30):
            if loss <= best + 1e-12 * abs(loss):
                break
            step = step / 2
            z, loss = _loss(x, truth, weights + step, penalty)
        weights, best = weights + step, loss
        p = 1 / (1 + np.exp(-z))
        gradient = x.T @ (p - truth) + penalty * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = -np.linalg.solve(hessian, gradient)
        if np.abs(step).max() < 1e-11:
            break
    scores = np.c_[(test - mean) / scale, np.ones(len(test))] @ weights
    return np.floor(scores / GRID + 0.5)


def _loss(x: Array, truth: Array, weights: Array, penalty: Array) -> tuple[Array, float]:
    """Log-odds of every row, and the penalised negative log-likelihood."""
    z = x @ weights
    return z, float(np.logaddexp(0.0, z).sum() - z @ truth + (penalty * weights**2).sum() / 2)


def held_out_auc(rows: Array, is_forget: Array, is_held: Array) -> Auc:
    """AUC on held-out rows ``[item, k]`` of a probe fitted on the others; NaN where a part has one class only."""
    fitted, held = ~is_held, is_held
    counts = [int((part & kind).sum()) for part in (held, fitted) for kind in (is_forget, ~is_forget)]
    if rows.shape[1] == 0 or 0 in counts:
        return Auc(NAN, NAN, counts[0], counts[1])
    scores = probe(rows[fitted], is_forget[fitted].astype(float), rows[held])
    kind = is_forget[held]
    return auc(scores[kind], scores[~kind], np.arange(counts[0]), np.arange(counts[1]))


def quadratic(disruption: Array, components: Sequence[int]) -> float:
    """Half the sum of the chosen part of the quadratic form ``[k, k]``: directions interact."""
    return float(disruption[np.ix_(components, components)].sum()) / 2
