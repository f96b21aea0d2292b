"""What the user asked for on the command line: a config, its overrides, and where its paths start from."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooklearn.cli.console import is_first

if TYPE_CHECKING:
    from hooklearn.cli.console import Progress
    from hooklearn.config import CorpusConfig, RunConfig


@dataclass(frozen=True)
class Job:
    config: RunConfig
    given: dict[str, Any]
    """The config as written, with its overrides."""
    base: Path
    """Relative paths in the config start here: at its file."""
    command: str
    """What to type to get the same again."""

    @staticmethod
    def of(verb: str, target: str, sets: Sequence[str] | None, seeds: Sequence[int] | None = None) -> Job:
        """A recipe's name or a YAML file, with ``--set`` and ``--seed``.

        Raises:
            InputError: no such target, or a config that is not valid.
        """
        from hooklearn.recipes import resolve

        given, folder = resolve(target)
        return Job.made([verb, target], {"name": Path(target).stem} | given, folder or Path(), sets, seeds, target)

    @staticmethod
    def made(
        words: Sequence[str],
        given: dict[str, Any],
        base: Path,
        sets: Sequence[str] | None,
        seeds: Sequence[int] | None = None,
        where: str = "config",
    ) -> Job:
        """A config that is already there; ``words`` is what was typed to get it.

        Raises:
            InputError: a config that is not valid.
        """
        from hooklearn.config import parse
        from hooklearn.config_file import with_overrides

        _check_foreign_code(given, list(sets or ()), where)
        given = with_overrides(given, list(sets or ()))
        typed = ["hooklearn", *words, *(w for s in sets or () for w in ("--set", s))]
        if seeds:
            given["seeds"] = list(seeds)
            typed += [w for s in seeds for w in ("--seed", str(s))]
        config = parse(given, where)
        stay_offline(config)
        return Job(config, given, base, shlex.join(typed))

    def run(self, out: Path | None, progress: Progress, **more: Any) -> Path:
        """Into ``out``, or a new folder below ``runs/``; returns the folder. Of several processes that a launcher
        started, only the first comes back.

        Raises:
            KeyboardInterrupt: with what to type to go on.
        """
        folder = out or self.new_folder()
        if is_first():
            check_place(folder, resume=bool(more.get("resume")))
        from hooklearn import experiment, parallel

        try:
            with parallel.joined(), parallel.own_folder(folder) as own:
                experiment.run(
                    self.config, own, given=self.given, base=self.base, command=self.command, progress=progress, **more
                )
        except KeyboardInterrupt:
            again = f"{self.command} --out {shlex.quote(str(folder))} --resume"
            raise KeyboardInterrupt(f"continue with: {again}") from None
        if not is_first():
            raise SystemExit(0)  # the first one judges and tells
        return folder

    def new_folder(self) -> Path:
        name = re.sub(r"[^\w.-]+", "-", self.config.name).strip("-.") or "run"
        return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"

    def edit_only(self) -> Job:
        """The same without attackers, located subspaces, evidence, general capability and an arm beside it; without
        samples, too, unless the method asks their referee."""
        from hooklearn.edit import method_of

        config = self.config
        refereed = config.edit.method is not None and method_of(config.edit.method, config.edit.options).refereed
        changed = {
            "battery": None,
            "attacks": [],
            "corpora": {role: corpus for role, corpus in config.corpora.items() if role != "capability"},
            "evidence": config.evidence.model_copy(update={"enabled": False}),
            "controls": config.controls.model_copy(update={"matched": False}),
            "locate": config.locate.model_copy(update={"enabled": False}),
            "behaviour": config.behaviour if refereed else config.behaviour.model_copy(update={"samples": 0}),
        }
        return dataclasses.replace(self, config=config.model_copy(update=changed))


def _check_foreign_code(given: dict[str, Any], sets: Sequence[str], where: str) -> None:
    """A config may come from anybody: that it asks for a repository's own code to be run is not the user's word."""
    from hooklearn.types import InputError

    model = given.get("model")
    asked = isinstance(model, dict) and bool(model.get("trust_remote_code"))
    if asked and not any(s.startswith("model.trust_remote_code=") for s in sets):
        raise InputError(
            f"{where}: model.trust_remote_code would run code out of the model's repository; "
            "if you have read it, say so: --set model.trust_remote_code=true"
        )


def check_place(folder: Path, record: str = "run.json", *, resume: bool) -> None:
    """Refuse now what the run folder would refuse only after the model has been loaded.

    Raises:
        InputError: the place cannot be written, or holds a run that is not to be continued, or something else.
    """
    from hooklearn import store
    from hooklearn.types import InputError

    if not resume and (folder / "run.json").exists():
        raise InputError(f"{folder}: already holds a run; use another --out, or --resume to continue it")
    names = store.foreign(folder, record)
    if names:
        raise InputError(f"{folder}: not a run, it holds {names[0]!r}; use another --out")
    above = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        why = "may not be written" if above.is_dir() else "is a file, not a folder"
        raise InputError(f"--out {folder}: {above} {why}; give a folder that can be written")


def stay_offline(config: RunConfig, more: Mapping[str, CorpusConfig] | None = None) -> None:
    """Where nothing has to come from the network, ``more`` corpora neither, the Hugging Face libraries are not to ask
    it."""
    from huggingface_hub import constants

    from hooklearn.builtin import is_cached, names

    never = config.controls.never
    wanted = [config.model.name, config.edit.checkpoint, never and never.name]
    here = all(n is None or (n in names() and is_cached(n)) for n in wanted)
    if here and all(c.hub is None for c in (*config.corpora.values(), *(more or {}).values())):
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
