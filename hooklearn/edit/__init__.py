"""Edit: one interface for every method, one exact budget for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from hooklearn import callbacks, editing, integrity, linalg, memory, models, parallel
from hooklearn.callable_module import make_callable
from hooklearn.corpora.corpus import as_corpus
from hooklearn.data import Corpus, encode
from hooklearn.deltas import Delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit.ascent import GoodOnly, GradDiff, GradientAscent
from hooklearn.edit.budget import FIRST_POINT, LANDING, NOTHING, WHOLE_PATH, Landing, Walk, solve
from hooklearn.edit.cir import CIR
from hooklearn.edit.lowcurvature import KFAC, SSPU, Whitened
from hooklearn.edit.method import Method, Problem, Updates, check_finite, spaces_in
from hooklearn.edit.mudman import Mudman
from hooklearn.edit.natural import Natural
from hooklearn.edit.preference import DPO, NPO, Refusal, SimNPO, Undial
from hooklearn.edit.repselect import Confined, RepSelect
from hooklearn.edit.repselect_multi import RepSelectMulti
from hooklearn.edit.rounds import NaturalRounds
from hooklearn.edit.steering import RMU, CircuitBreakers
from hooklearn.edit.tar import Tar
from hooklearn.edit.task_vector import Oracle, TaskVector
from hooklearn.edit.undo import Undo
from hooklearn.forward import Precision
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.measure import mean_completion
from hooklearn.plugins import Shelf, named_class
from hooklearn.referees import Referee, as_referee
from hooklearn.types import Budget, Certificate, Cost, EditResult, InputError

METHODS: dict[str, type[Method]] = {
    m.name: m
    for m in (
        GradientAscent,
        GradDiff,
        GoodOnly,
        NPO,
        SimNPO,
        Undial,
        DPO,
        Refusal,
        RMU,
        CircuitBreakers,
        CIR,
        RepSelect,
        RepSelectMulti,
        Whitened,
        Confined,
        SSPU,
        KFAC,
        Mudman,
        Tar,
        Undo,
        Natural,
        NaturalRounds,
        TaskVector,
        Oracle,
    )  # fmt: skip
}
EVERY_METHOD: Shelf[type[Method]] = Shelf("method", "hooklearn.methods", METHODS, named_class(Method))
"""These, and those of other packages."""

__all__ = [
    "EVERY_METHOD",
    "LANDING",
    "METHODS",
    "Method",
    "Problem",
    "check_separate",
    "edit",
    "forget_scorer",
    "method_of",
    "run_edit",
]


def method_of(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method by name with its options.

    Raises:
        InputError: unknown name or option (with the nearest valid one).

    Examples:
        >>> method_of("repselect", {"rank": 16}).options()["rank"]
        16
    """
    return EVERY_METHOD.get(name).with_options(options or {})


def edit(
    model: Any,
    method: str | Method = "natural",
    *,
    forget: Corpus,
    retain: Corpus | None = None,
    disruption: Corpus,
    near: Corpus | None = None,
    reference: Corpus | None = None,
    subspace: Subspaces | Subspace | None = None,
    sites: str | Sequence[str] | None = None,
    layers: Iterable[int] | int | str | None = None,
    budget: float | Budget = 0.01,
    seed: int = 0,
    precision: Precision = "auto",
    site_batch: int | None = None,
    never: Any = None,
    referee: Referee | Callable[[str, str], float | bool] | None = None,
    **options: Any,
) -> EditResult:
    """Edit a model to exactly the budget. The model itself is left untouched: apply ``result.delta``.

    Args:
        method: a name from ``hooklearn list methods`` (with ``options``) or a :class:`Method`.
        forget: completions whose probability must fall.
        retain: good completions; ``disruption``: unrelated text on which far KL is measured; ``near``: held-out
            good neighbours; ``reference``: running text for the retain curvature.
        subspace: confine the update to located subspaces. ``confined`` projects the forget gradient, ``natural`` finds
            the update of most effect per nat that lies in them, the direction of any other one-shot method is
            projected; methods that take steps are refused. The certificate says how well it was kept.
        sites: which weights may move; default: those of ``subspace`` where it is given, or all of the MLP.
        budget: far KL in nats per token, or a :class:`Budget` with a near one or a level of forgetting.
        site_batch: hold the retain curvature of so many sites at a time (less memory, more passes, the same edit).
        never: a model that never learned it, for the method ``oracle``.
        referee: says which of the model's own answers are the behaviour, to a method that asks (``natural_rounds`` with
            ``on_policy``); a function of prompt and completion is one.
    Raises:
        InputError: unknown method or option; a ``never`` or a referee that the method does not ask; something is no
            model, no corpus, no budget, or no such site; somebody has hooked into the model; the method needs a corpus
            or a referee that is not given, or left weights changed; text that is trained on measures disruption too.

    Examples:
        >>> from hooklearn.data import load_corpus
        >>> forget = load_corpus(name="tiny", options={"part": "forget"})
        >>> prose = load_corpus(name="tiny", options={"part": "disruption"})
        >>> result = edit(models.load("tiny"), "gradient_ascent", forget=forget, disruption=prose, budget=0.01)
        >>> 0.95 <= result.disruption.used(result.budget) <= 1
        True
    """
    chosen, allowed = _chosen(method, options), _allowed(budget)
    if referee is not None and not chosen.refereed:
        raise InputError(f"referee would change nothing: method {chosen.name!r} with these options asks none")
    if never is not None and not chosen.needs_never:
        raise InputError(f"never would change nothing: method {chosen.name!r} does not look at it")
    given = {"forget": forget, "disruption": disruption, "retain": retain, "near": near, "reference": reference}
    for role, corpus in given.items():
        if corpus is not None or role in ("forget", "disruption"):
            as_corpus(corpus, role)
    models.check_unhooked(models.checked(model))
    models.check_differentiable()
    chosen.check(model)
    if chosen.trains:
        integrity.warn_of_short_weights(model, "a method that takes steps does less than it could")
    spaces = None if subspace is None else spaces_in(model, subspace)
    if sites is None:
        sites = "mlp" if spaces is None else [site.name for site in spaces.sites]
    problem = Problem(
        model, models.sites(model, sites, layers), forget, retain, reference,
        subspaces=spaces, seed=seed, precision=precision, keep=False, site_batch=site_batch,
        never=None if never is None else models.checked(never),
        referee=None if referee is None else as_referee(referee),
    )  # fmt: skip
    with editing.in_eval(model):
        return run_edit(problem, chosen, DisruptionMeter(model, disruption, near), allowed)


def _allowed(budget: Any) -> Budget:
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise InputError(
            f"budget must be far KL in nats per token (0.01, say) or a hooklearn.Budget, got {budget!r:.60}"
        )
    return Budget(budget)


def _chosen(method: str | Method, options: Mapping[str, Any]) -> Method:
    if isinstance(method, str):
        return method_of(method, options)
    if not isinstance(method, Method):  # its class, say
        raise InputError(f"method: give a name or a Method, {method!r:.80} is neither (a class wants parentheses)")
    if not hasattr(method, "name"):
        raise InputError(f"method: {type(method).__name__} has no name; give the class one: name = 'mine'")
    if options:
        raise InputError(f"method {method.name!r} is given as it is, so {', '.join(options)} would change nothing")
    return method


@torch.enable_grad()
def run_edit(
    problem: Problem,
    method: Method,
    meter: DisruptionMeter,
    budget: Budget,
    *,
    on_point: Callable[[str], None] | None = None,
) -> EditResult:
    """One method on one problem, to the budget; several methods may share problem and meter."""
    given = {"forget": problem.forget, "retain": problem.retain, "reference": problem.reference}
    check_separate({role: corpus for role, corpus in given.items() if corpus is not None}, meter.corpora)
    check_sharded(method, models.is_sharded(problem.model))
    _check_confinable(method, problem)
    if budget.near_ce is not None and not meter.has_near:
        raise InputError(
            f"the budget allows near CE {budget.near_ce:g}, and there is no near corpus to measure it on: give "
            "near= (good answers that are not trained on)"
        )
    started, tokens_before = time.perf_counter(), problem.tokens + meter.tokens_read
    problem.found.clear()
    model, evaluations = problem.model, 0
    base = integrity.weights_hash(model)
    items = TRACE_ITEMS if budget.forget is None else LEVEL_ITEMS
    forget_score = forget_scorer(model, problem.forget, items=items, precision=problem.precision)

    def told(text: str) -> None:
        if on_point is not None:
            on_point(f"{method.name}: {text}")

    def read() -> float:
        nonlocal evaluations
        evaluations += 1
        told(f"measuring disruption ({evaluations})")
        return forget_score()

    walk = Walk(
        model, meter, budget, read,
        lambda: problem.tokens + meter.tokens_read - tokens_before,
        passing=lambda step, share: told(f"point {step}, about {share:.0%} of the budget"),
    )  # fmt: skip
    walk.begin(forget_score())
    weights = [models.weight(model, s).detach() for s in problem.sites]
    reference_norm = sum(float(parallel.whole(w.double().square().sum())) for w in weights) ** 0.5
    paths = _Paths(method, problem, told)

    def on_direction() -> None:
        paths.now.close()  # with what the method still holds: its metric is as large as the edited weights
        if not problem.keep:
            problem.release()
        memory.give_back()

    with callbacks.scope("edit", method.name):
        landing = solve(
            walk, paths.now, ray=method.ray, reference_norm=reference_norm, on_direction=on_direction,
            refit=paths.refit,
        )  # fmt: skip
    if integrity.weights_hash(model) != base:
        raise InputError(
            f"method {method.name!r} changed the model's own weights and left them so: its path must put them "
            "back (`with hooklearn.editing.restored(model)`); load the model anew"
        )
    return EditResult(
        method=method.name,
        delta=Delta(landing.updates, model.cfg.model_name, base),
        trace=walk.trace,
        disruption=landing.disruption,
        budget=budget,
        cost=_cost(problem, started, walk.tokens()),
        stop=landing.stop,
        binding=landing.binding,
        certificate=certify(method, problem, landing),
        found=dict(problem.found),
    )


LEVEL_ITEMS, TRACE_ITEMS = 64, 12
"""Forget items that are read where a level is to be met, and where the score is for the trace only."""


def forget_scorer(
    model: Any, forget: Corpus, *, items: int = LEVEL_ITEMS, precision: Precision = "auto"
) -> Callable[[], float]:
    """Reads the forget score: the mean completion probability of the first forget items, as the model is now."""
    some = encode(forget.take(items), models.tokenizer_of(model))
    return lambda: mean_completion(model, some, precision=precision)


def _check_confinable(method: Method, problem: Problem) -> None:
    if problem.subspaces is None:
        return
    if not (method.ray or method.confines):
        rays = ", ".join(name for name, m in METHODS.items() if m.ray or m.confines)
        raise InputError(
            f"method {method.name!r} takes steps, and steps are not confined to given subspaces; valid: {rays}"
        )
    if models.is_sharded(problem.model):
        raise InputError("an edit of spread or offloaded weights is not confined to subspaces; leave one of them out")


REFITS = 3
"""How often the steps of a walk are made to fit."""


@dataclass
class _Paths:
    """A method's path, and the same anew with steps of another length where these do not fit the budget."""

    method: Method
    problem: Problem
    told: Callable[[str], None]
    tries: int = 0

    def __post_init__(self) -> None:
        self.now = _path(self.method, self.problem)

    def refit(self, share: float) -> Iterator[Updates] | None:
        """None of a method whose steps have no length to set. A path that is merely short of the budget is taken as it
        is, unless its steps were made finer before."""
        option, over = self.method.step_length, share > LANDING[1]
        settable = option in {f.name for f in fields(self.method)}
        if not settable or self.tries == REFITS or not (over or self.tries):
            return None
        self.now.close()
        self.tries += 1
        length: float = getattr(self.method, option)
        # at a given number of steps the disruption grows with the square of their length
        aim = FIRST_POINT if over else WHOLE_PATH
        fitting = length * max(1e-3, math.sqrt(aim / max(share, NOTHING)))
        where = "before the first look" if over else "in all"
        self.told(f"{option} {length:.3g} uses {share:.3g} times the budget {where}; again with {fitting:.3g}")
        self.problem.found[option] = fitting
        self.method = replace(self.method, **{option: fitting})
        self.now = _path(self.method, self.problem)
        return self.now


def _path(method: Method, problem: Problem) -> Generator[Updates]:
    """The method's own, checked; a direction that knows nothing of given subspaces is projected into them."""
    spaces = None if method.confines else problem.subspaces
    empty, path = True, method.path(problem)
    if not isinstance(path, Iterator):
        raise InputError(f"method {method.name!r}: its path must yield updates, and returns a {type(path).__name__}")
    for updates in path:
        empty = False
        if not isinstance(updates, Mapping):
            what = type(updates).__name__
            raise InputError(f"method {method.name!r}: its path must yield {{site name: update}}, and yields a {what}")
        if spaces is not None:
            updates = {name: linalg.project(update, *spaces.bases(name)) for name, update in updates.items()}
            if all(float(u.norm()) == 0 for u in updates.values()):
                raise InputError(f"{method.name}: nothing of its update lies in the given subspaces")
        yield check_finite(updates, method.name)
    if empty:
        raise InputError(f"method {method.name!r} gave no update at all: its path is empty")


def check_sharded(method: Method, sharded: bool) -> None:
    """Raises InputError for a method that takes whole matrices, on a model that nobody has whole."""
    if sharded and not method.sharded:
        raise InputError(
            f"method {method.name!r} with these options does not work on spread weights (model.shard, model.offload); "
            "valid: natural (curvature kfac, no rank or sketch_rank), gradient_ascent"
        )


def certify(method: Method, problem: Problem, landing: Landing) -> Certificate:
    """Containment of what was *applied*, in the subspaces that the method promised."""
    spaces = method.promise(problem) if method.confines or problem.subspaces is None else problem.subspaces
    if spaces is None:
        return Certificate("")
    escape = {name: linalg.escape(update, *spaces.bases(name)) for name, update in landing.updates.items()}
    some = next(iter(spaces.values()))
    return Certificate(f"{len(spaces)} located subspaces ({some.fitter}, rank {some.rank})", escape)


def check_separate(given: Mapping[str, Corpus], measured: Mapping[str, Corpus]) -> None:
    """Text that gave moments or gradients never measures disruption.

    Args:
        given: by role; those that a method is given are looked at.
        measured: what disruption is measured on, by name.
    Raises:
        InputError: a row is in both.
    """
    for role in ("forget", "retain", "reference"):
        for name, corpus in measured.items():
            if role in given and (shared := given[role].shared_with(corpus)):
                raise InputError(
                    f"{shared} rows of the {name} disruption corpus {corpus.name!r} are also in "
                    f"{role} ({given[role].name!r}); text that is trained on may not measure disruption"
                )


def _cost(problem: Problem, started: float, tokens: int) -> Cost:
    parameters = sum(p.numel() for p in models.all_parameters(problem.model))
    return Cost(time.perf_counter() - started, tokens, 4.0 * parameters * tokens, memory.peak_bytes())


make_callable(__name__)
