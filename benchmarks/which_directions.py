"""How many directions of a natural-gradient edit hold for text that it was not computed from.

    python -m benchmarks.which_directions threats --damping 1

The edit is cut to its best rank k a site in the metric of the retain text, and scaled to the same disruption. To first
order, what it then does to bad and to good completions is a sum over directions, so one pass tells it for every k:

    given     the completions that it was computed from (rises with k: more of the gradient is kept)
    halves    computed from one half of the prompts, seen on the other; mean of both ways
    near      bad and good completions to the near prompts: the tuning part of the tendencies

each as a share of its largest. Ten minutes on one thread beside other work.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hooklearn import linalg, models
from hooklearn.config import parse
from hooklearn.data import Corpus, load_corpus
from hooklearn.edit import Problem
from hooklearn.edit.method import HALVES, Updates
from hooklearn.edit.natural import Metric
from hooklearn.recipes import recipe
from hooklearn.running.setting import Setup

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 576)
SIDES = ("bad", "good")


@dataclass
class Effect:
    """Of an edit cut to each of :data:`RANKS`, summed over sites."""

    squares: Tensor = field(default_factory=lambda: torch.zeros(len(RANKS), dtype=torch.float64))
    """Disruption, to second order."""
    on: dict[str, Tensor] = field(default_factory=dict)

    def add(self, cut: Tensor, seen: Mapping[str, Tensor]) -> None:
        """``cut``: whitened mixture of one site; ``seen``: whitened gradients of the texts that are looked at."""
        u, s, vh = torch.linalg.svd(cut, full_matrices=False)
        last = [min(k, len(s)) - 1 for k in RANKS]
        self.squares += s.double().square().cumsum(0)[last]
        for name, h in seen.items():
            along = (s * torch.einsum("ik,ij,kj->k", u, h, vh)).double().cumsum(0)[last]
            self.on[name] = self.on.get(name, torch.zeros_like(along)) + along

    def at_equal_disruption(self, name: str) -> Tensor:
        effect = self.on[name] / self.squares.sqrt()
        return effect / effect.abs().max()


def effects(name: str, damping: float, weight: float) -> pd.DataFrame:
    """One row per rank: what is left of the effect on each text at the same disruption."""
    setup = Setup.load(parse(recipe(name)), Path(), lambda _: None)
    c = setup.corpora
    near = load_corpus(name=name, options={"part": "near"})

    def gradients(bad: Corpus, good: Corpus) -> dict[str, Updates]:
        asked = Problem(setup.original, models.sites(setup.original, "mlp"), bad, good, max_tokens=512)
        return {"bad": asked.gradient("forget"), "good": asked.gradient("retain")}

    bad, good = (list(c[role].split(**dict.fromkeys(HALVES, 1.0)).values()) for role in ("forget", "retain"))
    texts = {f"half {i}": gradients(bad[i], good[i]) for i in range(2)}
    texts["near"] = gradients(near, near.alternatives())
    texts["given"] = {
        side: {s: texts["half 0"][side][s] + texts["half 1"][side][s] for s in texts["near"][side]} for side in SIDES
    }
    every = {f"{text}: {side}": found for text, sides in texts.items() for side, found in sides.items()}
    metric = Metric(
        Problem(setup.original, models.sites(setup.original, "mlp"), c["forget"], c["retain"], c["reference"],
                max_tokens=512),
        damping,
    )  # fmt: skip
    sizes = dict.fromkeys(every, 0.0)
    for site, x, g in metric.factors():
        for text, gradient in every.items():
            sizes[text] += float(linalg.whitened(gradient[site], x, g).double().square().sum())
    edits = {text: Effect() for text in texts}
    for site, x, g in metric.factors():
        seen = {text: linalg.whitened(gradient[site], x, g) for text, gradient in every.items()}
        for text in ("given", "half 0", "half 1"):
            down, up = (seen[f"{text}: {side}"] / math.sqrt(sizes[f"{text}: {side}"]) for side in SIDES)
            edits[text].add(weight * down - up, seen)
    columns = {}
    for side in SIDES:
        crossed = [
            edits[a].at_equal_disruption(f"{b}: {side}") for a, b in (("half 0", "half 1"), ("half 1", "half 0"))
        ]
        columns |= {
            f"given: {side}": edits["given"].at_equal_disruption(f"given: {side}"),
            f"halves: {side}": sum(crossed) / 2,
            f"near: {side}": edits["given"].at_equal_disruption(f"near: {side}"),
        }
    return pd.DataFrame({"rank": RANKS} | {name: values.numpy() for name, values in columns.items()})


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=["threats", "flattery"])
    parser.add_argument("--damping", type=float, default=1.0)
    parser.add_argument("--weight", type=float, default=0.3, help="bad down so much for good up 1")
    asked = parser.parse_args(given)
    for name in asked.recipes:
        started = time.perf_counter()
        print(name)
        print(effects(name, asked.damping, asked.weight).to_string(index=False, float_format="{:.3f}".format))
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
