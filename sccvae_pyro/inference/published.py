"""The published training loss (Liu, Zhang & Uhler 2026, PLOS Comput Biol 22:2) on our program, to compare.

Every perturbed cell ``y`` is paired with a random control cell ``x``. The noise ``z`` is read off ``x``;
decoded as it is it should give ``x``, and after the perturbation of ``y`` it should give ``y``::

    0.25 MSE(x_hat, x) + MSE(y_hat, y) + 10 MMD(y_hat, y) + weight KL(q(z | x), Normal(0, I)) / nodes

There is no likelihood, and the globals have no prior: what their guide spreads is noise to this loss, which
makes it vanish. Nothing of what is fitted here is calibrated.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn.functional import mse_loss

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.errors import InputError
from sccvae_pyro.inference.module import SVIModule
from sccvae_pyro.inference.objectives import Loss
from sccvae_pyro.models import scm
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.responders import Evidence

CONTROL_WEIGHT, MMD_WEIGHT = 0.25, 10.0
BANDWIDTH, N_KERNELS = 1000.0, 10
"""Squared length of the kernel in the middle, and the number of kernels, each twice as wide as the last."""

EPSILON, WEIGHT_DECAY = 0.01, 1e-6
"""Of Adam."""


class Paired(NamedTuple):
    """Decoded and measured expression of pairs of cells, ``pairs x genes``, and the KL, nats a node."""

    control_hat: Tensor
    control: Tensor
    perturbed_hat: Tensor
    perturbed: Tensor
    kl: Tensor

    def loss(self, kl_weight: float) -> Tensor:
        """Add the parts up; a scalar."""
        distances = CONTROL_WEIGHT * mse_loss(self.control_hat, self.control)
        distances = distances + mse_loss(self.perturbed_hat, self.perturbed)
        return distances + MMD_WEIGHT * self.mmd + kl_weight * self.kl

    @property
    def mmd(self) -> Tensor:
        """Squared maximum mean discrepancy between decoded and measured perturbed cells."""
        return squared_mmd(self.perturbed_hat, self.perturbed)


class PublishedLoss(Loss):
    """The published training loss of batches in which control cells come first, as many as perturbed ones.

    Parameters
    ----------
    program
        Model and guide.
    particles
        One: the loss takes a single draw.

    Raises
    ------
    InputError
        If the likelihood is one of counts: distances are taken between log-normalised values.
    """

    def __init__(self, program: Program, particles: int = 1) -> None:
        super().__init__()
        likelihood = program.priors.likelihood
        if likelihood.kind != "continuous":
            raise InputError(
                "objective 'published' compares log-normalised values, and this screen holds counts "
                f"(likelihood={type(likelihood).__name__}). Normalise a copy of it (log1p of counts per ten "
                "thousand) and set that up, or fit with objective='elbo'."
            )
        if particles != 1:
            raise InputError(f"objective 'published' takes one draw, not particles={particles}")
        self.program = program

    def forward(self, batch: Batch, kl_weight: float = 1.0) -> Tensor:
        """Give the loss, a scalar."""
        with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
            return self.pair(batch).loss(kl_weight)

    def validate(self, batch: Batch) -> Tensor:
        """Give what the best state is chosen by, MMD and KL."""
        with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
            pairs = self.pair(batch)
        return pairs.mmd + pairs.kl

    def pair(self, batch: Batch) -> Paired:
        """Read the noise off control cells, and decode it as it is and as perturbed."""
        program, n_pairs = self.program, len(batch.library_c) // 2
        causes = program.causes_given(program.guide_globals(), program.seen)
        action_ca = causes.share_of(batch).unsqueeze(-1) * causes.action_of(batch)
        state_ck, trust_k = program.encode(batch)
        evidence = Evidence(state_ck[:n_pairs], trust_k, causes.B, action_ca[:n_pairs])
        noise = evidence.noise(torch.ones_like(batch.library_c[:n_pairs]))
        z_ck = noise.rsample()
        u_ck = scm.respond(torch.cat([z_ck, z_ck]), action_ca, causes.B)
        x_hat_cg = program.baseline + program.decode(u_ck, batch.covariates_cv)
        return Paired(
            x_hat_cg[:n_pairs],
            batch.x_cg[:n_pairs],
            x_hat_cg[n_pairs:],
            batch.x_cg[n_pairs:],
            kl_to_standard(noise).mean() / program.sizes.nodes,
        )


class PublishedModule(SVIModule):
    """The published optimiser: Adam at a constant rate, the gradient of every parameter clipped by itself."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, its constants those of the publication."""
        return torch.optim.Adam(
            self.program.parameters(), self.spec.learning_rate, eps=EPSILON, weight_decay=WEIGHT_DECAY
        )

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **bound: object) -> None:
        """Bound the norm of each parameter's gradient."""
        for parameter in self.program.parameters():
            nn.utils.clip_grad_norm_(parameter, self.spec.gradient_clip)


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Squared maximum mean discrepancy with a sum of Gaussian kernels ``exp(-distance^2 / width)``.

    Parameters
    ----------
    a, b
        Samples, ``cells x genes``.

    Returns
    -------
    Scalar; pairs of a cell with itself included, as published.
    """
    both = torch.cat([a, b])
    squared = torch.cdist(both, both).square()
    width = BANDWIDTH * 2.0 ** (torch.arange(N_KERNELS, device=a.device) - N_KERNELS // 2)
    kernel = (-squared / width[:, None, None]).exp().sum(0)
    n = len(a)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def kl_to_standard(noise: MultivariateNormal) -> Tensor:
    """KL divergence of normals to the standard one, nats, of the batch shape of ``noise``."""
    standard = MultivariateNormal(torch.zeros_like(noise.loc), torch.eye(noise.event_shape[0]).to(noise.loc))
    return kl_divergence(noise, standard)
