"""The commands for many runs, and for records that exist: ``compare``, ``sweep``, ``pack``, ``verify``, ``view``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hooklearn.cli.console import Json, Quiet, RayCluster, print_json, print_line, print_rows, say, visible, work
from hooklearn.cli.verdict import Deterministic

if TYPE_CHECKING:
    from analysis.comparison import Comparison
    from hooklearn.running.sweep_config import Plan

comparing = typer.Typer(rich_markup_mode=None)

Runs = Annotated[
    list[Path], typer.Argument(help="Run folders; that of a sweep: its cells, seeds pooled; or what pack made of them.")
]
Table = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table here.")]
Metric = Annotated[
    str | None,
    typer.Option(
        help="Of figure, LaTeX, --attacks: completion, preference or sampled. Default: the first, LaTeX all measured."
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Of LaTeX: method, verdict, far KL ..., before, cheap, any, cheap by, any by."),
]


@comparing.command()
def compare(
    runs: Runs,
    json_: Json = False,
    csv: Table = None,
    parquet: Table = None,
    latex: Table = None,
    markdown: Table = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture: .png, .svg or .pdf.")] = None,
    metric: Metric = None,
    quantity: Annotated[
        str | None,
        typer.Option(
            help="Of the figure: any (the default: worst under any attack), cheap (under cheap ones), before."
        ),
    ] = None,
    columns: Columns = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="On stdout a row per method and control, and what was searched.")
    ] = False,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="On stdout, and in the figure, a column per attack in place of the worst.")
    ] = False,
) -> None:
    """Runs side by side: at equal disruption, at equal unlearning, at equal compute.

    Markdown on stdout: behaviour before and after the attacks that all runs share, the controls under them,
    what the same forget score cost, and differences, paired by item and seed; of a sweep that searched
    options, how they were chosen.

    \b
    hooklearn compare runs/natural runs/repselect
    hooklearn compare runs/* --csv table.csv --latex table.tex --figure tradeoff.png
    hooklearn compare runs/sweep --brief
    hooklearn compare runs/sweep --figure samples.png --metric sampled --quantity cheap
    hooklearn compare runs/sweep --figure attacks.png --metric sampled --attacks
    hooklearn compare runs/sweep --latex table.tex --metric sampled --columns "verdict,far KL,before,any,any by"
    hooklearn compare runs/* --json | jq .unlearning
    """
    for name, given, needs, there in (
        ("--quantity", quantity, "--figure without --attacks", figure and not attacks),
        ("--columns", columns, "--latex", latex),
        ("--metric", metric, "--figure, --latex or --attacks", figure or latex or attacks),
    ):
        if given is not None and not there:
            raise typer.BadParameter(f"would change nothing: it needs {needs}", param_hint=name)
    with work(quiet=True):
        import analysis

        found = analysis.compare(runs)
        shown = [found.brief_markdown()] if brief else []
        shown += [found.attacks_markdown(metric)] if attacks else []
        write(found, csv=csv, parquet=parquet, latex=latex, markdown=markdown, figure=figure, metric=metric,
              quantity=quantity or "any", columns=columns, attacks=attacks)  # fmt: skip
    if json_:
        print_json(as_json(found))
    else:
        print_line("\n\n".join(shown or [found.to_markdown()]))


def write(
    found: Comparison,
    *,
    csv: Path | None = None,
    parquet: Path | None = None,
    latex: Path | None = None,
    markdown: Path | None = None,
    figure: Path | None = None,
    metric: str | None = None,
    quantity: str = "any",
    columns: str | None = None,
    attacks: bool = False,
) -> None:
    """The forms of a comparison that were asked for; ``attacks``: the figure has a column per attack.

    Raises:
        InputError: an unknown metric, quantity, column or kind of picture; before anything is written.
    """
    from analysis.side_by_side import attack_levels
    from analysis.tradeoff import check_metric, picture, saved
    from analysis.writing import write_bytes, write_text

    if metric is not None:
        check_metric(metric)
    if figure is None:
        drawn = b""
    elif attacks:
        drawn = saved(attack_levels(found, metric), figure.suffix)
    else:
        drawn = picture(found, metric, figure.suffix, quantity)
    chosen = None if columns is None else [name.strip() for name in columns.split(",")]
    table = found.to_latex(None if metric is None else [metric], chosen) if latex is not None else ""
    for path, text in ((csv, found.to_csv), (latex, lambda: table), (markdown, found.to_markdown)):
        if path is not None:
            write_text(path, text())
    for path, content in ((parquet, found.to_parquet), (figure, lambda: drawn)):
        if path is not None:
            write_bytes(path, content())


def as_json(found: Comparison) -> dict[str, object]:
    frames = ("table", "controls", "attacks", "unlearning", "compute", "differences", "tuning")
    records = {name: getattr(found, name).to_dict("records") for name in frames}
    return {"runs": records.pop("table"), **records, "notes": found.notes}


@comparing.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file; examples in benchmarks/sweeps.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: runs/sweep-NAME-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the sweep in --out.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only cells of this name, npo-*-seed0 say; repeat for more."),
    ] = None,
    edits_from: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A run or sweep: the same edits are taken from there, not made anew."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells and cost; write nothing.")] = False,
    deterministic: Deterministic = False,
    trust: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of the model's repository, if the file asks for it.")
    ] = False,
    ray: RayCluster = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Methods x budgets x seeds in one file, a run folder each.

    Options are chosen on the tuning split, results reported on another. Controls and referee are measured
    once for all cells. A cell that fails is a record and stops no other; the exit code is then 1. With
    --resume what is finished is skipped, and methods, budgets or seeds may have been added to the file;
    --only runs some of the cells now, and the others another time. --edits-from takes the edits of another
    sweep, for other attacks or questions say, where all that an edit follows from is the same.

    \b
    hooklearn sweep benchmarks/sweeps/tiny.yaml --dry-run
    hooklearn sweep benchmarks/sweeps/tiny.yaml --out runs/tiny
    hooklearn sweep benchmarks/sweeps/tiny.yaml --out runs/tiny --resume --json | jq .tuning
    hooklearn sweep benchmarks/sweeps/tiny.yaml --out runs/tiny --resume --only "npo-*" --only "natural-*-seed0"
    hooklearn sweep benchmarks/sweeps/tiny.yaml --ray local
    """
    if resume and out is None:
        raise typer.BadParameter("needs --out: the folder of the sweep to continue", param_hint="--resume")
    if dry_run:
        _plan_only(file, only or (), deterministic, trust, json_, quiet)
        return
    with work(quiet) as progress:
        from hooklearn.cli.job import check_place, stay_offline
        from hooklearn.running import sweeping

        plan, data = _plan(file, deterministic, trust)
        command = sweeping.command_of(file, deterministic, trust)
        stay_offline(plan.base, plan.config.tuning.corpora if plan.config.tuning else {})
        folder = out or sweeping.new_folder(plan.config.name)
        check_place(folder, sweeping.RECORD, resume=resume)
        try:
            made = sweeping.Sweep(plan, folder, data, command, progress, ray, edits_from=edits_from or ())
            made.run(resume, only or ())
        except KeyboardInterrupt:
            flags = {"--only": only or (), "--edits-from": edits_from or (), "--ray": [ray] if ray else []}
            some = "".join(f" {flag} {shlex.quote(str(value))}" for flag, values in flags.items() for value in values)
            again = f"{command} --out {shlex.quote(str(folder))} --resume{some}"
            raise KeyboardInterrupt(f"continue with: {again}") from None
    _tell_sweep(folder, json_)


def _plan(file: Path, deterministic: bool, trust: bool) -> tuple[Plan, dict[str, Any]]:
    """Raises InputError where the file, which may come from anybody, asks for code that nobody here has agreed to."""
    from hooklearn.config_file import read_config
    from hooklearn.running.sweep_config import Plan
    from hooklearn.types import InputError

    data = read_config(file)
    overrides = data.get("overrides", [])
    if deterministic and isinstance(overrides, list):
        data = data | {"overrides": [*overrides, "deterministic=true"]}
    plan = Plan.of({"name": file.stem} | data, file.parent, str(file))
    if plan.base.model.trust_remote_code and not trust:
        raise InputError(
            f"{file}: model.trust_remote_code would run code out of the model's repository; "
            "if you have read it, say so: --trust-remote-code"
        )
    return plan, data


def _plan_only(file: Path, only: Sequence[str], deterministic: bool, trust: bool, json_: bool, quiet: bool) -> None:
    with work(quiet) as progress:
        from hooklearn.cli.sweep_cost import cost

        plan, _ = _plan(file, deterministic, trust)
        progress("estimating")
        stages = cost(plan, only)
    cells = plan.cells(only)
    seeds: dict[str, list[str]] = {}
    for _, family, seed in cells:
        seeds.setdefault(family.name, []).append(str(seed))
    trials = {family: n for family, n in plan.trials().items() if family in seeds}
    if json_:
        print_json({"cells": [name for name, _, _ in cells], "trials of the method": trials, "estimate": stages})
        return
    print_rows(
        {"cells": family, "seeds": ", ".join(those)}
        | ({"trials of the method": trials[family]} if any(trials.values()) else {})
        for family, those in seeds.items()
    )
    print_line("")
    print_rows(stages)


def _tell_sweep(folder: Path, json_: bool) -> None:
    """The table, written beside the cells; exit code 1 where cells are missing from it."""
    with work(quiet=True):
        import analysis
        from analysis.sweep import read_sweep

        record = read_sweep(folder)
        found = analysis.sweep_table(folder) if any(c["status"] == "done" for c in record["cells"]) else None
    if json_:
        whole = {"sweep": folder, **{key: record[key] for key in ("status", "tuning", "cells")}}
        print_json((as_json(found) if found else {}) | whole)
    else:
        print_line(f"{found.to_markdown()}\n\n{folder}" if found else str(folder))
    failed = [c for c in record["cells"] if c["status"] == "failed"]
    for cell in failed:
        say(f"failed: {cell['folder']}: {cell['error']}")
    if failed:
        raise typer.Exit(1)


@comparing.command()
def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or that of a sweep.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .zip; replaced where there is one.")],
    json_: Json = False,
) -> None:
    """The record of a run or a sweep as one small file, to publish beside its numbers.

    Without weights and reports: what was measured, item by item, and the configs. compare takes it like the
    folder; unzipped, a sweep goes on from it with --resume.

    \b
    hooklearn pack runs/sweep-tiny --out tiny.zip
    hooklearn compare tiny.zip --brief
    """
    with work(quiet=True):
        import analysis

        file = analysis.pack(folder, out)
    if json_:
        print_json({"file": file, "bytes": file.stat().st_size})
    else:
        print_line(str(file))


@comparing.command()
def verify(
    target: Annotated[Path, typer.Argument(metavar="RUN|report.html", help="A reported run, or a report.")],
    json_: Json = False,
) -> None:
    """Does a report say what its run measured?

    Hashes of the page and of the files behind it, the table, every curve and the verdict, computed again.
    Exit code 1 where something differs.

    \b
    hooklearn verify runs/mine
    hooklearn verify runs/mine/report.html --json | jq .differences
    """
    with work(quiet=True):
        import analysis

        found = analysis.verify(target)
    if json_:
        print_json({"ok": found.ok, "checked": found.checked, "differences": found.differences,
                    "not_checked": found.not_checked})  # fmt: skip
    else:
        for line in found.differences:
            print_line(f"differs: {visible(line)}")
        for line in found.not_checked:
            print_line(f"not checked: {visible(line)}")
        if found.ok:
            print_line(f"as reported: {', '.join(found.checked)}")
    if not found.ok:
        raise typer.Exit(1)


@comparing.command()
def view(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Runs in it and below are listed.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: DIR/index.html.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json_: Json = False,
) -> None:
    """A folder of runs as one local page.

    Sortable; opens reports; puts two runs side by side. One file, no network, no server.

    \b
    hooklearn view runs
    hooklearn view runs/sweep-tiny --open
    """
    with work(quiet=True):
        import analysis

        page = analysis.view(folder, out)
    if json_:
        print_json({"page": page})
    else:
        print_line(str(page))
    if open_:
        typer.launch(page.resolve().as_uri())
