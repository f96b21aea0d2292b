"""``--deterministic``: only kernels that give the same bits every time, or an error that names the one that does not.

On a CPU the same seed gives the same bits without it; on a GPU, sums that many threads add to at once do not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hooklearn.types import NumericalError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")
"""The settings with which cuBLAS is deterministic (NVIDIA's documentation, "Results reproducibility")."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, where ``wanted``: deterministic kernels only; afterwards torch is as before.

    Must be entered before the first product on a GPU, since cuBLAS reads its setting once.

    Raises:
        NumericalError: something was to be computed for which torch has no deterministic kernel.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    if workspace not in FIXED:
        os.environ[WORKSPACE] = FIXED[0]
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it picks whichever kernel was fastest this time
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error) or isinstance(error, NumericalError):
            raise
        kernel = str(error).partition(",")[0]
        raise NumericalError(f"deterministic: {kernel}; go without, or on another device") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = workspace


def state() -> dict[str, object]:
    """For the run record: what torch was told, whoever told it."""
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled(),
        "cublas_workspace": os.environ.get(WORKSPACE),
    }
