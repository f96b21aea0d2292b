"""``python -m benchmarks [--quick] [--only NAME ...] [--device cuda] [--resume]``, and ``--table`` for the docs."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
import traceback
from pathlib import Path

import benchmarks

SLOW = ("demo", "dry_run")
"""Minutes each: only when named."""


def names() -> list[str]:
    found = (m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return [name.removeprefix("bench_") for name in found if name.startswith("bench_")]


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("--only", nargs="+", choices=names(), metavar="NAME", help=f"of: {', '.join(names())}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less work: under five minutes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="tiny: to see that everything runs")
    parser.add_argument("--out", type=Path, help="folder of the JSON files (default: benchmarks/results)")
    parser.add_argument("--resume", action="store_true", help="leave out what has its file already")
    parser.add_argument(
        "--table", action="store_true", help="write the tables into docs/performance.md, measure nothing"
    )
    given = parser.parse_args(args)

    from benchmarks import results
    from benchmarks.harness import Bench

    out = given.out or results.FOLDER
    if given.table:
        results.write_page(out)
        return 0
    bench, failed = Bench(given.model, given.device, given.quick), []
    for name in given.only or [n for n in names() if n not in SLOW]:
        if given.resume and (out / f"{name}.json").exists():
            continue
        print(f"[{name}]", file=sys.stderr, flush=True)
        started = time.perf_counter()
        about = results.environment(given.device, given.quick)
        try:
            rows = list(importlib.import_module(f"benchmarks.bench_{name}").rows(bench))
        except Exception:  # the others are still worth having; the exit code tells
            traceback.print_exc()
            failed.append(name)
            continue
        seconds = time.perf_counter() - started
        results.save(out, name, rows, about, seconds)
        for row in rows:
            print(f"  {row.what}: {row.measured} {row.unit} (goal {row.goal or 'none'}: {row.met})", file=sys.stderr)
        print(f"  {seconds:.0f} s", file=sys.stderr, flush=True)
    print(results.table(results.load(out)))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
