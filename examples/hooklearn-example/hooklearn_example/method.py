"""A method: one frozen dataclass. Its fields are its options, `path` yields one update per site."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import hooklearn as hl
from hooklearn.edit.method import Method, Problem, Updates


@dataclass(frozen=True, kw_only=True)
class SignAscent(Method):
    """The sign of the forget gradient, larger entries only."""

    name: ClassVar[str] = "sign_ascent"
    source: ClassVar[str] = "an example"
    keep: float = 0.1
    """Share of the entries of each matrix that are changed."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise hl.InputError(f"method {self.name!r}: keep must be above 0 and at most 1, got {self.keep}")

    def path(self, problem: Problem) -> Iterator[Updates]:
        yield {site: self._sign(g) for site, g in problem.gradient("forget").items()}

    def _sign(self, g):
        size = g.abs().flatten()
        # not quantile(), which takes 16 million entries at most
        least = size.kthvalue(max(1, round((1 - self.keep) * size.numel()))).values
        return g.sign() * (g.abs() >= least)
