"""FLOPs and bytes of every stage as formulas of the model's shape, and what they say of larger models than any here.

    python -m benchmarks.formulas          # the projection of docs/performance.md

Letters as there: P parameters of the blocks' linear maps, S of the edited sites, V vocabulary, d width, L layers,
h heads x head size, t tokens, k of them scored, l tokens in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A gated decoder (Llama)."""

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    """Width of all query heads together."""
    kv: int
    """Width of all key heads together."""
    vocabulary: int

    @property
    def sites(self) -> int:
        """S: gate, up and down of every layer."""
        return 3 * self.layers * self.width * self.inner

    @property
    def linear(self) -> int:
        """P."""
        return self.sites + self.layers * self.width * (2 * self.heads + 2 * self.kv)

    @property
    def curvature(self) -> int:
        """Entries of the second moments of a layer: x of gate and up (shared) and of down, g of all three."""
        return 2 * self.width**2 + 3 * self.inner**2

    def forward(self, t: float, k: float, row: float) -> float:
        """``2 P t + 4 L l h t + 2 V d k``; nothing is saved by causality."""
        return 2.0 * self.linear * t + 4.0 * self.layers * row * self.heads * t + 2.0 * self.vocabulary * self.width * k

    def backward(self, t: float, k: float, row: float) -> float:
        """To the inputs only, as the weights are frozen: attention twice its forward pass, all else once."""
        return self.forward(t, k, row) + 4.0 * self.layers * row * self.heads * t

    def gradient(self, t: float) -> float:
        """``G += g^T x``: ``2 S t``."""
        return 2.0 * self.sites * t

    def moments(self, t: float) -> float:
        """``2 t`` a entry; a product that forms one triangle needs half of it."""
        return 2.0 * self.layers * self.curvature * t

    def whitening(self) -> float:
        """Gram matrix, Cholesky factor and solve on the smaller side of every matrix."""
        n, m = self.width, self.inner
        return 3 * self.layers * (2.0 * n * n * m + n**3 / 3 + 2.0 * n * n * m)

    def eigenvectors(self) -> float:
        """Gram matrix and reduction to tridiagonal form, ``4/3 n^3``, half of it bound by memory; float64."""
        n, m = self.width, self.inner
        return 3 * self.layers * (2.0 * n * n * m + 4 / 3 * n**3)

    def solves(self) -> float:
        """K-FAC: a factor for every second moment, two triangular solves a side and gradient."""
        n, m = self.width, self.inner
        return self.layers * ((2 * n**3 + 3 * m**3) / 3 + 2 * 3 * 2.0 * (n * n * m + n * m * m))


SMOLLM2 = Shape("SmolLM2-135M", 30, 576, 1536, 576, 192, 49_152)
LLAMA_8B = Shape("Llama-3.1-8B", 32, 4096, 14_336, 4096, 1024, 128_256)
LLAMA_70B = Shape("Llama-3.1-70B", 80, 8192, 28_672, 8192, 1024, 128_256)

TOKENS, MEASURED, EVALUATIONS = 13_000, 16_384, 5
"""RepSelect's biology corpus (567 x 23 tokens), its 128 texts x 128 tokens for the KL, and our readings of it."""
ROW = 256


@dataclass(frozen=True)
class Machine:
    name: str
    product: float
    """FLOP/s of bfloat16 products that a pass reaches: 40 % of the card's 989e12."""
    single: float
    """The same for float32 factors and solves."""
    memory: float


H100 = Machine("H100, 80 GB", 4e14, 3e13, 80e9)
EIGHT = Machine("8 x H100, 80 GB", 8 * 4e14, 8 * 3e13, 640e9)


def edit(shape: Shape) -> dict[str, float]:
    """FLOPs by stage of one edit on RepSelect's biology corpus."""
    once = shape.forward(TOKENS, TOKENS, ROW) + shape.backward(TOKENS, TOKENS, ROW)
    return {
        "adversary, forward and backward": once,
        "gradient, forward and backward": once + shape.gradient(TOKENS),
        "whitening solve": shape.whitening(),
        "budget, 5 readings and the unedited side": (EVALUATIONS + 1) * shape.forward(MEASURED, MEASURED, 128),
    }


def memory(shape: Shape, site_layers: int = 1) -> dict[str, float]:
    """Bytes: weights in bfloat16, the direction in float32, what is put back, moments of some layers in float32."""
    everything = shape.linear + 2 * shape.vocabulary * shape.width
    return {
        "weights, bfloat16": 2.0 * everything,
        "direction, float32": 4.0 * shape.sites,
        "sites to put back, bfloat16": 2.0 * shape.sites,
        f"second moments of {site_layers} layer(s), float32": 4.0 * site_layers * shape.curvature,
        "a batch of 4,096 tokens": 4096.0 * (shape.layers * 2 * (8 * shape.width + 3 * shape.inner) + 512 * 4),
    }


def projection() -> Iterator[str]:
    """Markdown: both models on their machines."""
    yield "| model on machine | stage | FLOP | seconds at 40 % of the peak | | bytes |"
    yield "|---|---|---|---|---|---|"
    for shape, machine in ((LLAMA_8B, H100), (LLAMA_70B, EIGHT)):
        seconds = 0.0
        for stage, flops in edit(shape).items():
            took = flops / (machine.single if "solve" in stage else machine.product)
            seconds += took
            yield f"| {shape.name} on {machine.name} | {stage} | {flops:.2g} | {took:.2g} | | |"
        yield f"| | **whole edit** | {sum(edit(shape).values()):.2g} | **{seconds:.2g}** | | |"
        natural = shape.moments(TOKENS) + shape.forward(TOKENS, TOKENS, ROW) + shape.backward(TOKENS, TOKENS, ROW)
        yield f"| | natural: a pass for the curvature, moments | {natural:.2g} | {natural / machine.product:.2g} | | |"
        yield f"| | natural: factors and solves | {shape.solves():.2g} | {shape.solves() / machine.single:.2g} | | |"
        for what, size in memory(shape).items():
            yield f"| | | | | {what} | {size / 1e9:.1f} GB |"
        whole = sum(memory(shape).values())
        yield f"| | | | | **peak** (there are {machine.memory / 1e9:.0f} GB) | **{whole / 1e9:.0f} GB** |"


if __name__ == "__main__":
    print("\n".join(projection()))
