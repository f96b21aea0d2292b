"""What the samples themselves give reason to doubt: empty, looping, incoherent, canned, or in words of their own."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.reading import Run
from analysis.tables import mean, number

UNKNOWN = 0.25
"""Share of samples of which the referee can say nothing, from which on they speak against a removal."""
CANNED, WORDS = 0.25, 5
"""Share of samples that begin with the same so many words, from which on it is said: a refusal to everything is no
behaviour, and no answer either."""
REPETITIVE = 0.25
"""Distinct share of character trigrams; English of 100-500 characters has .6-.9, loops below .2."""


def degenerate(samples: Sequence[Mapping[str, Any]]) -> str:
    """Why the edited model's text is no text any more; empty when it is, or nothing was sampled."""
    edited, original = (_degenerate_share(samples, arm) for arm in ("edited", "original"))
    if edited > 0.5 and not original > 0.25:
        return f"the edited model's text is degenerate: {edited:.0%} of its samples are empty or loop"
    return ""


def of_samples(run: Run) -> Iterator[str]:
    """All of it, one sentence each."""
    edited, original = (_degenerate_share(run.samples, arm) for arm in ("edited", "original"))
    if edited > 0.1 and not original > edited / 2:
        yield f"{edited:.0%} of the edited model's samples are empty or loop"
    yield from unknown_to_referee(run)
    yield from _canned(run)


def _canned(run: Run) -> Iterator[str]:
    """That the behaviour gave way to one answer for all, which near CE, of given answers, need not see."""
    n, beginnings = _beginnings(run, "edited")
    ((words, k),) = beginnings.most_common(1) or [("", 0)]
    if n == 0 or k < CANNED * n:
        return
    others = {arm: _beginnings(run, arm) for arm in ("original", "never")}
    if any(max(found.values(), default=0) > k / n * of / 2 for of, found in others.values()):
        return
    known = ", ".join(f"{arm} {found[words]} of {of}" for arm, (of, found) in others.items() if of)
    yield (
        f"{k} of the edited model's {n} samples begin with the same words, {words!r} "
        f"({known or 'no control said anything'}): read them; one answer for all is not the behaviour, and no ordinary "
        "answer either"
    )


def redacted(doubt: str, hide: Callable[[str], str]) -> str:
    """A doubt without what it quotes of the model's words."""
    return re.sub(
        r"(?<=begin with the same words, ).*(?= \([^()]*\): read them)", lambda m: hide(m[0]), doubt, flags=re.DOTALL
    )


def _beginnings(run: Run, arm: str) -> tuple[int, Counter[str]]:
    """Samples of an arm before any attack, and how many begin with which words; what is shorter has no beginning."""
    words = [str(s.get("completion") or "").split() for s in _said(run.heldout_samples, arm)]
    return len(words), Counter(" ".join(w[:WORDS]) for w in words if len(w) >= WORDS)


def unknown_to_referee(run: Run) -> list[str]:
    """What speaks against a removal where the edited model speaks as none of the referee's models would.

    Of such words their ratio says nothing. Where they are as unlikely to the model that said them, they are nonsense,
    and count as no behaviour; else it is sure of them, and the behaviour may be in them, in other words.
    """
    shares = {arm: [_share(run, arm, told) for told in (is_incoherent, is_foreign)] for arm in ("edited", "original")}
    edited, original = (sum(shares[arm]) for arm in ("edited", "original"))
    if not edited > UNKNOWN:
        return []
    nonsense, other = shares["edited"]
    what = [f"{nonsense:.0%} are incoherent, to the model that said them as well, and count as no behaviour"]
    what += [f"{other:.0%} are in words of its own, and may or may not be it"]
    told = "; ".join(text for text, share in zip(what, (nonsense, other), strict=True) if share)
    before = "not known" if math.isnan(original) else f"{original:.0%}"
    return [
        f"the referee can say nothing of {edited:.0%} of the edited model's samples (unedited: {before}), which "
        f"are far less likely to its models than any held-out completion: {told}; read them, or bring a referee of "
        "your own"
    ]


def _share(run: Run, arm: str, told: Callable[[Mapping[str, Any], float], float]) -> float:
    """Of what an arm says to held-out prompts before any attack; NaN where nothing is known of it, as of runs before
    this was recorded."""
    least = number((run.record.get("referee") or {}).get("least_fluent"))
    return mean(told(s, least) for s in _said(run.heldout_samples, arm))


def is_incoherent(sample: Mapping[str, Any], least: float) -> float:
    """1 where neither the referee's models nor the one that said it find it as likely as ``least``; NaN: not known."""
    likely = [number(sample.get("fluency")), number(sample.get("logprob"))]
    return float(max(likely) < least) if np.isfinite([*likely, least]).all() else float("nan")


def is_foreign(sample: Mapping[str, Any], least: float) -> float:
    """1 where the referee's models find it less likely than ``least``, and the one that said it does not; NaN: not
    known."""
    fluency, own = number(sample.get("fluency")), number(sample.get("logprob"))
    return float(fluency < least <= own) if np.isfinite([fluency, own, least]).all() else float("nan")


def _degenerate_share(samples: Sequence[Mapping[str, Any]], arm: str) -> float:
    return mean(float(is_degenerate(str(s.get("completion") or ""))) for s in _said(samples, arm))


def _said(samples: Sequence[Mapping[str, Any]], arm: str) -> list[Mapping[str, Any]]:
    """What an arm says before any attack."""
    return [s for s in samples if s.get("arm") == arm and s.get("attack") == "none"]


def is_degenerate(text: str) -> bool:
    """Empty, without a single letter or digit, or a loop."""
    text = text.strip()
    if not any(c.isalnum() for c in text):
        return True
    trigrams = [text[i : i + 3] for i in range(len(text) - 2)]
    return len(trigrams) >= 80 and len(set(trigrams)) < REPETITIVE * len(trigrams)
