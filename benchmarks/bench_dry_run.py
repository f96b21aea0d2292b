"""What --dry-run predicts, and what the run then takes: the tiny model, SmolLM2, and a random model of 360M's shape."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.harness import Bench, Row
from benchmarks.whole_runs import dry_run, run
from hooklearn import pretrained
from hooklearn.recipes import recipe

SHAPE_360M = {
    "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
"""SmolLM2-360M's."""


def rows(bench: Bench) -> Iterator[Row]:
    yield from dry_run("tiny").rows("tiny, recipe tiny", run("tiny"))
    if bench.small:
        return
    with tempfile.TemporaryDirectory() as folder:
        named = {"SmolLM2, a short run": "smollm2-135m-instruct", "360M shape, a short run": _random(Path(folder))}
        for what, model in named.items():
            config = Path(folder) / "short.yaml"
            config.write_text(yaml.safe_dump(_short(model)))
            yield from dry_run(str(config)).rows(what, run(str(config)))


def _random(folder: Path) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE_360M))
    model.save_pretrained(folder / "model")
    pretrained.read("smollm2-135m-instruct")[1].save_pretrained(folder / "model")
    return str(folder / "model")


def _short(model: str) -> dict[str, Any]:
    """The recipe ``threats`` with less of everything, and no organism."""
    config = recipe("threats")
    limits = {"forget": 12, "retain": 12, "near": 6, "reference": 8, "disruption": 12, "heldout": 8, "attack_train": 24}
    return config | {
        "name": "short", "model": {"name": model}, "organism": None, "budget": {"kl": 0.01},
        "corpora": {role: config["corpora"][role] | {"limit": n} for role, n in limits.items()},
        "attacks": [{"name": "relearn", "learning_rates": [1e-4], "max_steps": 4}],
        "behaviour": {"samples": 8, "new_tokens": 8},
    }  # fmt: skip
