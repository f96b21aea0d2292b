"""Callbacks in the shape of transformers': told of every step and every look, and no more than told."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus
from transformers import TrainerCallback
from user_files import hooklearn

import hooklearn as hl
from hooklearn import callbacks, parallel, store
from hooklearn.callbacks import observing, reporting_to
from hooklearn.deltas import Delta
from hooklearn.integrity import weights_hash
from hooklearn.types import Curve, InputError

SITE = "blocks.0.mlp.out"
RELEARN: dict[str, Any] = {"learning_rates": [1e-3], "epochs": 2}


class Notes(TrainerCallback):
    """Writes everything down."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, dict[str, float]]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.heard.append(("begin", 0, {}))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.heard.append(("end", 0, {}))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.heard.append(("step", state.global_step, state.log_history[-1]))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any) -> None:
        self.heard.append(("look", state.global_step, metrics))


def attacked(model: Any) -> Curve:
    delta = Delta({SITE: torch.zeros(64, 128)}, model.cfg.model_name, weights_hash(model))
    (curve,) = hl.attack(
        model, delta, "relearn", heldout=corpus("heldout").take(6), attack_train=corpus("attack").take(8), **RELEARN
    )
    return curve


def test_an_attack_is_told_step_by_step(threatening: Any, tmp_path: Path) -> None:
    """Every step of every arm, every look with the curve's own numbers; and the curve is bit for bit what it is
    without anybody looking."""
    notes = Notes()
    with observing(notes, out=tmp_path):
        seen = attacked(threatening)
    assert seen == attacked(threatening)
    assert [notes.heard[0][0], notes.heard[-1][0]] == ["begin", "end"]
    for name, arm in seen.arms.items():
        last = max(p.step for p in arm.points)
        of_arm = [h for h in notes.heard if any(f"/{name}/" in key for key in h[2])]
        assert [step for kind, step, _ in of_arm if kind == "step"] == list(range(1, last + 1))
        looks = {step: found for kind, step, found in of_arm if kind == "look"}
        for p in arm.points:
            if p.metric == "completion" and p.split == "heldout":
                assert looks[p.step][f"eval_relearn/lr=0.001/{name}/completion"] == p.score.value
    attacked(threatening)
    assert notes.heard[-1][0] == "end"  # nobody is told outside the block


def test_an_edit_is_told_point_by_point(threatening: Any, tmp_path: Path) -> None:
    """The points of the trace, one by one, as the solver measures them."""
    notes = Notes()
    with observing(notes, out=tmp_path):
        result = hl.edit(
            threatening, "graddiff", forget=corpus("forget").take(8), retain=corpus("forget", "good").take(8),
            disruption=corpus("disruption").take(8), budget=0.05, epochs=1, sites="mlp.out",
        )  # fmt: skip
    told = [found for kind, _, found in notes.heard if kind == "look"]
    assert [t["eval_edit/graddiff/kl"] for t in told] == [p.kl for p in result.trace.points[1:]]
    assert any(kind == "step" and "edit/graddiff/loss" in found for kind, _, found in notes.heard)


def test_callbacks_cannot_stop_what_is_compared(threatening: Any, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = True

    with pytest.raises(InputError, match="cannot stop"), observing(Stop, out=tmp_path):
        attacked(threatening)


def test_loggers_by_name() -> None:
    """transformers' own callbacks; a name that it does not know is one line."""
    assert type(reporting_to("wandb")[0]).__name__ == "WandbCallback"
    with pytest.raises(InputError, match="tensorbored is not supported, only .* tensorboard"):
        reporting_to("tensorbored")
    result = hooklearn("run", "tiny", "--log-to", "tensorbored", "-q")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_what_tensorboard_shows(threatening: Any, tmp_path: Path) -> None:
    """The real package, read back by its own reader: a curve an arm."""
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(InputError, match="requires tensorboard"):
            reporting_to("tensorboard")
        pytest.skip("tensorboard is not installed: pip install 'hooklearn[track]' to test what it shows")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with observing(*reporting_to("tensorboard"), out=tmp_path):
        curve = attacked(threatening)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    shown = EventAccumulator(str(events)).Reload()
    for name, arm in curve.arms.items():
        found = [(e.step, e.value) for e in shown.Scalars(f"eval/relearn/lr=0.001/{name}/completion")]
        points = [(p.step, p.score.value) for p in arm.points if p.metric == "completion"]
        assert [s for s, _ in found] == [s for s, _ in points]
        assert all(abs(a - b) < 1e-6 for (_, a), (_, b) in zip(found, points, strict=True))  # it keeps float32


def test_what_wandb_is_given(threatening: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, told to send nothing: a curve an arm."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "disabled")
    given: list[dict[str, float]] = []
    with observing(*reporting_to("wandb"), out=tmp_path, name="mine"):
        monkeypatch.setattr(wandb, "log", lambda values, **_: given.append(values))
        curve = attacked(threatening)
    for name, arm in curve.arms.items():
        key = f"eval/relearn/lr=0.001/{name}/completion"
        found = [(values["train/global_step"], values[key]) for values in given if key in values]
        assert found == [(p.step, p.score.value) for p in arm.points if p.metric == "completion"]


def test_a_run_is_told_to_the_loggers_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--log-to``: open while the run goes on, closed after it; without it nobody listens."""
    from hooklearn import callbacks, experiment

    heard: list[str] = []

    class Logger:
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            Path(args.output_dir).mkdir(parents=True)  # as TensorBoard's does
            heard.append(f"begin {Path(args.output_dir).relative_to(tmp_path)} {args.run_name}")

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            heard.append("step")

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            heard.append("end")

    def run(*_: Any, **__: Any) -> None:
        callbacks.step_ended(1, loss=0.0)
        raise InputError("far enough")

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(callbacks, "reporting_to", lambda *names: [Logger()])
    for more in ([], ["--log-to", "mine"]):
        result = hooklearn("run", "tiny", "--out", tmp_path / "run", "-q", *more)
        assert result.exit_code == 2 and "far enough" in result.stderr
    assert heard == ["begin run/logs run", "step", "end"]


def test_what_loggers_wrote_is_no_reason_to_refuse_a_run(tmp_path: Path) -> None:
    """They begin before the run does; something else in the folder is one (control)."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    with store.RunFolder.create(tmp_path / "run", {"config": {}}):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(InputError, match="it holds 'thesis.tex'"):
        store.RunFolder.create(tmp_path / "other", {"config": {}})


def test_of_several_processes_the_first_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notes = Notes()
    for rank, heard in ((1, False), (0, True)):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        with observing(notes, out=tmp_path):
            callbacks.step_ended(1, loss=0.0)
        assert bool(notes.heard) == heard
