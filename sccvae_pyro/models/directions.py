"""The slot of the directions, all members in one place.

From features: :mod:`~sccvae_pyro.models.direction`; from the graph: :mod:`~sccvae_pyro.models.own_node`.
"""

from sccvae_pyro.models.direction import DirectionPrior, GaussianProcess, Linear, Simplex
from sccvae_pyro.models.own_node import OwnNode

__all__ = ["DirectionPrior", "GaussianProcess", "Linear", "OwnNode", "Simplex"]
