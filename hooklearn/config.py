"""The config of a run, one pydantic model. Unknown keys are errors that name the nearest valid one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hooklearn.batteries import battery
from hooklearn.types import Budget, InputError
from hooklearn.validation import Strict, unknown_key, validated

ROLES = (
    "forget", "retain", "near", "reference", "disruption", "attack_train", "heldout", "ood", "unrelated", "capability"
)  # fmt: skip


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator in use takes."""


class ModelConfig(Strict):
    """``name``: built-in name, local folder, ``.gguf`` file or hub id. ``shard``: spread the weights over the processes
    that ``torchrun`` started (:mod:`hooklearn.sharded`), where one device cannot hold them. ``offload``: keep them on
    the host, and a block on the device only while it computes."""

    name: str = "smollm2-135m-instruct"
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False
    shard: bool = False
    offload: bool = False

    @property
    def spread(self) -> bool:
        """Whether nobody has the weights whole, on the device that computes."""
        return self.shard or self.offload


class CorpusConfig(Strict):
    """Exactly one of ``name`` (built in), ``path`` (relative to the config file) or ``hub``."""

    name: str | None = None
    path: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: dict[str, str] | None = None
    layout: str | None = None
    """The published data set whose columns these are, e.g. ``tofu``; see ``hooklearn list layouts``."""
    limit: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    """What a built-in corpus is asked for, e.g. ``{part: forget}``, or a layout, e.g. ``{completion: good}``."""

    @model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        given = [k for k in ("name", "path", "hub") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of name, path, hub; got {given or 'none'}")
        return self


class PrefilterConfig(Strict):
    """Keep only facts that the model answers right under *all* of these phrasings (four choices)."""

    corpus: str
    phrasings: str | list[str] = "prefilter"


class EditConfig(BaseModel):
    """``method`` and its options, or ``checkpoint``: a model edited elsewhere, judged as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)  # a method checks its own options
    method: str | None = "natural"
    checkpoint: str | None = None
    sites: str | list[str] = "mlp"
    layers: int | str | list[int] | None = None
    site_batch: int | None = Field(default=None, ge=1)
    """Sites whose retain curvature is held at a time: less memory, more passes, the same edit. None: all."""

    @field_validator("sites")
    @classmethod
    def _some_sites(cls, sites: Any) -> Any:
        if not sites:
            raise ValueError("none are given; say mlp, attn, all, or names of sites")
        return sites

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class AttackConfig(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class BudgetConfig(Strict):
    """``forget``: completion probability of the forget items at which an edit ends; ``never``: that which the
    never-learned control gives them. ``kl`` is null for a checkpoint, unless it is set: an edit made elsewhere had no
    budget of ours."""

    kl: float | None = 0.01
    near_ce: float | None = None
    forget: float | Literal["never"] | None = None

    def resolved(self, never: Callable[[], float] | None = None) -> Budget:
        """Without ``never``, which reads the level of the never-learned control, a level of that name is left out.

        Raises:
            InputError: no ``kl``, or one of them is out of range.
        """
        if self.kl is None:
            raise InputError("budget.kl is null, and an edit ends at its budget; give how much far KL it may take")
        level = self.forget if self.forget != "never" else never and never()
        return Budget(self.kl, self.near_ce, level)


class NeverConfig(Strict):
    """The never-learned control: ``name`` of a model, or ``surrogate: permuted`` (facts)."""

    name: str | None = None
    surrogate: str | None = None

    @model_validator(mode="after")
    def _one(self) -> NeverConfig:
        if (self.name is None) == (self.surrogate is None):
            raise ValueError("give exactly one of name (a model) and surrogate (permuted)")
        if self.surrogate not in (None, "permuted"):
            raise ValueError(f"surrogate {self.surrogate!r}; valid: permuted")
        return self


class ControlsConfig(Strict):
    never: NeverConfig | None = None
    matched: bool = False
    """Also attack the delta scaled back until the behaviour starts at the never level."""


class LocateConfig(Strict):
    fitter: str = "contrast"
    rank: int = Field(default=8, ge=1)
    sides: Literal["x", "g", "both"] = "x"
    enabled: bool = True
    tokens: int = Field(default=0, ge=0)
    """Tokens to sample for the explorer in the report, and to follow through an attack; 0: no explorer."""


class RefereeConfig(Strict):
    """Who judges samples, in place of the referee that a run makes for itself."""

    pattern: str | None = None
    """A regular expression that is looked for in a sample, whatever the case."""
    name: str | None = None
    """What one is called that was given as an object, in Python."""

    @model_validator(mode="after")
    def _one(self) -> RefereeConfig:
        if (self.pattern is None) == (self.name is None):
            raise ValueError("give a pattern (from Python also a Referee, or a function of prompt and completion)")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r:.60} is no regular expression: {error}") from error
        return self


class BehaviourConfig(Strict):
    """How the sampled rate is measured."""

    referee: RefereeConfig | None = None
    """None: two models that differ in the behaviour are compared, or, of facts, the sample must contain the fact."""
    samples: int = Field(default=32, ge=0)
    ood_samples: int = Field(default=0, ge=0)
    """Of the prompts of ``corpora.ood``, wherever held-out ones are sampled; they give doubts and do not decide."""
    new_tokens: int = Field(default=36, ge=1)
    temperature: float = Field(default=0.7, gt=0)
    """As ``hooklearn.measure.TEMPERATURE``: at 1 a small model mostly babbles."""


class EvidenceConfig(Strict):
    """Mechanistic evidence beside the curves: which measures, and the short attack that some of them follow."""

    enabled: bool = False
    measures: list[str] | None = None
    """None: all of them."""
    attack_rate: float = Field(default=3e-4, gt=0)
    attack_steps: int = Field(default=16, ge=1)
    items: int | None = Field(default=None, ge=2)
    """Held-out items that are read, at most; None: all of them."""
    random_lines: int = Field(default=19, ge=1)
    """Random steps behind the null of mode connectivity, each as dear as four readings."""

    @model_validator(mode="after")
    def _asked_for(self) -> EvidenceConfig:
        """``enabled: false`` is a word of its own: of a recipe whose measures are kept for another time."""
        if idle := sorted(self.model_fields_set - {"enabled"}) if "enabled" not in self.model_fields_set else []:
            raise ValueError(
                f"{', '.join(idle)} would change nothing, as no evidence is asked for; add enabled: true (or false, to "
                "keep what is written and do without)"
            )
        return self


class RunConfig(Strict):
    """A whole run: what to edit out of what, how, how much may change, and who tries to bring it back."""

    name: str = "run"
    model: ModelConfig = ModelConfig()
    organism: str | None = None
    """A model organism to instil first; the model without it is then the never-learned control."""
    controls: ControlsConfig = ControlsConfig()
    prefilter: PrefilterConfig | None = None
    corpora: dict[str, CorpusConfig]
    """role -> corpus; ``null`` takes away the corpus that a base config gives to a role."""
    locate: LocateConfig = LocateConfig()
    edit: EditConfig = EditConfig()
    budget: BudgetConfig = BudgetConfig()
    attacks: list[AttackConfig] = Field(default_factory=list)
    battery: str | None = None
    """``cheap``, ``standard`` or ``full``: a named list, in place of ``attacks``."""
    behaviour: BehaviourConfig = BehaviourConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    deterministic: bool = False
    """Only kernels that give the same bits every time; one that has none ends the run. Matters on a GPU."""
    max_tokens: int = Field(default=1024, ge=16)
    """Tokens in a batch, padding included."""

    @model_validator(mode="before")  # pydantic calls these from the last to the first
    @classmethod
    def _made_elsewhere(cls, data: Any) -> Any:
        """With a checkpoint there is no method, and no budget but one that is set."""
        edit = data.get("edit") if isinstance(data, dict) else None
        if not isinstance(edit, dict) or edit.get("checkpoint") is None:
            return data
        as_it_is = f"edit.checkpoint {edit['checkpoint']!r:.80} is judged as it is, and"
        if (method := edit.get("method")) is not None:
            raise ValueError(f"{as_it_is} edit.method {method!r:.80} makes an edit: one or the other, the other null")
        for option in edit.keys() - EditConfig.model_fields.keys():
            raise ValueError(f"{as_it_is} edit.{option!s:.80} would change nothing; leave it out")
        budget = data.get("budget") or {}
        data = data | {"edit": edit | {"method": None}}
        return data | {"budget": {"kl": None} | budget} if isinstance(budget, dict) else data

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """``budget: 0.02``, ``seeds: 3``, ``attacks: [erode]``: as one would say it."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        budget = data.get("budget")
        if isinstance(budget, int | float | str) and not isinstance(budget, bool):  # YAML reads 1e-2 as text
            data["budget"] = {"kl": budget}
        if isinstance(seed := data.get("seeds"), int) and not isinstance(seed, bool):
            data["seeds"] = [seed]
        if isinstance(attacks := data.get("attacks"), list):
            data["attacks"] = [{"name": a} if isinstance(a, str) else a for a in attacks]
        return data

    @field_validator("corpora", mode="before")
    @classmethod
    def _taken_away(cls, corpora: Any) -> Any:
        return {r: c for r, c in corpora.items() if c is not None} if isinstance(corpora, dict) else corpora

    @model_validator(mode="before")
    @classmethod
    def _named_battery(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("battery"), str):
            return data
        controls = data.get("controls")
        never = controls.get("never") if isinstance(controls, dict) else None
        # answers can be permuted where the thing to forget is facts, and only there
        facts = isinstance(never, dict) and never.get("surrogate") is not None
        attacks = battery(data["battery"], facts=facts)
        given = data.get("attacks") or attacks
        # an audit leaves out those whose corpus is not there
        if not isinstance(given, list) or not all(a in attacks for a in given):
            raise ValueError(f"battery {data['battery']!r} is a list of attacks; give battery or attacks, not both")
        return data | {"attacks": given}

    @model_validator(mode="after")
    def _roles(self) -> RunConfig:
        for role in self.corpora:
            if role not in ROLES:
                raise ValueError(unknown_key(f"corpora.{role}", role, ROLES))
        for role in ("forget", "disruption", "heldout"):
            if role not in self.corpora:
                raise ValueError(f"corpora.{role} is missing; every run needs forget, disruption, heldout")
        budget = self.budget
        if self.edit.checkpoint is not None and budget.kl is None:
            budget = budget.model_copy(update={"kl": BudgetConfig().kl})
        budget.resolved()
        return self


def parse(data: Any, where: str = "config") -> RunConfig:
    """Validate a mapping.

    Raises:
        InputError: one line that names the key, its value and what would be valid.
    """
    return validated(RunConfig, data, where)


def without_panel(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, as records hold it, without its capability panel."""
    return {**config, "corpora": {role: c for role, c in config["corpora"].items() if role != "capability"}}


def same_config(earlier: Any, now: Any) -> bool:
    """Whether two configs out of records ask for the same; a key that an old one lacks is at its default."""
    try:
        return parse(earlier) == parse(now)
    except InputError:
        return bool(earlier == now)


def more_seeds(earlier: Any, now: Any) -> bool:
    """Whether ``now`` asks for the same as ``earlier``, an old record's config, or for that and further seeds."""
    try:
        one, other = parse(earlier), parse(now)
    except InputError:
        return bool(earlier == now)
    begun = one.seeds
    return other.seeds[: len(begun)] == begun and other.model_copy(update={"seeds": begun}) == one
