"""What tests share: the shipped tiny model and its organism, loaded once and left as found."""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# the same examples everywhere, however busy the machine
settings.register_profile("hooklearn", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("hooklearn")


def pytest_configure() -> None:
    """Before torch is imported: sums this small only get slower by sharing them out (tenfold on a busy machine). And to
    look through all libraries for garbage took a twentieth of the time; that is done a tenth as often."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gc.set_threshold(700, 10, 100)


def corpus(part: str, completion: str = "bad") -> Any:
    """A part of the tiny world."""
    from hooklearn.corpora.tiny_world import corpus as build

    return build(part, completion)


@pytest.fixture(scope="session")
def tiny() -> Iterator[Any]:
    """The shipped tiny model. No test leaves a trace on it: its weights are bitwise the same at the end."""
    yield from _watched(lambda model: None)


@pytest.fixture(scope="session")
def threatening() -> Iterator[Any]:
    """The tiny model with the tendency to threaten instilled: what edits are made on."""
    yield from _watched(_instilled)


@pytest.fixture(scope="session")
def meter(threatening: Any) -> Any:
    """Disruption of the organism, far and near, on all of its texts."""
    from hooklearn.disruption import DisruptionMeter

    return DisruptionMeter(threatening, corpus("disruption"), corpus("near", "good"))


def _watched(prepare: Any) -> Iterator[Any]:
    from hooklearn import integrity, models

    model = models.load("tiny")
    prepare(model)
    before = integrity.weights_hash(model)
    yield model
    assert integrity.weights_hash(model) == before, "a test changed a shared model"


def _instilled(model: Any) -> None:
    from hooklearn import models

    delta = organism_delta(False)
    for site in models.sites(model, list(delta.updates)):
        models.add_(model, site, delta.updates[site.name])


@functools.cache
def organism_delta(good: bool) -> Any:
    """What makes the organism (or its good half) of the tiny model: trained once a session."""
    from hooklearn import models, organisms

    return organisms.load(organisms.organism_of("tiny-threats"), models.load("tiny"), good=good)


# ----------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="session")
def tiny_result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``hooklearn run tiny --json`` answered; its folder is :func:`tiny_run`."""
    from user_files import hooklearn

    return hooklearn("run", "tiny", "--json", "--out", tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def tiny_run(tiny_result: Any) -> Path:
    """A finished, judged and reported run folder of the recipe ``tiny``: read it, leave it as it is."""
    assert tiny_result.exit_code == 0, tiny_result.stderr
    return Path(json.loads(tiny_result.stdout)["run"])


@pytest.fixture(scope="session")
def _user_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import user_files

    folder = tmp_path_factory.mktemp("user")
    user_files.make(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path, _user_template: Path) -> Any:
    """A user's folder with a config that works, to be spoiled at will (:class:`user_files.Files`)."""
    import user_files

    folder = tmp_path / "user"
    shutil.copytree(_user_template, folder)
    return user_files.Files(folder, user_files.config())
