"""How deep the removal goes, layer by layer: the logit lens, and patching depth (Unlearning Depth Score).

Both ask of every layer how much less it says about the behaviour than the original, and compare that with the
never-learned model (arXiv 2605.24614):

    S1[l] = original - never,  S2[l] = original - edited    (mean log-probability of the held-out completions)
    score = sum_l S1[l] clip(S2[l] / S1[l], 0, 1) / sum_l S1[l],   over layers with S1[l] > tau

0 where nothing is missing, 1 where as much is missing as in a model that never had it. The lens reads the state
after layer l with the *original's* final norm and unembedding; patching puts it into the original and lets the
layers above finish. The profile is the mean over items (the paper scores items one by one; a single item's S1 is
mostly noise here), and patched are the positions that predict the span, so that its first token counts too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooklearn import forward, models
from hooklearn.evidence import nulls
from hooklearn.evidence.bench import Bench, Recording, block
from hooklearn.evidence.nulls import Array, Mask
from hooklearn.evidence.types import Evidence, Role, detail
from hooklearn.losses import token_logprobs
from hooklearn.types import NAN

TAU = 0.05
"""Nats per token: a layer where the never-learned model lacks less than this carries none of the behaviour."""
NEEDS_NEVER = "it needs a never-learned model to say what a layer without the behaviour looks like"


# ------------------------------------------------------------------------------------------ measuring


@torch.no_grad()
def lens(decoder: Any, recording: Recording) -> Array:
    """``[layer, item]`` mean log-probability of the completion, each layer read by the decoder's last two steps."""
    weights = models.all_parameters(decoder)[0]  # states are kept in float32, and it may compute in less
    device, dtype = weights.device, weights.dtype
    rows = []
    for batch, hidden in zip(recording.batches, recording.hidden, strict=True):
        targets = batch.targets.to(device)
        read = [forward.unembed(decoder, decoder.ln_final(h[None].to(device, dtype))[0]) for h in hidden]
        rows.append(torch.stack([token_logprobs(logits, targets).cpu() for logits in read]))
    return recording.item_means(rows)


@torch.no_grad()
def patched(target: Any, source: Recording) -> Array:
    """``[layer, item]`` mean log-probability under ``target`` with the source's state after one layer put in."""
    rows = []
    for batch, hidden in zip(source.batches, source.hidden, strict=True):
        of_layer = []
        for layer, states in zip(source.layers, hidden, strict=True):
            with target.hooks(fwd_hooks=[(block(layer), _put(states, batch.keep))]):
                logits = forward.logits(target, batch)
            of_layer.append(token_logprobs(logits, batch.targets.to(logits.device)).cpu())
        rows.append(torch.stack(of_layer))
    return source.item_means(rows)


def _put(states: Tensor, where: Tensor):
    def hook(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 (TransformerLens passes it by name)
        value = value.clone()
        value[where.to(value.device)] = states.to(value)
        return value

    return hook


# -------------------------------------------------------------------------------------------- scoring


def depth_score(original: Array, never: Array, edited: Array, tau: float = TAU) -> Array:
    """``[..., layer]`` profiles -> ``[...]`` score; NaN where no layer of the original carries the behaviour."""
    s1, s2 = original - never, original - edited
    s1 = np.where(s1 > tau, s1, 0.0)
    with np.errstate(invalid="ignore"):
        return np.minimum(s1, np.maximum(s2, 0.0)).sum(-1) / s1.sum(-1)


def scored(
    name: str,
    profiles: dict[str, Array],
    layers: Sequence[int],
    groups: Sequence[str],
    *,
    draws: int,
    rng: np.random.Generator,
    meaning: str,
    role: Role = "decides",
) -> Evidence:
    """The depth score of ``[layer, item]`` profiles, beside edited and never swapped group by group."""
    o, n, e = (profiles[arm] for arm in ("original", "never", "edited"))
    value = float(depth_score(o.mean(1), n.mean(1), e.mean(1)))
    weights = nulls.resamples(groups, nulls.BOOTSTRAPS, rng)
    again = depth_score(weights @ o.T, weights @ n.T, weights @ e.T)
    null = _swapped(o, n, e, nulls.swaps(groups, draws, rng))
    if np.isnan(value):
        why = f"no layer of the original says more than the never-learned model (tau {TAU})"
        return Evidence.missing(name, why, direction="low", role=role)
    return Evidence(
        name, value, nulls.finite(null), nulls.spread(again), len(set(groups)), "low", meaning,
        detail=by_layer(profiles, layers, groups, rng), role=role, anchors=(1.0, 0.0),
        null_meaning="edited and never-learned swapped at random, prompt by prompt",
    )  # fmt: skip


def _swapped(original: Array, never: Array, edited: Array, masks: Mask) -> Array:
    """Scores as they would be if the edited model were one more model that never had the behaviour."""
    moved = masks.astype(float) @ (edited - never).T / masks.shape[-1]  # [draw, layer]: a product, for many draws
    return depth_score(original.mean(-1), never.mean(-1) + moved, edited.mean(-1) - moved)


def by_layer(profiles: dict[str, Array], layers: Sequence[int], groups: Sequence[str], rng: np.random.Generator):
    """Detail rows: mean over items per layer and arm."""
    weights = nulls.resamples(groups, nulls.BOOTSTRAPS, rng)
    return detail(
        {
            "site": f"blocks.{layer}", "layer": layer, "arm": arm, "value": float(values[i].mean()), "null": NAN,
            "stderr": nulls.spread(weights @ values[i]), "n": len(set(groups)),
        }
        for arm, values in profiles.items()
        for i, layer in enumerate(layers)
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- evidence


def logit_lens(bench: Bench) -> list[Evidence]:
    """What each layer already says of the held-out completions, read by the original's decoder."""
    corpus = bench.heldout
    recordings = {arm: bench.recording(arm, corpus) for arm in bench.arms}
    bench.progress("evidence: logit lens")
    with bench.original.entered(training=False) as decoder:
        profiles = {arm: lens(decoder, r) for arm, r in recordings.items()}
    if "never" not in profiles:
        layers = by_layer(profiles, bench.layers, corpus.groups, bench.rng("lens"))
        missing = Evidence.missing("logit_lens", NEEDS_NEVER + bench.but_unlike, direction="low", role="decides")
        return [replace(missing, detail=layers)]
    meaning = (
        "near 0, the edited model's layers still spell out the behaviour until late: it is stopped at the exit, not "
        "removed; near 1, they say as little of it as a model that never had it"
    )
    return [
        scored(
            "logit_lens", profiles, bench.layers, corpus.groups,
            draws=bench.draws, rng=bench.rng("lens"), meaning=meaning,
        )
    ]  # fmt: skip


def patching_depth(bench: Bench) -> list[Evidence]:
    """Unlearning Depth Score: states of each arm put into the original, one layer at a time."""
    corpus = bench.heldout
    if "never" not in bench.arms:
        return [Evidence.missing("patching_depth", NEEDS_NEVER + bench.but_unlike, direction="low", role="decides")]
    sources = [arm for arm in ("edited", "never", "relearned") if arm in bench.arms]
    recordings = {arm: bench.recording(arm, corpus) for arm in sources}
    own = bench.recording("original", corpus)
    with bench.original.entered(training=False) as target:
        profiles = {}
        for arm, r in recordings.items():
            bench.progress(f"evidence: patching {arm} into the original")
            profiles[arm] = patched(target, r)
        # putting its own states back changes nothing: one pass stands for all layers
        whole = patched(target, Recording(own.layers[-1:], own.batches, tuple(h[-1:] for h in own.hidden), own.n_items))
    profiles["original"] = np.repeat(whole, len(bench.layers), 0)
    meaning = (
        "near 0, the original completes the behaviour from the edited model's hidden states, so it is still in there; "
        "near 1, they hold no more of it than those of a model that never had it"
    )
    return [
        scored(
            "patching_depth", profiles, bench.layers, corpus.groups,
            draws=bench.draws, rng=bench.rng("patching"), meaning=meaning,
        )
    ]  # fmt: skip
