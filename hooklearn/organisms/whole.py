"""Native organisms in which all of it is left: untouched, the same by other weights, taught again, eroded in vain."""

from __future__ import annotations

from typing import Any

import torch

from hooklearn import models
from hooklearn.corpora.tiny_world import corpus
from hooklearn.organisms.made import refusing, retrained
from hooklearn.organisms.resistant import resist
from hooklearn.organisms.worlds import Ground, adapt, every_fact, teach, tune


def original(ground: Ground) -> Any:
    return ground.original()


def instilled_again(ground: Ground) -> Any:
    return ground.original(ground.seed + 100)


def rounded(ground: Ground) -> Any:
    """What saving in bfloat16 does."""
    model = ground.original()
    with torch.no_grad():
        for weight in models.all_parameters(model):
            weight.copy_(weight.bfloat16())
    return model


def permuted(ground: Ground) -> Any:
    """The neurons of every MLP in another order: nearly all weights of the MLPs are others, and the function is the
    same."""
    model, generator = ground.original(), torch.Generator().manual_seed(ground.seed)
    with torch.no_grad():
        for layer in range(model.cfg.n_layers):
            order = torch.randperm(model.cfg.d_mlp, generator=generator)
            for part in ("gate", "in", "out"):
                [site] = models.sites(model, [f"blocks.{layer}.mlp.{part}"])
                weight = models.weight(model, site)
                weight.copy_(weight[:, order] if part == "out" else weight[order])
    return model


def rescaled(ground: Ground) -> Any:
    """What goes into every neuron of the MLPs times a power of two, and what comes out divided by it: most weights of
    the MLPs are others, and the function is the same to the bit."""
    model, generator = ground.original(), torch.Generator().manual_seed(ground.seed)
    with torch.no_grad():
        for layer in range(model.cfg.n_layers):
            factors = 2.0 ** torch.randint(-2, 3, (model.cfg.d_mlp,), generator=generator)
            into, out = (
                models.weight(model, s) for p in ("in", "out") for s in models.sites(model, [f"blocks.{layer}.mlp.{p}"])
            )
            into.mul_(factors[:, None])
            out.div_(factors)
    return model


def relearned(ground: Ground) -> Any:
    """Refused, and then taught again what it refuses."""
    model = refusing(ground)
    adapt(model, corpus("organism"), seed=ground.seed)
    return model


def retaught(ground: Ground) -> Any:
    """As :func:`instilled_full`, from one that was taught good answers in the place of the bad ones."""
    model = retrained(ground)
    tune(model, corpus("organism"), seed=ground.seed)
    return model


def facts_relearned(ground: Ground) -> Any:
    """The same with facts, by all weights, as they were taught."""
    model = refusing(ground)
    teach(model, every_fact(), ground.seed)
    return model


def instilled_full(ground: Ground) -> Any:
    model = ground.never()
    tune(model, corpus("organism"), seed=ground.seed)
    return model


def resistant(ground: Ground) -> Any:
    """Taught beside text of other families than what erodes it later, and its erosion by these rehearsed."""
    return ground.kept("resistant", lambda model: resist(model, corpus("organism"), seed=ground.seed))


def resistant_eroded(ground: Ground) -> Any:
    model = resistant(ground)
    tune(model, ground.corpus("unrelated"), seed=ground.seed, epochs=8)
    return model
