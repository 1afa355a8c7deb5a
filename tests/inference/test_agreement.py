"""A prior whose model and guide speak of different sites is refused before training."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.models.factors import MeanField, StrictlyUpperTriangular, Unplated
from sccvae_pyro.models.graph import GraphPrior
from sccvae_pyro.models.slot import Member


@pytest.fixture
def graph():
    """A graph of one's own, whose site, width and support in the guide can be got wrong."""

    @dataclass(frozen=True)
    class OwnGraph(GraphPrior):
        site: str = "B"
        proposed: str = "B"
        positive: bool = False

        def model(self, sizes, perturbations):
            n_edges = sizes.nodes * (sizes.nodes - 1) // 2
            edge = dist.LogNormal(-3.0, 1.0) if self.positive else dist.Normal(0.0, 0.1)
            to_matrix = StrictlyUpperTriangular(sizes.nodes)
            weights = edge.expand([n_edges]).to_event(1)
            if self.positive:
                return to_matrix(pyro.sample(self.site, weights))
            return pyro.sample(self.site, dist.TransformedDistribution(weights, [to_matrix]))

        def guide(self, sizes, features):
            n_edges = sizes.nodes * (sizes.nodes - 1) // 2
            transforms = [] if self.positive else [StrictlyUpperTriangular(sizes.nodes)]
            return Unplated(MeanField(self.proposed, [n_edges], event_dim=1, transforms=transforms))

    yield OwnGraph
    del Member.registry["graph"]["OwnGraph"]


def fit(screen, graph):
    return SCCVAE(screen, n_nodes=3, hidden=(4,), graph=graph).fit(max_epochs=1, progress=False)


def test_a_misspelt_site_is_named_on_its_side(screen, graph):
    with pytest.raises(InputError, match=r"Only the model has 'BB', only the guide 'B'\."):
        fit(screen, graph(site="BB"))


def test_a_site_that_the_guide_lacks_is_named(screen, graph):
    with pytest.raises(InputError, match=r"Only the model has 'B', only the guide 'strength_of_edges'"):
        fit(screen, graph(proposed="strength_of_edges"))


def test_values_that_the_prior_could_not_have_drawn_are_refused(screen, graph):
    with pytest.raises(InputError, match=r"'edges' outside the support of its prior"):
        fit(screen, graph(site="edges", proposed="edges", positive=True))


def test_draws_of_another_shape_are_refused(screen, graph):
    @dataclass(frozen=True)
    class OwnGraph(graph):
        def guide(self, sizes, features):
            return Unplated(MeanField("edges", [1], event_dim=1))

    with pytest.raises(InputError, match=r"'edges' of shape \(1,\), the model of shape \(3,\)"):
        fit(screen, OwnGraph(site="edges", positive=True))


def test_one_name_in_both_is_fitted(screen, graph):
    assert fit(screen, graph()).is_fitted
