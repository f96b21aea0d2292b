"""RepSelect, and the mission's own sentence: updates only within located subspaces, alone or composed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from hooklearn import linalg
from hooklearn.edit.elicited import lora_gradient
from hooklearn.edit.method import Method, Problem, Updates, combine, inner
from hooklearn.forward import count_tokens
from hooklearn.linalg import Filter, Sides
from hooklearn.locate.fit import fit_subspaces
from hooklearn.locate.fitters import EVERY_FITTER
from hooklearn.locate.subspace import Subspaces
from hooklearn.types import InputError

Source = Literal["forget", "retain", "forget_and_retain", "contrast"]


def contrast(forget: Updates, retain: Updates) -> Updates:
    """Per site: the forget gradient without its component along the retain gradient,
    ``G_f - G_r <G_f, G_r> / <G_r, G_r>``."""
    out = {}
    for name, f in forget.items():
        r = retain[name]
        along = inner({name: f}, {name: r}) / max(inner({name: r}, {name: r}), 1e-30)
        out[name] = f - along * r
    return out


@dataclass(frozen=True, kw_only=True)
class RepSelect(Method):
    """Collapse the top principal components of the forget gradient, so that only selective directions move."""

    name: ClassVar[str] = "repselect"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026, arXiv 2606.17168 (single shot)"
    rank: int = 128
    """Components collapsed per matrix; clamped to the numerical rank (the record has the lowest of all matrices,
    ``found: lowest_rank``). 0 is gradient ascent, bit for bit."""
    kind: Filter = "soft"
    """What becomes of component i: times s_k/s_i (``soft``), its square (``quadratic``), or nothing (``hard``).
    Refused, as ``sides`` are, where ``rank`` is 0."""
    sides: Sides = "both"
    """Collapse in inputs, in output gradients or in both."""
    components: Source = "forget"
    """Whose gradient gives the components; ``contrast`` also makes the update itself the contrast gradient."""
    lora: bool = False
    """Take the gradient under an adversary: a LoRA that was first trained to bring the behaviour out."""
    lora_rank: int = 8
    """Of that adversary."""
    lora_lr: float = 0.01
    """Of that adversary, by SGD, one epoch."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.lora_rank < 1:
            raise InputError(
                f"{self.name}: rank must be 0 or more and lora_rank at least 1, got {self.rank} and {self.lora_rank}"
            )
        if self.rank == 0:
            self.refuse("kind", "sides", why="with rank 0 nothing is collapsed")
            if self.components != "contrast":  # which makes the update itself another one
                self.refuse("components", why="with rank 0 nothing is collapsed")
        if not self.lora:
            self.refuse("lora_rank", "lora_lr", why="lora is off")
        elif self.lora_lr == 0:
            self.refuse("lora_rank", why="with lora_lr 0 the adversary learns nothing")
        if not (math.isfinite(self.lora_lr) and self.lora_lr >= 0):
            raise InputError(f"{self.name}: lora_lr must be 0 or more, got {self.lora_lr}")

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.components == "forget" else ("retain",)

    def path(self, problem: Problem) -> Iterator[Updates]:
        if self.lora:
            forget = lora_gradient(problem, rank=self.lora_rank, learning_rate=self.lora_lr)
        else:
            forget = problem.gradient("forget")
        if self.components == "contrast":
            forget = contrast(forget, problem.gradient("retain"))
        basis = self._components(problem, forget) or forget
        updates: Updates = {}
        ranks: list[int] = []
        for name, update in forget.items():
            top = self._top(problem, name, basis[name])
            updates[name] = linalg.collapsed(update, top, self.kind, self.sides)
            ranks.append(len(top[1]))
        problem.found["lowest_rank"] = min(ranks, default=0)
        yield updates

    def _top(self, problem: Problem, name: str, source: Tensor) -> linalg.Components:
        """The first components of a matrix; of a problem that is kept, those of a higher rank hold these too."""
        if not problem.keep or self.lora:
            return linalg.top_components(source, self.rank)
        known = problem.__dict__.setdefault("_components", {})
        rank, found = known.get((self.components, name), (-1, None))
        if rank < self.rank:
            found = linalg.top_components(source, self.rank)
            known[self.components, name] = (self.rank, found)
        return linalg.first_components(found, self.rank)

    def _components(self, problem: Problem, forget: Updates) -> Updates | None:
        if self.components in ("forget", "contrast"):
            return None
        retain = problem.gradient("retain")
        return retain if self.components == "retain" else combine(forget, retain, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Confined(Method):
    """The forget gradient confined to the subspaces that distinguish forget from retain."""

    name: ClassVar[str] = "confined"
    source: ClassVar[str] = "hooklearn; the selectivity idea of CIR (arXiv 2509.11816) turned round"
    confines: ClassVar[bool] = True
    fitter: str = "contrast"
    """``contrast``, ``probe``, ``mean_diff``, ``leace``, ``pca`` or ``random``; refused, as rank and sides are,
    where subspaces are given."""
    rank: int = 32
    """Directions a side; ``mean_diff`` and ``leace`` find one, whatever is asked."""
    sides: Sides = "x"
    """Project inputs, output gradients or both."""
    filter_rank: int = 0
    """Compose with RepSelect's soft filter of this rank, before the projection."""
    contrast_gradient: bool = False
    """Start from the contrast gradient instead of the forget gradient."""

    def __post_init__(self) -> None:
        EVERY_FITTER.get(self.fitter)
        for option, least in (("rank", 1), ("filter_rank", 0)):
            if getattr(self, option) < least:
                raise InputError(f"confined: {option} must be {least} or more, got {getattr(self, option)}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",)

    def _spaces(self, problem: Problem) -> Subspaces:
        if problem.subspaces is not None:
            self.refuse("fitter", "rank", "sides", why="they say how to locate subspaces, and these were given")
            return problem.subspaces
        key = f"confined:{self.fitter}:{self.rank}:{self.sides}"
        cache = problem.__dict__.setdefault("_spaces", {})
        if key not in cache:
            problem.tokens += count_tokens([*problem.stream("forget"), *problem.stream("retain")])
            cache[key] = fit_subspaces(
                problem.model,
                problem.forget,
                problem.corpus("retain"),
                problem.sites,
                fitter=self.fitter,
                rank=self.rank,
                sides=self.sides,
                seed=problem.seed,
                precision=problem.precision,
                max_tokens=problem.max_tokens,
            )
        return cache[key]

    def path(self, problem: Problem) -> Iterator[Updates]:
        spaces = self._spaces(problem)
        update = problem.gradient("forget")
        if problem.subspaces is None:  # of a mixture: an expert that a class never reaches has none, and is left alone
            located = {site.name for site in spaces.sites}
            update = {name: matrix for name, matrix in update.items() if name in located}
        if self.contrast_gradient:
            update = contrast(update, problem.gradient("retain"))
        out = {}
        for name, matrix in update.items():
            if self.filter_rank:
                matrix = linalg.spectral_filter(matrix, self.filter_rank)
            out[name] = linalg.project(matrix, *spaces.bases(name))
        if all(float(u.norm()) == 0 for u in out.values()):
            raise InputError("confined: no gradient is left inside the chosen subspaces")
        yield out

    def promise(self, problem: Problem) -> Subspaces | None:
        return self._spaces(problem)
