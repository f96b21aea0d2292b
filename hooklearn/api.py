"""The short Python verbs of a notebook: organism, capture, behaviour, attack, run, audit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hooklearn import auditing, editing, models, organisms
from hooklearn.attack import Arena, ArmState, Attack, Onlooker, Watcher, attack_of
from hooklearn.config import RunConfig, parse
from hooklearn.corpus import as_corpus
from hooklearn.data import Corpus, batches, encode
from hooklearn.deltas import Delta
from hooklearn.locate.capture import capture as capture_sites
from hooklearn.measure import TEMPERATURE, Likelihoods, RatioReferee, Referee, Scorer, sample
from hooklearn.organisms.kinds import kind_of
from hooklearn.types import Curves, InputError, Score, Tape


@dataclass(frozen=True)
class Organism:
    """A model whose behaviour was put in by us, and the same model without it."""

    name: str
    model: Any
    never: Any
    """The never-learned control."""
    delta: Delta
    """What was added to the weights: the truth about where the behaviour is."""
    recipe: organisms.Organism

    def referee(self, bad: Corpus, good: Corpus) -> RatioReferee:
        """Per-token likelihood ratio of the organism to the likelier of two references: the untouched model, and one
        trained on good completions (trained now where it is not shipped). The threshold is set on the completions
        given here, which must be held out."""
        references = (Scorer(self.never), Scorer(self.never, organisms.load(self.recipe, self.never, good=True)))
        # not self.model: that may well be edited when its samples are judged
        behaving = Scorer(self.never, self.delta)
        return RatioReferee(behaving, references, "organism / likeliest reference").calibrated(bad, good)


def organism(name: str = "tiny-threats", *, seed: int | None = None) -> Organism:
    """Load a base model twice and instil the behaviour into one of them.

    Args:
        name: ``tiny-threats`` (built in seconds) or ``threats``. Organisms that are whole models, of every truth, are
            made by :func:`build_organism`.
        seed: of the adapter's training; only where it is trained now and not shipped.
    Raises:
        InputError: unknown name; a seed for a shipped adapter.
    """
    made = organisms.organism_of(name)
    if seed is not None:
        if made.shipped is not None:
            raise InputError(f"organism {name!r} is shipped, so its seed cannot be chosen; got seed={seed}")
        made = replace(made, training={**made.training, "seed": seed})
    never, model = models.load(made.base), models.load(made.base)
    delta = organisms.load(made, never)
    editing.merge(model, delta)
    return Organism(name, model, never, delta, made)


def build_organism(
    name: str, out: str | Path, *, seed: int = 0, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Path]:
    """The models of an organism's audit as Hugging Face folders below ``out``: original, edited, never.

    Args:
        name: one of :data:`hooklearn.organisms.KINDS`, whose cards say what their truth is and how it is known.
    Raises:
        InputError: unknown name.
    """
    return organisms.write_kind(kind_of(name).name, Path(out), seed, progress)


def organism_card(name: str) -> dict[str, str]:
    """What an organism is, how its truth is known, and what may be said of it. Raises InputError: unknown name."""
    return organisms.card(name)


def capture(
    model: Any,
    corpus: Corpus,
    *,
    sites: str | Sequence[str] = "mlp",
    layers: str | None = None,
    gradients: bool = True,
) -> dict[str, Tape]:
    """Inputs ``x`` and output gradients ``g`` of every site on a small corpus, ``[token, d]``.

    For ``y = W x``: ``tape.update()`` is the gradient of the summed loss with respect to W.

    Examples:
        >>> from hooklearn.data import load_corpus
        >>> some = load_corpus(name="tiny", options={"part": "forget"}, limit=2)
        >>> tapes = capture(models.load("tiny"), some, sites="mlp.out", layers="0")
        >>> tuple(tapes["blocks.0.mlp.out"].update().shape)
        (64, 128)
    """
    stream = batches(encode(corpus, models.tokenizer_of(model)))
    return capture_sites(model, stream, models.sites(model, sites, layers), gradients=gradients, precision="float32")


def behaviour(
    model: Any,
    corpus: Corpus,
    *,
    referee: Referee | None = None,
    samples: int = 32,
    new_tokens: int = 24,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> dict[str, Score]:
    """The behaviour measures of whatever state the model is in: completion, preference, and with a referee sampled."""
    measured = Likelihoods.of(as_corpus(corpus, "corpus"), models.tokenizer_of(model), "heldout").measure(model)
    out = {metric: Score.of(values) for metric, values in measured.items()}
    if referee is not None:
        drawn = sample(model, corpus, n=samples, new_tokens=new_tokens, temperature=temperature, seed=seed)
        judged = referee.judge(drawn, corpus.rows[: len(drawn)])
        out["sampled"] = Score.of(torch.tensor([float(found) for _, found, _ in judged]))
    return out


def attack(
    model: Any,
    delta: Delta,
    name: str | Attack = "relearn",
    *,
    heldout: Corpus,
    attack_train: Corpus | None = None,
    unrelated: Corpus | None = None,
    retain: Corpus | None = None,
    never: Any | None = None,
    ood: Corpus | None = None,
    seed: int = 0,
    onlooker: Onlooker | None = None,
    **options: Any,
) -> Curves:
    """One attack on the edited model beside its controls: one curve per setting. The model is left as it was.

    Args:
        name: one of ``hooklearn list attacks`` (with ``options``), or an :class:`~hooklearn.attack.Attack`.
        onlooker: called as ``onlooker(attack, setting, arm, step, model)`` at every look of an attack by training;
            :func:`hooklearn.follow` makes one for the explorer.
        options: of the attack.
    Raises:
        InputError: unknown attack or option; something is no corpus, or a corpus is missing that the attack needs.
    """
    roles = {"heldout": heldout, "attack_train": attack_train, "unrelated": unrelated, "retain": retain, "ood": ood}
    for role, corpus in roles.items():
        if corpus is not None or role == "heldout":
            as_corpus(corpus, role)
    _warn_of_short_weights(model)
    tokenizer = models.tokenizer_of(model)
    arms = [ArmState("edited", model, delta), ArmState("original", model)]
    if never is not None:
        arms.append(ArmState("never", never))
    watcher = Watcher(
        heldout=Likelihoods.of(heldout, tokenizer, "heldout"),
        ood=Likelihoods.of(ood, tokenizer, "ood") if ood is not None else None,
        n_samples=0,
    )
    arena = Arena(
        arms=arms, watcher=watcher, attack_train=attack_train, unrelated=unrelated, retain=retain, seed=seed,
        onlooker=onlooker,
    )  # fmt: skip
    chosen = name if isinstance(name, Attack) else attack_of(name, options)
    if chosen is name and options:
        raise InputError(f"attack {chosen.name!r} is given as it is, so {', '.join(options)} would change nothing")
    given = {"heldout": heldout, "attack_train": attack_train, "unrelated": unrelated, "retain": retain}
    if given.get(chosen.needs) is not None:
        chosen.check(model, {role: corpus for role, corpus in given.items() if corpus is not None})
    return Curves(chosen.curves(arena))


def _warn_of_short_weights(model: Any) -> None:
    short = {p.dtype for p in models.all_parameters(model)} - {torch.float32, torch.float64}
    if short:
        warnings.warn(
            f"the weights are held in {', '.join(str(t).removeprefix('torch.') for t in short)}, which rounds most "
            "small steps away: attacks by training are weaker than they should be; load the model in float32 (its "
            "products can be made in bfloat16 all the same)",
            stacklevel=3,
        )


def run(
    config: Mapping[str, Any] | RunConfig | str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    resume: bool = False,
    progress: Any = lambda _: None,
) -> Path:
    """A whole run from a config (mapping, :class:`RunConfig`, recipe name or YAML path) to a run folder.

    Then: ``analysis.judge(folder)`` and ``analysis.report(folder)``.
    """
    from hooklearn.experiment import run as run_config
    from hooklearn.recipes import resolve

    if isinstance(config, str):
        data, folder = resolve(config)
        base = base or folder
    elif isinstance(config, RunConfig):
        data = config.model_dump(mode="json")
    else:
        data = dict(config)
    return run_config(
        parse(data),
        Path(out),
        given=data,
        base=Path(base) if base else None,
        resume=resume,
        progress=progress,
    )


def audit(
    original: str | Path,
    edited: str | Path,
    corpora: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    *,
    never: str | Path | None = None,
    battery: str = "cheap",
    attacks: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **sections: Any,
) -> Path:
    """Attack two models that were made elsewhere, as they are, and write a run folder; then ``analysis.judge(out)``.

    Args:
        corpora: by role, each as in a config; ``forget`` and ``heldout`` at least.
        attacks: in place of those of the battery. Those whose corpus is not there are left out; ``progress`` is told.
        sections: further sections of the config, such as ``behaviour={"samples": 40}``.
    Raises:
        InputError: anything wrong with the input.
    """
    config, left_out = auditing.audit(
        str(original), str(edited), {role: dict(corpus) for role, corpus in corpora.items()},
        never=None if never is None else str(never), battery=battery,
        attacks=None if attacks is None else [dict(attack) for attack in attacks],
    )  # fmt: skip
    for attack in left_out:
        progress(f"left out: {attack}")
    both = {k: {**config[k], **v} if isinstance(v, Mapping) and k in config else v for k, v in sections.items()}
    return run({**config, **both}, out, progress=progress)
