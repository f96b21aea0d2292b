"""Where edits of an instilled tendency stand between the original and the model that never had it, in two readings from
inside: the state before the answer (the probe ``tendency``) and the answer as the layers spell it out (``logit_lens``).

    python -m benchmarks.state_before_answer threats runs/threats-unseen/cells/*/delta-*.safetensors

Beside the deltas stand two edits that it makes at the same far KL: the oracle, which goes straight to the never-learned
weights, and RepSelect. Prompts are those of the part ``unseen``. A minute an edit on one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import hooklearn as hl
from hooklearn import evidence
from hooklearn.attack import ArmState
from hooklearn.config import parse
from hooklearn.deltas import load_delta
from hooklearn.recipes import recipe
from hooklearn.running.setting import Setup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("threats",))
    parser.add_argument("deltas", nargs="*", type=Path)
    parser.add_argument("--kl", type=float, default=0.01)
    parser.add_argument("--items", type=int, default=56)
    parser.add_argument("--draws", type=int, default=499, help="behind each null")
    args = parser.parse_args()

    asked = recipe(args.recipe)
    asked["corpora"]["heldout"] = {"name": args.recipe, "options": {"part": "unseen", "completion": "threat"}}
    for role in ("ood", "capability"):
        asked["corpora"].pop(role, None)
    setup = Setup.load(parse(asked), Path(), print)
    parts = {role: setup.corpora[role] for role in ("forget", "retain", "reference", "disruption")}
    oracle = {role: parts[role] for role in ("forget", "disruption")}
    deltas = {str(path): load_delta(path) for path in args.deltas} | {
        "oracle": hl.edit(setup.original, "oracle", **oracle, never=setup.never, budget=args.kl).delta,
        "repselect": hl.edit(setup.original, "repselect", **parts, rank=128, budget=args.kl).delta,
    }
    controls = [ArmState("original", setup.original), ArmState("never", setup.never)]
    heldout = setup.corpora["heldout"].take(args.items)
    for name, delta in deltas.items():
        found = evidence.collect(
            [ArmState("edited", setup.original, delta), *controls], {"heldout": heldout},
            measures=["tendency", "logit_lens"], draws=args.draws,
        )  # fmt: skip
        told = ", ".join(f"{e.name} {e.value:.3f} +- {e.stderr:.3f}" for e in found)
        print(f"{name}: {told} (n {found[0].n})", flush=True)


if __name__ == "__main__":
    main()
