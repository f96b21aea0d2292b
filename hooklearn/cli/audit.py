"""``hooklearn audit``: removed or only disabled, for two models that were made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hooklearn.cli.console import Json, Quiet
from hooklearn.cli.verdict import (
    Deterministic,
    DryRun,
    LogTo,
    NoReport,
    Out,
    Resume,
    Seeds,
    Sets,
    needs_out,
    run_and_judge,
    tell_cost,
    with_determinism,
)

if TYPE_CHECKING:
    from hooklearn.cli.console import Progress
    from hooklearn.cli.job import Job

audits = typer.Typer(rich_markup_mode=None)


@audits.command()
def audit(
    original: Annotated[str, typer.Option(metavar="MODEL", help="Before: a folder, .gguf file, name or hub id.")],
    edited: Annotated[str, typer.Option(metavar="MODEL", help="After it, same tokenizer; or a PEFT adapter folder.")],
    forget: Annotated[str, typer.Option(metavar="CORPUS", help="What was to go: FILE, hub:NAME, or NAME:part=...")],
    heldout: Annotated[str, typer.Option(metavar="CORPUS", help="More of it, never trained on: this decides.")],
    never: Annotated[
        str | None, typer.Option(metavar="MODEL", help="One that never had it; 'permuted' for facts.")
    ] = None,
    retain: Annotated[str | None, typer.Option(metavar="CORPUS", help="What was to stay.")] = None,
    near: Annotated[str | None, typer.Option(metavar="CORPUS", help="Good neighbours; default: a part of retain.")] = (
        None
    ),
    disruption: Annotated[str | None, typer.Option(metavar="CORPUS", help="Default: built-in prose.")] = None,
    ood: Annotated[str | None, typer.Option(metavar="CORPUS", help="The behaviour elsewhere.")] = None,
    attack_train: Annotated[str | None, typer.Option(metavar="CORPUS", help="The attacker's. Default: forget.")] = None,
    unrelated: Annotated[str | None, typer.Option(metavar="CORPUS", help="For erosion. Default: built in.")] = None,
    layout: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Columns of the files: tofu ..., or ROLE=NAME of one.")
    ] = None,
    battery: Annotated[str, typer.Option(help="cheap, standard or full.")] = "cheap",
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
    """Removed or only disabled? For two models made elsewhere.

    Nothing is edited: both are attacked as they are, and judged like a run. Without --never no
    verdict is better than WEAKENED. Attacks whose corpus is not there are left out, and said so.

    \b
    hooklearn audit --original base --edited unlearned --forget f.jsonl --heldout h.jsonl
    hooklearn audit ... --never retrained --retain r.jsonl --battery standard
    hooklearn audit ... --layout tofu --layout heldout=tofu-paraphrased
    hooklearn audit ... --set corpora.heldout.columns='{prompt: question, completion: answer}'
    """
    needs_out(resume, out)
    roles = {
        "forget": forget, "heldout": heldout, "retain": retain, "near": near, "disruption": disruption, "ood": ood,
        "attack_train": attack_train, "unrelated": unrelated,
    }  # fmt: skip

    def made(progress: Progress) -> Job:
        from hooklearn.cli.job import Job
        from hooklearn.config_file import from_yaml
        from hooklearn.running import auditing
        from hooklearn.types import InputError

        sets = with_determinism(set_, deterministic)
        if any(text.startswith("battery=") for text in sets):
            raise InputError(
                "--set battery=NAME is --battery NAME here: attacks whose corpus is not there are left out"
            )
        if any(text.startswith("controls.never") for text in sets):
            raise InputError("--set controls.never is --never here: a MODEL, or permuted")
        corpora = auditing.corpora_of(layout or (), **roles)
        own = next((from_yaml(t.partition("=")[2], t) for t in reversed(sets) if t.startswith("attacks=")), None)
        if isinstance(own, list):  # what is to be made, with what it needs, is asked of these
            own = [{"name": a} if isinstance(a, str) else a for a in own]
            config, left_out = auditing.audit(original, edited, corpora, never=never, attacks=own)
        else:
            config, left_out = auditing.audit(original, edited, corpora, never=never, battery=battery)
            if any(text.startswith("attacks") for text in sets):
                del config["battery"]  # which has other attacks than these
        for attack in left_out:
            progress(f"left out: {attack}")
        typed = {"original": original, "edited": edited, "never": never, "battery": battery}
        typed |= {role.replace("_", "-"): text for role, text in roles.items()}
        words = [*auditing.words(typed), *(w for name in layout or () for w in ("--layout", name))]
        return Job.made(["audit", *words], config, Path(), sets, seed)

    if dry_run:
        tell_cost(made, json_, quiet)
    else:
        run_and_judge(made, out, resume=resume, report=not no_report, json_=json_, quiet=quiet, log_to=log_to)
