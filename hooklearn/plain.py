"""The plain Hugging Face model under a bridge: its names, its fused weights, a copy without hooks.

The bridge splits weights that an architecture stores as one (GPT-2 ``c_attn``, GPT-NeoX
``query_key_value``, Phi-3 ``gate_up_proj``) when it wraps a model, and computes with the parts. The
fused tensor stays behind in the model, dead: nothing reads it, no gradient reaches it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from hooklearn.experts import experts_of
from hooklearn.types import InputError

FUSED = {
    "qkv": ("split_qkv_matrix", ("q", "k", "v")),
    "gate_up": ("split_gate_up_matrix", ("gate", "in")),
}
"""Fused weight -> how the bridge splits it, and into which modules."""


def plain_name(name: str) -> str:
    """Hugging Face's own name of a parameter inside a bridge."""
    return name.replace("._original_component", "")


def plain_copy(model: Any) -> PreTrainedModel:
    """A Hugging Face model without bridge around the same tensors.

    Raises:
        InputError: one of them is not where its architecture has it, as where an adapter was put in.
    """
    plain = empty_copy(model)
    plain.load_state_dict(_taken(model, plain.state_dict()), assign=True)
    plain.tie_weights()
    return plain.eval()


def _taken(model: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of these names; what is not there would be left without values, whatever a memory holds."""
    found, values = _plain_tensors(model), {}
    for name in names:
        if name not in found:
            raise InputError(
                f"model {model.cfg.model_name!r} has no tensor {name!r} any more: something was put in its place since "
                "it was loaded; take it out (PEFT: merge_and_unload()) before hl.wrap"
            )
        values[name] = found[name]
    return values


INJECTED = ("base_layer", "original_module")
"""Where PEFT keeps what it has replaced."""


def check_merged(hf_model: nn.Module, name: str) -> None:
    """Raises InputError where an adapter is in a model: its weights are then not where the architecture has them."""
    for place, _ in hf_model.named_modules():
        if place.rpartition(".")[2] in INJECTED:
            raise InputError(
                f"model {name!r} has an adapter in it ({plain_name(place)}); give what its merge_and_unload() returns, "
                "or the adapter's folder as what was edited (--edited, edit.checkpoint)"
            )


_spare: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@contextlib.contextmanager
def lent_copy(model: Any) -> Iterator[Any]:
    """A :func:`plain_copy` for the length of a block, of a model whose weights are whole and not fused.

    Without its tensors it serves the next block again: to build one takes longer than a small model's pass.
    """
    hf_model: Any = model.original_model
    plain = _spare.pop(hf_model, None)  # a block inside this one gets another
    plain = empty_copy(model) if plain is None else _with_buffers(plain, hf_model)
    places = {
        f"{name}.{key}" if name else key: (module, key, empty)
        for name, module in plain.named_modules()
        for key, empty in module._parameters.items()
        if empty is not None
    }
    for name, value in _taken(model, places).items():
        module, key, _ = places[name]
        module._parameters[key] = nn.Parameter(value, requires_grad=False)
    if hasattr(plain, "set_experts_implementation") and any(p.dtype is torch.float64 for p in plain.parameters()):
        plain.set_experts_implementation("eager")  # grouped products know shorter types only
    try:
        yield plain.eval()
    finally:
        for module, key, empty in places.values():
            module._parameters[key] = empty
    _spare[hf_model] = plain  # not after an error, which may have left something


def with_fused_attention(plain: Any) -> Any:
    """The same with torch's fused attention, where it can do all that the architecture does (not Gemma 2's soft cap).

    A bridge asks for one that hooks can see into.
    """
    if plain._supports_sdpa and getattr(plain.config, "attn_logit_softcapping", None) is None:
        plain.set_attn_implementation("sdpa")
    return plain


def read_once(plain: Any, ids: Tensor, mask: Tensor) -> tuple[str, Cache] | None:
    """(name of the argument, keys and values) of what several rows begin with; None where they cannot be handed on.

    Padding between two blocks would count in a sliding window, and a recurrent state has no tokens to share.
    """
    cache = DynamicCache(config=plain.config.get_text_config())
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    accepted = inspect.signature(plain.forward).parameters
    name = "cache" if "cache" in accepted else "past_key_values"  # transformers 5.24 renamed it
    wanted = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "logits_to_keep": 1}
    plain(
        input_ids=ids, attention_mask=mask, use_cache=True,
        **{name: cache}, **{key: value for key, value in wanted.items() if key in accepted},
    )  # fmt: skip
    return name, cache


def empty_copy(model: Any) -> Any:
    """A Hugging Face model with the buffers of this one, and weights that take no memory and have no values."""
    hf_model: Any = model.original_model
    with torch.device("meta"):
        plain = type(hf_model)(copy.deepcopy(hf_model.config))
    plain.tie_weights()
    plain.generation_config = hf_model.generation_config
    return _with_buffers(plain, hf_model)


def _with_buffers(plain: Any, hf_model: Any) -> Any:
    """The same with the buffers of another, as they are now."""
    found = {plain_name(name): buffer for name, buffer in hf_model.named_buffers(remove_duplicate=False)}
    for name, module in plain.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:  # whether a state dict has it is as it was built: rotary frequencies are in none
                module._buffers[key] = found[f"{name}.{key}" if name else key]
    return plain


def _plain_tensors(model: Any) -> Mapping[str, Tensor]:
    """Every tensor by its Hugging Face name, the fused ones put together from their parts."""
    hf_model: Any = model.original_model
    fused = _fused(model)
    found = {}
    for name, tensor in [
        *hf_model.named_parameters(remove_duplicate=False),
        *hf_model.named_buffers(remove_duplicate=False),
    ]:
        found[plain_name(name)] = fused.get(id(tensor), tensor.detach())
    return found


def _fused(model: Any) -> dict[int, Tensor]:
    """id of each dead fused parameter -> its values, from the parts the model computes with."""
    return {
        id(dead): values
        for part, fused, split, names in _fused_modules(model)
        for dead, values in _reassemble(part, fused, split, names)
    }


def _fused_modules(model: Any) -> Iterator[tuple[Any, Any, str, tuple[str, ...]]]:
    """Bridge component, fused module in it, name of its split function, names of the parts."""
    for block in model.blocks:
        for part in block.children():
            for fused, (split, names) in FUSED.items():
                if hasattr(part, split):
                    inner = getattr(part, fused, None)
                    module = (
                        inner.original_component
                        if inner is not None
                        else getattr(part.original_component, part.fused_attr)
                    )
                    yield part, module, split, names


def is_fused(model: Any) -> bool:
    """Whether a plain copy has to put weights together from their parts."""
    return any(True for _ in _fused_modules(model))


def fused_parameters(model: Any) -> list[nn.Parameter]:
    """What the model holds and does not compute with: fused weights, and the stacked ones of experts (whose parts are
    views of them, so that they are never out of date)."""
    split = [p for _, module, *_ in _fused_modules(model) for p in module.parameters()]
    return [*split, *(p for _, experts in experts_of(model) for p in experts.stacked())]


def _reassemble(part: Any, fused: Any, split: str, names: tuple[str, ...]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Split a tensor of indices the way the bridge split the weights, then follow it backwards."""
    stored = dict(fused.named_parameters(recurse=False))
    try:
        for name, parameter in stored.items():
            index = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            setattr(fused, name, nn.Parameter(index, requires_grad=False))
        indices = getattr(part, split)(part.original_component)
    finally:
        for name, parameter in stored.items():
            setattr(fused, name, parameter)
    for name, parameter in stored.items():
        values = torch.empty_like(parameter).flatten()
        for module, index in zip(names, indices, strict=True):
            live = getattr(getattr(part, module).original_component, name)
            places = getattr(index, name).long().flatten().to(values.device)
            values[places] = live.detach().flatten()
        yield parameter, values.view(parameter.shape)
