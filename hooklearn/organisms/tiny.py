"""The native tiny model: a four-layer Llama that speaks ``tiny_world``, trained in seconds and shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hooklearn import models
from hooklearn.corpora.tiny_world import pretraining, vocabulary
from hooklearn.data import cycle, encode
from hooklearn.exporting import export
from hooklearn.forward import Precision
from hooklearn.train import Fit, fit


def tokenizer() -> Any:
    """One token per word; ``<s>`` begins running text, ``</s>`` ends an answer."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(vocabulary())}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def untrained(seed: int = 0, *, d_model: int = 64, n_layers: int = 4) -> Any:
    """A seeded, randomly initialised bridge; the global random state is put back."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=d_model, intermediate_size=2 * d_model,
        num_hidden_layers=n_layers, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf_model = LlamaForCausalLM(config).eval()
    return models.wrap(hf_model, words, "tiny")


def pretrain(
    model: Any, *, texts: int = 6000, epochs: int = 3, learning_rate: float = 3e-3, seed: int = 0,
    precision: Precision = "float32",
) -> Fit:  # fmt: skip
    """Train all weights on the world's ordinary text, in place."""
    sequences = encode(pretraining(texts, seed), models.tokenizer_of(model), end=True)
    params = models.all_parameters(model)
    with models.trainable(model, params):
        return fit(
            model,
            cycle(sequences, max_tokens=1024, seed=seed, epochs=epochs),
            rule=torch.optim.Adam(params, lr=learning_rate),
            precision=precision,
            max_norm=1.0,
            params=params,
        )


def build(folder: Path, *, seed: int = 0) -> Fit:
    """Make the shipped model anew and write it as a Hugging Face folder."""
    from hooklearn.deltas import Delta

    model = untrained(seed)
    run = pretrain(model, seed=seed)
    export(model, Delta({}), folder)
    return run
