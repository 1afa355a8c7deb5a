"""The discrepancy between program and training means, against what was put in."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.inference import discrepancy
from sccvae_pyro.inference.discrepancy import Discrepancy, fit_discrepancy
from sccvae_pyro.inference.posterior import Push

G = 3
MEAN, SD = np.array([0.5, 0.0, -0.2]), np.array([0.3, 0.0, 0.1])


def observed_profiles(n_labels, n_cells, noise_sd, seed=0, n_targets=1):
    """Means of labels whose differences to a control at 1 are the discrepancy and sampling noise."""
    rng = np.random.default_rng(seed)
    effect = MEAN + SD * np.sqrt(n_targets) * rng.normal(size=(n_labels, G))
    mean = 1.0 + effect + noise_sd / np.sqrt(n_cells) * rng.normal(size=(n_labels, G))
    index = pd.Index([f"p{i}" for i in range(n_labels)])
    var = pd.DataFrame(noise_sd**2, index=index, columns=range(G))
    return Profiles(pd.DataFrame(mean, index=index), var, pd.Series(n_cells, index=index))


def fit(observed, monkeypatch, draws=(0.0, 0.0), n_targets=1):
    """Fit to a program that predicts the same difference for all labels and genes in each draw."""
    n = len(observed.n)

    def means(program, draws_of_globals, controls, push, *_settings):
        yield from ((s, np.full((push.share.shape[1], G), value)) for s, value in enumerate(draws))

    monkeypatch.setattr(discrepancy, "population_means", means)
    controls = SimpleNamespace(mean_g=np.ones(G), library_c=torch.ones(1))
    program = SimpleNamespace(sizes=SimpleNamespace(genes=G))
    targets = np.full(n, n_targets)
    push = Push(torch.ones(2, n, 1), torch.ones(2, n))
    return fit_discrepancy(program, None, controls, push, observed, targets, 1, 0)


@pytest.mark.parametrize("n_targets", [1, 2])
def test_mean_and_spread_are_recovered(monkeypatch, n_targets):
    """4,000 labels: standard errors are 0.005 for a mean and 0.004 for a spread of 0.3."""
    observed = observed_profiles(4000, n_cells=50, noise_sd=1.0, n_targets=n_targets)
    found = fit(observed, monkeypatch, n_targets=n_targets)
    np.testing.assert_allclose(found.mean_g, MEAN, atol=0.03)
    np.testing.assert_allclose(found.sd_g[[0, 2]], SD[[0, 2]], atol=0.03)
    assert found.sd_g[1] < 0.04


def test_sampling_noise_alone_leaves_no_spread(monkeypatch):
    """With more noise declared than the means spread, everything is explained."""
    observed = observed_profiles(200, n_cells=50, noise_sd=1.0)
    declared = observed._replace(var=observed.var + 50.0)
    np.testing.assert_array_equal(fit(declared, monkeypatch).sd_g, 0.0)


def test_noise_that_the_fit_took_up_is_not_expected_again(monkeypatch):
    """Posterior variance of the prediction lowers the noise expected in the residuals."""
    observed = observed_profiles(500, n_cells=50, noise_sd=1.0)
    certain = fit(observed, monkeypatch)
    unsure = fit(observed, monkeypatch, draws=(-0.05, 0.05))
    assert (unsure.sd_g**2 > certain.sd_g**2).all()
    expected = certain.sd_g[0] ** 2 + 2 * 0.05**2
    assert unsure.sd_g[0] ** 2 == pytest.approx(expected, rel=1e-6)


def test_nothing_perturbed_is_no_discrepancy(monkeypatch):
    found = fit(observed_profiles(0, n_cells=5, noise_sd=1.0), monkeypatch)
    np.testing.assert_array_equal(found, np.zeros((2, G)))


def added(penetrance=1.0, labels=("control", "A", "A+B"), n_targets=(0, 1, 2), n_draws=4000, seed=0):
    deltas = np.zeros((n_draws, len(labels), G), dtype=np.float32)
    Discrepancy(MEAN, SD).add_to(deltas, penetrance, labels, np.array(n_targets), seed)
    return deltas


def test_control_is_left_alone():
    np.testing.assert_array_equal(added()[:, 0], 0.0)


@pytest.mark.parametrize("penetrance", [0.0, 0.5, 1.0])
def test_mean_counts_once_and_spread_adds_up(penetrance):
    """The spread of a sample of 4,000 has a relative standard error of 1.1 %."""
    deltas = added(penetrance)
    for label, n in ((1, 1), (2, 2)):
        np.testing.assert_allclose(deltas[:, label].mean(0), penetrance * MEAN, atol=1e-6)
        np.testing.assert_allclose(
            deltas[:, label].std(0), penetrance * np.sqrt(n) * SD, rtol=0.05, atol=1e-7
        )


def test_draws_of_a_label_do_not_depend_on_the_company():
    np.testing.assert_array_equal(added()[:, 1], added(labels=("A",), n_targets=(1,))[:, 0])
    assert (added(seed=1)[:, 1, 0] != added()[:, 1, 0]).any()
