"""A screen whose evidence and posterior are known in closed form, and the stand-ins that it needs.

With known graph ``B``, loading ``W`` and noise, cell ``i`` with perturbations ``m_i``::

    direction_p ~ Normal(0, tau^2 I)
    z_i         ~ Normal(0, I)
    x_i         ~ Normal((z_i + strength m_i direction) (I - B)^-1 W, sd^2 I)

Everything is jointly normal, so the evidence is one multivariate normal density.
"""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor, nn

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.models import likelihoods
from sccvae_pyro.models.direction import DirectionPrior
from sccvae_pyro.models.factors import MeanField
from sccvae_pyro.models.families import Factors, PosteriorFamily
from sccvae_pyro.models.graph import GraphPrior
from sccvae_pyro.models.noise import StandardNormal
from sccvae_pyro.models.penetrance import Fixed
from sccvae_pyro.models.program import Priors, Program
from sccvae_pyro.models.responders import AllCells
from sccvae_pyro.models.slot import Empty, Given, Perturbations, Sizes

# Stand-ins. Their names begin with an underscore, so that they do not join the catalogue of priors.


@dataclass(frozen=True, eq=False)
class _KnownGraph(GraphPrior):
    B: Tensor

    def model(self, sizes, perturbations):
        return pyro.deterministic("B", self.B, event_dim=2)

    def guide(self, sizes, features):
        return Empty()


@dataclass(frozen=True, eq=False)
class _KnownDirection(DirectionPrior):
    direction: Tensor

    def model(self, sizes, perturbations):
        with perturbations.plate:
            return pyro.deterministic("direction", self.direction, event_dim=1)

    def guide(self, sizes, features):
        return _Nothing()


@dataclass(frozen=True)
class _NormalDirection(DirectionPrior):
    scale: float

    def model(self, sizes, perturbations):
        scale = perturbations.features.new_full((sizes.nodes,), self.scale)
        with perturbations.plate:
            return pyro.sample("direction", dist.Normal(0.0, scale).to_event(1))

    def guide(self, sizes, features):
        return _Plated(MeanField("direction", [sizes.perturbations, sizes.nodes], event_dim=1))


class _Plated(nn.Module):
    def __init__(self, factor: MeanField) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, perturbations: Perturbations, given: Given) -> None:
        with perturbations.plate:
            self.factor()


class _KnownNoise(likelihoods.Normal):
    """Normal values whose residual sd is known."""

    def model(self, sizes, baseline_g):
        return baseline_g.new_full((1, sizes.genes), self.sd)

    def guide(self, sizes, scatter_g=None):
        return _Nothing()


class _Nothing(nn.Module):
    def forward(self, *context: object) -> None:
        """Sample nothing."""


class LinearEncoder(nn.Module):
    """State linear in the expression, trust the same for all cells."""

    def __init__(self, to_state: Tensor, trust: Tensor) -> None:
        super().__init__()
        self.to_state = nn.Parameter(to_state)
        self.raw_trust = nn.Parameter(trust.logit())

    def forward(self, x_cg: Tensor, covariates_cv: Tensor) -> tuple[Tensor, Tensor]:
        state_ck = x_cg @ self.to_state
        return state_ck, self.raw_trust.sigmoid()


class LinearDecoder(nn.Module):
    """The known loading."""

    def __init__(self, loading: Tensor) -> None:
        super().__init__()
        self.register_buffer("loading", loading)

    def forward(self, state_ck: Tensor, covariates_cv: Tensor) -> Tensor:
        return state_ck @ self.loading


class Passing(nn.Module):
    """Expression is the state."""

    def forward(self, state_ck, covariates_cv):
        return state_ck


def program_of(priors: Priors, sizes: Sizes, encoder: nn.Module, decoder: nn.Module) -> Program:
    """A program in double precision, without features and with a baseline of zero."""
    features = torch.zeros(sizes.perturbations, 0, dtype=torch.double)
    baseline = torch.zeros(sizes.genes, dtype=torch.double)
    return Program(priors, sizes, features, baseline, encoder, decoder).double()


@dataclass(frozen=True)
class LinearGaussian:
    """The world above; ``targets`` is ``cells x most targets``, padded with ``n_perturbations``."""

    B: np.ndarray
    loading: np.ndarray
    targets: np.ndarray
    n_perturbations: int
    sd: float = 0.7
    tau: float = 1.3
    strength: float = 0.8

    @classmethod
    def separable(cls, targets: np.ndarray, n_perturbations: int, seed: int = 0) -> "LinearGaussian":
        """A world whose exact posterior the guide can express: no edges, orthogonal loadings."""
        K, G = 3, 5
        orthonormal = np.linalg.qr(np.random.default_rng(seed).normal(size=(G, K)))[0].T
        loading = np.array([[0.6], [1.0], [2.0]]) * orthonormal
        return cls(np.zeros((K, K)), loading, targets, n_perturbations)

    @classmethod
    def general(cls, targets: np.ndarray, n_perturbations: int, seed: int = 0) -> "LinearGaussian":
        """A world in which the noise of the nodes is correlated given the expression."""
        rng = np.random.default_rng(seed)
        K, G = 2, 3
        B = np.triu(rng.normal(0, 0.8, (K, K)), 1)
        return cls(B, rng.normal(size=(K, G)), targets, n_perturbations)

    @property
    def effect(self) -> np.ndarray:
        """Total effect of the nodes on the genes, ``K x G``."""
        return np.linalg.inv(np.eye(len(self.B)) - self.B) @ self.loading

    @property
    def membership(self) -> np.ndarray:
        """How often each cell carries each perturbation, ``cells x perturbations``."""
        one_hot = np.eye(self.n_perturbations + 1)[self.targets]
        return one_hot.sum(1)[:, :-1]

    @property
    def cell_covariance(self) -> np.ndarray:
        """Covariance of a cell's expression given the directions, ``G x G``."""
        return self.effect.T @ self.effect + self.sd**2 * np.eye(self.loading.shape[1])

    def draw(self, seed: int = 0) -> Batch:
        """Cells of this world."""
        rng = np.random.default_rng(seed)
        K, (n, _) = len(self.B), self.targets.shape
        direction = rng.normal(0, self.tau, (self.n_perturbations, K))
        noise = rng.normal(size=(n, K)) + self.strength * self.membership @ direction
        x = noise @ self.effect + rng.normal(0, self.sd, (n, self.loading.shape[1]))
        ones = torch.ones(n, dtype=torch.double)
        return Batch(
            torch.tensor(x), ones, torch.tensor(self.targets), torch.zeros(n, 0), torch.zeros(n).long()
        )

    def log_evidence(self, batch: Batch) -> float:
        """Log density of all cells together."""
        M, n = self.membership, len(self.targets)
        shared = (self.strength * self.tau) ** 2 * np.kron(M @ M.T, self.effect.T @ self.effect)
        covariance = shared + np.kron(np.eye(n), self.cell_covariance)
        return stats.multivariate_normal(cov=covariance).logpdf(batch.x_cg.numpy().ravel())

    def direction_posterior(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean (``perturbations x nodes``) and covariance (of the flattened directions)."""
        M, K = self.strength * self.membership, len(self.B)
        projection = self.effect @ np.linalg.inv(self.cell_covariance)
        precision = np.eye(self.n_perturbations * K) / self.tau**2
        precision += np.kron(M.T @ M, projection @ self.effect.T)
        covariance = np.linalg.inv(precision)
        mean = covariance @ (M.T @ batch.x_cg.numpy() @ projection.T).ravel()
        return mean.reshape(self.n_perturbations, K), covariance

    @property
    def trust(self) -> np.ndarray:
        """Share of the noise that the expression decides, for each node of a separable world."""
        square = (self.effect**2).sum(1)
        return square / (square + self.sd**2)

    def program(self, graph: GraphPrior | None = None, posterior: PosteriorFamily | None = None) -> Program:
        """The program of this world; encoder and trust are those of the exact posterior."""
        sizes = Sizes(
            cells=len(self.targets),
            genes=self.loading.shape[1],
            nodes=len(self.B),
            perturbations=self.n_perturbations,
            features=0,
            covariates=0,
        )
        priors = Priors(
            graph or _KnownGraph(torch.tensor(self.B)),
            Fixed(self.strength),
            _NormalDirection(self.tau),
            AllCells(),
            StandardNormal(),
            _KnownNoise(self.sd),
            posterior=posterior or Factors(),
        )
        least_squares = torch.tensor(np.linalg.pinv(self.loading))
        encoder = LinearEncoder(least_squares, torch.tensor(self.trust))
        return program_of(priors, sizes, encoder, LinearDecoder(torch.tensor(self.loading)))

    def exact_program(self, batch: Batch) -> Program:
        """The program with the guide at the exact posterior (of a separable world without combinations)."""
        program = self.program()
        mean, covariance = self.direction_posterior(batch)
        factor = program.proposal.direction_factor.factor
        with torch.no_grad():
            factor.loc.copy_(torch.tensor(mean))
            factor.log_scale.copy_(torch.tensor(np.sqrt(np.diag(covariance))).log().reshape(mean.shape))
        return program
