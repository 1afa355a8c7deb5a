"""Every prior of every slot: its density, its support, how it is named, written, read and refused."""

import math
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from sccvae_pyro import SCCVAE, InputError, priors
from sccvae_pyro.models.factors import MeanField, StrictlyUpperTriangular, Unplated
from sccvae_pyro.models.graph import GraphPrior
from sccvae_pyro.models.slot import Described, Given, Member, Perturbations, Sizes
from sccvae_pyro.models.spec import SLOTS, ModelSpec

SIZES = Sizes(cells=10, genes=6, nodes=4, perturbations=5, features=3, covariates=0)
FEATURES = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
CATALOGUE = [(slot, name) for slot, members in Member.registry.items() for name in members]


def perturbations_of(prior):
    """Perturbations of these features, with the basis that a direction prior brings."""
    direction = prior if isinstance(prior, priors.direction.DirectionPrior) else priors.direction.Linear()
    return Perturbations.of(Described(FEATURES, direction.basis(FEATURES)(FEATURES)))


def trace_prior(prior, **values):
    """Trace of a prior's model, at given values."""
    pyro.set_rng_seed(0)
    given = poutine.condition(prior.model, data=values)
    trace = poutine.trace(given).get_trace(SIZES, perturbations_of(prior))
    trace.compute_log_prob()
    return trace


# Densities


def upper(seed=0):
    return np.triu(np.random.default_rng(seed).normal(size=(4, 4)), 1)


EDGES = upper()[np.triu_indices(4, 1)]
STRENGTH = np.array([0.2, 0.7, 1.0, 1.5, 4.0])
NODEWISE = np.array([0.1, 0.3, 0.8, 2.0])
FEATUREWISE = np.array([0.01, 1.0, 5.0])
ROUNDED = 1e-5  # single precision


@pytest.mark.parametrize(
    ("prior", "site", "value", "expected"),
    [
        (priors.graph.Laplace(), "B", upper(), stats.laplace(scale=0.05).logpdf(EDGES)),
        (priors.graph.Laplace(0.7), "B", upper(), stats.laplace(scale=0.7).logpdf(EDGES)),
        (priors.graph.Normal(), "B", upper(), stats.norm(scale=0.1).logpdf(EDGES)),
        (priors.graph.Normal(0.7), "B", upper(), stats.norm(scale=0.7).logpdf(EDGES)),
        (
            priors.penetrance.LogNormal(loc=-0.2, scale=0.3),
            "strength",
            STRENGTH,
            stats.lognorm(s=0.3, scale=math.exp(-0.2)).logpdf(STRENGTH),
        ),
        (
            priors.direction.Linear(scale=0.2),
            "direction_scale",
            NODEWISE,
            stats.lognorm(s=1, scale=0.2).logpdf(NODEWISE),
        ),
        (
            priors.direction.Linear(relevance=0.5),
            "direction_relevance",
            FEATUREWISE,
            stats.halfcauchy(scale=0.5).logpdf(FEATUREWISE),
        ),
        (
            priors.direction.SparseLinear(expected_features=2),
            "direction_global_scale",
            NODEWISE,
            stats.halfcauchy(scale=2 / math.sqrt(5)).logpdf(NODEWISE),
        ),
        (
            priors.direction.SparseLinear(),
            "direction_local_scale",
            np.outer(NODEWISE, FEATUREWISE),
            stats.halfcauchy.logpdf(np.outer(NODEWISE, FEATUREWISE)),
        ),
        (
            priors.direction.Simplex(hidden=2, weight_scale=3.0),
            "direction_layer0",
            np.arange(8.0).reshape(4, 2),  # three features and the constant
            stats.norm(scale=3 / math.sqrt(4)).logpdf(np.arange(8)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_density(prior, site, value, expected):
    trace = trace_prior(prior, **{site: torch.tensor(value, dtype=torch.float)})
    found = float(trace.nodes[site]["log_prob_sum"])
    assert found == pytest.approx(expected.sum(), rel=ROUNDED)


@pytest.mark.parametrize(
    ("likelihood", "site", "median"),
    [
        (priors.likelihood.NegativeBinomial(inverse_dispersion=3.0), "inverse_dispersion", 3.0),
        (priors.likelihood.ZeroInflatedNegativeBinomial(inverse_dispersion=3.0), "inverse_dispersion", 3.0),
        (priors.likelihood.PoissonLogNormal(sd=0.3), "overdispersion_sd", 0.3),
        (priors.likelihood.Normal(sd=0.2), "residual_sd", 0.2),
        (priors.likelihood.StudentT(scale=0.2), "residual_scale", 0.2),
    ],
)
def test_density_of_gene_level(likelihood, site, median):
    value = np.array([0.01, 0.1, 1.0, 3.0, 10.0, 100.0])
    given = poutine.condition(likelihood.model, data={site: torch.tensor(value, dtype=torch.float)})
    trace = poutine.trace(given).get_trace(SIZES, torch.zeros(6))
    trace.compute_log_prob()
    expected = stats.lognorm(s=1, scale=median).logpdf(value)
    np.testing.assert_allclose(trace.nodes[site]["log_prob"], expected, rtol=ROUNDED)
    assert [frame.name for frame in trace.nodes[site]["cond_indep_stack"]] == ["genes"]


def test_noise_is_standard_normal():
    z = torch.randn(10, 4)
    found = priors.noise.StandardNormal().module(SIZES)(z).log_prob(z)
    np.testing.assert_allclose(found, stats.norm.logpdf(z).sum(1), rtol=ROUNDED)


def test_fixed_strength():
    trace = trace_prior(priors.penetrance.Fixed(0.5))
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], torch.full((5,), 0.5))


def test_no_graph_is_zero():
    torch.testing.assert_close(
        trace_prior(priors.graph.NoGraph()).nodes["_RETURN"]["value"], torch.zeros(4, 4)
    )


@pytest.mark.parametrize("graph", [priors.graph.Laplace(1.0), priors.graph.Normal(1.0)])
def test_graphs_are_acyclic(graph):
    B = trace_prior(graph).nodes["B"]["value"]
    assert B.shape == (4, 4)
    assert (B[torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)] != 0).all()
    torch.testing.assert_close(torch.tril(B), torch.zeros(4, 4))


# The matrix of edges


def test_edges_fill_the_matrix_row_by_row():
    matrix = StrictlyUpperTriangular(3)(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(matrix, torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_edges_round_trip(batch):
    transform, edges = StrictlyUpperTriangular(5), torch.randn(*batch, 10)
    matrix = transform(edges)
    torch.testing.assert_close(transform.inv(matrix), edges)
    assert matrix.shape == transform.forward_shape(edges.shape) == (*batch, 5, 5)
    assert transform.inverse_shape(matrix.shape) == edges.shape
    torch.testing.assert_close(transform.log_abs_det_jacobian(edges, matrix), torch.zeros(batch))


def test_one_node_has_no_edges():
    assert StrictlyUpperTriangular(1)(torch.zeros(0)).shape == (1, 1)


# Guide factors


@pytest.mark.parametrize(
    "prior",
    [
        priors.graph.Laplace(),
        priors.graph.Normal(),
        priors.graph.NoGraph(),
        priors.penetrance.LogNormal(),
        priors.penetrance.Fixed(),
        priors.direction.Linear(),
        priors.direction.SparseLinear(),
        priors.direction.GaussianProcess(),
        priors.direction.Simplex(),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_guide_proposes_what_the_model_samples(prior):
    """Same latent sites, same shapes, values where the prior has density."""
    perturbations = perturbations_of(prior)
    given = (
        [Given(torch.ones(5), torch.zeros(4, 4))]
        if isinstance(prior, priors.direction.DirectionPrior)
        else []
    )
    with torch.no_grad():
        guide = poutine.trace(prior.guide(SIZES, FEATURES)).get_trace(perturbations, *given)
        model = poutine.trace(poutine.replay(prior.model, trace=guide)).get_trace(SIZES, perturbations)
        densities = float(guide.log_prob_sum()), float(model.log_prob_sum())
    assert latent_shapes(guide) == latent_shapes(model)
    assert np.isfinite(densities).all()


def latent_shapes(trace):
    return {
        name: tuple(trace.nodes[name]["value"].shape)
        for name in trace.stochastic_nodes
        if name != "perturbations"
    }


def test_mean_field_starts_where_it_is_told():
    factor = MeanField("site", [1000], 1, loc=0.5, scale=0.01, transforms=[dist.transforms.ExpTransform()])
    value = factor().detach().log()
    assert float((value - 0.5).abs().max()) < 5 * 0.01
    assert not pyro.get_param_store().keys()


# Names and settings


@pytest.mark.parametrize(("slot", "name"), CATALOGUE)
def test_round_trip_through_a_table(slot, name):
    member = SLOTS[slot].from_dict(name)
    written = member.to_dict()
    assert written["name"] == name
    assert SLOTS[slot].from_dict(written) == member
    assert type(SLOTS[slot].from_dict(written)) is type(member)


def test_changed_settings_survive():
    prior = priors.direction.Linear(scale=0.1, relevance=2.0)
    assert priors.direction.DirectionPrior.from_dict(prior.to_dict()) == prior
    assert prior != priors.direction.Linear()


def test_an_expected_number_survives():
    prior = priors.direction.SparseLinear(expected_features=2.5, slab=1.0)
    assert priors.direction.DirectionPrior.from_dict(prior.to_dict()) == prior


def test_members_are_taken_as_they_are():
    prior = priors.graph.Laplace(0.3)
    assert GraphPrior.from_dict(prior) is prior


@pytest.mark.parametrize("name", ["NoGraph", "nograph", "no_graph"])
def test_names_may_be_written_small(name):
    assert GraphPrior.from_dict(name) == priors.graph.NoGraph()


def test_repr_reads_like_the_call():
    assert repr(priors.graph.Laplace(scale=0.02)) == "Laplace(scale=0.02)"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("Laplac", ["graph 'Laplac'", "Did you mean 'Laplace'?", "'NoGraph', 'Normal'"]),
        ("Linear", ["graph 'Linear'", "'NoGraph', 'Normal'"]),
        ({"name": "Laplace", "scal": 1.0}, ["graph Laplace has no setting 'scal'", "Did you mean 'scale'?"]),
        ({"name": "NoGraph", "scale": 1.0}, ["graph NoGraph has no setting 'scale'"]),
        ({"scale": 1.0}, ["graph", "Laplace", "name"]),
        (3.0, ["graph", "Laplace", "3.0"]),
    ],
)
def test_unknown_names_and_settings(spec, parts):
    with pytest.raises(InputError) as error:
        GraphPrior.from_dict(spec)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("member", "setting"),
    [
        (priors.graph.Laplace, "scale"),
        (priors.graph.Normal, "scale"),
        (priors.penetrance.LogNormal, "scale"),
        (priors.penetrance.Fixed, "value"),
        (priors.direction.Linear, "scale"),
        (priors.direction.Linear, "relevance"),
        (priors.direction.Linear, "intercept"),
        (priors.direction.SparseLinear, "scale"),
        (priors.direction.SparseLinear, "expected_features"),
        (priors.direction.SparseLinear, "slab"),
        (priors.direction.SparseLinear, "intercept"),
        (priors.direction.Simplex, "hidden"),
        (priors.direction.Simplex, "weight_scale"),
        (priors.likelihood.NegativeBinomial, "inverse_dispersion"),
        (priors.likelihood.NegativeBinomialByCovariate, "inverse_dispersion"),
        (priors.likelihood.NegativeBinomialByCovariate, "spread"),
        (priors.likelihood.ZeroInflatedNegativeBinomial, "dropout"),
        (priors.likelihood.ZeroInflatedNegativeBinomial, "concentration"),
        (priors.likelihood.PoissonLogNormal, "sd"),
        (priors.likelihood.Normal, "sd"),
        (priors.likelihood.StudentT, "df"),
        (priors.likelihood.StudentT, "scale"),
    ],
)
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "wide"])
def test_settings_that_cannot_be(member, setting, value):
    with pytest.raises(InputError, match=f"{member.__name__}: {setting} must be a positive number"):
        member(**{setting: value})


def test_location_must_be_finite():
    with pytest.raises(InputError, match="LogNormal: loc must be a finite number"):
        priors.penetrance.LogNormal(loc=math.nan)


def test_widths_must_be_whole():
    with pytest.raises(InputError, match="hidden"):
        priors.direction.Simplex(hidden=2.5)


# A prior of somebody else's


@pytest.fixture
def student_t():
    """A graph prior written outside the package, as its user would write it."""

    @dataclass(frozen=True)
    class StudentT(GraphPrior):
        df: float
        scale: float = 0.1

        def model(self, sizes, perturbations):
            n_edges = sizes.nodes * (sizes.nodes - 1) // 2
            edges = dist.StudentT(self.df, 0.0, self.scale).expand([n_edges]).to_event(1)
            to_matrix = StrictlyUpperTriangular(sizes.nodes)
            return pyro.sample("B", dist.TransformedDistribution(edges, [to_matrix]))

        def guide(self, sizes, features):
            n_edges = sizes.nodes * (sizes.nodes - 1) // 2
            return Unplated(MeanField("B", [n_edges], 1, transforms=[StrictlyUpperTriangular(sizes.nodes)]))

    yield StudentT
    del Member.registry["graph"]["StudentT"]


def test_prior_from_outside(student_t, screen):
    """Found by name, checked like ours, and fitted without touching guide, loss or loader."""
    assert GraphPrior.from_dict({"name": "StudentT", "df": 3.0}) == student_t(3.0)
    with pytest.raises(InputError, match="needs the setting 'df'"):
        GraphPrior.from_dict("StudentT")
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), graph={"name": "student_t", "df": 3.0})
    assert model.priors.graph == student_t(df=3.0)
    model.fit(max_epochs=2, batch_size=64, progress=False)
    assert np.isfinite(model.history.to_numpy()).all()
    assert np.isfinite(model.predict(["G0001"], n_samples=3).X).all()


@pytest.fixture
def catalogue(monkeypatch):
    """The catalogue, which a test may add to."""
    members = {slot: dict(known) for slot, known in Member.registry.items()}
    monkeypatch.setattr(Member, "registry", members)
    return members


def test_a_name_that_is_taken_is_refused(catalogue):
    before = catalogue["graph"]["Laplace"]
    for name in ("Laplace", "laplace", "Spike_Slab"):
        with pytest.raises(InputError, match=f"{name!r} is taken in the slot graph, by .* of sccvae_pyro"):
            type(name, (GraphPrior,), {})
    assert catalogue["graph"]["Laplace"] is before
    type("Laplace", (priors.penetrance.PenetrancePrior,), {})  # another slot, another name


def test_a_cell_may_be_run_again(catalogue):
    once, again = (type("OfOnesOwn", (GraphPrior,), {}) for _ in range(2))
    assert once is not again
    assert catalogue["graph"]["OfOnesOwn"] is again


def test_a_class_that_is_no_dataclass_is_refused(catalogue):
    class Undecorated(priors.graph.Laplace):
        width: float = 1.0

    class Bare(priors.graph.EdgePrior):
        df: float = 3.0
        sample = factor = None

    message = r"is no dataclass. Write @dataclass\(frozen=True\) above the class"
    with pytest.raises(InputError, match=f"Bare {message}"):
        Bare(df=4.0)
    for spec in (Undecorated(), "Undecorated", "Bare"):
        with pytest.raises(InputError, match=message):
            ModelSpec.read(None, graph=spec)


def test_an_unknown_member_may_be_one_of_ones_own():
    with pytest.raises(InputError, match="If it is a class of your own, define or import it first"):
        GraphPrior.from_dict("OfSomebodyElse")


def test_a_model_with_a_prior_of_ones_own_is_loaded_once_it_is_defined(student_t, screen, tmp_path):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), graph=student_t(3.0))
    model.fit(max_epochs=1, progress=False).save(tmp_path)
    known = Member.registry["graph"].pop("StudentT")
    with pytest.raises(InputError, match=r"no graph 'StudentT'.*define or import it first"):
        SCCVAE.load(tmp_path)
    Member.registry["graph"]["StudentT"] = known
    assert SCCVAE.load(tmp_path).priors.graph == student_t(3.0)


def test_bases_are_no_members():
    assert not {"EdgePrior", "GraphPrior"} & set(GraphPrior.known())


def test_completion_offers_members_only():
    assert dir(priors) == priors.__all__
    for slot in SLOTS:
        offered = set(dir(getattr(priors, slot)))
        assert set(Member.registry[slot]) <= offered
        bases = offered - set(Member.registry[slot])
        assert bases == {SLOTS[slot].__name__} | ({"EdgePrior"} if slot == "graph" else set())
