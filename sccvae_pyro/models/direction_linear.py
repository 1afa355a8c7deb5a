"""Direction priors that are a linear map of the features."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.models.direction_base import (
    DirectionPrior,
    RegressionFactor,
    sample_regression,
    sample_scale,
    sample_signal,
    signal_factor,
    with_constant,
)
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.regression import weights_posterior
from sccvae_pyro.models.slot import Perturbations, Sizes, positive


class _LinearMap(DirectionPrior):
    """A Bayesian linear map with a shared effect and a residual; members say how wide its weights are."""

    scale: float
    intercept: float

    @abstractmethod
    def width(self, sizes: Sizes, one: Tensor) -> Tensor:
        """Sample what the widths depend on; prior sd of the weights of features, ``... x nodes x features``.

        In units of the residual. ``one`` is a scalar where the features are.
        """

    @abstractmethod
    def width_factor(self, sizes: Sizes) -> nn.Module:
        """Build the guide factor of the same sites; calling it gives the widths that follow."""

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``direction``, ``perturbations x nodes``."""
        one = perturbations.features.new_ones(())
        scale_k = sample_scale(sizes, self.scale * one)
        sd_ke = scale_k.unsqueeze(-1) * with_constant(self.width(sizes, one), self.intercept)
        return sample_regression("direction_weights", sd_ke, scale_k, perturbations)

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Mean field over scales and what widths depend on; weights and directions exactly, given those."""
        return _LinearFactor(self, sizes)


class _LinearFactor(RegressionFactor):
    """Weights from their exact posterior."""

    def __init__(self, prior: _LinearMap, sizes: Sizes) -> None:
        super().__init__("direction_weights", weights_posterior, prior.scale, sizes)
        self.intercept = prior.intercept
        self.width = prior.width_factor(sizes)

    def forward(self, perturbations: Perturbations, strength_p: Tensor) -> None:
        """Sample scales and widths, then weights and directions given both."""
        scale_k, width_ke = self.scale(), self.width()
        sd_ke = scale_k.unsqueeze(-1) * with_constant(width_ke, self.intercept)
        self.sample(sd_ke, scale_k.square(), perturbations, strength_p)


@dataclass(frozen=True)
class Linear(_LinearMap):
    """A Bayesian linear map from the features, with a shared effect and a residual.

    With ``k`` a node, ``e`` a feature and column 0 of the weights the effect shared by all perturbations::

        direction_scale_k     ~ LogNormal(log(scale), 1)
        direction_relevance_e ~ HalfCauchy(relevance)
        direction_signal_k    ~ LogNormal(0, 1)
        direction_weights_k0  ~ Normal(0, intercept * direction_scale_k)
        direction_weights_ke  ~ Normal(0, direction_relevance_e * direction_signal_k * direction_scale_k)
        direction_pk          ~ Normal((1, features_p) . direction_weights_k, direction_scale_k)

    A feature without evidence loses its relevance, all of its weights shrink together, and an
    unseen perturbation falls back to the shared effect with the residual as its spread: automatic
    relevance determination (MacKay 1994). The signal of a node keeps nodes that no feature explains
    from shrinking the relevances of all others.

    Parameters
    ----------
    scale
        Expected size of the residual, in standard deviations of a node's noise.
    relevance
        Scale of the belief about a feature's relevance; 1 means as important as the residual.
    intercept
        Width of the belief about the shared effect, in units of the residual.
    """

    scale: float = 0.3
    relevance: float = 1.0
    intercept: float = 3.0

    def __post_init__(self) -> None:
        positive(self, scale=self.scale, relevance=self.relevance, intercept=self.intercept)

    def width(self, sizes: Sizes, one: Tensor) -> Tensor:
        """Sample signals and relevances; their products, ``... x nodes x features``."""
        signal_k = sample_signal(sizes, one)
        relevance_e = pyro.sample(
            "direction_relevance", dist.HalfCauchy(self.relevance * one).expand([sizes.features]).to_event(1)
        )
        return signal_k.unsqueeze(-1) * relevance_e.unsqueeze(-2)

    def width_factor(self, sizes: Sizes) -> nn.Module:
        """Log-normal over signals and relevances."""
        return _Relevances(sizes)


class _Relevances(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.signal = signal_factor(sizes)
        to_positive = [transforms.ExpTransform()]
        self.relevance = MeanField(
            "direction_relevance", [sizes.features], 1, loc=-1.0, transforms=to_positive
        )

    def forward(self) -> Tensor:
        """Sample both; their products, ``... x nodes x features``."""
        return self.signal().unsqueeze(-1) * self.relevance().unsqueeze(-2)
