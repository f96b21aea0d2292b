"""The plain baselines: gradient ascent, GradDiff, and the ordinary answer (train on the good completions)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from hooklearn.edit.descent import BatchLoss, BesideRetain, Descent
from hooklearn.edit.method import Method, Problem, Updates
from hooklearn.train import Objective, nll


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Method):
    """One step up the forget loss: exactly REINFORCE with reward -1 on the given completions."""

    name: ClassVar[str] = "gradient_ascent"
    source: ClassVar[str] = "Jang et al. 2022, arXiv 2210.01504; Williams 1992 for the REINFORCE view"

    @property
    def sharded(self) -> bool:
        return True

    def path(self, problem: Problem) -> Iterator[Updates]:
        yield problem.gradient("forget")


@dataclass(frozen=True, kw_only=True)
class GradDiff(BesideRetain):
    """Gradient difference: forget loss up, retain loss down, by Adam."""

    name: ClassVar[str] = "graddiff"
    source: ClassVar[str] = "Liu, Liu & Stone 2022, arXiv 2203.12817; open-unlearning's form"

    def forget_loss(self, problem: Problem) -> BatchLoss:
        del problem
        return lambda model, batch: -nll(model, batch).mean


@dataclass(frozen=True, kw_only=True)
class GoodOnly(Descent):
    """The ordinary answer: Adam on the good completions alone, stopped at the same budget."""

    name: ClassVar[str] = "good_only"
    source: ClassVar[str] = "supervised fine-tuning"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",)

    def objective(self, problem: Problem) -> tuple[str, Objective]:
        del problem
        return "retain", nll
