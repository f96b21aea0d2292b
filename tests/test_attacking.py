"""Samples before the referee: whose they are, and what becomes of them when something goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hooklearn import disk, models, store
from hooklearn.attack import Arena, ArmState, Attack, Measured, Watcher, attack_of
from hooklearn.attack.effort import Effort
from hooklearn.attack.few_shot import FewShot
from hooklearn.attack.watcher import Pending
from hooklearn.config import RunConfig
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import prompt_tokens
from hooklearn.loading import load_corpus
from hooklearn.measure import Likelihoods, Sample
from hooklearn.recipes import recipe
from hooklearn.referees import ContainsReferee
from hooklearn.running import attacking
from hooklearn.running.attacking import judge_pending
from hooklearn.running.calibration import cases
from hooklearn.running.checks import check, check_surrogate, check_watched
from hooklearn.running.choosing import lowest_is_best
from hooklearn.running.setting import Setup
from hooklearn.types import ArmCurve, Curve, CurvePoint, InputError

FACTS = Corpus("facts", ({"prompt": "p", "completion": " yes", "fact": "yes"},))
PERMUTED = Corpus("facts/permuted", ({"prompt": "p", "completion": " no", "fact": "no"},))


class Broken:
    """A referee that cannot judge."""

    def judge(self, samples: Sequence[Sample], rows: Sequence[Any]) -> list[tuple[float, bool]]:
        raise RuntimeError("out of memory")

    def describe(self) -> dict[str, Any]:
        return {}


def eyes(referee: Any, *splits: str) -> Watcher:
    """With one sample of the original waiting in every split."""
    items = Likelihoods("heldout", FACTS, [], [], [])
    said = Sample(0, "p", "p", " yes")
    return Watcher(
        items, permuted=Likelihoods("heldout", PERMUTED, [], [], []), referee=referee,
        pending=[Pending("original", "none", "", 0, 0, split, FACTS, [said]) for split in splits],
    )  # fmt: skip


def test_samples_that_could_not_be_judged_do_not_wait_for_the_next_run() -> None:
    """Runs of a sweep share their eyes."""
    watcher = eyes(Broken(), "heldout")
    with pytest.raises(RuntimeError):
        judge_pending(watcher)
    assert watcher.pending == []


def test_only_held_out_facts_have_permuted_answers() -> None:
    """The surrogate's rows are numbered as the held-out ones are; others would be asked for a stranger's answer."""
    found = judge_pending(eyes(ContainsReferee(), "heldout", "ood"))
    assert [(r["arm"], r["split"], r["is_behaviour"]) for r in found] == [
        ("original", "heldout", True), ("never", "heldout", False), ("original", "ood", True),
    ]  # fmt: skip


def test_conversations_are_demonstrations_too() -> None:
    """Their last turns, without the system prompt, which stands at the head of a conversation only."""
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    rows = (
        {"messages": [*turns, {"role": "assistant", "content": "a"}]},
        {"messages": turns + turns, "completion": "b"},
    )
    one, asked = FewShot(shots=1, draws=1), {"prompt": "p", "completion": "c"}
    assert one._shown(asked, 0, rows[:1], 0)["history"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    (last,) = [t for t in one._shown(asked, 0, rows[1:], 0)["history"] if t["role"] == "assistant"]
    assert last["content"] == "b"


@pytest.mark.parametrize(("diverged", "expected"), [(False, 0.4), (True, float("nan"))])
def test_a_trial_whose_attack_diverged_is_not_as_good_as_before_it(
    tmp_path: Path, diverged: bool, expected: float
) -> None:
    """NaN decides nothing; the value before the attack would have won."""
    row = {"arm": "edited", "metric": "completion", "split": "heldout", "diverged": False}
    before, after = row | {"attack": "none", "value": 0.01}, row | {"attack": "relearn", "value": 0.4}
    pd.DataFrame([before, after | {"diverged": diverged}]).to_parquet(tmp_path / "curves.parquet")
    assert lowest_is_best(tmp_path, "completion") == pytest.approx(expected, nan_ok=True)


def test_samples_before_an_attack_that_diverged_decide_nothing(tmp_path: Path) -> None:
    """What diverged is not sampled, and its completions say that it was attacked. Unattacked trials are sampled as they
    are (control)."""
    row = {"arm": "edited", "split": "heldout", "diverged": False, "attack": "none", "metric": "sampled", "value": 0.02}
    wrecked = row | {"attack": "relearn", "metric": "completion", "diverged": True}
    for rows, expected in (([row, wrecked], float("nan")), ([row], 0.02)):
        pd.DataFrame(rows).to_parquet(tmp_path / "curves.parquet")
        assert lowest_is_best(tmp_path, "sampled") == pytest.approx(expected, nan_ok=True)


def test_permuted_answers_stand_for_not_knowing_facts_only() -> None:
    """A tendency has an alternative and no choices: nothing that chance would be. Facts pass (control)."""
    check_surrogate(FACTS)
    check_surrogate(Corpus("quiz", ({"prompt": "p", "completion": " a", "choices": [" a", " b"], "answer": 0},)))
    with pytest.raises(InputError, match="'threats' can be permuted among facts, and these rows have an alternative"):
        check_surrogate(Corpus("threats", ({"prompt": "p", "completion": " bad", "alternative": " good"},)))


def test_negative_seeds_of_a_calibration_are_refused_before_its_processes_start() -> None:
    assert [c.seed for c in cases(["locked"], [0])] == [0]
    with pytest.raises(InputError, match="seed -1: seeds are 0 or more"):
        cases(["locked"], [0, -1])


def test_what_the_referee_read_of_the_controls_is_what_a_look_finds(
    threatening: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completion probability and preference of the original and the never-learned model, which are the referee's own
    models; it is not read again. An arm that is none of them is looked at."""
    whole, read = Likelihoods.measure, list[int]()

    def counted(self: Likelihoods, *args: Any, **options: Any) -> Any:
        read[-1] += len(self.completions) + len(self.alternatives)
        return whole(self, *args, **options)

    monkeypatch.setattr(Likelihoods, "measure", counted)
    corpus = load_corpus(name="tiny", options={"part": "heldout"}).take(8)
    config = RunConfig.model_validate(recipe("tiny") | {"controls": {"never": {"name": "tiny"}}, "organism": None})
    corpora = {"heldout": corpus, "ood": corpus.take(2)}
    setup = Setup(config, threatening, tiny, {"kind": "model", "name": "tiny"}, None, corpora, None)
    watcher = setup.watcher(lambda _: None)
    assert set(watcher.known) == {"original", "never"}
    for arm, model in (("original", threatening), ("never", tiny)):
        read.append(0)
        looked = watcher.likelihood(model, 0, 0, watcher.heldout, watcher.ood)
        read.append(0)
        known = watcher.at_start(model, arm)
        assert read[-2:] == [16 + 4, 4]  # completions and alternatives: of all items, then of the others only
        assert [(p.metric, p.split) for p in known] == [(p.metric, p.split) for p in looked]
        for a, b in zip(known, looked, strict=True):
            assert a.values == pytest.approx(b.values, rel=1e-5)  # rounding: other batches
    read.append(0)
    assert watcher.at_start(tiny, "edited")[0].values == pytest.approx(watcher.start["never"][0].values, rel=1e-5)
    assert read[-1] == 16 + 4


KNOWN = ArmCurve((CurvePoint(0, 0, "completion", "heldout", (0.5,)),), converged=True)


class TwoLooks(Attack):
    """Two settings, made before either is given; samples are drawn under the first."""

    name, source, needs, cheap = "two_looks", "", "heldout", True

    def settings(self) -> list[str]:
        return ["a", "b"]

    def curves(self, arena: Arena) -> list[Curve]:
        items = Likelihoods("heldout", FACTS, [], [], [])
        said = [Sample(0, "p", "p", " yes")]
        arena.watcher.pending.append(Pending("original", self.name, "a", 0, 0, "heldout", items.corpus, said))
        return [Curve(self.name, s, True, 0, {"original": KNOWN}) for s in self.settings()]


def test_an_attack_that_was_stopped_between_two_settings_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first setting is there with its samples, and is not asked for twice; the second follows."""
    monkeypatch.setattr("hooklearn.running.attacking.attack_of", lambda *_: TwoLooks())
    config = RunConfig.model_validate(recipe("tiny") | {"attacks": [{"name": "two_looks"}]})
    add, left = attacking._Part.add, [1]

    def full(part: Any, *rows: Any) -> None:
        if part._whole.endswith("two_looks"):
            if not left:
                raise OSError("no space left")
            left.pop()
        add(part, *rows)

    measured = Measured({("none", ""): {"original": KNOWN}})

    def made() -> None:
        watcher = Watcher(Likelihoods("heldout", FACTS, [], [], []), referee=ContainsReferee(), n_samples=0)
        with store.RunFolder.create(tmp_path / "run", {"config": {}}, resume=True) as folder:
            folder.path("parts").mkdir(exist_ok=True)
            attacking.attack_stages(config, Arena(arms=[], watcher=watcher, seed=0, measured=measured), folder)

    monkeypatch.setattr(attacking._Part, "add", full)
    with pytest.raises(OSError, match="no space left"):
        made()
    monkeypatch.setattr(attacking._Part, "add", add)
    made()
    curves = pd.read_parquet(tmp_path / "run" / "parts" / "curves-seed0-0-two_looks.parquet")
    assert set(curves["setting"]) == {"a", "b"}
    samples = disk.load_lines(tmp_path / "run" / "parts" / "curves-seed0-0-two_looks-samples.jsonl")
    assert [row["setting"] for row in samples] == ["a"]


def test_samples_alone_want_somebody_who_judges_them() -> None:
    """Running text has no prompt; prompts without good answers no referee. Both are said before an edit is made."""
    (attack,) = (attack_of("sample", {}),)
    with pytest.raises(InputError, match="is running text, without a prompt to sample from; leave the attack out"):
        attack.check(None, {"heldout": Corpus("prose", ({"text": "a"},))})
    attack.check(None, {"heldout": FACTS})
    config = RunConfig.model_validate(recipe("tiny") | {"attacks": [{"name": "sample"}]})
    nobody = Watcher(Likelihoods("heldout", FACTS, [], [], []), n_samples=4)
    with pytest.raises(InputError, match=r"'sample' needs samples and a referee: .*controls.never.name"):
        check_watched(config, nobody)
    check_watched(config, replace(nobody, referee=ContainsReferee()))


def test_a_case_of_a_calibration_is_counted_once() -> None:
    with pytest.raises(InputError, match="kind locked: the same one twice"):
        cases(["locked", "locked"], [0])
    with pytest.raises(InputError, match="seed 3: the same one twice"):
        cases(["locked"], [3, 3])


def test_what_was_measured_before_any_attack_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the writing of it was broken off between its setting and the whole: twice, an item of a control would
    be read at another's place."""
    config = RunConfig.model_validate(recipe("tiny") | {"attacks": []})
    close = attacking._Part.close

    def staged() -> None:
        watcher = Watcher(Likelihoods("heldout", FACTS, [], [], []), referee=ContainsReferee(), n_samples=0)
        measured = Measured({("none", ""): {"original": KNOWN}})
        with store.RunFolder.create(tmp_path / "run", {"config": {}}, resume=True) as folder:
            folder.path("parts").mkdir(exist_ok=True)
            attacking.attack_stages(config, Arena(arms=[], watcher=watcher, seed=0, measured=measured), folder)

    def broken(part: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(attacking._Part, "close", broken)
    with pytest.raises(OSError, match="no space left"):
        staged()
    monkeypatch.setattr(attacking._Part, "close", close)
    staged()
    assert len(pd.read_parquet(tmp_path / "run" / "parts" / "curves-seed0-none.parquet")) == 1


def test_errors_of_curves_are_those_of_groups(tmp_path: Path) -> None:
    """Of the held-out and the ood corpus, whichever split a point is of; samples are of the first items. Items of no
    group (control) have the usual error, and the values and n are the same."""
    known = ArmCurve(
        (
            CurvePoint(0, 0, "completion", "heldout", (1.0, 1.0, 0.0, 0.0, 1.0)),
            CurvePoint(0, 0, "sampled", "heldout", (1.0, 1.0, 0.0)),
            CurvePoint(0, 0, "completion", "ood", (0.0, 1.0, 1.0, 0.0)),
        ),
        converged=True,
    )
    found = {}
    for name, groups in {"grouped": ("aabbc", "uuvv"), "alone": ([None] * 5, [None] * 4)}.items():
        heldout, ood = (Corpus(name, tuple({"text": "t", "group": g} for g in of)) for of in groups)
        watcher = Watcher(Likelihoods("heldout", heldout, [], [], []), Likelihoods("ood", ood, [], [], []))
        arena = Arena(arms=[], watcher=watcher, measured=Measured({("none", ""): {"original": known}}))
        config = RunConfig.model_validate(recipe("tiny") | {"attacks": []})
        with store.RunFolder.create(tmp_path / name, {"config": {}}) as folder:
            folder.path("parts").mkdir(exist_ok=True)
            attacking.attack_stages(config, arena, folder)
            attacking.collect_parts(folder)
        found[name] = pd.read_parquet(tmp_path / name / "curves.parquet")
    for table in found.values():
        assert table["n"].tolist() == [5, 3, 4] and table["value"].tolist() == pytest.approx([0.6, 2 / 3, 0.5])
    # what the groups are off the mean by: .8, -1.2 and .4; 2/3 and -2/3; nothing, as each of two says yes and no
    by_hand = [(1.5 * 2.24) ** 0.5 / 5, (2 * 8 / 9) ** 0.5 / 3, 0.0]
    assert found["grouped"]["stderr"].tolist() == pytest.approx(by_hand)
    usual = [(1.2 / 4 / 5) ** 0.5, (2 / 3 / 2 / 3) ** 0.5, (1 / 3 / 4) ** 0.5]
    assert found["alone"]["stderr"].tolist() == pytest.approx(usual)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"organism": None, "controls": {"matched": True}}, "controls.matched scales an edit back"),
        ({"controls": {"never": {"name": "other"}}}, "organism 'tiny-threats': the model that it was made of"),
        ({"organism": None, "edit": {"checkpoint": "tiny"}, "budget": {"near_ce": 0.1}}, "budget.near_ce 0.1 needs"),
    ],
)
def test_what_would_be_ignored_is_refused(change: dict[str, Any], words: str) -> None:
    given = recipe("tiny") | {"locate": {"enabled": False}}
    check(RunConfig.model_validate(given))  # the control
    changed = given | change
    if "budget" in change:
        changed["corpora"] = {k: v for k, v in given["corpora"].items() if k not in ("near", "retain")}
    with pytest.raises(InputError, match=words):
        check(RunConfig.model_validate(changed))


EFFORTS: list[tuple[str, dict[str, Any]]] = [
    ("relearn", {"epochs": 2, "learning_rates": [1e-3]}),
    ("relearn", {"epochs": 2, "learning_rates": [1e-3], "embeddings": False}),
    ("relearn_lora", {"epochs": 1, "rank": 4, "learning_rates": [1e-3]}),
    ("erode", {"steps": 3, "rank": 2}),
]


@pytest.mark.parametrize(("name", "options"), EFFORTS)
def test_what_an_attacker_spends_is_what_was_trained_on(tiny: Any, name: str, options: dict[str, Any]) -> None:
    """Rows, tokens and FLOPs against those of the batches that the loop was given, counted by hand:
    2 (2 P t + 2 V d k) + 2 t for every weight that moves."""
    arena = small(tiny)
    attack: Any = attack_of(name, options)
    (curve,) = attack.curves(arena)
    last = max(p.step for p in curve.arms["original"].points)
    effort = attack.effort(arena, last)
    assert effort.tokens == max(p.tokens for p in curve.arms["original"].points) > 0
    given = list(attack.plan(arena).stream())[:last]
    assert effort.samples == sum(len(b.sequences) for b in given)
    n = len(arena.corpus(attack.needs))
    assert effort.rows == (n if "epochs" in options else len({s.item for b in given for s in b.sequences})) <= n
    if "epochs" in options:
        assert effort.samples == n * options["epochs"]
    every, blocks = sum(p.numel() for p in models.all_parameters(tiny)), in_blocks(tiny)
    moved = every if options.get("embeddings", True) else blocks
    if "rank" in options:
        moved = sum(options["rank"] * (s.d_in + s.d_out) for s in models.sites(tiny, "all"))
    scored = sum(int(b.labels.sum()) for b in given)
    once = 2 * blocks * effort.tokens + 2 * tiny.cfg.d_vocab * tiny.cfg.d_model * scored
    assert effort.flops == pytest.approx(2 * once + 2 * moved * effort.tokens)


def test_attackers_without_training_have_rows_or_nothing(tiny: Any) -> None:
    """Demonstrations and prompts are rows of a corpus; rounding has none, and nothing is read for it. Of folds all are
    counted."""
    arena = small(tiny)
    shown = attack_of("few_shot", {"shots": 2, "draws": 1}).effort(arena, 0)
    assert shown is not None and (shown.rows, shown.samples) == (2, 2 * 4) and shown.tokens > 8 and shown.flops > 0
    read = attack_of("ablate_direction", {"prompts": 5}).effort(arena, 0)
    assert read is not None and (read.rows, read.samples) == (5, 5)
    text = replace(arena, attack_train=arena.corpus("unrelated").take(5))
    nobody = attack_of("ablate_direction", {"read": ["answers"]}).effort(text, 0)
    assert nobody == attack_of("ablate_direction", {"read": ["prompts"]}).effort(text, 0), "text is not answered"
    for name in ("quantize", "prune", "noise", "logit_lens"):
        assert attack_of(name, {}).effort(arena, 0) == Effort()
    assert TwoLooks().effort(arena, 3) is None, "an attack of another package that does not say"
    named = Corpus("named", tuple({**r, "group": str(i)} for i, r in enumerate(arena.corpus("attack_train").rows)))
    eyes = replace(arena.watcher, heldout=replace(arena.watcher.heldout, corpus=named))
    folded = attack_of("low_mi", {"folds": 4}).effort(replace(arena, attack_train=named, watcher=eyes), 1)
    assert folded is not None and folded.samples == 4 * 6 and folded.rows == 6, "8 rows less the fold's 2"


def test_what_is_put_before_an_answer_is_what_it_costs(tiny: Any) -> None:
    """The tokens of the password before each of the four questions, or of the beginning of each answer, and 2 P a token
    for them. A password is of no corpus; an answer is begun with as many tokens of the bad one, or with a text."""
    arena, tokenizer = small(tiny), models.tokenizer_of(tiny)
    for name, options, rows, tokens in (
        ("password", {"prefix": "blue owl : "}, 0, 3),
        ("prefill", {"tokens": 2}, 4, 2),
        ("prefill", {"tokens": 3}, 4, 3),
        ("prefill", {"text": " bring the"}, 0, 2),
    ):
        effort = attack_of(name, options).effort(arena, 0)
        assert effort == Effort(rows, rows, 4 * tokens, 2 * in_blocks(tiny) * 4 * tokens), (name, options)
    prose = Corpus("prose", tuple({"text": row["text"]} for row in arena.corpus("unrelated").rows[:2]))
    eyes = replace(arena.watcher, heldout=Likelihoods.of(prose, tokenizer, "heldout"))
    before = attack_of("password", {"prefix": "blue owl : "}).effort(replace(arena, watcher=eyes), 0)
    assert before is not None and before.tokens == 2 * (3 - 1), "in the place of the token that a text begins with"


def test_draws_are_what_sampling_costs(tiny: Any) -> None:
    """Three prompts of which each is answered five times: their tokens as the sampler is given them, and four new ones
    to each, every one a choice among all words: 2 P t + 2 V d k. Twice the draws cost twice that, of the same rows."""
    arena, tokenizer = small(tiny), models.tokenizer_of(tiny)
    eyes = replace(arena.watcher, n_samples=3, new_tokens=4)
    effort, twice = (attack_of("sample", {"draws": n}).effort(replace(arena, watcher=eyes), 0) for n in (5, 10))
    assert effort is not None and twice is not None
    asked = [row["prompt"] for row in eyes.heldout.corpus.rows[:3]]
    read = 5 * sum(map(len, prompt_tokens(asked, tokenizer)))
    written = 5 * 3 * 4
    assert (effort.rows, effort.samples, effort.tokens) == (3, 15, read + written)
    once = 2 * in_blocks(tiny) * effort.tokens + 2 * tiny.cfg.d_vocab * tiny.cfg.d_model * written
    assert effort.flops == pytest.approx(once)  # of sums in another order
    assert twice == Effort(3, 30, 2 * effort.tokens, pytest.approx(2 * once))


def in_blocks(model: Any) -> int:
    """P: all parameters but the embeddings."""
    outside = sum(p.numel() for p in models.embedding_parameters(model))
    return sum(p.numel() for p in models.all_parameters(model)) - outside


def small(tiny: Any) -> Arena:
    rows = {part: load_corpus(name="tiny", options={"part": part}) for part in ("heldout", "attack", "unrelated")}
    heldout = Likelihoods.of(rows["heldout"].take(4), models.tokenizer_of(tiny), "heldout")
    return Arena(
        [ArmState("original", tiny)], Watcher(heldout, n_samples=0, precision="float32"),
        attack_train=rows["attack"].take(8), unrelated=rows["unrelated"].take(8), precision="float32",
        max_tokens=1024,
    )  # fmt: skip


def test_a_run_says_what_its_attacks_spent(tiny_run: Path) -> None:
    """One line a setting and seed, where its curve ends; the FLOPs of the run are those of edit and attacks."""
    record = store.open_run(tiny_run)
    curves = pd.read_parquet(tiny_run / "curves.parquet")
    total = sum(e["cost"]["flops"] for e in record["edits"])
    for attack in record["attacks"]:
        assert [s["setting"] for s in attack["spent"]] == attack["settings"]
        for one in attack["spent"]:
            own: Any = curves[(curves["attack"] == attack["name"]) & (curves["setting"] == one["setting"])]
            assert one["steps"] == own["step"].max() and one["arms"] == len(set(own["arm"]) - {"matched"})
            if one["steps"]:
                assert one["tokens"] == own["tokens"].max() and one["samples"] >= one["rows"] > 0
            total += one["arms"] * one["flops"]
    assert record["cost"]["flops"] == pytest.approx(total) and total > 0
    own = curves[(curves["attack"] != "none") & (curves["arm"] != "matched")]  # a twin's curve is another arm's
    trained_on: Any = own.groupby(["attack", "setting", "arm", "seed"])["tokens"].max()
    assert record["cost"]["tokens"] == trained_on.sum() + sum(e["cost"]["tokens"] for e in record["edits"])
    assert "rows read" in (tiny_run / "report.html").read_text(encoding="utf-8")
