"""One run, from config to run folder: edit at an exact budget, attack every arm, write what was measured.

Facts only: the verdict is formed by ``analysis``, which reads the folder and never loads a model. Every stage
writes its part before the next begins, so that a killed run resumes where it stopped and ends with the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hooklearn import disk, editing, evidence, integrity, memory, models, parallel, sharded, store
from hooklearn.attack import Arena, ArmState, Watcher
from hooklearn.batteries import battery
from hooklearn.config import RunConfig, more_seeds
from hooklearn.deltas import Delta, load_delta, save_delta
from hooklearn.determinism import deterministic
from hooklearn.edit import Method, Problem, method_of, run_edit
from hooklearn.locate import collect
from hooklearn.locate.tokens import sample_tokens
from hooklearn.referees import RatioReferee, Referee
from hooklearn.running import following, reuse
from hooklearn.running.attacking import (
    arena_of,
    attack_records,
    attack_stages,
    check_attackers,
    collect_parts,
    spent_by,
)  # fmt: skip
from hooklearn.running.checks import check_needs, check_watched
from hooklearn.running.in_memory import InMemory
from hooklearn.running.setting import Progress, Setup
from hooklearn.running.shared import Shared
from hooklearn.types import Disruption, EditResult, InputError


def run(
    config: RunConfig,
    out: Path,
    *,
    given: Mapping[str, Any] | None = None,
    base: Path | None = None,
    command: str = "",
    resume: bool = False,
    delta: Delta | None = None,
    shared: Shared | None = None,
    made: Sequence[Path] = (),
    objects: InMemory | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Do everything that ``config`` asks for and write the run folder.

    Args:
        given: the config as the user wrote it; ``base``: folder that its relative paths start from.
        delta: attack this edit instead of making one.
        shared: what runs on the same models, corpora and attacks have in common; ``delta`` and ``objects`` are then
            not taken.
        made: folders of runs that may have made the same edit, which is then taken from there.
        objects: what was taken out of the config.
    Raises:
        InputError: anything wrong with the input, before or while the run goes on (the folder says so too).
    """
    memory.keep_freed()
    memory.reset_peak()
    asked, config = config, _as_begun(config, out) if resume else config
    with deterministic(config.deterministic):
        if delta is None:
            check_needs(config)
        if shared is None:
            shared = Shared(Setup.load(config, base or Path(), progress, delta, objects), progress)
        setup = dataclasses.replace(shared.setup, config=config)
        # a wrong name is told before there is a folder
        models.sites(setup.original, config.edit.sites, config.edit.layers)  # type: ignore[arg-type]
        record = dataclasses.replace(setup, config=asked).record(given, command)
        if resume and store.is_concluded(out, record, same=more_seeds):
            return out
        with store.RunFolder.create(out, record, resume=resume, same=more_seeds) as folder:
            setup.objects.write(folder.folder)
            _run_stages(config, setup, shared, folder, made, progress)
    return out


def _as_begun(config: RunConfig, out: Path) -> RunConfig:
    """What ``precision: auto`` was when the run began, it still is: another processor may find the other one faster."""
    if config.model.precision != "auto" or not (out / "run.json").exists():
        return config
    environment = store.open_run(out).get("environment")
    begun = environment.get("precision") if isinstance(environment, dict) else None
    if begun not in ("float32", "bfloat16"):  # a record from before that was written down
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"precision": begun})})


# ------------------------------------------------------------------------------------------ stages


def _run_stages(
    config: RunConfig,
    setup: Setup,
    shared: Shared,
    folder: store.RunFolder,
    made: Sequence[Path],
    progress: Progress,
) -> None:
    folder.path("parts").mkdir(exist_ok=True)
    watcher = shared.watcher
    check_watched(config, watcher)
    check_attackers(config, setup, watcher)
    if watcher.referee is not None:
        folder.update(referee=watcher.referee.describe())
    if shared.yardstick is not None:
        folder.update(yardsticks={"never": _disruption_record(shared.yardstick)})
    if config.locate.enabled and "retain" in setup.corpora and not folder.has("locate.parquet"):
        progress("locate: where forget and retain can be told apart")
        _locate(config, setup, folder)
    memory.give_back()

    edits, tokens, spent = [], 0, []
    for seed in config.seeds:
        given = config.edit.checkpoint if setup.checkpoint is not None else setup.delta and "a delta"
        progress(f"edit (seed {seed}): {f'none, {given} is judged as it is' if given else config.edit.method}")
        record, delta = _edit_stage(config, setup, shared, folder, seed, made, progress)
        edits.append(record)
        folder.update(edits=edits)
        tokens += record["cost"]["tokens"]
        memory.give_back()
        arms = _arms(config, setup, watcher, delta)
        _capability_stage(setup, shared, arms[0], folder, seed)
        eyes = following.follower(config, setup, folder, seed)
        arena = arena_of(setup, watcher, arms, seed, shared.measured.get(seed), progress, eyes)
        attack_stages(config, arena, folder, lambda eyes=eyes: eyes and following.write(eyes, folder))
        spent += spent_by(config, arena, folder)
        if config.evidence.enabled:
            _evidence_stage(config, setup, arena, folder)
        integrity.check_unchanged(setup.original, folder.record["model"]["hash"], f"after seed {seed}")
    collect_parts(folder)
    folder.update(
        attacks=attack_records(config, spent),
        left_out=_left_out(config),
        cost={
            "seconds": folder.seconds(),
            "tokens": tokens + sum(one.seen for one in spent),
            "flops": sum(record["cost"]["flops"] for record in edits) + sum(one.flops for one in spent),
            "peak_bytes": memory.peak_bytes(),
        },
    )


def _left_out(config: RunConfig) -> list[str]:
    """Attacks of the named battery that were not asked for."""
    if config.battery is None:
        return []
    never = config.controls.never
    asked = [spec.model_dump() for spec in config.attacks]
    every = battery(config.battery, facts=never is not None and never.surrogate is not None)
    return list(dict.fromkeys(spec["name"] for spec in every if spec not in asked))


def _locate(config: RunConfig, setup: Setup, folder: store.RunFolder) -> None:
    sites = models.sites(setup.original, config.edit.sites, config.edit.layers)  # type: ignore[arg-type]
    data = collect(
        setup.original, setup.corpora["forget"], setup.corpora["retain"], sites,
        sides=config.locate.sides, seed=config.seeds[0], max_tokens=config.max_tokens,  # type: ignore[arg-type]
        precision=config.model.precision,
    )  # fmt: skip
    spaces = data.fit(config.locate.fitter, config.locate.rank, seed=config.seeds[0])
    spaces.save(folder.path("subspaces.safetensors"))
    if config.locate.tokens:
        sample = sample_tokens(
            setup.original, spaces, setup.corpora["forget"], setup.corpora["retain"],
            unrelated=setup.corpora["disruption"], tokens=config.locate.tokens, seed=config.seeds[0],
            max_tokens=config.max_tokens, precision=config.model.precision,
        )  # fmt: skip
        sample.save(folder.path("tokens.safetensors"))
    folder.save_frame("locate.parquet", spaces.to_dataframe())


def _edit_stage(
    config: RunConfig,
    setup: Setup,
    shared: Shared,
    folder: store.RunFolder,
    seed: int,
    made: Sequence[Path],
    progress: Progress,
) -> tuple[dict[str, Any], Delta | None]:
    """The edit of one seed, read back from the folder where it is already there."""
    (trace, name, part), meter = reuse.parts(seed), shared.meter
    place = sharded.placing(setup.original)
    if setup.checkpoint is not None:
        disruption = meter.measure(model=setup.checkpoint)
        return _given_record(config, disruption, seed, {"checkpoint": config.edit.checkpoint}), None
    if setup.delta is not None:
        if folder.has(name) and not _same(load_delta(folder.path(name), place), setup.delta):
            raise InputError(f"{folder.folder}: holds the attacks on another delta; use another --out")
        with editing.edited(setup.original, setup.delta):
            disruption = meter.measure()
        save_delta(setup.delta, folder.path(name))
        return _given_record(config, disruption, seed, {"delta": setup.delta.base}), setup.delta
    assert config.edit.method is not None
    method = method_of(config.edit.method, config.edit.options)
    if (folder.has(part) and folder.has(name)) or reuse.take(made, folder, method, seed):
        return disk.load_json(folder.path(part)), load_delta(folder.path(name), place)
    problem = Problem(
        setup.original,
        models.sites(setup.original, config.edit.sites, config.edit.layers),  # type: ignore[arg-type]
        setup.corpora["forget"], setup.corpora.get("retain"), setup.corpora.get("reference"),
        seed=seed, precision=config.model.precision, max_tokens=config.max_tokens, keep=False,  # type: ignore[arg-type]
        site_batch=config.edit.site_batch, never=setup.never,
        referee=_asked(setup, shared) if method.refereed else None,
    )  # fmt: skip
    disk.check_room(folder.folder, 4 * sum(s.d_out * s.d_in for s in problem.sites), f"the delta of {method.name}")
    budget = config.budget.resolved(lambda: setup.never_level(problem.forget))
    result = run_edit(problem, method, meter, budget, on_point=progress)
    progress(f"{method.name}: far KL {result.disruption.kl.value:.3g} of {budget.kl:g}; {result.stop}")
    record = _edit_record(method, result, seed)
    folder.save_frame(trace, result.trace.to_dataframe().assign(seed=seed))
    save_delta(result.delta, folder.path(name))
    folder.save_json(part, record)
    folder.event("edited", seed=seed, stop=result.stop, kl=result.disruption.kl.value)
    return record, result.delta


def _asked(setup: Setup, shared: Shared) -> Referee | None:
    """Whom an edit asks which of the model's answers are bad: the referee of samples. The line of one that was made
    here is set anew, on text of the edit's own: no held-out text has a say in an edit."""
    referee, retain = shared.watcher.referee, setup.corpora.get("retain")
    if isinstance(referee, RatioReferee) and retain is not None:
        return referee.calibrated(setup.corpora["forget"], retain)
    return referee


def _same(a: Delta, b: Delta) -> bool:
    return a.updates.keys() == b.updates.keys() and all(_alike(u, b.updates[n]) for n, u in a.updates.items())


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(parallel.whole((a == b).all()))


def _edit_record(method: Method, result: EditResult, seed: int) -> dict[str, Any]:
    worst = result.certificate.worst
    site = next((n for n, v in result.certificate.escape.items() if v == worst), None)
    return {
        "seed": seed, "method": result.method, "options": method.options(),
        "summary": type(method).summary(), "source": method.source, "stop": result.stop,
        "binding": result.binding,
        "disruption": _disruption_record(result.disruption),
        "budget": dataclasses.asdict(result.budget),
        "within_budget": result.disruption.used(result.budget) <= 1.0,
        "certificate": {"promise": result.certificate.promise, "worst": worst, "site": site},
        "refereed": method.refereed,
        "found": dict(result.found),
        "cost": dataclasses.asdict(result.cost),
    }  # fmt: skip


def _given_record(config: RunConfig, disruption: Disruption, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Held to a budget only where there is one: a checkpoint has none unless it is set."""
    limits = config.budget
    budget = {"kl": limits.kl, "near_ce": limits.near_ce, "forget": None}  # where an edit ends; this one has ended
    measured, found = _disruption_record(disruption), {}
    for key in ("kl", "near_ce"):
        limit, used = budget[key], measured[key]
        if limit is not None and used is not None:  # what is no number is not within a budget
            found[key] = used / limit if math.isfinite(used) else math.inf
    return {
        "seed": seed, "method": next(iter(options)), "options": options,
        "summary": "an edit made elsewhere, judged as it is", "source": "", "stop": "given",
        "binding": max(found, key=lambda key: found[key], default=None), "disruption": measured,
        "budget": budget, "within_budget": all(used <= 1 for used in found.values()) if found else None,
        "certificate": {"promise": "", "worst": None, "site": None},
        "cost": {"seconds": 0.0, "tokens": 0, "flops": 0.0, "peak_bytes": 0},
    }  # fmt: skip


def _disruption_record(d: Any) -> dict[str, Any]:
    near = d.near_ce
    return {
        "kl": d.kl.value, "kl_stderr": d.kl.stderr, "kl_n": d.kl.n, "ce": d.ce.value,
        "near_ce": near and near.value, "near_ce_stderr": near and near.stderr,
        "near_ce_n": near and near.n,
    }  # fmt: skip


def _arms(config: RunConfig, setup: Setup, watcher: Watcher, delta: Delta | None) -> list[ArmState]:
    edited = (
        ArmState("edited", setup.checkpoint)
        if setup.checkpoint is not None
        else ArmState("edited", setup.original, delta)
    )
    arms = [edited, ArmState("original", setup.original)]
    if setup.never is not None:
        arms.append(ArmState("never", setup.never))
        if config.controls.matched and delta is not None:
            matched = _matched(setup, watcher, delta)
            twin = "edited" if matched is delta else None
            arms.append(ArmState("matched", setup.original, matched, twin))
    return arms


def _matched(setup: Setup, watcher: Watcher, delta: Delta) -> Delta:
    """The same delta scaled back until the behaviour starts at the never level, so that a head start is not
    mistaken for robustness. The edit itself where it already starts at or above it."""

    def level(model: Any) -> float:
        return float(watcher.heldout.measure(model, precision=watcher.precision)["completion"].mean())

    target = level(setup.never)

    def at(scale: float) -> float:
        with editing.edited(setup.original, delta, scale):
            return level(setup.original)

    low, high = 0.0, 1.0
    if at(high) >= target:
        return delta
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > target else (low, middle)
    return high * delta


def _capability_stage(setup: Setup, shared: Shared, edited: ArmState, folder: store.RunFolder, seed: int) -> None:
    """What the edited model answers right on the panel, beside the controls; nothing where no panel is given."""
    part = f"parts/capability-seed{seed}.parquet"
    if shared.panel is None or folder.has(part):
        return
    shared.progress(f"general capability (seed {seed})")
    with edited.entered(training=False) as model:
        right = shared.panel.right(model, precision=setup.config.model.precision)  # type: ignore[arg-type]
    folder.save_frame(part, shared.panel.to_dataframe({edited.name: right, **shared.answered}, seed))


def _evidence_stage(config: RunConfig, setup: Setup, arena: Arena, folder: store.RunFolder) -> None:
    part = f"parts/evidence-seed{arena.seed}"
    if folder.has(f"{part}.json"):
        return
    arena.progress(f"evidence (seed {arena.seed})")
    texts: dict[str, list[str]] = {}
    for row in disk.load_lines(folder.path(f"parts/curves-seed{arena.seed}-none-samples.jsonl")):
        if not row["greedy"] and row["split"] == "heldout":
            texts.setdefault(row["arm"], []).append(row["completion"])
    wanted = config.evidence
    arms = [a for a in arena.arms if a.name != "matched"]
    if "tendency" in evidence.check_names(wanted.measures):
        arms += setup.benign(arena.seed, arena.progress)
    found = evidence.collect(
        arms, setup.corpora,
        measures=wanted.measures, sites=config.edit.sites, attack_rate=wanted.attack_rate,
        attack_steps=wanted.attack_steps, items=wanted.items, random_lines=wanted.random_lines, samples=texts or None,
        seed=arena.seed, max_tokens=config.max_tokens, progress=arena.progress,
    )  # fmt: skip
    records = [{**r, "seed": arena.seed} for r in evidence.to_records(found)]
    folder.save_frame(f"{part}.parquet", evidence.to_dataframe(found).assign(seed=arena.seed))
    folder.save_json(f"{part}.json", {"records": records})
