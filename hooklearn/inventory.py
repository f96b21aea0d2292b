"""``hooklearn list``: what is there, of this package and of others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any


def inventory(what: str, warn: Callable[[str], None] = lambda _: None) -> list[dict[str, str]]:
    """name, one line, source of everything of one kind; of what another package adds, the package.

    Args:
        warn: told, in one line each, of what another package adds and nobody can use.
    """
    rows = [{"name": name, "what": text, "source": source} for name, text, source in _INVENTORY[what]()]
    for name, package, found in added(what):
        if isinstance(found, Exception):
            warn(f"warning: {found}")
            continue
        text: Any = found.summary
        rows.append({"name": name, "what": str(text() if callable(text) else text), "source": package})
    return rows


SHELVES = {
    "methods": ("hooklearn.edit", "EVERY_METHOD"),
    "attacks": ("hooklearn.attack", "EVERY_ATTACK"),
    "fitters": ("hooklearn.locate.fitters", "EVERY_FITTER"),
    "organisms": ("hooklearn.organisms", "EVERY_ORGANISM"),
    "corpora": ("hooklearn.corpora", "EVERY_CORPUS"),
}
"""Where the shelf of each kind is that other packages can add to."""


def added(what: str) -> Iterator[tuple[str, str, Any]]:
    """(name, package, what it is, or the error that keeps it from use) of everything that other packages add."""
    if what in SHELVES:
        module, name = SHELVES[what]
        yield from getattr(importlib.import_module(module), name).added()


Entries = Iterator[tuple[str, str, str]]


def _methods() -> Entries:
    from hooklearn.edit import METHODS

    return ((n, m.summary(), m.source) for n, m in METHODS.items())


def _attacks() -> Entries:
    from hooklearn.attack import ATTACKS

    for name, attack in ATTACKS.items():
        yield name, f"{attack.summary()} ({'cheap, ' * attack.cheap}needs {attack.needs})", attack.source


def _fitters() -> Entries:
    from hooklearn.locate.fitters import FITTERS

    return ((n, f.summary, f.source) for n, f in FITTERS.items())


def _corpora() -> Entries:
    from hooklearn.corpora import BUILTIN

    return ((n, c.summary, c.source) for n, c in BUILTIN.items())


def _layouts() -> Entries:
    from hooklearn.layouts import LAYOUTS

    return ((n, c.summary, c.source) for n, c in LAYOUTS.items())


def _organisms() -> Entries:
    from hooklearn.organisms import ORGANISMS
    from hooklearn.organisms.kinds import KINDS

    for name, o in ORGANISMS.items():
        yield name, o.summary, "ships" if o.shipped else "built when asked for"
    for name, kind in KINDS.items():
        yield name, f"{kind.what}; truth: {' or '.join(kind.truth)}", "native, built in seconds"


def _recipes() -> Entries:
    from hooklearn.recipes import RECIPES

    for name, make in RECIPES.items():
        yield name, (make.__doc__ or "").strip().splitlines()[0], f"model {make()['model']['name']}"


def _models() -> Entries:
    from hooklearn import builtin

    for name, text in builtin.names().items():
        cached = "cached" if builtin.is_cached(name) else f"hooklearn fetch {name}"
        yield name, text, "ships" if name in builtin.SHIPPED else cached


_INVENTORY: dict[str, Callable[[], Entries]] = {
    "methods": _methods,
    "attacks": _attacks,
    "fitters": _fitters,
    "corpora": _corpora,
    "layouts": _layouts,
    "organisms": _organisms,
    "recipes": _recipes,
    "models": _models,
}
