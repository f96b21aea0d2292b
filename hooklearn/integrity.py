"""Whether weights are numbers, and the same as before: their hash, checks, and what the record says of a model."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hooklearn import parallel
from hooklearn.models import TransformerBridge, embedding_parameters, named_parameters, tokenizer_of
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


def tokenizer_hash(model: TransformerBridge) -> str:
    """sha256 over the tokens with their numbers, and the chat template."""
    tokenizer = tokenizer_of(model)
    told = json.dumps([tokenizer.get_vocab(), tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def describe(model: TransformerBridge) -> dict[str, Any]:
    """Name, weights hash and sizes, as the run record stores them."""
    return {
        "name": model.cfg.model_name,
        "hash": weights_hash(model),
        "parameters": sum(p.numel() for p in named_parameters(model).values()),
        "n_layers": model.cfg.n_layers,
        "d_model": model.cfg.d_model,
    }


def unlike(other: TransformerBridge, model: TransformerBridge) -> str:
    """The first tensor between the embeddings that two models have in different shapes, in words; empty: none."""
    theirs, own = ({n: list(p.shape) for n, p in _between(m)} for m in (other, model))
    for name in [*own, *theirs]:
        if theirs.get(name) != own.get(name):
            one, of_model = (f"{shape}" if shape else "not there" for shape in (theirs.get(name), own.get(name)))
            return f"{name} is {one}, and {of_model} in the model"
    return ""


def _between(model: TransformerBridge) -> Iterator[tuple[str, torch.nn.Parameter]]:
    embeddings = {id(p) for p in embedding_parameters(model)}  # these may be tied in one of two models
    yield from ((name, p) for name, p in named_parameters(model).items() if id(p) not in embeddings)


def is_finite(tensor: Tensor) -> bool:
    # one reading of the tensor, not five: what is not finite carries over into the sum
    total = parallel.whole(tensor.detach().sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))
    return math.isfinite(float(total)) or bool(parallel.whole(tensor.isfinite().all()))  # finite, and summed too large


def short_weights(model: TransformerBridge) -> str:
    """Types of weights below float32, in words; empty where there are none."""
    floats = {p.dtype for p in named_parameters(model).values() if p.is_floating_point()}
    return ", ".join(sorted(str(t).removeprefix("torch.") for t in floats - {torch.float32, torch.float64}))


def warn_of_short_weights(model: TransformerBridge, so: str) -> None:
    """To whoever called the caller, where weights are held below float32; ``so``: what comes of it."""
    if short := short_weights(model):
        warnings.warn(
            f"the weights are held in {short}, which rounds most small steps away: {so}; load the model in float32 "
            "(its products can be made in bfloat16 all the same)",
            stacklevel=3,
        )


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
