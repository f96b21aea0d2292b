"""How many times the budget solver measures the disruption: counted, so that a busy machine does not matter."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.harness import Bench, Row, at_most
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import LANDING, Problem, method_of, run_edit
from hooklearn.forward import count_tokens
from hooklearn.types import Budget, Disruption


class Counted(DisruptionMeter):
    """Counts the tokens that go through the model."""

    spent = 0

    def measure(self, *, near: bool = True, model: object = None) -> Disruption:
        Counted.spent += count_tokens(self._far) + (count_tokens(self._near) if near else 0)
        return super().measure(near=near, model=model)


METHODS = {
    "gradient_ascent": {},
    "repselect": {"rank": 32},
    "natural": {"forget_weight": 0.3, "damping": 1.0},
    "whitened": {"rank": 32},
}


def rows(bench: Bench) -> Iterator[Row]:
    far = bench.corpus("disruption", 10 if bench.quick else 12)
    forget, retain = bench.corpus("forget", 8), bench.corpus("retain", 8)
    meter = Counted(bench.model, far, rough=4)
    assert meter.rough is not None
    meter.rough.__class__ = Counted  # the few texts from which a search begins are counted too
    problem = Problem(bench.model, bench.sites, forget, retain)
    budgets = (0.01,) if bench.quick else (0.003, 0.01, 0.03)
    counts: dict[str, float] = {}
    for name in list(METHODS)[1:3] if bench.quick else METHODS:
        for budget in budgets:
            Counted.spent = 0
            result = run_edit(problem, method_of(name, METHODS[name]), meter, Budget(budget))
            assert LANDING[0] <= result.disruption.used(result.budget) <= LANDING[1], result.stop
            counts[f"{name}, {budget:g}"] = Counted.spent / meter.tokens
    mean = statistics.fmean(counts.values())
    yield at_most(
        "budget solver: KL evaluations an edit, forward only, the unedited side cached", mean, 5.0,
        note=f"mean over {len(counts)} edits (method x budget) on {len(far)} texts; those of 4 texts count by tokens",
        numbers=counts,
    )  # fmt: skip
