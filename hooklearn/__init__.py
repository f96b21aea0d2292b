"""hooklearn: selective unlearning on hooked models, and an honest answer to "is it gone, or only switched off?".

    import hooklearn as hl

    model = hl.load("smollm2-135m-instruct")
    result = hl.edit(model, "natural", forget=bad, retain=good, disruption=prose, budget=0.01)
    with hl.edited(model, result.delta):
        ...

Names below are imported when first used: ``import hooklearn`` loads neither torch nor TransformerLens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "load": "bridge",
    "wrap": "bridge",
    "sites": "models",
    "weight": "models",
    "edited": "editing",
    "export": "exporting",
    "EditedModel": "exporting",
    "to_peft": "adapters",
    "from_peft": "adapters",
    "load_corpus": "data",
    "Corpus": "data",
    "capture": "api",
    "locate": "locate",
    "locate_sweep": "locate",
    "Subspace": "locate",
    "Subspaces": "locate",
    "sample_tokens": "locate.tokens",
    "read_directions": "locate.directions",
    "read_sae": "locate.dictionary",
    "read_activations": "locate.saved",
    "follow": "locate.followed",
    "preview": "preview",
    "edit": "edit",
    "Method": "edit",
    "Problem": "edit",
    "attack": "api",
    "behaviour": "api",
    "capability": "panel",
    "run": "api",
    "audit": "api",
    "organism": "api",
    "build_organism": "api",
    "organism_card": "api",
    "sample": "measure",
    "Referee": "referees",
    "RatioReferee": "referees",
    "ContainsReferee": "referees",
    "PatternReferee": "referees",
    "Ruling": "referees",
    "recipe": "recipes",
    "observing": "callbacks",
    "reporting_to": "callbacks",
    "sweep": "running.sweeping",
    "load_delta": "deltas",
    "save_delta": "deltas",
    "Budget": "types",
    "Delta": "deltas",
    "Disruption": "types",
    "EditResult": "types",
    "Curve": "types",
    "Site": "types",
    "InputError": "types",
}

__all__ = [
    "__version__",
    "load",
    "wrap",
    "sites",
    "weight",
    "edited",
    "export",
    "EditedModel",
    "to_peft",
    "from_peft",
    "load_corpus",
    "Corpus",
    "capture",
    "locate",
    "locate_sweep",
    "Subspace",
    "Subspaces",
    "sample_tokens",
    "read_directions",
    "read_sae",
    "read_activations",
    "follow",
    "preview",
    "edit",
    "Method",
    "Problem",
    "attack",
    "behaviour",
    "sample",
    "Referee",
    "RatioReferee",
    "ContainsReferee",
    "PatternReferee",
    "Ruling",
    "capability",
    "run",
    "audit",
    "organism",
    "build_organism",
    "organism_card",
    "recipe",
    "observing",
    "reporting_to",
    "sweep",
    "load_delta",
    "save_delta",
    "Budget",
    "Delta",
    "Disruption",
    "EditResult",
    "Curve",
    "Site",
    "InputError",
]

if TYPE_CHECKING:
    from hooklearn.adapters import from_peft, to_peft
    from hooklearn.api import attack, audit, behaviour, build_organism, capture, organism, organism_card, run
    from hooklearn.bridge import load, wrap
    from hooklearn.callbacks import observing, reporting_to
    from hooklearn.data import Corpus, load_corpus
    from hooklearn.deltas import Delta, load_delta, save_delta
    from hooklearn.edit import Method, Problem, edit
    from hooklearn.editing import edited
    from hooklearn.exporting import EditedModel, export
    from hooklearn.locate import Subspace, Subspaces, locate, locate_sweep
    from hooklearn.locate.dictionary import read_sae
    from hooklearn.locate.directions import read_directions
    from hooklearn.locate.followed import follow
    from hooklearn.locate.saved import read_activations
    from hooklearn.locate.tokens import sample_tokens
    from hooklearn.measure import sample
    from hooklearn.models import sites, weight
    from hooklearn.panel import capability
    from hooklearn.preview import preview
    from hooklearn.recipes import recipe
    from hooklearn.referees import ContainsReferee, PatternReferee, RatioReferee, Referee, Ruling
    from hooklearn.running.sweeping import sweep
    from hooklearn.types import Budget, Curve, Disruption, EditResult, InputError, Site


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"hooklearn.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'hooklearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
