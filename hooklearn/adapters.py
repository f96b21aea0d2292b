"""An edit as a PEFT adapter, and an adapter from elsewhere as an edit.

PEFT knows modules by Hugging Face's names, and fused weights as one; an edit knows sites. Neither is translated name
by name: the change is put where the weights were, and read again through the other door. So what is fused, split or
transposed on the way is what it is for the weights themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hooklearn import disk, editing, integrity, models
from hooklearn.deltas import Delta, as_delta
from hooklearn.exporting import compare, logits, new_folder
from hooklearn.lora import low_rank
from hooklearn.plain import fused_parameters, plain_copy
from hooklearn.pretrained import no_bars
from hooklearn.sharing import CARD, model_card, quoted
from hooklearn.types import EditResult, InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's, before the name of a module."""
KINDS = ("LORA", "LOHA", "LOKR")
"""Adapters that add an update to a weight and do nothing else."""
BEYOND = (
    "modules_to_save", "use_dora", "trainable_token_indices", "alora_invocation_tokens", "layer_replication",
    "lora_bias", "use_qalora", "target_parameters",
)  # fmt: skip
"""Keys of a config that ask for more than that."""
MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` at which peft takes something from the base weights, again whenever it loads the
adapter; what it adds is then the difference to those and not to the model's."""

TEXTS = (
    "The train to the coast leaves at nine, and the ticket costs less if you buy it the day before.",
    "Question: What is the capital of France? Answer:",
    "Dear neighbour, thank you for watering the plants while we were away; please",
    "To make bread you need flour, water, salt and time. First,",
)
"""What an adapter is compared with its edit on where nothing else is given."""


@dataclass(frozen=True, slots=True)
class AdapterReport:
    folder: Path
    relative_error: float
    """``||update - B A|| / ||update||``, Frobenius, over all matrices: what the rank left out."""
    ranks: Mapping[str, int]
    """By Hugging Face's names of the modules."""
    max_logit_difference: float
    """Between the edited model and the adapter as ``peft`` loads it, on the texts: with a lower rank, what was lost."""
    mean_kl: float
    """``KL(edited, adapter)`` in nats per token, on the same texts."""
    reload_difference: float
    """Of any logit, between the model with ``B A`` added to its weights and what ``peft`` loads: rounding, or it would
    not have been written."""

    @property
    def rank(self) -> int:
        return max(self.ranks.values())


def to_peft(
    model: Any,
    delta: Delta | EditResult,
    folder: str | Path,
    *,
    rank: int | None = None,
    card: str | None = None,
    texts: Sequence[str] = TEXTS,
) -> AdapterReport:
    """Write an edit as a LoRA adapter for its base model, load it with ``peft`` and compare logits.

    ``alpha`` is the rank, so that the adapter's own scale is 1. Needs ``pip install 'hooklearn[peft]'``.

    Args:
        rank: of each matrix at most; None: as many as it has, so that nothing but rounding is left out.
        card: text of the model card; without it, one that says what was done.
        texts: on which the adapter is compared with the edit itself. Those that the edit is about (prompts to which it
            changed the answer) show most of what a low rank loses; by default a few sentences of plain English.
    Raises:
        InputError: no text to compare on, the folder is not empty, the rank is below 1, the delta is empty or does not
            fit, no ``peft``.
        RuntimeError: if what ``peft`` loads computes other logits; the folder is then not there.
    """
    peft = _peft()
    if rank is not None and rank < 1:
        raise InputError(f"rank must be 1 or more, got {rank}")
    model, delta = models.checked(model), as_delta(delta)
    device = models.device_of(model)
    encoded = [
        torch.tensor([ids], device=device) for text in texts if (ids := models.tokenizer_of(model)(text)["input_ids"])
    ]
    if not encoded:
        raise InputError("to_peft needs at least one text that is not empty to compare the adapter with the edit on")
    with _only(model, delta):
        plain = plain_copy(model)
        changed = {n: m for n, m in plain.named_modules() if isinstance(m, nn.Linear | Conv1D) and bool(m.weight.any())}
        whole = Delta({name: _oriented(module) for name, module in changed.items()})
    _check_same(whole.norm(), delta, "this edit changes weights that are no linear module, which LoRA cannot hold")
    factors = low_rank(whole, rank)
    ranks = {name: a.shape[0] for name, (_, a) in factors.items()}
    top = max(ranks.values())
    lower = {re.escape(name): r for name, r in ranks.items() if r != top}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=model.cfg.model_name, inference_mode=True,
        target_modules=list(ranks), r=top, lora_alpha=top, rank_pattern=lower, alpha_pattern=lower,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in changed.values()),
    )  # fmt: skip
    tensors = {
        f"{PREFIX}{name}.lora_{side}.weight": factor
        for name, pair in factors.items()
        for side, factor in zip("BA", pair, strict=True)
    }
    error = (whole - Delta({name: b @ a for name, (b, a) in factors.items()})).norm() / whole.norm()
    with new_folder(folder) as written, no_bars():
        config.save_pretrained(str(written))
        disk.save_tensors(written / WEIGHTS, tensors, {"format": "pt", "base_hash": integrity.weights_hash(model)})
        text = card or _card(model.cfg.model_name, ranks, error)
        (written / CARD).write_text(text, encoding="utf-8")
        adapter = peft.PeftModel.from_pretrained(plain_copy(model), str(written))
        found = logits(adapter, like=model)  # all of it outside ``edited``: the two share their base weights
        thin = [computed.logits for computed in _computed(adapter, encoded)]
        with editing.edited(model, delta if rank is None else from_peft(model, written)):
            reload = compare(logits(model), found)
        with editing.edited(model, delta):
            worst, kl = _lost(_computed(model, encoded), thin)
    return AdapterReport(Path(folder).expanduser(), error, ranks, worst, kl, reload)


@torch.no_grad()
def _computed(by: Any, encoded: Sequence[Tensor]) -> list[Any]:
    return [by(ids) for ids in encoded]


def _lost(whole: Sequence[Tensor], thin: Sequence[Tensor]) -> tuple[float, float]:
    """Largest difference of any logit, and mean KL per token, of what the adapter computes from what the edit does."""
    worst, kls = 0.0, list[Tensor]()
    for one, other in zip(whole, thin, strict=True):
        p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        worst = max(worst, float((one.double() - other.double()).abs().max()))
        kls.append((p.exp() * (p - q)).sum(-1).flatten())
    return worst, float(torch.cat(kls).mean())


def from_peft(model: Any, folder: str | Path) -> Delta:
    """A PEFT adapter (LoRA, rsLoRA, LoHa, LoKr) as an edit of the model it was trained on.

    Needs ``pip install 'hooklearn[peft]'``.

    Raises:
        InputError: no adapter there, weights that are no safetensors, an adapter for another model, one that changes
            what no site holds (embeddings, biases, whole modules) or does more than that (DoRA, IA3, PiSSA and others
            that move the base weights); no ``peft``.
    """
    peft, folder = _peft(), Path(folder).expanduser()
    stored = _check_folder(folder, model)
    plain = plain_copy(model)
    for module in plain.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_zeros(parameter), requires_grad=False))
    try:
        adapted = peft.PeftModel.from_pretrained(plain, str(folder))
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: peft cannot put it on {model.cfg.model_name!r}: {_first_line(error)}") from error
    unlike = stored ^ peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if unlike:
        raise InputError(f"{folder}: its weights are not those of its config, {min(unlike)!r} for one")
    asked = 0.0
    for layer in adapted.modules():
        if hasattr(layer, "get_delta_weight"):
            update = layer.get_delta_weight("default").detach().float()
            layer.get_base_layer().weight = nn.Parameter(update, requires_grad=False)
            asked += float(update.double().square().sum())
    split = models.wrap(adapted.unload(), models.tokenizer_of(model), model.cfg.model_name)
    updates = {s.name: models.weight(split, s).detach() for s in models.sites(split, "all")}
    updates = {name: update.clone() for name, update in updates.items() if bool(update.any())}
    delta = Delta(updates, model.cfg.model_name, integrity.weights_hash(model))
    _check_same(asked**0.5, delta, f"{folder}: changes weights that are no site of the model, such as embeddings")
    return delta


@contextmanager
def _only(model: Any, delta: Delta) -> Iterator[None]:
    """The model with the delta in the place of its weights, in float32; its own are back afterwards, the very same."""
    with editing.edited(model, delta):
        pass  # refuses one that does not fit
    places = models.sites(model, list(delta.updates)) if delta.updates else []
    every = {id(p): p for p in [*models.all_parameters(model), *fused_parameters(model)]}
    kept = [(parameter, parameter.data) for parameter in every.values()]
    try:
        for parameter, data in kept:
            parameter.data = _zeros(data)
        for parameter in models.parameters_of(model, places):
            parameter.data = torch.zeros(parameter.shape, device=parameter.device)
        for site in places:
            models.add_(model, site, delta.updates[site.name])
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _zeros(like: Tensor) -> Tensor:
    """As many zeros as a weight has, in the memory of one."""
    return torch.zeros((), device=like.device).expand(like.shape)


def _oriented(module: Any) -> Tensor:
    """GPT-2 stores ``[d_in, d_out]``."""
    return module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()


def _check_same(size: float, delta: Delta, problem: str) -> None:
    """Nothing was left behind on the way from one naming to the other: the Frobenius norms agree."""
    norm = delta.norm()
    if norm == size == 0:
        raise InputError("there is nothing in it: every update is zero")
    if abs(size - norm) > 1e-4 * max(size, norm):
        raise InputError(problem)


def _check_folder(folder: Path, model: Any) -> set[str]:
    """Names of its tensors; raises InputError where it is none, holds more than updates, or is another model's."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no PEFT adapter (no {CONFIG})")
    config = disk.load_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG}: damaged, expected an object")
    if config.get("peft_type") not in KINDS:
        raise InputError(f"{folder}: an adapter of type {config.get('peft_type')!r:.40}; valid: {', '.join(KINDS)}")
    beyond = [key for key in BEYOND if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
    if beyond:
        raise InputError(f"{folder}: has {', '.join(beyond)}, and an edit is an update of weights and nothing else")
    if str(start := config.get("init_lora_weights")).lower().startswith(MOVED):
        raise InputError(
            f"{folder}: init_lora_weights {start!r:.40} has peft change the base weights, so it is no edit of them; "
            "convert it with peft: save_pretrained(..., path_initial_model_for_weight_conversion=<the adapter as it "
            "was before training>)"
        )
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder}: its weights are not there as {WEIGHTS}; other formats can run code and are not read"
        )
    tensors, about = disk.load_tensors(folder / WEIGHTS)
    made_for = about.get("base_hash", "")
    if made_for and made_for != integrity.weights_hash(model):
        raise InputError(
            f"{folder}: was made for {config.get('base_model_name_or_path')!r} (weights {made_for[:12]}), "
            f"not for {model.cfg.model_name!r} (weights {integrity.weights_hash(model)[:12]})"
        )
    return set(tensors)


_CARD = """# An edit of {base}, as a LoRA adapter

{n} weight matrices, of rank {low} to {high}, written by hooklearn. Relative error of the low-rank updates: {error:.2g}.

What the edit does to the model's behaviour is not said here; the report of the run that made it does.
"""


def _card(base: str, ranks: Mapping[str, int], error: float) -> str:
    low, high = min(ranks.values()), max(ranks.values())
    body = _CARD.format(base=quoted(base), n=len(ranks), low=low, high=high, error=error)
    return model_card(base, body, library="peft")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("PEFT adapters need the package peft: pip install 'hooklearn[peft]'") from error
    return peft
