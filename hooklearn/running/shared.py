"""What runs on the same models and texts have in common: made when first asked for, then kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from hooklearn import models
from hooklearn.attack import Measured, Watcher
from hooklearn.disruption import DisruptionMeter
from hooklearn.panel import Panel
from hooklearn.running.setting import Progress, Setup
from hooklearn.types import Disruption


@dataclass
class Shared:
    """The eyes with their referee, the meter, the yardstick, and controls that were measured before.

    Runs may differ in edit, budget and seeds; models, corpora and attacks are those of ``setup``.
    """

    setup: Setup
    progress: Progress
    measured: Mapping[int, Measured] = field(default_factory=dict)
    """seed -> its controls; a seed that is not here has its controls attacked in its own run."""

    @cached_property
    def watcher(self) -> Watcher:
        return self.setup.watcher(self.progress)

    @cached_property
    def meter(self) -> DisruptionMeter:
        self.progress("disruption: reading the unedited model")
        corpora = self.setup.corpora
        return DisruptionMeter(self.setup.original, corpora["disruption"], corpora.get("near"))

    @cached_property
    def panel(self) -> Panel | None:
        """The items of general capability; None where the config gives none."""
        corpus = self.setup.corpora.get("capability")
        return None if corpus is None else Panel.of(corpus, models.tokenizer_of(self.setup.original))

    @cached_property
    def answered(self) -> dict[str, Tensor]:
        """What the controls answer right on the panel, item by item."""
        if self.panel is None:
            return {}
        self.progress("general capability: the unedited model")
        controls = {"original": self.setup.original, "never": self.setup.never}
        precision: Any = self.setup.config.model.precision
        return {a: self.panel.right(m, precision=precision) for a, m in controls.items() if m is not None}

    @cached_property
    def yardstick(self) -> Disruption | None:
        """How far the never-learned model itself is from the original."""
        return None if self.setup.never is None else self.meter.measure(model=self.setup.never)
