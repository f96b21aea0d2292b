"""Notebooks are tests: each runs top to bottom on the tiny model, parameters replaced by text that must be there."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TINY = {
    'NAME = "smollm2-135m-instruct"': 'NAME = "tiny"',
    'ORGANISM = "threats"': 'ORGANISM = "tiny-threats"',
    'CORPUS, BAD, GOOD = "threats", "threat", "harmless"': 'CORPUS, BAD, GOOD = "tiny", "bad", "good"',
    'hl.load_corpus(name="prose", options={"part": "moments"}, limit=24)': (
        'hl.load_corpus(name="tiny", options={"part": "text"})'
    ),
    'hl.load_corpus(name="prose", options={"part": "disruption"}, limit=24)': (
        'hl.load_corpus(name="tiny", options={"part": "disruption"})'
    ),
    'hl.load_corpus(name="unrelated")': 'hl.load_corpus(name="tiny", options={"part": "unrelated"})',
}


@pytest.mark.slow
def test_find_and_remove_a_tendency_runs_on_the_tiny_model() -> None:
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    text = (NOTEBOOKS / "01_find_and_remove_a_tendency.py").read_text(encoding="utf-8")
    for real, tiny in TINY.items():
        assert real in text, f"the notebook no longer says {real!r}"
        text = text.replace(real, tiny)
    notebook = jupytext.reads(text, fmt="py:percent")
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs), "no picture worth showing"
    assert not [o for o in outputs if o.output_type == "error"]


def test_the_committed_notebook_is_this_text_with_outputs() -> None:
    """The .ipynb that people open is the .py that is tested, executed."""
    jupytext = pytest.importorskip("jupytext")
    script = jupytext.read(NOTEBOOKS / "01_find_and_remove_a_tendency.py")
    committed = jupytext.read(NOTEBOOKS / "01_find_and_remove_a_tendency.ipynb")
    assert [c.source for c in committed.cells] == [c.source for c in script.cells]
    assert all(c.outputs for c in committed.cells[2:] if c.cell_type == "code")
