"""The harness: sides alternated in one process, equal results first, spreads and never single numbers."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hooklearn import editing, models, organisms, pretrained
from hooklearn.data import Corpus, Encoded, encode, load_corpus
from hooklearn.forward import resolve_precision
from hooklearn.recipes import recipe

Side = Callable[[], Any]


@dataclass(frozen=True)
class Spread:
    """Repeats of one measurement."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}..{self.high:.3g})"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    goal: str
    """As it is printed; empty where the row is only for the record."""
    measured: Spread | float
    met: bool | None
    """None: no goal."""
    unit: str = ""
    note: str = ""
    """What was compared, and under which conditions."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Seconds, tokens/s, share of the peak, bytes: whatever else was measured."""

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def at_most(what: str, measured: Spread | float, limit: float, *, goal: str = "", **rest: Any) -> Row:
    """A row whose (median) value must not exceed a limit."""
    value = measured.median if isinstance(measured, Spread) else measured
    return Row(what, goal or f"<= {limit:g}{_unit(rest)}", measured, value <= limit, **rest)


def at_least(what: str, measured: Spread | float, limit: float, *, goal: str = "", **rest: Any) -> Row:
    value = measured.median if isinstance(measured, Spread) else measured
    return Row(what, goal or f">= {limit:g}{_unit(rest)}", measured, value >= limit, **rest)


def _unit(rest: Mapping[str, Any]) -> str:
    unit = rest.get("unit", "")
    return unit if unit in ("", "x", "%") else f" {unit}"


# ----------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Times:
    """Seconds of every side in every round."""

    seconds: Mapping[str, list[float]]

    def ratio(self, side: str, to: str) -> Spread:
        """Round by round, so that what disturbs both sides of a round cancels."""
        pairs = zip(self.seconds[side], self.seconds[to], strict=True)
        return Spread.of([a / b for a, b in pairs])

    def of(self, side: str) -> Spread:
        return Spread.of(self.seconds[side])

    def numbers(self, tokens: float | None = None) -> dict[str, Any]:
        """Median seconds per side, and tokens a second."""
        out: dict[str, Any] = {f"seconds: {name}": self.of(name).median for name in self.seconds}
        if tokens is not None:
            out |= {f"tokens/s: {name}": tokens / self.of(name).median for name in self.seconds}
        return out


def alternate(sides: Mapping[str, Side], *, rounds: int, warm: bool = True) -> Times:
    """Every side once a round, in turn from the front and from the back; one round before that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    if warm:
        for side in sides.values():
            side()
    for n in range(rounds):
        for name, side in list(sides.items())[:: 1 if n % 2 == 0 else -1]:
            seconds[name].append(timed(side))
    return Times(seconds)


def timed(side: Side) -> float:
    _wait()
    started = time.perf_counter()
    side()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Stages:
    """Seconds by stage of code that knows nothing of it; a stage inside another is not counted twice."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _inside: list[float] = field(default_factory=lambda: [0.0])
    """Of every stage that is open, the seconds of those inside it."""

    @contextlib.contextmanager
    def watching(self, stages: Mapping[str, Sequence[tuple[Any, str]]]) -> Iterator[None]:
        """Within the block the functions of a stage, each as (module or class, name in it), add to its seconds."""
        with contextlib.ExitStack() as stack:
            for stage, functions in stages.items():
                for owner, name in functions:
                    stack.enter_context(mock.patch.object(owner, name, self._timed(stage, getattr(owner, name))))
            yield

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed_function(*args: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            _wait()
            started = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                _wait()
                seconds = time.perf_counter() - started
                self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds - self._inside.pop()
                self.calls[stage] = self.calls.get(stage, 0) + 1
                self._inside[-1] += seconds

        return timed_function

    def numbers(self, side: str, whole: float, runs: int = 1) -> dict[str, float]:
        """Seconds of each stage of one run, and what is left of the ``whole`` of it."""
        parts = {stage: seconds / runs for stage, seconds in self.seconds.items()}
        parts["everything else"] = whole - sum(parts.values())
        return {f"seconds: {side}, {stage}": seconds for stage, seconds in parts.items()}


def profiled(work: Side, device: str) -> dict[str, float]:
    """Operation -> the seconds of one call that went into it and into nothing it called."""
    activities = [ProfilerActivity.CPU] if device == "cpu" else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        work()
    return {
        e.key.removeprefix("aten::"): (e.self_cpu_time_total if device == "cpu" else e.self_device_time_total) / 1e6
        for e in found.key_averages()
    }


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear")
"""Operations that are matrix products and nothing else (fused attention is more than its products)."""


def share_of_products(spent: Mapping[str, float]) -> float:
    """Per cent of the time of what was :func:`profiled`."""
    return 100 * sum(spent.get(name, 0.0) for name in PRODUCTS) / sum(spent.values())


class Disagreement(AssertionError):
    """Two sides that do not give the same result must not be compared by their speed."""


def check_same(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> float:
    """The largest relative distance (Frobenius) over all entries.

    Raises:
        Disagreement: it is above the tolerance.
    """
    if ours.keys() != theirs.keys():
        raise Disagreement(f"{what}: {sorted(ours.keys() ^ theirs.keys())[:3]} on one side only")
    far = max(float((ours[n].double() - t.double()).norm() / t.double().norm()) for n, t in theirs.items())
    if not far <= tolerance:
        raise Disagreement(f"{what}: the two sides differ by {far:.2e}, tolerance {tolerance:.0e}")
    return far


# ----------------------------------------------------------------------------------------- memory


@contextlib.contextmanager
def peak_memory(device: str = "cpu") -> Iterator[list[int]]:
    """(bytes above what was resident before, bytes in all); the list is filled on leaving."""
    found: list[int] = []
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found += [torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_allocated()]
        return
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what others freed is not to be taken for what was there before
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak of this process begins anew
    before = _status("VmRSS")
    yield found
    found += [_status("VmHWM") - before, _status("VmHWM")]


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


# -------------------------------------------------------------------------------- what is worked on

NAMES = {
    "smollm2-135m-instruct": ("threats", "mlp.gate_proj mlp.up_proj mlp.down_proj"),
    "tiny": ("tiny", "mlp.gate_proj mlp.up_proj mlp.down_proj"),
}


@dataclass
class Bench:
    """What every benchmark is given: the model on both sides, corpora, and how long it may take."""

    model_name: str = "smollm2-135m-instruct"
    device: str = "cpu"
    quick: bool = False

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 5

    @property
    def small(self) -> bool:
        """The tiny model: everything in seconds, to see that it runs."""
        return self.model_name == "tiny"

    @cached_property
    def model(self) -> Any:
        """Ours, with the organism's tendency instilled."""
        model = models.load(self.model_name, device=self.device)
        editing.merge(model, self._organism(model))
        return model

    @cached_property
    def plain(self) -> Any:
        """The same weights as a plain Hugging Face model that nothing is hooked to."""
        hf_model, _ = pretrained.read(self.model_name)
        hf_model = hf_model.to(self.device).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            for name, module in self.linears(hf_model).items():
                module.weight.copy_(models.weight(self.model, self.site(name)))
        return hf_model

    def _organism(self, model: Any) -> Any:
        return organisms.load(organisms.organism_of("tiny-threats" if self.small else "threats"), model)

    @cached_property
    def sites(self) -> list[Any]:
        return models.sites(self.model, "mlp")

    def site(self, name: str) -> Any:
        return next(s for s in self.sites if s.name == name)

    def linears(self, hf_model: Any) -> dict[str, Any]:
        """site name -> the module of a plain Llama that holds its weight."""
        names = {"mlp.gate": "gate_proj", "mlp.in": "up_proj", "mlp.out": "down_proj"}
        return {s.name: getattr(hf_model.model.layers[s.layer].mlp, names[s.module]) for s in self.sites}

    @property
    def dtype(self) -> torch.dtype:
        return resolve_precision("auto", self.device)

    def autocast(self) -> Any:
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    # ------------------------------------------------------------------------------------- texts

    def corpus(self, role: str, limit: int | None = None) -> Corpus:
        """A corpus of the recipe ``threats`` (or ``tiny``), by its role there."""
        spec = recipe("tiny" if self.small else "threats")["corpora"][role]
        return load_corpus(**{k: v for k, v in spec.items() if k != "limit"}).take(limit)

    def encoded(self, role: str, limit: int | None = None, **options: Any) -> list[Encoded]:
        return encode(self.corpus(role, limit), models.tokenizer_of(self.model), **options)

    def cut(self, n: int, length: int, labelled: int) -> list[Encoded]:
        """``n`` sequences of running text, ``length`` tokens each, of which the last ``labelled`` carry loss."""
        ids = torch.cat([s.ids for s in self.encoded("reference")])
        ids = ids.repeat(-(-n * length // len(ids)))
        labels = torch.arange(length) >= length - labelled
        return [Encoded(ids[i * length : (i + 1) * length], labels, i) for i in range(n)]


def gemm(device: str, dtype: torch.dtype, n: int = 1024, products: int = 8) -> tuple[Side, float]:
    """A side that multiplies square matrices, and the FLOPs of one call: what this machine can do now."""
    a = torch.randn(n, n, device=device).to(dtype)
    out = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, a, out=out)

    return multiply, 2.0 * n**3 * products
