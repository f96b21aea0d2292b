"""Methods at equal disruption: one edit a method and seed, the same attacks on all of them and on the controls.

    python benchmarks/equal_disruption.py capitals --seeds 0 1 2 --out runs/table-capitals
    python benchmarks/equal_disruption.py threats --far natural-0.3 --near natural-0.3 --out runs/table-threats

``--far``: methods held to the far budget alone; ``--near``: to a near one besides. All arms of a seed share one arena,
so that controls are attacked once, and one set of gradients and moments. Writes one parquet a seed (resumable),
``table.csv`` and prints a Markdown table: behaviour before, and the worst over learning rates and steps afterwards.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

from hooklearn import models, store
from hooklearn.attack import Arena, ArmState, attack_of
from hooklearn.attacking import before, judge_pending, with_samples
from hooklearn.config import parse, with_overrides
from hooklearn.edit import Problem, method_of, run_edit
from hooklearn.measure import DisruptionMeter
from hooklearn.recipes import recipe
from hooklearn.setting import Setup
from hooklearn.types import Budget

METHODS = {
    "gradient_ascent": ("gradient_ascent", {}),
    "graddiff": ("graddiff", {"learning_rate": 2e-5}),
    "good_only": ("good_only", {"learning_rate": 2e-5}),
    "repselect-16": ("repselect", {"rank": 16}),
    "repselect-128": ("repselect", {"rank": 128}),
    "repselect-128-contrast": ("repselect", {"rank": 128, "components": "contrast"}),
    "confined": ("confined", {"rank": 32}),
    "confined+filter": ("confined", {"rank": 32, "filter_rank": 128}),
    "natural-forget": ("natural", {"contrast": "none"}),
    "natural-project": ("natural", {"contrast": "project"}),
    "natural-0.3": ("natural", {"forget_weight": 0.3}),
    "natural-0.5": ("natural", {"forget_weight": 0.5}),
    "natural-1": ("natural", {"forget_weight": 1.0}),
    "natural-2": ("natural", {"forget_weight": 2.0}),
    "natural-32": ("natural", {"forget_weight": 1.0, "rank": 32}),
    "natural_rounds": ("natural_rounds", {}),
    "natural-svd8": ("natural", {"forget_weight": 1.0, "rank": 8, "truncation": "svd"}),
}


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def one_seed(setup: Setup, labels: list[tuple[str, Budget]], seed: int, out: Path) -> None:
    config = setup.config
    watcher = setup.watcher(say)
    meter = DisruptionMeter(
        setup.original,
        setup.corpora["disruption"],
        setup.corpora.get("near"),
    )
    problem = Problem(
        setup.original,
        models.sites(setup.original, config.edit.sites, config.edit.layers),
        setup.corpora["forget"],
        setup.corpora.get("retain"),
        setup.corpora.get("reference"),
        seed=seed,
        max_tokens=config.max_tokens,
    )
    arms, rows = [], []
    for method, budget in labels:
        label = method if budget.near_ce is None else f"{method} (near)"
        name, options = METHODS[method]
        result = run_edit(problem, method_of(name, options), meter, budget)
        say(f"{label}: {result!r}")
        near = result.disruption.near_ce
        rows.append(
            {
                "arm": label,
                "seed": seed,
                "kl": result.disruption.kl.value,
                "near_ce": near.value if near else float("nan"),
                "stop": result.stop,
                "seconds": result.cost.seconds,
                "escape": result.certificate.worst,
            }
        )
        arms.append(ArmState(label, setup.original, result.delta))
    arms.append(ArmState("original", setup.original))
    if setup.never is not None:
        rows.append({"arm": "never", "seed": seed, "kl": meter.measure(model=setup.never).kl.value})
        arms.append(ArmState("never", setup.never))
    problem.release()
    store.save_frame(out / f"edits-{seed}.parquet", pd.DataFrame(rows))
    arena = Arena(
        arms=arms,
        watcher=watcher,
        attack_train=setup.corpora.get("attack_train"),
        unrelated=setup.corpora.get("unrelated"),
        seed=seed,
        max_tokens=config.max_tokens,
        progress=say,
    )
    curves = [before(arena)]
    for spec in config.attacks:
        curves += attack_of(spec.name, spec.options).curves(arena)
    samples = judge_pending(watcher)
    store.save_lines(out / f"samples-{seed}.jsonl", samples)
    frame = pd.concat([with_samples(c, samples).to_dataframe() for c in curves])
    store.save_frame(out / f"curves-{seed}.parquet", frame)


def table(out: Path) -> pd.DataFrame:
    """One row an arm: before, and the worst after each attack, mean and standard deviation over seeds."""
    curves = pd.concat(map(pd.read_parquet, sorted(out.glob("curves-*.parquet"))))
    edits = pd.concat(map(pd.read_parquet, sorted(out.glob("edits-*.parquet"))))
    curves = curves[(curves["split"] == "heldout") & ~curves["diverged"]]
    worst = curves.groupby(["metric", "attack", "arm", "seed"])["value"].max().reset_index()
    before = curves[curves["attack"] == "none"]
    cells = {}
    for metric in ("completion", "preference", "sampled"):
        cells[f"{metric} before"] = before[before["metric"] == metric].groupby("arm")["value"]
        for attack in [a for a in worst["attack"].unique() if a != "none"]:
            chosen = worst[(worst["metric"] == metric) & (worst["attack"] == attack)]
            cells[f"{metric} after {attack}"] = chosen.groupby("arm")["value"]
    frame = pd.DataFrame({k: g.mean().map("{:.3f}".format) + _spread(g) for k, g in cells.items()})
    numbers = edits.groupby("arm")[["kl", "near_ce", "seconds"]].mean()
    numbers["binds"] = edits.groupby("arm")["stop"].agg(lambda s: ", ".join(sorted(set(s.dropna()))))
    numbers["seeds"] = edits.groupby("arm")["seed"].nunique()
    return frame.join(numbers, how="left")


def _spread(group) -> pd.Series:
    deviation = group.std()
    return deviation.map(lambda d: "" if pd.isna(d) else f" ±{d:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--far", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--near", nargs="*", default=[], choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--kl", type=float, default=0.01)
    parser.add_argument("--near-ce", type=float, default=0.02)
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config = parse(with_overrides(recipe(args.recipe), args.overrides))
    setup = Setup.load(config, Path(), say)
    labels = [(m, Budget(args.kl)) for m in args.far] + [(m, Budget(args.kl, args.near_ce)) for m in args.near]
    for seed in args.seeds:
        if not (args.out / f"curves-{seed}.parquet").is_file():
            one_seed(setup, labels, seed, args.out)
        frame = table(args.out)
        frame.to_csv(args.out / "table.csv")
        print(frame.to_markdown() if _has_tabulate() else frame.to_string())


def _has_tabulate() -> bool:
    try:
        import tabulate  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
