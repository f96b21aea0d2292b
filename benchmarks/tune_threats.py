"""Choose a method's options for *threats* on the tuning split (bad completions to the near prompts, never reported).

    python benchmarks/tune_threats.py natural:forget_weight=0 natural:forget_weight=0.3 --near-ce 0.02
    python benchmarks/tune_threats.py natural:forget_weight=0.3 --scales 1.41 2 2.83   # dose and response
    python benchmarks/tune_threats.py natural:forget_weight=0.3 --on-policy 2          # its own samples
    python benchmarks/tune_threats.py natural_rounds:forget_weight=0.3,step_kl=6e-4
    python benchmarks/tune_threats.py natural_rounds:damping=1,on_policy=2,reward=apart   # redrawn
    python benchmarks/tune_threats.py natural:damping=1 --near-ce 0.02 --reference 72 --n 36 --seeds 1 2
    python benchmarks/tune_threats.py natural:damping=1 --near-ce 0.02 --retain 8      # few good completions
    python benchmarks/tune_threats.py --towards-never 0.7 1                            # who knows the way home
    python benchmarks/tune_threats.py natural:damping=1 --near-ce 0.02 --demonstrate 2 --few-shot 2   # in context too

Prints, per method, where the edit landed and what it left of the behaviour: likelihood, preference, samples.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import time
from pathlib import Path
from typing import Any

import yaml

from hooklearn import editing, models
from hooklearn.config import parse
from hooklearn.data import Corpus, load_corpus
from hooklearn.deltas import Delta
from hooklearn.disruption import DisruptionMeter
from hooklearn.edit import Method, Problem, method_of, run_edit
from hooklearn.measure import Likelihoods, sample
from hooklearn.recipes import recipe
from hooklearn.running.setting import Setup
from hooklearn.types import Budget

STARTED = time.perf_counter()


def say(*what: Any) -> None:
    print(f"[{time.perf_counter() - STARTED:5.0f} s]", *what, flush=True)


def named(text: str) -> Method:
    """``natural:forget_weight=0.3,adversaries=[lora@0.01,full@1e-4]``."""
    name, _, options = text.partition(":")
    pairs = (o.partition("=") for o in re.split(r",(?![^\[]*\])", options) if o)
    return method_of(name, {key: yaml.safe_load(value) for key, _, value in pairs})


def own_samples(setup: Setup, referee: Any, draws: int) -> Corpus:
    """The model's own answers to the forget prompts, as far as the referee calls them the behaviour."""
    forget, rows = setup.corpora["forget"], []
    for seed in range(draws):
        drawn = sample(setup.original, forget, n=len(forget), seed=seed)
        judged = zip(drawn, referee.judge(drawn, forget.rows), strict=True)
        rows += [{**forget.rows[s.item], "completion": s.completion} for s, ruling in judged if ruling.is_behaviour]
    say(f"own samples: {len(rows)} of {draws * len(forget)} are the behaviour")
    return Corpus("own samples", tuple(rows))


def shown(corpus: Corpus, demonstrations: Corpus, shots: int, sets: int = 4, seed: int = 0) -> Corpus:
    """The same rows after demonstrations of the behaviour; those whose turn is the same set share its tokens."""
    rows = []
    for i, row in enumerate(corpus.rows):
        others = [d for d in demonstrations.rows if d["group"] != row["group"]]
        turns = random.Random(f"{seed}:{i % sets}").sample(others, shots)
        said = [(d["prompt"], d["completion"]) for d in turns]
        history = [{"role": r, "content": c} for pair in said for r, c in zip(("user", "assistant"), pair, strict=True)]
        rows.append({**row, "history": history})
    return Corpus(f"{corpus.name} after {shots}", tuple(rows), corpus.source)


def both(a: Corpus, b: Corpus) -> Corpus:
    return Corpus(f"{a.name} + {b.name}", a.rows + b.rows, a.source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("methods", nargs="*", type=named, metavar="METHOD:OPTION=VALUE,...")
    parser.add_argument("--sites", default="mlp")
    parser.add_argument("--kl", type=float, default=0.01)
    parser.add_argument("--near-ce", type=float, default=None)
    parser.add_argument("--scales", nargs="*", type=float, default=[], help="also at these multiples of the edit")
    parser.add_argument("--on-policy", type=int, default=0, metavar="DRAWS")
    parser.add_argument("--towards-never", nargs="*", type=float, default=[], metavar="SHARE", help="of the way home")
    parser.add_argument("--demonstrate", type=int, default=0, metavar="SHOTS", help="gradients after as many as well")
    parser.add_argument("--few-shot", type=int, default=0, metavar="SHOTS", help="also ask after demonstrations")
    parser.add_argument("--retain", type=int, default=None, metavar="N", help="good completions, the first of all")
    parser.add_argument("--reference", type=int, default=32, help="texts for the curvature, of 80")
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--seeds", nargs="+", type=int, default=[7], help="of the samples: n for each")
    args = parser.parse_args()

    setup = Setup.load(parse(recipe("threats")), Path(), lambda _: None)
    model, corpora = setup.original, setup.corpora
    tune = load_corpus(name="threats", options={"part": "near"}).take(args.n)
    eyes = Likelihoods.of(tune, models.tokenizer_of(model), "tune")
    referee = setup.watcher(lambda _: None).referee
    assert referee is not None
    meter = DisruptionMeter(model, corpora["disruption"], corpora["near"])
    forget = own_samples(setup, referee, args.on_policy) if args.on_policy else corpora["forget"]
    sites = models.sites(model, args.sites)
    reference = load_corpus(name="prose", options={"part": "moments"}).take(args.reference)
    retain = corpora["retain"].take(args.retain) if args.retain else corpora["retain"]
    if args.demonstrate:
        forget, retain = (both(c, shown(c, corpora["forget"], args.demonstrate)) for c in (forget, retain))
    problem = Problem(model, sites, forget, retain, reference, max_tokens=512, referee=referee)

    def report(label: str, delta: Delta | None = None, scale: float = 1.0) -> None:
        state = editing.edited(model, Delta(delta.updates), scale) if delta else contextlib.nullcontext()
        with state:
            means = {k: round(float(v.mean()), 4) for k, v in eyes.measure(model).items()}
            drawn = [sample(model, tune, n=args.n, seed=seed) for seed in args.seeds]
            asked = shown(tune, load_corpus(name="threats", options={"part": "near"}), args.few_shot, seed=1)
            led = [sample(model, asked, n=args.n, seed=seed) for seed in args.seeds] if args.few_shot else []
            now = meter.measure()
        bad, after = (
            [sum(ruling.is_behaviour for ruling in referee.judge(texts, tune.rows)) for texts in asked_for]
            for asked_for in (drawn, led)
        )
        assert now.near_ce is not None
        where = f"far KL {now.kl.value:.4f}, near CE {now.near_ce.value:+.3f}"
        found = f"samples {bad}, after demonstrations {after} of {args.n}"
        say(f"{label}: {where}, {means}, {found}; {drawn[0][0].completion[:60]!r}")

    report("unedited")
    if args.towards_never:
        home = {s.name: (models.weight(setup.never, s) - models.weight(model, s)).detach() for s in sites}
        for share in args.towards_never:
            report(f"{share:g} of the way to never", Delta(home), share)
    for method in args.methods:
        result = run_edit(problem, method, meter, Budget(args.kl, args.near_ce))
        say(repr(result), method, dict(result.found))
        for scale in (1.0, *args.scales):
            report(f"{method.name} x {scale:g}", result.delta, scale)


if __name__ == "__main__":
    main()
