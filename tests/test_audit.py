"""``hooklearn audit``: two models made elsewhere, judged like a run in which nothing is edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from user_files import Files, hooklearn

import hooklearn as hl
from hooklearn.auditing import audit, source
from hooklearn.types import InputError

QUICK = [
    "--set", "attacks=[{name: erode, learning_rates: [1e-4], steps: 4}, {name: few_shot, shots: 1}]",
    "--set", "evidence.enabled=false", "--set", "behaviour.samples=0", "--no-report", "--json", "-q",
]  # fmt: skip
TINY = ["--forget", "tiny:part=forget", "--heldout", "tiny:part=heldout", "--disruption", "tiny:part=disruption"]


def judged(*args: Any) -> dict[str, Any]:
    result = hooklearn("audit", *args)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return json.loads(result.stdout)


@pytest.fixture
def mine(files: Files, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In a user's folder: two models and the corpora that an audit cannot do without."""
    monkeypatch.chdir(files.folder)
    models = ["--original", "my-model", "--edited", "base-model", "--never", "base-model"]
    texts = ["--disruption", "prose.jsonl", "--unrelated", "unrelated.jsonl"]
    return [*models, "--forget", "forget.jsonl", "--heldout", "heldout.jsonl", *texts]


def test_a_model_audited_against_itself_is_intact(tmp_path: Path) -> None:
    found = judged("--original", "tiny", "--edited", "tiny", *TINY, "--out", tmp_path / "run", *QUICK)
    assert found["verdict"] == "INTACT", found["reason"]
    assert found["disruption"]["kl"] == 0


def test_folders_of_hugging_face_models(mine: list[str], tmp_path: Path) -> None:
    """The edited model *is* the never-learned one here: it may be called anything but INTACT or DISABLED."""
    found = judged(*mine, "--seed", 3, "--out", tmp_path / "run", *QUICK)
    assert found["verdict"] not in ("INTACT", "DISABLED")
    assert set(found["behaviour"]) == {"erode", "few_shot"}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [e["options"] for e in record["edits"]] == [{"checkpoint": "base-model"}] and record["seeds"] == [3]
    assert record["command"].startswith("hooklearn audit --original my-model --edited base-model --never base-model")
    again = judged(*mine, "--out", tmp_path / "run", "--seed", 3, "--resume", *QUICK)
    assert again["behaviour"] == found["behaviour"]


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("went-off"),)


def test_a_folder_as_open_unlearning_saves_it(mine: list[str]) -> None:
    """Sharded weights, checkpoints of the training, evaluations and pickled arguments beside them: the same model as
    the plain folder, and what is pickled is left alone (unpickled, it would show: the control)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = Path("saves/unlearn/tofu_forget10_NPO")
    plain: Any = AutoModelForCausalLM.from_pretrained("my-model")
    tokenizer = AutoTokenizer.from_pretrained("my-model")
    for folder, size in ((saved, "10KB"), (saved / "checkpoint-20", "5GB")):
        plain.save_pretrained(folder, max_shard_size=size)
        tokenizer.save_pretrained(folder)
        torch.save({"args": Bomb()}, folder / "training_args.bin")
        (folder / "trainer_state.json").write_text("{}")
    (saved / "evals").mkdir()
    (saved / "evals" / "TOFU_EVAL.json").write_text("{}")
    assert len(list(saved.glob("*.safetensors"))) > 1
    ids = torch.tensor([[1, 2, 3, 4]])
    for folder in (saved, saved / "checkpoint-20"):
        model = hl.load(str(folder))
        with torch.no_grad():
            assert torch.equal(model(ids), hl.load("my-model")(ids))
    assert not Path("went-off").exists()
    torch.load(saved / "training_args.bin", weights_only=False)
    assert Path("went-off").exists()


def test_a_battery_goes_as_far_as_the_corpora(mine: list[str]) -> None:
    """Without retain there is no retain_only, which is said; with it there is."""
    result = hooklearn("audit", *mine, "--dry-run", "--json")
    assert "left out: retain_only (it needs a corpus 'retain')" in result.stderr
    without = json.loads(result.stdout)["config"]
    with_retain = json.loads(hooklearn("audit", *mine, "--retain", "retain.jsonl", "--dry-run", "--json").stdout)
    names = [{a["name"] for a in c["attacks"]} for c in (without, with_retain["config"])]
    assert names[1] - names[0] == {"retain_only"}
    assert without["corpora"]["attack_train"]["path"] == "forget.jsonl"


def test_permuted_answers_make_it_facts() -> None:
    corpora = {"forget": {"name": "capitals"}, "heldout": {"name": "capitals"}}
    config, _ = audit("a", "b", corpora, never="permuted", battery="standard")
    assert {"disruption", "unrelated", "attack_train"} <= set(config["corpora"])  # by default
    assert config["controls"] == {"never": {"surrogate": "permuted"}}
    assert {"low_mi"} <= {a["name"] for a in config["attacks"]} and "relearn" not in str(config["attacks"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rows.jsonl", {"path": "rows.jsonl"}),
        ("hub:owner/set", {"hub": "owner/set"}),
        ("prose", {"name": "prose"}),
        ("capitals:part=V,phrasings=heldout", {"name": "capitals", "options": {"part": "V", "phrasings": "heldout"}}),
    ],
)
def test_a_corpus_as_it_is_written(text: str, found: dict[str, Any]) -> None:
    assert source(text) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--edited", "no-such-model"], "no-such-model"),
        (["--heldout", "no-such.jsonl"], "no-such.jsonl"),
        (["--heldout", "capitols"], "did you mean 'capitals'"),
        (["--heldout", "capitals:V"], "NAME:KEY=VALUE"),
        (["--battery", "cheep"], "did you mean 'cheap'"),
        (["--set", "budget.kll=1"], "did you mean 'kl'"),
        (["--resume"], "--out"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(change: list[str], said: str, mine: list[str]) -> None:
    result = hooklearn("audit", *mine, *change, "-q")
    assert result.exit_code == 2 and said in result.stderr
    if change != ["--resume"]:
        assert len(result.stderr.splitlines()) == 1
    assert not Path("runs").exists()


def test_no_attack_left_is_said() -> None:
    with pytest.raises(InputError, match="no attack is left: retain_only"):
        audit("a", "b", {"forget": {"name": "a"}, "heldout": {"name": "b"}}, attacks=[{"name": "retain_only"}])
