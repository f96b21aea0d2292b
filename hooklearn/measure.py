"""What a model does: likelihoods of listed completions, and samples for a referee (``hooklearn.referees``) to judge.

Likelihood of listed completions can be driven to nothing while the model goes on doing the thing in other words.
So behaviour is always three numbers: completion probability, preference, and the share of *samples* that show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import forward, models
from hooklearn.corpora.corpus import as_corpus
from hooklearn.data import (
    LONGEST,
    Corpus,
    Encoded,
    TokenBatch,
    encode,
    encode_choices,
    prompt_tokens,
    split_row,
    templated,
)
from hooklearn.forward import Precision
from hooklearn.generation import Said, say
from hooklearn.traits import row_of
from hooklearn.types import InputError
from hooklearn.validation import finite_number, whole_number

# ---------------------------------------------------------------------------------------- likelihood


def completion_probability(logprobs: Float[Tensor, "item 2"]) -> Float[Tensor, " item"]:
    """exp(mean token log-probability) per item, the geometric-mean token probability."""
    return (logprobs[:, 0] / logprobs[:, 1]).exp()


def mean_completion(
    model: Any, sequences: list[Encoded], *, precision: Precision = "auto", max_tokens: int = 2048
) -> float:
    """The mean :func:`completion_probability` of these sequences, in the state that the model is in now."""
    found = forward.sequence_logprobs(model, sequences, precision=precision, max_tokens=max_tokens)
    return float(completion_probability(found).mean())


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
    _batches: dict[tuple[bool, int], list[TokenBatch]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Those that were read before, by whether alternatives were and how the model lets rows be shared: every arm
    and every look reads the same."""

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
        kind = preference, row_of(model)
        if kind not in self._batches:
            self._batches[kind] = forward.scored_batches(model, everything)
        scores = forward.sequence_logprobs(model, everything, precision=precision, stream=self._batches[kind])
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
    logprob: float = math.nan
    """Mean log-probability a token (temperature 1) under the model that said it, as it was then and after ``text``: far
    below what models give to text, it was drawn from next to nothing. NaN: not known."""


def beside(length: int) -> int:
    """How many samples of so many tokens are drawn beside each other: a step reads all weights, for however many."""
    return max(1, 16_384 // length)


def check_sampling(new_tokens: int, temperature: float, seed: int) -> None:
    """Raises InputError where nothing can be drawn so."""
    whole_number(new_tokens, "new_tokens", least=1)
    finite_number(temperature, "temperature", least=0)
    whole_number(seed, "seed", least=0, below=2**64)  # what torch's generators take


def sample(
    model: Any,
    corpus: Corpus,
    *,
    n: int = 32,
    new_tokens: int = 24,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "auto",
) -> list[Sample]:
    """Seeded completions of the first ``n`` prompts (all tokens, no top-k or top-p). Temperature 0 is greedy.

    What the model's files say of generation (a repetition penalty, say) is left out, but for the tokens that end it.
    Generation is Hugging Face's own. A sample depends on the seed and on its place in the corpus, not on its batch.

    Args:
        batch_size: prompts beside each other; by default as many as fill 16,384 tokens with what is new.
    Raises:
        InputError: no sample or no new tokens are asked for, or a temperature or a seed that there is not; some rows
            have no prompt.
    """
    as_corpus(corpus, "corpus")
    whole_number(n, "n", least=1)
    check_sampling(new_tokens, temperature, seed)
    if batch_size is not None:
        whole_number(batch_size, "batch_size", least=1)
    tokenizer = models.tokenizer_of(model)
    rows = corpus.rows[:n]
    texts = [split_row(r, tokenizer)[0] for r in rows]
    if not any(texts):
        return []  # running text has no prompt to complete
    if not all(texts):
        raise InputError(
            f"corpus {corpus.name!r}, row {texts.index('')}: there is no prompt to go on from, as other rows have; "
            "give it one, or leave the row out"
        )
    asked = prompt_tokens(texts, tokenizer, written=[templated(row, tokenizer) for row in rows])
    said: list[Said] = []
    # weights in that type and not autocast: under that the attention of fully masked left padding becomes NaN
    dtype = forward.resolve_precision(precision, models.device_of(model))
    generator = torch.Generator().manual_seed(seed)
    size = batch_size or beside(max(map(len, asked), default=0) + new_tokens)
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        said += say(model, part, new_tokens, temperature, dtype, generator)
    return [
        Sample(i, r.get("prompt", t), t, s.text, temperature == 0, r.get("begun", ""), s.logprob)
        for i, (r, t, s) in enumerate(zip(rows, texts, said, strict=True))
    ]
