"""Posterior families: how the globals are proposed, each by the factor of its prior or all together.

A factor knows its prior, such as the exact regression of directions on features, and takes its sites as
independent of those of other factors. A joint family knows nothing but the supports of the sites, and
learns how all of them vary together. The noise of the cells is proposed by abduction in either case.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.poutine.util import site_is_subsample as is_plate
from torch import Tensor, nn
from torch.distributions import AffineTransform, biject_to

from sccvae_pyro.errors import InputError
from sccvae_pyro.models.noise import CouplingFlow
from sccvae_pyro.models.slot import Given, Member, Perturbations, positive, whole

MOST_OF_FLOW = 1000
"""Values of globals beyond which a flow is not trained in the time of a fit."""

START_DRAWS = 100
"""Draws of the factors from whose means and sds a joint family starts."""

Propose = Callable[[], dict[str, Tensor]]
"""Draws all globals; gives the value of each site."""


class PosteriorFamily(Member, slot="posterior"):
    """Base of the posterior families; the sites are those of the other slots."""

    @abstractmethod
    def module(self, factors: nn.Module, model: Callable[[], object], propose: Propose) -> nn.Module:
        """Build what proposes all globals.

        Parameters
        ----------
        factors
            The factors of the priors, see :class:`OwnFactors`; the module is called as they are.
        model
            Samples all globals from their priors.
        propose
            Draws all globals from the factors as they begin.
        """


@dataclass(frozen=True)
class Factors(PosteriorFamily):
    """Every prior brings a factor of its own, independent of the others'. The default."""

    def module(self, factors: nn.Module, model: Callable[[], object], propose: Propose) -> nn.Module:
        """Take the factors as they are."""
        return factors


class OwnFactors(nn.Module):
    """The guide factors that the priors bring along."""

    def __init__(
        self,
        graph: nn.Module,
        penetrance: nn.Module,
        responders: nn.Module,
        direction: nn.Module,
        genes: nn.Module,
    ) -> None:
        super().__init__()
        self.graph_factor, self.penetrance_factor = graph, penetrance
        self.responders_factor, self.direction_factor = responders, direction
        self.gene_factor = genes

    def forward(self, seen: Perturbations, given: Callable[[dict[str, Tensor]], Given]) -> dict[str, Tensor]:
        """Sample all globals, directions given strengths and graph; give the drawn value of each site."""
        with poutine.trace() as drawn:
            self.graph_factor(seen)
            self.penetrance_factor(seen)
            self.responders_factor(seen)
            self.direction_factor(seen, given(values_of(drawn.trace)))
            self.gene_factor()
        return values_of(drawn.trace)


class _Joint(AutoContinuous):
    """A distribution over the unconstrained values of all globals, packed into one vector.

    Pyro's automatic guides map the vector to the sites. They make their parameters at their first call, and
    start every site alike; here parameters exist from the start, so that a state can be loaded, and
    begin where the factors of the priors do.
    """

    def __init__(
        self,
        model: Callable[[], object],
        propose: Propose,
        build: Callable[[Tensor, Tensor], nn.Module],
    ) -> None:
        super().__init__(model, init_to_sample)
        self.create_plates = lambda seen, *_: seen.plate  # that of the call: a trace holds one of each name
        self._setup_prototype()
        with torch.no_grad():
            drawn = torch.stack([self._packed(propose()) for _ in range(START_DRAWS)])
        self.joint = build(drawn.mean(0), drawn.std(0))

    def __call__(self, *context: object) -> dict[str, Tensor]:
        """Sample all globals; give the value of each site."""
        # Called as a Pyro module it would put what is learned into the global parameter store.
        return self.forward(*context)

    def get_posterior(self, *context: object) -> dist.TorchDistribution:
        """Build the distribution of the packed vector."""
        return self.joint()

    def _packed(self, values: dict[str, Tensor]) -> Tensor:
        sites = self.prototype_trace.iter_stochastic_nodes()
        return torch.cat(
            [biject_to(site["fn"].support).inv(values[name]).reshape(-1) for name, site in sites]
        )


@dataclass(frozen=True)
class LowRank(PosteriorFamily):
    """All globals together: a normal with a covariance of low rank plus diagonal.

    Of D unconstrained values, ``Normal(loc, S (F F' + I) S)`` with S diagonal and F of shape ``D x rank``
    (Ong, Nott & Smith 2018, J Comput Graph Stat 27:465).

    Parameters
    ----------
    rank
        Directions in which globals vary together.
    """

    rank: int = 10

    def __post_init__(self) -> None:
        positive(self, rank=self.rank)
        whole(self, rank=self.rank)

    def module(self, factors: nn.Module, model: Callable[[], object], propose: Propose) -> nn.Module:
        """Build the normal; it starts nearly independent."""
        return _Joint(model, propose, lambda loc, sd: _LowRankNormal(loc, sd, self.rank))


class _LowRankNormal(nn.Module):
    def __init__(self, loc: Tensor, sd: Tensor, rank: int) -> None:
        super().__init__()
        if rank > len(loc):
            raise InputError(
                f"posterior LowRank: rank must be at most {len(loc)}, the number of values of the globals, "
                f"not {rank}"
            )
        self.loc, self.log_sd = nn.Parameter(loc), nn.Parameter(sd.log())
        self.factor_dr = nn.Parameter(
            0.1 / math.sqrt(rank) * torch.randn(len(loc), rank)
        )  # at zero: no gradient

    def forward(self) -> dist.TorchDistribution:
        """Build the distribution."""
        sd = self.log_sd.exp()
        return dist.LowRankMultivariateNormal(self.loc, sd.unsqueeze(-1) * self.factor_dr, sd.square())


@dataclass(frozen=True)
class Flow(PosteriorFamily):
    """All globals together, of any smooth shape: a normal, bent by affine coupling layers. For small models.

    Parameters
    ----------
    layers
        Coupling layers, each of which moves one half of the values given the other (Dinh et al. 2017, ICLR).
    hidden
        Width of the networks in the layers.
    """

    layers: int = 4
    hidden: int = 32

    def __post_init__(self) -> None:
        positive(self, layers=self.layers, hidden=self.hidden)
        whole(self, layers=self.layers, hidden=self.hidden)

    def module(self, factors: nn.Module, model: Callable[[], object], propose: Propose) -> nn.Module:
        """Build the flow, which starts at independent normals.

        Raises
        ------
        InputError
            If the globals have fewer than two values, or more than :data:`MOST_OF_FLOW`.
        """
        return _Joint(model, propose, self._flow)

    def _flow(self, loc: Tensor, sd: Tensor) -> nn.Module:
        if not 2 <= len(loc) <= MOST_OF_FLOW:
            raise InputError(
                f"posterior Flow couples 2 to {MOST_OF_FLOW} values, and the globals of this model have "
                f"{len(loc)}. Take fewer nodes or fewer perturbations, or posterior='LowRank'."
            )
        return _Bent(CouplingFlow(len(loc), self.layers, self.hidden), loc, sd)


class _Bent(nn.Module):
    def __init__(self, flow: CouplingFlow, loc: Tensor, sd: Tensor) -> None:
        super().__init__()
        self.flow, self.loc, self.log_sd = flow, nn.Parameter(loc), nn.Parameter(sd.log())

    def forward(self) -> dist.TorchDistribution:
        """Build the distribution."""
        # Cached, as its layers are: the density is then that of the very draw, with nothing inverted.
        place = AffineTransform(self.loc, self.log_sd.exp(), event_dim=1, cache_size=1)
        return dist.TransformedDistribution(self.flow(self.loc), [place])


def values_of(trace: poutine.Trace) -> dict[str, Tensor]:
    """Values of the sample sites of a trace."""
    sites = trace.nodes.items()
    return {name: site["value"] for name, site in sites if site["type"] == "sample" and not is_plate(site)}
