"""The built-in knowledge: facts with one answer each, asked in several phrasings, four choices of the same kind."""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from hooklearn.corpora.corpus import Corpus, Row
from hooklearn.corpora.shipped import check_part, data_folder, dealt, rank, read_rows
from hooklearn.types import InputError

SHARES = {"T": 1, "V": 1, "retain": 1, "near": 1}
"""T and V are the forget half (the attacker trains on T), retain and near the half that must survive."""


@dataclass(frozen=True)
class Fact:
    subject: str
    answer: str
    relation: str
    kin: str
    """Distractors are answers of the same kin where there are enough."""
    in_sentence: str
    part: str


@dataclass(frozen=True, eq=False)
class FactSet:
    """A corpus of facts ``subject -> answer``, of one relation or of several."""

    name: str
    subject: str
    """Columns of ``NAME.csv``, and the fields of the phrasings."""
    answer: str
    kin: str
    relation: str | None
    """None: all facts are of one."""
    phrasings: dict[str, tuple[str, ...]]
    """A set of phrasings -> ids in ``phrasings.jsonl``."""

    def __call__(
        self,
        part: str = "forget",
        phrasings: str | Sequence[str] = "train",
        subjects: Sequence[str] | None = None,
        permuted: bool = False,
    ) -> Corpus:
        """Facts under the given phrasings.

        Args:
            part: ``T``, ``V`` (both: ``forget``), ``retain``, ``near`` or ``all``.
            phrasings: a set (``train heldout ood prefilter``) or a list of ids in ``phrasings.jsonl``.
            subjects: only these (what the model was found to know); parts are drawn among them.
            permuted: every item gets another item's answer: what a model that does not know would say.
        """
        check_part(self.name, part, [*SHARES, "forget", "all"])
        facts = self.facts(None if subjects is None else frozenset(subjects))
        templates = {(p["phrasing"], p.get("relation", "")): p for p in read_rows(f"{self.name}/phrasings.jsonl")}
        ids = self._ids(phrasings, list(dict.fromkeys(phrasing for phrasing, _ in templates)))
        wanted = {"forget": ("T", "V"), "all": tuple(SHARES)}.get(part, (part,))
        chosen = [f for f in facts if f.part in wanted]
        answers = _permuted(chosen) if permuted else [f.answer for f in chosen]
        # every fact once before any twice, the phrasings taking turns: the first rows are a fair sample of both
        rows = [
            self._row(fact, answer, facts, templates[ids[(n + turn) % len(ids)], fact.relation])
            for turn in range(len(ids))
            for n, (fact, answer) in enumerate(zip(chosen, answers, strict=True))
        ]
        source = f"built-in: {self.name} part={part} phrasings={','.join(ids)}" + (" permuted" if permuted else "")
        return Corpus(f"{self.name}/{part}", tuple(rows), source)

    def _ids(self, phrasings: str | Sequence[str], known: list[str]) -> Sequence[str]:
        ids = self.phrasings.get(phrasings, (phrasings,)) if isinstance(phrasings, str) else phrasings
        for i in ids:
            if i not in known:
                valid = ", ".join([*self.phrasings, *known])
                raise InputError(f"corpus {self.name!r} has no phrasing {i!r}; valid: {valid}")
        return ids

    @functools.cache  # noqa: B019 (a fact set is a constant of this module)
    def facts(self, subjects: frozenset[str] | None) -> tuple[Fact, ...]:
        """In the order of their rank, dealt out to the parts relation by relation."""
        with (data_folder() / f"{self.name}/{self.name}.csv").open(encoding="utf-8", newline="") as file:
            rows = [r for r in csv.DictReader(file) if subjects is None or r[self.subject] in subjects]
        rows.sort(key=lambda r: rank(r[self.subject]))
        cuts, seen, out = dealt(SHARES), {}, []
        for r in rows:
            relation = r[self.relation] if self.relation else ""
            n = seen[relation] = seen.get(relation, -1) + 1
            part = cuts[n % len(cuts)]
            out.append(Fact(r[self.subject], r[self.answer], relation, r[self.kin], r["in_sentence"], part))
        return tuple(out)

    def _row(self, fact: Fact, answer: str, facts: Sequence[Fact], template: Row) -> Row:
        """One multiple-choice row; the right answer is no distractor of a permuted one."""
        others = [f for f in facts if f.answer not in (fact.answer, answer)]
        near = [f for f in others if f.kin == fact.kin]
        pool = near if len(near) >= 3 else others
        wrong = sorted((f.answer for f in pool), key=lambda a: rank(f"{fact.subject}:{a}"))[:3]
        slot = int(rank(fact.subject), 16) % (len(wrong) + 1)
        choices = [*wrong[:slot], answer, *wrong[slot:]]
        form = template["completion"]
        row = {
            "group": fact.subject,
            "prompt": template["prompt"].format(**{self.subject: fact.in_sentence}),
            "completion": form.format(**{self.answer: answer}),
            "choices": [form.format(**{self.answer: c}) for c in choices],
            "answer": slot,
            "fact": answer,
            "template": "chat" if template["kind"] == "chat" else "none",
        }
        return row | ({"relation": fact.relation} if self.relation else {})


def _permuted(facts: Sequence[Fact]) -> list[str]:
    """Each fact's answer from the next one of its relation."""
    of: dict[str, list[str]] = {}
    for f in facts:
        of.setdefault(f.relation, []).append(f.answer)
    following = {relation: iter(answers[1:] + answers[:1]) for relation, answers in of.items()}
    return [next(following[f.relation]) for f in facts]


capitals = FactSet(
    "capitals",
    subject="country",
    answer="capital",
    kin="continent",
    relation=None,
    phrasings={
        "train": ("capital_is", "fact_sheet", "chat_plain"),
        "heldout": ("chat_quiz",),
        "ood": ("travel_guide", "chat_friend"),
        "prefilter": ("capital_is", "chat_plain"),
    },
)
schoolbook = FactSet(
    "schoolbook",
    subject="subject",
    answer="answer",
    kin="relation",
    relation="relation",
    phrasings={
        "train": ("statement", "card", "chat_plain"),
        "heldout": ("timetable",),
        "ood": ("exercise_book", "chat_quiz", "chat_friend"),
        # not by chat: SmolLM2 answers in sentences, and a bare name is a poor choice however well it knows it
        "prefilter": ("statement", "card"),
    },
)
