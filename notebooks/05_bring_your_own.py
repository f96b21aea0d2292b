# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own model and data
#
# At the end you will know how to hand your own model (folder or hub id) and your own texts (csv, jsonl, a hub data set) to every part of hooklearn, what is
# checked before anything is computed, and how to take the edited model home.
#
# Everything is made here, in a temporary folder, so that the notebook runs without network. The files are stand-ins for yours.

# %%
import json
import os
import tempfile
from pathlib import Path

os.chdir(tempfile.mkdtemp())
os.environ["HF_DATASETS_CACHE"] = "cache"  # not into yours; and before anything imports the library

import datasets
import pandas as pd

import analysis
import hooklearn as hl

datasets.disable_progress_bars()
organism = hl.organism("tiny-threats")
hl.export(organism.model, hl.Delta({}), "my-model")  # what you have: a model with a habit
hl.export(organism.never, hl.Delta({}), "my-base")  # and, if you are lucky, the model from before
sorted(p.name for p in Path("my-model").iterdir())

# %% [markdown]
# **1. A model** is a folder as `save_pretrained` writes it, a `.gguf` file, a hub id or a built-in name. A hub id is the same call, `hl.load("HuggingFaceTB/SmolLM2-135M-Instruct")`,
# and asks the network only if the model is not in the cache; paths never do. Any causal model that TransformerLens knows will do.

# %%
model, never = hl.load("my-model"), hl.load("my-base")
[site.name for site in hl.sites(model, "mlp", layers="0-1")]

# %% [markdown]
# **2. A csv with names of its own.** Say your table calls things *question*, *threat* and *polite*. A column mapping says which is which; nothing is
# renamed on disk. `alternative` is the good answer to the same prompt: with it, preference can be measured.

# %%
def rows(part):
    bad, good = (hl.load_corpus(name="tiny", options={"part": part, "completion": c}).rows for c in ("bad", "good"))
    return [{"question": b["prompt"], "threat": b["completion"], "polite": g["completion"]} for b, g in zip(bad, good)]


for part in ("forget", "heldout", "attack"):
    pd.DataFrame(rows(part)).to_csv(f"{part}.csv", index=False)
BAD = {"prompt": "question", "completion": "threat", "alternative": "polite"}
GOOD = {"prompt": "question", "completion": "polite"}
forget, retain = hl.load_corpus(path="forget.csv", columns=BAD), hl.load_corpus(path="forget.csv", columns=GOOD)
heldout = hl.load_corpus(path="heldout.csv", columns=BAD)
print(forget, retain, heldout, sep="\n")
pd.read_csv("forget.csv").head(2)

# %% [markdown]
# **3. jsonl, plain text, chats.** Rows are `{"prompt", "completion"}`, `{"messages"}` or `{"text"}`. Only completions carry loss; chat models get their own
# template.

# %%
def text(part):
    return [row["text"] for row in hl.load_corpus(name="tiny", options={"part": part}).rows]


for name in ("text", "disruption", "unrelated"):
    Path(f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in text(name)), encoding="utf-8")
prose = hl.load_corpus(path="disruption.jsonl")
chat = hl.Corpus("chat", ({"messages": [{"role": "user", "content": "a note for anna , the ladder is missing :"}, {"role": "assistant", "content": " no hurry ."}]},))
print(prose, chat, sep="\n")

# %% [markdown]
# **4. A hub data set** is named by `hub=`, with the config, split, revision and mapping that `datasets.load_dataset` knows. A folder that holds a data set is
# opened in the same way, which is what we do here: in place of `"me/threats"` stands a folder.

# %%
Path("my-dataset").mkdir()
pd.DataFrame(rows("heldout")).to_parquet("my-dataset/test.parquet")
hl.load_corpus(hub="my-dataset", split="test", columns=BAD, limit=10)

# %% [markdown]
# **5. Mistakes are found early,** and the message says what would be right.

# %%
wrong = [
    lambda: hl.load_corpus(path="forget.csv", columns={"prompt": "questions", "completion": "threat"}),
    lambda: hl.load_corpus(path="forget.csv"),
    lambda: hl.sites(model, "mlp.gat"),
    lambda: hl.edit(model, "natural", forget=forget, retain=retain, disruption=retain, forget_wieght=1.0),
    lambda: hl.edit(model, "natural", forget=forget, retain=retain, disruption=retain),
]
for attempt in wrong:
    try:
        attempt()
    except hl.InputError as error:
        print("InputError:", error)

# %% [markdown]
# **6. A whole run of your own** is one config; the same mapping in a YAML file goes to `hooklearn run my.yaml`. `controls.never` is optional, but without it no verdict is
# better than WEAKENED.

# %%
config = {
    "name": "mine",
    "model": {"name": "my-model", "precision": "float32"},
    "controls": {"never": {"name": "my-base"}},
    "corpora": {
        "forget": {"path": "forget.csv", "columns": BAD},
        "retain": {"path": "forget.csv", "columns": GOOD},
        "near": {"path": "heldout.csv", "columns": GOOD, "limit": 20},
        "reference": {"path": "text.jsonl", "limit": 60},
        "disruption": {"path": "disruption.jsonl", "limit": 24},
        "attack_train": {"path": "attack.csv", "columns": BAD},
        "heldout": {"path": "heldout.csv", "columns": BAD},
        "unrelated": {"path": "unrelated.jsonl"},
    },
    "locate": {"rank": 4},
    "edit": {"method": "natural", "forget_weight": 0.3},
    "budget": {"kl": 0.02},
    "attacks": [{"name": "few_shot", "shots": 2}, {"name": "erode", "learning_rates": [1e-3], "steps": 16}, {"name": "relearn", "learning_rates": [1e-3], "max_steps": 8}],
    "behaviour": {"samples": 32, "new_tokens": 14},
}
run = hl.run(config, "runs/mine")
verdict = analysis.judge(run)
print(f"{verdict.verdict}: {verdict.reason}")

# %%
analysis.plots.curves(analysis.read_run(run), "preference")

# %% [markdown]
# **Observation.** The edit takes most of the preference for threats away and leaves some, which is why the verdict is no better. Each panel shows what an attack does to it, beside the same attack on
# your model as it was (*original*) and on the model from before (*never*). Where *edited* climbs towards *original* while *never* stays, the habit was still there; a few shots and unrelated
# text do not do that here. Relearning does lift it, and lifts *never* as far: at that rate threats are simply taught, which says nothing of the edit. Only the control shows the difference.
#
# **7. Take it home.** `export` writes a plain Hugging Face folder, reads it back and compares logits before it says so. The delta alone is small, and bound to
# the model it was made for.

# %%
delta = hl.load_delta(run / "delta-seed0.safetensors")
report = hl.export(model, delta, "my-edited-model")
print(f"{report.folder}: largest difference of any logit after reading back {report.max_logit_difference:.1e}")
again = hl.load("my-edited-model")
pd.DataFrame({name: {k: s.value for k, s in hl.behaviour(m, heldout).items()} for name, m in (("my-model", model), ("my-edited-model", again), ("my-base", never))}).round(3)

# %% [markdown]
# **Limits.** One seed, forty held-out rows, a model of four layers. The near budget was measured on the held-out prompts here, because the stand-in has few; keep them apart in
# your own work. For an edit made elsewhere, skip the config: `hl.audit("my-model", "theirs", corpora, "runs/theirs", never="my-base")`.
