"""Subspaces: directions at one side of one site, to look at, to select among and to edit in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import disk, linalg
from hooklearn.jsonable import jsonable
from hooklearn.moments import Moments
from hooklearn.sharing import Shareable
from hooklearn.site_names import chosen_layers, matches
from hooklearn.types import NAN, InputError, Side, Site

if TYPE_CHECKING:
    import pandas as pd

RARE = 0.1
"""Share of an even share of the tokens below which an expert counts as rarely routed to."""


FILE = "subspaces.safetensors"
VERSION = "2"
"""Of the file; the first held bases only."""
TENSORS = ("basis", "vectors", "values")
NUMBERS = ("auc", "auc_shuffled", "auc_random", "forget_energy", "retain_energy", "random_energy", "condition")


@dataclass(frozen=True)
class Subspace(Shareable):
    """An orthonormal basis at one side of one site, with the fitter's own vectors and its nulls."""

    site: Site
    side: Side
    fitter: str
    basis: Float[Tensor, "d rank"] = field(repr=False)
    vectors: Float[Tensor, "d rank"] = field(repr=False)
    """The fitter's own vectors, oblique for generalised eigenvectors; same span as ``basis``."""
    values: Float[Tensor, " rank"] = field(repr=False)
    auc: float = NAN
    """Held-out AUC (groups never fitted on) of a logistic probe on the projected item means."""
    auc_shuffled: float = NAN
    auc_random: float = NAN
    forget_energy: float = NAN
    retain_energy: float = NAN
    """Share of E||x||^2 on retain tokens inside: what would be lost by removing it."""
    random_energy: float = NAN
    condition: float = NAN
    """Condition number of the eigenproblem that was solved; NaN for fitters that solve none with a metric."""

    @staticmethod
    def of(
        site: Site,
        side: Side,
        fitter: str,
        vectors: Tensor,
        values: Tensor,
        *,
        moments: tuple[Moments, Moments] | None = None,
    ) -> Subspace:
        wanted = site.width(side)
        if vectors.ndim != 2 or vectors.shape[0] != wanted:
            raise InputError(
                f"vectors at {site.name} ({side}) must be [{wanted}, rank], one a column, got {list(vectors.shape)}; "
                "a single direction is v[:, None]"
            )
        basis = linalg.orthonormal(vectors)
        energies = {}
        if moments is not None:
            energies = {
                "forget_energy": moments[0].energy(basis),
                "retain_energy": moments[1].energy(basis),
                "random_energy": basis.shape[1] / basis.shape[0],
            }
        return Subspace(site, side, fitter, basis, vectors, values, **energies)

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @property
    def place(self) -> tuple[Site, Side]:
        return self.site, self.side

    @property
    def components_(self) -> Float[Tensor, "rank d"]:
        """As in scikit-learn: one component per row."""
        return self.basis.T

    def transform(self, rows: Float[Tensor, "token d"]) -> Float[Tensor, "token rank"]:
        return rows.to(self.basis.dtype) @ self.basis

    def top(self, rank: int) -> Subspace:
        """The first ``rank`` of the fitter's vectors; statistics that no longer hold become NaN."""
        self._check_rank(rank)
        return Subspace.of(self.site, self.side, self.fitter, self.vectors[:, :rank], self.values[:rank])

    def select(self, components: Sequence[int]) -> Subspace:
        """Only these components, by number."""
        self._check_rank(max(components) + 1)
        index = torch.tensor(list(components))
        return Subspace.of(self.site, self.side, self.fitter, self.vectors[:, index], self.values[index])

    def __or__(self, other: Subspace) -> Subspace:
        """The span of both."""
        self._same_place(other)
        both = torch.cat([self.basis, other.basis.to(self.basis.device)], 1)
        u, s, _ = torch.linalg.svd(both, full_matrices=False)
        kept = u[:, s > 1e-5 * s[0]]
        return Subspace.of(self.site, self.side, f"{self.fitter}|{other.fitter}", kept, s[: kept.shape[1]])

    def __matmul__(self, other: Subspace) -> Tensor:
        """Cosines of the principal angles."""
        self._same_place(other)
        return linalg.principal_cosines(self.basis, other.basis.to(self.basis.device))

    def _check_rank(self, rank: int) -> None:
        if not 1 <= rank <= self.rank:
            raise InputError(f"rank {rank} of a subspace that has {self.rank} components")

    def _same_place(self, other: Subspace) -> None:
        if self.place != other.place:
            raise InputError(
                f"subspaces of different places: {self.site.name} ({self.side}), {other.site.name} ({other.side})"
            )

    def _write(self, folder: Path) -> None:
        Subspaces({(self.site.name, self.side): self})._write(folder)

    @classmethod
    def _read(cls, folder: Path) -> Subspace:
        spaces = Subspaces._read(folder)
        if len(spaces) != 1:
            raise InputError(f"{folder}: holds {len(spaces)} subspaces; read them with Subspaces.from_pretrained")
        return next(iter(spaces.values()))

    def _facts(self) -> tuple[str, str]:
        return Subspaces({(self.site.name, self.side): self})._facts()


@dataclass(frozen=True)
class Subspaces(Mapping[tuple[str, Side], Subspace], Shareable):
    """Subspaces by (site name, side). What :func:`hooklearn.locate` returns and ``hl.edit`` takes.

    ``Subspaces.from_pretrained`` reads what ``save_pretrained`` wrote, a run folder, or that of ``hooklearn locate``.
    """

    spaces: Mapping[tuple[str, Side], Subspace]
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]], repr=False)
    """Per site, (forget, retain) tokens it was given while they were fitted: all of them, except for an expert."""

    def rare(self) -> dict[str, tuple[int, int]]:
        """Expert sites with fewer than a tenth of the tokens that the experts of their layer have on average, in
        either class; :attr:`tokens` of each. Those with none have no subspace; of the others little is known."""
        layers: dict[str, list[str]] = {}
        for name in self.tokens:
            layer, experts, _ = name.partition(".experts.")
            if experts:
                layers.setdefault(layer, []).append(name)
        out = {}
        for names in layers.values():
            least = [RARE * fmean(self.tokens[n][side] for n in names) for side in (0, 1)]
            out |= {n: (f, r) for n in names for f, r in [self.tokens[n]] if f < least[0] or r < least[1]}
        return out

    def __getitem__(self, key: tuple[str, Side]) -> Subspace:
        """``spaces["blocks.8.mlp.out", "x"]``. Raises KeyError for a place that was not located."""
        if key not in self.spaces:
            raise KeyError(f"{key!r}; a place is (site name, side), located: {self._names()}")
        return self.spaces[key]

    def __iter__(self):
        return iter(self.spaces)

    def __len__(self) -> int:
        return len(self.spaces)

    def get(self, name: str, side: Side) -> Subspace | None:  # type: ignore[override]
        return self.spaces.get((name, side))

    def bases(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """(x basis, g basis) of a site; a site that was not located at all may not be edited: rank 0."""
        x, g = self.get(name, "x"), self.get(name, "g")
        if x is None and g is None:
            raise InputError(
                f"no subspace was located at {name}; located: {self._names()} "
                "(sites=[s.name for s in spaces.sites] edits those alone)"
            )
        return (x.basis if x else None), (g.basis if g else None)

    def _names(self) -> str:
        names = sorted({name for name, _ in self.spaces})
        return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")

    def __repr__(self) -> str:
        ranks = sorted({s.rank for s in self.values()})
        fitters = ", ".join(sorted({s.fitter for s in self.values()}))
        return f"Subspaces({len(self)} places: {self._names()}; {fitters}, rank {', '.join(map(str, ranks))})"

    def top(self, rank: int) -> Subspaces:
        """The first ``rank`` components of each; held-out separation was measured with all of them, so it is not known
        (NaN)."""
        return Subspaces({k: s.top(min(rank, s.rank)) for k, s in self.spaces.items()}, self.tokens)

    def where(self, keep: Any) -> Subspaces:
        """Those for which ``keep(subspace)`` is true."""
        return Subspaces({k: s for k, s in self.spaces.items() if keep(s)}, self.tokens)

    def at(self, sites: str | None = None, layers: str | None = None, side: Side | None = None) -> Subspaces:
        """Those at some places only: ``spaces.at("mlp.out", layers="8-20", side="x")``.

        Raises InputError where nothing was located there.
        """
        wanted = None if layers is None else chosen_layers(layers, 1 + max(s.layer for s in self.sites))
        kept = self.where(
            lambda s: (
                (sites is None or matches(s.site, sites))
                and (wanted is None or s.site.layer in wanted)
                and (side is None or s.side == side)
            )
        )
        if not kept:
            raise InputError(
                f"nothing was located at {sites or 'any site'}, layers {layers or 'all'}, side {side or 'any'}; "
                f"located: {self._names()}"
            )
        return kept

    @property
    def sites(self) -> list[Site]:
        return list(dict.fromkeys(s.site for s in self.spaces.values()))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per subspace: the rows of ``locate.parquet``."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "site": s.site.name, "layer": s.site.layer, "module": s.site.module, "side": s.side,
                    "fitter": s.fitter, "rank": s.rank, "auc": s.auc, "auc_shuffled": s.auc_shuffled,
                    "auc_random": s.auc_random, "forget_energy": s.forget_energy,
                    "retain_energy": s.retain_energy, "random_energy": s.random_energy, "condition": s.condition,
                    **dict(zip(("forget_tokens", "retain_tokens"), self.tokens.get(s.site.name, ()), strict=False)),
                }
                for s in self.spaces.values()
            ]
        )  # fmt: skip

    def _repr_html_(self) -> str:
        return self.to_dataframe().head(20).to_html(float_format="%.3f", index=False)

    # ---------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """One safetensors file, from which :meth:`load` makes the same again, NaN included."""
        tensors, about = {}, []
        for (name, side), space in self.spaces.items():
            tensors |= {f"{name}.{side}.{part}": getattr(space, part) for part in TENSORS}
            numbers = {key: getattr(space, key) for key in NUMBERS}
            about.append({"site": asdict(space.site), "side": side, "fitter": space.fitter, **numbers})
        header = {"kind": "subspaces", "version": VERSION, "subspaces": json.dumps(jsonable(about))}
        disk.save_tensors(path, tensors, header)

    @staticmethod
    def load(path: str | Path) -> Subspaces:
        """Raises InputError where the file is missing, damaged, or of another kind or version."""
        tensors, header = disk.load_tensors(path)
        kind, version = header.get("kind"), header.get("version")
        if (kind, version) != ("subspaces", VERSION):
            raise InputError(f"{path}: {kind} version {version}; hooklearn reads subspaces {VERSION}")
        try:
            spaces = [_space(one, tensors) for one in json.loads(header["subspaces"])]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}: damaged, its list of subspaces does not match ({disk.one_line(error)})"
            ) from error
        return Subspaces({(s.site.name, s.side): s for s in spaces})

    def _write(self, folder: Path) -> None:
        self.save(folder / FILE)

    @classmethod
    def _read(cls, folder: Path) -> Subspaces:
        return cls.load(folder / FILE)

    def _facts(self) -> tuple[str, str]:
        fitters = sorted({s.fitter for s in self.values()})
        ranks = sorted({s.rank for s in self.values()})
        return "", _CARD.format(n=len(self), fitters=", ".join(fitters), ranks=", ".join(map(str, ranks)))


def _space(about: dict[str, Any], tensors: Mapping[str, Tensor]) -> Subspace:
    site, side = Site(**about["site"]), about["side"]
    basis, vectors, values = (tensors[f"{site.name}.{side}.{part}"] for part in TENSORS)
    if side not in ("x", "g") or basis.shape[0] != site.width(side) or vectors.shape[0] != basis.shape[0]:
        raise ValueError(f"{site.name} ({side}) does not hold vectors of its width")
    numbers = {key: NAN if about[key] is None else float(about[key]) for key in NUMBERS}
    return Subspace(site, side, str(about["fitter"]), basis, vectors, values, **numbers)


_CARD = """# Located subspaces

{n} subspaces (fitter: {fitters}; rank: {ranks}) at hook points of a language model, each an orthonormal basis at the
inputs (`x`) or output gradients (`g`) of one linear weight, with its held-out separation and its nulls.

```python
import hooklearn as hl

spaces = hl.Subspaces.from_pretrained("this folder or repository")
spaces.to_dataframe()
hl.edit(model, "confined", subspace=spaces, ...)
```
"""
