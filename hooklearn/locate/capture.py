"""Capture: the inputs and output gradients of sites, batch by batch, at TransformerLens hook points.

Memory is constant in the number of tokens: one batch of tapes lives at a time. The identity behind everything,
for ``y = W x``: ``dL/dW = sum_t g_t x_t^T``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooklearn import editing, forward, integrity, losses, models, parallel
from hooklearn.data import TokenBatch
from hooklearn.forward import Precision
from hooklearn.moments import add_product
from hooklearn.transfer import onto, rows_at
from hooklearn.types import InputError, NumericalError, Site, Tape

Labels = Literal["given", "sampled"]


@dataclass
class _Recorder:
    """Raw hook values of the current batch."""

    x: dict[str, Tensor] = field(default_factory=dict)
    g: dict[str, Tensor] = field(default_factory=dict)
    chosen: dict[str, Tensor] = field(default_factory=dict)
    """Where tokens were sent, by the hook point that says so: ``[token, chosen]`` numbers of experts."""
    start: Tensor | None = None
    """Where the graph begins: the input of the lowest block that holds a site."""

    def clear(self) -> None:
        self.x.clear()
        self.g.clear()
        self.chosen.clear()
        self.start = None


@contextlib.contextmanager
def _recording(model: Any, sites: Sequence[Site], gradients: bool) -> Iterator[_Recorder]:
    """Hooks at every site; with gradients, the graph starts at the lowest block that holds a site.

    No parameter needs a gradient: the block's input is made the leaf, so backward stops there and no weight
    gradient is ever formed by autograd.
    """
    record = _Recorder()

    def keep(into: dict[str, Tensor], name: str):
        def hook(value: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens passes it by name)
            into[name] = value.detach()

        return hook

    def leaf(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        record.start = value.detach().requires_grad_()
        return record.start

    lowest = min(site.layer for site in sites)
    fwd: list[tuple[str, Any]] = [(f"blocks.{lowest}.hook_in", leaf)] if gradients else []
    bwd: list[tuple[str, Any]] = []
    for site in sites:
        hook_in, hook_out = models.hook_names(site)
        fwd.append((hook_in, keep(record.x, site.name)))
        bwd.append((hook_out, keep(record.g, site.name)))
    routers = dict.fromkeys(expert[0] for site in sites if (expert := models.expert_of(site)))
    fwd += [(router, keep(record.chosen, router)) for router in routers]
    frozen = [p for p in models.all_parameters(model) if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        with editing.in_eval(model), model.hooks(fwd_hooks=fwd, bwd_hooks=bwd if gradients else []):
            yield record
    finally:
        for p in frozen:
            p.requires_grad_(True)


def tapes(
    model: Any,
    stream: Iterable[TokenBatch],
    sites: Sequence[Site],
    *,
    gradients: bool = True,
    labels: Labels = "given",
    positions: Literal["all", "labelled"] = "all",
    precision: Precision = "auto",
    seed: int = 0,
    shared: bool = False,
) -> Iterator[tuple[TokenBatch, dict[str, Tape]]]:
    """Yield, for every batch, one :class:`Tape` per site; the loss is the *sum* of NLL over labelled tokens.

    Sites that read the same tensor (gate and up) share one object for ``x``.

    Args:
        labels: ``sampled`` draws the labels from the model itself (true Fisher), by a generator of its own.
        positions: ``labelled`` keeps scored tokens only: the ``x`` of each, and the ``g`` of the position that predicts
            it. The gradient at the token itself comes from what follows: at the last one it is 0.
        shared: only the batches that are this process's (:mod:`hooklearn.parallel`); what is made of them has to be
            added up.
    Raises:
        InputError: no sites, or a site whose hooks did not fire.
    """
    for batch, taped in _turns(model, stream, sites, gradients, labels, positions, precision, seed, shared):
        if taped is not None:
            yield batch, taped


def _turns(
    model: Any,
    stream: Iterable[TokenBatch],
    sites: Sequence[Site],
    gradients: bool,
    labels: Labels,
    positions: Literal["all", "labelled"],
    precision: Precision,
    seed: int,
    shared: bool,
) -> Iterator[tuple[TokenBatch, dict[str, Tape] | None]]:
    """:func:`tapes`, and None where this process only goes along: as many turns in every process."""
    if not sites:
        raise InputError("capture needs at least one site")
    for site in sites:
        if not set(models.hook_names(site)) <= model.hook_dict.keys():
            raise InputError(f"this model has no site {site.name}; models.sites(model) lists them")
    generator = torch.Generator().manual_seed(seed)
    for batch, own in _in_turn(stream, generator) if shared else ((b, True) for b in stream):
        with _recording(model, sites, gradients) as record:
            with forward.autocast(model, precision), torch.set_grad_enabled(gradients):
                states = forward.hidden(model, batch)
                if gradients:
                    _pull_back(model, states, record, batch, labels if own else "given", generator)
            where = (batch.mask, batch.mask) if positions == "all" else (batch.labels, batch.keep)
            yield batch, _taped(record, sites, where, gradients) if own else None
            record.clear()


def _in_turn(stream: Iterable[TokenBatch], generator: torch.Generator) -> Iterator[tuple[TokenBatch, bool]]:
    """This process's batches, with the generator where it would be had it drawn the labels of all. False: none was
    left for it, and it goes along with another's (:mod:`hooklearn.parallel`)."""
    for batches in parallel.rounds(stream):
        counts = [len(b.targets) for b in batches]
        before = counts[: parallel.rank()]
        for n in before:
            losses.skip_labels(n, generator)
        own = len(before) < len(batches)
        yield batches[len(before) if own else 0], own
        for n in counts[len(before) + 1 :]:
            losses.skip_labels(n, generator)


def _pull_back(
    model: Any, states: Tensor, record: _Recorder, batch: TokenBatch, labels: Labels, generator: torch.Generator
) -> None:
    """Backward of the summed NLL through the final ``states`` to where the graph begins, and to nothing beside it, such
    as an adapter that is being trained; logits live a few hundred positions at a time."""
    leaf = states.detach().requires_grad_()
    for scores, targets in forward.unembedded(model, leaf, batch.targets):
        scores.backward(losses.ce_gradient(scores.detach(), None if labels == "sampled" else targets, generator))
    assert record.start is not None
    states.backward(leaf.grad, inputs=[record.start])


def _taped(record: _Recorder, sites: Sequence[Site], where: tuple[Tensor, Tensor], gradients: bool) -> dict[str, Tape]:
    """``where``: the positions whose ``x``, and those whose ``g``, is wanted."""
    out: dict[str, Tape] = {}
    flat: dict[int, Tensor] = {}  # gate and up see the same input: flatten it once
    sent: dict[tuple[str, int], _Sent] = {}
    for site in sites:
        if (expert := models.expert_of(site)) is not None:
            if expert not in sent:
                sent[expert] = _Sent.of(record.chosen[expert[0]] == expert[1], where)
            out[site.name] = sent[expert].tape(site, record, gradients)
            continue
        if site.name not in record.x or (gradients and site.name not in record.g):
            side = "input" if site.name not in record.x else "gradient"
            raise InputError(f"site {site.name} did not fire ({side} hook); hooks: {models.hook_names(site)}")
        # taken out of the record: two copies of all sites at once would be the peak of a capture
        x = record.x.pop(site.name)
        key = x.data_ptr()
        if key not in flat:
            flat[key] = token_rows(x, where[0])
        g = token_rows(record.g.pop(site.name), where[1]) if gradients else None
        out[site.name] = Tape(flat[key], g)
    return out


def token_rows(value: Tensor, where: Tensor) -> Float[Tensor, "token d"]:
    """Attention hooks hold ``[batch pos head d_head]``; those of a shared expert ``[batch*pos d]``."""
    rows = value if value.shape[:2] == where.shape else value[None]
    return rows_at(rows, where.reshape(rows.shape[:2])).flatten(1)


@dataclass
class _Sent:
    """The tokens that one expert was given, padding with them, and which of them count: for ``x``, and for ``g``."""

    kept: list[Bool[Tensor, " given"]]
    tokens: list[Int[Tensor, " kept"]]
    """As numbers among the tokens of the batch that count."""
    x: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(chosen: Bool[Tensor, "every chosen"], where: tuple[Bool[Tensor, "batch pos"], ...]) -> _Sent:
        each = [onto(w.flatten(), chosen.device) for w in where]
        given = chosen.any(1).nonzero().flatten()  # in the order in which the expert sees them
        kept = [every[given] for every in each]
        return _Sent(kept, [(every.cumsum(0) - 1)[given[k]] for every, k in zip(each, kept, strict=True)])

    def tape(self, site: Site, record: _Recorder, gradients: bool) -> Tape:
        """The expert's gate and up share one object for their input; rows are none where no token was sent."""
        side = site.module.endswith(".out")
        if side not in self.x:
            self.x[side] = self._of(record.x, site.name, site.d_in, self.kept[0])
        g = self._of(record.g, site.name, site.d_out, self.kept[1]) if gradients else None
        return Tape(self.x[side], g, *self.tokens)

    def _of(self, values: dict[str, Tensor], name: str, d: int, kept: Tensor) -> Float[Tensor, "kept d"]:
        return values[name][kept] if len(kept) else torch.zeros(0, d, device=kept.device)


def capture(
    model: Any,
    stream: Iterable[TokenBatch],
    sites: Sequence[Site],
    *,
    gradients: bool = True,
    precision: Precision = "auto",
) -> dict[str, Tape]:
    """All tapes of a small corpus at once, concatenated (memory grows with tokens; for looking, not for edits)."""
    parts = [t for _, t in tapes(model, stream, sites, gradients=gradients, precision=precision)]
    return {
        s.name: Tape(
            torch.cat([p[s.name].x for p in parts]),
            torch.cat([p[s.name].g for p in parts]) if gradients else None,  # type: ignore[misc]
        )
        for s in sites
    }


def weight_gradients(
    model: Any,
    stream: Iterable[TokenBatch],
    sites: Sequence[Site],
    *,
    labels: Labels = "given",
    precision: Precision = "auto",
    seed: int = 0,
) -> tuple[dict[str, Tensor], int]:
    """``sum over tokens of g x^T`` for every site (gradient of the summed NLL), and the tokens it took.

    Accumulated in float32 or better (:func:`sums_dtype`) whatever the compute precision. Of a model that is spread over
    the processes so is each gradient: one site at a time is added up after every batch, and nobody keeps more than his
    part.

    Raises:
        NumericalError: the gradient of a site is not finite.
    """
    tokens, sharded = 0, models.is_sharded(model)
    total = {s.name: _zeros(model, s, sharded) for s in sites}
    for batch, taped in _turns(model, stream, sites, True, labels, "all", precision, seed, True):
        for site in sites:
            of_batch = _zeros(model, site, False) if sharded else total[site.name]
            if taped is not None:
                tape = taped.pop(site.name)
                assert tape.g is not None
                add_product(of_batch, tape.g, tape.x.to(tape.g.dtype))
            if sharded:
                total[site.name] += parallel.sum_shard_like(of_batch, total[site.name])
        tokens += batch.n_tokens if taped is not None else 0
    for name, gradient in total.items():
        if not sharded:
            parallel.add_(gradient)
        if not integrity.is_finite(gradient):
            raise NumericalError(f"the gradient at {name} is not finite")
    return total, int(parallel.total(tokens))


def sums_dtype(model: Any) -> torch.dtype:
    """Of what is summed over tokens: float32, or float64 where the weights are."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def _zeros(model: Any, site: Site, sharded: bool) -> Tensor:
    """Cut as the weight is or whole."""
    if sharded:
        return torch.zeros_like(models.weight(model, site).detach(), dtype=sums_dtype(model))
    return torch.zeros(site.d_out, site.d_in, dtype=sums_dtype(model), device=models.device_of(model))
