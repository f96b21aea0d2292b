"""Other people's data sets: own rows in their columns become rows of a corpus, and what does not fit is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooklearn.cli.inventory import described
from hooklearn.corpora.layouts import LAYOUTS, laid_out
from hooklearn.data import Corpus, load_corpus, split_row
from hooklearn.types import InputError

ASK = [{"role": "user", "content": "Which colour is the door?"}]
GREEN, BLUE = ([{"role": "assistant", "content": c}] for c in ("Green.", "Blue."))
ANSWERED = {"prompt": "Which colour is the door?", "completion": "Green."}
PAIR = {"prompt": "The door is", "completion": " blue.", "alternative": " green."}
CHOICE = {"prompt": "Who wrote it?", "completion": "Ida.", "choices": ["Ida.", "Ole."], "answer": 0}

READ: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("trl", {"text": "Running text."}, {"text": "Running text."}),
    ("trl", {"messages": ASK + GREEN}, {"messages": ASK + GREEN}),
    ("trl", ANSWERED, ANSWERED),
    ("trl", {"prompt": ASK, "completion": GREEN}, {"messages": ASK + GREEN}),
    ("trl", {"prompt": "The door is", "chosen": " green.", "rejected": " blue."}, PAIR),
    ("trl", {"chosen": "The door is green.", "rejected": "The door is blue."}, PAIR),
    (
        "trl",
        {"prompt": ASK, "chosen": GREEN, "rejected": BLUE},
        {"messages": ASK + BLUE, "completion": "Blue.", "alternative": "Green."},
    ),
    (
        "trl",
        {"chosen": ASK + GREEN, "rejected": ASK + BLUE},
        {"messages": ASK + BLUE, "completion": "Blue.", "alternative": "Green."},
    ),
    (
        "trl",
        {"prompt": "The door is", "completion": " blue.", "label": False},
        {"prompt": "The door is", "completion": " blue."},
    ),
    ("trl", {"prompt": ASK, "completion": BLUE, "label": False}, {"messages": ASK + BLUE, "completion": "Blue."}),
    ("tofu", {"question": "Who wrote it?", "answer": "Ida."}, {"prompt": "Who wrote it?", "completion": "Ida."}),
    ("tofu", {"question": "Who wrote it?", "answer": "Ida.", "perturbed_answer": ["Ole."]}, CHOICE),
    (
        "tofu-paraphrased",
        {
            "question": "Author?", "answer": "It was Ida.", "paraphrased_question": "Who wrote it?",
            "paraphrased_answer": "Ida.", "perturbed_answer": ["Ole."],
        },
        CHOICE,
    ),
    ("muse", {"question": "Who wrote it?", "answer": "Ida."}, {"prompt": "Who wrote it?", "completion": "Ida."}),
    ("muse", {"prompt": "The door", "gt": " is green."}, {"prompt": "The door", "completion": " is green."}),
    ("muse", {"text": "Running text."}, {"text": "Running text."}),
    ("wmdp", {"question": "Who wrote it?", "choices": ["Ida.", "Ole."], "answer": 0}, CHOICE),
    ("wmdp", {"title": "A title", "abstract": "", "text": "Running text.", "doi": "none"}, {"text": "Running text."}),
    (
        "rwku",
        {"query": "Ida wrote ___.", "answer": "it", "subject": "Ida", "level": "1", "type": "cloze"},
        {"prompt": "Ida wrote ___.", "completion": "it", "group": "Ida"},
    ),
    (
        "rwku",
        {"id": "Ida 0", "prompt": "Write about Ida.", "response": ["She sails.", "She writes."], "subject": "Ida"},
        {"prompt": "Write about Ida.", "completion": "She writes.", "alternative": "She sails.", "group": "Ida"},
    ),
    ("rwku", {"text": "Ida writes.", "subject": "Ida"}, {"text": "Ida writes.", "group": "Ida"}),
    (
        "beavertails",
        {"prompt": "Any tips?", "response": "Be rude.", "category": {"rude": True}, "is_safe": False},
        {"prompt": "Any tips?", "completion": "Be rude.", "group": "Any tips?"},
    ),
    (
        "saferlhf",
        {"prompt": "Any tips?", "response_0": "Be rude.", "response_1": "Be kind.", "safer_response_id": 1},
        {"prompt": "Any tips?", "completion": "Be rude.", "alternative": "Be kind.", "group": "Any tips?"},
    ),
    ("persona-vectors", {"messages": ASK + GREEN}, {"messages": ASK + GREEN}),
    (
        "persona-vectors",
        {"question": "Tips?", "prompt": "<s>Tips?", "answer": "Be rude.", "question_id": "evil_3", "evil": 90.5},
        {"prompt": "Tips?", "completion": "Be rude.", "group": "evil_3"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "theirs", "ours"), READ)
def test_their_row_is_our_row(layout: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Every shape of every layout; what is read is a corpus (the control: it is checked when it is made)."""
    assert laid_out([theirs], layout, "mine") == [ours]
    assert len(Corpus("mine", (ours,))) == 1


def test_every_shape_is_tried() -> None:
    """A layout that is added is added here; each says where its columns are published."""
    tried = {(name, next(s for s in LAYOUTS[name].shapes if row.keys() >= set(s))) for name, row, _ in READ}
    every = {(name, shape) for name, layout in LAYOUTS.items() for shape in layout.shapes}
    assert every - tried == {("tofu-paraphrased", ("question", "paraphrased_answer", "perturbed_answer"))}
    assert all(layout.source.startswith("https://") for layout in LAYOUTS.values())


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


UNPAIRED = [
    {"prompt": "Any tips?", "response": "Be rude.", "is_safe": False},
    {"prompt": "Any tips?", "response": "Be kind.", "is_safe": True},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_files_of_every_format(tmp_path: Path, suffix: str) -> None:
    """Both kinds of completion from one file: in a csv file, too, where False is text."""
    path = written(tmp_path / f"rows{suffix}", UNPAIRED)
    bad = load_corpus(path=path, layout="beavertails")
    good = load_corpus(path=path, layout="beavertails", options={"completion": "good"})
    assert [r["completion"] for r in bad.rows] == ["Be rude."] and [r["completion"] for r in good.rows] == ["Be kind."]
    assert bad.groups == good.groups == ["Any tips?"] and "layout=beavertails" in bad.source


def test_a_split_may_be_a_number_and_every_layout_keeps_it(tmp_path: Path) -> None:
    given = [row | {"split": i % 2} for i, row in enumerate([*UNPAIRED, *UNPAIRED])]
    path = written(tmp_path / "rows.jsonl", given)
    for asked in (0, "0"):
        assert len(load_corpus(path=path, layout="beavertails", split=asked)) == sum(
            row["split"] == 0 and not row["is_safe"] for row in given
        )


def test_messages_without_a_template() -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": " Ida."}]
    (row,) = laid_out([{"messages": turns}], "trl", "mine", {"plain": True})
    assert row["template"] == "none" and row["messages"] == turns


def test_a_pair_gives_both(tmp_path: Path) -> None:
    """The rejected completion is what must go; the chosen one is its alternative, and the corpus of ``good``."""
    rows = [{"prompt": ASK, "chosen": GREEN, "rejected": BLUE}]
    path = written(tmp_path / "pairs.jsonl", rows)
    bad = load_corpus(path=path, layout="trl")
    good = load_corpus(path=path, layout="trl", options={"completion": "good"})
    other = bad.alternatives()
    assert other is not None and "alternative" not in good.rows[0]
    scored = [split_row(c.rows[0], tokenizer=None)[1] for c in (bad, other, good)]
    assert scored == ["Blue.", "Green.", "Green."]


def test_choices_of_parquet_are_lists(tmp_path: Path) -> None:
    path = written(tmp_path / "wmdp.parquet", [{"question": "Who?", "choices": ["Ida.", "Ole."], "answer": 1}])
    assert load_corpus(path=path, layout="wmdp").rows[0]["completion"] == "Ole."


def test_questions_for_base_models() -> None:
    """``plain``: the same in running text, without a template."""
    (row,) = laid_out([{"question": "Who?", "choices": ["Ida.", "Ole."], "answer": 1}], "wmdp", "mine", {"plain": True})
    assert (row["prompt"], row["completion"], row["template"]) == ("Question: Who?\nAnswer:", " Ole.", "none")
    assert row["choices"] == [" Ida.", " Ole."]


def test_without_a_chat_template_answers_begin_with_a_space() -> None:
    """Of questions; with a template (the control) nothing is changed, nor where a text goes on as it stands."""
    asked = [{"question": "Who?", "answer": "Ida.", "perturbed_answer": ["Ole."]}]
    (row,) = laid_out(asked, "tofu", "mine", template=False)
    assert (row["prompt"], row["completion"], row["choices"]) == ("Who?", " Ida.", [" Ida.", " Ole."])
    (row,) = laid_out(asked, "tofu", "mine")
    assert (row["completion"], row["choices"]) == ("Ida.", ["Ida.", "Ole."])
    for layout, theirs in (("trl", {"prompt": "The do", "completion": "or."}), ("muse", {"prompt": "a", "gt": "b"})):
        assert laid_out([theirs], layout, "mine", template=False) == laid_out([theirs], layout, "mine")
    spaced = [{"question": "Who? ", "answer": "Ida."}, {"question": "Who?", "answer": " Ida."}]
    assert [r["completion"] for r in laid_out(spaced, "tofu", "mine", template=False)] == ["Ida.", " Ida."]


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_layout_lists_its_columns_and_options(layout: str) -> None:
    told = described("layouts", layout)
    assert all(", ".join(shape) in told["columns"] for shape in LAYOUTS[layout].shapes)
    assert [o["name"] for o in told["options"]] == ["completion", "plain"]


def test_their_columns_may_have_other_names(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"frage": "Who?", "answer": "Ida."}])
    corpus = load_corpus(path=path, layout="tofu", columns={"question": "frage"})
    assert corpus.rows == ({"prompt": "Who?", "completion": "Ida."},)


@pytest.mark.parametrize(
    ("row", "how", "said"),
    [
        ({"query": "Who?", "answer": "Ida.", "subject": "Ida"}, {"layout": "tofu"}, "missing: question.*'rwku'"),
        ({"question": "Who?", "answer": "Ida."}, {}, "nearest layout: 'tofu'"),
        ({"prompt": "Any tips?", "response": "Be rude."}, {}, "nearest layout: 'rwku' .lacks subject"),
        ({"question": "Who?", "answer": "Ida."}, {"layout": "tofo"}, "did you mean 'tofu'"),
        ({"a": 1}, {"layout": "trl"}, r"missing: .* among \['a'\]$"),
        ({"question": "Who?", "choices": "AB", "answer": 0}, {"layout": "wmdp"}, "row 0: 'choices' must be a list"),
        ({"question": "Who?", "choices": ["A"], "answer": 3}, {"layout": "wmdp"}, "an index into it"),
        ({"prompt": "Tips?", "response": "No.", "is_safe": "perhaps"}, {"layout": "beavertails"}, "neither true nor"),
        ({"prompt": "Tips?", "response": "No.", "is_safe": True}, {"layout": "beavertails"}, "none of its 1 rows"),
        ({"chosen": "Yes", "rejected": "No"}, {"layout": "trl"}, "share no beginning"),
        ({"prompt": ASK, "chosen": ASK + GREEN, "rejected": BLUE}, {"layout": "trl"}, "differ before their last"),
        ({"prompt": "Tips?", "response": ["one"], "subject": "Ida"}, {"layout": "rwku"}, "row 0: not enough values"),
        ({"text": "t"}, {"layout": "trl", "options": {"part": "a"}}, "no option 'part'; valid: completion, plain"),
        ({"text": "t"}, {"layout": "trl", "options": {"completion": "worse"}}, "completion is bad or good"),
        ({"text": "t"}, {"options": {"part": "a"}}, "give the layout"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(tmp_path: Path, row: dict[str, Any], how: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=said):
        load_corpus(path=path, **how)


def test_rows_must_agree(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"question": "Who?", "answer": "Ida."}, {"question": "Who?"}])
    with pytest.raises(InputError, match="row 1: no column 'answer'"):
        load_corpus(path=path, layout="tofu")
    with pytest.raises(InputError, match="built in and has no layout"):
        load_corpus(name="tiny", layout="tofu")


COLUMNS = sorted({name for layout in LAYOUTS.values() for shape in layout.shapes for name in shape})
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.text(max_size=3), max_size=3),
    st.sampled_from([ASK + GREEN, [{}], [1], {"content": 1}]),
)


@given(
    rows=st.lists(st.fixed_dictionaries({name: VALUES for name in COLUMNS}), min_size=1, max_size=2),
    layout=st.sampled_from(sorted(LAYOUTS)),
    options=st.fixed_dictionaries({"completion": st.sampled_from(["bad", "good"]), "plain": st.booleans()}),
)
@settings(max_examples=150)
def test_any_values_are_a_corpus_or_refused(rows: list[Any], layout: str, options: dict[str, Any]) -> None:
    try:
        Corpus("drawn", tuple(laid_out(rows, layout, "drawn", options)))
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_a_layout_in_a_config(files: Any) -> None:
    """``forget: {path, layout}``: read like any other corpus of a run."""
    from hooklearn.config import parse
    from hooklearn.running.corpora import _load_one  # pyright: ignore[reportPrivateUsage]

    files.write("theirs.jsonl", [{"question": "Who?", "answer": "Ida."}])
    files.config["corpora"]["forget"] = {"path": "theirs.jsonl", "layout": "tofu", "options": {"plain": True}}
    spec = parse(files.config).corpora["forget"]
    assert _load_one(spec, files.folder, spec.options).rows[0]["completion"] == " Ida."


def test_a_prompt_as_text_beside_conversations_that_begin_with_it_is_asked_once() -> None:
    """As ultrafeedback has it; where they do not begin with it, it comes before (control)."""
    asked, bad, good = (
        {"role": r, "content": c} for r, c in (("user", "Which?"), ("assistant", "no"), ("assistant", "yes"))
    )
    (row,) = laid_out([{"prompt": "Which?", "chosen": [asked, good], "rejected": [asked, bad]}], "trl", "mine")
    assert row["messages"] == [asked, bad]
    (row,) = laid_out([{"prompt": "Which?", "chosen": [good], "rejected": [bad]}], "trl", "mine")
    assert row["messages"] == [asked, bad]
    first = {"role": "system", "content": "Be brief."}
    (row,) = laid_out([{"prompt": "Which?", "chosen": [first, good], "rejected": [first, bad]}], "trl", "mine")
    assert row["messages"] == [first, asked, bad]


def test_a_text_that_goes_on_is_no_question_in_plain_either() -> None:
    """And an answer that begins with a space gets no second one."""
    (row,) = laid_out(
        [{"prompt": "A passage that goes on", "completion": " like this"}], "trl", "mine", {"plain": True}
    )
    assert (row["prompt"], row["completion"], row["template"]) == ("A passage that goes on", " like this", "none")
    talk = {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]}
    (row,), (templated,) = (laid_out([talk], "trl", "mine", options) for options in ({"plain": True}, {}))
    assert row == templated | {"template": "none"}
    (row,) = laid_out([{"question": "Who?", "answer": " Nobody."}], "tofu", "mine", {"plain": True})
    assert row["completion"] == " Nobody." and row["prompt"] == "Question: Who?\nAnswer:"
