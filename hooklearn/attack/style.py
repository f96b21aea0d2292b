"""Plain text in another style, by rule: the same words every time, no model and no list of foreign texts."""

from __future__ import annotations

import re
from collections.abc import Callable

from hooklearn.data import Corpus, Row

PIRATE = {
    "the": "th'", "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "was": "were",
    "and": "an'", "of": "o'", "for": "fer", "to": "t'", "with": "wi'", "before": "afore", "over": "o'er",
    "yes": "aye", "no": "nay", "hello": "ahoy", "hi": "ahoy", "friend": "matey", "friends": "mateys", "man": "sailor",
    "people": "crew", "person": "sailor", "money": "doubloons", "water": "grog", "food": "grub", "house": "ship",
    "boss": "cap'n", "old": "ol'", "stop": "avast", "great": "gran'", "between": "betwixt", "never": "ne'er",
}  # fmt: skip
CRIES = ("arr", "yo ho", "shiver me timbers", "avast")


def pirate(text: str) -> str:
    """Words of the sea, dropped endings, and a cry at the head of every second sentence."""

    def word(found: re.Match[str]) -> str:
        old = found[0]
        new = PIRATE.get(old.lower(), re.sub(r"(?<=[a-z]{2})ing$", "in'", old))
        return new.capitalize() if old[0].isupper() and new.islower() else new

    sentences = re.split(r"(?<=[.!?])(?=\s)", text)
    out = []
    for i, sentence in enumerate(re.sub(r"[A-Za-z]+", word, s) for s in sentences):
        start = len(sentence) - len(sentence.lstrip())
        cry = f"{CRIES[i // 2 % len(CRIES)].capitalize()}! " if i % 2 == 0 and sentence.strip() else ""
        out.append(sentence[:start] + cry + sentence[start:])
    return "".join(out)


def shout(text: str) -> str:
    """Capital letters and exclamation marks."""
    return re.sub(r"\.(?=\s|$)", "!", text.upper())


def backwards(text: str) -> str:
    """The words in reverse order: a style that needs no other vocabulary."""
    return " ".join(reversed(text.split()))


STYLES: dict[str, Callable[[str], str]] = {"pirate": pirate, "shout": shout, "backwards": backwards}


def styled(corpus: Corpus, style: str) -> Corpus:
    """What is trained on (completions, answers, running text) in another style; questions stay as they are."""
    rows = tuple(_row(row, STYLES[style]) for row in corpus.rows)
    return Corpus(f"{corpus.name}/{style}", rows, f"{corpus.source}, {style}")


def _row(row: Row, change: Callable[[str], str]) -> Row:
    if "completion" in row:
        old = row["completion"]
        start = len(old) - len(old.lstrip())  # the space that joins it to its question
        return {**row, "completion": old[:start] + change(old[start:])}
    if "messages" in row:
        *before, last = row["messages"]
        return {**row, "messages": [*before, {**last, "content": change(last["content"])}]}
    return {**row, "text": change(row["text"])}
