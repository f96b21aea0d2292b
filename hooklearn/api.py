"""The short Python verbs of a notebook: organism, capture, behaviour, attack, run, audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hooklearn import editing, integrity, models, organisms
from hooklearn.attack import Arena, ArmState, Attack, Onlooker, Watcher, attack_of
from hooklearn.config import RunConfig, parse
from hooklearn.corpora.corpus import as_corpus
from hooklearn.data import Corpus, batches, encode
from hooklearn.deltas import Delta, as_delta
from hooklearn.locate.capture import capture as capture_sites
from hooklearn.measure import TEMPERATURE, Likelihoods, check_sampling, sample
from hooklearn.organisms.kinds import kind_of
from hooklearn.referees import RatioReferee, Referee, Scorer, as_referee, rulings
from hooklearn.running import auditing
from hooklearn.running.checks import check_vocabulary
from hooklearn.running.in_memory import InMemory
from hooklearn.types import Curves, EditResult, InputError, Score, Tape
from hooklearn.validation import whole_number


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
    stream = batches(encode(as_corpus(corpus, "corpus"), models.tokenizer_of(model)))
    if gradients:
        models.check_differentiable()
    return capture_sites(model, stream, models.sites(model, sites, layers), gradients=gradients, precision="float32")


def behaviour(
    model: Any,
    corpus: Corpus,
    *,
    referee: Referee | Callable[[str, str], float | bool] | None = None,
    samples: int = 32,
    new_tokens: int = 24,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> dict[str, Score]:
    """The behaviour measures of whatever state the model is in: completion, preference, and with a referee sampled.

    Raises:
        InputError: as :func:`sample`, before anything is measured; a referee that rules otherwise than one should.
    """
    if referee is not None:
        as_referee(referee)
        whole_number(samples, "samples", least=1)
        check_sampling(new_tokens, temperature, seed)
    measured = Likelihoods.of(as_corpus(corpus, "corpus"), models.tokenizer_of(model), "heldout").measure(model)
    out = {metric: Score.of(values, corpus.groups) for metric, values in measured.items()}
    if referee is not None:
        drawn = sample(model, corpus, n=samples, new_tokens=new_tokens, temperature=temperature, seed=seed)
        judged = rulings(as_referee(referee), drawn, corpus.rows[: len(drawn)])
        shown = torch.tensor([float(ruling.is_behaviour) for ruling in judged])
        out["sampled"] = Score.of(shown, corpus.groups[: len(drawn)])
    return out


def attack(
    model: Any,
    delta: Delta | EditResult,
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
        InputError: unknown attack or option; something is no model, no edit or no corpus; somebody has hooked into a
            model; a corpus is missing that the attack needs.
    """
    roles = {"heldout": heldout, "attack_train": attack_train, "unrelated": unrelated, "retain": retain, "ood": ood}
    for role, corpus in roles.items():
        if corpus is not None or role == "heldout":
            as_corpus(corpus, role)
    given_models = {"model": model} if never is None else {"model": model, "never": never}
    for role, one in given_models.items():
        models.check_unhooked(models.checked(one, role), role)
    if never is not None:
        check_vocabulary("never", never, model)
    models.check_differentiable()
    integrity.warn_of_short_weights(model, "attacks by training are weaker than they should be")
    tokenizer = models.tokenizer_of(model)
    arms = [ArmState("edited", model, as_delta(delta)), ArmState("original", model)]
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
    if not isinstance(name, str | Attack):
        wanted = "give its name or an Attack" + ", and a class with parentheses" * isinstance(name, type)
        raise InputError(f"attack: {wanted}, not {name!r:.80}")
    chosen = name if isinstance(name, Attack) else attack_of(name, options)
    if chosen is name and options:
        raise InputError(f"attack {chosen.name!r} is given as it is, so {', '.join(options)} would change nothing")
    given = {"heldout": heldout, "attack_train": attack_train, "unrelated": unrelated, "retain": retain}
    if given.get(chosen.role) is not None:
        chosen.check(model, {role: corpus for role, corpus in given.items() if corpus is not None})
    with editing.in_eval(*given_models.values()):
        return Curves(chosen.curves(arena))


def run(
    config: Mapping[str, Any] | RunConfig | str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    resume: bool = False,
    delta: Delta | EditResult | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """A whole run from a config (mapping, :class:`RunConfig`, recipe name or YAML path) to a run folder.

    In a mapping, what is in memory stands where its name would: a model of :func:`load` or :func:`wrap` (``model``,
    ``controls.never``, ``edit.checkpoint``), a :class:`Corpus` or a list of rows, a :class:`Method`, an
    :class:`~hooklearn.attack.Attack`, and as ``behaviour.referee`` a :class:`Referee` or a function of prompt and
    completion. Models come out as they went in. The folder holds the rows; of the rest names, options and hashes.

    Then: ``analysis.judge(folder)`` and ``analysis.report(folder)``.

    Args:
        base: folder that relative paths start from.
        resume: go on with the run that is there, with the same config and the same objects.
        delta: attack this edit instead of making one.
    Raises:
        InputError: anything wrong with the input.
    """
    from hooklearn.recipes import resolve

    if isinstance(config, str | Path):
        data, folder = resolve(str(config))
        base = base or folder
    elif isinstance(config, RunConfig):
        data = config.model_dump(mode="json")
    elif isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        data = dict(config)
    else:
        raise InputError(
            "config must be a mapping, a RunConfig, a recipe's name or the path of a YAML file, got "
            f"{type(config).__name__} {config!r:.60}"
        )
    made = None if delta is None else as_delta(delta)
    with InMemory() as objects:
        return _run(data, objects, out, base=base, resume=resume, delta=made, progress=progress)


def _run(
    data: Mapping[str, Any], objects: InMemory, out: str | Path, *, base: str | Path | None = None, **how: Any
) -> Path:
    from hooklearn.experiment import run as run_config

    models.check_differentiable()
    data = objects.taken_out(data)
    return run_config(
        parse(data), Path(out), given=data, base=Path(base) if base else None, objects=objects, **how
    )  # fmt: skip


def audit(
    original: Any,
    edited: Any,
    corpora: Mapping[str, Any],
    out: str | Path,
    *,
    never: Any | None = None,
    battery: str = "cheap",
    attacks: str | Attack | Mapping[str, Any] | Sequence[str | Mapping[str, Any] | Attack] | None = None,
    resume: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    **sections: Any,
) -> Path:
    """Attack two models that were made elsewhere, as they are, and write a run folder; then ``analysis.judge(out)``.

    Args:
        original, edited: names, folders, or models of :func:`load` or :func:`wrap`, which come out as they went in.
        corpora: by role, each as in a config, or a :class:`Corpus`, or a list of rows; ``forget`` and ``heldout`` at
            least.
        never: a model that never had the behaviour, or ``permuted`` (facts).
        attacks: in place of those of the battery, one or several, each a name, a section or an object. Those whose
            corpus is not there are left out; ``progress`` is told.
        resume: go on with the audit that is there, of the same models and corpora.
        sections: further sections of the config, such as ``behaviour={"samples": 40}``.
    Raises:
        InputError: anything wrong with the input.
    """
    for role, one in {"original": original, "edited": edited}.items():
        if one is None:
            raise InputError(f"{role}: give a name, a folder or a model of hl.load or hl.wrap, got None")
    if not isinstance(corpora, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"corpora must be a mapping of role to corpus, got {type(corpora).__name__} {corpora!r:.60}")
    if isinstance(attacks, str | Attack | Mapping):
        attacks = [attacks]
    if "forget" not in corpora:
        raise InputError(f"corpora: give forget and heldout at least, got {', '.join(corpora) or 'none'}")
    with InMemory() as objects:
        config, left_out = auditing.audit(
            objects.model("model.name", original), objects.model("edit.checkpoint", edited),
            {role: objects.corpus(role, corpus) for role, corpus in corpora.items()},
            never=objects.model("controls.never.name", never), battery=battery,
            attacks=None if attacks is None else [_section(objects.attack(attack)) for attack in attacks],
        )  # fmt: skip
        for attack in left_out:
            progress(f"left out: {attack}")
        config["model"] = {"name": original}
        both = {k: {**config[k], **v} if isinstance(v, Mapping) and k in config else v for k, v in sections.items()}
        return _run({**config, **both}, objects, out, resume=resume, progress=progress)


def _section(attack: Any) -> dict[str, Any]:
    """An attack as its section in a config; a name is one."""
    return {"name": attack} if isinstance(attack, str) else dict(attack)
