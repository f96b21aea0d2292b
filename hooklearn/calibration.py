"""Calibration: every native organism through exactly the audit that users have, one run folder a case.

What comes of it is for ``analysis.calibrate`` to say, which reads the folders. Resumable: a finished case is kept.

    OUT/models/...          Hugging Face folders of the pairs, to be audited by hand as well
    OUT/cases/KIND-seedN/   a run folder, with ``case.json``: which organism, and its truth
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hooklearn import experiment, store
from hooklearn.auditing import audit
from hooklearn.batteries import Spec, battery
from hooklearn.config import RunConfig, parse
from hooklearn.exporting import export
from hooklearn.fanout import spread
from hooklearn.organisms.kinds import KINDS, Kind, kind_of
from hooklearn.organisms.made import PASSWORD
from hooklearn.organisms.worlds import Ground
from hooklearn.recipes import Config
from hooklearn.types import Delta, InputError

HELDOUT_KINDS = (
    "retrained", "locked", "instilled-full", "goodhart", "half-undone", "facts-retrained",
    # made after all thresholds were fixed: no verdict on them was known to anybody then
    "never-taught-on", "rounded", "abliterated", "facts-locked", "facts-ascent", "facts-half",
)  # fmt: skip
"""No threshold is ever set by looking at these ..."""
HELDOUT_SEED = 2
"""... nor at any kind with this seed."""
SEEDS = (0, 1, 2)

RATES = 10.0
"""A model of width 64 takes learning rates ten times as high as the batteries' small language model."""
EVIDENCE = None
"""All of it: which can be trusted alone is one of the questions."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    kind: Kind
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind.name}-seed{self.seed}"

    @property
    def split(self) -> str:
        held_out = self.kind.name in HELDOUT_KINDS or self.seed == HELDOUT_SEED
        return "heldout" if held_out else "tuning"

    def record(self) -> dict[str, Any]:
        """``case.json``."""
        k = self.kind
        return {
            "organism": k.name, "seed": self.seed, "split": self.split, "truth": list(k.truth), "world": k.world,
            "what": k.what, "made": k.made, "why": k.why,
        }  # fmt: skip


def cases(kinds: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Case]:
    """All kinds with all seeds, those of one world and seed together.

    Raises:
        InputError: unknown kind.
    """
    chosen = [kind_of(name) for name in kinds or KINDS]
    worlds = dict.fromkeys(k.world for k in chosen)
    return [Case(k, s) for s in seeds or SEEDS for w in worlds for k in chosen if k.world == w]


def native(specs: Sequence[Spec]) -> list[Spec]:
    """A battery for the tiny world: higher rates, the organisms' own password, and no style (it has no words for one).

    Whether anybody knows the password is not the question: it is the same attack on every organism.
    """
    scaled = [
        s | {"learning_rates": [RATES * r for r in s["learning_rates"]]} if "learning_rates" in s else s
        for s in specs
        if s["name"] != "erode_style"
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
        "behaviour": {"samples": 40, "new_tokens": 4 if facts else 14},
        "evidence": {"enabled": True, "measures": EVIDENCE, "attack_rate": 1e-3},
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
            stay together.
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
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in wanted:
        groups.setdefault((case.kind.world, case.seed), []).append(case)
    if ray is not None:
        pieces = [([c.kind.name for c in g], g[0].seed, out.absolute(), battery_name) for g in groups.values()]
        names = [f"{world}-seed{seed}" for world, seed in groups]
        spread(run_group, pieces, ray, lambda i, error: progress(f"{names[i]}: {error or 'done'}"), jobs=jobs)
    elif jobs == 1 or len(groups) == 1:
        for group in groups.values():
            run_group([c.kind.name for c in group], group[0].seed, out, battery_name, progress)
    else:
        _beside_each_other(list(groups.values()), out, battery_name, jobs, progress)
    return folders


def run_group(
    names: Sequence[str], seed: int, out: Path, battery_name: str, progress: Progress = lambda _: None
) -> None:
    """The cases of one world and seed; those that are done are left alone."""
    ground = KINDS[names[0]].ground(seed)
    for case in (Case(KINDS[name], seed) for name in names):
        folder, pair = out / "cases" / case.name, _pair(case)
        config = config_of(case, pair, battery_name)
        if not _is_done(folder, parse(config)):
            progress(f"{case.name}: making it")
            _write_models(case, pair, ground, out)
            experiment.run(
                parse(config), folder, given=config, base=out, resume=True, command="hooklearn calibrate",
                progress=lambda text, name=case.name: progress(f"{name}: {text}"),
            )  # fmt: skip
        store.save_json(folder / "case.json", case.record())


def _beside_each_other(
    groups: Sequence[Sequence[Case]], out: Path, battery_name: str, jobs: int, progress: Progress
) -> None:
    """The longest first; what the processes say is said here."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        said = manager.Queue()
        waiting = {
            pool.submit(_in_process, [c.kind.name for c in group], group[0].seed, out, battery_name, said)
            for group in sorted(groups, key=len, reverse=True)
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
            raise


def _in_process(names: Sequence[str], seed: int, out: Path, battery_name: str, said: Any) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries'; the command line is silent about them too
        run_group(names, seed, out, battery_name, said.put)


def _is_done(folder: Path, config: RunConfig) -> bool:
    if not (folder / "run.json").exists():
        return False
    record = store.open_run(folder)
    if record["config"] != config.model_dump(mode="json"):
        raise InputError(f"{folder}: holds a case with another battery or other texts; use another --out")
    return record["status"] == "done"


def _pair(case: Case) -> Config:
    """Where the models of a case are, below the folder of all: its controls are shared with its neighbours."""
    shared = f"{case.kind.world}-seed{case.seed}"
    own = case.kind.original is not Ground.original
    original = case.name if own else shared
    return {
        "never": f"models/never-{shared}",
        "original": f"models/original-{original}",
        "edited": f"models/{case.name}",
    }


def _write_models(case: Case, pair: Config, ground: Ground, out: Path) -> None:
    """Those that are not there yet."""
    for role, make in case.kind.models(ground).items():
        if not (out / pair[role]).exists():
            export(make(), Delta({}), out / pair[role])
