"""Whole runs at a small size: what the folder holds, and that a killed run ends with the same bytes."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import corpus, organism_delta
from safetensors import safe_open

import analysis
from analysis.explorer import load
from analysis.report import VERDICTS
from hooklearn import disk, editing, experiment, exporting, forward, integrity, models, organisms, store
from hooklearn.cli.estimate import estimate
from hooklearn.config import parse
from hooklearn.corpora.corpus import Corpus
from hooklearn.deltas import Delta, load_delta
from hooklearn.edit import forget_scorer
from hooklearn.measure import Likelihoods
from hooklearn.recipes import recipe
from hooklearn.running import corpora as running_corpora
from hooklearn.running.setting import Setup
from hooklearn.types import InputError


def small() -> dict[str, Any]:
    """The recipe ``tiny``, cut down: one module, few items, short attacks, two seeds."""
    config = recipe("tiny")
    for role, n in {"retain": 16, "reference": 8, "disruption": 8, "near": 6, "heldout": 8, "ood": 4}.items():
        config["corpora"][role]["limit"] = n
    for role in ("forget", "attack_train", "unrelated"):
        config["corpora"][role]["limit"] = 12
    config |= {
        "edit": {"method": "natural", "sites": "mlp.out"},
        "controls": {"matched": True},
        "attacks": [
            {"name": "relearn", "learning_rates": [1e-3], "epochs": 1},
            {"name": "erode", "learning_rates": [1e-3], "steps": 2},
            {"name": "few_shot", "shots": 2},
        ],
        "behaviour": {"samples": 4, "ood_samples": 3, "new_tokens": 6},
        "seeds": [0, 1],
        "max_tokens": 256,
    }  # fmt: skip
    return config


@pytest.fixture(scope="module", autouse=True)
def _organisms_are_built_once() -> Iterator[None]:
    """The same seed makes the same organism, so all runs can have the first one."""
    halves = {good: organism_delta(good) for good in (False, True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(organisms, "load", lambda organism, model, good=False: halves[good])
        yield


def run(config: dict[str, Any], out: Path, **how: Any) -> Path:
    return experiment.run(parse(config), out, given=config, **how)


def contents(folder: Path) -> dict[str, Any]:
    """Every measurement, to the bit: all but the seconds and when things happened."""
    found: dict[str, Any] = {
        n: (folder / n).read_bytes() for n in ("curves.parquet", "items.parquet", "locate.parquet", "samples.jsonl")
    }
    followed = folder / "directions.parquet"  # only where the explorer was asked for
    found[followed.name] = followed.read_bytes() if followed.exists() else None
    for path in folder.glob("*.safetensors"):  # their headers are written in any order
        with safe_open(path, "pt") as file:
            tensors = {n: file.get_tensor(n).numpy().tobytes() for n in file.keys()}  # noqa: SIM118 (not a mapping)
            found[path.name] = tensors, file.metadata()
    trace = pd.read_parquet(folder / "trace.parquet").drop(columns="seconds")
    return found | {"trace.parquet": trace.to_json(double_precision=15)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return run(small(), tmp_path_factory.mktemp("runs") / "whole")


# ---------------------------------------------------------------------------------------- a whole run


def test_a_run_ends_with_a_whole_folder(finished: Path) -> None:
    """Every file of docs/run-folder.md, and a record that says what was done and at what cost."""
    names = {p.name for p in finished.iterdir()}
    assert names >= {
        "run.json", "events.jsonl", "curves.parquet", "items.parquet", "trace.parquet", "locate.parquet",
        "samples.jsonl", "delta-seed0.safetensors", "delta-seed1.safetensors", "subspaces.safetensors",
        "tokens.safetensors", "directions.parquet",
    }  # fmt: skip
    record = store.open_run(finished)
    assert record["status"] == "done" and record["error"] is None
    assert [e["seed"] for e in record["edits"]] == [0, 1] == record["seeds"]
    for edit in record["edits"]:
        assert edit["within_budget"] and edit["stop"] in ("budget (kl)", "budget (near_ce)")
        assert edit["binding"] in edit["stop"] and edit["cost"]["tokens"] > 0
    assert record["yardsticks"]["never"]["kl"] > 0 and record["never"]["kind"] == "base"
    assert record["referee"]["auc"] > 0.9
    assert [a["name"] for a in record["attacks"]] == ["relearn", "erode", "few_shot"]
    assert record["cost"]["tokens"] > 0
    assert set(record["corpora"]) == set(small()["corpora"])
    assert record["corpora"]["heldout"]["hash"] == corpus("heldout").take(8).hash


def test_the_explorers_tokens_are_followed_through_the_attack(finished: Path) -> None:
    """The steps are those of the first seed's curve; the edit's own energy is that of the delta it wrote."""
    sample = load(finished / "tokens.safetensors")
    curve = pd.read_parquet(finished / "curves.parquet").query("attack == 'relearn' and seed == 0")
    for arm in ("edited", "never"):
        mine = sample.time.loc[sample.time["arm"] == arm, "step"]
        assert mine.tolist() == sorted(set(curve.loc[curve["arm"] == arm, "step"])), arm
    assert sample.facts["attack"] == "relearn lr=0.001" and len(sample.frames) == 4
    assert np.isfinite(sample.means).all() and not np.array_equal(sample.means[0], sample.means[1])
    rows = pd.read_parquet(finished / "directions.parquet")
    delta = load_delta(finished / "delta-seed0.safetensors")
    for site, of_site in rows.query("of == 'edit' and along == 'own'").groupby("site"):
        singular = np.linalg.svd(delta.updates[str(site)].numpy(), compute_uv=False) ** 2
        # float32 weights: the difference of two weights of order .1 is exact to 1e-8
        assert np.allclose(of_site["share"], (singular / singular.sum())[:32], atol=1e-4), site


def test_every_attack_has_every_arm_of_every_seed(finished: Path) -> None:
    """Also before any attack; three measures on held-out items, ood at both ends, each with its n and error."""
    curves = pd.read_parquet(finished / "curves.parquet")
    assert set(curves["attack"]) == {"none", "relearn", "erode", "few_shot"}
    for keys, part in curves.groupby(["attack", "seed"]):
        assert set(part["arm"]) == {"edited", "original", "never", "matched"}, keys
        taken = part[part["split"] == "heldout"].groupby("arm")["step"].agg(lambda s: sorted(set(s)))
        assert taken.map(str).nunique() == 1, keys
        assert set(part["metric"]) == {"completion", "preference", "sampled"}, keys
    assert curves["value"].between(0, 1).all() and curves["stderr"].ge(0).all()
    assert set(curves.loc[curves["metric"] == "completion", "n"]) == {8, 4}


def test_items_are_what_curves_are_the_means_of(finished: Path) -> None:
    """So that comparisons can be paired."""
    keys = ["attack", "setting", "arm", "seed", "step", "metric", "split"]
    means = pd.read_parquet(finished / "items.parquet").groupby(keys)["value"].mean()
    curves = pd.read_parquet(finished / "curves.parquet").set_index(keys)["value"]
    assert len(means) == len(curves)
    assert (means - curves).abs().max() < 1e-12


def test_sampled_rates_are_shares_of_the_samples(finished: Path) -> None:
    """Every row of samples.jsonl counts once, for its own arm, attack, seed and split: those asked out of distribution
    are kept apart (and not asked after demonstrations, which are long)."""
    samples = pd.DataFrame(disk.load_lines(finished / "samples.jsonl"))
    keys = ["attack", "setting", "arm", "seed", "split"]
    shares = samples.groupby(keys)["is_behaviour"].agg(["mean", "size"])
    curves = pd.read_parquet(finished / "curves.parquet")
    sampled = curves[curves["metric"] == "sampled"].set_index(keys)
    assert len(shares) == len(sampled) == 2 * 4 * 4 + 2 * 3 * 4
    assert (shares["mean"] - sampled["value"]).abs().max() == 0
    assert {(split, n) for (*_, split), n in shares["size"].items()} == {("heldout", 4), ("ood", 3)}
    prompts = {split: set(rows["prompt"]) for split, rows in samples.groupby("split")}
    assert prompts["heldout"].isdisjoint(prompts["ood"])


def test_samples_count_where_an_attack_gives_all_its_settings_at_once(tmp_path: Path) -> None:
    """They wait for the setting that drew them: those of all but the first had been kept and not counted."""
    attack = {"name": "ablate_direction", "directions": [1], "answer_tokens": 2}
    folder = run(small() | {"attacks": [attack], "seeds": [0], "controls": {}}, tmp_path / "run")
    samples = pd.DataFrame(disk.load_lines(folder / "samples.jsonl"))
    keys = ["attack", "setting", "arm", "split"]
    curves = pd.read_parquet(folder / "curves.parquet")
    sampled = curves[curves["metric"] == "sampled"].set_index(keys)["value"]
    assert {setting for _, setting, *_ in sampled.index} == {"", "mean difference", "mean difference, answers"}
    shares = samples.groupby(keys)["is_behaviour"].mean()
    assert len(shares) == len(sampled) and (shares - sampled).abs().max() == 0


def test_every_seed_starts_from_its_own_edit(finished: Path) -> None:
    """Another seed, another edit (its labels were sampled anew), another start; the controls are the same model."""
    deltas = [load_delta(finished / f"delta-seed{s}.safetensors") for s in (0, 1)]
    assert any(not torch.equal(u, deltas[1].updates[n]) for n, u in deltas[0].updates.items())
    curves = pd.read_parquet(finished / "curves.parquet")
    start = curves[(curves["step"] == 0) & (curves["metric"] == "completion") & (curves["split"] == "heldout")]
    start = start[start["attack"] != "few_shot"].groupby(["arm", "seed"])["value"].agg(["min", "max"])
    assert (start["min"] == start["max"]).all(), "whatever the attack"
    assert start.loc[("edited", 0), "min"] != start.loc[("edited", 1), "min"]
    assert start.loc[("original", 0), "min"] == start.loc[("original", 1), "min"]


def test_the_delta_in_the_folder_is_the_edit(finished: Path, threatening: Any, tiny: Any) -> None:
    """Bound to the organism and refused elsewhere; applied, it has the behaviour that the curves begin with."""
    delta = load_delta(finished / "delta-seed1.safetensors")
    with pytest.raises(InputError, match="this delta was made for"), editing.edited(tiny, delta):
        pass
    from hooklearn.measure import Likelihoods

    heldout = Likelihoods.of(corpus("heldout").take(8), models.tokenizer_of(tiny), "heldout")
    with editing.edited(threatening, delta):
        value = float(heldout.measure(threatening, precision="float32")["completion"].mean())
    curves = pd.read_parquet(finished / "curves.parquet")
    row = curves[
        (curves["attack"] == "none") & (curves["arm"] == "edited") & (curves["seed"] == 1)
        & (curves["metric"] == "completion") & (curves["split"] == "heldout")
    ]  # fmt: skip
    assert row["value"].tolist() == [value]


def test_the_matched_arm_starts_at_the_never_level(finished: Path) -> None:
    """Scaled back until it does (to a hundredth of the way), or the edit itself where that is above already."""
    curves = pd.read_parquet(finished / "curves.parquet")
    start = curves[(curves["attack"] == "none") & (curves["metric"] == "completion") & (curves["split"] == "heldout")]
    for seed in (0, 1):
        level = start[start["seed"] == seed].set_index("arm")["value"]
        if level["edited"] >= level["never"]:
            assert level["matched"] == level["edited"]
            own = curves[(curves["seed"] == seed) & curves["arm"].isin(["edited", "matched"])]
            twins = [g.drop(columns="arm").reset_index(drop=True) for _, g in own.groupby("arm")]
            pd.testing.assert_frame_equal(*twins)
        else:
            assert level["matched"] == pytest.approx(level["never"], abs=0.01)


def test_an_edit_may_end_at_the_never_level(tmp_path: Path, threatening: Any, tiny: Any) -> None:
    """``budget.forget: never``: the forget items are as likely as to the control, within 5 % of the way (in the
    logarithm), and not less; the record has the level as a number."""
    config = small() | {"attacks": [], "seeds": [0], "budget": {"kl": 3.0, "forget": "never"}}
    config["behaviour"] = {"samples": 0}
    folder = run(config, tmp_path / "level")
    (edit,) = store.open_run(folder)["edits"]
    level = edit["budget"]["forget"]
    items = corpus("forget").take(12)
    assert level == pytest.approx(forget_scorer(tiny, items, precision="float32")(), rel=1e-6)
    assert (edit["binding"], edit["stop"], edit["within_budget"]) == ("forget", "budget (forget)", True)
    score = forget_scorer(threatening, items, precision="float32")
    delta = load_delta(folder / "delta-seed0.safetensors")
    before = score()
    with editing.edited(threatening, delta):
        now = score()
    assert level <= now * (1 + 1e-4) <= level * (before / level) ** 0.06


def test_a_run_can_be_judged_without_a_model(finished: Path) -> None:
    """The border holds: analysis reads the folder and comes to one of its verdicts."""
    verdict = analysis.judge(analysis.read_run(finished))
    assert verdict.verdict in VERDICTS and verdict.reason


# ---------------------------------------------------------------------------------------- resuming


class Killed(Exception):
    """What the operating system does, as far as a run can tell."""


@pytest.mark.parametrize("facts", [False, True])
def test_samples_after_the_end_of_an_attack_are_refused_before_the_edit(tmp_path: Path, facts: bool) -> None:
    """Where only the attacker's batches tell when that is; the same attack without them is made (control)."""
    config = small() | {"seeds": [0], "controls": {}}
    attack = {"name": "relearn", "learning_rates": [1e-3], "epochs": 1, "sampled_at": [1, 99]}
    if facts:  # leave-one-out: of the fold that ends first
        config["corpora"]["attack_train"] = config["corpora"]["heldout"]
        attack |= {"name": "low_mi", "folds": 2}
    said: list[str] = []
    with pytest.raises(InputError, match=r"sampled_at \[1, 99\], and it ends after \d+ steps; valid: 1 to"):
        run(config | {"attacks": [attack]}, tmp_path / "late", progress=said.append)
    assert said and not any(line.startswith(("edit", "natural")) for line in said)
    run(config | {"attacks": [attack | {"sampled_at": [1]}]}, tmp_path / "within", progress=said.append)
    assert any(line.startswith("edit") for line in said)


@pytest.mark.parametrize(
    "moment",
    [
        "natural: measuring disruption (2)",
        "relearn lr=0.001: never",
        "attack (seed 1): 1-erode",
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(finished: Path, tmp_path: Path, moment: str) -> None:
    """Wherever it was killed: curves, items, samples, deltas and trace are those of the uninterrupted run."""

    def kill(message: str) -> None:
        if message.startswith(moment):
            raise Killed(moment)

    out = tmp_path / "killed"
    with pytest.raises(Killed):
        run(small(), out, progress=kill)
    record = store.open_run(out)
    assert record["status"] == "failed" and moment in record["error"]
    assert not (out / "curves.parquet").exists()
    seen: list[str] = []
    run(small(), out, resume=True, progress=seen.append)
    assert contents(out) == contents(finished)
    record = store.open_run(out)
    assert record["status"] == "done" and record["error"] is None
    done_before = [m for m in seen if m.startswith("edit (seed 0)")]
    assert len(done_before) == 1 and "events.jsonl" in {p.name for p in out.iterdir()}
    if "seed 1" in moment:
        assert not any(m.startswith("attack (seed 0)") for m in seen), "what was done is not done again"


def test_settings_of_an_attack_that_were_finished_are_not_made_again(tmp_path: Path) -> None:
    """Two of three learning rates were through, one of them with samples: what comes out is that of a run that was left
    alone (control), in the same order."""
    rates = [1e-3, 3e-3, 1e-4]  # the highest, which is sampled, in the middle
    config = small() | {"seeds": [0], "attacks": [{"name": "relearn", "learning_rates": rates, "max_steps": 4}]}
    whole = run(config, tmp_path / "whole")

    def kill(message: str) -> None:
        if message.startswith("relearn lr=0.0001: original"):
            raise Killed

    out = tmp_path / "killed"
    with pytest.raises(Killed):
        run(config, out, progress=kill)
    assert len([*out.glob("parts/begun-*.jsonl")]) == 2
    seen: list[str] = []
    run(config, out, resume=True, progress=seen.append)
    made = [m for m in seen if m.startswith("relearn lr=")]
    assert made and all(m.startswith("relearn lr=0.0001: ") for m in made)
    assert contents(out) == contents(whole)
    assert not [*out.glob("parts/begun-*")]


def test_a_resumed_run_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun where bfloat16 is faster and resumed where it is not; the control is the same run in float32."""
    config = small() | {"attacks": [{"name": "erode", "learning_rates": [1e-3], "steps": 2}], "seeds": [0]}
    config["model"] = {"name": "tiny"}

    def kill(message: str) -> None:
        if message.startswith("attack (seed 0): 0-erode"):
            raise Killed

    monkeypatch.setattr(forward, "_bfloat16_pays", lambda: True)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", progress=kill)
    monkeypatch.setattr(forward, "_bfloat16_pays", lambda: False)
    resumed = run(config, tmp_path / "killed", resume=True)
    assert store.open_run(resumed)["environment"]["precision"] == "bfloat16"
    assert store.open_run(resumed)["config"]["model"]["precision"] == "auto"
    assert contents(resumed) == contents(whole)
    assert contents(run(config, tmp_path / "single")) != contents(whole)


def test_deleting_the_last_parts_is_no_loss(finished: Path, tmp_path: Path) -> None:
    """Resuming a finished run makes exactly what is missing again."""
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    for path in [*out.glob("parts/curves-seed1-2-few_shot*"), *out.glob("parts/curves-seed1-1-erode*")]:
        path.unlink()
    for name in ("curves.parquet", "items.parquet", "samples.jsonl"):
        (out / name).unlink()
    seen: list[str] = []
    run(small(), out, resume=True, progress=seen.append)
    assert contents(out) == contents(finished)
    attacks = [m for m in seen if m.startswith("attack (")]
    assert attacks == ["attack (seed 1): 1-erode", "attack (seed 1): 2-few_shot"]


def test_a_folder_is_not_overwritten(finished: Path) -> None:
    """Without resume, or with another config, the folder is refused and stays as it is."""
    before = contents(finished)
    with pytest.raises(InputError, match="already holds a run"):
        run(small(), finished)
    other = small() | {"max_tokens": 128}
    with pytest.raises(InputError, match="another config"):
        run(other, finished, resume=True)
    assert contents(finished) == before


# ---------------------------------------------------------------------------------- a user's own runs


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """A config of files beside it: no organism, no never-learned model, near left out."""

    def write(name: str, part: str, completion: str, n: int) -> dict[str, str]:
        rows = corpus(part, completion).rows[:n]
        keep = ("prompt", "completion", "text")
        lines = [json.dumps({k: r[k] for k in keep if k in r}) for r in rows]
        (tmp_path / name).write_text("\n".join(lines))
        return {"path": name}

    return {
        "name": "own",
        "model": {"name": "tiny", "precision": "float32"},
        "corpora": {
            "forget": write("forget.jsonl", "forget", "bad", 12),
            "retain": write("retain.jsonl", "forget", "good", 16),
            "disruption": write("far.jsonl", "disruption", "bad", 8),
            "heldout": write("heldout.jsonl", "heldout", "bad", 6),
            "unrelated": write("unrelated.jsonl", "unrelated", "bad", 8),
        },
        "edit": {"method": "gradient_ascent", "sites": "mlp.out"},
        "locate": {"enabled": False},
        "attacks": [{"name": "erode", "learning_rates": [1e-3], "steps": 2}],
        "behaviour": {"samples": 3, "new_tokens": 4},
        "max_tokens": 256,
    }


def arms(folder: Path) -> set[str]:
    return set(pd.read_parquet(folder / "curves.parquet")["arm"])


def test_items_that_edit_or_attacker_had_are_counted(own: dict[str, Any], tmp_path: Path) -> None:
    """And are a reason to doubt; the control is a corpus of its own."""
    record = store.open_run(run(own, tmp_path / "apart", base=tmp_path))
    assert record["corpora"]["heldout"]["repeated"] == 0 == record["corpora"]["forget"]["cut"]
    assert record["corpora"]["heldout"]["in_forget"] == 0 and "in_attack_train" not in record["corpora"]["heldout"]
    own["corpora"]["heldout"] = own["corpora"]["forget"] | {"limit": 4}
    own["corpora"]["attack_train"] = own["corpora"]["forget"] | {"limit": 3}
    out = run(own, tmp_path / "known", base=tmp_path)
    counted = store.open_run(out)["corpora"]["heldout"]
    assert (counted["n"], counted["in_forget"], counted["in_attack_train"]) == (4, 4, 3)
    doubts = " ".join(analysis.judge(out).doubts)
    assert "4 of 4 held-out items are in forget word for word" in doubts and "3 of 4" in doubts
    assert "word for word" not in " ".join(analysis.judge(tmp_path / "apart").doubts)


@pytest.mark.parametrize("lacks", ["good completions", "a model to compare with", "nothing"])
def test_samples_that_nobody_could_judge_are_not_announced_or_charged(
    own: dict[str, Any], tmp_path: Path, lacks: str
) -> None:
    """The doubt says what is missing. With all that a referee needs (the control) they are drawn."""
    if lacks != "nothing":
        del own["corpora"]["retain"]
    if lacks == "a model to compare with":
        own["corpora"]["near"] = {"name": "tiny", "options": {"part": "near", "completion": "good"}, "limit": 4}
    said: list[str] = []
    out = run(own, tmp_path / "run", base=tmp_path, progress=said.append)
    priced = {row["stage"] for row in estimate(parse(own), tmp_path).stages}
    doubts = [d for d in analysis.judge(out).doubts if d.startswith("sampled was not measured")]
    missing = store.open_run(out).get("unsampled", "nothing is missing")
    assert missing.replace(" are ", " is ").startswith(f"{lacks} is missing")
    drawn = lacks == "nothing"
    assert any(line.startswith("referee: ") for line in said) == drawn == ({"samples", "referee"} <= priced)
    assert (f"nothing is sampled: {missing}" in said) == ("samples" not in priced) == (not drawn)
    assert bool(doubts) != drawn and (drawn or doubts == [f"sampled was not measured: {missing}"])


def test_the_behaviour_in_text_that_should_have_none_is_counted(own: dict[str, Any], tmp_path: Path) -> None:
    """An attacker who erodes with the held-out items relearns; the control is a corpus of its own."""
    record = store.open_run(run(own, tmp_path / "apart", base=tmp_path))
    assert [record["corpora"]["unrelated"][f"in_{role}"] for role in ("forget", "heldout")] == [0, 0]
    own["corpora"] |= {"unrelated": own["corpora"]["heldout"], "attack_train": own["corpora"]["disruption"]}
    out = run(own, tmp_path / "known", base=tmp_path)
    corpora = store.open_run(out)["corpora"]
    n, spent = corpora["heldout"]["n"], corpora["disruption"]["in_attack_train"]
    assert corpora["unrelated"]["in_heldout"] == n and spent == corpora["disruption"]["n"]
    doubts = " ".join(analysis.judge(out).doubts)
    assert f"{n} of {n} rows of unrelated are in heldout word for word: erosion taught the very items" in doubts
    assert "rows of disruption are in attack_train word for word" in doubts
    assert "word for word" not in " ".join(analysis.judge(tmp_path / "apart").doubts)


def test_text_that_is_trained_on_and_measures_leaves_no_folder(own: dict[str, Any], tmp_path: Path) -> None:
    own["corpora"]["disruption"] = {"path": "retain.jsonl"}
    with pytest.raises(InputError, match="may not measure disruption"):
        run(own, tmp_path / "out", base=tmp_path)
    assert not (tmp_path / "out").exists()


def test_tokens_along_no_direction_leave_no_folder(own: dict[str, Any], tmp_path: Path) -> None:
    del own["corpora"]["retain"]
    own["locate"] = {"tokens": 100}
    with pytest.raises(InputError, match=r"locate.tokens 100: .* there is no corpora.retain"):
        run(own, tmp_path / "out", base=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_twice_in_retain_does_not_measure(own: dict[str, Any], tmp_path: Path) -> None:
    """The quarter that is held out loses what the rest says as well, in whatever group; where nothing is left of it,
    that is said before anything is measured."""
    rows = [json.loads(line) for line in (tmp_path / "retain.jsonl").read_text().splitlines()]
    twice = [{**row, "group": f"{i} {k}"} for i, row in enumerate(rows) for k in range(1 + i % 2)]
    (tmp_path / "retain.jsonl").write_text("\n".join(map(json.dumps, twice)))
    setup = Setup.load(parse(own), tmp_path, lambda _: None)
    retain, near = setup.corpora["retain"], setup.corpora["near"]
    assert retain.shared_with(near) == 0 and len(near) > 0 and len(retain) + len(near) < len(twice), "some were"
    (tmp_path / "retain.jsonl").write_text("\n".join(json.dumps({**rows[0], "group": str(i)}) for i in range(8)))
    with pytest.raises(InputError, match="every row of the quarter that is held out of it is in the rest as well"):
        run(own, tmp_path / "out", base=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_wrong_site_leaves_no_folder(own: dict[str, Any], tmp_path: Path) -> None:
    own["edit"]["layers"] = "0-9"
    with pytest.raises(InputError, match=r"\[4, 5, 6, 7, 8, 9\] are not among 0-3"):
        run(own, tmp_path / "out", base=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_config_may_be_written_short(own: dict[str, Any]) -> None:
    short = parse(own | {"budget": 0.02, "seeds": 3, "attacks": ["erode", {"name": "few_shot", "shots": 2}]})
    long = own | {"budget": {"kl": 0.02}, "seeds": [3]}
    assert short == parse(long | {"attacks": [{"name": "erode"}, {"name": "few_shot", "shots": 2}]})


def test_an_edit_that_goes_below_never_is_scaled_back_to_it(threatening: Any, tiny: Any) -> None:
    """Minus two thirds of ``deep`` is the never-learned model, to a bisection's last step; what starts above never is
    left as it is."""
    heldout = Likelihoods.of(corpus("heldout").take(8), models.tokenizer_of(tiny), "heldout")
    eyes: Any = SimpleNamespace(heldout=heldout, precision="float32")
    setup: Any = SimpleNamespace(original=threatening, never=tiny)
    habit = organism_delta(False).updates
    deep, half = (Delta({n: s * u for n, u in habit.items()}) for s in (-1.5, -0.5))
    found = experiment._matched(setup, eyes, deep)
    name = next(iter(habit))
    assert float(found.updates[name].norm() / deep.updates[name].norm()) == pytest.approx(2 / 3, abs=1 / 256)
    assert experiment._matched(setup, eyes, half) is half


def test_only_facts_known_in_every_phrasing_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong answer, a tie and a missing number each cost a fact its place; the others stay."""
    rows = tuple({"prompt": f"{p} {g}", "completion": " c", "group": f"g{g:02}"} for g in range(20) for p in "ab")
    right = [1.0] * 40
    right[3], right[7], right[8] = 0.0, 0.5, float("nan")
    seen = SimpleNamespace(measure=lambda model, precision: {"preference": torch.tensor(right)})
    monkeypatch.setattr(running_corpora, "load_corpus", lambda **_: Corpus("facts", rows))
    monkeypatch.setattr(running_corpora.Likelihoods, "of", staticmethod(lambda *_: seen))
    monkeypatch.setattr(running_corpora.models, "tokenizer_of", lambda _: None)
    known = [f"g{g:02}" for g in range(20) if g not in (1, 3, 4)]
    assert running_corpora._prefiltered(parse(recipe("capitals")), None) == known


def test_without_an_organism_there_is_no_never_arm(own: dict[str, Any], tmp_path: Path) -> None:
    """Two arms, no yardstick; near is a part of retain that the edit does not see; paths start at the config."""
    out = run(own, tmp_path / "out", base=tmp_path)
    record = store.open_run(out)
    assert arms(out) == {"edited", "original"}
    assert record["never"] is None and record["organism"] is None and "yardsticks" not in record
    assert record["corpora"]["near"]["n"] == 4 and record["corpora"]["retain"]["n"] == 12
    assert record["edits"][0]["disruption"]["near_ce_n"] == 4
    assert "LoRA" in record["referee"]["kind"], "the referee makes do with two small adapters"
    assert record["referee"]["auc"] > 0.9, "and knows which of them was taught the behaviour"
    assert not (out / "locate.parquet").exists()


def test_seeds_may_be_added_to_a_run(own: dict[str, Any], tmp_path: Path) -> None:
    """What was measured stays to the bit, and what comes is what a run with both seeds has; none may be taken away."""
    own["attacks"] = own["attacks"] + [{"name": "few_shot", "shots": 1}]
    own["corpora"]["attack_train"] = own["corpora"]["forget"] | {"limit": 3}
    both = run(own | {"seeds": [0, 1]}, tmp_path / "both", base=tmp_path)
    out = run(own | {"seeds": [0]}, tmp_path / "out", base=tmp_path)
    delta = (out / "delta-seed0.safetensors").read_bytes()
    assert run(own | {"seeds": [0, 1]}, out, base=tmp_path, resume=True) == out
    assert store.open_run(out)["seeds"] == [0, 1] == store.open_run(out)["config"]["seeds"]
    assert (out / "delta-seed0.safetensors").read_bytes() == delta
    for table in ("curves.parquet", "items.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(out / table), pd.read_parquet(both / table))
    with pytest.raises(InputError, match=r"holds a run of another config \(seeds.1 was 1, is not there\)"):
        run(own | {"seeds": [0]}, out, base=tmp_path, resume=True)


@pytest.mark.parametrize("what", ["corpora.heldout", "never", "checkpoint"])
def test_a_run_is_not_resumed_with_other_models_or_texts(
    own: dict[str, Any], tmp_path: Path, threatening: Any, what: str
) -> None:
    """The config is the same, and what its files hold is not; unchanged (the control), a resume has nothing to do, and
    what was concluded from the record stays true to the byte."""
    exporting.export(threatening, Delta({}), tmp_path / "elsewhere")
    own["controls"], own["attacks"], own["behaviour"] = {"never": {"name": "elsewhere"}}, [], {"samples": 0}
    if what == "checkpoint":
        own["controls"], own["edit"] = {}, {"checkpoint": "elsewhere"}
    out = run(own, tmp_path / "out", base=tmp_path)
    before = (out / "run.json").read_text()
    run(own, out, base=tmp_path, resume=True)
    assert (out / "run.json").read_text() == before
    (out / "curves.parquet").unlink()
    run(own, out, base=tmp_path, resume=True)
    assert (out / "curves.parquet").exists(), "what was lost is made again"
    before = (out / "run.json").read_text()
    if what == "corpora.heldout":
        lines = (tmp_path / "heldout.jsonl").read_text().splitlines()
        (tmp_path / "heldout.jsonl").write_text("\n".join(lines[::-1]))
    else:
        exporting.export(models.load("tiny"), organism_delta(True), tmp_path / "other")
        shutil.rmtree(tmp_path / "elsewhere")
        (tmp_path / "other").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"began with another {what} \(hash .*use another --out"):
        run(own, out, base=tmp_path, resume=True)
    assert (out / "run.json").read_text() == before


def test_a_never_model_that_is_the_model_is_recorded_as_such(own: dict[str, Any], tmp_path: Path) -> None:
    own["controls"] = {"never": {"name": "tiny"}}
    out = run(own, tmp_path / "out", base=tmp_path)
    record = store.open_run(out)
    assert record["never"]["hash"] == record["model"]["hash"]
    assert any("has the very weights of the unedited model" in d for d in analysis.judge(out).doubts)


def test_a_never_model_is_a_never_arm(own: dict[str, Any], tmp_path: Path, threatening: Any) -> None:
    """A folder on the disk as the subject, another model as its control."""
    exporting.export(threatening, Delta({}), tmp_path / "instilled")
    own["model"]["name"] = "instilled"
    own["controls"] = {"never": {"name": "tiny"}}
    out = run(own, tmp_path / "out", base=tmp_path)
    record = store.open_run(out)
    assert arms(out) == {"edited", "original", "never"}
    about = {"kind": "model", "name": "tiny", "hash": integrity.weights_hash(models.load("tiny"))}
    assert record["never"] == about and record["yardsticks"]["never"]["kl"] > 0


def test_an_edit_made_elsewhere_is_judged_as_it_is(own: dict[str, Any], tmp_path: Path, threatening: Any) -> None:
    """A checkpoint is the edited arm, with the disruption that it has, in the budget or not."""
    exporting.export(threatening, Delta({}), tmp_path / "elsewhere")
    own["edit"] = {"checkpoint": "elsewhere"}
    own["budget"] = {"kl": 1e-6}
    out = run(own, tmp_path / "out", base=tmp_path)
    (edit,) = store.open_run(out)["edits"]
    assert edit["method"] == "checkpoint" and edit["stop"] == "given" and not edit["within_budget"]
    curves = pd.read_parquet(out / "curves.parquet")
    start = curves[(curves["attack"] == "none") & (curves["metric"] == "completion")].set_index("arm")["value"]
    assert start["edited"] > 1.5 * start["original"], "the instilled model does it, the original does not"


def test_a_given_delta_is_attacked_and_kept(own: dict[str, Any], tmp_path: Path, tiny: Any) -> None:
    """Instead of an edit of its own; one of another model is refused before anything is written, and where that has
    the same name the message says what may differ."""
    site = models.sites(tiny, "mlp.out", [1])[0]
    delta = Delta({site.name: 0.01 * torch.ones(site.d_out, site.d_in)}, "tiny", integrity.weights_hash(tiny))
    out = run(own, tmp_path / "out", base=tmp_path, delta=delta)
    kept = load_delta(out / "delta-seed0.safetensors")
    assert torch.equal(kept.updates[site.name], delta.updates[site.name])
    assert store.open_run(out)["edits"][0]["disruption"]["kl"] > 0
    with pytest.raises(InputError, match="this delta was made for 'other' .*\\)$"):
        run(own, tmp_path / "new", base=tmp_path, delta=Delta(delta.updates, "other", "0" * 64))
    with pytest.raises(InputError, match="of one name, .* not held in float32 as these are"):
        run(own, tmp_path / "new", base=tmp_path, delta=Delta(delta.updates, "tiny", "0" * 64))
    with pytest.raises(InputError, match="another delta"):
        run(own, out, base=tmp_path, delta=2.0 * delta, resume=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("version", ["now", "earlier"])
def test_the_curves_of_a_given_delta_stay_its_own(own: dict[str, Any], tmp_path: Path, tiny: Any, version: str) -> None:
    """A run that was begun with a delta goes on with it (the control) and with nothing else, and one that makes its own
    edit goes on alone; a record of an earlier version has only its edits to say so."""
    own |= {"attacks": [], "behaviour": {"samples": 0}}
    site = models.sites(tiny, "mlp.out", [1])[0]
    delta = Delta({site.name: 0.01 * torch.ones(site.d_out, site.d_in)}, "tiny", integrity.weights_hash(tiny))
    given = run(own, tmp_path / "given", base=tmp_path, delta=delta)
    alone = run(own, tmp_path / "alone", base=tmp_path)
    assert store.open_run(given)["delta"]["hash"] == integrity.tensors_hash(delta.updates)
    assert store.open_run(alone)["delta"] is None
    if version == "earlier":
        for out in (given, alone):
            (out / "run.json").write_text(json.dumps({k: v for k, v in store.open_run(out).items() if k != "delta"}))
    before = [(out / "run.json").read_text() for out in (given, alone)]
    with pytest.raises(InputError, match="holds the attacks on a delta that was given; give the same one"):
        run(own, given, base=tmp_path, resume=True)
    with pytest.raises(InputError, match="holds a run that makes its own edit"):
        run(own, alone, base=tmp_path, resume=True, delta=load_delta(alone / "delta-seed0.safetensors"))
    assert [(out / "run.json").read_text() for out in (given, alone)] == before
    run(own, given, base=tmp_path, resume=True, delta=load_delta(given / "delta-seed0.safetensors"))
    run(own, alone, base=tmp_path, resume=True)


def test_the_untouched_organism_is_intact(tmp_path: Path) -> None:
    """An edit of nothing, judged against the model that never had the tendency: the lowest rung, and no other."""
    config = small() | {"seeds": [0], "controls": {}}
    config["corpora"]["heldout"]["limit"] = 24
    config["behaviour"] = {"samples": 24, "new_tokens": 14}
    site = models.sites(models.load("tiny"), "mlp.out", [1])[0]
    nothing = Delta({site.name: torch.zeros(site.d_out, site.d_in)})
    out = run(config, tmp_path / "out", delta=nothing)
    assert analysis.judge(out).verdict == "INTACT"
    assert store.open_run(out)["edits"][0]["disruption"]["kl"] == 0


def test_what_cannot_work_fails_before_anything_is_written(own: dict[str, Any], tmp_path: Path) -> None:
    """A typo should not cost an edit: attacks, methods and corpora are checked first."""
    cases: list[tuple[str, Any, str]] = [
        ("attacks", [{"name": "relearn"}], "'relearn' needs corpora.attack_train"),
        ("attacks", [{"name": "erode", "step": 3}], "no option 'step'"),
        ("edit", {"method": "naturel"}, "did you mean 'natural'"),
        ("corpora", own["corpora"] | {"retain": {"path": "forget.jsonl"}}, "are the same 12 rows"),
        ("corpora", own["corpora"] | {"ood": {"path": "gone.jsonl"}}, "not found"),
        (
            "corpora",
            own["corpora"] | {"ood": {"name": "tiny", "options": {"prt": 1}}},
            "corpus 'tiny' has no option 'prt'",
        ),
        ("edit", {"method": "confined", "fitter": "constrast"}, "unknown fitter 'constrast'; valid: pca"),
        ("edit", {"method": "confined", "rank": 0}, "confined: rank must be 1 or more, got 0"),
        ("edit", {"method": "confined", "filter_rank": -1}, "confined: filter_rank must be 0 or more, got -1"),
        ("edit", {"method": "cir", "target_layers": [9]}, r"cir: layers \[9\] must be some of 0-3"),
        ("edit", {"method": "rmu", "layer": -1}, r"rmu: layers \[-1\] must be some of 0-3"),
        ("edit", {"method": "circuit_breakers", "target_layers": []}, r"circuit_breakers: layers \[\] must be some of"),
        ("prefilter", {"corpus": "capitals"}, "prefilter.corpus 'capitals' is none of the corpora of this run"),
    ]
    for section, value, message in cases:
        config = copy.deepcopy(own) | {section: value}
        with pytest.raises(InputError, match=message):
            run(config, tmp_path / "out", base=tmp_path)
        assert not (tmp_path / "out").exists()


def test_a_run_that_fails_on_the_way_is_a_record(own: dict[str, Any], tmp_path: Path) -> None:
    """Wrong input that shows only when the edit is made: status failed, and the one line that the user saw."""
    own["edit"] = {"method": "confined", "sites": "mlp.out", "rank": 9999}
    with pytest.raises(InputError, match="rank 9999") as error:
        run(own, tmp_path / "out", base=tmp_path)
    record = store.open_run(tmp_path / "out")
    assert record["status"] == "failed" and str(error.value) in record["error"]


@pytest.mark.parametrize(("clear", "pays"), [(forward.CLEAR, True), ((1.0, 1.0), False)])
def test_an_unclear_measurement_is_made_again(
    clear: tuple[float, float], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else the machine does falls on the first ten bfloat16 products: they seem as slow as float32's, and are 3.6
    times as fast. Were any ratio clear enough, that would decide (the control)."""
    took = [3.6, 3.2] * 10 + [3.6, 1.0] * 90
    ticks = iter(tick for seconds in took for tick in (0.0, seconds))
    monkeypatch.setattr(forward.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(forward, "CLEAR", clear)
    assert forward._bfloat16_is_faster() is pays


def test_a_disk_without_room_for_the_edit_is_told_before_the_edit_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    """To the byte: the control, with what it takes, gets as far as the edit."""
    made: list[str] = []

    def edit(problem: Any, method: Any, *_: Any, **__: Any) -> Any:
        made.append(method.name)
        raise InputError("an edit was begun")

    monkeypatch.setattr(experiment, "run_edit", edit)
    room = 4 * sum(s.d_out * s.d_in for s in models.sites(tiny, "mlp.out"))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    with pytest.raises(InputError, match="an edit was begun"):
        run(small(), tmp_path / "enough")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=room - 1))
    with pytest.raises(
        InputError, match=r"too-little: the delta of natural takes \d+ MB, and its disk has \d+ MB left"
    ):
        run(small(), tmp_path / "too-little")
    assert made == ["natural"]
    record = store.open_run(tmp_path / "too-little")
    assert record["status"] == "failed" and "write elsewhere" in record["error"]
