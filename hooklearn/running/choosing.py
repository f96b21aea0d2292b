"""What a sweep's trials say: the options that a method is reported with, chosen on other items than are reported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooklearn import disk
from hooklearn.corpora.corpus import Corpus
from hooklearn.edit import method_of
from hooklearn.running.checks import no_referee
from hooklearn.running.setting import Setup
from hooklearn.running.sweep_config import Plan
from hooklearn.types import InputError


def decide(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The lowest value; of equals the lowest completion probability, as shares of a few samples are often equal; then
    the first. NaN is not measured and decides nothing."""
    measured = [t for t in tried if t["value"] == t["value"]]
    if not measured:
        why = next((t["error"] for t in tried if t["error"]), "nothing was measured")
        return {"chosen": None, "value": None, "error": f"tuning: no trial ended: {why}"}
    best = min(measured, key=lambda t: (t["value"], t.get("completion", 0.0)))
    return {"chosen": best["options"], "value": best["value"], "error": None}


def lowest_is_best(folder: Path, metric: str) -> float:
    """The behaviour of the edited model at its worst step and setting, on the tuning split; NaN if not measured."""
    curves: Any = disk.load_frame(folder / "curves.parquet")
    rows = curves[(curves["arm"] == "edited") & (curves["split"] == "heldout")]
    attacked = rows["attack"] != "none"  # of any metric: samples are not drawn of what diverged
    if attacked.any():  # else one whose attack diverged would be as good as before it
        rows = rows[attacked]
    rows = rows[rows["metric"] == metric]
    return float(rows.loc[~rows["diverged"].astype(bool), "value"].max())


def check_trials(plan: Plan) -> None:
    """Raises InputError where a trial could not be made, although the cells can: trials draw samples only where they
    are what decides."""
    tuning = plan.config.tuning
    if tuning is None or tuning.metric == "sampled":
        return
    for family in plan.families():
        for options in family.spec.settings(10**9) if family.spec.search else []:
            edit = family.spec.edit(plan.base.edit, options)
            if edit.method is not None and method_of(edit.method, edit.options).refereed:
                raise InputError(
                    f"method {family.spec.label!r} asks the referee of samples, and trials draw none where "
                    f"tuning.metric is {tuning.metric}; set it to sampled"
                )


def check_measurable(plan: Plan, trials: Setup) -> None:
    """Raises InputError where the metric that decides cannot be had of the tuning split: all trials would be made
    before that is seen."""
    tuning, heldout = plan.config.tuning, trials.corpora["heldout"]
    if tuning is None:
        return
    if tuning.metric == "sampled" and (missing := no_referee(trials.config, trials.corpora)):
        raise InputError(f"tuning.metric is sampled, and nothing is sampled of tuning.corpora.heldout: {missing}")
    compared = heldout.alternatives() is not None or all("choices" in row for row in heldout.rows)
    if tuning.metric == "preference" and not compared:
        raise InputError(
            f"tuning.metric is preference, and rows of {heldout.name!r} have neither 'alternative' nor 'choices' to "
            "prefer one of; give them, or decide by completion"
        )


def check_apart(tuning: Corpus, reported: Mapping[str, Corpus]) -> None:
    """Options that were chosen on the reported items would be reported too well."""
    for role in ("heldout", "ood"):
        rows = {_key(r) for r in reported[role].rows} if role in reported else set()
        shared = sum(_key(r) in rows for r in tuning.rows)
        if shared:
            raise InputError(
                f"tuning.corpora.heldout shares {shared} of its {len(tuning)} rows with corpora.{role}; "
                "options are chosen on one split and reported on another"
            )


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(k)) for k in ("prompt", "completion", "messages", "text"))
