"""Attacks: cheap ones that show what was only switched off, and relearning to convergence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooklearn.attack.ablate_direction import AblateDirection
from hooklearn.attack.curve import Arena, ArmState, Attack, Measured, Onlooker
from hooklearn.attack.erosion import Erode, EroseStyle, RetainOnly
from hooklearn.attack.few_samples import GoodDemos, WeakSamples
from hooklearn.attack.few_shot import FewShot
from hooklearn.attack.logit_lens import LogitLens
from hooklearn.attack.prompts import Password, Prefill
from hooklearn.attack.relearn import LowMutualInformation, Relearn
from hooklearn.attack.relearn_lora import RelearnLora
from hooklearn.attack.sample_many import SampleMany
from hooklearn.attack.watcher import Pending, Watcher
from hooklearn.attack.weights import Noise, Prune, Quantize
from hooklearn.callable_module import make_callable
from hooklearn.plugins import Shelf, named_class

ATTACKS: dict[str, type[Attack]] = {
    a.name: a
    for a in (
        Relearn,
        RelearnLora,
        LowMutualInformation,
        WeakSamples,
        GoodDemos,
        RetainOnly,
        Erode,
        EroseStyle,
        FewShot,
        Password,
        Prefill,
        SampleMany,
        AblateDirection,
        LogitLens,
        Quantize,
        Prune,
        Noise,
    )  # fmt: skip
}
EVERY_ATTACK: Shelf[type[Attack]] = Shelf("attack", "hooklearn.attacks", ATTACKS, named_class(Attack))
"""These, and those of other packages."""

__all__ = [
    "ATTACKS", "EVERY_ATTACK", "Arena", "ArmState", "Attack", "Measured", "Onlooker", "Pending", "Watcher", "attack_of"
]  # fmt: skip


def attack_of(name: str, options: Mapping[str, Any] | None = None) -> Attack:
    """An attack by name with its options.

    Raises:
        InputError: unknown name or option (with the nearest valid one).
    """
    return EVERY_ATTACK.get(name).with_options(options or {})


def attack(*args: Any, **kwargs: Any) -> Any:
    """``hl.attack(model, delta, "relearn", ...)``: see :func:`hooklearn.api.attack`."""
    from hooklearn import (
        api,
    )  # the verb needs the whole package; the package must not need the verb

    return api.attack(*args, **kwargs)


make_callable(__name__)
