"""Can the verdict be trusted? Verdicts beside truths that are known by construction, from the cases' run folders.

A case is a judged run folder with ``case.json``: which organism, its truth (all verdicts that are right for it, the
first one expected) and its split. No threshold was set by looking at the held-out part; only that part is asked for
what calibration must show. ``analysis.verdict`` says how a verdict is formed; nothing here changes one.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from analysis.measures import Thresholds
from analysis.reading import Run, input_error, read_json, read_run, shaped
from analysis.rules import UNDECIDED, VERDICTS
from analysis.tables import EASIER, markdown, number
from analysis.verdict import Verdict, judge

COLUMNS = (*VERDICTS, UNDECIDED)
GOLD = (
    "never-learned", "retrained", "retrained-full", "retrained-attention", "retrained-late", "retrained-early",
    "facts-retrained", "facts-rehearsed", "facts-rehearsed-early",
)  # fmt: skip
"""Never learned, or retrained without the data, and nothing done since: these must be REMOVED or better."""
SPLITS = ("tuning", "heldout")
TITLES = {"tuning": "Tuning part", "heldout": "Held-out part"}
INSTILLED = f"All of these behaviours were instilled: {EASIER}."
"""Said of every case, tendency and facts alike."""


class _Known(BaseModel):
    """case.json"""

    model_config = ConfigDict(extra="allow", strict=True)
    organism: str
    seed: int
    split: Literal["tuning", "heldout"]
    held_out_kind: bool = False
    truth: Annotated[list[Literal[tuple(VERDICTS)]], Field(min_length=1)]  # type: ignore[valid-type]


@dataclass(frozen=True)
class Case:
    """One organism with one seed: what is true of it, and what was said."""

    organism: str
    seed: int
    split: str
    truth: str
    """The verdict to expect ..."""
    accepted: tuple[str, ...]
    """... and all that are right."""
    verdict: str
    reason: str
    run: str
    held_out_kind: bool = False
    """Of no seed of this kind was a case in view when anything was chosen."""

    @property
    def right(self) -> bool:
        return self.verdict in self.accepted

    @property
    def removed(self) -> bool:
        """In truth."""
        return all("REMOVED" in v for v in self.accepted)


Judged = tuple[Case, list[tuple[str, float]]]
"""With what each measure alone says of it: not with all that it was read from, which goes from process to process."""


@dataclass(frozen=True)
class Requirement:
    what: str
    met: bool | None
    """None: there are no cases to tell."""
    found: str


@dataclass(frozen=True)
class Calibration:
    cases: tuple[Case, ...]
    requirements: tuple[Requirement, ...]
    evidence: pd.DataFrame
    """Each measure alone: ``auc`` (not removed against removed, .5 is chance), its error, and n of both."""
    thresholds: Thresholds

    def confusion(self, split: str | None = None) -> pd.DataFrame:
        """Counts: a row per truth, a column per verdict."""
        return _counts([c for c in self.cases if split in (None, c.split)], lambda c: c.truth)

    def by_organism(self) -> pd.DataFrame:
        """Counts: a row per organism, with its accepted verdicts."""
        counts = _counts(self.cases, lambda c: c.organism)
        accepted = {c.organism: " or ".join(c.accepted) for c in self.cases}
        counts.insert(1, "truth", [accepted[name] for name in counts["organism"]])
        return counts

    def to_dict(self) -> dict[str, Any]:
        """What ``hooklearn calibrate --json`` prints."""
        return {
            "cases": [{**asdict(c), "accepted": list(c.accepted), "right": c.right} for c in self.cases],
            "requirements": [asdict(r) for r in self.requirements],
            "evidence": self.evidence.to_dict("records"),
            "thresholds": asdict(self.thresholds),
        }

    def to_markdown(self) -> str:
        parts = [INSTILLED]
        for split in SPLITS:
            if not (mine := [c for c in self.cases if c.split == split]):
                continue
            right = sum(c.right for c in mine)
            parts.append(f"**{TITLES[split]}**: {right} of {len(mine)} right\n\n{markdown(self.confusion(split))}")
        asked = [f"- {_WORDS[r.met]}: {r.what} ({r.found})" for r in self.requirements]
        parts += [markdown(self.by_organism()), "\n".join(asked), markdown(self.evidence)]
        return "\n\n".join(parts)


_WORDS = {True: "yes", False: "**no**", None: "unknown"}


def calibrate(folders: Iterable[str | Path], thresholds: Thresholds | None = None, *, jobs: int = 1) -> Calibration:
    """Judge the cases anew and compare with their truths.

    Args:
        jobs: processes that judge beside each other.
    Raises:
        InputError: no case, or a folder without ``case.json``.
    """
    t = thresholds or Thresholds()
    folders = list(folders)
    if not folders:
        raise input_error("no case to calibrate with; hooklearn calibrate makes them")
    judged = _beside_each_other(folders, t, jobs) if jobs > 1 else [_judged(folder, t) for folder in folders]
    cases = tuple(case for case, _ in judged)
    return Calibration(cases, tuple(requirements(cases)), evidence_alone(judged), t)


def _beside_each_other(folders: Sequence[str | Path], t: Thresholds, jobs: int) -> list[Judged]:
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_judged, folders, itertools.repeat(t)))


def _judged(folder: str | Path, t: Thresholds) -> Judged:
    run = read_run(folder)
    verdict = judge(run, thresholds=t, write=t == Thresholds())  # the folder keeps the usual one
    return _case(run, verdict), [*_behaviour(verdict), *_mechanistic(run.evidence_records)]


def _case(run: Run, verdict: Verdict) -> Case:
    path = run.folder / "case.json"
    if not path.is_file():
        raise input_error(f"{run.folder} is no case: it has no case.json")
    known = shaped(_Known, read_json(path), path)
    accepted = tuple(known["truth"])
    return Case(
        organism=str(known["organism"]), seed=int(known["seed"]), split=str(known["split"]), truth=accepted[0],
        accepted=accepted, verdict=verdict.verdict, reason=verdict.reason, run=str(run.folder),
        held_out_kind=bool(known.get("held_out_kind")),
    )  # fmt: skip


def _counts(cases: Sequence[Case], row_of: Callable[[Case], str]) -> pd.DataFrame:
    by_truth = sorted(cases, key=lambda c: VERDICTS.index(c.truth))  # the order within a truth stays
    rows = list(dict.fromkeys(row_of(c) for c in by_truth))
    name = "truth" if rows and rows[0] in VERDICTS else "organism"
    counts = [{name: r} | {v: sum((row_of(c), c.verdict) == (r, v) for c in cases) for v in COLUMNS} for r in rows]
    return pd.DataFrame(counts, columns=[name, *COLUMNS])


# ----------------------------------------------------------------------------------- requirements


def requirements(cases: Sequence[Case]) -> list[Requirement]:
    """What a verdict must show, one by one; how many there are is asked of all cases, how right they are of the
    held-out part."""
    held = [c for c in cases if c.split == "heldout"]
    kinds = {c.organism for c in cases}
    seeds = {k: {c.seed for c in cases if c.organism == k} for k in kinds}
    whole = {c.organism for c in cases if c.held_out_kind}
    full = sum(len(s) >= 3 for s in seeds.values())
    last = {c.seed for c in held if not c.held_out_kind} - {c.seed for c in cases if c.split == "tuning"}
    return [
        Requirement("at least 12 kinds with 3 seeds each", full >= 12, f"{full} kinds"),
        Requirement(
            "at least 4 kinds and one seed of all held out", len(whole) >= 4 and bool(last),
            f"{len(whole)} kinds ({', '.join(sorted(whole))}); seed {', '.join(map(str, sorted(last))) or 'none'}",
        ),
        Requirement("a Goodhart organism is among them", "goodhart" in kinds, "".join(kinds & {"goodhart"}) or "none"),
        _never(held, "no organism that still has it is called REMOVED", _false_removal),
        _share(held, "at most 10 % UNDECIDED", 0.1),
        _never(held, "never-learned and retrained-without-the-data are REMOVED or better", _gold_missed),
        _stable(cases),
    ]  # fmt: skip


def _false_removal(c: Case) -> bool | None:
    return None if c.removed else "REMOVED" in c.verdict


def _gold_missed(c: Case) -> bool | None:
    return "REMOVED" not in c.verdict if c.organism in GOLD else None


def _never(cases: Sequence[Case], what: str, broken: Callable[[Case], bool | None]) -> Requirement:
    asked = [c for c in cases if broken(c) is not None]
    bad = [f"{c.organism} (seed {c.seed}): {c.verdict}" for c in asked if broken(c)]
    return Requirement(what, not bad if asked else None, "; ".join(bad) or f"{len(asked)} cases, none against it")


def _share(cases: Sequence[Case], what: str, most: float) -> Requirement:
    open_ = [f"{c.organism} (seed {c.seed})" for c in cases if c.verdict == UNDECIDED]
    met = len(open_) <= most * len(cases) if cases else None
    return Requirement(what, met, f"{len(open_)} of {len(cases)}" + (f": {', '.join(open_)}" if open_ else ""))


def _stable(cases: Sequence[Case]) -> Requirement:
    """Asked of the held-out part, where a kind has two seeds there or more; over all its seeds told beside."""
    several, changed = _changed([c for c in cases if c.split == "heldout"])
    met = len(changed) * 12 <= len(several) if several else None
    found = f"{len(changed)} of {len(several)}" + (f": {'; '.join(changed)}" if changed else "")
    of_all, more = _changed(cases)
    if set(more) != set(changed) or len(of_all) > len(several):
        found += f"; with the seeds of the tuning part {len(more)} of {len(of_all)}"
        found += f": {'; '.join(more)}" if more else ""
    return Requirement("the verdict changes with the seed in at most 1 of 12 kinds", met, found)


def _changed(cases: Sequence[Case]) -> tuple[list[str], list[str]]:
    """Kinds of several seeds; and those with several verdicts, with these."""
    said: dict[str, list[str]] = {}
    for c in cases:
        said.setdefault(c.organism, []).append(c.verdict)
    several = [kind for kind, verdicts in said.items() if len(verdicts) > 1]
    return several, [f"{kind} ({', '.join(sorted(set(said[kind])))})" for kind in several if len(set(said[kind])) > 1]


# ------------------------------------------------------------------------- each measure by itself


def evidence_alone(judged: Sequence[Judged]) -> pd.DataFrame:
    """How well each measure alone tells what is still there from what is gone: its AUC over all cases.

    Evidence is read as the share that was kept where it has anchors, else as its value, and turned so that more speaks
    against a removal. Behaviour is R before any attack and the worst under cheap ones. Cases of one kind are alike, so
    the errors (Hanley & McNeil 1982) are too small.
    """
    found: dict[str, list[tuple[float, bool]]] = {}
    for case, alone in judged:
        for name, value in alone:
            if np.isfinite(value):
                found.setdefault(name, []).append((value, case.removed))
    rows = []
    for name, pairs in found.items():
        there = np.array([v for v, removed in pairs if not removed])
        gone = np.array([v for v, removed in pairs if removed])
        value = auc(there, gone)
        rows.append(
            {
                "measure": name, "auc": value, "stderr": auc_error(value, len(there), len(gone)),
                "still there": len(there), "gone": len(gone), "lowest still there": _edge(there, np.min),
                "highest gone": _edge(gone, np.max),
            }
        )  # fmt: skip
    columns = ["measure", "auc", "stderr", "still there", "gone", "lowest still there", "highest gone"]
    return pd.DataFrame(rows, columns=columns).sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def _behaviour(verdict: Verdict) -> Iterable[tuple[str, float]]:
    for metric, numbers in verdict.metrics.items():
        yield f"R before any attack: {metric}", number(numbers["R0"])
        shown = [a for a in verdict.attacks if a.cheap and not a.dropped]
        worst = [a.max_R for a in shown if (a.metric, a.split) == (metric, "heldout")]
        known = [w for w in worst if np.isfinite(w)]
        yield f"worst R under cheap attacks: {metric}", max(known, default=float("nan"))


def _mechanistic(records: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, float]]:
    for r in records:
        removed, intact = (number(v) for v in r.get("anchors") or (None, None))
        value = number(r["value"])
        sign = -1 if r["direction"] == "low" else 1
        if np.isfinite(removed) and np.isfinite(intact) and removed != intact:
            # the wrong way round they say nothing (analysis.evidence.judge)
            value = (value - removed) / (intact - removed) if sign * (intact - removed) > 0 else float("nan")
        else:
            value *= sign
        yield f"{r['name']} ({r['role']})", value


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive is above a negative, ties half; NaN without either."""
    if not len(positive) or not len(negative):
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def auc_error(value: float, n_positive: int, n_negative: int) -> float:
    """Hanley & McNeil (1982), eq. 1 with their exponential approximation of Q1 and Q2."""
    if not n_positive or not n_negative:
        return float("nan")
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    spread = value * (1 - value) + (n_positive - 1) * (q1 - value**2) + (n_negative - 1) * (q2 - value**2)
    return float(np.sqrt(max(0.0, spread) / (n_positive * n_negative)))


def _edge(values: np.ndarray, which: Callable[[np.ndarray], Any]) -> float:
    return float(which(values)) if len(values) else float("nan")
