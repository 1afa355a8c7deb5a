"""How far predicted uncertainty can be trusted: proper scores, coverage, PIT, risk and coverage.

A forecast is a predictive distribution over genes. There are two kinds, :class:`NormalForecast` and
:class:`EnsembleForecast`, with the same methods, so that closed-form and sampled predictions are
scored alike: scores of ensembles are the unbiased ("fair") estimates, which do not reward or punish
the number of draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import scoringrules
from scipy import special, stats

from sccvae_pyro.evaluate.metrics import mean_of_pairs, pearson, squared_distances

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Central intervals that are checked."""

_N_SCORE_DRAWS = 200  # of an energy score: enough to be far more exact than the spread over perturbations
_SMALLEST_SD = 1e-12  # a point forecast has its PIT at 0, 1/2 or 1


class Forecast(Protocol):
    """Predictive distribution of one value per gene."""

    def spread(self) -> np.ndarray:
        """Predictive standard deviation (genes)."""

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the central interval with this probability (genes each)."""

    def pit(self, observed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Probability integral transform of the observations (genes): uniform if calibrated (Dawid 1984)."""

    def crps(self, observed: np.ndarray) -> np.ndarray:
        """Continuous ranked probability score (genes), in the units of the observation; lower is better."""

    def energy_score(self, observed: np.ndarray, rng: np.random.Generator) -> float:
        """Energy score of all genes together; lower is better (Gneiting & Raftery 2007, JASA 102:359)."""

    def with_noise(self, noise_sd: np.ndarray, rng: np.random.Generator) -> Forecast:
        """Forecast of an observation that carries independent normal noise of this sd (genes)."""


@dataclass(frozen=True)
class NormalForecast:
    """Independent normal distributions; ``sd`` of zero is a point forecast.

    Parameters
    ----------
    mean, sd
        Genes each.
    """

    mean: np.ndarray
    sd: np.ndarray

    def spread(self) -> np.ndarray:
        """Predictive standard deviation (genes)."""
        return self.sd

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the central interval with this probability (genes each)."""
        half_width = special.ndtri(0.5 + level / 2) * self.sd
        return self.mean - half_width, self.mean + half_width

    def pit(self, observed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Probability integral transform of the observations (genes)."""
        return special.ndtr((observed - self.mean) / np.maximum(self.sd, _SMALLEST_SD))

    def crps(self, observed: np.ndarray) -> np.ndarray:
        """Continuous ranked probability score (genes); of a point forecast, its absolute error."""
        is_point = self.sd == 0
        score = scoringrules.crps_normal(observed, self.mean, np.where(is_point, 1.0, self.sd))
        return np.where(is_point, np.abs(observed - self.mean), score)

    def energy_score(self, observed: np.ndarray, rng: np.random.Generator) -> float:
        """Energy score from draws; of a point forecast, the length of its error."""
        if not self.sd.any():
            return float(np.linalg.norm(observed - self.mean))
        draws = self.mean + self.sd * rng.standard_normal((_N_SCORE_DRAWS, len(self.mean)))
        return energy_score(observed, draws)

    def with_noise(self, noise_sd: np.ndarray, rng: np.random.Generator) -> NormalForecast:
        """Forecast of an observation that carries independent normal noise of this sd (genes)."""
        return NormalForecast(self.mean, np.hypot(self.sd, noise_sd))


@dataclass(frozen=True)
class EnsembleForecast:
    """Distribution given by draws.

    Parameters
    ----------
    draws
        Draws x genes.
    """

    draws: np.ndarray

    @cached_property
    def _ordered(self) -> np.ndarray:
        """Draws of each gene in ascending order, genes x draws."""
        return np.sort(np.ascontiguousarray(self.draws.T), axis=1)

    def spread(self) -> np.ndarray:
        """Predictive standard deviation (genes)."""
        return self.draws.std(axis=0, ddof=1)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the central interval with this probability (genes each)."""
        return self._quantile(0.5 - level / 2), self._quantile(0.5 + level / 2)

    def _quantile(self, probability: float) -> np.ndarray:
        place = probability * (len(self.draws) - 1)
        share, index = np.modf(place)
        following = min(int(index) + 1, len(self.draws) - 1)
        return (1 - share) * self._ordered[:, int(index)] + share * self._ordered[:, following]

    def pit(self, observed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Randomised probability integral transform (genes), see :func:`ensemble_pit`."""
        below = np.sum(self._ordered < observed[:, None], axis=1)
        upto = np.sum(self._ordered <= observed[:, None], axis=1)
        return _randomised_rank(below, upto, len(self.draws), rng)

    def crps(self, observed: np.ndarray) -> np.ndarray:
        """Continuous ranked probability score (genes)."""
        return scoringrules.crps_ensemble(observed, self._ordered, estimator="pwm", sorted_ensemble=True)

    def energy_score(self, observed: np.ndarray, rng: np.random.Generator) -> float:
        """Energy score from at most 200 of the draws."""
        n_draws = min(_N_SCORE_DRAWS, len(self.draws))
        return energy_score(observed, rng.choice(self.draws, n_draws, replace=False))

    def with_noise(self, noise_sd: np.ndarray, rng: np.random.Generator) -> EnsembleForecast:
        """Forecast of an observation that carries independent normal noise of this sd (genes)."""
        return EnsembleForecast(self.draws + noise_sd * rng.standard_normal(self.draws.shape))


def energy_score(observed: np.ndarray, draws: np.ndarray) -> float:
    """Energy score of a multivariate ensemble, ``E|d - y| - E|d - d'| / 2``; lower is better.

    The fair estimator, by matrix products: its counterpart in scoringrules holds draws x draws x genes.
    Gneiting & Raftery 2007, JASA 102:359, eq. 22.

    Parameters
    ----------
    observed
        Genes.
    draws
        Draws x genes.
    """
    error = np.linalg.norm(draws - observed, axis=1).mean()
    return float(error - 0.5 * mean_of_pairs(np.sqrt(squared_distances(draws, draws))))


def covered(observed: np.ndarray, interval: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether an interval holds each observation, its ends included."""
    low, high = interval
    return (low <= observed) & (observed <= high)


def ensemble_pit(observed: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Randomised probability integral transform of observations under an ensemble.

    Ties, such as zero counts, are broken at random, so that the values are uniform for a calibrated
    forecast of discrete data too (Czado et al. 2009, Biometrics 65:1254).

    Parameters
    ----------
    observed
        Observations x genes.
    draws
        Draws x genes.

    Returns
    -------
    Values in (0, 1), observations x genes.
    """
    below, upto = np.empty((2, *observed.shape))
    for gene, ordered in enumerate(np.sort(np.ascontiguousarray(draws.T), axis=1)):
        below[:, gene] = np.searchsorted(ordered, observed[:, gene], side="left")
        upto[:, gene] = np.searchsorted(ordered, observed[:, gene], side="right")
    return _randomised_rank(below, upto, len(draws), rng)


def _randomised_rank(
    below: np.ndarray, upto: np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Scale ranks among the draws to (0, 1); an observation ties with any of its equals."""
    return (below + rng.uniform(size=below.shape) * (upto - below + 1)) / (n_draws + 1)


def population_crps(observed: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean CRPS of cells of one population under an ensemble of cells that predicts all of them.

    With ``F`` and ``G`` the distribution functions of predicted and observed cells the mean is
    ``integral of F^2 - 2 F G + G``, less ``F (1 - F) / (M - 1)`` for the finite number M of predicted
    cells: one sort per gene instead of a comparison of all pairs.

    Parameters
    ----------
    observed, predicted
        Cells x genes; the numbers of cells may differ.

    Returns
    -------
    One value per gene.
    """
    pooled = np.concatenate([predicted, observed]).T
    order = np.argsort(pooled, axis=1)
    is_predicted = order < len(predicted)
    F = np.cumsum(is_predicted, axis=1) / len(predicted)
    G = np.cumsum(~is_predicted, axis=1) / len(observed)
    steps = np.diff(np.take_along_axis(pooled, order, axis=1), axis=1)
    integrand = F**2 - 2 * F * G + G - F * (1 - F) / (len(predicted) - 1)
    return np.sum(integrand[:, :-1] * steps, axis=1)


def pit_histogram(pit: np.ndarray, n_bins: int = 20) -> np.ndarray:
    """Share of PIT values in each of equally wide bins; all are ``1 / n_bins`` if calibrated."""
    counts, _ = np.histogram(pit, bins=n_bins, range=(0.0, 1.0))
    return counts / counts.sum()


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rank correlation over the last axis; 0 for a constant ``first``, NaN for a constant ``second``."""
    return pearson(stats.rankdata(first, axis=-1), stats.rankdata(second, axis=-1))


def risk_coverage(spread: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Mean error of the predictions that are kept when the least certain are given up.

    Parameters
    ----------
    spread
        Predicted uncertainty of each prediction (last axis).
    error
        Actual error of each prediction (last axis).

    Returns
    -------
    Entry k is the mean error of the k + 1 most certain predictions, that is at coverage (k + 1) / n;
    its mean is the area under the curve. El-Yaniv & Wiener 2010, JMLR 11:1605.
    """
    ranked = np.take_along_axis(error, np.argsort(spread, axis=-1, kind="stable"), axis=-1)
    return np.cumsum(ranked, axis=-1) / np.arange(1, error.shape[-1] + 1)
