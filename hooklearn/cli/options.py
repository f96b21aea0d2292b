"""What can be set: the fields of a class or the arguments of a function, each with its type, default and meaning.

The meaning is the string that stands under a field in the source, or what a docstring says of an argument, so that it
is written once, where the field or the argument is.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_ARGUMENT = re.compile(r" {4}(\w+): (.*)")
_ROLE = re.compile(r":(?:func|class|mod|data|meth|attr):`~?([^`]+)`")


@dataclass(frozen=True)
class Option:
    name: str
    type: str
    """As one would say it: ``float | none``; a choice is its values."""
    default: str | None
    """As Python writes it; None where it must be given."""
    what: str


def options_of(thing: type | Callable[..., Any]) -> list[Option]:
    """The options of a dataclass, in the order of its fields, or of a function, in that of its arguments."""
    called = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing).__call__
    hints = _hints(called)
    if isinstance(thing, type):
        docs = field_docs(thing)
        return [
            Option(f.name, type_text(hints.get(f.name, f.type)), _default(f), docs.get(f.name, ""))
            for f in dataclasses.fields(typing.cast(Any, thing))
            if f.init
        ]
    said = argument_docs(called)
    return [
        Option(n, type_text(hints.get(n, "")), None if p.default is p.empty else repr(p.default), said.get(n, ""))
        for n, p in inspect.signature(thing).parameters.items()
    ]


def _hints(thing: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError):  # a name that is known to type checkers only: what is written says it too
        return {}


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return None if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def type_text(annotation: Any) -> str:
    """A type as it would be written: a choice by its values, None as none."""
    if isinstance(annotation, str):
        return annotation
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    args = typing.get_args(annotation)
    if isinstance(annotation, type) and not args:
        return annotation.__name__
    if args and type(None) in args:
        return " | ".join("none" if a is type(None) else type_text(a) for a in args)
    if args:
        name = getattr(typing.get_origin(annotation), "__name__", "")
        if name in ("Union", "UnionType"):
            return " | ".join(map(type_text, args))
        return f"{name}[{', '.join('...' if a is ... else type_text(a) for a in args)}]"
    return str(annotation).replace("typing.", "")


def plain(text: str | None) -> str:
    """A docstring as Markdown: without Sphinx' roles, its formulas as code."""
    return _ROLE.sub(r"`\1`", inspect.cleandoc(text or ""))


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


def argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """What the ``Args:`` of a docstring say of each argument."""
    found: dict[str, str] = {}
    section, name = False, ""
    for line in inspect.cleandoc(function.__doc__ or "").splitlines():
        if not line.startswith(" "):
            section = line.strip() == "Args:"
        elif section and (begun := _ARGUMENT.match(line)):
            name = begun[1]
            found[name] = begun[2]
        elif section and name:
            found[name] += f" {line.strip()}"
    return {name: plain(text) for name, text in found.items()}


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
