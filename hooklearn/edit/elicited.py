"""Adversaries: the forget gradient where the behaviour has first been brought out.

A gradient at the model as it is says how its *present* words become less likely. Somebody who fine-tunes the edited
model moves it elsewhere, so RepSelect (Sondej, Yang & Mahdi 2026) takes the gradient under a LoRA that was trained on
the forget text first. One adversary is one attacker; here there may be several, of two kinds and any learning rate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch

from hooklearn import editing, models
from hooklearn.edit.descent import advancing, blaming, nowhere, training_stream
from hooklearn.edit.method import Problem, Updates, delta_of, norm
from hooklearn.lora import Lora
from hooklearn.train import Rule, fit
from hooklearn.types import InputError

Kind = Literal["lora", "full"]
RANK = 8
"""Of a LoRA adversary, as in RepSelect."""


@dataclass(frozen=True)
class Adversary:
    kind: Kind
    """``lora``: of rank 8 on the edited sites, by SGD; ``full``: the sites' own weights, by Adam."""
    learning_rate: float

    @staticmethod
    def of(text: str) -> Adversary:
        """``lora@0.01``, ``full@1e-4``.

        Raises:
            InputError: anything else.
        """
        found = re.fullmatch(r"(lora|full)@([\d.]+(?:e-?\d+)?)", str(text).strip())
        try:
            rate = float(found[2]) if found else 0.0
        except ValueError:
            rate = 0.0
        if not found or rate <= 0:
            raise InputError(f"adversary {text!r}: valid: lora@RATE or full@RATE, e.g. lora@0.01, full@1e-4")
        return Adversary(cast(Kind, found[1]), rate)

    def gradient(self, problem: Problem) -> Updates:
        """Of the summed NLL of forget, per site, float32, at this adversary after one epoch."""
        if self.kind == "lora":
            return lora_gradient(problem, rank=RANK, learning_rate=self.learning_rate)
        there = nowhere(problem)
        with advancing(problem, there) as params, blaming(f"adversary full@{self.learning_rate:g}"):
            _taught(problem, torch.optim.Adam(params, lr=self.learning_rate))
        with editing.edited(problem.model, delta_of(there)):
            return problem.fresh_gradient("forget")


def lora_gradient(problem: Problem, *, rank: int, learning_rate: float, epochs: int = 1) -> Updates:
    """The forget gradient while a LoRA is active that was first trained (SGD) to bring the behaviour out."""
    lora = Lora(problem.sites, rank=rank, seed=problem.seed)
    with lora.active(problem.model):
        with models.trainable(problem.model, []):
            _taught(problem, torch.optim.SGD(lora.parameters(), lr=learning_rate), epochs)
        return problem.fresh_gradient("forget")


def elicited_gradient(problem: Problem, adversaries: Sequence[Adversary]) -> Updates:
    """The mean of the forget gradients at the model as it is and at every adversary, each of length 1 over all sites:
    where the text is known by heart its gradient is short, and should not count for less."""
    total = problem.gradient("forget")
    total = {name: update / _length(total, "the model as it is") for name, update in total.items()}
    for adversary in adversaries:
        found = adversary.gradient(problem)
        length = _length(found, f"adversary {adversary.kind}@{adversary.learning_rate:g}")
        for name, update in found.items():
            total[name].add_(update, alpha=1 / length)
    return {name: update.div_(1 + len(adversaries)) for name, update in total.items()}


def _length(gradient: Updates, where: str) -> float:
    length = norm(gradient)
    if length == 0:
        raise InputError(f"the forget gradient at {where} is zero; lower its learning rate")
    return length


def _taught(problem: Problem, rule: Rule, epochs: int = 1) -> None:
    stream = training_stream(problem, "forget", epochs)
    problem.tokens += fit(problem.model, stream, rule=rule, precision=problem.precision).tokens
