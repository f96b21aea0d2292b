"""MUDMAN, TAR, UNDO and multi-epoch RepSelect: each step against one written down by hand, and the exact budget."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import corpus
from torch import Tensor

from hooklearn import editing, forward, integrity, linalg, losses, models
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import Encoded, TokenBatch, batches, encode
from hooklearn.deltas import Delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import LANDING, Method, Problem, run_edit
from hooklearn.edit.descent import advancing, confusion, nowhere, training_stream
from hooklearn.edit.method import Updates, inner, norm
from hooklearn.edit.mudman import OBJECTIVES, MaskedStep, Mudman, Retaining, correct_logit, disruption_mask
from hooklearn.edit.repselect_multi import Collapser, JointStep, RepSelectMulti, npo_pressure
from hooklearn.edit.tar import Tar, hidden_states, retention
from hooklearn.edit.undo import Undo, imitation, mean_loss, xavier
from hooklearn.forward import sequence_logprobs
from hooklearn.locate.capture import weight_gradients
from hooklearn.lora import Lora
from hooklearn.measure import completion_probability
from hooklearn.train import fit, nll
from hooklearn.types import Budget, InputError

SINGLE = 1e-4
"""Relative, float32: the same sums in another order, through four blocks and back."""
COLLAPSED = 1e-4
"""Relative: moments summed in float32, a condition number of about a hundred, eigenvectors in float64."""
METHODS = [
    Mudman(learning_rate=0.04, every=1),
    Tar(learning_rate=3e-4, adversary_rates=(1e-4, 3e-4), inner_steps=4, look_every=2, every=1),
    Undo(alpha=0.05, teacher_rate=1e-4, learning_rate=1e-3),
    RepSelectMulti(learning_rate=0.5, rank=8),
]
"""Rates for the tiny model; the defaults are for models a thousand times its size."""
NAMES = [m.name for m in METHODS]


def problem_of(model: Any, **changed: Any) -> Problem:
    given: dict[str, Any] = {
        "forget": corpus("forget").take(20), "retain": corpus("forget", "good").take(20),
        "reference": corpus("text").take(10), "precision": "float32", "max_tokens": 512,
    } | changed  # fmt: skip
    return Problem(model, models.sites(model), **given)


@pytest.fixture
def problem(threatening: Any) -> Problem:
    return problem_of(threatening)


@pytest.fixture(scope="module")
def meter(threatening: Any) -> DisruptionMeter:
    """Every reading is of all texts: the methods are on trial here, and not the solver's short cuts."""
    return DisruptionMeter(threatening, corpus("disruption").take(30), rough=0)


def gradients(model: Any, objective: Any, batch: TokenBatch, params: Sequence[Tensor]) -> list[Tensor]:
    """By autograd alone: no loop, no rule."""
    return list(torch.autograd.grad(objective(model, batch).mean, list(params)))


def far(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Joint distance relative to ``b``."""
    off = math.sqrt(sum(float((x.cpu() - y.cpu()).double().square().sum()) for x, y in zip(a, b, strict=True)))
    return off / math.sqrt(sum(float(y.double().square().sum()) for y in b))


# ------------------------------------------------------------------------ the budget, for every method


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_every_method_lands_and_lowers_the_forget_score(
    threatening: Any, meter: DisruptionMeter, method: Method
) -> None:
    """In [0.95, 1] of the far budget, below what the forget items had, the model untouched bit for bit."""
    some = encode(corpus("forget").take(12), models.tokenizer_of(threatening))
    known = float(completion_probability(sequence_logprobs(threatening, some)).mean())
    before, budget = integrity.weights_hash(threatening), Budget(0.01)
    result = run_edit(problem_of(threatening), method, meter, budget)
    assert integrity.weights_hash(threatening) == before
    assert LANDING[0] <= result.disruption.used(budget) <= LANDING[1] and result.stop == "budget (kl)"
    assert result.trace.points[-1].forget < known - 0.003, "the least of the four, UNDO, lowers it by .0045"
    assert result.cost.tokens >= result.trace.points[-1].tokens > 0


def test_steps_too_long_for_the_budget_are_made_finer(threatening: Any, meter: DisruptionMeter) -> None:
    """A rate fifty times as high as fits: told, recorded, and the edit is that of a walk with the finer rate, bit for
    bit. A rate that fits is left alone (the control)."""
    told: list[str] = []
    coarse = run_edit(
        problem_of(threatening), Mudman(learning_rate=2.0, every=1), meter, Budget(0.01), on_point=told.append
    )
    fitting = coarse.found["learning_rate"]
    assert fitting < 0.2 and "learning_rate 2 uses" in told[1] and f"again with {fitting:.3g}" in told[1]
    assert coarse.stop == "budget (kl)" and len(coarse.trace.points) > 4
    fine = run_edit(problem_of(threatening), Mudman(learning_rate=fitting, every=1), meter, Budget(0.01))
    assert "learning_rate" not in fine.found
    assert all(torch.equal(coarse.delta.updates[name], update) for name, update in fine.delta.updates.items())


def test_a_walk_that_ends_before_its_budget_says_so(threatening: Any, meter: DisruptionMeter) -> None:
    """One tiny step of each walked method: not hidden, and still not more than was allowed."""
    short = [Mudman(learning_rate=1e-4, steps=1), Tar(steps=1), RepSelectMulti(epochs=3, learning_rate=1e-3)]
    for method in short:
        result = run_edit(problem_of(threatening), method, meter, Budget(0.01))
        assert result.stop == "budget not reached: the method ended before"
        assert result.disruption.kl.value < 0.01 * LANDING[0]


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_the_model_is_unedited_whenever_control_is_back(threatening: Any, problem: Problem, method: Method) -> None:
    """At every point of the path: weights bitwise, flags, gradients, hooks. A point that was handed out is not changed
    by the steps after it, and the same seed gives the same bits."""
    params = models.all_parameters(threatening)
    before, flags = integrity.weights_hash(threatening), [p.requires_grad for p in params]
    kept: list[tuple[Updates, Updates]] = []
    for updates in itertools.islice(method.path(problem), 3):
        assert integrity.weights_hash(threatening) == before
        assert [p.requires_grad for p in params] == flags and all(p.grad is None for p in params)
        assert not any(point.fwd_hooks or point.bwd_hooks for point in threatening.hook_dict.values())
        kept.append((updates, {n: u.clone() for n, u in updates.items()}))
    assert len(kept) == (1 if method.ray else 3)
    for updates, copies in kept:
        assert all(torch.equal(u, copies[n]) for n, u in updates.items()) and norm(updates) > 0
    assert len({norm(u) for u, _ in kept}) == len(kept)
    again = next(method.path(problem_of(threatening)))
    assert all(torch.equal(again[n], u) for n, u in kept[0][0].items())


def test_what_fails_inside_a_step_leaves_the_model_as_it_was(threatening: Any, problem: Problem) -> None:
    """An exception in the middle of training: weights back, nothing recorded (and without one, it is)."""
    before, updates = integrity.weights_hash(threatening), nowhere(problem)
    with pytest.raises(KeyError), advancing(problem, updates) as params:
        params[0].data.add_(1)
        raise KeyError
    assert integrity.weights_hash(threatening) == before and norm(updates) == 0
    with advancing(problem, updates) as params:
        params[0].data.add_(1)
    assert integrity.weights_hash(threatening) == before and norm(updates) > 0


# ---------------------------------------------------------------------------------------------- MUDMAN


def test_the_disruption_mask_by_hand() -> None:
    """(3, -4, 0, 0) and 12 have norm 13; a step of 1.3 is a tenth of each, and only where the retain gradient has the
    same sign: 3 and 12. The weights under the gradient stay; ``targets`` move."""
    params = [torch.ones(2, 2, requires_grad=True), torch.ones(1, requires_grad=True)]
    params[0].grad, params[1].grad = torch.tensor([[3.0, -4.0], [0.0, 0.0]]), torch.tensor([12.0])
    retain = [torch.tensor([[1.0, 1.0], [5.0, -1.0]]), torch.tensor([2.0])]
    targets = [torch.zeros(2, 2), torch.zeros(1)]
    MaskedStep(params, targets, retain, rate=1.3).step()
    assert torch.allclose(targets[0], torch.tensor([[-0.3, 0.0], [0.0, 0.0]]))
    assert torch.allclose(targets[1], torch.tensor([-1.2]))
    assert torch.equal(params[0], torch.ones(2, 2))


def test_a_masked_step_never_raises_the_retain_loss_to_first_order() -> None:
    """Random gradients that pull against each other: unmasked the retain loss would rise (control), masked it falls."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        g, noise = torch.randn(2, 50, generator=generator)
        retain = noise - 0.5 * g
        assert float((-g) @ retain) > 0 > float((-g * disruption_mask(g, retain)) @ retain)


def test_the_retain_step_by_hand() -> None:
    """a <- .75 a + .25 g, twice, and the weight follows -a / 2: from a = 0, g = 8 it is 2, 3.5."""
    weight, mean = torch.zeros(1, requires_grad=True), torch.zeros(1)
    rule = Retaining([weight], [mean], momentum=0.75, rate=0.5)
    for a, w in ((2.0, -1.0), (3.5, -2.75)):
        weight.grad = torch.tensor([8.0])
        rule.step()
        assert float(mean) == a and float(weight) == w


def test_confusion_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1/2, 1/4, 1/4) has 1.5 log 2 nats of entropy and three alike have log 3, summed over tokens; what MUDMAN and TAR
    lower is *minus* that, so descent lowers the likeliest token's logit and, in proportion to p (log p + H),
    raises the others. Where all are alike there is nothing to gain."""
    logits = torch.tensor([[2.0, 1.0, 1.0], [5.0, 5.0, 5.0]]).log().requires_grad_()
    some = losses.entropy(logits)
    assert some.count == 2 and float(some.total) == pytest.approx(1.5 * math.log(2) + math.log(3), rel=1e-6)
    monkeypatch.setattr("hooklearn.forward.logits", lambda model, batch: logits)
    loss = confusion(None, None)  # type: ignore[arg-type]
    assert loss.count == 2 and float(loss.mean) == pytest.approx(-(1.5 * math.log(2) + math.log(3)) / 2, rel=1e-6)
    (slope,) = torch.autograd.grad(loss.total, logits)
    by_hand = torch.tensor([[0.25, -0.125, -0.125], [0.0, 0.0, 0.0]]) * math.log(2)
    assert torch.allclose(slope, by_hand, atol=1e-6), "float32"
    certain = torch.tensor([[30.0, 0.0, 0.0]])
    assert 0 <= float(losses.entropy(certain).total) < 1e-10


def test_correct_logit_by_hand(tiny: Any) -> None:
    """Every token is counted, the share that is below the mean logit with 0."""
    batch = batches(encode(corpus("forget").take(3), models.tokenizer_of(tiny)))[0]
    with torch.no_grad():
        got, logits = correct_logit(tiny, batch), tiny(batch.ids, attention_mask=batch.mask.long())[batch.keep]
    above = [float(row[t] - row.mean()) for row, t in zip(logits, batch.targets, strict=True)]
    assert got.count == len(above)
    assert float(got.total) == pytest.approx(sum(max(0.0, a) for a in above), rel=SINGLE)


def test_unlikelihood_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens at 1/2 and 1/8 cost 4 log 2 nats, two tokens' worth, and `neg_ce` is minus that. Its slope is what the
    token is less what was said of it, (1, 0, 0) - (1/2, 1/4, 1/4) and (0, 0, 1) - (3/4, 1/8, 1/8): descent takes the
    true token's logit down, and most of all where it is unlikely already, as gradient ascent does."""
    logits = torch.tensor([[2.0, 1.0, 1.0], [6.0, 1.0, 1.0]]).log().requires_grad_()
    ids = torch.tensor([1, 0, 2])
    (batch,) = batches([Encoded(ids, torch.tensor([False, True, True]), 0)])
    monkeypatch.setattr("hooklearn.forward.logits", lambda model, batch: logits)
    loss = OBJECTIVES["neg_ce"](None, batch)
    assert loss.count == 2 and float(loss.mean) == pytest.approx(-2 * math.log(2), rel=1e-6)
    (slope,) = torch.autograd.grad(loss.total, logits)
    by_hand = torch.tensor([[0.5, -0.25, -0.25], [-0.75, -0.125, 0.875]])
    assert torch.allclose(slope, by_hand, atol=1e-6), "float32"
    (up,) = torch.autograd.grad(nll(None, batch).total, logits)
    assert torch.equal(slope, -up), "control: to relearn is the other way, bit for bit"
    assert not torch.allclose(slope, torch.autograd.grad(confusion(None, batch).total, logits)[0], atol=0.1)


def test_two_steps_of_mudman_by_hand(threatening: Any, problem: Problem) -> None:
    """Two sets of weights and plain autograd give the same walk; without the adversary's steps another one."""
    method = Mudman(learning_rate=0.05, steps=2, every=1, adversary_rate=0.5, fork_every=2, retain_rate=0.01)
    kept, forget = ([*itertools.islice(training_stream(problem, role, 9), 2)] for role in ("retain", "forget"))
    with editing.restored(threatening) as model:
        params = models.parameters_of(model, problem.sites)
        original = [p.detach().clone() for p in params]

        def at(weights: list[Tensor], objective: Any, batch: TokenBatch) -> list[Tensor]:
            for p, w in zip(params, weights, strict=True):
                p.data.copy_(w)
            return gradients(model, objective, batch, params)

        theta, mean = [w.clone() for w in original], [torch.zeros_like(w) for w in original]
        adversary, by_hand = [w.clone() for w in original], []
        for stay, go in zip(kept, forget, strict=True):
            mean = [0.9 * a + 0.1 * g for a, g in zip(mean, at(theta, nll, stay), strict=True)]
            theta = [w - 0.01 * a for w, a in zip(theta, mean, strict=True)]
            if go is forget[0]:
                adversary = [w.clone() for w in original]
            adversary = [w - 0.5 * g for w, g in zip(adversary, at(adversary, nll, go), strict=True)]
            push = at(adversary, confusion, go)
            length = math.sqrt(sum(float(g.square().sum()) for g in push))
            theta = [
                w - 0.05 / length * torch.where(g * a > 0, g, 0) for w, g, a in zip(theta, push, mean, strict=True)
            ]
            by_hand.append([w - o for w, o in zip(theta, original, strict=True)])
    for updates, expected in zip(method.path(problem), by_hand, strict=True):
        assert far([updates[s.name] for s in problem.sites], expected) < 0.01, "a mask flips where a gradient is 0"
    alone = [*dataclasses.replace(method, adversary_rate=0.0).path(problem_of(threatening))]
    assert far([alone[1][s.name] for s in problem.sites], by_hand[1]) > 0.1


# ------------------------------------------------------------------------------------------------- TAR


def test_the_tamper_gradient_is_first_order(threatening: Any, problem: Problem) -> None:
    """Two steps of an SGD adversary written down: ``sum_i w_i grad L(theta_i)``, theta_i taken as constants, weights
    4 exp(-growth) and 4. Without an attack (control) the gradient is another one; the weights are as before."""
    method = Tar(inner_steps=2, look_every=1, adversary="sgd", growth=0.5)
    attack, judge = ([*itertools.islice(training_stream(problem, role, 9), 2)] for role in ("forget", "retain"))
    params = models.parameters_of(threatening, problem.sites)
    with editing.restored(threatening) as model:
        by_hand, idle = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
        for weight, other in zip((4 * math.exp(-0.5), 4.0), judge, strict=True):
            for total, g in zip(idle, gradients(model, confusion, other, params), strict=True):
                total += weight * g
        for weight, go, other in zip((4 * math.exp(-0.5), 4.0), attack, judge, strict=True):
            for p, g in zip(params, gradients(model, nll, go, params), strict=True):
                p.data -= 0.3 * g
            for total, g in zip(by_hand, gradients(model, confusion, other, params), strict=True):
                total += weight * g
    before = integrity.weights_hash(threatening)
    with advancing(problem, nowhere(problem)):
        got = method.resistance(problem, iter(attack), iter(judge), 0.3)
        assert integrity.weights_hash(threatening) == before
    assert far(got, by_hand) < SINGLE and far(got, idle) > 0.1


def test_readings_are_counted_back_from_the_end_of_the_attack(problem: Problem) -> None:
    """Every second of six inner steps: three; the last step is always read, however rarely one looks."""
    asked = []

    def judge():
        for batch in training_stream(problem, "retain", 9):
            asked.append(batch)
            yield batch

    for steps, every, readings in ((6, 2, 3), (2, 9, 1)):
        asked.clear()
        with advancing(problem, nowhere(problem)):
            method = Tar(inner_steps=steps, look_every=every)
            method.resistance(problem, training_stream(problem, "forget", 9), judge(), 1e-5)
        assert len(asked) == readings


def test_the_retain_loss_of_tar_by_hand(threatening: Any, problem: Problem) -> None:
    """CE plus the mean distance of the residual stream after the blocks, padding left out. At the original the
    distance is exactly 0 and its gradient 0, not NaN."""
    batch = problem.stream("retain")[0]
    assert not bool(batch.mask.all()), "there is padding to be left out"
    moved = {s.name: 0.02 * torch.randn(s.d_out, s.d_in, generator=torch.Generator().manual_seed(0))
             for s in problem.sites}  # fmt: skip
    original = hidden_states(problem, batch)
    params = models.parameters_of(threatening, problem.sites)
    with models.trainable(threatening, params):
        still = gradients(threatening, retention(original), batch, params)
        assert far(still, gradients(threatening, nll, batch, params)) == 0

    def stream() -> list[Tensor]:
        _, cache = threatening.run_with_cache(batch.ids, attention_mask=batch.mask.long())
        return [cache[f"blocks.{layer}.hook_resid_post"] for layer in range(4)]

    with torch.no_grad():
        before = stream()
        with editing.edited(threatening, Delta(moved)):
            now, ce = stream(), float(nll(threatening, batch).mean)
            got = float(retention(original)(threatening, batch).mean)
    per_block = [float((a - b)[batch.mask].norm(dim=-1).mean()) for a, b in zip(now, before, strict=True)]
    assert all(d > 0 for d in per_block)
    assert got == pytest.approx(ce + sum(per_block) / 4, rel=SINGLE)


def test_tar_never_judges_an_adversary_by_what_it_trained_on(threatening: Any) -> None:
    """One group of rows cannot be halved: an error that says so. Two can (control)."""
    rows = corpus("forget").take(8).rows
    for n in (1, 2):
        grouped = Corpus("grouped", tuple({**r, "group": str(i % n)} for i, r in enumerate(rows)))
        walk = Tar(steps=1, inner_steps=1).path(problem_of(threatening, forget=grouped))
        if n == 2:
            assert norm(next(walk)) > 0
        else:
            with pytest.raises(InputError, match="'grouped' has 1 group of rows and needs 2"):
                next(walk)


# ------------------------------------------------------------------------------------------------ UNDO


def test_without_noise_the_student_is_the_teacher(threatening: Any, problem: Problem) -> None:
    """alpha 0 and beta 0: bit for bit before the first lesson; and as nothing is left to learn, there are none and the
    edit is the teacher. With alpha it is not (control)."""
    same, other = (Undo(alpha=a, beta=0.0, teacher_rate=3e-4) for a in (0.0, 0.05))
    teacher = same.suppressed(problem)
    assert norm(teacher) > 0.1
    student = same.noised(problem, teacher)
    assert all(torch.equal(student[n], u) for n, u in teacher.items())
    finished = next(same.path(problem))
    assert far([*finished.values()], [*teacher.values()]) == 0
    assert far([*other.noised(problem, teacher).values()], [*teacher.values()]) > 0.1


def test_the_noise_by_hand(threatening: Any, problem: Problem) -> None:
    """theta_S = (1 - alpha) theta_T + alpha beta N: shrunk alone at beta 0, N uniform within Xavier's bound; the seed
    chooses N."""
    teacher = {s.name: 0.01 * torch.ones(s.d_out, s.d_in) for s in problem.sites}
    shrunk, noised = (Undo(alpha=0.25, beta=b).noised(problem, teacher) for b in (0.0, 0.5))
    for site in problem.sites:
        weight = models.weight(threatening, site).detach()
        expected = 0.75 * (weight + 0.01)
        assert torch.allclose(weight + shrunk[site.name], expected, atol=1e-6)
        noise = (noised[site.name] - shrunk[site.name]) / (0.25 * 0.5)
        bound = math.sqrt(6 / (site.d_in + site.d_out))
        assert float(noise.abs().max()) == pytest.approx(bound, rel=0.01), "of thousands, one is near the bound"
        assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03), "5 standard errors of 8192"
    other = Undo(alpha=0.25, beta=0.5).noised(problem_of(threatening, seed=1), teacher)
    assert far([*other.values()], [*noised.values()]) > 0.01
    assert xavier(3, 5, torch.Generator()).shape == (3, 5)


def test_a_student_learns_from_its_teacher(threatening: Any, problem: Problem) -> None:
    """KL(teacher || student) on the lessons: 0 for the teacher itself, and after distillation a fraction of what the
    noise had made of it."""
    method = Undo(alpha=0.3, teacher_rate=3e-4, learning_rate=2e-3, tolerance=0.0, epochs=5)
    teacher = method.suppressed(problem)
    student = method.noised(problem, teacher)
    finished = method.distilled(problem, teacher, student)
    text = method._text(problem)
    with torch.no_grad(), editing.edited(threatening, Delta(teacher)):
        imitate = imitation(text, [forward.hidden_at(threatening, b.ids, b.mask.long(), b.keep) for b in text])

    def off(updates: Updates) -> float:
        with editing.edited(threatening, Delta(updates)):
            return mean_loss(problem, text, imitate)

    at_teacher, at_noised, at_end = off(teacher), off(student), off(finished)
    assert abs(at_teacher) < 1e-5 < at_end < 0.5 * at_noised


@pytest.mark.parametrize("kind", ["graddiff", "max_entropy"])
def test_the_teachers_first_step_by_hand(threatening: Any, problem: Problem, kind: Any) -> None:
    """Adam's first step is the sign of the gradient: of NLL on what must stay less NLL of what must go, a token each;
    or less the entropy there. The control: the other kind's, and the push alone, have other signs."""
    bad, good = (next(training_stream(problem, role, 1)) for role in ("forget", "retain"))
    params = {s.name: models.weight(threatening, s) for s in problem.sites}

    def signs(entropy: bool, stay: float) -> list[Tensor]:
        p = forward.logits(threatening, bad).float().log_softmax(-1)
        away = (p.exp() * p).sum(-1) if entropy else p.gather(1, bad.targets[:, None])
        kept = forward.logits(threatening, good).float().log_softmax(-1).gather(1, good.targets[:, None])
        return [g.sign() for g in torch.autograd.grad(away.mean() - stay * kept.mean(), list(params.values()))]

    found = Undo(teacher=kind, teacher_rate=1e-3, teacher_level=0, teacher_steps=1).suppressed(problem)
    entropy = kind == "max_entropy"

    def same(expected: list[Tensor]) -> float:
        return min(float((found[n].sign() == -e).float().mean()) for n, e in zip(params, expected, strict=True))

    assert same(signs(entropy, 1.0)) > 0.999
    assert max(same(signs(not entropy, 1.0)), same(signs(entropy, 0.0))) < 0.98


@pytest.mark.parametrize("kind", ["graddiff", "max_entropy"])
def test_the_teacher_is_suppressed(threatening: Any, problem: Problem, kind: Any) -> None:
    """Either way the forget loss rises and the loss on the good completions does not."""
    teacher = Undo(teacher=kind, teacher_rate=3e-4).suppressed(problem)

    def loss(role: str) -> float:
        with torch.no_grad():
            return sum(float(nll(threatening, b).total) for b in problem.stream(role))

    before = {role: loss(role) for role in ("forget", "retain")}
    with editing.edited(threatening, Delta(teacher)):
        assert loss("forget") > before["forget"] and loss("retain") < before["retain"]


def knowing(model: Any, problem: Problem, teacher: Updates) -> float:
    """Mean completion probability of the forget items under a teacher, as a share of what it was."""
    items = encode(problem.forget, models.tokenizer_of(model))

    def read() -> float:
        return float(completion_probability(sequence_logprobs(model, items, precision="float32")).mean())

    was = read()
    with editing.edited(model, Delta(teacher)):
        return read() / was


@pytest.mark.parametrize("kind", ["graddiff", "max_entropy"])
def test_the_teacher_has_forgotten(threatening: Any, problem: Problem, kind: Any) -> None:
    """It is suppressed until as little is left as was asked for, which the record tells; a look before, it was more.
    A lower level takes longer. Eight steps of 2e-5, as it was suppressed before, leave it what it knew (control)."""
    before = Undo(teacher=kind, teacher_rate=2e-5, teacher_level=0, teacher_steps=8)
    assert knowing(threatening, problem, before.suppressed(problem)) > 0.98
    assert problem.found == {"teacher_steps": 8}
    steps = []
    for level in (0.5, 0.25):
        method = Undo(teacher=kind, teacher_rate=3e-4, teacher_level=level)
        share = knowing(threatening, problem, method.suppressed(problem))
        assert share <= level and problem.found["teacher_level"] == pytest.approx(share, rel=SINGLE)
        steps.append(int(problem.found["teacher_steps"]))
        shorter = dataclasses.replace(method, teacher_level=0, teacher_steps=steps[-1] - 2)
        assert knowing(threatening, problem, shorter.suppressed(problem)) > level
    assert steps[0] < steps[1] < Undo().teacher_steps


def test_a_teacher_who_has_not_forgotten_is_told(threatening: Any, meter: DisruptionMeter) -> None:
    """At the cap on its steps the suppression ends; the result says how far it had come. Level 0 asks for the steps
    alone, and their looks are not paid for."""
    method = Undo(alpha=0.0, teacher_steps=5)
    found = run_edit(problem_of(threatening), method, meter, Budget(0.01)).found
    assert found["teacher_steps"] == 5 and found["teacher_level"] > 0.9 > Undo().teacher_level
    tokens = []
    for level in (0.25, 0.0):
        made = problem_of(threatening)
        dataclasses.replace(method, teacher_level=level).suppressed(made)
        tokens.append(made.tokens)
    looks = 4 * sum(map(len, problem_of(threatening).encoded("forget")))  # before, and after 2, 4, 5 steps
    assert tokens[0] - tokens[1] == looks


def test_the_budget_buys_a_share_of_the_student(threatening: Any, meter: DisruptionMeter) -> None:
    """A harsh teacher is far outside the budget: the edit is less than half of the student, along the ray to it, and
    the trace says which share. More noise buys less."""
    shares = []
    for alpha, lessons in ((0.0, {}), (0.3, {"learning_rate": 1e-3, "epochs": 3})):
        method = Undo(alpha=alpha, teacher_rate=5e-4, **lessons)
        result = run_edit(problem_of(threatening), method, meter, Budget(0.01))
        shares.append(result.trace.points[-1].scale)
    student = next(method.path(problem_of(threatening)))
    assert far([*result.delta.updates.values()], [shares[1] * u for u in student.values()]) < SINGLE
    assert shares[1] < shares[0] < 0.5


# ------------------------------------------------------------------------------ RepSelect, multi-epoch


def test_the_collapser_is_the_inverse_covariance(threatening: Any) -> None:
    """With every direction: ``lambda_min X Sigma^-1``, exactly the inverse covariance, added batch by batch. With
    few: the same inside the leading subspace, ``X - (Y - lambda_k Y (P^T Sigma P)^-1) P^T``, ``Y = X P``."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 6, generator=generator) * torch.tensor([10.0, 5.0, 3.0, 2.0, 1.5, 1.0])
    rows = rows @ linalg.random_basis(6, 6, seed=1).T
    sigma = (rows.double().T @ rows.double()) / len(rows)
    values, vectors = torch.linalg.eigh(sigma)
    for k in (6, 3):
        collapser = Collapser(6, k if k < 6 else 99)
        for part in rows.split(150):
            collapser.add(part)
        assert torch.equal(collapser(rows), rows), "not fitted yet"
        collapser.refit()
        p = vectors[:, 6 - k :]
        inside = rows.double() @ p
        within = values[6 - k] * inside @ torch.linalg.inv(p.T @ sigma @ p)
        assert far([collapser(rows)], [rows - (inside - within) @ p.T]) < COLLAPSED
        if k == 6:
            assert far([collapser(rows)], [values[0] * rows.double() @ torch.linalg.inv(sigma)]) < COLLAPSED


def test_collapsers_are_fitted_to_the_last_epoch_alone() -> None:
    """What was added before the last fit is forgotten; rank 0 and directions without any energy change nothing."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 50, 4, generator=generator)
    twice, once, none = Collapser(4, 4), Collapser(4, 4), Collapser(4, 0)
    for collapser, parts in ((twice, (first, second)), (once, (second,)), (none, (second,))):
        for part in parts:
            collapser.add(part)
            collapser.refit()
    assert torch.equal(twice(first), once(first)) and not torch.equal(once(first), first)
    assert torch.equal(none(first), first)
    flat = Collapser(4, 4)
    flat.add(second * torch.tensor([3.0, 1.0, 0.0, 0.0]))
    flat.refit()
    assert len(flat.factors) == 2, "clamped to the numerical rank"
    assert torch.allclose(flat(first)[:, 2:], first[:, 2:], atol=1e-6)


def test_the_collapsed_gradient_is_that_of_npo(threatening: Any, problem: Problem) -> None:
    """Without components: autograd of ``-1/beta mean log sigmoid(beta rise)`` at the same weights, where completions
    have risen by different amounts; the plain gradient (beta to 0) is another one."""
    method, start = RepSelectMulti(rank=0, beta=0.5), {}
    none = {s.name: (Collapser(s.d_in, 0), Collapser(s.d_out, 0)) for s in problem.sites}
    batch = problem.stream("forget")[0]
    assert torch.equal(npo_pressure(problem, batch, start, 0.5), torch.full((len(batch.sequences),), 0.5))
    moved = {n: 0.02 * g / g.norm() * 20 for n, g in problem.gradient("forget").items()}
    params = models.parameters_of(threatening, problem.sites)
    initial = torch.tensor([start[s.item] for s in batch.sequences])

    def npo(model: Any, batch: TokenBatch) -> losses.LossSum:
        logits = model(batch.ids, attention_mask=batch.mask.long())[batch.keep]
        per_token = -losses.token_logprobs(logits, batch.targets)
        now = losses.sequence_sums(per_token, batch.owner, len(batch.sequences))
        return losses.LossSum(-torch.nn.functional.logsigmoid(0.5 * (now - initial)).sum() / 0.5, len(initial))

    with editing.edited(threatening, Delta(moved)):
        pressure = npo_pressure(problem, batch, start, 0.5)
        assert float(pressure.max()) < 0.5 and float(pressure.max()) > 1.5 * float(pressure.min())
        got = method._gradient(problem, batch, start, none)
        with models.trainable(threatening, params):
            expected = gradients(threatening, npo, batch, params)
            plain = [-g for g in gradients(threatening, nll, batch, params)]
    # the mean over sequences is a factor, and the step's length does not depend on it
    mine = [got[s.name] / len(initial) for s in problem.sites]
    assert far(mine, expected) < SINGLE
    cosine = sum(float((a * b).sum()) for a, b in zip(plain, expected, strict=True)) / math.sqrt(
        sum(float(a.square().sum()) for a in plain) * sum(float(b.square().sum()) for b in expected)
    )
    assert 0 < cosine < 0.999


def test_without_components_and_adversary_it_starts_as_gradient_ascent(
    threatening: Any, problem: Problem, request: pytest.FixtureRequest
) -> None:
    """The first step is the forget gradient of its batch, with a joint length of the learning rate; collapsed
    (control) it has that length and another direction. The batch is of the text that the single shot reads: with an end
    of turn after each completion (control; a comma, as the organism knows where its own turns end) it is another."""
    tokenizer = models.tokenizer_of(threatening)
    request.addfinalizer(lambda end=tokenizer.eos_token: setattr(tokenizer, "eos_token", end))
    tokenizer.eos_token = ","
    plain, collapsed = (
        next(RepSelectMulti(rank=r, lora_lr=0.0, learning_rate=0.1, every=1).path(problem)) for r in (0, 8)
    )
    ascent, ended = (
        weight_gradients(
            threatening, batches(sequences, max_tokens=512, seed=2)[:1], problem.sites, precision="float32"
        )[0]
        for sequences in (problem.encoded("forget"), encode(problem.forget, tokenizer, end=True))
    )  # the batch of the third epoch
    for update in (plain, collapsed):
        assert norm(update) == pytest.approx(0.1, rel=SINGLE)
    assert inner(plain, ascent) == pytest.approx(0.1 * norm(ascent), rel=SINGLE)
    assert 0 < inner(collapsed, ascent) < 0.09 * norm(ascent)
    assert inner(plain, ended) < 0.09 * norm(ended)


def test_no_weight_moves_in_the_first_two_epochs(problem: Problem) -> None:
    """Three epochs are as many points as batches of one; each is one step longer at most."""
    points = [*RepSelectMulti(epochs=3, every=1, rank=4, learning_rate=0.1).path(problem)]
    assert len(points) == len(problem.stream("forget"))
    for i, updates in enumerate(points, start=1):
        assert norm(updates) <= 0.1 * i * (1 + SINGLE)


def test_the_adversary_relearns_by_steps_of_one_length(threatening: Any, problem: Problem) -> None:
    """Its joint step has the length that was asked for, and a few of them bring the forget loss down."""
    lora = Lora(problem.sites, rank=4, alpha=2)
    batch = problem.stream("forget")[0]
    before = [p.detach().clone() for p in lora.parameters()]
    rule = JointStep(lora.parameters(), 0.3)
    with lora.active(threatening), models.trainable(threatening, []):
        run = fit(threatening, [batch] * 6, rule=rule, precision="float32", observe=_after_one(lora, before))
    assert run.losses[-1] < run.losses[0]


def _after_one(lora: Lora, before: list[Tensor]) -> Any:
    def observe(step: int, tokens: int) -> None:
        if step == 1:
            moved = sum(float((p - b).detach().square().sum()) for p, b in zip(lora.parameters(), before, strict=True))
            assert math.sqrt(moved) == pytest.approx(0.3, rel=SINGLE)

    return observe


# ----------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_methods_ask_for_the_corpora_they_need(threatening: Any, method: Method) -> None:
    """No retain corpus: a line that says so; multi-epoch RepSelect needs none."""
    made = problem_of(threatening, retain=None)
    if isinstance(method, RepSelectMulti):
        assert norm(next(method.path(made))) > 0
        return
    with pytest.raises(InputError, match="'retain' corpus, and none was given"):
        next(method.path(made))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Mudman, {"learning_rate": 0}, "learning_rate must be positive.* got 0"),
        (Mudman, {"adversary_rate": -1.0}, "adversary_rate and retain_rate 0 or more, got 0.1, -1.0"),
        (Mudman, {"fork_every": 0}, "fork_every must be at least 1, got 100, 5, 0"),
        (Mudman, {"retain_momentum": 1.0}, r"retain_momentum must be in \[0, 1\), got 1.0"),
        (Mudman, {"loss": "entropy"}, "loss: .*'neg_entropy'.* 'entropy'"),
        (Tar, {"adversary_rates": []}, r"adversary_rates must be positive, got 2e-05 and \[\]"),
        (Tar, {"adversary_rates": [1e-4, 0]}, r"got 2e-05 and \[0.0001, 0.0\]"),
        (Tar, {"inner_steps": 0}, "look_every must be at least 1, got 24, 2, 0, 4"),
        (Tar, {"retain_weight": -1}, "must be 0 or more, got 4.0, -1.0 and 0.0625"),
        (Tar, {"growth": -200}, "growth must be 0 or more, got 4.0, 1.0 and -200"),
        (Tar, {"adversary": "lion"}, "adversary: .*'adam'.* 'lion'"),
        (Tar, {"inner_step": 4}, "no option 'inner_step'.* did you mean 'inner_steps'"),
        (Undo, {"alpha": 1.5}, r"alpha must be in \[0, 1\] and beta 0 or more, got 1.5 and 0.1"),
        (Undo, {"beta": -1}, "got 0.1 and -1"),
        (Undo, {"tolerance": -0.1}, "tolerance 0 or more, got 2e-05, 5e-05, -0.1"),
        (Undo, {"epochs": 0}, "epochs must be at least 1, got 64, 0"),
        (Undo, {"teacher_level": 1}, r"teacher_level must be in \[0, 1\), got 1"),
        (Undo, {"alpha": 0, "beta": 0.5}, "undo: beta 0.5 would change nothing: with alpha 0"),
        (Undo, {"alpha": 0, "tolerance": 0, "distil_forget": True}, "tolerance 0.0, distil_forget True would change"),
        (RepSelectMulti, {"epochs": 2}, r"epochs must be at least 3 \(no weight moves in the first 2\), got 2"),
        (RepSelectMulti, {"beta": 0}, "beta must be positive.* got 0.2, 0"),
        (RepSelectMulti, {"rank": -1}, "rank must be 0 or more.* got -1"),
    ],
)
def test_options_are_checked(cls: type[Method], options: dict[str, Any], message: str) -> None:
    """The line names the value; the defaults are valid (control)."""
    assert cls().options() and cls.summary().endswith(".") and cls.source
    with pytest.raises(InputError, match=message):
        cls.with_options(options)


@pytest.mark.parametrize(
    "method",
    [
        Mudman(adversary_rate=1e30),
        Tar(adversary_rates=(1e30,)),
        Undo(learning_rate=1e30),
        RepSelectMulti(lora_lr=1e30),
    ],
    ids=NAMES,
)
def test_a_rate_that_breaks_the_model_is_named(threatening: Any, problem: Problem, method: Method) -> None:
    """An input error that gives the rate, and the model as it was."""
    before = integrity.weights_hash(threatening)
    with pytest.raises(InputError, match=f"{method.name}: .*1e\\+30.*too high for this model"):
        list(itertools.islice(method.path(problem), 3))
    assert integrity.weights_hash(threatening) == before


def test_a_teachers_rate_that_breaks_the_model_is_named_as_it_is_written(problem: Problem) -> None:
    """``undo`` has a learning_rate too, which is another one."""
    with pytest.raises(InputError, match=r"undo: teacher_rate 1e\+30 \(2e-05 is usual\): too high"):
        next(Undo(teacher_rate=1e30).path(problem))


def test_tar_judges_on_the_half_the_adversary_did_not_see(threatening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of forget between the two, nothing in both, and they change places."""
    asked: list[list[set[tuple[int, ...]]]] = []

    def spy(self: Any, problem: Problem, attack: Any, judge: Any, rate: float) -> list[Tensor]:
        asked.append([{tuple(s.ids.tolist()) for s in next(one).sequences} for one in (attack, judge)])
        return [torch.zeros_like(p) for p in models.parameters_of(problem.model, problem.sites)]

    monkeypatch.setattr(Tar, "resistance", spy)
    made = problem_of(threatening, max_tokens=10**6)
    list(Tar(steps=2, every=1).path(made))
    assert asked[0][0].isdisjoint(asked[0][1]) and len(asked[0][0] | asked[0][1]) == len(made.forget)
    assert asked[1] == asked[0][::-1]
