"""What a fitted program leaves unexplained of the training means, gene by gene.

Nodes carry what perturbations have in common along a few directions, not what each does to single
genes. The difference between a training mean and its prediction is a discrepancy between program and
data (Kennedy & O'Hagan 2001, J R Stat Soc B 63:425): its mean over the perturbations is an effect that all of
them share, its spread, beyond sampling noise, belongs into the intervals of every prediction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.inference.posterior import Controls, Draws, population_means
from sccvae_pyro.models.program import Program

LABEL_CHUNK = 256


class Discrepancy(NamedTuple):
    """Mean and spread over perturbations of what is left of their differences to control.

    ``mean_g`` and ``sd_g``: for each gene, in the units of a profile.
    """

    mean_g: np.ndarray
    sd_g: np.ndarray

    def add_to(self, deltas: np.ndarray, penetrance: float, n_targets: np.ndarray, seed: int) -> None:
        """Add its draws to predicted differences, in place; nothing to those of control cells.

        Parameters
        ----------
        deltas
            ``draws x labels x genes``.
        penetrance
            Factor on the discrepancy, as on the shift.
        n_targets
            Targets of each label. The spread is that of a sum of independent parts; the shared
            mean counts once, as it is the same for every perturbed cell.
        seed
            Seed of the draws.
        """
        rng = np.random.default_rng([seed, 3])
        mean_lg = np.outer(penetrance * (n_targets > 0), self.mean_g).astype(np.float32)
        sd_lg = np.outer(penetrance * np.sqrt(n_targets), self.sd_g).astype(np.float32)
        for delta in deltas:
            delta += mean_lg + sd_lg * rng.standard_normal(sd_lg.shape, dtype=np.float32)


def fit_discrepancy(
    program: Program,
    draws: Draws,
    controls: Controls,
    shift_slk: Tensor,
    observed: Profiles,
    cells_per_draw: int,
    seed: int,
) -> Discrepancy:
    """Compare predicted differences with the training means.

    Parameters
    ----------
    program, draws, controls
        Fitted program, draws of its globals, and cells to start from, with the observed control mean.
    shift_slk
        ``draws x labels x nodes``, of the labels of ``observed``.
    observed
        Training means of perturbed cells.
    cells_per_draw, seed
        See :func:`~sccvae_pyro.inference.posterior.population_means`.

    Returns
    -------
    Discrepancy; zero where nothing was perturbed.
    """
    if not len(observed.n):
        return Discrepancy(*np.zeros((2, program.sizes.genes)))
    mean, noise = observed.mean.to_numpy(), observed.var.to_numpy() / observed.n.to_numpy()[:, None]
    left, known = np.empty((2, *mean.shape))
    library = controls.library_c.numpy()
    for start in range(0, len(mean), LABEL_CHUNK):
        labels = slice(start, start + LABEL_CHUNK)
        chunk = population_means(
            program, draws, controls, shift_slk[:, labels], library, cells_per_draw, seed
        )
        deltas = np.stack([delta for _, delta in chunk])
        left[labels] = mean[labels] - controls.mean_g - deltas.mean(axis=0)
        known[labels] = noise[labels] + deltas.var(axis=0)
    mean_g = left.mean(axis=0)
    variance_g = (np.square(left - mean_g) - known).mean(axis=0)
    return Discrepancy(mean_g, np.sqrt(np.maximum(variance_g, 0.0)))
