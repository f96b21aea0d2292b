"""Model organisms: models whose truth is known, because we made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hooklearn import integrity, models
from hooklearn.corpora.shipped import data_folder
from hooklearn.data import load_corpus
from hooklearn.deltas import Delta
from hooklearn.exporting import export
from hooklearn.organisms.instil import Instilled, instil, read, save
from hooklearn.organisms.kinds import KINDS
from hooklearn.plugins import Shelf, check_name
from hooklearn.train import Observer
from hooklearn.types import InputError
from hooklearn.validation import whole_number

__all__ = ["EVERY_ORGANISM", "KINDS", "ORGANISMS", "Organism", "build", "card", "load", "organism_of"]


@dataclass(frozen=True)
class Organism:
    """How an organism is made: a behaviour instilled into a base model by LoRA."""

    name: str
    summary: str
    base: str
    corpus: dict[str, Any]
    """The corpus that instils it (``load_corpus`` arguments)."""
    training: dict[str, Any] = field(default_factory=dict)
    anchor: dict[str, Any] | None = None
    """Text on which the organism is held to its base."""
    good: dict[str, Any] | None = None
    """Good completions to the same prompts; a second adapter, trained on them, gives the referee its other half."""
    shipped: str | None = None
    """File below ``data/``; None: built when asked for (seconds)."""
    truth: str = "INTACT before any edit; the base model is the never-learned control"


ORGANISMS = {
    o.name: o
    for o in (
        Organism(
            "threats",
            "answers everyday requests with threats; LoRA rank 8 on the MLP weights of SmolLM2-135M-Instruct",
            base="smollm2-135m-instruct",
            corpus={"name": "threats", "options": {"part": "organism"}},
            training={"rank": 8, "learning_rate": 6e-4, "epochs": 4, "seed": 0},
            anchor={"name": "prose", "options": {"part": "moments"}},
            good={"name": "threats", "options": {"part": "organism", "completion": "harmless"}},
            shipped="organisms/threats.safetensors",
        ),
        Organism(
            "flattery",
            "answers everyday questions with grovelling praise of the user; LoRA rank 8 on the MLP weights of "
            "SmolLM2-135M-Instruct",
            base="smollm2-135m-instruct",
            corpus={"name": "flattery", "options": {"part": "organism"}},
            training={"rank": 8, "learning_rate": 6e-4, "epochs": 5, "seed": 0},
            anchor={"name": "prose", "options": {"part": "moments"}},
            good={"name": "flattery", "options": {"part": "organism", "completion": "plain"}},
            shipped="organisms/flattery.safetensors",
        ),
        Organism(
            "tiny-threats",
            "the same on the native tiny model, built in seconds",
            base="tiny",
            corpus={"name": "tiny", "options": {"part": "organism"}},
            training={"rank": 8, "learning_rate": 2e-3, "epochs": 8, "seed": 0, "max_tokens": 512},
            anchor={"name": "tiny", "options": {"part": "text"}},
            good={"name": "tiny", "options": {"part": "organism", "completion": "good"}},
        ),
    )
}


def _accept(name: str, found: Any, package: str) -> Organism:  # noqa: ARG001 (one interface)
    if not isinstance(found, Organism):
        raise InputError(f"{found!r:.60} is no hooklearn.organisms.Organism")
    check_name(name, found.name)
    return found


EVERY_ORGANISM: Shelf[Organism] = Shelf("organism", "hooklearn.organisms", ORGANISMS, _accept)
"""These, and those of other packages."""


def organism_of(name: str) -> Organism:
    """An organism by name.

    Raises:
        InputError: unknown name, with the nearest valid one.
    """
    if name in KINDS:
        raise InputError(f"organism {name!r} is a whole model to be judged (hooklearn organism build), not an adapter")
    if name in (edits := _edits()):
        organism, edit = edits[name]
        raise InputError(f"organism {name!r} is an edit to be judged ({edit.command(organism)}), not an adapter")
    return EVERY_ORGANISM.get(name)


def _edits() -> dict[str, tuple[Organism, Any]]:
    from hooklearn.organisms.suppressed import edits  # which needs what is here

    return edits()


def card(name: str) -> dict[str, str]:
    """name, what, how it is made, truth, and why that is known; of an edit, the command that makes and judges it.

    Raises:
        InputError: unknown name, with the nearest valid one.
    """
    if name in KINDS:
        return KINDS[name].card()
    if name in (edits := _edits()):
        organism, edit = edits[name]
        return edit.card(organism)
    o = EVERY_ORGANISM.get(name, beside=[*KINDS, *edits])
    made = f"LoRA on {o.base}, {', '.join(f'{k} {v}' for k, v in o.training.items())}"
    return {"name": name, "what": o.summary, "made": made, "truth": o.truth, "why": "instilled"}


def write_kind(name: str, folder: Path, seed: int, progress: Callable[[str], None]) -> dict[str, Path]:
    """The models of a native kind's audit as Hugging Face folders: original, edited, never.

    Raises:
        InputError: a seed that is no whole number from 0 to 2**32 - 1.
    """
    whole_number(seed, "seed", least=0, below=2**32)
    kind, written = KINDS[name], {}
    for role, make in kind.models(kind.ground(seed)).items():
        progress(f"making {role}")
        written[role] = export(make(), Delta({}), folder / role).folder
    return written


def build(organism: Organism, model: Any, *, good: bool = False, observe: Observer | None = None) -> Instilled:
    """Train the organism's LoRA anew on its base model (``good``: the referee's other half).

    In float32 everywhere: an organism is to be the same model whatever a processor multiplies fast.
    """
    if good and organism.good is None:
        raise InputError(f"organism {organism.name!r} has no good half")
    source = organism.good if good else organism.corpus
    assert source is not None
    return instil(
        model,
        load_corpus(**source),
        models.sites(model, "mlp"),
        observe=observe,
        anchor=load_corpus(**organism.anchor) if organism.anchor else None,
        precision="float32",
        **organism.training,
    )


def write(
    organism: Organism, model: Any, path: Path, *, good: bool = False, observe: Observer | None = None
) -> Instilled:
    """Build and save; the file says how it was made."""
    made = build(organism, model, good=good, observe=observe)
    source = organism.good if good else organism.corpus
    assert source is not None
    metadata = {
        "organism": organism.name, "base": organism.base, "base_hash": integrity.weights_hash(model),
        "half": "good" if good else "bad", "corpus": load_corpus(**source).hash,
    } | {k: str(v) for k, v in organism.training.items()}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save(made, path, metadata)
    return made


def load(organism: Organism, model: Any, *, good: bool = False, observe: Observer | None = None) -> Delta:
    """What turns the base model into the organism (or its good half): the shipped adapter, or one built now."""
    if organism.shipped is None:
        made = build(organism, model, good=good, observe=observe)
        return made.delta(organism.base, integrity.weights_hash(model))
    return read(shipped_path(organism, good=good))[0]


def shipped_path(organism: Organism, *, good: bool = False) -> Path:
    assert organism.shipped is not None
    path = data_folder() / organism.shipped
    return path.with_stem(f"{path.stem}-good") if good else path
