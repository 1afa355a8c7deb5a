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

from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.slot import Empty, Perturbations, Prior, Sizes, finite, positive


class PenetrancePrior(Prior, slot="penetrance"):
    """Base of the penetrance priors; the site of the strength is ``strength``."""


@dataclass(frozen=True)
class LogNormal(PenetrancePrior):
    """Strengths vary around a population value on the log scale. The default.

    ``strength_location ~ Normal(loc, location_scale)`` and
    ``log strength_p ~ Normal(strength_location, scale)``.
    An unseen perturbation draws its strength from the same population, location learned from the seen.

    Parameters
    ----------
    loc
        Expected log strength.
    scale
        Standard deviation of the log strength between perturbations. Not learned: the size of the
        directions varies too, and a learned spread lets the tail of unseen strengths run away.
    location_scale
        Width of the belief about the population's log strength.
    """

    loc: float = 0.0
    scale: float = 0.4
    location_scale: float = 0.3

    def __post_init__(self) -> None:
        positive(self, scale=self.scale, location_scale=self.location_scale)
        finite(self, loc=self.loc)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``strength``, ``perturbations``."""
        zero = perturbations.features.new_zeros(())
        location = pyro.sample("strength_location", dist.Normal(zero + self.loc, zero + self.location_scale))
        with perturbations.plate:
            return pyro.sample("strength", dist.LogNormal(location, zero + self.scale))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Normal for the population's location, log-normal for each strength."""
        return _LogNormalFactor(sizes.perturbations, self.loc)


class _LogNormalFactor(nn.Module):
    def __init__(self, n_perturbations: int, loc: float) -> None:
        super().__init__()
        self.location = MeanField("strength_location", [], 0, loc=loc)
        self.strength = MeanField(
            "strength", [n_perturbations], 0, loc=loc, transforms=[transforms.ExpTransform()]
        )

    def forward(self, perturbations: pyro.plate) -> None:
        """Sample ``strength_location`` and ``strength``."""
        self.location()
        with perturbations:
            self.strength()


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
