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

LEAST_DF, MOST_DF = 4.0, 1000.0
"""Bounds of degrees of freedom that a spread of variances speaks for: they have one beyond four only."""


class Discrepancy(NamedTuple):
    """Belief about what is left of the difference to control of a perturbation, gene by gene.

    ``mean_g``: mean over perturbations; ``sd_g``: spread over them; ``error_g``: sd of the mean itself; each
    in the units of a profile. ``df``: degrees of freedom of both spreads of a gene. ``df_labels``: those of
    the spread of a perturbation over all genes, as much is left of some perturbations and little of others.
    """

    mean_g: np.ndarray
    sd_g: np.ndarray
    error_g: np.ndarray
    df: np.ndarray
    df_labels: np.ndarray

    @classmethod
    def none(cls, n_genes: int) -> Self:
        """Nothing is left."""
        zero = np.zeros(n_genes)
        return cls(zero, zero, zero, np.array(MOST_DF), np.array(MOST_DF))

    def of_mean(self, genes: np.ndarray) -> Self:
        """What is left of the mean over some of the genes; one gene."""
        spread, error = (np.sqrt(np.square(sd_g[genes]).sum()) for sd_g in (self.sd_g, self.error_g))
        parts = self.mean_g[genes].mean(), spread / len(genes), error / len(genes)
        mean, spread, error = np.reshape(parts, (3, 1))
        return type(self)(mean, spread, error, self.df, self.df_labels)

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
        scale = np.sqrt(self.df / rng.chisquare(self.df, shape)).astype(np.float32)
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
        return penetrance**2 * normal * np.where(normal > 0, self.df / (self.df - 2.0), 0.0)


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
    that of so many perturbations as the spread of the variances over the genes speaks for. The spread of what
    is left over the labels, all genes together, says how heavy the tails are.

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

    pooled = _degrees(variance_g, number)
    df = pooled + number
    sd_g = np.sqrt(np.maximum((pooled * variance_g.mean() + number * variance_g) / df, 0.0))
    shrunk_g = mean_g * number / (number + 1.0)
    variance_l = (np.square(left - mean_g).mean(axis=1) - noise_l) / n_targets
    labels = _degrees(variance_l, np.inf)
    return Discrepancy(shrunk_g, sd_g, sd_g / np.sqrt(number + 1.0), np.array(df), np.array(labels))


def _degrees(variances: np.ndarray, number: float) -> float:
    """Degrees of freedom of the scaled inverse chi-square that variances are drawn from, by two moments.

    Each variance is that of so many numbers, and varies by that. Few where variances differ.
    """
    square = np.square(variances).mean() / (1.0 + 2.0 / number)
    excess = square - variances.mean() ** 2
    if excess <= 0:
        return MOST_DF
    return min(LEAST_DF + 2.0 * variances.mean() ** 2 / excess, MOST_DF)
