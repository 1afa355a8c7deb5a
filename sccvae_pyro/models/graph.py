"""Graph priors: beliefs about the weighted adjacency ``B`` of the latent nodes.

Every member returns ``B`` (``nodes x nodes``), acyclic whatever the draw: strictly upper triangular in the
order of the nodes, or in the order that :class:`Ordered` is given or :class:`LearnedOrder` draws.
"""

from sccvae_pyro.models.graph_edges import EdgePrior, Edges, GraphPrior, Laplace, NoGraph, Normal, Random
from sccvae_pyro.models.graph_known import KnownGraph
from sccvae_pyro.models.graph_order import LearnedOrder, Ordered
from sccvae_pyro.models.graph_sparse import Horseshoe, LowRank, SpikeSlab

__all__ = [
    "EdgePrior",
    "Edges",
    "GraphPrior",
    "Horseshoe",
    "KnownGraph",
    "Laplace",
    "LearnedOrder",
    "LowRank",
    "NoGraph",
    "Normal",
    "Ordered",
    "Random",
    "SpikeSlab",
]
