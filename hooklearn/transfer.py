"""From the host to the device, without the host waiting for the device.

Batches are made on the CPU, so which positions of them are wanted is known there. A device that is asked instead
(``values[mask]`` counts the mask first) has to finish all that was queued before it can answer, and then has nothing
queued: on a GPU that is a gap in every step.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor


def onto(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on this device; out of page-locked memory to a GPU, so that the copy runs beside what is computed."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def rows_at(values: Shaped[Tensor, "batch pos ..."], where: Bool[Tensor, "batch pos"]) -> Shaped[Tensor, "kept ..."]:
    """``values[where]`` for a mask on the host.

    Examples:
        >>> rows_at(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, False], [True, True]]))
        tensor([1, 3, 4])
    """
    index = where.flatten().nonzero().squeeze(1)
    return values.flatten(0, 1).index_select(0, onto(index, values.device))


class Arriving:
    """Numbers on their way from the device: asked for when they have long arrived, they cost no wait."""

    def __init__(self, numbers: Shaped[Tensor, " n"]) -> None:
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.tolist()
