"""A sparse autoencoder that somebody trained, as a dictionary of directions: read from its folder, without its library.

SAELens' layout: ``cfg.json`` and ``sae_weights.safetensors`` with ``W_enc [d, latent]``, ``W_dec [latent, d]``,
``b_enc``, ``b_dec`` and, for JumpReLU, ``threshold`` (https://decoderesearch.github.io/SAELens).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import disk, forward, models
from hooklearn.data import Corpus, batches, encode
from hooklearn.forward import Precision
from hooklearn.locate.fit import held_out_groups, item_means
from hooklearn.site_names import matches
from hooklearn.traits import row_of
from hooklearn.types import InputError, Site

if TYPE_CHECKING:
    import pandas as pd

ARCHITECTURES = ("standard", "jumprelu", "topk")


@dataclass(frozen=True)
class Place:
    """Weights of one block."""

    layer: int
    part: str = "all"
    """As in ``sites=``; empty: none."""

    def holds(self, site: Site) -> bool:
        return site.layer == self.layer and matches(site, self.part)

    def __str__(self) -> str:
        which = {"all": "", "": "no weight known in "}.get(self.part, f"{self.part} of ")
        return f"{which}block {self.layer}"


_BEFORE = ((-1, "all"), (0, "all"))
_BETWEEN = ((0, "attn"), (0, "mlp"))
_AFTER = ((0, "all"), (1, "all"))
_AFTER_MLP = ((0, "mlp"), (1, "all"))
_INTO_ATTN, _INTO_MLP = ((0, ""), (0, "attn")), ((0, ""), (0, "mlp"))
HOOKS = {
    "hook_resid_pre": _BEFORE, "hook_in": _BEFORE, "hook_resid_mid": _BETWEEN, "hook_attn_out": _BETWEEN,
    "attn.hook_out": _BETWEEN, "hook_resid_post": _AFTER, "hook_out": _AFTER, "hook_mlp_out": _AFTER_MLP,
    "mlp.hook_out": _AFTER_MLP, "ln1.hook_normalized": _INTO_ATTN, "hook_attn_in": _INTO_ATTN,
    "attn.hook_in": _INTO_ATTN, "ln2.hook_normalized": _INTO_MLP, "hook_mlp_in": _INTO_MLP, "mlp.hook_in": _INTO_MLP,
    "attn.hook_z": ((0, ""), (0, "attn.o")), "mlp.hook_post": ((0, ""), (0, "mlp.out")),
}  # fmt: skip
"""Hook point in a block -> (blocks further on, part of that block) which writes there last; which reads there first. Of
what a norm, attention or an activation function has made, no weight is the writer."""


@dataclass(frozen=True)
class Dictionary:
    """Latents of one autoencoder at one hook point: where each looks (encoder) and what it writes (decoder)."""

    name: str
    hook: str
    """The TransformerLens hook point that it was trained at."""
    architecture: str
    encoder: Float[Tensor, "d latent"] = field(repr=False)
    decoder: Float[Tensor, "latent d"] = field(repr=False)
    bias: Float[Tensor, " latent"] = field(repr=False)
    centre: Float[Tensor, " d"] = field(repr=False)
    """Taken from the activations first."""
    threshold: Float[Tensor, " latent"] | None = field(default=None, repr=False)
    """JumpReLU: what a latent must exceed."""
    k: int = 0
    """TopK: how many latents are on at a token."""
    by_norm: bool = False
    """TopK: latents are chosen, and given, in units of their decoder vectors' norms."""
    unreadable: str = ""
    """Why its latents cannot be computed here; their directions can be used all the same."""
    hook_out: str = ""
    """Of a transcoder: where what it writes belongs, which is not where it looks."""

    @property
    def written(self) -> Place:
        """The weights that write last where the decoder's directions belong."""
        return self._place(0)

    @property
    def read(self) -> Place:
        """Those that read there first, where attention comes before the MLP."""
        return self._place(1)

    def _place(self, side: int) -> Place:
        hook = self.hook_out or self.hook
        layer = re.findall(r"\d+", hook)[0]
        further, part = HOOKS.get(hook.removeprefix(f"blocks.{layer}."), ((0, ""), (0, "")))[side]
        return Place(int(layer) + further, part)

    def encode(self, x: Float[Tensor, "token d"]) -> Float[Tensor, "token latent"]:
        """How strongly each latent is on.

        Raises:
            InputError: activations of another width, or an architecture that is not known here.
        """
        if self.unreadable:
            raise InputError(f"{self.name}: {self.unreadable}; choose latents yourself")
        if x.shape[-1] != self.encoder.shape[0]:
            raise InputError(f"{self.name}: activations of {x.shape[-1]} numbers; it reads {self.encoder.shape[0]}")
        pre = (x.float() - self.centre) @ self.encoder + self.bias
        if self.by_norm:
            pre = pre * self.decoder.norm(dim=1)
        if self.threshold is not None:
            return pre.relu() * (pre > self.threshold)
        if self.k:
            top = pre.topk(self.k, dim=-1)
            return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        return pre.relu()

    def directions(self, latents: Sequence[int]) -> Float[Tensor, "d rank"]:
        """What these latents write, a column each.

        Raises:
            InputError: none, or a number that is not a latent's.
        """
        chosen, n = [int(i) for i in latents], self.decoder.shape[0]
        if not chosen or not all(0 <= i < n for i in chosen):
            raise InputError(f"{self.name}: latents {chosen[:8]}; give at least one, between 0 and {n - 1}")
        return self.decoder[chosen].T

    def separating(
        self, model: Any, forget: Corpus, retain: Corpus, *, seed: int = 0, precision: Precision = "auto"
    ) -> pd.DataFrame:
        """All latents, those that tell forget from retain best first.

        An item counts with the mean of a latent over its labelled tokens. Latents are ranked on two thirds of the
        groups and judged on the rest: the best of many thousands looks good on the data that it was chosen on.

        Returns:
            ``latent``, ``auc`` (held out), ``auc_fitted``, and the mean activation on ``forget`` and ``retain``. An AUC
            below 1/2 is a latent of retain.
        Raises:
            InputError: the model has no such hook point, a corpus has one group only, or as in :meth:`encode`.
        """
        import pandas as pd

        if self.hook not in model.hook_dict:
            raise InputError(f"{self.name}: trained at {self.hook!r}, which this model does not have")
        held = held_out_groups(forget, retain, seed=seed)
        bad, good = (self._items(model, corpus, precision) for corpus in (forget, retain))
        out = [torch.tensor([g in held for g in corpus.groups]) for corpus in (forget, retain)]
        auc, fitted = _auc(bad[out[0]], good[out[1]]), _auc(bad[~out[0]], good[~out[1]])
        table = pd.DataFrame(
            {
                "latent": range(len(self.bias)), "auc": auc.numpy(), "auc_fitted": fitted.numpy(),
                "forget": bad.mean(0).numpy(), "retain": good.mean(0).numpy(),
            }
        )  # fmt: skip
        order = (fitted - 1 / 2).abs().argsort(descending=True, stable=True)
        return table.iloc[order.numpy()].reset_index(drop=True)

    @torch.no_grad()
    def _items(self, model: Any, corpus: Corpus, precision: Precision) -> Float[Tensor, "item latent"]:
        sequences = encode(corpus, models.tokenizer_of(model))
        means: dict[int, Tensor] = {}
        seen: dict[str, Tensor] = {}

        def see(value: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens passes it by name)
            seen[self.hook] = value

        for batch in batches(sequences, share=row_of(model)):
            with model.hooks(fwd_hooks=[(self.hook, see)]), forward.autocast(model, precision):
                forward.hidden(model, batch)
            if not seen:
                raise InputError(f"{self.name}: hook {self.hook!r} did not fire")
            rows = seen.pop(self.hook)[batch.labels.to(models.device_of(model))]
            latents = self.encode(rows.flatten(1).cpu())
            means |= dict(zip((s.item for s in batch.sequences), item_means(latents, batch), strict=True))
        return torch.stack([means[i] for i in range(len(corpus))])


def _auc(bad: Float[Tensor, "item latent"], good: Float[Tensor, "other latent"]) -> Float[Tensor, " latent"]:
    """Mann-Whitney: the share of pairs in which the bad item is higher, ties as a half."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(torch.cat([bad, good]).numpy(), axis=0))[: len(bad)]
    return ((ranks.sum(0) - len(bad) * (len(bad) + 1) / 2) / (len(bad) * len(good))).float()


def read_sae(folder: str | Path) -> Dictionary:
    """An autoencoder's folder in SAELens' layout, of any release of it.

    Raises:
        InputError: files missing or damaged, shapes that do not fit, no hook point, or a transcoder's output without
            one.
    """
    folder = Path(folder)
    config: Any = disk.load_json(folder / "cfg.json")
    tensors, _ = disk.load_tensors(folder / "sae_weights.safetensors")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'cfg.json'}: expected a mapping")
    more: Any = config["metadata"] if isinstance(config.get("metadata"), dict) else {}  # since release 6
    architecture = str(config.get("architecture", "standard"))
    hook = _said(more, config, "hook_name", "hook_point")
    hook_out = _said(more, config, "hook_name_out")
    wanted = {"hook_name": hook} | ({"hook_name_out": hook_out} if hook_out or "transcoder" in architecture else {})
    for key, found in wanted.items():
        if not re.search(r"\d", found):
            raise InputError(f"{folder / 'cfg.json'}: says no hook point with a layer ({key}: {found!r})")
    lacking = [name for name in ("W_enc", "W_dec", "b_dec") if name not in tensors]
    if lacking:
        raise InputError(f"{folder}: no tensor {', '.join(lacking)} among {sorted(tensors)}")
    encoder, decoder, out = (tensors[name].float() for name in ("W_enc", "W_dec", "b_dec"))
    if encoder.ndim != 2 or encoder.shape != decoder.T.shape or out.shape != encoder.shape[:1]:
        shapes = {name: list(tensors[name].shape) for name in ("W_enc", "W_dec", "b_dec")}
        raise InputError(f"{folder}: shapes do not fit one another: {shapes}")
    kind = str(config.get("activation_fn", config.get("activation_fn_str", "relu")))
    if architecture == "standard" and kind.startswith("topk"):  # before release 6
        architecture, config = "topk", {**(config.get("activation_fn_kwargs") or {}), **config}
    k = config.get("k", 0) if architecture == "topk" else 0
    why = _unreadable(config, architecture, tensors, k, encoder.shape[1])
    if architecture == "standard" and kind != "relu" and not why:
        why = f"its activation is {kind!r}, and only relu and topk are computed here"
    centred = config.get("apply_b_dec_to_input", True)
    return Dictionary(
        folder.name, hook, architecture, encoder, decoder,
        tensors.get("b_enc", torch.zeros(encoder.shape[1])).float(), out if centred else torch.zeros_like(out),
        tensors["threshold"].float() if architecture == "jumprelu" and not why else None, k if not why else 0,
        bool(config.get("rescale_acts_by_decoder_norm", False)), why, hook_out,
    )  # fmt: skip


def _said(more: dict[str, Any], config: dict[str, Any], *keys: str) -> str:
    return next((str(c[k]) for c in (more, config) for k in keys if c.get(k)), "")


def _unreadable(config: dict[str, Any], architecture: str, tensors: dict[str, Tensor], k: Any, latents: int) -> str:
    if architecture not in ARCHITECTURES:
        return f"architecture {architecture!r} is not computed here, only {', '.join(ARCHITECTURES)}"
    if "b_enc" not in tensors or tensors["b_enc"].shape != (latents,):
        return "it has no b_enc of one number a latent"
    if architecture == "jumprelu" and ("threshold" not in tensors or tensors["threshold"].shape != (latents,)):
        return "it has no threshold of one number a latent"
    if architecture == "topk" and not (isinstance(k, int) and 1 <= k <= latents):
        return f"k is {k!r}"
    if (how := config.get("normalize_activations", "none")) not in ("none", False, None):
        return f"it was trained on activations that were normalised ({how})"
    return ""
