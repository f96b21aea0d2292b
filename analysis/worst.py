"""Where an arm behaves worst: before any attack, under each, under all; with what the bootstrap drew there.

An interval is of the mean at that place (attacker, step); that it was picked for being the worst makes it look a little
worse than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.scores import Array, Attacker, Resampler, Scores


@dataclass(frozen=True)
class Cell:
    """Attack, setting and step, and an arm's mean there, ``[1 + resamples]``."""

    name: str
    draws: Array


Under = Sequence[tuple[Attacker, Cell]]


def worst_under_each(scores: Scores, arm: str, shared: set[tuple[str, str]], draw: Resampler) -> Under:
    """Of the attackers (attack, setting) that are shared."""
    attackers = [a for a in scores.attackers if (a.attack, a.setting) in shared and arm in a.y]
    return [(a, _strongest(a, arm, draw)) for a in attackers]


def worst_of_all(scores: Scores, arm: str, under: Under, draw: Resampler) -> dict[str, Cell]:
    """``before`` any attack, and the worst under ``cheap`` attackers and under ``any``, as far as there are such."""
    cells = {}
    if arm in scores.before:
        before = draw.mean(scores.before[arm][:, None], arm)
        cells["before"] = Cell("before any attack", before[:, 0])
    for quantity in ("cheap", "any"):
        if found := [cell for attacker, cell in under if attacker.cheap or quantity == "any"]:
            cells[quantity] = _worst(found)
    return cells


def by_attack(under: Under) -> dict[str, Cell]:
    """attack -> the worst of its settings."""
    names = dict.fromkeys(attacker.attack for attacker, _ in under)
    return {name: _worst([cell for attacker, cell in under if attacker.attack == name]) for name in names}


def _worst(cells: Sequence[Cell]) -> Cell:
    """NaN is not measured: it is never the worst, unless there is nothing else."""
    return max(cells, key=lambda c: np.nan_to_num(c.draws[0], nan=-1))


def _strongest(attacker: Attacker, arm: str, draw: Resampler) -> Cell:
    means = draw.mean(attacker.y[arm], arm)
    at = int(np.argmax(np.nan_to_num(means[0], nan=-1)))
    where = " ".join(filter(None, (attacker.attack, attacker.setting)))
    return Cell(f"{where}, step {attacker.steps[at]:g}", means[:, at])
