"""CIR: collapse of irrelevant representations (Sondej & Yang 2025, arXiv 2509.11816).

A weight's gradient is ``sum_t g_t x_t^T``. What the tokens of the forget text have in common (their mean and their top
principal components) is general machinery, not the fact; so it is taken out of every ``x_t`` and every ``g_t`` before
the sum, and only what is peculiar to single tokens is ever written into the weights.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooklearn import editing, forward, linalg, models
from hooklearn.data import TokenBatch, cycle
from hooklearn.edit.method import Method, Problem, Updates, delta_of, norm
from hooklearn.edit.steering import Positions, after_block, check_layers, read_at, states
from hooklearn.locate.capture import token_rows
from hooklearn.losses import LossSum
from hooklearn.moments import Moments, MomentSum
from hooklearn.train import fit, nll
from hooklearn.types import InputError, Site, Tape

NOTHING = 1e-4
"""Share of the gradient's norm below which what the collapse left is taken for float32 rounding."""

# ------------------------------------------------------------------------------------ the collapse


def irrelevant(moments: Moments, count: int) -> Float[Tensor, "d rank"]:
    """Orthonormal basis of the mean and the top ``count - 1`` principal components of the centred tokens.

    The components are exact (from the covariance) and made orthogonal to the mean, where the paper's code projects out
    one after the other and so leaves a little of the mean. Never more than the tokens span.
    """
    d = moments.sum.shape[0]
    mean = moments.mean / moments.mean.norm().clamp_min(torch.finfo(torch.float32).tiny)
    k = min(count - 1, d, moments.n - 1)
    if count < 1 or k < 0:
        return torch.zeros(d, 0)
    vectors = mean[:, None]
    if k > 0:
        components, values = linalg.pca(moments.covariance(), k)
        real = values > d * torch.finfo(torch.float32).eps * values[0].clamp_min(0)
        vectors = torch.cat([vectors, components[:, real]], 1)
    u, s, _ = torch.linalg.svd(vectors.double(), full_matrices=False)
    return u[:, s > NOTHING].to(vectors.dtype)


def collapsed(
    update: Float[Tensor, "d_out d_in"], x_basis: Float[Tensor, "d_in k"], g_basis: Float[Tensor, "d_out k"]
) -> Float[Tensor, "d_out d_in"]:
    """``(I - Q_g Q_g^T) (sum_t g_t x_t^T) (I - Q_x Q_x^T)``: what collapsing every token first would sum to."""
    update = update - linalg.project(update, None, g_basis)
    return update - linalg.project(update, x_basis, None)


def inner_tokens(batch: TokenBatch, skip: int) -> Bool[Tensor, "batch pos"]:
    """Tokens that count: not padding, not the first ``skip`` of a sequence, not its last.

    A first token (BOS) is an attention sink whose states are far longer than any other, and nothing follows a
    last one. The paper's code drops the last column of the batch, which is the same where nothing is padded.
    """
    followed = torch.arange(1, batch.until.shape[1] + 1) < batch.until
    return batch.mask & followed & (batch.position >= skip)


def confusion_loss(now: Float[Tensor, "layer token d"], before: Float[Tensor, "layer token d"]) -> Float[Tensor, ""]:
    """Mean over layers and tokens of ``ReLU(<o_t, o0_t>) / n^2``, n being the layer's mean ``|o0_t|``.

    1 or so before the edit, 0 once no MLP output points where it did. It is *not* clipped from above: that stopped
    unlearning and not the disruption (the authors).
    """
    length = before.norm(dim=-1).mean(-1, keepdim=True)
    return ((now * before).sum(-1) / length**2).relu().mean()


def drift_loss(now: Float[Tensor, "1 token d"], before: Float[Tensor, "1 token d"]) -> Float[Tensor, ""]:
    """Mean distance of the retain states to what they were, in units of their mean length."""
    return (now - before).norm(dim=-1).mean() / before.norm(dim=-1).mean()


# -------------------------------------------------------------------------------------- the method


@dataclass(frozen=True)
class _Pair:
    """One step's batches and what the unedited model holds on them."""

    forget: TokenBatch
    retain: TokenBatch | None
    outputs: Float[Tensor, "layer token d"] | None
    held: Float[Tensor, "1 token d"] | None


@dataclass(frozen=True, kw_only=True)
class CIR(Method):
    """Collapse of irrelevant representations: no common direction of forget tokens is ever written into a weight.

    The first epoch only gathers; each later one takes out the components of the epoch before, found anew from the
    tokens as they came (not collapsed). Every step has the same norm over all sites.
    """

    name: ClassVar[str] = "cir"
    source: ClassVar[str] = "Sondej & Yang 2025, arXiv 2509.11816"
    ray: ClassVar[bool] = False
    step_length: ClassVar[str] = "step_norm"
    loss: Literal["mlp_confuse", "ascent"] = "mlp_confuse"
    """What goes down: alignment of MLP outputs with the old ones at the target layers, or the forget log-likelihood."""
    target_layers: tuple[int, ...] | None = None
    """Layers whose MLP outputs are confused; only sites up to the highest are edited, with ``ascent`` too (the
    early-layer variant). None: from 3/16 to 3/8 of the depth (6-11 of 32), with ``ascent`` all layers."""
    x_components: int = 24
    """Directions taken out of activations: the mean and so many less one components; 0 takes nothing out."""
    g_components: int = 36
    """The same of the gradients."""
    step_norm: float = 0.2
    """Frobenius norm of one step over all sites."""
    retain_rate: float = 3e-4
    """Learning rate of the retain step (SGD) that follows each: holds the states after the highest target layer, at
    all tokens. 0 leaves it out, and then no retain corpus is needed."""
    hold: Literal["retain", "reference"] = "retain"
    """The corpus whose states are held; refused where ``retain_rate`` is 0."""
    positions: Positions = "labelled"
    """Where the loss is taken: scored tokens, the tokens that predict them (``predicting``), or ``all``. Refused with
    ``ascent``, which is of scored tokens."""
    skip: int = 1
    """Tokens dropped at the start of a sequence."""
    epochs: int = 20
    """Epochs with updates, after the first one without."""
    every: int = 2
    """Steps between two looks at the budget."""

    def __post_init__(self) -> None:
        for name, least in (("x_components", 0), ("g_components", 0), ("retain_rate", 0), ("skip", 0)):
            if getattr(self, name) < least:
                raise InputError(f"cir: {name} must be {least} or more, got {getattr(self, name)}")
        if self.step_norm <= 0 or self.epochs < 1 or self.every < 1:
            raise InputError(
                f"cir: step_norm, epochs and every must be positive, got {self.step_norm}, {self.epochs}, {self.every}"
            )
        if self.loss == "ascent":
            self.refuse("positions", why="the log-likelihood that goes down with loss 'ascent' is of scored tokens")
        if self.retain_rate == 0:
            self.refuse("hold", why="with retain_rate 0 no states are held")

    def check(self, model: Any) -> None:
        if self.target_layers is not None:
            check_layers("cir", self.target_layers, model.cfg.n_layers)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.hold,) if self.retain_rate else ()

    def path(self, problem: Problem) -> Iterator[Updates]:
        model = problem.model
        targets = self._targets(model.cfg.n_layers)
        sites = [site for site in problem.sites if site.layer <= targets[-1]]
        if routed := [site.name for site in sites if models.expert_of(site)]:
            raise InputError(f"cir: counts on every token at every site, and an expert is not given all: {routed[0]}")
        if not sites:
            raise InputError(f"cir: no site given lies in layers 0-{targets[-1]}, below its target layers")
        params = models.parameters_of(model, sites)
        retain_rule = torch.optim.SGD(params, lr=self.retain_rate)
        updates: Updates = {s.name: torch.zeros(s.d_out, s.d_in) for s in sites}
        components: dict[str, tuple[Tensor, Tensor]] = {}
        kept = self._kept(problem)

        for epoch in range(self.epochs + 1):
            seen = {s.name: (MomentSum(s.d_in), MomentSum(s.d_out)) for s in sites}
            pairs = self._pairs(problem, targets, kept)
            while chunk := list(itertools.islice(pairs, self.every)):  # drawn while the model is unedited
                with editing.edited(model, delta_of(updates)), models.trainable(model, params):
                    for pair in chunk:
                        tapes = self._tapes(problem, sites, targets, pair)
                        _add(seen, tapes)
                        if epoch > 0:
                            self._step(problem, sites, tapes, components)
                            self._hold(problem, targets, pair, retain_rule)
                    moved = {s.name: models.weight(model, s).detach().clone() for s in sites}
                if epoch > 0:
                    updates = {s.name: moved[s.name] - models.weight(model, s).detach() for s in sites}
                    yield updates
            components = {
                name: (irrelevant(x.moments(), self.x_components), irrelevant(g.moments(), self.g_components))
                for name, (x, g) in seen.items()
            }

    def _targets(self, n_layers: int) -> tuple[int, ...]:
        if self.target_layers is not None:
            return check_layers("cir", self.target_layers, n_layers)
        if self.loss == "ascent":
            return tuple(range(n_layers))
        first = 3 * n_layers // 16
        return tuple(range(first, max(first + 1, 3 * n_layers // 8)))

    def _kept(self, problem: Problem) -> Iterator[TokenBatch] | None:
        """Text to be held, shuffled and without end: an epoch of forget goes on where the one before stopped, or what
        a large corpus has beyond so many batches would never be held."""
        if not self.retain_rate:
            return None
        rows = problem.encoded(self.hold)
        return cycle(rows, max_tokens=problem.max_tokens, seed=problem.seed, epochs=sys.maxsize)

    def _pairs(
        self, problem: Problem, targets: Sequence[int], retain: Iterator[TokenBatch] | None = None
    ) -> Iterator[_Pair]:
        """One epoch: the same forget batches in the same order, each with the next that is to be held; with their
        references, read from the unedited model."""
        for batch in problem.stream("forget"):
            kept = next(retain) if retain is not None else None
            outputs = held = None
            with torch.no_grad(), forward.autocast(problem.model, problem.precision):
                if self.loss == "mlp_confuse":
                    outputs = self._outputs(problem.model, batch, targets)
                    problem.tokens += batch.n_tokens
                if kept is not None:
                    held = states(problem.model, kept, [after_block(targets[-1])], kept.mask, targets[-1])
                    problem.tokens += kept.n_tokens
            yield _Pair(batch, kept, outputs, held)

    def _outputs(self, model: Any, batch: TokenBatch, targets: Sequence[int]) -> Float[Tensor, "layer token d"]:
        points = [f"blocks.{layer}.mlp.hook_out" for layer in targets]
        return states(model, batch, points, self._read(batch), targets[-1])

    def _read(self, batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
        """Tokens whose outputs are to point elsewhere."""
        return read_at(batch, self.positions) & (batch.position >= self.skip)

    def _tapes(self, problem: Problem, sites: Sequence[Site], targets: Sequence[int], pair: _Pair) -> dict[str, Tape]:
        """Inputs and output gradients of the tokens that count, as the model is now."""
        model, where = problem.model, inner_tokens(pair.forget, self.skip)
        if pair.outputs is not None:  # a last token says nothing of what follows, but this loss is about itself too
            where = where | self._read(pair.forget)
        with _watched(model, sites) as (inputs, outputs), forward.autocast(model, problem.precision):
            if pair.outputs is None:
                loss = -nll(model, pair.forget).total
            else:
                loss = confusion_loss(self._outputs(model, pair.forget, targets), pair.outputs)
        gradients = torch.autograd.grad(loss, list(outputs.values()), materialize_grads=True)
        problem.tokens += pair.forget.n_tokens
        return {
            name: Tape(token_rows(inputs[name], where).float(), token_rows(g, where).float())
            for name, g in zip(outputs, gradients, strict=True)
        }

    def _step(
        self,
        problem: Problem,
        sites: Sequence[Site],
        tapes: dict[str, Tape],
        components: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        """Down the collapsed gradient, by the same length whatever the gradient's."""
        raw = {name: tape.update() for name, tape in tapes.items()}
        left = {name: collapsed(update, *components[name]) for name, update in raw.items()}
        size, before = norm(left), norm(raw)
        if before == 0:
            return  # the loss is at its floor
        if size < NOTHING * before:
            x, g = (min(basis[side].shape[1] for basis in components.values()) for side in (0, 1))
            raise InputError(
                f"cir: {self.x_components} x_components and {self.g_components} g_components leave nothing of the "
                f"gradient: at some site the forget text has no more than {x} and {g} such directions. Take out fewer "
                "(half of that, say), or give more forget text"
            )
        for site in sites:
            if site.name in left:  # an expert that no token was sent to has none
                models.add_(problem.model, site, left[site.name], -self.step_norm / size)

    def _hold(self, problem: Problem, targets: Sequence[int], pair: _Pair, rule: torch.optim.Optimizer) -> None:
        if pair.retain is None or pair.held is None:
            return
        before = pair.held

        def objective(model: Any, batch: TokenBatch) -> LossSum:
            now = states(model, batch, [after_block(targets[-1])], batch.mask, targets[-1])
            return LossSum(drift_loss(now, before), 1)

        run = fit(problem.model, [pair.retain], rule=rule, objective=objective, precision=problem.precision)
        problem.tokens += run.tokens


def _add(seen: dict[str, tuple[MomentSum, MomentSum]], tapes: dict[str, Tape]) -> None:
    for name, tape in tapes.items():
        assert tape.g is not None
        seen[name][0].add(tape.x)
        seen[name][1].add(tape.g)


@contextlib.contextmanager
def _watched(model: Any, sites: Sequence[Site]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Site inputs, and site outputs *on the graph*: their gradients are those of whatever loss is computed inside."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(value: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens passes it by name)
            inputs[name] = value.detach()

        return hook

    def pass_on(name: str):
        def hook(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            outputs[name] = value
            return value  # attention hooks see a reshaped copy: returned, it is the one that is used

        return hook

    hooks = []
    for site in sites:
        hook_in, hook_out = models.hook_names(site)
        hooks += [(hook_in, keep(site.name)), (hook_out, pass_on(site.name))]
    with model.hooks(fwd_hooks=hooks):
        yield inputs, outputs
