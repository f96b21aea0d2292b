"""The explorer on a page without a kernel: an HTML fragment that asks nobody for anything.

    fragment(sample)                    # for a report; the page must allow csp() as script-src
    save(sample, "explorer.html")       # a page of its own

The fragment holds a picture and a table; the script puts the explorer in their place when they come into view, and
leaves them for paper.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from analysis.explorer.fallback import picture_and_table
from analysis.explorer.packing import pack
from analysis.explorer.payload import Packed, unpack
from analysis.writing import write_text

HERE = Path(__file__).parent

_START = """
for (const el of document.querySelectorAll("[data-hlx]")) {
  const wake = () => hydrate(el, el.querySelector("script").textContent);
  const seen = new IntersectionObserver((entries) => {
    if (entries.some((e) => e.isIntersecting)) { seen.disconnect(); wake(); }
  }, { rootMargin: "400px" });
  seen.observe(el);
}
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{csp}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>body {{ margin: 0 auto; padding: 16px; max-width: 1500px; background: #fbfaf8 }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14161a }} }}
@media (max-width: 600px) {{ body {{ padding: 0 }} }}</style>
</head>
<body>
{body}
</body>
</html>
"""


@functools.cache
def module() -> str:
    return (HERE / "explorer.js").read_text(encoding="utf-8")


def script() -> str:
    """The module and the lines that start it, as they stand on a page."""
    return module() + _START


@functools.cache
def style() -> str:
    return (HERE / "explorer.css").read_text(encoding="utf-8")


def csp() -> str:
    """The script source that a page with a fragment must allow, and the only one: the hash of ``script()``."""
    digest = hashlib.sha256(script().encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def fragment(sample: Any, *, redact: bool = False) -> Markup:
    """Safe HTML of less than 4.5 MB: style, picture and table, payload, script.

    Args:
        sample: what ``explore`` takes, or the bytes that ``pack`` made of it.
        redact: blocks in place of every token.
    """
    data = sample if isinstance(sample, bytes) else pack(sample, redact=redact)
    return Markup(
        '<style>{}</style>\n<div data-hlx>{}<script type="application/octet-stream;base64">{}</script></div>\n'
        '<script type="module">{}</script>'
    ).format(Markup(style()), _still(unpack(data)), base64.b64encode(data).decode(), Markup(script()))


def _still(packed: Packed) -> Markup:
    image, table = picture_and_table(packed)
    source = base64.b64encode(image).decode()
    alt = "layers by sites, and the tokens of the place that separates best"
    return Markup(
        '<div class="hlx-still"><img src="data:image/png;base64,{}" alt="{}" style="max-width:100%">'
        '<div style="overflow-x:auto">{}</div></div>'
    ).format(source, alt, table)


def save(sample: Any, path: str | Path, *, title: str = "Subspace explorer", redact: bool = False) -> Path:
    """A page of its own, to open with a double click or to send."""
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {csp()}"
    page = Markup(_PAGE).format(csp=allowed, title=title, body=fragment(sample, redact=redact))
    write_text(Path(path), page)
    return Path(path)
