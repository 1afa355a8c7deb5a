"""What a fitted program leaves unexplained of the training means, gene by gene.

Nodes carry what perturbations have in common along a few directions, not what each does to single
genes. The difference between a training mean and its prediction is a discrepancy between program and
data (Kennedy & O'Hagan 2001, J R Stat Soc B 63:425): its mean over the perturbations is an effect that all of
them share, its spread, beyond sampling noise, belongs into the intervals of every prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.inference.posterior import Controls, Draws, Push, population_means
from sccvae_pyro.models.program import Program

LABEL_CHUNK = 256


class Discrepancy(NamedTuple):
    """Mean and spread over perturbations of what is left of their differences to control.

    ``mean_g`` and ``sd_g``: for each gene, in the units of a profile.
    """

    mean_g: np.ndarray
    sd_g: np.ndarray

    def add_to(
        self, deltas: np.ndarray, penetrance: float, labels: Sequence[str], n_targets: np.ndarray, seed: int
    ) -> None:
        """Add its draws to predicted differences, in place; nothing to those of control cells.

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
        mean_g, sd_g = (part.astype(np.float32) for part in self)
        for i, (label, n) in enumerate(zip(labels, n_targets, strict=True)):
            own = np.random.default_rng([seed, *label.encode()]).standard_normal(
                deltas[:, i].shape, np.float32
            )
            centred = own - own.mean(axis=0)  # so that the spread does not move the mean
            deltas[:, i] += penetrance * ((n > 0) * mean_g + np.sqrt(n) * sd_g * centred)


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
    Discrepancy; zero where nothing was perturbed.
    """
    if not len(observed.n):
        return Discrepancy(*np.zeros((2, program.sizes.genes)))
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
    mean_g = left.mean(axis=0)
    # Deviations from an estimated mean are too small by one degree of freedom.
    total_g = np.square(left - mean_g).sum(axis=0) * len(left) / max(len(left) - 1, 1)
    variance_g = (total_g - expected.sum(axis=0)) / n_targets.sum()
    return Discrepancy(mean_g, np.sqrt(np.maximum(variance_g, 0.0)))
