"""Attacks on the weights, without data: what an edit only covered with small changes, coarse weights uncover."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooklearn.attack.curve import Arena, Attack
from hooklearn.attack.look import one_look, reweighted
from hooklearn.types import Curve, InputError

NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, scaled to [-1, 1], with an exact 0 (Dettmers et al. 2023, appendix E)."""


@dataclass(frozen=True, kw_only=True)
class Quantize(Attack):
    """Every weight matrix of the blocks is rounded to a coarse grid (int8, int4, NF4), without calibration."""

    name: ClassVar[str] = "quantize"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv 2410.16454; NF4: Dettmers et al. 2023, arXiv 2305.14314"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    same_question: ClassVar[bool] = True
    formats: tuple[str, ...] = ("int8", "int4", "nf4")
    """``int2`` ... ``int16`` or ``nf4``."""
    sampled: tuple[str, ...] | None = None
    """Formats at which samples are drawn, which are dear on a CPU; None: the one of the fewest bits (NF4 has four), of
    several the last."""
    block: int | None = None
    """Inputs that share a scale; None: all of an output channel for integers, 64 for NF4 (as in QLoRA)."""

    def __post_init__(self) -> None:
        if not self.formats:
            raise InputError(f"attack {self.name!r}: formats must name at least one, got {list(self.formats)}")
        for one in self.formats:
            _bits(one)
        if strange := [one for one in self.sampled or () if one not in self.formats]:
            raise InputError(
                f"attack {self.name!r}: sampled {strange[0]!r} is none of its formats; valid: {', '.join(self.formats)}"
            )
        if self.block is not None and self.block < 1:
            raise InputError(f"attack {self.name!r}: block must be 1 or more, got {self.block}")

    def settings(self) -> list[str]:
        return [one if self.block is None else f"{one} block={self.block}" for one in self.formats]

    def curves(self, arena: Arena) -> list[Curve]:
        coarsest = min(reversed(self.formats), key=lambda one: _bits(one) or 4)
        sampled = (coarsest,) if self.sampled is None else self.sampled

        def rounded(one: str):
            return lambda model: reweighted(model, lambda _, weight: quantized(weight, one, self.block))

        return [
            one_look(arena, self, setting, attacked=rounded(one), sampled=one in sampled)
            for one, setting in zip(self.formats, self.settings(), strict=True)
        ]


def quantized(weight: Float[Tensor, "d_out d_in"], form: str, block: int | None = None) -> Float[Tensor, "d_out d_in"]:
    """Round to nearest: ``s round(w / s)`` with ``s = max |w| / (2^(bits - 1) - 1)`` over a block (halves to even).

    NF4: ``s`` is ``max |w|`` and the grid :data:`NF4`.

    Args:
        block: neighbouring inputs that share a scale; the last block of a row may be shorter.
    """
    bits = _bits(form)
    block = block or (64 if bits is None else weight.shape[1])
    d_out, d_in = weight.shape
    blocks = F.pad(weight.float(), (0, -d_in % block)).reshape(d_out, -1, block)
    largest = blocks.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)  # a block of zeros stays one
    if bits is None:
        grid = torch.tensor(NF4, device=weight.device)
        out = largest * grid[torch.bucketize(blocks / largest, (grid[1:] + grid[:-1]) / 2)]
    else:
        scale = largest / (2 ** (bits - 1) - 1)
        out = scale * (blocks / scale).round()
    return out.reshape(d_out, -1)[:, :d_in].to(weight.dtype)


def _bits(form: str) -> int | None:
    """Bits of an integer format, None for NF4."""
    if form == "nf4":
        return None
    match = re.fullmatch(r"int(\d+)", form)
    if match is None or not 2 <= int(match[1]) <= 16:
        raise InputError(f"attack 'quantize': format {form!r}; valid: int2 ... int16, nf4")
    return int(match[1])


@dataclass(frozen=True, kw_only=True)
class Prune(Attack):
    """The smallest weights of every matrix of the blocks are set to zero, a growing share of them."""

    name: ClassVar[str] = "prune"
    source: ClassVar[str] = "Jain et al. 2024, arXiv 2311.12786; Wei et al. 2024, arXiv 2402.05162"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    same_question: ClassVar[bool] = True
    fractions: tuple[float, ...] = (0.1, 0.3, 0.5)
    """Shares of every matrix that are zeroed, a curve each; samples are drawn at the largest."""

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 <= f < 1 for f in self.fractions):
            raise InputError(f"attack {self.name!r}: fractions must be from 0 to below 1, got {list(self.fractions)}")

    def settings(self) -> list[str]:
        return [f"fraction={f:g}" for f in self.fractions]

    def curves(self, arena: Arena) -> list[Curve]:
        def thinned(fraction: float):
            return lambda model: reweighted(model, lambda _, weight: pruned(weight, fraction))

        return [
            one_look(arena, self, setting, attacked=thinned(f), sampled=f == max(self.fractions))
            for f, setting in zip(self.fractions, self.settings(), strict=True)
        ]


def pruned(weight: Float[Tensor, "d_out d_in"], fraction: float) -> Float[Tensor, "d_out d_in"]:
    """The ``floor(fraction n)`` entries of least magnitude are 0, the others as they were."""
    flat = weight.clone().reshape(-1)
    least = flat.abs().topk(int(fraction * flat.numel()), largest=False, sorted=False).indices
    flat[least] = 0
    return flat.view(weight.shape)


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Gaussian noise is added to every weight matrix of the blocks, at growing shares of its own spread."""

    name: ClassVar[str] = "noise"
    source: ClassVar[str] = "Tice et al. 2024, arXiv 2412.01784"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    same_question: ClassVar[bool] = True
    scales: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Standard deviation of the noise, as a share of that of the matrix it is added to."""

    def __post_init__(self) -> None:
        if not self.scales or not all(0 <= s <= 10 for s in self.scales):
            raise InputError(f"attack {self.name!r}: scales must be from 0 to 10, got {list(self.scales)}")

    def settings(self) -> list[str]:
        return [f"scale={s:g}" for s in self.scales]

    def curves(self, arena: Arena) -> list[Curve]:
        def shaken(scale: float):
            return lambda model: reweighted(model, lambda name, weight: noisy(weight, scale, name, arena.seed))

        return [
            one_look(arena, self, setting, attacked=shaken(s), sampled=s == max(self.scales))
            for s, setting in zip(self.scales, self.settings(), strict=True)
        ]


def noisy(weight: Float[Tensor, "d_out d_in"], scale: float, name: str, seed: int) -> Float[Tensor, "d_out d_in"]:
    """``W + scale std(W) N(0, 1)``. The draw depends on the name and the seed only: all arms get the same one."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}:{name}").getrandbits(63))
    drawn = torch.randn(weight.shape, generator=generator).to(weight)
    return weight + scale * weight.std() * drawn
