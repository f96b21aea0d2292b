"""Docstrings and options as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from hooklearn.cli.options import options_of, plain


def rest(text: str | None) -> str:
    """A docstring without its first line."""
    return plain(text).partition("\n")[2].strip()


def options(cls: type) -> str:
    """The options of a class as a table: name, type, default, what it is."""
    rows = [
        (f"`{o.name}`", f"`{o.type}`", "needed" if o.default is None else f"`{o.default}`", o.what)
        for o in options_of(cls)
    ]
    return table(("option", "type", "default", ""), rows) if rows else "It has no options."


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(_cell(str(c)) for c in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _cell(text: str) -> str:
    """On one line, its bars escaped; those inside code divide no cells and would show the escape."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") else p.replace("|", "\\|") for p in parts)


def aside(title: str, text: str) -> str:
    """A block that opens on a click."""
    return f'??? quote "{title}"\n\n' + textwrap.indent(text, "    ")
