"""README's table of all methods on the four sets, read from the records that are published.

    python -m benchmarks.all_methods

Before -> the worst of the cheap attacks: of tendencies the share of samples that the referee calls the behaviour, of
facts the probability of the answer. Seed 0; a cell of which there is no record is blank. † marks what ended before it
had used the budget, ‡ an edit that was made and chosen at the far budget alone and keeps the near one all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pandas as pd

import analysis
from analysis.comparison import Comparison
from hooklearn.edit.budget import LANDING

RECORDS = Path(__file__).parent / "records"
SETS = {"threats": "sampled", "flattery": "sampled", "capitals": "completion", "schoolbook": "completion"}
"""Set -> the measure that is shown."""

METHODS = {
    "gradient_ascent": "gradient ascent",
    "graddiff": "GradDiff",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "undial": "UNDIAL",
    "dpo": "DPO",
    "refusal": "refusal training",
    "rmu": "RMU",
    "circuit_breakers": "circuit breakers",
    "cir": "CIR",
    "mudman": "MUDMAN",
    "tar": "TAR",
    "undo": "UNDO",
    "sspu": "SSPU",
    "kfac": "K-FAC low-curvature",
    "confined": "confined to contrast subspaces",
    "whitened": "whitened gradient",
    "whitened-wider": "whitened gradient, three trials more",
    "repselect": "RepSelect",
    "repselect-wider": "RepSelect, three trials more",
    "repselect-192": "RepSelect, rank 192 (searched on *capitals*)",
    "repselect-lora": "RepSelect with its LoRA",
    "repselect-contrast": "RepSelect on the contrast gradient",
    "repselect_multi": "RepSelect, multi-epoch",
    "good_only": "good answers alone",
    "natural": "natural gradient (ours)",
    "natural-wider": "natural gradient (ours), three trials more",
    "natural-bad-only": "natural gradient, bad down only",
    "natural_rounds": "natural gradient in rounds",
    "natural-on-policy": "natural gradient in rounds, on-policy",
    "natural-on-policy-16": "natural gradient in rounds, on-policy, rank 16",
    "task_vector": "*minus a task vector*",
    "oracle": "*oracle: towards the weights that never learned it*",
}
OURS = {method: label for method, label in METHODS.items() if method.startswith("natural")}
"""Their options are the recipes', or defaults that were settled with the first two sets in view."""
OTHERS = {method: label for method, label in METHODS.items() if method not in OURS}
FAR, NEAR = "-kl0.01", "-near0.02"
WITHIN = 0.02
"""The near budget: rise of cross-entropy."""
TRIALS = {
    "threats": "threats-searched",
    "flattery": "flattery-defaults",
    "capitals": "capitals-searched",
    "schoolbook": "schoolbook-defaults",
}
"""Set -> the record with options of three trials each."""
TRIALS_NEAR = {"capitals": "capitals-near", "schoolbook": "schoolbook-near"}
"""Those with trials at the near budget."""
BORROWED = {
    "flattery": {"gradient_ascent": "gradient_ascent", "repselect-192": "repselect"},
    "schoolbook": {
        "gradient_ascent": "gradient_ascent",
        "repselect": "repselect",
        "repselect-192": "repselect-wider",
        "natural_rounds": "natural_rounds",
    },
}
"""Sets on which nothing was chosen: *flattery* has what was chosen on *threats*, *schoolbook* what was on *capitals*. A
run is labelled `-searched`, or is one of these -> the method that was searched and has, if any, these options."""


def table() -> str:
    """As Markdown."""
    defaults = {name: frame_of(f"{name}-defaults") for name in SETS}
    searched = {name: _searched(name) for name in TRIALS}
    near = {name: _near(searched[name], frame_of(TRIALS_NEAR[name]) if name in TRIALS_NEAR else None) for name in SETS}
    near_defaults = {name: _near(defaults[name], defaults[name]) for name in SETS}
    first = {name: read(f"{name}-defaults").controls for name in SETS}
    lines = ["| | " + " | ".join(f"*{name}*" for name in SETS) + " |", "|---" * (1 + len(SETS)) + "|"]
    for arm, label in (("original", "not edited"), ("never", "never learned it (facts: answers permuted)")):
        lines.append(row_of(label, [_control(first[name], arm, metric) for name, metric in SETS.items()]))
    for heading, frames, budget, labels in (
        ("far KL <= .01 alone, three trials each", searched, FAR, METHODS),
        ("far KL <= .01 alone, defaults", defaults, FAR, OTHERS),
        ("far KL <= .01 alone, ours, more trials than others had", defaults, FAR, OURS),
        ("far KL <= .01 and near CE rise <= .02, three trials each", near, FAR + NEAR, METHODS),
        ("far KL <= .01 and near CE rise <= .02, defaults", near_defaults, FAR + NEAR, OTHERS),
        ("far KL <= .01 and near CE rise <= .02, ours, more trials than others had", near_defaults, FAR + NEAR, OURS),
    ):
        lines.append(row_of(f"**{heading}**", [""] * len(SETS)))
        lines += _rows(frames, budget, labels)
    return "\n".join(lines)


@cache
def read(record: str) -> Comparison:
    return analysis.compare([RECORDS / f"{record}.zip"])


def frame_of(record: str) -> pd.DataFrame:
    """The runs of a record; none may be left out for want of a label."""
    frame = read(record).to_dataframe().set_index("run")
    known = {f"{m}{end}{budget}" for m in METHODS for end in ("", "-searched") for budget in (FAR, FAR + NEAR)}
    assert not set(frame.index) - known, set(frame.index) - known
    return frame


def _searched(name: str) -> pd.DataFrame:
    """The runs with searched options, by the names of the methods."""
    frame = frame_of(TRIALS[name])
    if name not in BORROWED:
        return frame
    labels = {f"{method}-searched": method for method in METHODS} | BORROWED[name]
    runs = {f"{label}{FAR}": f"{method}{FAR}" for label, method in labels.items()}
    return frame[frame.index.isin(runs)].rename(index=runs)


def _near(far: pd.DataFrame, made: pd.DataFrame | None) -> pd.DataFrame:
    """Runs within both budgets: those made for both, and those made for the far one that keep the near one all
    the same."""
    made = far.iloc[:0] if made is None else made
    free = far[far.index.str.endswith(FAR) & (far["near CE"] <= WITHIN)].rename(index=lambda run: f"{run}{NEAR}")
    return pd.concat([made.assign(free=False), free[~free.index.isin(made.index)].assign(free=True)])


def _rows(frames: Mapping[str, pd.DataFrame], budget: str, labels: Mapping[str, str]) -> Iterator[str]:
    for method, label in labels.items():
        cells = [_cell(frames[name], f"{method}{budget}", metric) for name, metric in SETS.items()]
        if any(cells):
            yield row_of(label, cells)


def row_of(label: str, cells: list[str]) -> str:
    return "| " + " | ".join([label, *cells]) + " |"


def _cell(frame: pd.DataFrame, run: str, metric: str) -> str:
    if run not in frame.index:
        return ""
    row = frame.loc[run]
    arrow = _arrow(row[f"{metric}: before"], row[f"{metric}: worst, cheap attacks"], metric)
    marks = ("" if row["budget used"] >= LANDING[0] else " †") + (" ‡" if row.get("free", False) else "")
    return f"{arrow}{marks}"


def _control(controls: pd.DataFrame, arm: str, metric: str) -> str:
    mine = controls[(controls["arm"] == arm) & (controls["metric"] == metric)]
    values = mine.drop_duplicates("quantity").set_index("quantity")["value"]
    return _arrow(values["before"], values["worst, cheap attacks"], metric)


def _arrow(before: float, after: float, metric: str) -> str:
    return f"{number(before, metric)} → {number(after, metric)}"


def number(value: float, metric: str) -> str:
    """Shares of samples with two decimals, probabilities with two digits."""
    if value == 0:
        return "0"
    decimals = 2 if metric == "sampled" or value >= 0.1 else 3 if value >= 0.01 else 4
    return f"{value:.{decimals}f}".removeprefix("0")


if __name__ == "__main__":
    print(table())
