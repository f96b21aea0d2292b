"""A script of this folder in two gloo processes of one thread, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TORCHRUN = ["torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]


def in_two_processes(script: str, *words: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """What it printed; fails with its last words where it failed. ``timeout``: seconds."""
    done = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, HERE / script, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done
