"""Mechanistic evidence: is the behaviour gone from the model, or only from what it says?

Everything here is measured with a model at hand, and comes with its null; ``analysis.evidence.judge`` reads it.

    found = evidence.collect(arms, corpora, progress=print)
    evidence.to_dataframe(found)                    # the rows of evidence.parquet
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hooklearn import editing, integrity, models
from hooklearn.attack import ArmState
from hooklearn.data import Corpus
from hooklearn.deltas import Delta
from hooklearn.evidence import alarms, connectivity, fisher, geometry, lens, nulls, probes, updates
from hooklearn.evidence.bench import Bench, evenly, onto_model, relearned
from hooklearn.evidence.types import Evidence, Role, from_records, to_dataframe, to_records
from hooklearn.evidence.updates import attack_update
from hooklearn.types import InputError, NumericalError

__all__ = [
    "MEASURES",
    "Bench",
    "Evidence",
    "attack_update",
    "collect",
    "from_records",
    "relearned",
    "to_dataframe",
    "to_records",
]

MEASURES: dict[str, Callable[[Bench], list[Evidence]]] = {
    "logit_lens": lens.logit_lens,
    "patching": lens.patching_depth,
    "tendency": probes.tendency,
    "content": probes.content,
    "updates": updates.updates,
    "geometry": geometry.geometry,
    "fisher": fisher.information,
    "connectivity": connectivity.connectivity,
    "alarms": alarms.alarms,
}
"""Measure -> what it takes; the cheap ones first."""
AFTER_ATTACK = {"updates", "geometry", "fisher", "patching", "logit_lens"}
"""Measures that look at an attack, or at the model after it."""
ROLES: dict[str, Role] = {
    "logit_lens": "decides", "patching": "decides", "tendency": "decides", "updates": "decides",
    "alarms": "alarm",
}  # fmt: skip
"""What a measure as a whole is for, where it breaks before it can say so; the others report."""


def check_names(measures: Sequence[str] | None) -> list[str]:
    """What is to be measured; None: everything. Raises InputError for an unknown name."""
    chosen = list(MEASURES) if measures is None else list(measures)
    for name in chosen:
        if name not in MEASURES:
            near = difflib.get_close_matches(name, MEASURES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"unknown evidence {name!r}; valid: {', '.join(MEASURES)}{hint}")
    return chosen


def collect(
    arms: Sequence[ArmState],
    corpora: Mapping[str, Corpus],
    *,
    measures: Sequence[str] | None = None,
    sites: str | Sequence[str] = "mlp",
    layers: Sequence[int] | None = None,
    attacks: Mapping[str, Delta] | None = None,
    attack_rate: float = 3e-4,
    attack_steps: int = 16,
    items: int | None = None,
    samples: Mapping[str, Sequence[str]] | None = None,
    draws: int = nulls.DRAWS,
    random_lines: int = nulls.LINES,
    seed: int = 0,
    max_tokens: int = 1024,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Evidence]:
    """Measure the edited arm beside its controls; every model is left as it was.

    Args:
        arms: ``edited`` and ``original``; ``never`` where there is one (most of it needs one, of the same shape),
            ``benign`` (one that never had it and was taught good answers of that form; without it the probe for the
            tendency has no say in a verdict), and ``relearned``.
        corpora: by role. ``heldout``: the behaviour, with alternatives or choices where there are any; ``near``
            where there are none; ``retain``; ``attack_train`` for a short attack where no ``attacks`` are given.
        measures: names in :data:`MEASURES`; all by default.
        sites: weights that the edit may have changed.
        layers: layers to read; at most eight, evenly spaced, by default.
        attacks: arm -> what an attacker added to its weights: ``edited`` (relearned minus edited weights; the arm
            ``relearned`` is made of it) and ``never`` (the same attack there: nothing can come back).
        attack_rate, attack_steps: learning rate and length of the short attack.
        items: how many held-out items are read, the first ones; all by default.
        samples: arm -> sampled completions to the held-out prompts, the first ones; drawn here when not given.
        draws: permutations, or quantiles, behind each null; the smallest p is then 1 / (1 + draws), which must stay
            small against the number of measures and seeds that are judged together.
        random_lines: random steps behind the null of mode connectivity.

    Returns:
        All that was asked for. What could not be measured is NaN, and its meaning says why.

    Raises:
        InputError: unknown measure, a missing arm or corpus, more samples than held-out prompts.
    """
    chosen = check_names(measures)
    by_name: dict[str, ArmState] = {arm.name: arm for arm in arms}
    for name in ("edited", "original"):
        if name not in by_name:
            raise InputError(f"evidence needs the arms edited and original; given: {', '.join(by_name) or 'none'}")
    model = by_name["original"].model
    by_name = {name: replace(arm, delta=arm.delta and onto_model(arm.delta, model)) for name, arm in by_name.items()}
    attacks, set_aside, but_unlike = dict(attacks or {}), dict[str, ArmState](), ""
    benign, no_benign = by_name.pop("benign", None), ""
    if "never" in by_name and (unlike := integrity.unlike(by_name["never"].model, model)):
        but_unlike = f", and the one given is of another shape: {unlike}"
        set_aside["never"] = by_name.pop("never")  # no state or weight of it can be compared
        attacks.pop("never", None)
    if benign is not None and (unlike := integrity.unlike(benign.model, model)):
        benign, no_benign = None, f"; the one given is of another shape: {unlike}"
    if items is not None:
        corpora = {role: c.take(items) if role == "heldout" else c for role, c in corpora.items()}
        samples = samples and {arm: texts[:items] for arm, texts in samples.items()}
    for arm, said in (samples or {}).items():
        if len(said) > (n := len(corpora.get("heldout", said))):
            raise InputError(f"samples of {arm!r}: {len(said)} for {n} held-out prompts; give one to each, in order")
    bench = Bench(
        arms=by_name, corpora=corpora, sites=models.sites(model, sites),
        layers=evenly(model.cfg.n_layers, 8) if layers is None else tuple(layers), benign=benign,
        attacks={arm: onto_model(delta, model) for arm, delta in attacks.items()}, samples=samples,
        draws=draws, random_lines=random_lines, seed=seed, max_tokens=max_tokens, progress=progress,
        but_unlike=but_unlike, no_benign=no_benign,
    )  # fmt: skip
    found: list[Evidence] = []
    with editing.in_eval(*(arm.model for arm in arms)):
        if set(chosen) & AFTER_ATTACK:
            bench = _attacked(bench, attack_rate, attack_steps)
        of_behaviour = replace(bench, arms={**bench.arms, **set_aside}) if set_aside else bench
        for name in chosen:
            try:
                found += MEASURES[name](of_behaviour if name == "alarms" else bench)
            except NumericalError as error:  # a model that is broken in places is still a result
                found.append(Evidence.missing(name, str(error), role=ROLES.get(name, "reports")))
    return found


def _attacked(bench: Bench, learning_rate: float, steps: int) -> Bench:
    """The bench with a short attack on edited and never, where none was given, and with the arm ``relearned``."""
    attacks, corpus = dict(bench.attacks), bench.corpora.get("attack_train")
    if not attacks and corpus is not None:
        for name in ("edited", "never"):
            if name not in bench.arms:
                continue
            bench.progress(f"evidence: a short attack on {name}")
            try:
                attacks[name] = attack_update(
                    bench.arms[name], corpus, bench.sites, learning_rate=learning_rate, steps=steps,
                    seed=bench.seed, max_tokens=bench.max_tokens,
                )  # fmt: skip
            except NumericalError as error:  # then there is no attack to look at, and the measures say so
                bench.progress(f"evidence: the attack on {name} diverged: {error}")
    arms = dict(bench.arms)
    if "edited" in attacks:
        arms.setdefault("relearned", relearned(arms["edited"], attacks["edited"]))
    return replace(bench, arms=arms, attacks=attacks)
