"""Recovery of a known graph among genes: ours under each graph prior, simple ways, public causal discovery.

    python benchmarks/graphs.py --seeds 0 1 2 3 4 --out benchmarks/results

30 perturbed genes of which each is a node, about 20 edges, 100 cells of each and 1,000 control cells.
Genes are renamed at random, so that neither names nor columns tell the order of the nodes. All methods see
these 30 genes alone. The public methods need the extra `bench`. Takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from discovery import PACKAGES, PUBLIC, SIMPLE, Cells, check_installed
from record import Clock
from scipy import stats

from sccvae_pyro import SCCVAE, __version__, datasets, setup_anndata
from sccvae_pyro.data.simulate import World
from sccvae_pyro.evaluate import score_graph
from sccvae_pyro.files import write_text
from sccvae_pyro.inference.export import versions
from sccvae_pyro.models.graph import GraphPrior
from sccvae_pyro.priors import graph as graphs

SIZES = {
    "n_perturbations": 30,
    "cells_per_perturbation": 100,
    "n_control": 1000,
    "n_genes": 100,
    "n_modules": 4,
}
EPOCHS = 40
MOST = 0.05
"""Share of all molecules from which a gene does not count for the library size."""

REFERENCES = ("differential expression", "GIES")
"""What the others are compared with, screen by screen: a simple way, and the interventional public one."""

CHANCE, TRUE_ORDER, NOISY = "chance", "true order told", "noisy list told"


class Case(NamedTuple):
    """A screen whose genes have lost their order, and the graph that made it, ``nodes x nodes`` by name."""

    adata: AnnData
    graph: pd.DataFrame

    @classmethod
    def draw(cls, seed: int) -> Case:
        """Simulate a screen and rename its genes at random; columns are in the order of the new names."""
        adata = datasets.simulate(**SIZES, seed=seed)
        world = World.from_uns(adata.uns["truth"])
        shuffled = np.random.default_rng([seed, 2]).permutation(world.genes)
        new = dict(zip(world.genes, shuffled, strict=True))
        adata.var_names = [new[gene] for gene in adata.var_names]
        adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace(new)
        nodes = [new[node] for node in world.nodes]
        adata.obs["library"] = library_without_dominant(adata, nodes)
        graph = pd.DataFrame(world.adjacency, nodes, nodes).sort_index().sort_index(axis=1)
        return cls(adata[:, sorted(adata.var_names)].copy(), graph)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes, which say nothing of their order."""
        return tuple(self.graph.index)

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The true edges."""
        return [(self.nodes[j], self.nodes[k]) for j, k in np.argwhere(self.graph.to_numpy() != 0)]

    @property
    def order(self) -> tuple[str, ...]:
        """A causal order of the nodes: all that is true of the real one."""
        graph = nx.DiGraph(self.edges)
        graph.add_nodes_from(self.nodes)
        return tuple(nx.lexicographical_topological_sort(graph))

    def noisy_list(self, seed: int) -> list[tuple[str, str]]:
        """Seven of ten true edges, and as many false ones: a network from the literature."""
        rng = np.random.default_rng([seed, 3])
        missing = ~(self.graph.to_numpy() != 0) & ~np.eye(len(self.nodes), dtype=bool)
        false = [(self.nodes[j], self.nodes[k]) for j, k in np.argwhere(missing)]
        kept = rng.permutation(len(self.edges))[: round(0.7 * len(self.edges))]
        added = rng.permutation(len(false))[: len(kept)]
        return [*(self.edges[i] for i in kept), *(false[i] for i in added)]


def library_without_dominant(adata: AnnData, nodes: list[str]) -> np.ndarray:
    """Molecules of each cell in genes that hold less than a twentieth of all, on the scale of all molecules.

    A gene with a tenth of the molecules moves their total; divided by it, all other genes seem to answer that
    gene. Not below what is counted in the genes of the nodes.
    """
    counts = adata.X.toarray()
    total, share = counts.sum(1), counts.sum(0) / counts.sum()
    rest = counts[:, share < MOST].sum(1)
    return np.maximum(rest * total.mean() / rest.mean(), adata[:, nodes].X.toarray().sum(1))


def our_graphs(case: Case, seed: int) -> dict[str, GraphPrior]:
    """Graph priors by the name of their row."""
    known = graphs.KnownGraph(allowed=case.noisy_list(seed), elsewhere=0.02)
    edges = {
        "Laplace": graphs.Laplace(0.1),
        "Normal": graphs.Normal(0.2),
        "Horseshoe": graphs.Horseshoe(),
        "SpikeSlab": graphs.SpikeSlab(),
        f"KnownGraph, {NOISY}": known,
    }
    learned = {f"SCCVAE, {name}": graphs.LearnedOrder(prior) for name, prior in edges.items()}
    told = {f"SCCVAE, SpikeSlab, {TRUE_ORDER}": graphs.Ordered(graphs.SpikeSlab(), case.order)}
    return {**learned, **told, "SCCVAE, Laplace, order of the names": graphs.Laplace(0.1)}


def fit(case: Case, graph: GraphPrior, seed: int) -> np.ndarray:
    """Posterior mean of every edge, ``nodes x nodes``, from the genes of the nodes.

    Edges are ranked by it: on development seeds it did better than inclusion, and than mean over sd.
    """
    adata = case.adata[:, list(case.nodes)].copy()
    del adata.uns["features"]
    setup_anndata(adata, "perturbation", "control", library_key="library", covariate_keys=("batch",))
    model = SCCVAE(adata, hidden=(64,), nodes="Anchored", direction="OwnNode", graph=graph)
    model.fit(seed=seed, max_epochs=EPOCHS, progress=False)
    found = model.edges().pivot(index="source", columns="target", values="mean")
    return found.reindex(index=case.nodes, columns=case.nodes).fillna(0.0).to_numpy()


def methods(case: Case, seed: int) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Name of every row, and what gives its weights."""
    cells = Cells.of(case.adata, case.nodes)
    n_nodes = len(case.nodes)
    yield CHANCE, lambda: np.ones((n_nodes, n_nodes))
    yield NOISY, lambda: _adjacency(case.noisy_list(seed), case.nodes)
    for name, find in {**SIMPLE, **PUBLIC}.items():
        yield name, lambda find=find: find(cells)
    for name, prior in our_graphs(case, seed).items():
        yield name, lambda prior=prior: fit(case, prior, seed)


def run(seed: int, only: list[str] | None, clock: Clock) -> pd.DataFrame:
    """Score the methods on one screen: columns ``method``, ``seed``, ``metric``, ``value``."""
    case = Case.draw(seed)
    rows = []
    for name, find in methods(case, seed):
        if only is None or name in only:
            with clock.timing(f"{name}, seed {seed}"):
                weights = find()
            found = score_graph(weights, case.graph.to_numpy())
            rows += [{"method": name, "seed": seed, "metric": m, "value": v} for m, v in found.items()]
    return pd.DataFrame(rows)


def with_stored(
    scores: pd.DataFrame, seconds: dict[str, float], folder: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Add the stored scores, and seconds, of what has not been run anew."""
    if not (folder / "graphs.csv").exists():
        return scores, seconds
    stored = pd.read_csv(folder / "graphs.csv")
    how = json.loads((folder / "graphs.json").read_text(encoding="utf-8"))
    together = pd.concat([stored, scores]).drop_duplicates(["method", "seed", "metric"], keep="last")
    return together.sort_values(["method", "seed"], kind="stable"), {**how["seconds"], **seconds}


def summary(scores: pd.DataFrame, metric: str, references: list[str]) -> pd.DataFrame:
    """Mean over seeds with its 95 % interval (Student's t), and paired differences to reference methods."""
    values = scores[scores["metric"] == metric].pivot(index="seed", columns="method", values="value")
    parts = {"": values, **{f" - {name}": values.sub(values[name], axis=0) for name in references}}
    table = {}
    for suffix, part in parts.items():
        half = stats.t.ppf(0.975, len(part) - 1) * part.sem()
        table |= {f"mean{suffix}": part.mean(), f"low{suffix}": part.mean() - half}
        table |= {f"high{suffix}": part.mean() + half}
    return pd.DataFrame(table).sort_values("mean", ascending=False)


def _adjacency(edges: list[tuple[str, str]], nodes: tuple[str, ...]) -> np.ndarray:
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(nodes)
    return nx.to_numpy_array(graph, nodelist=nodes)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the screens")
    parser.add_argument(
        "--only", nargs="+", metavar="METHOD", help="methods to run; stored rows of others stay"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    arguments = parser.parse_args()

    check_installed()
    clock = Clock()
    scores = pd.concat([run(seed, arguments.only, clock) for seed in arguments.seeds], ignore_index=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    scores, seconds = with_stored(scores, clock.seconds, arguments.out)
    write_text(scores.to_csv(index=False, float_format="%.6g"), arguments.out / "graphs.csv")
    how = {
        "benchmark": "graph among the perturbed genes of a simulated screen",
        "seeds": sorted(int(seed) for seed in scores["seed"].unique()),
        "sizes": SIZES,
        "epochs": EPOCHS,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "versions": versions() | {"sccvae-pyro": __version__} | {name: version(name) for name in PACKAGES},
    }
    write_text(json.dumps(how, indent=2) + "\n", arguments.out / "graphs.json")
    beside = [name for name in REFERENCES if name in set(scores["method"])]
    print(summary(scores, "directed", beside).round(3).to_string())


if __name__ == "__main__":
    main()
