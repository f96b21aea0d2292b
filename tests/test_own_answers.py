"""On policy: the model's own answers that a referee calls bad, redrawn in every round, are what goes down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus, organism_delta
from editing import alike, problem_of

from hooklearn import editing, experiment, integrity, organisms, store
from hooklearn.config import parse
from hooklearn.corpora.corpus import Corpus
from hooklearn.deltas import Delta, load_delta
from hooklearn.edit import Problem, edit, method_of, own_answers
from hooklearn.edit.method import Updates, combine, inner, norm
from hooklearn.edit.natural import Metric
from hooklearn.edit.own_answers import FEWEST, apart
from hooklearn.measure import sample
from hooklearn.recipes import recipe
from hooklearn.referees import CallableReferee, RatioReferee, Scorer
from hooklearn.running.in_memory import InMemory
from hooklearn.types import InputError

SINGLE = 1e-4
"""Relative, float32 through solves with a condition number of some thousands (damping .01)."""
WORDS = 14
"""In which an answer of the tiny world ends."""
ASKED = {"on_policy": 1, "new_tokens": WORDS, "step_kl": 2e-3}


@pytest.fixture(scope="module")
def referee(threatening: Any, tiny: Any) -> RatioReferee:
    found = RatioReferee(Scorer(threatening), (Scorer(tiny),), "instilled / untouched")
    return found.calibrated(corpus("forget"), corpus("forget", "good"))


def rounds(**options: Any) -> Any:
    return method_of("natural_rounds", ASKED | options)


def share_bad(model: Any, referee: Any, updates: Updates | None = None) -> float:
    """Of 40 answers to held-out prompts, drawn with a seed of their own."""
    asked = corpus("heldout").take(40)
    with editing.edited(model, Delta(updates or {})):
        said = sample(model, asked, n=40, new_tokens=WORDS, seed=11)
    return sum(r.is_behaviour for r in referee.judge(said, asked.rows)) / 40


def test_what_goes_down_are_the_bad_answers_of_the_model_as_it_is(
    threatening: Any, referee: RatioReferee, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every round all that it says to forget prompts now is judged, and the bad is what the gradient is of: as drawn
    and judged by hand, and not what the unedited model says with the same seed (control). The second step by hand."""
    taken, drawn, whole, draw = list[Corpus](), list[int](), Problem.fresh_gradient, own_answers.sample
    made = problem_of(threatening, "mlp.out", referee=referee)
    with monkeypatch.context() as patch:
        patch.setattr(Problem, "fresh_gradient", lambda self, of: (
            taken.extend([of] if isinstance(of, Corpus) else []), whole(self, of))[1])  # fmt: skip
        patch.setattr(own_answers, "sample", lambda *a, **k: (drawn.append(k["seed"]), draw(*a, **k))[1])
        first, second = rounds(rounds=2).path(made)
    assert len(taken) == len(drawn) == 2 and len(set(drawn)) == 2

    def by_hand(there: Updates, seed: int) -> list[str]:
        with editing.edited(threatening, Delta(there)):
            said = sample(threatening, made.forget, n=48, new_tokens=WORDS, seed=seed, precision="float32")
        judged = zip(said, referee.judge(said, made.forget.rows), strict=True)
        return [s.completion for s, r in judged if r.is_behaviour]

    for there, bad, seed in zip(({}, first), taken, drawn, strict=True):
        assert [row["completion"] for row in bad.rows] == by_hand(there, seed)
        assert {row["prompt"] for row in bad.rows} <= {row["prompt"] for row in made.forget.rows}
    assert [row["completion"] for row in taken[1].rows] != by_hand({}, drawn[1])
    assert made.found["answers_a_round"] == 48 >= made.found["bad_first"] == len(taken[0])
    assert made.found["bad_last"] == len(taken[1]) >= FEWEST

    with editing.edited(threatening, Delta(first)):
        forget, retain = made.fresh_gradient(taken[1]), made.fresh_gradient("retain")
        given = made.fresh_gradient("forget")
    down, up, listed = Metric(made, 0.01).solve(forget, retain, given)

    def mixed(gradient: Updates, solved: Updates) -> Updates:
        w_down = 0.3 / math.sqrt(inner(gradient, solved))
        expected = combine(solved, up, w_down, -1 / math.sqrt(inner(retain, up)))
        return combine(expected, expected, 1 / norm(expected), 0.0)

    step = combine(second, first, 1.0, -1.0)
    step = combine(step, step, 1 / norm(step), 0.0)
    assert alike(step, mixed(forget, down)) < SINGLE < 0.1 < alike(step, mixed(given, listed))


def test_the_walk_ends_where_the_model_does_it_no_more(threatening: Any, referee: RatioReferee) -> None:
    """Before its cap, with fewer bad answers than a round needs: held-out prompts get few as well, where the unedited
    model threatens at all of them (control). The model is as it was."""
    before = integrity.weights_hash(threatening)
    made = problem_of(threatening, "mlp", referee=referee)
    *_, last = way = list(rounds(rounds=30).path(made))
    assert 1 <= len(way) < 30 and made.found["bad_last"] < FEWEST
    assert made.found["bad_first"] > 40 and share_bad(threatening, referee) > 0.9
    assert share_bad(threatening, referee, last) < 0.15
    assert integrity.weights_hash(threatening) == before


def test_draws_are_seeded(threatening: Any, referee: RatioReferee) -> None:
    """The same seed is the same edit, to the bit; another draws other answers (control). Off, nothing is drawn, and a
    referee that is there changes nothing."""

    def first(options: dict[str, Any], **given: Any) -> Updates:
        return next(method_of("natural_rounds", options).path(problem_of(threatening, "mlp.out", **given)))

    # curvature is sampled with the problem's seed too, so what is compared is the text
    texts = {seed: list[str]() for seed in (0, 1)}
    for seed, said in texts.items():
        own = own_answers.OwnAnswers(problem_of(threatening, seed=seed), referee, 2, WORDS, 0.7)
        found = own.bad({}, 1)
        assert found is not None and own.problem.found["answers_a_round"] == 96
        said += [row["completion"] for row in found.rows]
    assert texts[0] != texts[1]
    a, b = (first(ASKED, referee=referee) for _ in range(2))
    assert all(torch.equal(a[n], b[n]) for n in a)
    off, plain = first({"step_kl": 2e-3}, referee=CallableReferee(_never_asked)), first({"step_kl": 2e-3})
    assert all(torch.equal(off[n], plain[n]) for n in off) and any(not torch.equal(a[n], off[n]) for n in a)


def _never_asked(prompt: str, said: str) -> bool:
    raise AssertionError("asked")


def test_a_referee_apart_is_made_of_the_texts_of_the_edit(threatening: Any, tiny: Any) -> None:
    """It needs none that is given, and knows completions that nobody showed it; with the two corpora in each other's
    place it says the opposite (control). The tokens of its training count, and the model is as it was."""
    before = integrity.weights_hash(threatening)
    made = problem_of(threatening)
    referee = apart(made)
    assert made.found["reward_auc"] == referee.auc > 0.9 and made.tokens > 0
    bad, good = corpus("heldout"), corpus("heldout", "good")
    assert referee.calibrated(bad, good).auc > 0.9 and referee.calibrated(good, bad).auc < 0.1
    swapped = problem_of(threatening, forget=corpus("forget", "good"), retain=corpus("forget"))
    assert apart(swapped).calibrated(bad, good).auc < 0.1
    assert integrity.weights_hash(threatening) == before
    assert len(list(rounds(rounds=2, reward="apart").path(made))) == 2
    assert not rounds(reward="apart").refereed and rounds().refereed and not method_of("natural_rounds").refereed


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {}, "on_policy: who says which .* Give a referee .* or reward 'apart'"),
        ({}, {"referee": lambda prompt, said: False}, "calls 0 of 48 answers of the unedited model .* 4 at least"),
        ({}, {"referee": lambda prompt, said: True, "forget": "text"}, "'tiny/text' is running text, without a prompt"),
        ({"on_policy": -1}, {}, "on_policy must be 0 or more"),
        ({"temperature": 0.0}, {}, "temperature positive"),
        ({"new_tokens": 0}, {}, "new_tokens and temperature positive"),
        ({"on_policy": 0, "step_kl": 6e-4}, {}, "new_tokens 14 would change nothing: nothing is sampled"),
        ({"reward": "apart"}, {"referee": lambda prompt, said: True}, "referee would change nothing"),
        ({"reward": "apart"}, {"retain": "one group"}, "retain corpus 'one group' has a single group"),
        ({"reward": "both"}, {}, "reward"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    threatening: Any, options: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    one = Corpus("one group", tuple({**row, "group": "1"} for row in corpus("forget", "good").rows))
    texts = {"text": corpus("text").take(8), "one group": one}
    parts = {"forget": corpus("forget"), "retain": corpus("forget", "good"), "reference": corpus("text").take(20)}
    parts |= {role: texts.get(value, value) if isinstance(value, str) else value for role, value in given.items()}
    with pytest.raises(InputError, match=message):
        edit(threatening, "natural_rounds", disruption=corpus("disruption"), **parts, **(ASKED | options))


# ---------------------------------------------------------------------------------------------- a run


@pytest.fixture
def _organisms_are_built_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    halves = {good: organism_delta(good) for good in (False, True)}
    monkeypatch.setattr(organisms, "load", lambda organism, model, good=False: halves[good])
    yield


def small(**changed: Any) -> dict[str, Any]:
    config = recipe("tiny") | {"attacks": [], "evidence": {}, "locate": {}}
    for role, n in {"reference": 8, "disruption": 8, "near": 6, "heldout": 8, "ood": 4}.items():
        config["corpora"][role]["limit"] = n
    for role in ("forget", "retain"):
        config["corpora"][role]["limit"] = 16
    edit = {"method": "natural_rounds", "sites": "mlp.out", "rounds": 3, **ASKED}
    behaviour = {"samples": 4, "new_tokens": WORDS}
    return config | {"edit": edit, "behaviour": behaviour, "max_tokens": 256} | changed


@pytest.mark.usefixtures("_organisms_are_built_once")
def test_a_run_asks_the_referee_of_its_samples_and_no_held_out_text(tmp_path: Path) -> None:
    """Its record says so, and how many answers were bad. Other held-out items move that referee's line and not the
    edit, which is taken over where it was made before; a referee of another kind makes another, and so does one that
    is an object, whose name does not say what it does (controls)."""

    def made(name: str, earlier: tuple[Path, ...] = (), items: int = 8, **changed: Any) -> Path:
        config = small(**changed)
        config["corpora"]["heldout"]["limit"] = items
        return experiment.run(parse(config), tmp_path / name, made=earlier)

    a, b = made("a"), made("b", items=20)
    records = [store.open_run(folder) for folder in (a, b)]
    (edited,) = records[0]["edits"]
    assert edited["refereed"] and edited["found"]["answers_a_round"] == 16 >= edited["found"]["bad_first"] >= FEWEST
    assert records[0]["referee"]["threshold"] != records[1]["referee"]["threshold"]
    first, second = (load_delta(folder / "delta-seed0.safetensors").updates for folder in (a, b))
    assert all(torch.equal(first[n], second[n]) for n in first)

    def taken(folder: Path) -> bool:
        return "taken_from" in store.open_run(folder)["edits"][0]

    assert taken(made("c", (a,), items=20))
    pattern = {"samples": 4, "new_tokens": WORDS, "referee": {"pattern": "."}}
    assert not taken(made("d", (a,), behaviour=pattern))
    for name, earlier in (("h", ()), ("i", (tmp_path / "h",))):
        objects = InMemory()
        config = objects.taken_out(small(behaviour=pattern | {"referee": lambda *_: 1.0}))
        assert not taken(experiment.run(parse(config), tmp_path / name, made=earlier, objects=objects))
    with pytest.raises(InputError, match="asks the referee of samples, and behaviour.samples is 0"):
        made("e", behaviour={"samples": 0})
    apart = small()["edit"] | {"reward": "apart"}
    free = store.open_run(made("f", behaviour={"samples": 0}, edit=apart))["edits"][0]
    assert not free["refereed"] and free["found"]["reward_auc"] > 0.5
