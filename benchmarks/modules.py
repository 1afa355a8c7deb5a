"""Modules of perturbations: planted ones in simulated screens, and the interferon pathway of a real one.

    python benchmarks/modules.py --seeds 0 1 2 3 4 --out benchmarks/results [--data FOLDER]

Simulations: 60 perturbations of 60 cells in 6 modules, a fifth of them without any effect, 300 genes; in the
world "coherent" the members of a module act much alike, in the world "default" as in every simulation. The
adjusted Rand index against the truth, in which perturbations without an effect are a group of their own, is
over all perturbations and over those alone in which SCCVAE has found an effect. Perturbations that a method
leaves alone are a cluster each. Baselines work on means of cells less the mean of the control cells, by the
correlation of these differences; for them a perturbation has no effect where no gene differs at a false
discovery rate of 5 %.

Real screen: THP1 cells of Papalexi et al. 2021, all 25 targets, no feature of any kind, so that what is known
of pathways cannot tell. The folder (or the environment variable SCCVAE_DATA) holds
papalexi2021_thp1_eccite.h5ad; without it this part is left out. Takes half an hour on one core.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from papalexi import read
from record import Clock, store_table
from scipy import stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from sccvae_pyro import SCCVAE, datasets, setup_anndata
from sccvae_pyro.data.loading import profiles
from sccvae_pyro.data.simulate import CONTROL, World
from sccvae_pyro.evaluate.metrics import welch_t
from sccvae_pyro.inference.modules import ALONE, NONE, Modules

SIZES = {
    "n_perturbations": 60,
    "cells_per_perturbation": 60,
    "n_control": 1000,
    "n_genes": 300,
    "n_modules": 6,
    "null_share": 0.2,
}
WORLDS = {"coherent": 0.6, "default": 0.0}
"""Coherence of the modules, by the name of the world."""

PATHWAY = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
FDR = 0.05

Cluster = Callable[[np.ndarray, int], np.ndarray]


def linkage(changes: np.ndarray, n_clusters: int) -> np.ndarray:
    """Average linkage by correlation."""
    return hierarchy.fcluster(
        hierarchy.linkage(pdist(changes, "correlation"), "average"), n_clusters, "maxclust"
    )


def linkage_by_silhouette(changes: np.ndarray, n_clusters: int) -> np.ndarray:
    """The same, with the number of clusters of the highest silhouette instead of that which is told."""
    partitions = [linkage(changes, k) for k in range(2, len(changes))]
    return max(partitions, key=lambda labels: silhouette_score(changes, labels, metric="correlation"))


def k_means(changes: np.ndarray, n_clusters: int) -> np.ndarray:
    """K-means of changes of one length, so that direction decides."""
    unit = changes / np.linalg.norm(changes, axis=1, keepdims=True)
    return KMeans(n_clusters, n_init=20, random_state=0).fit_predict(unit)


BASELINES: dict[str, Cluster] = {
    "pseudobulk, average linkage, number by silhouette": linkage_by_silhouette,
    "pseudobulk, average linkage, number told": linkage,
    "pseudobulk, k-means, number told": k_means,
}


def pseudobulk(adata: AnnData, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Difference of each perturbation to control, and whether any gene differs."""
    found = profiles(adata)
    control = (found.mean.loc[CONTROL].to_numpy(), found.var.loc[CONTROL].to_numpy(), found.n[CONTROL])
    changes = found.mean.loc[names].to_numpy() - control[0]
    differs = []
    for name in names:
        own = (found.mean.loc[name].to_numpy(), found.var.loc[name].to_numpy(), found.n[name])
        differs.append((stats.false_discovery_control(welch_t(*own, *control)[1]) < FDR).any())
    return changes, np.array(differs)


def clusters_of(modules: Modules) -> np.ndarray:
    """Cluster of each perturbation; one that is alone has a cluster of its own."""
    module = modules.table["module"]
    return module.where(module != ALONE, module.index).to_numpy(dtype=str)


def clustered(changes: np.ndarray, acts: np.ndarray, cluster: Cluster, n_clusters: int) -> np.ndarray:
    """Clusters of those that act; all others are one group."""
    labels = np.full(len(changes), NONE, dtype=object)
    labels[acts] = [f"cluster {label}" for label in cluster(changes[acts], n_clusters)]
    return labels.astype(str)


def scores_of_world(world: str, seed: int, clock: Clock) -> pd.DataFrame:
    """Score all methods on one simulated screen: columns ``method``, ``metric``, ``value``."""
    adata = datasets.simulate(**SIZES, coherence=WORLDS[world], seed=seed)
    setup_anndata(
        adata,
        "perturbation",
        CONTROL,
        library_key="total_umi",
        covariate_keys=("batch",),
        feature_key="features",
    )
    with clock.timing(f"fit, {world}, seed {seed}"):
        model = SCCVAE(adata).fit(seed=seed, progress=False)
    with clock.timing(f"modules, {world}, seed {seed}"):
        modules = model.modules(seed=seed)
    truth = World.from_uns(adata.uns["truth"])
    names = list(modules.table.index)
    row = pd.Index(truth.nodes).get_indexer(names)
    null = truth.strength[row] == 0
    actual = np.where(null, NONE, truth.modules[row].astype(str))
    number = len(np.unique(actual[~null]))
    found = ~modules.table["is_null"].to_numpy()

    changes, differs = pseudobulk(adata, names)
    noiseless = truth.mean_profiles([CONTROL, *names])
    exact = (noiseless.loc[names] - noiseless.loc[CONTROL]).to_numpy()
    everywhere = {"SCCVAE": clusters_of(modules)}
    within = {"SCCVAE": clusters_of(modules)[found]}
    for name, cluster in BASELINES.items():
        everywhere[name] = clustered(changes, differs, cluster, number)
        within[name] = cluster(changes[found], number)
    reference = "noiseless means, average linkage, number and nulls told"
    everywhere[reference] = clustered(exact, ~null, linkage, number)
    within[reference] = everywhere[reference][found]

    rows = [(name, "ari_all", adjusted_rand_score(actual, labels)) for name, labels in everywhere.items()]
    rows += [
        (name, "ari_found", adjusted_rand_score(actual[found], labels)) for name, labels in within.items()
    ]
    for name, acts in {"SCCVAE": found, "pseudobulk": differs}.items():
        rows += [(name, "effects_found", acts[~null].mean()), (name, "false_effects", acts[null].mean())]
    rows += [("SCCVAE", "modules", len(modules.summary)), ("truth", "modules", number)]
    return pd.DataFrame(rows, columns=["method", "metric", "value"]).assign(world=world, seed=seed)


def simulations(seeds: list[int], clock: Clock) -> pd.DataFrame:
    """Score all methods on all worlds and seeds."""
    parts = [scores_of_world(world, seed, clock) for world in WORLDS for seed in seeds]
    return pd.concat(parts, ignore_index=True)[["world", "seed", "method", "metric", "value"]]


def real(data: Path, seeds: list[int], clock: Clock) -> tuple[pd.DataFrame, list[dict[str, object]]]:
    """Modules of the real screen by seed, and what became of the pathway."""
    tables, pathway = [], []
    for seed in seeds:
        with clock.timing(f"fit, seed {seed}"):
            model = SCCVAE(read(data)).fit(seed=seed, progress=False)
        modules = model.modules(seed=seed)
        tables.append(modules.table.reset_index().assign(seed=seed))
        pathway.append({"seed": seed, **_pathway(modules)})
    return pd.concat(tables, ignore_index=True), pathway


def _pathway(modules: Modules) -> dict[str, object]:
    """Modules of the pathway's genes, their least co-assignment, and who else is with them."""
    named = modules.table.loc[list(PATHWAY), "module"]
    together = modules.co_assignment.loc[list(PATHWAY), list(PATHWAY)].to_numpy()
    others = modules.table.index[modules.table["module"].isin(named) & ~modules.table.index.isin(PATHWAY)]
    return {
        "modules": sorted(set(named)),
        "least_co_assignment": round(float(together.min()), 3),
        "stability": modules.summary["stability"].reindex(named.unique()).round(3).tolist(),
        "others": list(others),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the screens")
    parser.add_argument(
        "--real-seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds on the real screen"
    )
    parser.add_argument("--data", default=os.environ.get("SCCVAE_DATA"), help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    arguments = parser.parse_args()

    clock = Clock()
    scores = simulations(arguments.seeds, clock)
    about = {"benchmark": "modules of simulated perturbations", "seeds": arguments.seeds}
    sizes = {"sizes": SIZES, "coherence": WORLDS}
    store_table(arguments.out, "modules", scores, clock, {**about, **sizes})
    print(
        scores.groupby(["world", "metric", "method"])["value"]
        .agg(["mean", "min", "max"])
        .round(2)
        .to_string()
    )
    if arguments.data is None:
        print("Left out: Papalexi et al. 2021. Give the folder of the data: --data or SCCVAE_DATA.")
        return
    clock = Clock()
    table, pathway = real(Path(arguments.data), arguments.real_seeds, clock)
    about = {"benchmark": "modules of the targets of Papalexi et al. 2021", "seeds": arguments.real_seeds}
    store_table(arguments.out, "papalexi_modules", table, clock, {**about, "pathway": pathway})


if __name__ == "__main__":
    main()
