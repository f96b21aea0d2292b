"""Model organisms: models whose truth is known, because we made them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hooklearn import models
from hooklearn.corpora import data_folder
from hooklearn.data import load_corpus
from hooklearn.organisms.instil import Instilled, instil, read, save
from hooklearn.train import Observer
from hooklearn.types import Delta, InputError

__all__ = ["ORGANISMS", "Organism", "build", "load", "organism_of"]


@dataclass(frozen=True)
class Organism:
    """How an organism is made: a behaviour instilled into a base model by LoRA."""

    name: str
    summary: str
    base: str
    corpus: dict[str, Any]
    """The corpus that instils it (``load_corpus`` arguments)."""
    training: dict[str, Any] = field(default_factory=dict)
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
            shipped="organisms/threats.safetensors",
        ),
        Organism(
            "tiny-threats",
            "the same on the native tiny model, built in seconds",
            base="tiny",
            corpus={"name": "tiny", "options": {"part": "organism"}},
            training={"rank": 8, "learning_rate": 2e-3, "epochs": 8, "seed": 0, "max_tokens": 512},
        ),
    )
}


def organism_of(name: str) -> Organism:
    """An organism by name.

    Raises:
        InputError: unknown name, with the nearest valid one.
    """
    if name not in ORGANISMS:
        near = difflib.get_close_matches(name, ORGANISMS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown organism {name!r}; valid: {', '.join(ORGANISMS)}{hint}")
    return ORGANISMS[name]


def build(organism: Organism, model: Any, *, observe: Observer | None = None) -> Instilled:
    """Train the organism's LoRA anew on its base model."""
    corpus = load_corpus(**organism.corpus)
    return instil(model, corpus, models.sites(model, "mlp"), observe=observe, **organism.training)


def write(organism: Organism, model: Any, path: Path, *, observe: Observer | None = None) -> Instilled:
    """Build and save; the file says how it was made."""
    made = build(organism, model, observe=observe)
    metadata = {
        "organism": organism.name, "base": organism.base, "base_hash": models.weights_hash(model),
        "corpus": load_corpus(**organism.corpus).hash,
    } | {k: str(v) for k, v in organism.training.items()}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save(made, path, metadata)
    return made


def load(organism: Organism, model: Any, *, observe: Observer | None = None) -> Delta:
    """What turns the base model into the organism: the shipped adapter, or one built now."""
    base_hash = models.weights_hash(model)
    if organism.shipped is None:
        return build(organism, model, observe=observe).delta(organism.base, base_hash)
    delta, _ = read(data_folder() / organism.shipped)
    return delta
