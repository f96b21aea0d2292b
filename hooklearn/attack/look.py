"""Attacks without training: one look at every arm, at step 0, in the attacked state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hooklearn import editing, models
from hooklearn.attack.curve import Arena, Attack
from hooklearn.attack.effort import before_answers
from hooklearn.attack.watcher import Watcher
from hooklearn.data import WHOLE, Corpus, Row, fewer_scored
from hooklearn.measure import Likelihoods
from hooklearn.types import ArmCurve, Curve

Attacked = Callable[[Any], AbstractContextManager[Any]]
"""A model -> a block in which it is attacked; whatever the attack did is undone on leaving."""


def one_look(
    arena: Arena,
    attack: Attack,
    setting: str,
    *,
    watcher: Watcher | None = None,
    attacked: Attacked = contextlib.nullcontext,
    sampled: bool = True,
) -> Curve:
    """Every arm in the attacked state, seen once at step 0: there is nothing to converge.

    Args:
        watcher: eyes that ask something else than the arena's (see :func:`asking`).
        attacked: what is done to each arm's model, the same for all.
        sampled: also draw samples (dear on a CPU, so attacks ask for them at their strongest setting).
    """
    eyes = watcher or arena.watcher
    arms = arena.known(attack.name, setting)
    for arm in [a for a in arena.arms if a.name not in arms]:
        arena.progress(f"{attack.name} {setting}: {arm.name}")
        with arm.entered(training=False) as model, attacked(model):
            arms[arm.name] = ArmCurve(tuple(eyes.likelihood(model, 0, 0, eyes.heldout, eyes.ood)), converged=True)
            if arm.name == "original" and (twin := eyes.surrogate(model, 0, 0)):
                arms["never"] = ArmCurve(tuple(twin), converged=True)
            if sampled:
                eyes.sample(model, arm.name, attack.name, setting, 0, arena.seed)
    return Curve(attack.name, setting, attack.cheap, arena.seed, arms)


def asking(arena: Arena, change: Callable[[Row, int], Row], what: str) -> Watcher:
    """The arena's eyes on other questions: ``change`` of every row, given with its index; the same for all arms.

    What is put before a question is all read, as far as the model reads; no more is scored than without it.
    """
    tokenizer = models.tokenizer_of(arena.arms[0].model)

    def changed(split: Likelihoods | None) -> Likelihoods | None:
        if split is None:
            return None
        rows = tuple(change(fewer_scored(row, tokenizer), i) for i, row in enumerate(split.corpus.rows))
        asked = Corpus(f"{split.corpus.name}/{what}", rows, split.corpus.source)
        return Likelihoods.of(asked, tokenizer, split.split, max_length=WHOLE)

    eyes = arena.watcher
    heldout = changed(eyes.heldout)
    assert heldout is not None
    # samples wait for the referee in the arena's own list; the start is that of the plain questions
    return replace(eyes, heldout=heldout, ood=changed(eyes.ood), permuted=changed(eyes.permuted), start={}, known={})


def more_read(arena: Arena, asked: Watcher) -> int:
    """Tokens before the held-out answers beyond those of the plain questions: what an attack by the prompt adds. What
    several prompts share is counted for each."""
    return before_answers(asked.heldout.completions) - before_answers(arena.watcher.heldout.completions)


@contextlib.contextmanager
def reweighted(model: Any, change: Callable[[str, Tensor], Tensor]) -> Iterator[Any]:
    """The model with every weight matrix ``W`` ``[d_out, d_in]`` of its blocks replaced by ``change(name, W)``.

    Of all :func:`hooklearn.models.matrices` and not of the sites alone: an attack that passes over the experts of a
    mixture would find them resistant. Embeddings, unembedding and norms stay, as they do in the usual tools. On
    leaving, the weights are back bit for bit.
    """
    with editing.restored(model), torch.no_grad():
        for name, weight in models.matrices(model).items():
            weight.copy_(change(name, weight))
        yield model
