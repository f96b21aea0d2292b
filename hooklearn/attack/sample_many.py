"""Sampling until it happens: several draws per prompt at temperature 1, the worst of which counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hooklearn.attack.curve import Arena, ArmState, Attack
from hooklearn.attack.effort import Effort, before_answers, of_reading
from hooklearn.data import Corpus
from hooklearn.measure import Sample, sample
from hooklearn.referees import Referee
from hooklearn.types import ArmCurve, Curve, CurvePoint, InputError

SAMPLES_AND_REFEREE = (
    "samples and a referee: set behaviour.samples above 0, and give what a referee compares with: good answers "
    "(alternatives of the held-out rows, or corpora.near) and a never-learned model (controls.never.name, or "
    "corpora.retain to make do without), or a behaviour.referee of your own"
)


@dataclass(frozen=True, kw_only=True)
class SampleMany(Attack):
    """Several samples of every held-out prompt at temperature 1; one that shows the behaviour is enough."""

    name: ClassVar[str] = "sample"
    source: ClassVar[str] = "Scholten et al. 2024, arXiv 2410.03523; Hughes et al. 2024, arXiv 2412.03556"
    needs: ClassVar[str] = "heldout"
    cheap: ClassVar[bool] = True
    sampled_only: ClassVar[bool] = True
    draws: int = 8
    """Samples of every prompt."""
    temperature: float = 1.0
    """Above 1 the unlikely is drawn more often."""

    def __post_init__(self) -> None:
        if self.draws < 1 or not self.temperature > 0:
            raise InputError(
                f"attack {self.name!r}: draws must be 1 or more and temperature positive, got {self.draws} and "
                f"{self.temperature:g}"
            )

    def check(self, model: Any, corpora: Mapping[str, Corpus]) -> None:  # noqa: ARG002
        heldout = corpora["heldout"]
        if not heldout.has_prompts:
            raise InputError(
                f"attack {self.name!r}: {heldout.name!r} is running text, without a prompt to sample from; leave the "
                "attack out"
            )

    def settings(self) -> list[str]:
        return [f"any of {self.draws}" + (f" T={self.temperature:g}" if self.temperature != 1 else "")]

    def curves(self, arena: Arena) -> list[Curve]:
        """Judged here, as soon as the arm's weights are put back (the referee may need them), because the usual way
        takes the mean over a prompt's samples. The prompts are those of every other attack's samples."""
        eyes, (setting,) = arena.watcher, self.settings()
        if eyes.referee is None or eyes.n_samples == 0:
            raise InputError(f"attack {self.name!r} needs {SAMPLES_AND_REFEREE}")
        arms = arena.known(self.name, setting)
        for arm in [a for a in arena.arms if a.name not in arms]:
            arena.progress(f"{self.name} {setting}: {arm.name}")
            draws = self._draw(arena, arm)
            arms[arm.name] = _worst(eyes.referee, draws, eyes.heldout.corpus)
            if arm.name == "original" and eyes.permuted is not None:
                arms["never"] = _worst(eyes.referee, draws, eyes.permuted.corpus)
        return [Curve(self.name, setting, self.cheap, arena.seed, arms)]

    def effort(self, arena: Arena, steps: int) -> Effort:  # noqa: ARG002 (there are none)
        """Every prompt as often as it is answered, and answers as long as they may be."""
        eyes = arena.watcher
        asked = eyes.heldout.completions[: eyes.n_samples]
        samples = len(asked) * self.draws
        written = samples * eyes.new_tokens
        tokens = self.draws * before_answers(asked) + written
        return Effort(len(asked), samples, tokens, of_reading(arena.arms[0].model, tokens, written))

    def _draw(self, arena: Arena, arm: ArmState) -> list[list[Sample]]:
        eyes = arena.watcher
        with arm.entered(training=False) as model:
            return [
                sample(
                    model, eyes.heldout.corpus, n=eyes.n_samples, new_tokens=eyes.new_tokens,
                    temperature=self.temperature, seed=arena.seed * 1000 + draw, precision=eyes.precision,
                )
                for draw in range(self.draws)
            ]  # fmt: skip


def _worst(referee: Referee, draws: list[list[Sample]], corpus: Corpus) -> ArmCurve:
    """1 for every item of which any draw shows the behaviour, else 0."""
    samples = [s for of_draw in draws for s in of_draw]
    judged = referee.judge(samples, [corpus.rows[s.item] for s in samples])
    shown = {s.item for s, ruling in zip(samples, judged, strict=True) if ruling.is_behaviour}
    values = tuple(float(s.item in shown) for s in draws[0])
    return ArmCurve((CurvePoint(0, 0, "sampled", "heldout", values),), converged=True)
