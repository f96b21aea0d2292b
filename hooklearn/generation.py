"""Continuations, by Hugging Face's own ``generate`` on the plain model that shares the bridge's weights.

Not by the bridge: it computes attention itself, and whether that fills the cache depends on the release
of transformers (5.24 renamed the argument, and every token after the first was then written blind).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from hooklearn import interventions, losses, models, prefixes, sharded
from hooklearn.data import mark_of, prompt_tokens
from hooklearn.plain import plain_copy, read_once, with_fused_attention
from hooklearn.traits import packs
from hooklearn.types import InputError


class Said(NamedTuple):
    text: str
    logprob: float
    """Mean log-probability a token at temperature 1, of the model that said it, as it was then; the token that ends the
    text is one of them."""


class _Chosen(LogitsProcessor):
    """Leaves of every row's logits the one token that is drawn at its temperature, or the likeliest, and keeps what
    log-probability it had.

    By inversion at numbers that are given row by row, so that a sample depends on its seed and its place in the corpus
    and not on what is drawn beside it, and models that hardly differ say the same.
    """

    def __init__(self, uniform: Float[Tensor, "row token"] | None, temperature: float, start: int) -> None:
        self.uniform, self.temperature, self.start = uniform, temperature, start
        self.logprobs: list[Float[Tensor, " row"]] = []

    def __call__(self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]) -> Tensor:
        scores = scores.float()
        if self.uniform is None:
            chosen = scores.argmax(-1)
        else:
            p = (scores / self.temperature).softmax(-1)
            chosen = losses.drawn(p, self.uniform[:, input_ids.shape[1] - self.start])
        self.logprobs.append(losses.token_logprobs(scores, chosen))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


@torch.no_grad()
def say(
    model: Any,
    texts: Sequence[str | list[int]],
    new_tokens: int,
    temperature: float,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> list[Said]:
    """Continuations of ``texts``; temperature 0 is greedy. What several texts begin with is read once.

    Args:
        texts: or their tokens, which are taken as they are: a text gets BOS where the tokenizer puts one and it does
            not begin with it.
        dtype: of the weights and states that are computed with; None, or sharded weights: the model's own.
        generator: of the CPU, from which ``new_tokens`` numbers a text are drawn; None: torch's global one.
    Raises:
        InputError: no room for a prompt before so many new tokens. One that is too long loses its beginning.
    """
    tokenizer: Any = model.tokenizer
    spread = models.is_sharded(model)
    plain: Any = sharded.plain_copy(model) if spread else plain_copy(model)
    if dtype is not None and not spread:
        for parameter in plain.parameters():  # not the buffers: rotary frequencies stay exact
            parameter.data = parameter.data.to(dtype)
    with_fused_attention(plain)
    device = models.device_of(model)
    plain.generation_config = own = _plainest(plain.generation_config, tokenizer, new_tokens)
    given = iter(prompt_tokens([text for text in texts if isinstance(text, str)], tokenizer))
    asked = [next(given) if isinstance(text, str) else text for text in texts]
    if (room := tokenizer.model_max_length - new_tokens) < 1:
        raise InputError(
            f"{new_tokens} new tokens are asked of a model that reads {tokenizer.model_max_length} at most; ask for "
            "fewer"
        )
    asked = [_latest(ids, room, tokenizer.bos_token_id) for ids in asked]
    with interventions.carried_over(model, plain):
        ids, mask, begun = _begun(plain, asked, tokenizer.pad_token_id or 0, device, share=packs(model))
        uniform = torch.rand(len(texts), new_tokens, generator=generator).to(device) if temperature != 0 else None
        chooser = _Chosen(uniform, temperature, ids.shape[1])
        out = plain.generate(
            input_ids=ids, attention_mask=mask, generation_config=own, logits_processor=LogitsProcessorList([chooser]),
            **begun,
        )  # fmt: skip
    new = out[:, ids.shape[1] :]
    counted = _until_its_end(new, own.eos_token_id)
    logprobs = torch.stack(chooser.logprobs, 1).where(counted, 0.0).sum(1) / counted.sum(1)
    return [Said(*one) for one in zip(_text(new, tokenizer), logprobs.tolist(), strict=True)]


def _text(new: Int[Tensor, "row token"], tokenizer: Any) -> list[str]:
    """What goes on from a prompt, with the space that it may begin with."""
    if not (mark := mark_of(tokenizer)):
        return tokenizer.batch_decode(new, skip_special_tokens=True)
    written = tokenizer.batch_decode([[*mark, *row] for row in new.tolist()], skip_special_tokens=True)
    return [text.removeprefix(tokenizer.decode(mark)) for text in written]


def _latest(ids: list[int], room: int, bos: int | None) -> list[int]:
    """As many as there is room for; what is cut is the prompt and not the BOS before it."""
    if len(ids) <= room:
        return ids
    kept = ids[:1] if ids[0] == bos and room > 1 else []
    return [*kept, *ids[len(ids) - room + len(kept) :]]


def _until_its_end(new: Int[Tensor, "row token"], ends: int | list[int] | None) -> Bool[Tensor, "row token"]:
    """The tokens that a row said, the one that ends it among them; what follows is padding."""
    ended = torch.isin(new, torch.tensor(ends if ends is not None else [], device=new.device, dtype=new.dtype))
    return ended.cumsum(1) - ended.int() == 0


def _plainest(given: GenerationConfig, tokenizer: Any, new_tokens: int) -> GenerationConfig:
    """Of what a checkpoint's files say of generation only where it ends: penalties, forced or forbidden tokens and a
    least length would make another distribution of the model's own."""
    return GenerationConfig(
        eos_token_id=given.eos_token_id, bos_token_id=given.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=new_tokens, use_cache=True, do_sample=False,
    )  # fmt: skip


def _begun(
    plain: Any, asked: list[list[int]], pad: int, device: torch.device, *, share: bool
) -> tuple[Tensor, Tensor, dict[str, Cache]]:
    """(ids, mask, cache of the prefixes): one left-padded block, or two where prompts begin alike and the model goes by
    positions and not by places in the row, as padding stands between the two."""
    if share and (found := prefixes.shared_prefixes(asked)) is not None:
        ids, mask = (t.to(device) for t in found.beginnings(pad))
        if (read := read_once(plain, ids, mask)) is not None:
            name, cache = read
            owner = found.owner.to(device)
            cache.batch_select_indices(owner)
            more, more_mask = (t.to(device) for t in found.rests(pad))
            return torch.cat([ids[owner], more], 1), torch.cat([mask[owner], more_mask], 1), {name: cache}
    ids, mask = prefixes.left_padded(asked, pad)
    return ids.to(device), mask.to(device), {}
