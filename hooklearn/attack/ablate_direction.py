"""Projecting out what an edit added to the hidden states: undoes edits that steer activations away (RMU)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooklearn import forward, interventions, models
from hooklearn.attack.curve import Arena, ArmState, Attack
from hooklearn.attack.effort import Effort, of_reading
from hooklearn.attack.look import one_look
from hooklearn.corpora.corpus import Corpus
from hooklearn.data import Encoded, batches, encode, fewer_scored, scored_tokens
from hooklearn.measure import sample
from hooklearn.types import Curve, InputError

Read = Literal["prompts", "answers"]

OUTLIER = 3.0
"""Tokens whose difference is longer than the mean by so many standard deviations are left out."""


@dataclass(frozen=True, kw_only=True)
class AblateDirection(Attack):
    """What an edit added to the hidden states is projected out after every layer at inference.

    Per layer, ``v = mean(edited - original)`` over tokens, and then ``h <- h - (h . v) v / |v|^2``. Another setting
    takes more than the mean away: the principal directions of what is left of the difference. The same directions are
    taken from every arm, so that the controls show what the projection itself destroys.

    No demonstration of the behaviour is used: the tokens are those of the attacker's prompts (running text is taken
    whole), and then those and the edited model's own greedy answers, for an edit acts where the behaviour would be:
    what RMU adds to a state is hardly there before the answer begins.
    """

    name: ClassVar[str] = "ablate_direction"
    source: ClassVar[str] = "Lucki et al. 2024, arXiv 2409.18025 (orthogonalization; the mean difference)"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = True
    same_question: ClassVar[bool] = True
    follows_edit: ClassVar[bool] = True
    directions: tuple[int, ...] = (1, 2)
    """How many, the mean difference first; samples are drawn at the most, of each reading."""
    read: tuple[Read, ...] = ("prompts", "answers")
    """Where the difference is read: at the ``prompts``, or at them and the edited model's ``answers``."""
    answer_tokens: int = 16
    """How far the edited model answers."""
    prompts: int = 64
    """Prompts of the attacker's data, at most; the difference of states is their mean."""
    skip: int = 1
    """First tokens of a prompt that are left out: their states are huge and much the same everywhere. (The paper
    skips 40 tokens of its long texts.)"""

    def __post_init__(self) -> None:
        if not self.directions or min(self.directions) < 1:
            raise InputError(f"attack {self.name!r}: directions must be 1 or more each, got {list(self.directions)}")
        if not self.read:
            raise InputError(f"attack {self.name!r}: read must be prompts, answers or both, got []")
        if self.answer_tokens < 1:
            raise InputError(f"attack {self.name!r}: answer_tokens must be 1 or more, got {self.answer_tokens}")
        if self.prompts < 1 or self.skip < 0:
            raise InputError(
                f"attack {self.name!r}: prompts must be 1 or more and skip 0 or more, got {self.prompts} and "
                f"{self.skip}"
            )

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:
        if max(self.directions) > model.cfg.d_model:
            raise InputError(
                f"attack {self.name!r}: directions {max(self.directions)}; states have {model.cfg.d_model}"
            )
        rows = corpora[self.needs].take(self.prompts)
        asks = ["prompt" in row or "messages" in row for row in rows.rows]
        if "answers" in self.read and any(asks) and not all(asks):
            raise InputError(
                f"attack {self.name!r}: row {asks.index(False)} of {rows.name!r} is running text and others are "
                "prompts, and what is answered must be one of them; give one kind, or read: [prompts]"
            )
        longest = max(map(len, _prompts(rows, models.tokenizer_of(model))))
        if self.skip >= longest:
            raise InputError(
                f"attack {self.name!r}: skip={self.skip} leaves no token; the longest prompt has {longest}"
            )

    def settings(self) -> list[str]:
        return [self._setting(read, k) for read in self.read for k in self.directions]

    def _setting(self, read: Read, k: int) -> str:
        return ("mean difference" if k == 1 else f"{k} directions") + (", answers" if read == "answers" else "")

    def curves(self, arena: Arena) -> list[Curve]:
        return [curve for read in self.read for curve in self._projections(arena, read)]

    def _projections(self, arena: Arena, read: Read) -> list[Curve]:
        found = self.found(arena, read)

        def without(k: int):
            return lambda model: projected(model, found[:, :k])

        most = max(self.directions)
        return [
            one_look(arena, self, self._setting(read, k), attacked=without(k), sampled=k == most)
            for k in self.directions
        ]

    def effort(self, arena: Arena, steps: int) -> Effort:  # noqa: ARG002 (there are none)
        """The share of one setting on one arm, as the directions are found once for all: two models read the prompts,
        and answers as long as they may be, which the edited one has to write first."""
        rows, model = arena.corpus("attack_train").take(self.prompts), arena.arms[0].model
        tokens = sum(map(len, _prompts(rows, models.tokenizer_of(model))))
        written = len(rows) * self.answer_tokens if rows.has_prompts else 0
        each = {"prompts": 2 * tokens, "answers": (3 if written else 2) * (tokens + written)}
        shares = len(arena.arms) * len(self.settings())
        read = sum(each[r] for r in self.read) / shares
        written = written / shares if "answers" in self.read else 0
        return Effort(len(rows), len(rows), round(read), of_reading(model, round(read), round(written)))

    def found(self, arena: Arena, read: Read = "prompts") -> Float[Tensor, "layer direction d_model"]:
        """Orthogonal unit vectors, the mean difference first; zero where the edit changed nothing."""
        arms = {arm.name: arm for arm in arena.arms}
        arena.progress(f"{self.name}: reading the difference")
        rows = arena.corpus("attack_train").take(self.prompts)
        texts = _prompts(rows, models.tokenizer_of(arena.arms[0].model))
        if read == "answers":
            texts = self._answered(arms["edited"], rows, texts, arena)
        difference = self._states(arms["edited"], texts, arena) - self._states(arms["original"], texts, arena)
        return torch.stack([_directions(d, max(self.directions)) for d in difference])

    def _answered(self, arm: ArmState, rows: Corpus, prompts: list[Encoded], arena: Arena) -> list[Encoded]:
        """The prompts and what the arm says to them; running text, which nobody is asked, as it is."""
        with arm.entered(training=False) as model:
            said = sample(
                model, rows, n=len(rows.rows), new_tokens=self.answer_tokens, temperature=0.0, precision=arena.precision
            )
            tokenizer: Any = models.tokenizer_of(model)
        ids = scored_tokens([(s.text, s.completion) for s in said], tokenizer)
        answers = {s.item: of for s, of in zip(said, ids, strict=True)}
        return [_longer(p, answers.get(p.item, []), tokenizer.model_max_length) for p in prompts]

    def _states(self, arm: ArmState, prompts: list[Encoded], arena: Arena) -> Float[Tensor, "layer token d_model"]:
        """What every layer adds up to at the tokens of the prompts, in an order that is the same for all arms."""
        seen: dict[int, list[Tensor]] = {}
        with arm.entered(training=False) as model, torch.no_grad():
            for batch in batches(prompts, max_tokens=arena.max_tokens):
                wanted = batch.mask & (batch.position >= self.skip)

                def keep(layer: int, states: Tensor, wanted: Tensor = wanted) -> None:
                    seen.setdefault(layer, []).append(states[wanted.to(states.device)].float())

                with interventions.at_every_layer(model, keep):
                    forward.hidden(model, batch)
        return torch.stack([torch.cat(states) for _, states in sorted(seen.items())])


def _directions(difference: Float[Tensor, "token d_model"], k: int) -> Float[Tensor, "direction d_model"]:
    """The mean difference, then the principal directions of what it leaves; zero where nothing is left."""
    length = difference.norm(dim=-1)
    kept = difference[(length - length.mean()).abs() <= OUTLIER * length.std(correction=0)]
    mean = torch.nn.functional.normalize(kept.mean(0), dim=-1)
    rest = kept - (kept @ mean)[:, None] * mean
    values, vectors = torch.linalg.eigh(rest.T @ rest)
    there = values > torch.finfo(values.dtype).eps * kept.square().sum()
    return torch.cat([mean[None], (vectors * there).flip(-1).T[: k - 1]])


FEW = 8
"""Tokens of an answer: enough for one character, however many tokens that has."""


def _prompts(rows: Corpus, tokenizer: Any) -> list[Encoded]:
    """What is read, however long the answers are: one that fills the context would leave nothing of its prompt."""
    if rows.has_prompts:
        rows = dataclasses.replace(rows, rows=tuple(fewer_scored(row, tokenizer, FEW) for row in rows.rows))
    return [_prompt(s) for s in encode(rows, tokenizer)]


def _prompt(sequence: Encoded) -> Encoded:
    """What comes before the completion; all of running text, of which only the first token is not scored."""
    n = int(sequence.labels.nonzero()[0])
    return sequence if n <= 1 else Encoded(sequence.ids[:n], sequence.labels[:n], sequence.item)


def _longer(sequence: Encoded, ids: list[int], at_most: int) -> Encoded:
    """The sequence and these tokens, as far as the model reads."""
    more = torch.tensor(ids[: max(0, at_most - len(sequence))], dtype=sequence.ids.dtype)
    return Encoded(
        torch.cat([sequence.ids, more]), torch.cat([sequence.labels, torch.zeros(len(more), dtype=torch.bool)]),
        sequence.item,
    )  # fmt: skip


def projected(model: Any, directions: Float[Tensor, "layer direction d_model"]) -> AbstractContextManager[Any]:
    """The model with some directions less in the hidden states after every layer, inside this block; zeros are
    none, and a control of another shape has no such states to take them from."""
    if (model.cfg.n_layers, model.cfg.d_model) != (len(directions), directions.shape[-1]) or not bool(directions.any()):
        return contextlib.nullcontext(model)

    def without(layer: int, states: Tensor) -> Tensor:
        v = directions[layer].to(states)
        return states - states @ v.T @ v

    return interventions.intervened(model, without)
