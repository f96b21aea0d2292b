"""Unlearning by likelihood and preference: NPO, SimNPO, UNDIAL, DPO, and training on a refusal.

All walk ``gamma * (loss on forget) + alpha * (loss on retain)`` with Adam to the budget; they differ in the first
term. NLLs are per *sequence*, summed over its completion tokens: never over a batch, whose tokens are no unit of these
losses, and never over padding. Only labelled tokens count in a sequence's length.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hooklearn import forward, losses, models
from hooklearn.corpora.corpus import Corpus, Row
from hooklearn.data import Encoded, TokenBatch, batches, encode, split_row
from hooklearn.edit.descent import BatchLoss, BesideRetain
from hooklearn.edit.method import Problem
from hooklearn.edit.unedited import Teacher, reference_nlls, training_sequences
from hooklearn.losses import LossSum
from hooklearn.train import nll
from hooklearn.traits import row_of
from hooklearn.types import InputError

# ------------------------------------------------------------------------------- the losses themselves


def npo_loss(nlls: Float[Tensor, " sequence"], reference: Float[Tensor, " sequence"], beta: float) -> Float[Tensor, ""]:
    """``-2/beta E log sigmoid(beta (NLL - NLL_ref))``; its gradient is that of ``-E NLL`` as beta -> 0."""
    return -2 / beta * F.logsigmoid(beta * (nlls - reference)).mean()


def simnpo_loss(
    nlls: Float[Tensor, " sequence"], lengths: Int[Tensor, " sequence"], beta: float, delta: float
) -> Float[Tensor, ""]:
    """``-2/beta E log sigmoid(beta (NLL / |y| - delta))``."""
    return -2 / beta * F.logsigmoid(beta * (nlls / lengths - delta)).mean()


def undial_loss(
    logits: Float[Tensor, "kept vocab"],
    teacher: Float[Tensor, "kept vocab"],
    targets: Int[Tensor, " kept"],
    beta: float,
) -> LossSum:
    """Cross-entropy to ``softmax(teacher - beta * onehot(target))``, summed over tokens."""
    by = torch.full_like(targets, -beta, dtype=torch.float32)
    lowered = teacher.float().scatter_add(1, targets[:, None], by[:, None])
    return LossSum(F.cross_entropy(logits.float(), lowered.softmax(-1), reduction="sum"), targets.numel())


def dpo_loss(
    good: Float[Tensor, " pair"], bad: Float[Tensor, " pair"], reference: Float[Tensor, "2 pair"], beta: float
) -> Float[Tensor, ""]:
    """``-E log sigmoid(beta ((NLL_bad - ref_bad) - (NLL_good - ref_good)))``.

    Args:
        reference: NLLs of the unedited model, of the good (0) and the bad (1) completions.
    """
    return -F.logsigmoid(beta * ((bad - reference[1]) - (good - reference[0]))).mean()


def sequence_nlls(model: Any, batch: TokenBatch) -> tuple[Float[Tensor, " sequence"], Int[Tensor, " sequence"]]:
    """(NLL summed over each sequence's labelled tokens, their number), in the order of ``batch.sequences``."""
    scores = forward.logits(model, batch)
    owner, n = batch.owner.to(scores.device), len(batch.sequences)
    per_token = -losses.token_logprobs(scores, batch.targets.to(scores.device))
    return losses.sequence_sums(per_token, owner, n), torch.bincount(owner, minlength=n)


def _rows_of(batch: TokenBatch) -> list[int]:
    return [s.item for s in batch.sequences]


def _together(model: Any, sequences: Sequence[Encoded]) -> TokenBatch:
    """One batch of all of them; completions of the same prompt share its tokens, where the model's rows can."""
    (batch,) = batches(sequences, max_tokens=sys.maxsize, share=row_of(model))
    return batch


# -------------------------------------------------------------------------------------- likelihood


@dataclass(frozen=True, kw_only=True)
class NPO(BesideRetain):
    """Negative preference optimisation: forget answers less likely than before, with a force that fades as they go."""

    name: ClassVar[str] = "npo"
    source: ClassVar[str] = "Zhang, Lin, Bai & Mei 2024, arXiv 2404.05868 (NPO-RT; alpha 0 is plain NPO)"
    positive: ClassVar[tuple[str, ...]] = ("gamma", "beta")
    beta: float = 0.1
    """Inverse temperature, per nat of a whole sequence; towards 0 it becomes gradient ascent."""

    def forget_loss(self, problem: Problem) -> BatchLoss:
        reference = reference_nlls(problem, training_sequences(problem, "forget"))

        def loss(model: Any, batch: TokenBatch) -> Tensor:
            nlls, _ = sequence_nlls(model, batch)
            return npo_loss(nlls, reference[_rows_of(batch)].to(nlls), self.beta)

        return loss


@dataclass(frozen=True, kw_only=True)
class SimNPO(BesideRetain):
    """NPO without a reference model: the length-normalised NLL itself is pushed above a margin."""

    name: ClassVar[str] = "simnpo"
    source: ClassVar[str] = "Fan et al. 2024, arXiv 2410.07163"
    positive: ClassVar[tuple[str, ...]] = ("gamma", "beta")
    gamma: float = 0.125
    beta: float = 4.5
    """Inverse temperature, per nat per token."""
    delta: float = 0.0
    """Margin in nats per token, inside beta: the paper's gamma is ``beta * delta``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.delta):
            raise InputError(f"method {self.name!r}: delta must be a finite number, got {self.delta}")

    def forget_loss(self, problem: Problem) -> BatchLoss:
        del problem
        return lambda model, batch: simnpo_loss(*sequence_nlls(model, batch), self.beta, self.delta)


@dataclass(frozen=True, kw_only=True)
class Undial(BesideRetain):
    """UNDIAL: self-distillation from the unedited model with the true token's logit lowered."""

    name: ClassVar[str] = "undial"
    source: ClassVar[str] = "Dong et al. 2024, arXiv 2402.10052"
    positive: ClassVar[tuple[str, ...]] = ("gamma", "beta")
    learning_rate: float = 1e-4
    """Adam's."""
    alpha: float = 0.0
    beta: float = 10.0
    """By how much the true token's logit is lowered."""

    def forget_loss(self, problem: Problem) -> BatchLoss:
        teacher = Teacher.of(problem, "forget")

        def loss(model: Any, batch: TokenBatch) -> Tensor:
            logits = forward.logits(model, batch)
            targets = batch.targets.to(logits.device)
            return undial_loss(logits, teacher.logits(model, batch), targets, self.beta).mean

        return loss


# -------------------------------------------------------------------------------------- preference


SORRY = "I'm sorry, but I can't help with that."


@dataclass(frozen=True, kw_only=True)
class DPO(BesideRetain):
    """Direct preference optimisation: the good completion, or a refusal, preferred over the bad one to its prompt."""

    name: ClassVar[str] = "dpo"
    source: ClassVar[str] = (
        "Rafailov et al. 2023, arXiv 2305.18290; the reference is the unedited model. Refusals as what is preferred: "
        "the DPO of Zhang, Lin, Bai & Mei 2024, arXiv 2404.05868"
    )
    positive: ClassVar[tuple[str, ...]] = ("gamma", "beta")
    alpha: float = 0.0
    beta: float = 0.1
    """Inverse temperature, per nat of a whole completion."""
    chosen: Literal["good", "refusal"] = "good"
    """What is preferred: the completion in retain to the same prompt, or ``text``, which facts have as well (there is
    no good answer beside the true one)."""
    text: str = SORRY
    """What is preferred as the answer to every forget prompt where ``chosen`` is ``refusal``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chosen == "good":
            self.refuse("text", why="chosen is 'good', so no prompt is answered with it")
        _check_text(self.name, self.text)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("retain",) if self.chosen == "good" else super().needs

    def forget_loss(self, problem: Problem) -> BatchLoss:
        preferred = paired(problem) if self.chosen == "good" else refused(problem, self.text, self.name)
        goods = encode(preferred, models.tokenizer_of(problem.model), end="turn")
        reference = reference_nlls(problem, [*goods, *training_sequences(problem, "forget")]).view(2, -1)

        def loss(model: Any, batch: TokenBatch) -> Tensor:
            rows = _rows_of(batch)
            both = _together(model, [*(goods[i] for i in rows), *batch.sequences])
            problem.tokens += both.n_tokens - batch.n_tokens  # the walk counts the bad ones itself
            nlls, _ = sequence_nlls(model, both)
            place = {id(s): i for i, s in enumerate(both.sequences)}
            good = nlls[[place[id(goods[i])] for i in rows]]
            bad = nlls[[place[id(s)] for s in batch.sequences]]
            return dpo_loss(good, bad, reference[:, rows].to(nlls), self.beta)

        return loss


def paired(problem: Problem) -> Corpus:
    """For each forget row, in order, the retain row that answers the same prompt.

    Where a prompt stands several times, its k-th bad completion meets its k-th good one, from the first again when
    there are fewer.

    Raises:
        InputError: a forget prompt (plain text has none) that no retain row answers.
    """
    tokenizer, retain = models.tokenizer_of(problem.model), problem.corpus("retain")
    answers: dict[str, list[Row]] = {}
    for row in retain.rows:
        answers.setdefault(split_row(row, tokenizer)[0], []).append(row)
    answers.pop("", None)
    prompts = [split_row(row, tokenizer)[0] for row in problem.forget.rows]
    alone = [i for i, prompt in enumerate(prompts) if prompt not in answers]
    if alone:
        raise InputError(
            f"method 'dpo' pairs completions by prompt: {len(alone)} of {len(prompts)} forget prompts have no "
            f"completion in retain ({retain.name!r}), the first in row {alone[0]}: {prompts[alone[0]][-60:]!r}; give "
            "good completions to the same prompts, prefer a refusal (chosen: refusal), or take a method that needs no "
            "pairs (npo)"
        )
    seen: Counter[str] = Counter()
    rows: list[Row] = []
    for prompt in prompts:
        rows.append(answers[prompt][seen[prompt] % len(answers[prompt])])
        seen[prompt] += 1
    return Corpus(f"{retain.name}/paired", tuple(rows), retain.source)


# ---------------------------------------------------------------------------------------- refusal


@dataclass(frozen=True, kw_only=True)
class Refusal(BesideRetain):
    """Supervised fine-tuning on a refusal to the forget prompts: behavioural suppression, the lowest rung."""

    name: ClassVar[str] = "refusal"
    source: ClassVar[str] = "supervised fine-tuning; compare TOFU's IDK baseline (Maini et al. 2024, arXiv 2401.06121)"
    alpha: float = 0.0
    text: str = SORRY
    """What every forget prompt is answered with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text(self.name, self.text)

    def forget_loss(self, problem: Problem) -> BatchLoss:
        refusals = encode(refused(problem, self.text), models.tokenizer_of(problem.model), end="turn")

        def loss(model: Any, batch: TokenBatch) -> Tensor:
            instead = _together(model, [refusals[i] for i in _rows_of(batch)])
            problem.tokens += instead.n_tokens - batch.n_tokens  # the walk counts what it drew
            return nll(model, instead).mean

        return loss


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise InputError(f"method {name!r}: text must be a sentence to refuse with, got {text!r}")


def refused(problem: Problem, text: str, method: str = "refusal") -> Corpus:
    """The forget corpus with every completion replaced; a completion's leading space stays.

    Args:
        method: who asks, for the error.
    Raises:
        InputError: a row of plain text, which has no prompt to refuse.
    """
    tokenizer, forget = models.tokenizer_of(problem.model), problem.forget
    rows: list[Row] = []
    for i, row in enumerate(forget.rows):
        prompt, completion = split_row(row, tokenizer)
        if not prompt:
            raise InputError(
                f"method {method!r} answers prompts: row {i} of forget ({forget.name!r}) has none, only the text "
                f"{completion[:40]!r}"
            )
        space = completion[: len(completion) - len(completion.lstrip())]
        rows.append({**row, "completion": space + text.strip()})
    return Corpus(f"{forget.name}/refused", tuple(rows), forget.source)
