"""The glossary: the words that the report explains when they are pointed at, and those of code and prose."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, nodes

IN_PROSE = {
    "arm": "One of the models under the same attack: edited, original, never or matched.",
    "benign": (
        "A second model that never had the behaviour: the never-learned one after it was taught good answers in the "
        "form of the bad ones. The probe for the tendency is told of it, or it would take that form for the behaviour."
    ),
    "budget": (
        "The far disruption that every method is allowed, and optionally a near one. Methods are compared at "
        "exactly this value."
    ),
    "control": (
        "The same attack on a model that was not edited (original) and on one that never had the thing (never)."
    ),
    "curve": "Behaviour against attack steps, with n and standard error, and the same attack on the controls.",
    "delta": "What an edit adds to the weights: site → update, bound to one base model by its hash.",
    "forget, retain": (
        "Completions that must become unlikely; good completions to the same prompts, or other facts of the same form."
    ),
    "heldout, ood": "Items that no edit and no attack trains on; those of another form or setting.",
    "moments": (
        "n, sum and second moment of one side of one site for one class of text, over unmasked positions, per token."
    ),
    "nats": "The unit of all losses and divergences here: natural logarithms, per token.",
    "organism": "A model whose truth is known because of how it was made.",
    "subspace": "An orthonormal basis on one side of a site, its values, and how it was fitted.",
    "tape": "The inputs and output gradients of one site for one batch; padding is already gone.",
    "T and V": (
        "Facts that the attacker retrains on (T), and other facts, about which T says nothing, that are tested (V)."
    ),
    "update": "One matrix per site, d_out × d_in, whatever the architecture stores.",
    "verdict": (
        "INTACT, WEAKENED, DISABLED, REMOVED, ROBUSTLY REMOVED or UNDECIDED, with the numbers that decided it."
    ),
}
"""Words without a place in the report."""


def of_report() -> dict[str, str]:
    """What the report's own template explains: one source for its pop-ups and for this page."""
    source = (files("analysis") / "report.html.j2").read_text(encoding="utf-8")
    for assignment in Environment().parse(source).find_all(nodes.Assign):
        if getattr(assignment.target, "name", None) == "glossary":
            return assignment.node.as_const()
    raise ValueError("analysis/report.html.j2 sets no 'glossary' any more: tell docs/making/glossary.py where it is")


def page() -> str:
    words = {**IN_PROSE, **of_report()}
    entries = (f"**{word}**{{: #{_anchor(word)} }}\n:   {words[word]}" for word in sorted(words, key=str.lower))
    return "\n\n".join(["# Glossary", *entries])


def _anchor(word: str) -> str:
    return word.lower().replace(",", "").replace(" ", "-")
