"""Directions that other tools found, as subspaces: control vectors, steering vectors, latents of an autoencoder.

They live in the residual stream (or wherever their tool hooked), hooklearn's subspaces at the inputs and output
gradients of weights. What is written to the stream *after* block L is written by the weights of block L that end there
(side ``g`` of ``mlp.out``, ``attn.o``), and is read by block L + 1 (side ``x`` of the others, through its norm). What
attention alone has written is read by the MLP of the same block (:data:`hooklearn.locate.dictionary.HOOKS`).

They are taken as they are. What lies between the stream and side ``x`` is a norm, which turns a direction by as much as
its gains are uneven (in SmolLM2-135M to a cosine of .95 to .99 for random ones, and by nearly a right angle before
attention in block 0): where that is much, give ``gain * v``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import disk, models
from hooklearn.locate.dictionary import Dictionary, Place, read_sae
from hooklearn.locate.subspace import Subspace, Subspaces
from hooklearn.types import InputError, Side, Site

ANYWHERE = -2
"""The layer of a direction that belongs to none."""


@dataclass(frozen=True)
class Found:
    """Directions of one place."""

    vectors: Float[Tensor, "d rank"]
    written: Place
    """The weights that write here: side ``g`` ..."""
    read: Place
    """... and those that read it: side ``x``."""


def read_directions(
    source: str | Path | Dictionary,
    model: Any,
    *,
    sites: str | Sequence[str] = "mlp",
    layers: Iterable[int] | str | None = None,
    side: Side = "x",
    layer: int | None = None,
    latents: Sequence[int] | None = None,
) -> Subspaces:
    """Subspaces from a file of another tool, one at each site that the file has directions for.

    Args:
        source: repeng or llama.cpp (``.gguf``); tensors by layer (``.safetensors``, ``.pt``: for steering-vectors save
            ``vector.layer_activations``); one tensor ``[n_layers + 1, d]`` as persona vectors keep it, the
            embedding first; a folder of SAELens or what :func:`hooklearn.read_sae` made of one.
        sites, layers: as in :func:`hooklearn.models.sites`; sites of blocks that the file says nothing of are left out.
        side: ``x`` for weights that read the stream, ``g`` for those that write to it.
        layer: the file's layer to take for every site, in place of the one that belongs to its block.
        latents: which of an autoencoder's; their decoder directions span the subspace.
    Returns:
        Subspaces without statistics; ``hl.locate(model, forget, retain, directions=...)`` measures them.
    Raises:
        InputError: a file of another kind, one that would have to be unpickled, directions of another width, that
            depend on one another, or none for any of the sites.
    """
    dictionary = source if isinstance(source, Dictionary) else None
    if dictionary is None and Path(source).is_dir():  # type: ignore[arg-type]
        dictionary = read_sae(Path(source))  # type: ignore[arg-type]
    if (dictionary is None) != (latents is None):
        raise InputError(
            f"{source}: latents are chosen of an autoencoder's, and of nothing else; give latents=[...] with a folder"
        )
    name = dictionary.name if dictionary else Path(source).name  # type: ignore[arg-type]
    if dictionary:
        found = [_of_latents(dictionary, latents or (), parallel=model.cfg.parallel_attn_mlp)]
    else:
        found = _read(Path(source), model.cfg.n_layers)  # type: ignore[arg-type]
    chosen = models.sites(model, sites, layers)
    spaces = {}
    for site in chosen:
        match = [f for f in found if _belongs(f, site, side, layer)]
        if match:
            spaces[site.name, side] = _space(match[0].vectors, site, side, name)
    if not spaces:
        writers, readers = (", ".join(str(getattr(f, which)) for f in found[:8]) for which in ("written", "read"))
        raise InputError(
            f"{name}: no direction for side {side!r} of {chosen[0].name} or any other of {len(chosen)} sites; it has "
            f"what {writers} wrote last (side g) and {readers} read first (side x); layer=N takes block N's for all"
        )
    return Subspaces(spaces)


def _belongs(found: Found, site: Site, side: Side, layer: int | None) -> bool:
    if layer is not None:
        return found.written.layer == layer
    return found.written.layer == ANYWHERE or (found.written if side == "g" else found.read).holds(site)


def _space(vectors: Tensor, site: Site, side: Side, name: str) -> Subspace:
    if vectors.shape[0] != site.width(side):
        other: Side = "g" if side == "x" else "x"
        fits = f"; side={other!r} has them" if vectors.shape[0] == site.width(other) else ""
        raise InputError(
            f"{name}: directions of {vectors.shape[0]} numbers, and side {side!r} of {site.name} has "
            f"{site.width(side)}{fits}"
        )
    vectors = vectors.float()
    norms = vectors.norm(dim=0)
    if not bool(norms.isfinite().all()) or float(norms.min()) == 0:
        raise InputError(f"{name}: a direction for {site.name} is zero or not finite")
    try:
        return Subspace.of(site, side, name, vectors, norms)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _of_latents(dictionary: Dictionary, latents: Sequence[int], *, parallel: bool) -> Found:
    written, read = dictionary.written, dictionary.read
    if parallel and (written.part, read.part) == ("attn", "mlp"):  # the MLP has read the stream before attention writes
        read = Place(read.layer + 1)
    return Found(dictionary.directions(latents), written, read)


# ------------------------------------------------------------------------------------------- files


def _read(path: Path, n_layers: int) -> list[Found]:
    if path.suffix == ".gguf":
        return [_after(layer, vector) for layer, vector in _control_vector(path).items()]
    tensors = read_tensors(path)
    if isinstance(tensors, Mapping) and isinstance(tensors.get("layer_activations"), Mapping):
        tensors = tensors["layer_activations"]
    if isinstance(tensors, Tensor):
        if tensors.ndim == 1:
            return [_after(ANYWHERE, tensors)]
        if tensors.ndim == 2 and len(tensors) == n_layers + 1:  # row 0 is the embedding, which no block writes
            return [_after(i - 1, row) for i, row in enumerate(tensors)]
    elif isinstance(tensors, Mapping) and all(isinstance(t, Tensor) and t.ndim == 1 for t in tensors.values()):
        return [_after(_layer_of(key, path), tensor) for key, tensor in tensors.items()]
    raise InputError(
        f"{path}: expected vectors by layer ({{0: [d], 1: [d], ...}}: after that block), one tensor [d], or one of "
        f"[{n_layers + 1}, d] for this model of {n_layers} blocks, the embedding first; {_shapes(tensors)}"
    )


def _after(layer: int, vector: Tensor) -> Found:
    return Found(vector.reshape(-1, 1), Place(layer), Place(layer + 1))


def _layer_of(key: str | int, path: Path) -> int:
    numbers = re.findall(r"\d+", str(key))
    if len(numbers) != 1:
        raise InputError(f"{path}: {key!r} does not say its layer by one number, as in 12 or 'direction.12'")
    return int(numbers[0])


def _shapes(tensors: Any) -> str:
    if isinstance(tensors, Tensor):
        return f"it holds one tensor {list(tensors.shape)}"
    if not isinstance(tensors, Mapping):
        return f"it holds a {type(tensors).__name__}"
    some = [f"{k!r}: {list(t.shape) if isinstance(t, Tensor) else type(t).__name__}" for k, t in tensors.items()]
    return f"it holds {', '.join(some[:4])}"


def _control_vector(path: Path) -> dict[int, Tensor]:
    """repeng's and llama.cpp's: ``direction.N`` is added to what block N has written."""
    import gguf

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        reader = gguf.GGUFReader(path)
        field = reader.get_field("general.architecture")
        kind = field.contents() if field else None
        named = {t.name: torch.tensor(t.data).float().flatten() for t in reader.tensors}
    except Exception as error:  # a damaged file raises many unrelated types
        raise InputError(f"{path}: damaged, not a GGUF file ({disk.one_line(error)})") from error
    if kind != "controlvector":
        raise InputError(f"{path}: a GGUF file of kind {kind!r}; expected 'controlvector'")
    return {_layer_of(name, path): vector for name, vector in named.items() if name.startswith("direction.")}


def read_tensors(path: Path) -> Any:
    """A safetensors file as a mapping; a torch file as whatever tensors, lists and mappings it holds.

    Raises:
        InputError: not there, damaged, or a file that holds more than these: nothing is unpickled that could run.
    """
    if path.suffix == ".safetensors":
        return disk.load_tensors(path)[0]
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise InputError(f"{path.name}: unknown kind {path.suffix!r}; known: .safetensors, .pt, .pth, .bin, .gguf")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: holds more than tensors (or is damaged), and is not unpickled; save a plain mapping of tensors, "
            "as in torch.save(vector.layer_activations, path)"
        ) from error
