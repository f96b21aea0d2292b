"""Wrong input: one line on stderr with the value and what would be valid, exit code 2, nothing half-written.

And the positive control: the config that every case spoils works as it stands.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from user_files import Files, hooklearn

from hooklearn import disk
from hooklearn.deltas import Delta, save_delta

Spoil = Callable[[Files, Path], list[Any]]
"""Makes the input wrong, given the files and the folder to write; returns the command line."""


LONG = "a" * 300
"""A name that no file can have."""


def config(**sections: Any) -> Spoil:
    """``hooklearn run`` with sections of the config replaced."""

    def spoil(files: Files, out: Path) -> list[Any]:
        for name, value in sections.items():
            merge = isinstance(value, dict) and isinstance(files.config.get(name), dict)
            both = {**files.config[name], **value} if merge else value
            files.config[name] = {k: v for k, v in both.items() if v is not None} if merge else both
        return ["run", files.save(), "--out", out]

    return spoil


def rows(file: str, *rows_: dict[str, Any]) -> Spoil:
    """``hooklearn run`` with a corpus replaced."""

    def spoil(files: Files, out: Path) -> list[Any]:
        files.write(file, list(rows_))
        return ["run", files.save(), "--out", out]

    return spoil


def run(*more: Any) -> Spoil:
    """``hooklearn run`` with more on the command line."""
    return lambda files, out: ["run", files.save(), "--out", out, *more]


def organism_for_a_delta(files: Files, out: Path) -> list[Any]:
    adapter = Path(__file__).parents[1] / "data" / "organisms" / "threats.safetensors"
    return ["attack", files.save(), "--delta", adapter, "--out", out]


def groups_in_both(files: Files, out: Path) -> list[Any]:
    for name, said in (("heldout", "is"), ("relearn", "was")):
        files.write(f"{name}.jsonl", [{"prompt": f"the town {said}", "completion": " there", "group": "paris"}])
    files.config["attacks"] = [{"name": "low_mi"}]
    return ["run", files.save(), "--out", out]


def nan_loss(files: Files, out: Path) -> list[Any]:
    files.config["edit"] = {"method": "graddiff", "learning_rate": 1e30}
    return ["run", files.save(), "--out", out]


def delta_of_another_model(files: Files, out: Path) -> list[Any]:
    delta = Delta({"blocks.0.mlp.gate": torch.zeros(48, 32)}, "another-model", "0" * 64)
    save_delta(delta, files.folder / "delta.safetensors")
    return ["attack", files.save(), "--delta", files.folder / "delta.safetensors", "--out", out]


def damaged_weights(files: Files, out: Path) -> list[Any]:
    weights = files.folder / "my-model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    return ["run", files.save(), "--out", out]


def damaged_line(files: Files, out: Path) -> list[Any]:
    (files.folder / "forget.jsonl").write_text('{"prompt": "w1", "completion": "w2"}\n{"prompt": \n')
    return ["run", files.save(), "--out", out]


def damaged_delta(files: Files, out: Path) -> list[Any]:
    (files.folder / "delta.safetensors").write_bytes(b"not safetensors")
    return ["attack", files.save(), "--delta", files.folder / "delta.safetensors", "--out", out]


def run_of_another_version(files: Files, out: Path) -> list[Any]:
    (files.folder / "old").mkdir()
    (files.folder / "old" / "run.json").write_text(json.dumps({"schema_version": 99, "status": "done"}))
    return ["report", files.folder / "old"]


def a_number_beyond_all_floats(files: Files, out: Path) -> list[Any]:
    """Python reads it as an integer; what computes with it comes much later."""
    record = {"schema_version": 1, "status": "done", "yardsticks": {"never": {"kl": 10**400}}}
    (files.folder / "old").mkdir()
    (files.folder / "old" / "run.json").write_text(json.dumps(record))
    return ["report", files.folder / "old"]


def a_base_too_long_for_a_file(files: Files, out: Path) -> list[Any]:
    (files.folder / "sweep.yaml").write_text(json.dumps({"base": LONG, "methods": ["gradient_ascent"]}))
    return ["sweep", files.folder / "sweep.yaml", "--out", out]


def resume_another_version(files: Files, out: Path) -> list[Any]:
    run_of_another_version(files, out)
    return ["run", files.save(), "--out", files.folder / "old", "--resume"]


def folder_below_a_file(files: Files, out: Path) -> list[Any]:
    return ["run", files.save(), "--out", files.folder / "prose.jsonl" / "run"]


def not_yaml(files: Files, out: Path) -> list[Any]:
    (files.folder / "bad.yaml").write_text("model: {name: [")
    return ["run", files.folder / "bad.yaml", "--out", out]


CHOICE = {"prompt": "w1 w2 :", "completion": " bad w3", "choices": [" bad w3", " good w4"]}
CASES: dict[str, tuple[Spoil, list[str]]] = {
    "unknown model": (
        config(model={"name": "smollm2-135m-instuct"}),
        ["'smollm2-135m-instuct'", "did you mean 'smollm2-135m-instruct'", "a Hugging Face folder"],
    ),
    "model folder without a model": (config(model={"name": "."}), ["/user'", "config.json", "valid:"]),
    "unknown device": (config(model={"device": "warp"}), ["'warp'", "valid: auto, cpu, cuda"]),
    "missing file": (config(corpora={"forget": {"path": "nowhere.jsonl"}}), ["nowhere.jsonl", "not found"]),
    "missing columns": (
        rows("forget.jsonl", {"question": "w1", "answer": "w2"}),
        ["'forget', row 0", "['answer', 'question']", '{"prompt", "completion"}', "columns:"],
    ),
    "unknown column": (
        config(corpora={"forget": {"path": "forget.jsonl", "columns": {"prompt": "promt"}}}),
        ["'promt'", "['completion', 'prompt']", "nearest: 'prompt'"],
    ),
    "empty corpus": (rows("heldout.jsonl"), ["'heldout' is empty", "heldout.jsonl"]),
    "forget is retain": (
        config(corpora={"retain": {"path": "forget.jsonl"}}),
        ["corpora.forget and corpora.retain are the same 24 rows", "forget.jsonl"],
    ),
    "no such site": (
        config(edit={"sites": "mlp.gaet"}), ["'mlp.gaet'", "did you mean 'mlp.gate'", "valid: mlp, attn, all"]
    ),
    "no such layer": (config(edit={"layers": "0-7"}), ["[0, 1, 2, 3, 4, 5, 6, 7]", "0-1"]),
    "rank above the dimension": (config(locate={"rank": 1000}), ["rank 1000", "between 1 and 32"]),
    "loss becomes NaN": (nan_loss, ["learning_rate 1e+30", "nan", "lower", "2e-05"]),
    "negative budget": (config(budget={"kl": -0.01}), ["budget.kl", "-0.01", "positive"]),
    "a near budget of no neighbours": (
        config(
            budget={"kl": 0.01, "near_ce": 0.02},
            corpora={"retain": None},
            edit={"method": "gradient_ascent", "rank": None},
        ),
        ["budget.near_ce 0.02", "corpora.near", "corpora.retain"],
    ),
    "a level above": (
        config(budget={"kl": 0.01, "forget": 0.9}), ["budget.forget 0.9 is not below", "nothing to take away"]
    ),
    "a level of no one": (
        config(budget={"kl": 0.01, "forget": "never"}, controls={"never": None}),
        ["budget.forget 'never'", "controls.never"],
    ),
    "unknown key": (config(atacks=[]), ["'atacks'", "valid:", "did you mean 'attacks'"]),
    "unknown key inside": (config(budget={"kll": 0.1}), ["'budget.kll'", "valid: kl, near_ce, forget"]),
    "unknown role": (config(corpora={"forgot": {"path": "forget.jsonl"}}), ["'corpora.forgot'", "'forget'"]),
    "unknown method": (config(edit={"method": "repselct"}), ["'repselct'", "valid:", "'repselect'"]),
    "unknown method option": (
        config(edit={"rnak": 3}), ["'repselect'", "'rnak'", "valid: rank", "did you mean 'rank'"]
    ),
    "method option of another type": (
        config(edit={"rank": "many"}), ["'repselect'", "rank", "integer", "'many'"]
    ),
    "unknown attack": (config(attacks=[{"name": "relern"}]), ["'relern'", "valid:", "'relearn'"]),
    "attack option of another type": (
        config(attacks=[{"name": "relearn", "epochs": "two"}]), ["'relearn'", "epochs", "integer", "'two'"]
    ),
    "more blocks than the model has": (
        config(attacks=[{"name": "logit_lens", "blocks": [2]}]), ["'logit_lens'", "blocks 2", "has 2 in all"]
    ),
    "a corpus taken away": (run("--set", "corpora.forget=null"), ["corpora.forget is missing", "forget, disruption"]),
    "an attack without its corpus": (
        config(attacks=[{"name": "low_mi"}], corpora={"attack_train": None}), ["'low_mi'", "corpora.attack_train"]
    ),
    "a method without its corpus": (
        config(corpora={"retain": None}, edit={"method": "npo", "rank": None}),
        ["method 'npo' needs corpora.retain, which is not given"],
    ),
    "a method without either corpus": (
        config(corpora={"retain": None}, edit={"method": "kfac", "rank": None}),
        ["'kfac' needs corpora.retain or corpora.reference"],
    ),
    "a method without its never-learned model": (
        config(organism=None, edit={"method": "oracle", "rank": None}, controls={"never": None}),
        ["'oracle' needs the weights of a model that never learned it, and none is given", "controls.never.name"],
    ),
    "a method whose never-learned model has no weights": (
        config(organism=None, edit={"method": "oracle", "rank": None}, controls={"never": {"surrogate": "permuted"}}),
        ["'oracle' needs the weights", "a surrogate has no weights; give controls.never.name, or an organism"],
    ),
    "a value where a section belongs": (config(attacks=[7]), ["attacks.0", "a section is expected", "got 7"]),
    "the same attack twice": (
        config(attacks=[{"name": "erode", "steps": 2}, {"name": "erode", "steps": 4}]),
        ["'erode' is asked for twice with lr=0.0001", "leave one out"],
    ),
    "a rate that another attack climbs to": (
        config(attacks=[{"name": "erode", "learning_rates": [1e-3], "climb": 1},
                        {"name": "erode", "learning_rates": [3e-3], "steps": 4}]),
        ["'erode' is asked for twice with lr=0.003", "leave one out"],
    ),
    "a projection of no token": (
        config(attacks=[{"name": "ablate_direction", "skip": 1000}]),
        ["skip=1000 leaves no token; the longest prompt has"],
    ),
    "samples after the end": (
        config(attacks=[{"name": "erode", "steps": 2, "sampled_at": [1, 3]}]), ["sampled_at [1, 3]", "valid: 1 to 2"]
    ),
    "samples after what the epochs give": (
        config(attacks=[{"name": "relearn", "epochs": 1, "sampled_at": [1, 999]}]),
        ["sampled_at [1, 999], and it ends after", "valid: 1 to"],
    ),
    "a look before the first step": (
        config(attacks=[{"name": "erode", "first_look": 0}]), ["first_look must be 1 or more, got 0"]
    ),
    "more demonstrations than there are": (
        config(attacks=[{"name": "few_shot", "shots": 999}]), ["999 shots asked for", "in attack_train"]
    ),
    "samples only, and none": (
        config(attacks=[{"name": "sample"}], behaviour={"samples": 0}), ["'sample' needs samples", "behaviour.samples"]
    ),
    "unknown evidence": (
        config(evidence={"enabled": True, "measures": ["patchin"]}), ["'patchin'", "valid:", "did you mean 'patching'"]
    ),
    "unknown evidence that is off": (
        config(evidence={"enabled": False, "measures": ["patchin"]}), ["'patchin'", "did you mean 'patching'"]
    ),
    "evidence that nobody asks for": (
        config(evidence={"measures": ["patching"], "items": 4}),
        ["evidence: items, measures would change nothing", "enabled: true"],
    ),
    "the same seed twice": (run("--seed", "1", "--seed", "1"), ["seeds [1, 1]", "the same one twice"]),
    "a control with other tokens": (
        config(controls={"never": {"name": "tiny"}}), ["controls.never 'tiny'", "tokens differ", "same tokenizer"]
    ),
    "an organism for a delta": (organism_for_a_delta, ["adapter of organism 'threats'", "`organism: threats`"]),
    "damaged weights": (damaged_weights, ["my-model", "deserializing", "valid:"]),
    "a damaged line": (damaged_line, ["forget.jsonl", "line 2"]),
    "unknown fitter": (config(locate={"fitter": "pcaa"}), ["'pcaa'", "valid: pca"]),
    "neither recipe nor file": (lambda *_: ["run", "tinny"], ["'tinny'", "did you mean 'tiny'"]),
    "not YAML": (not_yaml, ["bad.yaml", "not valid YAML, line 1"]),
    "an override without a value": (run("--set", "edit.rank"), ["'edit.rank'", "section.key=value"]),
    "an override of an entry that is not there": (
        run("--set", "attacks.9.steps=8"), ["'attacks.9.steps=8'", "no entry '9'", "valid: 0"]
    ),
    "an override of an entry as a whole": (
        run("--set", "attacks.0=x"), ["'0' is an entry of a list", "attacks.0.KEY=value"]
    ),
    "an override inside a number": (run("--set", "budget.kl.a=1"), ["'kl' is not a section"]),
    "a delta for another model": (delta_of_another_model, ["'another-model'", "000000000000", "my-model"]),
    "a damaged delta": (damaged_delta, ["delta.safetensors", "damaged"]),
    "a run of another version": (run_of_another_version, ["run.json", "99", "reads 1"]),
    "resuming a run of another version": (resume_another_version, ["run.json", "99", "reads 1"]),
    "a number beyond all floats": (a_number_beyond_all_floats, ["run.json", "damaged", "beyond all floats"]),
    "a name too long for a file": (lambda *_: ["run", LONG], [LONG, "neither a recipe"]),
    "a sweep's base too long for a file": (a_base_too_long_for_a_file, [LONG, "neither a recipe"]),
    "unwritable folder": (folder_below_a_file, ["prose.jsonl", "is a file", "can be written"]),
    "only special tokens": (
        rows("prose.jsonl", {"text": "</s> </s>"}), ["'prose', row 0", "</s> </s>", "only special tokens"]
    ),
    "a single choice": (
        rows("heldout.jsonl", {"prompt": "a", "completion": " b", "choices": [" b"], "answer": 0}),
        ["'heldout', row 0", "'choices' must be two or more", "[' b']"],
    ),
    "an answer that is not the completion": (
        rows("heldout.jsonl", {"prompt": "a", "completion": " b", "choices": [" c", " d"], "answer": 0}),
        ["'heldout', row 0", "'completion' is ' b'", "choice 0, ' c'"],
    ),
    "an alternative that is the completion": (
        rows("heldout.jsonl", {"prompt": "a", "completion": " b", "alternative": " b"}),
        ["'heldout', row 0", "'alternative' is the completion itself", "' b'"],
    ),
    "a conversation that the user ends": (
        rows("forget.jsonl", {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}),
        ["'forget', row 0", "said by 'user'", "end with the assistant's"],
    ),
    "a template of another name": (
        rows("forget.jsonl", {"prompt": "a", "completion": " b", "template": "chatml"}),
        ["'forget', row 0", "'chatml'", "valid: 'chat'"],
    ),
    "an unknown option of a corpus": (
        config(corpora={"unrelated": {"name": "tiny", "options": {"prt": "text"}}}),
        ["corpus 'tiny' has no option 'prt'", "valid: part, completion, n", "did you mean 'part'"],
    ),
    "no sites at all": (config(edit={"sites": []}), ["edit.sites", "none are given", "mlp, attn, all"]),
    "layers that end before they begin": (config(edit={"layers": "1-0"}), ["'1-0'", "ends before it begins"]),
    "a rank below zero": (config(edit={"rank": -3}), ["repselect: rank must be 0 or more", "-3"]),
    "facts that are not apart": (
        groups_in_both, ["'low_mi'", "1 groups are in attack_train and in heldout", "'paris'", "use relearn"]
    ),
    "a choice item without answer": (
        rows("heldout.jsonl", CHOICE), ["'heldout', row 0", "'answer'", "below 2", "None"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_one_line_and_exit_code_2(case: str, files: Files, tmp_path: Path) -> None:
    spoil, words = CASES[case]
    expect_refusal(spoil(files, tmp_path / "out"), words, tmp_path / "out")


def test_full_disk(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The big file does not fit; the small record of the failure does."""
    sync = disk.sync

    def full(handle: Any) -> None:
        if "safetensors" in handle.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(disk, "sync", full)
    words = ["subspaces.safetensors", "No space left on device"]
    expect_refusal(["run", files.save(), "--out", tmp_path / "out"], words, tmp_path / "out")


def expect_refusal(command: list[Any], words: list[str], out: Path) -> None:
    result = hooklearn(*command, "--quiet") if command[0] in ("run", "attack") else hooklearn(*command)
    assert result.exit_code == 2, (result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "Traceback" not in line
    for word in words:
        assert word in line
    if out.exists():
        record = json.loads((out / "run.json").read_text())
        assert record["status"] == "failed" and record["error"]
        assert not [p.name for p in out.rglob("*.tmp")]


@pytest.mark.parametrize("controls", [True, False])
def test_the_unspoiled_config_works(files: Files, tmp_path: Path, controls: bool) -> None:
    if not controls:
        del files.config["controls"]
    result = hooklearn("run", files.save(), "--out", tmp_path / "out")
    assert result.exit_code == 0, (result.stderr, result.exception)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert record["status"] == "done"
    assert f"{verdict['verdict']}: {verdict['reason']}" in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()
