"""From what is written to what is meant: a mapping becomes a config or a dataclass, or one line says what is wrong."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, TypeVar, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from hooklearn.types import InputError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def validated(cls: type[M], data: Any, where: str) -> M:
    """A config out of a mapping.

    Raises:
        InputError: one line that names the key, its value and what would be valid.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping of sections, got {type(data).__name__}")
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(error, cls)}") from error


def build(cls: type[T], options: Mapping[str, Any], what: str) -> T:
    """A dataclass from the options in a config, with their types checked (YAML reads ``1e-4`` as text).

    Raises:
        InputError: one line that begins with ``what``, or the dataclass's own.
    """
    hints = get_type_hints(cls)
    several_of = {n for n, hint in hints.items() if get_origin(hint) is tuple}
    # one number where there may be several: as one would say it
    given = {n: [v] if n in several_of and isinstance(v, int | float | str) else v for n, v in options.items()}
    try:
        built = TypeAdapter(cls).validate_python(given)
    except ValidationError as error:
        own = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(own, InputError):
            raise own from None
        raise InputError(f"{what}: {_first_problem(error)}") from error
    for name in options:
        value = getattr(built, name)
        several = value if isinstance(value, list | tuple) else [value]
        if not all(math.isfinite(v) for v in several if isinstance(v, float)):
            raise InputError(f"{what}: {name} must be finite, got {options[name]!r:.80}")
    return built


def whole_number(value: Any, what: str, *, least: int, below: int | None = None) -> int:
    """The value. Raises InputError where it is no whole number, or out of range."""
    found = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else least - 1
    if found < least or (below is not None and found >= below):
        within = f"a whole number, {least} or more" + f", below {below}" * (below is not None)
        raise InputError(f"{what} must be {within}, got {value!r:.60}")
    return found


def finite_number(value: Any, what: str, *, least: float = -math.inf) -> float:
    """The value. Raises InputError where it is no number, NaN, infinite or too small."""
    try:
        found = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found >= least):
        raise InputError(
            f"{what} must be a finite number{f', {least:g} or more' * (least > -math.inf)}, got {value!r:.60}"
        )
    return found


def _adapter(hint: Any) -> TypeAdapter[Any]:
    """YAML takes ``phrasing: 1`` for a number, where text is wanted; a class of its own says itself what it takes."""
    try:
        return TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True))
    except PydanticUserError:
        return TypeAdapter(hint)


def arguments(function: Callable[..., Any], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Options of a config as the function's annotations want them (a command line has text for numbers, too); what it
    does not say, or is no type of ours, is passed on as it is.

    Raises:
        InputError: one line that begins with ``what`` and names the option.
    """
    try:
        hints = {n: p.annotation for n, p in inspect.signature(function, eval_str=True).parameters.items()}
    except NameError:  # somebody's names that are imported for a type checker alone
        hints = {}
    found = dict(options)
    for name, value in options.items():
        if hints.get(name, inspect.Parameter.empty) is inspect.Parameter.empty:
            continue
        try:
            found[name] = _adapter(hints[name]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise InputError(f"{what}: option {name}: {message} (got {value!r:.80})") from error
        except PydanticUserError:
            continue
    return found


def _first_problem(error: ValidationError, root: type[BaseModel] = BaseModel) -> str:
    first = error.errors()[0]
    path = ".".join(str(p) for p in first["loc"])
    path = path if path.isprintable() else ascii(path)[1:-1]
    if first["type"] == "extra_forbidden":
        return unknown_key(path, str(first["loc"][-1]), _valid_keys(first["loc"], root))
    message = first["msg"].removeprefix("Value error, ") + "".join(
        e["msg"].replace("Input should be", "; or")
        for e in error.errors()[1:]
        if _is_word_instead(e["loc"], first["loc"])
    )
    if first["type"] in ("model_type", "dict_type"):
        message = "a section is expected, keys with values"
    value = first.get("input")
    shown = f" (got {value!r:.80})" if isinstance(value, str | int | float | list | None) and path else ""
    return f"{path}: {message}{shown}" if path else message


def _is_word_instead(loc: tuple[Any, ...], of: tuple[Any, ...]) -> bool:
    """Whether a problem is that of a word which may stand in place of what was tried at ``of``: ``7 or 'original'``."""
    return loc[:-1] == of[:-1] and any(str(tag).startswith("literal[") for tag in loc[-1:])


def _valid_keys(loc: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    """The fields of the section that the unknown key was written in."""
    section: Any = root
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        section = next((c for c in _models_in(annotation)), section)
    return list(section.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]


def unknown_key(where: str, key: str, valid: Any) -> str:
    names = [str(v) for v in valid]
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown key {where!r}; valid: {', '.join(names)}{hint}"
