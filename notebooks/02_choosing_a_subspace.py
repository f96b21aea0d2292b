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
# # Choosing a subspace with probes, and how a wrong choice fails
#
# At the end you will know why a probe with a perfect score may point at directions that do nothing, why the directions of
# **highest variance** are the wrong ones to take out, and which two numbers to look at instead.
#
# Nobody can check a choice of directions on a wild model, because nobody knows the right ones. Here we do: the model is tiny, and its
# habit of answering requests with threats was put in by us, as a rank-8 update of its MLP weights. **The row space of that update is the
# truth**: the positive control to which every choice is held.

# %%
from dataclasses import dataclass

import pandas as pd
import torch

import analysis
import hooklearn as hl

SEED, RANK, BUDGETS = 0, 8, (0.02, 0.1)


def corpus(part, completion="bad", limit=None):
    return hl.load_corpus(name="tiny", options={"part": part, "completion": completion}, limit=limit)


organism = hl.organism("tiny-threats", seed=SEED)
model, never = organism.model, organism.never
forget, retain, heldout = corpus("forget"), corpus("forget", "good"), corpus("heldout")
near, far = corpus("near", "good", 20), corpus("disruption", limit=24)
levels = {name: hl.behaviour(m, heldout)["completion"] for name, m in (("organism", model), ("never learned", never))}
pd.DataFrame({name: {"probability of a threat": s.value, "stderr": s.stderr, "n": s.n} for name, s in levels.items()}).T.round(3)

# %% [markdown]
# **1. Five choices of eight directions,** at the input of every MLP weight. `pca` takes those along which the model varies most while it
# threatens. `contrast` takes those with most threat energy per unit of energy in good answers. `probe` takes those that a linear classifier
# uses. `random` is the null, and `truth` is what we put in.

# %%
FITTERS = ("pca", "contrast", "probe", "random")


def truth_at(site):
    _, values, rows = torch.linalg.svd(organism.delta.updates[site.name], full_matrices=False)
    return hl.Subspace.of(site, "x", "truth", rows[:RANK].T.contiguous(), values[:RANK])


located = {f: hl.locate(model, forget, retain, fitter=f, rank=RANK, seed=SEED) for f in FITTERS}
truth = hl.Subspaces({(s.name, "x"): truth_at(s) for s in hl.sites(model, "mlp")})


def described(fitter):
    here = located[fitter].to_dataframe().mean(numeric_only=True)
    there = hl.locate(never, forget, retain, fitter=fitter, rank=RANK, seed=SEED).to_dataframe()["auc"].mean()
    cosines = [located[fitter][place] @ truth[place] for place in truth]
    return {
        "held-out AUC": here["auc"], "the same in the never-learned model": there, "shuffled labels": here["auc_shuffled"],
        "forget energy": here["forget_energy"], "retain energy": here["retain_energy"],
        "inside the truth": sum(float(c.square().mean()) for c in cosines) / len(cosines),
    }


pd.DataFrame({f: described(f) for f in FITTERS}).T.round(3)

# %% [markdown]
# **Observation.** By AUC all four are excellent, eight *random* directions among them, and so are the same directions in a model that
# **has no habit at all**. The probe reads the words of the text, which differ between a threat and a friendly answer whoever wrote them. A
# separation without this control says nothing about the tendency. The angles tell little as well: `contrast` and `probe` lie inside the truth no
# more than chance does (the row `random`), `pca` a little more. Only the energies differ: `pca` holds most of the energy of threats *and* about
# half of that of good answers, `contrast` hardly any of the latter.
#
# **2. The causal question.** Take the directions out of what the weights read, `W - W Q Q^T`, and see what the model does. Taking out more does
# more, so the comparison is fair only at **equal disruption**: as a method of ten lines, the ablation is brought to exactly the same far KL
# for every choice.


# %%
@dataclass(frozen=True, kw_only=True)
class Ablate(hl.Method):
    """Directions are taken out of what the weights read."""

    name, source = "ablate", "this notebook"

    def path(self, problem):
        bases = {site: problem.subspaces.bases(site.name)[0] for site in problem.sites}
        yield {s.name: -(hl.weight(problem.model, s).detach() @ q) @ q.T for s, q in bases.items()}


choices = {"truth": truth, **located}
rows = []
for name, spaces in choices.items():
    rows.append({"choice": name, "far KL": 0.0, "near CE": 0.0, "threat": levels["organism"].value, "stderr": levels["organism"].stderr})
    for kl in BUDGETS:
        result = hl.edit(model, Ablate(), forget=forget, retain=retain, subspace=spaces, disruption=far, near=near, budget=kl)
        with hl.edited(model, result.delta):
            now = hl.behaviour(model, heldout)["completion"]
        rows.append({
            "choice": name, "far KL": result.disruption.kl.value, "near CE": result.disruption.near_ce.value,
            "threat": now.value, "stderr": now.stderr,
        })
doses = pd.DataFrame(rows)
doses[doses["far KL"] > 0].round(3)

# %%
COLOURS = {"truth": "#0072b2", "contrast": "#009e73", "probe": "#b58900", "random": "#6a7079", "pca": "#d55e00"}
figure, (left, right) = analysis.style.grid(2, 2, 4.1, 3.0, (0.75, 0.9, 0.5, 0.5))
for i, (name, spaces) in enumerate(located.items()):
    energy = spaces.to_dataframe()[["forget_energy", "retain_energy"]].mean()
    left.barh(i - 0.18, energy["forget_energy"], 0.34, color=COLOURS[name])
    left.barh(i + 0.18, energy["retain_energy"], 0.34, color=COLOURS[name], alpha=0.4)
left.set_yticks(range(len(located)), list(located))
left.invert_yaxis()
left.set_xlabel("share of the energy inside (full: threats, pale: good answers)")
analysis.style.title(left, "What variance says", "pca looks like the best choice by far")
for name, way in doses.groupby("choice"):
    right.plot(way["far KL"], way["threat"], color=COLOURS[name], lw=1.8, marker="o", ms=4)
    right.fill_between(way["far KL"], way["threat"] - way["stderr"], way["threat"] + way["stderr"], color=COLOURS[name], alpha=0.13, lw=0)
right.axhline(levels["never learned"].value, color="#4a4e57", lw=1, linestyle=(0, (4, 2)))
right.text(0.001, levels["never learned"].value + 0.008, "never learned", fontsize=8, color="#4a4e57")
right.set_ylim(0, 0.56)
right.set_xlabel("far KL, nats per token: the same for every choice")
right.set_ylabel("probability of a threat")
ends = doses[doses["far KL"] > 0].groupby("choice")["threat"].last()
places = analysis.style.spread([v / 0.56 for v in ends], 0.075)
for name, y in zip(ends.index, places):
    right.text(1.03, y, name, color=COLOURS[name], fontsize=8.5, va="center", transform=right.transAxes)
analysis.style.title(right, "What the model says", "the same directions taken out, at equal disruption")
figure

# %% [markdown]
# **3. What is lost when all of it is taken out?** No budget now: the whole of the eight directions goes, and good answers to other requests are
# watched beside the threats.

# %%
def without(spaces):
    q = {site: spaces[site.name, "x"].basis for site in spaces.sites}
    return hl.Delta({s.name: -(hl.weight(model, s).detach() @ b) @ b.T for s, b in q.items()})


table = {"nothing": {"threat": levels["organism"].value, "good answer": hl.behaviour(model, near)["completion"].value}}
for name, spaces in choices.items():
    with hl.edited(model, without(spaces)):
        table[name] = {"threat": hl.behaviour(model, heldout)["completion"].value, "good answer": hl.behaviour(model, near)["completion"].value}
pd.DataFrame(table).T.rename_axis("taken out").round(3)

# %% [markdown]
# **Observation.** Taken out whole, `pca` does silence the threats, and the good answers with them: it is the model's working space, not the
# habit's. That is why the first look at such a choice is often a success. At equal disruption nothing of it is left: it does no more than random
# directions do. `contrast` gets furthest of the four and leaves good answers as they were; `probe` gets less far and costs some of them. The positive
# control shows how much more the right eight directions do, and that taking them out makes good answers likelier: **a located subspace is not yet
# the mechanism**.
#
# **4. The choice as an object.** The explorer shows every place, direction and token; what is ticked in it is `explorer.selection`, a `Subspaces`
# that goes straight into `hl.edit`. Without a kernel it leaves a picture and a table.

# %%
sample = hl.sample_tokens(model, located["contrast"], forget, retain, unrelated=far, tokens=1_500, seed=SEED)
explorer = analysis.explore(sample)
explorer.selection = hl.Subspaces({place: space.top(4) for place, space in located["contrast"].items() if space.site.layer >= 2})
explorer

# %%
chosen = explorer.selection
result = hl.edit(model, Ablate(), sites=[s.name for s in chosen.sites], forget=forget, retain=retain, subspace=chosen, disruption=far, near=near, budget=0.02)
print(result)

# %% [markdown]
# **Limits.** One model of four layers, one habit, forty held-out requests, one seed in this run. The order truth, contrast, probe, then random and pca
# (these two within their errors) was the same at far KL 0.05 with organism seeds 0 and 1 (with an earlier `probe`, whose directions were not orthogonal). Whether `contrast` is the best choice elsewhere is not shown; that AUC and variance
# cannot tell is. Take with you: **(a)** probe a model that never had the habit too, **(b)** compare choices by their effect per nat, never by
# their score.
