"""Graph priors: beliefs about the weighted adjacency ``B`` of the latent nodes.

Every member returns ``B`` (``nodes x nodes``), strictly upper triangular in the order of the nodes,
hence acyclic whatever the draw.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from sccvae_pyro.models.factors import MeanField, StrictlyUpperTriangular, Unplated
from sccvae_pyro.models.slot import Empty, Perturbations, Prior, Sizes, positive


class GraphPrior(Prior, slot="graph"):
    """Base of the graph priors; the site is ``B``."""


class _IndependentEdges(GraphPrior):
    """Edges that are independent given their order."""

    @abstractmethod
    def _edge(self) -> dist.TorchDistribution:
        """Distribution of one edge weight."""

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``B``, ``nodes x nodes``."""
        n_edges = sizes.nodes * (sizes.nodes - 1) // 2
        with torch.device(perturbations.features.device):
            edges = self._edge().expand([n_edges]).to_event(1)
        return pyro.sample("B", dist.TransformedDistribution(edges, [StrictlyUpperTriangular(sizes.nodes)]))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Independent normals over the edges."""
        n_edges = sizes.nodes * (sizes.nodes - 1) // 2
        to_matrix = StrictlyUpperTriangular(sizes.nodes)
        return Unplated(MeanField("B", [n_edges], event_dim=1, scale=0.02, transforms=[to_matrix]))


@dataclass(frozen=True)
class Laplace(_IndependentEdges):
    """Sparse edges: most weights near zero, a few large. The default.

    Parameters
    ----------
    scale
        Scale of an edge weight; its mean absolute size.
    """

    scale: float = 0.05

    def __post_init__(self) -> None:
        positive(self, scale=self.scale)

    def _edge(self) -> dist.TorchDistribution:
        return dist.Laplace(torch.tensor(0.0), torch.tensor(self.scale))


@dataclass(frozen=True)
class Normal(_IndependentEdges):
    """Dense edges of one size.

    Parameters
    ----------
    scale
        Standard deviation of an edge weight.
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        positive(self, scale=self.scale)

    def _edge(self) -> dist.TorchDistribution:
        return dist.Normal(torch.tensor(0.0), torch.tensor(self.scale))


@dataclass(frozen=True)
class NoGraph(GraphPrior):
    """No edges: shifts act on the state directly. The ablation that every graph must beat."""

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Record ``B = 0``, ``nodes x nodes``."""
        return pyro.deterministic(
            "B", perturbations.features.new_zeros(sizes.nodes, sizes.nodes), event_dim=2
        )

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Nothing to learn."""
        return Empty()
