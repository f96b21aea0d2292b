"""Tokens: rows of a corpus -> sequences -> batches with explicit masks.

Only completion tokens carry loss; padding is masked by an explicit attention mask, never by ``ids != pad``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooklearn.corpus import Corpus, Row, load_corpus
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
    """Padded, packed or prompt-sharing sequences.

    A row holds blocks that never see one another; a block is one sequence, or a prompt (segment -1) followed by
    several completions of it that all see the prompt and not each other.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    """False on padding."""
    labels: Bool[Tensor, "batch pos"]
    block: Int[Tensor, "batch pos"]
    """Number of the block in its row; -1 on padding."""
    segment: Int[Tensor, "batch pos"]
    """Index into ``sequences``; -1 on padding and on a shared prompt."""
    position: Int[Tensor, "batch pos"]
    """Position within the sequence."""
    sequences: tuple[Encoded, ...] = field(repr=False)

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
    def n_tokens(self) -> int:
        return int(self.mask.sum())

    def attention(self) -> Bool[Tensor, "batch 1 pos pos"]:
        """Causal within a block: token t sees s <= t of its own segment and of the shared prompt."""
        same_block = self.block[:, :, None] == self.block[:, None, :]
        same_segment = self.segment[:, :, None] == self.segment[:, None, :]
        prompt = (self.segment == -1)[:, None, :]
        causal = torch.ones(same_block.shape[-2:], dtype=torch.bool, device=same_block.device).tril()
        return (same_block & (same_segment | prompt) & causal)[:, None]


def encode(corpus: Corpus, tokenizer: Any, *, end: bool = False, max_length: int = 512) -> list[Encoded]:
    """Tokenise every row; only completion tokens (all tokens of plain text) are labelled.

    Chat models get their own template, except for rows with ``"template": "none"``.

    Args:
        end: also label the end-of-turn token after a completion (training; never scoring).
    Raises:
        InputError: a row has no token left to score (only special tokens, or an empty completion).
    """
    out = []
    for i, row in enumerate(corpus.rows):
        prompt, completion = split_row(row, tokenizer)
        out.append(_encode_one(corpus.name, i, prompt, completion, tokenizer, end, max_length))
    return out


def encode_choices(corpus: Corpus, tokenizer: Any, *, max_length: int = 512) -> list[Encoded]:
    """Every choice of every multiple-choice row as a completion of its own."""
    out = []
    for i, row in enumerate(corpus.rows):
        for c, choice in enumerate(row["choices"]):
            prompt, completion = split_row({**row, "completion": choice}, tokenizer)
            one = _encode_one(corpus.name, i, prompt, completion, tokenizer, False, max_length)
            out.append(Encoded(one.ids, one.labels, i, c))
    return out


def split_row(row: Row, tokenizer: Any) -> tuple[str, str]:
    """(text before, text to be scored), with the chat template where the model has one.

    A ``completion`` beside ``messages`` stands in for the last one; ``history`` comes before the last question.
    """
    if "text" in row and "completion" not in row:
        return "", row["text"]
    if "messages" in row:
        *before, last = row["messages"]
        completion = row.get("completion", last["content"])
    else:
        before, completion = [{"role": "user", "content": row["prompt"]}], row["completion"]
    before = [*before[:-1], *row.get("history", []), *before[-1:]]
    if not getattr(tokenizer, "chat_template", None) or row.get("template") == "none":
        return _plain(before), completion
    text = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    return text, completion


def _plain(turns: Sequence[Mapping[str, str]]) -> str:
    """Turns as running text: an answer follows its question, demonstrations are lines of their own."""
    text = ""
    for turn in turns:
        text += turn["content"] + ("\n" if turn["role"] == "assistant" else "")
    return text


def _encode_one(name: str, i: int, prompt: str, completion: str, tokenizer: Any, end: bool, max_length: int) -> Encoded:
    special = set(tokenizer.all_special_ids or [])
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    after = tokenizer(completion, add_special_tokens=False)["input_ids"]
    if all(t in special for t in after):
        raise InputError(
            f"corpus {name!r}, row {i}: no token to score in {completion[:40]!r} (empty or only special tokens)"
        )
    if not before:
        bos = tokenizer.bos_token_id
        before = [bos] if bos is not None else [after.pop(0)]
        if not after:
            raise InputError(f"corpus {name!r}, row {i}: a single token cannot be scored: {completion!r}")
    if end and tokenizer.eos_token_id is not None and prompt:
        after = [*after, tokenizer.eos_token_id]
    after = after[:max_length]
    before = before[-max(1, max_length - len(after)) :]
    ids = torch.tensor([*before, *after])
    labels = torch.zeros(len(ids), dtype=torch.bool)
    labels[len(before) :] = True
    return Encoded(ids, labels, i)


def batches(
    sequences: Sequence[Encoded],
    *,
    max_tokens: int = 1024,
    pack: bool = False,
    share_prompts: bool = False,
    seed: int | None = None,
    pad_id: int = 0,
) -> list[TokenBatch]:
    """Group sequences into batches of at most ``max_tokens`` tokens, padding included.

    Args:
        pack: sequences share rows, each attending to itself only.
        share_prompts: completions of the same prompt share its tokens (four choices cost little more than one);
            the scores are the same.
        seed: shuffle the order of the batches, by a generator of its own.
    """
    blocks = _shared(sequences) if share_prompts else [_Block((), (s,)) for s in sequences]
    order = sorted(blocks, key=len, reverse=True)
    rows = _pack(order, max_tokens // 4) if pack else [[b] for b in order]
    out: list[TokenBatch] = []
    while rows:
        width = sum(map(len, rows[0]))
        fit = max(1, max_tokens // max(1, width))
        out.append(_collate(rows[:fit], pad_id))
        rows = rows[fit:]
    if seed is not None:
        random.Random(seed).shuffle(out)
    return out


@dataclass(frozen=True)
class _Block:
    """A prompt and the sequences that begin with it; one whole sequence where the prompt is empty."""

    prompt: tuple[int, ...]
    sequences: tuple[Encoded, ...]

    def __len__(self) -> int:
        n = len(self.prompt)
        return n + sum(len(s) - n for s in self.sequences)


def _shared(sequences: Sequence[Encoded]) -> list[_Block]:
    """Sequences grouped by their unlabelled beginning, less its last token: that one predicts the first
    completion token of *each* sequence, so every sequence keeps a copy of it."""
    groups: dict[tuple[int, ...], list[Encoded]] = {}
    for s in sequences:
        first = int(s.labels.nonzero()[0])
        groups.setdefault(tuple(s.ids[: first - 1].tolist()), []).append(s)
    return [
        block
        for prompt, group in groups.items()
        for block in ([_Block(prompt, tuple(group))] if len(group) > 1 else [_Block((), (group[0],))])
    ]


def _pack(order: Sequence[_Block], width: int) -> list[list[_Block]]:
    """First-fit decreasing into rows of at most ``width`` tokens."""
    rows: list[list[_Block]] = []
    room: list[int] = []
    for block in order:
        for r, left in enumerate(room):
            if len(block) <= left:
                rows[r].append(block)
                room[r] -= len(block)
                break
        else:
            rows.append([block])
            room.append(max(width, len(block)) - len(block))
    return sorted(rows, key=lambda r: -sum(map(len, r)))


def _collate(rows: Sequence[Sequence[_Block]], pad_id: int) -> TokenBatch:
    shape = (len(rows), max(sum(map(len, r)) for r in rows))
    ids = torch.full(shape, pad_id)
    labels = torch.zeros(shape, dtype=torch.bool)
    block, segment = torch.full(shape, -1), torch.full(shape, -1)
    position = torch.zeros(shape, dtype=torch.long)
    sequences: list[Encoded] = []
    for r, row in enumerate(rows):
        at = 0
        for b, one in enumerate(row):
            n = len(one.prompt)
            block[r, at : at + len(one)] = b
            ids[r, at : at + n] = torch.tensor(one.prompt, dtype=torch.long)
            position[r, at : at + n] = torch.arange(n)
            at += n
            for s in one.sequences:
                span = slice(at, at + len(s) - n)
                ids[r, span], labels[r, span] = s.ids[n:], s.labels[n:]
                segment[r, span] = len(sequences)
                position[r, span] = torch.arange(n, len(s))
                sequences.append(s)
                at += len(s) - n
    return TokenBatch(ids, block >= 0, labels, block, segment, position, tuple(sequences))


def cycle(
    sequences: Sequence[Encoded], *, max_tokens: int, seed: int, epochs: int, pad_id: int = 0
) -> Iterator[TokenBatch]:
    """Batches for ``epochs`` passes; which sequences share a batch changes from pass to pass."""
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
            yield _collate([[_Block((), (s,))] for s in shuffled[start:end]], pad_id)
            start = end
