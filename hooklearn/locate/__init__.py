"""Locate: where, at hook points, forget and retain data can be told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from hooklearn import models
from hooklearn.callable_module import make_callable
from hooklearn.corpora.corpus import as_corpus
from hooklearn.data import Corpus
from hooklearn.forward import Precision
from hooklearn.linalg import Sides
from hooklearn.locate.fit import Collected, collect, sweep
from hooklearn.locate.fitters import FITTERS
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.types import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FITTERS",
    "Collected",
    "Subspace",
    "Subspaces",
    "collect",
    "locate",
    "locate_sweep",
    "sweep",
]


def locate(
    model: Any,
    forget: Corpus,
    retain: Corpus,
    *,
    sites: str | Sequence[str] = "mlp",
    layers: Iterable[int] | int | str | None = None,
    fitter: str = "contrast",
    rank: int = 8,
    sides: Sides = "x",
    directions: Subspaces | None = None,
    seed: int = 0,
    precision: Precision = "auto",
) -> Subspaces:
    """Subspaces that distinguish forget from retain, each with its held-out separation and nulls.

    Args:
        directions: subspaces that were found elsewhere (:func:`hooklearn.read_directions`), to be measured as they are:
            nothing is fitted, and sites, fitter, rank and sides are theirs.
        sites, layers: as in :func:`hooklearn.models.sites`.
        fitter: one of ``pca contrast mean_diff leace probe random``.
        sides: ``x`` (inputs), ``g`` (output gradients) or ``both``.
    Raises:
        InputError: something is no model, no corpus or no side; forget is retain; somebody has hooked into the model.
    Returns:
        :class:`Subspaces`; ``.to_dataframe()`` answers "which layer?".
    """
    _check(model, forget, retain, sides)
    if directions is not None:
        if not isinstance(directions, Subspaces):
            raise InputError(
                f"directions must be hooklearn.Subspaces, got {type(directions).__name__} {directions!r:.60}; "
                "hooklearn.read_directions(path) reads some"
            )
        theirs: set[Sides] = {side for _, side in directions}
        sides = theirs.pop() if len(theirs) == 1 else "both"
        data = collect(model, forget, retain, directions.sites, sides=sides, seed=seed, precision=precision)
        return data.judge(directions, seed=seed)
    chosen = models.sites(model, sites, layers)
    data = collect(model, forget, retain, chosen, sides=sides, seed=seed, precision=precision)
    return data.fit(fitter, rank, seed=seed)


def locate_sweep(
    model: Any,
    forget: Corpus,
    retain: Corpus,
    *,
    sites: str | Sequence[str] = "mlp",
    layers: Iterable[int] | int | str | None = None,
    fitters: Sequence[str] = ("pca", "contrast", "mean_diff", "probe"),
    ranks: Sequence[int] = (1, 4, 16),
    sides: Sides = "x",
    seed: int = 0,
) -> pd.DataFrame:
    """Every fitter at every rank over one capture, as a data frame; ``analysis.plots.separation_map`` draws it."""
    _check(model, forget, retain, sides)
    chosen = models.sites(model, sites, layers)
    return sweep(collect(model, forget, retain, chosen, sides=sides, seed=seed), fitters, ranks, seed=seed)


def _check(model: Any, forget: Corpus, retain: Corpus, sides: Any) -> None:
    models.check_unhooked(models.checked(model))
    models.check_differentiable()
    as_corpus(forget, "forget")
    as_corpus(retain, "retain")
    if sides not in (valid := get_args(Sides)):
        raise InputError(f"sides must be one of {', '.join(valid)}, got {sides!r:.60}")
    if forget.hash == retain.hash:
        raise InputError(
            f"forget and retain are the same {len(forget)} rows ({forget.name!r}): nothing tells them apart"
        )


make_callable(__name__)
