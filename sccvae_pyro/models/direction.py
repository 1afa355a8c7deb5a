"""Direction priors: beliefs about where a perturbation pushes.

Every member returns the direction ``s`` (``perturbations x nodes``) of the perturbations that it is called
with, so that the same code serves the seen and the unseen. From features: :class:`GaussianProcess`,
:class:`Linear`, :class:`SparseLinear` and :class:`Simplex`; from the graph: :class:`OwnNode`.
"""

from sccvae_pyro.models.direction_base import DirectionPrior
from sccvae_pyro.models.direction_kernel import GaussianProcess
from sccvae_pyro.models.direction_linear import Linear, SparseLinear
from sccvae_pyro.models.direction_simplex import Simplex
from sccvae_pyro.models.own_node import OwnNode

__all__ = ["DirectionPrior", "GaussianProcess", "Linear", "OwnNode", "Simplex", "SparseLinear"]
