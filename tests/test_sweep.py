"""A sweep: what cells share is measured once, options are chosen on another split, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from user_files import Files, config, hooklearn, make

import analysis
import hooklearn as hl
from analysis import packed as packing
from analysis.tuning import tuning_markdown, tuning_table
from hooklearn import experiment, forward, store
from hooklearn.attack import ArmState
from hooklearn.cli.compare import _tell_sweep
from hooklearn.config import parse
from hooklearn.data import Corpus
from hooklearn.edit import method_of
from hooklearn.running import controls, reuse, sweep_record, sweeping
from hooklearn.running.checks import check_needs
from hooklearn.running.choosing import check_measurable, check_trials, decide
from hooklearn.running.sweep_config import MethodSpec, Plan
from hooklearn.types import InputError

METRICS = ["completion", "preference"]


def small(**changes: Any) -> dict[str, Any]:
    """Two methods, one of them searched, on the user's small model: no samples, short attacks."""
    base = config() | {
        "attacks": [
            {"name": "relearn", "learning_rates": [1e-4], "epochs": 2},
            {"name": "ablate_direction"},
        ],
        "locate": {"enabled": False},
        "behaviour": {"samples": 0},
    }  # fmt: skip
    return {
        "name": "small",
        "base": base,
        "methods": [
            {"name": "repselect", "search": {"rank": [4, 16]}},
            "gradient_ascent",
        ],
        "seeds": [0, 1],
        "budgets": [{"kl": 0.01}],
        "tuning": {
            "trials": 2,
            "attack": {"name": "relearn", "learning_rates": [1e-4], "epochs": 1},
            "corpora": {"heldout": {"path": "ood.jsonl"}},
        },
    } | changes  # fmt: skip


def without_ood(data: dict[str, Any]) -> dict[str, Any]:
    """The tuning split must not be reported: here it is the file that was ood."""
    corpora = {k: v for k, v in data["base"]["corpora"].items() if k != "ood"}
    return data | {"base": data["base"] | {"corpora": corpora}}


SHIPPED = Path(__file__).parents[1] / "benchmarks" / "sweeps"
ROOT = Path(__file__).parents[1]
SMALL = without_ood(small())
QUICK = {**SMALL, "methods": ["gradient_ascent", "repselect"], "seeds": [0], "tuning": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: models and corpora."""
    folder = tmp_path_factory.mktemp("user")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def entered() -> Counter[str]:
    """Arms that were fine-tuned during the sweep of :func:`swept`."""
    return Counter()


@pytest.fixture(scope="module")
def swept(folder: Path, entered: Counter[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = ArmState.entered

    def counted(self: ArmState, *, training: bool) -> Any:
        entered[self.name] += training
        return whole(self, training=training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArmState, "entered", counted)
        return hl.sweep(SMALL, tmp_path_factory.mktemp("sweeps") / "whole", base=folder)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())


def cells(folder: Path) -> list[Path]:
    return [folder / c["folder"] for c in record(folder)["cells"]]


# ------------------------------------------------------------------------------------ a whole sweep


def test_every_cell_is_a_whole_run_folder(swept: Path) -> None:
    """It can be judged and reported by itself: every arm, its delta, its samples, its config."""
    assert record(swept)["status"] == "done"
    assert [p.name for p in cells(swept)] == [
        "repselect-kl0.01-seed0", "gradient_ascent-kl0.01-seed0",
        "repselect-kl0.01-seed1", "gradient_ascent-kl0.01-seed1",
    ]  # fmt: skip
    for cell in cells(swept):
        run = analysis.read_run(cell)
        for _, rows in run.curves.groupby(["attack", "setting"]):
            assert set(rows["arm"]) == {"edited", "original", "never"}
            assert rows.groupby("arm")["step"].agg(lambda s: tuple(sorted(set(s)))).nunique() == 1
        assert (cell / f"delta-seed{run.record['seeds'][0]}.safetensors").is_file()
        assert analysis.judge(run, write=False).verdict


def test_controls_are_attacked_once_for_all_cells(swept: Path, entered: Counter[str]) -> None:
    """Fine-tuned: once a seed and once for tuning; the edited arm in every cell and trial (the control)."""
    assert entered == {"original": 3, "never": 3, "edited": 4 + 2}
    for cell in cells(swept):  # nor do they cost a cell anything: its tokens are those of its edit and of its own arm
        run = analysis.read_run(cell)
        trained_on: Any = run.curves[run.curves["attack"] == "relearn"].groupby(["setting", "arm"])["tokens"].max()
        own = trained_on.xs("edited", level="arm").sum()
        edit = run.edits[0]["cost"]["tokens"]
        assert run.record["cost"]["tokens"] == edit + own < edit + trained_on.sum()


def test_shared_controls_are_those_that_a_run_alone_would_have_measured(
    swept: Path, folder: Path, tmp_path: Path
) -> None:
    """To the bit, also where an attack follows the edit and so cannot be shared."""
    cell = next(c for c in cells(swept) if c.name == "gradient_ascent-kl0.01-seed1")
    alone = hl.run(store.open_run(cell)["config"], tmp_path / "alone", base=folder)
    keys = ["attack", "setting", "arm", "step", "metric", "split", "item"]
    ours, theirs = (pd.read_parquet(f / "items.parquet").set_index(keys)["value"].sort_index() for f in (cell, alone))
    pd.testing.assert_series_equal(ours, theirs, check_exact=True)


def test_the_table_pools_seeds_and_prints_both_splits(swept: Path) -> None:
    found = analysis.sweep_table(swept)
    names = {p.name for p in swept.iterdir()}
    assert names >= {"sweep.parquet", "table.md", "table.csv", "table.tex", "tradeoff.png"}
    assert all((cell / "verdict.json").is_file() for cell in cells(swept))
    table = pd.read_parquet(swept / "sweep.parquet").set_index("run")
    assert table["seeds"].tolist() == [2, 2]
    starts = [
        pd.read_parquet(c / "curves.parquet").query("attack == 'none' and arm == 'edited' and metric == 'completion'")
        for c in cells(swept)
        if c.name.startswith("repselect")
    ]
    mean = pd.concat(starts)["value"].mean()
    assert table.loc["repselect-kl0.01", "completion: before"] == pytest.approx(mean, abs=1e-12)
    (row,) = found.tuning.to_dict("records")
    assert row["trials"] == "2 of 2" and row["ended"] == 2
    assert row["reporting split: completion: worst, any attack"] == pytest.approx(
        table.loc["repselect-kl0.01", "completion: worst, any attack"]
    )
    assert table.loc["gradient_ascent-kl0.01", "options"] == "as given"
    assert "chosen on the tuning split" in found.to_markdown() and found.missing.empty


def test_the_folder_of_a_sweep_is_compared_as_its_cells(swept: Path) -> None:
    """The rows of its own table, seeds pooled; its cells, given one by one, are runs of one seed each."""
    own, found = analysis.sweep_table(swept), analysis.compare([swept])
    pd.testing.assert_frame_equal(found.table, own.table[found.table.columns])
    assert found.table["seeds"].tolist() == [2, 2] and not found.notes
    alone = analysis.compare(cells(swept)).table
    assert alone["seeds"].tolist() == [1] * 4 and alone["run"].tolist() == [c.name for c in cells(swept)]
    assert (swept / "table.tex").read_text() == own.to_latex(), "one layout"


def test_a_comparison_of_a_sweep_says_how_options_were_chosen(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every value that was tried, as sweep.json has it, which was chosen, and both splits: of the folder and of what
    pack made of it, in the brief table, the long one and as JSON. Of its cells given one by one nothing is known
    (control)."""
    tuned = record(swept)["tuning"]["repselect-kl0.01"]
    values = {t["options"]["rank"]: t["value"] for t in tuned["trials"]}
    packed = analysis.pack(swept, tmp_path / "small.zip")
    for of in (swept, packed):
        (row,) = json.loads(hooklearn("compare", of, "--json").stdout)["tuning"]
        assert row["tried"] == [{"options": {"rank": rank}, "value": value} for rank, value in values.items()]
        assert row["run"] == "repselect-kl0.01" and row["method"] == "repselect" and row["searched"] == "rank"
        assert row["chosen"] == f"rank={tuned['chosen']['rank']}" and row["trials of the method"] == 2
        assert row["tuning split: completion after relearn"] == tuned["value"] == min(values.values())
        for form in (["--brief"], []):
            told = hooklearn("compare", of, *form).stdout
            assert told.count("chosen on the tuning split") == 1
            assert f"| rank | 4: {values[4]:.3g}, 16: {values[16]:.3g} | {row['chosen']} | 2 of 2 | 2 | 2 |" in told
    assert analysis.compare(cells(swept)).tuning.empty
    assert "tuning split" not in hooklearn("compare", *cells(swept), "--brief").stdout
    assert analysis.sweep_table(swept, write=False).tuning.equals(analysis.compare([swept]).tuning)
    _tell_sweep(swept, True)
    assert json.loads(capsys.readouterr().out)["tuning"] == record(swept)["tuning"], (
        "hooklearn sweep --json: the record"
    )
    both = analysis.compare([swept, packed]).tuning  # the same names twice: told apart as in the table
    assert both["run"].tolist() == ["whole/repselect-kl0.01", "small/repselect-kl0.01"]
    reported = both["reporting split: completion: worst, any attack"]
    assert reported.notna().all() and reported[0] == reported[1]


def test_trials_are_counted_over_all_labels_of_a_method(folder: Path) -> None:
    """At one budget: a method that is searched under two labels has twice the trials, which the table of a sweep and a
    dry run say. Another budget is another search."""

    def searched(value: float | None, *options: dict[str, Any]) -> dict[str, Any]:
        trials = [{"options": o, "value": value} for o in options]
        return {"trials": trials, "chosen": options[0], "value": value}

    some = [{"rank": r, "layers": "0-2"} for r in (4, 8)]
    declared = {"a": "natural", "a-wider": "natural", "npo": "npo"}
    families = {"a-kl0.01": "a", "a-wider-kl0.01": "a-wider", "a-kl0.02": "a", "npo-kl0.01": "npo"}
    made = {
        "cells": [{"family": family, "label": label} for family, label in families.items()],
        "declared": {label: {"name": name} for label, name in declared.items()},
        "tuning": {family: searched(None if "0.02" in family else 0.5, *some) for family in families},
        "fixed": {"tuning": {"trials": 2, "metric": "completion"}},
    }
    table = pd.DataFrame({"run": ["a-kl0.01"], "completion: before": [0.3]})
    found = tuning_table(made, table)
    assert found["trials of the method"].tolist() == [4, 4, 2, 2] and found["trials"].tolist() == ["2 of 2"] * 4
    assert found["method"].tolist() == ["natural", "natural", "natural", "npo"]
    assert found["ended"].tolist() == [2, 2, 0, 2] and found["reporting split: completion: before"].count() == 1
    assert "rank=4, layers=0-2: 0.5; rank=8, layers=0-2: 0.5 |" in tuning_markdown(found)
    assert tuning_markdown(tuning_table(made | {"tuning": {}}, table)) == ""
    here = tuning_table(made, table, {"npo-kl0.01": "first/npo"})  # of two sweeps: this one has no finished cell of a
    assert here["reporting split: completion: before"].isna().all(), "another sweep's cell is no report of this one"

    shipped = SHIPPED / "capitals-searched.yaml"
    trials = Plan.of(yaml.safe_load(shipped.read_text("utf-8")), SHIPPED).trials()
    assert [trials[f"{m}-kl0.01"] for m in ("natural", "natural-wider", "npo", "gradient_ascent")] == [6, 6, 3, 0]
    file = folder / "wider.yaml"
    first = SMALL["methods"][0]
    file.write_text(yaml.safe_dump(SMALL | {"methods": [*SMALL["methods"], first | {"label": "wider"}]}), "utf-8")
    told = json.loads(hooklearn("sweep", file, "--dry-run", "--json", "-q", "--only", "*-seed0").stdout)
    expected = {"repselect-kl0.01": 4, "gradient_ascent-kl0.01": 0, "wider-kl0.01": 4}
    assert told["trials of the method"] == expected
    shown = hooklearn("sweep", file, "--dry-run", "-q").stdout
    assert "trials of the method" in shown
    file.write_text(yaml.safe_dump(QUICK), "utf-8")
    assert "trials" not in hooklearn("sweep", file, "--dry-run", "-q").stdout


@pytest.mark.parametrize("command", ["report", "verify"])
def test_what_is_asked_of_a_sweep_and_is_of_its_cells_says_so(command: str, swept: Path) -> None:
    done = hooklearn(command, swept)
    assert done.exit_code == 2 and f"{swept}/cells/*" in done.stderr and len(done.stderr.splitlines()) == 1


def test_cells_without_a_result_are_told_in_a_comparison(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept, tmp_path / "part")
    content = record(swept)
    content["cells"][0]["status"] = "failed"
    (tmp_path / "part" / "sweep.json").write_text(json.dumps(content))
    found = analysis.compare([tmp_path / "part"])
    assert found.table["seeds"].tolist() == [1, 2] or found.table["seeds"].tolist() == [2, 1]
    assert any("1 of 4 cells have no result: cells/repselect-kl0.01-seed0" in n for n in found.notes)


def test_a_packed_sweep_is_compared_like_its_folder_and_goes_on(swept: Path, folder: Path, tmp_path: Path) -> None:
    """The same tables out of a file without weights; unzipped, another seed is added and nothing is run again."""
    file, again = analysis.pack(swept, tmp_path / "small.zip"), analysis.pack(swept, tmp_path / "again.zip")
    assert file.read_bytes() == again.read_bytes(), "the same record is the same file"
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "on")
    assert {"sweep.json", "controls/seed0/items.parquet", "tuning/repselect-kl0.01/0/run.json"} <= set(names)
    assert not [n for n in names if n.endswith(".safetensors") or "/parts/" in n or "/." in n]
    mine, theirs = analysis.compare([file]), analysis.compare([swept])
    for frame in ("table", "controls", "differences", "unlearning"):
        pd.testing.assert_frame_equal(getattr(mine, frame), getattr(theirs, frame))
    first = {c.name: (c / "run.json").read_bytes() for c in cells(tmp_path / "on")}
    more = hl.sweep(SMALL | {"seeds": [0, 1, 2]}, tmp_path / "on", base=folder, resume=True)
    assert record(more)["status"] == "done" and len(cells(more)) == 6
    assert {c.name: (c / "run.json").read_bytes() for c in cells(more)[:4]} == first


@pytest.mark.parametrize("text", ["[1]", "[]", "null", '{"fixed": 3}', "{}", '{"schema_version": 1, "cells": [3]}'])
def test_a_damaged_record_of_a_sweep_is_one_line(tmp_path: Path, text: str) -> None:
    """Before anything is loaded; another version is told as what it is."""
    (tmp_path / "sweep.json").write_text(text)
    damaged = hooklearn("sweep", ROOT / "benchmarks" / "sweeps" / "tiny.yaml", "--out", tmp_path, "--resume", "-q")
    assert damaged.exit_code == 2 and damaged.stderr.count("\n") == 1 and "sweep.json: damaged" in damaged.stderr
    (tmp_path / "sweep.json").write_text('{"schema_version": 99}')
    later = hooklearn("sweep", ROOT / "benchmarks" / "sweeps" / "tiny.yaml", "--out", tmp_path, "--resume", "-q")
    assert later.exit_code == 2 and "schema_version 99" in later.stderr


def test_a_packed_run_is_compared_and_says_what_it_is_not(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for what is no record, is damaged or too large; the same file whole is compared (the control)."""
    cell, packed = cells(swept)[1], tmp_path / "cell.zip"
    done = hooklearn("pack", cell, "--out", packed, "--json")
    assert json.loads(done.stdout)["bytes"] == packed.stat().st_size
    assert hooklearn("compare", packed, "--brief").stdout.count("gradient_ascent") == 1
    by_attack = hooklearn("compare", packed, "--attacks", "--figure", tmp_path / "attacks.png").stdout
    assert "|  | before |" in by_attack and (tmp_path / "attacks.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "no.zip").write_bytes(b"PK")
    damaged = bytearray(packed.read_bytes())
    damaged[200:260] = bytes(60)  # in the data of the first file
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    shutil.copytree(cell, tmp_path / "running")
    begun = json.loads((cell / "run.json").read_text()) | {"status": "running"}
    (tmp_path / "running" / "run.json").write_text(json.dumps(begun))
    for args, why in (
        (("compare", tmp_path / "no.zip"), "damaged, or no zip"),
        (("compare", tmp_path / "damaged.zip"), "damaged, or no zip"),
        (("compare", tmp_path / "other.zip"), "neither run.json nor sweep.json"),
        (("pack", tmp_path, "--out", tmp_path / "x.zip"), "neither a run folder nor that of a sweep"),
        (("pack", tmp_path / "running", "--out", tmp_path / "x.zip"), "has not ended"),
        (("pack", cell, "--out", tmp_path / "x.tar"), "a packed record is a .zip"),
    ):
        done = hooklearn(*args)
        assert done.exit_code == 2 and why in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.zip").exists()
    monkeypatch.setattr(packing, "LARGEST", 1000)
    shutil.copy(packed, tmp_path / "large.zip")
    done = hooklearn("compare", tmp_path / "large.zip")
    assert done.exit_code == 2 and "more than 1,000" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_chosen_options_are_the_lowest_of_the_trials_and_reach_the_cells(swept: Path) -> None:
    tuned = record(swept)["tuning"]["repselect-kl0.01"]
    values = {}
    for trial in tuned["trials"]:
        curves = pd.read_parquet(swept / trial["folder"] / "curves.parquet")
        rows = curves[(curves["arm"] == "edited") & (curves["metric"] == "completion")]
        values[trial["options"]["rank"]] = rows["value"].max()
        assert trial["value"] == rows["value"].max()
    assert len(values) == 2 and tuned["chosen"] == {"rank": min(values, key=values.__getitem__)}
    for cell in cells(swept):
        edit = store.open_run(cell)["edits"][0]
        if edit["method"] == "repselect":
            assert edit["options"]["rank"] == tuned["chosen"]["rank"]


def test_the_edit_of_the_chosen_trial_is_not_made_anew(swept: Path, folder: Path, tmp_path: Path) -> None:
    """One file under two names, with the cost of making it; and the cell is what a run alone would have been, to the
    bit. Another seed, and a method that was not searched, make their own (the control)."""
    first, *others = cells(swept)
    tuned = record(swept)["tuning"]["repselect-kl0.01"]
    trial = swept / next(t["folder"] for t in tuned["trials"] if t["options"] == tuned["chosen"])
    edit = store.open_run(first)["edits"][0]
    assert (first / edit["taken_from"]).resolve() == trial.resolve()
    assert edit["cost"] == store.open_run(trial)["edits"][0]["cost"]
    assert (first / "delta-seed0.safetensors").samefile(trial / "delta-seed0.safetensors")
    assert not any("taken_from" in store.open_run(cell)["edits"][0] for cell in others)

    alone = hl.run(store.open_run(first)["config"], tmp_path / "alone", base=folder)
    keys = ["attack", "setting", "arm", "step", "metric", "split", "item"]
    ours, theirs = (pd.read_parquet(f / "items.parquet").set_index(keys)["value"].sort_index() for f in (first, alone))
    pd.testing.assert_series_equal(ours, theirs, check_exact=True)
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(f / "trace.parquet").drop(columns="seconds", errors="ignore") for f in (first, alone))
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"edit": {"rank": 16}}, {"budget": {"kl": 0.02}}, {"max_tokens": 64}, {"seeds": [3]},
        {"corpora": {"retain": {"path": "retain.jsonl", "limit": 20}}},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_an_edit_is_taken_only_where_it_is_the_same(
    changed: dict[str, Any], swept: Path, folder: Path, tmp_path: Path
) -> None:
    """Whatever an edit follows from is looked at: with one thing changed it is made. What it does not read, here the
    items that are asked about, may differ (the control)."""
    trial = next((swept / "tuning").glob("repselect-kl0.01/*"))
    asked = store.open_run(trial)["config"] | {"attacks": []}

    def edit(name: str, config: dict[str, Any]) -> dict[str, Any]:
        out = experiment.run(parse(config), tmp_path / name, base=folder, made=[trial])
        return store.open_run(out)["edits"][0]

    about = store.open_run(trial)
    model = about["model"] | {"tokenizer": "of another chat template"}
    assert reuse._reads_otherwise(about, about | {"model": model}) and not reuse._reads_otherwise(about, about)
    assert not reuse._reads_otherwise(about, about | {"model": {**model, "tokenizer": None}}), "of an earlier version"
    other_items = asked | {"corpora": asked["corpora"] | {"heldout": {"path": "heldout.jsonl"}}}
    assert "taken_from" in edit("same", other_items)
    merged = {k: asked[k] | v if isinstance(v, dict) else v for k, v in changed.items()}
    assert "taken_from" not in edit("other", asked | merged)


def test_edits_are_taken_from_another_sweep_under_other_attacks(swept: Path, folder: Path, tmp_path: Path) -> None:
    """Of a cell or a trial there; what is a default may be written out. Another rank is made (the control). A folder
    without runs is one line."""
    file = folder / "more.yaml"
    methods = [
        {"name": "gradient_ascent", "label": "ascent"},
        {"name": "repselect", "label": "written-out", **method_of("repselect", {"rank": 4}).options()},
        {"name": "repselect", "rank": 8},
    ]
    data = {**QUICK, "methods": methods, "attacks": [{"name": "noise"}]}
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    result = hooklearn("sweep", file, "--out", tmp_path / "more", "--edits-from", swept, "-q")
    assert result.exit_code == 0, result.stderr
    edits = [store.open_run(cell)["edits"][0] for cell in cells(tmp_path / "more")]
    assert ["taken_from" in edit for edit in edits] == [True, True, False]
    assert Path(edits[0]["taken_from"]).parts[-3:] == ("whole", "cells", "gradient_ascent-kl0.01-seed0")
    result = hooklearn("sweep", file, "--out", tmp_path / "none", "--edits-from", tmp_path, "-q")
    assert result.exit_code == 2 and "holds no run and no sweep" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "none").exists()


def test_a_method_is_tuned_just_before_its_first_cell(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a sweep which is stopped has whole rows, and not every method tuned and none reported."""
    order: list[str] = []
    monkeypatch.setattr(controls, "measure", lambda *_, **__: None)
    monkeypatch.setattr(sweeping.Sweep, "_choose", lambda _, family, __: order.append(f"tune {family.spec.label}"))
    monkeypatch.setattr(sweeping.Sweep, "_cell", lambda _, cell, *__: order.append(f"{cell['label']} {cell['seed']}"))
    searched = [{"name": "repselect", "label": label, "search": {"rank": [4, 16]}} for label in ("a", "b")]
    hl.sweep(SMALL | {"methods": [searched[0], "gradient_ascent", searched[1]]}, tmp_path / "sweep", base=folder)
    first = ["tune a", "a 0", "gradient_ascent 0", "tune b", "b 0"]
    assert order == [*first, "a 1", "gradient_ascent 1", "b 1"], "and once for all of its seeds"


def test_a_trial_that_failed_is_tried_again_until_a_cell_is_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a full disk would leave one method a smaller search than the others; what was reported is not taken back."""
    out, whole, full, begun = tmp_path / "sweep", experiment.run, {"1", "cells"}, list[str]()

    def run(config: Any, path: Path, **how: Any) -> Any:
        place = path.name if path.parent.parent.name == "tuning" else path.parent.name
        begun.append(place)
        if place in full:
            raise InputError(f"{path}: No space left on device")
        return whole(config, path, **how)

    def resumed(*seeds: int) -> list[Any]:
        begun.clear()
        hl.sweep(SMALL | {"seeds": list(seeds or (0,)), "methods": SMALL["methods"][:1]}, out, base=folder, resume=True)
        return [t["value"] for t in record(out)["tuning"]["repselect-kl0.01"]["trials"]]

    monkeypatch.setattr(experiment, "run", run)
    first = resumed()
    assert begun == ["0", "1", "cells"] and first[1] is None, "decided by one trial, and its cell failed"
    full -= {"1"}
    assert None not in resumed() and begun == ["1", "cells"]
    full -= {"cells"}
    resumed()
    assert begun == ["cells"]
    content = record(out)
    content["tuning"]["repselect-kl0.01"]["trials"][1]["error"] = "a fault"
    (out / "sweep.json").write_text(json.dumps(content))
    resumed(0, 1)
    assert begun == ["cells"], "that of the other seed"


def test_a_sweep_that_was_begun_keeps_its_sites_and_its_texts(folder: Path, tmp_path: Path) -> None:
    """Cells that are compared were made at the same places, and measured on the same rows: refused in a line, also for
    a seed that is new. The same again goes on (control)."""
    plan = {**QUICK, "methods": ["gradient_ascent"]}
    out = hl.sweep(plan, tmp_path / "sweep", base=folder)
    assert hl.sweep(plan, out, base=folder, resume=True) == out
    other = plan | {"overrides": [*plan.get("overrides", []), "edit.sites=mlp.out"], "seeds": [0, 1]}
    with pytest.raises(InputError, match="holds a sweep with another edit.sites and edit.layers"):
        hl.sweep(other, out, base=folder, resume=True)
    content = record(out)
    del content["fixed"][sweep_record.PLACES]  # as an earlier version wrote it: then a finished cell says it
    (out / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="holds a sweep with another edit.sites and edit.layers"):
        hl.sweep(other, out, base=folder, resume=True)
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    rows = (changed / "heldout.jsonl").read_text().splitlines()
    (changed / "heldout.jsonl").write_text("\n".join(reversed(rows)) + "\n")
    with pytest.raises(InputError, match="began with another corpora.heldout"):
        hl.sweep(plan | {"seeds": [0, 1]}, out, base=changed, resume=True)


def test_a_cell_that_was_begun_with_other_options_does_not_stand_in_the_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial failed, so another value was chosen, and its cell broke off: when the trial is made good the cell is made
    with what is chosen then. What was begun is kept aside."""
    out, whole, full = tmp_path / "sweep", experiment.run, {"1", "cells"}

    def run(config: Any, path: Path, **how: Any) -> Any:
        place = path.name if path.parent.parent.name == "tuning" else path.parent.name
        if place == "1" and place in full:
            raise InputError(f"{path}: No space left on device")
        made = whole(config, path, **how)
        if place in full:
            content = store.open_run(path)
            (path / "run.json").write_text(json.dumps(content | {"status": "failed"}))
            raise InputError(f"{path}: No space left on device")
        return made

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(sweeping, "lowest_is_best", lambda path, _: {"0": 0.5, "1": 0.1}[path.name])
    plan = SMALL | {"methods": SMALL["methods"][:1], "seeds": [0]}
    hl.sweep(plan, out, base=folder)
    first = record(out)["tuning"]["repselect-kl0.01"]["chosen"]
    full.clear()
    hl.sweep(plan, out, base=folder, resume=True)
    chosen = record(out)["tuning"]["repselect-kl0.01"]["chosen"]
    assert chosen != first and record(out)["status"] == "done"
    (cell,) = (out / "cells").iterdir()
    assert store.open_run(cell)["config"]["edit"]["rank"] == chosen["rank"]
    assert [p.name for p in (out / "set-aside").iterdir()] == [f"{cell.name}-0"]
    content = store.open_run(cell)
    for key in ("site_batch", "layers"):  # as an earlier version wrote it: what is not said is at its default
        del content["config"]["edit"][key]
    (cell / "run.json").write_text(json.dumps(content))
    sweep = sweeping.Sweep(Plan.of(plan, folder), out, {}, "", lambda _: None)
    asked = sweep.plan.cell(sweep.plan.families()[0], 0, chosen)
    sweep._set_aside(cell, asked)
    assert cell.is_dir()
    panel = {"capability": asked.corpora["heldout"]}
    with_panel = asked.model_copy(update={"corpora": asked.corpora | panel})
    assert not sweep_record.cell_goes_on(cell, with_panel) and sweep_record.cell_goes_on(cell, asked)
    sweep._set_aside(cell, asked.model_copy(update={"edit": asked.edit.model_copy(update={"site_batch": 2})}))
    assert not cell.exists(), "a run folder goes on with its own config only"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budgets": [{"kl": None, "near_ce": 0.02}]}, "budget.kl is null"),
        ({"methods": [{"name": "natural", "layers": 2.5}]}, "method 'natural': layers"),
        ({"methods": [{"name": "natural", "site_batch": 0}]}, "method 'natural': site_batch"),
        ({"methods": [{"name": "natural", "checkpoint": "x"}]}, "checkpoint is an edit made elsewhere"),
    ],
)
def test_what_no_cell_could_be_made_of_is_a_line(changed: dict[str, Any], words: str) -> None:
    plan = Plan.of({"base": "tiny", "methods": ["natural"], **changed}, Path()) if "budgets" not in changed else None
    with pytest.raises(InputError, match=words):
        plan = plan or Plan.of({"base": "tiny", "methods": ["natural"], **changed}, Path())
        plan.cell(plan.families()[0], 0, {})


def test_trials_of_a_method_that_asks_the_referee_are_decided_by_samples() -> None:
    """Else they draw none. Said before anything is measured, and by a dry run."""
    rounds = {"name": "natural_rounds", "on_policy": 1, "search": {"damping": [0.1, 1.0]}}
    given = {"base": "tiny", "methods": [rounds], "tuning": {"trials": 2, "corpora": {"heldout": {"name": "tiny"}}}}
    for metric, refused in (("completion", True), ("sampled", False)):
        plan = Plan.of(given | {"tuning": given["tuning"] | {"metric": metric}}, Path())
        if refused:
            with pytest.raises(InputError, match="'natural_rounds' asks the referee .* tuning.metric is completion"):
                check_trials(plan)
        else:
            check_trials(plan)
            check_needs(plan.trial(plan.families()[0], {"damping": 0.1}))


@pytest.mark.parametrize(
    ("metric", "rows", "words"),
    [
        ("preference", [{"prompt": "a", "completion": " b"}], "neither 'alternative' nor 'choices'"),
        ("sampled", [{"text": "a b c"}], "nothing is sampled of tuning.corpora.heldout: heldout is running text"),
        ("preference", [{"prompt": "a", "completion": " b", "alternative": " c"}], None),
        ("completion", [{"text": "a b c"}], None),
    ],
)
def test_a_metric_that_no_trial_could_have_is_told_before_the_first(
    metric: str, rows: list[dict[str, Any]], words: str | None
) -> None:
    given = small() | {"base": {**small()["base"], "behaviour": {"samples": 4}}}
    plan = Plan.of(given | {"tuning": given["tuning"] | {"metric": metric}}, Path())
    trials = SimpleNamespace(config=plan.tuning(), corpora={"heldout": Corpus("mine", tuple(rows))})
    if words is None:
        check_measurable(plan, trials)  # type: ignore[arg-type]
    else:
        with pytest.raises(InputError, match=words):
            check_measurable(plan, trials)  # type: ignore[arg-type]


def test_a_key_that_a_sweep_was_begun_without_stands_at_its_default() -> None:
    """And not at what the file says today: a sweep that was begun is one of other cells then."""
    base = small()["base"] | {"max_tokens": 256}
    plan = Plan.of(small() | {"base": base}, Path())
    now = sweep_record.fixed(plan, {})
    earlier = {"fixed": {**now, "base": {k: v for k, v in now["base"].items() if k != "max_tokens"}}}
    with pytest.raises(InputError, match="another base"):
        sweep_record.check_goes_on(plan, Path(), earlier, now)
    usual = Plan.of(small(), Path())  # control: it asks for the default
    sweep_record.check_goes_on(usual, Path(), earlier, sweep_record.fixed(usual, {}))


def test_a_layer_that_no_cell_has_is_told_before_the_first_is_made(folder: Path) -> None:
    file = folder / "layers.yaml"
    cir = {"name": "cir", "target_layers": [9]}
    file.write_text(yaml.safe_dump(SMALL | {"methods": ["gradient_ascent", cir]}), "utf-8")
    done = hooklearn("sweep", file, "--out", folder / "layers", "-q")
    assert done.exit_code == 2 and "cir: layers [9] must be some of 0-1" in done.stderr
    assert not list((folder / "layers").glob("controls/*")) and not list((folder / "layers").glob("cells/*/run.json"))


def test_a_base_that_fits_by_batches_of_sites_has_cells_that_do() -> None:
    """Unless a method says otherwise."""
    methods = ["natural", {"name": "natural", "label": "whole", "site_batch": None}]
    plan = Plan.of({"base": "tiny", "overrides": ["edit.site_batch=4"], "methods": methods}, Path())
    assert [plan.cell(family, 0, {}).edit.site_batch for family in plan.families()] == [4, None]


def test_a_sweep_of_an_earlier_version_says_its_places_by_a_cell_that_named_none(swept: Path, folder: Path) -> None:
    """Not by one that searched them, or whose method is no longer in the file."""
    plan, earlier = Plan.of(QUICK, folder), record(swept)
    first = {c["label"] for c in earlier["cells"] if c["status"] == "done"}
    own = {label: {"name": label, "search": {"layers": ["0", "1"]}} for label in first}
    assert sweep_record.places(plan, swept, earlier) == {"sites": "mlp", "layers": None}
    assert sweep_record.places(plan, swept, earlier | {"declared": own}) is None


def test_what_was_not_measured_decides_nothing() -> None:
    trials = [{"options": {"a": i}, "value": v, "error": None} for i, v in enumerate([float("nan"), 0.3, 0.2, 0.2])]
    assert decide(trials)["chosen"] == {"a": 2}, "the first of equals"
    for trial, completion in zip(trials, [0.1, 0.1, 0.5, 0.4], strict=True):
        trial["completion"] = completion
    assert decide(trials)["chosen"] == {"a": 3}, "of equals the one with the lowest completion probability"
    nothing = decide([{"options": {}, "value": float("nan"), "error": "it broke"}])
    assert nothing["chosen"] is None and "it broke" in nothing["error"]


def test_half_made_controls_of_an_earlier_version_are_continued(swept: Path, folder: Path, tmp_path: Path) -> None:
    """Whose record lacks an option that has come since: what is there stays, what is missing is made, to the bit."""
    again, name = tmp_path / "again", "gradient_ascent-kl0.01-seed0"
    shutil.copytree(swept, again)
    shutil.rmtree(again / "cells" / name)
    half = again / "controls/seed0"
    written = json.loads((half / "run.json").read_text())
    del written["config"]["deterministic"]
    written["config"]["corpora"]["capability"] = {"name": "capability"}  # a panel was taken out, or put in, since
    (half / "run.json").write_text(json.dumps(written | {"status": "running"}))
    *kept, last = sorted((half / "parts").glob("curves-*-items.parquet"))
    for part in (half / "parts").glob(last.name.replace("-items.parquet", "*")):
        part.unlink()
    times = [part.stat().st_mtime_ns for part in kept]
    hl.sweep(SMALL, again, base=folder, resume=True)
    assert [part.stat().st_mtime_ns for part in kept] == times and last.exists()
    ours, before = (pd.read_parquet(f / "cells" / name / "items.parquet") for f in (again, swept))
    pd.testing.assert_frame_equal(ours, before, check_exact=True)


def test_controls_come_back_from_their_folder_as_they_were(swept: Path) -> None:
    """Items, tokens and flags; a curve that is written and read is the same curve."""
    measured = controls.read(swept / "controls/seed0")
    assert ("none", "") in measured.curves and not any(a == "ablate_direction" for a, _ in measured.curves)
    frame = pd.read_parquet(swept / "controls/seed0/curves.parquet")
    rows = frame.set_index(["attack", "setting", "arm", "step", "metric", "split"])
    points = {
        (*attacker, arm, p.step, p.metric, p.split): (p.score.value, p.tokens, curve.converged)
        for attacker, arms in measured.curves.items()
        for arm, curve in arms.items()
        for p in curve.points
    }
    assert set(points) == set(rows.index) and len(points) == len(rows)
    for key, found in points.items():
        assert found == tuple(rows.loc[key, ["value", "tokens", "converged"]])


# ----------------------------------------------------------------------------- kills and failures


def test_a_killed_sweep_goes_on_where_it_was(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cell is left alone, the second ends with the numbers of a sweep that was never killed."""
    whole, out = hl.sweep(QUICK, tmp_path / "whole", base=folder), tmp_path / "killed"
    stages = experiment.attack_stages

    def killed(config: Any, arena: Any, run: Any, *more: Any) -> None:
        if "repselect" in run.folder.name:
            raise KeyboardInterrupt
        stages(config, arena, run, *more)

    monkeypatch.setattr(experiment, "attack_stages", killed)
    with pytest.raises(KeyboardInterrupt):
        hl.sweep(QUICK, out, base=folder)
    assert record(out)["status"] == "interrupted"
    assert [c["status"] for c in record(out)["cells"]] == ["done", "waiting"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="already holds a sweep"):
        hl.sweep(QUICK, out, base=folder)
    first = (cells(out)[0] / "run.json").read_bytes()
    analysis.report(cells(out)[1])  # somebody looks at what is there so far
    hl.sweep(QUICK, out, base=folder, resume=True)
    assert (cells(out)[0] / "run.json").read_bytes() == first
    assert not [*cells(out)[1].glob("report.*")], "what followed from half a cell is not said of the whole"
    for made in (out, whole):
        analysis.sweep_table(made)
    verdicts = [(cells(made)[1] / "verdict.json").read_bytes() for made in (out, whole)]
    assert verdicts[0] == verdicts[1]
    assert record(out)["status"] == "done"
    for a, b in zip(cells(out), cells(whole), strict=True):
        assert (a / "items.parquet").read_bytes() == (b / "items.parquet").read_bytes()

    # another processor finds the other precision faster: the sweep goes on in the one it began with
    began_with = record(out)["precision"]
    monkeypatch.setattr(forward, "_bfloat16_pays", lambda: began_with != "bfloat16")
    begun = record(out)
    for new in ("deterministic", "evidence"):  # options that there were not when it was begun
        del begun["fixed"]["base"][new]
    (out / "sweep.json").write_text(json.dumps(begun))
    more = hl.sweep({**QUICK, "seeds": [0, 1]}, out, base=folder, resume=True)
    assert [c["status"] for c in record(more)["cells"]] == ["done"] * 4
    assert (cells(out)[0] / "run.json").read_bytes() == first, "seeds may be added"
    found = {json.loads((c / "run.json").read_text())["environment"]["precision"] for c in cells(out)}
    assert found == {record(out)["precision"]} == {began_with}
    other = {**QUICK, "attacks": [{"name": "relearn", "learning_rates": [1e-3]}]}
    with pytest.raises(InputError, match="holds a sweep with another base"):
        hl.sweep(other, out, base=folder, resume=True)
    changed = {**QUICK, "methods": ["gradient_ascent", {"name": "repselect", "rank": 4}]}
    with pytest.raises(InputError, match="'repselect' was declared otherwise"):
        hl.sweep(changed, out, base=folder, resume=True)


@pytest.mark.parametrize(
    "less",
    [{"methods": ["gradient_ascent"]}, {"budgets": [{"kl": 0.02}]}, {"seeds": [1]}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_is_finished_is_not_taken_out_of_a_sweep(folder: Path, tmp_path: Path, less: dict[str, Any]) -> None:
    """It would be gone from every table without a word. What was never finished may go (the control)."""
    sweep = QUICK | {"attacks": []}
    out = hl.sweep(sweep, tmp_path / "out", base=folder, only=["repselect-*"])
    before = (out / "sweep.json").read_bytes()
    with pytest.raises(InputError, match="repselect-kl0.01-seed0 is finished, .* asks no longer for 'repselect'"):
        hl.sweep(sweep | less, out, base=folder, resume=True)
    assert (out / "sweep.json").read_bytes() == before
    if "methods" in less:
        hl.sweep(sweep | {"methods": ["repselect"]}, out, base=folder, resume=True)
        assert [(c["label"], c["status"]) for c in record(out)["cells"]] == [("repselect", "done")]


def test_a_cell_that_fails_is_a_record_and_stops_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, edit = tmp_path / "out", experiment.run_edit

    def broken(problem: Any, method: Any, *rest: Any, **how: Any) -> Any:
        if method.name == "gradient_ascent":
            raise RuntimeError("no convergence\nin line 2")
        return edit(problem, method, *rest, **how)

    file = folder / "failing.yaml"
    file.write_text(yaml.safe_dump(QUICK), encoding="utf-8")
    monkeypatch.setattr(experiment, "run_edit", broken)
    result = hooklearn("sweep", file, "--out", out, "-q", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert [c["status"] for c in told["cells"]] == ["failed", "done"] and told["status"] == "failed"
    error = "RuntimeError: no convergence in line 2"
    assert told["cells"][0]["error"] == error == store.open_run(cells(out)[0])["error"]
    assert result.stderr == f"failed: {told['cells'][0]['folder']}: {error}\n"
    assert error in (out / "table.md").read_text() and len(told["runs"]) == 1

    monkeypatch.undo()
    other = hooklearn("sweep", file, "--out", out, "-q", "--resume", "--only", "repselect-*")
    assert other.exit_code == 1 and error in other.stderr, (
        "what failed and is not tried anew is still said to have failed"
    )
    assert [c["status"] for c in record(out)["cells"]] == ["failed", "done"]
    again = hooklearn("sweep", file, "--out", out, "-q", "--resume")
    assert again.exit_code == 0 and again.stdout.startswith("| "), again.stderr
    assert [c["status"] for c in record(out)["cells"]] == ["done", "done"]


# --------------------------------------------------------------------------------------- the file


BAD = {
    "search without tuning": ({"tuning": None}, "there is no tuning section"),
    "an unequal search": ({"tuning": SMALL["tuning"] | {"trials": 3}}, "offers 2 settings for 3 trials"),
    "no other split": ({"tuning": SMALL["tuning"] | {"corpora": {}}}, "corpora.heldout is missing"),
    "the same twice": ({"methods": ["gradient_ascent", "gradient_ascent"]}, "is there twice; give each a label"),
    "an unknown key": ({"budget": {"kl": 0.01}}, "did you mean 'budgets'?"),
    "an unknown key below": ({"tuning": SMALL["tuning"] | {"trial": 2}}, "did you mean 'trials'?"),
    "an unknown method": ({"methods": ["gradient_ascend"]}, "did you mean 'gradient_ascent'?"),
    "an unknown option": ({"methods": [{"name": "repselect", "search": {"rnak": [1, 2]}}]}, "did you mean 'rank'?"),
    "a budget of nothing": ({"budgets": [{"kl": 0}]}, "budget.kl must be a positive number"),
    "a method without its corpus": (
        {"methods": ["gradient_ascent", "npo"], "overrides": ["corpora.retain=null"], "tuning": None},
        "method 'npo' needs corpora.retain, which is not given",
    ),
    "a method under another name": (
        {"methods": [{"name": "gradient_ascent", "method": "repselect"}], "tuning": None}, "leave `method` out",
    ),
    "a base that is nowhere": ({"base": "tinyy"}, "did you mean 'tiny'?"),
    "the reported items": (
        {"tuning": SMALL["tuning"] | {"corpora": {"heldout": {"path": "heldout.jsonl"}}}},
        "shares 20 of its 20 rows with corpora.heldout",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_wrong_file_is_one_line(what: str, folder: Path, tmp_path: Path) -> None:
    changed, said = BAD[what]
    file = folder / "wrong.yaml"
    file.write_text(yaml.safe_dump(SMALL | changed), encoding="utf-8")
    result = hooklearn("sweep", file, "--out", tmp_path / "out", "-q")
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"], "nothing was begun"


def test_more_settings_than_trials_are_drawn_by_the_label() -> None:
    wide = {"a": list(range(5)), "b": ["x", "y"]}
    specs = [MethodSpec.model_validate({"name": "natural", "label": n, "search": wide}) for n in ("one", "one", "two")]
    drawn = [s.settings(4) for s in specs]
    assert [len(d) for d in drawn] == [4, 4, 4] and drawn[0] == drawn[1] != drawn[2]
    assert len(specs[0].settings(10)) == 10 and MethodSpec.model_validate("natural").settings(3) == [{}]


def test_dry_run_names_cells_and_cost_and_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    before = sorted(folder.iterdir())
    result = hooklearn("sweep", file, "--dry-run", "--json", "-q")
    told = json.loads(result.stdout)
    assert len(told["cells"]) == 4 and sorted(folder.iterdir()) == before
    runs = {r["stage"]: r["runs"] for r in told["estimate"]}
    assert runs == {"tuning, controls": 1, "tuning": 2, "controls": 2, "cells": 4, "total": 9}
    assert all(r["seconds"] > 0 for r in told["estimate"])
    some = json.loads(
        hooklearn("sweep", file, "--dry-run", "--json", "-q", "--only", "*ascent*", "--only", "*1").stdout
    )
    assert some["cells"] == ["gradient_ascent-kl0.01-seed0", "repselect-kl0.01-seed1", "gradient_ascent-kl0.01-seed1"]
    assert {r["stage"]: r["runs"] for r in some["estimate"]}["cells"] == 3


def test_some_cells_now_and_the_others_another_time(folder: Path, tmp_path: Path) -> None:
    """A pattern chooses; what it leaves waits, and is not lost when others are run."""
    out = hl.sweep(QUICK, tmp_path / "some", base=folder, only=["repselect-*"])
    assert record(out)["status"] == "waiting"
    assert [c["status"] for c in record(out)["cells"]] == ["waiting", "done"]
    first = (cells(out)[1] / "run.json").read_bytes()
    hl.sweep(QUICK, out, base=folder, resume=True, only=["*ascent*seed0"])
    assert record(out)["status"] == "done" and (cells(out)[1] / "run.json").read_bytes() == first
    with pytest.raises(InputError, match=r"'npo\*' matches none of the cells gradient_ascent-kl0.01-seed0, "):
        hl.sweep(QUICK, tmp_path / "none", base=folder, only=["repselect-*", "npo*"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["tiny", "capitals", "threats", "schoolbook", "flattery"])
def test_shipped_sweeps_name_methods_and_options_that_exist(name: str) -> None:
    """And every method that is searched has the same number of trials."""
    from hooklearn.running.checks import check

    file = SHIPPED / f"{name}.yaml"
    plan = Plan.of(yaml.safe_load(file.read_text("utf-8")), file.parent)
    assert plan.config.tuning is not None
    for family in plan.families():
        settings = family.spec.settings(plan.config.tuning.trials)
        assert len(settings) == (plan.config.tuning.trials if family.spec.search else 1)
        for options in settings:
            check(plan.cell(family, 0, options))
    check(plan.tuning())


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_sweep_asks_for_what_there_is(file: Path) -> None:
    from hooklearn.running.checks import check

    plan = Plan.of(yaml.safe_load(file.read_text("utf-8")), file.parent)
    assert plan.families()
    for family in plan.families():
        for options in family.spec.settings(1):
            check(plan.cell(family, plan.config.seeds[0], options))


def test_trials_that_come_from_the_hub_keep_it_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the base needs nothing from there it is switched off (control), and not where the tuning split does."""
    from huggingface_hub import constants

    from hooklearn.cli.job import stay_offline
    from hooklearn.config import CorpusConfig

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    base = Plan.of(yaml.safe_load((SHIPPED / "tiny.yaml").read_text("utf-8")), SHIPPED).base
    stay_offline(base, {"heldout": CorpusConfig(hub="locuslab/TOFU")})
    assert not constants.HF_HUB_OFFLINE
    stay_offline(base)
    assert constants.HF_HUB_OFFLINE


def test_a_sweep_that_is_not_there_is_one_line(files: Files) -> None:
    with pytest.raises(InputError, match="it has no sweep.json"):
        analysis.sweep_table(files.folder)
    result = hooklearn("sweep", files.folder / "none.yaml")
    assert result.exit_code == 2 and "cannot be read" in result.stderr
