"""Direction priors that are a linear map of the features: with dense weights, and with sparse ones."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.errors import InputError
from sccvae_pyro.models import horseshoe
from sccvae_pyro.models.basis import Standardised
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
from sccvae_pyro.models.slot import Given, Perturbations, Sizes, positive


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

    def forward(self, perturbations: Perturbations, given: Given) -> None:
        """Sample scales and widths, then weights and directions given both."""
        scale_k, width_ke = self.scale(), self.width()
        sd_ke = scale_k.unsqueeze(-1) * with_constant(width_ke, self.intercept)
        self.sample(sd_ke, scale_k.square(), perturbations, given)


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


@dataclass(frozen=True)
class SparseLinear(_LinearMap):
    """A Bayesian linear map of which every node uses a few features, each node its own.

    A regularised horseshoe for each node (Piironen & Vehtari 2017, Electron J Stat 11:5018). With E features,
    each divided by its standard deviation over the P seen perturbations, and column 0 of the weights the
    effect shared by all perturbations::

        direction_scale_k        ~ LogNormal(log(scale), 1)
        direction_global_scale_k ~ HalfCauchy(expected_features / (E - expected_features) / sqrt(P))
        direction_local_scale_ke ~ HalfCauchy(1)
        width_ke                 = direction_global_scale_k * direction_local_scale_ke, cut off at the slab
        direction_weights_k0     ~ Normal(0, intercept * direction_scale_k)
        direction_weights_ke     ~ Normal(0, width_ke * direction_scale_k)
        direction_pk             ~ Normal((1, features_p) . direction_weights_k, direction_scale_k)

    A weight without evidence is shrunk to next to nothing whatever the others of its feature or node need. A
    node that no feature explains loses its global scale; an unseen perturbation then falls back to the shared
    effect with the residual as its spread.

    Parameters
    ----------
    scale
        Expected size of the residual, in standard deviations of a node's noise.
    expected_features
        Expected number of features that matter for a node, fewer than there are; ``None`` means one, or one
        half where there is a single feature.
    slab
        Standard deviation of a weight that is not shrunk: what one standard deviation of the feature does, in
        units of the residual.
    intercept
        Width of the belief about the shared effect, in units of the residual.
    """

    scale: float = 0.3
    expected_features: float | None = None
    slab: float = 2.0
    intercept: float = 3.0

    def __post_init__(self) -> None:
        positive(self, scale=self.scale, slab=self.slab, intercept=self.intercept)
        if self.expected_features is not None:
            positive(self, expected_features=self.expected_features)

    def basis(self, features: Tensor) -> nn.Module:
        """Bring every feature to a standard deviation of one."""
        return Standardised(features)

    def width(self, sizes: Sizes, one: Tensor) -> Tensor:
        """Sample global and local scales; the widths, ``... x nodes x features``."""
        global_k = pyro.sample(
            "direction_global_scale",
            dist.HalfCauchy(self.typical(sizes) * one).expand([sizes.nodes]).to_event(1),
        )
        local_ke = pyro.sample(
            "direction_local_scale", dist.HalfCauchy(one).expand([sizes.nodes, sizes.features]).to_event(2)
        )
        return horseshoe.width(global_k, local_ke, self.slab)

    def width_factor(self, sizes: Sizes) -> nn.Module:
        """Log-normal over global and local scales."""
        return _Shrinkage(self, sizes)

    def typical(self, sizes: Sizes) -> float:
        """Global scale at which as many features as expected escape the shrinkage."""
        if sizes.features == 0:  # nothing to shrink
            return 1.0
        expected = self.expected_features or min(1.0, sizes.features / 2)
        if expected >= sizes.features:
            raise InputError(
                f"SparseLinear: expected_features must be fewer than the {sizes.features} there are, "
                f"not {expected:g}. Use Linear where all of them may matter."
            )
        return horseshoe.typical_scale(expected, sizes.features, sizes.perturbations)


class _Shrinkage(nn.Module):
    def __init__(self, prior: SparseLinear, sizes: Sizes) -> None:
        super().__init__()
        self.slab = prior.slab
        to_positive = [transforms.ExpTransform()]
        typical = prior.typical(sizes)
        self.global_scale = MeanField(
            "direction_global_scale", [sizes.nodes], 1, loc=math.log(typical), transforms=to_positive
        )
        # Weights start with room to move: shrunk from the start, they would not feel what the data say.
        loc = math.log(0.1 * prior.slab / typical)
        self.local_scale = MeanField(
            "direction_local_scale", [sizes.nodes, sizes.features], 2, loc=loc, transforms=to_positive
        )

    def forward(self) -> Tensor:
        """Sample both; the widths, ``... x nodes x features``."""
        return horseshoe.width(self.global_scale(), self.local_scale(), self.slab)
