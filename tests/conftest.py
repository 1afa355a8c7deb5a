"""Small simulated screens, and models fitted to them, shared by all tests."""

import numpy as np
import pytest
import torch
from anndata import AnnData

import sccvae_pyro as sv


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and sums in one order give one result."""
    torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def screen() -> AnnData:
    """Counts, set up."""
    return set_up(small_screen(), guide_key="guide", library_key="total_umi")


@pytest.fixture(scope="session")
def log_screen() -> AnnData:
    """Log-normalised values, set up."""
    return set_up(log_values(small_screen()))


@pytest.fixture(scope="session")
def fitted(screen) -> sv.SCCVAE:
    """A model of the counts after a few epochs: for what must hold of any fitted model."""
    return sv.SCCVAE(screen, n_nodes=5, hidden=(16,)).fit(max_epochs=8, batch_size=64, progress=False)


@pytest.fixture(scope="session")
def fitted_values(log_screen) -> sv.SCCVAE:
    """The same for log-normalised values."""
    return sv.SCCVAE(log_screen, n_nodes=5, hidden=(16,)).fit(max_epochs=4, batch_size=64, progress=False)
