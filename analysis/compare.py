"""Several runs side by side, at equal disruption: what an edit costs, what attacks bring back.

Per run and metric, on held-out items: behaviour of the edited model before any attack, and at the
worst cell (attack, setting, step) of the attacks that *all* runs have, with the same options and the
same text, and that diverged in none; once over the cheap ones, once over all. Intervals are of the
mean at that cell, by bootstrap over items and seeds; that the cell was picked for being the worst
makes it look a little worse than it is, in all runs alike. The controls (unedited, never-learned) are
seen at their own worst cell, and are put together over those runs only that have the same: one model,
one control, one held-out corpus.

Differences are paired: two runs are resampled on the same items, and seeds where these are the same. They
need the same held-out corpus (by hash) and items; where these differ a note says so and no difference is given.

Beside it, from the way of each edit: runs at equal unlearning and at equal compute (``analysis.equal``).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import opened, sweep_of, without_result
from analysis.comparability import (
    Entry,
    attacker_notes,
    entries_of,
    equality_notes,
    length_notes,
    merged,
    organism_notes,
    panel_notes,
    score_notes,
    seed_notes,
    shared_attackers,
    unlike_attackers,
    unlike_seeds,
    unpaired,
    used,
)
from analysis.comparison import QUANTITIES, Comparison
from analysis.equal import equal_compute, equal_unlearning
from analysis.packed import unpacked
from analysis.reading import Run
from analysis.scores import CONTROLS, Resampler, attacker_name, interval
from analysis.tables import ALL, METRICS, capability_table, edit_name, in_order, mean, number
from analysis.tuning import tuning_table
from analysis.worst import by_attack, worst_of_all, worst_under_each

Z = 1.96
"""Standard errors from the middle of a 95 % interval to its end."""


def compare(runs: Sequence[Run | str | Path], *, seed: int = 0, resamples: int = 1000) -> Comparison:
    """Compare runs over the attacks they share. The folder of a sweep is its finished cells, seeds pooled; both may be
    packed (``analysis.pack``). ``seed`` draws the resamples.

    Raises:
        InputError: no runs, or see ``read_run``.
    """
    runs = [run if isinstance(run, Run) else unpacked(run) for run in runs]
    found = [opened(run) for run in runs]
    entries = entries_of([one for some in found for one in some])
    metrics = in_order({m for e in entries for m in e.scores}, METRICS)
    unlike = unlike_attackers(entries)
    gaps = [f"{attack} is not the same attack in all: {why}" for attack, why in unlike.items()]
    notes = [note for run in runs for note in without_result(run)] + equality_notes(entries) + seed_notes(entries)
    apart: list[str] = []
    compared: set[tuple[str, str]] = set()
    for metric in metrics:
        having = [e for e in entries if metric in e.scores]
        apart += unlike_seeds(having, metric)
        shared = {key for key in shared_attackers(having, metric) if attacker_name(*key) not in unlike}
        left_out = attacker_notes(having, metric, shared)
        compared |= shared
        if shared:
            notes += left_out
        else:
            gaps += left_out
        for e in having:
            draw = _resampler(e, metric, seed, resamples, alike=not unlike_seeds(having, metric))
            for arm in ("edited", *CONTROLS):
                under = worst_under_each(e.scores[metric], arm, shared, draw)
                worst = worst_of_all(e.scores[metric], arm, under, draw)
                e.cells.update({(arm, metric, quantity): cell for quantity, cell in worst.items()})
                e.attacks.update({(arm, metric, attack): cell for attack, cell in by_attack(under).items()})
    notes += length_notes(entries, compared) + merged(apart)
    with_panel = any(not e.run.capability.empty for e in entries)
    labels = _labels(runs, found, entries)
    rows = [
        _facts(e)
        | (_capability(e) if with_panel else {})
        | _behaviour(e, metrics)
        | ({"label": label} if labels else {})
        for e, label in zip(entries, labels or [e.name for e in entries], strict=True)
    ]
    notes += [*(panel_notes(entries) if with_panel else []), *score_notes(entries)]
    organisms = {e.name: str(o.get("name") or "unnamed") for e in entries if (o := e.run.record.get("organism"))}
    notes += organism_notes(entries, organisms)
    differences = []
    for a, b in combinations(entries, 2):
        for metric in metrics:
            if problem := unpaired(a, b, metric):
                notes.append(problem)
            else:
                differences += _differences(a, b, metric)
    columns = ["run_a", "run_b", "metric", "quantity", "difference", "low", "high", "clear", "n"]
    walked = {e.name: e.run for e in entries}
    sharing = {e.name: _sharing(e, entries, compared) for e in entries}
    gaps, table = merged(gaps), pd.DataFrame(rows)
    return Comparison(
        table=table,
        differences=pd.DataFrame(differences, columns=columns),
        notes=(*gaps, *notes),
        gaps=tuple(gaps),
        organisms=tuple(dict.fromkeys(organisms.values())),
        controls=pd.DataFrame([row for e in entries for row in _control_rows(e, sharing[e.name])]),
        attacks=pd.DataFrame([row for e in entries for row in _attack_rows(e, sharing[e.name])]),
        unlearning=equal_unlearning(walked),
        compute=equal_compute(walked),
        tuning=_tuning(runs, found, [e.name for e in entries], table),
    )


def _labels(runs: Sequence[Run | str | Path], found: Sequence[Sequence[Run]], entries: Sequence[Entry]) -> list[str]:
    """What sweeps call their runs, with the sweep's name where two say the same (of other options, perhaps); none where
    no run has a label."""
    given = [[one.record.get("label") for one in some] for some in found]
    of = {label: sum(label in own for own in given) for own in given for label in own if label}
    sweeps = [(sweep_of(run) or {}).get("name") or f"{n}" for n, run in enumerate(runs, start=1)]
    said = [
        label if of.get(label) == 1 else f"{sweep}/{label}" if label else ""
        for sweep, own in zip(sweeps, given, strict=True)
        for label in own
    ]
    return [label or e.name for e, label in zip(entries, said, strict=True)] if of else []


def _tuning(
    runs: Sequence[Run | str | Path], found: Sequence[Sequence[Run]], names: Sequence[str], table: pd.DataFrame
) -> pd.DataFrame:
    """Of each sweep among ``runs``, whose methods at budgets are ``found`` and are called ``names`` here."""
    parts, called = [], iter(names)
    for run, some in zip(runs, found, strict=True):
        own = {one.name: next(called) for one in some}
        if (record := sweep_of(run)) is not None:
            parts.append(tuning_table(record, table, own))
    searched = [part for part in parts if len(part)]
    return pd.concat(searched, ignore_index=True) if searched else pd.DataFrame()


def _resampler(e: Entry, metric: str, seed: int, resamples: int, *, alike: bool) -> Resampler:
    """Items and, where all runs have the same, seeds are drawn alike for all, which pairs them; of seeds that are not
    ``alike`` those of equal runs are. What was not seen of two edits is drawn apart."""
    scores = e.scores[metric]
    kept = ("method", "options", "disruption")
    edit = repr([{key: edit.get(key) for key in kept} for edit in e.run.edits])
    unseen = {"edited": zlib.crc32(edit.encode())}
    return Resampler(
        scores.shape, resamples=resamples, seed=seed, share=scores.is_share, groups=scores.groups, unseen=unseen,
        of_seeds=None if alike else zlib.crc32(repr(scores.seeds).encode()),
    )  # fmt: skip


def _control_rows(e: Entry, sharing: str) -> list[dict[str, Any]]:
    return [
        {"run": e.name, "arm": arm, "metric": metric, "quantity": QUANTITIES[quantity]}
        | interval(cell.draws)._asdict()
        | {"of": sharing}
        for (arm, metric, quantity), cell in e.cells.items()
        if arm in CONTROLS
    ]


def _attack_rows(e: Entry, sharing: str) -> list[dict[str, Any]]:
    """In the order in which the run lists its attacks."""
    listed = [str(a.get("name")) for a in e.run.record.get("attacks") or []]
    in_turn = in_order({attack for _, _, attack in e.attacks}, listed)
    return [
        {"run": e.name, "arm": arm, "metric": metric, "attack": attack}
        | interval(cell.draws)._asdict()
        | {"by": cell.name, "of": sharing}
        for (arm, metric, attack), cell in sorted(e.attacks.items(), key=lambda found: in_turn.index(found[0][2]))
    ]


def _sharing(e: Entry, entries: Sequence[Entry], compared: set[tuple[str, str]]) -> str:
    """The runs that have the controls of this one; empty where all have."""
    same = [other.name for other in entries if _same_controls(e, other, compared)]
    return "" if len(same) == len(entries) else ", ".join(same)


def _same_controls(a: Entry, b: Entry, compared: set[tuple[str, str]]) -> bool:
    """Of the same models and items, and taken as far by the attacks that are compared, where seeds are the same."""
    as_far = all(b.last_steps.get(key, step) == step for key, step in a.last_steps.items() if key[:2] in compared)
    return as_far and _controls_of(a) == _controls_of(b)


def _controls_of(e: Entry) -> tuple[Any, ...]:
    """What makes the controls of a run what they are."""
    record = e.run.record
    never, heldout = record.get("never") or {}, (record.get("corpora") or {}).get("heldout") or {}
    return (
        (record.get("model") or {}).get("hash"), never.get("kind"), never.get("hash") or never.get("name"),
        heldout.get("hash"),
    )  # fmt: skip


def _facts(e: Entry) -> dict[str, Any]:
    edits = e.run.edits
    disruption = [edit.get("disruption") or {} for edit in edits]
    cost = [edit.get("cost") or {} for edit in edits]
    return {
        "run": e.name,
        "method": _same(edit_name(edit) for edit in edits),
        "verdict": (e.run.verdict or {}).get("verdict", "not judged"),
        "far KL": mean(d.get("kl") for d in disruption),
        "near CE": mean(d.get("near_ce") for d in disruption),
        "binds": _same(edit.get("binding") for edit in edits),
        "budget used": mean(used(edit) for edit in edits),
        "seconds": mean(c.get("seconds") for c in cost),
        "peak GiB": max((number(c.get("peak_bytes")) for c in cost), default=np.nan) / 2**30,
        "seeds": len(edits),
    }


def _capability(e: Entry) -> dict[str, Any]:
    """Share of the panel answered right before and after the edit, and the change with its interval, paired by item."""
    table: Any = capability_table(e.run)
    found = {row.arm: row for row in table[table["set"] == ALL].itertuples()}
    nothing: Any = pd.Series({"value": np.nan, "change": np.nan, "change_stderr": np.nan})
    before, after = (found.get(arm, nothing) for arm in ("original", "edited"))
    half = Z * after.change_stderr
    name = "general capability"
    return {
        f"{name}: before": before.value, f"{name}: after": after.value, f"{name}: change": after.change,
        f"{name}: change low": after.change - half, f"{name}: change high": after.change + half,
    }  # fmt: skip


def _same(values: Iterable[Any]) -> str:
    """What all seeds have, or each of them."""
    return " / ".join(dict.fromkeys(str(v) for v in values if v is not None)) or "-"


def _behaviour(e: Entry, metrics: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in metrics:
        for quantity, words in QUANTITIES.items():
            cell = e.cells.get(("edited", metric, quantity))
            column = f"{metric}: {words}"
            estimate = interval(cell.draws) if cell else (np.nan, np.nan, np.nan)
            row |= dict(zip((column, f"{column} low", f"{column} high"), estimate, strict=True))
            if quantity != "before":
                row[f"{column}, by"] = cell.name if cell else "-"
    return row


def _differences(a: Entry, b: Entry, metric: str) -> list[dict[str, Any]]:
    rows = []
    for quantity, words in QUANTITIES.items():
        cells = [e.cells.get(("edited", metric, quantity)) for e in (a, b)]
        if cells[0] is None or cells[1] is None:
            continue
        value, low, high = interval(cells[0].draws - cells[1].draws)
        rows.append(
            {
                "run_a": a.name, "run_b": b.name, "metric": metric, "quantity": words,
                "difference": value, "low": low, "high": high, "clear": bool(low > 0 or high < 0),
                "n": a.scores[metric].shape[1],
            }
        )  # fmt: skip
    return rows
