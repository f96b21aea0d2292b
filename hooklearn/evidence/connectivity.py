"""Linear mode connectivity: is there a barrier between the edited and the original weights?

Loss along ``(1 - t) edited + t original`` minus the straight line between its ends; its maximum is the barrier
(Frankle et al. 2020; as a sign of dormant knowledge: arXiv 2505.22310). Reported only: an edit within a small
disruption budget never goes far enough to meet one, so that no barrier proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooklearn import forward, models
from hooklearn.attack import ArmState
from hooklearn.data import Corpus, Encoded, encode
from hooklearn.evidence import nulls
from hooklearn.evidence.bench import Bench
from hooklearn.evidence.nulls import Array
from hooklearn.evidence.types import WHOLE, Evidence, detail
from hooklearn.types import NAN, Score

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
TEXTS = 16
"""Few: each of the random steps behind the null costs four evaluations."""

Weights = Mapping[str, Tensor]


def weights_of(arm: ArmState, unlike: Weights | None = None) -> dict[str, Tensor]:
    """Copies of an arm's parameters; only of those that are not the same as in ``unlike``."""
    with arm.entered(training=False) as model:
        found = {n: p.detach() for n, p in models.named_parameters(model).items()}
        return {n: p.clone() for n, p in found.items() if unlike is None or not torch.equal(p, unlike[n])}


def item_losses(model: Any, sequences: list[Encoded]) -> Array:
    """``[item]`` nats per token."""
    scores = forward.sequence_logprobs(model, sequences, precision="float32")
    return (-scores[:, 0] / scores[:, 1]).numpy()


def path(arm: ArmState, start: Weights, corpus: Corpus, points: Sequence[float] = POINTS) -> Array:
    """``[point, item]`` losses on the straight line from ``start`` (0) to the arm (1), which is left as it was.

    Args:
        start: the parameters that differ from the arm's.
    """
    rows = []
    with arm.entered(training=True) as model, torch.no_grad():
        sequences = encode(corpus, models.tokenizer_of(model))
        moving = {n: p for n, p in models.named_parameters(model).items() if n in start}
        end = {n: p.detach().clone() for n, p in moving.items()}
        for t in points:
            for name, parameter in moving.items():
                parameter.copy_(torch.lerp(start[name].to(parameter), end[name], t))
            rows.append(item_losses(model, sequences))
    return np.stack(rows)


def barrier(losses: Array, points: Sequence[float] = POINTS) -> tuple[float, int]:
    """(highest rise of the mean loss above the line between the ends, its index); 0 where there is none.

    Args:
        losses: ``[point, item]``, or ``[point]``.
    """
    mean = losses.reshape(len(points), -1).mean(1)
    t = np.array(points)
    rise = mean - ((1 - t) * mean[0] + t * mean[-1])
    at = int(rise.argmax())
    return float(max(0.0, rise[at])), at


def jittered(weights: Weights, towards: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """A random step from ``weights`` as long, parameter by parameter, as the one to ``towards``."""
    out = {}
    for name, other in towards.items():
        length = float((other.double() - weights[name].double()).norm())
        noise = torch.randn(other.shape, generator=generator).to(other)
        out[name] = weights[name] + noise * (length / float(noise.norm()))
    return out


def connectivity(bench: Bench) -> list[Evidence]:
    """The barrier on the held-out behaviour, for every arm in the detail."""
    arms = [a for a in ("edited", "never", "relearned") if a in bench.arms]
    original = weights_of(bench.original)
    corpus = bench.heldout.take(TEXTS)
    rows, found = [], {}
    for arm in arms:
        bench.progress(f"evidence: along the line from {arm} to original")
        found[arm] = path(bench.original, weights_of(bench.arms[arm], original), corpus)
        rows += [_row(arm, t, of_t, corpus.groups) for t, of_t in zip(POINTS, found[arm], strict=True)]
    value, _ = barrier(found["edited"])
    # the barrier of every resample: where the mean has none another draw of items may
    weights = nulls.resamples(corpus.groups, nulls.BOOTSTRAPS, bench.rng("connectivity"))
    again = np.array([barrier(mean)[0] for mean in weights @ found["edited"].T])
    generator = torch.Generator().manual_seed(bench.seed)
    null = []
    edited = weights_of(bench.arms["edited"], original)
    end = found["edited"][-1:]
    for i in range(bench.random_lines):
        bench.progress(f"evidence: along random lines, {i + 1} of {bench.random_lines}")
        along = path(bench.original, jittered(original, edited, generator), corpus, POINTS[:-1])
        null.append(barrier(np.concatenate([along, end]))[0])
    return [
        Evidence(
            "connectivity", value, tuple(null), nulls.spread(again), len(set(corpus.groups)), "high",
            "0: the loss on the behaviour falls without a barrier on the straight way back to the original, as it "
            "does after any small edit; a barrier would mean that the edit left the original's basin",
            detail=detail(rows), null_meaning="steps of the same length in random directions",
        )
    ]  # fmt: skip


def _row(arm: str, t: float, losses: Array, groups: Sequence[str]) -> dict[str, Any]:
    score = Score.of(torch.from_numpy(losses), groups)
    return {
        "site": f"{WHOLE} {t:.2f} of the way", "layer": -1, "arm": arm, "value": score.value, "null": NAN,
        "stderr": score.stderr, "n": score.n, "t": t,
    }  # fmt: skip
