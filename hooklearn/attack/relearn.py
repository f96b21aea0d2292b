"""Attacks by full fine-tuning: on the behaviour itself, on independent facts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hooklearn import models
from hooklearn.attack.adapter import MaybeAdapted
from hooklearn.attack.curve import Arena
from hooklearn.attack.effort import Effort
from hooklearn.attack.tuning import Plan, Tuning, demonstrations
from hooklearn.attack.watcher import Pending
from hooklearn.corpora.corpus import group_of
from hooklearn.corpora.permuted import permuted
from hooklearn.data import Corpus
from hooklearn.measure import Likelihoods
from hooklearn.types import ArmCurve, Curve, InputError


@dataclass(frozen=True, kw_only=True)
class Relearn(Tuning):
    """Full fine-tuning on demonstrations of the behaviour, over a sweep of learning rates."""

    name: ClassVar[str] = "relearn"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026; Qi et al. 2024, arXiv 2412.07097 for the sweep"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = False
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    epochs: int = 8
    """The cap; the curve usually gets flat before."""
    max_steps: int | None = None
    """A second cap, in steps; None: the epochs alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(epochs=self.epochs, max_steps=1 if self.max_steps is None else self.max_steps)
        if self.max_steps is not None:
            self.samples_within(self.max_steps)

    def plan(self, arena: Arena) -> Plan:
        return demonstrations(arena, self.epochs, self.max_steps)


@dataclass(frozen=True, kw_only=True)
class LowMutualInformation(Relearn, MaybeAdapted):
    """Relearning on facts T that say nothing about the held-out facts V: what comes back was never gone."""

    name: ClassVar[str] = "low_mi"
    source: ClassVar[str] = "Deeb & Roger 2024, arXiv 2410.08827 (retraining on T)"
    cheap: ClassVar[bool] = True
    folds: int = 1
    """Leave-one-out over so many parts of the held-out facts (the paper: 5): each is tested under an attacker who was
    told all of attack_train but what is about its facts, by their groups. Permuted answers, the control, are then those
    of facts of the same part, which wants some five facts of a relation in each. So many times the training, and nobody
    stops early. 1: attack_train is T as it is, and holds nothing of V."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(folds=self.folds)

    def label(self) -> str:
        return " ".join(filter(None, (f"folds={self.folds}" if self.folds > 1 else "", super().label())))

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:
        """Raises InputError where the two say by their groups that they are about the same facts; with several folds,
        where they do not say what they are about."""
        super().check(model, corpora)
        roles = ("attack_train", "heldout")
        named = [{g for r in corpora[role].rows if (g := group_of(r)) is not None} for role in roles]
        both = sorted(named[0] & named[1])
        if self.folds == 1 and both:
            raise InputError(
                f"attack {self.name!r} trains on facts that say nothing about the held-out ones, and {len(both)} "
                f"groups are in attack_train and in heldout ({both[0]!r:.40} is one); keep them apart, use relearn, or "
                "leave them out in turn (folds: 5)"
            )
        if self.folds > 1:
            silent = [role for role in roles if None in map(group_of, corpora[role].rows)]
            if silent or len(both) < self.folds:
                raise InputError(
                    f"attack {self.name!r}: {self.folds} folds leave the facts of attack_train out in turn, and "
                    + (f"{silent[0]} has rows without a group" if silent else f"{len(both)} groups are in both corpora")
                    + "; name the facts (group) in both, or take folds: 1"
                )

    def check_surrogate(self, heldout: Corpus, seed: int) -> None:
        """Raises InputError where a fold has too few facts of a relation for their answers to be permuted within it."""
        if self.folds > 1:
            _untold(heldout, _folds(heldout, self.folds, seed))

    def one_by_one(self, arena: Arena) -> Iterator[Curve]:
        if self.folds == 1:
            yield from super().one_by_one(arena)
            return
        self.check_batches(arena)
        folds = _folds(arena.watcher.heldout.corpus, self.folds, arena.seed)
        arena = _among_untold(arena, folds)
        arenas = [_arena_of(arena, fold) for fold in folds]
        plans = [self.plan(one) for one in arenas]
        steps = min(plan.steps for plan in plans)
        rates = self.rates(arena, plans[0].stream)
        for lr in rates:
            if self.setting(lr) in arena.finished:
                continue
            curves, before = [], len(arena.watcher.pending)
            for fold, one, plan in zip(folds, arenas, plans, strict=True):
                waiting = len(arena.watcher.pending)
                whole = replace(plan, steps=steps, min_steps=steps)
                curves.append(self.curve(one, whole, lr, sampled=lr == max(rates)))
                for pending in arena.watcher.pending[waiting:]:
                    pending.permuted = untold.corpus if (untold := arena.watcher.permuted) else None
                    pending.samples = [s for s in pending.samples if fold.tests(pending.split, s.item)]
            _drop_halves(arena.watcher.pending, before, len(folds))
            yield _joined(curves, folds)

    def last(self, arena: Arena) -> int:
        """Of the fold that ends first, as they all do then."""
        if self.folds == 1:
            return super().last(arena)
        folds = _folds(arena.watcher.heldout.corpus, self.folds, arena.seed)
        return min(self.plan(_arena_of(arena, fold)).steps for fold in folds)

    def effort(self, arena: Arena, steps: int) -> Effort:
        """Of all folds; the different rows are those of the one that has most."""
        if self.folds == 1:
            return super().effort(arena, steps)
        folds = _folds(arena.watcher.heldout.corpus, self.folds, arena.seed)
        each = super().effort  # a comprehension has no super of its own
        return sum((each(_arena_of(arena, fold), steps) for fold in folds), Effort())


@dataclass(frozen=True)
class _Fold:
    number: int
    groups: frozenset[str]
    items: frozenset[int]
    """Held-out items about these groups."""

    def tests(self, split: str, item: int) -> bool:
        """Whether this fold's attacker is the one for an item; what is out of distribution is the first one's."""
        return item in self.items if split == "heldout" else self.number == 0


def _folds(heldout: Corpus, count: int, seed: int) -> list[_Fold]:
    """Whole groups, about as many in each, of every relation."""
    relation = {str(row["group"]): str(row.get("relation", "")) for row in heldout.rows}
    groups = list(relation)
    random.Random(f"folds:{seed}").shuffle(groups)
    groups.sort(key=relation.__getitem__)
    parts = [frozenset(groups[i::count]) for i in range(count)]
    return [
        _Fold(n, part, frozenset(i for i, row in enumerate(heldout.rows) if str(row["group"]) in part))
        for n, part in enumerate(parts)
    ]


def _arena_of(arena: Arena, fold: _Fold) -> Arena:
    """Where its attacker is told nothing of its facts."""
    return replace(arena, attack_train=_without(arena.corpus("attack_train"), fold.groups))


def _among_untold(arena: Arena, folds: Sequence[_Fold]) -> Arena:
    """Where the permuted answers, the control, are of facts that the same attacker was told nothing of either."""
    if arena.watcher.permuted is None:
        return arena
    surrogate = Likelihoods.of(
        _untold(arena.watcher.heldout.corpus, folds), models.tokenizer_of(arena.arms[0].model), "heldout"
    )
    return replace(arena, watcher=replace(arena.watcher, permuted=surrogate))


def _untold(heldout: Corpus, folds: Sequence[_Fold]) -> Corpus:
    return permuted(heldout, [fold.items for fold in folds])


def _without(corpus: Corpus, groups: Collection[str]) -> Corpus:
    rows = tuple(row for row in corpus.rows if str(row["group"]) not in groups)
    return replace(corpus, rows=rows)


def _drop_halves(pending: list[Pending], start: int, folds: int) -> None:
    """Without the samples of looks that a fold, as it diverged, did not come to: they would be of other items."""
    made = Counter((p.arm, p.step, p.split) for p in pending[start:])
    pending[start:] = [p for p in pending[start:] if made[p.arm, p.step, p.split] == folds]


def _joined(curves: Sequence[Curve], folds: Sequence[_Fold]) -> Curve:
    """Every item's values under the attacker who was told nothing of it."""
    arms = {name: _joined_arm([curve.arms[name] for curve in curves], folds) for name in curves[0].arms}
    return replace(curves[0], arms=arms)


def _joined_arm(arms: Sequence[ArmCurve], folds: Sequence[_Fold]) -> ArmCurve:
    looks = [{(p.step, p.metric, p.split): p for p in arm.points} for arm in arms]
    points = []
    for key, first in looks[0].items():
        if not all(key in look for look in looks):
            continue
        values, tokens = list(first.values), sum(look[key].tokens for look in looks)
        for look, fold in zip(looks, folds, strict=True):
            for item in range(len(values)):
                if fold.tests(first.split, item):
                    values[item] = look[key].values[item]
        points.append(replace(first, tokens=tokens, values=tuple(values)))
    notes = dict.fromkeys(arm.note for arm in arms if arm.note)
    return ArmCurve(
        tuple(points), converged=all(a.converged for a in arms), diverged=any(a.diverged for a in arms),
        note="; ".join(notes),
    )  # fmt: skip
