"""The small commands: ``list``, ``doctor``, ``fetch``, ``export``, ``organism``."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from hooklearn.cli.console import Json, Quiet, is_first, print_json, print_line, print_rows, say, visible, work
from hooklearn.cli.verdict import Sets

tools = typer.Typer(rich_markup_mode=None)
organisms_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
tools.add_typer(organisms_app, name="organism", help="Models whose truth is known: list, show, build.")


@tools.command("list")
def list_(
    what: Annotated[
        str,
        typer.Argument(help="methods, attacks, batteries, fitters, corpora, layouts, organisms, recipes or models."),
    ],
    name: Annotated[str | None, typer.Argument(help="One of them, with everything that can be set.")] = None,
    json_: Json = False,
) -> None:
    """What there is: methods, attacks, corpora ...; of one of them, its options; of a recipe or a battery, its config.

    Of what another package adds, the source is that package.

    \b
    hooklearn list methods
    hooklearn list methods natural
    hooklearn list recipes threats > mine.yaml
    hooklearn list corpora --json
    """
    with work(quiet=True):
        from hooklearn.cli.inventory import described, inventory

        rows = inventory(what, say) if name is None else []
        one = described(what, name) if name is not None else {}
    if name is None:
        print_json({what: rows}) if json_ else print_rows(rows)
    elif json_:
        print_json(one)
    else:
        _print_one(one)


def _print_one(one: dict[str, Any]) -> None:
    """A recipe or a battery as the file that it stands for; of anything else what it is, and then what can be set."""
    if "config" in one:
        import yaml

        print_line(f"# {visible(one['name'])}: {visible(one['what'])}")
        print_line(yaml.safe_dump(one["config"], sort_keys=False, width=110).rstrip())
        return
    options = one.pop("options", None)
    print_rows({"": key, visible(one["name"]): text} for key, text in one.items() if key != "name")
    if options:
        print_line("")
        print_rows(
            {"option": o["name"], "type": o["type"], "default": o["default"] or "(needed)", "": _text(o["what"])}
            for o in options
        )
    elif options is not None:
        print_line("\nIt has no options.")


def _text(markdown: str) -> str:
    return markdown.replace("``", "`")


@tools.command()
def doctor(json_: Json = False) -> None:
    """Does everything work on this machine?

    Versions, device, precision, memory, cached models, the network, and a self-test of the
    identity behind every projection. Exit code 1 where something needs to be done first.

    \b
    hooklearn doctor
    hooklearn doctor --json | jq .self_test
    """
    with work(quiet=True):
        from hooklearn.cli.doctor import examine, lines

        found = examine()
    if json_:
        print_json(found)
    else:
        for line in lines(found):
            print_line(visible(line))
    if not found["ok"]:
        raise typer.Exit(1)


@tools.command()
def fetch(
    name: Annotated[str, typer.Argument(help="See: hooklearn list models.")], json_: Json = False, quiet: Quiet = False
) -> None:
    """Download a built-in model into the cache.

    Afterwards nothing needs the network. HOOKLEARN_CACHE says where the cache is.

    \b
    hooklearn fetch smollm2-135m-instruct
    """
    with work(quiet) as progress:
        from hooklearn import builtin

        progress(f"{name}: {'in the cache' if builtin.is_cached(name) else 'downloading'}")
        folder = builtin.fetch(name)
    if json_:
        print_json({"model": name, "folder": str(folder)})
    else:
        print_line(str(folder))


def _card(path: Path) -> str:
    from hooklearn.types import InputError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--card {path}: is no UTF-8 text") from error


@tools.command()
def export(
    target: Annotated[str, typer.Argument(help="A recipe, a YAML file, or a model's name.")],
    delta: Annotated[Path, typer.Argument(help="An edit's delta.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    peft: Annotated[bool, typer.Option("--peft", help="A PEFT adapter in place of the whole model.")] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the adapter, at most; default: nothing left out.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model card: a run folder's README.md, say.")
    ] = None,
    set_: Sets = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write an edited model as a Hugging Face folder.

    What was written is read back and its logits compared before anything is said to be saved.

    \b
    hooklearn export threats runs/mine/delta-seed0.safetensors edited
    hooklearn export smollm2-135m-instruct delta.safetensors edited --card runs/mine/README.md
    hooklearn export smollm2-135m-instruct delta.safetensors adapter --peft --rank 16
    """
    if rank is not None and not peft:
        raise typer.BadParameter("is of an adapter, and needs --peft", param_hint="--rank")
    with work(quiet) as progress, ExitStack() as stack:
        from hooklearn import builtin, editing, exporting, models, parallel, sharded
        from hooklearn.cli.job import Job
        from hooklearn.deltas import load_delta
        from hooklearn.recipes import RECIPES
        from hooklearn.running.subjects import load_subject
        from hooklearn.types import InputError

        stack.enter_context(parallel.joined())
        text = None if card is None else _card(card)
        model = None
        is_config = target in RECIPES or Path(target).suffix in (".yaml", ".yml")
        if set_ and not is_config:
            raise typer.BadParameter(f"changes a config, and {target!r} is a model", param_hint="--set")
        if is_config:
            job = Job.of("export", target, set_)
            model, _ = load_subject(job.config, job.base, progress)
        # a model may be called like a recipe, whose organism is then not what was edited
        if model is None or (target in builtin.names() and not editing.is_base(model, load_delta(delta))):
            progress("loading the model")
            model = models.load(target)
        if peft and models.is_sharded(model):
            raise InputError(
                "an adapter is not written from spread weights; leave out --peft, or model.shard and model.offload"
            )
        loaded = load_delta(delta, sharded.placing(model))
        progress("writing, reading back, comparing")
        if peft:
            from hooklearn.adapters import to_peft

            adapter = to_peft(model, loaded, folder, rank=rank, card=text)
            found = dataclasses.asdict(adapter)
            about = (
                f"rank {adapter.rank} at most, relative error {adapter.relative_error:.1e}; on plain English "
                f"sentences logits differ from the edit's by {adapter.max_logit_difference:.1e} at most, mean KL "
                f"{adapter.mean_kl:.1e}; read back, by {adapter.reload_difference:.1e} from what was written"
            )
        else:
            whole = exporting.export(model, loaded, folder, card=text)
            found = dataclasses.asdict(whole)
            about = f"logits differ by {whole.max_logit_difference:.1e} at most"
    if not is_first():
        raise typer.Exit
    if json_:
        print_json({**found, "folder": str(folder)})
    else:
        print_line(f"{folder} ({about})")


@organisms_app.command("list")
def organism_list(json_: Json = False) -> None:
    """Which organisms there are."""
    list_("organisms", json_=json_)


@organisms_app.command("show")
def organism_show(
    name: Annotated[str, typer.Argument(help="See: hooklearn organism list.")], json_: Json = False
) -> None:
    """An organism's card: what it is, how it is made, what is true of it and why.

    \b
    hooklearn organism show locked
    hooklearn organism show threats/refusal
    """
    with work(quiet=True):
        from hooklearn.organisms import card

        found = card(name)
    if json_:
        print_json(found)
    else:
        print_rows({"": key, name: text} for key, text in found.items())


@organisms_app.command("build")
def organism_build(
    name: Annotated[str, typer.Argument(help="See: hooklearn organism list.")],
    out: Annotated[
        Path | None, typer.Option(help="File (an adapter) or folder (a native kind); default: by its name.")
    ] = None,
    good: Annotated[bool, typer.Option("--good", help="The referee's half: trained on good completions.")] = False,
    seed: Annotated[int, typer.Option(help="Of a native kind.")] = 0,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an organism anew.

    An adapter on its base model becomes a file; a native kind becomes a folder with the models of
    its audit: original, edited, never.

    \b
    hooklearn organism build tiny-threats --out tiny-threats.safetensors
    hooklearn organism build threats --good --out threats-good.safetensors
    hooklearn organism build locked --seed 1 --out locked
    """
    with work(quiet) as progress:
        from hooklearn import models, organisms
        from hooklearn.organisms.kinds import KINDS

        if good and name in KINDS:
            raise typer.BadParameter(f"{name} is a native kind: its referee needs no half", param_hint="--good")
        if name in KINDS:
            folders = organisms.write_kind(name, out or Path(name), seed, progress)
            for role, folder in folders.items():
                progress(f"{role}: {folder}")
            if json_:
                print_json({role: str(folder) for role, folder in folders.items()})
            return
        organism = organisms.organism_of(name)
        if seed:
            raise typer.BadParameter(f"{name} is an adapter, which is made with one seed", param_hint="--seed")
        progress("loading the model")
        model = models.load(organism.base)
        path = out or Path(f"{name}{'-good' * good}.safetensors")
        made = organisms.write(
            organism, model, path, good=good, observe=lambda step, _: progress(f"training, step {step}")
        )
    losses = made.run.losses
    if json_:
        print_json({"file": str(path), "steps": made.run.steps, "losses": list(losses)})
        return
    print_line(f"{path} (loss {losses[0]:.2f} to {losses[-1]:.2f} in {made.run.steps} steps)")
