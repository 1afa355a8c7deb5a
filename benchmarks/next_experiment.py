"""Whether a batch that `suggest` chooses teaches more than one chosen at random.

    python benchmarks/next_experiment.py --seeds 0 1 2 3 4 --out benchmarks/results

Of 48 simulated perturbations 16 are measured; 8 of the others are measured next: those that `suggest` names,
or 8 at random, five times. *Believed*: variance of the effects of all candidates that is left after the
measurement, over that before it, judged by other draws than those that chose. *Actual*: squared error of all
32 candidates against noiseless truth after a fit to the larger screen, over that of the first fit. Takes
ten minutes to half an hour on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from record import Clock, store_table

from sccvae_pyro import SCCVAE, datasets, setup_anndata
from sccvae_pyro.data.simulate import World
from sccvae_pyro.inference import choice, results

N_FIRST, N_NEXT, N_RANDOM, N_CELLS = 16, 8, 5, 40
SIZES = {
    "n_perturbations": 48,
    "cells_per_perturbation": N_CELLS,
    "n_control": 300,
    "n_genes": 120,
    "n_modules": 5,
    "n_features": 10,
}


def fit(screen: AnnData, measured: list[str]) -> SCCVAE:
    """Fit to the control cells and the cells of some perturbations."""
    cells = screen[screen.obs["perturbation"].isin(["control", *measured])].copy()
    return SCCVAE(cells, n_nodes=16, hidden=(32,)).fit(max_epochs=40, seed=0, progress=False)


def error(model: SCCVAE, world: World, candidates: list[str]) -> float:
    """Mean squared error of the predicted effects of all candidates."""
    truth = world.mean_profiles(["control", *candidates])
    effect = truth.loc[candidates].to_numpy() - truth.loc["control"].to_numpy()
    return float(np.square(model.predict(candidates).layers["delta"] - effect).mean())


def beliefs(model: SCCVAE, candidates: list[str], seed: int) -> choice.Beliefs:
    """What the model believes of the candidates, by draws of this seed."""
    draws = model._draws(500, seed)
    push, targets = model._push(draws, candidates, seed), model._n_targets(candidates)
    genes = np.arange(len(model.coding.genes))
    parts = (model.program, draws, model.controls, push, model.discrepancy, candidates, targets, genes)
    return choice.outlook(*parts, N_CELLS, results.CELLS_PER_DRAW, seed).beliefs


def left(judge: choice.Beliefs, batch: list[int]) -> float:
    """Share of the variance of all candidates that is left once a batch has been measured."""
    S, n = judge.deviation.shape[1], len(judge.deviation)
    flat = judge.deviation.swapaxes(0, 1).reshape(S, -1)
    within = np.kron(np.eye(n), np.ones(judge.noise.shape[1:]))
    covariance = flat.T @ flat / (S - 1) * (1 - judge.shrinkage * (1 - within))
    rows = np.arange(len(covariance)).reshape(n, -1)[batch].ravel()
    noise = np.zeros_like(covariance)
    for c, block in enumerate(np.arange(len(covariance)).reshape(n, -1)):
        noise[np.ix_(block, block)] = judge.noise[c]
    measured = (covariance + noise)[np.ix_(rows, rows)]
    told = np.trace(covariance[:, rows] @ np.linalg.solve(measured, covariance[rows]))
    return float(1 - told / np.trace(covariance))


def run(seed: int) -> pd.DataFrame:
    """One world: the first fit, the batch that is suggested, and batches at random."""
    screen = datasets.simulate(**SIZES, seed=seed)
    setup_anndata(screen, "perturbation", "control", library_key="total_umi", feature_key="features")
    world, rng = World.from_uns(screen.uns["truth"]), np.random.default_rng(seed)
    order = list(rng.permutation(world.nodes))
    first, candidates = order[:N_FIRST], sorted(order[N_FIRST:])
    model = fit(screen, first)
    suggested = list(model.suggest(candidates, n=N_NEXT, n_cells=N_CELLS, seed=seed).index)
    batches = {"suggested": suggested} | {
        f"random {i}": list(rng.choice(candidates, N_NEXT, replace=False)) for i in range(N_RANDOM)
    }
    judge, before = beliefs(model, candidates, seed + 1000), error(model, world, candidates)
    rows = [
        {
            "seed": seed,
            "batch": name,
            "believed": left(judge, [candidates.index(label) for label in batch]),
            "actual": error(fit(screen, first + batch), world, candidates) / before,
            "shrinkage": judge.shrinkage,
        }
        for name, batch in batches.items()
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    arguments = parser.parse_args()

    clock, tables = Clock(), []
    for seed in arguments.seeds:
        with clock.timing(f"seed {seed}"):
            tables.append(run(seed))
        about = {"benchmark": "which perturbations to measure next", "seeds": arguments.seeds, **SIZES}
        store_table(arguments.out, "next_experiment", pd.concat(tables), clock, about)


if __name__ == "__main__":
    main()
