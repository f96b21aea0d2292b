"""The config, section by section, from the pydantic models that read it."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from words import field_docs, plain, table

_HEAD = """# Config

One YAML file per run; a [recipe](recipes.md) is a function that returns the same. Paths are relative to the file.
Unknown keys are errors that name the nearest valid one; `--set section.key=value` changes any of them."""

_SWEEP = """## The file of a sweep

`hooklearn sweep FILE`: methods x budgets x seeds ([Sweep and compare](../how-to/compare.md))."""


def page() -> str:
    from hooklearn import sweep_config
    from hooklearn.config import ROLES, RunConfig

    roles = f"Roles of `corpora`: {', '.join(f'`{r}`' for r in ROLES)}. Every run needs forget, disruption and heldout."
    parts = [_HEAD, "## The whole file", roles]
    sections = _tree(RunConfig)
    parts += [_section(m) for m in sections]
    sweep = [m for m in _tree(sweep_config.SweepConfig) if m not in sections]
    return "\n\n".join([*parts, _SWEEP, *(_section(m) for m in sweep)])


def _tree(model: type[BaseModel]) -> list[type[BaseModel]]:
    found = [model]
    for field in model.model_fields.values():
        found += [m for inner in _models(field.annotation) for m in _tree(inner) if m not in found]
    return list(dict.fromkeys(found))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models(a)]


def _section(model: type[BaseModel]) -> str:
    docs = field_docs(model)
    rows = [(f"`{n}`", _type(f.annotation), _default(f), docs.get(n, "")) for n, f in model.model_fields.items()]
    doc = plain(model.__doc__) if "__doc__" in vars(model) else ""
    more = (
        "Further keys are the options of the method or the attack."
        if model.model_config.get("extra") == "allow"
        else ""
    )
    parts = [f"### {model.__name__}", doc, table(("key", "type", "default", ""), rows), more]
    return "\n\n".join(p for p in parts if p)


def _type(annotation: Any) -> str:
    """As it would be written, sections as links to themselves."""
    if found := _models(annotation):
        name = found[0].__name__
        return _text(annotation).replace(name, f"[{name}](#{name.lower()})")
    return f"`{_text(annotation)}`"


def _text(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    args = typing.get_args(annotation)
    if args and type(None) in args:
        return " | ".join("none" if a is type(None) else _text(a) for a in args)
    if args:
        origin = typing.get_origin(annotation)
        name = getattr(origin, "__name__", "")
        if name in ("Union", "UnionType"):
            return " | ".join(map(_text, args))
        return f"{name}[{', '.join(map(_text, args))}]"
    return str(annotation).replace("typing.", "")


def _default(field: Any) -> str:
    if field.default is not PydanticUndefined:
        plain_value = not isinstance(field.default, BaseModel)
        return f"`{field.default!r}`" if plain_value else "as below"
    return "needed" if field.is_required() else f"`{field.default_factory()!r}`"
