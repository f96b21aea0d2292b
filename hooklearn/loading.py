"""Corpora from a built-in name, a local file or the hub."""

from __future__ import annotations

import csv
import difflib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hooklearn import parquet
from hooklearn.corpora import EVERY_CORPUS
from hooklearn.corpora.corpus import COLUMNS, SHAPES, Corpus, Row, has_shape
from hooklearn.corpora.layouts import known_columns, laid_out, nearest_layout
from hooklearn.jsonable import jsonable
from hooklearn.types import InputError
from hooklearn.validation import arguments

LOCAL_FORMATS = (".jsonl", ".json", ".csv", ".parquet")


def load_corpus(
    *,
    name: str | None = None,
    path: str | Path | None = None,
    hub: str | None = None,
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    base: Path | None = None,
    options: Mapping[str, Any] | None = None,
    template: bool = True,
) -> Corpus:
    """A built-in name, a local file, or a hub data set, as a :class:`Corpus`.

    Args:
        columns: ``{"completion": "answer_text"}`` takes our ``completion`` from their ``answer_text``. Columns that
            nothing reads need no other name, and are refused one.
        layout: the published data set whose columns these are (``hooklearn list layouts``), after ``columns``.
        base: folder that a relative ``path`` starts from.
        options: what a built-in corpus is asked for, e.g. ``{"part": "forget"}``; with a layout, as in
            :func:`hooklearn.corpora.layouts.laid_out`.
        template: whether the model has a chat template; without one the answers of a layout begin with a space.
    Raises:
        InputError: unknown name or layout, missing file, missing columns, or an empty corpus.

    Examples:
        >>> load_corpus(name="capitals", options={"part": "T"}, limit=2).rows[0]["completion"]
        ' Asmara'
    """
    given = [k for k, v in (("name", name), ("path", path), ("hub", hub)) if v is not None]
    if len(given) != 1:
        raise InputError(f"a corpus needs exactly one of name, path, hub; got {given or 'none'}")
    for key, value in (("name", name), ("path", path), ("hub", hub)):
        if not (value is None or isinstance(value, str) or (key == "path" and isinstance(value, Path))):
            raise InputError(f"{key} of a corpus must be text, got {value!r:.60}")
    for key, value in (("config", config), ("revision", revision)):
        if value is not None and hub is None:
            raise InputError(
                f"corpus {name or str(path)!r}: {key} {value!r} is of a hub data set and would change nothing; leave "
                "it out"
            )
    if name is not None:
        if columns:
            raise InputError(f"corpus {name!r} is built in and its columns are ours; columns go with path or hub")
        if layout is not None:
            raise InputError(f"corpus {name!r} is built in and has no layout; a layout goes with path or hub")
        corpus = _builtin(name, options or {})
    else:
        if options and layout is None:
            raise InputError(f"options {dict(options)} of a corpus that is a file: give the layout that they belong to")
        if path is not None:
            rows = _read_local(Path(path), base or Path())
            called, source, where = Path(path).stem, str(path), f"path: {path}"
        else:
            rows = _from_hub(str(hub), config, split or "train", revision)
            called = source = str(hub)
            where = f"hub: {hub} config={config} split={split or 'train'} revision={revision}"
        rows = _mapped(rows, columns, source, known_columns(layout))
        if layout is not None:
            rows = tuple(laid_out(rows, layout, source, options, template=template))
            where += f" layout={layout}"
        elif rows and not has_shape(rows[0]):
            raise InputError(
                f"corpus {called!r}, row 0: columns {sorted(map(str, rows[0]))} make none of the known shapes: "
                f"{SHAPES}; map your columns with columns: {{prompt: ..., completion: ...}}{nearest_layout(rows[0])}"
            )
        corpus = Corpus(called, rows, where)
        check_rows(corpus)
    if split is not None and hub is None:
        found = sorted({str(r["split"]) for r in corpus.rows if "split" in r})
        if str(split) not in found:
            there = ", ".join(found) or "nothing"
            raise InputError(f"corpus {corpus.name!r} has no split {split!r}; its column 'split' has {there}")
        corpus = corpus.where(lambda r: "split" in r and str(r["split"]) == str(split))
    return corpus.take(limit)


OPTIONAL = ("alternative", "choices", "history", "template")
"""Columns that a row may lack: of one that is misspelt nobody would know."""


def check_rows(corpus: Corpus) -> None:
    """Raises InputError for rows that contradict themselves (a preference between a completion and itself, an answer
    that is not the one chosen), and for a column that is meant for one of ours, a letter or two apart."""
    _check_spelling(corpus)
    for i, row in enumerate(corpus.rows):
        if "alternative" in row and row["alternative"] == row.get("completion"):
            raise InputError(
                f"corpus {corpus.name!r}, row {i}: 'alternative' is the completion itself, {row['alternative']!r:.40}; "
                "give another completion to the same prompt, or leave the column out"
            )
        if "choices" in row and row.get("completion", row["choices"][row["answer"]]) != row["choices"][row["answer"]]:
            raise InputError(
                f"corpus {corpus.name!r}, row {i}: 'completion' is {row['completion']!r:.40}, and the answer is choice "
                f"{row['answer']}, {row['choices'][row['answer']]!r:.40}; they must be the same"
            )


def _check_spelling(corpus: Corpus) -> None:
    meant: dict[str, str] = {}
    for column in {str(column) for row in corpus.rows for column in row} - set(COLUMNS):
        near = difflib.get_close_matches(column, OPTIONAL, n=1, cutoff=0.85)
        # choice, alternatives or choices1 may well be somebody's own
        if near and near[0].rstrip("s") != column.rstrip("s") and not column[-1].isdigit():
            meant[column] = near[0]
    for i, row in enumerate(corpus.rows):
        for column, near in meant.items():
            if column in row and near not in row:
                raise InputError(
                    f"corpus {corpus.name!r}, row {i}: nothing reads the column {column!r}; did you mean {near!r}? "
                    "Call it otherwise if not"
                )


def _json(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def _csv_rows(file: Iterable[str]) -> Iterator[Row]:
    """Every column is text: 1984, 007 and NA are answers, not numbers. A comma too many is no other column."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(file, strict=True)
    rows = (fields for fields in reader if fields and (len(fields) > 1 or fields[0].strip()))
    try:
        header = next(rows, None)
        if header is None:
            raise ValueError("no line of column names")
        names = [name for name in header if name]  # spreadsheets leave empty columns behind
        if len(set(names)) < len(names):
            raise ValueError(f"a column is there twice: {names}")
        for fields in rows:
            if len(fields) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(fields)} fields, the header {len(header)}")
            yield {name: text for name, text in zip(header, fields, strict=True) if name}
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _read_local(given: Path, base: Path) -> list[Row]:
    path = base / given
    if path.is_dir():
        raise InputError(f"corpus path {str(path)!r} is a folder; give a file in it ({', '.join(LOCAL_FORMATS)})")
    if not path.is_file():
        start = "" if given.is_absolute() else f" (relative paths start from {base.resolve()})"
        raise InputError(f"corpus file not found: {path}{start}")
    if path.suffix not in LOCAL_FORMATS:
        raise InputError(
            f"corpus file {path.name!r}: unknown format {path.suffix!r}; known: {', '.join(LOCAL_FORMATS)}"
        )
    try:
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other line separators
            rows = [_json(line, i) for i, line in enumerate(lines, 1) if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8-sig"))  # editors put a mark at the beginning
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(_csv_rows(file))
        else:
            # dates, decimals and bytes, which JSON lacks, as text
            rows = json.loads(json.dumps(jsonable(parquet.read_rows(path)), default=str))
    except Exception as error:  # pyarrow raises many unrelated types on damaged files, json RecursionError
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"corpus file {path} cannot be read: {first}") from error
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise InputError(f"corpus file {path}: expected a list of objects, one a row")
    return rows


def _mapped(
    rows: Sequence[Row], columns: Mapping[str, str] | None, source: str, known: Sequence[str]
) -> tuple[Row, ...]:
    """Rename their columns to ours, which must be ``known``; ask for the nearest name when one is missing."""
    if not columns or not rows:
        return tuple(rows)
    for ours, theirs in columns.items():
        if ours not in known:
            near = difflib.get_close_matches(ours, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"corpus {source}: columns: nothing reads {ours!r}; valid: {', '.join(known)}{hint}")
        if theirs not in rows[0]:
            near = difflib.get_close_matches(theirs, map(str, rows[0]), n=1)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise InputError(f"corpus {source}: no column {theirs!r} among {sorted(map(str, rows[0]))}{hint}")
    taken = set(columns.values())
    return tuple(
        {k: v for k, v in r.items() if k not in taken} | {ours: r.get(theirs) for ours, theirs in columns.items()}
        for r in rows
    )


def _from_hub(hub: str, config: str | None, split: str, revision: str | None) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(hub, config, split=split, revision=revision)
    except Exception as error:  # the datasets library raises a dozen kinds for "not there"
        raise InputError(
            f"hub data set {hub!r} (config {config!r}, split {split!r}) could not be loaded: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    return [dict(r) for r in loaded]  # type: ignore[call-overload]


def _builtin(name: str, options: Mapping[str, Any]) -> Corpus:
    build = EVERY_CORPUS.get(name).build
    valid = inspect.signature(build).parameters
    for option in options:
        if option not in valid:
            near = difflib.get_close_matches(str(option), valid, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"corpus {name!r} has no option {option!r}; valid: {', '.join(valid) or 'none'}{hint}")
    corpus = build(**arguments(build, options, f"corpus {name!r}"))
    if not isinstance(corpus, Corpus):
        raise InputError(
            f"corpus {name!r} of {EVERY_CORPUS.package(name)} gave {corpus!r:.60}, which is no hooklearn.Corpus"
        )
    return corpus
