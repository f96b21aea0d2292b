"""The command line: ``hooklearn run``, ``locate``, ``edit`` ...; the small commands are in ``tools``, those for many
runs in ``compare``.

The only package of hooklearn that knows ``analysis``. Nothing heavy is imported before a command runs, so that help is
instant. Exit codes: 0; 1 failed; 2 wrong input (one line on stderr); 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import hooklearn
from hooklearn.cli.audit import audits
from hooklearn.cli.calibrate import calibrations
from hooklearn.cli.compare import comparing
from hooklearn.cli.console import (
    Json,
    Progress,
    Quiet,
    clear_errors,
    print_frame,
    print_json,
    print_line,
    print_rows,
    visible,
    work,
)
from hooklearn.cli.job import Job, check_place
from hooklearn.cli.tools import tools
from hooklearn.cli.verdict import (
    Deterministic,
    DryRun,
    LogTo,
    NoReport,
    Out,
    Resume,
    Seeds,
    Sets,
    judge,
    needs_out,
    run_and_judge,
    tell_cost,
    with_determinism,
)


class Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with clear_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="hooklearn", cls=Commands, no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip

Target = Annotated[str, typer.Argument(help="A recipe (hooklearn list recipes) or a YAML file.")]
Runs = Annotated[list[Path], typer.Argument(help="Run folders.")]


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; ends the process with the exit code."""
    app(args, prog_name="hooklearn")


def _version(wanted: bool) -> None:
    if wanted:
        print_line(f"hooklearn {hooklearn.__version__}")
        raise typer.Exit


@app.callback()
def _hooklearn(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """Selective unlearning, and an honest answer to: is it gone, or only switched off?

    \b
    hooklearn run tiny                 the whole job on a tiny model, no download, a minute
    hooklearn run threats --dry-run    what it would cost, before it is started
    hooklearn list methods             what there is; also attacks, corpora, recipes ...
    hooklearn doctor                   does everything work on this machine?

    Every command explains itself: hooklearn run --help. Exit codes: 0, 1 failed, 2 wrong input.
    """


@app.command()
def run(
    target: Target,
    set_: Sets = None,
    seed: Seeds = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    deterministic: Deterministic = False,
    json_: Json = False,
    no_report: NoReport = False,
    log_to: LogTo = None,
    quiet: Quiet = False,
) -> None:
    """The whole job: edit, attack, judge, report.

    Relative paths in a YAML file start from its folder; so do those of --set.

    \b
    hooklearn run tiny
    hooklearn run my.yaml --seed 0 --seed 1 --out runs/mine
    hooklearn run threats --set edit.method=repselect --set budget.kl=0.02
    hooklearn run my.yaml --dry-run
    hooklearn run my.yaml --out runs/mine --resume
    hooklearn run tiny --json | jq .verdict
    hooklearn run tiny --log-to tensorboard
    torchrun --nproc_per_node 8 -m hooklearn run my.yaml --set model.shard=true
    """
    needs_out(resume, out)
    sets = with_determinism(set_, deterministic)
    if dry_run:
        tell_cost(lambda _: Job.of("run", target, sets, seed), json_, quiet)
        return
    run_and_judge(
        lambda _: Job.of("run", target, sets, seed), out, resume=resume, report=not no_report, json_=json_, quiet=quiet,
        log_to=log_to,
    )  # fmt: skip


@app.command()
def locate(
    target: Target,
    set_: Sets = None,
    fitter: Annotated[str | None, typer.Option(help="See: hooklearn list fitters.")] = None,
    rank: Annotated[int | None, typer.Option(help="Directions per site.")] = None,
    layers: Annotated[str | None, typer.Option(help="8-20, or 3,8-10.")] = None,
    sites: Annotated[str | None, typer.Option(help="mlp, attn, all, mlp.gate ...")] = None,
    side: Annotated[str | None, typer.Option(help="x (inputs), g (gradients) or both.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write everything here.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Where can forget and retain be told apart?

    Prints the places that separate best; with --out it also writes the whole table
    (locate.parquet), the subspaces (subspaces.safetensors) and a map (locate.png).

    \b
    hooklearn locate tiny --rank 4
    hooklearn locate my.yaml --fitter probe --side both --out located
    """
    given = {
        "locate.fitter": fitter, "locate.rank": rank, "locate.sides": side, "edit.sites": sites,
        "edit.layers": layers,
    }  # fmt: skip
    options = [f"{key}={value!r}" for key, value in given.items() if value is not None]
    with work(quiet) as progress:
        job = Job.of("locate", target, [*(set_ or ()), *options])
        if out is not None:
            check_place(out, "locate.parquet", resume=False)
        from hooklearn.cli import located

        spaces = located.spaces(job.config, job.base, progress)
        if out is not None:
            from analysis import plots

            located.write(spaces, out)
            plots.separation_map(spaces.to_dataframe()).savefig(out / "locate.png", dpi=150)
    table = located.ranked(spaces)
    if json_:
        print_json({"out": out, "sites": table.to_dict("records")})
        return
    print_frame(table.head(12))
    if out is not None:
        print_line(f"\n{out}")


@app.command()
def edit(
    target: Target,
    set_: Sets = None,
    seed: Seeds = None,
    out: Out = None,
    resume: Resume = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Only the edit: its delta and its trace.

    \b
    hooklearn edit tiny --set edit.method=gradient_ascent
    hooklearn edit my.yaml --out runs/edit
    hooklearn export my.yaml runs/edit/delta-seed0.safetensors edited-model
    """
    needs_out(resume, out)
    with work(quiet) as progress:
        folder = Job.of("edit", target, set_, seed).edit_only().run(out, progress, resume=resume)
        from hooklearn.store import open_run

        edits = open_run(folder)["edits"]
    if json_:
        deltas = sorted(p.name for p in folder.glob("delta-*.safetensors"))
        print_json({"run": folder, "deltas": deltas, "edits": edits})
        return
    print_rows(_edit_row(e) for e in edits)
    for e in edits:
        print_line(f"seed {e['seed']}: stopped by {visible(e['stop'])}; {_promise(e['certificate'])}")
    print_line(f"\n{folder}")


def _edit_row(edit_: dict[str, Any]) -> dict[str, Any]:
    d, budget = edit_["disruption"], edit_["budget"]
    return {
        "seed": edit_["seed"], "method": edit_["method"],
        "far KL": d["kl"], "stderr": d["kl_stderr"], "of": budget["kl"],
        "near CE": d["near_ce"], "stderr ": d["near_ce_stderr"], "of ": budget["near_ce"],
    }  # fmt: skip


def _promise(certificate: dict[str, Any]) -> str:
    if not certificate["promise"]:
        return "it promised to stay in no subspace"
    return f"it stays in {certificate['promise']}: {certificate['worst']:.1e} of it escapes at most"


@app.command()
def attack(
    target: Target,
    delta: Annotated[Path, typer.Option(metavar="FILE", help="A delta that edit or run wrote.")],
    set_: Sets = None,
    seed: Seeds = None,
    out: Out = None,
    resume: Resume = False,
    json_: Json = False,
    no_report: NoReport = False,
    quiet: Quiet = False,
) -> None:
    """Attack an edit made before, and judge it.

    The attacks are those of the config; its method is not run.

    \b
    hooklearn attack tiny --delta runs/edit/delta-seed0.safetensors
    """
    needs_out(resume, out)

    def made(_: Progress) -> Job:
        job = Job.of("attack", target, set_, seed)
        return dataclasses.replace(job, command=f"{job.command} --delta {shlex.quote(str(delta))}")

    run_and_judge(made, out, resume=resume, report=not no_report, json_=json_, quiet=quiet, delta=delta)


@app.command()
def report(
    runs: Runs,
    redact: Annotated[bool, typer.Option("--redact", help="Lengths and hashes in place of texts.")] = False,
    inspect: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the samples as Inspect AI logs here.")
    ] = None,
    json_: Json = False,
) -> None:
    """Judge runs again and write their reports.

    Reads the run folders only; no model is loaded. Several runs: each report sets its run beside the others.

    \b
    hooklearn report runs/mine
    hooklearn report runs/mine runs/yours --redact
    hooklearn report runs/mine --inspect logs
    """
    if redact and inspect is not None:
        raise typer.BadParameter("Inspect logs hold the texts that --redact leaves out", param_hint="--inspect")
    found = []
    with work(quiet=True) as progress:
        import analysis
        from analysis.outcome import outcome

        for folder in runs:
            judge(folder, progress, report=False)  # all of them first: a page shows the others' verdicts too
        for folder in runs:
            others = [other for other in runs if other != folder]
            progress("writing the report")
            page = analysis.report(folder, redact=redact, others=others)
            found.append({**outcome(folder), "report": page})
            if inspect is not None:
                analysis.inspect_logs(folder, inspect)
    if json_:
        print_json({"reports": found})
        return
    for one in found:
        print_line(f"{one['run']}: {one['verdict']}: {visible(one['reason'])}\n{one['report']}")


app.add_typer(audits)
app.add_typer(calibrations)
app.add_typer(comparing)
app.add_typer(tools)
