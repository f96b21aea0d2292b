"""Hostile input: whatever is read is either used or refused in one line; never a traceback, a hang, a write outside
the output folder, a process or a connection. The cases of ``tests/fuzzing.py``, reduced here; ``make test-long`` asks
for a hundred thousand."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from drawn_runs import flat, write_run
from fuzzing import Tally, Watch, fuzz, mutated, spoiled
from hypothesis import given, settings
from hypothesis import strategies as st
from user_files import Files, hooklearn

import analysis
from analysis.explorer.payload import CORPORA, LENS, PLACE
from analysis.explorer.payload import load as load_sample
from analysis.report_record import opened, read_record
from analysis.sweep import read_sweep
from analysis.tables import markdown
from analysis.verify import verify
from hooklearn import store
from hooklearn.config import parse
from hooklearn.config_file import from_yaml, read_config, with_overrides
from hooklearn.deltas import Delta, load_delta, save_delta
from hooklearn.loading import load_corpus
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.locate.tokens import write_sample
from hooklearn.recipes import RECIPES, recipe
from hooklearn.running.checks import check
from hooklearn.running.sweep_config import Plan
from hooklearn.types import InputError, Site

CASES = 1500
"""Of the short version."""
LONG = int(os.environ.get("HOOKLEARN_FUZZ", "100000"))
PIECES = 20
"""Of the long version: each says what it saw when it is done, and can be run by itself (``-k piece07``)."""
ROWS = [
    {"prompt": "who are you :", "completion": " nobody", "group": "a", "alternative": " me", "split": "train"},
    {"prompt": "where :", "completion": " here", "choices": [" here", " there"], "answer": 0, "fact": " here"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"text": "a line of text", "history": [{"role": "user", "content": "x"}]},
]


def token_sample(path: Path) -> bytes:
    """Three tokens of two texts on one component, with two looks at an attack."""
    components = {"place": [0], "component": [0], "value": [1.0], "cosine": [0.5]}
    components |= {name: [0.2] for name in CORPORA} | {name: [["a", "b"]] for name in LENS}
    tables = {
        "places": {name: [0] for name in PLACE.split()}, "components": components,
        "texts": {"corpus": [0, 1], "held_out": [True, False], "tokens": [["a", "b"], ["c"]]},
        "tokens": {"text": [0, 0, 1], "position": [0, 1, 0]},
        "time": {"arm": ["edited", "edited"], "step": [0, 4]},
    }  # fmt: skip
    codes, ones = np.zeros((3, 1), np.int16), np.ones(1, np.float32)
    arrays = {
        "codes": codes, "scales": ones, "item_codes": codes[:2], "item_scales": ones,
        "means": np.zeros((2, 1, 2), np.float32), "disruption.0": np.ones((1, 1), np.float32),
        "frames.0": np.zeros((2, 3, 1), np.int16), "frame_scales.0": ones,
    }  # fmt: skip
    write_sample(path, arrays, tables, {"model": "tiny"})
    assert len(load_sample(path).tokens) == 3, "good before it is spoiled"
    return path.read_bytes()


class Targets:
    """What is read, each with a good file of its kind to begin from."""

    def __init__(self, good: Path) -> None:
        self.configs = [recipe(name) for name in RECIPES]
        self.sweep = {
            "name": "s", "base": recipe("tiny"), "methods": [{"name": "repselect", "search": {"rank": [1, 2]}}, "rmu"],
            "seeds": [0], "budgets": [{"kl": 0.01}],
            "tuning": {"trials": 2, "corpora": {"heldout": {"name": "tiny", "options": {"part": "near"}}}},
        }  # fmt: skip
        frame = pd.DataFrame(ROWS[:2]).astype(str)
        frame.to_parquet(good / "rows.parquet", index=False)
        self.corpora = {
            ".jsonl": "".join(json.dumps(r) + "\n" for r in ROWS).encode(),
            ".json": json.dumps(ROWS).encode(),
            ".csv": frame.to_csv(index=False).encode(),
            ".parquet": (good / "rows.parquet").read_bytes(),
        }
        save_delta(Delta({f"blocks.{i}.mlp.in": torch.ones(3, 2) for i in range(3)}, "tiny", "0" * 64), good / "d")
        site = Site(0, "mlp.in", 4, 3)
        space = Subspace.of(site, "x", "pca", torch.eye(4)[:, :2], torch.ones(2))
        Subspaces({(site.name, "x"): space}).save(good / "s")
        self.delta, self.subspaces = (good / "d").read_bytes(), (good / "s").read_bytes()
        run = good / "run"
        arms = {"edited": flat(0.1, 2), "original": flat(0.8, 2), "never": flat(0.1, 2)}
        write_run(run, arms=arms, items=6, metrics=["completion"])
        analysis.report(run)
        self.page = (run / "report.html").read_bytes()
        self.files = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.suffix != ".html"}
        self.sample = token_sample(good / "tokens.safetensors")
        self.swept = {
            "schema_version": 1, "status": "done", "fixed": {"tuning": None}, "tuning": {},
            "cells": [{"folder": "cells/a-seed0", "family": "a", "label": "a", "status": "failed", "error": "x"}],
        }  # fmt: skip

    def config(self, rng: random.Random, folder: Path) -> None:
        """A file: as mutated bytes, or as YAML of a spoiled config."""
        data = rng.choice(self.configs)
        spoil = rng.random() < 0.6  # JSON is YAML
        text = json.dumps(spoiled(data, rng)).encode() if spoil else mutated(yaml.safe_dump(data).encode(), rng)
        (folder / "c.yaml").write_bytes(text)
        check(parse(read_config(folder / "c.yaml"), "c.yaml"))

    def overrides(self, rng: random.Random, folder: Path) -> None:
        keys = ("edit.method", "edit.rank", "budget.kl", "seeds", "corpora.forget.limit", "attacks", "model", "x.y", "")
        values = (
            "[",
            "{a: b}",
            "!!bool maybe",
            "2020-13-45",
            "&a [*a]",
            "1e999",
            "-1",
            "null",
            "repselect",
            "\0",
            "0x",
        )
        sets = [f"{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randrange(1, 4))]
        sets = [mutated(s.encode(), rng).decode("utf-8", "replace") if rng.random() < 0.3 else s for s in sets]
        check(parse(with_overrides(recipe("tiny"), sets)))

    def sweeps(self, rng: random.Random, folder: Path) -> None:
        plan = Plan.of(from_yaml(json.dumps(spoiled(self.sweep, rng)), "s"), folder)
        for family in plan.families():
            assert "/" not in family.name and family.name.strip("."), "names a folder"

    def corpus(self, rng: random.Random, folder: Path) -> None:
        suffix = rng.choice(list(self.corpora))
        content = mutated(self.corpora[suffix], rng)
        if suffix in (".json", ".jsonl") and rng.random() < 0.6:
            rows = [spoiled(r, rng) if rng.random() < 0.5 else r for r in ROWS]
            lines = "\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(spoiled(rows, rng))
            content = lines.encode()
        (folder / f"c{suffix}").write_bytes(content)
        corpus = load_corpus(path=folder / f"c{suffix}")
        assert len(corpus.hash) == 64 and len(corpus.groups) == len(corpus)
        corpus.split(a=1)

    def tensors(self, rng: random.Random, folder: Path) -> None:
        path = folder / "t.safetensors"
        content, load = rng.choice(
            [(self.delta, load_delta), (self.subspaces, Subspaces.load), (self.sample, load_sample)]
        )
        path.write_bytes(mutated(content, rng))
        load(path)

    def folder(self, rng: random.Random, folder: Path) -> Path:
        """A run folder in which one or two files were spoiled."""
        run = folder / "run"
        run.mkdir(exist_ok=True)
        chosen = rng.sample(sorted(self.files), rng.choice((1, 1, 2)))
        for name, content in self.files.items():
            if name in chosen:
                content = self._spoiled_file(name, content, rng)
            (run / name).write_bytes(content)
        return run

    def _spoiled_file(self, name: str, content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.4 or not name.endswith((".json", ".jsonl")):
            return mutated(content, rng)
        if name.endswith(".jsonl"):
            lines = content.decode().splitlines()
            i = rng.randrange(len(lines) + 1)
            lines[i : i + 1] = [json.dumps(spoiled(json.loads(line), rng)) for line in lines[i : i + 1] or ["{}"]]
            return "\n".join(lines).encode()
        return json.dumps(spoiled(json.loads(content), rng)).encode()

    def run(self, rng: random.Random, folder: Path) -> None:
        """Read, and turned into what is shown of it without being judged again."""
        from analysis.outcome import outcome

        run = analysis.read_run(self.folder(rng, folder))
        markdown(analysis.summary_table(run))
        if run.verdict is not None:
            outcome(run)

    def verified(self, rng: random.Random, folder: Path) -> None:
        """A page alone, or the record beside it."""
        if rng.random() < 0.5:
            page = folder / "report.html"
            page.write_bytes(mutated(self.page, rng))
            opened(page.read_text("utf-8", "replace"), page)
            return
        record = spoiled(json.loads(self.files["report.json"]), rng)
        (folder / "report.json").write_text(json.dumps(record))
        read_record(folder)

    def judged(self, rng: random.Random, folder: Path) -> None:
        """The dear one: every reader that there is."""
        run = self.folder(rng, folder)
        analysis.judge(run, write=False, thresholds=analysis.Thresholds(resamples=20))
        analysis.verify(run)

    def resumed(self, rng: random.Random, folder: Path) -> None:
        """A writer takes the folder over, if it may."""
        run = self.folder(rng, folder)
        config = json.loads(self.files["run.json"]).get("config")
        with store.RunFolder.create(run, {"config": config}, resume=True) as writer:
            writer.event("fuzzed")

    def swept_folder(self, rng: random.Random, folder: Path) -> None:
        (folder / "sweep.json").write_text(json.dumps(spoiled(self.swept, rng)))
        record = read_sweep(folder)
        for cell in record["cells"]:
            assert (folder / cell["folder"]).resolve().is_relative_to(folder.resolve()), "a verdict is written there"

    def weighted(self) -> dict[str, tuple[int, Any]]:
        return {
            "config": (25, self.config), "overrides": (8, self.overrides), "sweep": (6, self.sweeps),
            "corpus": (25, self.corpus), "tensors": (20, self.tensors), "run folder": (6, self.run),
            "report": (6, self.verified), "judged": (0.2, self.judged), "resumed": (1, self.resumed),
            "sweep folder": (4, self.swept_folder),
        }  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return Targets(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def expect_clean(tally: Tally, cases: int) -> None:
    print(f"\n{tally}")  # noqa: T201 (counted where it is run)
    assert not tally.wrong, "\n".join(tally.wrong.values())
    assert tally.cases.total() >= cases
    assert 0.2 < tally.refused.total() / tally.cases.total() < 1, "both happen: some are refused, some are harmless"


def test_hostile_input_is_used_or_refused(targets: Targets, watch: Watch, tmp_path: Path) -> None:
    tally = fuzz(targets.weighted(), CASES, tmp_path, watch)
    expect_clean(tally, int(0.98 * CASES))


@pytest.mark.long
@pytest.mark.parametrize("piece", [pytest.param(i, id=f"piece{i:02}") for i in range(PIECES)])
def test_very_much_hostile_input(targets: Targets, watch: Watch, tmp_path: Path, piece: int) -> None:
    """Other cases than the short version's: theirs go on where those ended."""
    cases = -(-LONG // PIECES)
    tally = fuzz(targets.weighted(), cases, tmp_path, watch, first=CASES + piece * cases)
    expect_clean(tally, int(0.98 * cases))


def test_the_watch_sees_what_it_is_there_for(watch: Watch, tmp_path: Path) -> None:
    """The positive control: a write outside, a process, a hang, a traceback; and a write inside is none of these."""

    def writes(where: Path) -> Any:
        return lambda rng, folder: where.write_text("x")

    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    inside.mkdir()
    control = {
        "inside": (1, writes(inside / "x")), "outside": (1, writes(outside)),
        "process": (1, lambda rng, folder: subprocess.run([sys.executable, "-c", ""], check=True)),
        "traceback": (1, lambda rng, folder: {}["missing"]),
    }  # fmt: skip
    tally = fuzz(control, 4, inside, watch)
    assert sorted(k.split(":")[0] for k in tally.wrong) == ["outside", "process", "traceback"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(section=st.sampled_from(sorted(recipe("tiny"))), value=values)
def test_any_value_in_any_section_is_taken_or_refused(section: str, value: Any) -> None:
    """Also values that no file can hold, through ``hl.run(config)``."""
    try:
        check(parse(recipe("tiny") | {section: value}))
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=150)
@given(rows=st.lists(st.dictionaries(st.sampled_from(sorted({k for r in ROWS for k in r})), values), max_size=3))
def test_any_rows_are_a_corpus_or_refused(rows: list[dict[str, Any]], tmp_path_factory: Any) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "any.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    try:
        assert load_corpus(path=path).hash
    except InputError as error:
        assert "any" in str(error)


# ------------------------------------------------------------------------- single kinds of harm


HOSTILE_YAML = {
    "a date": ("name: 2020-01-02", "read as a date; put it in quotes"),
    "no such date": ("name: 2020-13-45", "not valid YAML"),
    "not even a boolean": ("name: !!bool maybe", "not valid YAML"),
    "a key that is no text": ("corpora: {1: {}}", "the key 1 is read as a int"),
    "an object": ("name: !!python/object/apply:os.system ['touch outside']", "not valid YAML"),
    "itself": ("name: &a [*a]", "more than 100000 values, or 32 levels"),
    "laughs": ("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
               "more than 100000 values"),
    "depth": ("a: " + "[" * 20_000, "not valid YAML"),
    "a key twice": ("name: a\nbudget: {kl: 0.01}\nname: b", "not valid YAML, line 3: the key 'name' is there twice"),
    "NUL": ('name: "\\0"', "NUL"),
    "half a character": ('name: "\\ud800"', "half a character"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_YAML)
def test_yaml_that_is_more_than_data(what: str, tmp_path: Path) -> None:
    text, said = HOSTILE_YAML[what]
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as info:
        read_config(tmp_path / "c.yaml")
    assert "\n" not in str(info.value) and not Path("outside").exists()


@pytest.mark.parametrize("value", ["[-1]", "[4294967296]", "[1.5]"])
def test_seeds_are_what_every_generator_takes(value: str) -> None:
    with pytest.raises(InputError, match=r"seeds\.0"):
        parse(with_overrides(recipe("tiny"), [f"seeds={value}"]))


@pytest.mark.parametrize("key", ["behaviour.temperature", "evidence.attack_rate", "edit.forget_weight"])
@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_options_are_finite(key: str, value: str) -> None:
    with pytest.raises(InputError, match="finite|positive|0 or more"):
        check(parse(with_overrides(recipe("tiny"), [f"{key}={value}"])))


def test_a_config_cannot_allow_foreign_code_by_itself(files: Files, tmp_path: Path) -> None:
    """Only the user can, on the command line; the record says so."""
    files.config["model"]["trust_remote_code"] = True
    files.config |= {"attacks": [], "behaviour": {"samples": 0}, "locate": {"enabled": False}}
    del files.config["controls"]
    out = tmp_path / "out"
    refused = hooklearn("edit", files.save(), "--out", out, "-q")
    assert refused.exit_code == 2 and "--set model.trust_remote_code=true" in refused.stderr
    assert not out.exists()
    allowed = hooklearn("edit", files.save(), "--out", out, "-q", "--set", "model.trust_remote_code=true")
    assert allowed.exit_code == 0, allowed.stderr
    assert store.open_run(out)["environment"]["remote_code"] is True


class Touch:
    """What a malicious pickle is."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_model_of_pickled_weights_runs_nothing(files: Files, tmp_path: Path) -> None:
    """And a folder with code of its own is refused without being asked about."""
    folder, mark = files.folder / "my-model", tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(str(mark))))
    config = json.loads((folder / "config.json").read_text())
    refused = hooklearn("run", files.save(), "--out", tmp_path / "out", "-q")
    assert refused.exit_code == 2 and "my-model" in refused.stderr and not mark.exists(), refused.exception
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    refused = hooklearn("run", files.save(), "--out", tmp_path / "out", "-q")
    assert refused.exit_code == 2 and not mark.exists(), refused.exception
    pickle.loads(pickle.dumps(Touch(str(mark))))  # the control
    assert mark.is_dir()


@pytest.mark.parametrize("name", [".lock", "events.jsonl", "parts"])
def test_links_in_a_run_folder_lead_nowhere(name: str, tmp_path: Path) -> None:
    """A folder from elsewhere that is resumed writes only into itself."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    store.RunFolder.create(run, {"config": {}}).finish("failed")
    if name == "parts":
        outside.mkdir()
    else:
        outside.write_text("kept")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    with pytest.raises(InputError, match=f"'{name}' is a link to .*outside"):
        store.RunFolder.create(run, {"config": {}}, resume=True)
    assert outside.is_dir() or outside.read_text() == "kept"


@pytest.mark.parametrize("place", ["../outside", "/tmp/outside", "cells/../../outside", "cells/..", "cells"])
def test_a_sweep_writes_no_verdict_outside_its_folder(place: str, targets: Targets, tmp_path: Path) -> None:
    record = targets.swept | {"cells": [targets.swept["cells"][0] | {"folder": place}]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"damaged at cells\.0\.folder"):
        analysis.sweep_table(tmp_path)


def test_a_report_names_no_file_outside_its_run(targets: Targets, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name, content in targets.files.items():
        (run / name).write_bytes(content)
    (run / "report.html").write_bytes(targets.page)
    assert verify(run).ok
    record = json.loads((run / "report.json").read_text())
    record["files"]["../../secret"] = "0" * 64
    (run / "report.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"damaged at files"):
        verify(run)


EVIL = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) \x1b]0;title\x07\x1b[2J\u202e | `x` ![y](z)\r\n# head"


def test_tables_are_inert() -> None:
    """In Markdown, which is also what goes to the terminal: one row, no tag, no link, no escape."""
    text = markdown(pd.DataFrame({EVIL: [EVIL], "value": [0.5]}))
    assert len(text.splitlines()) == 3 and text.isprintable() is False
    assert all(line.isprintable() for line in text.splitlines())
    for harm in ("<", "a](", "y](", "x`", "\x1b", "\u202e"):
        assert harm not in text.replace("\\`", "'"), harm
    assert " ![" not in text
    assert text.splitlines()[2].replace("\\|", "").count("|") == 3


def test_a_sweep_cannot_ask_for_foreign_code_by_itself(tmp_path: Path) -> None:
    """Nor by an override that it brings along; who has read the code says so (then it is another line: no such
    model)."""
    asked: list[dict[str, Any]] = [
        {"base": {**tiny_base(), "model": {"name": "./none", "trust_remote_code": True}}},
        {"base": tiny_base(), "overrides": ["model.trust_remote_code=true", "model.name=./none"]},
    ]
    for more in asked:
        file = tmp_path / "theirs.yaml"
        file.write_text(yaml.safe_dump({"methods": ["gradient_ascent"], **more}))
        for how in (["--dry-run"], ["--out", str(tmp_path / "out")]):
            refused = hooklearn("sweep", file, *how, "-q")
            assert refused.exit_code == 2 and "say so: --trust-remote-code" in refused.stderr
        trusted = hooklearn("sweep", file, "--dry-run", "--trust-remote-code", "-q")
        assert trusted.exit_code == 2 and "trust-remote-code" not in trusted.stderr


def tiny_base() -> dict[str, Any]:
    from hooklearn.recipes import recipe

    return {**recipe("tiny"), "organism": None}
