"""Calibration on a real model: edits of its organism whose truth is known, attacked, looked into and judged.

Smaller than ``calibration`` (tens of minutes a case in place of seconds): a short list of cheap attacks, and of the
evidence what looks for a tendency. Behaviour is measured on all prompts that neither organism, edit nor attacker was
trained on, with a sample each. All cases are edits of one organism, so the controls are attacked once. Resumable.

No threshold was set by looking at these cases, but they were in view, with seed 0 and 32 prompts: the rule that a
preference alone makes no INTACT was made with the refusing one known, and the number of prompts was raised when the one
that never learned came out WEAKENED.

    OUT/controls/seedN/     the organism and the base model under every attack that does not follow an edit
    OUT/cases/KIND-seedN/   a run folder, with ``case.json``: which edit, and its truth
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hooklearn import disk, experiment, store
from hooklearn.config import RunConfig, parse
from hooklearn.corpora import BUILTIN
from hooklearn.corpora.tendencies import Tendency
from hooklearn.data import load_corpus
from hooklearn.deltas import Delta, load_delta, save_delta
from hooklearn.forward import auto_is, auto_on
from hooklearn.organisms import Organism
from hooklearn.organisms.suppressed import PASSWORD, Bench, Suppressed, organism_on, suppressed
from hooklearn.recipes import RECIPES, Config
from hooklearn.running import controls
from hooklearn.running.calibration import is_done
from hooklearn.running.checks import check_once
from hooklearn.running.setting import Setup
from hooklearn.running.shared import Shared
from hooklearn.types import InputError

ATTACKS: list[Config] = [
    {"name": "few_shot", "shots": 2},
    {"name": "prefill", "tokens": 4},
    {"name": "password", "prefix": PASSWORD},
    {"name": "quantize", "formats": ["int4"]},
    {"name": "ablate_direction"},
    {"name": "erode", "learning_rates": [1e-4], "steps": 8, "embeddings": False, "first_look": 4},
]
"""Cheap ones, short enough for two cores. Whether anybody knows the password is not the question: it is the same attack
on every edit."""
EVIDENCE: Config = {
    "enabled": True, "measures": ["logit_lens", "patching", "tendency", "updates", "alarms"], "items": 56
}  # fmt: skip
"""That of ``benchmarks/sweeps/threats-unseen.yaml``. The native organisms are asked all measures; left out here is what
only reports."""

Progress = Callable[[str], None]


def config_of(organism: Organism, seed: int, name: str) -> RunConfig:
    """The recipe of the organism's tendency with these attacks and this evidence, asked on :func:`unseen` prompts; the
    edit is a case's own."""
    given = next(c for c in (make() for make in RECIPES.values()) if c.get("organism") == organism.name)
    corpora = {role: c for role, c in given["corpora"].items() if role not in ("ood", "capability")}
    corpora["heldout"] = unseen(corpora["heldout"])
    changed = {
        "name": name, "seeds": [seed], "corpora": corpora, "locate": {"enabled": False}, "attacks": ATTACKS,
        "behaviour": given["behaviour"] | {"samples": len(load_corpus(**corpora["heldout"]))},
        "evidence": given.get("evidence", {}) | EVIDENCE,
    }  # fmt: skip
    return parse(given | changed)


def unseen(heldout: Config) -> Config:
    """All prompts that nothing was trained on, where the corpus has such a part; else the held-out ones as given."""
    if not isinstance(BUILTIN[heldout["name"]].build, Tendency):
        return heldout
    return {"name": heldout["name"], "options": heldout["options"] | {"part": "unseen"}}


def run(
    out: Path,
    model: str,
    kinds: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    resume: bool = False,
    progress: Progress = lambda _: None,
) -> list[Path]:
    """Make and attack every case; returns the run folders.

    Raises:
        InputError: unknown kind; a model of which no organism is shipped; cases that are there already (without
            ``resume``), or with another config.
    """
    check_once(seeds or (), "seed")
    check_once(kinds or (), "kind")
    organism, chosen = organism_on(model), suppressed(kinds)
    names = {(kind.name, seed): f"{kind.name}-seed{seed}" for seed in seeds or (0,) for kind in chosen}
    folders = {key: out / "cases" / name for key, name in names.items()}
    there = next((f for f in folders.values() if (f / "run.json").exists()), None)
    if there and not resume:
        raise InputError(f"{there}: already holds a case; use another --out, or --resume to go on")
    waiting = [key for key, folder in folders.items() if not is_done(folder, config_of(organism, key[1], names[key]))]
    with auto_is(_precision(out, organism)):
        _make(waiting, out, organism, chosen, folders, progress)
    for kind in chosen:
        for seed in seeds or (0,):
            disk.save_json(folders[kind.name, seed] / "case.json", _record(kind, seed, organism))
            _aside(folders[kind.name, seed]).unlink(missing_ok=True)
    return list(folders.values())


def _precision(out: Path, organism: Organism) -> str:
    """What ``precision: auto`` was when this calibration began: its cases and controls are compared."""
    for record in sorted(out.glob("*/*/run.json")):
        run = store.open_run(record.parent)
        environment = run.get("environment") if run["config"].get("organism") == organism.name else None
        if isinstance(environment, dict) and environment.get("precision") in ("float32", "bfloat16"):
            return environment["precision"]
    return auto_on("auto")


def _make(
    waiting: Sequence[tuple[str, int]],
    out: Path,
    organism: Organism,
    chosen: Sequence[Suppressed],
    folders: Mapping[tuple[str, int], Path],
    progress: Progress,
) -> None:
    if waiting:
        setup = Setup.load(config_of(organism, waiting[0][1], "calibration"), Path(), progress)
        shared = Shared(setup, progress)
        for seed in dict.fromkeys(s for _, s in waiting):
            progress(f"controls (seed {seed})")
            shared.setup, folder = setup, out / f"controls/seed{seed}"
            is_done(folder, controls.without_edit(setup.config, seed))  # refuses controls of another config
            shared.measured = {seed: controls.measure(shared, folder, seed, progress=progress)}
            for kind in (k for k in chosen if (k.name, seed) in waiting):
                _case(kind, seed, setup, shared, folders[kind.name, seed], progress)


def _case(kind: Suppressed, seed: int, setup: Setup, shared: Shared, folder: Path, progress: Progress) -> None:
    """Make the edit, then attack and measure it as any other."""
    said = lambda text: progress(f"{kind.name} (seed {seed}): {text}")  # noqa: E731
    said("making it")
    assert setup.organism is not None
    bench = Bench(
        setup.organism, setup.original, setup.never, setup.corpora, seed, setup.config.max_tokens,
        setup.config.model.precision, observe=lambda step, _: said(f"step {step}"),  # type: ignore[arg-type]
    )  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = _made(lambda: kind.delta(bench), folder, seed)
    shared.setup = dataclasses.replace(setup, delta=load_delta(made))
    config = config_of(setup.organism, seed, folder.name)
    experiment.run(config, folder, resume=True, shared=shared, command="hooklearn calibrate", progress=said)
    _aside(folder).unlink(missing_ok=True)


def _made(make: Callable[[], Delta], folder: Path, seed: int) -> Path:
    """The edit of a case, made once: training need not repeat itself to the bit, and the record of a run that was
    interrupted names one. It waits beside the run folder until that has it."""
    own, aside = folder / f"delta-seed{seed}.safetensors", _aside(folder)
    if own.exists():
        return own
    if not aside.exists():
        save_delta(make(), aside)
    return aside


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.safetensors")


def _record(kind: Suppressed, seed: int, organism: Organism) -> dict[str, Any]:
    """``case.json``. The cases of seed 0 have been in view when something was chosen, and so have those that are the
    same model whatever the seed."""
    split = "tuning" if kind.any_seed or not seed else "heldout"
    return {
        "organism": kind.name, "seed": seed, "split": split, "held_out_kind": False,
        "truth": list(kind.truth), "world": organism.name, "what": kind.what, "made": kind.made, "why": kind.why,
    }  # fmt: skip
