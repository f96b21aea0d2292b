"""An edited model as a plain Hugging Face folder, believed only after it was read back."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hooklearn.builtin import no_bars
from hooklearn.models import edited, named_parameters
from hooklearn.plain import plain_copy
from hooklearn.types import Delta, InputError


@dataclass(frozen=True, slots=True)
class ExportReport:
    folder: Path
    max_logit_difference: float
    """Between the edited model in memory and what was read back from the folder."""


def export(model: Any, delta: Delta, folder: str | Path) -> ExportReport:
    """Write the edited model as a plain Hugging Face folder, read it back and compare logits.

    Raises:
        InputError: if the folder exists and is not empty, or the delta does not fit.
        RuntimeError: if what was read back computes other logits; the folder is then not there.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"export to {str(folder)!r}: already there; give a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        written = Path(scratch) / "model"
        with edited(model, delta), no_bars():
            plain_copy(model).save_pretrained(written)
            model.tokenizer.save_pretrained(written)
            difference = _compare(model, written)
        written.rename(folder)
    return ExportReport(folder, difference)


@torch.no_grad()
def _compare(model: Any, folder: Path) -> float:
    """Largest difference of any logit on a fixed prompt; raises where it is not rounding."""
    dtype = next(iter(named_parameters(model).values())).dtype
    again: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True
    )
    ids = (torch.arange(1, 33, device=model.cfg.device) * 97 % model.cfg.d_vocab)[None]
    expected = model(ids)
    difference = float((again.to(ids.device)(ids).logits - expected).abs().max())
    # half precision: two ways to the same sum differ in the third digit
    tolerance = 1e-4 if dtype.itemsize >= 4 else 0.05 * float(expected.abs().max())
    if not difference <= tolerance:
        raise RuntimeError(
            f"the exported model differs: logits are off by {difference:.2g} (allowed "
            f"{tolerance:.2g}); nothing was written"
        )
    return difference
