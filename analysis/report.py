"""The report of a run: one HTML file that opens anywhere, and the same in markdown.

    report("runs/threats")                  # writes report.html and .md, report.json, a model card
    report("runs/threats", redact=True)     # lengths and hashes in place of what was said
    report("runs/a", others=["runs/b"])     # and how it stands beside others

The page can be read without a script and needs no network and no other file. What stands on it is made in
``analysis.sections`` and ``analysis.where``; how it looks is ``report.html.j2``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from analysis import advice, explorer, markup, sections
from analysis.beside import beside
from analysis.model_card import card_text
from analysis.reading import Run, read_run
from analysis.report_record import RECORD, record_of, sealed
from analysis.spoken import redacted
from analysis.where import where
from analysis.writing import write_json, write_text

Content = dict[str, Any]

TEMPLATES = ("report.md", "report.html", "model_card.md")
VERDICTS = {
    "INTACT": ("intact", "The edit left the behaviour as it was."),
    "DISABLED": ("disabled", "Switched off, not gone: something cheap brings the behaviour back."),
    "WEAKENED": (
        "weakened",
        "Less of the behaviour, but neither gone nor shown to be only hidden.",
    ),
    "REMOVED": ("removed", "Gone, as far as cheap attacks can tell."),
    "ROBUSTLY REMOVED": (
        "robust",
        "Gone: teaching the behaviour again is no faster than teaching it to a model that never had it.",
    ),
    "UNDECIDED": ("undecided", "The measurements do not decide it."),
}
"""Verdict -> its tone on the page, and what it means in one sentence; from worst to best."""


def report(
    folder: str | Path | Run,
    *,
    redact: bool = False,
    out: str | Path | None = None,
    others: Sequence[Run | str | Path] = (),
) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and a model card (``README.md``; ``model-card.md`` in a
    folder that is not the run's own).

    A run that was not judged is judged first.

    Args:
        folder: a run folder, or what ``read_run`` made of it.
        redact: replace every prompt, completion and error by its length and a hash, and every token by blocks. What the
            run's configuration says (a prefix to attack with, say) stays.
        out: the folder to write to, if not the run's own.
        others: runs to set it beside.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: see ``read_run``.
    """
    run, unjudged = _judged(read_run(folder))
    if redact and run.verdict is not None:
        run = replace(run, verdict=_quoting_nothing(run.verdict))
    content = collect(run, redact=redact, unjudged=unjudged, others=others)
    target = Path(out) if out is not None else run.folder
    target.mkdir(parents=True, exist_ok=True)
    texts = {name: environment().get_template(f"{name}.j2").render(content) for name in TEMPLATES}
    # in a folder of the reader's own, README.md is the reader's
    card = "README.md" if target == run.folder else "model-card.md"
    beside = {"report.md": texts["report.md"], card: card_text(run, texts["model_card.md"])}
    page, record = sealed(texts["report.html"], record_of(run, redact=redact, pages=beside))
    for name, text in beside.items():
        write_text(target / name, text)
    write_json(target / RECORD, record)
    write_text(target / "report.html", page)
    return target / "report.html"


def collect(run: Run, *, redact: bool = False, unjudged: str = "", others: Sequence[Run | str | Path] = ()) -> Content:
    """Everything that both pages say, section by section; no figure is drawn twice."""
    return {
        "name": run.name,
        "status": _status(run, redact),
        "verdict": _verdict(run, unjudged),
        "found": advice.found(run),
        "next": advice.next_steps(run),
        "scale": [(word, tone) for word, (tone, _) in VERDICTS.items() if word != "UNDECIDED"],
        "facts": sections.facts(run),
        "decisive": sections.decisive(run),
        "summary": sections.summary(run),
        "arms": sections.arms(run),
        "curves": sections.curves(run),
        "elsewhere": sections.elsewhere(run),
        "samples": sections.samples(run, redact=redact),
        "where": where(run, redact=redact),
        "csp": explorer.csp(),
        "attacks": sections.attacks(run),
        "judgement": sections.judgement(run),
        "beside": beside(run, others),
        "provenance": _provenance(run),
        "redact": redact,
    }


def _judged(run: Run) -> tuple[Run, str]:
    """The run with its verdict, or why it has none: a broken run still gets its page."""
    if run.verdict is not None:
        return run, ""
    from analysis.verdict import judge

    try:
        return replace(run, verdict=judge(run).to_dict()), ""
    except (ValueError, KeyError) as error:
        return run, f"it could not be judged: {error}"


def _quoting_nothing(verdict: Mapping[str, Any]) -> dict[str, Any]:
    doubts = [redacted(str(doubt), markup.redacted) for doubt in verdict.get("doubts") or []]
    return {**verdict, "doubts": doubts}


def _status(run: Run, redact: bool) -> Content:
    """Where a run ended. Its error may quote the row of a corpus that it stumbled over."""
    error = str(run.record.get("error") or "")
    status = str(run.record.get("status") or "unknown")
    told = {
        "failed": "This run failed. What it measured before that is shown below.",
        "interrupted": "This run was interrupted. What it measured before that is shown below.",
        "running": "This run has not ended. What it has measured so far is shown below.",
    }
    note = "" if status == "done" else told.get(status, f"The status of this run is {status}.")
    return {"word": status, "note": note, "error": markup.redacted(error) if redact and error else error}


def _verdict(run: Run, unjudged: str) -> Content:
    verdict = run.verdict or {"verdict": "UNDECIDED", "reason": unjudged or "it was not judged"}
    word = str(verdict.get("verdict") or "UNDECIDED")
    tone, meaning = VERDICTS.get(word, VERDICTS["UNDECIDED"])
    return {
        "word": word,
        "tone": tone,
        "meaning": meaning,
        "reason": str(verdict.get("reason") or ""),
        "doubts": [str(doubt) for doubt in verdict.get("doubts") or []],
    }


def _provenance(run: Run) -> Content:
    record = run.record
    return {
        "command": record.get("command"),
        "started": record.get("started"),
        "finished": record.get("finished"),
        "seeds": record.get("seeds") or [],
        "model": record.get("model") or {},
        "checkpoint": record.get("checkpoint") or {},
        "organism": record.get("organism") or {},
        "never": record.get("never") or {},
        "referee": record.get("referee") or {},
        "environment": record.get("environment") or {},
        "corpora": record.get("corpora") or {},
        "cost": record.get("cost") or {},
        "edits": run.edits,
        "config": _yaml(record.get("config")),
        "config_given": _yaml(record.get("config_given")),
    }


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True) if content else ""


@functools.cache
def environment() -> Environment:
    """Made once, with its templates. Escaping is on for HTML, and nothing invisible passes on any page.

    What a record lacks is as good as null: a run that failed early still gets its page.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: bool(name) and name.endswith(".html.j2"),
        finalize=_finalize,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "num": markup.num,
        "fixed": markup.fixed,
        "when": markup.when,
        "given": lambda value: f"{markup.number(value):g}",
        "plus_minus": markup.plus_minus,
        "duration": markup.duration,
        "quantity": markup.quantity,
        "options": markup.options,
        "code": markup.code,
        "unbroken": markup.unbroken,
        "md_code": markup.markdown_code,
        "md": markup.markdown_text,
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    pages.globals |= {"interval": markup.interval, "arm_class": sections.arm_class}
    return pages


def _finalize(value: Any) -> Any:
    if value is None:
        return markup.DASH
    return markup.visible(value) if type(value) is str else value
