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
# # Write your own method in twenty lines
#
# At the end you will know what a method is to hooklearn, what it is given, what it gets for nothing (the exact budget, the trace, the certificate, the attacks), and how
# yours does beside two others at equal disruption.
#
# A method answers one question: **in which direction should the weights move?** How far is not its business. It yields an update per site; the solver finds the
# scale at which the budget is met. One yield is a direction of free length; a method that yields many is walked (`ray = False`).

# %%
from dataclasses import dataclass

import pandas as pd
import torch

import analysis
import hooklearn as hl

BUDGET = 0.02


def corpus(part, completion="bad", limit=None):
    return hl.load_corpus(name="tiny", options={"part": part, "completion": completion}, limit=limit)


organism = hl.organism("tiny-threats")
model, never = organism.model, organism.never
forget, retain, heldout = corpus("forget"), corpus("forget", "good"), corpus("heldout")

# %% [markdown]
# **1. The idea.** Push bad answers down and good ones up, but divide every weight's step by how much ordinary text leans on that weight. For `y = W x` the Fisher
# information of one weight is roughly `E[g_i^2] E[x_j^2]`, the diagonal of K-FAC: two vectors a site, and no matrix to invert.


# %%
@dataclass(frozen=True, kw_only=True)
class Diagonal(hl.Method):
    """Bad down, good up, every weight divided by what the retain text needs of it."""

    name, source = "diagonal", "this notebook"
    damping: float = 0.1

    def path(self, problem):
        down, up = problem.gradient("forget"), problem.gradient("retain")
        update = {}
        for site in problem.sites:
            moments = problem.retain_moments[site.name]  # labels drawn from the model: the true Fisher
            x, g = (moments.side(side).mean_second().diagonal() for side in ("x", "g"))
            needed = torch.outer(g / g.mean() + self.damping, x / x.mean() + self.damping)
            bad, good = down[site.name], up[site.name]
            update[site.name] = (bad / bad.norm() - good / good.norm()) / needed
        yield update


# %% [markdown]
# `problem` also holds `subspaces` (what `hl.locate` found), `forget_moments`, the encoded texts (`stream`), `seed`, and the model itself, which must be left as it was. A method that promises to
# stay inside a subspace says so in `promise`, and the certificate checks it on what was applied.
#
# **2. Run it beside others.** The same problem, the same budget. `without a Fisher` is the same method with so much damping that nothing is weighed: the control for the idea itself.

# %%
METHODS = {
    "gradient_ascent": "gradient_ascent",
    "without a Fisher": Diagonal(damping=1e4),
    "diagonal (ours)": Diagonal(),
    "natural": "natural",
}
results, table = {}, {}
for name, method in METHODS.items():
    results[name] = hl.edit(
        model, method, forget=forget, retain=retain, reference=corpus("text", limit=60),
        disruption=corpus("disruption", limit=24), near=corpus("near", "good", 20), budget=BUDGET,
    )
    with hl.edited(model, results[name].delta):
        found = hl.behaviour(model, heldout)
    spent = results[name].disruption
    table[name] = {"far KL": spent.kl.value, "near CE": spent.near_ce.value} | {k: s.value for k, s in found.items()}
for name, m in (("organism", model), ("never learned", never)):
    table[name] = {k: s.value for k, s in hl.behaviour(m, heldout).items()}
pd.DataFrame(table).T.round(4)

# %%
COLOURS = dict(zip(METHODS, ("#6a7079", "#b58900", "#d55e00", "#009e73")))
figure, (left, right) = analysis.style.grid(2, 2, 4.3, 3.0, (0.6, 1.25, 0.5, 0.5))
for ax, column, label in ((left, "forget", "completion probability (training items)"), (right, "near_ce", "near CE, nats per token")):
    ends = []
    for name, result in results.items():
        way = result.trace.to_dataframe().query(f"kl <= {result.disruption.kl.value * 1.0001}").sort_values("kl")
        ax.plot(way["kl"] ** 0.5, way[column], color=COLOURS[name], lw=1.8, marker="o", ms=4)
        ends.append(float(way[column].iloc[-1]))
    if column == "forget":
        ax.set_ylim(0, 0.5)
    low, high = ax.get_ylim()
    for (name, colour), y in zip(COLOURS.items(), analysis.style.spread([(e - low) / (high - low) for e in ends], 0.08)):
        ax.text(1.03, y, name, color=colour, fontsize=8.5, va="center", transform=ax.transAxes)
    ticks = [0, 0.001, 0.005, 0.01, 0.02]
    ax.set_xticks([t**0.5 for t in ticks], [f"{t:g}" for t in ticks])
    ax.set_xlabel("far KL, nats per token (root scale)")
    ax.set_ylabel(label)
analysis.style.title(left, "What a nat buys", "lower is more forgotten")
analysis.style.title(right, "What it does to good answers", "below 0 they get likelier")
figure

# %% [markdown]
# **Observation.** Compare the two middle ways: they differ in the division alone, so the distance between them (on held-out threats .39 against .34, each with a standard error of about .02) is what
# the diagonal Fisher is worth. `natural` inverts the whole factors and mixes the two gradients in that metric: its distance to ours is the price of leaving the correlations out, and the larger part of what can be had.
#
# **3. The attacks** take any delta. Unrelated text first: the cheapest attack there is.

# %%
curves = hl.attack(
    model, results["diagonal (ours)"].delta, "erode", heldout=heldout, never=never, unrelated=corpus("unrelated"), learning_rates=(1e-3,), steps=16,
)
analysis.plots.curves(curves[0].to_dataframe())

# %% [markdown]
# Nothing comes back here: training on unrelated text washes the habit out of *original* as well, and both come down together. Without the control the falling curve of *edited* would look like a merit of the edit.
#
# **4. Options are checked** by the same machinery as those of every built-in method, from Python and from a config.

# %%
try:
    Diagonal.with_options({"dampning": 0.5})
except hl.InputError as error:
    print("InputError:", error)
print(Diagonal.with_options({"damping": "0.5"}))

# %% [markdown]
# **Limits.** One organism, one seed, likelihood only (samples are the behaviour: `hl.behaviour(..., referee=organism.referee(...))` draws them), and a diagonal that is no invention of ours. A
# verdict on it: `hl.run({..., "edit": {"method": Diagonal()}}, out)` takes the object. From the command line and in files a method is known by the entry point of a package (`examples/hooklearn-example`), and a test
# should show that it beats its own control.
