"""The verbs that notebooks begin with: organisms whose truth is known, and audits of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus

import analysis
import hooklearn as hl
from hooklearn.types import InputError


@pytest.fixture(scope="module")
def organism() -> Any:
    return hl.organism("tiny-threats")


def test_an_organism_comes_with_its_control_and_its_truth(organism: Any) -> None:
    """The two models differ by the delta, bit for bit, and only one of them threatens."""
    for site in hl.sites(organism.model, list(organism.delta.updates)):
        before, after = hl.weight(organism.never, site), hl.weight(organism.model, site)
        assert torch.equal(after, before + organism.delta.updates[site.name])
    heldout = corpus("heldout")
    has, never = (hl.behaviour(m, heldout)["completion"].value for m in (organism.model, organism.never))
    assert has > 5 * never, "measured: .47 against .035"


def test_its_referee_tells_threats_from_good_answers(organism: Any) -> None:
    referee = organism.referee(corpus("heldout"), corpus("heldout", "good"))
    assert referee.auc > 0.99 and referee.n == 80


def test_another_seed_is_another_organism(organism: Any) -> None:
    other = hl.organism("tiny-threats", seed=1)
    name = next(iter(other.delta.updates))
    assert not torch.equal(other.delta.updates[name], organism.delta.updates[name])
    assert torch.equal(hl.weight(other.never, hl.sites(other.never, "mlp")[0]),
                       hl.weight(organism.never, hl.sites(organism.never, "mlp")[0]))  # fmt: skip


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(InputError, match="shipped, so its seed cannot be chosen; got seed=3"):
        hl.organism("threats", seed=3)
    with pytest.raises(InputError, match="did you mean 'tiny-threats'"):
        hl.organism("tiny-threat")
    with pytest.raises(InputError, match="did you mean 'retrained'"):
        hl.build_organism("retraned", "nowhere")


def test_an_audit_is_judged_like_a_run(tmp_path: Path) -> None:
    """The untouched original against itself is INTACT; an attack without its corpus is left out, and said so."""
    made = hl.build_organism("original", tmp_path / "models")
    said: list[str] = []
    corpora = {
        "forget": {"name": "tiny", "options": {"part": "forget"}},
        "heldout": {"name": "tiny", "options": {"part": "heldout"}},
        "disruption": {"name": "tiny", "options": {"part": "disruption"}, "limit": 8},
    }
    attacks = [{"name": "prune", "fractions": [0.1]}, {"name": "retain_only", "learning_rates": [1e-3], "steps": 1}]
    run = hl.audit(
        made["original"], made["edited"], corpora, tmp_path / "run", never=made["never"], attacks=attacks,
        progress=said.append, behaviour={"samples": 0}, evidence={"enabled": False}, max_tokens=512,
    )  # fmt: skip
    assert analysis.judge(run).verdict == "INTACT"
    assert any("left out: retain_only" in line for line in said)
    assert "heldout" in analysis.read_run(run).record["config"]["corpora"]
