"""Running an attack on every arm and watching the behaviour come back, or not.

A curve never travels without its controls: the same attacker, on the same items, at the same steps, goes to the
edited model, the original and (where there is one) the model that never had the thing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hooklearn import callbacks, editing, models
from hooklearn.attack.effort import Effort
from hooklearn.attack.watcher import Watcher
from hooklearn.data import Corpus, TokenBatch
from hooklearn.deltas import Delta
from hooklearn.forward import Precision
from hooklearn.train import fit, log_spaced
from hooklearn.types import NAN, ArmCurve, Curve, CurvePoint, InputError, NumericalError
from hooklearn.validation import build

FLAT_SHARE = 0.05
"""A curve is flat when its last three looks differ by no more than this share of their largest value ..."""
FLAT = 0.002
"""... or by this much (probability), for curves near zero. Geometric-mean probabilities of free text are small: of
order .02, so that an absolute .02 would call everything flat."""


@dataclass(frozen=True)
class ArmState:
    """How to get one arm: a model and what to add to its weights."""

    name: str
    model: Any
    delta: Delta | None = None
    twin: str | None = None
    """Another arm that is the very same state: it is attacked once, and both have its curve."""

    @contextlib.contextmanager
    def entered(self, *, training: bool) -> Iterator[Any]:
        """The arm's model; whatever happens to it inside is undone on leaving."""
        with contextlib.ExitStack() as stack:
            if training:
                stack.enter_context(editing.restored(self.model))
                if self.delta is not None:
                    editing.merge(self.model, self.delta)
            elif self.delta is not None:
                stack.enter_context(editing.edited(self.model, self.delta))
            yield self.model


@dataclass(frozen=True)
class Measured:
    """Arms that met the same attackers before, to the last step: they need not be attacked again.

    Where many edits are tried on one model, these are its controls.
    """

    curves: Mapping[tuple[str, str], Mapping[str, ArmCurve]] = field(default_factory=dict)
    """(attack, setting) -> arm -> its curve."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Rows of ``samples.jsonl``."""


Onlooker = Callable[[str, str, str, int, Any], None]
"""(attack, setting, arm, step, model in that state), at every look of an attack by training. It changes nothing."""


@dataclass(frozen=True)
class Arena:
    """Everything that attacks share: the arms, the eyes, the attacker's data."""

    arms: Sequence[ArmState]
    watcher: Watcher
    attack_train: Corpus | None = None
    unrelated: Corpus | None = None
    retain: Corpus | None = None
    seed: int = 0
    precision: Precision = "auto"
    max_tokens: int = 1024
    progress: Callable[[str], None] = lambda _: None
    measured: Measured = Measured()
    twins: Mapping[str, str] = field(default_factory=dict)
    """Arms that are the same state as one of ``arms``, by name."""
    onlooker: Onlooker | None = None
    finished: Collection[str] = ()
    """Settings of the attack at hand whose curves are there already: ``one_by_one`` leaves them out."""

    def known(self, attack: str, setting: str) -> dict[str, ArmCurve]:
        """Arms whose curve under this attacker is known already."""
        return dict(self.measured.curves.get((attack, setting), {}))

    def corpus(self, role: str) -> Corpus:
        found = getattr(self, role)
        if found is None:
            raise InputError(f"this attack needs a {role!r} corpus, and none was given")
        return found


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A final dataclass per attack: its fields are its options, its docstring's first line what it is."""

    name: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[str]
    """The corpus that the attacker uses."""
    cheap: ClassVar[bool]
    """No demonstrations of the behaviour itself, or a handful, or independent facts only."""
    same_question: ClassVar[bool] = False
    """Of one look: it asks what was asked before, of other weights or states, and in no other way. What comes back is
    then a share of the gap before any attack and not of what the controls differ by in this look."""
    follows_edit: ClassVar[bool] = False
    """What it does to the controls depends on the edit, so that it cannot be done to them once for many edits."""
    sharded: ClassVar[bool] = False
    """Whether it works on weights that are spread over processes."""
    sampled_only: ClassVar[bool] = False
    """Whether samples are all that it measures."""

    @property
    def role(self) -> str:
        """The corpus that it uses with these options."""
        return self.needs

    @abstractmethod
    def curves(self, arena: Arena) -> list[Curve]:
        """One curve per setting (learning rate, say), each with all arms."""

    def one_by_one(self, arena: Arena) -> Iterator[Curve]:
        """The same curves, each as soon as it is there, so that it can be kept; without those that are finished."""
        yield from (curve for curve in self.curves(arena) if curve.setting not in arena.finished)

    @abstractmethod
    def settings(self) -> list[str]: ...

    def reachable(self) -> list[str]:
        """Its settings, and those that it may come to on its way."""
        return self.settings()

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:  # noqa: B027 (most can always be made)
        """Asked before anything is measured. Raises InputError where it cannot be made on this model, or with these
        corpora (by role)."""

    def check_batches(self, arena: Arena) -> None:  # noqa: B027 (most have nothing to ask)
        """Asked before the edit. Raises InputError for what only the attacker's batches tell."""

    def effort(self, arena: Arena, steps: int) -> Effort | None:  # noqa: ARG002 (most have no data)
        """What it spends on one arm at one setting, beside looks and samples (unless samples are what it is), where its
        curve ends after ``steps``; None of an attack by training that does not say."""
        return None if steps else Effort()

    @classmethod
    def summary(cls) -> str:
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def with_options(cls, options: Mapping[str, Any]) -> Attack:
        valid = [f.name for f in dataclasses.fields(cls)]
        for key in options:
            if key not in valid:
                near = difflib.get_close_matches(key, valid, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(f"attack {cls.name!r} has no option {key!r}; valid: {', '.join(valid)}{hint}")
        return build(cls, options, f"attack {cls.name!r}")


GROWS = 1.5
"""... but not while it grows by this factor from look to look: what comes back begins small, and by doubling."""


def is_flat(values: Sequence[float]) -> bool:
    """There are four looks or more, the last three agree, and they are not the beginning of something."""
    if len(values) < 4:
        return False
    last = values[-3:]
    grows = all(later > GROWS * earlier for earlier, later in itertools.pairwise(last))
    return max(last) - min(last) <= max(FLAT, FLAT_SHARE * max(last)) and not grows


Stream = Callable[[], Iterable[TokenBatch]]
Trained = Callable[[Any], AbstractContextManager[Sequence[Tensor]]]
"""A model -> a block in which these parameters are trained. What else the model wore in it (an adapter) is merged into
its weights on leaving, so that samples, which no hook reaches, are drawn in the attacked state."""


@contextlib.contextmanager
def all_weights(model: Any) -> Iterator[Sequence[Tensor]]:
    """Full fine-tuning."""
    params = models.all_parameters(model)
    for p in params:
        p.requires_grad_(True)
    yield params


@contextlib.contextmanager
def all_but_embeddings(model: Any) -> Iterator[Sequence[Tensor]]:
    """Full fine-tuning of everything between the embedding and the unembedding."""
    kept = {id(p) for p in models.embedding_parameters(model)}
    params = [p for p in models.all_parameters(model) if id(p) not in kept]
    with models.trainable(model, params):
        yield params


def rule_of(params: Sequence[Tensor], learning_rate: float, optimizer: str) -> torch.optim.Optimizer:
    """``adam`` or ``sgd``, without momentum."""
    if optimizer == "adam":
        return torch.optim.Adam(params, lr=learning_rate, fused=True)
    return torch.optim.SGD(params, lr=learning_rate)


def looks(last: int, first_look: int) -> set[int]:
    """The steps after which a curve of ``last`` steps is looked at; step 0 is before the first of them.

    Examples:
        >>> sorted(looks(16, first_look=4))
        [0, 4, 8, 16]
    """
    first = min(first_look, last)
    return {0, first, *(step for step in log_spaced(last) if step >= first)}


def training_curve(
    arena: Arena,
    *,
    attack: str,
    setting: str,
    cheap: bool,
    stream: Stream,
    learning_rate: float,
    steps: int,
    min_steps: int,
    optimizer: str = "adam",
    sampled: bool = True,
    trained: Trained = all_weights,
    also_at: Collection[int] = (),
    first_look: int = 2,
    sampled_at: Collection[int] = (),
) -> Curve:
    """Fine-tuning of every arm on the same batches, looked at on a log scale of steps from ``first_look`` on, and
    ``also_at``.

    ``sampled``: at the end also draw samples and look at OOD items (dear on a CPU, so attacks ask for them at their
    strongest setting); samples then after the steps ``sampled_at`` as well.

    The edited arm runs until its curve is flat (but at least ``min_steps``) or the cap; the controls run exactly as
    long, so that all arms are compared at the same steps. Where controls have been measured before (to the cap), so
    does everything else.
    """
    done = arena.known(attack, setting)
    to_the_cap = bool(done)
    order = sorted((a for a in arena.arms if a.name not in done), key=lambda a: a.name != "edited")
    last = steps
    for arm in order:
        arena.progress(f"{attack} {setting}: {arm.name}")
        may_stop = arm.name == "edited" and not to_the_cap
        curve, surrogate, reached = _attack_arm(
            arena, arm, attack, setting, stream, learning_rate, last, min_steps, may_stop, optimizer, sampled,
            trained, looks(last, first_look) | set(also_at), sampled_at if sampled else (),
        )  # fmt: skip
        done[arm.name] = curve
        if surrogate is not None:
            done["never"] = surrogate
        if may_stop:
            last = reached
    return Curve(attack, setting, cheap, arena.seed, done)


def _lost(before: Sequence[CurvePoint], now: CurvePoint) -> bool:
    """Whether items have become NaN since the first look; one that was from the beginning is no sign of anything."""
    first = next((p for p in before if (p.split, p.metric) == (now.split, now.metric)), now)
    return any(math.isnan(v) and not math.isnan(start) for start, v in zip(first.values, now.values, strict=True))


def _attack_arm(
    arena: Arena,
    arm: ArmState,
    attack: str,
    setting: str,
    stream: Stream,
    learning_rate: float,
    steps: int,
    min_steps: int,
    may_stop: bool,
    optimizer: str,
    sampled: bool,
    trained: Trained,
    looks: Collection[int],
    sampled_at: Collection[int],
) -> tuple[ArmCurve, ArmCurve | None, int]:
    points: list[CurvePoint] = []
    surrogate: list[CurvePoint] = []
    seen: list[float] = []
    watcher = arena.watcher

    def observe(step: int, tokens: int) -> str | None:
        if step not in looks and step not in sampled_at:
            return None
        if step == 0:
            now = watcher.at_start(arm.model, arm.name)
        else:
            now = watcher.likelihood(arm.model, step, tokens, watcher.heldout, preference=step == steps)
        heldout = next(p for p in now if p.split == "heldout" and p.metric == "completion")
        if _lost(points, heldout):  # the last step has no loss after it that would say so
            raise NumericalError(f"held-out items read as nan after step {step}; lower the learning rate")
        points.extend(now)
        callbacks.evaluated(step, {p.metric: p.score.value for p in now if p.split == "heldout"}, model=arm.model)
        if arena.onlooker is not None:
            arena.onlooker(attack, setting, arm.name, step, arm.model)
        if arm.name == "original":
            surrogate.extend(watcher.surrogate(arm.model, step, tokens))
        if step in looks:  # what else is asked for must not decide when an attack ends: near looks are alike
            seen.append(heldout.score.value)
        flat = may_stop and step in looks and step >= min_steps and is_flat(seen)
        stop = "flat" if flat else "cap" if step >= steps else None
        if stop == "flat" and step < steps:
            points.extend(
                p for p in watcher.likelihood(arm.model, step, tokens, watcher.heldout) if p.metric != "completion"
            )
        if stop is not None:
            points.extend(watcher.likelihood(arm.model, step, tokens, watcher.ood if sampled else None))
        elif step in sampled_at:
            watcher.sample(arm.model, arm.name, attack, setting, step, arena.seed)
        return stop

    diverged, note, reached = False, "", steps
    with callbacks.scope(attack, setting, arm.name), arm.entered(training=True) as model:
        with trained(model) as params:
            rule = rule_of(params, learning_rate, optimizer)
            try:
                run = fit(
                    model,
                    stream(),
                    rule=rule,
                    observe=observe,
                    precision=arena.precision,
                    max_norm=1.0,
                    params=params,
                    split=True,
                )
                note, reached = run.stop, run.steps
            except NumericalError as error:
                diverged, note = True, str(error)
            del rule
        if diverged:  # on a GPU that comes to light a look late
            points[:], surrogate[:] = ([p for p in of if p.step < steps] for of in (points, surrogate))
            points += [
                dataclasses.replace(p, step=steps, values=(NAN,) * len(p.values))
                for p in points
                if p.step == points[0].step and p.split == "heldout"
            ]
        elif sampled:
            watcher.sample(model, arm.name, attack, setting, reached, arena.seed)
    flat = is_flat(seen) and not diverged
    curve = ArmCurve(tuple(points), converged=flat, diverged=diverged, note=note)
    twin = ArmCurve(tuple(surrogate), converged=flat) if surrogate else None
    return curve, twin, reached
