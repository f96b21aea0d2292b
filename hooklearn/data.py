"""Tokens: rows of a corpus -> sequences -> batches with explicit masks.

Only completion tokens carry loss; padding is masked by an explicit attention mask, never by ``ids != pad``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor

from hooklearn.corpora.corpus import Corpus, Row, answer_of
from hooklearn.loading import load_corpus
from hooklearn.types import InputError

__all__ = ["Corpus", "Encoded", "Row", "TokenBatch", "batches", "cycle", "encode", "encode_choices", "load_corpus"]


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: ``labels[t]`` says that the probability of token ``t`` given its past counts."""

    ids: Int[Tensor, " pos"]
    labels: Bool[Tensor, " pos"]
    item: int
    choice: int = -1
    """Which of the row's choices this is; -1 for the completion itself."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TokenBatch:
    """Sequences in rows: one a row and padded, or several that never see one another.

    Sequences of one row may share their beginning, which then stands there once (a chat template's system prompt, the
    prompt of several completions): a row is a tree of tokens, depth first, and a token sees its ancestors.
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

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """False on padding."""
        return self.until > 0

    @property
    def keep(self) -> Bool[Tensor, "batch pos"]:
        """Positions whose *next* token is labelled: where logits are needed."""
        shifted = torch.zeros_like(self.labels)
        shifted[:, :-1] = self.labels[:, 1:]
        return shifted

    @property
    def targets(self) -> Int[Tensor, " kept"]:
        """The labelled tokens, in the order of ``keep``."""
        return self.ids[self.labels]

    @property
    def owner(self) -> Int[Tensor, " kept"]:
        """For each labelled token, which of ``sequences`` it belongs to."""
        return self.segment[self.labels]

    @property
    def packed(self) -> bool:
        """Whether any row needs more than a causal mask."""
        jumps = self.position[:, 1:] != self.position[:, :-1] + 1
        return bool(jumps.logical_and(self.mask[:, 1:]).any())

    @property
    def n_common(self) -> int:
        """How many tokens every row begins with that are the same, seen by all that follow in it, and predict nothing
        that is labelled."""
        seen = self.until == self.mask.sum(1, keepdim=True)
        alike = ((self.ids == self.ids[:1]) & seen & ~self.keep).all(0)
        return int(alike.long().cumprod(0).sum())

    @property
    def n_tokens(self) -> int:
        """Tokens that go through the model; a shared beginning counts once."""
        return int(self.mask.sum())

    def part(self, number: int, of: int) -> TokenBatch | None:
        """The ``number``-th of so many parts, by sequences; None where there are fewer sequences than parts."""
        if of == 1:
            return self
        n = len(self.sequences)
        own = self.sequences[n * number // of : n * (number + 1) // of]
        return _collate(_rows(own, 2 * ROW if n > len(self.ids) else 0), 0) if own else None

    def attention(self) -> Bool[Tensor, "batch 1 pos pos"]:
        """Who (first) sees whom (second): itself and the tokens before it on the way from the root of its tree."""
        at = torch.arange(self.until.shape[1], device=self.until.device)
        causal = at[:, None] >= at[None, :]
        return (causal & (at[:, None] < self.until[:, None, :]))[:, None]


LONGEST = 512
"""Tokens of a row that are read, unless its caller says otherwise: a longer one loses the beginning of its prompt."""
WHOLE = 2**20
"""More than any model reads: then what it reads is what is kept."""


def encode(
    corpus: Corpus, tokenizer: Any, *, end: bool | Literal["turn"] = False, max_length: int = LONGEST
) -> list[Encoded]:  # fmt: skip
    """Tokenise every row; only completion tokens (all tokens of plain text) are labelled.

    Chat models get their own template, except for rows with ``"template": "none"``; other prompts begin as the
    tokenizer itself begins a text (with BOS, for Gemma and Llama).

    Args:
        end: also label the end-of-turn token after a completion (training; never scoring). ``"turn"``: where there is a
            turn to end, that is not in rows with ``"template": "none"``, which are text to go on from: a model is as
            good as certain that it does not end there, and that one token would outweigh the answer.
        max_length: or what the model reads at most, where that is less.
    Raises:
        InputError: a row has no token left to score (only special tokens, or an empty completion).
    """
    return _encoded(corpus.name, list(enumerate(corpus.rows)), tokenizer, end, max_length)


def _room(tokenizer: Any, max_length: int) -> int:
    """What is asked for, or what the model reads at most, as its tokenizer says where it is one of a model."""
    return min(max_length, getattr(tokenizer, "model_max_length", max_length))


def n_cut(corpus: Corpus, tokenizer: Any, *, max_length: int = LONGEST) -> int:
    """How many rows :func:`encode` cuts."""
    parts = _tokens(corpus.name, list(enumerate(corpus.rows)), tokenizer)
    return sum(sum(map(len, of_row)) > _room(tokenizer, max_length) for of_row in parts)


def n_run_together(corpus: Corpus, tokenizer: Any) -> int:
    """How many completions begin in the middle of a word: where no template stands between, nobody puts a space."""
    plain = (split_row(row, tokenizer) for row in corpus.rows if not templated(row, tokenizer))
    return sum(before[-1:].isalnum() and after[:1].isalnum() for before, after in plain)


def encode_choices(corpus: Corpus, tokenizer: Any, *, max_length: int = LONGEST) -> list[Encoded]:
    """Every choice of every multiple-choice row as a completion of its own."""
    numbered = [(i, c, {**row, "completion": choice}) for i, row in enumerate(corpus.rows)
                for c, choice in enumerate(row["choices"])]  # fmt: skip
    read = _encoded(corpus.name, [(i, row) for i, _, row in numbered], tokenizer, False, max_length)
    return [Encoded(one.ids, one.labels, i, c) for one, (i, c, _) in zip(read, numbered, strict=True)]


def fewer_scored(row: Row, tokenizer: Any, most: int = LONGEST) -> Row:
    """The row with no more of its answers (or of its text) than :func:`encode` scores, however long its prompt is."""
    cut = {k: first_tokens(str(row[k]), most, tokenizer) for k in ("text", "completion", "alternative") if k in row}
    return {**row, **cut}


def first_tokens(text: str, count: int, tokenizer: Any) -> str:
    """As far as the first ``count`` tokens of a text go."""
    if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= count:
        return text  # also where the tokenizer cannot say where its tokens end
    return beginning(text, count, tokenizer)[0]


def beginning(text: str, tokens: int, tokenizer: Any) -> tuple[str, str]:
    """The first ``tokens`` tokens of a text, at most all but the last, and the rest of it."""
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    given = min(tokens, len(ends) - 1)
    cut = ends[given - 1] if given > 0 else 0
    return text[:cut], text[cut:]


def n_read(row: Row, tokenizer: Any) -> int:
    """Tokens of a row, its answer included, however long they are."""
    return sum(map(len, _tokens("one row", [(0, row)], tokenizer)[0]))


def split_row(row: Row, tokenizer: Any) -> tuple[str, str]:
    """(text before, text to be scored), with the chat template where the model has one.

    A ``completion`` beside ``messages`` stands in for the last one; ``history`` comes before the last question.
    With ``"template": "applied"`` the prompt is what a template has written, as far as the answer is begun.
    """
    if "text" in row and not ("messages" in row or {"prompt", "completion"} <= row.keys()):
        return "", row["text"]
    completion = answer_of(row)
    before = row["messages"][:-1] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
    before = [*before[:-1], *row.get("history", []), *before[-1:]]
    if row.get("template") == "applied" or not templated(row, tokenizer):
        return plain(before), completion
    try:
        text = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # a role, or an order of turns, that the model does not know
        raise InputError(f"the chat template refuses {before!s:.80}: {error}") from error
    return text, completion


def templated(row: Row, tokenizer: Any) -> bool:
    """Whether a chat template writes the row's prompt, or has written it: then it wrote the beginning of text too."""
    kind = row.get("template")
    return kind == "applied" or (kind != "none" and bool(getattr(tokenizer, "chat_template", None)))


def prompt_tokens(prompt: str, tokenizer: Any, *, written: bool = False) -> list[int]:
    """What a model is given to go on from. A plain prompt begins with BOS where the tokenizer itself begins a text so:
    without it Gemma and Llama are not themselves.

    Args:
        written: by a chat template (see :func:`templated`), which is taken as it is.
    """
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    bos = _begins_with(tokenizer)
    return ids if written or ids[:1] == bos else [*bos, *ids]


def _begins_with(tokenizer: Any) -> list[int]:
    """BOS, where the tokenizer itself begins a text so."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []


def plain(turns: Sequence[Mapping[str, str]]) -> str:
    """Turns as running text: an answer follows its question, demonstrations are lines of their own."""
    text = ""
    for turn in turns:
        text += turn["content"] + ("\n" if turn["role"] == "assistant" else "")
    return text


Numbered = tuple[int, Row]
"""A row with its place in its corpus."""


def _encoded(
    name: str, rows: Sequence[Numbered], tokenizer: Any, end: bool | Literal["turn"], max_length: int
) -> list[Encoded]:
    read, out = _room(tokenizer, sys.maxsize), []
    for (i, _), (start, before, after) in zip(rows, _tokens(name, rows, tokenizer, end), strict=True):
        kept = after[: min(max_length, read - 1)]  # one token at least comes before
        room = max(1, min(max_length, read) - len(kept))
        # what is cut is the prompt and not BOS, unless a single token is left to predict from
        given = [*start, *before[len(start) - room :]] if room > len(start) else before[-room:]
        ids = torch.tensor([*given, *kept])
        labels = torch.zeros(len(ids), dtype=torch.bool)
        labels[len(given) :] = True
        out.append(Encoded(ids, labels, i))
    return out


def _tokens(
    name: str, rows: Sequence[Numbered], tokenizer: Any, end: bool | Literal["turn"] = False
) -> list[tuple[list[int], list[int], list[int]]]:
    """Of every row (BOS of a plain prompt, what comes before, what is scored), however long they are."""
    if not rows:
        return []
    texts = [split_row(row, tokenizer) for _, row in rows]
    # all in one go: asked text by text, a tokenizer takes longer than a small model takes to read them
    given = iter(tokenizer([text for pair in texts for text in pair], add_special_tokens=False)["input_ids"])
    special, bos = set(tokenizer.all_special_ids or []), _begins_with(tokenizer)
    found = []
    for (i, row), (prompt, completion), before, after in zip(rows, texts, given, given, strict=True):
        before = before if prompt else []  # some tokenizers begin an empty text, too
        start = bos if before and not templated(row, tokenizer) and before[:1] != bos else []
        if all(t in special for t in after):
            raise InputError(
                f"corpus {name!r}, row {i}: no token to score in {completion[:40]!r} (empty or only special tokens)"
            )
        if not before:
            before = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else [after.pop(0)]
            if not after:
                raise InputError(f"corpus {name!r}, row {i}: a single token cannot be scored: {completion!r}")
        ended = row.get("template") != "none" if end == "turn" else end
        if ended and tokenizer.eos_token_id is not None and prompt:
            after = [*after, tokenizer.eos_token_id]
        found.append((start, before, after))
    return found


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
    return s.ids[: int(s.labels.nonzero()[0]) - 1].tolist()


def in_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens they begin with that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _collate(rows: Sequence[_Row], pad_id: int) -> TokenBatch:
    shape = (len(rows), max(map(len, rows)))
    ids = torch.full(shape, pad_id)
    labels = torch.zeros(shape, dtype=torch.bool)
    until, position = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, -1)
    sequences: list[Encoded] = []
    for r, row in enumerate(rows):
        at = 0
        path = torch.zeros(0, dtype=torch.long)  # where the tokens of the last sequence stand
        for s, n in zip(row.sequences, row.shared, strict=True):
            span = slice(at, at + len(s) - n)
            ids[r, span], labels[r, span] = s.ids[n:], s.labels[n:]
            segment[r, path[:n]], segment[r, span] = -1, len(sequences)
            position[r, span] = torch.arange(n, len(s))
            at = span.stop
            path = torch.cat([path[:n], torch.arange(span.start, at)])
            until[r, path] = at
            sequences.append(s)
    return TokenBatch(ids, labels, until, segment, position, tuple(sequences))


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
