"""Library sizes: density, guide, and what they do to predictions."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from sccvae_pyro import SCCVAE
from sccvae_pyro.models.library import Latent, LibraryPrior, Observed

COUNTED = torch.tensor([900.0, 2000.0, 5000.0])


def test_observed_library_is_what_was_counted():
    library = Observed().module()
    assert library(COUNTED) is COUNTED
    assert library.propose(COUNTED) is None


def test_density_of_a_latent_library():
    library = Latent().module()
    library.start(COUNTED.numpy())
    value = torch.tensor([1000.0, 1500.0, 8000.0])
    with pyro.plate("cells", 3), poutine.trace() as drawn, poutine.condition(data={"library": value}):
        assert library(COUNTED) is value
    log_counted = np.log(COUNTED.numpy())
    prior = stats.lognorm(s=log_counted.std() + 1e-3, scale=np.exp(log_counted.mean()))
    found = drawn.trace.nodes["library"]["fn"].log_prob(value).detach()
    np.testing.assert_allclose(found, prior.logpdf(value), rtol=1e-5)


def test_guide_starts_from_what_was_counted():
    library = Latent().module()
    with pyro.plate("cells", 3), poutine.trace() as proposed:
        library.propose(COUNTED)
    fn = proposed.trace.nodes["library"]["fn"]
    torch.testing.assert_close(fn.loc, COUNTED.log())
    torch.testing.assert_close(fn.scale.expand(3), torch.full((3,), 0.1))


@pytest.fixture(scope="module")
def latent(screen):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), library="Latent")
    return model.fit(max_epochs=3, batch_size=64, progress=False)


def test_everything_can_be_asked(latent, screen, tmp_path):
    assert np.isfinite(latent.predict(["G0001"]).X).all()
    assert np.isfinite(latent.log_density(screen[:6].copy(), n_samples=5)).all()
    assert np.isfinite(latent.sample_cells("G0001", n=4).X).all()
    latent.save(tmp_path)
    np.testing.assert_array_equal(SCCVAE.load(tmp_path).predict(["G0001"]).X, latent.predict(["G0001"]).X)


def test_density_of_a_cell_counts_the_draw_of_its_library(latent, screen):
    """An importance sampler does not depend on its proposal: a wider one gives the same within 4 errors."""
    cells = screen[:12].copy()
    narrow = latent.log_density(cells, n_samples=400, seed=1)
    with torch.no_grad():
        latent.program.library.log_doubt += 0.5
    wide = latent.log_density(cells, n_samples=400, seed=2)
    with torch.no_grad():
        latent.program.library.log_doubt -= 0.5
    assert abs((wide - narrow).mean()) < 0.5


def test_members_are_read_back():
    for member in (Observed(), Latent()):
        assert LibraryPrior.from_dict(member.to_dict()) == member
