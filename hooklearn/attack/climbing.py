"""Up to the highest learning rate at which a model can still be trained: attackers who stop below it are too weak."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from hooklearn.attack.curve import Arena, Stream, Trained, rule_of
from hooklearn.train import fit
from hooklearn.types import NumericalError

FACTOR = 3.0
"""From one rate to the next."""
STEPS = 16
"""That a rate is tried for, or as many as there are."""
BROKEN = 0.5
"""Share of the way from the loss before to that of knowing nothing (log of the vocabulary): beyond it, in the mean of
the last quarter of the steps, a model was broken and not trained."""


def rungs(highest: float, most: int) -> Iterator[float]:
    """``most`` rates above ``highest``, each :data:`FACTOR` times the one before."""
    for _ in range(most):
        highest = float(f"{FACTOR * highest:g}")
        yield highest


def stable_rates(
    arena: Arena, stream: Stream, highest: float, most: int, *, optimizer: str, trained: Trained
) -> Iterator[float]:
    """The :func:`rungs` above ``highest`` while the unedited model stands them: the same for every edit of it."""
    for rate in rungs(highest, most):
        arena.progress(f"learning rate {rate:g}: whether the unedited model can be trained at it")
        if not is_stable(arena, stream, rate, optimizer=optimizer, trained=trained):
            return
        yield rate


def is_stable(arena: Arena, stream: Stream, rate: float, *, optimizer: str, trained: Trained) -> bool:
    """Whether the first steps leave the unedited model a language model; it is put back."""
    arm = next(arm for arm in arena.arms if arm.name == "original")
    with arm.entered(training=True) as model, trained(model) as params:
        try:
            found = fit(
                model, itertools.islice(stream(), STEPS), rule=rule_of(params, rate, optimizer),
                precision=arena.precision, max_norm=1.0, params=params, split=True,
            ).losses  # fmt: skip
        except NumericalError:
            return False
    last = found[-max(1, len(found) // 4) :]
    nothing = math.log(model.cfg.d_vocab)
    return sum(last) / len(last) <= found[0] + BROKEN * max(0.0, nothing - found[0])
