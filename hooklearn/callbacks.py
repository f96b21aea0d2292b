"""Watching from outside: callbacks in the shape of transformers' ``TrainerCallback``, told of every step and look.

What is observed reports to whoever opened :func:`observing` around it, as loggers do: no argument has to be handed
down to where the loop runs, and without an observer nothing is imported and nothing happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooklearn import parallel
from hooklearn.types import InputError


@dataclass(frozen=True)
class _Watch:
    callbacks: tuple[Any, ...]
    args: Any
    """``transformers.TrainingArguments``, of which only the output folder and the run's name mean anything."""
    state: Any
    control: Any

    def tell(self, event: str, **more: Any) -> None:
        for callback in self.callbacks:
            if (hear := getattr(callback, event, None)) is not None:
                hear(self.args, self.state, self.control, **more)
        if self.control.should_training_stop or self.control.should_epoch_stop:
            raise InputError(
                "a callback asked to stop: callbacks observe, and cannot stop what has to be compared at equal steps"
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.state.global_step = step
        self.state.log_history.append({**values, "step": step})
        self.tell("on_log", logs=dict(values))


_WATCH: ContextVar[_Watch | None] = ContextVar("watch", default=None)
_SCOPE: ContextVar[tuple[str, ...]] = ContextVar("scope", default=())


@contextlib.contextmanager
def observing(*callbacks: Any, out: str | Path = "logs", name: str | None = None) -> Iterator[None]:
    """Edits, attacks and trainings inside the block tell these callbacks.

    ``on_step_end`` after every step of every loop; ``on_evaluate`` with ``metrics`` at every look at a curve and at
    every point of an edit's path; ``on_log`` with both; ``on_train_begin`` and ``on_train_end`` once, around it all.
    Steps begin anew with every loop (``state.global_step``); what is being done is in the metrics' names, as in
    ``eval_relearn/lr=0.0001/edited/completion``. Callbacks observe: one that asks to stop ends in an error.

    Args:
        callbacks: objects (or classes) with methods of ``transformers.TrainerCallback``; those of its integrations
            serve as they are, see :func:`reporting_to`.
        out: ``args.output_dir``; where integrations that write files do so.
        name: ``args.run_name``.

    Examples:
        >>> class Steps:
        ...     seen = 0
        ...     def on_step_end(self, args, state, control, **more):
        ...         Steps.seen += 1
        >>> with observing(Steps):
        ...     step_ended(1, loss=0.5)
        >>> Steps.seen
        1
    """
    from transformers import TrainerControl, TrainerState, TrainingArguments

    if parallel.rank() > 0:  # the first process tells, for all
        yield
        return
    made = tuple(c() if isinstance(c, type) else c for c in callbacks)
    args = TrainingArguments(output_dir=str(out), run_name=name, report_to="none", project="hooklearn")
    watch = _Watch(made, args, TrainerState(), TrainerControl())
    watch.tell("on_train_begin")
    before = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(before)
        watch.tell("on_train_end")


def reporting_to(*names: str) -> list[Any]:
    """The callbacks of transformers' integrations: ``tensorboard``, ``wandb``, ``trackio``, ``mlflow`` ...

    Raises:
        InputError: a name that transformers does not know, or one whose package is not installed.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        return [kind() for kind in get_reporting_integration_callbacks(list(names))]
    except ValueError as error:  # its list of names is in the message
        raise InputError(f"cannot log: {error}") from error
    except RuntimeError as error:
        raise InputError(f"cannot log: {str(error).splitlines()[0]} (pip install 'hooklearn[track]')") from error


@contextlib.contextmanager
def scope(*names: str) -> Iterator[None]:
    """What is being done inside the block, as a prefix of what is reported; for the library's own use."""
    before = _SCOPE.set((*_SCOPE.get(), *filter(None, names)))
    try:
        yield
    finally:
        _SCOPE.reset(before)


def are_told() -> bool:
    """Whether anybody observes what is done here."""
    return _WATCH.get() is not None


def step_ended(step: int, *, loss: float, model: Any = None) -> None:
    """``step`` steps of this loop are done; the last one's loss in nats per token."""
    if (watch := _WATCH.get()) is not None:
        watch.log(step, {_named("loss"): loss})
        watch.tell("on_step_end", model=model)


def evaluated(step: int, values: Mapping[str, float], *, model: Any = None) -> None:
    """A look after ``step`` steps."""
    if (watch := _WATCH.get()) is not None:
        metrics = {f"eval_{_named(name)}": value for name, value in values.items()}
        watch.log(step, metrics)
        watch.tell("on_evaluate", metrics=metrics, model=model)


def _named(name: str) -> str:
    return "/".join((*_SCOPE.get(), name))
