"""The gallery: every public figure of ``analysis``, drawn from runs that the tests make up."""

from __future__ import annotations

import inspect
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from words import plain

_HEAD = """# Gallery

Every figure takes a run (or the data frame it needs), returns a matplotlib `Figure`, and never calls `show`. The
pictures were drawn when this site was built, from **runs made up by hand**: they show the figures, they measure
nothing."""


def figures() -> dict[str, Any]:
    """Dotted name -> function, for everything public that returns a figure: all of ``plots``, then the rest."""
    import analysis

    found = {f"plots.{name}": getattr(analysis.plots, name) for name in vars(analysis.plots)}
    for name in analysis.__all__:
        thing = getattr(analysis, name)
        # some functions share their name with the module that they are in
        found[name] = getattr(thing, name, None) if inspect.ismodule(thing) else thing
    return {name: f for name, f in found.items() if not name.startswith("plots._") and _draws(f)}


def _draws(thing: Any) -> bool:
    home = str(getattr(thing, "__module__", ""))
    own = inspect.isfunction(thing) and home.startswith("analysis.") and home != "analysis.style"
    return own and thing.__annotations__.get("return") == "Figure"


def pages(tests: Path) -> dict[str, str | bytes]:
    """``gallery/index.md`` and its pictures."""
    text, out = [_HEAD], dict[str, str | bytes]()
    for name, call, doc, picture in _drawn(tests):
        first, _, more = plain(doc).partition("\n")
        file = name.rpartition(".")[2] + ".png"
        out[f"gallery/{file}"] = picture
        text += [f"## {name}", first, f"[![{first}]({file})]({file})", f"```python\n{call}\n```", more.strip()]
    return {"gallery/index.md": "\n\n".join(t for t in text if t), **out}


def _drawn(tests: Path) -> Iterator[tuple[str, str, str | None, bytes]]:
    import analysis

    with tempfile.TemporaryDirectory() as scratch:
        folders = _runs(tests, Path(scratch))
        run = analysis.read_run(folders[0])
        given = {
            "run": (run, 'analysis.read_run("runs/mine")'),
            "runs": (folders, '["runs/a", "runs/b"]'),
            "found": (analysis.compare(folders), 'analysis.compare(["runs/a", "runs/b"])'),
            "calibration": (analysis.calibrate(folders), 'analysis.calibrate(["runs/calibration/a", ...])'),
        }
        for name, function in figures().items():
            parameter = next(iter(inspect.signature(function).parameters))
            if parameter not in given and hasattr(run, parameter):
                given[parameter] = (getattr(run, parameter), f'analysis.read_run("runs/mine").{parameter}')
            if parameter not in given:
                raise ValueError(f"analysis.{name} takes {parameter!r}: docs/making/gallery.py has none to give")
            value, said = given[parameter]
            yield name, f"analysis.{name}({said})", function.__doc__, _png(function(value))


def _runs(tests: Path, scratch: Path) -> list[Path]:
    """A removal, and an edit that erosion brings back."""
    import analysis

    sys.path.insert(0, str(tests))
    try:
        from drawn_runs import Drawn, flat, rising, write_run
    finally:
        sys.path.remove(str(tests))
    back = {"original": flat(0.8), "never": flat(0.1), "edited": rising(0.15, 0.75)}
    folders = [
        write_run(scratch / "removed"),
        write_run(scratch / "disabled", attacks=[Drawn("erosion", back, "lr=0.0001")], seed=1),
    ]
    for folder, truth in zip(folders, ("REMOVED", "DISABLED"), strict=True):
        analysis.judge(folder)
        case = {"organism": folder.name, "seed": 0, "split": "heldout", "truth": [truth]}
        (folder / "case.json").write_text(json.dumps(case))
    return folders


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=144, bbox_inches="tight", pad_inches=0.15)
    return out.getvalue()
