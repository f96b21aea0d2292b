"""THE loop: edits, relearning, erosion and organism building share it; they differ in what they pass.

Parameters stay float32 (or whatever the model holds); products run in the chosen precision. bfloat16 *masters*
would round most small steps away (an Adam step of 7e-6 on weights of 0.02 keeps 8 % of itself).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hooklearn import callbacks, forward, integrity, losses, models, parallel
from hooklearn.data import TokenBatch
from hooklearn.forward import Precision
from hooklearn.losses import LossSum
from hooklearn.transfer import Arriving, onto
from hooklearn.types import NumericalError

Objective = Callable[[Any, TokenBatch], LossSum]
Observer = Callable[[int, int], str | None]
"""Called with (step, tokens so far) before every step and at the end; a string stops the loop and says why."""


class Rule(Protocol):
    """What turns gradients into a change of the parameters; torch optimizers are rules."""

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


@dataclass(frozen=True)
class Fit:
    steps: int
    tokens: int
    seconds: float
    losses: tuple[float, ...]
    """Mean loss in nats per token, per step."""
    stop: str


def nll(model: Any, batch: TokenBatch) -> LossSum:
    """Cross-entropy of the labelled tokens: ordinary language modelling."""
    scores = forward.logits(model, batch)
    return losses.ce(scores, onto(batch.targets, scores.device))


@torch.enable_grad()
def fit(
    model: Any,
    stream: Iterable[TokenBatch],
    *,
    rule: Rule,
    objective: Objective = nll,
    observe: Observer | None = None,
    precision: Precision = "auto",
    max_norm: float | None = None,
    params: Sequence[Tensor] = (),
    first: int = 0,
    split: bool = False,
) -> Fit:
    """Descend ``objective`` over the batches of ``stream``; whether gradients are enabled outside does not matter.

    Args:
        rule: holds the parameters that move; everything else should not require gradients.
        observe: evaluation, saving and stopping; runs before each step and once after the last.
        max_norm: clip the gradient of ``params`` to this norm.
        first: the number of the first step, where the loop goes on from an earlier call.
        split: every process takes its part of each batch (:mod:`hooklearn.parallel`). Only for an objective that is a
            sum over sequences; without, each takes the same steps by itself.
    Raises:
        NumericalError: the loss, a gradient or a weight is NaN or infinite; names the step, and the parameter. On a CPU
            the step is not taken; on a GPU it is found out a step later, as the loop does not wait for the device.
    """
    watched = list(params) or _parameters(model, rule)
    behind = _behind(model)
    sharded = any(parallel.is_sharded(p) for p in watched)
    started, tokens, history, stop = time.perf_counter(), 0, [], "end of data"
    readings: deque[Arriving] = deque()
    """Loss and norm of the gradient, of the steps that were not looked at yet."""

    def read(most: int) -> None:
        """Look at readings until no more than so many wait."""
        while len(readings) > most:
            (value, norm), number = readings.popleft().read(), first + len(history)
            value = parallel.total(value) if split or sharded else value
            if not math.isfinite(value):
                raise NumericalError(f"loss is {value} at step {number}; lower the learning rate")
            if not math.isfinite(norm):  # clipped, it would make every weight NaN; a step later, it has
                raise _broken(model, watched, "weight" if behind else "gradient", number)
            history.append(value)

    rule.zero_grad(set_to_none=True)
    for step, batch in enumerate(stream):
        # once in a while: look, and perhaps stop
        if observe is not None and (reason := observe(step, tokens)) is not None:
            read(0)
            return Fit(step, tokens, time.perf_counter() - started, tuple(history), reason)

        # ---------------------------------------------------------------- a single training step
        with forward.autocast(model, precision):
            loss = _own_part(objective, model, batch) if split else objective(model, batch).mean
            if not split and sharded:
                loss = loss / parallel.size()  # every process sends back the same, and it is added up
        loss.backward()
        if split:
            parallel.add_gradients(watched)
        # no name holds the gradients: they would still be there when the next step makes its own
        norm = parallel.whole(torch.nn.utils.get_total_norm([p.grad for p in watched if p.grad is not None]))
        readings.append(Arriving(torch.stack([loss.detach(), norm.to(loss)])))
        read(behind)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
        rule.step()
        rule.zero_grad(set_to_none=True)  # now: a look needs the memory
        # ----------------------------------------------------------------------------------------
        tokens += batch.n_tokens
        if not behind:
            callbacks.step_ended(first + len(history), loss=history[-1], model=model)
    read(0)
    done = len(history)
    # a weight that broke earlier broke the loss of the step after; only the last step has none after it
    if any(not integrity.is_finite(p) for p in watched):
        raise _broken(model, watched, "weight", first + done - 1)
    if observe is not None and (reason := observe(done, tokens)) is not None:
        stop = reason
    return Fit(done, tokens, time.perf_counter() - started, tuple(history), stop)


def _behind(model: Any) -> int:
    """By how many steps the loop's look at loss and gradient comes late: a GPU is not waited for, unless somebody wants
    to be told of every step, or several processes have to agree."""
    return int(models.device_of(model).type == "cuda" and parallel.size() == 1 and not callbacks.are_told())


def _own_part(objective: Objective, model: Any, batch: TokenBatch) -> Tensor:
    """What this process's sequences add to the mean loss of the batch."""
    n = parallel.size()
    part = batch.part(parallel.rank(), n)
    if part is not None:
        own = objective(model, part)
    else:  # fewer sequences than processes: go along, and add nothing
        own = LossSum(0 * objective(model, next(p for i in range(n) if (p := batch.part(i, n)) is not None)).total, 0)
    return own.total / max(1, int(parallel.total(own.count)))


def _parameters(model: Any, rule: Rule) -> list[Tensor]:
    """Those that the rule moves, as far as it says so."""
    groups = getattr(rule, "param_groups", None)
    return [p for group in groups for p in group["params"]] if groups else list(models.all_parameters(model))


def _broken(model: Any, params: Sequence[Tensor], what: str, step: int) -> NumericalError:
    """Which of them it was; where only their norm overflowed, the largest."""
    names = {id(p): name for name, p in models.named_parameters(model).items()}
    values = {
        names.get(id(p), f"parameter {i} beside the model's"): p.detach() if what == "weight" else p.grad
        for i, p in enumerate(params)
    }
    there = {name: value for name, value in values.items() if value is not None}
    bad = next((name for name, value in there.items() if not integrity.is_finite(value)), None)
    largest = bad or max(there, key=lambda name: float(parallel.whole(there[name].abs().max())))
    return NumericalError(f"the {what} of {largest} is not finite at step {step}; lower the learning rate")


def log_spaced(last: int) -> set[int]:
    """0, 2, 4, 8 ... and ``last``: where curves are evaluated."""
    return {0, last, *(2**k for k in range(1, 64) if 2**k < last)}
