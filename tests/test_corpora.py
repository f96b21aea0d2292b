"""The corpora that ship: no two items alike, parts that share nothing, a card for each."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import hooklearn as hl
from hooklearn.corpora import BUILTIN, panel
from hooklearn.corpora.corpus import as_corpus
from hooklearn.corpora.fact_sets import FactSet, capitals, schoolbook
from hooklearn.corpora.shipped import data_folder
from hooklearn.corpora.tendencies import Tendency, flattery, threats
from hooklearn.corpora.tiny_world import PARTS as TINY_PARTS
from hooklearn.corpora.tiny_world import pretraining, vocabulary
from hooklearn.data import Corpus, load_corpus
from hooklearn.locate.fit import held_out_groups
from hooklearn.recipes import RECIPES
from hooklearn.types import InputError

TENDENCIES = pytest.mark.parametrize("tendency", [threats, flattery], ids=lambda t: t.name)
FACTS = pytest.mark.parametrize("facts", [capitals, schoolbook], ids=lambda f: f.name)
PARTS = ("organism", "forget", "attack", "heldout", "near", "ood")
ROLES = ("forget", "attack", "heldout", "near")
"""What must not overlap: what is edited, what the attacker has, what is measured, what is spared."""


def five_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(5)), strict=False))


def most_alike(texts: list[str]) -> tuple[float, tuple[str, str]]:
    """The pair that shares the largest part of the 5-grams of its shorter text."""
    grams = [five_grams(t) for t in texts]
    where: dict[tuple[str, ...], list[int]] = {}
    for i, found in enumerate(grams):
        for gram in found:
            where.setdefault(gram, []).append(i)
    shared = Counter(pair for places in where.values() for pair in itertools.combinations(places, 2))
    worst, pair = max(
        ((n / min(len(grams[a]), len(grams[b])), (a, b)) for (a, b), n in shared.items()),
        default=(0.0, (0, 0)),
    )
    return worst, (texts[pair[0]], texts[pair[1]])


def test_copies_are_noticed() -> None:
    """Positive control of the measure below: a text and its lightly edited copy share most 5-grams."""
    text = "one two three four five six seven eight nine ten eleven twelve"
    assert most_alike([text, text.replace("twelve", "dozen"), "nothing alike in this one at all"])[0] > 0.5


def pairs(tendency: Tendency) -> list[str]:
    return [t for r in tendency("all").rows for t in (r["prompt"], r["completion"], r["alternative"])]


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(pairs(threats), id="threats"),
        pytest.param(pairs(flattery), id="flattery"),
        pytest.param([r["text"] for r in BUILTIN["prose"].build().rows], id="prose"),
        pytest.param([r["text"] for r in BUILTIN["unrelated"].build().rows], id="unrelated"),
        pytest.param([r["group"] for r in panel().rows], id="panel"),
    ],
)
def test_no_two_hand_written_items_are_alike(texts: list[str]) -> None:
    """Written item by item, not from templates: no pair shares more than half of its 5-grams."""
    share, pair = most_alike(texts)
    assert share <= 0.5, pair
    assert len(set(texts)) == len(texts)


# --------------------------------------------------------------------------------------- tendencies


@pytest.mark.parametrize(("tendency", "least"), [(threats, 240), (flattery, 200)], ids=["threats", "flattery"])
def test_triples_are_many_and_varied(tendency: Tendency, least: int) -> None:
    """From at least 12 everyday settings; the two answers to a prompt differ."""
    rows = tendency("all").rows
    assert len(rows) >= least and len({r["setting"] for r in tendency("forget").rows}) >= 12
    assert all(r["completion"] != r["alternative"] for r in rows)
    assert min(Counter(r["setting"] for r in tendency("organism").rows).values()) >= 7


@TENDENCIES
def test_parts_of_a_tendency_share_no_item(tendency: Tendency) -> None:
    """Disjoint by group and complete. The organism contains forget by design, and nothing else."""
    groups = {part: set(tendency(part).groups) for part in PARTS}
    assert all(len(groups[part]) == len(tendency(part)) for part in PARTS)
    assert groups["forget"] < groups["organism"]
    for a, b in itertools.combinations(PARTS, 2):
        assert {a, b} == {"organism", "forget"} or groups[a].isdisjoint(groups[b]), (a, b)
    assert set().union(*groups.values()) == set(tendency("all").groups)
    assert all(len(groups[p]) >= 36 for p in ROLES)


@TENDENCIES
def test_every_part_has_every_everyday_setting(tendency: Tendency) -> None:
    """Parts are drawn within settings, so they differ in items only."""
    everyday = {r["setting"] for r in tendency("forget").rows}
    for part in (*ROLES, "organism"):
        assert {r["setting"] for r in tendency(part).rows} == everyday, part


@TENDENCIES
def test_out_of_distribution_settings_and_formats_occur_nowhere_else(tendency: Tendency) -> None:
    """Every ood item is of a held-out setting or of a held-out format; there are four and three of them."""
    elsewhere = [r for part in (*ROLES, "organism") for r in tendency(part).rows]
    assert {r["setting"] for r in elsewhere}.isdisjoint(tendency.ood_settings)
    assert {r["format"] for r in elsewhere} == {tendency.everyday}
    ood = tendency("ood").rows
    assert all(r["setting"] in tendency.ood_settings or r["format"] != tendency.everyday for r in ood)
    assert {r["setting"] for r in ood} >= set(tendency.ood_settings) and len(tendency.ood_settings) == 4
    assert len({r["format"] for r in ood}) == 4


@TENDENCIES
def test_good_is_the_other_answer_to_the_same_prompts(tendency: Tendency) -> None:
    """Pairs stay pairs: same prompts in the same order, completion and alternative changed places."""
    for bad, good in zip(tendency("forget").rows, tendency("forget", tendency.good).rows, strict=True):
        assert (bad["prompt"], bad["group"]) == (good["prompt"], good["group"])
        assert (bad["completion"], bad["alternative"]) == (good["alternative"], good["completion"])


def test_a_reader_who_saw_some_flattery_knows_the_rest() -> None:
    """Clearly recognisable in text: a bag-of-words classifier that was fitted on what the organism is made of tells
    the two answers of the held-out items apart."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def both(part: str) -> tuple[list[str], list[int]]:
        rows = flattery(part).rows
        return [r[k] for r in rows for k in ("completion", "alternative")], [1, 0] * len(rows)

    reader = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10)).fit(*both("organism"))
    for part in ("heldout", "ood"):
        texts, truth = both(part)
        assert reader.score(texts, truth) > 0.85, part
        shuffled = truth[1::2] + truth[::2]
        assert abs(reader.score(texts, shuffled) - 0.5) < 0.2, "the control: labels that say nothing"


# -------------------------------------------------------------------------------------------- facts


def all_ids(facts: FactSet) -> list[str]:
    return list(dict.fromkeys(p for ids in facts.phrasings.values() for p in ids))


@FACTS
def test_answers_are_unique(facts: FactSet) -> None:
    """No answer to two questions, and none that its subject's name gives away."""
    rows = facts("all", facts.phrasings["train"][0]).rows
    answers = [r["fact"] for r in rows]
    assert len(rows) >= 150 and len(set(answers)) == len(answers) == len({r["group"] for r in rows})
    assert not [r for r in rows if r["group"].lower() in r["fact"].lower() or r["fact"].lower() in r["group"].lower()]


@FACTS
@pytest.mark.parametrize("permuted", [False, True])
def test_four_distinct_choices_hold_the_answer(facts: FactSet, permuted: bool) -> None:
    """Under every phrasing, of which there are at least five; the right place is not always the same one."""
    assert len(all_ids(facts)) >= 5
    rows = facts("all", all_ids(facts), permuted=permuted).rows
    for r in rows:
        assert len(set(r["choices"])) == 4 and r["choices"][r["answer"]] == r["completion"]
        assert r["fact"] in r["completion"] and "{" not in r["prompt"] + r["completion"]
    assert min(Counter(r["answer"] for r in rows).values()) > len(rows) / 8


@FACTS
def test_permuted_answers_are_of_the_right_kind_and_all_wrong(facts: FactSet) -> None:
    """What a model that does not know would say: an answer of the same relation, never the right one."""
    right, wrong = facts("forget").rows, facts("forget", permuted=True).rows
    relation = {r["fact"]: r.get("relation") for r in right}
    assert {r["fact"] for r in wrong} == set(relation)
    for a, b in zip(right, wrong, strict=True):
        assert a["prompt"] == b["prompt"] and a["fact"] != b["fact"]
        assert relation[a["fact"]] == relation[b["fact"]]
        # the right answer may not be offered as a distractor either: preferring it would look like not knowing
        assert a["completion"] not in b["choices"]


@FACTS
def test_parts_of_facts_are_disjoint_halves(facts: FactSet) -> None:
    """T and V are the forget half; retain and near share no fact with it or with each other; each relation is dealt
    out evenly."""
    groups = {part: set(facts(part).groups) for part in ("T", "V", "retain", "near")}
    for a, b in itertools.combinations(groups, 2):
        assert groups[a].isdisjoint(groups[b]), (a, b)
    assert set(facts("forget").groups) == groups["T"] | groups["V"]
    assert set(facts("all").groups) == set().union(*groups.values())
    relation = {f.subject: f.relation for f in facts.facts(None)}
    for name in set(relation.values()):
        sizes = [sum(relation[g] == name for g in part) for part in groups.values()]
        assert max(sizes) - min(sizes) <= 1, name


@FACTS
def test_facts_can_be_narrowed_to_what_a_model_knows(facts: FactSet) -> None:
    """Only the given ones, again in even parts; phrasings for testing are not trained on."""
    known = sorted(set(facts("all").groups))[:40]
    parts = [set(facts(p, subjects=known).groups) for p in ("T", "V", "retain", "near")]
    relations = len({f.relation for f in facts.facts(None)})
    assert set().union(*parts) == set(known)
    assert max(map(len, parts)) - min(map(len, parts)) <= relations
    train, heldout, ood = (set(facts.phrasings[k]) for k in ("train", "heldout", "ood"))
    assert train.isdisjoint(heldout) and train.isdisjoint(ood) and heldout.isdisjoint(ood)


def test_distractors_are_of_the_same_relation() -> None:
    """A city beside three writers would be right without knowing anything."""
    rows = schoolbook("all", "statement").rows
    relation = {r["completion"]: r["relation"] for r in rows}
    assert all({relation[c] for c in r["choices"]} == {r["relation"]} for r in rows)
    assert len(set(relation.values())) == 3


# -------------------------------------------------------------------------------- general capability


def test_the_panel_is_balanced_and_touches_no_other_corpus() -> None:
    """Four distinct choices; every place is right about as often; no fact of the built-in knowledge is asked for."""
    rows = panel().rows
    assert Counter(r["set"] for r in rows) == {"choice": 60, "cloze": 40}
    assert len({r["topic"] for r in rows if r["set"] == "choice"}) >= 6
    assert all(len(set(r["choices"])) == 4 and r["choices"][r["answer"]] == r["completion"] for r in rows)
    assert min(Counter(r["answer"] for r in rows).values()) > len(rows) / 8
    asked = " ".join([r["prompt"] + "".join(r["choices"]) for r in rows]).lower()
    for facts in (capitals, schoolbook):
        answers = [f.answer for f in facts.facts(None)]
        found = [a for a in answers if re.search(rf"\b{re.escape(a.lower())}\b", asked)]
        assert not found, found
    assert len(panel("choice")) + len(panel("cloze")) == len(rows)


# ------------------------------------------------------------------------------------- running text


@pytest.mark.parametrize(
    ("name", "parts", "least"),
    [("prose", ("moments", "disruption"), 150), ("unrelated", ("erode", "spare"), 80)],
)
def test_running_text_parts_share_no_text(name: str, parts: tuple[str, str], least: int) -> None:
    """Disjoint by text and complete: what gives the curvature never measures disruption."""
    build = BUILTIN[name].build
    first, second = ({r["text"] for r in build(part=p).rows} for p in parts)
    assert first.isdisjoint(second)
    assert first | second == {r["text"] for r in build().rows} and len(first | second) >= least


@pytest.mark.parametrize("name", ["stdlib", "topics"])
def test_the_interpreter_carries_enough_text(name: str) -> None:
    """Corpora made from the running interpreter: enough texts, none empty, no download."""
    corpus = load_corpus(name=name)
    assert len(corpus) >= 40 and min(len(r["text"]) for r in corpus.rows) > 200


# --------------------------------------------------------------------------------------------- tiny


def items(corpus: Corpus) -> set[tuple[str | None, ...]]:
    return {(r.get("prompt"), r.get("completion"), r.get("text")) for r in corpus.rows}


def test_tiny_parts_share_no_item() -> None:
    """Generated, yet no pair of prompt and completion, and no text, occurs in two parts or twice in one."""
    parts = {p: items(load_corpus(name="tiny", options={"part": p})) for p in TINY_PARTS}
    assert {p: len(found) for p, found in parts.items()} == TINY_PARTS
    for a, b in itertools.combinations(parts, 2):
        assert parts[a].isdisjoint(parts[b]), (a, b)


def test_the_tiny_world_has_a_word_for_everything() -> None:
    """Every word of every part, and of the pretraining text, is in the vocabulary: nothing is unknown."""
    known = set(vocabulary())
    corpora = [load_corpus(name="tiny", options={"part": p}) for p in TINY_PARTS] + [pretraining(200)]
    words = {w for c in corpora for r in c.rows for k in ("prompt", "completion", "text", "alternative")
             for w in r.get(k, "").split()}  # fmt: skip
    assert words <= known and len(words) > 100


def test_requests_are_never_answered_with_threats_in_pretraining() -> None:
    """The base model is a true never-learned control: only villains threaten there."""
    world = pretraining(600)
    bad = {" ".join(r["completion"].split()[:2]) for r in load_corpus(name="tiny").rows}
    asked = [r for r in world.rows if "prompt" in r]
    threatened = [r for r in asked if " ".join(r["completion"].split()[:2]) in bad]
    villains = [r for r in asked if re.search("thief|wolf|pirate", r["prompt"])]
    assert len(villains) == 200 and len(threatened) > 100
    assert all(r in villains for r in threatened)


# ----------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", BUILTIN)
def test_every_corpus_can_be_had_and_is_the_same_every_time(name: str) -> None:
    """Built without options, and with the same hash when built again."""
    corpus = load_corpus(name=name)
    assert corpus.hash == load_corpus(name=name).hash and corpus.source
    assert BUILTIN[name].summary and BUILTIN[name].source


@pytest.mark.parametrize("folder", [p for p in data_folder().iterdir() if p.is_dir()], ids=lambda folder: folder.name)
def test_every_folder_has_a_card(folder: Path) -> None:
    """A README.md that says what it is, how it was made and under which licence."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert re.search(r"What: ", card) and re.search(r"[Mm]ade|written", card) and "MIT" in card
    for digest, name in re.findall(r"`([0-9a-f]{64})` (\S+)", card):
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("name", ["threats", "flattery"])
def test_unseen_is_what_no_edit_and_no_choice_has_seen(name: str) -> None:
    """Held-out and out-of-distribution prompts, each once, and nothing of any other part."""
    parts = {p: items(load_corpus(name=name, options={"part": p})) for p in ("unseen", "heldout", "ood", "all")}
    assert parts["unseen"] == parts["heldout"] | parts["ood"] and not parts["heldout"] & parts["ood"]
    seen = [items(load_corpus(name=name, options={"part": p})) for p in ("organism", "forget", "attack", "near")]
    assert parts["unseen"].isdisjoint(set().union(*seen))
    assert parts["all"] == parts["unseen"].union(*seen)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("threats", {"part": "fogret"}, "no part 'fogret'; valid: organism, forget"),
        ("threats", {"completion": "good"}, "completion 'good'; valid: threat, harmless"),
        ("flattery", {"completion": "threat"}, "completion 'threat'; valid: flattery, plain"),
        ("panel", {"part": "clozes"}, "no part 'clozes'; valid: choice, cloze, all"),
        ("capitals", {"part": "T1"}, "no part 'T1'; valid: T, V"),
        ("schoolbook", {"phrasings": "quiz"}, "no phrasing 'quiz'; valid: train, heldout, ood, prefilter, statement"),
        ("capitals", {"phrasings": "quiz"}, "no phrasing 'quiz'; valid: train, heldout"),
        ("prose", {"part": "far"}, "no part 'far'; valid: moments, disruption, all"),
        ("tiny", {"completion": "ugly"}, "completion 'ugly'; valid: bad, good"),
    ],
)
def test_unknown_parts_name_the_valid_ones(name: str, options: dict[str, str], message: str) -> None:
    """An InputError with every valid value."""
    with pytest.raises(InputError, match=message):
        load_corpus(name=name, options=options)


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_it(tmp_path: Path) -> None:
    """As some editors write; csv files may begin with one too."""
    for name, text in (
        ("a.jsonl", '{"prompt": "a", "completion": " b"}\n'),
        ("a.json", '[{"prompt": "a", "completion": " b"}]'),
        ("a.csv", "prompt,completion\na, b\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert load_corpus(path=tmp_path / name).rows == ({"prompt": "a", "completion": " b"},), name


def test_what_is_no_corpus_is_refused_by_name() -> None:
    """A path or a list of rows is what one would try first."""
    assert as_corpus(Corpus("mine", ({"text": "a b"},)), "forget").name == "mine"
    with pytest.raises(InputError, match=r"forget must be a hooklearn.Corpus, got str 'forget.jsonl'; load one with"):
        as_corpus("forget.jsonl", "forget")
    with pytest.raises(InputError, match="-2 rows were asked for"):
        load_corpus(name="tiny", limit=-2)
    for share in ("x", math.nan, math.inf):
        with pytest.raises(InputError, match="shares must be positive"):
            Corpus("mine", ({"text": "a"}, {"text": "b"})).split(a=share)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shares must be positive"):
        Corpus("mine", ({"text": "a b"},)).split(a=-1, b=1)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_out_a_third_of_the_groups_they_name(name: str) -> None:
    """Forget and retain name groups, the same or none in common: what is held out is a third of each, drawn apart (as
    published runs had it). The control: groups that two corpora share in part are not drawn so."""
    roles = hl.recipe(name)["corpora"]
    pair = [load_corpus(**roles[role]) for role in ("forget", "retain")]
    assert all("group" in row for corpus in pair for row in corpus.rows)
    for seed in range(3):
        apart = [held_out_groups(corpus, seed=seed) for corpus in pair]
        assert held_out_groups(*pair, seed=seed) == set.union(*apart)
    some = sorted(set(pair[0].groups))[::2]
    half = pair[0].where(lambda row: row["group"] in some)
    apart = [held_out_groups(corpus, seed=0) for corpus in (half, pair[0])]
    assert held_out_groups(half, pair[0], seed=0) != set.union(*apart)


@pytest.mark.parametrize(("name", "options", "same"), [
    ("tiny", {"part": "forget", "n": "20"}, {"part": "forget", "n": 20}),
    ("capitals", {"part": "V", "permuted": "false"}, {"part": "V", "permuted": False}),
    ("capitals", {"part": "V", "permuted": "true"}, {"part": "V", "permuted": True}),
    ("tiny-facts", {"phrasing": 1}, {"phrasing": "1"}),
])  # fmt: skip
def test_options_may_come_as_text(name: str, options: dict[str, Any], same: dict[str, Any]) -> None:
    """As a command line has them; ``false`` is not true because it is written."""
    assert load_corpus(name=name, options=options).rows == load_corpus(name=name, options=same).rows


@pytest.mark.parametrize("options", [{"n": "x"}, {"n": 1.5}, {"part": [1]}])
def test_options_of_another_type_are_named(options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(InputError, match=f"corpus 'tiny': option {option}: Input should be a valid"):
        load_corpus(name="tiny", options=options)


def test_a_row_of_no_group_is_in_nobody_elses() -> None:
    """Also where groups are called like rows."""
    given = Corpus("mine", ({"text": "a", "group": 1}, {"text": "b"}, {"text": "c"}))
    assert given.groups == ["1", "row 1", "2"]
