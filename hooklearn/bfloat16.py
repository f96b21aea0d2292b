"""bfloat16 products on a processor that has no unit for them.

torch multiplies bfloat16 matrices there at a sixtieth of float32's speed (AMD Zen 3, one thread: 1.2 against 76
GFLOP/s), so that whatever began in bfloat16 on another machine could not be gone on with. A unit sums the products of
two bfloat16 numbers, which float32 holds exactly, in float32 and rounds once; so do these, at float32's speed. ``auto``
still means float32 there.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CRAWLS = 1 / 4
"""Of float32's speed. Processors that only emulate well are at half of it, those without any help at a sixtieth."""


@functools.cache
def ensure_products() -> bool:
    """From here on, in this process, matrix products of bfloat16 tensors on the CPU are float32 ones, rounded once, if
    they would crawl otherwise. True if they would."""
    if not _crawls():
        return False
    with warnings.catch_warnings():  # that a kernel is replaced, which is what is wanted
        warnings.simplefilter("ignore", UserWarning)
        for name, kernel in KERNELS.items():
            _LIBRARY.impl(name, kernel, "CPU")
    return True


def _crawls() -> bool:
    """Measured, in some ten milliseconds: that a processor has the instructions does not tell."""
    single = torch.ones(64, 256), torch.ones(256, 64)
    half = tuple(m.bfloat16() for m in single)
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(6):
        started = time.perf_counter()
        torch.mm(*(half if turn % 2 else single))
        took[turn % 2].append(time.perf_counter() - started)
    return min(took[0]) / min(took[1]) < CRAWLS


# a product into a given tensor is another operator, whose kernel stays as it was
def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _wide(torch.mm, (a.shape[0], b.shape[1]), a, b)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _wide(torch.bmm, (*a.shape[:2], b.shape[2]), a, b)


def _addmm(to: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _wide(torch.addmm, (a.shape[0], b.shape[1]), to, a, b, beta=beta, alpha=alpha)


def _baddbmm(to: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return _wide(torch.baddbmm, (*a.shape[:2], b.shape[2]), to, a, b, beta=beta, alpha=alpha)


def _wide(product: Callable[..., Tensor], shape: tuple[int, ...], *factors: Tensor, **scales: Any) -> Tensor:
    if any(f.dtype is not torch.bfloat16 for f in factors):
        return product(*factors, **scales, out=factors[-1].new_empty(shape))
    sums = torch.empty(shape, dtype=torch.float32)
    return product(*(f.float() for f in factors), **scales, out=sums).bfloat16()


KERNELS: dict[str, Callable[..., Tensor]] = {"mm": _mm, "bmm": _bmm, "addmm": _addmm, "baddbmm": _baddbmm}
_LIBRARY = torch.library.Library("aten", "IMPL")
