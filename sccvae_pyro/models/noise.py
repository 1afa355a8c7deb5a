"""Noise priors: beliefs about the exogenous noise, the cell's own state before regulation."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineCoupling, permute
from pyro.nn import DenseNN
from torch import Tensor, nn

from sccvae_pyro.errors import InputError
from sccvae_pyro.models.slot import Member, Sizes, positive, whole


class NoisePrior(Member, slot="noise"):
    """Base of the noise priors; the site is ``z``, sampled by the program inside the plate ``cells``.

    The guide proposes the noise as if its prior were standard normal: the nearer a member is to mean 0 and
    variance 1, the better the proposal. What a member learns of the shape of the noise is a point
    estimate, as the networks are.
    """

    @abstractmethod
    def module(self, sizes: Sizes) -> nn.Module:
        """Build what gives the distribution of one cell's noise, event shape ``nodes``."""


class _Independent(NoisePrior):
    """The same noise on every node, nothing to learn."""

    @abstractmethod
    def node(self, zero: Tensor) -> dist.TorchDistribution:
        """Distribution of the noise of a node, on the device of a zero."""

    def module(self, sizes: Sizes) -> nn.Module:
        """Build independent noise."""
        return _IndependentNodes(self, sizes.nodes)


class _IndependentNodes(nn.Module):
    def __init__(self, prior: _Independent, n_nodes: int) -> None:
        super().__init__()
        self.prior, self.n_nodes = prior, n_nodes

    def forward(self, like: Tensor) -> dist.TorchDistribution:
        """Give the distribution of one cell's noise."""
        return self.prior.node(like.new_zeros(())).expand([self.n_nodes]).to_event(1)


@dataclass(frozen=True)
class StandardNormal(_Independent):
    """Independent standard normal noise on every node. The default."""

    def node(self, zero: Tensor) -> dist.TorchDistribution:
        """``Normal(0, 1)``."""
        return dist.Normal(zero, 1.0)


@dataclass(frozen=True)
class StudentT(_Independent):
    """Heavy tails: some cells are far from the rest before anything is done to them. Variance 1.

    Parameters
    ----------
    df
        Degrees of freedom, above 2; the smaller, the heavier the tails.
    """

    df: float = 5.0

    def __post_init__(self) -> None:
        positive(self, df=self.df)
        if self.df <= 2:
            raise InputError(f"StudentT: df must be above 2, for a variance of 1, not {self.df!r}")

    def node(self, zero: Tensor) -> dist.TorchDistribution:
        """Student's t of variance 1."""
        return dist.StudentT(zero + self.df, zero, math.sqrt((self.df - 2.0) / self.df))


@dataclass(frozen=True)
class Laplace(_Independent):
    """Sparse noise: most nodes of a cell are near their mean, a few far. Variance 1.

    Noise that is not normal is what identifies a linear causal model without interventions (Shimizu et al.
    2006, JMLR 7:2003).
    """

    def node(self, zero: Tensor) -> dist.TorchDistribution:
        """Laplace of variance 1."""
        return dist.Laplace(zero, math.sqrt(0.5))


@dataclass(frozen=True)
class Mixture(NoisePrior):
    """Cells come in states, such as phases of the cell cycle: a mixture of normals with diagonal covariance.

    Parameters
    ----------
    states
        Number of states.
    """

    states: int = 4

    def __post_init__(self) -> None:
        whole(self, states=self.states)

    def module(self, sizes: Sizes) -> nn.Module:
        """Build a mixture whose states start apart by a fraction of their width."""
        return _MixtureOfStates(self.states, sizes.nodes)


class _MixtureOfStates(nn.Module):
    def __init__(self, n_states: int, n_nodes: int) -> None:
        super().__init__()
        self.logits_s = nn.Parameter(torch.zeros(n_states))
        self.mean_sk = nn.Parameter(0.3 * torch.randn(n_states, n_nodes))
        self.log_sd_sk = nn.Parameter(torch.zeros(n_states, n_nodes))

    def forward(self, like: Tensor) -> dist.TorchDistribution:
        """Give the distribution of one cell's noise."""
        states = dist.Normal(self.mean_sk, self.log_sd_sk.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits_s), states)


@dataclass(frozen=True)
class Flow(NoisePrior):
    """Noise of any smooth shape: a normal, bent by affine coupling layers (Dinh et al. 2017, ICLR).

    Parameters
    ----------
    layers
        Coupling layers, each of which moves one half of the nodes given the other.
    hidden
        Width of the networks in the layers.
    """

    layers: int = 4
    hidden: int = 32

    def __post_init__(self) -> None:
        whole(self, layers=self.layers, hidden=self.hidden)

    def module(self, sizes: Sizes) -> nn.Module:
        """Build a flow that starts at the normal.

        Raises
        ------
        InputError
            If there are fewer than two nodes.
        """
        if sizes.nodes < 2:
            raise InputError("noise Flow couples nodes with one another: n_nodes must be at least 2")
        return CouplingFlow(sizes.nodes, self.layers, self.hidden)


class CouplingFlow(nn.Module):
    """A standard normal vector, bent by affine coupling layers that do nothing as yet.

    Parameters
    ----------
    size
        Entries of the vector, at least 2.
    layers, hidden
        Number of layers, and width of the network in each.
    """

    def __init__(self, size: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.size = size
        # Reversing the entries lets every layer move the half that the one before it kept.
        self.register_buffer("reversed", torch.arange(size).flip(0))
        kept = size // 2
        self.networks = nn.ModuleList(_identity_network(kept, hidden, size - kept) for _ in range(layers))

    def forward(self, like: Tensor) -> dist.TorchDistribution:
        """Give the distribution of the vector, on the device of ``like``."""
        base = dist.Normal(like.new_zeros(self.size), 1.0).to_event(1)
        turn = permute(self.size, self.reversed)
        steps = [step for network in self.networks for step in (self._coupling(network), turn)]
        return dist.TransformedDistribution(base, steps)

    def _coupling(self, network: nn.Module) -> AffineCoupling:
        """Build a layer: it keeps its last answer, with the gradient, and could not be copied with it."""
        # Unbounded, the scales of single draws overflow; a factor of e for each layer is room enough.
        return AffineCoupling(self.size // 2, network, log_scale_min_clip=-1.0, log_scale_max_clip=1.0)


def _identity_network(kept: int, hidden: int, moved: int) -> Any:
    """Build a network of a coupling layer that does nothing as yet."""
    network: Any = DenseNN(kept, [hidden], [moved, moved])
    nn.init.zeros_(network.layers[-1].weight)
    nn.init.zeros_(network.layers[-1].bias)
    return network
