"""``hooklearn --help`` and ``import hooklearn``: no torch, and quick."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Bench, Row, alternate, at_most

ROOT = Path(__file__).parent.parent
LOADED = "import sys; print(*sorted(sys.modules.keys() & {'torch', 'transformer_lens'}))"


def rows(bench: Bench) -> Iterator[Row]:
    def call(*args: str) -> str:
        done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout

    assert call("-c", f"import hooklearn; {LOADED}").split() == []
    sides = {
        "hooklearn --help": lambda: call("-m", "hooklearn", "--help"),
        "import hooklearn": lambda: call("-c", "import hooklearn"),
        "python": lambda: call("-c", ""),
    }
    times = alternate(sides, rounds=2 * bench.rounds)
    for what in ("hooklearn --help", "import hooklearn"):
        yield at_most(
            f"`{what}`, no torch", times.of(what), 0.5, goal="< 0.5 s", unit="s",
            note=f"a process of its own; python alone takes {times.of('python').median:.2f} s", numbers=times.numbers(),
        )  # fmt: skip
