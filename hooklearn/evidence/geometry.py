"""Representations of the same texts before the edit, after it and after relearning (arXiv 2505.16831).

Linear CKA (Kornblith et al. 2019) and the shift along the original's first two principal components, per layer, on
states averaged over the scored tokens of each item (the paper's code takes token 0, which in a causal model has seen
nothing). Relearning that undoes the shift says that the unlearning was reversible.

The nulls turn the shift at random: a shift of the same size that points nowhere in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from hooklearn.evidence import nulls
from hooklearn.evidence.bench import Bench
from hooklearn.evidence.nulls import Array
from hooklearn.evidence.types import Evidence, detail
from hooklearn.types import NAN

TURNS = 39
"""Random rotations behind the CKA nulls; each costs one QR of ``[d, item]`` per layer."""
SAME = 1e-9
"""Distances below this are rounding: nothing moved, so nothing can return."""
ROUNDING = 1e-5
"""Of the length of a state, which is a float32: items nearer to each other have no axes of their own."""


def cka(x: Array, y: Array) -> float:
    """Linear CKA of two ``[item, d]`` representations: 1 for the same up to rotation, shift and scale."""
    x, y = (a - a.mean(0) for a in (x, y))
    k, q = x @ x.T, y @ y.T
    size = np.linalg.norm(k) * np.linalg.norm(q)
    return float((k * q).sum() / size) if size > 0 else NAN


def turned(shift: Array, rng: np.random.Generator) -> Array:
    """``shift @ Q`` ``[item, d]`` for a uniformly random rotation Q: all lengths and angles among rows are kept."""
    q, r = np.linalg.qr(shift.T)  # shift = r^T q^T, and a rotation takes q to a random frame
    return r.T @ nulls.random_frame(shift.shape[1], q.shape[1], rng).T


def components(x: Array) -> tuple[Array, float]:
    """First two principal axes ``[d, 2]`` of ``[item, d]`` and the root mean square distance from the mean; NaN where
    the items do not differ, or by no more than float32 rounds."""
    middle = x.mean(0)
    _, _, vh = np.linalg.svd(x - middle, full_matrices=False)
    size = float(np.sqrt(np.square(x - middle).sum(1).mean()))
    return vh[:2].T, size if size > ROUNDING * np.linalg.norm(middle) else NAN


def pca_shift(reference: Array, other: Array) -> float:
    """How far the mean moved along the reference's first two axes, in units of its items' rms distance."""
    axes, size = components(reference)
    return float(np.linalg.norm((other.mean(0) - reference.mean(0)) @ axes) / size)


def pca_similarity(reference: Array, other: Array) -> float:
    """|cosine| of the first principal axes (their sign is arbitrary)."""
    return float(abs(components(reference)[0][:, 0] @ components(other)[0][:, 0]))


# ------------------------------------------------------------------------------------------- evidence


def _per_layer(states: Mapping[str, Array], statistic: Callable[[Array, Array], float], arm: str) -> Array:
    return np.array([statistic(o, x) for o, x in zip(states["original"], states[arm], strict=True)])


def _error(states: Mapping[str, Array], groups: Sequence[str], statistic: Callable[[Mapping[str, Array]], float]):
    """Standard error by leaving one group of items out at a time."""
    return nulls.jackknife([statistic({a: x[:, items] for a, x in states.items()}) for items in nulls.left_out(groups)])


def _detail(bench: Bench, states: Mapping[str, Array], statistic: Callable[[Array, Array], float], n: int):
    more = {arm: _per_layer(states, pca_similarity, arm) for arm in states}
    return detail(
        {
            "site": f"blocks.{layer}", "layer": layer, "arm": arm, "value": float(value), "null": NAN,
            "stderr": NAN, "n": n, "pc1_cosine": float(more[arm][i]),
        }
        for arm in states
        for i, (layer, value) in enumerate(zip(bench.layers, _per_layer(states, statistic, arm), strict=True))
    )  # fmt: skip


def geometry(bench: Bench) -> list[Evidence]:
    """CKA and PCA shift of original and edited, and how much of both relearning undoes."""
    corpus = bench.heldout
    states = {arm: bench.states(arm, corpus, "mean") for arm in bench.arms}
    bench.progress("evidence: CKA and PCA shift")
    found = [_cka(bench, states), _pca(bench, states)]
    if "relearned" not in states:
        why = "it needs the model after an attack (an arm 'relearned', or an attacker's delta)"
        return [*found, *(Evidence.missing(name, why) for name in ("return_cka", "return_pca"))]
    return [*found, _cka_return(bench, states), _pca_return(bench, states)]


def _cka(bench: Bench, states: Mapping[str, Array]) -> Evidence:
    groups = bench.heldout.groups

    def mean(part: Mapping[str, Array]) -> float:
        return float(_per_layer(part, cka, "edited").mean())

    o, e, rng = states["original"], states["edited"], bench.rng("cka")
    null = [float(np.mean([cka(x, x + turned(y - x, rng)) for x, y in zip(o, e, strict=True)])) for _ in range(TURNS)]
    return Evidence(
        "cka", mean(states), tuple(null), _error(states, groups, mean), len(set(groups)), "low",
        "1: the held-out texts are represented as before the edit; below the null, the edit moved them along the very "
        "directions by which they differ most",
        detail=_detail(bench, states, cka, len(set(groups))),
        null_meaning="the edit's shift of every state, turned at random",
    )  # fmt: skip


def _pca(bench: Bench, states: Mapping[str, Array]) -> Evidence:
    groups = bench.heldout.groups

    def mean(part: Mapping[str, Array]) -> float:
        return float(_per_layer(part, pca_shift, "edited").mean())

    # the share of a random vector in 2 of d dimensions is Beta(1, (d - 2)/2); the same quantile in every layer
    d = states["original"].shape[-1]
    shares = np.sqrt(stats.beta.ppf((np.arange(bench.draws) + 0.5) / bench.draws, 1, (d - 2) / 2))
    sizes = [
        np.linalg.norm(e.mean(0) - o.mean(0)) / components(o)[1]
        for o, e in zip(states["original"], states["edited"], strict=True)
    ]
    return Evidence(
        "pca_shift", mean(states), tuple((np.mean(sizes) * shares).tolist()), _error(states, groups, mean),
        len(set(groups)), "high",
        "0: the edit left the texts' mean where it was along the two main axes of the original; above the null, it "
        "pushed it along them, as edits do that damage more than the behaviour",
        detail=_detail(bench, states, pca_shift, len(set(groups))),
        null_meaning="a shift of the same size in a random direction",
    )  # fmt: skip


def _undone(distance: Callable[[Array, Array], float]) -> Callable[[Mapping[str, Array]], float]:
    """Share of the edit's distance from the original that relearning took back, over all layers."""

    def statistic(states: Mapping[str, Array]) -> float:
        before, after = (_per_layer(states, distance, arm).sum() for arm in ("edited", "relearned"))
        return float(1 - after / before) if before > SAME else NAN

    return statistic


def _return(bench: Bench, states: Mapping[str, Array], name: str, distance: Callable[[Array, Array], float], what: str):
    groups, statistic = bench.heldout.groups, _undone(distance)
    if np.isnan(statistic(states)):
        return Evidence.missing(name, "the edit did not move it, so nothing can return")
    e, r, rng = states["edited"], states["relearned"], bench.rng(name)
    null = []
    for _ in range(TURNS):
        elsewhere = np.stack([x + turned(y - x, rng) for x, y in zip(e, r, strict=True)])
        null.append(statistic({**states, "relearned": elsewhere}))
    return Evidence(
        name, statistic(states), nulls.finite(np.array(null)), _error(states, groups, statistic), len(set(groups)),
        "high", f"1: relearning brings the {what} all the way back to the original, as after suppression; at or below "
        "its null, it leads somewhere else; by layer, the distance from the original",
        detail=_detail(bench, {a: states[a] for a in ("original", "edited", "relearned")}, distance, len(set(groups))),
        anchors=(NAN, 1.0), null_meaning="relearning's shift of every state, turned at random",
    )  # fmt: skip


def _cka_return(bench: Bench, states: Mapping[str, Array]) -> Evidence:
    return _return(bench, states, "return_cka", lambda a, b: 1 - cka(a, b), "similarity of the texts")


def _pca_return(bench: Bench, states: Mapping[str, Array]) -> Evidence:
    return _return(bench, states, "return_pca", pca_shift, "position on the main axes")
