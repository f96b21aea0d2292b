"""Memory that was freed: kept between the steps of a stage, given back between stages."""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from hooklearn import memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a habit of the GNU C library")

PROGRAM = """
import resource
import sys
from pathlib import Path
import torch
from hooklearn import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

memory.WORTH = 0  # a small process is worth it here
if sys.argv[1] == "keep":
    memory.keep_freed()
before = resident()
tensors = [torch.ones(2**20) for _ in range(64)]  # 4 MiB each
del tensors
freed = resident()
memory.give_back()
print(freed - before, resident() - before)
"""


def left(mode: str) -> tuple[int, int]:
    """MiB that a process still holds of 256 that it freed: before and after it gave back."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    freed, given_back = done.stdout.split()
    return int(freed), int(given_back)


@glibc
def test_what_was_freed_stays_until_it_is_given_back() -> None:
    """Of 256 MiB; 32 of tolerance, for what a first product and a collection load."""
    freed, given_back = left("keep")
    assert freed > 256 - 32
    assert given_back < 32


@glibc
def test_without_it_every_large_tensor_goes_back_at_once() -> None:
    """The control."""
    freed, given_back = left("leave")
    assert freed < 32
    assert given_back < 32


PEAKS = """
import torch
from hooklearn import memory
memory.WORTH = 0
before = memory.peak_bytes()
torch.ones(2**26)  # 256 MiB, gone at once
first = memory.peak_bytes()
memory.reset_peak()
print(first - before >> 20, memory.peak_bytes() - before >> 20)
"""


@glibc
def test_the_peak_counts_anew_for_a_run() -> None:
    """A sweep's cells are runs of one process, and each has its own peak; the process's stays (the control)."""
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    first, again = map(int, done.stdout.split())
    assert first > 256 - 32
    assert again < 32


def test_a_process_that_was_killed_is_said_in_a_line_and_what_it_raises_itself_is_not_taken_for_it() -> None:
    """The system kills what uses the most memory, and the pool can only say that a process is gone."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool, pytest.raises(BrokenProcessPool) as gone:
        pool.submit(os._exit, 1).result()
    assert (memory.exhausted(gone.value) or "").endswith("fewer --jobs, then --resume")
    assert memory.exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None  # the control
