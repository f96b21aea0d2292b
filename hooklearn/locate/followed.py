"""The located directions while a model is attacked: does what separated the classes come back along them, or stay away?

    follower = hl.follow(model, sample, forget, retain)
    curves = hl.attack(model, delta, "relearn", ..., onlooker=follower)
    analysis.explore(follower.sample())                 # its slider now moves through the attack

At every look of the attack, at every arm: the class means on every component. At the ``PLACES`` places that separate
best also the tokens of the edited arm, and the energy of what edit and attacker added to the weight: the share of
``|dW|_F^2`` along each component ``q`` (``|dW q|^2`` on the input side x, ``|q^T dW|^2`` on the gradient side g), and
along its own singular directions (``sigma_i^2``). Texts have the same two: energy along the components, and
eigenvalues of their second moment. A random direction holds 1 / width of anything. ``of = classes`` is the squared
distance of the class means along a component, as a share of what the original has along all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import integrity, linalg, models
from hooklearn.data import Corpus
from hooklearn.forward import Precision
from hooklearn.locate.moments import site_moments
from hooklearn.locate.projected import CORPORA, Look, Seen, texts_of
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.locate.tokens import TokenSample, coded, read_sample, write_sample
from hooklearn.types import InputError

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]
TOKENS, PLACES = 2_000, 4
"""How many tokens are followed, and at how many places."""
OWN = 32
"""Most singular directions (or eigenvectors) of which the energy is kept."""
ARMS = ("edited", "original", "never")
DIRECTIONS = ["site", "layer", "module", "side", "of", "arm", "step", "along", "component", "share", "width"]
"""Columns of ``directions.parquet``."""


@dataclass(frozen=True)
class Followed:
    """What was seen along one attack: see ``analysis.explorer.payload.Sample`` and ``docs/run-folder.md``."""

    attack: str
    """Its name and setting."""
    time: pd.DataFrame
    """arm, step: the original first, then the looks in their order."""
    means: Float[Array, "time component class"]
    frames: Mapping[int, Array]
    frame_scales: Mapping[int, Array]
    directions: pd.DataFrame

    def add_to(self, path: str | Path) -> None:
        """Put it into a saved :class:`TokenSample`, in place of what was followed before."""
        arrays, tables, facts = read_sample(path)
        kept = {n: a for n, a in arrays.items() if not n.startswith("frame")}
        kept |= {"means": self.means} | {f"frames.{p}": a for p, a in self.frames.items()}
        kept |= {f"frame_scales.{p}": a for p, a in self.frame_scales.items()}
        write_sample(path, kept, tables | {"time": self.time.to_dict("list")}, facts | {"attack": self.attack})


@dataclass
class Follower:
    """Eyes for ``Arena.onlooker``. Of several attackers it keeps the last, which is the strongest of a sweep.

    Args:
        model: unedited.
        chosen: (text, position) of the tokens, as the sample has them.
        only: the one (attack, setting) to follow; others cost a pass over the texts at each of their looks.
        of: the sample that :meth:`sample` gives back with the attack.
    """

    model: Any
    spaces: Subspaces
    chosen: Sequence[tuple[int, int]]
    forget: Corpus
    retain: Corpus
    unrelated: Corpus | None = None
    seed: int = 0
    precision: Precision = "auto"
    max_tokens: int = 1024
    only: tuple[str, str] | None = None
    of: TokenSample | None = None
    _attack: tuple[str, str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        corpora = {"forget": self.forget, "retain": self.retain}
        texts = texts_of(self.model, corpora | ({"unrelated": self.unrelated} if self.unrelated else {}), self.seed)
        wanted = {t for t, _ in self.chosen[:TOKENS]}
        if max(wanted, default=0) >= len(texts):
            raise InputError(
                f"the sample has tokens of text {max(wanted)}, and these corpora hold {len(texts)} texts; "
                "give the forget, retain and unrelated corpora that were sampled"
            )
        judged = [i for i, t in enumerate(texts) if t.held_out and CORPORA[t.corpus] != "unrelated"]
        kept = sorted({*judged, *wanted})
        number = {i: n for n, i in enumerate(kept)}
        self._chosen = [(number[t], at) for t, at in self.chosen[:TOKENS]]
        place = list(self.spaces.values())
        self._look, self._classes = (
            Look(self.model, place, [texts[i] for i in of], self.precision, self.max_tokens) for of in (kept, judged)
        )
        merit = [s.auc - s.auc_shuffled if s.auc == s.auc else -1.0 for s in place]
        self._places = sorted(range(len(place)), key=lambda p: -merit[p])[:PLACES]
        self._weights = self._now(self.model)
        seen = self._classes.at([])
        self._first = _means(self._look, seen)
        self._texts = [*self._text_energy(seen), *self._text_spectra()]

    def __call__(self, attack: str, setting: str, arm: str, step: int, model: Any) -> None:
        """A look at an arm in the state that it is in after ``step`` steps."""
        if arm not in ARMS or self.only not in (None, (attack, setting)) or integrity.unlike(model, self.model):
            return  # of a control of another shape these places do not exist
        if self._attack != (attack, setting) or (arm, step) == ("edited", 0):  # of an edit, or of a fold
            self._attack = (attack, setting)
            self._points, self._means, self._moved = [("original", 0)], [self._first], list[Tensor]()
            self._rows = [*self._texts, *self._distances("original", 0, self._first)]
            self._start: dict[int, Tensor] = {}
        seen = self._look.at(self._chosen, model) if arm == "edited" else self._classes.at([], model)
        means, weights = _means(self._look, seen), self._now(model)
        if not np.isfinite(means).all() or not all(bool(w.isfinite().all()) for w in weights.values()):
            return  # it diverges: the curve will say so
        if step == 0:
            self._start = weights
            if arm == "edited":
                self._rows += self._update_rows("edit", arm, step, self._weights, weights)
        else:
            self._rows += self._update_rows("attack", arm, step, self._start, weights)
        if (arm, step) != ("original", 0):
            self._points.append((arm, step))
            self._means.append(means)
            self._rows += self._distances(arm, step, means)
        if arm == "edited":
            self._moved.append(seen.coordinates)

    @property
    def seen_any(self) -> bool:
        return self._attack is not None

    def followed(self) -> Followed:
        """Raises InputError: no attack by training that was followed has been run."""
        import pandas as pd

        if self._attack is None:
            raise InputError("nothing was followed; pass this as onlooker= to an attack by full fine-tuning")
        frames, scales = {}, {}
        for p in self._places if self._moved else []:
            stack = torch.stack([m[:, self._look.own[p]] for m in self._moved])
            flat, scales[p] = coded(stack.flatten(0, 1))
            frames[p] = flat.reshape(stack.shape)
        return Followed(
            " ".join(filter(None, self._attack)), pd.DataFrame(self._points, columns=["arm", "step"]),
            np.stack(self._means), frames, scales, pd.DataFrame(self._rows, columns=DIRECTIONS),
        )  # fmt: skip

    def sample(self) -> TokenSample:
        """The sample, with the attack: for ``analysis.explore``."""
        if self.of is None:
            raise InputError("this follower was not made of a sample: use hl.follow")
        f = self.followed()
        return replace(
            self.of, time=f.time, means=f.means, frames=f.frames, frame_scales=f.frame_scales,
            facts={**self.of.facts, "attack": f.attack},
        )  # fmt: skip

    # --------------------------------------------------------------------------------- energies

    def _now(self, model: Any) -> dict[int, Tensor]:
        return {p: models.weight(model, self._space(p).site).detach().float().clone() for p in self._places}

    def _space(self, p: int) -> Subspace:
        return self._look.spaces[p]

    def _update_rows(self, of: str, arm: str, step: int, before: Mapping[int, Tensor], after: Mapping[int, Tensor]):
        for p in self._places:
            update = after[p] - before[p]
            whole = float(update.square().sum())
            if not whole:  # this weight is not moved
                continue
            basis = self._look.basis[p][:, : self._look.k[p]]
            along = update @ basis if self._space(p).side == "x" else update.T @ basis
            yield from self._rows_of(p, of, arm, step, "located", along.square().sum(0) / whole)
            own = torch.linalg.svdvals(update).square()[:OWN]
            yield from self._rows_of(p, of, arm, step, "own", own / whole)

    def _distances(self, arm: str, step: int, means: Array):
        """Squared distance of the class means along every component, as a share of the original's in all of them."""
        for p in self._places:
            before, now = (np.square(m[self._look.own[p], 0] - m[self._look.own[p], 1]) for m in (self._first, means))
            shares = torch.from_numpy(now / max(float(before.sum()), 1e-30))
            yield from self._rows_of(p, "classes", arm, step, "located", shares)

    def _text_energy(self, seen: Seen):
        for p in self._places:
            for c, name in enumerate(CORPORA[:2]):
                yield from self._rows_of(p, name, "original", 0, "located", seen.energy(p)[c, : self._look.k[p]])

    def _text_spectra(self):
        sites = list(dict.fromkeys(self._space(p).site for p in self._places))
        sides = "both" if any(self._space(p).side == "g" for p in self._places) else "x"
        for c, name in enumerate(CORPORA[:2]):
            stream = self._classes.stream(c)
            moments = site_moments(
                self.model, stream, sites, sides=sides, positions="labelled", precision=self.precision
            )
            for p in self._places:
                second = moments[self._space(p).site.name].side(self._space(p).side).mean_second()
                _, values = linalg.pca(second, min(OWN, len(second)))
                yield from self._rows_of(p, name, "original", 0, "own", values / second.trace())

    def _rows_of(self, p: int, of: str, arm: str, step: int, along: str, shares: Tensor):
        space = self._space(p)
        where = (space.site.name, space.site.layer, space.site.module, space.side)
        for i, share in enumerate(shares.tolist()):
            yield (*where, of, arm, step, along, i, share, space.basis.shape[0])


def _means(look: Look, seen: Seen) -> Array:
    """``[component, 2]``: mean coordinates of held-out forget and retain tokens."""
    parts = [seen.mean(p)[:2] @ look.basis[p][:, :k].cpu() for p, k in enumerate(look.k)]
    return torch.cat(parts, 1).T.numpy()


def follow(
    model: Any,
    sample: TokenSample,
    forget: Corpus,
    retain: Corpus,
    *,
    unrelated: Corpus | None = None,
    precision: Precision = "auto",
) -> Follower:
    """Eyes for an attack, on the tokens and directions of a sample.

    Args:
        model: as it was sampled, unedited; ``forget``, ``retain`` and ``unrelated`` too are those of the sample.
    Returns:
        What ``hl.attack`` takes as ``onlooker``; afterwards ``.sample()`` goes into ``analysis.explore``.
    """
    chosen = list(zip(sample.tokens["text"].tolist(), sample.tokens["position"].tolist(), strict=True))
    return Follower(
        model, sample.spaces, chosen, forget, retain, unrelated, seed=sample.facts["seed"], precision=precision,
        of=sample,
    )  # fmt: skip


def tokens_of(path: str | Path) -> list[tuple[int, int]]:
    """(text, position) of the tokens of a saved sample."""
    tokens = read_sample(path)[1]["tokens"]
    return list(zip(tokens["text"], tokens["position"], strict=True))
