"""What the unedited model says of the training text, computed once before a walk: no second model in memory.

A method is asked for its objective while the model is unedited, so that is when its reference is read off: one number
per sequence, or one final hidden state per labelled token. Logits are ``vocab / d_model`` times larger, and the
unembedding is no site: it is never edited and turns the kept states back into logits whenever they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import forward, losses, models
from hooklearn.data import Encoded, TokenBatch, batches, encode
from hooklearn.edit.method import Problem
from hooklearn.losses import LossSum


def training_sequences(problem: Problem, role: str) -> list[Encoded]:
    """The rows of a corpus as a walk sees them: turns with their end, ``item`` being the row's number."""
    return encode(problem.corpus(role), models.tokenizer_of(problem.model), end="turn")


def reference_nlls(problem: Problem, sequences: list[Encoded]) -> Float[Tensor, " sequence"]:
    """-log p of whole sequences, nats, float64, in whatever state the model is now."""
    problem.tokens += sum(map(len, sequences))
    scores = forward.sequence_logprobs(
        problem.model, sequences, precision=problem.precision, max_tokens=problem.max_tokens
    )
    return -scores[:, 0]


@dataclass(frozen=True)
class Teacher:
    """The unedited model on one corpus: per row, the final hidden states that predict its labelled tokens."""

    hidden: tuple[Float[Tensor, "kept d_model"], ...]

    @staticmethod
    @torch.no_grad()
    def of(problem: Problem, role: str) -> Teacher:
        sequences = training_sequences(problem, role)
        found: dict[int, Tensor] = {}
        for batch in batches(sequences, max_tokens=problem.max_tokens):
            with forward.autocast(problem.model, problem.precision):
                states = forward.hidden(problem.model, batch)
            problem.tokens += batch.n_tokens
            # labelled tokens lie in the order of the sequences, also in packed rows
            sizes = torch.bincount(batch.owner, minlength=len(batch.sequences)).tolist()
            # copies: a view would keep the whole batch's states
            parts = [part.clone() for part in states.split(sizes)]
            found |= {s.item: part for s, part in zip(batch.sequences, parts, strict=True)}
        return Teacher(tuple(found[i] for i in range(len(sequences))))

    @torch.no_grad()
    def logits(self, model: Any, batch: TokenBatch) -> Float[Tensor, "kept vocab"]:
        """The unedited model's logits for ``batch.targets``, however the model is edited now."""
        return forward.unembed(model, torch.cat([self.hidden[s.item] for s in batch.sequences]))

    def kl(self, model: Any, batch: TokenBatch) -> LossSum:
        """KL(unedited || model) at the labelled tokens, an objective: hold what was said there."""
        return losses.kl(self.logits(model, batch), forward.logits(model, batch))
