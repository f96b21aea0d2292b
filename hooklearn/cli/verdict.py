"""What the commands share that end in a verdict: their options, the judging, and how the result is told."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hooklearn.cli.console import print_frame, print_json, print_line, print_rows, visible, work

if TYPE_CHECKING:
    from collections.abc import Callable

    from hooklearn.cli.console import Progress
    from hooklearn.cli.job import Job

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the config: edit.method=repselect ..."),
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", metavar="N", help="May be given several times.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Default: runs/NAME-TIME.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show config and cost; write nothing.")]
LogTo = Annotated[
    list[str] | None,
    typer.Option("--log-to", metavar="NAME", help="tensorboard, wandb, trackio ...; may be given several times."),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="The same bits every time, also on a GPU: deterministic=true.")
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Judge, but write no report.")]


def with_determinism(sets: list[str] | None, deterministic: bool) -> list[str]:
    """``--deterministic`` is a key of the config: what was resumed without it would not be what it says."""
    return [*(sets or ()), *["deterministic=true"][:deterministic]]


def needs_out(resume: bool, out: Path | None) -> None:
    if resume and out is None:
        raise typer.BadParameter("needs --out: the folder of the run to continue", param_hint="--resume")


def run_and_judge(
    made: Callable[[Progress], Job],
    out: Path | None,
    *,
    resume: bool,
    report: bool,
    json_: bool,
    quiet: bool,
    log_to: Sequence[str] | None = None,
    delta: Path | None = None,
) -> None:
    """The whole job, its verdict, and its report where it is wanted; every step is told to what ``log_to`` names.

    Args:
        delta: attack this edit instead of making one.
    """
    with work(quiet) as progress:
        from hooklearn import parallel
        from hooklearn.deltas import load_delta

        job = made(progress)
        given = None if delta is None else load_delta(delta)
        folder = out or job.new_folder()
        with parallel.joined(), logging_to(log_to, folder):
            job.run(folder, progress, resume=resume, delta=given)
        page = judge(folder, progress, report=report)
    tell(folder, page, json_)


@contextlib.contextmanager
def logging_to(names: Sequence[str] | None, folder: Path) -> Iterator[None]:
    """Nothing where nothing is named; files of the loggers go below ``folder``."""
    if not names:
        yield
        return
    from hooklearn.callbacks import observing, reporting_to
    from hooklearn.store import LOGS

    with observing(*reporting_to(*names), out=folder / LOGS, name=folder.name):
        yield


def judge(
    folder: Path, progress: Progress, *, report: bool, redact: bool = False, others: Sequence[Path] = ()
) -> Path | None:
    """Writes the verdict, and the report where it is wanted."""
    import analysis

    progress("judging")
    analysis.judge(folder)
    if not report:
        return None
    progress("writing the report")
    return analysis.report(folder, redact=redact, others=others)


def tell(folder: Path, page: Path | None, json_: bool) -> None:
    """A judged run: as JSON, or as a table, the verdict and where to read on."""
    import analysis
    from analysis.outcome import outcome

    found = outcome(folder)
    if json_:
        print_json(found)
        return
    table = analysis.summary_table(folder).set_index("arm").T
    print_frame(table.rename_axis("", axis=0).reset_index())
    print_line(f"\n{found['verdict']}: {visible(found['reason'])}")
    print_line(str(page or folder))


def tell_cost(made: Callable[[Progress], Job], json_: bool, quiet: bool) -> None:
    """``--dry-run``: the config as it would be run, and what that would take."""
    with work(quiet) as progress:
        from hooklearn.cli.estimate import estimate

        job = made(progress)
        progress("estimating")
        cost = estimate(job.config, job.base)
    config = job.config.model_dump(mode="json")
    if json_:
        print_json({"config": config, "estimate": dataclasses.asdict(cost)})
        return
    import yaml

    print_line(yaml.safe_dump(config, sort_keys=False))
    print_rows(cost.rows())
    print_line(f"\n{visible(cost)}")
