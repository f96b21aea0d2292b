"""Memory of this process: its peak, and giving back what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource


def peak_bytes() -> int:
    """The largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def give_back() -> None:
    """What was freed goes back to the system. The C library of Linux keeps it otherwise, in pieces that what comes next
    cannot use, and the peak of a run is then that of all its stages together."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call, and no such habit
        ctypes.CDLL("libc.so.6").malloc_trim(0)
