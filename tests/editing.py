"""What the tests of editing methods share: the tiny threats organism as a problem, and how updates are compared."""

from __future__ import annotations

import functools
from typing import Any

from conftest import corpus

from hooklearn import editing, models
from hooklearn.data import encode
from hooklearn.edit.method import Problem, Updates
from hooklearn.forward import sequence_logprobs
from hooklearn.measure import completion_probability
from hooklearn.types import EditResult


def problem_of(model: Any, which: Any = "mlp", layers: Any = None, **changed: Any) -> Problem:
    given: dict[str, Any] = {
        "forget": corpus("forget"), "retain": corpus("forget", "good"), "reference": corpus("text").take(40),
        "precision": "float32", "max_tokens": 512, "never": never_learned(),
    } | changed  # fmt: skip
    return Problem(model, models.sites(model, which, layers), **given)


@functools.cache
def never_learned() -> Any:
    """What the organism was made of; no test changes it."""
    return models.load("tiny")


def first_update(method: Any, problem: Problem) -> Updates:
    return next(method.path(problem))


def forget_score(model: Any, result: EditResult | None = None) -> float:
    """Mean completion probability of a dozen forget items, as the model is or with an edit."""
    if result is not None:
        with editing.edited(model, result.delta):
            return forget_score(model)
    some = encode(corpus("forget").take(12), models.tokenizer_of(model))
    return float(completion_probability(sequence_logprobs(model, some)).mean())


def alike(a: Updates, b: Updates) -> float:
    """Largest relative difference of any site."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / b[n].norm()) for n in b)
