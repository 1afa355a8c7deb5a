"""Direction priors: beliefs about where a perturbation pushes, given the features of its gene.

Every member returns the direction ``s`` (``perturbations x nodes``) of the perturbations whose
features it is called with, so that the same code serves the seen and the unseen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.models.basis import Affine, KernelBasis, with_intercept
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.regression import direction_posterior, orthogonal_posterior, weights_posterior
from sccvae_pyro.models.scm import drop_cells_dim
from sccvae_pyro.models.slot import Perturbations, Prior, Sizes, positive, whole


class DirectionPrior(Prior, slot="direction"):
    """Base of the direction priors; the site is ``direction``."""

    reads_features = True
    """Whether an unseen perturbation needs features; else it needs a node of its own."""

    def basis(self, features: Tensor) -> nn.Module:
        """Build what turns features into a :class:`Basis`, for seen perturbations of these features."""
        return Affine()


@dataclass(frozen=True)
class Linear(DirectionPrior):
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

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``direction``, ``perturbations x nodes``."""
        design, _ = perturbations.basis
        one = design.new_ones(())
        scale_k, signal_k = scale_and_signal(sizes, self.scale * one)
        relevance_e = pyro.sample(
            "direction_relevance", dist.HalfCauchy(self.relevance * one).expand([sizes.features]).to_event(1)
        )
        sd_ke = scale_k.unsqueeze(-1) * prior_width(relevance_e, signal_k, self.intercept)
        weights_ke = pyro.sample("direction_weights", dist.Normal(torch.zeros_like(sd_ke), sd_ke).to_event(2))
        mean_pk = design @ drop_cells_dim(weights_ke).mT
        with perturbations.plate:
            return pyro.sample("direction", dist.Normal(mean_pk, scale_k.expand_as(mean_pk)).to_event(1))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Mean field over scales, signals and relevances; weights and directions exactly, given those."""
        return _LinearFactor(self, sizes)


@dataclass(frozen=True)
class GaussianProcess(DirectionPrior):
    """A smooth map from the features: genes with similar features push in similar directions. The default.

    With ``basis_pb`` the functions of a kernel on the features (:class:`KernelBasis`), the constant first::

        direction_scale_k             ~ LogNormal(log(scale), 1)
        direction_signal_k            ~ LogNormal(0, 1)
        direction_function_weights_k0 ~ Normal(0, intercept * direction_scale_k)
        direction_function_weights_kb ~ Normal(0, direction_signal_k * direction_scale_k)
        direction_pk                  ~ Normal(basis_p . direction_function_weights_k, residual_pk)
        residual_pk^2                 = direction_scale_k^2 (1 + direction_signal_k^2 missed_p)

    For each node this is a Gaussian process with its own amplitude (Rasmussen & Williams 2006, ch. 2). A gene
    unlike all seen ones has the shared effect and, through what the functions miss of it, a wide interval.

    Parameters
    ----------
    scale
        Expected size of the residual, in standard deviations of a node's noise.
    length
        Length of the kernel, in units of the median distance between seen perturbations.
    intercept
        Width of the belief about the shared effect, in units of the residual.
    landmarks
        Most perturbations on which the kernel rests: all seen ones up to this number, a random choice beyond.
    """

    scale: float = 0.3
    length: float = 1.0
    intercept: float = 3.0
    landmarks: int = 1000

    def __post_init__(self) -> None:
        positive(
            self, scale=self.scale, length=self.length, intercept=self.intercept, landmarks=self.landmarks
        )
        whole(self, landmarks=self.landmarks)

    def basis(self, features: Tensor) -> nn.Module:
        """Build the functions of the kernel."""
        return KernelBasis(features, self.length, self.landmarks)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``direction``, ``perturbations x nodes``."""
        functions_pb, missed_p = perturbations.basis
        one_b = functions_pb.new_ones(functions_pb.shape[-1] - 1)
        scale_k, signal_k = scale_and_signal(sizes, functions_pb.new_tensor(self.scale))
        sd_kb = scale_k.unsqueeze(-1) * prior_width(one_b, signal_k, self.intercept)
        weights_kb = pyro.sample(
            "direction_function_weights", dist.Normal(torch.zeros_like(sd_kb), sd_kb).to_event(2)
        )
        mean_pk = functions_pb @ drop_cells_dim(weights_kb).mT
        sd_pk = residual_variance(scale_k, signal_k, missed_p).sqrt()
        with perturbations.plate:
            return pyro.sample("direction", dist.Normal(mean_pk, sd_pk.expand_as(mean_pk)).to_event(1))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Mean field over scales and signals; weights and directions given those."""
        return _KernelFactor(self, sizes)


def scale_and_signal(sizes: Sizes, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the residual scale of each node, and how much larger what the features explain is; nodes."""
    one = torch.ones_like(scale)
    scale_k = pyro.sample(
        "direction_scale", dist.LogNormal(scale.log(), one).expand([sizes.nodes]).to_event(1)
    )
    signal_k = pyro.sample(
        "direction_signal", dist.LogNormal(0.0 * one, one).expand([sizes.nodes]).to_event(1)
    )
    return scale_k, signal_k


class _RegressionFactor(nn.Module):
    """The posterior of weights and directions, given what the cells say about the shifts.

    The cells determine the shift of a perturbation, the product of strength and direction. What they say
    is summarised by a pseudo-observation of each shift, a normal with learned location and sd. Given it,
    strengths and scales, the prior is linear and normal, and weights and directions are
    drawn from its posterior. A strength can then change without spoiling the fit, and where cells
    say nothing (a node that the decoder does not use) a direction is a draw from its prior, at no cost.
    """

    def __init__(self, scale: float, sizes: Sizes) -> None:
        super().__init__()
        to_positive = [transforms.ExpTransform()]
        self.scale = MeanField(
            "direction_scale", [sizes.nodes], 1, loc=math.log(scale), transforms=to_positive
        )
        self.signal = MeanField("direction_signal", [sizes.nodes], 1, transforms=to_positive)
        # The trend is redundant with the own part of each shift, and the reason why training converges:
        # what perturbations have in common is learned from all cells at once, not from each one's few.
        self.trend_ek = nn.Parameter(torch.zeros(1 + sizes.features, sizes.nodes))
        self.own_pk = nn.Parameter(torch.zeros(sizes.perturbations, sizes.nodes))
        self.log_sd_pk = nn.Parameter(torch.full_like(self.own_pk, math.log(0.1)))

    def seen(self, features: Tensor, strength_p: Tensor) -> tuple[Tensor, Tensor]:
        """Location and variance of what the cells say about directions, ``... x perturbations x nodes``.

        A shift seen with some sd is a direction seen with that sd, both divided by the strength.
        """
        strength_p1 = strength_p.unsqueeze(-1)
        shift_pk = with_intercept(features) @ self.trend_ek + self.own_pk
        return shift_pk / strength_p1, (2.0 * self.log_sd_pk).exp() / strength_p1.square()


class _LinearFactor(_RegressionFactor):
    """Weights from their exact posterior."""

    def __init__(self, prior: Linear, sizes: Sizes) -> None:
        super().__init__(prior.scale, sizes)
        self.intercept = prior.intercept
        to_positive = [transforms.ExpTransform()]
        self.relevance = MeanField(
            "direction_relevance", [sizes.features], 1, loc=-1.0, transforms=to_positive
        )

    def forward(self, perturbations: Perturbations, strength_p: Tensor) -> None:
        """Sample scales, signals and relevances, then weights and directions given all of them."""
        scale_k, signal_k, relevance_e = self.scale(), self.signal(), self.relevance()
        design, _ = perturbations.basis
        seen_pk, variance_pk = self.seen(perturbations.features, strength_p)
        sd_ke = scale_k.unsqueeze(-1) * prior_width(relevance_e, signal_k, self.intercept)
        residual_k = scale_k.square()
        weights_ke = pyro.sample(
            "direction_weights", weights_posterior(design, seen_pk, residual_k + variance_pk, sd_ke)
        )
        mean_pk = design @ drop_cells_dim(weights_ke).mT
        with perturbations.plate:
            pyro.sample("direction", direction_posterior(mean_pk, residual_k, seen_pk, variance_pk))


class _KernelFactor(_RegressionFactor):
    """Weights from the posterior that holds where all perturbations of a node are seen equally well.

    The functions of the basis are orthogonal over the seen perturbations; with one variance for each
    node, their weights are independent a posteriori, and no step factors a matrix of all perturbations.
    """

    def __init__(self, prior: GaussianProcess, sizes: Sizes) -> None:
        super().__init__(prior.scale, sizes)
        self.intercept = prior.intercept

    def forward(self, perturbations: Perturbations, strength_p: Tensor) -> None:
        """Sample scales and signals, then weights and directions given all of them."""
        scale_k, signal_k = self.scale(), self.signal()
        functions_pb, missed_p = perturbations.basis
        seen_pk, variance_pk = self.seen(perturbations.features, strength_p)
        one_b = functions_pb.new_ones(functions_pb.shape[-1] - 1)
        sd_kb = scale_k.unsqueeze(-1) * prior_width(one_b, signal_k, self.intercept)
        residual_pk = residual_variance(scale_k, signal_k, missed_p)
        weights_kb = pyro.sample(
            "direction_function_weights",
            orthogonal_posterior(functions_pb, seen_pk, residual_pk + variance_pk, sd_kb),
        )
        mean_pk = functions_pb @ drop_cells_dim(weights_kb).mT
        with perturbations.plate:
            pyro.sample("direction", direction_posterior(mean_pk, residual_pk, seen_pk, variance_pk))


def residual_variance(scale_k: Tensor, signal_k: Tensor, missed_p: Tensor) -> Tensor:
    """Variance of directions around the regression, ``... x perturbations x nodes``."""
    return scale_k.square() * (1.0 + signal_k.square() * missed_p.unsqueeze(-1))


def prior_width(relevance_e: Tensor, signal_k: Tensor, intercept: float) -> Tensor:
    """Prior sd of the weights in units of the residual, constant first, ``... x nodes x (1 + features)``."""
    width_ke = signal_k.unsqueeze(-1) * relevance_e.unsqueeze(-2)
    return torch.cat([width_ke.new_full((*width_ke.shape[:-1], 1), intercept), width_ke], dim=-1)


@dataclass(frozen=True)
class Simplex(DirectionPrior):
    """The published direction: a softmax over nodes of a neural map of the features.

    Deterministic given the features, with a normal prior on the weights of the map. Shifts are
    non-negative and sum to the strength: give the penetrance a wide prior, such as
    ``LogNormal(scale=1.0)``, as the size of an effect is nowhere else.

    Parameters
    ----------
    hidden
        Width of the map's two hidden layers.
    weight_scale
        Standard deviation of the prior of its weights, in units of the usual 1 / sqrt(inputs).
    """

    hidden: int = 64
    weight_scale: float = 1.0

    def __post_init__(self) -> None:
        positive(self, hidden=self.hidden, weight_scale=self.weight_scale)
        whole(self, hidden=self.hidden)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample the weights of the map and record ``direction``, ``perturbations x nodes``."""
        features = perturbations.features
        hidden, _ = perturbations.basis
        for layer, (n_in, n_out) in enumerate(self._layers(sizes)):
            sd = features.new_tensor(self.weight_scale / math.sqrt(n_in))
            weights = pyro.sample(
                f"direction_layer{layer}", dist.Normal(0.0, sd).expand([n_in, n_out]).to_event(2)
            )
            hidden = hidden @ drop_cells_dim(weights)
            hidden = nn.functional.leaky_relu(hidden, 0.2) if layer < 2 else hidden
        with perturbations.plate:
            return pyro.deterministic("direction", hidden.softmax(-1), event_dim=1)

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Independent normals over the weights of the map."""
        return _SimplexFactor(self._layers(sizes), self.weight_scale)

    def _layers(self, sizes: Sizes) -> list[tuple[int, int]]:
        return [(1 + sizes.features, self.hidden), (self.hidden, self.hidden), (self.hidden, sizes.nodes)]


class _SimplexFactor(nn.Module):
    def __init__(self, layers: list[tuple[int, int]], weight_scale: float) -> None:
        super().__init__()
        factors = [MeanField(f"direction_layer{i}", n, event_dim=2, scale=0.02) for i, n in enumerate(layers)]
        for factor, (n_in, _) in zip(factors, layers, strict=True):
            nn.init.normal_(factor.loc, std=weight_scale / math.sqrt(n_in))
        self.layers = nn.ModuleList(factors)

    def forward(self, perturbations: Perturbations, strength_p: Tensor) -> None:
        """Sample the weights."""
        for layer in self.layers:
            layer()
