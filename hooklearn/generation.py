"""Continuations, by Hugging Face's own ``generate`` on the plain model that shares the bridge's weights.

Not by the bridge: it computes attention itself, and whether that fills the cache depends on the release
of transformers (5.24 renamed the argument, and every token after the first was then written blind).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from hooklearn import interventions, losses, models, sharded
from hooklearn.plain import plain_copy


class _Drawn(LogitsProcessor):
    """Leaves of every row's logits the one token that is drawn at its temperature: the likeliest, from then on.

    By inversion at numbers that are given row by row, so that a sample depends on its seed and its place in the corpus
    and not on what is drawn beside it, and models that hardly differ say the same.
    """

    def __init__(self, uniform: Float[Tensor, "row token"], temperature: float, start: int) -> None:
        self.uniform, self.temperature, self.start = uniform, temperature, start

    def __call__(self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]) -> Tensor:
        p = (scores.float() / self.temperature).softmax(-1)
        chosen = losses.drawn(p, self.uniform[:, input_ids.shape[1] - self.start])
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


@torch.no_grad()
def generate(
    model: Any,
    texts: list[str],
    new_tokens: int,
    temperature: float,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Continuations of ``texts``, left-padded; temperature 0 is greedy.

    Args:
        dtype: of the weights and states that are computed with; None, or sharded weights: the model's own.
        generator: of the CPU, from which ``new_tokens`` numbers a text are drawn; None: torch's global one.
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
    start, chooser = ids.shape[1], LogitsProcessorList()
    if temperature != 0:
        uniform = torch.rand(len(texts), new_tokens, generator=generator)
        chooser.append(_Drawn(uniform.to(plain.device), temperature, start))
    with interventions.carried_over(model, plain):
        out = plain.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens,
            pad_token_id=tokenizer.pad_token_id, use_cache=True, do_sample=False, logits_processor=chooser,
        )  # fmt: skip
    return tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)
