"""Small simulated screens, and models fitted to them, shared by all tests."""

import pytest
import torch
from anndata import AnnData
from screens import log_values, set_up, small_screen

import sccvae_pyro as sv


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and sums in one order give one result."""
    torch.set_num_threads(1)


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
