"""The direction of a perturbation that acts on the node of its own gene."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.models.direction_base import DirectionPrior
from sccvae_pyro.models.factors import MeanField, SeenNormal
from sccvae_pyro.models.slot import Given, Perturbations, Sizes, Targets, positive

SIGNS_BELIEVED = 10.0
"""Seen perturbations that the belief about signs counts for."""


@dataclass(frozen=True)
class OwnNode(DirectionPrior):
    """A perturbation pushes the node of its own gene; what else it does comes along the edges.

    For nodes that are anchored to genes, with ``k(p)`` the node of the perturbed gene::

        direction_size   ~ LogNormal(log(size), 0.5)
        direction_spread ~ LogNormal(log(spread), 0.5)
        direction_down   ~ Beta(10 down, 10 (1 - down))
        direction_own_p  ~ direction_down Normal(-direction_size, direction_spread direction_size)
                           + (1 - direction_down) Normal(direction_size, direction_spread direction_size)
        direction_off_target ~ LogNormal(log(off_target), 0.5)
        direction_pk    ~ Normal(direction_own_p where k = k(p), else 0; direction_off_target)

    No features are read: an unseen perturbation with a node has the size and the sign of the seen ones, as
    far as they agree, and the graph says where it goes.

    Parameters
    ----------
    size
        Expected push of the own node, in standard deviations of its noise.
    down
        Expected probability that a perturbation lowers its own gene, between 0 and 1: near 1 for CRISPR
        interference and knock-out, near 0 for CRISPR activation, 0.5 where either may be. It counts as much
        as ten seen perturbations.
    spread
        How much the own pushes are expected to differ, as a share of their size; wider where some
        perturbations hardly work.
    off_target
        Expected push of other nodes that the edges do not explain, in the same units.
    """

    size: float = 3.0
    down: float = 0.95
    spread: float = 0.25
    off_target: float = 0.05

    def __post_init__(self) -> None:
        is_number = isinstance(self.down, Real) and not isinstance(self.down, bool)
        if not (is_number and 0 < self.down < 1):
            raise InputError(f"OwnNode: down must be a probability above 0 and below 1, not {self.down!r}")
        positive(self, size=self.size, down=self.down, spread=self.spread, off_target=self.off_target)

    reads_features = False

    def check(self, targets: Targets, sizes: Sizes) -> None:
        """Refuse perturbations without a node.

        Raises
        ------
        InputError
            Naming them.
        """
        homeless = [
            n for n, own in zip(targets.names, targets.own_p.tolist(), strict=True) if own == sizes.nodes
        ]
        if homeless:
            raise InputError(
                f"direction OwnNode: there is no node for {listing(homeless)}. Give "
                "nodes=Anchored(genes=[...]) that names every perturbed gene, or another direction."
            )

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``direction``, ``perturbations x nodes``."""
        one = perturbations.features.new_ones(())
        size, spread, scale = (
            pyro.sample(f"direction_{name}", dist.LogNormal(math.log(expected) * one, 0.5 * one))
            for name, expected in (
                ("size", self.size),
                ("spread", self.spread),
                ("off_target", self.off_target),
            )
        )
        down = pyro.sample(
            "direction_down", dist.Beta(SIGNS_BELIEVED * self.down * one, SIGNS_BELIEVED * (1.0 - self.down))
        )
        with perturbations.plate:
            own_p = pyro.sample("direction_own", signed(size, spread * size, down))
            loc_pk = own_p.unsqueeze(-1) * own_of(perturbations, sizes, one)
            sd_pk = scale.unsqueeze(-1).expand_as(loc_pk)
            return pyro.sample("direction", dist.Normal(loc_pk, sd_pk).to_event(1))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Normal for each own push; pushes of other nodes by their posterior given what is seen of them."""
        return _OwnNodeFactor(self, sizes)


class _OwnNodeFactor(nn.Module):
    def __init__(self, prior: OwnNode, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        to_positive = [transforms.ExpTransform()]
        self.size, self.spread, self.scale = (
            MeanField(f"direction_{name}", [], 0, loc=math.log(expected), transforms=to_positive)
            for name, expected in (
                ("size", prior.size),
                ("spread", prior.spread),
                ("off_target", prior.off_target),
            )
        )
        odds = math.log(prior.down / (1.0 - prior.down))
        self.down = MeanField("direction_down", [], 0, loc=odds, transforms=[transforms.SigmoidTransform()])
        # From the sign that is believed, or from none where both are.
        start = prior.size * (1.0 - 2.0 * prior.down)
        self.own = MeanField("direction_own", [sizes.perturbations], 0, loc=start)
        self.others = SeenNormal([sizes.perturbations, sizes.nodes])

    def forward(self, perturbations: Perturbations, given: Given) -> None:
        """Sample sizes, own pushes and directions."""
        for population in (self.size, self.spread, self.down):
            population()
        scale = self.scale()
        with perturbations.plate:
            own_p = self.own()
            own_pk = own_p.unsqueeze(-1) * own_of(perturbations, self.sizes, own_p)
            other = self.others(scale.unsqueeze(-1))
            pyro.sample("direction", dist.Normal(own_pk + other.loc, other.scale).to_event(1))


def signed(size: Tensor, sd: Tensor, down: Tensor) -> dist.TorchDistribution:
    """Down by this size with this probability, or else up, with this sd in either."""
    which = dist.Categorical(probs=torch.stack([down, 1.0 - down], dim=-1))
    loc = torch.stack([-size, size], dim=-1)
    return dist.MixtureSameFamily(which, dist.Normal(loc, sd.unsqueeze(-1).expand_as(loc)))


def own_of(perturbations: Perturbations, sizes: Sizes, like: Tensor) -> Tensor:
    """One at the own node of each perturbation, ``perturbations x nodes``."""
    assert perturbations.targets is not None
    own_p = perturbations.targets.own_p
    return nn.functional.one_hot(own_p, sizes.nodes + 1)[:, :-1].to(like.dtype)
