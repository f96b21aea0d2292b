"""Corpora: named rows in one of the conventional shapes, from a built-in name, a local file or the hub.

A row is ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}``, optionally with ``history`` (earlier turns),
``alternative`` (a good completion to the same prompt), ``choices`` + ``answer`` (multiple choice), ``group`` (what
must not be split apart) and ``split``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooklearn.types import InputError

SHAPES = '{"prompt", "completion"}, {"messages"} or {"text"}'
LOCAL_FORMATS = (".jsonl", ".json", ".csv", ".parquet")

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

    @property
    def hash(self) -> str:
        """sha256 over the rows' content, independent of where they came from."""
        return hashlib.sha256("\n".join(map(_line, self.rows)).encode()).hexdigest()

    @property
    def groups(self) -> list[str]:
        return [str(row.get("group", i)) for i, row in enumerate(self.rows)]

    def take(self, n: int | None) -> Corpus:
        """The first ``n`` rows (all when None).

        Examples:
            >>> len(Corpus("mine", ({"text": "one"}, {"text": "two"})).take(1))
            1
        """
        return self if n is None else Corpus(self.name, self.rows[:n], self.source)

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

        The order of the rows does not matter, and another group moves at most one across each border.

        Examples:
            >>> rows = tuple({"text": f"{fact} {phrasing}", "group": fact} for fact in "abc" for phrasing in "xy")
            >>> {name: len(part) for name, part in Corpus("facts", rows).split(forget=2, heldout=1).items()}
            {'forget': 4, 'heldout': 2}
        """
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


def _line(row: Row) -> str:
    """A row as JSON; what JSON does not know (a date, say) as its text."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)


def _check_row(name: str, i: int, row: Row) -> None:
    try:
        _line(row).encode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
        why = "half a character (a lone surrogate)" if isinstance(error, UnicodeEncodeError) else str(error)
        raise InputError(f"corpus {name!r}, row {i}: is no text that can be encoded: {why}") from error
    if not ({"prompt", "completion"} <= row.keys() or "messages" in row or "text" in row):
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
    if "history" in row and not _are_turns(row["history"]):
        raise InputError(f"corpus {name!r}, row {i}: 'history' must be a list of {{'role': ..., 'content': ...}}")
    if "choices" in row:
        if "prompt" not in row and "messages" not in row:
            raise InputError(f"corpus {name!r}, row {i}: a choice item needs a 'prompt' or 'messages'")
        choices, answer = row["choices"], row.get("answer")
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise InputError(f"corpus {name!r}, row {i}: 'choices' must be a list of texts, got {choices!r:.60}")
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise InputError(
                f"corpus {name!r}, row {i}: a choice item needs 'answer', an index below {len(choices)}; got {answer!r}"
            )


def _is_conversation(messages: Any) -> bool:
    return _are_turns(messages) and len(messages) >= 2


def _are_turns(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and all(isinstance(m, dict) for m in messages)
        and all(isinstance(m.get(key), str) for m in messages for key in ("role", "content"))
    )


def load_corpus(
    *,
    name: str | None = None,
    path: str | Path | None = None,
    hub: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    base: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Corpus:
    """A built-in name, a local file, or a hub data set, as a :class:`Corpus`.

    Args:
        columns: ``{"completion": "answer_text"}`` takes our ``completion`` from their ``answer_text``.
        base: folder that a relative ``path`` starts from.
        options: what a built-in corpus is asked for, e.g. ``{"part": "forget"}``.
    Raises:
        InputError: unknown name, missing file, missing columns, or an empty corpus.

    Examples:
        >>> load_corpus(name="capitals", options={"part": "T"}, limit=2).rows[0]["completion"]
        ' Asmara'
    """
    given = [k for k, v in (("name", name), ("path", path), ("hub", hub)) if v is not None]
    if len(given) != 1:
        raise InputError(f"a corpus needs exactly one of name, path, hub; got {given or 'none'}")
    if name is not None:
        corpus = _builtin(name, options or {})
    elif path is not None:
        rows = _read_local(Path(path) if base is None else base / path)
        corpus = Corpus(Path(path).stem, _mapped(rows, columns, str(path)), f"path: {path}")
    else:
        corpus = _from_hub(str(hub), config, split or "train", revision, columns)
    if split is not None and hub is None:
        found = sorted({str(r["split"]) for r in corpus.rows if "split" in r})
        if split not in found:
            there = ", ".join(found) or "nothing"
            raise InputError(f"corpus {corpus.name!r} has no split {split!r}; its column 'split' has {there}")
        corpus = corpus.where(lambda r: r.get("split") == split)
    return corpus.take(limit)


def _json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def _read_local(path: Path) -> list[Row]:
    if not path.is_file():
        raise InputError(f"corpus file not found: {path} (relative paths start from the config file)")
    if path.suffix not in LOCAL_FORMATS:
        raise InputError(
            f"corpus file {path.name!r}: unknown format {path.suffix!r}; known: {', '.join(LOCAL_FORMATS)}"
        )
    try:
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other line separators
            rows = [_json(line, i) for i, line in enumerate(lines, 1) if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            import pandas as pd

            # every column of a csv file is text: 1984, 007 and NA are answers, not numbers
            text = {"dtype": str, "keep_default_na": False}
            frame = pd.read_csv(path, **text) if path.suffix == ".csv" else pd.read_parquet(path)
            rows = json.loads(str(frame.to_json(orient="records")))
    except Exception as error:  # pyarrow raises many unrelated types on damaged files, json RecursionError
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"corpus file {path} cannot be read: {first}") from error
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise InputError(f"corpus file {path}: expected a list of objects, one a row")
    return rows


def _mapped(rows: Sequence[Row], columns: Mapping[str, str] | None, source: str) -> tuple[Row, ...]:
    """Rename their columns to ours; ask for the nearest name when one is missing."""
    if not columns or not rows:
        return tuple(rows)
    for theirs in columns.values():
        if theirs not in rows[0]:
            near = difflib.get_close_matches(theirs, map(str, rows[0]), n=1)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise InputError(f"corpus {source}: no column {theirs!r} among {sorted(map(str, rows[0]))}{hint}")
    taken = set(columns.values())
    return tuple(
        {k: v for k, v in r.items() if k not in taken} | {ours: r.get(theirs) for ours, theirs in columns.items()}
        for r in rows
    )


def _from_hub(
    hub: str,
    config: str | None,
    split: str,
    revision: str | None,
    columns: Mapping[str, str] | None,
) -> Corpus:
    import datasets

    try:
        loaded = datasets.load_dataset(hub, config, split=split, revision=revision)
    except Exception as error:  # the datasets library raises a dozen kinds for "not there"
        raise InputError(
            f"hub data set {hub!r} (config {config!r}, split {split!r}) could not be loaded: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    source = f"hub: {hub} config={config} split={split} revision={revision}"
    return Corpus(hub, _mapped([dict(r) for r in loaded], columns, hub), source)  # type: ignore[call-overload]


def _builtin(name: str, options: Mapping[str, Any]) -> Corpus:
    from hooklearn.corpora import BUILTIN  # built-in corpora know their own parts

    if name not in BUILTIN:
        near = difflib.get_close_matches(name, BUILTIN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown corpus {name!r}; built in: {', '.join(BUILTIN)}{hint}")
    return BUILTIN[name].build(**options)
