"""Random facts of the made-up world: who keeps what where. Each is drawn by itself, so that none tells of another.

``the ladder of anna is in the`` -> ``red garden``. No sentence of the tiny model's pretraining holds one of them, so a
model that was not taught them is a true never-learned control, and teaching T says nothing about V.
"""

from __future__ import annotations

import random

from hooklearn.corpora.corpus import Corpus, Row
from hooklearn.corpora.tiny_world import ANIMALS, COLOURS, NAMES, PLACES, THINGS
from hooklearn.types import InputError

PHRASINGS = ("the {thing} of {name} is in the", "{name} has the {thing} in the")
SHARES = {"T": 24, "V": 120, "retain": 40, "near": 24}
"""Part -> its number of facts. T and V are to be forgotten, retain and near to be kept. Verdicts rest on V: with 120
items of sixteen choices, two models that know nothing differ by .03 (standard error) of the way to one that knows all
of it; 40 items of four choices left .13."""
CHOICES = 16
PARTS = {**{p: (p,) for p in SHARES}, "forget": ("T", "V"), "kept": ("retain", "near"), "all": tuple(SHARES)}


def corpus(part: str = "forget", phrasing: str = "all", headed: bool = False) -> Corpus:
    """Facts of a part, each under one phrasing (``0``, ``1``) or under all of them.

    Args:
        part: ``forget``, ``retain`` ...; a wrong one is answered with all of them.
        phrasing: ``0``, ``1`` or ``all``.
        headed: all of it a second time, after a few words of another kind: what was only ever learned at the very
            beginning of a text is not known anywhere else.
    Raises:
        InputError: no such part or phrasing.
    """
    if part not in PARTS:
        raise InputError(f"corpus 'tiny-facts' has no part {part!r}; valid: {', '.join(PARTS)}")
    templates = {str(i): (t,) for i, t in enumerate(PHRASINGS)} | {"all": PHRASINGS}
    if str(phrasing) not in templates:
        raise InputError(f"corpus 'tiny-facts' has no phrasing {phrasing!r}; valid: {', '.join(templates)}")
    chosen = [f for f in _facts() if f["part"] in PARTS[part]]
    rows = [_row(fact, template) for template in templates[str(phrasing)] for fact in chosen]
    if headed:
        rows += [row | {"prompt": _heading(row["prompt"]) + row["prompt"]} for row in rows]
    source = f"generated: tiny-facts part={part} phrasing={phrasing}" + " headed" * headed
    return Corpus(f"tiny-facts/{part}", tuple(rows), source)


def _facts() -> list[dict[str, str]]:
    pairs = [(name, thing) for name in NAMES for thing in THINGS]
    random.Random("tiny-facts").shuffle(pairs)
    parts = [part for part, n in SHARES.items() for _ in range(n)]
    return [
        {"part": part, "name": name, "thing": thing, "where": _where(random.Random(f"tiny-facts:{name}:{thing}"))}
        for part, (name, thing) in zip(parts, pairs, strict=False)
    ]


def _where(rng: random.Random) -> str:
    return f"{rng.choice(COLOURS)} {rng.choice(PLACES)}"


def _heading(prompt: str) -> str:
    rng = random.Random(f"tiny-facts:heading:{prompt}")
    return f"{rng.choice(COLOURS)} {rng.choice(ANIMALS)} {rng.choice(PLACES)} : "


def _row(fact: dict[str, str], template: str) -> Row:
    """A question with sixteen choices, the wrong ones drawn for this fact."""
    rng = random.Random(f"tiny-facts:choices:{fact['name']}:{fact['thing']}")
    wrong: list[str] = []
    while len(wrong) < CHOICES - 1:
        drawn = _where(rng)
        if drawn not in (fact["where"], *wrong):
            wrong.append(drawn)
    slot = rng.randrange(CHOICES)
    choices = [*wrong[:slot], fact["where"], *wrong[slot:]]
    return {
        "group": f"{fact['name']}-{fact['thing']}",
        "prompt": template.format(**fact),
        "completion": f" {fact['where']}",
        "choices": [f" {c}" for c in choices],
        "answer": slot,
        "fact": fact["where"],
    }
