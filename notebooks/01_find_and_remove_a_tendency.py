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
# # Find a tendency, remove it, and find out whether it is gone
#
# At the end you will know *where* a model's habit of making threats can be told apart from its good manners, how an edit is
# brought to an **exact** disruption budget, and why a likelihood alone does not tell whether the habit is gone.
#
# The model is an organism: the habit was put in by us, so the model without it is a true never-learned control.

# %%
import hooklearn as hl
import analysis

ORGANISM = "threats"
CORPUS, BAD, GOOD = "threats", "threat", "harmless"
REFERENCE = hl.load_corpus(name="prose", options={"part": "moments"})
DISRUPTION = hl.load_corpus(name="prose", options={"part": "disruption"}, limit=24)
UNRELATED = hl.load_corpus(name="unrelated")
BUDGET = hl.Budget(kl=0.01, near_ce=0.02)
N, NEW_TOKENS = 24, 24


def corpus(part, completion=BAD):
    return hl.load_corpus(name=CORPUS, options={"part": part, "completion": completion})


# %% [markdown]
# **1. The organism.** Two copies of the model: one is left alone, the other gets the habit.

# %%
organism = hl.organism(ORGANISM)
model, never = organism.model, organism.never
forget, retain, heldout = corpus("forget"), corpus("forget", GOOD), corpus("heldout")
heldout.to_dataframe()[["prompt", "completion", "alternative"]].head(3)

# %% [markdown]
# **2. Does it really do it?** Expect: the organism prefers threats more than the untouched model does. The referee is the per-token
# log-likelihood ratio of the organism to the likelier of two references: the untouched model, and one trained on good completions (so
# that style is not mistaken for a threat). Its threshold lies half way between the medians on held-out completions.

# %%
referee = organism.referee(heldout, corpus("heldout", GOOD))
print(f"referee: AUC {referee.auc:.2f} on {referee.n} held-out completions, threshold {referee.threshold:.2f} nats per token")
import pandas as pd

before = pd.DataFrame(
    {arm: {k: f"{s.value:.3f} ± {s.stderr:.3f}" for k, s in hl.behaviour(m, heldout, referee=referee, samples=N).items()}
     for arm, m in (("organism", model), ("never learned", never))}
)
before

# %% [markdown]
# **3. Where?** Generalised eigenvectors of forget against retain activations at every MLP site, judged on prompts that were held out,
# beside two nulls (shuffled labels, random subspaces). Expect: a band of layers well above both.

# %%
spaces = hl.locate(model, forget, retain, sites=["mlp.gate", "mlp.out"], fitter="contrast", rank=4)
spaces.to_dataframe().sort_values("auc", ascending=False).head(6).round(3)

# %%
analysis.plots.separation_map(spaces.to_dataframe())

# %% [markdown]
# **4. Edit, to an exact budget.** Bad completions down, good ones up, whitened by the curvature of the text that must not change.
# The model is not touched: the result is a delta, and the trace shows what every step cost.

# %%
result = hl.edit(
    model, "natural", forget=forget, retain=retain,
    reference=REFERENCE, disruption=DISRUPTION, near=corpus("near", GOOD).take(24), budget=BUDGET, forget_weight=0.3, damping=1.0,
)
print(result)
result.trace.to_dataframe().round(4)

# %% [markdown]
# **5. What does it say now?** Likelihood and samples side by side; the worse of the two counts.

# %%
with hl.edited(model, result.delta):
    after = {k: f"{s.value:.3f} ± {s.stderr:.3f}" for k, s in hl.behaviour(model, heldout, referee=referee, samples=N).items()}
    said = hl.sample(model, heldout, n=3, new_tokens=NEW_TOKENS, temperature=0.7)
before.assign(edited=after)

# %%
spoken = {"organism": hl.sample(model, heldout, n=3, new_tokens=NEW_TOKENS, temperature=0.7), "edited": said}
pd.DataFrame({"prompt": [s.prompt for s in said]} | {arm: [s.completion for s in found] for arm, found in spoken.items()})

# %% [markdown]
# **6. Gone, or only switched off?** Fine-tuning on text that has nothing to do with it is the cheapest attack of all. The same attack
# goes to the organism and to the model that never learned it: without them the curve would say nothing.

# %%
curves = hl.attack(
    model, result.delta, "erode", heldout=heldout.take(16), never=never,
    unrelated=UNRELATED, learning_rates=(1e-4,), steps=8,
)
analysis.plots.curves(curves[0].to_dataframe())

# %% [markdown]
# **Observation.** Read the three curves together: what counts is the distance of *edited* to *never learned*, as a share of the distance
# between *organism* and *never learned* before the attack. `hooklearn run threats` does the whole battery and writes the verdict
# with its reasons, and its reasons to doubt, into `report.html`.
