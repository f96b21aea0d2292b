"""Ten ranks, fitters or methods over one capture, against one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from benchmarks.harness import Bench, Row, at_most, timed
from hooklearn.edit import Problem, RepSelect
from hooklearn.locate.fit import collect

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
FILTERED = (128, 96, 80, 64, 48, 40, 32, 24, 16, 8)
"""The highest first: the components of the others are among its own."""


def rows(bench: Bench) -> Iterator[Row]:
    n = 12 if bench.quick else 24
    forget, retain = bench.corpus("forget", n), bench.corpus("retain", n)
    ranks = [r for r in RANKS if r <= min(s.width("x") for s in bench.sites)]
    started = time.perf_counter()
    data = collect(bench.model, forget, retain, bench.sites)
    capture = time.perf_counter() - started
    one = timed(lambda: data.fit("contrast", max(ranks), judge=False))
    again = dataclasses.replace(data)  # knows nothing of the fit before
    ten = timed(lambda: [again.fit("contrast", rank, judge=False) for rank in reversed(ranks)])
    yield at_most(
        f"{len(ranks)} ranks of the contrast fitter over one capture, against one",
        (capture + ten) / (capture + one), 1.3, unit="x",
        note=f"{n} completions a class, x side of all MLP sites; held-out separation and its nulls not counted",
        numbers={"seconds: capture": capture, "seconds: one fit": one, "seconds: all fits": ten},
    )  # fmt: skip
    problem = Problem(bench.model, bench.sites, forget)
    capture = timed(lambda: problem.gradient("forget"))
    one = timed(lambda: next(RepSelect(rank=FILTERED[0]).path(problem)))
    problem.__dict__.pop("_components")

    def all_of_them() -> None:
        for rank in FILTERED:  # one after the other, as a sweep does: ten directions at once are 3 GB
            next(RepSelect(rank=rank).path(problem))

    ten = timed(all_of_them)
    yield at_most(
        "10 ranks of RepSelect over one gradient, against one", (capture + ten) / (capture + one), 1.3, unit="x",
        note=f"{n} completions; directions only, the budget is another search for each",
        numbers={"seconds: gradient": capture, "seconds: one filter": one, "seconds: ten filters": ten},
    )  # fmt: skip
