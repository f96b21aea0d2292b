"""Text, numbers and figures as they stand on a page; what a model said is made safe here."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import pandas as pd
from jinja2 import Undefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import style, tables

CLIP = 700
"""Characters of one sample that are shown."""
SMALL_SVG = 150_000
"""Bytes; a figure that is larger as SVG is embedded as PNG."""
CSV_ROWS = 5_000
DASH = "–"
"""Not measured, which is never 0."""

# ----------------------------------------------------------------------------------------- text


def visible(text: str) -> str:
    """Control characters, terminal escapes and text-direction tricks as harmless visible signs.

    New lines and tabs stay. ``ESC [31m`` becomes ``␛[31m``, a right-to-left override ``‹U+202E›``.
    """
    return "".join(c if c in "\n\t" or c.isprintable() else _sign(c) for c in text)


def _sign(c: str) -> str:
    code = ord(c)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if unicodedata.category(c) == "Zs":
        return " "
    return "\u200d" if code == 0x200D else f"\u2039U+{code:04X}\u203a"


def clip(text: str, limit: int = CLIP) -> tuple[str, str]:
    """The beginning of a text, and a note on what was cut; the note is empty when nothing was."""
    if len(text) <= limit:
        return text, ""
    return text[:limit].rstrip() + "…", f"cut: {limit:,} of {len(text):,} characters shown"


def redacted(text: str) -> str:
    """What may be said about a text that may not be shown; its hash tells equal from different."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"[redacted: {len(text):,} characters, sha256 {digest[:12]}]"


def markdown_text(text: str) -> str:
    """One line of plain text in markdown: nothing in it is markup, nothing ends a table cell."""
    return _inert(re.sub(r"\s*\n\s*", " ⏎ ", visible(text).strip()))


def markdown_code(text: str) -> str:
    """The same, but what stands between backticks stays code."""
    return "".join(f"`{part}`" if i % 2 else _inert(part) for i, part in enumerate(visible(text).split("`")))


def _inert(line: str) -> str:
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", line)


def unbroken(text: str) -> Markup:
    """Numbers and their percent signs stay on one line."""
    return escape(text).replace(" %", "\u00a0%")


def code(text: str) -> Markup:
    """What stands between backticks as code; nothing else in it is markup."""
    parts = [Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(text.split("`"))]
    return Markup("").join(parts)


# -------------------------------------------------------------------------------------- numbers


def number(value: Any) -> float:
    """NaN for what is not there, in the record or in the template."""
    return tables.number(None if isinstance(value, Undefined) else value)


def num(value: Any, digits: int = 3) -> str:
    """As many digits as count; a dash is: not measured. Text and whole numbers stay as they are."""
    if isinstance(value, str):
        return value
    x = number(value)
    if math.isnan(x):
        return DASH
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if isinstance(value, int) or x == 0:
        text = f"{value:,.0f}"
    elif abs(x) < 1e-3 or abs(x) >= 1e6:
        text = re.sub(r"e([+-])0*", r"e\1", f"{x:.{digits - 2}e}").replace("e+", "e")
    elif abs(x) >= 10 ** (digits - 1):
        text = f"{x:,.0f}"
    else:
        text = f"{x:#.{digits}g}".removesuffix(".")  # 99.96 is 100
    return text.replace("-", "−")


def fixed(value: Any, digits: int = 3) -> str:
    """The same number of decimals down a column, so that sizes can be compared at a glance."""
    x = number(value)
    return f"{x:z.{digits}f}".replace("-", "−") if math.isfinite(x) else num(x)


def options(value: Any) -> str:
    """Settings in words: ``learning rates 0.0003, 0.001; embeddings yes``; what was not set is left out."""
    if value is None or isinstance(value, Undefined):
        return ""
    if isinstance(value, Mapping):
        kept = {str(k).replace("_", " "): options(v) for k, v in value.items()}
        return "; ".join(f"{k} {v}" for k, v in kept.items() if v)
    if isinstance(value, list | tuple):
        return ", ".join(map(options, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def interval(low: Any, high: Any, digits: int = 2) -> str:
    """``[0.51, 0.70]``; empty when neither end is known."""
    if math.isnan(number(low)) and math.isnan(number(high)):
        return ""
    return f"[{fixed(low, digits)}, {fixed(high, digits)}]"


def plus_minus(value: Any, stderr: Any) -> str:
    """``0.93 ± 0.02``: as many decimals as the error allows, and no more."""
    x, error = number(value), number(stderr)
    if not (math.isfinite(x) and math.isfinite(error) and error > 0):
        return num(value)
    decimals = max(0, -math.floor(math.log10(error)))
    decimals += f"{error:e}".startswith("1")
    return f"{fixed(x, decimals)} ± {fixed(error, decimals)}"


def duration(seconds: Any) -> str:
    x = number(seconds)
    if not math.isfinite(x):
        return DASH
    if x < 120:
        return f"{x:.0f} s" if x >= 10 else f"{x:.1f} s"
    minutes = round(x / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def quantity(value: Any, unit: str = "") -> str:
    """``135 M``, ``2.6 GB``: with the usual prefixes."""
    x = number(value)
    if not math.isfinite(x):
        return DASH
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(x) >= 0.9995 * 10**power:  # 999.7 k is 1 M to three digits
            return f"{x / 10**power:.3g} {prefix}{unit}"
    return f"{x:.3g} {unit}".rstrip()


def when(moment: Any) -> str:
    """ISO time to the minute: ``2026-11-24 09:03``."""
    return str(moment or DASH).replace("T", " ")[:16]


# -------------------------------------------------------------------------------------- figures

_ROLES = {
    **{look.colour: f"--{arm}" for arm, look in style.ARMS.items()},
    style.INK: "--ink",
    style.MUTED: "--muted",
    style.GRID: "--rule",
    style.PAPER: "--card",
}
"""House colours -> the page's variables: an inline figure follows the page into dark mode."""


def embed(figure: Figure, alt: str) -> Markup:
    """The figure as inline SVG that takes the page's font and colours; as PNG when it is large."""
    svg = _svg(figure, alt)
    if len(svg) <= SMALL_SVG:
        return Markup(svg)  # noqa: S704 - our own figure, its text escaped by matplotlib
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=160)
    data = base64.b64encode(image.getvalue()).decode()
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, alt)


def _svg(figure: Figure, alt: str) -> str:
    """SVG without what a page does not need, and with what it does.

    Namespaces, metadata, fonts and ids of groups go; ids that are referred to get a prefix of their
    own, because all figures share the page; the house colours become the page's variables.
    """
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hooklearn"}):
        figure.savefig(out, format="svg", facecolor="none", metadata={"Date": None})
    head, body = out.getvalue().partition("<svg")[2].split(">", 1)
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.S)
    own = "f" + hashlib.sha256(body.encode()).hexdigest()[:6]
    pieces = re.split(r"(<[^>]*>)", body)  # text, tag, text, tag ...
    pieces[1::2] = _trim("\0".join(pieces[1::2]), own).split("\0")  # all tags at once: a figure has thousands
    body = "".join(pieces)
    box = re.search(r'viewBox="[\d. ]*?([\d.]+) [\d.]+"', head)
    assert box
    return Markup('<svg {} role="img" aria-label="{}" style="--w:{:.0f}">{}').format(
        Markup(box[0]), alt, float(box[1]), Markup(re.sub(r"\s*\n\s*", "\n", body).strip())
    )


def _trim(tags: str, own: str) -> str:
    for pattern, new in _TRIM:
        tags = re.sub(pattern, new, tags)
    for colour, role in _ROLES.items():
        tags = tags.replace(colour, f"var({role})")
    return re.sub(r'(id="|href="#|url\(#)', rf"\1{own}", tags)


_TRIM = (
    (r'<g id="[^"]*"', "<g"),
    (r"xlink:href", "href"),
    (r"font: (?:bold|700) ([\d.]+)px [^;\"]*", r"font-size: \1px; font-weight: 700"),
    (r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px"),
    (r"(?:font-family|stroke-linejoin): [^;\"]*;? ?", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\d\.\d\d)\d+", r"\1"),
)


def csv_link(frame: pd.DataFrame, name: str) -> Markup:
    """The data behind a figure as a download that is inside the page itself."""
    if len(frame) > CSV_ROWS:
        return Markup('<span class="data">{:,} rows: see the parquet file</span>').format(len(frame))
    data = base64.b64encode(frame.to_csv(index=False).encode()).decode()
    link = '<a class="data" download="{0}.csv" href="data:text/csv;base64,{1}">data (csv)</a>'
    return Markup(link).format(name, data)
