"""Graph priors in general, and those whose edges are independent.

An :class:`EdgePrior` gives weights to whatever edges it is handed: those that the order of the nodes
allows, or those of another order (:mod:`sccvae_pyro.models.graph_order`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from sccvae_pyro.data.checks import check_seed
from sccvae_pyro.models.factors import Adjacency, MeanField, Unplated
from sccvae_pyro.models.slot import Empty, Perturbations, Prior, Sizes, positive, share


class GraphPrior(Prior, slot="graph"):
    """Base of the graph priors; the site is ``B``."""

    learns_order = False
    """Whether the order of the nodes is learned, and begins at one that the screen suggests."""

    def inclusion(self, B: Tensor, sizes: Sizes) -> Tensor | None:
        """Probability that each edge is in the graph, for priors that tell edges from none.

        Parameters
        ----------
        B
            ``draws x nodes x nodes``, posterior draws.
        sizes
            Sizes of the model.

        Returns
        -------
        ``nodes x nodes``, averaged over the draws; ``None`` where the prior knows large and small edges only.
        """
        return None


class Edges(NamedTuple):
    """The edges that there may be.

    Parameters
    ----------
    sources, targets
        Row and column of each edge in the matrix.
    n_nodes
        Rows and columns of the matrix.
    site
        Name of the sample site of the matrix of weights.
    """

    sources: Tensor
    targets: Tensor
    n_nodes: int
    site: str = "B"

    @classmethod
    def in_order(cls, order: Tensor) -> Edges:
        """Allow all edges from an earlier to a later node; ``order`` holds the nodes, causes first."""
        earlier, later = torch.triu_indices(len(order), len(order), offset=1)
        return cls(order[earlier], order[later], len(order))

    def where(self, kept: Tensor) -> Edges:
        """Keep some of the edges."""
        return self._replace(sources=self.sources[kept], targets=self.targets[kept])

    @property
    def number(self) -> int:
        """Number of edges."""
        return len(self.sources)

    @property
    def at_once(self) -> int:
        """Most edges that a graph can have: of the two directions of a pair, one."""
        low, high = torch.minimum(self.sources, self.targets), torch.maximum(self.sources, self.targets)
        return len(torch.stack([low, high]).unique(dim=1)[0]) if self.number else 0

    @property
    def to_matrix(self) -> Adjacency:
        """From a vector of weights to the matrix."""
        return Adjacency(self.sources, self.targets, self.n_nodes)


class EdgePrior(GraphPrior, base=True):
    """Base of the priors that can be put on any set of edges, and so within ``Ordered`` and ``LearnedOrder``.

    A member gives :meth:`sample` and :meth:`factor`; both are handed the :class:`Edges` that there may be.
    """

    @abstractmethod
    def sample(self, edges: Edges, sizes: Sizes, zero: Tensor) -> Tensor:
        """Sample the weights of the edges, ``nodes x nodes``; ``zero`` has the device of the program."""

    @abstractmethod
    def factor(self, edges: Edges, sizes: Sizes) -> nn.Module:
        """Build the guide factor of these edges; see :meth:`Prior.guide`."""

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``B``, ``nodes x nodes``."""
        edges = Edges.in_order(torch.arange(sizes.nodes))
        return self.sample(edges, sizes, perturbations.features.new_zeros(()))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Build the guide factor for the edges that the order of the nodes allows."""
        return self.factor(Edges.in_order(torch.arange(sizes.nodes)), sizes)


class _IndependentEdges(EdgePrior):
    """Edges that are independent given their order."""

    @abstractmethod
    def _edge(self) -> dist.TorchDistribution:
        """Distribution of one edge weight."""

    def _possible(self, edges: Edges) -> Edges:
        return edges

    def sample(self, edges: Edges, sizes: Sizes, zero: Tensor) -> Tensor:
        """Sample the weights of the edges, ``nodes x nodes``."""
        possible = self._possible(edges)
        with torch.device(zero.device):
            weights = self._edge().expand([possible.number]).to_event(1)
        return pyro.sample(possible.site, dist.TransformedDistribution(weights, [possible.to_matrix]))

    def factor(self, edges: Edges, sizes: Sizes) -> nn.Module:
        """Independent normals over the edges."""
        possible = self._possible(edges)
        to_matrix = possible.to_matrix
        return Unplated(
            MeanField(possible.site, [possible.number], event_dim=1, scale=0.02, transforms=[to_matrix])
        )


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
class Random(_IndependentEdges):
    """A graph picked by chance, with weights to learn: the ablation for what a graph says beyond its density.

    Parameters
    ----------
    density
        Probability that an edge is picked.
    seed
        Seed of the choice.
    scale
        Standard deviation of the weight of a picked edge.
    """

    density: float = 0.1
    seed: int = 0
    scale: float = 0.1

    def __post_init__(self) -> None:
        share(self, density=self.density)
        object.__setattr__(self, "seed", check_seed(self.seed))
        positive(self, scale=self.scale)

    def _possible(self, edges: Edges) -> Edges:
        # Not drawn by torch: a compiled program (NUTS) would draw anew in every call.
        chance = torch.as_tensor(np.random.default_rng(self.seed).random(edges.number))
        return edges.where(chance < self.density)

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


def node_names(sizes: Sizes) -> tuple[str, ...]:
    """Names of the nodes in their order."""
    return sizes.node_names or tuple(f"node_{k}" for k in range(sizes.nodes))
