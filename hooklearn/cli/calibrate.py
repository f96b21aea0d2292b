"""``hooklearn calibrate``: can the verdict be trusted? Tried on models whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hooklearn.cli.console import Json, Quiet, RayCluster, print_frame, print_json, print_line, say, visible, work

if TYPE_CHECKING:
    from analysis.calibrate import Calibration

calibrations = typer.Typer(rich_markup_mode=None)


@calibrations.command()
def calibrate(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Cases, models and the result. Default: runs/calibration, of another model "
            "than tiny runs/calibration-MODEL.",
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            "--kinds",
            metavar="NAME",
            help="Several times; default of tiny: 22 (hooklearn list organisms has 57).",
        ),
    ] = None,
    all_kinds: Annotated[
        bool, typer.Option("--all-kinds", help="Of tiny: 38, all that do not say the same as another.")
    ] = False,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed", "--seeds", metavar="N", help="Several times; default: 54, 57 and 58 (tiny), 0 (others)."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="tiny, or a model of which an organism is shipped.")
    ] = "tiny",
    battery: Annotated[str, typer.Option(help="Of tiny: cheap, standard or full.")] = "cheap",
    jobs: Annotated[int, typer.Option(min=1, help="Of tiny: processes beside each other, a core each.")] = 2,
    ray: RayCluster = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the cases that are finished.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Can the verdict be trusted? Organisms of known truth through the whole audit.

    Prints verdict against truth, on the part that set the thresholds and on the part that did not,
    what a trustworthy verdict must show, and how well each measure does alone. Exit code 0 whatever
    comes of it. Also written: calibration.json, calibration.md, calibration.png.

    \b
    hooklearn calibrate
    hooklearn calibrate --resume --json | jq .requirements
    hooklearn calibrate --kind locked --kind retrained --seed 0 --out runs/two
    hooklearn calibrate --all-kinds --resume
    hooklearn calibrate --model smollm2-135m-instruct --kind never-learned --out runs/calibration-smollm2
    """
    with work(quiet) as progress:
        from hooklearn import disk, store
        from hooklearn.organisms.kinds import ALL
        from hooklearn.running import calibration, calibration_instilled
        from hooklearn.types import InputError

        if all_kinds and (kinds or model != "tiny"):
            raise InputError("--all-kinds is of tiny, and without --kind")
        out = out or Path("runs/calibration" + f"-{model}" * (model != "tiny"))
        if model == "tiny":
            folders = calibration.run(
                out, ALL if all_kinds else kinds, seeds, battery_name=battery, jobs=jobs, resume=resume,
                progress=progress, ray=ray,
            )  # fmt: skip
        elif battery != "cheap" or ray is not None:
            raise InputError(f"calibrate --model {model}: its attacks are its own; --battery and --ray are of tiny")
        else:
            folders = calibration_instilled.run(out, model, kinds, seeds, resume=resume, progress=progress)
        if lost := [f.name for f in folders if not store.is_done(f)]:
            say(f"not finished: {', '.join(lost)}; go on with --resume")
            raise typer.Exit(1)
        progress("judging")
        from analysis.calibrate import calibrate as compared
        from analysis.confusion import confusion

        found = compared(folders, jobs=jobs)
        disk.save_json(out / "calibration.json", found.to_dict())
        disk.write_atomic(out / "calibration.md", (found.to_markdown() + "\n").encode())
        confusion(found).savefig(out / "calibration.png", dpi=150)
    if json_:
        print_json(found.to_dict())
    else:
        _tell(found, out)


def _tell(found: Calibration, out: Path) -> None:
    from analysis.calibrate import INSTILLED, SPLITS, TITLES

    print_line(f"{INSTILLED}\n")
    for split in SPLITS:
        if not (mine := [c for c in found.cases if c.split == split]):
            continue
        print_line(f"{TITLES[split]}: {sum(c.right for c in mine)} of {len(mine)} verdicts are right\n")
        print_frame(found.confusion(split))
        print_line("")
    print_frame(found.by_organism())
    print_line("")
    for c in found.cases:
        if not c.right:
            print_line(f"{c.organism} (seed {c.seed}, {c.split}) {c.verdict}: {visible(c.reason)}")
    print_line("")
    for r in found.requirements:
        word = {True: "yes", False: "NO", None: "unknown"}[r.met]
        print_line(f"{word}: {r.what} ({r.found})")
    print_line("\nEach measure alone, still there against gone:\n")
    print_frame(found.evidence)
    print_line(f"\n{out / 'calibration.md'}")
