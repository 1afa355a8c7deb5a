"""Simulation-based calibration of the guide, for the default model and for one other prior at a time.

    python benchmarks/sbc.py --replicates 200 --out benchmarks/results --images docs/images
    python benchmarks/sbc.py --members graph=Horseshoe penetrance=Gamma --replicates 100

450 cells of 10 perturbations, 20 genes and 4 nodes, whose decoder is known; an eleventh perturbation has no
cells. In each replicate the globals are drawn from their priors and the cells from the program, guide and
encoder are fitted, and one quantity of every family is ranked among 199 draws. The seed of a replicate is its
number, from 100 on: those below have been looked at. Stored after every replicate: a second run goes on with
those that are missing. A minute or more for each on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from matplotlib.figure import Figure
from record import Clock, store_table

from sccvae_pyro import plots, setup_anndata
from sccvae_pyro.data.loading import Coding
from sccvae_pyro.evaluate import uniformity
from sccvae_pyro.inference import sbc
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models import build
from sccvae_pyro.models.slot import Targets, own_nodes
from sccvae_pyro.models.spec import ModelSpec

PERTURBATIONS, CELLS, CONTROLS, GENES, NODES = 10, 30, 150, 20, 4
PANEL, LIBRARY = 0.05, 3000
"""Share of the molecules that the genes hold, and the median number of all molecules of a cell."""

LOADING = 0.4
"""Standard deviation of what a node adds to the log rate of a gene, per standard deviation of the node."""

MODEL = {"n_nodes": NODES, "hidden": (64,)}
FIT = {"max_epochs": 250, "batch_size": 64, "patience": 250, "learning_rate": 0.02}
"""1,500 steps, each four times the default: ``fit`` would make 60 of so few cells, far from the optimum."""

N_DRAWS, FIRST = 199, 100
DEFAULT = "default"
SETTINGS = {
    "graph=KnownGraph": {"allowed": [["node_0", "node_1"], ["node_1", "node_2"]], "elsewhere": 0.1},
    "graph=Ordered": {"order": [f"node_{k}" for k in reversed(range(NODES))]},
}
"""Settings of the members that have no defaults for all of them."""


def template(seed: int = 0) -> AnnData:
    """Cells with labels, guides, library sizes and features; counts give the proportions of genes."""
    rng = np.random.default_rng(seed)
    genes = [f"gene_{g:02d}" for g in range(GENES)]
    labels = np.repeat(["control", *genes[:PERTURBATIONS]], [CONTROLS] + [CELLS] * PERTURBATIONS)
    guides = [f"{label}_{i % 2}" for i, label in enumerate(labels)]
    library = np.round(rng.lognormal(np.log(LIBRARY), 0.3, len(labels)))
    counts = rng.poisson(np.outer(library, PANEL * rng.dirichlet(np.full(GENES, 2.0))))
    obs = pd.DataFrame({"perturbation": labels, "guide": guides, "total_umi": library})
    adata = AnnData(counts.astype(np.float32), obs.set_axis(obs.index.astype(str)), pd.DataFrame(index=genes))
    features = rng.normal(size=(PERTURBATIONS + 1, 3))
    adata.uns["features"] = pd.DataFrame(features, genes[: PERTURBATIONS + 1], ["a", "b", "c"])
    setup_anndata(
        adata,
        "perturbation",
        "control",
        library_key="total_umi",
        guide_key="guide",
        feature_key="features",
    )
    return adata


def world(member: str) -> sbc.World:
    """What all replicates of a member share: above all a program with a known decoder, nearly linear."""
    adata = template()
    coding = Coding.of(adata)
    slot, _, name = member.partition("=")
    other = {} if member == DEFAULT else {slot: {"name": name, **SETTINGS.get(member, {})}}
    spec = ModelSpec.read(None, **MODEL, **other).settled("counts")
    screen, features = coding.screen(adata), build.features_of(adata, coding)
    program = build.program_of(spec, spec.priors("counts"), screen, features, seed=0)
    loading = LOADING * np.random.default_rng(1).normal(size=(GENES, NODES))
    with torch.no_grad():
        program.decoder.linear.weight.copy_(torch.as_tensor(loading))
    unseen = [coding.genes[PERTURBATIONS]]
    targets = Targets(
        tuple(unseen),
        own_nodes(unseen, program.sizes),
        build.expression_of(unseen, coding, program.baseline),
    )
    rows = torch.as_tensor(features.rows(unseen), dtype=torch.float32)
    return sbc.World(program, spec, features, screen, program.describe(rows, targets))


def picture(ranks: pd.DataFrame) -> Figure:
    """Draw the distribution of the ranks of every family, less the uniform one."""
    families = list(ranks["family"].unique())
    n_rows = -(-len(families) // 4)
    figure = Figure(figsize=(13.0, 2.7 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, 4, sharey=True, squeeze=False)
    for family, ax in zip(families, panels.flat, strict=False):
        plots.rank_ecdf(ranks, family, ax=ax)
    for ax in panels.flat[len(families) :]:
        ax.set_axis_off()
    for ax in panels.flat:
        ax.label_outer()
    return figure


def stored(path: Path) -> pd.DataFrame:
    """What an earlier run has left; nothing of the first."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame({"member": [], "replicate": []})


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--members", nargs="+", default=[DEFAULT], help="default, or slot=Name")
    parser.add_argument("--replicates", type=int, default=200, help="replicates of each member")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="folder of the picture")
    parser.add_argument("--again", action="store_true", help="forget what an earlier run has left")
    arguments = parser.parse_args()

    path = arguments.out / "sbc.csv"
    if arguments.again:
        path.unlink(missing_ok=True)
    table, clock = stored(path), Clock()
    about = {"benchmark": "simulation-based calibration", "model": MODEL, "fit": FIT}
    for member in arguments.members:
        shared = world(member)
        open_ = sbc.open_entries(shared)
        known = set(table.loc[table["member"] == member, "replicate"])
        for seed in sorted(set(range(FIRST, FIRST + arguments.replicates)) - known):
            with clock.timing(f"{member}, replicate {seed}"):
                ranks = sbc.replicate(shared, InferenceSpec.read(FIT), seed, N_DRAWS, open_)
            table = pd.concat([table, ranks.assign(member=member)], ignore_index=True)
            store_table(arguments.out, "sbc", table, clock, about)
        ranks = table[table["member"] == member]
        tests = uniformity(ranks)
        print(member, tests.round(3).to_string(), sep="\n")
        store_table(arguments.out, f"sbc_{member.replace('=', '_')}", tests.reset_index(), clock, about)
        if member == DEFAULT:
            arguments.images.mkdir(parents=True, exist_ok=True)
            picture(ranks).savefig(arguments.images / "sbc.png", dpi=150)


if __name__ == "__main__":
    main()
