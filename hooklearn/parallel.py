"""Several processes at one job: who does what, and how the parts are put together.

``torchrun`` or ``accelerate launch`` starts them. What is a sum over batches (gradients, moments, log-probabilities,
the loss of a training step) is computed in parts and added up, so that every process knows the same numbers and takes
the same decisions; the rest each computes for itself. The first one writes and speaks. With one process nothing here
does anything.

A function in which the processes wait for one another has to be called by all of them, in the same order. Where the
weights are spread over them (:mod:`hooklearn.sharded`) that includes every pass through the model, so each process
takes as many as the others; who has nothing left to do takes a piece again, and what comes of it is dropped.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that a launcher started know one another: by nccl where tensors are on GPUs, else gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _together():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def begin_alone() -> None:
    """A group of this process only, until it ends, where no launcher started others: what cuts weights wants one."""
    if _together():
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    atexit.register(lambda: _together() and dist.destroy_process_group())


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    return dist.get_rank() if _together() else 0


def share(work: Sequence[T]) -> Sequence[T]:
    """What of it is this process's: every ``size``-th piece, and where the others have one more, the last again."""
    own = work[rank() :: size()]
    return [*own, *work[-1:]] if len(own) * size() < len(work) else own


def rounds(stream: Iterable[T]) -> Iterator[list[T]]:
    """As many pieces at a time as there are processes, in the order of the ranks; the last round may be shorter."""
    pieces = iter(stream)
    while now := list(itertools.islice(pieces, size())):
        yield now


# ------------------------------------------------------------------- here they wait for one another


def gather(parts: list[T], of: int | None = None) -> list[T]:
    """What every process made of its :func:`share`, in the order of the whole.

    Args:
        of: pieces of the whole; None: all that came, where nobody took one again.
    """
    if size() == 1:
        return parts
    found: list[list[T]] = [[] for _ in range(size())]
    dist.all_gather_object(found, parts)
    return [found[i % size()][i // size()] for i in range(sum(map(len, found)) if of is None else of)]


def add_(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def total(number: float) -> float:
    """The sum over all processes, in float64; integers below 2^53 are exact."""
    return float(add_(torch.tensor(number, dtype=torch.float64))) if size() > 1 else number


def agreed(value: T) -> T:
    """What the first process has."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def add_gradients(parameters: Sequence[Tensor]) -> None:
    """Sums of ``.grad`` over all processes; none where no process has one (an optimizer passes over it).

    Those of spread parameters were added up on the way back.
    """
    parameters = [p for p in parameters if not isinstance(p, DTensor)]
    if size() == 1 or not parameters:
        return
    there = add_(torch.tensor([float(p.grad is not None) for p in parameters]))
    for parameter, n in zip(parameters, there.tolist(), strict=True):
        if n:
            parameter.grad = add_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Where this process writes: the first one there, the others into copies that are thrown away.

    A run that is to be continued is found in every copy, whole: they are made when the first one, too, has come here
    and writes no more, and it goes on when they are made. (A copy that lacks a result leaves its process at work on
    it, waiting for one that has it and is done.)
    """
    wait()
    if rank() == 0:
        wait()
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="hooklearn-") as scratch:
        copy = Path(scratch) / "run"
        if folder.exists():
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".*"))
        wait()
        yield copy


# ------------------------------------------------- tensors that are spread over the processes, also waiting


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process. Of a number that each knows in part (a sum, a norm) the sum: ``float`` of it
    would be this process's own part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, cut as ``like`` is; nothing is sent. As it is where ``like`` is whole."""
    if not isinstance(like, DTensor):
        return whole(tensor)
    if isinstance(tensor, DTensor):
        return tensor
    return _kept_as(distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None), like)


def sum_shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The sum over all processes, cut as ``like`` is: none of them ever has all of it."""
    if not isinstance(like, DTensor):
        return add_(tensor)
    partial = DTensor.from_local(tensor, like.device_mesh, [Partial()] * like.device_mesh.ndim, run_check=False)
    return _kept_as(partial.redistribute(placements=like.placements), like)


def _kept_as(tensor: DTensor, like: DTensor) -> DTensor:
    """On the device where this process keeps its part of ``like``: not the mesh's, where weights wait on the host."""
    own, device = tensor.to_local(), like.to_local().device
    if own.device == device:
        return tensor
    shape, stride = tensor.shape, tensor.stride()
    return DTensor.from_local(
        own.to(device), tensor.device_mesh, tensor.placements, run_check=False, shape=shape, stride=stride
    )


def device_of(tensor: Tensor) -> torch.device:
    """Where it is computed with. A part that waits on the host goes to the device of its mesh."""
    if not isinstance(tensor, DTensor) or tensor.device_mesh.device_type == "cpu":
        return tensor.device
    return torch.device(tensor.device_mesh.device_type, torch.cuda.current_device())


def wait() -> None:
    """Until all have come here."""
    if size() > 1:
        dist.barrier()
