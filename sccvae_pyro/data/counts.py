"""Count arithmetic shared by the simulator, the likelihoods and the evaluation.

Every profile in this package is a mean over cells of ``log1p(CP10K)``, that is
``log1p(1e4 * count / library)``. The logarithm does not commute with the mean over counts, so
the expectation is taken over the counts themselves (:class:`ExpectationTable`), not of the rate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import interpolate, sparse, special, stats
from torch.nn import functional

TARGET_SUM = 1e4


def log1p_cp10k(counts: np.ndarray | sparse.spmatrix, library: np.ndarray) -> np.ndarray | sparse.csr_matrix:
    """Log-normalise counts to ten thousand molecules a cell.

    Parameters
    ----------
    counts
        Cells x genes, dense or sparse; sparse input gives CSR output.
    library
        Molecules of each cell (cells), strictly positive.

    Returns
    -------
    ``log1p(1e4 * counts / library)``, of the same shape.
    """
    scale = TARGET_SUM / np.asarray(library, dtype=np.float64)
    if not sparse.issparse(counts):
        return np.log1p(np.asarray(counts, dtype=np.float64) * scale[:, None])
    normalised = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    normalised.data = np.log1p(normalised.data * np.repeat(scale, np.diff(normalised.indptr)))
    return normalised


class Mixture(NamedTuple):
    """What multiplies the rate of a Poisson count, as quadrature nodes for a range of dispersions.

    Every count of this package is Poisson given its rate; members of the likelihoods differ in how the rate
    varies around its mean. ``log_parameter`` are knots over the logarithm of the dispersion parameter;
    ``log_factor`` and ``weight``, ``knots x nodes``, the nodes of each.
    """

    log_parameter: np.ndarray
    log_factor: np.ndarray
    weight: np.ndarray


def gamma_mixture(n_knots: int = 32, n_nodes: int = 64) -> Mixture:
    """Gamma of mean 1 and shape ``r``: the counts are negative binomial with variance ``m + m^2 / r``.

    The trapezoidal rule on the log scale, where the density is smooth and dies off at both ends. Its
    logarithm falls like ``r t`` on the left, so that most of a small ``r`` lies where counts are zero anyway.
    """
    log_r = np.linspace(np.log(1e-3), np.log(1e4), n_knots)
    r = np.exp(log_r)[:, None]
    with np.errstate(divide="ignore"):
        low = np.maximum(np.log(stats.gamma.ppf(1e-12, r) / r), -30.0)
    high = np.log(stats.gamma.isf(1e-12, r) / r)
    log_factor = low + (high - low) * np.linspace(0.0, 1.0, n_nodes)
    log_density = r * np.log(r) - special.gammaln(r) + r * (log_factor - np.exp(log_factor))
    return Mixture(log_r, log_factor, np.exp(log_density) * (high - low) / (n_nodes - 1))


def log_normal_mixture(n_knots: int = 32, n_nodes: int = 64) -> Mixture:
    """Log-normal of mean 1 whose logarithm has the standard deviation ``s``: Poisson log-normal counts."""
    log_s = np.linspace(np.log(1e-2), np.log(10.0), n_knots)
    s = np.exp(log_s)[:, None]
    z = np.linspace(-8.0, 8.0, n_nodes)
    weight = stats.norm.pdf(z) * (z[1] - z[0])
    return Mixture(log_s, s * z - s**2 / 2, np.broadcast_to(weight, (n_knots, n_nodes)))


def no_mixture() -> Mixture:
    """The factor is one, whatever the parameter: Poisson counts."""
    return Mixture(np.arange(4.0), np.zeros((4, 1)), np.ones((4, 1)))


class ExpectationTable:
    """Expectation of ``log1p(CP10K)`` of overdispersed counts, over log proportion and log dispersion.

    For a gene whose expected proportion of molecules is ``p`` the table holds ``E[log1p(1e4 x / l)]`` with
    ``x ~ Poisson(l p w)`` and ``w`` from the mixture, averaged over the given library sizes ``l``. The
    sum over counts, the integral over ``w`` and the bilinear look-up are together exact to 3e-4. That
    replaces sampling counts by a smooth function without Monte Carlo noise.

    Parameters
    ----------
    mixture
        How the rate varies around its mean.
    library
        Representative library sizes; at most ``n_library`` of their quantiles are kept.
    n_library
        Quantiles of the library sizes to average over.
    n_grid, n_fine
        Points over ``log p`` at which the expectation is computed, and points along each axis of the table
        that a cubic spline makes of them.
    """

    LOG_LOW, LOG_HIGH = np.log(1e-8), 0.0

    def __init__(
        self,
        mixture: Mixture,
        library: np.ndarray,
        n_library: int = 9,
        n_grid: int = 96,
        n_fine: int = 384,
    ) -> None:
        middles = (np.arange(n_library) + 0.5) / n_library
        libraries = np.quantile(np.asarray(library, dtype=np.float64), middles)
        grid = np.linspace(self.LOG_LOW, self.LOG_HIGH, n_grid)
        coarse = np.mean([_expected_log1p(grid, mixture, size) for size in libraries], axis=0)
        self._ends = float(mixture.log_parameter[0]), float(mixture.log_parameter[-1])
        fine = np.linspace(*self._ends, n_fine), np.linspace(self.LOG_LOW, self.LOG_HIGH, n_fine)
        table = interpolate.RectBivariateSpline(mixture.log_parameter, grid, coarse)(*fine)
        self._table = torch.as_tensor(table, dtype=torch.float32)

    def __call__(self, log_proportion: torch.Tensor, log_parameter: torch.Tensor) -> torch.Tensor:
        """Look up the expectation.

        Parameters
        ----------
        log_proportion
            ``... x cells x genes``, natural logarithm of the expected proportion of molecules.
        log_parameter
            Logarithm of the mixture's parameter, of a shape that broadcasts with it. Values beyond the
            knots are taken to their ends, where the expectation is flat.

        Returns
        -------
        Tensor, ``... x cells x genes``, in ``log1p(CP10K)`` units.
        """
        column = _between(log_proportion, self.LOG_LOW, self.LOG_HIGH)
        row = _between(log_parameter, *self._ends).expand_as(column)
        where = torch.stack([column, row], dim=-1).reshape(-1, 1, column.shape[-1], 2)
        table = self._table.to(column).expand(len(where), 1, -1, -1)
        found = functional.grid_sample(table, where, padding_mode="border", align_corners=True)
        return found.reshape(column.shape)


class ExpectedLogCP10K:
    """Expectation of ``log1p(CP10K)`` of negative binomial counts of known dispersion.

    Parameters
    ----------
    inverse_dispersion
        ``r_g``, genes; the variance of a count of mean ``m`` is ``m + m^2 / r_g``.
    library, n_library
        See :class:`ExpectationTable`.
    """

    def __init__(self, inverse_dispersion: np.ndarray, library: np.ndarray, n_library: int = 9) -> None:
        self._log_r = torch.as_tensor(np.log(inverse_dispersion), dtype=torch.float32)
        self._table = ExpectationTable(gamma_mixture(), library, n_library)

    def __call__(self, log_proportion: torch.Tensor) -> torch.Tensor:
        """Look up the expectation of each gene, ``... x genes``, given its log proportion."""
        return self._table(log_proportion, self._log_r.to(log_proportion))


def _between(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Position between two ends, as -1 to 1."""
    return (value - low) * (2.0 / (high - low)) - 1.0


def _expected_log1p(log_proportion: np.ndarray, mixture: Mixture, library: float) -> np.ndarray:
    """Knots x grid table of ``E[log1p(1e4 x / library)]`` by quadrature over the mixing factor.

    The inner Poisson expectation depends on the rate alone, so it is tabulated once and averaged over nodes.
    """
    log_rates = np.linspace(np.log(1e-7), np.log(1e3 * library), 300)
    inner = interpolate.make_interp_spline(
        log_rates, _poisson_expectation(np.exp(log_rates), TARGET_SUM / library)
    )
    fine = np.linspace(log_rates[0], log_rates[-1], 3000)
    log_rate = log_proportion[:, None] + np.log(library) + mixture.log_factor[:, None, :]
    return np.einsum("kgn,kn->kg", np.interp(log_rate, fine, inner(fine)), mixture.weight)


def _poisson_expectation(rates: np.ndarray, scale: float, exact_below: float = 200.0) -> np.ndarray:
    """``E[log1p(scale x)]`` for ``x ~ Poisson(rate)``: a sum over counts, a delta method for large rates."""
    small = rates < exact_below
    counts = np.arange(int(exact_below + 12 * np.sqrt(exact_below)))
    exact = stats.poisson.pmf(counts[None, :], rates[small, None]) @ np.log1p(scale * counts)
    large = rates[~small]
    curvature = -((scale / (1 + scale * large)) ** 2)
    return np.concatenate([exact, np.log1p(scale * large) + 0.5 * curvature * large])
