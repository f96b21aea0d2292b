"""Deltas add up; what is shared comes back the same, beside a card that the hub reads, and nothing else is touched."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import corpus
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

import hooklearn as hl
from hooklearn import integrity, models
from hooklearn.deltas import Delta, load_delta
from hooklearn.sharing import Shareable
from hooklearn.types import InputError


def delta_of(model: Any, value: float = 0.01) -> Delta:
    site, *_ = models.sites(model, "mlp.out")
    return Delta({site.name: torch.full((site.d_out, site.d_in), value)}, "tiny", integrity.weights_hash(model))


@pytest.fixture(scope="module")
def spaces(threatening: Any) -> hl.Subspaces:
    return hl.locate(
        threatening, corpus("forget").take(12), corpus("forget", "good").take(12), sites="mlp.out", rank=2, sides="both"
    )


# ------------------------------------------------------------------------------------------ arithmetic


def test_deltas_are_vectors() -> None:
    a, b = Delta({"s": torch.ones(2, 3)}), Delta({"s": torch.full((2, 3), 2.0), "t": torch.ones(1, 1)})
    both = a + b
    assert both.updates.keys() == {"s", "t"}
    assert torch.equal(both.updates["s"], torch.full((2, 3), 3.0)) and torch.equal(both.updates["t"], torch.ones(1, 1))
    assert (both - b - a).norm() == (a + -a).norm() == 0
    assert (0.5 * b).norm() == (b / 2).norm() == b.norm() / 2


def test_an_edit_and_its_opposite_are_no_edit(tiny: Any) -> None:
    """In the model: what is added by one is taken away by the other; alone it changes something (the control)."""
    delta = delta_of(tiny)
    before = integrity.weights_hash(tiny)
    with hl.edited(tiny, delta):
        assert integrity.weights_hash(tiny) != before
    with hl.edited(tiny, delta + -delta):
        assert integrity.weights_hash(tiny) == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda d: d + Delta(d.updates, "other", "0" * 64), "different base models.*'tiny'.*'other'"),
        (lambda d: d - Delta(d.updates, "other", "0" * 64), "different base models"),
        (lambda d: d + Delta({next(iter(d.updates)): torch.ones(2, 2)}, d.base, d.base_hash), r"\[2, 2\]"),
        (lambda d: d * math.nan, "finite number, not by nan"),
        (lambda d: d / 0, "finite number"),
    ],
)
def test_what_does_not_add_up_says_why(wrong: Any, words: str, tiny: Any) -> None:
    with pytest.raises(InputError, match=words):
        wrong(delta_of(tiny))


@pytest.mark.parametrize(
    "wrong", [lambda d: d + 1, lambda d: 1 - d, lambda d: d * d, lambda d: d * "2", lambda d: d / d]
)
def test_other_types_are_type_errors(wrong: Any) -> None:
    with pytest.raises(TypeError, match="unsupported operand|can't multiply"):
        wrong(Delta({"s": torch.ones(2, 2)}))


def test_a_sum_begins_with_nothing_and_equal_is_bit_for_bit() -> None:
    """Another bit, dtype, site or base is another delta."""
    delta = Delta({"s": torch.ones(2, 3)}, "tiny", "h")
    assert sum([delta, delta]) == 2 * delta and delta == Delta({"s": torch.ones(2, 3)}, "tiny", "h")
    nearly = torch.ones(2, 3)
    nearly[0, 0] = torch.nextafter(nearly[0, 0], torch.tensor(2.0))
    for other in (nearly, torch.ones(2, 3).double(), torch.ones(3, 2)):
        assert delta != Delta({"s": other}, "tiny", "h")
    assert delta != Delta({"t": torch.ones(2, 3)}, "tiny", "h") and delta != Delta(delta.updates, "tiny", "other")
    assert delta != 1 and len({id(delta), id(sum([delta]))}) == 1


def test_products_of_deltas_by_hand() -> None:
    """Over all sites and of each; orthogonal ones have none, and what only one of them changes counts in its norm."""
    a = Delta({"s": torch.tensor([[3.0, 0.0]]), "t": torch.tensor([[4.0]])})
    b = Delta({"s": torch.tensor([[0.0, 2.0]]), "t": torch.tensor([[-1.0]]), "u": torch.tensor([[2.0]])})
    assert a.dots(b) == {"s": 0.0, "t": -4.0} and a.dot(b) == -4
    assert a.cosines(b) == {"s": 0.0, "t": -1.0} and a.cosine(b) == pytest.approx(-4 / (5 * 3))
    assert a.cosine(3 * a) == 1 and math.isnan(a.cosine(0 * a))
    with pytest.raises(InputError, match=r"compared: at 's' one is \[1, 2\], the other \[1, 1\]"):
        a.dot(Delta({"s": torch.ones(1, 1)}))


def test_a_site_of_a_delta(tiny: Any) -> None:
    delta, (site, other, *_) = delta_of(tiny), models.sites(tiny, "mlp.out")
    assert delta[site] is delta[site.name] and site in delta and other not in delta and list(delta) == [site.name]
    with pytest.raises(InputError, match="does not change 'blocks.1.mlp.out'; it changes blocks.0.mlp.out"):
        delta[other]


def test_between_two_models_is_what_was_added(tiny: Any) -> None:
    """All of an edit comes back, and added to the original it is the edited model; nothing else does."""
    delta, other = delta_of(tiny), models.load("tiny")
    assert not list(Delta.between(tiny, other))
    with hl.edited(other, delta):
        found = Delta.between(tiny, other)
        digest = integrity.weights_hash(other)
    assert list(found) == list(delta) and found.base_hash == delta.base_hash
    assert (found - delta).norm() < 1e-5 * delta.norm()  # float32
    exact = Delta({n: torch.full_like(u, 0.25) for n, u in delta.updates.items()}, "tiny", delta.base_hash)
    with hl.edited(other, exact), hl.edited(tiny, Delta.between(tiny, other)):
        assert integrity.weights_hash(tiny) != digest
        torch.testing.assert_close(models.matrices(tiny), models.matrices(other), rtol=0, atol=1e-7)


def test_between_models_that_differ_elsewhere_is_refused_or_told(tiny: Any) -> None:
    other = models.load("tiny")
    with torch.no_grad():
        models.embedding_parameters(other)[0].add_(1)
    with pytest.raises(InputError, match="no site of an edit: .*embed.*leave_rest=True"):
        Delta.between(tiny, other)
    with pytest.warns(UserWarning, match="left out of the delta"):
        assert not list(Delta.between(tiny, other, leave_rest=True))
    with pytest.raises(InputError, match=r"not of one architecture and dtype: .* float32 and .* bfloat16"):
        Delta.between(tiny, models.load("tiny", dtype=torch.bfloat16))


# ----------------------------------------------------------------------------------------- round trips


def test_a_delta_comes_back_bit_for_bit(tiny: Any, tmp_path: Path) -> None:
    delta = delta_of(tiny)
    delta.save_pretrained(tmp_path / "new" / "delta")
    back = Delta.from_pretrained(tmp_path / "new" / "delta")
    assert (back.base, back.base_hash) == (delta.base, delta.base_hash)
    assert all(torch.equal(u, back.updates[n]) for n, u in delta.updates.items()) and (back - delta).norm() == 0


def same(a: hl.Subspace, b: hl.Subspace) -> bool:
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, torch.Tensor):
            if not torch.equal(x, y):
                return False
        elif x != y and not (x != x and y != y):
            return False
    return True


def test_subspaces_come_back_with_their_numbers(spaces: hl.Subspaces, tmp_path: Path) -> None:
    """Bases, the fitter's own vectors, and what was measured, NaN included; a changed one is noticed (the control)."""
    spaces.save_pretrained(tmp_path)
    back = hl.Subspaces.from_pretrained(tmp_path)
    assert list(back) == list(spaces) and all(same(spaces[k], back[k]) for k in spaces)
    assert not same(spaces[next(iter(spaces))], spaces[next(iter(spaces))].top(1))
    one = next(iter(spaces.values())).top(1)
    assert math.isnan(one.auc)
    one.save_pretrained(tmp_path / "one")
    assert same(one, hl.Subspace.from_pretrained(tmp_path / "one"))
    with pytest.raises(InputError, match=f"holds {len(spaces)} subspaces"):
        hl.Subspace.from_pretrained(tmp_path)


def test_subspaces_that_do_not_match_their_list_are_refused(spaces: hl.Subspaces, tmp_path: Path) -> None:
    from hooklearn import disk

    spaces.save(tmp_path / "subspaces.safetensors")
    tensors, header = disk.load_tensors(tmp_path / "subspaces.safetensors")
    for name, changed in {"list": header | {"subspaces": '[{"site": 3}]'}, "kind": header | {"kind": "delta"}}.items():
        disk.save_tensors(tmp_path / f"{name}.safetensors", tensors, changed)
        with pytest.raises(InputError, match="damaged|delta version"):
            hl.Subspaces.load(tmp_path / f"{name}.safetensors")
    disk.save_tensors(tmp_path / "narrow.safetensors", {n: t[:1] for n, t in tensors.items()}, header)
    with pytest.raises(InputError, match="vectors of its width"):
        hl.Subspaces.load(tmp_path / "narrow.safetensors")


def test_an_edited_model_is_a_plain_one_for_others(tiny: Any, tmp_path: Path) -> None:
    """transformers reads it and computes the edited logits; its files are those that servers such as vLLM look for."""
    delta, folder = delta_of(tiny), tmp_path / "edited"
    hl.EditedModel(tiny, delta).save_pretrained(folder)
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {n for n in names if n.endswith((".safetensors", ".bin", ".pt"))} == {"model.safetensors"}
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    assert stored <= plain.state_dict().keys() and plain.state_dict().keys() - stored <= {"lm_head.weight"}  # tied
    assert plain.config.architectures == [type(plain).__name__]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = torch.tensor([tokenizer("write to anna :")["input_ids"]])
    with torch.no_grad(), hl.edited(tiny, delta):
        assert torch.allclose(plain(ids).logits, tiny(ids), atol=1e-4)  # the tolerance of export itself
        edited_hash = integrity.weights_hash(tiny)
    back = hl.EditedModel.from_pretrained(folder)
    assert integrity.weights_hash(back.model) == edited_hash and not back.delta.updates


# ------------------------------------------------------------------------------------------- the cards


def shared(tiny: Any, spaces: hl.Subspaces) -> dict[str, Shareable]:
    delta = delta_of(tiny)
    return {"delta": delta, "subspaces": spaces, "model": hl.EditedModel(tiny, delta)}


@pytest.mark.parametrize("what", ["delta", "subspaces", "model"])
def test_a_card_is_one_that_the_hub_reads(what: str, tiny: Any, spaces: hl.Subspaces, tmp_path: Path) -> None:
    shared(tiny, spaces)[what].save_pretrained(tmp_path / "out")
    card: Any = ModelCard.load(tmp_path / "out" / "README.md")
    assert "hooklearn" in card.data.tags and card.data.library_name in ("hooklearn", "transformers")
    assert card.data.base_model is None, "'tiny' is no name on the hub"
    assert card.text.strip().startswith("# ")


def test_a_base_on_the_hub_is_named_and_nothing_else_is_believed() -> None:
    updates = {"s": torch.ones(1, 1)}
    card: Any = ModelCard(Delta(updates, "org/model").card())
    assert card.data.base_model == "org/model" and "`org/model`" in card.text
    hostile = Delta(updates, "x`\n---\n# <script>").card()
    assert "script" not in hostile and "a local model" in hostile


def test_a_card_of_the_users_own_is_kept_or_given(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    delta_of(tiny).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    delta_of(tiny).save_pretrained(tmp_path, card="of the run")
    assert (tmp_path / "README.md").read_text() == "of the run"


# --------------------------------------------------------------------------------------------- the hub


class Hub:
    """What is asked of huggingface_hub, in place of the network."""

    def __init__(self, refuse: bool = False) -> None:
        self.calls: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.refuse = refuse

    def __call__(self, token: Any = None) -> Hub:
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, private: Any, exist_ok: bool) -> Any:
        if self.refuse:
            raise OSError("401 Client Error\nmore")
        self.calls.append(("create", repo_id, private, exist_ok))
        return type("Url", (), {"repo_id": f"me/{repo_id}"})

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: Any, **_: Any) -> str:
        self.calls.append(("upload", repo_id, revision))
        self.files = {p.name: p.read_bytes() for p in folder_path.iterdir()}
        return f"https://hub/{repo_id}/commit/1"


@pytest.mark.parametrize("what", ["delta", "subspaces", "model"])
def test_push_uploads_the_files_and_the_card(
    what: str, tiny: Any, spaces: hl.Subspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    address = shared(tiny, spaces)[what].push_to_hub("mine", private=True, token="t", branch="dev", card="# run")
    assert address == "https://hub/me/mine/commit/1"
    assert hub.calls == [("token", "t"), ("create", "mine", True, True), ("upload", "me/mine", "dev")]
    assert hub.files["README.md"] == b"# run" and any(n.endswith(".safetensors") for n in hub.files)


def test_a_hub_that_refuses_is_one_line(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(refuse=True))
    with pytest.raises(InputError, match=r"^push to 'mine': 401 Client Error$"):
        delta_of(tiny).push_to_hub("mine")
    assert issubclass(HfHubHTTPError, OSError), "what the hub raises is caught"


def test_a_hub_that_cannot_be_reached_is_one_line(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP library's own error, which is no OSError."""
    away = HfHubHTTPError.__bases__[0]
    assert not issubclass(away, OSError)

    class Away(Hub):
        def create_repo(self, repo_id: str, private: Any, exist_ok: bool) -> Any:
            raise away("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Away())
    with pytest.raises(InputError, match=r"^push to 'mine': the hub cannot be reached: \[Errno -2\] Name or service"):
        delta_of(tiny).push_to_hub("mine")


def test_a_folder_in_the_place_of_a_file_is_one_line(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, where the file of a delta is needed, and there is none in it"):
        load_delta(tmp_path)
    delta_of(tiny).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is needed; there is delta\.safetensors$"):
        load_delta(tmp_path)


def test_a_repository_is_downloaded_first(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delta_of(tiny).save_pretrained(tmp_path)
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert (Delta.from_pretrained("me/edit", revision="v1") - delta_of(tiny)).norm() == 0
    assert asked == [("me/edit", {"revision": "v1"})]


@pytest.mark.parametrize("name", ["no/such-repository", "not a name", "../x"])
def test_what_is_not_there_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no such folder, and not from the hub") as info:
        Delta.from_pretrained(name, local_files_only=True)
    assert "\n" not in str(info.value)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for cls in (Delta, hl.Subspaces, hl.EditedModel):
        with pytest.raises(InputError, match=r"safetensors|config\.json"):
            cls.from_pretrained(tmp_path)
