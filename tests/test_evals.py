"""Other people's evaluations on hooked models: the real packages, and the same numbers as our own measures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import corpus
from drawn_runs import battery, write_run
from user_files import hooklearn

import analysis
import hooklearn as hl
from hooklearn import forward
from hooklearn.corpora.tiny_facts import corpus as facts
from hooklearn.data import Corpus, Encoded, encode, encode_choices
from hooklearn.deltas import Delta
from hooklearn.measure import sample
from hooklearn.referees import ContainsReferee
from hooklearn.types import InputError

SAME = 1e-4
"""nats per item: float32 sums of some ten terms, batched otherwise."""


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'hooklearn[evals]' to test its adapters")


def bent(model: Any) -> Delta:
    """An edit that moves every score."""
    update = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) / 8
    return Delta({"blocks.1.mlp.out": update}, model.cfg.model_name, hl.integrity.weights_hash(model))  # type: ignore[attr-defined]


def ours(model: Any, sequences: list[Encoded]) -> list[float]:
    return forward.sequence_logprobs(model, sequences, precision="float32")[:, 0].tolist()


# ------------------------------------------------------------------------- lm-evaluation-harness


@pytest.fixture
def lm(tiny: Any) -> Any:
    needs("lm_eval")
    from hooklearn.evals.harness import HookedLM

    return HookedLM(tiny, precision="float32")


def evaluated(lm: Any, task: Any) -> dict[str, float]:
    import lm_eval

    found = lm_eval.simple_evaluate(lm, tasks=[task], bootstrap_iters=0, log_samples=False)
    assert found is not None
    (results,) = found["results"].values()
    return {name.split(",")[0]: value for name, value in results.items() if isinstance(value, float)}


def test_the_harness_counts_as_we_do(lm: Any, tiny: Any) -> None:
    """Multiple choice through lm_eval: the items whose answer has the highest summed log-probability, by our own
    scores, and likewise under an edit."""
    from hooklearn.evals.harness import task_of

    items = facts("all").take(8)
    chosen = encode_choices(items, tiny.tokenizer)

    def by_hand() -> float:
        best: dict[int, tuple[float, int]] = {}
        for value, c in zip(ours(tiny, chosen), chosen, strict=True):
            best[c.item] = max(best.get(c.item, (-1e9, -1)), (value, c.choice))
        return sum(best[i][1] == row["answer"] for i, row in enumerate(items.rows)) / len(items)

    assert evaluated(lm, task_of(items, tiny))["acc"] == by_hand()
    with hl.edited(tiny, bent(tiny)):
        assert evaluated(lm, task_of(items, tiny))["acc"] == by_hand()


def test_the_harness_scores_what_we_score(lm: Any, tiny: Any) -> None:
    """Requests as its tasks make them: log-probability of a continuation, whether greedy decoding gives it, of a whole
    text, and generation up to a stop."""
    from lm_eval.api.instance import Instance

    items = corpus("heldout").take(4)
    sequences = encode(items, tiny.tokenizer)
    asked = [(r["prompt"], r["completion"]) for r in items.rows]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)]
    found = lm.loglikelihood(requests)
    assert max(abs(a - b) for (a, _), b in zip(found, ours(tiny, sequences), strict=True)) < SAME
    with hl.edited(tiny, bent(tiny)):
        other = lm.loglikelihood(requests)
    assert min(abs(a - b) for (a, _), (b, _) in zip(found, other, strict=True)) > 0.01  # the state is the model's
    said = sample(tiny, items, n=4, new_tokens=6, temperature=0, precision="float32")
    greedy = lm.loglikelihood([Instance("loglikelihood", {}, (s.text, f" {s.completion.strip()}"), 0) for s in said])
    assert [is_greedy for _, is_greedy in greedy] == [True] * 4 and not all(g for _, g in found)
    first, second = said[0].completion.split()[:2]
    how = {"until": [second], "max_gen_toks": 6}
    (text,) = lm.generate_until([Instance("generate_until", {}, (said[0].text, how), 0)])
    assert first in text and second not in text
    whole = tiny.tokenizer(asked[0][0], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tiny.tokenizer.bos_token_id, *whole])
    labels = torch.ones(len(ids), dtype=torch.bool)
    labels[0] = False
    (rolled,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (asked[0][0],), 0)])
    assert abs(rolled - ours(tiny, [Encoded(ids, labels, 0)])[0]) < SAME


def test_bad_and_good_completions_as_a_task(lm: Any, tiny: Any) -> None:
    """``acc`` is how often the bad completion is the likelier: 0 or 1 an item, by our own scores."""
    from hooklearn.evals.harness import task_of

    rows = zip(corpus("heldout").rows[:6], corpus("heldout", "good").rows[:6], strict=True)
    pairs = Corpus("pairs", tuple({**bad, "alternative": good["completion"]} for bad, good in rows))
    good = pairs.alternatives()
    assert good is not None
    bad_wins = [b > g for b, g in zip(*(ours(tiny, encode(c, tiny.tokenizer)) for c in (pairs, good)), strict=True)]
    assert evaluated(lm, task_of(pairs, tiny))["acc"] == sum(bad_wins) / len(bad_wins)
    with pytest.raises(InputError, match="running text is no task"):
        task_of(corpus("disruption"), tiny)


# ------------------------------------------------------------------------------------ Inspect AI


def test_a_task_of_inspect_is_answered_by_the_hooked_model(tiny: Any, tmp_path: Path) -> None:
    """The answers are ours (greedy), the scores the referee's; what was named as the model is never asked; another
    answer under an edit."""
    needs("inspect_ai")
    import inspect_ai

    from hooklearn.evals.inspector import task_of

    items = facts("all").take(4)

    def asked() -> Any:
        task = task_of(items, tiny, temperature=0.0, new_tokens=6)
        (log,) = inspect_ai.eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none")
        return log

    def answers() -> list[str]:
        return [s.completion for s in sample(tiny, items, n=4, new_tokens=6, temperature=0)]

    log = asked()
    assert log.status == "success" and [s.output.completion for s in log.samples] == answers()
    judged = ContainsReferee().judge(sample(tiny, items, n=4, new_tokens=6, temperature=0), items.rows)
    assert [s.scores["refereed"].value for s in log.samples] == [float(ruling.is_behaviour) for ruling in judged]
    with hl.edited(tiny, bent(tiny)):
        edited = asked()
        assert [s.output.completion for s in edited.samples] == answers()
    assert [s.output.completion for s in edited.samples] != [s.output.completion for s in log.samples]


def test_questions_of_inspect_are_drawn_independently(tiny: Any, tmp_path: Path) -> None:
    """The same question eight times over has several answers, and the same ones again; with one seed for all of them it
    had one, and the error of their mean was too small."""
    needs("inspect_ai")
    import inspect_ai

    from hooklearn.evals.inspector import task_of

    items = Corpus("eight times", tuple({**facts("all").rows[0], "group": str(i)} for i in range(8)))

    def answers() -> list[str]:
        task = task_of(items, tiny, temperature=1.0, new_tokens=6)
        (log,) = inspect_ai.eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none")
        return [s.output.completion for s in log.samples]

    assert len(set(answers())) > 1 and answers() == answers()


def test_a_run_as_logs_of_inspect(tmp_path: Path) -> None:
    """Read back by the real package: an arm a log, an item a sample, the rate that the run measured."""
    folder = tmp_path / "run"
    write_run(folder, attacks=battery(), items=6, seeds=(0, 1), metrics=["completion", "sampled"], splits=["heldout"])
    if importlib.util.find_spec("inspect_ai") is None:
        with pytest.raises(InputError, match=r"pip install 'hooklearn\[evals\]'"):
            analysis.inspect_logs(folder, tmp_path / "logs")
    needs("inspect_ai")
    from inspect_ai.log import read_eval_log

    samples = pd.DataFrame(analysis.read_run(folder).samples)
    paths = analysis.inspect_logs(folder, tmp_path / "logs")
    assert len(set(paths)) == samples.groupby(["attack", "setting", "arm", "step"]).ngroups
    for path in paths:
        log = read_eval_log(str(path))
        mine = samples[
            (samples["arm"] == log.eval.metadata["arm"])
            & (samples["step"] == log.samples[0].metadata["step"])
            & ((samples["attack"] + " " + samples["setting"]).str.strip() == log.eval.metadata["attack"])
        ]
        assert len(log.samples or []) == len(mine)
        rate = mine.groupby("item")["is_behaviour"].mean().mean()
        assert log.results is not None and abs(log.results.scores[0].metrics["mean"].value - rate) < 1e-12


def test_a_run_without_samples_has_no_logs(tmp_path: Path) -> None:
    needs("inspect_ai")
    write_run(tmp_path / "run", attacks=battery(), items=6, metrics=["completion"], splits=["heldout"])
    with pytest.raises(InputError, match="has no samples"):
        analysis.inspect_logs(tmp_path / "run", tmp_path / "logs")


def test_redacted_reports_give_no_texts_away(tmp_path: Path) -> None:
    result = hooklearn("report", tmp_path, "--redact", "--inspect", tmp_path / "logs")
    assert result.exit_code == 2 and "leaves out" in result.stderr and not (tmp_path / "logs").exists()
