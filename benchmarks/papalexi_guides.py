"""Do guides come out in the order of their knock-down? THP1 ECCITE-seq screen (Papalexi et al. 2021).

    python benchmarks/papalexi_guides.py --data FOLDER --out benchmarks/results

Guides against one target differ. Those against STAT1 leave, of its expression in control cells, g2 the
least, then g1, then g3, and g4 most of it. The model is fitted to all cells with a strength for every guide,
and its posterior is asked for the probability of that order of strengths; chance is 1 in 24.

STAT1 is one of the genes of the screen, so that its own expression would tell. The question is therefore
asked twice: of all genes, and with the measured genes of the pathway (STAT1, JAK2, IFNGR2) left out, so that
only what lies downstream can tell.

The folder (or the environment variable SCCVAE_DATA) is that of benchmarks/papalexi.py. The table has a row
for each seed, set of genes and guide of the pathway: number of cells, expression of the target relative to
control cells (missing where the target is not measured) with a 90 % bootstrap interval, and strength relative
to the target's, with its posterior mean, sd and 90 % interval. How probable the order is stands beside it:
by the posterior of each fit, and by the bootstrap of what is measured, which says how well it is known.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from papalexi import read
from record import Clock, store_table

from sccvae_pyro import SCCVAE, priors

PATHWAY = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
ORDER = ("STAT1g2", "STAT1g1", "STAT1g3", "STAT1g4")
"""Guides against STAT1, the strongest first."""

SPREAD = 0.5
"""Prior sd of the log strength between the guides of a target."""

DRAWS, INTERVAL = 4000, (0.05, 0.95)


def measured(adata: AnnData) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Count the cells of each guide of the pathway and measure what is left of its target.

    Returns
    -------
    A row for each guide, and bootstrap draws of what is left by the guides whose target is measured.
    """
    rng = np.random.default_rng(0)
    rate = adata.to_df().div(adata.obs["total_umi"], axis=0)
    control = adata.obs["perturbation"] == "control"
    rows, drawn = [], {}
    for target in PATHWAY:
        guides = adata.obs.loc[adata.obs["perturbation"] == target, "guide"].astype(str)
        for guide, cells in guides.groupby(guides).groups.items():
            row = {"target": target, "guide": guide, "cells": len(cells)}
            if target in rate:
                own, reference = rate.loc[cells, target].to_numpy(), rate.loc[control, target].to_numpy()
                drawn[guide] = _bootstrap_mean(own, rng) / _bootstrap_mean(reference, rng)
                low, high = np.quantile(drawn[guide], INTERVAL)
                row |= {"residual": own.mean() / reference.mean(), "residual_q05": low, "residual_q95": high}
            rows.append(row)
    return pd.DataFrame(rows), drawn


def _bootstrap_mean(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.choice(values, len(values)).mean() for _ in range(DRAWS)])


def strengths(adata: AnnData, seed: int) -> dict[str, np.ndarray]:
    """Fit, and draw the relative strength of every guide from the posterior."""
    belief = priors.penetrance.Guides(spread=SPREAD)
    model = SCCVAE(adata, penetrance=belief).fit(seed=seed, progress=False)
    found = model.to_arviz(n_samples=DRAWS, seed=seed).posterior["guide_strength"].sel(chain=0)
    return {guide: found.sel(guide=guide).to_numpy() for guide in found["guide"].to_numpy()}


def summary(drawn: Mapping[str, np.ndarray], guides: Sequence[str]) -> pd.DataFrame:
    """Summarise draws of the strengths, a row for each guide."""
    low, high = zip(*(np.quantile(drawn[guide], INTERVAL) for guide in guides), strict=True)
    mean, sd = [drawn[guide].mean() for guide in guides], [drawn[guide].std() for guide in guides]
    return pd.DataFrame({"guide": guides, "mean": mean, "sd": sd, "q05": low, "q95": high})


def probability(falling: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Share of draws that fall along the known order, and along each step of it."""
    steps = {f"{one} > {other}": falling[one] > falling[other] for one, other in pairwise(ORDER)}
    whole = np.logical_and.reduce(list(steps.values()))
    return {name: round(float(held.mean()), 3) for name, held in {"order": whole, **steps}.items()}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SCCVAE_DATA"), help="folder of the data")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("Left out: Papalexi et al. 2021. Give the folder of the data: --data or SCCVAE_DATA.")
        return

    clock, adata = Clock(), read(Path(arguments.data))
    guides, residual = measured(adata)
    # Strong is what leaves little.
    probable = {"measured": probability({guide: -left for guide, left in residual.items()})}
    downstream = adata[:, ~adata.var_names.isin(PATHWAY)].copy()
    tables = []
    for genes, screen in {"all": adata, "downstream": downstream}.items():
        for seed in range(arguments.seeds):
            with clock.timing(f"fit, {genes} genes, seed {seed}"):
                drawn = strengths(screen, seed)
            probable[f"{genes} genes, seed {seed}"] = probability(drawn)
            found = guides.merge(summary(drawn, list(guides["guide"])), on="guide")
            tables.append(found.assign(genes=genes, seed=seed))
    about = {
        "benchmark": "Papalexi et al. 2021, strength of guides",
        "seeds": arguments.seeds,
        "spread": SPREAD,
        "order": list(ORDER),
        "probability": probable,
    }
    store_table(arguments.out, "papalexi_guides", pd.concat(tables), clock, about)


if __name__ == "__main__":
    main()
