"""Prompts that begin alike, as two rectangles of tokens: the prefixes that several share, and what follows in each.

A chat template's system prompt, the same demonstrations before many questions: read once, the keys and values of a
prefix serve every prompt that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hooklearn.packing import in_common

Block = tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]
"""Token ids, left-padded, and 1 where there is a token."""


@dataclass(frozen=True)
class Prefix:
    length: int
    """In tokens."""
    members: tuple[int, ...]
    """Numbers of the prompts that begin with it."""


@dataclass(frozen=True)
class SharedPrefixes:
    """Every prompt has one of the prefixes, and at least one token after it: the next one is chosen by that."""

    prompts: Sequence[Sequence[int]]
    prefixes: tuple[Prefix, ...]

    @property
    def tokens(self) -> int:
        """How many are read, padding included."""
        rest = max(len(self.prompts[i]) - p.length for p in self.prefixes for i in p.members)
        return len(self.prefixes) * max(p.length for p in self.prefixes) + len(self.prompts) * rest

    @property
    def owner(self) -> Int[Tensor, " prompt"]:
        """Which prefix every prompt has."""
        found = {i: n for n, p in enumerate(self.prefixes) for i in p.members}
        return torch.tensor([found[i] for i in range(len(self.prompts))])

    def beginnings(self, pad: int) -> Block:
        return left_padded([self.prompts[p.members[0]][: p.length] for p in self.prefixes], pad)

    def rests(self, pad: int) -> Block:
        return left_padded(
            [prompt[self.prefixes[n].length :] for prompt, n in zip(self.prompts, self.owner.tolist(), strict=True)],
            pad,
        )


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> SharedPrefixes | None:
    """The prefixes by which fewest tokens are read, padding included; None where that is each prompt by itself.

    Tried are, for every number of tokens, the runs of prompts that share so many with the next in sorted order.

    Examples:
        >>> shared_prefixes([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6]]).prefixes
        (Prefix(length=3, members=(0, 1, 2)),)
        >>> shared_prefixes([[1, 2], [3, 4]]) is None
        True
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    common = [in_common(prompts[a], prompts[b]) for a, b in pairwise(order)]
    tried = [SharedPrefixes(prompts, _runs(prompts, order, common, depth)) for depth in sorted(set(common) - {0})]
    best = min(tried, key=lambda found: found.tokens, default=None)
    alone = len(prompts) * max(map(len, prompts), default=0)
    return best if best is not None and best.tokens < alone else None


def _runs(
    prompts: Sequence[Sequence[int]], order: Sequence[int], common: Sequence[int], depth: int
) -> tuple[Prefix, ...]:
    """Neighbours with ``depth`` tokens in common or more, each run with all that its prompts have in common."""
    runs = [[order[0]]]
    for i, n in zip(order[1:], common, strict=True):
        if n < depth:
            runs.append([])
        runs[-1].append(i)
    return tuple(Prefix(_length([prompts[i] for i in run]), tuple(run)) for run in runs)


def _length(run: Sequence[Sequence[int]]) -> int:
    """Sorted prompts have in common what the first and the last have; one token of the shortest is left to follow."""
    return min(in_common(run[0], run[-1]), min(map(len, run)) - 1)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> Block:
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    return pad_sequence(ids, True, pad, "left"), pad_sequence(mask, True, 0, "left")
