"""Capture and subspaces: tapes are exact, looking changes nothing, and separation beats its nulls."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from conftest import corpus
from torch import Tensor

from hooklearn import forward, linalg, losses, models
from hooklearn.data import Corpus, TokenBatch, batches, encode
from hooklearn.locate import FITTERS, Collected, Subspaces, collect, locate, sweep
from hooklearn.locate.capture import capture, tapes, weight_gradients
from hooklearn.locate.fit import ClassData
from hooklearn.locate.moments import site_moments
from hooklearn.locate.subspace import Subspace
from hooklearn.moments import Moments
from hooklearn.train import nll
from hooklearn.types import InputError, Site

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


@pytest.mark.parametrize("fitter", ["contrast", "mean_diff", "probe"])
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


def test_no_separation_is_reported_where_there_is_none() -> None:
    """The same fitters on two classes that do not differ: held-out AUC near one half."""
    data, _ = planted(strength=0.0)
    for fitter in ("contrast", "mean_diff", "probe"):
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


@pytest.mark.parametrize("fitter", ["contrast", "pca", "mean_diff", "probe"])
def test_threats_and_kind_answers_can_be_told_apart(collected: Collected, fitter: str) -> None:
    """At every site: held-out AUC above .9, while shuffled labels average one half (16 items a class held out)."""
    table = collected.fit(fitter, 1 if fitter == "mean_diff" else 4).to_dataframe()
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


def test_what_cannot_be_fitted_is_refused(collected: Collected) -> None:
    """Unknown fitter, rank out of range: the valid values are named."""
    with pytest.raises(InputError, match="unknown fitter 'contrats'; valid: pca, contrast"):
        collected.fit("contrats", 1)
    for rank in (0, 65):
        with pytest.raises(InputError, match=rf"rank {rank} at blocks.1.mlp.gate \(x\): .* between 1 and 64"):
            collected.fit("pca", rank)


def test_a_sweep_is_one_row_per_fitter_rank_and_place() -> None:
    """Over one capture; mean_diff has rank 1 whatever is asked for."""
    data, _ = planted()
    table = sweep(data, list(FITTERS), [1, 3])
    assert len(table) == 2 * len(FITTERS) - 1 and set(table["fitter"]) == set(FITTERS)
    assert set(table.loc[table["fitter"] == "mean_diff", "rank"]) == {1}
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
