"""The worst case over attackers at each step: one curve an arm, above those of all settings.

A verdict asks for the worst attacker and step together (:mod:`analysis.worst`); an envelope shows what the best choice
among the attackers would have had after every number of steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimates import Frame, pooled
from analysis.plots import curve_rows
from analysis.reading import Run, read_run
from analysis.scores import attacker_name

RELEARNING = ("relearn", "relearn_lora", "low_mi", "weak_samples", "good_demos", "retain_only")
"""Attacks by training on what has to do with the behaviour: demonstrations of it, facts beside it, good answers."""
ANY = "any relearning"
"""The name of their common envelope."""
COLUMNS = [
    "attack", "setting", "cheap", "arm", "seed", "step", "metric", "split", "value", "stderr", "n", "converged",
    "diverged", "by", "attackers",
]  # fmt: skip


def envelope(run: Run | str | Path, metric: str = "completion", *, split: str = "heldout") -> pd.DataFrame:
    """step -> the highest behaviour over all settings of an attack, and over all relearning attackers, per arm.

    An attacker stands at every step with its last look up to it: where it ended it keeps what it had, and between looks
    nothing is invented. Settings that diverged in any arm are left out, and so are attacks without steps. Every arm has
    its own worst attacker. That one is picked for being the worst makes the value a little higher than it is, in all
    arms alike; ``stderr`` is that of the one picked, over seeds and items.

    Returns:
        Rows in the form of a run's curves, for ``analysis.plots.curves`` to draw: ``attack`` (a name, or
        ``any relearning`` where more than one such attack was made), ``arm``, ``step``, ``value``, ``stderr``, ``n``;
        ``by``: the attacker that is the worst there; ``attackers``: among how many. ``seed`` is 0: the mean over seeds.
        Empty where the metric was not measured along any attack by training.

    Raises:
        InputError: see ``read_run``.
    """
    rows = curve_rows(read_run(run), metric, split)
    trained = rows.iloc[:0] if rows.empty else rows[_counts(rows)]
    made = list(dict.fromkeys(trained["attack"]))
    groups = {attack: [attack] for attack in made}
    if len(several := [attack for attack in made if attack in RELEARNING]) > 1:
        groups[ANY] = several
    found = [_over(name, trained[trained["attack"].isin(attacks)]) for name, attacks in groups.items()]
    if not found:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(found, ignore_index=True).assign(metric=metric, split=split).reindex(columns=COLUMNS)


def _counts(rows: Frame) -> Frame:
    by = [rows["attack"], rows["setting"]]
    broken = rows["diverged"].astype(bool).groupby(by).transform("any")
    return (rows["attack"] != "none") & (rows["step"].groupby(by).transform("max") > 0) & ~broken


def _over(name: str, rows: Frame) -> pd.DataFrame:
    """One envelope: of all attackers of these rows."""
    means = pooled(rows, ("arm", "attack", "setting", "step"))
    attackers = len(means[["attack", "setting"]].drop_duplicates())
    flags = {"cheap": bool(rows["cheap"].all()), "converged": bool(rows["converged"].all()), "diverged": False}
    setting = f"worst of {attackers} attackers" if attackers > 1 else ""
    found: list[dict[str, Any]] = []
    for arm, of_arm in means.groupby("arm", sort=False):
        steps = np.unique(of_arm["step"].to_numpy(int))
        curves = {
            attacker_name(str(attack), str(own)): of.sort_values("step")
            for (attack, own), of in of_arm.groupby(["attack", "setting"], sort=False)
        }
        found += [{"arm": arm, "step": int(step)} | _worst(curves, step) for step in steps]
    return pd.DataFrame(found).assign(attack=name, setting=setting, seed=0, attackers=attackers, **flags)


def _worst(curves: dict[str, Frame], step: int) -> dict[str, Any]:
    """Among the last looks up to this step."""
    looks = {name: of[of["step"] <= step].iloc[-1] for name, of in curves.items() if of["step"].iloc[0] <= step}
    by = max(looks, key=lambda name: looks[name]["value"])
    return {"value": looks[by]["value"], "stderr": looks[by]["stderr"], "n": int(looks[by]["n"]), "by": by}
