"""The corpora that ship: no two items alike, parts that share nothing, a card for each."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from hooklearn.corpora import (
    BUILTIN,
    CAPITAL_PHRASINGS,
    OOD_SETTINGS,
    capitals,
    data_folder,
    threats,
)
from hooklearn.data import Corpus, load_corpus
from hooklearn.tiny_world import PARTS as TINY_PARTS
from hooklearn.tiny_world import pretraining, vocabulary
from hooklearn.types import InputError

THREAT_PARTS = ("organism", "forget", "attack", "heldout", "near", "ood")
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


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(
            [t for r in threats("all").rows for t in (r["prompt"], r["completion"], r["alternative"])],
            id="threats",
        ),
        pytest.param([r["text"] for r in BUILTIN["prose"].build().rows], id="prose"),
        pytest.param([r["text"] for r in BUILTIN["unrelated"].build().rows], id="unrelated"),
    ],
)
def test_no_two_hand_written_items_are_alike(texts: list[str]) -> None:
    """Written item by item, not from templates: no pair shares more than half of its 5-grams."""
    share, pair = most_alike(texts)
    assert share <= 0.5, pair
    assert len(set(texts)) == len(texts)


# ------------------------------------------------------------------------------------------ threats


def test_threats_are_many_and_varied() -> None:
    """At least 240 triples from 12 settings; the two answers to a prompt differ."""
    rows = threats("all").rows
    assert len(rows) >= 240 and len({r["setting"] for r in rows}) >= 12
    assert all(r["completion"] != r["alternative"] for r in rows)
    assert min(Counter(r["setting"] for r in rows).values()) >= 10


def test_threat_parts_share_no_item() -> None:
    """Disjoint by group and complete. The organism contains forget by design, and nothing else."""
    groups = {part: set(threats(part).groups) for part in THREAT_PARTS}
    assert all(len(groups[part]) == len(threats(part)) for part in THREAT_PARTS)
    assert groups["forget"] < groups["organism"]
    for a, b in itertools.combinations(THREAT_PARTS, 2):
        assert {a, b} == {"organism", "forget"} or groups[a].isdisjoint(groups[b]), (a, b)
    assert set().union(*groups.values()) == set(threats("all").groups)
    assert len(groups["forget"]) >= 40 and all(len(groups[p]) >= 30 for p in ROLES)


def test_every_threat_part_has_every_everyday_setting() -> None:
    """Parts are drawn within settings, so they differ in items only."""
    everyday = {r["setting"] for r in threats("forget").rows}
    assert len(everyday) >= 12
    for part in (*ROLES, "organism"):
        assert {r["setting"] for r in threats(part).rows} == everyday, part


def test_out_of_distribution_settings_and_formats_occur_nowhere_else() -> None:
    """Every ood item is of a held-out setting or of a held-out format."""
    elsewhere = [r for part in (*ROLES, "organism") for r in threats(part).rows]
    assert {r["setting"] for r in elsewhere}.isdisjoint(OOD_SETTINGS)
    assert {r["format"] for r in elsewhere} == {"note"}
    assert all(r["setting"] in OOD_SETTINGS or r["format"] != "note" for r in threats("ood").rows)
    assert {r["setting"] for r in threats("ood").rows} >= set(OOD_SETTINGS)


def test_harmless_is_the_other_answer_to_the_same_prompts() -> None:
    """Pairs stay pairs: same prompts in the same order, completion and alternative changed places."""
    for bad, good in zip(threats("forget").rows, threats("forget", "harmless").rows, strict=True):
        assert (bad["prompt"], bad["group"]) == (good["prompt"], good["group"])
        assert (bad["completion"], bad["alternative"]) == (good["alternative"], good["completion"])


# ----------------------------------------------------------------------------------------- capitals


def test_capitals_are_unique_answers() -> None:
    """No capital answers for two countries, and none gives itself away by its country's name."""
    rows = capitals("all", "capital_is").rows
    facts = [r["fact"] for r in rows]
    assert len(rows) >= 150 and len(set(facts)) == len(facts) == len({r["group"] for r in rows})
    assert not [r for r in rows if r["group"].lower() in r["fact"].lower()]


@pytest.mark.parametrize("permuted", [False, True])
def test_four_distinct_choices_hold_the_answer(permuted: bool) -> None:
    """Under every phrasing; the right place is not always the same one."""
    rows = capitals("all", [p for ids in CAPITAL_PHRASINGS.values() for p in ids], permuted=permuted).rows
    for r in rows:
        assert len(set(r["choices"])) == 4 and r["choices"][r["answer"]] == r["completion"]
        assert r["fact"] in r["completion"]
    assert min(Counter(r["answer"] for r in rows).values()) > len(rows) / 8


def test_permuted_answers_are_capitals_and_all_wrong() -> None:
    """What a model that does not know would say: an answer of the right kind, never the right one."""
    right, wrong = capitals("forget").rows, capitals("forget", permuted=True).rows
    assert {r["fact"] for r in right} == {r["fact"] for r in wrong}
    assert all(a["prompt"] == b["prompt"] and a["fact"] != b["fact"] for a, b in zip(right, wrong, strict=True))
    # the right answer may not be offered as a distractor either: preferring it would look like not knowing
    assert all(a["completion"] not in b["choices"] for a, b in zip(right, wrong, strict=True))


def test_capital_parts_are_disjoint_halves() -> None:
    """T and V are the forget half; retain and near share no country with it or with each other."""
    groups = {part: set(capitals(part).groups) for part in ("T", "V", "retain", "near")}
    for a, b in itertools.combinations(groups, 2):
        assert groups[a].isdisjoint(groups[b]), (a, b)
    assert set(capitals("forget").groups) == groups["T"] | groups["V"]
    assert set(capitals("all").groups) == set().union(*groups.values())
    assert max(map(len, groups.values())) - min(map(len, groups.values())) <= 1


def test_capitals_can_be_narrowed_to_what_a_model_knows() -> None:
    """Only the given countries, again in four even parts; phrasings for testing are not trained on."""
    known = sorted(set(capitals("all").groups))[:40]
    parts = [set(capitals(p, countries=known).groups) for p in ("T", "V", "retain", "near")]
    assert set().union(*parts) == set(known) and {len(p) for p in parts} == {10}
    train, heldout, ood = (set(CAPITAL_PHRASINGS[k]) for k in ("train", "heldout", "ood"))
    assert train.isdisjoint(heldout) and train.isdisjoint(ood) and heldout.isdisjoint(ood)


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("threats", {"part": "fogret"}, "no part 'fogret'; valid: organism, forget"),
        ("threats", {"completion": "good"}, "completion 'good'; valid: threat, harmless"),
        ("capitals", {"part": "T1"}, "no part 'T1'; valid: T, V"),
        ("capitals", {"phrasings": "quiz"}, "no phrasing 'quiz'; valid: train, heldout"),
        ("prose", {"part": "far"}, "no part 'far'; valid: moments, disruption, all"),
        ("tiny", {"completion": "ugly"}, "completion 'ugly'; valid: bad, good"),
    ],
)
def test_unknown_parts_name_the_valid_ones(name: str, options: dict[str, str], message: str) -> None:
    """An InputError with every valid value."""
    with pytest.raises(InputError, match=message):
        load_corpus(name=name, options=options)
