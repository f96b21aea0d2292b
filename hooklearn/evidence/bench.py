"""The workbench: arms, corpora, and what was recorded of them, so that each arm reads each corpus once.

Hidden states are taken after every block (``blocks.L.hook_out``), at the positions that predict a labelled token,
in float32. Layer L is the state after block L.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import editing, forward, losses, models
from hooklearn.attack import ArmState
from hooklearn.data import Corpus, TokenBatch, batches, encode
from hooklearn.deltas import Delta
from hooklearn.evidence import nulls
from hooklearn.types import InputError, NumericalError, Site

Pool = Literal["mean", "first", "last"]


@dataclass(frozen=True)
class Recording:
    """Hidden states of one arm on one corpus."""

    layers: tuple[int, ...]
    batches: tuple[TokenBatch, ...]
    hidden: tuple[Float[Tensor, "_layer _kept _d"], ...]
    """One per batch, in the order of its ``targets``."""
    n_items: int

    def pooled(self, how: Pool) -> Float[Tensor, "layer item d"]:
        """One vector per item: the mean over its scored positions, the first or the last of them.

        The first one has seen the prompt only: what the model is about to do, whatever it then does. Never token 0,
        which knows nothing yet.
        """
        parts = torch.zeros(len(self.layers), self.n_items, self.hidden[0].shape[-1], dtype=torch.float64)
        for batch, states in zip(self.batches, self.hidden, strict=True):
            owner, items = batch.owner, torch.tensor([s.item for s in batch.sequences])
            if how == "mean":
                n = len(batch.sequences)
                sums = torch.zeros(len(states), n, states.shape[-1]).double().index_add(1, owner, states.double())
                parts[:, items] = sums / torch.bincount(owner, minlength=n)[:, None]
            else:
                order = range(len(owner)) if how == "last" else reversed(range(len(owner)))
                at = {int(owner[i]): i for i in order}  # the last one written stays
                parts[:, items] = states[:, [at[i] for i in range(len(items))]].double()
        return parts

    def item_means(self, per_token: Sequence[Float[Tensor, "_row _kept"]]) -> np.ndarray:
        """Values per scored token, one tensor a batch -> ``[row, item]`` means over each item's tokens."""
        out = torch.zeros(len(per_token[0]), self.n_items, dtype=torch.float64)
        for batch, values in zip(self.batches, per_token, strict=True):
            n = len(batch.sequences)
            sums = torch.stack([losses.sequence_sums(row.double(), batch.owner, n) for row in values])
            out[:, [s.item for s in batch.sequences]] = sums / torch.bincount(batch.owner, minlength=n)
        return out.numpy()


def texts(corpus: Corpus, model: Any, max_tokens: int = 1024) -> tuple[TokenBatch, ...]:
    """The same batches for every arm, so that states can be moved from one to another."""
    return tuple(batches(encode(corpus, models.tokenizer_of(model)), max_tokens=max_tokens))


@torch.no_grad()
def record(model: Any, stream: Sequence[TokenBatch], layers: Sequence[int]) -> Recording:
    """Read the model, in whatever state it is in.

    Raises:
        NumericalError: a state is not finite; the layer is named.
    """
    out: list[Tensor] = []
    for batch in stream:
        seen: dict[int, Tensor] = {}

        def keep(layer: int, into: dict[int, Tensor] = seen, where: Tensor = batch.keep):
            def hook(value: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens passes it by name)
                into[layer] = value.detach()[where.to(value.device)].float().cpu()

            return hook

        with model.hooks(fwd_hooks=[(block(layer), keep(layer)) for layer in layers]):
            forward.hidden(model, batch)
        for layer in layers:
            if not bool(seen[layer].isfinite().all()):
                raise NumericalError(f"hidden states after layer {layer} are not finite")
        out.append(torch.stack([seen[layer] for layer in layers]))
    return Recording(tuple(layers), tuple(stream), tuple(out), sum(len(b.sequences) for b in stream))


def block(layer: int) -> str:
    """Where the hidden state after a layer passes."""
    return f"blocks.{layer}.hook_out"


@contextlib.contextmanager
def randomised(model: Any, seed: int) -> Iterator[Any]:
    """The architecture without what it learned: every matrix is redrawn at its own scale, vectors stay.

    What a probe reads here comes from the tokens themselves. The weights are back, bit for bit, afterwards.
    """
    generator = torch.Generator().manual_seed(seed)
    with editing.restored(model), torch.no_grad():
        for parameter in models.all_parameters(model):
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator) * float(parameter.float().std())
                parameter.copy_(noise)
        yield model


def evenly(n_layers: int, at_most: int) -> tuple[int, ...]:
    """Evenly spaced layers, the last always among them."""
    n = min(n_layers, at_most)
    return tuple(sorted({round((i + 1) * n_layers / n) - 1 for i in range(n)}))


# --------------------------------------------------------------------------------- arms and weights


def onto_model(delta: Delta, model: Any) -> Delta:
    """The delta where the model is: one that was read from a file lies on the host, an attacker's does not."""
    device = models.device_of(model)
    return replace(delta, updates={name: update.to(device) for name, update in delta.updates.items()})


def relearned(edited: ArmState, attacker: Delta, name: str = "relearned") -> ArmState:
    """The arm after an attack: the edited one plus what the attacker added (relearned minus edited weights)."""
    own = edited.delta or Delta({}, attacker.base, attacker.base_hash)
    names = dict.fromkeys([*own.updates, *attacker.updates])
    total = {n: sum(u for u in (own.updates.get(n), attacker.updates.get(n)) if u is not None) for n in names}
    return ArmState(name, edited.model, Delta(total, own.base, own.base_hash))  # type: ignore[arg-type]


def difference(a: ArmState, b: ArmState, sites: Sequence[Site]) -> Delta:
    """Weights of ``b`` minus weights of ``a`` at the sites; bound to no base, as ``a`` may itself be edited."""
    if a.model is b.model and a.delta is None and b.delta is not None:
        return Delta({s.name: b.delta.updates[s.name] for s in sites if s.name in b.delta.updates})
    kept = []
    for arm in (a, b):
        with arm.entered(training=False) as model:
            kept.append({s.name: models.weight(model, s).detach().clone() for s in sites})
    return Delta({name: kept[1][name] - kept[0][name] for name in kept[0]})


# ---------------------------------------------------------------------------------------- the bench


@dataclass
class Bench:
    """What every measure is given. ``arms`` holds at least ``edited`` and ``original``."""

    arms: Mapping[str, ArmState]
    corpora: Mapping[str, Corpus]
    sites: Sequence[Site]
    layers: tuple[int, ...]
    benign: ArmState | None = None
    """A second model that never had the behaviour: it was taught good answers to such prompts, in the form of the bad
    ones. What differs between the original and a never-learned model that never saw that form is not the behaviour
    alone."""
    attacks: Mapping[str, Delta] = field(default_factory=dict[str, Delta])
    """Arm -> what an attack adds to its weights: ``edited``, and ``never`` for what relearning looks like where
    nothing comes back."""
    samples: Mapping[str, Sequence[str]] | None = None
    """Arm -> sampled completions, prompt by prompt; drawn here when not given."""
    draws: int = nulls.DRAWS
    random_lines: int = nulls.LINES
    seed: int = 0
    max_tokens: int = 1024
    progress: Callable[[str], None] = lambda _: None
    no_benign: str = ""
    """Why there is none, after a sentence that says so."""
    but_unlike: str = ""
    """Why a never-learned model that was given is not among the arms, after a sentence that says it is needed."""
    _recordings: dict[tuple[str, str], Recording] = field(default_factory=dict, init=False)

    @property
    def original(self) -> ArmState:
        return self.arms["original"]

    @property
    def heldout(self) -> Corpus:
        """The behaviour on items that the edit never saw."""
        if "heldout" not in self.corpora:
            raise InputError(f"evidence needs a 'heldout' corpus; given: {', '.join(self.corpora) or 'none'}")
        return self.corpora["heldout"]

    def rng(self, what: str) -> np.random.Generator:
        """A generator of its own for each measure: leaving one out changes no other."""
        return np.random.default_rng([self.seed, *what.encode()])

    def recording(self, arm: str, corpus: Corpus) -> Recording:
        """Hidden states of an arm, of ``benign``, or of ``random``: the original's architecture without what it
        learned."""
        key = (arm, corpus.hash)
        if key not in self._recordings:
            self.progress(f"evidence: reading {corpus.name} with {arm}")
            stream = texts(corpus, self.original.model, self.max_tokens)
            state = self.benign if arm == "benign" else self.arms["original" if arm == "random" else arm]
            assert state is not None
            with contextlib.ExitStack() as stack:
                model = stack.enter_context(state.entered(training=False))
                if arm == "random":
                    stack.enter_context(randomised(model, self.seed))
                self._recordings[key] = record(model, stream, self.layers)
        return self._recordings[key]

    def states(self, arm: str, corpus: Corpus, how: Pool) -> np.ndarray:
        """``[layer, item, d]``"""
        return self.recording(arm, corpus).pooled(how).numpy()
