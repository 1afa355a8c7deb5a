"""Posteriors of graphs against exact ones: cells whose state is seen, with known shifts.

The noise of a cell is then ``u (I - B) - shift``, standard normal, so that each node is regressed on the
others; for a spike and a slab all ``2^parents`` graphs of a node can be added up.
"""

import itertools
import math

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import special, stats
from sklearn.metrics import average_precision_score

from sccvae_pyro.models import horseshoe
from sccvae_pyro.models.graph import Horseshoe, Laplace, LearnedOrder, Ordered, SpikeSlab
from sccvae_pyro.models.slot import Basis, Described, Perturbations, Sizes


def cells_of(B, n, push, rng):
    """States and shifts, ``cells x nodes``: each cell has one node pushed, or none."""
    K = len(B)
    shift = push * np.eye(K + 1)[rng.integers(0, K + 1, n)][:, :K]
    return (rng.normal(size=(n, K)) + shift) @ np.linalg.inv(np.eye(K) - B), shift


def fit(graph, state, shift, n_steps, rate=0.03, n_draws=200):
    """Draws of ``B`` from the guide of a graph prior, after fitting it."""
    n, K = state.shape
    sizes = Sizes(cells=n, genes=1, nodes=K, perturbations=1, features=0, covariates=0)
    one = Perturbations.of(Described(torch.zeros(1, 0), Basis(torch.ones(1, 1), torch.zeros(1))))
    gram, cross = (torch.tensor(state.T @ other).float() for other in (state, state - shift))
    factor, elbo = graph.guide(sizes, torch.zeros(1, 0)), Trace_ELBO()

    def model():
        B = graph.model(sizes, one)
        pyro.factor("cells", (B * cross).sum() - 0.5 * (B * (gram @ B)).sum())
        return B

    pyro.set_rng_seed(0)
    optimiser = torch.optim.Adam(factor.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=n_steps)
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
        for _ in range(n_steps):
            optimiser.zero_grad()
            elbo.differentiable_loss(model, lambda: factor(one)).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        guides = [poutine.trace(factor).get_trace(one) for _ in range(n_draws)]
        return torch.stack([poutine.replay(model, trace=guide)() for guide in guides]), sizes


# Inclusion probabilities


def exact_inclusion(graph, state, shift):
    """Posterior probability of each edge, by adding up all sets of parents of each node."""
    K = state.shape[1]
    inclusion = np.zeros((K, K))
    for k in range(1, K):
        parents, rest = state[:, :k], state[:, k] - shift[:, k]
        sets = np.array(list(itertools.product([0, 1], repeat=k)))
        log_weight = [_log_evidence(graph, parents, rest, present) for present in sets]
        weight = np.exp(log_weight - np.max(log_weight))
        inclusion[:k, k] = weight @ sets / weight.sum()
    return inclusion


def _log_evidence(graph, parents, rest, present):
    sd = np.where(present, graph.slab, graph.spike)
    scaled = parents * sd
    covariance = np.eye(len(sd)) + scaled.T @ scaled
    moment = scaled.T @ rest
    prior = stats.bernoulli(graph.probability).logpmf(present).sum()
    return prior + 0.5 * (moment @ np.linalg.solve(covariance, moment) - np.linalg.slogdet(covariance)[1])


def drawn_from(graph, K, n, rng):
    """Which edges there are, and cells, drawn from the prior."""
    present = np.triu(rng.random((K, K)) < graph.probability, 1)
    weights = np.where(present, rng.normal(0, graph.slab, (K, K)), rng.normal(0, graph.spike, (K, K)))
    return present, *cells_of(np.triu(weights, 1), n, push=1.0, rng=rng)


def test_inclusion_is_that_of_enumeration():
    graph = SpikeSlab(0.3)
    _, state, shift = drawn_from(graph, 7, 150, np.random.default_rng(0))
    draws, sizes = fit(graph, state, shift, n_steps=1000)
    error = graph.inclusion(draws, sizes).numpy() - exact_inclusion(graph, state, shift)
    error = error[np.triu_indices(7, 1)]
    assert np.abs(error).mean() < 0.03
    assert np.sqrt(np.square(error).mean()) < 0.06


def test_inclusion_is_calibrated():
    """Of the edges that are there with probability p, p are there, and most of them are decided."""
    graph, K = SpikeSlab(0.2), 32
    present, state, shift = drawn_from(graph, K, 150, np.random.default_rng(0))
    draws, sizes = fit(graph, state, shift, n_steps=1200)
    there, found = (
        values[np.triu_indices(K, 1)] for values in (present, graph.inclusion(draws, sizes).numpy())
    )
    for low, high in itertools.pairwise([0.0, 0.1, 0.5, 0.9, 1.0 + 1e-6]):
        mine = (found >= low) & (found < high)
        expected, share = found[mine].mean(), there[mine].mean()
        assert mine.sum() > 10
        assert share == pytest.approx(
            expected, abs=0.02 + 3 * math.sqrt(expected * (1 - expected) / mine.sum())
        )
    assert average_precision_score(there, found) > 0.75


# The horseshoe


def test_horseshoe_shrinks_as_the_integral_says():
    """One edge: what is left of an estimate that is small, and of one that is large."""
    graph, n = Horseshoe(), 100
    scale = np.logspace(-6, 6, 400)  # of the grid of each scale, which has a half-Cauchy prior
    prior = scale * stats.halfcauchy.pdf(scale)
    width = horseshoe.width(torch.tensor(scale / math.sqrt(n)), torch.tensor(scale), graph.slab).numpy()
    for estimate in (0.1, 0.5):
        marginal = stats.norm(scale=np.sqrt(width**2 + 1 / n)).pdf(estimate) * prior[:, None] * prior
        expected = (marginal * width**2 / (width**2 + 1 / n)).sum() / marginal.sum() * estimate
        state = np.full((n, 2), [1.0, estimate])
        draws, _ = fit(graph, state, np.zeros((n, 2)), n_steps=600, rate=0.05, n_draws=1000)
        assert float(draws[:, 0, 1].mean()) == pytest.approx(expected, abs=0.4 / math.sqrt(n))


# Orders


def test_a_learned_order_finds_edges_that_a_wrong_one_misses():
    rng = np.random.default_rng(0)
    K, order = 10, np.random.default_rng(1).permutation(10)
    weights = np.where(rng.random((K, K)) < 0.3, rng.choice([-0.5, 0.5], (K, K)), 0.0)
    B = np.zeros((K, K))
    B[np.ix_(order, order)] = np.triu(weights, 1)
    state, shift = cells_of(B, 600, push=2.0, rng=rng)
    off = ~np.eye(K, dtype=bool)
    precision = {}
    for name, graph in {"fixed": Ordered(), "learned": LearnedOrder()}.items():
        draws, _ = fit(graph, state, shift, n_steps=1500)
        precision[name] = average_precision_score(B[off] != 0, draws.mean(0).abs().numpy()[off])
    assert all(nx.is_directed_acyclic_graph(nx.DiGraph((draw != 0).numpy())) for draw in draws)
    assert precision["fixed"] < 0.8
    assert precision["learned"] > 0.95


def exact_over_orders(graph, state, shift):
    """Posterior mean of the edges of three nodes: each of the six orders by quadrature."""
    gram, cross = state.T @ state, state.T @ (state - shift)
    grid = np.linspace(-1.5, 1.5, 401)
    log_prior = stats.laplace(scale=graph.graph.scale).logpdf(grid) + np.log(grid[1] - grid[0])
    log_evidence, means = [], []
    for order in itertools.permutations(range(3)):
        # Given the order, every node is regressed on those before it; other edges integrate to one.
        evidence, mean = 0.0, np.zeros((3, 3))
        for position, k in enumerate(order):
            parents = list(order[:position])
            points = np.array(list(itertools.product(range(len(grid)), repeat=position)), dtype=int)
            b = grid[points]
            log_joint = b @ cross[parents, k] - 0.5 * ((b @ gram[np.ix_(parents, parents)]) * b).sum(1)
            log_joint = log_joint + log_prior[points].sum(1)
            evidence += special.logsumexp(log_joint)
            mean[parents, k] = special.softmax(log_joint) @ b
        log_evidence.append(evidence)
        means.append(mean)
    return np.tensordot(special.softmax(log_evidence), means, 1)


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_edges_of_a_learned_order_are_those_of_all_orders_added_up(seed):
    graph, rng = LearnedOrder(Laplace(0.2)), np.random.default_rng(seed)
    state, shift = cells_of(np.diag([0.5, -0.4], 1), 150, push=1.0, rng=rng)
    draws, _ = fit(graph, state, shift, n_steps=1500, n_draws=1000)
    np.testing.assert_allclose(draws.mean(0), exact_over_orders(graph, state, shift), atol=0.1)
