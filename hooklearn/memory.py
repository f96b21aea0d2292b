"""Memory of this process: its peak, giving back what was freed, and what to say when there is none left."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

WORTH = 3 * 2**29
"""Bytes below which a process has nothing that is worth looking for: the search takes a third of a second."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of ``malloc.h``."""


def peak_bytes() -> int:
    """The largest resident size so far; since :func:`reset_peak`, where that was called.

    Linux says it of this process alone in ``/proc``; what ``getrusage`` says there may be the size of the process that
    started it.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """The peak counts anew from what is resident now: of a sweep's cells each has its own. Linux can do that; elsewhere
    the peak stays that of the process."""
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def keep_freed() -> None:
    """What this process frees stays with it until :func:`give_back`, and what comes next is made of it.

    The C library of Linux returns every large tensor at once otherwise, and the system clears each page of the next.
    """
    with contextlib.suppress(OSError, AttributeError):  # as below
        library = ctypes.CDLL("libc.so.6")
        for setting, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
            library.mallopt(setting, value)


def give_back() -> None:
    """What was freed goes back to the system. The C library of Linux keeps it otherwise, in pieces that what comes next
    cannot use, and the peak of a run is then that of all its stages together. Small processes are left alone.
    """
    if peak_bytes() < WORTH:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call, and no such habit
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def exhausted(error: BaseException) -> str | None:
    """One line where an error says that memory ran out, of the machine or of the device; None for all others.

    torch raises plain RuntimeErrors for it on a CPU, so its words have to be read.
    """
    if isinstance(error, BrokenProcessPool):
        return "a process beside this one was killed, as a rule for want of memory; fewer --jobs, then --resume"
    text = " ".join(str(error).split())
    refused = ("out of memory", "can't allocate memory", "cannot allocate memory")
    told = isinstance(error, RuntimeError) and any(words in text.lower() for words in refused)
    if not (told or isinstance(error, MemoryError)):
        return None
    return f"out of memory ({text or type(error).__name__}); lower max_tokens or limit the corpora, then --resume"
