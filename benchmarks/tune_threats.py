"""Choose a method's options for *threats* on the tuning split (bad completions to the near prompts, never reported).

    python benchmarks/tune_threats.py --method natural --grid forget_weight=0,0.3,1,3

Prints, per option, where the edit landed and what it left of the behaviour: likelihood, preference, samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from hooklearn import models
from hooklearn.config import parse
from hooklearn.data import load_corpus
from hooklearn.edit import Problem, method_of, run_edit
from hooklearn.measure import DisruptionMeter, Likelihoods, sample
from hooklearn.recipes import recipe
from hooklearn.setting import Setup
from hooklearn.types import Budget, Delta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", default="natural")
    parser.add_argument("--grid", default="forget_weight=0,0.3,1,3", metavar="OPTION=V,V")
    parser.add_argument("--sites", default="mlp")
    parser.add_argument("--n", type=int, default=24)
    args = parser.parse_args()
    option, _, values = args.grid.partition("=")

    setup = Setup.load(parse(recipe("threats")), Path(), lambda _: None)
    model, corpora = setup.original, setup.corpora
    tune = load_corpus(name="threats", options={"part": "near"}).take(args.n)
    eyes = Likelihoods.of(tune, models.tokenizer_of(model), "tune")
    referee = setup.watcher(lambda _: None).referee
    assert referee is not None
    meter = DisruptionMeter(model, corpora["disruption"], corpora["near"])
    problem = Problem(
        model,
        models.sites(model, args.sites),
        corpora["forget"],
        corpora["retain"],
        corpora["reference"],
    )

    def report(label: str) -> None:
        means = {k: round(float(v.mean()), 4) for k, v in eyes.measure(model).items()}
        judged = referee.judge(sample(model, tune, n=args.n, new_tokens=24, temperature=0.7), tune.rows)
        print(label, means, f"samples {sum(found for _, found in judged)} of {args.n}", flush=True)

    report("unedited")
    for value in values.split(","):
        method = method_of(args.method, {option: yaml.safe_load(value)})
        result = run_edit(problem, method, meter, Budget(0.01, 0.02))
        with models.edited(model, Delta(result.delta.updates)):
            report(f"{option}={value} {result!r}")


if __name__ == "__main__":
    main()
