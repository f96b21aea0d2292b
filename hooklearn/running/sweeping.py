"""Methods x budgets x seeds on one base config: one run folder a cell, what they share measured once.

    import hooklearn as hl, analysis

    folder = hl.sweep("benchmarks/sweeps/tiny.yaml", "runs/sweep-tiny")
    analysis.sweep_table(folder)

Options are chosen on the tuning split, for each method and budget before the first of its cells, which are run on the
other. All of it resumes: what is finished is skipped, what was killed goes on, what failed is tried again, and more
methods, seeds or budgets may be added to the file.
"""

from __future__ import annotations

import functools
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hooklearn import disk, experiment, store
from hooklearn.config import RunConfig, parse
from hooklearn.config_file import read_config
from hooklearn.determinism import deterministic
from hooklearn.forward import auto_is, auto_on
from hooklearn.running import controls, reuse, sweep_record
from hooklearn.running.checks import check, check_method, check_needs
from hooklearn.running.choosing import check_apart, check_measurable, check_trials, decide, lowest_is_best
from hooklearn.running.fanout import installed, spread
from hooklearn.running.in_memory import InMemory
from hooklearn.running.setting import Progress, Setup
from hooklearn.running.shared import Shared
from hooklearn.running.sweep_config import Family, Plan
from hooklearn.types import InputError

RECORD = "sweep.json"


def sweep(
    config: Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    resume: bool = False,
    only: Sequence[str] = (),
    command: str = "",
    progress: Progress = lambda _: None,
    ray: str | None = None,
    edits_from: Sequence[str | Path] = (),
) -> Path:
    """Run a sweep, given as a mapping or a YAML file; returns its folder.

    A cell that fails is a record in ``sweep.json`` and stops no other. In a mapping, what is in memory stands where its
    name would, as for :func:`hooklearn.run`: in ``base``, among ``methods`` and ``attacks``, and in ``tuning``.

    Args:
        base: the folder that relative paths start from; by default that of the file.
        only: patterns such as ``npo-*-seed0``: cells of which none matches the name stay waiting, for another time.
        ray: trials and cells are spread over the Ray cluster at this address (``local``: this machine).
        edits_from: folders of runs or sweeps: an edit that one of them made, the same in all that it follows from, is
            taken and not made anew. What a trial or cell of this sweep has made is taken in any case.
    Raises:
        InputError: anything wrong with the file, before anything is measured; or ``out`` holds another sweep.
    """
    if isinstance(config, Mapping):
        data, folder, where = dict(config), Path(), "sweep"
    elif not isinstance(config, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"a sweep is a mapping or the path of a YAML file, not {type(config).__name__} {config!r:.60}")
    else:
        data, folder, where = read_config(Path(config)), Path(config).parent, str(config)
    with InMemory() as objects:
        data = objects.taken_out_of_sweep(data)
        plan = Plan.of(data, Path(base) if base else folder, where)
        earlier = [Path(folder) for folder in edits_from]
        Sweep(plan, Path(out), data, command, progress, ray, objects, earlier).run(resume, only)
    return Path(out)


class Sweep:
    """The one writer of a sweep's folder."""

    def __init__(
        self,
        plan: Plan,
        out: Path,
        given: Mapping[str, Any],
        command: str,
        progress: Progress = lambda _: None,
        ray: str | None = None,
        objects: InMemory | None = None,
        edits_from: Sequence[Path] = (),
    ) -> None:
        self.plan, self.out, self.given, self.command, self.progress = plan, out, given, command, progress
        self.ray, self.objects, self.edits_from = ray, objects or InMemory(), [p.absolute() for p in edits_from]
        self.held = self.objects.hashes()
        self.record: dict[str, Any] = {}
        self._ended: dict[str, str | None] = {}
        """Folders that were run elsewhere -> what went wrong there."""

    def run(self, resume: bool, only: Sequence[str] = ()) -> None:
        with deterministic(self.plan.base.deterministic):
            self._run_all(resume, only)

    def _run_all(self, resume: bool, only: Sequence[str]) -> None:
        plan = self.plan
        wanted = {name for name, _, _ in plan.cells(only)}
        reuse.check_there(self.edits_from)
        if self.ray is not None:
            installed()
            for key in self.held:
                raise InputError(
                    f"ray: {key} is in memory, where other processes cannot reach it; give a name or a file"
                )
        for cell in plan.variants():  # a typo in the last method should not cost the first
            check(cell)
            check_needs(cell)
        if plan.config.tuning is not None:
            check(plan.tuning())
            check_trials(plan)
        with store.claim(self.out, RECORD):
            self._begin(resume, wanted)
            with auto_is(self.record["precision"]):  # cells that are compared are not computed in two ways
                self._run_waiting(wanted)

    def _run_waiting(self, wanted: set[str]) -> None:
        waiting = [c for c in self.record["cells"] if c["status"] != "done" and Path(c["folder"]).name in wanted]
        loaded = self._load(waiting)
        self._save(status="running", error=None, finished=None)
        try:
            if loaded is not None:
                self._measure(waiting, *loaded)
        except KeyboardInterrupt:
            self._save(status="interrupted")
            raise
        except BaseException as error:
            self._save(status="failed", error=disk.one_line(error))
            raise
        stand = {c["status"] for c in self.record["cells"]}
        self._save(status=next((s for s in ("failed", "waiting") if s in stand), "done"), finished=store.now())

    # ------------------------------------------------------------------------------------ the record

    def _begin(self, resume: bool, wanted: set[str]) -> None:
        path, earlier = self.out / RECORD, {}
        if path.exists():
            if not resume:
                raise InputError(f"{self.out}: already holds a sweep; use another --out, or --resume to continue it")
            earlier = sweep_record.checked(path, disk.load_json(path))
        fixed, declared = sweep_record.fixed(self.plan, self.held), sweep_record.declared(self.plan)
        if earlier:
            sweep_record.check_goes_on(self.plan, self.out, earlier, fixed)
        self.record = {
            "schema_version": sweep_record.SCHEMA_VERSION, "name": self.plan.config.name, "command": self.command,
            "given": dict(self.given), "fixed": fixed, "declared": earlier.get("declared", {}) | declared,
            "started": earlier.get("started", store.now()),
            "precision": earlier.get("precision") or self._auto(),
            "tuning": earlier.get("tuning", {}),
            "cells": [
                {
                    "folder": f"cells/{name}", "family": family.name, "label": family.spec.label,
                    "method": family.spec.name, "budget": family.budget.model_dump(), "seed": seed,
                    "status": "waiting", "error": None,
                }
                for name, family, seed in self.plan.cells()
            ],
        }  # fmt: skip
        failed = {c["folder"]: c["error"] for c in earlier.get("cells", []) if c["status"] == "failed"}
        for cell in self.record["cells"]:
            if store.is_done(self.out / cell["folder"]):
                cell["status"] = "done"
            elif cell["folder"] in failed and Path(cell["folder"]).name not in wanted:  # nothing is tried anew
                cell |= {"status": "failed", "error": failed[cell["folder"]]}

    def _auto(self) -> str:
        return auto_on(self.plan.base.model.device, self.objects.models.get("model.name"))

    def _save(self, **values: Any) -> None:
        self.record |= values
        disk.save_json(self.out / RECORD, self.record)

    # ------------------------------------------------------------------------------------- measuring

    def _load(self, waiting: list[dict[str, Any]]) -> tuple[Setup, Setup | None] | None:
        """Models and corpora, of the cells and of the trials; None where nothing is left to do."""
        if not waiting:
            return None
        plan = self.plan
        setup = Setup.load(plan.base, plan.folder, self.progress, objects=self.objects)
        done = next((c for c in self.record["cells"] if c["status"] == "done"), None)
        if done is not None:  # a file may have been changed since
            folder = self.out / done["folder"]
            store.check_inputs(folder, store.open_run(folder), setup.record(None, self.command))
        for cell in plan.variants():
            check_method(cell, setup.original)
        if not self._undecided(waiting):
            return setup, None
        trials = setup.again(plan.tuning(), plan.folder)
        check_apart(trials.corpora["heldout"], setup.corpora)
        check_measurable(plan, trials)
        return setup, trials

    def _measure(self, waiting: list[dict[str, Any]], setup: Setup, trials: Setup | None) -> None:
        families = {f.name: f for f in self.plan.families()}
        undecided = {f.name: f for f in self._undecided(waiting)}
        tuned = None if trials is None else self._begin_tuning(trials, list(undecided.values()))
        shared, elsewhere = Shared(setup, self.progress), []
        for seed in dict.fromkeys(c["seed"] for c in waiting):
            self.progress(f"controls (seed {seed})")
            found = controls.measure(
                shared, self.out / f"controls/seed{seed}", seed, command=self.command, progress=self.progress
            )
            shared.measured = {seed: found}
            for cell in [c for c in waiting if c["seed"] == seed]:
                if tuned is not None and cell["family"] in undecided:  # not all before: what is stopped has whole rows
                    self._choose(undecided.pop(cell["family"]), tuned)
                if self.ray is None or self.record["tuning"].get(cell["family"], {}).get("error"):
                    self._cell(cell, families[cell["family"]], shared)
                else:
                    elsewhere.append(cell)
        configs = {c["folder"]: self._config(c, families[c["family"]]) for c in elsewhere}
        for name, config in configs.items():
            self._set_aside(self.out / name, config)
        where = {c["folder"]: f"controls/seed{c['seed']}" for c in elsewhere}
        self._fan_out(self.plan.base, configs, where, {c["folder"]: c for c in elsewhere})

    def _config(self, cell: dict[str, Any], family: Family) -> RunConfig:
        tuned = self.record["tuning"].get(family.name, {})
        return self.plan.cell(family, cell["seed"], tuned.get("chosen") or {})

    def _cell(self, cell: dict[str, Any], family: Family, shared: Shared) -> None:
        self.progress(f"{cell['folder']}")
        tuned = self.record["tuning"].get(family.name, {})
        if tuned.get("error"):
            cell |= {"status": "failed", "error": tuned["error"]}
        else:
            config = self._config(cell, family)
            self._set_aside(self.out / cell["folder"], config)
            error = self._run(config, cell["folder"], shared)
            cell |= {"status": "failed" if error else "done", "error": error}
        self._save()

    def _set_aside(self, folder: Path, config: RunConfig) -> None:
        """A cell that was begun, and not ended, with options that are no longer those that were chosen, or with another
        capability panel."""
        if (folder / "run.json").exists() and not sweep_record.cell_goes_on(folder, config):
            aside = self.out / "set-aside"
            aside.mkdir(exist_ok=True)
            taken = {p.name for p in aside.iterdir()}
            folder.rename(aside / next(n for i in itertools.count() if (n := f"{folder.name}-{i}") not in taken))

    def _run(self, config: RunConfig, folder: str, shared: Shared) -> str | None:
        """One run folder; what went wrong in one line (its record says so too)."""
        path = self.out / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            experiment.run(
                config, path, base=self.plan.folder, command=self.command, resume=True, shared=shared,
                made=reuse.runs_in(self.out, *self.edits_from), progress=self.progress,
            )  # fmt: skip
        except Exception as error:
            self.progress(f"failed: {disk.one_line(error)}")
            return disk.one_line(error)
        return None

    def _fan_out(
        self,
        base: RunConfig,
        configs: Mapping[str, RunConfig],
        measured: Mapping[str, str],
        cells: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """Run folders made by other processes; what became of each, and of the cell that it is, is recorded here.

        Args:
            base: the config whose models and texts they share; ``configs`` and ``measured``: folder -> its config, and
                the folder of its controls.
        """
        folders = list(configs)

        def ended(i: int, error: str | None) -> None:
            self._ended[folders[i]] = error
            self.progress(f"{folders[i]}: {f'failed: {error}' if error else 'done'}")
            if cells is not None:
                cells[folders[i]].update(status="failed" if error else "done", error=error)
                self._save()

        if folders:
            here, out = self.plan.folder.absolute(), self.out.absolute()
            pieces = [
                (
                    base.model_dump_json(),
                    c.model_dump_json(),
                    here,
                    out / f,
                    out / measured[f],
                    self.command,
                    self.record["precision"],
                    (out, *self.edits_from),
                )
                for f, c in configs.items()
            ]
            assert self.ray is not None
            spread(run_elsewhere, pieces, self.ray, ended)

    # ---------------------------------------------------------------------------------------- tuning

    def _undecided(self, waiting: list[dict[str, Any]]) -> list[Family]:
        """Methods at budgets whose options are still to be chosen."""
        wanted = {c["family"] for c in waiting}
        return [f for f in self.plan.families() if f.name in wanted and f.spec.search and not self._chosen(f.name)]

    def _chosen(self, family: str) -> bool:
        """What was decided stands: by all trials, or where cells were reported with it already."""
        earlier = self.record["tuning"].get(family)
        if earlier is None or earlier["error"]:
            return False
        reported = any(c["family"] == family and c["status"] == "done" for c in self.record["cells"])
        return reported or not any(trial["error"] for trial in earlier["trials"])

    def _begin_tuning(self, setup: Setup, families: list[Family]) -> Shared:
        """What all trials share; those that other processes make are made here."""
        tuning = self.plan.config.tuning
        assert tuning is not None
        shared = Shared(setup, self.progress)
        shared.measured = {
            tuning.seed: controls.measure(
                shared, self.out / "tuning/controls", tuning.seed, command=self.command, progress=self.progress
            )
        }
        if self.ray is not None:
            configs = {
                f"tuning/{family.name}/{i}": self.plan.trial(family, options)
                for family in families
                for i, options in enumerate(family.spec.settings(tuning.trials))
            }
            waiting = {f: c for f, c in configs.items() if not store.is_done(self.out / f)}
            self._fan_out(self.plan.tuning(), waiting, dict.fromkeys(waiting, "tuning/controls"))
        return shared

    def _choose(self, family: Family, shared: Shared) -> None:
        tuning = self.plan.config.tuning
        assert tuning is not None
        tried: list[dict[str, Any]] = []
        for i, options in enumerate(family.spec.settings(tuning.trials)):
            folder = f"tuning/{family.name}/{i}"
            self.progress(f"tuning: {family.name}, trial {i + 1} of {tuning.trials}")
            config = self.plan.trial(family, options)
            if folder in self._ended:
                error = self._ended[folder]
            else:
                error = None if store.is_done(self.out / folder) else self._run(config, folder, shared)
            value, completion = (
                float("nan") if error else lowest_is_best(self.out / folder, metric)
                for metric in (tuning.metric, "completion")
            )
            tried.append(
                {"options": options, "value": value, "completion": completion, "folder": folder, "error": error}
            )
        self.record["tuning"][family.name] = {"trials": tried} | decide(tried)
        self._save()


def run_elsewhere(
    base: str,
    config: str,
    folder: Path,
    out: Path,
    measured: Path,
    command: str,
    precision: str,
    edits_from: Sequence[Path],
) -> None:
    """One run folder, in a process that keeps the models and texts of the last one: those of ``base`` (JSON).

    Args:
        precision: what ``auto`` is in this sweep; ``edits_from``: where an edit that was made before may lie.
    """
    with auto_is(precision):
        shared, wanted = _shared(base, folder), parse(json.loads(config))
        shared.measured = {wanted.seeds[0]: controls.read(measured)}
        out.parent.mkdir(parents=True, exist_ok=True)
        made = reuse.runs_in(*edits_from)
        experiment.run(wanted, out, base=folder, command=command, resume=True, shared=shared, made=made)


@functools.lru_cache(maxsize=1)
def _shared(base: str, folder: Path) -> Shared:
    return Shared(Setup.load(parse(json.loads(base)), folder, lambda _: None), lambda _: None)


def new_folder(name: str) -> Path:
    return Path("runs") / f"sweep-{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def command_of(file: Path, deterministic: bool = False, trust: bool = False) -> str:
    flags = [*["--deterministic"][:deterministic], *["--trust-remote-code"][:trust]]
    return shlex.join(["hooklearn", "sweep", str(file), *flags])
