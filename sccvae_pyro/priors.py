"""The catalogue: every prior, likelihood and posterior family, for ``from sccvae_pyro import priors``.

Members of different slots may share a name (a normal graph, a normal likelihood), so each slot is a
module: ``priors.graph.Laplace(scale=0.02)``, ``priors.likelihood.Normal()``.
"""

from sccvae_pyro.models import direction, graph, library, nodes, noise, penetrance, responders
from sccvae_pyro.models import families as posterior
from sccvae_pyro.models import interventions as intervention
from sccvae_pyro.models import likelihoods as likelihood

__all__ = [
    "direction",
    "graph",
    "intervention",
    "library",
    "likelihood",
    "nodes",
    "noise",
    "penetrance",
    "posterior",
    "responders",
]
