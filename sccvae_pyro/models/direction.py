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

from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.scm import drop_cells_dim
from sccvae_pyro.models.slot import Perturbations, Prior, Sizes, positive, whole


class DirectionPrior(Prior, slot="direction"):
    """Base of the direction priors; the site is ``direction``."""


@dataclass(frozen=True)
class Linear(DirectionPrior):
    """A Bayesian linear map from the features, with a shared effect and a residual. The default.

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
        features = perturbations.features
        one = features.new_ones(())
        scale_k = pyro.sample(
            "direction_scale",
            dist.LogNormal(math.log(self.scale) * one, one).expand([sizes.nodes]).to_event(1),
        )
        relevance_e = pyro.sample(
            "direction_relevance", dist.HalfCauchy(self.relevance * one).expand([sizes.features]).to_event(1)
        )
        signal_k = pyro.sample(
            "direction_signal", dist.LogNormal(0.0 * one, one).expand([sizes.nodes]).to_event(1)
        )
        sd_ke = scale_k.unsqueeze(-1) * prior_width(relevance_e, signal_k, self.intercept)
        weights_ke = pyro.sample("direction_weights", dist.Normal(torch.zeros_like(sd_ke), sd_ke).to_event(2))
        mean_pk = with_intercept(features) @ drop_cells_dim(weights_ke).mT
        with perturbations.plate:
            return pyro.sample("direction", dist.Normal(mean_pk, scale_k.expand_as(mean_pk)).to_event(1))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Mean field over scales, signals and relevances; weights and directions exactly, given those."""
        return _LinearFactor(self, sizes, features)


class _LinearFactor(nn.Module):
    """The exact posterior of weights and directions, given what the cells say about the shifts.

    The cells determine the shift of a perturbation, the product of strength and direction. What they say
    is summarised by a pseudo-observation of each shift, a normal with learned location and sd. Given it,
    strengths, scales and relevances, the prior is linear and normal, and weights and directions are
    drawn from its exact posterior. A strength can then change without spoiling the fit, and where cells
    say nothing
    (a node that the decoder does not use) a direction is a draw from its prior, at no cost.
    """

    features: Tensor

    def __init__(self, prior: Linear, sizes: Sizes, features: Tensor) -> None:
        super().__init__()
        self.intercept = prior.intercept
        to_positive = [transforms.ExpTransform()]
        self.register_buffer("features", features)
        start = math.log(prior.scale)
        self.scale = MeanField("direction_scale", [sizes.nodes], 1, loc=start, transforms=to_positive)
        self.signal = MeanField("direction_signal", [sizes.nodes], 1, transforms=to_positive)
        self.relevance = MeanField(
            "direction_relevance", [sizes.features], 1, loc=-1.0, transforms=to_positive
        )
        # The trend is redundant with the own part of each shift, and the reason why training converges:
        # what perturbations have in common is learned from all cells at once, not from each one's few.
        self.trend_ek = nn.Parameter(features.new_zeros(1 + sizes.features, sizes.nodes))
        self.own_pk = nn.Parameter(features.new_zeros(sizes.perturbations, sizes.nodes))
        self.log_sd_pk = nn.Parameter(torch.full_like(self.own_pk, math.log(0.1)))

    def forward(self, perturbations: pyro.plate, strength_p: Tensor) -> None:
        """Sample scales, relevances and signals, then weights and directions given all of them."""
        scale_k, relevance_e, signal_k = self.scale(), self.relevance(), self.signal()
        design = with_intercept(self.features)
        # A shift seen with some sd is a direction seen with that sd, both divided by the strength.
        strength_p1 = strength_p.unsqueeze(-1)
        seen_pk = (design @ self.trend_ek + self.own_pk) / strength_p1
        variance_pk = ((2.0 * self.log_sd_pk).exp()) / strength_p1.square()
        residual_k = scale_k.square()
        sd_ke = scale_k.unsqueeze(-1) * prior_width(relevance_e, signal_k, self.intercept)
        weights_ke = pyro.sample(
            "direction_weights", weights_posterior(design, seen_pk, residual_k + variance_pk, sd_ke)
        )
        mean_pk = design @ drop_cells_dim(weights_ke).mT
        trust_pk = residual_k / (residual_k + variance_pk)
        with perturbations:
            loc_pk = mean_pk + trust_pk * (seen_pk - mean_pk)
            pyro.sample("direction", dist.Normal(loc_pk, (trust_pk * variance_pk).sqrt()).to_event(1))


def with_intercept(features: Tensor) -> Tensor:
    """Put the constant feature first, ``perturbations x (1 + features)``."""
    return torch.cat([features.new_ones((*features.shape[:-1], 1)), features], dim=-1)


def prior_width(relevance_e: Tensor, signal_k: Tensor, intercept: float) -> Tensor:
    """Prior sd of the weights in units of the residual, constant first, ``... x nodes x (1 + features)``."""
    width_ke = signal_k.unsqueeze(-1) * relevance_e.unsqueeze(-2)
    return torch.cat([width_ke.new_full((*width_ke.shape[:-1], 1), intercept), width_ke], dim=-1)


def weights_posterior(
    design: Tensor, seen_pk: Tensor, variance_pk: Tensor, sd_ke: Tensor
) -> dist.TorchDistribution:
    """Exact posterior of the weights: one Bayesian linear regression for each node.

    Bishop 2006, section 3.3, with a noise variance for each observation.

    Parameters
    ----------
    design
        ``perturbations x (1 + features)``, the constant first.
    seen_pk
        ``... x perturbations x nodes``, observations of the directions.
    variance_pk
        Variance of the observations around the linear map, same shape.
    sd_ke
        ``... x nodes x (1 + features)``, prior sd of the weights.

    Returns
    -------
    Distribution over ``nodes x (1 + features)``.
    """
    precision_kp = variance_pk.reciprocal().mT
    gram_kee = (precision_kp.unsqueeze(-2) * design.mT) @ design
    moment_ke = (precision_kp * seen_pk.mT) @ design
    if gram_kee.dim() > 3:  # draws x 1 (in place of the plate of cells) x ..., as the prior sd has it
        gram_kee, moment_ke = gram_kee.unsqueeze(-4), moment_ke.unsqueeze(-3)
    # Whitened by the prior sd the precision is I + A'A: well conditioned even where relevance vanishes.
    white_kee = sd_ke.unsqueeze(-1) * gram_kee * sd_ke.unsqueeze(-2)
    identity = torch.eye(white_kee.shape[-1], dtype=white_kee.dtype, device=white_kee.device)
    lower_kee = lower_factor_of_inverse(white_kee + identity)
    mean_ke = (lower_kee @ (lower_kee.mT @ (sd_ke * moment_ke).unsqueeze(-1))).squeeze(-1)
    return dist.MultivariateNormal(sd_ke * mean_ke, scale_tril=sd_ke.unsqueeze(-1) * lower_kee).to_event(1)


def lower_factor_of_inverse(precision: Tensor) -> Tensor:
    """Lower triangular ``L`` with ``L L' = precision^-1``, from one Cholesky factor of the flipped matrix."""
    upper = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)  # precision = upper upper'
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True).mT


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
        hidden = with_intercept(features)
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

    def forward(self, perturbations: pyro.plate, strength_p: Tensor) -> None:
        """Sample the weights."""
        for layer in self.layers:
            layer()
