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

LEAST_POOLED, MOST_POOLED = 4.0, 1000.0
"""Bounds of the perturbations that all genes count for: variances have a variance beyond four only."""


class Discrepancy(NamedTuple):
    """Belief about what is left of the difference to control of a perturbation, gene by gene.

    ``mean_g``: mean over perturbations; ``sd_g``: spread over them; ``error_g``: sd of the mean itself; each
    in the units of a profile. ``df_g``: degrees of freedom of the two spreads.
    """

    mean_g: np.ndarray
    sd_g: np.ndarray
    error_g: np.ndarray
    df_g: np.ndarray

    @classmethod
    def none(cls, n_genes: int) -> Self:
        """Nothing is left."""
        zero = np.zeros(n_genes)
        return cls(zero, zero, zero, np.ones(n_genes))

    def of_mean(self, genes: np.ndarray) -> Self:
        """What is left of the mean over some of the genes; one gene."""
        spread, error = (np.sqrt(np.square(sd_g[genes]).sum()) for sd_g in (self.sd_g, self.error_g))
        parts = self.mean_g[genes].mean(), spread / len(genes), error / len(genes), self.df_g[genes].min()
        return type(self)(*np.reshape(parts, (4, 1)))

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
                own = _centred(scale * rng.standard_normal(shape, np.float32))
                left = self.mean_g + shared + np.sqrt(n) * self.sd_g * own
                deltas[:, i] += (penetrance * left).astype(np.float32)


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
        Training means of perturbed cells, of at least two cells each.
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

    Of the conjugate belief, the mean counts as one perturbation of which nothing is left, and the variance as
    that of so many perturbations as the spread of the variances over the genes speaks for.

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

    mean_g = weight_l @ left / total
    kept_l = weight_l * (1.0 - weight_l / total)  # deviations from an estimated mean are too small
    within_g = weight_l @ np.square(left - mean_g) - kept_l @ noise
    degrees = number - 1.0
    within_g *= degrees / (kept_l @ n_targets) if degrees > 0 else 0.0
    between_g = (np.square(mean_g) - np.square(weight_l / total) @ noise) * number / (number + 1.0)
    variance_g = (within_g + between_g) / number

    typical_variance = max(variance_g.mean(), 0.0)
    pooled = _pooled(variance_g, number)
    df = pooled + number
    sd_g = np.sqrt(np.maximum((pooled * typical_variance + number * variance_g) / df, 0.0))
    shrunk_g = mean_g * number / (number + 1.0)
    return Discrepancy(shrunk_g, sd_g, sd_g / np.sqrt(number + 1.0), np.full_like(sd_g, df))


def _pooled(variance_g: np.ndarray, number: float) -> float:
    """Perturbations that the other genes count for: many where all genes have one variance.

    From the mean and variance of a scaled inverse chi-square, beyond those of variances of so few numbers.
    """
    square = np.square(variance_g).mean() / (1.0 + 2.0 / number)
    excess = square - variance_g.mean() ** 2
    if excess <= 0:
        return MOST_POOLED
    return min(LEAST_POOLED + 2.0 * variance_g.mean() ** 2 / excess, MOST_POOLED)
