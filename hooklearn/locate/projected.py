"""Texts and tokens on located directions: which tokens to look at, and the passes that look.

Memory is that of the projections: no activation outlives its batch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import models
from hooklearn.data import Corpus, Encoded, TokenBatch, batches, encode
from hooklearn.forward import Precision
from hooklearn.locate.capture import tapes
from hooklearn.locate.fit import held_out_groups
from hooklearn.locate.subspace import Subspace
from hooklearn.types import NAN, Tape

Array = np.ndarray[Any, np.dtype[Any]]
CORPORA = ("forget", "retain", "unrelated")
COMPONENTS = 16
"""Most components of a place that are sampled."""
TEXT_TOKENS = 120_000
"""Tokens of the texts that are shown around the sampled ones."""
DISRUPTION_TOKENS, DRAWS = 20_000, 8
"""Tokens on which disruption is predicted; fewer are looked at again with other labels, so many times at most."""


# ------------------------------------------------------------------------------- which tokens


@dataclass(frozen=True)
class Text:
    """One row of a corpus as tokens."""

    corpus: int
    held_out: bool
    """The subspaces were fitted on other groups."""
    sequence: Encoded


def texts_of(model: Any, corpora: Mapping[str, Corpus], seed: int) -> list[Text]:
    """Every row, split as :func:`hooklearn.locate.collect` splits them; all unrelated text is held out."""
    held = held_out_groups(corpora["forget"], corpora["retain"], seed=seed)
    out = []
    for name, corpus in corpora.items():
        group_of = corpus.groups
        for s in encode(corpus, models.tokenizer_of(model)):
            out.append(Text(CORPORA.index(name), name == "unrelated" or group_of[s.item] in held, s))
    return out


def chosen_tokens(texts: Sequence[Text], n: int, seed: int) -> list[tuple[int, int]]:
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
class Seen:
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


class Look:
    """Passes of a model over the texts."""

    def __init__(
        self, model: Any, spaces: Sequence[Subspace], texts: Sequence[Text], precision: Precision, max_tokens: int
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
        self.held_out = torch.tensor([t.held_out for t in texts])

    def stream(self, corpus: int, held_out_only: bool = False) -> list[TokenBatch]:
        own = [t.sequence for t in self.texts if t.corpus == corpus and (t.held_out or not held_out_only)]
        return batches(own, max_tokens=self.max_tokens)

    def at(self, chosen: Sequence[tuple[int, int]], model: Any = None) -> Seen:
        """The pass: coordinates of the chosen tokens, means of all texts, sums over the held-out ones.

        ``model``: another one of the same shape, or this one in another state.
        """
        width, n = sum(self.k), len(CORPORA)
        seen = Seen(
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
                model or self.model, self.stream(corpus), self.sites,
                gradients=gradients, positions="labelled", precision=self.precision,
            ):  # fmt: skip
                text = torch.tensor([self.number[id(s)] for s in batch.sequences])[batch.owner]
                slot = slots[torch.from_numpy(starts)[text] + batch.position[batch.labels]]
                held = self.held_out[text]
                seen.scored[corpus] += len(text)
                seen.count[corpus] += int(held.sum())
                for p, space in enumerate(self.spaces):
                    tape = taped[space.site.name]
                    of_token = (tape.of(known, space.side) for known in (text, slot, held))
                    self._add(seen, p, corpus, _rows(tape, space), *of_token)
        seen.items.div_(torch.tensor([int(t.sequence.labels.sum()) for t in self.texts])[:, None])
        return seen

    def _add(self, seen: Seen, p: int, corpus: int, rows: Tensor, text: Tensor, slot: Tensor, held: Tensor) -> None:
        rows = rows.float()
        on = (rows @ self.basis[p]).cpu()
        rows = rows.cpu()[held]
        seen.sums[p][corpus] += rows.sum(0)
        seen.squares[p][corpus] += on[held].square().sum(0)
        seen.total[p, corpus] += rows.square().sum()
        on = on[:, : self.k[p]]
        seen.items[:, self.own[p]].index_add_(0, text, on)
        seen.coordinates[slot[slot >= 0], self.own[p]] = on[slot >= 0]


def _rows(tape: Tape, space: Subspace) -> Tensor:
    if space.side == "x":
        return tape.x
    assert tape.g is not None
    return tape.g


# ---------------------------------------------------------------------------------- disruption


def predicted_disruption(look: Look, on: str, seed: int) -> tuple[list[Array], int]:
    """Per place the quadratic form ``[k, k]`` in nats per predicted token, and how many tokens there are."""
    forms = [torch.zeros(k, k, dtype=torch.float64) for k in look.k]
    bases = [basis[:, :k] for basis, k in zip(look.basis, look.k, strict=True)]
    carried = [_through(look.model, s, b) for s, b in zip(look.spaces, bases, strict=True)]
    stream = _limited(look.stream(CORPORA.index(on), held_out_only=True), DISRUPTION_TOKENS, seed)
    n = sum(int(batch.labels.sum()) for batch in stream)
    draws = min(DRAWS, -(-DISRUPTION_TOKENS // n))
    for batch, taped in tapes(
        look.model, stream * draws, look.sites, labels="sampled", precision=look.precision, seed=seed
    ):
        owner = batch.segment[batch.mask]
        for p, space in enumerate(look.spaces):
            tape = taped[space.site.name]
            assert tape.g is not None
            x_on, g_on = (bases[p], carried[p]) if space.side == "x" else (carried[p], bases[p])
            effect = (tape.x.float() @ x_on) * (tape.g.float() @ g_on)
            effect = effect.cpu().double()
            sums = torch.zeros(len(batch.sequences), look.k[p], dtype=torch.float64)
            sums.index_add_(0, tape.of(owner), effect)
            forms[p] += sums.T @ sums
    return [(form / (n * draws)).float().numpy() for form in forms], n


def _through(model: Any, space: Subspace, basis: Float[Tensor, "d k"]) -> Tensor:
    """Directions of one side of the weight, seen from its other side."""
    weight = models.weight(model, space.site).detach()
    return ((weight if space.side == "x" else weight.T) @ basis.to(weight)).float()


def _limited(stream: Sequence[TokenBatch], tokens: int, seed: int) -> list[TokenBatch]:
    """Batches in random order until there are enough tokens: they come sorted by length."""
    out: list[TokenBatch] = []
    for batch in random.Random(f"{seed}:disruption").sample(list(stream), len(stream)):
        if sum(b.n_tokens for b in out) >= tokens:
            break
        out.append(batch)
    return out
