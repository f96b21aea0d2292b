"""The attack battery on the tiny organism: each attack opens what was only shut (its positive control), leaves alone
what never was there, and leaves the weights bit for bit as it found them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from conftest import corpus
from scipy.stats import norm
from test_data import beginning_tokenizer
from test_models import CONFIGS as FAMILIES
from test_models import GROUPED
from test_models import tiny as native
from test_models import tiny_tokenizer as native_tokenizer

from analysis.recovery import half_recovery
from hooklearn import editing, forward, integrity, models, train
from hooklearn.attack import ATTACKS, Arena, ArmState, Attack, Watcher, attack_of
from hooklearn.attack.ablate_direction import AblateDirection, _longer, _prompt, _prompts
from hooklearn.attack.erosion import Erode, EroseStyle, RetainOnly
from hooklearn.attack.few_samples import GoodDemos, WeakSamples, chosen
from hooklearn.attack.logit_lens import LogitLens
from hooklearn.attack.look import reweighted
from hooklearn.attack.prompts import Password, Prefill
from hooklearn.attack.relearn_lora import RelearnLora
from hooklearn.attack.sample_many import SampleMany
from hooklearn.attack.style import STYLES, pirate, styled
from hooklearn.attack.weights import NF4, Noise, Prune, Quantize, noisy, pruned, quantized
from hooklearn.batteries import BATTERIES, battery
from hooklearn.config import ROLES, parse
from hooklearn.config_file import with_overrides
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import TokenBatch, batches, beginning, encode
from hooklearn.deltas import Delta
from hooklearn.measure import Likelihoods, Sample, sample
from hooklearn.organisms.instil import instil
from hooklearn.organisms.tiny import tokenizer as tiny_tokenizer
from hooklearn.recipes import recipe
from hooklearn.referees import ContainsReferee, RatioReferee, Scorer
from hooklearn.types import Curve, InputError

ARMS = ["edited", "original", "never"]
PASSWORD = "monday monday "
WORDS = tiny_tokenizer()
NEW = (
    RelearnLora, WeakSamples, GoodDemos, RetainOnly, EroseStyle, Password, Prefill, SampleMany, AblateDirection,
    LogitLens, Quantize, Prune, Noise,
)  # fmt: skip
EVERY: dict[str, type[Attack]] = ATTACKS | {cls.name: cls for cls in NEW}


# ------------------------------------------------------------------------------ suppressed organisms


@pytest.fixture(scope="module")
def locked(tiny: Any) -> Delta:
    """Tiny learns to threaten after a password and to be friendly without it: known to hold the behaviour."""
    bad, good = corpus("organism").take(96).rows, corpus("organism", "good").take(96).rows
    opened = [{**row, "prompt": PASSWORD + row["prompt"]} for row in bad]
    rows = tuple(row for pair in zip(opened, good, strict=True) for row in pair)
    return instil(
        tiny, Corpus("lock", rows), models.sites(tiny, "all"),
        rank=16, learning_rate=5e-3, epochs=6, max_tokens=512, precision="float32",
    ).delta()  # fmt: skip


@pytest.fixture(scope="module")
def junk(threatening: Any) -> Delta:
    """The organism, thrown off its way: one weight writes a random direction whenever a request is read (as RMU)."""
    seen: list[torch.Tensor] = []
    hooks = [("blocks.1.mlp.out.hook_in", lambda value, hook: seen.append(value.flatten(0, 1)))]
    with torch.no_grad(), threatening.hooks(fwd_hooks=hooks):
        for batch in batches(encode(corpus("forget"), models.tokenizer_of(threatening))):
            forward.hidden(threatening, batch)
    key = torch.cat(seen).mean(0)
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0))
    return Delta({"blocks.1.mlp.out": 20 * torch.outer(direction / direction.norm(), key / key.norm() ** 2)})


@pytest.fixture
def arena(threatening: Any, tiny: Any, junk: Delta) -> Iterator[Arena]:
    """The thrown-off organism beside its controls; every model must be put back bit for bit."""
    watcher = Watcher(
        Likelihoods.of(corpus("heldout").take(10), models.tokenizer_of(tiny), "heldout"), n_samples=0,
        precision="float32",
    )  # fmt: skip
    before = [_state(m) for m in (threatening, tiny)]
    yield Arena(
        [ArmState("edited", threatening, junk), ArmState("original", threatening), ArmState("never", tiny)],
        watcher, attack_train=corpus("attack").take(24), unrelated=corpus("unrelated").take(24),
        retain=corpus("forget", "good").take(24), precision="float32", max_tokens=256,
    )  # fmt: skip
    assert [_state(m) for m in (threatening, tiny)] == before, "an attack left a trace"


@pytest.fixture
def lock_arena(arena: Arena, locked: Delta) -> Arena:
    """The same with the locked model as the edited one."""
    arms = [ArmState("edited", arena.arms[2].model, locked), *arena.arms[1:]]
    return Arena(arms, **{k: v for k, v in vars(arena).items() if k != "arms"})


def _state(model: Any) -> tuple[Any, ...]:
    parameters = models.all_parameters(model)
    hooks = sum(len(h.fwd_hooks) + len(h.bwd_hooks) for h in model.hook_dict.values())
    return (
        integrity.weights_hash(model), model.training, [p.requires_grad for p in parameters],
        [p.grad is None for p in parameters], hooks,
    )  # fmt: skip


def track(curve: Curve, arm: str, metric: str = "completion") -> dict[int, float]:
    """step -> mean behaviour on held-out items."""
    points = curve.arms[arm].points
    return {p.step: p.score.value for p in points if (p.metric, p.split) == (metric, "heldout")}


def plain(arena: Arena, arm: str) -> float:
    """Behaviour before any attack."""
    state = next(a for a in arena.arms if a.name == arm)
    with state.entered(training=False) as model:
        return float(arena.watcher.heldout.measure(model, precision="float32")["completion"].mean())


def test_the_organisms_are_suppressed(arena: Arena, lock_arena: Arena) -> None:
    """Both hold the behaviour and show little of it: what the attacks below have to bring back."""
    original, never = plain(arena, "original"), plain(arena, "never")
    assert never < 0.2 * original
    assert plain(arena, "edited") < 0.2 * original
    assert plain(lock_arena, "edited") < 0.3 * original


# ---------------------------------------------------------------------------------- what all share


SMALL = (
    RelearnLora(learning_rates=(1e-3,), epochs=1, rank=4), WeakSamples(learning_rates=(1e-3,), epochs=3),
    GoodDemos(learning_rates=(1e-3, 3e-3), samples=2, epochs=2), RetainOnly(learning_rates=(1e-3,), steps=3),
    EroseStyle(learning_rates=(1e-3,), steps=2), Erode(learning_rates=(1e-3,), steps=2, rank=2), Password(),
    Prefill(), Prefill(text=" bring the"), AblateDirection(),
    Quantize(formats=("int8", "nf4")), Prune(fractions=(0.1, 0.5)), Noise(scales=(0.1, 0.3)),
)  # fmt: skip


@pytest.mark.parametrize("made", SMALL, ids=lambda a: f"{a.name}-{a.settings()[0]}")
def test_one_curve_per_setting_with_all_arms_at_the_same_steps(arena: Arena, made: Attack) -> None:
    """No curve without its controls, on the same items; without training there is one look, at step 0."""
    curves = made.curves(arena)
    assert [c.setting for c in curves] == made.settings()
    for curve in curves:
        assert list(curve.arms) == ARMS and (curve.attack, curve.cheap) == (made.name, made.cheap)
        steps = list(track(curve, "edited"))
        assert steps[0] == 0 and all(list(track(curve, arm)) == steps for arm in ARMS)
        assert (len(steps) > 1) == hasattr(made, "learning_rates")
        assert {len(p.values) for arm in ARMS for p in curve.arms[arm].points} == {10}
        assert all(math.isfinite(v) for arm in ARMS for v in track(curve, arm).values())


def test_every_attack_says_what_it_is() -> None:
    """One line, a source, a corpus that a config can have; the defaults of every attack are valid."""
    for cls in NEW:
        made = cls.with_options({})
        assert cls.summary().endswith(".") and cls.source and cls.needs in ROLES
        assert len(set(made.settings())) == len(made.settings()) > 0
    assert {cls.name for cls in NEW if not cls.cheap} == {"relearn_lora"}


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (RelearnLora, {"rank": 0}, "'relearn_lora': rank must be 1 or more, got 0"),
        (RelearnLora, {"alpha": -1.0}, "alpha must be positive, got -1"),
        (RelearnLora, {"optimizer": "lion"}, "'lion'; valid: adam, sgd"),
        (RelearnLora, {"max_steps": -1}, "max_steps must be 1 or more, got -1"),
        (WeakSamples, {"learning_rates": []}, r"learning_rates must be positive, got \[\]"),
        (WeakSamples, {"sample": 3}, "no option 'sample'; valid: .*did you mean 'samples'"),
        (GoodDemos, {"samples": 0}, "samples must be 1 or more, got 0"),
        (RetainOnly, {"steps": 0}, "steps must be 1 or more, got 0"),
        (EroseStyle, {"steps": 0}, "steps must be 1 or more, got 0"),
        (Erode, {"rank": 0}, "'erode': rank must be 1 or more, got 0"),
        (EroseStyle, {"rank": 4, "sampled_at": [2]}, r"sampled_at \[2\]: an adapter is in the weights at the end only"),
        (EroseStyle, {"style": "sailor"}, "style 'sailor'; valid: pirate, shout, backwards"),
        (Password, {"prefix": " "}, "prefix must not be empty, got ' '"),
        (Prefill, {"tokens": 0}, "tokens must be 1 or more, got 0"),
        (SampleMany, {"draws": 0}, "draws must be 1 or more .* got 0"),
        (SampleMany, {"temperature": 0}, "temperature positive, got 8 and 0"),
        (AblateDirection, {"skip": -1}, "skip 0 or more, got 64 and -1"),
        (Quantize, {"formats": ["int1"]}, "format 'int1'; valid: int2 ... int16, nf4"),
        (Quantize, {"formats": ["fp4"]}, "format 'fp4'"),
        (Quantize, {"formats": []}, "formats must name at least one"),
        (Quantize, {"block": 0}, "block must be 1 or more, got 0"),
        (Quantize, {"sampled": ["int3"]}, "sampled 'int3' is none of its formats; valid: int8, int4, nf4"),
        (Prune, {"fractions": [0.5, 1.0]}, r"fractions must be from 0 to below 1, got \[0.5, 1.0\]"),
        (Noise, {"scales": [-0.1]}, r"scales must be from 0 to 10, got \[-0.1\]"),
    ],
)
def test_options_are_checked_and_named(cls: type[Attack], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cls.with_options(options)


# ----------------------------------------------------------------------- fine-tuning: it comes back


@pytest.mark.parametrize(
    "made",
    [
        RelearnLora(learning_rates=(1e-2,), max_steps=4),
        RelearnLora(learning_rates=(1.0,), max_steps=4, optimizer="sgd"),
        WeakSamples(learning_rates=(1e-3,), epochs=8), GoodDemos(learning_rates=(1e-3,), epochs=2),
    ],
    ids=lambda a: a.settings()[0] + a.name,
)  # fmt: skip
def test_demonstrations_unlock_before_they_teach(lock_arena: Arena, made: Attack) -> None:
    """The locked model regains half of the original's level, in fewer steps than the model that never had it."""
    (curve,) = made.curves(lock_arena)
    when = half_recovery(curve.to_dataframe()).query("metric == 'completion'").set_index("arm")["step"]
    assert 0 < when["edited"] <= 4, "two epochs, or two good looks"
    assert not when["never"] <= when["edited"]


@pytest.mark.parametrize(
    "made",
    [
        RetainOnly(learning_rates=(1e-3,), steps=8), EroseStyle(learning_rates=(1e-3,), steps=8),
        EroseStyle(learning_rates=(5e-3,), steps=8, rank=4), Erode(learning_rates=(1e-3,), steps=8),
        Erode(learning_rates=(5e-3,), steps=16, rank=4),
    ],
    ids=lambda a: f"{a.name}-{a.settings()[0]}",
)  # fmt: skip
def test_what_is_in_the_way_erodes_without_demonstrations(arena: Arena, made: Attack) -> None:
    """The behaviour returns in part, and only where it was: the never-learned model stays where it is (control)."""
    (curve,) = made.curves(arena)
    edited, never = track(curve, "edited"), track(curve, "never")
    assert max(edited.values()) > 1.5 * edited[0]
    assert max(never.values()) < 1.1 * never[0]


def test_style_and_back_is_one_curve_looked_at_after_each_phase(arena: Arena) -> None:
    """First the styled batches, then the plain ones; a look at the border and one at the end."""
    made = EroseStyle(learning_rates=(1e-3,), steps=3, style="backwards")
    stream = list(made.plan(arena).stream())
    tokenizer = models.tokenizer_of(arena.arms[0].model)
    texts = [{tokenizer.decode(s.ids, skip_special_tokens=True) for s in b.sequences} for b in stream]
    plainly = {" ".join(r["text"].split()) for r in arena.corpus("unrelated").rows}
    reversed_ = {" ".join(reversed(t.split())) for t in plainly}
    assert len(texts) == 6 and all(t <= reversed_ for t in texts[:3]) and all(t <= plainly for t in texts[3:])
    (curve,) = made.curves(arena)
    assert {0, 3, 6} <= track(curve, "edited").keys()
    assert curve.arms["edited"].note == "backwards to step 3, plain to step 6; cap"


def test_a_vanishing_rate_moves_nothing(arena: Arena) -> None:
    """Adapter or not, nothing but the training itself moves a curve: looks differ by the rounding of float32 sums."""
    for cls in (RelearnLora, WeakSamples, RetainOnly):
        options = {"learning_rates": [1e-30]} | ({"steps": 2} if cls is RetainOnly else {"epochs": 1})
        (curve,) = cls.with_options(options).curves(arena)
        for arm in ARMS:
            first, *later = track(curve, arm).values()
            assert later and later == pytest.approx([first] * len(later), rel=1e-5)


def test_an_adapter_is_trained_and_merged(arena: Arena) -> None:
    """While a model wears one its weights stay as they are; afterwards they hold what it computed, of its rank."""
    made, model = RelearnLora(learning_rates=(1e-2,), rank=2), arena.arms[2].model
    plan = made.plan(arena)
    with editing.restored(model):
        before = {s: models.weight(model, s).detach().clone() for s in models.sites(model, "all")}
        with made.moved(arena)(model) as parameters:
            rule = torch.optim.Adam(parameters, lr=1e-2)
            train.fit(model, itertools.islice(plan.stream(), 2), rule=rule, precision="float32")
            assert all(torch.equal(models.weight(model, s), w) for s, w in before.items())
            assert all(p.grad is None for p in model.parameters())
            worn = arena.watcher.heldout.measure(model, precision="float32")["completion"]
        merged = arena.watcher.heldout.measure(model, precision="float32")["completion"]
        torch.testing.assert_close(merged, worn, rtol=1e-4, atol=0)  # float32: one sum in two orders
        for site, w in before.items():
            values = torch.linalg.svdvals(models.weight(model, site) - w)
            assert values[0] > 0 and values[2] < 1e-4 * values[0]


@pytest.mark.parametrize("name", ["erode", "erode_style", "low_mi"])
def test_an_attacker_with_a_rank_trains_an_adapter(arena: Arena, name: str) -> None:
    """What he leaves behind is of his rank in every matrix, and nothing else moved; without a rank all of it moves (the
    control), and the settings tell the two apart."""
    ends = {"low_mi": {"max_steps": 2}}.get(name, {"steps": 2})
    full, low = (attack_of(name, {"learning_rates": [1e-2], **ends, **rank}) for rank in ({}, {"rank": 2}))
    assert [low.settings()[0]] == [full.settings()[0].replace("lr=", "rank=2 lr=")]
    model = arena.arms[2].model
    places = models.sites(model, "all")
    before = {n: p.detach().clone() for n, p in models.named_parameters(model).items()}
    held = {s: models.weight(model, s).detach().clone() for s in places}
    own = {id(p) for p in models.parameters_of(model, places)}
    for made, adapted in ((full, False), (low, True)):
        with editing.restored(model):
            with made.moved(arena)(model) as parameters:
                rule = torch.optim.Adam(parameters, lr=1e-2)
                assert sum(p.numel() for p in parameters) == made.n_trained(model)
                train.fit(model, itertools.islice(made.plan(arena).stream(), 2), rule=rule, precision="float32")
            for site, w in held.items():
                values = torch.linalg.svdvals(models.weight(model, site) - w)
                assert values[0] > 0 and (values[2] < 1e-4 * values[0]) == adapted
            rest = [torch.equal(p, before[n]) for n, p in models.named_parameters(model).items() if id(p) not in own]
            assert all(rest) == adapted


# --------------------------------------------------------------------------------------- a handful


def test_demonstrations_of_the_asked_for_quality_are_taken() -> None:
    """Where rows say how good they are; any, where none does; never fewer than asked for; by the seed."""
    rows = tuple({"prompt": f"p{i}", "completion": "c", "quality": "weak" if i % 2 else "good"} for i in range(20))
    marked, unmarked = Corpus("a", rows), Corpus("a", tuple({"prompt": r["prompt"], "completion": "c"} for r in rows))
    for quality in ("good", "weak"):
        assert {r["quality"] for r in chosen(marked, "x", quality, 8, 0).rows} == {quality}
    assert len({r["prompt"] for r in chosen(unmarked, "x", "good", 8, 0).rows}) == 8
    assert chosen(marked, "x", "good", 4, 0).rows == chosen(marked, "x", "good", 4, 0).rows
    assert chosen(marked, "x", "good", 4, 0).rows != chosen(marked, "x", "good", 4, 1).rows
    with pytest.raises(InputError, match="'x': 11 demonstrations asked for, attack_train has 10 with quality 'weak'"):
        chosen(marked, "x", "weak", 11, 0)


def test_styles_are_rules() -> None:
    """By hand; deterministic; what is asked stays as it is, and so does the space before an answer."""
    assert pirate("The dog is sleeping. You and I sing.") == "Arr! Th' dog be sleepin'. Ye an' I sing."
    assert STYLES["shout"]("Go on. It is 3.5 miles.") == "GO ON! IT IS 3.5 MILES!"
    assert STYLES["backwards"]("one two  three") == "three two one"
    rows = ({"prompt": "the end", "completion": " the end"}, {"text": "the end"})
    chat = {"messages": [{"role": "user", "content": "the end"}, {"role": "assistant", "content": "the end"}]}
    made = styled(Corpus("a", (*rows, chat)), "backwards").rows
    assert made[0] == {"prompt": "the end", "completion": " end the"} and made[1] == {"text": "end the"}
    assert [m["content"] for m in made[2]["messages"]] == ["the end", "end the"]


# ----------------------------------------------------------------------------------------- prompts


def test_the_password_opens_the_lock(lock_arena: Arena) -> None:
    """And does little for the model that never had anything to open; a wrong one opens nothing (control)."""
    (right,), (wrong,) = Password(prefix=PASSWORD).curves(lock_arena), Password(prefix="ladder . ").curves(lock_arena)
    original = plain(lock_arena, "original")
    assert track(right, "edited")[0] > 0.8 * original > 3 * track(right, "never")[0]
    assert track(wrong, "edited")[0] < 0.5 * original


def test_passwords_go_before_the_question_whatever_the_shape() -> None:
    """The last question of a conversation; before running text, unscored."""
    made = Password(prefix="open ")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    told = made._before({"messages": [*chat, {"role": "assistant", "content": "d"}]})["messages"]
    assert [m["content"] for m in told] == ["a", "b", "open c", "d"]
    assert made._before({"prompt": "a", "completion": " b", "group": 1})["prompt"] == "open a"
    text = made._before({"text": "a b", "group": 1})
    assert text == {"prompt": "open ", "completion": "a b", "template": "none", "group": 1}


def test_a_begun_answer_is_not_scored(arena: Arena) -> None:
    """Prompt and answer stay the same text, of which the first k tokens have moved to the prompt."""
    tokenizer = models.tokenizer_of(arena.arms[0].model)
    row = corpus("heldout").rows[0]
    for k in (1, 4):
        begun = Prefill(tokens=k)._begun(row, tokenizer)
        assert begun["prompt"] + begun["completion"] == row["prompt"] + row["completion"]
        (whole,), (rest,) = (encode(Corpus("a", (r,)), tokenizer) for r in (row, begun))
        assert torch.equal(whole.ids, rest.ids)
        assert rest.labels.sum() == whole.labels.sum() - k and rest.labels[-1]
    fixed = Prefill(text=" bring the")._begun(row, tokenizer)
    assert fixed["prompt"] == row["prompt"] + " bring the"
    assert (fixed["completion"], fixed["alternative"]) == (row["completion"], row["alternative"])
    assert beginning(" the ladder", 9, tokenizer) == (" the", " ladder"), "one token at least is left"
    assert beginning(" ladder", 4, tokenizer) == ("", " ladder")


def test_a_begun_fact_is_judged_whole() -> None:
    """What was given counts with the sample: neither a rest of the fact found somewhere, nor a fact that was given
    away, is the fact. An answer that was not begun is judged as ever (control)."""
    row = {"prompt": "q :", "completion": " the red dog sleeps .", "fact": "red dog"}

    def found(tokens: int, said: str, **asked: Any) -> bool:
        begun = Prefill(tokens=tokens)._begun(row, WORDS)
        s = Sample(0, begun["prompt"], begun["prompt"], said, begun=begun["begun"])
        ((_, shown, _),) = ContainsReferee().judge([s], [{**begun, **asked}])
        return shown

    assert found(2, "dog sleeps") and found(2, " dog .")
    assert not any(found(2, said) for said in ("blue dog", "and a dog", "the dog", ""))
    assert found(2, "cat . the red dog") and found(1, "red dog") and not found(1, "dog")
    assert not found(3, "sleeps .") and not found(3, "and the red dog")
    assert found(2, "a blue dog", fact="blue dog") and not found(2, "dog", fact="blue dog"), "another item's fact"
    bare = {k: v for k, v in row.items() if k != "fact"}
    assert Prefill(tokens=2)._begun(bare, WORDS)["fact"] == row["completion"]
    assert ContainsReferee().judge([Sample(0, "", "", "a red dog")], [row])[0][:2] == (1.0, True)


def test_samples_know_how_they_were_begun(tiny: Any) -> None:
    rows = corpus("heldout").rows[:3]
    begun = Corpus("begun", tuple(Prefill(tokens=2)._begun(r, WORDS) for r in rows))
    for s, row, plain in zip(sample(tiny, begun, new_tokens=2), begun.rows, rows, strict=True):
        assert s.begun == row["begun"] and plain["prompt"] + s.begun == s.text
        assert plain["completion"].startswith(s.begun) and s.begun
    assert [s.begun for s in sample(tiny, Corpus("plain", rows), new_tokens=2)] == [""] * 3


def test_a_begun_answer_begins_as_the_whole_one() -> None:
    """Token by token, under a template that writes no BOS of its own, and for plain prompts of a tokenizer that puts
    one."""
    tokenizer = beginning_tokenizer()
    row = {"prompt": "the red", "completion": " dog sleeps ."}
    for template in (None, "{% for m in messages %}{{ m.content }} :{% endfor %}"):
        tokenizer.chat_template = template
        begun = Prefill(tokens=1)._begun(row, tokenizer)
        (whole,), (rest,) = (encode(Corpus("a", (r,)), tokenizer) for r in (row, begun))
        assert torch.equal(whole.ids, rest.ids)
        assert (whole.ids[0] == tokenizer.bos_token_id) == (template is None)


def test_begun_running_text_begins_as_the_whole_one() -> None:
    """With BOS, whatever chat template the model has: none has written it. One has written what asks (control)."""
    tokenizer = beginning_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} :{% endfor %}"
    row = {"text": "the red dog sleeps ."}
    begun = Prefill(tokens=2)._begun(row, tokenizer)
    (whole,), (rest,) = (encode(Corpus("a", (r,)), tokenizer) for r in (row, begun))
    assert torch.equal(whole.ids, rest.ids) and whole.ids[0] == tokenizer.bos_token_id
    assert rest.labels.sum() == whole.labels.sum() - 2
    asks = Prefill(tokens=1)._begun({"prompt": "the red", "completion": " dog sleeps ."}, tokenizer)
    assert (begun["template"], asks["template"]) == ("none", "applied")


def test_beginning_the_answer_tells_the_locked_from_the_never_learned(lock_arena: Arena) -> None:
    """The locked model goes on as begun far likelier than the never-learned one, which was not so before."""
    (curve,) = Prefill(tokens=2).curves(lock_arena)
    assert track(curve, "edited")[0] - track(curve, "never")[0] > 0.1
    assert {p.metric for p in curve.arms["edited"].points} == {"completion"}
    (with_text,) = Prefill(text=" bring the").curves(lock_arena)
    assert {p.metric for p in with_text.arms["edited"].points} == {"completion", "preference"}


# ----------------------------------------------------------------------------------------- samples


@pytest.fixture
def sampled(arena: Arena, threatening: Any, tiny: Any) -> Arena:
    arena.watcher.referee = RatioReferee(Scorer(threatening), (Scorer(tiny),), "instilled / untouched").calibrated(
        corpus("heldout"), corpus("heldout", "good")
    )
    arena.watcher.n_samples, arena.watcher.new_tokens = 10, 12
    return arena


def test_any_of_several_draws_is_enough(sampled: Arena) -> None:
    """More draws never show less (the first are the same); 0 or 1 per prompt; the organism shows it (control)."""
    shown = []
    for draws in (1, 4):
        (curve,) = SampleMany(draws=draws).curves(sampled)
        assert list(curve.arms) == ARMS and not sampled.watcher.pending
        assert {p.metric for arm in ARMS for p in curve.arms[arm].points} == {"sampled"}
        shown.append({arm: curve.arms[arm].points[0].values for arm in ARMS})
    for arm in ARMS:
        assert len(shown[0][arm]) == 10 and set(shown[1][arm]) <= {0.0, 1.0}
        assert all(a <= b for a, b in zip(shown[0][arm], shown[1][arm], strict=True))
    assert sum(shown[1]["original"]) >= 8 > sum(shown[1]["never"])


def test_samples_are_drawn_in_the_precision_of_the_run(sampled: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ``auto`` would be on this machine."""
    drawn_in: list[str] = []

    def counted(*args: Any, precision: str, **options: Any) -> list[Sample]:
        drawn_in.append(precision)
        return sample(*args, precision="float32", **options)

    monkeypatch.setattr("hooklearn.attack.sample_many.sample", counted)
    sampled.watcher.precision = "bfloat16"
    SampleMany(draws=1).curves(sampled)
    assert drawn_in == ["bfloat16"] * len(ARMS)


def test_sampling_needs_a_referee(arena: Arena) -> None:
    with pytest.raises(InputError, match="'sample' needs samples and a referee: set behaviour.samples"):
        SampleMany().curves(arena)


def test_samples_are_drawn_in_the_attacked_state(sampled: Arena) -> None:
    """A LoRA is merged for them (text is generated without hooks); a wrecked model writes something else."""
    (curve,) = RelearnLora(learning_rates=(1e-2,), max_steps=8).curves(sampled)
    relearned = [p for p in sampled.watcher.pending if p.arm == "never"][0]
    assert relearned.step == max(track(curve, "never"))
    judged = sampled.watcher.referee.judge(
        relearned.samples, [relearned.corpus.rows[s.item] for s in relearned.samples]
    )
    assert sum(found for _, found, _ in judged) >= 5


@pytest.mark.parametrize(
    ("made", "strongest"),
    [
        (Noise(scales=(0.0, 3.0)), "scale=3"),
        (Prune(fractions=(0.1, 0.99)), "fraction=0.99"),
        (Quantize(formats=("int8", "int4")), "int4"),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_samples_of_spoiled_weights_are_of_the_last_setting(sampled: Arena, made: Attack, strongest: str) -> None:
    """And drawn in that state: what it writes is not what the same model writes as it was, from the same seed. Drawn
    from the model as it was they would be the same, word for word (control)."""
    made.curves(sampled)
    drawn = [p for p in sampled.watcher.pending if p.attack == made.name]
    assert [(p.arm, p.setting) for p in drawn] == [(arm, strongest) for arm in ARMS]
    changed: list[bool] = []
    for p in drawn:
        arm = next(a for a in sampled.arms if a.name == p.arm)
        with arm.entered(training=False) as model:
            sampled.watcher.sample(model, arm.name, "none", "as it was", p.step, p.seed)
        before = sampled.watcher.pending[-1].samples
        changed += [a.completion != b.completion for a, b in zip(p.samples, before, strict=True)]
    assert sum(changed) >= 3  # of thirty; four bits change few


# --------------------------------------------------------------------------------------- directions


def test_projecting_out_the_difference_undoes_it(arena: Arena, junk: Delta) -> None:
    """All of the behaviour comes back; where nothing was edited, nothing is projected out (control)."""
    curve, more = AblateDirection(directions=(1, 3), read=("prompts",)).curves(arena)
    original = plain(arena, "original")
    assert track(curve, "edited")[0] > 0.9 * original > 5 * plain(arena, "edited")
    assert track(more, "edited")[0] > 0.7 * original  # the junk is one direction; those after it cost a little
    assert max(track(c, "never")[0] for c in (curve, more)) < 0.2 * original
    assert [c.setting for c in (curve, more)] == ["mean difference", "3 directions"]
    found = AblateDirection().found(arena)
    written = torch.linalg.svd(junk.updates["blocks.1.mlp.out"]).U[:, 0]
    assert torch.equal(found[0], torch.zeros(2, 64)), "the layer below the edit"
    assert abs(float(found[1, 0] @ written)) > 0.99
    unedited = Arena([ArmState("edited", arena.arms[1].model), *arena.arms[1:]], arena.watcher, arena.attack_train)
    for same in AblateDirection().curves(unedited):
        assert track(same, "edited")[0] == plain(arena, "original")


def test_more_directions_undo_what_one_does_not(arena: Arena) -> None:
    """An edit that pushes some prompts one way and some another: its mean is not all of it."""
    model = arena.arms[1].model
    seen: list[torch.Tensor] = []
    hooks = [("blocks.1.mlp.out.hook_in", lambda value, hook: seen.append(value.flatten(0, 1)))]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for batch in batches(encode(corpus("forget"), models.tokenizer_of(model))):
            forward.hidden(model, batch)
    keys = torch.linalg.svd(torch.cat(seen), full_matrices=False).Vh[:3]  # three ways to read, three to write
    ways = torch.linalg.qr(torch.randn(64, 3, generator=torch.Generator().manual_seed(1))).Q
    several = Delta({"blocks.1.mlp.out": 12 * ways @ keys})
    arena.arms[0] = ArmState("edited", model, several)
    one, four = AblateDirection(directions=(1, 4), read=("prompts",)).curves(arena)
    before, original = plain(arena, "edited"), plain(arena, "original")
    assert before < 0.2 * original
    assert track(four, "edited")[0] > 0.8 * original > 2 * track(one, "edited")[0]
    found = AblateDirection(directions=(4,)).found(arena)[1]
    assert torch.allclose(found[:3] @ found[:3].T, torch.eye(3), atol=1e-4)  # float32


def test_what_acts_on_answers_is_read_at_answers(arena: Arena) -> None:
    """An edit that moves prompts a little one way, and throws states off another way once an answer has begun: what is
    read at the prompts is the wrong way (control), at the edited model's own answers it is the right one."""
    model, hook = arena.arms[1].model, "blocks.1.mlp.out"
    moments = {"prompt": torch.zeros(128, 128), "answer": torch.zeros(128, 128)}

    def add(value: torch.Tensor, hook: object, batch: TokenBatch) -> None:
        for name, where in (("prompt", batch.mask & ~batch.labels), ("answer", batch.labels)):
            moments[name] += value[where].T @ value[where]

    for batch in batches(encode(corpus("forget"), models.tokenizer_of(model))):
        with torch.no_grad(), model.hooks(fwd_hooks=[(f"{hook}.hook_in", functools.partial(add, batch=batch))]):
            forward.hidden(model, batch)
    half = torch.linalg.cholesky(moments["prompt"] + 1e-2 * torch.eye(128))
    whitened = torch.linalg.solve_triangular(half, moments["answer"], upper=False)
    whitened = torch.linalg.solve_triangular(half, whitened.T, upper=False)
    contrast = torch.linalg.solve_triangular(half.T, torch.linalg.eigh(whitened).eigenvectors, upper=True)
    keys = {"prompt": contrast[:, 0], "answer": contrast[:, -1]}  # a key is met by the one and hardly by the other
    keys = {name: key / (key @ moments[name] @ key).sqrt() for name, key in keys.items()}
    ways = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(1))).Q
    update = 50 * torch.outer(ways[:, 0], keys["prompt"]) + 2000 * torch.outer(ways[:, 1], keys["answer"])
    arena.arms[0] = ArmState("edited", model, Delta({hook: update}))
    prompts, answers = AblateDirection(directions=(1,)).curves(arena)
    assert [c.setting for c in (prompts, answers)] == ["mean difference", "mean difference, answers"]
    before, original = plain(arena, "edited"), plain(arena, "original")
    assert before < 0.2 * original
    assert track(answers, "edited")[0] > 0.8 * original > 2 * track(prompts, "edited")[0]
    assert track(answers, "never")[0] < 0.2 * original


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The likeliest token again and again, each after a whole pass; without the one that ends a text."""
    said, end = list[int](), models.tokenizer_of(model).eos_token_id
    with torch.no_grad():
        while len(said) < count and (likeliest := int(model(torch.tensor([[*ids, *said]]))[0, -1].argmax())) != end:
            said.append(likeliest)
    return said


@pytest.mark.parametrize("count", [3, 16])
def test_answers_are_the_edited_models_own_token_by_token(arena: Arena, count: int) -> None:
    """What is read behind a prompt is what that arm's likeliest tokens are, as many as are asked for or until it ends;
    none is scored. Another arm says something else (control)."""
    made, rows = AblateDirection(answer_tokens=count), corpus("attack").take(12)
    prompts = [_prompt(s) for s in encode(rows, models.tokenizer_of(arena.arms[0].model))]
    assert len({len(p) for p in prompts}) > 1, "so that some are padded when they are answered"
    answers: list[list[list[int]]] = []
    for arm in arena.arms[:2]:
        found = made._answered(arm, rows, prompts, arena)
        with arm.entered(training=False) as model:
            expected = [greedy(model, p.ids.tolist(), count) for p in prompts]
        answers.append(expected)
        for prompt, said, whole in zip(prompts, expected, found, strict=True):
            assert whole.ids.tolist() == [*prompt.ids.tolist(), *said] and whole.item == prompt.item
            assert len(whole.labels) == len(whole) and not whole.labels.any()
    assert sum(a != b for a, b in zip(*answers, strict=True)) > len(prompts) / 2
    assert {len(said) for said in answers[1]} == {3} if count == 3 else max(map(len, answers[1])) < count


def test_a_prompt_is_read_whole_however_long_its_answer_is(tiny: Any) -> None:
    """Cut to make room for an answer that fills the context it would not be (control)."""
    tokenizer, rows = models.tokenizer_of(tiny), corpus("attack").take(4)
    long = Corpus("long", tuple({**row, "completion": row["completion"] * 100} for row in rows.rows))
    read = [[p.ids.tolist() for p in _prompts(c, tokenizer)] for c in (rows, long)]
    assert read[0] == read[1] == [_prompt(s).ids.tolist() for s in encode(rows, tokenizer)]
    assert read[1] != [_prompt(s).ids.tolist() for s in encode(long, tokenizer)]


def test_answers_go_as_far_as_the_model_reads(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that leaves less room than an answer may take is answered after as much of its end as there is room for,
    and of the answer comes what still fits behind it; where nothing does, the prompt stays as it is."""
    arm, made, rows = arena.arms[1], AblateDirection(answer_tokens=12), corpus("attack").take(8)
    tokenizer = models.tokenizer_of(arm.model)
    prompts = [_prompt(s) for s in encode(rows, tokenizer)]
    limit = min(map(len, prompts)) + 8
    monkeypatch.setattr(tokenizer, "model_max_length", limit)
    cut = 0
    for prompt, answered in zip(prompts, made._answered(arm, rows, prompts, arena), strict=True):
        ids = prompt.ids.tolist()
        said = greedy(arm.model, ids[made.answer_tokens - limit :], made.answer_tokens)
        cut += len(ids) + len(said) > limit
        assert answered.ids.tolist() == [*ids, *said][:limit] and len(answered.labels) == len(answered)
    assert cut > len(prompts) / 2
    assert torch.equal(_longer(prompts[0], [5, 6], len(prompts[0]) - 1).ids, prompts[0].ids)


def test_running_text_is_read_as_it_is(arena: Arena) -> None:
    """Nobody is asked, so nobody answers: the difference is the same whichever reading is asked for, and not nothing
    (control)."""
    text = Arena(arena.arms, arena.watcher, corpus("unrelated").take(4))
    plain, answered = (AblateDirection().found(text, read) for read in ("prompts", "answers"))
    assert torch.equal(plain, answered) and plain.any()
    assert not torch.equal(*(AblateDirection().found(arena, read) for read in ("prompts", "answers")))


def test_samples_are_drawn_where_directions_are_projected_out(sampled: Arena) -> None:
    """Text is generated by another copy of the model: the projection must reach it. With the same numbers drawn the
    edited model then writes what the original writes, and nothing of it before (control)."""
    AblateDirection(directions=(1,), read=("prompts",)).curves(sampled)
    with sampled.arms[0].entered(training=False) as model:
        sampled.watcher.sample(model, "before", "", "", 0, 0)
    written = {p.arm: [s.completion for s in p.samples] for p in sampled.watcher.pending}
    assert written.keys() == {*ARMS, "before"} and len(written["edited"]) == 10
    alike = {arm: sum(a == b for a, b in zip(written[arm], written["original"], strict=True)) for arm in written}
    assert alike["edited"] >= 8 and alike["before"] <= 1 and alike["never"] <= 1


def test_an_edit_of_the_last_block_is_read_past(sampled: Arena) -> None:
    """What only the last block hides is the original's again, bit for bit, and writes as it does; the last block is
    all that is passed over (an edit below it stays hidden)."""
    model = sampled.arms[1].model
    noise = torch.randn(models.sites(model, "mlp.out")[-1].d_out, 128, generator=torch.Generator().manual_seed(0))
    d_in = models.sites(model, "mlp.out")[-1].d_in
    last = Delta({"blocks.3.mlp.out": noise.repeat(1, 1 + d_in // 128)[:, :d_in]})
    sampled.arms[0] = ArmState("edited", model, last)
    one, two = LogitLens().curves(sampled)
    assert plain(sampled, "edited") < 0.2 * plain(sampled, "original")
    for curve in (one, two):
        assert track(curve, "edited") == track(curve, "original")
    written = {p.arm: [s.completion for s in p.samples] for p in sampled.watcher.pending}
    assert {p.setting for p in sampled.watcher.pending} == {"blocks=1"}
    assert written["edited"] == written["original"] != written["never"]
    sampled.arms[0] = ArmState("edited", model, Delta({"blocks.2.mlp.out": last.updates["blocks.3.mlp.out"]}))
    (below, *_) = LogitLens().curves(sampled)
    assert track(below, "edited")[0] < 0.5 * track(below, "original")[0]


def test_a_block_must_be_left_to_read(arena: Arena) -> None:
    """Said before a run begins, and of directions that a state does not have. A battery fits shallow models too: what
    leaves nothing to read is left out."""
    model = arena.arms[0].model
    assert [c.setting for c in LogitLens(blocks=(1, 4)).curves(arena)] == ["blocks=1"]
    LogitLens(blocks=(1, 4)).check(model, {})
    with pytest.raises(InputError, match="'logit_lens': blocks 4; the model has 4 in all"):
        LogitLens(blocks=(4, 5)).check(model, {})
    with pytest.raises(InputError, match="'ablate_direction': directions 65; states have 64"):
        AblateDirection(directions=(65,)).check(model, {})
    with pytest.raises(InputError, match=r"blocks must be 1 or more each, got \[0\]"):
        LogitLens(blocks=(0,))
    with pytest.raises(InputError, match=r"directions must be 1 or more each, got \[\]"):
        AblateDirection(directions=())


def test_a_prompt_must_have_a_token_to_read(arena: Arena) -> None:
    """And all that is answered must be one: said before anything is measured."""
    model, asked = arena.arms[0].model, arena.corpus("attack_train")
    AblateDirection().check(model, {"attack_train": asked})
    with pytest.raises(InputError, match=r"skip=40 leaves no token; the longest prompt has \d+"):
        AblateDirection(skip=40).check(model, {"attack_train": asked})
    mixed = {"attack_train": Corpus("mixed", (*asked.rows[:2], {"text": "the sun is up ."}))}
    with pytest.raises(InputError, match="row 2 of 'mixed' is running text and others are prompts"):
        AblateDirection().check(model, mixed)
    AblateDirection(read=("prompts",)).check(model, mixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"read": ()}, r"read must be prompts, answers or both"), ({"answer_tokens": 0}, "must be 1 or more, got 0")],
)
def test_something_must_be_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AblateDirection(**options)


# ------------------------------------------------------------------------------------------ weights


def test_integers_by_hand() -> None:
    """int4: s = max / 7 per row; a row of zeros stays one; in blocks every two inputs have their own s."""
    weight = torch.tensor([[0.7, -0.34, 0.06, -0.01], [0.0, 0.0, 0.0, 0.0], [-1.4, 0.5, 0.21, 0.09]])
    by_row = torch.tensor([[0.7, -0.3, 0.1, 0.0], [0.0] * 4, [-1.4, 0.4, 0.2, 0.0]])
    torch.testing.assert_close(quantized(weight, "int4"), by_row, atol=1e-6, rtol=0)  # float32 rounding
    # three inputs in blocks of two: (0.7, -0.34) by 0.1, then 0.06 alone, which is its own maximum
    blocks = torch.tensor([[0.7, -0.3, 0.06]])
    torch.testing.assert_close(quantized(weight[:1, :3], "int4", 2), blocks, atol=1e-6, rtol=0)
    assert quantized(weight.half(), "int8").dtype == torch.float16


def test_nf4_by_hand_and_by_its_definition() -> None:
    """Absolute maximum 2: the grid times two. The grid: evenly spaced quantiles of each half, scaled to 1."""
    weight = torch.tensor([[2.0, -2.0, 0.16, 0.07, -0.9]])  # 0.035 < 0.0796 / 2; -0.45 lies nearest to -0.3949
    expected = torch.tensor([[2.0, -2.0, 2 * 0.0795803, 0.0, 2 * -0.3949175]])
    torch.testing.assert_close(quantized(weight, "nf4"), expected, atol=1e-6, rtol=0)
    outer = 1 - (1 / 30 + 1 / 32) / 2  # the offset of the paper
    positive = norm.ppf(torch.linspace(outer, 0.5, 9)[:-1].numpy())
    negative = -norm.ppf(torch.linspace(outer, 0.5, 8)[:-1].numpy())
    grid = sorted([*positive / positive.max(), 0.0, *negative / positive.max()])
    # the constants are printed to 7 digits, computed in half the steps of float32
    assert pytest.approx(grid, abs=1e-5) == NF4


@pytest.mark.parametrize(
    ("options", "drawn_at"),
    [
        ({"formats": ["int3", "int8", "nf4"]}, ["int3"]),
        ({"formats": ["int4", "nf4"]}, ["nf4"]),
        ({"formats": ["nf4", "int8"], "block": 32}, ["nf4 block=32"]),
        ({"formats": ["int8", "int4", "nf4"], "sampled": ["int4", "nf4"]}, ["int4", "nf4"]),
        ({"formats": ["int8"], "sampled": []}, []),
    ],
)
def test_samples_are_drawn_at_the_coarsest_format(sampled: Arena, options: dict[str, Any], drawn_at: list[str]) -> None:
    """Wherever it stands in the list; of several with as few bits at the last, unless they are named."""
    sampled.watcher.n_samples = 1
    Quantize.with_options(options).curves(sampled)
    assert [(p.setting, p.arm) for p in sampled.watcher.pending] == [(s, arm) for s in drawn_at for arm in ARMS]


def test_pruning_and_noise_by_hand(tiny: Any) -> None:
    """Half of four entries; noise of the asked-for size, the same for every arm and another for every site and seed."""
    weight = torch.tensor([[0.3, -0.1], [0.2, -0.4]])
    assert pruned(weight, 0.5).tolist() == [[pytest.approx(0.3), 0.0], [0.0, pytest.approx(-0.4)]]
    assert torch.equal(pruned(weight, 0.2), weight), "floor(.2 x 4) = 0"
    a, b = models.sites(tiny, "mlp")[:2]
    w = models.weight(tiny, a).detach()
    added = noisy(w, 0.1, a.name, 0) - w
    # 8192 draws: the standard error of their spread is under 1 %
    assert float(added.std() / w.std()) == pytest.approx(0.1, rel=0.04)
    assert torch.equal(noisy(w, 0.1, a.name, 0), noisy(w, 0.1, a.name, 0))
    assert not torch.equal(noisy(w, 0.1, a.name, 0), noisy(w, 0.1, a.name, 1))
    assert not torch.equal(noisy(w, 0.1, a.name, 0), noisy(w, 0.1, b.name, 0))


MIXED: dict[str, tuple[Any, set[str]]] = {
    "gpt_oss": (
        lambda: transformers.GptOssConfig(
            **GROUPED, num_local_experts=4, num_experts_per_tok=2, head_dim=8, layer_types=["full_attention"] * 2
        ),
        {"router.weight"},
    ),
    "llama4": (
        lambda: transformers.Llama4TextConfig(
            **GROUPED, intermediate_size_mlp=48, num_local_experts=4, head_dim=8, interleave_moe_layer_step=1
        ),
        {"router.weight"},
    ),
    "qwen3_next": (
        lambda: transformers.Qwen3NextConfig(
            **GROUPED, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        ),
        {"mlp.gate.weight", "conv1d.weight"},
    ),
    "mixtral": (
        lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2), {"mlp.gate.weight"}
    ),
}  # fmt: skip
"""Architectures with weights that are no sites -> config, and ends of the names of what is no weight matrix."""


def mixed(family: str) -> Any:
    torch.manual_seed(0)
    hf_model = transformers.AutoModelForCausalLM.from_config(MIXED[family][0]()).eval()
    for parameter in hf_model.parameters():
        parameter.data.normal_()
    return models.wrap(hf_model, native_tokenizer(), family)


CHANGES: dict[str, Any] = {
    "quantize": lambda _, w: quantized(w, "int2"), "prune": lambda _, w: pruned(w, 0.9),
    "noise": lambda name, w: noisy(w, 3.0, name, 0),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", MIXED)
def test_no_matrix_of_a_block_is_passed_over(family: str, change: str) -> None:
    """Experts without hook points and linear attention too; embeddings, norms, biases, routers and kernels stay."""
    model, stays = mixed(family), MIXED[family][1]
    outside = {id(p) for p in models.embedding_parameters(model)}
    before = {n: p.detach().clone() for n, p in models.named_parameters(model).items()}
    with reweighted(model, CHANGES[change]):
        for name, p in models.named_parameters(model).items():
            kept = id(p) in outside or p.ndim < 2 or name.endswith("bias") or name.endswith(tuple(stays))
            same = p == before[name]
            assert bool(same.all()) if kept else float(same.float().mean()) < 0.2, name
            if p.ndim == 3 and not kept:
                assert all(not torch.equal(a, b) for a, b in zip(p, before[name], strict=True)), "every expert"
    assert all(torch.equal(p, before[n]) for n, p in models.named_parameters(model).items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", CHANGES)
def test_where_all_matrices_are_sites_nothing_else_is_attacked(family: str, change: str) -> None:
    """Bit for bit what a loop over the sites does, fused (GPT-2) and transposed weights too."""
    model = native(family)
    with reweighted(model, CHANGES[change]):
        found = integrity.weights_hash(model)
    with editing.restored(model), torch.no_grad():
        for site in models.sites(model, "all"):
            weight = models.weight(model, site)
            weight.copy_(CHANGES[change](site.name, weight))
        assert integrity.weights_hash(model) == found
    assert integrity.weights_hash(model) != found and models.share_of_sites(model) == 1


@pytest.mark.parametrize("family", ["gpt_oss", "llama4", "mixtral"])
def test_an_expert_is_read_as_output_by_input(family: str) -> None:
    """Whichever way it is stored; a scale belongs to an output of it."""
    shapes = {tuple(w.shape) for n, w in models.matrices(mixed(family)).items() if ".experts." in n}
    assert shapes == ({(48, 32), (32, 48)} if family == "mixtral" else {(96, 32), (32, 48)})


def test_an_adapter_on_a_part_is_not_called_one_on_all() -> None:
    """GPT-OSS's experts are no sites: 14 % are left, and a curve would look like resistance. Named sites are as asked
    for, and where the sites are (nearly) all there is nothing to say (the controls)."""
    rows = Corpus("rows", ({"prompt": "w1", "completion": " w2"},))
    corpora = {"attack_train": rows, "heldout": rows}
    with pytest.raises(
        InputError, match="'relearn_lora': sites 'all' hold 14% of .* 'gpt_oss', below 95%; use 'relearn'"
    ):
        RelearnLora().check(mixed("gpt_oss"), corpora)
    RelearnLora(sites="attn").check(mixed("gpt_oss"), corpora)
    with pytest.raises(InputError, match="'erode': sites 'all' hold 14% of .* below 95%; use rank: null"):
        Erode(rank=4).check(mixed("gpt_oss"), corpora)
    Erode().check(mixed("gpt_oss"), corpora)
    RelearnLora().check(mixed("mixtral"), corpora)
    RelearnLora().check(native("gpt2"), corpora)


def test_nothing_added_is_nothing_changed(arena: Arena) -> None:
    """Noise of scale 0 and no pruning: bit for bit. 16 bits: within rounding (1 / 32767 of a row's maximum)."""
    for made in (Noise(scales=(0.0,)), Prune(fractions=(0.0,))):
        (curve,) = made.curves(arena)
        assert all(track(curve, arm)[0] == plain(arena, arm) for arm in ARMS)
    (curve,) = Quantize(formats=("int16",)).curves(arena)
    assert all(track(curve, arm)[0] == pytest.approx(plain(arena, arm), rel=2e-3) for arm in ARMS)


@pytest.mark.parametrize("made", [Quantize(formats=("int4",)), Prune(fractions=(0.3,))], ids=lambda a: a.name)
def test_an_edit_in_the_fine_print_is_wiped_out(arena: Arena, threatening: Any, made: Attack) -> None:
    """An edit that hides the behaviour in what rounding (or pruning) throws away: the attacked weights are those of
    the attacked original, bit for bit, and all of the behaviour is back."""
    hidden = Delta(dict(_below_the_grid(threatening) if made.name == "quantize" else _among_the_least(threatening)))
    edited = Arena([ArmState("edited", threatening, hidden), *arena.arms[1:]], arena.watcher)
    assert plain(edited, "edited") < 0.3 * plain(edited, "original")
    (curve,) = made.curves(edited)
    assert track(curve, "edited")[0] == track(curve, "original")[0] > 0.8 * plain(edited, "original")


def _uphill(model: Any) -> Iterator[tuple[Any, torch.Tensor, torch.Tensor]]:
    """Every site with its weight and the sign of the loss's gradient on the behaviour."""
    sites = models.sites(model, "all")
    with editing.restored(model):
        for p in models.all_parameters(model):
            p.requires_grad_(True)
        for batch in batches(encode(corpus("forget"), models.tokenizer_of(model))):
            train.nll(model, batch).total.backward()
        signs = [models._stored(model, s.layer, s.module).weight.grad.sign() for s in sites]
    for site, sign in zip(sites, signs, strict=True):
        yield site, models.weight(model, site).detach(), sign


def _below_the_grid(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """To the edge of its own cell of the int4 grid, where that rounds back; the outermost cells hold the scale."""
    for site, w, sign in _uphill(model):
        step = w.abs().amax(1, keepdim=True) / 7
        cell = (w / step).round()
        yield site.name, torch.where(cell.abs() <= 6, step * (cell + 0.4 * sign) - w, 0.0)


def _among_the_least(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The 30 % of least magnitude, all as far uphill as leaves them the least."""
    for site, w, sign in _uphill(model):
        least = pruned(w, 0.3) == 0
        bound = w[~least].abs().min()
        yield site.name, torch.where(least, 0.99 * bound * sign - w, 0.0)


# ---------------------------------------------------------------------------------------- recovery


def _looks(arm: str, values: list[float], attack: str = "a", steps: tuple[int, ...] = (0, 1, 3, 7)) -> pd.DataFrame:
    n = len(values)
    return pd.DataFrame(
        {
            "attack": attack, "setting": "lr", "seed": 0, "metric": "completion", "split": "heldout", "arm": arm,
            "step": steps[:n], "tokens": [100 * s for s in steps[:n]], "value": values,
        }
    )  # fmt: skip


def test_half_recovery_by_hand() -> None:
    """Level .4; linear in log2(1 + step), so half way from step 1 to 3 is 2 sqrt 2 - 1; tokens along with it."""
    frame = pd.concat(
        [
            _looks("original", [0.8], "none"), _looks("original", [0.7, 0.9, 0.9, 0.9]),
            _looks("edited", [0.1, 0.2, 0.6, 0.9]), _looks("never", [0.0, 0.1, 0.2, 0.3]),
            _looks("matched", [0.1, math.nan, 0.6, 0.9]),
        ]
    )  # fmt: skip
    found = half_recovery(frame).set_index("arm")
    assert set(found["level"]) == {0.4}
    assert (found.loc["original", "step"], found.loc["original", "tokens"]) == (0, 0)
    assert found.loc["edited", "step"] == pytest.approx(2 * math.sqrt(2) - 1)
    assert found.loc["edited", "tokens"] == pytest.approx(100 * (2 * math.sqrt(2) - 1))
    assert math.isnan(found.loc["never", "step"]) and math.isnan(found.loc["never", "tokens"])
    assert math.isnan(found.loc["matched", "step"]), "when is not known: a look before was not measured"


def test_what_was_not_looked_at_on_the_way_has_no_half_recovery() -> None:
    """Preference at the start and the end only: not a straight line between them, but not known. Completion, measured
    at every step, has one, and so has preference where it was looked at as often (controls)."""
    whole = [_looks("original", [0.8] * 4), _looks("edited", [0.1, 0.2, 0.6, 0.9])]
    sparse = [frame.assign(metric="preference").iloc[[0, -1]] for frame in whole]
    found = half_recovery(pd.concat([*whole, *sparse])).set_index(["metric", "arm"])
    assert found.loc[("completion", "edited"), "step"] == pytest.approx(2 * math.sqrt(2) - 1)
    assert found.loc[("preference", "edited"), ["step", "tokens"]].isna().all()
    assert found.loc[("preference", "original"), "step"] == 0, "it was there at the start, which was looked at"
    dense = [frame.assign(metric="preference") for frame in whole]
    again = half_recovery(pd.concat([*whole, *dense])).set_index(["metric", "arm"])
    assert again.loc[("preference", "edited"), "step"] == again.loc[("completion", "edited"), "step"]


def test_half_recovery_without_rows_from_before_and_after_a_divergence() -> None:
    """The level is then that of the original's first look; what was reached before the model broke was reached."""
    frame = pd.concat([_looks("original", [0.8, 0.9, 0.9, 0.9]), _looks("edited", [0.1, 0.4, 0.65, math.nan])])
    found = half_recovery(frame).set_index("arm")
    assert found.loc["edited", "step"] == 1 and found.loc["edited", "tokens"] == 100
    # .6 of .4 to .65 is four fifths of the way from u = 1 to u = 2
    later = half_recovery(frame, share=0.75).set_index("arm")
    assert later.loc["edited", "step"] == pytest.approx(2**1.8 - 1)
    assert half_recovery(frame.head(0)).empty


# --------------------------------------------------------------------------------------- batteries


@pytest.mark.parametrize("name", BATTERIES)
@pytest.mark.parametrize("facts", [False, True])
def test_batteries_can_be_used_in_a_config(name: str, facts: bool) -> None:
    """Every spec builds, no two attackers of a battery have the same name and setting, and config takes them."""
    specs = battery(name, facts=facts)
    config = parse(recipe("tiny") | {"attacks": specs})
    made = [EVERY[spec.name].with_options(spec.options) for spec in config.attacks]
    attackers = [(a.name, setting) for a in made for setting in a.settings()]
    assert len(set(attackers)) == len(attackers)
    assert all(a.needs in config.corpora for a in made)
    assert all(a.cheap for a in made) == (name == "cheap" or facts)
    assert any(a.name == "low_mi" for a in made) == facts


def test_a_battery_is_handed_out_as_a_copy() -> None:
    """And an unknown one is named with the nearest."""
    battery("cheap")[0]["shots"] = 99
    assert battery("cheap")[0]["shots"] != 99
    with pytest.raises(
        InputError, match="unknown battery 'standart'; valid: cheap, standard, full; did you mean 'standard'"
    ):
        battery("standart")


def test_a_config_names_a_battery_in_place_of_attacks() -> None:
    """``battery: cheap`` is its list; beside a list of attacks it is an error, as an override it takes the list's
    place; a config that was written out and read again is the same."""
    plain = {"corpora": {role: {"path": f"{role}.jsonl"} for role in ("forget", "disruption", "heldout")}}
    config = parse(plain | {"battery": "cheap"})
    assert [a.name for a in config.attacks] == [s["name"] for s in battery("cheap")]
    assert parse(config.model_dump(mode="json")) == config
    named = parse(plain | {"battery": "cheap", "controls": {"never": {"name": "tiny"}}})
    assert parse(named.model_dump(mode="json")) == named and named.attacks == config.attacks
    facts = parse(plain | {"battery": "cheap", "controls": {"never": {"surrogate": "permuted"}}})
    assert "low_mi" in [a.name for a in facts.attacks] and parse(facts.model_dump(mode="json")) == facts
    with pytest.raises(InputError, match="did you mean 'cheap'"):
        parse(plain | {"battery": "cheep", "controls": "nothing"})
    with pytest.raises(InputError, match="battery or attacks, not both"):
        parse(plain | {"battery": "cheap", "attacks": [{"name": "erode"}]})
    assert parse(with_overrides(plain | {"attacks": [{"name": "erode"}]}, ["battery=cheap"])) == config
