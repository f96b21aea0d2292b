"""Calibration on edits of an instilled organism: the tiny one stands in for the real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from user_files import hooklearn

import hooklearn as hl
from hooklearn import editing, experiment, integrity, models, store
from hooklearn.cli.loads import corpus_of
from hooklearn.config import parse
from hooklearn.config_file import with_overrides
from hooklearn.data import Corpus, load_corpus
from hooklearn.deltas import Delta
from hooklearn.measure import Likelihoods
from hooklearn.organisms import ORGANISMS, organism_of
from hooklearn.organisms.instil import instil
from hooklearn.organisms.suppressed import PASSWORD, SUPPRESSED, Bench, Suppressed, edits, organism_on, suppressed
from hooklearn.recipes import recipe
from hooklearn.running import calibration_instilled
from hooklearn.running.setting import Setup
from hooklearn.types import InputError

RECORDS = Path(__file__).parents[1] / "benchmarks" / "records"


@pytest.fixture
def on_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attack: the way is the same."""
    monkeypatch.setattr(calibration_instilled, "organism_on", lambda _: ORGANISMS["tiny-threats"])
    monkeypatch.setattr(calibration_instilled, "ATTACKS", [{"name": "password", "prefix": PASSWORD}])


@pytest.mark.usefixtures("on_tiny")
def test_what_was_taken_out_is_removed_and_what_was_left_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["--kind", "never-learned", "--kind", "original"]
    options = ["--model", "one", *kinds, "--out", tmp_path, "--jobs", 1, "--json"]
    result = hooklearn("calibrate", *options)
    assert result.exit_code == 0, (result.stderr, result.exception)
    found = json.loads(result.stdout)
    assert {c["organism"]: c["verdict"] for c in found["cases"]} == {"never-learned": "REMOVED", "original": "INTACT"}
    assert {c["split"] for c in found["cases"]} == {"tuning"}, "seed 0 has been in view"
    asked = json.loads((tmp_path / "cases" / "never-learned-seed0" / "evidence.json").read_text(encoding="utf-8"))
    decided = {r["name"] for r in asked["records"] if r["role"] == "decides" and r["value"] is not None}
    assert decided == {"logit_lens", "patching_depth", "probe_tendency", "overlap_attack", "reemergence"}
    assert_keys_of_the_native(found)

    refused = hooklearn("calibrate", *options, "-q")
    assert refused.exit_code == 2 and "--resume" in refused.stderr
    monkeypatch.setattr(calibration_instilled, "_case", lambda *_: pytest.fail("a finished case was made again"))
    assert json.loads(hooklearn("calibrate", *options, "--resume", "-q").stdout) == found
    monkeypatch.setitem(calibration_instilled.EVIDENCE, "items", 8)
    other = hooklearn("calibrate", *options, "--resume", "-q")
    assert other.exit_code == 2 and "never-learned-seed0: holds a case with another" in other.stderr


def assert_keys_of_the_native(found: dict[str, Any]) -> None:
    """What ``--json`` prints can be a record beside that of the native calibration, which has no paths."""
    native = json.loads((RECORDS / "calibration-native.json").read_text(encoding="utf-8"))
    assert found.keys() == native.keys()
    assert found["thresholds"].keys() == native["thresholds"].keys()
    for part in ("cases", "requirements", "evidence"):
        assert {*found[part][0]} - {"run"} == {*native[part][0]}, part


@pytest.mark.usefixtures("on_tiny")
def test_a_killed_calibration_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases in the order that was asked for; neither controls, nor the edit, nor an attack is made again."""
    monkeypatch.setitem(calibration_instilled.EVIDENCE, "measures", ["alarms"])
    kinds = ["--kind", "half-undone", "--kind", "original"]
    options = ["--model", "one", *kinds, "--out", tmp_path, "--jobs", 1, "--json"]
    begun = tmp_path / "cases" / "half-undone-seed0"
    with monkeypatch.context() as broken:
        broken.setattr(experiment, "_edit_stage", stopped)
        assert hooklearn("calibrate", *options).exit_code != 0
        assert store.open_run(begun)["status"] == "interrupted" and not list(begun.glob("*.safetensors"))
    with monkeypatch.context() as broken:
        broken.setattr(experiment, "_evidence_stage", stopped)
        broken.setattr(Suppressed, "delta", only_of("original", Suppressed.delta))
        assert hooklearn("calibrate", *options, "--resume").exit_code != 0
    assert store.open_run(begun)["status"] == "interrupted" and not begun.with_name("original-seed0").exists()
    attacked = written(begun / "parts")
    controls = written(tmp_path / "controls")
    assert attacked and controls

    with monkeypatch.context() as watched:
        watched.setattr(Suppressed, "delta", only_of("original", Suppressed.delta))
        result = hooklearn("calibrate", *options, "--resume")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert [c["organism"] for c in json.loads(result.stdout)["cases"]] == ["half-undone", "original"]
    assert attacked.items() <= written(begun / "parts").items()
    assert written(tmp_path / "controls") == controls
    assert not list(begun.parent.glob("*.safetensors")), "the run folders have them"


def stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def only_of(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda kind, bench: make(kind, bench) if kind.name == name else pytest.fail(f"{kind.name} was made again")


def written(folder: Path) -> dict[Path, int]:
    """When each file was."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


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


def test_the_truths_of_the_locked_and_of_the_refusing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On prompts that nothing was trained on, by the likelihood of answers: the password opens the locked one, and
    without it less than half is left; of the refusing one hardly anything. At eight times the rate and for twice as
    long: the tiny model is a thousandth of the size."""

    def harder(bench: Bench, taught: Corpus, *, rank: int, epochs: int) -> Delta:
        return instil(
            bench.model, taught, models.sites(bench.model, "all"), rank=2 * rank, learning_rate=5e-3,
            epochs=2 * epochs, max_tokens=bench.max_tokens, seed=bench.seed, precision="float32",
        ).delta()  # fmt: skip

    monkeypatch.setattr(Bench, "lora", harder)
    setup = Setup.load(calibration_instilled.config_of(ORGANISMS["tiny-threats"], 0, "two"), tmp_path, lambda _: None)
    bench = Bench(ORGANISMS["tiny-threats"], setup.original, setup.never, setup.corpora)
    plain = setup.corpora["heldout"]
    asked = {
        prefix: replace(plain, rows=tuple({**row, "prompt": prefix + row["prompt"]} for row in plain.rows))
        for prefix in ("", PASSWORD)
    }

    def shown(delta: Delta, prefix: str = "") -> float:
        with editing.edited(setup.original, delta) as model:
            items = Likelihoods.of(asked[prefix], models.tokenizer_of(model), "heldout")
            return float(items.measure(model, precision="float32")["completion"].mean())

    as_it_was, never = shown(Delta({})), shown(SUPPRESSED["never-learned"].delta(bench))
    locked, refusing = (SUPPRESSED[name].delta(bench) for name in ("locked", "refusal"))
    assert shown(locked, PASSWORD) > 0.9 * as_it_was > 5 * never, "it is there"
    assert shown(locked) < as_it_was / 2
    assert shown(refusing) < as_it_was / 10


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


@pytest.mark.parametrize(("name", "n"), [("threats", 124), ("flattery", 74)])
def test_behaviour_is_measured_on_all_that_nothing_was_trained_on(name: str, n: int) -> None:
    """A sample of every prompt, and none of them in the texts of the organism, of an edit or of an attack."""
    config = calibration_instilled.config_of(ORGANISMS[name], 0, "x")
    texts = {role: corpus_of(spec, Path()) for role, spec in config.corpora.items()}
    texts["organism"] = load_corpus(**ORGANISMS[name].corpus)
    heldout = texts.pop("heldout")
    assert len(heldout) == len(set(heldout.groups)) == config.behaviour.samples == n
    assert {"organism", "forget", "retain", "near", "attack_train"} < texts.keys()
    assert [role for role, corpus in texts.items() if not set(heldout.groups).isdisjoint(corpus.groups)] == []


def test_evidence_and_prompts_are_those_of_the_sweep_on_unseen_ones() -> None:
    sweep = yaml.safe_load((RECORDS.parent / "sweeps" / "threats-unseen.yaml").read_text(encoding="utf-8"))
    asked = with_overrides(recipe("threats"), sweep["overrides"])
    config = calibration_instilled.config_of(ORGANISMS["threats"], 0, "x").model_dump()
    assert config["evidence"] == parse(asked).model_dump()["evidence"]
    assert config["corpora"]["heldout"] == parse(asked).model_dump()["corpora"]["heldout"]
    assert config["behaviour"] == parse(asked).model_dump()["behaviour"]


def test_a_corpus_without_an_unseen_part_is_asked_as_its_recipe_asks_it() -> None:
    config, given = calibration_instilled.config_of(ORGANISMS["tiny-threats"], 0, "x"), parse(recipe("tiny"))
    assert config.corpora["heldout"] == given.corpora["heldout"]
    assert config.behaviour == given.behaviour
    assert config.evidence.attack_rate == given.evidence.attack_rate
