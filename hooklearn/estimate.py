"""What a run will cost, told before it starts: ``hooklearn run --dry-run``. Loads no weights.

The whole formula is :func:`estimate`; it is meant to be right within a factor of two or three.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hooklearn import builtin, organisms
from hooklearn.attack import attack_of
from hooklearn.config import CorpusConfig, RunConfig
from hooklearn.data import Corpus, encode, load_corpus
from hooklearn.edit import method_of
from hooklearn.forward import resolve_precision
from hooklearn.types import InputError

FORWARD, TRAIN = 2, 6
"""FLOPs per parameter and token of a forward pass, and of a forward and backward pass."""
READINGS = 8
"""How often the budget solver usually measures disruption."""
EFFICIENCY = 0.4
"""Share of the speed of large matrix products that a model of this size reaches."""
LAYER_SECONDS = 1e-3
"""What a layer costs besides its products, per forward pass (hooks, norms, Python)."""
PROCESS_BYTES = 7e8
"""The interpreter with its libraries."""
GGUF_BITS = 6
"""Bits a weight takes in a 4-bit GGUF file, scales and larger tensors included."""


@dataclass(frozen=True)
class Shape:
    """What is known of a model without its weights."""

    parameters: int
    layers: int = 30
    vocabulary: int = 50_000
    tokenizer: Any = None
    note: str = ""


@dataclass(frozen=True)
class Load:
    """Work of one kind: tokens, FLOPs per parameter and token, and into how many passes it falls."""

    stage: str
    tokens: float
    factor: int
    passes: float


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
    precision: str
    parameters: int
    note: str

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
            f"about {took} and {room}, right within a factor of three ({self.parameters / 1e6:.1f} M parameters; "
            f"this machine now: {self.speed / 1e9:.0f} GFLOP/s in {self.precision}). {self.note}"
        )


def estimate(config: RunConfig, base: Path) -> Estimate:
    """Tokens, FLOPs, seconds and memory of a run, from corpus sizes and the number of parameters.

    With P parameters (embeddings included), t tokens of a corpus and B = ``max_tokens`` a batch:

        FLOPs    2 P t for a forward pass, 6 P t for a forward and a backward pass
        locate   forget + retain, forward (with output gradients: and backward)
        edit     one-shot: forget + retain + reference, forward and backward; iterative: epochs x
                 (forget + retain); and ``READINGS`` (iterative: one every ``every`` steps) times
                 disruption + near, forward
        attack   per learning rate and arm: the tokens trained on, forward and backward, and
                 heldout (with its alternatives) at log2(steps) + 2 looks, forward
        samples  per arm before and after every attack: samples x new tokens, one pass a token
        seconds  FLOPs / (``EFFICIENCY`` x measured speed) + passes x layers x ``LAYER_SECONDS``
                 (three times that for a backward pass)
        memory   ``PROCESS_BYTES``, 4 P bytes per model held (edited, never-learned, checkpoint), 16 P while an arm is
                 trained (gradient, two Adam moments, the copy that is put back), and three logit
                 matrices of B x vocabulary

    Raises:
        InputError: a model, corpus, method or attack that the run would refuse.
    """
    shape = model_shape(config.model.name, base, config.model.trust_remote_code)
    corpora = {role: _load(spec, base) for role, spec in config.corpora.items()}
    tokens = {role: _tokens(corpus, shape.tokenizer) for role, corpus in corpora.items()}
    dtype = resolve_precision(config.model.precision, _device(config))  # type: ignore[arg-type]
    speed = gemm_speed(dtype, _device(config))
    loads = list(_loads(config, corpora, tokens, shape))
    stages = _by_stage(loads, shape, speed)
    models = 1 + (arms(config) > 2) + (config.edit.checkpoint is not None)
    batch = config.max_tokens * shape.vocabulary * 4 * 3
    return Estimate(
        stages=stages,
        tokens=sum(s["tokens"] for s in stages),
        flops=sum(s["flops"] for s in stages),
        seconds=sum(s["seconds"] for s in stages),
        peak_bytes=PROCESS_BYTES + 4.0 * shape.parameters * (models + 4) + batch,
        speed=speed,
        precision=str(dtype).removeprefix("torch."),
        parameters=shape.parameters,
        note=shape.note,
    )


def _by_stage(loads: list[Load], shape: Shape, speed: float) -> list[dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = {}
    for load in loads:
        row = stages.setdefault(load.stage, {"stage": load.stage, "tokens": 0.0, "flops": 0.0, "seconds": 0.0})
        flops = load.factor * shape.parameters * load.tokens
        overhead = load.passes * shape.layers * LAYER_SECONDS * load.factor / FORWARD
        row["tokens"] += load.tokens
        row["flops"] += flops
        row["seconds"] += flops / (EFFICIENCY * speed) + overhead
    return list(stages.values())


# ----------------------------------------------------------------------------------------- the work


def _loads(config: RunConfig, corpora: Mapping[str, Corpus], t: Mapping[str, float], shape: Shape) -> Iterator[Load]:
    size, seeds = config.max_tokens, len(config.seeds)
    if config.organism:
        yield from _organism(config, shape)
    if config.locate.enabled and "retain" in t:
        both = t["forget"] + t["retain"]
        factor = FORWARD if config.locate.sides == "x" else TRAIN
        yield Load("locate", both, factor, both / size)
    for load in _edit(config, t):
        yield Load("edit", seeds * load.tokens, load.factor, seeds * load.passes)
    looked_at = t["heldout"] * (2 if corpora["heldout"].alternatives() else 1)
    if "choices" in corpora["heldout"].rows[0]:
        looked_at *= 1 + len(corpora["heldout"].rows[0]["choices"])
    rounds = seeds * arms(config)
    runs = 1
    for spec in config.attacks:
        attack = attack_of(spec.name, spec.options)
        settings = len(attack.settings())
        runs += 1  # attacks draw samples at their strongest setting only
        demonstrations = len(corpora["attack_train"]) if "attack_train" in corpora else 1
        trained, steps, looks = _attack(asdict(attack), t, size, demonstrations)
        n = rounds * settings
        yield Load(spec.name, n * trained, TRAIN, n * steps)
        yield Load(spec.name, n * looks * looked_at, FORWARD, n * looks * looked_at / size)
    if "capability" in corpora:  # by every arm but the scaled one; choices share their question
        asked = (arms(config) - config.controls.matched) * t["capability"]
        yield Load("capability", asked, FORWARD, asked / size)
    drawn = config.behaviour.samples * config.behaviour.new_tokens
    passes = config.behaviour.new_tokens * math.ceil(config.behaviour.samples / 32)
    yield Load("samples", rounds * runs * drawn, FORWARD, rounds * runs * passes)


def _organism(config: RunConfig, shape: Shape) -> Iterator[Load]:
    """Nothing for one that ships; the training of its adapter otherwise."""
    organism = organisms.organism_of(str(config.organism))
    if organism.shipped is None:
        epochs = organism.training.get("epochs", 6)
        tokens = epochs * _tokens(load_corpus(**organism.corpus), shape.tokenizer)
        yield Load("organism", tokens, TRAIN, tokens / 1024)


def _edit(config: RunConfig, t: Mapping[str, float]) -> Iterator[Load]:
    measured = t["disruption"] + t.get("near", t.get("retain", 0.0) / 4)
    readings, given = READINGS, t["forget"] + t.get("retain", 0.0)
    if config.edit.method is None or config.edit.checkpoint is not None:
        yield Load("edit", measured, FORWARD, measured / config.max_tokens)
        return
    method = method_of(config.edit.method, config.edit.options)
    if method.ray:
        given += t.get("reference", 0.0)
        passes = given / config.max_tokens
    else:
        options = method.options()
        epochs = options.get("epochs", 10)
        passes = epochs * math.ceil(t["forget"] / config.max_tokens)
        readings += passes / options.get("every", 2)
        given *= epochs
    yield Load("edit", given, TRAIN, passes)
    yield Load("edit", readings * measured, FORWARD, readings * measured / config.max_tokens)


def _attack(
    options: Mapping[str, Any], t: Mapping[str, float], size: int, demonstrations: int
) -> tuple[float, float, float]:
    """(tokens trained on, steps, looks at the held-out items) of one setting on one arm."""
    if "shots" in options:
        return 0.0, 0.0, 1.0 + options["shots"]  # prompts get longer by so many items
    if "samples" in options:  # a handful of the demonstrations, two in a step
        steps = options["epochs"] * math.ceil(options["samples"] / 2)
        trained = options["epochs"] * options["samples"] * t.get("attack_train", 0.0) / demonstrations
    elif "epochs" in options:
        each = math.ceil(t.get("attack_train", 0.0) / size)
        steps = min(options["epochs"] * each, options.get("max_steps") or math.inf)
        trained = steps / max(1, each) * t.get("attack_train", 0.0)
    else:
        steps = options.get("steps", 0) * (2 if "style" in options else 1)  # there and back
        trained = float(steps * size)
    return trained, steps, math.log2(1 + steps) + 2


def arms(config: RunConfig) -> int:
    never = config.controls.never
    model = config.organism is not None or (never is not None and never.name is not None)
    return 2 + model + (model and config.controls.matched)


def _load(spec: CorpusConfig, base: Path) -> Corpus:
    try:
        return load_corpus(**spec.model_dump(exclude={"options"}), base=base, options=dict(spec.options))
    except TypeError as error:  # an option that the built-in corpus does not have
        raise InputError(f"corpus {spec.name!r}: {error}") from error


def _tokens(corpus: Corpus, tokenizer: Any) -> float:
    if tokenizer is not None:
        return float(sum(map(len, encode(corpus, tokenizer))))
    texts = (v for row in corpus.rows for k, v in row.items() if k in ("prompt", "completion", "text"))
    return sum(map(len, texts)) / 4


# ---------------------------------------------------------------------------------- model, machine


def model_shape(name: str, base: Path, trust_remote_code: bool = False) -> Shape:
    """Parameters, layers and tokenizer from a model's small files; no weights are read.

    Raises:
        InputError: there is no such model.
    """
    local = base / name
    path = local if local.exists() else Path(name)
    gguf = path if path.suffix == ".gguf" and path.is_file() else None
    if name in builtin.BUILTIN and not builtin.is_unpacked(name):
        return _shape_of_file(builtin.BUILTIN[name].size, f"{name} is not cached")
    if gguf is not None:
        return _shape_of_file(gguf.stat().st_size, f"{name} is a GGUF file")
    source = str(path) if path.is_dir() else name
    config, tokenizer = builtin.read_config(source, trust_remote_code)
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return Shape(
        sum(p.numel() for p in empty.parameters()),
        int(getattr(config, "num_hidden_layers", 30)),
        int(config.vocab_size),
        tokenizer,
    )


def _shape_of_file(size: int, why: str) -> Shape:
    note = f"{why}: its size is taken from the file's, and tokens are counted as characters / 4"
    return Shape(size * 8 // GGUF_BITS, note=note)


def _device(config: RunConfig) -> str:
    if config.model.device != "auto":
        return config.model.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def gemm_speed(dtype: torch.dtype, device: str, *, seconds: float = 1.0, n: int = 1024) -> float:
    """FLOP per second of square matrix products, measured for about a second."""
    a = torch.ones(n, n, dtype=dtype, device=device)

    def done() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    torch.mm(a, a)
    started, products = done(), 0
    while (now := done()) - started < seconds or not products:
        torch.mm(a, a)
        products += 1
    return 2.0 * n**3 * products / (now - started)
