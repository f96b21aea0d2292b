"""Tokens: rows of a corpus -> sequences, of which only completion tokens carry loss (-> batches: ``packing``)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jinja2 import TemplateError

from hooklearn.corpora.corpus import Corpus, Row, answer_of
from hooklearn.loading import load_corpus
from hooklearn.packing import ROW, Encoded, TokenBatch, batches, cycle
from hooklearn.types import InputError

__all__ = [
    "ROW", "Corpus", "Encoded", "Row", "TokenBatch", "batches", "cycle", "encode", "encode_choices", "load_corpus",
]  # fmt: skip


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
    cut: dict[str, Any] = {
        k: first_tokens(str(row[k]), most, tokenizer) for k in ("text", "completion", "alternative") if k in row
    }
    if "choices" in row:
        cut["choices"] = [first_tokens(str(choice), most, tokenizer) for choice in row["choices"]]
    if "messages" in row:
        *before, last = row["messages"]
        cut["messages"] = [*before, {**last, "content": first_tokens(str(last["content"]), most, tokenizer)}]
    return {**row, **cut}


def first_tokens(text: str, count: int, tokenizer: Any) -> str:
    """As far as the first ``count`` tokens of a text go."""
    if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= count:
        return text  # also where the tokenizer cannot say where its tokens end
    return beginning(text, count, tokenizer)[0]


def beginning(text: str, tokens: int, tokenizer: Any) -> tuple[str, str]:
    """The first ``tokens`` tokens of a text, at most all but the last, and the rest of it; fewer where a character of
    several tokens would be cut."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    given = min(tokens, len(spans) - 1)
    while given > 0 and spans[given - 1][1] > min(spans[given][0], len(text) - 1):  # each has the whole character
        given -= 1
    cut = spans[given - 1][1] if given > 0 else 0
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


def worded(completions: Sequence[str], tokenizer: Any) -> list[bool]:
    """Of which there is something to score: not of white space or special tokens alone, which a model can spell out."""
    if not completions:
        return []
    special = set(tokenizer.all_special_ids or [])
    given = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    return [bool(text.strip()) and not special.issuperset(ids) for text, ids in zip(completions, given, strict=True)]


def templated(row: Row, tokenizer: Any) -> bool:
    """Whether a chat template writes the row's prompt, or has written it: then it wrote the beginning of text too."""
    kind = row.get("template")
    return kind == "applied" or (kind != "none" and bool(getattr(tokenizer, "chat_template", None)))


def prompt_tokens(prompts: Sequence[str], tokenizer: Any, written: Sequence[bool] = ()) -> list[list[int]]:
    """What a model is given to go on from. A plain prompt begins with BOS where the tokenizer itself begins a text so:
    without it Gemma and Llama are not themselves.

    Args:
        written: by a chat template (see :func:`templated`), which is taken as it is; where not given, none is.
    """
    if not prompts:  # an empty list is an error to tokenizers
        return []
    found = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    bos = _begins_with(tokenizer)
    taken = written or [False] * len(found)
    return [ids if as_is or ids[:1] == bos else [*bos, *ids] for ids, as_is in zip(found, taken, strict=True)]


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after an answer; EOS where it writes none, or there is none.

    The two are often the same, and not in the templates of Gemma (``<end_of_turn>``) and Phi-3 (``<|end|>``).
    """
    if not getattr(tokenizer, "chat_template", None):
        return tokenizer.eos_token_id
    answer = "unmistakable"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        written = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return tokenizer.eos_token_id
    added = getattr(tokenizer, "added_tokens_decoder", {})  # Phi-3 does not name its own among the special ones
    special = {*(tokenizer.all_special_ids or []), *(i for i, token in added.items() if token.special)}
    behind = tokenizer(written.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    return next((i for i in behind if i in special), tokenizer.eos_token_id)


def _begins_with(tokenizer: Any) -> list[int]:
    """BOS, where the tokenizer itself begins a text so."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []


def plain(turns: Sequence[Mapping[str, str]]) -> str:
    """Turns as running text: an answer follows its question; demonstrations, and what is said before a question, are
    lines of their own."""
    text = ""
    for turn, after in itertools.zip_longest(turns, turns[1:]):
        asks = turn["role"] == "user" and (after is None or after["role"] == "assistant")
        apart = turn["role"] != "assistant" and turn["content"][-1:].isspace()
        text += turn["content"] + ("" if asks or apart else "\n")
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


def mark_of(tokenizer: Any) -> list[int]:
    """A line's end, behind which texts that go on from others are read and written; empty where nothing is needed.

    SentencePiece puts a space before whatever it encodes, and takes one from whatever it decodes. That is right where a
    text begins, and only there.
    """
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"][:1])
    puts_a_space = bool(first) and str(first[0]).startswith("▁")
    return tokenizer("\n", add_special_tokens=False)["input_ids"] if puts_a_space else []


def scored_tokens(texts: Sequence[tuple[str, str]], tokenizer: Any) -> list[list[int]]:
    """Tokens of the second of each two, which goes on from the first: behind a :func:`mark_of`, where there is one."""
    if not texts:  # an empty list is an error to tokenizers
        return []
    alone = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    if not (mark := mark_of(tokenizer)):
        return alone
    behind = tokenizer(["\n" + text for _, text in texts], add_special_tokens=False)["input_ids"]
    goes_on = [bool(before) and b[: len(mark)] == mark for (before, _), b in zip(texts, behind, strict=True)]
    return [b[len(mark) :] if on else a for on, a, b in zip(goes_on, alone, behind, strict=True)]


def _tokens(
    name: str, rows: Sequence[Numbered], tokenizer: Any, end: bool | Literal["turn"] = False
) -> list[tuple[list[int], list[int], list[int]]]:
    """Of every row (BOS of a plain prompt, what comes before, what is scored), however long they are."""
    if not rows:
        return []
    texts = [split_row(row, tokenizer) for _, row in rows]
    # all in one go: asked text by text, a tokenizer takes longer than a small model takes to read them
    asked = tokenizer([before for before, _ in texts], add_special_tokens=False)["input_ids"]
    given = zip(asked, scored_tokens(texts, tokenizer), strict=True)
    special, bos = set(tokenizer.all_special_ids or []), _begins_with(tokenizer)
    turns_end = end_of_turn(tokenizer) if end else None
    found = []
    for (i, row), (prompt, completion), (before, after) in zip(rows, texts, given, strict=True):
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
        last = tokenizer.eos_token_id if not templated(row, tokenizer) else turns_end
        if ended and last is not None and prompt:
            after = [*after, last]
        found.append((start, before, after))
    return found
