"""What every cell of a sweep rests on, and whether a sweep that was begun may go on with another file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooklearn import store
from hooklearn.config import RunConfig, parse, without_panel
from hooklearn.jsonable import jsonable
from hooklearn.running.sweep_config import Plan
from hooklearn.types import InputError

SCHEMA_VERSION = 1
PLACES = "edit.sites and edit.layers"


def fixed(plan: Plan, held: Mapping[str, str]) -> dict[str, Any]:
    """What may not change under a sweep that was begun; ``held``: hashes of what is in memory."""
    tuning, base = plan.config.tuning, plan.base.model_dump(mode="json")
    places = {key: base["edit"][key] for key in ("sites", "layers")}  # of every method that names no others
    found = {"base": _shared_part(base), PLACES: places, "tuning": tuning and tuning.model_dump(mode="json")}
    return found | ({"object": dict(held)} if held else {})


def checked(path: Path, found: Any) -> dict[str, Any]:
    """The record of a sweep that was begun, as it was read. Raises InputError where it is no such thing."""
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(found, dict) and version is not None and version != SCHEMA_VERSION:
        raise InputError(f"{path} has schema_version {version}, this version of hooklearn reads {SCHEMA_VERSION}")
    keys = ("folder", "label", "status")
    whole = version is not None and all(isinstance(found.get(key, {}), dict) for key in ("fixed", "declared", "tuning"))
    cells = found.get("cells") if whole else None
    if not isinstance(cells, list) or not all(
        isinstance(cell, dict) and all(isinstance(cell.get(key), str) for key in keys) for cell in cells
    ):
        raise InputError(f"{path}: damaged, it is no record of a sweep; use another --out")
    return found


def declared(plan: Plan) -> dict[str, Any]:
    """label -> the method, its options and its search."""
    return {m.label: jsonable(m.model_dump(mode="json")) for m in plan.config.methods}


def check_goes_on(plan: Plan, out: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError where the sweep in this folder was begun with something else than :func:`fixed` says now, a
    method was declared otherwise, or cells that are finished are asked for no longer: no table would have them."""
    for key, value in now.items():
        was = earlier.get("fixed", {}).get(key)
        if key == PLACES and was is None:  # begun before this was written down
            was = places(plan, out, earlier) or value
        if _as_of_now(key, was) != jsonable(value):
            raise InputError(
                f"{out}: holds a sweep with another {key}; only methods, budgets and seeds may be added "
                "to a sweep that was begun"
            )
    methods = declared(plan)
    for label, was in earlier.get("declared", {}).items():
        if methods.get(label, was) != was:
            raise InputError(
                f"{out}: {label!r} was declared otherwise when this sweep was begun; give it another label"
            )
    asked = {f"cells/{name}" for name, _, _ in plan.cells()}
    for cell in earlier.get("cells", []):
        if cell["status"] == "done" and cell["folder"] not in asked:
            raise InputError(
                f"{out}: {cell['folder']} is finished, and the file asks no longer for {cell['label']!r} at this "
                "budget and seed; put it back (methods, budgets and seeds may only be added), or use another --out"
            )


def cell_goes_on(folder: Path, config: RunConfig) -> bool:
    """Whether a cell that was begun here has the options and the capability panel of ``config``, which may have changed
    since."""
    try:
        begun = parse(store.open_run(folder)["config"])
    except InputError:  # of another version
        return False
    edits = [c.edit.model_dump(mode="json") for c in (begun, config)]
    return edits[0] == edits[1] and begun.corpora.get("capability") == config.corpora.get("capability")


def places(plan: Plan, out: Path, earlier: Mapping[str, Any]) -> dict[str, Any] | None:
    """Sites and layers of a finished cell whose method named none of its own."""
    methods = [*earlier.get("declared", {}).items(), *declared(plan).items()]
    named = {label for label, m in methods if {"sites", "layers"} & {*m, *(m.get("search") or {})}}
    for cell in earlier.get("cells", []):
        if cell["label"] not in named and store.is_done(out / cell["folder"]):
            edit = store.open_run(out / cell["folder"])["config"]["edit"]
            return {key: edit.get(key) for key in ("sites", "layers")}
    return None


def _as_of_now(key: str, value: Any) -> Any:
    """What a sweep was begun with; options that there are since then stand at their defaults."""
    if key != "base" or not isinstance(value, dict):
        return jsonable(value)
    try:
        return jsonable(_shared_part(parse(value).model_dump(mode="json")))
    except InputError:
        return jsonable(value)


def _shared_part(base: dict[str, Any]) -> dict[str, Any]:
    """Of a config what all cells have in common; the capability panel is a check beside, which may be added later."""
    return {k: v for k, v in without_panel(base).items() if k not in ("name", "edit", "budget", "seeds")}
