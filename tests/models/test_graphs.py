"""Graph priors: densities, guides, gradients, draws, and a fit of each."""

import math

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.models import horseshoe
from sccvae_pyro.models.factors import Adjacency, ReparametrisedMixture, SeenMixture, SeenNormal
from sccvae_pyro.models.graph import (
    Edges,
    GraphPrior,
    Horseshoe,
    KnownGraph,
    Laplace,
    LearnedOrder,
    LowRank,
    NoGraph,
    Normal,
    Ordered,
    Random,
    SpikeSlab,
)
from sccvae_pyro.models.slot import Basis, Described, Member, Perturbations, Sizes
from sccvae_pyro.models.spec import ModelSpec

K = 5
SIZES = Sizes(cells=400, genes=6, nodes=K, perturbations=3, features=2, covariates=0)
REVERSED = tuple(f"node_{k}" for k in reversed(range(K)))
EARLIER, LATER = np.triu_indices(K, 1)
ROUNDED = 1e-5  # single precision

EVERY = [
    Laplace(),
    Normal(),
    NoGraph(),
    Random(0.5),
    Horseshoe(),
    Horseshoe(expected_edges=2, slab=1.0),
    SpikeSlab(),
    SpikeSlab(probability=0.0),
    SpikeSlab(probability=1.0),
    LowRank(),
    KnownGraph(allowed=[("node_0", "node_3", 0.9), ("node_1", "node_2")], required=[("node_0", "node_1")]),
    KnownGraph(forbidden=[("node_0", "node_1")], elsewhere=0.2),
    Ordered(SpikeSlab(), REVERSED),
    Ordered(LowRank(), REVERSED),
    LearnedOrder(),
    LearnedOrder(Horseshoe()),
    LearnedOrder(SpikeSlab()),
    LearnedOrder(LowRank()),
    LearnedOrder(KnownGraph(allowed=[("node_3", "node_0"), ("node_0", "node_3")])),
]
every_graph = pytest.mark.parametrize("graph", EVERY, ids=repr)


def perturbations(n=3):
    return Perturbations.of(Described(torch.zeros(n, 2), Basis(torch.ones(n, 1), torch.zeros(n))))


def trace_of(graph, sizes=SIZES, seed=0, **values):
    """Trace of the prior, at given values of its sites."""
    pyro.set_rng_seed(seed)
    given = poutine.condition(graph.model, data={k: torch.as_tensor(v).float() for k, v in values.items()})
    trace = poutine.trace(given).get_trace(sizes, perturbations())
    trace.compute_log_prob()
    return trace


def matrix(values, order=range(K)):
    """Values of the edges as a matrix, for nodes in an order."""
    B, order = np.zeros((K, K)), np.asarray(order)
    B[order[EARLIER], order[LATER]] = values
    return B


def values_of(seed=0, n=10, scale=0.2):
    return np.random.default_rng(seed).normal(0, scale, n)


def mixture(x, probability, spike, slab):
    return np.logaddexp(
        np.log1p(-probability) + stats.norm(scale=spike).logpdf(x),
        np.log(probability) + stats.norm(scale=slab).logpdf(x),
    )


# Densities


def test_horseshoe_density():
    tau, scale, x = 0.02, np.linspace(0.1, 30, 10), values_of(scale=0.01)
    trace = trace_of(Horseshoe(2, slab=0.3), edge_global_scale=tau, edge_scale=scale, B=matrix(x))
    typical = 2 / (10 - 2) / math.sqrt(400)
    width = 0.3 * tau * scale / np.sqrt(0.3**2 + (tau * scale) ** 2)
    expected = {
        "edge_global_scale": stats.halfcauchy(scale=typical).logpdf(tau),
        "edge_scale": stats.halfcauchy().logpdf(scale).sum(),
        "B": stats.norm(scale=width).logpdf(x).sum(),
    }
    found = {name: float(trace.nodes[name]["log_prob_sum"]) for name in expected}
    assert found == pytest.approx(expected, rel=ROUNDED)


@pytest.mark.parametrize(("n_nodes", "n_edges"), [(2, 0.5), (4, 3.0), (64, 64.0)])
def test_horseshoe_expects_an_edge_for_each_node(n_nodes, n_edges):
    """Or half of the possible ones, where nodes are so few that there are not as many."""
    sizes = Sizes(cells=100, genes=1, nodes=n_nodes, perturbations=3, features=0, covariates=0)
    possible = n_nodes * (n_nodes - 1) / 2
    scale = trace_of(Horseshoe(), sizes).nodes["edge_global_scale"]["fn"].scale
    assert float(scale) == pytest.approx(n_edges / (possible - n_edges) / 10)


@pytest.mark.parametrize("cells", [100, 1_000_000])
def test_horseshoe_starts_with_room_to_move(cells):
    """However strong the shrinkage that the prior expects: else edges never feel the data."""
    sizes = Sizes(cells, genes=1, nodes=K, perturbations=3, features=0, covariates=0)
    graph = Horseshoe(slab=0.5)
    with torch.no_grad():
        start = poutine.trace(graph.guide(sizes, torch.zeros(3, 0))).get_trace(perturbations())
    scales = (start.nodes[name]["value"] for name in ("edge_global_scale", "edge_scale"))
    width = horseshoe.width(*scales, graph.slab)
    assert float(width.median()) == pytest.approx(0.05, rel=0.5)


def test_spike_slab_density():
    x = values_of()
    found = trace_of(SpikeSlab(0.2, spike=0.03, slab=0.6), B=matrix(x)).nodes["B"]["log_prob_sum"]
    assert float(found) == pytest.approx(mixture(x, 0.2, 0.03, 0.6).sum(), rel=ROUNDED)


def test_known_graph_density():
    """An allowed edge is a mixture, a required one the slab, and no other is possible."""
    graph = KnownGraph([("node_0", "node_2"), ("node_1", "node_4", 0.9)], [("node_2", "node_3")])
    B = np.zeros((K, K))
    B[0, 2], B[1, 4], B[2, 3] = x = np.array([0.1, -0.3, 0.4])
    trace = trace_of(graph, B=B)
    expected = mixture(x, np.array([0.5, 0.9, 1 - 1e-15]), 0.02, 0.5).sum()
    assert float(trace.nodes["B"]["log_prob_sum"]) == pytest.approx(expected, rel=ROUNDED)
    drawn = trace_of(graph).nodes["B"]["value"].numpy()
    assert sorted(zip(*drawn.nonzero(), strict=True)) == [(0, 2), (1, 4), (2, 3)]


def test_random_density():
    graph = Random(0.5, seed=3, scale=0.2)
    kept = trace_of(graph).nodes["B"]["value"].numpy() != 0
    B = np.where(kept, matrix(values_of()), 0)
    found = trace_of(graph, B=B).nodes["B"]["log_prob_sum"]
    assert float(found) == pytest.approx(stats.norm(scale=0.2).logpdf(B[kept]).sum(), rel=ROUNDED)


def test_random_graph_has_its_density_and_seed():
    sizes = Sizes(cells=1, genes=1, nodes=60, perturbations=3, features=0, covariates=0)
    one, same, other = (
        trace_of(graph, sizes, seed).nodes["B"]["value"] != 0
        for seed, graph in enumerate([Random(0.3), Random(0.3), Random(0.3, seed=1)])
    )
    assert (one == same).all()
    assert not (one == other).all()
    assert float(one.sum()) / (60 * 59 / 2) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 1770))


def test_low_rank_density():
    source, target, sparse = values_of(1, 2 * K), values_of(2, 2 * K), values_of(3)
    source, target = source.reshape(K, 2), target.reshape(K, 2)
    graph = LowRank(rank=2, scale=0.1, sparse_scale=0.03)
    trace = trace_of(graph, edge_source=source, edge_target=target, edge_sparse=matrix(sparse))
    loading = stats.norm(scale=math.sqrt(0.1 / math.sqrt(2)))
    expected = loading.logpdf(source).sum() + loading.logpdf(target).sum()
    expected += stats.laplace(scale=0.03).logpdf(sparse).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=ROUNDED)
    B = np.triu(source @ target.T, 1) + matrix(sparse)
    np.testing.assert_allclose(trace.nodes["B"]["value"], B, atol=1e-6)


def test_low_rank_scale_is_the_sd_of_an_edge():
    pyro.set_rng_seed(0)
    with pyro.plate("draws", 2000, dim=-2):
        B = LowRank(4, 0.3, 1e-6).model(SIZES, perturbations())
    np.testing.assert_allclose(B.std(0)[0, EARLIER, LATER], 0.3, rtol=0.15)


# Model and guide


@every_graph
def test_guide_proposes_what_the_model_samples(graph):
    with torch.no_grad():
        guide = poutine.trace(graph.guide(SIZES, torch.zeros(3, 2))).get_trace(perturbations())
        model = poutine.trace(poutine.replay(graph.model, trace=guide)).get_trace(SIZES, perturbations())
        densities = float(guide.log_prob_sum()), float(model.log_prob_sum())
    assert shapes(guide) == shapes(model)
    assert np.isfinite(densities).all()


def shapes(trace):
    return {name: tuple(trace.nodes[name]["value"].shape) for name in trace.stochastic_nodes}


@every_graph
def test_gradients_are_finite(graph):
    pyro.set_rng_seed(1)
    factor = graph.guide(SIZES, torch.zeros(3, 2))
    guide = poutine.trace(factor).get_trace(perturbations())
    model = poutine.trace(poutine.replay(graph.model, trace=guide)).get_trace(SIZES, perturbations())
    loss = guide.log_prob_sum() - model.log_prob_sum() + model.nodes["_RETURN"]["value"].square().sum()
    if parameters := list(factor.parameters()):
        loss.backward()
        gradients = [p.grad for p in parameters if p.numel()]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert all((gradient != 0).any() for gradient in gradients)


@every_graph
def test_every_draw_is_acyclic(graph):
    """From the prior and from a guide whose edges and order are free to go anywhere."""
    pyro.set_rng_seed(0)
    factor = graph.guide(SIZES, torch.zeros(3, 2))
    for draw in range(20):
        guide = poutine.trace(factor).get_trace(perturbations())
        with torch.no_grad():
            posterior = poutine.replay(graph.model, trace=guide)(SIZES, perturbations())
        for B in (trace_of(graph, seed=draw).nodes["_RETURN"]["value"], posterior):
            assert nx.is_directed_acyclic_graph(nx.DiGraph((B != 0).numpy()))


@every_graph
def test_draws_at_once_are_those_one_by_one(graph):
    """Vectorised over a plate to the left of that of the cells, as posterior draws are."""
    factor = graph.guide(SIZES, torch.zeros(3, 2))
    with torch.no_grad(), pyro.plate("draws", 4, dim=-2):
        values = {
            name: site["value"]
            for name, site in poutine.trace(factor).get_trace(perturbations()).nodes.items()
            if site["type"] == "sample" and name != "draws"
        }
        at_once = poutine.condition(graph.model, data=values)(SIZES, perturbations())
    with poutine.block(), poutine.condition(data=values):
        hidden = graph.model(SIZES, perturbations())
    torch.testing.assert_close(at_once.expand(4, 1, K, K), hidden.expand(4, 1, K, K))
    for s in range(4):
        mine = {name: value[s, 0] if value.shape[0] == 4 else value for name, value in values.items()}
        one = poutine.condition(graph.model, data=mine)(SIZES, perturbations())
        torch.testing.assert_close(at_once.expand(4, 1, K, K)[s, 0], one)


@pytest.mark.parametrize("name", sorted(set(Member.registry["graph"]) - {"KnownGraph"}))
def test_one_node(name):
    sizes = Sizes(cells=10, genes=1, nodes=1, perturbations=3, features=0, covariates=0)
    graph = GraphPrior.from_dict(name)
    graph.guide(sizes, torch.zeros(3, 0))(perturbations())
    torch.testing.assert_close(trace_of(graph, sizes).nodes["_RETURN"]["value"], torch.zeros(1, 1))


# Inclusion


def test_inclusion_is_the_responsibility_of_the_slab():
    draws = torch.stack([torch.tensor(matrix(values_of(seed))) for seed in range(3)])
    found = SpikeSlab(0.2, spike=0.05, slab=0.4).inclusion(draws, SIZES).numpy()
    x = draws.numpy()[:, EARLIER, LATER]
    slab, spike = 0.2 * stats.norm(scale=0.4).pdf(x), 0.8 * stats.norm(scale=0.05).pdf(x)
    np.testing.assert_allclose(found[EARLIER, LATER], (slab / (slab + spike)).mean(0), rtol=ROUNDED)
    assert found[LATER, EARLIER].max() == 0


def test_inclusion_of_known_edges():
    graph = KnownGraph(
        [("node_0", "node_2", 0.9)], [("node_2", "node_3")], [("node_0", "node_1")], elsewhere=0.1
    )
    found = graph.inclusion(torch.tensor(matrix(0.1 * np.ones(10)))[None], SIZES)
    odds = stats.norm(scale=0.5).pdf(0.1) / stats.norm(scale=0.02).pdf(0.1)
    assert float(found[0, 2]) == pytest.approx(9 * odds / (1 + 9 * odds))
    assert float(found[1, 2]) == pytest.approx(odds / 9 / (1 + odds / 9))
    assert (float(found[2, 3]), float(found[0, 1])) == (1.0, 0.0)


def test_inclusion_counts_only_draws_whose_order_allows_the_edge():
    draws = torch.zeros(4, K, K)
    draws[0, 0, 1] = draws[1, 0, 1] = draws[2, 0, 1] = draws[3, 1, 0] = 2.0
    found = LearnedOrder(SpikeSlab()).inclusion(draws, SIZES)
    assert (float(found[0, 1]), float(found[1, 0])) == (0.75, 0.25)


@pytest.mark.parametrize("graph", [Laplace(), NoGraph(), Horseshoe(), LearnedOrder(LowRank())], ids=repr)
def test_no_inclusion_where_edges_are_large_or_small(graph):
    assert graph.inclusion(torch.zeros(2, K, K), SIZES) is None


# Factors


def test_adjacency_places_its_edges():
    transform = Adjacency(torch.tensor([2, 0]), torch.tensor([1, 2]), 3)
    weights = torch.tensor([[5.0, 7.0], [1.0, 2.0]])
    found = transform(weights)
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0, 7], [0, 0, 0], [0, 5, 0]]))
    torch.testing.assert_close(transform.inv(found), weights)
    assert found.shape == transform.forward_shape(weights.shape)
    assert weights.shape == transform.inverse_shape(found.shape)
    assert transform == Adjacency(torch.tensor([2, 0]), torch.tensor([1, 2]), 3)
    assert transform != Adjacency(torch.tensor([2, 0]), torch.tensor([1, 2]), 4)
    assert transform != Adjacency(torch.tensor([0, 2]), torch.tensor([2, 1]), 3)


def test_edges_in_order():
    edges = Edges.in_order(torch.tensor([2, 0, 1]))
    assert list(zip(edges.sources.tolist(), edges.targets.tolist(), strict=True)) == [(2, 0), (2, 1), (0, 1)]


def test_seen_normal_is_the_posterior():
    factor = SeenNormal([1])
    with torch.no_grad():
        factor.seen.fill_(2.0), factor.log_scale.fill_(math.log(0.5))
        posterior = factor(torch.tensor([3.0]))
    precision = 1 / 3**2 + 1 / 0.5**2
    assert float(posterior.mean) == pytest.approx(2.0 / 0.5**2 / precision)
    assert float(posterior.stddev) == pytest.approx(precision**-0.5)


def test_seen_mixture_is_the_posterior():
    probability, sd = np.array([0.7, 0.3]), np.array([0.1, 1.0])
    factor = SeenMixture(torch.tensor(probability)[None], torch.tensor(sd)).double()
    with torch.no_grad():
        factor.seen.fill_(0.4), factor.log_scale.fill_(math.log(0.2))
    x = np.linspace(-3, 3, 6001)
    prior = (probability * stats.norm(scale=sd).pdf(x[:, None])).sum(1)
    density = prior * stats.norm(x, 0.2).pdf(0.4)
    expected = density / (density.sum() * (x[1] - x[0]))
    found = factor().log_prob(torch.tensor(x)[:, None]).exp().detach().numpy()[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_gradients_of_a_reparametrised_mixture():
    """Of E x and E x^2, with respect to weights, means and spreads: closed forms."""
    torch.manual_seed(0)
    logits, loc, log_sd = (
        torch.tensor(v, dtype=torch.double, requires_grad=True)
        for v in ([0.3, -0.4], [-1.0, 0.5], [-1.0, 0.2])
    )
    components = dist.Normal(loc, log_sd.exp())
    mixture = ReparametrisedMixture(dist.Categorical(logits=logits), components)
    x = mixture.rsample(torch.Size([400_000]))
    weight = logits.softmax(-1)
    for power, moment in ((1, loc), (2, loc**2 + (2 * log_sd).exp())):
        found = torch.autograd.grad((x**power).mean(), [logits, loc, log_sd], retain_graph=True)
        expected = torch.autograd.grad(
            (weight * moment).sum(), [logits, loc, log_sd], retain_graph=True, allow_unused=True
        )
        for mine, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(
                mine, torch.zeros(2).double() if exact is None else exact, atol=0.02, rtol=0.02
            )


# Settings


@pytest.mark.parametrize("graph", EVERY, ids=repr)
def test_round_trip(graph):
    assert GraphPrior.from_dict(graph.to_dict()) == graph
    assert ModelSpec.read({"graph": graph}).priors("counts").graph == graph


@pytest.mark.parametrize(
    ("member", "settings", "message"),
    [
        (Horseshoe, {"expected_edges": 0}, "Horseshoe: expected_edges must be a positive number, not 0"),
        (Horseshoe, {"slab": -1}, "Horseshoe: slab must be a positive number, not -1"),
        (SpikeSlab, {"probability": 1.2}, "SpikeSlab: probability must lie between 0 and 1, not 1.2"),
        (SpikeSlab, {"probability": math.nan}, "between 0 and 1, not nan"),
        (SpikeSlab, {"probability": "often"}, "between 0 and 1, not 'often'"),
        (SpikeSlab, {"spike": 0}, "SpikeSlab: spike must be a positive number, not 0"),
        (SpikeSlab, {"spike": 0.5}, "SpikeSlab: spike must be narrower than slab, not 0.5 against 0.5"),
        (Random, {"density": -0.1}, "Random: density must lie between 0 and 1"),
        (Random, {"seed": 0.5}, "seed must be a whole number from 0 .* not 0.5"),
        (Random, {"scale": 0}, "Random: scale must be a positive number"),
        (LowRank, {"rank": 0}, "LowRank: rank must be a whole number from 1 to 8192, not 0"),
        (LowRank, {"rank": 1.5}, "LowRank: rank must be a whole number"),
        (LowRank, {"sparse_scale": 0}, "LowRank: sparse_scale must be a positive number"),
    ],
)
def test_settings_that_cannot_be(member, settings, message):
    with pytest.raises(InputError, match=message):
        member(**settings)


def test_more_edges_than_there_can_be():
    with pytest.raises(
        InputError, match="expected_edges must be fewer than the 10 that 5 nodes can have, not 30"
    ):
        Horseshoe(30).guide(SIZES, torch.zeros(3, 2))


# In the program


@pytest.mark.parametrize(
    "graph",
    [
        Horseshoe(),
        SpikeSlab(),
        LowRank(rank=2),
        Random(),
        KnownGraph(required=[("node_0", "node_2")]),
        Ordered(order=("node_2", "node_0", "node_1")),
        LearnedOrder(SpikeSlab()),
    ],
    ids=lambda graph: type(graph).__name__,
)
def test_fits_predicts_and_loads(graph, screen, tmp_path):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), graph=graph)
    model.fit(max_epochs=2, batch_size=64, progress=False)
    assert np.isfinite(model.history.to_numpy()).all()
    prediction = model.predict(["G0001"], n_samples=10).X
    assert np.isfinite(prediction).all()
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    assert loaded.priors.graph == graph
    np.testing.assert_array_equal(loaded.predict(["G0001"], n_samples=10).X, prediction)
