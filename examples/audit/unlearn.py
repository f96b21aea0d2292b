"""GradDiff by Transformers' own Trainer, without hooklearn: a checkpoint as others make them, to be audited.

    python unlearn.py MODEL forget.jsonl retain.jsonl OUT [--epochs 5] [--learning-rate 1e-5]

Rows are {"prompt", "completion"}; a chat model's template is put around the prompt unless the row says
"template": "none". Every step lowers the likelihood of a batch of forget and raises that of a batch of retain,
the form of open-unlearning's trainer (Liu, Liu & Stone 2022, arXiv 2203.12817; gamma = alpha = 1). Nothing
measures what it disrupts, and nothing stops it: that is what most checkpoints are like.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

IGNORED = -100
"""The label of tokens without a loss: those of prompts, and padding."""


class Pairs(Dataset[dict[str, Any]]):
    """A forget row and, in turn, a retain row."""

    def __init__(self, forget: list[dict[str, Any]], retain: list[dict[str, Any]], tokenizer: Any) -> None:
        self.forget, self.retain, self.tokenizer = forget, retain, tokenizer

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {
            "forget": self.encoded(self.forget[i]),
            "retain": self.encoded(self.retain[i % len(self.retain)]),
        }

    def encoded(self, row: dict[str, Any]) -> dict[str, list[int]]:
        prompt, completion = row["prompt"], row["completion"]
        if self.tokenizer.chat_template and row.get("template") != "none":
            turn = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
        return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}


class GradDiff(Trainer):
    """Forget loss up, retain loss down."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, return_outputs: bool = False, **__: Any) -> Any:
        forget, retain = model(**inputs["forget"]), model(**inputs["retain"])
        loss = retain.loss - forget.loss
        return (loss, forget) if return_outputs else loss


def collated(rows: list[dict[str, Any]], pad: int) -> dict[str, dict[str, torch.Tensor]]:
    """Both halves of every pair, padded at the right."""

    def padded(half: str, name: str, value: int) -> torch.Tensor:
        parts = [torch.tensor(row[half][name]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

    def batch(half: str) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([len(row[half]["input_ids"]) for row in rows])
        ids = padded(half, "input_ids", pad)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": padded(half, "labels", IGNORED)}

    return {"forget": batch("forget"), "retain": batch("retain")}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("forget", type=Path)
    parser.add_argument("retain", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    settings = TrainingArguments(
        output_dir=str(given.out), num_train_epochs=given.epochs, learning_rate=given.learning_rate,
        per_device_train_batch_size=given.batch, save_strategy="no", report_to=[], logging_steps=5,
        remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    pairs = Pairs(read(given.forget), read(given.retain), tokenizer)
    GradDiff(model, settings, lambda rows: collated(rows, pad), pairs).train()
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)


if __name__ == "__main__":
    main()
