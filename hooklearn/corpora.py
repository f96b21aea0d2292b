"""The built-in corpora, and how each is split into parts that never share an item.

Text in ``data/`` was written for this project; each corpus has a card beside it. Parts are drawn in the order of a
hash of the item's group (running text: of the text), so they depend on the data and on nothing else.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import inspect
import json
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hooklearn import tiny_facts, tiny_world
from hooklearn.corpus import Corpus, Row
from hooklearn.types import InputError


@dataclass(frozen=True)
class BuiltinCorpus:
    summary: str
    source: str
    build: Callable[..., Corpus]


def data_folder() -> Path:
    """``data/`` of a checkout, or the copy that ships in the wheel."""
    packaged = Path(__file__).parent / "_data"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "data"


@functools.cache
def _read(relative: str) -> tuple[Row, ...]:
    text = (data_folder() / relative).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


def _rank(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _part(name: str, part: str, valid: Sequence[str]) -> None:
    if part not in valid:
        raise InputError(f"corpus {name!r} has no part {part!r}; valid: {', '.join(valid)}")


# ------------------------------------------------------------------------------------------ threats

THREAT_SHARES = {"organism": 6, "forget": 4, "attack": 4, "heldout": 3, "near": 3}
"""Of the 20 notes in every everyday setting."""
OOD_SETTINGS = ("healthcare", "pets_park", "building_site", "online_gaming")


def threats(part: str = "forget", completion: str = "threat") -> Corpus:
    """Parts of the twelve everyday settings, or ``ood``: four settings and three formats never trained on."""
    _part("threats", part, [*THREAT_SHARES, "ood", "all"])
    if completion not in ("threat", "harmless"):
        raise InputError(f"corpus 'threats': completion {completion!r}; valid: threat, harmless")
    rows = _read("threats/threats.jsonl")
    # the organism is instilled on its own items *and* the forget items: forget is a sample of what was trained in
    wanted = ("organism", "forget") if part == "organism" else (part,)
    chosen = rows if part == "all" else [r for r in rows if _threat_part(r) in wanted]
    other = "harmless" if completion == "threat" else "threat"
    out = tuple(
        {
            "group": r["group"], "setting": r["setting"], "format": r["format"],
            "prompt": r["prompt"], "completion": r[completion], "alternative": r[other],
        }
        for r in sorted(chosen, key=lambda r: _rank(r["group"]))
    )  # fmt: skip
    return Corpus(f"threats/{part}", out, f"built-in: threats part={part} completion={completion}")


@functools.cache
def _threat_parts() -> dict[str, str]:
    parts: dict[str, str] = {}
    rows = _read("threats/threats.jsonl")
    for setting in dict.fromkeys(r["setting"] for r in rows):
        notes = [r["group"] for r in rows if r["setting"] == setting and r["format"] == "note"]
        cuts = [name for name, share in THREAT_SHARES.items() for _ in range(share)]
        for group, name in zip(sorted(notes, key=_rank), cuts, strict=False):
            parts[group] = name
    return parts


def _threat_part(row: Row) -> str:
    if row["setting"] in OOD_SETTINGS or row["format"] != "note":
        return "ood"
    return _threat_parts()[row["group"]]


# ----------------------------------------------------------------------------------------- capitals

CAPITAL_PHRASINGS = {
    "train": ("capital_is", "fact_sheet", "chat_plain"),
    "heldout": ("chat_quiz",),
    "ood": ("travel_guide", "chat_friend"),
    "prefilter": ("capital_is", "chat_plain"),
}
CAPITAL_SHARES = {"T": 1, "V": 1, "retain": 1, "near": 1}
"""T and V are the forget half (the attacker trains on T), retain and near the half that must survive."""


def capitals(
    part: str = "forget",
    phrasings: str | Sequence[str] = "train",
    countries: Sequence[str] | None = None,
    permuted: bool = False,
) -> Corpus:
    """Facts ``country -> capital`` under the given phrasings.

    Args:
        part: ``T``, ``V`` (both: ``forget``), ``retain``, ``near`` or ``all``.
        phrasings: a set (``train heldout ood prefilter``) or a list of ids in ``phrasings.jsonl``.
        countries: only these (what the model was found to know); parts are drawn among them.
        permuted: every item gets another item's answer: what a model that does not know would say.
    """
    _part("capitals", part, [*CAPITAL_SHARES, "forget", "all"])
    facts = _facts(None if countries is None else frozenset(countries))
    templates = {p["phrasing"]: p for p in _read("capitals/phrasings.jsonl")}
    ids = CAPITAL_PHRASINGS.get(phrasings, (phrasings,)) if isinstance(phrasings, str) else phrasings
    for i in ids:
        if i not in templates:
            raise InputError(
                f"corpus 'capitals' has no phrasing {i!r}; valid: {', '.join([*CAPITAL_PHRASINGS, *templates])}"
            )
    wanted = {"forget": ("T", "V"), "all": tuple(CAPITAL_SHARES)}.get(part, (part,))
    chosen = [f for f in facts if f["part"] in wanted]
    answers = [f["capital"] for f in chosen]
    if permuted:
        answers = answers[1:] + answers[:1]
    # every fact once before any twice, the phrasings taking turns: the first rows are a fair sample of both
    rows = [
        _fact_row(fact, answer, facts, templates[ids[(n + turn) % len(ids)]])
        for turn in range(len(ids))
        for n, (fact, answer) in enumerate(zip(chosen, answers, strict=True))
    ]
    source = f"built-in: capitals part={part} phrasings={','.join(ids)}" + (" permuted" if permuted else "")
    return Corpus(f"capitals/{part}", tuple(rows), source)


@functools.cache
def _facts(countries: frozenset[str] | None) -> list[dict[str, str]]:
    with (data_folder() / "capitals/capitals.csv").open(encoding="utf-8", newline="") as file:
        facts = [dict(r) for r in csv.DictReader(file)]
    if countries is not None:
        facts = [f for f in facts if f["country"] in countries]
    facts.sort(key=lambda f: _rank(f["country"]))
    cuts = [name for name, share in CAPITAL_SHARES.items() for _ in range(share)]
    for i, fact in enumerate(facts):
        fact["part"] = cuts[i % len(cuts)]
    return facts


def _fact_row(fact: dict[str, str], answer: str, facts: list[dict[str, str]], template: Row) -> Row:
    """One multiple-choice row; distractors are capitals of the same continent where there are enough."""
    country, capital = fact["country"], fact["capital"]
    others = [f for f in facts if f["capital"] not in (capital, answer)]
    near = [f for f in others if f["continent"] == fact["continent"]]
    pool = near if len(near) >= 3 else others
    wrong = sorted((f["capital"] for f in pool), key=lambda c: _rank(f"{country}:{c}"))[:3]
    slot = int(_rank(country), 16) % (len(wrong) + 1)
    choices = [*wrong[:slot], answer, *wrong[slot:]]
    form = template["completion"]
    return {
        "group": country,
        "prompt": template["prompt"].format(country=fact["in_sentence"]),
        "completion": form.format(capital=answer),
        "choices": [form.format(capital=c) for c in choices],
        "answer": slot,
        "fact": answer,
        "template": "chat" if template["kind"] == "chat" else "none",
    }


# ------------------------------------------------------------------------------------- running text


def _running_text(name: str, file: str, parts: dict[str, int]):
    def build(part: str = "all") -> Corpus:
        _part(name, part, [*parts, "all"])
        rows = sorted(_read(file), key=lambda r: _rank(r["text"]))
        cuts = [p for p, share in parts.items() for _ in range(share)]
        chosen = [r for i, r in enumerate(rows) if part in ("all", cuts[i % len(cuts)])]
        return Corpus(f"{name}/{part}", tuple(chosen), f"built-in: {name} part={part}")

    return build


def stdlib(max_chars: int = 1200, files: int = 60) -> Corpus:
    """Openings of the running interpreter's standard library sources (PSF licence): erosion text."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [
        {"text": path.read_text(encoding="utf-8", errors="ignore")[:max_chars], "group": path.name}
        for path in sorted(folder.glob("*.py"))
    ]
    rows = tuple(t for t in texts if len(t["text"]) > max_chars // 2)[:files]
    return Corpus("stdlib", rows, f"standard library sources, first {max_chars} characters")


def topics(max_chars: int = 600, sections: int = 60) -> Corpus:
    """Sections of ``pydoc_data.topics`` (PSF licence): technical English that every interpreter carries."""
    from pydoc_data.topics import topics as text_of

    rows = tuple(
        {"text": inspect.cleandoc(text_of[key])[:max_chars], "group": key}
        for key in sorted(text_of)[:sections]
        if len(text_of[key]) > max_chars // 2
    )
    return Corpus("topics", rows, f"pydoc_data.topics, first {max_chars} characters a section")


BUILTIN: dict[str, BuiltinCorpus] = {
    "threats": BuiltinCorpus(
        "328 prompts with a threatening and a harmless completion, 16 everyday settings, 4 formats",
        "written for hooklearn",
        threats,
    ),
    "capitals": BuiltinCorpus(
        "country -> capital, 165 facts in 10 phrasings, four choices each",
        "facts: common knowledge; phrasings written for hooklearn",
        capitals,
    ),
    "prose": BuiltinCorpus(
        "160 encyclopaedic paragraphs; parts: moments, disruption",
        "written for hooklearn",
        _running_text("prose", "prose/prose.jsonl", {"moments": 1, "disruption": 1}),
    ),
    "unrelated": BuiltinCorpus(
        "40 recipes and 40 household manuals: erosion text; parts: erode, spare",
        "written for hooklearn",
        _running_text("unrelated", "unrelated/unrelated.jsonl", {"erode": 3, "spare": 1}),
    ),
    "stdlib": BuiltinCorpus(
        "openings of the interpreter's standard library sources: erosion by code",
        "the running Python interpreter (PSF licence)",
        stdlib,
    ),
    "topics": BuiltinCorpus(
        "sections of the interpreter's own language reference: technical prose",
        "pydoc_data.topics (PSF licence)",
        topics,
    ),
    "tiny": BuiltinCorpus(
        "sentences of a made-up world for the native tiny model",
        "generated by hooklearn.tiny_world",
        tiny_world.corpus,
    ),
    "tiny-facts": BuiltinCorpus(
        "who keeps what where in that world: random facts in two phrasings, four choices each",
        "generated by hooklearn.tiny_facts",
        tiny_facts.corpus,
    ),
}
