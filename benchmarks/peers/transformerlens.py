"""TransformerLens as its documentation teaches it: hooks on names, a cache, ``return_type="loss"``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.peers.huggingface import Padded


def cache(
    model: Any, names: Sequence[tuple[str, str]], stream: Sequence[Padded], autocast: Any
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Inputs and output gradients of the named hook points, batch by batch; the mean loss over labelled tokens.

    Args:
        names: (input hook, output hook) of every site.
    """
    out = []
    for batch in stream:
        x: dict[str, Tensor] = {}
        g: dict[str, Tensor] = {}

        def keep(into: dict[str, Tensor]):
            def hook(value: Tensor, hook: Any) -> None:
                into[hook.name] = value.detach()

            return hook

        fwd = [(a, keep(x)) for a, _ in names]
        bwd = [(b, keep(g)) for _, b in names]
        with model.hooks(fwd_hooks=fwd, bwd_hooks=bwd), autocast():
            scores = model(batch["input_ids"].to(model.cfg.device), attention_mask=batch["attention_mask"])
            wanted = batch["labels"][:, 1:] != -100
            picked = scores[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
            loss = -picked[wanted].sum()
            loss.backward()
        model.zero_grad()
        out.append((x, g))
    return out
