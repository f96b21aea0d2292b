"""What cannot work is refused before anything is measured: names and options, corpora in two roles, other tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hooklearn import evidence, integrity, models
from hooklearn.attack import ATTACKS, EVERY_ATTACK, Watcher, attack_of
from hooklearn.attack.relearn import LowMutualInformation
from hooklearn.attack.sample_many import SAMPLES_AND_REFEREE
from hooklearn.config import RunConfig
from hooklearn.data import Corpus
from hooklearn.edit import check_separate, check_sharded, method_of
from hooklearn.locate.fitters import EVERY_FITTER
from hooklearn.types import InputError


def check(config: RunConfig) -> None:
    """Names and options of attacks, method, fitter and evidence: a typo should not cost an edit.

    Raises:
        InputError: one of them is unknown, or an attack lacks its corpus.
    """
    made: set[tuple[str, str]] = set()
    for spec in config.attacks:
        attack = attack_of(spec.name, spec.options)
        if attack.role not in config.corpora:
            raise InputError(f"attack {spec.name!r} needs corpora.{attack.role}, which is not given")
        if attack.sampled_only and not config.behaviour.samples:
            raise InputError(f"attack {spec.name!r} needs samples: set behaviour.samples above 0")
        for setting in attack.reachable():
            if (spec.name, setting) in made:
                raise InputError(
                    f"attack {spec.name!r} is asked for twice with {setting or 'the same setting'}: their curves could "
                    "not be told apart; leave one out"
                )
            made.add((spec.name, setting))
    if config.edit.method is not None:
        method_of(config.edit.method, config.edit.options)
    if config.budget.near_ce is not None and not {"near", "retain"} & config.corpora.keys():
        raise InputError(
            f"budget.near_ce {config.budget.near_ce:g} needs good neighbours to be measured on; give corpora.near, "
            "or corpora.retain, of which a quarter is then held out"
        )
    if config.organism is not None and config.controls.never is not None:
        raise InputError(
            f"organism {config.organism!r}: the model that it was made of never learned it and is the control; leave "
            "controls.never out"
        )
    if config.budget.forget == "never" and config.organism is None and config.controls.never is None:
        raise InputError(
            "budget.forget 'never' is the level of the never-learned control, and there is none; give "
            "controls.never, an organism, or a number"
        )
    if config.controls.matched and (config.edit.checkpoint is not None or not _has_never(config)):
        raise InputError(
            "controls.matched scales an edit back to the level of a model that never learned it; it needs that model "
            "(controls.never.name, or an organism), and an edit that is no checkpoint"
        )
    _check_of_use(config)
    if config.locate.enabled:
        EVERY_FITTER.get(config.locate.fitter)
    evidence.check_names(config.evidence.measures)
    if len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"seeds {config.seeds}: the same one twice")
    if config.model.spread:
        _check_sharded(config)


def _check_of_use(config: RunConfig) -> None:
    """What is asked for and would change nothing, as what it works on is not there."""
    if config.locate.enabled and config.locate.tokens and "retain" not in config.corpora:
        raise InputError(
            f"locate.tokens {config.locate.tokens}: tokens are shown along what tells forget from retain, and there is "
            "no corpora.retain; give it, or locate.tokens: 0"
        )
    names = sorted({spec.name for spec in config.corpora.values() if spec.name is not None})
    if config.prefilter is not None and config.prefilter.corpus not in names:
        raise InputError(
            f"prefilter.corpus {config.prefilter.corpus!r} is none of the corpora of this run, and would filter "
            f"nothing; valid: {', '.join([*names, 'null'])}"
        )


def check_needs(config: RunConfig) -> None:
    """The method has its corpora, its never-learned model, and samples are judged where it asks their referee.

    By itself, because the method of a config is not always run: an edit may be given, and the cells of a sweep have
    their own.

    Raises:
        InputError: one of them is not there.
    """
    if config.edit.method is None:
        return
    method = method_of(config.edit.method, config.edit.options)
    if method.needs_never and not _has_never(config):
        why = "a surrogate has no weights" if config.controls.never is not None else "none is given"
        raise InputError(
            f"method {config.edit.method!r} needs the weights of a model that never learned it, and {why}; give "
            "controls.never.name, or an organism"
        )
    if method.refereed and not config.behaviour.samples:
        raise InputError(
            f"method {method.name!r} with these options asks the referee of samples, and behaviour.samples is 0; set "
            "it above 0"
        )
    for needed in method.needs:
        roles = needed.split(" or ")
        if not config.corpora.keys() & set(roles):
            asked = " or ".join(f"corpora.{role}" for role in roles)
            raise InputError(f"method {config.edit.method!r} needs {asked}, which is not given")


def _has_never(config: RunConfig) -> bool:
    """Whether there will be a never-learned model with weights of its own."""
    never = config.controls.never
    return config.organism is not None or (never is not None and never.name is not None)


def check_method(config: RunConfig, model: Any) -> None:
    """A method that cannot work on this model as asked is refused before anything is measured."""
    if config.edit.method is not None:
        method_of(config.edit.method, config.edit.options).check(model)


def check_attacks(config: RunConfig, model: Any, corpora: Mapping[str, Corpus]) -> None:
    """Attacks that cannot be made on this model, or with these corpora, are refused before anything is measured."""
    for spec in config.attacks:
        attack_of(spec.name, spec.options).check(model, corpora)


def check_folds(config: RunConfig, heldout: Corpus) -> None:
    """Raises InputError where answers cannot be permuted within the folds of an attack."""
    for attack in (attack_of(spec.name, spec.options) for spec in config.attacks):
        if isinstance(attack, LowMutualInformation):
            for seed in config.seeds:
                attack.check_surrogate(heldout, seed)


def check_watched(config: RunConfig, watcher: Watcher) -> None:
    """Attacks of which nothing but samples is seen are refused where nobody can say of a sample what it is."""
    for spec in config.attacks:
        if attack_of(spec.name, spec.options).sampled_only and watcher.referee is None:
            raise InputError(f"attack {spec.name!r} needs {SAMPLES_AND_REFEREE}")


def no_referee(config: RunConfig, corpora: Mapping[str, Corpus]) -> str:
    """Why nobody could say of a sample what it is, and what would do; empty where somebody can, or none are asked for.

    Nothing is drawn then. Where ``retain`` is given, a part of it is ``near``.
    """
    heldout, never = corpora["heldout"], config.controls.never
    facts = all("choices" in row for row in heldout.rows) or (never is not None and never.surrogate is not None)
    if not config.behaviour.samples or config.behaviour.referee is not None or facts:
        return ""
    if not heldout.has_prompts:
        return "heldout is running text, without a prompt to sample from; give rows with prompt and completion"
    own = "a behaviour.referee (pattern: ...)"
    if heldout.alternatives() is None and not {"near", "retain"} & corpora.keys():
        return (
            "good completions are missing, with which a referee is compared; give every held-out row an 'alternative', "
            f"or near or retain, or {own}"
        )
    # spread weights are refused where this is missing
    if config.organism is None and never is None and "retain" not in corpora and not config.model.spread:
        return f"a model to compare with is missing; give one that never learned it, or retain, or {own}"
    return ""


def check_once(values: Sequence[Any], what: str) -> None:
    """Raises InputError where one is there twice."""
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{what} {value}: the same one twice")


def check_surrogate(heldout: Corpus) -> None:
    if not heldout.has_prompts:
        raise InputError(
            f"controls.never.surrogate: {heldout.name!r} is running text, and only answers can be permuted; give rows "
            "with prompt and completion, or a model that never learned it (controls.never.name)"
        )
    if heldout.alternatives() is not None and not all("choices" in row for row in heldout.rows):
        raise InputError(
            f"controls.never.surrogate: answers of {heldout.name!r} can be permuted among facts, and these rows have "
            "an alternative but no choices; give choices, or a model that never learned it (controls.never.name)"
        )


def _check_sharded(config: RunConfig) -> None:
    """What has not been built for weights that nobody has whole is refused before they are read."""
    if config.edit.method is not None:
        check_sharded(method_of(config.edit.method, config.edit.options), True)
    for spec in config.attacks:
        if not EVERY_ATTACK.get(spec.name).sharded:
            valid = ", ".join(name for name, attack in ATTACKS.items() if attack.sharded)
            raise InputError(
                f"attack {spec.name!r} does not work on spread weights (model.shard, model.offload); valid: {valid}"
            )
    off = {
        "evidence.enabled": config.evidence.enabled,
        "locate.tokens": config.locate.tokens,
        "organism": config.organism,
    }
    for key, value in off.items():
        if value:
            raise InputError(
                f"{key} is {value!r}, and does not work on spread weights (model.shard, model.offload); leave it out"
            )


def check_measured(config: RunConfig, corpora: Mapping[str, Corpus]) -> None:
    """Raises InputError where an edit would be given text that measures its disruption, or where the behaviour itself
    is in that text, as no edit of one's own made it. Of a model edited elsewhere only ``forget`` is known."""
    measured = {n: corpora[r] for n, r in (("far", "disruption"), ("near", "near")) if r in corpora}
    check_separate(corpora if config.edit.method is not None else {"forget": corpora["forget"]}, measured)
    for name, corpus in measured.items():
        if shared := corpora["heldout"].shared_with(corpus):
            raise InputError(
                f"{shared} rows of the {name} disruption corpus {corpus.name!r} are also in heldout "
                f"({corpora['heldout'].name!r}): that the behaviour is gone would count as damage; give text without it"
            )


def check_vocabulary(role: str, other: Any, model: Any) -> None:
    """Raises InputError where another model does not read and write the tokens of the original."""
    own, theirs = (models.tokenizer_of(m).get_vocab() for m in (model, other))
    name = f"{role} {other.cfg.model_name!r}"
    if unlike := sorted(t for t in own.keys() | theirs.keys() if own.get(t) != theirs.get(t)):
        one = unlike[0]
        raise InputError(
            f"{name} tokenises otherwise than the model: {len(unlike)} tokens differ, such as {one!r} (number "
            f"{theirs.get(one)} there, {own.get(one)} in the model); give a model with the same tokenizer"
        )
    if other.cfg.d_vocab != model.cfg.d_vocab:
        raise InputError(
            f"{name} has the same tokenizer as the model, but an embedding padded to {other.cfg.d_vocab} rows, where "
            f"the model's has {model.cfg.d_vocab}; resize_token_embeddings({model.cfg.d_vocab}) and save it again"
        )


def check_shape(role: str, other: Any, model: Any) -> None:
    """Raises InputError where another model is no edit of the original."""
    if unlike := integrity.unlike(other, model):
        raise InputError(
            f"{role} {other.cfg.model_name!r} is of another shape than the model that it should be an edit of: "
            f"{unlike}; give the model that was edited as the original"
        )


def unlike_in_tokenizer(other: Any, model: Any) -> list[str]:
    """What the tokenizers of two models with the same tokens do differently."""
    own, theirs = (models.tokenizer_of(m) for m in (model, other))
    found = {
        "chat template": theirs.chat_template != own.chat_template,
        "beginning of a text": theirs("a")["input_ids"] != own("a")["input_ids"],  # BOS, or none
    }
    return [what for what, differs in found.items() if differs]
