"""MUDMAN: Meta-Unlearning with Disruption MAsking and Normalisation.

Three things in every step, at two sets of weights. ``theta`` is the walk, ``theta_a`` an adversary that is forked from
it now and then and relearns the behaviour:

    at theta:    a <- m a + (1 - m) grad CE(retain),   theta <- theta - retain_rate a
    at theta_a:  theta_a <- theta_a - adversary_rate grad CE(forget)
    at theta_a:  g = grad L_unlearn(forget),   theta <- theta - (learning_rate / |g|) [sign(g) = sign(a)] g

So what the relearner is about to use is taken out of the walk (first-order MAML), and a weight moves only where that
also lowers the retain loss, to first order: the disruption mask. ``|g|`` is over all sites and taken before masking.

Where this differs from the authors' code: the forward pass is made again at the adversary that has just moved (theirs
takes both gradients from one graph); only the edited sites belong to the adversary; and those are what the config
says, by default all of the MLP (theirs: the gate projections alone, `sites: mlp.gate`). At rest the walk keeps two
more copies of the sites' weights, the adversary's and the accumulator ``a``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooklearn import forward, models
from hooklearn.data import TokenBatch
from hooklearn.edit.descent import (
    HandRule,
    advancing,
    blaming,
    confusion,
    nowhere,
    one_step,
    training_stream,
)
from hooklearn.edit.method import Method, Problem, Updates
from hooklearn.losses import LossSum
from hooklearn.train import Objective, nll
from hooklearn.types import InputError


@dataclass(frozen=True, kw_only=True)
class Mudman(Method):
    """Unlearning against a relearning adversary, by normalised steps masked to what does not disrupt."""

    name: ClassVar[str] = "mudman"
    source: ClassVar[str] = "Sondej et al. 2025, arXiv 2506.12484"
    ray: ClassVar[bool] = False
    learning_rate: float = 0.1
    """Length of a step before masking, joint norm over all sites."""
    steps: int = 100
    """The cap, where the budget is not reached before."""
    every: int = 5
    """Steps between two looks at the budget."""
    loss: Literal["neg_entropy", "neg_ce", "correct_logit"] = "neg_entropy"
    """What every step does at the adversary: raise its entropy, raise its loss, or lower the true token's logit to
    the mean."""
    adversary_rate: float = 1e-3
    """0: no meta-learning, the adversary is the walk as it was at the last fork."""
    fork_every: int = 32
    """Steps after which the adversary starts again from where the walk stands."""
    retain_rate: float = 1e-3
    """Learning rate of the retain step (SGD) along its running mean; 0: retain only masks."""
    retain_momentum: float = 0.9
    """m: of the running mean of the retain gradient, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or min(self.adversary_rate, self.retain_rate) < 0:
            raise InputError(
                "mudman: learning_rate must be positive, adversary_rate and retain_rate 0 or more, got "
                f"{self.learning_rate}, {self.adversary_rate}, {self.retain_rate}"
            )
        if min(self.steps, self.every, self.fork_every) < 1:
            raise InputError(
                "mudman: steps, every and fork_every must be at least 1, got "
                f"{self.steps}, {self.every}, {self.fork_every}"
            )
        if not 0 <= self.retain_momentum < 1:
            raise InputError(f"mudman: retain_momentum must be in [0, 1), got {self.retain_momentum}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",)

    def path(self, problem: Problem) -> Iterator[Updates]:
        kept, forget = (training_stream(problem, role, sys.maxsize) for role in ("retain", "forget"))
        params = models.parameters_of(problem.model, problem.sites)
        accumulated = [torch.zeros_like(p, requires_grad=False) for p in params]
        relearning = torch.optim.SGD(params, lr=self.adversary_rate)
        updates, adversary = nowhere(problem), list[Tensor]()
        too_high = (
            f"mudman: learning_rate {self.learning_rate:g}, adversary_rate {self.adversary_rate:g} "
            f"or retain_rate {self.retain_rate:g}"
        )
        for step in range(self.steps):
            batch = next(forget)
            with blaming(too_high), advancing(problem, updates):
                if step % self.fork_every == 0:
                    adversary = [p.detach().clone() for p in params]
                one_step(problem, next(kept), Retaining(params, accumulated, self.retain_momentum, self.retain_rate))
                exchange(params, adversary)  # until they are exchanged again, the list holds the walk
                one_step(problem, batch, relearning)
                rule = MaskedStep(params, adversary, accumulated, self.learning_rate)
                one_step(problem, batch, rule, OBJECTIVES[self.loss])
                exchange(params, adversary)
            if (step + 1) % self.every == 0 or step + 1 == self.steps:
                yield dict(updates)


@torch.no_grad()
def exchange(params: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Swap the values, one tensor at a time."""
    for parameter, other in zip(params, others, strict=True):
        values = parameter.detach().clone()
        parameter.copy_(other)
        other.copy_(values)


def disruption_mask(gradient: Float[Tensor, "*shape"], retain: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Where a step against ``gradient`` lowers, to first order, a loss whose gradient is ``retain``."""
    return gradient.sign() == retain.sign()


class Retaining(HandRule):
    """Descent along a running mean of the retain gradient, ``a <- m a + (1 - m) g``."""

    def __init__(self, params: Sequence[Tensor], accumulated: Sequence[Tensor], momentum: float, rate: float) -> None:
        super().__init__(params)
        self.accumulated = accumulated
        self.momentum = momentum
        self.rate = rate

    @torch.no_grad()
    def step(self) -> None:
        for parameter, mean, gradient in zip(self.params, self.accumulated, self.gradients(), strict=True):
            mean.lerp_(gradient, 1 - self.momentum)
            parameter.sub_(mean, alpha=self.rate)


class MaskedStep(HandRule):
    """Moves ``targets`` and not ``params``, against the gradient at ``params``: normalised, then masked."""

    def __init__(
        self, params: Sequence[Tensor], targets: Sequence[Tensor], retain: Sequence[Tensor], rate: float
    ) -> None:
        super().__init__(params)
        self.targets = targets
        self.retain = retain
        self.rate = rate

    @torch.no_grad()
    def step(self) -> None:
        gradients = self.gradients()
        size = float(torch.nn.utils.get_total_norm(gradients))
        if size == 0:
            return
        for target, gradient, retain in zip(self.targets, gradients, self.retain, strict=True):
            target.sub_(gradient * disruption_mask(gradient, retain), alpha=self.rate / size)


def unlikelihood(model: Any, batch: TokenBatch) -> LossSum:
    """Minus the cross-entropy: gradient ascent."""
    return -1.0 * nll(model, batch)


def correct_logit(model: Any, batch: TokenBatch) -> LossSum:
    """How far the true token's logit is above the mean logit; nothing below it."""
    logits = forward.logits(model, batch).float()
    true = logits.gather(-1, batch.targets.to(logits.device)[:, None]).squeeze(-1)
    return LossSum((true - logits.mean(-1)).clamp_min(0).sum(), len(true))


OBJECTIVES: dict[str, Objective] = {
    "neg_entropy": confusion, "neg_ce": unlikelihood, "correct_logit": correct_logit
}  # fmt: skip
