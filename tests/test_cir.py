"""CIR: the collapse against a loop over tokens, its components, its walk on the tiny organism."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import corpus
from editing import first_update
from editing import problem_of as any_problem_of
from torch import Tensor

from hooklearn import editing, forward, integrity, linalg, models
from hooklearn.data import batches, encode
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import LANDING, run_edit
from hooklearn.edit.ascent import GradientAscent
from hooklearn.edit.cir import CIR, collapsed, confusion_loss, drift_loss, inner_tokens, irrelevant
from hooklearn.edit.method import delta_of, inner, norm
from hooklearn.edit.steering import states
from hooklearn.forward import sequence_logprobs
from hooklearn.locate.capture import tapes
from hooklearn.measure import completion_probability
from hooklearn.moments import Moments
from hooklearn.types import Budget, InputError

SINGLE = 1e-5
"""Relative, float32: the same sums in another order."""
MOVED = 1e-4
"""Relative, of a step read back as the difference of two weights a hundred times as large."""
ALL = 10**6
"""Tokens in a batch: everything at once."""
TINY = CIR(target_layers=(2, 3), x_components=4, g_components=4, step_norm=0.05)
"""The defaults are for models a thousand times this size."""


# one batch: the by-hand loops see all tokens at once
problem_of = functools.partial(any_problem_of, reference=None, max_tokens=ALL)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------ the collapse


def test_the_collapse_is_a_loop_over_tokens() -> None:
    """Mean and top components out of each x_t and each g_t, one direction after the other, then the outer products;
    without the collapse it is something else (positive control)."""
    x, g = randn(50, 12) + 2.0, randn(50, 9, seed=1) - 1.0
    bases = [irrelevant(Moments.of(rows), 4) for rows in (x, g)]
    by_hand = torch.zeros(9, 12)
    for token in range(50):
        sides = []
        for rows, basis in zip((x, g), bases, strict=True):
            row = rows[token].clone()
            for direction in basis.T:
                row -= (row @ direction) * direction
            sides.append(row)
        by_hand += torch.outer(sides[1], sides[0])
    closed = collapsed(g.T @ x, *bases)
    assert float((closed - by_hand).norm() / by_hand.norm()) < SINGLE
    assert float((g.T @ x - by_hand).norm() / by_hand.norm()) > 1


def test_components_are_the_mean_and_the_principal_directions() -> None:
    """Of planted data: a mean and two strong directions, not orthogonal to one another, and found among noise."""
    d, n = 20, 400
    mean, strong = 5 * randn(d, seed=1), randn(2, d, seed=2)
    rows = mean + randn(n, 2, seed=3) * torch.tensor([6.0, 4.0]) @ strong + 0.01 * randn(n, d, seed=4)
    planted = linalg.orthonormal(torch.stack([mean, *strong], 1))
    found = irrelevant(Moments.of(rows), 3)
    assert float((found.T @ found - torch.eye(3)).abs().max()) < SINGLE
    assert float(linalg.principal_cosines(found, planted)[-1]) > 0.9999, "noise of .01 against 5"
    alone = irrelevant(Moments.of(rows), 1)[:, 0]
    assert abs(float(alone @ rows.mean(0) / rows.mean(0).norm())) > 1 - SINGLE, "one component is the mean"


@pytest.mark.parametrize(("rows", "count", "rank"), [(50, 0, 0), (50, 3, 3), (3, 8, 3), (1, 8, 1), (50, 99, 12)])
def test_there_are_no_more_components_than_tokens_span(rows: int, count: int, rank: int) -> None:
    """A basis padded with rounding noise would collapse directions that nothing was measured in."""
    assert irrelevant(Moments.of(randn(rows, 12) + 1.0), count).shape == (12, rank)


def test_first_last_and_padding_do_not_count(threatening: Any) -> None:
    """On padded rows: of a sequence of n tokens those numbered skip .. n-2, whatever the batch's width."""
    (batch,) = batches(encode(corpus("forget").take(6), models.tokenizer_of(threatening)))
    assert not bool(batch.mask.all())
    for skip in (0, 1, 3):
        kept = inner_tokens(batch, skip)
        for row, s in zip(kept, batch.sequences, strict=True):
            assert row.nonzero().flatten().tolist() == list(range(skip, len(s) - 1))


# ------------------------------------------------------------------------------------- the losses


def test_losses_by_hand() -> None:
    """Two layers of two tokens; old lengths 5 and 1 (mean 3), 2 and 2 (mean 2)."""
    before = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]])
    now = torch.tensor([[[1.0, 1.0], [-9.0, 0.0]], [[4.0, 7.0], [1.0, 1.0]]])
    # products 7, -9 (counts as 0), 8, 2 over 9, 9, 4, 4; not clipped above 1
    assert float(confusion_loss(now, before)) == pytest.approx((7 / 9 + 0 + 2 + 0.5) / 4)
    # distances sqrt(13), 10 over a mean length of 3
    assert float(drift_loss(now[:1], before[:1])) == pytest.approx((13**0.5 + 10) / 2 / 3)


@pytest.mark.parametrize("positions", ["all", "labelled"])
def test_tapes_are_the_gradient_of_the_loss(threatening: Any, positions: Any) -> None:
    """sum g x^T over the tokens that count is what backward gives the weights, attention included; for the edited
    model's MLP outputs against those of the unedited one, which nothing else here computes. The last token of a
    sequence counts too, as the loss reads it: of an answer of one token it is all that it reads."""
    method, made = CIR(target_layers=(1, 2), skip=0, positions=positions, retain_rate=0), problem_of(threatening, "all")
    sites = [s for s in made.sites if s.layer <= 2]
    (batch,) = made.stream("forget")
    (pair,) = method._pairs(made, (1, 2))
    params = models.parameters_of(threatening, sites)
    elsewhere = {s.name: 0.02 * randn(s.d_out, s.d_in, seed=i) for i, s in enumerate(sites)}

    def outputs() -> list[Tensor]:
        found: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            found[hook.name] = value[batch.mask if positions == "all" else batch.labels]

        names = [f"blocks.{layer}.mlp.hook_out" for layer in (1, 2)]
        with threatening.hooks(fwd_hooks=[(n, keep) for n in names]):
            forward.logits(threatening, batch)
        return [found[n] for n in names]

    with torch.no_grad():
        before = torch.stack(outputs())
    with editing.edited(threatening, delta_of(elsewhere)), models.trainable(threatening, params):
        taped = method._tapes(made, sites, (1, 2), pair)
        confusion_loss(torch.stack(outputs()), before).backward()
        for site, p in zip(sites, params, strict=True):
            assert p.grad is not None
            assert float((taped[site.name].update() - p.grad).norm() / p.grad.norm()) < 1e-4, site


# ----------------------------------------------------------------------------------------- the walk


def test_without_components_it_is_gradient_ascent(threatening: Any) -> None:
    """One batch, no token dropped, nothing taken out: the first step is the forget gradient, of the given length.
    With components, or without the first tokens, it is not (positive control)."""
    made = problem_of(threatening)
    ascent = next(GradientAscent().path(made))
    plain = CIR(loss="ascent", x_components=0, g_components=0, retain_rate=0, skip=0, step_norm=0.1, every=1)
    step = first_update(plain, made)
    assert norm(step) == pytest.approx(0.1, rel=MOVED)
    for name, update in ascent.items():
        assert float((step[name] / 0.1 - update / norm(ascent)).norm()) < MOVED

    def cosine(method: CIR) -> float:
        other = first_update(method, made)
        return inner(other, ascent) / norm(other) / norm(ascent)

    assert cosine(plain) > 1 - MOVED
    some = {"loss": "ascent", "retain_rate": 0, "every": 1, "step_norm": 0.1}
    assert 0.05 < cosine(CIR(**some, x_components=4, g_components=4, skip=0)) < 0.9
    assert cosine(CIR(**some, x_components=0, g_components=0, skip=1)) < 0.999


def test_the_first_step_is_off_the_components_of_the_first_epoch(threatening: Any) -> None:
    """They are the mean and top components of what an independent capture records; ascent goes along them."""
    made = problem_of(threatening)
    step = first_update(CIR(loss="ascent", x_components=3, g_components=5, retain_rate=0, every=1), made)
    ((batch, taped),) = tapes(threatening, made.stream("forget"), made.sites, precision="float32")
    kept = inner_tokens(batch, 1)[batch.mask]
    for name, tape in taped.items():
        assert tape.g is not None
        ascent = tape.update()
        for rows, count, written, plain in ((tape.x, 3, step[name], ascent), (tape.g, 5, step[name].T, ascent.T)):
            rows = rows[kept]
            centred = rows - rows.mean(0)
            strong = torch.linalg.svd(centred, full_matrices=False).Vh[: count - 1].T
            taken = torch.cat([(rows.mean(0) / rows.mean(0).norm())[:, None], strong], 1)
            assert float((written @ taken).norm() / written.norm()) < 1e-3, "float32 second moments"
            assert float((plain @ taken).norm() / plain.norm()) > 0.1


def test_components_are_found_anew_every_epoch(threatening: Any, monkeypatch: Any) -> None:
    """The first epoch changes nothing; after each the components are of that epoch's tokens, not collapsed ones."""
    found: list[Tensor] = []

    def spy(moments: Moments, count: int) -> Tensor:
        found.append(moments.mean)
        return irrelevant(moments, count)

    monkeypatch.setattr("hooklearn.edit.cir.irrelevant", spy)
    method = CIR(loss="ascent", x_components=2, g_components=2, retain_rate=0, epochs=3, every=1, step_norm=1.0)
    walked = list(method.path(problem_of(threatening, "mlp.out", [1], max_tokens=512)))
    per_epoch = len(problem_of(threatening, max_tokens=512).stream("forget"))
    assert per_epoch > 1 and len(walked) == 3 * per_epoch
    x_means = found[::2]
    assert len(x_means) == 4
    # this site's inputs depend on no edited weight: the same tokens every epoch, whole
    assert all(torch.equal(m, x_means[0]) for m in x_means) and float(x_means[0].norm()) > 0
    g_means = found[1::2]
    assert float((g_means[2] - g_means[0]).norm() / g_means[0].norm()) > 0.01


def test_only_early_layers_are_edited(threatening: Any) -> None:
    """By default up to 3/8 of the depth; with ascent everywhere, unless target layers say otherwise."""
    made = problem_of(threatening)

    def layers(method: CIR) -> set[int]:
        edited = first_update(method, made)
        return {s.layer for s in made.sites if s.name in edited}

    few = {"x_components": 2, "g_components": 2}
    assert layers(CIR(**few)) == {0}
    assert layers(CIR(**few, target_layers=(1, 2))) == {0, 1, 2}
    assert layers(CIR(**few, loss="ascent")) == {0, 1, 2, 3}
    assert layers(CIR(**few, loss="ascent", target_layers=(1,))) == {0, 1}
    assert CIR()._targets(32) == (6, 7, 8, 9, 10, 11), "the paper's for Llama-3.1-8B"


def test_the_retain_step_holds_the_states(threatening: Any) -> None:
    """After as many steps the retain states have drifted less; without it no retain corpus is needed."""
    (batch,) = batches(encode(corpus("forget", "good"), models.tokenizer_of(threatening)), max_tokens=ALL)

    def state() -> Tensor:
        with torch.no_grad():
            return states(threatening, batch, ["blocks.3.hook_out"], batch.mask, 3)

    before = state()

    def drift(retain_rate: float, **changed: Any) -> float:
        method = replace(TINY, target_layers=(3,), step_norm=0.1, retain_rate=retain_rate, epochs=4, every=99)
        *_, last = method.path(problem_of(threatening, max_tokens=512, **changed))
        with editing.edited(threatening, delta_of(last)):
            return float(drift_loss(state(), before))

    assert drift(0.1) < 0.6 * drift(0.0, retain=None)


def test_all_of_the_retain_text_is_held(threatening: Any, monkeypatch: Any) -> None:
    """Of four times as many rows as there are of forget every one, in some epoch, and as often as any other; each
    against what the *unedited* model holds on it, also when the model has long been walked away from that."""
    made = problem_of(
        threatening, forget=corpus("forget").take(12), retain=corpus("forget", "good").take(48), max_tokens=128
    )  # fmt: skip
    pairs: list[Any] = []
    monkeypatch.setattr(CIR, "_hold", lambda self, problem, targets, pair, rule: pairs.append(pair))
    method = replace(TINY, step_norm=0.5)
    for _ in itertools.islice(method.path(made), 16):
        held = Counter(s.item for pair in pairs for s in pair.retain.sequences)
    assert set(held) == set(range(48)) and max(held.values()) <= min(held.values()) + 1
    last = pairs[-1]
    with torch.no_grad():
        now = states(threatening, last.retain, ["blocks.3.hook_out"], last.retain.mask, 3)
    assert float((now - last.held).abs().max()) < SINGLE


@pytest.mark.parametrize("method", [TINY, CIR(loss="ascent", x_components=4, g_components=4, step_norm=0.05)])
@pytest.mark.parametrize("near_ce", [None, 0.02])
def test_it_lands_on_the_budget(threatening: Any, meter: DisruptionMeter, method: CIR, near_ce: float | None) -> None:
    """In [0.95, 1] of the tighter budget; the forget items suffer, the model is left bit for bit as it was."""
    some = encode(corpus("forget").take(12), models.tokenizer_of(threatening))
    known = float(completion_probability(sequence_logprobs(threatening, some)).mean())
    before, budget = integrity.weights_hash(threatening), Budget(0.01, near_ce)
    result = run_edit(problem_of(threatening, max_tokens=512), method, meter, budget)
    assert integrity.weights_hash(threatening) == before == result.delta.base_hash
    assert LANDING[0] <= result.disruption.used(budget) <= LANDING[1]
    assert result.stop == f"budget ({result.disruption.binding(budget)})"
    with editing.edited(threatening, result.delta):
        assert float(completion_probability(sequence_logprobs(threatening, some)).mean()) < known - 0.002
    if near_ce is None:
        again = run_edit(problem_of(threatening, max_tokens=512), method, meter, budget)
        assert all(torch.equal(u, again.delta.updates[n]) for n, u in result.delta.updates.items()), "same seed"


def test_a_walk_too_short_for_the_budget_says_so(threatening: Any, meter: DisruptionMeter) -> None:
    result = run_edit(problem_of(threatening), CIR(step_norm=1e-3, epochs=2), meter, Budget(0.01))
    assert result.stop == "budget not reached: the method ended before"
    assert 0 < result.disruption.used(Budget(0.01)) < LANDING[0]


def test_every_pass_is_paid_for(threatening: Any) -> None:
    """Old outputs, tapes of the first epoch and of the second, states that are held: so many tokens."""
    made = problem_of(threatening)
    bad, good = (made.stream(role)[0].n_tokens for role in ("forget", "retain"))
    first_update(CIR(x_components=1, g_components=1), made)
    assert made.tokens == 2 * (2 * bad + good) + good


# ------------------------------------------------------------------------------------ wrong input


def test_a_collapse_of_everything_is_noticed(threatening: Any) -> None:
    """As many components as dimensions: what is left is rounding, and no step is made of it. The message says how
    many there are: half of them do (control)."""
    nothing = "cir: 200 x_components and 200 g_components leave nothing of the gradient.* no more than ([0-9]+) and "
    with pytest.raises(InputError, match=nothing) as told:
        first_update(CIR(x_components=200, g_components=200, loss="ascent"), problem_of(threatening))
    found = re.search(nothing, str(told.value))
    assert found
    half = int(found[1]) // 2
    assert first_update(CIR(x_components=half, g_components=half, loss="ascent"), problem_of(threatening))


@pytest.mark.parametrize(
    ("method", "which", "layers", "message"),
    [
        (CIR(), "mlp", "1-3", "cir: no site given lies in layers 0-0"),
        (CIR(target_layers=(2, 9)), "mlp", None, r"cir: layers \[2, 9\] must be some of 0-3"),
    ],
)
def test_sites_and_layers_that_do_not_meet(
    threatening: Any, method: CIR, which: Any, layers: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        first_update(method, problem_of(threatening, which, layers))


def test_the_retain_step_asks_for_its_corpus(threatening: Any) -> None:
    """Named by its role; with rate 0 nothing is asked for (positive control)."""
    made = problem_of(threatening, retain=None)
    with pytest.raises(InputError, match="'retain' corpus, and none was given"):
        first_update(CIR(), made)
    assert first_update(CIR(retain_rate=0), made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_components": -1}, "cir: x_components must be 0 or more, got -1"),
        ({"skip": -2}, "cir: skip must be 0 or more, got -2"),
        ({"retain_rate": -0.1}, "cir: retain_rate must be 0 or more, got -0.1"),
        ({"step_norm": 0}, "cir: step_norm, epochs and every must be positive, got 0"),
        ({"epochs": 0}, "must be positive, got 0.2, 0, 2"),
        ({"loss": "nll"}, "loss: .*'mlp_confuse' or 'ascent' .*nll"),
        ({"g_component": 3}, "no option 'g_component'; .*did you mean 'g_components'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    """Value and what would be valid; the defaults are (positive control)."""
    assert CIR.with_options({}).options() == CIR().options()
    with pytest.raises(InputError, match=message):
        CIR.with_options(options)
