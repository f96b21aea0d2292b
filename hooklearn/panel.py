"""General capability: does a model still answer common knowledge that no edit aimed at?

The share of multiple-choice items whose right choice has the highest mean token log-probability, with its error. It is
a check beside disruption, not a behaviour: no attack looks at it and no verdict rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor

from hooklearn import forward, models
from hooklearn.data import Corpus, Encoded, encode_choices, load_corpus
from hooklearn.forward import Precision
from hooklearn.measure import choice_accuracy
from hooklearn.types import InputError, Score


@dataclass(frozen=True)
class Panel:
    """Multiple-choice items of one or several sets (column ``set``), encoded once for every model that is asked."""

    corpus: Corpus
    choices: list[Encoded] = field(repr=False)

    @staticmethod
    def of(corpus: Corpus, tokenizer: Any) -> Panel:
        """Raises InputError: a row without choices."""
        check_panel(corpus)
        return Panel(corpus, encode_choices(corpus, tokenizer))

    @property
    def sets(self) -> list[str]:
        """The set that each item belongs to."""
        return [str(row.get("set", "all")) for row in self.corpus.rows]

    def right(self, model: Any, *, precision: Precision = "auto") -> Tensor:
        """Per item 1 where the model answers right, else 0 (a share for ties, NaN without a number: see
        :func:`hooklearn.measure.choice_accuracy`)."""
        scores = forward.sequence_logprobs(model, self.choices, precision=precision)
        return choice_accuracy(scores, self.choices, self.corpus)

    def scores(self, right: Tensor) -> dict[str, Score]:
        """Accuracy of every set, and of ``all`` items; errors are of groups, where items go together."""
        sets, groups = self.sets, self.corpus.groups
        inside = {name: [i for i, s in enumerate(sets) if s == name] for name in dict.fromkeys(sets)}
        inside["all"] = list(range(len(sets)))
        return {name: Score.of(right[items], [groups[i] for i in items]) for name, items in inside.items()}

    def to_dataframe(self, right: Mapping[str, Tensor], seed: int) -> pd.DataFrame:
        """Long form of several arms' answers: arm, seed, set, item, value."""
        frames = [
            pd.DataFrame(
                {"arm": arm, "seed": seed, "set": self.sets, "item": range(len(self.corpus)), "value": of_arm.tolist()}
            )
            for arm, of_arm in right.items()
        ]
        return pd.concat(frames, ignore_index=True)


def check_panel(corpus: Corpus) -> None:
    """Refuse rows that cannot be answered right or wrong.

    Raises:
        InputError: the first row without choices.
    """
    for i, row in enumerate(corpus.rows):
        if "choices" not in row:
            raise InputError(
                f"corpus {corpus.name!r}, row {i}: general capability is measured on multiple choice; give every row "
                "'choices' and 'answer', or use the built-in corpus 'panel'"
            )


def capability(model: Any, corpus: Corpus | None = None, *, precision: Precision = "auto") -> dict[str, Score]:
    """Accuracy of whatever state the model is in, per set and over ``all`` items.

    Args:
        corpus: multiple-choice rows; the built-in ``panel`` by default.
    """
    panel = Panel.of(corpus or load_corpus(name="panel"), models.tokenizer_of(model))
    return panel.scores(panel.right(model, precision=precision))
