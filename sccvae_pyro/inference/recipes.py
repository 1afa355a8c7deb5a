"""Ways to fit by the name of their objective: what is optimised, by which steps, on which batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from sccvae_pyro.data.batches import eval_loader, paired_eval_loader, paired_train_loader, train_loader
from sccvae_pyro.data.loading import Screen
from sccvae_pyro.inference.module import SVIModule
from sccvae_pyro.inference.objectives import Loss, NegativeELBO, NegativeIWELBO
from sccvae_pyro.inference.published import PublishedLoss, PublishedModule
from sccvae_pyro.models.program import Program


class Recipe(NamedTuple):
    """One way to fit.

    ``loss`` is made of a program and a number of particles; ``module`` brings the optimiser;
    ``train_loader`` takes a screen, rows, cells of a batch and a seed, ``eval_loader`` all but the seed.
    """

    loss: Callable[[Program, int], Loss]
    module: type[SVIModule] = SVIModule
    train_loader: Callable[[Screen, np.ndarray, int, int], DataLoader[Any]] = train_loader
    eval_loader: Callable[[Screen, np.ndarray, int], DataLoader[Any]] = eval_loader


RECIPES = {
    "elbo": Recipe(NegativeELBO),
    "iwae": Recipe(NegativeIWELBO),
    "published": Recipe(PublishedLoss, PublishedModule, paired_train_loader, paired_eval_loader),
}
