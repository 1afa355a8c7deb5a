"""Are cells that escaped told from those that responded? Simulated screens.

    python benchmarks/responders.py --seeds 0 1 2 --out benchmarks/results

30 perturbations of 200 cells, 1,000 control cells, 300 genes, 6 modules; four in five cells respond. The
table has, for each seed and perturbation, the AUROC of a score of its cells against whether they
responded, by method:

    SCCVAE      probability of a response, `responders()` of a model with `responders="Beta"`
    oracle      likelihood ratio of the two under the simulator itself, with the world, the guide and the
                batch of the cell known and its noise integrated out: no score can do better on average
    projection  profile less that of the control cells, along the mean change of the perturbation's cells

and the Brier score of the two that are probabilities. Two sizes of effect stand beside them:

    state_sd    size of the shift in sds of the node's noise, which is the Mahalanobis distance between
                the states of cells that responded and that escaped, as if states were seen
    read_sd     the same between what counts tell of the states: with the Fisher information F of the
                counts on the noise, at the mean control state and the median library, the covariance is
                I + F^-1 in place of I

A classifier of two normals that are d sds apart has an AUROC of Phi(d / sqrt 2): .76 at 1, .92 at 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from record import Clock, store_table
from scipy import special
from sklearn.metrics import roc_auc_score

from sccvae_pyro import SCCVAE, datasets, setup_anndata
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.simulate import CONTROL, World

SIZES = {
    "n_perturbations": 30,
    "cells_per_perturbation": 200,
    "n_control": 1000,
    "n_genes": 300,
    "n_modules": 6,
}
BINS = (0.0, 1.0, 2.0, 3.0, np.inf)
"""Bounds of the sizes of effects that are reported together, sds."""

STEPS, PROPOSALS, CELLS_AT_ONCE = 25, 200, 50
"""Steps to the mode of a cell's noise, proposals around it, and cells at once, of the oracle."""


# The truth


class Oracle:
    """Density of cells under a simulated world, their noise integrated out.

    Parameters
    ----------
    world
        The truth.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.effect = world.total_effect @ world.loading

    def sizes(self, library: float) -> pd.DataFrame:
        """Size of the effect of each node, ``state_sd`` and ``read_sd``, at a library size."""
        world = self.world
        proportion = np.exp(world.baseline)
        slope = self.effect - (self.effect @ proportion)[:, None]
        mean = library * proportion
        information = (slope * (mean / (1 + mean / world.inverse_dispersion))) @ slope.T
        read = np.linalg.inv(np.eye(len(information)) + np.linalg.inv(information))
        state_sd = np.abs(world.strength * world.shift) * world.guide_strength.mean(axis=1)
        sizes = {"state_sd": state_sd, "read_sd": state_sd * np.sqrt(np.diag(read))}
        return pd.DataFrame(sizes, index=pd.Index(world.nodes))

    def log_ratio(self, counts: np.ndarray, push: np.ndarray, node: int, batch: np.ndarray) -> np.ndarray:
        """Log density of cells of a perturbation if they responded over that if they escaped, cells.

        Parameters
        ----------
        counts
            Cells x genes.
        push
            Shift of each cell if it responded.
        node
            The node that is pushed.
        batch
            Codes of the batches.
        """
        normals = np.random.default_rng(0).normal(size=(PROPOSALS, len(self.effect)))
        blocks = np.split(np.arange(len(counts)), range(CELLS_AT_ONCE, len(counts), CELLS_AT_ONCE))
        ratios = []
        for rows in blocks:
            centre = np.zeros((2, len(rows), len(self.effect)))
            centre[0, :, node] = push[rows]
            responded, escaped = (
                self._log_density(counts[rows], each, batch[rows], normals) for each in centre
            )
            ratios.append(responded - escaped)
        return np.concatenate(ratios)

    def _log_density(
        self, counts: np.ndarray, centre: np.ndarray, batch: np.ndarray, normals: np.ndarray
    ) -> np.ndarray:
        """Importance sampling around the mode, up to what does not depend on the noise."""
        library, r = counts.sum(1, keepdims=True), self.world.inverse_dispersion
        offset, identity = self.world.batch_effect[batch] + self.world.baseline, np.eye(len(self.effect))
        noise = centre.copy()
        for _ in range(STEPS):
            mean = library * special.softmax(offset + noise @ self.effect, axis=1)
            slope = self.effect - (mean / library @ self.effect.T)[:, :, None]
            weight = mean / (1 + mean / r)
            precision = (slope * weight[:, None]) @ slope.swapaxes(1, 2) + identity
            gradient = np.einsum("ckg,cg->ck", slope, (counts - mean) / (1 + mean / r)) + centre - noise
            step = np.linalg.solve(precision, gradient[..., None])[..., 0]
            noise += step / np.maximum(1.0, np.abs(step).max(axis=1, keepdims=True))  # at most an sd at once
        lower = np.linalg.cholesky(precision)
        each = np.broadcast_to(normals.T, (len(noise), *normals.T.shape))
        drawn = noise[:, None] + np.linalg.solve(lower.swapaxes(1, 2), each).swapaxes(1, 2)
        logits = offset[:, None] + drawn @ self.effect
        log_mean = np.log(library)[:, None] + special.log_softmax(logits, axis=2)
        x_cg = counts[:, None]
        likelihood = (x_cg * log_mean - (x_cg + r) * np.log(np.exp(log_mean) + r)).sum(2)
        prior = -0.5 * np.square(drawn - centre[:, None]).sum(2)
        log_det = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
        proposed = log_det[:, None] - 0.5 * np.square(normals).sum(1)
        return special.logsumexp(likelihood + prior - proposed, axis=1)


# Simulations


def simulated(seed: int) -> AnnData:
    """Simulate a screen and set it up."""
    adata = datasets.simulate(**SIZES, seed=seed)
    setup_anndata(
        adata,
        "perturbation",
        CONTROL,
        library_key="total_umi",
        covariate_keys=("batch",),
        feature_key="features",
    )
    return adata


def scores_of_world(seed: int, clock: Clock) -> pd.DataFrame:
    """Score all methods on one simulated screen, perturbation by perturbation."""
    adata = simulated(seed)
    with clock.timing(f"fit, seed {seed}"):
        model = SCCVAE(adata, responders="Beta").fit(seed=seed, progress=False)
    probability = model.responders(adata, seed=seed)["mean"]
    world = World.from_uns(adata.uns["truth"])
    oracle = Oracle(world)
    sizes = oracle.sizes(float(adata.obs["total_umi"].median()))
    profiles = np.asarray(log1p_cp10k(adata.X.toarray(), adata.obs["total_umi"].to_numpy()))
    control = profiles[adata.obs["perturbation"] == CONTROL].mean(axis=0)
    rows = []
    for node, name in enumerate(world.nodes):
        own = np.flatnonzero(adata.obs["perturbation"] == name)
        responded = adata.uns["truth"]["responded"][own]
        change = profiles[own] - control
        found = {
            "SCCVAE": probability[adata.obs_names[own]].to_numpy(),
            "oracle": score_oracle(oracle, adata, own, node),
            "projection": change @ change.mean(axis=0),
        }
        known = {"perturbation": name, **sizes.loc[name], "escaped": int((~responded).sum())}
        for method, score in found.items():
            brier = np.square(score - responded).mean() if method != "projection" else np.nan
            rows.append({**known, "method": method, "auroc": _auroc(responded, score), "brier": brier})
    return pd.DataFrame(rows).assign(seed=seed)


def score_oracle(oracle: Oracle, adata: AnnData, own: np.ndarray, node: int) -> np.ndarray:
    """Probability that cells of the perturbation of a node responded, for one who knows the world."""
    world, cells = oracle.world, adata.obs.iloc[own]
    guide, batch = (_number(cells["guide"], "-"), _number(cells["batch"], "_"))
    push = world.strength[node] * world.shift[node] * world.guide_strength[node, guide]
    ratio = oracle.log_ratio(adata.X[own].toarray().astype(float), push, node, batch)
    return special.expit(ratio + special.logit(world.responders[node]))


def _number(names: pd.Series, separator: str) -> np.ndarray:
    """Position of guides or batches, which are named from 1."""
    return names.str.rsplit(separator, n=1).str[1].astype(int).to_numpy() - 1


def _auroc(responded: np.ndarray, score: np.ndarray) -> float:
    """AUROC; missing where fewer than five cells are on either side."""
    few = min(responded.sum(), (~responded).sum()) < 5
    return np.nan if few else float(roc_auc_score(responded, score))


def by_size(scores: pd.DataFrame, size: str) -> pd.DataFrame:
    """Mean AUROC of every method by size of effect, with the number of perturbations."""
    bins = pd.cut(scores[size], BINS, right=False)
    table = scores.pivot_table("auroc", bins, "method", observed=True)
    number = scores.groupby(bins, observed=True).size() // scores["method"].nunique()
    return table.assign(perturbations=number)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of everything")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    arguments = parser.parse_args()

    clock = Clock()
    scores = pd.concat([scores_of_world(seed, clock) for seed in arguments.seeds], ignore_index=True)
    about = {"benchmark": "responders of simulated perturbations", "seeds": arguments.seeds, "sizes": SIZES}
    store_table(arguments.out, "responders", scores, clock, about)
    for size in ("state_sd", "read_sd"):
        print(by_size(scores, size).round(3).to_string())


if __name__ == "__main__":
    main()
