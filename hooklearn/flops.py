"""Floating-point operations of passes through a transformer, by the usual count: two for every weight and token.

Attention's products of tokens with tokens are left out, as they are in most published numbers (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1): for short texts they are a few percent. Of a mixture all experts are counted.
"""

from __future__ import annotations


def forward(blocks: float, head: float, tokens: float, scored: float) -> float:
    """``2 P t + 2 V d k``.

    Args:
        blocks: P, parameters of the layers: all but the embeddings.
        head: V d, entries of the unembedding, which only ``scored`` tokens meet.

    Examples:
        >>> forward(blocks=1000, head=400, tokens=100, scored=10)
        208000.0
    """
    return 2.0 * blocks * tokens + 2.0 * head * scored


def training(blocks: float, head: float, tokens: float, scored: float, trained: float) -> float:
    """A forward pass, as much again backward to the inputs, and 2 t for every weight whose gradient is formed.

    Of tables that are trained as well it is too many: the embedding's gradient takes no product, and the unembedding's
    meets scored tokens only.
    """
    return 2.0 * forward(blocks, head, tokens, scored) + 2.0 * trained * tokens
