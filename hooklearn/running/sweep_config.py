"""The file of a sweep: which methods, seeds and budgets, and on which split options are chosen."""

from __future__ import annotations

import fnmatch
import itertools
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hooklearn.config import AttackConfig, BudgetConfig, CorpusConfig, EditConfig, RunConfig, Seed, parse
from hooklearn.config_file import with_overrides
from hooklearn.recipes import RECIPES, resolve
from hooklearn.types import InputError
from hooklearn.validation import Strict, validated

Options = dict[str, Any]


class MethodSpec(BaseModel):
    """A method with its options, and the values among which ``tuning`` chooses."""

    model_config = ConfigDict(extra="allow", frozen=True)  # a method checks its own options
    name: str
    label: str = ""
    """What the table calls it; the method's name by default."""
    search: dict[str, list[Any]] = Field(default_factory=dict)
    """option -> values; every combination is a setting that may be tried."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        data = {"name": data} if isinstance(data, str) else data
        return {"label": data["name"]} | data if isinstance(data, dict) and "name" in data else data

    @model_validator(mode="after")
    def _fits_a_folder(self) -> MethodSpec:
        if not re.fullmatch(r"[\w.+-]+", self.label):
            raise ValueError(f"label {self.label!r} names a folder: letters, digits and . _ + - only")
        return self

    def settings(self, trials: int) -> list[Options]:
        """What is tried: every combination, or as many as there are trials, drawn by the label."""
        if math.prod(map(len, self.search.values())) > 10**6:
            raise InputError(f"method {self.label!r}: its search has more than a million settings; offer fewer values")
        every = [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]
        if len(every) <= trials:
            return every
        chosen = sorted(random.Random(self.label).sample(range(len(every)), trials))
        return [every[i] for i in chosen]

    def edit(self, base: EditConfig, chosen: Options) -> EditConfig:
        """On the sites of the base config, unless the method names its own.

        Raises:
            InputError: one of these keys is not what it should be.
        """
        places = {"sites": base.sites, "layers": base.layers, "site_batch": base.site_batch}
        given = {**places, "method": self.name, **dict(self.model_extra or {}), **chosen}
        if "method" in (self.model_extra or {}) or "method" in chosen:
            raise InputError(f"method {self.label!r}: `name` says which method it is; leave `method` out")
        if "checkpoint" in given:
            raise InputError(f"method {self.label!r}: checkpoint is an edit made elsewhere; a sweep makes its own")
        return validated(EditConfig, given, f"method {self.label!r}")


class TuningSpec(Strict):
    """How options are chosen: the same number of trials for every method that is searched."""

    trials: int = Field(ge=1)
    metric: Literal["completion", "preference", "sampled"] = "completion"
    """The lowest value of it on the tuning split decides, after ``attack`` at its worst step and setting; of equals the
    one with the lowest completion probability."""
    attack: AttackConfig | None = None
    """None: before any attack."""
    corpora: dict[str, CorpusConfig]
    """In place of those of the same role; ``heldout`` is the split on which the search is decided."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _another_split(self) -> TuningSpec:
        if "heldout" not in self.corpora:
            raise ValueError("corpora.heldout is missing: the split on which options are chosen")
        return self


class SweepConfig(Strict):
    """Methods x budgets x seeds on one base config."""

    name: str = "sweep"
    base: str | dict[str, Any]
    """A recipe, a config file (relative to this one), or a whole config."""
    overrides: list[str] = Field(default_factory=list)
    """Changes to the base, as ``--set`` takes them."""
    methods: list[MethodSpec] = Field(min_length=1)
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    budgets: list[BudgetConfig] = Field(default_factory=lambda: [BudgetConfig()], min_length=1)
    attacks: list[AttackConfig] | None = None
    """None: those of the base."""
    tuning: TuningSpec | None = None

    @model_validator(mode="after")
    def _fair(self) -> SweepConfig:
        for kind, names in (
            ("method label", [m.label for m in self.methods]),
            ("budget", [budget_name(b) for b in self.budgets if b.resolved()]),
            ("seed", list(map(str, self.seeds))),
        ):
            twice = [n for n in names if names.count(n) > 1]
            if twice:
                raise ValueError(f"{kind} {twice[0]!r} is there twice" + ("; give each a label" * ("label" in kind)))
        searched = [m for m in self.methods if m.search]
        if searched and self.tuning is None:
            raise ValueError(f"method {searched[0].label!r} has a search, and there is no tuning section to decide it")
        for m in searched if self.tuning else []:
            offered = len(m.settings(10**9))
            if offered < self.tuning.trials:  # type: ignore[union-attr]
                raise ValueError(
                    f"method {m.label!r} offers {offered} settings for {self.tuning.trials} trials; "  # type: ignore[union-attr]
                    "a search budget is the same for every method"
                )
        return self


@dataclass(frozen=True)
class Family:
    """One method at one budget: its options are chosen once, its seeds are cells."""

    spec: MethodSpec
    budget: BudgetConfig

    @property
    def name(self) -> str:
        return f"{self.spec.label}-{budget_name(self.budget)}"


@dataclass(frozen=True)
class Plan:
    """A sweep with its base config resolved."""

    config: SweepConfig
    base: RunConfig
    folder: Path
    """Relative paths start here."""

    @staticmethod
    def of(data: Mapping[str, Any], folder: Path, where: str = "sweep") -> Plan:
        """Raises InputError: one line that names the key, its value and what would be valid."""
        config = validated(SweepConfig, dict(data), where)
        given, start = config.base, folder
        if isinstance(given, str):
            beside = given not in RECIPES and os.path.isfile(folder / given)  # noqa: PTH113 (a name that is too long is none)
            given, found = resolve(str(folder / given) if beside else given)
            start = found or folder
        if config.attacks is not None:
            given = {k: v for k, v in given.items() if k != "battery"}
            given["attacks"] = [a.model_dump() for a in config.attacks]
        base = parse(with_overrides(given, config.overrides), f"{where}: base")
        if base.edit.checkpoint is not None:
            raise InputError(f"{where}: base judges an edit made elsewhere (edit.checkpoint); a sweep makes its own")
        if config.tuning is not None and config.tuning.metric == "sampled" and not base.behaviour.samples:
            raise InputError(f"{where}: tuning.metric is sampled, and behaviour.samples is 0; draw some")
        return Plan(config, base, start)

    def families(self) -> list[Family]:
        return [Family(m, b) for b in self.config.budgets for m in self.config.methods]

    def trials(self) -> dict[str, int]:
        """:attr:`Family.name` -> how many trials its method has at its budget, under whatever labels."""
        each, of = self.config.tuning.trials if self.config.tuning else 0, Counter[tuple[str, str]]()
        for family in self.families():
            of[family.spec.name, budget_name(family.budget)] += each * bool(family.spec.search)
        return {f.name: of[f.spec.name, budget_name(f.budget)] for f in self.families()}

    def cells(self, only: Sequence[str] = ()) -> list[tuple[str, Family, int]]:
        """Name, family and seed of each, in the order in which they are run.

        Args:
            only: patterns such as ``npo-*-seed0``: those whose name one of them matches.
        Raises:
            InputError: a pattern that matches none.
        """
        every = [(f"{f.name}-seed{seed}", f, seed) for seed in self.config.seeds for f in self.families()]
        names = [name for name, _, _ in every]
        for pattern in only:
            if not fnmatch.filter(names, pattern):
                raise InputError(f"only: {pattern!r} matches none of the cells {', '.join(names)}")
        return [cell for cell in every if not only or any(fnmatch.fnmatch(cell[0], pattern) for pattern in only)]

    def cell(self, family: Family, seed: int, chosen: Options) -> RunConfig:
        """What one run folder holds."""
        return self.base.model_copy(
            update={
                "name": family.name, "edit": family.spec.edit(self.base.edit, chosen),
                "budget": family.budget, "seeds": [seed],
            }
        )  # fmt: skip

    def variants(self) -> Iterator[RunConfig]:
        """A cell of every family with whatever options its trials may choose."""
        for family in self.families():
            for options in family.spec.settings(10**9):
                yield self.cell(family, 0, options)

    def tuning(self) -> RunConfig:
        """The base as trials see it: other corpora, one attack, and nothing that the choice does not need."""
        tuning = self.config.tuning
        assert tuning is not None
        base = self.base
        samples = base.behaviour.samples if tuning.metric == "sampled" else 0
        return parse(
            base.model_dump()
            | {
                "name": f"{self.config.name}: tuning",
                "corpora": {
                    r: c.model_dump()
                    for r, c in {**base.corpora, **tuning.corpora}.items()
                    if r not in ("ood", "capability")
                },
                "attacks": [tuning.attack.model_dump()] if tuning.attack else [],
                "battery": None,
                "behaviour": base.behaviour.model_dump() | {"samples": samples, "ood_samples": 0},
                "locate": base.locate.model_dump() | {"enabled": False},
                "evidence": base.evidence.model_dump() | {"enabled": False},
                "controls": base.controls.model_dump() | {"matched": False},
                "seeds": [tuning.seed],
            },
            "tuning",
        )

    def trial(self, family: Family, options: Options) -> RunConfig:
        assert self.config.tuning is not None
        return self.tuning().model_copy(
            update={
                "name": f"{family.name}: {words(options)}", "edit": family.spec.edit(self.base.edit, options),
                "budget": family.budget,
            }
        )  # fmt: skip


def budget_name(budget: BudgetConfig) -> str:
    near = f"-near{budget.near_ce:g}" if budget.near_ce is not None else ""
    return f"kl{budget.kl:g}{near}" + (f"-forget{budget.forget}" if budget.forget is not None else "")


def words(options: Mapping[str, Any]) -> str:
    """``forget_weight=0.3, rank=8``; empty for none."""
    return ", ".join(f"{key}={value}" for key, value in options.items())
