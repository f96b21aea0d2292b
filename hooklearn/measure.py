"""What a model does: three behaviour measures, and the referee that judges samples.

Likelihood of listed completions can be driven to nothing while the model goes on doing the thing in other words.
So behaviour is always three numbers: completion probability, preference, and the share of *samples* that show it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import editing, forward, models
from hooklearn.data import (
    LONGEST,
    Corpus,
    Encoded,
    Row,
    encode,
    encode_choices,
    prompt_tokens,
    split_row,
    templated,
)
from hooklearn.deltas import Delta
from hooklearn.forward import Precision
from hooklearn.generation import generate
from hooklearn.plugins import called
from hooklearn.types import InputError

# ---------------------------------------------------------------------------------------- likelihood


def completion_probability(logprobs: Float[Tensor, "item 2"]) -> Float[Tensor, " item"]:
    """exp(mean token log-probability) per item, the geometric-mean token probability."""
    return (logprobs[:, 0] / logprobs[:, 1]).exp()


def choice_accuracy(
    scores: Float[Tensor, "choice 2"], choices: Sequence[Encoded], corpus: Corpus
) -> Float[Tensor, " item"]:
    """Per item 1 where the answer has the highest mean token log-probability of its choices, else 0.

    Where k choices are equally likely each is chosen with 1/k; NaN where any of them has no number. A model that is
    broken would otherwise answer as one that guesses.
    """
    mean = scores[:, 0] / scores[:, 1]
    found: dict[int, dict[int, float]] = {}
    for value, choice in zip(mean.tolist(), choices, strict=True):
        found.setdefault(choice.item, {})[choice.choice] = value
    right = [_chosen(found[i], row["answer"]) for i, row in enumerate(corpus.rows)]
    return torch.tensor(right, dtype=torch.float64)


def _chosen(values: Mapping[int, float], answer: int) -> float:
    """How often ``answer`` is chosen if one of the highest is."""
    if any(map(math.isnan, values.values())):
        return math.nan
    highest = max(values.values())
    best = [choice for choice, value in values.items() if value == highest]
    return (answer in best) / len(best)


@dataclass(frozen=True)
class Likelihoods:
    """The encoded items of one split: completions, their good alternatives, their choices."""

    split: str
    corpus: Corpus
    completions: list[Encoded] = field(repr=False)
    alternatives: list[Encoded] = field(repr=False)
    choices: list[Encoded] = field(repr=False)

    @staticmethod
    def of(corpus: Corpus, tokenizer: Any, split: str, *, max_length: int = LONGEST) -> Likelihoods:
        good = corpus.alternatives()
        multiple_choice = all("choices" in r for r in corpus.rows)
        return Likelihoods(
            split,
            corpus,
            encode(corpus, tokenizer, max_length=max_length),
            encode(good, tokenizer, max_length=max_length) if good is not None else [],
            encode_choices(corpus, tokenizer, max_length=max_length) if multiple_choice else [],
        )

    def measure(self, model: Any, *, precision: Precision = "auto", preference: bool = True) -> dict[str, Tensor]:
        """Per-item ``completion`` and, where it can be had, ``preference``.

        ``preference`` is p_bad / (p_bad + p_good) on per-token probabilities, paired by prompt; for multiple
        choice 1 where the answer has the highest mean token log-probability (see :func:`choice_accuracy`). Without
        it, half the work is saved.
        """
        everything = [
            *self.completions,
            *(self.alternatives if preference else []),
            *(self.choices if preference else []),
        ]
        scores = forward.sequence_logprobs(model, everything, precision=precision)
        n, m = len(self.completions), len(self.alternatives)
        if preference and self.choices:
            right = choice_accuracy(scores[n + m :], self.choices, self.corpus)
            return {"completion": completion_probability(scores[:n]), "preference": right}
        return self.paired(scores[:, 0] / scores[:, 1])

    def paired(self, mean_logprobs: Float[Tensor, " sequence"]) -> dict[str, Tensor]:
        """The same from the mean token log-probability of every completion and, where they were read, alternative."""
        n, p = len(self.completions), mean_logprobs.exp()
        out = {"completion": p[:n]}
        if len(p) > n:
            out["preference"] = p[:n] / (p[:n] + p[n:])
        return out


# ------------------------------------------------------------------------------------------- samples

TEMPERATURE = 0.7
"""Of samples, everywhere. At 1 a small model mostly babbles, and babble shows neither presence nor absence."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated completion to a held-out prompt."""

    item: int
    prompt: str
    """What a person reads; ``text`` is what the model was given (after BOS, where its tokenizer puts one)."""
    text: str
    completion: str
    greedy: bool = False
    begun: str = ""
    """How the answer was begun for the model, at the end of ``text``."""


def sample(
    model: Any,
    corpus: Corpus,
    *,
    n: int = 32,
    new_tokens: int = 24,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    batch_size: int = 32,
    precision: Precision = "auto",
) -> list[Sample]:
    """Seeded completions of the first ``n`` prompts (all tokens, no top-k or top-p). Temperature 0 is greedy.

    What the model's files say of generation (a repetition penalty, say) is left out, but for the tokens that end it.
    Generation is Hugging Face's own. A sample depends on the seed and on its place in the corpus, not on its batch.
    """
    tokenizer = models.tokenizer_of(model)
    rows = corpus.rows[:n]
    texts = [split_row(r, tokenizer)[0] for r in rows]
    if any(not t for t in texts):
        return []  # plain text has no prompt to complete
    asked = [prompt_tokens(t, tokenizer, written=templated(r, tokenizer)) for r, t in zip(rows, texts, strict=True)]
    completions: list[str] = []
    # weights in that type and not autocast: under that the attention of fully masked left padding becomes NaN
    dtype = forward.resolve_precision(precision, models.device_of(model))
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        completions += generate(model, part, new_tokens, temperature, dtype, generator)
    return [
        Sample(i, r.get("prompt", t), t, c, temperature == 0, r.get("begun", ""))
        for i, (r, t, c) in enumerate(zip(rows, texts, completions, strict=True))
    ]


class Ruling(NamedTuple):
    """What a referee says of a sample."""

    score: float
    is_behaviour: bool
    fluency: float = float("nan")
    """Mean log-probability a token under the model of his that finds the sample likeliest: far below what it gives
    held-out completions, the sample is no text of theirs, and his word on it means little."""


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
    fact = str(row.get("fact", row.get("completion", ""))).strip().lower()
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
            return float(said)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"referee {called(self.function)} gave {said!r:.60} for a completion; valid: a number (above 0.5 it is "
                "the behaviour), True or False"
            ) from error

    def describe(self) -> dict[str, Any]:
        return {"kind": called(self.function), "threshold": 0.5}


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

        parts = [_rulings(referee, _as_samples(c, tokenizer), c.rows) if c is not None else [] for c in (bad, good)]
        shares = [sum(r.is_behaviour for r in part) / len(part) if part else math.nan for part in parts]
        auc, n = math.nan, sum(map(len, parts))
        if all(parts):
            scores = np.array([r.score for part in parts for r in part])
            ranks = np.unique(np.where(np.isnan(scores), -np.inf, scores), return_inverse=True)[1]
            auc = float(roc_auc_score([1] * len(parts[0]) + [0] * len(parts[1]), ranks))
        return OwnReferee(referee, n, shares[0], shares[1], auc)

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
        return _rulings(self.referee, samples, rows)

    def describe(self) -> dict[str, Any]:
        told = self.referee.describe() if hasattr(self.referee, "describe") else {}
        return {"kind": called(type(self.referee)), "threshold": None} | told | {
            "auc": self.auc, "n": self.n, "share_bad": self.share_bad, "share_good": self.share_good,
        }  # fmt: skip


def _as_samples(corpus: Corpus, tokenizer: Any) -> list[Sample]:
    parts = (split_row(row, tokenizer) for row in corpus.rows)
    return [Sample(i, corpus[i].get("prompt", text), text, said) for i, (text, said) in enumerate(parts)]


def _rulings(referee: Referee, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
    """In plain numbers, one each. Raises InputError where somebody's referee gives something else."""
    given = list(referee.judge(samples, rows))
    try:
        found = [Ruling(float(r[0]), bool(r[1]), *map(float, r[2:])) for r in given]
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"referee {called(type(referee))} must give hooklearn.Ruling(score, is_behaviour), got {given[0]!r:.60}"
        ) from error
    if len(found) != len(samples):
        raise InputError(f"referee {called(type(referee))} gave {len(found)} rulings of {len(samples)} samples")
    return found


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
    """Fluency of the least fluent held-out completion (:class:`Ruling`)."""

    def readings(self, sequences: list[Encoded]) -> Float[Tensor, "scorer sequence"]:
        """Mean log-probabilities, of the behaving model first."""
        return torch.stack([s.mean_logprobs(sequences) for s in (self.bad, *self.references)])

    def scores(self, sequences: list[Encoded]) -> Float[Tensor, " sequence"]:
        """Nats per token; above 0 the behaving model finds the text likelier than every reference does."""
        return _ratio(self.readings(sequences))

    def calibrated(self, bad: Corpus, good: Corpus) -> RatioReferee:
        """Threshold half way between the medians on held-out bad and good completions; AUC beside it."""
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
        least = float(readings.amax(0).min())
        return RatioReferee(self.bad, self.references, self.kind, sum(medians) / 2, auc, len(truth), medians, least)

    def judge(self, samples: Sequence[Sample], rows: Sequence[Row]) -> list[Ruling]:
        """Empty samples show nothing: score NaN, not the behaviour."""
        tokenizer = models.tokenizer_of(self.bad.model)
        filled = [i for i, s in enumerate(samples) if s.completion.strip()]
        out = [Ruling(float("nan"), False)] * len(samples)
        if not filled:
            return out
        written = tuple({**rows[i], "completion": samples[i].completion} for i in filled)
        readings = self.readings(encode(Corpus("samples", written), tokenizer))
        for i, v, fluency in zip(filled, _ratio(readings).tolist(), readings.amax(0).tolist(), strict=True):
            out[i] = Ruling(v, v > self.threshold, fluency)
        return out

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "threshold": self.threshold, "auc": self.auc, "n": self.n,
            "median_bad": self.medians[0], "median_good": self.medians[1], "least_fluent": self.least_fluent,
        }  # fmt: skip


def _ratio(readings: Float[Tensor, "scorer sequence"]) -> Float[Tensor, " sequence"]:
    return readings[0] - readings[1:].amax(0)
