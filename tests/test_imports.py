"""Imports only go down: the order of the parts, read from the source of every module."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# low to high; the modules of one line may import each other
ORDER = [
    "hooklearn.types hooklearn.transfer hooklearn.sharing hooklearn.callable_module hooklearn.jsonable "
    "hooklearn.parquet hooklearn.memory hooklearn.parallel",
    "hooklearn.callbacks",
    # config knows the types only; methods and attacks have their options checked by it
    "hooklearn.bfloat16 hooklearn.linalg hooklearn.sketch hooklearn.moments hooklearn.losses hooklearn.flops "
    "hooklearn.batteries hooklearn.validation hooklearn.config hooklearn.config_file hooklearn.plugins "
    "hooklearn.determinism",
    "hooklearn.corpora.corpus hooklearn.corpora.permuted hooklearn.corpora.shipped hooklearn.corpora.tendencies "
    "hooklearn.corpora.fact_sets hooklearn.corpora.tiny_world hooklearn.corpora.tiny_facts",
    "hooklearn.corpora",
    "hooklearn.loading",
    "hooklearn.experts",
    "hooklearn.packing hooklearn.data hooklearn.disk hooklearn.store hooklearn.deltas hooklearn.builtin "
    "hooklearn.pretrained hooklearn.plain hooklearn.site_names hooklearn.traits hooklearn.bridge hooklearn.models "
    "hooklearn.integrity hooklearn.editing hooklearn.tensor_files hooklearn.sharded hooklearn.exporting "
    "hooklearn.interventions hooklearn.prefixes hooklearn.generation",
    "hooklearn.forward",
    "hooklearn.lora hooklearn.train hooklearn.adapters",
    "hooklearn.measure hooklearn.referees hooklearn.disruption hooklearn.panel",
    "hooklearn.evals",
    "hooklearn.locate",
    "hooklearn.preview",
    "hooklearn.edit",
    "hooklearn.attack",
    "hooklearn.organisms",
    "hooklearn.evidence",
    "hooklearn.running hooklearn.experiment hooklearn.recipes hooklearn.api",
    "analysis.reading analysis.style analysis.writing",
    "analysis.tables analysis.estimates",
    "analysis.evidence",
    "analysis.scores",
    "analysis.arrays analysis.worst",
    "analysis.measures",
    "analysis.recovery",
    "analysis.rules",
    "analysis.spoken",
    "analysis.doubts analysis.leniency",
    "analysis.verdict",
    "analysis.cells",
    "analysis.equal analysis.packed analysis.tuning",
    "analysis.comparison analysis.comparability",
    "analysis.compare analysis.outcome analysis.calibrate",
    "analysis.plots analysis.markup analysis.tradeoff analysis.confusion",
    "analysis.side_by_side analysis.layers analysis.directions analysis.envelope",
    "analysis.sweep",
    "analysis.explorer",
    "analysis.sections analysis.where analysis.beside analysis.advice",
    "analysis.report_record analysis.model_card analysis.inspect_log",
    "analysis.report analysis.verify",
    "analysis.view",
    "hooklearn.cli hooklearn.__main__",
]
LEVEL = {module: level for level, line in enumerate(ORDER) for module in line.split()}

# the public names are looked up when first used, so that importing the package loads nothing
FACADES = ("hooklearn", "analysis")
# ``hooklearn.attack`` is a package and a verb; the verb needs everything, the package must not
VERBS = {("hooklearn.attack", "hooklearn.api")}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(p): p for package in FACADES for p in sorted((ROOT / package).rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a tree imports, also inside functions; not for type checking only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in inside)
        else:
            yield from imported(node)


ARROWS = [
    (module, target)
    for module, path in MODULES.items()
    for target in dict.fromkeys(imported(ast.parse(path.read_text(encoding="utf-8"))))
]


def place(module: str) -> str | None:
    """The entry of ORDER that a module belongs to."""
    return next((m for m in (module, module.rpartition(".")[0]) if m in LEVEL), None)


def upward(arrows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    found = []
    for module, target in arrows:
        a, b = place(module), place(target)
        if a and b and LEVEL[b] > LEVEL[a] and (a, b) not in VERBS:
            found.append((module, target))
    return found


def test_every_module_has_a_place() -> None:
    """A new module is given a line in ORDER before it imports anything."""
    assert [m for m in MODULES if m not in FACADES and place(m) is None] == []


def test_no_import_runs_up() -> None:
    """Also lazy imports count; an arrow against the order is noticed (positive control)."""
    assert len(ARROWS) > 100
    assert upward(ARROWS) == []
    assert upward([("hooklearn.linalg", "hooklearn.models")]) != []
    assert upward([("hooklearn.edit.natural", "hooklearn.attack.curve")]) != []


def test_siblings_do_not_know_each_other() -> None:
    """edit, attack and organisms share what is below them; only an organism may be *made* by an editing method."""
    siblings = {"hooklearn.edit", "hooklearn.attack", "hooklearn.organisms"}
    pairs = {(place(a), place(b)) for a, b in ARROWS}
    known = {p for p in pairs if siblings >= set(p) and p[0] != p[1]}
    assert known <= {("hooklearn.organisms", "hooklearn.edit")}


def test_the_two_packages_meet_at_the_border() -> None:
    """Only the command line (``hooklearn.cli``) sees analysis; analysis sees the border types, nothing else."""
    up = {a for a, b in ARROWS if b.split(".")[0] == "analysis" and a.startswith("hooklearn")}
    assert up and {place(a) for a in up} == {"hooklearn.cli"}
    down = {b for a, b in ARROWS if a.startswith("analysis") and b.startswith("hooklearn")}
    # what crosses the border, how it is written and how it is read
    assert down == {"hooklearn.types", "hooklearn.jsonable", "hooklearn.parquet"}


def test_one_module_knows_transformer_lens() -> None:
    """So a change of TransformerLens is a change of bridge.py."""
    assert {a for a, b in ARROWS if b.split(".")[0] == "transformer_lens"} == {"hooklearn.bridge"}


@pytest.mark.parametrize("package", ["hooklearn", "analysis", "hooklearn.cli"])
def test_importing_loads_neither_torch_nor_transformer_lens(package: str) -> None:
    """Importing TransformerLens takes seconds; ``--help`` must not. models does load both (the control)."""
    code = f"import {package}, sys; print(*sorted(sys.modules.keys() & {{'torch', 'transformer_lens'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
    importlib.import_module("hooklearn.models")
    assert sys.modules.keys() >= {"torch", "transformer_lens"}


@pytest.mark.parametrize("package", FACADES)
def test_every_public_name_is_there(package: str) -> None:
    """Names that are looked up lazily exist; an unknown one is an AttributeError that says so."""
    module = importlib.import_module(package)
    missing = [n for n in module.__all__ if not hasattr(module, n)]
    assert missing == [] and set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_packages_named_for_verbs_stay_verbs() -> None:
    """Importing ``hooklearn.edit`` puts a module in the place of the function; it is called all the same."""
    import hooklearn

    for verb in ("locate", "edit", "attack"):
        importlib.import_module(f"hooklearn.{verb}")
        with pytest.raises(TypeError, match="missing .* required"):
            getattr(hooklearn, verb)()
