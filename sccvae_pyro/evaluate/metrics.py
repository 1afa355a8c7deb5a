"""Metrics of predicted mean profiles and of predicted cells: pure functions of arrays.

Notation: ``t`` is a predicted mean profile, ``y`` the held-out one, ``c`` the mean of real control
cells, ``m`` the mean of the training-perturbation means; all are means of log1p(CP10K) over cells.
Genes are the last axis everywhere, and functions broadcast over the axes before it. A metric that
is not defined for a perturbation (no differentially expressed genes, a single perturbation to tell
apart) is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse, special, stats

SMALLEST_DIFFERENCE = 1e-6
"""Predictions of log1p(CP10K) are stored in single precision: a smaller difference is none."""

FEWEST_GENES = 3
"""Genes below which a correlation says nothing."""


# Errors of means


def mse(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Mean squared error over genes."""
    return np.mean((predicted - observed) ** 2, axis=-1)


def rmse(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Root mean squared error over genes."""
    return np.sqrt(mse(predicted, observed))


def mae(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Mean absolute error over genes."""
    return np.mean(np.abs(predicted - observed), axis=-1)


def wmse(predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean squared error, ``sum_g w_g (t_g - y_g)^2`` (Mejia et al. 2025, arXiv:2506.22641).

    Parameters
    ----------
    weights
        Weights of the genes that sum to one, see :func:`perturbation_weights`.
    """
    return np.sum(weights * (predicted - observed) ** 2, axis=-1)


def perturbation_weights(t_statistic: np.ndarray) -> np.ndarray:
    """Weights of the genes that set a perturbation apart (Mejia et al. 2025, arXiv:2506.22641).

    Parameters
    ----------
    t_statistic
        Statistic of each gene for the cells of the perturbation against those of all others.

    Returns
    -------
    Squared min-max of ``|t|``, normalised to sum to one; uniform where all ``|t|`` are equal.
    """
    size = np.abs(t_statistic)
    low, high = size.min(axis=-1, keepdims=True), size.max(axis=-1, keepdims=True)
    spread = high - low
    scaled = np.where(spread > 0, (size - low) / np.where(spread > 0, spread, 1.0), 1.0) ** 2
    return scaled / scaled.sum(axis=-1, keepdims=True)


# Agreement of differences


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation over the last axis.

    A constant ``first`` (the prediction) carries no information and scores 0; for a constant
    ``second`` (the observation), or fewer than three entries, the correlation is NaN.
    """
    a = first - first.mean(axis=-1, keepdims=True)
    b = second - second.mean(axis=-1, keepdims=True)
    norm_a, norm_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    negligible = SMALLEST_DIFFERENCE * np.sqrt(a.shape[-1])
    flat_a, flat_b = norm_a <= negligible, norm_b <= negligible
    scale = np.where(flat_a | flat_b, 1.0, norm_a * norm_b)
    correlation = np.where(flat_a, 0.0, np.sum(a * b, axis=-1) / scale)
    return np.where(flat_b | (a.shape[-1] < FEWEST_GENES), np.nan, correlation)


def pearson_delta(predicted: np.ndarray, observed: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Correlation of predicted with observed differences to a reference, ``cor(t - r, y - r)``.

    With the control mean as reference this is the usual Pearson delta (Roohani et al. 2024, GEARS, Nat
    Biotechnol 42:927). With the mean of the training perturbations it no longer rewards the effect that
    all perturbations share (Viñas Torné et al. 2025, Systema, Nat Biotechnol).
    """
    return pearson(predicted - reference, observed - reference)


def weighted_r2(
    predicted: np.ndarray, observed: np.ndarray, reference: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Weighted R² of the differences to a reference (Mejia et al. 2025, arXiv:2506.22641).

    ``1 - sum w (t - y)^2 / sum w (d - mean_w d)^2`` with ``d = y - r``: 1 is perfect, and the
    reference itself scores at most 0.
    """
    return 1.0 - wmse(predicted, observed, weights) / weighted_variance(observed - reference, weights)


def weighted_variance(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted variance over the last axis; NaN where it vanishes."""
    center = np.sum(weights * values, axis=-1, keepdims=True)
    variance = np.sum(weights * (values - center) ** 2, axis=-1)
    return np.where(variance > SMALLEST_DIFFERENCE**2, variance, np.nan)


def centroid_accuracy(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Share of the other observed centroids that lie farther from a prediction than the right one.

    Parameters
    ----------
    predicted, observed
        Means, perturbations x genes, in the same order.

    Returns
    -------
    One value per perturbation; 1 is perfect, 0.5 is what a constant prediction averages, NaN if
    there is no other perturbation.

    References
    ----------
    Viñas Torné et al. 2025 (Systema), Nat Biotechnol; Euclidean distance.
    """
    distances = squared_distances(predicted, observed)
    n_others = len(observed) - 1
    if n_others == 0:
        return np.full(len(observed), np.nan)
    farther = distances > np.diag(distances)[:, None]
    return farther.sum(axis=1) / n_others


# Differential expression


def welch_t(
    mean: np.ndarray,
    var: np.ndarray,
    n: float | np.ndarray,
    other_mean: np.ndarray,
    other_var: np.ndarray,
    other_n: float | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Welch's t-test of every gene from group means, variances and sizes (Welch 1947, Biometrika 34:28).

    Returns
    -------
    Statistic and two-sided p value; 0 and 1 for a gene that is constant in both groups.
    """
    a, b = var / n, other_var / other_n
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = (mean - other_mean) / np.sqrt(a + b)
        freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (other_n - 1))
        p_value = 2.0 * special.stdtr(freedom, -np.abs(statistic))
    usable = np.isfinite(statistic) & np.isfinite(p_value)
    return np.where(usable, statistic, 0.0), np.where(usable, p_value, 1.0)


def moments_of_rest(
    mean: np.ndarray, var: np.ndarray, n: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and size of the union of all groups with another label, for each group.

    Parameters
    ----------
    mean, var
        Groups x genes, of the cells of each group.
    n
        Cells of each group (groups).
    labels
        Label of each group (groups); it may occur twice.

    Returns
    -------
    Mean and variance (groups x genes) and size (groups x 1) of the rest; NaN, NaN and 0 if there is none.
    """
    _, codes = np.unique(labels, return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(codes)), (np.arange(len(codes)), codes)))

    def of_rest(values: np.ndarray) -> np.ndarray:
        return values.sum(axis=0) - member @ (member.T @ values)

    size = np.asarray(n, dtype=float)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rest_mean = of_rest(size * mean) / of_rest(size)
        rest_var = of_rest(size * (var + mean**2)) / of_rest(size) - rest_mean**2
    return rest_mean, np.maximum(rest_var, 0.0), of_rest(size)


def top_de_genes(
    statistic: np.ndarray, p_value: np.ndarray, n_top: int = 20, fdr: float = 0.05
) -> np.ndarray:
    """Find the differentially expressed genes with the largest ``|t|``; their indices, largest first.

    Only genes below the false discovery rate count (Benjamini & Hochberg 1995), so there may be fewer
    than ``n_top`` of them, or none.
    """
    significant = np.flatnonzero(stats.false_discovery_control(p_value) < fdr)
    order = np.argsort(-np.abs(statistic[significant]), kind="stable")
    return significant[order[:n_top]]


# Distances between populations of cells


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between rows (n_first x n_second), by one matrix product."""
    norms = np.sum(first**2, axis=1)[:, None] + np.sum(second**2, axis=1)[None, :]
    return np.maximum(norms - 2.0 * (first @ second.T), 0.0)


@dataclass(frozen=True)
class CellDistances:
    """Squared Euclidean distances within and between two populations of cells.

    Parameters
    ----------
    within_first, between, within_second
        n_first x n_first, n_first x n_second, n_second x n_second.
    """

    within_first: np.ndarray
    between: np.ndarray
    within_second: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> CellDistances:
        """Distances between populations given as cells x genes."""
        return cls(
            squared_distances(first, first),
            squared_distances(first, second),
            squared_distances(second, second),
        )

    def shifted(
        self, along_first: np.ndarray, along_second: np.ndarray, squared_length: float
    ) -> CellDistances:
        """Distances after the first population has moved by a vector; its inner distances stay.

        Parameters
        ----------
        along_first, along_second
            Inner products of the cells of each population with the vector.
        squared_length
            Squared length of the vector.
        """
        change = 2.0 * (along_first[:, None] - along_second[None, :]) + squared_length
        return CellDistances(self.within_first, np.maximum(self.between + change, 0.0), self.within_second)


def mean_of_pairs(matrix: np.ndarray) -> float:
    """Mean of a square matrix without its diagonal: over pairs of different cells."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


def energy_distance(distances: CellDistances) -> float:
    """Energy distance, ``2 E|x - y| - E|x - x'| - E|y - y'|``, between two populations of cells.

    The unbiased (U-statistic) estimate: two samples of one population average 0 at any size, and a
    single estimate may be negative. Székely & Rizzo 2013, J Stat Plan Inference 143:1249; for cells
    Peidli et al. 2024, Nat Methods 21:531.
    """
    return float(
        2.0 * np.sqrt(distances.between).mean()
        - mean_of_pairs(np.sqrt(distances.within_first))
        - mean_of_pairs(np.sqrt(distances.within_second))
    )


BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Squared bandwidths of the kernels of :func:`mmd2`, in units of the scale; each twice the one before."""


def mmd2(distances: CellDistances, scale: float) -> float:
    """Squared maximum mean discrepancy under the mean of five Gaussian kernels.

    The kernels are ``exp(-d^2 / (2 b scale))`` with ``b`` from :data:`BANDWIDTHS`. The unbiased
    estimate of Gretton et al. 2012, JMLR 13:723, eq. 3: it averages 0 for two samples of one
    population and may be negative.

    Parameters
    ----------
    distances
        Distances of the two populations.
    scale
        Squared length that sets the bandwidths; the same for all methods that are compared, see
        :func:`median_scale`.
    """

    def kernel(squared: np.ndarray) -> np.ndarray:
        # Halving a squared bandwidth squares the kernel: one exponential serves all.
        current = np.exp(squared / (-2.0 * BANDWIDTHS[-1] * scale))
        total = current.copy()
        for _ in BANDWIDTHS[1:]:
            current = current**2
            total += current
        return total / len(BANDWIDTHS)

    within = mean_of_pairs(kernel(distances.within_first)) + mean_of_pairs(kernel(distances.within_second))
    return float(within - 2.0 * kernel(distances.between).mean())


def median_scale(squared: np.ndarray) -> float:
    """Median of squared distances between cells: the usual scale of the bandwidths; 1 if it vanishes."""
    median = float(np.median(squared))
    return median if median > 0 else 1.0


# Noise ceiling


def split_halves(
    cells: np.ndarray | sparse.sparray | sparse.spmatrix, n_splits: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Means of random halves of a population.

    Parameters
    ----------
    cells
        Cells x genes, dense or sparse; at least two cells, an odd one is left out of each split.
    n_splits
        Number of random splits.
    rng
        Generator of the splits.

    Returns
    -------
    Means of the first and second halves, each splits x genes.
    """
    n_cells = cells.shape[0]
    half = n_cells // 2
    order = rng.permuted(np.tile(np.arange(n_cells), (n_splits, 1)), axis=1)
    indicator = np.zeros((2, n_splits, n_cells))
    rows = np.arange(n_splits)[:, None]
    indicator[0, rows, order[:, :half]] = 1.0 / half
    indicator[1, rows, order[:, half : 2 * half]] = 1.0 / half
    return np.asarray(indicator[0] @ cells), np.asarray(indicator[1] @ cells)


def ceiling_of_squared_error(between_halves: np.ndarray) -> np.ndarray:
    """Squared error that the true mean has against all cells, from that between halves of them.

    The noise of a half mean has twice the variance of that of the mean of all, and two halves differ
    by two such noises: a factor of four.
    """
    return between_halves / 4.0


def ceiling_of_absolute_error(between_halves: np.ndarray) -> np.ndarray:
    """Absolute (or root mean squared) error that the true mean has, from that between halves."""
    return between_halves / 2.0


def ceiling_of_correlation(between_halves: np.ndarray) -> np.ndarray:
    """Correlation that the true mean has with the mean of all cells, from that between halves.

    The Spearman-Brown formula gives the reliability of the mean of all cells (Spearman 1910, Brown
    1910, Br J Psychol 3); its root is the correlation with the truth.
    """
    reliable = np.maximum(between_halves, 0.0)
    return np.sqrt(2.0 * reliable / (1.0 + reliable))


def gap_closed(score: np.ndarray, trivial: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """Share of the gap from the best trivial baseline to the noise ceiling that a method closes.

    1 is the ceiling, 0 the baseline, negative is worse than the baseline.
    """
    gap = ceiling - trivial
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap != 0, (score - trivial) / gap, np.nan)
