"""Facts whose answers are permuted: what a model that does not know them would say."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hooklearn.corpora.corpus import Corpus, answer_of
from hooklearn.types import InputError


def permuted(corpus: Corpus, parts: Sequence[Collection[int]] | None = None) -> Corpus:
    """Every item gets the answer of the next one of its relation: an answer of the right kind that is wrong.

    One that is a distractor of the item already is passed over: the same choice twice could not be chosen.

    Args:
        parts: items that an attacker is told nothing of; answers then stay within each. One that he was told of
            another item comes to his mind, known or not, and would make not knowing look like knowing.
    Raises:
        InputError: no other item (of the part) has an answer that could stand for not knowing this one.
    """
    part_of = {i: n for n, part in enumerate(parts or []) for i in part}
    rows = []
    for i, row in enumerate(corpus.rows):
        following = [*range(i + 1, len(corpus.rows)), *range(i)]
        related = [corpus.rows[j] for j in following if part_of.get(j) == part_of.get(i)]
        related = [r for r in related if r.get("relation") == row.get("relation")]
        taken = {answer_of(row), *row.get("choices", ())}
        other = next((r for r in related if answer_of(r) not in taken), None)
        if other is None:
            among, instead = ("no other row", "") if parts is None else ("no other row of its fold", ", or fewer folds")
            raise InputError(
                f"corpus {corpus.name!r}, row {i}: {among} has an answer that could stand for not knowing "
                f"{answer_of(row)!r}; controls.never.surrogate needs at least five facts of a relation{instead}"
            )
        choices = list(row.get("choices", []))
        changed = {
            "completion": answer_of(other),
            "fact": other.get("fact", answer_of(other)),
        }
        if choices:
            choices[row["answer"]] = answer_of(other)
            changed["choices"] = choices
        rows.append({**row, **changed})
    return Corpus(f"{corpus.name}/permuted", tuple(rows), f"{corpus.source}, answers permuted")
