"""Models, corpora, methods, attacks and referees as objects, where a config has names: what a notebook has at hand.

A config stays plain data, and so does its record. An object is taken out of it before it is parsed, and its name
stands there instead: of a model ``in memory: NAME`` (its hash is in the record), of a corpus the file in the run folder
that its rows are written to, of a method or an attack its own name with its options.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from hooklearn import disk, editing, integrity, models, sharded
from hooklearn.attack import EVERY_ATTACK, Attack
from hooklearn.config import EditConfig, RunConfig
from hooklearn.corpora.corpus import Corpus
from hooklearn.edit import EVERY_METHOD, Method
from hooklearn.loading import check_rows
from hooklearn.plugins import Shelf, called
from hooklearn.referees import Referee, as_referee
from hooklearn.types import InputError

MARK = "in memory: "
"""Begins the names of models and referees that were objects."""
FOLDER = "in-memory"
"""Where in a run folder the rows of corpora are that were objects."""


@dataclass
class InMemory:
    """The objects of one run, or of a sweep.

    Inside its ``with``, methods and attacks are had by their names, and models are in eval mode; afterwards all is as
    it was.
    """

    models: dict[str, Any] = field(default_factory=dict[str, Any])
    """``model.name``, ``controls.never.name``, ``edit.checkpoint``: what stood there."""
    corpora: dict[str, Corpus] = field(default_factory=dict[str, Corpus])
    """By their paths in the run folder."""
    referee: Referee | None = None
    _undo: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def read_as(self, model: Any, original: Any) -> None:
        """The model gets the original's tokenizer, for as long as the objects are lent."""
        self._undo.callback(models.give_tokenizer, model, models.tokenizer_of(model))
        models.give_tokenizer(model, models.tokenizer_of(original))

    def taken_out(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with names where objects were.

        Raises:
            InputError: an object that cannot stand where it does, or something beside it that would change nothing.
        """
        out = dict(config)
        sections = {
            "model": self._model, "controls": self._controls, "edit": self._edit, "corpora": self._corpora,
            "behaviour": self._behaviour, "attacks": self._attacks,
        }  # fmt: skip
        for section, take in sections.items():
            if section in out:
                out[section] = take(out[section])
        if "model.name" in self.models and out.get("organism") is not None:
            raise InputError(
                f"organism {out['organism']!r} would be merged for good into a model that is in memory; give the model "
                "of hl.organism(...) as it is, and its never as controls.never"
            )
        return out

    def taken_out_of_sweep(self, sweep: Mapping[str, Any]) -> dict[str, Any]:
        """The same of a sweep: of its base, methods, attacks, and of what its options are chosen on."""
        out = dict(sweep)
        if isinstance(base := out.get("base"), Mapping):
            out["base"] = self.taken_out(base)
        if isinstance(methods := out.get("methods"), list | tuple):
            out["methods"] = [self._method(method) for method in methods]
        if "attacks" in out:
            out["attacks"] = self._attacks(out["attacks"])
        if isinstance(tuning := out.get("tuning"), Mapping):
            out["tuning"] = tuning = dict(tuning)
            if isinstance(corpora := tuning.get("corpora"), Mapping):
                tuning["corpora"] = {role: self.corpus(str(role), c, "tuning-") for role, c in corpora.items()}
            if "attack" in tuning:
                tuning["attack"] = self.attack(tuning["attack"])
        return out

    def hashes(self) -> dict[str, str]:
        """What tells these objects from others that stand in the same places; a referee is not looked into."""
        of_models = {key: integrity.weights_hash(model) for key, model in self.models.items()}
        return of_models | {path: corpus.hash for path, corpus in self.corpora.items()}

    def check(self, config: RunConfig) -> None:
        """Raises InputError where a config names an object that is not here: it is the record of another process."""
        never, referee = config.controls.never, config.behaviour.referee
        names = {
            "model.name": config.model.name, "controls.never.name": never and never.name,
            "edit.checkpoint": config.edit.checkpoint,
        }  # fmt: skip
        missing = {k: n for k, n in names.items() if n is not None and n.startswith(MARK) and k not in self.models}
        if referee is not None and referee.name is not None and self.referee is None:
            missing["behaviour.referee.name"] = referee.name
        for key, name in missing.items():
            raise InputError(f"{key} {name!r} was an object in Python: give it again to hl.run, in place of its name")

    def write(self, folder: Path) -> None:
        """The corpora, so that the run folder holds what the run was made of."""
        if self.corpora:
            (folder / FOLDER).mkdir(exist_ok=True)
        for path, corpus in self.corpora.items():
            # as a corpus is hashed: read back, it is the same one
            lines = [json.dumps(row, ensure_ascii=False, default=str) for row in corpus.rows]
            disk.write_atomic(folder / path, "\n".join([*lines, ""]).encode())

    # ------------------------------------------------------------------------------ each in its place

    def model(self, key: str, value: Any) -> Any:
        """The name of a model, and the model kept."""
        if not _is_object(value):
            return value
        if isinstance(value, Path):
            return str(value)
        models.check_unhooked(models.checked(value, key), key)
        if key == "model.name" and editing.is_edited(value):
            raise InputError(f"{key}: the model is edited now; leave `with hl.edited(...)`, and give delta= to hl.run")
        if short := integrity.short_weights(value):
            raise InputError(
                f"{key}: the weights are held in {short}, which rounds most of an attack's small steps away: all "
                "would look more robust than it is; load the model in float32 (its products can be made in bfloat16)"
            )
        self._undo.enter_context(editing.in_eval(value))
        self.models[key] = value
        name = value.cfg.model_name
        return MARK + (Path(name).name if Path(name).is_absolute() else name)

    def corpus(self, role: str, value: Any, prefix: str = "") -> Any:
        """The section of a corpus, and the corpus kept, in a file whose name may begin otherwise than the role."""
        if isinstance(value, list | tuple) and all(isinstance(row, Mapping) for row in value):
            value = Corpus(role, tuple(dict(row) for row in value), "in memory")
        if not isinstance(value, Corpus):
            if value is None or isinstance(value, Mapping):
                return value
            raise InputError(
                f"corpora.{role}: give {{'path': ...}}, a hooklearn.Corpus or a list of rows, not {_kind(value)}"
            )
        check_rows(value)
        path = f"{FOLDER}/{prefix}{role}.jsonl"
        self.corpora[path] = value if value.source else dataclasses.replace(value, source="in memory")
        return {"path": path}

    def attack(self, value: Any) -> Any:
        """The section of an attack, its class lent."""
        return self._named(EVERY_ATTACK, Attack, value, {"name"})

    # ------------------------------------------------------------------------------ sections

    def _model(self, section: Any) -> Any:
        section = {"name": section} if _is_object(section) else section
        if not (isinstance(section, Mapping) and _is_object(section.get("name"))):
            return section
        name = self.model("model.name", section["name"])
        if (model := self.models.get("model.name")) is None:
            return {**section, "name": name}
        for key in section.keys() - {"name", "precision"}:
            raise InputError(f"model.{key} would change nothing: the model is in memory; leave it out")
        device = models.device_of(model)
        # what is loaded by name goes to the same place
        usual = torch.device(models.available("auto"))
        same = device.type == usual.type and (device.index or 0) == (usual.index or 0)
        at = {} if same else {"device": str(device)}
        spread = "offload" if sharded.is_offloaded(model) else "shard"
        return {**section, "name": name, **at, **({spread: True} if models.is_sharded(model) else {})}

    def _controls(self, section: Any) -> Any:
        never = section.get("never") if isinstance(section, Mapping) else None
        if _is_object(never):
            never = {"name": never}
        if not isinstance(never, Mapping):
            return section
        key = "controls.never.name"
        return {**section, "never": {k: self.model(key, v) if k == "name" else v for k, v in never.items()}}

    def _edit(self, section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        out = dict(section)
        if _is_object(method := out.get("method")):
            options = self._lent(EVERY_METHOD, Method, method, out.keys() - EditConfig.model_fields.keys())
            out |= {**options, "method": method.name}  # pyright: ignore[reportOptionalMemberAccess]
        if "checkpoint" in out:
            out["checkpoint"] = self.model("edit.checkpoint", out["checkpoint"])
        return out

    def _corpora(self, section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        return {role: self.corpus(str(role), corpus) for role, corpus in section.items()}

    def _behaviour(self, section: Any) -> Any:
        if not (isinstance(section, Mapping) and _is_object(section.get("referee"))):
            return section
        self.referee = as_referee(section["referee"])
        return {**section, "referee": {"name": MARK + called(getattr(self.referee, "function", type(self.referee)))}}

    def _method(self, value: Any) -> Any:
        """A method of a sweep, where it stands like an attack."""
        return self._named(EVERY_METHOD, Method, value, {"name", "label", "search"})

    def _named(self, shelf: Shelf[Any], base: type, value: Any, own: Collection[str]) -> Any:
        """The section of what is named by ``name``; ``own``: keys that are no options of it."""
        section: Any = value if isinstance(value, Mapping) else {"name": value}
        thing: Any = section.get("name")
        if not _is_object(thing):
            return value
        options = self._lent(shelf, base, thing, section.keys() - own)
        return {**section, "name": thing.name, **options}

    def _attacks(self, section: Any) -> Any:
        return [self.attack(attack) for attack in section] if isinstance(section, list | tuple) else section

    def _lent(self, shelf: Shelf[Any], base: type, value: Any, beside: Collection[str]) -> dict[str, Any]:
        """The options of a method or an attack, whose class is had by its name from now on.

        It is built anew from them, as it is by whoever repeats the run; so nothing may get lost.
        """
        if not isinstance(value, base):
            wants = " (a class wants parentheses)" if isinstance(value, type) else ""
            raise InputError(
                f"{shelf.kind}: give a name or an object of class {base.__name__}, not {_kind(value)}{wants}"
            )
        cls: Any = type(value)
        what = f"{shelf.kind} {cls.name!r}"
        if beside:
            raise InputError(f"{what} is given as it is, so {', '.join(sorted(beside))} would change nothing")
        fields: dict[str, Any] = dataclasses.asdict(value)  # pyright: ignore[reportArgumentType]
        try:
            options = json.loads(json.dumps(fields, allow_nan=False))
            again = dataclasses.asdict(cls.with_options(options))
            same = json.loads(json.dumps(again)) == options and vars(value).keys() <= fields.keys()
        except (TypeError, ValueError) as error:
            raise InputError(f"{what}: its options must be plain data, which a record can hold: {error}") from error
        if not same:
            raise InputError(
                f"{what} cannot be made again from its options {options!r:.80}: whatever it needs must be a field of "
                "its dataclass (numbers, text, lists), or belong to the class"
            )
        self._undo.enter_context(shelf.lending(cls.name, cls))
        return options


def _is_object(value: Any) -> bool:
    """Nothing that a config could hold."""
    return not (value is None or isinstance(value, str | int | float | list | tuple | Mapping))


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.40}" if isinstance(value, str | type) else type(value).__name__
