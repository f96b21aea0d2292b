"""What other tools found or recorded, read from their files: directions, autoencoders, activations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import corpus
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from test_models import prompts
from test_models import tiny as native
from torch import Tensor

import hooklearn as hl
from hooklearn.data import Corpus, batches, encode
from hooklearn.locate import collect, locate
from hooklearn.locate.capture import tapes
from hooklearn.locate.dictionary import HOOKS, Dictionary, Place, read_sae
from hooklearn.locate.directions import read_directions
from hooklearn.locate.fit import held_out_groups
from hooklearn.locate.saved import read_activations
from hooklearn.types import InputError

D = 64
"""Width of the tiny model's stream."""
SAME = 1e-6
"""Cosines of unit vectors in float32, 64 terms."""


@pytest.fixture
def vectors() -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {layer: torch.randn(D, generator=generator) for layer in (0, 1)}


def repeng(path: Path, vectors: dict[int, Tensor], kind: str = "controlvector") -> Path:
    """As ``ControlVector.export_gguf`` writes it."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def files(folder: Path, vectors: dict[int, Tensor]) -> dict[str, Path]:
    rows = [torch.ones(D), *vectors.values(), *torch.eye(D)[:2]]  # persona vectors: the embedding, then four blocks
    save_file({f"direction.{n}": v for n, v in vectors.items()}, folder / "v.safetensors")
    return {
        "repeng": repeng(folder / "v.gguf", vectors),
        "steering-vectors": saved(folder / "v.pt", vectors),
        "with its fields": saved(folder / "w.pt", {"layer_activations": vectors, "layer_type": "decoder_block"}),
        "safetensors": folder / "v.safetensors",
        "persona vectors": saved(folder / "p.pt", torch.stack(rows)),
    }


def cosine(space: Any, vector: Tensor) -> float:
    assert space.rank == 1
    return float((space.basis[:, 0] @ vector / vector.norm()).abs())


def test_files_of_every_kind_say_the_same(tmp_path: Path, tiny: Any, vectors: dict[int, Tensor]) -> None:
    """After block L: written by block L, read by block L + 1. The other vector is another (the control)."""
    for kind, path in files(tmp_path, vectors).items():
        written = read_directions(path, tiny, sites="mlp.out", side="g")
        read = read_directions(path, tiny, sites="mlp.in")
        assert cosine(written["blocks.1.mlp.out", "g"], vectors[1]) > 1 - SAME, kind
        assert cosine(read["blocks.1.mlp.in", "x"], vectors[0]) > 1 - SAME, kind
        assert cosine(read["blocks.1.mlp.in", "x"], vectors[1]) < 0.9, kind
        assert written["blocks.1.mlp.out", "g"].fitter == path.name


def test_one_layer_for_every_site(tmp_path: Path, tiny: Any, vectors: dict[int, Tensor]) -> None:
    path = repeng(tmp_path / "v.gguf", vectors)
    found = read_directions(path, tiny, sites=["mlp.in", "mlp.gate"], layer=1)
    assert len(found) == 2 * tiny.cfg.n_layers and all(cosine(s, vectors[1]) > 1 - SAME for s in found.values())
    anywhere = read_directions(saved(tmp_path / "one.pt", vectors[0]), tiny, sites="mlp.in")
    assert len(anywhere) == tiny.cfg.n_layers


def test_they_are_measured_like_fitted_ones(threatening: Any, tmp_path: Path) -> None:
    """A fitted direction that goes through a file has the statistics that it had; a random one has none to show."""
    data = corpus("forget"), corpus("forget", "good")
    fitted = locate(threatening, *data, sites="mlp.in", layers="1", fitter="mean_diff", rank=1)
    key = ("blocks.1.mlp.in", "x")
    noise = torch.randn(D, generator=torch.Generator().manual_seed(3))
    for name, vector in (("found", fitted[key].vectors[:, 0]), ("noise", noise)):
        read = read_directions(saved(tmp_path / f"{name}.pt", {0: vector}), threatening, sites="mlp.in")
        again = locate(threatening, *data, directions=read)[key]
        assert (again.auc == fitted[key].auc) == (name == "found")
        assert (abs(again.forget_energy - fitted[key].forget_energy) < SAME) == (name == "found")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_nothing_is_unpickled(tmp_path: Path, tiny: Any) -> None:
    """A pickled SteeringVector is refused, and what it would run is not run (it is by pickle itself: the control)."""
    went_off = tmp_path / "went-off"
    path = saved(tmp_path / "v.pt", {"layer_activations": Bomb(went_off)})
    with pytest.raises(InputError, match=r"not unpickled; .* torch.save\(vector.layer_activations"):
        read_directions(path, tiny)
    assert not went_off.exists()
    torch.load(path, weights_only=False)
    assert went_off.exists()


def test_what_does_not_fit_is_said(tmp_path: Path, tiny: Any, vectors: dict[int, Tensor]) -> None:
    path = repeng(tmp_path / "v.gguf", vectors)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (path, {"sites": "mlp.out"}, f"directions of {D} numbers.*side='g' has them"),
        (path, {"sites": "mlp.in", "layers": "0"}, "no direction for side 'x' of blocks.0.mlp.in"),
        (path, {"latents": [1]}, "latents are chosen of an autoencoder's"),
        (repeng(tmp_path / "m.gguf", vectors, "llama"), {}, "of kind 'llama'"),
        (saved(tmp_path / "zero.pt", {0: torch.zeros(D)}), {"sites": "mlp.in"}, "zero or not finite"),
        (saved(tmp_path / "odd.pt", {"a.1.b.2": vectors[0]}), {}, "does not say its layer"),
        (saved(tmp_path / "cube.pt", torch.zeros(2, 2, 2)), {}, r"one tensor \[2, 2, 2\]"),
        # without the embedding's row, or of another model: every direction would be a block off
        (saved(tmp_path / "rows.pt", torch.ones(4, D)), {}, rf"of \[5, d\] for .* 4 blocks.* tensor \[4, {D}\]"),
        (saved(tmp_path / "more.pt", torch.ones(9, D)), {}, rf"one tensor \[9, {D}\]"),
        (tmp_path / "none.gguf", {}, "no such file"),
        (tmp_path / "v.npz", {}, "unknown kind '.npz'"),
    ]
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    for source, how, said in [*cases, (tmp_path / "bad.gguf", {}, "expected 'controlvector'|damaged")]:
        with pytest.raises(InputError, match=said):
            read_directions(source, tiny, **how)


# -------------------------------------------------------------------------------------- autoencoders

LATENTS = 24


def sae(folder: Path, hook: str, *, planted: Tensor | None = None, new: bool = True, **config: Any) -> Path:
    """A folder as SAELens writes it (since release 6, or before), random but for latent 5."""
    generator = torch.Generator().manual_seed(1)
    encoder = torch.randn(D, LATENTS, generator=generator) / D**0.5
    if planted is not None:
        encoder[:, 5] = planted / planted.norm()
    tensors = {
        "W_enc": encoder, "W_dec": torch.randn(LATENTS, D, generator=generator),
        "b_enc": torch.full((LATENTS,), 0.1), "b_dec": torch.full((D,), 0.2),
    }  # fmt: skip
    if config.get("architecture") == "jumprelu":
        tensors["threshold"] = torch.full((LATENTS,), 0.3)
    folder.mkdir(exist_ok=True)
    place = {"metadata": {"hook_name": hook}} if new else {"hook_name": hook}
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": LATENTS, **place, **config}))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def by_hand(dictionary: Dictionary, x: Tensor, kind: str) -> Tensor:
    """One latent at a time, as the papers write it."""
    pre = torch.stack([(x - 0.2) @ dictionary.encoder[:, i] + 0.1 for i in range(LATENTS)], -1)
    if kind == "jumprelu":
        return torch.where(pre > 0.3, pre.clamp(min=0), 0.0)
    if kind == "topk":
        return torch.stack([torch.where(row >= row.sort().values[-3], row.clamp(min=0), 0.0) for row in pre])
    return pre.clamp(min=0)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_latents_are_what_the_papers_say(tmp_path: Path, kind: str) -> None:
    """Cunningham 2023 (ReLU), Rajamanoharan 2024 (JumpReLU), Gao 2024 (TopK); of old and of new folders."""
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(2))
    old = {"standard": {}, "jumprelu": {"architecture": "jumprelu"}}.get(
        kind, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    )
    new = {"architecture": kind} | ({"k": 3} if kind == "topk" else {})
    for config, is_new in ((new, True), (old, False)):
        found = read_sae(sae(tmp_path / "sae", "blocks.1.hook_resid_pre", new=is_new, **config))
        assert found.architecture == kind
        torch.testing.assert_close(found.encode(x), by_hand(found, x, kind), atol=1e-5, rtol=0)  # sums of 64 terms
        assert float((found.encode(x) > 0).float().mean()) > 0.05  # not all off: the control


def test_an_activation_that_is_not_computed_here_is_said(tmp_path: Path) -> None:
    found = read_sae(sae(tmp_path / "sae", "blocks.1.hook_resid_pre", new=False, activation_fn_str="tanh-relu"))
    assert "tanh-relu" in found.unreadable


def test_the_planted_latent_is_found(threatening: Any, tmp_path: Path) -> None:
    """A latent that looks along the difference of the classes comes first, with the AUC that scikit-learn gives it on
    the items that did not choose it. Between two halves of one class the first latent does not hold (the control)."""
    hook = "blocks.1.hook_resid_pre"
    whole = corpus("forget")
    data = whole, corpus("forget", "good")
    bad, good = (_stream_means(threatening, c, hook) for c in data)
    found = read_sae(sae(tmp_path / "sae", hook, planted=bad.mean(0) - good.mean(0)))
    table = found.separating(threatening, *data).set_index("latent")
    assert table["auc_fitted"][5] == table["auc_fitted"].max() and table["auc"][5] > 0.9
    held = held_out_groups(*data, seed=0)
    latents = [_stream_means(threatening, c, hook, found)[[g in held for g in c.groups], 5] for c in data]
    truth = [1] * len(latents[0]) + [0] * len(latents[1])
    assert abs(roc_auc_score(truth, torch.cat(latents).numpy()) - table["auc"][5]) < SAME
    halves = [Corpus(str(i), whole.rows[i::2]) for i in range(2)]
    first = found.separating(threatening, *halves)[["auc_fitted", "auc"]].to_numpy()[:8] - 0.5
    sign = np.sign(first[:, :1])
    seemed, held_up = (sign * first).mean(0)
    assert seemed > 0.1 > held_up
    spaces = read_directions(tmp_path / "sae", threatening, sites="mlp.out", side="g", latents=[5, 7])
    assert set(spaces) == {("blocks.0.mlp.out", "g")}  # what block 1 reads, block 0 has written
    vectors = found.decoder[[5, 7]].T
    basis = spaces["blocks.0.mlp.out", "g"].basis
    torch.testing.assert_close(basis @ (basis.T @ vectors), vectors, atol=1e-5, rtol=0)


def _stream_means(model: Any, rows: Corpus, hook: str, dictionary: Dictionary | None = None) -> Tensor:
    """Means over labelled tokens (of latents, with a dictionary), text by text: another way than the library's."""
    out = []
    for sequence in encode(rows, model.tokenizer):
        with torch.no_grad():
            _, cache = model.run_with_cache(sequence.ids[None])
        tokens = cache[hook][0][sequence.labels]
        out.append((tokens if dictionary is None else dictionary.encode(tokens)).mean(0))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("hook", "written", "read"),
    [
        ("hook_resid_pre", Place(0), Place(1)), ("hook_resid_post", Place(1), Place(2)),
        # the MLP is the last of its block: what it wrote it does not read itself
        ("hook_mlp_out", Place(1, "mlp"), Place(2)), ("attn.hook_out", Place(1, "attn"), Place(1, "mlp")),
        ("attn.hook_z", Place(1, ""), Place(1, "attn.o")),
    ],
)  # fmt: skip
def test_where_an_autoencoder_stands(tmp_path: Path, hook: str, written: Place, read: Place) -> None:
    found = read_sae(sae(tmp_path / "sae", f"blocks.1.{hook}"))
    assert (found.written, found.read) == (written, read)


def of_hook(hook: str, d: int) -> Dictionary:
    return Dictionary("made", hook, "standard", torch.eye(d)[:, :2], torch.eye(d)[:2], torch.zeros(2), torch.zeros(d))


ELSEWHERE = {
    "attn.hook_z", "mlp.hook_post",  # read by other sites than the test looks at
    "hook_attn_in", "hook_mlp_in",  # TransformerLens has them off
}  # fmt: skip
PLACED = [(family, hook) for family in ("llama", "gpt_neox") for hook in HOOKS if hook not in ELSEWHERE]
PLACED.remove(("gpt_neox", "hook_resid_mid"))  # attention and MLP side by side have no state between them


@pytest.mark.parametrize(("family", "hook"), PLACED)
def test_a_hook_is_read_by_those_whose_input_changes_first(family: str, hook: str) -> None:
    """Something is added at the hook of one block: what reads it is what is given something else first, and nothing
    before. GPT-NeoX has attention and MLP side by side, so neither reads what the other has written."""
    model, name, into = native(family), f"blocks.0.{hook}", ["attn.q", "mlp.in"]
    sites = [f"blocks.{layer}.{module}" for layer in range(2) for module in into]

    def inputs(*more: Any) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        hooks = [(f"{s}.hook_in", lambda value, hook: seen.update({hook.name: value.clone()})) for s in sites]
        with torch.no_grad(), model.hooks(fwd_hooks=[*more, *hooks]):
            model(prompts())
        return seen

    before, after = inputs(), inputs((name, lambda value, hook: value + torch.arange(value.shape[-1])))
    changed = [s for s in sites if not torch.equal(before[f"{s}.hook_in"], after[f"{s}.hook_in"])]
    found = [n for n, _ in read_directions(of_hook(name, 32), model, sites=into, latents=[0, 1])]
    assert found and set(found) == set(changed[: len(found)])


BOTH = {"mlp.out", "attn.o"}


def test_writers_do_not_take_what_they_do_not_write(tiny: Any) -> None:
    """Side g: the MLP's output is not attention's, nor the other way round; of the stream after a block both."""
    for hook, modules in {"hook_mlp_out": {"mlp.out"}, "hook_attn_out": {"attn.o"}, "hook_out": BOTH}.items():
        found = read_directions(of_hook(f"blocks.1.{hook}", D), tiny, sites=sorted(BOTH), side="g", latents=[1])
        assert {n for n, _ in found} == {f"blocks.1.{m}" for m in modules}


def test_a_hook_that_is_not_known_is_placed_by_hand(tiny: Any) -> None:
    found = of_hook("model.layers.2", D)
    with pytest.raises(InputError, match=r"no weight known in block 2 wrote last .* layer=N"):
        read_directions(found, tiny, sites="mlp.out", side="g", latents=[1])
    there = read_directions(found, tiny, sites="mlp.out", layers="2", side="g", layer=2, latents=[1])
    assert set(there) == {("blocks.2.mlp.out", "g")}


def test_a_transcoder_stands_where_it_writes(tmp_path: Path, tiny: Any) -> None:
    """Its decoder's directions are of its output; an autoencoder at its input is another thing (the control)."""
    place = {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    both = sae(tmp_path / "both", "", architecture="transcoder", metadata=place)
    assert {n for n, _ in read_directions(both, tiny, sites="mlp.gate", latents=[1])} == {"blocks.2.mlp.gate"}
    plain = sae(tmp_path / "plain", place["hook_name"])
    assert {n for n, _ in read_directions(plain, tiny, sites="mlp.gate", latents=[1])} == {"blocks.1.mlp.gate"}
    with pytest.raises(InputError, match="no hook point with a layer .hook_name_out: ''"):
        read_sae(sae(tmp_path / "half", place["hook_name"], architecture="jumprelu_transcoder"))


def test_a_direction_that_is_there_already_is_refused(tmp_path: Path, tiny: Any) -> None:
    """A second one would be made up; two that differ span a plane (the control)."""
    folder = sae(tmp_path / "sae", "blocks.1.hook_resid_post")
    assert read_directions(folder, tiny, sites="mlp.in", latents=[3, 5])["blocks.2.mlp.in", "x"].rank == 2
    with pytest.raises(
        InputError, match=r"sae: direction 1 \(of 3, counted from 0\) .* in the span of those before it"
    ):
        read_directions(folder, tiny, sites="mlp.in", latents=[3, 3, 5])


def test_autoencoders_that_cannot_be_read(tmp_path: Path, tiny: Any) -> None:
    """Directions of one that is not computed here can be used; its latents cannot be ranked."""
    gated = read_sae(sae(tmp_path / "gated", "blocks.0.hook_resid_post", architecture="gated"))
    assert gated.directions([0, 3]).shape == (D, 2)
    with pytest.raises(InputError, match="'gated' is not computed here"):
        gated.encode(torch.zeros(1, D))
    scaled = read_sae(sae(tmp_path / "n", "blocks.0.hook_resid_post", normalize_activations="layer_norm"))
    with pytest.raises(InputError, match="normalised"):
        scaled.encode(torch.zeros(1, D))
    with pytest.raises(InputError, match="between 0 and 23"):
        gated.directions([LATENTS])
    with pytest.raises(InputError, match="give latents"):
        read_directions(tmp_path / "gated", tiny)
    with pytest.raises(InputError, match="does not have"):
        read_sae(sae(tmp_path / "far", "blocks.9.hook_resid_pre")).separating(
            tiny, corpus("forget"), corpus("forget", "good")
        )
    for config, said in (({"hook_name": ""}, "hook point"), ([], "expected a mapping")):
        folder = sae(tmp_path / "broken", "blocks.0.hook_resid_pre")
        (folder / "cfg.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=said):
            read_sae(folder)
    save_file({"W_enc": torch.zeros(D, 2)}, sae(tmp_path / "b", "blocks.0.hook_mlp_out") / "sae_weights.safetensors")
    with pytest.raises(InputError, match="no tensor W_dec, b_dec"):
        read_sae(tmp_path / "b")


# --------------------------------------------------------------------------------------- activations


def recorded(model: Any, rows: Corpus, sites: list[Any]) -> dict[str, list[Tensor]]:
    """``[token, d]`` an item, as somebody with hooks of their own would keep them."""
    out: dict[str, list[Tensor]] = {s.name: [] for s in sites}
    for sequence in encode(rows, model.tokenizer):
        for _, taped in tapes(model, batches([sequence]), sites, gradients=False, positions="labelled"):
            for name, tape in taped.items():
                out[name].append(tape.x.clone())
    return out


def test_recorded_activations_are_as_good_as_captured_ones(threatening: Any, tmp_path: Path) -> None:
    """The same subspace with the same statistics as from a capture of the same texts."""
    sites = hl.sites(threatening, "mlp.out")
    data = []
    for rows in (corpus("forget"), corpus("forget", "good")):
        data.append(Corpus("rows", tuple({k: v for k, v in r.items() if k != "group"} for r in rows.rows[:24])))
    paths = [saved(tmp_path / f"{i}.pt", recorded(threatening, rows, sites)) for i, rows in enumerate(data)]
    here = collect(threatening, *data, sites, precision="float32")
    there = read_activations(*paths, sites)
    for fitter, rank in (("pca", 3), ("mean_diff", 1)):
        for key, space in here.fit(fitter, rank).items():
            other = there.fit(fitter, rank)[key]
            assert float((space @ other).min()) > 1 - 1e-4, (fitter, key)  # eigenvectors, from sums in another order
            assert other.auc == space.auc and abs(other.auc_random - space.auc_random) < 0.02  # two pairs of 8 x 8


def test_activations_of_one_shape_and_other_names(tmp_path: Path) -> None:
    """``[item, token, d]`` in a safetensors file, under a name of their own; and one vector an item."""
    site = hl.Site(0, "mlp.out", 8, 4)
    generator = torch.Generator().manual_seed(0)
    bad, good = (torch.randn(12, 3, 8, generator=generator) for _ in range(2))
    bad[..., 2] += 4
    save_file({"layer0": bad}, tmp_path / "bad.safetensors")
    save_file({"layer0": good}, tmp_path / "good.safetensors")
    names = {site.name: "layer0"}
    data = read_activations(tmp_path / "bad.safetensors", tmp_path / "good.safetensors", [site], names=names)
    space = data.fit("mean_diff", 1)[site.name, "x"]
    assert int(space.basis[:, 0].abs().argmax()) == 2 and space.auc == 1.0
    means = read_activations({"layer0": bad.mean(1)}, {"layer0": good.mean(1)}, [site], names=names)
    torch.testing.assert_close(
        means.fit("mean_diff", 1)[site.name, "x"].vectors, space.vectors, atol=1e-5, rtol=0
    )  # the mean of means over as many tokens


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"blocks.0.mlp.outt": torch.ones(4, 8)}, "nearest: 'blocks.0.mlp.outt'"),
        ({"blocks.0.mlp.out": torch.ones(4, 7)}, "side 'x' of blocks.0.mlp.out needs"),
        ({"blocks.0.mlp.out": torch.ones(1, 8)}, "at least two items"),
        ({"blocks.0.mlp.out": torch.full((4, 8), torch.nan)}, "all of them finite"),
        (torch.ones(4, 8), "expected a mapping"),
    ],
)
def test_activations_that_do_not_fit(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_activations(given, {"blocks.0.mlp.out": torch.ones(4, 8)}, [hl.Site(0, "mlp.out", 8, 4)])
