"""Three attack arms at three learning rates: how much of the time is looking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Bench, Row, at_most, timed
from hooklearn import models
from hooklearn.attack import Arena, ArmState, Watcher, attack_of
from hooklearn.deltas import Delta
from hooklearn.measure import Likelihoods


class Timed(Watcher):
    """Adds up what its looks take."""

    seconds = 0.0

    def likelihood(self, *given: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = super().likelihood(*given, **options)
        Timed.seconds += time.perf_counter() - started
        return found


def rows(bench: Bench) -> Iterator[Row]:
    steps, rates = (4, (1e-4,)) if bench.quick else (8, (3e-5, 1e-4, 1e-3))
    heldout = Likelihoods.of(
        bench.corpus("heldout", 8 if bench.quick else 16), models.tokenizer_of(bench.model), "heldout"
    )
    nothing = Delta({})
    arms = [ArmState(name, bench.model, nothing) for name in ("edited", "original", "never")]
    arena = Arena(arms, Timed(heldout=heldout, n_samples=0), attack_train=bench.corpus("attack_train"), max_tokens=512)
    options = {"learning_rates": rates, "max_steps": steps, "first_look": 4, "embeddings": False}
    Timed.seconds = 0.0
    whole = timed(lambda: attack_of("relearn", options).curves(arena))
    yield at_most(
        f"three attack arms x {len(rates)} learning rates: evaluation, share of attack time",
        100 * Timed.seconds / whole, 15.0, unit="%",
        note=f"{steps} steps of 512 tokens, looks after 0, 4, 8 ... steps at {len(heldout.completions)} "
        "held-out items, labelled positions only; as in the recipe threats. Logarithmic: the longer, the less",
        numbers={"seconds": whole, "seconds: looking": Timed.seconds},
    )  # fmt: skip
