"""The slot of the likelihoods, all members in one place.

Counts: :mod:`~sccvae_pyro.models.count_likelihoods`; log-normalised values:
:mod:`~sccvae_pyro.models.value_likelihoods`; what a member has to say: :class:`Likelihood`.
"""

from sccvae_pyro.models.count_likelihoods import (
    NegativeBinomial,
    NegativeBinomialByCovariate,
    Poisson,
    PoissonLogNormal,
    ZeroInflatedNegativeBinomial,
)
from sccvae_pyro.models.observation import Likelihood
from sccvae_pyro.models.value_likelihoods import Normal, StudentT

__all__ = [
    "Likelihood",
    "NegativeBinomial",
    "NegativeBinomialByCovariate",
    "Normal",
    "Poisson",
    "PoissonLogNormal",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
