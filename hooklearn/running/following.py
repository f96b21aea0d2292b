"""Which attack of a run the explorer's time slider follows, and where that is written: the first seed's, once."""

from __future__ import annotations

from typing import Any

from hooklearn import store
from hooklearn.attack import attack_of
from hooklearn.config import RunConfig
from hooklearn.locate import Subspaces
from hooklearn.locate.followed import Follower, tokens_of
from hooklearn.locate.subspace import FILE as SUBSPACES
from hooklearn.running.setting import Setup

FOLLOWED = ("relearn", "low_mi", "retain_only", "erode")
"""Attacks by full fine-tuning; the first of them that a run has is followed, at its highest learning rate."""
SAMPLE, DIRECTIONS = "tokens.safetensors", "directions.parquet"


def follower(config: RunConfig, setup: Setup, folder: store.RunFolder, seed: int) -> Follower | None:
    """None where the explorer was not asked for, nothing can be followed, or it has been followed already."""
    made = [attack_of(spec.name, spec.options) for spec in config.attacks]
    attacks = {a.name: a for a in reversed(made) if getattr(a, "rank", None) is None}  # an adapter leaves weights alone
    name = next((n for n in FOLLOWED if n in attacks), None)
    if name is None or seed != config.seeds[0] or not folder.has(SAMPLE) or folder.has(DIRECTIONS):
        return None
    return Follower(
        setup.original, Subspaces.load(folder.path(SUBSPACES)), tokens_of(folder.path(SAMPLE)),
        setup.corpora["forget"], setup.corpora["retain"], setup.corpora["disruption"], seed=seed,
        precision=config.model.precision, max_tokens=config.max_tokens, only=(name, _fastest(attacks[name])),
    )  # fmt: skip


def _fastest(attack: Any) -> str:
    """The setting of the highest rate, in whatever order they are given."""
    return max(zip(attack.learning_rates, attack.settings(), strict=True))[1]


def write(found: Follower, folder: store.RunFolder) -> None:
    """The table last: where it is, both are."""
    if not found.seen_any or folder.has(DIRECTIONS):
        return
    followed = found.followed()
    followed.add_to(folder.path(SAMPLE))
    folder.save_frame(DIRECTIONS, followed.directions)
