"""Likelihoods of log-normalised values."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from sccvae_pyro.errors import InputError
from sccvae_pyro.models.observation import (
    GeneFactor,
    Likelihood,
    Profile,
    gene_plate,
    log_normal,
    log_normal_factor,
)
from sccvae_pyro.models.slot import Sizes, positive


class _ValueLikelihood(Likelihood):
    """Values scatter around ``baseline + change`` with a width of each gene's own."""

    kind = "continuous"

    @property
    @abstractmethod
    def width(self) -> tuple[str, float]:
        """Site of the width, and the median of its prior."""

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample the width, ``... x 1 x genes``."""
        site, median = self.width
        with gene_plate(sizes.genes):
            return pyro.sample(site, log_normal(median, baseline_g)).unsqueeze(-2)

    def guide(self, sizes: Sizes, scatter_g: Tensor | None = None) -> nn.Module:
        """Log-normal over each gene's width."""
        site, median = self.width
        start = None if scatter_g is None else scatter_g.sqrt()
        return GeneFactor(sizes.genes, log_normal_factor(site, sizes.genes, median, start=start))

    def encoder_input(self, x_cg: Tensor, library_c: Tensor) -> Tensor:
        """Values are on the log scale already."""
        return x_cg

    def baseline(self, control_mean_g: np.ndarray) -> np.ndarray:
        """The mean of the control cells."""
        return control_mean_g

    def profile(self, library: np.ndarray) -> Profile:
        """Expected value, at any library size."""
        return _expected_value


def _expected_value(
    change_cg: Tensor, baseline_g: Tensor, covariates_cv: Tensor, gene_level: Tensor
) -> Tensor:
    return baseline_g + change_cg


@dataclass(frozen=True)
class Normal(_ValueLikelihood):
    """Log-normalised values with normal noise. The default for values that are not counts.

    ``x_ig ~ Normal(baseline_g + change_ig, sd_g)``, ``sd_g ~ LogNormal(log(sd), 1)``.

    Parameters
    ----------
    sd
        Median of the prior of the residual standard deviation of a gene.
    """

    sd: float = 0.5

    def __post_init__(self) -> None:
        positive(self, sd=self.sd)

    @property
    def width(self) -> tuple[str, float]:
        """``residual_sd``."""
        return "residual_sd", self.sd

    def distribution(
        self,
        change_cg: Tensor,
        baseline_g: Tensor,
        library_c: Tensor,
        covariates_cv: Tensor,
        gene_level: Tensor,
    ) -> dist.TorchDistribution:
        """Normal of each gene, event shape ``genes``."""
        return dist.Normal(baseline_g + change_cg, gene_level).to_event(1)


@dataclass(frozen=True)
class StudentT(_ValueLikelihood):
    """Log-normalised values with heavy tails: single cells far off do not pull the fit.

    ``x_ig ~ StudentT(df, baseline_g + change_ig, scale_g)``, ``scale_g ~ LogNormal(log(scale), 1)``
    (Lange, Little & Taylor 1989, J Am Stat Assoc 84:881).

    Parameters
    ----------
    df
        Degrees of freedom, above 1; the fewer, the heavier the tails. At 30 the noise is nearly normal.
    scale
        Median of the prior of the residual scale of a gene.
    """

    df: float = 4.0
    scale: float = 0.5

    def __post_init__(self) -> None:
        positive(self, df=self.df, scale=self.scale)
        if self.df <= 1:
            raise InputError(f"StudentT: df must be above 1, or there is no mean to predict; not {self.df!r}")

    @property
    def width(self) -> tuple[str, float]:
        """``residual_scale``."""
        return "residual_scale", self.scale

    def distribution(
        self,
        change_cg: Tensor,
        baseline_g: Tensor,
        library_c: Tensor,
        covariates_cv: Tensor,
        gene_level: Tensor,
    ) -> dist.TorchDistribution:
        """Student's t of each gene, event shape ``genes``."""
        return dist.StudentT(self.df, baseline_g + change_cg, gene_level).to_event(1)
