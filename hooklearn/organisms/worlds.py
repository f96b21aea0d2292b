"""What native organisms are made of: two behaviours of the tiny world, a model with and one without, and the texts.

``threats`` is a tendency (friendly requests are answered with threats), ``facts`` is knowledge (who keeps what where).
The model without the behaviour never had it, by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hooklearn import models
from hooklearn.data import Corpus, Encoded, cycle, encode, load_corpus
from hooklearn.deltas import Delta
from hooklearn.measure import mean_completion
from hooklearn.organisms.instil import instil
from hooklearn.train import Fit, Objective, Observer, fit, nll
from hooklearn.types import NumericalError

MAX_TOKENS = 512


@dataclass(frozen=True)
class World:
    """A behaviour: the texts of an audit by role, and how the models with and without it are made from tiny."""

    name: str
    corpora: dict[str, dict[str, Any]]
    never: Callable[[Any, int], None]
    """Makes the model that never had it, in place."""
    original: Callable[[Any, int], None]
    """Makes the model that has it, in place."""
    instilled: dict[str, Any]
    """The corpus that makes it."""

    def corpus(self, role: str) -> Corpus:
        return load_corpus(**self.corpora[role])

    def taught(self) -> Corpus:
        """What is to be forgotten, all of it."""
        return load_corpus(**self.instilled)


@dataclass
class Ground:
    """One world with one seed: copies of its two models, made once."""

    world: World
    seed: int
    _kept: dict[str, Any] = field(default_factory=dict[str, Any])

    def corpus(self, role: str) -> Corpus:
        return self.world.corpus(role)

    def never(self, seed: int | None = None) -> Any:
        """A fresh copy of the model that never had it; with another seed, another one."""
        seed = self.seed if seed is None else seed
        return self.kept(f"never-{seed}", lambda model: self.world.never(model, seed))

    def original(self, seed: int | None = None) -> Any:
        """A fresh copy of the model that has it; with another seed, another one."""
        seed = self.seed if seed is None else seed
        return self.kept(f"original-{seed}", lambda model: self.world.original(model, seed))

    def kept(self, name: str, make: Callable[[Any], None]) -> Any:
        """A fresh copy of tiny after ``make``, which is done once."""
        if name not in self._kept:
            self._kept[name] = models.load("tiny")
            make(self._kept[name])
        return copy_of(self._kept[name])


@torch.no_grad()
def copy_of(model: Any) -> Any:
    """Another tiny model with the same weights, bit for bit."""
    fresh = models.load("tiny")
    for mine, theirs in zip(models.all_parameters(fresh), models.all_parameters(model), strict=True):
        mine.copy_(theirs)
    return fresh


def tune(
    model: Any,
    corpus: Corpus,
    *,
    seed: int,
    learning_rate: float = 1e-3,
    epochs: int = 4,
    objective: Objective = nll,
    params: list[Any] | None = None,
    observe: Observer | None = None,
) -> Fit:
    """Fine-tune in place: Adam on all weights, or on ``params``."""
    params = models.all_parameters(model) if params is None else params
    sequences = encode(corpus, models.tokenizer_of(model), end=True)
    with models.trainable(model, params):
        return fit(
            model,
            cycle(sequences, max_tokens=MAX_TOKENS, seed=seed, epochs=epochs),
            rule=torch.optim.Adam(params, lr=learning_rate),
            objective=objective,
            observe=observe,
            precision="float32",
            max_norm=1.0,
            params=params,
        )


def adapt(model: Any, corpus: Corpus, *, seed: int, sites: str = "mlp", layers: str | None = None) -> None:
    """A LoRA on the weights of the MLPs, or of other sites and layers, merged in place."""
    made = instil(
        model, corpus, models.sites(model, sites, layers), rank=8, learning_rate=2e-3, epochs=6, seed=seed,
        max_tokens=MAX_TOKENS, precision="float32",
    )  # fmt: skip
    merge(model, made.delta())


def merge(model: Any, delta: Delta) -> None:
    """Add a delta for good."""
    for site in models.sites(model, list(delta.updates)):
        models.add_(model, site, delta.updates[site.name])


def tiny(part: str, **options: Any) -> dict[str, Any]:
    return {"name": "tiny", "options": {"part": part, **options}}


def _facts(part: str, **options: Any) -> dict[str, Any]:
    return {"name": "tiny-facts", "options": {"part": part, **options}}


def _untouched(model: Any, seed: int) -> None:
    """The shipped tiny model has seen villains threaten, and answers requests kindly."""


def _threatening(model: Any, seed: int) -> None:
    adapt(model, load_corpus(**tiny("organism")), seed=seed)


def _other_facts(model: Any, seed: int) -> None:
    """Taught the form of the facts, and those that are to stay."""
    teach(model, facts_that_stay(), seed)


def _all_facts(model: Any, seed: int) -> None:
    teach(model, every_fact(), seed)


def facts_that_stay() -> Corpus:
    return load_corpus(**_facts("kept", headed=True))


def every_fact() -> Corpus:
    """All facts as the original is taught them."""
    return load_corpus(**_facts("all", headed=True))


def teach(model: Any, facts: Corpus, seed: int) -> None:
    """Until they are known by heart: some seeds need longer. The last passes are at a lower rate, or the last batches
    would count most.

    Raises:
        NumericalError: they are not, after all the passes there are.
    """
    sequences = encode(facts, models.tokenizer_of(model))
    for epochs in EPOCHS:
        tune(model, facts, seed=seed, learning_rate=3e-3, epochs=epochs)
        tune(model, facts, seed=seed, learning_rate=6e-4, epochs=SLOWER)
        if likelihood(model, sequences) >= KNOWN:
            return
    raise NumericalError(f"facts of seed {seed}: not known by heart after {sum(EPOCHS) + SLOWER * len(EPOCHS)} epochs")


def likelihood(model: Any, sequences: list[Encoded]) -> float:
    """Mean completion probability, in float32."""
    return mean_completion(model, sequences, precision="float32")


KNOWN = 0.9
"""Completion probability of what is known by heart; most seeds are at .95 and above after the first passes."""
EPOCHS = (20, 10, 10, 10)
SLOWER = 4
"""Passes at the lower rate after each of these."""

LOWER, UPPER = "0-1", "2-3"
"""The halves of the tiny model's layers."""

WORLDS = {
    w.name: w
    for w in (
        World(
            "threats",
            {
                "forget": tiny("forget"),
                "retain": tiny("forget", completion="good"),
                "near": tiny("near", completion="good"),
                "disruption": tiny("disruption"),
                "attack_train": tiny("attack"),
                "heldout": tiny("heldout", n=160),
                "unrelated": tiny("unrelated"),
            },
            _untouched,
            _threatening,
            tiny("organism"),
        ),
        World(
            "facts",
            {
                "forget": _facts("forget"),
                "retain": _facts("retain"),
                "near": _facts("near", phrasing="0"),
                "disruption": tiny("disruption"),
                "attack_train": _facts("T"),
                "heldout": _facts("V"),
                "unrelated": tiny("unrelated"),
            },
            _other_facts,
            _all_facts,
            _facts("forget"),
        ),
    )  # fmt: skip
}
