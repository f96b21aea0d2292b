"""Sequences -> batches with explicit masks: one sequence a row and padded, or several that share their beginning.

Padding is masked by an explicit attention mask, never by ``ids != pad``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: ``labels[t]`` says that the probability of token ``t`` given its past counts."""

    ids: Int[Tensor, " pos"]
    labels: Bool[Tensor, " pos"]
    item: int
    choice: int = -1
    """Which of the row's choices this is; -1 for the completion itself."""

    def __len__(self) -> int:
        return self.ids.numel()


@dataclass(frozen=True)
class TokenBatch:
    """Sequences in rows: one a row and padded, or several that never see one another.

    Sequences of one row may share their beginning, which then stands there once (a chat template's system prompt, the
    prompt of several completions): a row is a tree of tokens, depth first, and a token sees its ancestors. What is
    derived is derived once, as the same batches are read at every look.
    """

    ids: Int[Tensor, "batch pos"]
    labels: Bool[Tensor, "batch pos"]
    until: Int[Tensor, "batch pos"]
    """The token is seen by those that follow it in its row, up to this index (exclusive); 0 on padding."""
    segment: Int[Tensor, "batch pos"]
    """Index into ``sequences``; -1 on padding and on what several sequences share."""
    position: Int[Tensor, "batch pos"]
    """Position within the sequence."""
    sequences: tuple[Encoded, ...] = field(repr=False)

    @cached_property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """False on padding."""
        return self.until > 0

    @cached_property
    def keep(self) -> Bool[Tensor, "batch pos"]:
        """Positions whose *next* token is labelled: where logits are needed."""
        shifted = torch.zeros_like(self.labels)
        shifted[:, :-1] = self.labels[:, 1:]
        return shifted

    @cached_property
    def targets(self) -> Int[Tensor, " kept"]:
        """The labelled tokens, in the order of ``keep``."""
        return self.ids[self.labels]

    @cached_property
    def owner(self) -> Int[Tensor, " kept"]:
        """For each labelled token, which of ``sequences`` it belongs to."""
        return self.segment[self.labels]

    @cached_property
    def packed(self) -> bool:
        """Whether any row needs more than a causal mask."""
        jumps = self.position[:, 1:] != self.position[:, :-1] + 1
        return bool(jumps.logical_and(self.mask[:, 1:]).any())

    @cached_property
    def n_common(self) -> int:
        """How many tokens every row begins with that are the same, seen by all that follow in it, and predict nothing
        that is labelled."""
        seen = self.until == self.mask.sum(1, keepdim=True)
        alike = ((self.ids == self.ids[:1]) & seen & ~self.keep).all(0)
        return int(alike.long().cumprod(0).sum())

    @cached_property
    def n_tokens(self) -> int:
        """Tokens that go through the model; a shared beginning counts once."""
        return int(self.mask.sum())

    def part(self, number: int, of: int) -> TokenBatch | None:
        """The ``number``-th of so many parts, by sequences; None where there are fewer sequences than parts."""
        if of == 1:
            return self
        n = len(self.sequences)
        own = self.sequences[n * number // of : n * (number + 1) // of]
        return _collate(_rows(own, self.ids.shape[1] if n > len(self.ids) else 0), 0) if own else None

    def attention(self) -> Bool[Tensor, "batch 1 pos pos"]:
        """Who (first) sees whom (second): itself and the tokens before it on the way from the root of its tree."""
        at = torch.arange(self.until.shape[1], device=self.until.device)
        causal = at[:, None] >= at[None, :]
        return (causal & (at[:, None] < self.until[:, None, :]))[:, None]


ROW = 256
"""Tokens in a row that several sequences share: attention grows with the square of a row, and beyond this it costs more
than sharing saves. In a narrow model it does so sooner (:func:`hooklearn.traits.row_of`)."""


def batches(
    sequences: Sequence[Encoded],
    *,
    max_tokens: int = 1024,
    share: int = 0,
    seed: int | None = None,
    pad_id: int = 0,
) -> list[TokenBatch]:
    """Group sequences into batches of at most ``max_tokens`` tokens, padding included.

    Args:
        share: tokens of a row in which several sequences stand (or two of the longest), what they begin with only
            once; scores and the gradient of their sum are the same, statistics over tokens are not (a shared token
            counts once). 0: one sequence a row.
        seed: shuffle the order of the batches, by a generator of its own.
    """
    width = max(share, 2 * max(map(len, sequences), default=0)) if share else 0
    rows = sorted(_rows(sequences, min(max_tokens, width)), key=len, reverse=True)
    out: list[TokenBatch] = []
    while rows:
        fit = max(1, max_tokens // max(1, len(rows[0])))
        out.append(_collate(rows[:fit], pad_id))
        rows = rows[fit:]
    if seed is not None:
        random.Random(seed).shuffle(out)
    return out


@dataclass
class _Row:
    """Sequences in the order in which they stand, each with the number of tokens that it shares with the one before."""

    sequences: list[Encoded] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.sequences)) - sum(self.shared)


def _rows(sequences: Sequence[Encoded], width: int) -> list[_Row]:
    """One a row; or, in the order of what they begin with, as many as have room in ``width`` tokens."""
    if not width:
        return [_Row([s], [0]) for s in sequences]
    rows: list[_Row] = []
    before: list[int] = []
    for beginning, s in sorted(((_beginning(s), s) for s in sequences), key=lambda pair: pair[0]):
        common = in_common(before, beginning)
        if not rows or len(rows[-1]) + len(s) - common > width:
            rows.append(_Row())
            common = 0
        rows[-1].sequences.append(s)
        rows[-1].shared.append(common)
        before = beginning
    return rows


def _beginning(s: Encoded) -> list[int]:
    """What may be shared: the tokens before the first labelled one, less the last of them. That one predicts the first
    labelled token of *each* sequence, so every sequence keeps its own."""
    return s.ids[: int(s.labels.numpy().argmax()) - 1].tolist()


def in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens they begin with that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _collate(rows: Sequence[_Row], pad_id: int) -> TokenBatch:
    """All tokens of a batch are written at once: one by one, the sequences of a small model's batch take as long to lay
    out as to read."""
    n_rows, width = shape = (len(rows), max(map(len, rows)))
    sequences = tuple(s for row in rows for s in row.sequences)
    shared = np.array([n for row in rows for n in row.shared])
    own = np.array([*map(len, sequences)]) - shared
    row_of = np.repeat(np.arange(n_rows), [len(row.sequences) for row in rows])
    behind = np.cumsum(own)  # where each ends, were the rows one behind the other
    begins = np.cumsum([0, *map(len, rows)])[row_of]
    ends = behind - begins
    within = np.arange(behind[-1]) - np.repeat(behind - own, own)
    at = torch.from_numpy(np.repeat(row_of * width + ends - own, own) + within)

    def laid_out(values: Tensor, elsewhere: int) -> Tensor:
        return torch.full((n_rows * width,), elsewhere, dtype=values.dtype).index_put_((at,), values).view(shape)

    def of_each(values: NDArray[np.intp]) -> Tensor:
        return torch.from_numpy(np.repeat(values, own))

    rest = list(zip(sequences, shared.tolist(), strict=True))
    ids, labels = torch.cat([s.ids[n:] for s, n in rest]), torch.cat([s.labels[n:] for s, n in rest])
    segment, until = laid_out(of_each(np.arange(len(sequences))), -1), laid_out(of_each(ends), 0)
    position = laid_out(torch.from_numpy(within + np.repeat(shared, own)), 0)
    path = np.zeros(0, np.intp)  # where the tokens of the last sequence stand
    for row, end, n, m in zip(row_of, ends, shared, own, strict=True) if shared.any() else ():
        segment.numpy()[row, path[:n]], until.numpy()[row, path[:n]] = -1, end
        path = np.concatenate([path[:n], np.arange(end - m, end)])
    return TokenBatch(laid_out(ids, pad_id), laid_out(labels, 0), until, segment, position, sequences)


def cycle(
    sequences: Sequence[Encoded], *, max_tokens: int, seed: int, epochs: int, share: int = 0, pad_id: int = 0
) -> Iterator[TokenBatch]:
    """Batches for ``epochs`` passes; which sequences share a batch changes from pass to pass.

    Args:
        max_tokens: of a batch if every sequence had a row of its own, so that ``share`` (as in :func:`batches`) does
            not change which sequences make a step.
    """
    for epoch in range(epochs):
        shuffled = list(sequences)
        random.Random(f"{seed}:{epoch}").shuffle(shuffled)
        start = 0
        while start < len(shuffled):
            end, width = start, 0
            while end < len(shuffled):
                width = max(width, len(shuffled[end]))
                if end > start and width * (end + 1 - start) > max_tokens:
                    break
                end += 1
            # one row where it can be: a second, half empty one costs more than the attention of a long one
            yield _collate(_rows(shuffled[start:end], 2 * share), pad_id)
            start = end
