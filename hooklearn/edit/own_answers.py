"""On policy: what goes down is what the model itself says now, as far as a referee calls it the behaviour.

The gradient of the summed log-probability of such answers is the score-function estimate (REINFORCE, Williams 1992) of
that of the share of bad answers, ``grad P(bad) = E_y[bad(y) grad log p(y)]``, y drawn from the model (at temperature 1;
at a lower one, of what it says most): going against it is selective negative reinforcement learning. Listed completions
stop mattering once the model has ceased to say them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hooklearn import editing, models
from hooklearn.data import Corpus, Row, cycle, encode, worded
from hooklearn.deltas import Delta
from hooklearn.edit.method import Problem, Updates, delta_of
from hooklearn.lora import Lora
from hooklearn.measure import sample
from hooklearn.referees import RatioReferee, Referee, Scorer, rulings
from hooklearn.train import fit
from hooklearn.types import InputError

FEWEST = 4
"""Bad answers that a round needs. Of fewer the gradient is that of a few accidental words, and it is made as long as
any other; so few are also what the edit was for."""
RANK, LEARNING_RATE, EPOCHS = 4, 1e-3, 6
"""Of the two adapters of a referee apart."""


@dataclass(frozen=True)
class OwnAnswers:
    """Draws them, and keeps the bad ones."""

    problem: Problem
    referee: Referee
    draws: int
    """To every forget prompt."""
    new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        if not self.problem.forget.has_prompts:
            raise InputError(
                f"on_policy: forget corpus {self.problem.forget.name!r} is running text, without a prompt to answer; "
                "give rows with prompt and completion, or on_policy 0"
            )

    def bad(self, there: Updates, number: int) -> Corpus | None:
        """The bad answers of the model edited by ``there``, in round ``number`` (from 1 on), each as the completion of
        its row; None where they are fewer than :data:`FEWEST`.

        Judged at the unedited model, of which a referee may be made.

        Raises:
            InputError: so few in the first round: the model does not do it.
        """
        problem = self.problem
        asked = Corpus(f"{problem.forget.name}, own answers", problem.forget.rows * self.draws)
        with editing.edited(problem.model, delta_of(there)):
            said = sample(
                problem.model, asked, n=len(asked), new_tokens=self.new_tokens, temperature=self.temperature,
                seed=random.Random(f"{problem.seed}:{number}").getrandbits(32), precision=problem.precision,
            )  # fmt: skip
        filled = worded([s.completion for s in said], models.tokenizer_of(problem.model))
        judged = zip(asked.rows, said, rulings(self.referee, said, asked.rows), filled, strict=True)
        answers = [
            ({**row, "completion": s.completion}, r.is_behaviour) for row, s, r, has_words in judged if has_words
        ]
        problem.tokens += self._tokens([row for row, _ in answers])
        bad = tuple(row for row, is_behaviour in answers if is_behaviour)
        problem.found |= {"answers_a_round": len(said), "bad_last": len(bad)}
        problem.found.setdefault("bad_first", len(bad))
        if len(bad) >= FEWEST:
            return Corpus(asked.name, bad)
        if number == 1:
            raise InputError(
                f"on_policy: the referee calls {len(bad)} of {len(said)} answers of the unedited model the behaviour, "
                f"and {FEWEST} at least are needed; draw more (on_policy {self.draws}), or take on_policy 0"
            )
        return None

    def _tokens(self, answered: Sequence[Row]) -> int:
        """That were read and written; what the referee reads is not known here."""
        return sum(map(len, self.problem.encoded(Corpus("answers", tuple(answered))))) if answered else 0


def judge(problem: Problem) -> Referee:
    """The referee that was given.

    Raises:
        InputError: none was given.
    """
    if problem.referee is None:
        raise InputError(
            "on_policy: who says which of the model's answers are bad? Give a referee (hl.edit(..., referee=...); in a "
            "run behaviour.samples above 0, with a never-learned model, corpora.retain or a behaviour.referee), or "
            "reward 'apart', which is made of forget and retain"
        )
    return problem.referee


def apart(problem: Problem) -> RatioReferee:
    """A referee that is made of the edit's own texts and judges nothing else: two small LoRAs on the unedited model,
    taught one half of forget and of retain (whole groups); the other halves set its line.

    Raises:
        InputError: a corpus has a single group.
    """
    texts = {}
    for role in ("forget", "retain"):
        corpus = problem.corpus(role)
        if len(set(corpus.groups)) < 2:
            raise InputError(f"reward 'apart': {role} corpus {corpus.name!r} has a single group: it cannot be halved")
        texts[role] = corpus.split(taught=1.0, line=1.0)
    bad, good = (
        Scorer(problem.model, _habit(problem, texts[role]["taught"]), problem.precision)
        for role in ("forget", "retain")
    )
    referee = RatioReferee(bad, (good,), "two small LoRAs, on half of forget and of retain").calibrated(
        texts["forget"]["line"], texts["retain"]["line"]
    )
    problem.found["reward_auc"] = referee.auc
    return referee


def _habit(problem: Problem, corpus: Corpus) -> Delta:
    """What a small LoRA makes of the corpus (Adam); the model's own weights stay as they are."""
    lora = Lora(problem.sites, rank=RANK, seed=problem.seed)
    sequences = encode(corpus, models.tokenizer_of(problem.model), end="turn")
    stream = cycle(sequences, max_tokens=problem.max_tokens, seed=problem.seed, epochs=EPOCHS)
    with lora.active(problem.model), models.trainable(problem.model, []):
        done = fit(
            problem.model, stream, rule=torch.optim.Adam(lora.parameters(), lr=LEARNING_RATE),
            precision=problem.precision, max_norm=1.0, params=lora.parameters(),
        )  # fmt: skip
    problem.tokens += done.tokens
    return lora.delta()
