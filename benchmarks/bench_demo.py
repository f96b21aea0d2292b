"""``make demo`` after installation: ``hooklearn run threats`` in a process of its own, and what --dry-run told."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Bench, Row, at_most
from benchmarks.whole_runs import dry_run, run


def rows(bench: Bench) -> Iterator[Row]:  # noqa: ARG001 (it has processes of its own)
    told = dry_run("threats")
    took = run("threats")
    yield at_most(
        "`make demo` after installation", took.seconds / 60, 5.0, unit="minutes",
        note=f"hooklearn run threats, {took.seconds:.0f} s, peak {took.peak / 2**30:.2f} GiB; {took.verdict}",
        numbers={"seconds": took.seconds, "peak bytes": took.peak}
        | {f"seconds: {stage}": seconds for stage, seconds in took.stages.items()},
    )  # fmt: skip
    yield from told.rows("SmolLM2, recipe threats", took)
