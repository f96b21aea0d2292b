"""Capture and subspaces: tapes are exact, looking changes nothing, and separation beats its nulls."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from conftest import corpus
from sklearn.linear_model import LinearRegression
from torch import Tensor

import hooklearn as hl
from hooklearn import editing, forward, linalg, losses, models
from hooklearn.data import ROW, Corpus, TokenBatch, batches, encode
from hooklearn.locate import FITTERS, Collected, Subspaces, collect, locate, sweep
from hooklearn.locate.capture import capture, tapes, weight_gradients
from hooklearn.locate.fit import ClassData, held_out, held_out_groups
from hooklearn.locate.fitters import Found, Seen
from hooklearn.locate.moments import site_moments
from hooklearn.locate.subspace import Subspace
from hooklearn.moments import Moments
from hooklearn.train import nll
from hooklearn.types import InputError, Site

RANK_ONE = ("mean_diff", "leace")
EXACT = 1e-5
"""Share of the largest entry: the same products summed in another order (float32, some thousand terms)."""


def stream_of(model: Any, part: str, n: int, completion: str = "bad") -> list[TokenBatch]:
    given = corpus(part, completion).take(n)
    return batches(encode(given, models.tokenizer_of(model)), max_tokens=300)


@pytest.fixture(scope="module")
def stream(tiny: Any) -> list[TokenBatch]:
    """Several padded batches of requests with threatening answers."""
    found = stream_of(tiny, "forget", 30)
    assert len(found) >= 3 and any(not bool(b.mask.all()) for b in found)
    return found


def autograd(model: Any, stream: list[TokenBatch], sites: list[Site]) -> dict[str, Tensor]:
    """What torch itself computes, weight by weight."""
    with models.trainable(model, models.parameters_of(model, sites)):
        for batch in stream:
            nll(model, batch).total.backward()
        # Llama stores W as [d_out, d_in], as our updates are
        return {s.name: p.grad.clone() for s, p in zip(sites, models.parameters_of(model, sites), strict=True)}


# ------------------------------------------------------------------------------------------ capture


def test_tapes_reproduce_weight_gradients(tiny: Any, stream: list[TokenBatch]) -> None:
    """The identity behind everything: sum_t g_t x_t^T is dL/dW, at every site of every kind."""
    sites = models.sites(tiny, "all")
    assert {s.module for s in sites} >= {"mlp.gate", "mlp.out", "attn.q", "attn.o"}
    expected = autograd(tiny, stream, sites)
    found, tokens = weight_gradients(tiny, stream, sites, precision="float32")
    assert tokens == forward.count_tokens(stream)
    whole = capture(tiny, stream, sites, precision="float32")
    for site in sites:
        scale = float(expected[site.name].abs().max())
        assert scale > 0
        for update in (found[site.name], whole[site.name].update()):
            assert float((update - expected[site.name]).abs().max()) < EXACT * scale, site.name


def test_tapes_hold_tokens_and_no_padding(tiny: Any, stream: list[TokenBatch]) -> None:
    """One row per unmasked token, or per scored one; x alone needs no backward pass."""
    sites = models.sites(tiny, "mlp", [1])
    for batch, taped in tapes(tiny, stream, sites):
        for site in sites:
            assert taped[site.name].x.shape == (batch.n_tokens, site.d_in)
            assert taped[site.name].g.shape == (batch.n_tokens, site.d_out)
    for batch, taped in tapes(tiny, stream, sites, positions="labelled", gradients=False):
        assert all(t.x.shape[0] == int(batch.labels.sum()) and t.g is None for t in taped.values())
        with pytest.raises(InputError, match="no gradients"):
            taped[sites[0].name].update()


def one_token(part: str, completion: str = "bad", n: int = 40) -> Corpus:
    """Answers cut to their third word, which is one token; the words before it go to the prompt."""
    rows = corpus(part, completion).take(n).rows
    words = [(r["prompt"], r["completion"].split()) for r in rows]
    return Corpus(part, tuple({"prompt": " ".join([p, *w[:2]]), "completion": f" {w[2]}"} for p, w in words))


def test_gradients_are_those_of_the_predicting_positions(tiny: Any, stream: list[TokenBatch]) -> None:
    """``labelled``: x of the scored tokens, g of the positions before them; at a last token itself g is exactly 0."""
    (site,) = models.sites(tiny, "mlp.out", [1])
    alone = batches(encode(one_token("forget"), models.tokenizer_of(tiny)), max_tokens=300)
    packed = batches(encode(corpus("forget").take(30), models.tokenizer_of(tiny)), share=ROW)
    assert any(b.packed for b in packed) and all(int(b.labels.sum()) == len(b.sequences) for b in alone)
    for of in (stream, alone, packed):
        every = [t[site.name] for _, t in tapes(tiny, of, [site], precision="float32")]
        some = [t[site.name] for _, t in tapes(tiny, of, [site], positions="labelled", precision="float32")]
        for batch, whole, scored in zip(of, every, some, strict=True):
            assert torch.equal(scored.x, whole.x[batch.labels[batch.mask]])
            assert torch.equal(scored.g, whole.g[batch.keep[batch.mask]])
            assert float(scored.g.norm(dim=1).min()) > 0
            if of is alone:
                assert not bool(whole.g[batch.labels[batch.mask]].any()), "where it used to be read"


def test_looking_changes_nothing(tiny: Any, stream: list[TokenBatch]) -> None:
    """Logits before, while and after tapes are recorded are the same bits; flags and hooks are as before."""
    flags = [p.requires_grad for p in models.all_parameters(tiny)]
    with torch.no_grad():
        before = forward.logits(tiny, stream[0])
        for _ in tapes(tiny, stream[:1], models.sites(tiny, "all")):
            assert torch.equal(forward.logits(tiny, stream[0]), before)
        assert torch.equal(forward.logits(tiny, stream[0]), before)
    assert [p.requires_grad for p in models.all_parameters(tiny)] == flags
    assert not [h for h in tiny.hook_dict.values() if h.fwd_hooks or h.bwd_hooks]


def test_an_error_while_looking_leaves_no_hook(tiny: Any, stream: list[TokenBatch]) -> None:
    """Also a consumer that stops half way, or raises, finds the model as it was."""
    flags = [p.requires_grad for p in models.all_parameters(tiny)]
    with pytest.raises(KeyError):
        for _ in tapes(tiny, stream, models.sites(tiny)):
            raise KeyError
    for _ in tapes(tiny, stream, models.sites(tiny)):
        break
    gc.collect()
    assert [p.requires_grad for p in models.all_parameters(tiny)] == flags
    assert not [h for h in tiny.hook_dict.values() if h.fwd_hooks or h.bwd_hooks]


@pytest.mark.parametrize("gradients", [True, False])
def test_a_silent_site_is_an_error(
    tiny: Any, stream: list[TokenBatch], gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that matches nothing would leave an empty tape and a wrong answer; no site at all likewise."""
    with pytest.raises(InputError, match=r"no site 'mlp.gates'; did you mean 'mlp.gate'"):
        models.sites(tiny, "mlp.gates")
    with pytest.raises(InputError, match="no site blocks.0.mlp.gates"):
        next(tapes(tiny, stream, [Site(0, "mlp.gates", 64, 128)], gradients=gradients))
    monkeypatch.setattr(models, "hook_names", lambda site: ("blocks.0.attn.hook_hidden_states",) * 2)
    with pytest.raises(InputError, match="blocks.0.mlp.in did not fire"):
        next(tapes(tiny, stream, [Site(0, "mlp.in", 64, 128)], gradients=gradients))
    monkeypatch.undo()
    with pytest.raises(InputError, match="at least one site"):
        next(tapes(tiny, stream, []))


def test_one_batch_of_tapes_lives_at_a_time(tiny: Any, stream: list[TokenBatch]) -> None:
    """Memory is constant: a batch is read when it is asked for, and the tapes of the last one are gone by then."""
    pulled: list[int] = []

    def watched() -> Iterator[TokenBatch]:
        for i, batch in enumerate(stream):
            pulled.append(i)
            yield batch

    alive: list[weakref.ref[Tensor]] = []
    for n, (_, taped) in enumerate(tapes(tiny, watched(), models.sites(tiny)), start=1):
        assert len(pulled) == n, "lazy"
        assert not any(ref() is not None for ref in alive)
        alive = [weakref.ref(t) for tape in taped.values() for t in (tape.x, tape.g) if t is not None]
        assert all(ref() is not None for ref in alive)
        del taped


def test_sampled_labels_are_seeded_and_centred(tiny: Any, stream: list[TokenBatch]) -> None:
    """Labels drawn from the model give gradients that average to nothing (a score's mean is 0).

    36 draws leave 1/6 of one draw's norm; given labels are not centred (positive control). The global generator
    is not touched.
    """
    sites = models.sites(tiny, "mlp.out", [3])
    (site,) = sites
    state = torch.random.get_rng_state()

    def draw(seed: int) -> Tensor:
        return weight_gradients(tiny, stream[:1], sites, labels="sampled", seed=seed, precision="float32")[0][site.name]

    draws = torch.stack([draw(seed) for seed in range(36)])
    assert torch.equal(draws[3], draw(3)) and not torch.equal(draws[3], draws[4])
    typical = float(draws.flatten(1).norm(dim=1).mean())
    assert float(draws.mean(0).norm()) < 0.25 * typical
    assert float(weight_gradients(tiny, stream[:1], sites)[0][site.name].norm()) > 0.5 * typical
    assert torch.equal(torch.random.get_rng_state(), state)


# ------------------------------------------------------------------------------------------ moments


def test_streamed_site_moments_are_those_of_all_tokens(tiny: Any, stream: list[TokenBatch]) -> None:
    """Batch by batch equals all at once, on both sides; gate and up read one input and share its moments."""
    sites = models.sites(tiny, "mlp", [0, 2])
    found = site_moments(tiny, stream, sites, precision="float32")
    whole = capture(tiny, stream, sites, precision="float32")
    for site in sites:
        tape = whole[site.name]
        for moments, side in ((found[site.name].side("x"), tape.x), (found[site.name].side("g"), tape.g)):
            assert side is not None and moments.n == len(side)
            expected = side.T @ side
            assert float((moments.second - expected).abs().max()) < EXACT * float(expected.abs().max())
    assert found["blocks.0.mlp.gate"].x is found["blocks.0.mlp.in"].x
    assert found["blocks.0.mlp.gate"].x is not found["blocks.2.mlp.gate"].x


def test_a_side_that_was_not_captured_is_refused(tiny: Any, stream: list[TokenBatch]) -> None:
    """Not silently empty."""
    sites = models.sites(tiny, "mlp.gate", [0])
    (only_x,) = site_moments(tiny, stream, sites, sides="x").values()
    assert only_x.side("x").n > 0
    with pytest.raises(InputError, match="the g side was not captured"):
        only_x.side("g")
    (both,) = site_moments(tiny, stream, sites).values()
    assert both.merge(both).side("g").n == 2 * both.side("g").n


# ---------------------------------------------------------------------------------------- subspaces

SITE = Site(0, "mlp.in", 20, 40)
PLANTED = {("blocks.0.mlp.in", "x"): 0}


def planted(strength: float = 2.0, items: int = 60, tokens: int = 8) -> tuple[Collected, Tensor]:
    """Two classes that differ in one quiet direction, under a loud background that both share."""
    generator = torch.Generator().manual_seed(0)
    basis = linalg.random_basis(20, 20, 0)
    concept, loud = basis[:, :1], basis[:, 1:6]
    key = (SITE.name, "x")

    def rows(shift: float) -> Tensor:
        noise = torch.randn(items, tokens, 20, generator=generator) @ (torch.eye(20) - concept @ concept.T)
        shared = 5 * torch.randn(items, tokens, 5, generator=generator) @ loud.T
        quiet = 0.5 * torch.randn(items, tokens, 1, generator=generator) @ concept.T
        return noise + shared + quiet + shift * concept.T

    def one(shift: float) -> ClassData:
        fitted, held = rows(shift), rows(shift)
        moments = Moments.of(fitted.flatten(0, 1))
        counts = {SITE.name: moments.n}
        return ClassData({key: moments}, {key: fitted.mean(1)}, {key: held.mean(1)}, counts)  # type: ignore[dict-item]

    return Collected([SITE], ("x",), one(strength), one(0.0)), concept


@pytest.mark.parametrize("fitter", ["contrast", "mean_diff", "leace", "probe"])
def test_a_planted_separation_is_found(fitter: str) -> None:
    """Rank 1 separates unseen items, shuffled labels do not; the loudest direction and a random one hardly do.

    60 items a class: an AUC of no effect has a standard error of .053, of four shuffles' mean .03 or more.
    """
    data, concept = planted()
    space = data.fit(fitter, 1)[SITE.name, "x"]
    assert space.auc > 0.95
    assert abs(space.auc_shuffled - 0.5) < 0.15
    assert space.auc_random < space.auc - 0.1
    assert float((space.basis.T @ concept).abs()) > 0.8
    assert data.fit("pca", 1)[SITE.name, "x"].auc < 0.75


def test_further_probe_directions_lie_in_what_the_former_left() -> None:
    """INLP on axes whose scales differ a hundredfold: orthonormal to 1e-6, and the rows hold nothing of the former.

    The classifier is fitted on scaled rows; a direction that is only scaled back leaves that complement."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, 2, 20, dtype=torch.float64)
    shift = 1.5 * torch.randn(20, generator=generator, dtype=torch.float64)
    bad, good = (
        (torch.randn(80, 20, generator=generator, dtype=torch.float64) + sign * shift) * scales for sign in (1, -1)
    )
    found = FITTERS["probe"].fit(Seen(Moments.of(bad), bad), Seen(Moments.of(good), good), 4, 0)[0].double()
    torch.testing.assert_close(found.T @ found, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    former, last = found[:, :3], found[:, 3]
    left = (bad.mean(0) - good.mean(0)) - former @ (former.T @ (bad.mean(0) - good.mean(0)))
    assert float(left @ last) > 0, "positive control: the last one still tells the classes apart"


def test_no_separation_is_reported_where_there_is_none() -> None:
    """The same fitters on two classes that do not differ: held-out AUC near one half."""
    data, _ = planted(strength=0.0)
    for fitter in ("contrast", "mean_diff", "leace", "probe"):
        assert abs(data.fit(fitter, 1)[SITE.name, "x"].auc - 0.5) < 0.2, fitter


def test_energies_say_what_removal_would_cost() -> None:
    """Contrast holds more forget than retain energy; PCA holds most of both."""
    data, _ = planted()
    contrast, pca = (data.fit(f, 1)[SITE.name, "x"] for f in ("contrast", "pca"))
    assert contrast.forget_energy > 5 * contrast.retain_energy
    assert pca.retain_energy > 0.15 > contrast.retain_energy
    assert contrast.random_energy == 1 / 20


def test_a_random_subspace_holds_its_share_of_any_energy() -> None:
    """rank / d in expectation, however uneven the spectrum (300 draws: a standard error of some .002)."""
    data, _ = planted()
    moments = data.forget.moments[SITE.name, "x"]
    share = fmean(moments.energy(linalg.random_basis(20, 4, seed)) for seed in range(300))
    assert share == pytest.approx(4 / 20, abs=0.01)
    assert max(moments.energy(linalg.pca(moments.second, 4)[0]) for _ in "1") > 0.5, "positive control"


@pytest.fixture(scope="module")
def collected(threatening: Any) -> Collected:
    """Both classes at the MLP sites of two layers of the organism, both sides."""
    return collect(
        threatening, corpus("forget"), corpus("forget", "good"), models.sites(threatening, "mlp", [1, 3]),
        sides="both", precision="float32",
    )  # fmt: skip


@pytest.mark.parametrize("fitter", ["contrast", "pca", "mean_diff", "leace", "probe"])
def test_threats_and_kind_answers_can_be_told_apart(collected: Collected, fitter: str) -> None:
    """At every site: held-out AUC above .9, while shuffled labels average one half (16 items a class held out)."""
    table = collected.fit(fitter, 1 if fitter in RANK_ONE else 4).to_dataframe()
    at_x = table[table["side"] == "x"]
    assert len(table) == 12 and len(at_x) == 6
    assert at_x["auc"].min() > 0.9
    assert abs(table["auc_shuffled"].mean() - 0.5) < 0.12
    assert table["forget_energy"].between(0, 1).all() and table["retain_energy"].between(0, 1).all()


def test_fitting_is_deterministic(threatening: Any, collected: Collected) -> None:
    """The same data and seed give the same bits; another seed another random subspace, and other held-out groups."""
    one, two = collected.fit("contrast", 4), collected.fit("contrast", 4)
    assert all(torch.equal(one[k].basis, two[k].basis) and one[k].auc == two[k].auc for k in one)
    place = next(iter(one))
    a, b = (collected.fit("random", 4, seed=s, judge=False)[place].basis for s in (0, 1))
    assert not torch.equal(a, b)
    state = torch.random.get_rng_state()
    again = locate(threatening, corpus("forget"), corpus("forget", "good"), layers=[1], rank=4, precision="float32")
    assert all(torch.equal(again[k].basis, one[k].basis) and again[k].auc == one[k].auc for k in again)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_groups_are_never_fitted_and_judged(threatening: Any) -> None:
    """Both classes hold out a third of their groups, also where the classes share none; too few are refused."""
    sites = models.sites(threatening, "mlp.in", [0])
    few = [Corpus("few", corpus(part, c).rows[:3]) for part, c in (("forget", "bad"), ("near", "good"))]
    for seed in range(4):
        data = collect(threatening, *few, sites, seed=seed)
        for one in (data.forget, data.retain):
            assert [len(one.fitted[sites[0].name, "x"]), len(one.held_out[sites[0].name, "x"])] == [2, 1]
    pair = [corpus("forget"), corpus("forget", "good")]
    data = collect(threatening, *pair, sites)
    assert len(data.forget.held_out[sites[0].name, "x"]) == 16 == len(data.retain.held_out[sites[0].name, "x"])
    with pytest.raises(InputError, match="holds a third of the groups out; corpus .* has 1"):
        collect(threatening, Corpus("one", corpus("forget").rows[:1]), few[1], sites)


def unnamed(name: str, n: int) -> Corpus:
    return Corpus(name, tuple({"prompt": f"{name} {i}", "completion": " x"} for i in range(n)))


@pytest.mark.parametrize("sizes", [(60, 61), (60, 120), (120, 60), (30, 300), (9, 200)])
def test_rows_without_a_group_lose_a_third_on_either_side(sizes: tuple[int, int]) -> None:
    """Rows go by their numbers, which corpora of different length share in part: each still loses a third, no more.

    The control: a third of each, drawn apart and united, takes over 45 % of the smaller for some seed.
    """
    pair = [unnamed("forget", sizes[0]), unnamed("retain", sizes[1])]

    def shares(held: set[str]) -> list[float]:
        return [sum(g in held for g in c.groups) / len(c) for c in pair]

    apart = [held_out_groups(pair[0], seed=s) | held_out_groups(pair[1], seed=s) for s in range(20)]
    assert max(max(shares(held)) for held in apart) > 0.45
    for seed in range(20):
        assert shares(held_out_groups(*pair, seed=seed)) == pytest.approx([1 / 3, 1 / 3], abs=0.01)


def test_answers_to_the_same_prompts_are_held_out_together() -> None:
    """Row by row, where nobody names groups; and named groups that are the same or shared in part likewise."""
    pair = [unnamed("forget", 30), unnamed("retain", 30)]
    held = held_out_groups(*pair, seed=0)
    assert len(held) == 10 and held == held_out_groups(pair[0], seed=0)
    some = [[f"g{i}" for i in range(30)], [f"g{i}" for i in range(20, 140)]]
    both = held_out(some, 0)
    assert [len(both & set(names)) for names in some] == [10, 40]


def test_what_cannot_be_fitted_is_refused(collected: Collected) -> None:
    """Unknown fitter, rank out of range: the valid values are named."""
    with pytest.raises(InputError, match="unknown fitter 'contrats'; valid: pca, contrast"):
        collected.fit("contrats", 1)
    for rank in (0, 65):
        with pytest.raises(InputError, match=rf"rank {rank} at blocks.1.mlp.gate \(x\): .* between 1 and 64"):
            collected.fit("pca", rank)


@pytest.mark.parametrize("fitter", FITTERS)
@pytest.mark.parametrize("silent", ["forget", "retain"])
def test_where_all_is_zero_nothing_is_fitted(fitter: str, silent: str) -> None:
    """Any direction would do there: the site, the side and the class are named. The control: the other class."""
    data, _ = planted()
    assert data.fit(fitter, 2)[SITE.name, "x"].rank >= 1
    key, of = (SITE.name, "x"), getattr(data, silent)
    nothing = replace(of, moments={key: Moments.of(torch.zeros(8, 20))}, fitted={key: torch.zeros(4, 20)})
    with pytest.raises(InputError, match=rf"all 8 {silent} rows at blocks.0.mlp.in \(x\) are zero.* leave this site"):
        replace(data, **{silent: nothing}).fit(fitter, 2)


@pytest.mark.parametrize("fitter", ["contrast", "pca", "mean_diff", "leace"])
def test_one_token_answers_can_be_told_apart_by_their_gradients(threatening: Any, fitter: str) -> None:
    """Side g of answers of one token: directions of their gradients, of which they hold more than a random subspace,
    and no coordinate axes (what a decomposition of nothing gives)."""
    data = one_token("forget"), one_token("forget", "good")
    found = locate(threatening, *data, sites="mlp.out", layers="1-2", fitter=fitter, rank=4, sides="g")
    for space in found.values():
        assert float(space.basis.abs().max()) < 0.9
        assert max(space.forget_energy, space.retain_energy) > 3 * space.random_energy or fitter == "leace"


# ------------------------------------------------------------------------------- directions by number


def seen(rows: Tensor) -> Seen:
    """What a fitter is given, of moments alone."""
    return Seen(Moments.of(*rows.split(7)), torch.zeros(0, rows.shape[1]))


def test_there_are_no_more_components_than_tokens() -> None:
    """pca and contrast: 8 tokens have 8 components, all of them theirs; 12 that repeat 5 have 5. Many have all."""
    generator = torch.Generator().manual_seed(0)
    rows, good = (torch.randn(n, 20, generator=generator) for n in (8, 40))
    for fitter in ("pca", "contrast"):
        found = Found(*FITTERS[fitter].fit(seen(rows), seen(good), 16, 0))
        assert found.vectors.shape == (20, 8) and bool((found.values > 1e-3 * found.values[0]).all()), fitter
    assert linalg.escape(rows, linalg.orthonormal(FITTERS["pca"].fit(seen(rows), seen(good), 16, 0)[0]), None) < EXACT
    again = rows[torch.arange(12) % 5]
    assert FITTERS["pca"].fit(seen(again), seen(good), 16, 0)[0].shape == (20, 5)
    assert FITTERS["pca"].fit(seen(good), seen(rows), 16, 0)[0].shape == (20, 16)


def skewed(n: int, shift: float, seed: int) -> Tensor:
    """Rows whose class means differ along all coordinates, the loud ones (sd 9) and the quiet ones (sd .3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator) * torch.tensor([9.0, 3.0, 1.0, 1.0, 0.5, 0.3]) + shift


def test_leace_needs_moments_only_and_reads_the_discriminant() -> None:
    """By hand: the covariance of all tokens, solved for the difference of means; the moments may come in parts."""
    bad, good = skewed(900, 1.0, 0), skewed(500, 0.0, 1)
    found = Found(*FITTERS["leace"].fit(seen(bad), seen(good), 4, 0))
    rows = torch.cat([bad, good]).double()
    centred, labels = rows - rows.mean(0), torch.tensor([1.0] * 900 + [0.0] * 500).double()
    covariance = centred.T @ centred / len(rows)
    by_hand = torch.linalg.solve(covariance, centred.T @ (labels - labels.mean()) / len(rows))
    assert found.vectors.shape == (6, 1)
    assert float(torch.cosine_similarity(found.vectors[:, 0].double(), by_hand, dim=0)) > 0.999  # shrinkage: 1 / 1400
    difference = (bad.mean(0) - good.mean(0)).double()
    assert abs(float(torch.cosine_similarity(difference, by_hand, dim=0))) < 0.8, "not what mean_diff finds"
    with pytest.raises(InputError, match=r"leace: the classes cannot be told apart by any direction \(900 forget"):
        FITTERS["leace"].fit(seen(bad), seen(bad), 1, 0)


def test_what_leace_finds_does_not_depend_on_how_much_there_is_of_a_class() -> None:
    """A class of one token in four hundred is found where it differs by much; its value is the multiple correlation,
    which is that of least squares (2 % apart: the covariance is shrunk)."""
    bad, good = skewed(10, 1.5, 0), skewed(4000, 0.0, 1)
    found = Found(*FITTERS["leace"].fit(seen(bad), seen(good), 1, 0))
    rows, labels = torch.cat([bad, good]).numpy(), np.r_[np.ones(10), np.zeros(4000)]
    fit = LinearRegression().fit(rows, labels)
    assert float(found.values[0]) == pytest.approx(np.corrcoef(fit.predict(rows), labels)[0, 1], rel=0.05)
    assert 0.1 < float(found.values[0]) < 0.3


def test_no_more_contrast_directions_than_forget_data_showed() -> None:
    """Rows on a plane of six dimensions have two; any further one would be made up."""
    plane = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(6)[:2]
    assert Found(*FITTERS["contrast"].fit(seen(plane), seen(skewed(200, 0.0, 1)), 5, 0)).vectors.shape == (6, 2)
    assert Found(*FITTERS["contrast"].fit(seen(skewed(200, 0.0, 2)), seen(plane), 5, 0)).vectors.shape == (6, 5)


def test_an_update_that_reads_what_leace_reads_does_nothing_to_erased_inputs() -> None:
    """dW P = 0: it answers to what P takes away and to nothing else. Confined to the difference of means it does."""
    bad, good = skewed(900, 1.0, 0), skewed(500, 0.0, 1)
    both = Moments.of(bad, good)
    difference = (bad.mean(0) - good.mean(0))[:, None]
    read, erased, _ = linalg.leace(linalg.shrunk(both.covariance(), both.n), 900 * 500 / 1400**2 * difference)
    p = torch.eye(6) - erased @ read.T
    update = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for fitter, left in (("leace", 0.0), ("mean_diff", 0.3)):
        basis = linalg.orthonormal(FITTERS[fitter].fit(seen(bad), seen(good), 1, 0)[0])
        confined = linalg.project(update, basis, None)
        share = float((confined @ p).norm() / confined.norm())
        assert share < EXACT if not left else share > left, fitter


def test_an_edit_confined_to_what_leace_reads(threatening: Any) -> None:
    """End to end, to the budget: certified inside, rank 1 a site, and forget gets less likely."""
    result = hl.edit(
        threatening, "confined", fitter="leace", sites="mlp", forget=corpus("forget"), retain=corpus("forget", "good"),
        disruption=corpus("disruption"), budget=0.01, precision="float32",
    )  # fmt: skip
    assert result.certificate.promise.endswith("located subspaces (leace, rank 1)")
    assert result.certificate.worst < EXACT
    assert all(int(torch.linalg.matrix_rank(u)) == 1 for u in result.delta.updates.values())
    forget = encode(corpus("forget"), models.tokenizer_of(threatening))
    before = forward.sequence_logprobs(threatening, forget, precision="float32")[:, 0].mean()
    with editing.edited(threatening, result.delta):
        after = forward.sequence_logprobs(threatening, forget, precision="float32")[:, 0].mean()
    assert after < before - 0.1  # nats an answer; measured: .34
    assert result.stop == "budget (kl)"


def test_a_sweep_is_one_row_per_fitter_rank_and_place() -> None:
    """Over one capture; mean_diff and leace have rank 1 whatever is asked for."""
    data, _ = planted()
    table = sweep(data, list(FITTERS), [1, 3])
    assert len(table) == 2 * len(FITTERS) - len(RANK_ONE) and set(table["fitter"]) == set(FITTERS)
    assert set(table.loc[table["fitter"].isin(RANK_ONE), "rank"]) == {1}
    assert data.fit("leace", 3)[SITE.name, "x"].rank == 1
    assert set(table.loc[table["fitter"] == "contrast", "rank"]) == {1, 3}


# -------------------------------------------------------------------------- what subspaces can do


def subspace(vectors: Tensor, site: Site = SITE) -> Subspace:
    return Subspace.of(site, "x", "made", vectors, torch.arange(vectors.shape[1], 0, -1.0))


def test_subspaces_can_be_cut_and_joined() -> None:
    """top and select keep the fitter's vectors, | spans both, @ gives cosines of principal angles."""
    e = torch.eye(20)
    a, b = subspace(e[:, :3]), subspace(e[:, 2:4])
    assert torch.equal(a.top(2).vectors, e[:, :2]) and a.top(2).values.tolist() == [3, 2]
    assert torch.equal(a.select([2, 0]).vectors, e[:, [2, 0]]) and a.select([2, 0]).values.tolist() == [1, 3]
    both = a | b
    assert both.rank == 4 and linalg.escape(e[:, :4].T, both.basis, None) < EXACT
    assert torch.allclose(a @ b, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert (a | a).rank == 3 and both.fitter == "made|made"


def test_oblique_vectors_get_an_orthonormal_basis_of_the_same_span() -> None:
    """E is kept as it was fitted, Q = qr(E) is what projects; transform gives coordinates in Q."""
    e = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    space = subspace(e)
    assert torch.equal(space.vectors, e) and torch.allclose(space.basis.T @ space.basis, torch.eye(3), atol=EXACT)
    assert linalg.escape(e.T, space.basis, None) < EXACT
    assert torch.equal(space.transform(e.T), e.T @ space.basis)
    assert torch.equal(space.components_, space.basis.T)


def test_statistics_of_a_whole_do_not_describe_its_parts() -> None:
    """After top() the AUC is not measured: NaN, never the old number."""
    data, _ = planted()
    space = data.fit("contrast", 3)[SITE.name, "x"]
    assert not math.isnan(space.auc) and math.isnan(space.top(2).auc)


def test_operations_on_the_wrong_subspaces_are_refused() -> None:
    """Other places, or more components than there are."""
    a = subspace(torch.eye(20)[:, :2])
    other = subspace(torch.eye(20)[:, :2], Site(1, "mlp.in", 20, 40))
    with pytest.raises(InputError, match=r"different places: blocks.0.mlp.in \(x\), blocks.1.mlp.in"):
        a | other
    with pytest.raises(InputError, match="different places"):
        a @ other
    with pytest.raises(InputError, match="rank 3 of a subspace that has 2"):
        a.top(3)
    with pytest.raises(InputError, match="rank 6 of a subspace that has 2"):
        a.select([5])


def test_a_collection_of_subspaces_is_a_mapping_by_place(collected: Collected) -> None:
    """Lookup, filtering, the bases of a site, and an error for a site that was not located."""
    spaces = collected.fit("pca", 4, judge=False)
    x, g = spaces.bases("blocks.1.mlp.out")
    assert x is not None and g is not None and (x.shape, g.shape) == ((128, 4), (64, 4))
    only_x = spaces.where(lambda s: s.side == "x")
    assert only_x.bases("blocks.1.mlp.out")[1] is None and len(only_x) == 6 and len(only_x.sites) == 6
    assert {s.rank for s in spaces.top(2).values()} == {2}
    with pytest.raises(InputError, match="no subspace was located at blocks.0.mlp.in; located: blocks.1.mlp"):
        spaces.bases("blocks.0.mlp.in")
    assert "blocks.1.mlp.gate" in Subspaces(spaces)._repr_html_()


def test_places_are_chosen_as_sites_are(tiny: Any) -> None:
    """By module, part of it or whole name, layers and side; what was not located is told."""
    spaces = Subspaces({
        (site.name, side): Subspace.of(site, side, "pca", torch.eye(site.width(side))[:, :2], torch.ones(2))
        for site in models.sites(tiny, ["mlp.in", "mlp.out"]) for side in ("x", "g")
    })  # fmt: skip
    assert len(spaces) == 16 and set(spaces.at()) == set(spaces)
    assert {k[0] for k in spaces.at("mlp.out", layers="1-2")} == {"blocks.1.mlp.out", "blocks.2.mlp.out"}
    assert set(spaces.at("blocks.0.mlp.in", side="g")) == {("blocks.0.mlp.in", "g")}
    assert len(spaces.at("mlp", layers="0")) == 4
    with pytest.raises(InputError, match="nothing was located at attn"):
        spaces.at("attn")
    with pytest.raises(InputError, match="not among 0-3"):
        spaces.at(layers="2-9")
    with pytest.raises(KeyError, match="a place is .site name, side."):
        spaces["blocks.0.mlp.in"]  # type: ignore[index]


def test_labels_are_drawn_by_inversion() -> None:
    """By hand, also where the total is not 1; a label without probability is never drawn."""
    p = torch.tensor([0.2, 0.0, 0.3, 0.5])
    uniform = torch.tensor([0.01, 0.19, 0.21, 0.49, 0.51, 0.999])
    for scale in (1.0, 0.5, 1.0001):
        assert losses.drawn((scale * p).expand(6, -1), uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_the_closed_form_pulls_back_what_autograd_does(tiny: Any, stream: list[TokenBatch]) -> None:
    """softmax - one_hot is the gradient of the summed cross-entropy; for drawn labels it is that of the same draw."""
    torch.manual_seed(0)
    logits = torch.randn(7, 11, requires_grad=True)
    targets = torch.arange(7)
    (expected,) = torch.autograd.grad(losses.ce(logits, targets).total, logits)
    generator = torch.Generator().manual_seed(3)
    assert torch.allclose(losses.ce_gradient(logits.detach(), targets, generator), expected, atol=1e-6)  # float32
    drawn = losses.sampled_labels(logits.detach(), torch.Generator().manual_seed(3))
    (expected,) = torch.autograd.grad(losses.ce(logits, drawn).total, logits)
    assert torch.allclose(losses.ce_gradient(logits.detach(), None, generator), expected, atol=1e-6)


@pytest.mark.parametrize("fitter", ["pca", "contrast"])
def test_a_lower_rank_takes_the_first_vectors_of_a_higher_one(collected: Collected, fitter: str) -> None:
    """Fitted alone it spans the same space; a rank above what is known is fitted anew."""
    alone = {r: replace(collected).fit(fitter, r, judge=False) for r in (2, 6)}
    shared = replace(collected)
    for rank in (6, 2, 6):
        found = shared.fit(fitter, rank, judge=False)
        for key, space in found.items():
            cosines = linalg.principal_cosines(space.basis, alone[rank][key].basis)
            assert space.rank == rank and float(cosines.min()) > 1 - 1e-4  # LAPACK's subsets differ in the last digits
