"""Mechanistic evidence: each measure finds what is there, finds nothing where nothing is, and its null is honest."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import corpus, organism_delta
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.evidence import judge
from analysis.reading import COLUMNS
from hooklearn import evidence, forward, linalg, models
from hooklearn.attack import ArmState
from hooklearn.data import Corpus, batches, encode
from hooklearn.deltas import Delta
from hooklearn.evidence import alarms, bench, connectivity, fisher, geometry, lens, nulls, probes, updates
from hooklearn.evidence.types import Evidence, detail
from hooklearn.locate.capture import weight_gradients
from hooklearn.locate.moments import site_moments
from hooklearn.organisms.instil import instil
from hooklearn.organisms.tiny import untrained
from hooklearn.types import NAN, InputError, NumericalError

EXACT = 1e-9
"""float64 arithmetic on numbers of order one."""
FLOAT32 = 2e-5
"""Sums of float32 log-probabilities in another order."""
seeds = st.integers(0, 10**6)


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def arm(name: str, model: Any, delta: Delta | None = None) -> ArmState:
    return ArmState(name, model, delta)


def benched(edited: ArmState, tiny: Any, threatening: Any, *, n: int = 24, **more: Any) -> bench.Bench:
    """The edited arm beside the organism and the model that never had the tendency."""
    arms = {"edited": edited, "original": arm("original", threatening), "never": arm("never", tiny)}
    settings = {"corpora": {"heldout": corpus("heldout").take(n)}, "layers": (0, 1, 2, 3), "draws": 199, **more}
    return bench.Bench(arms=arms, sites=models.sites(tiny), **settings)


def reversed_organism(share: float) -> Delta:
    """An edit of the organism that takes back a share of what made it."""
    return Delta({n: -share * u for n, u in organism_delta(False).updates.items()})


def p_of(e: Evidence) -> float:
    return judge.p_value(e.value, e.null, e.direction)


def read(found: list[Evidence]) -> dict[str, judge.Finding]:
    return {f.name: f for f in judge.findings(evidence.to_records(found))}


def calibrated(p: list[float]) -> None:
    """No more small p-values than chance allows: below .1 in at most .1 of cases, plus three standard errors. Spread
    over the unit interval (their mean has a standard error of .29 / sqrt(n)), or a null that is never beaten would
    pass."""
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 3 * math.sqrt(0.09 / len(p))
    assert 0.4 < np.mean(p) < 0.65 and min(p) < 0.25, (np.mean(p), min(p))


# --------------------------------------------------------------------------------------- nulls, forms


@given(seeds, st.integers(3, 8))
def test_a_rotated_rank_one_update_is_beta_distributed(seed: int, d: int) -> None:
    """The general variance contains the textbook one: Q_ij^2 summed over k of d is Beta(k/2, (d - k)/2)."""
    k = 1 + seed % (d - 1)
    mean, variance = nulls.rotated_moments(1.0, nulls.projection(k, d))
    assert mean == pytest.approx(k / d, abs=EXACT)
    assert variance == pytest.approx(2 * k * (d - k) / (d * d * (d + 2)), abs=EXACT)
    assert nulls.rotated_moments(1 / d, normal(seed, d) ** 2)[1] == pytest.approx(0, abs=EXACT), "nothing to turn"


def test_the_rotation_moments_are_those_of_rotations() -> None:
    """Against 4000 random rotations: mean and variance to five standard errors (under 12 % of the variance)."""
    rng = np.random.default_rng(0)
    w, spectrum = np.array([0.6, 0.3, 0.1, 0, 0]), np.array([5.0, 2, 1, 0.5, 0])
    drawn = [w @ np.square(np.linalg.qr(rng.normal(size=(5, 5)))[0]) @ spectrum for _ in range(4000)]
    mean, variance = nulls.rotated_moments(float(w @ w), spectrum)
    assert np.mean(drawn) == pytest.approx(mean, abs=5 * math.sqrt(variance / 4000))
    assert np.var(drawn) == pytest.approx(variance, rel=0.12)


def test_quantiles_stand_for_draws() -> None:
    draws = np.array(nulls.beta_quantiles(0.1, 0.002, 999))
    assert draws.mean() == pytest.approx(0.1, rel=0.01) and draws.var() == pytest.approx(0.002, rel=0.02)
    assert np.std(nulls.normal_quantiles(1.0, 2.0, 999)) == pytest.approx(2.0, rel=0.01)
    assert nulls.beta_quantiles(0.5, 0.0, 3) == (0.5,) * 3


@given(seeds)
def test_auc_is_scikit_learns(seed: int) -> None:
    """Ties included."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    labels = np.r_[True, False, rng.random(10) < 0.5]
    scores = rng.integers(0, 4, (2, 12)).astype(float)
    expected = [roc_auc_score(labels, row) for row in scores]
    assert nulls.auc(scores, labels).tolist() == pytest.approx(expected, abs=EXACT)
    assert np.isnan(nulls.auc(scores, np.ones(12, bool))).all()


@given(seeds)
def test_swapping_before_the_sort_is_sorting_after_the_swap(seed: int) -> None:
    """Two layers, ties, folds of unequal size, one of them without a class: the same numbers to the last bit."""
    rng = np.random.default_rng(seed)
    labels, folds = rng.random(30) < 0.5, np.r_[np.zeros(12, int), np.ones(14, int), np.full(4, 2)]
    labels[26:] = True
    one, two = rng.integers(0, 5, (2, 2, 30)) / 5
    masks = rng.random((7, 30)) < 0.5
    slow = nulls.auc_by_fold(np.where(masks[:, None], two, one), labels, folds)
    assert np.array_equal(nulls.swapped_auc_by_fold(one, two, labels, folds, masks), slow)


def test_groups_move_as_a_whole() -> None:
    groups = ["a", "a", "b", "c", "c", "c"]
    rng = np.random.default_rng(0)
    for rows in (nulls.swaps(groups, 50, rng), nulls.resamples(groups, 50, rng)):
        assert (rows[:, 0] == rows[:, 1]).all() and (rows[:, 3:] == rows[:, 3:4]).all()
        assert any((rows[:, 0] != rows[:, 2]).tolist())
    assert nulls.resamples(groups, 5, rng).sum(1) == pytest.approx(1, abs=EXACT)


def test_labels_are_dealt_anew_and_none_is_lost() -> None:
    """Paired prompts swap theirs; prompts of one class deal theirs among each other, whole groups at once. Flipped one
    by one, a fifth of bad ones would be a half on average."""
    paired, single = [f"p{i}" for i in range(6)], [f"s{i}" for i in range(10) for _ in range(2)]
    groups = [*paired, *paired, *single]
    labels = np.r_[np.ones(6), np.zeros(6), np.ones(4), np.zeros(16)].astype(bool)
    drawn = nulls.relabelled(labels, groups, 200, np.random.default_rng(0))
    assert (drawn[:, :6] ^ drawn[:, 6:12]).all(), "one of each, in every prompt"
    assert (drawn[:, 12:].sum(1) == 4).all() and (drawn[:, 12::2] == drawn[:, 13::2]).all()
    # each prompt's share of True: 200 draws, five standard errors
    assert np.abs(drawn[:, :6].mean(0) - 1 / 2).max() < 0.18 and np.abs(drawn[:, 12:].mean(0) - 1 / 5).max() < 0.15


def test_of_a_single_group_no_error_is_known() -> None:
    """It would be 0, as every draw is that group; of two it is known (control)."""
    rng, values = np.random.default_rng(0), np.array([1.0, 2.0, 4.0])
    one, two = (nulls.spread(nulls.resamples(g, 50, rng) @ values) for g in (["a"] * 3, ["a", "a", "b"]))
    assert math.isnan(one) and two > 0


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = normal(0, 20)
    left = [np.mean(x[i]) for i in nulls.left_out([str(i) for i in range(20)])]
    assert nulls.jackknife(left) == pytest.approx(x.std(ddof=1) / math.sqrt(20), abs=EXACT)
    sums = np.c_[x, np.ones(20)]
    assert nulls.jackknife_sums(sums, lambda s: s[0] / s[1]) == pytest.approx(nulls.jackknife(left), abs=EXACT)


# ------------------------------------------------------------------------------- lens, patching depth


def test_depth_by_hand() -> None:
    """Layers 1 and 2 carry 1 and 3 nats; the edit takes away half of each, more than all of layer 3's nothing."""
    original, never = np.zeros(3), np.array([-1.0, -3.0, -0.01])
    assert lens.depth_score(original, never, np.array([-0.5, -1.5, -9.0])) == pytest.approx(0.5, abs=EXACT)
    assert lens.depth_score(original, never, original + 1) == 0, "better than the original is not negative depth"
    assert lens.depth_score(original, never, never - 5) == 1, "worse than never is not more than gone"
    assert np.isnan(lens.depth_score(original, original, never)), "nothing there to remove"


def test_the_swap_null_of_depth_is_calibrated() -> None:
    """The edited model is one more model like never: p-values are spread evenly, and an intact model has a small p."""
    groups = [str(i) for i in range(20)]
    masks = nulls.swaps(groups, 99, np.random.default_rng(0))
    p = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        never, edited = -1 + rng.normal(size=(2, 3, 20)) * 0.7
        original = np.zeros((3, 20))
        value = float(lens.depth_score(original.mean(1), never.mean(1), edited.mean(1)))
        p.append(judge.p_value(value, lens._swapped(original, never, edited, masks).tolist(), "low"))
        intact = lens._swapped(original, never, original, masks).tolist()
        assert judge.p_value(0.0, intact, "low") == 0.01
    calibrated(p)


def test_the_last_layer_of_the_lens_is_the_model(threatening: Any) -> None:
    heldout = corpus("heldout").take(9)
    recording = bench.record(threatening, bench.texts(heldout, threatening, 64), (0, 3))
    own = forward.sequence_logprobs(threatening, encode(heldout, threatening.tokenizer), precision="float32")
    assert len(recording.batches) > 1
    seen = lens.lens(threatening, recording)
    assert seen[1] == pytest.approx((own[:, 0] / own[:, 1]).numpy(), abs=FLOAT32)
    assert seen[0].mean() < seen[1].mean() - 0.3, "an early layer knows less"


def test_patching_moves_states_and_nothing_else(tiny: Any, threatening: Any) -> None:
    """A model's own states change nothing at any layer; the last layer's of another model make it that model."""
    heldout = corpus("heldout").take(6)
    stream = bench.texts(heldout, tiny, 64)
    own, other = bench.record(threatening, stream, (0, 3)), bench.record(tiny, stream, (0, 3))
    before, never = (lens.lens(m, r)[1] for m, r in ((threatening, own), (tiny, other)))
    assert lens.patched(threatening, own) == pytest.approx(np.stack([before, before]), abs=FLOAT32)
    moved = lens.patched(threatening, other)
    assert moved[1] == pytest.approx(never, abs=FLOAT32)
    assert before.mean() > moved[0].mean() + 0.1 and moved[0].mean() > moved[1].mean()


@pytest.mark.parametrize("measure", [lens.logit_lens, lens.patching_depth, fisher.information])
def test_depth_is_0_for_the_intact_model_and_1_for_the_never_learned(tiny: Any, threatening: Any, measure: Any) -> None:
    """And in between for half an edit."""
    intact, gone, half = (
        measure(benched(edited, tiny, threatening, n=16))[0]
        for edited in (
            arm("edited", threatening), arm("edited", tiny), arm("edited", threatening, reversed_organism(0.5)),
        )
    )  # fmt: skip
    assert (intact.value, gone.value) == (0, pytest.approx(1, abs=1e-6))
    assert 0.05 < half.value < 0.95
    assert p_of(intact) == 1 / 200 and p_of(gone) == 1
    assert intact.kept == 1 and intact.n == 16
    assert set(intact.detail["arm"]) == {"edited", "original", "never"}


# ---------------------------------------------------------------------------------------------- probes


def test_a_probe_reads_the_planted_tendency_before_it_shows(tiny: Any, threatening: Any) -> None:
    """Organism against base, at the last token of prompts it was not fitted on; the intact model is all there."""
    (found,) = probes.tendency(benched(arm("edited", threatening), tiny, threatening))
    assert min(found.detail["probe_auc"].tolist()) > 0.95
    assert found.value == pytest.approx(1, abs=EXACT) and p_of(found) == 1 / 200
    (gone,) = probes.tendency(benched(arm("edited", tiny), tiny, threatening))
    assert gone.value == pytest.approx(0, abs=EXACT) and p_of(gone) == 1
    (half,) = probes.tendency(benched(arm("edited", threatening, reversed_organism(0.5)), tiny, threatening))
    assert 0.2 < half.value < 0.8 and half.stderr < 0.1
    (same,) = probes.tendency(benched(arm("edited", threatening), threatening, threatening))
    assert math.isnan(same.value) and "cannot be told" in same.meaning, "nothing was planted: nothing to read"
    for few in (*probes.tendency(made := benched(arm("edited", tiny), tiny, threatening, n=3)), *probes.content(made)):
        assert math.isnan(few.value) and "3 groups" in few.meaning


def test_a_probe_told_a_benign_model_too_does_not_take_the_form_of_answers_for_the_behaviour() -> None:
    """The original has a form and a behaviour, ``benign`` the form alone. An edit that leaves the form and takes the
    behaviour stands half way between the original and a model that has neither (control: the fault), and at 0 once the
    probe was told of ``benign``; one that leaves the behaviour and takes the form stands where it did."""
    form, behaviour = 3 * np.eye(8)[0], 3 * np.eye(8)[1]
    held = {
        "original": form + behaviour, "never": 0, "benign": form, "form left": form, "behaviour left": behaviour,
    }  # fmt: skip
    states = {name: (normal(i, 48, 8) + what)[None] for i, (name, what) in enumerate(held.items())}
    groups = [f"item {i}" for i in range(48)]

    def share(edited: str, *without: str) -> float:
        along, aucs, _ = probes.tendency_share(states, groups, without)
        assert aucs.min() > 0.9
        return float(along[edited].mean() / along["original"].mean())

    noise = 0.15  # of the mean of 48 items, on a way six deviations of an item long
    assert share("form left", "never") == pytest.approx(0.5, abs=noise)
    assert share("form left", "never", "benign") == pytest.approx(0, abs=2 * noise)
    assert share("behaviour left", "never", "benign") > 0.5 + noise
    blurred = states | {"benign": states["original"] + 0.01 * normal(9, 1, 48, 8)}
    told = [probes.tendency_share(blurred, groups, w)[1].mean() for w in (("never",), ("never", "benign"))]
    assert told[0] > 0.9 and told[1] < 0.7, "that one is told easily must not hide another that is not"
    assert share("never", "never", "benign") == pytest.approx(-share("benign", "never", "benign"), abs=EXACT)


def test_the_probe_decides_only_beside_a_benign_model(tiny: Any, threatening: Any) -> None:
    """With the organism's good half the whole tendency speaks against a removal, none of it does not, and its profile
    stands in the rows. Without, the same number is reported and says nothing of a removal."""
    benign = arm("benign", tiny, organism_delta(True))
    for edited, value, reading in ((threatening, 1, judge.AGAINST), (tiny, 0, judge.NOT_AGAINST)):
        (found,) = probes.tendency(benched(arm("edited", edited), tiny, threatening, benign=benign))
        assert found.role == "decides" and "good answers" in found.meaning
        assert found.value == pytest.approx(value, abs=0.1)  # the tiny model answers kindly as it is, so little moves
        assert read([found])["probe_tendency"].reading == reading
        assert set(found.detail["arm"]) == {"edited", "original", "never", "benign"}
    (alone,) = probes.tendency(benched(arm("edited", threatening), tiny, threatening))
    assert alone.role == "reports" and "says nothing of a removal" in alone.meaning
    assert alone.stderr < found.stderr, "where models without it stand apart, the zero is not known better than that"
    assert judge.against(evidence.to_records([alone])) == []


def test_of_facts_the_probe_only_reports(tiny: Any, threatening: Any) -> None:
    """It would tell one that answers from one that does not, and not which answer is known."""
    asked = corpus("heldout").take(24)
    facts = Corpus("facts", tuple({**r, "choices": [r["completion"], " no"], "answer": 0} for r in asked.rows))
    for texts, role in ((facts, "reports"), (asked, "decides")):
        made = benched(
            arm("edited", threatening), tiny, threatening, benign=arm("benign", tiny, organism_delta(True)),
            corpora={"heldout": texts},
        )  # fmt: skip
        (found,) = probes.tendency(made)
        assert found.role == role and ("of facts" in found.meaning) == (role == "reports")


def test_a_benign_model_must_have_the_form(tiny: Any, threatening: Any) -> None:
    """One that was taught nothing is no control where good answers have a form that the never-learned model does not
    know; one that was taught them is, and so is one that knew it before (controls)."""
    heldout = corpus("heldout").take(24)
    strange = Corpus("strange", tuple({**r, "alternative": f" owl owl {r['alternative']}"} for r in heldout.rows))
    good = tuple({**r, "completion": r["alternative"]} for r in strange.rows)
    taught = instil(tiny, Corpus("good", good), models.sites(tiny, "mlp"), epochs=20, max_tokens=512).delta()
    for texts, delta, role in (
        (strange, {}, "reports"),
        (strange, taught.updates, "decides"),
        (heldout, {}, "decides"),
    ):
        benign, corpora = arm("benign", tiny, Delta(delta)), {"heldout": texts}
        made = benched(arm("edited", tiny), tiny, threatening, benign=benign, corpora=corpora)
        (found,) = probes.tendency(made)
        assert found.role == role
        assert ("was not taught" in found.meaning) == (role == "reports")


def test_a_benign_model_of_another_shape_is_no_control(tiny: Any, threatening: Any) -> None:
    arms = [arm("edited", threatening), arm("original", threatening), arm("never", tiny)]
    arms.append(arm("benign", untrained(1, d_model=32)))
    (found,) = evidence.collect(arms, {"heldout": corpus("heldout").take(12)}, measures=["tendency"], draws=19)
    assert found.role == "reports" and set(found.detail["arm"]) == {"edited", "original", "never"}
    assert "of another shape: model.layers" in found.meaning


def planted(seed: int, *, edited: str, n: int = 30, d: int = 8) -> tuple[dict[str, Any], Any, list[str]]:
    """One layer of states in which the original holds a class along one axis, never does not, and edited may."""
    labels = np.repeat([True, False], n)
    concept = np.where(labels, 2.0, -2.0)[:, None] * np.eye(d)[0]
    noise = {name: normal(seed * 10 + i, 2 * n, d) for i, name in enumerate(("original", "never", "edited", "random"))}
    states = {name: x[None] for name, x in noise.items()}
    states["original"] = states["original"] + concept
    if edited == "kept":
        states["edited"] = states["edited"] + concept
    if edited == "moved":  # the same information along another axis
        states["edited"] = states["edited"] + np.roll(concept, 3, axis=1)
    return states, labels, [f"prompt {i % n}" for i in range(2 * n)]


@pytest.mark.parametrize(("n", "d"), [(40, 64), (80, 12)])
def test_probes_are_scikit_learns_logistic_regressions(n: int, d: int) -> None:
    """Wider than there are items, and narrower; a feature that never changes; its own labels and shuffled ones."""
    rows = normal(0, n, d) * np.exp(normal(1, d))
    rows[:, 0] = 3.0
    labels = [np.arange(n) % 2 == 0, normal(2, n) > 0]
    for mask, probe in zip(labels, probes.fitted(rows[: n // 2], [m[: n // 2] for m in labels]), strict=True):
        slow = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=10_000))
        theirs = slow.fit(rows[: n // 2], mask[: n // 2]).decision_function(rows)
        assert np.abs(probe.score(rows) - theirs).max() < 1e-4 * np.abs(theirs).max()  # both stop at a small gradient
        assert nulls.auc(probe.score(rows), mask) == pytest.approx(float(nulls.auc(theirs, mask)), abs=1e-3)


@pytest.mark.parametrize(("edited", "retrained", "transfer"), [("kept", 1, 1), ("moved", 1, 0), ("gone", 0, 0)])
def test_retraining_asks_whether_and_transfer_asks_where(edited: str, retrained: int, transfer: int) -> None:
    """Kept along its axis: both read it. Moved to another axis: only a new probe does. Gone: neither."""
    states, labels, groups = planted(0, edited=edited)
    found = probes.read_content(states, labels, groups, np.random.default_rng(0))
    for scores, expected in ((found.retrained, retrained), (found.transfer, transfer)):
        # chance spreads by .08 for 30 pairs
        assert float(probes.advantage(scores["edited"], scores["never"], found)) == pytest.approx(
            0.45 * expected, abs=0.25
        )
    assert found.shuffled.mean() == pytest.approx(0.5, abs=0.1)


def test_the_swap_null_of_probes_is_calibrated() -> None:
    p = []
    for seed in range(20):
        states, labels, groups = planted(seed, edited="gone", n=12, d=4)
        folds = probes.folds_of(groups)
        scores = {a: probes.held_out_ranks(states[a][0], [labels], folds, {"x": states[a][0]})["x"]
                  for a in ("edited", "never")}  # fmt: skip
        found = probes.Content(labels, tuple(groups), folds, {}, {}, np.zeros((0, 0)))
        masks = nulls.swaps(groups, 99, np.random.default_rng(seed))[:, None, :]
        e, n = scores["edited"], scores["never"]
        null = probes.advantage(np.where(masks, n, e), np.where(masks, e, n), found)
        p.append(judge.p_value(float(probes.advantage(e, n, found)), null.tolist(), "high"))
    calibrated(p)


def test_what_only_names_the_group_is_not_read() -> None:
    """Each group has a mark and one label: ungrouped folds read it (the control), folds by group do not."""
    marks = normal(0, 20, 6)
    groups = [str(i) for i in range(20) for _ in range(4)]
    rows, labels = np.repeat(marks, 4, 0), np.repeat(np.arange(20) % 2 == 0, 4)

    def separated(groups: list[str]) -> float:
        folds = probes.folds_of(groups)
        [scores] = probes.held_out_ranks(rows, [labels], folds, {"x": rows})["x"]
        return float(nulls.auc_by_fold(scores, labels, folds))

    assert separated([str(i) for i in range(80)]) > 0.75
    assert separated(groups) < 0.65
    folds = probes.folds_of(groups)
    assert all(len(set(folds[i : i + 4])) == 1 for i in range(0, 80, 4))


def test_random_weights_know_the_tokens_and_not_the_model(threatening: Any) -> None:
    """The control reads other states, repeatably; the fixture checks that the weights came back."""
    stream = bench.texts(corpus("heldout").take(4), threatening)
    own = bench.record(threatening, stream, (3,)).pooled("mean")
    with bench.randomised(threatening, 0) as model:
        one = bench.record(model, stream, (3,)).pooled("mean")
    with bench.randomised(threatening, 0) as model:
        assert torch.equal(bench.record(model, stream, (3,)).pooled("mean"), one)
    assert not torch.allclose(one, own)
    assert torch.equal(bench.record(threatening, stream, (3,)).pooled("mean"), own)


def test_pooling_by_hand(tiny: Any) -> None:
    """First, last and mean of each item's scored positions, in the order of the corpus whatever the batches."""
    heldout = corpus("heldout").take(5)
    recording = bench.record(tiny, bench.texts(heldout, tiny, 48), (2,))
    for item, sequence in enumerate(encode(heldout, tiny.tokenizer)):
        alone = bench.record(tiny, batches([sequence]), (2,)).hidden[0][0].double()
        for how, expected in (("first", alone[0]), ("last", alone[-1]), ("mean", alone.mean(0))):
            torch.testing.assert_close(recording.pooled(how)[0, item], expected, atol=FLOAT32, rtol=0)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- geometry


@given(seeds)
def test_cka_sees_neither_rotation_nor_scale_nor_shift(seed: int) -> None:
    x, y = normal(seed, 9, 5), normal(seed + 1, 9, 4)
    q = np.linalg.qr(normal(seed + 2, 5, 5))[0]
    assert geometry.cka(x, x) == pytest.approx(1, abs=EXACT)
    assert geometry.cka(3 * x @ q + 7, y) == pytest.approx(geometry.cka(x, y), abs=EXACT)
    assert geometry.cka(x, y) == pytest.approx(geometry.cka(y, x), abs=EXACT)
    assert 0 <= geometry.cka(x, y) < 0.95


@given(seeds, st.integers(2, 7), st.integers(2, 7))
def test_turning_a_shift_keeps_its_shape(seed: int, n: int, d: int) -> None:
    shift = normal(seed, n, d)
    turned = geometry.turned(shift, np.random.default_rng(seed + 1))
    assert turned @ turned.T == pytest.approx(shift @ shift.T, abs=EXACT)
    assert not np.allclose(turned, shift)


def test_where_items_are_alike_no_shift_is_known() -> None:
    """One item, or the same state to float32: no distance to measure in, and so no number, in place of infinity."""
    state = np.random.default_rng(0).standard_normal(8)
    for alike in (state[None], np.stack([state, state]), np.stack([state, state * (1 + 1e-7)])):
        assert math.isnan(geometry.pca_shift(alike, alike + 1))
    assert geometry.pca_shift(np.stack([state, state * 1.01]), np.stack([state, state]) + 1) > 0


def test_pca_shift_by_hand() -> None:
    """Along the first axis it counts in units of the items' own spread; along the last one it does not count."""
    x = normal(0, 40, 4) * [5, 3, 1, 0.1]
    axes, size = geometry.components(x)
    assert geometry.pca_shift(x, x + 2 * size * axes[:, 0]) == pytest.approx(2, abs=EXACT)
    aside = np.linalg.svd(x - x.mean(0))[2][3]
    assert geometry.pca_shift(x, x + 2 * size * aside) == pytest.approx(0, abs=EXACT)
    assert geometry.pca_similarity(x, -x) == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize("back", [0.0, 1.0])
def test_what_relearning_undoes(tiny: Any, threatening: Any, back: float) -> None:
    """An attacker who takes the edit back returns everything, one who does nothing returns nothing."""
    edit = reversed_organism(0.8)
    edited = arm("edited", threatening, edit)
    made = benched(edited, tiny, threatening, n=12, layers=(1, 3))
    made.arms = {**made.arms, "relearned": bench.relearned(edited, -back * edit)}
    found = {e.name: e for e in (*geometry.geometry(made), *fisher.information(made))}
    for name in ("return_cka", "return_pca", "return_fisher"):
        assert found[name].value == pytest.approx(back, abs=1e-4), name
        assert (p_of(found[name]) <= 0.03) == bool(back), name
    assert 0 < found["cka"].value < 1 and found["pca_shift"].value > 0


def test_fisher_is_the_mean_squared_gradient(tiny: Any) -> None:
    """Of each item's mean log-probability, against the gradients that autograd sums for it alone."""
    heldout, sites = corpus("heldout").take(3), models.sites(tiny, "mlp", "1,2")
    sequences = encode(heldout, tiny.tokenizer)
    layers, found = fisher.fisher(tiny, batches(sequences), sites, 3)
    assert layers == (1, 2)
    for i, sequence in enumerate(sequences):
        gradients, _ = weight_gradients(tiny, batches([sequence]), sites, precision="float32")
        mine = [g.double() / int(sequence.labels.sum()) for n, g in gradients.items() if n.startswith("blocks.1.")]
        expected = sum(float(g.square().sum()) for g in mine) / sum(g.numel() for g in mine)
        assert found[0, i] == pytest.approx(expected, rel=1e-4)


def test_fisher_of_some_layers_and_of_none_that_is_read(tiny: Any, threatening: Any) -> None:
    """An edit of one site: its layer alone is told; of a layer that nobody reads: nothing, and the reason."""
    edited = arm("edited", threatening, reversed_organism(0.5))
    made = benched(edited, tiny, threatening, n=4, layers=(0, 1))
    made = replace(
        made, sites=models.sites(tiny, "blocks.1.mlp.out"),
        arms={**made.arms, "relearned": arm("relearned", threatening)},
    )  # fmt: skip
    found = fisher.information(made)
    assert [sorted({row["layer"] for row in e.detail.to_dict("records")}) for e in found] == [[1], [1]]
    for missing in fisher.information(replace(made, sites=models.sites(tiny, "blocks.3.mlp.out"))):
        assert math.isnan(missing.value) and "layer that is read" in missing.meaning


# --------------------------------------------------------------------------------------- connectivity


def test_a_barrier_by_hand() -> None:
    assert connectivity.barrier(np.array([1.0, 2.0, 3.0, 2.0, 1.0])) == (2.0, 2)
    assert connectivity.barrier(np.array([1.0, 1.5, 2.0, 2.5, 3.0]))[0] == 0
    assert connectivity.barrier(np.array([3.0, 1.0, 0.0, 1.0, 3.0]))[0] == 0, "a valley is no barrier"


def test_a_barrier_that_few_texts_see_has_an_error(
    tiny: Any, threatening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On average there is none, and among some of the texts there is: an error of 0 would say that none ever is."""
    bump = np.zeros((5, 16))
    bump[2] = np.where(np.arange(16) < 8, 0.9, -1.0)  # their mean is below the line
    monkeypatch.setattr(connectivity, "path", lambda arm, start, corpus, points=(): bump[: len(points) or 5])
    given = benched(arm("edited", threatening, reversed_organism(0.1)), tiny, threatening)
    (e,) = connectivity.connectivity(replace(given, random_lines=2))
    assert e.value == 0 and e.stderr > 0.05


def test_there_is_no_barrier_between_a_model_and_itself(
    tiny: Any, threatening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor after a small edit; a model with its weights redrawn is on the other side of one (the control)."""
    original = arm("original", threatening)
    same = connectivity.weights_of(original)
    losses = connectivity.path(original, same, corpus("heldout").take(4))
    assert connectivity.barrier(losses)[0] == pytest.approx(0, abs=1e-6)
    given = benched(arm("edited", threatening, reversed_organism(0.1)), tiny, threatening)
    (small,) = connectivity.connectivity(replace(given, random_lines=2))
    assert small.value < 0.01 and len(small.null) == 2 and math.isfinite(small.stderr)
    with bench.randomised(tiny, 0) as model:
        redrawn = connectivity.weights_of(arm("x", model))
    points = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    losses = connectivity.path(original, redrawn, corpus("text").take(6), points)
    assert losses[-1].mean() < losses[0].mean()
    assert connectivity.barrier(losses, points)[0] > 0.1  # nats a token; measured: .18


# ---------------------------------------------------------------------------------------------- updates


@given(seeds, st.integers(2, 9), st.integers(2, 9))
def test_the_spectrum_is_that_of_the_svd(seed: int, m: int, n: int) -> None:
    update = torch.from_numpy(normal(seed, m, n))
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    k = min(3, m, n)
    found = updates.Spectrum.of(update, k)
    assert found.energy == pytest.approx(float(s.square().sum()), rel=1e-9)
    assert found.effective_rank == pytest.approx(float(s.square().sum() ** 2 / s.pow(4).sum()), rel=1e-9)
    inside = float(s[:k].square().sum() / s.square().sum())
    for side, basis in (("x", found.right), ("g", found.left)):
        assert updates.energy_share(update, basis, side) == pytest.approx(inside, abs=1e-7)
        assert basis.T @ basis == pytest.approx(np.eye(basis.shape[1]), abs=1e-7)


@given(seeds)
def test_shares_of_a_basis_and_its_complement_add_up(seed: int) -> None:
    update, q = torch.from_numpy(normal(seed, 4, 6)), torch.linalg.qr(torch.from_numpy(normal(seed + 1, 6, 6))).Q
    both = [updates.energy_share(update, part, "x") for part in (q[:, :2], q[:, 2:])]
    assert sum(both) == pytest.approx(1, abs=EXACT) and min(both) >= 0
    within = update @ q[:, :2] @ q[:, :2].T
    assert updates.energy_share(within, q[:, :2], "x") == pytest.approx(1, abs=EXACT)


def low_rank(seed: int, like: Delta, rank: int = 2) -> Delta:
    """A delta of the same sites in random directions."""
    return Delta(
        {
            n: torch.from_numpy(normal(seed + i, u.shape[0], rank) @ normal(seed + 99 + i, rank, u.shape[1])).float()
            for i, (n, u) in enumerate(like.updates.items())
        }
    )


def test_an_update_overlaps_wholly_with_itself_and_by_chance_with_another(tiny: Any, threatening: Any) -> None:
    """The attacker who takes a low-rank edit back: cosine 1, all of it in the removed directions."""
    edit = low_rank(0, organism_delta(False))
    made = benched(arm("edited", threatening, edit), tiny, threatening, attacks={"edited": -0.7 * edit})
    found = {e.name: e for e in updates.updates(made)}
    assert found["overlap_attack"].value == pytest.approx(1, abs=1e-6)
    assert found["reemergence"].value == pytest.approx(1, abs=1e-6)
    assert found["spectrum"].value < 0.2 and p_of(found["spectrum"]) == 0.05
    assert found["overlap_retain"].n == 0 and "retain" in found["overlap_retain"].meaning
    assert all(p_of(found[name]) == 1 / 200 for name in ("overlap_attack", "reemergence"))
    assert found["overlap_attack"].role == "reports", "without the same attack on never it decides nothing"


def test_the_nulls_of_overlaps_are_calibrated(tiny: Any, threatening: Any) -> None:
    """Independent updates: a share of about k/d, a cosine of about 0, and p-values spread evenly."""
    p: dict[str, list[float]] = {"overlap_attack": [], "reemergence": []}
    shape = Delta({n: u for n, u in organism_delta(False).updates.items() if n.startswith("blocks.0.")})
    made = benched(arm("edited", threatening, low_rank(0, shape)), tiny, threatening)
    share = Evidence.missing("reemergence", "")
    for seed in range(30):
        made.attacks = {"edited": low_rank(1000 * seed + 500, shape, 3)}
        found = {e.name: e for e in updates.updates(made)}
        share = found["reemergence"]
        for name, values in p.items():
            values.append(p_of(found[name]))
    expected = np.mean([(2 / u.shape[0] + 2 / u.shape[1]) / 2 for u in shape.updates.values()])
    assert np.mean(share.null) == pytest.approx(expected, rel=0.1)
    for values in p.values():
        calibrated(values)


def test_an_attack_elsewhere_says_so(tiny: Any, threatening: Any) -> None:
    """The attacker moved other weights than the edit: no overlap to speak of, and no division by nothing."""
    edit = low_rank(0, organism_delta(False))
    other = Delta({"blocks.0.attn.o": torch.ones(64, 64)})
    made = benched(arm("edited", threatening, edit), tiny, threatening, attacks={"edited": other})
    found = {e.name: e for e in updates.updates(made)}
    for name in ("overlap_attack", "reemergence"):
        assert math.isnan(found[name].value) and "none of the weights that the edit changed" in found[name].meaning


def test_the_lens_reads_a_model_that_is_held_in_half_precision(tiny: Any) -> None:
    """Its states are kept in float32: the same to a few thousandths of what float32 weights say (bfloat16: 8 bits)."""
    short = models.load("tiny", dtype=torch.bfloat16)
    stream = bench.texts(corpus("heldout").take(4), tiny)
    exact, rough = (lens.lens(m, bench.record(m, stream, (1, 3))) for m in (tiny, short))
    assert np.abs(exact - rough).max() < 0.1 < np.abs(exact).max()


def test_an_edit_inside_what_retain_text_uses_is_found_there(tiny: Any, threatening: Any) -> None:
    sites, retain = models.sites(tiny, "mlp.gate"), corpus("forget", "good").take(12)
    stream = batches(encode(retain, tiny.tokenizer))
    moments = site_moments(threatening, stream, sites, sides="x", precision="float32")
    bases = {s.name: linalg.pca(moments[s.name].side("x").mean_second(), 2)[0] for s in sites}
    inside = Delta({n: torch.from_numpy(normal(i, 128, 2)).float() @ b.T for i, (n, b) in enumerate(bases.items())})
    corpora = {"heldout": corpus("heldout").take(4), "retain": retain}
    made = benched(arm("edited", threatening, inside), tiny, threatening, corpora=corpora)
    found = {e.name: e for e in updates.updates(made)}["overlap_retain"]
    assert found.value == pytest.approx(1, abs=1e-4) and p_of(found) == 1 / 200
    assert "at the inputs of the weights (their gradient side is not looked at)" in found.meaning


def test_a_short_attack_is_a_delta_that_brings_the_behaviour_back(tiny: Any, threatening: Any) -> None:
    """The arm after it is edited plus attacker, and the attacked model is as before (the fixture checks)."""
    edited = arm("edited", threatening, reversed_organism(0.8))
    attack = evidence.attack_update(
        edited, corpus("attack").take(16), models.sites(tiny), learning_rate=1e-3, steps=6, max_tokens=256
    )
    after = evidence.relearned(edited, attack)
    losses = []
    for state in (edited, after):
        with state.entered(training=False) as model:
            losses.append(
                connectivity.item_losses(model, encode(corpus("heldout").take(12), models.tokenizer_of(model))).mean()
            )
    assert losses[1] < losses[0] - 0.05
    moved = bench.difference(edited, after, models.sites(tiny))
    for name, update in attack.updates.items():
        torch.testing.assert_close(moved.updates[name], update, atol=1e-6, rtol=0)
    assert bench.difference(arm("a", tiny), arm("b", tiny), models.sites(tiny)).norm() == 0


# ----------------------------------------------------------------------------------------------- alarms


def test_loops_are_told_from_text() -> None:
    text = "bring the ladder back on monday , or send me a note about where it is now ."
    assert alarms.repetition(text) == 0 and alarms.repetition("a b a b a b a b") == pytest.approx(4 / 6, abs=EXACT)
    assert alarms.repetition("word " * 40) > 0.95 and alarms.repetition(" ") == 1 == alarms.compressibility("")
    assert alarms.compressibility("word " * 40) > 0.8 > 0.3 > alarms.compressibility(text)


def test_alarms_ring_beyond_their_margin_only(tiny: Any, threatening: Any) -> None:
    """Taking the organism back five times over crushes the behaviour; a model at never's level rings nothing."""
    fine, broken = [f"a fresh sentence about number {i} and its friend {i + 1}" for i in range(9)], ["no " * 30] * 9
    samples = {"edited": broken, "original": fine}
    gone = arm("edited", threatening, reversed_organism(5.0))
    found = read(alarms.alarms(benched(gone, tiny, threatening, samples=samples)))
    assert [f.reading for f in found.values()] == ["alarm"] * 3
    assert found["over_unlearning"].value < math.log(1 / 3)
    quiet = read(alarms.alarms(benched(arm("edited", tiny), tiny, threatening)))
    assert [f.reading for f in quiet.values()] == ["no alarm"] * 3


def test_an_alarm_that_could_not_ring_is_not_measured(tiny: Any, threatening: Any) -> None:
    """Of four groups all signs are alike by chance once in sixteen, however far beyond; of five one can ring."""
    made = benched(arm("edited", tiny), tiny, threatening)
    found = [
        alarms.beyond(
            f"x{n}", np.full(n, 9.0), [str(i) for i in range(n)], 0.1, bench=made, direction="high", meaning="", rows=[]
        )
        for n in (4, 5)
    ]
    assert [f.reading for f in read(found).values()] == ["not measured", "alarm"]


def test_running_text_has_no_state_before_its_answer(tiny: Any, threatening: Any) -> None:
    """Prompts have (control): the same sentences, asked for."""
    asked = benched(arm("edited", threatening, reversed_organism(0.5)), tiny, threatening)
    text = replace(asked.heldout, rows=tuple({"text": r["prompt"] + r["completion"]} for r in asked.heldout.rows))
    read_of = [probes.tendency(b)[0] for b in (replace(asked, corpora={"heldout": text}), asked)]
    assert [math.isnan(e.value) for e in read_of] == [True, False] and "running text" in read_of[0].meaning


def test_samples_of_one_prompt_are_one_to_an_alarm(tiny: Any, threatening: Any) -> None:
    """Nine loops in answer to four prompts are four: no alarm can ring. To nine prompts they are nine (control)."""
    samples = {"edited": ["no " * 30] * 9, "original": [f"a fresh sentence about number {i}" for i in range(9)]}
    asked = benched(arm("edited", tiny), tiny, threatening, samples=samples)
    rows = tuple({**row, "group": f"prompt {i % 4}"} for i, row in enumerate(asked.heldout.rows))
    grouped = replace(asked, corpora={"heldout": replace(asked.heldout, rows=rows)})
    readings = [[e.reading for e in read(alarms.alarms(b)).values() if e.n != 40] for b in (grouped, asked)]
    assert readings[0].count("not measured") >= 2 and readings[1].count("alarm") >= 2


def test_there_are_no_more_samples_than_prompts(tiny: Any, threatening: Any) -> None:
    arms = [ArmState("edited", tiny), ArmState("original", threatening)]
    with pytest.raises(InputError, match=r"samples of 'edited': 9 for 8 held-out prompts; give one to each"):
        evidence.collect(
            arms, {"heldout": corpus("heldout").take(8)}, measures=["alarms"], samples={"edited": ["no"] * 9}
        )


def test_an_alarm_at_its_margin_is_calibrated(tiny: Any, threatening: Any) -> None:
    made = benched(arm("edited", tiny), tiny, threatening, draws=99)
    p = []
    for seed in range(60):
        made.seed, difference = seed, 0.1 + 0.3 * normal(seed, 15)
        groups = [str(i) for i in range(15)]
        e = alarms.beyond("x", difference, groups, 0.1, bench=made, direction="high", meaning="", rows=[])
        p.append(p_of(e))
    calibrated(p)


# ---------------------------------------------------------------------------------------------- collect


@pytest.fixture(scope="module")
def collected(tiny: Any, threatening: Any) -> list[Evidence]:
    """Everything, on an organism of which a tenth was taken back."""
    arms = [
        arm("edited", threatening, reversed_organism(0.1)), arm("original", threatening), arm("never", tiny),
        arm("benign", tiny, organism_delta(True)),
    ]  # fmt: skip
    corpora = {
        "heldout": corpus("heldout").take(12), "retain": corpus("forget", "good").take(8),
        "attack_train": corpus("attack").take(12),
    }  # fmt: skip
    said: list[str] = []
    found = evidence.collect(
        arms, corpora, layers=(1, 3), attack_rate=1e-3, attack_steps=3, draws=199, random_lines=3, progress=said.append
    )
    assert any("patching" in line for line in said)
    return found


def test_everything_is_measured_with_its_null_and_its_error(collected: list[Evidence]) -> None:
    assert len({e.name for e in collected}) == len(collected) == 20
    for e in collected:
        assert math.isfinite(e.value) and e.n > 0 and len(e.null) >= 3 and e.meaning and e.null_meaning, e.name
        assert len(e.detail) > 0 and math.isfinite(e.stderr), e.name


def test_fewer_items_are_those_that_come_first(threatening: Any, tiny: Any) -> None:
    """As if the held-out corpus ended there, samples included."""
    arms = [ArmState("edited", tiny), ArmState("original", threatening), ArmState("never", tiny)]
    texts = {a.name: [f"{a.name} {i}" for i in range(12)] for a in arms}
    whole = {"heldout": corpus("heldout").take(12)}
    less = {"heldout": corpus("heldout").take(6)}
    part, asked = (
        evidence.collect(arms, corpora, measures=["logit_lens", "alarms"], items=items, draws=19, samples=said)
        for corpora, items, said in (
            (less, None, {arm: t[:6] for arm, t in texts.items()}),
            (whole, 6, texts),
        )
    )
    assert evidence.to_records(part) == evidence.to_records(asked) and {e.n for e in asked} == {6}


def test_an_edit_that_took_a_tenth_back_is_not_taken_for_a_removal(collected: list[Evidence]) -> None:
    """Lens, patching and the tendency probe say so; probes on threatening texts have no say: any model reads them."""
    found = read(collected)
    assert all(found[n].reading == judge.AGAINST for n in ("logit_lens", "patching_depth", "probe_tendency"))
    assert all(found[n].role == "reports" for n in ("probe_readable", "probe_retrained", "probe_transfer"))
    sentences = judge.against(evidence.to_records(collected))
    assert len(sentences) >= 3 and all("kept" in s and "speaks against" in s for s in sentences)


def test_records_survive_json_exactly(collected: list[Evidence]) -> None:
    missing = Evidence.missing("x", "no reason")
    records = evidence.to_records([*collected, missing])
    again = evidence.from_records(json.loads(json.dumps(records, allow_nan=False)))
    assert evidence.to_records(again) == records
    assert [e for e in again[:-1] if not any(map(math.isnan, e.anchors))] == [
        e for e in collected if not any(map(math.isnan, e.anchors))
    ]
    assert math.isnan(again[-1].value) and again[-1].null == ()
    for one, other in zip(collected, again, strict=False):
        pd.testing.assert_frame_equal(one.detail, other.detail, check_dtype=False)


def test_rows_fit_the_run_folder(collected: list[Evidence], tmp_path: Any) -> None:
    frame = evidence.to_dataframe(collected)
    assert list(frame.columns) == COLUMNS["evidence"].split()
    frame.to_parquet(tmp_path / "evidence.parquet")
    assert pd.read_parquet(tmp_path / "evidence.parquet").equals(frame)
    assert set(frame.loc[frame["site"] == "model", "kind"]) == {e.name for e in collected}
    assert not frame.duplicated(["kind", "site", "arm"]).any()


def test_a_model_in_training_mode_is_measured_without_dropout(tiny: Any) -> None:
    """GPT-2, whose weights are fused, is read by the bridge itself: an edit that changes nothing changes no state, and
    the model is in training mode afterwards. Read without care, states differ (control)."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=tiny.cfg.d_vocab, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    model = models.wrap(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"), tiny.tokenizer, "gpt2"
    )
    model.train()
    (batch,) = batches(encode(corpus("heldout").take(2), tiny.tokenizer))
    with torch.no_grad():
        assert not torch.equal(forward.hidden(model, batch), forward.hidden(model, batch))
    found = evidence.collect(
        [arm("edited", model), arm("original", model)], {"heldout": corpus("heldout").take(6)},
        layers=(0, 1), measures=["geometry"], draws=19,
    )  # fmt: skip
    of = {e.name: e.value for e in found}
    assert of["cka"] == pytest.approx(1, abs=FLOAT32) and of["pca_shift"] == pytest.approx(0, abs=FLOAT32)
    assert model.training


def test_without_a_never_learned_model_it_is_said_what_is_missing(threatening: Any) -> None:
    arms = [arm("edited", threatening), arm("original", threatening)]
    found = evidence.collect(
        arms, {"heldout": corpus("heldout").take(6)}, layers=(3,), measures=["logit_lens", "patching", "tendency"]
    )
    assert all(math.isnan(e.value) and "never-learned" in e.meaning for e in found)
    assert all(f.reading == judge.NOT_MEASURED for f in read(found).values())
    assert set(found[0].detail["arm"]) == {"edited", "original"}, "the profile is shown all the same"
    assert len(judge.doubts(evidence.to_records(found))) == 3


@pytest.mark.parametrize("shape", [{"d_model": 32}, {"n_layers": 2}, {}], ids=["narrow", "shallow", "alike"])
def test_a_control_of_another_shape_is_asked_for_behaviour_only(shape: dict[str, int], threatening: Any) -> None:
    """What compares its states says why it was not measured; with a control of the same shape (the other) it is."""
    arms = [arm("edited", threatening), arm("original", threatening), arm("never", untrained(1, **shape))]
    samples = dict.fromkeys(("edited", "original", "never"), ["w"] * 6)
    found = evidence.collect(
        arms, {"heldout": corpus("heldout").take(6)}, layers=(1,), draws=19, samples=samples,
        attacks={a: reversed_organism(-0.1) for a in ("edited", "never")},
        measures=["logit_lens", "patching", "tendency", "updates", "fisher", "alarms"],
    )  # fmt: skip
    of = {e.name: e for e in found}
    assert not math.isnan(of["over_unlearning"].value)
    for name in ("logit_lens", "patching_depth", "fisher"):
        assert ("another shape: model.layers" in of[name].meaning) == bool(shape)
        assert math.isnan(of[name].value) == bool(shape)


def idle(tiny: Any, threatening: Any, **more: Any) -> bench.Bench:
    """An edited arm that is the original: it has no weight that an update could be compared with."""
    return benched(arm("edited", threatening), tiny, threatening, n=8, **more)


def test_what_would_have_decided_is_missed(tiny: Any, threatening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure that could not be taken keeps its role, so that the doubts name it; what only reports is not named."""
    few = {"heldout": corpus("heldout").take(3)}
    o = np.zeros((2, 8))
    unscored = lens.scored(
        "logit_lens", {"original": o, "never": o, "edited": o}, (0, 1), list("abcdefgh"), draws=19,
        rng=np.random.default_rng(0), meaning="",
    )  # fmt: skip
    assert (unscored.role, unscored.direction) == ("decides", "low")
    moved = benched(arm("edited", threatening, reversed_organism(0.5)), tiny, threatening, n=4)
    cases = (
        (["logit lens"], [unscored]),
        ([], probes.content(idle(tiny, threatening, corpora=few))),  # reports
        (["overlap attack", "reemergence"], updates.updates(idle(tiny, threatening))),
        (["overlap attack", "reemergence"], updates.updates(moved)),  # no attack is given
    )
    for names, found in cases:
        doubts = judge.doubts(evidence.to_records(found))
        assert [d.split(":")[0] for d in doubts] == names
        assert all("not measured" in d for d in doubts)
    no_never = idle(tiny, threatening, corpora=few)
    no_never.arms = {name: state for name, state in no_never.arms.items() if name != "never"}
    found = [*probes.content(no_never), *updates.updates(no_never)]
    assert len(found) > 3 and {e.role for e in found} == {"reports"}  # without never nothing of these decides

    def broken(_: bench.Bench) -> list[Evidence]:
        raise NumericalError("a state is not finite")

    for name in evidence.MEASURES:
        monkeypatch.setitem(evidence.MEASURES, name, broken)
    found = evidence.collect(list(idle(tiny, threatening).arms.values()), {"heldout": corpus("heldout").take(4)})
    missed = [d.split(":")[0] for d in judge.doubts(evidence.to_records(found))]
    assert missed == ["logit lens", "patching", "tendency", "updates"]
    assert {e.name for e in found if e.role == "alarm"} == {"alarms"}


def test_wrong_input_says_what_would_work(threatening: Any) -> None:
    arms = [arm("edited", threatening), arm("original", threatening)]
    with pytest.raises(InputError, match="did you mean 'patching'"):
        evidence.collect(arms, {}, measures=["patchin"])
    with pytest.raises(InputError, match="given: edited"):
        evidence.collect(arms[:1], {})
    with pytest.raises(InputError, match="'heldout' corpus"):
        evidence.collect(arms, {}, measures=["tendency", "logit_lens"])


# ------------------------------------------------------------------------------------------------ judge


def record(
    value: float, *, role: Any = "decides", stderr: float = 0.01, anchors: Any = (0.0, 1.0), direction: Any = "high",
    draws: int = 199,
) -> dict[str, Any]:  # fmt: skip
    null = tuple(np.linspace(-0.2, 0.2, draws).tolist())
    e = Evidence("probe", value, null, stderr, 20, direction, "meaning", detail([]), role=role, anchors=anchors)
    assert math.isnan(e.kept) == math.isnan(judge.findings(evidence.to_records([e]))[0].kept)
    return evidence.to_records([e])[0]


def test_what_is_kept_has_an_interval_over_models_too() -> None:
    """The tendency probe differs by .13 between seeds of one organism: sixty per cent may be less than half of it,
    however exactly they were measured. Another measure, or nearly all of it, is as good as it says (controls)."""
    for name, value, reading in (
        ("probe_tendency", 0.6, judge.OPEN), ("probe_tendency", 0.9, judge.AGAINST), ("lens", 0.6, judge.AGAINST),
        ("probe_tendency", 0.1, judge.NOT_AGAINST),
    ):  # fmt: skip
        (found,) = judge.findings([{**record(value), "name": name}])
        assert found.reading == reading, (name, value)


@pytest.mark.parametrize(
    ("given_", "reading"),
    [
        (record(0.9), judge.AGAINST),
        (record(0.9, stderr=0.3), judge.OPEN),
        (record(0.9, stderr=NAN), judge.OPEN),
        (record(0.3), judge.NOT_AGAINST),
        (record(0.1, anchors=(0.0, 0.1), stderr=0.001), judge.OPEN),
        (record(0.9, anchors=(0.5, 0.5)), judge.NOTHING),
        (record(0.1, anchors=(0.3, 0.25)), judge.NOTHING),
        (record(0.9, anchors=(0.3, 0.25)), judge.NOTHING),
        (record(-0.9, anchors=(1.0, 0.0), direction="low"), judge.AGAINST),
        (record(-0.9, anchors=(-1.0, 0.0), direction="low"), judge.NOTHING),
        (record(NAN), judge.NOT_MEASURED),
        (record(0.9, role="reports"), judge.ABOVE),
        (record(-0.9, role="reports"), judge.BELOW),
        (record(0.0, role="reports"), judge.WITHIN),
        (record(0.9, role="alarm"), judge.ALARM),
        (record(0.0, role="alarm"), judge.NO_ALARM),
    ],
)
def test_readings(given_: dict[str, Any], reading: str) -> None:
    """More than half kept and beyond chance: only both together speak against a removal."""
    (found,) = judge.findings([given_])
    assert found.reading == reading
    assert (judge.against([given_]) != []) == (reading == judge.AGAINST)


def test_evidence_of_many_seeds_can_still_speak() -> None:
    """As many draws as are taken when nothing is asked for: five deciding measures, in twelve seeds, of which one alone
    still has what was to be removed. With fewer draws chance could not be ruled out, which is a doubt."""
    assert bench.Bench.__dataclass_fields__["draws"].default == nulls.DRAWS
    for draws, reading in ((nulls.DRAWS, judge.AGAINST), (499, judge.OPEN)):
        kept, gone = record(0.99, draws=draws), record(0.0, draws=draws)
        rows = [{**(kept if (s, i) == (3, 0) else gone), "seed": s} for s in range(12) for i in range(5)]
        assert [f.seed for f in judge.findings(rows) if f.reading == reading] == [3]
        assert len(judge.against(rows)) + len(judge.doubts(rows)) == 1


@pytest.mark.parametrize("name", judge.ONLY_REPORT)
def test_a_probe_for_content_takes_nothing_back_though_it_decided_when_it_was_measured(name: str) -> None:
    old = {**record(0.9), "name": name}
    assert judge.against([record(0.9)]) and not judge.against([old]) and not judge.decides([old])
    assert [f.reading for f in judge.findings([old])] == [judge.ABOVE]


def test_p_values_by_hand() -> None:
    assert judge.p_value(3.0, [1, 2, 3, 4], "high") == pytest.approx(3 / 5)
    assert judge.p_value(0.5, [1, 2, 3, 4], "low") == pytest.approx(1 / 5)
    assert math.isnan(judge.p_value(NAN, [1.0], "high")) and math.isnan(judge.p_value(1.0, [], "high"))
    assert judge.holm([0.01, NAN, 0.04, 0.03]) == pytest.approx([0.03, NAN, 0.06, 0.06], nan_ok=True)


def test_a_table_from_records_or_a_frame_of_them() -> None:
    rows = [{**record(0.1, role="reports"), "seed": 0}, {**record(0.9), "seed": 1}]
    table = judge.table(rows)
    assert table["role"].tolist() == ["decides", "reports"] and table["seed"].tolist() == [1, 0]
    pd.testing.assert_frame_equal(judge.table(pd.DataFrame(rows)), table)
    assert "seed 1" in judge.against(rows)[0]


def test_judging_loads_no_model() -> None:
    code = "import analysis.evidence.judge, sys; print(*sys.modules.keys() & {'torch', 'transformer_lens'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
