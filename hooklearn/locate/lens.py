"""What a direction at a site says in words: the tokens it writes (logit lens) and those it reads.

Writes: the direction, carried into the residual stream, through the final norm and the unembedding (nostalgebraist
2020; Dar et al. 2023, arXiv 2209.02535). Reads: the token embeddings, less their mean, that lie closest to what the
direction reads from the residual stream. Norms are applied as linear maps, their means and biases left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import models
from hooklearn.types import Side, Site

WRITERS = ("out", "o")
"""Last part of the name of sites whose output is added to the residual stream; all others read from it."""


class Lens:
    """The vocabulary seen from directions of one model."""

    def __init__(self, model: Any, top: int = 6) -> None:
        self.model = model
        self.top = top
        self._unembed = model.original_model.get_output_embeddings().weight.detach()
        self._embed = model.original_model.get_input_embeddings().weight.detach()
        mean = self._embed.float().mean(0)
        self._mean = mean
        # |E_v - m| from the parts: a second copy of the embedding is too large
        squares = torch.cat([block.float().square().sum(1) for block in self._embed.split(8192)])
        inner = self._embed.to(mean) @ mean
        self._norms = (squares - 2 * inner + mean @ mean).clamp_min(1e-12).sqrt()
        self.spelling = Spelling(models.tokenizer_of(model))

    @torch.no_grad()
    def words(self, site: Site, side: Side, basis: Float[Tensor, "d k"]) -> list[dict[str, list[str]]]:
        """Per direction the tokens under ``writes`` and ``reads``, and ``*_against``: those of its opposite.

        A list is empty where the direction has no such path: what the input of a query writes is up to attention.
        """
        basis = basis.to(self._mean)
        out: list[dict[str, list[str]]] = [
            {"writes": [], "writes_against": [], "reads": [], "reads_against": []} for _ in range(basis.shape[1])
        ]
        written, read = self.written(site, side, basis), self.read(site, side, basis)
        if written is not None:
            final = _linear(getattr(self.model, "ln_final", None), written)
            self._fill(out, "writes", self._unembed.to(final) @ final)
        if read is not None:
            scores = (self._embed.to(read) @ read - self._mean @ read) / self._norms[:, None]
            self._fill(out, "reads", scores)
        return out

    def written(self, site: Site, side: Side, basis: Float[Tensor, "d k"]) -> Float[Tensor, "d_model k"] | None:
        """The directions as they arrive in the residual stream."""
        writer = site.module.split(".")[-1] in WRITERS
        if writer:
            return self._weight(site) @ basis if side == "x" else basis
        after = self._neighbour(site, "out") if side == "g" and site.module.startswith("mlp.") else None
        return self._weight(after) @ basis if after is not None and after.d_in == basis.shape[0] else None

    def read(self, site: Site, side: Side, basis: Float[Tensor, "d k"]) -> Float[Tensor, "d_model k"] | None:
        """What the directions take from the residual stream."""
        writer = site.module.split(".")[-1] in WRITERS
        if writer:
            before = self._neighbour(site, "in") if side == "x" else None
            if before is None or before.d_out != basis.shape[0]:
                return None
            return _linear(self._norm(before), self._weight(before).T @ basis)
        return _linear(self._norm(site), basis if side == "x" else self._weight(site).T @ basis)

    def _weight(self, site: Site) -> Tensor:
        return models.weight(self.model, site).detach().to(self._mean)

    def _norm(self, site: Site) -> Any:
        name = "ln1" if site.module.startswith("attn") else "ln2"
        return getattr(self.model.blocks[site.layer], name, None)

    def _neighbour(self, site: Site, part: str) -> Site | None:
        """The site of the same module that comes before or after the hidden neurons."""
        name = ".".join([*site.module.split(".")[:-1], part])
        found = [s for s in models.sites(self.model, "all", [site.layer]) if s.module == name]
        return found[0] if found else None

    def _fill(self, out: list[dict[str, list[str]]], column: str, scores: Float[Tensor, "vocab k"]) -> None:
        for suffix, largest in (("", True), ("_against", False)):
            found = scores.topk(min(self.top, len(scores)), dim=0, largest=largest).indices.T.tolist()
            for row, ids in zip(out, found, strict=True):
                row[column + suffix] = [self.spelling.pieces([i])[0] for i in ids]


class Spelling:
    """Tokens as text, such that the pieces of a sequence read like the whole.

    Word-level tokenizers leave out the space between words, SentencePiece writes it as ``▁``: both become a space.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, tuple[str, str]] = {}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        found = [self._one(i) for i in ids]
        bare = [part for part, _ in found]
        if len(bare) > 1 and "".join(bare) != " ".join(bare) == self.tokenizer.decode(list(ids)):
            return [bare[0], *(" " + part for part in bare[1:])]
        return [spelled for _, spelled in found]

    def _one(self, i: int) -> tuple[str, str]:
        """Decoded alone, and with the space that decoding alone takes away."""
        if i not in self._known:
            part = self.tokenizer.decode([i])
            inner = str(self.tokenizer.convert_ids_to_tokens(i)).startswith("▁") and not part.startswith(" ")
            self._known[i] = part, " " * inner + part
        return self._known[i]


def _linear(norm: Any, directions: Float[Tensor, "d_model k"]) -> Float[Tensor, "d_model k"]:
    """A norm's own scale on directions: normalising changes their length only (and takes out the mean of a
    LayerNorm), and what it does to zero is its bias."""
    if norm is None:
        return directions
    held = next((p.dtype for p in norm.parameters()), directions.dtype)
    rows = directions.T[None].to(held)
    return (norm(rows) - norm(torch.zeros_like(rows)))[0].T.to(directions)
