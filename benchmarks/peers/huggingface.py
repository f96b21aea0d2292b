"""Plain Hugging Face: forward, ``loss.backward()``, ``p.grad``; a loop of one's own; the Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hooklearn.data import Encoded

Padded = dict[str, Tensor]
"""input_ids, attention_mask, labels (-100 where there is no loss)."""


def padded(sequences: Sequence[Encoded], size: int, pad_id: int = 0) -> list[Padded]:
    """Batches of ``size`` sequences, one a row, as a collator makes them."""
    out = []
    for start in range(0, len(sequences), size):
        part = sequences[start : start + size]
        shape = (len(part), max(map(len, part)))
        ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, -100)
        for r, s in enumerate(part):
            ids[r, : len(s)], mask[r, : len(s)] = s.ids, 1
            labels[r, : len(s)] = torch.where(s.labels, s.ids, -100)
        out.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return out


def gradients(
    model: Any, modules: Mapping[str, Any], stream: Sequence[Padded], autocast: Any, *, all_weights: bool = False
) -> dict[str, Tensor]:
    """Summed-NLL gradients of the modules' weights. With ``all_weights`` everything gets one, as it does by default."""
    model.requires_grad_(all_weights)
    model.zero_grad(set_to_none=True)
    for module in modules.values():
        module.weight.requires_grad_(True)
    for batch in stream:
        batch = {k: v.to(model.device) for k, v in batch.items()}
        with autocast():
            loss = model(**batch).loss
        (loss * (batch["labels"][:, 1:] != -100).sum()).backward()
    out = {name: module.weight.grad for name, module in modules.items()}
    model.zero_grad(set_to_none=True)
    return out


def train(model: Any, stream: Sequence[Padded], autocast: Any, *, learning_rate: float, kept_only: bool) -> None:
    """The loop that anyone would write by hand: AdamW on everything.

    Args:
        kept_only: logits only where there is loss (``logits_to_keep`` of transformers keeps the end of every row, so
            the body and the unembedding are called one after the other).
    """
    model.requires_grad_(True)
    rule = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    for batch in stream:
        batch = {k: v.to(model.device) for k, v in batch.items()}
        rule.zero_grad(set_to_none=True)
        with autocast():
            if kept_only:
                states = model.model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state
                wanted = batch["labels"][:, 1:] != -100
                scores = model.lm_head(states[:, :-1][wanted])
                loss = torch.nn.functional.cross_entropy(scores.float(), batch["labels"][:, 1:][wanted])
            else:
                loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rule.step()
    rule.zero_grad(set_to_none=True)


def trainer(
    model: Any, sequences: Sequence[Encoded], *, size: int, epochs: int, learning_rate: float, folder: str, bf16: bool
) -> Any:
    """Hugging Face's Trainer with its defaults, saving and logging switched off; ``.train()`` does the work."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    items = [{"input_ids": s.ids.tolist(), "labels": torch.where(s.labels, s.ids, -100).tolist()} for s in sequences]

    def collate(features: Sequence[Any]) -> Padded:
        encoded = [
            Encoded(torch.tensor(f["input_ids"]), torch.tensor(f["labels"]) != -100, i) for i, f in enumerate(features)
        ]
        return padded(encoded, len(encoded))[0]

    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=size, num_train_epochs=epochs, learning_rate=learning_rate,
        lr_scheduler_type="constant", bf16=bf16, use_cpu=str(model.device) == "cpu", save_strategy="no",
        logging_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    loop = Trainer(model=model, args=arguments, train_dataset=items, data_collator=collate)  # type: ignore[arg-type]
    loop.remove_callback(PrinterCallback)
    return loop
