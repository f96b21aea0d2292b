"""Work spread over a Ray cluster (the extra ``scale``): pieces that know nothing of one another, each with its folder.

Every node sees the same files. A piece whose process or node dies is reported, and the others go on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from hooklearn.disk import one_line
from hooklearn.types import InputError

HERE = "local"


def spread(
    work: Callable[..., None],
    pieces: Sequence[tuple[Any, ...]],
    address: str,
    ended: Callable[[int, str | None], None],
    *,
    jobs: int | None = None,
) -> None:
    """``work(*piece)`` for every piece, a CPU each, and a GPU where the cluster has any.

    Args:
        work: a function of a module, so that the other processes can import it.
        address: of a cluster (``ray://head:10001``, ``auto``), or ``local``: this machine.
        ended: called here with the number of a piece and what went wrong, in one line.
        jobs: pieces beside each other on this machine; its cores by default.
    Raises:
        InputError: Ray is not installed, or there is no cluster at this address.
    """
    ray = _joined(address, jobs)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        # not tried again by Ray: what was lost is in the record, and --resume tries it
        remote = ray.remote(work).options(num_cpus=1, num_gpus=gpus, max_retries=0)
        waiting = {remote.remote(*piece): i for i, piece in enumerate(pieces)}
        while waiting:
            [done], _ = ray.wait(list(waiting))
            try:
                ray.get(done)
                error = None
            except ray.exceptions.RayError as lost:
                error = one_line(getattr(lost, "cause", None) or lost)
            ended(waiting.pop(done), error)
    finally:
        ray.shutdown()


def installed() -> Any:
    """The module; raises InputError where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("--ray needs Ray: pip install 'hooklearn[scale]'") from error
    return ray


def _joined(address: str, jobs: int | None) -> Any:
    ray = installed()
    own: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if address == HERE else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except Exception as error:  # a cluster that does not come up in time is a bare Exception
        # Ray waits 15 s for its own helpers, whatever is set
        busy = "are the cores busy? free some, or: ray start --head, and --ray auto"
        advice = busy if address == HERE else "valid: local, auto, or an address"
        raise InputError(f"--ray {address}: {one_line(error)}; {advice}") from error
    return ray
