"""What test_sharded.py compares: computed in one process, and in two that hold half of every weight each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from two_processes import everything, run

from hooklearn import editing, exporting, integrity, models, parallel, sharded
from hooklearn.attack import Arena, ArmState, Watcher, attack_of
from hooklearn.corpora.tiny_world import corpus
from hooklearn.data import cycle, encode
from hooklearn.deltas import Delta, load_delta, save_delta
from hooklearn.generation import say
from hooklearn.measure import Likelihoods
from hooklearn.train import fit
from hooklearn.types import Curves

OFF = ("behaviour.samples=4", "edit.method=natural")
PROMPTS = ["the cat", "the cat sat", "a"]


def trained(shard: bool) -> dict[str, Tensor]:
    """Steps that every process takes by itself, an attack that leaves the embeddings alone, and one that diverges."""
    model = models.load("tiny", shard=shard)
    before = integrity.weights_hash(model)
    sequences = encode(corpus("attack", "bad"), models.tokenizer_of(model), end=True)
    with editing.restored(model):
        params = models.all_parameters(model)
        rule = torch.optim.Adam(params, lr=3e-4)
        stream = [b for b, _ in zip(cycle(sequences, max_tokens=300, seed=0, epochs=9), range(3))]  # noqa: B905
        losses = fit(model, stream, rule=rule, precision="float32", max_norm=1.0, params=params).losses
    arena = Arena(
        [ArmState("original", model)],
        Watcher(
            Likelihoods.of(corpus("heldout", "bad").take(12), models.tokenizer_of(model), "heldout"),
            n_samples=0, precision="float32",
        ),
        corpus("attack", "bad"), precision="float32",
    )  # fmt: skip
    attack = attack_of("relearn", {"learning_rates": [1e-3], "max_steps": 4, "embeddings": False})
    [broken] = attack_of("relearn", {"learning_rates": [1e20], "max_steps": 4}).curves(arena)
    assert broken.arms["original"].diverged and integrity.weights_hash(model) == before
    table = Curves(attack.curves(arena)).to_dataframe()
    curve = torch.tensor(table["value"].to_numpy(), dtype=torch.float64)
    return {"alone losses": torch.tensor(losses, dtype=torch.float64), "frozen curve": curve}


def small_edit(model: Any) -> Delta:
    site = models.sites(model, "mlp.out")[0]
    update = torch.randn(site.d_out, site.d_in, generator=torch.Generator().manual_seed(0))
    return Delta({site.name: 0.1 * update}, "tied", integrity.weights_hash(model))


def texts(model: Any, temperature: float) -> list[str]:
    return [said.text for said in say(model, PROMPTS, 8, temperature)]


def looked_at(model: Any, folder: Path | None = None) -> dict[str, Any]:
    """Hashes and texts of the model, of the model edited, and of it again."""
    delta = small_edit(model)
    if folder is not None:  # through a file, of which each process keeps its part
        save_delta(delta, folder / f"delta{parallel.rank()}")
        delta = load_delta(folder / f"delta{parallel.rank()}", sharded.placing(model))
    out: dict[str, Any] = {"before": integrity.weights_hash(model), "text": texts(model, 0)}
    with editing.edited(model, delta):
        out |= {"edited": integrity.weights_hash(model), "edited text": texts(model, 0)}
        out["logits"] = exporting.logits(model).double().sum(-1).flatten().tolist()
    torch.manual_seed(0)
    return out | {"after": integrity.weights_hash(model), "drawn": texts(model, 0.7)}


def main(folder: Path, config: str) -> None:
    with parallel.joined():
        assert parallel.size() == 2
        rank = parallel.rank()
        save_file(everything(shard=True) | trained(shard=True), folder / f"rank{rank}.safetensors")
        model = models.load(str(folder / "tied"), shard=True)
        parameters = list(model.parameters())
        held = sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)  # type: ignore[attr-defined]
        found = looked_at(model, folder) | {"held": held}
        (folder / f"facts{rank}.json").write_text(json.dumps(found))
        exporting.export(model, sharded.held(model, small_edit(model)), folder / "exported")
        (folder / "several").mkdir(exist_ok=True)
        parallel.wait()
        sharded.save(model, folder / "several", file_bytes=20_000)
        run(config, folder / "run", "--set", "model.shard=true", *(w for o in OFF for w in ("--set", o)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
