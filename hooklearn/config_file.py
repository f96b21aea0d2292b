"""Configs as they are written: a YAML file, and ``--set section.key=value``. Both become plain data."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from hooklearn.config import EditConfig
from hooklearn.types import InputError

MAX_VALUES, MAX_DEPTH = 100_000, 32
"""Of a YAML file, aliases counted as often as they are used: a few lines of them can stand for terabytes."""


def read_config(path: Path) -> dict[str, Any]:
    """A YAML file as plain data.

    Raises:
        InputError: not there, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"config file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config file {path} is not valid YAML: {error}") from error
    data = from_yaml(text, f"config file {path}")
    if not isinstance(data, dict):
        raise InputError(f"config file {path}: expected a mapping of sections")
    return data


class _Loader(yaml.SafeLoader):
    """Of a key that is written twice YAML takes the last one, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        written: set[Any] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and key.value in written:
                problem = f"the key {key.value!r:.60} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            written.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def from_yaml(text: str, what: str) -> Any:
    """Mappings with text as keys, lists, texts, numbers, booleans and null; nothing else, and not without end.

    Raises:
        InputError: one line that begins with ``what``.
    """
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 (a safe one)
    # what its constructors raise for values such as 2020-13-45, 0x or !!bool maybe is not of its own kind
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        first = (str(error).splitlines() or [""])[0]
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{what} is not valid YAML{where}: {first or type(error).__name__}") from error
    return _plain_data(data, what, [MAX_VALUES], 0)


def _plain_data(value: Any, what: str, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        raise InputError(f"{what}: more than {MAX_VALUES} values, or {MAX_DEPTH} levels, with its aliases written out")
    if isinstance(value, dict):
        return {_key(k, what): _plain_data(v, what, left, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_data(v, what, left, depth + 1) for v in value]
    if isinstance(value, str):
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise InputError(f"{what}: {value!r:.60} holds what no file name or text can: NUL, or half a character")
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    raise InputError(f"{what}: {value!s:.60} is read as a {type(value).__name__}; put it in quotes")


def _key(key: Any, what: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"{what}: the key {key!s:.60} is read as a {type(key).__name__}; put it in quotes")
    return key


def with_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """``edit.method=npo`` sets ``data["edit"]["method"]``; values are YAML.

    Another method takes with it the options that were written for the one before, a battery the list of attacks.

    Entries of a list go by their number, from 0: ``attacks.1.steps=8``.

    Examples:
        >>> with_overrides({"edit": {"method": "natural", "damping": 0.1}}, ["edit.method=repselect", "edit.rank=8"])
        {'edit': {'method': 'repselect', 'rank': 8}}
        >>> with_overrides({"attacks": [{"name": "erode"}]}, ["attacks.0.steps=8"])
        {'attacks': [{'name': 'erode', 'steps': 8}]}

    Raises:
        InputError: an override without ``=``, or a path through something that is not a section.
    """
    out = copy.deepcopy(data)
    for text in sorted(overrides, key=lambda t: not t.startswith("edit.method=")):
        path, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r}: write it as section.key=value")
        *sections, key = path.split(".")
        place: Any = out
        for section in sections:
            place = _inside(place, section, text)
        if isinstance(place, list):
            raise InputError(
                f"--set {text!r}: {key!r} is an entry of a list; write which of its keys, {path}.KEY=value"
            )
        new = from_yaml(value, f"--set {text!r}: the value")
        if path == "battery" and new is not None:
            out.pop("attacks", None)
        if path == "edit.method" and new != place.get(key):
            for option in place.keys() - EditConfig.model_fields.keys():
                del place[option]
        place[key] = new
    return out


def _inside(place: Any, section: str, text: str) -> Any:
    """A section of a section, made where it is missing; an entry of a list by its number."""
    if isinstance(place, list):
        entries = {str(i): entry for i, entry in enumerate(place)}
        if section not in entries:
            raise InputError(
                f"--set {text!r}: no entry {section!r}; valid: {', '.join(entries) or 'none, it is empty'}"
            )
        found = entries[section]
    else:
        found = place.setdefault(section, {})
    if not isinstance(found, dict | list):
        raise InputError(f"--set {text!r}: {section!r} is not a section")
    return found
