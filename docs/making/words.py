"""Docstrings and options as Markdown."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

ROLE = re.compile(r":(?:func|class|mod|data|meth|attr):`~?([^`]+)`")


def plain(text: str | None) -> str:
    """A docstring as Markdown: without Sphinx' roles, its formulas as code."""
    return ROLE.sub(r"`\1`", inspect.cleandoc(text or ""))


def rest(text: str | None) -> str:
    """A docstring without its first line."""
    return plain(text).partition("\n")[2].strip()


def field_docs(cls: type) -> dict[str, str]:
    """The strings that stand under the fields of a class, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ == "builtins" or base.__module__ not in sys.modules:
            continue
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # made at run time or in C
            continue
        body = getattr(ast.parse(textwrap.dedent(source)).body[0], "body", [])
        for field, doc in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(doc):
                found[field.target.id] = plain(doc.value.value)
    return found


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def options(cls: type) -> str:
    """The fields of a dataclass as a table: name, type, default, what it is."""
    docs = field_docs(cls)
    rows = [
        (f"`{f.name}`", f"`{f.type}`", f"`{f.default!r}`" if f.default is not dataclasses.MISSING else "needed",
         docs.get(f.name, ""))
        for f in dataclasses.fields(cls)
    ]  # fmt: skip
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
