"""``hooklearn audit``: two models made elsewhere, judged like a run in which nothing is edited."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from user_files import Files, hooklearn

import analysis
import hooklearn as hl
from hooklearn.config_file import with_overrides
from hooklearn.running.auditing import audit, corpora_of, source
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


def test_nobody_set_a_budget(mine: list[str], tmp_path: Path) -> None:
    """So none is kept or broken, and no page tells of an edit that was not made; one that is set is held to (the
    control). The edited model *is* the never-learned one here, which is told too."""
    how = [*QUICK[:-3], "--json", "-q", "--set", "attacks=[{name: few_shot, shots: 1}]"]
    runs = [tmp_path / "free", tmp_path / "set"]
    found = judged(*mine, "--out", runs[0], *how)
    judged(*mine, "--out", runs[1], *how, "--set", "budget.kl=1e-6")
    free, held = (json.loads((run / "run.json").read_text()) for run in runs)
    assert found["disruption"]["kl"] > 0 and found["disruption"]["budget"] == {"kl": None, "near_ce": None}
    assert free["config"]["edit"]["method"] is None and free["config"]["budget"]["kl"] is None
    assert [e["edits"][0]["within_budget"] for e in (free, held)] == [None, False]
    doubts = ["\n".join(analysis.judge(run).doubts) for run in runs]
    assert "budget" not in doubts[0] and "budget broken" in doubts[1]
    assert all("nothing but the control was judged" in text for text in doubts)
    card, page = ((runs[0] / name).read_text() for name in ("README.md", "report.md"))
    assert "base-model, edited elsewhere" in card and "delta-seed" not in card
    assert "budget: none was set" in page and "edit: checkpoint base-model" in page
    beside = analysis.compare(runs[:1])
    assert list(beside.table["method"]) == ["checkpoint base-model"]
    assert beside.notes[0].endswith("had no budget, so it is not at equal disruption")


def test_the_log_says_that_nothing_is_edited(mine: list[str], tmp_path: Path) -> None:
    result = hooklearn("audit", *mine, "--out", tmp_path / "run", *QUICK[:-1])
    assert "edit (seed 0): none, base-model is judged as it is" in result.stderr


def test_an_adapter_is_audited_as_it_is(mine: list[str], tmp_path: Path) -> None:
    """As peft saves it: judged like the model that peft merges it into (its hash), and priced; it is no model."""
    peft = pytest.importorskip("peft", reason="pip install 'hooklearn[peft]'")
    plain: Any = AutoModelForCausalLM.from_pretrained("my-model")
    config = peft.LoraConfig(r=2, target_modules=["gate_proj", "q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(plain, config)
    adapted.save_pretrained("adapter")
    assert not Path("adapter/config.json").exists()
    adapted.merge_and_unload().save_pretrained("merged")
    AutoTokenizer.from_pretrained("my-model").save_pretrained("merged")
    runs = {name: judged(*mine, "--edited", name, "--out", tmp_path / name, *QUICK) for name in ("adapter", "merged")}
    kl = [found["disruption"]["kl"] for found in runs.values()]
    assert kl[0] > 0 and kl[0] == pytest.approx(kl[1], rel=1e-4)
    record = json.loads((tmp_path / "adapter" / "run.json").read_text())
    assert record["checkpoint"]["name"] == "adapter" and record["checkpoint"]["hash"] != record["model"]["hash"]
    assert hooklearn("audit", *mine, "--edited", "adapter", "--dry-run", "-q").exit_code == 0
    result = hooklearn("audit", *mine, "--never", "adapter", "-q")
    assert result.exit_code == 2 and "a PEFT adapter and no model" in result.stderr


def test_a_folder_without_a_tokenizer_is_one_line(mine: list[str]) -> None:
    for file in Path("base-model").glob("tokenizer*"):
        file.unlink()
    result = hooklearn("audit", *mine, "-q")
    assert result.exit_code == 2 and "'base-model': no tokenizer in this folder" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_all_are_asked_with_the_tokenizer_of_the_original(mine: list[str], tmp_path: Path) -> None:
    """An edited checkpoint whose files have another chat template answers the same prompts, and the verdict says so;
    with the same template (the control) there is nothing to say. A run is not resumed with another one."""
    for name in ("same", "other"):
        shutil.copytree("base-model", name)
    tokenizer = AutoTokenizer.from_pretrained("other")
    tokenizer.chat_template = "{% for m in messages %}w1 w2 {{ m['content'] }} w3{% endfor %}"
    tokenizer.save_pretrained("other")
    seen = [
        *QUICK, "--set", "attacks=[]", "--set", "behaviour={samples: 2, referee: {pattern: w}}", "--set", "budget.kl=1"
    ]  # fmt: skip
    records, said = [], []
    for name in ("same", "other"):
        judged(*mine, "--edited", name, "--out", tmp_path / name, *seen)
        records.append(json.loads((tmp_path / name / "run.json").read_text()))
        rows = [json.loads(line) for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        said.append([{k: v for k, v in row.items() if k in ("arm", "item", "prompt", "completion")} for row in rows])
    assert said[0] == said[1] and {row["arm"] for row in said[0]} == {"edited", "original", "never"}
    assert [r.get("tokenizers") for r in records] == [None, {"edit.checkpoint": ["chat template"]}]
    doubts = ["\n".join(analysis.judge(tmp_path / name).doubts) for name in ("same", "other")]
    assert ["another chat template" in text for text in doubts] == [False, True]
    assert hooklearn("audit", *mine, "--edited", "same", "--out", tmp_path / "same", "--resume", *seen).exit_code == 0
    tokenizer.save_pretrained("my-model")
    result = hooklearn("audit", *mine, "--edited", "same", "--out", tmp_path / "same", "--resume", *seen)
    assert result.exit_code == 2 and "began with another tokenizer, or chat template" in result.stderr


def test_another_tokenizer_is_told_from_a_padded_embedding(mine: list[str]) -> None:
    """The same tokens and more rows are padding, and it is said how to take it off; the same tokens with other numbers
    are another tokenizer."""
    shutil.copytree("base-model", "padded")
    plain: Any = AutoModelForCausalLM.from_pretrained("padded")
    plain.resize_token_embeddings(48)
    plain.save_pretrained("padded")
    result = hooklearn("audit", *mine, "--edited", "padded", *QUICK)
    assert result.exit_code == 2 and "embedding padded to 48 rows, where the model's has 46" in result.stderr
    assert "resize_token_embeddings(46)" in result.stderr and len(result.stderr.splitlines()) == 1
    shutil.copytree("base-model", "swapped")
    file = Path("swapped/tokenizer.json")
    told = json.loads(file.read_text())
    vocab = told["model"]["vocab"]
    vocab["w7"], vocab["w8"] = vocab["w8"], vocab["w7"]
    file.write_text(json.dumps(told))
    result = hooklearn("audit", *mine, "--edited", "swapped", *QUICK)
    assert result.exit_code == 2 and "2 tokens differ, such as 'w7' (number 14 there, 13 in" in result.stderr


def test_models_of_another_shape(mine: list[str], tmp_path: Path) -> None:
    """No edit of the model, and refused as one, before anything is measured; as a control it is attacked, by what reads
    states too, and the verdict says what was not compared. Of the same shape (the other control) it has nothing to say.
    """
    small = LlamaConfig.from_pretrained("base-model", num_hidden_layers=1, hidden_size=16)
    LlamaForCausalLM(small).save_pretrained("small")
    AutoTokenizer.from_pretrained("base-model").save_pretrained("small")
    result = hooklearn("audit", *mine, "--edited", "small", "--out", tmp_path / "no", *QUICK)
    assert result.exit_code == 2 and not (tmp_path / "no").exists()
    assert (
        "edit.checkpoint 'small' is of another shape" in result.stderr
        and "q_proj.weight is [32, 16], and" in result.stderr
    )
    quick = [*QUICK, "--set", "attacks=[{name: ablate_direction}]"]
    doubts = {}
    for never in ("small", "my-model"):
        judged(*mine, "--never", never, "--out", tmp_path / never, *quick)
        doubts[never] = "\n".join(analysis.judge(tmp_path / never).doubts)
    assert ["of another shape (model.layers.0" in doubts[name] for name in doubts] == [True, False]
    result = hooklearn("audit", *mine, "--never", "small", *QUICK, "--set", "attacks=[{name: logit_lens}]")
    assert result.exit_code == 2 and "blocks 1; the model has 1 in all" in result.stderr


def test_a_layout_for_all_files_or_for_one() -> None:
    """Running text and what is built in keep their own shape; one role's own layout comes before that of all."""
    texts = {"forget": "f.jsonl", "heldout": "h.jsonl", "disruption": "p.jsonl", "ood": "tiny:part=ood"}
    found = corpora_of(["heldout=tofu-paraphrased", "tofu"], **texts)
    layouts = {role: corpus.get("layout") for role, corpus in found.items()}
    assert layouts == {"forget": "tofu", "heldout": "tofu-paraphrased", "disruption": None, "ood": None}
    assert corpora_of(["disruption=trl"], **texts)["disruption"]["layout"] == "trl"
    for wrong in ("ood=tofu", "retain=tofu"):
        with pytest.raises(InputError, match=f"--layout '{wrong}'.*forget, heldout, disruption"):
            corpora_of([wrong], **texts)


def test_rows_of_tofu_on_a_model_without_a_template(mine: list[str], tmp_path: Path) -> None:
    """One option for all of them; nothing runs together, and no doubt says so (without a layout, the control, one)."""
    rows = [json.loads(line) for line in Path("heldout.jsonl").read_text().splitlines()]
    for name in ("forget", "heldout"):
        asked = [{"question": f"w{i} w1", "answer": r["completion"].strip()} for i, r in enumerate(rows)]
        Path(f"{name}-tofu.jsonl").write_text("\n".join(map(json.dumps, asked)))
    files = ["--forget", "forget-tofu.jsonl", "--heldout", "heldout-tofu.jsonl"]
    columns = "{prompt: question, completion: answer}"
    by_hand = [w for r in ("forget", "heldout", "attack_train") for w in ("--set", f"corpora.{r}.columns={columns}")]
    for name, how in (("layout", ["--layout", "tofu"]), ("by hand", by_hand)):
        judged(*mine, *files, *how, "--out", tmp_path / name, *QUICK)
        doubts = [d for d in analysis.judge(tmp_path / name).doubts if "without a space" in d]
        assert len(doubts) == (name == "by hand")
    assert "--layout tofu" in json.loads((tmp_path / "layout" / "run.json").read_text())["command"]


def test_a_battery_goes_as_far_as_the_corpora(mine: list[str]) -> None:
    """Without retain there is no retain_only, which is said; with it there is."""
    result = hooklearn("audit", *mine, "--dry-run", "--json")
    assert "left out: retain_only (it needs a corpus 'retain')" in result.stderr
    without = json.loads(result.stdout)["config"]
    with_retain = json.loads(hooklearn("audit", *mine, "--retain", "retain.jsonl", "--dry-run", "--json").stdout)
    names = [{a["name"] for a in c["attacks"]} for c in (without, with_retain["config"])]
    assert names[1] - names[0] == {"retain_only"}
    assert without["corpora"]["attack_train"]["path"] == "forget.jsonl"
    assert without["battery"] == "cheap" and without["behaviour"]["samples"] == 96


def test_permuted_answers_make_it_facts() -> None:
    corpora = {"forget": {"name": "capitals"}, "heldout": {"name": "capitals"}}
    with pytest.raises(InputError, match="attack_train.* would teach the very answers"):
        audit("a", "b", corpora, never="permuted", battery="standard")
    prompted = [{"name": "prefill"}]  # nothing is taught: nothing is missing
    assert audit("a", "b", corpora, never="permuted", attacks=prompted)[0]["attacks"] == prompted
    corpora["attack_train"] = {"name": "capitals"}
    config, _ = audit("a", "b", corpora, never="permuted", battery="standard")
    assert {"disruption", "unrelated", "attack_train"} <= set(config["corpora"])  # by default
    assert config["controls"] == {"never": {"surrogate": "permuted"}}
    assert {"low_mi"} <= {a["name"] for a in config["attacks"]} and "relearn" not in str(config["attacks"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rows.jsonl", {"path": "rows.jsonl"}),
        ("hub:owner/set", {"hub": "owner/set"}),
        ("hub:owner/set-v1.5", {"hub": "owner/set-v1.5"}),
        ("prose", {"name": "prose"}),
        ("capitals:share=0.5", {"name": "capitals", "options": {"share": "0.5"}}),
        ("here", {"path": "here"}),
        ("here.txt", {"path": "here.txt"}),
        ("capitals:part=V,phrasings=heldout", {"name": "capitals", "options": {"part": "V", "phrasings": "heldout"}}),
    ],
)
def test_a_corpus_as_it_is_written(
    text: str, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is there is one, whatever it is called; a folder called like a built-in corpus is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prose").mkdir()
    for name in ("here", "here.txt"):
        (tmp_path / name).touch()
    assert source(text) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--edited", "no-such-model"], "no-such-model"),
        (["--heldout", "no-such.jsonl"], "not found: no-such.jsonl (relative paths start from /"),
        (["--heldout", "./my-model"], "'my-model' is a folder; give a file in it"),
        (["--heldout", "capitols"], "did you mean 'capitals'"),
        (["--heldout", "capitals:V"], "NAME:KEY=VALUE"),
        (["--battery", "cheep"], "did you mean 'cheap'"),
        (["--set", "budget.kll=1"], "did you mean 'kl'"),
        (["--set", "edit.method=natural"], "one or the other"),
        (["--set", "edit.rank=4"], "edit.rank would change nothing"),
        (["--set", "battery=standard"], "--battery NAME"),
        (["--layout", "heldout=tofo"], "did you mean 'tofu'"),
        (["--resume"], "--out"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(change: list[str], said: str, mine: list[str]) -> None:
    result = hooklearn("audit", *mine, *change, "-q")
    assert result.exit_code == 2 and said in result.stderr
    if change != ["--resume"]:
        assert len(result.stderr.splitlines()) == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(("role", "why"), [("forget", "trained on"), ("heldout", "would count as damage")])
def test_disruption_is_not_measured_on_the_behaviour(mine: list[str], role: str, why: str, tmp_path: Path) -> None:
    """Nothing is edited, and yet the text is no measure of what the edit cost; told by a dry run as well."""
    behaviour = mine[mine.index(f"--{role}") + 1]
    mine = [*mine, "--forget", "relearn.jsonl"] if role == "heldout" else mine  # the user's forget holds its items
    for how in (["--dry-run"], ["--out", tmp_path / "run", *QUICK]):
        result = hooklearn("audit", *mine, "--disruption", behaviour, *how)
        assert result.exit_code == 2 and not (tmp_path / "run").exists()
        said = result.stderr.splitlines()[-1]
        assert f"rows of the far disruption corpus '{role}' are also in {role}" in said and why in said


def test_no_attack_left_is_said() -> None:
    with pytest.raises(InputError, match="no attack is left: retain_only"):
        audit("a", "b", {"forget": {"name": "a"}, "heldout": {"name": "b"}}, attacks=[{"name": "retain_only"}])


def test_the_checkpoint_of_the_example_is_audited(mine: list[str], tmp_path: Path) -> None:
    """Made by Transformers' Trainer in a process without hooklearn (``examples/audit/unlearn.py``)."""
    script = Path(__file__).parent.parent / "examples/audit/unlearn.py"
    out = tmp_path / "unlearned"
    options = ["--epochs", "2", "--learning-rate", "3e-3", "--batch", "4"]
    made = subprocess.run(
        [sys.executable, "-I", str(script), "my-model", "forget.jsonl", "retain.jsonl", str(out), *options],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    models = ["--original", "my-model", "--edited", out, "--never", "base-model"]
    found = judged(*models, *mine[6:], "--out", tmp_path / "run", *QUICK)
    levels = {arm: levels["before"] for arm, levels in found["behaviour"]["erode"].items()}
    assert levels["edited"] < levels["original"] / 2, "it was trained against the forget text"
    assert found["disruption"]["kl"] > 0.01, "and nothing held it to a budget"


def test_own_attacks_are_asked_what_they_need_and_not_those_of_the_battery(mine: list[str]) -> None:
    """Facts without an attacker's: refused where an attack would teach the answers, and only there."""
    at = mine.index("--never") + 1
    own = ["audit", *mine[:at], "permuted", *mine[at + 1 :], "--dry-run", "-q", "--set"]
    fine, taught = (hooklearn(*own, f"attacks=[{{name: {one}}}]") for one in ("quantize", "relearn"))
    assert "would teach the very answers" not in fine.stderr
    assert taught.exit_code == 2 and "with those of forget relearn would teach" in taught.stderr
    behind = hooklearn("audit", *mine, "--dry-run", "-q", "--set", "controls.never.surrogate=permuted")
    assert behind.exit_code == 2 and "--never here" in behind.stderr


def test_what_the_attacker_has_is_a_corpus_of_its_own() -> None:
    """Cut to eight rows, it leaves what was to be forgotten as it is."""
    config, _ = audit("tiny", "tiny", {"forget": {"name": "tiny", "options": {"part": "forget"}}})
    cut = with_overrides(config, ["corpora.attack_train.options.part=attack"])
    assert cut["corpora"]["forget"]["options"] == {"part": "forget"}


def test_attacks_of_an_audit_may_be_names() -> None:
    from hooklearn.api import _section

    assert _section("erode") == {"name": "erode"} and _section({"name": "erode", "steps": 3})["steps"] == 3
