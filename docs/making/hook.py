"""What mkdocs calls: pages that list what the code holds are made here, so that they cannot go stale."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import api
import cards
import cli
import config_page
import gallery
import glossary
import licences
import maths
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
ROLE = re.compile(r":(?:func|class|mod|data|meth|attr):(<code[^>]*>)~?")
"""Sphinx' roles in docstrings; mkdocstrings leaves them as they are."""


def pages() -> dict[str, str | bytes]:
    """Path below ``docs/`` -> content of everything that is generated."""
    return {
        **cards.methods(ROOT / "docs" / "cards"),
        "attacks.md": cards.attacks(),
        "evidence.md": cards.evidence(),
        "organisms.md": cards.organisms(),
        "corpora.md": cards.corpora(ROOT / "data"),
        "reference/recipes.md": cards.recipes(),
        "reference/hooklearn.md": api.hooklearn(),
        "reference/blocks.md": api.blocks(),
        "reference/analysis.md": api.analysis(),
        "reference/cli.md": cli.page(),
        "reference/config.md": config_page.page(),
        "reference/licences.md": licences.page(ROOT / "pyproject.toml"),
        "glossary.md": glossary.page(),
        **gallery.pages(ROOT / "tests"),
    }


def on_config(config: Any) -> Any:
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": maths.block}]
    inline = config.mdx_configs.setdefault("pymdownx.inlinehilite", {})
    inline["custom_inline"] = [{"name": "math", "class": "math", "format": maths.inline}]
    for section in config.nav:
        if section.get("Methods") == "methods/index.md":
            section["Methods"] = ["methods/index.md", *({n: f"methods/{n}.md"} for n in cards.method_names())]
    return config


def on_files(files: Any, config: Any) -> Any:
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    return ROLE.sub(r"\1", html)
