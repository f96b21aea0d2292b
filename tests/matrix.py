"""The wheel, installed into empty environments and used there: ``make test-matrix``, ``make test-extras``.

For every Python that is here, with the lowest and with the newest releases that pyproject.toml allows. The lowest are
the lowest that have a wheel for that Python: nobody compiles scipy to try a bound. A Python that is not here is named
as not tried. Environments stay in ``build/matrix``, beside ``matrix.json`` with the releases and what came of each.

    python tests/matrix.py --python 3.12 --releases lowest
    python tests/matrix.py --python 3.11 --extra evals
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
RESOLUTION = {"lowest": "lowest-direct", "newest": "highest"}
NO_WHEEL = ("transformers-stream-generator", "sqlitedict", "rouge-score", "word2number")
"""Pure Python of which the index has sources only; everything else is not compiled here."""
WHEELS = ["--only-binary", ":all:", *(word for name in NO_WHEEL for word in ("--no-binary", name))]
TESTS = {
    # what hooklearn takes for granted of TransformerLens and transformers, a family of models each
    "core": ("test_models.py", "test_experts.py", "test_locate.py", "test_sharing.py"),
    "evals": ("test_evals.py",),
    "scale": ("test_fanout.py",),
    "track": ("test_callbacks.py",),
    "peft": ("test_adapters.py",),
    "notebook": ("test_notebook_verbs.py",),
}
TOOLS = ("pytest", "hypothesis", "beartype")
NAMED = ("transformer-lens", "torch", "transformers", "numpy", "pandas", "scipy", "datasets", "pydantic")
USED = """
import analysis, hooklearn, shlex, sys
from importlib.metadata import entry_points
from pathlib import Path
from analysis.explorer import static
from hooklearn.corpora.shipped import data_folder

(command,) = entry_points(group="console_scripts", name="hooklearn")
helps = [f"{what} --help" for what in ("run", "export", "sweep", "compare", "organism build")]
lists = [f"list {what}" for what in "methods attacks fitters corpora layouts organisms recipes models".split()]
few = "--set 'attacks=[{name: few_shot, shots: 2}]' --set behaviour.samples=8 --set evidence.enabled=false"
run = f"run tiny {few} --out runs/tiny --quiet"
for line in (*helps, *lists, "doctor", run, "report runs/tiny", "verify runs/tiny", "view runs"):
    try:
        command.load()(shlex.split(line))
    except SystemExit as end:
        assert not end.code, f"hooklearn {line}: exit code {end.code}"

for package in (analysis, hooklearn):
    folder = Path(package.__file__).parent
    assert folder.is_relative_to(sys.prefix), folder
    assert (folder / "py.typed").is_file()
assert data_folder().is_relative_to(sys.prefix), data_folder()
page = Path("runs/tiny/report.html").read_text(encoding="utf-8")
assert static.module() in page and static.style() in page, "the explorer is not in the report"
assert '<table id="runs">' in Path("runs/index.html").read_text(encoding="utf-8")
"""
"""In an empty folder: the whole job but for most attacks, by the installed packages and what is not Python in them. In
one process, for importing torch and TransformerLens is most of what a command takes."""


class Failed(Exception):
    """What was run, and the end of what it said."""


def main() -> int:
    asked = _arguments()
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        _say("uv is not here: pip install uv")
        return 2
    work: Path = asked.work.resolve()
    shutil.rmtree(work / "dist", ignore_errors=True)
    _run([uv, "build", "--quiet", "--wheel", "--out-dir", str(work / "dist"), str(ROOT)])
    [wheel] = (work / "dist").glob("*.whl")
    found: list[dict[str, Any]] = []
    for python in asked.python:
        here = subprocess.run([uv, "python", "find", "--system", python], capture_output=True, text=True, check=False)
        for releases in asked.releases:
            for extra in asked.extra:
                one: dict[str, Any] = {"python": python, "releases": releases, "extra": extra}
                if here.returncode:
                    found.append({**one, "result": "not here: not tried"})
                else:
                    name = f"{python.strip('/').replace('/', '-')}-{releases}-{extra}"
                    found.append({**one, **_tried(uv, here.stdout.strip(), releases, extra, wheel, work / name)})
                _say(json.dumps(found[-1]))
                (work / "matrix.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    tried = [f["result"] for f in found if "interpreter" in f]
    return 0 if tried and set(tried) == {"passed"} else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions, or paths of interpreters")
    parser.add_argument("--releases", nargs="+", choices=RESOLUTION, default=list(RESOLUTION))
    parser.add_argument("--extra", nargs="+", choices=TESTS, default=["core"])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "matrix")
    return parser.parse_args()


def _tried(uv: str, interpreter: str, releases: str, extra: str, wheel: Path, place: Path) -> dict[str, Any]:
    """An environment of its own: installed, used in an empty folder, then the tests; the first failure ends it."""
    bin_, folder, pins = place / "bin", place.with_name(f"{place.name}-used"), place.with_name(f"{place.name}.txt")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun = time.monotonic()
    found: dict[str, Any] = {"interpreter": _run([interpreter, "-V"]).split()[1]}
    install = [uv, "pip", "install", "--quiet", "--python", str(place)]
    of = [] if extra == "core" else ["--extra", extra]
    try:
        _run([uv, "venv", "--quiet", "--clear", "--python", interpreter, str(place)])
        # a bound counts as direct only in pyproject.toml: given a wheel, uv takes the newest of what it asks for
        resolve = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python", interpreter]
        resolve += [*WHEELS, "--resolution", RESOLUTION[releases], *of, "--output-file", str(pins)]
        _run([*resolve, str(ROOT / "pyproject.toml")])
        _run([*install, "--requirements", str(pins)])
        _run([*install, "--no-deps", str(wheel)])
        _run([uv, "pip", "check", "--quiet", "--python", str(place)])
        versions = dict(line.split("==") for line in pins.read_text().splitlines() if "==" in line)
        found["versions"] = {name: versions[name] for name in NAMED}
        if extra == "core":
            _run([str(bin_ / "hooklearn"), "--help"], folder)
            _run([str(bin_ / "python"), "-P", "-c", USED], folder)
        found["tests"] = _tested([*install, "--constraints", str(pins), *TOOLS], bin_, TESTS[extra], folder)
        found["result"] = "failed: skipped tests" if extra != "core" and "skipped" in found["tests"] else "passed"
    except Failed as failure:
        found["result"] = f"failed: {failure}"
    return {**found, "seconds": round(time.monotonic() - begun)}


def _tested(install: list[str], bin_: Path, tests: tuple[str, ...], folder: Path) -> str:
    """The tests beside nothing but themselves, with what is installed left as it is; pytest's last line."""
    _run(install)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # pytest's settings
    pytest = [str(bin_ / "pytest"), "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]
    return _run(pytest, folder).strip().splitlines()[-1]


def _run(command: list[str], folder: Path | None = None) -> str:
    """What it said; with nothing of this checkout on the path."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        end = (done.stdout + done.stderr).strip()[-2000:]
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}: {end}")
    return done.stdout


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
