"""The cases of a calibration judged again with another threshold: which verdicts would be others, and what is met then.

hooklearn calibrate --jobs 2 --out runs/calibration
python -m benchmarks.other_bounds runs/calibration rise=0.15
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from analysis.calibrate import Calibration, calibrate
from analysis.measures import Thresholds


def judged(folder: Path, thresholds: Thresholds, *, jobs: int = 2) -> Calibration:
    return calibrate(sorted(p.parent for p in folder.glob("cases/*/case.json")), thresholds, jobs=jobs)


def right(calibration: Calibration) -> str:
    held = [case for case in calibration.cases if case.split == "heldout"]
    return f"{sum(case.right for case in held)} of {len(held)} held-out right"


if __name__ == "__main__":
    names = ", ".join(f.name for f in fields(Thresholds))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what hooklearn calibrate wrote")
    parser.add_argument("changed", nargs="+", metavar="NAME=VALUE", help=f"of {names}")
    asked = parser.parse_args()
    pairs = dict(pair.split("=", 1) for pair in asked.changed)
    other = judged(asked.folder, Thresholds(**{name: float(value) for name, value in pairs.items()}))
    usual = judged(asked.folder, Thresholds())
    print(f"{right(usual)}; with {' '.join(asked.changed)}: {right(other)}\n")
    for a, b in zip(usual.cases, other.cases, strict=True):
        if a.verdict != b.verdict:
            print(f"- {a.organism} (seed {a.seed}, {a.split}): {a.verdict} -> {b.verdict}: {b.reason}")
    print()
    for r in other.requirements:
        print(f"- {'met' if r.met else 'not met'}: {r.what} ({r.found})")
