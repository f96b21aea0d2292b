"""The model card of an edited model: ``README.md``, as the Hugging Face hub shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from analysis.reading import Run
from analysis.style import METRICS


def card_text(run: Run, body: str) -> str:
    """``body`` (markdown) under the metadata that the hub reads: base model, tags, and the measured results."""
    from huggingface_hub import ModelCard, ModelCardData

    name = str((run.record.get("model") or {}).get("name") or "")
    results = _results(run)
    data = ModelCardData(
        model_name=run.name if results else None,
        base_model=name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) else None,  # as the hub names models
        library_name="transformers",
        tags=["unlearning", "model-editing", "hooklearn"],
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}"))


def _results(run: Run) -> list[Any]:
    """One result a metric: the edited model on held-out items before any attack, mean over seeds."""
    from huggingface_hub import EvalResult

    heldout: Mapping[str, Any] = (run.record.get("corpora") or {}).get("heldout") or {}
    rows: Any = run.curves
    rows = rows[(rows["attack"] == "none") & (rows["arm"] == "edited") & (rows["split"] == "heldout")]
    means = rows.groupby("metric")["value"].mean().dropna()
    return [
        EvalResult(
            task_type="text-generation", dataset_type="heldout",
            dataset_name=str(heldout.get("source") or "held-out items"),
            metric_type=metric, metric_name=METRICS.get(metric, metric), metric_value=round(float(value), 6),
        )
        for metric, value in means.items()
    ]  # fmt: skip
