"""Likelihoods of counts.

All of them have the mean ``l_i softmax(baseline + change)_g``, with ``l`` the library size of the cell. Where
that is of the whole transcriptome, what the panel does not measure is one more class of the softmax, held at
its baseline. They differ in how counts scatter around the mean.
"""

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

from sccvae_pyro.data.counts import (
    TARGET_SUM,
    ExpectationTable,
    Mixture,
    gamma_mixture,
    log_normal_mixture,
    no_mixture,
)
from sccvae_pyro.errors import InputError
from sccvae_pyro.models import distributions
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.observation import (
    GeneFactor,
    Likelihood,
    Profile,
    Several,
    gene_plate,
    log_normal,
    log_normal_factor,
)
from sccvae_pyro.models.slot import Empty, Sizes, positive


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


class _CountLikelihood(Likelihood):
    """Counts are Poisson given a rate that varies around ``l_i softmax(baseline + change)_g``."""

    kind = "counts"

    @abstractmethod
    def mixture(self) -> Mixture:
        """How the rate varies, for the expectation of its logarithm."""

    @abstractmethod
    def log_parameter(self, covariates_cv: Tensor, gene_level: Tensor) -> Tensor:
        """Logarithm of the mixture's parameter, ``... x cells x genes`` or ``... x 1 x genes``."""

    @abstractmethod
    def counts(
        self, log_mean_cg: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Distribution of each count given the logarithm of its mean, batch shape ``... x cells x genes``."""

    def distribution(
        self,
        change_cg: Tensor,
        baseline_g: Tensor,
        library_c: Tensor,
        covariates_cv: Tensor,
        gene_level: Tensor,
    ) -> dist.TorchDistribution:
        """Counts of each cell, event shape ``genes``."""
        log_mean_cg = log_proportions(change_cg, baseline_g) + library_c.log().unsqueeze(-1)
        return self.counts(log_mean_cg, covariates_cv, gene_level).to_event(1)

    def encoder_input(self, x_cg: Tensor, library_c: Tensor) -> Tensor:
        """``log1p(CP10K)``."""
        return torch.log1p(x_cg * (TARGET_SUM / library_c).unsqueeze(-1))

    def baseline(self, control_mean_g: np.ndarray) -> np.ndarray:
        """Log proportions of the genes and, last, of everything that is not measured."""
        rest = max(1.0 - float(control_mean_g.sum()), 1e-12)
        return np.log(np.append(control_mean_g, rest))

    def profile(self, library: np.ndarray) -> Profile:
        """Expected ``log1p(CP10K)`` at realistic library sizes."""
        table = ExpectationTable(self.mixture(), library)

        def expected(
            change_cg: Tensor, baseline_g: Tensor, covariates_cv: Tensor, gene_level: Tensor
        ) -> Tensor:
            return self.expectation(table, log_proportions(change_cg, baseline_g), covariates_cv, gene_level)

        return expected

    def expectation(
        self, table: ExpectationTable, log_proportion_cg: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> Tensor:
        """Expected ``log1p(CP10K)`` given the table of the mixture, ``... x cells x genes``."""
        return table(log_proportion_cg, self.log_parameter(covariates_cv, gene_level))


@dataclass(frozen=True)
class NegativeBinomial(_CountLikelihood):
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

    def __post_init__(self) -> None:
        positive(self, inverse_dispersion=self.inverse_dispersion)

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample ``inverse_dispersion``; its logarithm, ``... x 1 x genes``."""
        with gene_plate(sizes.genes):
            r_g = pyro.sample("inverse_dispersion", log_normal(self.inverse_dispersion, baseline_g))
        return r_g.log().unsqueeze(-2)

    def guide(self, sizes: Sizes, scatter_g: Tensor | None = None) -> nn.Module:
        """Log-normal over each gene's inverse dispersion."""
        return GeneFactor(sizes.genes, self.dispersion_factor(sizes, scatter_g))

    def dispersion_factor(self, sizes: Sizes, scatter_g: Tensor | None) -> MeanField:
        """Guide of ``inverse_dispersion``, to be sampled inside the plate ``genes``."""
        start = None if scatter_g is None else 1 / scatter_g
        return log_normal_factor("inverse_dispersion", sizes.genes, self.inverse_dispersion, start=start)

    def mixture(self) -> Mixture:
        """Gamma."""
        return gamma_mixture()

    def log_parameter(self, covariates_cv: Tensor, gene_level: Tensor) -> Tensor:
        """``log r_g``, ``... x 1 x genes``."""
        return gene_level[..., :1, :]

    def counts(
        self, log_mean_cg: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Negative binomial of each count."""
        log_r = self.log_parameter(covariates_cv, gene_level)
        return dist.NegativeBinomial(log_r.exp(), logits=log_mean_cg - log_r, validate_args=False)


@dataclass(frozen=True)
class NegativeBinomialByCovariate(NegativeBinomial):
    """Negative binomial counts whose dispersion differs between batches, or whatever the covariates code.

    With ``v`` a column of the coded covariates (an indicator of each level, or a standardised number)::

        inverse_dispersion_g  ~ LogNormal(log(inverse_dispersion), 1)
        dispersion_spread_v   ~ LogNormal(log(spread), 1)
        dispersion_offset_gv  ~ Normal(0, dispersion_spread_v)
        r_ig                  = inverse_dispersion_g exp(sum of covariate_iv dispersion_offset_gv)

    A covariate that does not matter for the dispersion loses its spread, and all of its offsets with it.

    Parameters
    ----------
    inverse_dispersion
        Median of the prior of ``inverse_dispersion_g``.
    spread
        Median of the prior of the spread of the genes' log offsets.
    """

    spread: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, spread=self.spread)

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample dispersions and offsets: ``log r_g``, then offsets, ``... x (1 + covariates) x genes``."""
        spread = log_normal(self.spread, baseline_g).expand([sizes.covariates]).to_event(1)
        spread_v = pyro.sample("dispersion_spread", spread)
        with gene_plate(sizes.genes):
            r_g = pyro.sample("inverse_dispersion", log_normal(self.inverse_dispersion, baseline_g))
            offset = dist.Normal(torch.zeros_like(spread_v), spread_v).to_event(1)
            offset_gv = pyro.sample("dispersion_offset", offset)
        return torch.cat([r_g.log().unsqueeze(-2), offset_gv.mT], dim=-2)

    def guide(self, sizes: Sizes, scatter_g: Tensor | None = None) -> nn.Module:
        """Log-normals over dispersions and spreads, normals over the offsets.

        Raises
        ------
        InputError
            If the screen has no covariates.
        """
        if not sizes.covariates:
            raise InputError(
                "NegativeBinomialByCovariate needs covariates, and this screen names none. "
                "Give setup_anndata covariate_keys, or use NegativeBinomial."
            )
        offsets = MeanField("dispersion_offset", [sizes.genes, sizes.covariates], 1)
        spreads = log_normal_factor("dispersion_spread", sizes.covariates, self.spread, event_dim=1)
        return Several(
            spreads, GeneFactor(sizes.genes, Several(self.dispersion_factor(sizes, scatter_g), offsets))
        )

    def log_parameter(self, covariates_cv: Tensor, gene_level: Tensor) -> Tensor:
        """``log r_ig``, ``... x cells x genes``."""
        return gene_level[..., :1, :] + covariates_cv @ gene_level[..., 1:, :]


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Negative binomial counts some of which are lost: each gene drops out with its own probability.

    ``x_ig`` is zero with probability ``dropout_g``, else as in :class:`NegativeBinomial` but with the mean
    ``l_i softmax(baseline + change)_g / (1 - dropout_g)``: library sizes are those after dropout, and so are
    the proportions. ``dropout_g ~ Beta(concentration * dropout, concentration * (1 - dropout))``. Counts of
    unique molecules seldom need it (Svensson 2020, Nat Biotechnol 38:147); counts of reads do.

    Parameters
    ----------
    inverse_dispersion
        Median of the prior of ``r_g``.
    dropout
        Mean of the prior of ``dropout_g``, below 1.
    concentration
        Weight of that prior, in cells.
    """

    dropout: float = 0.1
    concentration: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, dropout=self.dropout, concentration=self.concentration)
        if self.dropout >= 1:
            raise InputError(f"ZeroInflatedNegativeBinomial: dropout must be below 1, not {self.dropout!r}")

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample ``inverse_dispersion`` and ``dropout``; ``log r_g`` and the dropout, ``... x 2 x genes``."""
        lost, kept = (
            baseline_g.new_tensor(self.concentration * share) for share in (self.dropout, 1 - self.dropout)
        )
        with gene_plate(sizes.genes):
            r_g = pyro.sample("inverse_dispersion", log_normal(self.inverse_dispersion, baseline_g))
            dropout_g = pyro.sample("dropout", dist.Beta(lost, kept))
        return torch.stack([r_g.log(), dropout_g], dim=-2)

    def guide(self, sizes: Sizes, scatter_g: Tensor | None = None) -> nn.Module:
        """Log-normal over each gene's inverse dispersion, logit-normal over its dropout."""
        to_share = [transforms.SigmoidTransform()]
        # Low at first: zeros that need it pull a dropout up at once; unneeded, it goes down slowly.
        low = math.log(self.dropout / 4)
        dropout = MeanField("dropout", [sizes.genes], 0, loc=low, transforms=to_share)
        return GeneFactor(sizes.genes, Several(self.dispersion_factor(sizes, scatter_g), dropout))

    def counts(
        self, log_mean_cg: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Zero-inflated negative binomial of each count."""
        dropout_g = gene_level[..., 1:, :]
        kept = super().counts(log_mean_cg - (-dropout_g).log1p(), covariates_cv, gene_level)
        return dist.ZeroInflatedDistribution(kept, gate=dropout_g, validate_args=False)

    def expectation(
        self, table: ExpectationTable, log_proportion_cg: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> Tensor:
        """That of the counts that are kept, by their share."""
        log_kept_g = (-gene_level[..., 1:, :]).log1p()
        kept = super().expectation(table, log_proportion_cg - log_kept_g, covariates_cv, gene_level)
        return log_kept_g.exp() * kept


@dataclass(frozen=True)
class Poisson(_CountLikelihood):
    """Counts without overdispersion: all variation between cells is the state's and the library's.

    ``x_ig ~ Poisson(l_i softmax(baseline + change)_g)``.
    """

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Nothing to sample, ``0 x genes``."""
        return baseline_g.new_zeros(0, sizes.genes)

    def guide(self, sizes: Sizes, scatter_g: Tensor | None = None) -> nn.Module:
        """Nothing to learn."""
        return Empty()

    def mixture(self) -> Mixture:
        """The rate does not vary."""
        return no_mixture()

    def log_parameter(self, covariates_cv: Tensor, gene_level: Tensor) -> Tensor:
        """Any number will do, ``1 x genes``."""
        return gene_level.new_zeros(1, gene_level.shape[-1])

    def counts(
        self, log_mean_cg: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Poisson of each count."""
        return dist.Poisson(log_mean_cg.exp(), validate_args=False)


@dataclass(frozen=True)
class PoissonLogNormal(_CountLikelihood):
    """Counts with log-normal overdispersion: heavier upper tails than the negative binomial's.

    ``x_ig ~ Poisson(l_i softmax(baseline + change)_g exp(sd_g e_ig - sd_g^2 / 2))`` with
    ``e_ig ~ Normal(0, 1)`` integrated out and ``sd_g ~ LogNormal(log(sd), 1)``; the variance of a count of
    mean m is ``m + m^2 (exp(sd_g^2) - 1)`` (Aitchison & Ho 1989, Biometrika 76:643).

    Parameters
    ----------
    sd
        Median of the prior of ``sd_g``.
    """

    sd: float = 0.5

    def __post_init__(self) -> None:
        positive(self, sd=self.sd)

    def model(self, sizes: Sizes, baseline_g: Tensor) -> Tensor:
        """Sample ``overdispersion_sd``, ``... x 1 x genes``."""
        with gene_plate(sizes.genes):
            return pyro.sample("overdispersion_sd", log_normal(self.sd, baseline_g)).unsqueeze(-2)

    def guide(self, sizes: Sizes, scatter_g: Tensor | None = None) -> nn.Module:
        """Log-normal over each gene's overdispersion."""
        start = None if scatter_g is None else scatter_g.log1p().sqrt()
        factor = log_normal_factor("overdispersion_sd", sizes.genes, self.sd, start=start)
        return GeneFactor(sizes.genes, factor)

    def mixture(self) -> Mixture:
        """Log-normal."""
        return log_normal_mixture()

    def log_parameter(self, covariates_cv: Tensor, gene_level: Tensor) -> Tensor:
        """``log sd_g``, ``... x 1 x genes``."""
        return gene_level.log()

    def counts(
        self, log_mean_cg: Tensor, covariates_cv: Tensor, gene_level: Tensor
    ) -> dist.TorchDistribution:
        """Poisson log-normal of each count."""
        return distributions.PoissonLogNormal(log_mean_cg, gene_level, validate_args=False)
