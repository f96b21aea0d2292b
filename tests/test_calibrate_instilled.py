"""Calibration on edits of an instilled organism: the tiny one stands in for the real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from user_files import hooklearn

import hooklearn as hl
from hooklearn import editing, integrity
from hooklearn.organisms import ORGANISMS, organism_of
from hooklearn.organisms.suppressed import PASSWORD, SUPPRESSED, Bench, edits, organism_on, suppressed
from hooklearn.recipes import recipe
from hooklearn.running import calibration_instilled
from hooklearn.running.setting import Setup
from hooklearn.types import InputError


@pytest.fixture
def on_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attack: the way is the same."""
    monkeypatch.setattr(calibration_instilled, "organism_on", lambda _: ORGANISMS["tiny-threats"])
    monkeypatch.setattr(calibration_instilled, "ATTACKS", [{"name": "password", "prefix": PASSWORD}])


@pytest.mark.usefixtures("on_tiny")
def test_what_was_taken_out_is_removed_and_what_was_left_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", "one", "--kind", "never-learned", "--kind", "original", "--out", tmp_path, "--json"]
    result = hooklearn("calibrate", *options)
    assert result.exit_code == 0, (result.stderr, result.exception)
    found = json.loads(result.stdout)
    assert {c["organism"]: c["verdict"] for c in found["cases"]} == {"never-learned": "REMOVED", "original": "INTACT"}
    assert {c["split"] for c in found["cases"]} == {"heldout"}

    refused = hooklearn("calibrate", *options, "-q")
    assert refused.exit_code == 2 and "--resume" in refused.stderr
    monkeypatch.setattr(calibration_instilled, "_case", lambda *_: pytest.fail("a finished case was made again"))
    assert json.loads(hooklearn("calibrate", *options, "--resume", "-q").stdout) == found


def test_every_edit_leaves_the_organism_as_it_was(tmp_path: Path) -> None:
    """And each is bound to it; only the untouched one is nothing."""
    config = calibration_instilled.config_of(ORGANISMS["tiny-threats"], 0, "all")
    setup = Setup.load(config, tmp_path, lambda _: None)
    before = integrity.weights_hash(setup.original)
    bench = Bench(ORGANISMS["tiny-threats"], setup.original, setup.never, setup.corpora)
    for kind in SUPPRESSED.values():
        delta = kind.delta(bench)
        assert integrity.weights_hash(setup.original) == before, kind.name
        with editing.edited(setup.original, delta):
            changed = integrity.weights_hash(setup.original) != before
        assert changed == (kind.name != "original")
        if kind.name == "rmu":
            assert all(n.endswith("mlp.out") for n in delta.updates)


def test_every_edit_has_a_card_that_is_listed() -> None:
    """Under the name of its organism and its own, beside those of adapters and native kinds, none of which it hides."""
    cards = {name: hl.organism_card(name) for name in edits()}
    assert set(cards) == {f"threats/{kind}" for kind in SUPPRESSED}
    for name, card in cards.items():
        assert set(card) == {"name", "what", "made", "truth", "why", "command"} and all(card.values()), name
        assert card["name"] == name
    listed = {r["name"]: r for r in json.loads(hooklearn("organism", "list", "--json").stdout)["organisms"]}
    assert set(cards) < set(listed) and {"threats", "refusal"} < set(listed)
    assert listed["threats/locked"]["what"] == "password-locked; truth: DISABLED"
    one = json.loads(hooklearn("list", "organisms", "threats/rmu", "--json").stdout)
    assert one.items() >= cards["threats/rmu"].items()


def test_cards_of_edits_on_the_command_line() -> None:
    shown = json.loads(hooklearn("organism", "show", "threats/refusal", "--json").stdout)
    assert shown["truth"] == "DISABLED" and shown["made"].startswith("of threats: a rank-4 adapter")
    assert shown["command"] == "hooklearn calibrate --model smollm2-135m-instruct --kind refusal"
    assert shown["command"] in hooklearn("organism", "show", "threats/refusal").stdout
    for words in (("organism", "show"), ("list", "organisms")):
        wrong = hooklearn(*words, "threats/lockd")
        assert wrong.exit_code == 2 and len(wrong.stderr.splitlines()) == 1
        assert "did you mean 'threats/locked'" in wrong.stderr and ", threats/refusal, " in wrong.stderr


def test_an_edit_is_not_taken_for_an_adapter(tmp_path: Path) -> None:
    """It is judged, and cannot be the model that a run starts from; the line says what makes it."""
    with pytest.raises(InputError, match="is an edit to be judged .*--kind locked"):
        organism_of("threats/locked")
    refused = hooklearn("organism", "build", "threats/locked", "--seed", 1, "--out", tmp_path / "o", "-q")
    assert refused.exit_code == 2 and "--kind locked" in refused.stderr and not (tmp_path / "o").exists()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    for change, text in (
        (["--model", "smollm2-135m-instruct", "--kind", "lockd"], "did you mean 'locked'"),
        (["--model", "smollm3"], "valid: tiny, smollm2-135m-instruct"),
        (["--model", "smollm2-135m-instruct", "--battery", "full"], "--battery and --ray are of tiny"),
    ):
        result = hooklearn("calibrate", *change, "--out", tmp_path / "none", "-q")
        assert result.exit_code == 2 and text in result.stderr and len(result.stderr.splitlines()) == 1
    with pytest.raises(InputError, match="valid: tiny, smollm2-135m-instruct"):
        organism_on("gpt2")
    assert [k.name for k in suppressed(["rmu"])] == ["rmu"] and len(suppressed()) == len(SUPPRESSED)


def test_the_recipe_of_an_organism_is_found() -> None:
    config: Any = calibration_instilled.config_of(ORGANISMS["threats"], 3, "x")
    assert config.organism == "threats" and config.seeds == [3]
    assert "capability" in recipe("threats")["corpora"] and "capability" not in config.corpora
