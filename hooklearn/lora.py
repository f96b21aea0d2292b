"""Low-rank adapters at hook points (Hu et al., 2021): the adversary of RepSelect, the shipped organisms, attacks.

``y = W x + (alpha / rank) * B A x``, added at the site's output hook, so no module is ever replaced and the
adapter is gone when the ``with`` ends.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hooklearn import models
from hooklearn.deltas import Delta
from hooklearn.linalg import numerical_rank
from hooklearn.types import Site


class Lora:
    """One adapter: factors A ``[rank, d_in]`` (uniform, Kaiming) and B ``[d_out, rank]`` (zero) per site."""

    def __init__(self, sites: Sequence[Site], *, rank: int = 8, alpha: float | None = None, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sites = list(sites)
        self.rank = rank
        self.scale = (alpha if alpha is not None else rank) / rank
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        for site in self.sites:
            bound = 1 / math.sqrt(site.d_in)  # kaiming_uniform with a = sqrt(5), as in peft
            a = (torch.rand(rank, site.d_in, generator=generator) * 2 - 1) * bound
            self.a[site.name] = a.requires_grad_()
            self.b[site.name] = torch.zeros(site.d_out, rank, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [*self.a.values(), *self.b.values()]

    @contextlib.contextmanager
    def active(self, model: Any) -> Iterator[None]:
        """The adapter takes part in the forward pass inside this block."""
        inputs: dict[str, Tensor] = {}

        def remember(name: str):
            def hook(value: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens passes it by name)
                inputs[name] = value

            return hook

        def add(name: str):
            def hook(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
                # attention hooks hold [batch pos head d_head]
                x = inputs.pop(name).to(value.dtype)
                low = (x.flatten(2) if x.ndim > 2 else x) @ self.a[name].T.to(value)
                return value + self.scale * (low @ self.b[name].T.to(value)).view_as(value)

            return hook

        hooks = []
        for site in self.sites:
            hook_in, hook_out = models.hook_names(site)
            hooks += [(hook_in, remember(site.name)), (hook_out, add(site.name))]
        with model.hooks(fwd_hooks=hooks):
            yield

    def delta(self, base: str = "", base_hash: str = "") -> Delta:
        """The adapter merged into one update per site."""
        updates = {n: (self.scale * self.b[n].detach() @ self.a[n].detach()).float() for n in self.a}
        return Delta(updates, base, base_hash)


def low_rank(delta: Delta, rank: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors (B, A) of every update, ``B A ~ update``: the best of their rank (Eckart & Young 1936).

    Args:
        rank: at most; never more than the update's own, which is also what None stands for.
    """
    out = {}
    for name, update in delta.updates.items():
        u, s, vh = torch.linalg.svd(update.float(), full_matrices=False)
        own = numerical_rank(s, (update.shape[0], update.shape[1]))
        k = own if rank is None else min(rank, own)
        root = s[:k].sqrt()
        out[name] = (u[:, :k] * root, root[:, None] * vh[:k])
    return out
