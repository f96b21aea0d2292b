"""What was measured, on disk: one JSON file a benchmark, and the tables made of them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Row

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "performance.md"
FIGURE = "scaling.png"
"""Beside the page; the benchmark ``scaling`` draws it."""
BEGIN, END = "<!-- measured: python -m benchmarks --table -->", "<!-- end of measured -->"


def environment(device: str, quick: bool) -> dict[str, Any]:
    """The machine and the state of the code."""
    name = torch.cuda.get_device_name() if device != "cpu" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "quick": quick,
        "revision": _revision(),
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _revision() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def save(folder: Path, name: str, rows: Sequence[Row], about: dict[str, Any], seconds: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    record = {"benchmark": name, "about": about, "seconds": round(seconds, 1), "rows": [r.as_json() for r in rows]}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def load(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]


# ----------------------------------------------------------------------------------------- tables


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: goal, measured (median, min..max), met?"""
    lines = ["| what | goal | measured: median (min..max) | met? | how |", "|---|---|---|---|---|"]
    for record in records:
        for row in record["rows"]:
            met = {True: "yes", False: "**no**", None: ""}[row["met"]]
            cells = [row["what"], row["goal"], _value(row), met, row["note"]]
            lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
    return "\n".join(lines)


def _value(row: dict[str, Any]) -> str:
    measured, unit = row["measured"], row["unit"]
    unit = unit if unit in ("", "x", "%") else f" {unit}"
    if not isinstance(measured, dict):
        return f"{measured:.3g}{unit}"
    return f"{measured['median']:.3g}{unit} ({measured['low']:.3g}..{measured['high']:.3g}, n {measured['n']})"


def detail(records: Sequence[dict[str, Any]]) -> str:
    """Everything else that was measured, a line a number."""
    lines = ["| benchmark | number | value |", "|---|---|---|"]
    for record in records:
        for row in record["rows"]:
            for key, value in row["numbers"].items():
                shown = f"{value:.4g}" if isinstance(value, float) else str(value)
                lines.append(f"| {record['benchmark']}: {row['what']} | {key} | {shown} |".replace("\n", " "))
    return "\n".join(lines)


def conditions(records: Sequence[dict[str, Any]]) -> str:
    """On what, at which commit, and how busy the machine was."""
    seen = {}
    for r in records:
        a = r["about"]
        key = f"{a['device']}, {a['threads']} threads on {a['cores']} cores, torch {a['torch']}, commit {a['revision']}"
        seen.setdefault(key + (", quick" if a["quick"] else ""), []).append(r)
    return "\n".join(
        f"- {key}: {', '.join(r['benchmark'] for r in group)} ({sum(r['seconds'] for r in group):.0f} s; load "
        f"{max(r['about']['load'] for r in group):.1f} at most)"
        for key, group in seen.items()
    )


def write_page(folder: Path, page: Path = PAGE) -> None:
    """Put the tables between the marks of docs/performance.md."""
    records = load(folder)
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    parts = [BEGIN, conditions(records), table(records)]
    if (page.parent / FIGURE).exists():
        parts.append(
            f"![Seconds against tokens, layers, sites and rank, on logarithmic axes, beside a straight line]({FIGURE})"
        )
    block = "\n\n".join([*parts, "### Everything else that was measured", detail(records), END])
    page.write_text(before + block + after, encoding="utf-8")
