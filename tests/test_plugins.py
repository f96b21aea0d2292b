"""What another package adds is listed, found by name, run and recorded; one that is broken breaks nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from user_files import hooklearn

import hooklearn as hl
from hooklearn import disk, organisms, store
from hooklearn.attack import attack_of
from hooklearn.edit import EVERY_METHOD, METHODS, method_of
from hooklearn.locate.fitters import EVERY_FITTER
from hooklearn.types import Curves, InputError

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "hooklearn-example"
PACKAGE = "hooklearn-example 0.1.0"
ADDED = {
    "methods": "sign_ascent", "attacks": "shrink", "fitters": "whitened_mean", "organisms": "tiny-orders",
    "corpora": "orders",
}  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package as pip installs it, in a folder of its own; no network, nothing is built in the checkout."""
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [*pip, *alone, "--target", str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def example(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(installed))
    yield installed
    _forget("hooklearn_example")


def _forget(module: str) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        del sys.modules[name]


def package(folder: Path, name: str, entries: str, **modules: str) -> None:
    """An installed package: what pip leaves of it, and its modules."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entries)
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


# ------------------------------------------------------------------------------------------ the example


@pytest.mark.parametrize("what", ADDED)
def test_list_shows_it_with_its_package(what: str, example: Path) -> None:
    """Beside everything that hooklearn brings, whose rows are as without it (the control)."""
    rows = {r["name"]: r for r in json.loads(hooklearn("list", what, "--json").stdout)[what]}
    assert rows[ADDED[what]]["source"] == PACKAGE
    assert rows[ADDED[what]]["what"]
    assert PACKAGE in hooklearn("list", what, ADDED[what]).stdout
    own = {n: r for n, r in rows.items() if r["source"] != PACKAGE}
    assert len(own) == len(rows) - 1 > 4


def test_without_the_package_there_is_nothing_of_it() -> None:
    assert ADDED["methods"] not in hooklearn("list", "methods").stdout
    with pytest.raises(InputError, match="unknown method 'sign_ascent'"):
        method_of("sign_ascent")


def test_a_run_made_of_nothing_but_the_example(example: Path, tmp_path: Path) -> None:
    """Organism, corpora, fitter, method and attack; edited to the budget, judged, and the record names the package."""
    out = tmp_path / "run"

    def corpus(part: str, options: str = "") -> list[str]:
        return ["--set", f"corpora.{part}={{name: orders, options: {{{options}}}, limit: 12}}"]

    done = hooklearn(
        "run", "tiny", "--out", out, "--json", "--no-report", "--set", "edit.method=sign_ascent", "--set",
        "edit.keep=0.2", "--set", "attacks=[{name: shrink, factor: 0.9}]", "--set", "locate.fitter=whitened_mean",
        "--set", "locate.tokens=0", "--set", "locate.rank=1", "--set", "organism=tiny-orders", "--set",
        "evidence.enabled=false", "--set", "behaviour.samples=4", "--set", "edit.sites=mlp.out",
        *corpus("forget", "part: forget"), *corpus("retain", "part: forget, polite: true"),
        *corpus("near", "part: near, polite: true"), *corpus("heldout", "part: heldout"), *corpus("ood", "part: ood"),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]
    record = store.open_run(out)
    assert record["environment"]["plugins"] == {
        "method sign_ascent": PACKAGE, "attack shrink": PACKAGE, "fitter whitened_mean": PACKAGE,
        "organism tiny-orders": PACKAGE, "corpus orders": PACKAGE,
    }  # fmt: skip
    (edit,) = record["edits"]
    assert edit["method"] == "sign_ascent" and edit["options"] == {"keep": 0.2} and edit["within_budget"]
    curves = disk.load_frame(out / "curves.parquet")
    assert set(curves.loc[curves["attack"] == "shrink", "arm"]) == {"edited", "original", "never"}
    assert set(disk.load_frame(out / "locate.parquet")["fitter"]) == {"whitened_mean"}


def test_the_python_verbs_know_the_names(example: Path) -> None:
    model = hl.load("tiny")
    forget, retain = (hl.load_corpus(name="orders", options={"polite": p}, limit=12) for p in (False, True))
    spaces = hl.locate(model, forget, retain, sites="mlp.out", fitter="whitened_mean", rank=1)
    assert spaces.to_dataframe()["auc"].max() > 0.9, "orders and thanks are told apart"
    prose = hl.load_corpus(name="tiny", options={"part": "disruption"}, limit=8)
    result = hl.edit(model, "sign_ascent", keep=0.5, forget=forget, disruption=prose, sites="mlp.out", budget=0.01)
    assert 0.95 <= result.disruption.used(result.budget) <= 1
    (curve,) = hl.attack(model, result.delta, "shrink", heldout=forget)
    assert Curves([curve]).to_dataframe()["attack"].unique() == ["shrink"]
    assert organisms.card("tiny-orders")["what"]


def test_options_of_others_are_checked_like_our_own(example: Path) -> None:
    with pytest.raises(InputError, match="no option 'kepp'.*did you mean 'keep'"):
        method_of("sign_ascent", {"kepp": 0.1})
    with pytest.raises(InputError, match="keep must be above 0"):
        method_of("sign_ascent", {"keep": 0})
    with pytest.raises(InputError, match="did you mean 'sign_ascent'"):
        method_of("sign_ascnt")


def test_the_guide_shows_what_the_example_holds() -> None:
    """Every block of code in docs/how-to/plugin.md is part of a file of the package."""
    files = [p.read_text(encoding="utf-8") for p in EXAMPLE.rglob("*") if p.suffix in (".py", ".toml")]
    blocks = (ROOT / "docs" / "how-to" / "plugin.md").read_text(encoding="utf-8").split("```")[1::2]
    shown = [b.partition("\n")[2] for b in blocks if b.startswith(("py", "toml"))]
    assert len(shown) >= 6 and [b for b in shown if not any(b.strip() in f for f in files)] == []


# ----------------------------------------------------------------------------------------- broken ones

BROKEN = """[hooklearn.methods]
gone = no_such_module_anywhere:Thing
raising = raising_plugin:Thing
number = odd_plugin:NUMBER
misnamed = odd_plugin:Misnamed
natural = odd_plugin:NUMBER

[hooklearn.fitters]
silent = odd_plugin:silent
"""
ODD = """
from dataclasses import dataclass
from hooklearn.edit.method import Method
NUMBER = 3
@dataclass(frozen=True, kw_only=True)
class Misnamed(Method):
    "A method of another name."
    name = "other"
    source = "here"
    def path(self, problem): yield {}
def silent(forget, retain, rank, seed): pass
"""
RAISING = "raise OSError('the licence server\\n does not answer')\n"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Path) -> Iterator[Path]:
    """Beside the example, a package of which nothing can be used."""
    package(tmp_path / "site", "broken", BROKEN, odd_plugin=ODD, raising_plugin=RAISING)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    _forget("odd_plugin")
    _forget("raising_plugin")


def test_each_broken_one_is_one_line_and_the_others_are_listed(broken: Path) -> None:
    done = hooklearn("list", "methods", "--json")
    assert done.exit_code == 0
    names = {r["name"] for r in json.loads(done.stdout)["methods"]}
    assert names == {*METHODS, "sign_ascent"}
    lines = done.stderr.splitlines()
    why = {
        "gone": "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        "misnamed": "its name is 'other', and that of its entry point 'misnamed'",
        "natural": "hooklearn has one of this name",
        "number": "3 is no subclass of hooklearn.edit.method.Method",
        "raising": "OSError: the licence server does not answer",
    }
    assert len(lines) == len(why)
    for name, words in why.items():
        start = f"warning: method {name!r} of broken 1.0 cannot be used: "
        (line,) = [line for line in lines if line.startswith(start)]
        assert words in line
    assert "no function with a docstring" in hooklearn("list", "fitters").stderr


def test_what_is_not_asked_for_is_not_imported(broken: Path) -> None:
    """Neither for our own names, nor for another's; a name of its own does import it, and says what is wrong."""
    assert method_of("natural").name == "natural" and type(method_of("natural")) is METHODS["natural"]
    assert method_of("sign_ascent").name == "sign_ascent" and attack_of("shrink").settings() == ["factor=0.95"]
    assert EVERY_FITTER.get("contrast") and EVERY_METHOD.package("gone") == "broken 1.0"
    assert not {"odd_plugin", "raising_plugin"} & sys.modules.keys()
    with pytest.raises(InputError, match="method 'number' of broken 1.0 cannot be used"):
        method_of("number")
    assert "odd_plugin" in sys.modules
    done = hooklearn("run", "tiny", "--dry-run", "--set", "edit.method=raising")
    assert done.exit_code == 2 and done.stderr.splitlines()[-1].startswith("error: method 'raising' of broken 1.0")


def test_help_imports_nothing_of_it(broken: Path, installed: Path) -> None:
    code = (
        "import sys; from hooklearn.cli import main\n"
        "try: main(['list', '--help'])\n"
        "except SystemExit: print(sorted(n for n in sys.modules if n.endswith('_plugin') or 'hooklearn_example' in n))"
    )
    path = f"{broken}:{installed}:{ROOT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_two_packages_with_one_name_are_both_refused(
    tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two an experiment means must not depend on the alphabet."""
    package(tmp_path, "another", "[hooklearn.methods]\nsign_ascent = hooklearn_example.method:SignAscent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=f"of another 1.0 and {PACKAGE} cannot be used.*uninstall one"):
        method_of("sign_ascent")


def test_the_doctor_names_the_patient(broken: Path) -> None:
    from hooklearn.cli.doctor import _plugins

    problems = {(p["what"], p["name"]): p["problem"] for p in _plugins()}
    assert problems["methods", "sign_ascent"] is None and "OSError" in problems["methods", "raising"]


@pytest.mark.parametrize(
    "gives", ["None", "(torch.ones(3, 1), torch.ones(1))", "(torch.zeros(64, 1) / 0, torch.ones(1))"]
)
def test_a_fitter_that_gives_no_basis_is_refused(
    gives: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: object
) -> None:
    text = f"import torch\ndef odd(forget, retain, rank, seed):\n    'Odd.'\n    return {gives}\n"
    package(tmp_path, "odd-fitter", "[hooklearn.fitters]\nodd = odd_fitter:odd\n", odd_fitter=text)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget, retain = (hl.load_corpus(name="tiny", options={"part": p}, limit=6) for p in ("forget", "near"))
    with pytest.raises(InputError, match="fitter 'odd' at blocks.0.mlp.in"):
        hl.locate(tiny, forget, retain, sites="mlp.in", layers="0", fitter="odd", rank=1)
    _forget("odd_fitter")
