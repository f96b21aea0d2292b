"""The attacks of a run: every arm under every attacker, samples before the referee, a part of the folder each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from hooklearn import disk, memory, store
from hooklearn.attack import Arena, ArmState, Measured, Onlooker, Watcher, attack_of
from hooklearn.config import RunConfig
from hooklearn.setting import Progress, Setup
from hooklearn.types import ArmCurve, Curve, CurvePoint


def arena_of(
    setup: Setup,
    watcher: Watcher,
    arms: list[ArmState],
    seed: int,
    measured: Measured | None = None,
    progress: Progress = lambda _: None,
    onlooker: Onlooker | None = None,
) -> Arena:
    """Where the attacks of one seed take place."""
    watcher.pending.clear()  # of a run that failed before they were judged
    for edited in ("edited", "matched"):  # another edit starts elsewhere; the controls do not
        watcher.start.pop(edited, None)
    config = setup.config
    return Arena(
        arms=[arm for arm in arms if arm.twin is None], watcher=watcher,
        twins={arm.name: arm.twin for arm in arms if arm.twin is not None},
        attack_train=setup.corpora.get("attack_train"),
        unrelated=setup.corpora.get("unrelated"), retain=setup.corpora.get("retain"),
        seed=seed, precision=config.model.precision, max_tokens=config.max_tokens,  # type: ignore[arg-type]
        progress=progress, measured=measured or Measured(), onlooker=onlooker,
    )  # fmt: skip


def attack_stages(
    config: RunConfig, arena: Arena, folder: store.RunFolder, before_done: Callable[[], None] = lambda: None
) -> None:
    """Every attack of the config on every arm of the arena, a part of the folder each; parts that are there stay.

    An arena without an edited arm is left alone by attacks that follow the edit. ``before_done`` writes what else an
    attack left behind: a part that is there is not made again.
    """
    edited = any(arm.name == "edited" for arm in arena.arms)
    stages: list[tuple[str, Callable[[], list[Curve]]]] = [("none", lambda: [before(arena)])]
    for i, spec in enumerate(config.attacks):
        attack = attack_of(spec.name, spec.options)
        if attack.follows_edit and not edited:
            continue
        stages.append((f"{i}-{attack.name}", lambda attack=attack: attack.curves(arena)))
    for name, curves in stages:
        part = f"parts/curves-seed{arena.seed}-{name}"
        if folder.has(f"{part}.parquet"):
            continue
        arena.progress(f"attack (seed {arena.seed}): {name}")
        found = curves()
        samples = judge_pending(arena.watcher)
        found = [with_samples(c, samples) for c in found]
        samples += _known_samples(arena, found)
        found, samples = _with_twins(arena, found, samples)
        before_done()
        folder.save_frame(f"{part}-items.parquet", pd.concat([c.items_dataframe() for c in found]))
        disk.save_lines(folder.path(f"{part}-samples.jsonl"), samples)
        folder.save_frame(f"{part}.parquet", pd.concat([c.to_dataframe() for c in found]))
        folder.event("attacked", seed=arena.seed, attack=name)
        memory.give_back()


def _known_samples(arena: Arena, curves: list[Curve]) -> list[dict[str, Any]]:
    """What arms said that were not attacked again: a folder holds everything that its curves rest on."""
    attackers = {(c.attack, c.setting) for c in curves}
    return [dict(s) for s in arena.measured.samples if (s["attack"], s["setting"]) in attackers]


def _with_twins(
    arena: Arena, curves: list[Curve], samples: list[dict[str, Any]]
) -> tuple[list[Curve], list[dict[str, Any]]]:
    """What an arm's twin did is what it does: under the same attacker the same to the bit."""
    for arm, other in arena.twins.items():
        curves = [dataclasses.replace(c, arms={**c.arms, arm: c.arms[other]}) for c in curves]
        samples = samples + [row | {"arm": arm} for row in samples if row["arm"] == other]
    return curves, samples


def before(arena: Arena) -> Curve:
    """Every arm as it is, before any attack: attack ``none``."""
    arms = arena.known("none", "")
    for arm in [a for a in arena.arms if a.name not in arms]:
        arena.progress(f"behaviour before any attack: {arm.name}")
        with arm.entered(training=False) as model:
            points = arena.watcher.at_start(model, arm.name)
            arms[arm.name] = ArmCurve(tuple(points), converged=True)
            if arm.name == "original" and (twin := arena.watcher.surrogate(model, 0, 0)):
                arms["never"] = ArmCurve(tuple(twin), converged=True)
            arena.watcher.sample(model, arm.name, "none", "", 0, arena.seed)
    return Curve("none", "", True, arena.seed, arms)


def judge_pending(watcher: Watcher) -> list[dict[str, Any]]:
    """All waiting samples before the referee, the attacked weights having been put back."""
    rows = []
    waiting = watcher.pending.copy()
    watcher.pending.clear()
    if not waiting:
        return rows
    assert watcher.referee is not None
    # all at once: arms were given the same prompts, which are then read once
    asked = [(s, wait.corpus.rows[s.item]) for wait in waiting for s in wait.samples]
    answers = iter(watcher.referee.judge([s for s, _ in asked], [row for _, row in asked]))
    for wait in waiting:
        judged = [next(answers) for _ in wait.samples]
        for s, (score, found) in zip(wait.samples, judged, strict=True):
            rows.append(
                {
                    "arm": wait.arm, "attack": wait.attack, "setting": wait.setting, "step": wait.step,
                    "seed": wait.seed, "split": wait.split, "item": s.item, "greedy": s.greedy,
                    "prompt": s.prompt, "completion": s.completion, "referee": score, "is_behaviour": found,
                }
            )  # fmt: skip
        if watcher.permuted is not None and (wait.arm, wait.split) == ("original", "heldout"):
            rows += _surrogate_samples(watcher, wait)
    return rows


def _surrogate_samples(watcher: Watcher, wait: Any) -> Iterator[dict[str, Any]]:
    """The never arm of a knowledge run: the same samples, asked for the permuted answers."""
    assert watcher.permuted is not None and watcher.referee is not None
    judged = watcher.referee.judge(wait.samples, [watcher.permuted.corpus.rows[s.item] for s in wait.samples])
    for s, (score, found) in zip(wait.samples, judged, strict=True):
        yield {
            "arm": "never", "attack": wait.attack, "setting": wait.setting, "step": wait.step,
            "seed": wait.seed, "split": wait.split, "item": s.item, "greedy": s.greedy,
            "prompt": s.prompt, "completion": s.completion, "referee": score, "is_behaviour": found,
        }  # fmt: skip


def with_samples(curve: Curve, samples: list[dict[str, Any]]) -> Curve:
    """Add the sampled rate (per item: mean over its samples) as points of the curve."""
    arms = {}
    for name, arm in curve.arms.items():
        looks: dict[tuple[int, str], dict[int, list[float]]] = {}
        for row in samples:
            if (row["arm"], row["attack"], row["setting"]) == (name, curve.attack, curve.setting):
                look = looks.setdefault((row["step"], row["split"]), {})
                look.setdefault(row["item"], []).append(float(row["is_behaviour"]))
        extra = [
            CurvePoint(
                step, _tokens_at(arm, step), "sampled", split, tuple(sum(v) / len(v) for _, v in sorted(items.items()))
            )
            for (step, split), items in sorted(looks.items())
        ]  # fmt: skip
        arms[name] = dataclasses.replace(arm, points=(*arm.points, *extra))
    return dataclasses.replace(curve, arms=arms)


def _tokens_at(arm: ArmCurve, step: int) -> int:
    return max((p.tokens for p in arm.points if p.step == step), default=0)


def attack_records(config: RunConfig) -> list[dict[str, Any]]:
    found = [attack_of(spec.name, spec.options) for spec in config.attacks]
    return [
        {
            "name": attack.name, "cheap": attack.cheap, "summary": type(attack).summary(),
            "source": attack.source, "settings": attack.settings(), "budget": dataclasses.asdict(attack),
        }
        for attack in found
    ]  # fmt: skip


# ------------------------------------------------------------------------- what analysis reads


def collect_parts(folder: store.RunFolder) -> None:
    """The parts of all stages as the files that analysis reads."""
    parts = sorted(folder.path("parts").glob("curves-*.parquet"))
    curves = [p for p in parts if not p.stem.endswith("-items")]
    items = [p for p in parts if p.stem.endswith("-items")]
    folder.save_frame("curves.parquet", _concat(curves))
    folder.save_frame("items.parquet", _concat(items))
    traces = sorted(folder.path("parts").glob("trace-*.parquet"))
    if traces:
        folder.save_frame("trace.parquet", _concat(traces))
    if found := sorted(folder.path("parts").glob("capability-*.parquet")):
        folder.save_frame("capability.parquet", _concat(found))
    if found := sorted(folder.path("parts").glob("evidence-*.parquet")):
        folder.save_frame("evidence.parquet", _concat(found))
        records = [r for p in found for r in disk.load_json(p.with_suffix(".json"))["records"]]
        folder.save_json("evidence.json", {"records": records})
    rows = [r for p in sorted(folder.path("parts").glob("*-samples.jsonl")) for r in disk.load_lines(p)]
    disk.save_lines(folder.path("samples.jsonl"), rows)


def _concat(paths: list[Path]) -> pd.DataFrame:
    return pd.concat([disk.load_frame(p) for p in paths], ignore_index=True)


def attack_tokens(folder: store.RunFolder) -> int:
    frame = disk.load_frame(folder.path("curves.parquet"))
    last: Any = frame.groupby(["attack", "setting", "arm", "seed"])["tokens"].max()
    return int(last.to_numpy().sum())
