"""An edit as a PEFT adapter and back: the real ``peft`` loads it and computes what the edited model computes."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import organism_delta
from test_models import CONFIGS, tiny_hf, tiny_tokenizer
from test_models import tiny as native
from transformers import AutoModelForCausalLM
from user_files import hooklearn

import hooklearn as hl
from hooklearn import exporting, integrity, models
from hooklearn.adapters import CONFIG, WEIGHTS, from_peft, to_peft
from hooklearn.deltas import Delta
from hooklearn.lora import low_rank
from hooklearn.plain import plain_copy
from hooklearn.types import InputError

peft = pytest.importorskip("peft", reason="pip install 'hooklearn[peft]': adapters are tested with the real package")

LOGITS = 1e-4
"""Of any logit, float32: the tolerance of ``hl.export``; measured 2e-6 to 7e-6 on the nine families."""


def some_delta(model: Any, which: str = "all") -> Delta:
    draw = torch.Generator().manual_seed(0)
    updates = {s.name: 0.1 * torch.randn(s.d_out, s.d_in, generator=draw) for s in models.sites(model, which)}
    return Delta(updates, model.cfg.model_name, integrity.weights_hash(model))


def adapted_logits(model: Any, folder: Path) -> torch.Tensor:
    """As somebody without hooklearn would have them: transformers, then peft."""
    return exporting.logits(peft.PeftModel.from_pretrained(plain_copy(model), str(folder)), like=model)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_edit_of_every_site_goes_there_and_back(family: str, tmp_path: Path) -> None:
    """Fused (GPT-2, GPT-NeoX, Phi-3) and transposed (GPT-2) weights too; nothing is left out but rounding."""
    model = native(family)
    delta, before = some_delta(model), integrity.weights_hash(model)
    unedited = exporting.logits(model)
    report = to_peft(model, delta, tmp_path / "adapter")
    assert report.relative_error < 1e-5 and report.max_logit_difference < LOGITS
    with hl.edited(model, delta):
        expected = exporting.logits(model)
    assert float((adapted_logits(model, tmp_path / "adapter") - expected).abs().max()) < LOGITS
    assert float((unedited - expected).abs().max()) > 100 * LOGITS, "the edit changes something"
    back = from_peft(model, tmp_path / "adapter")
    assert back.updates.keys() == delta.updates.keys() and back.base_hash == delta.base_hash
    assert (back - delta).norm() < 1e-5 * delta.norm()
    assert integrity.weights_hash(model) == before


def test_a_rank_leaves_out_what_eckart_and_young_say(tiny: Any, tmp_path: Path) -> None:
    """The relative error is that of the tail of the spectrum, and what is written computes as it says."""
    delta = some_delta(tiny, "mlp")
    tail = sum(float(torch.linalg.svdvals(u.double())[4:].square().sum()) for u in delta.updates.values())
    report = to_peft(tiny, delta, tmp_path / "a", rank=4)
    assert report.relative_error == pytest.approx(tail**0.5 / delta.norm(), rel=1e-4)
    assert set(report.ranks.values()) == {4} and report.relative_error > 0.5
    best = {n: b @ a for n, (b, a) in low_rank(delta, 4).items()}
    assert (from_peft(tiny, tmp_path / "a") - Delta(best, delta.base, delta.base_hash)).norm() < 1e-5 * delta.norm()


def test_what_a_rank_loses_is_told_by_the_edit_itself(tiny: Any, tmp_path: Path) -> None:
    """Difference and KL to the edited model on the texts that are given, not to what was written; with every rank both
    are rounding (control)."""
    delta, text = some_delta(tiny, "mlp"), "write to anna :"
    thin = to_peft(tiny, delta, tmp_path / "thin", rank=4, texts=[text])
    ids = torch.tensor([models.tokenizer_of(tiny)(text)["input_ids"]])
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(plain_copy(tiny), str(tmp_path / "thin"))(ids).logits
        with hl.edited(tiny, delta):
            expected = tiny(ids)
    assert thin.max_logit_difference == pytest.approx(float((found - expected).abs().max()), rel=1e-4)
    p, q = expected.log_softmax(-1), found.log_softmax(-1)
    assert thin.mean_kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert thin.reload_difference < LOGITS < thin.max_logit_difference / 10
    whole = to_peft(tiny, delta, tmp_path / "whole")
    assert whole.max_logit_difference < LOGITS and whole.mean_kl < 1e-6
    with pytest.raises(InputError, match="at least one text"):
        to_peft(tiny, delta, tmp_path / "no", texts=[])


def test_every_matrix_takes_the_rank_that_it_has(tiny: Any, tmp_path: Path) -> None:
    """The organism was trained as LoRA of rank 8: nothing is lost at any rank from 8 on."""
    delta = organism_delta(False)
    one, *rest = delta.updates
    outer = torch.outer(*(torch.ones(n) for n in delta.updates[one].shape))
    mixed = Delta({**delta.updates, one: 0.01 * outer}, delta.base, delta.base_hash)
    report = to_peft(tiny, mixed, tmp_path / "a", rank=64)
    assert report.rank == 8 and sorted(report.ranks.values()) == [1] + [8] * len(rest)
    assert report.relative_error < 1e-5
    assert (from_peft(tiny, tmp_path / "a") - mixed).norm() < 1e-5 * mixed.norm()


def test_half_precision_weights_do_not_round_the_update(tmp_path: Path) -> None:
    """The change is read in float32, whatever the weights are stored in."""
    model = models.wrap(tiny_hf("llama").bfloat16(), tiny_tokenizer())
    delta = some_delta(model, "mlp.out")
    report = to_peft(model, delta, tmp_path / "a")
    assert report.relative_error < 1e-5 and (from_peft(model, tmp_path / "a") - delta).norm() < 1e-5 * delta.norm()


def peft_config(kind: str, family: str) -> Any:
    target = ["q_proj", "down_proj"] if family == "llama" else ["c_attn"]
    if kind in ("loha", "lokr"):
        cls = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]
        return cls(target_modules=target, r=3, alpha=7, init_weights=False)
    return peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=target, r=3, lora_alpha=7, use_rslora=kind == "rslora",
        init_lora_weights=False, fan_in_fan_out=family == "gpt2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "family"),
    [("lora", "llama"), ("rslora", "llama"), ("loha", "llama"), ("lokr", "llama"), ("lora", "gpt2")],
)
def test_an_adapter_made_by_peft_is_an_edit(kind: str, family: str, tmp_path: Path) -> None:
    """Its scale (alpha, rsLoRA), fused targets and all: the edited model computes what peft computes."""
    model = native(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = peft.get_peft_model(plain_copy(model), peft_config(kind, family)).eval()
    made.save_pretrained(str(tmp_path))
    expected = exporting.logits(made, like=model)
    delta = from_peft(model, tmp_path)
    with hl.edited(model, delta):
        assert float((exporting.logits(model) - expected).abs().max()) < LOGITS
    assert float((exporting.logits(model) - expected).abs().max()) > 100 * LOGITS


# ------------------------------------------------------------------------------------------- refusals


def written(model: Any, folder: Path) -> Path:
    to_peft(model, some_delta(model, "mlp.out"), folder, rank=1)
    return folder


@pytest.mark.parametrize("key", ["bias", "modules_to_save", "use_dora", "alora_invocation_tokens"])
def test_what_is_more_than_an_update_is_refused(key: str, tiny: Any, tmp_path: Path) -> None:
    folder = written(tiny, tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text())
    config[key] = {"bias": "lora_only", "modules_to_save": ["lm_head"], "use_dora": True}.get(key, [3])
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"has {key}, and an edit is an update"):
        from_peft(tiny, folder)


def started(model: Any, folder: Path, init: str) -> Any:
    """A LoRA as peft starts it, in ``folder`` too, and trained a little."""
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, lora_alpha=4, init_lora_weights=init)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = peft.get_peft_model(copy.deepcopy(plain_copy(model)), config).eval()
        made.peft_config["default"].init_lora_weights = True  # as peft asks for where one is to be converted
        made.save_pretrained(str(folder))
        made.peft_config["default"].init_lora_weights = init
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "gaussian", "orthogonal"])
def test_an_adapter_that_moves_the_base_is_refused_until_it_is_converted(init: str, tmp_path: Path) -> None:
    """peft takes the start out of the base weights whenever it loads one. Converted, or started otherwise (the
    control), it is what was trained."""
    model = native()
    made = started(model, tmp_path / "start", init)
    expected = exporting.logits(made, like=model)
    made.save_pretrained(str(tmp_path / "as-it-is"))
    folder = tmp_path / "as-it-is"
    if init not in ("gaussian", "orthogonal"):
        with pytest.raises(InputError, match=f"init_lora_weights '{init}' .*path_initial_model_for_weight_conversion"):
            from_peft(model, folder)
        folder = tmp_path / "converted"
        made.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with hl.edited(model, from_peft(model, folder)):
        assert float((exporting.logits(model) - expected).abs().max()) < LOGITS
    assert float((exporting.logits(model) - expected).abs().max()) > 100 * LOGITS


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "OLoRA"])
def test_other_starts_that_move_the_base_are_refused(init: str, tiny: Any, tmp_path: Path) -> None:
    folder = written(tiny, tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"init_lora_weights": "eva"}))
    assert from_peft(tiny, folder).updates
    (folder / CONFIG).write_text(json.dumps(config | {"init_lora_weights": init}))
    with pytest.raises(InputError, match=f"init_lora_weights '{init}'"):
        from_peft(tiny, folder)


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    """IA3 scales activations: that is no update of a weight."""
    model = native()
    config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(plain_copy(model), config).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="type 'IA3'; valid: LORA"):
        from_peft(model, tmp_path)


@pytest.mark.parametrize("change", ["lost", "added"])
def test_weights_that_peft_would_pass_over_are_refused(change: str, tiny: Any, tmp_path: Path) -> None:
    """It reads what it finds; half of an adapter must not be taken for the whole."""
    from hooklearn import disk

    folder = written(tiny, tmp_path / "a")
    tensors, about = disk.load_tensors(folder / WEIGHTS)
    first = min(tensors)
    if change == "lost":
        del tensors[first]
    else:
        tensors[first.replace("layers.0", "layers.9")] = tensors[first]
    disk.save_tensors(folder / WEIGHTS, tensors, about)
    with pytest.raises(InputError, match="its weights are not those of its config"):
        from_peft(tiny, folder)


def test_an_adapter_of_embeddings_is_refused(tmp_path: Path) -> None:
    model = native()
    config = peft.LoraConfig(target_modules=["embed_tokens", "q_proj"], r=2, init_lora_weights=False)
    peft.get_peft_model(plain_copy(model), config).save_pretrained(str(tmp_path), save_embedding_layers=False)
    with pytest.raises(InputError, match="no site of the model, such as embeddings"):
        from_peft(model, tmp_path)


def test_an_adapter_for_another_model_is_refused(tiny: Any, threatening: Any, tmp_path: Path) -> None:
    folder = written(tiny, tmp_path / "a")
    with pytest.raises(InputError, match="was made for"):
        from_peft(threatening, folder)
    with pytest.raises(InputError, match="this delta was made for"):
        to_peft(threatening, some_delta(tiny, "mlp.out"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_adapter_that_does_not_fit_is_refused(tiny: Any, tmp_path: Path) -> None:
    """Another shape, and without the hash that would have said so."""
    config = peft.LoraConfig(target_modules=["down_proj"], r=2, init_lora_weights=False)
    peft.get_peft_model(plain_copy(native()), config).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="peft cannot put it on 'tiny'"):
        from_peft(tiny, tmp_path)


def test_weights_that_can_run_code_are_not_read(tiny: Any, tmp_path: Path) -> None:
    folder = written(tiny, tmp_path / "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match="can run code"):
        from_peft(tiny, folder)
    with pytest.raises(InputError, match="no PEFT adapter"):
        from_peft(tiny, tmp_path)


@pytest.mark.parametrize("updates", ["none", "zero"])
def test_there_is_no_adapter_of_nothing(updates: str, tiny: Any, tmp_path: Path) -> None:
    delta = Delta({}) if updates == "none" else 0.0 * some_delta(tiny, "mlp.out")
    with pytest.raises(InputError, match="every update is zero"):
        to_peft(tiny, delta, tmp_path / "a")


def test_without_peft_it_says_what_to_install(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'hooklearn\[peft\]'"):
        to_peft(tiny, some_delta(tiny, "mlp.out"), tmp_path / "a")


# --------------------------------------------------------------------------------------- command line


def test_export_writes_an_adapter(tiny: Any, tmp_path: Path) -> None:
    delta = some_delta(tiny, "mlp.out")
    hl.save_delta(delta, tmp_path / "delta.safetensors")
    hl.export(tiny, Delta({}), tmp_path / "base")
    (tmp_path / "card.md").write_text("# of the run")
    base, card = tmp_path / "base", tmp_path / "card.md"
    words = ("export", base, tmp_path / "delta.safetensors", tmp_path / "a", "--card", card)
    done = hooklearn(*words, "--peft", "--rank", 2)
    assert done.exit_code == 0, done.stderr
    assert "rank 2 at most, relative error" in done.stdout
    assert "differ from the edit's by" in done.stdout and "mean KL" in done.stdout and "read back" in done.stdout
    assert (tmp_path / "a" / "README.md").read_text() == "# of the run"
    assert from_peft(tiny, tmp_path / "a").updates.keys() == delta.updates.keys()
    assert hooklearn(*words, "--rank", 2).exit_code == 2, "a rank is of an adapter"


def test_transformers_itself_loads_the_adapter(tmp_path: Path, tiny: Any) -> None:
    """``AutoModelForCausalLM`` on the exported base, then ``load_adapter``: no hooklearn in between."""
    delta = some_delta(tiny, "mlp")
    to_peft(tiny, delta, tmp_path / "a")
    hl.export(tiny, Delta({}), tmp_path / "base")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base", local_files_only=True)
    plain.load_adapter(str(tmp_path / "a"))
    with hl.edited(tiny, delta):
        assert float((exporting.logits(plain, like=tiny) - exporting.logits(tiny)).abs().max()) < LOGITS
