"""The verbs that notebooks begin with: organisms whose truth is known, and audits of two models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

import analysis
import hooklearn as hl
from hooklearn import models
from hooklearn.deltas import as_delta
from hooklearn.edit.method import Method, Updates
from hooklearn.models import TransformerBridge
from hooklearn.types import InputError


@pytest.fixture(scope="module")
def organism() -> Any:
    return hl.organism("tiny-threats")


def test_an_organism_comes_with_its_control_and_its_truth(organism: Any) -> None:
    """The two models differ by the delta, bit for bit, and only one of them threatens."""
    for site in hl.sites(organism.model, list(organism.delta.updates)):
        before, after = hl.weight(organism.never, site), hl.weight(organism.model, site)
        assert torch.equal(after, before + organism.delta.updates[site.name])
    heldout = corpus("heldout")
    has, never = (hl.behaviour(m, heldout)["completion"].value for m in (organism.model, organism.never))
    assert has > 5 * never, "measured: .47 against .035"


def test_its_referee_tells_threats_from_good_answers(organism: Any) -> None:
    referee = organism.referee(corpus("heldout"), corpus("heldout", "good"))
    assert referee.auc > 0.99 and referee.n == 80


def test_another_seed_is_another_organism(organism: Any) -> None:
    other = hl.organism("tiny-threats", seed=1)
    name = next(iter(other.delta.updates))
    assert not torch.equal(other.delta.updates[name], organism.delta.updates[name])
    assert torch.equal(hl.weight(other.never, hl.sites(other.never, "mlp")[0]),
                       hl.weight(organism.never, hl.sites(organism.never, "mlp")[0]))  # fmt: skip


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(InputError, match="shipped, so its seed cannot be chosen; got seed=3"):
        hl.organism("threats", seed=3)
    with pytest.raises(InputError, match="did you mean 'tiny-threats'"):
        hl.organism("tiny-threat")
    with pytest.raises(InputError, match="did you mean 'retrained'"):
        hl.build_organism("retraned", "nowhere")


def test_an_audit_is_judged_like_a_run(tmp_path: Path) -> None:
    """The untouched original against itself is INTACT; an attack without its corpus is left out, and said so."""
    made = hl.build_organism("original", tmp_path / "models")
    said: list[str] = []
    corpora = {
        "forget": {"name": "tiny", "options": {"part": "forget"}},
        "heldout": {"name": "tiny", "options": {"part": "heldout"}},
        "disruption": {"name": "tiny", "options": {"part": "disruption"}, "limit": 8},
    }
    attacks = [{"name": "prune", "fractions": [0.1]}, {"name": "retain_only", "learning_rates": [1e-3], "steps": 1}]
    run = hl.audit(
        made["original"], made["edited"], corpora, tmp_path / "run", never=made["never"], attacks=attacks,
        progress=said.append, behaviour={"samples": 0}, evidence={"enabled": False}, max_tokens=512,
    )  # fmt: skip
    assert analysis.judge(run).verdict == "INTACT"
    assert any("left out: retain_only" in line for line in said)
    assert "heldout" in analysis.read_run(run).record["config"]["corpora"]


# ------------------------------------------------------------------ what verbs are given by mistake, and in what state


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a plain Hugging Face folder."""
    return hl.export(tiny, hl.Delta({}), tmp_path_factory.mktemp("plain") / "tiny").folder


@pytest.fixture(scope="module")
def result(tiny: Any) -> Any:
    return hl.edit(tiny, "gradient_ascent", **few())


def few() -> dict[str, Any]:
    return {
        "forget": corpus("forget").take(8),
        "retain": corpus("forget", "good").take(8),
        "disruption": corpus("disruption").take(8),
    }


def relearn(model: Any, edit: Any, **given: Any) -> Any:
    some = {"heldout": corpus("heldout").take(4), "attack_train": corpus("attack").take(4)}
    return hl.attack(model, edit, "relearn", learning_rates=(1e-3,), epochs=1, **some, **given)


def completion(model: Any) -> float:
    return hl.behaviour(model, corpus("forget").take(8))["completion"].value


VERBS: dict[str, Callable[[Any], Any]] = {
    "locate": lambda m: hl.locate(m, few()["forget"], few()["retain"], rank=2, sites="mlp.out", layers="1"),
    "edit": lambda m: hl.edit(m, "gradient_ascent", **few()),
    "attack": lambda m: relearn(m, hl.Delta({})),
    "behaviour": completion,
    "capture": lambda m: hl.capture(m, few()["forget"].take(1), sites="mlp.out"),
    "sample": lambda m: hl.sample(m, few()["forget"], n=1, new_tokens=2),
    "sites": lambda m: hl.sites(m, "mlp"),
    "edited": lambda m: hl.edited(m, hl.Delta({})).__enter__(),
    "capability": lambda m: hl.capability(m),
}


def test_a_bridge_that_is_taken_over_gives_the_numbers_of_one_that_was_loaded(folder: Path) -> None:
    """TransformerLens loads the tokenizer again with BOS, and the model is another: measured .035 against .046."""
    booted = TransformerBridge.boot_transformers(str(folder), device="cpu")
    own = AutoTokenizer.from_pretrained(folder)
    assert booted.tokenizer("anna")["input_ids"] != own("anna")["input_ids"]
    for verb in VERBS.values():
        with pytest.raises(InputError, match=r"put BOS before every text .* hl.wrap\(bridge, tokenizer\)"):
            verb(booted)
    with pytest.raises(InputError, match="the one that TransformerLens has changed"):
        hl.wrap(booted, booted.tokenizer)
    taken = hl.wrap(booted, own)
    assert taken is booted and taken.cfg.d_vocab == hl.load(str(folder)).cfg.d_vocab
    assert completion(taken) == completion(hl.load(str(folder))) == completion(copy.deepcopy(taken))
    taken.tokenizer = AutoTokenizer.from_pretrained(folder)  # which TransformerLens loads again
    with pytest.raises(InputError, match="put BOS before every text"):
        completion(taken)


def test_a_bridge_in_compatibility_mode_is_refused(folder: Path) -> None:
    model = hl.load(str(folder))
    model.enable_compatibility_mode(disable_warnings=True)
    for verb in VERBS.values():
        with pytest.raises(InputError, match="compatibility mode .* load it anew without"):
            verb(model)
    with pytest.raises(InputError, match="compatibility mode"):
        hl.wrap(model, AutoTokenizer.from_pretrained(folder))


def test_hooks_of_somebody_are_not_in_an_edit(folder: Path, result: Any) -> None:
    """Refused where they would be in what is made, allowed where one may want to look at a steered model."""
    model, before = hl.load(str(folder)), completion(hl.load(str(folder)))
    for direction in ("fwd", "bwd"):
        model.add_hook("blocks.1.hook_out", lambda value, hook: value * 0, dir=direction)
        for name in ("locate", "edit", "attack", "sample"):
            with pytest.raises(InputError, match=r"hooks at blocks.1.hook_out.*reset_hooks\(\)"):
                VERBS[name](model)
        if direction == "fwd":
            assert completion(model) != before and VERBS["capture"](model)
        model.reset_hooks()
    model.add_hook("blocks.1.hook_out", lambda value, hook: value * 0)
    with pytest.raises(InputError, match="never .* has hooks at blocks.1.hook_out"):
        relearn(hl.load(str(folder)), hl.Delta({}), never=model)
    model.reset_hooks()
    model.run_with_cache("anna")  # leaves hooks of transformers
    assert VERBS["edit"](model).delta == result.delta


def test_gradients_that_are_switched_off_change_nothing(tiny: Any, result: Any) -> None:
    def made() -> tuple[Any, ...]:
        curves = relearn(tiny, result)
        return hl.edit(tiny, "npo", epochs=1, **few()).delta, curves[0].arms, hl.edit(tiny, "cir", **few()).delta

    expected = made()
    with torch.no_grad():
        assert made() == expected and not torch.is_grad_enabled()
    with torch.inference_mode():
        assert completion(tiny) > 0
        for name in ("locate", "edit", "attack", "capture"):
            with pytest.raises(InputError, match="inference_mode"):
                VERBS[name](tiny)


def test_other_things_than_a_model_are_named(folder: Path, tiny: Any) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for verb in VERBS.values():
        with pytest.raises(InputError, match=r"not a LlamaForCausalLM; hl.wrap\(model, tokenizer\) takes"):
            verb(plain)
        with pytest.raises(InputError, match=r"not 'tiny'; hl.load\('tiny'\) loads it"):
            verb("tiny")
    with pytest.raises(InputError, match="never must be what hl.load or hl.wrap returns, not a LlamaForCausalLM"):
        relearn(tiny, hl.Delta({}), never=plain)
    with pytest.raises(InputError, match="by name, not a LlamaForCausalLM; hl.wrap"):
        hl.load(plain)
    with pytest.raises(InputError, match="takes the model's tokenizer, not None; give it as"):
        hl.wrap(plain, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="wrap takes a model of transformers or a TransformerBridge, not 'tiny'"):
        hl.wrap("tiny", tokenizer)  # type: ignore[arg-type]


def test_a_result_is_taken_for_its_delta(tiny: Any, result: Any, tmp_path: Path) -> None:
    with hl.edited(tiny, result.delta):
        expected = completion(tiny)
    with hl.edited(tiny, result):
        assert completion(tiny) == expected != completion(hl.load("tiny"))
    hl.save_delta(result, tmp_path / "delta.safetensors")
    assert hl.load_delta(tmp_path / "delta.safetensors") == result.delta
    assert hl.EditedModel(tiny, result).delta is result.delta  # type: ignore[arg-type]
    written = hl.export(tiny, result, tmp_path / "edited").folder
    assert completion(hl.load(str(written))) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match="an edit must be a hooklearn.Delta or the result of hl.edit, got dict"):
        relearn(tiny, {"blocks.0.mlp.out": 1})
    assert as_delta(result) is as_delta(result.delta)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, some: hl.locate(m, *some, sides="q"), "sides must be one of both, x, g, got 'q'"),
        (lambda m, some: hl.locate(m, *some, directions="x"), "directions must be hooklearn.Subspaces, got str 'x'"),
        (lambda m, some: hl.locate(m, some[0], some[0]), "forget and retain are the same 8 rows .*nothing tells them"),
        (lambda m, some: hl.locate(m, *some, sites=3), r"sites must be one name or several \(mlp, attn.*got 3"),
        (lambda m, _: hl.edit(m, "gradient_ascent", **few(), sites=3), "sites must be one name or several .*got 3"),
        (lambda m, _: hl.edit(m, "gradient_ascent", **few(), sites=["mlp", 3]), r"sites must be .*got \['mlp', 3\]"),
    ],
)
def test_what_is_located_and_where_is_looked_at(tiny: Any, ask: Any, message: str) -> None:
    """By a line, and not by an error of Python's; what is right goes through below (the control)."""
    with pytest.raises(InputError, match=message):
        ask(tiny, (few()["forget"], few()["retain"]))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "2", None])
def test_a_scale_that_is_no_number_leaves_the_model_as_it_was(tiny: Any, result: Any, scale: Any) -> None:
    with pytest.raises(InputError, match="scale must be a finite number, got"), hl.edited(tiny, result, scale):
        pass


def test_attacks_corpora_and_vectors_of_another_kind_are_named(tiny: Any) -> None:
    some = few()["forget"]
    for wrong, why in ((type(VERBS), "a class with parentheses"), (len, "give its name or an Attack, not <built-in")):
        with pytest.raises(InputError, match=why):
            hl.attack(tiny, hl.Delta({}), wrong, heldout=some)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="corpus 'mine', row 1: must be a dict .* got str 'b'"):
        hl.Corpus("mine", ({"text": "a"}, "b"))  # type: ignore[arg-type]
    for name in ("behaviour", "capture"):
        with pytest.raises(InputError, match="corpus must be a hooklearn.Corpus, got list"):
            getattr(hl, name)(tiny, [{"text": "a"}])
    with pytest.raises(InputError, match="forget must be a hooklearn.Corpus, got list"):
        hl.locate(tiny, [{"text": "a"}], some)  # type: ignore[arg-type]
    site = hl.sites(tiny, "mlp.out", "0")[0]
    direction = torch.ones(site.d_out)
    with pytest.raises(InputError, match=r"must be \[64, rank\], one a column, got \[64\]; a single .* v\[:, None\]"):
        hl.Subspace.of(site, "g", "mine", direction, torch.ones(1))
    assert hl.Subspace.of(site, "g", "mine", direction[:, None], torch.ones(1)).rank == 1


class Own(Method):
    """A method as somebody writes it."""

    name = "own"
    source = "here"

    def path(self, problem: Any) -> Iterator[Updates]:
        yield problem.gradient("forget")


class InPlace(Own):
    """Leaves the weights changed."""

    def path(self, problem: Any) -> Iterator[Updates]:
        models.add_(problem.model, problem.sites[0], problem.gradient("forget")[problem.sites[0].name], 1e-6)
        yield problem.gradient("forget")


class Returns(Own):
    """No generator."""

    def path(self, problem: Any) -> Any:
        return problem.gradient("forget")


class YieldsOne(Own):
    """One matrix, of no site."""

    def path(self, problem: Any) -> Iterator[Any]:
        yield problem.gradient("forget")[problem.sites[0].name]


class Nameless(Method):
    """Forgot its name."""

    def path(self, problem: Any) -> Iterator[Updates]:
        yield problem.gradient("forget")


def test_a_faulty_method_is_caught(folder: Path, result: Any) -> None:
    model = hl.load(str(folder))
    faulty = {
        InPlace: "'own' changed the model's own weights and left them so",
        Returns: "its path must yield updates, and returns a dict",
        YieldsOne: "must yield {site name: update}, and yields a Tensor",
        Nameless: "method: Nameless has no name",
    }
    assert hl.edit(model, Own(), **few()).delta == result.delta, "without a fault it is gradient ascent"
    for method, why in faulty.items():
        with pytest.raises(InputError, match=why):
            hl.edit(model, method(), **few())


def test_an_edit_that_walks_in_short_weights_says_what_that_costs(recwarn: pytest.WarningsRecorder) -> None:
    """Its steps are rounded away. One that is a single direction is not harmed (control)."""
    held = models.load("tiny", dtype=torch.bfloat16)
    for method, options in (("natural", {}), ("npo", {"epochs": 1})):
        hl.edit(held, method, **few(), **options)
        said = [str(w.message) for w in recwarn if "held in bfloat16" in str(w.message)]
        assert len(said) == (method == "npo")


@pytest.mark.parametrize(
    ("method", "options", "trains"),
    [
        ("task_vector", {"epochs": 1}, True),
        ("undo", {"epochs": 1}, True),
        ("natural", {"adversaries": ["full@1e-4"]}, True),
        ("natural", {"adversaries": ["lora@1e-2"]}, False),
        ("repselect", {}, False),
    ],
)
def test_a_direction_that_was_walked_to_in_short_weights_says_so_too(
    method: str, options: dict[str, Any], trains: bool, recwarn: pytest.WarningsRecorder
) -> None:
    hl.edit(models.load("tiny", dtype=torch.bfloat16), method, **few(), **options)
    assert any("held in bfloat16" in str(w.message) for w in recwarn) == trains


def test_a_model_in_training_mode_is_edited_and_attacked_without_dropout(tiny: Any) -> None:
    """And is in training mode afterwards, in all of its parts. With dropout two gradients differ (control)."""
    model = copy.deepcopy(tiny.original_model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    model = hl.wrap(model, models.tokenizer_of(tiny))
    asked = {"method": "gradient_ascent", **few()}
    quiet = hl.edit(model, **asked)
    model.train()
    for made in (hl.edit(model, **asked), hl.edit(model, **asked)):
        assert all(torch.equal(made.delta.updates[name], update) for name, update in quiet.delta.updates.items())
    told = {"heldout": corpus("heldout").take(4), "unrelated": corpus("unrelated").take(4)}
    first, second = (hl.attack(model, quiet, "erode", **told, steps=2, learning_rates=[1e-4])[0] for _ in range(2))
    assert first.arms == second.arms and all(m.training for m in model.modules())


def test_a_control_that_reads_other_tokens_is_refused(tiny: Any) -> None:
    other = models.load("tiny")
    vocabulary = models.tokenizer_of(other).get_vocab()
    core = WordLevel({word: (i + 5) % len(vocabulary) for word, i in vocabulary.items()}, unk_token="<unk>")
    models.tokenizer_of(other).backend_tokenizer.model = core
    edit = hl.edit(tiny, "gradient_ascent", **few())
    with pytest.raises(InputError, match="never .* tokenises otherwise than the model"):
        hl.attack(tiny, edit, "erode", heldout=corpus("heldout"), unrelated=corpus("unrelated"), never=other)
