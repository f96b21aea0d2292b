"""TAR: weights that resist an adversary who is trained to bring the behaviour back.

Every outer step simulates an attack on where the walk stands, ``theta``: ``inner_steps`` of fine-tuning on forget
text. On the way the tamper-resistance loss, minus the predictive entropy on *other* forget text, is read at the
adversary ``theta_i``, and its gradients there are applied to ``theta`` as they are (first-order MAML: no derivative
passes through the attack):

    theta <- theta - Adam( sum_i w_i grad L_tamper(theta_i)  +  w_r grad L_retain(theta) )
    w_i = w exp(growth (i - (inner_steps - 1)))
    L_retain = CE + mean over tokens and blocks of |h - h_original|

Where this differs from the paper: the walk starts at the original and not at a randomly mapped model (that alone is
many small budgets away); the adversary is always a fine-tuner on forget text; Adam in place of schedule-free AdamW
with a warm-up; the forget rows are halved by group, one half trains the adversary and the other one judges it, and
the halves change places at every outer step.

The retain loss is over the retain corpus and never over reference text: cross-entropy there would move the model away
from the original on running text and so spend the far budget on training.

Memory: during a step two more copies of the sites' weights (where the attack started, the summed gradient) and the
adversary's own Adam state; between steps only the walk's Adam state.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hooklearn import forward, models
from hooklearn.data import TokenBatch, cycle, encode
from hooklearn.edit.descent import HandRule, advancing, blaming, confusion, nowhere, one_step, training_stream
from hooklearn.edit.method import Method, Problem, Updates
from hooklearn.losses import LossSum
from hooklearn.train import Objective, nll
from hooklearn.transfer import rows_at
from hooklearn.types import InputError

# ------------------------------------------------------------------------------------------------ TAR


@dataclass(frozen=True, kw_only=True)
class Tar(Method):
    """Tamper-resistant training: a simulated relearner at every step, its confusion raised at the outer weights."""

    name: ClassVar[str] = "tar"
    source: ClassVar[str] = "Tamirisa et al. 2024, arXiv 2408.00761 (first order, without the random-mapping start)"
    ray: ClassVar[bool] = False
    learning_rate: float = 2e-5
    """Of the outer steps, by Adam."""
    steps: int = 24
    """Outer steps (the paper's own: 750)."""
    every: int = 2
    """Outer steps between two looks at the budget."""
    inner_steps: int = 8
    """Steps of the simulated attack (the paper's own: 64)."""
    look_every: int = 4
    """Inner steps between two readings of the tamper-resistance loss, counted from the last one back."""
    adversary_rates: tuple[float, ...] = (2e-6, 2e-5, 4e-5)
    """The adversary's learning rate is drawn from these at every outer step."""
    adversary: Literal["adam", "sgd"] = "adam"
    """The simulated attacker's optimizer."""
    resistance_weight: float = 4.0
    """w: of the tamper-resistance gradients."""
    growth: float = 0.0625
    """How much more the later readings count, per inner step."""
    retain_weight: float = 1.0
    """w_r: of the retain loss."""

    def __post_init__(self) -> None:
        if min(self.steps, self.every, self.inner_steps, self.look_every) < 1:
            raise InputError(
                "tar: steps, every, inner_steps and look_every must be at least 1, got "
                f"{self.steps}, {self.every}, {self.inner_steps}, {self.look_every}"
            )
        if not self.adversary_rates or min(self.learning_rate, *self.adversary_rates) <= 0:
            raise InputError(
                "tar: learning_rate and adversary_rates must be positive, got "
                f"{self.learning_rate} and {list(self.adversary_rates)}"
            )
        if min(self.resistance_weight, self.retain_weight, self.growth) < 0:
            raise InputError(
                "tar: resistance_weight, retain_weight and growth must be 0 or more, got "
                f"{self.resistance_weight}, {self.retain_weight} and {self.growth}"
            )
        if self.resistance_weight == 0:
            attack = ("inner_steps", "look_every", "adversary_rates", "adversary", "growth")
            self.refuse(*attack, why="with resistance_weight 0 what the attack finds counts for nothing")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",)

    def path(self, problem: Problem) -> Iterator[Updates]:
        kept, halves = training_stream(problem, "retain", sys.maxsize), _halves(problem)
        rule = torch.optim.Adam(models.parameters_of(problem.model, problem.sites), lr=self.learning_rate)
        drawn = random.Random(f"tar:{problem.seed}")
        updates = nowhere(problem)
        too_high = f"tar: learning_rate {self.learning_rate:g} or adversary_rates {list(self.adversary_rates)}"
        for step in range(1, self.steps + 1):
            text = next(kept)
            original = hidden_states(problem, text)
            attack, judge = halves if step % 2 else halves[::-1]
            with blaming(too_high), advancing(problem, updates) as params:
                total = self.resistance(problem, attack, judge, drawn.choice(self.adversary_rates))
                one_step(problem, text, Collect(params, total, self.retain_weight), retention(original))
                for parameter, gradient in zip(params, total, strict=True):
                    parameter.grad = gradient
                rule.step()
            if step % self.every == 0 or step == self.steps:
                yield dict(updates)

    def resistance(
        self, problem: Problem, attack: Iterator[TokenBatch], judge: Iterator[TokenBatch], rate: float
    ) -> list[Tensor]:
        """``sum_i w_i grad L_tamper(theta_i)`` over one simulated attack; the weights are as before afterwards.

        Args:
            attack: what the adversary trains on; ``judge``: where its confusion is read.
        Returns:
            One tensor per stored parameter of the sites.
        """
        params = models.parameters_of(problem.model, problem.sites)
        start = [p.detach().clone() for p in params]
        total = [torch.zeros_like(p) for p in start]
        optimizer = torch.optim.Adam if self.adversary == "adam" else torch.optim.SGD
        rule = optimizer(params, lr=rate)
        for i in range(self.inner_steps):
            one_step(problem, next(attack), rule)
            to_go = self.inner_steps - 1 - i
            if to_go % self.look_every == 0:
                weight = self.resistance_weight * math.exp(-self.growth * to_go)
                one_step(problem, next(judge), Collect(params, total, weight), confusion)
        with torch.no_grad():
            for parameter, values in zip(params, start, strict=True):
                parameter.copy_(values)
        return total


def _halves(problem: Problem) -> tuple[Iterator[TokenBatch], Iterator[TokenBatch]]:
    """Endless batches of two disjoint halves of the forget rows; a group is never split."""
    groups = len(set(problem.forget.groups))
    if groups < 2:
        raise InputError(
            f"tar: the forget corpus {problem.forget.name!r} has {groups} group of rows and needs 2: "
            "the adversary trains on one half and is judged on the other"
        )
    tokenizer = models.tokenizer_of(problem.model)
    one, other = (
        cycle(encode(part, tokenizer, end="turn"), max_tokens=problem.max_tokens, seed=problem.seed, epochs=sys.maxsize)
        for part in problem.forget.split(one=1, other=1).values()
    )
    return one, other


def retention(original: Sequence[Tensor]) -> Objective:
    """CE, nats per token, plus the mean distance of the hidden states to the original's."""

    def loss(model: Any, batch: TokenBatch) -> LossSum:
        with _recorded(model, batch) as now:
            likelihood = nll(model, batch).mean
        far = [(a.float() - b.float()).norm(dim=-1).mean() for a, b in zip(now, original, strict=True)]
        return LossSum(likelihood + torch.stack(far).mean(), 1)

    return loss


@torch.no_grad()
def hidden_states(problem: Problem, batch: TokenBatch) -> list[Tensor]:
    """``[token d_model]`` after every block, at real tokens, in the state the model is in now."""
    with forward.autocast(problem.model, problem.precision), _recorded(problem.model, batch) as found:
        forward.hidden(problem.model, batch)
    problem.tokens += batch.n_tokens
    return found


@contextlib.contextmanager
def _recorded(model: Any, batch: TokenBatch) -> Iterator[list[Tensor]]:
    """A list that a forward pass over the batch fills with the outputs of the blocks."""
    found: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens passes it by name)
        found.append(rows_at(value, batch.mask))

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", keep) for layer in range(model.cfg.n_layers)]):
        yield found


class Collect(HandRule):
    """Moves nothing: it adds ``weight`` times the gradients to ``total``."""

    def __init__(self, params: Sequence[Tensor], total: Sequence[Tensor], weight: float = 1.0) -> None:
        super().__init__(params)
        self.total = total
        self.weight = weight

    @torch.no_grad()
    def step(self) -> None:
        for total, gradient in zip(self.total, self.gradients(), strict=True):
            total.add_(gradient, alpha=self.weight)
