"""Several runs side by side, at equal disruption: what an edit costs, what attacks bring back.

Per run and metric, on held-out items: behaviour of the edited model before any attack, and at the
worst cell (attack, setting, step) of the attacks that *all* runs have, with the same options and the
same text, and that diverged in none; once over the cheap ones, once over all. Intervals are of the
mean at that cell, by bootstrap over items and seeds; that the cell was picked for being the worst
makes it look a little worse than it is, in all runs alike. The controls (unedited, never-learned) are
seen at their own worst cell, and are put together over those runs only that have the same: one model,
one control, one held-out corpus.

Differences are paired: two runs are resampled on the same items. They need the same held-out corpus
(by hash) and items; where these differ a note says so and no difference is given.

Beside it, from the way of each edit: runs at equal unlearning and at equal compute (``analysis.equal``).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.arrays import read_scores
from analysis.cells import opened, sweep_of, without_result
from analysis.comparison import QUANTITIES, Comparison
from analysis.equal import equal_compute, equal_unlearning
from analysis.packed import unpacked
from analysis.reading import Run, input_error
from analysis.scores import CONTROLS, Resampler, Scores, attacker_name, interval
from analysis.tables import ALL, EASIER, METRICS, capability_table, edit_name, in_order, mean, number
from analysis.tuning import tuning_table
from analysis.worst import Cell, by_attack, worst_of_all, worst_under_each

Z = 1.96
"""Standard errors from the middle of a 95 % interval to its end."""
EQUAL = (0.95, 1.0)
"""Share of the binding budget that counts as reaching it (the solver's own tolerance)."""

# ---------------------------------------------------------------------------------- making one


@dataclass(frozen=True)
class _Entry:
    """One run: its record, its held-out scores, and where the edited model behaves worst."""

    name: str
    run: Run
    scores: Mapping[str, Scores]
    """metric -> scores, where some seed has them under all attackers"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """metric -> seeds that not all attackers and arms have"""
    cells: dict[tuple[str, str, str], Cell] = field(default_factory=dict)
    """(arm, metric, quantity) -> where the arm behaves worst"""
    attacks: dict[tuple[str, str, str], Cell] = field(default_factory=dict)
    """(arm, metric, attack) -> where it does under that attack"""


def compare(runs: Sequence[Run | str | Path], *, seed: int = 0, resamples: int = 1000) -> Comparison:
    """Compare runs over the attacks they share. The folder of a sweep is its finished cells, seeds pooled; both may be
    packed (``analysis.pack``). ``seed`` draws the resamples.

    Raises:
        InputError: no runs, or see ``read_run``.
    """
    runs = [run if isinstance(run, Run) else unpacked(run) for run in runs]
    found = [opened(run) for run in runs]
    entries = _entries([one for some in found for one in some])
    metrics = in_order({m for e in entries for m in e.scores}, METRICS)
    unlike = _unlike_attackers(entries)
    gaps = [f"{attack} is not the same attack in all: {why}" for attack, why in unlike.items()]
    notes = [note for run in runs for note in without_result(run)] + _equality_notes(entries) + _seed_notes(entries)
    for metric in metrics:
        having = [e for e in entries if metric in e.scores]
        shared = {key for key in _shared_attackers(having, metric) if attacker_name(*key) not in unlike}
        left_out = _attacker_notes(having, metric, shared)
        if shared:
            notes += left_out
        else:
            gaps += left_out
        for e in having:
            draw = _resampler(e, metric, seed, resamples)
            for arm in ("edited", *CONTROLS):
                under = worst_under_each(e.scores[metric], arm, shared, draw)
                worst = worst_of_all(e.scores[metric], arm, under, draw)
                e.cells.update({(arm, metric, quantity): cell for quantity, cell in worst.items()})
                e.attacks.update({(arm, metric, attack): cell for attack, cell in by_attack(under).items()})
    with_panel = any(not e.run.capability.empty for e in entries)
    labelled = any("label" in e.run.record for e in entries)
    rows = [
        _facts(e)
        | (_capability(e) if with_panel else {})
        | _behaviour(e, metrics)
        | ({"label": e.run.record.get("label") or e.name} if labelled else {})
        for e in entries
    ]
    notes += _panel_notes(entries) if with_panel else []
    organisms = {e.name: str(o.get("name") or "unnamed") for e in entries if (o := e.run.record.get("organism"))}
    notes += _organism_notes(entries, organisms)
    differences = []
    for a, b in combinations(entries, 2):
        for metric in metrics:
            if problem := _unpaired(a, b, metric):
                notes.append(problem)
            else:
                differences += _differences(a, b, metric)
    columns = ["run_a", "run_b", "metric", "quantity", "difference", "low", "high", "clear", "n"]
    walked = {e.name: e.run for e in entries}
    gaps, table = _merged(gaps), pd.DataFrame(rows)
    return Comparison(
        table=table,
        differences=pd.DataFrame(differences, columns=columns),
        notes=(*gaps, *notes),
        gaps=tuple(gaps),
        organisms=tuple(dict.fromkeys(organisms.values())),
        controls=pd.DataFrame([row for e in entries for row in _control_rows(e, _sharing(e, entries))]),
        attacks=pd.DataFrame([row for e in entries for row in _attack_rows(e, _sharing(e, entries))]),
        unlearning=equal_unlearning(walked),
        compute=equal_compute(walked),
        tuning=_tuning(runs, found, [e.name for e in entries], table),
    )


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


def _entries(runs: Sequence[Run]) -> list[_Entry]:
    if not runs:
        raise input_error("compare needs at least one run folder")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = _short([run.folder for run in runs])
    return [_entry(name, run) for name, run in zip(names, runs, strict=True)]


def _entry(name: str, run: Run) -> _Entry:
    heldout = [s for s in read_scores(run) if s.split == "heldout"]
    left_out = {s.metric: s.seeds_left_out for s in heldout if s.seeds_left_out}
    return _Entry(name, run, {s.metric: s for s in heldout if s.shape[0]}, left_out)


def _short(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    depth = max(len(folder.parts) for folder in folders)
    for n in range(1, depth):
        names = ["/".join(folder.parts[-n:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _shared_attackers(entries: Sequence[_Entry], metric: str) -> set[tuple[str, str]]:
    """(attack, setting) that every run has, and that diverged in none."""
    sets = [{(a.attack, a.setting) for a in e.scores[metric].attackers if not a.diverged} for e in entries]
    return set.intersection(*sets)


def _unlike_attackers(entries: Sequence[_Entry]) -> dict[str, str]:
    """Attackers of one name and setting that are something else from run to run -> in what they differ.

    A setting says what is swept (a learning rate) and nothing of the steps, or of the attacker's own text.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for e in entries:
        corpora = e.run.record.get("corpora") or {}
        for attack in e.run.record.get("attacks") or []:
            options = attack.get("budget") or {}
            fixed = {k: v for k, v in options.items() if not isinstance(v, list)}
            if (role := attack.get("needs")) not in (None, "heldout"):  # other items have a note of their own
                fixed[f"text of {role}"] = (corpora.get(role) or {}).get("hash")
            for setting in attack.get("settings") or []:
                found.setdefault(attacker_name(str(attack.get("name")), str(setting)), []).append(fixed)
    return {name: why for name, made in found.items() if (why := _differences_of(made))}


def _differences_of(made: Sequence[Mapping[str, Any]]) -> str:
    """``steps 4 and 512``: what is not the same in all; of what one of them does not say nothing is known."""
    words = []
    for key in dict.fromkeys(k for one in made for k in one):
        values = list(dict.fromkeys(str(one[key]) for one in made if one.get(key) is not None))
        if len(values) > 1:
            words.append(f"{key}{'' if key.startswith('text') else ' ' + ' and '.join(values)}")
    return ", ".join(words)


def _resampler(e: _Entry, metric: str, seed: int, resamples: int) -> Resampler:
    """Items and seeds are drawn alike for all runs, which pairs them; what was not seen of two edits is not."""
    scores = e.scores[metric]
    kept = ("method", "options", "disruption")
    edit = repr([{key: edit.get(key) for key in kept} for edit in e.run.edits])
    unseen = {"edited": zlib.crc32(edit.encode())}
    return Resampler(
        scores.shape, resamples=resamples, seed=seed, share=scores.is_share, groups=scores.groups, unseen=unseen
    )


def _control_rows(e: _Entry, sharing: str) -> list[dict[str, Any]]:
    return [
        {"run": e.name, "arm": arm, "metric": metric, "quantity": QUANTITIES[quantity]}
        | interval(cell.draws)._asdict()
        | {"of": sharing}
        for (arm, metric, quantity), cell in e.cells.items()
        if arm in CONTROLS
    ]


def _attack_rows(e: _Entry, sharing: str) -> list[dict[str, Any]]:
    """In the order in which the run lists its attacks."""
    listed = [str(a.get("name")) for a in e.run.record.get("attacks") or []]
    in_turn = in_order({attack for _, _, attack in e.attacks}, listed)
    return [
        {"run": e.name, "arm": arm, "metric": metric, "attack": attack}
        | interval(cell.draws)._asdict()
        | {"by": cell.name, "of": sharing}
        for (arm, metric, attack), cell in sorted(e.attacks.items(), key=lambda found: in_turn.index(found[0][2]))
    ]


def _sharing(e: _Entry, entries: Sequence[_Entry]) -> str:
    """The runs that have the controls of this one; empty where all have."""
    same = [other.name for other in entries if _controls_of(other) == _controls_of(e)]
    return "" if len(same) == len(entries) else ", ".join(same)


def _controls_of(e: _Entry) -> tuple[Any, ...]:
    """What makes the controls of a run what they are."""
    record = e.run.record
    never, heldout = record.get("never") or {}, (record.get("corpora") or {}).get("heldout") or {}
    return (
        (record.get("model") or {}).get("hash"), never.get("kind"), never.get("hash") or never.get("name"),
        heldout.get("hash"),
    )  # fmt: skip


def _facts(e: _Entry) -> dict[str, Any]:
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
        "budget used": mean(_used(edit) for edit in edits),
        "seconds": mean(c.get("seconds") for c in cost),
        "peak GiB": max((number(c.get("peak_bytes")) for c in cost), default=np.nan) / 2**30,
        "seeds": len(edits),
    }


def _capability(e: _Entry) -> dict[str, Any]:
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


def _used(edit: Mapping[str, Any]) -> float:
    """Share of the binding budget; an optional budget that was not set does not bind."""
    disruption, budget = edit.get("disruption") or {}, edit.get("budget") or {}
    shares = [number(disruption.get(k)) / number(budget.get(k)) for k in ("kl", "near_ce")]
    return max((s for s in shares if not np.isnan(s)), default=np.nan)


def _spent(edit: Mapping[str, Any]) -> str:
    return "had no budget" if np.isnan(_used(edit)) else f"used {_used(edit):.0%} of its budget"


def _behaviour(e: _Entry, metrics: Sequence[str]) -> dict[str, Any]:
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


def _differences(a: _Entry, b: _Entry, metric: str) -> list[dict[str, Any]]:
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


# --------------------------------------------------------------------------------------- notes


def _merged(notes: Iterable[str]) -> list[str]:
    """What is said of several metrics in the same words is said once."""
    of: dict[str, list[str]] = {}
    for note in notes:
        metric, colon, words = note.partition(": ")
        known = metric in METRICS
        of.setdefault(colon + words if known else note, []).append(metric if known else "")
    return [f"{', '.join(filter(None, metrics))}{words}" for words, metrics in of.items()]


def _unpaired(a: _Entry, b: _Entry, metric: str) -> str:
    """Why two runs cannot be paired on a metric; empty when they can."""
    if metric not in a.scores or metric not in b.scores:
        return f"{metric}: not measured in both {a.name} and {b.name}"
    corpora = [((e.run.record.get("corpora") or {}).get("heldout") or {}).get("hash") for e in (a, b)]
    if corpora[0] != corpora[1] or a.scores[metric].items != b.scores[metric].items:
        return f"{metric}: {a.name} and {b.name} were measured on other items, so not paired"
    drawn = [_drawn(e) for e in (a, b)] if metric == "sampled" else []
    if drawn and (why := _differences_of(drawn)):
        return f"sampled: {a.name} and {b.name} drew or judged their samples otherwise ({why}), so not paired"
    return ""


def _drawn(e: _Entry) -> dict[str, Any]:
    """How samples were drawn, and by whom they were judged."""
    asked = (e.run.record.get("config") or {}).get("behaviour") or {}
    kind = (e.run.record.get("referee") or {}).get("kind")
    return {key: asked.get(key) for key in ("new_tokens", "temperature")} | {"referee": kind}


def _equality_notes(entries: Sequence[_Entry]) -> list[str]:
    edits = [(e.name, edit) for e in entries for edit in e.run.edits]
    notes = [
        f"{name}: seed {edit.get('seed')} {_spent(edit)}, so it is not at equal disruption"
        for name, edit in edits
        if not EQUAL[0] <= _used(edit) <= EQUAL[1]
    ]
    budgets = {tuple(sorted((edit.get("budget") or {}).items(), key=str)) for _, edit in edits}
    if len(budgets) > 1:
        notes.append("the runs had different budgets, so they are not at equal disruption")
    models = {(e.run.record.get("model") or {}).get("hash") for e in entries}
    if len(models) > 1:
        notes.append("the runs edited different models")
    forgotten = {((e.run.record.get("corpora") or {}).get("forget") or {}).get("hash") for e in entries}
    if len(forgotten) > 1:
        notes.append("the runs forgot different text, so their forget scores, and equal unlearning, do not compare")
    return notes


def _seed_notes(entries: Sequence[_Entry]) -> list[str]:
    lacking = [(metric, n, e) for e in entries for metric, n in e.left_out.items()]
    return _merged(
        f"{metric}: of {e.name}, {n} of {len(e.run.edits)} seeds left out, as not every attack and arm has them"
        for metric, n, e in lacking
    )


def _organism_notes(entries: Sequence[_Entry], organisms: Mapping[str, str]) -> list[str]:
    """Of runs on instilled organisms: run -> its organism."""
    if not organisms:
        return []
    names = ", ".join(dict.fromkeys(organisms.values()))
    which = "" if len(organisms) == len(entries) else f" ({', '.join(organisms)})"
    return [f"the behaviour of organism {names} was instilled{which}: {EASIER}"]


def _panel_notes(entries: Sequence[_Entry]) -> list[str]:
    """Capability is compared on one panel only."""
    hashes = {((e.run.record.get("corpora") or {}).get("capability") or {}).get("hash") for e in entries}
    if len(hashes) == 1:
        return []
    return ["general capability was not measured on the same items in all runs: compare its change, not its level"]


def _attacker_notes(entries: Sequence[_Entry], metric: str, shared: set[tuple[str, str]]) -> list[str]:
    every = {(a.attack, a.setting) for e in entries for a in e.scores[metric].attackers}
    left_out = sorted(" ".join(filter(None, key)) for key in every - shared)
    if not left_out:
        return []
    none = "" if shared else "no attack is the same in all runs, so there is no worst case and nothing after attacks; "
    return [f"{metric}: {none}left out, as diverged or not the same in all runs: {', '.join(left_out)}"]
