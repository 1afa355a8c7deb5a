"""The direction prior that rests on a kernel of the features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sccvae_pyro.models.basis import KernelBasis
from sccvae_pyro.models.direction_base import (
    DirectionPrior,
    RegressionFactor,
    sample_regression,
    sample_scale,
    sample_signal,
    signal_factor,
    with_constant,
)
from sccvae_pyro.models.regression import orthogonal_posterior
from sccvae_pyro.models.slot import Given, Perturbations, Sizes, positive, whole


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
    unlike all seen ones has the effect that the process has far from them and, through what the functions
    miss of it, a wide interval.

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
        scale_k = sample_scale(sizes, functions_pb.new_tensor(self.scale))
        signal_k = sample_signal(sizes, functions_pb.new_ones(()))
        sd_kb = weights_sd(scale_k, signal_k, functions_pb, self.intercept)
        sd_pk = residual_variance(scale_k, signal_k, missed_p).sqrt()
        return sample_regression("direction_function_weights", sd_kb, sd_pk, perturbations)

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Mean field over scales and signals; weights and directions given those."""
        return _KernelFactor(self, sizes)


class _KernelFactor(RegressionFactor):
    """Weights from the posterior that holds where all perturbations of a node are seen equally well.

    The functions of the basis are orthogonal over the seen perturbations; with one variance for each
    node, their weights are independent a posteriori, and no step factors a matrix of all perturbations.
    """

    def __init__(self, prior: GaussianProcess, sizes: Sizes) -> None:
        super().__init__("direction_function_weights", orthogonal_posterior, prior.scale, sizes)
        self.intercept = prior.intercept
        self.signal = signal_factor(sizes)

    def forward(self, perturbations: Perturbations, given: Given) -> None:
        """Sample scales and signals, then weights and directions given all of them."""
        scale_k, signal_k = self.scale(), self.signal()
        functions_pb, missed_p = perturbations.basis
        sd_kb = weights_sd(scale_k, signal_k, functions_pb, self.intercept)
        self.sample(sd_kb, residual_variance(scale_k, signal_k, missed_p), perturbations, given)


def weights_sd(scale_k: Tensor, signal_k: Tensor, functions_pb: Tensor, intercept: float) -> Tensor:
    """Prior sd of the weights, constant first, ``... x nodes x functions``."""
    width_kb = signal_k.unsqueeze(-1) * functions_pb.new_ones(functions_pb.shape[-1] - 1)
    return scale_k.unsqueeze(-1) * with_constant(width_kb, intercept)


def residual_variance(scale_k: Tensor, signal_k: Tensor, missed_p: Tensor) -> Tensor:
    """Variance of directions around the regression, ``... x perturbations x nodes``."""
    return scale_k.square() * (1.0 + signal_k.square() * missed_p.unsqueeze(-1))
