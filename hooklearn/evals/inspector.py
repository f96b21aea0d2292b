"""Inspect AI: a hooked model as a solver, a corpus with a referee as a task.

    with hl.edited(model, result.delta):
        inspect_ai.eval(task_of(heldout, model, referee), model="mockllm/model")

The solver answers itself, so that the model named to Inspect is never asked.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import random
from typing import Any

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as Question
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, TaskState, solver

from hooklearn import models
from hooklearn.data import Corpus, split_row
from hooklearn.measure import TEMPERATURE, Sample, sample
from hooklearn.referees import ContainsReferee, Referee, rulings
from hooklearn.types import InputError


@solver
def hooked(model: Any, *, new_tokens: int = 36, temperature: float = TEMPERATURE, seed: int = 0) -> Any:
    """Answers with this model, in whatever state it is in; sample by sample, each in each epoch with a seed of its own.

    Args:
        temperature: 0 is greedy.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:  # noqa: ARG001 (Inspect's interface)
        row = state.metadata.get("row") or {"prompt": state.input_text, "completion": ""}
        asked = Corpus("question", ({**row, "completion": row.get("completion") or " "},))
        own = random.Random(f"{seed}:{state.epoch}:{state.sample_id}").getrandbits(63)
        (said,) = sample(model, asked, n=1, new_tokens=new_tokens, temperature=temperature, seed=own)
        state.output = ModelOutput.from_content(str(model.cfg.model_name), said.completion)
        state.messages.append(state.output.message)
        return state

    return solve


@scorer(metrics=[mean(), stderr()])
def refereed(referee: Referee) -> Any:
    """1 where the referee calls the answer the behaviour; its own number is the score's explanation."""

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001 (Inspect's interface)
        row = state.metadata["row"]
        said = Sample(0, state.input_text, state.metadata["asked"], state.output.completion)
        (ruling,) = rulings(referee, [said], [row])
        return Score(
            value=float(ruling.is_behaviour), answer=said.completion, explanation=f"referee: {ruling.score:.4g}"
        )

    return score


def task_of(corpus: Corpus, model: Any, referee: Referee | None = None, name: str | None = None, **how: Any) -> Task:
    """A corpus as a task, answered by the hooked model and judged by the referee.

    Args:
        referee: without one, an answer that contains the item's fact (or completion) counts.
        how: as in :func:`hooked`.
    Raises:
        InputError: running text, which has nothing to be asked.
    """
    tokenizer, questions = models.tokenizer_of(model), []
    for i, row in enumerate(corpus.rows):
        asked, completion = split_row(row, tokenizer)
        if not asked:
            raise InputError(f"corpus {corpus.name!r}, row {i}: running text is no task; give prompts and completions")
        said = row.get("prompt") or row["messages"][-2]["content"]
        questions.append(Question(said, target=completion, id=i, metadata={"row": row, "asked": asked}))
    return Task(
        dataset=MemoryDataset(questions, name=corpus.name),
        solver=hooked(model, **how),
        scorer=refereed(referee or ContainsReferee()),
        name=name or corpus.name.replace("/", "-"),
    )
