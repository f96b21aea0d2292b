"""The edit as an object in weight space: its spectrum, what it shares with the attacker's own update and with what
other text uses, and whether what comes back comes back along the directions that were changed.

All sums run over sites, all nulls turn the other update at random (both sides independently) and are known in closed
form: a cosine has mean 0 and variance ``sum_s |A_s|^2 |B_s|^2 / (d_out d_in) / (|A|^2 |B|^2)``; the share of an
update's energy in k of d dimensions has mean k/d (:func:`hooklearn.evidence.nulls.rotated_moments`).

Relearning the same texts moves a never-learned model along similar directions, simply because the texts are the same.
So an overlap speaks against a removal only beside the same attack on such a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import linalg, models
from hooklearn.attack import ArmState
from hooklearn.data import Corpus, TokenBatch, batches, cycle, encode
from hooklearn.deltas import Delta
from hooklearn.evidence import nulls
from hooklearn.evidence.bench import Bench, difference
from hooklearn.evidence.nulls import Array
from hooklearn.evidence.types import Evidence, Role, detail
from hooklearn.locate.moments import site_moments
from hooklearn.train import fit
from hooklearn.types import NAN, Site

RANK = 8
"""Directions per site that count as the edit's (or the retain text's) own."""
NEEDS_ATTACK = "it needs what an attacker adds: a delta, or a corpus 'attack_train' and an attack that does not diverge"
ELSEWHERE = "the attack moved none of the weights that the edit changed"


def attack_update(
    arm: ArmState,
    corpus: Corpus,
    sites: Sequence[Site],
    *,
    learning_rate: float = 3e-4,
    steps: int = 16,
    seed: int = 0,
    max_tokens: int = 1024,
) -> Delta:
    """What a short attack with demonstrations adds at the sites (Adam; everything else is held); the arm is put back.

    Raises:
        NumericalError: the attack diverged.
    """
    sequences = encode(corpus, models.tokenizer_of(arm.model), end=True)

    def stream() -> Iterable[TokenBatch]:
        return itertools.islice(cycle(sequences, max_tokens=max_tokens, seed=seed, epochs=10_000), steps)

    with arm.entered(training=True) as model:
        before = {s.name: models.weight(model, s).detach().clone() for s in sites}
        params = models.parameters_of(model, sites)
        with models.trainable(model, params):
            rule = torch.optim.Adam(params, lr=learning_rate)
            fit(model, stream(), rule=rule, precision="float32", max_norm=1.0, params=params)
        updates = {s.name: models.weight(model, s).detach() - before[s.name] for s in sites}
    base = arm.delta or Delta({})
    return Delta(updates, base.base, base.base_hash)


# ---------------------------------------------------------------------------------- linear algebra


@dataclass(frozen=True)
class Spectrum:
    """Singular directions of one update: the ``k`` largest that are above rounding."""

    left: Float[Tensor, "d_out k"]
    right: Float[Tensor, "d_in k"]
    energy: float
    """Sum of squared singular values."""
    concentration: float
    """``sum w_i^2`` with w the squared singular values over their sum: 1 for rank one, 1/d for noise in d of d."""

    @property
    def effective_rank(self) -> float:
        """Participation ratio, 1 / concentration."""
        return 1 / self.concentration

    @staticmethod
    def of(update: Float[Tensor, "d_out d_in"], k: int = RANK) -> Spectrum:
        """By the Gram matrix of the smaller side, in float64.

        Raises:
            ValueError: the update is zero: it has no directions.
        """
        wide = update.double()
        flat = wide if wide.shape[0] <= wide.shape[1] else wide.T
        gram = flat @ flat.T
        energy = float(gram.trace())
        if energy == 0:
            raise ValueError("a zero update has no directions")
        vectors, values = linalg.top_eigh(gram, min(k, len(gram)))
        singular = values.clamp_min(0).sqrt()
        rank = linalg.numerical_rank(singular, (update.shape[0], update.shape[1]))
        own = vectors[:, :rank]
        other = torch.linalg.qr(flat.T @ own).Q
        left, right = (own, other) if flat is wide else (other, own)
        return Spectrum(left, right, energy, float(gram.square().sum()) / energy**2)


def energy_share(update: Tensor, basis: Float[Tensor, "d k"], side: str) -> float:
    """Share of ``|update|_F^2`` inside an orthonormal basis of its input (``x``) or output (``g``) side."""
    wide = update.double()
    inside = wide @ basis.double() if side == "x" else basis.double().T @ wide
    return float(inside.square().sum() / wide.square().sum())


def cosine(a: Delta, b: Delta) -> float:
    """Cosine of two deltas as one long vector; sites that only one of them changes count as zero in the other."""
    size = a.norm() * b.norm()
    return sum(_dot(a, b, n) for n in a.updates if n in b.updates) / size if size else NAN


def _dot(a: Delta, b: Delta, name: str) -> float:
    return float((a.updates[name].double() * b.updates[name].double()).sum())


def _energy(delta: Delta, name: str) -> float:
    return float(delta.updates[name].double().square().sum())


def _moved(delta: Delta, among: Iterable[str] = ()) -> list[str]:
    """Sites that the delta changes (and the other one too)."""
    wanted = set(among) or set(delta.updates)
    return [n for n in delta.updates if n in wanted and _energy(delta, n) > 0]


def _layer(name: str) -> int:
    return int(name.split(".")[1])


# -------------------------------------------------------------------------------------- the measures


def updates(bench: Bench) -> list[Evidence]:
    """Spectrum and overlaps of the edit, and re-emergence along it."""
    edit = difference(bench.original, bench.arms["edited"], bench.sites)
    if not _moved(edit):
        why = "the edit changes no weight at these sites"
        return [
            Evidence.missing("spectrum", why, direction="low"), Evidence.missing("overlap_retain", why),
            *(Evidence.missing(name, why, role=_role(bench)) for name in ("overlap_attack", "reemergence")),
        ]  # fmt: skip
    bench.progress("evidence: spectrum of the edit")
    spectra = {name: Spectrum.of(edit.updates[name]) for name in _moved(edit)}
    return [
        _spectrum(bench, edit, spectra),
        _retain(bench, edit, spectra),
        _attack(bench, edit, bench.attacks),
        _reemergence(bench, edit, spectra, bench.attacks),
    ]


def _role(bench: Bench) -> Role:
    """Of what compares the attack with the same one on a never-learned model, where it could not be measured."""
    return "decides" if "never" in bench.arms else "reports"


def _spectrum(bench: Bench, edit: Delta, spectra: dict[str, Spectrum]) -> Evidence:
    """Effective rank over that of a Gaussian matrix of the same shape, ``m n / (m + n + 1)`` in expectation."""
    shapes = {n: tuple(edit.updates[n].shape) for n in spectra}
    noise = {n: m * k / (m + k + 1) for n, (m, k) in shapes.items()}
    rows = np.array([[s.energy * s.effective_rank / noise[n], s.energy] for n, s in spectra.items()])
    widest = max(spectra, key=lambda n: spectra[n].energy)
    generator = torch.Generator().manual_seed(bench.seed)
    null = []
    for _ in range(19):
        gram = Spectrum.of(torch.randn(shapes[widest], generator=generator), 1)
        null.append(gram.effective_rank / noise[widest])
    return Evidence(
        "spectrum", _ratio(rows.sum(0)), tuple(null), nulls.jackknife_sums(rows, _ratio), len(rows), "low",
        "effective rank of the edit as a share of noise's: near 0, the edit is a few directions per weight, which a "
        "few directions can also undo; near 1, it is spread like noise",
        detail=detail(
            {
                "site": n, "layer": _layer(n), "arm": "edited", "value": s.effective_rank, "null": noise[n],
                "stderr": NAN, "n": 1,
            }
            for n, s in spectra.items()
        ),
        null_meaning="a Gaussian matrix of the same shape as the most changed weight",
    )  # fmt: skip


def _retain(bench: Bench, edit: Delta, spectra: dict[str, Spectrum]) -> Evidence:
    """On the input side alone: what retain text feeds a weight is what a change of the weight does to it. The gradient
    side would need a backward pass and, for the two weights into a gated MLP, moments as wide as the MLP."""
    name, corpus = "overlap_retain", bench.corpora.get("retain")
    if corpus is None:
        return Evidence.missing(name, "it needs a corpus 'retain'")
    sites = [s for s in bench.sites if s.name in spectra]
    bench.progress("evidence: what retain text uses")
    with bench.original.entered(training=False) as model:
        stream = batches(encode(corpus, models.tokenizer_of(model)), max_tokens=bench.max_tokens)
        moments = site_moments(model, stream, sites, sides="x", precision="float32")
    shared: dict[int, Tensor] = {}  # gate and up read the same tensor: one eigenproblem for both
    parts = []
    for site in sites:
        m = moments[site.name].side("x")
        if id(m) not in shared:
            shared[id(m)] = linalg.pca(m.mean_second(), min(RANK, site.d_in))[0]
        parts.append(_part(site.name, "x", edit.updates[site.name], shared[id(m)], spectra[site.name]))
    return _shares(
        name, parts, bench,
        "share of the edit that acts on the main directions of retain text at the inputs of the weights (their "
        "gradient side is not looked at); above its null, the edit works inside what other text uses, so that other "
        "text pays for it",
        null_meaning=f"the edit turned at random: {RANK} of d directions",
    )  # fmt: skip


def _attack(bench: Bench, edit: Delta, attacks: Mapping[str, Delta]) -> Evidence:
    """Cosine of the attack with the *reversed* edit."""
    name = "overlap_attack"
    if "edited" not in attacks:
        return Evidence.missing(name, NEEDS_ATTACK, role=_role(bench))
    attack = attacks["edited"]
    shared = _moved(edit, attack.updates)
    if not shared:
        return Evidence.missing(name, ELSEWHERE, role=_role(bench))
    size = (edit.norm() * attack.norm()) ** 2
    rows = [
        [-_dot(edit, attack, n), _energy(edit, n), _energy(attack, n)] if n in shared
        else [0.0, _energy(edit, n) if n in edit.updates else 0.0, _energy(attack, n) if n in attack.updates else 0.0]
        for n in dict.fromkeys([*edit.updates, *attack.updates])
    ]  # fmt: skip
    variance = sum(_energy(edit, n) * _energy(attack, n) / edit.updates[n].numel() for n in shared) / size
    control = -cosine(edit, attacks["never"]) if "never" in attacks else NAN
    return Evidence(
        name, -cosine(edit, attack), nulls.normal_quantiles(0.0, variance**0.5, bench.draws),
        nulls.jackknife_sums(np.array(rows), _cosine), len(shared), "high",
        "1: the attacker simply takes the edit back; as high as on a never-learned model, its way leads where the "
        "texts lead any model",
        detail=detail(
            {
                "site": n, "layer": _layer(n), "arm": "edited", "null": 0.0, "stderr": NAN, "n": 1,
                "value": -_dot(edit, attack, n) / max(1e-300, (_energy(edit, n) * _energy(attack, n)) ** 0.5),
            }
            for n in shared
        ),
        role="decides" if "never" in attacks else "reports", anchors=(control, 1.0),
        null_meaning="the attacker's update turned at random",
    )  # fmt: skip


def _reemergence(bench: Bench, edit: Delta, spectra: dict[str, Spectrum], attacks: Mapping[str, Delta]) -> Evidence:
    """Share of what the attacker added that lies in the directions that the edit changed, both sides averaged."""
    name = "reemergence"
    if "edited" not in attacks:
        return Evidence.missing(name, NEEDS_ATTACK, role=_role(bench))

    def parts(delta: Delta) -> list[dict[str, Any]]:
        return [
            _part(n, side, delta.updates[n], basis, Spectrum.of(delta.updates[n], 1))
            for n in _moved(delta, spectra)
            for side, basis in (("x", spectra[n].right), ("g", spectra[n].left))
        ]

    if not (came_back := parts(attacks["edited"])):
        return Evidence.missing(name, ELSEWHERE, role=_role(bench))
    whole = _share(parts(edit))
    control = _share(parts(attacks["never"])) if "never" in attacks else NAN
    return _shares(
        name, came_back, bench,
        "share of the returned update that lies in the directions that the edit changed: near that of the edit "
        "itself, what was switched off is switched on again; near that of a never-learned model, it is learnt anew",
        null_meaning=f"the attacker's update turned at random: {RANK} of d directions",
        role="decides" if "never" in attacks else "reports", anchors=(control, whole),
    )  # fmt: skip


# ------------------------------------------------------------------------- shares, summed over sites


def _part(site: str, side: str, update: Tensor, basis: Tensor, spectrum: Spectrum) -> dict[str, Any]:
    d, k = basis.shape
    mean, variance = nulls.rotated_moments(spectrum.concentration, nulls.projection(k, d))
    share = energy_share(update, basis, side)
    return {
        "site": site, "side": side, "share": share, "energy": spectrum.energy, "mean": mean, "variance": variance
    }  # fmt: skip


def _share(parts: Sequence[dict[str, Any]]) -> float:
    return _ratio(_sums(parts).sum(0)) if parts else NAN


def _sums(parts: Sequence[dict[str, Any]]) -> Array:
    """``[site, (energy inside, energy)]``, both sides of a site together."""
    by_site = itertools.groupby(parts, key=lambda p: p["site"])
    return np.array([np.sum([[p["share"] * p["energy"], p["energy"]] for p in of_site], 0) for _, of_site in by_site])


def _shares(name: str, parts: Sequence[dict[str, Any]], bench: Bench, meaning: str, **more: Any) -> Evidence:
    """Energy-weighted share over all sites and sides, with the Beta distribution of its exact null moments."""
    rows = _sums(parts)
    weights = np.array([p["energy"] for p in parts]) / rows[:, 1].sum()
    mean = float(weights @ [p["mean"] for p in parts])
    variance = float(weights**2 @ [p["variance"] for p in parts])
    return Evidence(
        name, _ratio(rows.sum(0)), nulls.beta_quantiles(mean, variance, bench.draws),
        nulls.jackknife_sums(rows, _ratio), len(rows), "high", meaning,
        detail=detail(
            {
                "site": f"{p['site']} ({p['side']})", "layer": _layer(p["site"]), "arm": "edited",
                "value": p["share"], "null": p["mean"], "stderr": p["variance"] ** 0.5, "n": 1,
            }
            for p in parts
        ),
        **more,
    )  # fmt: skip


def _ratio(sums: Array) -> float:
    return float(sums[0] / sums[1])


def _cosine(sums: Array) -> float:
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))
