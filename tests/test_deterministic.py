"""``--deterministic``: torch is told so while the run goes on, the record says so, and afterwards all is as before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from user_files import Files, hooklearn

from hooklearn import disk, store
from hooklearn.config import parse, same_config
from hooklearn.deltas import load_delta
from hooklearn.determinism import WORKSPACE, deterministic
from hooklearn.running import setting
from hooklearn.types import NumericalError


def told() -> tuple[bool, bool, str | None]:
    return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = told()
    yield
    assert told() == before


@pytest.mark.parametrize("given", [None, "nonsense", ":16:8"])
def test_inside_all_that_cuda_needs_is_set(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of the user's that is deterministic is kept; what was there comes back, also after an error."""
    if given is not None:
        monkeypatch.setenv(WORKSPACE, given)
    with pytest.raises(ZeroDivisionError), deterministic(True):
        assert told() == (True, False, given if given == ":16:8" else ":4096:8")
        raise ZeroDivisionError
    assert told() == (False, False, given)
    monkeypatch.delenv(WORKSPACE, raising=False)


def test_unless_it_is_wanted() -> None:
    with deterministic(False):
        assert told() == (False, False, None)


def test_a_kernel_that_has_no_deterministic_form_ends_the_run() -> None:
    """The control: outside, the same line is computed."""

    def put() -> torch.Tensor:
        return torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))

    assert put().shape == (3,)
    with (
        pytest.raises(NumericalError, match="deterministic: put_ does not have a deterministic implementation"),
        deterministic(True),
    ):
        put()


@pytest.fixture
def short(files: Files) -> Files:
    files.config |= {
        "edit": {"method": "gradient_ascent", "sites": "mlp.out"}, "attacks": [], "locate": {"enabled": False},
        "behaviour": {"samples": 0},
    }  # fmt: skip
    return files


def test_a_run_is_recorded_as_what_it_was(short: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the same bits, while torch was told to; the record and its command say so. Without the flag: not."""
    seen, load = [], setting.Setup.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(told())
        return load(*args, **kwargs)

    monkeypatch.setattr(setting.Setup, "load", staticmethod(watched))
    path = short.save()
    words = {"a": ["--deterministic"], "b": ["--deterministic"], "c": []}
    records, deltas = {}, {}
    for name, flags in words.items():
        done = hooklearn("run", path, "--out", tmp_path / name, "--no-report", "-q", *flags)
        assert done.exit_code == 0, done.stderr
        records[name] = store.open_run(tmp_path / name)
        deltas[name] = load_delta(tmp_path / name / "delta-seed0.safetensors")
    assert seen == [(True, False, ":4096:8")] * 2 + [(False, False, None)]
    assert records["a"]["config"]["deterministic"] and "deterministic=true" in records["a"]["command"]
    assert records["a"]["environment"]["deterministic"] == {"algorithms": True, "cublas_workspace": ":4096:8"}
    assert records["c"]["environment"]["deterministic"] == {"algorithms": False, "cublas_workspace": None}
    assert (deltas["a"] - deltas["b"]).norm() == 0
    resumed = hooklearn("run", path, "--out", tmp_path / "a", "--resume", "--no-report", "-q")
    assert resumed.exit_code == 2 and "another config" in resumed.stderr, "half of a run cannot be deterministic"


def test_sweep_and_audit_take_it_too(short: Files, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(json.dumps({"base": str(short.save()), "methods": ["gradient_ascent"]}))
    done = hooklearn("sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "s", "--deterministic", "-q")
    assert done.exit_code == 0, done.stderr
    record = disk.load_json(tmp_path / "s" / "sweep.json")
    assert record["command"].endswith("--deterministic")
    cell = store.open_run(tmp_path / "s" / record["cells"][0]["folder"])
    assert cell["environment"]["deterministic"]["algorithms"]
    models = [short.folder / "my-model", short.folder / "base-model"]
    texts = {"forget": "forget", "heldout": "heldout", "disruption": "prose", "unrelated": "unrelated"}
    words: list[Any] = [
        "audit",
        "--original",
        models[0],
        "--edited",
        models[1],
        "--deterministic",
        "--dry-run",
        "--json",
    ]
    for role, name in texts.items():
        words += [f"--{role}", short.folder / f"{name}.jsonl"]
    done = hooklearn(*words)
    assert done.exit_code == 0 and json.loads(done.stdout)["config"]["deterministic"], done.stderr


def test_a_record_from_before_there_was_the_key_is_still_the_same_config(short: Files) -> None:
    now = parse(short.config).model_dump(mode="json")
    earlier = {k: v for k, v in now.items() if k != "deterministic"}
    assert same_config(earlier, now) and not same_config(earlier, now | {"deterministic": True})
    assert not same_config(earlier, now | {"max_tokens": 512}) and not same_config(None, now)
