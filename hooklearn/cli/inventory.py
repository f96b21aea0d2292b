"""``hooklearn list``: what is there, of this package and of others."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from hooklearn.cli.options import options_of
from hooklearn.types import InputError


def inventory(what: str, warn: Callable[[str], None] = lambda _: None) -> list[dict[str, str]]:
    """name, one line, source of everything of one kind; of what another package adds, the package.

    Args:
        warn: told, in one line each, of what another package adds and nobody can use.
    Raises:
        InputError: there is no such kind.
    """
    if what not in _INVENTORY:
        near = difflib.get_close_matches(what, _INVENTORY, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"there is no list of {what!r}; valid: {', '.join(_INVENTORY)}{hint}")
    rows = [{"name": name, "what": text, "source": source} for name, text, source in _INVENTORY[what]()]
    for name, package, found in added(what):
        if isinstance(found, Exception):
            warn(f"warning: {found}")
            continue
        text: Any = found.summary
        rows.append({"name": name, "what": str(text() if callable(text) else text), "source": package})
    return rows


def described(what: str, name: str) -> dict[str, Any]:
    """One entry of :func:`inventory` with all that can be said of it: the options of a method, an attack, a corpus or a
    layout (and its columns), the config of a recipe or a battery, the card of an organism.

    Raises:
        InputError: unknown name, with the nearest valid one.
    """
    rows = {r["name"]: r for r in inventory(what)}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{what}: there is no {name!r}; valid: {', '.join(rows)}{hint}")
    more = _MORE.get(what)
    return rows[name] | (more(name) if more else {})


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
        yield from _shelf(what).added()


def _shelf(what: str) -> Any:
    module, name = SHELVES[what]
    return getattr(importlib.import_module(module), name)


Entries = Iterator[tuple[str, str, str]]


def _methods() -> Entries:
    from hooklearn.edit import METHODS

    return ((n, m.summary(), m.source) for n, m in METHODS.items())


def _attacks() -> Entries:
    from hooklearn.attack import ATTACKS

    for name, attack in ATTACKS.items():
        yield name, f"{attack.summary()} ({'cheap, ' * attack.cheap}needs {attack.needs})", attack.source


def _batteries() -> Entries:
    from hooklearn.batteries import BATTERIES

    for name, attacks in BATTERIES.items():
        yield name, ", ".join(dict.fromkeys(a["name"] for a in attacks)), f"{len(attacks)} attacks, for tendencies"


def _fitters() -> Entries:
    from hooklearn.locate.fitters import FITTERS

    return ((n, f.summary, f.source) for n, f in FITTERS.items())


def _corpora() -> Entries:
    from hooklearn.corpora import BUILTIN

    return ((n, c.summary, c.source) for n, c in BUILTIN.items())


def _layouts() -> Entries:
    from hooklearn.corpora.layouts import LAYOUTS

    return ((n, c.summary, c.source) for n, c in LAYOUTS.items())


def _organisms() -> Entries:
    from hooklearn.organisms import ORGANISMS
    from hooklearn.organisms.kinds import KINDS
    from hooklearn.organisms.suppressed import edits

    for name, o in ORGANISMS.items():
        yield name, o.summary, "ships" if o.shipped else "built when asked for"
    for name, kind in KINDS.items():
        yield name, f"{kind.what}; truth: {' or '.join(kind.truth)}", "native, built in seconds"
    for name, (organism, edit) in edits().items():
        yield name, f"{edit.what}; truth: {' or '.join(edit.truth)}", f"an edit of {organism.name}, made in minutes"


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
    "batteries": _batteries,
    "fitters": _fitters,
    "corpora": _corpora,
    "layouts": _layouts,
    "organisms": _organisms,
    "recipes": _recipes,
    "models": _models,
}


def _options(what: str, name: str) -> dict[str, Any]:
    found = _shelf(what).get(name)
    return {"options": [dataclasses.asdict(o) for o in options_of(found.build if what == "corpora" else found)]}


def _layout_columns(name: str) -> dict[str, Any]:
    from hooklearn.corpora.layouts import Options, columns

    return {"columns": columns(name), "options": [dataclasses.asdict(o) for o in options_of(Options)]}


def _recipe_config(name: str) -> dict[str, Any]:
    from hooklearn.recipes import RECIPES

    return {"config": RECIPES[name]()}


def _battery_config(name: str) -> dict[str, Any]:
    from hooklearn.batteries import battery

    return {"config": {"attacks": battery(name)}}


def _organism_card(name: str) -> dict[str, Any]:
    from hooklearn.organisms import card

    return card(name)


_MORE: dict[str, Callable[[str], dict[str, Any]]] = {
    **{what: partial(_options, what) for what in ("methods", "attacks", "corpora")},
    "batteries": _battery_config,
    "layouts": _layout_columns,
    "recipes": _recipe_config,
    "organisms": _organism_card,
}
