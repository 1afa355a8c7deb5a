"""Penetrance priors: beliefs about how strongly a perturbation pushes.

Every member returns the strength ``c`` of each perturbation of the plate it is called in; at 0 a
cell is a control cell, at 1 the shift is the direction itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.models.factors import MeanField, Plated
from sccvae_pyro.models.slot import Empty, Perturbations, Prior, Sizes, finite, positive


class PenetrancePrior(Prior, slot="penetrance"):
    """Base of the penetrance priors; the site of the strength is ``strength``."""


@dataclass(frozen=True)
class LogNormal(PenetrancePrior):
    """Strengths vary around 1 on the log scale. The default.

    ``log strength_p ~ Normal(loc, scale)``. An unseen perturbation draws its strength from the same
    population. Neither setting is learned: the size of the directions is, so that a learned location
    would only drift against it, and a learned spread lets the tail of unseen strengths run away.

    Parameters
    ----------
    loc
        Mean of the log strength.
    scale
        Standard deviation of the log strength between perturbations.
    """

    loc: float = 0.0
    scale: float = 0.05

    def __post_init__(self) -> None:
        finite(self, loc=self.loc)
        positive(self, scale=self.scale)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength``, ``perturbations``."""
        zero = perturbations.features.new_zeros(())
        with perturbations.plate:
            return pyro.sample("strength", dist.LogNormal(zero + self.loc, zero + self.scale))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Log-normal for each strength."""
        to_positive = [transforms.ExpTransform()]
        return Plated(MeanField("strength", [sizes.perturbations], 0, loc=self.loc, transforms=to_positive))


@dataclass(frozen=True)
class Fixed(PenetrancePrior):
    """Every perturbation has the same, known strength.

    Parameters
    ----------
    value
        The strength.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        positive(self, value=self.value)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Record ``strength``, ``perturbations``."""
        n_perturbations = perturbations.features.shape[-2]
        with perturbations.plate:
            return pyro.deterministic(
                "strength", perturbations.features.new_full((n_perturbations,), self.value)
            )

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Nothing to learn."""
        return Empty()
