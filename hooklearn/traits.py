"""What is found out about a model by trying it once: what it does to its logits, and whether its rows may be shared.

Architectures differ in ways that their configs do not tell alike. Wrong guesses would be wrong numbers without an
error, so each guess is tried on a few tokens: when a model is wrapped, before anything is measured on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooklearn.packing import ROW
from hooklearn.types import InputError

LONGEST_ROW = 1024
"""No row of several sequences is longer (:mod:`hooklearn.data`); attention with a window as long sees all of it."""
LEAK, LEAK_HALF, LEAK_BEHIND = 1e-4, 2e-2, 0.1
"""Share of what an unmasked neighbour does to a sequence's logits that rounding may do: float32, shorter types, and
shorter types behind a shared beginning, where the sums have another order. Measured in float32: below 3e-6 where rows
can be shared, above 5e-4 where they cannot, .43 for MPT behind a beginning; in bfloat16 there up to .03 (SmolLM2)."""

NARROWEST = 64
"""Tokens of a shared row at least."""

_POSITIONS = {"wpe", "pos_embed", "embed_positions", "position_embeddings", "position_embedding"}

_PACKS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def packs(model: Any) -> bool:
    """Whether sequences that stand in one row and do not see one another score as each does alone.

    Not where a layer carries a state along the row (convolutions, recurrent and linear attention), where attention has
    a window that is shorter than a row, or where positions, or distances, are counted along the row whatever is asked
    for.
    """
    if model not in _PACKS:
        from hooklearn import models  # it wraps, and examines what it wraps

        if models.is_hooked(model):
            return False  # hooks would see the trial; one sequence a row is right everywhere
        _PACKS[model] = _tried(model)
    return _PACKS[model]


def row_of(model: Any) -> int:
    """Tokens of a row that several sequences share; 0 where they cannot (:func:`packs`).

    A narrow model has shorter ones, as the products beside its attention are few: of tiny, 64 wide, attention over
    2048 tokens takes 3.5 ms in rows of 256 and 1.1 in rows of 64, and it was a seventh of an audit (one-off; LOG.md).
    """
    return min(ROW, max(NARROWEST, model.cfg.d_model // 2)) if packs(model) else 0


def examine(model: Any) -> None:
    """Find out about a model that has just been wrapped.

    Raises:
        InputError: a weight is NaN or infinite; its logits are not what :func:`transformed` makes of its unembedding.
    """
    if any(p.is_meta for p in model.parameters()):  # spread weights are read later; what can be spread is known to pack
        _PACKS[model] = not _window(model)
        return
    from hooklearn import integrity  # above this module, as models is

    integrity.check_finite(model)  # on NaN no trial tells anything
    _PACKS[model] = _tried(model)
    _check_unembedding(model)


def reads_at_most(model: Any) -> int | None:
    """Tokens, of a model that has learned every position for itself and knows no others; None for all others."""
    for name, module in model.original_model.named_modules():
        if isinstance(module, torch.nn.Embedding) and not _POSITIONS.isdisjoint(name.split(".")):
            return min(module.num_embeddings, getattr(_config(model), "max_position_embeddings", module.num_embeddings))
    return None


def transformed(model: Any, logits: Float[Tensor, "kept vocab"]) -> Float[Tensor, "kept vocab"]:
    """What Gemma, Cohere, Granite, Falcon-H1 and their like do to the logits of their unembedding."""
    config = _config(model)
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if (cap := getattr(config, name, None)) is not None:
            logits = cap * torch.tanh(logits / cap)
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= _number(config, name)
    scale /= _number(config, "logits_scaling")
    return logits if scale == 1 else logits * scale  # twice over the largest tensor of a pass, for nothing


def _number(config: Any, name: str) -> float:
    value = getattr(config, name, None)
    return 1.0 if value is None else float(value)


def _config(model: Any) -> Any:
    return model.original_model.config.get_text_config()


def _window(model: Any) -> bool:
    """Whether attention somewhere does not see all of the longest row."""
    config = _config(model)
    if getattr(config, "use_sliding_window", True) is False:
        return False
    widths = (getattr(config, name, None) for name in ("sliding_window", "attention_window_size", "window_size"))
    return any(isinstance(width, int) and 0 < width < LONGEST_ROW for width in widths)


def _tried(model: Any) -> bool:
    if _window(model):
        return False
    return all(_apart(model, shared) for shared in (0, 5))


def _apart(model: Any, shared: int) -> bool:
    """Whether the second of two sequences, which begin with so many tokens in common that stand there once, scores as
    it does alone: attention that counts distance along the row is told from the first by these tokens only."""
    start, first, second = (_some_tokens(model, n, seed=i) for i, n in enumerate((shared, 9, 7)))
    row, at = torch.cat([start, first, second])[None], torch.arange(shared + 16)
    branch = (at >= shared).long() + (at >= shared + 9).long()
    sees = (at[:, None] >= at[None, :]) & ((branch[:, None] == branch[None, :]) | (branch == 0)[None, :])
    apart = additive(sees, model.original_model.get_output_embeddings().weight.dtype)[None, None]
    with _undisturbed():
        try:
            position = torch.where(branch == 2, at - 9, at)[None]
            together = _logits(model, row, apart, position)[0, -7:]
            seen = _logits(model, row, torch.ones_like(row))[0, -7:]
        except (
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
            AttributeError,
        ):  # it takes no such mask, positions or length
            return False
        own = torch.cat([start, second])[None]
        alone = _logits(model, own, torch.ones_like(own))[0, -7:]
    whole = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    leak = LEAK if whole else LEAK_BEHIND if shared else LEAK_HALF
    return bool((together - alone).abs().max() <= leak * (seen - alone).abs().max())


def additive(sees: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Who sees whom as what attention adds to its scores: large and finite elsewhere, as a row of padding sees nothing
    and must not become NaN. In float32, too, in which some attention makes its softmax whatever the weights are."""
    least = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min) / 2
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, least)


def _check_unembedding(model: Any) -> None:
    kept: list[Tensor] = []
    handle = model.unembed.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    try:
        with _undisturbed():
            expected = _logits(model, _some_tokens(model, 7)[None], torch.ones(1, 7, dtype=torch.long))
            found = transformed(model, model.original_model.get_output_embeddings()(kept[0]).float())
    finally:
        handle.remove()
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
        kind = model.original_model.config.model_type
        raise InputError(
            f"model {model.cfg.model_name!r}: hooklearn does not know what {kind!r} does to the logits that its "
            "unembedding gives, so it could not read them at single positions"
        )


@contextmanager
def _undisturbed() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def _logits(
    model: Any, ids: Int[Tensor, "1 pos"], mask: Tensor, position: Tensor | None = None
) -> Float[Tensor, "1 pos vocab"]:
    device = model.cfg.device
    extra = {} if position is None else {"position_ids": position.to(device)}
    return model(ids.to(device), attention_mask=mask.to(device), use_cache=False, **extra).float()


def _some_tokens(model: Any, n: int, seed: int = 0) -> Int[Tensor, " n"]:
    return torch.randint(model.cfg.d_vocab, (n,), generator=torch.Generator().manual_seed(seed))
