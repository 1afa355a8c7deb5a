"""Orders of the nodes: given, learned, and how a graph in any order is solved."""

import math
from itertools import combinations

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from screens import set_up, small_screen

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.models import scm
from sccvae_pyro.models.graph import (
    GraphPrior,
    KnownGraph,
    Laplace,
    LearnedOrder,
    NoGraph,
    Ordered,
    SpikeSlab,
)
from sccvae_pyro.models.graph_order import forward_edges
from sccvae_pyro.models.slot import Basis, Described, Perturbations, Sizes

SIZES = Sizes(
    100, genes=6, nodes=4, perturbations=3, features=0, covariates=0, node_names=("A", "B", "C", "D")
)


def draw(graph, **values):
    pyro.set_rng_seed(0)
    described = Described(torch.zeros(3, 0), Basis(torch.ones(3, 1), torch.zeros(3)))
    given = poutine.condition(graph.model, data=values)
    trace = poutine.trace(given).get_trace(SIZES, Perturbations.of(described))
    trace.compute_log_prob()
    return trace


# A given order


def test_edges_run_along_the_given_order():
    B = draw(Ordered(Laplace(1.0), ("C", "A", "D", "B"))).nodes["B"]["value"]
    order = [2, 0, 3, 1]
    in_order = B[order][:, order]
    assert (in_order[torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)] != 0).all()
    torch.testing.assert_close(torch.tril(in_order), torch.zeros(4, 4))


def test_density_of_a_given_order():
    """Of the edges along it; where they stand in the matrix makes no difference."""
    order = [2, 0, 3, 1]
    weights = np.random.default_rng(0).normal(0, 0.3, 6)
    B = np.zeros((4, 4))
    for (j, k), weight in zip(combinations(order, 2), weights, strict=True):
        B[j, k] = weight
    graph = Ordered(Laplace(0.2), tuple("ABCD"[k] for k in order))
    found = draw(graph, B=torch.tensor(B, dtype=torch.float)).log_prob_sum()
    assert float(found) == pytest.approx(stats.laplace(scale=0.2).logpdf(weights).sum(), rel=1e-5)


def test_the_order_of_the_model_changes_nothing():
    plain = draw(Laplace())
    for graph in (Ordered(), Ordered(order=("A", "B", "C", "D"))):
        found = draw(graph)
        torch.testing.assert_close(found.nodes["B"]["value"], plain.nodes["B"]["value"])
        torch.testing.assert_close(found.log_prob_sum(), plain.log_prob_sum())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("A", "B", "C"), "order leaves out 'D'. Name every node"),
        (("A", "B", "C", "D", "E"), "the model has no node 'E'"),
    ],
)
def test_orders_of_other_nodes(order, message):
    with pytest.raises(InputError, match=message):
        Ordered(order=order).guide(SIZES, torch.zeros(3, 0))


def test_order_with_a_node_twice():
    with pytest.raises(InputError, match="order names 'A' more than once"):
        Ordered(order=("A", "B", "A"))


@pytest.mark.parametrize("order", [None, 5, [1, 2, "a"], [["G"]], {"A"}, "ABC", {"A": 1}], ids=repr)
def test_what_is_no_order(order):
    with pytest.raises(InputError, match="Ordered: order must be a list of names, not"):
        Ordered(order=order)


# Graphs within


@pytest.mark.parametrize("wrapper", [Ordered, LearnedOrder])
def test_the_graph_within_may_be_written_as_a_name_or_table(wrapper):
    assert wrapper("Laplace") == wrapper(Laplace())
    table = {"name": wrapper.__name__, "graph": {"name": "SpikeSlab", "probability": 0.3}}
    assert GraphPrior.from_dict(table) == wrapper(SpikeSlab(0.3))
    assert wrapper(SpikeSlab(0.3)).to_dict()["graph"] == SpikeSlab(0.3).to_dict()


@pytest.mark.parametrize("graph", [NoGraph(), Ordered(), "LearnedOrder"], ids=repr)
@pytest.mark.parametrize("wrapper", [Ordered, LearnedOrder])
def test_graphs_without_edges_to_order(wrapper, graph):
    with pytest.raises(InputError, match=f"{wrapper.__name__}: graph must be a prior of edges.*, not "):
        wrapper(graph)


def test_required_edges_need_a_known_order():
    with pytest.raises(InputError, match="required edges fix a part of the order"):
        LearnedOrder(KnownGraph(required=[("A", "B")]))


# A learned order


def test_density_of_a_learned_order():
    score, weights = torch.tensor([0.3, -1.0, 2.0, 0.1]), torch.randn(4, 4).fill_diagonal_(0.0)
    trace = draw(LearnedOrder(Laplace(0.2)), order_score=score, edge_weight=weights)
    off = ~np.eye(4, dtype=bool)
    expected = stats.norm.logpdf(score).sum() + stats.laplace(scale=0.2).logpdf(weights.numpy()[off]).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=1e-5)


def test_edges_run_from_lower_to_higher_scores():
    score, weights = torch.tensor([0.3, -1.0, 2.0, 0.1]), torch.randn(4, 4).fill_diagonal_(0.0)
    B = draw(LearnedOrder(), order_score=score, edge_weight=weights).nodes["B"]["value"]
    expected = torch.where(score[:, None] < score, weights, 0.0)
    torch.testing.assert_close(B, expected, rtol=0, atol=0)


def test_equal_scores_have_no_edge():
    torch.testing.assert_close(forward_edges(torch.zeros(3)), torch.zeros(3, 3))


def test_gradients_turn_an_edge_the_way_it_is_wanted():
    score = torch.tensor([0.1, 0.0], requires_grad=True)
    forward_edges(score)[0, 1].backward()
    assert score.grad[0] < 0 < score.grad[1]


def test_every_order_is_equally_probable():
    with pyro.plate("draws", 2400, dim=-2):
        score = draw(LearnedOrder()).nodes["order_score"]["value"]
    _, counts = np.unique(score.squeeze().argsort(-1), axis=0, return_counts=True)
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(counts).pvalue > 0.001


# Solving in any order


def shuffled(*batch, K=6, seed=0):
    """Acyclic graphs, each in an order of its own, with the systems that they stand for."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.triu(torch.randn(*batch, K, K, generator=generator, dtype=torch.double), 1)
    order = torch.rand(*batch, K, generator=generator).argsort(-1)
    rows = upper.gather(-2, order.unsqueeze(-1).expand_as(upper))
    return rows.gather(-1, order.unsqueeze(-2).expand_as(upper))


@pytest.mark.parametrize("batch", [(), (5,), (5, 1), (1, 1), (2, 5, 1)])
def test_propagation_in_any_order(batch):
    B = shuffled(*batch)
    draws = batch[:-1] if batch[-1:] == (1,) else batch
    noise = torch.randn(*draws, 4, 6, dtype=torch.double)
    state = scm.propagate(noise, B)
    plain = B.reshape(*draws, 6, 6)
    torch.testing.assert_close(state, noise @ torch.linalg.inv(torch.eye(6).double() - plain))
    torch.testing.assert_close(scm.abduct(state, B), noise)


@pytest.mark.parametrize("n_cells", [5, 6])
def test_shared_noise_meets_every_draw(n_cells):
    """Also where there are as many cells as draws, or as nodes."""
    B, noise = shuffled(5), torch.randn(n_cells, 6, dtype=torch.double)
    expected = torch.stack([scm.propagate(noise, B[s]) for s in range(5)])
    torch.testing.assert_close(scm.propagate(noise, B), expected)


def test_one_graph_meets_noise_of_every_draw():
    B, noise = shuffled(), torch.randn(5, 4, 6, dtype=torch.double)
    expected = torch.stack([scm.propagate(noise[s], B) for s in range(5)])
    torch.testing.assert_close(scm.propagate(noise, B), expected)


def test_gradients_reach_graph_and_noise_in_any_order():
    B, noise = shuffled(K=3).requires_grad_(), torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    edges = (B != 0).detach()
    assert torch.autograd.gradcheck(lambda B, noise: scm.propagate(noise, B * edges), (B, noise))


def test_an_edge_that_a_draw_lacks_is_not_taken_for_negative():
    """Each draw has one direction of a pair at most; the sign is that of the draws that have it."""
    model = SCCVAE(set_up(small_screen()), n_nodes=3, hidden=(8,), graph="LearnedOrder")
    model.fit(max_epochs=1, batch_size=64, progress=False)
    table, B = model.edges(n_samples=200).set_index(["source", "target"]), model._draws(200, 0).B
    for (source, target), row in table.iterrows():
        values = B[:, int(source[-1]), int(target[-1])]
        assert row["present"] == pytest.approx(float((values != 0).double().mean()))
        assert row["probability_positive"] == pytest.approx(float((values[values != 0] > 0).double().mean()))
    both = table["present"].to_numpy() + table.swaplevel()["present"].reindex(table.index).to_numpy()
    assert (both < 1 + 1e-9).all() and (table["present"] < 1).any()
