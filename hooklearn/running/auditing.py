"""An audit as a run: two models made elsewhere, the same attacks, evidence and rules; nothing is edited."""

from __future__ import annotations

import copy
import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hooklearn.attack import attack_of
from hooklearn.batteries import battery as named_battery
from hooklearn.loading import LOCAL_FORMATS
from hooklearn.recipes import EVIDENCE, Config
from hooklearn.types import InputError

DEFAULTS: dict[str, Config] = {
    "disruption": {"name": "prose", "options": {"part": "disruption"}},
    "unrelated": {"name": "unrelated", "options": {"part": "erode"}},
}
"""Role -> the built-in corpus that stands in for it."""
SURROGATE = "permuted"
"""In place of a never-learned model: the same facts with their answers permuted."""
SAMPLES = 96
"""Held-out prompts to sample from, or all where there are fewer; a run of ours takes 32.

An audit has to recognise the gold standard, the never-learned model itself, as REMOVED. Nothing came back there, and
what decides is how surely it is known. Where an attack leaves the original no more than informed when this was chosen
(a quarter of the gap; it is .4 now, and fewer would do), the lower bound of that removal is .71 with 32 samples, .80
with 48 and .90 with 96 if the gap is whole; .68, .75, .87 if it is .8; .43, .62 and .79 if it is half. The rule asks
for .8. An audit attacks once and has no edit to pay for: ``--dry-run`` puts the whole of it at 1.4 times the work with
32 (SmolLM2-135M, battery cheap).
"""


def source(text: str) -> Config:
    """A corpus as it is written on the command line -> its entry in a config.

    ``FILE``, ``hub:NAME``, or a built-in name with what is asked of it: ``capitals:part=V,phrasings=heldout``.

    Raises:
        InputError: an option without ``=``.
    """
    if text.startswith("hub:"):
        return {"hub": text.removeprefix("hub:")}
    # a folder may be called like a built-in corpus, and a name or an option may have a dot in it
    if os.path.isfile(text) or Path(text).suffix in LOCAL_FORMATS:  # noqa: PTH113 (a name that is too long is none)
        return {"path": text}
    if os.sep in text and os.path.isdir(text):  # noqa: PTH112 (refused as what it is, not as an unknown name)
        return {"path": text}
    name, _, asked = text.partition(":")
    options = {}
    for option in filter(None, asked.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"corpus {text!r}: write what is asked of it as NAME:KEY=VALUE,...; got {option!r}")
        options[key] = value
    return {"name": name, "options": options} if options else {"name": name}


def audit(
    original: str,
    edited: str,
    corpora: Mapping[str, Config],
    *,
    never: str | None = None,
    battery: str = "cheap",
    attacks: list[Config] | None = None,
) -> tuple[Config, list[str]]:
    """The config of an audit, and which attacks were left out because their corpus is not there (one line each).

    Args:
        original, edited: built-in names, Hugging Face folders, ``.gguf`` files or hub ids.
        corpora: by role; ``forget`` and ``heldout`` at least. What was to be forgotten is also what the attacker has
            (``attack_train``), unless another corpus is given; for facts it has to be.
        edited: also a folder with a PEFT adapter, of the original.
        never: a model that never had the behaviour, or ``permuted`` (facts).
        attacks: in place of those of the battery.
    Raises:
        InputError: unknown battery or attack, or none that can be made with these corpora; facts (``permuted``) and no
            ``attack_train``, where an attack needs it.
    """
    given = DEFAULTS | {"attack_train": copy.deepcopy(corpora["forget"])} | dict(corpora)
    asked = named_battery(battery, facts=never == SURROGATE) if attacks is None else attacks
    needs = [(s, attack_of(s["name"], {k: v for k, v in s.items() if k != "name"}).role) for s in asked]
    kept = [s for s, role in needs if role in given]
    left_out = list(dict.fromkeys(f"{s['name']} (it needs a corpus {r!r})" for s, r in needs if r not in given))
    teaching = sorted({s["name"] for s, role in needs if role == "attack_train"})
    if never == SURROGATE and "attack_train" not in corpora and teaching:
        raise InputError(
            "never 'permuted' is for facts: give the attacker some that say nothing about the held-out ones "
            f"(attack_train, --attack-train); with those of forget {', '.join(teaching)} would teach the very answers "
            "that are asked for"
        )
    if asked and not kept:
        raise InputError(f"no attack is left: {'; '.join(left_out)}")
    config: Config = {
        "name": f"audit-{Path(edited).name}",
        "model": {"name": original},
        "corpora": given,
        "edit": {"method": None, "checkpoint": edited},
        "locate": {"enabled": False},
        "attacks": kept,
        "behaviour": {"samples": SAMPLES},
        "evidence": {"enabled": True, "measures": list(EVIDENCE)},
    }
    if attacks is None:
        config["battery"] = battery
    if never is not None:
        config["controls"] = {"never": {"surrogate": never} if never == SURROGATE else {"name": never}}
    return config, left_out


def corpora_of(layouts: Sequence[str] = (), **roles: str | None) -> dict[str, Config]:
    """Those roles that were given on the command line.

    Args:
        layouts: ``tofu``, of every file and hub data set but running text (disruption, unrelated); or ``heldout=tofu``.
    Raises:
        InputError: a layout for a corpus that is not given or that can have none.
    """
    found = {role: source(text) for role, text in roles.items() if text is not None}
    have = [role for role, corpus in found.items() if "name" not in corpus]
    for text in sorted(layouts, key=lambda text: "=" in text):  # one role's own comes after that of all
        role, _, name = text.rpartition("=")
        chosen = [r for r in have if r not in DEFAULTS] if not role else [r for r in have if r == role]
        if not chosen:
            raise InputError(
                f"--layout {text!r}: no file or hub data set to read so; valid: NAME, or ROLE=NAME with one of "
                f"{', '.join(have) or 'none: all corpora are built in'}"
            )
        found |= {r: {**found[r], "layout": name} for r in chosen}
    return found


def words(options: Mapping[str, Any]) -> list[str]:
    """The command line again: option names and values, what was not given left out."""
    return [w for name, value in options.items() if value is not None for w in (f"--{name}", str(value))]
