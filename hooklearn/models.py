"""Models: load or wrap one, name its sites, read and edit its weights, write it out again.

The only module that imports TransformerLens. Everything else sees a model (``TransformerBridge``),
sites (``Site``) and deltas (``Delta``).

Architectures that store several weights in one (GPT-2, GPT-NeoX, Phi-3) need no special case: the
bridge computes with the parts, so the parts are the parameters. The fused tensor is left out
everywhere here and put together again for an export (see ``hooklearn.plain``). The experts of a mixture are
made parts here, in the same way (see ``hooklearn.experts``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import MoERouterBridge
from transformer_lens.model_bridge.generalized_components.linear import LinearBridge
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.pytorch_utils import Conv1D

from hooklearn import parallel, traits
from hooklearn.builtin import BUILTIN as BUILTIN
from hooklearn.builtin import fetch as fetch
from hooklearn.builtin import is_cached as is_cached
from hooklearn.experts import Experts, splittable, stored_transposed
from hooklearn.plain import FUSED, check_merged, fused_parameters, plain_name
from hooklearn.pretrained import read
from hooklearn.site_names import chosen_layers, matches
from hooklearn.types import InputError, Site

# --- loading --------------------------------------------------------------------------------------


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    shard: bool = False,
    offload: bool = False,
) -> TransformerBridge:
    """A model in eval mode: a built-in name, a local folder, a ``.gguf`` file or a hub id.

    No network call for a path, for a built-in model fetched before, or under ``HF_HUB_OFFLINE``.

    Args:
        shard: over the processes that a launcher started, as :func:`hooklearn.sharded.load` does.
        offload: weights wait on the host, and a block is on ``device`` only while it computes (the same function).
    Raises:
        InputError: if there is no such model, or TransformerLens does not know its architecture.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"load reads a model by name, not {_given(name)}; hl.wrap takes one in memory")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating one, such as torch.float32 or torch.bfloat16, got {dtype!r:.60}")
    name, device = str(name), available(device)
    if shard or offload:
        from hooklearn import sharded  # above this module: it wraps what it loads

        return sharded.load(name, device=device, dtype=dtype, trust_remote_code=trust_remote_code, offload=offload)
    hf_model, tokenizer = read(name, dtype, trust_remote_code)
    return wrap(hf_model.to(device), tokenizer, name)  # type: ignore[arg-type]


def available(device: str) -> str:
    """The device that is meant. Raises InputError where it is not here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with" by an assertion
        raise InputError(f"device {device!r} is not available here; valid: auto, cpu, cuda") from error
    return device


def wrap(
    hf_model: PreTrainedModel | TransformerBridge, tokenizer: Tokenizer, name: str = "wrapped"
) -> TransformerBridge:
    """A bridge in eval mode around a model in memory; offline, whatever ``name`` is.

    The parameters stay those of ``hf_model``, except for fused ones (see ``hooklearn.plain``). Its modules do not: the
    bridge's stand in their place for good, so it can no longer be saved, or given to PEFT, by itself.
    ``hl.export(model, hl.Delta({}), folder)`` writes it as it was. A bridge that is given is taken over, by its own
    name and with this tokenizer.

    Raises:
        InputError: no model, or no tokenizer as it was loaded; a model with an adapter in it; a bridge with hooks, or
            with processed weights; if TransformerLens does not know the architecture, or hooklearn not what it does to
            its logits.
    """
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(f"wrap takes the model's tokenizer, not {_given(tokenizer)}; {_LOADED}")
    if isinstance(hf_model, TransformerBridge):
        check_merged(hf_model, hf_model.cfg.model_name)
        model = _taken_over(hf_model, tokenizer)
    elif isinstance(hf_model, PreTrainedModel):
        check_merged(hf_model, str(name))
        model = _booted(hf_model, tokenizer, str(name))
    elif hasattr(hf_model, "merge_and_unload"):
        raise InputError(f"wrap takes no {type(hf_model).__name__}; give what its merge_and_unload() returns")
    else:
        raise InputError(f"wrap takes a model of transformers or a TransformerBridge, not {_given(hf_model)}")
    setattr(model.tokenizer, _AS_GIVEN, True)
    _split_experts(model)
    for dead in fused_parameters(model):
        dead.requires_grad_(False)
    traits.examine(model.eval())
    if (limit := traits.reads_at_most(model)) is not None:  # what encodes and what generates go by it
        model.tokenizer.model_max_length = min(model.tokenizer.model_max_length, limit)
    return model


_AS_GIVEN = "_hooklearn_as_given"
"""Marks a tokenizer that was left as it was given. Any other in a bridge is one that TransformerLens has loaded again,
to put BOS before every text; a model that was never trained with one then gives other numbers."""
_LOADED = "give it as transformers.AutoTokenizer.from_pretrained(...) loads it"


def _booted(hf_model: PreTrainedModel, tokenizer: Tokenizer, name: str) -> TransformerBridge:
    # a model that was never saved does not say so itself, and its kind alone is not enough for the bridge
    hf_model.config.architectures = hf_model.config.architectures or [type(hf_model).__name__]
    with _tokenizer_as_given(tokenizer):
        try:
            return TransformerBridge.boot_transformers(
                name, hf_model=hf_model, tokenizer=tokenizer, device=str(hf_model.device)
            )
        except ValueError as error:
            if "supported architecture" not in str(error):
                raise
            kind = hf_model.config.model_type
            raise InputError(f"model {name!r}: TransformerLens has no bridge for {kind!r}") from error


def _taken_over(model: TransformerBridge, tokenizer: Tokenizer) -> TransformerBridge:
    """A bridge that somebody else has made, with the tokenizer as it is given."""
    _check_unprocessed(model)
    check_unhooked(model)  # hooks would be in what is found out about it
    if tokenizer is model.tokenizer and not hasattr(tokenizer, _AS_GIVEN):
        raise InputError(f"wrap: this tokenizer is the one that TransformerLens has changed; {_LOADED}")
    give_tokenizer(model, tokenizer)
    return model


def give_tokenizer(model: TransformerBridge, tokenizer: Tokenizer) -> None:
    """In place of the one that a model has; it has to know the same tokens."""
    d_vocab = model.cfg.d_vocab
    with _tokenizer_as_given(tokenizer):
        model.tokenizer = tokenizer
    model.cfg.d_vocab = d_vocab  # the bridge counted the tokenizer's, and a model may have room for more


def _split_experts(model: TransformerBridge) -> None:
    """Every expert of a mixture gets weights and hook points of its own: ``blocks.0.mlp.experts.3.gate``."""
    for layer, block in enumerate(model.blocks):
        moe: Any = getattr(block, "mlp", None)
        inner: Any = getattr(moe, "original_component", None)
        stored = getattr(inner, "experts", None)
        stored = getattr(stored, "original_component", stored)  # Qwen2-MoE's are in a bridge of their own
        if stored is None or not splittable(stored):
            continue
        inner.experts = experts = Experts(stored, _hooked, HookPoint)
        nn.Module.__setattr__(moe, "experts", experts)  # the bridge's own would hand it on to what it wraps
        for name, hook in experts.named_modules(prefix=f"blocks.{layer}.mlp.experts"):
            if isinstance(hook, HookPoint):
                hook.name = name
                model._hook_registry[name] = hook


def _hooked(layer: nn.Linear, name: str) -> LinearBridge:
    bridge = LinearBridge(name)
    bridge.set_original_component(layer)
    return bridge


def checked(model: Any, role: str = "model") -> TransformerBridge:
    """The value, where it is a model as :func:`load` and :func:`wrap` leave it.

    Raises:
        InputError: it is none, its weights were processed, or its tokenizer is not the one that was given.
    """
    if not isinstance(model, TransformerBridge):
        raise InputError(f"{role} must be what hl.load or hl.wrap returns, not {_given(model)}; {_way(model)}")
    _check_unprocessed(model)
    if not hasattr(model.tokenizer, _AS_GIVEN):
        raise InputError(
            f"{role} {model.cfg.model_name!r}: TransformerLens has loaded its tokenizer again, to put BOS before every "
            "text whether the model's own does or not; hl.wrap(bridge, tokenizer) gives it back its own"
        )
    return model


def _check_unprocessed(model: TransformerBridge) -> None:
    if model.compatibility_mode or model._weights_processed:
        raise InputError(
            f"model {model.cfg.model_name!r} is in compatibility mode (enable_compatibility_mode, process_weights), "
            "which rewrites weights and renames hook points; load it anew without"
        )


def _given(value: Any) -> str:
    """A value in a line: most others have a representation of many."""
    return repr(value) if value is None or isinstance(value, str | Path) else f"a {type(value).__name__}"


def _way(value: Any) -> str:
    if isinstance(value, str | Path):
        return f"hl.load({str(value)!r}) loads it"
    return "hl.wrap(model, tokenizer) takes a model of transformers or a TransformerBridge"


@contextmanager
def _tokenizer_as_given(tokenizer: Tokenizer) -> Iterator[None]:
    """The bridge reloads a tokenizer (from the network) that does not say it prepends BOS."""
    before = dict(tokenizer.init_kwargs)
    tokenizer.init_kwargs.setdefault("name_or_path", "")
    tokenizer.init_kwargs["add_bos_token"] = True
    try:
        yield
    finally:
        tokenizer.init_kwargs = before


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
        if match is None or not _is_linear(_component(model, *match.groups())):
            continue
        layer, module = match.groups()
        if module.split(".")[-1] in FUSED:  # dead: these hooks never fire
            continue
        stored = _stored(model, layer, module)
        d_out, d_in = _oriented(stored).shape
        found.append(Site(int(layer), module, d_in, d_out))
    return sorted(found, key=lambda site: site.layer)  # experts were given their hook points last


def _is_linear(component: Any) -> bool:
    """A router chooses by a copy of the logits that its hook point never sees, so no gradient passes there."""
    return isinstance(component, LinearBridge) and not isinstance(component, MoERouterBridge)


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
    routers = [m for name, m in modules.items() if "router" in name or isinstance(m, MoERouterBridge)]
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


OWN_HOOKS = ("transformer_lens.", "transformers.", "torch.distributed.")


def is_hooked(model: TransformerBridge) -> bool:
    """Whether anything would see, or change, a pass through the bridge."""
    return any(True for _ in hooked(model))


def hooked(model: TransformerBridge) -> Iterator[str]:
    """Names of what has hooks. The bridge's own do not count, nor those that gather spread weights, nor
    those of transformers, which stay after ``run_with_cache`` and do nothing unless outputs are asked for."""
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        hooks += [*module._backward_hooks.values(), *module._backward_pre_hooks.values()]
        if isinstance(module, HookPoint):
            handles = [*module.fwd_hooks, *module.bwd_hooks]
            if len(hooks) > sum(getattr(h.user_hook, "__module__", "").startswith(OWN_HOOKS) for h in handles):
                yield module.name or plain_name(name)
        elif any(not getattr(hook, "__module__", "").startswith(OWN_HOOKS) for hook in hooks):
            yield plain_name(name)


def check_differentiable() -> None:
    """Raises InputError inside ``torch.inference_mode()``; that ``torch.set_grad_enabled`` is off does no harm."""
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode() is on, where nothing has a gradient; leave its block first")


def check_unhooked(model: TransformerBridge, role: str = "model") -> None:
    """Raises InputError where somebody has hooked into the model: the hooks would be in all that is made of it."""
    if names := list(hooked(model)):
        some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        raise InputError(
            f"{role} {model.cfg.model_name!r} has hooks at {some}, which change what it computes; take them off first "
            "(model.reset_hooks())"
        )


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
