"""Weights spread over the processes: a model larger than the memory of one device.

Every process holds its part of every weight and has a block whole only while it computes with it, forward and once
more backward (PyTorch's ``fully_shard``, Zhao et al. 2023, arXiv 2304.11277). So it holds that much less of whatever
is as large as the weights: gradients, the moments of Adam, the copies that put an edit back, a delta. All of these are
DTensors; :mod:`hooklearn.parallel` says how one becomes whole. ``offload`` keeps the parts on the host, where
they wait and are updated; a block is on the device only while that computes with it, and one process will do.

Blocks keep nothing between their passes but their input and are computed again on the way back: what autocast keeps
for it would be a copy of all weights in bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from hooklearn import models, parallel, pretrained, tensor_files
from hooklearn.deltas import Delta
from hooklearn.plain import empty_copy, fused_parameters, plain_name
from hooklearn.tensor_files import TensorFiles
from hooklearn.types import InputError

# of a view that nobody writes into
warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)


def load(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    offload: bool = False,
) -> models.TransformerBridge:
    """A model in eval mode whose weights are read tensor by tensor; all processes have to ask.

    No process ever holds more of it than its parts and one block.

    Args:
        offload: parts wait in the memory of the host, and a block goes to the device for the time it computes. Here
            one process is enough.

    Raises:
        InputError: one process only; no safetensors; quantised weights; tensors that are not the model's; an
            architecture whose weights the bridge takes apart (fused projections, mixtures of experts); as
            :func:`hooklearn.bridge.load`.
    """
    _check_processes(offload)
    if name.endswith(".gguf"):
        raise InputError(
            f"model {name!r}: a GGUF file cannot be read tensor by tensor; model.shard and model.offload "
            "need safetensors"
        )
    config, tokenizer = pretrained.read_config(name, trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"model {name!r}: its weights are quantised, and model.shard and model.offload read them as they are "
            "stored; give a checkpoint in float32, bfloat16 or float16"
        )
    files = TensorFiles.of(name)
    with init_empty_weights(include_buffers=False):
        empty: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    empty.tie_weights()  # emptying took apart what was one
    own = empty.state_dict().keys()  # before there is a bridge among the names
    surplus = files.files.keys() - own - {key.partition(".")[2] for key in own}  # the latter without a head
    if hasattr(empty, "generation_config") and (files.folder / "generation_config.json").is_file():
        empty.generation_config = type(empty.generation_config).from_pretrained(files.folder)
    try:
        model = models.wrap(empty, tokenizer, name)
    except NotImplementedError as error:  # the bridge splits fused projections as it wraps, and there is nothing yet
        raise _taken_apart(name) from error
    if fused_parameters(model):
        raise _taken_apart(name)
    pretrained.check_names(name, (), pretrained.not_ignored(empty, surplus))  # what is missing is told as it is read
    return _shard(model, device, files, offload)


def shard(
    model: models.TransformerBridge, *, device: str | None = None, offload: bool = False
) -> models.TransformerBridge:
    """Spread a model that every process has whole; in place.

    Args:
        device: that computes; None: where the model is.
        offload: as in :func:`load`. The model may be on the host, where no device could hold it.
    Raises:
        InputError: one process only; an architecture whose weights the bridge takes apart.
    """
    _check_processes(offload)
    if fused_parameters(model):
        raise _taken_apart(model.cfg.model_name)
    device = str(models.device_of(model)) if device is None else models.available(device)
    return _shard(model, device, None, offload)


def is_offloaded(model: models.TransformerBridge) -> bool:
    """Whether the parts of its weights wait on the host."""
    return getattr(model.original_model, _OFFLOADED, False)


_OFFLOADED = "_hooklearn_offloaded"


def _shard(
    model: models.TransformerBridge, device: str, files: TensorFiles | None, offload: bool
) -> models.TransformerBridge:
    parallel.begin_alone()
    mesh = init_device_mesh(torch.device(device).type, (parallel.size(),))
    hf_model: Any = model.original_model
    model.cfg.device = device
    for owner, key, buffer in list(_buffers(hf_model)):
        if buffer.is_meta:  # only the bridge's own: an unembedding without bias gets one of zeros
            owner.register_buffer(key, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device))
        else:
            owner._buffers[key] = buffer.to(device)
    names: dict[int, str] = {}  # tied ones by the name that comes first, as in a checkpoint
    for name, parameter in hf_model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), plain_name(name))
    for group in _groups(model):
        if files is not None:
            _fill(group, names, files, device)
        _cut(group, mesh, offload)
    _cut([hf_model], mesh, offload)  # of its own it has nothing left; it is where a pass begins and ends
    setattr(hf_model, _OFFLOADED, offload)
    for block in model.blocks:
        block.__dict__["forward"] = _computed_again(block.forward)
    return model


def _check_processes(offload: bool) -> None:
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise InputError(
            f"model.shard, model.offload: the fully_shard of torch {torch.__version__} cannot add; install a later one"
        )
    if parallel.size() == 1 and not offload:
        raise InputError(
            "model.shard: true spreads the weights over several processes, and this is one; start them with "
            "torchrun --nproc_per_node N -m hooklearn ..., or leave it out; model.offload: true keeps the weights on "
            "the host, where one process is enough"
        )


def _taken_apart(name: str) -> InputError:
    return InputError(
        f"model {name!r}: its architecture stores several weights in one (fused projections, or experts), and such "
        "weights cannot be spread or offloaded; leave model.shard and model.offload out"
    )


# ------------------------------------------------------------------------------------- what is cut with what


def _groups(model: models.TransformerBridge) -> Iterator[list[nn.Module]]:
    """Modules that become whole together: a block; embedding and unembedding, where they are one; and whatever else
    holds a weight by itself, so that a backward pass that begins before the unembedding still finds it whole."""
    taken: set[int] = set()
    for block in model.blocks:
        taken |= {id(m) for m in block.modules()}
        yield [block]
    hf_model: Any = model.original_model
    rest: dict[int, list[nn.Module]] = {}
    for module in hf_model.modules():
        own = next(iter(module.parameters(recurse=False)), None)
        if own is not None and id(module) not in taken:
            rest.setdefault(id(own), []).append(module)
    yield from rest.values()


def _cut(group: list[nn.Module], mesh: DeviceMesh, offload: bool) -> None:
    # page-locked, so that a block comes over while the one before it computes
    policy = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    target = group if len(group) > 1 else group[0]
    fully_shard(target, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
    for module in group:
        if isinstance(module, FSDPModule):  # gradients are added up and not averaged; gloo can do nothing else
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def block(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # nothing here draws random numbers: models stay in eval mode
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return block


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            yield module, key, buffer


# ------------------------------------------------------------------------------------- deltas


def placing(model: models.TransformerBridge) -> Callable[[str, Tensor], Tensor]:
    """Site name and its update -> the update as this process holds it: its part, where the weights are sharded."""
    at = {site.name: site for site in models.sites(model, "all")} if models.is_sharded(model) else {}

    def place(name: str, update: Tensor) -> Tensor:
        if name not in at or tuple(update.shape) != (at[name].d_out, at[name].d_in):
            return update  # refused where it is applied
        stored = models.weight(model, at[name]).detach()
        return parallel.shard_like(update.to(stored.device), stored)

    return place


def held(model: models.TransformerBridge, delta: Delta) -> Delta:
    """The delta as this process holds it (:func:`placing`)."""
    place = placing(model)
    return Delta({name: place(name, update) for name, update in delta.updates.items()}, delta.base, delta.base_hash)


# ------------------------------------------------------------------------------------- weights in and out


def _fill(group: list[nn.Module], names: dict[int, str], files: TensorFiles, device: str) -> None:
    """Real weights in place of the empty ones, each read once."""
    real: dict[int, nn.Parameter] = {}
    for module in {id(m): m for of in group for m in of.modules()}.values():
        for key, empty in list(module.named_parameters(recurse=False)):
            if id(empty) not in real:
                found = files.read(names[id(empty)], empty.shape).to(device, empty.dtype)
                real[id(empty)] = nn.Parameter(found, requires_grad=empty.requires_grad)
            module._parameters[key] = real[id(empty)]


def plain_copy(model: models.TransformerBridge) -> Any:
    """As :func:`hooklearn.plain.plain_copy`: a Hugging Face model without bridge around the same parts of weights."""
    hf_model: Any = model.original_model
    plain = empty_copy(model)
    parameters = list(hf_model.named_parameters(remove_duplicate=False))
    # objects of its own: where rows do not divide evenly it pads its copy and not the model's
    own = {id(p): nn.Parameter(p.detach(), requires_grad=False) for _, p in parameters}
    twins = {plain_name(name): own[id(p)] for name, p in parameters}
    mesh = parameters[0][1].device_mesh
    at = {id(module): plain_name(name) for name, module in hf_model.named_modules()}
    for group in _groups(model):
        _cut([plain.get_submodule(at[id(module)]) for module in group], mesh, is_offloaded(model))
    _cut([plain], mesh, is_offloaded(model))
    for name, _ in list(plain.named_parameters(remove_duplicate=False)):
        owner, _, key = name.rpartition(".")
        plain.get_submodule(owner)._parameters[key] = twins[name]
    return plain.eval()


def save(model: models.TransformerBridge, folder: Path, file_bytes: int = tensor_files.FILE_BYTES) -> None:
    """Config and weights as ``save_pretrained`` writes them; every process has to call it, and the first writes."""
    plain = empty_copy(model)
    hf_model: Any = model.original_model
    wanted = plain.state_dict().keys()
    every = [*hf_model.named_parameters(), *hf_model.named_buffers()]
    tensors = {plain_name(name): tensor.detach() for name, tensor in every if plain_name(name) in wanted}
    if parallel.rank() == 0:
        plain.config.architectures = [type(plain).__name__]
        plain.config.dtype = next(iter(tensors.values())).dtype
        plain.config.save_pretrained(folder)
        plain.generation_config.save_pretrained(folder)
    tensor_files.write(folder, tensors, file_bytes)
