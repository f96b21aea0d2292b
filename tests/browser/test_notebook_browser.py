"""The explorer where people use it: a real kernel in JupyterLab, and a marimo page. Skipped without these.

What the widget does with its state is tested beside this (``test_explorer_browser.py``); here the way through the
kernel is: a slider moved on screen is a number in Python.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from chromium import launched

pytestmark = pytest.mark.slow
PATIENCE = 180_000
"""Milliseconds until a kernel has imported torch on a busy machine."""
MAKE = """
import analysis, hooklearn as hl
from hooklearn.locate.tokens import sample_tokens
model = hl.load("tiny")
forget = hl.load_corpus(name="tiny", options={"part": "forget"}).take(16)
retain = hl.load_corpus(name="tiny", options={"part": "forget", "completion": "good"}).take(16)
found = hl.locate(model, forget, retain, layers=[2], rank=4)
explorer = analysis.explore(sample_tokens(model, found, forget, retain, tokens=200))
"""


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install {module}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@contextlib.contextmanager
def serving(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """A local server in a process of its own; waits until it answers."""
    log = folder / "server.log"
    with log.open("w") as out, subprocess.Popen(command, cwd=folder, stdout=out, stderr=out) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                assert server.poll() is None, log.read_text()[-2000:]
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(page: Any, number: int) -> None:
    """Run a cell of JupyterLab; a key that comes before the kernel is there goes nowhere, so it is pressed again."""
    cell = page.locator(".jp-CodeCell").nth(number)
    for _ in range(PATIENCE // 2_000):
        if cell.locator(".jp-InputArea-prompt").inner_text().strip() in ("[ ]:", ""):
            cell.locator(".cm-content").click()
            page.keyboard.press("Control+Enter")
        page.wait_for_timeout(2_000)
        if re.search(r"\d", cell.locator(".jp-InputArea-prompt").inner_text()):
            return
    pytest.fail(f"cell {number} never ran")


def test_a_slider_in_jupyterlab_is_a_rank_in_python(browser: Any, tmp_path: Path) -> None:
    needs("jupyterlab")
    needs("anywidget")
    cells = [MAKE + "explorer", "print('rank is', explorer.subspace.rank)"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, tmp_path / "look.ipynb")
    port = free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with serving(command, port, tmp_path) as address:
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/lab/tree/look.ipynb")
        run(page, 0)
        slider = page.locator(".hlx-rank")
        slider.or_(page.locator("text=Traceback")).first.wait_for()
        assert page.locator("text=Traceback").count() == 0, page.locator(".jp-OutputArea-output").all_inner_texts()
        assert page.locator(".hlx-card").count() == 4
        slider.fill("2")
        page.wait_for_function("document.querySelector('.hlx-ranklabel').textContent.startsWith('first 2 of 4')")
        run(page, 1)
        said = page.locator(".jp-OutputArea-output", has_text=re.compile(r"rank is \d"))
        said.wait_for()
        assert said.inner_text().strip() == "rank is 2"
        page.close()


def test_marimo_shows_the_explorer(browser: Any, tmp_path: Path) -> None:
    """The same module as a marimo app; the slider's value comes back to the cell that depends on the widget."""
    needs("marimo")
    needs("anywidget")
    body = "\n    ".join(MAKE.strip().splitlines())
    (tmp_path / "app.py").write_text(f"""import marimo
app = marimo.App()

@app.cell
def _():
    import marimo as mo
    {body}
    view = mo.ui.anywidget(explorer)
    view
    return mo, view

@app.cell
def _(mo, view):
    view.value
    mo.md(f"rank is {{view.widget.subspace.rank}}")
    return
""")
    port = free_port()
    command = [
        sys.executable, "-m", "marimo", "run", "app.py", "--headless", "--no-token", "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip
    with serving(command, port, tmp_path) as address:
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator(".hlx-rank").wait_for()
        page.get_by_text("rank is 4").wait_for()
        page.locator(".hlx-rank").fill("3")
        page.get_by_text("rank is 3").wait_for()
        page.close()
