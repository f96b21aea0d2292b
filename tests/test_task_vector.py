"""The reference arms: subtracting what more training adds, and going home to the model that never learned it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus, organism_delta
from editing import alike, first_update, forget_score, never_learned, problem_of

import hooklearn as hl
from hooklearn import disk, editing, integrity, models
from hooklearn.config import parse
from hooklearn.data import cycle, encode
from hooklearn.deltas import Delta, load_delta
from hooklearn.edit import method_of, run_edit
from hooklearn.edit.task_vector import Oracle, TaskVector
from hooklearn.recipes import recipe
from hooklearn.running.checks import check_needs
from hooklearn.types import Budget, InputError

SINGLE = 1e-4
"""Relative, float32: the same sums in another order."""
ROUNDED = 1e-3
"""Relative size of the rounding of weights (float32, 6e-8 of each) in a difference of some hundredths of them."""
RATE = {"learning_rate": 3e-4}
"""The default is for models a thousand times this size."""


# -------------------------------------------------------------------------------------- task vector


@pytest.mark.parametrize(("epochs", "max_steps"), [(2, None), (2, 3)])
def test_it_is_minus_what_fine_tuning_adds(threatening: Any, epochs: int, max_steps: int | None) -> None:
    """By hand: Adam on the sites alone, the mean cross-entropy of the tokens of the answer and its end; the model is
    bit for bit as before, and so is what of it may be trained. One step fewer is another vector (control)."""
    method, made = TaskVector(**RATE, epochs=epochs, max_steps=max_steps), problem_of(threatening, "mlp.out")
    before, flags = integrity.weights_hash(threatening), [p.requires_grad for p in threatening.parameters()]
    found = first_update(method, made)
    assert integrity.weights_hash(threatening) == before and made.tokens > 0
    assert [p.requires_grad for p in threatening.parameters()] == flags

    sequences = encode(corpus("forget"), models.tokenizer_of(threatening), end="turn")
    text = list(cycle(sequences, max_tokens=512, seed=0, epochs=epochs))[:max_steps]
    params = models.parameters_of(threatening, made.sites)
    with editing.restored(threatening), models.trainable(threatening, params):
        rule, was, each = torch.optim.Adam(params, lr=3e-4), [p.detach().clone() for p in params], []
        for batch in text:
            loss, n = torch.zeros(()), 0
            for s in batch.sequences:
                logp = threatening(s.ids[None])[0, :-1].log_softmax(-1)
                loss = loss - logp.gather(-1, s.ids[1:, None])[s.labels[1:]].sum()
                n += int(s.labels[1:].sum())
            rule.zero_grad()
            (loss / n).backward()
            rule.step()
            each.append({s.name: w - p.detach() for s, p, w in zip(made.sites, params, was, strict=True)})
    assert integrity.weights_hash(threatening) == before
    assert alike(found, each[-1]) < SINGLE
    assert alike(found, each[-2]) > 0.01


def test_the_vector_teaches_and_its_negation_unlearns(threatening: Any, meter: Any) -> None:
    """At the budget forget probability falls; as far the other way it rises (the control)."""
    known = forget_score(threatening)
    result = run_edit(problem_of(threatening), TaskVector(**RATE), meter, Budget(0.01))
    assert result.stop == "budget (kl)" and forget_score(threatening, result) < known - 0.01
    with editing.edited(threatening, result.delta, -1.0):
        assert forget_score(threatening) > known


def test_both_say_that_they_are_no_contestants() -> None:
    cards = Path(__file__).parent.parent / "docs" / "cards"
    for method in (TaskVector, Oracle):
        assert method.summary().startswith("Reference arm, no contestant: ")
        assert "**reference arm, no contestant**" in (cards / f"{method.name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"learning_rate": 0}, "learning_rate must be a positive number, got 0"),
        ({"epochs": 0}, "epochs and max_steps must be 1 or more, got 0 and None"),
        ({"max_steps": 0}, "epochs and max_steps must be 1 or more, got 3 and 0"),
    ],
)
def test_a_task_vector_of_nothing_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        method_of("task_vector", options)


# ------------------------------------------------------------------------------------------- oracle


def test_home_is_minus_the_adapter(threatening: Any) -> None:
    """The organism is base and LoRA: the direction is the LoRA turned round, at the given sites only, and at length 1
    the sites are those of the base (the control: before they are not)."""
    lora, made = organism_delta(False), problem_of(threatening)
    home = first_update(Oracle(), made)
    assert home.keys() == {s.name for s in made.sites}
    there = {name: update for name, update in home.items() if name in lora}
    assert there and alike(there, {name: -lora[name] for name in there}) < ROUNDED
    assert first_update(Oracle(), problem_of(threatening, "mlp.out")).keys() < home.keys()

    def off() -> float:
        pairs = [(models.weight(threatening, s), models.weight(never_learned(), s)) for s in made.sites]
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    with editing.edited(threatening, Delta(home)):
        assert off() < 1e-6
    assert off() > 1e-3


def test_the_oracle_at_the_budget(threatening: Any, meter: Any) -> None:
    """By ``hl.edit``: forget falls, and the delta is the way home times one number."""
    known = forget_score(threatening)
    result = hl.edit(
        threatening, "oracle", forget=corpus("forget"), disruption=corpus("disruption"), near=corpus("near", "good"),
        never=never_learned(), budget=0.01,
    )  # fmt: skip
    assert result.stop == "budget (kl)" and forget_score(threatening, result) < known - 0.01
    assert result.delta.cosine(Delta(first_update(Oracle(), problem_of(threatening)), "", result.delta.base_hash)) > (
        1 - 1e-6
    )


def test_a_model_that_no_method_asks_is_refused(threatening: Any) -> None:
    """It would change nothing, and look as if it had."""
    with pytest.raises(InputError, match="never would change nothing: method 'gradient_ascent' does not look at it"):
        hl.edit(
            threatening, "gradient_ascent", forget=corpus("forget"), disruption=corpus("disruption"),
            never=never_learned(),
        )  # fmt: skip


def test_an_oracle_without_an_answer_is_refused(threatening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody to go to, nowhere to go, another shape; one line each."""
    with pytest.raises(InputError, match=r"none was given; give never= \(of a run: controls.never.name, or an organ"):
        first_update(Oracle(), problem_of(threatening, never=None))
    with pytest.raises(InputError, match="has the model's own weights at all of 4 sites"):
        first_update(Oracle(), problem_of(threatening, "mlp.out", never=threatening))
    monkeypatch.setattr(integrity, "unlike", lambda *_: "blocks.0.x is [2], and [3] in the model")
    with pytest.raises(InputError, match=r"'tiny' is of another shape: blocks.0.x is \[2\]"):
        first_update(Oracle(), problem_of(threatening))


def test_a_run_hands_its_never_learned_model_over(threatening: Any, tmp_path: Path) -> None:
    """The recipe ``tiny`` with this method: the edit in the folder is the way home. Without a model that never learned
    it the run is refused before it begins; other methods are not (control)."""
    config = recipe("tiny")
    for role in config["corpora"]:
        config["corpora"][role]["limit"] = 8
    off = {"attacks": [], "locate": {"enabled": False}, "evidence": {"enabled": False}}
    config |= off | {"edit": {"method": "oracle"}, "behaviour": {"samples": 0}, "budget": {"kl": 0.01}}
    out = hl.run(config, out=tmp_path / "run")
    record = disk.load_json(out / "run.json")["edits"][0]
    assert record["method"] == "oracle" and record["within_budget"] and record["summary"].startswith("Reference arm")
    delta = load_delta(out / "delta-seed0.safetensors")
    home = Delta(first_update(Oracle(), problem_of(threatening)), delta.base, delta.base_hash)
    assert delta.cosine(home) > 1 - 1e-6

    surrogate = {"organism": None, "controls": {"never": {"surrogate": "permuted"}}}
    with pytest.raises(InputError, match="a surrogate has no weights; give controls.never.name, or an organism"):
        check_needs(parse(config | surrogate))
    check_needs(parse(config))
    check_needs(parse(config | surrogate | {"edit": {"method": "task_vector"}}))
