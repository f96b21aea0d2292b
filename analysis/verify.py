"""Does a report say what its run measured? Hashes and headline numbers, computed again.

The page: its text is what was written (hash). The files of the run: as they were (hashes). The numbers: every curve is
the mean of its items, the table follows from the curves, and the verdict from the items, by the thresholds it names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.reading import Run, input_error, read_run
from analysis.report_record import RECORD, file_hash, hashes, opened, page_hash, read_record
from analysis.tables import number, summary_table
from analysis.verdict import Thresholds, judge
from hooklearn.jsonable import jsonable

SHOWN = 5
"""Points of curves that are named, where many are wrong."""
TOLERANCE = 1e-9
"""Means of doubles, summed in any order."""
NOT_YET = {"faster": 0.0}
"""What a verdict was formed with where it does not name this number: it is older than the rule."""


@dataclass(frozen=True)
class Verification:
    """What was checked, and what is not as it was reported."""

    checked: tuple[str, ...]
    differences: tuple[str, ...]
    not_checked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.differences


def verify(target: str | Path) -> Verification:
    """Check a run folder with its report, or a page (with the run beside it, where there is one).

    Raises:
        InputError: neither a reported run nor a page that holds its record.
    """
    target = Path(target)
    if target.is_dir() and (target / "report.html").is_file() and not (target / "run.json").is_file():
        target = target / "report.html"  # written apart from its run
    if target.is_file():
        folder = target.parent
        record, found = _page(target)
        beside = (folder / RECORD).is_file()
        if beside and read_record(folder) != record:
            found.append(f"{RECORD} beside the page is another record than the one in it")
        if not (folder / "run.json").is_file():
            found += _pages(folder, record) if beside else []
            alone = "the run: no run folder beside the page"
            return Verification(("the page's text",), tuple(found), (alone,))
    elif target.is_dir():
        folder, record, found = target, read_record(target), []
        if (page := folder / "report.html").is_file():
            inside, found = _page(page)
            if inside != record:
                found.append(f"the record in report.html is another one than {RECORD}")
        else:
            found.append("report.html is not there")
    else:
        raise input_error(f"{target}: neither a run folder nor a report")
    found += _pages(folder, record)
    found += _files(folder, record)
    found += _numbers(folder, record)
    return Verification(
        ("the pages' text", f"{len(record['files'])} files", "table", "curves", "verdict"), tuple(found)
    )


def _page(path: Path) -> tuple[dict[str, Any], list[str]]:
    text = path.read_bytes().decode("utf-8", "replace")
    empty, record = opened(text, path)
    same = page_hash(empty) == record.get("page")
    return record, [] if same else [f"{path.name}: its text is not what was written"]


def _pages(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    for name, digest in record.get("pages", {}).items():
        path = folder / name
        if not path.is_file():
            yield f"{name}: is not there"
        elif page_hash(path.read_bytes().decode("utf-8", "replace")) != digest:
            yield f"{name}: its text is not what was written"


def _files(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    for name, digest in record["files"].items():
        if not (folder / name).is_file():
            yield f"{name}: is not there"
        elif file_hash(folder / name) != digest:
            yield f"{name}: another content than when the report was written"
    for name in hashes(folder).keys() - record["files"].keys():
        yield f"{name}: was not there when the report was written"


def _numbers(folder: Path, record: Mapping[str, Any]) -> list[str]:
    try:
        run = read_run(folder)
        return [*_table(run, record), *_curves(run), *_verdict(run, record)]
    except (ValueError, KeyError, TypeError) as error:
        return [f"the run cannot be read again: {error}"]


def _table(run: Run, record: Mapping[str, Any]) -> Iterator[str]:
    now = {row["arm"]: row for row in jsonable(summary_table(run).to_dict("records"))}
    for row in record["summary"]:
        found = now.get(row["arm"], {})
        for column, value in row.items():
            if column != "arm" and not _same(value, found.get(column)):
                yield f"{row['arm']}, {column}: reported {_shown(value)}, computed {_shown(found.get(column))}"


def _curves(run: Run) -> Iterator[str]:
    keys = ["attack", "setting", "arm", "seed", "step", "metric", "split"]
    if run.curves.empty:
        return
    items: Any = run.items.groupby(keys)["value"]
    complete = items.count() == items.size()  # a mean that leaves an item out is none
    means: dict[Any, float] = items.mean().where(complete).to_dict()
    curves: dict[Any, float] = run.curves.set_index(keys)["value"].to_dict()
    wrong = [key for key, value in curves.items() if not _same(value, means.get(key))]
    for key in wrong[:SHOWN]:
        place = " ".join(str(part) for part in key if part != "")
        yield f"curves, {place}: {_shown(curves[key])}, its items {_shown(means.get(key))}"
    if len(wrong) > SHOWN:
        yield f"and {len(wrong) - SHOWN} more points of curves"


def _verdict(run: Run, record: Mapping[str, Any]) -> Iterator[str]:
    said = record["verdict"]
    if said.get("verdict") is None:
        return
    then = {**NOT_YET, **given} if (given := said.get("thresholds")) else {}
    now = judge(run, write=False, thresholds=Thresholds(**then))
    if now.verdict != said["verdict"]:
        yield f"verdict: reported {said['verdict']}, computed {now.verdict} ({now.reason})"
    elif now.reason != said["reason"]:
        yield f"reason: reported {said['reason']!r}, computed {now.reason!r}"


def _same(a: Any, b: Any) -> bool:
    x, y = number(a), number(b)
    return (math.isnan(x) and math.isnan(y)) or math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _shown(value: Any) -> str:
    x = number(value)
    return "nothing" if math.isnan(x) else f"{x:.6g}"
