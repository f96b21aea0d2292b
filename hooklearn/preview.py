"""What a model says with some of its directions scaled: 0 takes them away, 1 leaves it as it is, 2 doubles them.

analysis.explore(sample, preview=hl.preview(model))     # ask it from the explorer, for what is ticked there
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hooklearn import editing, models
from hooklearn.data import Corpus
from hooklearn.deltas import Delta
from hooklearn.locate import Subspaces
from hooklearn.measure import sample

Preview = Callable[[str, Subspaces, float], str]
"""(prompt, directions, scale) -> completion."""


def preview(model: Any, *, new_tokens: int = 24) -> Preview:
    """Greedy completions of ``model`` with directions scaled; it is as it was after every one."""

    def say(prompt: str, spaces: Subspaces, scale: float) -> str:
        asked = Corpus("preview", ({"prompt": prompt, "completion": ""},))
        with editing.edited(model, scaled(model, spaces, scale)):
            return sample(model, asked, n=1, new_tokens=new_tokens, temperature=0)[0].completion

    return say


def scaled(model: Any, spaces: Subspaces, scale: float) -> Delta:
    """The update that scales what passes along Q: ``W (I + (s - 1) Q Q^T)`` on the input side x,
    ``(I + (s - 1) Q Q^T) W`` on the output side g."""
    updates: dict[str, torch.Tensor] = {}
    for space in spaces.values():
        name, basis = space.site.name, space.basis.float().cpu()
        before = models.weight(model, space.site).detach().float().cpu()
        now = before + updates.get(name, 0)
        along = (now @ basis) @ basis.T if space.side == "x" else basis @ (basis.T @ now)
        updates[name] = now + (scale - 1) * along - before
    return Delta(updates)
