"""``hooklearn doctor``: does everything work on this machine, and if not, what is there to do?"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    "transformer-lens": "transformer-lens>=4.3,<5",
    "torch": "torch>=2.6",
    "transformers": "transformers>=5.9",
    "datasets": "datasets>=3.0",
    "safetensors": "safetensors>=0.5",
    "pandas": "pandas>=2.2",
    "pyarrow": "pyarrow>=17",
    "scikit-learn": "scikit-learn>=1.5",
    "jaxtyping": "jaxtyping>=0.3",
    "pydantic": "pydantic>=2.10",
    "matplotlib": "matplotlib>=3.9",
}
TOLERANCE = 1e-4
"""Relative error that float32 may leave in the gradient identity."""

Found = dict[str, Any]

# ------------------------------------------------------------------------------------------- doctor


def examine() -> Found:
    """Everything that a bug report needs, and what to do about what is wrong.

    ``ok`` is False when a package is missing or too old, or when the self-test fails.
    """
    versions, wrong = _versions()
    found: Found = {"versions": versions, "python": platform.python_version()}
    if wrong:  # nothing below can be trusted, or even imported
        return found | {"ok": False, "advice": [f"pip install {' '.join(map(repr, wrong))}"]}
    found |= {
        "platform": platform.platform(),
        "device": _device(),
        "precision": _precision(),
        "memory": _memory(),
        "cache": _cache(),
        "folder": _folder(),
        "offline": _offline(),
        "plugins": _plugins(),
        "self_test": self_test(),
    }
    return found | {"ok": found["self_test"]["ok"], "advice": list(_advice(found))}


def _offline() -> bool:
    """As huggingface_hub reads it: ``HF_HUB_OFFLINE=0`` is not offline."""
    values = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value in ("1", "ON", "YES", "TRUE") for value in values)


def _versions() -> tuple[dict[str, str | None], list[str]]:
    """Installed versions, and requirements that are not met."""
    from packaging.requirements import Requirement

    versions: dict[str, str | None] = {"hooklearn": importlib.import_module("hooklearn").__version__}
    wrong = []
    for name, text in PACKAGES.items():
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
        if not Requirement(text).specifier.contains(versions[name] or "0", prereleases=True):
            wrong.append(text)
    return versions, wrong


def _device() -> Found:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "kind": "cuda" if cuda else "cpu",
        "name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
    }


def _cores() -> int:
    """Those that this process may use, which in a container or under a scheduler are not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _precision() -> Found:
    """What ``precision: auto`` means here; the faster of bfloat16 and float32."""
    import torch

    from hooklearn.forward import resolve_precision

    device = "cuda" if torch.cuda.is_available() else "cpu"
    auto = str(resolve_precision("auto", device)).removeprefix("torch.")
    vectors = torch.backends.cpu.get_cpu_capability()
    return {"auto": auto, "fast_bfloat16": auto == "bfloat16", "vector_instructions": vectors}


def _memory() -> Found:
    import torch

    page = os.sysconf("SC_PAGE_SIZE")
    found: Found = {"total": page * os.sysconf("SC_PHYS_PAGES"), "free": None, "device": None}
    found["free"] = _available()
    if (limit := _number_in("/sys/fs/cgroup/memory.max")) is not None and limit < found["total"]:
        found["total"] = limit
        left = limit - (_number_in("/sys/fs/cgroup/memory.current") or 0)
        found["free"] = left if found["free"] is None else min(left, found["free"])
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_properties(0).total_memory
    return found


def _available() -> int | None:
    """What can be had without swapping. Free pages alone say little: the rest is cache, given up when it is needed."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        return None


def _number_in(path: str) -> int | None:
    """None where there is no such file, or no limit (``max``)."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _folder() -> Found:
    """Whether runs can be written below the current folder: whole files, and a lock against a second writer."""
    from hooklearn import disk, store
    from hooklearn.types import InputError

    here = Path.cwd()
    found: Found = {"path": str(here), "free": shutil.disk_usage(here).free, "problem": None}
    try:
        with (
            tempfile.TemporaryDirectory(dir=here, prefix=".hooklearn-doctor-") as scratch,
            store.RunFolder.create(Path(scratch) / "run", {}),
        ):
            pass
    except (InputError, OSError) as error:
        found["problem"] = disk.one_line(error)
    return found


def _cache() -> Found:
    from hooklearn import builtin

    folder = builtin.cache_folder()
    there = next(p for p in [folder, *folder.parents] if p.exists())
    return {
        "folder": str(folder),
        "free": shutil.disk_usage(there).free,
        "models": {name: builtin.is_cached(name) for name in builtin.names()},
    }


def _plugins() -> list[Found]:
    """What other packages add, and what is wrong with it."""
    from hooklearn.cli.inventory import SHELVES, added

    return [
        {"what": what, "name": name, "package": package, "problem": str(f) if isinstance(f, Exception) else None}
        for what in SHELVES
        for name, package, f in added(what)
    ]


def self_test() -> Found:
    """On a random tiny model: for ``y = W x``, is ``sum_t g_t x_t^T`` the gradient of ``W``? Is an edit undone to the
    last bit?

    The identity behind every projection; it fails when hooks do not fire or see something else.
    """
    started = time.perf_counter()
    try:
        worst, sites = _gradient_identity()
        restored = _edit_is_undone()
    except Exception as error:  # whatever it is: the patient is told, not buried
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {
        "ok": worst <= TOLERANCE and restored, "worst_relative_error": worst, "sites": sites, "restored": restored,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def _gradient_identity() -> tuple[float, int]:
    from hooklearn import api, models, train
    from hooklearn.data import Corpus, batches, encode
    from hooklearn.organisms.tiny import untrained

    model = untrained()
    rows = [{"prompt": "write to anna :", "completion": " thank you ."}, {"text": "the dog sleeps ."}]
    corpus = Corpus("self-test", tuple(rows))
    tapes = api.capture(model, corpus, sites="all")
    sites = models.sites(model, "all")
    with models.trainable(model, models.parameters_of(model, sites)):
        for batch in batches(encode(corpus, models.tokenizer_of(model))):
            train.nll(model, batch).total.backward()
        errors = []
        for site in sites:
            (parameter,) = models.parameters_of(model, [site])
            true = parameter.grad
            assert true is not None
            errors.append(float((tapes[site.name].update() - true).norm() / true.norm()))
    return max(errors), len(sites)


def _edit_is_undone() -> bool:
    import torch

    from hooklearn import editing, integrity, models
    from hooklearn.deltas import Delta
    from hooklearn.organisms.tiny import untrained

    model = untrained()
    before = integrity.weights_hash(model)
    delta = Delta({s.name: torch.full((s.d_out, s.d_in), 0.1) for s in models.sites(model, "mlp")})
    with editing.edited(model, delta):
        during = integrity.weights_hash(model)
    return integrity.weights_hash(model) == before != during


def _advice(found: Found) -> Iterator[str]:
    test = found["self_test"]
    if not test["ok"]:
        problem = test.get("error") or (
            f"the error is {test['worst_relative_error']:.1e}" if test["restored"] else "an edit was not undone"
        )
        yield (
            f"the self-test failed ({problem}): gradients at hook points cannot be trusted here; "
            "install the versions that hooklearn was tested with, and report this output"
        )
    for name, cached in found["cache"]["models"].items():
        if not cached:
            offline = " (HF_HUB_OFFLINE is set: unset it first)" if found["offline"] else ""
            yield f"{name} is not cached: hooklearn fetch {name}{offline}"
    yield from (f"{p['problem']}: upgrade or uninstall {p['package']}" for p in found["plugins"] if p["problem"])
    if (found["memory"]["free"] or 4e9) < 2e9:
        yield "less than 2 GB of memory are free: lower max_tokens, or close something"
    device, folder = found["device"], found["folder"]
    if device["threads"] > device["cores"]:
        n = device["cores"]
        yield f"{device['threads']} threads on {n} cores wait for each other: export OMP_NUM_THREADS={n}"
    if folder["problem"]:
        yield f"runs cannot be written below {folder['path']} ({folder['problem']}): give --out another place"
    elif folder["free"] < 1e9:
        yield f"less than 1 GB is free below {folder['path']}: a run needs what its deltas and reports take"
    if found["cache"]["free"] < 1e9 and not all(found["cache"]["models"].values()):
        yield f"less than 1 GB is free for models in {found['cache']['folder']}: point HOOKLEARN_CACHE elsewhere"


def lines(found: Found) -> Iterator[str]:
    """For reading."""
    versions = ", ".join(f"{n} {v or 'MISSING'}" for n, v in found["versions"].items())
    yield f"versions   Python {found['python']}, {versions}"
    if "self_test" in found:
        device, memory, cache = found["device"], found["memory"], found["cache"]
        cached = [n for n, c in cache["models"].items() if c]
        yield f"platform   {found['platform']}"
        yield f"device     {device['kind']} ({device['name']}), {device['threads']} threads on {device['cores']} cores"
        precision = found["precision"]
        pays = "faster" if precision["fast_bfloat16"] else "not faster"
        yield f"precision  auto is {precision['auto']}; bfloat16 is {pays}, {precision['vector_instructions']}"
        yield f"memory     {_gib(memory['free'])} free of {_gib(memory['total'])}" + (
            f"; device {_gib(memory['device'])}" if memory["device"] else ""
        )
        yield f"cache      {cache['folder']}: {', '.join(cached) or 'no models'}; {_gib(cache['free'])} free"
        yield f"folder     {found['folder']['path']}: " + (
            found["folder"]["problem"] or f"can be written and locked; {_gib(found['folder']['free'])} free"
        )
        yield f"network    {'offline (HF_HUB_OFFLINE)' if found['offline'] else 'allowed'}"
        if found["plugins"]:
            packages = dict.fromkeys(p["package"] for p in found["plugins"])
            yield f"plug-ins   {len(found['plugins'])} of {', '.join(packages)}"
        test = found["self_test"]
        yield "self-test  " + (
            f"passed: gradients at {test['sites']} hook points, worst relative error "
            f"{test['worst_relative_error']:.1e}, edits undone to the bit, {test['seconds']:.1f} s"
            if test["ok"]
            else "FAILED"
        )
    for advice in found["advice"]:
        yield f"to do      {advice}"
    if found["ok"]:
        yield ("what hooklearn itself needs" if found["advice"] else "everything that hooklearn needs") + " works here"


def _gib(size: float | None) -> str:
    return "?" if size is None else f"{size / 2**30:.1f} GiB"
