"""A process that has everything loaded and forks another one to do the work, which is then killed.

Kills need processes of their own, and a new interpreter spends ten seconds on imports. The worker is pristine: one
thread, nothing measured, the tiny organism read from files. Run as a script this is that process; the rest of the
module is what tests talk to it with.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

Fault = tuple[str, int]
"""What happens at which write: ``("torn", 3)`` dies inside the third."""
FAULTS = {
    "torn": "killed in the middle of the content",
    "written": "killed with the content written, before it is on the disk",
    "renaming": "killed with the temporary file whole, before it is renamed",
    "renamed": "killed after the rename, before the folder is on the disk",
    "full": "from then on the disk is full, but for what the run gives back",
    "memory": "memory runs out",
}


NETWORK = 99
"""The exit code of a process that tried to reach the network: none of them may."""


@dataclass(frozen=True)
class Ending:
    code: int
    """The exit code; minus the signal that ended it."""
    seconds: float
    dying: float
    """Seconds from our signal to its end; 0 where it ended by itself."""
    writes: int
    """Files that reached the disk, where the process lived to say so."""
    said: str


class Workers:
    """``with Workers(organisms) as hooklearn: hooklearn("run", "tiny", kill_after=2.0)``."""

    def __init__(self, organisms: Path, threads: int = 1) -> None:
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "100"}
        env.pop("HF_HUB_OFFLINE", None)  # hooklearn has to see for itself that nothing is needed from there
        command = [sys.executable, __file__, str(organisms)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def __call__(
        self,
        *args: object,
        kill_after: float | None = None,
        once: Path | None = None,
        signal_: int = signal.SIGKILL,
        fault: Fault | None = None,
        user: int | None = None,
    ) -> Ending:
        """Run a command to its end, or kill it, some seconds after its start or after ``once`` is there.

        Args:
            user: run it as somebody else, so that permissions count.
        """
        asked = {
            "args": list(map(str, args)),
            "kill_after": kill_after,
            "once": str(once) if once else None,
            "signal": signal_,
            "fault": fault,
            "user": user,
        }
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server of workers is gone"
        return Ending(**json.loads(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


# ------------------------------------------------------------------------------------ in the server


def serve(folder: Path) -> None:
    import gc

    import torch

    import analysis.report
    import analysis.sweep
    import analysis.verdict  # noqa: F401
    from hooklearn import models, organisms, store  # noqa: F401
    from hooklearn.cli import main
    from hooklearn.deltas import load_delta
    from hooklearn.running import sweeping  # noqa: F401

    sys.addaudithook(_no_network)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    halves = {good: load_delta(folder / f"{good}.safetensors") for good in (False, True)}
    organisms.load = lambda organism, model, good=False: halves[good]  # type: ignore[assignment]
    models.load("tiny")
    gc.collect()
    gc.freeze()  # a collection in a child would look at, and so copy, everything that was loaded here
    for line in sys.stdin:
        asked = json.loads(line)
        told, begun = folder / "told", time.monotonic()
        child = os.fork()
        if not child:
            _work(main, asked, told)
        status, dying = _watched(child, asked["kill_after"], asked["once"], asked["signal"])
        writes = folder / "writes"
        ending = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - begun,
            "dying": dying,
            "writes": int(writes.read_text()) if writes.exists() else 0,
            "said": told.read_text(encoding="utf-8"),
        }
        writes.unlink(missing_ok=True)
        print(json.dumps(ending), flush=True)  # noqa: T201 (the protocol)


def _no_network(event: str, args: tuple[Any, ...]) -> None:
    """Whoever asks for a name or a connection ends here, and no handler can hide that he did."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os._exit(NETWORK)


def _watched(child: int, kill_after: float | None, once: str | None, signal_: int) -> tuple[int, float]:
    """The child's end, by itself or by ours, and how long it took to die of ours."""
    begun = None if once else time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status, 0.0
        if begun is None and once and Path(once).exists():
            begun = time.monotonic()
        if begun is not None and kill_after is not None and time.monotonic() >= begun + kill_after:
            sent = time.monotonic()
            os.kill(child, signal_)
            return os.waitpid(child, 0)[1], time.monotonic() - sent
        time.sleep(0.002)


def _work(main: Any, asked: dict[str, Any], told: Path) -> None:
    """The child: the command line, whatever it says going to a file; never returns."""
    sink = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(sink, stream)
    count = _injected(*(asked["fault"] or ("none", 0)))
    out = told.with_name("writes")
    code = 70  # a traceback
    try:
        if asked["user"] is not None:
            os.setgid(asked["user"])
            os.setuid(asked["user"])
        main(asked["args"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if asked["user"] is None:
            out.write_text(str(count[0]))
        os._exit(code)


def _injected(fault: str, at: int) -> list[int]:
    """Counts what reaches the disk, and does what was asked for at the write that was asked for."""
    count, sync, replace = [0], os.fsync, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted_sync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            if (fault, at) == ("renamed", count[0]):
                die()
            sync(handle)
            return
        count[0] += 1
        if count[0] == at and fault == "torn":
            os.ftruncate(handle, max(0, os.fstat(handle).st_size - 5))
            die()
        if count[0] == at and fault == "written":
            die()
        if count[0] == at and fault == "memory":
            raise MemoryError
        above = Path(f"/proc/self/fd/{handle}").readlink().parents
        if count[0] >= at and fault == "full" and any((p / ".reserve").exists() for p in list(above)[:2]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    def counted_replace(*args: Any, **how: Any) -> None:
        if (fault, at) == ("renaming", count[0]):
            die()
        replace(*args, **how)

    os.fsync, os.replace = counted_sync, counted_replace
    return count


def arguments(sets: dict[str, Any]) -> list[str]:
    """``--set`` for each."""
    return [word for key, value in sets.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def moments(rng: Any, n: int, seconds: float) -> Sequence[float]:
    """One random moment in each of ``n`` equal parts of the time that a run takes, in random order."""
    found = [(i + rng.random()) * seconds / n for i in range(n)]
    rng.shuffle(found)
    return found


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
