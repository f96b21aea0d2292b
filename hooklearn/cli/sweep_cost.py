"""What a sweep will cost: ``hooklearn sweep --dry-run``. As right as :mod:`hooklearn.cli.estimate` is for a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hooklearn.cli.estimate import estimate
from hooklearn.cli.loads import arms
from hooklearn.config import RunConfig
from hooklearn.running.choosing import check_trials
from hooklearn.running.sweep_config import Plan

ONCE = ("organism",)
OF_THE_EDIT = ("locate", "edit")
"""Stages of a cell that its controls have no part in."""


def cost(plan: Plan, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of stage, runs, tokens, flops and seconds: tuning, controls, cells (``only`` some), and their total."""
    check_trials(plan)
    rows = []
    of = Counter(family.name for _, family, _ in plan.cells(only))
    tuning, families = plan.config.tuning, [f for f in plan.families() if f.name in of]
    searched = [f for f in families if f.spec.search] if tuning else []
    if tuning is not None and searched:
        trials = [(plan.trial(f, f.spec.settings(1)[0]), tuning.trials) for f in searched]
        rows += [_row("tuning, controls", [(trials[0][0], 1)], plan, edited=False)]
        rows += [_row("tuning", trials, plan, edited=True)]
    seeds = len({seed for _, _, seed in plan.cells(only)})
    cells = [(plan.cell(f, 0, f.spec.settings(1)[0]), of[f.name]) for f in families]
    rows += [_row("controls", [(cells[0][0], seeds)], plan, edited=False), _row("cells", cells, plan, edited=True)]
    sums = {key: sum(r[key] for r in rows) for key in ("runs", "tokens", "flops", "seconds")}
    return [*rows, {"stage": "total", **sums}]


def _row(stage: str, configs: list[tuple[RunConfig, int]], plan: Plan, *, edited: bool) -> dict[str, Any]:
    """The arms with the edit, or those without: attacks and samples are shared out between them."""
    row: dict[str, Any] = {"stage": stage, "runs": sum(n for _, n in configs)}
    row |= dict.fromkeys(("tokens", "flops", "seconds"), 0.0)
    for config, n in configs:
        every = arms(config)
        own = (1 + config.controls.matched) / every
        for part in estimate(config, plan.folder).stages:
            if part["stage"] in ONCE:
                share = 0.0 if edited else 1 / n
            elif part["stage"] in OF_THE_EDIT:
                share = float(edited)
            else:
                share = own if edited else 1 - own
            for key in ("tokens", "flops", "seconds"):
                row[key] += n * share * part[key]
    return row
