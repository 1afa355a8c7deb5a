"""Metrics against closed forms and values worked out by hand."""

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import r2_score

from sccvae_pyro.evaluate import metrics
from sccvae_pyro.evaluate.metrics import CellDistances


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_errors_by_hand():
    predicted, observed = (
        np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
        np.array([[1.0, 0.0, 4.0], [3.0, 0.0, 4.0]]),
    )
    np.testing.assert_allclose(metrics.mse(predicted, observed), [5 / 3, 25 / 3])
    np.testing.assert_allclose(metrics.rmse(predicted, observed), np.sqrt([5 / 3, 25 / 3]))
    np.testing.assert_allclose(metrics.mae(predicted, observed), [1.0, 7 / 3])
    np.testing.assert_allclose(metrics.wmse(predicted, observed, np.array([0.5, 0.25, 0.25])), [1.25, 8.5])


def test_perturbation_weights_are_squared_min_max():
    weights = metrics.perturbation_weights(np.array([[-3.0, 1.0, 2.0], [1.0, -1.0, 1.0]]))
    np.testing.assert_allclose(weights, [[0.8, 0.0, 0.2], [1 / 3, 1 / 3, 1 / 3]])


def test_pearson_agrees_with_scipy(rng):
    first, second = rng.normal(size=(2, 5, 40))
    expected = [stats.pearsonr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(metrics.pearson(first, second), expected)


def test_pearson_of_constants():
    varying, constant = np.array([1.0, 2.0, 4.0]), np.ones(3)
    assert metrics.pearson(constant, varying) == 0.0
    assert metrics.pearson(constant + np.array([0, 1e-8, 0]), varying) == 0.0, "rounding is no information"
    assert np.isnan(metrics.pearson(varying, constant))
    assert np.isnan(metrics.pearson(varying[:2], varying[:2])), "two points always correlate"


def test_pearson_delta_depends_on_its_reference(rng):
    control, shared = rng.normal(size=(2, 200))
    own = rng.normal(size=(3, 200))
    observed = control + 3 * shared + own
    predicted = np.tile(control + 3 * shared, (3, 1))
    assert (metrics.pearson_delta(predicted, observed, control) > 0.8).all()
    np.testing.assert_array_equal(metrics.pearson_delta(predicted, observed, control + 3 * shared), 0.0)


def test_weighted_r2_agrees_with_sklearn(rng):
    predicted, observed, reference = rng.normal(size=(3, 30))
    weights = metrics.perturbation_weights(rng.normal(size=30))
    expected = r2_score(observed - reference, predicted - reference, sample_weight=weights)
    assert metrics.weighted_r2(predicted, observed, reference, weights) == pytest.approx(expected)
    assert metrics.weighted_r2(observed, observed, reference, weights) == 1.0
    assert metrics.weighted_r2(reference, observed, reference, weights) <= 0.0


def test_centroid_accuracy_by_hand():
    observed = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    predicted = np.array([[0.1, 0.0], [0.5, 0.0], [0.5, 0.0]])
    np.testing.assert_allclose(metrics.centroid_accuracy(predicted, observed), [1.0, 0.5, 0.0])


def test_centroid_accuracy_extremes(rng):
    observed = rng.normal(size=(12, 30))
    np.testing.assert_array_equal(metrics.centroid_accuracy(observed, observed), 1.0)
    constant = np.tile(rng.normal(size=30), (12, 1))
    assert metrics.centroid_accuracy(constant, observed).mean() == pytest.approx(0.5)
    assert np.isnan(metrics.centroid_accuracy(observed[:1], observed[:1])).all()


# Differential expression


def test_welch_agrees_with_scipy(rng):
    first, second = rng.normal(size=(8, 20)), rng.normal(1.0, 2.0, size=(15, 20))
    expected = stats.ttest_ind(first, second, equal_var=False)
    statistic, p_value = metrics.welch_t(
        first.mean(0), first.var(0, ddof=1), 8, second.mean(0), second.var(0, ddof=1), 15
    )
    np.testing.assert_allclose(statistic, expected.statistic)
    np.testing.assert_allclose(p_value, expected.pvalue)


def test_welch_of_silent_genes_is_not_significant():
    zero = np.zeros(2)
    statistic, p_value = metrics.welch_t(zero, zero, 10, zero, zero, 20)
    np.testing.assert_array_equal(statistic, 0.0)
    np.testing.assert_array_equal(p_value, 1.0)


def test_moments_of_rest(rng):
    groups = [rng.normal(size=(n, 3)) for n in (4, 6, 5)]
    mean, var = np.array([g.mean(0) for g in groups]), np.array([g.var(0) for g in groups])
    labels = np.array(["a", "b", "a"])
    rest_mean, rest_var, rest_n = metrics.moments_of_rest(mean, var, np.array([4, 6, 5]), labels)
    rest_of_b = np.concatenate([groups[0], groups[2]])
    np.testing.assert_allclose(rest_mean, [groups[1].mean(0), rest_of_b.mean(0), groups[1].mean(0)])
    np.testing.assert_allclose(rest_var, [groups[1].var(0), rest_of_b.var(0), groups[1].var(0)])
    np.testing.assert_array_equal(rest_n, [[6], [9], [6]])


def test_top_de_genes():
    statistic = np.array([5.0, -9.0, 0.1, 6.0])
    p_value = np.array([1e-4, 1e-8, 0.9, 1e-5])
    np.testing.assert_array_equal(metrics.top_de_genes(statistic, p_value), [1, 3, 0])
    np.testing.assert_array_equal(metrics.top_de_genes(statistic, p_value, n_top=2), [1, 3])
    assert len(metrics.top_de_genes(statistic, np.full(4, 0.04))) == 4
    assert len(metrics.top_de_genes(statistic, np.full(4, 0.06))) == 0


def test_de_genes_of_noise_stay_below_the_false_discovery_rate(rng):
    found = 0
    for _ in range(200):
        first, second = rng.normal(size=(2, 30, 50))
        moments = [(x.mean(0), x.var(0, ddof=1), 30) for x in (first, second)]
        found += len(metrics.top_de_genes(*metrics.welch_t(*moments[0], *moments[1]))) > 0
    assert found / 200 < 0.1


# Populations of cells


def test_squared_distances(rng):
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(5, 6))
    expected = ((first[:, None] - second[None]) ** 2).sum(-1)
    np.testing.assert_allclose(metrics.squared_distances(first, second), expected)


def test_energy_distance_of_points():
    # Pairs {0, 2} and {5, 9}: 2 * mean(5, 9, 3, 7) - 2 - 4.
    distances = CellDistances.of(np.array([[0.0], [2.0]]), np.array([[5.0], [9.0]]))
    assert metrics.energy_distance(distances) == pytest.approx(2 * 6 - 2 - 4)


def gaussian_grid(mean, n=1000):
    """Quantiles of a normal distribution: a sample without noise."""
    return stats.norm.ppf((np.arange(n) + 0.5) / n, loc=mean)[:, None]


def test_energy_distance_of_gaussians():
    """In one dimension E|x - y| of unit normals is known: sqrt(4/pi) within, a folded normal between."""
    shift = 1.5
    between = stats.foldnorm(shift / np.sqrt(2), scale=np.sqrt(2)).mean()
    expected = 2 * between - 2 * np.sqrt(4 / np.pi)
    estimate = metrics.energy_distance(CellDistances.of(gaussian_grid(0.0), gaussian_grid(shift)))
    assert estimate == pytest.approx(expected, abs=0.005)


def test_mmd_of_gaussians():
    """The mean of exp(-d^2 / 2h) for unit normals s apart is sqrt(h / (h + 2)) exp(-s^2 / 2(h + 2))."""
    shift, scale = 2.0, 1.3

    def expected_kernel(distance):
        width = scale * np.array(metrics.BANDWIDTHS)
        return np.mean(np.sqrt(width / (width + 2)) * np.exp(-(distance**2) / (2 * (width + 2))))

    estimate = metrics.mmd2(CellDistances.of(gaussian_grid(0.0), gaussian_grid(shift)), scale)
    assert estimate == pytest.approx(2 * expected_kernel(0) - 2 * expected_kernel(shift), abs=0.005)


@pytest.mark.parametrize("n_second", [10, 25])
def test_distances_average_zero_under_the_null(rng, n_second):
    estimates = []
    for _ in range(500):
        distances = CellDistances.of(rng.normal(size=(10, 4)), rng.normal(size=(n_second, 4)))
        estimates.append((metrics.energy_distance(distances), metrics.mmd2(distances, scale=4.0)))
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0) / np.sqrt(500)
    assert (np.abs(mean) < 3.5 * error).all()
    assert (np.min(estimates, axis=0) < 0).all(), "unbiased estimates of zero must be negative at times"


def test_shifted_distances_are_those_of_shifted_cells(rng):
    first, second, shift = rng.normal(size=(6, 5)), rng.normal(size=(7, 5)), rng.normal(size=5)
    moved = CellDistances.of(first, second).shifted(first @ shift, second @ shift, shift @ shift)
    expected = CellDistances.of(first + shift, second)
    np.testing.assert_allclose(moved.between, expected.between)
    np.testing.assert_allclose(moved.within_first, expected.within_first, atol=1e-12)


def test_median_scale():
    assert metrics.median_scale(np.array([[1.0, 3.0], [5.0, 7.0]])) == 4.0
    assert metrics.median_scale(np.zeros((2, 2))) == 1.0


# Noise ceiling


def test_split_halves_are_halves(rng):
    cells = rng.normal(size=(9, 4))
    for matrix in (cells, sparse.csr_matrix(cells)):
        first, second = metrics.split_halves(matrix, 5, np.random.default_rng(1))
        assert first.shape == second.shape == (5, 4)
        left_out = 9 * cells.mean(0) - 4 * (first + second)
        assert all(np.isclose(cells, row).all(1).any() for row in left_out), "one odd cell is left out"


def test_ceilings_are_the_scores_of_the_true_mean(rng):
    """Over many simulated perturbations, what halves tell equals what the truth scores on all cells."""
    n_perturbations, n_cells, n_genes = 300, 20, 60
    truth = rng.normal(0, 0.25, size=(n_perturbations, n_genes))
    cells = truth[:, None] + rng.normal(size=(n_perturbations, n_cells, n_genes))
    observed = cells.mean(axis=1)
    halves = [metrics.split_halves(c, 10, rng) for c in cells]

    def between(metric):
        return np.array([metric(*pair).mean() for pair in halves])

    def correlation(t, y):
        return metrics.pearson_delta(t, y, np.zeros(n_genes))

    mse = metrics.ceiling_of_squared_error(between(metrics.mse)).mean()
    assert mse == pytest.approx(metrics.mse(truth, observed).mean(), rel=0.02)
    for metric in (metrics.rmse, metrics.mae):
        absolute = metrics.ceiling_of_absolute_error(between(metric)).mean()
        assert absolute == pytest.approx(metric(truth, observed).mean(), rel=0.02)
    ceiling = metrics.ceiling_of_correlation(between(correlation)).mean()
    assert ceiling == pytest.approx(correlation(truth, observed).mean(), abs=0.02)


def test_gap_closed():
    assert metrics.gap_closed(np.array(3.0), np.array(2.0), np.array(6.0)) == 0.25
    assert metrics.gap_closed(np.array(0.5), np.array(1.0), np.array(0.5)) == 1.0, "lower is better too"
    assert np.isnan(metrics.gap_closed(np.array(1.0), np.array(1.0), np.array(1.0)))
