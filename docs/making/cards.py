"""One card for every method, attack, measure, organism, corpus, recipe and fitter, from the registries themselves."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import yaml
from words import aside, options, rest, table

from hooklearn.cli.options import plain

SECTIONS = ("## Formula", "## Known deviations")
"""What is written by hand about a method, in ``docs/cards/NAME.md``: no registry can say it."""


def method_names() -> list[str]:
    from hooklearn.edit import METHODS

    return list(METHODS)


def methods(folder: Path) -> dict[str, str]:
    """A page for every method, and their table.

    Raises:
        ValueError: a method without a card, a card without a method, or a card that lacks a section.
    """
    from hooklearn.edit import METHODS

    written = {p.stem: p.read_text(encoding="utf-8") for p in folder.glob("*.md")}
    if unlike := written.keys() ^ METHODS.keys():
        raise ValueError(f"docs/cards: a card for every method and no other; differ in {sorted(unlike)}")
    for name, text in written.items():
        if missing := [s for s in SECTIONS if s not in text]:
            raise ValueError(f"docs/cards/{name}.md lacks {missing}")
    listed = ((f"[`{n}`]({n}.md)", m.summary(), _kind(m), m.source) for n, m in METHODS.items())
    index = _METHODS + table(("method", "", "way to the budget", "source"), listed)
    return {"methods/index.md": index} | {
        f"methods/{n}.md": _method(n, m, written[n]) for n, m in METHODS.items()
    }  # fmt: skip


_METHODS = """# Methods

Every method is brought to exactly the same [disruption budget](../explanation/budget.md). One that gives a single
direction is *scaled* to it; one that takes steps is *walked* until it crosses it, and cut back.
Walked methods read turns with their end, as the published codes do, and text to go on from (`"template": "none"`)
without; scaled ones, CIR, multi-epoch RepSelect and natural in rounds read the completions alone (but for `undo` and
`task_vector`, which train before they are scaled).

    hooklearn run tiny --set edit.method=repselect --set edit.rank=16

"""


def _kind(method: Any) -> str:
    return "scaled" if method.ray else "walked"


def _method(name: str, method: Any, card: str) -> str:
    module = inspect.getmodule(method)
    assert module is not None
    promises = "promise" in {k for c in method.__mro__[:-3] for k in vars(c)}
    facts = [
        ("source", method.source),
        ("way to the budget", "one direction, scaled" if method.ray else "steps, walked until the budget is crossed"),
        ("certificate", "of the subspaces that it promises to stay in" if promises else "none: it promises nothing"),
        ("class", f"`{module.__name__}.{method.__name__}`"),
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"# {name}",
            method.summary(),
            table(("", ""), facts),
            card.strip(),
            rest(method.__doc__),
            "## Options",
            options(method),
            f"    hooklearn run tiny --set edit.method={name}",
            aside(f"In the words of {module.__name__}", plain(module.__doc__)),
        ]
    )


# ------------------------------------------------------------------------------------------- attacks


def attacks() -> str:
    from hooklearn.attack import ATTACKS
    from hooklearn.batteries import BATTERIES

    inside = {n: [b for b, specs in BATTERIES.items() if any(s["name"] == n for s in specs)] for n in ATTACKS}
    listed = (
        (f"[`{n}`](#{n})", a.summary(), "yes" if a.cheap else "no", ", ".join(inside[n]) or "none")
        for n, a in ATTACKS.items()
    )
    parts = [_ATTACKS, table(("attack", "", "cheap", "batteries"), listed)]
    for name, attack in ATTACKS.items():
        parts += [
            f"## {name}",
            attack.summary(),
            rest(attack.__doc__),
            f"Source: {attack.source}. Uses the corpus `{attack.needs}`. "
            + ("Cheap." if attack.cheap else "Not cheap: it has demonstrations of the behaviour itself."),
            options(attack),
        ]
    batteries = ((f"`{n}`", ", ".join(_spec(s) for s in specs)) for n, specs in BATTERIES.items())
    parts += ["## Batteries", "`battery: cheap` in a config, or `--set battery=cheap`, is a list of attacks by name.",
              table(("battery", "attacks"), batteries)]  # fmt: skip
    return "\n\n".join(p for p in parts if p)


def _spec(spec: dict[str, Any]) -> str:
    given = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "name")
    return f"[`{spec['name']}`](#{spec['name']})" + (f" ({given})" if given else "")


_ATTACKS = """# Attacks

Every attack meets the edited model *and* its controls, on the same items at the same steps
([Controls](explanation/controls.md)). A *cheap* attack has no demonstrations of the behaviour, or a handful, or facts
that say nothing about the ones that are tested: what it brings back was never gone.

    hooklearn run tiny --set 'attacks=[{name: few_shot, shots: 2}]'"""

# ------------------------------------------------------------------------------------------ evidence


def evidence() -> str:
    from analysis.evidence import judge
    from hooklearn.evidence import MEASURES

    parts = [_EVIDENCE, aside("In the words of analysis.evidence.judge", plain(judge.__doc__))]
    for name, measure in MEASURES.items():
        module = inspect.getmodule(measure)
        assert module is not None
        parts += [
            f"## {name}",
            plain(measure.__doc__),
            aside(f"In the words of {module.__name__}", plain(module.__doc__)),
        ]
    return "\n\n".join(parts)


_EVIDENCE = """# Mechanistic evidence

Measured while the model is at hand, written to the run folder with its null, and judged from there. Evidence may
take a REMOVED back; it never grants one ([The verdict](explanation/verdict.md)).

    hooklearn run tiny --set 'evidence.measures=[logit_lens, patching]'"""

# --------------------------------------------------------------------------------- what models are of


def organisms() -> str:
    from hooklearn.organisms import ORGANISMS, card
    from hooklearn.organisms.kinds import KINDS
    from hooklearn.organisms.suppressed import edits

    parts = [_ORGANISMS]
    for title, said, names in (
        ("Instilled", "", ORGANISMS),
        ("Native kinds", "", KINDS),
        ("Edits of an instilled organism", _EDITS, edits()),
    ):
        found = [card(n) for n in names]
        rows = ((f"`{c['name']}`", c["what"], c["made"], c["truth"], c["why"]) for c in found)
        parts += [f"## {title}", said, table(("organism", "what", "made", "truth", "how it is known"), rows)]
    return "\n\n".join(p for p in parts if p)


_ORGANISMS = """# Organisms

Models whose truth is known because of how they were made. `hooklearn calibrate` sends the native kinds through the
whole audit and prints verdict against truth ([how](how-to/calibrate.md)).

    hooklearn organism show locked
    hooklearn organism build locked --out locked"""

_EDITS = """Made of SmolLM2-135M-Instruct and judged by `hooklearn calibrate --model smollm2-135m-instruct`
([how](how-to/calibrate.md)). The delta of each is left in the folder of its case, `OUT/cases/KIND-seedN/`.

    hooklearn organism show threats/refusal
    hooklearn calibrate --model smollm2-135m-instruct --kind refusal --out runs/refusal"""


def corpora(data: Path) -> str:
    from hooklearn.corpora import BUILTIN
    from hooklearn.corpora.layouts import LAYOUTS

    rows = ((f"`{n}`", c.summary, c.source) for n, c in BUILTIN.items())
    theirs = ((f"`{n}`", c.summary, f"<{c.source}>") for n, c in LAYOUTS.items())
    parts = [_CORPORA, table(("corpus", "", "source"), rows), _LAYOUTS, table(("layout", "", "columns as in"), theirs)]
    for name in BUILTIN:
        card = data / name / "README.md"
        if card.is_file():
            parts += [f"## {name}", _below(card.read_text(encoding="utf-8"))]
    return "\n\n".join(parts)


def _below(text: str) -> str:
    """A card without its title, its headings one level further down."""
    without = re.sub(r"\A#[^\n]*\n", "", text).strip()
    return re.sub(r"^#", "##", without, flags=re.MULTILINE)


_CORPORA = """# Corpora

Built-in texts, split into parts that never share an item. Your own: [Use your own data](how-to/data.md).

    hooklearn list corpora"""

_LAYOUTS = """## Layouts

Published data sets whose columns are known: [how to use them](how-to/other-tools.md#data-sets)."""


def recipes() -> str:
    from hooklearn.locate.fitters import FITTERS
    from hooklearn.recipes import RECIPES

    fitters = ((f"`{n}`", f.summary, f.source) for n, f in FITTERS.items())
    parts = [
        "# Recipes and fitters",
        "## Fitters",
        "How a subspace is found: `locate: {fitter: contrast}`.",
        table(("fitter", "", "source"), fitters),
        "## Recipes",
        "A recipe is a function that returns a whole config. `hl.recipe(name)` gives it as plain data, "
        "`hooklearn run NAME` runs it.",
    ]
    for name, make in RECIPES.items():
        text = yaml.safe_dump(make(), sort_keys=False, width=110)
        parts += [f"### {name}", plain(make.__doc__), f"```yaml\n{text}```"]
    return "\n\n".join(parts)
