"""Few-shot elicitation: a handful of demonstrations in the prompt, no training."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

from hooklearn import models
from hooklearn.attack.curve import Arena, Attack, Watcher
from hooklearn.data import Corpus, Row
from hooklearn.measure import Likelihoods
from hooklearn.types import ArmCurve, Curve, InputError


@dataclass(frozen=True, kw_only=True)
class FewShot(Attack):
    """A few demonstrations from the attacker's data are put before every held-out prompt."""

    name: ClassVar[str] = "few_shot"
    source: ClassVar[str] = "Sondej, Yang & Mahdi 2026 (5 demonstrations)"
    needs: ClassVar[str] = "attack_train"
    cheap: ClassVar[bool] = True
    shots: int = 3

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise InputError(f"attack 'few_shot': shots must be 1 or more, got {self.shots}")

    def settings(self) -> list[str]:
        return [f"shots={self.shots}"]

    def curves(self, arena: Arena) -> list[Curve]:
        setting = self.settings()[0]
        watcher = self._watcher(arena)
        arms: dict[str, ArmCurve] = {}
        for arm in arena.arms:
            arena.progress(f"{self.name} {setting}: {arm.name}")
            with arm.entered(training=False) as model:
                points = watcher.likelihood(model, 0, 0, watcher.heldout)
                arms[arm.name] = ArmCurve(tuple(points), converged=True)
                if arm.name == "original" and (twin := watcher.surrogate(model, 0, 0)):
                    arms["never"] = ArmCurve(tuple(twin), converged=True)
                watcher.sample(model, arm.name, self.name, setting, 0, arena.seed)
        arena.watcher.pending.extend(watcher.pending)
        return [Curve(self.name, setting, self.cheap, arena.seed, arms)]

    def _watcher(self, arena: Arena) -> Watcher:
        """The arena's eyes, with demonstrations before every prompt (the same for all arms)."""
        demonstrations = arena.corpus("attack_train").rows

        def prompted(split: Likelihoods | None) -> Likelihoods | None:
            if split is None:
                return None
            rows = tuple(
                {**row, "history": self._history(row, i, demonstrations, arena.seed)}
                for i, row in enumerate(split.corpus.rows)
            )
            corpus = Corpus(f"{split.corpus.name}/{self.shots}-shot", rows, split.corpus.source)
            tokenizer = models.tokenizer_of(arena.arms[0].model)
            return Likelihoods.of(corpus, tokenizer, split.split)

        heldout = prompted(arena.watcher.heldout)
        assert heldout is not None
        return replace(
            arena.watcher,
            heldout=heldout,
            ood=None,
            permuted=prompted(arena.watcher.permuted),
            pending=[],
            start={},
        )

    def _history(self, row: Row, i: int, demonstrations: tuple[Row, ...], seed: int) -> list[dict[str, str]]:
        """Demonstrations before the row's own earlier turns; of its own template where there is a choice."""
        like = [d for d in demonstrations if "completion" in d and d.get("template") == row.get("template")]
        pool = like or [d for d in demonstrations if "completion" in d]
        if len(pool) < self.shots:
            raise InputError(
                f"attack 'few_shot': {self.shots} shots asked for, {len(pool)} demonstrations with "
                "prompt and completion in attack_train"
            )
        chosen = random.Random(f"{seed}:{i}").sample(pool, self.shots)
        turns = []
        for d in chosen:
            turns += [
                {"role": "user", "content": d["prompt"]},
                {"role": "assistant", "content": d["completion"]},
            ]
        return [*turns, *row.get("history", [])]
