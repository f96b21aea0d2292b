"""Hostile input by the number: seeded mutations of bytes and of JSON, and a watch over what reading them does.

A case is ``(target, number)``: the same everywhere, so that one that fails can be tried again alone.
"""

from __future__ import annotations

import copy
import json
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hooklearn.types import InputError, NumericalError

SECONDS = 10.0
"""Of processor time, after which a case counts as a hang. The slowest honest one takes a twentieth."""
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**400, -1e308, float("nan"), float("inf"), "", "0", "\0", "\ud800",
    "\x1b]0;x\x07",
    "../../../outside", "/etc/passwd", "<script>alert(1)</script>", "![x](javascript:alert(1))", "=cmd()", "{{7*7}}",
    "${HOME}", "%s%n", "a" * 5000, "\u202e\u2028", [], {}, [[]], [None], {"a": {}}, {"__class__": "os"}, [1, "a", {}],
)  # fmt: skip
TOKENS = (
    b"\0", b"\xff", b"\xc0\x80", b"\n", b"{", b"}", b"[" * 200, b"]", b'"', b":", b",", b"null", b"NaN", b"1e999", b"-",
    b"\\ud800", b"9" * 5000, b"&a [*a, *a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['touch outside']",
    b"!!bool maybe", b"!!timestamp x", b"2020-13-45", b"0x", b"? [a]", b"%YAML 9.9", b"---\n", b"\xef\xbb\xbf",
    b"<script>", b"\x1b[2J", b"../", b"PAR1", b"\xff\xff\xff\x7f", b"__metadata__",
)  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few changes: bytes set, pieces cut out, doubled or moved, tokens that mean something put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64))
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at:at] = rng.choice(TOKENS)
            case _:
                data[at : at + size] = rng.randbytes(size)
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


def spoiled(value: Any, rng: random.Random) -> Any:
    """The same tree with one to three places replaced, left out, doubled or renamed."""
    tree = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not (places := list(_places(tree))):
            return hostile(rng)
        parent, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[str(hostile(rng))] = parent.pop(key)
            case 2 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case _:
                parent[key] = hostile(rng)
    return tree


def hostile(rng: random.Random) -> Any:
    """A copy: the tree that it becomes a part of is changed further."""
    return copy.deepcopy(rng.choice(HOSTILE))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


class Hang(BaseException):
    """Too much processor time for one case."""


class Watch:
    """Sees every file that is opened for writing, every process and every connection, by Python's audit events."""

    def __init__(self) -> None:
        self.allowed, self.seen, self.on = Path(), [], False
        sys.addaudithook(self._hear)  # for good: Python takes no hook back

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            writes = any(c in (mode or "") for c in "wax+") or bool((flags or 0) & 0o1103)  # O_WRONLY O_RDWR O_CREAT
            if writes and isinstance(path, str | bytes) and not self._inside(path):
                self.seen.append(f"{event} {path!r}")
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree"):
            if not all(self._inside(a) for a in args if isinstance(a, str | bytes)):
                self.seen.append(f"{event} {args!r:.200}")
        elif event in (
            "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "pickle.find_class",
            "socket.connect", "socket.getaddrinfo", "ctypes.dlopen",
        ):  # fmt: skip
            self.seen.append(f"{event} {args!r:.200}")

    def _inside(self, path: str | bytes) -> bool:
        text = path.decode("utf-8", "replace") if isinstance(path, bytes) else path
        return Path(text).absolute().is_relative_to(self.allowed) or text == "/dev/null"

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        self.allowed, self.on, self.seen = folder, True, []
        try:
            yield
        finally:
            self.on = False


@dataclass
class Tally:
    """What the cases came to, and the first of every kind that was not one clear line."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        each = ", ".join(f"{name} {n} ({self.refused[name]} refused)" for name, n in self.cases.items())
        return f"{self.cases.total()} cases in {self.seconds:.0f} s: {each}"


Case = Callable[[random.Random, Path], None]
"""Makes one hostile input in the folder, and reads it."""


def fuzz(targets: Mapping[str, tuple[int, Case]], cases: int, folder: Path, watch: Watch, first: int = 0) -> Tally:
    """``cases`` in all, shared out by the weights of the targets."""
    tally, total, begun = Tally(), sum(weight for weight, _ in targets.values()), time.monotonic()
    before = signal.signal(signal.SIGPROF, _too_long)
    try:
        for name, (weight, case) in targets.items():
            for number in range(first, first + max(1, round(cases * weight / total))):
                _one(tally, name, number, case, folder, watch)
    finally:
        signal.signal(signal.SIGPROF, before)
    tally.seconds = time.monotonic() - begun
    return tally


def _too_long(*_: object) -> None:
    raise Hang(f"more than {SECONDS:.0f} s of processor time")


def _one(tally: Tally, name: str, number: int, case: Case, folder: Path, watch: Watch) -> None:
    tally.cases[name] += 1
    problem = None
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with watch.over(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case(random.Random(f"{name}:{number}"), folder)
    except (InputError, NumericalError) as error:
        tally.refused[name] += 1
        problem = None if str(error).strip() else "an empty message"
    except (Exception, Hang) as error:
        trace, where = error.__traceback__, "?"
        while trace is not None:
            code = trace.tb_frame.f_code
            if "hooklearn/" in code.co_filename or "analysis/" in code.co_filename:
                where = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        problem = f"{type(error).__name__} at {where}: {error!s:.120}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    problem = watch.seen[0] if watch.seen else problem
    if problem is not None:
        tally.wrong.setdefault(f"{name}: {problem.split(':')[0]}:{problem.split(':')[1][:6] if ':' in problem else ''}",
                               f"{name} case {number}: {problem}")  # fmt: skip
