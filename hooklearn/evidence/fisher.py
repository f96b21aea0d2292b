"""Diagonal Fisher information of the held-out behaviour, per layer: how much the loss still hangs on the weights.

Mean squared gradient of an item's mean log-probability, by the given labels (the empirical Fisher, as in arXiv
2505.16831 and 2605.24614). A model that has learnt a text is flat around it; where the behaviour is gone, the
gradients are those of a model that never had it. For one item with inputs x and output gradients g at a site, the
sum of squares of ``g^T x`` is ``sum((g g^T) * (x x^T))``: no weight-sized matrix is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hooklearn.data import TokenBatch
from hooklearn.evidence import nulls
from hooklearn.evidence.bench import Bench, texts
from hooklearn.evidence.geometry import SAME
from hooklearn.evidence.lens import NEEDS_NEVER, by_layer, scored
from hooklearn.evidence.nulls import Array
from hooklearn.evidence.types import Evidence
from hooklearn.locate.capture import tapes
from hooklearn.types import NumericalError, Site


def fisher(
    model: Any, stream: Sequence[TokenBatch], sites: Sequence[Site], n_items: int
) -> tuple[tuple[int, ...], Array]:
    """(layers, ``[layer, item]`` mean squared gradient per weight) of the model, in whatever state it is in.

    Raises:
        NumericalError: a gradient is not finite; the site is named.
    """
    layers = sorted({s.layer for s in sites})
    squares = {layer: np.zeros(n_items) for layer in layers}
    weights = {layer: sum(s.d_in * s.d_out for s in sites if s.layer == layer) for layer in layers}
    for batch, taped in tapes(model, stream, sites, precision="float32"):
        owner = batch.segment[batch.mask]
        for site in sites:
            tape = taped[site.name]
            assert tape.g is not None
            for i, sequence in enumerate(batch.sequences):
                own = tape.of(owner) == i
                x, g = tape.x[own].double(), tape.g[own].double() / int(sequence.labels.sum())
                total = float(((g @ g.T) * (x @ x.T)).sum())
                if not np.isfinite(total):
                    raise NumericalError(f"the gradient at {site.name} is not finite")
                squares[site.layer][sequence.item] += total
    return tuple(layers), np.stack([squares[layer] / weights[layer] for layer in layers])


def information(bench: Bench) -> list[Evidence]:
    """Fisher information of every arm on the held-out behaviour, scored like the lens on its logarithm."""
    corpus = bench.heldout
    stream = texts(corpus, bench.original.model, bench.max_tokens)
    sites = [s for s in bench.sites if s.layer in bench.layers]
    if not sites:
        why = "none of the weights that the edit may have changed lies in a layer that is read"
        return [Evidence.missing("fisher", why, direction="low"), Evidence.missing("return_fisher", why)]
    found: dict[str, Array] = {}
    layers: tuple[int, ...] = ()
    for name, arm in bench.arms.items():
        bench.progress(f"evidence: Fisher information of {name}")
        with arm.entered(training=False) as model:
            layers, values = fisher(model, stream, sites, len(corpus))
        found[name] = np.log(values.clip(np.finfo(float).tiny))
    rng, out = bench.rng("fisher"), []
    if "never" in found:
        # where the behaviour is known the Fisher is small, so its negative logarithm falls with removal
        e = scored(
            "fisher", {arm: -v for arm, v in found.items()}, layers, corpus.groups, draws=bench.draws, rng=rng,
            meaning="near 0, the loss on the behaviour hangs on the weights as it does in the original, which has "
            "learnt it; near 1, as in a model that never had it",
            role="reports",
        )  # fmt: skip
        out.append(replace(e, detail=by_layer(found, layers, corpus.groups, rng)))
    else:
        missing = Evidence.missing("fisher", NEEDS_NEVER + bench.but_unlike, direction="low")
        out.append(replace(missing, detail=by_layer(found, layers, corpus.groups, rng)))
    if "relearned" not in found:
        why = "it needs the model after an attack (an arm 'relearned', or an attacker's delta)"
        return [*out, Evidence.missing("return_fisher", why)]
    return [*out, _return(bench, found, layers, rng)]


def undone(original: Array, edited: Array, relearned: Array) -> Array:
    """``[..., layer]`` log Fisher -> share of the edit's distance that relearning took back."""
    before = np.abs(edited - original).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - np.abs(relearned - original).sum(-1) / before


def _return(bench: Bench, found: dict[str, Array], layers: Sequence[int], rng: np.random.Generator) -> Evidence:
    o, e, r = (found[arm] for arm in ("original", "edited", "relearned"))
    groups = bench.heldout.groups
    if np.abs(e - o).max() < SAME:
        return Evidence.missing("return_fisher", "the edit did not move it, so nothing can return")
    masks = nulls.swaps(groups, bench.draws, rng).astype(float)
    moved = masks @ (r - e).T / masks.shape[-1]  # [draw, layer]
    one, other = e.mean(-1) + moved, r.mean(-1) - moved
    weights = nulls.resamples(groups, nulls.BOOTSTRAPS, rng)
    return Evidence(
        "return_fisher", float(undone(o.mean(1), e.mean(1), r.mean(1))), nulls.finite(undone(o.mean(1), one, other)),
        nulls.spread(undone(weights @ o.T, weights @ e.T, weights @ r.T)), len(set(groups)), "high",
        "1: after relearning the loss hangs on the weights as it did in the original; 0: relearning changed nothing; "
        "by layer, the distance from the original in nats",
        detail=by_layer({"edited": np.abs(e - o), "relearned": np.abs(r - o)}, layers, groups, rng),
        anchors=(np.nan, 1.0), null_meaning="edited and relearned swapped at random, prompt by prompt",
    )  # fmt: skip
