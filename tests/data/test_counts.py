"""Count arithmetic: normalisation, and the expectation of its logarithm against sampling and sums."""

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from sccvae_pyro.data.counts import ExpectedLogCP10K, log1p_cp10k

LIBRARY = np.array([500.0, 3000.0, 3000.0, 12000.0])
MANY = np.tile(LIBRARY, 250)  # so that quantiles fall on the values
INTERPOLATED = 3e-4  # what a bilinear look-up costs


def test_log1p_cp10k_by_hand():
    found = log1p_cp10k(np.array([[0.0, 5.0], [1.0, 10.0]]), np.array([5.0, 20_000.0]))
    np.testing.assert_allclose(found, np.log1p([[0.0, 10_000.0], [0.5, 5.0]]))


@pytest.mark.parametrize("layout", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_sparse_counts_stay_sparse_and_unchanged(layout):
    counts = np.random.default_rng(0).poisson(0.5, (4, 6)).astype(np.float32)
    given = layout(counts)
    found = log1p_cp10k(given, LIBRARY)
    assert sparse.issparse(found)
    assert found.format == "csr"
    assert found.nnz == np.count_nonzero(counts)
    np.testing.assert_allclose(found.toarray(), log1p_cp10k(counts, LIBRARY))
    np.testing.assert_array_equal(given.toarray(), counts)


def expected(proportion, inverse_dispersion, library=MANY):
    """Expectation for one gene, by the table."""
    table = ExpectedLogCP10K(np.array([inverse_dispersion]), library, n_library=8)
    return float(table(torch.tensor([np.log(proportion)], dtype=torch.float32))[0])


@pytest.mark.parametrize("proportion", [1e-6, 1e-4, 3e-3, 0.1])
@pytest.mark.parametrize("inverse_dispersion", [0.3, 2.0, 30.0])
def test_expectation_against_sampling(proportion, inverse_dispersion):
    rng = np.random.default_rng(0)
    n = 200_000
    library = np.tile(LIBRARY, n // 4)
    rate = rng.gamma(inverse_dispersion, library * proportion / inverse_dispersion)
    sampled = np.log1p(1e4 * rng.poisson(rate) / library)
    standard_error = sampled.std() / np.sqrt(n)
    found = expected(proportion, inverse_dispersion)
    assert found == pytest.approx(sampled.mean(), abs=4 * standard_error + INTERPOLATED)


@pytest.mark.parametrize("proportion", [1e-6, 2e-3, 0.1])
@pytest.mark.parametrize("r", [0.05, 2.0, 1e6])
def test_expectation_against_the_sum_over_counts(r, proportion):
    """One library size, so that all is left is the sum of a negative binomial."""
    library, counts = 5000.0, np.arange(400_000)
    mean = proportion * library
    exact = stats.nbinom(r, r / (r + mean)).pmf(counts) @ np.log1p(1e4 * counts / library)
    assert expected(proportion, r, np.array([library])) == pytest.approx(exact, abs=INTERPOLATED)


def test_logarithm_of_the_mean_is_not_the_mean_of_the_logarithm():
    """Jensen: the gap is largest where a count is mostly zero."""
    assert np.log1p(1e4 * 1e-4) - expected(1e-4, 2.0) > 0.1
    assert np.log1p(1e4 * 0.1) - expected(0.1, 1000.0) < 0.05


def test_each_gene_has_its_own_dispersion():
    r = np.array([0.3, 1.0, 4.0, 50.0])
    proportion = np.array([0.1, 1e-3, 1e-4, 1e-5])
    table = ExpectedLogCP10K(r, MANY, n_library=8)
    found = table(torch.tensor(np.log(proportion), dtype=torch.float32).expand(2, 3, 4))
    assert found.shape == (2, 3, 4)
    alone = [expected(p, own) for p, own in zip(proportion, r, strict=True)]
    np.testing.assert_allclose(found[1, 2], alone, atol=1e-5)


def test_expectation_rises_with_the_proportion():
    log_p = torch.linspace(np.log(1e-8), np.log(0.5), 500).unsqueeze(-1)
    found = ExpectedLogCP10K(np.array([1.5]), LIBRARY)(log_p).squeeze()
    assert (found.diff() >= 0).all()
    assert found[0] < 1e-3


def test_the_argument_is_left_alone():
    log_p = torch.full((3, 1), -5.0)
    ExpectedLogCP10K(np.array([1.5]), LIBRARY)(log_p)
    torch.testing.assert_close(log_p, torch.full((3, 1), -5.0))
