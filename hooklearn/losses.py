"""Losses as sums and counts: logits at labelled positions -> ``LossSum``. Divide once, at the end.

``logits`` is ``[kept, vocab]``, ``targets`` ``[kept]``; everything is computed in float32, or float64 where the
weights are, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LossSum:
    """A sum of nats and how many tokens (or sequences) it is over."""

    total: Float[Tensor, ""]
    count: int

    @property
    def mean(self) -> Float[Tensor, ""]:
        return self.total / max(1, self.count)

    def __add__(self, other: LossSum) -> LossSum:
        return LossSum(self.total + other.total, self.count + other.count)

    def __mul__(self, weight: float) -> LossSum:
        return LossSum(self.total * weight, self.count)

    __rmul__ = __mul__


def wide(values: Tensor) -> Tensor:
    """In float32, or as they are in float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def token_logprobs(logits: Float[Tensor, "kept vocab"], targets: Int[Tensor, " kept"]) -> Float[Tensor, " kept"]:
    """log p(target) per token, nats."""
    return -F.cross_entropy(wide(logits), targets, reduction="none")


def ce(logits: Float[Tensor, "kept vocab"], targets: Int[Tensor, " kept"]) -> LossSum:
    """Cross-entropy: sum over tokens of -log p(target)."""
    return LossSum(F.cross_entropy(wide(logits), targets, reduction="sum"), targets.numel())


def kl_per_token(
    p_logits: Float[Tensor, "kept vocab"], q_logits: Float[Tensor, "kept vocab"]
) -> Float[Tensor, " kept"]:
    """KL(p || q) per token in nats; p is the original, q the edited model."""
    p, q = wide(p_logits).log_softmax(-1), wide(q_logits).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def kl(p_logits: Float[Tensor, "kept vocab"], q_logits: Float[Tensor, "kept vocab"]) -> LossSum:
    return LossSum(kl_per_token(p_logits, q_logits).sum(), p_logits.shape[0])


def entropy(logits: Float[Tensor, "kept vocab"]) -> LossSum:
    """Sum over tokens of the predictive entropy, nats."""
    logp = wide(logits).log_softmax(-1)
    return LossSum(-(logp.exp() * logp).sum(), logits.shape[0])


def sequence_sums(per_token: Float[Tensor, " kept"], owner: Int[Tensor, " kept"], n: int) -> Float[Tensor, " n"]:
    """Sum per-token values into the sequences that own them."""
    return torch.zeros(n, dtype=per_token.dtype, device=per_token.device).index_add(0, owner, per_token)


def ce_gradient(
    logits: Float[Tensor, "kept vocab"], targets: Int[Tensor, " kept"] | None, generator: torch.Generator
) -> Float[Tensor, "kept vocab"]:
    """Gradient of :func:`ce` by its logits, ``softmax - one_hot``.

    What autograd finds, in fewer passes over the largest tensor there is.

    Without targets, labels are drawn from the model itself: the gradients then give the true Fisher (Martens 2020, "New
    insights and perspectives on the natural gradient method", section 5).
    """
    p = wide(logits).softmax(-1)
    chosen = drawn(p, torch.rand(len(p), generator=generator)) if targets is None else targets
    p[torch.arange(len(p), device=p.device), chosen] -= 1
    return p.to(logits.dtype)


def skip_labels(n: int, generator: torch.Generator) -> None:
    """The generator goes on as if ``n`` labels had been drawn."""
    torch.rand(n, 1, generator=generator)


def sampled_labels(logits: Float[Tensor, "kept vocab"], generator: torch.Generator) -> Int[Tensor, " kept"]:
    """One label a row, drawn from the model itself."""
    return drawn(wide(logits).softmax(-1), torch.rand(len(logits), generator=generator))


def drawn(p: Float[Tensor, "kept vocab"], uniform: Float[Tensor, " kept"]) -> Int[Tensor, " kept"]:
    """One label a row by inversion of the distribution function at ``uniform``, numbers in [0, 1).

    They are drawn on the CPU, one a row, so that every device draws the same label; ``multinomial`` draws one for every
    entry of the vocabulary, a tenth of a Fisher pass and of sampling.
    """
    cumulative = p.cumsum(-1)
    # rounding leaves the total off 1: draw below the total that is there
    labels = torch.searchsorted(cumulative, uniform.to(cumulative)[:, None] * cumulative[:, -1:])
    return labels.squeeze(-1).clamp_max(p.shape[-1] - 1)
