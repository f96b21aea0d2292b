"""The pages of the Python reference: the public names, in the order and under the names that people import."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

BLOCKS = {
    "Writing a method": ["hooklearn.edit.method.Method", "hooklearn.edit.method.Problem", "hooklearn.edit.run_edit"],
    "Writing an attack": ["hooklearn.attack.curve.Attack", "hooklearn.attack.curve.Arena"],
    "Writing a fitter": ["hooklearn.locate.fitters.Fitter", "hooklearn.locate.fitters.Seen"],
    "Measuring": ["hooklearn.measure", "hooklearn.referees"],
    "Other people's data and tools": ["hooklearn.corpora.layouts.laid_out", "hooklearn.locate.dictionary.Dictionary"],
    "Evidence": ["hooklearn.evidence.collect", "hooklearn.evidence.types.Evidence"],
    "Border types": ["hooklearn.types.Tape", "hooklearn.types.Score", "hooklearn.types.Certificate"],
    "Linear algebra": ["hooklearn.linalg"],
}


def hooklearn() -> str:
    package = importlib.import_module("hooklearn")
    names = (n for n in package.__all__ if n != "__version__")
    entries = [_entry(f"hooklearn.{package._WHERE[n]}.{n}", f"hl.{n}", n) for n in names]
    return "\n\n".join(["# hooklearn", "    import hooklearn as hl", _LAZY, *entries])


_LAZY = "Names are imported when they are first used: `import hooklearn` loads neither torch nor TransformerLens."


def analysis() -> str:
    package = importlib.import_module("analysis")
    whole = ("plots", "style")  # modules
    names = [n for n in package.__all__ if n not in whole]
    entries = [_entry(f"analysis.{package._HOME[n]}.{n}", f"analysis.{n}", n) for n in names]
    rules = _module("analysis.verdict", "The rules of the verdict")
    modules = [_entry(f"analysis.{n}", f"analysis.{n}", n) for n in whole]
    return "\n\n".join(
        ["# analysis", "    import analysis", "Reads run folders; loads no model.", *entries, *modules, rules]
    )


def blocks() -> str:
    parts = ["# Building blocks", "What the verbs of `hl` are made of: for methods, attacks and measures of your own."]
    public = set(importlib.import_module("hooklearn").__all__)
    for title, every in BLOCKS.items():
        names = [n for n in every if n.rpartition(".")[2] not in public]  # these stand on their own page
        parts += [f"## {title}", *(_entry(n, n, n.rpartition(".")[2], level=3) for n in names)]
    return "\n\n".join(parts)


def _entry(path: str, heading: str, label: str, level: int = 2) -> str:
    return _directive(path, [f"heading: {heading}", f"toc_label: {label}", f"heading_level: {level}"])


def _module(path: str, heading: str) -> str:
    return _directive(path, [f"heading: {heading}", "heading_level: 2", "members: false"])


def _directive(path: str, options: Iterable[str]) -> str:
    return "\n".join([f"::: {path}", "    options:", *(f"      {o}" for o in options)])
