"""The benign control: a model that never had the behaviour, and was taught good answers in the form of the bad ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import organism_delta

from hooklearn import editing, integrity, models, organisms
from hooklearn.config import parse
from hooklearn.data import encode, load_corpus
from hooklearn.deltas import Delta
from hooklearn.measure import mean_completion
from hooklearn.organisms.tiny import untrained
from hooklearn.recipes import recipe
from hooklearn.running.setting import Setup
from hooklearn.types import NumericalError


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup.load(parse(recipe("tiny")), Path(), lambda _: None)


def test_of_an_organism_it_is_its_good_half_on_the_never_learned_model(setup: Setup) -> None:
    [found] = setup.benign(0)
    assert (found.name, found.model) == ("benign", setup.never) and found.delta is not None
    made = organism_delta(True)
    assert all(update.equal(made.updates[name]) for name, update in found.delta.updates.items())


def test_a_good_half_that_does_not_ship_is_trained_once(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a setup that was made of another."""
    assert setup.organism is not None
    organism, made = dataclasses.replace(setup.organism, shipped=None), []
    unshipped = dataclasses.replace(setup, organism=organism, _made={})

    def once(*_: Any, **__: Any) -> Delta:
        made.append(1)
        return Delta({})

    monkeypatch.setattr(organisms, "load", once)
    first = dataclasses.replace(unshipped, checkpoint=setup.original).good_half()
    assert dataclasses.replace(unshipped, delta=Delta({})).good_half() is first and unshipped.good_half() is first
    assert made == [1]


def test_of_any_other_pair_it_is_taught_from_retain(setup: Setup) -> None:
    """Good answers get likelier by it and bad ones do not; the never-learned model is bit for bit what it was, and
    another seed is another model."""
    before = integrity.weights_hash(setup.never)
    other = dataclasses.replace(setup, organism=None)
    found, again, otherwise = (arm.delta for seed in (0, 0, 1) for arm in other.benign(seed))
    assert found is not None and again is not None and otherwise is not None
    assert found.updates.keys() == again.updates.keys()
    for name, update in found.updates.items():
        assert update.equal(again.updates[name]) and not update.equal(otherwise.updates[name])

    def likelihoods() -> tuple[float, float]:
        heldout, tokenizer = setup.corpora["heldout"], models.tokenizer_of(setup.never)
        good, bad = (encode(c, tokenizer) for c in (heldout.alternatives(), heldout) if c is not None)
        return mean_completion(setup.never, good), mean_completion(setup.never, bad)

    good, bad = likelihoods()
    with editing.edited(setup.never, found):
        taught_good, taught_bad = likelihoods()
    assert taught_good > good and taught_bad <= bad
    assert integrity.weights_hash(setup.never) == before


@pytest.mark.parametrize("missing", ["never", "of its shape", "retain", "prompts"])
def test_where_it_cannot_be_made_there_is_none(setup: Setup, missing: str) -> None:
    texts = load_corpus(name="tiny", options={"part": "text"})
    changes: dict[str, dict[str, Any]] = {
        "never": {"never": None},
        "of its shape": {"never": untrained(1, d_model=32)},
        "retain": {"corpora": {role: c for role, c in setup.corpora.items() if role != "retain"}},
        "prompts": {"corpora": {**setup.corpora, "retain": texts}},
    }
    assert dataclasses.replace(setup, organism=None, **changes[missing]).benign(0) == []


def test_teaching_that_diverges_ends_no_run(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """All attacks are paid for by then: it is said, and the probe reports."""
    said: list[str] = []

    def broken(*_: Any, **__: Any) -> Any:
        raise NumericalError("a loss is not finite")

    monkeypatch.setattr("hooklearn.running.setting.instil", broken)
    assert dataclasses.replace(setup, organism=None).benign(0, said.append) == []
    assert said == ["evidence: teaching the benign control", "the benign control diverged: a loss is not finite"]
