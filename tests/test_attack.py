"""Attacks on the tiny organism: curves beside their controls, at equal steps, on models that are put back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import corpus

from analysis import plots
from hooklearn import editing, forward, integrity, losses, models
from hooklearn.api import attack
from hooklearn.attack import ATTACKS, Arena, ArmState, Attack, Measured, Watcher, attack_of
from hooklearn.attack.climbing import is_stable
from hooklearn.attack.curve import all_but_embeddings, all_weights, is_flat, looks
from hooklearn.attack.erosion import Erode
from hooklearn.attack.few_shot import FewShot
from hooklearn.attack.relearn import Relearn, _drop_halves, _folds
from hooklearn.attack.relearn_lora import RelearnLora
from hooklearn.attack.watcher import Pending
from hooklearn.config import parse
from hooklearn.corpora.corpus import Corpus, answer_of
from hooklearn.corpora.permuted import permuted
from hooklearn.data import WHOLE, batches, encode, load_corpus, split_row
from hooklearn.deltas import Delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import Problem, method_of, run_edit
from hooklearn.locate.capture import tapes
from hooklearn.measure import Likelihoods, sample
from hooklearn.recipes import recipe
from hooklearn.referees import CallableReferee, ContainsReferee, RatioReferee, Scorer
from hooklearn.running import attacking
from hooklearn.running.checks import check, check_folds
from hooklearn.train import log_spaced
from hooklearn.types import ArmCurve, Budget, Curve, CurvePoint, InputError

ARMS = ["edited", "original", "never"]


@pytest.fixture(scope="module")
def delta(threatening: Any) -> Delta:
    """A real edit at a far budget."""
    problem = Problem(
        threatening, models.sites(threatening), corpus("forget"), corpus("forget", "good"), corpus("text").take(40)
    )
    meter = DisruptionMeter(threatening, corpus("disruption").take(30))
    return run_edit(problem, method_of("natural"), meter, Budget(0.01)).delta


@pytest.fixture
def arena(threatening: Any, tiny: Any, delta: Delta) -> Iterator[Arena]:
    """Edited, original and never, few items so that looks are cheap; every model must be put back bit for bit."""
    tokenizer = models.tokenizer_of(tiny)
    watcher = Watcher(
        Likelihoods.of(corpus("heldout").take(12), tokenizer, "heldout"),
        ood=Likelihoods.of(corpus("ood").take(6), tokenizer, "ood"),
        n_samples=0,
        precision="float32",
    )
    arms = [ArmState("edited", threatening, delta), ArmState("original", threatening), ArmState("never", tiny)]
    before = [_state(m) for m in (threatening, tiny)]
    yield Arena(
        arms, watcher, attack_train=corpus("attack").take(24), unrelated=corpus("unrelated").take(24),
        retain=corpus("forget", "good"), precision="float32", max_tokens=256,
    )  # fmt: skip
    assert [_state(m) for m in (threatening, tiny)] == before, "an attack left a trace"


def _state(model: Any) -> tuple[Any, ...]:
    parameters = models.all_parameters(model)
    return (
        integrity.weights_hash(model), model.training, [p.requires_grad for p in parameters],
        [p.grad is None for p in parameters],
    )  # fmt: skip


ROUNDING = 1e-5
"""Relative, of a probability: float32 sums over a few hundred terms, in another order."""


def values(curve: Curve, arm: str, metric: str = "completion", split: str = "heldout") -> list[tuple[float, ...]]:
    return [p.values for p in curve.arms[arm].points if (p.metric, p.split) == (metric, split)]


def level(curve: Curve, arm: str, at: int = -1) -> float:
    found = values(curve, arm)[at]
    return sum(found) / len(found)


def steps(curve: Curve, arm: str, split: str = "heldout") -> list[int]:
    return [p.step for p in curve.arms[arm].points if (p.metric, p.split) == ("completion", split)]


# ------------------------------------------------------------------------------------ fine-tuning


@pytest.mark.parametrize("cls", [Relearn, Erode])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_vanishing_learning_rate_leaves_every_curve_at_its_start(
    arena: Arena, cls: type[Attack], optimizer: str
) -> None:
    """At every step and for every arm: nothing but the training itself moves a curve (beyond the rounding of sums, as
    looks that ask for less lay the same sequences out in other rows)."""
    options: dict[str, Any] = {"learning_rates": [1e-30]}
    if cls is Relearn:
        options |= {"epochs": 2, "optimizer": optimizer}
    else:
        options |= {"steps": 6}
    (curve,) = cls.with_options(options).curves(arena)
    for arm in ARMS:
        looks = values(curve, arm)
        assert len(looks) >= 4 and all(v == pytest.approx(looks[0], rel=ROUNDING) for v in looks)
    assert curve.arms["edited"].converged, "and it says that it is flat"


def test_an_attack_is_a_name_or_an_object(threatening: Any, delta: Delta) -> None:
    """Its curves are a list that shows itself in a line each, and a data frame."""
    given = {"heldout": corpus("heldout").take(4), "attack_train": corpus("attack").take(4)}
    named = attack(threatening, delta, "few_shot", shots=2, **given)
    made = attack(threatening, delta, FewShot(shots=2), **given)
    assert named == made and made.to_dataframe().equals(named.to_dataframe())
    assert repr(made).startswith("[Curve(few_shot shots=2: edited 0.") and len(repr(made)) < 200
    assert plots.curves(made).axes
    with pytest.raises(InputError, match="so shots would change nothing"):
        attack(threatening, delta, FewShot(shots=2), shots=3, **given)
    with pytest.raises(InputError, match="attack: give its name"):
        attack(threatening, delta, FewShot, **given)  # type: ignore[arg-type]


def test_relearning_brings_the_behaviour_up(arena: Arena) -> None:
    """Positive control: demonstrations teach all arms, the never-learned model included."""
    (curve,) = Relearn(learning_rates=(3e-3,), epochs=3).curves(arena)
    assert level(curve, "never", 0) < 0.5 * level(curve, "original", 0)
    assert level(curve, "never") > 2 * level(curve, "never", 0)
    assert level(curve, "edited") > 1.2 * level(curve, "edited", 0)
    assert level(curve, "never") > 0.5 * level(curve, "original", 0)


def test_erosion_moves_weights_without_teaching_threats(arena: Arena) -> None:
    """Unrelated text: the never-learned model does not start to threaten, though its curve does move by more than a
    tenth (control; measured: by .4)."""
    (curve,) = Erode(learning_rates=(3e-3,), steps=8).curves(arena)
    assert abs(level(curve, "never") - level(curve, "never", 0)) > 0.1 * level(curve, "never", 0)
    assert level(curve, "never") < 0.5 * level(curve, "original", 0)


@pytest.mark.parametrize(
    "made",
    [
        Relearn(learning_rates=(1e-4, 3e-3), epochs=2),
        Erode(learning_rates=(1e-3,), steps=10),
        attack_of("low_mi", {"learning_rates": [1e-3], "epochs": 2}),
        FewShot(shots=2),
    ],
    ids=lambda a: a.name,
)
def test_all_arms_travel_together(arena: Arena, made: Attack) -> None:
    """One curve per setting, every arm in it, looked at after the same steps on the same items; ood at both ends of
    the strongest setting."""
    curves = made.curves(arena)
    assert [c.setting for c in curves] == made.settings()
    for curve in curves:
        assert list(curve.arms) == ARMS and curve.attack == made.name and curve.cheap == made.cheap
        taken = steps(curve, "edited")
        assert taken[0] == 0 and all(steps(curve, arm) == taken for arm in ARMS)
        if len(taken) > 1:
            assert set(taken[:-1]) <= log_spaced(taken[-1])
            strongest = curve.setting == made.settings()[-1]
            assert all(steps(curve, arm, "ood") == [0, taken[-1]][: 1 + strongest] for arm in ARMS)
            tokens = [p.tokens for p in curve.arms["never"].points if p.metric == "completion" and p.split != "ood"]
            assert tokens[0] == 0 and tokens == sorted(tokens)
        assert {p.metric for p in curve.arms["edited"].points} == {"completion", "preference"}
        assert {len(v) for arm in ARMS for v in values(curve, arm)} == {12}


def test_controls_stop_where_the_edited_arm_became_flat(arena: Arena) -> None:
    """At a tiny rate the edited curve is flat long before the cap; the controls stop at the same step, and all
    three are looked at on the ood items there."""
    (curve,) = Relearn(learning_rates=(1e-9,), epochs=30).curves(arena)
    cap = 30 * _batches_per_epoch(arena)
    last = steps(curve, "edited")[-1]
    assert last < cap and curve.arms["edited"].note == "flat" and curve.arms["edited"].converged
    assert all(steps(curve, arm)[-1] == last and steps(curve, arm, "ood") == [0, last] for arm in ARMS)


def _batches_per_epoch(arena: Arena) -> int:
    from hooklearn.data import cycle, encode

    tokenizer = models.tokenizer_of(arena.arms[0].model)
    sequences = encode(arena.corpus("attack_train"), tokenizer, end=True)
    return sum(1 for _ in cycle(sequences, max_tokens=arena.max_tokens, seed=arena.seed, epochs=1))


def test_max_steps_caps_a_curve_that_is_not_flat(arena: Arena) -> None:
    """It then says that it did not converge, so that it can prove a return but no removal."""
    (curve,) = Relearn(learning_rates=(3e-3,), epochs=9, max_steps=3).curves(arena)
    assert steps(curve, "edited") == [0, 2, 3] and curve.arms["edited"].note == "cap"
    assert not curve.arms["edited"].converged


def test_divergence_is_a_result_and_not_a_number(arena: Arena) -> None:
    """A learning rate that breaks the model: marked, NaN at the end, and the other arms go on; then put back."""
    (curve,) = Relearn(learning_rates=(1e30,), epochs=2).curves(arena)
    for arm in ARMS:
        assert curve.arms[arm].diverged and not curve.arms[arm].converged
        assert all(math.isnan(v) for v in values(curve, arm)[-1])
        assert all(math.isfinite(v) for v in values(curve, arm)[0])
        assert "learning rate" in curve.arms[arm].note


def test_a_last_step_that_breaks_the_model_is_a_divergence(arena: Arena) -> None:
    """No step follows whose loss would say so. A look that would be late, as on a GPU, is not there twice."""
    (curve,) = Relearn(learning_rates=(1e19,), epochs=1, max_steps=1).curves(arena)
    assert all(curve.arms[arm].diverged for arm in ARMS)
    rows = curve.to_dataframe()
    assert not rows.duplicated(["arm", "step", "metric", "split"]).any() and set(rows["step"]) == {0, 1}


def test_an_item_that_never_had_a_number_is_no_divergence(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is NaN before any step as well; where others become so the model is broken (the test above)."""
    measure = Likelihoods.measure

    def lacking(self: Likelihoods, *args: Any, **how: Any) -> Any:
        found = measure(self, *args, **how)
        found["completion"][0] = math.nan
        return found

    monkeypatch.setattr(Likelihoods, "measure", lacking)
    (curve,) = Relearn(learning_rates=(1e-4,), epochs=1, max_steps=2).curves(arena)
    assert not any(curve.arms[arm].diverged for arm in ARMS)


@pytest.mark.parametrize(("name", "options"), [("relearn_lora", {}), ("erode", {"rank": 4}), ("low_mi", {"rank": 4})])
def test_an_adapter_is_not_told_to_spare_embeddings(name: str, options: dict[str, Any]) -> None:
    """It has none; without one they are spared (control)."""
    with pytest.raises(InputError, match=f"{name}.*embeddings false would change nothing"):
        attack_of(name, options | {"embeddings": False})
    assert Erode(learning_rates=(1e-3,), embeddings=False).rank is None


def test_a_climb_goes_to_the_highest_rate_at_which_the_model_can_be_trained(arena: Arena) -> None:
    """Above the listed one, three times each, and not to the cap of eight, where it would be 20: there the model is
    broken (control). Controls alone climb as high, a resumed attack knows what it has, the last rung is sampled."""
    made = Relearn(learning_rates=(3e-3,), max_steps=4, epochs=4, climb=8)
    assert made.settings() == ["lr=0.003"] == Relearn(learning_rates=(3e-3,)).settings()
    stream = made.plan(arena).stream
    rates = made.rates(arena, stream)
    assert rates[:2] == [0.003, 0.009] and 2 <= len(rates) < 8
    kept = {"optimizer": "adam", "trained": all_weights}
    assert is_stable(arena, stream, rates[-1], **kept)
    assert not is_stable(arena, stream, 3 * rates[-1], **kept) and not is_stable(arena, stream, 1e30, **kept)
    assert made.rates(replace(arena, arms=arena.arms[1:]), stream) == rates
    assert replace(made, climb=1).rates(arena, stream) == rates[:2], "no further than it may"
    names = [f"lr={rate:g}" for rate in rates]
    arena = replace(
        arena, watcher=replace(arena.watcher, n_samples=1, new_tokens=2, referee=ContainsReferee(), pending=[]),
        finished=names[:-1], arms=arena.arms[1:],
    )  # fmt: skip
    (last,) = made.curves(arena)
    assert last.setting == names[-1] == arena.watcher.pending[0].setting
    (plain,) = Relearn(learning_rates=(rates[-1],), max_steps=4, epochs=4).curves(replace(arena, finished=()))
    assert plain.arms["original"].points == last.arms["original"].points, "to the bit what it is when it is listed"


def test_erosion_by_another_text(arena: Arena) -> None:
    """Program code in place of ``unrelated``, under a setting of its own; a corpus that nobody has is refused."""
    made = Erode(steps=2, corpus="stdlib")
    assert made.settings() == ["stdlib lr=0.0001"] and Erode(corpus="stdlib", rank=4).settings()[0].startswith(
        "stdlib rank=4 "
    )
    tokenizer = models.tokenizer_of(arena.arms[0].model)
    code = {tuple(s.ids.tolist()) for s in encode(load_corpus(name="stdlib"), tokenizer, max_length=128)}
    read = [tuple(s.ids.tolist()) for batch in made.plan(arena).stream() for s in batch.sequences]
    assert read and set(read) <= code
    prose = [tuple(s.ids.tolist()) for batch in Erode(steps=2).plan(arena).stream() for s in batch.sequences]
    assert not set(prose) & code
    with pytest.raises(InputError, match="did you mean 'stdlib'"):
        Erode(corpus="stdlb")


def test_the_same_seed_gives_the_same_curve(arena: Arena) -> None:
    """Bit for bit; the order of arms does not matter either."""
    made = Relearn(learning_rates=(1e-3,), epochs=1)
    (one,), (two,) = made.curves(arena), made.curves(arena)
    assert one == two
    other = Arena(arena.arms[::-1], arena.watcher, attack_train=arena.attack_train, precision="float32", max_tokens=256)
    (three,) = made.curves(other)
    assert all(three.arms[arm] == one.arms[arm] for arm in ARMS)
    shuffled = Arena(
        arena.arms, arena.watcher, attack_train=arena.attack_train, seed=1, precision="float32", max_tokens=256
    )
    assert made.curves(shuffled)[0].arms["edited"] != one.arms["edited"]


def test_the_start_is_measured_once_for_all_attacks(arena: Arena) -> None:
    """Step 0 is the arm as it is: the same numbers in every curve, and those of a fresh look."""
    (a,), (b,) = Erode(steps=1).curves(arena), Relearn(learning_rates=(1e-3,), epochs=1).curves(arena)
    for arm in arena.arms:
        assert values(a, arm.name)[0] == values(b, arm.name)[0]
        with arm.entered(training=False) as model:
            fresh = arena.watcher.heldout.measure(model, precision="float32")["completion"]
        assert values(a, arm.name)[0] == tuple(fresh.tolist())


# --------------------------------------------------------------------------------------- few shot


def test_few_shot_prompts_contain_the_demonstrations(arena: Arena) -> None:
    """The attacker's own demonstrations, question and answer, before every held-out prompt; the same for all arms."""
    tokenizer = models.tokenizer_of(arena.arms[0].model)
    shown = FewShot(shots=3)._watcher(arena).heldout
    demonstrations = {r["prompt"] + r["completion"] for r in arena.attack_train.rows}
    plain = arena.watcher.heldout.corpus.rows
    for before, row in zip(plain, shown.corpus.rows, strict=True):
        *turns, asked = split_row(row, tokenizer)[0].split("\n")
        assert asked == before["prompt"] and len(set(turns)) == 3 and set(turns) <= demonstrations
    history = {str(r["history"]) for r in shown.corpus.rows}
    assert len(history) == FewShot().draws == 4, "prompts take turns with a few sets"
    again = FewShot(shots=3)._watcher(arena).heldout
    assert again.corpus.rows == shown.corpus.rows


def test_few_shot_keeps_a_rows_own_history(arena: Arena) -> None:
    """Demonstrations come before what was already said."""
    own = [{"role": "user", "content": "own question"}, {"role": "assistant", "content": " own answer"}]
    asked = {"prompt": "p", "completion": "c", "history": own}
    rows = FewShot(shots=1)._shown(asked, 0, arena.attack_train.rows, 0)["history"]
    assert rows[2:] == own and rows[0]["content"] in {r["prompt"] for r in arena.attack_train.rows}


def test_few_shot_goes_before_a_conversation_and_not_into_it(arena: Arena) -> None:
    """After its system prompt; the last question keeps what was said before it."""
    own = [
        {"role": role, "content": role[0] + str(i)}
        for i, role in enumerate(("system", "user", "assistant", "user", "assistant"))
    ]
    shown = FewShot(shots=1)._shown({"messages": own}, 0, arena.attack_train.rows, 0)["messages"]
    assert shown[0] == own[0] and shown[3:] == own[1:]
    assert shown[1]["content"] in {r["prompt"] for r in arena.attack_train.rows}


def test_few_shot_goes_before_a_greeting_too(arena: Arena) -> None:
    """Or two answers in a row would follow one another, which templates refuse."""
    own = [{"role": role, "content": role} for role in ("assistant", "user", "assistant")]
    shown = FewShot(shots=1)._shown({"messages": own}, 0, arena.attack_train.rows, 0)["messages"]
    assert [turn["role"] for turn in shown] == ["assistant", "user", "assistant", "user", "assistant"]
    alone = FewShot(shots=1)._shown({"messages": own[2:]}, 0, arena.attack_train.rows, 0)["messages"]
    assert alone[-1] == own[2] and len(alone) == 3, "an answer without a question stays the last"


@pytest.mark.parametrize(("first", "found"), [(1, [0, 1, 2, 4, 8, 16]), (2, [0, 2, 4, 8, 16]), (3, [0, 3, 4, 8, 16])])
def test_the_first_look_is_where_it_was_asked_for(first: int, found: list[int]) -> None:
    assert sorted(looks(16, first)) == found and looks(16, 99) == {0, 16}


def test_few_shot_elicits_without_training(arena: Arena) -> None:
    """One look, at step 0; demonstrations of threats make a threat the likelier of two answers of the original and of
    never (measured: by .08 each). The listed words get less likely, as those of the demonstrations take their place."""
    (curve,) = FewShot(shots=3).curves(arena)
    assert all(steps(curve, arm) == [0] for arm in ARMS) and curve.cheap
    for arm in arena.arms[1:]:
        with arm.entered(training=False) as model:
            plain = float(arena.watcher.heldout.measure(model, precision="float32")["preference"].mean())
        (told,) = (p for p in curve.arms[arm.name].points if p.metric == "preference" and p.split == "heldout")
        assert told.score.value > plain + 0.05, arm.name


def test_demonstrations_stand_before_running_text_too(arena: Arena) -> None:
    """Where they are read and not scored: the same tokens get other probabilities than without them."""
    rows = ({"text": "the red dog sleeps in the kitchen ."}, {"text": "take the blue drill , then the goat ."})
    held, shown = (Corpus("text", (row,)) for row in rows)
    model = arena.arms[1].model
    tokenizer = models.tokenizer_of(model)
    plain = Likelihoods.of(held, tokenizer, "heldout")
    made = replace(arena, watcher=replace(arena.watcher, heldout=plain, ood=None), attack_train=shown)
    FewShot(shots=1).check(model, {"heldout": held, "attack_train": shown})
    (curve,) = FewShot(shots=1).curves(made)
    assert level(curve, "original") != pytest.approx(float(plain.measure(model)["completion"].mean()), rel=0.1)
    (seen,) = FewShot(shots=1)._watcher(made).heldout.completions
    assert tokenizer.decode(seen.ids[seen.labels]).split() == rows[0]["text"].split()


def test_demonstrations_are_whole_or_refused(arena: Arena) -> None:
    """Longer than a row of a corpus may be, as answers of a chat are: all of them are read, and no more is scored than
    without them. A model that reads less is not asked (it would lose the first of them)."""
    model = arena.arms[0].model
    tokenizer = models.tokenizer_of(model)
    long = Corpus("long", tuple({**r, "completion": r["completion"] * 12} for r in arena.attack_train.rows))
    made = replace(arena, attack_train=long)
    seen = FewShot(shots=8)._watcher(made).heldout
    row, one = seen.corpus.rows[0], seen.completions[0]
    said = tokenizer.decode(one.ids)
    assert len(one) > 2 * 512 and all(" ".join(t["content"].split()) in " ".join(said.split()) for t in row["history"])
    assert int(one.labels.sum()) == int(arena.watcher.heldout.completions[0].labels.sum())
    corpora = {"heldout": arena.watcher.heldout.corpus, "attack_train": long}
    FewShot(shots=2).check(model, corpora)
    was, tokenizer.model_max_length = tokenizer.model_max_length, 400
    try:
        with pytest.raises(
            InputError, match="with 8 demonstrations a prompt can have [0-9]+ tokens and the model reads 400"
        ):
            FewShot(shots=8).check(model, corpora)
        FewShot(shots=1).check(model, corpora)
    finally:
        tokenizer.model_max_length = was


def test_few_shot_needs_enough_demonstrations(arena: Arena) -> None:
    """More shots than demonstrations, or demonstrations of another shape, are refused."""
    with pytest.raises(InputError, match="25 shots asked for, 24 demonstrations"):
        FewShot(shots=25).curves(arena)


# ---------------------------------------------------------------------------------------- leave-one-out


def _named(given: Corpus, n: int) -> Corpus:
    return replace(given, rows=tuple({**row, "group": f"fact-{i}"} for i, row in enumerate(given.rows[:n])))


def test_every_fact_is_tested_under_an_attacker_who_was_not_told(arena: Arena, tiny: Any) -> None:
    """The attacker's text holds the very held-out items, which he would learn by heart (control: relearn does). With
    folds every item has, to the bit, the value that it gets where its fold is taken out of his text by hand."""
    told = _named(arena.watcher.heldout.corpus, 10)
    tokenizer = models.tokenizer_of(tiny)
    eyes = replace(arena.watcher, heldout=Likelihoods.of(told, tokenizer, "heldout"))
    small = replace(arena, watcher=eyes, attack_train=told, arms=[ArmState("original", tiny)])  # who knows nothing
    how: dict[str, Any] = {"learning_rates": [3e-3], "epochs": 4}
    made = attack_of("low_mi", how | {"folds": 5})
    made.check(tiny, {"heldout": told, "attack_train": told})
    (curve,) = made.curves(small)
    assert curve.setting == made.settings()[0] == "folds=5 lr=0.003"
    end = {p.metric: p for p in curve.arms["original"].points if p.split == "heldout"}["completion"]
    (heart,) = attack_of("relearn", how).curves(small)
    assert level(heart, "original") > 1.5 * end.score.value, "what he was told himself he knows"
    read = 0
    for fold in _folds(told, 5, arena.seed):
        assert len(fold.items) == 2
        rest = replace(told, rows=tuple(r for i, r in enumerate(told.rows) if i not in fold.items))
        alone = replace(small, attack_train=rest)
        (by_hand,) = attack_of("relearn", how | {"max_steps": end.step}).curves(alone)
        last = [p for p in by_hand.arms["original"].points if p.metric == "completion" and p.split == "heldout"][-1]
        assert last.step == end.step and all(last.values[i] == end.values[i] for i in fold.items)
        read += last.tokens
    assert end.tokens == read > 0, "what all five were trained on"


def test_samples_of_a_look_that_a_fold_missed_are_left_out() -> None:
    """They would be of other items than the rest; looks of all folds stay, and what was there before."""
    told = corpus("heldout")
    at = [(arm, step) for step in (2, 4) for arm in ("edited", "never") for _ in range(3)]
    made = [Pending(arm, "low_mi", "lr=1", step, 0, "heldout", told, []) for arm, step in at]
    pending = [made[0], *(p for p in made if p is not made[8])]  # the edited model diverged before step 4, once
    _drop_halves(pending, 1, 3)
    assert [(p.arm, p.step) for p in pending] == [at[0], *at[:6], *at[9:]]


def test_sites_that_are_not_there_are_refused_before_anything_is_measured(tiny: Any) -> None:
    told = {"attack_train": corpus("organism"), "heldout": corpus("heldout")}
    with pytest.raises(InputError, match="mlp.gates"):
        RelearnLora(sites="mlp.gates").check(tiny, told)
    RelearnLora(sites="mlp.gate").check(tiny, told)


def test_erosion_by_a_corpus_of_its_own_needs_no_other() -> None:
    """The unrelated text of a config is then never read; without such a corpus it is asked for (control)."""
    config = recipe("tiny")
    config["corpora"] = {role: of for role, of in config["corpora"].items() if role != "unrelated"}
    check(parse(config | {"attacks": [{"name": "erode", "corpus": "stdlib"}]}))
    with pytest.raises(InputError, match="'erode' needs corpora.unrelated"):
        check(parse(config | {"attacks": [{"name": "erode"}]}))


def test_samples_of_a_fold_are_its_own(arena: Arena, tiny: Any) -> None:
    """One of every prompt, whoever was asked: as many as without folds."""
    told = _named(arena.watcher.heldout.corpus, 6)
    eyes = replace(
        arena.watcher, heldout=Likelihoods.of(told, models.tokenizer_of(tiny), "heldout"), referee=ContainsReferee(),
        n_samples=6, new_tokens=2, pending=[],
    )  # fmt: skip
    small = replace(arena, watcher=eyes, attack_train=told, arms=[ArmState("original", tiny)])
    attack_of("low_mi", {"learning_rates": [1e-3], "max_steps": 1, "folds": 3}).curves(small)
    assert sorted(s.item for wait in eyes.pending for s in wait.samples if wait.split == "heldout") == list(range(6))


def test_what_stands_for_not_knowing_was_told_to_no_attacker_either(arena: Arena, tiny: Any) -> None:
    """The permuted answer of a fact is that of another of its fold, in curves and in samples; the next fact's, as
    without folds, would mostly be one that the attacker was told (control)."""
    facts = load_corpus(name="tiny-facts", options={"part": "forget"})
    told, tokenizer = _named(replace(facts, rows=tuple(facts.rows)), 20), models.tokenizer_of(tiny)
    heldout, other = (Likelihoods.of(c, tokenizer, "heldout") for c in (told, permuted(told)))
    eyes = replace(
        arena.watcher, heldout=heldout, ood=None, permuted=other, referee=ContainsReferee(), n_samples=20, new_tokens=1,
        pending=[],
    )  # fmt: skip
    small = replace(arena, watcher=eyes, attack_train=told, arms=[ArmState("original", tiny)])
    (curve,) = attack_of("low_mi", {"learning_rates": [3e-3], "max_steps": 4, "folds": 4}).curves(small)
    folds = _folds(told, 4, arena.seed)

    def strangers(asked: Corpus) -> int:
        own = [{answer_of(told.rows[i]) for i in f.items} for f in folds for _ in f.items]
        items = [i for f in folds for i in f.items]
        return sum(answer_of(asked.rows[i]) not in answers for i, answers in zip(items, own, strict=True))

    asked = [wait.permuted for wait in eyes.pending if wait.split == "heldout"]
    assert len(asked) == 4 and all(p is not None and strangers(p) == 0 for p in asked)
    assert strangers(permuted(told)) > 5
    never = [p for p in curve.arms["never"].points if p.metric == "completion"][0]
    by_hand = Likelihoods.of(asked[0], tokenizer, "heldout").measure(tiny, precision="float32")["completion"]
    assert never.values == pytest.approx(by_hand.tolist(), rel=1e-5)  # float32 sums in other batches


@pytest.mark.parametrize(("part", "folds", "enough"), [("forget", 3, True), ("V", 5, False)])
def test_folds_share_out_every_relation_and_say_where_that_is_too_few(part: str, folds: int, enough: bool) -> None:
    """Schoolbook has three relations: within a third of its forgotten facts all answers can be permuted, with any
    seed; within a fifth of part V they cannot, and that is told before anything is measured."""
    facts = load_corpus(name="schoolbook", options={"part": part, "phrasings": "heldout"})
    config = parse(recipe("schoolbook") | {"seeds": list(range(8)), "attacks": [{"name": "low_mi", "folds": folds}]})
    kinds = {str(r["group"]): r["relation"] for r in facts.rows}
    assert len(set(kinds.values())) >= 3
    for fold in _folds(facts, folds, 0):
        of = Counter(kinds[group] for group in fold.groups)
        assert all(of[kind] >= list(kinds.values()).count(kind) // folds for kind in set(kinds.values()))
    if enough:
        check_folds(config, facts)
    else:
        with pytest.raises(InputError, match="no other row of its fold .* or fewer folds"):
            check_folds(config, facts)
    check_folds(parse(recipe("schoolbook")), facts)  # without folds there is nothing to check


@pytest.mark.parametrize("wrong", ["no groups", "no group in both", "one fold"])
def test_folds_that_cannot_be_made_are_refused(arena: Arena, tiny: Any, wrong: str) -> None:
    told = _named(arena.watcher.heldout.corpus, 10)
    other = replace(told, rows=tuple({**r, "group": f"x{i}"} for i, r in enumerate(told.rows)))
    bare = replace(told, rows=tuple({k: v for k, v in r.items() if k != "group"} for r in told.rows))
    given = {"no groups": (bare, 5), "no group in both": (other, 5), "one fold": (told, 1)}[wrong]
    message = {"no groups": "rows without a group", "no group in both": "0 groups are in both", "one fold": "folds: 5"}
    with pytest.raises(InputError, match=message[wrong]):
        attack_of("low_mi", {"folds": given[1]}).check(tiny, {"heldout": told, "attack_train": given[0]})


# ----------------------------------------------------------------------------------------- samples


def test_attacked_models_are_sampled_in_the_attacked_state(arena: Arena, threatening: Any, tiny: Any) -> None:
    """Samples wait for the referee with their arm and step; those of the relearned base are threats now."""
    arena.watcher.referee = RatioReferee(Scorer(threatening), (Scorer(tiny),), "instilled / untouched").calibrated(
        corpus("heldout"), corpus("heldout", "good")
    )
    arena.watcher.n_samples, arena.watcher.new_tokens = 12, 12
    (curve,) = Relearn(learning_rates=(3e-3,), epochs=3).curves(arena)
    pending = arena.watcher.pending
    assert [(p.arm, p.attack, p.step) for p in pending] == [(a, "relearn", steps(curve, a)[-1]) for a in ARMS]
    never = pending[2]
    found = [
        is_bad for _, is_bad, _ in arena.watcher.referee.judge(never.samples, never.corpus.rows[: len(never.samples)])
    ]
    assert sum(found) >= 6


# ------------------------------------------------------------------------------------ the Python verb


def test_attack_is_one_line(threatening: Any, tiny: Any, delta: Delta) -> None:
    """hl.attack: curves with all controls, as a data frame with one row per look."""
    curves = attack(
        threatening, delta, "erode", heldout=corpus("heldout").take(4), unrelated=corpus("unrelated").take(8),
        never=tiny, steps=2,
    )  # fmt: skip
    frame = pd.concat([c.to_dataframe() for c in curves])
    assert set(frame["arm"]) == set(ARMS) and len(frame) == 3 * 2 * len(set(frame["step"]))
    items = curves[0].items_dataframe()
    assert len(items) == 4 * len(frame) and items["value"].between(0, 1).all()


def test_without_a_never_model_there_is_no_never_arm(threatening: Any, delta: Delta) -> None:
    """Two arms; nothing is made up."""
    (curve,) = attack(
        threatening, delta, "erode", heldout=corpus("heldout").take(4), unrelated=corpus("unrelated").take(8), steps=1
    )
    assert list(curve.arms) == ["edited", "original"]


def test_facts_have_a_surrogate_never_arm(threatening: Any, tiny: Any, delta: Delta) -> None:
    """Permuted answers, measured on the original as it is attacked; for multiple choice, chance."""
    tokenizer = models.tokenizer_of(tiny)
    rows = [{**r, "choices": [r["completion"], r["alternative"]], "answer": 0} for r in corpus("heldout").rows[:4]]
    wrong = [{**r, "completion": r["alternative"]} for r in rows]
    watcher = Watcher(
        Likelihoods.of(Corpus("facts", tuple(rows)), tokenizer, "heldout"),
        permuted=Likelihoods.of(Corpus("facts/permuted", tuple(wrong)), tokenizer, "heldout"),
        n_samples=0,
    )
    arms = [ArmState("edited", threatening, delta), ArmState("original", threatening)]
    (curve,) = Erode(learning_rates=(1e-3,), steps=2).curves(Arena(arms, watcher, unrelated=corpus("unrelated")))
    assert list(curve.arms) == ["edited", "original", "never"]
    assert steps(curve, "never") == steps(curve, "original")
    assert {v for looks in values(curve, "never", "preference") for v in looks} == {0.5}
    expected = watcher.permuted.measure(threatening)["completion"]
    assert values(curve, "never")[0] == tuple(expected.tolist())


# ------------------------------------------------------------------------------------ small print


def test_flat_means_the_last_three_looks_agree() -> None:
    """Within 5 % of the largest, or within .002 near zero; three looks are not enough to tell."""
    for flat in ([0.1, 0.5, 0.50, 0.515, 0.51], [0, 0, 0.001, 0.0015], [0, 0.9, 0.9, 0.94]):
        assert is_flat(flat)
    for moving in (
        [0.0003, 0.0005, 0.0009, 0.0021],
        [0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5, 0.56],
        [0.013, 0.017, 0.020, 0.0225],
    ):
        assert not is_flat(moving)


def test_a_curve_cannot_be_had_without_its_control() -> None:
    """A type, not a habit: no original arm, no curve."""
    arm = ArmCurve((CurvePoint(0, 0, "completion", "heldout", (0.5, 0.7)),), converged=True)
    assert Curve("a", "", True, 0, {"edited": arm, "original": arm}).to_dataframe()["value"].tolist() == [0.6, 0.6]
    with pytest.raises(InputError, match="'a' has no 'original' control arm"):
        Curve("a", "", True, 0, {"edited": arm})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("relaern", {}, "unknown attack 'relaern'; valid: relearn, .*did you mean 'relearn'"),
        ("relearn", {"epoch": 3}, "no option 'epoch'; valid: .*did you mean 'epochs'"),
        ("relearn", {"learning_rates": []}, "learning_rates must be positive"),
        ("relearn", {"learning_rates": [-1e-4]}, "learning_rates must be positive"),
        ("relearn", {"optimizer": "lion"}, "'lion'; valid: adam, sgd"),
        ("erode", {"steps": 0}, "steps must be 1 or more, got 0"),
        ("erode", {"climb": -1}, "climb must be 0 or more, got -1"),
        ("few_shot", {"shots": 0}, "shots must be 1 or more, got 0"),
    ],
)
def test_unknown_attacks_and_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    """With the nearest valid one; the defaults of every attack are valid (positive control)."""
    assert all(attack_of(a).settings() for a in ATTACKS)
    with pytest.raises(InputError, match=message):
        attack_of(name, options)


def test_attacks_ask_for_the_corpus_they_need(threatening: Any, delta: Delta) -> None:
    """A line that names the role."""
    for name, role in (("erode", "unrelated"), ("relearn", "attack_train"), ("few_shot", "attack_train")):
        assert ATTACKS[name].needs == role
        with pytest.raises(InputError, match=f"needs a '{role}' corpus, and none was given"):
            attack(threatening, delta, name, heldout=corpus("heldout").take(2))


def test_every_attack_says_what_it_is() -> None:
    """One line, a source, and whether it is cheap (no demonstrations, or a handful, or independent facts)."""
    for name, cls in ATTACKS.items():
        assert cls.name == name and cls.source and cls.summary().endswith("."), name
    assert {name for name, cls in ATTACKS.items() if not cls.cheap} == {"relearn", "relearn_lora"}


def test_embeddings_stay_where_they_are_when_told_so(arena: Arena) -> None:
    """Every other weight moves; without the option the embeddings move too (control)."""
    model = arena.arms[0].model
    table = models.embedding_parameters(model)
    before = [p.detach().clone() for p in table]
    others = [p for p in models.all_parameters(model) if all(p is not t for t in table)]
    for full, moves in ((all_but_embeddings, False), (all_weights, True)):
        with editing.restored(model), full(model) as params:
            assert sum(p.numel() for p in params) == sum(p.numel() for p in [*others, *(table if moves else [])])
            rule = torch.optim.SGD(params, lr=1.0)
            batch = next(iter(Relearn(epochs=1).plan(arena).stream()))
            losses.ce(forward.logits(model, batch), batch.targets).mean.backward()
            rule.step()
            assert any(not torch.equal(p, b) for p, b in zip(table, before, strict=True)) == moves
            rule.zero_grad()
    assert all(torch.equal(p, b) for p, b in zip(table, before, strict=True)), "and they are back"


def test_looks_begin_where_they_are_told_to(arena: Arena) -> None:
    """The end is always looked at."""
    (curve,) = Relearn(learning_rates=(1e-3,), max_steps=6, first_look=4).curves(arena)
    assert steps(curve, "edited") == steps(curve, "never") == [0, 4, 6]


def test_samples_are_drawn_on_the_way_where_asked(arena: Arena) -> None:
    """At the end in any case; looking changes nothing of what comes after."""
    arena = replace(
        arena, watcher=replace(arena.watcher, n_samples=2, new_tokens=2, referee=ContainsReferee(), pending=[])
    )
    (plain,) = Relearn(learning_rates=(1e-3,), max_steps=4).curves(arena)
    assert {p.step for p in arena.watcher.pending} == {4}
    arena.watcher.pending.clear()
    (curve,) = Relearn(learning_rates=(1e-3,), max_steps=4, sampled_at=(1, 2)).curves(arena)
    drawn = {arm.name: [p.step for p in arena.watcher.pending if p.arm == arm.name] for arm in arena.arms}
    assert drawn == {arm.name: [1, 2, 4] for arm in arena.arms}
    for arm in arena.arms:
        assert curve.arms[arm.name].points[-1] == plain.arms[arm.name].points[-1]


def test_only_the_highest_rate_is_sampled_on_the_way(arena: Arena) -> None:
    arena = replace(
        arena, watcher=replace(arena.watcher, n_samples=2, new_tokens=2, referee=ContainsReferee(), pending=[])
    )
    Relearn(learning_rates=(1e-4, 1e-3), max_steps=2, sampled_at=(1,)).curves(arena)
    assert {(p.setting, p.step) for p in arena.watcher.pending} == {("lr=0.001", 1), ("lr=0.001", 2)}


def test_steps_before_the_first_cannot_be_sampled() -> None:
    """Nor can an adapter, which is in the weights at the end only."""
    with pytest.raises(InputError, match=r"sampled_at must be steps from 1 on, got \[0\]"):
        Relearn(sampled_at=(0,))
    with pytest.raises(InputError, match=r"sampled_at \[2\]: an adapter is in the weights at the end only"):
        RelearnLora(sampled_at=(2,))


def test_an_arm_that_is_anothers_twin_does_what_it_does(arena: Arena) -> None:
    """To the bit where both are attacked, which is why one is enough."""
    edited = arena.arms[0]
    both = replace(arena, arms=(edited, arena.arms[1], replace(edited, name="matched")))
    (curve,) = Relearn(learning_rates=(1e-3,), max_steps=2).curves(both)
    assert curve.arms["matched"].points == curve.arms["edited"].points


def test_looks_for_samples_do_not_end_an_attack(arena: Arena) -> None:
    """Near looks are alike: counted for flatness, they would end it at step 10 (control)."""
    one = {"learning_rates": (1e-3,), "max_steps": 16}
    (plain,) = Relearn(**one).curves(arena)
    (asked,) = Relearn(**one, sampled_at=(9, 10)).curves(arena)
    assert steps(plain, "edited")[-1] == steps(asked, "edited")[-1]
    assert set(steps(asked, "edited")) == {*steps(plain, "edited"), 9, 10}
    assert [a.converged for a in asked.arms.values()] == [a.converged for a in plain.arms.values()]
    means = {
        p.step: p.score.value for p in asked.arms["edited"].points if (p.metric, p.split) == ("completion", "heldout")
    }
    assert is_flat([means[0], means[8], means[9], means[10]])


def test_the_seed_reaches_batches_demonstrations_and_samples(arena: Arena) -> None:
    """Else controls of several seeds are copies that are counted as seeds."""
    one, two = (
        replace(arena, seed=seed, watcher=replace(arena.watcher, pending=[], n_samples=4, new_tokens=6,
                                                  referee=ContainsReferee()))
        for seed in (0, 1)
    )  # fmt: skip
    for made in (Erode(steps=3), attack_of("retain_only", {"steps": 3}), attack_of("erode_style", {"steps": 3})):
        tuning: Any = made
        a, b = ([s.item for batch in tuning.plan(x).stream() for s in batch.sequences] for x in (one, two))
        assert a != b, made.name
    a, b = ([r["history"] for r in FewShot(shots=2)._watcher(x).heldout.corpus.rows] for x in (one, two))
    assert a != b
    for x in (one, two):
        attack_of("password", {}).curves(x)
    a, b = ([s.completion for wait in x.watcher.pending for s in wait.samples] for x in (one, two))
    assert a != b


def test_no_attack_ends_before_it_may(arena: Arena) -> None:
    """At a rate that moves nothing a curve is flat at once; what may not stop then, goes on: the way back of a style,
    half of two samples by heart, and whatever is held against controls that went to the cap."""

    def end(made: Attack, where: Arena = arena) -> int:
        return steps(made.curves(where)[0], "edited")[-1]

    assert end(attack_of("erode_style", {"learning_rates": [1e-9], "steps": 8})) == 16
    assert end(attack_of("weak_samples", {"learning_rates": [1e-9], "epochs": 40})) >= 20
    made = Relearn(learning_rates=(1e-9,), epochs=20)
    (capped,) = made.curves(replace(arena, arms=arena.arms[1:]))
    measured = Measured({(capped.attack, capped.setting): dict(capped.arms)})
    (beside,) = made.curves(replace(arena, measured=measured))
    assert steps(beside, "edited") == steps(capped, "original")
    assert end(made) < steps(beside, "edited")[-1], "alone it stops where it is flat (control)"


@pytest.mark.parametrize("embeddings", [False, True])
def test_the_option_embeddings_reaches_the_training(arena: Arena, embeddings: bool) -> None:
    seen: list[list[torch.Tensor]] = []

    def look(attack: str, setting: str, arm: str, step: int, model: Any) -> None:
        if arm == "original":
            seen.append([p.detach().clone() for p in models.embedding_parameters(model)])

    Erode(learning_rates=(1e-3,), steps=2, embeddings=embeddings).curves(replace(arena, onlooker=look))
    assert all(map(torch.equal, seen[0], seen[-1])) != embeddings


@pytest.mark.parametrize("made", [RelearnLora(learning_rates=(1e-2,), epochs=2, rank=4), Erode(steps=4, rank=4)])
def test_who_looks_on_changes_nothing(arena: Arena, made: Attack) -> None:
    """Gradients captured in the middle of training an adapter are no part of its next step."""
    tokenizer, seen = models.tokenizer_of(arena.arms[1].model), []
    stream = batches(encode(corpus("forget"), tokenizer)[:4])

    def look(attack: str, setting: str, arm: str, step: int, model: Any) -> None:
        for _, taped in tapes(model, stream, models.sites(model, "mlp.out"), precision="float32"):
            seen.append(all(bool((t.g != 0).any()) for t in taped.values() if t.g is not None))

    alone, watched = (made.curves(replace(arena, onlooker=onlooker))[0] for onlooker in (None, look))
    assert seen and all(seen) and watched.arms == alone.arms


def test_each_draw_is_another_one_and_any_counts(arena: Arena) -> None:
    """Against samples drawn here with the seeds of the draws, by a referee that knows odd lengths only."""
    arena = replace(arena, seed=3)
    arena.watcher.n_samples, arena.watcher.new_tokens = 4, 4
    arena.watcher.referee = CallableReferee(lambda prompt, said: len(said) % 2 == 1)
    (curve,) = attack_of("sample", {"draws": 4}).curves(arena)
    for arm in arena.arms[1:]:
        drawn = [
            sample(arm.model, arena.watcher.heldout.corpus, n=4, new_tokens=4, temperature=1.0, seed=3000 + draw,
                   precision="float32")
            for draw in range(4)
        ]  # fmt: skip
        shown = [[float(len(s.completion) % 2 == 1) for s in of_draw] for of_draw in drawn]
        assert len(set(map(tuple, shown))) > 1, "draws differ"
        assert curve.arms[arm.name].points[0].values == tuple(map(max, zip(*shown, strict=True)))


def test_permuted_answers_are_asked_as_the_arms_are(threatening: Any, tiny: Any) -> None:
    """The never arm of a run on facts: the unedited model, after the same demonstrations, asked for wrong answers."""
    tokenizer = models.tokenizer_of(tiny)
    rows = [{**r, "choices": [r["completion"], r["alternative"]], "answer": 0} for r in corpus("heldout").rows[:4]]
    wrong = [{**r, "completion": r["alternative"]} for r in rows]
    eyes = Watcher(
        Likelihoods.of(Corpus("facts", tuple(rows)), tokenizer, "heldout"), n_samples=0, precision="float32",
        permuted=Likelihoods.of(Corpus("permuted", tuple(wrong)), tokenizer, "heldout"),
    )  # fmt: skip
    where = Arena(
        [ArmState("edited", tiny), ArmState("original", threatening)], eyes,
        attack_train=corpus("attack").take(8), precision="float32",
    )  # fmt: skip
    assert eyes.permuted is not None
    plain = eyes.permuted.measure(threatening, precision="float32")["completion"].tolist()
    start = attacking.before(where).arms["never"].points
    assert list(start[0].values) == pytest.approx(plain) and start[1].values == (0.5,) * 4
    (curve,) = FewShot(shots=2).curves(where)
    asked = FewShot(shots=2)._watcher(where).heldout.corpus.rows
    by_hand = Likelihoods.of(
        Corpus("wrong", tuple({**a, "completion": w["completion"]} for a, w in zip(asked, wrong, strict=True))),
        tokenizer, "heldout", max_length=WHOLE,
    )  # fmt: skip
    expected = by_hand.measure(threatening, precision="float32", preference=False)["completion"].tolist()
    never = next(p for p in curve.arms["never"].points if p.metric == "completion").values
    assert list(never) == pytest.approx(expected, rel=1e-4) and list(never) != pytest.approx(plain, rel=1e-2)
