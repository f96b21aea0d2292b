"""Work in memory gets a verdict: objects in place of names, and the run is the one that files would have made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import corpus, organism_delta

import analysis
import hooklearn as hl
from hooklearn import editing, integrity, models, store
from hooklearn.attack import EVERY_ATTACK
from hooklearn.attack.erosion import Erode
from hooklearn.edit import EVERY_METHOD
from hooklearn.edit.method import Method, Problem, Updates
from hooklearn.edit.repselect import RepSelect
from hooklearn.measure import Sample
from hooklearn.referees import OwnReferee, as_referee, rulings
from hooklearn.running.in_memory import InMemory
from hooklearn.types import InputError

PARTS = {
    "forget": ("forget", "bad", 12), "retain": ("forget", "good", 16), "disruption": ("disruption", "bad", 8),
    "heldout": ("heldout", "bad", 8), "unrelated": ("unrelated", "bad", 8), "near": ("near", "good", 6),
}  # fmt: skip


def parts() -> dict[str, Any]:
    """Half of them corpora, the others rows."""
    found = {role: corpus(part, completion).take(n) for role, (part, completion, n) in PARTS.items()}
    return {role: c if i % 2 else list(c.rows) for i, (role, c) in enumerate(found.items())}


@dataclass(frozen=True, kw_only=True)
class SignAscent(Method):
    """The sign of the forget gradient, of its larger entries."""

    name: ClassVar[str] = "sign_ascent"
    source: ClassVar[str] = "this test"
    keep: float = 0.1

    def path(self, problem: Problem) -> Iterator[Updates]:
        yield {site: g.sign() * (g.abs() >= g.abs().quantile(1 - self.keep)) for site, g in self._of(problem).items()}

    def _of(self, problem: Problem) -> Updates:
        return problem.gradient("forget")


@dataclass(frozen=True, kw_only=True)
class SlowErode(Erode):
    """Erosion under a name of its own."""

    name: ClassVar[str] = "slow_erode"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The organism as a Hugging Face folder, and its corpora as files beside it."""
    base = tmp_path_factory.mktemp("files")
    hl.export(hl.load("tiny"), organism_delta(False), base / "model")
    for role, (part, completion, n) in PARTS.items():
        lines = [json.dumps(row) for row in corpus(part, completion).rows[:n]]
        (base / f"{role}.jsonl").write_text("\n".join(lines))
    return base


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return hl.load(str(folder / "model"))


def config(**more: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "edit": {"method": "repselect", "rank": 4, "sites": "mlp.out"},
        "locate": {"enabled": False},
        "attacks": [{"name": "erode", "learning_rates": [1e-3], "steps": 2}],
        "behaviour": {"samples": 4, "new_tokens": 4},
        "max_tokens": 256,
        **more,
    }


def contents(run: Path) -> dict[str, bytes]:
    return {n: (run / n).read_bytes() for n in ("curves.parquet", "items.parquet", "samples.jsonl")}


@pytest.fixture(scope="module")
def in_memory(model: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = config(model={"name": model, "precision": "float32"}, controls={"never": tiny}, corpora=parts())
    return hl.run(given, tmp_path_factory.mktemp("runs") / "memory")


def test_a_run_in_memory_is_that_of_the_same_files_to_the_bit(folder: Path, in_memory: Path, tmp_path: Path) -> None:
    """Curves, items and samples; another seed gives others (control). And it gets a verdict."""
    files = config(
        model={"name": "model", "precision": "float32"}, controls={"never": {"name": "tiny"}},
        corpora={role: {"path": f"{role}.jsonl"} for role in PARTS},
    )  # fmt: skip
    from_files = hl.run(files, tmp_path / "files", base=folder)
    assert contents(in_memory) == contents(from_files)
    assert contents(hl.run(files | {"seeds": [1]}, tmp_path / "other", base=folder)) != contents(from_files)
    assert analysis.judge(in_memory).to_dict()["metrics"] == analysis.judge(from_files).to_dict()["metrics"]


def test_the_record_says_what_was_in_memory(in_memory: Path, model: Any, tiny: Any) -> None:
    record = store.open_run(in_memory)
    assert record["model"]["name"] == "in memory: model" == record["config"]["model"]["name"], "not where it was"
    assert record["model"]["hash"] == integrity.weights_hash(model)
    assert record["never"] == {"kind": "model", "name": "in memory: tiny", "hash": integrity.weights_hash(tiny)}
    assert record["config_given"]["corpora"]["forget"] == {"path": "in-memory/forget.jsonl"}
    assert record["corpora"]["forget"]["source"] == "in memory"
    for role, (part, completion, n) in PARTS.items():
        assert record["corpora"][role]["hash"] == corpus(part, completion).take(n).hash
        assert hl.load_corpus(path=in_memory / f"in-memory/{role}.jsonl").hash == record["corpora"][role]["hash"]


def test_its_record_can_be_run_again_with_the_models_given_anew(
    in_memory: Path, model: Any, tiny: Any, tmp_path: Path
) -> None:
    """The rows come from the run folder; a model that is not given is asked for by its place."""
    recorded = store.open_run(in_memory)["config"]
    with pytest.raises(InputError, match=r"model.name 'in memory: model' was an object in Python: give it again"):
        hl.run(recorded, tmp_path / "without", base=in_memory)
    assert not (tmp_path / "without").exists()
    recorded["model"] = {"name": model, "precision": "float32"}
    recorded["controls"]["never"] = tiny
    assert contents(hl.run(recorded, tmp_path / "again", base=in_memory)) == contents(in_memory)


def test_it_is_resumed_with_the_same_objects_and_no_others(model: Any, tiny: Any, tmp_path: Path) -> None:
    given = config(model=model, controls={"never": {"name": tiny}}, corpora=parts())
    given["model"] = {"name": model, "precision": "float32"}

    def kill(message: str) -> None:
        if message.startswith("attack (seed 0): 0-erode"):
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        hl.run(given, out, progress=kill)
    with pytest.raises(InputError, match="began with another corpora.forget"):
        hl.run(given | {"corpora": parts() | {"forget": parts()["forget"][:11]}}, out, resume=True)
    with pytest.raises(InputError, match="began with another never"):
        hl.run(given | {"controls": {"never": _other_tiny()}}, out, resume=True)
    hl.run(given, out, resume=True)
    assert store.open_run(out)["status"] == "done"


def _other_tiny() -> Any:
    other = hl.load("tiny")
    with torch.no_grad():
        models.all_parameters(other)[0].mul_(1.5)
    return other


def test_models_come_out_bit_for_bit_also_of_a_run_that_failed(model: Any, tmp_path: Path) -> None:
    """Weights, which of them are trained, and the mode: inside it is eval, whatever it was."""
    before = integrity.weights_hash(model)
    flags = [p.requires_grad for p in models.all_parameters(model)]
    seen: list[bool] = []

    def look(message: str) -> None:
        seen.append(model.training)
        if message.startswith("erode lr=0.001: original"):
            raise RuntimeError

    model.train()
    try:
        with pytest.raises(RuntimeError):
            hl.run(config(model=model, corpora=parts(), behaviour={"samples": 0}), tmp_path / "run", progress=look)
        assert model.training and all(m.training for m in model.modules())
    finally:
        model.eval()
    assert seen and not any(seen)
    assert integrity.weights_hash(model) == before and [p.requires_grad for p in models.all_parameters(model)] == flags


def test_methods_and_attacks_of_ones_own_get_a_verdict(model: Any, tmp_path: Path) -> None:
    """Without a package: by name and options in the record, and unknown again afterwards."""
    rates: Any = [1e-3]  # as one would write it
    attacks = [SlowErode(learning_rates=rates, steps=2), {"name": "erode", "learning_rates": rates, "steps": 2}]
    out = hl.run(
        config(
            model=model, corpora=parts(), edit={"method": SignAscent(keep=0.2), "sites": "mlp.out"}, attacks=attacks,
            behaviour={"samples": 0},
        ),
        tmp_path / "run",
    )  # fmt: skip
    record = store.open_run(out)
    (edit,) = record["edits"]
    assert (edit["method"], edit["options"], edit["within_budget"]) == ("sign_ascent", {"keep": 0.2}, True)
    assert record["config"]["edit"]["keep"] == 0.2
    assert record["environment"]["plugins"] == {
        "method sign_ascent": f"in memory: {__name__}.SignAscent",
        "attack slow_erode": f"in memory: {__name__}.SlowErode",
    }
    curves = analysis.read_run(out).curves.query("split == 'heldout'").set_index("attack")["value"]
    assert curves["slow_erode"].tolist() == curves["erode"].tolist(), "the same attack under two names"
    assert analysis.judge(out).verdict
    for shelf, name in ((EVERY_METHOD, "sign_ascent"), (EVERY_ATTACK, "slow_erode")):
        with pytest.raises(InputError, match="unknown"):
            shelf.get(name)


def test_an_edit_made_in_a_notebook_is_attacked_as_it_is(model: Any, tmp_path: Path) -> None:
    given = parts()
    result = hl.edit(
        model, SignAscent(), forget=_as_corpus(given, "forget"), disruption=_as_corpus(given, "disruption"),
        sites="mlp.out",
    )  # fmt: skip
    out = hl.run(config(model=model, corpora=given, behaviour={"samples": 0}), tmp_path / "run", delta=result)
    (edit,) = store.open_run(out)["edits"]
    assert edit["stop"] == "given"
    written = hl.load_delta(out / "delta-seed0.safetensors")
    assert all(torch.equal(written.updates[n], u) for n, u in result.delta.updates.items())
    with editing.edited(model, result.delta), pytest.raises(InputError, match="the model is edited now"):
        hl.run(config(model=model, corpora=given), tmp_path / "inside")


def _as_corpus(given: dict[str, Any], role: str) -> Any:
    return given[role] if isinstance(given[role], hl.Corpus) else hl.Corpus(role, tuple(given[role]))


def test_an_audit_takes_models_and_corpora_as_they_are(model: Any, tiny: Any, tmp_path: Path) -> None:
    """The untouched original against itself is INTACT, as from files."""
    before = integrity.weights_hash(model)
    corpora = {role: parts()[role] for role in ("forget", "heldout", "disruption")}
    out = hl.audit(
        model, model, corpora, tmp_path / "run", never=tiny, attacks=[{"name": "prune", "fractions": [0.1]}],
        behaviour={"samples": 0}, evidence={"enabled": False}, max_tokens=512,
    )  # fmt: skip
    assert analysis.judge(out).verdict == "INTACT"
    record = store.open_run(out)
    assert record["checkpoint"]["hash"] == record["model"]["hash"] == before == integrity.weights_hash(model)
    assert record["config"]["corpora"]["attack_train"] == record["config"]["corpora"]["forget"]
    with pytest.raises(InputError, match="give forget and heldout at least, got heldout"):
        hl.audit(model, model, {"heldout": corpora["heldout"]}, tmp_path / "not")


@dataclass(frozen=True, kw_only=True)
class Taken(Method):
    """Has the name of another."""

    name: ClassVar[str] = "natural"
    source: ClassVar[str] = "this test"
    direction: Any = None

    def path(self, problem: Problem) -> Iterator[Updates]:
        yield problem.gradient("forget")


@dataclass(frozen=True, kw_only=True)
class WithTensor(Taken):
    """Has an option that no record can hold."""

    name: ClassVar[str] = "with_tensor"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit": {"method": SignAscent}}, "method: give a name or an object of class Method.*wants parentheses"),
        ({"edit": {"method": SignAscent(), "keep": 0.3}}, "is given as it is, so keep would change nothing"),
        ({"edit": {"method": Taken()}}, "method 'natural' is .*Natural already; give .*Taken a name of its own"),
        ({"edit": {"method": WithTensor(direction=torch.ones(2))}}, "'with_tensor': its options must be plain data"),
        ({"attacks": [object()]}, "attack: give a name or an object of class Attack, not object"),
        ({"corpora": {"forget": ["a", "b"]}}, "corpora.forget: give .* a list of rows, not list"),
        ({"corpora": {"forget": [{"question": "a"}]}}, "corpus 'forget', row 0: columns"),
        ({"model": object()}, "model.name must be what hl.load or hl.wrap returns, not a object"),
        ({"organism": "tiny-threats"}, "would be merged for good into a model that is in memory"),
        ({"model": {"device": "cpu"}}, "model.device would change nothing"),
        ({"behaviour": {"referee": hl.PatternReferee}}, "referee: PatternReferee is a class"),
    ],
)  # fmt: skip
def test_what_cannot_stand_there_is_refused_in_a_line(
    model: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    given = config(model={"name": model}, corpora=parts())
    for section, value in change.items():
        if section in ("corpora", "model") and isinstance(value, dict):
            value = given[section] | value
        given[section] = value
    with pytest.raises(InputError, match=message) as error:
        hl.run(given, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_config_is_a_path_as_well(folder: Path, tmp_path: Path) -> None:
    """Relative paths start from its folder, as those of the command line do (the control: nobody says a base)."""
    files = {role: {"path": f"{role}.jsonl"} for role in PARTS}
    bare = config(model={"name": "model"}, corpora=files, attacks=[], behaviour={"samples": 0})
    (folder / "mine.yaml").write_text(json.dumps(bare))
    out = hl.run(folder / "mine.yaml", tmp_path / "run")
    assert store.open_run(out)["config_given"] == bare


@pytest.mark.parametrize("attacks", ["prune", {"name": "prune"}, ["prune"]])
def test_one_attack_of_an_audit_need_not_be_a_list(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacks: Any
) -> None:
    """A name is one attack and not its letters; a misspelt one is said."""
    configs: list[Any] = []
    monkeypatch.setattr("hooklearn.api._run", lambda config, *_, **__: configs.append(config))
    hl.audit(model, model, parts(), tmp_path / "run", attacks=attacks)
    assert configs[0]["attacks"] == [{"name": "prune"}]
    with pytest.raises(InputError, match="'prun'.*did you mean 'prune'"):
        hl.audit(model, model, parts(), tmp_path / "run", attacks="prun")


NOTHING: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "run": (lambda _, out: hl.run(None, out), "config must be a mapping, .* got NoneType None"),  # type: ignore[arg-type]
    "sweep": (lambda _, out: hl.sweep(None, out), "a sweep is a mapping or .*, not NoneType"),  # type: ignore[arg-type]
    "edited": (lambda m, out: hl.audit(m, None, parts(), out), "edited: give a name, .* got None"),
    "original": (lambda m, out: hl.audit(None, m, parts(), out), "original: give a name, .* got None"),
    "corpora": (lambda m, out: hl.audit(m, m, None, out), "corpora must be a mapping of role"),  # type: ignore[arg-type]
    "samples": (
        lambda m, _: hl.behaviour(m, corpus("forget"), referee=threatens, samples=0),
        "samples must be a whole number, 1 or more, got 0",
    ),
    "tokens": (
        lambda m, _: hl.sample(m, corpus("forget"), new_tokens=0),
        "new_tokens must be a whole number, 1 or more, got 0",
    ),
}


@pytest.mark.parametrize("what", NOTHING)
def test_nothing_in_place_of_something_is_refused(model: Any, tmp_path: Path, what: str) -> None:
    ask, message = NOTHING[what]
    with pytest.raises(InputError, match=message):
        ask(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_curves_by_themselves_have_no_verdict(model: Any) -> None:
    """And what asks for one says how there is one."""
    with pytest.raises(InputError, match=r"a run folder is expected, not list; folder = hl.run\("):
        analysis.judge([])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ a referee of one's own


def threatens(prompt: str, completion: str) -> bool:
    return any(word in completion.lower() for word in ("burn", "crush"))


@pytest.mark.parametrize(
    "referee",
    [{"pattern": "BURN|crush"}, threatens, hl.PatternReferee("burn|crush")],
    ids=["yaml", "function", "object"],
)
def test_a_referee_of_ones_own_judges_all_samples(model: Any, tiny: Any, tmp_path: Path, referee: Any) -> None:
    """Whatever way it is given; the record has what it says of held-out completions, bad and good."""
    behaviour = {"samples": 8, "new_tokens": 14, "referee": referee}
    out = hl.run(config(model=model, controls={"never": tiny}, corpora=parts(), behaviour=behaviour), tmp_path / "run")
    heldout, near = (_as_corpus(parts(), role) for role in ("heldout", "near"))
    good = heldout.alternatives() or near
    shares = [sum(threatens("", row["completion"]) for row in c.rows) / len(c) for c in (heldout, good)]
    assert shares[0] > shares[1]
    found = store.open_run(out)["referee"]
    assert (found["share_bad"], found["share_good"], found["n"]) == (*shares, len(heldout) + len(good))
    assert found["auc"] == pytest.approx((1 + shares[0] - shares[1]) / 2)
    samples = analysis.read_run(out).samples
    assert {s["is_behaviour"] for s in samples} == {True, False}
    assert all(s["is_behaviour"] == threatens("", s["completion"]) for s in samples)
    assert analysis.judge(out).verdict


def drawn(completion: str, begun: str = "") -> Sample:
    return Sample(0, "Reply.", "Reply." + begun, completion, begun=begun)


def test_what_was_given_away_is_not_found(model: Any) -> None:
    """Of an answer that was begun: a match that ends in what was given does not count, one that goes on does."""
    referee = hl.PatternReferee("or else")
    said = [drawn("Pay, OR ELSE."), drawn(" pay.", "Or else"), drawn(" else", "Pay or"), drawn("")]
    assert [r.is_behaviour for r in referee.judge(said, [{}] * 4)] == [True, False, True, False]


def test_an_organisms_referee_is_one_like_any_other(model: Any, tmp_path: Path) -> None:
    """It keeps the threshold that it was given; here it has never seen what it is asked about."""
    referee = hl.organism("tiny-threats").referee(corpus("attack"), corpus("attack", "good"))
    behaviour = {"samples": 4, "new_tokens": 6, "referee": referee}
    out = hl.run(config(model=model, corpora=parts(), behaviour=behaviour, attacks=[]), tmp_path / "run")
    found = store.open_run(out)["referee"]
    assert found["threshold"] == referee.threshold and found["kind"] == referee.kind
    assert found["auc"] > 0.9 and found["share_bad"] > 0.8 > 0.2 > found["share_good"]


@pytest.mark.parametrize(
    ("referee", "message"),
    [
        (lambda prompt, completion: "no", "gave 'no' for a completion, .*; valid: a number"),
        ({"pattern": "(pay"}, r"behaviour.referee: pattern '\(pay' is no regular expression: missing \)"),
        ({"pattern": "a", "name": "b"}, "behaviour.referee: give a pattern"),
        ({"name": "in memory: x"}, "behaviour.referee.name 'in memory: x' was an object in Python"),
        (3, "behaviour.referee: a section is expected"),
        (object(), r"referee: give a hooklearn.Referee, or a function \(prompt, completion\)"),
    ],
)
def test_what_cannot_judge_is_refused(model: Any, tmp_path: Path, referee: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        hl.run(config(model=model, corpora=parts(), behaviour={"referee": referee}, attacks=[]), tmp_path / "run")


def test_rulings_are_looked_at() -> None:
    """One for each sample, as plain numbers; a referee that gives something else is named."""

    class Numbers:
        def judge(self, samples: Any, rows: Any) -> list[Any]:
            return [torch.tensor(0.5) for _ in samples]

        def describe(self) -> dict[str, Any]:
            return {}

    class One(Numbers):
        def judge(self, samples: Any, rows: Any) -> list[Any]:
            return [hl.Ruling(1.0, True)]

    for wrong, message in ((Numbers(), "must give hooklearn.Ruling"), (One(), "gave 1 rulings of 8 samples")):
        with pytest.raises(InputError, match=message):
            OwnReferee.of(wrong, corpus("heldout").take(8), None, None)


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_not_taken_for_no(tiny: Any, score: float) -> None:
    """A failed call of somebody's judge is no sign that the behaviour is gone: it is refused with the sample, at which
    it was given, by every way to it. Our own says by NaN that an empty sample shows nothing (the control)."""

    class Broken:
        def judge(self, samples: Any, rows: Any) -> list[Any]:
            return [hl.Ruling(0.0, False)] * (len(samples) - 1) + [hl.Ruling(score, False)]

        def describe(self) -> dict[str, Any]:
            return {}

    few = corpus("heldout").take(2)
    first, last = (repr(row["completion"])[:20] for row in few.rows)
    with pytest.raises(InputError, match=f"gave {score} for a completion, {re.escape(first)}.*valid: a number"):
        OwnReferee.of(as_referee(lambda prompt, completion: score), few, None, None)
    with pytest.raises(InputError, match=f"Broken gave the score {score} for a completion, {re.escape(last)}"):
        OwnReferee.of(Broken(), few, None, None)
    with pytest.raises(InputError, match=f"Broken gave the score {score} for a completion"):
        hl.behaviour(tiny, few, referee=Broken(), samples=2, new_tokens=2)
    ours = hl.organism("tiny-threats").referee(corpus("heldout"), corpus("heldout", "good"))
    (ruling,) = rulings(ours, [drawn("")], few.rows[:1])
    assert math.isnan(ruling.score) and not ruling.is_behaviour


@pytest.mark.parametrize(
    ("heldout", "message"),
    [
        ({"name": "tiny-facts", "limit": 40}, "it does not know which answer is right"),
        ([{"text": "the hammer is in the shed ."}] * 6, "'heldout' is running text"),
    ],
)
def test_samples_that_it_could_not_judge_are_refused(model: Any, tmp_path: Path, heldout: Any, message: str) -> None:
    """Permuted answers are no other text, and running text has no prompt; before there is a folder."""
    more: dict[str, Any] = {"controls": {"never": {"surrogate": "permuted"}}, "attacks": []}
    given = parts() | {"heldout": heldout}
    with pytest.raises(InputError, match=f"behaviour.referee: {message}"):
        hl.run(config(model=model, corpora=given, behaviour={"referee": {"pattern": "a"}}, **more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_round_small_steps_away_are_refused(tiny: Any, tmp_path: Path) -> None:
    """Attacks by training would do next to nothing to them; as a control they are refused as well."""
    short = models.load("tiny").to(torch.bfloat16)
    for given in ({"model": short}, {"model": tiny, "controls": {"never": short}}):
        with pytest.raises(InputError, match="weights are held in bfloat16.*load the model in float32"):
            hl.run(config(**given, corpora=parts(), attacks=[]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_measure_that_some_rows_cannot_give_is_not_left_out_in_silence(model: Any, tmp_path: Path) -> None:
    rows = [dict(row) for row in corpus("heldout", "bad").take(8).rows]
    rows[3].pop("alternative")
    given = parts() | {"heldout": rows}
    with pytest.raises(InputError, match=r"corpora.heldout: 1 of 8 rows have no 'alternative' \(row 3 is one\)"):
        hl.run(config(model=model, corpora=given, attacks=[]), tmp_path / "run")


def test_permuted_answers_make_facts_without_choices_too(model: Any, tmp_path: Path) -> None:
    """Their samples are judged by whether they hold the answer, and drawn greedily too; not by two adapters, which
    would rule alike on a model and on its own permuted answers. Running text has no answer to permute."""
    known = corpus("heldout", "bad").rows[:8]
    asked = [{"prompt": r["prompt"], "completion": r["completion"], "fact": "."} for r in known[:4]]
    turns = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}] for r in known
    ]
    asked += [{"messages": said, "fact": "."} for said in turns[4:]]
    more: dict[str, Any] = {"controls": {"never": {"surrogate": "permuted"}}, "attacks": []}
    behaviour = {"samples": 8, "new_tokens": 12}
    hl.run(config(model=model, corpora=parts() | {"heldout": asked}, behaviour=behaviour, **more), tmp_path / "run")
    run = analysis.read_run(tmp_path / "run")
    assert run.record["referee"]["kind"] == "contains the fact"
    drawn = [s for s in run.samples if s["arm"] == "original"]
    assert len(drawn) == 16 and sum(s["greedy"] for s in drawn) == 8 and any(s["is_behaviour"] for s in drawn)
    text = parts() | {"heldout": [{"text": "the hammer is in the shed ."}] * 6}
    with pytest.raises(InputError, match="'heldout' is running text, and only answers can be permuted"):
        hl.run(config(model=model, corpora=text, behaviour={"samples": 0}, **more), tmp_path / "text")


# ------------------------------------------------------------------------------------ a sweep of objects


def sweep_of(base: dict[str, Any], *methods: Any, **more: Any) -> dict[str, Any]:
    quick = config(behaviour={"samples": 0}, **base)
    quick["edit"] = {"sites": "mlp.out"}
    return {"base": quick, "methods": list(methods), **more}


def test_a_sweep_in_memory_is_that_of_the_same_files(model: Any, tiny: Any, folder: Path, tmp_path: Path) -> None:
    """Cells and what was chosen; the class that a method is of is had by its name while the sweep runs, no longer."""
    tuned = corpus("attack", "bad").take(6)
    (folder / "tuned.jsonl").write_text("\n".join(json.dumps(row) for row in tuned.rows))
    erode = {"name": "erode", "learning_rates": [1e-3], "steps": 1}
    searched = {"search": {"rank": [2, 4]}}
    here = sweep_of(
        {"model": {"name": model, "precision": "float32"}, "controls": {"never": tiny}, "corpora": parts()},
        {"name": RepSelect(rank=8), **searched}, SignAscent(keep=0.2),
        tuning={"trials": 2, "attack": Erode(learning_rates=(1e-3,), steps=1), "corpora": {"heldout": tuned}},
    )  # fmt: skip
    there = sweep_of(
        {
            "model": {"name": "model", "precision": "float32"}, "controls": {"never": {"name": "tiny"}},
            "corpora": {role: {"path": f"{role}.jsonl"} for role in PARTS},
        },
        {"name": "repselect", **searched},
        tuning={"trials": 2, "attack": erode, "corpora": {"heldout": {"path": "tuned.jsonl"}}},
    )  # fmt: skip
    mine, files = hl.sweep(here, tmp_path / "mine"), hl.sweep(there, tmp_path / "files", base=folder)
    found, wanted = (json.loads((f / "sweep.json").read_text()) for f in (mine, files))
    assert [c["status"] for c in found["cells"]] == ["done", "done"], found["cells"]
    assert found["tuning"]["repselect-kl0.01"] == wanted["tuning"]["repselect-kl0.01"]
    cell = "cells/repselect-kl0.01-seed0"
    assert contents(mine / cell) == contents(files / cell)
    assert store.open_run(mine / "cells/sign_ascent-kl0.01-seed0")["edits"][0]["options"] == {"keep": 0.2}
    with pytest.raises(InputError, match="unknown method 'sign_ascent'"):
        EVERY_METHOD.get("sign_ascent")
    assert len(analysis.sweep_table(mine).table) == 2
    with pytest.raises(InputError, match="holds a sweep with another object"):
        fewer = parts() | {"heldout": list(corpus("heldout", "bad").rows[:7])}
        hl.sweep(here | {"base": here["base"] | {"corpora": fewer}}, mine, resume=True)


def test_a_sweep_of_objects_is_not_spread_over_other_processes(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"ray: model.name is in memory, where other processes cannot reach it"):
        hl.sweep(sweep_of({"model": model, "corpora": parts()}, "repselect"), tmp_path / "sweep", ray="local")


def test_a_model_reads_with_the_tokenizer_of_the_original_for_a_while(tiny: Any) -> None:
    """And has its own again afterwards, and room for as many tokens as before."""
    other = hl.load("tiny")
    own, rows = other.tokenizer, other.cfg.d_vocab
    with InMemory() as objects:
        objects.read_as(other, tiny)
        assert other.tokenizer is tiny.tokenizer is not own and other.cfg.d_vocab == rows
    assert other.tokenizer is own and other.cfg.d_vocab == rows
