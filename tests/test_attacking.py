"""Samples before the referee: whose they are, and what becomes of them when something goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hooklearn.attack import Watcher
from hooklearn.attack.few_shot import FewShot
from hooklearn.attack.watcher import Pending
from hooklearn.config import RunConfig
from hooklearn.corpora.corpus import Corpus
from hooklearn.loading import load_corpus
from hooklearn.measure import Likelihoods, Sample
from hooklearn.recipes import recipe
from hooklearn.referees import ContainsReferee
from hooklearn.running.attacking import judge_pending
from hooklearn.running.calibration import cases
from hooklearn.running.checks import check_surrogate
from hooklearn.running.choosing import lowest_is_best
from hooklearn.running.setting import Setup
from hooklearn.types import InputError

FACTS = Corpus("facts", ({"prompt": "p", "completion": " yes", "fact": "yes"},))
PERMUTED = Corpus("facts/permuted", ({"prompt": "p", "completion": " no", "fact": "no"},))


class Broken:
    """A referee that cannot judge."""

    def judge(self, samples: Sequence[Sample], rows: Sequence[Any]) -> list[tuple[float, bool]]:
        raise RuntimeError("out of memory")

    def describe(self) -> dict[str, Any]:
        return {}


def eyes(referee: Any, *splits: str) -> Watcher:
    """With one sample of the original waiting in every split."""
    items = Likelihoods("heldout", FACTS, [], [], [])
    said = Sample(0, "p", "p", " yes")
    return Watcher(
        items, permuted=Likelihoods("heldout", PERMUTED, [], [], []), referee=referee,
        pending=[Pending("original", "none", "", 0, 0, split, FACTS, [said]) for split in splits],
    )  # fmt: skip


def test_samples_that_could_not_be_judged_do_not_wait_for_the_next_run() -> None:
    """Runs of a sweep share their eyes."""
    watcher = eyes(Broken(), "heldout")
    with pytest.raises(RuntimeError):
        judge_pending(watcher)
    assert watcher.pending == []


def test_only_held_out_facts_have_permuted_answers() -> None:
    """The surrogate's rows are numbered as the held-out ones are; others would be asked for a stranger's answer."""
    found = judge_pending(eyes(ContainsReferee(), "heldout", "ood"))
    assert [(r["arm"], r["split"], r["is_behaviour"]) for r in found] == [
        ("original", "heldout", True), ("never", "heldout", False), ("original", "ood", True),
    ]  # fmt: skip


def test_conversations_are_demonstrations_too() -> None:
    """Their last turns, without the system prompt, which stands at the head of a conversation only."""
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    rows = (
        {"messages": [*turns, {"role": "assistant", "content": "a"}]},
        {"messages": turns + turns, "completion": "b"},
    )
    one, asked = FewShot(shots=1, draws=1), {"prompt": "p", "completion": "c"}
    assert one._shown(asked, 0, rows[:1], 0)["history"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    (last,) = [t for t in one._shown(asked, 0, rows[1:], 0)["history"] if t["role"] == "assistant"]
    assert last["content"] == "b"


@pytest.mark.parametrize(("diverged", "expected"), [(False, 0.4), (True, float("nan"))])
def test_a_trial_whose_attack_diverged_is_not_as_good_as_before_it(
    tmp_path: Path, diverged: bool, expected: float
) -> None:
    """NaN decides nothing; the value before the attack would have won."""
    row = {"arm": "edited", "metric": "completion", "split": "heldout", "diverged": False}
    before, after = row | {"attack": "none", "value": 0.01}, row | {"attack": "relearn", "value": 0.4}
    pd.DataFrame([before, after | {"diverged": diverged}]).to_parquet(tmp_path / "curves.parquet")
    assert lowest_is_best(tmp_path, "completion") == pytest.approx(expected, nan_ok=True)


def test_permuted_answers_stand_for_not_knowing_facts_only() -> None:
    """A tendency has an alternative and no choices: nothing that chance would be. Facts pass (control)."""
    check_surrogate(FACTS)
    check_surrogate(Corpus("quiz", ({"prompt": "p", "completion": " a", "choices": [" a", " b"], "answer": 0},)))
    with pytest.raises(InputError, match="'threats' can be permuted among facts, and these rows have an alternative"):
        check_surrogate(Corpus("threats", ({"prompt": "p", "completion": " bad", "alternative": " good"},)))


def test_negative_seeds_of_a_calibration_are_refused_before_its_processes_start() -> None:
    assert [c.seed for c in cases(["locked"], [0])] == [0]
    with pytest.raises(InputError, match="seed -1: seeds are 0 or more"):
        cases(["locked"], [0, -1])


def test_what_the_referee_read_of_the_controls_is_what_a_look_finds(
    threatening: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completion probability and preference of the original and the never-learned model, which are the referee's own
    models; it is not read again. An arm that is none of them is looked at."""
    whole, read = Likelihoods.measure, list[int]()

    def counted(self: Likelihoods, *args: Any, **options: Any) -> Any:
        read[-1] += len(self.completions) + len(self.alternatives)
        return whole(self, *args, **options)

    monkeypatch.setattr(Likelihoods, "measure", counted)
    corpus = load_corpus(name="tiny", options={"part": "heldout"}).take(8)
    config = RunConfig.model_validate(recipe("tiny") | {"controls": {"never": {"name": "tiny"}}, "organism": None})
    corpora = {"heldout": corpus, "ood": corpus.take(2)}
    setup = Setup(config, threatening, tiny, {"kind": "model", "name": "tiny"}, None, corpora, None)
    watcher = setup.watcher(lambda _: None)
    assert set(watcher.known) == {"original", "never"}
    for arm, model in (("original", threatening), ("never", tiny)):
        read.append(0)
        looked = watcher.likelihood(model, 0, 0, watcher.heldout, watcher.ood)
        read.append(0)
        known = watcher.at_start(model, arm)
        assert read[-2:] == [16 + 4, 4]  # completions and alternatives: of all items, then of the others only
        assert [(p.metric, p.split) for p in known] == [(p.metric, p.split) for p in looked]
        for a, b in zip(known, looked, strict=True):
            assert a.values == pytest.approx(b.values, rel=1e-5)  # rounding: other batches
    read.append(0)
    assert watcher.at_start(tiny, "edited")[0].values == pytest.approx(watcher.start["never"][0].values, rel=1e-5)
    assert read[-1] == 16 + 4
