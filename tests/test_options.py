"""What can be set is told by the command line and the pages alike, from the class that reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import user_files
import yaml
from typer.testing import CliRunner

from hooklearn.attack import ATTACKS
from hooklearn.cli import app
from hooklearn.cli.options import Option, options_of
from hooklearn.corpora import BUILTIN
from hooklearn.edit import METHODS
from hooklearn.recipes import RECIPES


def hooklearn(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


@dataclass(frozen=True, kw_only=True)
class Parent:
    name: ClassVar[str] = "not an option"
    rate: float = 0.1
    """How fast."""
    kind: Literal["soft", "hard"] = "soft"


@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    rate: float = 0.2
    ranks: tuple[int, ...]
    """How many :func:`hooklearn.linalg.top_components`."""
    cap: int | None = None
    """None: no cap."""


def test_fields_with_their_types_defaults_and_the_text_under_them() -> None:
    assert options_of(Child) == [
        Option("rate", "float", "0.2", "How fast."),  # said once, by the parent
        Option("kind", "soft | hard", "'soft'", ""),
        Option("ranks", "tuple[int, ...]", None, "How many `hooklearn.linalg.top_components`."),
        Option("cap", "int | none", "None", "None: no cap."),
    ]


def test_arguments_of_a_function_and_of_what_can_be_called() -> None:
    def build(n: int, part: str = "all") -> None:
        """Builds.

        Args:
            part: one of
                many, or :func:`all`.
        Raises:
            n: not an argument.
        """

    class Builder:
        def __call__(self, part: str | None = None) -> None: ...

    assert options_of(build) == [Option("n", "int", None, ""), Option("part", "str", "'all'", "one of many, or `all`.")]
    assert options_of(Builder()) == [Option("part", "str | none", "None", "")]


@pytest.mark.parametrize("thing", [*METHODS.values(), *ATTACKS.values()], ids=lambda t: t.name)
def test_every_option_says_what_it_is(thing: type) -> None:
    assert [o.name for o in options_of(thing) if not o.what] == []


@pytest.mark.parametrize("name", BUILTIN)
def test_every_option_of_a_corpus_says_what_it_is(name: str) -> None:
    assert [o.name for o in options_of(BUILTIN[name].build) if not o.what] == []


def test_one_method_with_its_options() -> None:
    told = json.loads(hooklearn("list", "methods", "natural", "--json").stdout)
    assert told["name"] == "natural" and {o["name"] for o in told["options"]} >= {"forget_weight", "damping", "rank"}
    shown = hooklearn("list", "methods", "natural").stdout
    for option in told["options"]:
        assert option["name"] in shown and option["type"] in shown
    assert "``" not in shown


def test_a_kind_that_there_is_no_list_of() -> None:
    told = user_files.hooklearn("list", "metods")
    assert told.exit_code == 2 and told.stdout == ""
    assert told.stderr.startswith("error: there is no list of 'metods'; valid: methods, attacks")
    assert "did you mean 'methods'?" in told.stderr


@pytest.mark.parametrize(
    ("what", "name", "holds"),
    [
        ("attacks", "erode", "steps"),
        ("corpora", "threats", "completion"),
        ("fitters", "contrast", "generalised"),
        ("organisms", "locked", "DISABLED"),
        ("models", "tiny", "four-layer"),
        ("layouts", "tofu", "tofu"),
    ],
)
def test_one_of_anything(what: str, name: str, holds: str) -> None:
    result = hooklearn("list", what, name)
    assert result.exit_code == 0 and name in result.stdout and holds in result.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_file_to_start_from(name: str, tmp_path: Path) -> None:
    result = hooklearn("list", "recipes", name)
    file = tmp_path / "mine.yaml"
    file.write_text(result.stdout, encoding="utf-8")
    assert yaml.safe_load(result.stdout) == json.loads(hooklearn("list", "recipes", name, "--json").stdout)["config"]
    if name == "tiny":  # the others need models that may not be here
        assert hooklearn("run", str(file), "--dry-run").exit_code == 0


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    result = hooklearn("list", "methods", "naturl")
    assert result.exit_code == 2 and "'naturl'" in result.stderr and "did you mean 'natural'?" in result.stderr
    assert result.stderr.count("\n") == 1
