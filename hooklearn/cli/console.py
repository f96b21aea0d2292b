"""How the command line speaks: results on stdout, everything else on stderr, errors in one line.

Light on purpose: importing this loads neither torch nor pandas.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from hooklearn.jsonable import jsonable
from hooklearn.memory import exhausted

if TYPE_CHECKING:
    import pandas as pd

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
RayCluster = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Spread over a Ray cluster; local: over this machine.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

# ------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """What went wrong in one line on stderr, and as the exit code; bugs keep their traceback.

    2: wrong input, or a place that cannot be written. 1: the numbers broke down, or memory ran out. 130: interrupted.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        say(f"interrupted{': ' if error.args else ''}{error}")
        raise typer.Exit(130) from None
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        say(f"error: {_message(error)}")
        raise typer.Exit(code) from error


def _exit_code(error: Exception) -> int | None:
    types: Any = sys.modules.get("hooklearn.types")  # not imported yet: none of its errors
    if types is not None and isinstance(error, types.InputError):
        return 2
    if types is not None and isinstance(error, types.NumericalError):
        return 1
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return 2
    return None if exhausted(error) is None else 1


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if (line := exhausted(error)) is not None:
        return line
    return str(error) or type(error).__name__


def is_first() -> bool:
    """Of the processes that ``torchrun`` or ``accelerate launch`` started, the one that writes and speaks."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(visible(text) + "\n")
    sys.stderr.flush()


def visible(text: object) -> str:
    """One line in which nothing steers the terminal: escapes and controls are spelled out."""
    line = " ".join(str(text).splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


# ----------------------------------------------------------------------------------------- progress


class Progress:
    """Stage texts on stderr: a live line on a terminal, plain lines elsewhere, or nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._started, self._live = quiet or not is_first(), time.monotonic(), None
        if not self._quiet and sys.stderr.isatty():
            self._live = _live_line()

    def __call__(self, text: str) -> None:
        if self._live is not None:
            self._live.update(self._live.task_ids[0], description=visible(text))
        elif not self._quiet:
            say(f"[{time.monotonic() - self._started:4.0f} s] {text}")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def _live_line() -> Any:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description}", markup=False)
    bar = Bar(SpinnerColumn(), TimeElapsedColumn(), text, console=Console(stderr=True), transient=True)
    bar.add_task("starting", total=None)
    return bar


@contextlib.contextmanager
def work(quiet: bool = False) -> Iterator[Progress]:
    """Heavy work: libraries keep silent, whatever they print goes to stderr, progress is shown, and a request to end
    (SIGTERM, as schedulers send it) is an interrupt: there is time to write the record."""
    with _ended_by_interrupt(), quiet_libraries(), contextlib.redirect_stdout(sys.stderr), Progress(quiet) as progress:
        yield progress


@contextlib.contextmanager
def _ended_by_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No banners, and no warnings but our own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"(hooklearn|analysis)\b")
            yield
    finally:
        logging.disable(before)


# ------------------------------------------------------------------------------------------ results


def print_json(value: object) -> None:
    """Exactly one object on stdout; what was not measured is null."""
    print_line(json.dumps(jsonable(value), allow_nan=False))


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """A small table, one row a mapping: text to the left, numbers to the right, NaN as a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ():
        numeric = any(isinstance(r[name], float) for r in rows)
        table.add_column(Text(visible(name)), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(v)) for v in row.values()))
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    console.width = 160  # a file or a pipe has no edge to wrap at
    with console.capture() as captured:
        console.print(table)
    print_line("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_frame(frame: pd.DataFrame) -> None:
    print_rows(dict(zip(frame.columns, r, strict=True)) for r in frame.itertuples(index=False))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "-"
    return "-" if value is None else visible(value)
