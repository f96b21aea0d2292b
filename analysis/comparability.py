"""The runs of a comparison, and what keeps them from being compared: attackers, budgets, items, seeds and samples that
are not the same in all. What cannot be mended is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.arrays import read_scores
from analysis.reading import Run, input_error
from analysis.scores import Scores, attacker_name
from analysis.tables import EASIER, METRICS, number, share
from analysis.worst import Cell

EQUAL = (0.95, 1.0)
"""Share of the binding budget that counts as reaching it (the solver's own tolerance)."""


@dataclass(frozen=True)
class Entry:
    """One run: its record, its held-out scores, and where the edited model behaves worst."""

    name: str
    run: Run
    scores: Mapping[str, Scores]
    """metric -> scores, where some seed has them under all attackers"""
    last_steps: Mapping[tuple[str, str, int], int]
    """(attack, setting, seed) -> the last step at which it was looked at"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """metric -> seeds that not all attackers and arms have"""
    cells: dict[tuple[str, str, str], Cell] = field(default_factory=dict)
    """(arm, metric, quantity) -> where the arm behaves worst"""
    attacks: dict[tuple[str, str, str], Cell] = field(default_factory=dict)
    """(arm, metric, attack) -> where it does under that attack"""


def entries_of(runs: Sequence[Run]) -> list[Entry]:
    if not runs:
        raise input_error("compare needs at least one run folder")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = _short([run.folder for run in runs])
    return [_entry(name, run) for name, run in zip(names, runs, strict=True)]


def _entry(name: str, run: Run) -> Entry:
    heldout = [s for s in read_scores(run) if s.split == "heldout"]
    left_out = {s.metric: s.seeds_left_out for s in heldout if s.seeds_left_out}
    curves = run.curves
    by = ["attack", "setting", "seed"]
    last: Any = curves[curves["split"] == "heldout"].groupby(by, observed=True)["step"].max()
    steps = {key: int(step) for key, step in last.items()}
    return Entry(name, run, {s.metric: s for s in heldout if s.shape[0]}, steps, left_out)


def _short(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    depth = max(len(folder.parts) for folder in folders)
    for n in range(1, depth):
        names = ["/".join(folder.parts[-n:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def shared_attackers(entries: Sequence[Entry], metric: str) -> set[tuple[str, str]]:
    """(attack, setting) that every run has, and that diverged in none."""
    sets = [{(a.attack, a.setting) for a in e.scores[metric].attackers if not a.diverged} for e in entries]
    return set.intersection(*sets)


def unlike_attackers(entries: Sequence[Entry]) -> dict[str, str]:
    """Attackers of one name and setting that are something else from run to run -> in what they differ.

    A setting says what is swept (a learning rate) and nothing of the steps, or of the attacker's own text.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for e in entries:
        corpora = e.run.record.get("corpora") or {}
        for attack in e.run.record.get("attacks") or []:
            options = attack.get("budget") or {}
            fixed = {k: v for k, v in options.items() if not isinstance(v, list)}
            if "learning_rates" in options:  # an epoch is as many steps as there are batches
                fixed["max_tokens"] = (e.run.record.get("config") or {}).get("max_tokens")
            if (role := attack.get("needs")) not in (None, "heldout"):  # other items have a note of their own
                fixed[f"text of {role}"] = (corpora.get(role) or {}).get("hash")
            climbed = [spent.get("setting") or "" for spent in attack.get("spent") or []]
            for setting in dict.fromkeys([*(attack.get("settings") or []), *climbed]):
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


def unpaired(a: Entry, b: Entry, metric: str) -> str:
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


def _drawn(e: Entry) -> dict[str, Any]:
    """How samples were drawn, and by whom they were judged."""
    asked = (e.run.record.get("config") or {}).get("behaviour") or {}
    referee, never = e.run.record.get("referee") or {}, e.run.record.get("never") or {}
    line = referee.get("threshold")
    return {key: asked.get(key) for key in ("new_tokens", "temperature")} | {
        "referee": referee.get("kind"), "its threshold": None if line is None else f"{number(line):.2f}",
        "never": never.get("hash"),
    }  # fmt: skip


def equality_notes(entries: Sequence[Entry]) -> list[str]:
    edits = [(e.name, edit) for e in entries for edit in e.run.edits]
    notes = [
        f"{name}: seed {edit.get('seed')} {_spent(edit)}, so it is not at equal disruption"
        for name, edit in edits
        if not EQUAL[0] <= used(edit) <= EQUAL[1]
    ]
    budgets = {tuple(sorted((edit.get("budget") or {}).items(), key=str)) for _, edit in edits}
    if len(budgets) > 1:
        notes.append("the runs had different budgets, so they are not at equal disruption")
    models = {(e.run.record.get("model") or {}).get("hash") for e in entries}
    if len(models) > 1:
        notes.append("the runs edited different models")
    if len(_texts(entries, "forget")) > 1:
        notes.append("the runs forgot different text, so their forget scores, and equal unlearning, do not compare")
    for role, what in (("disruption", "far KL"), ("near", "near CE")):
        if len(_texts(entries, role)) > 1:
            notes.append(f"the runs measured {what} on different text, so they are not at equal disruption")
    return notes


def _texts(entries: Sequence[Entry], role: str) -> set[str]:
    """What the runs that have it read in this role, by its hash."""
    return {h for e in entries if (h := ((e.run.record.get("corpora") or {}).get(role) or {}).get("hash"))}


def length_notes(entries: Sequence[Entry], shared: set[tuple[str, str]]) -> list[str]:
    """A note where an attack ended at another step under the same seed: a run's ends where its own edited model is at
    rest, a sweep's at the cap."""
    notes = []
    for attack, setting in sorted(shared):
        for seed in sorted({seed for e in entries for _, _, seed in e.last_steps}):
            key = (attack, setting, seed)
            at = {e.name: e.last_steps[key] for e in entries if key in e.last_steps}
            if len(set(at.values())) > 1:
                ended = ", ".join(f"{step} in {name}" for name, step in at.items())
                name = attacker_name(attack, setting)
                notes.append(f"{name} ended at step {ended}: more looks, and a longer attack, show more")
                break
    return notes


def used(edit: Mapping[str, Any]) -> float:
    """Share of the binding budget; an optional budget that was not set does not bind."""
    disruption, budget = edit.get("disruption") or {}, edit.get("budget") or {}
    shares = [share(disruption.get(k), budget.get(k)) for k in ("kl", "near_ce")]
    return max((s for s in shares if not np.isnan(s)), default=np.nan)


def _spent(edit: Mapping[str, Any]) -> str:
    return "had no budget" if np.isnan(used(edit)) else f"used {used(edit):.0%} of its budget"


def seed_notes(entries: Sequence[Entry]) -> list[str]:
    lacking = [(metric, n, e) for e in entries for metric, n in e.left_out.items()]
    return merged(
        f"{metric}: of {e.name}, {n} of {len(e.run.edits)} seeds left out, as not every attack and arm has them"
        for metric, n, e in lacking
    )


def unlike_seeds(entries: Sequence[Entry], metric: str) -> list[str]:
    """A note where runs have other seeds, which then do not pair them: theirs are drawn apart."""
    seeds = {e.name: ", ".join(map(str, e.scores[metric].seeds)) for e in entries}
    if len(set(seeds.values())) < 2:
        return []
    of = "; ".join(f"{', '.join(n for n in seeds if seeds[n] == s)} {s}" for s in dict.fromkeys(seeds.values()))
    return [f"{metric}: not the same seeds in all runs ({of}), so those with other ones are paired by item alone"]


def organism_notes(entries: Sequence[Entry], organisms: Mapping[str, str]) -> list[str]:
    """Of runs on instilled organisms: run -> its organism."""
    if not organisms:
        return []
    names = ", ".join(dict.fromkeys(organisms.values()))
    which = "" if len(organisms) == len(entries) else f" ({', '.join(organisms)})"
    return [f"the behaviour of organism {names} was instilled{which}: {EASIER}"]


def panel_notes(entries: Sequence[Entry]) -> list[str]:
    """Capability is compared on one panel only."""
    hashes = {((e.run.record.get("corpora") or {}).get("capability") or {}).get("hash") for e in entries}
    if len(hashes) == 1:
        return []
    return ["general capability was not measured on the same items in all runs: compare its change, not its level"]


def score_notes(entries: Sequence[Entry]) -> list[str]:
    """The forget score is read on more items where an edit is to stop at a level of it."""
    budgets = {e.name: (e.run.record.get("config") or {}).get("budget") or {} for e in entries}
    to_a_level = [name for name, budget in budgets.items() if budget.get("forget") is not None]
    if len(to_a_level) in (0, len(entries)):
        return []
    which = ", ".join(to_a_level)
    return [
        f"the forget score of {which} was read on more forget items than that of the others, as the edit was to stop "
        "at a level of it: at equal unlearning and at equal compute they are not to be compared with these"
    ]


def attacker_notes(entries: Sequence[Entry], metric: str, shared: set[tuple[str, str]]) -> list[str]:
    every = {(a.attack, a.setting) for e in entries for a in e.scores[metric].attackers}
    left_out = sorted(" ".join(filter(None, key)) for key in every - shared)
    if not left_out:
        return []
    none = "" if shared else "no attack is the same in all runs, so there is no worst case and nothing after attacks; "
    return [f"{metric}: {none}left out, as diverged or not the same in all runs: {', '.join(left_out)}"]


def merged(notes: Iterable[str]) -> list[str]:
    """What is said of several metrics in the same words is said once."""
    of: dict[str, list[str]] = {}
    for note in notes:
        metric, colon, words = note.partition(": ")
        known = metric in METRICS
        of.setdefault(colon + words if known else note, []).append(metric if known else "")
    return [f"{', '.join(filter(None, metrics))}{words}" for words, metrics in of.items()]
