"""RepSelect over several epochs: an adversary that grows along, and collapsers that are fitted again and again.

    epoch 1     second moments of inputs x and output gradients g are collected; nothing moves
    epoch 2     a LoRA adversary starts to relearn (one step per batch, from now on before every gradient)
    epoch 3 on  the weights move too: W <- W - lr G / |G|, the norm over all sites, where
                G = sum_t C_g(g_t) C_x(x_t)^T  and C are the collapsers fitted at the end of the epoch before

The loss is that of NPO without its retain term, ``-1/beta mean_s log sigmoid(beta (NLL_s - NLL_s at the start))``,
with NLL_s the *sum* over the tokens of completion s: what is already unlikely is let go. The end of the turn is none of
them, as in the single shot and in the authors' text: after an answer of a word it would take most of the budget.
Sequences do not see one another, so the NPO gradient of a token is its NLL gradient times ``-sigmoid(-beta rise)`` of
its sequence.

A collapser multiplies the i-th principal direction by ``lambda_k / lambda_i``, i up to k: the inverse (un-centred)
covariance inside the leading subspace, in units of its smallest eigenvalue, and nothing outside. The authors follow
that subspace by one block-power step per epoch and add a ridge; here the second moments are exact and k is clamped to
the numerical rank, beyond which lambda_k is rounding noise and would erase the update. Memory: ``d x d`` per side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import editing, forward, linalg, models
from hooklearn.data import TokenBatch, batches
from hooklearn.edit.descent import HandRule, blaming, nowhere, one_step
from hooklearn.edit.method import Method, Problem, Updates, combine, delta_of, norm
from hooklearn.locate.capture import tapes
from hooklearn.lora import Lora
from hooklearn.moments import MomentSum
from hooklearn.types import InputError

ADVERSARY_FROM = 1
"""Epoch, counted from 0, from which the adversary learns; the collapsers have seen the forget text once."""
MOVING_FROM = 2


class Collapser:
    """Streaming second moments of one side of one site, and the filter that the last epoch's give."""

    def __init__(self, d: int, rank: int, device: torch.device | str = "cpu") -> None:
        self.rank = min(rank, d)
        self._d, self._device = d, device
        self._sums = MomentSum(d, device=device)
        self.vectors: Float[Tensor, "d k"] = torch.zeros(d, 0, device=device)
        self.factors: Float[Tensor, " k"] = torch.zeros(0, device=device)

    def add(self, rows: Float[Tensor, "token d"]) -> None:
        self._sums.add(rows)

    def refit(self) -> None:
        """Filter by what was added since the last time, and start to add anew."""
        if self.rank == 0:
            return
        second = self._sums.moments().mean_second()
        vectors, values = linalg.pca(second, self.rank)
        k = linalg.numerical_rank(values, (self._d, self._d))
        self.vectors = vectors[:, :k]
        self.factors = values[k - 1] / values[:k] if k else values[:0]
        self._sums = MomentSum(self._d, device=self._device)

    def __call__(self, rows: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        """Before the first fit the rows as they are."""
        return rows - ((rows @ self.vectors) * (1 - self.factors)) @ self.vectors.T


class JointStep(HandRule):
    """Plain descent by a step of fixed length: all gradients are divided by their joint norm."""

    def __init__(self, params: Sequence[Tensor], length: float) -> None:
        super().__init__(params)
        self.length = length

    @torch.no_grad()
    def step(self) -> None:
        gradients = self.gradients()
        size = max(float(torch.nn.utils.get_total_norm(gradients)), torch.finfo(torch.float32).tiny)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.sub_(gradient, alpha=self.length / size)


@dataclass(frozen=True, kw_only=True)
class RepSelectMulti(Method):
    """Multi-epoch RepSelect: inverse-covariance collapse on both sides, NPO loss, an adversary that keeps pace."""

    name: ClassVar[str] = "repselect_multi"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026, arXiv 2606.17168 (multi-epoch)"
    ray: ClassVar[bool] = False
    rank: int = 128
    """Directions collapsed per side; clamped to the width and to the numerical rank. 0: none."""
    learning_rate: float = 0.2
    """Length of a step, joint norm over all sites."""
    beta: float = 0.1
    """NPO's: how soon a completion that has become unlikely is let go."""
    epochs: int = 10
    """With the two in which no weight moves."""
    every: int = 2
    """Steps between two looks at the budget."""
    lora_rank: int = 32
    """Of the adversary that keeps pace; refused where there is none."""
    lora_lr: float = 0.2
    """Length of the adversary's step, in units of ``learning_rate``; 0: no adversary."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.beta <= 0 or self.lora_lr < 0:
            raise InputError(
                "repselect_multi: learning_rate and beta must be positive and lora_lr 0 or more, got "
                f"{self.learning_rate}, {self.beta}, {self.lora_lr}"
            )
        if self.epochs <= MOVING_FROM:
            raise InputError(
                f"repselect_multi: epochs must be at least {MOVING_FROM + 1} (no weight moves in the first "
                f"{MOVING_FROM}), got {self.epochs}"
            )
        if self.rank < 0 or self.every < 1 or self.lora_rank < 1:
            raise InputError(
                "repselect_multi: rank must be 0 or more, every and lora_rank at least 1, got "
                f"{self.rank}, {self.every}, {self.lora_rank}"
            )
        if self.lora_lr == 0:
            self.refuse("lora_rank", why="with lora_lr 0 there is no adversary")

    def path(self, problem: Problem) -> Iterator[Updates]:
        model, sites = problem.model, problem.sites
        sequences = problem.encoded("forget")
        lora = Lora(sites, rank=self.lora_rank, alpha=self.lora_rank / 2, seed=problem.seed)
        relearning = JointStep(lora.parameters(), self.lora_lr * self.learning_rate)
        device = models.device_of(model)
        collapsers = {
            s.name: (Collapser(s.d_in, self.rank, device), Collapser(s.d_out, self.rank, device)) for s in sites
        }
        start: dict[int, float] = {}
        updates, moves = nowhere(problem), 0
        for epoch in range(self.epochs):
            for batch in batches(sequences, max_tokens=problem.max_tokens, seed=problem.seed + epoch):
                with editing.edited(model, delta_of(updates)), lora.active(model):
                    if epoch >= ADVERSARY_FROM and self.lora_lr:
                        with blaming(f"repselect_multi: lora_lr {self.lora_lr:g}"), models.trainable(model, []):
                            one_step(problem, batch, relearning)
                    gradient = self._gradient(problem, batch, start, collapsers)
                if epoch < MOVING_FROM:
                    continue
                size = norm(gradient)
                updates = combine(updates, gradient, 1.0, -self.learning_rate / size if size else 0.0)
                moves += 1
                if moves % self.every == 0:
                    yield updates
            for pair in collapsers.values():
                for collapser in pair:
                    collapser.refit()
        if moves % self.every:
            yield updates

    def _gradient(
        self,
        problem: Problem,
        batch: TokenBatch,
        start: dict[int, float],
        collapsers: dict[str, tuple[Collapser, Collapser]],
    ) -> Updates:
        """Collapsed gradient of the NPO loss, up to a positive factor; the collapsers are shown its rows."""
        pressure = npo_pressure(problem, batch, start, self.beta)
        ((_, taped),) = tapes(problem.model, [batch], problem.sites, precision=problem.precision)
        problem.tokens += batch.n_tokens
        # tapes hold the real tokens in the order of the mask
        per_token = -pressure[batch.segment[batch.mask]]
        out = {}
        for name, tape in taped.items():
            assert tape.g is not None
            g = tape.g.float() * tape.of(per_token).to(tape.g.device)[:, None]
            alive = g.norm(dim=1) > 0
            x, g = tape.x.float()[alive], g[alive]
            x_side, g_side = collapsers[name]
            x_side.add(x)
            g_side.add(g)
            out[name] = (g_side(g).T @ x_side(x)).cpu()
        return out


def npo_pressure(
    problem: Problem, batch: TokenBatch, start: dict[int, float], beta: float
) -> Float[Tensor, " sequence"]:
    """``sigmoid(-beta (NLL - NLL at the start))`` per sequence of the batch: 1/2 at the start, 0 when it is gone.

    Args:
        start: item -> NLL in nats, summed over the completion, when it was first seen; added to.
    """
    scores = forward.sequence_logprobs(problem.model, list(batch.sequences), precision=problem.precision)
    problem.tokens += batch.n_tokens
    now = -scores[:, 0]
    before = [start.setdefault(s.item, float(v)) for s, v in zip(batch.sequences, now, strict=True)]
    return torch.sigmoid(-beta * (now - torch.tensor(before, dtype=now.dtype))).float()
