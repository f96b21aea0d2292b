"""What a run will cost, told before it starts: ``hooklearn run --dry-run``. Loads no weights.

The work is counted by :mod:`hooklearn.cli.loads`, in products, in bytes that pass through memory and in passes through
a layer; what a second of this machine holds of the first two is measured here, and :func:`estimate` says how the parts
make seconds and bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hooklearn import models
from hooklearn.attack import attack_of
from hooklearn.cli.loads import WHITENED, arms, corpus_of, loads, n_trained
from hooklearn.cli.shapes import Shape, check_sites, copy_speed, gemm_speed, model_shape
from hooklearn.config import RunConfig
from hooklearn.edit import method_of
from hooklearn.forward import resolve_precision
from hooklearn.pretrained import is_adapter
from hooklearn.running.checks import check, check_measured, check_needs
from hooklearn.site_names import chosen_layers

LAYER_SECONDS = 1e-3
"""Of a layer, per forward pass, however few its tokens are (hooks, Python)."""
NARROW = 512
"""Width from which on products run at the speed of large ones."""
PROCESS_BYTES = 7e8
"""The interpreter with its libraries."""
H100 = {torch.bfloat16: 4e14, torch.float32: 3e13}
"""FLOP per second, where a GPU is asked for that is not here: 40 and 45 % of the card's peaks of 989e12 and 67e12."""
H100_BANDWIDTH = 2.5e12
"""Bytes per second of its memory, of 3.35e12 at best. Assumed as well."""


@dataclass(frozen=True)
class Estimate:
    stages: list[dict[str, Any]]
    """stage, tokens, flops, seconds."""
    tokens: float
    flops: float
    seconds: float
    peak_bytes: float
    speed: float
    """Measured FLOP per second of a large matrix product in this precision."""
    bandwidth: float
    """Measured bytes per second that pass through memory."""
    precision: str
    parameters: int
    note: str
    where: str = "this machine now"
    """Whose speeds these are."""

    def rows(self) -> list[dict[str, Any]]:
        """The stages, and their total."""
        return [
            *self.stages,
            {"stage": "total", "tokens": self.tokens, "flops": self.flops, "seconds": self.seconds},
        ]

    def __str__(self) -> str:
        took = f"{self.seconds:.0f} seconds" if self.seconds < 100 else f"{self.seconds / 60:.0f} minutes"
        size = self.peak_bytes / 2**20
        room = f"{size:.0f} MiB" if size < 1000 else f"{size / 1024:.1f} GiB"
        return (
            f"about {took} and {room} ({self.parameters / 1e6:.1f} M parameters; {self.where}: "
            f"{self.speed / 1e9:.0f} GFLOP/s in {self.precision}, {self.bandwidth / 1e9:.0f} GB/s). {self.note}"
        )


def estimate(config: RunConfig, base: Path) -> Estimate:
    """Tokens, FLOPs, seconds and memory of a run, from its corpora and the shape of its model.

    With P parameters in the blocks, L layers of width d and inner width n, V words, t tokens of which k are scored, and
    B = ``max_tokens``:

        FLOPs    2 P t + 2 V d k for a forward pass, as much again for a backward pass to the inputs, and 2 t for every
                 weight whose gradient is formed; second moments t an entry; a fit ``FIT`` times the cube of a width
        bytes    ``TRAFFIC`` L d t + ``LOGITS`` V k forward, twice that backward; ``ADAM`` a trained weight and step
        seconds  FLOPs / measured speed, of moments and fits that of float32 (below a width of ``NARROW`` in proportion
                 less) + bytes / measured bandwidth + ``LAYER_SECONDS`` a layer and pass + ``START_SECONDS`` +
                 ``HASHES`` times all weights
        memory   ``PROCESS_BYTES`` + 4 bytes a parameter of every model held + the larger of: 16 bytes a trained
                 parameter (gradient, two Adam moments, the copy that is put back); an edit's second moments and four
                 copies of the sites + what a batch of B tokens leaves for its way back, 4 (14 d + 5 n) L B, with
                 512 rows of logits

    Sampling, evidence and walked methods are known least. A GPU (``model.device: cuda``) that is not here is taken for
    an H100, and the answer says so.

    Raises:
        InputError: a model, corpus, method or attack that the run would refuse.
    """
    shape = model_shape(config.model.name, base, config.model.trust_remote_code)
    corpora = {role: corpus_of(spec, base) for role, spec in config.corpora.items()}
    check(config)
    check_needs(config)
    check_measured(config, corpora)
    chosen_layers(config.edit.layers, shape.layers)
    check_sites(config.model.name, base, config.edit.sites, config.model.trust_remote_code)
    others = (config.edit.checkpoint, config.controls.never and config.controls.never.name)
    for name in filter(None, others):
        if name == config.edit.checkpoint and is_adapter(base / Path(name).expanduser()):
            continue  # put on the model itself
        model_shape(name, base, config.model.trust_remote_code)
    card = config.model.device == "cuda" and not torch.cuda.is_available()
    device = "cuda" if card else models.available(config.model.device)
    dtype = resolve_precision(config.model.precision, device)  # type: ignore[arg-type]
    bandwidth = H100_BANDWIDTH if card else copy_speed(device)
    speeds = {d: H100[d] if card else gemm_speed(d, device) for d in {dtype, torch.float32}}
    reached = {d: speed * min(1.0, shape.width / NARROW) for d, speed in speeds.items()}
    stages: dict[str, dict[str, Any]] = {}
    for load in loads(config, corpora, shape):
        row = stages.setdefault(load.stage, {"stage": load.stage, "tokens": 0.0, "flops": 0.0, "seconds": 0.0})
        row["tokens"] += load.tokens
        row["flops"] += load.flops + load.single
        row["seconds"] += load.flops / reached[dtype] + load.single / reached[torch.float32]
        row["seconds"] += load.traffic / bandwidth + load.layers * LAYER_SECONDS + load.seconds
    rows = list(stages.values())
    return Estimate(
        stages=rows,
        **{amount: sum(s[amount] for s in rows) for amount in ("tokens", "flops", "seconds")},
        peak_bytes=_peak(config, shape),
        speed=speeds[dtype],
        bandwidth=bandwidth,
        precision=str(dtype).removeprefix("torch."),
        parameters=shape.parameters,
        note=shape.note,
        where="an H100, assumed, as no GPU is here" if card else "this machine now",
    )


def _peak(config: RunConfig, shape: Shape) -> float:
    held = 1 + (arms(config) > 2) + (config.edit.checkpoint is not None)
    trained = [  # all weights are put back, whatever moved
        max(shape.parameters / 4, n_trained(asdict(attack_of(s.name, s.options)), shape)) for s in config.attacks
    ]
    edit = 0.0
    if config.edit.method is not None:
        moments = shape.curvature if method_of(config.edit.method, config.edit.options).name in WHITENED else 0
        part = 1.0 if config.edit.site_batch is None else min(1.0, config.edit.site_batch / (3 * shape.layers))
        edit = 4.0 * (part * moments + 4 * shape.sites)
    activations = 4.0 * (14 * shape.width + 5 * shape.inner) * shape.layers * config.max_tokens
    logits = 3 * 4.0 * min(512, config.max_tokens) * shape.vocabulary
    return (
        PROCESS_BYTES + 4.0 * held * shape.parameters + max(16.0 * max(trained, default=0), edit) + activations + logits
    )
