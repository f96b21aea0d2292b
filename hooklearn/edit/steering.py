"""Methods that change what the residual stream *holds* on forget tokens: RMU and circuit breakers.

Both walk ``(loss on forget states) + weight * (loss on retain states)`` with Adam, the states being those after some
blocks (``blocks.L.hook_out``). The unedited model's states are read batch by batch as the walk draws its text: memory
does not grow with the corpus and no second model is held, for one more forward pass a step (as the papers' own code).
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hooklearn import forward
from hooklearn.data import TokenBatch
from hooklearn.edit.descent import Walked, descend, training_stream
from hooklearn.edit.method import Problem, Updates
from hooklearn.losses import LossSum
from hooklearn.transfer import rows_at
from hooklearn.types import InputError, Site

Positions = Literal["labelled", "predicting", "all"]
States = Float[Tensor, "layer token d_model"]

# ---------------------------------------------------------------------------------- hidden states


def states(
    model: Any, batch: TokenBatch, hooks: Sequence[str], where: Bool[Tensor, "batch pos"], top: int
) -> Float[Tensor, "hook token width"]:
    """What passes ``hooks`` (none above block ``top``) at some positions, float32, with its graph.

    The blocks above are run, for their hooks know no other end, but no graph is kept for them.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(value: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens passes it by name)
            found[name] = rows_at(value, where)

        return hook

    def cut(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return value.detach()

    fwd = [*((name, keep(name)) for name in hooks), (after_block(top), cut)]
    with model.hooks(fwd_hooks=fwd):
        forward.hidden(model, batch)
    return torch.stack([found[name] for name in hooks]).float()


def after_block(layer: int) -> str:
    """The hook point of the residual stream behind a block."""
    return f"blocks.{layer}.hook_out"


def residual(model: Any, batch: TokenBatch, layers: Sequence[int], positions: Positions) -> States:
    """The residual stream after these blocks; padding never counts."""
    return states(model, batch, [after_block(layer) for layer in layers], read_at(batch, positions), max(layers))


def read_at(batch: TokenBatch, positions: Positions) -> Bool[Tensor, "batch pos"]:
    """Scored tokens (``labelled``), those that predict them, or all that are no padding."""
    return {"labelled": batch.labels, "predicting": batch.keep, "all": batch.mask}[positions]


def check_layers(name: str, given: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Layer numbers, sorted, each once.

    Raises:
        InputError: none, or one that the model does not have.
    """
    if not given or not set(given) <= set(range(n_layers)):
        raise InputError(f"{name}: layers {list(given)} must be some of 0-{n_layers - 1}")
    return tuple(sorted(set(given)))


# ------------------------------------------------------------------------------ the losses themselves


def misdirection_loss(now: States, target: Tensor) -> Float[Tensor, ""]:
    """RMU on forget, and with the old states as the target on retain: mean square over tokens *and* coordinates."""
    return F.mse_loss(now, target.expand_as(now))


def rerouting_loss(now: States, before: States) -> Float[Tensor, ""]:
    """Circuit breakers on forget: mean over layers and tokens of ``ReLU(cos(h, h_0))``; 0 once they are orthogonal."""
    return F.cosine_similarity(now, before, dim=-1).relu().mean()


def distance_loss(now: States, before: States) -> Float[Tensor, ""]:
    """Circuit breakers on retain: mean over layers and tokens of ``|h - h_0|`` (not squared)."""
    return (now - before).norm(dim=-1).mean()


def breaker_weights(alpha: float, progress: float) -> tuple[float, float]:
    """(on forget, on retain) after this share of the walk: from (alpha, 0) to (alpha/2, alpha/2), linearly."""
    return alpha * (1 - progress / 2), alpha * progress / 2


def random_direction(width: int, seed: int) -> Float[Tensor, " width"]:
    """RMU's u: uniform in [0, 1) per coordinate, unit norm; all coordinates positive, as in the paper."""
    u = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return u / u.norm()


# ----------------------------------------------------------------------------------- what they share


@dataclass(frozen=True)
class Plan:
    """Where a method edits, and after which blocks it looks."""

    sites: list[Site]
    forget: tuple[int, ...]
    retain: tuple[int, ...]


@dataclass(frozen=True)
class _Pair:
    """One step's retain batch and what the unedited model holds on both."""

    retain: TokenBatch
    forget_before: States
    retain_before: States
    progress: float


@dataclass(frozen=True, kw_only=True)
class _Steering(Walked):
    """Adam on a loss of hidden states; final classes say which states and which loss."""

    learning_rate: float = 5e-5
    """Adam's."""
    positions: Positions = "labelled"
    """Whose states: those of scored tokens (bad and good answers to one prompt share its states, and a first token
    carries none), of the tokens that predict them (``predicting``: the prompt's last token in place of the answer's,
    which is where a short fact is said), or of ``all``."""
    hold: Literal["retain", "reference"] = "retain"
    """The corpus whose states are held: the good completions, or running text as in the papers."""

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.hold,)

    @abstractmethod
    def plan(self, problem: Problem) -> Plan:
        """Raises InputError where the sites given leave nothing to edit."""

    @abstractmethod
    def loss(self, forget: States, retain: States, pair: _Pair, seed: int) -> Float[Tensor, ""]: ...

    def path(self, problem: Problem) -> Iterator[Updates]:
        plan = self.plan(problem)
        narrow = copy(problem)  # the same problem on fewer sites
        narrow.sites = plan.sites
        pairs: deque[_Pair] = deque()

        def stream() -> Iterator[TokenBatch]:
            """descend() draws its batches while the model is unedited: that is when the old states are read."""
            steps = sum(1 for _ in training_stream(problem, "forget", self.epochs))
            kept = training_stream(problem, self.hold, sys.maxsize)
            for step, batch in enumerate(training_stream(problem, "forget", self.epochs), start=1):
                retain = next(kept)
                with torch.no_grad(), forward.autocast(problem.model, problem.precision):
                    forget_before = residual(problem.model, batch, plan.forget, self.positions)
                    retain_before = residual(problem.model, retain, plan.retain, self.positions)
                narrow.tokens += batch.n_tokens + 2 * retain.n_tokens  # read here, and walked with below
                pairs.append(_Pair(retain, forget_before, retain_before, step / steps))
                yield batch

        def objective(model: Any, batch: TokenBatch) -> LossSum:
            pair = pairs.popleft()
            forget = residual(model, batch, plan.forget, self.positions)
            retain = residual(model, pair.retain, plan.retain, self.positions)
            return LossSum(self.loss(forget, retain, pair, problem.seed), 1)

        usual = type(self).learning_rate
        for updates in descend(narrow, stream(), objective, self.learning_rate, self.every, usual=usual):
            problem.tokens = narrow.tokens
            yield updates


def _upto(problem: Problem, name: str, top: int) -> list[Site]:
    """The sites given that the states after block ``top`` depend on."""
    found = [site for site in problem.sites if site.layer <= top]
    if not found:
        lowest = min(site.layer for site in problem.sites)
        raise InputError(
            f"{name}: the states after block {top} depend on layers 0-{top} only, and the lowest site given is in "
            f"layer {lowest}; give lower sites, or look after a higher block"
        )
    return found


# --------------------------------------------------------------------------------------------- RMU


@dataclass(frozen=True, kw_only=True)
class RMU(_Steering):
    """Representation misdirection: forget states are sent to one random direction, retain states are held."""

    name: ClassVar[str] = "rmu"
    source: ClassVar[str] = "Li et al. 2024, arXiv 2403.03218; relative: Dang et al. 2025, arXiv 2408.06223"
    layer: int | Literal["original"] | None = None
    """The block after which states are read, counted from 0; None: two fifths of the depth. ``original``: at the depth
    of the paper's 7 of 32, which is 7 of 30, too."""
    steering: float = 6.5
    """c: length of the target. States are of very different length from model to model; see ``relative``."""
    relative: bool = False
    """c in units of each forget token's own old length (adaptive RMU)."""
    alpha: float = 1200.0
    """Weight of the loss on retain."""
    update: Literal["original", "all"] = "original"
    """``original``: down projections (``mlp.out``) of the layer and the two below; ``all``: every site up to it that
    was given, of attention where ``sites`` say so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steering <= 0 or self.alpha < 0:
            raise InputError(
                f"rmu: steering must be positive and alpha 0 or more, got {self.steering} and {self.alpha}"
            )
        if self.alpha == 0:
            self.refuse("hold", why="with alpha 0 no states are held")

    def check(self, model: Any) -> None:
        if isinstance(self.layer, int):
            check_layers("rmu", [self.layer], model.cfg.n_layers)

    def plan(self, problem: Problem) -> Plan:
        n_layers: int = problem.model.cfg.n_layers
        if self.layer == "original":
            asked = (2 * 7 * n_layers + 32) // 64  # the nearest, the upper of two
        else:
            asked = 2 * n_layers // 5 if self.layer is None else self.layer
        (layer,) = check_layers("rmu", [asked], n_layers)
        sites = _upto(problem, "rmu", layer)
        if self.update == "original":
            lowest = max(0, layer - 2)
            chosen = [site for site in sites if site.module == "mlp.out" and site.layer >= lowest]
            if not chosen:
                raise InputError(
                    f"rmu: update 'original' edits mlp.out of layers {lowest}-{layer}, and none of the "
                    f"{len(problem.sites)} sites given ({problem.sites[0].name} ...) is one of them; give sites "
                    "'mlp.out' there, another layer, or update 'all'"
                )
            sites = chosen
        return Plan(sites, (layer,), (layer,))

    def loss(self, forget: States, retain: States, pair: _Pair, seed: int) -> Float[Tensor, ""]:
        target = self.steering * random_direction(forget.shape[-1], seed).to(forget)
        if self.relative:
            target = pair.forget_before.norm(dim=-1, keepdim=True) * target
        held = misdirection_loss(retain, pair.retain_before)
        return misdirection_loss(forget, target) + self.alpha * held


# -------------------------------------------------------------------------------- circuit breakers


@dataclass(frozen=True, kw_only=True)
class CircuitBreakers(_Steering):
    """Circuit breakers: forget states are turned orthogonal to what they were, retain states are held.

    The authors train a LoRA (rank 16); here it is the weights of the sites themselves, up to the highest target layer.
    """

    name: ClassVar[str] = "circuit_breakers"
    source: ClassVar[str] = "Zou et al. 2024, arXiv 2406.04313 (representation rerouting)"
    learning_rate: float = 1e-4
    """Adam's."""
    target_layers: tuple[int, ...] | None = None
    """Blocks after which forget states are turned; None: those before 5/16 and 5/8 of the depth (9 and 19 of 32: the
    authors' 10 and 20 count hidden states, of which the first is the embedding). Retain states are held after every
    block up to the highest, as in the authors' code."""
    alpha: float = 10.0
    """Weight of the whole; on forget it falls to half, on retain it rises from 0 to half along the walk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0:
            raise InputError(f"circuit_breakers: alpha must be positive, got {self.alpha}")

    def check(self, model: Any) -> None:
        if self.target_layers is not None:
            check_layers("circuit_breakers", self.target_layers, model.cfg.n_layers)

    def plan(self, problem: Problem) -> Plan:
        n_layers: int = problem.model.cfg.n_layers
        middle = tuple(dict.fromkeys(max(0, 5 * n_layers // of - 1) for of in (16, 8)))
        asked = middle if self.target_layers is None else self.target_layers
        targets = check_layers("circuit_breakers", asked, n_layers)
        return Plan(_upto(problem, "circuit_breakers", targets[-1]), targets, tuple(range(targets[-1] + 1)))

    def loss(self, forget: States, retain: States, pair: _Pair, seed: int) -> Float[Tensor, ""]:
        del seed
        on_forget, on_retain = breaker_weights(self.alpha, pair.progress)
        rerouted = rerouting_loss(forget, pair.forget_before)
        return on_forget * rerouted + on_retain * distance_loss(retain, pair.retain_before)
