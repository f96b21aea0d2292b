"""Whether weights are numbers, and the same as before: their hash, checks, and what the record says of a model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hooklearn import parallel
from hooklearn.models import TransformerBridge, named_parameters
from hooklearn.types import InputError, NumericalError


def weights_hash(model: TransformerBridge) -> str:
    """:func:`tensors_hash` of the parameters."""
    return tensors_hash(named_parameters(model))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = parallel.whole(tensor.detach()).cpu().contiguous()
        digest.update(data.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(model: TransformerBridge) -> dict[str, Any]:
    """Name, weights hash and sizes, as the run record stores them."""
    return {
        "name": model.cfg.model_name,
        "hash": weights_hash(model),
        "parameters": sum(p.numel() for p in named_parameters(model).values()),
        "n_layers": model.cfg.n_layers,
        "d_model": model.cfg.d_model,
    }


def is_finite(tensor: Tensor) -> bool:
    # one reading of the tensor, not five: what is not finite carries over into the sum
    total = parallel.whole(tensor.detach().sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))
    return math.isfinite(float(total)) or bool(parallel.whole(tensor.isfinite().all()))  # finite, and summed too large


def short_weights(model: TransformerBridge) -> str:
    """Types of weights below float32, in words; empty where there are none."""
    floats = {p.dtype for p in named_parameters(model).values() if p.is_floating_point()}
    return ", ".join(sorted(str(t).removeprefix("torch.") for t in floats - {torch.float32, torch.float64}))


def check_finite(model: TransformerBridge) -> None:
    """Raises InputError where a weight is NaN or infinite: whatever is measured on such a model means nothing."""
    for name, parameter in named_parameters(model).items():
        if not is_finite(parameter):
            raise InputError(f"model {model.cfg.model_name!r}: its weight {name} holds NaN or infinity")


def check_unchanged(model: TransformerBridge, digest: str, when: str) -> None:
    """Raises NumericalError where the weights are not bit for bit those with this hash: an edit was not put back."""
    found = weights_hash(model)
    if found != digest:
        raise NumericalError(
            f"the weights of {model.cfg.model_name!r} drifted: {when} their hash is {found[:12]}, it was {digest[:12]}"
        )
