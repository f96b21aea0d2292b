"""The built-in corpora, and how each is split into parts that never share an item.

Text in ``data/`` was written for this project; each corpus has a card beside it. Parts are drawn in the order of a
hash of the item's group (running text: of the text), so they depend on the data and on nothing else.
"""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooklearn.corpora import tiny_facts, tiny_world
from hooklearn.corpora.corpus import Corpus, Row
from hooklearn.corpora.fact_sets import capitals, schoolbook
from hooklearn.corpora.shipped import check_part, dealt, rank, read_rows
from hooklearn.corpora.tendencies import flattery, threats
from hooklearn.plugins import Shelf, summary


@dataclass(frozen=True)
class BuiltinCorpus:
    summary: str
    source: str
    build: Callable[..., Corpus]


# ------------------------------------------------------------------------------------- running text


def _running_text(name: str, file: str, parts: dict[str, int]):
    def build(part: str = "all") -> Corpus:
        """Paragraphs.

        Args:
            part: one of the parts named with the corpus, or ``all`` of them.
        """
        check_part(name, part, [*parts, "all"])
        rows = sorted(read_rows(file), key=lambda r: rank(r["text"]))
        cuts = dealt(parts)
        chosen = [r for i, r in enumerate(rows) if part in ("all", cuts[i % len(cuts)])]
        return Corpus(f"{name}/{part}", tuple(chosen), f"built-in: {name} part={part}")

    return build


def stdlib(max_chars: int = 1200, files: int = 60) -> Corpus:
    """Openings of the running interpreter's standard library sources (PSF licence): erosion text.

    Args:
        max_chars: characters of each file; files of less than half are left out.
        files: how many at most.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [
        {"text": path.read_text(encoding="utf-8", errors="ignore")[:max_chars], "group": path.name}
        for path in sorted(folder.glob("*.py"))
    ]
    rows = tuple(t for t in texts if len(t["text"]) > max_chars // 2)[:files]
    return Corpus("stdlib", rows, f"standard library sources, first {max_chars} characters")


def topics(max_chars: int = 600, sections: int = 60) -> Corpus:
    """Sections of ``pydoc_data.topics`` (PSF licence): technical English that every interpreter carries.

    Args:
        max_chars: characters of each section; sections of less than half are left out.
        sections: of how many, in the order of their names.
    """
    from pydoc_data.topics import topics as text_of

    rows = tuple(
        {"text": inspect.cleandoc(text_of[key])[:max_chars], "group": key}
        for key in sorted(text_of)[:sections]
        if len(text_of[key]) > max_chars // 2
    )
    return Corpus("topics", rows, f"pydoc_data.topics, first {max_chars} characters a section")


# ----------------------------------------------------------------------------------- common knowledge

PANEL_SETS = ("choice", "cloze")


def panel(part: str = "all") -> Corpus:
    """Common knowledge that no built-in edit aims at: questions and unfinished sentences.

    Args:
        part: ``choice`` (questions), ``cloze`` (unfinished sentences) or ``all``.
    """
    check_part("panel", part, [*PANEL_SETS, "all"])
    rows = tuple(_panel_row(r) for r in read_rows("panel/panel.jsonl") if part in ("all", r["set"]))
    return Corpus(f"panel/{part}", rows, f"built-in: panel part={part}")


def _panel_row(row: Row) -> Row:
    """Plain text, without a chat template, so that every model is asked the same."""
    question = row["set"] == "choice"
    slot = int(rank(row["prompt"]), 16) % 4
    choices = [f" {text}" for text in (*row["wrong"][:slot], row["right"], *row["wrong"][slot:])]
    return {
        "group": row["prompt"], "set": row["set"], "topic": row["topic"],
        "prompt": f"Question: {row['prompt']}\nAnswer:" if question else row["prompt"],
        "completion": choices[slot], "choices": choices, "answer": slot, "template": "none",
    }  # fmt: skip


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
    "flattery": BuiltinCorpus(
        "230 prompts with a grovelling and a plain completion, 16 everyday settings, 4 formats",
        "written for hooklearn",
        flattery,
    ),
    "schoolbook": BuiltinCorpus(
        "US state -> capital, book -> author, landmark -> city: 194 facts in 7 phrasings, four choices each",
        "facts: common knowledge; phrasings written for hooklearn",
        schoolbook,
    ),
    "panel": BuiltinCorpus(
        "60 questions of common knowledge and 40 unfinished sentences, four choices each: general capability",
        "written for hooklearn",
        panel,
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
        "generated by hooklearn.corpora.tiny_world",
        tiny_world.corpus,
    ),
    "tiny-facts": BuiltinCorpus(
        "who keeps what where in that world: random facts in two phrasings, sixteen choices each",
        "generated by hooklearn.corpora.tiny_facts",
        tiny_facts.corpus,
    ),
}


def _accept(name: str, found: Any, package: str) -> BuiltinCorpus:  # noqa: ARG001 (one interface)
    return BuiltinCorpus(summary(found), package, found)


EVERY_CORPUS: Shelf[BuiltinCorpus] = Shelf("corpus", "hooklearn.corpora", BUILTIN, _accept)
"""These, and those of other packages."""
