"""Three attack arms at three learning rates: how much of the time is looking."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from benchmarks.harness import Bench, Row, Stages, at_most, timed
from hooklearn import models
from hooklearn.attack import Arena, ArmState, Watcher, attack_of, curve
from hooklearn.deltas import Delta
from hooklearn.measure import Likelihoods
from hooklearn.train import log_spaced

RECIPE = 64
"""Steps of a longer curve, as other recipes have it."""


@dataclass
class Timed(Watcher):
    """Remembers what its looks take."""

    looks: dict[str, list[float]] = field(default_factory=dict)
    """Where on a curve -> seconds of each."""

    def likelihood(self, model: Any, step: int, tokens: int, *splits: Any, preference: bool = True) -> Any:
        found: list[Any] = []
        look = functools.partial(super().likelihood, model, step, tokens, *splits, preference=preference)
        seconds = timed(lambda: found.extend(look()))
        if any(split is not None for split in splits):  # there are no out-of-distribution items
            where = "at step 0" if step == 0 else "at the end" if preference else "on the way"
            self.looks.setdefault(where, []).append(seconds)
        return found


def rows(bench: Bench) -> Iterator[Row]:
    steps, first, rates = (4, 2, (1e-4,)) if bench.quick else (8, 4, (3e-5, 1e-4, 1e-3))
    heldout = Likelihoods.of(
        bench.corpus("heldout", 8 if bench.quick else 16), models.tokenizer_of(bench.model), "heldout"
    )
    nothing = Delta({})
    arms = [ArmState(name, bench.model, nothing) for name in ("edited", "original", "never")]
    watcher = Timed(heldout=heldout, n_samples=0)
    arena = Arena(arms, watcher, attack_train=bench.corpus("attack_train"), max_tokens=512)
    options = {"learning_rates": rates, "max_steps": steps, "first_look": first, "embeddings": False}
    stages, curves = Stages(), []
    with stages.watching({"looking": [(Timed, "likelihood")], "training": [(curve, "fit")]}):
        whole = timed(lambda: curves.extend(attack_of("relearn", options).curves(arena)))
    looks = [seconds for found in watcher.looks.values() for seconds in found]
    taken = sum(max(p.step for p in arm.points) for c in curves for arm in c.arms.values())
    mean = {f"a look {where}": fmean(seconds) for where, seconds in watcher.looks.items()}
    mean["a step"] = stages.seconds["training"] / taken
    yield at_most(
        f"three attack arms x {len(rates)} learning rates: evaluation, share of attack time",
        100 * sum(looks) / whole, 15.0, unit="%",
        note=f"{steps} steps of 512 tokens, looks after 0, {first}, {2 * first} ... steps at "
        f"{len(heldout.completions)} held-out items, labelled positions only; as in the recipe threats. "
        "Logarithmic: the longer, the less",
        numbers={"seconds": whole, "seconds: looking": sum(looks), "steps": taken, "looks": len(looks)}
        | stages.numbers("of all", whole) | {f"seconds: {what}": seconds for what, seconds in mean.items()}
        | {f"% of the time, {RECIPE} steps (calculated)": _longer(mean, len(arms), len(rates), first)},
    )  # fmt: skip


def _longer(mean: Mapping[str, float], arms: int, rates: int, first: int) -> float:
    """Share of looking along a curve of :data:`RECIPE` steps, at these seconds a look and a step."""
    between = sum(first <= step < RECIPE for step in log_spaced(RECIPE))
    of_a_curve = between * mean["a look on the way"] + mean["a look at the end"]
    looking = arms * (mean["a look at step 0"] + rates * of_a_curve)
    return 100 * looking / (looking + arms * rates * RECIPE * mean["a step"])
