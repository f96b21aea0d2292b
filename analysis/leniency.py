"""Would a referee that is a little stricter, or more lenient, have led to the same verdict?

The threshold of a likelihood ratio lies half way between the medians of held-out bad and good completions. Which
completions those are moves it by more than nothing, and samples of an edited model lie close to it. Their scores are
kept (``samples.jsonl``), so the same samples can be judged again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from analysis.arrays import Courses, read_scores
from analysis.estimates import Frame
from analysis.measures import Thresholds
from analysis.reading import Run
from analysis.rules import Judgement, decide
from analysis.tables import number

SHARE = 0.1
"""Of the way between the two medians, up and down."""
KEYS = ["attack", "setting", "arm", "seed", "step", "item"]
"""What tells the samples of a run from each other."""


def doubts(run: Run, judged: Sequence[Judgement], t: Thresholds, known: Courses, seed: int = 0) -> Iterator[str]:
    """One sentence for each direction in which the verdict on held-out samples would change."""
    mine = [j for j in judged if (j.measures.metric, j.measures.split) == ("sampled", "heldout")]
    referee = run.record.get("referee") or {}
    threshold, bad, good = (number(referee.get(k)) for k in ("threshold", "median_bad", "median_good"))
    way = SHARE * (bad - good)
    if not mine or not run.heldout_samples or not np.isfinite([threshold, way]).all():
        return
    rows, kept = _scored(run)
    for shift, word in ((-way, "more lenient"), (way, "stricter")):
        items = _judged(rows, kept, threshold + shift)
        again = decide(read_scores(dataclasses.replace(run, items=items), known)[0], t, seed=seed)
        if again.verdict != mine[0].verdict:
            yield (
                f"sampled: a {word} referee (threshold {threshold + shift:.2f} in place of {threshold:.2f} nats per "
                f"token) would make it {again.verdict}: {again.reason}"
            )


def at_threshold(run: Run, threshold: float) -> Run:
    """The run with nothing but its held-out samples, judged again by their scores.

    Items of which no score was kept (an attack that asks for the worst of several draws) stay as they are.
    """
    return dataclasses.replace(run, items=_judged(*_scored(run), threshold))


def _scored(run: Run) -> tuple[Frame, list[list[float] | None]]:
    """The rows of held-out samples, and the referee's scores of each: None where none was kept."""
    scores: dict[tuple[Any, ...], list[float]] = {}
    for s in run.heldout_samples:
        scores.setdefault(tuple(s.get(k) or "" for k in KEYS), []).append(number(s.get("referee")))
    rows: Frame = run.items[(run.items["metric"] == "sampled") & (run.items["split"] == "heldout")]
    keys = zip(*(rows[k].tolist() for k in KEYS), strict=True)  # rows of a frame are slow to walk along
    return rows, [scores.get(tuple(v or "" for v in key)) for key in keys]


def _judged(rows: Frame, kept: Sequence[list[float] | None], threshold: float) -> Frame:
    """The rows as another threshold would have them."""
    pairs = zip(kept, rows["value"], strict=True)
    return rows.assign(value=[v if k is None else sum(s > threshold for s in k) / len(k) for k, v in pairs])
