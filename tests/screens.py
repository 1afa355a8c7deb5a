"""Small simulated screens for tests that need one of their own."""

import numpy as np
from anndata import AnnData

import sccvae_pyro as sv


def small_screen(seed: int = 0, **sizes) -> AnnData:
    """Counts of 8 perturbations and 2 pairs of them, with features and two batches; not set up."""
    few = {
        "n_perturbations": 8,
        "cells_per_perturbation": 20,
        "n_control": 60,
        "n_genes": 24,
        "n_modules": 2,
        "n_combinations": 2,
        "n_features": 3,
    }
    return sv.datasets.simulate(**{**few, **sizes}, seed=seed)


def set_up(adata: AnnData, **settings) -> AnnData:
    """Set a simulated screen up in the way most tests want it."""
    sv.setup_anndata(
        adata, "perturbation", "control", covariate_keys=["batch"], feature_key="features", **settings
    )
    return adata


def log_values(adata: AnnData) -> AnnData:
    """The same cells as log-normalised, dense values; not set up."""
    values = adata.copy()
    counts = adata.X.toarray()
    values.X = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).astype(np.float32)
    return values
