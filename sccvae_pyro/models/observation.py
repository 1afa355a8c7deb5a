"""What every likelihood has in common: how a decoded state becomes the measured expression of a cell."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Protocol

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import transforms

from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.slot import Member, Sizes


class Profile(Protocol):
    """Expected profile of cells given their decoded change; see :meth:`Likelihood.profile`."""

    def __call__(
        self, change_cg: Tensor, baseline_g: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> Tensor:
        """Give the expectation, ``... x cells x genes``, at one draw of the gene-level variables."""


class Likelihood(Member, slot="likelihood"):
    """Base of the likelihoods; the site is ``x``, sampled by the program inside the plate ``cells``.

    What a member knows of each gene (a dispersion, a dropout) is one tensor of *gene-level variables*,
    ``... x variables x genes``; a variable kept as ``1 x genes`` broadcasts over cells.
    """

    kind: str  # the kind of values it describes: "counts" or "continuous"

    @abstractmethod
    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample the gene-level variables, inside the plate ``genes``; ``... x variables x genes``."""

    @abstractmethod
    def guide(self, sizes: Sizes, scatter_g: Tensor | None = None) -> nn.Module:
        """Build the guide factor of the gene-level variables.

        Parameters
        ----------
        sizes
            Sizes of the model.
        scatter_g
            How much of the variation between cells may be the likelihood's: for counts a squared coefficient
            of variation beyond that of counting, for values a variance. A factor that begins there need not
            take back what the state has explained in the meantime; without it, it begins at the prior.
        """

    @abstractmethod
    def distribution(
        self,
        change_cg: Tensor,
        baseline_g: Tensor,
        library_c: Tensor,
        covariates_cv: Tensor,
        gene_level: Tensor,
    ) -> dist.TorchDistribution:
        """Distribution of the expression of each cell, event shape ``genes``."""

    @abstractmethod
    def encoder_input(self, x_cg: Tensor, library_c: Tensor) -> Tensor:
        """Put measured values on the log scale that the encoder reads."""

    @abstractmethod
    def baseline(self, control_mean_g: np.ndarray) -> np.ndarray:
        """Turn the mean of the control cells (proportions, or values) into the decoder's baseline."""

    @abstractmethod
    def profile(self, library: np.ndarray) -> Profile:
        """Build the map from decoded change to expected ``log1p(CP10K)`` (or expected value).

        Parameters
        ----------
        library
            Library sizes at which profiles are measured.
        """


class GeneFactor(nn.Module):
    """A guide factor with one entry for each gene, sampled inside the plate ``genes``."""

    def __init__(self, n_genes: int, factor: nn.Module) -> None:
        super().__init__()
        self.n_genes, self.factor = n_genes, factor

    def forward(self) -> None:
        """Sample the factor's sites."""
        with gene_plate(self.n_genes):
            self.factor()


class Several(nn.Module):
    """Guide factors that are sampled one after the other."""

    def __init__(self, *factors: nn.Module) -> None:
        super().__init__()
        self.factors = nn.ModuleList(factors)

    def forward(self) -> None:
        """Sample the sites of each."""
        for factor in self.factors:
            factor()


def gene_plate(n_genes: int) -> pyro.plate:
    """The plate of genes."""
    return pyro.plate("genes", n_genes, dim=-1)


def log_normal(median: float, like: Tensor) -> dist.TorchDistribution:
    """``LogNormal(log(median), 1)``: right within a factor of seven, where ``like`` is."""
    zero = like.new_zeros(())
    return dist.LogNormal(zero + math.log(median), zero + 1.0)


def log_normal_factor(
    site: str, n: int, median: float, event_dim: int = 0, start: Tensor | None = None
) -> MeanField:
    """Independent log-normals for ``n`` positive variables, from these values or the prior's median."""
    factor = MeanField(site, [n], event_dim, loc=math.log(median), transforms=[transforms.ExpTransform()])
    if start is not None:
        with torch.no_grad():
            factor.loc.copy_(start.log())
    return factor
