"""The gallery: every figure of ``analysis.plots``, drawn from runs that the tests draw by hand."""

from __future__ import annotations

import importlib
import inspect
import io
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
    """Name -> function, for all that is public in ``analysis.plots`` and returns a figure."""
    from analysis import plots

    return {
        name: function
        for name, function in vars(plots).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and function.__module__ == plots.__name__
        and function.__annotations__.get("return") == "Figure"
    }


def pages(tests: Path) -> dict[str, str | bytes]:
    """``gallery/index.md`` and its pictures."""
    text, out = [_HEAD], dict[str, str | bytes]()
    for name, call, doc, picture in _drawn(tests):
        first, _, more = plain(doc).partition("\n")
        out[f"gallery/{name}.png"] = picture
        text += [f"## {name}", first, f"[![{first}]({name}.png)]({name}.png)", f"```python\n{call}\n```", more.strip()]
    return {"gallery/index.md": "\n\n".join(t for t in text if t), **out}


def _drawn(tests: Path) -> Iterator[tuple[str, str, str | None, bytes]]:
    import analysis

    sys.path.insert(0, str(tests))
    try:
        from drawn_runs import Drawn, flat, rising, write_run
    finally:
        sys.path.remove(str(tests))
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_run(Path(scratch) / "removed")
        analysis.judge(folder)
        run = analysis.read_run(folder)
        for name, function in figures().items():
            parameter = next(iter(inspect.signature(function).parameters))
            if parameter != "run" and not hasattr(run, parameter):
                raise ValueError(f"analysis.plots.{name} takes {parameter!r}: docs/making/gallery.py has no such thing")
            given, said = (run, "run") if parameter == "run" else (getattr(run, parameter), f"run.{parameter}")
            call = f'run = analysis.read_run("runs/mine")\nanalysis.plots.{name}({said})'
            yield name, call, function.__doc__, _png(function(given))
        back = {"original": flat(0.8), "never": flat(0.1), "edited": rising(0.15, 0.75)}
        other = write_run(Path(scratch) / "disabled", attacks=[Drawn("erosion", back, "lr=0.0001")], seed=1)
        analysis.judge(other)
        found = analysis.compare([folder, other])
        call = 'analysis.tradeoff(analysis.compare(["runs/a", "runs/b"]))'
        yield (
            "tradeoff",
            call,
            importlib.import_module("analysis.tradeoff").tradeoff.__doc__,
            _png(analysis.tradeoff(found)),
        )


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=144)
    return out.getvalue()
