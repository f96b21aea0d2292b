"""Where models stand between an instilled tendency and none before they answer, by two probes: one that was told of
the never-learned model alone, one of a benign model as well (taught good answers in the form of the bad ones).

    python -m benchmarks.state_before_answer threats runs/threats-unseen/cells/*/delta-*.safetensors

Three groups of models: some that never had the tendency and were taught something else, of which a probe should say 0;
edits of the organism of which it is known that the tendency is still there; and the given deltas, beside two edits that
are made here at the same far KL, the oracle (straight to the never-learned weights) and RepSelect. For edits the logit
lens as well. Prompts are those of the part ``unseen``. A quarter of an hour on one thread with --known.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import hooklearn as hl
from hooklearn import evidence, models, organisms
from hooklearn.attack import ArmState
from hooklearn.config import parse
from hooklearn.deltas import Delta, load_delta
from hooklearn.evidence.bench import evenly, record, texts
from hooklearn.evidence.probes import tendency_share
from hooklearn.organisms.instil import instil
from hooklearn.organisms.suppressed import SUPPRESSED, Bench
from hooklearn.recipes import recipe
from hooklearn.running.setting import Setup

KNOWN = ("half-undone", "refusal", "locked", "rmu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("threats", "flattery"))
    parser.add_argument("deltas", nargs="*", type=Path)
    parser.add_argument("--known", action="store_true", help="also models whose truth is known")
    parser.add_argument("--part", default="unseen", help="whose prompts")
    parser.add_argument("--kl", type=float, default=0.01)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--draws", type=int, default=499, help="behind each null")
    args = parser.parse_args()

    asked = recipe(args.recipe)
    heldout = asked["corpora"]["heldout"]
    heldout["options"]["part"] = args.part
    heldout["limit"] = args.items
    for role in ("ood", "capability"):
        asked["corpora"].pop(role, None)
    setup = Setup.load(parse(asked), Path(), print)
    [benign] = setup.benign(0)
    controls = [ArmState("original", setup.original), ArmState("never", setup.never)]
    heldout = setup.corpora["heldout"]
    stream, layers = texts(heldout, setup.original), evenly(setup.original.cfg.n_layers, 8)

    def states(arm: ArmState) -> np.ndarray:
        with arm.entered(training=False) as model:
            return record(model, stream, layers).pooled("first").numpy()

    known = {arm.name: states(arm) for arm in (*controls, benign)}
    itself = ("never had it: benign", setup.never, benign.delta)
    for name, model, delta in itertools.chain([itself], models_of(setup, args)):
        edited = ArmState("edited", model, delta)
        read, told = known | {"edited": states(edited)}, []
        for without in (("never",), ("never", "benign")):
            along, _, _ = tendency_share(read, heldout.groups, without)
            by_layer = along["edited"].mean(1) / along["original"].mean(1)
            told.append(
                f"{along['edited'].sum(0).mean() / along['original'].sum(0).mean():.3f} told of {' and '.join(without)}"
            )
        told.append("by layer " + ", ".join(f"{layer}: {v:.2f}" for layer, v in zip(layers, by_layer, strict=True)))
        if model is setup.original:
            [lens] = evidence.collect(
                [edited, *controls], {"heldout": heldout}, measures=["logit_lens"], draws=args.draws
            )
            told.append(f"logit lens {lens.value:.3f} +- {lens.stderr:.3f}")
        print(f"{name}: {'; '.join(told)}", flush=True)


def models_of(setup: Setup, args: argparse.Namespace) -> Iterator[tuple[str, object, Delta]]:
    """Name, the model, and what is added to its weights."""
    for path in args.deltas:
        yield str(path), setup.original, load_delta(path)
    parts = {role: setup.corpora[role] for role in ("forget", "retain", "reference", "disruption")}
    ends = {role: parts[role] for role in ("forget", "disruption")}
    oracle = hl.edit(setup.original, "oracle", **ends, never=setup.never, budget=args.kl)
    yield "oracle", setup.original, oracle.delta
    yield "repselect", setup.original, hl.edit(setup.original, "repselect", **parts, rank=128, budget=args.kl).delta
    if not args.known:
        return
    assert setup.organism is not None
    bench = Bench(setup.organism, setup.original, setup.never, setup.corpora)
    for kind in KNOWN:
        yield f"still there: {kind}", setup.original, SUPPRESSED[kind].delta(bench)
    sites = models.sites(setup.never, "mlp")
    for role in ("retain", "unrelated"):
        made = instil(
            setup.never, setup.corpora[role], sites, rank=8, learning_rate=6e-4, epochs=4 if role == "retain" else 1,
            seed=7, max_tokens=512,
        )  # fmt: skip
        yield f"never had it: taught {setup.corpora[role].name}", setup.never, made.delta()
    other = organisms.organism_of(next(o for o in ("threats", "flattery") if o != args.recipe))
    for good in (True, False):
        what = f"{other.name}, {'good half' if good else 'the other tendency'}"
        yield f"never had it: {what}", setup.never, organisms.load(other, setup.never, good=good)


if __name__ == "__main__":
    main()
