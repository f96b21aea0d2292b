"""Killed anywhere, nothing is lost: whatever ends a run or a sweep, resumed it ends as one that was never touched.

Curves, items, samples and deltas to the bit, and the same verdict. Processes are killed at random moments (by a seed)
and inside writes; ``make test-long`` does it more often.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import organism_delta
from killing import FAULTS, NETWORK, Ending, Workers, arguments, moments
from test_experiment import contents
from test_sweep import QUICK
from user_files import make

from hooklearn import disk, store
from hooklearn.builtin import is_cached
from hooklearn.deltas import load_delta, save_delta
from hooklearn.recipes import RECIPES

CUT_DOWN = {
    **{f"corpora.{role}.limit": 8 for role in ("reference", "disruption", "heldout", "forget", "attack_train")},
    "corpora.retain.limit": 12,
    "corpora.near.limit": 6,
    "corpora.ood.limit": 4,
    "corpora.unrelated.limit": 8,
    "edit.sites": "mlp.out",
    "edit.layers": "2-3",
    "locate.rank": 2,
    "locate.tokens": 0,
    "controls.matched": True,
    "attacks": [
        {"name": "relearn", "learning_rates": [1e-3], "epochs": 1},
        {"name": "erode", "learning_rates": [1e-3], "steps": 2},
        {"name": "few_shot", "shots": 2},
    ],
    "behaviour.samples": 3,
    "behaviour.new_tokens": 4,
    "evidence.measures": ["logit_lens"],
    "evidence.attack_steps": 1,
    "max_tokens": 256,
}
"""The recipe ``tiny``, to the end in some seconds."""
RUN = ["run", "tiny", *arguments(CUT_DOWN), "--no-report", "-q"]
LONG = int(os.environ.get("HOOKLEARN_KILLS", "50"))
"""Kills of the long version."""
PIECES = 10
"""Each says what it killed when it is done, and can be run by itself (``-k piece07``)."""


@pytest.fixture(scope="module")
def hooklearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """The command line in processes that can be killed."""
    folder = tmp_path_factory.mktemp("workers")
    for good in (False, True):
        save_delta(organism_delta(good), folder / f"{good}.safetensors")
    with Workers(folder) as workers:
        yield workers


@pytest.fixture(scope="module")
def whole(hooklearn: Workers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ending]:
    """A run that nobody touched, what it took and how often it wrote."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    ending = hooklearn(*RUN, "--out", out)
    assert ending.code == 0, ending.said
    return out, ending


def measured(run: Path) -> dict[str, Any]:
    """Every measurement to the bit, and the verdict with its reasons."""
    return contents(run) | {"verdict": (run / "verdict.json").read_bytes()}


def expect_whole_files(folder: Path) -> None:
    """A file that is there under its own name can be read, at any moment."""
    for path in folder.rglob("[!.]*"):
        if path.suffix == ".json":
            disk.load_json(path)
        elif path.suffix == ".jsonl":
            disk.load_lines(path)
        elif path.suffix == ".parquet":
            disk.load_frame(path)
        elif path.suffix == ".safetensors":
            disk.load_tensors(path)


def finish(hooklearn: Workers, command: list[str], out: Path) -> None:
    ending = hooklearn(*command, "--out", out, "--resume")
    assert ending.code == 0, ending.said
    assert not list(out.rglob(".*.tmp")), "what a killed write left is cleared away"


# ------------------------------------------------------------------------------------------ SIGKILL


def killed_at(hooklearn: Workers, whole: tuple[Path, Ending], out: Path, when: float) -> bool:
    """Whether it was still alive then; afterwards resumed and compared."""
    run, ending = whole
    killed = hooklearn(*RUN, "--out", out, kill_after=when).code == -signal.SIGKILL
    if out.exists():
        expect_whole_files(out)
    finish(hooklearn, RUN, out)
    assert measured(out) == measured(run), f"killed after {when:.2f} s of {ending.seconds:.2f}"
    return killed


def test_a_run_killed_at_random_moments_ends_as_if_nobody_had_touched_it(
    hooklearn: Workers, whole: tuple[Path, Ending], tmp_path: Path
) -> None:
    """One in each third of a run; one that comes too late is a run that was resumed after its end."""
    times = moments(random.Random(0), 3, whole[1].seconds)
    kills = sum(killed_at(hooklearn, whole, tmp_path / str(i), when) for i, when in enumerate(times))
    assert kills >= 1


@pytest.mark.parametrize("fault", ["torn", "renaming"])
def test_a_run_killed_inside_a_write_ends_the_same(
    hooklearn: Workers, whole: tuple[Path, Ending], tmp_path: Path, fault: str
) -> None:
    """At a write in the last third of a run, for a whole new file or a line of events."""
    at = random.Random(fault).randrange(2 * whole[1].writes // 3, whole[1].writes)
    assert killed_inside(hooklearn, whole, tmp_path / "out", fault, at)


def killed_inside(hooklearn: Workers, whole: tuple[Path, Ending], out: Path, fault: str, at: int) -> bool:
    """Whether it was killed."""
    ending = hooklearn(*RUN, "--out", out, fault=(fault, at))
    # an append to events.jsonl is not a rename: that moment does not exist, and nothing happens
    assert ending.code == -signal.SIGKILL or (fault.startswith("renam") and ending.code == 0), ending.said
    expect_whole_files(out)
    finish(hooklearn, RUN, out)
    assert measured(out) == measured(whole[0]), f"{FAULTS[fault]}, write {at} of {whole[1].writes}"
    return ending.code == -signal.SIGKILL


@pytest.fixture(scope="module")
def swept(hooklearn: Workers, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, Ending]:
    """The command of a sweep, a folder in which nobody touched it, and what it took."""
    folder = tmp_path_factory.mktemp("user")
    make(folder)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(QUICK), encoding="utf-8")
    command, out = ["sweep", str(folder / "sweep.yaml"), "-q"], folder / "whole"
    ending = hooklearn(*command, "--out", out)
    assert ending.code == 0, ending.said
    return command, out, ending


def test_a_killed_sweep_ends_the_same(
    hooklearn: Workers, swept: tuple[list[str], Path, Ending], tmp_path: Path
) -> None:
    """Killed on its way, then resumed: every cell, and the table over all of them."""
    assert sweep_killed_at(hooklearn, swept, tmp_path / "out", [0.5 * swept[2].seconds]) == 1


def sweep_killed_at(hooklearn: Workers, swept: tuple[list[str], Path, Ending], out: Path, times: list[float]) -> int:
    command, untouched, _ = swept
    kills = 0
    for when in times:
        resume = ["--resume"] if (out / "sweep.json").exists() else []
        kills += hooklearn(*command, "--out", out, *resume, kill_after=when).code == -signal.SIGKILL
        expect_whole_files(out)
    finish(hooklearn, command, out)
    cells = sorted(p.parent.relative_to(untouched) for p in untouched.rglob("curves.parquet"))
    assert len(cells) == 3, "two cells and their controls"
    for cell in cells:
        for name in ("curves.parquet", "items.parquet", "verdict.json"):
            if (untouched / cell / name).exists():
                assert (out / cell / name).read_bytes() == (untouched / cell / name).read_bytes(), (cell, name)
        for path in (untouched / cell).glob("delta-*.safetensors"):
            ours, theirs = (load_delta(f / cell / path.name).updates for f in (out, untouched))
            assert all((ours[n] == u).all() for n, u in theirs.items())
    ours, theirs = (
        pd.read_parquet(f / "sweep.parquet").drop(columns=["seconds", "peak GiB"]) for f in (out, untouched)
    )
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    return kills


# --------------------------------------------------------------------------------- other endings


def test_an_interrupt_is_a_record_that_can_be_resumed(
    hooklearn: Workers, whole: tuple[Path, Ending], tmp_path: Path
) -> None:
    """What a scheduler sends, and Ctrl-C (in the long version): exit code 130, and one line that says how to go on."""
    interrupted_at(hooklearn, whole, tmp_path / "out", signal.SIGTERM, 0.2 * whole[1].seconds)


def interrupted_at(hooklearn: Workers, whole: tuple[Path, Ending], out: Path, how: signal.Signals, when: float) -> None:
    # a busy machine may take any time to begin, and the first run of a process up to twice what the next takes
    ending = hooklearn(*RUN, "--out", out, kill_after=when, once=out / "run.json", signal_=how)
    assert ending.code == 130, ending.said
    assert ending.dying < 2, "it stops at the next step, not at the next stage"
    (line,) = ending.said.splitlines()
    assert line.startswith("interrupted: continue with: hooklearn run tiny") and line.endswith("--resume")
    record = store.open_run(out)
    assert record["status"] == "interrupted" and record["error"].startswith("KeyboardInterrupt")
    finish(hooklearn, RUN, out)
    assert measured(out) == measured(whole[0])
    resumed = [e for e in disk.load_lines(out / "events.jsonl") if e["event"] == "resumed"]
    assert [e["after"] for e in resumed] == ["interrupted"]


@pytest.mark.parametrize(("fault", "code", "words"), [("full", 2, "No space left"), ("memory", 1, "out of memory")])
def test_a_full_disk_and_no_memory_end_with_a_record_that_says_so(
    hooklearn: Workers, whole: tuple[Path, Ending], tmp_path: Path, fault: str, code: int, words: str
) -> None:
    """The disk stays full: the run gives up its reserve to write its last word."""
    out = tmp_path / "out"
    ending = hooklearn(*RUN, "--out", out, fault=(fault, whole[1].writes // 2))
    assert ending.code == code, ending.said
    (line,) = ending.said.splitlines()
    assert line.startswith("error: ") and words in line
    record = store.open_run(out)
    assert record["status"] == "failed" and words in record["error"] and record["finished"]
    finish(hooklearn, RUN, out)
    assert measured(out) == measured(whole[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="permissions are refused to somebody else, whom only root can be")
def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_loaded(hooklearn: Workers) -> None:
    with tempfile.TemporaryDirectory() as place:  # not below tmp_path, into which nobody else may look at all
        Path(place).chmod(0o755)
        ending = hooklearn(*RUN, "--out", Path(place) / "run", user=65534)
        assert not any(Path(place).iterdir())
    assert ending.code == 2, ending.said
    (line,) = ending.said.splitlines()
    assert "may not be written" in line and place in line


def test_a_folder_has_one_writer_and_outlives_him(
    hooklearn: Workers, whole: tuple[Path, Ending], tmp_path: Path
) -> None:
    """While a run goes on, another is refused and named; a lock whose owner was killed is taken over."""
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    (out / ".lock").write_text("999999")  # somebody who is gone
    with store.RunFolder.create(out, {"config": store.open_run(out)["config"]}, resume=True):
        ending = hooklearn(*RUN, "--out", out, "--resume")
        assert ending.code == 2
        assert ending.said == f"error: {out}: process {os.getpid()} is writing this run\n"
    finish(hooklearn, RUN, out)


# ------------------------------------------------------------------------------------- the network


def test_a_run_whose_model_is_here_asks_nobody(hooklearn: Workers, whole: tuple[Path, Ending], tmp_path: Path) -> None:
    """No connection, no name looked up; the control asks the hub for a model, and is caught at it."""
    assert whole[1].code == 0
    other = ["--set", "model.name=nobody/nothing", "--set", "organism=null", "--set", "controls.matched=false"]
    asking = hooklearn(*RUN, *other, "--out", tmp_path / "out")
    assert asking.code == NETWORK, asking.said


@pytest.mark.long
@pytest.mark.skipif(
    subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine lets nobody cut the network off",
)
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipes_run_with_the_network_cut_off(recipe: str, tmp_path: Path) -> None:
    """Every recipe whose model is cached, cut down, in a new interpreter without a network."""
    if not is_cached(RECIPES[recipe]()["model"]["name"]):
        pytest.skip("its model is not cached")
    less = CUT_DOWN if recipe == "tiny" else {"attacks": [], "behaviour.samples": 0, "locate.enabled": False}
    command = [sys.executable, "-m", "hooklearn", "run", recipe, *arguments(less), "--no-report", "-q"]
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        ["unshare", "-n", *command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------- the long version


@pytest.mark.long
@pytest.mark.parametrize("piece", [pytest.param(i, id=f"piece{i:02}") for i in range(PIECES)])
def test_many_kills(
    hooklearn: Workers,
    whole: tuple[Path, Ending],
    swept: tuple[list[str], Path, Ending],
    tmp_path: Path,
    piece: int,
) -> None:
    """At least ``HOOKLEARN_KILLS`` processes die on their way, by every kind of death in turn."""
    rng, kills = random.Random(1 + piece), {"moment": 0, "write": 0, "sweep": 0, "interrupt": 0}
    faults = ("torn", "written", "renaming", "renamed")
    i = 0
    while sum(kills.values()) < -(-LONG // PIECES):
        out, i = tmp_path / str(i), i + 1
        kind = ("moment", "write", "moment", "sweep", "interrupt")[i % 5]
        if kind == "moment":
            kills[kind] += killed_at(hooklearn, whole, out, rng.uniform(0, whole[1].seconds))
        elif kind == "write":
            fault, at = rng.choice(faults), rng.randrange(1, whole[1].writes + 1)
            kills[kind] += killed_inside(hooklearn, whole, out, fault, at)
        elif kind == "sweep":
            times = [rng.uniform(0.2, 0.7) * swept[2].seconds for _ in range(2)]
            kills[kind] += sweep_killed_at(hooklearn, swept, out, times)
        else:
            how = rng.choice((signal.SIGINT, signal.SIGTERM))
            interrupted_at(hooklearn, whole, out, how, rng.uniform(0.05, 0.6) * whole[1].seconds)
            kills[kind] += 1
        shutil.rmtree(out)
    print(f"\nkilled: {kills}")  # noqa: T201 (counted where it is run)
