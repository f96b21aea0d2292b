"""One measured thing beside what chance, or a model that never had the behaviour, would give.

hooklearn measures and writes; whether it speaks against a removal is judged by ``analysis.evidence.judge``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from hooklearn.jsonable import jsonable
from hooklearn.types import NAN

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["high", "low"]
Role = Literal["decides", "reports", "alarm"]

DETAIL = ("site", "layer", "arm", "value", "null", "stderr", "n")
"""Columns of every detail frame; more are welcome."""
WHOLE = "model"
"""The site of a number that belongs to no single layer or weight."""


def _no_detail() -> pd.DataFrame:
    return detail([])


def detail(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of one detail frame; columns that were not measured are NaN."""
    import pandas as pd

    rows = list(rows)
    more = [key for row in rows[:1] for key in row if key not in DETAIL]
    return pd.DataFrame(rows, columns=[*DETAIL, *more])


@dataclass(frozen=True)
class Evidence:
    """A value, its null distribution, its error, and one sentence on what it would mean."""

    name: str
    value: float
    null: tuple[float, ...] = field(repr=False)
    """The value under the null: permutations, rotations, or quantiles of a known distribution."""
    stderr: float
    n: int
    """Independent units behind the value: groups of texts, or sites for a statement about weights."""
    direction: Direction
    """The side of the null that speaks against a removal (decides, reports) or that alarms."""
    meaning: str
    """What it would mean, in one sentence; where it was not measured, why not."""
    detail: pd.DataFrame = field(repr=False, compare=False, default_factory=_no_detail)
    """One row per layer or site and arm: :data:`DETAIL`."""
    role: Role = "reports"
    """``decides``: may take a REMOVED back; ``reports``: printed beside; ``alarm``: a reason to doubt."""
    anchors: tuple[float, float] = (NAN, NAN)
    """(value of a model that never had it, value of the unedited model): 0 and 1 of the share that was kept."""
    null_meaning: str = ""
    """What the null is, in words."""

    @staticmethod
    def missing(name: str, why: str, *, direction: Direction = "high", role: Role = "reports") -> Evidence:
        """Not measured is NaN, never 0; the meaning says why."""
        return Evidence(name, NAN, (), NAN, 0, direction, f"not measured: {why}", role=role)

    @property
    def kept(self) -> float:
        """Where the value lies between the anchors: 0 as if never learned, 1 as if never edited.

        NaN where they do not differ, or the unedited model lies on the wrong side of the never-learned one.
        """
        removed, intact = self.anchors
        right = intact < removed if self.direction == "low" else intact > removed
        return (self.value - removed) / (intact - removed) if right else NAN


def to_records(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Plain values for JSON: NaN and infinity become None, the detail frame a list of rows."""
    records = []
    for e in evidence:
        record = {f.name: getattr(e, f.name) for f in fields(e) if f.name != "detail"}
        records.append({**jsonable(record), "detail": jsonable(e.detail.to_dict("records"))})
    return records


def from_records(records: Sequence[Mapping[str, Any]]) -> list[Evidence]:
    """What :func:`to_records` wrote, exactly; None is NaN again. Keys of other versions are left out."""
    known = {f.name for f in fields(Evidence)}
    out = []
    for record in records:
        given: dict[str, Any] = {k: v for k, v in record.items() if k in known}
        for key in ("value", "stderr"):
            given[key] = _number(given[key])
        for key in ("null", "anchors"):
            given[key] = tuple(map(_number, given[key]))
        text = ("site", "arm")
        rows = [{k: v if k in text else _number(v) for k, v in row.items()} for row in given["detail"]]
        out.append(Evidence(**{**given, "detail": detail(rows)}))
    return out


def to_dataframe(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """Long form: the rows of ``evidence.parquet``. The summary is the row of the arm ``edited`` at ``model``."""
    import pandas as pd

    columns = ["kind", *DETAIL, "meaning"]
    rows: list[dict[str, Any]] = []
    for e in evidence:
        meaning = e.meaning + (f" (null: {e.null_meaning})" if e.null_meaning else "")
        null = sorted(e.null)[len(e.null) // 2] if e.null else NAN
        rows.append(
            {
                "kind": e.name, "site": WHOLE, "layer": -1, "arm": "edited", "value": e.value, "null": null,
                "stderr": e.stderr, "n": e.n, "meaning": meaning,
            }
        )  # fmt: skip
        rows += [{"kind": e.name, **row, "meaning": meaning} for row in e.detail.to_dict("records")]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"layer": "int64", "n": "int64", "value": float, "null": float, "stderr": float})


def _number(value: Any) -> Any:
    return NAN if value is None else value
