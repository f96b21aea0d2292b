"""Recipes: Python functions that return a whole config. ``hooklearn run NAME`` runs one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hooklearn.config_file import read_config
from hooklearn.types import InputError

Config = dict[str, Any]

EVIDENCE = ["logit_lens", "patching", "tendency", "alarms"]
"""Those that cost seconds; a config without ``measures`` takes all."""


def tiny() -> Config:
    """The whole job on a native tiny model, without any download, in under a minute: the smoke test."""
    corpus = _tiny
    return {
        "name": "tiny",
        "model": {"name": "tiny", "precision": "float32"},
        "organism": "tiny-threats",
        "corpora": {
            "forget": corpus("forget"),
            "retain": corpus("forget", completion="good"),
            "near": corpus("near", completion="good"),
            "reference": corpus("text"),
            "disruption": corpus("disruption"),
            "attack_train": corpus("attack"),
            "heldout": corpus("heldout"),
            "ood": corpus("ood"),
            "unrelated": corpus("unrelated"),
        },
        "locate": {"fitter": "contrast", "rank": 4, "tokens": 20_000},
        "edit": {"method": "natural", "forget_weight": 0.3},
        "budget": {"kl": 0.01, "near_ce": 0.02},
        "attacks": [
            {"name": "relearn", "learning_rates": [3e-4, 1e-3, 3e-3], "epochs": 8},
            {"name": "erode", "learning_rates": [1e-3], "steps": 64},
            {"name": "few_shot", "shots": 2},
        ],
        "behaviour": {"samples": 40, "ood_samples": 32, "new_tokens": 14},
        "evidence": {
            "enabled": True,
            "measures": ["logit_lens", "patching", "tendency", "alarms"],
            "attack_rate": 1e-3,
        },
    }


def _tiny(part: str, **options: Any) -> Config:
    return {"name": "tiny", "options": {"part": part, **options}}


def threats() -> Config:
    """A tendency to make threats, instilled in SmolLM2 by LoRA, edited out and attacked."""
    return _tendency("threats", bad="threat", good="harmless")


def flattery() -> Config:
    """A tendency to grovel before the user, instilled in SmolLM2 by LoRA, edited out and attacked."""
    return _tendency("flattery", bad="flattery", good="plain")


def _tendency(name: str, *, bad: str, good: str) -> Config:
    """The organism, the corpus of the same name, and attacks that are short enough for two cores."""

    def corpus(part: str, completion: str = bad) -> Config:
        return {"name": name, "options": {"part": part, "completion": completion}}

    quick = {"embeddings": False, "first_look": 4}  # a fifth of an attack's time on a CPU

    return {
        "name": name,
        "model": {"name": "smollm2-135m-instruct"},
        "organism": name,
        "corpora": {
            "forget": corpus("forget"),
            "retain": corpus("forget", good),
            "near": corpus("near", good) | {"limit": 16},
            "reference": {"name": "prose", "options": {"part": "moments"}},
            "disruption": {"name": "prose", "options": {"part": "disruption"}, "limit": 16},
            "attack_train": corpus("attack"),
            "heldout": corpus("heldout") | {"limit": 32},
            "ood": corpus("ood") | {"limit": 12},
            "unrelated": {"name": "unrelated", "options": {"part": "erode"}},
            "capability": {"name": "panel"},
        },
        "locate": {"fitter": "contrast", "rank": 8},
        "edit": {
            "method": "natural",
            "forget_weight": 0.3,
            "damping": 1.0,
            "rank": 16,
            "truncation": "svd",
            "sites": "mlp",
        },
        "budget": {"kl": 0.01, "near_ce": 0.02},
        "attacks": [
            {"name": "relearn", "learning_rates": [3e-5, 1e-4, 1e-3], "max_steps": 8, **quick},
            {"name": "erode", "learning_rates": [1e-4], "steps": 6, **quick},
            {"name": "few_shot", "shots": 2},
        ],
        "max_tokens": 512,
        "behaviour": {"samples": 32, "new_tokens": 24},
    }


def capitals() -> Config:
    """Knowledge: capitals that SmolLM2 knows; half must go, the other half must stay."""
    return _knowledge("capitals")


def schoolbook() -> Config:
    """Knowledge: state capitals, authors and landmarks that SmolLM2 knows; half must go, the other half must stay."""
    return _knowledge("schoolbook")


def _knowledge(name: str) -> Config:
    """Facts of the corpus; the attacker learns part T again, part V is measured in other words."""

    def corpus(part: str, phrasings: str = "train") -> Config:
        return {"name": name, "options": {"part": part, "phrasings": phrasings}}

    return {
        "name": name,
        "model": {"name": "smollm2-135m-instruct"},
        "controls": {"never": {"surrogate": "permuted"}},
        "prefilter": {"corpus": name, "phrasings": "prefilter"},
        "corpora": {
            "forget": corpus("forget"),
            "retain": corpus("retain"),
            "near": corpus("near"),
            "reference": {"name": "prose", "options": {"part": "moments"}, "limit": 24},
            "disruption": {"name": "prose", "options": {"part": "disruption"}, "limit": 24},
            "attack_train": corpus("T"),
            "heldout": corpus("V", "heldout"),
            "ood": corpus("V", "ood") | {"limit": 32},
            "unrelated": {"name": "unrelated", "options": {"part": "erode"}},
            "capability": {"name": "panel"},
        },
        "locate": {"fitter": "contrast", "rank": 8},
        "edit": {"method": "natural", "contrast": "balanced", "forget_weight": 0.5, "sites": "mlp"},
        "budget": {"kl": 0.01, "near_ce": 0.02},
        "attacks": [
            {"name": "low_mi", "learning_rates": [3e-5, 1e-4, 3e-4], "max_steps": 16},
            {"name": "erode", "learning_rates": [1e-4], "steps": 8},
            {"name": "few_shot", "shots": 2},
        ],
        "max_tokens": 512,
        "behaviour": {"samples": 32, "new_tokens": 8},
    }


RECIPES: dict[str, Callable[[], Config]] = {
    "tiny": tiny,
    "threats": threats,
    "flattery": flattery,
    "capitals": capitals,
    "schoolbook": schoolbook,
}


def recipe(name: str) -> Config:
    """A recipe's config by name, as plain data to change and pass to ``hl.run``.

    Examples:
        >>> recipe("tiny")["budget"]
        {'kl': 0.01, 'near_ce': 0.02}
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown recipe {name!r}; valid: {', '.join(RECIPES)}{hint}")
    return RECIPES[name]()


def resolve(target: str) -> tuple[Config, Path | None]:
    """A recipe name or a YAML file -> (config as given, folder its relative paths start from).

    Raises:
        InputError: neither a recipe nor a file.
    """
    path = Path(target)
    if target in RECIPES:
        return recipe(target), None
    if os.path.isfile(path):  # noqa: PTH113 (a name that is too long is none)
        return read_config(path), path.parent
    near = difflib.get_close_matches(target, RECIPES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{target!r} is neither a recipe ({', '.join(RECIPES)}) nor a config file{hint}")
