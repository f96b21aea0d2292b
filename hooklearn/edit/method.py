"""One interface for every editing method: a path of deltas from the unedited model.

A one-shot method yields a single delta, a ray that the budget solver scales; an iterative method yields where it
stands after every few steps. The solver (``budget.py``) decides where on the path the edit ends.
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from hooklearn import integrity, memory, models, parallel
from hooklearn.data import Corpus, Encoded, TokenBatch, batches, encode
from hooklearn.deltas import Delta
from hooklearn.forward import Precision, count_tokens
from hooklearn.locate.capture import Labels, weight_gradients
from hooklearn.locate.moments import SiteMoments, site_moments
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.moments import Moments
from hooklearn.referees import Referee
from hooklearn.traits import row_of
from hooklearn.types import InputError, Site
from hooklearn.validation import build

Updates = dict[str, Tensor]
"""site name -> update ``[d_out, d_in]``."""
CURVATURE = "retain or reference"
"""What :attr:`Problem.retain_moments` are read from, in the words of :attr:`Method.needs`."""
HALVES = ("retain/1", "retain/2")
"""The retain corpus in two: whole groups, so that no fact is in both."""


class Problem:
    """What a method is given: the model, where it may edit, what must go and what must stay.

    Gradients and moments are computed once and shared by all methods that are tried on the same problem.
    """

    def __init__(
        self,
        model: Any,
        sites: Sequence[Site],
        forget: Corpus,
        retain: Corpus | None = None,
        reference: Corpus | None = None,
        *,
        subspaces: Subspaces | None = None,
        seed: int = 0,
        precision: Precision = "auto",
        max_tokens: int = 1024,
        keep: bool = True,
        site_batch: int | None = None,
        never: Any = None,
        referee: Referee | None = None,
    ) -> None:
        """
        Args:
            never: a model that never learned it, for the reference arm that goes there; no other method looks at it.
            site_batch: hold the retain curvature of so many sites at a time, for one more pass of its text each; the
                labels are drawn alike, so the edit is the same. None: of all sites at once.
            keep: keep gradients and moments for further methods on the same problem; without it they are dropped
                as soon as a one-shot method has its direction (a gigabyte for a small model).
            forget: completions whose probability must fall.
            retain: *good* completions, to the same prompts (a tendency) or other facts of the same form.
            reference: running text that, with retain, gives the retain curvature. Text given here must never
                measure disruption.
            referee: says which of the model's own answers are the behaviour, to methods that ask (``refereed``).
        """
        if retain is not None and retain.hash == forget.hash:
            raise InputError(f"forget and retain are the same corpus ({forget.name!r}, {len(forget)} rows)")
        if site_batch is not None and site_batch < 1:
            raise InputError(f"site_batch must be 1 or more, got {site_batch}")
        self.model = model
        self.sites = list(sites)
        self.site_batch = site_batch
        self.never = never
        self.forget = forget
        self.retain = retain
        self.reference = reference
        self.subspaces = subspaces
        self.seed = seed
        self.precision: Precision = precision
        self.max_tokens = max_tokens
        self.keep = keep
        self.referee = referee
        self.tokens = 0
        self.found: dict[str, float] = {}
        """What a method worked out on its way and its record should show."""
        self._gradients: dict[str, Updates] = {}

    # ------------------------------------------------------------------------------------- corpora

    def release(self) -> None:
        """Drop everything that was computed; it is computed again when asked for."""
        self._gradients.clear()
        for name in ("retain_moments", "empirical_moments", "forget_moments"):
            self.__dict__.pop(name, None)

    def corpus(self, role: str) -> Corpus:
        """By role; a half of ``retain`` by its name in :data:`HALVES`."""
        if role in HALVES:
            return self._halves[role]
        found = {"forget": self.forget, "retain": self.retain, "reference": self.reference}[role]
        if found is None:
            raise InputError(f"this method needs a {role!r} corpus, and none was given")
        return found

    @cached_property
    def _halves(self) -> dict[str, Corpus]:
        whole = self.corpus("retain")
        if len(set(whole.groups)) < 2:
            raise InputError(f"retain corpus {whole.name!r} has a single group: it cannot be halved")
        return whole.split(**dict.fromkeys(HALVES, 1.0))

    def encoded(self, of: str | Corpus) -> list[Encoded]:
        corpus = self.corpus(of) if isinstance(of, str) else of
        return encode(corpus, models.tokenizer_of(self.model))

    def stream(self, role: str) -> list[TokenBatch]:
        return batches(self.encoded(role), max_tokens=self.max_tokens)

    # -------------------------------------------------------------------------- gradients, curvature

    def gradient(self, role: str) -> Updates:
        """Gradient of the summed NLL of a corpus, per site, float32 or better."""
        if role not in self._gradients:
            self._gradients[role] = self.fresh_gradient(role)
        return self._gradients[role]

    def taken_gradient(self, role: str) -> Updates:
        """:meth:`gradient`, for the caller to take apart where nothing is kept for further methods."""
        found = self.gradient(role)
        return found if self.keep else self._gradients.pop(role)

    def fresh_gradient(self, of: str | Corpus) -> Updates:
        """The same, in whatever state the model is now (an adversary active, say), of a role or of other text; not
        kept."""
        # a sum over sequences: what they begin with goes through the model once
        stream = batches(self.encoded(of), max_tokens=self.max_tokens, share=row_of(self.model))
        total, tokens = weight_gradients(self.model, stream, self.sites, precision=self.precision, seed=self.seed)
        self.tokens += tokens
        memory.give_back()
        return total

    @cached_property
    def retain_moments(self) -> dict[str, SiteMoments]:
        """E[x x^T] and E[g g^T] over retain and reference text, labels sampled from the model (true Fisher)."""
        return self._curvature(self.sites, "sampled")

    @cached_property
    def empirical_moments(self) -> dict[str, SiteMoments]:
        """The same with the labels that the text has itself (empirical Fisher)."""
        return self._curvature(self.sites, "given")

    def curvature(self, labels: Labels) -> dict[str, SiteMoments]:
        """:attr:`retain_moments`, or with ``given`` labels :attr:`empirical_moments`: each computed once."""
        return self.retain_moments if labels == "sampled" else self.empirical_moments

    def retain_moments_in_turn(self, labels: Labels = "sampled") -> Iterator[tuple[str, SiteMoments]]:
        """(site, its :meth:`curvature`), of ``site_batch`` sites at a time where that was asked for."""
        if self.site_batch is None:
            yield from self.curvature(labels).items()
            return
        for start in range(0, len(self.sites), self.site_batch):
            yield from self._curvature(self.sites[start : start + self.site_batch], labels).items()

    def _curvature(self, sites: Sequence[Site], labels: Labels) -> dict[str, SiteMoments]:
        roles = [r for r, c in (("retain", self.retain), ("reference", self.reference)) if c]
        if not roles:
            raise InputError("the retain curvature needs a 'retain' or a 'reference' corpus")
        stream = [b for role in roles for b in self.curvature_stream(role)]
        self.tokens += count_tokens(stream)
        moments = site_moments(
            self.model,
            stream,
            sites,
            labels=labels,
            precision=self.precision,
            seed=self.seed,
        )
        memory.give_back()  # before factors and solutions are made
        return moments

    def curvature_stream(self, role: str) -> list[TokenBatch]:
        return self.stream(role)

    @cached_property
    def forget_moments(self) -> dict[str, SiteMoments]:
        """The same over the forget completions, with their given labels."""
        stream = self.stream("forget")
        self.tokens += count_tokens(stream)
        return site_moments(self.model, stream, self.sites, precision=self.precision)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A final dataclass per method: its fields are its options, its docstring's first line what it is."""

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper or origin of the formula."""
    ray: ClassVar[bool] = True
    """True: the path is one direction of free length. False: it is walked step by step."""
    step_length: ClassVar[str] = "learning_rate"
    """Option in proportion to which a walk's steps are long: made smaller where the first point is over the budget. A
    method without it is taken as it walks."""
    confines: ClassVar[bool] = False
    """It works within given subspaces by itself. The direction of another is projected; a walk is refused."""

    needs_never: ClassVar[bool] = False
    """It is given the weights of the never-learned control: a reference arm. A run without such a model is refused."""

    @property
    def trains(self) -> bool:
        """Whether it takes steps in the stored weights, of which a short type rounds most away."""
        return not self.ray

    @property
    def sharded(self) -> bool:
        """Whether it works on weights that are spread over processes, with no more than one matrix whole at a time."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles of the corpora that it cannot do without, beside forget and where no subspaces are given; one of
        several is enough where it says ``retain or reference``. A run without them is refused before it begins."""
        return ()

    @property
    def refereed(self) -> bool:
        """Whether it asks :attr:`Problem.referee`, which in a run is the one that judges the edited model's samples."""
        return False

    def check(self, model: Any) -> None:  # noqa: B027 (most methods work on every model)
        """Raises InputError where it cannot work on this model as asked; called before anything is measured."""

    @abstractmethod
    def path(self, problem: Problem) -> Iterator[Updates]:
        """Cumulative updates, from nothing on; the model is unedited whenever control is given back."""

    def promise(self, problem: Problem) -> Subspaces | None:  # noqa: ARG002 (an interface)
        """The subspaces the update promises to stay in, for the certificate."""
        return None

    @classmethod
    def summary(cls) -> str:
        return (cls.__doc__ or "").strip().splitlines()[0]

    def options(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def refuse(self, *names: str, why: str) -> None:
        """Raises InputError where one of these options was set, to something else than its default, and changes
        nothing."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        if given := [n for n in names if getattr(self, n) != defaults[n]]:
            said = ", ".join(f"{n} {getattr(self, n)!r}" for n in given)
            raise InputError(f"{self.name}: {said} would change nothing: {why}")

    @classmethod
    def with_options(cls, options: Mapping[str, Any]) -> Method:
        """Build from a config; an unknown option is an error that names the nearest valid one."""
        valid = [f.name for f in dataclasses.fields(cls)]
        for key in options:
            if key not in valid:
                near = difflib.get_close_matches(key, valid, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(
                    f"method {cls.name!r} has no option {key!r}; valid: {', '.join(valid) or 'none'}{hint}"
                )
        return build(cls, options, f"method {cls.name!r}")


def check_read(moments: Moments, where: str) -> None:
    """Raises InputError where no retain token was seen: without curvature any update would seem to cost nothing."""
    if moments.n == 0:
        raise InputError(f"no retain token was sent to {where}: leave that expert out, or give more retain text")


def inner(a: Updates, b: Updates) -> float:
    """Sum over sites of the Frobenius inner product, float64."""
    return sum(float(parallel.whole((a[n].double() * b[n].double()).sum())) for n in a)


def combine(a: Updates, b: Updates, wa: float, wb: float) -> Updates:
    return {n: wa * a[n] + wb * b[n] for n in a}


def delta_of(updates: Updates) -> Delta:
    """A delta that is not yet bound to a base model (inside the solver)."""
    return Delta(updates)


def norm(updates: Updates) -> float:
    return inner(updates, updates) ** 0.5


def check_finite(updates: Updates, what: str) -> Updates:
    from hooklearn.types import NumericalError

    for name, update in updates.items():
        if not integrity.is_finite(update):
            raise NumericalError(f"{what}: update of {name} is not finite")
    return updates


def spaces_in(model: Any, given: Any) -> Subspaces:
    """What somebody gave as ``subspace``, if it is of this model.

    Raises:
        InputError: it is none, of sites that this model lacks, or of other widths.
    """
    if isinstance(given, Subspace):
        given = Subspaces({(given.site.name, given.side): given})
    if not isinstance(given, Subspaces):
        raise InputError(
            f"subspace must be hooklearn.Subspaces or one Subspace, got {type(given).__name__} {given!r:.60}; "
            "hooklearn.Subspaces.load(path) reads some"
        )
    own = {site.name: site for site in models.sites(model, [site.name for site in given.sites])}
    for site in given.sites:
        here = own[site.name]
        if (site.d_in, site.d_out) != (here.d_in, here.d_out):
            raise InputError(
                f"subspace: located where {site.name!r} goes from {site.d_in} to {site.d_out} wide, and here it goes "
                f"from {here.d_in} to {here.d_out}: it is of another model"
            )
    return given
