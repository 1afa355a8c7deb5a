"""What direction priors have in common, above all a regression on functions of the features."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.models.basis import Affine, with_intercept
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.regression import direction_posterior
from sccvae_pyro.models.scm import drop_cells_dim
from sccvae_pyro.models.slot import Given, Perturbations, Prior, Sizes


class DirectionPrior(Prior, slot="direction"):
    """Base of the direction priors; the site is ``direction``."""

    reads_features = True
    """Whether an unseen perturbation needs features; else it needs a node of its own."""

    def basis(self, features: Tensor) -> nn.Module:
        """Build what turns features into a :class:`Basis`, for seen perturbations of these features."""
        return Affine()


def sample_scale(sizes: Sizes, scale: Tensor) -> Tensor:
    """Sample the residual scale of each node; nodes."""
    one = torch.ones_like(scale)
    return pyro.sample("direction_scale", dist.LogNormal(scale.log(), one).expand([sizes.nodes]).to_event(1))


def sample_signal(sizes: Sizes, one: Tensor) -> Tensor:
    """Sample how much larger than the residual is what the features explain of each node; nodes."""
    return pyro.sample("direction_signal", dist.LogNormal(0.0 * one, one).expand([sizes.nodes]).to_event(1))


def signal_factor(sizes: Sizes) -> MeanField:
    """Log-normal over the signal of each node."""
    return MeanField("direction_signal", [sizes.nodes], 1, transforms=[transforms.ExpTransform()])


def sample_regression(site: str, sd_kb: Tensor, residual_sd: Tensor, perturbations: Perturbations) -> Tensor:
    """Sample weights of the basis, then ``direction`` around the regression, ``perturbations x nodes``.

    Parameters
    ----------
    site
        Name of the site of the weights.
    sd_kb
        ``... x nodes x functions``, prior sd of the weights.
    residual_sd
        Standard deviation around the regression, of each node or ``... x perturbations x nodes``.
    perturbations
        The perturbations.
    """
    functions_pb = perturbations.basis.functions_pb
    weights_kb = pyro.sample(site, dist.Normal(torch.zeros_like(sd_kb), sd_kb).to_event(2))
    mean_pk = functions_pb @ drop_cells_dim(weights_kb).mT
    with perturbations.plate:
        return pyro.sample("direction", dist.Normal(mean_pk, residual_sd.expand_as(mean_pk)).to_event(1))


def with_constant(width_kb: Tensor, intercept: float) -> Tensor:
    """Put the width of the constant's weight first, ``... x nodes x (1 + functions)``."""
    return torch.cat([width_kb.new_full((*width_kb.shape[:-1], 1), intercept), width_kb], dim=-1)


def seen_directions(state_pk: Tensor, log_sd_pk: Tensor, given: Given) -> tuple[Tensor, Tensor]:
    """Location and variance of what the cells say about directions, ``... x perturbations x nodes``.

    Cells show where a perturbation takes the state. Which shift that is depends on the graph, and which
    direction, on the strength besides: proposed so, graph and strength can change without spoiling the fit.
    Given the graph, the mean shift is the mean state times ``I - B``: exact for shifts. Its sd is taken as
    that of any graph, as it is where states are seen without error.

    Parameters
    ----------
    state_pk
        ``perturbations x nodes``, where each perturbation takes the state.
    log_sd_pk
        Log sd with which the shift is seen, same shape.
    given
        Strengths and graph.
    """
    strength_p1 = given.strength_p.unsqueeze(-1)
    shift_pk = state_pk - state_pk @ drop_cells_dim(given.B)
    return shift_pk / strength_p1, (2.0 * log_sd_pk).exp() / strength_p1.square()


WeightsPosterior = Callable[[Tensor, Tensor, Tensor, Tensor], dist.TorchDistribution]
"""Posterior of weights given functions, observed directions, their variance, and the weights' prior sd."""


class RegressionFactor(nn.Module):
    """The posterior of weights and directions, given what the cells say about the shifts.

    The cells determine the shift of a perturbation, the product of strength and direction. What they say
    is summarised by a pseudo-observation of each shift, a normal with learned location and sd. Given it,
    strengths and scales, the prior is linear and normal, and weights and directions are
    drawn from its posterior. A strength can then change without spoiling the fit, and where cells
    say nothing (a node that the decoder does not use) a direction is a draw from its prior, at no cost.

    Parameters
    ----------
    site
        Name of the site of the weights.
    posterior
        Their posterior.
    scale
        Where the residual scales start.
    sizes
        Sizes of the model.
    """

    def __init__(self, site: str, posterior: WeightsPosterior, scale: float, sizes: Sizes) -> None:
        super().__init__()
        self.site, self.posterior = site, posterior
        to_positive = [transforms.ExpTransform()]
        self.scale = MeanField(
            "direction_scale", [sizes.nodes], 1, loc=math.log(scale), transforms=to_positive
        )
        # The trend is redundant with the own part of each shift, and the reason why training converges:
        # what perturbations have in common is learned from all cells at once, not from each one's few.
        self.trend_ek = nn.Parameter(torch.zeros(1 + sizes.features, sizes.nodes))
        self.own_pk = nn.Parameter(torch.zeros(sizes.perturbations, sizes.nodes))
        self.log_sd_pk = nn.Parameter(torch.full_like(self.own_pk, math.log(0.1)))

    def sample(
        self, sd_kb: Tensor, residual_variance: Tensor, perturbations: Perturbations, given: Given
    ) -> None:
        """Sample weights and directions, given the prior of both as :func:`sample_regression` has it."""
        functions_pb = perturbations.basis.functions_pb
        state_pk = with_intercept(perturbations.features) @ self.trend_ek + self.own_pk
        seen_pk, variance_pk = seen_directions(state_pk, self.log_sd_pk, given)
        weights_kb = pyro.sample(
            self.site, self.posterior(functions_pb, seen_pk, residual_variance + variance_pk, sd_kb)
        )
        mean_pk = functions_pb @ drop_cells_dim(weights_kb).mT
        with perturbations.plate:
            pyro.sample("direction", direction_posterior(mean_pk, residual_variance, seen_pk, variance_pk))
