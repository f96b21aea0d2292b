"""Experts of a mixture as sites: Mixtral, Qwen-MoE, OLMoE and DeepSeek shapes, tiny and random."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_models import GROUPED, LLAMA_LIKE, copies, prompts, random_delta, same_weights, tiny_tokenizer

import hooklearn as hl
from hooklearn import editing, forward, integrity, linalg, models
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import batches, encode
from hooklearn.deltas import Delta
from hooklearn.edit.method import Problem
from hooklearn.experts import experts_of
from hooklearn.exporting import export
from hooklearn.locate import Subspaces, collect
from hooklearn.locate.capture import tapes, weight_gradients
from hooklearn.locate.moments import site_moments
from hooklearn.lora import Lora
from hooklearn.train import nll
from hooklearn.types import InputError

MIXTURE: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
DEEPSEEK: dict[str, Any] = LLAMA_LIKE | dict(
    num_key_value_heads=4, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
    first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
)  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "Mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "Qwen2Moe": lambda: transformers.Qwen2MoeConfig(
        **GROUPED, **MIXTURE, shared_expert_intermediate_size=40, mlp_only_layers=[0]
    ),
    "Qwen3Moe": lambda: transformers.Qwen3MoeConfig(**GROUPED, **MIXTURE, head_dim=8, norm_topk_prob=True),
    "Olmoe": lambda: transformers.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2),
    "DeepseekV2": lambda: transformers.DeepseekV2Config(**DEEPSEEK, n_group=1, topk_group=1),
    "DeepseekV3": lambda: transformers.DeepseekV3Config(**DEEPSEEK, n_group=2, topk_group=1),
}  # fmt: skip


def mixture(family: str) -> Any:
    """transformers' own model; 2 of 4 experts a token, in the second layer at least."""
    torch.manual_seed(0)
    hf_model: Any = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
    for parameter in hf_model.parameters():  # biases and norms are born as zeros and ones
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return hf_model.eval()


@functools.cache
def bridged(family: str) -> Any:
    return models.wrap(mixture(family), tiny_tokenizer(), family)


@pytest.fixture(params=CONFIGS)
def family(request: Any) -> str:
    return request.param


def texts(n: int = 12, words: int = 7, first: int = 0, kinds: int = 60) -> Corpus:
    """Rows of different length, of random words."""
    generator = torch.Generator().manual_seed(first)
    rows = [torch.randint(kinds, (words + i % 3,), generator=generator).tolist() for i in range(n)]
    return Corpus("words", [{"text": " ".join(f"w{w}" for w in row), "group": str(i)} for i, row in enumerate(rows)])


def stream(model: Any, corpus: Corpus | None = None) -> Any:
    return batches(encode(corpus or texts(), models.tokenizer_of(model)), max_tokens=40)


def test_split_experts_compute_what_hugging_face_computes(family: str) -> None:
    """Sums over the chosen experts in another order, so to rounding; and no memory is taken twice."""
    hf_model, ids = mixture(family), prompts()
    with torch.no_grad():
        expected = hf_model(ids).logits
        parameters = sum(p.numel() for p in hf_model.parameters())
        model = models.wrap(hf_model, tiny_tokenizer(), family)
        torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)
    assert integrity.describe(model)["parameters"] == parameters
    for _, experts in experts_of(model):
        stored = {p.untyped_storage().data_ptr() for p in experts.stacked()}
        assert all(p.untyped_storage().data_ptr() in stored for p in experts.parameters())


def test_experts_are_sites_and_routers_are_not(family: str) -> None:
    """Three matrices of each of four experts; all, one, or one matrix of all can be asked for."""
    model = bridged(family)
    layer = experts_of(model)[-1][0]
    modules = [s.module for s in models.sites(model, "mlp.experts", [layer])]
    assert modules == [f"mlp.experts.{e}.{part}" for e in range(4) for part in ("gate", "in", "out")]
    assert set(modules) <= {s.module for s in models.sites(model, "mlp")}
    assert [s.module for s in models.sites(model, "mlp.experts.2", [layer])] == modules[6:9]
    assert [s.module for s in models.sites(model, "mlp.experts.out", [layer])] == modules[2::3]
    assert not any(s.module == "mlp.gate" for s in models.sites(model, "all", [layer]))
    with pytest.raises(InputError, match=r"valid: .*mlp\.experts\.gate"):
        models.sites(model, "mlp.expert")


def test_tapes_of_experts_reproduce_their_gradients(family: str) -> None:
    """Padded batches, every site of the model: ``sum g x^T`` is autograd's ``weight.grad`` to 1e-5 (float32)."""
    model = bridged(family)
    sites = models.sites(model, "all")
    found, _ = weight_gradients(model, stream(model), sites, precision="float32")
    parameters = models.parameters_of(model, sites)
    assert len(parameters) == len(sites)
    with models.trainable(model, parameters):
        for batch in stream(model):
            nll(model, batch).total.backward()
        for site, parameter in zip(sites, parameters, strict=True):
            assert parameter.grad is not None and float(parameter.grad.norm()) > 0, site
            error = (found[site.name] - parameter.grad).norm() / parameter.grad.norm()
            assert float(error) < 1e-5, site


def test_an_edit_of_experts_comes_off_bit_for_bit(family: str, tmp_path: Any) -> None:
    """The stacked tensors change with the parts, so that an export is the edited model, in transformers' own names."""
    model, ids = bridged(family), prompts()
    before, logits = copies(model), model(ids).detach()
    stacked = [p.clone() for _, experts in experts_of(model) for p in experts.stacked()]
    delta = random_delta(model, "mlp.experts", integrity.weights_hash(model)) * 0.1
    with editing.edited(model, delta):
        assert float((model(ids) - logits).abs().max()) > 0.01
        now = [p for _, experts in experts_of(model) for p in experts.stacked()]
        assert not any(torch.equal(a, b) for a, b in zip(now, stacked, strict=True))
    assert same_weights(model, before) and torch.equal(model(ids), logits)
    assert all(torch.equal(a, b) for a, b in zip(now, stacked, strict=True))
    assert export(model, delta, tmp_path / "edited").max_logit_difference < 1e-4
    mixture(family).save_pretrained(tmp_path / "theirs")
    export(model, Delta({}), tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / d / "model.safetensors") for d in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_tokens_are_counted_per_expert(family: str) -> None:
    """Every token goes to two experts; which ones is what the router says."""
    model = bridged(family)
    layer = experts_of(model)[-1][0]
    sites = models.sites(model, "mlp.experts", [layer])
    moments = site_moments(model, stream(model), sites, precision="float32")
    per_expert = {s.name: moments[s.name].side("x").n for s in sites}
    total = sum(b.n_tokens for b in stream(model))
    assert sum(n for name, n in per_expert.items() if name.endswith(".out")) == 2 * total
    assert all(moments[s.name].side("g").n == total for s in sites), "the gradient of the other tokens is zero"
    assert moments[sites[0].name].x is moments[sites[1].name].x is not moments[sites[2].name].x, "gate and up share"
    counted = torch.zeros(4)
    chosen: list[torch.Tensor] = []
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.mlp.experts.hook_chosen", lambda t, hook: chosen.append(t))]):
        for batch in stream(model):
            model(batch.ids, attention_mask=batch.mask.long())
            counted += chosen.pop()[batch.mask.flatten()].flatten().bincount(minlength=4)
    assert [per_expert[f"blocks.{layer}.mlp.experts.{e}.gate"] for e in range(4)] == counted.tolist()


def rarely(model: Any, layer: int, expert: int, token: str) -> Any:
    """Hooks that send no token but this one to an expert; the others go to the next expert that they did not choose."""
    id_ = models.tokenizer_of(model).convert_tokens_to_ids(token)
    ids: list[torch.Tensor] = []

    def see(value: torch.Tensor, hook: Any) -> None:
        ids.append(value.flatten())

    def send(chosen: torch.Tensor, hook: Any) -> torch.Tensor:
        other = torch.tensor([next(e for e in range(4) if e != expert and e not in row) for row in chosen.tolist()])
        away = (chosen == expert) & (ids.pop() != id_)[:, None]
        return torch.where(away, other[:, None], chosen)

    return [("embed.hook_in", see), (f"blocks.{layer}.mlp.experts.hook_chosen", send)]


def test_rarely_routed_experts_are_reported() -> None:
    """An expert that one kind of token is sent to is named with its counts; without any it has no subspace."""
    model = bridged("Mixtral")
    forget, retain = texts(30), texts(30, first=1)
    gates = models.sites(model, "mlp.experts.gate", [1])
    with (
        model.hooks(fwd_hooks=rarely(model, 1, 3, "w0")),
        pytest.warns(UserWarning, match=r"experts\.3\.gate \(forget"),
    ):
        found = collect(model, forget, retain, gates).fit("contrast", 2)
    assert set(found.rare()) == {"blocks.1.mlp.experts.3.gate"}
    f, r = found.rare()["blocks.1.mlp.experts.3.gate"]
    assert 0 < max(f, r) < 0.1 * sum(n[0] for n in found.tokens.values()) / 4
    table = found.to_dataframe().set_index("site")
    assert table.loc["blocks.1.mlp.experts.1.gate", "forget_tokens"] > 20
    never = texts(30, first=1, kinds=30)  # holds no w40
    with model.hooks(fwd_hooks=rarely(model, 1, 3, "w40")), pytest.warns(UserWarning, match=r"retain 0"):
        found = collect(model, forget, never, gates).fit("contrast", 2)
    assert ("blocks.1.mlp.experts.3.gate", "x") not in found and len(found) == 3


def test_nothing_is_rare_where_everything_goes_everywhere(recwarn: pytest.WarningsRecorder) -> None:
    """The control: an even router, and sites that are no experts at all."""
    tokens = {f"blocks.0.mlp.experts.{e}.gate": (50, 60) for e in range(4)} | {"blocks.0.mlp.out": (1, 1)}
    assert Subspaces({}, tokens).rare() == {}
    assert set(Subspaces({}, tokens | {"blocks.0.mlp.experts.2.gate": (50, 3)}).rare()) == {
        "blocks.0.mlp.experts.2.gate"
    }
    assert not recwarn.list


def test_located_experts_are_judged_on_their_own_tokens() -> None:
    """Both sides at every expert; items that never reach an expert are not among its items."""
    model = bridged("Qwen3Moe")
    data = collect(model, texts(9, 4), texts(9, 4, first=1), models.sites(model, "mlp.experts"), sides="both")
    for (name, side), rows in data.forget.fitted.items():
        assert bool(rows.isfinite().all()) and bool(rows.any(1).all()), (name, side)
    sizes = {len(rows) for rows in data.forget.fitted.values()}
    assert max(sizes) == 6 and min(sizes) < 6, "of nine items six are fitted on, and some do not reach some expert"
    assert (
        data.forget.moments["blocks.1.mlp.experts.0.gate", "x"].n == data.forget.tokens["blocks.1.mlp.experts.0.gate"]
    )


@pytest.mark.parametrize("method", ["natural", "repselect", "npo", "kfac"])
def test_methods_edit_experts(method: str) -> None:
    """One-shot and walked ones, to the budget: nothing is left over but what a scale is searched to, a twentieth."""
    model = bridged("Mixtral")
    result = hl.edit(
        model, method, forget=texts(24), retain=texts(24, first=1), disruption=texts(24, first=2), budget=0.01,
        sites="mlp.experts", layers=[1], precision="float32",
        **({"epochs": 40, "learning_rate": 1e-2} if method == "npo" else {}),
    )  # fmt: skip
    assert len(result.delta.updates) == 12 and 0.0095 <= result.disruption.kl.value <= 0.01


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("natural", {}), ("natural", {"sketch_rank": 4}), ("natural", {"curvature": "ekfac"}),
        ("kfac", {}), ("sspu", {"forget_rank": 4, "retain_rank": 4}),
    ],
)  # fmt: skip
def test_an_expert_that_no_retain_token_reaches_is_no_free_lunch(method: str, options: dict[str, Any]) -> None:
    """There the curvature is zero and any update would cost nothing; it is refused, by name."""
    model = bridged("Mixtral")
    problem = Problem(
        model, models.sites(model, "mlp.experts", [1]), texts(12), texts(12, first=1, kinds=30), precision="float32"
    )
    with (
        model.hooks(fwd_hooks=rarely(model, 1, 3, "w40")),
        pytest.raises(InputError, match=r"no retain token was sent to blocks\.1\.mlp\.experts\.3"),
    ):
        next(hl.edit.method_of(method, options).path(problem))  # type: ignore[attr-defined]


def test_adapters_on_experts_are_their_merged_delta() -> None:
    """LoRA at the hook points of experts computes what its delta added to their weights computes."""
    model, ids = bridged("DeepseekV3"), prompts()
    adapter = Lora(models.sites(model, "mlp.experts"), rank=2)
    for b in adapter.b.values():
        b.data.normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with adapter.active(model):
            found = model(ids)
        with editing.edited(model, adapter.delta()):
            torch.testing.assert_close(found, model(ids), rtol=1e-4, atol=1e-4)
        assert float((found - model(ids)).abs().max()) > 0.01


def test_methods_that_need_every_token_say_so() -> None:
    """CIR counts the tokens of a batch at every site alike."""
    model = bridged("Mixtral")
    with pytest.raises(InputError, match=r"cir: .* an expert is not given all"):
        hl.edit(
            model, "cir", forget=texts(6), retain=texts(6, first=1), disruption=texts(6, first=2), sites="mlp.experts",
            target_layers=(1,),
        )  # fmt: skip


def test_an_expert_without_tokens_has_an_empty_tape() -> None:
    """One token reaches two of four experts, three matrices each."""
    model = bridged("Mixtral")
    sites = models.sites(model, "mlp.experts", [1])
    [(_, found)] = tapes(model, stream(model, texts(1, 1)), sites, positions="labelled", precision="float32")
    assert sorted(len(found[s.name].x) for s in sites) == 6 * [0] + 6 * [1]
    assert sorted(len(found[s.name].g) for s in sites) == 6 * [0] + 6 * [1], "the position before it, sent elsewhere"


def test_an_expert_says_whose_gradients_it_has() -> None:
    """At scored tokens: x of those that were sent to it, g of the predicting positions that were. By number they are
    rows of the tape of all positions; the control: taken by the numbers of x they would be other tokens' for some."""
    model = bridged("Mixtral")
    sites = models.sites(model, "mlp.experts", [1])
    pairs = [tapes(model, stream(model), sites, positions=p, precision="float32") for p in ("all", "labelled")]
    mistaken = 0
    for (batch, every), (_, some) in zip(*pairs, strict=True):
        position = torch.arange(int(batch.mask.sum()))
        for name in (s.name for s in sites):
            whole, scored = every[name], some[name]
            for side, where in (("x", batch.labels), ("g", batch.keep)):
                row = {int(t): i for i, t in enumerate(whole.of(position))}
                of = scored.of(position[where[batch.mask]], side)
                assert torch.equal(getattr(scored, side), getattr(whole, side)[[row[int(t)] for t in of]])
            mistaken += scored.tokens.tolist() != scored.g_tokens.tolist()
    assert mistaken


def test_an_expert_that_no_forget_token_reaches_is_left_alone() -> None:
    """Nothing is known of what it should forget, so nothing is done there; the others are edited (control)."""
    model = bridged("Mixtral")
    sites = models.sites(model, "mlp.experts", [1])
    problem = Problem(model, sites, texts(12, kinds=30), texts(24, first=1), precision="float32")
    for name, options in (("sspu", {"forget_rank": 4, "retain_rank": 4}), ("natural", {"rank": 4, "contrast": "none"})):
        method = hl.edit.method_of(name, options)  # type: ignore[attr-defined]
        with model.hooks(fwd_hooks=rarely(model, 1, 3, "w40")):
            update = next(method.path(problem))
        alone, other = (float(update[f"blocks.1.mlp.experts.{e}.out"].abs().max()) for e in (3, 0))
        assert alone == 0 < other, name
    confined = hl.edit.method_of("confined", {"rank": 4})  # type: ignore[attr-defined]
    with model.hooks(fwd_hooks=rarely(model, 1, 3, "w40")), pytest.warns(UserWarning, match="few tokens or none"):
        update = next(confined.path(problem))
    assert "blocks.1.mlp.experts.0.out" in update and "blocks.1.mlp.experts.3.out" not in update
    spaces = confined.promise(problem)
    assert max(linalg.escape(u, *spaces.bases(name)) for name, u in update.items()) < 1e-5


@pytest.mark.parametrize("loss", ["mlp_confuse", "ascent"])
def test_cir_edits_a_shared_expert(loss: str) -> None:
    """Its hooks hold the tokens of a batch one after the other; every token passes it."""
    model = bridged("Qwen2Moe")
    result = hl.edit(
        model, "cir", forget=texts(24), retain=texts(24, first=1), disruption=texts(24, first=2), budget=0.01,
        sites=["blocks.1.mlp.shared_expert.out"], precision="float32", loss=loss, target_layers=(1,), epochs=1,
        x_components=2, g_components=2,
    )  # fmt: skip
    assert result.delta.norm() > 0


def test_experts_that_are_moved_are_still_those_that_are_written() -> None:
    """``model.to(...)`` copies tensors and matrices apart; what reads and exports must see an edit of either
    (to bfloat16's hundredths; left as they were, states differed by 3.75)."""
    model = models.wrap(mixture("Mixtral"), tiny_tokenizer(), "Mixtral").to(torch.bfloat16)
    for _, experts in experts_of(model):
        stored = {p.untyped_storage().data_ptr() for p in experts.stacked()}
        parts = [p for number in range(4) for p in experts.get_submodule(str(number)).parameters()]
        assert {p.untyped_storage().data_ptr() for p in parts} == stored
        assert all(p.dtype == torch.bfloat16 for p in parts)
    (batch,) = batches(encode(texts(2), models.tokenizer_of(model)), max_tokens=64)
    with torch.no_grad(), editing.edited(model, random_delta(model, "mlp.experts") * 0.1):
        seen = forward.hidden(model, batch)
        with forward.reader(model) as read:
            assert float((read(batch) - seen).abs().max()) < 0.1


def test_experts_held_in_float64_are_read(family: str) -> None:
    """transformers' grouped products know shorter types only. The same as in float32, to its rounding."""
    held = models.wrap(mixture(family).double(), tiny_tokenizer(), family)
    sequences = encode(texts(4), models.tokenizer_of(held))
    wanted = forward.sequence_logprobs(bridged(family), sequences, precision="float32")
    read = forward.sequence_logprobs(held, sequences)
    assert torch.allclose(torch.as_tensor(read).float(), torch.as_tensor(wanted).float(), rtol=1e-4)
