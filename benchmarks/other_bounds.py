"""The cases of a calibration judged again with another threshold: which verdicts would be others, and what is met then.

hooklearn calibrate --jobs 2 --out runs/calibration
python -m benchmarks.other_bounds runs/calibration rise=0.15
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from analysis.calibrate import Calibration, calibrate
from analysis.measures import Thresholds

USUAL = Thresholds()


def judged(folder: Path, thresholds: Thresholds = USUAL, *, jobs: int = 2) -> Calibration:
    return calibrate(sorted(p.parent for p in folder.glob("cases/*/case.json")), thresholds, jobs=jobs)


def threshold(text: str) -> tuple[str, float]:
    """``rise=0.15``."""
    name, _, value = text.partition("=")
    if name not in (known := asdict(USUAL)):
        raise argparse.ArgumentTypeError(f"no threshold {name!r}; valid: {', '.join(known)}")
    try:
        return name, type(known[name])(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name} must be a number such as {known[name]}, got {value!r}") from None


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what hooklearn calibrate wrote")
    parser.add_argument("changed", nargs="+", type=threshold, metavar="NAME=VALUE")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args(args)
    if not any(asked.folder.glob("cases/*/case.json")):
        parser.error(f"no case in {asked.folder}; hooklearn calibrate --out makes them")
    usual = judged(asked.folder, jobs=asked.jobs)
    other = judged(asked.folder, Thresholds(**dict(asked.changed)), jobs=asked.jobs)
    for a, b in zip(usual.cases, other.cases, strict=True):
        if a.verdict != b.verdict:
            print(f"- {a.organism} (seed {a.seed}, {a.split}): {a.verdict} -> {b.verdict}: {b.reason}")
    print(f"\n{other.to_markdown()}")


if __name__ == "__main__":
    main()
