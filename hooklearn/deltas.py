"""An edit as a thing: what is added to the weights of one base model, and the file that it lies in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from hooklearn import disk, parallel
from hooklearn.sharing import Shareable, quoted
from hooklearn.types import InputError

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


@dataclass(frozen=True)
class Delta(Shareable):
    """What an edit adds to the weights: site name -> update ``[d_out, d_in]``, for one base model.

    Deltas of one base add up: ``a + b`` does both, ``a - b`` what a does beyond b, ``0.5 * a`` half of it, ``-a`` its
    opposite (so ``a + -a`` is nothing).

    Examples:
        >>> import torch
        >>> delta = Delta({"blocks.0.mlp.out": torch.ones(2, 2)})
        >>> (0.5 * delta).norm(), (delta - delta).norm()
        (1.0, 0.0)
    """

    updates: Mapping[str, Float[Tensor, "d_out d_in"]]
    base: str = ""
    """Name of the base model."""
    base_hash: str = ""
    """Hash of the base model's weights; an edit is only ever applied to the model it was made for."""

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

    def norm(self) -> float:
        """Frobenius norm over all sites."""
        return math.sqrt(sum(float(parallel.whole(u.double().square().sum())) for u in self.updates.values()))

    def _with(self, updates: Mapping[str, Tensor]) -> Delta:
        return Delta(updates, self.base, self.base_hash)

    def _same_base(self, other: Delta) -> None:
        if self.base_hash != other.base_hash:
            raise InputError(
                f"deltas of different base models cannot be added: {self.base!r} "
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
    if a.shape != b.shape:
        raise InputError(f"deltas cannot be added: at {name!r} one is {list(a.shape)}, the other {list(b.shape)}")
    return a + b


def save_delta(delta: Delta, path: str | Path) -> None:
    """One safetensors file, bound to its base model. Raises like :func:`hooklearn.disk.save_tensors`."""
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
