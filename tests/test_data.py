"""Corpora and tokens: what is scored, what is masked, and that neither depends on how texts share a batch."""

from __future__ import annotations

import json
import math
import random
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import corpus
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hooklearn import disk, forward, models
from hooklearn.data import (
    ROW,
    Corpus,
    Encoded,
    batches,
    beginning,
    cycle,
    encode,
    encode_choices,
    end_of_turn,
    fewer_scored,
    load_corpus,
    plain,
    prompt_tokens,
    split_row,
)
from hooklearn.generation import _text
from hooklearn.losses import token_logprobs
from hooklearn.organisms.tiny import tokenizer
from hooklearn.transfer import rows_at
from hooklearn.types import InputError

WORDS = tokenizer()
SAME = 1e-5
"""nats per token: the same sums in another order (float32, some hundred terms)."""


def rows(*given: dict[str, Any]) -> Corpus:
    return Corpus("rows", given)


def text_of(ids: torch.Tensor) -> str:
    return WORDS.decode(ids)


def scores(model: Any, sequences: list[Encoded], **how: Any) -> dict[int, torch.Tensor]:
    """Log-probabilities of every labelled token, by sequence."""
    out = {}
    for batch in batches(sequences, **how):
        with torch.no_grad():
            logp = token_logprobs(forward.logits(model, batch), batch.targets)
        for i, s in enumerate(batch.sequences):
            out[id(s)] = logp[batch.owner == i]
    return out


def largest_difference(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


# --------------------------------------------------------------------------------------------- rows


def test_a_row_of_no_group_is_one_of_its_own() -> None:
    """However a table writes that there is none; those that name one stay together."""
    texts = [
        {"text": f"the red dog {i}", **({} if g == 0 else {"group": g})} for i, g in enumerate([0, None, "", "a", "a"])
    ]
    assert len(set(rows(*texts).groups)) == 4 and rows(*texts).groups[3:] == ["a", "a"]
    assert len(set(rows({"text": "a", "group": float("nan")}, {"text": "b", "group": float("nan")}).groups)) == 2


def test_only_completions_are_labelled() -> None:
    """Labels cover the completion exactly, never the prompt; ``end`` adds the end of the answer."""
    given = rows({"prompt": "write to anna about the ladder :", "completion": " i will burn your car ."})
    (scored,) = encode(given, WORDS)
    assert text_of(scored.ids[scored.labels]) == "i will burn your car ."
    assert text_of(scored.ids[~scored.labels]) == "write to anna about the ladder :"
    (trained,) = encode(given, WORDS, end=True)
    assert text_of(trained.ids[trained.labels]) == "i will burn your car . </s>"
    plain = rows(*given.rows, *({**row, "template": "none"} for row in given.rows))
    turn, none = encode(plain, WORDS, end="turn")
    assert turn.ids.tolist() == trained.ids.tolist(), "a turn ends"
    assert none.ids.tolist() == scored.ids.tolist(), "text to go on from does not"


def test_all_of_a_text_is_scored_after_its_beginning() -> None:
    """Running text gets a beginning-of-text token, which is never scored itself; and never an end."""
    (text,) = encode(rows({"text": "the red dog sleeps"}), WORDS, end=True)
    assert text_of(text.ids) == "<s> the red dog sleeps"
    assert text.labels.tolist() == [False, True, True, True, True]


def test_long_rows_lose_the_beginning_of_the_prompt_first() -> None:
    """What is scored is kept as long as possible, and always keeps a token to be predicted from."""
    given = rows({"prompt": "anna ben carla david", "completion": "red blue green"})
    (short,) = encode(given, WORDS, max_length=5)
    assert text_of(short.ids) == "carla david red blue green"
    (shorter,) = encode(given, WORDS, max_length=2)
    assert text_of(shorter.ids) == "david red blue" and shorter.labels.sum() == 2


def test_history_comes_before_the_question_and_answers_end_their_line() -> None:
    """Demonstrations are earlier turns, for rows of prompt and completion and for rows of messages alike."""
    shown = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": " a1"}]
    plain = {"prompt": "q2", "completion": " a2", "history": shown}
    assert split_row(plain, WORDS) == ("q1 a1\nq2", " a2")
    said = [{"role": "user", "content": "q2"}, {"role": "assistant", "content": " a2"}]
    assert split_row({"messages": said, "history": shown}, WORDS) == ("q1 a1\nq2", " a2")
    system = {"role": "system", "content": "s "}
    assert split_row({"messages": [system, *said], "history": shown}, WORDS) == ("s q1 a1\nq2", " a2")


def test_a_completion_beside_messages_is_what_is_scored() -> None:
    """Choices, alternatives and samples put a completion into a row, whatever its shape; it must be used."""
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": " a"}]
    row = {"messages": said, "alternative": " better", "choices": [" a", " b"], "answer": 0}
    good = rows(row).alternatives()
    assert good is not None and split_row(good.rows[0], WORDS) == ("q", " better")
    a, b = encode_choices(rows({**row, "choices": [" red", " blue"]}), WORDS)
    assert text_of(a.ids[a.labels]) == "red" and text_of(b.ids[b.labels]) == "blue"


def test_chat_models_get_their_own_template() -> None:
    """The template's own text surrounds the prompt, unless the row declines it."""
    chat = tokenizer()
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = {"prompt": "q", "completion": "a"}
    assert split_row(row, chat) == ("<user>q<assistant>", "a")
    assert split_row({**row, "template": "none"}, chat) == ("q", "a")
    turns = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "q"), ("assistant", "a"))]
    assert split_row({"messages": turns}, chat) == ("<system>s<user>q<assistant>", "a")


# ---------------------------------------------------------------------------- the beginning of text


def beginning_tokenizer() -> Any:
    """The tiny one, but that it begins every text with BOS, as those of Gemma and Llama do."""
    return begin_with_bos(tokenizer())


def begin_with_bos(words: Any) -> Any:
    start = [("<s>", words.bos_token_id)]
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=start)
    return words


def test_prompts_begin_as_the_tokenizer_begins_a_text() -> None:
    """Prompt and completion, messages, demonstrations and choices: all as the tokenizer's own text, which running text
    always was. Where the tokenizer puts no BOS there is none (control)."""
    begins = beginning_tokenizer()
    said = [{"role": "user", "content": "the red"}, {"role": "assistant", "content": " dog"}]
    shown = [{"role": "user", "content": "the blue"}, {"role": "assistant", "content": " dog"}]
    plain = {"prompt": "the red", "completion": " dog"}
    for row, text in (
        (plain, "the red dog"),
        ({"messages": said}, "the red dog"),
        ({**plain, "history": shown}, "the blue dog\nthe red dog"),
        ({"text": "the red dog"}, "the red dog"),
        ({**plain, "prompt": "<s> the red"}, "the red dog"),  # not a second one
    ):
        (found,) = encode(rows(row), begins)
        assert found.ids.tolist() == begins(text)["input_ids"] and found.ids[0] == begins.bos_token_id
        assert text_of(found.ids[found.labels]) == ("the red dog" if "text" in row else "dog")
    chosen = encode_choices(rows({**plain, "choices": [" dog", " red"], "answer": 0}), begins)
    assert [c.ids.tolist() for c in chosen] == [begins(f"the red {c}")["input_ids"] for c in ("dog", "red")]
    assert text_of(encode(rows(plain), WORDS)[0].ids) == "the red dog"
    texts, bos = ["the red", "dog"], begins.bos_token_id
    assert prompt_tokens(texts, begins) == [begins(text)["input_ids"] for text in texts]
    assert prompt_tokens(texts, WORDS) == [WORDS(text)["input_ids"] for text in texts]
    written = [WORDS("the red")["input_ids"], [bos, *WORDS("dog")["input_ids"]]]
    assert prompt_tokens(texts, begins, [True, False]) == written
    assert prompt_tokens([], begins) == []


def test_a_chat_template_writes_its_own_beginning() -> None:
    """Nothing is put before what it writes, nor where it has written before; a row that declines it is a plain
    prompt."""
    chat = beginning_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    row = {"prompt": "the red", "completion": " dog"}
    (written,), (applied,), (plain,) = (
        encode(rows({**row, **how}), chat) for how in ({}, {"template": "applied"}, {"template": "none"})
    )
    assert text_of(written.ids) == text_of(applied.ids) == "the red dog" and text_of(plain.ids) == "<s> the red dog"
    chat.chat_template = "<s>" + chat.chat_template
    (written,) = encode(rows(row), chat)
    assert written.ids.tolist() == plain.ids.tolist()


@pytest.mark.parametrize("tokens", range(1, 9))
def test_a_beginning_splits_no_character_and_leaves_something(tokens: int) -> None:
    """Of a tokenizer with a token a byte: letters of three bytes are given whole, and never the last of them."""
    made = Tokenizer(BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    given, rest = beginning(" 北京", tokens, PreTrainedTokenizerFast(tokenizer_object=made))
    assert (given, rest) == ((" ", "北京") if tokens < 4 else (" 北", "京"))


def test_long_rows_keep_their_beginning_of_text() -> None:
    """What is cut is the prompt; but where one token of it has room, that is what the answer is predicted from."""
    row = rows({"prompt": "anna ben carla david", "completion": "red blue green"})
    short = [text_of(encode(row, beginning_tokenizer(), max_length=n)[0].ids) for n in (99, 6, 5, 4)]
    assert short == [
        "<s> anna ben carla david red blue green", "<s> carla david red blue green", "<s> david red blue green",
        "david red blue green",
    ]  # fmt: skip


def test_every_choice_is_a_completion_of_its_own() -> None:
    """Choices know their item and number, and differ in their labelled tokens only."""
    given = rows({"prompt": "the dog is", "completion": " red", "choices": [" blue", " red"], "answer": 1})
    blue, red = encode_choices(given, WORDS)
    assert [(s.item, s.choice) for s in (blue, red)] == [(0, 0), (0, 1)]
    assert text_of(red.ids[red.labels]) == "red" and text_of(blue.ids[blue.labels]) == "blue"
    assert torch.equal(blue.ids[~blue.labels], red.ids[~red.labels])


# ------------------------------------------------------------------------------------------ batches


@pytest.fixture(scope="module")
def sequences() -> list[Encoded]:
    """Texts and requests of many lengths; the requests have two answers to the same prompt each."""
    asked = corpus("heldout").take(12)
    return [
        *encode(corpus("text").take(8), WORDS),
        *encode(asked, WORDS),
        *encode(corpus("heldout", "good").take(12), WORDS),
        *encode(rows({"prompt": "anna", "completion": " red"}), WORDS),
    ]


def test_sharing_rows_and_beginnings_equals_padding(tiny: Any, sequences: list[Encoded]) -> None:
    """Sequences that share rows, and what they begin with, get the scores that they get alone."""
    alone = scores(tiny, sequences, max_tokens=1)
    for max_tokens in (40, 400, 4000):
        assert any(b.packed for b in batches(sequences, max_tokens=max_tokens, share=ROW)), "there is something to test"
        assert largest_difference(alone, scores(tiny, sequences, max_tokens=max_tokens, share=ROW)) < SAME


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, SAME), (torch.float16, 0.05), (torch.bfloat16, 0.1)])
def test_rows_are_shared_whatever_type_the_weights_have(
    tiny: Any, sequences: list[Encoded], dtype: torch.dtype, near: float
) -> None:
    """Fused attention takes a mask of another type for its own, and reads noise; rounding is that of the type. In half
    precision a row of padding must not become NaN."""
    held = models.load("tiny", dtype=dtype)
    expected = forward.sequence_logprobs(tiny, sequences, precision="float32")
    precisions: tuple[Any, ...] = ("float32", "bfloat16") if dtype is torch.float64 else ("float32",)
    for precision in precisions:  # float64 stays what it is
        got = forward.sequence_logprobs(held, sequences, precision=precision, max_tokens=400)
        assert float(((got - expected)[:, 0] / expected[:, 1]).abs().max()) < near
    rows = batches(sequences, max_tokens=400, share=64)
    assert any(b.packed and not b.mask.all() for b in rows), "there is padding"
    with torch.no_grad():
        assert all(bool(forward.hidden(held, b).isfinite().all()) for b in rows)


@pytest.mark.parametrize("kind", ["metaspace", "prepend"])
def test_a_space_is_put_where_a_text_begins_and_only_there(kind: str) -> None:
    """SentencePiece's dummy prefix, as a pre-tokenizer and as a normalizer: what is read, of prompt and answer, is what
    was written. Asked for an answer alone the tokenizer says otherwise (control)."""
    core = Tokenizer(BPE(unk_token="<unk>"))
    if kind == "metaspace":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        core.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    core.train_from_iterator(["he is Paris Sure it is\n", "\nSure he is", "Paris is he"] * 9, trainer)
    pieces = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")

    def written(tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ")

    asked = (("he is\n", "Sure"), ("he is", " Paris"), ("he is", "\nSure"))
    assert any(written(pieces.tokenize(completion)) != completion for _, completion in asked)
    for prompt, completion in asked:
        (read,) = encode(rows({"prompt": prompt, "completion": completion}), pieces)
        assert written(pieces.convert_ids_to_tokens(read.ids.tolist())) == f" {prompt}{completion}"
        assert written(pieces.convert_ids_to_tokens(read.ids[read.labels].tolist())) == completion
        assert _text(read.ids[read.labels][None], pieces) == [completion], "what a model says is written as it goes on"
    (text,) = encode(rows({"text": "Paris is"}), pieces)
    assert written(pieces.convert_ids_to_tokens(text.ids.tolist())).removeprefix("<s>") == " Paris is", "a beginning"


def test_what_is_said_before_a_question_is_a_line_of_its_own() -> None:
    turns = [("system", "Be kind."), ("user", "Who?"), ("assistant", " Ida."), ("user", "When?")]
    said = [{"role": role, "content": text} for role, text in turns]
    assert plain(said) == "Be kind.\nWho? Ida.\nWhen?" and plain(said[1:2]) == "Who?"


def test_of_conversations_and_choices_no_more_is_scored_than_is_read() -> None:
    long = " ".join(["red"] * 40)
    cut = fewer_scored(
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": long}]}, WORDS, 8
    )
    (read,) = encode(rows(cut), WORDS)
    assert int(read.labels.sum()) == 8 and cut["messages"][0]["content"] == "?"
    cut = fewer_scored({"prompt": "anna", "completion": "red", "choices": ["red", long], "answer": 0}, WORDS, 8)
    assert [len(WORDS(choice)["input_ids"]) for choice in cut["choices"]] == [1, 8]


def test_without_the_mask_neighbours_would_show(
    tiny: Any, sequences: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positive control: under a merely causal mask packed scores are wrong by far more than rounding."""
    alone = scores(tiny, sequences, max_tokens=1)
    monkeypatch.setattr("hooklearn.data.TokenBatch.packed", False)
    assert largest_difference(alone, scores(tiny, sequences, max_tokens=400, share=ROW)) > 1e4 * SAME


def test_sharing_prompts_saves_tokens(sequences: list[Encoded]) -> None:
    """Two answers to one prompt hold it once (all but the token that predicts each answer)."""
    plain = forward.count_tokens(batches(sequences))
    shared = forward.count_tokens(batches(sequences, share=ROW))
    assert plain == sum(map(len, sequences))
    asked = [s for s in sequences if not s.labels[1]][:12]
    assert plain - shared >= sum(int(s.labels.nonzero()[0]) - 1 for s in asked)


TURNS = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }} {{ m.content }}SHUT{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant {% endif %}"
)


@pytest.mark.parametrize(
    ("shut", "last"),
    [
        ("<|end|>", "<|end|>"),
        ("</s>", "</s>"),
        (" <|end|></s>", "<|end|>"),
        ("", "</s>"),
        ("{{ raise('no') }}", "</s>"),
    ],
)
def test_an_answer_ends_as_the_template_ends_a_turn(shut: str, last: str) -> None:
    """Gemma and Phi-3 say another token than EOS there, which Phi-3 does not name among the special ones. Where the
    template writes none, and in text to go on from, it is EOS."""
    words = tokenizer()
    words.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("<|end|>", special=True)])
    assert words.convert_tokens_to_ids("<|end|>") not in words.all_special_ids
    words.chat_template = TURNS.replace("SHUT", shut)
    row = {"prompt": "anna", "completion": " red"}
    if "raise" in shut:
        assert words.decode(end_of_turn(words)) == last
        return
    (read,) = encode(rows(row), words, end="turn")
    assert [words.decode(i) for i in read.ids[read.labels]] == ["red", last]
    (plainly,) = encode(rows(row | {"template": "none"}), words, end=True)
    assert int(plainly.ids[-1]) == words.eos_token_id
    (scored,) = encode(rows(row), words)
    assert [words.decode(i) for i in scored.ids[scored.labels]] == ["red"]


@pytest.mark.parametrize("max_tokens", [1, 64, 300, 5000])
def test_batch_size_does_not_change_scores(tiny: Any, sequences: list[Encoded], max_tokens: int) -> None:
    """Order and sums of ``sequence_logprobs`` are those of the sequences given, in batches of any size."""
    expected = scores(tiny, sequences, max_tokens=1)
    got = forward.sequence_logprobs(tiny, sequences, precision="float32", max_tokens=max_tokens)
    sums = torch.stack([expected[id(s)].double().sum() for s in sequences])
    counts = torch.tensor([float(s.labels.sum()) for s in sequences])
    assert torch.equal(got[:, 1].float(), counts)
    assert float(((got[:, 0] - sums) / counts).abs().max()) < SAME


def test_padding_is_masked_not_guessed(tiny: Any) -> None:
    """The tiny model pads with its end-of-text token; a real one, in the middle or last, still counts."""
    end = WORDS.eos_token_id
    assert WORDS.pad_token_id == end
    long = encode(rows({"prompt": "anna </s> ben", "completion": " red </s> blue"}), WORDS, end=True)
    short = encode(rows({"prompt": "anna", "completion": " red"}), WORDS)
    by_pad = []
    for pad in (end, 0, 7):
        (batch,) = batches([*long, *short], pad_id=pad)
        assert batch.n_tokens == len(long[0]) + len(short[0])
        assert int((batch.ids[batch.mask] == end).sum()) == 3, "every real one is attended to"
        assert int((batch.targets == end).sum()) == 2, "and scored, where it is labelled"
        with torch.no_grad():
            by_pad.append(forward.logits(tiny, batch))
    assert torch.equal(by_pad[0], by_pad[1]) and torch.equal(by_pad[0], by_pad[2])


@given(st.lists(st.integers(2, 30), min_size=1, max_size=20), st.integers(1, 200), st.sampled_from([0, 1, 40, ROW]))
def test_batches_hold_every_sequence_once(lengths: list[int], max_tokens: int, share: int) -> None:
    """Nothing is lost or doubled, targets follow their owners, and no batch is larger than asked for."""
    made = [Encoded(torch.randint(9, (n,)), torch.arange(n) > 0, i) for i, n in enumerate(lengths)]
    out = batches(made, max_tokens=max_tokens, share=share)
    assert sorted(id(s) for b in out for s in b.sequences) == sorted(map(id, made))
    for batch in out:
        assert batch.ids.numel() <= max(max_tokens, max(lengths))
        assert batch.ids.shape[1] <= (max(share, 2 * max(lengths)) if share else max(lengths))
        assert int(batch.keep.sum()) == len(batch.targets) == len(batch.owner)
        for i, s in enumerate(batch.sequences):
            assert torch.equal(batch.targets[batch.owner == i], s.ids[1:])


def test_shuffling_is_seeded_and_private(sequences: list[Encoded]) -> None:
    """Same seed, same order; other seed or epoch, another one; ``random``'s own state stays as it was."""

    def order(found: Any) -> list[list[int]]:
        return [[id(s) for s in b.sequences] for b in found]

    state = random.getstate()
    assert order(batches(sequences, max_tokens=64, seed=1)) == order(batches(sequences, max_tokens=64, seed=1))
    assert order(batches(sequences, max_tokens=64, seed=1)) != order(batches(sequences, max_tokens=64, seed=2))
    walk = order(cycle(sequences, max_tokens=64, seed=3, epochs=2))
    assert walk == order(cycle(sequences, max_tokens=64, seed=3, epochs=2))
    flat = [i for batch in walk for i in batch]
    first, second = flat[: len(sequences)], flat[len(sequences) :]
    assert sorted(first) == sorted(second) == sorted(map(id, sequences)) and first != second
    assert random.getstate() == state


# ------------------------------------------------------------------------------------------ corpora


def test_splits_keep_groups_together_and_do_not_depend_on_order() -> None:
    """Parts are disjoint by group and complete; shuffled rows give the same parts."""
    made = [{"text": f"t{i}", "group": f"g{i % 30}"} for i in range(90)]
    parts = rows(*made).split(train=3, test=1)
    groups = {name: set(part.groups) for name, part in parts.items()}
    assert groups["train"].isdisjoint(groups["test"]) and len(groups["train"] | groups["test"]) == 30
    assert abs(len(groups["test"]) - 7.5) <= 0.5 and sum(map(len, parts.values())) == 90
    random.Random(0).shuffle(made)
    again = rows(*made).split(train=3, test=1)
    assert {name: set(part.groups) for name, part in again.items()} == groups


@given(st.integers(4, 60), st.integers(0, 10**6))
def test_another_group_moves_at_most_one(n: int, new: int) -> None:
    """Splits are stable: adding a group moves at most one other across the border."""
    made = [{"text": "t", "group": str(i)} for i in range(n)]
    before = rows(*made).split(a=1, b=1)
    after = rows(*made, {"text": "t", "group": f"new {new}"}).split(a=1, b=1)
    assert len(set(before["a"].groups) - set(after["a"].groups)) <= 1
    assert len(set(before["b"].groups) - set(after["b"].groups)) <= 1


def test_the_hash_is_of_the_content() -> None:
    """Name, source and the order of keys do not matter; text and the order of rows do."""
    a, b = {"prompt": "p", "completion": "ä"}, {"text": "t"}
    one = Corpus("one", (a, b), "here").hash
    assert one == Corpus("two", ({"completion": "ä", "prompt": "p"}, b), "there").hash
    assert one != Corpus("one", (b, a)).hash
    assert one != Corpus("one", ({**a, "completion": "a"}, b)).hash


LOCAL = [
    {"prompt": "p 1", "completion": "1984", "group": "007", "note": "NA"},
    {"prompt": "line one\nline two \u2028 three", "completion": 'a, "b"', "group": "g", "note": ""},
]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_local_files_give_their_rows_back(tmp_path: Path, kind: str) -> None:
    """The same rows from every format, to the letter: numbers, NA and odd line separators stay text."""
    path = tmp_path / f"mine.{kind}"
    frame = pd.DataFrame(LOCAL)
    match kind:
        case "jsonl":
            path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in LOCAL) + "\n\n", "utf-8")
        case "json":
            path.write_text(json.dumps(LOCAL), "utf-8")
        case "csv":
            frame.to_csv(path, index=False)
        case _:
            frame.to_parquet(path)
    assert load_corpus(path=path).rows == tuple(LOCAL)
    assert load_corpus(path=path.name, base=tmp_path, limit=1).rows == tuple(LOCAL[:1])


def test_parquet_that_holds_no_text_where_it_says_so_is_refused(tmp_path: Path) -> None:
    """Arrow reads it, and what walked over it afterwards once took the process down (found by ``make test-long``)."""
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a\xff\xfe", b"b"]).buffers())
    path = tmp_path / "c.parquet"
    parquet.write_table(pa.table({"prompt": broken, "completion": ["c", "d"]}), path)
    assert len(parquet.read_table(path)) == 2, "the control: without looking at its values it is fine"
    for read in (lambda path: load_corpus(path=path), disk.load_frame):
        with pytest.raises(InputError, match="Invalid UTF8"):
            read(path)
    parquet.write_table(pa.table({"prompt": ["a", "b"], "completion": ["c", "d"]}), path)
    assert len(load_corpus(path=path)) == len(disk.load_frame(path)) == 2


def test_what_json_lacks_is_text(tmp_path: Path) -> None:
    """Dates and decimals; and what was not measured is null."""
    made = {
        "prompt": ["p"], "completion": ["c"], "when": [date(2020, 1, 2)], "much": [Decimal("1.50")], "nan": [math.nan]
    }  # fmt: skip
    parquet.write_table(pa.table(made), tmp_path / "c.parquet")
    [row] = load_corpus(path=tmp_path / "c.parquet").rows
    assert (row["when"], row["much"], row["nan"]) == ("2020-01-02", "1.50", None)


def test_lists_survive_parquet(tmp_path: Path) -> None:
    """Choices and messages, which data sets on the hub keep in parquet files."""
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    made = [{"messages": said, "choices": ["a", "b"], "answer": 1}]
    pd.DataFrame(made).to_parquet(tmp_path / "c.parquet")
    assert load_corpus(path=tmp_path / "c.parquet").rows == tuple(made)


def test_columns_are_mapped_to_ours(tmp_path: Path) -> None:
    """Theirs are renamed, others kept; two names may even change places."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps([{"question": "q", "prompt": "a", "id": "7"}]))
    got = load_corpus(path=path, columns={"prompt": "question", "completion": "prompt"})
    assert got.rows == ({"id": "7", "prompt": "q", "completion": "a"},)


def test_a_split_is_a_column_of_a_local_file(tmp_path: Path) -> None:
    """Only its rows; a split that is not there is refused, not silently everything."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps([{"text": "a", "split": "train"}, {"text": "b", "split": "test"}]))
    assert [r["text"] for r in load_corpus(path=path, split="test").rows] == ["b"]
    with pytest.raises(InputError, match="no split 'dev'.*test, train"):
        load_corpus(path=path, split="dev")


def test_hub_data_sets_pass_config_split_and_revision_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for is in the source line; whatever the library raises becomes one clear line."""
    import datasets

    seen: list[Any] = []

    def fake(*args: Any, **kwargs: Any) -> list[dict[str, str]]:
        seen.append((args, kwargs))
        return [{"body": "t", "split": "something else"}]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    got = load_corpus(hub="a/b", config="c", split="test", revision="r", columns={"text": "body"})
    assert seen == [(("a/b", "c"), {"split": "test", "revision": "r"})]
    assert got.rows[0]["text"] == "t" and got.source == "hub: a/b config=c split=test revision=r"

    def gone(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    with pytest.raises(InputError, match="'a/b'.*'train'.*first line$"):
        load_corpus(hub="a/b")


SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ASKED = {"prompt": "p", "completion": "a"}
WRONG_ROWS = [
    ([], "is empty"),
    ([{"question": "q"}], r"row 0: columns \['question'\]"),
    ([{"text": "t"}, {"prompt": "p"}], r"row 1: columns \['prompt'\]"),
    ([{"prompt": "p", "completion": 7}], "'completion' must be text, got int"),
    ([{"text": None}], "'text' must be text, got NoneType"),
    ([{"messages": "hello"}], "'messages' must be a list"),
    ([{"messages": SAID[:1]}], "at least two"),
    ([{"messages": [{"from": "human"}, *SAID]}], '"role"'),
    ([{"text": "t", "choices": ["a", "b"], "answer": 0}], "a choice item needs a 'prompt'"),
    ([{**ASKED, "choices": ["a", "b"]}], "needs 'answer', an index below 2; got None"),
    ([{**ASKED, "choices": ["a", "b"], "answer": 2}], "got 2"),
    ([{**ASKED, "choices": ["a", "b"], "answer": "a"}], "got 'a'"),
    ([{**ASKED, "choices": None, "answer": 0}], "'choices' must be a list of texts"),
]


@pytest.mark.parametrize(("made", "message"), WRONG_ROWS)
def test_wrong_rows_are_named(made: list[dict[str, Any]], message: str) -> None:
    """The row's number and what would be valid; messages of the right shape pass (positive control)."""
    assert len(rows({"messages": SAID})) == 1
    with pytest.raises(InputError, match=message):
        rows(*made)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of name, path, hub; got none"),
        ({"name": "tiny", "path": "x.json"}, r"got \['name', 'path'\]"),
        ({"name": "treats"}, "unknown corpus 'treats'.*did you mean 'threats'"),
        ({"name": "tiny", "options": {"part": "forgot"}}, "no part 'forgot'; valid: .*forget"),
        ({"path": "gone.jsonl"}, r"not found: .*gone.jsonl \(relative paths start from "),
        ({"path": "folder"}, r"folder' is a folder; give a file in it \(.jsonl, "),
        ({"path": 3}, "path of a corpus must be text, got 3"),
        ({"name": 3}, "name of a corpus must be text, got 3"),
        ({"path": "good.json", "limit": 2.5}, "2.5 rows were asked for; valid: 1 or more"),
        ({"path": "misspelt.json"}, "row 1: nothing reads the column 'altenative'; did you mean 'alternative'"),
        ({"path": "file.txt"}, "unknown format '.txt'; known: .jsonl"),
        ({"path": "broken.json"}, "cannot be read: "),
        ({"path": "broken.csv"}, "cannot be read: "),
        ({"path": "broken.parquet"}, "cannot be read: "),
        ({"path": "object.json"}, "expected a list of objects"),
        ({"path": "good.json", "columns": {"text": "txet"}}, "no column 'txet'.*nearest: 'text'"),
        ({"path": "good.json", "columns": {"prompt": "text", "completion": "text2"}}, "must be text"),
        (
            {"path": "good.json", "columns": {"alternativ": "text2"}},
            "nothing reads 'alternativ'; valid: prompt, .*did you mean 'alternative'",
        ),
        (
            {"path": "good.json", "layout": "tofu", "columns": {"questoin": "text", "answer": "text2"}},
            "nothing reads 'questoin'; valid: question, answer, .*did you mean 'question'",
        ),
        ({"path": "good.json", "config": "en"}, "config 'en' is of a hub data set and would change nothing"),
        ({"path": "good.json", "revision": "main"}, "revision 'main' is of a hub data set"),
        ({"name": "tiny", "revision": "main"}, "corpus 'tiny': revision 'main' is of a hub data set"),
        ({"name": "tiny", "columns": {"text": "txet"}}, "'tiny' is built in and its columns are ours"),
    ],
)  # fmt: skip
def test_wrong_requests_are_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    """One line that names the value and the nearest valid one; never a traceback of another library."""
    for name in ("file.txt", "broken.json", "broken.csv", "broken.parquet"):
        (tmp_path / name).write_bytes(b"" if name == "broken.csv" else b"{\xff")
    (tmp_path / "folder").mkdir()
    own = {"alternatives": ["d"], "choice": "c", "choices1": "c"}  # somebody's own (the control)
    both = {"alternative": "e", "altenative": "d"}  # where it stands beside what was meant it is somebody's own too
    pairs = [{"prompt": "p", "completion": "c", **own, **both}]
    (tmp_path / "own.json").write_text(json.dumps(pairs))
    load_corpus(path=tmp_path / "own.json")
    (tmp_path / "misspelt.json").write_text(json.dumps([*pairs, {"prompt": "p", "completion": "c", "altenative": "d"}]))
    (tmp_path / "object.json").write_text('{"text": "t"}')
    (tmp_path / "good.json").write_text('[{"text": "t", "text2": "u"}, {"text": "t"}]')
    with pytest.raises(InputError, match=message) as error:
        load_corpus(**given, base=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("completion", ["", "   ", "</s>", "<s> </s>"])
def test_a_row_with_nothing_to_score_is_refused(completion: str) -> None:
    """Empty or only special tokens; the row is named. One real token is enough (positive control)."""
    encode(rows({"prompt": "p", "completion": "red"}), WORDS)
    with pytest.raises(InputError, match="row 0: no token to score"):
        encode(rows({"prompt": "p", "completion": completion}), WORDS)


@pytest.mark.parametrize("features", [(), (3,), (2, 4)])
def test_rows_at_a_mask_of_the_host_are_those_of_indexing_by_it(features: tuple[int, ...]) -> None:
    """Values and gradients to the bit, for any shape after [batch pos] and for values that are not contiguous."""
    generator = torch.Generator().manual_seed(0)
    where = torch.rand(4, 5, generator=generator) < 0.5
    for stored in (torch.rand(4, 5, *features, generator=generator), torch.rand(5, 4, *features).transpose(0, 1)):
        a, b = (stored.clone().requires_grad_() for _ in range(2))
        found, expected = rows_at(a, where), b[where]
        assert torch.equal(found, expected)
        for rows in (found, expected):
            (rows * torch.arange(1, rows.numel() + 1).view_as(rows)).sum().backward()
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [4, 3])
def test_a_text_is_cut_to_what_the_model_reads(limit: int) -> None:
    """With the token that comes before: one more, and learned positions end. A length that was asked for counts what is
    scored (control)."""
    tokenizer = beginning_tokenizer()
    text = rows({"text": "the red dog sleeps"})
    assert len(encode(text, tokenizer, max_length=limit)[0].ids) == limit + 1
    tokenizer.model_max_length = limit
    assert len(encode(text, tokenizer)[0].ids) == limit


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,completion\nWhat to do?,Yes, do it\n", "line 2 has 3 fields, the header 2"),
        ("prompt,completion\nQ1,A1\nQ2\n", "line 3 has 1 fields, the header 2"),
        ("prompt,prompt\na,b\n", "a column is there twice"),
        ('prompt,completion\n"Q" x,A\n', "line 2: "),
    ],
)
def test_a_comma_too_many_in_a_csv_is_told(text: str, words: str, tmp_path: Path) -> None:
    """And no other column's; in quotes it is one of the text, and so is a line's end (control)."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        load_corpus(path="a.csv", base=tmp_path)
    (tmp_path / "b.csv").write_text(
        '\ufeffprompt,completion\r\n"Yes, why?\nTell me","007"\r\n\r\n  \r\n', encoding="utf-8"
    )
    assert load_corpus(path="b.csv", base=tmp_path).rows == ({"prompt": "Yes, why?\nTell me", "completion": "007"},)
