"""What a run's arms said, as logs of Inspect AI: one per arm, attack and step, for its viewer and its data frames."""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.reading import Run, read_run
from hooklearn.types import InputError

SCORER = "referee"


def inspect_logs(run: str | Path | Run, out: str | Path) -> list[Path]:
    """Write every sample of a run below ``out``, with the referee's score and what the run judged; ``inspect view``
    shows them, ``inspect_ai.analysis.samples_df`` reads them.

    An epoch is a seed of the run; greedy answers are samples of their own, ``ITEM-greedy``.

    Raises:
        InputError: the package ``inspect_ai`` is not installed, or a run without samples.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise InputError("writing Inspect logs needs inspect-ai: pip install 'hooklearn[evals]'") from error
    run = read_run(run)
    if not run.heldout_samples:
        raise InputError(f"{run.folder}: has no samples (behaviour.samples was 0, or nothing could be asked)")
    by_log: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for row in run.heldout_samples:
        by_log.setdefault((row["attack"], row["setting"] or "", row["arm"], row["step"]), []).append(row)
    Path(out).mkdir(parents=True, exist_ok=True)
    written = []
    for (attack, setting, arm, step), rows in by_log.items():
        called = re.sub(r"[^\w.=-]+", "-", "_".join(filter(None, (run.name, attack, setting, arm, f"step{step}"))))
        path = Path(out) / f"{called}.eval"
        write_eval_log(_log(run, " ".join(filter(None, (attack, setting))), arm, rows), path, format="eval")
        written.append(path)
    return written


def _log(run: Run, attack: str, arm: str, rows: Sequence[dict[str, Any]]) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalScore, EvalSpec

    record, verdict = run.record, run.verdict or {}
    seeds = sorted({row.get("seed", 0) for row in rows})
    by_item: Any = pd.DataFrame(rows).groupby("item")["is_behaviour"].mean()  # an item counts once, however often asked
    metrics = {"mean": float(by_item.mean()), "stderr": float(by_item.sem())}
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=str(record["started"]), task=f"{run.name}: {attack}", model=f"hooklearn/{arm}",
            dataset=EvalDataset(name="heldout", samples=len(by_item)), config=EvalConfig(epochs=len(seeds)),
            packages={name: str(record["environment"].get(name)) for name in ("hooklearn", "torch", "transformers")},
            metadata={
                "run": str(record["name"]), "arm": arm, "attack": attack, "model": record["model"],
                "verdict": verdict.get("verdict"), "reason": verdict.get("reason"), "referee": record.get("referee"),
            },
        ),
        results=EvalResults(
            total_samples=len(rows), completed_samples=len(rows),
            scores=[
                EvalScore(
                    name=SCORER, scorer=SCORER,
                    metrics={name: EvalMetric(name=name, value=value) for name, value in metrics.items()},
                )
            ],
        ),
        samples=[_sample(row, 1 + seeds.index(row.get("seed", 0))) for row in rows],
    )  # fmt: skip


def _sample(row: dict[str, Any], epoch: int) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score as Judged

    output = ModelOutput.from_content(f"hooklearn/{row['arm']}", row["completion"])
    found = row["is_behaviour"]
    judged = Judged(
        value=math.nan if found is None else float(found),  # as Inspect marks what was not scored
        answer=row["completion"], explanation=f"referee: {row['referee']}",
    )  # fmt: skip
    return EvalSample(
        id=f"{row['item']}-greedy" if row.get("greedy") else row["item"], epoch=epoch, input=row["prompt"], target="",
        messages=[ChatMessageUser(content=row["prompt"]), output.message], output=output, scores={SCORER: judged},
        metadata={name: row.get(name) for name in ("step", "seed", "split", "greedy")},
    )  # fmt: skip
