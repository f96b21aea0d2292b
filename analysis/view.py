"""A folder of runs as one local page: sortable, opens reports, puts two runs side by side. No network, no server."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from analysis import markup
from analysis.outcome import behaviour
from analysis.reading import Run, input_error, read_run
from analysis.report import VERDICTS, environment
from analysis.tables import mean, number
from analysis.writing import write_text

NAME = "index.html"
DEPTH = 4
"""Folders below the given one that are looked into; a sweep keeps its cells two levels down."""
COLUMNS = {
    "name": "run",
    "method": "method",
    "verdict": "verdict",
    "kl": "far KL",
    "near_ce": "near CE",
    "before": "before",
    "worst": "worst",
    "original": "original, worst",
    "never": "never, worst",
    "seconds": "seconds",
    "seeds": "seeds",
    "started": "started",
    "status": "status",
}
HELP = {
    "kl": "how far the edit moved the model on text that has nothing to do with it, nats per token",
    "near_ce": "how much worse good answers to the same kind of prompt got, nats per token; negative: better",
    "before": "the edited model before any attack",
    "worst": "the edited model at its worst under any attack",
    "original": "the unedited model at its worst, under the same attacks",
    "never": "a model that never learned the behaviour, at its worst under the same attacks",
}
"""Of the headings that do not say it themselves."""
BEHAVIOUR = {"before": "edited", "worst": "edited", "original": "original", "never": "never"}
"""Columns on one scale, and the arm that each is of."""
WORST = [word for word in VERDICTS if word != "UNDECIDED"]
"""Verdicts from worst to best: what sorting by verdict means."""


def view(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page, ``index.html`` in the folder unless ``out`` names another file; returns its path.

    Raises:
        InputError: no such folder, no run in it, or a file of that name that is not such a page.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise input_error(f"no folder at {folder}")
    page = Path(out) if out is not None else folder / NAME
    if page.is_file() and MARK not in page.read_text("utf-8", "replace"):
        raise input_error(f"{page}: is there already and was not written by hooklearn view; give another --out")
    rows = [row(path, page.parent) for path in runs_below(folder)]
    if not rows:
        raise input_error(f"{folder}: no run folder in it or up to {DEPTH} levels below")
    script = (Path(__file__).parent / "view.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages = environment()
    pages.filters |= {"raw": _raw, "worst_first": order}
    text = pages.get_template("view.html.j2").render(
        rows=rows, columns=COLUMNS, help=HELP, behaviour=BEHAVIOUR, top=_top(rows),
        title=folder.resolve().name, mark=Markup(MARK),
        script=Markup(script), digest=digest, tones={word: tone for word, (tone, _) in VERDICTS.items()},
    )  # fmt: skip
    write_text(page, text)
    return page


MARK = '<meta name="generator" content="hooklearn view">'


def runs_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Run folders in the order of their names; what is inside a run folder is not looked into."""
    if (folder / "run.json").is_file():
        yield folder
    elif depth:
        for below in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from runs_below(below, depth - 1)


def row(path: Path, start: Path) -> dict[str, Any]:
    """What the list says of one run; a folder that cannot be read is a row that says so."""
    place = os.path.relpath(path, start)
    told: dict[str, Any] = {"place": place, "name": place, "report": None, "error": None}
    if (path / "report.html").is_file():
        told["report"] = quote(os.path.relpath(path / "report.html", start))
    try:
        return told | _facts(read_run(path))
    except (ValueError, KeyError) as error:
        return told | {"error": str(error), "verdict": "UNDECIDED", "status": "cannot be read"}


def _facts(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {
        "method": ", ".join(dict.fromkeys(str(e.get("method")) for e in run.edits)) or "none",
        "verdict": (run.verdict or {}).get("verdict"),
        "kl": mean((e.get("disruption") or {}).get("kl") for e in run.edits),
        "near_ce": mean((e.get("disruption") or {}).get("near_ce") for e in run.edits),
        "seconds": number(run.record.get("seconds")),
        "seeds": len(run.record.get("seeds") or []),
        "started": str(run.record.get("started") or "")[:16].replace("T", " "),
        "status": run.record.get("status"),
        "before": float("nan"),
    }
    told = behaviour(run.curves.loc[run.curves["split"] == "heldout"])
    for arm, key in (("edited", "worst"), ("original", "original"), ("never", "never")):
        known = [v for arms in told.values() if arm in arms and math.isfinite(v := number(arms[arm]["worst"]))]
        found[key] = max(known, default=float("nan"))
    found["before"] = mean(arms["edited"]["before"] for arms in told.values() if "edited" in arms)
    return found


def _top(rows: list[dict[str, Any]]) -> float:
    """The largest behaviour on the page: the length of a whole bar."""
    values = (markup.number(r.get(key)) for r in rows for key in BEHAVIOUR)
    return max((v for v in values if math.isfinite(v)), default=1.0) or 1.0


def _raw(value: Any) -> str:
    """A number as the script reads it; nothing where it was not measured."""
    x = markup.number(value)
    return repr(x) if math.isfinite(x) else ""


def order(verdict: Any) -> int:
    """From worst to best; undecided and not judged last."""
    return WORST.index(verdict) if verdict in WORST else len(WORST)
