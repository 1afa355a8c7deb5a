"""Responder priors: beliefs about how much of its shift a single cell shows.

The strength of a perturbation is the same for all of its cells; whether, or how far, a cell follows is
the cell's own. Every member gives the *share* of its shift that each cell shows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.models import scm
from sccvae_pyro.models.factors import MeanField, Plated
from sccvae_pyro.models.slot import Empty, Perturbations, Prior, Sizes, positive


class Evidence(NamedTuple):
    """What the guide knows of cells when it proposes their shares, each ``... x cells x nodes``.

    ``read_ck``: noise with the shift in it, as abducted from the expression; ``trust_ck``: the share of its
    variance that the expression explains; ``parents_ck``: what reaches each node along its edges;
    ``action_ca``: the action of a full response, ``... x cells x actions``.
    """

    read_ck: Tensor
    trust_ck: Tensor
    parents_ck: Tensor
    action_ca: Tensor

    @classmethod
    def of(cls, state_ck: Tensor, trust_ck: Tensor, B: Tensor, action_ca: Tensor) -> Evidence:
        """Abduct a proposed state."""
        read_ck = scm.abduct(state_ck, B)
        return cls(read_ck, trust_ck, state_ck - read_ck, action_ca)

    def noise(self, share_c: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of the noise by abduction, given the share of the action that the cell shows.

        With ``e`` the error of a proposed state, of variance ``1 / trust - 1``, a node reads
        ``keep (parents + z) + shift + e``: where nothing is kept, nothing is learned of its noise.
        """
        own_ca = share_c.unsqueeze(-1) * self.action_ca
        shift_ck, keep_ck = scm.shift_and_keep(own_ca, self.read_ck.shape[-1])
        doubt_ck = 1.0 - self.trust_ck
        if keep_ck is None:
            return self.trust_ck * (self.read_ck - shift_ck), doubt_ck.sqrt()
        left_ck = self.read_ck - shift_ck + (1.0 - keep_ck) * self.parents_ck
        total_ck = keep_ck.square() * self.trust_ck + doubt_ck
        return keep_ck * self.trust_ck * left_ck / total_ck, (doubt_ck / total_ck).sqrt()

    @property
    def shift_ck(self) -> Tensor:
        """The shift that a full response amounts to, to first order where nodes are cut or scaled."""
        n_nodes = self.read_ck.shape[-1]
        if self.action_ca.shape[-1] == n_nodes:
            return self.action_ca
        shift_ck, cut_ck, stretch_ck = self.action_ca.split(n_nodes, dim=-1)
        return shift_ck + (stretch_ck - cut_ck) * self.parents_ck

    def precision(self) -> Tensor:
        """Information on the share of each cell, ``... x cells``: what is read has variance 1 / trust."""
        return (self.trust_ck * self.shift_ck.square()).sum(-1)

    def moment(self) -> Tensor:
        """The reading along the shift, ``... x cells``; over the precision, the share that fits best."""
        return (self.trust_ck * self.read_ck * self.shift_ck).sum(-1)


class RespondersPrior(Prior, slot="responders"):
    """Base of the responder priors; sites are ``responders`` (perturbations) and ``share`` (cells).

    ``enumerated`` says that the share of a cell takes one of two values, and that the loss sums over both.
    """

    enumerated = False

    @abstractmethod
    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample what holds for a perturbation; return the mean share of its cells, ``perturbations``."""

    @abstractmethod
    def share(self, mean_c: Tensor) -> Tensor:
        """Sample the share of each cell inside the plate ``cells``, given its mean."""

    def response(self, mean_c: Tensor) -> Tensor:
        """Share of cells that do respond, ``cells``: what is left to draw once escape is averaged out."""
        return torch.ones_like(mean_c)

    @abstractmethod
    def propose(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """Propose the share of each cell in the guide, inside the plate ``cells``."""

    @abstractmethod
    def expected(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """Mean of the proposal, ``... x cells``: the probability of a response, where there are only two."""


@dataclass(frozen=True)
class AllCells(RespondersPrior):
    """Every cell shows the whole shift. The default."""

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Ones, ``perturbations``; nothing is sampled."""
        return perturbations.features.new_ones(perturbations.features.shape[-2])

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Nothing to learn."""
        return Empty()

    def share(self, mean_c: Tensor) -> Tensor:
        """The mean, which is one."""
        return mean_c

    def propose(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """The mean, which is one."""
        return mean_c

    def expected(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """The mean, which is one."""
        return mean_c


@dataclass(frozen=True)
class Beta(RespondersPrior):
    """Some cells escape: each responds in full or not at all.

    With ``m`` the fraction of the whole screen, which the unseen start from, and ``n`` = ``alike``::

        responders_mean = m ~ Beta(responding, escaping)
        responders_p        ~ Beta(n m, n (1 - m))
        share_c             ~ Bernoulli(responders_p)

    The guide weighs the two by Bayes' rule under its own reading of the cell, and the loss sums over both: no
    binary is sampled. A cell of a combination responds to all of it or to nothing, with the mean of the
    fractions of its parts.

    Parameters
    ----------
    responding, escaping
        Prior cells that responded and that escaped; the default expects four in five to respond.
    alike
        How alike the fractions of perturbations are: prior cells that each takes from the screen.
    """

    responding: float = 4.0
    escaping: float = 1.0
    alike: float = 10.0
    enumerated = True

    def __post_init__(self) -> None:
        positive(self, responding=self.responding, escaping=self.escaping, alike=self.alike)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Sample ``responders_mean`` and the fraction of responding cells, ``responders``, perturbations."""
        one = perturbations.features.new_ones(())
        mean = pyro.sample("responders_mean", dist.Beta(self.responding * one, self.escaping * one))
        with perturbations.plate:
            return pyro.sample("responders", dist.Beta(self.alike * mean, self.alike * (1.0 - mean)))

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Logit-normal for each fraction and their mean, from the mean of the prior."""
        return _FractionsFactor(math.log(self.responding / self.escaping), sizes.perturbations)

    def share(self, mean_c: Tensor) -> Tensor:
        """One or zero."""
        return pyro.sample("share", dist.Bernoulli(_inside(mean_c)))

    def propose(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """Both values, enumerated, each with its probability."""
        return pyro.sample(
            "share",
            dist.Bernoulli(logits=self._logits(mean_c, evidence)),
            infer={"enumerate": "parallel"},
        )

    def expected(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """Probability that the cell responded."""
        return self._logits(mean_c, evidence).sigmoid()

    def _logits(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """Prior log odds and log ratio of two normals, of means ``shift`` and 0 and precision ``trust``."""
        return _inside(mean_c).logit() + evidence.moment() - 0.5 * evidence.precision()


class _FractionsFactor(nn.Module):
    def __init__(self, start: float, n_perturbations: int) -> None:
        super().__init__()
        to_fraction = [transforms.SigmoidTransform()]
        self.mean = MeanField("responders_mean", [], 0, loc=start, transforms=to_fraction)
        self.own = Plated(MeanField("responders", [n_perturbations], 0, loc=start, transforms=to_fraction))

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the mean and the fractions."""
        self.mean()
        self.own(perturbations)


def _inside(fraction: Tensor) -> Tensor:
    """A fraction whose log odds are finite: control cells, with no shift to show, have a share of one."""
    return fraction.clamp(1e-4, 1 - 1e-4)


@dataclass(frozen=True)
class Dose(RespondersPrior):
    """Cells respond by degrees: the share of a cell is a dose around one.

    ``share_c ~ LogNormal(-spread^2 / 2, spread)``, mean one. The guide reads the dose off the part of the
    cell's noise that lies along the shift.

    Parameters
    ----------
    spread
        Standard deviation of the log dose.
    """

    spread: float = 0.5

    def __post_init__(self) -> None:
        positive(self, spread=self.spread)

    def model(self, sizes: Sizes, perturbations: Perturbations) -> Tensor:
        """Ones, ``perturbations``; nothing is sampled."""
        return perturbations.features.new_ones(perturbations.features.shape[-2])

    def guide(self, sizes: Sizes, features: Tensor) -> nn.Module:
        """Nothing to learn: the guide of a cell follows from that of the shift."""
        return Empty()

    def share(self, mean_c: Tensor) -> Tensor:
        """A positive dose."""
        spread = mean_c.new_tensor(self.spread)
        return pyro.sample("share", dist.LogNormal((-0.5 * spread.square()).expand_as(mean_c), spread))

    def response(self, mean_c: Tensor) -> Tensor:
        """A dose of each cell."""
        return self.share(mean_c)

    def propose(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """A log-normal with the mean of the normal posterior of the dose, and as narrow."""
        mean_c, sd_c = self._posterior(evidence)
        spread_c = (1.0 + (sd_c / mean_c).square()).log().sqrt()
        return pyro.sample("share", dist.LogNormal(mean_c.log() - 0.5 * spread_c.square(), spread_c))

    def expected(self, mean_c: Tensor, evidence: Evidence) -> Tensor:
        """Expected dose."""
        return self._posterior(evidence)[0]

    def _posterior(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Mean and sd of the dose, its prior taken as normal with the moments of the log-normal."""
        prior = 1.0 / torch.expm1(evidence.shift_ck.new_tensor(self.spread**2))
        precision = prior + evidence.precision()
        mean_c = (prior + evidence.moment()) / precision
        # A normal reaches below zero, a dose does not: the floor is a twentieth of the mean of the prior.
        return mean_c.clamp(min=0.05), precision.rsqrt()
