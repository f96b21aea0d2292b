"""Opinions about facts: reads run folders, judges, compares and reports. Loads no model.

    import analysis

    verdict = analysis.judge("runs/threats")        # removed or only disabled? writes verdict.json
    analysis.report("runs/threats")                 # report.html
    analysis.compare(["runs/a", "runs/b"])          # at equal disruption, paired

Names are imported when they are first used: ``import analysis`` is instant.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis import plots, style
    from analysis.calibrate import calibrate
    from analysis.compare import compare
    from analysis.comparison import Comparison
    from analysis.confusion import confusion
    from analysis.directions import energy_by_component, reemergence, spectra
    from analysis.envelope import envelope
    from analysis.evidence.judge import evidence_table
    from analysis.explorer import explore
    from analysis.inspect_log import inspect_logs
    from analysis.layers import by_layer
    from analysis.packed import pack
    from analysis.reading import Run, read_run
    from analysis.recovery import recovery_table
    from analysis.report import report
    from analysis.side_by_side import attack_levels, attack_map, attack_table, ways
    from analysis.sweep import sweep_table
    from analysis.tables import capability_table, markdown, summary_table
    from analysis.tradeoff import tradeoff
    from analysis.verdict import Thresholds, Verdict, decide, judge
    from analysis.verify import Verification, verify
    from analysis.view import view

__all__ = [
    "Comparison",
    "Run",
    "Thresholds",
    "Verdict",
    "Verification",
    "attack_levels",
    "attack_map",
    "attack_table",
    "by_layer",
    "calibrate",
    "capability_table",
    "compare",
    "confusion",
    "decide",
    "energy_by_component",
    "envelope",
    "evidence_table",
    "explore",
    "inspect_logs",
    "judge",
    "markdown",
    "pack",
    "plots",
    "read_run",
    "recovery_table",
    "reemergence",
    "report",
    "spectra",
    "style",
    "summary_table",
    "sweep_table",
    "tradeoff",
    "verify",
    "view",
    "ways",
]

_HOME = {
    "Comparison": "comparison",
    "Run": "reading",
    "Thresholds": "verdict",
    "Verdict": "verdict",
    "Verification": "verify",
    "capability_table": "tables",
    "attack_levels": "side_by_side",
    "attack_map": "side_by_side",
    "attack_table": "side_by_side",
    "by_layer": "layers",
    "inspect_logs": "inspect_log",
    "calibrate": "calibrate",
    "compare": "compare",
    "confusion": "confusion",
    "decide": "verdict",
    "energy_by_component": "directions",
    "reemergence": "directions",
    "spectra": "directions",
    "envelope": "envelope",
    "evidence_table": "evidence.judge",
    "explore": "explorer",
    "judge": "verdict",
    "markdown": "tables",
    "pack": "packed",
    "plots": "plots",
    "read_run": "reading",
    "recovery_table": "recovery",
    "report": "report",
    "style": "style",
    "summary_table": "tables",
    "sweep_table": "sweep",
    "tradeoff": "tradeoff",
    "verify": "verify",
    "view": "view",
    "ways": "side_by_side",
}


_CALLABLE = ("calibrate", "compare", "confusion", "envelope", "report", "tradeoff", "verify", "view")
"""Modules that hold a function of their own name."""


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    module = importlib.import_module(f"analysis.{home}")
    return module if name == home else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableModule(ModuleType):
    """``analysis.report`` is a module and, called, its function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """``import analysis.report`` binds the module where the function is expected: let both work."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _CALLABLE:
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
