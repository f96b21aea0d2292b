"""Notebooks are tests: each runs top to bottom on the tiny model, and what is committed is what is tested."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.py"))
SHORTER = {
    "01_find_and_remove_a_tendency": {
        'ORGANISM = "threats"': 'ORGANISM = "tiny-threats"',
        'CORPUS, BAD, GOOD = "threats", "threat", "harmless"': 'CORPUS, BAD, GOOD = "tiny", "bad", "good"',
        'hl.load_corpus(name="prose", options={"part": "moments"})': (
            'hl.load_corpus(name="tiny", options={"part": "text"})'
        ),
        'hl.load_corpus(name="prose", options={"part": "disruption"}, limit=24)': (
            'hl.load_corpus(name="tiny", options={"part": "disruption"})'
        ),
        'hl.load_corpus(name="unrelated")': 'hl.load_corpus(name="tiny", options={"part": "unrelated"})',
    },
    "03_removed_or_only_disabled": {
        'ORGANISMS = ["original", "refusal", "retrained"]': 'ORGANISMS = ["refusal", "retrained"]',
    },
}
"""Notebook -> text that must be there, and what takes its place in the test: parameters only, never the code."""
LIMIT = 1_000_000
"""Bytes of a committed notebook."""


def scripted(name: str) -> Any:
    return pytest.importorskip("jupytext").read(NOTEBOOKS / f"{name}.py")


def committed(name: str) -> Any:
    return pytest.importorskip("jupytext").read(NOTEBOOKS / f"{name}.ipynb")


def outputs(notebook: Any) -> list[Any]:
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def has_picture(notebook: Any) -> bool:
    return any("image/png" in o.get("data", {}) for o in outputs(notebook))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_top_to_bottom_on_the_tiny_model(name: str) -> None:
    """Without a download, and ends with a picture; nothing is said on stderr."""
    nbclient = pytest.importorskip("nbclient")
    notebook = scripted(name)
    for long, short in SHORTER.get(name, {}).items():
        cells = [c for c in notebook.cells if long in c.source]
        assert cells, f"the notebook no longer says {long!r}"
        for cell in cells:
            cell.source = cell.source.replace(long, short)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert has_picture(notebook), "no picture worth showing"
    assert [o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_is_this_text_with_outputs(name: str) -> None:
    """The .ipynb that people open is the .py that is tested, executed in order, without an error, with a picture."""
    found = committed(name)
    assert [c.source for c in found.cells] == [c.source for c in scripted(name).cells]
    code = [c for c in found.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for o in outputs(found) if o.output_type == "error"]
    assert has_picture(found)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_outputs_tell_nothing_of_the_machine(name: str) -> None:
    """No absolute path, no warning. Only text is read: pictures are bytes in which anything may stand."""
    told = [o.get("text", "") for o in outputs(committed(name))]
    told += [t for o in outputs(committed(name)) for kind, t in o.get("data", {}).items() if kind == "text/plain"]
    for text in told:
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|usr|var)/|[A-Z]:\\|site-packages|Warning", text), (
            text
        )


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_what_will_be_known(name: str) -> None:
    """And stands in the index."""
    first = scripted(name).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "At the end you will" in first.source
    assert f"({name}.ipynb)" in (NOTEBOOKS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name: str) -> None:
    """``hl.`` and ``analysis.`` names are those of ``__all__``, and nothing is imported from inside; the controls: a
    private name is noticed, and so are both ways to import past the front door."""
    code = "\n".join(c.source for c in scripted(name).cells if c.cell_type == "code")
    assert private(code) == set()
    assert private("hl.models.add_(m)") == {"hl.models"}
    assert private("import hooklearn.measure") == {"hooklearn.measure"}
    assert private("if True:\n    from analysis.evidence import judge") == {"analysis.evidence"}
    assert private("from hooklearn import store, load") == {"hooklearn.store"}


def private(code: str) -> set[str]:
    """What a notebook uses of hooklearn and analysis without its being public."""
    import analysis
    import hooklearn

    public = {"hl": hooklearn.__all__, "hooklearn": hooklearn.__all__, "analysis": analysis.__all__}
    modules, names = set[str](), set[tuple[str, str]]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add((node.value.id, node.attr))
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and "." in (node.module or ""):
            modules.add(str(node.module))
        elif isinstance(node, ast.ImportFrom):
            names |= {(str(node.module), alias.name) for alias in node.names}
    inside = {m for m in modules if "." in m and m.partition(".")[0] in public}
    return inside | {f"{of}.{name}" for of, name in names if of in public and name not in public[of]}
