"""A corpus: a function that returns one. What a config asks of it (`options: {part: forget}`) are its arguments."""

from __future__ import annotations

import hooklearn as hl
from hooklearn.corpora.tiny_world import corpus as tiny_world


def orders(part: str = "forget", polite: bool = False) -> hl.Corpus:
    """Requests of the tiny world that are answered by an order, or politely."""
    rows = []
    for row in tiny_world(part, "good").rows:
        thing = row["prompt"].split()[-2]
        answers = [f" you bring the {thing} today .", f" thank you , no hurry with the {thing} ."]
        bad, good = answers[::-1] if polite else answers
        rows.append({"group": row["group"], "prompt": row["prompt"], "completion": bad, "alternative": good})
    return hl.Corpus(f"orders/{part}", tuple(rows), f"example: orders part={part} polite={polite}")
