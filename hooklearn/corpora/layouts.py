"""Other people's rows: data sets as they are published, read into the shapes of a corpus.

A layout is one or more shapes, each the columns that it needs and what they become. Nothing is guessed: a layout is
asked for by name (``layout: tofu``), and rows that do not fit say what is missing and which layout would.
"""

from __future__ import annotations

import difflib
import itertools
import os.path
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from hooklearn.corpora.corpus import COLUMNS, Row
from hooklearn.types import InputError

Reader = Callable[[Row], Row]
"""One row in their columns -> in ours; ``bad`` and ``good`` stand for completions of either kind."""
KEPT = ("group", "split")
"""Columns that mean the same in every layout."""


@dataclass(frozen=True)
class Layout:
    summary: str
    source: str
    """Where its columns are published."""
    shapes: Mapping[tuple[str, ...], Reader]
    """The columns a row needs -> its reader; the first shape that fits is taken."""
    continues: tuple[str, ...] = ()
    """Columns of completions that go on from their prompt as they stand; any other is the answer to a question."""


# ----------------------------------------------------------------------------------------- readers


def _with(**ours: str) -> Reader:
    """``prompt="question"``: our prompt is their question. Columns that have a meaning here are kept."""
    return lambda row: {mine: row[theirs] for mine, theirs in ours.items()} | _kept(row)


def _kept(row: Row) -> Row:
    return {key: row[key] for key in KEPT if key in row}


def _turns(row: Row) -> Row:
    """Prompt and completion as lists of messages: one conversation."""
    if isinstance(row["prompt"], list):
        return {"messages": [*row["prompt"], *row["completion"]]} | _kept(row)
    return {"prompt": row["prompt"], "completion": row["completion"]} | _kept(row)


def _pair(row: Row) -> Row:
    """Preference with a prompt of its own, as text or as messages."""
    if not isinstance(row["chosen"], list):
        return {"prompt": row["prompt"], "bad": row["rejected"], "good": row["chosen"]} | _kept(row)
    *before, good = row["chosen"]
    *same, bad = row["rejected"]
    if before != same:
        raise InputError("chosen and rejected differ before their last message")
    if isinstance(row["prompt"], list):
        said = [*row["prompt"], *same]
    elif any(turn["role"] == "user" for turn in same):  # as text beside conversations that begin with it
        said = same
    else:
        head = list(itertools.takewhile(lambda turn: turn["role"] == "system", same))
        said = [*head, {"role": "user", "content": row["prompt"]}, *same[len(head) :]]
    return {"messages": [*said, bad], "bad": bad["content"], "good": good["content"]} | _kept(row)


def _implicit_pair(row: Row) -> Row:
    """Preference whose prompt is what both begin with; of text, up to the last space that they share."""
    if isinstance(row["chosen"], list):
        return _pair({**row, "prompt": []})
    shared = os.path.commonprefix([row["chosen"], row["rejected"]])
    end = max(shared.rfind(" "), shared.rfind("\n"))
    if end < 1:
        raise InputError("chosen and rejected share no beginning that could be their prompt")
    return {"prompt": row["chosen"][:end], "bad": row["rejected"][end:], "good": row["chosen"][end:]} | _kept(row)


def _labelled(row: Row) -> Row:
    """One completion and whether it is the wanted kind."""
    found = _turns(row)
    text = found["messages"][-1]["content"] if "messages" in found else found.pop("completion")
    return found | {"good" if _yes(row["label"]) else "bad": text}


def _yes(value: Any) -> bool:
    """Also of a csv file, in which everything is text."""
    truth = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
    if truth is None:
        raise InputError(f"neither true nor false: {value!r}")
    return truth


def _choices(row: Row) -> Row:
    """Multiple choice by index."""
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or answer not in range(len(choices)):
        raise InputError(f"'choices' must be a list and 'answer' an index into it, got {choices!r:.60}, {answer!r}")
    return {"prompt": row["question"], "completion": choices[answer], "choices": choices, "answer": answer} | _kept(row)


def _perturbed(answer: str, question: str) -> Reader:
    """The right answer beside wrong ones of the same form."""

    def read(row: Row) -> Row:
        wrong = row["perturbed_answer"]
        choices = [row[answer], *([wrong] if isinstance(wrong, str) else wrong)]
        return {"prompt": row[question], "completion": row[answer], "choices": choices, "answer": 0} | _kept(row)

    return read


def _two_responses(row: Row) -> Row:
    pair = (row["response_0"], row["response_1"])
    safer = int(row["safer_response_id"])
    return {"prompt": row["prompt"], "good": pair[safer], "bad": pair[1 - safer], "group": row["prompt"]} | _kept(row)


def _judged(row: Row) -> Row:
    kind = "good" if _yes(row["is_safe"]) else "bad"
    return {"prompt": row["prompt"], kind: row["response"], "group": row["prompt"]} | _kept(row)


def _forged_and_true(row: Row) -> Row:
    """RWKU's pairs: a made-up biography, then what the model knows, which is what must go."""
    good, bad = row["response"]
    return {"prompt": row["prompt"], "bad": bad, "good": good, "group": row["subject"]} | _kept(row)


# ----------------------------------------------------------------------------------------- layouts

_TEXT = {("text",): _with(text="text")}

LAYOUTS: dict[str, Layout] = {
    "trl": Layout(
        "every type of TRL, as text or as messages: language modelling, prompt and completion, preference with and "
        "without a prompt, completions with a label",
        "https://huggingface.co/docs/trl/dataset_formats",
        {
            ("prompt", "chosen", "rejected"): _pair,
            ("chosen", "rejected"): _implicit_pair,
            ("prompt", "completion", "label"): _labelled,
            ("prompt", "completion"): _turns,
            ("messages",): _with(messages="messages"),
            **_TEXT,
        },
        continues=("completion", "chosen"),
    ),
    "tofu": Layout(
        "questions about fictitious authors; perturbed answers become choices",
        "https://huggingface.co/datasets/locuslab/TOFU",
        {
            ("question", "answer", "perturbed_answer"): _perturbed("answer", "question"),
            ("question", "answer"): _with(prompt="question", completion="answer"),
        },
    ),
    "tofu-paraphrased": Layout(
        "the same facts in other words: held-out items",
        "https://huggingface.co/datasets/locuslab/TOFU",
        {
            ("paraphrased_question", "paraphrased_answer", "perturbed_answer"): _perturbed(
                "paraphrased_answer", "paraphrased_question"
            ),
            ("question", "paraphrased_answer", "perturbed_answer"): _perturbed("paraphrased_answer", "question"),
        },
    ),
    "muse": Layout(
        "MUSE-News and -Books: knowmem (questions), verbmem (a passage and how it goes on), raw, privleak (text)",
        "https://huggingface.co/datasets/muse-bench/MUSE-News",
        {
            ("question", "answer"): _with(prompt="question", completion="answer"),
            ("prompt", "gt"): _with(prompt="prompt", completion="gt"),
            **_TEXT,
        },
        continues=("gt",),
    ),
    "wmdp": Layout(
        "WMDP: multiple choice, each choice scored as a completion; or its corpora (text)",
        "https://huggingface.co/datasets/cais/wmdp",
        {("question", "choices", "answer"): _choices, **_TEXT},
    ),
    "rwku": Layout(
        "RWKU: probes of every level, pairs (made up and true) and passages, grouped by person",
        "https://huggingface.co/datasets/jinzhuoran/RWKU",
        {
            ("query", "answer", "subject"): _with(prompt="query", completion="answer", group="subject"),
            ("prompt", "response", "subject"): _forged_and_true,
            ("text", "subject"): _with(text="text", group="subject"),
        },
    ),
    "beavertails": Layout(
        "BeaverTails: a response and whether it is safe; the unsafe are the bad ones, grouped by prompt",
        "https://huggingface.co/datasets/PKU-Alignment/BeaverTails",
        {("prompt", "response", "is_safe"): _judged},
    ),
    "saferlhf": Layout(
        "PKU-SafeRLHF: two responses, the safer one good, grouped by prompt",
        "https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
        {("prompt", "response_0", "response_1", "safer_response_id"): _two_responses},
    ),
    "persona-vectors": Layout(
        "persona vectors: training sets (messages), or what its evaluation wrote, grouped by question",
        "https://github.com/safety-research/persona_vectors",
        {
            ("messages",): _with(messages="messages"),
            ("question", "answer", "question_id"): _with(prompt="question", completion="answer", group="question_id"),
        },
    ),
}


@dataclass(frozen=True)
class Options:
    """What any layout can be asked for."""

    completion: Literal["bad", "good"] = "bad"
    """Of rows with both kinds: bad (what must go, with the good one as its alternative) or good."""
    plain: bool = False
    """Questions as ``Question: ... Answer:``, without a chat template, as harnesses do for base models."""


OPTIONS = tuple(field.name for field in fields(Options))

# ------------------------------------------------------------------------------------------- door


def laid_out(
    rows: Sequence[Row],
    layout: str,
    source: str,
    options: Mapping[str, Any] | None = None,
    *,
    template: bool = True,
) -> list[Row]:
    """Rows in the columns of ``layout`` -> rows of a corpus.

    Args:
        options: as in :class:`Options`.
        template: whether the model has a chat template. Without one nothing stands between a question and its answer,
            so answers begin with a space.
    Raises:
        InputError: unknown layout or option, a missing column (and which layout has these), or no row left.

    Examples:
        >>> laid_out([{"question": "Who wrote it?", "answer": "Nobody."}], "tofu", "mine")
        [{'prompt': 'Who wrote it?', 'completion': 'Nobody.'}]
    """
    asked = _options(options or {}, source)
    if not rows:
        return []
    read = _reader(rows[0], layout, source)
    found = [_read(read, row, i, source) for i, row in enumerate(rows)]
    kept = [r for r in (_of_kind(row, asked["completion"]) for row in found) if r is not None]
    if not kept:
        raise InputError(
            f"corpus {source}: none of its {len(rows)} rows has a completion that is {asked['completion']}"
        )
    goes_on = bool(rows[0].keys() & set(LAYOUTS[layout].continues))
    if asked["plain"]:
        return [row | {"template": "none"} if goes_on and "prompt" in row else _plain(row) for row in kept]
    if template or goes_on:
        return kept
    return [_spaced(row) for row in kept]


def columns(layout: str) -> str:
    """The columns that rows need, in words, shape by shape."""
    return "; or ".join(", ".join(needed) for needed in LAYOUTS[layout].shapes)


def known_columns(layout: str | None) -> tuple[str, ...]:
    """The columns that are read of a row in this layout, or in none."""
    if layout not in LAYOUTS:
        return COLUMNS
    return tuple(dict.fromkeys([*itertools.chain(*LAYOUTS[layout].shapes), *KEPT]))


def _options(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    for key in options:
        if key not in OPTIONS:
            raise InputError(f"corpus {source}: a layout has no option {key!r}; valid: {', '.join(OPTIONS)}")
    asked = asdict(Options()) | dict(options)
    if asked["completion"] not in ("bad", "good") or not isinstance(asked["plain"], bool):
        raise InputError(f"corpus {source}: completion is bad or good, plain true or false; got {asked}")
    return asked


def _reader(row: Row, layout: str, source: str) -> Reader:
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"corpus {source}: unknown layout {layout!r}; known: {', '.join(LAYOUTS)}{hint}")
    shapes = LAYOUTS[layout].shapes
    for needed, read in shapes.items():
        if row.keys() >= set(needed):
            return read
    nearest = min(shapes, key=lambda needed: _lacking(needed, row))
    raise InputError(
        f"corpus {source}: layout {layout!r} needs {', '.join(nearest)}; missing: {_missing(nearest, row)} among "
        f"{sorted(map(str, row))}{nearest_layout(row)}"
    )


def nearest_layout(row: Row) -> str:
    """The layout that these columns are nearest to, as the end of an error; empty where none shares half of them."""
    every = [(name, needed) for name, layout in LAYOUTS.items() for needed in layout.shapes]
    name, needed = min(every, key=lambda of: (_lacking(of[1], row), -len(of[1])))
    if (lacking := _lacking(needed, row)) > 1 / 2:
        return ""
    return f"; nearest layout: {name!r}" + (f" (lacks {_missing(needed, row)})" if lacking else "")


def _lacking(needed: Sequence[str], row: Row) -> float:
    return sum(name not in row for name in needed) / len(needed)


def _missing(needed: Sequence[str], row: Row) -> str:
    return ", ".join(name for name in needed if name not in row)


def _read(read: Reader, row: Row, i: int, source: str) -> Row:
    try:
        return read(row)
    except KeyError as error:
        raise InputError(f"corpus {source}, row {i}: no column {error} as in the first row") from error
    except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:  # InputError is a ValueError
        raise InputError(f"corpus {source}, row {i}: {error}") from error


def _of_kind(row: Row, kind: str) -> Row | None:
    """The row with its completion of this kind; None where it has only the other."""
    both = {key: row.pop(key) for key in ("bad", "good") if key in row}
    if not both:
        return row
    if kind not in both:
        return None
    more = {"alternative": both["good"]} if kind == "bad" and "good" in both else {}
    return row | {"completion": both[kind]} | more


def _plain(row: Row) -> Row:
    """A question as running text, for models without a chat template."""
    if "messages" in row:  # turns are written one after the other
        return row | {"template": "none"}
    if "prompt" not in row:
        return row
    return _answered(row, _after_a_space) | {
        "prompt": f"Question: {row['prompt']}\nAnswer:",
        "template": "none",
    }


def _spaced(row: Row) -> Row:
    """A space between question and answer, where there is none."""
    if "prompt" not in row or str(row["prompt"])[-1:].isspace():
        return row
    return _answered(row, _after_a_space)


def _after_a_space(text: Any) -> str:
    return text if str(text)[:1].isspace() else f" {text}"


def _answered(row: Row, change: Callable[[Any], str]) -> Row:
    """The row with its answer, and whatever stands beside it, changed."""
    texts: dict[str, Any] = {key: change(row[key]) for key in ("completion", "alternative") if key in row}
    if "choices" in row:
        texts["choices"] = [change(choice) for choice in row["choices"]]
    return row | texts
