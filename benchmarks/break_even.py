"""How much bad down is bearable: what two halves of the retain text foretell, beside what the near set says.

    python benchmarks/break_even.py schoolbook capitals threats flattery --damping 0.01 0.1 1

The weight of the forget gradient (``natural``'s ``forget_weight``) at which good text of the same form that the edit
has not seen begins to suffer, to first order: by cross-fitting (what ``contrast: balanced`` uses), and by the gradient
of the near set itself, which no method may look at. Two minutes a recipe on two cores.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import pandas as pd

from hooklearn import models
from hooklearn.config import parse
from hooklearn.edit import Problem
from hooklearn.edit.method import HALVES, inner
from hooklearn.edit.natural import Metric, Products
from hooklearn.recipes import recipe
from hooklearn.running.setting import Setup


def break_evens(name: str, dampings: list[float]) -> pd.DataFrame:
    """One row per damping."""
    setup = Setup.load(parse(recipe(name)), Path(), lambda _: None)
    corpora = setup.corpora

    def problem(retain: str) -> Problem:
        sites, most = models.sites(setup.original, "mlp"), setup.config.max_tokens
        text = corpora["forget"], corpora[retain], corpora["reference"]
        return Problem(setup.original, sites, *text, max_tokens=most)

    given, near = problem("retain"), problem("near").gradient("retain")
    gradients = [given.gradient(of) for of in ("forget", *HALVES)]
    rows = []
    for damping in dampings:
        products, down, up = Products(), 0.0, 0.0
        for site, solved in Metric(given, damping).solved(*gradients):
            products.add([g[site] for g in gradients], solved)
            down += inner({site: near[site]}, {site: solved[0]})
            up += inner({site: near[site]}, {site: solved[1] + solved[2]})
        by_near = up / down * math.sqrt(products.forget_down / products.retain_up)
        rows.append({"recipe": name, "damping": damping, "by halves": products.break_even(), "by near set": by_near})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="schoolbook, capitals, threats, flattery")
    parser.add_argument("--damping", nargs="+", type=float, default=[0.01])
    asked = parser.parse_args()
    for name in asked.recipes:
        started = time.perf_counter()
        print(break_evens(name, asked.damping).to_string(index=False, float_format="{:.3g}".format))
        print(f"({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
