"""RMU and circuit breakers: the losses by hand, the states they read, and what they do to the tiny organism."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import corpus
from editing import first_update, forget_score, problem_of
from torch import Tensor

from hooklearn import editing, integrity, models
from hooklearn.config import EditConfig
from hooklearn.data import TokenBatch, batches, encode
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import LANDING, run_edit
from hooklearn.edit.method import delta_of
from hooklearn.edit.steering import (
    RMU,
    CircuitBreakers,
    breaker_weights,
    distance_loss,
    misdirection_loss,
    random_direction,
    rerouting_loss,
    residual,
)  # fmt: skip
from hooklearn.running.sweep_config import MethodSpec
from hooklearn.types import Budget, InputError, Site

SINGLE = 1e-5
"""Relative, float32: the same sums in another order."""
ALL = 10**6
"""Tokens in a batch: everything at once."""
TINY: dict[str, Any] = {
    "rmu": RMU(layer=2, steering=20.0, alpha=30.0, learning_rate=1e-3),
    "circuit_breakers": CircuitBreakers(learning_rate=7e-4, epochs=24),
}
"""The defaults are for models a thousand times this size."""


def hidden_by_hand(model: Any, sequences: Any, layer: int, positions: str = "labelled") -> Tensor:
    """Hugging Face's own hidden states, one sequence at a time: no batch, no padding, no hooks."""
    rows = []
    with torch.no_grad():
        for s in sequences:
            found = model.original_model(s.ids[None], output_hidden_states=True).hidden_states[layer + 1][0]
            before = torch.cat([s.labels[1:], torch.tensor([False])])
            rows.append(found[{"labelled": s.labels, "predicting": before, "all": s.labels | True}[positions]])
    return torch.cat(rows)


def both(model: Any) -> tuple[TokenBatch, TokenBatch]:
    """The bad and the good completions, a batch each."""
    encoded = (encode(corpus("forget", c), models.tokenizer_of(model)) for c in ("bad", "good"))
    return tuple(batches(sequences, max_tokens=ALL)[0] for sequences in encoded)  # type: ignore[return-value]


# ----------------------------------------------------------------------------------------- losses


def test_losses_by_hand() -> None:
    """Numbers small enough for paper; two layers of two tokens of two coordinates."""
    now = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [-1.0, 0.0]]])
    before = torch.tensor([[[5.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
    # squares: 16+0, 1+4, 4+16, 4+0 = 45 over 8 numbers
    assert float(misdirection_loss(now, before)) == pytest.approx(45 / 8)
    assert float(misdirection_loss(now, torch.tensor([1.0, 0.0]))) == pytest.approx((0 + 1 + 4 + 4 + 16 + 4) / 8)
    # cosines: 1, 0, .6, -1 (counts as 0)
    assert float(rerouting_loss(now, before)) == pytest.approx(1.6 / 4)
    # distances: 4, sqrt 5, sqrt 20, 2
    assert float(distance_loss(now, before)) == pytest.approx((4 + math.sqrt(5) + math.sqrt(20) + 2) / 4)


def test_the_schedule_moves_from_forget_to_retain() -> None:
    """alpha (1 - t/2T) and alpha t/2T: nothing is held at first, both weigh the same at the end."""
    assert breaker_weights(10.0, 0.0) == (10.0, 0.0)
    assert breaker_weights(10.0, 0.5) == (7.5, 2.5)
    assert breaker_weights(10.0, 1.0) == (5.0, 5.0)


def test_the_first_step_has_a_gradient() -> None:
    """At h = h_0 a norm has no derivative: it must be 0 there, and not NaN (off it, it is the unit vector)."""
    before = torch.tensor([[[3.0, 4.0]]])
    for now, expected in ((before, [0.0, 0.0]), (before + torch.tensor([0.0, 2.0]), [0.0, 1.0])):
        now = now.clone().requires_grad_()
        distance_loss(now, before).backward()
        assert now.grad is not None and now.grad.flatten().tolist() == expected


def test_the_random_direction_is_seeded_and_positive() -> None:
    """Unit norm, all coordinates positive as in the paper; the global generator is left alone."""
    state = torch.get_rng_state()
    u = random_direction(64, 3)
    assert float(u.norm()) == pytest.approx(1.0) and float(u.min()) >= 0
    assert torch.equal(u, random_direction(64, 3)) and not torch.equal(u, random_direction(64, 4))
    assert torch.equal(torch.get_rng_state(), state)


# ----------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("positions", ["labelled", "predicting", "all"])
def test_states_are_the_residual_stream_after_the_block(threatening: Any, positions: Any) -> None:
    """As Hugging Face gives it without padding, for every layer; the layers differ (positive control)."""
    sequences = encode(corpus("forget").take(5), models.tokenizer_of(threatening))
    (batch,) = batches(sequences)
    assert not bool(batch.mask.all()), "there is padding to leave out"
    found = residual(threatening, batch, [0, 2], positions).detach()
    for i, layer in enumerate((0, 2)):
        expected = hidden_by_hand(threatening, batch.sequences, layer, positions)
        assert float((found[i] - expected).norm() / expected.norm()) < SINGLE
    assert float((found[0] - found[1]).norm() / found[0].norm()) > 0.1


@pytest.mark.parametrize("name", TINY)
def test_the_loss_is_what_the_papers_say(threatening: Any, monkeypatch: Any, name: str) -> None:
    """The second step's value, from Hugging Face's hidden states token by token, before and after the first."""
    method, seen = TINY[name], []
    loss_of = type(method).loss

    def spy(self: Any, forget: Tensor, retain: Tensor, pair: Any, seed: int) -> Tensor:
        loss = loss_of(self, forget, retain, pair, seed)
        seen.append((float(loss.detach()), pair.progress))
        return loss

    monkeypatch.setattr(type(method), "loss", spy)
    two_steps = type(method)(**(method.options() | {"every": 1, "epochs": 2}))
    few = {"forget": corpus("forget").take(6), "retain": corpus("near", "good").take(6)}
    path = two_steps.path(problem_of(threatening, max_tokens=ALL, **few))
    first = next(path)
    next(path)
    bad, good = (encode(c, models.tokenizer_of(threatening), end=True) for c in few.values())
    targets, held = ([2], [2]) if name == "rmu" else ([0, 1], [0, 1])

    def look() -> tuple[Tensor, Tensor]:
        return tuple(  # type: ignore[return-value]
            torch.cat([hidden_by_hand(threatening, c, at) for at in layers])
            for c, layers in ((bad, targets), (good, held))
        )

    before = look()
    with editing.edited(threatening, delta_of(first)):
        after = look()
    if name == "rmu":
        c_u = 20.0 * random_direction(64, 0)
        expected = float((after[0] - c_u).square().mean() + 30.0 * (after[1] - before[1]).square().mean())
    else:
        turned, moved = (list(zip(after[i], before[i], strict=True)) for i in (0, 1))
        reroute = sum(max(0.0, float((h @ o) / h.norm() / o.norm())) for h, o in turned) / len(turned)
        hold = sum(float((h - o).norm()) for h, o in moved) / len(moved)
        expected = 10.0 * (1 - 0.5) * reroute + 10.0 * 0.5 * hold  # the last of two steps
        assert hold > 0.01 and [p for _, p in seen] == [0.5, 1.0]
    assert seen[1][0] == pytest.approx(expected, rel=SINGLE)


def test_what_is_held_is_what_the_unedited_model_held(threatening: Any, monkeypatch: Any) -> None:
    """The reference of every step is read with the weights as they were, however far the walk has come."""
    (batch,) = batches(encode(corpus("forget", "good"), models.tokenizer_of(threatening), end=True), max_tokens=ALL)
    unedited = residual(threatening, batch, [1], "labelled").detach().norm(dim=-1).sum()
    references, current = [], []

    def spy(self: Any, forget: Tensor, retain: Tensor, pair: Any, seed: int) -> Tensor:
        references.append(pair.retain_before.norm(dim=-1).sum())
        current.append(retain.detach().norm(dim=-1).sum())
        return retain.square().mean()

    monkeypatch.setattr(RMU, "loss", spy)
    made = problem_of(threatening, max_tokens=ALL)
    walked = list(RMU(learning_rate=1e-2, epochs=4, every=1).path(made))
    assert len(walked) == len(references) == 4
    # the norm of a sum does not depend on the order in which sequences were shuffled
    assert all(float(r / unedited - 1) == pytest.approx(0, abs=SINGLE) for r in references)
    assert abs(float(current[-1] / unedited - 1)) > 0.01, "and the walk did come somewhere"


# ------------------------------------------------------------------------------------------ sites


def test_rmu_edits_three_down_projections_or_all_below(threatening: Any) -> None:
    """The default layer is two fifths of the depth; sites above it cannot move its states and are left out."""
    made = problem_of(threatening, ["mlp", "attn"])
    assert set(first_update(RMU(), made)) == {"blocks.0.mlp.out", "blocks.1.mlp.out"}
    assert set(first_update(RMU(layer=3), made)) == {f"blocks.{i}.mlp.out" for i in (1, 2, 3)}
    some = first_update(RMU(update="all"), made)
    assert set(some) == {site.name for site in made.sites if site.layer <= 1} and len(some) == 14
    assert all(float(u.norm()) > 0 for u in some.values()), "each of them has a gradient"


@pytest.mark.parametrize(("n_layers", "layer"), [(32, 7), (30, 7), (18, 4), (16, 4), (4, 1), (1, 0)])
def test_the_originals_layer_at_any_depth(n_layers: int, layer: int) -> None:
    """7 of 32, the nearest block; the three down projections that end there. The default is another (control)."""
    sites = [Site(i, "mlp.out", 1, 1) for i in range(n_layers)]
    problem: Any = SimpleNamespace(model=SimpleNamespace(cfg=SimpleNamespace(n_layers=n_layers)), sites=sites)
    plan = RMU(layer="original").plan(problem)
    assert plan.forget == plan.retain == (layer,)
    assert [site.layer for site in plan.sites] == list(range(max(0, layer - 2), layer + 1))
    assert RMU.with_options({"layer": "original"}) == RMU(layer="original") != RMU.with_options({"layer": "7"})
    assert RMU().plan(problem).forget == (2 * n_layers // 5,)


def test_the_variants_of_the_card_are_what_it_says(threatening: Any) -> None:
    """Its lines, as a sweep reads them. The all-parameter one moves attention, which without ``sites`` is not given
    (control); the original's edits down projections alone."""
    card = (Path(__file__).parents[1] / "docs/cards/rmu.md").read_text(encoding="utf-8")
    methods = [line for block in card.split("```yaml\n")[1:] for line in yaml.safe_load(block.partition("```")[0])]
    assert [m["label"] for m in methods] == ["rmu-original", "rmu-all"]
    moved = {}
    for given in (*methods, {"name": "rmu", "update": "all", "label": "unasked"}):
        edit = MethodSpec.model_validate(given).edit(EditConfig(), {})
        updates = first_update(RMU.with_options(edit.options), problem_of(threatening, edit.sites))
        moved[given["label"]] = {name.split(".")[2] for name, update in updates.items() if float(update.norm()) > 0}
    assert moved == {"rmu-original": {"mlp"}, "rmu-all": {"mlp", "attn"}, "unasked": {"mlp"}}


def test_circuit_breakers_edit_up_to_the_highest_target(threatening: Any) -> None:
    """After the blocks 9 and 19 of 32 (hidden states 10 and 20, as the authors count), 0 and 1 of 4."""
    made = problem_of(threatening)
    updates = first_update(CircuitBreakers(), made)
    assert set(updates) == {site.name for site in made.sites if site.layer <= 1}
    assert set(first_update(CircuitBreakers(target_layers=(0,)), made)) == {
        site.name for site in made.sites if site.layer == 0
    }


@pytest.mark.parametrize(
    ("method", "which", "layers", "message"),
    [
        (RMU(), "mlp.gate", None, "rmu: update 'original' edits mlp.out of layers 0-1, and none of the 4 sites given"),
        (RMU(), "mlp.out", "2-3", "rmu: .* block 1 depend on layers 0-1 only, and the lowest site given is in layer 2"),
        (RMU(layer=3), "mlp.out", [0], "rmu: update 'original' edits mlp.out of layers 1-3"),
        (RMU(layer=4), "mlp", None, r"rmu: layers \[4\] must be some of 0-3"),
        (CircuitBreakers(target_layers=(1, 7)), "mlp", None, r"circuit_breakers: layers \[1, 7\] must be some of 0-3"),
        (CircuitBreakers(target_layers=()), "mlp", None, r"circuit_breakers: layers \[\] must be"),
        (CircuitBreakers(), "mlp", "3", "circuit_breakers: .* lowest site given is in layer 3"),
    ],
)  # fmt: skip
def test_sites_and_layers_that_do_not_meet(
    threatening: Any, method: Any, which: Any, layers: Any, message: str
) -> None:
    """Said before anything is computed, with what would do."""
    with pytest.raises(InputError, match=message):
        first_update(method, problem_of(threatening, which, layers))


# ---------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize("near_ce", [None, 0.02])
@pytest.mark.parametrize("name", TINY)
def test_they_land_on_the_budget(threatening: Any, meter: DisruptionMeter, name: str, near_ce: float | None) -> None:
    """In [0.95, 1] of the tighter budget; the forget items suffer, the model is left bit for bit as it was.

    Where the near budget ends the turning of states on its first steps, they need not suffer yet: which step crosses it
    is decided by the processor's rounding.
    """
    known, before = forget_score(threatening), integrity.weights_hash(threatening)
    budget = Budget(0.01, near_ce)
    result = run_edit(problem_of(threatening), TINY[name], meter, budget)
    assert integrity.weights_hash(threatening) == before == result.delta.base_hash
    assert LANDING[0] <= result.disruption.used(budget) <= LANDING[1]
    assert result.stop == f"budget ({result.disruption.binding(budget)})"
    ended_early = name == "circuit_breakers" and result.binding == "near_ce"
    assert ended_early or forget_score(threatening, result) < known - 0.005
    if near_ce is None:
        again = run_edit(problem_of(threatening), TINY[name], meter, budget)
        assert all(torch.equal(u, again.delta.updates[n]) for n, u in result.delta.updates.items()), "same seed"


def test_a_walk_too_short_for_the_budget_says_so(threatening: Any, meter: DisruptionMeter) -> None:
    """RMU with the paper's retain weight hardly moves so small a model; that is no silent landing."""
    result = run_edit(problem_of(threatening), RMU(epochs=1), meter, Budget(0.01))
    assert result.stop == "budget not reached: the method ended before"
    assert 0 < result.disruption.used(Budget(0.01)) < LANDING[0]


@pytest.mark.parametrize("relative", [False, True])
def test_rmu_sends_forget_states_where_it_says(threatening: Any, relative: bool) -> None:
    """Towards c u, in units of the old length if relative; and the retain weight holds the others (control: 0)."""
    (bad,), (good,) = (
        batches(encode(corpus("forget", c), models.tokenizer_of(threatening)), max_tokens=ALL) for c in ("bad", "good")
    )

    def walked(alpha: float) -> tuple[Tensor, Tensor]:
        method = RMU(layer=2, steering=1.0 if relative else 20.0, relative=relative, alpha=alpha, learning_rate=1e-3)
        method = replace(method, epochs=5, every=15)
        *_, last = method.path(problem_of(threatening))
        with torch.no_grad(), editing.edited(threatening, delta_of(last)):
            return tuple(residual(threatening, b, [2], "labelled")[0] for b in (bad, good))  # type: ignore[return-value]

    def along(states: Tensor) -> float:
        return float((states @ random_direction(64, 0)).mean())

    def moved(states: Tensor) -> float:
        return float((states - was[1]).norm(dim=-1).mean())

    with torch.no_grad():
        was = tuple(residual(threatening, b, [2], "labelled")[0] for b in (bad, good))
    free, held = walked(0.0), walked(30.0)
    assert along(free[0]) > along(was[0]) + 1
    assert along(held[0]) > along(was[0])
    assert moved(held[1]) < moved(free[1]) / 2


def test_circuit_breakers_turn_forget_states_away(threatening: Any) -> None:
    """The cosine to the old states falls on forget much more than on retain."""
    method = CircuitBreakers(learning_rate=3e-3, epochs=5, every=15)
    *_, last = method.path(problem_of(threatening))

    def turned(batch: TokenBatch) -> float:
        with torch.no_grad():
            before = residual(threatening, batch, [1, 2], "labelled")
            with editing.edited(threatening, delta_of(last)):
                return float(rerouting_loss(residual(threatening, batch, [1, 2], "labelled"), before))

    bad, good = map(turned, both(threatening))
    assert bad < 0.8 and good > bad + 0.1


def test_running_text_can_be_what_is_held(threatening: Any) -> None:
    """As in the papers; then no good completions are needed, and without either the role is named."""
    made = problem_of(threatening, retain=None)
    assert first_update(RMU(hold="reference"), made)
    with pytest.raises(InputError, match="'retain' corpus, and none was given"):
        first_update(RMU(), made)


def test_every_pass_is_paid_for(threatening: Any) -> None:
    """Old and new states of both corpora: four passes a step, and so many tokens."""
    made = problem_of(threatening, max_tokens=ALL)
    next(RMU(every=1).path(made))
    corpora = (made.forget, made.corpus("retain"))
    each = [sum(map(len, encode(c, models.tokenizer_of(threatening), end=True))) for c in corpora]
    assert made.tokens == 2 * sum(each)


# ------------------------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (RMU, {"learning_rate": 0}, "'rmu': learning_rate, epochs and every must be positive, got 0"),
        (RMU, {"every": 0}, "must be positive, got 5e-05, 10, 0"),
        (RMU, {"steering": 0}, "rmu: steering must be positive and alpha 0 or more, got 0"),
        (RMU, {"alpha": -1}, "got 6.5 and -1"),
        (RMU, {"alpha": 0, "hold": "reference"}, "rmu: hold 'reference' would change nothing: with alpha 0"),
        (RMU, {"layer": "seven"}, "layer.int: .* integer; or 'original' .*'seven'"),
        (RMU, {"update": "some"}, "update: .*'original' or 'all' .*some"),
        (RMU, {"positions": "last"}, "positions: .*last"),
        (RMU, {"hold": "forget"}, "hold: .*forget"),
        (RMU, {"layre": 1}, "no option 'layre'; .*did you mean 'layer'"),
        (CircuitBreakers, {"alpha": 0}, "circuit_breakers: alpha must be positive, got 0"),
        (CircuitBreakers, {"target_layers": "ten"}, "target_layers: .*ten"),
    ],
)
def test_bad_options_are_named(cls: Any, options: dict[str, Any], message: str) -> None:
    """Value and what would be valid; a list from YAML is a tuple of layers (positive control)."""
    assert CircuitBreakers.with_options({"target_layers": [1, 2]}).options()["target_layers"] == (1, 2)
    with pytest.raises(InputError, match=message):
        cls.with_options(options)
