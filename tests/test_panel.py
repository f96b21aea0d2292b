"""General capability: what a model answers right, item by item, and where a run, a report and a comparison say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import corpus
from drawn_runs import Drawn, flat, write_run

import analysis
import hooklearn as hl
from analysis.reading import read_run
from analysis.report import report
from analysis.sweep import pool
from analysis.tables import capability_table, summary_table
from hooklearn import experiment, integrity, models, store
from hooklearn.config import parse
from hooklearn.corpora.corpus import Corpus
from hooklearn.corpora.permuted import permuted
from hooklearn.data import encode_choices, load_corpus
from hooklearn.deltas import Delta
from hooklearn.panel import Panel
from hooklearn.recipes import recipe
from hooklearn.running import sweep_record
from hooklearn.running.sweep_config import Plan
from hooklearn.types import InputError

EXACT = 1e-12
"""Means of a handful of zeros and ones."""


# --------------------------------------------------------------------------------------- the measure


def asked(model: Any, n: int = 8) -> Corpus:
    """Tiny questions with four choices; the first half is answered as the model prefers, the second half is not."""
    rows = []
    for i, row in enumerate(corpus("heldout").rows[:n]):
        choices = [r["completion"] for r in corpus("near", "good").rows[i : i + 4]]
        one = Corpus("one", ({**row, "choices": choices, "answer": 0},))
        best = _best_by_hand(model, one)
        answer = best if i < n // 2 else (best + 1) % 4
        rows.append({**one.rows[0], "answer": answer, "set": "liked" if i < n // 2 else "disliked"})
    return Corpus("asked", tuple(rows))


def _best_by_hand(model: Any, one: Corpus) -> int:
    """From the full logits of one unpadded sequence a choice."""
    means = []
    for s in encode_choices(one, models.tokenizer_of(model)):
        with torch.no_grad():
            logp = model(s.ids[None])[0, :-1].log_softmax(-1)
        means.append(float(logp.gather(-1, s.ids[1:, None])[s.labels[1:], 0].mean()))
    return int(np.argmax(means))


def test_an_item_is_right_where_the_answer_is_the_likeliest_choice(tiny: Any) -> None:
    """By hand, sequence by sequence; and the control: another choice named as the answer makes it wrong."""
    items = asked(tiny)
    panel = Panel.of(items, models.tokenizer_of(tiny))
    assert panel.right(tiny, precision="float32").tolist() == [1.0] * 4 + [0.0] * 4
    found = hl.capability(tiny, items, precision="float32")
    assert {name: (s.value, s.n) for name, s in found.items()} == {"liked": (1, 4), "disliked": (0, 4), "all": (0.5, 8)}
    assert found["all"].stderr == pytest.approx(np.std([1] * 4 + [0] * 4, ddof=1) / np.sqrt(8))


def test_items_of_a_group_are_no_items_of_their_own(tiny: Any) -> None:
    """Two of each group, right or wrong together: the error is that of four."""
    items, words = asked(tiny), models.tokenizer_of(tiny)
    panel = Panel.of(Corpus("asked", tuple({**r, "group": str(i // 2)} for i, r in enumerate(items))), words)
    right = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0])
    assert panel.scores(right)["all"].stderr == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / np.sqrt(4))
    alone = Panel.of(items, words).scores(right)["all"]
    assert alone.stderr == pytest.approx(np.std(right.numpy(), ddof=1) / np.sqrt(8))


def test_a_broken_model_has_no_capability(tiny: Any) -> None:
    """Not that of one that guesses: its items are NaN, and so is the score of every set."""
    items = asked(tiny)
    panel = Panel.of(items, models.tokenizer_of(tiny))
    with tiny.hooks(fwd_hooks=[("blocks.1.mlp.hook_out", lambda value, hook: value * float("nan"))]):
        right = panel.right(tiny, precision="float32")
    assert bool(right.isnan().all()) and len(right) == 8
    assert all(np.isnan(s.value) and s.n for s in panel.scores(right).values())
    assert panel.to_dataframe({"edited": right}, seed=0)["value"].isna().all()


def test_without_sets_there_is_one_number(tiny: Any) -> None:
    bare = Corpus("bare", tuple({k: v for k, v in r.items() if k != "set"} for r in asked(tiny, 2).rows))
    assert list(hl.capability(tiny, bare)) == ["all"]


def test_rows_without_choices_are_refused() -> None:
    """Before a model is asked anything."""
    config = recipe("tiny") | {"organism": None}
    config["corpora"]["capability"] = {"name": "tiny", "options": {"part": "heldout"}}
    with pytest.raises(InputError, match=r"row 0: general capability is measured on multiple choice.*'panel'"):
        experiment.run(parse(config), Path("never-written"))
    assert not Path("never-written").exists()


# ---------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the tiny model, whose given edit ruins a layer."""
    return _run(tmp_path_factory.mktemp("runs") / "run", _ruin())


def _ruin() -> Delta:
    model = models.load("tiny")
    (site,) = models.sites(model, ["blocks.0.mlp.out"])
    shape = models.weight(model, site).shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Delta({site.name: 2 * noise}, "tiny", integrity.weights_hash(model))


def _run(out: Path, delta: Delta, **how: Any) -> Path:
    corpora = recipe("tiny")["corpora"]
    wanted = {role: corpora[role] | {"limit": 4} for role in ("forget", "disruption", "heldout")}
    config = {
        "model": {"name": "tiny", "precision": "float32"},
        "corpora": wanted | {"capability": {"name": "tiny-facts", "limit": 20}},
        "locate": {"enabled": False},
        "behaviour": {"samples": 0},
        "controls": {"never": {"name": "tiny"}},
        "seeds": [0, 1],
    }
    return experiment.run(parse(config), out, delta=delta, **how)


def test_a_run_asks_every_arm_before_any_attack(folder: Path) -> None:
    """Per seed and item; the controls' answers are those of the models themselves."""
    found = pd.read_parquet(folder / "capability.parquet")
    assert list(found) == ["arm", "seed", "set", "item", "value"]
    assert found.groupby(["arm", "seed"]).size().to_dict() == {
        (arm, seed): 20 for arm in ("edited", "original", "never") for seed in (0, 1)
    }
    items = load_corpus(name="tiny-facts", limit=20)
    truth = hl.capability(models.load("tiny"), items, precision="float32")["all"]
    means = found.groupby("arm")["value"].mean()
    assert means["original"] == means["never"] == truth.value
    assert set(found["value"]) <= {0.0, 1.0}
    assert store.open_run(folder)["corpora"]["capability"]["n"] == 20


def test_what_was_asked_is_not_asked_again_on_resume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run without a panel asks nothing and writes nothing."""
    before = (folder / "capability.parquet").read_bytes()
    monkeypatch.setattr(Panel, "right", lambda *_, **__: pytest.fail("asked again"))
    _run(folder, _ruin(), resume=True)
    assert (folder / "capability.parquet").read_bytes() == before


def test_a_panel_may_be_added_to_a_sweep_that_was_begun() -> None:
    """It is a check beside the cells: what they rest on stays the same. Another held-out corpus does not."""
    base = recipe("tiny")

    def fixed(**corpora: Any) -> Any:
        data = {"base": base | {"corpora": base["corpora"] | corpora}, "methods": ["gradient_ascent"]}
        return sweep_record.fixed(Plan.of(data, Path()), {})

    assert fixed(capability={"name": "tiny-facts"}) == fixed()
    assert fixed(heldout={"name": "tiny", "options": {"part": "ood"}}) != fixed()


def test_tuning_does_not_ask() -> None:
    base = recipe("tiny")
    base["corpora"]["capability"] = {"name": "tiny-facts"}
    tuning = {"trials": 1, "corpora": {"heldout": {"name": "tiny", "options": {"part": "near"}}}}
    plan = Plan.of({"base": base, "methods": ["gradient_ascent"], "tuning": tuning}, Path())
    assert "capability" in plan.base.corpora and "capability" not in plan.tuning().corpora


# ------------------------------------------------------------------------------------------ analysis


def drawn(folder: Path, right: Mapping[str, Sequence[float]] | None, *, seeds: Sequence[int] = (0,), **how) -> Path:
    """A drawn run whose arms answered so; even items are of set ``choice``, odd ones of ``cloze``."""
    attacks = [Drawn("erosion", {"edited": flat(0.1), "original": flat(0.8), "never": flat(0.1)})]
    how = {"attacks": attacks, "metrics": ["preference"], "splits": ["heldout"], "items": 8} | how
    write_run(folder, seeds=seeds, **how)
    if right is not None:
        rows = [
            {"arm": arm, "seed": s, "set": ("choice", "cloze")[i % 2], "item": i, "value": float(v)}
            for s in seeds
            for arm, answers in right.items()
            for i, v in enumerate(answers)
        ]
        pd.DataFrame(rows).to_parquet(folder / "capability.parquet", index=False)
    return folder


SOUND = [1, 1, 1, 0] * 10
SAME = [1, 1, 0, 1] * 10
RUINED = [1, 0, 0, 0] * 10


def test_the_table_counts_and_pairs(tmp_path: Path) -> None:
    """30 of 40 before and 10 after: the fall is .5, and its error that of the paired differences."""
    run = drawn(tmp_path / "run", {"original": SOUND, "edited": RUINED, "never": SOUND}, seeds=(0, 1))
    table = capability_table(run).set_index(["set", "arm"])
    assert table.loc[("all", "original"), ["value", "n"]].tolist() == [0.75, 40]
    assert table.loc[("all", "edited"), ["value", "change"]].tolist() == [0.25, -0.5]
    paired = np.std(np.subtract(RUINED, SOUND), ddof=1) / np.sqrt(40)
    assert table.loc[("all", "edited"), "change_stderr"] == pytest.approx(paired, abs=EXACT)
    assert table.loc[("all", "never"), "change"] == 0 and np.isnan(table.loc[("all", "original"), "change"])
    assert table.loc[("choice", "edited"), ["value", "n"]].tolist() == [0.5, 20]
    assert table.loc[("cloze", "original"), "value"] == 0.5
    shown = summary_table(run).set_index("arm")["general capability"]
    assert shown.to_dict() == {"original": 0.75, "edited": 0.25, "never": 0.75}


def test_items_of_a_group_count_once(tmp_path: Path) -> None:
    """Ten questions in four wordings each, answered alike: the error is that of ten means; each of its own (control),
    that of forty."""
    alike = [v for v in (1, 1, 0, 1, 0, 1, 1, 1, 0, 0) for _ in range(4)]
    run = read_run(drawn(tmp_path / "run", {"original": [1] * 40, "edited": alike}))
    groups = {"corpora": {"capability": {"item_groups": [i // 4 for i in range(40)]}}}
    apart, together = (capability_table(r).set_index(["set", "arm"]) for r in (run, replace(run, record=groups)))
    one = ("all", "edited")
    assert together.loc[one, "value"] == apart.loc[one, "value"] == 0.6
    assert together.loc[one, "stderr"] == pytest.approx(np.std(alike[::4], ddof=1) / np.sqrt(10), abs=EXACT)
    assert apart.loc[one, "stderr"] == pytest.approx(np.std(alike, ddof=1) / np.sqrt(40), abs=EXACT)
    assert together.loc[one, "change_stderr"] == pytest.approx(together.loc[one, "stderr"], abs=EXACT)


def test_a_run_without_a_panel_has_no_column(tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", None)
    assert "general capability" not in summary_table(run) and capability_table(run).empty
    assert not [c for c in analysis.compare([run]).table if "capability" in c]
    report(run)
    assert "eneral capability, share right" not in (run / "report.md").read_text("utf-8")


def test_comparison_shows_before_and_after(tmp_path: Path) -> None:
    """Of a run that has no panel: dashes, and a note that the items differ."""
    runs = [
        drawn(tmp_path / "sound", {"original": SOUND, "edited": SAME}),
        drawn(tmp_path / "ruined", {"original": SOUND, "edited": RUINED}),
        drawn(tmp_path / "unasked", None),
    ]
    found = analysis.compare(runs)
    table = found.table.set_index("run")
    assert table["general capability: before"].tolist()[:2] == [0.75, 0.75]
    assert table["general capability: after"].tolist()[:2] == [0.75, 0.25]
    row = table.loc["ruined"]
    assert row["general capability: change low"] < row["general capability: change"] == -0.5
    assert row["general capability: change high"] < 0 < table.loc["sound", "general capability: change high"]
    assert np.isnan(table.loc["unasked", "general capability: after"])
    assert "| general capability: after | 0.75 | 0.25 | - |" in found.to_markdown()


def test_another_panel_is_noted(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        corpora = {"capability": {"hash": name, "n": 40}}
        runs.append(drawn(tmp_path / name, {"original": SOUND, "edited": SAME}, corpora=corpora))
    said = "general capability was not measured on the same items"
    assert any(said in n for n in analysis.compare(runs).notes)
    assert not any(said in n for n in analysis.compare(runs[:1]).notes)


def test_seeds_of_a_sweep_are_pooled(tmp_path: Path) -> None:
    answers = {0: SAME, 1: RUINED}
    runs = [drawn(tmp_path / f"{s}", {"original": SOUND, "edited": e}, seeds=(s,)) for s, e in answers.items()]
    table = capability_table(pool([read_run(r) for r in runs], "both")).set_index(["set", "arm"])
    assert table.loc[("all", "edited"), ["value", "n"]].tolist() == [0.5, 40]


@pytest.mark.parametrize(("edited", "doubted"), [(RUINED, True), (SAME, False), (SOUND, False)])
def test_only_a_clear_fall_is_a_reason_to_doubt(edited: list[int], doubted: bool, tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", {"original": SOUND, "edited": edited})
    doubts = analysis.judge(run).doubts
    assert any("general capability fell by 0.50 (to 0.25, 40 items)" in d for d in doubts) == doubted
    assert doubted or not any("general capability" in d for d in doubts)


def test_answers_without_a_number_are_a_reason_to_doubt(tmp_path: Path) -> None:
    """A broken model is not one that guesses, and an arm without a mean is no arm that did not fall."""
    run = drawn(tmp_path / "run", {"original": SOUND, "edited": SOUND})
    frame = pd.read_parquet(run / "capability.parquet")
    frame["value"] = frame["value"].astype(float).mask((frame["arm"] == "edited") & (frame["item"] < 3))
    frame.to_parquet(run / "capability.parquet", index=False)
    assert any("was not measured: 3 of the edit's 40 answers" in d for d in analysis.judge(run).doubts)


def test_the_report_shows_it_and_verify_recomputes_it(tmp_path: Path) -> None:
    run = drawn(tmp_path / "run", {"original": SOUND, "edited": RUINED})
    page = report(run).read_text("utf-8")
    assert "share right</th>" in page and "0.25 ± 0.07" in page and "−0.50 ± 0.08" in page
    text = (run / "report.md").read_text("utf-8")
    assert "| general capability, share right | choice (n 20) | cloze (n 20) | all (n 40) | change |" in text
    assert analysis.verify(run).ok
    frame = pd.read_parquet(run / "capability.parquet")
    frame.loc[frame["arm"] == "edited", "value"] = 1.0
    frame.to_parquet(run / "capability.parquet", index=False)
    differences = analysis.verify(run).differences
    assert any("edited, general capability: reported 0.25, computed 1" in d for d in differences)


# ---------------------------------------------------------------------- the control of knowledge runs


def test_permuted_answers_stay_in_their_relation_and_are_no_distractor() -> None:
    """The never-learned surrogate: four choices stay four, and a city never stands for a writer."""
    facts = load_corpus(name="schoolbook", options={"part": "V", "phrasings": "heldout"})
    relation = {r["fact"]: r["relation"] for r in facts.rows}
    for before, after in zip(facts.rows, permuted(facts).rows, strict=True):
        assert after["fact"] != before["fact"] and relation[after["fact"]] == before["relation"]
        assert len(set(after["choices"])) == 4 and after["choices"][after["answer"]] == after["completion"]
    alone = Corpus("alone", facts.rows[:1])
    with pytest.raises(InputError, match="at least five facts of a relation"):
        permuted(alone)
