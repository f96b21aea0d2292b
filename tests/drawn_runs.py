"""Synthetic run folders (``docs/run-folder.md``) and score arrays, drawn from curves by hand.

    write_run(folder)                                            # everything in it, REMOVED
    write_run(folder, arms={"edited": [0, .2, .6], "original": [.8] * 3, "never": [.1] * 3})
    write_run(folder, attacks=[Drawn("erosion", {...}), Drawn("relearn", {...}, cheap=False)])

A curve is the behaviour of one arm after ``steps``. Per-item scores scatter around it so that their
mean is on the curve; ``sampled`` is yes or no, ``completion`` is a fifth of the curve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from analysis.scores import Attacker, Scores

STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
METRICS = ("completion", "preference", "sampled")
SCALE = {"completion": 0.2, "preference": 1.0, "sampled": 1.0}
"""Completion probabilities are small; verdicts must not care."""

Curves = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Drawn:
    """One attack with one setting, drawn by hand: arm -> behaviour after each step."""

    name: str
    arms: Curves
    setting: str = ""
    cheap: bool = True
    converged: bool = True
    diverged: bool = False
    past_best: bool = False
    steps: Sequence[int] | None = None
    """None: the first of ``STEPS``, as many as the curve has points."""

    def at(self) -> Sequence[int]:
        return self.steps or STEPS[: max(len(curve) for curve in self.arms.values())]


def flat(value: float, n: int = len(STEPS)) -> list[float]:
    return [value] * n


def rising(start: float, end: float, n: int = len(STEPS)) -> list[float]:
    return np.linspace(start, end, n).tolist()


def battery() -> list[Drawn]:
    """A removal: cheap attacks do nothing, relearning takes as long as never having learned."""
    controls = {"original": flat(0.8), "never": flat(0.1)}
    few_shot = {"original": [0.85], "never": [0.15], "edited": [0.15]}
    relearn = {"original": rising(0.8, 0.9), "never": rising(0.1, 0.85)}
    relearn |= {"edited": rising(0.1, 0.8), "matched": rising(0.1, 0.81)}
    return [
        *(Drawn("erosion", controls | {"edited": flat(0.1)}, s) for s in ("lr=0.0001", "lr=0.001")),
        Drawn("few-shot", few_shot),
        *(Drawn("relearn", relearn, s, cheap=False) for s in ("lr=0.0001", "lr=0.001")),
    ]


# ------------------------------------------------------------------------------------ item scores


def item_scores(
    curve: Sequence[float], metric: str, arm: str, *, seeds: int = 3, items: int = 40,
    noise: float = 0.1, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """``[seed, step, item]`` around a curve: ``noise``: an item's own relative spread."""
    level = np.asarray(curve, float)[None, :, None] * SCALE[metric]
    of_arm = np.random.default_rng([seed, *metric.encode(), *arm.encode()])
    if metric == "sampled":
        chance = (np.stack([of_arm.permutation(items) for _ in range(seeds)]) + 0.5) / items
        return np.where(np.isnan(level), np.nan, level > chance[:, None, :])
    of_item = np.random.default_rng([seed, *metric.encode()]).normal(size=(1, 1, items))
    scatter = of_item + of_arm.normal(size=(seeds, 1, items))
    scatter -= scatter.mean(-1, keepdims=True)
    return level * (1 + noise * scatter)


def draw_scores(
    attacks: Sequence[Drawn] | Curves, *, metric: str = "preference", before: Curves | None = None,
    split: str = "heldout", **how: Any,
) -> Scores:  # fmt: skip
    """Curves as the arrays that ``decide`` judges, without files; ``how``: see ``item_scores``."""
    if isinstance(attacks, Mapping):
        attacks = [Drawn("erosion", attacks)]

    def arrays(arms: Curves) -> dict[str, np.ndarray]:
        return {arm: item_scores(curve, metric, arm, **how) for arm, curve in arms.items()}

    start = arrays(before or starts(attacks))
    attackers = tuple(
        Attacker(a.name, np.asarray(a.at(), float), arrays(a.arms), a.setting, a.cheap,
                 a.converged, a.diverged, a.past_best)
        for a in attacks
    )  # fmt: skip
    return Scores(metric, split, {arm: y[:, 0] for arm, y in start.items()}, attackers)


def starts(attacks: Sequence[Drawn]) -> Curves:
    """Attack ``none``: where the first attack that has steps begins."""
    first = next((a for a in attacks if len(a.at()) > 1), attacks[0])
    return {arm: curve[:1] for arm, curve in first.arms.items()}


# -------------------------------------------------------------------------------------- run folder


def write_run(
    folder: Path | str, *, arms: Curves | None = None, attacks: Sequence[Drawn] | None = None,
    before: Curves | None = None, metrics: Sequence[str] = METRICS,
    splits: Sequence[str] = ("heldout", "ood"), seeds: Sequence[int] = (0, 1, 2),
    items: int = 60, noise: float = 0.1, seed: int = 0, **record: Any,
) -> Path:  # fmt: skip
    """Write a whole run folder; ``record`` replaces fields of ``run.json``. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    attacks = attacks or ([Drawn("erosion", arms)] if arms else battery())
    none = Drawn("none", before or starts(attacks), steps=(0,))
    how = {"items": items, "noise": noise, "seed": seed}
    tables = [_rows(a, metric, split, seeds, how) for a in (none, *attacks) for metric in metrics for split in splits]
    rows = pd.concat(tables, ignore_index=True)
    keys = ["attack", "setting", "cheap", "arm", "seed", "step", "tokens", "metric", "split"]
    keys += ["converged", "diverged"]
    values = rows.groupby(keys, sort=False)["value"]
    curves = pd.DataFrame({"value": values.mean(), "stderr": values.sem(), "n": values.size()})
    curves.loc[values.count() < curves["n"], ["value", "stderr"]] = np.nan
    curves = curves.reset_index()
    curves.to_parquet(folder / "curves.parquet", index=False)
    columns = ["attack", "setting", "arm", "seed", "step", "metric", "split", "item", "value"]
    rows[columns].to_parquet(folder / "items.parquet", index=False)
    _trace(seeds).to_parquet(folder / "trace.parquet", index=False)
    _locate().to_parquet(folder / "locate.parquet", index=False)
    _evidence().to_parquet(folder / "evidence.parquet", index=False)
    _directions().to_parquet(folder / "directions.parquet", index=False)
    _lines(folder / "samples.jsonl", _samples(rows, seeds))
    _lines(folder / "events.jsonl", [{"time": "2026-01-01T00:00:00", "event": "done"}])
    for s in seeds:
        _delta(folder / f"delta-seed{s}.safetensors")
    content = _record(folder.name, attacks, seeds, items) | record
    (folder / "run.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return folder


def _rows(a: Drawn, metric: str, split: str, seeds: Sequence[int], how: dict[str, Any]) -> pd.DataFrame:
    frames = []
    for arm, curve in a.arms.items():
        own = how | {"seed": how["seed"] + (split == "ood")}
        y = item_scores(curve, metric, arm, seeds=len(seeds), **own)
        s, t, i = np.meshgrid(*map(np.arange, y.shape), indexing="ij")
        at = np.asarray(a.at())
        frames.append(
            pd.DataFrame(
                {
                    "attack": a.name, "setting": a.setting, "cheap": a.cheap, "arm": arm,
                    "seed": np.asarray(seeds)[s.ravel()], "step": at[t.ravel()],
                    "tokens": 256 * at[t.ravel()], "metric": metric, "split": split,
                    "item": i.ravel(), "value": y.ravel().astype(float),
                    "converged": a.converged, "diverged": a.diverged,
                }
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _record(name: str, attacks: Sequence[Drawn], seeds: Sequence[int], items: int) -> dict[str, Any]:
    by_name = {a.name: a for a in attacks}
    listed = [
        {
            "name": n, "cheap": a.cheap, "summary": f"{n}, drawn by hand",
            "settings": [b.setting for b in attacks if b.name == n], "budget": None,
        }
        for n, a in by_name.items()
    ]  # fmt: skip
    config = {"battery": "standard", "seeds": list(seeds)}
    has_never = any("never" in a.arms for a in attacks)
    return {
        "schema_version": 1, "name": name, "status": "done", "error": None,
        "command": f"hooklearn run {name}", "started": "2026-01-01T00:00:00",
        "finished": "2026-01-01T00:10:00", "seconds": 600.0,
        "config_given": config, "config": config,
        "environment": {"python": "3.11", "device": "cpu", "dtype": "float32", "threads": 1},
        "model": {"name": "tiny", "hash": "0" * 64, "parameters": 1000,
                  "d_model": 8, "n_layers": 2},
        "organism": None,
        "never": {"kind": "model", "name": "never"} if has_never else None,
        "corpora": {
            role: {"source": f"{role}.jsonl", "hash": role * 4, "n": items}
            for role in ("forget", "retain", "near", "disruption", "heldout", "ood")
        },
        "seeds": list(seeds),
        "edits": [edit(s) for s in seeds],
        "yardsticks": {"never": {"kl": 0.004, "ce": 0.001, "near_ce": 0.0}},
        "referee": {
            "kind": "instilled", "threshold": 0.0, "auc": 0.99, "n": items,
            "median_bad": 2.0, "median_good": -2.0,
        },
        "attacks": listed,
        "cost": {"seconds": 600.0, "tokens": 100_000, "flops": 1e12, "peak_bytes": 2**30},
    }  # fmt: skip


def edit(seed: int = 0, *, kl: float = 0.0098, near_ce: float | None = 0.01, **other: Any) -> Any:
    """One entry of ``edits``."""
    return {
        "seed": seed, "method": "repselect", "options": {}, "summary": "drawn by hand",
        "stop": "budget (kl)", "binding": "kl",
        "disruption": {
            "kl": kl, "kl_stderr": 0.0002, "kl_n": 64, "ce": 0.003,
            "near_ce": near_ce, "near_ce_stderr": 0.002, "near_ce_n": 64,
        },
        "budget": {"kl": 0.01, "near_ce": 0.05}, "within_budget": kl <= 0.01,
        "certificate": {"promise": "", "worst": None, "site": None},
        "cost": {"seconds": 12.0, "tokens": 5000, "flops": 1e11, "peak_bytes": 2**29},
    } | other  # fmt: skip


def _trace(seeds: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "seed": s, "step": k, "scale": 1.0, "tokens": 500 * k, "seconds": float(k),
            "kl": 0.0098 * k / 10, "near_ce": 0.01 * k / 10, "forget": 0.16 * 0.8**k,
        }
        for s in seeds
        for k in range(11)
    )  # fmt: skip


def _locate() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "site": f"blocks.{layer}.{module}", "layer": layer, "module": module, "side": side,
            "fitter": "contrast", "rank": 4, "auc": 0.7 + 0.1 * layer, "auc_shuffled": 0.5,
            "auc_random": 0.55, "forget_energy": 0.6, "retain_energy": 0.2, "random_energy": 0.1,
        }
        for layer in range(2)
        for module in ("mlp.gate", "mlp.out")
        for side in ("x", "g")
    )  # fmt: skip


def _directions() -> pd.DataFrame:
    """Forget text has most of its energy along the located components, the edit some; the attacker has none of it."""
    columns = ["site", "layer", "module", "side", "of", "arm", "step", "along", "component", "share", "width"]
    first = {"forget": 0.5, "retain": 0.02, "edit": 0.2, "attack": 0.01}
    things = [("forget", "original", 0), ("retain", "original", 0), ("edit", "edited", 0)]
    things += [("attack", arm, step) for arm in ("edited", "original", "never") for step in STEPS[1:]]
    rows = []
    for layer in range(2):
        place = (f"blocks.{layer}.mlp.out", layer, "mlp.out", "x")
        for of, arm, step in things:
            rows += [(*place, of, arm, step, "located", i, first[of] / (1 + i), 128) for i in range(4)]
            steep = 0.9 - 0.8 * first[of]  # what has much in few directions falls fast
            rows += [(*place, of, arm, step, "own", i, (1 - steep) * steep**i, 128) for i in range(16)]
        for arm, start, end in (("original", 1.0, 0.9), ("edited", 0.15, 0.5 + 0.3 * layer), ("never", 0.1, 0.4)):
            for step, whole in zip(STEPS, rising(start, end), strict=True):
                rows += [(*place, "classes", arm, step, "located", i, whole / 4, 128) for i in range(4)]
    return pd.DataFrame(rows, columns=columns)


def _evidence() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": kind, "site": f"blocks.{layer}.mlp.out", "layer": layer, "arm": arm,
            "value": {"original": 0.95, "edited": 0.6, "never": 0.55}[arm], "null": 0.5,
            "stderr": 0.03, "n": 40, "meaning": "AUC; null: shuffled labels",
        }
        for kind in ("probe_transfer", "probe_retrained", "logit_lens", "patching_depth")
        for layer in range(2)
        for arm in ("original", "edited", "never")
    )  # fmt: skip


def _samples(rows: pd.DataFrame, seeds: Sequence[int]) -> list[dict[str, Any]]:
    sampled = rows[(rows["metric"] == "sampled") & (rows["split"] == "heldout")]
    first = sampled[(sampled["item"] < 4) & (sampled["seed"] == seeds[0])]
    return [
        {
            "arm": r.arm, "attack": r.attack, "setting": r.setting, "step": int(r.step),
            "seed": int(r.seed), "item": int(r.item), "prompt": f"What about number {r.item}?",
            "completion": f"The {r.arm} model says <b>{'yes' if r.value else 'no'}</b> & more.",
            "referee": 2.0 if r.value else -2.0, "is_behaviour": bool(r.value),
        }
        for r in first.itertuples()
    ]  # fmt: skip


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _delta(path: Path) -> None:
    updates = {"blocks.0.mlp.out": np.full((8, 16), 1e-3, np.float32)}
    metadata = {"kind": "delta", "version": "1", "base": "tiny", "base_hash": "0" * 64}
    save_file(updates, path, metadata | {"tensor_order": json.dumps(list(updates))})
