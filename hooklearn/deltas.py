"""An edit as a thing: what is added to the weights of one base model, and the file that it lies in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import disk, integrity, parallel
from hooklearn.sharing import Shareable, quoted
from hooklearn.types import EditResult, InputError, Site

FILE = "delta.safetensors"
VERSION = "1"
_CARD = """# An edit of {base}

What is added to {n} weight matrices (Frobenius norm {norm:.4g}); a site's name, `blocks.LAYER.MODULE`, is that of
TransformerLens. It was made for one model and is applied to no other: weights hash `{digest}`.

```python
import hooklearn as hl

delta = hl.Delta.from_pretrained("this folder or repository")
model = hl.load("the base model")
with hl.edited(model, delta):
    ...
```

What the edit does to the model's behaviour is not said here; the report of the run that made it does.
"""


@dataclass(frozen=True, eq=False)
class Delta(Shareable):
    """What an edit adds to the weights: site name -> update ``[d_out, d_in]``, for one base model.

    Deltas of one base add up: ``a + b`` does both, ``a - b`` what a does beyond b, ``0.5 * a`` half of it, ``-a`` its
    opposite (so ``a + -a`` is nothing). ``a[site]`` is the update of a site (or of its name), ``site in a`` whether it
    has one; ``a == b``: the same updates to the last bit, for the same base.

    Examples:
        >>> import torch
        >>> delta = Delta({"blocks.0.mlp.out": torch.ones(2, 2)})
        >>> (0.5 * delta).norm(), (delta - delta).norm(), sum([delta, delta]) == 2 * delta
        (1.0, 0.0, True)
        >>> delta.cosine(-delta)
        -1.0
    """

    updates: Mapping[str, Float[Tensor, "d_out d_in"]]
    base: str = ""
    """Name of the base model."""
    base_hash: str = ""
    """Hash of the base model's weights; an edit is only ever applied to the model it was made for."""

    @classmethod
    def between(cls, original: Any, edited: Any, *, leave_rest: bool = False) -> Delta:
        """The edit that leads from one model to another of the same architecture, such as a checkpoint of it (its task
        vector): the difference of every site's weight, in float32 or better. Sites that are the same have no entry.

        Added to ``original`` it gives the weights of ``edited`` up to one rounding.

        Args:
            leave_rest: what is no site (embeddings, norms, biases, routers) may differ too and is left out, so that
                the delta is a part of what was done; a warning says how much.
        Raises:
            InputError: other sites, shapes or dtypes, something that is no site differs, or the weights are sharded.
        """
        from hooklearn import models

        original, edited = models.checked(original), models.checked(edited)
        if models.is_sharded(original) or models.is_sharded(edited):
            raise InputError("Delta.between reads whole weights; load both models without shard")
        places, theirs = models.sites(original, "all"), models.sites(edited, "all")
        mine, other = (_kinds(models.named_parameters(m)) for m in (original, edited))
        names = f"{original.cfg.model_name!r} and {edited.cfg.model_name!r}"
        if places != theirs or mine != other:
            odd = sorted({k for k, _ in mine.items() ^ other.items()} or {s.name for s in {*places} ^ {*theirs}})[0]
            kinds = f"{mine.get(odd, 'not there')} and {other.get(odd, 'not there')}"
            raise InputError(f"{names} are not of one architecture and dtype: {odd} is {kinds}")
        _check_rest(original, edited, names, leave_rest)
        updates: dict[str, Tensor] = {}
        for site in places:
            before, after = models.weight(original, site).detach(), models.weight(edited, site).detach()
            if not torch.equal(before, after.to(before.device)):
                wide = torch.promote_types(before.dtype, torch.float32)
                updates[site.name] = after.to(before.device, wide) - before.to(wide)
        return cls(updates, original.cfg.model_name, integrity.weights_hash(original))

    def __repr__(self) -> str:
        return f"Delta({len(self.updates)} sites, norm {self.norm():.3g}, for {self.base or 'any model'})"

    def __add__(self, other: Delta) -> Delta:
        """Raises InputError where they were made for different models, or a site has two shapes."""
        if not isinstance(other, Delta):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        self._same_base(other)
        names = dict.fromkeys([*self.updates, *other.updates])
        return self._with({n: _sum(n, self.updates.get(n), other.updates.get(n)) for n in names})

    def __sub__(self, other: Delta) -> Delta:
        if not isinstance(other, Delta):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        return self + -other

    def __mul__(self, scale: float) -> Delta:
        """Raises InputError for NaN and infinity."""
        if not isinstance(scale, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        if not math.isfinite(scale):
            raise InputError(f"a delta can be scaled by a finite number, not by {scale}")
        return self._with({n: u * scale for n, u in self.updates.items()})

    __rmul__ = __mul__

    def __truediv__(self, scale: float) -> Delta:
        if not isinstance(scale, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        return self * (1 / scale if scale else math.inf)

    def __neg__(self) -> Delta:
        return self * -1.0

    def __radd__(self, other: int) -> Delta:
        """``sum([a, b])`` begins with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented  # pyright: ignore[reportUnnecessaryIsInstance]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Delta):
            return NotImplemented
        mine, theirs = self.updates, other.updates
        same_place = self.base_hash == other.base_hash and mine.keys() == theirs.keys()
        return same_place and all(_identical(u, theirs[n]) for n, u in mine.items())

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __getitem__(self, site: str | Site) -> Float[Tensor, "d_out d_in"]:
        """Raises InputError for a site that it does not change."""
        name = site.name if isinstance(site, Site) else site
        if name not in self.updates:
            raise InputError(f"the delta does not change {name!r}; it changes {_some(list(self.updates))}")
        return self.updates[name]

    def __contains__(self, site: object) -> bool:
        return (site.name if isinstance(site, Site) else site) in self.updates

    def __iter__(self) -> Iterator[str]:
        """Names of its sites."""
        return iter(self.updates)

    def norm(self) -> float:
        """Frobenius norm over all sites."""
        return math.sqrt(sum(float(parallel.whole(u.double().square().sum())) for u in self.updates.values()))

    def dot(self, other: Delta) -> float:
        """Sum of the products of all entries; a site that one of them does not change adds nothing.

        Raises:
            InputError: they were made for different models, or a site has two shapes.
        """
        return sum(self.dots(other).values())

    def dots(self, other: Delta) -> dict[str, float]:
        """The same of every site that both change."""
        self._same_base(other)
        return {n: _dot(n, u, other.updates[n]) for n, u in self.updates.items() if n in other.updates}

    def cosine(self, other: Delta) -> float:
        """Of the angle between two edits of one model, over all sites; NaN where one of them is nothing."""
        return _ratio(self.dot(other), self.norm() * other.norm())

    def cosines(self, other: Delta) -> dict[str, float]:
        """The same of every site that both change."""
        mine, theirs = self.dots(self), other.dots(other)
        return {n: _ratio(dot, math.sqrt(mine[n] * theirs[n])) for n, dot in self.dots(other).items()}

    def _with(self, updates: Mapping[str, Tensor]) -> Delta:
        return Delta(updates, self.base, self.base_hash)

    def _same_base(self, other: Delta) -> None:
        if self.base_hash != other.base_hash:
            raise InputError(
                f"deltas of different base models cannot be added or compared: {self.base!r} "
                f"({self.base_hash[:12]}) and {other.base!r} ({other.base_hash[:12]})"
            )

    def _write(self, folder: Path) -> None:
        save_delta(self, folder / FILE)

    @classmethod
    def _read(cls, folder: Path) -> Delta:
        return load_delta(folder / FILE)

    def _facts(self) -> tuple[str, str]:
        return self.base, _CARD.format(
            n=len(self.updates), base=quoted(self.base), digest=self.base_hash[:16] or "not known", norm=self.norm()
        )


def _sum(name: str, a: Tensor | None, b: Tensor | None) -> Tensor:
    if a is None or b is None:
        kept = a if b is None else b
        assert kept is not None
        return kept
    _check_shapes(name, a, b)
    return a + b.to(a.device)


def _dot(name: str, a: Tensor, b: Tensor) -> float:
    _check_shapes(name, a, b)
    return float(parallel.whole((a.double() * b.to(a.device).double()).sum()))


def _check_shapes(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise InputError(
            f"deltas cannot be added or compared: at {name!r} one is {list(a.shape)}, the other {list(b.shape)}"
        )


def _ratio(dot: float, norms: float) -> float:
    return max(-1.0, min(1.0, dot / norms)) if norms else math.nan


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(parallel.whole(a).cpu(), parallel.whole(b).cpu())


def _kinds(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{list(p.shape)} {str(p.dtype).removeprefix('torch.')}" for name, p in parameters.items()}


def _check_rest(original: Any, edited: Any, names: str, leave: bool) -> None:
    """What is no site is the same in both, or may be left out."""
    from hooklearn import models

    of_sites = {id(p) for p in models.parameters_of(original, models.sites(original, "all"))}
    theirs = models.named_parameters(edited)
    rest = {n: p for n, p in models.named_parameters(original).items() if id(p) not in of_sites}
    unlike = [n for n, p in rest.items() if not torch.equal(p, theirs[n].to(p.device))]
    if not unlike:
        return
    what = f"{names} also differ in what is no site of an edit: {_some(unlike)}"
    if not leave:
        raise InputError(f"{what}; with leave_rest=True that is left out of the delta")
    warnings.warn(f"{what}; left out of the delta", stacklevel=3)


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "nothing") + more


def as_delta(value: Any) -> Delta:
    """The delta, also where it is given with what it cost (:class:`~hooklearn.types.EditResult`).

    Raises InputError for anything else.
    """
    delta = value.delta if isinstance(value, EditResult) else value
    if not isinstance(delta, Delta):
        raise InputError(
            f"an edit must be a hooklearn.Delta or the result of hl.edit, got {type(value).__name__} {value!r:.40}; "
            "hl.load_delta(path) reads one"
        )
    return delta


def save_delta(delta: Delta | EditResult, path: str | Path) -> None:
    """One safetensors file, bound to its base model. Raises like :func:`hooklearn.disk.save_tensors`."""
    delta = as_delta(delta)
    bound = {"base": delta.base, "base_hash": delta.base_hash}
    disk.save_tensors(path, delta.updates, {"kind": "delta", "version": VERSION, **bound})


def load_delta(path: str | Path, place: Callable[[str, Tensor], Tensor] = lambda _, update: update) -> Delta:
    """The delta in a file.

    Args:
        place: site name and its update -> what is kept of it, before the next is read
            (:func:`hooklearn.sharded.placing`).
    Raises:
        InputError: like :func:`hooklearn.disk.load_tensors`, and for anything but a delta of this version.
    """
    if Path(path).is_dir():
        files = sorted(p.name for p in Path(path).glob("delta*.safetensors"))
        there = f"; there is {_some(files)}" if files else ", and there is none in it"
        raise InputError(f"{path}: a folder, where the file of a delta is needed{there}")
    updates, metadata = disk.load_tensors(path, place)
    kind, version = metadata.get("kind"), metadata.get("version")
    if name := metadata.get("organism"):
        raise InputError(
            f"{path}: the adapter of organism {name!r}, which is no delta; `organism: {name}` in a config instils the "
            f"one that ships, hl.organism({name!r}).delta is its delta"
        )
    if (kind, version) != ("delta", VERSION):
        raise InputError(f"{path}: {kind} version {version}; hooklearn reads delta {VERSION}")
    for name, update in updates.items():
        if update.ndim != 2:
            raise InputError(f"{path}: {name!r} has shape {list(update.shape)}, not [d_out, d_in]")
    return Delta(updates, metadata.get("base", ""), metadata.get("base_hash", ""))
