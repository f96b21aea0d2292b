"""The eyes of an attack: what the model in front of them does, in likelihoods now and in samples for the referee."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hooklearn.data import Corpus
from hooklearn.forward import Precision
from hooklearn.measure import TEMPERATURE, Likelihoods, Sample, sample
from hooklearn.referees import Referee
from hooklearn.types import CurvePoint


@dataclass
class Pending:
    """Samples that wait for the referee, which may need the very weights that are under attack now."""

    arm: str
    attack: str
    setting: str
    step: int
    seed: int
    split: str
    corpus: Corpus
    samples: list[Sample]
    permuted: Corpus | None = None
    """With answers permuted, where not as the watcher has them."""


@dataclass
class Watcher:
    """Measures the behaviour of whatever state the model is in."""

    heldout: Likelihoods
    ood: Likelihoods | None = None
    permuted: Likelihoods | None = None
    """The same items with answers permuted: the surrogate for a never-learned arm (facts)."""
    referee: Referee | None = None
    n_samples: int = 32
    n_ood: int = 0
    """Samples to out-of-distribution prompts, beside the held-out ones."""
    new_tokens: int = 36
    temperature: float = TEMPERATURE
    greedy_too: bool = False
    precision: Precision = "auto"
    judged: Corpus | None = None
    """What the referee reads before a sample, where that is not what was asked."""
    pending: list[Pending] = field(default_factory=list)
    known: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What held-out items measured of unedited arms before any look: the referee read the same."""
    start: dict[str, list[CurvePoint]] = field(default_factory=dict)
    """Step 0 of every arm: the same for all attacks, so it is measured once."""

    def at_start(self, model: Any, arm: str) -> list[CurvePoint]:
        if arm not in self.start:
            known = _points(0, 0, self.heldout.split, self.known[arm]) if arm in self.known else []
            self.start[arm] = known + self.likelihood(model, 0, 0, None if known else self.heldout, self.ood)
        return self.start[arm]

    def likelihood(
        self, model: Any, step: int, tokens: int, *splits: Likelihoods | None, preference: bool = True
    ) -> list[CurvePoint]:
        """Completion probability and preference; the latter is half the work and only needed at a curve's ends."""
        return [
            point
            for split in splits
            if split is not None
            for point in _points(
                step, tokens, split.split, split.measure(model, precision=self.precision, preference=preference)
            )
        ]

    def surrogate(self, model: Any, step: int, tokens: int) -> list[CurvePoint]:
        """What the permuted answers get at this step: the never arm of a knowledge run."""
        if self.permuted is None:
            return []
        measured = self.permuted.measure(model, precision=self.precision)
        points = [CurvePoint(step, tokens, "completion", "heldout", tuple(measured["completion"].tolist()))]
        if "preference" in measured:  # multiple choice: chance
            chance = tuple(1 / len(r["choices"]) for r in self.permuted.corpus.rows)
            points.append(CurvePoint(step, tokens, "preference", "heldout", chance))
        return points

    def sample(self, model: Any, arm: str, attack: str, setting: str, step: int, seed: int) -> None:
        if self.referee is None or self.n_samples == 0:
            return
        for split, n in ((self.heldout, self.n_samples), (self.ood, self.n_ood)):
            if split is None or n == 0:
                continue
            drawn = [
                s
                for temperature in (self.temperature, *([0.0] if self.greedy_too else []))
                for s in sample(
                    model, split.corpus, n=n, new_tokens=self.new_tokens, temperature=temperature, seed=seed,
                    precision=self.precision,
                )
            ]  # fmt: skip
            if drawn:
                read = (self.judged if split is self.heldout else None) or split.corpus
                self.pending.append(Pending(arm, attack, setting, step, seed, split.split, read, drawn))


def _points(step: int, tokens: int, split: str, measured: Mapping[str, Tensor]) -> list[CurvePoint]:
    return [CurvePoint(step, tokens, metric, split, tuple(v.tolist())) for metric, v in measured.items()]
