"""Tokens on located directions: what the subspace explorer shows, as numbers and plain text.

    found = hl.locate(model, forget, retain, sites="all", rank=8)
    sample = sample_tokens(model, found, forget, retain, unrelated=prose)
    analysis.explore(sample)

The components of a place are the columns of ``Subspace.basis``: orthonormal, so that energies add up, and nested, so
that the first k of them span the fitter's first k vectors. Only projections on them are kept. Shares of energy, class
means and cosines are taken on texts that the subspaces were *not* fitted on.

Predicted disruption is that of projecting the chosen directions S out of a place: ``dy_t = -W Q_S Q_S^T x_t`` (side x)
or ``-Q_S Q_S^T W x_t`` (side g). To second order ``KL = 1/2 E[(sum_t g_t . dy_t)^2]`` with g the gradient for labels
sampled from the model (the Fisher form of the KL), one sum a sequence. As ``g_t . dy_t`` is a sum over components,
one k x k matrix answers for every choice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import models, store
from hooklearn.data import Corpus, Encoded, TokenBatch, batches, encode
from hooklearn.forward import Precision
from hooklearn.locate.capture import tapes
from hooklearn.locate.lens import Lens, Spelling
from hooklearn.locate.subspace import HELD_OUT, Subspace, Subspaces
from hooklearn.types import NAN, Delta, InputError, Tape

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]
VERSION = 1
CORPORA = ("forget", "retain", "unrelated")
COMPONENTS = 16
"""Most components of a place that are sampled."""
TEXT_TOKENS = 120_000
"""Tokens of the texts that are shown around the sampled ones."""
DISRUPTION_TOKENS = 20_000
STEP_TOKENS, STEP_PLACES = 2_000, 4
"""How many tokens are followed through an attack, and at how many places (those that separate best)."""


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
    time: pd.DataFrame = field(repr=False)
    means: Array = field(repr=False)
    frames: Mapping[int, Array] = field(repr=False)
    frame_scales: Mapping[int, Array] = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """One safetensors file, with the tables as JSON in its header; ``analysis.explorer.load`` reads it."""
        from safetensors.numpy import save

        arrays = {n: getattr(self, n) for n in ("codes", "scales", "item_codes", "item_scales", "means")}
        arrays |= {f"disruption.{p}": matrix for p, matrix in enumerate(self.disruption)}
        arrays |= {f"frames.{p}": frames for p, frames in self.frames.items()}
        arrays |= {f"frame_scales.{p}": scales for p, scales in self.frame_scales.items()}
        tables = {n: getattr(self, n).to_dict("list") for n in ("places", "components", "texts", "tokens", "time")}
        meta = {
            "kind": "token sample", "version": str(VERSION), "tables": json.dumps(tables),
            "facts": json.dumps(dict(self.facts)),
        }  # fmt: skip
        store.write_atomic(path, save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, meta))
        return Path(path)


def sample_tokens(
    model: Any,
    spaces: Subspaces,
    forget: Corpus,
    retain: Corpus,
    *,
    unrelated: Corpus | None = None,
    tokens: int = 20_000,
    attack_steps: Mapping[str, Mapping[int, Delta]] | None = None,
    seed: int = 0,
    precision: Precision = "auto",
    max_tokens: int = 1024,
) -> TokenSample:
    """Collect what ``analysis.explore`` shows. One pass over the corpora, and one more for every attack step.

    Args:
        spaces: of :func:`hooklearn.locate`, on the same corpora and with the same ``seed``: it decides which texts
            are held out. Of each the first ``COMPONENTS`` components are sampled.
        unrelated: text on which disruption is predicted; without it, held-out retain texts.
        tokens: how many tokens to sample.
        attack_steps: arm (``edited``, ``never`` ...) -> step -> what was added to the weights of ``model`` by then.
    Raises:
        InputError: no subspaces, or corpora of which no group is held out.
    """
    if not spaces:
        raise InputError("no subspaces to look at: locate found none, or all were filtered out")
    corpora = {"forget": forget, "retain": retain} | ({"unrelated": unrelated} if unrelated else {})
    texts = _texts(model, corpora, seed)
    chosen = _chosen(texts, tokens, seed)
    place = list(spaces.values())
    look = _Look(model, place, texts, precision, max_tokens)
    seen = look.at(chosen)
    codes, scales = _coded(seen.coordinates)
    item_codes, item_scales = _coded(seen.items)
    time, means, frames, frame_scales = _followed(look, seen, chosen[:STEP_TOKENS], attack_steps or {})
    on = "unrelated" if unrelated else "retain"
    disruption, n_disruption = _disruption(look, on, seed)
    return TokenSample(
        spaces, _places(spaces, seen), _components(model, place, seen), disruption,
        _spelled(model, texts, {t for t, _ in chosen}), _frame(chosen, ["text", "position"]),
        codes, scales, item_codes, item_scales,
        {
            "model": str(model.cfg.model_name), "seed": seed,
            "n_tokens": dict(zip(CORPORA, seen.scored.tolist(), strict=True)),
            "disruption_on": on, "disruption_tokens": n_disruption,
        },
        time, means, frames, frame_scales,
    )  # fmt: skip


# ------------------------------------------------------------------------------- which tokens


@dataclass(frozen=True)
class _Text:
    corpus: int
    held_out: bool
    sequence: Encoded


def _texts(model: Any, corpora: Mapping[str, Corpus], seed: int) -> list[_Text]:
    """Every row, split as :func:`hooklearn.locate.collect` splits them; all unrelated text is held out."""
    held: set[str] = set()
    for name in ("forget", "retain"):
        groups = sorted(set(corpora[name].groups))
        random.Random(seed).shuffle(groups)
        held.update(groups[: max(1, round(HELD_OUT * len(groups)))])
    out = []
    for name, corpus in corpora.items():
        group_of = corpus.groups
        for s in encode(corpus, models.tokenizer_of(model)):
            out.append(_Text(CORPORA.index(name), name == "unrelated" or group_of[s.item] in held, s))
    return out


def _chosen(texts: Sequence[_Text], n: int, seed: int) -> list[tuple[int, int]]:
    """(text, position) of up to ``n`` scored tokens: as many of every stratum, evenly over its texts, interleaved."""
    rng = random.Random(f"{seed}:tokens")
    strata: dict[tuple[int, bool], list[int]] = {}
    for i in rng.sample(range(len(texts)), len(texts)):
        strata.setdefault((texts[i].corpus, texts[i].held_out), []).append(i)
    found = []
    for stratum in sorted(strata):
        room = TEXT_TOKENS // len(strata)
        ranked = []
        for i in strata[stratum]:
            room -= len(texts[i].sequence)
            if room < 0 and ranked:
                break
            scored = texts[i].sequence.labels.nonzero().flatten().tolist()
            ranked += [(rank, rng.random(), i, at) for rank, at in enumerate(rng.sample(scored, len(scored)))]
        found.append([(i, at) for _, _, i, at in sorted(ranked)])
    kept = [(k / quota, s, pair) for s, quota in enumerate(_quotas([len(f) for f in found], n))
            for k, pair in enumerate(found[s][:quota])]  # fmt: skip
    return [pair for _, _, pair in sorted(kept)]


def _quotas(sizes: Sequence[int], n: int) -> list[int]:
    """Equal shares of ``n``; what a small stratum cannot fill goes to the others."""
    out = [0] * len(sizes)
    for done, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        out[i] = min(sizes[i], n // (len(sizes) - done))
        n -= out[i]
    return out


# ------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class _Seen:
    """Everything one pass saw. Per-corpus sums are over tokens of held-out texts."""

    coordinates: Float[Tensor, "token component"]
    items: Float[Tensor, "text component"]
    scored: Tensor
    """[corpus] scored tokens in all; ``count`` those of held-out texts."""
    count: Tensor
    sums: list[Float[Tensor, "corpus d"]]
    """Per place: of the whole vector, ..."""
    squares: list[Float[Tensor, "corpus rank"]]
    """... of the squared coordinates, and of the squared length."""
    total: Float[Tensor, "place corpus"]

    def energy(self, p: int) -> Float[Tensor, "corpus rank"]:
        """Share of E||x||^2 along every basis vector; NaN where a corpus is missing."""
        return torch.where(self.total[p] > 0, 1 / self.total[p], NAN)[:, None] * self.squares[p]

    def mean(self, p: int) -> Float[Tensor, "corpus d"]:
        return self.sums[p] / self.count[:, None].clamp_min(1)


class _Look:
    """Passes of a model over the texts."""

    def __init__(
        self, model: Any, spaces: Sequence[Subspace], texts: Sequence[_Text], precision: Precision, max_tokens: int
    ) -> None:
        self.model, self.spaces, self.texts = model, spaces, texts
        self.sites = list(dict.fromkeys(s.site for s in spaces))
        self.precision: Precision = precision
        self.max_tokens = max_tokens
        self.k = [min(s.rank, COMPONENTS) for s in spaces]
        ends = np.cumsum(self.k).tolist()
        self.own = [slice(end - k, end) for k, end in zip(self.k, ends, strict=True)]
        """The components of every place."""
        self.basis = [s.basis.to(models.device_of(model)).float() for s in spaces]
        self.number = {id(t.sequence): i for i, t in enumerate(texts)}

    def stream(self, corpus: int, held_out_only: bool = False) -> list[TokenBatch]:
        own = [t.sequence for t in self.texts if t.corpus == corpus and (t.held_out or not held_out_only)]
        return batches(own, max_tokens=self.max_tokens)

    def at(self, chosen: Sequence[tuple[int, int]]) -> _Seen:
        """The pass: coordinates of the chosen tokens, means of all texts, sums over the held-out ones."""
        width, n = sum(self.k), len(CORPORA)
        seen = _Seen(
            torch.zeros(len(chosen), width), torch.zeros(len(self.texts), width),
            torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long),
            [torch.zeros(n, b.shape[0]) for b in self.basis], [torch.zeros(n, b.shape[1]) for b in self.basis],
            torch.zeros(len(self.spaces), n),
        )  # fmt: skip
        starts = np.cumsum([0, *(len(t.sequence) for t in self.texts)])
        slots = torch.full((int(starts[-1]),), -1)
        slots[torch.tensor([int(starts[t]) + at for t, at in chosen], dtype=torch.long)] = torch.arange(len(chosen))
        gradients = any(s.side == "g" for s in self.spaces)
        for corpus in range(n):
            for batch, taped in tapes(
                self.model, self.stream(corpus), self.sites,
                gradients=gradients, positions="labelled", precision=self.precision,
            ):  # fmt: skip
                text = torch.tensor([self.number[id(s)] for s in batch.sequences])[batch.owner]
                slot = slots[torch.from_numpy(starts)[text] + batch.position[batch.labels]]
                held = torch.tensor([self.texts[i].held_out for i in text.tolist()])
                seen.scored[corpus] += len(text)
                seen.count[corpus] += int(held.sum())
                for p, space in enumerate(self.spaces):
                    self._add(seen, p, corpus, _rows(taped[space.site.name], space), text, slot, held)
        seen.items.div_(torch.tensor([int(t.sequence.labels.sum()) for t in self.texts])[:, None])
        return seen

    def _add(self, seen: _Seen, p: int, corpus: int, rows: Tensor, text: Tensor, slot: Tensor, held: Tensor) -> None:
        rows = rows.float()
        on = (rows @ self.basis[p]).cpu()
        rows = rows.cpu()[held]
        seen.sums[p][corpus] += rows.sum(0)
        seen.squares[p][corpus] += on[held].square().sum(0)
        seen.total[p, corpus] += rows.square().sum()
        on = on[:, : self.k[p]]
        seen.items[:, self.own[p]] += torch.zeros(len(self.texts), self.k[p]).index_add(0, text, on)
        seen.coordinates[slot[slot >= 0], self.own[p]] = on[slot >= 0]


def _rows(tape: Tape, space: Subspace) -> Tensor:
    if space.side == "x":
        return tape.x
    assert tape.g is not None
    return tape.g


def _followed(
    look: _Look, before: _Seen, chosen: Sequence[tuple[int, int]], steps: Mapping[str, Mapping[int, Delta]]
) -> tuple[pd.DataFrame, Array, dict[int, Array], dict[int, Array]]:
    """The same directions after every attack step: class means everywhere, tokens of the edited arm at a few places."""
    if not steps:
        return _frame([], ["arm", "step"]), np.zeros((0, sum(look.k), 2), np.float32), {}, {}
    points, means, moved = [("original", 0)], [_means(look, before)], []
    for arm, deltas in steps.items():
        for step in sorted(deltas):
            with models.edited(look.model, deltas[step]):
                seen = look.at(chosen if arm == "edited" else [])
            points.append((arm, step))
            means.append(_means(look, seen))
            if arm == "edited":
                moved.append(seen.coordinates)
    merit = [-(s.auc - s.auc_shuffled) if s.auc == s.auc else 1.0 for s in look.spaces]
    frames, scales = {}, {}
    for p in sorted(range(len(merit)), key=merit.__getitem__)[: STEP_PLACES if moved else 0]:
        stack = torch.stack([m[:, look.own[p]] for m in moved])
        flat, scales[p] = _coded(stack.flatten(0, 1))
        frames[p] = flat.reshape(stack.shape)
    return _frame(points, ["arm", "step"]), np.stack(means), frames, scales


def _means(look: _Look, seen: _Seen) -> Array:
    """``[component, 2]``: mean coordinates of held-out forget and retain tokens."""
    parts = [seen.mean(p)[:2] @ look.basis[p][:, :k].cpu() for p, k in enumerate(look.k)]
    return torch.cat(parts, 1).T.numpy()


def _disruption(look: _Look, on: str, seed: int) -> tuple[list[Array], int]:
    """Per place the quadratic form ``[k, k]`` in nats per predicted token, and how many tokens it is over."""
    forms = [torch.zeros(k, k, dtype=torch.float64) for k in look.k]
    weights = [models.weight(look.model, s.site).detach().to(b) for s, b in zip(look.spaces, look.basis, strict=True)]
    n = 0
    stream = look.stream(CORPORA.index(on), held_out_only=True)
    for batch, taped in tapes(
        look.model, _limited(stream, DISRUPTION_TOKENS, seed), look.sites, labels="sampled",
        precision=look.precision, seed=seed,
    ):  # fmt: skip
        owner = batch.segment[batch.mask]
        for p, space in enumerate(look.spaces):
            tape, basis = taped[space.site.name], look.basis[p][:, : look.k[p]]
            assert tape.g is not None
            x, g = tape.x.float(), tape.g.float()
            if space.side == "x":
                effect = (x @ basis) * (g @ (weights[p] @ basis))
            else:
                effect = (x @ (weights[p].T @ basis)) * (g @ basis)
            effect = effect.cpu().double()
            sums = torch.zeros(len(batch.sequences), look.k[p], dtype=torch.float64).index_add(0, owner, effect)
            forms[p] += sums.T @ sums
        n += int(batch.labels.sum())
    return [(form / n).float().numpy() for form in forms], n


def _limited(stream: Sequence[TokenBatch], tokens: int, seed: int) -> list[TokenBatch]:
    """Batches in random order until there are enough tokens: they come sorted by length."""
    out: list[TokenBatch] = []
    for batch in random.Random(f"{seed}:disruption").sample(list(stream), len(stream)):
        if sum(b.n_tokens for b in out) >= tokens:
            break
        out.append(batch)
    return out


# -------------------------------------------------------------------------------------- tables


def _coded(values: Float[Tensor, "n c"]) -> tuple[Array, Array]:
    """int16 codes and what to multiply them by."""
    reach = values.abs().amax(0).clamp_min(1e-30) if len(values) else torch.ones(values.shape[1])
    scale = reach / 32767
    return (values / scale).round().short().numpy(), scale.numpy()


def _frame(rows: Sequence[tuple[Any, ...]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=columns)


def _places(spaces: Subspaces, seen: _Seen) -> pd.DataFrame:
    table = spaces.to_dataframe()
    energy = np.array([seen.energy(p).sum(1).tolist() for p in range(len(table))])
    table["forget_energy"], table["retain_energy"] = energy[:, 0], energy[:, 1]
    table["width"] = [s.basis.shape[0] for s in spaces.values()]
    table["random_energy"] = table["rank"] / table["width"]
    return table


def _components(model: Any, spaces: Sequence[Subspace], seen: _Seen) -> pd.DataFrame:
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


def _spelled(model: Any, texts: Sequence[_Text], shown: set[int]) -> pd.DataFrame:
    """corpus, held_out and, where a token of the text was sampled, all of its tokens."""
    spelling = Spelling(models.tokenizer_of(model))
    rows = [
        (CORPORA[t.corpus], t.held_out, spelling.pieces(t.sequence.ids.tolist()) if i in shown else [])
        for i, t in enumerate(texts)
    ]
    return _frame(rows, ["corpus", "held_out", "tokens"])
