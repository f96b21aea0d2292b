"""The controls of many edits, measured once: the unedited and the never-learned model under every attack.

A folder of controls is a run folder without an edit. What it holds is handed to runs as
:class:`~hooklearn.attack.Measured`; each of them keeps a copy, so that its folder stays complete.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hooklearn import disk, store
from hooklearn.attack import ArmState, Measured
from hooklearn.config import RunConfig, same_config, without_panel
from hooklearn.running.attacking import arena_of, attack_records, attack_stages, check_attackers, collect_parts
from hooklearn.running.setting import Progress
from hooklearn.running.shared import Shared
from hooklearn.types import ArmCurve, CurvePoint


def measure(
    shared: Shared, out: Path, seed: int, *, command: str = "", progress: Progress = lambda _: None
) -> Measured:
    """Attack the controls of one seed to the last step, or read what is there; a killed measurement is continued.

    Raises:
        InputError: the folder holds something else, controls of another config, or of other models or texts.
    """
    config = without_edit(shared.setup.config, seed)
    setup = dataclasses.replace(shared.setup, config=config)
    if store.is_done(out):
        store.check_inputs(out, store.open_run(out), setup.record(None, command))
    else:
        arms = [ArmState("original", setup.original)]
        if setup.never is not None:
            arms.append(ArmState("never", setup.never))
        with store.RunFolder.create(out, setup.record(None, command), resume=True, same=_same) as folder:
            folder.path("parts").mkdir(exist_ok=True)
            check_attackers(config, setup, shared.watcher)
            if shared.watcher.referee is not None:
                folder.update(referee=shared.watcher.referee.describe())
            attack_stages(config, arena_of(setup, shared.watcher, arms, seed, progress=progress), folder)
            collect_parts(folder)
            folder.update(attacks=attack_records(config), edits=[])
    return read(out)


def without_edit(config: RunConfig, seed: int) -> RunConfig:
    """The config of a folder of controls."""
    name = f"{config.name}: controls"
    locate = config.locate.model_copy(update={"enabled": False})
    return config.model_copy(update={"name": name, "seeds": [seed], "locate": locate})


def _same(earlier: Any, now: Any) -> bool:
    """The capability panel is asked of no control, and may be added to a sweep that was begun."""
    return same_config(without_panel(earlier), without_panel(now))


def read(folder: Path) -> Measured:
    """Curves, item by item, and samples of a finished folder of controls."""
    flags: Any = disk.load_frame(folder / "curves.parquet")
    keys = ["attack", "setting", "arm"]
    about: dict[Any, list[dict[str, Any]]] = {
        key: rows.to_dict("records") for key, rows in flags.groupby(keys, sort=False)
    }
    curves: dict[tuple[str, str], dict[str, ArmCurve]] = {}
    items: Any = disk.load_frame(folder / "items.parquet")
    for key, rows in items.groupby(keys, sort=False):
        attack, setting, arm = map(str, key)
        curves.setdefault((attack, setting), {})[arm] = _curve(rows, about[key])
    return Measured(curves, tuple(disk.load_lines(folder / "samples.jsonl")))


def _curve(items: Any, about: list[dict[str, Any]]) -> ArmCurve:
    tokens = {row["step"]: int(row["tokens"]) for row in about}
    points = tuple(
        CurvePoint(int(step), tokens[step], metric, split, tuple(rows.sort_values("item")["value"]))
        for (step, metric, split), rows in items.groupby(["step", "metric", "split"], sort=False)
    )
    return ArmCurve(points, converged=all(r["converged"] for r in about), diverged=any(r["diverged"] for r in about))
