"""Graph priors that tell edges from none: horseshoe, spike and slab, low rank plus sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.errors import InputError
from sccvae_pyro.models import horseshoe
from sccvae_pyro.models.factors import MeanField, SeenMixture, SeenNormal, normal_mixture
from sccvae_pyro.models.graph_edges import EdgePrior, Edges
from sccvae_pyro.models.slot import Member, Perturbations, Sizes, positive, share, whole


@dataclass(frozen=True)
class Horseshoe(EdgePrior):
    """Few edges of any size, all others next to zero; how few is learned around an expected number.

    The regularised horseshoe (Piironen & Vehtari 2017, Electron J Stat 11:5018). With D possible edges and n
    cells::

        edge_global_scale ~ HalfCauchy(expected_edges / (D - expected_edges) / sqrt(n))
        edge_scale_e      ~ HalfCauchy(1)
        width_e           = edge_global_scale * edge_scale_e, cut off smoothly at the slab
        B_e               ~ Normal(0, width_e)

    Parameters
    ----------
    expected_edges
        Expected number of edges that n cells tell from zero; ``None`` means one for each node, or half of
        the possible ones where that is less.
    slab
        Standard deviation of an edge that is not shrunk, in standard deviations of a node's noise.
    """

    expected_edges: float | None = None
    slab: float = 0.5

    def __post_init__(self) -> None:
        positive(self, slab=self.slab)
        if self.expected_edges is not None:
            positive(self, expected_edges=self.expected_edges)

    def sample(self, edges: Edges, sizes: Sizes, zero: Tensor) -> Tensor:
        """Sample scales and weights, ``nodes x nodes``."""
        global_scale = pyro.sample("edge_global_scale", dist.HalfCauchy(zero + self._typical(edges, sizes)))
        scale_e = pyro.sample("edge_scale", dist.HalfCauchy(zero + 1.0).expand([edges.number]).to_event(1))
        width_e = horseshoe.width(global_scale, scale_e, self.slab)
        weights = dist.Normal(torch.zeros_like(width_e), width_e).to_event(1)
        return pyro.sample(edges.site, dist.TransformedDistribution(weights, [edges.to_matrix]))

    def factor(self, edges: Edges, sizes: Sizes) -> nn.Module:
        """Log-normal scales; weights given the scales and a pseudo-observation of each."""
        return _HorseshoeFactor(self, edges, self._typical(edges, sizes))

    def _typical(self, edges: Edges, sizes: Sizes) -> float:
        """Global scale at which as many edges as expected escape the shrinkage."""
        if edges.number == 0:  # one node: nothing to shrink
            return 1.0
        most = edges.at_once
        expected = self.expected_edges or min(sizes.nodes, most / 2)
        if expected >= most:
            raise InputError(
                f"Horseshoe: expected_edges must be fewer than the {most} that {sizes.nodes} nodes "
                f"can have, not {expected:g}"
            )
        return horseshoe.typical_scale(expected, most, sizes.cells)


class _HorseshoeFactor(nn.Module):
    def __init__(self, prior: Horseshoe, edges: Edges, typical: float) -> None:
        super().__init__()
        self.prior, self.edges = prior, edges
        to_positive = [transforms.ExpTransform()]
        self.global_scale = MeanField(
            "edge_global_scale", [], 0, loc=math.log(typical), transforms=to_positive
        )
        # Edges start with room to move: shrunk from the start, they would not feel what the data say of them.
        loc = math.log(0.1 * prior.slab / typical)
        self.scale = MeanField("edge_scale", [edges.number], 1, loc=loc, transforms=to_positive)
        self.weights = SeenNormal([edges.number])

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the scales, then the weights given them."""
        width_e = horseshoe.width(self.global_scale(), self.scale(), self.prior.slab)
        weights = self.weights(width_e).to_event(1)
        pyro.sample(self.edges.site, dist.TransformedDistribution(weights, [self.edges.to_matrix]))


@dataclass(frozen=True)
class SpikeSlab(EdgePrior):
    """An edge is there or not, each with a probability: posterior inclusion probabilities.

    A continuous mixture (George & McCulloch 1993, JASA 88:881): an edge that is not there is small, not
    zero, so that its weight and its being there can be drawn without enumerating graphs::

        B_e ~ (1 - probability) Normal(0, spike) + probability Normal(0, slab)

    Parameters
    ----------
    probability
        Prior probability that an edge is there.
    spike
        Standard deviation of the weight of an edge that is not there.
    slab
        Standard deviation of the weight of an edge that is there, in standard deviations of a node's noise.
    """

    probability: float = 0.05
    spike: float = 0.02
    slab: float = 0.5

    def __post_init__(self) -> None:
        share(self, probability=self.probability)
        spike_below_slab(self, self.spike, self.slab)

    def sample(self, edges: Edges, sizes: Sizes, zero: Tensor) -> Tensor:
        """Sample the weights, ``nodes x nodes``."""
        return sample_mixture(edges, self._probability(edges).to(zero), self.spike, self.slab)

    def factor(self, edges: Edges, sizes: Sizes) -> nn.Module:
        """Mixtures of two normals, as follow from a pseudo-observation of each edge."""
        return MixtureFactor(edges, self._probability(edges), self.spike, self.slab)

    def inclusion(self, B: Tensor, sizes: Sizes) -> Tensor:
        """Probability that each edge is there, ``nodes x nodes``; see :meth:`GraphPrior.inclusion`."""
        return responsibility(B, torch.tensor(self.probability).to(B), self.spike, self.slab)

    def _probability(self, edges: Edges) -> Tensor:
        return torch.full((edges.number,), float(self.probability))


class MixtureFactor(nn.Module):
    """Guide factor of edges with a spike and a slab, given the prior probability of each edge."""

    def __init__(self, edges: Edges, probability_e: Tensor, spike: float, slab: float) -> None:
        super().__init__()
        self.edges = edges
        self.weights = SeenMixture(spike_or_slab(probability_e), torch.tensor([spike, slab]))

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the weights."""
        weights = self.weights().to_event(1)
        pyro.sample(self.edges.site, dist.TransformedDistribution(weights, [self.edges.to_matrix]))


def sample_mixture(edges: Edges, probability_e: Tensor, spike: float, slab: float) -> Tensor:
    """Sample weights that come from the spike or from the slab, ``nodes x nodes``."""
    sd = probability_e.new_tensor([spike, slab]).expand(edges.number, 2)
    log_probability = spike_or_slab(probability_e).log()
    weights = normal_mixture(log_probability, dist.Normal(torch.zeros_like(sd), sd)).to_event(1)
    return pyro.sample(edges.site, dist.TransformedDistribution(weights, [edges.to_matrix]))


def spike_or_slab(probability_e: Tensor) -> Tensor:
    """Probabilities of spike and slab, ``edges x 2``."""
    return torch.stack([1.0 - probability_e, probability_e], dim=-1)


def responsibility(B: Tensor, probability: Tensor, spike: float, slab: float) -> Tensor:
    """Probability that the slab gave an edge its weight, averaged over draws.

    Given the weight of an edge the data say nothing more about whether it is there, so that this average is
    the posterior inclusion probability. An edge of weight zero is one that the order of its draw forbids.
    """
    log_odds = dist.Normal(0.0, slab).log_prob(B) - dist.Normal(0.0, spike).log_prob(B) + probability.logit()
    return torch.where(B == 0, 0.0, log_odds.sigmoid()).mean(0)


def spike_below_slab(member: Member, spike: float, slab: float) -> None:
    """Refuse a spike that is not narrower than the slab.

    Raises
    ------
    InputError
        Naming the member and the values.
    """
    positive(member, spike=spike, slab=slab)
    if spike >= slab:
        raise InputError(
            f"{type(member).__name__}: spike must be narrower than slab, not {spike!r} against {slab!r}"
        )


@dataclass(frozen=True)
class LowRank(EdgePrior):
    """Programs that act on programs, and a few single edges: low rank plus sparse.

    With r a factor, the weight of the edge from j to k is::

        edge_source_jr, edge_target_kr ~ Normal(0, sqrt(scale / sqrt(rank)))
        edge_sparse_jk                 ~ Laplace(0, sparse_scale)
        B_jk = edge_source_j . edge_target_k + edge_sparse_jk

    Parameters
    ----------
    rank
        Number of factors.
    scale
        Standard deviation of what the factors add to an edge.
    sparse_scale
        Mean absolute size of the single edges.
    """

    rank: int = 3
    scale: float = 0.05
    sparse_scale: float = 0.02

    def __post_init__(self) -> None:
        positive(self, scale=self.scale, sparse_scale=self.sparse_scale)
        whole(self, rank=self.rank)

    @property
    def recorded(self) -> Mapping[str, str]:
        """The sum of both parts."""
        return {"B": "edge_source_j . edge_target_k + edge_sparse_jk, on the edges that there may be"}

    @property
    def loading_sd(self) -> float:
        """Prior sd of what a node sends to, or takes from, a factor."""
        return math.sqrt(self.scale / math.sqrt(self.rank))

    def sample(self, edges: Edges, sizes: Sizes, zero: Tensor) -> Tensor:
        """Sample loadings and single edges; record their sum, ``nodes x nodes``."""
        loading = dist.Normal(zero, zero + self.loading_sd).expand([sizes.nodes, self.rank]).to_event(2)
        source_kr, target_kr = pyro.sample("edge_source", loading), pyro.sample("edge_target", loading)
        sparse = dist.Laplace(zero, zero + self.sparse_scale).expand([edges.number]).to_event(1)
        to_matrix = edges.to_matrix
        sparse_kk = pyro.sample("edge_sparse", dist.TransformedDistribution(sparse, [to_matrix]))
        low_rank_kk = to_matrix(to_matrix.inv(source_kr @ target_kr.mT))
        return pyro.deterministic(edges.site, low_rank_kk + sparse_kk, event_dim=2)

    def factor(self, edges: Edges, sizes: Sizes) -> nn.Module:
        """Independent normals over the loadings, and over the single edges given what these explain."""
        return _LowRankFactor(self, edges)


class _LowRankFactor(nn.Module):
    """Cells tell the sum of both parts of an edge: a single edge gives way to what the loadings explain."""

    def __init__(self, prior: LowRank, edges: Edges) -> None:
        super().__init__()
        shape = [edges.n_nodes, prior.rank]
        self.to_matrix = edges.to_matrix
        self.source = MeanField("edge_source", shape, event_dim=2, scale=0.02)
        self.target = MeanField("edge_target", shape, event_dim=2, scale=0.02)
        for factor in (self.source, self.target):
            nn.init.normal_(factor.loc, std=prior.loading_sd)  # at zero neither has a gradient
        self.loc = nn.Parameter(torch.zeros(edges.number))
        self.log_scale = nn.Parameter(torch.full((edges.number,), 0.02).log())
        self.logit_yield = nn.Parameter(torch.zeros(edges.number))

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the loadings, then the single edges."""
        low_rank = self.to_matrix.inv(self.source() @ self.target().mT)
        loc = self.loc - self.logit_yield.sigmoid() * low_rank
        sparse = dist.Normal(loc, self.log_scale.exp()).to_event(1)
        pyro.sample("edge_sparse", dist.TransformedDistribution(sparse, [self.to_matrix]))
