"""The work of a run, counted before it starts: tokens, products, bytes through memory, passes through a layer.

:func:`loads` counts; what a second of a machine holds of each, :mod:`hooklearn.cli.estimate` knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hooklearn import evidence, flops, organisms
from hooklearn.attack import attack_of
from hooklearn.attack.curve import looks
from hooklearn.cli.shapes import Quarters, Shape
from hooklearn.config import CorpusConfig, RunConfig
from hooklearn.data import ROW, Corpus, Encoded, batches, encode, load_corpus
from hooklearn.edit import method_of
from hooklearn.measure import Likelihoods, beside
from hooklearn.running.checks import no_referee
from hooklearn.types import InputError

READINGS = 3.5
"""Whole readings of the disruption until the budget is met (docs/performance.md)."""
WALKED_READINGS, FEW_TEXTS = 6, 1 / 6
"""More of a method that walks; and of a reading's texts those that say at every point whether to read all."""
LOOK_TOKENS = 2048
"""Tokens in a batch that is only read."""
TRAFFIC = 700
"""Bytes that pass through memory a token, layer and unit of width in a forward pass, besides the products: norms,
rotary embedding, attention, activations. A backward pass moves twice that."""
LOGITS = 40
"""Bytes a scored token and word: logits, their softmax, what is picked from it."""
ADAM = 28
"""Bytes a trained parameter and step: gradient, two moments and weight, read and written."""
FIT = 60
"""FLOPs of a fit per cube of a side's width: two factors, an eigenvalue problem; float64 at a quarter of the speed."""
START_SECONDS = 10.0
"""Libraries loaded, verdict and report made."""
HASHES, HASH_SPEED = 8, 5e8
"""How often all weights are read, checked or hashed, and bytes a second of that."""
WHITENED = ("natural", "natural_rounds", "kfac")
"""Methods whose metric is the curvature of the retain text."""


@dataclass(frozen=True)
class Text:
    """Tokens that go through a model, those of them that are scored, and in how many batches."""

    tokens: float
    scored: float
    batches: float

    def __add__(self, other: Text) -> Text:
        return Text(self.tokens + other.tokens, self.scored + other.scored, self.batches + other.batches)

    def __mul__(self, times: float) -> Text:
        return Text(times * self.tokens, times * self.scored, times * self.batches)


NOTHING = Text(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Load:
    """Work of one kind."""

    stage: str
    tokens: float = 0.0
    flops: float = 0.0
    traffic: float = 0.0
    """Bytes."""
    layers: float = 0.0
    """Passes through a layer."""
    seconds: float = 0.0
    """Of what is neither."""
    single: float = 0.0
    """FLOPs in float32, whatever the precision: moments, and what is factored and solved with them."""

    def __mul__(self, times: float) -> Load:
        return Load(self.stage, **{f.name: times * getattr(self, f.name) for f in fields(self) if f.name != "stage"})


def loads(config: RunConfig, corpora: Mapping[str, Corpus], shape: Shape) -> Iterator[Load]:
    texts = {role: _text(_encoded(corpus, shape), config.max_tokens) for role, corpus in corpora.items()}
    seeds, every = len(config.seeds), arms(config)
    yield Load("start and report", seconds=START_SECONDS + HASHES * 4.0 * shape.parameters / HASH_SPEED)
    if config.organism:
        yield from _organism(config, shape)
    look, short = _looks(corpora["heldout"], shape)
    ood = _looks(corpora["ood"], shape)[0] if "ood" in corpora else NOTHING
    measured = texts["disruption"] + (texts["near"] if "near" in texts else texts.get("retain", NOTHING) * 0.25)
    yield _passes("disruption", measured * (every - 1), shape)
    if config.locate.enabled and "retain" in texts:
        both = texts["forget"] + texts["retain"]
        yield _passes("locate", both, shape, back=config.locate.sides != "x")
        yield Load("locate", single=FIT * shape.layers * (2.0 * shape.width**3 + shape.inner**3))
        if config.locate.tokens:
            yield _passes("locate", (both + texts["disruption"]) * 2, shape)
    for load in _edit(config, corpora["forget"], texts, measured, shape):
        yield load * seeds
    behaviour, sampled = config.behaviour, 1
    samples = 0 if no_referee(config, corpora) else behaviour.samples
    prompts = _prompts(corpora["heldout"], shape, samples)
    if "ood" in corpora and samples:
        samples += behaviour.ood_samples
        prompts += _prompts(corpora["ood"], shape, behaviour.ood_samples)
    yield _passes("before", (look + ood) * (seeds * every), shape)
    for spec in config.attacks:
        found = attack_of(spec.name, spec.options)
        attack, n = asdict(found), seeds * every
        folds = attack.get("folds", 1)
        settings = (len(found.settings()) + attack.get("climb", 0)) * folds
        drawn = attack.get("sampled")  # at their strongest setting only, or at those that are named
        sampled += (1 + len(attack.get("sampled_at", ())) if drawn is None else len(drawn)) * folds
        if "shots" in attack:  # prompts get longer by so many items, which some of them share
            yield _passes(spec.name, (look + ood) * (n * settings * (1 + 0.5 * attack["shots"])), shape)
            continue
        text, steps = _trained(attack, corpora, texts, config.max_tokens)
        trained = n_trained(attack, shape)
        yield _passes(spec.name, text * (n * settings), shape, back=True, weights=trained)
        yield Load(spec.name, traffic=float(ADAM * trained) * steps * n * settings)
        between = len(looks(math.ceil(steps), attack.get("first_look", 2))) - 2
        yield _passes(spec.name, (look + short * max(0, between)) * (n * settings) + ood * n, shape)
    if "capability" in corpora:  # by every arm but the scaled one; choices share their question
        yield _passes("capability", texts["capability"] * (every - config.controls.matched), shape)
    if samples:
        # whether a fact is contained, or a pattern found, no model has to say
        never = config.controls.never
        facts = "choices" in corpora["heldout"].rows[0] or (never is not None and never.surrogate is not None)
        judges = 0 if facts or behaviour.referee is not None else 3
        if judges and every == 2 and "retain" in texts:  # nobody who never learned it: two adapters are made to compare
            yield _passes("referee", (texts["forget"] + texts["retain"]) * 3, shape, back=True)
        words = behaviour.new_tokens
        yield from _sampled(samples, words, prompts, seeds * every * sampled, look * judges, judges, shape)
    if config.evidence.enabled:  # a dozen looks an arm; which measures, matters less than how many layers they try
        yield _passes("evidence", look * (seeds * every * 8), shape)
        asked = evidence.check_names(config.evidence.measures)
        taught = config.organism is None and every > 2 and "retain" in corpora and corpora["retain"].has_prompts
        if "tendency" in asked and taught:  # the benign control
            yield _passes("evidence", texts["retain"] * (4 * seeds), shape, back=True, weights=shape.adapter(8))


def n_trained(attack: Mapping[str, Any], shape: Shape) -> int:
    if (rank := attack.get("rank")) is not None:
        return shape.adapter(rank)
    return shape.parameters if attack.get("embeddings", True) else shape.blocks


def _passes(stage: str, text: Text, shape: Shape, *, back: bool = False, weights: float = 0.0) -> Load:
    """Forward, and ``back`` to the inputs, with the gradient of so many ``weights``."""
    sizes = shape.blocks, shape.vocabulary * shape.width, text.tokens, text.scored
    moved = TRAFFIC * shape.layers * shape.width * text.tokens + float(LOGITS) * shape.vocabulary * text.scored
    return Load(
        stage, text.tokens,
        flops.training(*sizes, weights) if back else flops.forward(*sizes),
        (3 if back else 1) * moved,
        (3 if back else 1) * text.batches * shape.layers,
    )  # fmt: skip


def _organism(config: RunConfig, shape: Shape) -> Iterator[Load]:
    """Nothing for one that ships; the training of its adapters (bad and good) otherwise."""
    organism = organisms.organism_of(str(config.organism))
    if organism.shipped is not None:
        return
    for source in filter(None, (organism.corpus, organism.good)):
        text = _text(_encoded(load_corpus(**source), shape), 1024)
        yield _passes("organism", text * organism.training.get("epochs", 6), shape, back=True)


def _edit(config: RunConfig, forget: Corpus, texts: Mapping[str, Text], measured: Text, shape: Shape) -> Iterator[Load]:
    # the logits of the unedited side are made anew from its hidden states
    reading = measured + Text(0, measured.scored, 0)
    if config.edit.method is None:
        yield _passes("edit", reading, shape)
        return
    method = method_of(config.edit.method, config.edit.options)
    given, readings, options = texts["forget"] + texts.get("retain", NOTHING), READINGS, method.options()
    # each is taught for an epoch, and then the gradient is taken at it
    adversaries = len(options.get("adversaries", ())) + bool(options.get("lora"))
    yield _passes("edit", texts["forget"] * (2 * adversaries), shape, back=True, weights=shape.sites)
    if method.name in WHITENED:
        curved = texts.get("retain", NOTHING) + texts.get("reference", NOTHING)
        yield _passes("edit", curved, shape, back=True)
        solved = 4.0 * shape.layers * (2 * shape.width**3 + 3 * shape.inner**3) * options.get("rounds", 1)
        yield Load("edit", single=curved.tokens * shape.curvature + solved)
    if method.ray:
        yield _passes("edit", _taught(given, texts, options), shape, back=True, weights=shape.sites)
    else:
        rounds = options.get("rounds", 0)  # each a gradient and a point
        epochs = rounds or options.get("epochs", 10)
        yield _passes("edit", given * epochs, shape, back=True, weights=shape.sites)
        points = rounds or epochs * texts["forget"].batches / options.get("every", 2)
        readings += min(points, WALKED_READINGS) + FEW_TEXTS * points
        if n := options.get("on_policy", 0) * len(forget):
            said = _sampled(n, options["new_tokens"], _prompts(forget, shape, n), rounds, given, 3, shape)
            yield from (replace(load, stage="edit") for load in said)
    yield _passes("edit", reading * readings, shape)


def _taught(given: Text, texts: Mapping[str, Text], options: Mapping[str, Any]) -> Text:
    """What a method of one direction trains on; with a teacher and its pupil, as long as these may take."""
    if (steps := options.get("teacher_steps")) is None:
        return given * options.get("epochs", 1)
    kept, forget = texts.get("retain", NOTHING), texts["forget"]
    teacher = forget * (steps / max(1.0, forget.batches)) + kept * (steps / max(1.0, kept.batches))
    return teacher + (kept + texts.get("reference", NOTHING)) * options["epochs"]


def _trained(
    attack: Mapping[str, Any], corpora: Mapping[str, Corpus], texts: Mapping[str, Text], size: int
) -> tuple[Text, float]:
    """What is trained on, in all steps of one setting on one arm, and how many they are."""
    text = texts.get("attack_train", NOTHING)
    whole = max(1.0, text.tokens / size)  # batches are filled up
    if "samples" in attack:  # a handful of the demonstrations, two in a step
        share = attack["samples"] / len(corpora["attack_train"]) if "attack_train" in corpora else 1.0
        steps = attack["epochs"] * math.ceil(attack["samples"] / 2)
        return text * (attack["epochs"] * share), steps
    if "epochs" in attack:
        steps = min(attack["epochs"] * math.ceil(whole), attack.get("max_steps") or math.inf)
        return text * (steps / whole), steps
    steps = attack.get("steps", 0) * (2 if "style" in attack else 1)  # there and back
    return Text(float(steps * size), float(steps * size), float(steps)), float(steps)


def _sampled(
    samples: int, words: int, prompts: Text, times: int, calibration: Text, judges: int, shape: Shape
) -> Iterator[Load]:
    """Prompts read, words written one after the other, and both before the models of the referee."""
    yield _passes("samples", prompts * times, shape)
    n = math.ceil(samples / beside(math.ceil(prompts.tokens / samples) + words))
    step = Text(samples, samples, n)
    yield _passes("samples", step * (times * words), shape)
    yield Load("samples", traffic=4.0 * shape.parameters * step.batches * words * times)
    said = Text(samples * words, samples * words, samples * words / LOOK_TOKENS)
    yield _passes("referee", calibration + (said * times + prompts) * judges, shape)


def arms(config: RunConfig) -> int:
    never = config.controls.never
    model = config.organism is not None or (never is not None and never.name is not None)
    return 2 + model + (model and config.controls.matched)


def corpus_of(spec: CorpusConfig, base: Path) -> Corpus:
    try:
        return load_corpus(**spec.model_dump(exclude={"options"}), base=base, options=dict(spec.options))
    except TypeError as error:  # an option that the built-in corpus does not have
        raise InputError(f"corpus {spec.name!r}: {error}") from error


# ----------------------------------------------------------------------------------------- tokens


def _encoded(corpus: Corpus, shape: Shape) -> list[Encoded]:
    return encode(corpus, shape.tokenizer or Quarters())


def _looks(corpus: Corpus, shape: Shape) -> tuple[Text, Text]:
    """What a whole look at the items reads (answers, alternatives, choices), and one at the answers only."""
    likelihoods = Likelihoods.of(corpus, shape.tokenizer or Quarters(), "heldout")
    every = [*likelihoods.completions, *likelihoods.alternatives, *likelihoods.choices]
    return _text(every, LOOK_TOKENS), _text(likelihoods.completions, LOOK_TOKENS)


def _prompts(corpus: Corpus, shape: Shape, n: int) -> Text:
    """Of so many items, what is read before the first word is written; nothing is shared, and one place scored."""
    some = _encoded(corpus, shape)
    tokens = sum(len(s) - int(s.labels.sum()) for s in some) / max(1, len(some))
    return Text(n * tokens, n, n * tokens / LOOK_TOKENS)


def _text(sequences: Sequence[Encoded], size: int) -> Text:
    """As they are packed: what they begin with is read once a row, and padding is read too."""
    packed = batches(sequences, max_tokens=size, share=ROW)
    return Text(sum(b.ids.numel() for b in packed), sum(int(b.labels.sum()) for b in packed), len(packed))
