"""A script of this folder in processes of one thread: two with gloo, as ``torchrun`` starts them, or one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TORCHRUN = ["torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]


def in_two_processes(script: str, *words: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """What it printed; fails with its last words where it failed. ``timeout``: seconds."""
    return _started(["-m", *TORCHRUN, HERE / script, *map(str, words)], timeout)


def in_a_process(script: str, *words: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """The same in one, which no launcher starts."""
    return _started([HERE / script, *map(str, words)], timeout)


def _started(words: list[str | Path], timeout: float) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True, text=True, check=False, timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-20_000:]  # of every process
    return done
