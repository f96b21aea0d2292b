"""The attacks of a run: every arm under every attacker, samples before the referee, a part of the folder each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hooklearn import disk, memory, store
from hooklearn.attack import Arena, ArmState, Measured, Onlooker, Watcher, attack_of
from hooklearn.attack.effort import Effort
from hooklearn.attack.watcher import Pending
from hooklearn.config import RunConfig
from hooklearn.measure import Sample
from hooklearn.referees import Ruling
from hooklearn.running.setting import Progress, Setup
from hooklearn.types import ArmCurve, Curve, CurvePoint, InputError


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


def check_attackers(config: RunConfig, setup: Setup, watcher: Watcher) -> None:
    """Raises InputError, before anything is edited or attacked, for what only the attackers' batches tell."""
    for seed in config.seeds:
        arena = arena_of(setup, watcher, [ArmState("original", setup.original)], seed)
        for spec in config.attacks:
            attack_of(spec.name, spec.options).check_batches(arena)


def attack_stages(
    config: RunConfig, arena: Arena, folder: store.RunFolder, before_done: Callable[[], None] = lambda: None
) -> None:
    """Every attack of the config on every arm of the arena, a part of the folder each; parts that are there stay.

    Of an attack that was interrupted, so do the settings that were finished. An arena without an edited arm is left
    alone by attacks that follow the edit. ``before_done`` writes what else a setting left behind: one that is there is
    not made again.
    """
    edited = any(arm.name == "edited" for arm in arena.arms)
    stages: list[tuple[str, Callable[[Arena], Iterable[Curve]]]] = [
        ("none", lambda arena: [] if "" in arena.finished else [before(arena)])
    ]
    for i, spec in enumerate(config.attacks):
        attack = attack_of(spec.name, spec.options)
        if attack.follows_edit and not edited:
            continue
        stages.append((f"{i}-{attack.name}", attack.one_by_one))
    groups = {of.split: of.corpus.groups for of in (arena.watcher.heldout, arena.watcher.ood) if of is not None}
    for name, curves in stages:
        part = _Part(folder, f"seed{arena.seed}-{name}", groups)
        if part.done:
            continue
        arena.progress(f"attack (seed {arena.seed}): {name}")
        judged: list[dict[str, Any]] = []
        finished = part.settings()
        for curve in curves(dataclasses.replace(arena, finished=finished)):
            judged += _judge_new(arena.watcher, finished)
            samples = [row for row in judged if _attacker(row) == (curve.attack, curve.setting)]
            judged = [row for row in judged if _attacker(row) != (curve.attack, curve.setting)]
            found = with_samples(curve, samples)
            samples += _known_samples(arena, found)
            before_done()
            part.add(*_with_twins(arena, found, samples))
        if judged := judged + _judge_new(arena.watcher, finished):
            raise InputError(f"attack {name!r} drew samples of {sorted(set(map(_attacker, judged)))} and gave no curve")
        part.close()
        folder.event("attacked", seed=arena.seed, attack=name)
        memory.give_back()


def _judge_new(watcher: Watcher, finished: set[str]) -> list[dict[str, Any]]:
    """Samples since the last time. An attack may have made all its settings before it gives the first curve, those
    that are there already with them."""
    return [row for row in judge_pending(watcher) if row["setting"] not in finished]


class _Part:
    """What one attack found, in ``parts/``: first a setting at a time, in the end all of them."""

    def __init__(self, folder: store.RunFolder, name: str, groups: Mapping[str, Sequence[str]]) -> None:
        self._groups = groups
        self._folder, self._whole, self._begun = folder, f"parts/curves-{name}", f"parts/begun-{name}"
        self._tables: list[tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]] = []
        while not self.done and folder.has(f"{self._next()}.parquet"):
            stem = str(folder.path(self._next()))
            curves, items = (disk.load_frame(f"{stem}{end}.parquet") for end in ("", "-items"))
            self._tables.append((curves, items, disk.load_lines(f"{stem}.jsonl")))

    @property
    def done(self) -> bool:
        return self._folder.has(f"{self._whole}.parquet")

    def settings(self) -> set[str]:
        return {str(setting) for curves, _, _ in self._tables for setting in curves["setting"].unique()}

    def _next(self) -> str:
        return f"{self._begun}-{len(self._tables)}"

    def add(self, curve: Curve, samples: list[dict[str, Any]]) -> None:
        stem = self._next()
        self._tables.append((curve.to_dataframe(self._groups), curve.items_dataframe(), samples))
        self._write(stem, *self._tables[-1], f"{stem}.jsonl")

    def close(self) -> None:
        if not self._tables:
            raise InputError(f"attack {self._whole.rpartition('-')[2]!r} gave no curve, not even an empty one")
        curves, items, samples = zip(*self._tables, strict=True)
        rows = [row for some in samples for row in some]
        self._write(self._whole, pd.concat(curves), pd.concat(items), rows, f"{self._whole}-samples.jsonl")
        for left in self._folder.path("parts").glob(f"{Path(self._begun).name}-*"):
            left.unlink()

    def _write(
        self, stem: str, curves: pd.DataFrame, items: pd.DataFrame, samples: list[dict[str, Any]], file: str
    ) -> None:
        """The curves last: where they are, all is."""
        self._folder.save_frame(f"{stem}-items.parquet", items)
        disk.save_lines(self._folder.path(file), samples)
        self._folder.save_frame(f"{stem}.parquet", curves)


def _known_samples(arena: Arena, curve: Curve) -> list[dict[str, Any]]:
    """What arms said that were not attacked again: a folder holds everything that its curves rest on."""
    return [dict(s) for s in arena.measured.samples if _attacker(s) == (curve.attack, curve.setting)]


def _attacker(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["attack"], row["setting"]


def _with_twins(arena: Arena, curve: Curve, samples: list[dict[str, Any]]) -> tuple[Curve, list[dict[str, Any]]]:
    """What an arm's twin did is what it does: under the same attacker the same to the bit."""
    for arm, other in arena.twins.items():
        curve = dataclasses.replace(curve, arms={**curve.arms, arm: curve.arms[other]})
        samples = samples + [row | {"arm": arm} for row in samples if row["arm"] == other]
    return curve, samples


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
        rows += [_sample_row(wait, wait.arm, s, next(answers)) for s in wait.samples]
        if watcher.permuted is not None and (wait.arm, wait.split) == ("original", "heldout"):
            rows += _surrogate_samples(watcher, wait)
    return rows


def _surrogate_samples(watcher: Watcher, wait: Pending) -> Iterator[dict[str, Any]]:
    """The never arm of a knowledge run: the same samples, asked for the permuted answers."""
    assert watcher.permuted is not None and watcher.referee is not None
    asked = wait.permuted or watcher.permuted.corpus
    judged = watcher.referee.judge(wait.samples, [asked.rows[s.item] for s in wait.samples])
    for s, ruling in zip(wait.samples, judged, strict=True):
        yield _sample_row(wait, "never", s, ruling)


def _sample_row(wait: Pending, arm: str, s: Sample, ruling: Ruling) -> dict[str, Any]:
    """A line of ``samples.jsonl``."""
    return {
        "arm": arm, "attack": wait.attack, "setting": wait.setting, "step": wait.step,
        "seed": wait.seed, "split": wait.split, "item": s.item, "greedy": s.greedy,
        "prompt": s.prompt, "completion": s.completion,
        "referee": ruling.score, "is_behaviour": ruling.is_behaviour, "fluency": ruling.fluency,
        "logprob": s.logprob,
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


def attack_records(config: RunConfig, spent: Sequence[Spent] = ()) -> list[dict[str, Any]]:
    """What was asked for, and what each setting took."""
    found = [attack_of(spec.name, spec.options) for spec in config.attacks]
    return [
        {
            "name": attack.name, "cheap": attack.cheap, "needs": attack.role, "summary": type(attack).summary(),
            "source": attack.source, "settings": attack.settings(), "budget": dataclasses.asdict(attack),
            "same_question": attack.same_question,
            "spent": [one.record() for one in spent if one.number == number],
        }
        for number, attack in enumerate(found)
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Spent:
    """On one arm, by one setting of the attack of this number in the config."""

    number: int
    setting: str
    seed: int
    steps: int
    effort: Effort | None
    """None of an attack by training that does not say."""
    arms: int
    """How many were attacked in this run: not those whose curves were there, nor an arm's twin."""
    seen: int
    """Tokens that these arms were trained on together."""

    def record(self) -> dict[str, Any]:
        own = dataclasses.asdict(self.effort) if self.effort is not None else dict.fromkeys(_EFFORT)
        return {"setting": self.setting, "seed": self.seed, "steps": self.steps, "arms": self.arms} | own

    @property
    def flops(self) -> float:
        return self.arms * self.effort.flops if self.effort is not None else 0.0


_EFFORT = tuple(field.name for field in dataclasses.fields(Effort))


def spent_by(config: RunConfig, arena: Arena, folder: store.RunFolder) -> list[Spent]:
    """What the attackers of one seed spent, worked out from where their curves end: a run that was resumed says the
    same."""
    found = []
    for number, spec in enumerate(config.attacks):
        attack = attack_of(spec.name, spec.options)
        part = f"{_whole(arena.seed, number, attack.name)}.parquet"
        if not folder.has(part):
            continue
        curves: Any = disk.load_frame(folder.path(part))
        last = curves.groupby("setting", sort=False)["step"].max()
        tokens = curves.groupby(["setting", "arm"])["tokens"].max()
        efforts = {steps: attack.effort(arena, steps) for steps in set(map(int, last))}
        for setting, steps in last.items():
            known = arena.known(attack.name, setting)
            arms = [arm.name for arm in arena.arms if arm.name not in known]
            seen = sum(int(tokens.get((setting, arm), 0)) for arm in arms)
            found.append(Spent(number, setting, arena.seed, int(steps), efforts[int(steps)], len(arms), seen))
    return found


def _whole(seed: int, number: int, name: str) -> str:
    return f"parts/curves-seed{seed}-{number}-{name}"


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
