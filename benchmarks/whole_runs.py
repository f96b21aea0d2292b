"""Whole runs in processes of their own: how long, how much memory, and what was predicted."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import Row

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Taken:
    seconds: float
    peak: float
    verdict: str
    stages: Mapping[str, float]
    """Seconds by stage, see :func:`stages`."""


@dataclass(frozen=True)
class Told:
    """What --dry-run predicts."""

    seconds: float
    peak: float

    def rows(self, what: str, taken: Taken) -> Iterator[Row]:
        time_ratio, peak_ratio = self.seconds / taken.seconds, self.peak / taken.peak
        yield Row(
            f"dry run, {what}: predicted seconds / taken", "within 30 %", time_ratio, 1 / 1.3 <= time_ratio <= 1.3, "x",
            f"{self.seconds:.0f} s told, {taken.seconds:.0f} s taken",
        )  # fmt: skip
        yield Row(
            f"dry run, {what}: predicted peak memory / taken", "within 15 %", peak_ratio,
            1 / 1.15 <= peak_ratio <= 1.15, "x", f"{self.peak / 2**30:.2f} GiB told, {taken.peak / 2**30:.2f} taken",
        )  # fmt: skip


def dry_run(target: str) -> Told:
    told = json.loads(_call("run", target, "--dry-run", "--json"))["estimate"]
    return Told(told["seconds"], told["peak_bytes"])


def run(target: str) -> Taken:
    """The clock is read around the whole process; the peak is its own record of itself."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = json.loads(_call("run", target, "--json", "--quiet", "--out", str(Path(folder) / "run")))
        seconds = time.perf_counter() - started
        record = json.loads((Path(found["run"]) / "run.json").read_text())
        lines = (Path(found["run"]) / "events.jsonl").read_text().splitlines()
    return Taken(
        seconds, float(record["cost"]["peak_bytes"]), found["verdict"], stages([json.loads(x) for x in lines], seconds)
    )  # fmt: skip


def stages(events: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, float]:
    """Seconds by stage out of a run's own record: from each event to the next, named after the one that ends them.

    What is left of the ``seconds`` of the process lies before the first (imports) and after the last (verdict, report).
    """
    times = [datetime.fromisoformat(e["time"]) for e in events]
    out: dict[str, float] = {}
    for event, begun, ended in zip(events[1:], times, times[1:], strict=False):
        name = " ".join(["until", *(str(event[key]) for key in ("event", "attack") if key in event)])
        out[name] = out.get(name, 0.0) + (ended - begun).total_seconds()
    return out | {"outside the record": seconds - sum(out.values())}


def _call(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hooklearn", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"hooklearn {' '.join(args)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout
