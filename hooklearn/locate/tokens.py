"""Tokens on located directions: what the subspace explorer shows, as numbers and plain text.

    found = hl.locate(model, forget, retain, sites="all", rank=8)
    sample = sample_tokens(model, found, forget, retain, unrelated=prose)
    analysis.explore(sample)

The components of a place are the columns of ``Subspace.basis``: orthonormal, so that energies add up, and nested, so
that the first k of them span the fitter's first k vectors. Only projections on them are kept. Shares of energy, class
means and cosines are taken on texts that the subspaces were *not* fitted on. A token has its own x, and on side g the
gradient of the position that predicts it.

Predicted disruption is that of projecting the chosen directions S out of a place: ``dy_t = -W Q_S Q_S^T x_t`` (side x)
or ``-Q_S Q_S^T W x_t`` (side g). To second order ``KL = 1/2 E[(sum_t g_t . dy_t)^2]`` with g the gradient for labels
sampled from the model (the Fisher form of the KL), one sum a sequence. As ``g_t . dy_t`` is a sum over components,
one k x k matrix answers for every choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import disk, models
from hooklearn.data import Corpus
from hooklearn.forward import Precision
from hooklearn.locate.lens import Lens, Spelling
from hooklearn.locate.projected import (
    COMPONENTS,
    CORPORA,
    Look,
    Seen,
    Text,
    chosen_tokens,
    predicted_disruption,
    texts_of,
)
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.types import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]
VERSION = 1


@dataclass(frozen=True)
class TokenSample:
    """A stratified sample of N tokens of I texts on C components: see ``analysis.explorer.payload.Sample``.

    Tokens are stratified by corpus and by held out or not, and spread evenly over texts; every beginning of their
    order is a fair sample too. Coordinates are ``codes * scales``.
    """

    spaces: Subspaces = field(repr=False)
    places: pd.DataFrame
    components: pd.DataFrame = field(repr=False)
    disruption: Sequence[Array] = field(repr=False)
    texts: pd.DataFrame = field(repr=False)
    tokens: pd.DataFrame = field(repr=False)
    codes: Array = field(repr=False)
    scales: Array = field(repr=False)
    item_codes: Array = field(repr=False)
    item_scales: Array = field(repr=False)
    facts: Mapping[str, Any]
    time: pd.DataFrame = field(default_factory=lambda: _frame([], ["arm", "step"]), repr=False)
    """Looks at an attack, where one was followed (:mod:`hooklearn.locate.followed`); then the rest belongs to them."""
    means: Array = field(default_factory=lambda: np.zeros((0, 0, 2), np.float32), repr=False)
    frames: Mapping[int, Array] = field(default_factory=dict, repr=False)
    frame_scales: Mapping[int, Array] = field(default_factory=dict, repr=False)

    def save(self, path: str | Path) -> Path:
        """One safetensors file, with the tables as JSON in its header; ``analysis.explorer.load`` reads it."""
        arrays = {n: getattr(self, n) for n in ("codes", "scales", "item_codes", "item_scales", "means")}
        arrays |= {f"disruption.{p}": matrix for p, matrix in enumerate(self.disruption)}
        arrays |= {f"frames.{p}": frames for p, frames in self.frames.items()}
        arrays |= {f"frame_scales.{p}": scales for p, scales in self.frame_scales.items()}
        tables = {n: getattr(self, n).to_dict("list") for n in ("places", "components", "texts", "tokens", "time")}
        return write_sample(path, arrays, tables, self.facts)


def write_sample(
    path: str | Path, arrays: Mapping[str, Array], tables: Mapping[str, Any], facts: Mapping[str, Any]
) -> Path:
    """One safetensors file; tables (column -> values) and facts are JSON in its header."""
    from safetensors.numpy import save

    meta = {
        "kind": "token sample", "version": str(VERSION), "tables": json.dumps(tables), "facts": json.dumps(dict(facts)),
    }  # fmt: skip
    disk.write_atomic(path, save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, meta))
    return Path(path)


def read_sample(path: str | Path) -> tuple[dict[str, Array], dict[str, Any], dict[str, Any]]:
    """Arrays, tables and facts of what :func:`write_sample` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        meta = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return arrays, json.loads(meta["tables"]), json.loads(meta["facts"])


def sample_tokens(
    model: Any,
    spaces: Subspaces,
    forget: Corpus,
    retain: Corpus,
    *,
    unrelated: Corpus | None = None,
    tokens: int = 20_000,
    seed: int = 0,
    precision: Precision = "auto",
    max_tokens: int = 1024,
) -> TokenSample:
    """Collect what ``analysis.explore`` shows, in one pass over the corpora; :func:`hooklearn.follow` adds an attack.

    Args:
        spaces: of :func:`hooklearn.locate`, on the same corpora and with the same ``seed``: it decides which texts
            are held out. Of each the first ``COMPONENTS`` components are sampled.
        unrelated: text on which disruption is predicted; without it, held-out retain texts.
        tokens: how many tokens to sample.
    Raises:
        InputError: no subspaces, or corpora of which no group is held out.
    """
    if not spaces:
        raise InputError("no subspaces to look at: locate found none, or all were filtered out")
    corpora = {"forget": forget, "retain": retain} | ({"unrelated": unrelated} if unrelated else {})
    texts = texts_of(model, corpora, seed)
    chosen = chosen_tokens(texts, tokens, seed)
    place = list(spaces.values())
    look = Look(model, place, texts, precision, max_tokens)
    seen = look.at(chosen)
    codes, scales = coded(seen.coordinates)
    item_codes, item_scales = coded(seen.items)
    on = "unrelated" if unrelated else "retain"
    disruption, n_disruption = predicted_disruption(look, on, seed)
    return TokenSample(
        spaces, _places(spaces, seen), _components(model, place, seen), disruption,
        _spelled(model, texts, {t for t, _ in chosen}), _frame(chosen, ["text", "position"]),
        codes, scales, item_codes, item_scales,
        {
            "model": str(model.cfg.model_name), "seed": seed,
            "n_tokens": dict(zip(CORPORA, seen.scored.tolist(), strict=True)),
            "disruption_on": on, "disruption_tokens": n_disruption,
        },
    )  # fmt: skip


# -------------------------------------------------------------------------------------- tables


def coded(values: Float[Tensor, "n c"]) -> tuple[Array, Array]:
    """int16 codes and what to multiply them by."""
    reach = values.abs().amax(0).clamp_min(1e-30) if len(values) else torch.ones(values.shape[1])
    scale = reach / 32767
    return (values / scale).round().short().numpy(), scale.numpy()


def _frame(rows: Sequence[tuple[Any, ...]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=columns)


def _places(spaces: Subspaces, seen: Seen) -> pd.DataFrame:
    table = spaces.to_dataframe()
    energy = np.array([seen.energy(p).sum(1).tolist() for p in range(len(table))])
    table["forget_energy"], table["retain_energy"] = energy[:, 0], energy[:, 1]
    table["width"] = [s.basis.shape[0] for s in spaces.values()]
    table["random_energy"] = table["rank"] / table["width"]
    return table


def _components(model: Any, spaces: Sequence[Subspace], seen: Seen) -> pd.DataFrame:
    """One row a component; energies and cosines from held-out texts."""
    lens = Lens(model)
    rows = []
    for p, space in enumerate(spaces):
        k = min(space.rank, COMPONENTS)
        energy, mean = seen.energy(p), seen.mean(p)
        difference = mean[0] - mean[1]
        basis = space.basis[:, :k].cpu().float()
        cosine = (difference @ basis) / difference.norm().clamp_min(1e-30)
        words = lens.words(space.site, space.side, space.basis[:, :k])
        for i in range(k):
            shares = {name: float(energy[c, i]) for c, name in enumerate(CORPORA)}
            value = float(space.values[i])
            rows.append({"place": p, "component": i, "value": value, **shares, "cosine": float(cosine[i]), **words[i]})
    import pandas as pd

    return pd.DataFrame(rows)


def _spelled(model: Any, texts: Sequence[Text], shown: set[int]) -> pd.DataFrame:
    """corpus, held_out and, where a token of the text was sampled, all of its tokens."""
    spelling = Spelling(models.tokenizer_of(model))
    rows = [
        (CORPORA[t.corpus], t.held_out, spelling.pieces(t.sequence.ids.tolist()) if i in shown else [])
        for i, t in enumerate(texts)
    ]
    return _frame(rows, ["corpus", "held_out", "tokens"])
