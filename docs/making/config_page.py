"""The config, section by section, from the pydantic models that read it."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from words import table

from hooklearn.cli.options import field_docs, plain, type_text

_HEAD = """# Config

One YAML file per run; a [recipe](recipes.md) is a function that returns the same. Paths are relative to the file.
Unknown keys are errors that name the nearest valid one; `--set section.key=value` changes any of them."""

_SWEEP = """## The file of a sweep

`hooklearn sweep FILE`: methods x budgets x seeds ([Sweep and compare](../how-to/compare.md))."""


def page() -> str:
    from hooklearn.config import ROLES, RunConfig
    from hooklearn.running import sweep_config

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
        return type_text(annotation).replace(name, f"[{name}](#{name.lower()})")
    return f"`{type_text(annotation)}`"


def _default(field: Any) -> str:
    if field.default is not PydanticUndefined:
        plain_value = not isinstance(field.default, BaseModel)
        return f"`{field.default!r}`" if plain_value else "as below"
    return "needed" if field.is_required() else f"`{field.default_factory()!r}`"
