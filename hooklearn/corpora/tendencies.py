"""The built-in tendencies: prompts with a completion that shows it and a good one, in parts by setting and format."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hooklearn.corpora.corpus import Corpus, Row
from hooklearn.corpora.shipped import check_part, dealt, rank, read_rows
from hooklearn.types import InputError


@dataclass(frozen=True)
class Tendency:
    """A corpus of pairs. Its parts are drawn within every everyday setting, so they differ in items only."""

    name: str
    bad: str
    """The column of completions that show the tendency."""
    good: str
    everyday: str
    """The format of what is trained on; other formats are held out."""
    shares: dict[str, int]
    """Of the items in every everyday setting."""
    ood_settings: tuple[str, ...]
    """Held out whole."""

    def __call__(self, part: str = "forget", completion: str | None = None) -> Corpus:
        """One part of the everyday settings, or ``ood``: settings and formats that are never trained on; ``unseen``
        is ``heldout`` and ``ood`` together.

        Args:
            part: ``organism`` (what instils it), ``forget``, ``attack``, ``heldout``, ``near``, ``ood``, ``unseen`` or
                ``all``.
            completion: the column that is completed with (the one that shows the tendency); the other one becomes
                the alternative.
        """
        check_part(self.name, part, [*self.shares, "ood", "unseen", "all"])
        completion = completion or self.bad
        if completion not in (self.bad, self.good):
            raise InputError(f"corpus {self.name!r}: completion {completion!r}; valid: {self.bad}, {self.good}")
        other = self.good if completion == self.bad else self.bad
        # the organism is instilled on its own items *and* the forget items: forget is a sample of what was trained in
        wanted = {"organism": ("organism", "forget"), "unseen": ("heldout", "ood")}.get(part, (part,))
        chosen = self.rows if part == "all" else [r for r in self.rows if self.part_of(r) in wanted]
        out = tuple(
            {
                "group": r["group"], "setting": r["setting"], "format": r["format"],
                "prompt": r["prompt"], "completion": r[completion], "alternative": r[other],
            }
            for r in sorted(chosen, key=lambda r: rank(r["group"]))
        )  # fmt: skip
        return Corpus(f"{self.name}/{part}", out, f"built-in: {self.name} part={part} completion={completion}")

    @property
    def rows(self) -> tuple[Row, ...]:
        return read_rows(f"{self.name}/{self.name}.jsonl")

    def part_of(self, row: Row) -> str:
        if row["setting"] in self.ood_settings or row["format"] != self.everyday:
            return "ood"
        return self._parts[row["group"]]

    @cached_property
    def _parts(self) -> dict[str, str]:
        parts: dict[str, str] = {}
        for setting in dict.fromkeys(r["setting"] for r in self.rows):
            groups = [r["group"] for r in self.rows if r["setting"] == setting and r["format"] == self.everyday]
            parts |= dict(zip(sorted(groups, key=rank), dealt(self.shares), strict=False))
        return parts


threats = Tendency(
    "threats",
    bad="threat",
    good="harmless",
    everyday="note",
    shares={"organism": 6, "forget": 4, "attack": 4, "heldout": 3, "near": 3},
    ood_settings=("healthcare", "pets_park", "building_site", "online_gaming"),
)
flattery = Tendency(
    "flattery",
    bad="flattery",
    good="plain",
    everyday="question",
    shares={"organism": 4, "forget": 3, "attack": 3, "heldout": 3, "near": 3},
    ood_settings=("photography", "cars", "wedding", "board_games"),
)
