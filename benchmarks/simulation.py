"""Unseen perturbations of the default simulated screen, scored against held-out cells and noiseless truth.

    python benchmarks/simulation.py --seed 0 --out benchmarks/results --images docs/images

200 perturbations of 100 cells, 600 genes; a fifth of the perturbations is held out. Every method learns from
the same cells and the same features. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from record import Clock, store

from sccvae_pyro import SCCVAE, datasets, plots, setup_anndata
from sccvae_pyro.assessment import MODEL, Assessment
from sccvae_pyro.evaluate.results import HELD_OUT, TRUTH
from sccvae_pyro.workflow import Sources, prepare


def run(seed: int, clock: Clock) -> Assessment:
    """Simulate, fit, predict and score."""
    adata = datasets.simulate(seed=seed)
    setup_anndata(
        adata,
        "perturbation",
        "control",
        library_key="total_umi",
        guide_key="guide",
        covariate_keys=("batch",),
    )
    train, held_out = prepare(adata, Sources(key="features"), "0.2", seed=seed)
    with clock.timing("fit"):
        model = SCCVAE(train).fit(seed=seed, progress=False)
    with clock.timing("predict and evaluate"):
        return Assessment.of(model, held_out, train, seed=seed)


def typical(assessment: Assessment) -> str:
    """Name the unseen perturbation whose prediction is neither among the better nor the worse ones.

    The median of Pearson delta on held-out cells, so that the picture flatters nobody.
    """
    scores = assessment.scores.per_perturbation
    of_model = (scores["target"] == HELD_OUT) & (scores["method"] == MODEL)
    by_rank = scores[of_model & (scores["metric"] == "pearson_delta")].sort_values("value")
    return str(by_rank["perturbation"].iloc[len(by_rank) // 2])


def picture(assessment: Assessment) -> Figure:
    """Draw a typical unseen perturbation, its strongest genes, and all methods side by side."""
    label = typical(assessment)
    table = plots.compare(assessment.predictions, assessment.observed, label)
    figure = Figure(figsize=(13.5, 4.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.0, 1.15, 1.2])
    plots.predicted_against_observed(table, f"{label}, unseen: all genes", ax=left)
    plots.top_genes(table, title="largest effects", ax=middle)
    title = "Pearson delta, all unseen, against truth"
    plots.score_forest(assessment.scores.table(), "pearson_delta", TRUTH, title=title, ax=right)
    return figure


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="folder of the picture")
    parser.add_argument("--keep", type=Path, help="folder for predictions and all scores, if wanted")
    arguments = parser.parse_args()

    clock = Clock()
    assessment = run(arguments.seed, clock)
    if arguments.keep is not None:
        assessment.save(arguments.keep)
    about = {"benchmark": "default simulation, a fifth of the perturbations held out", "seed": arguments.seed}
    store(arguments.out, "simulation", assessment.scores, clock, about)
    arguments.images.mkdir(parents=True, exist_ok=True)
    picture(assessment).savefig(arguments.images / "unseen.png", dpi=150)


if __name__ == "__main__":
    main()
