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
    """What the guide knows of cells when it proposes their shares and noise.

    ``state_ck``: the state that the encoder reads off the expression, ``... x cells x nodes``; ``trust_k``:
    how well each node is read, ``1 / (1 + variance of the error)``; ``B``, nodes x nodes; ``action_ca``: the
    action of a full response, ``... x cells x actions``.

    Read states are taken as normal around the true ones. With a standard normal prior of the noise its
    posterior is then normal, too, and exact: what is read of a child tells of its parents' noise (conjugate
    potentials of a recognition network, Johnson et al. 2016, NeurIPS). Other noise is proposed as if it were
    standard normal.
    """

    state_ck: Tensor
    trust_k: Tensor
    B: Tensor
    action_ca: Tensor

    def noise(self, share_c: Tensor) -> dist.MultivariateNormal:
        """Posterior of the noise, given the share of its action that each cell shows."""
        pushed_ck, effect_kk = scm.answer(share_c.unsqueeze(-1) * self.action_ca, self.B)
        with full_precision(self.B):  # a factorisation does not forgive products in half of it
            weighed_kk = effect_kk * self._information
            precision_kk = scm.identity(self.B) + weighed_kk @ effect_kk.mT
            # With the precision as a product of an upper triangle and its transpose, the inverse of that
            # transpose is the lower triangle of the covariance.
            upper_kk = torch.linalg.cholesky(precision_kk.flip(-2, -1)).flip(-2, -1)
            sd_kk = torch.linalg.solve_triangular(upper_kk.mT, scm.identity(self.B), upper=False)
            tell_c1k = (self.state_ck - pushed_ck).unsqueeze(-2) @ weighed_kk.mT
            loc_ck = (tell_c1k @ sd_kk @ sd_kk.mT).squeeze(-2)
            return dist.MultivariateNormal(loc_ck, scale_tril=sd_kk)

    @property
    def _information(self) -> Tensor:
        """Precision with which each node is read, nodes."""
        return self.trust_k / (1.0 - self.trust_k)

    def precision(self) -> Tensor:
        """Information on the share of each cell, ``... x cells``."""
        moved_ck, told_ck = self._told()
        return (moved_ck * told_ck).sum(-1)

    def moment(self) -> Tensor:
        """The reading along the action, ``... x cells``; over the precision, the share that fits best."""
        return (self.state_ck * self._told()[1]).sum(-1)

    def log_ratio(self) -> Tensor:
        """Log density of the reading if the cell responded over that if it escaped, ``... x cells``."""
        densities = [self._reading(share).log_prob(self.state_ck) for share in (1.0, 0.0)]
        return densities[0] - densities[1]

    def _reading(self, share: float) -> dist.MultivariateNormal:
        """Distribution of what is read of a cell that shows this share, its noise averaged out."""
        moved_ck, effect_kk = scm.answer(share * self.action_ca, self.B)
        with full_precision(self.B):
            lower_kk = torch.linalg.cholesky(self._covariance(effect_kk))
            return dist.MultivariateNormal(moved_ck, scale_tril=lower_kk)

    def _told(self) -> tuple[Tensor, Tensor]:
        """How a full response moves the mean state, and that over the covariance of what is read."""
        moved_ck, _ = scm.answer(self.action_ca, self.B)
        _, effect_kk = scm.answer(torch.zeros_like(moved_ck), self.B)
        with full_precision(self.B):
            told_ck1 = torch.linalg.solve(self._covariance(effect_kk), moved_ck.unsqueeze(-1))
            return moved_ck, told_ck1.squeeze(-1)

    def _covariance(self, effect_kk: Tensor) -> Tensor:
        """Covariance of what is read, of noise with these effects, ``... x nodes x nodes``."""
        return effect_kk.mT @ effect_kk + self._information.reciprocal().diag_embed()


def full_precision(like: Tensor) -> torch.autocast:
    """Compute as the numbers are stored, whatever the precision of training."""
    return torch.autocast(like.device.type, enabled=False)


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
        """Prior log odds, and the log ratio of the two normals that a reading comes from."""
        return _inside(mean_c).logit() + evidence.log_ratio()


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

    ``share_c ~ LogNormal(-spread^2 / 2, spread)``, mean one. The guide reads the dose off how far the read
    state lies along the response, taken as linear in the dose, under the covariance of what is read.

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
        prior = 1.0 / torch.expm1(evidence.state_ck.new_tensor(self.spread**2))
        precision = prior + evidence.precision()
        mean_c = (prior + evidence.moment()) / precision
        # A normal reaches below zero, a dose does not: the floor is a twentieth of the mean of the prior.
        return mean_c.clamp(min=0.05), precision.rsqrt()
