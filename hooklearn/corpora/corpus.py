"""A corpus: named rows in one of the conventional shapes.

A row is ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}``, optionally with ``history`` (earlier turns),
``alternative`` (a good completion to the same prompt), ``choices`` + ``answer`` (multiple choice), ``group`` (what
must not be split apart) and ``split``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from hooklearn.types import InputError

SHAPES = '{"prompt", "completion"}, {"messages"} or {"text"}'
COLUMNS = (
    "prompt", "completion", "messages", "text", "history", "alternative", "choices", "answer", "group", "split",
    "template", "fact", "relation", "quality", "set",
)  # fmt: skip
"""What something here reads of a row; any other column is kept as it is, and changes nothing."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Named rows with a content hash. Rows are never changed in place."""

    name: str
    rows: tuple[Row, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"corpus {self.name!r} is empty ({self.source or 'no source'}); it needs a row")
        for i, row in enumerate(self.rows):
            _check_row(self.name, i, row)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, i: int) -> Row:
        return self.rows[i]

    @property
    def hash(self) -> str:
        """sha256 over the rows' content, independent of where they came from."""
        return hashlib.sha256("\n".join(map(_line, self.rows)).encode()).hexdigest()

    @property
    def groups(self) -> list[str]:
        """Of each row what it must not be split from; a row of no group is one of its own."""
        named = [group_of(row) for row in self.rows]
        taken = set(named)
        alone = (str(i) if str(i) not in taken else f"row {i}" for i in range(len(named)))
        return [own if group is None else group for own, group in zip(alone, named, strict=True)]

    @property
    def has_prompts(self) -> bool:
        """Whether every row asks something; running text has nothing to sample an answer to."""
        return all("prompt" in row or "messages" in row for row in self.rows)

    def shared_with(self, other: Corpus) -> int:
        """How many of the other's rows are here too, by what they say.

        Examples:
            >>> mine = Corpus("mine", ({"prompt": "a", "completion": " b", "group": "1"},))
            >>> mine.shared_with(Corpus("yours", ({"prompt": "a", "completion": " b"}, {"text": "c"})))
            1
        """
        here = {_said(row) for row in self.rows}
        return sum(_said(row) in here for row in other.rows)

    def without(self, other: Corpus) -> Corpus:
        """The rows that the other does not have, by what they say.

        Raises:
            InputError: it has all of them.
        """
        there = {_said(row) for row in other.rows}
        return Corpus(self.name, tuple(row for row in self.rows if _said(row) not in there), self.source)

    @property
    def repeated(self) -> int:
        """Rows that say what a row before them says.

        Examples:
            >>> Corpus("mine", ({"text": "a", "group": "1"}, {"text": "b"}, {"text": "a"})).repeated
            1
        """
        return len(self.rows) - len({_said(row) for row in self.rows})

    def take(self, n: int | None) -> Corpus:
        """The first ``n`` rows (all when None). Raises InputError for less than one.

        Examples:
            >>> len(Corpus("mine", ({"text": "one"}, {"text": "two"})).take(1))
            1
        """
        if n is None:
            return self
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise InputError(f"corpus {self.name!r}: {n!r:.60} rows were asked for; valid: 1 or more")
        return Corpus(self.name, self.rows[:n], self.source)

    def check_alike(self, role: str) -> None:
        """Raises InputError where some rows have what a measure needs and others do not: it would be taken of none."""
        for column, measure in (("alternative", "preference and the referee's line"), ("choices", "preference")):
            without = [i for i, row in enumerate(self.rows) if column not in row]
            if 0 < len(without) < len(self.rows):
                raise InputError(
                    f"corpora.{role}: {len(without)} of {len(self.rows)} rows have no {column!r} (row {without[0]} is "
                    f"one), and {measure} would be left out for all; give it to every row, or to none"
                )

    def where(self, keep: Callable[[Row], bool]) -> Corpus:
        return Corpus(self.name, tuple(r for r in self.rows if keep(r)), self.source)

    def alternatives(self) -> Corpus | None:
        """The good completions to the same prompts, where every row has one."""
        if not all("alternative" in r for r in self.rows):
            return None
        rows = tuple({**r, "completion": r["alternative"]} for r in self.rows)
        return Corpus(f"{self.name}/alternative", rows, self.source)

    def split(self, **shares: float) -> dict[str, Corpus]:
        """Disjoint parts by group, in the order of a hash of the group's name.

        The order of the rows does not matter where they have groups (one of no group is known by its place), and
        another group moves at most one across each border.

        Raises:
            InputError: no shares, or one that is not positive.
        Examples:
            >>> rows = tuple({"text": f"{fact} {phrasing}", "group": fact} for fact in "abc" for phrasing in "xy")
            >>> {name: len(part) for name, part in Corpus("facts", rows).split(forget=2, heldout=1).items()}
            {'forget': 4, 'heldout': 2}
        """
        if not shares or not all(isinstance(s, Real) and 0 < float(s) < math.inf for s in shares.values()):
            raise InputError(
                f"corpus {self.name!r}: shares must be positive, as in split(forget=2, heldout=1); got {shares}"
            )
        order = sorted(set(self.groups), key=lambda g: hashlib.sha256(f"split:{g}".encode()).hexdigest())
        total, parts, start = sum(shares.values()), {}, 0.0
        for name, share in shares.items():
            end = start + share / total
            chosen = set(order[round(start * len(order)) : round(end * len(order))])
            kept = tuple(r for r, g in zip(self.rows, self.groups, strict=True) if g in chosen)
            parts[name] = Corpus(f"{self.name}/{name}", kept, self.source)
            start = end
        return parts

    def to_dataframe(self):
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {len(self)} rows, {self.hash[:12]})"


def answer_of(row: Row) -> str:
    """What is scored of a row that asks something: its completion, or what is said last."""
    return row["completion"] if "completion" in row else row["messages"][-1]["content"]


def group_of(row: Row) -> str | None:
    """None for a row of no group: tables write that as null, NaN or an empty cell."""
    group = row.get("group")
    return None if group is None or group == "" or group != group else str(group)


def _said(row: Row) -> str:
    return repr([row.get(k) for k in ("prompt", "completion", "text", "messages")])


def _line(row: Row) -> str:
    """A row as JSON; what JSON does not know (a date, say) as its text."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)


def has_shape(row: Row) -> bool:
    """Whether its columns make one of the shapes; what is in them is another matter."""
    return {"prompt", "completion"} <= row.keys() or "messages" in row or "text" in row


def _check_row(name: str, i: int, row: Row) -> None:
    if not isinstance(row, dict):
        raise InputError(
            f"corpus {name!r}, row {i}: must be a dict such as {{'text': ...}}, got {type(row).__name__} {row!r:.40}"
        )
    try:
        _line(row).encode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
        why = "half a character (a lone surrogate)" if isinstance(error, UnicodeEncodeError) else str(error)
        raise InputError(f"corpus {name!r}, row {i}: is no text that can be encoded: {why}") from error
    if not has_shape(row):
        raise InputError(
            f"corpus {name!r}, row {i}: columns {sorted(map(str, row))} make none of the known shapes: {SHAPES}; "
            "map your columns with columns: {prompt: ..., completion: ...}"
        )
    for key in ("prompt", "completion", "text", "alternative", "fact"):
        if key in row and not isinstance(row[key], str):
            raise InputError(f"corpus {name!r}, row {i}: {key!r} must be text, got {type(row[key]).__name__}")
    if "messages" in row and not _is_conversation(row["messages"]):
        raise InputError(
            f"corpus {name!r}, row {i}: 'messages' must be a list of at least two "
            '{"role": ..., "content": ...}, the last of which is scored'
        )
    if "messages" in row and "completion" not in row and (role := row["messages"][-1]["role"]) in ("user", "system"):
        raise InputError(
            f"corpus {name!r}, row {i}: the last of 'messages' is scored, and is said by {role!r}; end with the "
            "assistant's, or give 'completion'"
        )
    if row.get("template", "chat") not in ("chat", "none", "applied"):
        raise InputError(
            f"corpus {name!r}, row {i}: 'template' is {row['template']!r:.40}; valid: 'chat' (the model's own, as "
            "without it), 'none' (running text), 'applied' (a template wrote the prompt)"
        )
    if "history" in row and not _are_turns(row["history"]):
        raise InputError(f"corpus {name!r}, row {i}: 'history' must be a list of {{'role': ..., 'content': ...}}")
    if "choices" in row:
        if "prompt" not in row and "messages" not in row:
            raise InputError(f"corpus {name!r}, row {i}: a choice item needs a 'prompt' or 'messages'")
        choices, answer = row["choices"], row.get("answer")
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise InputError(f"corpus {name!r}, row {i}: 'choices' must be a list of texts, got {choices!r:.60}")
        if len(set(choices)) < max(2, len(choices)):
            raise InputError(
                f"corpus {name!r}, row {i}: 'choices' must be two or more, each different; got {choices!r:.60}"
            )
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise InputError(
                f"corpus {name!r}, row {i}: a choice item needs 'answer', an index below {len(choices)}; got {answer!r}"
            )


def as_corpus(value: Any, role: str) -> Corpus:
    """The value, where it is a corpus. Raises InputError for what one might take for one: a path, rows."""
    if isinstance(value, Corpus):
        return value
    raise InputError(
        f"{role} must be a hooklearn.Corpus, got {type(value).__name__} {value!r:.40}; load one with "
        "hl.load_corpus(path=...), or make one of rows with hl.Corpus(name, rows)"
    )


def _is_conversation(messages: Any) -> bool:
    return _are_turns(messages) and len(messages) >= 2


def _are_turns(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and all(isinstance(m, dict) for m in messages)
        and all(isinstance(m.get(key), str) for m in messages for key in ("role", "content"))
    )
