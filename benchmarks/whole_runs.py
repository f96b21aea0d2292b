"""Whole runs in processes of their own: how long, how much memory, and what was predicted."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Row

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Taken:
    seconds: float
    peak: float
    verdict: str


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
    return Taken(seconds, float(record["cost"]["peak_bytes"]), found["verdict"])


def _call(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hooklearn", *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"hooklearn {' '.join(args)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout
