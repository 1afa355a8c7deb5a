"""The catalogue: every prior, likelihood and posterior family, for ``from sccvae_pyro import priors``.

Members of different slots may share a name (a normal graph, a normal likelihood), so each slot is a
module: ``priors.graph.Laplace(scale=0.02)``, ``priors.likelihood.Normal()``.
"""

from __future__ import annotations

import functools
from types import ModuleType

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


def __dir__() -> list[str]:
    return __all__


def _members(module: ModuleType, slot: str) -> list[str]:
    """Public members of a slot and their bases, for completion: a module also holds what it imports."""
    return sorted(
        name
        for name, value in vars(module).items()
        if getattr(value, "slot", None) == slot and not name.startswith("_")
    )


for _slot in __all__:
    vars(globals()[_slot])["__dir__"] = functools.partial(_members, globals()[_slot], _slot)
