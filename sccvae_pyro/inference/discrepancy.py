"""What a fitted program leaves unexplained of the training means, gene by gene.

Nodes carry what perturbations have in common along a few directions, not what each does to single
genes. The difference between a training mean and its prediction is a discrepancy between program and
data (Kennedy & O'Hagan 2001, J R Stat Soc B 63:425): its mean over the perturbations is an effect that all of
them share, its spread, beyond sampling noise, belongs into the intervals of every prediction. Both are
learned from a few perturbations, so that neither is known: the belief about a perturbation that is not among
them is a t distribution, whose variance borrows strength over the genes (Smyth 2004, Stat Appl Genet Mol
Biol 3:3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.inference.posterior import Controls, Draws, Push, population_means, stream
from sccvae_pyro.models.program import Program

LABEL_CHUNK = 256

FEWEST_LABELS = 5
"""Labels below which they cannot tell of tails."""

LEAST_DF, MOST_DF = 4.0, 1000.0
"""Bounds of degrees of freedom that a spread of variances speaks for: they have one beyond four only."""


class Discrepancy(NamedTuple):
    """Belief about what is left of the difference to control of a perturbation, gene by gene.

    ``mean_g``: mean over perturbations; ``sd_g``: spread over them; ``error_g``: sd of the mean itself; each
    in the units of a profile. ``df_g``: degrees of freedom of both spreads of a gene. ``df_labels``: those of
    the spread of a perturbation over all genes, as much is left of some perturbations and little of others.
    """

    mean_g: np.ndarray
    sd_g: np.ndarray
    error_g: np.ndarray
    df_g: np.ndarray
    df_labels: np.ndarray

    @classmethod
    def none(cls, n_genes: int) -> Self:
        """Nothing is left."""
        zero = np.zeros(n_genes)
        return cls(zero, zero, zero, zero + MOST_DF, np.array(MOST_DF))

    def of_mean(self, genes: np.ndarray) -> Self:
        """What is left of the mean over some of the genes; one gene."""
        spread, error = (np.sqrt(np.square(sd_g[genes]).sum()) for sd_g in (self.sd_g, self.error_g))
        parts = self.mean_g[genes].mean(), spread / len(genes), error / len(genes)
        mean, spread, error, df = np.reshape((*parts, self.df_g[genes].min()), (4, 1))
        return type(self)(mean, spread, error, df, self.df_labels)

    def add_to(
        self, deltas: np.ndarray, penetrance: float, labels: Sequence[str], n_targets: np.ndarray, seed: int
    ) -> None:
        """Add its draws to predicted differences, in place; nothing to those of control cells.

        Each draw has one mean and one spread of every gene, for all labels, and what is left of each label.

        Parameters
        ----------
        deltas
            ``draws x labels x genes``.
        penetrance
            Factor on the discrepancy, as on the shift.
        labels
            Names of the labels: the draws of each are its own, whatever else is asked for.
        n_targets
            Targets of each label. The spread is that of a sum of independent parts; the shared
            mean counts once, as it is the same for every perturbed cell.
        seed
            Seed of the draws.
        """
        rng = np.random.default_rng(stream(seed, 5))
        shape = len(deltas), len(self.mean_g)
        # A t is a normal whose variance is not known; one spread of a gene for all labels of a draw.
        scale = np.sqrt(self.df_g / rng.chisquare(self.df_g, shape)).astype(np.float32)
        shared = _centred(scale * rng.standard_normal(shape, np.float32)) * self.error_g
        for i, (label, n) in enumerate(zip(labels, n_targets, strict=True)):
            if n:
                rng = np.random.default_rng([seed, *label.encode()])
                of_label = np.sqrt((self.df_labels - 2) / rng.chisquare(self.df_labels, (len(deltas), 1)))
                own = _centred(of_label * scale * rng.standard_normal(shape, np.float32))
                left = self.mean_g + shared + np.sqrt(n) * self.sd_g * own
                deltas[:, i] += (penetrance * left).astype(np.float32)

    def variance(self, penetrance: float, n_targets: np.ndarray) -> np.ndarray:
        """Variance of its draws, as :meth:`add_to` adds them, ``labels x genes``."""
        n_l1 = n_targets[:, None]
        normal = np.square(self.sd_g) * n_l1 + np.square(self.error_g) * (n_l1 > 0)
        return penetrance**2 * normal * np.where(normal > 0, self.df_g / (self.df_g - 2.0), 0.0)


def _centred(draws: np.ndarray) -> np.ndarray:
    """Draws less their mean, so that a spread does not move the mean of a prediction."""
    return draws - draws.mean(axis=0)


def fit_discrepancy(
    program: Program,
    draws: Draws,
    controls: Controls,
    push: Push,
    observed: Profiles,
    n_targets: np.ndarray,
    cells_per_draw: int,
    seed: int,
) -> Discrepancy:
    """Compare predicted differences with the training means.

    Parameters
    ----------
    program, draws, controls
        Fitted program, draws of its globals, and cells to start from, with the observed control mean.
    push
        What the labels of ``observed`` do.
    observed
        Training means of perturbed cells, with a variance also where there is one cell.
    n_targets
        Targets of each label of ``observed``: the discrepancy of a combination is a sum of parts.
    cells_per_draw, seed
        See :func:`~sccvae_pyro.inference.posterior.population_means`.

    Returns
    -------
    Discrepancy; none where nothing was perturbed.
    """
    if not len(observed.n):
        return Discrepancy.none(program.sizes.genes)
    mean, noise = observed.mean.to_numpy(), observed.var.to_numpy() / observed.n.to_numpy()[:, None]
    left, expected = np.empty((2, *mean.shape))
    library = controls.library_c.numpy()
    for start in range(0, len(mean), LABEL_CHUNK):
        labels = slice(start, start + LABEL_CHUNK)
        chunk = population_means(program, draws, controls, push.of(labels), library, cells_per_draw, seed)
        deltas = np.stack([delta for _, delta in chunk])
        left[labels] = mean[labels] - controls.mean_g - deltas.mean(axis=0)
        # The program was fitted to these very means: of their noise it has taken up its posterior variance.
        expected[labels] = np.maximum(noise[labels] - deltas.var(axis=0, ddof=1), 0.0)
    return believe(left, expected, n_targets)


def believe(left: np.ndarray, noise: np.ndarray, n_targets: np.ndarray) -> Discrepancy:
    """Learn a normal with unknown mean and variance of each gene from what is left of some labels.

    Of the belief, the mean counts as one perturbation of which nothing is left, and the variance as that of
    so many perturbations as the spread of the variances over the genes speaks for. The spread of what is left
    over the labels, all genes together, says how heavy the tails are. Moments stand in for the posterior,
    which sampling noise keeps from being conjugate: it is taken off them, and what it hides is not counted.

    Parameters
    ----------
    left
        ``labels x genes``, what is left of the difference of each label.
    noise
        Its sampling variance, same shape.
    n_targets
        Targets of each label.

    Returns
    -------
    Discrepancy
    """
    # Fewer cells, more targets: less is told of one perturbation. Moments are right under any weights.
    noise_l = noise.mean(axis=1)
    typical = np.median(noise_l)
    weight_l = 1.0 / (n_targets + (noise_l / typical if typical > 0 else 0.0))
    total = weight_l.sum()
    number = total**2 / (weight_l**2 @ n_targets)

    mean_g, noise_of_mean_g = weight_l @ left / total, np.square(weight_l / total) @ noise
    kept_l = weight_l * (1.0 - weight_l / total)  # deviations from an estimated mean are too small
    within_g = weight_l @ np.square(left - mean_g) - kept_l @ noise
    degrees = number - 1.0
    within_g *= degrees / (kept_l @ n_targets) if degrees > 0 else 0.0
    between_g = (np.square(mean_g) - noise_of_mean_g) * number / (number + 1.0)
    variance_g = (within_g + between_g) / number

    # Where noise hides it all: as much as could be there unseen, a standard error over genes.
    typical_variance = max(variance_g.mean(), variance_g.std() / np.sqrt(len(variance_g)))
    told_g = number * _share(typical_variance, number * noise_of_mean_g) ** 2
    pooled = min(_degrees(variance_g, told_g), max(told_g.sum(), 2.0 * LEAST_DF))
    df_g = pooled + told_g
    # The mean of scaled inverse chi-squares is their scale times df / (df - 2).
    scale_g = ((pooled - 2.0) * typical_variance + told_g * variance_g) / df_g
    sd_g = np.sqrt(np.maximum(scale_g, 0.0))
    kept_g = _share(np.square(sd_g), np.square(sd_g) / number + noise_of_mean_g)
    error_g = sd_g * np.sqrt(1.0 - kept_g)
    return Discrepancy(kept_g * mean_g, sd_g, error_g, df_g, _tails(left - mean_g, noise_l, n_targets))


def _share(signal: np.ndarray | float, noise: np.ndarray) -> np.ndarray:
    """Share of the signal in the sum of both variances; none of nothing."""
    signal = np.maximum(signal, 0.0)
    both = signal + np.maximum(noise, 0.0)
    return np.divide(signal, both, out=np.zeros_like(both), where=both > 0)


def _tails(deviation: np.ndarray, noise_l: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the spread of a label over all genes; those of a normal where labels are few.

    Genes move together: they count for as many as have the same sum of squared covariances.
    """
    if len(deviation) < FEWEST_LABELS:
        return np.array(MOST_DF)
    some = deviation[np.linspace(0, len(deviation) - 1, min(len(deviation), LABEL_CHUNK)).astype(int)]
    products = some @ some.T
    number = np.trace(products) ** 2 / np.square(products).sum()
    variance_l = (np.square(deviation).mean(axis=1) - noise_l) / n_targets
    told_l = number * _share(variance_l.mean(), noise_l) ** 2
    return np.array(_degrees(variance_l, told_l))


def _degrees(variances: np.ndarray, told: np.ndarray) -> float:
    """Degrees of freedom of the scaled inverse chi-square that variances are drawn from, by two moments.

    Each variance is told by so many numbers, and varies by that. Few where variances differ.
    """
    square = (np.square(variances) * told / (told + 2.0)).mean()
    excess = square - variances.mean() ** 2
    if excess <= 0 or variances.mean() <= 0:
        return MOST_DF
    return min(LEAST_DF + 2.0 * variances.mean() ** 2 / excess, MOST_DF)
