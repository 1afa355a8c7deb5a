"""The published loss against a transcription of its equations with loops, and fits by it."""

import math

import numpy as np
import pytest
import torch
from screens import log_values, set_up, small_screen

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.inference.published import Paired, PublishedLoss, kl_to_standard, squared_mmd
from sccvae_pyro.inference.recipes import RECIPES
from sccvae_pyro.inference.spec import InferenceSpec


def published(adata):
    """Build a small model of the published priors."""
    return SCCVAE.from_spec(adata, "models/published.toml", n_nodes=4, hidden=(8,))


@pytest.fixture(scope="module")
def model():
    return published(set_up(log_values(small_screen())))


def pairs(seed: int = 0, n: int = 5, genes: int = 7) -> Paired:
    generator = torch.Generator().manual_seed(seed)
    tables = (3 * torch.randn(n, genes, generator=generator, dtype=torch.float64) for _ in range(4))
    return Paired(*tables, kl=torch.tensor(0.37, dtype=torch.float64))


def transcribed(x_hat, x, y_hat, y, kl, beta):
    """The equations of the publication, a number at a time."""

    def mse(a, b):
        return sum((float(u) - float(v)) ** 2 for u, v in zip(a.ravel(), b.ravel(), strict=True)) / a.size

    def kernel(a, b):
        squared = sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True))
        return sum(math.exp(-squared / (1000 * 2 ** (i - 5))) for i in range(10))

    def mean_kernel(a, b):
        return sum(kernel(u, v) for u in a for v in b) / (len(a) * len(b))

    mmd = mean_kernel(y_hat, y_hat) + mean_kernel(y, y) - 2 * mean_kernel(y_hat, y)
    return 0.25 * mse(x_hat, x) + mse(y_hat, y) + beta * kl + 10 * mmd


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_loss_is_that_of_the_equations(beta):
    given = pairs()
    expected = transcribed(*(table.numpy() for table in given[:4]), float(given.kl), beta)
    assert float(given.loss(beta)) == pytest.approx(expected, rel=1e-9)


def test_mmd_is_zero_between_a_sample_and_itself_and_has_a_gradient_there():
    a = torch.randn(6, 3, requires_grad=True)
    found = squared_mmd(a, a.detach())
    found.backward()
    assert float(found.detach()) == pytest.approx(0.0, abs=1e-5)
    assert a.grad.isfinite().all()


def test_kl_of_independent_normals_is_the_textbook_one():
    mean, sd = torch.tensor([[0.3, -1.0], [0.0, 2.0]]), torch.tensor([0.5, 1.2])
    found = kl_to_standard(torch.distributions.MultivariateNormal(mean, scale_tril=sd.diag()))
    expected = 0.5 * (mean**2 + sd**2 - 1 - 2 * sd.log()).sum(-1)
    torch.testing.assert_close(found, expected)


def batch_of(model, n=6):
    screen = model._screen
    control = np.flatnonzero(screen.is_control)[:n]
    perturbed = np.flatnonzero(screen.labels == model.coding.perturbations[0])[:n]
    return screen[np.concatenate([control, perturbed])]


def test_perturbed_cells_are_decoded_from_the_noise_of_their_control_cells(model):
    """With all directions at zero both halves decode to the same; with the drawn ones they do not."""
    loss, batch = PublishedLoss(model.program), batch_of(model)
    batch = batch._replace(covariates_cv=torch.zeros_like(batch.covariates_cv))
    with torch.no_grad():
        torch.manual_seed(0)
        moved = loss.pair(batch)
        still = loss.pair(
            batch._replace(targets_cm=torch.full_like(batch.targets_cm, model.program.sizes.perturbations))
        )
    torch.testing.assert_close(still.control_hat, still.perturbed_hat)
    assert not torch.allclose(moved.control_hat, moved.perturbed_hat)


def test_validation_is_mmd_and_kl(model):
    loss, batch = PublishedLoss(model.program), batch_of(model)
    with torch.no_grad():
        torch.manual_seed(0)
        found = loss.validate(batch)
        torch.manual_seed(0)
        given = loss.pair(batch)
    torch.testing.assert_close(found, given.mmd + given.kl)


def test_counts_are_refused():
    counts = published(set_up(small_screen()))
    with pytest.raises(InputError, match=r"log-normalised.*NegativeBinomial"):
        counts.fit("inference/published.toml", max_epochs=1, progress=False)


def test_more_than_one_draw_is_refused(model):
    with pytest.raises(InputError, match="particles=3"):
        PublishedLoss(model.program, particles=3)


def test_fit_lowers_the_loss_and_predicts(model):
    adata = set_up(log_values(small_screen()))
    fitted = published(adata)
    fitted.fit("inference/published.toml", max_epochs=6, learning_rate=5e-3, progress=False)
    assert fitted.history["train_loss"].iloc[-1] < fitted.history["train_loss"].iloc[0]
    assert np.isfinite(
        fitted.predict(list(fitted.coding.perturbations[:2]), n_samples=5).layers["delta"]
    ).all()


def test_recipes_are_those_of_the_spec():
    assert set(InferenceSpec.model_fields["objective"].annotation.__args__) == set(RECIPES)
