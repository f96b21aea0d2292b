"""What a run will cost: the work is counted by hand here, and grows as the run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hooklearn import models
from hooklearn.cli import estimate, loads, shapes
from hooklearn.cli.loads import Text, _passes
from hooklearn.cli.shapes import Shape
from hooklearn.config import parse
from hooklearn.recipes import recipe
from hooklearn.types import InputError

SPEED, BANDWIDTH = 1e11, 1e10


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same one everywhere."""
    monkeypatch.setattr(estimate, "gemm_speed", lambda *_, **__: SPEED)
    monkeypatch.setattr(estimate, "copy_speed", lambda *_, **__: BANDWIDTH)


def told(**changed: Any) -> estimate.Estimate:
    config: dict[str, Any] = recipe("tiny")
    for key, value in changed.items():
        section = config.get(key)
        config[key] = section | value if isinstance(section, dict) and isinstance(value, dict) else value
    return estimate.estimate(parse(config), Path())


def test_a_pass_is_counted_as_by_hand() -> None:
    shape = Shape(parameters=1100, blocks=1000, layers=2, width=8, inner=16, vocabulary=50)
    text = Text(tokens=100, scored=10, batches=4)
    forward = _passes("x", text, shape)
    assert forward.flops == 2 * 1000 * 100 + 2 * 50 * 8 * 10
    assert forward.traffic == loads.TRAFFIC * 2 * 8 * 100 + loads.LOGITS * 50 * 10
    assert forward.layers == 8
    trained = _passes("x", text, shape, back=True, weights=700)
    assert trained.flops == 2 * forward.flops + 2 * 700 * 100
    assert (trained.traffic, trained.layers) == (3 * forward.traffic, 3 * forward.layers)
    assert shape.sites == 3 * 2 * 8 * 16 and shape.curvature == 2 * (2 * 64 + 3 * 256)


def test_the_shape_is_the_models() -> None:
    """Read from the config alone; the control is the model with its weights."""
    shape = shapes.model_shape("tiny", Path())
    model = models.load("tiny")
    every = sum(p.numel() for p in models.all_parameters(model))
    tables = sum(p.numel() for p in models.embedding_parameters(model))
    assert (shape.parameters, shape.blocks) == (every, every - tables)
    assert shape.sites == sum(s.d_out * s.d_in for s in models.sites(model, "mlp"))


def test_a_shape_guessed_from_a_file_is_consistent() -> None:
    """12 d^2 a layer and an embedding make the parameters again (2 %: widths are whole)."""
    shape = shapes._shape_of_file(271_000_000, "a file")
    assert shape.blocks + shape.vocabulary * shape.width == shape.parameters
    assert shape.blocks == pytest.approx(12 * shape.layers * shape.width**2, rel=0.02)
    assert shape.note.startswith("a file: ")


def test_seconds_follow_from_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the machine, half the time, but for what does not depend on it."""
    before = told()
    assert before.seconds == pytest.approx(sum(s["seconds"] for s in before.stages))
    monkeypatch.setattr(estimate, "gemm_speed", lambda *_, **__: 2 * SPEED)
    monkeypatch.setattr(estimate, "copy_speed", lambda *_, **__: 2 * BANDWIDTH)
    after = told()
    assert after.flops == before.flops
    assert before.seconds / 2 < after.seconds < before.seconds


def test_moments_and_fits_are_paid_at_the_speed_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are never in bfloat16, which some machines multiply several times faster; all else is the control."""
    slow = {torch.float32: SPEED / 1e6}
    monkeypatch.setattr(estimate, "gemm_speed", lambda dtype, *_, **__: SPEED)
    before = {s["stage"]: s for s in told(model={"precision": "bfloat16"}).stages}
    monkeypatch.setattr(estimate, "gemm_speed", lambda dtype, *_, **__: slow.get(dtype, SPEED))
    after = {s["stage"]: s for s in told(model={"precision": "bfloat16"}).stages}
    slower = {stage for stage in before if after[stage]["seconds"] > before[stage]["seconds"]}
    assert slower == {"locate", "edit"}
    assert all(after[stage]["flops"] == before[stage]["flops"] for stage in before)


def test_more_of_everything_costs_more() -> None:
    """More rates, steps, seeds, samples, and fewer sites' moments at a time."""
    base = told()

    def stage(of: estimate.Estimate, name: str) -> float:
        return next(s["flops"] for s in of.stages if s["stage"] == name)

    rates = told(attacks=[{"name": "relearn", "learning_rates": [1e-4], "epochs": 8}])
    twice = told(attacks=[{"name": "relearn", "learning_rates": [1e-4, 1e-3], "epochs": 8}])
    assert stage(twice, "relearn") == pytest.approx(2 * stage(rates, "relearn"), rel=0.05)
    assert stage(told(seeds=[0, 1]), "edit") == pytest.approx(2 * stage(base, "edit"))
    assert stage(told(behaviour={"samples": 80}), "samples") > 1.5 * stage(base, "samples")
    assert told(edit={"site_batch": 1}, attacks=[]).peak_bytes < told(attacks=[]).peak_bytes


def test_an_adapter_costs_less_than_all_weights() -> None:
    """Only its own gradient is formed, of both factors of every matrix; samples cost where they are drawn."""

    def cost(stage: str, **attack: Any) -> float:
        return next(s["flops"] for s in told(attacks=[attack]).stages if s["stage"] == stage)

    erode = {"name": "erode", "learning_rates": [1e-4], "steps": 8}
    shape = shapes.model_shape("tiny", Path())
    sites = models.sites(models.load("tiny"), "all")
    assert shape.adapter(3) == sum(3 * (s.d_in + s.d_out) for s in sites)
    full, low = cost("erode", **erode), cost("erode", **erode, rank=3)
    tokens = 2 * (shape.parameters - shape.adapter(3))
    assert full > low and (full - low) % tokens == pytest.approx(0, abs=1)
    once, twice = ({"name": "quantize", "formats": ["int4", "nf4"], "sampled": f} for f in (["nf4"], ["int4", "nf4"]))
    assert cost("samples", **twice) == pytest.approx(1.5 * cost("samples", **once)), "one before any attack"


def test_each_adversary_is_a_training_pass_and_a_gradient() -> None:
    """Of the forget text; two cost twice what one adds."""

    def flops(*adversaries: str) -> float:
        found = told(edit={"method": "natural", "adversaries": list(adversaries)})
        return next(s["flops"] for s in found.stages if s["stage"] == "edit")

    none, one, two = flops(), flops("full@1e-4"), flops("full@1e-4", "lora@0.01")
    assert none < one and two - none == pytest.approx(2 * (one - none))


def test_answers_of_its_own_are_paid_in_every_round() -> None:
    """Each draw a prompt costs as much again (what the referee reads of prompts is counted once), and twice the rounds
    twice that; without any nothing is sampled in an edit (the control)."""

    def flops(draws: int, rounds: int = 6) -> float:
        edit = {"method": "natural_rounds", "rounds": rounds}
        found = told(edit=edit | ({"on_policy": draws, "new_tokens": 14} if draws else {}))
        return next(s["flops"] for s in found.stages if s["stage"] == "edit")

    none, one, two = flops(0), flops(1), flops(2)
    assert none < one and two - none == pytest.approx(2 * (one - none), rel=0.1)
    assert flops(1, 12) - flops(0, 12) == pytest.approx(2 * (one - none), rel=0.1)


def test_a_walk_in_the_retain_metric_pays_for_the_metric() -> None:
    """The curvature once, its factors in every round: more than a walk of one round and less than eight times that."""

    def flops(**edit: Any) -> float:
        found = told(edit=edit)
        return next(s["flops"] for s in found.stages if s["stage"] == "edit")

    one, eight = (flops(method="natural_rounds", rounds=n) for n in (1, 8))
    assert flops(method="natural") < one < eight < 8 * one


def test_a_teacher_and_its_pupil_are_paid() -> None:
    """UNDO at its dearest: each step of the teacher, each pass of the pupil; more than one gradient (control)."""

    def flops(method: str = "undo", **options: Any) -> float:
        config = parse(recipe("tiny") | {"edit": {"method": method} | options})
        return next(s["flops"] for s in estimate.estimate(config, Path()).stages if s["stage"] == "edit")

    steps = [flops(teacher_steps=n, epochs=1) for n in (8, 16, 24)]
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0]) and steps[1] > steps[0]
    passes = [flops(teacher_steps=8, epochs=n) for n in (1, 2, 3)]
    assert passes[2] - passes[1] == pytest.approx(passes[1] - passes[0]) and passes[1] > passes[0]
    assert flops("gradient_ascent") < steps[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that is here is measured")
def test_a_gpu_that_is_not_here_is_taken_for_a_known_card() -> None:
    """The same work and memory, at the card's speed, and the answer says whose it is."""
    here, card = told(model={"precision": "bfloat16"}), told(model={"precision": "bfloat16", "device": "cuda"})
    assert card.flops == here.flops and card.peak_bytes == here.peak_bytes and card.seconds < here.seconds
    assert "this machine now" in str(here) and "an H100, assumed" in str(card)


def test_the_speeds_are_measured() -> None:
    assert shapes.gemm_speed(torch.float32, "cpu", seconds=0.05, n=128) > 1e6
    assert shapes.copy_speed("cpu", times=2, n=2**16) > 1e6


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": {"device": "warp"}}, "'warp' is not available here"),
        ({"evidence": {"measures": ["lens"]}}, "unknown evidence 'lens'"),
        ({"locate": {"fitter": "pcaa"}}, "'pcaa'"),
        ({"attacks": [{"name": "erode"}, {"name": "erode"}]}, "'erode' is asked for twice"),
        ({"edit": {"checkpoint": "nowhere"}}, "'nowhere'"),
        ({"edit": {"layers": "2-9"}}, "are not among 0-3"),
        ({"edit": {"sites": "foo"}}, "no site 'foo'; valid: mlp, attn, all"),
        ({"edit": {"sites": ["mlp", "mlp.gaet"]}}, "no site 'mlp.gaet'; did you mean 'mlp.gate'"),
        ({"corpora": {"disruption": {"name": "tiny", "options": {"part": "text"}}}}, "may not measure disruption"),
        ({"organism": None, "controls": {"never": {"name": "nowhere"}}}, "'nowhere'"),
    ],
)
def test_what_a_run_would_refuse_is_not_priced(changed: dict[str, Any], words: str) -> None:
    """As far as it can be known without the model; the recipe as it is has a price (control)."""
    assert told().seconds > 0
    with pytest.raises(InputError, match=words):
        told(**changed)


def test_sites_that_a_model_has_are_priced() -> None:
    assert told(edit={"sites": ["mlp.gate", "blocks.1.attn.o"]}).seconds > 0
