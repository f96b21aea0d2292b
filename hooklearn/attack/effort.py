"""What an attacker spends on one arm at one setting, beside the looks and samples that all arms get."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hooklearn import flops, models
from hooklearn.data import Encoded, TokenBatch


@dataclass(frozen=True)
class Effort:
    """Nothing, unless it is said: an attack on the weights has no data, and nothing goes through the model for it."""

    rows: int = 0
    """Different rows of its corpus."""
    samples: int = 0
    """Rows as they were seen, each as often as it was."""
    tokens: int = 0
    """That went through the model for it, without padding."""
    flops: float = 0.0
    """By the count of :mod:`hooklearn.flops`."""

    def __add__(self, other: Effort) -> Effort:
        """Of two attackers, who may have had the same rows."""
        return Effort(
            max(self.rows, other.rows), self.samples + other.samples, self.tokens + other.tokens,
            self.flops + other.flops,
        )  # fmt: skip


def of_training(model: Any, batches: Iterable[TokenBatch], trained: int) -> Effort:
    """Of training so many parameters on these batches."""
    blocks, head = sizes(model)
    rows, samples, tokens, spent = set[int](), 0, 0, 0.0
    for batch in batches:
        rows |= {s.item for s in batch.sequences}
        samples += len(batch.sequences)
        tokens += batch.n_tokens
        spent += flops.training(blocks, head, batch.n_tokens, int(batch.labels.sum()), trained)
    return Effort(len(rows), samples, tokens, spent)


def of_reading(model: Any, tokens: int, written: int = 0) -> float:
    """FLOPs of tokens that are read; what goes before those that the model writes is scored."""
    return flops.forward(*sizes(model), tokens, written)


def before_answers(sequences: Iterable[Encoded]) -> int:
    """Tokens that stand before those that are scored."""
    return sum(len(s) - int(s.labels.sum()) for s in sequences)


def adapter_size(model: Any, sites: str, rank: int) -> int:
    """Parameters of a LoRA: both factors of every site."""
    return sum(rank * (site.d_in + site.d_out) for site in models.sites(model, sites))


def sizes(model: Any) -> tuple[int, int]:
    """Parameters of the blocks, and entries of the unembedding."""
    every = sum(p.numel() for p in models.all_parameters(model))
    tables = sum(p.numel() for p in models.embedding_parameters(model))
    return every - tables, int(model.cfg.d_vocab) * int(model.cfg.d_model)
