"""Observation models: how a decoded state becomes the measured expression of a cell."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.data.counts import TARGET_SUM, ExpectedLogCP10K
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.slot import Member, Sizes, positive


class Likelihood(Member, slot="likelihood"):
    """Base of the likelihoods; the site is ``x``, sampled by the program inside the plate ``cells``."""

    kind: str  # the kind of values it describes: "counts" or "continuous"

    @abstractmethod
    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample the gene-level variables, inside the plate ``genes``."""

    @abstractmethod
    def guide(self, sizes: Sizes) -> nn.Module:
        """Build the guide factor of the gene-level variables."""

    @abstractmethod
    def distribution(
        self, change_cg: Tensor, baseline_g: Tensor, library_c: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Distribution of the expression of each cell, event shape ``genes``."""

    @abstractmethod
    def encoder_input(self, x_cg: Tensor, library_c: Tensor) -> Tensor:
        """Put measured values on the log scale that the encoder reads."""

    @abstractmethod
    def baseline(self, control_mean_g: np.ndarray) -> np.ndarray:
        """Turn the mean of the control cells (proportions, or values) into the decoder's baseline."""

    @abstractmethod
    def profile(self, gene_level: Tensor, library: np.ndarray) -> Profile:
        """Build the map from decoded change to expected ``log1p(CP10K)`` (or expected value)."""


class Profile(nn.Module):
    """Expected profile of a cell given its decoded change; see :meth:`Likelihood.profile`."""


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Counts with overdispersion. The default for counts.

    ``x_ig ~ NB(mean = l_i softmax(baseline + change)_g, r_g)`` with
    ``r_g ~ LogNormal(log(inverse_dispersion), 1)``; the variance of a count of mean m is
    ``m + m^2 / r_g``. Where the library size is that of the whole transcriptome, what the panel does
    not measure is one more class of the softmax, held at its baseline.

    Parameters
    ----------
    inverse_dispersion
        Median of the prior of ``r_g``.
    """

    inverse_dispersion: float = 5.0
    kind = "counts"

    def __post_init__(self) -> None:
        positive(self, inverse_dispersion=self.inverse_dispersion)

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample ``inverse_dispersion``, ``genes``."""
        one = torch.ones((), device=baseline_g.device)
        with pyro.plate("genes", sizes.genes, dim=-1):
            return pyro.sample(
                "inverse_dispersion", dist.LogNormal(math.log(self.inverse_dispersion) * one, one)
            )

    def guide(self, sizes: Sizes) -> nn.Module:
        """Log-normal over each gene's inverse dispersion."""
        return _GeneFactor("inverse_dispersion", sizes.genes, math.log(self.inverse_dispersion))

    def distribution(
        self, change_cg: Tensor, baseline_g: Tensor, library_c: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Negative binomial of each gene, event shape ``genes``."""
        log_mean = log_proportions(change_cg, baseline_g) + library_c.log().unsqueeze(-1)
        return dist.NegativeBinomial(
            gene_level, logits=log_mean - gene_level.log(), validate_args=False
        ).to_event(1)

    def encoder_input(self, x_cg: Tensor, library_c: Tensor) -> Tensor:
        """``log1p(CP10K)``."""
        return torch.log1p(x_cg * (TARGET_SUM / library_c).unsqueeze(-1))

    def baseline(self, control_mean_g: np.ndarray) -> np.ndarray:
        """Log proportions of the genes and, last, of everything that is not measured."""
        rest = max(1.0 - float(control_mean_g.sum()), 1e-12)
        return np.log(np.append(control_mean_g, rest))

    def profile(self, gene_level: Tensor, library: np.ndarray) -> Profile:
        """Expected ``log1p(CP10K)`` at realistic library sizes."""
        return _CountProfile(gene_level, library)


class _CountProfile(Profile):
    def __init__(self, inverse_dispersion: Tensor, library: np.ndarray) -> None:
        super().__init__()
        self.expected = ExpectedLogCP10K(inverse_dispersion.cpu().numpy(), library)

    def forward(self, change_cg: Tensor, baseline_g: Tensor) -> Tensor:
        """Expected ``log1p(CP10K)``, ``... x genes``."""
        return self.expected(log_proportions(change_cg, baseline_g))


@dataclass(frozen=True)
class Normal(Likelihood):
    """Log-normalised values with normal noise. The default for values that are not counts.

    ``x_ig ~ Normal(baseline_g + change_ig, sd_g)``, ``sd_g ~ LogNormal(log(sd), 1)``.

    Parameters
    ----------
    sd
        Median of the prior of the residual standard deviation of a gene.
    """

    sd: float = 0.5
    kind = "continuous"

    def __post_init__(self) -> None:
        positive(self, sd=self.sd)

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample ``residual_sd``, ``genes``."""
        one = torch.ones((), device=baseline_g.device)
        with pyro.plate("genes", sizes.genes, dim=-1):
            return pyro.sample("residual_sd", dist.LogNormal(math.log(self.sd) * one, one))

    def guide(self, sizes: Sizes) -> nn.Module:
        """Log-normal over each gene's residual sd."""
        return _GeneFactor("residual_sd", sizes.genes, math.log(self.sd))

    def distribution(
        self, change_cg: Tensor, baseline_g: Tensor, library_c: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Normal of each gene, event shape ``genes``."""
        return dist.Normal(baseline_g + change_cg, gene_level).to_event(1)

    def encoder_input(self, x_cg: Tensor, library_c: Tensor) -> Tensor:
        """Values are on the log scale already."""
        return x_cg

    def baseline(self, control_mean_g: np.ndarray) -> np.ndarray:
        """The mean of the control cells."""
        return control_mean_g

    def profile(self, gene_level: Tensor, library: np.ndarray) -> Profile:
        """Expected value."""
        return _ValueProfile()


class _ValueProfile(Profile):
    def forward(self, change_cg: Tensor, baseline_g: Tensor) -> Tensor:
        """Expected value, ``... x genes``."""
        return baseline_g + change_cg


class _GeneFactor(nn.Module):
    """Log-normal over one positive variable of each gene."""

    def __init__(self, site: str, n_genes: int, loc: float) -> None:
        super().__init__()
        self.factor = MeanField(site, [n_genes], 0, loc=loc, transforms=[transforms.ExpTransform()])

    def forward(self) -> None:
        """Sample the site inside the plate ``genes``."""
        with pyro.plate("genes", len(self.factor.loc), dim=-1):
            self.factor()


def log_proportions(change_cg: Tensor, baseline_g: Tensor) -> Tensor:
    """Log proportions of the measured genes; the last entry of the baseline is all that is not measured.

    Parameters
    ----------
    change_cg
        ``... x cells x genes``, change of the log rate.
    baseline_g
        ``genes + 1``.

    Returns
    -------
    ``... x cells x genes``.
    """
    logits = baseline_g[:-1] + change_cg
    total = torch.logaddexp(logits.logsumexp(-1, keepdim=True), baseline_g[-1])
    return logits - total
