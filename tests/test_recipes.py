"""The recipes: what is edited, attacked with, measured and spared are different items, whatever the corpus."""

from __future__ import annotations

import itertools

import pytest

from hooklearn.config import parse
from hooklearn.data import Corpus, load_corpus
from hooklearn.organisms import ORGANISMS
from hooklearn.recipes import RECIPES, recipe
from hooklearn.running.checks import check

WITH_A_MODEL = [name for name in RECIPES if name != "tiny"]


def loaded(name: str) -> dict[str, Corpus]:
    config = parse(recipe(name))
    return {role: load_corpus(**spec.model_dump()) for role, spec in config.corpora.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_measured_was_neither_edited_nor_attacked_with(name: str) -> None:
    """No item in two of the roles; of facts, T and V are both to go (and T is taught again), V is what is measured."""
    corpora = loaded(name)
    rows = {role: {(r["prompt"], r.get("group")) for r in corpora[role].rows} for role in corpora if "prompt" in
            corpora[role].rows[0]}  # fmt: skip
    apart = {"attack_train", "heldout", "ood", "near"} | (set() if "prefilter" in recipe(name) else {"forget"})
    for a, b in itertools.combinations(sorted(apart), 2):
        assert rows[a].isdisjoint(rows[b]), (a, b)
    assert rows["forget"].isdisjoint(rows["heldout"]), "at least in other words"
    if "prefilter" in recipe(name):
        groups = {role: set(corpora[role].groups) for role in ("attack_train", "heldout", "near", "forget")}
        assert groups["attack_train"].isdisjoint(groups["heldout"]) and groups["near"].isdisjoint(groups["forget"])
        assert groups["attack_train"] | groups["heldout"] == groups["forget"]


@pytest.mark.parametrize("name", RECIPES)
def test_methods_and_attacks_of_a_recipe_exist(name: str) -> None:
    check(parse(recipe(name)))


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_general_capability_is_asked_of_a_language_model_only(name: str) -> None:
    """The made-up world of the tiny model has no words for the panel; its recipe does without one."""
    assert len(loaded(name)["capability"]) == 100
    assert "capability" not in recipe("tiny")["corpora"]


@pytest.mark.parametrize("name", [n for n in WITH_A_MODEL if "organism" in RECIPES[n]()])
def test_an_organism_was_instilled_on_what_is_edited_and_on_nothing_that_is_measured(name: str) -> None:
    """Both halves of it on the same prompts, and the anchor is not the text that measures disruption."""
    corpora, organism = loaded(name), ORGANISMS[recipe(name)["organism"]]
    assert organism.good is not None and organism.anchor is not None
    bad, good = load_corpus(**organism.corpus), load_corpus(**organism.good)
    assert bad.groups == good.groups and bad.hash != good.hash
    assert set(corpora["forget"].groups) < set(bad.groups)
    for role in ("attack_train", "heldout", "ood", "near"):
        assert set(corpora[role].groups).isdisjoint(bad.groups), role
    anchor = {r["text"] for r in load_corpus(**organism.anchor).rows}
    assert anchor.isdisjoint(r["text"] for r in corpora["disruption"].rows)
