"""Peak memory of a process with the whole model and with its part: ``python -m benchmarks.sharded_peak``.

A random Llama of 8 layers (34 million weights, 134 MB in float32: an edit's moments and the batches are small beside
what is as large as the weights). What is counted is the largest resident size of a stage above that of the interpreter
with everything imported. glibc gives tensors of more than 32 MB back when they are freed; it is told to do so with
these small ones too, or what it keeps would hide what is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hooklearn import editing, models, parallel
from hooklearn.corpora.tiny_world import corpus
from hooklearn.data import cycle, encode
from hooklearn.deltas import save_delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import Problem, method_of, run_edit
from hooklearn.train import fit
from hooklearn.types import Budget

WIDTH, INNER, LAYERS = 512, 2048, 8


def write_model(folder: Path) -> int:
    """Returns the bytes of its weights."""
    tokenizer: Any = models.load("tiny").tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="50MB")
    tokenizer.save_pretrained(folder)
    return sum(4 * p.numel() for p in model.parameters())


def resident(which: str) -> int:
    """``VmRSS``: now; ``VmHWM``: the largest so far, of this program and not of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def since_last(start: int) -> int:
    """The peak above ``start``; the next one begins now."""
    peak = resident("VmHWM") - start
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def stages(folder: Path) -> dict[str, int]:
    """Bytes above the imports in: loading, a natural-gradient edit with its file, an attack's steps."""
    shard = parallel.size() > 1
    start, found = resident("VmRSS"), {}
    since_last(start)
    model = models.load(str(folder), shard=shard)
    found["load"] = since_last(start)
    forget, retain, far = (corpus(*of).take(8) for of in (("forget", "bad"), ("forget", "good"), ("disruption", "bad")))
    problem = Problem(
        model, models.sites(model, "mlp"), forget, retain, precision="float32", max_tokens=128, keep=False, site_batch=3
    )
    meter = DisruptionMeter(model, far, max_tokens=128)
    result = run_edit(problem, method_of("natural"), meter, Budget(0.01))
    save_delta(result.delta, folder / f"delta{parallel.rank()}")
    found["edit"] = since_last(start)
    with editing.restored(model):
        editing.merge(model, result.delta)
        del result, problem, meter
        params = models.all_parameters(model)
        rule = torch.optim.Adam(params, lr=1e-4, fused=True)
        sequences = encode(corpus("attack", "bad"), models.tokenizer_of(model), end=True)
        stream = [b for b, _ in zip(cycle(sequences, max_tokens=128, seed=0, epochs=1), range(2))]  # noqa: B905
        fit(model, stream, rule=rule, precision="float32", max_norm=1.0, params=params, split=True)
    found["attack"] = since_last(start)
    return found


def measured(folder: Path, processes: int) -> dict[str, int]:
    """Of the process with the largest peaks."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--rdzv_backend=c10d"]
    launcher = [*launcher, "--rdzv_endpoint=localhost:0"] if processes > 1 else []
    here = Path(__file__)
    subprocess.run(
        [sys.executable, *launcher, here, folder], check=True, timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent.parent),
             "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    each = [json.loads((folder / f"peaks{r}.json").read_text()) for r in range(processes)]
    return {stage: max(one[stage] for one in each) for stage in each[0]}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        size = write_model(Path(scratch) / "size")
        print(f"weights: {size / 1e6:.0f} MB; a block {size / LAYERS / 1e6:.0f} MB")
        for n in (1, 2, 4):
            found = measured(Path(scratch) / str(n), n)
            print(f"{n} process(es): " + ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        where = Path(sys.argv[1])
        with parallel.joined():
            peaks = stages(where)
            (where / f"peaks{parallel.rank()}.json").write_text(json.dumps(peaks))
