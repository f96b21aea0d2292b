"""What was found, in one plain sentence, and what to do next: for a reader who knows none of our words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.reading import Run
from analysis.tables import number, summary_table

SAYS = {
    "sampled": "Samples that show the behaviour",
    "completion": "Probability of the behaviour's words, per token",
    "preference": "Preference for the behaviour",
}
"""The measures, the plainest first."""
NEXT = {
    "INTACT": "Try another method or a larger budget, under the same attacks: `hooklearn list methods`, `--set "
    "edit.method=...`, `--set budget.kl=...`, then `hooklearn compare`.",
    "DISABLED": "Do not rely on this edit. Try another method under the same attacks, and set the two side by side: "
    "`hooklearn list methods`, then `hooklearn compare`.",
    "WEAKENED": "Do not call it removed. Set another method or budget beside it, under the same attacks: "
    "`hooklearn list methods`, then `hooklearn compare`.",
    "REMOVED": "Before you rely on it, attack it harder and with demonstrations: `--set battery=full`.",
    "ROBUSTLY REMOVED": "It holds for the attacks that were tried; try those that were not: `hooklearn list attacks`.",
    "UNDECIDED": "Measure what the reason above says is missing, and run again.",
}
"""Verdict -> the first thing to do."""
OPEN = {
    "no clear gap to remove": "The unedited model shows no more of it than the one that never learned it, or nothing: "
    "is it the model that has the behaviour, and do the held-out items ask for it?",
    "no cheap attack": "Add attacks that do not teach it: `--set battery=cheap`, or some of those that "
    "`hooklearn list attacks` calls cheap.",
}
"""What an open verdict's reason says -> what to do about it."""
MOST = 4


def found(run: Run) -> str:
    """Unedited, edited and never learned; then the worst of each attack. Empty where nothing was measured."""
    table = summary_table(run)
    arms = {str(row["arm"]): row for row in table.to_dict("records")}
    for metric, name in SAYS.items():
        before = {arm: number(row.get(f"{metric}: before")) for arm, row in arms.items()}
        if "original" in before and before.get("edited", float("nan")) == before.get("edited"):
            return f"{name}: {_before(before, metric)}{_attacked(arms, table, metric)}"
    return ""


def _before(before: Mapping[str, float], metric: str) -> str:
    said = f"{_share(before['original'], metric)} before the edit, {_share(before['edited'], metric)} after it"
    never = before.get("never", float("nan"))
    return f"{said}; in a model that never learned it: {_share(never, metric)}." if never == never else f"{said}."


def _attacked(arms: Mapping[str, Any], table: pd.DataFrame, metric: str) -> str:
    parts = []
    for column in (c for c in table.columns if str(c).startswith(f"{metric}: ")):
        attack = str(column).removeprefix(f"{metric}: ")
        edited, never = (number(arms.get(arm, {}).get(column)) for arm in ("edited", "never"))
        if attack == "before" or edited != edited:
            continue
        beside = f" (never learned: {_share(never, metric)})" if never == never else ""
        parts.append(f"{attack} {_share(edited, metric)}{beside}")
    return f" Attacked, at worst: {', '.join(parts)}." if parts else ""


def _share(value: float, metric: str) -> str:
    return f"{100 * value:.0f} %" if metric == "sampled" else f"{value:.3f}"


def next_steps(run: Run) -> list[str]:
    """At most ``MOST``, the gravest first; what stands between backticks is to be typed."""
    verdict = run.verdict or {}
    first = NEXT.get(str(verdict.get("verdict")), NEXT["UNDECIDED"])
    for words, step in OPEN.items():
        if verdict.get("verdict") == "UNDECIDED" and words in str(verdict.get("reason")):
            first = step
    return [first, *_gaps(run, verdict)][:MOST]


def _gaps(run: Run, verdict: Mapping[str, Any]) -> Iterator[str]:
    """What would make the verdict firmer."""
    if run.record.get("status") != "done":
        yield "Let the run end: the same command with `--resume`."
    if not run.record.get("never"):
        yield (
            "Give it a control that never learned the behaviour (`controls.never` in the config): without one no "
            "verdict can be better than WEAKENED."
        )
    restless = dict.fromkeys(
        f"{a['attack']} ({a['setting']})" if a.get("setting") else str(a["attack"])
        for a in verdict.get("attacks") or []
        if a.get("split", "heldout") == "heldout" and not any(a.get(k) for k in ("converged", "settled", "diverged"))
    )
    if restless:
        names = ", ".join(restless).replace("`", "'")
        yield f"Attack for longer: {names} had not come to rest, and might bring back more."
    if str(verdict.get("battery") or "").startswith(("custom", "cheap")):
        yield "Attack it in more ways: `--set battery=standard`."
    if len(run.record.get("seeds") or []) == 1:
        yield "Repeat it: `--set 'seeds=[0, 1, 2]'` says how much another seed would differ."
