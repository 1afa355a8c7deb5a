"""Count arithmetic shared by the simulator, the likelihoods and the evaluation.

Every profile in this package is a mean over cells of ``log1p(CP10K)``, that is
``log1p(1e4 * count / library)``. The logarithm does not commute with the mean over counts, so
the expectation is taken over the counts themselves (:class:`ExpectedLogCP10K`), not of the rate.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import interpolate, sparse, stats

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


class ExpectedLogCP10K:
    """Expectation of ``log1p(CP10K)`` under a negative binomial, as a table over the log proportion.

    For gene ``g`` with inverse dispersion ``r_g`` and a cell whose expected proportion of
    molecules is ``p``, the table holds ``E[log1p(1e4 x / l)]`` with ``x ~ NB(mean = l p, r_g)``,
    averaged over the given library sizes ``l``. Look-ups interpolate linearly in ``log p``, which
    replaces sampling counts by a smooth function without Monte Carlo noise. The expectation over
    counts uses equal-probability quantiles of the negative binomial, summed exactly over the
    counts that matter.

    Parameters
    ----------
    inverse_dispersion
        ``r_g``, genes; the variance of a count of mean ``m`` is ``m + m^2 / r_g``.
    library
        Representative library sizes; at most ``n_library`` of their quantiles are kept.
    n_grid
        Grid points over ``log p``.
    n_library
        Quantiles of the library sizes to average over.
    n_dispersion
        Knots over the logarithm of the inverse dispersion; genes between knots are interpolated, so
        that the cost does not grow with the number of genes.
    """

    LOG_LOW, LOG_HIGH = np.log(1e-8), np.log(0.5)

    def __init__(
        self,
        inverse_dispersion: np.ndarray,
        library: np.ndarray,
        n_grid: int = 96,
        n_library: int = 9,
        n_dispersion: int = 24,
    ) -> None:
        middles = (np.arange(n_library) + 0.5) / n_library
        libraries = np.quantile(np.asarray(library, dtype=np.float64), middles)
        grid = np.linspace(self.LOG_LOW, self.LOG_HIGH, n_grid)
        log_r = np.log(np.asarray(inverse_dispersion, dtype=np.float64))
        knots = np.linspace(log_r.min() - 1e-6, log_r.max() + 1e-6, n_dispersion)
        table = np.mean([_expected_log1p(np.exp(grid), np.exp(knots), size) for size in libraries], axis=0)
        table = interpolate.make_interp_spline(knots, table, k=3)(log_r)
        self._table_gt = torch.as_tensor(table, dtype=torch.float32)
        self._step = float(grid[1] - grid[0])

    def __call__(self, log_proportion: torch.Tensor) -> torch.Tensor:
        """Look up the expectation.

        Parameters
        ----------
        log_proportion
            ``... x genes``, natural logarithm of the expected proportion of molecules.

        Returns
        -------
        Tensor of the same shape, in ``log1p(CP10K)`` units.
        """
        n_genes, n_grid = self._table_gt.shape
        table = self._table_gt.to(log_proportion.device)
        position = (log_proportion - self.LOG_LOW).div_(self._step).clamp_(0.0, n_grid - 1.001)
        below = position.floor()
        weight = position - below
        offset = torch.arange(n_genes, device=log_proportion.device) * n_grid
        index = below.long() + offset
        flat = table.reshape(-1)
        return torch.lerp(flat[index], flat[index + 1], weight)


def _expected_log1p(proportion: np.ndarray, inverse_dispersion: np.ndarray, library: float) -> np.ndarray:
    """Genes x grid table of ``E[log1p(1e4 x / library)]`` by quadrature over the gamma mixing rate.

    A negative binomial is a Poisson whose rate is gamma distributed. The inner Poisson expectation
    depends on the rate alone, so it is tabulated once and averaged over gamma quantiles.
    """
    rates = np.logspace(-7, np.log10(library) + 1.5, 700)
    inner = _poisson_expectation(rates, TARGET_SUM / library)
    n_quantiles = 64
    middles = (np.arange(n_quantiles) + 0.5) / n_quantiles
    unit = stats.gamma.ppf(middles, inverse_dispersion[:, None]) / inverse_dispersion[:, None]
    unit /= unit.mean(axis=1, keepdims=True)
    rate = proportion[None, :, None] * library * np.maximum(unit[:, None, :], 1e-12)
    return np.interp(np.log(rate), np.log(rates), inner).mean(axis=-1)


def _poisson_expectation(rates: np.ndarray, scale: float, exact_below: float = 200.0) -> np.ndarray:
    """``E[log1p(scale x)]`` for ``x ~ Poisson(rate)``: a sum over counts, a delta method for large rates."""
    small = rates < exact_below
    counts = np.arange(int(exact_below + 12 * np.sqrt(exact_below)))
    exact = stats.poisson.pmf(counts[None, :], rates[small, None]) @ np.log1p(scale * counts)
    large = rates[~small]
    curvature = -((scale / (1 + scale * large)) ** 2)
    return np.concatenate([exact, np.log1p(scale * large) + 0.5 * curvature * large])
