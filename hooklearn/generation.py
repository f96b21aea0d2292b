"""Continuations, by Hugging Face's own ``generate`` on the plain model that shares the bridge's weights.

Not by the bridge: it computes attention itself, and whether that fills the cache depends on the release
of transformers (5.24 renamed the argument, and every token after the first was then written blind).
"""

from __future__ import annotations

from typing import Any

import torch

from hooklearn import models, sharded
from hooklearn.plain import plain_copy


@torch.no_grad()
def generate(
    model: Any, texts: list[str], new_tokens: int, temperature: float, dtype: torch.dtype | None = None
) -> list[str]:
    """Continuations of ``texts``, left-padded; temperature 0 is greedy. Draws from torch's global generator.

    Args:
        dtype: of the weights and states that are computed with; None, or sharded weights: the model's own.
    """
    tokenizer: Any = model.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    finally:
        tokenizer.padding_side = side
    spread = models.is_sharded(model)
    plain: Any = sharded.plain_copy(model) if spread else plain_copy(model)
    if dtype is not None and not spread:
        for parameter in plain.parameters():  # not the buffers: rotary frequencies stay exact
            parameter.data = parameter.data.to(dtype)
    ids, mask = given["input_ids"].to(plain.device), given["attention_mask"].to(plain.device)
    how = {"do_sample": False} if temperature == 0 else {
        "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0
    }  # fmt: skip
    out = plain.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens,
        pad_token_id=tokenizer.pad_token_id, use_cache=True, **how,
    )  # fmt: skip
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
