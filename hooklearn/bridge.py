"""TransformerLens' bridge: load a model or wrap one, check one that is given, tell its linear parts and hooks.

The only module that imports TransformerLens, so that a change there is a change here. Everything else sees a model
(``TransformerBridge``), sites (``Site``) and deltas (``Delta``), by way of ``hooklearn.models``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import MoERouterBridge
from transformer_lens.model_bridge.generalized_components.linear import LinearBridge
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hooklearn import traits
from hooklearn.experts import Experts, splittable
from hooklearn.plain import check_merged, fused_parameters, plain_name
from hooklearn.pretrained import read
from hooklearn.types import InputError

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


# --- parts and hooks ------------------------------------------------------------------------------


def is_linear(component: Any) -> bool:
    """A router chooses by a copy of the logits that its hook point never sees, so no gradient passes there."""
    return isinstance(component, LinearBridge) and not is_router(component)


def is_router(component: Any) -> bool:
    """Of a mixture of experts."""
    return isinstance(component, MoERouterBridge)


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


def check_unhooked(model: TransformerBridge, role: str = "model") -> None:
    """Raises InputError where somebody has hooked into the model: the hooks would be in all that is made of it."""
    if names := list(hooked(model)):
        some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        raise InputError(
            f"{role} {model.cfg.model_name!r} has hooks at {some}, which change what it computes; take them off first "
            "(model.reset_hooks())"
        )
