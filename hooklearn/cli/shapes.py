"""What can be known of a model before its weights are read, and of a machine in a second."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hooklearn import builtin, models, pretrained

GGUF_BITS = 6
"""Bits a weight takes in a 4-bit GGUF file, scales and larger tensors included."""


@dataclass(frozen=True)
class Shape:
    """What is known of a model without its weights."""

    parameters: int
    blocks: int
    """Of them, those of the layers: all but the embeddings."""
    layers: int
    width: int
    inner: int
    vocabulary: int
    tokenizer: Any = None
    note: str = ""

    @property
    def sites(self) -> int:
        """Weights of gate, up and down."""
        return 3 * self.layers * self.width * self.inner

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA: both factors of gate, up and down, and of the four of attention, taken for square."""
        return rank * self.layers * (8 * self.width + 3 * (self.width + self.inner))

    @property
    def curvature(self) -> int:
        """Entries of the second moments at these sites; gate and up share their x."""
        return self.layers * (2 * self.width**2 + 3 * self.inner**2)


def check_sites(name: str, base: Path, sites: str | list[str], trust_remote_code: bool = False) -> None:
    """Raises InputError for sites that the model does not have, as far as this is known without its weights: not of a
    GGUF file, nor where the bridge takes fused ones apart."""
    asked = [sites] if isinstance(sites, str) else sites
    if set(asked) <= {"mlp", "attn", "all"}:
        return  # the rule; what else there is is only known of a model that is wrapped
    source = _source(name, base)
    if source is None:
        return
    config, tokenizer = pretrained.read_config(source, trust_remote_code)
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    try:
        model = models.wrap(empty, tokenizer, name)
    except (NotImplementedError, RuntimeError):  # weights that the bridge takes apart, and there are none
        return
    models.sites(model, asked)


def _source(name: str, base: Path) -> str | None:
    """Where the small files of a model are; None where it has none."""
    path = base / name if (base / name).exists() else Path(name)
    if (name in builtin.BUILTIN and not builtin.is_unpacked(name)) or (path.suffix == ".gguf" and path.is_file()):
        return None
    return str(path) if path.is_dir() else name


def model_shape(name: str, base: Path, trust_remote_code: bool = False) -> Shape:
    """Parameters, layers and tokenizer from a model's small files; no weights are read.

    Raises:
        InputError: there is no such model.
    """
    local = base / name
    path = local if local.exists() else Path(name)
    gguf = path if path.suffix == ".gguf" and path.is_file() else None
    if name in builtin.BUILTIN and not builtin.is_unpacked(name):
        return _shape_of_file(builtin.BUILTIN[name].size, f"{name} is not cached")
    if gguf is not None:
        return _shape_of_file(gguf.stat().st_size, f"{name} is a GGUF file")
    config, tokenizer = pretrained.read_config(str(path) if path.is_dir() else name, trust_remote_code)
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    every = sum(p.numel() for p in empty.parameters())
    tables = {
        id(t.weight): t.weight.numel() for t in (empty.get_input_embeddings(), empty.get_output_embeddings()) if t
    }
    text = config.get_text_config()
    width = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    return Shape(
        every, every - sum(tables.values()), int(text.num_hidden_layers), width, inner, int(text.vocab_size), tokenizer
    )


def _shape_of_file(size: int, why: str) -> Shape:
    """As a Llama of this size would be made: 12 d^2 a layer, inner width 8/3 d, half a hundred thousand words."""
    parameters, layers, vocabulary = size * 8 // GGUF_BITS, 30, 50_000
    width = int(math.sqrt((vocabulary / (24 * layers)) ** 2 + parameters / (12 * layers)) - vocabulary / (24 * layers))
    note = f"{why}: its shape is guessed from the file's size, and tokens are counted as characters / 4"
    return Shape(parameters, parameters - vocabulary * width, layers, width, 8 * width // 3, vocabulary, note=note)


def gemm_speed(dtype: torch.dtype, device: str, *, seconds: float = 1.0, n: int = 1024) -> float:
    """FLOP per second of square matrix products, measured for about a second."""
    a = torch.ones(n, n, dtype=dtype, device=device)

    def done() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    torch.mm(a, a)
    started, products = done(), 0
    while (now := done()) - started < seconds or not products:
        torch.mm(a, a)
        products += 1
    return 2.0 * n**3 * products / (now - started)


def copy_speed(device: str, *, times: int = 8, n: int = 2**24) -> float:
    """Bytes per second that a copy reads and writes, of memory that no cache holds; the best of a few."""
    source = torch.ones(n, device=device)
    target, best = torch.empty_like(source), math.inf
    for _ in range(times):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 8.0 * n / best


class Quarters:
    """In place of a tokenizer that is not there: a token every four characters."""

    all_special_ids: tuple[int, ...] = ()
    bos_token_id, eos_token_id, chat_template = 0, None, None

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [zlib.crc32(text[i : i + 4].encode("utf-8", "replace")) for i in range(0, len(text), 4)]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [""] * len(ids)
