"""Building the report, and the explorer of a model with 30 layers, of runs that the tests' generators draw."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Bench, Row, Stages, alternate, at_most, timed

TESTS = Path(__file__).parent.parent / "tests"


def rows(bench: Bench) -> Iterator[Row]:
    import analysis
    import analysis.explorer
    from analysis import markup

    sys.path.insert(0, str(TESTS))
    from drawn_runs import write_run
    from token_samples import MODULES, sample

    layers, tokens = (4, 2_000) if bench.small else (30, 20_000)
    drawn = sample(layers=layers, modules=MODULES, rank=8, tokens=tokens, texts=200)
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run")

        def report() -> None:
            analysis.judge(run)
            analysis.report(run)

        page = Path(folder) / "explorer.html"
        sides = {
            "report": report, "verdict alone": lambda: analysis.judge(run),
            "explorer": lambda: analysis.explorer.save(drawn, page),
        }  # fmt: skip
        times, stages = alternate(sides, rounds=bench.rounds), Stages()
        with stages.watching({"figures as SVG": [(markup, "embed")]}):
            whole = timed(report)
        size = page.stat().st_size
    yield at_most(
        "verdict and report of a run", times.of("report"), 3.0, goal="< 3 s", unit="s",
        note="3 seeds, 60 items, a battery of four attackers",
        numbers=times.numbers() | stages.numbers("one more report", whole),
    )  # fmt: skip
    yield at_most(
        f"explorer of {layers} layers", times.of("explorer"), 2.0, goal="< 2 s", unit="s",
        note=f"{layers * len(MODULES)} places of rank 8, {tokens} tokens; the page has {size / 2**20:.1f} MiB",
    )  # fmt: skip
