"""The loss: what counts how often, where its gradients go, and what the weight of the KL touches."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import poutine

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.data.loading import Batch
from sccvae_pyro.inference.objectives import KLWeight, NegativeELBO, NegativeIWELBO, log_weights
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.program import values_of

SINGLE = np.array([[0]] * 12 + [[1]] * 7 + [[2]] * 10)


@pytest.fixture(scope="module")
def program(screen):
    """Default priors on counts, in double precision, away from where training starts."""
    program = SCCVAE(screen, n_nodes=4, hidden=(8,)).program.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in program.named_parameters():
            if name.endswith((".loc", "own_pk", "trend_ek", "origin_k")):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
    return program


@pytest.fixture(scope="module")
def cells(screen, program):
    """All cells of the screen, in an order that mixes perturbations."""
    order = np.random.default_rng(0).permutation(program.sizes.cells)
    x, library, targets, covariates, guides = SCCVAE(screen, n_nodes=1)._screen[order]
    return Batch(x.double(), library.double(), targets, covariates.double(), guides)


def part(batch, rows):
    return Batch(*(column[rows] for column in batch))


def traces(program, batch, **given):
    """Guide and model at one draw, or at given values."""
    with torch.no_grad():
        guide = poutine.trace(poutine.condition(program.guide, data=given)).get_trace(batch)
        model = poutine.trace(poutine.condition(program.model, data=values_of(guide))).get_trace(batch)
    return guide, model


def elbo(guide, model):
    with torch.no_grad():
        return float(model.log_prob_sum() - guide.log_prob_sum())


# Scaling


def test_minibatches_add_up_to_all_cells(program, cells):
    """At one draw, the mean over the batches of a partition is the ELBO of all cells, to the last digits."""
    pyro.set_rng_seed(0)
    guide, model = traces(program, cells)
    values = values_of(guide)
    size = program.sizes.cells // 5
    assert 5 * size == program.sizes.cells
    parts = [
        elbo(*traces(program, part(cells, rows), **{**values, "z": values["z"][rows]}))
        for rows in torch.arange(program.sizes.cells).split(size)
    ]
    assert np.std(parts) > 1
    assert np.mean(parts) == pytest.approx(elbo(guide, model), rel=1e-10)


def test_minibatch_loss_is_unbiased():
    """Random batches, fresh draws: with the guide at the exact posterior the mean must be the evidence."""
    world = LinearGaussian.separable(SINGLE, 2)
    batch = world.draw()
    program = world.exact_program(batch)
    loss = NegativeELBO(program)
    rng = np.random.default_rng(0)
    pyro.set_rng_seed(0)
    with torch.no_grad():
        found = [
            -float(loss(part(batch, rng.choice(len(SINGLE), 8, replace=False)))) * program.sizes.cells
            for _ in range(600)
        ]
    standard_error = np.std(found, ddof=1) / math.sqrt(len(found))
    # Scaling the globals like the cells, or not scaling the cells, would cost many times this.
    mean, covariance = world.direction_posterior(batch)
    sd, prior_sd = np.sqrt(np.diag(covariance)), world.tau
    kl_of_globals = (np.log(prior_sd / sd) + (sd**2 + mean.ravel() ** 2) / (2 * prior_sd**2) - 0.5).sum()
    assert kl_of_globals > 6 * standard_error
    assert np.mean(found) == pytest.approx(world.log_evidence(batch), abs=4 * standard_error)


def test_loss_is_per_cell(program, cells):
    pyro.set_rng_seed(1)
    with torch.no_grad():
        loss = float(NegativeELBO(program)(cells))
    pyro.set_rng_seed(1)
    assert loss == pytest.approx(-elbo(*traces(program, cells)) / program.sizes.cells, rel=1e-10)


# Gradients


PARAMETERS = {
    "graph": "proposal.graph_factor.factor.loc",
    "spread of the graph": "proposal.graph_factor.factor.log_scale",
    "strength": "proposal.penetrance_factor.factor.loc",
    "own part of the shifts": "proposal.direction_factor.own_pk",
    "trend of the shifts": "proposal.direction_factor.trend_ek",
    "error of the shifts": "proposal.direction_factor.log_sd_pk",
    "scale of the directions": "proposal.direction_factor.scale.loc",
    "signal of the directions": "proposal.direction_factor.signal.loc",
    "origin": "origin_k",
    "dispersion": "proposal.gene_factor.factor.loc",
}


@pytest.mark.parametrize("name", PARAMETERS.values(), ids=PARAMETERS)
def test_gradient_is_that_of_the_loss(program, cells, name):
    """At fixed random numbers the loss is a smooth function: differences of it give the whole gradient.

    A path cut anywhere, as by abducting with detached globals, would leave the two apart.
    """
    batch, parameter = part(cells, slice(0, 60)), program.get_parameter(name)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.double)

    def loss():
        pyro.set_rng_seed(3)
        return NegativeELBO(program)(batch)

    program.zero_grad()
    loss().backward()
    slope = float((parameter.grad * direction).sum())
    step = 1e-5
    with torch.no_grad():
        parameter += step * direction
        above = float(loss())
        parameter -= 2 * step * direction
        below = float(loss())
        parameter += step * direction
    assert abs(slope) > 1e-6
    assert slope == pytest.approx((above - below) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [PARAMETERS[key] for key in ("graph", "strength", "own part of the shifts", "trend of the shifts")],
)
def test_gradient_reaches_the_causes_through_abduction(program, cells, name):
    """The proposed noise itself moves with the graph and the shifts that the guide has drawn."""
    pyro.set_rng_seed(0)
    program.zero_grad()
    guide = poutine.trace(program.guide).get_trace(part(cells, slice(0, 60)))
    guide.nodes["z"]["fn"].mean.square().sum().backward()
    assert (program.get_parameter(name).grad != 0).any()


def test_abducted_noise(program, cells):
    """The guide conditions the noise on what is read of the state: here written with covariances."""
    batch = part(cells, slice(0, 60))
    pyro.set_rng_seed(0)
    guide, _ = traces(program, batch)
    B, strength, direction = (guide.nodes[name]["value"].numpy() for name in ("B", "strength", "direction"))
    shift = np.vstack([strength[:, None] * direction, np.zeros((1, 4))])[batch.targets_cm].sum(1)
    with torch.no_grad():
        state, trust = (value.numpy() for value in program.encode(batch))
    effect = np.linalg.inv(np.eye(4) - B)
    gain = np.linalg.solve(effect.T @ effect + np.diag(1 / trust - 1), effect.T)
    found = guide.nodes["z"]["fn"]
    np.testing.assert_allclose(found.mean, (state - shift @ effect) @ gain)
    np.testing.assert_allclose(
        found.covariance_matrix, np.broadcast_to(np.eye(4) - effect @ gain, (60, 4, 4))
    )


# The weight of the KL


def test_weight_scales_the_cells_and_nothing_else(program, cells):
    for fn in (program.guide, program.model):
        full, light = (trace_weighted(fn, cells, weight) for weight in (1.0, 0.25))
        assert {"B", "strength", "direction", "inverse_dispersion", "z"} < set(full)
        assert {"direction_scale", "direction_function_weights"} < set(full)
        for name in full:
            torch.testing.assert_close(light[name], full[name] * (0.25 if name == "z" else 1.0))


def trace_weighted(fn, batch, weight):
    """Log densities of all sites."""
    pyro.set_rng_seed(0)
    with torch.no_grad(), KLWeight(weight):
        trace = poutine.trace(fn).get_trace(batch)
    trace.compute_log_prob()
    return {name: trace.nodes[name]["log_prob_sum"] for name in values_of(trace)}


def test_weight_of_the_loss(program, cells):
    """Reconstruction, globals and w times the KL of the cells: linear in w."""
    losses = []
    for weight in (0.0, 0.5, 1.0):
        pyro.set_rng_seed(0)
        with torch.no_grad():
            losses.append(float(NegativeELBO(program)(cells, weight)))
    assert losses[0] < losses[2]
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-10)


# The validation figure


def test_validation_leaves_the_globals_out(program, cells):
    """Cells' own terms, unscaled: model and guide at one draw, less the terms of the globals."""
    pyro.set_rng_seed(0)
    with torch.no_grad():
        found = log_weights(program, cells)
    pyro.set_rng_seed(0)
    guide, model = traces(program, cells)
    for trace in (guide, model):
        trace.compute_log_prob()
    expected = model.nodes["x"]["log_prob"] + model.nodes["z"]["log_prob"] - guide.nodes["z"]["log_prob"]
    torch.testing.assert_close(found, expected)


# The importance-weighted ELBO


@pytest.fixture(scope="module")
def distrusted():
    """A world of three nodes whose guide is right about the globals and trusts the encoder too little."""
    world = LinearGaussian.separable(SINGLE, 2)
    batch = world.draw()
    program = world.exact_program(batch)
    with torch.no_grad():
        program.encoder.raw_trust.copy_(torch.tensor(0.6 * world.trust).logit())
    return world, batch, program


def bounds(loss, batch, n_draws):
    """Estimates of the bound on the evidence of all cells, nats."""
    pyro.set_rng_seed(0)
    with torch.no_grad():
        return np.array([-float(loss(batch)) * loss.program.sizes.cells for _ in range(n_draws)])


def standard_error(found):
    return found.std(ddof=1) / math.sqrt(len(found))


def test_one_particle_is_the_elbo(program, cells):
    """Draw by draw: the same random numbers, the same loss, at any weight of the KL."""
    batch = part(cells, slice(0, 60))
    for weight in (0.0, 0.3, 1.0):
        losses = []
        for loss in (NegativeELBO(program), NegativeIWELBO(program, particles=1)):
            pyro.set_rng_seed(0)
            with torch.no_grad():
                losses.append(float(loss(batch, weight)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_bound_rises_to_the_evidence_with_particles(distrusted):
    world, batch, program = distrusted
    evidence = world.log_evidence(batch)
    elbo = bounds(NegativeELBO(program), batch, 400)
    weighted = [bounds(NegativeIWELBO(program, particles), batch, 400) for particles in (2, 8, 64)]
    rungs = [elbo, *weighted]
    for lower, higher in pairwise(rungs):
        assert lower.mean() + 4 * math.hypot(standard_error(lower), standard_error(higher)) < higher.mean()
    assert max(found.mean() for found in rungs) < evidence + 4 * standard_error(rungs[-1])
    # With the globals at their posterior only the noise of cells is left to weigh.
    assert evidence - rungs[-1].mean() < 0.1 * (evidence - elbo.mean())


def test_weighing_does_not_forgive_wrong_globals(distrusted):
    """However many particles, the KL of the globals is left, in its closed form."""
    world, batch, _ = distrusted
    program = world.exact_program(batch)
    with torch.no_grad():
        program.proposal.direction_factor.factor.log_scale += math.log(2.0)
    gap = 2 * 3 * (0.5 * (4 - 1) - math.log(2.0))
    found = bounds(NegativeIWELBO(program, 32), batch, 400)
    assert world.log_evidence(batch) - gap - found.mean() < 0.1 * gap + 4 * standard_error(found)
    assert found.mean() < world.log_evidence(batch) - gap + 4 * standard_error(found)


def test_minibatches_of_the_weighted_bound_are_unbiased(distrusted):
    """Fewer cells, each counted more often; the globals once."""
    _, batch, program = distrusted
    whole = bounds(NegativeIWELBO(program, 4), batch, 400)
    loss = NegativeIWELBO(program, 4)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        parts = np.array(
            [
                -float(loss(part(batch, rng.choice(len(SINGLE), 8, replace=False)))) * len(SINGLE)
                for _ in range(600)
            ]
        )
    error = math.hypot(standard_error(whole), standard_error(parts))
    assert parts.mean() == pytest.approx(whole.mean(), abs=4 * error)


def test_weighted_bound_has_finite_gradients(program, cells):
    program.zero_grad()
    pyro.set_rng_seed(0)
    NegativeIWELBO(program, 5)(part(cells, slice(0, 60)), 0.5).backward()
    gradients = {name: parameter.grad for name, parameter in program.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all((gradients[name] != 0).any() for name in PARAMETERS.values())


def test_log_weights_of_more_particles_are_higher(distrusted):
    _, batch, program = distrusted
    pyro.set_rng_seed(0)
    with torch.no_grad():
        one, many = (torch.stack([log_weights(program, batch, n) for _ in range(100)]) for n in (1, 16))
    assert one.shape == many.shape == (100, len(SINGLE))
    assert (one.mean(0) < many.mean(0)).all()


@pytest.mark.parametrize("settings", [{"responders": "Dose"}, {"noise": "Mixture"}, {"noise": "Flow"}])
def test_weighted_fit(screen, settings):
    """With the warm-up, and validation by the same bound."""
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), **settings)
    model.fit(objective="iwae", particles=3, max_epochs=2, batch_size=64, progress=False)
    assert np.isfinite(model.history.to_numpy()).all()


def test_enumerated_responders_are_refused(screen):
    with pytest.raises(InputError, match=r"responders=Beta .*objective='elbo'"):
        SCCVAE(screen, n_nodes=3, responders="Beta").fit(objective="iwae", particles=4, progress=False)


def test_draws_without_gradient_are_refused(program, cells, monkeypatch):
    monkeypatch.setattr(program.proposal.graph_factor, "forward", lambda _: pyro.sample("B", _Coin()))
    with pytest.raises(InputError, match="'B' without one"):
        NegativeIWELBO(program, 2)(cells)


class _Coin(dist.Delta):
    """No edge, drawn without a gradient."""

    has_rsample = False

    def __init__(self):
        super().__init__(torch.zeros(4, 4).double(), event_dim=2)


def test_one_particle_is_refused_by_name():
    with pytest.raises(InputError, match="particles = 1: with one particle iwae is the elbo"):
        InferenceSpec.read({"objective": "iwae"})


def test_file_of_the_weighted_bound():
    spec = InferenceSpec.read(Path(__file__).parents[2] / "inference/iwae.toml")
    assert (spec.objective, spec.particles) == ("iwae", 8)
