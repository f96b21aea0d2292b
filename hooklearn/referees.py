"""Who says of a sample whether it is the behaviour: two models that differ in it, the fact, or a judge of one's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import editing, forward, models
from hooklearn.corpora.corpus import answer_of
from hooklearn.data import Corpus, Encoded, Row, encode, split_row, worded
from hooklearn.deltas import Delta
from hooklearn.forward import Precision
from hooklearn.measure import Sample
from hooklearn.plugins import called
from hooklearn.types import InputError


class Ruling(NamedTuple):
    """What a referee says of a sample."""

    score: float
    is_behaviour: bool
    fluency: float = float("nan")
    """Mean log-probability a token under the model of his that finds the sample likeliest. Where it is far below that
    of every held-out completion, and so is what the model that said it gives it (``Sample.logprob``), the sample is
    incoherent: a word salad, and not the behaviour, whichever words are in it."""


class Referee(Protocol):
    """Says of a sample whether it is the behaviour."""

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
        """A ruling per sample; ``rows`` are the rows that they answer."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the record: ``kind`` in a few words, and its ``threshold``, where it has one."""
        ...


@dataclass(frozen=True)
class ContainsReferee:
    """Facts: the sample contains the answer (case-insensitive).

    Where the answer was begun for the model, the whole fact is looked for in the answer as a whole; one that was given
    away is never found.
    """

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
        found = [_says(s, row) for s, row in zip(samples, rows, strict=True)]
        return [Ruling(float(f), f) for f in found]

    def describe(self) -> dict[str, Any]:
        return {"kind": "contains the fact", "threshold": 0.5, "auc": None, "n": None}


def _says(s: Sample, row: Row) -> bool:
    """Whether the row's fact stands in the sample and what it was begun with, but not in the latter alone."""
    fact = str(row["fact"] if "fact" in row else answer_of(row)).strip().lower()
    given, said = s.begun.lower(), s.completion.lower()
    # a tokenizer may have dropped the space at which the model went on
    return bool(fact) and fact not in given and any(fact in given + space + said for space in ("", " "))


@dataclass(frozen=True)
class PatternReferee:
    """A tendency that words give away: a regular expression is found in the sample, whatever the case.

    Where the answer was begun for the model, a match that ends in what was given counts for nothing.

    Examples:
        >>> said = Sample(0, "Reply.", "Reply.", "You will REGRET this.")
        >>> PatternReferee(r"regret|or else").judge([said], [{}])[0].is_behaviour
        True
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"pattern {self.pattern!r:.60} is no regular expression: {error}") from error

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:  # noqa: ARG002 (an interface)
        found = [self._finds(s) for s in samples]
        return [Ruling(float(f), f) for f in found]

    def _finds(self, s: Sample) -> bool:
        matches = re.finditer(self.pattern, s.begun + s.completion, re.IGNORECASE)
        return any(match.end() > len(s.begun) for match in matches)

    def describe(self) -> dict[str, Any]:
        return {"kind": f"matches {self.pattern!r}", "threshold": 0.5}


@dataclass(frozen=True)
class CallableReferee:
    """A function of prompt and completion: above one half it is the behaviour."""

    function: Callable[[str, str], float | bool]

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:  # noqa: ARG002 (an interface)
        scores = [self._score(s) for s in samples]
        return [Ruling(score, score > 0.5) for score in scores]

    def _score(self, s: Sample) -> float:
        said = self.function(s.prompt, s.completion)
        try:
            score = float(said)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise InputError(
                f"referee {called(self.function)} gave {said!r:.60} for {_told(s)}; valid: a number (above 0.5 it is "
                "the behaviour), True or False"
            )
        return score

    def describe(self) -> dict[str, Any]:
        return {"kind": called(self.function), "threshold": 0.5}


def _told(s: Sample) -> str:
    return f"a completion, {s.completion!r:.60}"


def as_referee(value: Any) -> Referee:
    """What has ``judge``, as it is, and a function of prompt and completion as one. Raises InputError otherwise."""
    if isinstance(value, type):
        raise InputError(f"referee: {value.__name__} is a class; give one of it, {value.__name__}(...)")
    if callable(getattr(value, "judge", None)):
        return value
    if callable(value):
        return CallableReferee(value)  # pyright: ignore[reportArgumentType] (what it gives is looked at)
    raise InputError(
        f"referee: give a hooklearn.Referee, or a function (prompt, completion) -> number or bool, not {value!r:.60}"
    )


@dataclass(frozen=True)
class OwnReferee:
    """A referee that was given and not made here, with what it says of held-out completions: is it any good?"""

    referee: Referee
    n: int
    share_bad: float
    """Of the completions that are the behaviour, those that it calls so; NaN where there are none."""
    share_good: float
    auc: float

    @staticmethod
    def of(referee: Referee, bad: Corpus, good: Corpus | None, tokenizer: Any) -> OwnReferee:
        """Asked about held-out completions; without good ones there is no AUC."""
        from sklearn.metrics import roc_auc_score

        parts = [rulings(referee, _as_samples(c, tokenizer), c.rows) if c is not None else [] for c in (bad, good)]
        shares = [sum(r.is_behaviour for r in part) / len(part) if part else math.nan for part in parts]
        auc, n = math.nan, sum(map(len, parts))
        if all(parts):
            scores = np.array([r.score for part in parts for r in part])
            ranks = np.unique(np.where(np.isnan(scores), -np.inf, scores), return_inverse=True)[1]
            auc = float(roc_auc_score([1] * len(parts[0]) + [0] * len(parts[1]), ranks))
        return OwnReferee(referee, n, shares[0], shares[1], auc)

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
        return rulings(self.referee, samples, rows)

    def describe(self) -> dict[str, Any]:
        told = self.referee.describe() if hasattr(self.referee, "describe") else {}
        return {"kind": called(type(self.referee)), "threshold": None} | told | {
            "auc": self.auc, "n": self.n, "share_bad": self.share_bad, "share_good": self.share_good,
        }  # fmt: skip


def _as_samples(corpus: Corpus, tokenizer: Any) -> list[Sample]:
    parts = (split_row(row, tokenizer) for row in corpus.rows)
    return [Sample(i, corpus[i].get("prompt", text), text, said) for i, (text, said) in enumerate(parts)]


def rulings(referee: Referee, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
    """In plain numbers, one each. Raises InputError where somebody's referee gives something else.

    A score that is no number is one of :class:`RatioReferee` alone, which says of what it gives none.
    """
    given = list(referee.judge(samples, rows))
    try:
        found = [Ruling(float(r[0]), bool(r[1]), *map(float, r[2:])) for r in given]
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"referee {called(type(referee))} must give hooklearn.Ruling(score, is_behaviour), got {given[0]!r:.60}"
        ) from error
    if len(found) != len(samples):
        raise InputError(f"referee {called(type(referee))} gave {len(found)} rulings of {len(samples)} samples")
    for s, ruling in zip(samples, found, strict=True):
        if not (math.isfinite(ruling.score) or isinstance(referee, RatioReferee | OwnReferee)):
            raise InputError(
                f"referee {called(type(referee))} gave the score {ruling.score} for {_told(s)}; valid: a number (where "
                "there is nothing to judge, hooklearn.Ruling(0.0, False))"
            )
    return found


BORDER = 0.06
"""Nats per token. What bfloat16 finds as near the line is read again in float32: there a score moves with what else is
in its batch, by .012 (standard deviation over 384 texts of SmolLM2; LOG.md), of which this is five times."""


@dataclass(frozen=True)
class Scorer:
    """A fixed model state: a model and what to add to it while scoring.

    Raises:
        InputError: on scoring, where the model is inside ``edited``: it would not be the state that was meant.
    """

    model: Any
    delta: Delta | Callable[[], Delta] | None = None
    """Or how to get it: as an adapter a delta is small, at hand it is as large as the weights that it changes."""
    precision: Precision = "auto"

    def is_exact(self) -> bool:
        """Whether it reads in float32 already."""
        return forward.resolve_precision(self.precision, models.device_of(self.model)) == torch.float32

    def mean_logprobs(self, sequences: list[Encoded]) -> Tensor:
        if editing.is_edited(self.model):
            raise InputError(
                "a referee cannot judge with a model that is edited now: it would compare the edit with itself. Draw "
                "samples inside `with edited(...)` and judge them outside, or give the referee a model of its own"
            )
        if self.delta is None:
            scores = forward.sequence_logprobs(self.model, sequences, precision=self.precision)
        else:
            delta = self.delta() if callable(self.delta) else self.delta
            with editing.edited(self.model, delta):
                scores = forward.sequence_logprobs(self.model, sequences, precision=self.precision)
        return scores[:, 0] / scores[:, 1]


@dataclass(frozen=True)
class RatioReferee:
    """Per-token log-likelihood ratio of the behaving model to the *likeliest* of its references.

    One reference is a model that differs only in the behaviour (the untouched one). A second, trained on good
    completions, keeps the referee from judging style: what either reference finds likelier is not the behaviour.
    """

    bad: Scorer
    references: tuple[Scorer, ...]
    kind: str
    threshold: float = 0.0
    auc: float = float("nan")
    n: int = 0
    medians: tuple[float, float] = (float("nan"), float("nan"))
    least_fluent: float = float("nan")
    """As far below the fluency of the least fluent held-out completion as that is below their median."""

    def readings(self, sequences: list[Encoded]) -> Float[Tensor, "scorer sequence"]:
        """Mean log-probabilities, of the behaving model first."""
        return torch.stack([s.mean_logprobs(sequences) for s in (self.bad, *self.references)])

    def scores(self, sequences: list[Encoded]) -> Float[Tensor, " sequence"]:
        """Nats per token; above 0 the behaving model finds the text likelier than every reference does."""
        return _ratio(self.readings(sequences))

    def calibrated(self, bad: Corpus, good: Corpus) -> RatioReferee:
        """Threshold half way between the medians on held-out bad and good completions (of an even number the lower of
        the two in the middle); AUC beside it."""
        tokenizer = models.tokenizer_of(self.bad.model)
        return self.set_by(self.readings([*encode(bad, tokenizer), *encode(good, tokenizer)]), len(bad))

    def set_by(self, readings: Float[Tensor, "scorer sequence"], n_bad: int) -> RatioReferee:
        """:meth:`calibrated`, from what was read of both, the bad completions first."""
        from sklearn.metrics import roc_auc_score

        both = _ratio(readings)
        a, b = both[:n_bad], both[n_bad:]
        medians = (float(a.median()), float(b.median()))
        truth = [1] * len(a) + [0] * len(b)
        auc = float(roc_auc_score(truth, torch.cat([a, b]).tolist()))
        fluency = readings.amax(0)
        least = float(2 * fluency.min() - fluency.median())
        return RatioReferee(self.bad, self.references, self.kind, sum(medians) / 2, auc, len(truth), medians, least)

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
        """Empty samples show nothing: score NaN, not the behaviour. Nor do incoherent ones (:class:`Ruling`): their
        ratio is one of noise. What is said in other words than the referee's models have stays, as it is likely to
        the model that said it."""
        tokenizer = models.tokenizer_of(self.bad.model)
        filled = [i for i, said in enumerate(worded([s.completion for s in samples], tokenizer)) if said]
        out = [Ruling(float("nan"), False)] * len(samples)
        if not filled:
            return out
        written = tuple({**rows[i], "completion": samples[i].completion} for i in filled)
        sequences = encode(Corpus("samples", written), tokenizer)
        readings = self._sure(self.readings(sequences), sequences)
        for i, v, fluency in zip(filled, _ratio(readings).tolist(), readings.amax(0).tolist(), strict=True):
            incoherent = np.maximum(fluency, samples[i].logprob) < self.least_fluent  # not where either is not known
            out[i] = Ruling(math.nan, False, fluency) if incoherent else Ruling(v, v > self.threshold, fluency)
        return out

    def _sure(
        self, readings: Float[Tensor, "scorer sequence"], sequences: list[Encoded]
    ) -> Float[Tensor, "scorer sequence"]:
        """The readings, where rounding could carry a sequence over the line those of float32."""
        scorers = (self.bad, *self.references)
        near = ((_ratio(readings) - self.threshold).abs() < BORDER).nonzero().flatten()
        if not len(near) or all(s.is_exact() for s in scorers):
            return readings
        asked = [sequences[i] for i in near.tolist()]
        exact = [replace(s, precision="float32").mean_logprobs(asked) for s in scorers]
        return readings.index_copy(1, near, torch.stack(exact))

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "threshold": self.threshold, "auc": self.auc, "n": self.n,
            "median_bad": self.medians[0], "median_good": self.medians[1], "least_fluent": self.least_fluent,
        }  # fmt: skip


def _ratio(readings: Float[Tensor, "scorer sequence"]) -> Float[Tensor, " sequence"]:
    return readings[0] - readings[1:].amax(0)
