"""The documentation: built strictly from the code, complete, offline, and every example in it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import chromium
import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MAKING = DOCS / "making"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "cards" not in p.parts)
EXTERNAL = re.compile(r"^(https?:)?//")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of any kind fails the build."""
    for needed in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install 'hooklearn[docs]' to test the documentation site")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@contextlib.contextmanager
def making() -> Iterator[None]:
    """What makes the generated pages imports its neighbours by their bare names, as mkdocs lets a hook do."""
    sys.path.insert(0, str(MAKING))
    try:
        yield
    finally:
        sys.path.remove(str(MAKING))


def made_by(name: str) -> ModuleType:
    with making():
        return importlib.import_module(name)


# ----------------------------------------------------------------------------------- the built site


class Page(HTMLParser):
    """What a page loads, where it links to, and which anchors it has."""

    LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
    NOT_LOADED = {"canonical", "next", "prev", "alternate", "edit"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.anchors |= {found[k] for k in ("id", "name") if k in found}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") not in self.NOT_LOADED:
            self.loads.append(found.get("href", ""))
        if tag in self.LOADED and self.LOADED[tag] in found:
            self.loads.append(found[self.LOADED[tag]])


@pytest.fixture(scope="session")
def built(site: Path) -> dict[Path, Page]:
    return {p: Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}


def test_no_page_asks_another_host_for_anything(site: Path, built: dict[Path, Page]) -> None:
    """No CDN, no font host, neither in the pages nor in their style sheets."""
    assert len(built) > 40
    assert {u for page in built.values() for u in page.loads if EXTERNAL.match(u)} == set()
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", sheet.read_text(encoding="utf-8"))
        assert not [u for u in urls if EXTERNAL.match(u)], sheet


def test_a_page_that_asked_would_be_caught() -> None:
    """The positive control of the test above."""
    page = Page('<link rel="stylesheet" href="//fonts.example/x.css"><script src="https://cdn.example/x.js"></script>')
    assert [bool(EXTERNAL.match(u)) for u in page.loads] == [True, True]


def test_every_link_within_the_site_leads_somewhere(site: Path, built: dict[Path, Page]) -> None:
    """Pages and anchors, generated ones included (mkdocs checks only what it has read as Markdown)."""
    broken = set()
    for path, page in built.items():
        if path.name == "404.html":  # its links start from the root of whatever serves it
            continue
        for link in page.links:
            target, _, anchor = link.partition("#")
            if EXTERNAL.match(link) or ":" in target:
                continue
            file = (path.parent / urllib.parse.unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (
                anchor and file in built and urllib.parse.unquote(anchor) not in built[file].anchors
            ):
                broken.add(f"{path.relative_to(site)}: {link}")
    assert broken == set()


def test_the_site_works_from_a_file_offline_search_included(site: Path) -> None:
    """No request leaves the machine, nothing complains, and the search finds a method's card."""
    with chromium.launched() as browser, chromium.strict_page(browser) as page:
        page.goto((site / "index.html").as_uri())
        page.click("input.md-search__input")
        page.keyboard.type("circuit breakers")
        first = page.locator(".md-search-result__link").first
        first.wait_for(timeout=30_000)
        assert "methods/circuit_breakers.html" in str(first.get_attribute("href"))


@pytest.mark.parametrize("width", [390, 1440])
def test_no_page_is_wider_than_the_screen(site: Path, width: int) -> None:
    """Wide tables, formulas and code scroll inside themselves."""
    shown = ("index.html", "methods/natural.html", "attacks.html", "reference/config.html", "explanation/verdict.html")
    with chromium.launched() as browser, chromium.strict_page(browser, width=width) as page:
        for name in shown:
            page.goto((site / name).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name


# -------------------------------------------------------------------------------- nothing goes stale


def test_every_registered_thing_has_its_card(site: Path) -> None:
    from hooklearn.attack import ATTACKS
    from hooklearn.corpora import BUILTIN
    from hooklearn.edit import METHODS
    from hooklearn.evidence import MEASURES
    from hooklearn.organisms import ORGANISMS
    from hooklearn.organisms.kinds import KINDS
    from hooklearn.organisms.suppressed import edits

    for name, method in METHODS.items():
        text = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert "<math" in text, f"{name}: no formula"
        assert all(f.name in text for f in dataclasses.fields(method)), name
    for page, names in {
        "attacks": ATTACKS, "evidence": MEASURES, "organisms": [*ORGANISMS, *KINDS, *edits()],
        "corpora": BUILTIN,
    }.items():  # fmt: skip
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert [n for n in names if n not in text] == [], page


def test_the_page_of_organisms_has_a_table_of_edits() -> None:
    from hooklearn.organisms.suppressed import SUPPRESSED, edits

    page = made_by("cards").organisms().split("## Edits of an instilled organism")[1]
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(edits()) == len(SUPPRESSED)
    assert "| `threats/refusal` | suppressed by refusal training, the lowest rung | of threats: " in page


def test_a_method_without_a_card_stops_the_build(tmp_path: Path) -> None:
    cards = made_by("cards")
    for card in (DOCS / "cards").glob("*.md"):
        (tmp_path / card.name).write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    assert "methods/natural.md" in cards.methods(tmp_path)
    (tmp_path / "natural.md").unlink()
    with pytest.raises(ValueError, match="natural"):
        cards.methods(tmp_path)


def test_every_figure_is_in_the_gallery(site: Path) -> None:
    figures = made_by("gallery").figures()
    assert {"plots.curves", "plots.separation_map", "tradeoff"} <= figures.keys()
    assert not [n for n in figures if not (site / "gallery" / f"{n.rpartition('.')[2]}.png").is_file()]


def test_every_public_name_and_command_is_in_the_reference(site: Path) -> None:
    import analysis
    import hooklearn

    for package, short in ((hooklearn, "hl"), (analysis, "analysis")):
        text = (site / "reference" / f"{package.__name__}.html").read_text(encoding="utf-8")
        assert [n for n in package.__all__ if n != "__version__" and f"{short}.{n}" not in text] == []
    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert [words for words, _ in made_by("cli").commands() if words not in text] == []


def test_the_report_and_the_glossary_say_the_same(site: Path) -> None:
    text = (site / "glossary.html").read_text(encoding="utf-8")
    words = made_by("glossary").of_report()
    assert "far KL" in words
    assert [w for w in words if f">{w}<" not in text] == []


# ------------------------------------------------------------------------------- examples are tests


def _modules() -> list[str]:
    import analysis
    import hooklearn

    found = [m.name for p in (hooklearn, analysis) for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    return ["hooklearn", "analysis", *(n for n in found if not n.endswith("__main__") and _can_be_imported(n))]


def _can_be_imported(name: str) -> bool:
    """All but the adapters of an extra that is not installed."""
    needed = {"hooklearn.evals.harness": "lm_eval", "hooklearn.evals.inspector": "inspect_ai"}
    return name not in needed or importlib.util.find_spec(needed[name]) is not None


def _examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [t for name in _modules() for t in finder.find(importlib.import_module(name), name) if t.examples]


def test_docstring_examples_say_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``>>>`` in both packages; run where they may write."""
    monkeypatch.chdir(tmp_path)
    examples = _examples()
    assert len(examples) >= 10
    wrong: list[str] = []
    for example in examples:
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        runner.run(example, out=wrong.append)
    assert not wrong, "".join(wrong)


FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


RUNNING = [p for p in PAGES if p.parts[-2] in ("tutorial", "how-to") or p.name == "index.md"]
SHORTER = {
    # the tutorial's run is a minute's work; the same by one attack, without the evidence
    'hl.run("tiny", out="runs/first-python")': (
        'hl.run({**hl.recipe("tiny"), "evidence": {}, "locate": {"enabled": False}, "behaviour": {"samples": 8},'
        ' "attacks": [{"name": "few_shot", "shots": 2}]}, out="runs/first-python")'
    ),
}


@pytest.mark.parametrize("page", [p for p in RUNNING if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_blocks_of_the_guides_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top to bottom, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    monkeypatch.setitem(sys.modules, page.stem, ModuleType(page.stem))  # dataclasses look their module up
    for text in blocks(page, "python"):
        for real, short in SHORTER.items():
            text = text.replace(real, short)
        exec(compile(text, str(page), "exec"), namespace)


def test_what_is_shortened_is_still_there() -> None:
    texts = "".join(p.read_text(encoding="utf-8") for p in RUNNING)
    assert [real for real in SHORTER if real not in texts] == []


def _command_lines() -> list[tuple[str, str]]:
    lines = [
        (page.relative_to(ROOT).as_posix(), line)
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for text in blocks(page, "bash")
        for line in text.splitlines()
    ]
    return [(page, re.split("  #| > ", line)[0]) for page, line in lines if line.startswith("hooklearn ")]


def test_command_lines_of_the_guides_are_understood() -> None:
    """Commands, options and, for recipes, every ``--set`` key: parsed, not run."""
    from hooklearn.config import parse
    from hooklearn.config_file import with_overrides
    from hooklearn.recipes import RECIPES, recipe

    commands = dict(made_by("cli").commands())
    assert len(_command_lines()) > 15
    for page, line in _command_lines():
        words = shlex.split(line)
        name = next((n for n in (" ".join(words[:3]), " ".join(words[:2])) if n in commands), None)
        assert name, f"{page}: {line}: no such command"
        context = commands[name].make_context(name, words[len(name.split()) :])
        given = context.params
        if given.get("target") in RECIPES:
            parse(with_overrides(recipe(given["target"]), list(given.get("set_") or [])), f"{page}: {line}")


def test_a_wrong_command_line_would_be_caught() -> None:
    """The positive control: an option that does not exist."""
    with pytest.raises(Exception, match="--no-such"):
        dict(made_by("cli").commands())["hooklearn run"].make_context("run", ["tiny", "--no-such"])


def test_yaml_of_the_guides_is_a_config() -> None:
    from hooklearn.attack import attack_of
    from hooklearn.config import parse
    from hooklearn.running.sweep_config import Plan

    (mine,) = blocks(DOCS / "how-to" / "data.md", "yaml")
    parse(yaml.safe_load(mine))
    (sweep,) = blocks(DOCS / "how-to" / "compare.md", "yaml")
    Plan.of(yaml.safe_load(sweep), ROOT, "docs/how-to/compare.md")
    (attacks,) = blocks(DOCS / "how-to" / "attack.md", "yaml")
    for spec in yaml.safe_load(attacks)["attacks"]:
        attack_of(spec.pop("name"), spec)


# ------------------------------------------------------------------------------- the community's files


def test_the_workflow_runs_what_ci_runs() -> None:
    """One list of checks: the workflow calls .ci/run and adds none of its own."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s]
    assert steps == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_weekly_workflow_asks_make_for_what_it_has() -> None:
    """What needs the network and changes without a commit: releases, and what is known about them."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8"))
    steps = {s["run"] for job in workflow["jobs"].values() for s in job["steps"] if "run" in s}
    assert steps == {"make audit", "make test-matrix", "make test-extras"}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {s.removeprefix("make ") for s in steps} <= set(targets)


def test_the_citation_is_of_this_version() -> None:
    import hooklearn

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hooklearn.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_forms_ask_for_what_a_bug_needs() -> None:
    forms = {p.name: yaml.safe_load(p.read_text(encoding="utf-8")) for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*")}
    assert {"bug.yml", "method.yml"} <= forms.keys()
    assert "hooklearn doctor" in yaml.safe_dump(forms["bug.yml"])


def test_licences_are_read_from_the_packages_themselves() -> None:
    """torch and pydantic are known; the table leaves out nothing that the core names."""
    licences = made_by("licences")
    found = licences.installed({"core": ["torch", "pydantic"]})
    assert found["pydantic"][1] == "MIT"
    assert "BSD" in found["torch"][1]
    assert "typing-extensions" in found, "dependencies of dependencies"
    assert inspect.getdoc(licences)
