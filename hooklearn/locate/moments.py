"""Streaming second moments of the two sides of every site: the one pass from which everything else is derived.

PCA, contrastive directions, mean differences, K-FAC factors, retain energies: all are functions of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hooklearn import models, parallel
from hooklearn.data import TokenBatch
from hooklearn.forward import Precision
from hooklearn.locate.capture import Labels, sums_dtype, tapes
from hooklearn.moments import Moments, MomentSum
from hooklearn.types import InputError, Side, Site

WhichSides = Literal["both", "x", "g"]


@dataclass(frozen=True)
class SiteMoments:
    """Moments of inputs ``x`` and output gradients ``g`` of one site; None for a side that was not asked for."""

    x: Moments | None
    g: Moments | None

    def side(self, side: Side) -> Moments:
        moments = self.x if side == "x" else self.g
        if moments is None:
            raise InputError(f"the {side} side was not captured; ask for sides='both'")
        return moments

    def merge(self, other: SiteMoments) -> SiteMoments:
        return SiteMoments(
            self.x.merge(other.x) if self.x and other.x else None,
            self.g.merge(other.g) if self.g and other.g else None,
        )


def site_moments(
    model: Any,
    stream: Iterable[TokenBatch],
    sites: Sequence[Site],
    *,
    sides: WhichSides = "both",
    labels: Labels = "given",
    positions: Literal["all", "labelled"] = "all",
    precision: Precision = "auto",
    seed: int = 0,
) -> dict[str, SiteMoments]:
    """Moments of every site over unmasked tokens; sums are float32, or float64 where the weights are.

    Sites that read the same tensor (gate and up) share one object for their x side. An expert's x side is over the
    tokens that were sent to it (its n counts them); its g side is over all, the gradient of the others being zero:
    the product of the two second moments is then its part of the Fisher information of the text.

    Args:
        labels: the Fisher metric needs ``sampled``; see :func:`hooklearn.locate.capture.tapes`.
    Raises:
        NumericalError: moments of a site are not finite.
    """
    leader: dict[str, str] = {}
    gradients, device, dtype = sides != "x", models.device_of(model), sums_dtype(model)
    # made before the first batch: what stays for long is not to lie between what comes and goes
    x = {site.name: MomentSum(site.d_in, dtype=dtype, device=device) for site in sites} if sides != "g" else {}
    g = {site.name: MomentSum(site.d_out, dtype=dtype, device=device) for site in sites} if gradients else {}
    for batch, taped in tapes(
        model,
        stream,
        sites,
        gradients=gradients,
        labels=labels,
        positions=positions,
        precision=precision,
        seed=seed,
        shared=True,
    ):
        first_with: dict[int, str] = {}
        rows = int((batch.mask if positions == "all" else batch.labels).sum())
        for site in sites:
            tape = taped[site.name]
            if sides != "g":
                leader[site.name] = first_with.setdefault(id(tape.x), site.name)
                if leader[site.name] == site.name:
                    x[site.name].add(tape.x)
                else:
                    x.pop(site.name, None)
            if gradients:
                assert tape.g is not None
                g[site.name].add(tape.g, zeros=rows - len(tape.g))
    leader = parallel.agreed(leader)  # a process without a batch has seen none
    # one at a time, so that sums and moments never live side by side
    xs, gs = {}, {}
    for name in (s.name for s in sites if leader.get(s.name) == s.name):
        xs[name] = x.pop(name).everywhere().moments(f"{name} (x)")
    for name in list(g):
        gs[name] = g.pop(name).everywhere().moments(f"{name} (g)")
    return {s.name: SiteMoments(xs.get(leader.get(s.name, s.name)), gs.get(s.name)) for s in sites}
