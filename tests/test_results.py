"""The numbers that are published are those of the records that are published with them."""

from __future__ import annotations

import json
import re
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import analysis
from benchmarks import all_methods, whole_battery

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.zip"))


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| --- ")]


@pytest.mark.parametrize("file", RECORDS, ids=lambda p: p.stem)
def test_the_table_of_a_record_stands_in_the_results_to_the_digit(file: Path) -> None:
    """Every row that ``hooklearn compare FILE --brief`` prints, and that command; another number would be missed."""
    made = rows(all_methods.read(file.stem).brief_markdown())
    assert f"hooklearn compare benchmarks/records/{file.name} --brief" in PAGE
    assert len(made) >= 4, "a heading, a method and two controls"
    assert [row for row in made if row not in PAGE] == []
    assert made[1].replace(" → ", " → 9") not in PAGE  # the positive control


def test_the_tables_by_attack_stand_in_the_results_to_the_digit() -> None:
    """Of every record whose page names that command."""
    named = re.findall(r"hooklearn compare (benchmarks/records/\S+\.zip) --attacks(?: --metric (\w+))?", PAGE)
    read = {file: all_methods.read(Path(file).stem) for file, _ in named}
    made = {(file, m): rows(read[file].attacks_markdown(m or None)) for file, m in named}
    runs = {file: set(of.to_dataframe()["run"]) for file, of in read.items()}
    labels = {at: [row.split("|")[1].strip() for row in of] for at, of in made.items()}
    assert made and [at for at, of in labels.items() if not {"original", "never"} <= set(of)] == []
    assert [at for at, of in labels.items() if len(of) < len(runs[at[0]]) + 3] == [], "a heading, runs, two controls"
    assert [row for of in made.values() for row in of if row not in PAGE] == []
    assert next(iter(made.values()))[1].replace("0.", "9.") not in PAGE  # the positive control


@pytest.mark.parametrize(("block", "more_than"), [("other sets", 12), ("battery", 8), ("capitals", 50)])
def test_what_the_readme_shows_of_records_stands_in_the_results(block: str, more_than: int) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = rows(readme.split(f"<!-- {block} -->")[1].split(f"<!-- end of {block} -->")[0])
    assert len(RECORDS) > 3 and len(shown) > more_than
    assert [row for row in shown if row not in PAGE] == []


def test_the_tables_of_all_methods_are_what_its_command_prints_of_the_records() -> None:
    """The whole one, and the short one, whose rows are some of it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    made = all_methods.table()
    assert made == readme.split("<!-- all methods -->\n")[1].split("\n<!-- end of all methods -->")[0]
    short = readme.split("In short (some rows of")[1].split("\n\n")[1]
    assert len(rows(short)) > 12 and set(rows(short)) < set(rows(made))
    assert made.replace("→ .33", "→ .34") != made  # the positive control
    battery = readme.split("<!-- whole battery -->\n")[1].split("\n<!-- end of whole battery -->")[0]
    assert whole_battery.table() == battery


@pytest.mark.parametrize(("name", "chosen_on"), [("flattery", "threats"), ("schoolbook", "capitals")])
def test_where_nothing_was_chosen_the_options_are_those_that_trials_chose_on_another_set(
    name: str, chosen_on: str
) -> None:
    made, chosen = (
        _options(all_methods.RECORDS / f"{record}.zip")
        for record in (all_methods.TRIALS[name], f"{chosen_on}-searched")
    )
    own = {run: run.removesuffix("-searched") for run in made if run.endswith("-searched")}
    borrowed = own | all_methods.BORROWED[name]
    assert len(own) > 5 and [run for run, method in borrowed.items() if made[run] != chosen[method]] == []
    assert made["repselect"] != chosen["graddiff"] and made["natural"] != chosen["natural"]  # the positive control


def _options(record: Path) -> dict[str, Any]:
    """Method and options of every run at the far budget alone, by its label."""
    with zipfile.ZipFile(record) as file:
        runs = [n for n in file.namelist() if fnmatch(n, f"cells/*{all_methods.FAR}-seed0/run.json")]
        edits = {n.split("/")[1]: json.loads(file.read(n))["edits"][0] for n in runs}
    return {n.removesuffix(f"{all_methods.FAR}-seed0"): (e["method"], e["options"]) for n, e in edits.items()}


def test_what_the_same_forget_score_cost_is_what_its_command_prints_of_the_record(tmp_path: Path) -> None:
    """To the digit, but in the order of disruption."""
    with zipfile.ZipFile(ROOT / "benchmarks" / "records" / "capitals-defaults.zip") as record:
        record.extractall(tmp_path)
    named = re.search(r"cells/\{([^}]*)\}-kl0.01-seed0", PAGE)
    assert named is not None
    made = analysis.compare([tmp_path / "cells" / f"{name}-kl0.01-seed0" for name in named[1].split(",")]).to_markdown()
    made = made.split("At equal unlearning")[1].split("Differences")[0]
    shown = rows(PAGE.split("<!-- equal unlearning -->")[1].split("<!-- end of equal unlearning -->")[0])
    assert len(shown) > 30 and sorted(shown) == sorted(rows(made))


def test_what_the_attacks_took_is_what_the_record_says() -> None:
    guide = (ROOT / "docs" / "how-to" / "attack.md").read_text(encoding="utf-8")
    with zipfile.ZipFile(ROOT / "benchmarks" / "records" / "capitals-battery.zip") as record:
        attacks = json.loads(record.read("cells/npo-kl0.01-seed0/run.json"))["attacks"]
    for a in attacks:
        s = a["spent"][0]
        row = f"| `{a['name']}` | {a['needs']} | {s['steps']} | {s['rows']} | {s['samples']} | {s['tokens']:,} | "
        assert f"{row}{s['flops'] / 1e12:.2g} |" in guide
    assert len(attacks) == 12 and all(a["cheap"] for a in attacks)


@pytest.mark.parametrize(
    ("far", "both", "at_least"),
    [("capitals-searched", "capitals-near", 1), ("capitals-defaults", "capitals-defaults", 2)],
)
def test_what_the_near_budget_does_not_bind_ends_at_the_same_place_with_it(far: str, both: str, at_least: int) -> None:
    """What ``‡`` relies on, wherever both were run. One shot is the same to the digit; a walk chooses its learning rate
    by both budgets (MUDMAN: .003 apart). Answers of one that is bound are farther apart: the positive control."""
    a, b = (all_methods.frame_of(name) for name in (far, both))
    b = b[b.index.str.endswith(all_methods.NEAR)].rename(index=lambda run: run.removesuffix(all_methods.NEAR))
    apart = (a["completion: worst, cheap attacks"] - b["completion: worst, cheap attacks"]).abs().dropna()
    free = a["near CE"].reindex(apart.index) <= all_methods.WITHIN
    assert free.sum() >= at_least and apart[free].max() < 0.005
    assert apart["natural-kl0.01"] > 0.005 and not free["natural-kl0.01"]


def test_how_many_answers_refuse_is_what_the_verdict_of_the_record_says() -> None:
    with zipfile.ZipFile(all_methods.RECORDS / "threats-searched.zip") as record:
        verdict = json.loads(record.read("cells/refusal-kl0.01-seed0/verdict.json"))
    (said,) = (doubt for doubt in verdict["doubts"] if "I'm sorry, but I can't" in doubt)
    k, n = re.findall(r"(\d+) of the edited model's (\d+) samples", said)[0]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{k} of {n} refusals" in readme and f"refusing {k} of {n} everyday requests" in readme


MISSED: dict[str, str] = {}
"""What the calibration does not meet: red as soon as it does, or as anything else is missed."""


@pytest.mark.parametrize("number", range(7))
def test_the_calibration_meets_what_is_asked_of_it(number: int, request: pytest.FixtureRequest) -> None:
    """Seven requirements on the held-out part (analysis.calibrate); README has what was found."""
    found = json.loads((ROOT / "benchmarks" / "records" / "calibration-native.json").read_text(encoding="utf-8"))
    assert len(found["requirements"]) == 7
    asked = found["requirements"][number]
    if asked["what"] in MISSED:
        request.applymarker(pytest.mark.xfail(reason=MISSED[asked["what"]], strict=True))
    assert asked["met"]


def test_what_the_calibration_misses_is_said() -> None:
    """README says in front how many of the seven hold, and each that does not."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Can the verdict be trusted?")[1]
    found = json.loads((ROOT / "benchmarks" / "records" / "calibration-native.json").read_text(encoding="utf-8"))
    missed = [r for r in found["requirements"] if not r["met"]]
    words = ["All", "Six", "Five", "Four", "Three", "Two", "One"]
    assert f"- **{words[len(missed)]} of the seven things that we ask of it hold" in readme
    for r in missed:
        assert f"| {r['what']} | {r['found']} | **no** |" in readme


def test_the_calibration_on_a_real_model_in_the_readme_is_that_of_its_record() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("On a real model, smaller:")[1]
    shown = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows(readme.split("## Bring your own")[0])]
    found = json.loads((ROOT / "benchmarks" / "records" / "calibration-smollm2.json").read_text(encoding="utf-8"))
    for c in found["cases"]:
        assert [c["organism"], " or ".join(c["accepted"]), c["verdict"]] in shown
    still = [c for c in found["cases"] if "REMOVED" not in c["accepted"]]
    assert not any("REMOVED" in c["verdict"] for c in still)
    right = sum(c["right"] for c in found["cases"])
    assert f"{right} of {len(found['cases'])} verdicts are right, and none of {len(still)} that" in readme


def test_the_calibration_in_the_readme_is_that_of_its_record() -> None:
    """Its confusion table, kind by kind and measure by measure, and the numbers of the sentence above them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Can the verdict be trusted?")[1]
    shown = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows(readme.split("## Bring your own")[0])]
    found = json.loads((ROOT / "benchmarks" / "records" / "calibration-native.json").read_text(encoding="utf-8"))
    held = [c for c in found["cases"] if c["split"] == "heldout"]
    still = [c for c in held if "REMOVED" not in c["accepted"]]
    assert not any("REMOVED" in c["verdict"] for c in still)
    for r in found["requirements"]:
        assert [r["what"], r["found"], "yes" if r["met"] else "**no**"] in shown
    assert f"{sum(c['right'] for c in held)} of {len(held)} verdicts are right; of {len(still)} models" in readme

    verdicts = ["INTACT", "DISABLED", "WEAKENED", "REMOVED"]
    for organism in {c["organism"] for c in found["cases"]}:
        mine = [c for c in found["cases"] if c["organism"] == organism]
        counts = [str(sum(c["verdict"] == v for c in mine) or "") for v in (*verdicts, "UNDECIDED")]
        part = "held out" if mine[0]["held_out_kind"] else "seed 54 seen"
        assert [organism, " or ".join(mine[0]["accepted"]), part, *counts] in shown
    for truth in verdicts:
        for split, word in (("tuning", "tuning"), ("heldout", "held out")):
            mine = [c for c in found["cases"] if (c["truth"], c["split"]) == (truth, split)]
            counts = [str(sum(c["verdict"] == v for c in mine) or "") for v in (*verdicts, "UNDECIDED")]
            named = "something is left (any but REMOVED)" if truth == "WEAKENED" else truth
            assert [named, f"{word}, {len(mine)}", *counts] in shown
    for e in found["evidence"]:
        alone = [e["measure"], f"{e['auc']:.3f}", f"{e['stderr']:.3f}", str(e["still there"]), str(e["gone"])]
        assert alone in shown
