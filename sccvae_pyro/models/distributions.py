"""Distributions that neither PyTorch nor Pyro has."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional

N_NODES = 10
"""Quadrature nodes of a log density: within 1e-3 nats up to a log-scale sd of 2, within 1e-5 up to 1."""


class PoissonLogNormal(dist.TorchDistribution):
    """Poisson counts whose rate is log-normal (Aitchison & Ho 1989, Biometrika 76:643).

    ``x ~ Poisson(exp(eta))``, ``eta ~ Normal(log_mean - sd^2 / 2, sd)``, so that the mean is
    ``exp(log_mean)`` and the variance of a count of mean m is ``m + m^2 (exp(sd^2) - 1)``.

    The integral over ``eta`` is by adaptive Gauss-Hermite quadrature (Liu & Pierce 1994, Biometrika 81:624):
    the nodes lie around the mode of the integrand, at its own width, which for large counts is far
    narrower than that of ``eta``.

    Parameters
    ----------
    log_mean
        Logarithm of the mean.
    sd
        Standard deviation of the log rate.
    """

    arg_constraints = {"log_mean": constraints.real, "sd": constraints.positive}  # noqa: RUF012 - as in PyTorch
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, sd: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean, self.sd = broadcast_all(log_mean, sd)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    @property
    def loc(self) -> Tensor:
        """Mean of the log rate."""
        return self.log_mean - self.sd.square() / 2

    @property
    def mean(self) -> Tensor:
        """Mean of the counts."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance of the counts."""
        return self.mean + self.mean.square() * self.sd.square().expm1()

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> PoissonLogNormal:
        """The same distribution for a larger batch."""
        return PoissonLogNormal(
            self.log_mean.expand(batch_shape), self.sd.expand(batch_shape), validate_args=False
        )

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - as in PyTorch
        """Draw a rate, then a count."""
        with torch.no_grad():
            noise = torch.randn(
                self._extended_shape(sample_shape), dtype=self.sd.dtype, device=self.sd.device
            )
            return torch.poisson((self.loc + self.sd * noise).exp())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of counts."""
        if self._validate_args:
            self._validate_sample(value)
        with torch.no_grad():  # the integral does not depend on where its nodes lie
            eta, log_width = self._nodes(value)
            log_poisson = value * eta - eta.exp() - torch.lgamma(value + 1)
        log_normal = -((eta - self.loc) / self.sd).square() / 2 - self.sd.log()
        return (log_width + log_poisson + log_normal).logsumexp(0)

    def _nodes(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes of the log rate around the mode given a count, and the logarithms of their widths."""
        z, weight = _hermite(self.sd)
        # At the mode, with w = sd^2 exp(eta): log w + w = loc + sd^2 value + log sd^2, solved by Lambert's
        # function. Newton's steps from the right of it converge at once.
        total = self.loc + self.sd.square() * value + 2 * self.sd.log()
        log_w = functional.softplus(total).clamp(min=torch.finfo(total.dtype).tiny).log()
        for _ in range(3):
            log_w = log_w - (log_w + log_w.exp() - total) / (1 + log_w.exp())
        spread = self.sd / (1 + log_w.exp()).sqrt()
        shape = (-1, *[1] * total.dim())
        z, log_weight = z.reshape(shape), weight.log().reshape(shape)
        eta = log_w - 2 * self.sd.log() + spread * z
        return eta, log_weight + z.square() / 2 + spread.log()


def _hermite(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the expectation under a standard normal."""
    z, weight = np.polynomial.hermite_e.hermegauss(N_NODES)
    return like.new_tensor(z), like.new_tensor(weight / weight.sum())
