"""Figures of several runs, and evidence by layer: drawn from runs of which the answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from drawn_runs import Drawn, flat, rising, write_run
from matplotlib.figure import Figure
from test_compare import FAST, SLOW, walked

import analysis
from analysis.reading import read_run


def texts(figure: Figure) -> set[str]:
    figure.canvas.draw()
    return {t.get_text() for t in figure.findobj(matplotlib.text.Text)}  # type: ignore[attr-defined]


def judged(folder: Path, edited: list[float]) -> Path:
    """Erosion takes the edited arm along ``edited``; the controls stay at .8 and .1."""
    drawn = Drawn("erosion", {"edited": edited, "original": flat(0.8), "never": flat(0.1)})
    write_run(folder, attacks=[drawn], metrics=["preference"], splits=["heldout"], items=20)
    analysis.judge(folder)
    return folder


def test_the_attack_map_shows_what_came_back_and_the_verdict(tmp_path: Path) -> None:
    """One run in which nothing comes back, one in which all of it does: 0 and 1 beside their verdicts."""
    stays, returns = judged(tmp_path / "stays", flat(0.1)), judged(tmp_path / "returns", rising(0.1, 0.8))
    table = analysis.attack_table([stays, returns]).set_index("run")
    assert table["before"].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert table["erosion"].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert table["verdict"].tolist() == ["REMOVED", "DISABLED"]
    assert {"stays", "returns", "REMOVED", "DISABLED", "1.00", "0.00"} <= texts(analysis.attack_map([stays, returns]))


def test_levels_by_attack_are_drawn_as_measured_with_the_controls_below(tmp_path: Path) -> None:
    """The run in which less comes back stands on top."""
    folders = judged(tmp_path / "returns", rising(0.1, 0.7)), judged(tmp_path / "stays", flat(0.1))
    figure = analysis.attack_levels(analysis.compare(folders))
    assert {"0.70", "0.10", "0.80", "original", "never"} <= texts(figure)
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == ["stays", "returns", "original", "never"]
    namesake = analysis.attack_levels(analysis.compare([folders[0], judged(tmp_path / "never", flat(0.1))]))
    names = [t.get_text() for t in namesake.axes[0].get_yticklabels()]
    assert names == ["never", "returns", "original", "never"], "a run may be called as a control is"


def test_a_run_without_measures_has_a_row_without_numbers(tmp_path: Path) -> None:
    """One that failed, among others."""
    broken = judged(tmp_path / "broken", flat(0.1))
    verdict = json.loads((broken / "verdict.json").read_text())
    (broken / "verdict.json").write_text(json.dumps(verdict | {"metrics": {}, "attacks": []}))
    table = analysis.attack_table([broken, judged(tmp_path / "stays", flat(0.1))]).set_index("run")
    assert table["before"].isna().tolist() == [True, False]
    analysis.attack_map([broken, tmp_path / "stays"])


def test_a_run_that_was_not_judged_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "open", metrics=["preference"], splits=["heldout"], items=8)
    (tmp_path / "open" / "verdict.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"not judged; call analysis\.judge"):
        analysis.attack_table([tmp_path / "open"])


def test_the_ways_are_drawn_to_where_each_edit_ended(tmp_path: Path) -> None:
    """A line per run on either side; the dot of the fast run is at its own KL and score."""
    runs = [walked(tmp_path / name, way) for name, way in (("slow", SLOW), ("fast", FAST))]
    left, right = analysis.ways(runs).axes
    ends = {(round(float(line.get_xdata()[0]), 4), round(float(line.get_ydata()[0]), 4))  # type: ignore[index]
            for line in left.lines if line.get_marker() == "o"}  # fmt: skip
    assert ends == {(0.01, 0.3), (0.01, 0.1)}
    assert {line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"} == {9000, 3000}  # type: ignore[index]
    said = {t.strip() for t in texts(left.figure)}  # type: ignore[arg-type]
    assert {"equal disruption", "equal unlearning", "equal compute"} <= said


def test_without_a_way_or_evidence_the_figure_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "bare", metrics=["preference"], splits=["heldout"], items=8)
    run = read_run(folder)
    bare = type(run)(run.folder, run.record, run.curves, run.items, run.trace[:0], run.locate, run.evidence[:0])
    assert "not measured" in " ".join(texts(analysis.ways([bare])))
    assert "not measured" in " ".join(texts(analysis.by_layer(bare)))


def test_evidence_by_layer_has_every_arm_at_its_value(tiny_run: Path) -> None:
    """The lens of the original after the last layer is where its line ends."""
    run = read_run(tiny_run)
    figure = analysis.by_layer(run)
    rows = run.evidence[(run.evidence["kind"] == "logit_lens") & (run.evidence["layer"] >= 0)]
    drawn = [np.asarray(line.get_ydata(), float) for line in figure.axes[0].lines]
    for _, of_arm in rows.groupby("arm"):
        expected = of_arm.sort_values("layer")["value"].to_numpy(float)
        assert any(len(y) == len(expected) and np.allclose(y, expected) for y in drawn)
    assert {"Logit lens", "edited", "never"} <= texts(figure)
