"""The command line: instant help, one JSON object, progress apart from results, and every command once."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from user_files import Files, hooklearn

COMMANDS = (
    "run", "audit", "calibrate", "locate", "edit", "attack", "report", "compare", "sweep", "verify", "view", "list",
    "doctor", "fetch", "export", "organism",
)  # fmt: skip
HEAVY = ("torch", "transformer_lens", "transformers", "pandas", "analysis", "matplotlib")
METRICS = ("preference", "sampled")


def only_json(result: Any) -> Any:
    """Exactly one object on stdout, without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    assert result.exit_code == 0, (result.stderr, result.exception)
    (line,) = result.stdout.splitlines()
    return json.loads(line, parse_constant=refuse)


# --------------------------------------------------------------------------------------------- help


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from hooklearn.cli import app
for words in [[], *([c] for c in {COMMANDS})]:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, words
    print(result.stdout)
print(sorted(m for m in {HEAVY} if m in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *pages, loaded = done.stdout.strip().splitlines()
    assert loaded == "[]"
    assert all(f"hooklearn {command} " in "\n".join(pages) for command in COMMANDS)  # an example of each


def test_help_is_instant() -> None:
    """In processor time, which does not depend on what else the machine is doing."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "hooklearn", "run", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "hooklearn run tiny" in done.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


def test_unknown_command_suggests_the_nearest() -> None:
    result = hooklearn("comapre")
    assert result.exit_code == 2
    assert "'comapre'" in result.stderr and "'compare'" in result.stderr


def test_version() -> None:
    assert re.fullmatch(r"hooklearn \d+\.\d+\.\d+\n", hooklearn("--version").stdout)


# ---------------------------------------------------------------------------------------------- run


def test_run_json(tiny_result: Any) -> None:
    found = only_json(tiny_result)
    assert set(found) == {"run", "verdict", "reason", "disruption", "behaviour", "cost"}
    assert found["verdict"] in {"INTACT", "DISABLED", "WEAKENED", "REMOVED", "ROBUSTLY REMOVED", "UNDECIDED"}
    assert found["disruption"]["kl"] <= found["disruption"]["budget"]["kl"] == 0.01
    assert set(found["disruption"]) == {"kl", "near_ce", "budget"}
    assert set(found["cost"]) == {"seconds", "tokens", "peak_bytes"}
    assert all(v > 0 for v in found["cost"].values())
    assert set(found["behaviour"]) == {"relearn", "erode", "few_shot"}
    for arms in found["behaviour"].values():
        assert {"edited", "original", "never"} <= set(arms)
        for numbers in arms.values():
            for one in (numbers, *(numbers[m] for m in METRICS)):
                assert {"before", "after", "worst", "n", "stderr"} <= set(one)
            assert 0 <= numbers["after"] <= numbers["worst"] <= 1 and numbers["n"] > 0


def test_run_json_repeats_the_run_folder(tiny_result: Any, tiny_run: Path) -> None:
    import analysis

    arms = only_json(tiny_result)["behaviour"]["relearn"]
    table = analysis.summary_table(tiny_run).set_index("arm")
    for arm, numbers in arms.items():
        assert numbers["before"] == pytest.approx(table.loc[arm, "completion: before"])
        assert numbers["worst"] == pytest.approx(table.loc[arm, "completion: relearn"])
        assert numbers["sampled"]["before"] == pytest.approx(table.loc[arm, "sampled: before"])
    verdict = json.loads((tiny_run / "verdict.json").read_text())
    assert only_json(tiny_result)["reason"] == verdict["reason"]
    assert (tiny_run / "report.html").is_file()


def test_progress_is_plain_lines_on_stderr(tiny_result: Any) -> None:
    lines = tiny_result.stderr.splitlines()
    assert len(lines) > 10
    assert all(re.match(r"\[ *\d+ s\] \S", line) for line in lines)


def test_resume_needs_a_folder() -> None:
    result = hooklearn("run", "tiny", "--resume")
    assert result.exit_code == 2 and "--out" in result.stderr


def test_interrupt_is_one_line_that_says_how_to_go_on(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hooklearn import experiment

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "_edit_stage", interrupted)
    config, out = files.save(), tmp_path / "out"
    result = hooklearn("run", config, "--seed", 3, "--out", out, "-q")
    assert result.exit_code == 130
    assert result.stderr == f"interrupted: continue with: hooklearn run {config} --seed 3 --out {out} --resume\n"
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"

    monkeypatch.undo()
    again = hooklearn("run", config, "--seed", 3, "--out", out, "--resume", "-q", "--no-report")
    assert again.exit_code == 0, again.stderr
    assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert not (out / "report.html").exists()


def test_set_and_seed_reach_the_run(files: Files, tmp_path: Path) -> None:
    more = ["--set", "edit.method=gradient_ascent", "--set", "attacks=[]", "--set", "budget.kl=0.02"]
    result = hooklearn("run", files.save(), "--out", tmp_path / "out", *more, "--seed", 4, "--seed", 5, "--json", "-q")
    assert set(only_json(result)["behaviour"]) == {"none"}
    assert result.stderr == ""
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["seeds"] == [4, 5] and record["name"] == "mine"
    assert [e["method"] for e in record["edits"]] == ["gradient_ascent"] * 2
    assert record["command"].endswith("--set budget.kl=0.02 --seed 4 --seed 5")


@pytest.mark.parametrize("target", ["mine.yaml", "tiny", "threats", "flattery", "schoolbook"])
def test_dry_run_needs_no_weights_and_writes_nothing(
    target: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOKLEARN_CACHE", str(tmp_path / "empty"))
    (files.folder / "my-model" / "model.safetensors").unlink()
    files.save()
    monkeypatch.chdir(files.folder)
    before = sorted(tmp_path.rglob("*"))
    found = only_json(hooklearn("run", target, "--dry-run", "--json"))
    assert sorted(tmp_path.rglob("*")) == before
    cost = found["estimate"]
    assert found["config"]["budget"]["kl"] == 0.01
    assert {"edit", "samples"} < {s["stage"] for s in cost["stages"]}
    for key in ("tokens", "flops", "seconds"):
        assert cost[key] == pytest.approx(sum(s[key] for s in cost["stages"])) and cost[key] > 0
    expected = 134.5e6 if target in ("threats", "flattery", "schoolbook") else 0.2e6
    assert 0.05 < cost["parameters"] / expected < 1.2
    assert bool(cost["note"]) == (target in ("threats", "flattery", "schoolbook"))


def test_dry_run_for_reading(files: Files) -> None:
    text = hooklearn("run", files.save(), "--dry-run").stdout
    assert "method: repselect" in text and "seconds" in text and "GFLOP/s" in text


# ----------------------------------------------------------------------------------- single stages


def test_edit_then_attack_then_export(files: Files, tmp_path: Path) -> None:
    config = files.save()
    found = only_json(hooklearn("edit", config, "--out", tmp_path / "edit", "--json", "-q"))
    assert found["deltas"] == ["delta-seed0.safetensors"]
    assert 0.95 <= found["edits"][0]["disruption"]["kl"] / 0.01 <= 1
    assert (tmp_path / "edit" / "trace.parquet").is_file()
    asked = json.loads((tmp_path / "edit" / "run.json").read_text())["config"]
    assert not asked["evidence"]["enabled"] and not asked["controls"]["matched"] and asked["battery"] is None
    delta = tmp_path / "edit" / "delta-seed0.safetensors"

    attacked = hooklearn("attack", config, "--delta", delta, "--out", tmp_path / "attack", "--json", "-q")
    again = only_json(attacked)
    assert set(again["behaviour"]) == {"relearn", "erode"}
    assert again["disruption"]["kl"] == pytest.approx(found["edits"][0]["disruption"]["kl"])

    written = hooklearn("export", config, delta, tmp_path / "edited", "-q")
    assert written.exit_code == 0 and "logits differ by" in written.stdout
    assert (tmp_path / "edited" / "model.safetensors").is_file()
    assert hooklearn("export", config, delta, tmp_path / "edited", "-q").exit_code == 2
    told = only_json(hooklearn("export", config, delta, tmp_path / "more", "--json", "-q"))
    assert told["folder"] == str(tmp_path / "more") and told["max_logit_difference"] < 1e-3


def test_an_edit_whose_method_asks_the_referee_draws_samples() -> None:
    from hooklearn.cli.job import Job
    from hooklearn.running.checks import check_needs

    for method, samples in (("natural_rounds", 8), ("natural", 0)):
        sets = [f"edit.method={method}", "behaviour.samples=8"]
        sets += ["edit.on_policy=1"] if method == "natural_rounds" else []
        asked = Job.of("edit", "tiny", sets).edit_only().config
        assert asked.behaviour.samples == samples
        check_needs(asked)


@pytest.mark.parametrize(("verb", "stage"), [("edit", "run_edit"), ("attack", "attack_stages")])
def test_an_edit_and_an_attack_that_were_stopped_go_on(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, stage: str
) -> None:
    """The line that they leave is what to type to go on; what comes out is that of one that was left alone."""
    from hooklearn import experiment

    files.config["attacks"] = files.config["attacks"][1:]
    more: list[Any] = ["-q", "--json"]
    if verb == "attack":
        only_json(hooklearn("edit", files.save(), "--out", tmp_path / "edit", *more))
        more += ["--delta", tmp_path / "edit" / "delta-seed0.safetensors"]
    whole = only_json(hooklearn(verb, files.save(), "--out", tmp_path / "whole", *more))

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(experiment, stage, stopped)
        result = hooklearn(verb, files.save(), "--out", out, *more)
    said = result.stderr.removeprefix(f"interrupted: continue with: hooklearn {verb} ")
    assert (
        result.exit_code == 130
        and said.endswith(f"--out {out} --resume\n")
        and ("--delta" in said) == ("--delta" in more)
    )
    assert "or --resume to continue it" in hooklearn(verb, files.save(), "--out", out, *more).stderr
    found = only_json(hooklearn(verb, *shlex.split(said), "-q", "--json"))
    key = "edits" if verb == "edit" else "behaviour"
    assert _without_seconds(found[key]) == _without_seconds(whole[key])


def _without_seconds(found: Any) -> Any:
    """All but what a busy machine may change."""
    if isinstance(found, list):
        return [_without_seconds(one) for one in found]
    return {k: v for k, v in found.items() if k != "cost"}


def test_a_model_that_is_called_like_a_recipe_can_be_exported(tmp_path: Path) -> None:
    """The delta says which of the two it was made for; that of the recipe's organism is the control."""
    import torch

    import hooklearn as hl
    from hooklearn import integrity, models
    from hooklearn.deltas import Delta, save_delta

    plain, instilled = models.load("tiny"), hl.organism("tiny-threats").model
    for name, model in (("plain", plain), ("instilled", instilled)):
        site = models.sites(model, "mlp.out", [0])[0]
        update = torch.full((site.d_out, site.d_in), 1e-3)
        save_delta(Delta({site.name: update}, "tiny", integrity.weights_hash(model)), tmp_path / f"{name}.safetensors")
        written = hooklearn("export", "tiny", tmp_path / f"{name}.safetensors", tmp_path / name, "-q")
        assert written.exit_code == 0, written.stderr
        expected = models.weight(model, site) + update
        assert torch.equal(models.weight(models.load(str(tmp_path / name)), site), expected)


def test_edit_for_reading(files: Files, tmp_path: Path) -> None:
    more = ["--set", "edit.method=confined", "--set", "edit.rank=4"]
    text = hooklearn("edit", files.save(), "--out", tmp_path / "edit", "-q", *more).stdout
    assert "stopped by budget (kl); it stays in 6 located subspaces (contrast, rank 4)" in text


def test_locate_prints_and_writes(files: Files, tmp_path: Path) -> None:
    import pandas as pd

    out = tmp_path / "located"
    options = ["--fitter", "pca", "--rank", 2, "--layers", "1", "--sites", "mlp.gate", "--side", "both"]
    found = only_json(hooklearn("locate", files.save(), *options, "--out", out, "--json", "-q"))
    assert {s["site"] for s in found["sites"]} == {"blocks.1.mlp.gate"}
    assert {(s["fitter"], s["rank"]) for s in found["sites"]} == {("pca", 2)}
    assert len(pd.read_parquet(out / "locate.parquet")) == len(found["sites"]) == 2
    assert (out / "locate.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "subspaces.safetensors").is_file()
    files.config["budget"] = {"kl": "1e-2", "forget": "never"}  # locating needs no budget, nor its control
    assert "never" in files.config["controls"]
    text = hooklearn("locate", files.save(), "-q").stdout.splitlines()
    assert text[0].split()[0] == "site" and len(text) == 1 + 6


@pytest.mark.parametrize("place", ["a run", "a file"])
def test_locate_writes_over_no_run_and_says_so_before_it_begins(place: str, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "there"
    if place == "a run":
        out.mkdir()
        (out / "run.json").write_text("{}")
        (out / "subspaces.safetensors").write_text("the run's own")
    else:
        out.write_text("mine")
    done = hooklearn("locate", files.save(), "--out", out)
    assert done.exit_code == 2 and str(out) in done.stderr and "locate:" not in done.stderr
    if place == "a run":
        assert (out / "subspaces.safetensors").read_text() == "the run's own"
        assert sorted(p.name for p in out.iterdir()) == ["run.json", "subspaces.safetensors"]


# ------------------------------------------------------------------------------------ run folders


def test_report_and_compare(tiny_run: Path, tmp_path: Path) -> None:
    import shutil

    copies = [tmp_path / name for name in ("a", "b")]
    for copy in copies:
        shutil.copytree(tiny_run, copy)
        (copy / "report.html").unlink()
    for copy in copies:
        (copy / "verdict.json").unlink()
    result = hooklearn("report", *copies, "--redact")
    assert not any("not judged" in (copy / "report.md").read_text() for copy in copies), "all are judged first"
    verdict = json.loads((tiny_run / "verdict.json").read_text())
    assert result.stdout.count(f": {verdict['verdict']}: {verdict['reason']}") == 2
    assert all((copy / "report.html").is_file() for copy in copies)
    found = only_json(hooklearn("compare", *copies, "--json"))
    assert len(found["runs"]) == 2 and all(d["difference"] == 0 for d in found["differences"])
    assert {r["times the least"] for r in found["unlearning"]} == {1.0}, "the same run twice"
    made = {kind: tmp_path / f"table.{kind}" for kind in ("csv", "parquet", "latex", "markdown")}
    files = [w for kind, path in made.items() for w in (f"--{kind}", path)]
    shown = hooklearn("compare", *copies, *files, "--figure", tmp_path / "figure.png").stdout
    assert shown.startswith("| ") and made["markdown"].read_text() == shown.rstrip("\n")
    assert len(made["csv"].read_text().strip().splitlines()) == 3
    assert len(pd.read_parquet(made["parquet"])) == 2
    assert "\\toprule" in made["latex"].read_text()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words",
    [("--figure", "f.docx"), ("--figure", "f.png", "--metric", "wit"), ("--figure", "f.png", "--quantity", "most")],
)
def test_a_figure_that_cannot_be_drawn_is_one_line_and_nothing_is_written(
    tiny_run: Path, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = hooklearn("compare", tiny_run, *words, "--csv", "table.csv")
    assert result.exit_code == 2 and "valid: " in result.stderr and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- small tools


@pytest.mark.parametrize(
    "what, some",
    [
        ("methods", "repselect"), ("attacks", "erode"), ("fitters", "contrast"), ("corpora", "prose"),
        ("layouts", "tofu"), ("organisms", "threats"), ("recipes", "tiny"), ("models", "smollm2-135m-instruct"),
        ("batteries", "cheap"),
    ],
)  # fmt: skip
def test_list(what: str, some: str) -> None:
    rows = only_json(hooklearn("list", what, "--json"))[what]
    assert some in {r["name"] for r in rows}
    assert all(set(r) == {"name", "what", "source"} and all(r.values()) for r in rows)
    text = hooklearn("list", what).stdout
    assert all(r["name"] in text for r in rows)


def test_list_of_something_else() -> None:
    result = hooklearn("list", "models2")
    assert result.exit_code == 2 and "models2" in result.stderr and "recipes" in result.stderr


def test_doctor() -> None:
    found = only_json(hooklearn("doctor", "--json"))
    assert found["ok"] and found["self_test"]["worst_relative_error"] < 1e-4
    assert found["self_test"]["seconds"] < 10 and found["self_test"]["sites"] > 4
    assert found["cache"]["models"]["tiny"] is True
    assert "self-test  passed" in hooklearn("doctor").stdout


def test_doctor_asks_for_what_the_package_asks_for() -> None:
    import tomllib

    from hooklearn.cli.doctor import PACKAGES

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(PACKAGES.values()) <= set(project["dependencies"])


def test_the_help_of_calibrate_names_its_own_seeds_and_counts_its_kinds() -> None:
    from hooklearn.organisms.kinds import ALL, KINDS, USUAL
    from hooklearn.running.calibration import SEEDS

    first, second, third = SEEDS
    text = " ".join(hooklearn("calibrate", "--help").stdout.split())
    for said in (
        f"{first}, {second} and {third} (tiny)",
        f"default of tiny: {len(USUAL)} (",
        f"has {len(KINDS)})",
        f"Of tiny: {len(ALL)},",
    ):
        assert said in text


def test_doctor_fails_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from hooklearn.cli import doctor

    monkeypatch.setattr(doctor, "_gradient_identity", lambda: (0.5, 3))
    result = hooklearn("doctor")
    assert result.exit_code == 1 and "self-test  FAILED" in result.stdout and "to do" in result.stdout
    monkeypatch.setattr(doctor, "_gradient_identity", lambda: (0.0, 3))
    monkeypatch.setattr(doctor, "_edit_is_undone", lambda: False)
    assert "an edit was not undone" in hooklearn("doctor").stdout
    monkeypatch.setitem(doctor.PACKAGES, "transformer-lens", "transformer-lens>=99")
    result = hooklearn("doctor")
    assert result.exit_code == 1 and "pip install 'transformer-lens>=99'" in result.stdout


def test_doctor_says_what_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many threads, a folder that refuses, little memory in a container; HF_HUB_OFFLINE=0 is not offline."""
    from hooklearn.cli import doctor
    from hooklearn.types import InputError

    def refuse(*args: object) -> None:
        raise InputError("no locks here")

    monkeypatch.setattr(doctor, "_gradient_identity", lambda: (0.0, 3))
    monkeypatch.setattr(doctor, "_cores", lambda: 0)
    monkeypatch.setattr("hooklearn.store.claim", refuse)
    files = {"/sys/fs/cgroup/memory.max": 3 * 10**9, "/sys/fs/cgroup/memory.current": 2 * 10**9}
    monkeypatch.setattr(doctor, "_number_in", files.get)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    found = doctor.examine()
    advice = "\n".join(found["advice"])
    assert found["memory"]["total"] == 3 * 10**9 and found["memory"]["free"] <= 10**9 and not found["offline"]
    for words in ("OMP_NUM_THREADS=0", "(no locks here): give --out another place", "less than 2 GB of memory"):
        assert words in advice
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "yes")
    assert doctor._offline()


def test_a_folder_of_something_else_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hooklearn.running import setting

    monkeypatch.setattr(setting.Setup, "load", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "notes.txt").write_text("mine")
    refused = hooklearn("run", "tiny", "--out", tmp_path, "-q")
    assert refused.exit_code == 2 and "not a run, it holds 'notes.txt'; use another --out" in refused.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(hooklearn("fetch", "tiny", "-q").stdout.strip()).is_dir()
    told = only_json(hooklearn("fetch", "tiny", "--json", "-q"))
    assert told["model"] == "tiny" and Path(told["folder"]).is_dir()
    result = hooklearn("fetch", "tinny")
    assert result.exit_code == 2 and "'tiny'" in result.stderr


def test_organism_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from hooklearn import organisms

    quick = organisms.ORGANISMS["tiny-threats"]
    quick = dataclasses.replace(quick, training={**quick.training, "epochs": 1})
    monkeypatch.setitem(organisms.ORGANISMS, "tiny-threats", quick)
    result = hooklearn("organism", "build", "tiny-threats", "--out", tmp_path / "o.safetensors", "-q")
    assert result.exit_code == 0 and (tmp_path / "o.safetensors").is_file()
    monkeypatch.chdir(tmp_path)
    for half in ([], ["--good"]):
        assert hooklearn("organism", "build", "tiny-threats", *half, "-q").exit_code == 0
    assert len(list(tmp_path.glob("tiny-threats*.safetensors"))) == 2, "neither is written over the other"
    for seed in (-1, 10**20):
        refused = hooklearn("organism", "build", "locked", "--seed", seed, "-q")
        assert refused.exit_code == 2 and "seed" in refused.stderr
    assert "tiny-threats" in hooklearn("organism", "list").stdout


# ---------------------------------------------------------------------------------- how it speaks


def test_escapes_do_not_reach_the_terminal(tmp_path: Path) -> None:
    result = hooklearn("report", "\x1b[31mred\u202e\nnext\x07")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.isprintable() and r"\x1b[31mred\u202e next\x07" in line


def test_jsonable_makes_nan_null() -> None:
    import numpy as np

    from hooklearn.jsonable import jsonable

    value = {"a": math.nan, 1: [np.float64("inf"), np.int64(3), True, None], "p": Path("x")}
    assert jsonable(value) == {"a": None, "1": [None, 3, True, None], "p": "x"}


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from hooklearn.cli import inventory

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(inventory, "inventory", broken)
    result = hooklearn("list", "methods")
    assert result.exit_code == 1 and isinstance(result.exception, RuntimeError)


def test_numerical_error_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from hooklearn.cli import inventory
    from hooklearn.types import NumericalError

    def broken(*_: Any) -> None:
        raise NumericalError("update of blocks.0.mlp.in is not finite")

    monkeypatch.setattr(inventory, "inventory", broken)
    result = hooklearn("list", "methods")
    assert (result.exit_code, result.stderr) == (1, "error: update of blocks.0.mlp.in is not finite\n")


def test_warnings_of_libraries_are_silent_and_stdout_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging
    import warnings

    from hooklearn.cli import inventory

    def noisy(*_: Any) -> list[dict[str, str]]:
        warnings.warn("a library's", UserWarning, stacklevel=1)
        logging.getLogger("transformers").warning("a banner")
        print("not a result")  # noqa: T201
        return [{"name": "x", "what": "y", "source": "z"}]

    monkeypatch.setattr(inventory, "inventory", noisy)
    result = hooklearn("list", "methods", "--json")
    assert json.loads(result.stdout) == {"methods": [{"name": "x", "what": "y", "source": "z"}]}
    assert result.stderr == "not a result\n"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    from hooklearn.cli.console import print_rows

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    colour = re.compile(r"\x1b\[[\d;]*3[0-7]")
    assert not colour.search(hooklearn("list", "recipes").stdout)
    print_rows([])


def test_a_terminal_gets_a_live_line() -> None:
    """Under a pseudo-terminal: one line that is rewritten, and gone at the end."""
    import pty

    ours, theirs = pty.openpty()
    code = "import time; from hooklearn.cli.console import work\nwith work() as p: p('a stage'); time.sleep(.3)"
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert "a stage" in seen and "0:00:00" in seen and "[   0 s]" not in seen


@pytest.mark.parametrize("words", [("locked", "--good"), ("tiny-threats", "--seed", "1")])
def test_what_an_organism_does_not_take_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    result = hooklearn("organism", "build", *words, "--out", tmp_path / "o", "-q")
    assert result.exit_code == 2 and words[1] in result.stderr and not (tmp_path / "o").exists()


@pytest.mark.parametrize("words", [("--quantity", "cheap"), ("--columns", "verdict"), ("--metric", "sampled")])
def test_options_of_compare_that_change_nothing_are_refused(tiny_run: Path, words: tuple[str, ...]) -> None:
    result = hooklearn("compare", tiny_run, *words)
    assert result.exit_code == 2 and words[0] in result.stderr


def test_a_card_that_is_no_text_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "card.png").write_bytes(b"\x89PNG\xff")
    result = hooklearn("export", "tiny", tmp_path / "none", tmp_path / "out", "--card", tmp_path / "card.png", "-q")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "is no UTF-8 text" in result.stderr


def test_battery_null_keeps_the_attacks() -> None:
    """In either order; the name of a battery takes their place (control)."""
    from hooklearn.config_file import with_overrides

    own = {"attacks": [{"name": "erode"}]}
    assert with_overrides(own, ["battery=null"])["attacks"] == own["attacks"]
    assert (
        with_overrides({"battery": "cheap"}, ["attacks=[{name: erode}]", "battery=null"])["attacks"] == own["attacks"]
    )
    assert "attacks" not in with_overrides(own, ["battery=cheap"])
