"""What test_sharded.py compares: the same work with all weights in memory, and with weights that wait on the host.

In a process of its own, for offloading makes a process group that lasts until the process ends."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from two_processes import everything, run
from two_sharded import OFF, looked_at, small_edit, trained

from hooklearn import exporting, integrity, interventions, models, parallel, sharded
from hooklearn.corpora.tiny_world import corpus
from hooklearn.data import batches, encode
from hooklearn.forward import hidden

HOST = partial(models.load, offload=True)


def parts(model: Any) -> list[Any]:
    """PyTorch's own records of the weights of the blocks."""
    return [p for block in model.blocks for p in block._get_fsdp_state()._fsdp_param_group.fsdp_params]


def whole(model: Any) -> int:
    """How many of these weights are whole on the device at this moment."""
    there = (getattr(p, "_unsharded_param", None) for p in parts(model))
    return sum(w is not None and w.untyped_storage().size() > 0 for w in there)


def main(folder: Path, config: str) -> None:
    # spread weights are read by the bridge; what the plain model reads is the same to rounding
    with patch.object(interventions, "are_all", lambda _: False):
        here = everything() | trained(shard=False)
        with patch.object(models, "load", HOST):
            host = everything() | trained(shard=False)
    assert parallel.size() == 1
    unlike = [name for name, value in here.items() if not torch.equal(value, host[name])]

    model = HOST("tiny")
    [batch, *_] = batches(encode(corpus("heldout", "bad").take(4), models.tokenizer_of(model)))
    found: dict[str, Any] = {"compared": len(here), "unlike": unlike, "sharded": models.is_sharded(model)}
    found["offloaded"] = [p.offload_to_cpu for p in parts(model)]
    inside: list[int] = []
    handle = model.blocks[1].mlp.register_forward_hook(lambda *_: inside.append(whole(model)))
    with torch.no_grad():
        hidden(model, batch)
    handle.remove()
    found |= {"inside": inside, "a block": len(parts(model)) // len(model.blocks), "after": whole(model)}
    in_memory = sharded.shard(models.load("tiny"), offload=True)
    found["of a model in memory"] = sharded.is_offloaded(in_memory) and [
        integrity.weights_hash(m) for m in (in_memory, model, models.load("tiny"))
    ]
    tied = HOST(str(folder / "tied"))
    exporting.export(tied, small_edit(tied), folder / "exported-from-host")
    found["tied"] = looked_at(tied)
    (folder / "offloaded.json").write_text(json.dumps(found))
    run(config, folder / "run-from-host", "--set", "model.offload=true", *(w for o in OFF for w in ("--set", o)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
