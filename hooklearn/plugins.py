"""What other packages add: methods, attacks, fitters, organisms and corpora, by entry points.

A package says so in its ``pyproject.toml``; nothing of it is imported before its name is asked for::

    [project.entry-points."hooklearn.methods"]
    sign_ascent = "my_package:SignAscent"

Its name there is the name that a config gives. How to write one: docs/how-to/plugin.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from hooklearn.types import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shelf(Generic[T]):
    """Everything of one kind by name: what hooklearn brings, then what installed packages add."""

    kind: str
    """In the singular: ``method``."""
    group: str
    """Of the entry points: ``hooklearn.methods``."""
    own: Mapping[str, T]
    accept: Callable[[str, Any, str], T]
    """(name, what was loaded, package) -> what is kept; raises where it is nothing of this kind."""
    lent: dict[str, T] = field(default_factory=dict[str, T], compare=False)
    """What is here only while a run goes on (:meth:`lending`)."""

    def get(self, name: str, beside: Iterable[str] = ()) -> T:
        """Raises InputError for a name that nobody brings, and for one whose package is at fault.

        Args:
            beside: names of something else that could have been meant.
        """
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{self.kind}: give its name, not {name!r:.80}")
        if (here := self.own.get(name, self.lent.get(name))) is not None:
            return here
        found = self._added().get(name)
        if found is None:
            valid = [*self.own, *self.lent, *self._added(), *beside]
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"unknown {self.kind} {name!r}; valid: {', '.join(valid)}{hint}")
        return self._load(name, found)

    def package(self, name: str) -> str | None:
        """Who brings it, with its version; None for hooklearn itself and for a name that nobody brings."""
        if name in self.lent:
            return f"in memory: {called(self.lent[name])}"
        found = None if name in self.own else self._added().get(name)
        return _package(found[0]) if found else None

    @contextmanager
    def lending(self, name: str, thing: T) -> Iterator[None]:
        """Inside, ``thing`` is had by its name like everything else; nothing happens where it is here already.

        Raises InputError where something else has that name.
        """
        found = self.own.get(name, self.lent.get(name))
        if found is None and name in self._added():
            found = self.get(name)
        if found is not None and found is not thing:
            raise InputError(f"{self.kind} {name!r} is {called(found)} already; give {called(thing)} a name of its own")
        if found is None:
            self.lent[name] = thing
        try:
            yield
        finally:
            if found is None:
                del self.lent[name]

    def added(self) -> Iterator[tuple[str, str, T | InputError]]:
        """(name, package, what it is or why it cannot be used) of everything that other packages add."""
        for name, found in self._added().items():
            try:
                yield name, _package(found[0]), self._load(name, found)
            except InputError as error:
                yield name, _package(found[0]), error

    def _added(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda e: (e.name, _package(e))):
            found.setdefault(entry.name, []).append(entry)
        return found

    def _load(self, name: str, found: list[EntryPoint]) -> T:
        packages = " and ".join(map(_package, found))
        try:
            if name in self.own:
                raise InputError("hooklearn has one of this name; give it another")
            if len(found) > 1:
                raise InputError("both have one of this name; uninstall one of them")
            return self.accept(name, found[0].load(), packages)
        except Exception as error:  # it is somebody else's code: whatever it raises says that it cannot be used
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise InputError(f"{self.kind} {name!r} of {packages} cannot be used: {' '.join(why.split())}") from error


def named_class(base: type[T]) -> Callable[[str, Any, str], type[T]]:
    """Accepts subclasses of ``base`` whose ``name`` is that of the entry point."""

    def accept(name: str, found: Any, package: str) -> type[T]:  # noqa: ARG001 (one interface)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise InputError(f"{found!r:.60} is no subclass of {base.__module__}.{base.__name__}")
        check_name(name, getattr(found, "name", None))
        return found

    return accept


def called(thing: Any) -> str:
    """Where a class or function is from, and what it is called there."""
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', repr(thing))}"


def check_name(name: str, own: Any) -> None:
    if own != name:
        raise InputError(f"its name is {own!r}, and that of its entry point {name!r}")


def summary(found: Any) -> str:
    """First line of a function's docstring; raises InputError where it has none, or is no function."""
    lines = (getattr(found, "__doc__", None) or "").strip().splitlines()
    if not callable(found) or not lines:
        raise InputError(f"{found!r:.60} is no function with a docstring that says what it is")
    return lines[0]


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package without a name"
