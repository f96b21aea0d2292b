"""The corpora of a run: read as the config asks, with what the model knows, a held-out near set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooklearn import models
from hooklearn.config import CorpusConfig, RunConfig
from hooklearn.data import Corpus, load_corpus
from hooklearn.measure import Likelihoods
from hooklearn.panel import check_panel
from hooklearn.running.checks import check_measured
from hooklearn.types import InputError


def load_corpora(config: RunConfig, base: Path, model: Any, held: Mapping[str, Corpus]) -> dict[str, Corpus]:
    """By role, checked against each other.

    Args:
        held: those that are here already, by their paths in the config.
    Raises:
        InputError: one is missing or wrong, measured text would be trained on, or forget is retain.
    """
    known, template = _prefiltered(config, model), bool(models.tokenizer_of(model).chat_template)
    out = {}
    for role, spec in config.corpora.items():
        options = dict(spec.options)
        if config.prefilter is not None and spec.name == config.prefilter.corpus:
            options["subjects"] = known
        here = held.get(spec.path) if spec.path is not None else None
        out[role] = here if here is not None else _load_one(spec, base, options, template)
    if "capability" in out:
        check_panel(out["capability"])
    for role in out.keys() & {"heldout", "ood"}:
        out[role].check_alike(role)
    if "retain" in out:
        if out["retain"].hash == out["forget"].hash:
            raise InputError(
                f"corpora.forget and corpora.retain are the same {len(out['forget'])} rows ({out['forget'].source})"
            )
        if "near" not in out:  # a held-out part of retain, which every run reports
            parts = out["retain"].split(retain=3, near=1)
            out["retain"], out["near"] = parts["retain"], _apart(parts["near"], parts["retain"])
    check_measured(config, out)
    return out


def _apart(near: Corpus, retain: Corpus) -> Corpus:
    """A row that is there twice, in two groups, cannot be both trained on and measured."""
    if retain.shared_with(near) == len(near):
        raise InputError(
            "corpora.retain: every row of the quarter that is held out of it is in the rest as well; "
            "give each row once, or corpora.near"
        )
    return near.without(retain)


def _load_one(spec: CorpusConfig, base: Path, options: Mapping[str, Any], template: bool = True) -> Corpus:
    return load_corpus(
        name=spec.name, path=spec.path, hub=spec.hub, columns=spec.columns, layout=spec.layout,
        split=spec.split, config=spec.config, revision=spec.revision, limit=spec.limit, base=base, options=options,
        template=template,
    )  # fmt: skip


def _prefiltered(config: RunConfig, model: Any) -> list[str] | None:
    """Groups that the model gets right under every phrasing, so that there is something to forget."""
    if config.prefilter is None:
        return None
    corpus = load_corpus(
        name=config.prefilter.corpus,
        options={"part": "all", "phrasings": config.prefilter.phrasings},
    )
    items = Likelihoods.of(corpus, models.tokenizer_of(model), "prefilter")
    precision: Any = config.model.precision
    right = items.measure(model, precision=precision)["preference"].tolist()
    wrong = {g for g, r in zip(corpus.groups, right, strict=True) if r != 1}  # a tie is not known either
    known = sorted(set(corpus.groups) - wrong)
    if len(known) < 16:
        raise InputError(
            f"prefilter: the model knows only {len(known)} of {len(set(corpus.groups))} facts of "
            f"{config.prefilter.corpus!r}; at least 16 are needed"
        )
    return known
