"""Scores of forecasts against closed forms; coverage and PIT of forecasts that are known to be right."""

import numpy as np
import pytest
import scoringrules
from scipy import stats

from sccvae_pyro.evaluate import calibration
from sccvae_pyro.evaluate.calibration import EnsembleForecast, NormalForecast


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def gaussian_crps(y, mean, sd):
    z = (y - mean) / sd
    return sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))


def test_crps_of_a_gaussian():
    y, mean, sd = np.array([0.3, -2.0]), np.array([0.0, 1.0]), np.array([1.0, 0.5])
    np.testing.assert_allclose(NormalForecast(mean, sd).crps(y), gaussian_crps(y, mean, sd))


def test_point_forecast_scores_its_error(rng):
    forecast = NormalForecast(np.zeros(2), np.zeros(2))
    observed = np.array([3.0, -4.0])
    np.testing.assert_array_equal(forecast.crps(observed), [3.0, 4.0])
    assert forecast.energy_score(observed, rng) == 5.0
    np.testing.assert_array_equal(forecast.pit(np.array([1.0, 0.0]), rng), [1.0, 0.5])


def test_ensemble_and_normal_forecast_agree(rng):
    mean, sd, observed = np.array([1.0, -1.0]), np.array([0.5, 2.0]), np.array([1.2, 0.5])
    normal, ensemble = NormalForecast(mean, sd), EnsembleForecast(mean + sd * rng.normal(size=(20_000, 2)))
    np.testing.assert_allclose(ensemble.crps(observed), normal.crps(observed), rtol=0.02)
    np.testing.assert_allclose(ensemble.spread(), normal.spread(), rtol=0.02)
    np.testing.assert_allclose(ensemble.pit(observed, rng), normal.pit(observed, rng), atol=0.02)
    np.testing.assert_allclose(ensemble.interval(0.8), normal.interval(0.8), atol=0.06)
    energy = [forecast.energy_score(observed, rng) for forecast in (ensemble, normal)]
    assert energy[0] == pytest.approx(energy[1], rel=0.15)


def test_ensemble_interval_is_the_usual_quantile(rng):
    draws = rng.normal(size=(37, 3))
    np.testing.assert_allclose(
        EnsembleForecast(draws).interval(0.9), np.quantile(draws, [0.05, 0.95], axis=0)
    )


def test_ensemble_scores_are_fair(rng):
    """A small ensemble from the right distribution scores on average what the distribution itself does."""
    observed = rng.normal(size=20_000)
    score = EnsembleForecast(rng.normal(size=(4, 20_000))).crps(observed).mean()
    assert score == pytest.approx(1 / np.sqrt(np.pi), rel=0.02)


def test_energy_score_agrees_with_scoringrules(rng):
    draws, observed = rng.normal(size=(30, 7)), rng.normal(size=7)
    expected = scoringrules.es_ensemble(observed, draws, estimator="fair")
    assert calibration.energy_score(observed, draws) == pytest.approx(expected)


def test_noise_adds_to_the_variance(rng):
    noise = np.array([4.0, 0.0])
    normal = NormalForecast(np.zeros(2), np.array([3.0, 1.0])).with_noise(noise, rng)
    np.testing.assert_array_equal(normal.spread(), [5.0, 1.0])
    ensemble = EnsembleForecast(rng.normal(size=(20_000, 2)) * [3.0, 1.0]).with_noise(noise, rng)
    np.testing.assert_allclose(ensemble.spread(), [5.0, 1.0], rtol=0.02)


@pytest.mark.parametrize("kind", ["normal", "ensemble"])
def test_a_right_forecast_is_calibrated(rng, kind):
    n_genes = 40_000
    mean, sd = rng.normal(size=n_genes), rng.uniform(0.5, 2, size=n_genes)
    observed = mean + sd * rng.normal(size=n_genes)
    draws = mean + sd * rng.normal(size=(199, n_genes))
    forecast = NormalForecast(mean, sd) if kind == "normal" else EnsembleForecast(draws)
    for level in calibration.LEVELS:
        assert calibration.covered(observed, forecast.interval(level)).mean() == pytest.approx(
            level, abs=0.012
        )
    histogram = calibration.pit_histogram(forecast.pit(observed, rng), n_bins=10)
    np.testing.assert_allclose(histogram, 0.1, atol=0.01)


def test_overconfidence_shows(rng):
    observed = rng.normal(size=20_000)
    forecast = NormalForecast(np.zeros(20_000), np.full(20_000, 0.5))
    expected = 2 * stats.norm.cdf(0.5 * stats.norm.ppf(0.95)) - 1
    assert calibration.covered(observed, forecast.interval(0.9)).mean() == pytest.approx(expected, abs=0.01)
    histogram = calibration.pit_histogram(forecast.pit(observed, rng), n_bins=10)
    assert histogram[[0, -1]].min() > 0.15


def test_covered_by_hand():
    interval = (np.array([0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(
        calibration.covered(np.array([-0.1, 1.0, 0.5]), interval), [False, True, True]
    )


def test_pit_of_counts_is_uniform(rng):
    """Zero-inflated counts tie all the time; broken at random, the PIT is still uniform."""
    observed, draws = rng.poisson(0.7, size=(400, 30)), rng.poisson(0.7, size=(300, 30))
    pit = calibration.ensemble_pit(observed, draws, rng)
    assert pit.shape == (400, 30)
    assert ((pit > 0) & (pit < 1)).all()
    np.testing.assert_allclose(calibration.pit_histogram(pit, n_bins=10), 0.1, atol=0.01)


def test_population_crps_is_the_mean_over_cells(rng):
    observed, predicted = rng.poisson(1.0, size=(12, 3)), rng.poisson(1.5, size=(20, 3)).astype(float)
    expected = [scoringrules.crps_ensemble(y, predicted, m_axis=0, estimator="fair") for y in observed]
    np.testing.assert_allclose(calibration.population_crps(observed, predicted), np.mean(expected, axis=0))


def test_spearman_agrees_with_scipy(rng):
    first, second = rng.normal(size=(2, 4, 15)).round(1)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(calibration.spearman(first, second), expected)
    assert calibration.spearman(np.ones(5), np.arange(5.0)) == 0.0


def test_risk_coverage_by_hand():
    spread, error = np.array([0.3, 0.1, 0.2]), np.array([6.0, 1.0, 2.0])
    np.testing.assert_allclose(calibration.risk_coverage(spread, error), [1.0, 1.5, 3.0])
    both = calibration.risk_coverage(np.stack([spread, -spread]), np.stack([error, error]))
    np.testing.assert_allclose(both, [[1.0, 1.5, 3.0], [6.0, 4.0, 3.0]])
