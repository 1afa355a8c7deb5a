"""What the training means add to a fitted program: the level of control, and what it leaves unexplained.

The program predicts *differences* to control. The level that they start from is estimated here from all
training cells, each less the effect of its perturbation, rather than from the few control cells
alone. What is then left of the training means beyond their sampling noise is a discrepancy between the
program and the data (Kennedy & O'Hagan 2001, J R Stat Soc B 63:425): effects of a perturbation on single
genes that no latent node carries. Its spread, gene by gene, belongs into the intervals of a prediction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.inference.posterior import Controls, Draws, population_means
from sccvae_pyro.models.program import Program

LABEL_CHUNK = 256


class Level(NamedTuple):
    """Estimates from the training means.

    ``control_mean_g``: mean profile of control; ``unexplained_sd_g``: spread between perturbations of
    what the program leaves unexplained. Both for each gene, in the units of a profile.
    """

    control_mean_g: np.ndarray
    unexplained_sd_g: np.ndarray


def fit_level(
    program: Program,
    draws: Draws,
    controls: Controls,
    shift_slk: Tensor,
    observed: Profiles,
    cells_per_draw: int,
    seed: int,
) -> Level:
    """Compare predicted differences with the training means.

    Parameters
    ----------
    program, draws, controls
        Fitted program, draws of its globals, and cells to start from.
    shift_slk
        ``draws x labels x nodes``, in the order of ``observed``; zero for control.
    observed
        Training means, control among them.
    cells_per_draw, seed
        See :func:`~sccvae_pyro.inference.posterior.population_means`.

    Returns
    -------
    Level
    """
    mean, n_cells = observed.mean.to_numpy(), observed.n.to_numpy()[:, None]
    delta, spread = np.empty((2, *mean.shape))
    library = controls.library_c.numpy()
    for start in range(0, len(mean), LABEL_CHUNK):
        labels = slice(start, start + LABEL_CHUNK)
        chunk = population_means(
            program, draws, controls, shift_slk[:, labels], library, cells_per_draw, seed
        )
        delta[labels], spread[labels] = _moments([difference for _, difference in chunk])
    control_mean_g = np.average(mean - delta, axis=0, weights=n_cells[:, 0])
    left = mean - delta - control_mean_g
    known = observed.var.to_numpy() / n_cells + spread
    perturbed = shift_slk.abs().amax(dim=(0, 2)).numpy() > 0
    unexplained = np.mean((np.square(left) - known)[perturbed], axis=0) if perturbed.any() else 0.0 * left[0]
    return Level(control_mean_g, np.sqrt(np.maximum(unexplained, 0.0)))


def _moments(draws: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over draws."""
    stacked = np.stack(draws)
    return stacked.mean(axis=0), stacked.var(axis=0)
