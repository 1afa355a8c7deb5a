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
# # Graph and modules: what acts on what, and what acts alike?
#
# Two questions that sound alike and are not. *Which gene acts on which?* needs nodes that are genes, and
# perturbations that push their own node. *Which perturbations act alike?* needs neither. The screen is
# simulated: 30 genes that act on one another, in four modules, so that both answers can be checked.

# %%
# %matplotlib inline
import logging
import warnings
from itertools import pairwise

warnings.filterwarnings("ignore", message="IProgress not found")  # no progress bars are shown here
warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries underneath

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

import sccvae_pyro as sv
from sccvae_pyro import plots, priors

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# %% tags=["parameters"]
SIZE = {"n_perturbations": 30, "cells_per_perturbation": 100, "n_control": 1000, "n_genes": 100}
N_MODULES = 4
EPOCHS_GRAPH = 40
MAX_EPOCHS = None  # as many as the default takes
SEED = 0

# %%
adata = sv.datasets.simulate(**SIZE, n_modules=N_MODULES, coherence=0.6, n_combinations=6, seed=SEED)
world = sv.datasets.World.from_uns(adata.uns["truth"])
pairs = sorted(label for label in adata.obs["perturbation"].unique() if "+" in label)
screen = adata[~adata.obs["perturbation"].isin(pairs)].copy()
sv.setup_anndata(
    screen,
    perturbation_key="perturbation",
    control="control",
    library_key="total_umi",
    covariate_keys=["batch"],
    feature_key="features",
)
print(f"{screen.n_obs:,} cells; {len(pairs)} pairs of perturbations put aside: {', '.join(pairs)}")

# %% [markdown]
# ## 1. Which gene acts on which?
#
# Every perturbed gene is a node; a perturbation pushes its own node; what else it does comes along edges,
# each of which is there or not. The order of the genes is learned. The names of the genes say nothing.

# %%
nodes = list(world.nodes)
among_nodes = screen[:, nodes].copy()
del among_nodes.uns["features"]
sv.setup_anndata(
    among_nodes,
    perturbation_key="perturbation",
    control="control",
    library_key="total_umi",
    covariate_keys=["batch"],
)
network = sv.SCCVAE(
    among_nodes,
    hidden=(64,),
    nodes=priors.nodes.Anchored(),
    direction=priors.direction.OwnNode(),
    graph=priors.graph.LearnedOrder(priors.graph.SpikeSlab()),
)
network.fit(seed=SEED, max_epochs=EPOCHS_GRAPH, progress=False)
edges = network.edges()
edges.head(10).round(2)

# %% [markdown]
# `inclusion` is the probability that the edge is there, `present` that the order allows it. In the picture
# causes stand left of their effects.

# %%
plots.plot_graph(edges, n=25).ax.figure

# %%
true = pd.DataFrame(world.adjacency, nodes, nodes)
believed = edges.pivot(index="source", columns="target", values="mean").reindex(index=nodes, columns=nodes)
found = sv.evaluate.score_graph(believed.fillna(0.0).to_numpy(), true.to_numpy())
is_edge = np.array([true.loc[row.source, row.target] != 0 for row in edges.itertuples()])
sure = edges["inclusion"].to_numpy() > 0.9
chance = (true.to_numpy() != 0).sum() / (len(nodes) * (len(nodes) - 1))
print(f"{is_edge.sum()} of {(true.to_numpy() != 0).sum()} true edges are in the table of {len(edges)}")
print(f"area under the precision-recall curve: {found['directed']:.2f} (chance {chance:.2f})")
print(f"of {sure.sum()} edges with inclusion above 0.9, {is_edge[sure].sum()} are true")

# %% [markdown]
# Along which paths does a perturbation reach a gene? The mean effect is a sum over paths, and each has its
# share. This one starts at the strongest edge.

# %%
source, target = edges.loc[0, ["source", "target"]]
network.paths(source, target, n_paths=5).round(3)

# %% [markdown]
# **Conclusion.** With one perturbation for every node, a graph among genes is recovered far better than
# chance, and the most probable edges can be read as hypotheses; not all of them are true. Test an edge by a
# perturbation that cuts it before you draw it in a paper. With free nodes, as in the next section, edges
# have no such meaning.
#
# ## 2. Which perturbations act alike?
#
# Now all genes, free nodes, and no graph to be read: effects of perturbations are compared in every draw of
# the posterior, and those that stay together are a module.

# %%
model = sv.SCCVAE(screen).fit(seed=SEED, max_epochs=MAX_EPOCHS, progress=False)
modules = model.modules(seed=SEED)
modules

# %%
plots.module_heatmap(modules).ax.figure

# %%
plots.module_map(modules).ax.figure

# %%
named = modules.table
actual = pd.Series(world.modules, nodes).reindex(named.index)
told = ~named["is_null"]
label = named["module"].where(named["module"] != "alone", named.index.to_series())
agreement = adjusted_rand_score(actual[told], label[told])
print(f"{told.sum()} of {len(named)} perturbations have an effect that is told from zero")
print(f"adjusted Rand index of these against the planted modules: {agreement:.2f}")
pd.crosstab(actual[told].rename("planted"), label[told].rename("found"))

# %% [markdown]
# **Conclusion.** Modules that are found are planted ones, or parts of them: what is put together belongs
# together. Planted modules may come in pieces, and perturbations without a partner stay alone instead of
# being pressed into a group.
#
# ## 3. What would two perturbations do together?
#
# The pairs were not seen. `interactions` predicts each, and the sum of its parts beside it.

# %%
together = model.interactions(pairs, seed=SEED)
together.obs.round(2)

# %%
truth = world.mean_profiles(["control", *pairs])
change = (truth.loc[together.obs_names] - truth.loc["control"]).to_numpy()
for name in ("delta", "additive"):
    error = np.sqrt(np.square(together.layers[name] - change).mean())
    print(f"{name}: RMS error {error:.4f} against the true change")

# %%
plots.interaction(together, together.obs["score"].idxmax()).ax.figure

# %% [markdown]
# **Conclusion.** The model adds pushes in its latent space; where that differs from adding effects, it is
# because genes saturate and share the molecules of a cell. Here that is three parts in a hundred, and neither
# is nearer to the truth than the other. It is a prediction of what is *not* epistasis: a measured pair that
# leaves these intervals is the one to look at.
#
# ## 4. What should be measured next?

# %%
seen = set(model.coding.labels)
candidates = [f"{a}+{b}" for a, b in pairwise(nodes) if f"{a}+{b}" not in seen]
model.suggest(candidates, n=5, seed=SEED)

# %% [markdown]
# **Conclusion.** The first is the pair of which least is known; those below it are chosen to tell something
# that the ones above do not. Whether batches chosen so make *predictions* better than random ones has not
# been shown: see the [decisions](../docs/decisions.md#paths-interactions-and-the-next-experiment).
#
# Next: the same questions to [a real screen](papalexi.ipynb).
