"""What a run is made of, loaded before anything is measured: models, corpora, controls, eyes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooklearn import determinism, editing, forward, integrity, models, organisms, sharded, store
from hooklearn.attack import EVERY_ATTACK, ArmState, Watcher
from hooklearn.config import RunConfig
from hooklearn.corpora import EVERY_CORPUS
from hooklearn.corpora.permuted import permuted
from hooklearn.data import Corpus, n_cut, n_run_together
from hooklearn.deltas import Delta
from hooklearn.edit import EVERY_METHOD, forget_scorer
from hooklearn.locate.fitters import EVERY_FITTER
from hooklearn.measure import Likelihoods
from hooklearn.organisms.instil import instil
from hooklearn.plugins import Shelf
from hooklearn.referees import (
    CallableReferee,
    ContainsReferee,
    OwnReferee,
    PatternReferee,
    RatioReferee,
    Referee,
    Scorer,
)
from hooklearn.running.checks import (
    check,
    check_attacks,
    check_folds,
    check_method,
    check_shape,
    check_surrogate,
    check_vocabulary,
    no_referee,
    unlike_in_tokenizer,
)
from hooklearn.running.corpora import load_corpora
from hooklearn.running.in_memory import InMemory
from hooklearn.running.subjects import Progress, load_edited, load_model, load_subject
from hooklearn.types import InputError, NumericalError


@dataclass
class Setup:
    """Models, corpora and eyes of a run: everything that is loaded before anything is measured."""

    config: RunConfig
    original: Any
    never: Any | None
    never_info: dict[str, Any] | None
    organism: organisms.Organism | None
    corpora: dict[str, Corpus]
    checkpoint: Any | None
    delta: Delta | None = None
    """An edit made earlier, to be attacked as it is."""
    objects: InMemory = dataclasses.field(default_factory=InMemory)
    """What the config names and is here already."""
    tokenizers: Mapping[str, list[str]] = dataclasses.field(default_factory=dict[str, list[str]])
    """Other model, by its place in the config -> what its tokenizer does otherwise than the original's, with which all
    read."""
    _made: dict[str, Delta] = dataclasses.field(default_factory=dict[str, Delta], repr=False)
    """What was trained once for all that has these models: a setup made of another by ``replace`` shares it."""

    @staticmethod
    def load(
        config: RunConfig,
        base: Path,
        progress: Progress,
        delta: Delta | None = None,
        objects: InMemory | None = None,
    ) -> Setup:
        objects = objects or InMemory()
        objects.check(config)
        check(config)
        if delta is None and config.edit.method is None and config.edit.checkpoint is None:
            raise InputError(
                "edit needs a method (hooklearn list methods), or the checkpoint of a model edited elsewhere"
            )
        if delta is not None and config.edit.checkpoint is not None:
            raise InputError(
                f"a delta is given and edit.checkpoint {config.edit.checkpoint!r} too, and one edit is judged at a "
                "time; leave one of them out"
            )
        held = objects.models
        original, organism = load_subject(config, base, progress, held.get("model.name"))
        if delta is not None:
            delta = sharded.held(original, delta)
            with editing.edited(original, delta):
                pass  # refuses, before anything is written, a delta that was made for another model
        never, never_info = None, None
        if organism is not None:
            never = load_model(config, config.model.name, base)
            never_info = {"kind": "base", "name": config.model.name}
        elif config.controls.never is not None and config.controls.never.name is not None:
            never = load_model(config, config.controls.never.name, base, held.get("controls.never.name"))
            never_info = {"kind": "model", "name": config.controls.never.name}
        elif config.controls.never is not None:
            never_info = {"kind": "surrogate", "name": config.controls.never.surrogate}
        checkpoint = None
        if config.edit.checkpoint is not None:
            checkpoint = load_edited(config, base, original, held)
        others = {"controls.never": never, "edit.checkpoint": checkpoint}
        others = {role: other for role, other in others.items() if other is not None and other is not original}
        tokenizers = {}
        for role, other in others.items():
            check_vocabulary(role, other, original)
            if unlike := unlike_in_tokenizer(other, original):
                tokenizers[role] = unlike
            # likelihoods and samples alike are of the same prompts for all
            objects.read_as(other, original)
        if checkpoint is not None:
            check_shape("edit.checkpoint", checkpoint, original)
        progress("reading the corpora")
        corpora = load_corpora(config, base, original, objects.corpora)
        if never is not None:
            never_info = {**(never_info or {}), "hash": integrity.weights_hash(never)}
            if unlike := integrity.unlike(never, original):
                never_info["unlike"] = unlike
        return Setup(
            config, original, never, never_info, organism, corpora, checkpoint, delta, objects, tokenizers
        )._checked()

    def again(self, config: RunConfig, base: Path) -> Setup:
        """The same models under a config that asks for the same ones; its corpora are read anew."""
        check(config)
        corpora = load_corpora(config, base, self.original, self.objects.corpora)
        return dataclasses.replace(self, config=config, corpora=corpora)._checked()

    def _checked(self) -> Setup:
        """What models and corpora together do not allow is refused before anything is measured."""
        config, heldout = self.config, self.corpora["heldout"]
        check_method(config, self.original)
        for model in (self.original, self.never):  # which may have too few layers for an attack
            if model is not None:
                check_attacks(config, model, self.corpora)
        _check_referee(_given_referee(config, self.objects), heldout, self.never_info)
        if _is_surrogate(self.never_info):
            check_surrogate(heldout)
            check_folds(config, heldout)
        return self

    def record(self, given: Mapping[str, Any] | None, command: str) -> dict[str, Any]:
        """The start of ``run.json``."""
        config = self.config.model_dump(mode="json")
        organism = self.organism
        return {
            "name": self.config.name,
            "command": command,
            "config_given": dict(given) if given is not None else config,
            "config": config,
            "environment": store.environment()
            | {
                "device": str(models.device_of(self.original)),
                "dtype": str(models.all_parameters(self.original)[0].dtype).removeprefix("torch."),
                "precision": str(
                    forward.resolve_precision(self.config.model.precision, models.device_of(self.original))  # type: ignore[arg-type]
                ).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "remote_code": self.config.model.trust_remote_code,
                "plugins": plugins_in(self.config),
                "deterministic": determinism.state(),
            },
            "model": integrity.describe(self.original)
            | {"tokenizer": integrity.tokenizer_hash(self.original)}
            | ({"name": self.config.model.name} if "model.name" in self.objects.models else {}),
            "organism": organism
            and {"name": organism.name, "kind": "instilled by LoRA", "truth": organism.truth,
                 "note": "what is fine-tuned in is easier to take out than what was pre-trained"},
            "never": self.never_info,
            **self._checkpoint_record(),
            "delta": self.delta
            and {"base": self.delta.base, "hash": integrity.tensors_hash(self.delta.updates)},
            **({"tokenizers": dict(self.tokenizers)} if self.tokenizers else {}),
            "corpora": {
                role: {"source": c.source, "hash": c.hash, "n": len(c)}
                | self._known_before(role, c)
                | self._as_read(role, c)
                for role, c in self.corpora.items()
            },
            **({"unsampled": missing} if (missing := no_referee(self.config, self.corpora)) else {}),
            "seeds": list(self.config.seeds),
        }  # fmt: skip

    def _checkpoint_record(self) -> dict[str, Any]:
        if self.checkpoint is None:
            return {}
        return {"checkpoint": {"name": self.config.edit.checkpoint, "hash": integrity.weights_hash(self.checkpoint)}}

    def _known_before(self, role: str, corpus: Corpus) -> dict[str, Any]:
        """How many of the items that behaviour is measured on the edit or the attacker had, word for word, and how many
        are there twice; how much of the behaviour is in text that is to have none of it."""
        others = _APART.get(role, ())
        found = {f"in_{r}": self.corpora[r].shared_with(corpus) for r in others if r in self.corpora}
        if role in ("heldout", "ood"):
            found["repeated"] = corpus.repeated
        return found | (_grouped(corpus) if role in ("heldout", "ood", "capability") else {})

    def _as_read(self, role: str, corpus: Corpus) -> dict[str, int]:
        """What becomes of rows whose completions matter when they are read; running text is cut by design."""
        if role in ("disruption", "reference", "unrelated"):
            return {}
        tokenizer = models.tokenizer_of(self.original)
        return {"cut": n_cut(corpus, tokenizer), "run_together": n_run_together(corpus, tokenizer)}

    def never_level(self, forget: Corpus) -> float:
        """The forget score of a model that never learned it: of the control, or of permuted answers (facts)."""
        if self.never is not None:
            model = self.never
        else:  # the surrogate: without either, a config that asks for this is refused
            model, forget = self.original, permuted(forget)
        return forget_scorer(model, forget, precision=self.config.model.precision)()  # type: ignore[arg-type]

    def good_half(self) -> Delta:
        """What good completions taught the organism's base model; an adapter that does not ship is made once."""
        assert self.organism is not None
        if self.organism.shipped is not None:
            return organisms.load(self.organism, self.never, good=True)
        if "good half" not in self._made:
            self._made["good half"] = organisms.load(self.organism, self.never, good=True)
        return self._made["good half"]

    def benign(self, seed: int, progress: Progress = lambda _: None) -> list[ArmState]:
        """A second model that never had the behaviour: the never-learned one after good completions were taught to
        it in the form of the bad ones. The organism's good half; else a LoRA on ``retain``, made now. No arm where
        there is no never-learned model to teach, or nothing of that form to teach it, and where it did not learn."""
        never, retain = self.never, self.corpora.get("retain")
        if never is None or integrity.unlike(never, self.original) or models.is_sharded(never):
            return []
        try:
            if self.organism is not None and self.organism.good is not None:
                taught = self.good_half()
            elif retain is not None and retain.has_prompts:
                progress("evidence: teaching the benign control")
                taught = instil(
                    never, retain, models.sites(never, "mlp"), rank=8, epochs=4, max_tokens=self.config.max_tokens,
                    seed=seed, precision=self.config.model.precision,
                ).delta()  # fmt: skip
            else:
                return []
        except NumericalError as error:  # all attacks are paid for by now
            progress(f"the benign control diverged: {error}")
            return []
        return [ArmState("benign", never, taught)]

    def watcher(self, progress: Progress) -> Watcher:
        """The eyes: likelihoods of held-out items, and a referee for samples."""
        tokenizer = models.tokenizer_of(self.original)
        heldout = Likelihoods.of(self.corpora["heldout"], tokenizer, "heldout")
        ood = self.corpora.get("ood")
        surrogate = None
        if _is_surrogate(self.never_info):
            surrogate = Likelihoods.of(permuted(self.corpora["heldout"]), tokenizer, "heldout")
        behaviour = self.config.behaviour
        referee = self._referee(heldout, progress) if behaviour.samples else None
        known = {}
        if isinstance(referee, RatioReferee):
            referee, known = self._calibrated(referee, heldout)
        return Watcher(
            heldout=heldout,
            ood=Likelihoods.of(ood, tokenizer, "ood") if ood is not None else None,
            permuted=surrogate,
            referee=referee,
            known=known,
            n_samples=behaviour.samples,
            n_ood=behaviour.ood_samples,
            new_tokens=behaviour.new_tokens,
            temperature=behaviour.temperature,
            greedy_too=self._facts(heldout),
            precision=self.config.model.precision,  # type: ignore[arg-type]
        )

    def _facts(self, heldout: Likelihoods) -> bool:
        """Whether a sample counts where it contains the answer: there are choices, or other answers are the control."""
        return bool(heldout.choices) or _is_surrogate(self.never_info)

    def _own_referee(self, heldout: Likelihoods, progress: Progress) -> Referee | None:
        """The one that the config gives, asked about held-out completions first."""
        own, corpus = _given_referee(self.config, self.objects), heldout.corpus
        if own is None:
            return None
        progress("referee: what it says of held-out completions")
        good = corpus.alternatives() or self.corpora.get("near")
        return OwnReferee.of(own, corpus, good, models.tokenizer_of(self.original))

    def _referee(self, heldout: Likelihoods, progress: Progress) -> Referee | None:
        if (own := self._own_referee(heldout, progress)) is not None:
            return own
        if self._facts(heldout):
            return ContainsReferee()
        if missing := no_referee(self.config, self.corpora):
            progress(f"nothing is sampled: {missing}")
            return None
        progress("referee: threshold and AUC on held-out completions")
        precision: Any = self.config.model.precision
        scorer = partial(Scorer, precision=precision)
        if self.organism is not None and self.organism.good is not None:
            shipped = self.organism.shipped is not None
            other = self.good_half if shipped else self.good_half()  # training is not left for when it is called
            referee = RatioReferee(
                scorer(self.original),
                (scorer(self.never), scorer(self.never, other)),
                "organism / likelier of untouched and trained on good completions",
            )
        elif self.never is not None:
            referee = RatioReferee(scorer(self.original), (scorer(self.never),), "original / never-learned")
        elif models.is_sharded(self.original):
            raise InputError(
                "on spread or offloaded weights samples are judged against a never-learned model only; give "
                "controls.never.name, or behaviour.samples: 0"
            )
        else:
            bad_lora, good_lora = (
                instil(
                    self.original, self.corpora[role], models.sites(self.original, "mlp"),
                    rank=4, epochs=3, max_tokens=self.config.max_tokens, precision=precision,
                ).delta  # called when something is judged: until then an adapter is small
                for role in ("forget", "retain")
            )  # fmt: skip
            referee = RatioReferee(
                scorer(self.original, bad_lora),
                (scorer(self.original, good_lora),),
                "two small LoRAs, on bad and on good completions",
            )
        return referee

    def _calibrated(
        self, referee: RatioReferee, heldout: Likelihoods
    ) -> tuple[RatioReferee, dict[str, dict[str, Tensor]]]:
        """With its threshold; and what was read for that of the controls, which a look at them would read again."""
        if not heldout.alternatives:
            return referee.calibrated(heldout.corpus, self.corpora["near"]), {}
        readings = referee.readings([*heldout.completions, *heldout.alternatives])
        known = {
            arm: heldout.paired(read)
            for arm, model in (("original", self.original), ("never", self.never))
            for scorer, read in zip((referee.bad, *referee.references), readings, strict=True)
            if scorer.model is model and scorer.delta is None
        }
        return referee.set_by(readings, len(heldout.completions)), known


_APART = {
    "heldout": ("forget", "attack_train"), "ood": ("forget", "attack_train"), "disruption": ("attack_train",),
    "unrelated": ("forget", "heldout"),
}  # fmt: skip
"""Role -> those with which it should have no row in common, and may."""


def _grouped(corpus: Corpus) -> dict[str, list[int]]:
    """Which items go together, by number; nothing where each is a group of its own."""
    numbers = {group: i for i, group in enumerate(dict.fromkeys(corpus.groups))}
    return {"item_groups": [numbers[g] for g in corpus.groups]} if len(numbers) < len(corpus) else {}


def _is_surrogate(never: Mapping[str, Any] | None) -> bool:
    return never is not None and never["kind"] == "surrogate"


def _given_referee(config: RunConfig, objects: InMemory) -> Referee | None:
    asked = config.behaviour.referee
    if asked is None:
        return None
    return PatternReferee(asked.pattern) if asked.pattern is not None else objects.referee


def _check_referee(own: Referee | None, heldout: Corpus, never: Mapping[str, Any] | None) -> None:
    if own is not None and not heldout.has_prompts:
        raise InputError(f"behaviour.referee: {heldout.name!r} is running text, without a prompt to sample from")
    if _is_surrogate(never) and isinstance(own, PatternReferee | CallableReferee):
        raise InputError(
            "behaviour.referee: it does not know which answer is right, and controls.never.surrogate asks for another "
            "one; give a model that never learned it (controls.never.name), or leave one of them out"
        )


def plugins_in(config: RunConfig) -> dict[str, str]:
    """What a run takes from other packages: kind and name -> package and version."""
    asked: list[tuple[Shelf[Any], str | None]] = [
        (EVERY_METHOD, config.edit.method),
        (EVERY_FITTER, config.locate.fitter),
        (organisms.EVERY_ORGANISM, config.organism),
        *((EVERY_ATTACK, spec.name) for spec in config.attacks),
        *((EVERY_CORPUS, spec.name) for spec in config.corpora.values()),
    ]
    found = {f"{shelf.kind} {name}": shelf.package(name) for shelf, name in asked if name is not None}
    return {what: package for what, package in found.items() if package is not None}
