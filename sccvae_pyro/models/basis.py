"""Functions of the features that directions are a linear map of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sccvae_pyro.models.slot import Basis

JITTER = 1e-4
"""Added to the diagonal of kernels, in units of their variance, for genes with the same features."""


class Affine(nn.Module):
    """The features themselves, and the constant."""

    def forward(self, features: Tensor) -> Basis:
        """Put the constant first; nothing is missed."""
        return Basis(with_intercept(features), features.new_zeros(features.shape[:-1]))


class Standardised(nn.Module):
    """The features, each divided by its standard deviation over the seen perturbations, and the constant.

    Parameters
    ----------
    features
        ``perturbations x features`` of the seen perturbations; one that does not vary stays as it is.
    """

    sd_e: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        sd_e = features.std(0, correction=0)
        self.register_buffer("sd_e", torch.where(sd_e > 0, sd_e, 1.0))

    def forward(self, features: Tensor) -> Basis:
        """Put the constant first; nothing is missed."""
        return Basis(with_intercept(features / self.sd_e), features.new_zeros(features.shape[:-1]))


class KernelBasis(nn.Module):
    """Functions of which a Gaussian process is a linear combination with independent unit weights.

    A rational quadratic kernel: a mixture of squared exponentials of many lengths (Rasmussen & Williams
    2006, section 4.2), so that no length has to be learned. Its functions are whitened on landmarks,
    centred and rotated: over the seen perturbations their means are zero, so that the constant is the effect
    shared by all, and they are orthogonal.

    Parameters
    ----------
    features
        ``perturbations x features`` of the seen perturbations.
    length
        Length of the kernel in units of the median distance between landmarks.
    landmarks
        Most landmarks.
    """

    landmarks_me: Tensor
    length: Tensor
    projection_mb: Tensor
    center_b: Tensor

    def __init__(self, features: Tensor, length: float, landmarks: int) -> None:
        super().__init__()
        for name in ("landmarks_me", "length", "projection_mb", "center_b"):
            self.register_buffer(name, None)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:landmarks]
        points = features[order.sort().values].double()
        distance = squared_distances(points, points)
        apart = distance[distance > 0]
        unit = apart.median() if apart.numel() else distance.new_ones(())
        self.landmarks_me, self.length = points, length * unit.sqrt()
        gram = self.kernel(points) + JITTER * torch.eye(len(points), dtype=points.dtype)
        white_mm = torch.linalg.inv(torch.linalg.cholesky(gram)).mT
        seen_pm = self.kernel(features.double()) @ white_mm
        center_m = seen_pm.mean(0)
        rotation_mb = torch.linalg.svd(seen_pm - center_m, full_matrices=True).Vh.mT
        self.projection_mb, self.center_b = white_mm @ rotation_mb, center_m @ rotation_mb
        self.to(features.dtype)  # factored in double precision, used in that of the features

    def kernel(self, features: Tensor) -> Tensor:
        """Kernel against the landmarks, ``perturbations x landmarks``, at most 1."""
        return 1.0 / (1.0 + 0.5 * squared_distances(features, self.landmarks_me) / self.length.square())

    def forward(self, features: Tensor) -> Basis:
        """Evaluate the functions, the constant first; missed is what the landmarks do not know."""
        known_pb = self.kernel(features) @ self.projection_mb
        missed_p = (1.0 - known_pb.square().sum(-1)).clamp(min=0.0)
        return Basis(with_intercept(known_pb - self.center_b), missed_p)


def with_intercept(features: Tensor) -> Tensor:
    """Put the constant feature first, ``perturbations x (1 + features)``."""
    return torch.cat([features.new_ones((*features.shape[:-1], 1)), features], dim=-1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances between rows, from differences: exact where rows agree."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
