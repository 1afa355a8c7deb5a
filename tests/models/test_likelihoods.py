"""Observation models against SciPy, and their expected profiles against sampling."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.models.likelihoods import NegativeBinomial, Normal, log_proportions

PROPORTION = np.array([0.3, 0.1, 0.02, 0.001])  # what is not measured has the rest
LIBRARY = torch.tensor([500.0, 4000.0, 20000.0])
DISPERSION = torch.tensor([0.5, 2.0, 5.0, 50.0])
CHANGE = torch.tensor([[0.5, -0.3, 0.0, 1.0]]).expand(3, 4)


def baseline():
    return torch.tensor(NegativeBinomial().baseline(PROPORTION), dtype=torch.float)


def shifted():
    """Proportions after the change: a softmax in which what is not measured does not change."""
    weight = np.append(PROPORTION * np.exp(CHANGE[0].numpy()), 1 - PROPORTION.sum())
    return (weight / weight.sum())[:4]


def test_no_change_gives_the_control_mean():
    found = log_proportions(torch.zeros(2, 4), baseline()).exp()
    np.testing.assert_allclose(found, [PROPORTION, PROPORTION], rtol=1e-5)


def test_proportions_are_a_softmax():
    np.testing.assert_allclose(log_proportions(CHANGE, baseline()).exp()[1], shifted(), rtol=1e-5)


def test_whole_transcriptome_has_no_rest():
    everything = np.array([0.5, 0.3, 0.2])
    base = torch.tensor(NegativeBinomial().baseline(everything), dtype=torch.float)
    found = log_proportions(torch.tensor([[1.0, 0.0, 0.0]]), base).exp()
    expected = everything * [math.e, 1, 1] / (everything @ [math.e, 1, 1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_negative_binomial_density():
    x = torch.tensor([[0.0, 3.0, 7.0, 0.0], [1000.0, 200.0, 50.0, 1.0], [5000.0, 0.0, 400.0, 60.0]])
    found = NegativeBinomial().distribution(CHANGE, baseline(), LIBRARY, DISPERSION)
    mean = LIBRARY.numpy()[:, None] * shifted()
    r = DISPERSION.numpy()
    expected = stats.nbinom(r, r / (r + mean)).logpmf(x).sum(1)
    np.testing.assert_allclose(found.log_prob(x), expected, rtol=1e-4)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(found.variance, mean + mean**2 / r, rtol=1e-3)


def test_normal_density():
    base, sd = torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([0.1, 1.0, 2.0, 0.5])
    x = torch.tensor([[1.0, 2.5, 0.3, 3.0]] * 3)
    found = Normal().distribution(CHANGE, base, LIBRARY, sd)
    expected = stats.norm(base + CHANGE, sd).logpdf(x).sum(1)
    np.testing.assert_allclose(found.log_prob(x), expected, rtol=1e-5)


def test_encoder_reads_log_expression():
    counts = torch.tensor([[0.0, 3.0], [10.0, 7.0], [1.0, 1.0]])
    found = NegativeBinomial().encoder_input(counts, LIBRARY)
    np.testing.assert_allclose(found, log1p_cp10k(counts.numpy(), LIBRARY.numpy()), rtol=1e-5)
    assert Normal().encoder_input(counts, LIBRARY) is counts


def test_profile_of_counts_is_the_mean_over_counts():
    """Not the logarithm of the mean rate: the expectation over counts at the given library sizes."""
    n = 60_000
    library = LIBRARY[torch.arange(n) % 3]
    torch.manual_seed(0)
    x = NegativeBinomial().distribution(CHANGE[:1].expand(n, 4), baseline(), library, DISPERSION).sample()
    sampled = log1p_cp10k(x.numpy(), library.numpy())
    standard_error = sampled.std(0) / math.sqrt(n)
    profile = NegativeBinomial().profile(DISPERSION, LIBRARY.repeat(30).numpy())
    found = profile(CHANGE, baseline())[0].numpy()
    # Tabulated: 96 points over 18 log units interpolate within 0.005.
    assert (np.abs(found - sampled.mean(0)) < 4 * standard_error + 0.005).all()
    naive = np.log1p(1e4 * shifted())
    assert (naive - sampled.mean(0) > 0.1).any()


def test_profile_of_values_is_the_mean():
    found = Normal().profile(DISPERSION, LIBRARY.numpy())(CHANGE, torch.ones(4))
    torch.testing.assert_close(found, 1 + CHANGE)


@pytest.mark.parametrize("likelihood", [NegativeBinomial(), Normal()])
def test_profile_follows_the_shape_of_its_input(likelihood):
    base = baseline() if isinstance(likelihood, NegativeBinomial) else torch.zeros(4)
    found = likelihood.profile(DISPERSION, LIBRARY.numpy())(torch.zeros(5, 2, 3, 4), base)
    assert found.shape == (5, 2, 3, 4)
