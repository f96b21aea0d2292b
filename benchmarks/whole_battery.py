"""README's table of the whole cheap battery at the near budget, read from the records that are published.

    python -m benchmarks.whole_battery

What is left at the worst attack, each at its worst setting and step, mean over the seeds (how many: in brackets): of
facts the probability of the answer; of tendencies the share of samples, and the two attacks that train on the behaviour
itself (eight of its completions, or two) left out, as these teach a model that never had it as much.
"""

from __future__ import annotations

import pandas as pd

from benchmarks.all_methods import FAR, METHODS, NEAR, SETS, number, read, row_of

TEACH = ("good_demos", "weak_samples")
OPTIONS = {
    "natural": ", the recipe's options (tendencies: some twenty trials on another part of *threats*)",
    "repselect": ", rank 192 (searched on *capitals*)",
}
"""Of those that were not searched for this battery and have no defaults either."""
SEARCHED = ", with searched options"
EDITS = {
    f"{method}{end}": f"{label}{words}"
    for method, label in METHODS.items()
    for end, words in (("", OPTIONS.get(method, "")), ("-searched", SEARCHED))
}


def table() -> str:
    """As Markdown."""
    worst = {name: _worst(name) for name in SETS}
    seeds = {name: read(f"{name}-battery").to_dataframe().set_index("run")["seeds"] for name in SETS}
    lines = ["| | " + " | ".join(f"*{name}*" for name in SETS) + " |", "|---" * (1 + len(SETS)) + "|"]
    for arm, label in (("original", "not edited"), ("never", "never learned it")):
        lines.append(row_of(label, [number(worst[name][arm], metric) for name, metric in SETS.items()]))
    for edit, label in EDITS.items():
        cells = []
        for name, metric in SETS.items():
            run = f"{edit}{FAR}{NEAR}"
            at = run if run in worst[name] else edit  # a record of one budget does not repeat it
            cells.append(f"{number(worst[name][at], metric)} ({int(seeds[name][run])})" if run in seeds[name] else "")
        if any(cells):
            lines.append(row_of(label, cells))
    return "\n".join(lines)


def _worst(name: str) -> pd.Series:
    """Run, or arm of a control -> what is left at the worst attack."""
    frame = read(f"{name}-battery").by_attack(SETS[name]).set_index("")
    left_out = ["before", *(TEACH if SETS[name] == "sampled" else ())]
    return frame.drop(columns=left_out).max(axis=1)


if __name__ == "__main__":
    print(table())
