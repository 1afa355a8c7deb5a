"""Posteriors of normal linear regressions, one for each latent node."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor


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


def orthogonal_posterior(
    functions_pb: Tensor, seen_pk: Tensor, variance_pk: Tensor, sd_kb: Tensor
) -> dist.TorchDistribution:
    """Posterior of the weights of orthogonal functions: a shrunken projection for each.

    Exact where the variance of a node's observations is the same for all perturbations; their mean
    precision stands in for it otherwise.

    Parameters
    ----------
    functions_pb
        ``perturbations x functions``, orthogonal columns.
    seen_pk
        ``... x perturbations x nodes``, observations of the directions.
    variance_pk
        Variance of the observations around the regression, same shape.
    sd_kb
        ``... x nodes x functions``, prior sd of the weights.

    Returns
    -------
    Distribution over ``nodes x functions``.
    """
    precision_k = variance_pk.reciprocal().mean(-2)
    moment_kb = precision_k.unsqueeze(-1) * (seen_pk.mT @ functions_pb)
    information_kb = precision_k.unsqueeze(-1) * functions_pb.square().sum(-2)
    if moment_kb.dim() > 2:  # draws x 1 (in place of the plate of cells) x ..., as the prior sd has it
        moment_kb, information_kb = moment_kb.unsqueeze(-3), information_kb.unsqueeze(-3)
    variance_kb = (sd_kb.square().reciprocal() + information_kb).reciprocal()
    return dist.Normal(variance_kb * moment_kb, variance_kb.sqrt()).to_event(2)


def direction_posterior(
    mean_pk: Tensor, residual_pk: Tensor, seen_pk: Tensor, variance_pk: Tensor
) -> dist.TorchDistribution:
    """Posterior of directions with a normal prior of given variance, seen with a given variance."""
    trust_pk = residual_pk / (residual_pk + variance_pk)
    return dist.Normal(mean_pk + trust_pk * (seen_pk - mean_pk), (trust_pk * variance_pk).sqrt()).to_event(1)


def lower_factor_of_inverse(precision: Tensor) -> Tensor:
    """Lower triangular ``L`` with ``L L' = precision^-1``, from one Cholesky factor of the flipped matrix."""
    upper = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)  # precision = upper upper'
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(upper, identity, upper=True).mT
