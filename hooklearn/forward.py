"""One forward pass over a token batch: logits at the labelled positions only, in the chosen precision.

Most positions carry no loss and the unembedding is a large share of a small model's work, so logits are never
computed where nothing needs them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooklearn import bfloat16, editing, interventions, models, parallel
from hooklearn.data import Encoded, TokenBatch, batches
from hooklearn.losses import sequence_sums, token_logprobs
from hooklearn.plain import is_fused, lent_copy, read_once, with_fused_attention
from hooklearn.traits import additive, row_of, transformed
from hooklearn.transfer import onto, rows_at
from hooklearn.types import InputError

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(precision: Precision, device: torch.device | str = "cpu") -> torch.dtype:
    """``auto``: bfloat16 where it is the faster of the two, else float32. GPUs that only emulate it (T4, V100) are not
    asked to; CPUs that would crawl are helped from here on (:mod:`hooklearn.bfloat16`)."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision {precision!r}: valid are auto, float32, bfloat16")
    on_cpu = torch.device(device).type == "cpu"
    dtype = _fastest(on_cpu) if precision == "auto" else getattr(torch, precision)
    if on_cpu and dtype is torch.bfloat16:
        bfloat16.ensure_products()
    return dtype


def auto_on(device: str, model: Any = None) -> str:
    """What ``precision: auto`` is on the device that a config names, or where a model is already (:func:`auto_is`)."""
    there = models.available(device) if model is None else models.device_of(model)
    return str(resolve_precision("auto", there)).removeprefix("torch.")


def _fastest(on_cpu: bool) -> torch.dtype:
    if (decided := _decided.get()) is not None:
        return torch.bfloat16 if decided else torch.float32
    if on_cpu:
        return torch.bfloat16 if _bfloat16_pays() else torch.float32
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float32 if emulated else torch.bfloat16


_decided: ContextVar[bool | None] = ContextVar("decided", default=None)
"""What was found of bfloat16 when something began that goes on here; None: what is found here."""


@contextlib.contextmanager
def auto_is(precision: str) -> Iterator[None]:
    """``auto`` is what it was found to be where something began, and not what it would be here: it may go on on another
    device."""
    token = _decided.set(precision == "bfloat16")
    try:
        yield
    finally:
        _decided.reset(token)


PAYS, CLEAR = 1.3, (0.7, 2.0)
"""Times faster that a bfloat16 product must be: casts and norms eat up the rest. Processors are at .5 or above 2; what
lies between is measured again."""


@functools.cache
def _bfloat16_pays() -> bool:
    """Measured once; several processes go by the first one's, or each would compute something else."""
    return parallel.agreed(_bfloat16_is_faster())


def _bfloat16_is_faster() -> bool:
    """In some hundredths of a second: that a processor has the instructions does not tell. Two with the same flags
    multiplied bfloat16 2.3 times as fast as float32, and half as fast."""
    if not (torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()):
        return False
    single = torch.ones(512, 1024), torch.ones(1024, 512)
    half = tuple(m.bfloat16() for m in single)
    took: dict[bool, list[float]] = {False: [], True: []}
    ratio = math.nan
    for turn in range(200):  # in turn: what else the machine does must not fall on one of them
        started = time.perf_counter()
        torch.mm(*(half if turn % 2 else single))
        took[bool(turn % 2)].append(time.perf_counter() - started)
        if turn % 20 == 19:
            ratio = min(took[False]) / min(took[True])
            if not CLEAR[0] < ratio < CLEAR[1]:
                break
    return ratio > PAYS


@contextlib.contextmanager
def autocast(model: Any, precision: Precision) -> Iterator[None]:
    """bfloat16 products with float32 master weights, or products in the type that the weights have: where that is asked
    for, and where they are held in float64, or on a CPU in float16."""
    device = models.device_of(model)
    dtype = resolve_precision(precision, device)
    held = models.dtype_of(model)
    # float64 is held for exact sums, and autocast would shorten the mask alone; on a CPU it leaves norms as they are,
    # and float16 ones refuse what bfloat16 products hand them
    if held is torch.float64 or (held is torch.float16 and device.type == "cpu"):
        dtype = torch.float32
    # of spread weights no copies are kept: they would be those of the whole model
    keep = not models.is_sharded(model)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32, cache_enabled=keep):
        yield


def _inputs(model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids, mask, keep, positions), all but ``keep`` on the model's device; rows of several sequences get a mask of
    who sees whom."""
    device = models.device_of(model)
    mask = batch.mask.long()
    if batch.packed:
        # of the type in which attention computes: fused attention takes another for its own, and reads noise
        dtype = torch.float32 if torch.is_autocast_enabled(device.type) else models.dtype_of(model)
        mask = additive(batch.attention(), dtype)
    return onto(batch.ids, device), onto(mask, device), batch.keep, onto(batch.position, device)


def hidden(model: Any, batch: TokenBatch) -> Float[Tensor, "kept d_model"]:
    """Final hidden states at the positions that predict a labelled token (TransformerLens hooks fire)."""
    return hidden_at(model, *_inputs(model, batch))


@contextlib.contextmanager
def reader(model: Any) -> Iterator[Callable[[TokenBatch], Float[Tensor, "kept d_model"]]]:
    """:func:`hidden` for a block in which weights stay as they are and nothing needs a gradient.

    Where no one has hooked into the bridge, the plain model around the same weights reads: with fused attention, and
    what all rows of a batch begin with only once. The same to rounding; whether it is faster, and how much, hangs on
    the processor (``python -m benchmarks --only reader``). Interventions go with it. Not where its weights are spread
    over processes, or would first have to be put together.
    """
    if models.is_sharded(model) or is_fused(model) or not interventions.are_all(model):
        with editing.in_eval(model):  # the plain copy below is always so
            yield lambda batch: hidden(model, batch)
        return
    with lent_copy(model) as plain, interventions.carried_over(model, with_fused_attention(plain)):
        yield lambda batch: _read(plain, *_inputs(model, batch), batch.n_common)


def _read(
    plain: Any, ids: Tensor, mask: Tensor, keep: Tensor, position_ids: Tensor, n: int
) -> Float[Tensor, "kept d_model"]:
    """A pass of a plain model over rows whose first ``n`` tokens are the same."""
    cached: dict[str, Any] = {}
    if n and len(ids) > 1 and (found := read_once(plain, ids[:1, :n], torch.ones_like(ids[:1, :n]))) is not None:
        name, cache = found
        cache.batch_repeat_interleave(len(ids))
        cached = {name: cache}
        ids, keep, position_ids = ids[:, n:], keep[:, n:], position_ids[:, n:]
        mask = mask[:, :, n:] if mask.dim() == 4 else mask
    return _kept_states(plain, plain.get_output_embeddings(), ids, mask, keep, position_ids, **cached)


def logits(model: Any, batch: TokenBatch) -> Float[Tensor, "kept vocab"]:
    """Logits that predict ``batch.targets``, in the same order."""
    return logits_at(model, *_inputs(model, batch))


def logits_at(
    model: Any,
    ids: Int[Tensor, "batch pos"],
    mask: Tensor | None,
    keep: Bool[Tensor, "batch pos"],
    position_ids: Int[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "kept vocab"]:
    """``model(ids)[keep]``, without computing the others: the unembedding is costly.

    Args:
        mask: ``[batch pos]``, 1 at tokens, or an additive ``[batch 1 pos pos]`` for packed rows
            (then with ``position_ids``).
        keep: best on the CPU, whatever the model is on.
    """
    # whatever the architecture does to logits afterwards (Gemma's soft cap) it still does
    return _forward(model, model.unembed, ids, mask, position_ids, lambda hidden: rows_at(hidden, keep))


def hidden_at(
    model: Any,
    ids: Int[Tensor, "batch pos"],
    mask: Tensor | None,
    keep: Bool[Tensor, "batch pos"],
    position_ids: Int[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "kept d_model"]:
    """Hidden states after the last norm: ``unembed`` of these is :func:`logits_at`."""
    return _kept_states(model, model.unembed, ids, mask, keep, position_ids)


def unembed(model: Any, hidden: Float[Tensor, "kept d_model"]) -> Float[Tensor, "kept vocab"]:
    """Logits of final hidden states, with what some architectures do to them afterwards."""
    hf_model: Any = model.original_model
    return transformed(model, hf_model.get_output_embeddings()(hidden))


def _kept_states(
    model: Any,
    unembedding: Any,
    ids: Tensor,
    mask: Tensor | None,
    keep: Tensor,
    position_ids: Tensor | None,
    **cached: Any,
) -> Float[Tensor, "kept d_model"]:
    kept = []

    def take(hidden: Tensor) -> Tensor:
        kept.append(rows_at(hidden, keep))
        return hidden[:, :0]  # nothing left to unembed

    _forward(model, unembedding, ids, mask, position_ids, take, **cached)
    return kept[0]


def _forward(
    model: Any,
    unembedding: Any,
    ids: Tensor,
    mask: Tensor | None,
    position_ids: Tensor | None,
    select: Callable[[Tensor], Tensor],
    **cached: Any,
) -> Tensor:
    """A pass through the bridge, so that every hook fires, or through a plain model; only what ``select`` returns of
    the final hidden states goes on to the unembedding."""
    handle = unembedding.register_forward_pre_hook(lambda _, args: (select(args[0]),))
    extra = {} if position_ids is None else {"position_ids": position_ids}
    try:
        return model(ids, attention_mask=mask, use_cache=bool(cached), **extra, **cached)
    finally:
        handle.remove()


def unembedded(
    model: Any, hidden: Float[Tensor, "kept d_model"], targets: Int[Tensor, " kept"], *, chunk: int = 512
) -> Iterator[tuple[Float[Tensor, "part vocab"], Int[Tensor, " part"]]]:
    """Logits a few hundred positions at a time, with their targets: all of a batch at once are its peak of memory."""
    for part, answers in zip(hidden.split(chunk), onto(targets, hidden.device).split(chunk), strict=True):
        yield unembed(model, part), answers


def scored_batches(model: Any, sequences: list[Encoded], max_tokens: int = 2048) -> list[TokenBatch]:
    """The batches in which :func:`sequence_logprobs` reads them; the same whatever state the model is in."""
    return batches(sequences, max_tokens=max_tokens, share=row_of(model))


@torch.no_grad()
def sequence_logprobs(
    model: Any,
    sequences: list[Encoded],
    *,
    precision: Precision = "auto",
    max_tokens: int = 2048,
    stream: list[TokenBatch] | None = None,
) -> Float[Tensor, "sequence 2"]:
    """(sum of log-probabilities, number of scored tokens) of every sequence, in the order given.

    Args:
        stream: their :func:`scored_batches`, where they are at hand already.
    """
    out = torch.zeros(len(sequences), 2, dtype=torch.float64)
    where: dict[int, list[int]] = {}  # the same object may be asked for twice
    for i, s in enumerate(sequences):
        where.setdefault(id(s), []).append(i)
    stream, found = scored_batches(model, sequences, max_tokens) if stream is None else stream, []
    with autocast(model, precision), reader(model) as read:  # around all batches: weights are cast once
        for batch in parallel.share(stream):
            parts = unembedded(model, read(batch), batch.targets)
            logp = torch.cat([token_logprobs(scores, targets) for scores, targets in parts]).double().cpu()
            n = len(batch.sequences)
            sums = sequence_sums(logp, batch.owner, n)
            counts = sequence_sums(torch.ones_like(logp), batch.owner, n)
            found.append(torch.stack([sums, counts], 1))
    for batch, scores in zip(stream, parallel.gather(found, len(stream)), strict=True):
        for s, score in zip(batch.sequences, scores, strict=True):
            out[where[id(s)]] = score
    return out


def count_tokens(groups: Iterable[TokenBatch]) -> int:
    return sum(b.n_tokens for b in groups)
