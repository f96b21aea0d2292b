"""Models: name the sites of one, read and edit its weights.

Loading, wrapping and checking one are in ``hooklearn.bridge``, and handed on from here, so that other modules ask one.

Architectures that store several weights in one (GPT-2, GPT-NeoX, Phi-3) need no special case: the
bridge computes with the parts, so the parts are the parameters. The fused tensor is left out
everywhere here and put together again for an export (see ``hooklearn.plain``). The experts of a mixture are
made parts when a model is wrapped, in the same way (see ``hooklearn.experts``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hooklearn import parallel
from hooklearn.bridge import TransformerBridge as TransformerBridge
from hooklearn.bridge import available as available
from hooklearn.bridge import check_unhooked as check_unhooked
from hooklearn.bridge import checked as checked
from hooklearn.bridge import give_tokenizer as give_tokenizer
from hooklearn.bridge import hooked as hooked
from hooklearn.bridge import is_hooked as is_hooked
from hooklearn.bridge import is_linear, is_router
from hooklearn.bridge import load as load
from hooklearn.bridge import wrap as wrap
from hooklearn.experts import stored_transposed
from hooklearn.plain import FUSED, fused_parameters, plain_name
from hooklearn.site_names import chosen_layers, matches
from hooklearn.types import InputError, Site

# --- sites ----------------------------------------------------------------------------------------


def hook_names(site: Site) -> tuple[str, str]:
    """Names of the hook points where ``x`` (forward) and ``g`` (backward) pass."""
    return f"{site.name}.hook_in", f"{site.name}.hook_out"


def expert_of(site: Site) -> tuple[str, int] | None:
    """Of a site in an expert: the hook point where ``[token, chosen]`` numbers of experts pass, and its own number."""
    match = re.fullmatch(r"(.*\.experts)\.(\d+)\.\w+", site.name)
    return (f"{match[1]}.hook_chosen", int(match[2])) if match else None


def sites(
    model: TransformerBridge,
    which: str | Iterable[str] = "mlp",
    layers: Iterable[int] | int | str | None = None,
) -> list[Site]:
    """Sites of a model, in forward order of their hook points.

    Args:
        which: ``"mlp"``, ``"attn"``, ``"all"``, a module (``"mlp.gate"``), a full name
            (``"blocks.3.mlp.gate"``), or several of these. Of a mixture ``"mlp.experts"``, ``"mlp.experts.out"``
            (of every expert) and ``"mlp.experts.3"`` too; its router is no site.
        layers: layer numbers, or a range such as ``"8-20"`` or ``"3,8-10"``; all by default.

    Raises:
        InputError: for a name or layer that the model does not have.

    Examples:
        >>> [site.name for site in sites(load("tiny"), "mlp", layers="0")]
        ['blocks.0.mlp.gate', 'blocks.0.mlp.in', 'blocks.0.mlp.out']
    """
    every = _every_site(checked(model))
    if (times := getattr(model.cfg, "total_ut_steps", None) or 1) > 1:
        raise InputError(
            f"model {model.cfg.model_name!r} runs its blocks {times} times a pass, and TransformerLens' hook points "
            "keep the last of them alone; a site must be one use of a weight"
        )
    if not every:
        raise InputError(
            f"model {model.cfg.model_name!r} has no linear weight with hook points on both sides in TransformerLens, "
            "so that nothing can be located or edited in it"
        )
    wanted = [which] if isinstance(which, str) else list(which) if isinstance(which, Iterable) else [which]
    if not all(isinstance(name, str) for name in wanted):
        raise InputError(f"sites must be one name or several (mlp, attn, all, mlp.gate, ...), got {which!r:.60}")
    for name in wanted:
        if not any(matches(site, name) for site in every):
            raise _no_site(name, every)
    chosen = chosen_layers(layers, model.cfg.n_layers)
    return [s for s in every if s.layer in chosen and any(matches(s, name) for name in wanted)]


def _no_site(name: str, every: list[Site]) -> InputError:
    valid = ["mlp", "attn", "all", *dict.fromkeys(re.sub(r"\.\d+", "", site.module) for site in every)]
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"no site {name!r}; {hint}valid: {', '.join(valid)}")


def _every_site(model: TransformerBridge) -> list[Site]:
    found = []
    for hook in model.hook_dict:
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.hook_in", hook)
        if match is None or not is_linear(_component(model, *match.groups())):
            continue
        layer, module = match.groups()
        if module.split(".")[-1] in FUSED:  # dead: these hooks never fire
            continue
        stored = _stored(model, layer, module)
        d_out, d_in = _oriented(stored).shape
        found.append(Site(int(layer), module, d_in, d_out))
    return sorted(found, key=lambda site: site.layer)  # experts were given their hook points last


# --- weights --------------------------------------------------------------------------------------


def weight(model: TransformerBridge, site: Site) -> Float[Tensor, "d_out d_in"]:
    """The weight of a site as ``y = W x``; a view of the stored parameter."""
    return _oriented(_stored(model, site.layer, site.module))


def add_(model: TransformerBridge, site: Site, update: Float[Tensor, "d_out d_in"], scale: float = 1.0) -> None:
    """Add ``scale * update`` to the stored parameter, in place: bit for bit what adding the scaled delta gives."""
    with torch.no_grad():
        stored = weight(model, site)
        # the update keeps its own dtype: a half-precision weight is then rounded once, not twice. Not ``alpha=scale``:
        # that multiplies and adds in one rounding, and a scale that was measured would not be the delta that is saved
        stored.add_(scale * parallel.shard_like(update.to(stored.device), stored))


def parameters_of(model: TransformerBridge, sites: Iterable[Site]) -> list[nn.Parameter]:
    """The stored parameters that hold these sites, each once."""
    found = (_stored(model, site.layer, site.module).weight for site in sites)
    return list({id(parameter): parameter for parameter in found}.values())


def matrices(model: TransformerBridge) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """Every weight matrix of the blocks as ``y = W x``, by name; views of the stored parameters.

    Those of the sites, and those without hook points, which are no sites: experts that transformers multiplies all in
    one go (GPT-OSS, Llama 4; each of a stack by its number), linear attention. Embeddings, norms, biases, convolutions
    and routers are none.
    """
    places = _every_site(model)
    found = {site.name: weight(model, site) for site in places}
    modules = dict(model.blocks.named_modules(prefix="blocks"))
    routers = [m for name, m in modules.items() if "router" in name or is_router(m)]
    known = [*parameters_of(model, places), *fused_parameters(model), *(p for m in routers for p in m.parameters())]
    passed = {id(parameter) for parameter in known}
    for module_name, module in modules.items():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if id(parameter) in passed or isinstance(module, nn.Conv1d):
                continue
            if isinstance(module, nn.Linear | Conv1D) and parameter.ndim == 2:
                found[plain_name(name)] = _oriented(module)
            elif parameter.ndim == 3 and min(parameter.shape[1:]) > 1:  # RWKV keeps a vector as [1, 1, d]
                stack = parameter.mT if stored_transposed(module) else parameter
                found |= {f"{plain_name(name)}.{i}": one for i, one in enumerate(stack)}
    return found


def share_of_sites(model: TransformerBridge) -> float:
    """Of the entries of all :func:`matrices`, those that are in sites."""
    entries = {name: matrix.numel() for name, matrix in matrices(model).items()}
    return sum(entries[site.name] for site in _every_site(model)) / sum(entries.values())


def named_parameters(model: TransformerBridge) -> dict[str, nn.Parameter]:
    """The parameters that the model computes with, by plain names; tied ones once."""
    dead = {id(parameter) for parameter in fused_parameters(checked(model))}
    return {plain_name(name): parameter for name, parameter in model.named_parameters() if id(parameter) not in dead}


def _component(model: TransformerBridge, layer: str | int, module: str) -> Any:
    part: Any = model.blocks[int(layer)]
    for name in module.split("."):
        part = getattr(part, name)
    return part


def _stored(model: TransformerBridge, layer: str | int, module: str) -> Any:
    return _component(model, layer, module).original_component


def _oriented(stored: Any) -> Tensor:
    """GPT-2 stores ``[d_in, d_out]``."""
    return stored.weight.T if isinstance(stored, Conv1D) else stored.weight


# --- small things others ask for ------------------------------------------------------------------


def device_of(model: TransformerBridge) -> torch.device:
    """That computes with it."""
    return parallel.device_of(next(model.parameters()))


def dtype_of(model: TransformerBridge) -> torch.dtype:
    """In which its weights are held."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def is_sharded(model: TransformerBridge) -> bool:
    """Whether its weights are spread over processes, or wait on the host (:mod:`hooklearn.sharded`)."""
    return parallel.is_sharded(next(model.parameters()))


def check_differentiable() -> None:
    """Raises InputError inside ``torch.inference_mode()``; that ``torch.set_grad_enabled`` is off does no harm."""
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode() is on, where nothing has a gradient; leave its block first")


def tokenizer_of(model: TransformerBridge) -> Any:
    return checked(model).tokenizer


def all_parameters(model: TransformerBridge) -> list[nn.Parameter]:
    return list(named_parameters(model).values())


def embedding_parameters(model: TransformerBridge) -> list[nn.Parameter]:
    """Of tokens, and the unembedding, tied to it or not."""
    hf_model: Any = model.original_model
    tables = [hf_model.get_input_embeddings(), hf_model.get_output_embeddings()]
    return list({id(p): p for table in tables if table is not None for p in table.parameters()}.values())


@contextmanager
def trainable(model: TransformerBridge, params: Iterable[nn.Parameter]) -> Iterator[None]:
    """Only ``params`` require gradients inside; the flags are as before afterwards."""
    chosen = {id(p) for p in params}
    flags = [(p, p.requires_grad) for p in all_parameters(model)]
    for p, _ in flags:
        p.requires_grad_(id(p) in chosen)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag).grad = None
