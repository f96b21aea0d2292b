"""An audit as a run: two models made elsewhere, the same attacks, evidence and rules; nothing is edited."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooklearn.attack import attack_of
from hooklearn.batteries import battery as named_battery
from hooklearn.recipes import EVIDENCE, Config
from hooklearn.types import InputError

DEFAULTS: dict[str, Config] = {
    "disruption": {"name": "prose", "options": {"part": "disruption"}},
    "unrelated": {"name": "unrelated", "options": {"part": "erode"}},
}
"""Role -> the built-in corpus that stands in for it."""
SURROGATE = "permuted"
"""In place of a never-learned model: the same facts with their answers permuted."""


def source(text: str) -> Config:
    """A corpus as it is written on the command line -> its entry in a config.

    ``FILE``, ``hub:NAME``, or a built-in name with what is asked of it: ``capitals:part=V,phrasings=heldout``.

    Raises:
        InputError: an option without ``=``.
    """
    if Path(text).exists() or Path(text).suffix:
        return {"path": text}
    if text.startswith("hub:"):
        return {"hub": text.removeprefix("hub:")}
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
            (``attack_train``), unless another corpus is given.
        never: a model that never had the behaviour, or ``permuted`` (facts).
        attacks: in place of those of the battery.
    Raises:
        InputError: unknown battery or attack, or none that can be made with these corpora.
    """
    given = DEFAULTS | {"attack_train": corpora["forget"]} | dict(corpora)
    asked = named_battery(battery, facts=never == SURROGATE) if attacks is None else attacks
    needs = {s["name"]: attack_of(s["name"], {k: v for k, v in s.items() if k != "name"}).needs for s in asked}
    kept = [s for s in asked if needs[s["name"]] in given]
    left_out = [f"{n} (it needs a corpus {needs[n]!r})" for n in needs if needs[n] not in given]
    if asked and not kept:
        raise InputError(f"no attack is left: {'; '.join(left_out)}")
    config: Config = {
        "name": f"audit-{Path(edited).name}",
        "model": {"name": original},
        "corpora": given,
        "edit": {"method": None, "checkpoint": edited},
        "locate": {"enabled": False},
        "attacks": kept,
        "evidence": {"enabled": True, "measures": list(EVIDENCE)},
    }
    if never is not None:
        config["controls"] = {"never": {"surrogate": never} if never == SURROGATE else {"name": never}}
    return config, left_out


def corpora_of(**roles: str | None) -> dict[str, Config]:
    """Those roles that were given on the command line."""
    return {role: source(text) for role, text in roles.items() if text is not None}


def words(options: Mapping[str, Any]) -> list[str]:
    """The command line again: option names and values, what was not given left out."""
    return [w for name, value in options.items() if value is not None for w in (f"--{name}", str(value))]
