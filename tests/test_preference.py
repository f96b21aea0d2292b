"""Preference and likelihood methods: losses by hand, references that match their rows, walks to the budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import corpus
from editing import problem_of
from torch import Tensor

from hooklearn import editing, forward, integrity, losses, models
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import ROW, Encoded, TokenBatch, batches, encode, load_corpus, split_row
from hooklearn.deltas import Delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import LANDING, Problem, run_edit
from hooklearn.edit.ascent import GradDiff
from hooklearn.edit.descent import training_stream
from hooklearn.edit.elicited import Adversary
from hooklearn.edit.preference import (
    DPO,
    NPO,
    Refusal,
    SimNPO,
    Undial,
    dpo_loss,
    npo_loss,
    paired,
    refused,
    sequence_nlls,
    simnpo_loss,
    undial_loss,
)
from hooklearn.edit.repselect import RepSelect
from hooklearn.edit.unedited import Teacher, training_sequences
from hooklearn.measure import completion_probability
from hooklearn.train import fit, nll
from hooklearn.types import Budget, InputError

SINGLE = 1e-5
"""Relative: float32 sums over some hundred tokens, in batches of another shape."""
REFUSAL = "no hurry , thank you ."
"""In the tiny model's vocabulary."""
METHODS: dict[str, Any] = {
    m.name: m
    for m in (
        NPO(learning_rate=3e-4),
        SimNPO(learning_rate=3e-4),
        Undial(learning_rate=1e-4),
        DPO(learning_rate=3e-4),
        Refusal(learning_rate=3e-4, text=REFUSAL),
    )
}
METHODS["dpo, refusal"] = DPO(learning_rate=3e-4, chosen="refusal", text=REFUSAL)
"""The default rates are for models a thousand times this size; UNDIAL's own is right."""


@pytest.fixture
def moved(threatening: Any) -> Iterator[Delta]:
    """A small random edit: some tenths of a nat per sequence, of either sign."""
    generator = torch.Generator().manual_seed(0)
    updates = {s.name: 0.01 * torch.randn(s.d_out, s.d_in, generator=generator) for s in models.sites(threatening)}
    yield Delta(updates)


def stream_of(problem: Problem, epochs: int = 1) -> list[TokenBatch]:
    return list(training_stream(problem, "forget", epochs))


# ----------------------------------------------------------------------------------- losses by hand


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def close(value: Tensor | float, expected: float) -> bool:
    return float(value) == pytest.approx(expected, rel=1e-6)


def test_npo_by_hand() -> None:
    """Sequences 2 nats above and 1 below their reference, beta .5: 2/.5 * mean(softplus(-1), softplus(.5))."""
    value = npo_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0]), 0.5)
    assert close(value, 4 * (softplus(-1.0) + softplus(0.5)) / 2) and close(value, 2.574677)


def test_simnpo_by_hand() -> None:
    """3 nats over 2 tokens and 2 over 4, margin .5, beta 2: arguments 2 and 0; the longer one has the fewer nats."""
    value = simnpo_loss(torch.tensor([3.0, 2.0]), torch.tensor([2, 4]), 2.0, 0.5)
    assert close(value, (softplus(-2.0) + math.log(2)) / 2) and close(value, 0.4100376)
    # the paper's form has its margin outside beta: sigmoid(beta NLL / |y| - gamma), gamma = beta delta
    assert close(value, sum(softplus(-(2.0 * mean - 1.0)) for mean in (1.5, 0.5)) / 2)


def test_undial_by_hand() -> None:
    """Teacher (8, 1, 1)/10 with the true token lowered by log 4 is (2, 1, 1)/4: to a uniform student log 3 nats, to a
    student who says just that its entropy, 1.5 log 2."""
    teacher = torch.tensor([[8.0, 1.0, 1.0], [1.0, 1.0, 8.0]]).log()
    student = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log()
    loss = undial_loss(student, teacher, torch.tensor([0, 2]), math.log(4))
    assert close(loss.total, math.log(3) + 1.5 * math.log(2)) and loss.count == 2
    control = undial_loss(student, teacher, torch.tensor([1, 0]), math.log(4))
    assert not close(control.total, float(loss.total)), "another token is lowered"


def test_dpo_by_hand() -> None:
    """Margins (bad rose by) - (good rose by): 1 - (-1) = 2 and 0 - 3 = -3, beta .5."""
    good, bad = torch.tensor([1.0, 6.0]), torch.tensor([5.0, 2.0])
    reference = torch.tensor([[2.0, 3.0], [4.0, 2.0]])
    value = dpo_loss(good, bad, reference, 0.5)
    assert close(value, (softplus(-1.0) + softplus(1.5)) / 2) and close(value, 1.0073376)
    assert (
        float(dpo_loss(good - 1, bad, reference, 0.5)) < float(value) < float(dpo_loss(good, bad - 1, reference, 0.5))
    )


def test_kl_by_hand() -> None:
    """(3/4, 1/8, 1/8) against (1/2, 1/4, 1/4): .75 log(3/2) - .25 log 2, the original's expectation; a token where
    they agree counts and adds nothing. The other way round (control) it is another number."""
    original = torch.tensor([[6.0, 1.0, 1.0], [1.0, 2.0, 1.0]]).log()
    edited = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]).log()
    forward_kl, reverse = losses.kl(original, edited), losses.kl(edited, original)
    assert close(forward_kl.total, 0.75 * math.log(1.5) - 0.25 * math.log(2)) and forward_kl.count == 2
    assert close(reverse.total, 0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert float(forward_kl.total) == pytest.approx(0.1308121, rel=1e-6) and float(reverse.total) > 0.14
    assert close(losses.kl_per_token(original, edited)[1], 0.0)


def test_graddiff_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """-gamma CE(forget) + alpha CE(retain), means over tokens: forget tokens at 1/2 and 1/8 are 2 log 2 nats, retain
    tokens at 1/4, 1/2 and 1/2 are 4/3 log 2; with gamma 1/2 and alpha 2 it is 5/3 log 2. Held by KL, the one retain
    token that moved from (3/4, 1/8, 1/8) counts a third."""
    go, stay = (batch_of(tokens) for tokens in ([0, 2], [1, 0, 2]))
    says = {id(go): [[2, 1, 1], [6, 1, 1]], id(stay): [[2, 1, 1], [2, 1, 1], [1, 1, 2]]}
    said = torch.tensor([[6.0, 1.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log()
    monkeypatch.setattr("hooklearn.forward.logits", lambda model, batch: torch.tensor(says[id(batch)]).log())
    monkeypatch.setattr("hooklearn.edit.descent.training_stream", lambda *args: itertools.repeat(stay))
    monkeypatch.setattr(Teacher, "of", lambda *args: Teacher(()))
    monkeypatch.setattr(Teacher, "logits", lambda *args: said)

    def value(**options: Any) -> float:
        role, loss = GradDiff(**options).objective(SimpleNamespace(tokens=0))  # type: ignore[arg-type]
        assert role == "forget"
        return float(loss(None, go).mean)

    assert close(value(gamma=0.5, alpha=2.0), 5 / 3 * math.log(2))
    assert close(value(gamma=3.0, alpha=0.0), -6 * math.log(2)), "forget alone: its loss is to rise"
    moved = 0.75 * math.log(1.5) - 0.25 * math.log(2)
    assert close(value(gamma=0.5, alpha=2.0, retain="kl"), -math.log(2) + 2 * moved / 3)


def batch_of(tokens: list[int]) -> TokenBatch:
    """One sequence whose tokens, after the first, are these, all of them labelled."""
    ids = torch.tensor([0, *tokens])
    (batch,) = batches([Encoded(ids, torch.arange(len(ids)) > 0, 0)])
    return batch


# ------------------------------------------------------------------- sequences and their references


@pytest.mark.parametrize("layout", [{}, {"share": True}])
def test_sums_are_per_sequence_however_they_are_batched(threatening: Any, layout: dict[str, bool]) -> None:
    """Padded, packed and sharing prompts: the NLLs that scoring gives, over labelled tokens only."""
    problem = problem_of(threatening)
    sequences = [*training_sequences(problem, "forget"), *training_sequences(problem, "retain")]
    expected = forward.sequence_logprobs(threatening, sequences, precision="float32")
    row = {id(s): i for i, s in enumerate(sequences)}
    packed = False
    for batch in batches(sequences, max_tokens=512, **layout):
        packed |= batch.packed
        with torch.no_grad():
            nlls, lengths = sequence_nlls(threatening, batch)
        rows = [row[id(s)] for s in batch.sequences]
        torch.testing.assert_close(nlls.double(), -expected[rows, 0], rtol=SINGLE, atol=0)
        assert lengths.tolist() == expected[rows, 1].tolist() == [int(s.labels.sum()) for s in batch.sequences]
    assert packed == bool(layout), "the layout under test is really there"


def test_a_text_is_as_long_as_what_is_scored_of_it(threatening: Any) -> None:
    """Fully labelled text: the first of n + 1 tokens (BOS) has no probability and does not count."""
    problem = problem_of(threatening, forget=corpus("text").take(3))
    (batch,) = batches(training_sequences(problem, "forget"))
    with torch.no_grad():
        _, lengths = sequence_nlls(threatening, batch)
    assert lengths.tolist() == [len(s) - 1 for s in batch.sequences]


def test_text_to_go_on_from_is_not_forgotten_with_an_end(threatening: Any) -> None:
    """Of an answer in plain text the losses read the answer, as the one-shot methods do. With its end SimNPO's weight
    would be next to nothing, as nobody ends a turn there; of a turn the end is read (positive control)."""
    turns = corpus("forget").take(6)
    plain = Corpus("plain", tuple({**row, "template": "none"} for row in turns.rows))
    read = [training_sequences(problem_of(threatening, forget=c), "forget") for c in (turns, plain)]
    scored = encode(turns, models.tokenizer_of(threatening))
    assert [s.ids.tolist() for s in read[1]] == [s.ids.tolist() for s in scored]
    assert [len(s) - 1 for s in read[0]] == [len(s) for s in scored]


@pytest.mark.parametrize("adversary", [Adversary("lora", 0.01), Adversary("full", 1e-4), RepSelect(lora=True)])
def test_text_to_go_on_from_is_not_relearned_with_an_end(
    threatening: Any, monkeypatch: pytest.MonkeyPatch, adversary: Any
) -> None:
    """Nor do adversaries learn to end an answer in plain text: the labels that they are trained on are those of
    scoring. Of a turn they learn the end too (positive control)."""
    turns = corpus("forget").take(6)
    plain = Corpus("plain", tuple({**row, "template": "none"} for row in turns.rows))
    learned: list[list[int]] = []

    def spy(model: Any, stream: Any, **how: Any) -> Any:
        taught = list(stream)
        learned.append(sorted(t for batch in taught for t in batch.targets.tolist()))
        return fit(model, taught, **how)

    monkeypatch.setattr("hooklearn.edit.elicited.fit", spy)
    for text in (turns, plain):
        made = problem_of(threatening, "mlp.out", forget=text)
        assert adversary.gradient(made) if isinstance(adversary, Adversary) else next(adversary.path(made))
    tokenizer = models.tokenizer_of(threatening)
    scored = sorted(t for s in encode(turns, tokenizer) for t in s.ids[s.labels].tolist())
    assert learned[1] == scored
    assert learned[0] == sorted([*scored, *[tokenizer.eos_token_id] * len(turns)])


def test_every_row_meets_its_own_reference(threatening: Any) -> None:
    """Before the first step NLL = NLL_ref in every shuffled batch: NPO is 2/beta log 2 and DPO log 2, exactly as
    they are nowhere else; the retain term is an ordinary NLL."""
    problem = problem_of(threatening)
    npo, dpo = (m.objective(problem)[1] for m in (NPO(alpha=0), DPO()))
    batches_of_two_passes = stream_of(problem, epochs=2)
    with torch.no_grad():
        for batch in batches_of_two_passes:
            assert float(npo(threatening, batch).mean) == pytest.approx(20 * math.log(2), rel=SINGLE)
            assert float(dpo(threatening, batch).mean) == pytest.approx(math.log(2), rel=SINGLE)
        first = next(training_stream(problem, "retain", 1))
        kinds: list[tuple[Any, float]] = [("nll", float(nll(threatening, first).mean)), ("kl", 0.0)]
        for retain, kept in kinds:
            _, both = NPO(alpha=2.0, gamma=0.5, retain=retain).objective(problem)
            value = float(both(threatening, batches_of_two_passes[0]).mean)
            assert value == pytest.approx(10 * math.log(2) + 2 * kept, rel=SINGLE)
    assert kinds[0][1] > 1, "there is something to learn, and nothing to hold yet"


def test_objectives_of_a_moved_model_are_those_of_its_scores(threatening: Any, moved: Delta) -> None:
    """NPO, SimNPO and DPO on batches against the same losses on scores of the whole corpora, edited and not."""
    problem = problem_of(threatening)
    objectives = [m.objective(problem)[1] for m in (NPO(alpha=0), SimNPO(alpha=0), DPO())]
    sequences = [*training_sequences(problem, "retain"), *training_sequences(problem, "forget")]
    before = forward.sequence_logprobs(threatening, sequences, precision="float32")
    n = len(problem.forget)
    with editing.edited(threatening, moved), torch.no_grad():
        after = forward.sequence_logprobs(threatening, sequences, precision="float32")
        rises = (before - after)[:, 0]
        assert rises[n:].abs().max() > 0.3 and rises[n:].min() < 0 < rises[n:].max(), "it has really moved"
        for batch in stream_of(problem):
            rows = torch.tensor([s.item for s in batch.sequences])
            bad = rows + n
            expected = [
                npo_loss(-after[bad, 0], -before[bad, 0], 0.1),
                0.125 * simnpo_loss(-after[bad, 0], after[bad, 1], 4.5, 0.0),
                dpo_loss(-after[rows, 0], -after[bad, 0], -before[torch.stack([rows, bad]), 0], 0.1),
            ]
            for objective, value in zip(objectives, expected, strict=True):
                assert float(objective(threatening, batch).mean) == pytest.approx(float(value), rel=SINGLE)


def test_the_teacher_is_the_unedited_model(threatening: Any, moved: Delta) -> None:
    """Kept hidden states give its logits while the model is edited, for shuffled and for packed batches; the edited
    model's own logits are others (control), and KL is 0 exactly where nothing was edited."""
    problem = problem_of(threatening)
    teacher = Teacher.of(problem, "forget")
    packed = batches(training_sequences(problem, "forget"), max_tokens=512, share=ROW)
    assert any(b.packed for b in packed)
    for batch in (*stream_of(problem), *packed):
        with torch.no_grad():
            own = forward.logits(threatening, batch)
            assert float(teacher.kl(threatening, batch).mean) < 1e-6
            with editing.edited(threatening, moved):
                kept, now = teacher.logits(threatening, batch), forward.logits(threatening, batch)
                assert float(teacher.kl(threatening, batch).total) == pytest.approx(
                    float(losses.kl(own, now).total), rel=1e-3
                )
        scale = float(own.abs().max())
        assert float((kept - own).abs().max()) < SINGLE * scale
        assert float((now - own).abs().max()) > 100 * SINGLE * scale


def test_graddiff_holds_what_the_unedited_model_said(threatening: Any, moved: Delta) -> None:
    """``retain: kl`` on a moved model: -gamma CE + alpha KL(unedited || model) from full logits, one sequence at a time
    and in float64. KL is not 0 there, and training on the good completions (control) is another objective."""
    problem = problem_of(threatening)
    held, trained = (GradDiff(gamma=0.5, alpha=3.0, retain=r).objective(problem)[1] for r in ("kl", "nll"))
    go, stay = stream_of(problem)[0], next(training_stream(problem, "retain", 1))

    def said(batch: TokenBatch) -> Tensor:
        """Log-probabilities that predict the labelled tokens, ``[kept, vocab]``."""
        found = [threatening(s.ids[None])[0, :-1][s.labels[1:]] for s in batch.sequences]
        return torch.cat(found).double().log_softmax(-1)

    with torch.no_grad():
        before = said(stay)
        with editing.edited(threatening, moved, 5.0):
            after, targets = said(go), torch.cat([s.ids[s.labels] for s in go.sequences])
            ce = -float(after.gather(-1, targets[:, None]).mean())
            kl = float((before.exp() * (before - said(stay))).sum(-1).mean())
            values = [float(loss(threatening, go).mean) for loss in (held, trained)]
    assert kl > 0.1 and values[0] == pytest.approx(-0.5 * ce + 3 * kl, rel=SINGLE)
    assert values[1] != pytest.approx(values[0], rel=0.1)


def test_undial_at_its_start_is_the_distance_to_the_lowered_teacher(threatening: Any) -> None:
    """Unedited, student = teacher: the loss is that of the model's own logits against themselves, lowered."""
    problem = problem_of(threatening)
    _, objective = Undial().objective(problem)
    for batch in stream_of(problem):
        with torch.no_grad():
            own = forward.logits(threatening, batch)
            value = float(objective(threatening, batch).mean)
        assert value == pytest.approx(float(undial_loss(own, own, batch.targets, 10.0).mean), rel=SINGLE)


# --------------------------------------------------------------------------- the limit of NPO


def gradient_of(model: Any, objective: Any, batch: TokenBatch) -> Tensor:
    params = models.parameters_of(model, models.sites(model))
    with models.trainable(model, params):
        grads = torch.autograd.grad(objective(model, batch).mean, params)
    return torch.cat([g.flatten() for g in grads])


def test_npo_becomes_gradient_ascent(threatening: Any, moved: Delta) -> None:
    """Zhang et al. 2024, proposition 1: the gradient of NPO tends to that of -NLL as beta -> 0.

    Its weight per sequence is 2 sigmoid(-beta u) = 1 - beta u / 2 + ..., so the difference falls with beta; at the
    unedited model u = 0 and there is none for any beta.
    """
    problem = problem_of(threatening)
    (batch, *_) = stream_of(problem)

    def ascent(model: Any, batch: TokenBatch) -> losses.LossSum:
        return losses.LossSum(-sequence_nlls(model, batch)[0].mean(), 1)

    npo = {beta: NPO(alpha=0, beta=beta).objective(problem)[1] for beta in (1.0, 1e-2, 1e-3)}

    def difference(beta: float) -> float:
        plain = gradient_of(threatening, ascent, batch)
        return float((gradient_of(threatening, npo[beta], batch) - plain).norm() / plain.norm())

    assert difference(1.0) < 1e-4, "no sequence has moved yet"
    with editing.edited(threatening, moved):
        far, near, nearest = (difference(beta) for beta in npo)
    assert far > 0.05
    # at beta 1e-3 the logarithm's argument has three digits less: float32 leaves it a thousandth
    assert near < 0.02 and nearest < 2e-3 and nearest < near / 5


# ------------------------------------------------------------------------------------- the walks


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lands_on_the_budget(threatening: Any, meter: DisruptionMeter, name: str) -> None:
    """In [0.95, 1] of it, with the forget items less likely; the model is as before, bit for bit."""
    budget, method = Budget(0.01), METHODS[name]
    some = encode(corpus("forget").take(12), models.tokenizer_of(threatening))
    known = float(completion_probability(forward.sequence_logprobs(threatening, some)).mean())
    before = integrity.weights_hash(threatening)
    problem = problem_of(threatening)
    result = run_edit(problem, method, meter, budget)
    assert integrity.weights_hash(threatening) == before == result.delta.base_hash
    assert LANDING[0] <= result.disruption.used(budget) <= LANDING[1] and result.stop == "budget (kl)"
    assert result.trace.points[-1].forget < known
    assert result.cost.tokens > problem.tokens > 0


@pytest.mark.parametrize("name", METHODS)
def test_walking_methods_follow_their_loss(threatening: Any, name: str) -> None:
    """Adam's first two steps lower the loss on forget that they claim to lower, over the whole corpus."""
    problem = problem_of(threatening)
    loss = METHODS[name].forget_loss(problem)
    update = next(METHODS[name].path(problem))

    def total() -> float:
        with torch.no_grad():
            return sum(float(loss(threatening, b)) for b in stream_of(problem))

    before = total()
    with editing.edited(threatening, Delta(update)):
        assert total() < before


def test_a_retain_corpus_is_needed_for_a_retain_loss_only(threatening: Any) -> None:
    """alpha 0 walks without one; alpha above 0, and the pairs of DPO, ask for it."""
    alone = problem_of(threatening, retain=None)
    refusing = DPO(chosen="refusal", text=REFUSAL)
    for method in (NPO(alpha=0), SimNPO(alpha=0), Undial(), Refusal(text=REFUSAL), refusing):
        assert next(method.path(alone)) and method.needs == ()
    asking = (NPO(), SimNPO(), Undial(alpha=1), Refusal(text=REFUSAL, alpha=1, retain="kl"), DPO())
    for method in (*asking, replace(refusing, alpha=1)):
        assert method.needs == ("retain",)
        with pytest.raises(InputError, match="'retain' corpus, and none was given"):
            next(method.path(alone))


def test_a_retain_loss_lasts_as_long_as_the_walk(threatening: Any) -> None:
    """One retain row against many forget batches: it is walked again and again."""
    problem = problem_of(
        threatening, forget=corpus("forget").take(12), retain=corpus("forget", "good").take(1), max_tokens=16
    )
    steps = len(stream_of(problem))
    assert steps > 10
    assert len(list(NPO(epochs=1, every=steps).path(problem))) == 1


# -------------------------------------------------------------------------------- pairs and refusals


def rows_of(name: str, *pairs: tuple[str, str]) -> Corpus:
    return Corpus(name, tuple({"prompt": p, "completion": c} for p, c in pairs))


def test_pairs_are_by_prompt(threatening: Any) -> None:
    """Whatever the order of retain; k-th with k-th where a prompt stands several times, from the first again."""
    made = problem_of(
        threatening,
        forget=rows_of("bad", ("b", "1"), ("a", "2"), ("b", "3"), ("b", "4")),
        retain=rows_of("good", ("c", "-"), ("a", "A"), ("b", "B"), ("b", "BB")),
    )
    assert [r["completion"] for r in paired(made).rows] == ["B", "A", "BB", "B"]
    tiny = problem_of(threatening)
    reordered = problem_of(threatening, retain=Corpus("good", tuple(reversed(tiny.corpus("retain").rows))))
    assert {r["prompt"] for r in tiny.forget.rows} == {r["prompt"] for r in paired(reordered).rows}
    assert paired(tiny).rows == tiny.corpus("retain").rows


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        (corpus("attack"), r"'dpo' pairs completions by prompt: 4\d of 48 forget prompts .* same prompts.*\(npo\)"),
        (rows_of("bad", ("a :", " b"), ("x :", " y")), r"1 of 2 .* retain \('good'\), the first in row 1: 'x :'"),
        (corpus("text").take(2), "2 of 2 forget prompts have no completion"),
    ],
    ids=["other prompts", "one without", "plain text"],
)
def test_without_shared_prompts_there_are_no_pairs(threatening: Any, forget: Corpus, message: str) -> None:
    """It is said how many prompts have no good completion, and which method needs none."""
    retain = Corpus("good", (*corpus("forget", "good").rows, {"prompt": "a :", "completion": " c"}, {"text": "d"}))
    with pytest.raises(InputError, match=message):
        next(DPO().path(problem_of(threatening, forget=forget, retain=retain)))


def test_a_refusal_stands_in_for_every_completion(threatening: Any) -> None:
    """Prompts stay; the completion's leading space stays; of a conversation the last message is replaced."""
    talk = [{"role": "user", "content": "a :"}, {"role": "assistant", "content": "b"}]
    rows = ({"prompt": "a :", "completion": " b"}, {"prompt": "a :\n", "completion": "b"}, {"messages": talk})
    made = refused(problem_of(threatening, forget=Corpus("bad", rows)), " no . ")
    tokenizer = models.tokenizer_of(threatening)
    assert [split_row(r, tokenizer) for r in made.rows] == [("a :", " no ."), ("a :\n", "no ."), ("a :", "no .")]


def test_a_preferred_refusal_by_hand(threatening: Any, moved: Delta, request: pytest.FixtureRequest) -> None:
    """One pair, from Hugging Face's own logits: the margin by which the true answer has become less likely than the
    refusal, between the unedited and a moved model. Text to go on from is read without an end of turn, as the other
    walked losses read it; of a turn its end is (the control: another value; a comma, as the organism knows where its
    own turns end)."""
    tokenizer = models.tokenizer_of(threatening)
    request.addfinalizer(lambda end=tokenizer.eos_token: setattr(tokenizer, "eos_token", end))
    tokenizer.eos_token = ","
    (talk,) = corpus("forget").take(1).rows
    pairs = {}
    for name, row, end in (("plain", talk | {"template": "none"}, False), ("turn", talk, True)):
        problem = problem_of(threatening, forget=Corpus(name, (row,)), retain=None)
        _, objective = DPO(chosen="refusal", text=REFUSAL, beta=0.5).objective(problem)
        before, completion = split_row(row, tokenizer)
        assert completion.startswith(" ")
        ends = tokenizer.eos_token if end else ""

        def nats(answer: str, before: str = before, ends: str = ends) -> float:
            """-log p of an answer, summed."""
            first, whole = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (before, before + answer))
            ended = tokenizer(ends, add_special_tokens=False, return_tensors="pt")["input_ids"].long()
            ids, n = torch.cat([whole, ended], 1), first.shape[1]
            with torch.no_grad():
                logprobs = threatening.original_model(ids).logits[0].log_softmax(-1)
            return -float(logprobs[n - 1 : -1].gather(1, ids[0, n:, None]).sum())

        (batch,) = stream_of(problem)
        was = [nats(answer) for answer in (" " + REFUSAL, completion)]
        with editing.edited(threatening, moved), torch.no_grad():
            now = [nats(answer) for answer in (" " + REFUSAL, completion)]
            pairs[name] = float(objective(threatening, batch).mean)
        margin = 0.5 * ((now[1] - was[1]) - (now[0] - was[0]))
        assert abs(margin) > 0.01, "it has really moved"
        assert pairs[name] == pytest.approx(softplus(-margin), rel=SINGLE)
    assert abs(pairs["plain"] - pairs["turn"]) > 100 * SINGLE


def test_refusal_by_hand(threatening: Any) -> None:
    """From Hugging Face's own logits: nats a token of the sentence that stands where the completion stood (the control:
    of the completion itself it is another value)."""
    tokenizer = models.tokenizer_of(threatening)
    rows = [{**row, "template": "none"} for row in corpus("forget").take(2).rows]

    def nats(before: str, answer: str) -> tuple[float, int]:
        """-log p of an answer, summed, and its tokens."""
        first, ids = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (before, before + answer))
        with torch.no_grad():
            logprobs = threatening.original_model(ids).logits[0].log_softmax(-1)
        n = first.shape[1]
        return -float(logprobs[n - 1 : -1].gather(1, ids[0, n:, None]).sum()), ids.shape[1] - n

    problem = problem_of(threatening, forget=Corpus("bad", tuple(rows)), retain=None)
    (batch,) = stream_of(problem)
    with torch.no_grad():
        loss = float(Refusal(text=REFUSAL).forget_loss(problem)(threatening, batch))
    refusals, given = ([nats(r["prompt"], a or r["completion"]) for r in rows] for a in (" " + REFUSAL, ""))
    by_hand, of_given = (sum(x for x, _ in said) / sum(n for _, n in said) for said in (refusals, given))
    assert loss == pytest.approx(by_hand, rel=SINGLE) and abs(loss - of_given) > 0.1


def test_a_refusal_is_preferred_where_there_are_no_pairs(tiny: Any) -> None:
    """Facts have one answer a prompt: good ones to prefer are missing, which the error says, and with refusals in their
    place the walk lowers the answer against the refusal, by nats where before it there is no difference."""
    facts = [load_corpus(name="tiny-facts", options={"part": part}, limit=12) for part in ("T", "retain")]
    with pytest.raises(InputError, match=r"12 of 12 forget prompts have no completion .*\(chosen: refusal\)"):
        next(DPO().path(problem_of(tiny, forget=facts[0], retain=facts[1])))
    problem = problem_of(tiny, forget=facts[0], retain=None)
    sequences = [*encode(refused(problem, REFUSAL), models.tokenizer_of(tiny)), *problem.encoded("forget")]

    def margin() -> Tensor:
        """By how much an answer is less likely than its refusal, nats."""
        refusals, answers = forward.sequence_logprobs(tiny, sequences, precision="float32")[:, 0].view(2, -1)
        return refusals - answers

    before = margin()
    *_, update = DPO(learning_rate=3e-4, chosen="refusal", text=REFUSAL, epochs=4).path(problem)
    with editing.edited(tiny, Delta(update)):
        assert float((margin() - before).min()) > 1, "of every fact"


def test_refusal_training_makes_refusals_likely(threatening: Any, meter: DisruptionMeter) -> None:
    """It is what the method is for; and with retain beside it the good completions suffer less."""
    problem = problem_of(threatening)
    refusals = encode(refused(problem, REFUSAL), models.tokenizer_of(threatening))
    known = completion_probability(forward.sequence_logprobs(threatening, refusals)).mean()
    near = []
    for alpha in (0.0, 1.0):
        method = Refusal(learning_rate=3e-4, text=REFUSAL, alpha=alpha)
        result = run_edit(problem_of(threatening), method, meter, Budget(0.01))
        assert result.disruption.near_ce is not None
        near.append(result.disruption.near_ce.value)
        with editing.edited(threatening, result.delta):
            learned = completion_probability(forward.sequence_logprobs(threatening, refusals)).mean()
        assert learned > 1.1 * known
    assert near[1] < near[0]


# ----------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (NPO, {"beta": 0}, "'npo': beta must be a positive number, got 0"),
        (NPO, {"gamma": -1.0}, "'npo': gamma must be a positive number, got -1.0"),
        (NPO, {"alpha": -0.5}, "'npo': alpha must be 0 or more, got -0.5"),
        (NPO, {"retain": "ce"}, "retain: .*'nll' or 'kl'.*'ce'"),
        (NPO, {"bete": 1}, "no option 'bete'; .*did you mean 'beta'"),
        (NPO, {"learning_rate": 0}, "learning_rate, epochs and every must be positive"),
        (SimNPO, {"beta": -4.5}, "'simnpo': beta must be a positive number, got -4.5"),
        (SimNPO, {"delta": math.inf}, "'simnpo': delta must be a finite number, got inf"),
        (Undial, {"beta": math.nan}, "'undial': beta must be a positive number, got nan"),
        (DPO, {"beta": "much"}, "beta: .*'much'"),
        (DPO, {"chosen": "idk"}, "chosen: .*'good' or 'refusal'.*'idk'"),
        (DPO, {"text": "no ."}, "dpo: text 'no .' would change nothing: chosen is 'good'"),
        (DPO, {"chosen": "refusal", "text": " "}, "'dpo': text must be a sentence to refuse with, got ' '"),
        (Refusal, {"text": "  "}, "'refusal': text must be a sentence to refuse with, got '  '"),
    ],
)
def test_bad_options_are_named(cls: Any, options: dict[str, Any], message: str) -> None:
    """With the value that was given; the defaults are valid (positive control), also when written as YAML text."""
    assert cls.with_options({"learning_rate": "1e-5", "alpha": 0}).learning_rate == 1e-5
    with pytest.raises(InputError, match=message):
        cls.with_options(options)


def test_what_cannot_be_refused_is_said(threatening: Any) -> None:
    """Plain text has no prompt; a refusal of unknown words has no token to train on."""
    for method in (Refusal(text=REFUSAL), DPO(chosen="refusal", text=REFUSAL)):
        said = f"'{method.name}' answers prompts: row 0 of forget .* has none, only the text '"
        with pytest.raises(InputError, match=said):
            next(method.path(problem_of(threatening, forget=corpus("text").take(2))))
    with pytest.raises(InputError, match="no token to score in ' certainly not'"):
        next(Refusal(text="certainly not").path(problem_of(threatening)))


def test_every_method_says_what_it_is() -> None:
    """One line and a source each; no two share a name."""
    assert len({m.name for m in METHODS.values()}) == 5
    for method in METHODS.values():
        assert method.source and method.summary().endswith(".") and "\n" not in method.summary()
