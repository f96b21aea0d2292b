"""Benchmarks do not rot: each runs on the tiny model, and what is measured goes into the table as it was measured."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import harness, results  # noqa: E402
from benchmarks.__main__ import main, names  # noqa: E402

WHOLE_RUNS = {"demo", "dry_run"}
"""Minutes each, in processes of their own: what is theirs is tested by parts."""
DRAWN = {"report"}
"""Builds reports, which the tests of the report do."""
STARTUP = {"startup"}


RowsOf = Callable[[str], list[harness.Row]]


@pytest.fixture(scope="module")
def bench() -> harness.Bench:
    return harness.Bench("tiny", quick=True)


@pytest.fixture(scope="module")
def rows_of(bench: harness.Bench) -> RowsOf:
    """Each benchmark is run once, whatever is asked of its rows."""
    return functools.cache(lambda name: list(importlib.import_module(f"benchmarks.bench_{name}").rows(bench)))


@pytest.mark.parametrize("name", sorted(set(names()) - WHOLE_RUNS - DRAWN - STARTUP))
def test_every_benchmark_runs_on_the_tiny_model(rows_of: RowsOf, name: str) -> None:
    """Rows with finite numbers; whether a goal is met says nothing on a model this small."""
    for row in rows_of(name):
        value = row.measured.median if isinstance(row.measured, harness.Spread) else row.measured
        assert value == value and (row.met is None) == (row.goal == "")
        json.dumps(row.as_json())


@pytest.mark.parametrize(
    ("name", "side"), [("edit", "ours"), ("edit", "theirs"), ("attack", "of all")], ids=lambda x: x.replace(" ", "-")
)
def test_stages_add_up_to_the_whole(rows_of: RowsOf, name: str, side: str) -> None:
    """Every stage took some time, and nothing is counted twice: what is left over is not less than nothing."""
    row = rows_of(name)[0]
    parts = {k.partition(", ")[2]: v for k, v in row.numbers.items() if k.startswith(f"seconds: {side}, ")}
    assert len(parts) > 2 and min(parts.values()) > 0
    whole = row.numbers["seconds" if name == "attack" else f"seconds: {side}"]
    assert sum(parts.values()) == pytest.approx(whole, rel=1e-6)


def test_no_edit_is_faster_than_what_none_can_leave_out(rows_of: RowsOf) -> None:
    """The largest ratio that a solver and a filter could reach is above the one that was measured."""
    row = rows_of("edit")[0]
    most = row.numbers["largest ratio that any solver and filter could reach (calculated)"]
    assert isinstance(row.measured, harness.Spread) and most > row.measured.median > 0


def test_products_are_a_part_of_a_pass_and_of_a_step(rows_of: RowsOf) -> None:
    """Some of the time, and not all of it; the optimizer takes some as well."""
    assert 0 < rows_of("peak")[0].numbers["% of the pass: matrix products in all"] < 100
    numbers = rows_of("relearn")[0].numbers
    for side in ("ours", "Trainer"):
        assert 0 < numbers[f"% of the time, under a profiler: {side}, matrix products"] < 100
        assert numbers[f"seconds: {side} once more, optimizer"] > 0
        assert numbers[f"seconds: {side} once more, everything else"] > 0


def test_a_stage_inside_another_is_counted_once() -> None:
    """The seconds of the inner one are not the outer one's; afterwards the functions are what they were (control)."""

    class Work:
        def outer(self) -> str:
            time.sleep(0.02)
            return self.inner()

        def inner(self) -> str:
            time.sleep(0.05)
            return "done"

    before, stages = dict(vars(Work)), harness.Stages()
    with stages.watching({"out": [(Work, "outer")], "in": [(Work, "inner")]}):
        assert [Work().outer(), Work().inner()] == ["done", "done"]
    assert dict(vars(Work)) == before and stages.calls == {"out": 1, "in": 2}
    assert 0.02 <= stages.seconds["out"] < 0.05 < 0.1 <= stages.seconds["in"]


def test_stages_of_a_run_are_those_of_its_record() -> None:
    from benchmarks.whole_runs import stages

    events = [
        {"time": "2026-01-01T00:00:02.500+00:00", "event": "started"},
        {"time": "2026-01-01T00:00:10.000+00:00", "event": "edited", "seed": 0},
        {"time": "2026-01-01T00:00:30.000+00:00", "event": "attacked", "seed": 0, "attack": "0-relearn"},
        {"time": "2026-01-01T00:00:31.000+00:00", "event": "done"},
    ]
    assert stages(events, 35.0) == {
        "until edited": 7.5, "until attacked 0-relearn": 20.0, "until done": 1.0, "outside the record": 6.5,
    }  # fmt: skip


def test_whole_runs_are_importable_and_slow_ones_must_be_named() -> None:
    from benchmarks.__main__ import SLOW

    assert set(SLOW) == WHOLE_RUNS
    for name in WHOLE_RUNS | DRAWN | STARTUP:
        assert callable(importlib.import_module(f"benchmarks.bench_{name}").rows)


def test_sides_are_alternated_and_warmed() -> None:
    seen: list[str] = []
    times = harness.alternate({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=2)
    assert "".join(seen) == "ab" + "ab" + "ba"
    assert times.ratio("a", "b").n == 2


def test_sides_that_disagree_are_not_compared() -> None:
    """A relative distance above the tolerance is refused; at or below it is returned."""
    one = {"w": torch.ones(2)}
    assert harness.check_same("w", one, {"w": torch.ones(2) * 1.01}, 0.02) == pytest.approx(0.01, rel=0.02)
    with pytest.raises(harness.Disagreement, match="w: the two sides differ"):
        harness.check_same("w", one, {"w": torch.ones(2) * 2}, 0.02)


def test_peak_memory_sees_what_was_there_only_for_a_moment() -> None:
    """64 MiB that are gone at the end were in the peak; nothing is not (control: 8 MiB of slack)."""
    size = 64 * 2**20
    with harness.peak_memory() as nothing:
        pass
    with harness.peak_memory() as found:
        torch.ones(size // 4).sum()
    assert nothing[0] < 8 * 2**20 and found[0] > size - 8 * 2**20


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    met = harness.at_most("faster", harness.Spread.of([1.0, 1.2, 0.9]), 1.1, unit="x", note="of a | b")
    missed = harness.at_least("nearer", 52.0, 60.0, unit="%")
    results.save(tmp_path, "one", [met, missed], results.environment("cpu", True), 1.0)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    results.write_page(tmp_path, page)
    text = page.read_text()
    assert "| faster | <= 1.1x | 1x (0.9..1.2, n 3) | yes | of a / b |" in text
    assert "| nearer | >= 60% | 52% | **no** |" in text
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")


def test_a_benchmark_is_left_out_when_it_has_its_file(tmp_path: Path, capsys: Any) -> None:
    results.save(tmp_path, "startup", [harness.Row("kept", "", 1.0, None)], results.environment("cpu", True), 1.0)
    assert main(["--only", "startup", "--resume", "--out", str(tmp_path)]) == 0
    assert "kept" in capsys.readouterr().out


def test_the_command_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "--quick" in done.stdout and "torch" not in done.stderr


def test_the_formula_counts_what_torch_executes(bench: harness.Bench) -> None:
    """FLOPs of the products of a frozen forward and backward pass; a tenth of the labels is seen (control)."""
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.bench_peak import executed
    from hooklearn.data import batches
    from hooklearn.locate.capture import tapes

    totals = []
    for labelled in (40, 4):
        stream = batches(bench.cut(4, 64, labelled))
        with FlopCounterMode(display=False) as counter:
            for _ in tapes(bench.model, stream, bench.sites, precision="float32"):
                pass
        totals.append(counter.get_total_flops())
        assert totals[-1] == pytest.approx(executed(bench.model, stream), rel=0.02)  # rotary tables, masks
    assert totals[1] < totals[0]


def test_formulas_agree_with_a_model(bench: harness.Bench) -> None:
    """P and S of the shape are those of the weights that are there."""
    from benchmarks.formulas import Shape
    from hooklearn import models

    c = bench.plain.config
    shape = Shape(
        "tiny", c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim, c.vocab_size,
    )  # fmt: skip
    assert shape.sites == sum(s.d_in * s.d_out for s in bench.sites)
    assert shape.linear == sum(s.d_in * s.d_out for s in models.sites(bench.model, "all"))
