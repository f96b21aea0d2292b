"""Runs at equal disruption, unlearning and compute: ways drawn by hand, of which the answer is known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn_runs import Drawn, edit, flat, rising, write_run
from user_files import hooklearn

import analysis
from analysis.compare import _labels  # pyright: ignore[reportPrivateUsage]
from analysis.comparison import QUANTITIES
from analysis.equal import equal_compute, equal_unlearning
from analysis.reading import read_run
from analysis.tradeoff import _looks  # pyright: ignore[reportPrivateUsage]
from hooklearn.cli.compare import write
from hooklearn.types import InputError

EXACT = 1e-9
"""Means and interpolation of a handful of doubles."""


def attacks(start: float, end: float) -> list[Drawn]:
    """Erosion to ``end``, relearning a little further; the never-learned model relearns to .4."""
    return [
        Drawn("erosion", {"edited": rising(start, end), "original": flat(0.8), "never": flat(0.1)}),
        Drawn("relearn", {"edited": rising(start, end + 0.1), "original": rising(0.8, 0.9), "never": rising(0.1, 0.4)},
              cheap=False),
    ]  # fmt: skip


def walked(folder: Path, points: list[tuple[float, float, int]], *, seeds: tuple[int, ...] = (0,), **how) -> Path:
    """A run whose edit went through (far KL, forget score, tokens); a second a thousand tokens."""
    how = {"items": 8, "attacks": attacks(0.1, 0.2), "metrics": ["preference"], "splits": ["heldout"]} | how
    write_run(folder, seeds=seeds, edits=[edit(s, kl=points[-1][0]) for s in seeds], **how)
    rows = [
        {"seed": s, "step": i, "scale": 1.0, "tokens": t, "seconds": t / 1000, "kl": kl, "near_ce": kl, "forget": f}
        for s in seeds
        for i, (kl, f, t) in enumerate(points)
    ]
    pd.DataFrame(rows).to_parquet(folder / "trace.parquet", index=False)
    return folder


SLOW = [(0.0, 0.5, 0), (0.0025, 0.4, 4000), (0.01, 0.3, 9000)]
FAST = [(0.0, 0.5, 0), (0.0025, 0.3, 2000), (0.01, 0.1, 3000)]


def test_equal_unlearning_is_where_each_way_meets_the_score_that_all_reached(tmp_path: Path) -> None:
    """The slow run only ever reached .3; the fast one passed it at a quarter of the KL and 2000 tokens."""
    runs = {name: read_run(walked(tmp_path / name, way)) for name, way in (("slow", SLOW), ("fast", FAST))}
    table = equal_unlearning(runs).set_index("run")
    assert table["forget score"].tolist() == [0.3, 0.3]
    assert table.loc["slow", ["far KL", "tokens", "times the least"]].tolist() == pytest.approx([0.01, 9000, 4.5])
    assert table.loc["fast", ["far KL", "tokens", "times the least"]].tolist() == pytest.approx([0.0025, 2000, 1])
    assert table.loc["fast", "seconds"] == pytest.approx(2)


def test_the_table_as_parquet_keeps_what_it_is(tmp_path: Path) -> None:
    """Numbers stay numbers and texts texts, which csv has to guess."""
    found = analysis.compare([walked(tmp_path / name, SLOW) for name in ("a", "b")])
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(found.to_parquet())), found.table)


def test_between_two_points_the_root_of_the_kl_is_interpolated(tmp_path: Path) -> None:
    """KL grows with the square of an update's length: half of the way in score is half in length, a quarter in KL."""
    ray = [(0.0, 0.5, 0), (0.01, 0.1, 3000)]
    half = [(0.0, 0.5, 0), (0.005, 0.3, 100)]
    runs = {name: read_run(walked(tmp_path / name, way)) for name, way in (("ray", ray), ("half", half))}
    table = equal_unlearning(runs).set_index("run")
    assert table.loc["ray", "far KL"] == pytest.approx(0.0025, abs=EXACT)
    assert table.loc["ray", "tokens"] == 3000, "its first point: a direction is paid for before it can be scaled"


def test_points_past_the_budget_do_not_count(tmp_path: Path) -> None:
    """A ray that was tried too long and cut back had not reached that score within its budget."""
    tried = [(0.0, 0.5, 0), (0.08, 0.0, 500), (0.01, 0.3, 900)]
    runs = {name: read_run(walked(tmp_path / name, way)) for name, way in (("tried", tried), ("fast", FAST))}
    table = equal_unlearning(runs).set_index("run")
    assert table.loc["tried", ["forget score", "tokens"]].tolist() == [0.3, 900]
    early = equal_compute(runs).set_index("run")
    assert early["tokens"].tolist() == [2000, 2000] and early["forget score"].tolist() == [0.3, 0.3]


def test_files_that_cannot_be_written_and_metrics_that_are_not_known_are_named(tmp_path: Path) -> None:
    found = analysis.compare([write_run(tmp_path / "run")])
    with pytest.raises(InputError, match=r"nowhere/t.csv cannot be written: there is no folder .*nowhere$"):
        write(found, csv=tmp_path / "nowhere" / "t.csv")
    with pytest.raises(InputError, match="--metric 'foo'; valid: completion"):
        write(found, csv=tmp_path / "t.csv", metric="foo")
    with pytest.raises(InputError, match="no metric 'sampled' in this comparison"):
        write(analysis.compare([walked(tmp_path / "one", FAST)]), csv=tmp_path / "t.csv",
              figure=tmp_path / "f.png", metric="sampled", attacks=True)  # fmt: skip
    assert not (tmp_path / "t.csv").exists()
    write(found, csv=tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text()


def test_an_edit_that_never_lowered_the_score_has_no_place_at_equal_unlearning(tmp_path: Path) -> None:
    """In one seed or in all: NaN, a dash in the table, and the other runs are compared as if it were not there."""
    idle = walked(tmp_path / "idle", [(0.0, 0.5, 0), (0.005, 0.52, 100), (0.01, 0.51, 200)])
    half = walked(tmp_path / "half", FAST, seeds=(0, 1))
    trace = pd.read_parquet(half / "trace.parquet")
    trace.loc[trace["seed"] == 1, "forget"] = [0.5, 0.5, 0.6]
    trace.to_parquet(half / "trace.parquet", index=False)
    ways = {"slow": walked(tmp_path / "slow", SLOW), "fast": walked(tmp_path / "fast", FAST)}
    runs = {name: read_run(folder) for name, folder in ways.items()}
    alone = equal_unlearning(runs).set_index("run")
    table = equal_unlearning(runs | {"idle": read_run(idle), "half": read_run(half)}).set_index("run")
    pd.testing.assert_frame_equal(table.loc[["slow", "fast"]], alone, check_dtype=False)
    assert table.loc[["idle", "half"], ["far KL", "near CE", "tokens", "seconds"]].isna().all(axis=None)
    assert equal_unlearning({"idle": read_run(idle)})["tokens"].isna().all()
    found = analysis.compare([idle, *ways.values()])
    assert "| idle | 0.3 | - |" in found.to_markdown()


def test_equal_compute_is_the_first_moment_at_which_all_had_something_to_show(tmp_path: Path) -> None:
    runs = {name: read_run(walked(tmp_path / name, way)) for name, way in (("slow", SLOW), ("fast", FAST))}
    table = equal_compute(runs).set_index("run")
    assert table["tokens"].tolist() == [4000, 4000]
    assert table["forget score"].tolist() == [0.4, 0.1], "the fast run had ended by then"


def test_seeds_are_averaged_and_spread(tmp_path: Path) -> None:
    folder = walked(tmp_path / "run", FAST, seeds=(0, 1))
    trace = pd.read_parquet(folder / "trace.parquet")
    trace.loc[(trace["seed"] == 1) & (trace["step"] == 2), "forget"] = 0.3  # seed 1 never got any lower
    trace.to_parquet(folder / "trace.parquet", index=False)
    (row,) = equal_unlearning({"run": read_run(folder)}).to_dict("records")
    assert row["forget score"] == 0.3 and row["seeds"] == 2
    assert row["far KL stderr"] == pytest.approx(0)
    assert np.isnan(equal_unlearning({"one": read_run(walked(tmp_path / "one", FAST))})["far KL stderr"].item())


def test_a_run_without_a_way_is_left_out(tmp_path: Path) -> None:
    audit = write_run(tmp_path / "audit", edits=[], items=8)
    (audit / "trace.parquet").unlink()
    found = analysis.compare([audit])
    assert found.unlearning.empty and found.compute.empty
    assert "At equal unlearning" not in found.to_markdown()


# ------------------------------------------------------------------------------------- the comparison


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    ends = {"natural": 0.2, "repselect": 0.45, "npo": 0.68, "graddiff": 0.7, "gradient_ascent": 0.75}
    return [
        walked(folder / name, FAST, attacks=attacks(0.1, end), seeds=(0, 1), noise=0.5, items=20)
        for name, end in ends.items()
    ]  # fmt: skip


def test_controls_meet_the_same_attacks(many: list[Path]) -> None:
    found = analysis.compare(many[:2])
    cells = found.controls.set_index(["run", "arm", "quantity"])["value"]
    assert cells["natural", "never", "worst, any attack"] == pytest.approx(0.4, abs=EXACT)
    assert cells["natural", "never", "worst, cheap attacks"] == pytest.approx(0.1, abs=EXACT)
    assert cells["repselect", "original", "worst, any attack"] == pytest.approx(0.9, abs=EXACT)
    assert "| preference | worst, any attack | 0.9 | 0.4 |" in found.to_markdown()


def test_attacks_of_one_name_that_are_not_the_same_are_left_out(many: list[Path], tmp_path: Path) -> None:
    """Another number of steps, or another text: no worst case over them, and no difference. Runs whose attacks are the
    same are compared (control), and so are those of before this was recorded."""

    def run(name: str, steps: int = 4, text: str = "a", **where: Any) -> Path:
        where = where or {"settings": [""]}
        attack = {"name": "erosion", "needs": "unrelated", "budget": {"steps": steps, "rates": [1]}} | where
        given = {"heldout": {"hash": "h"}, "unrelated": {"hash": text}}
        folder = walked(tmp_path / name, FAST, attacks=[attacks(0.1, 0.2)[0]], corpora=given)
        record = json.loads((folder / "run.json").read_text()) | {"attacks": [attack]}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    one, same, longer, other = run("one"), run("same"), run("longer", steps=512), run("other", text="b")
    column = "preference: worst, cheap attacks"
    alike = analysis.compare([one, same])
    assert alike.table[column].notna().all() and not any("same attack" in n for n in alike.notes)
    assert analysis.compare([one, longer]).table[column].isna().all()
    told = [n for n in analysis.compare([one, longer, other]).notes if "same attack" in n]
    assert told == ["erosion is not the same attack in all: steps 4 and 512, text of unrelated"]
    climbed = {"settings": ["lr=1"], "spent": [{"setting": ""}]}  # reached on the way, and in no list
    told = analysis.compare([run("rung", **climbed), run("longer rung", steps=512, **climbed)]).notes
    assert any(n.startswith("erosion is not the same attack in all: steps 4 and 512") for n in told), told


def test_samples_that_were_drawn_otherwise_are_not_paired(tmp_path: Path) -> None:
    """At another temperature; at the same they are (control)."""
    cool, again, warm = (
        walked(tmp_path / name, FAST, metrics=["sampled"], config={"behaviour": {"temperature": t}})
        for name, t in (("cool", 0.7), ("again", 0.7), ("warm", 1.0))
    )
    assert len(analysis.compare([cool, again]).differences)
    apart = analysis.compare([cool, warm])
    assert not len(apart.differences) and any("temperature 0.7 and 1.0" in n for n in apart.notes)


def test_samples_judged_at_another_line_are_not_paired(tmp_path: Path) -> None:
    """Another threshold, or another never-learned model behind a referee of the same kind; the last digits of a
    threshold are rounding (control)."""

    def run(name: str, line: float, never: str = "n") -> Path:
        referee = {"kind": "original / never-learned", "threshold": line}
        return walked(tmp_path / name, FAST, metrics=["sampled"], referee=referee, never={"hash": never})

    first, again, strict, other = run("a", 0.1), run("b", 0.1001), run("c", 1.5), run("d", 0.1, never="m")
    assert len(analysis.compare([first, again]).differences)
    for apart, why in ((strict, "its threshold 0.10 and 1.50"), (other, "never n and m")):
        found = analysis.compare([first, apart])
        assert not len(found.differences) and any(why in note for note in found.notes)


def test_attacks_that_ended_at_other_steps_are_told_and_so_are_their_controls(tmp_path: Path) -> None:
    """A run's attack ends where its own edited model is at rest: the controls of a shorter one are not averaged with
    those of a longer one. Where they end alike there is no note and one control for all (control)."""

    def run(name: str, steps: tuple[int, ...], never: float) -> Path:
        arms = {"edited": flat(0.1, len(steps)), "original": flat(0.8, len(steps))}
        arms |= {"never": rising(0.1, never, len(steps))}
        return walked(
            tmp_path / name, FAST, attacks=[Drawn("relearn", arms, setting="lr=0.1", cheap=False, steps=steps)]
        )

    short, long, alike = run("short", (0, 4, 8), 0.5), run("long", (0, 4, 8, 64), 0.8), run("alike", (0, 4, 8), 0.5)
    found = analysis.compare([short, long])
    assert any(note.startswith("relearn (lr=0.1) ended at step 8 in short, 64 in long") for note in found.notes)
    rows = found.by_control().query("quantity == 'worst, any attack'").set_index("of")["never"]
    assert rows.to_dict() == pytest.approx({"short": 0.5, "long": 0.8}, abs=EXACT)
    arms = {"edited": flat(0.1, 4), "original": flat(0.8, 4), "never": rising(0.1, 0.8, 4)}
    drawn = [Drawn("relearn", arms, setting="lr=0.1", cheap=False, steps=(0, 4, 8, 15))]  # as another seed may have it
    other = walked(tmp_path / "other seed", FAST, attacks=drawn, seeds=(1,))
    for same in (alike, other):
        found = analysis.compare([short, same])
        assert not any("ended at step" in note for note in found.notes) and "of" not in found.by_control()


def test_disruption_on_other_text_is_not_equal_disruption(tmp_path: Path) -> None:
    """Nor are attacks the same whose batches have another size; a run that does not say is not blamed (control)."""
    texts = {role: {"hash": "another"} for role in ("disruption", "near")}
    one, other = (
        walked(tmp_path / name, FAST, corpora={role: {"hash": name} for role in texts}) for name in ("one", "other")
    )
    notes = analysis.compare([one, other]).notes
    for what in ("far KL", "near CE"):
        assert f"the runs measured {what} on different text, so they are not at equal disruption" in notes
    silent = walked(tmp_path / "silent", FAST, corpora={})
    assert not any("on different text" in note for note in analysis.compare([one, silent]).notes)

    def trained(name: str, max_tokens: int) -> Path:
        folder = walked(tmp_path / name, FAST, attacks=[attacks(0.1, 0.2)[0]], config={"max_tokens": max_tokens})
        attack = {"name": "erosion", "settings": [""], "budget": {"epochs": 8, "learning_rates": [0.1]}}
        record = json.loads((folder / "run.json").read_text()) | {"attacks": [attack]}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    small, large, same = trained("small", 256), trained("large", 1024), trained("same", 256)
    assert any("max_tokens 256 and 1024" in note for note in analysis.compare([small, large]).notes)
    assert not any("max_tokens" in note for note in analysis.compare([small, same]).notes)


def test_two_sweeps_may_say_the_same_of_other_options(tmp_path: Path) -> None:
    """Their labels are told apart, so that no line joins them; in one sweep a label is one method (control)."""
    npo, natural, unlabelled = (
        SimpleNamespace(record=record) for record in ({"label": "npo"}, {"label": "natural"}, {})
    )
    entries: Any = [SimpleNamespace(name=str(n)) for n in range(3)]

    def labels(*found: Any) -> list[str]:
        return _labels([tmp_path] * len(found), found, entries)

    assert labels([npo, natural], [npo]) == ["1/npo", "natural", "2/npo"]
    assert labels([npo, npo, natural]) == ["npo", "npo", "natural"]
    assert labels([unlabelled] * 3) == []


def test_controls_of_other_models_are_not_averaged(many: list[Path], tmp_path: Path) -> None:
    """A run on a model of its own keeps its controls; runs on one model share theirs (control)."""
    low = [Drawn("erosion", {"edited": rising(0.1, 0.2), "original": flat(0.4), "never": flat(0.05)})]
    other = walked(tmp_path / "other", FAST, attacks=low, items=20, model={"hash": "another"})
    wide = analysis.compare([*many[:2], other]).by_control()
    rows = wide[wide["quantity"] == "worst, cheap attacks"].set_index("of")
    assert rows.loc["other", "original"] == pytest.approx(0.4, abs=EXACT)
    assert rows.loc["natural, repselect", "original"] == pytest.approx(0.8, abs=EXACT)
    figure = analysis.tradeoff(analysis.compare([*many[:2], other]), "preference", "cheap")
    words = {t.get_text() for t in figure.findobj(matplotlib.text.Text)}  # type: ignore[attr-defined]
    assert {"original of other", "original of natural, repselect"} <= words
    assert "of" not in analysis.compare(many[:2]).by_control()


def test_runs_that_forgot_other_text_are_not_compared_by_it(many: list[Path], tmp_path: Path) -> None:
    """It is noted; not so for runs that forgot the same (control)."""
    other = walked(tmp_path / "other", FAST, corpora={"forget": {"hash": "another"}})
    note = "the runs forgot different text"
    assert not any(note in n for n in analysis.compare(many[:2]).notes)
    assert any(note in n for n in analysis.compare([many[0], other]).notes)


def test_a_score_of_more_items_is_not_set_beside_others_unsaid(many: list[Path], tmp_path: Path) -> None:
    """An edit that is to stop at a level reads 64 forget items, others 12. Not noted where all are alike (control)."""
    levelled = [walked(tmp_path / n, FAST, config={"budget": {"kl": 0.01, "forget": 0.2}}) for n in ("one", "two")]
    note = "the forget score of one was read on more forget items"
    assert any(note in n for n in analysis.compare([levelled[0], many[0]]).notes)
    assert not any("more forget items" in n for n in analysis.compare(levelled).notes)


def test_many_runs_are_rows_and_only_differences_to_the_best_are_printed(many: list[Path]) -> None:
    found = analysis.compare(many)
    shown = found.to_the_best()
    assert set(shown["run_a"]) == {"natural"} and len(shown) == 4, "natural is lowest"
    assert len(found.differences) == 10 * 3, "all of them are in the frame"
    first = found.to_markdown().splitlines()[2]
    assert first.startswith("| natural | ")
    picked = "(picked of 5 on these items, and with so many differences some look clear by chance)"
    assert picked in found.to_markdown() and "picked" not in analysis.compare(many[:2]).to_markdown()
    few = analysis.compare(many[:2]).to_markdown().splitlines()[0]
    assert few == "|  | natural | repselect |"


def test_in_brief_a_measure_is_one_column_and_the_controls_are_rows(many: list[Path], tmp_path: Path) -> None:
    """What stood before and the worst after, as the whole table has them; a control has no cost; how many seeds it was
    is said where it was more than one."""
    found = analysis.compare(many)
    brief = found.brief().set_index("")
    assert [*brief.index] == [*found.table["run"], "original", "never"]
    row = found.table.set_index("run").loc["npo"]
    before, cheap, worst = (f"{row[f'preference: {q}']:.3g}" for q in QUANTITIES.values())
    parts = str(brief.loc["npo", "preference"]).split(" → ")
    assert [part.split(" [")[0] for part in parts] == [before, cheap, worst] and parts[2].endswith("]")
    assert brief.loc["never", "preference"] == "0.1 → 0.1 → 0.4"
    assert brief["seconds"].isna().tolist() == [False] * 5 + [True] * 2
    assert brief["verdict"].tolist()[:5] == found.table["verdict"].tolist()
    assert brief["seeds"].tolist()[:5] == [2] * 5
    assert "seeds" not in analysis.compare([walked(tmp_path / "one", FAST)]).brief()
    lines = found.brief_markdown().splitlines()
    assert lines[8].startswith("| never | ") and lines[8].endswith(" - |")


def test_a_column_per_attack_holds_its_worst_setting_and_the_controls_too(many: list[Path], tmp_path: Path) -> None:
    """The worst of all attacks is the worst of the columns; a run may be called as a control is."""
    found = analysis.compare(many)
    table = found.by_attack().set_index("")
    assert [*table.index] == [*found.table["run"], "original", "never"]
    assert [*table.columns] == ["before", "erosion", "relearn"]
    assert table.loc["never"].tolist() == pytest.approx([0.1, 0.1, 0.4], abs=EXACT)
    worst = found.table["preference: worst, any attack"].tolist()
    assert table.iloc[:5, 1:].max(axis=1).tolist() == pytest.approx(worst, abs=EXACT)
    assert table["erosion"].iloc[:5].tolist() == pytest.approx(found.table["preference: worst, cheap attacks"].tolist())
    kept = found.attacks.set_index(["run", "arm", "attack"]).loc[("npo", "edited", "relearn")]
    assert kept["low"] < kept["value"] < kept["high"] and kept["by"].startswith("relearn")
    assert "| never | 0.1 | 0.1 | 0.4 |" in found.attacks_markdown()
    with pytest.raises(InputError, match="no metric 'sampled'"):
        found.by_attack("sampled")
    namesake = analysis.compare([walked(tmp_path / "never", FAST)]).by_attack()
    assert namesake[""].tolist() == ["never", "original", "never"]


def words_of(figure: Any) -> set[str]:
    figure.canvas.draw()
    return {t.get_text() for t in figure.findobj(matplotlib.text.Text)}  # type: ignore[attr-defined]


def spread_out(found: analysis.Comparison) -> analysis.Comparison:
    return replace(found, table=found.table.assign(**{"far KL": np.geomspace(0.002, 0.05, len(found.table))}))


def test_forms_of_one_method_share_its_colour_and_not_its_marker() -> None:
    rows = pd.DataFrame({"way": ["a", "b", "c", "a"], "method": ["repselect", "repselect", "natural", "repselect"]})
    looks = _looks(rows)
    assert looks["a"].colour == looks["b"].colour != looks["c"].colour
    assert looks["a"].marker != looks["b"].marker


def test_the_figure_names_every_run_and_the_controls(many: list[Path]) -> None:
    found = analysis.compare(many)
    before = dict(matplotlib.rcParams)
    names = {*(m.name for m in many), "original", "never"}
    spread = words_of(analysis.tradeoff(spread_out(found), "preference"))
    assert names | {"far KL, nats per token", "near CE, nats per token"} <= spread
    equal = words_of(analysis.tradeoff(found, "preference"))
    assert names | {"far KL", "near CE", "At equal disruption"} <= equal and "far KL, nats per token" not in equal
    assert dict(matplotlib.rcParams) == before
    one = analysis.tradeoff(found, "sampled")
    assert any("not measured" in t.get_text() for t in one.findobj(matplotlib.text.Text))  # type: ignore[attr-defined]


def test_budgets_of_one_method_are_joined_where_a_sweep_says_which_is_which(many: list[Path]) -> None:
    found = analysis.compare(many)
    found.table["label"] = ["a", "a", "b", "b", "b"]
    found.table["far KL"] = [0.003, 0.01, 0.003, 0.01, 0.03]
    figure = analysis.tradeoff(found, "preference")
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and line.get_marker() != "None"]
    assert [len(np.asarray(line.get_xdata())) for line in lines] == [2, 3], "two ways, each with its points"
    assert len({line.get_color() for line in lines}) == 2


LONG = "with-a-long-name-of-many-words-that-says-what-was-changed-in-this-ablation-and-why"


@pytest.mark.parametrize("n", [3, 8, 20])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", ["run", LONG])
def test_no_word_of_the_figure_is_cut_or_lies_on_another(n: int, equal: bool, name: str, many: list[Path]) -> None:
    """Two words that do lie on each other are found (control)."""
    one = analysis.compare(many[:1])
    table = pd.concat([one.table] * n, ignore_index=True)
    table["run"] = table["method"] = [f"{name}{i}" for i in range(n)]
    table["preference: worst, any attack"] = 0.3 + 0.001 * np.arange(n)
    table["far KL"] = np.linspace(0.0095, 0.01, n) if equal else np.geomspace(0.0005, 0.2, n)
    figure = analysis.tradeoff(replace(one, table=table), "preference")
    figure.savefig(io.BytesIO())
    assert crossings(figure) == []
    first = next(t for t in figure.findobj(matplotlib.text.Text) if t.get_text() == "original")  # type: ignore[attr-defined]
    figure.text(*figure.transFigure.inverted().transform(first.get_window_extent().p0), "over it")
    assert crossings(figure) != []


def crossings(figure: Any) -> list[str]:
    shown = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]  # type: ignore[attr-defined]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown if seen(t)]
    cut = [w for w, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > figure.bbox.x1 or b.y1 > figure.bbox.y1]
    return cut + [f"{a} | {b}" for (a, x), (b, y) in combinations(boxes, 2) if x.shrunk(0.96, 0.9).overlaps(y)]


def seen(text: Any) -> bool:
    """Ticks outside the limits of their axis exist and are not drawn."""
    for axis in (a for ax in text.figure.axes for a in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if text is tick.label1 and not low <= tick.get_loc() <= high:
                return False
    return True


# ----------------------------------------------------------------------------------------- for a paper


def test_the_latex_table_has_a_block_per_metric_and_the_controls(many: list[Path]) -> None:
    found = analysis.compare(many[:2])
    lines = found.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrr}" and lines[1] == r"\toprule" and lines[-2] == r"\bottomrule"
    assert lines[2] == r" & method & far KL & near CE & before & worst, cheap attacks & worst, any attack \\"
    assert r"\multicolumn{7}{l}{\emph{preference for the behaviour}} \\" in lines
    assert r"never & -- & -- & -- & $0.10$ & $0.10$ & $0.40$ \\" in lines
    (row,) = [line for line in lines if line.startswith("natural &")]
    assert row.startswith(r"natural & repselect & $0.010$ & $0.010$ & $0.10$ {\scriptsize [$") and row.count("&") == 6
    named = replace(found, table=found.table.assign(method=found.table["run"]))
    assert "& method" not in named.to_latex(), "the names say it already"


def test_columns_and_metrics_of_the_latex_table_are_chosen(many: list[Path], tmp_path: Path) -> None:
    found = analysis.compare(many[:2])
    write(found, latex=tmp_path / "t.tex", metric="preference", columns="verdict, any, any by")
    text = (tmp_path / "t.tex").read_text()
    assert r" & verdict & worst, any attack & worst, any attack, by \\" in text and "relearn, step 128" not in text
    assert "relearn, step 64" in text
    with pytest.raises(InputError, match="no column 'nearly' in this comparison; valid: method, verdict, far KL"):
        write(found, latex=tmp_path / "no.tex", columns="nearly")
    with pytest.raises(InputError, match="no metric 'sampled' in this comparison; valid: preference"):
        write(found, latex=tmp_path / "no.tex", metric="sampled")
    assert not (tmp_path / "no.tex").exists()


def test_runs_of_one_name_are_told_apart_by_the_last_parts_of_their_folders(tmp_path: Path) -> None:
    """Not by whole paths; runs whose own names differ keep them (control)."""
    for folder in ("x/a", "x/b", "y/a"):
        walked(tmp_path / folder, FAST, name="tiny")
    flat_names = analysis.compare([tmp_path / "x" / "a", tmp_path / "x" / "b"]).table["run"].tolist()
    assert flat_names == ["a", "b"]
    assert analysis.compare([tmp_path / "x/a", tmp_path / "y/a"]).table["run"].tolist() == ["x/a", "y/a"]
    own = [walked(tmp_path / n, FAST, name=n.upper()) for n in ("p", "q")]
    assert analysis.compare(own).table["run"].tolist() == ["P", "Q"]


def test_every_form_of_a_comparison_says_that_what_was_instilled_is_easier_to_take_out(tmp_path: Path) -> None:
    """Once for all runs of organisms, and of which where not all are; not of models as they are (control)."""
    said = "was instilled: what is fine-tuned in is easier to take out than what was pre-trained"
    organism = {"name": "threats", "kind": "instilled by LoRA", "truth": "INTACT", "note": ""}
    own, again = (walked(tmp_path / name, FAST, organism=organism) for name in ("own", "again"))
    found = analysis.compare([own, again])
    assert [note for note in found.notes if "instilled" in note] == [f"the behaviour of organism threats {said}"]
    for text in (found.to_markdown(), found.brief_markdown(), found.attacks_markdown()):
        assert text.count(said) == 1
    assert found.to_latex().splitlines()[-2].endswith(f"Instilled (threats): {said.partition(': ')[2]}.}} \\\\")
    bare = walked(tmp_path / "bare", FAST)
    assert "nstilled" not in analysis.compare([bare]).to_latex()
    assert not any("instilled" in note for note in analysis.compare([bare]).notes)
    mixed = [note for note in analysis.compare([own, bare]).notes if "instilled" in note]
    assert mixed == [f"the behaviour of organism threats {said.replace('instilled', 'instilled (own)', 1)}"]
    for how in ((), ("--brief",), ("--attacks",)):
        assert hooklearn("compare", own, *how).stdout.count(said) == 1
        assert "instilled" not in hooklearn("compare", bare, *how).stdout


def test_why_there_is_no_worst_case_is_said_before_the_table(tmp_path: Path) -> None:
    """Once for all metrics; nothing is said where the attacks are shared (control)."""
    other = [Drawn("prune", {"edited": flat(0.1), "original": flat(0.8)})]
    ours, theirs = (
        walked(tmp_path / n, FAST, attacks=a, metrics=["completion", "preference"])
        for n, a in (("ours", attacks(0.1, 0.2)), ("theirs", other))
    )
    found = analysis.compare([ours, theirs])
    first = found.to_markdown().splitlines()[0]
    assert first.startswith("- completion, preference: no attack is the same in all runs")
    assert "erosion, prune, relearn" in first and found.notes[0] == first.removeprefix("- ")
    assert found.to_markdown().count("no attack is the same") == 1
    alike = analysis.compare([ours])
    assert not alike.gaps and alike.to_markdown().startswith("| ")


def test_what_was_not_seen_of_two_edits_is_not_the_same(tmp_path: Path) -> None:
    """0 of 32 and 4 of 32 samples: a difference that exact McNemar gives p = .125 is not clear, and none of 32 twice is
    compatible with some. The same run twice is the same (control)."""
    none, four, again = (
        write_run(tmp_path / name, arms={"edited": [rate] * 4, "original": [0.9] * 4, "never": [0.0] * 4},
                  metrics=["sampled"], seeds=(0,), items=32, edits=[edit(kl=kl)])
        for name, rate, kl in (("none", 0.0, 0.0098), ("four", 0.125, 0.0097), ("again", 0.0, 0.0099))
    )  # fmt: skip
    found = analysis.compare([none, four, again]).differences
    worst = found[found["quantity"] == QUANTITIES["any"]].set_index(["run_a", "run_b"])
    apart = worst.loc[("none", "four")]
    assert apart["difference"] == pytest.approx(-0.125) and not apart["clear"]
    alike = worst.loc[("none", "again")]
    assert alike["difference"] == 0 and alike["low"] < -0.02 and alike["high"] > 0.02
    assert (analysis.compare([none, none]).differences[["low", "high"]] == 0).all(axis=None)


def test_runs_that_share_no_attack_are_compared_nevertheless(tmp_path: Path) -> None:
    """However many: what there is, is shown, and a note says what there is not."""
    runs = [write_run(tmp_path / f"r{i}", attacks=[Drawn(f"attack{i}", {"edited": [0.1] * 4, "original": [0.8] * 4})])
            for i in range(6)]  # fmt: skip
    assert "no attack is the same in all runs" in analysis.compare(runs).to_markdown()


def test_in_brief_of_runs_without_an_edit(tmp_path: Path) -> None:
    """A folder of controls, say: its behaviour, and no column of what no edit cost."""
    run = write_run(tmp_path / "controls", edits=[])
    assert "seconds" not in analysis.compare([run]).brief().columns
    assert "seconds" in analysis.compare([write_run(tmp_path / "run")]).brief().columns, "positive control"


def test_unequal_runs_and_diverged_attacks_are_told(tmp_path: Path) -> None:
    """In a note each; an attack that diverged in one run counts in none. Equal runs have no note (control)."""
    calm = [
        Drawn("erosion", {"original": flat(0.8), "never": flat(0.1), "edited": flat(0.1)}),
        Drawn("prune", {"original": [0.8], "never": [0.1], "edited": [0.2]}),
    ]
    wild = [replace(calm[0], arms={**calm[0].arms, "edited": rising(0.1, 0.7)}, diverged=True), calm[1]]

    def run(name: str, attacks: list[Drawn] = calm, **how: Any) -> Path:
        return write_run(tmp_path / name, attacks=attacks, metrics=["preference"], splits=["heldout"], items=20, **how)

    same, seeds = run("same"), range(3)
    broke = analysis.compare([same, run("broke", wild)])
    assert broke.table["preference: worst, cheap attacks"].tolist() == pytest.approx([0.2, 0.2])
    assert "left out, as diverged" in broke.notes[0]
    unequal: dict[str, dict[str, Any]] = {
        "used 20% of its budget": {"edits": [edit(s, kl=0.002, near_ce=0.002) for s in seeds]},
        "different budgets": {"edits": [edit(s, budget={"kl": 0.01, "near_ce": None}) for s in seeds]},
        "different models": {"model": {"hash": "x"}},
    }
    for said, how in unequal.items():
        assert any(said in note for note in analysis.compare([same, run(said[:9], **how)]).notes), said
    assert not analysis.compare([same, run("again")]).notes


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("attacks.0.spent", [{"setting": "a", "steps": "x"}]),
        ("attacks.0.needs", ["x"]),
        ("attacks.0.settings", 3),
        ("corpora.heldout", {"cut": "many"}),
    ],
)
def test_a_damaged_record_is_told_by_its_place(tmp_path: Path, place: str, value: Any) -> None:
    run = write_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    *outer, last = place.split(".")
    entry: Any = record
    for key in outer:
        entry = entry[int(key)] if key.isdigit() else entry[key]
    entry[last] = value
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"run\.json: damaged at {place}"):
        analysis.compare([run])


@pytest.mark.parametrize("lacking", [{"disruption": None}, {"budget": {"kl": 0}}, {"budget": None}])
def test_a_record_without_a_budget_or_a_disruption_is_shown(tmp_path: Path, lacking: dict[str, Any]) -> None:
    """Nothing is divided by nothing: what was not measured is not known."""
    run = write_run(tmp_path / "run", edits=[edit(0) | {"stop": "budget not reached: x"} | lacking], seeds=(0,))
    assert np.isnan(analysis.compare([run]).table["budget used"].item())
    assert analysis.report(run).exists()


def of_seeds(folder: Path, seeds: tuple[int, ...]) -> Path:
    """A run whose edited arm is as bad as its seed says, and otherwise like every other."""
    write_run(folder, seeds=seeds, items=20, metrics=["preference"], splits=["heldout"], attacks=attacks(0.3, 0.3),
              edits=[edit(s) for s in seeds])  # fmt: skip
    for name in ("curves", "items"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        edited = frame["arm"] == "edited"
        frame.loc[edited, "value"] = 0.1 * (1 + frame.loc[edited, "seed"])
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


def test_seeds_pair_only_runs_that_have_the_same(tmp_path: Path) -> None:
    """By number: three seeds of one run and three others of another differ by what seeds differ, and that is not clear;
    a run beside its copy is paired to the last digit (control)."""
    one, same, other = (of_seeds(tmp_path / n, s) for n, s in (("a", (0, 1, 2)), ("b", (0, 1, 2)), ("c", (1, 2, 3))))
    paired = analysis.compare([one, same])
    assert (paired.differences[["difference", "low", "high"]] == 0).all(axis=None) and not paired.notes
    found = analysis.compare([one, other])
    assert not found.differences["clear"].any() and (found.differences["low"] < -0.15).all()
    assert [n for n in found.notes if "not the same seeds" in n] == [
        "preference: not the same seeds in all runs (a 0, 1, 2; c 1, 2, 3), so those with other ones are paired by "
        "item alone"
    ]
    among = analysis.compare([one, same, other]).differences.set_index(["run_a", "run_b"])
    assert (among.loc[("a", "b"), ["low", "high"]] == 0).all(axis=None), "equals stay paired beside another"


def test_a_note_steers_no_terminal_and_is_no_html(tmp_path: Path) -> None:
    name = "a\x1b[31m<img src=x>"
    run = write_run(tmp_path / "run", name=name, edits=[edit(0, kl=0.002, near_ce=0.002)], seeds=(0,))
    found = analysis.compare([run])
    assert any(name in note for note in found.notes), "the control: the note quotes it"
    for shown in (found.to_markdown(), found.brief_markdown(), found.attacks_markdown()):
        assert "used 20% of its budget" in shown and "<img" not in shown and "\x1b" not in shown


def diverged_in(folder: Path, seed: int, attack: str, *, metrics: tuple[str, ...] = ("sampled",)) -> Path:
    """The edited arm's fine-tuning became NaN in one seed: nothing was sampled after it, as nothing could be."""
    for name in ("curves", "items"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        there = (frame["attack"] == attack) & (frame["arm"] == "edited") & (frame["seed"] == seed)
        if name == "curves":
            frame["diverged"] |= there
        frame[~(there & frame["metric"].isin(metrics))].to_parquet(folder / f"{name}.parquet")
    return folder


def sampled_run(folder: Path) -> Path:
    """Two seeds, two attacks, completion and samples."""
    drawn = [
        Drawn(name, {"edited": flat(0.4), "original": flat(0.8), "never": flat(0.1)}) for name in ("erosion", "prose")
    ]
    return write_run(
        folder, attacks=drawn, seeds=[0, 1], items=24, noise=0.5, metrics=["completion", "sampled"], splits=["heldout"]
    )


def test_an_attacker_that_diverged_takes_no_seed_from_the_others(tmp_path: Path) -> None:
    """In one seed, or two of them in a seed each: before any attack, and under the attackers that are left, both seeds
    count, as where nothing diverged (the control)."""
    whole, one, both = (sampled_run(tmp_path / name) for name in ("whole", "one", "both"))
    diverged_in(one, 0, "erosion")
    diverged_in(diverged_in(both, 0, "erosion"), 1, "prose")
    table = analysis.compare([whole, one]).table.set_index("run")
    for column in ("sampled: before", "sampled: worst, any attack"):
        assert table.loc["one", column] == table.loc["whole", column], column
    found = analysis.compare([whole, both])
    assert found.table["sampled: before"].nunique() == 1
    assert any("no attack is the same in all runs" in note for note in found.notes)
    assert not any("seeds left out" in note for note in found.notes)
    for folder in (one, both):
        assert analysis.judge(folder, write=False).metrics["sampled"]["n_seeds"] == 2


def test_seeds_that_not_every_attack_has_are_named_and_none_is_no_error(tmp_path: Path) -> None:
    """Rows of one attack are gone, of a seed or of another in each attack, although nothing diverged."""
    whole, one, none = (sampled_run(tmp_path / name) for name in ("whole", "one", "none"))
    for folder, lost in ((one, {"erosion": 0}), (none, {"erosion": 0, "prose": 1})):
        items = pd.read_parquet(folder / "items.parquet")
        for attack, seed in lost.items():
            gone = (items["attack"] == attack) & (items["seed"] == seed) & (items["metric"] == "sampled")
            items = items[~gone]
        items.to_parquet(folder / "items.parquet")
    found = analysis.compare([whole, one])
    assert "sampled: of one, 1 of 2 seeds left out, as not every attack and arm has them" in found.notes
    found = analysis.compare([whole, none])
    assert "sampled: of none, 2 of 2 seeds left out, as not every attack and arm has them" in found.notes
    assert found.table.set_index("run")["sampled: before"].isna().to_dict() == {"whole": False, "none": True}
    verdict = analysis.judge(none, write=False)
    assert verdict.metrics["sampled"]["reason"] == "no seed was measured in every arm under every attack"
