"""What test_parallel.py compares: computed in one process, and in two that ``torchrun`` starts on this file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from hooklearn import editing, forward, models, parallel
from hooklearn.attack import Arena, ArmState, Watcher, attack_of
from hooklearn.cli import main
from hooklearn.corpora.tiny_world import corpus
from hooklearn.data import ROW, cycle, encode
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import method_of, run_edit
from hooklearn.edit.method import Problem
from hooklearn.locate import collect
from hooklearn.measure import Likelihoods
from hooklearn.organisms import tiny as organisms
from hooklearn.train import fit
from hooklearn.types import Budget, Curves

STEPS = 10


def gpt2() -> Any:
    """A random model that computes all in float64: transformers' Llama has norms in float32 whatever its weights are,
    its GPT-2 has not."""
    words = organisms.tokenizer()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=4, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    hf_model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64)
    return models.wrap(hf_model.eval(), words, name="random gpt2")


MODELS: dict[str, Callable[[], Any]] = {
    "single": lambda: models.load("tiny"),
    "double": lambda: models.load("tiny", dtype=torch.float64),
    "throughout": gpt2,
}
"""By what is computed in float64: nothing, sums and products, or all."""


def everything(model: Any = None, shard: bool = False) -> dict[str, Tensor]:
    """Statistics, scores, an edit and the first steps of an attack; of the tiny model by default."""
    model = models.load("tiny", shard=shard) if model is None else model
    sites = models.sites(model, "mlp", [1, 2])
    forget, retain = corpus("forget", "bad").take(24), corpus("forget", "good").take(24)
    problem = Problem(model, sites, forget, retain, corpus("text", "bad").take(20), precision="float32", max_tokens=100)
    out = {f"gradient {n}": g for n, g in problem.gradient("forget").items()}
    for name, m in problem.retain_moments.items():  # with labels drawn from the model
        out |= {f"moments x {name}": m.side("x").second, f"moments g {name}": m.side("g").second}
        out[f"n {name}"] = torch.tensor([m.side("x").n, m.side("g").n])
    data = collect(model, forget, retain, sites, sides="both", precision="float32", max_tokens=100)
    for (name, side), m in data.forget.moments.items():
        out |= {f"located {side} {name}": m.second, f"items {side} {name}": data.forget.held_out[name, side]}
    heldout = corpus("heldout", "bad").take(12)
    scores = encode(heldout, models.tokenizer_of(model))
    out["scores"] = forward.sequence_logprobs(model, scores, precision="float32", max_tokens=60)
    far, near = corpus("disruption", "bad").take(30), corpus("near", "good").take(20)
    meter = DisruptionMeter(model, far, near, max_tokens=100)
    result = run_edit(problem, method_of("natural"), meter, Budget(0.01))
    out |= {f"delta {n}": u for n, u in result.delta.updates.items()}
    disruption = [result.disruption.kl.value, result.disruption.near_ce.value]  # type: ignore[union-attr]
    out["disruption"] = torch.tensor(disruption, dtype=torch.float64)
    out |= _attacked(model, result.delta, heldout)
    # more processes than pieces of work
    out["one"] = forward.sequence_logprobs(model, scores[:1], precision="float32")
    out |= {f"one {n}": u for n, u in Problem(model, sites, forget.take(1)).gradient("forget").items()}
    out["agreed"] = torch.tensor(_agreed())
    # copies: gate and up share the moments of their inputs, and a file takes no tensor twice
    return {n: parallel.whole(value.detach()).to(torch.float64, copy=True).contiguous() for n, value in out.items()}


def _agreed() -> float:
    """What ``precision: auto`` is where only the second process finds bfloat16 faster: the first one's, 1 and not 2."""
    forward._bfloat16_pays.cache_clear()
    with patch.object(forward, "_bfloat16_is_faster", lambda: parallel.rank() == 1):
        found = 1.0 + forward._bfloat16_pays()
    forward._bfloat16_pays.cache_clear()
    return found


def _attacked(model: Any, delta: Any, heldout: Any) -> dict[str, Tensor]:
    sequences = encode(corpus("attack", "bad"), models.tokenizer_of(model), end=True)
    with editing.restored(model):
        editing.merge(model, delta)
        params = models.all_parameters(model)
        rule = torch.optim.Adam(params, lr=3e-4)
        stream = [b for b, _ in zip(cycle(sequences, max_tokens=300, seed=0, epochs=9, share=ROW), range(STEPS))]  # noqa: B905
        run = fit(model, stream, rule=rule, precision="float32", max_norm=1.0, params=params, split=True)
        moved = torch.cat([parallel.whole(p.detach()).flatten() for p in params])
    arena = Arena(
        [ArmState("edited", model, delta), ArmState("original", model)],
        Watcher(Likelihoods.of(heldout, models.tokenizer_of(model), "heldout"), n_samples=0, precision="float32"),
        corpus("attack", "bad"), precision="float32",
    )  # fmt: skip
    table = Curves(attack_of("relearn", {"learning_rates": [3e-4], "max_steps": STEPS}).curves(arena)).to_dataframe()
    return {
        "losses": torch.tensor(run.losses, dtype=torch.float64),
        "weights": moved,
        "curve": torch.tensor(table["value"].to_numpy()),
    }


def run(config: str, out: Path, *more: str) -> None:
    """``hooklearn run`` without what is not shared out.

    Raises:
        SystemExit: with the command's exit code, where it is not 0.
    """
    off = [w for key in ("evidence.enabled=false", "max_tokens=60", "model.precision=float32") for w in ("--set", key)]
    try:
        main(["run", config, "--out", str(out), "--no-report", *off, *more])
    except SystemExit as end:
        if end.code:
            raise


def copied(folder: Path) -> None:
    """A process finds in its copy what the first one wrote before it came, however late that was."""
    if parallel.rank() == 0:
        time.sleep(1)
        folder.mkdir()
        (folder / "late").touch()
    with parallel.own_folder(folder) as own:
        assert [p.name for p in own.iterdir()] == ["late"]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with parallel.joined():
        assert parallel.size() == 2
        copied(folder / "copied")
        for name, make in MODELS.items():
            save_file(everything(make()), folder / f"{name}-rank{parallel.rank()}.safetensors")
        run(sys.argv[2], folder / "run")
        run(sys.argv[2], folder / "run", "--resume")
