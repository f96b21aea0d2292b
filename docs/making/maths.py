"""Formulas as MathML, made when the site is built: the browser needs no script for them, and no font host."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def block(source: str, *_: Any, **__: Any) -> str:
    """A fence ``math``; every line is a formula of its own."""
    lines = [line for line in source.splitlines() if line.strip()]
    return '<div class="math">' + "".join(convert(line, display="block") for line in lines) + "</div>"


def inline(source: str, *_: Any, **__: Any) -> str:
    """Inline code that begins with ``#!math``."""
    return convert(source)
