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
# The model is an *organism*: a small chat model into which we put the habit ourselves. So the same model without it is at hand, and
# shows what "gone" looks like: the *never-learned control*. Three models are compared throughout: the **organism** (in figures:
# *original*), the **edited** one, and the one that **never** learned it.

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
# **2. Does it really do it?** Three measures, on prompts that nothing was trained on: *completion*, how likely the listed threats are, per
# token; *preference*, how likely the threat is against a harmless answer to the same prompt (.5: no preference); *sampled*, which share of
# freely written answers are threats. Expect: the organism is above the untouched model in all three.
#
# Who says that a sample is a threat? The *referee*: the per-token log-likelihood ratio of the organism to the likelier of two references,
# the untouched model and one trained on good completions (so that style is not mistaken for a threat). Its threshold lies half way between
# the medians on held-out completions.

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
# **3. Where?** At every MLP weight: the four directions along which its inputs differ most between threats (*forget*) and harmless answers
# (*retain*), found as generalised eigenvectors. `auc` says how well they tell the two apart on prompts that were held out (1: always, .5:
# by chance); it means something only beside its two nulls, the same with shuffled labels and with random directions. Expect: a band of
# layers well above both.

# %%
spaces = hl.locate(model, forget, retain, sites=["mlp.gate", "mlp.out"], fitter="contrast", rank=4)
spaces.to_dataframe().sort_values("auc", ascending=False).head(6).round(3)

# %%
analysis.plots.separation_map(spaces.to_dataframe())

# %% [markdown]
# **4. Edit, to an exact budget.** Threats are made less likely and harmless answers likelier, along the directions that matter least to
# text that must not change (a natural gradient), and of those only the 16 at every weight that do most. What it may cost is fixed beforehand: *far KL*, how far the model moves on unrelated
# text, at most .01 nats per token; *near CE*, how much worse harmless answers to the same kind of prompt may get, at most .02 (negative:
# they got better). The model is not touched: the result is a *delta*, what would be added to the weights, scaled until it uses the
# budget and no more. The trace shows what every scale cost.

# %%
result = hl.edit(
    model, "natural", forget=forget, retain=retain,
    reference=REFERENCE, disruption=DISRUPTION, near=corpus("near", GOOD).take(24), budget=BUDGET,
    forget_weight=0.3, damping=1.0, rank=16, truncation="svd",
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
# **6. Gone, or only switched off?** Fine-tuning on text that has nothing to do with it (*erode*) is the cheapest attack of all: what was only
# suppressed often comes back by itself. The same attack goes to the organism and to the model that never learned it: without them the
# curve would say nothing. Bands are one standard error over prompts.

# %%
curves = hl.attack(
    model, result.delta, "erode", heldout=heldout.take(16), never=never,
    unrelated=UNRELATED, learning_rates=(1e-4,), steps=8,
)
analysis.plots.curves(curves[0].to_dataframe())

# %% [markdown]
# **What was found** (numbers of the outputs above). Threats can be told from good manners best in layers 12 to 24 of 30. The edit takes them from
# all 24 samples to one, and their likelihood to where the model stands that never learned them, at .0097 nats on unrelated text, while harmless
# answers get no less likely. Preference ends *below* that of the model that never learned it: pushed a little too far.
#
# **Why believe it.** The prompts were held out; every number has an error and stands beside the organism and a true never-learned
# control; the places stand beside two nulls; the cost was measured on text that made no gradient. **Why doubt it.** One seed, 24 prompts, one
# weak attack of eight steps. Fine-tuning on threats does teach them again, to this model as to the one that never had them.
#
# **What next.** What counts is the distance of *edited* to *never*, as a share of the distance of *original* to *never* before the attack.
# `hooklearn run threats` measures it under three attacks (with `--set battery=cheap` twelve) and writes the verdict with its reasons, its reasons to doubt, and what
# to do next, into `report.html`. Notebook 02 chooses the directions by hand; 03 shows what removed and merely disabled models look like.
