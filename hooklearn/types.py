"""The border types: what one part of hooklearn hands to the next. All frozen; no modules, no files.

Axis names used throughout (jaxtyping): ``token d_in d_out rank batch pos vocab``.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

    from hooklearn.deltas import Delta

Side = Literal["x", "g"]
Arm = Literal["edited", "original", "never", "matched"]

NAN = float("nan")


class InputError(ValueError):
    """Something the user gave is wrong: one line that names the value and what would be valid.

    The command line prints it without a traceback and exits with 2.
    """


class NumericalError(RuntimeError):
    """NaN or infinity where a number is needed; names the step and the site."""


def _four_digits(value: float) -> float:
    """A rounding error below zero is no -0.0000."""
    return round(value, 4) + 0.0


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One linear weight ``y = W x``, seen from its two hook points.

    Input ``x`` is ``[token, d_in]``, output gradient ``g`` is ``[token, d_out]``, whatever shape or
    orientation the architecture stores ``W`` in.
    """

    layer: int
    module: str
    """TransformerLens' name below the block, e.g. ``mlp.gate`` or ``attn.q``."""
    d_in: int
    d_out: int

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.{self.module}"

    def width(self, side: Side) -> int:
        return self.d_in if side == "x" else self.d_out


@dataclass(frozen=True, slots=True)
class Tape:
    """The unmasked, flattened inputs and output gradients of one site for one batch."""

    x: Float[Tensor, "token d_in"]
    g: Float[Tensor, "token d_out"] | None
    """None when the tape was recorded without a backward pass."""
    tokens: Int[Tensor, " token"] | None = None
    """Which of the batch's tokens these are, where a site is not given all of them (an expert of a mixture)."""
    g_tokens: Int[Tensor, " token"] | None = None
    """The same of ``g``, which at ``positions="labelled"`` lies one position before."""

    def of(self, per_token: Tensor, side: Side = "x") -> Tensor:
        """What is known of every token of the batch, ``[batch_token ...]``, for the tokens of this tape."""
        tokens = self.tokens if side == "x" else self.g_tokens
        return per_token if tokens is None else per_token[tokens.to(per_token.device)]

    def update(self) -> Float[Tensor, "d_out d_in"]:
        """``sum_t g_t x_t^T``: the gradient of the loss with respect to ``W``.

        Examples:
            >>> Tape(x=torch.tensor([[1.0, 2.0]]), g=torch.tensor([[3.0]])).update()
            tensor([[3., 6.]])
        """
        if self.g is None:
            raise InputError("this tape holds no gradients; capture with gradients=True")
        return self.g.T @ self.x


@dataclass(frozen=True, slots=True)
class Score:
    """An estimate that never travels without its error and its n. NaN means not measured."""

    value: float
    stderr: float = NAN
    n: int = 0

    @staticmethod
    def of(values: Tensor, groups: Sequence[Hashable] | None = None) -> Score:
        """Mean and standard error of per-item values ``[item]``, where items of one group go together.

        ``sqrt(g/(g-1) sum_k e_k^2) / n``, where e_k is what the items of group k are off the mean by, all of them
        (Liang & Zeger 1986); each a group of its own: the usual one. NaN of a single group.

        Examples:
            >>> Score.of(torch.tensor([0.0, 1.0, 1.0, 0.0]))
            Score(value=0.5, stderr=0.28867..., n=4)
            >>> Score.of(torch.tensor([0.0, 0.0, 1.0, 1.0]), ["Rome", "Rome", "Oslo", "Oslo"])
            Score(value=0.5, stderr=0.5, n=4)
        """
        values = values.double().flatten()
        n = values.numel()
        if groups is not None and len(groups) != n:
            raise InputError(f"{n} values of items in {len(groups)} groups: give one of each")
        if n == 0:
            return Score(NAN, NAN, 0)
        numbers: dict[Hashable, int] = {}
        of = [numbers.setdefault(group, len(numbers)) for group in (range(n) if groups is None else groups)]
        g, mean = len(numbers), values.mean()
        off = values.new_zeros(g).index_add_(0, torch.tensor(of, device=values.device), values - mean)
        stderr = math.sqrt(g / (g - 1) * float(off.square().sum())) / n if g > 1 else NAN
        return Score(float(mean), stderr, n)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much an edit may disrupt: far KL in nats per token, near CE rise in nats per token.

    ``forget``: a level that the completion probability of the forget items is not to fall below, such as that of a
    model which never learned them; an edit that gets there first ends there, with disruption to spare.

    Examples:
        >>> Budget(kl=0.01, near_ce=0.02)
        Budget(kl=0.01, near_ce=0.02, forget=None)
        >>> Budget(kl=-1)
        Traceback (most recent call last):
        hooklearn.types.InputError: budget.kl must be a positive number, got -1
    """

    kl: float = 0.01
    near_ce: float | None = None
    forget: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("kl", self.kl), ("near_ce", self.near_ce), ("forget", self.forget)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"budget.{name} must be a positive number, got {value}")
        if self.forget is not None and self.forget >= 1:
            raise InputError(f"budget.forget is a completion probability below 1, got {self.forget}")

    def forgotten(self, before: float, now: float) -> float:
        """Share of the way, in the logarithm, from what the forget score was to the level; 0 where none is set.

        Examples:
            >>> round(Budget(forget=0.01).forgotten(before=0.16, now=0.04), 3)
            0.5
        """
        if self.forget is None or not now < before:
            return 0.0
        return math.log(before / now) / math.log(before / self.forget) if now > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Disruption:
    """What an edit did to everything else. Far: KL(original, edited) and CE rise on unrelated text.

    Near: rise of CE on held-out *good* neighbours; negative means the neighbours got better.

    Examples:
        >>> budget = Budget(kl=0.01, near_ce=0.02)
        >>> found = Disruption(kl=Score(0.002), ce=Score(0.001), near_ce=Score(0.02))
        >>> found.used(budget), found.binding(budget)
        (1.0, 'near_ce')
    """

    kl: Score
    ce: Score
    near_ce: Score | None = None

    def used(self, budget: Budget) -> float:
        """Share of the binding budget that is used; 1 means exactly at the budget. Infinite where a reading that is
        budgeted is not a number: what cannot be measured is not within a budget."""
        used = [self.kl.value / budget.kl]
        if budget.near_ce is not None and self.near_ce is not None:
            used.append(self.near_ce.value / budget.near_ce)
        return max(used) if all(map(math.isfinite, used)) else math.inf

    def binding(self, budget: Budget) -> Literal["kl", "near_ce"]:
        if budget.near_ce is None or self.near_ce is None or not math.isfinite(self.kl.value):
            return "kl"
        near = self.near_ce.value / budget.near_ce
        return "near_ce" if near > self.kl.value / budget.kl or not math.isfinite(near) else "kl"


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One point on the way of an edit: forget score against disruption, with what it cost so far."""

    step: int
    scale: float
    tokens: int
    seconds: float
    kl: float
    near_ce: float = NAN
    forget: float = NAN
    """Completion probability on the forget items (training items, not held out)."""


@dataclass(frozen=True)
class Trace:
    points: tuple[TracePoint, ...] = ()

    def to_dataframe(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([asdict(p) for p in self.points])


@dataclass(frozen=True, slots=True)
class Certificate:
    """Containment: ``||dW - P_g dW P_x|| / ||dW||`` per site for the subspace that was promised."""

    promise: str
    """What the edit promised to stay in, in words; empty when it promised nothing."""
    escape: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def worst(self) -> float:
        return max(self.escape.values(), default=NAN)


@dataclass(frozen=True, slots=True)
class Cost:
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class EditResult:
    """An edit, what it took, what it cost and what else it changed. The model itself is untouched."""

    method: str
    delta: Delta
    trace: Trace
    disruption: Disruption
    budget: Budget
    cost: Cost
    stop: str
    """Why it ended: ``budget (kl)``, ``budget (near_ce)``, ``budget (forget)``, ``budget not reached: ...``."""
    binding: Literal["kl", "near_ce", "forget"] = "kl"
    """What kept it from going further."""
    certificate: Certificate = Certificate("")
    found: Mapping[str, float] = field(default_factory=dict[str, float])
    """Numbers that the method worked out on its way, by name."""

    def __repr__(self) -> str:
        near, points = self.disruption.near_ce, self.trace.points
        return (
            f"EditResult({self.method}: far KL {_four_digits(self.disruption.kl.value):.4f} of {self.budget.kl:g}"
            + (f", near CE {_four_digits(near.value):+.4f}" if near else "")
            + (f", forget {points[0].forget:.3g} -> {self._forget():.3g}" if points else "")
            + f", {len(self.delta.updates)} sites, {self.cost.seconds:.0f} s, stop: {self.stop})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row: what it changed elsewhere, the forget score before and after, what it cost and why it ended."""
        import pandas as pd

        near, points = self.disruption.near_ce, self.trace.points
        row = {
            "method": self.method, "kl": self.disruption.kl.value, "near_ce": near.value if near else NAN,
            "forget_before": points[0].forget if points else NAN, "forget_after": self._forget() if points else NAN,
            "seconds": self.cost.seconds, "tokens": self.cost.tokens, "stop": self.stop,
        }  # fmt: skip
        return pd.DataFrame([row])

    def _forget(self) -> float:
        """Where the edit ended; the trace may have looked elsewhere after that."""
        points = self.trace.points
        return next((p for p in reversed(points) if p.kl == self.disruption.kl.value), points[-1]).forget


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Behaviour of one arm after ``step`` attack steps. ``values`` are per item, in item order."""

    step: int
    tokens: int
    metric: str
    split: str
    values: tuple[float, ...]

    @property
    def score(self) -> Score:
        return self.score_of(None)

    def score_of(self, groups: Sequence[Hashable] | None) -> Score:
        """Where items of one group go together."""
        return Score.of(torch.tensor(self.values, dtype=torch.float64), groups)


@dataclass(frozen=True)
class ArmCurve:
    """One attack on one arm with one setting and seed."""

    points: tuple[CurvePoint, ...]
    converged: bool
    diverged: bool = False
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Behaviour against attack steps, *with the same attack on its controls*: never without them."""

    attack: str
    setting: str
    """What distinguishes this attacker from others of the same name, e.g. ``lr=1e-4``."""
    cheap: bool
    seed: int
    arms: Mapping[str, ArmCurve]

    def __post_init__(self) -> None:
        if "original" not in self.arms:
            raise InputError(f"curve of {self.attack!r} has no 'original' control arm")

    def __repr__(self) -> str:
        """Completion probability of held-out items at the first and at the last look, an arm each."""
        told: list[str] = []
        for name, arm in self.arms.items():
            looks = [p for p in arm.points if (p.metric, p.split) == ("completion", "heldout")]
            ends = f" {looks[0].score.value:.3g} -> {looks[-1].score.value:.3g}" if looks else ""
            told.append(f"{name}{ends}{' (diverged)' if arm.diverged else ''}")
        return f"Curve({' '.join(filter(None, (self.attack, self.setting)))}: {', '.join(told)})"

    def to_dataframe(self, groups: Mapping[str, Sequence[Hashable]] | None = None) -> pd.DataFrame:
        """Long form: the rows of ``curves.parquet``. ``groups``: split -> the group of every item; a look that has
        fewer items has the first of them."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for arm, curve in self.arms.items():
            for p in curve.points:
                together = (groups or {}).get(p.split)
                s = p.score_of(together[: len(p.values)] if together is not None else None)
                rows.append(
                    {
                        "attack": self.attack, "setting": self.setting, "cheap": self.cheap,
                        "arm": arm, "seed": self.seed, "step": p.step, "tokens": p.tokens,
                        "metric": p.metric, "split": p.split, "value": s.value,
                        "stderr": s.stderr, "n": s.n, "converged": curve.converged,
                        "diverged": curve.diverged,
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    def items_dataframe(self) -> pd.DataFrame:
        """One row per item: the rows of ``items.parquet``, so that comparisons can be paired."""
        import pandas as pd

        rows = [
            {
                "attack": self.attack, "setting": self.setting, "arm": arm, "seed": self.seed,
                "step": p.step, "metric": p.metric, "split": p.split, "item": i, "value": v,
            }
            for arm, curve in self.arms.items()
            for p in curve.points
            for i, v in enumerate(p.values)
        ]  # fmt: skip
        return pd.DataFrame(rows)


class Curves(list[Curve]):
    """One attack's curves, a setting each."""

    def to_dataframe(self, groups: Mapping[str, Sequence[Hashable]] | None = None) -> pd.DataFrame:
        """Long form: the rows of ``curves.parquet``."""
        import pandas as pd

        return pd.concat([c.to_dataframe(groups) for c in self], ignore_index=True)
