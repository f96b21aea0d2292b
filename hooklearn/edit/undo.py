"""UNDO: unlearn, noise, distil. What only hid a behaviour does not survive a student who starts from damaged weights.

1. *Suppress*: a behavioural unlearning of the sites gives the teacher, ``theta_T``. It goes on until the forget items
   have become as unlikely as asked (``teacher_level``): what the teacher still knows is distilled into the student, so
   that noise and lessons after a teacher who has forgotten nothing remove nothing.
2. *Noise*: ``theta_S = (1 - alpha) theta_T + alpha beta N``, N uniform as Xavier's initialisation has it. alpha says
   how far back towards nothing, beta how much noise takes its place.
3. *Distil*: KL(teacher || student), nats per labelled token, is lowered on text that must stay, until it is at most
   ``tolerance`` there. (The paper waits for a retain loss within 5 % of the teacher's; a loss can be that close while
   the student is many budgets away, and this number has the budget's own unit.)

The paper damages and retrains every weight; here, as everywhere in hooklearn, only the sites. It distils on an
unlabelled mix of retain and forget text; here on retain and reference text, and on the forget text too when asked
(``distil_forget``): then the student is *taught* the suppressed behaviour, and not merely left without the other.

**Under an exact budget.** What is handed to the solver is a ray, ``D = theta_S - original`` of free length, and not
the way the student came: distillation starts far outside the budget (at the noised weights) and comes towards it
from there, so "where does it enter the budget" is no crossing from zero, and stopping there would hand out a student
who is only half mended. The solver therefore asks *how much of the finished student* fits: scale 1 is the student,

    original + s (theta_S - original),      s < 1 is close to a smaller alpha and a weaker teacher at once,
                                            s > 1 goes on past the student, where it is well inside the budget.

So a budget far below the finished student's own disruption buys a small share ``s`` of it (the ``scale`` of the trace
point that has the edit's ``kl``), and with it little of the method's robustness: that is the honest price of a large
alpha and not UNDO at its best. Take a gentler teacher, a smaller alpha or a longer distillation until s is near 1. Half
a student is also worse than half as much of a gradient: noise is mended at s = 1 and not on the way there, so KL grows
more like s than like its square. It need not even be monotone (the student may sit in another basin, behind a barrier);
the solver takes a crossing that it finds coming from zero, and where the disruption jumps there it says ``budget not
reached``.

Memory: the updates of teacher and student, Adam's state, and the teacher's final hidden states where a token is
predicted (logits are made from them when they are needed). No second model.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import editing, forward, losses, models
from hooklearn.data import Encoded, TokenBatch, batches, encode
from hooklearn.edit.descent import advancing, blaming, confusion, descend, training_stream
from hooklearn.edit.method import Method, Problem, Updates, delta_of
from hooklearn.forward import count_tokens
from hooklearn.losses import LossSum
from hooklearn.measure import mean_completion
from hooklearn.train import Objective, fit, nll
from hooklearn.types import InputError

LOOK_EVERY, ITEMS = 2, 64
"""Steps between two looks at what the teacher still knows, and the forget items that are looked at, first to last: on
SmolLM2 and the capitals 1470 tokens forward, where a step is 860 tokens forward and backward."""


@dataclass(frozen=True, kw_only=True)
class Undo(Method):
    """Unlearn, noise, distil: a damaged copy of a suppressed teacher, taught by it again."""

    name: ClassVar[str] = "undo"
    source: ClassVar[str] = "Lee et al. 2025, arXiv 2506.06278"
    alpha: float = 0.1
    """Share of the suppressed weights that is given up; 0: the teacher itself."""
    beta: float = 0.1
    """Size of the noise in their place, in units of a fresh Xavier initialisation; 0: shrink only."""
    teacher: Literal["graddiff", "max_entropy"] = "graddiff"
    """How it is suppressed: forget loss up, or forget entropy up; retain loss down either way."""
    teacher_level: float = 0.25
    """The teacher is suppressed until the mean completion probability of the forget items is this share of what it was,
    looked at every other step; 0: for ``teacher_steps`` steps. (Where it was never learned it is about .4 of that for
    the tendencies that come with hooklearn, .03 to .15 for the facts.)"""
    teacher_steps: int = 64
    """The cap on the steps of that."""
    teacher_rate: float = 2e-5
    """The teacher's learning rate, by Adam."""
    learning_rate: float = 5e-5
    """Of the distillation, by Adam."""
    epochs: int = 8
    """The cap on passes of the distillation over its text."""
    tolerance: float = 0.002
    """Distillation ends when KL(teacher || student) on its text is at most this, nats per token."""
    distil_forget: bool = False
    """Distil on the forget text too, as the paper does."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.beta < 0:
            raise InputError(f"undo: alpha must be in [0, 1] and beta 0 or more, got {self.alpha} and {self.beta}")
        if min(self.teacher_rate, self.learning_rate) <= 0 or self.tolerance < 0:
            raise InputError(
                "undo: teacher_rate and learning_rate must be positive and tolerance 0 or more, got "
                f"{self.teacher_rate}, {self.learning_rate}, {self.tolerance}"
            )
        if self.teacher_steps < 1 or self.epochs < 1:
            raise InputError(
                f"undo: teacher_steps and epochs must be at least 1, got {self.teacher_steps}, {self.epochs}"
            )
        if not 0 <= self.teacher_level < 1:
            raise InputError(f"undo: teacher_level must be in [0, 1), got {self.teacher_level}")
        if self.alpha == 0:
            nothing = "with alpha 0 nothing is given up, so there is no noise and nothing to learn again"
            lessons = ("learning_rate", "epochs", "tolerance", "distil_forget")
            self.refuse(*(("beta",) if self.beta else ()), *lessons, why=nothing)

    @property
    def trains(self) -> bool:
        return True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",)

    def path(self, problem: Problem) -> Iterator[Updates]:
        teacher = self.suppressed(problem)
        yield self.distilled(problem, teacher, self.noised(problem, teacher)) if self.alpha else teacher

    def suppressed(self, problem: Problem) -> Updates:
        """The teacher: Adam on the sites until little enough is known, or for as many steps as there may be.

        ``problem.found`` says how many steps it took, and the share of the forget items' probability that is left.
        """
        kept = training_stream(problem, "retain", sys.maxsize)

        def loss(model: Any, batch: TokenBatch) -> LossSum:
            stay = next(kept)
            problem.tokens += stay.n_tokens
            push = confusion(model, batch) if self.teacher == "max_entropy" else -1.0 * nll(model, batch)
            return LossSum(push.mean + nll(model, stay).mean, 1)

        stream = itertools.islice(training_stream(problem, "forget", sys.maxsize), self.teacher_steps)
        every = LOOK_EVERY if self.teacher_level else self.teacher_steps
        walk = descend(
            problem, stream, loss, self.teacher_rate, every,
            usual=type(self).teacher_rate, option="undo: teacher_rate",
        )  # fmt: skip
        items, was = None, 0.0
        if self.teacher_level:
            items = encode(problem.forget.take(ITEMS), models.tokenizer_of(problem.model))
            was = known(problem, items)
        teacher: Updates = {}
        for looks, teacher in enumerate(walk, start=1):
            problem.found["teacher_steps"] = min(looks * every, self.teacher_steps)
            if items is None:
                continue
            with editing.edited(problem.model, delta_of(teacher)):
                now = known(problem, items)
            problem.found["teacher_level"] = now / was if was else 0.0
            if now <= self.teacher_level * was:
                break
        return teacher

    def noised(self, problem: Problem, teacher: Updates) -> Updates:
        """The student before its first lesson; at alpha 0 the teacher, bit for bit."""
        generator = torch.Generator().manual_seed(problem.seed)
        out = {}
        for site in problem.sites:
            weight = models.weight(problem.model, site).detach().float()
            update = teacher[site.name].to(weight)
            noise = xavier(site.d_out, site.d_in, generator).to(weight)
            out[site.name] = update + self.alpha * (self.beta * noise - (weight + update))
        return out

    def distilled(self, problem: Problem, teacher: Updates, student: Updates) -> Updates:
        """The student after its lessons, as updates of the original."""
        model, text = problem.model, self._text(problem)
        with torch.no_grad(), editing.edited(model, delta_of(teacher)), forward.autocast(model, problem.precision):
            said = [forward.hidden(model, batch) for batch in text]
        problem.tokens += count_tokens(text)
        updates, order, objective = dict(student), list(range(len(text))), imitation(text, said)
        with blaming(f"undo: learning_rate {self.learning_rate:g}"), advancing(problem, updates) as params:
            rule = torch.optim.Adam(params, lr=self.learning_rate)
            for epoch in range(self.epochs):
                if mean_loss(problem, text, objective) <= self.tolerance:
                    break
                random.Random(f"{problem.seed}:{epoch}").shuffle(order)
                lessons = [text[i] for i in order]
                run = fit(
                    model, lessons, rule=rule, objective=objective, precision=problem.precision,
                    first=epoch * len(lessons),
                )  # fmt: skip
                problem.tokens += run.tokens
        return updates

    def _text(self, problem: Problem) -> list[TokenBatch]:
        roles = ["retain", *(["reference"] if problem.reference is not None else [])]
        roles += ["forget"] if self.distil_forget else []
        tokenizer = models.tokenizer_of(problem.model)
        sequences = [s for role in roles for s in encode(problem.corpus(role), tokenizer, end="turn")]
        return batches(sequences, max_tokens=problem.max_tokens)


def known(problem: Problem, items: list[Encoded]) -> float:
    """Mean completion probability, in the state that the model is in now."""
    problem.tokens += sum(map(len, items))
    return mean_completion(problem.model, items, precision=problem.precision, max_tokens=problem.max_tokens)


def imitation(text: Sequence[TokenBatch], said: Sequence[Float[Tensor, "kept d_model"]]) -> Objective:
    """KL(teacher || student) in nats per labelled token, from the teacher's final hidden states on the same batches."""
    by_batch = {id(batch): hidden for batch, hidden in zip(text, said, strict=True)}

    def loss(model: Any, batch: TokenBatch) -> LossSum:
        with torch.no_grad():
            taught = forward.unembed(model, by_batch[id(batch)])
        return losses.kl(taught, forward.logits(model, batch))

    return loss


@torch.no_grad()
def mean_loss(problem: Problem, text: Sequence[TokenBatch], objective: Objective) -> float:
    """Nats per token over all of the text, in the state that the model is in now."""
    problem.tokens += count_tokens(text)
    with forward.autocast(problem.model, problem.precision):
        sums = [objective(problem.model, batch) for batch in text]
    return sum(float(s.total) for s in sums) / sum(s.count for s in sums)


def xavier(d_out: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "d_out d_in"]:
    """Glorot & Bengio's uniform initialisation, ``U(-b, b)`` with ``b = sqrt(6 / (d_in + d_out))``."""
    bound = (6 / (d_in + d_out)) ** 0.5
    return (torch.rand(d_out, d_in, generator=generator) * 2 - 1) * bound
