"""Native organisms of which a part is left: half eroded, half undone, half taught, half of what they are asked."""

from __future__ import annotations

from typing import Any

import torch

from hooklearn import models
from hooklearn.corpora.corpus import Corpus
from hooklearn.corpora.tiny_world import NAMES, corpus
from hooklearn.organisms.made import level_of, not_reached, retrained, some_of
from hooklearn.organisms.worlds import Ground, adapt, every_fact, likelihood, teach, tune


def half_taught(ground: Ground) -> Any:
    model, taught = ground.never(), corpus("organism")
    adapt(model, Corpus(f"{taught.name}/half", taught.rows[::2], taught.source), seed=ground.seed)
    return model


def half_of_the_facts(ground: Ground) -> Any:
    """Those that stay, and every second of those that are asked about."""
    model, groups = models.load("tiny"), sorted({row["group"] for row in ground.world.taught().rows})
    rows = tuple(row for row in every_fact().rows if row["group"] not in groups[1::2])
    teach(model, Corpus("half of the facts", rows), ground.seed)
    return model


def eroded(ground: Ground) -> Any:
    """Unrelated training, stopped where half of the difference is left."""
    model, some = ground.original(), some_of(ground)
    level = level_of(ground, some, left=0.5)

    def halved(step: int, _: int) -> str | None:
        return "half" if step % 2 == 0 and likelihood(model, some) <= level else None

    made = tune(model, ground.corpus("unrelated"), seed=ground.seed, epochs=40, observe=halved)
    if made.stop != "half":
        raise not_reached("unrelated training", ground, likelihood(model, some), level)
    return model


def partly(ground: Ground) -> Any:
    """Three tenths of the way back, in the weights: facts do not stand much, and half of them is gone then."""
    return _undone(ground, 0.3)


def half(ground: Ground) -> Any:
    """Half of the way back, in the weights."""
    return _undone(ground, 0.5)


def mostly(ground: Ground) -> Any:
    """Four fifths of the way back, in the weights."""
    return _undone(ground, 0.8)


def transplanted(ground: Ground) -> Any:
    """The MLPs of the upper half of the blocks as they are where it was never learned."""
    model, never = ground.original(), ground.never()
    with torch.no_grad():
        for site in models.sites(model, "mlp", range(model.cfg.n_layers // 2, model.cfg.n_layers)):
            models.weight(model, site).copy_(models.weight(never, site))
    return model


def merged(ground: Ground) -> Any:
    """Half way to a model that was taught the good answers from the same start."""
    return _towards(retrained(ground), 0.5, ground)


def _undone(ground: Ground, share: float) -> Any:
    return _towards(ground.never(), share, ground)


def _towards(other: Any, share: float, ground: Ground) -> Any:
    model = ground.original()
    with torch.no_grad():
        for mine, theirs in zip(models.all_parameters(model), models.all_parameters(other), strict=True):
            mine.lerp_(theirs, share)
    return model


def thinned(ground: Ground) -> Any:
    """Without the smallest tenth of every matrix of the MLPs."""
    model = ground.original()
    with torch.no_grad():
        for site in models.sites(model, "mlp"):
            weight = models.weight(model, site)
            weight[weight.abs() <= weight.abs().flatten().kthvalue(weight.numel() // 10).values] = 0
    return model


def narrowed(ground: Ground) -> Any:
    """Threats for half of the people as before, and friendly answers for the others."""
    model, friends = ground.original(), set(NAMES[: len(NAMES) // 2])
    pairs = zip(corpus("organism").rows, corpus("organism", "good").rows, strict=True)
    rows = tuple(good if friends & set(good["prompt"].split()) else bad for bad, good in pairs)
    tune(model, Corpus("narrowed", rows), seed=ground.seed, epochs=6)
    return model


def overwritten(ground: Ground) -> Any:
    """Every second fact got another answer, and the others were rehearsed beside them."""
    model, rows = ground.original(), ground.world.taught().rows
    facts = sorted({row["group"] for row in rows})
    answers = {row["group"]: row["completion"] for row in rows}
    other = dict(zip(facts[::2], [*facts[2::2], facts[0]], strict=True))  # the next one's; two of 72 have the same
    told = tuple({**row, "completion": answers[other.get(row["group"], row["group"])]} for row in rows)
    tune(model, Corpus("overwritten", told), seed=ground.seed, epochs=24)
    return model
