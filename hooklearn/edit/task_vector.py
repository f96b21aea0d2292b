"""Reference arms: two directions that say what subtracting weights can do, and not how to unlearn.

``task_vector`` goes back along what *more* training on the forget text adds. ``oracle`` goes home, straight to the
weights of a model that never learned it, which nobody has whose model has to be edited.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from hooklearn import integrity, models
from hooklearn.edit.descent import descend, training_stream
from hooklearn.edit.method import Method, Problem, Updates
from hooklearn.train import nll
from hooklearn.types import InputError


@dataclass(frozen=True, kw_only=True)
class TaskVector(Method):
    """Reference arm, no contestant: minus what fine-tuning on the forget completions adds to the weights."""

    name: ClassVar[str] = "task_vector"
    source: ClassVar[str] = "Ilharco et al. 2022, arXiv 2212.04089 (negation of a task vector)"
    learning_rate: float = 2e-5
    """Of the fine-tuning, by Adam. The budget decides how far the edit goes, so this decides which way."""
    epochs: int = 3
    """Passes of the fine-tuning over forget."""
    max_steps: int | None = None
    """End it after so many batches, if that is before; None: whole passes."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"task_vector: learning_rate must be a positive number, got {self.learning_rate}")
        if self.epochs < 1 or (self.max_steps is not None and self.max_steps < 1):
            raise InputError(
                f"task_vector: epochs and max_steps must be 1 or more, got {self.epochs} and {self.max_steps}"
            )

    @property
    def trains(self) -> bool:
        return True

    def path(self, problem: Problem) -> Iterator[Updates]:
        stream = itertools.islice(training_stream(problem, "forget", self.epochs), self.max_steps)
        [learned] = descend(
            problem, stream, nll, self.learning_rate, sys.maxsize,
            usual=type(self).learning_rate, option="task_vector: learning_rate",
        )  # fmt: skip
        yield {name: -update for name, update in learned.items()}


@dataclass(frozen=True, kw_only=True)
class Oracle(Method):
    """Reference arm, no contestant: the straight way to the weights of the model that never learned it."""

    name: ClassVar[str] = "oracle"
    source: ClassVar[str] = "hooklearn; negation of a task vector (arXiv 2212.04089) that is known, not estimated"
    needs_never: ClassVar[bool] = True

    def path(self, problem: Problem) -> Iterator[Updates]:
        never, model = problem.never, problem.model
        if never is None:
            raise InputError(
                "oracle: it goes to the weights of a model that never learned it, and none was given; give never= "
                "(of a run: controls.never.name, or an organism)"
            )
        if unlike := integrity.unlike(never, model):
            raise InputError(f"oracle: the never-learned model {never.cfg.model_name!r} is of another shape: {unlike}")
        home: Updates = {}
        for site in problem.sites:
            there, here = (models.weight(m, site).detach() for m in (never, model))
            wide = torch.promote_types(here.dtype, torch.float32)  # as of a delta between two models
            home[site.name] = there.to(here.device, wide) - here.to(wide)
        if not any(bool(update.any()) for update in home.values()):
            raise InputError(
                f"oracle: the never-learned model has the model's own weights at all of {len(home)} sites; give sites "
                "at which they differ"
            )
        yield home
