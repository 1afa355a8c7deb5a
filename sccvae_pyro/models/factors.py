"""Guide factors: small variational families that the priors bring along.

Parameters are plain tensors of the module, never entries of the global parameter store.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from sccvae_pyro.models.slot import Perturbations


class MeanField(nn.Module):
    """Independent normals, mapped to the support of the site.

    Parameters
    ----------
    site
        Name of the sample site.
    shape
        Shape of the parameters.
    event_dim
        Trailing dimensions that belong to one draw; the rest are covered by plates of the caller.
    loc, scale
        Starting values, before the transforms.
    transforms
        From the real line to the support.
    """

    def __init__(
        self,
        site: str,
        shape: Sequence[int],
        event_dim: int,
        loc: float = 0.0,
        scale: float = 0.1,
        transforms: Sequence[Transform] = (),
    ) -> None:
        super().__init__()
        self.site = site
        self.event_dim = event_dim
        self.transforms = list(transforms)
        self.loc = nn.Parameter(torch.full(tuple(shape), float(loc)))
        self.log_scale = nn.Parameter(torch.full(tuple(shape), float(scale)).log())

    def distribution(self) -> dist.TorchDistribution:
        """Build the variational distribution."""
        normal = dist.Normal(self.loc, self.log_scale.exp()).to_event(self.event_dim)
        return dist.TransformedDistribution(normal, self.transforms) if self.transforms else normal

    def forward(self) -> Tensor:
        """Sample the site."""
        return pyro.sample(self.site, self.distribution())


class Plated(nn.Module):
    """A factor with one entry for each perturbation."""

    def __init__(self, factor: MeanField) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the factor's site inside the plate."""
        with perturbations.plate:
            self.factor()


class Unplated(nn.Module):
    """A factor that has nothing to do with the perturbations."""

    def __init__(self, factor: MeanField) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the factor's site."""
        self.factor()


class StrictlyUpperTriangular(Transform):
    """A vector of edge weights as a strictly upper triangular matrix, row by row.

    A change of coordinates between the edges and the matrices that can be DAGs in the given order:
    its log determinant is zero.
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.independent(constraints.real, 2)

    def __init__(self, n_nodes: int) -> None:
        super().__init__(cache_size=0)
        self.n_nodes = n_nodes
        self.rows, self.columns = torch.triu_indices(n_nodes, n_nodes, offset=1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StrictlyUpperTriangular) and other.n_nodes == self.n_nodes

    def _call(self, x: Tensor) -> Tensor:
        matrix = x.new_zeros((*x.shape[:-1], self.n_nodes, self.n_nodes))
        matrix[..., self.rows, self.columns] = x
        return matrix

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., self.rows, self.columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Give zero: entries are moved, not scaled."""
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the matrix."""
        return torch.Size((*shape[:-1], self.n_nodes, self.n_nodes))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the vector."""
        return torch.Size((*shape[:-2], len(self.rows)))
