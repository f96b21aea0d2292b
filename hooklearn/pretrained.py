"""Reading models and their configs: built-in names, GGUF files, local folders and the hub."""

from __future__ import annotations

import difflib
import io
import logging
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as hf_logging

from hooklearn.builtin import fetch, names, unknown
from hooklearn.plain import check_merged
from hooklearn.types import InputError


def read(
    name: str, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Tokenizer]:
    """Model (on the CPU) and tokenizer of a built-in name, folder, ``.gguf`` file or hub id.

    Raises:
        InputError: if ``name`` is none of these, is not there, or does not hold the tensors of its model.
    """
    path = fetch(name) if name in names() else Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return read_gguf(path, dtype)
    source, options = _source(name, path, trust_remote_code)
    with no_bars() if options["local_files_only"] else nullcontext(), _clear_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        # of a pickle only its tensors are read, by an interpreter that can do nothing else
        hf_model = _whole(name, source, dtype=dtype, weights_only=True, **options)
    return hf_model, tokenizer


def read_config(name: str, trust_remote_code: bool = False) -> tuple[Any, Tokenizer]:
    """Config and tokenizer of an unpacked built-in, a folder or a hub id; no weights.

    Raises:
        InputError: as in :func:`read`.
    """
    path = fetch(name) if name in names() else Path(name).expanduser()
    source, options = _source(name, path, trust_remote_code)
    with _clear_errors(name):
        config = AutoConfig.from_pretrained(source, **options)
        return config, AutoTokenizer.from_pretrained(source, **options)


def _source(name: str, path: Path, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` is given."""
    local = path.is_dir() and name != ""
    problem = _not_a_model(path) if local else _not_a_hub_id(name)
    if problem:
        raise unknown(name, problem)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    return str(path) if local else name, options


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Not there, not reachable, damaged, or of a kind that transformers does not know."""
    try:
        yield
    except (MemoryError, InputError):
        raise
    except Exception as error:  # the readers of configs, tokenizers and GGUF raise whatever they stumble over
        raise unknown(name, _first_line(error)) from error


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
    """Its weights as plain floats."""
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    # this bar cannot be switched off; on a terminal it is welcome, the work takes a while
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with no_bars(), quiet, _clear_errors(str(path)):
        hf_model = _whole(str(path), path.parent, dtype=dtype, **source)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
    # a model that calls itself quantised cannot be saved
    del hf_model.config.quantization_config
    hf_model.hf_quantizer = None
    return hf_model, tokenizer


def _whole(name: str, source: str | Path, **options: Any) -> Any:
    """A model of which every tensor was in its files, and nothing else was there.

    transformers draws at random what it does not find and passes over what it does not know, with a table among its
    warnings, and such a model would be measured like any other.
    """
    log = logging.getLogger("transformers.modeling_utils")
    before = log.level
    log.setLevel(logging.ERROR)  # not the table; what it says is said below
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:
        log.setLevel(before)
    hf_model, report = loaded
    check_merged(hf_model, name)  # a repository on the hub may be an adapter, and the report is then of its tensors
    # those of a quantised checkpoint have names that only its own reader knows
    surplus = [] if getattr(hf_model, "hf_quantizer", None) else not_ignored(hf_model, report["unexpected_keys"])
    check_names(name, report["missing_keys"], surplus, {key: shapes for key, *shapes in report["mismatched_keys"]})
    return hf_model


def not_ignored(hf_model: Any, names: Collection[str]) -> list[str]:
    """Without what its architecture passes over by design, and the masks and frequencies that old checkpoints hold and
    models now work out."""
    ignored = [*(hf_model._keys_to_ignore_on_load_unexpected or ()), *_WORKED_OUT]
    return [name for name in names if not any(re.search(pattern, name) for pattern in ignored)]


_WORKED_OUT = (r"\.(attn|attention)\.(masked_)?bias$", r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")


def check_names(
    name: str, missing: Collection[str], surplus: Collection[str], reshaped: Mapping[str, Any] | None = None
) -> None:
    """Raises InputError where the files of a model do not hold its tensors, and nothing else."""
    shapes = [f"{key} is {list(there)} and not {list(own)}" for key, (there, own) in sorted((reshaped or {}).items())]
    found = {"not there": sorted(missing), "no tensors of this model": sorted(surplus), "of another shape": shapes}
    problems = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in found.items() if keys]
    if problems:
        raise InputError(
            f"model {name!r}: its files do not hold the tensors that its config.json asks for: {', '.join(problems)}; "
            "unwrap it (DDP, torch.compile; PEFT: merge_and_unload()), and write it again with save_pretrained"
        )


def _some(keys: list[str], most: int = 2) -> str:
    return ", ".join(keys[:most]) + ", ..." * (len(keys) > most)


_ADAPTER = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether PEFT has saved an adapter there, and no weights of a model stand beside it."""
    return (folder / _ADAPTER).is_file() and not any(any(folder.glob(f"{name}*")) for name in _WEIGHTS)


_WEIGHTS = ("model.safetensors", "model-", "pytorch_model")
"""How the names of files begin in which a model's weights are."""
_TOKENIZER = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""Files of which a tokenizer leaves one at least."""


def _not_a_model(folder: Path) -> str | None:
    if is_adapter(folder):
        return (
            "a PEFT adapter and no model; what was edited (--edited, edit.checkpoint) may be one, otherwise merge it "
            "into its base model first"
        )
    if (folder / _ADAPTER).is_file():
        return (
            f"{_ADAPTER} beside the weights of a model, on which transformers would put that adapter; save what "
            "merge_and_unload() returns in a new folder, or give the adapter in a folder of its own as what was edited"
        )
    if not (folder / "config.json").is_file():
        return "no config.json in this folder"
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER):
        return "no tokenizer in this folder; save that of its base model there too: tokenizer.save_pretrained(folder)"
    return None


def _not_a_hub_id(name: str) -> str | None:
    if name.endswith(".gguf"):
        return "no such file"
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return "no such folder"
    if "/" not in name and difflib.get_close_matches(name, names()):
        return "not a built-in model"  # a typo, not worth asking the hub
    if "/" not in name and name not in _WITHOUT_OWNER:
        return "no such folder, and the id of a model on the hub is OWNER/NAME"
    return None


_WITHOUT_OWNER = {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt"}
"""Old ids of models that write text, which the hub still knows."""


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


@contextmanager
def no_bars() -> Iterator[None]:
    """Reading weights takes a second or two; its bars would break up our own."""
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()
