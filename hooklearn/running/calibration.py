"""Calibration: every native organism through exactly the audit that users have, one run folder a case.

What comes of it is for ``analysis.calibrate`` to say, which reads the folders. Resumable: a finished case is kept.

    OUT/models/...          Hugging Face folders of the pairs, to be audited by hand as well
    OUT/controls/...        original and never-learned model of a world and seed under every attack, for all its cases
    OUT/cases/KIND-seedN/   a run folder, with ``case.json``: which organism, and its truth
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from hooklearn import disk, experiment, models, store
from hooklearn.batteries import Spec, battery
from hooklearn.config import RunConfig, parse
from hooklearn.deltas import Delta
from hooklearn.exporting import export
from hooklearn.organisms.card import Kind
from hooklearn.organisms.kinds import KINDS, USUAL, kind_of
from hooklearn.organisms.made import PASSWORD
from hooklearn.organisms.worlds import Ground
from hooklearn.recipes import Config
from hooklearn.running import controls
from hooklearn.running.auditing import audit
from hooklearn.running.checks import check_once
from hooklearn.running.fanout import spread
from hooklearn.running.setting import Setup
from hooklearn.running.shared import Shared
from hooklearn.types import InputError

SEEN_SEEDS = tuple(range(56))
"""Thresholds, attacks and organisms were chosen with the cases of these in view, of every kind that is not held out."""
SEEDS = (54, 57, 58)
"""Tried unless seeds are asked for: one of those, and two of which no case was in view, of no kind."""

RATES = 10.0
"""A model of width 64 takes learning rates ten times as high as the batteries' small language model."""
DRAWS = 16
"""Of few-shot demonstrations: items that have the same ones are no items of their own, and here more cost little."""
EVIDENCE = None
"""All of it: which can be trusted alone is one of the questions."""

RARELY = (700, 10, 100)
"""How often a process that makes cases looks for garbage: a tenth as often as usual through all that is there, which is
libraries for the most part and took a twelfth of its time."""

STARTS = {"threats": 1, "facts": 3}
"""World -> cases in whose time its models of a seed are made and its controls attacked."""

COMMAND = "hooklearn calibrate"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    kind: Kind
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind.name}-seed{self.seed}"

    @property
    def shares_controls(self) -> bool:
        """It is judged against the original of its world."""
        return self.kind.original is Ground.original

    @property
    def split(self) -> str:
        return "tuning" if self.seed in SEEN_SEEDS and not self.kind.held_out else "heldout"

    def record(self) -> dict[str, Any]:
        """``case.json``."""
        k = self.kind
        return {
            "organism": k.name, "seed": self.seed, "split": self.split, "held_out_kind": k.held_out,
            "truth": list(k.truth), "world": k.world, "what": k.what, "made": k.made, "why": k.why,
        }  # fmt: skip


def cases(kinds: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Case]:
    """The usual kinds, or those asked for, with all seeds; those of one world and seed together.

    Raises:
        InputError: unknown kind, a negative seed, or one of them twice.
    """
    if seeds and min(seeds) < 0:
        raise InputError(f"seed {min(seeds)}: seeds are 0 or more")
    check_once(seeds or (), "seed")
    check_once(kinds or (), "kind")
    chosen = [kind_of(name) for name in kinds or USUAL]
    worlds = dict.fromkeys(k.world for k in chosen)
    return [Case(k, s) for s in seeds or SEEDS for w in worlds for k in chosen if k.world == w]


def native(specs: Sequence[Spec]) -> list[Spec]:
    """A battery for the tiny world: higher rates, the organisms' own password, and neither style nor code, for which it
    has no words.

    Whether anybody knows the password is not the question: it is the same attack on every organism.
    """
    scaled = [
        s
        | ({"learning_rates": [RATES * r for r in s["learning_rates"]]} if "learning_rates" in s else {})
        | ({"draws": DRAWS} if s["name"] == "few_shot" else {})
        for s in specs
        if s["name"] != "erode_style" and "corpus" not in s
    ]
    return [*scaled, {"name": "password", "prefix": PASSWORD}]


def config_of(case: Case, pair: Config, battery_name: str) -> Config:
    """The audit of one case; ``pair``: where its models are."""
    facts = case.kind.world == "facts"
    config, left_out = audit(
        pair["original"], pair["edited"], case.kind.ground(case.seed).world.corpora, never=pair["never"],
        attacks=native(battery(battery_name, facts=facts)),
    )  # fmt: skip
    assert not left_out, left_out
    return config | {
        "name": case.name,
        "seeds": [case.seed],
        "max_tokens": 512,
        "model": {"name": pair["original"], "precision": "float32"},
        "behaviour": {"samples": 120 if facts else 160, "new_tokens": 4 if facts else 14},  # one a request, or fact
        "evidence": {"enabled": True, "measures": EVIDENCE, "attack_rate": 1e-3, "items": 56, "random_lines": 2},
    }


def run(
    out: Path,
    kinds: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    battery_name: str = "cheap",
    jobs: int = 1,
    resume: bool = False,
    progress: Progress = lambda _: None,
    ray: str | None = None,
) -> list[Path]:
    """Make and audit every case; returns the run folders.

    Args:
        jobs: processes beside each other, a thread each; the cases of one world and seed, which share their models,
            stay together, but for the largest such group of the last seed, which is shared out.
        ray: spread over the Ray cluster at this address (``local``: this machine). What is lost there is told by
            ``progress``, and its folders are not done.
    Raises:
        InputError: unknown kind or battery; cases that are there already (without ``resume``), or with another config.
    """
    wanted = cases(kinds, seeds)
    battery(battery_name)
    folders = [out / "cases" / c.name for c in wanted]
    if not resume and (there := next((f for f in folders if (f / "run.json").exists()), None)):
        raise InputError(f"{there}: already holds a case; use another --out, or --resume to go on")
    for case, folder in zip(wanted, folders, strict=True):  # before anything is made: a refusal is not to be lost
        _check_same(case, folder, is_done(folder, parse(config_of(case, _pair(case), battery_name))))
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in wanted:
        groups.setdefault((case.kind.world, case.seed), []).append(case)
    if ray is not None:
        pieces = [([c.kind.name for c in g], g[0].seed, out.absolute(), battery_name) for g in groups.values()]
        names = [f"{world}-seed{seed}" for world, seed in groups]
        spread(run_group, pieces, ray, lambda i, error: progress(f"{names[i]}: {error or 'done'}"), jobs=jobs)
    elif jobs == 1 or len(wanted) == 1:
        for group in groups.values():
            run_group([c.kind.name for c in group], group[0].seed, out, battery_name, progress)
    else:
        _beside_each_other(_pieces(list(groups.values()), jobs), out, battery_name, jobs, progress)
    return folders


def _pieces(groups: Sequence[Sequence[Case]], jobs: int) -> list[Sequence[Case]]:
    """The largest group first. The largest of the last seed comes at the end, in as many pieces as there are processes,
    so large that all end at once: without, all but one would wait for it."""
    shared = max((g for g in groups if g[0].seed == groups[-1][0].seed), key=len)
    whole = sorted((g for g in groups if g is not shared), key=len, reverse=True)
    busy = [0] * jobs
    for group in whole:
        busy[busy.index(min(busy))] += STARTS[group[0].kind.world] + len(group)
    ready = (
        min(busy) + STARTS[shared[0].kind.world]
    )  # whoever begins makes what these have in common, and the others wait for it
    busy = [max(time, ready) for time in busy]
    shares: list[list[Case]] = [[] for _ in busy]
    for case in shared:
        i = busy.index(min(busy))
        busy[i] += 1
        shares[i].append(case)
    return [*whole, *sorted(filter(None, shares), key=len, reverse=True)]


def run_group(
    names: Sequence[str],
    seed: int,
    out: Path,
    battery_name: str,
    progress: Progress = lambda _: None,
) -> None:
    """Cases of one world and seed: those with the same original meet the same controls, attacked once for all, also for
    those that another process makes beside these.

    Those that are done are left alone.
    """
    ground = KINDS[names[0]].ground(seed)
    shared: Shared | None = None
    for case in (Case(KINDS[name], seed) for name in names):
        folder, pair = out / "cases" / case.name, _pair(case)
        config = config_of(case, pair, battery_name)
        if not is_done(folder, parse(config)):
            progress(f"{case.name}: making it")
            _write_models(case, pair, ground, out)
            if case.shares_controls:
                shared = shared or _controls(case, pair, battery_name, out, progress)
                edited = models.load(str(out / pair["edited"]))
                shared.setup = dataclasses.replace(shared.setup, checkpoint=edited)
            experiment.run(
                parse(config), folder, given=config, base=out, resume=True, command=COMMAND,
                shared=shared if case.shares_controls else None,
                progress=lambda text, name=case.name: progress(f"{name}: {text}"),
            )  # fmt: skip
        disk.save_json(folder / "case.json", case.record())


def _check_same(case: Case, folder: Path, done: bool) -> None:
    """A finished case is not relabelled: its truth is that of the model which was made."""
    path, record = folder / "case.json", case.record()
    known = disk.load_json(path) if done and path.exists() else record
    for key in ("made", "truth"):
        if known.get(key) != record[key]:
            raise InputError(
                f"{folder}: made when the card of {case.kind.name} said otherwise ({key}); use another --out"
            )


def _controls(case: Case, pair: Config, battery_name: str, out: Path, progress: Progress) -> Shared:
    """What the cases of a world and seed have in common; the config is that of no case, so that any may come first."""
    world = f"{case.kind.world}-seed{case.seed}"
    config = parse(config_of(case, pair | {"edited": pair["original"]}, battery_name) | {"name": world})
    folder = out / "controls" / world
    is_done(folder, controls.without_edit(config, case.seed))  # refuses controls of another battery
    shared = Shared(Setup.load(config, out, progress), progress)
    with store.turn(folder.with_suffix(".lock")):  # whoever comes second reads what the first has measured
        found = controls.measure(shared, folder, case.seed, command=COMMAND, progress=progress)
    shared.measured = {case.seed: found}
    return shared


def _beside_each_other(
    pieces: Sequence[Sequence[Case]], out: Path, battery_name: str, jobs: int, progress: Progress
) -> None:
    """In this order; what the processes say is said here."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        said, others = manager.Queue(), set(multiprocessing.active_children())
        waiting = {
            pool.submit(_in_process, [c.kind.name for c in piece], piece[0].seed, out, battery_name, said)
            for piece in pieces
        }
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2)
                while not said.empty():
                    progress(said.get())
                for future in done:
                    future.result()  # raises what the process raised
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # the case it was at is resumed; left alone it would go on for minutes, unheard
            raise


def _in_process(names: Sequence[str], seed: int, out: Path, battery_name: str, said: Any) -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's as well: its SVDs take half of a case where two processes want both cores
    gc.set_threshold(*RARELY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries'; the command line is silent about them too
        run_group(names, seed, out, battery_name, said.put)


def is_done(folder: Path, config: RunConfig) -> bool:
    """Raises InputError where the folder holds a run of another config."""
    if not (folder / "run.json").exists():
        return False
    record = store.open_run(folder)
    if record["config"] != config.model_dump(mode="json"):
        raise InputError(f"{folder}: holds a case with another battery or other texts; use another --out")
    return record["status"] == "done"


def _pair(case: Case) -> Config:
    """Where the models of a case are, below the folder of all: its controls are shared with its neighbours."""
    shared = f"{case.kind.world}-seed{case.seed}"
    original = shared if case.shares_controls else case.name
    return {
        "never": f"models/never-{shared}",
        "original": f"models/original-{original}",
        "edited": f"models/{case.name}",
    }


def _write_models(case: Case, pair: Config, ground: Ground, out: Path) -> None:
    """Those that are not there yet."""
    for role, make in case.kind.models(ground).items():
        if (out / pair[role]).exists():
            continue
        try:
            export(make(), Delta({}), out / pair[role])
        except (InputError, OSError):
            if not (out / pair[role]).exists():  # else the process with other cases of this seed was first
                raise
