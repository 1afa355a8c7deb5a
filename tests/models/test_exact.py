"""Model and guide against closed forms: evidence and posterior of linear-Gaussian worlds."""

import math

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import (
    LinearEncoder,
    LinearGaussian,
    Passing,
    _KnownDirection,
    _KnownNoise,
    program_of,
)
from pyro import poutine

from sccvae_pyro.data.loading import Batch
from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.objectives import NegativeELBO
from sccvae_pyro.models import graph
from sccvae_pyro.models.noise import StandardNormal
from sccvae_pyro.models.penetrance import Fixed
from sccvae_pyro.models.program import Priors
from sccvae_pyro.models.responders import AllCells
from sccvae_pyro.models.slot import Sizes

NONE = 2  # code of "no perturbation" in worlds of two perturbations
SINGLE = np.array([[0]] * 12 + [[1]] * 7 + [[NONE]] * 10)
COMBINED = np.array([[0, NONE], [1, NONE], [0, 1], [1, NONE], [NONE, NONE]])


def elbos(program, batch, n_draws, seed=0):
    """Single-draw estimates of the ELBO of all cells, nats."""
    pyro.set_rng_seed(seed)
    loss = NegativeELBO(program)
    with torch.no_grad():
        return np.array([-float(loss(batch)) * program.sizes.cells for _ in range(n_draws)])


def kl_normal(mean_q, var_q, mean_p, var_p):
    return 0.5 * (var_q / var_p + (mean_q - mean_p) ** 2 / var_p - 1 + np.log(var_p / var_q))


def optimise(parameters, loss, n_steps, rate):
    """Adam with a rate that falls to zero, so that what is left is not the noise of the last step."""
    optimiser = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=n_steps)
    for _ in range(n_steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


# The guide at the exact posterior


@pytest.fixture(scope="module")
def separable():
    world = LinearGaussian.separable(SINGLE, 2)
    return world, world.draw()


def test_every_draw_from_the_exact_posterior_gives_the_evidence(separable):
    """log p(x, z, s) - log q(z, s | x) is constant only where q is the posterior: then it is log p(x)."""
    world, batch = separable
    found = elbos(world.exact_program(batch), batch, n_draws=5)
    np.testing.assert_allclose(found, world.log_evidence(batch), rtol=1e-6)


def test_elbo_falls_short_of_the_evidence_by_the_kl(separable):
    """Shift and widen the directions and distrust the encoder: the gap is a KL with a closed form."""
    world, batch = separable
    program = world.exact_program(batch)
    mean, covariance = world.direction_posterior(batch)
    variance = np.diag(covariance).reshape(mean.shape)
    factor, encoder = program.proposal.direction_factor.factor, program.encoder
    with torch.no_grad():
        factor.loc += 0.1
        factor.log_scale += math.log(1.3)
        encoder.raw_trust.copy_(torch.tensor(0.8 * world.trust).logit())
    gap = kl_normal(mean + 0.1, 1.69 * variance, mean, variance).sum()
    # Noise of a cell: Normal(t r, 1 - t) against Normal(q r, 1 - q), r the residual given the drawn shift.
    t, q = world.trust, 0.8 * world.trust
    shift = world.strength * world.membership @ (mean + 0.1)
    residual = batch.x_cg.numpy() @ np.linalg.pinv(world.effect) - shift
    square = residual**2 + world.strength**2 * world.membership @ (1.69 * variance)
    gap += (kl_normal(0, 1 - q, 0, 1 - t) + 0.5 * (t - q) ** 2 * square / (1 - t)).sum()
    found = elbos(program, batch, n_draws=800)
    standard_error = found.std(ddof=1) / math.sqrt(len(found))
    assert gap > 20 * standard_error
    assert found.mean() == pytest.approx(world.log_evidence(batch) - gap, abs=4 * standard_error)


def test_optimised_elbo_reaches_the_evidence(separable):
    """From a poor start the guide finds the posterior: what is left of the KL is a small part of a nat."""
    world, batch = separable
    program = world.program()
    with torch.no_grad():
        program.encoder.to_state.mul_(0.3)
        program.encoder.raw_trust.zero_()
    evidence = world.log_evidence(batch)
    assert evidence - elbos(program, batch, 50).mean() > 10
    loss = NegativeELBO(program)
    pyro.set_rng_seed(0)
    guide = [*program.proposal.direction_factor.parameters(), *program.encoder.parameters()]
    optimise(guide, lambda: loss(batch), n_steps=500, rate=0.1)
    gap = evidence - elbos(program, batch, 200)
    assert -4 * gap.std(ddof=1) / math.sqrt(len(gap)) < gap.mean() < 0.25
    mean, covariance = world.direction_posterior(batch)
    sd = np.sqrt(np.diag(covariance)).reshape(mean.shape)
    # The part of the KL that wrong means of the directions cost is 0.5 (error / sd)^2 each.
    error = (program.proposal.direction_factor.factor.loc.detach().numpy() - mean) / sd
    assert 0.5 * np.square(error).sum() < 0.25


# A guide that is not exact: importance sampling


@pytest.fixture(scope="module")
def weighted():
    """Log weights log p(x, z, s) - log q(z, s | x), and directions of many draws; cells with combinations."""
    world = LinearGaussian.general(COMBINED, 2, seed=1)
    batch = world.draw(1)
    program = world.exact_program(batch)
    with torch.no_grad():
        program.proposal.direction_factor.factor.log_scale += math.log(1.2)
        program.encoder.raw_trust.copy_(torch.tensor([0.3, 0.3]).logit())
    pyro.set_rng_seed(0)
    n_draws = 40_000
    with torch.no_grad(), pyro.plate("draws", n_draws, dim=-2):
        guide = poutine.trace(program.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(batch)
        log_weight = (sum_by_draw(model, n_draws) - sum_by_draw(guide, n_draws)).numpy()
    return world, batch, log_weight, guide.nodes["direction"]["value"].numpy()


def sum_by_draw(trace, n_draws):
    trace.compute_log_prob()
    parts = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample"]
    return sum(
        part.expand(n_draws, part.shape[-1]).sum(-1) for part in parts if torch.is_tensor(part) and part.dim()
    )


def test_mean_weight_is_the_evidence(weighted):
    world, batch, log_weight, _ = weighted
    weight = np.exp(log_weight - world.log_evidence(batch))
    standard_error = weight.std(ddof=1) / math.sqrt(len(weight))
    assert standard_error < 0.05
    assert weight.mean() == pytest.approx(1.0, abs=4 * standard_error)


def test_mean_log_weight_is_below_the_evidence(weighted):
    world, batch, log_weight, _ = weighted
    standard_error = log_weight.std(ddof=1) / math.sqrt(len(log_weight))
    assert log_weight.mean() + 4 * standard_error < world.log_evidence(batch)


def test_weighted_directions_have_the_posterior_mean(weighted):
    """Directions seen only together with another are explained away as the joint posterior says."""
    world, batch, log_weight, direction = weighted
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean, covariance = world.direction_posterior(batch)
    found = np.tensordot(weight, direction, 1)
    standard_error = np.sqrt(np.tensordot(weight**2, (direction - found) ** 2, 1))
    assert (standard_error < 0.1 * np.sqrt(np.diag(covariance)).reshape(mean.shape)).all()
    assert (np.abs(found - mean) < 4 * standard_error).all()


# The density of cells


def second_moment(x, mean, state_covariance, noise_covariance, effect):
    """E[N(x; state effect, V)^2] for a normal state: what decides the error of importance sampling."""
    covariance = noise_covariance / 2 + effect.T @ state_covariance @ effect
    constant = -0.5 * len(x) * math.log(4 * math.pi) - 0.5 * np.linalg.slogdet(noise_covariance)[1]
    return constant + log_normal(x, mean @ effect, covariance)


def log_normal(x, mean, covariance):
    residual = x - mean
    quadratic = residual @ np.linalg.solve(covariance, residual)
    return -0.5 * (quadratic + np.linalg.slogdet(2 * math.pi * covariance)[1])


@pytest.mark.parametrize("proposal", ["posterior", "prior"])
def test_log_density_is_the_posterior_predictive(separable, proposal):
    """Whatever proposes the noise, importance sampling finds the density of new cells."""
    world, batch = separable
    program = world.exact_program(batch)
    if proposal == "prior":
        with torch.no_grad():
            program.encoder.raw_trust.fill_(-math.inf)
    mean, covariance = world.direction_posterior(batch)
    cells = Batch(*(part[[0, 13, 25]] for part in batch))
    n_draws = 1500
    draws = posterior.draw(program, n_draws, seed=1)
    found = posterior.log_density(program, draws, cells, draws.push_of(cells), (2, 0)).numpy()
    K, noise = len(world.B), world.sd**2 * np.eye(5)
    for i, p in enumerate((0, 1, NONE)):
        shift_mean, shift_covariance = np.zeros(K), np.zeros((K, K))
        if p != NONE:
            shift_mean = world.strength * mean[p]
            shift_covariance = world.strength**2 * covariance[K * p : K * p + K, K * p : K * p + K]
        x = cells.x_cg[i].numpy()
        covariance_x = world.effect.T @ shift_covariance @ world.effect + world.cell_covariance
        exact = log_normal(x, shift_mean @ world.effect, covariance_x)
        state, given = (
            (shift_covariance, world.cell_covariance)
            if proposal == "posterior"
            else (shift_covariance + np.eye(K), noise)
        )
        relative = math.expm1(second_moment(x, shift_mean, state, given, world.effect) - 2 * exact)
        standard_error = math.sqrt(relative / n_draws)
        assert standard_error < 0.2
        assert found[i] == pytest.approx(exact, abs=4 * standard_error + 1e-6)


# The graph


def test_posterior_of_edges_is_that_of_a_regression():
    """With known targets and cells read without error, each node is regressed on those before it."""
    rng = np.random.default_rng(0)
    K, n, scale, push = 4, 240, 0.5, 2.0
    B = np.triu(rng.normal(0, 0.5, (K, K)), 1)
    targets = np.repeat(np.arange(K + 1), n // (K + 1))[:, None]
    shift = push * np.eye(K + 1)[targets[:, 0], :K]
    state = (rng.normal(size=(n, K)) + shift) @ np.linalg.inv(np.eye(K) - B)
    batch = Batch(
        torch.tensor(state),
        torch.ones(n).double(),
        torch.tensor(targets),
        torch.zeros(n, 0),
        torch.zeros(n).long(),
    )
    priors = Priors(
        graph.Normal(scale),
        Fixed(push),
        _KnownDirection(torch.eye(K).double()),
        AllCells(),
        StandardNormal(),
        _KnownNoise(0.05),
    )
    identity = torch.eye(K).double()
    # The noise of reading, 0.05, adds 0.0025 n = 0.6 to precisions of about 240: 0.3 %, below the tolerances.
    encoder = LinearEncoder(identity, torch.full((K,), 1 / (1 + 0.05**2)))
    program = program_of(priors, Sizes(n, K, K, K, 0, 0), encoder, Passing())
    loss = NegativeELBO(program)
    pyro.set_rng_seed(0)
    optimise(program.proposal.graph_factor.parameters(), lambda: loss(batch), n_steps=500, rate=0.02)
    exact = []
    for j, k in zip(*np.triu_indices(K, 1), strict=True):
        parents = state[:, :k]
        precision = parents.T @ parents + np.eye(k) / scale**2
        mean = np.linalg.solve(precision, parents.T @ (state[:, k] - shift[:, k]))
        exact.append((mean[j], 1 / math.sqrt(precision[j, j])))  # the best factorised normal
    mean, sd = np.transpose(exact)
    loc = program.proposal.graph_factor.factor.loc.detach().numpy()
    spread = program.proposal.graph_factor.factor.log_scale.detach().exp().numpy()
    # An edge that is a third of its sd off costs 0.06 nats; there are 6 of them.
    assert kl_normal(loc, spread**2, mean, sd**2).sum() < 6 * 0.06
