"""Experts of a mixture as linear weights of their own, each with its two hook points.

transformers stores the experts of a layer as two 3-D tensors and multiplies all of them in one go, so nothing says
what one expert was given. Here an expert computes with its own three matrices. They are views of the two tensors: no
memory is taken twice, and what is added to an expert is in the tensors at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

STORED = ("gate_up_proj", "down_proj")
"""Mixtral, Qwen-MoE, OLMoE and DeepSeek: ``[expert, 2 d_mlp, d_model]`` and ``[expert, d_model, d_mlp]``."""


class Experts(nn.Module):
    """The experts of one layer, numbered; each has ``gate``, ``in`` and ``out``, as a dense MLP has.

    Args:
        stored: transformers' module, whose tensors hold the weights.
        linear: puts hook points around an ``nn.Linear``.
        hook: makes a hook point.
    """

    def __init__(
        self, stored: Any, linear: Callable[[nn.Linear, str], nn.Module], hook: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.add_module("_original_component", stored)  # the bridge's own name: left out of its names, as everywhere
        self.act_fn = stored.act_fn
        self.hook_chosen = hook()
        """Passes the ``[token, chosen]`` numbers of the experts that every token is sent to."""
        for number, parts in self._views():
            self.add_module(number, nn.ModuleDict({n: linear(_linear(w), n) for n, w in parts.items()}))

    def _views(self) -> Iterator[tuple[str, dict[str, Float[Tensor, "d_out d_in"]]]]:
        """Number -> its three matrices, inside the tensors of all."""
        up, down = (stack.detach() for stack in self.stacked())
        for number in range(len(up)):
            gate, in_ = up[number].chunk(2)
            yield str(number), {"gate": gate, "in": in_, "out": down[number]}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Experts:
        """Moved to a device or another dtype, tensors and matrices would be two; they stay one."""
        super()._apply(fn, recurse)
        for number, parts in self._views():
            for name, view in parts.items():
                part: Any = self._modules[number]
                next(part[name].parameters()).data = view
        return self

    def forward(
        self,
        hidden_states: Float[Tensor, "token d"],
        top_k_index: Int[Tensor, "token chosen"],
        top_k_weights: Float[Tensor, "token chosen"],
    ) -> Float[Tensor, "token d"]:
        chosen = self.hook_chosen(top_k_index)
        out = torch.zeros_like(hidden_states)
        for number in chosen.unique().tolist():
            expert: Any = self._modules[str(number)]
            token, rank = (chosen == number).nonzero(as_tuple=True)
            x = hidden_states[token]
            y = expert["out"](self.act_fn(expert["gate"](x)) * expert["in"](x)) * top_k_weights[token, rank, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out

    def stacked(self) -> Iterator[nn.Parameter]:
        """The tensors of all experts, which nothing computes with any more."""
        return (getattr(self._original_component, name) for name in STORED)


def _linear(weight: Float[Tensor, "d_out d_in"]) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def splittable(stored: Any) -> bool:
    """Whether these are experts as :data:`STORED` says: gate before up, no bias, not transposed, the usual product.

    Others (GPT-OSS, Llama 4) keep transformers' own computation, and are no sites.
    """
    plain = getattr(stored, "has_gate", False) and getattr(stored, "is_concatenated", False)
    odd = any(getattr(stored, name, False) for name in ("has_bias", "is_transposed", "has_post_expert_norm"))
    return plain and not odd and type(stored)._apply_gate.__module__ == "transformers.integrations.moe"


def stored_transposed(stored: Any) -> bool:
    """Whether a stack of matrices is kept as ``[expert, d_in, d_out]``. Llama 4's does not say so."""
    return getattr(stored, "is_transposed", type(stored).__name__ == "Llama4TextExperts")


def experts_of(model: Any) -> list[tuple[int, Experts]]:
    """(layer, its experts) of every layer that has any."""
    found = ((i, getattr(getattr(block, "mlp", None), "experts", None)) for i, block in enumerate(model.blocks))
    return [(layer, experts) for layer, experts in found if isinstance(experts, Experts)]
