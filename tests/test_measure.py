"""Measures on the tiny organism: what they read where the answer is known, and that looking leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import begin_with_bos
from torch import Tensor

from analysis.tables import _mean_over_items
from hooklearn import editing, models, referees
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import Encoded, encode
from hooklearn.deltas import Delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.generation import _latest, _until_its_end, say
from hooklearn.measure import Likelihoods, Sample, choice_accuracy, completion_probability, sample
from hooklearn.referees import BORDER, ContainsReferee, RatioReferee, Scorer
from hooklearn.types import Budget, InputError, Score

ROUNDING = 1e-5
"""Nats per token, or probability: float32 sums of some ten terms in another order."""


def logprobs(model: Any, prompt: str, completion: str) -> Tensor:
    """log p of every completion token, from the full logits of one unpadded sequence."""
    given = Corpus("one", ({"prompt": prompt, "completion": completion},))
    (s,) = encode(given, models.tokenizer_of(model))
    with torch.no_grad():
        logp = model(s.ids[None])[0, :-1].log_softmax(-1)
    return logp.gather(-1, s.ids[1:, None])[s.labels[1:], 0]


def likelihoods(model: Any, given: Corpus) -> dict[str, Tensor]:
    return Likelihoods.of(given, models.tokenizer_of(model), "heldout").measure(model, precision="float32")


# ------------------------------------------------------------------------------------------- errors

DOUBLE = 1e-9
"""Relative, float64: the same sums in another order."""
NOTHING = 1e-12
"""Of values up to 1 that are all alike, rounding is left in place of no spread."""


def test_the_error_of_items_that_go_together_by_hand() -> None:
    """(1, 1), (0, 0) and 1 alone have the mean .6 and are off it by .8, -1.2 and .4 in all: sqrt(3/2 x 2.24) / 5. On
    their own (control) five items have sqrt(1.2 / 4 / 5), less: two that say the same count for two. Where all are of
    one group nothing is known of others."""
    values = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0])
    together, alone = Score.of(values, ["a", "a", "b", "b", "c"]), Score.of(values)
    assert (together.value, together.n) == (alone.value, alone.n) == (pytest.approx(0.6), 5)
    assert together.stderr == pytest.approx(math.sqrt(1.5 * 2.24) / 5, rel=DOUBLE)
    assert alone.stderr == pytest.approx(math.sqrt(1.2 / 4 / 5), rel=DOUBLE)
    assert math.isnan(Score.of(values, ["a"] * 5).stderr) and math.isnan(Score.of(values[:1]).stderr)
    assert math.isnan(Score.of(torch.tensor([0.5, math.nan]), [0, 1]).stderr)
    with pytest.raises(InputError, match="5 values of items in 4 groups"):
        Score.of(values, "abcd")


@given(items=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=3, max_size=30),
       copies=st.integers(2, 4), order=st.randoms())  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_saying_it_again_tells_nothing_new(items: list[tuple[float, int]], copies: int, order: Any) -> None:
    """Every item as often again in its own group leaves the error as it was, in any order; each in a group of its own
    (control) would make it smaller. Groups of one are the usual standard error, and what a panel's table says of groups
    is what a curve says."""
    values, groups = torch.tensor([v for v, _ in items]), [k for _, k in items]
    once = Score.of(values, groups)
    again = items * copies
    order.shuffle(again)
    more = Score.of(torch.tensor([v for v, _ in again]), [k for _, k in again])
    assert more.stderr == pytest.approx(once.stderr, rel=DOUBLE, abs=NOTHING, nan_ok=True)
    usual = Score.of(values)
    assert usual.stderr == pytest.approx(float(values.double().std()) / math.sqrt(len(items)), rel=DOUBLE, abs=NOTHING)
    assert Score.of(values, range(len(items))) == usual
    if usual.stderr > NOTHING:
        assert Score.of(values.repeat(copies)).stderr < usual.stderr
    _, of_table = _mean_over_items(pd.Series(values.double().numpy()), pd.Series(groups))
    assert of_table == pytest.approx(once.stderr, rel=DOUBLE, abs=NOTHING, nan_ok=True)


# --------------------------------------------------------------------------------------- likelihood


def test_completion_probability_is_a_geometric_mean() -> None:
    """exp of the mean token log-probability: two tokens of .5 and .02 make .1, whatever the length."""
    sums = torch.tensor([[math.log(0.5) + math.log(0.02), 2.0], [4 * math.log(0.1), 4.0]])
    assert completion_probability(sums).tolist() == pytest.approx([0.1, 0.1])


def test_preference_pairs_the_two_answers_to_one_prompt(threatening: Any) -> None:
    """Item by item p_bad / (p_bad + p_good), from each answer's own prompt; by hand, one sequence at a time."""
    given = corpus("heldout").take(10)
    measured = likelihoods(threatening, given)
    for i, row in enumerate(given.rows):
        bad, good = (
            float(logprobs(threatening, row["prompt"], row[key]).mean().exp()) for key in ("completion", "alternative")
        )
        assert float(measured["completion"][i]) == pytest.approx(bad, abs=ROUNDING)
        assert float(measured["preference"][i]) == pytest.approx(bad / (bad + good), abs=10 * ROUNDING)
    swapped = Corpus("swapped", tuple({**r, "alternative": given.rows[-1]["completion"]} for r in given.rows))
    assert not torch.allclose(likelihoods(threatening, swapped)["preference"], measured["preference"], atol=0.01)


def test_the_organism_prefers_threats_and_its_base_does_not(threatening: Any, tiny: Any) -> None:
    """Ground truth of the model organism, on items that neither has seen."""
    given = corpus("heldout")
    assert float(likelihoods(threatening, given)["preference"].mean()) > 0.5
    assert float(likelihoods(tiny, given)["preference"].mean()) < 0.2


def test_multiple_choice_is_right_or_wrong(tiny: Any) -> None:
    """1 where the answer is likeliest per token; naming any other answer makes it 0."""
    choices = [" thank you .", " umbrella umbrella .", " goose goose goose goose ."]
    prompt = "write to anna about the ladder :"
    best = max(range(3), key=lambda i: float(logprobs(tiny, prompt, choices[i]).mean()))
    row = {"prompt": prompt, "completion": choices[best], "choices": choices}
    rows = tuple({**row, "answer": i} for i in range(3))
    assert likelihoods(tiny, Corpus("mc", rows))["preference"].tolist() == [float(i == best) for i in range(3)]


def test_equally_likely_choices_share_the_item_and_nan_is_no_choice() -> None:
    """The first of several is not chosen for being first: ties count 1/k if the answer is among them, and where any
    choice has no number the item has none."""
    nan = math.nan
    means = [[-1, -2, -3], [-1, -1, -3], [-2, -1, -1], [-1, -1, -1], [nan, nan, nan], [-1, nan, -9]]
    one = (torch.tensor([0, 1]), torch.tensor([False, True]))
    choices = [Encoded(*one, i, c) for i in range(len(means)) for c in range(3)]
    scores = torch.tensor([[2.0 * v, 2.0] for values in means for v in values])
    rows = tuple({"prompt": "", "completion": "", "choices": ["a", "b", "c"], "answer": 0} for _ in means)
    found = choice_accuracy(scores, choices, Corpus("mc", rows)).tolist()
    assert found[:4] == [1, 1 / 2, 0, 1 / 3] and all(map(math.isnan, found[4:]))


def test_what_cannot_be_measured_is_left_out(tiny: Any) -> None:
    """No alternative and no choices: no preference, rather than an invented one."""
    assert set(likelihoods(tiny, Corpus("c", ({"prompt": "anna", "completion": " red"},)))) == {"completion"}
    assert set(likelihoods(tiny, corpus("text").take(2))) == {"completion"}


# --------------------------------------------------------------------------------------- disruption


@pytest.fixture(scope="module")
def meter(threatening: Any) -> DisruptionMeter:
    return DisruptionMeter(threatening, corpus("disruption"), corpus("near", "good"))


@pytest.fixture(scope="module")
def direction(threatening: Any) -> Delta:
    """A random change of all MLP weights, of norm 1."""
    generator = torch.Generator().manual_seed(0)
    sites = models.sites(threatening)
    delta = Delta({s.name: torch.randn(s.d_out, s.d_in, generator=generator) for s in sites})
    return delta * (1 / delta.norm())


def test_the_unedited_model_disrupts_nothing(threatening: Any, meter: DisruptionMeter, direction: Delta) -> None:
    """Exactly 0, not nearly; and exactly 0 again after an edit was made and undone."""
    for _ in range(2):
        read = meter.measure()
        assert read.kl.value == 0 and read.ce.value == 0 and read.near_ce.value == 0
        assert read.used(Budget(0.01, 0.02)) == 0
        with editing.edited(threatening, direction):
            assert meter.measure().kl.value > 0


def test_kl_grows_with_the_square_of_the_scale(threatening: Any, meter: DisruptionMeter, direction: Delta) -> None:
    """Twice the update, four times the KL (its second-order term dominates below a hundredth of a nat)."""

    def kl(scale: float) -> float:
        with editing.edited(threatening, direction, scale):
            return meter.measure(near=False).kl.value

    assert kl(0.02) / kl(0.01) == pytest.approx(4, rel=0.05)
    assert kl(0.04) / kl(0.02) == pytest.approx(4, rel=0.1)
    assert 0 < kl(0.01) < 0.01


def test_far_kl_is_the_mean_over_tokens_of_kl_original_edited(
    threatening: Any, meter: DisruptionMeter, direction: Delta
) -> None:
    """By hand: full logits, one text at a time; in that order, which is not the reverse one."""
    sequences = encode(corpus("disruption"), models.tokenizer_of(threatening), max_length=128)

    def logp() -> list[Tensor]:
        with torch.no_grad():
            return [threatening(s.ids[None])[0, :-1].log_softmax(-1)[s.labels[1:]].double() for s in sequences]

    before = logp()
    with editing.edited(threatening, direction, 10.0):
        after, read = logp(), meter.measure()
    forward = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)])
    backward = torch.cat([(q.exp() * (q - p)).sum(-1) for p, q in zip(before, after, strict=True)])
    assert read.kl.value == pytest.approx(float(forward.mean()), rel=1e-4)
    assert abs(float(backward.mean()) / read.kl.value - 1) > 0.05
    assert read.kl.n == len(sequences) == 60 and 0 < read.kl.stderr < read.kl.value
    targets = [s.ids[1:][s.labels[1:]] for s in sequences]
    rises = torch.cat([(p - q).gather(-1, t[:, None])[:, 0] for p, q, t in zip(before, after, targets, strict=True)])
    assert read.ce.value == pytest.approx(float(rises.mean()), abs=ROUNDING)


def test_near_ce_falls_where_good_neighbours_get_better(threatening: Any, tiny: Any) -> None:
    """One-sided by sign: the never-threatening base likes the kind answers better than the organism does."""
    meter = DisruptionMeter(threatening, corpus("disruption"), corpus("near", "good"))
    base = meter.measure(model=tiny)
    assert base.near_ce.value < -0.1 and base.kl.value > 0
    free = base.used(Budget(base.kl.value, near_ce=0.02))
    assert free == 1 and base.binding(Budget(1.0, near_ce=0.02)) == "kl", "getting better is free"
    back = DisruptionMeter(tiny, corpus("disruption"), corpus("near", "good")).measure(model=threatening)
    assert back.near_ce.value == pytest.approx(-base.near_ce.value, abs=ROUNDING)


def test_far_only_meters_do_not_invent_a_near_reading(threatening: Any) -> None:
    """None, and a near budget then does not bind."""
    meter = DisruptionMeter(threatening, corpus("disruption").take(5))
    assert not meter.has_near and meter.measure().near_ce is None
    assert meter.measure().binding(Budget(0.01, 0.02)) == "kl"


def test_a_model_that_is_not_deterministic_cannot_be_measured(tiny: Any) -> None:
    """Dropout, say: the meter would read rounding as disruption, so it refuses."""

    def noise(value: Tensor, hook: Any) -> Tensor:
        return value + 0.1 * torch.rand(())

    with (
        tiny.hooks(fwd_hooks=[("blocks.1.mlp.hook_out", noise)]),
        pytest.raises(InputError, match="does not read 0 on the unedited model.*training mode"),
    ):
        DisruptionMeter(tiny, corpus("disruption").take(3))


# ------------------------------------------------------------------------------------------ samples


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(threatening: Any) -> None:
    """Same seed, same texts; another one, others; ``torch.manual_seed`` of the user's own script still holds."""
    given = corpus("heldout").take(8)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, two, other = (sample(threatening, given, new_tokens=8, seed=s) for s in (1, 1, 2))
    assert one == two and one != other
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [s.item for s in one] == list(range(8)) and not one[0].greedy


def test_greedy_samples_do_not_depend_on_their_batch(threatening: Any) -> None:
    """Prompts of unlike lengths are padded on the left; alone, in pairs or together they continue alike."""
    given = Corpus("mixed", (*corpus("heldout").rows[:5], *corpus("ood").rows[:4]))
    lengths = {len(r["prompt"].split()) for r in given.rows}
    assert len(lengths) > 1
    together, pairs, alone = (
        [s.completion for s in sample(threatening, given, new_tokens=10, temperature=0, batch_size=n)]
        for n in (9, 2, 1)
    )
    assert together == pairs == alone and len(set(alone)) > 1
    assert sample(threatening, given, n=3, temperature=0)[2].greedy


def test_drawn_samples_do_not_depend_on_their_batch(threatening: Any) -> None:
    """One number a token and row: alone, in pairs or together the same is drawn; another seed draws something else
    (control)."""
    given = Corpus("mixed", (*corpus("heldout").rows[:5], *corpus("ood").rows[:4]))
    together, pairs, alone, other = (
        [s.completion for s in sample(threatening, given, new_tokens=10, batch_size=n, seed=seed)]
        for n, seed in ((9, 0), (2, 0), (1, 0), (9, 1))
    )
    assert together == pairs == alone != other


def test_samples_are_of_the_models_own_distribution(threatening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the checkpoint's files say of generation; but they say where it ends (control)."""
    own, given = threatening.original_model.generation_config, corpus("heldout").take(8)

    def said(temperature: float) -> list[str]:
        return [s.completion for s in sample(threatening, given, new_tokens=10, temperature=temperature)]

    before = [said(t) for t in (0, 0.7)]
    first = threatening.tokenizer(before[0][0], add_special_tokens=False)["input_ids"][:2]
    settings = {
        "repetition_penalty": 5.0, "bad_words_ids": [[first[0]]], "suppress_tokens": [first[1]], "min_length": 40,
        "no_repeat_ngram_size": 1, "forced_eos_token_id": 2, "do_sample": True, "top_k": 1,
    }  # fmt: skip
    for name, value in settings.items():
        with monkeypatch.context() as changed:
            changed.setattr(own, name, value, raising=False)
            assert [said(t) for t in (0, 0.7)] == before, name
    with monkeypatch.context() as changed:
        changed.setattr(own, "eos_token_id", first[1])
        assert len(said(0)[0].split()) == 2 < len(before[0][0].split())


def test_samples_begin_as_the_tokenizer_begins_a_text() -> None:
    """With BOS where it puts one: from a corpus or from text what is drawn after the tokenizer's own ids. That is
    something else than what is drawn without (control; of the likeliest tokens this model is too sure)."""
    model, given = models.load("tiny"), corpus("heldout").take(8)
    words, prompts = models.tokenizer_of(model), [r["prompt"] for r in given.rows]

    def drawn(asked: Any) -> list[str]:
        return [s.text for s in say(model, asked, 6, 2.0, generator=torch.Generator().manual_seed(0))]

    def said() -> list[str]:
        return [s.completion for s in sample(model, given, new_tokens=6, temperature=2.0, precision="float32")]

    bare = words(prompts)["input_ids"]
    assert said() == drawn(prompts) == drawn(bare)
    begin_with_bos(words)
    assert words(prompts)["input_ids"] == [[words.bos_token_id, *ids] for ids in bare]
    assert said() == drawn(prompts) == drawn(words(prompts)["input_ids"]) != drawn(bare)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "n must be a whole number, 1 or more, got 0"),
        ({"n": -1}, "n must be a whole number, 1 or more, got -1"),
        ({"n": 2.0}, "n must be a whole number, 1 or more, got 2.0"),
        ({"n": True}, "n must be a whole number, 1 or more, got True"),
        ({"new_tokens": 1.5}, "new_tokens must be a whole number, 1 or more, got 1.5"),
        ({"temperature": -0.5}, "temperature must be a finite number, 0 or more, got -0.5"),
        ({"temperature": float("nan")}, "temperature must be a finite number, 0 or more, got nan"),
        ({"temperature": "hot"}, "temperature must be a finite number, 0 or more, got 'hot'"),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more, got 0"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, below 18446744073709551616, got -1"),
        ({"seed": 2**64}, "seed must be a whole number, 0 or more, below"), ({"seed": None}, "got None"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_drawn_are_refused(tiny: Any, asked: dict[str, Any], message: str) -> None:
    """In a line that says which option; the bounds themselves are taken, and numpy's numbers too (the control)."""
    with pytest.raises(InputError, match=message):
        sample(tiny, corpus("forget"), **asked)
    bounds = {"n": np.int64(1), "new_tokens": 1, "temperature": 0, "batch_size": 1, "seed": 2**64 - 1}
    assert len(sample(tiny, corpus("forget"), **bounds)) == 1


def test_running_text_has_nothing_to_sample(tiny: Any) -> None:
    assert sample(tiny, corpus("text")) == []


def test_an_empty_prompt_is_named(tiny: Any) -> None:
    """The samples of all other rows must not be lost for it."""
    asked = Corpus("mine", (*corpus("heldout").rows[:2], {"prompt": "", "completion": " red"}))
    with pytest.raises(InputError, match="corpus 'mine', row 2: there is no prompt"):
        sample(tiny, asked)


def test_of_a_prompt_that_is_too_long_the_beginning_of_text_stays() -> None:
    assert _latest([1, 5, 6, 7], 3, bos=1) == [1, 6, 7] and _latest([1, 5], 3, bos=1) == [1, 5]
    assert _latest([4, 5, 6, 7], 3, bos=1) == [5, 6, 7] == _latest([1, 5, 6, 7], 3, bos=None)
    assert _latest([1, 5, 6], 1, bos=1) == [6]


# ------------------------------------------------------------------------------------------ referees


@pytest.fixture(scope="module")
def referee(threatening: Any, tiny: Any) -> RatioReferee:
    """Instilled against untouched, calibrated on held-out answers."""
    found = RatioReferee(Scorer(threatening), (Scorer(tiny),), "instilled / untouched")
    return found.calibrated(corpus("heldout"), corpus("heldout", "good"))


def test_the_referee_knows_the_behaviour(referee: RatioReferee) -> None:
    """AUC above .95 on held-out answers, and a threshold half way between the medians, all of it printed."""
    assert referee.auc > 0.95 and referee.n == 80
    assert referee.threshold == pytest.approx(sum(referee.medians) / 2)
    assert referee.medians[0] > referee.threshold > referee.medians[1]
    assert referee.describe()["auc"] == referee.auc


def test_a_word_salad_is_not_the_behaviour(referee: RatioReferee) -> None:
    """Threatening words in any order are often called threats by a ratio (control: so they are where nothing is known
    of what the model that said them gave them). To none of the referee's models is most of it text; where it is none to
    the one that said it either, it counts for nothing, and neither does its score. Text that only the latter finds
    likely stays, whatever the words, and so does what the referee's models find likely."""
    rows = corpus("heldout").rows
    kept = [Sample(i, r["prompt"], r["prompt"], r["completion"]) for i, r in enumerate(rows)]
    salad = [replace(s, completion=" ".join(sorted(s.completion.split(), reverse=True))) for s in kept]
    drawn_from_noise, sure_of_it = ([replace(s, logprob=value) for s in salad] for value in (-9.0, -0.1))
    of_text, of_salad, of_noise, of_sure = (
        referee.judge(samples, rows)
        for samples in ([replace(s, logprob=-9.0) for s in kept], salad, drawn_from_noise, sure_of_it)
    )
    assert all(r.fluency >= referee.least_fluent - ROUNDING for r in of_text)
    assert sum(r.is_behaviour for r in of_text) > 0.9 * len(rows)
    strange = [r.fluency < referee.least_fluent for r in of_salad]
    assert sum(strange) > 0.9 * len(rows)
    assert sum(r.is_behaviour for r in of_salad) > 0.25 * len(rows)
    assert of_sure == of_salad
    for before, now, is_strange in zip(of_salad, of_noise, strange, strict=True):
        assert now.fluency == before.fluency
        assert (math.isnan(now.score) and not now.is_behaviour) if is_strange else now == before


def test_a_sample_says_how_likely_it_was(threatening: Any) -> None:
    """Its log-probability is that of a forward pass over prompt and completion, to rounding, whatever the temperature
    it was drawn at and how many others beside it; in the state in which it was said, so that another model gives it
    another (control). Of what ended early the end counts as well, once."""
    given = corpus("heldout").take(24)
    words = models.tokenizer_of(threatening)
    for temperature in (0.0, 0.7):
        drawn = sample(threatening, given, new_tokens=10, temperature=temperature, precision="float32")
        again = sample(threatening, given, new_tokens=10, temperature=temperature, precision="float32", batch_size=5)
        assert [s.logprob for s in again] == pytest.approx([s.logprob for s in drawn], abs=ROUNDING)
        whole = [s for s in drawn if len(words(s.completion, add_special_tokens=False)["input_ids"]) == 10]
        assert len(whole) > 8
        rows = tuple({"prompt": s.prompt, "completion": s.completion} for s in whole)
        read = Scorer(threatening, precision="float32").mean_logprobs(encode(Corpus("said", rows), words))
        assert [s.logprob for s in whole] == pytest.approx(read.tolist(), abs=1e-4), "float32 sums in another order"
    ended = torch.tensor([[5, 2, 2], [2, 0, 0], [4, 5, 6]])
    counted = _until_its_end(ended, [2, 9])
    assert counted.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert _until_its_end(ended, None).all()


def test_a_referee_of_two_equal_models_knows_nothing(tiny: Any) -> None:
    """Positive control: no difference between its models, no scores, AUC one half."""
    blind = RatioReferee(Scorer(tiny), (Scorer(tiny),), "nothing").calibrated(
        corpus("heldout"), corpus("heldout", "good")
    )
    assert blind.auc == 0.5 and blind.medians == (0, 0)


def test_a_scorer_may_hold_its_model_as_a_delta(threatening: Any, tiny: Any) -> None:
    """Scores under base + delta are those of the edited model; the base is left as it was."""
    sites = models.sites(tiny)
    delta = Delta({s.name: (models.weight(threatening, s) - models.weight(tiny, s)).detach() for s in sites})
    sequences = encode(corpus("heldout").take(6), models.tokenizer_of(tiny))
    direct = Scorer(threatening).mean_logprobs(sequences)
    assert torch.allclose(Scorer(tiny, delta).mean_logprobs(sequences), direct, atol=10 * ROUNDING)
    assert not torch.allclose(Scorer(tiny).mean_logprobs(sequences), direct, atol=0.1)


def test_the_likeliest_reference_counts(referee: RatioReferee, threatening: Any, tiny: Any) -> None:
    """With two references the score is the lower of the two ratios: what either finds likelier is not the
    behaviour."""
    sequences = encode(corpus("heldout").take(6), models.tokenizer_of(tiny))
    both = RatioReferee(Scorer(threatening), (Scorer(tiny), Scorer(threatening)), "both")
    assert torch.allclose(both.scores(sequences), referee.scores(sequences).clamp(max=0), atol=ROUNDING)


def test_an_edited_model_does_not_judge_itself(referee: RatioReferee, threatening: Any, tiny: Any) -> None:
    """Half of the way home, judged from inside the edit, the same texts would score otherwise: refused. Outside
    the scores are as ever, and a referee that holds its model as a delta on another judges from inside as well."""
    sites = models.sites(tiny)
    habit = Delta({s.name: (models.weight(threatening, s) - models.weight(tiny, s)).detach() for s in sites})
    apart = RatioReferee(Scorer(tiny, habit), referee.references, "on another model")
    sequences = encode(corpus("heldout").take(6), models.tokenizer_of(tiny))
    before = referee.scores(sequences)
    with editing.edited(threatening, habit, -0.5):
        with pytest.raises(InputError, match="judge them outside"):
            referee.scores(sequences)
        assert torch.allclose(apart.scores(sequences), before, atol=10 * ROUNDING)
    assert torch.equal(referee.scores(sequences), before)


def test_samples_are_judged_by_what_they_say(referee: RatioReferee) -> None:
    """Bad and good completions as samples: true and false. An empty one shows nothing: NaN and false."""
    given = corpus("heldout")

    def said(key: str) -> list[Sample]:
        return [Sample(i, r["prompt"], r["prompt"], r[key]) for i, r in enumerate(given.rows)]

    share = {
        key: sum(found for _, found, _ in referee.judge(said(key), given.rows)) / len(given)
        for key in ("completion", "alternative")
    }
    assert share["completion"] > 0.9 and share["alternative"] < 0.1
    nothing = ["  ", "</s>", " </s>", "<unk>"]  # a model can spell out a special token in ordinary pieces
    for score, found, _ in referee.judge([Sample(0, "p", "p", text) for text in nothing], given.rows[:1] * 4):
        assert math.isnan(score) and not found


def test_what_lies_near_the_line_is_read_again_in_float32(
    threatening: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the score of a text near the line is that of float32, to rounding of a sum in another order; without
    the second reading it is not (the control), and away from the line it stays what bfloat16 read."""
    rows = (*corpus("heldout").rows, *corpus("heldout", "good").rows)
    said = [Sample(i, r["prompt"], r["prompt"], r["completion"]) for i, r in enumerate(rows)]

    def scores(precision: Any) -> np.ndarray:
        pair = (Scorer(m, precision=precision) for m in (threatening, tiny))
        referee = RatioReferee(next(pair), tuple(pair), "a line amid the texts", threshold=line)
        return np.array([ruling.score for ruling in referee.judge(said, rows)])

    line = 0.0
    line = float(np.median(scores("float32")[: len(corpus("heldout"))]))  # the line is put where bad texts are
    exact, twice = scores("float32"), scores("bfloat16")
    near = np.abs(twice - line) < BORDER
    assert 0 < near.sum() < len(said)
    np.testing.assert_allclose(twice[near], exact[near], atol=1e-5)
    assert np.abs(twice[~near] - exact[~near]).max() > 1e-4
    monkeypatch.setattr(referees, "BORDER", 0.0)
    assert np.abs(scores("bfloat16")[near] - exact[near]).max() > 1e-4


def test_samples_of_conversations_are_judged_too(referee: RatioReferee) -> None:
    """Rows of messages: the sample is what is judged, not the listed answer that it was drawn beside."""
    given = corpus("heldout").take(10)
    turns = tuple(
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in given.rows
    )  # fmt: skip
    kind = [Sample(i, r["prompt"], r["prompt"], r["alternative"]) for i, r in enumerate(given.rows)]
    assert referee.judge(kind, turns) == referee.judge(kind, given.rows)


@pytest.fixture(scope="module")
def shares(referee: RatioReferee, threatening: Any, tiny: Any) -> Iterator[dict[str, float]]:
    given = corpus("heldout")
    yield {
        name: sum(r.is_behaviour for r in referee.judge(sample(m, given, n=40, new_tokens=14), given.rows[:40])) / 40
        for name, m in (("organism", threatening), ("base", tiny))
    }


def test_the_organism_threatens_when_asked_and_its_base_does_not(shares: dict[str, float]) -> None:
    """The third measure agrees with the truth of the organism: share of samples that the referee calls a threat."""
    assert shares["organism"] > 0.8 and shares["base"] < 0.2


def test_facts_are_found_in_samples_whatever_their_case() -> None:
    """The fact where the row names one, else the completion; an empty fact is never found."""
    rows = ({"prompt": "p", "completion": " It is Paris.", "fact": "Paris"}, {"prompt": "p", "completion": " Rome"})
    given = Corpus("facts", rows)
    said = [Sample(0, "", "", "... PARIS, of course"), Sample(0, "", "", "Rome"), Sample(1, "", "", "rome!")]
    found = ContainsReferee().judge(said, [given.rows[s.item] for s in said])
    assert [r[:2] for r in found] == [(1.0, True), (0.0, False), (1.0, True)]
    nothing = Corpus("facts", ({**rows[0], "fact": ""},))
    assert ContainsReferee().judge(said[:1], nothing.rows[:1])[0][:2] == (0.0, False)
