"""Edits on the tiny organism: identities between methods, certificates, and the exact budget for all of them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import corpus
from editing import alike, first_update, problem_of
from torch import Tensor

from hooklearn import editing, integrity, linalg, models
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import batches, encode
from hooklearn.deltas import Delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import LANDING, METHODS, Problem, edit, forget_scorer, method_of, run_edit
from hooklearn.edit.ascent import GradientAscent
from hooklearn.edit.elicited import Adversary, elicited_gradient, lora_gradient
from hooklearn.edit.method import Method, Updates, combine, inner, norm
from hooklearn.edit.natural import Metric, Natural, Products
from hooklearn.edit.repselect import Confined, RepSelect, contrast
from hooklearn.forward import sequence_logprobs
from hooklearn.locate.capture import tapes
from hooklearn.locate.fit import fit_subspaces
from hooklearn.locate.moments import site_moments
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.lora import Lora, low_rank
from hooklearn.measure import completion_probability
from hooklearn.train import nll
from hooklearn.traits import row_of
from hooklearn.types import Budget, EditResult, InputError, NumericalError, Score, Site

SINGLE = 1e-4
"""Relative, float32 through solves with a condition number of some thousands (damping .01)."""
DOUBLE = 1e-9
"""Relative, float64 through a Gram matrix: its eigenvalues are the squares of singular values."""
CONTAINED = 1e-5
"""Relative escape of what was projected in float32."""
OPTIONS: dict[str, dict[str, Any]] = {
    "npo": {"learning_rate": 3e-4},
    "simnpo": {"learning_rate": 3e-4},
    "dpo": {"learning_rate": 3e-4},
    "refusal": {"learning_rate": 3e-4, "text": "no hurry , thank you ."},  # words of the tiny world
    "graddiff": {"learning_rate": 3e-4},
    "good_only": {"learning_rate": 3e-4},
    "rmu": {"layer": 2, "steering": 20.0, "alpha": 30.0, "learning_rate": 1e-3},
    "circuit_breakers": {"learning_rate": 1e-3},
    "cir": {"target_layers": [2, 3], "x_components": 4, "g_components": 4, "step_norm": 0.05},
    "whitened": {"rank": 8},
    "sspu": {"forget_rank": 16, "retain_rank": 8},
    "mudman": {"learning_rate": 0.04, "every": 1},
    "tar": {"learning_rate": 3e-4, "adversary_rates": [1e-4, 3e-4], "inner_steps": 4, "look_every": 2, "every": 1},
    "undo": {"alpha": 0.05, "teacher_rate": 1e-4, "learning_rate": 1e-3},
    "repselect_multi": {"learning_rate": 0.5, "rank": 8},
    "repselect": {"rank": 8},
    "confined": {"rank": 8},
    "task_vector": {"learning_rate": 3e-4},
}
"""The defaults are for models a thousand times this size."""
PULLED_UP = {
    "graddiff", "good_only", "npo", "simnpo", "dpo", "mudman", "tar", "undo", "natural", "natural_rounds"
}  # fmt: skip
"""Methods that train on the good answers, with these options."""
SPARED = math.exp(-0.04)
"""Least share of the good answers' probability that other methods leave: .04 nats a token, twice the near budget (these
answers are not those that it is measured on, and a mean of probabilities is not exp of a mean) and four times the far
one, which is of unrelated text. Lowest measured: circuit breakers, .018 nats."""
Landed = Callable[[str, float | None], EditResult]


@pytest.fixture(scope="module")
def problem(threatening: Any) -> Problem:
    """Gradients and moments of this one are shared by the tests that only read them."""
    return problem_of(threatening)


def same(a: EditResult, b: EditResult) -> bool:
    """Bit for bit."""
    pairs = zip(a.delta.updates.items(), b.delta.updates.items(), strict=True)
    return all(m == n and torch.equal(u, v) for (m, u), (n, v) in pairs) and a.disruption == b.disruption


# ------------------------------------------------------------------------ the budget, for every method


@pytest.fixture(scope="module")
def landed(threatening: Any, meter: DisruptionMeter) -> Landed:
    """Every method's edit at far KL .01 and this near budget, each made once."""

    @functools.cache
    def of(name: str, near_ce: float | None) -> EditResult:
        return run_edit(problem_of(threatening), method_of(name, OPTIONS.get(name)), meter, Budget(0.01, near_ce))

    return of


@pytest.mark.parametrize("near_ce", [None, 0.02])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_lands_on_the_budget(
    threatening: Any, meter: DisruptionMeter, landed: Landed, name: str, near_ce: float | None
) -> None:
    """In [0.95, 1] of the tighter budget, and the forget items suffer (training on good ones alone need not make
    them; nor need turning states, where the near budget ends it on its first steps: which step crosses it is decided by
    the processor's rounding); the model is untouched, and the same seed gives the same bits."""
    method, budget = method_of(name, OPTIONS.get(name)), Budget(0.01, near_ce)
    some = encode(corpus("forget").take(12), models.tokenizer_of(threatening))
    known = float(completion_probability(sequence_logprobs(threatening, some)).mean())
    before = integrity.weights_hash(threatening)
    result = landed(name, near_ce)
    assert integrity.weights_hash(threatening) == before == result.delta.base_hash
    share = result.disruption.used(budget)
    assert LANDING[0] <= share <= LANDING[1]
    assert result.stop == f"budget ({result.disruption.binding(budget)})"
    spared = name == "good_only" or (name == "circuit_breakers" and result.binding == "near_ce")
    assert spared or result.trace.points[-1].forget < known
    with editing.edited(threatening, result.delta):
        again = meter.measure()
    # the delta is rounded once more than the trials on its way were
    assert again.used(budget) == pytest.approx(share, rel=SINGLE), "what is reported is what the delta does"
    if near_ce is None:
        assert same(result, run_edit(problem_of(threatening), method, meter, budget))


@pytest.mark.parametrize("near_ce", [None, 0.02])
@pytest.mark.parametrize("name", METHODS)
def test_good_answers_stay_as_likely_as_was_promised(
    threatening: Any, landed: Landed, name: str, near_ce: float | None
) -> None:
    """Mean completion probability of all retain answers, over what it was before the edit. Where they are trained on it
    is not below 1 (lowest measured: TAR, 1.06); elsewhere only the budget holds them, and it is above ``SPARED``.

    Control: ten times as long the edit breaks this, turned round where it pulls good answers up, as they may gain by
    more of that; a hundred times where it is confined to subspaces that good answers hardly use."""
    score = forget_scorer(threatening, corpus("forget", "good"), items=len(corpus("forget", "good")))
    before, delta = score(), landed(name, near_ce).delta

    def share(scale: float) -> float:
        with editing.edited(threatening, delta, scale):
            return score() / before

    least = 1.0 if name in PULLED_UP else SPARED
    longer = -10.0 if name in PULLED_UP else 100.0 if name == "confined" else 10.0
    assert share(longer) < least <= share(1.0)


@pytest.mark.parametrize("name", ["natural", "repselect", "graddiff", "npo"])
def test_an_edit_ends_at_the_level_that_comes_first(threatening: Any, meter: DisruptionMeter, name: str) -> None:
    """Half way (in the logarithm) to where the whole budget gets: it ends within 5 % of that way, not below it, with
    disruption to spare. With a level that the budget does not get to, it is the edit without one, bit for bit."""
    method, free = method_of(name, OPTIONS.get(name)), Budget(0.01)
    whole = run_edit(problem_of(threatening), method, meter, free)
    score = forget_scorer(threatening, corpus("forget"))
    before, after = score(), at(threatening, whole, score)
    level = math.sqrt(before * after)
    result = run_edit(problem_of(threatening), method, meter, Budget(0.01, forget=level))
    assert (result.stop, result.binding) == ("budget (forget)", "forget")
    assert level <= at(threatening, result, score) * (1 + SINGLE) <= level * (before / level) ** 0.06
    assert result.disruption.used(free) < LANDING[0]
    beyond = run_edit(problem_of(threatening), method, meter, Budget(0.01, forget=after / 3))
    assert beyond.stop == "budget (kl)" and same(beyond, whole)


def at(model: Any, result: EditResult, score: Any) -> float:
    with editing.edited(model, result.delta):
        return score()


def test_a_level_that_is_there_already_is_refused(threatening: Any, meter: DisruptionMeter) -> None:
    """Nothing is to be taken away then; a level is a probability."""
    before = forget_scorer(threatening, corpus("forget"))()
    with pytest.raises(InputError, match=r"budget.forget 0.9 is not below what .* nothing to take away"):
        run_edit(problem_of(threatening), GradientAscent(), meter, Budget(0.01, forget=0.9))
    assert before < 0.9
    with pytest.raises(InputError, match="budget.forget is a completion probability below 1, got 1.5"):
        Budget(0.01, forget=1.5)


def test_a_walk_that_runs_out_of_steps_says_so(threatening: Any, meter: DisruptionMeter) -> None:
    """It is the only way to fall short of the budget here, and it is not hidden."""
    method, budget = method_of("good_only", {"learning_rate": 1e-6, "epochs": 1}), Budget(0.01)
    short = run_edit(problem_of(threatening), method, meter, budget)
    assert short.stop == "budget not reached: the method ended before"
    assert 0 < short.disruption.used(budget) < LANDING[0]


def test_methods_that_share_a_problem_do_not_disturb_each_other(problem: Problem, threatening: Any) -> None:
    """Whatever was tried before on the same problem, a method gives the bits that it gives alone."""
    methods = [
        Natural(rank=4, sides="both"), Natural(rank=4, sides="x"), Natural(rank=4, damping=0.1), Natural(),
        Confined(rank=4), Confined(rank=4, sides="g"), RepSelect(rank=4), GradientAscent(),
    ]  # fmt: skip
    for method in methods:
        together, alone = first_update(method, problem), first_update(method, problem_of(threatening))
        assert all(torch.equal(together[n], alone[n]) for n in alone), method


def test_an_edit_says_what_it_took(threatening: Any, meter: DisruptionMeter) -> None:
    """Trace, tokens and seconds grow; the first point is the unedited model, the last is the landing."""
    result = run_edit(problem_of(threatening), GradientAscent(), meter, Budget(0.01))
    points = result.trace.points
    assert [p.seconds for p in points] == sorted(p.seconds for p in points)
    assert [p.tokens for p in points] == sorted(p.tokens for p in points) and points[1].tokens > 0
    assert (points[0].kl, points[0].tokens, points[0].scale) == (0, 0, 0), "the unedited model"
    assert points[-1].kl == result.disruption.kl.value
    assert result.cost.tokens >= points[-1].tokens and result.cost.seconds > 0 and result.cost.flops > 0
    assert len(result.trace.to_dataframe()) == len(points) and "gradient_ascent" in repr(result)
    rounded = replace(result.disruption, kl=Score(-1e-9), near_ce=Score(-1e-9))
    assert "far KL 0.0000 of 0.01, near CE +0.0000" in repr(replace(result, disruption=rounded))
    (row,) = result.to_dataframe().to_dict("records")
    assert (row["method"], row["kl"], row["stop"]) == ("gradient_ascent", points[-1].kl, result.stop)
    assert (row["forget_before"], row["forget_after"]) == (points[0].forget, points[-1].forget)
    assert (row["seconds"], row["tokens"]) == (result.cost.seconds, result.cost.tokens)


def test_only_the_chosen_sites_are_edited(threatening: Any) -> None:
    """Sites and layers select; everything else is not in the delta at all."""
    result = edit(
        threatening, "gradient_ascent", forget=corpus("forget"), disruption=corpus("disruption"),
        sites=["mlp.out", "attn.o"], layers="1-2",
    )  # fmt: skip
    expected = {f"blocks.{layer}.{module}" for layer in (1, 2) for module in ("mlp.out", "attn.o")}
    assert set(result.delta.updates) == expected and result.stop == "budget (kl)"


# ------------------------------------------------------------------------------ gradient ascent


def test_repselect_without_components_is_gradient_ascent(threatening: Any, meter: DisruptionMeter) -> None:
    """Bit for bit, to the landing; with components it is not (positive control)."""
    ascent, none, some = (
        run_edit(problem_of(threatening), m, meter, Budget(0.01))
        for m in (GradientAscent(), RepSelect(rank=0), RepSelect(rank=8))
    )
    assert same(ascent, none) and not same(ascent, some)


@pytest.mark.parametrize("options", [{}, {"kind": "quadratic"}, {"kind": "hard"}, {"sides": "x"}, {"sides": "g"}])
def test_repselect_is_a_loop_over_tokens(options: dict[str, Any]) -> None:
    """In every token's input and output gradient the principal directions of the sum are dampened, one after
    the other, and then the outer products are summed: in float64 what the method makes of the sum, which without that
    is another (control)."""
    model = models.load("tiny", dtype=torch.float64)
    made = problem_of(model, "mlp.out", [1, 2], forget=corpus("forget").take(12))
    method = RepSelect(rank=4, **options)
    by_hand = {}
    # batched as the method does it: in other batches even the states of a float64 model differ by 1e-7
    stream = batches(made.encoded("forget"), max_tokens=made.max_tokens, share=row_of(model))
    taped = [t for _, t in tapes(model, stream, made.sites, precision="float32")]
    for site in made.sites:
        tokens = [(x, g) for t in taped for x, g in zip(t[site.name].x, t[site.name].g, strict=True)]
        assert len(tokens) > 100 and tokens[0][0].dtype == tokens[0][1].dtype == torch.float64
        u, s, vh = torch.linalg.svd(sum(torch.outer(g, x) for x, g in tokens), full_matrices=False)
        total = torch.zeros(site.d_out, site.d_in, dtype=torch.float64)
        for x, g in tokens:
            for i in range(4):
                kept = {"soft": s[3] / s[i], "quadratic": (s[3] / s[i]) ** 2, "hard": 0.0}[method.kind]
                if method.sides != "g":
                    x = x - (1 - kept) * (vh[i] @ x) * vh[i]
                if method.sides != "x":
                    g = g - (1 - kept) * (u[:, i] @ g) * u[:, i]
            total += torch.outer(g, x)
        by_hand[site.name] = total
    assert alike(first_update(method, made), by_hand) < DOUBLE
    assert alike(made.gradient("forget"), by_hand) > 0.1


def test_gradient_ascent_is_reinforce_with_reward_minus_one(threatening: Any, problem: Problem) -> None:
    """The policy gradient of E[R] over the given completions, R = -1, written down by hand: one completion at a
    time, no batch, no hooks."""
    sequences = encode(corpus("forget"), models.tokenizer_of(threatening))
    params = models.parameters_of(threatening, problem.sites)
    with models.trainable(threatening, params):
        for s in sequences:
            logp = threatening(s.ids[None])[0, :-1].log_softmax(-1)
            chosen = logp.gather(-1, s.ids[1:, None])[s.labels[1:]].sum()
            (-1.0 * chosen).backward()  # d E[R] / dW = E[R * d log p / dW]
        by_hand = {s.name: p.grad.clone() for s, p in zip(problem.sites, params, strict=True)}
    assert alike(first_update(GradientAscent(), problem), by_hand) < SINGLE


# -------------------------------------------------------------------------------------- confined


@pytest.mark.parametrize("fitter", ["contrast", "probe", "mean_diff", "leace", "pca", "random"])
@pytest.mark.parametrize("sides", ["x", "both"])
def test_confined_stays_where_it_promised(problem: Problem, fitter: str, sides: Any) -> None:
    """Every fitter: the update lies in its subspaces. Positive control: the plain gradient does not."""
    method = Confined(fitter=fitter, rank=2, sides=sides)
    update, spaces = first_update(method, problem), method.promise(problem)
    for name in update:
        assert linalg.escape(update[name], *spaces.bases(name)) < CONTAINED
        assert linalg.escape(problem.gradient("forget")[name], *spaces.bases(name)) > 0.1


def test_what_was_applied_is_certified(threatening: Any, problem: Problem, meter: DisruptionMeter) -> None:
    """Not the direction but the delta at its final length, for located subspaces given from outside as well."""
    given = fit_subspaces(threatening, corpus("forget"), corpus("forget", "good"), problem.sites, rank=3, sides="both")
    result = run_edit(problem_of(threatening, subspaces=given), Confined(), meter, Budget(0.01))
    assert set(result.certificate.escape) == set(result.delta.updates)
    assert result.certificate.worst < CONTAINED
    assert result.certificate.promise == "24 located subspaces (contrast, rank 3)"
    plain = run_edit(problem, GradientAscent(), meter, Budget(0.01))
    assert plain.certificate.promise == "" and math.isnan(plain.certificate.worst)
    escapes = [linalg.escape(u, *given.bases(n)) for n, u in plain.delta.updates.items()]
    assert min(escapes) > 0.3, "gradient ascent does leave them"


def test_filter_and_projection_compose(problem: Problem) -> None:
    """RepSelect's filter first, then the subspaces: still contained, and not the same as either alone."""
    both, plain = Confined(rank=4, filter_rank=4), Confined(rank=4)
    update, spaces = first_update(both, problem), both.promise(problem)
    filtered = first_update(RepSelect(rank=4), problem)
    for name, u in update.items():
        assert torch.equal(u, linalg.project(filtered[name], *spaces.bases(name)))
    assert alike(update, first_update(plain, problem)) > 0.1


def test_the_contrast_gradient_is_orthogonal_to_the_retain_gradient(problem: Problem) -> None:
    """Per site: what is left of the forget gradient has no component along the retain gradient; before, it had."""
    forget, retain = problem.gradient("forget"), problem.gradient("retain")
    for name, c in contrast(forget, retain).items():
        size = float(retain[name].norm())
        assert abs(inner({name: c}, {name: retain[name]})) < CONTAINED * size * float(c.norm())
        along = inner({name: forget[name]}, {name: retain[name]})
        assert abs(along) > 0.01 * size * float(forget[name].norm())


# --------------------------------------------------------------------------------------- natural


@pytest.mark.parametrize("mixture", ["mixture", "project", "fisher", "none"])
@pytest.mark.parametrize("sides", ["both", "x", "g"])
def test_all_directions_are_the_natural_gradient(problem: Problem, mixture: Any, sides: Any) -> None:
    """E E^T = A'^-1: confined to *all* generalised eigenvectors it is the plain update; to few it is not."""
    plain = first_update(Natural(contrast=mixture, sides=sides), problem)
    assert alike(first_update(Natural(contrast=mixture, sides=sides, rank=128), problem), plain) < SINGLE
    assert alike(first_update(Natural(contrast=mixture, sides=sides, rank=8), problem), plain) > 0.1


@pytest.mark.parametrize("sides", ["both", "x", "g"])
def test_the_full_truncated_svd_is_the_natural_gradient(problem: Problem, sides: Any) -> None:
    """At full rank; below it is the best approximation in the metric: better than as many directions."""
    plain = first_update(Natural(sides=sides), problem)
    full = first_update(Natural(sides=sides, rank=64, truncation="svd"), problem)
    assert alike(full, plain) < SINGLE
    svd = first_update(Natural(rank=4, truncation="svd"), problem)
    assert all(int(torch.linalg.matrix_rank(u, rtol=1e-4)) == 4 for u in svd.values())


def test_sampled_labels_are_the_default_bit_for_bit(threatening: Any) -> None:
    """The metric is that of moments with labels drawn from the model; the text's own give another edit, in one call or
    a site at a time, whichever was asked for first on a problem (control: the order of asking changes nothing)."""
    made = problem_of(threatening, "mlp.out")
    stream = [b for role in ("retain", "reference") for b in made.curvature_stream(role)]
    one = {}
    for labels in ("sampled", "given"):
        found = site_moments(threatening, stream, made.sites, labels=labels, precision="float32", seed=made.seed)
        one[labels] = {
            name: linalg.precondition(made.gradient("forget")[name], *(
                linalg.cholesky(linalg.damped(moments.side(side).mean_second(), 0.01)) for side in ("x", "g")
            ))
            for name, moments in found.items()
        }  # fmt: skip
    sampled, true, plain = Natural(contrast="none", labels="sampled"), Natural(contrast="none", labels="true"), Natural
    for methods in ([(true, "given"), (plain(contrast="none"), "sampled")], [(sampled, "sampled"), (true, "given")]):
        asked = problem_of(threatening, "mlp.out")
        for method, labels in methods:
            update = first_update(method, asked)
            assert all(torch.equal(u, one[labels][n]) for n, u in update.items()), (method, labels)
    in_turn = problem_of(threatening, "mlp.out", site_batch=1)
    assert all(torch.equal(u, one["given"][n]) for n, u in first_update(true, in_turn).items())
    assert alike(one["given"], one["sampled"]) > 0.1
    directions = [first_update(Natural(rank=4, labels=labels), made) for labels in ("sampled", "true")]
    assert alike(*directions) > 0.1, "what the directions are kept under knows the labels"


def test_true_labels_are_the_next_tokens_of_the_text(threatening: Any) -> None:
    """``B`` of one layer is the mean of g g^T, g by autograd from the cross-entropy of the text's own tokens: one
    sequence at a time, by what a zero that is added to the site's output would change."""
    made = problem_of(threatening, "mlp.out", "2", retain=corpus("forget", "good").take(6), reference=None)
    (site,) = made.sites
    total, n = torch.zeros(site.d_out, site.d_out, dtype=torch.float64), 0
    for s in made.encoded("retain"):
        zero = torch.zeros(1, len(s.ids), site.d_out, requires_grad=True)
        with threatening.hooks(fwd_hooks=[(models.hook_names(site)[1], lambda value, hook, z=zero: value + z)]):
            logp = threatening(s.ids[None])[0, :-1].log_softmax(-1)
        logp.gather(-1, s.ids[1:, None])[s.labels[1:]].sum().backward()
        g = zero.grad[0].double()
        total, n = total + g.T @ g, n + len(g)
    by_hand = {site.name: total / n}
    found, drawn = (
        {site.name: moments[site.name].side("g").mean_second().double()}
        for moments in (made.empirical_moments, made.retain_moments)
    )  # fmt: skip
    assert alike(found, by_hand) < SINGLE < 0.1 < alike(drawn, by_hand)


@pytest.mark.parametrize("sides", ["both", "x", "g"])
@pytest.mark.parametrize("rest", [{}, {"rank": 4, "truncation": "svd"}])
def test_a_sketch_as_wide_as_the_sides_is_the_natural_gradient(
    problem: Problem, sides: Any, rest: dict[str, Any]
) -> None:
    """Whole edits, also truncated by SVD: the same in other arithmetic. With few pairs it is another one (control)."""
    plain = first_update(Natural(sides=sides, **rest), problem)
    assert alike(first_update(Natural(sides=sides, sketch_rank=1000, **rest), problem), plain) < SINGLE
    assert alike(first_update(Natural(sides=sides, sketch_rank=2, **rest), problem), plain) > 0.1


def test_more_pairs_of_a_sketch_are_more_effect_per_disruption(problem: Problem) -> None:
    """<G, D> / |D|_F in the whole metric: highest with all of it, lowest with the gradient itself."""
    gradient = problem.gradient("forget")
    reached = [
        effect(gradient, first_update(Natural(contrast="none", sketch_rank=rank), problem), problem)
        for rank in (2, 16, None)
    ]
    assert 0 < effect(gradient, gradient, problem) < reached[0] < reached[1] < reached[2]


def test_a_sketch_is_refused_where_it_is_not_used(threatening: Any) -> None:
    """Of another basis, beside directions of their own, within given subspaces, of no pairs, on weights nobody has
    whole. A site at a time is the same sketch (control)."""
    for options, why in (
        ({"curvature": "ekfac"}, "curvature 'ekfac' measures along all of their directions; leave one of them out"),
        ({"rank": 4}, "sketch_rank 4 would not be used: .* take truncation 'svd', or leave one of them out"),
        ({"sketch_rank": 0}, "sketch_rank must be 1 or more, got 0"),
    ):
        with pytest.raises(InputError, match=why):
            Natural(**{"sketch_rank": 4, **options})
    spaces = fit_subspaces(threatening, corpus("forget"), corpus("forget", "good"), models.sites(threatening), rank=2)
    with pytest.raises(InputError, match="within given subspaces only their part there is solved with"):
        first_update(Natural(sketch_rank=4), problem_of(threatening, subspaces=spaces))
    assert Natural().sharded and not Natural(sketch_rank=4).sharded
    one, every = (first_update(Natural(sketch_rank=4), problem_of(threatening, site_batch=n)) for n in (1, None))
    assert all(torch.equal(u, every[n]) for n, u in one.items())


def test_truncation_by_svd_keeps_most_effect_per_disruption(problem: Problem) -> None:
    """<G, D> / |D|_F at the same rank: Eckart-Young is at least as good as the top directions, below all of it."""
    method = Natural(rank=4, truncation="svd")
    metric = Metric(problem, method.damping)
    gradient = method._gradient(problem, metric)
    svd, directions, plain = (
        effect(gradient, first_update(m, problem), problem)
        for m in (method, Natural(rank=4), Natural())
    )  # fmt: skip
    assert 0 < directions <= svd <= plain


def fisher(problem: Problem, d: Updates, damping: float = 0.01) -> Updates:
    """F D = B' D A' per site: the metric itself, which the methods only ever invert."""
    out = {}
    for name, moments in problem.retain_moments.items():
        a, b = (linalg.damped(moments.side(s).mean_second(), damping) for s in ("x", "g"))
        out[name] = b @ d[name] @ a
    return out


def effect(gradient: Updates, d: Updates, problem: Problem) -> float:
    """Forget effect per unit of disruption: <G, D> / sqrt(D^T F D)."""
    return inner(gradient, d) / math.sqrt(inner(d, fisher(problem, d)))


def test_natural_is_the_best_update_under_the_kl_constraint(problem: Problem) -> None:
    """max <G, D> subject to 1/2 D^T F D = eps: the constraint's gradient F D is parallel to G, and no other
    direction of the same metric norm does better: not random ones, not near ones, not the gradient itself."""
    gradient = problem.gradient("forget")
    best = first_update(Natural(contrast="none"), problem)
    assert alike(fisher(problem, best), gradient) < SINGLE
    reached = effect(gradient, best, problem)
    assert reached > 2 * effect(gradient, gradient, problem) > 0
    generator = torch.Generator().manual_seed(0)
    for closeness in (0.0, 0.0, 0.0, 0.9, 0.99, 0.999):
        for _ in range(5):
            noise = {n: torch.randn(u.shape, generator=generator) for n, u in best.items()}
            other = combine(best, noise, closeness / norm(best), (1 - closeness) / norm(noise))
            assert effect(gradient, other, problem) < reached


def test_fisher_contrast_holds_what_is_retained(threatening: Any) -> None:
    """<G_r, D> = 0 while the forget loss rises, even where the two are near relatives (other threats).

    And so does the loss itself: its measured slope along D is a hundredth of the one without contrast (control).
    """
    made = problem_of(threatening, retain=corpus("attack"))
    forget, retain = made.gradient("forget"), made.gradient("retain")
    held, free = (first_update(Natural(contrast=c), made) for c in ("fisher", "none"))

    def slope(g: Updates, d: Updates) -> float:
        return inner(g, d) / norm(g) / norm(d)

    def measured(d: Updates, scale: float = 1e-3) -> float:
        def loss(at: float) -> float:
            with torch.no_grad(), editing.edited(threatening, Delta(d), at / norm(d)):
                return sum(float(nll(threatening, b).total) for b in made.stream("retain"))

        return (loss(scale) - loss(-scale)) / (2 * scale)

    assert slope(retain, free) > 0.01 and slope(forget, free) > 0.01
    assert abs(slope(retain, held)) < SINGLE * slope(retain, free) + 1e-6 and slope(forget, held) > 0.005
    assert measured(free) == pytest.approx(slope(retain, free) * norm(retain), rel=0.02)
    assert abs(measured(held)) < 0.01 * measured(free)


def test_the_mixture_pushes_bad_down_and_pulls_good_up(problem: Problem) -> None:
    """Both effects have the right sign; with weight 0 only the good is pulled, and then bad falls less."""
    forget, retain = problem.gradient("forget"), problem.gradient("retain")
    mixed = first_update(Natural(forget_weight=1.0), problem)
    good = first_update(Natural(forget_weight=0.0), problem)
    assert inner(forget, mixed) > 0 > inner(retain, mixed)
    assert inner(retain, good) < 0
    assert inner(forget, mixed) / norm(mixed) > inner(forget, good) / norm(good)


def test_the_balance_foretells_what_unseen_text_will_suffer() -> None:
    """Retain gradients are a common part and one of each fact's own; with two halves of 32 facts the weight at which a
    thousand *other* facts break even is found to 15 % (by chance of draw). Without halves, what is learnt by heart
    would count as well: several times too much (control)."""
    generator = torch.Generator().manual_seed(0)
    common, bad = torch.zeros(400), torch.zeros(400)
    common[0], bad[0], bad[1] = 1.0, 0.5, 2.0

    def facts(n: int) -> Tensor:
        return (common + 0.5 * torch.randn(n, 400, generator=generator)).sum(0)

    one, other, unseen = facts(32), facts(32), facts(1000)
    products = Products()
    products.add([bad, one, other], [bad, one, other])  # F = 1
    seen = one + other
    true = float(unseen @ seen) / float(unseen @ bad) * float(bad.norm()) / float(seen.norm())
    assert products.break_even() == pytest.approx(true, rel=0.15)
    by_heart = float(seen.norm()) * float(bad.norm()) / float(seen @ bad)
    assert by_heart > 2 * true


def test_balanced_is_the_mixture_with_the_weight_that_was_found(threatening: Any) -> None:
    """Threats are to go, other threats to stay: at a fifth of the break-even threats that were not given gain, at five
    times it they lose (first order); the weight is on record; confined to all directions it is the same update."""
    others = corpus("attack").split(seen=1, unseen=1)
    made = problem_of(threatening, retain=others["seen"])
    unseen = problem_of(threatening, retain=others["unseen"]).gradient("retain")
    even = first_update(Natural(contrast="balanced", forget_weight=1.0), made)
    found = made.found["break_even"]
    assert made.found["forget_weight"] == found
    plain = first_update(Natural(forget_weight=found), made)
    assert alike(even, plain) < SINGLE
    assert alike(first_update(Natural(contrast="balanced", forget_weight=1.0, rank=128), made), plain) < SINGLE

    def gains(share: float) -> bool:
        return inner(unseen, first_update(Natural(contrast="balanced", forget_weight=share), made)) < 0

    assert gains(0.2) and not gains(5.0)


def test_a_balance_needs_two_halves_that_agree(threatening: Any) -> None:
    """One group cannot be halved; good text that pulls against itself weighs nothing."""
    one = Corpus("one", tuple({**r, "group": "same"} for r in corpus("forget", "good").rows), "test")
    with pytest.raises(InputError, match="single group: it cannot be halved"):
        first_update(Natural(contrast="balanced"), problem_of(threatening, retain=one))
    with pytest.raises(InputError, match="does nothing for the other"):
        Products(forget_down=1.0, forget_up=1.0, retain_up=1.0, across=-0.1).break_even()
    with pytest.raises(InputError, match="does the retain text no harm"):
        Products(forget_down=1.0, forget_up=-1.0, retain_up=1.0, across=0.1).break_even()


def test_natural_directions_are_certified(threatening: Any, meter: DisruptionMeter) -> None:
    """Oblique eigenvectors, orthonormal certificate: the confined natural edit lies in their span."""
    result = run_edit(problem_of(threatening), Natural(rank=4), meter, Budget(0.01))
    assert result.certificate.worst < CONTAINED and "natural, rank 4" in result.certificate.promise
    assert run_edit(problem_of(threatening), Natural(), meter, Budget(0.01)).certificate.promise == ""


# ------------------------------------------------------------------------------------ adversaries


def test_an_active_adapter_computes_what_its_delta_computes(tiny: Any) -> None:
    """W x + B A x at the hooks is (W + B A) x; a fresh adapter (B = 0) changes no bit; none is left behind."""
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    lora = Lora(models.sites(tiny, "all"), rank=3, alpha=6, seed=1)
    with torch.no_grad():
        before = tiny(ids)
        with lora.active(tiny):
            assert torch.equal(tiny(ids), before)
        for b in lora.b.values():
            b.copy_(0.1 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0)))
        with lora.active(tiny):
            active = tiny(ids)
        with editing.edited(tiny, lora.delta()):
            merged = tiny(ids)
        assert torch.equal(tiny(ids), before)
    assert float((active - before).abs().max()) > 0.1
    assert float((active - merged).abs().max()) < 1e-4 * float(merged.abs().max())


def test_low_rank_factors_are_the_best_ones(tiny: Any) -> None:
    """A delta of rank 3 is its rank-3 factors; at rank 1 exactly the largest singular value is kept."""
    lora = Lora(models.sites(tiny, "mlp.in", [0]), rank=3)
    for b in lora.b.values():
        b.data.normal_(generator=torch.Generator().manual_seed(0))
    delta = lora.delta()
    (update,) = delta.updates.values()
    for rank, lost in ((3, 0.0), (1, float(torch.linalg.svdvals(update)[1:].norm()))):
        ((b, a),) = low_rank(delta, rank).values()
        assert float((b @ a - update).norm()) == pytest.approx(lost, abs=1e-5)


def test_the_elicited_gradient_is_taken_under_an_adversary(threatening: Any) -> None:
    """A LoRA is trained first, then the gradient read at the base weights: another gradient, same weights, and at
    a vanishing learning rate the plain one."""
    made = problem_of(threatening)
    plain = made.gradient("forget")
    before = integrity.weights_hash(threatening)
    elicited = lora_gradient(made, rank=4, learning_rate=0.5, epochs=2)
    assert integrity.weights_hash(threatening) == before
    assert alike(elicited, plain) > 0.01
    assert alike(lora_gradient(made, rank=4, learning_rate=1e-12), plain) < SINGLE
    assert first_update(RepSelect(lora=True, rank=4), made).keys() == plain.keys()


def test_several_adversaries_each_count_the_same(threatening: Any) -> None:
    """The mean of gradients of length 1, that of the model as it is among them."""
    made = problem_of(threatening)
    before = integrity.weights_hash(threatening)
    parts = [made.gradient("forget"), *(Adversary.of(t).gradient(made) for t in ("lora@0.5", "full@1e-3"))]
    assert integrity.weights_hash(threatening) == before
    assert alike(parts[2], parts[0]) > 0.01 < alike(parts[1], parts[0])  # each is another gradient
    mean = elicited_gradient(made, [Adversary.of(t) for t in ("lora@0.5", "full@1e-3")])
    for name, update in mean.items():
        expected = sum(part[name] / norm(part) for part in parts) / 3
        assert torch.allclose(update, expected, atol=1e-6)
    assert alike(elicited_gradient(made, []), unit(parts[0])) < SINGLE


@pytest.fixture(scope="module")
def confining(threatening: Any) -> tuple[Any, Any]:
    """A problem with subspaces of both sides at two sites, and the same problem without."""
    sites = ["blocks.1.mlp.out", "blocks.2.mlp.gate"]
    free = problem_of(threatening, sites)
    spaces = fit_subspaces(
        threatening, free.forget, free.retain, free.sites, fitter="contrast", rank=5, sides="both", max_tokens=512
    )
    return problem_of(threatening, sites, subspaces=spaces), free


def test_within_subspaces_the_natural_edit_is_the_best_that_lies_there(confining: Any) -> None:
    """Most forget effect per nat of the K-FAC metric: more than the projection of the free edit (the control), which
    lies there too, and no more than the free edit itself."""
    held, free = confining
    method = Natural(contrast="none", damping=0.1)
    inside, outside = first_update(method, held), first_update(method, free)
    projected = {n: linalg.project(u, *held.subspaces.bases(n)) for n, u in outside.items()}

    def effect(update: Updates) -> float:
        """``<G, D> / |D|_F``; K-FAC's F from the factors of the free problem."""
        cost = 0.0
        for name, x, g in Metric(free, 0.1).factors():
            cost += float((g.T @ update[name] @ x).square().sum())
        return inner(free.gradient("forget"), update) / cost**0.5

    assert max(linalg.escape(u, *held.subspaces.bases(n)) for n, u in inside.items()) < CONTAINED
    assert effect(projected) * 1.01 < effect(inside) <= effect(outside) * (1 + SINGLE)


def test_a_subspace_that_is_everything_confines_nothing(threatening: Any) -> None:
    site = models.sites(threatening, ["blocks.1.mlp.out"])[0]
    whole = Subspaces({
        (site.name, side): Subspace.of(site, side, "all", torch.eye(site.width(side)), torch.ones(site.width(side)))
        for side in ("x", "g")
    })  # fmt: skip
    made = problem_of(threatening, [site.name], subspaces=whole)
    for method in (Natural(), Natural(rank=4, truncation="svd"), Natural(contrast="none")):
        free = first_update(method, problem_of(threatening, [site.name]))
        assert alike(first_update(method, made), free) < SINGLE


@pytest.mark.parametrize("name", ["natural", "gradient_ascent", "repselect", "whitened", "kfac", "confined"])
def test_a_given_subspace_is_kept_by_every_one_shot_method(threatening: Any, confining: Any, name: str) -> None:
    """By its certificate, which has something to say; the sites default to those that were located. The control:
    without subspaces the same method leaves them."""
    held, _ = confining
    given = {"forget": corpus("forget"), "retain": corpus("forget", "good"), "reference": corpus("text").take(40)}
    confined = edit(threatening, name, subspace=held.subspaces, disruption=corpus("disruption"), **given)
    assert confined.certificate.promise.startswith("4 located subspaces") and confined.certificate.worst < CONTAINED
    assert set(confined.delta.updates) == {s.name for s in held.sites}
    free = edit(threatening, name, sites=[s.name for s in held.sites], disruption=corpus("disruption"), **given)
    escape = [linalg.escape(u, *held.subspaces.bases(n)) for n, u in free.delta.updates.items()]
    assert max(escape) > 0.1


def test_what_cannot_be_confined_is_refused(threatening: Any, confining: Any) -> None:
    spaces = confining[0].subspaces
    given = {"forget": corpus("forget"), "retain": corpus("forget", "good"), "disruption": corpus("disruption")}
    with pytest.raises(InputError, match="'npo' takes steps.*valid: .*natural"):
        edit(threatening, "npo", subspace=spaces, **given)
    with pytest.raises(InputError, match="rank needs truncation 'svd'"):
        edit(threatening, "natural", rank=4, subspace=spaces, **given)
    with pytest.raises(InputError, match="no subspace was located at blocks.0"):
        edit(threatening, "natural", subspace=spaces, sites="mlp", **given)
    one = next(iter(spaces.values()))
    found = edit(threatening, "confined", subspace=one, **given)
    assert list(found.delta.updates) == [one.site.name]


def test_a_retain_loss_that_has_no_weight_is_refused() -> None:
    """Its kind would change nothing; with a weight it is one (control)."""
    assert method_of("dpo", {"alpha": 1.0, "retain": "kl"}).options()["retain"] == "kl"
    with pytest.raises(InputError, match="dpo: retain 'kl' would change nothing: with alpha 0 there is no loss"):
        method_of("dpo", {"retain": "kl"})


def test_subspaces_are_of_this_model(threatening: Any) -> None:
    """A path, or what was located in another model whose sites have the same names."""
    given = {"forget": corpus("forget"), "disruption": corpus("disruption").take(4)}
    with pytest.raises(InputError, match=r"subspace must be hooklearn.Subspaces .* got str 'spaces.safetensors'"):
        edit(threatening, "confined", subspace="spaces.safetensors", **given)  # type: ignore[arg-type]
    wide = Site(0, "mlp.out", 8, 8)
    other = Subspace.of(wide, "x", "all", torch.eye(8)[:, :2], torch.ones(2))
    for method in ("confined", "gradient_ascent", "natural"):
        with pytest.raises(InputError, match=r"goes from 8 to 8 wide, and here it goes from .* of another model"):
            edit(threatening, method, subspace=other, **given)


def test_a_method_is_a_name_or_an_object_and_options_go_with_the_name(threatening: Any) -> None:
    given = {"forget": corpus("forget"), "retain": corpus("forget", "good"), "disruption": corpus("disruption")}
    with pytest.raises(InputError, match="so rank would change nothing"):
        edit(threatening, RepSelect(rank=4), rank=8, **given)
    with pytest.raises(InputError, match="a class wants parentheses"):
        edit(threatening, RepSelect, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("confined", {"rank": 4}, "confined: rank 4 would change nothing: they say how to locate subspaces"),
        ("sspu", {"forget_rank": 4}, "sspu: forget_rank 4 would change nothing"),
        (
            "natural_rounds",
            {"forget_weight": 0, "on_policy": 2},
            "on_policy 2 would change nothing: with forget_weight",
        ),
        ("natural", {"truncation": "svd"}, "truncation 'svd' would change nothing: .* none is given"),
        ("natural", {"contrast": "fisher", "forget_weight": 0.5}, "forget_weight 0.5 would change nothing"),
        (
            "natural",
            {"forget_weight": 0, "adversaries": ["lora@0.01"]},
            r"natural: adversaries \(?.*lora@0.01.* would change nothing: with forget_weight 0",
        ),
        ("tar", {"resistance_weight": 0, "inner_steps": 4}, "tar: inner_steps 4 would change nothing: .*resistance_w"),
        ("natural", {"curvature": "ekfac", "site_batch": 2}, "site_batch 2 would change nothing"),
        ("repselect", {"lora_rank": 4}, "repselect: lora_rank 4 would change nothing: lora is off"),
        ("repselect", {"lora": True, "lora_lr": 0, "lora_rank": 4}, "lora_rank 4 would change nothing: with lora_lr 0"),
        ("repselect", {"rank": 0, "kind": "hard"}, "kind 'hard' would change nothing: with rank 0"),
        ("repselect", {"rank": 0, "components": "retain"}, "components 'retain' would change nothing: with rank 0"),
        ("repselect_multi", {"lora_lr": 0, "lora_rank": 4}, "lora_rank 4 would change nothing: with lora_lr 0"),
        ("cir", {"loss": "ascent", "positions": "all"}, "cir: positions 'all' would change nothing: .*scored tokens"),
        (
            "cir",
            {"retain_rate": 0, "hold": "reference"},
            "cir: hold 'reference' would change nothing: with retain_rate",
        ),
    ],
)
def test_options_that_change_nothing_are_refused(
    threatening: Any, confining: Any, method: str, options: dict[str, Any], message: str
) -> None:
    """Left at their defaults they are none (the other tests)."""
    given: dict[str, Any] = {"forget": corpus("forget"), "retain": corpus("forget", "good")}
    given |= {"subspace": confining[0].subspaces} if method != "natural" else {"reference": corpus("text").take(8)}
    with pytest.raises(InputError, match=message):
        edit(threatening, method, disruption=corpus("disruption").take(4), **given, **options)


@pytest.mark.parametrize(
    ("name", "idle", "without", "working"),
    [
        ("repselect", {"kind": "hard"}, {"rank": 0}, {"rank": 8}),
        ("repselect", {"sides": "x"}, {"rank": 0}, {"rank": 8}),
        ("repselect", {"components": "forget_and_retain"}, {"rank": 0}, {"rank": 8}),
        ("repselect", {"lora_rank": 3}, {"lora": True, "lora_lr": 0.0}, {"lora": True, "lora_lr": 0.5}),
        ("repselect_multi", {"lora_rank": 4}, {"lora_lr": 0.0}, {"lora_lr": 0.2}),
        ("cir", {"positions": "all"}, {"loss": "ascent"}, {"loss": "mlp_confuse"}),
        ("cir", {"positions": "predicting"}, {"loss": "ascent"}, {"loss": "mlp_confuse"}),
        ("cir", {"hold": "reference"}, {"retain_rate": 0.0}, {"retain_rate": 0.1}),
    ],
)
def test_what_is_refused_does_change_nothing(
    threatening: Any, monkeypatch: pytest.MonkeyPatch, name: str, idle: Any, without: Any, working: Any
) -> None:
    """Were it not refused, the first two points would be the same bit for bit; where it is allowed (control) they are
    others."""
    monkeypatch.setattr(Method, "refuse", lambda self, *names, why: None)

    def walked(options: Any) -> list[Updates]:
        method = method_of(name, OPTIONS[name] | options)
        return list(itertools.islice(method.path(problem_of(threatening, "mlp.out")), 2))

    for others, alone in ((without, True), (working, False)):
        plain, given = walked(others), walked(others | idle)
        same_bits = [torch.equal(a[n], b[n]) for a, b in zip(plain, given, strict=True) for n in a]
        assert all(same_bits) if alone else not any(same_bits)


def test_a_near_budget_wants_a_near_corpus(threatening: Any) -> None:
    """Or it would hold nothing; with one it is kept (control: the tests of the budget)."""
    given = {"forget": corpus("forget"), "disruption": corpus("disruption").take(4)}
    with pytest.raises(InputError, match="allows near CE 0.02, and there is no near corpus"):
        edit(threatening, "gradient_ascent", budget=Budget(0.01, near_ce=0.02), **given)


def test_a_path_without_a_step_is_told(threatening: Any) -> None:
    class Idle(GradientAscent):
        """Does nothing."""

        def path(self, problem: Problem) -> Any:  # noqa: ARG002
            return iter(())

    with pytest.raises(InputError, match="its path is empty"):
        edit(threatening, Idle(), forget=corpus("forget"), disruption=corpus("disruption"))


def unit(updates: Updates) -> Updates:
    return {name: update / norm(updates) for name, update in updates.items()}


@pytest.mark.parametrize(
    "options", [{}, {"rank": 4, "truncation": "svd"}, {"contrast": "balanced"}, {"contrast": "none"}]
)
def test_the_natural_edit_takes_its_bad_side_from_adversaries(threatening: Any, options: dict[str, Any]) -> None:
    """At a vanishing rate they are the model itself, and change nothing; at a real one they do."""
    made = problem_of(threatening)
    plain, idle, real = (
        unit(first_update(Natural(**options, adversaries=a), made)) for a in ((), ("full@1e-12",), ("full@1e-3",))
    )
    assert alike(idle, plain) < SINGLE < 0.01 < alike(real, plain)


@pytest.mark.parametrize("text", ["lora", "lora@", "lora@0", "sgd@0.1", "full@1e", "full@-1", "full@1.2.3", ""])
def test_what_is_no_adversary_is_told(text: str) -> None:
    with pytest.raises(InputError, match="valid: lora@RATE or full@RATE"):
        Natural(adversaries=(text,))


def test_walking_methods_follow_their_loss(threatening: Any) -> None:
    """Adam's first two steps lower the loss that they claim to lower."""
    for name, role in (("good_only", "retain"), ("graddiff", "forget")):
        made = problem_of(threatening)
        update = first_update(method_of(name, OPTIONS[name]), made)
        batch = made.stream(role)[0]
        with torch.no_grad():
            before = float(nll(threatening, batch).mean)
            with editing.edited(threatening, Delta(update)):
                after = float(nll(threatening, batch).mean)
        assert after < before if name == "good_only" else after > before, name
        assert made.tokens > 0


# ----------------------------------------------------------------------------------- wrong input


def test_forget_and_retain_must_differ(threatening: Any) -> None:
    """The same rows under another name: nothing could be told apart."""
    renamed = Corpus("other name", corpus("forget").rows)
    with pytest.raises(InputError, match="forget and retain are the same corpus"):
        problem_of(threatening, retain=renamed)


@pytest.mark.parametrize("measured", ["disruption", "near"])
@pytest.mark.parametrize("role", ["forget", "retain", "reference"])
def test_text_that_is_trained_on_may_not_measure_disruption(threatening: Any, role: str, measured: str) -> None:
    """A single shared row is enough; separate corpora pass (everywhere else in this file)."""
    rows = {"disruption": corpus("disruption").rows, "near": corpus("near", "good").rows}
    shared = {"forget": corpus("forget"), "retain": corpus("forget", "good"), "reference": corpus("text")}[role]
    rows[measured] = (*rows[measured][:10], shared.rows[7])
    meter = DisruptionMeter(threatening, Corpus("far", rows["disruption"]), Corpus("near", rows["near"]))
    with pytest.raises(InputError, match=rf"1 rows of the .* disruption corpus .* are also in {role}"):
        run_edit(problem_of(threatening), GradientAscent(), meter, Budget(0.01))


@pytest.mark.parametrize("name", ["confined", "good_only", "graddiff", "natural"])
def test_methods_ask_for_the_corpora_they_need(threatening: Any, meter: DisruptionMeter, name: str) -> None:
    """No retain corpus: a line that says so, not a wrong edit."""
    with pytest.raises(InputError, match="'retain' corpus, and none was given"):
        run_edit(problem_of(threatening, retain=None), method_of(name), meter, Budget(0.01))


NEEDY: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("npo", {"alpha": 0.0}), ("undial", {"alpha": 1.0}), ("repselect", {"components": "contrast"}),
    ("natural", {"contrast": "none"}), ("natural", {"contrast": "project"}), ("rmu", {"hold": "reference"}),
    ("cir", {"hold": "reference"}), ("cir", {"retain_rate": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), NEEDY, ids=[f"{name} {options or ''}" for name, options in NEEDY])
def test_a_method_needs_the_corpora_that_it_says(threatening: Any, name: str, options: dict[str, Any]) -> None:
    """With these alone it makes its first update (the control), with one of them taken away it cannot."""
    method = method_of(name, OPTIONS.get(name, {}) | options)
    every = {"forget": corpus("forget").take(8), "retain": corpus("forget", "good").take(8)}
    every["reference"] = corpus("text").take(8)
    kept = [needed.split(" or ")[0] for needed in method.needs]

    def first(*roles: str) -> Updates:
        given = {role: text if role in ("forget", *roles) else None for role, text in every.items()}
        return first_update(method, problem_of(threatening, "mlp.out", **given))

    assert first(*kept)
    for role in kept:
        with pytest.raises(InputError, match=rf"'{role}'.* corpus"):
            first(*(other for other in kept if other != role))


def test_an_update_that_is_not_finite_is_caught(threatening: Any, meter: DisruptionMeter) -> None:
    """NaN names the method and the site, and the model is as it was."""
    made = problem_of(threatening)
    made.gradient("forget")["blocks.2.mlp.in"][0, 0] = math.nan
    before = integrity.weights_hash(threatening)
    with pytest.raises(NumericalError, match="gradient_ascent: update of blocks.2.mlp.in is not finite"):
        run_edit(made, GradientAscent(), meter, Budget(0.01))
    assert integrity.weights_hash(threatening) == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("natrual", {}, "unknown method 'natrual'; valid: gradient_ascent, .*did you mean 'natural'"),
        ("natural", {"forget_wieght": 1}, "no option 'forget_wieght'; .*did you mean 'forget_weight'"),
        ("gradient_ascent", {"rank": 1}, "no option 'rank'; valid: none"),
        ("natural", {"forget_weight": -1}, "forget_weight must be 0 or more"),
        ("natural", {"rank": 0}, "rank must be 1 or more, got 0"),
        ("natural", {"contrast": "mixed"}, "contrast"),
        ("repselect", {"kind": "softer"}, "kind"),
        ("good_only", {"learning_rate": 0}, "must be positive"),
    ],
)
def test_unknown_methods_and_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    """With the nearest valid one; the defaults of every method are valid (positive control)."""
    assert all(method_of(m).options() is not None for m in METHODS)
    with pytest.raises(InputError, match=message):
        method_of(name, options)


def test_every_method_says_what_it_is() -> None:
    """One line and a source each, for ``hooklearn list methods`` and the report."""
    for name, cls in METHODS.items():
        assert cls.name == name and cls.source and cls.summary().endswith((".", ":")), name


# ------------------------------------------------------------------------------------- site batches


@pytest.mark.parametrize("name", ["natural", "kfac", "sspu"])
@pytest.mark.parametrize("sites", [1, 4])
def test_fewer_sites_at_a_time_are_the_same_edit(threatening: Any, problem: Problem, name: str, sites: int) -> None:
    """Labels are drawn alike in every pass, so the curvature is the same bit for bit, and so is the update."""
    method = method_of(name, OPTIONS.get(name, {}))
    whole = first_update(method, problem)
    parts = problem_of(threatening)
    parts.site_batch = sites
    tokens = parts.tokens
    found = first_update(method, parts)
    assert found.keys() == whole.keys() and all(torch.equal(u, whole[n]) for n, u in found.items())
    assert "retain_moments" not in parts.__dict__ and parts.tokens > tokens


def test_a_problem_that_keeps_nothing_makes_the_same_natural_edit(threatening: Any, problem: Problem) -> None:
    """It takes its gradients apart on the way; asked again it computes them again."""
    once = problem_of(threatening)
    once.keep = False
    for _ in range(2):
        found = first_update(Natural(), once)
        assert all(torch.equal(u, first_update(Natural(), problem)[n]) for n, u in found.items())


def test_a_site_batch_of_nothing_is_refused(threatening: Any) -> None:
    with pytest.raises(InputError, match="site_batch"):
        Problem(threatening, models.sites(threatening, "mlp"), corpus("forget"), site_batch=0)


def test_components_of_a_lower_rank_are_the_first_of_a_higher_one(threatening: Any) -> None:
    """A kept problem asks once for the highest rank; alone each rank gives the same update up to rounding."""
    kept, alone = problem_of(threatening), problem_of(threatening)
    alone.keep = False
    for rank in (16, 8, 2):
        assert alike(first_update(RepSelect(rank=rank), kept), first_update(RepSelect(rank=rank), alone)) < SINGLE


def test_a_rank_that_was_clamped_is_told(threatening: Any) -> None:
    """The gradient of a tiny model has no 1000 components; 4 it has (control)."""
    made = problem_of(threatening)
    first_update(RepSelect(rank=4), made)
    assert made.found["lowest_rank"] == 4
    first_update(RepSelect(rank=1000), made)
    assert 4 < made.found["lowest_rank"] < 1000


def test_rounds_take_gradients_anew_and_pull_the_good_up(threatening: Any) -> None:
    """The first is the natural gradient; the second is that of the model after the first, bad down and good up, by
    hand, and not the first again (control). After n of them a few texts are about n^2 steps away."""
    made, method = problem_of(threatening, "mlp.out"), method_of("natural_rounds", {"rounds": 2})
    first, second = method.path(made)
    one = first_update(Natural(forget_weight=0.3), problem_of(threatening, "mlp.out"))
    assert alike(unit(first), unit(one)) < SINGLE
    with editing.edited(threatening, Delta(first)):
        forget, retain = made.fresh_gradient("forget"), made.fresh_gradient("retain")
    down, up = Metric(made, method.damping).solve(forget, retain)
    expected = combine(down, up, 0.3 / math.sqrt(inner(forget, down)), -1 / math.sqrt(inner(retain, up)))
    step = combine(second, first, 1.0, -1.0)
    assert alike(unit(step), unit(expected)) < SINGLE < 0.1 < alike(unit(step), unit(first))
    meter = DisruptionMeter(threatening, corpus("text").take(4), rough=0)
    for n, there in enumerate((first, second), 1):
        with editing.edited(threatening, Delta(there)):
            assert 0.69 < meter.measure().kl.value / (n**2 * method.step_kl) < 1.01


def test_every_reading_of_disruption_is_paid_for(threatening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a round's length by the method, those of the budget by the edit, the few texts of a first guess too."""
    seen: list[int] = []
    made, measure = problem_of(threatening, "mlp.out"), DisruptionMeter.measure

    def measured(meter: DisruptionMeter, **options: Any) -> Any:
        seen.append(made.tokens)
        return measure(meter, **options)

    with monkeypatch.context() as patched:
        patched.setattr(DisruptionMeter, "measure", measured)
        list(method_of("natural_rounds", {"rounds": 2}).path(made))
    few = DisruptionMeter(threatening, corpus("text").take(4), rough=0)
    paid = [after - before for before, after in itertools.pairwise(seen)]
    assert paid.count(few.tokens) == len(paid) - 1 > 0, "but for the second round's gradients"
    meter = DisruptionMeter(threatening, corpus("text").take(12), corpus("near").take(8), rough=4)
    assert meter.rough is not None and meter.tokens_read == 0
    meter.measure()
    meter.measure(near=False)
    far = DisruptionMeter(threatening, corpus("text").take(12), rough=0).tokens
    assert meter.tokens_read == meter.tokens + far and far < meter.tokens
    meter.rough.measure()
    assert meter.tokens_read == meter.tokens + far + meter.rough.tokens


def test_a_round_is_cut_to_a_rank_as_one_shot_is(threatening: Any) -> None:
    """The first to natural's truncated SVD; every step has that rank, and without it more (control)."""
    made, cut = problem_of(threatening, "mlp.out"), method_of("natural_rounds", {"rounds": 2, "rank": 2})
    first, second = cut.path(made)
    one = Natural(forget_weight=0.3, rank=2, truncation="svd")
    assert alike(unit(first), unit(first_update(one, problem_of(threatening, "mlp.out")))) < SINGLE
    for step in (first, combine(second, first, 1.0, -1.0)):
        assert {int(torch.linalg.matrix_rank(update, rtol=1e-3)) for update in step.values()} == {2}
    whole = next(method_of("natural_rounds").path(made))
    assert min(int(torch.linalg.matrix_rank(update, rtol=1e-3)) for update in whole.values()) > 2
    with pytest.raises(InputError, match="natural_rounds: rank must be 1 or more, got 0"):
        method_of("natural_rounds", {"rank": 0})


def test_the_mixture_by_hand(threatening: Any) -> None:
    """Each side in units of its own length in the metric: a square root, and not the square."""
    made = problem_of(threatening, "mlp.out")
    forget, retain = made.gradient("forget"), made.gradient("retain")
    down, up = Metric(made, 0.01).solve(forget, retain)
    expected = combine(forget, retain, 0.5 / math.sqrt(inner(forget, down)), -1 / math.sqrt(inner(retain, up)))
    assert alike(fisher(made, first_update(Natural(forget_weight=0.5), made)), expected) < SINGLE


def test_sites_that_share_their_inputs_keep_their_own_subspaces(threatening: Any) -> None:
    """Gate and up projection read the same states, and were given different directions of them."""
    names, generator = ["blocks.1.mlp.gate", "blocks.1.mlp.in"], torch.Generator().manual_seed(0)
    spaces = Subspaces({
        (s.name, "x"): Subspace.of(s, "x", "some", torch.randn(s.d_in, 5, generator=generator), torch.ones(5))
        for s in models.sites(threatening, names)
    })  # fmt: skip
    both = first_update(Natural(contrast="none"), problem_of(threatening, names, subspaces=spaces))
    for name in names:
        alone = first_update(Natural(contrast="none"), problem_of(threatening, [name], subspaces=spaces))
        assert alike({name: both[name]}, alone) < SINGLE


@pytest.mark.parametrize("source", ["retain", "forget_and_retain", "contrast"])
def test_components_come_from_where_they_are_asked_to(threatening: Any, source: Any) -> None:
    """Those of forget would give another update (control)."""
    made = problem_of(threatening, "mlp.out")
    forget, retain = made.gradient("forget"), made.gradient("retain")
    both, clean = combine(forget, retain, 1.0, 1.0), contrast(forget, retain)
    start, basis = {
        "retain": (forget, retain), "forget_and_retain": (forget, both), "contrast": (clean, clean)
    }[source]  # fmt: skip
    update = first_update(RepSelect(rank=4, components=source), made)
    expected = {n: linalg.collapsed(start[n], linalg.top_components(basis[n], 4), "soft", "both") for n in forget}
    assert alike(update, expected) < SINGLE
    assert alike(update, first_update(RepSelect(rank=4), made)) > 0.1


def test_the_other_gradients_are_used(threatening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Confined's contrast gradient, RepSelect's under its adversary; and an adversary has brought the behaviour out
    when the gradient is taken."""
    made = problem_of(threatening, "mlp.out")
    forget, retain = made.gradient("forget"), made.gradient("retain")
    method = Confined(rank=4, contrast_gradient=True)
    update, spaces = first_update(method, made), method.promise(made)
    expected = {n: linalg.project(u, *spaces.bases(n)) for n, u in contrast(forget, retain).items()}
    assert alike(update, expected) < SINGLE
    under = lora_gradient(made, rank=8, learning_rate=0.5)
    found = first_update(RepSelect(lora=True, lora_lr=0.5, rank=0), made)
    assert alike(found, under) < SINGLE < 0.01 < alike(under, forget)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(nll(threatening, batch).total) for batch in made.stream("forget"))

    before, seen, whole = loss(), list[float](), Problem.fresh_gradient
    monkeypatch.setattr(Problem, "fresh_gradient", lambda self, role: (seen.append(loss()), whole(self, role))[1])
    for text in ("lora@0.5", "full@1e-3"):
        Adversary.of(text).gradient(made)
    assert max(seen) < before
