"""What was found, in one plain sentence, and what to do next: for a reader who knows none of our words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.evidence import judge
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
ELSEWHERE = {
    "INTACT": "Do not rely on this model: it does it as before. Another can be judged under the same attacks, and set "
    "beside it: `hooklearn compare`.",
    "DISABLED": "Do not rely on this model: it can still do it. Another can be judged under the same attacks, and set "
    "beside it: `hooklearn compare`.",
    "WEAKENED": "Do not call it removed.",
}
"""The same of a model that was edited elsewhere: there is no method or budget to change."""
OPEN = {
    "no clear gap to remove": "The unedited model shows no more of it than the one that never learned it, or nothing: "
    "is it the model that has the behaviour, and do the held-out items ask for it?",
    "no cheap attack says anything": "Add attacks that do not teach it: `--set battery=cheap`, or some of those that "
    "`hooklearn list attacks` calls cheap.",
    "because the good one was forgotten": "Read the samples, and what the good answers lost (near CE): where they are "
    "as likely as before, the preference stands.",
    "the referee can say nothing of": "Read the samples. A referee of your own can judge them: `behaviour.referee` in "
    "the config, a pattern or in Python a function.",
}
"""What an open verdict's reason says -> what to do about it."""
IN_AUDIT = {"--set battery=": "--battery ", "`controls.never` in the config": "`--never`"}
"""What is set in another way in ``hooklearn audit``."""
MOST = 4
MARGIN, TIMES = 1.1, 30
"""On top of what the square-root law asks for; and how many times the data are still a piece of advice."""


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
    """All attacks where they are few, otherwise those after which most is there."""
    found = []
    for column in (c for c in table.columns if str(c).startswith(f"{metric}: ")):
        attack = str(column).removeprefix(f"{metric}: ")
        edited, never = (number(arms.get(arm, {}).get(column)) for arm in ("edited", "never"))
        if attack == "before" or edited != edited:
            continue
        found.append((attack, edited, never))
    if len(found) > MOST:
        found.sort(key=lambda one: -one[1])
    named, others = found[:MOST], found[MOST:]
    parts = [
        f"{attack} {_share(edited, metric)}" + (f" (never learned: {_share(never, metric)})" if never == never else "")
        for attack, edited, never in named
    ]
    if others:
        parts.append(f"{len(others)} other{'s' * (len(others) > 1)} {_share(others[0][1], metric)} or less")
    return f" Attacked, at worst: {', '.join(parts)}." if parts else ""


def _share(value: float, metric: str) -> str:
    return f"{100 * value:.0f} %" if metric == "sampled" else f"{value:.3f}"


def next_steps(run: Run) -> list[str]:
    """At most ``MOST``, the gravest first; what stands between backticks is to be typed."""
    verdict = run.verdict or {}
    given = ELSEWHERE if run.record.get("checkpoint") else {}
    first = (NEXT | given).get(str(verdict.get("verdict")), NEXT["UNDECIDED"])
    for words, step in OPEN.items():
        if verdict.get("verdict") == "UNDECIDED" and words in str(verdict.get("reason")):
            first = step
    steps = [first, *_gaps(run, verdict)]
    if wider := _more_data(run, needed(verdict)):
        within = f"hat was measured is within the rule, its interval is not. {wider}"
        steps[:1] = [f"Do not call it removed yet: w{within}"] if given else [first, f"W{within}"]
    steps, command = steps[:MOST], str(run.record.get("command") or "")
    if command.startswith("hooklearn audit"):
        for anywhere, here in IN_AUDIT.items():
            steps = [step.replace(anywhere, here) for step in steps]
    return _in_the_file(steps) if command.startswith("hooklearn sweep") else steps


def _in_the_file(steps: Sequence[str]) -> list[str]:
    """A sweep has no ``--set``; said once where its settings stand."""
    told = [re.sub(r"`--set '?([^`']*)'?`", r"`\1`", step) for step in steps]
    told = [step.replace("(this run's folder)", "(the sweep's folder)") for step in told]
    where = " (In a copy of the sweep's file: methods, budgets and seeds have lists there, all else is of `overrides`.)"
    first = next((i for i, step in enumerate(steps) if "`--set " in step), None)
    return [step + where if i == first else step for i, step in enumerate(told)]


def _restless(a: Mapping[str, Any]) -> bool:
    """Whether longer would say more: not where the attack is past its best, which is all that ROBUSTLY REMOVED asks of
    demonstrations, nor where original and never do not differ under it."""
    if any(a.get(k) for k in ("converged", "settled", "diverged")):
        return False
    return bool(a.get("informative_steps", 1)) if a.get("cheap") else not a.get("past_best")


def needed(verdict: Mapping[str, Any]) -> dict[str, int]:
    """Metric -> how many items would make it REMOVED, if all stays as it was found and an interval narrows with their
    square root; empty where something else than an interval stands in the way: a missing control, a measure that it is
    beyond doubt in."""
    if verdict.get("verdict") not in ("WEAKENED", "UNDECIDED") or verdict.get("never", "") is None:
        return {}
    if any(about.get("verdict") in ("INTACT", "DISABLED") for about in (verdict.get("metrics") or {}).values()):
        return {}
    rule, found = verdict.get("thresholds") or {}, {}
    metrics = {
        metric: about
        for metric, about in (verdict.get("metrics") or {}).items()
        if about.get("verdict") in ("WEAKENED", "UNDECIDED") and number(about.get("gap_low")) > 0
    }
    for a in verdict.get("attacks") or []:
        if a.get("metric") not in metrics or a.get("split", "heldout") != "heldout" or not a.get("cheap"):
            continue
        if a.get("dropped") or not a.get("informative_steps"):
            continue
        if a.get("diverged"):
            return {}
        removal, max_R, rise = (number(a.get(k)) for k in ("removal", "max_R", "rise"))
        for room, miss in (
            (number(rule.get("rise")) - rise, number(a.get("rise_high")) - rise),
            (removal - number(rule.get("removal")), removal - number(a.get("removal_low"))),
            (number(rule.get("max_R")) - max_R, number(a.get("max_R_high")) - max_R),
        ):
            if miss <= room:
                continue
            if not room > 0 or not (times := MARGIN * (miss / room) ** 2) <= TIMES:
                return {}
            metric = str(a["metric"])
            items = math.ceil(number(metrics[metric].get("n_items")) * times)
            found[metric] = max(found.get(metric, 0), items)
    return found


def _more_data(run: Run, wanted: Mapping[str, int]) -> str:
    """What to set, and what to bring; empty where nothing is wanted."""
    there = number(((run.record.get("corpora") or {}).get("heldout") or {}).get("n"))
    parts = []
    if samples := wanted.get("sampled"):
        parts.append(f"About {samples} samples would do: `--set behaviour.samples={samples}`.")
    if wanted and not (most := max(wanted.values())) <= there:
        has = f" (there are {there:g})" if there == there else ""
        parts.append(f"For that about {most} held-out items are needed{has}: give a larger `corpora.heldout`.")
    return " ".join(parts)


def _gaps(run: Run, verdict: Mapping[str, Any]) -> Iterator[str]:
    """What would make the verdict firmer."""
    if run.record.get("status") != "done":
        yield "Let the run end: the same command with `--out` (this run's folder) and `--resume`."
    if not run.record.get("never"):
        yield (
            "Give it a control that never learned the behaviour (`controls.never` in the config): without one no "
            "verdict can be better than WEAKENED."
        )
    restless = dict.fromkeys(
        f"{a['attack']} ({a['setting']})" if a.get("setting") else str(a["attack"])
        for a in verdict.get("attacks") or []
        if a.get("split", "heldout") == "heldout" and _restless(a)
    )
    if restless:
        names = ", ".join(restless).replace("`", "'")
        yield f"Attack for longer: {names} had not come to rest, and might bring back more."
    if "REMOVED" in str(verdict.get("verdict")) and not judge.decides(run.evidence_records):
        if run.evidence_records:
            yield "Look inside with what may decide: more of `evidence.measures`, a never-learned model, `retain`."
        else:
            yield "Look inside: `--set evidence.enabled=true`; evidence that decides may take a removal back."
    if str(verdict.get("battery") or "").startswith(("custom", "cheap")):
        yield "Attack it in more ways: `--set battery=standard`."
    if len(run.record.get("seeds") or []) == 1:
        yield "Repeat it: `--set 'seeds=[0, 1, 2]'` says how much another seed would differ."
