"""The one place where a model is changed: inside a ``with``, and put back bit for bit.

Edits add up when nested; whatever is trained inside :func:`restored` is undone. :func:`merge` alone changes a model for
good, for making organisms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hooklearn import integrity, models
from hooklearn.deltas import Delta, as_delta
from hooklearn.types import EditResult, InputError, NumericalError, Site
from hooklearn.validation import finite_number

_bases: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Models inside :func:`edited` -> their hash from before, so that edits of one base can nest."""


@contextmanager
def edited(model: Any, delta: Delta | EditResult, scale: float = 1.0) -> Iterator[Any]:
    """The model with ``scale * delta`` added; on leaving, the weights are back bit for bit.

    Nested edits add up; one that is bound to its base goes outside one that is not. Nothing that happens to these
    weights inside the block survives it.

    Raises:
        InputError: if the delta was made for another model, or does not fit this one's sites; a scale without a value.
        NumericalError: if it holds NaN or infinity; on leaving, if the weights could not be put back because the model
            computes with other parameters now.

    Examples:
        >>> model = models.load("tiny")
        >>> site, *_ = models.sites(model, "mlp.out")
        >>> before = integrity.weights_hash(model)
        >>> with edited(model, Delta({site.name: torch.ones(site.d_out, site.d_in)})):
        ...     integrity.weights_hash(model) == before
        False
        >>> integrity.weights_hash(model) == before
        True
    """
    model, delta = models.checked(model), as_delta(delta)
    finite_number(scale, "scale")
    outer = _bases.get(model)
    places, base = _fitting(model, delta)
    kept = _copies(models.parameters_of(model, places))
    _bases[model] = base
    try:
        for site in places:
            models.add_(model, site, delta.updates[site.name], scale)
        yield model
    finally:
        _put_back(kept)
        if outer is None:
            del _bases[model]
        else:
            _bases[model] = outer
        if {id(p) for p, _ in kept} != {id(p) for p in models.parameters_of(model, places)}:
            raise NumericalError(f"a parameter of {model.cfg.model_name!r} was replaced while it was edited")


@contextmanager
def in_eval(*given: Any) -> Iterator[None]:
    """Without dropout inside, whatever mode these models came in."""
    # the bridge wraps parts of the model around which it is built, and not all of it (GPT-2's dropout, say)
    every = {id(m): m for model in given for m in (*model.modules(), *model.original_model.modules())}
    training = [module for module in every.values() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_edited(model: Any) -> bool:
    """Whether the model is inside :func:`edited` now."""
    return model in _bases


def merge(model: Any, delta: Delta | EditResult) -> None:
    """Add a delta for good: nothing is kept to put back. For what is undone otherwise, and for making organisms.

    Raises:
        InputError: as :func:`edited`.
    """
    delta = as_delta(delta)
    places, _ = _fitting(models.checked(model), delta)
    for site in places:
        models.add_(model, site, delta.updates[site.name])


def is_base(model: Any, delta: Delta) -> bool:
    """Whether the delta was made for these very weights, as far as it says."""
    return delta.base_hash in ("", _bases.get(model, "") or integrity.weights_hash(model))


def _fitting(model: Any, delta: Delta) -> tuple[list[Site], str]:
    """The sites that the delta changes, and the hash of the unedited model where it was needed."""
    base = _bases.get(model, "") or (integrity.weights_hash(model) if delta.base_hash else "")
    if delta.base_hash and delta.base_hash != base:
        name = model.cfg.model_name
        if is_edited(model) and not _bases[model]:
            raise InputError(
                f"this delta says that it was made for weights {delta.base_hash[:12]}, and the model is inside another "
                "edit, which does not say for which: apply the one that does first"
            )
        held = str(next(iter(models.all_parameters(model))).dtype).removeprefix("torch.")
        alike = f"; of one name, they are another state of it, or were not held in {held} as these are"
        raise InputError(
            f"this delta was made for {delta.base!r} (weights {delta.base_hash[:12]}), "
            f"not for {name!r} (weights {base[:12]}){alike * (delta.base == name)}"
        )
    return _places(model, delta), base


def _places(model: Any, delta: Delta) -> list[Site]:
    by_name = {site.name: site for site in models.sites(model, "all")}
    for name, update in delta.updates.items():
        if not integrity.is_finite(update):
            raise NumericalError(f"the delta's update of {name!r} is not finite")
        if name not in by_name:
            raise InputError(f"the delta changes {name!r}, which {model.cfg.model_name!r} lacks")
        expected = (by_name[name].d_out, by_name[name].d_in)
        if tuple(update.shape) != expected:
            raise InputError(f"update of {name!r} is {tuple(update.shape)}, the weight {expected}")
    return [by_name[name] for name in delta.updates]


@dataclass(frozen=True)
class Snapshot:
    """Copies of all parameters, with what else training changes."""

    values: list[tuple[nn.Parameter, Tensor]]
    requires_grad: list[bool]
    training: bool


def snapshot(model: Any) -> Snapshot:
    parameters = list(models.named_parameters(model).values())
    return Snapshot(_copies(parameters), [p.requires_grad for p in parameters], model.training)


def restore(model: Any, before: Snapshot) -> None:
    """Parameters bit for bit, ``requires_grad`` and training mode as before; gradients gone."""
    _put_back(before.values)
    for (parameter, _), flag in zip(before.values, before.requires_grad, strict=True):
        parameter.requires_grad_(flag).grad = None
    model.train(before.training)


@contextmanager
def restored(model: Any) -> Iterator[Any]:
    """A block in which anything may be trained: :func:`restore` follows, also on an exception."""
    before = snapshot(model)
    try:
        yield model
    finally:
        restore(model, before)


def _copies(parameters: Iterable[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    """Copies, because subtracting what was added would leave rounding errors."""
    return [(parameter, parameter.detach().clone()) for parameter in parameters]


@torch.no_grad()
def _put_back(kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, values in kept:
        parameter.copy_(values)
