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
# # A mechanistic report, step by step
#
# At the end you will be able to read (and to doubt) every part of a report: what the edit cost, what came back, what the layers still hold, which null each number is
# held to, and how these make one verdict. The example is an edit that **looks like a success**.

# %%
import os
import tempfile
from pathlib import Path

import pandas as pd

import analysis
import hooklearn as hl

os.chdir(tempfile.mkdtemp())
config = hl.recipe("tiny") | {
    "attacks": [{"name": "relearn", "learning_rates": [1e-3], "epochs": 4}, {"name": "few_shot", "shots": 2}],
    "locate": {"fitter": "contrast", "rank": 4, "tokens": 20_000},
}
del config["corpora"]["ood"]
folder = hl.run(config, "runs/tiny")
run = analysis.read_run(folder)
run

# %% [markdown]
# **1. The first impression.** A tiny model that answers requests with threats was edited within 0.01 nats of far KL. `never` is the same model without the habit.

# %%
edit = run.edits[0]
print(f"{edit['method']}, stopped by: {edit['stop']}; far KL {edit['disruption']['kl']:.4f} of {edit['budget']['kl']}, near CE {edit['disruption']['near_ce']:+.3f}")
analysis.summary_table(run).set_index("arm").T.round(3)

# %% [markdown]
# Hardly a sample of the edited model is a threat any more, at a hundredth of a nat. Likelihood and preference are less impressed; the worst measure counts.

# %%
analysis.plots.samples_rate(run)

# %% [markdown]
# **2. Look inside, layer by layer.** Three questions, each asked of all arms. *Logit lens*: do the hidden states after a layer, read by the original's own decoder, already spell the
# held-out threats? *Patching*: put the edited model's states into the original at that layer, and let it go on: does it threaten? *Probe*: a direction that separates the
# original from two models that never had the tendency **before the first word of the answer**; where does the edited one stand? One of the two is *never*, the other, *benign*, is *never* after it was taught good answers: without it the
# direction could be the form of the answers. `relearned` is the edited model after a short attack.

# %%
analysis.by_layer(run)

# %% [markdown]
# Read *edited* against its two neighbours, never alone. In the lower layers it has hardly left *original*; only towards the top does it come down, about a third of the way to *never*. The probe finds it close to
# *original* in every layer: before it answers kindly, the model is in the state in which it used to threaten.
#
# **3. Numbers with their nulls.** One row per measure: the value, the middle 95 % of its null, p, and the share that was kept, with an interval. Evidence that *decides* may take a removal back; it never grants one.

# %%
found = analysis.evidence_table(run)
found[["name", "role", "value", "null", "null_low", "null_high", "p", "kept", "kept_low", "kept_high", "reading"]].round(3)

# %%
for name, meaning in found.loc[found["role"] == "decides", ["name", "meaning"]].itertuples(index=False):
    print(f"{name}: {meaning}\n")

# %% [markdown]
# **4. Does it come back?** The same attack on all three models. Relearning lifts *edited*, and lifts *never* as far: at this rate threats are simply taught, and the curve says nothing of the edit. Two demonstrations in
# the prompt lift it a little, and *never* hardly at all.

# %%
analysis.plots.curves(run, "preference")

# %% [markdown]
# **5. Along which directions?** Before the edit the run had located, at every weight, four directions along which threats stand out from good answers. Expect a removal to act on them and a return to write them again.
# Dashed is what a random direction would hold.

# %%
analysis.energy_by_component(run)

# %%
analysis.reemergence(run)

# %% [markdown]
# **Observation.** The components hold up to a fifth of the energy of threats and next to nothing of good answers (below a thousandth), yet edit and attacker lie at the dashed line: neither works along them in particular. What tells
# the texts apart is not what this edit acts on (notebook 02: separation is not causation). In the last layer the edit leaves a fifth of the distance between the classes, and relearning brings it to two thirds, less than the
# never-learned model reaches, while the samples above are all back: **the behaviour returned, these directions did not**. In layers 1 and 2 the distance was hardly touched, and grows under the attack in the edited and the never-learned model.
#
# **6. The verdict** is a rule, and says which number fired it. The reasons to doubt are part of it.

# %%
verdict = analysis.judge(run)
print(f"{verdict.verdict}: {verdict.reason}\n")
for doubt in verdict.doubts:
    print("-", doubt)

# %%
analysis.plots.verdict_strip(analysis.read_run(folder))

# %% [markdown]
# **7. The report** is one file that opens by double click, without network; `verify` reads it back, hashes the run folder and computes table and verdict again.

# %%
page = analysis.report(folder)
print(f"{page.name}: {page.stat().st_size / 1024:.0f} kB;", "also", ", ".join(sorted(p.name for p in Path(folder).glob("report.*") if p != page)))
again = analysis.verify(page)
print("verified:" if again.ok else "differs:", ", ".join(again.checked or again.differences))

# %% [markdown]
# **What to take home.** The samples said *gone*; likelihood and preference said *a third is left*; the layers said *two thirds to nine tenths*. Samples are blind to what is held back by a margin, likelihood to what stops
# before the exit. So the verdict rests on the worst of three behaviours under every attack, and mechanistic evidence may veto a removal: had the curves said REMOVED here, three measures would have taken it back.
#
# **Limits.** One edit, one seed, forty held-out requests, a model of four layers. The converse does not hold: evidence that finds nothing does not prove a removal (in notebook 03 the refusing
# model is DISABLED, and these three measures do not speak against a removal there). A probe finds what is linear, the lens what the decoder can read.
