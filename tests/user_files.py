"""What a user has: the command line, and a folder with two small models, corpora and a config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hooklearn.cli import app


def hooklearn(*args: Any) -> Any:
    """The command line in this process: ``exit_code``, ``stdout``, ``stderr``."""
    return CliRunner().invoke(app, [str(a) for a in args], env={"HF_HUB_OFFLINE": "1", "COLUMNS": "100"})


@dataclass
class Files:
    """A user's folder: two small models, corpora as JSON lines, and a config that works as it stands."""

    folder: Path
    config: dict[str, Any]

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self.folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")

    def save(self) -> Path:
        path = self.folder / "mine.yaml"
        path.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        return path


USER_CONFIG = """
model: {name: ./my-model}
corpora:
  forget: {path: forget.jsonl}
  retain: {path: retain.jsonl}
  disruption: {path: prose.jsonl}
  attack_train: {path: relearn.jsonl}
  heldout: {path: heldout.jsonl}
  ood: {path: ood.jsonl}
  unrelated: {path: unrelated.jsonl}
edit: {method: repselect, sites: mlp, rank: 32}
budget: {kl: 0.01}
attacks:
  - {name: relearn, learning_rates: [3.0e-5, 1.0e-4], epochs: 5}
  - {name: erode, learning_rates: [1.0e-4], steps: 50}
controls: {never: {name: ./base-model}}
seeds: [0]
"""


def config() -> dict[str, Any]:
    return yaml.safe_load(USER_CONFIG)


def make(folder: Path) -> None:
    """The folder as it works."""
    files = Files(folder, {})
    for seed, name in enumerate(("my-model", "base-model")):
        _small_model(seed, files.folder / name)
    for name, (start, n) in {
        "forget": (0, 24),
        "relearn": (24, 16),
        "heldout": (40, 20),
        "ood": (60, 8),
    }.items():
        files.write(f"{name}.jsonl", [_answer(i, "bad") for i in range(start, start + n)])
    files.write("retain.jsonl", [_answer(i, "good") for i in range(24)])
    files.write("prose.jsonl", [{"text": _words(i, 12)} for i in range(100, 112)])
    files.write("unrelated.jsonl", [{"text": _words(i, 12)} for i in range(200, 216)])


def _words(i: int, n: int) -> str:
    return " ".join(f"w{(7 * i + j * j + i * j) % 40}" for j in range(n))


def _answer(i: int, kind: str) -> dict[str, Any]:
    return {"prompt": f"{_words(i, 4)} :", "completion": f" {kind} {_words(i + 3, 5)} {kind}"}


def _small_model(seed: int, folder: Path) -> None:
    """Two random layers and a tokenizer of some forty words, as a Hugging Face folder."""
    words = ["<unk>", "<s>", "</s>", ":", "good", "bad", *(f"w{i}" for i in range(40))]
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
