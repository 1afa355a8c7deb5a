"""Guide factors: small variational families that the priors bring along.

Parameters are plain tensors of the module, never entries of the global parameter store.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, biject_to, constraints, transform_to

from sccvae_pyro.models.slot import Perturbations


class MeanField(nn.Module):
    """Independent normals, mapped to the support of the site.

    Parameters
    ----------
    site
        Name of the sample site.
    shape
        Shape of the parameters.
    event_dim
        Trailing dimensions that belong to one draw; the rest are covered by plates of the caller.
    loc, scale
        Starting values, before the transforms.
    transforms
        From the real line to the support.
    """

    def __init__(
        self,
        site: str,
        shape: Sequence[int],
        event_dim: int,
        loc: float = 0.0,
        scale: float = 0.1,
        transforms: Sequence[Transform] = (),
    ) -> None:
        super().__init__()
        self.site = site
        self.event_dim = event_dim
        self.transforms = list(transforms)
        self.loc = nn.Parameter(torch.full(tuple(shape), float(loc)))
        self.log_scale = nn.Parameter(torch.full(tuple(shape), float(scale)).log())

    def distribution(self) -> dist.TorchDistribution:
        """Build the variational distribution."""
        normal = dist.Normal(self.loc, self.log_scale.exp()).to_event(self.event_dim)
        return dist.TransformedDistribution(normal, self.transforms) if self.transforms else normal

    def forward(self) -> Tensor:
        """Sample the site."""
        return pyro.sample(self.site, self.distribution())


class Plated(nn.Module):
    """A factor with one entry for each perturbation."""

    def __init__(self, factor: MeanField) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the factor's site inside the plate."""
        with perturbations.plate:
            self.factor()


class Unplated(nn.Module):
    """A factor that has nothing to do with the perturbations."""

    def __init__(self, factor: MeanField) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, perturbations: Perturbations) -> None:
        """Sample the factor's site."""
        self.factor()


class StrictlyUpperTriangular(Transform):
    """A vector of edge weights as a strictly upper triangular matrix, row by row.

    A change of coordinates between the edges and the matrices that can be DAGs in the given order:
    its log determinant is zero.
    """

    bijective = True
    domain = constraints.real_vector

    def __init__(self, n_nodes: int) -> None:
        super().__init__(cache_size=0)
        self.n_nodes = n_nodes
        self.rows, self.columns = torch.triu_indices(n_nodes, n_nodes, offset=1)

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def codomain(self) -> EdgeMatrix:
        """The matrices of these edges."""
        return EdgeMatrix(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StrictlyUpperTriangular) and other.n_nodes == self.n_nodes

    def _call(self, x: Tensor) -> Tensor:
        matrix = x.new_zeros((*x.shape[:-1], self.n_nodes, self.n_nodes))
        matrix[..., self.rows, self.columns] = x
        return matrix

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., self.rows, self.columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Give zero: entries are moved, not scaled."""
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the matrix."""
        return torch.Size((*shape[:-1], self.n_nodes, self.n_nodes))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the vector."""
        return torch.Size((*shape[:-2], len(self.rows)))


class EdgeMatrix(constraints.independent):
    """The support of a matrix of edges: its coordinates are the edges, not the entries that no edge has.

    Parameters
    ----------
    to_matrix
        From a vector of edges to the matrix.
    """

    def __init__(self, to_matrix: StrictlyUpperTriangular) -> None:
        super().__init__(constraints.real, 2)
        self.to_matrix = to_matrix


@transform_to.register(EdgeMatrix)
@biject_to.register(EdgeMatrix)
def _to_matrix(support: EdgeMatrix) -> StrictlyUpperTriangular:
    return support.to_matrix


class Adjacency(StrictlyUpperTriangular):
    """A vector of edge weights as a matrix, for any set of edges; zero elsewhere.

    Parameters
    ----------
    sources, targets
        Row and column of each edge; no edge twice.
    n_nodes
        Rows and columns of the matrix.
    """

    def __init__(self, sources: Tensor, targets: Tensor, n_nodes: int) -> None:
        super().__init__(n_nodes)
        self.rows, self.columns = sources, targets

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Adjacency)
            and other.n_nodes == self.n_nodes
            and torch.equal(other.rows, self.rows)
            and torch.equal(other.columns, self.columns)
        )


class SeenNormal(nn.Module):
    """The posterior of normal variables, given a learned normal pseudo-observation of each.

    Where the data say nothing about a variable its pseudo-observation becomes vague, and the variable is
    a draw from its prior, whatever the scale of that is: the factor cannot collapse with the scale.

    Parameters
    ----------
    shape
        Shape of the variables.
    scale
        Starting sd of the pseudo-observations, which start at zero.
    """

    def __init__(self, shape: Sequence[int], scale: float = 0.02) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(tuple(shape)))
        self.log_scale = nn.Parameter(torch.full(tuple(shape), float(scale)).log())

    def forward(self, prior_sd: Tensor) -> dist.Normal:
        """Build the posterior for the prior ``Normal(0, prior_sd)``, ``... x shape``."""
        return given_seen(prior_sd, self.seen, self.log_scale.exp())


class SeenMixture(nn.Module):
    """The same where the prior is a mixture of normals around zero: the posterior is one, too.

    Components stand in the last dimension.

    Parameters
    ----------
    probability
        ``shape x components``, prior probability of each component.
    prior_sd
        ``components``, their standard deviations.
    scale
        Starting sd of the pseudo-observations.
    """

    log_probability: Tensor
    prior_sd: Tensor

    def __init__(self, probability: Tensor, prior_sd: Tensor, scale: float = 0.02) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(probability.shape[:-1]))
        self.log_scale = nn.Parameter(torch.full_like(self.seen, scale).log())
        self.register_buffer("log_probability", probability.log())
        self.register_buffer("prior_sd", prior_sd)

    def forward(self) -> ReparametrisedMixture:
        """Build the posterior; a component counts by how well it predicts the pseudo-observation."""
        seen, scale = self.seen.unsqueeze(-1), self.log_scale.exp().unsqueeze(-1)
        predicted = dist.Normal(0.0, (self.prior_sd.square() + scale.square()).sqrt())
        log_weight = self.log_probability + predicted.log_prob(seen)
        return normal_mixture(log_weight, given_seen(self.prior_sd, seen, scale))


def given_seen(prior_sd: Tensor, seen: Tensor, scale: Tensor) -> dist.Normal:
    """Condition ``Normal(0, prior_sd)`` on values seen with a normal error of sd ``scale``."""
    trust = prior_sd.square() / (prior_sd.square() + scale.square())
    return dist.Normal(trust * seen, trust.sqrt() * scale)


def normal_mixture(log_weight: Tensor, components: dist.Normal) -> ReparametrisedMixture:
    """Mix the normals of the last dimension; their weights need not add up to one."""
    # Unchecked, as torch's checks fail where there is no mixture at all: a graph may have no edges.
    which = dist.Categorical(logits=log_weight, validate_args=False)
    return ReparametrisedMixture(which, components, validate_args=False)


class ReparametrisedMixture(dist.MixtureSameFamily):
    """A mixture of scalars whose draws carry gradients: implicit reparameterisation.

    A draw moves so that its cumulative probability stays (Figurnov, Mohamed & Mnih 2018, NeurIPS).
    """

    has_rsample = True

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - as torch has it
        """Draw with gradients."""
        value = self.sample(sample_shape)
        below = self.cdf(value)
        return value - (below - below.detach()) / self.log_prob(value).exp().detach()
