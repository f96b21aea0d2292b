"""A sweep over Ray: the same cells, and a worker that is killed takes its own with it and no other."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from test_sweep import QUICK, cells, record
from user_files import hooklearn, make

import hooklearn as hl
from hooklearn import store
from hooklearn.running.fanout import spread
from hooklearn.types import InputError

HERE = "auto" if "RAY_ADDRESS" in os.environ else "local"
"""A cluster that is there already, or one of our own."""
VICTIM = "cells/gradient_ascent-kl0.01-seed0"


def work(n: int, folder: Path) -> None:
    """A piece: what becomes of it depends on its number."""
    (folder / str(n)).write_text(f"{os.getpid()}")
    if n == 1:
        raise InputError("one is\nwrong")
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_lost_piece_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    """An error, a killed process, and three that do well."""
    ray = pytest.importorskip("ray", reason="the extra 'scale' is not installed")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test's module
    ended: dict[int, str | None] = {}
    spread(work, [(n, tmp_path) for n in range(5)], HERE, ended.__setitem__, jobs=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == list("01234")
    assert {n for n, error in ended.items() if error is None} == {0, 3, 4}
    assert ended[1] == "one is wrong" and "died" in str(ended[2])
    assert str(os.getpid()) not in [p.read_text() for p in tmp_path.iterdir()], "nothing was done here"


def kill_writer(folder: Path) -> None:
    """Of the first run that is found in it, as soon as its lock says who that is."""
    for _ in range(60_000):
        if (folder / "run.json").exists() and (pid := (folder / ".lock").read_text().strip()) != str(os.getpid()):
            os.kill(int(pid), signal.SIGKILL)
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_worker_loses_only_its_cell(tmp_path: Path) -> None:
    """Its record says so, --resume runs what is missing, and all is as in a sweep that never left this process."""
    pytest.importorskip("ray", reason="the extra 'scale' is not installed")
    make(tmp_path)
    out = tmp_path / "out"
    killer = threading.Thread(target=kill_writer, args=(out / VICTIM,), daemon=True)
    killer.start()
    hl.sweep(QUICK, out, base=tmp_path, ray=HERE)
    killer.join(10)
    states = {c["folder"]: (c["status"], c["error"]) for c in record(out)["cells"]}
    status, error = states.pop(VICTIM)
    assert status == "failed" and "died" in error
    assert {status for status, _ in states.values()} == {"done"} and record(out)["status"] == "failed"
    assert store.open_run(out / VICTIM)["status"] == "running", "it could not say that it was killed"

    hl.sweep(QUICK, out, base=tmp_path, ray=HERE, resume=True)
    whole = hl.sweep(QUICK, tmp_path / "whole", base=tmp_path)
    assert record(out)["status"] == "done"
    for a, b in zip(cells(out), cells(whole), strict=True):
        assert (a / "items.parquet").read_bytes() == (b / "items.parquet").read_bytes()


def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, exit code 2."""
    monkeypatch.setitem(sys.modules, "ray", None)
    make(tmp_path)
    file: Any = tmp_path / "quick.yaml"
    file.write_text(yaml.safe_dump(QUICK), encoding="utf-8")
    found = hooklearn("sweep", file, "--out", tmp_path / "out", "--ray", "local", "-q")
    assert found.exit_code == 2 and found.stderr == "error: --ray needs Ray: pip install 'hooklearn[scale]'\n"


@pytest.mark.parametrize(
    ("address", "advice"), [("local", "are the cores busy"), ("10.0.0.1:6379", "valid: local, auto")]
)
def test_a_cluster_that_does_not_come_up_is_one_line(
    address: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two lines by Ray, in one by us, with what can be done."""

    def init(*_: Any, **__: Any) -> None:
        raise Exception("The current node\ntimed out during startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(InputError) as found:
        spread(work, [(0, tmp_path)], address, lambda *_: None)
    assert str(found.value).startswith(
        f"--ray {address}: Exception: The current node timed out during startup.; {advice}"
    )
    assert "\n" not in str(found.value) and not any(tmp_path.iterdir())
