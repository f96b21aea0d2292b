"""The models that a config names: the one that is edited, its controls, and one that was edited elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hooklearn import editing, integrity, models, organisms
from hooklearn.adapters import from_peft
from hooklearn.config import RunConfig
from hooklearn.pretrained import is_adapter
from hooklearn.types import InputError

Progress = Callable[[str], None]


def load_subject(
    config: RunConfig, base: Path, progress: Progress = lambda _: None, held: Any | None = None
) -> tuple[Any, organisms.Organism | None]:
    """The model that a run edits: the base model (``held``, where it is here), with its organism merged in where there
    is one."""
    organism = organisms.organism_of(config.organism) if config.organism else None
    progress("loading the model")
    model = load_model(config, config.model.name, base, held)
    if organism is not None:
        progress(f"organism {organism.name}: {organism.summary}")
        # the one place where a model is changed for good, before the run begins
        editing.merge(model, organisms.load(organism, model))
    return model, organism


def load_model(config: RunConfig, name: str, base: Path, held: Any | None = None) -> Any:
    """By name, or by a path from ``base``; ``held``, where it is here."""
    local = base / name
    path = str(local) if not Path(name).is_absolute() and local.exists() else name
    asked = config.model
    model = held if held is not None else models.load(
        path, device=asked.device, trust_remote_code=asked.trust_remote_code, shard=asked.shard, offload=asked.offload
    )  # fmt: skip
    integrity.check_finite(model)
    return model


def load_edited(config: RunConfig, base: Path, original: Any, held: Mapping[str, Any]) -> Any:
    """A model edited elsewhere; of a PEFT adapter, the original once more with the adapter in its weights."""
    name = str(config.edit.checkpoint)
    folder = base / Path(name).expanduser()
    if "edit.checkpoint" in held or not is_adapter(folder):
        return load_model(config, name, base, held.get("edit.checkpoint"))
    if config.model.spread or "model.name" in held:
        why = "is spread or offloaded" if config.model.spread else "is in memory only"
        raise InputError(f"{folder}: an adapter goes on a second copy of its model, which {why}; give the edited model")
    update = from_peft(original, folder)
    model, _ = load_subject(config, base)
    editing.merge(model, update)
    return model
