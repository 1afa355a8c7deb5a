"""Beliefs about the order of the nodes: which of two nodes may act on the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.graph_edges import EdgePrior, Edges, GraphPrior, Laplace, node_names
from sccvae_pyro.models.graph_known import KnownGraph
from sccvae_pyro.models.slot import Perturbations, Sizes, names

WEIGHT = "edge_weight"
"""Site of the weights of all pairs of nodes, in both directions."""

TEMPERATURE = 0.1
"""Difference of scores over which a turned edge is felt; the scores have a spread of one.

Of .02 to .5, that with which edges came nearest to a sum over all orders of three nodes.
"""

START_SCALE = 0.1
"""Standard deviation of a score that begins at a suggested order: a few neighbours change places."""


class _WithinOrder(GraphPrior):
    """A prior of edges, put on the edges of some order."""

    graph: EdgePrior

    def __post_init__(self) -> None:
        graph = GraphPrior.from_dict(self.graph)
        if not isinstance(graph, EdgePrior):
            raise InputError(
                f"{type(self).__name__}: graph must be a prior of edges, such as Laplace or SpikeSlab, "
                f"not {type(graph).__name__}"
            )
        object.__setattr__(self, "graph", graph)

    def to_dict(self) -> dict[str, Any]:
        """Write the member as plain values, the graph within as a table of its own."""
        return {**super().to_dict(), "graph": self.graph.to_dict()}

    @property
    def recorded(self) -> Mapping[str, str]:
        """As the graph has it; see :attr:`Prior.recorded`."""
        return self.graph.recorded

    def inclusion(self, B: Tensor, sizes: Sizes) -> Tensor | None:
        """Probability that each edge is in the graph; see :meth:`GraphPrior.inclusion`."""
        return self.graph.inclusion(B, sizes)


@dataclass(frozen=True)
class Ordered(_WithinOrder):
    """The edges of a graph prior, in an order of the nodes that is known.

    Parameters
    ----------
    graph
        Belief about the edges: a member, its name, or a table with its name and settings.
    order
        Names of all nodes, causes first; empty for the order of the model.
    """

    graph: EdgePrior = field(default_factory=Laplace)
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names(self, order=self.order)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``B``, ``nodes x nodes``."""
        return self.graph.sample(self._edges(sizes), sizes, perturbations.features.new_zeros(()))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Build the guide factor of the graph, for the edges of this order."""
        return self.graph.factor(self._edges(sizes), sizes)

    def _edges(self, sizes: Sizes) -> Edges:
        nodes = node_names(sizes)
        order = self.order or nodes
        if unknown := sorted(set(order) - set(nodes)):
            raise InputError(f"Ordered: the model has no node {listing(unknown)}")
        if missing := sorted(set(nodes) - set(order)):
            raise InputError(f"Ordered: order leaves out {listing(missing)}. Name every node.")
        return Edges.in_order(torch.tensor([nodes.index(name) for name in order]))


@dataclass(frozen=True)
class LearnedOrder(_WithinOrder):
    """The edges of a graph prior, in an order of the nodes that is learned with them.

    Every node has a score, every pair of nodes a weight in both directions, and edges run from lower to
    higher scores: every draw is acyclic, and all orders are equally probable beforehand::

        order_score_k ~ Normal(0, 1)
        edge_weight   ~ graph prior, on all pairs of nodes
        B_jk = edge_weight_jk where order_score_j < order_score_k, else 0

    Gradients reach the scores straight through the comparison, as if it were soft (Bengio, Léonard &
    Courville 2013, arXiv:1308.3432; scores for orders as in Charpentier, Kibler & Günnemann 2022, ICLR).

    Parameters
    ----------
    graph
        Belief about the edges: a member, its name, or a table with its name and settings.
    """

    graph: EdgePrior = field(default_factory=Laplace)

    learns_order = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.graph, KnownGraph) and self.graph.required:
            raise InputError("LearnedOrder: required edges fix a part of the order. Use Ordered.")

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample scores and weights, and record ``B``, ``nodes x nodes``."""
        zero = perturbations.features.new_zeros(())
        standard = dist.Normal(zero, zero + 1.0).expand([sizes.nodes]).to_event(1)
        score_k = pyro.sample("order_score", standard)
        weights_kk = self.graph.sample(_all_pairs(sizes), sizes, zero)
        return pyro.deterministic("B", weights_kk * forward_edges(score_k), event_dim=2)

    @property
    def recorded(self) -> Mapping[str, str]:
        """Weights of the edges that run forward; those of the graph where it only records them, too."""
        weights = {WEIGHT if site == "B" else site: rule for site, rule in self.graph.recorded.items()}
        return {**weights, "B": f"{WEIGHT}_jk where order_score_j < order_score_k, else 0"}

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Independent normals over the scores, and the graph's own factor.

        Where nodes are genes, scores begin at the order that the screen suggests: gradients alone seldom turn
        what has once been learned the wrong way round.
        """
        return _OrderFactor(self.graph.factor(_all_pairs(sizes), sizes), sizes)


class _OrderFactor(nn.Module):
    def __init__(self, edges: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.score = MeanField("order_score", [sizes.nodes], event_dim=1, scale=1.0)
        if sizes.causes_first:
            self._begin_at(torch.tensor(sizes.causes_first))
        self.edges = edges

    @torch.no_grad()
    def _begin_at(self, order_k: Tensor) -> None:
        evenly = torch.linspace(-math.sqrt(3), math.sqrt(3), len(order_k))  # a spread of one, as in the prior
        self.score.loc[order_k] = evenly
        self.score.log_scale.fill_(math.log(START_SCALE))

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the scores and the weights."""
        self.score()
        self.edges(perturbations)


def forward_edges(score_k: Tensor) -> Tensor:
    """One where an edge runs from a lower to a higher score, ``... x nodes x nodes``, with soft gradients."""
    ahead = score_k.unsqueeze(-2) - score_k.unsqueeze(-1)
    soft = (ahead / TEMPERATURE).sigmoid()
    return (ahead > 0).to(soft) + (soft - soft.detach())


def _all_pairs(sizes: Sizes) -> Edges:
    sources, targets = (~torch.eye(sizes.nodes, dtype=torch.bool)).nonzero(as_tuple=True)
    return Edges(sources, targets, sizes.nodes, site=WEIGHT)
