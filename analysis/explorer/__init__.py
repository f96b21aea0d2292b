"""The subspace explorer: where forget and retain part, along which directions, on which tokens.

    analysis.explore(sample)                              # in a notebook (anywidget)
    analysis.explorer.save(sample, "explorer.html")       # a page that needs no kernel and no network
    analysis.explorer.fragment(sample)                    # the same, inside the report

``sample`` is a ``hooklearn.locate.tokens.TokenSample``, or the path of a saved one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.explorer.packing import pack
from analysis.explorer.payload import Sample, load, unpack
from analysis.explorer.static import csp, fragment, save

if TYPE_CHECKING:
    from analysis.explorer.widget import Explorer

__all__ = ["SAMPLE_FILE", "Sample", "csp", "explore", "fragment", "load", "pack", "save", "unpack"]

SAMPLE_FILE = "tokens.safetensors"
"""Its name in a run folder."""


def explore(sample: Any, *, redact: bool = False, preview: Callable[[str, Any, float], str] | None = None) -> Explorer:
    """The interactive view of a sample of tokens; what is ticked in it is ``explorer.selection``.

    Args:
        sample: of ``hooklearn.locate.tokens.sample_tokens``; or a run folder or file that holds a saved one.
        redact: blocks in place of every token.
        preview: (prompt, directions, scale) -> completion, such as ``hooklearn.preview(model)``: then the chosen
            directions can be scaled (0: ablated) and the model asked from the page, where a kernel is there.
    Raises:
        InputError: no sample there.
        ImportError: anywidget is not installed.
    """
    from analysis.explorer.widget import Explorer

    if isinstance(sample, str | Path):
        path = Path(sample)
        sample = load(path / SAMPLE_FILE if path.is_dir() else path)
    return Explorer(sample, redact=redact, preview=preview)
