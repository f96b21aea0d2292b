"""An edited model as a plain Hugging Face folder, believed only after it was read back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from hooklearn import parallel, sharded
from hooklearn.deltas import Delta, as_delta
from hooklearn.editing import edited
from hooklearn.models import checked, is_sharded, load, named_parameters
from hooklearn.plain import plain_copy
from hooklearn.pretrained import no_bars
from hooklearn.sharing import CARD, Shareable, quoted
from hooklearn.types import EditResult, InputError, NumericalError


@dataclass(frozen=True, slots=True)
class ExportReport:
    folder: Path
    max_logit_difference: float
    """Between the edited model in memory and what was read back from the folder."""


def export(model: Any, delta: Delta | EditResult, folder: str | Path, *, card: str | None = None) -> ExportReport:
    """Write the edited model as a plain Hugging Face folder, read it back and compare logits.

    Config, tokenizer, safetensors under the architecture's own names, and a model card: what ``transformers`` and the
    servers that read its folders take.

    A sharded model is written and read back tensor by tensor; every process has to ask, and all see the same files.

    Args:
        card: text of the model card, such as a run folder's ``README.md``; without it, one that says what was done.
    Raises:
        InputError: if the folder exists and is not empty, or the delta does not fit.
        NumericalError: if what was read back computes other logits; the folder is then not there.
    """
    model, delta = checked(model), as_delta(delta)
    if is_sharded(model):
        return _export_sharded(model, delta, folder, card)
    with new_folder(folder) as written, edited(model, delta), no_bars():
        plain_copy(model).save_pretrained(written)
        model.tokenizer.save_pretrained(written)
        (written / CARD).write_text(card or EditedModel(model, delta).card(), encoding="utf-8")
        again: Any = AutoModelForCausalLM.from_pretrained(
            written, dtype=_dtype(model), attn_implementation="eager", local_files_only=True
        )
        difference = compare(logits(model), logits(again.to(model.cfg.device), like=model))
    return ExportReport(Path(folder).expanduser(), difference)


def _export_sharded(model: Any, delta: Delta, folder: str | Path, card: str | None) -> ExportReport:
    text = card or EditedModel(model, delta).card()
    _check_new(Path(folder).expanduser())
    first = parallel.rank() == 0
    with new_folder(folder) if first else nullcontext() as own, edited(model, delta):
        written = parallel.agreed(own)
        assert written is not None
        sharded.save(model, written)
        if first:
            model.tokenizer.save_pretrained(written)
            (written / CARD).write_text(text, encoding="utf-8")
        parallel.wait()  # all of it is there
        again = sharded.load(
            str(written), device=model.cfg.device, dtype=_dtype(model), offload=sharded.is_offloaded(model)
        )
        difference = compare(logits(model), logits(again))
        parallel.wait()  # nobody reads any more: it may be given its name
    return ExportReport(Path(folder).expanduser(), difference)


@dataclass(frozen=True)
class EditedModel(Shareable):
    """An edit with the model that it was made for; on the hub, one plain model.

    ``from_pretrained`` reads any model, with nothing more to add to it; ``hl.load`` does so without the wrapping.
    """

    library: ClassVar[str] = "transformers"
    model: Any
    delta: Delta

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", as_delta(self.delta))

    def _write(self, folder: Path) -> None:
        export(self.model, self.delta, folder)

    @classmethod
    def _read(cls, folder: Path) -> EditedModel:
        return cls(load(str(folder)), Delta({}))

    def _facts(self) -> tuple[str, str]:
        name, n = self.model.cfg.model_name, len(self.delta.updates)
        return name, _CARD.format(base=quoted(name), n=n, norm=self.delta.norm())


_CARD = """# {base}, edited

{n} weight matrices were changed with hooklearn (Frobenius norm of the change {norm:.4g}); nothing else was.

What the edit does to the model's behaviour is not said here; the report of the run that made it does.
"""


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Where to write what becomes ``folder`` when the block ends well, and is gone when it does not.

    Raises:
        InputError: the folder is there and not empty.
    """
    folder = Path(folder).expanduser()
    _check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        written = Path(scratch) / "model"
        written.mkdir()
        yield written
        written.rename(folder)


def _check_new(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"export to {str(folder)!r}: already there; give a new or empty folder")


@torch.no_grad()
def logits(computed_by: Any, like: Any | None = None) -> Tensor:
    """On a fixed prompt of 32 tokens; ``like``: the bridge whose vocabulary a Hugging Face model has."""
    cfg = (like or computed_by).cfg
    ids = (torch.arange(1, 33, device=cfg.device) * 97 % cfg.d_vocab)[None]
    found = computed_by(ids)
    return found if like is None else found.logits


def compare(expected: Tensor, found: Tensor) -> float:
    """Largest difference of any logit; raises NumericalError where it is not rounding."""
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    # two ways to the same sum differ in the sixth digit of the largest or later (GPT-2's products, fused or not), in
    # half precision in the third
    tolerance = max(1e-4, 1e-5 * largest) if expected.dtype.itemsize >= 4 else 0.05 * largest
    if not difference <= tolerance:
        raise NumericalError(
            f"the exported model differs: logits are off by {difference:.2g} (allowed "
            f"{tolerance:.2g}); nothing was written"
        )
    return difference


def _dtype(model: Any) -> torch.dtype:
    return next(iter(named_parameters(model).values())).dtype
