# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Uncertainty: how far can this posterior be trusted?
#
# A fitted model gives intervals with every answer. This notebook looks at them the way a Bayesian would:
# the posterior as ArviZ data, models compared by leave-one-out cross-validation, the guide against the
# posterior, generated against measured cells, one start against another, and last, what decides: intervals
# against perturbations that were held out. The screen is simulated, so that the truth is known. The [model
# page](../docs/model.md) has the equations.

# %%
# %matplotlib inline
import logging
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars are shown here
warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries underneath
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of ArviZ's pictures

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import sccvae_pyro as sv
from sccvae_pyro import plots

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# %% [markdown]
# Sizes are small, as eight models are fitted: some minutes on two cores.

# %% tags=["parameters"]
SIZE = {"n_perturbations": 40, "cells_per_perturbation": 50, "n_control": 300, "n_genes": 100}
MAX_EPOCHS = None  # as many as the default takes
N_SAMPLES = 200  # draws of the globals
N_CELLS = 400  # cells of which the density is computed
N_PROPOSALS = 1000  # proposals of each cell by which the guide is judged
SEED = 0

# %%
adata = sv.datasets.simulate(**SIZE, n_modules=5, n_features=10, feature_noise=0.5, seed=SEED)
sv.setup_anndata(
    adata,
    perturbation_key="perturbation",
    control="control",
    library_key="total_umi",
    covariate_keys=["batch"],
    feature_key="features",
)
split = sv.splits.split_perturbations(adata, held_out=0.25, seed=SEED, validation=0.0)
train, held_out = split.take(adata, "train"), split.take(adata, "test")
unseen = list(split.held_out)
some = np.sort(np.random.default_rng(SEED).permutation(train.n_obs)[:N_CELLS])
cells = train[some].copy()

model = sv.SCCVAE(train, n_nodes=16, hidden=(64, 64))
model.fit(seed=SEED, max_epochs=MAX_EPOCHS, progress=False)
print(f"{train.n_obs:,} cells to learn from, {held_out.n_obs:,} of {len(unseen)} perturbations put aside")

# %% [markdown]
# ## 1. The posterior as ArviZ data
#
# Every global site of the program under its name, with genes, nodes and perturbations as coordinates.
# Groups beyond `posterior` are computed when they are asked for; those of cells take the training screen,
# or the cells that are given.

# %%
data = model.to_arviz(n_samples=N_SAMPLES, seed=SEED, adata=cells, groups="all", n_particles=8)
data

# %%
az.summary(data, var_names=["strength"], kind="stats").head(8)

# %%
first = list(model.coding.perturbations[:10])
_ = az.plot_forest(data, var_names=["strength"], coords={"perturbation": first}, combined=True)

# %% [markdown]
# The draws are independent draws from the guide, in one chain: there is no mixing to look at, and `r_hat`
# has nothing to say. A trace shows the shape of each marginal; a trend in it would be a mistake.

# %%
_ = az.plot_trace(data, var_names=["strength"], coords={"perturbation": first[:2]})

# %% [markdown]
# **Conclusion.** Strengths are told from the sizes of directions only by their prior, and their intervals
# are nearly the same for all perturbations. They say how wide the belief is, not how exactly a strength was
# measured.
#
# ## 2. Which model predicts a cell that it has not seen?
#
# Leave-one-out cross-validation by Pareto-smoothed importance sampling, on the density of whole cells: what
# a cell has of its own is integrated out for every draw of the globals. A second belief about the graph,
# each of the two from a second start, and a likelihood that is wrong of these counts:

# %%
others = {
    "another start": ({}, SEED + 1),
    "no graph": ({"graph": "NoGraph"}, SEED),
    "no graph, another start": ({"graph": "NoGraph"}, SEED + 1),
    "Poisson": ({"likelihood": "Poisson"}, SEED),
}
models, posteriors = {"default": model}, {"default": data}
for name, (prior, seed) in others.items():
    models[name] = sv.SCCVAE(train, n_nodes=16, hidden=(64, 64), **prior)
    models[name].fit(seed=seed, max_epochs=MAX_EPOCHS, progress=False)
    posteriors[name] = models[name].to_arviz(
        n_samples=N_SAMPLES, seed=SEED, adata=cells, groups=["posterior", "log_likelihood"], n_particles=8
    )
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of single cells with a high k, which the next section is about
    leave_one_out = az.loo(data)
    compared = az.compare(posteriors)
print(leave_one_out)
unseen_cells = pd.Series(
    {name: one.log_density(held_out, n_samples=N_SAMPLES, seed=SEED).mean() for name, one in models.items()}
)
compared = compared[["rank", "elpd_diff", "dse"]].astype(float)
compared.assign(held_out=unseen_cells - unseen_cells["default"]).round(1)

# %% [markdown]
# `elpd_diff` is the difference to the best model in nats over these cells, `dse` its standard error.
# `held_out` is the difference to the default in nats a cell, on the perturbations that were put aside.
#
# **Conclusion.** The Poisson likelihood loses by far more than its standard error: counts scatter more than
# it allows, and the perturbations that were put aside agree. Leaving out the graph seems to cost many
# standard errors, too, but another start without it gains all of that back, and on the perturbations that
# were put aside the difference is a fraction of a nat. `dse` counts cells, not starts, and encoder and
# decoder have seen every cell: read a difference as one between models only where it is larger than that
# between starts. This is not a discovery of a graph.
#
# ## 3. Does the guide cover the posterior?
#
# The guide proposes, and importance ratios of model to proposal tell what it misses. Their largest follow a
# Pareto distribution; below a shape k of 0.7 they can be trusted.

# %%
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    covered = model.psis(n_samples=N_PROPOSALS, seed=SEED)
print(*(one.message for one in said if issubclass(one.category, sv.InputWarning)), sep="\n")
covered.perturbations.sort_values("median").round(2).iloc[[0, 1, 2, -3, -2, -1]]

# %%
fig, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
ax.hist(covered.cells["pareto_k"], bins=40, color=plots.style.MODEL)
ax.axvline(0.7, color=plots.style.INK, linestyle="--", linewidth=1)
plots.style.finish(ax, "Pareto k of a cell", "cells", "How well the guide covers the noise of each cell")
typical = covered.cells["pareto_k"].median()
print(f"k of the globals: {covered.globals_k:.1f}; median of the cells: {typical:.2f}")

# %% [markdown]
# **Conclusion.** The proposal of the noise covers nine cells in ten well enough to be corrected by
# weighing, and no perturbation stands out; the densities of the others are less exact than their number of
# draws suggests. The globals are another matter: with hundreds of them, most proposed as independent, no
# draw is typical of the posterior, and k is far above 0.7. Their intervals are an approximation that
# nothing computed from these draws can mend. They have to be checked from outside: sections 5 and 6.
#
# ## 4. Does the model generate cells like the measured ones?
#
# Cells are generated anew with the perturbations, batches and library sizes of measured ones, and both are
# summarised in the same way.

# %%
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    check = model.posterior_predictive(n_samples=N_SAMPLES, seed=SEED)
print(*(one.message for one in said if issubclass(one.category, sv.InputWarning)), sep="\n")
check.summary.drop(columns="unit").round(3)

# %%
plots.posterior_predictive(check.items).ax.figure

# %% [markdown]
# **Conclusion.** Variances, zeros and correlations of genes are generated as they are measured. Effects are
# generated a fifth too small: the nodes carry what is shared by many genes, not what single genes do in one
# perturbation. `predict` adds what is missing of a mean to its intervals; `sample_cells` does not have it.
# Use predicted means where sizes of effects matter.
#
# ## 5. Would another start say the same?

# %%
agreement = sv.restarts(
    train,
    model.spec,
    seeds=[SEED, SEED + 1, SEED + 2],
    perturbations=unseen,
    n_samples=N_SAMPLES,
    max_epochs=MAX_EPOCHS,
)
print(agreement["note"].iloc[0])
agreement.drop(columns="note").round(3)

# %% [markdown]
# **Conclusion.** `ratio` is the spread between starts over the spread that the posterior states. Far below
# one: the intervals of predictions and strengths are wide enough for the start not to matter, and the
# predictions of three starts correlate at 0.97. Which strengths are larger than others is less certain
# (0.62), as they differ by less than their intervals. Edges between free nodes have no names, so that
# nothing can be said of them.
#
# ## 6. Do the intervals hold the truth?
#
# The check that decides: perturbations that no cell of the training screen carried.

# %%
world = sv.datasets.World.from_uns(adata.uns["truth"])
truth = world.mean_profiles(["control", *unseen])
predictions = model.predict(unseen, n_samples=N_SAMPLES, return_draws=True, seed=SEED)
baselines = sv.evaluate.predict_baselines(sv.evaluate.Training.from_anndata(train), model.features, unseen)
scores = sv.evaluate.score({"SCCVAE": predictions, **baselines}, held_out, train, truth=truth, seed=SEED)
table = scores.table()
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.7), layout="constrained")
plots.coverage(table, target="truth", methods=["SCCVAE", "GP"], ax=left)
plots.error_against_spread(scores.per_perturbation, target="truth", ax=right)
coverage = pd.Series(
    {
        f"{level} %": table.loc[("truth", f"coverage_{level}"), ("SCCVAE", "mean")]
        for level in (50, 80, 90, 95)
    }
)
print("share of true means in their interval:", coverage.round(2).to_dict())

# %% [markdown]
# **Conclusion.** Intervals of predictions hold the truth more often than they say, most of all the narrow
# ones: half of the probability holds four fifths of the true means. They err on the safe side. With ten
# perturbations, which of them will be predicted worse is hardly told by the stated spread.
#
# ## 7. Where does the uncertainty come from?
#
# The variance of a predicted mean, split by Shapley effects among what is drawn; beside it the spread of
# single cells, which is no part of it.

# %%
split = model.uncertainty_split([*unseen[:3], *first[:3]], n_samples=16, seed=SEED)
plots.uncertainty_split(split).ax.figure

# %% [markdown]
# **Conclusion.** Of a seen perturbation nine tenths are what the nodes leave unexplained of single genes: a
# larger screen or more nodes would narrow it. Of an unseen one two fifths are its direction, which better
# features would tell. Strengths and edges have next to none of it under these priors, which hold them tight;
# let them loose, and they will.
#
# What to report of a model like this one: predictions with their intervals, checked on held-out
# perturbations and stable over starts. What not to report: a difference by leave-one-out that is no larger
# than that between starts, edges between free nodes, or intervals of single globals without a check from
# outside.
#
# Next: [how to](../docs/how_to.md) run each check on your own screen, [priors](priors.ipynb) for what
# changes with a belief.
