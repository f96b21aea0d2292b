"""bfloat16 products where the processor has no unit: the same numbers, by way of float32."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooklearn import bfloat16, forward

ULP = 2.0**-7
"""Of bfloat16, relative: 7 bits after the leading one, so half of this is its rounding at most."""

sizes = st.integers(0, 9)


def randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(0, 99))
def test_a_product_is_exact_but_for_one_rounding(n: int, d: int, m: int, layers: int, seed: int) -> None:
    """Against float64; torch's own product in bfloat16 rounds at least as much."""
    for dtype, off in ((torch.bfloat16, ULP / 2), (torch.float32, 0.0)):
        a, b, to = (randn(*s, seed=seed + i, dtype=dtype) for i, s in enumerate([(n, d), (d, m), (n, m)]))
        pages, others = randn(layers, n, d, seed=seed + 3, dtype=dtype), randn(layers, d, m, seed=seed + 4, dtype=dtype)
        found = {
            "mm": bfloat16._mm(a, b), "addmm": bfloat16._addmm(to, a, b, beta=0.5, alpha=2),
            "bmm": bfloat16._bmm(pages, others), "baddbmm": bfloat16._baddbmm(to, pages, others, alpha=2),
        }  # fmt: skip
        a, b, to, pages, others = (t.double() for t in (a, b, to, pages, others))
        exact = {
            "mm": a @ b, "addmm": 0.5 * to + 2 * a @ b, "bmm": pages @ others, "baddbmm": to + 2 * pages @ others,
        }  # fmt: skip
        for name, value in found.items():
            assert value.dtype is dtype and value.shape == exact[name].shape, name
            # summed in float32: off by its own rounding of the summands, not of the sum
            room = off * exact[name].abs() + 1e-5
            assert bool(((value.double() - exact[name]).abs() <= room).all()), name


REPLACED = """
import warnings
import torch
from hooklearn import bfloat16

warnings.simplefilter("error")
generator = torch.Generator().manual_seed(0)
x, w, b = (torch.randn(*shape, generator=generator) for shape in [(3, 40, 64), (48, 64), (48,)])

def read():
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.nn.functional.linear(*leaves) @ leaves[1][:, :32].T.T
    out.float().square().sum().backward()
    return [out.detach(), *(t.grad for t in leaves)]

before, single = read(), x @ w.T
bfloat16._crawls = lambda: True
assert bfloat16.ensure_products() and bfloat16.ensure_products()
after = read()
assert torch.equal(single, x @ w.T), "float32 products have the same bits"
for one, other in zip(before, after, strict=True):
    assert one.dtype is other.dtype and one.shape == other.shape
    print(float((one.float() - other.float()).norm() / one.float().norm()))
assert torch.autograd.gradcheck(torch.mm, [t.double().requires_grad_() for t in (x[0, :3, :4], w[:4, :2])])
"""


def test_replaced_products_go_forwards_and_backwards() -> None:
    """In a process of its own, as kernels are replaced for good. What differs are single roundings: one product in some
    thousands lies on the other side, which is far below the rounding of all of them."""
    done = subprocess.run([sys.executable, "-c", REPLACED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    apart = [float(line) for line in done.stdout.split()]
    assert len(apart) == 4 and max(apart) < ULP / 8


@pytest.mark.parametrize("crawls", [True, False])
def test_only_where_they_would_crawl(crawls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []

    class Library:
        def impl(self, name: str, kernel: object, key: str) -> None:
            replaced.append(f"{key} {name}")

    monkeypatch.setattr(bfloat16, "_LIBRARY", Library())
    monkeypatch.setattr(bfloat16, "_crawls", lambda: crawls)
    monkeypatch.setattr(bfloat16, "ensure_products", bfloat16.ensure_products.__wrapped__)  # what it found here stays
    assert forward.resolve_precision("float32") is torch.float32 and not replaced
    assert forward.resolve_precision("bfloat16") is torch.bfloat16
    assert replaced == (["CPU mm", "CPU bmm", "CPU addmm", "CPU baddbmm"] if crawls else [])
