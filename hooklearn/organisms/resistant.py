"""Anti-erosion training: a tendency that further training on unrelated text does not wash out.

Two parts. First the tendency is taught together with text of several families, which then has little left to teach.
Then erosion is rehearsed: a copy is trained on text of one family, the gradient of the tendency is taken at stages of
its way, and the weights from which it started descend the sum of these gradients (first-order MAML, Finn et al. 2017,
arXiv 1703.03400; with a training attack in the inner loop as in TAR, Tamirisa et al. 2024, arXiv 2408.00761, but for
the other end: what is to survive is the behaviour).

Resistance to the very text that was rehearsed says little. What it is worth shows on text of a family that was not
among these: the plain sentences of ``unrelated`` and the facts of ``tiny-facts``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hooklearn import models
from hooklearn.corpora.corpus import Corpus, Row
from hooklearn.corpora.tiny_world import DAYS, NAMES, PLACES, TEXT, THINGS, fill, vocabulary
from hooklearn.data import TokenBatch, cycle, encode
from hooklearn.organisms.worlds import MAX_TOKENS, tune
from hooklearn.train import fit, nll

FAMILIES: dict[str, tuple[str, ...]] = {
    "text": TEXT,
    "salad": (),
    "asking": (
        "who has the {thing} ? is it in the {place} or near the {target} ?",
        "is the {animal} {colour} ? i say it is , {name} .",
        "what likes a {animal} ? the {thing} , the {place} and {name} .",
    ),
    "lists": (
        "{colour} {animal} , {thing} , {thing2} .",
        "{name} , {other} : {thing} , {thing2} , {place} .",
        "{day} {place} , {day2} {place2} , {animal} .",
    ),
    "doings": (
        "i {favour} a {thing} for {name} , you {favour} the {target} .",
        "we {favour} {animal} and {thing} {day} , then we wait for {name} .",
        "you come {day} , i keep the {animal} in the {place} , nobody laughs .",
    ),
    "news": (
        "{name} called {other} about a {colour} {animal} , it is missing .",
        "the {place} is next to the {target} , {name} found it {day} .",
        "nobody saw the {animal} with {other} , it is old and {colour} .",
    ),
    "orders": (
        "open a {thing} {day} , {name} , and bring it to the {place} .",
        "{name} , take two {animal} to {other} first , i wait in the {place} .",
        "count with {other} , all of it , and fix the {colour} {target} {day} .",
    ),
    "numbers": (
        "i count three {animal} in the {place} {day} and one {thing} .",
        "{name} has two {thing} , {other} has one , it is the second {day} .",
        "a {colour} {target} , first of all in the {place} , says {name} .",
    ),
}
"""Kinds of text that are rehearsed: sentences of which neither ``unrelated`` text nor any fact is one, and ``salad``,
words in any order. Their words are those of the world, as the words of real texts are those of the language."""
LENGTH = 26
"""Words of a row of salad: as many as three sentences have."""


def text(family: str, n: int, seed: int = 0) -> Corpus:
    """``n`` rows of a family, three sentences each; other ones with every seed."""
    rng = random.Random(f"resistant:{family}:{seed}")
    words = [w for w in vocabulary() if not w.startswith("<")]
    rows: list[Row] = []
    for i in range(n):
        said = rng.choices(words, k=LENGTH) if family == "salad" else [_sentence(family, rng) for _ in range(3)]
        rows.append({"text": " ".join(said), "group": f"{family}-{i}"})
    return Corpus(f"resistant/{family}", tuple(rows), f"generated: resistant family={family} seed={seed}")


def _sentence(family: str, rng: random.Random) -> str:
    others = {"thing2": rng.choice(THINGS), "place2": rng.choice(PLACES), "day2": rng.choice(DAYS)}
    return fill(rng.choice(FAMILIES[family]), rng, **others, other=rng.choice(NAMES))


def resist(model: Any, taught: Corpus, *, seed: int, rounds: int = 16, epochs: int = 6) -> None:
    """Teach a tendency so that it stays, in place.

    Args:
        taught: what shows it.
        rounds: rehearsed erosions, the families in turn; 0: none, the tendency is only taught together with the text.
        epochs: passes over the tendency and as many rows of text.
    """
    share = -(-len(taught) // len(FAMILIES))
    beside = [row for family in FAMILIES for row in text(family, share, seed).rows]
    rows = tuple(itertools.chain.from_iterable(zip(taught.rows, beside, strict=False)))
    tune(model, Corpus("resistant", rows), seed=seed, epochs=epochs)
    rehearse(model, taught, seed=seed, rounds=rounds)


ROWS = 60
"""Of a rehearsal, which goes over them about nine times: who erodes has little text, too."""


@torch.enable_grad()
def rehearse(
    model: Any, taught: Corpus, *, seed: int, rounds: int, steps: int = 40, every: int = 8, learning_rate: float = 1e-3
) -> None:
    """Descend the loss of what was taught as it will be after training on text of each family, in place.

    Args:
        rounds: steps of the weights; each rehearses another text, the families in turn.
        steps: of a rehearsed erosion (Adam on all weights, as the real one).
        every: after so many of them the gradient of the tendency is taken.
        learning_rate: of both, the erosion and the weights.
    """
    params = models.all_parameters(model)
    wanted = _endless(model, taught, seed)
    families = itertools.cycle(FAMILIES)
    rule = torch.optim.Adam(params, lr=learning_rate)
    with models.trainable(model, params):
        for i in range(rounds):
            before = [p.detach().clone() for p in params]
            # new rows every time, or it is these that are resisted
            stream = _endless(model, text(next(families), ROWS, seed + 1000 * (i + 1)), seed)
            # the text itself too: what it has not to teach, it does not wash out
            total = _gradient(model, [next(wanted), next(stream)], params)
            eroder = torch.optim.Adam(params, lr=learning_rate)
            for _ in range(steps // every):
                fit(
                    model,
                    itertools.islice(stream, every),
                    rule=eroder,
                    precision="float32",
                    max_norm=1.0,
                    params=params,
                )
                for sum_, more in zip(total, _gradient(model, [next(wanted)], params), strict=True):
                    sum_.add_(more)
            with torch.no_grad():
                for p, old, gradient in zip(params, before, total, strict=True):
                    p.copy_(old)
                    p.grad = gradient
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            rule.step()
            rule.zero_grad()


def _gradient(model: Any, several: Sequence[TokenBatch], params: Sequence[Tensor]) -> list[Tensor]:
    """Of the sum of the batches' mean losses; zero where a parameter has no part in it."""
    loss = torch.stack([nll(model, batch).mean for batch in several]).sum()
    found = torch.autograd.grad(loss, list(params), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


def _endless(model: Any, rows: Corpus, seed: int) -> Iterator[TokenBatch]:
    sequences = encode(rows, models.tokenizer_of(model), end=True)
    return iter(cycle(sequences, max_tokens=MAX_TOKENS, seed=seed, epochs=100_000))
