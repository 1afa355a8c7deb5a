"""Posterior families: exact posteriors, densities, shapes of draws, and what a model with one can do."""

import math

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import poutine
from torch.distributions import Normal

import sccvae_pyro as sv
from sccvae_pyro import InputError
from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.objectives import NegativeELBO
from sccvae_pyro.models.families import MOST_OF_FLOW, Factors, Flow, LowRank, OwnFactors
from sccvae_pyro.models.slot import Member

JOINT = [LowRank(rank=3), Flow(layers=3, hidden=16)]
SMALL = {"n_nodes": 3, "hidden": (8,)}
BELIEFS = [
    {},
    {"graph": "Horseshoe", "penetrance": "Guides", "direction": "Linear", "responders": "Beta"},
    {
        "graph": "SpikeSlab",
        "direction": {"name": "Simplex", "hidden": 4},
        "responders": "Dose",
        "library": "Latent",
    },
    {"graph": "LearnedOrder", "penetrance": "OnFeatures", "likelihood": "NegativeBinomialByCovariate"},
]


def named(belief):
    return "-".join(member if isinstance(member, str) else member["name"] for member in belief.values())


# An exact posterior in which directions are correlated


@pytest.fixture(scope="module")
def world():
    """Two perturbations that are mostly seen together: their directions explain one another away."""
    targets = np.array([[0, 2]] * 3 + [[1, 2]] * 3 + [[0, 1]] * 18)
    return LinearGaussian.separable(targets, 2)


@pytest.mark.parametrize(
    ("family", "rate", "n_steps"),
    [
        (Factors(), 0.05, 300),
        (LowRank(rank=3), 0.05, 700),
        pytest.param(Flow(layers=4, hidden=16), 0.02, 1500, marks=pytest.mark.slow),
    ],
    ids=["factors", "low rank", "flow"],
)
def test_sds_of_correlated_directions(world, family, rate, n_steps):
    """Independent factors have the sd of a direction *given* the others, joint families its own."""
    batch = world.draw()
    pyro.set_rng_seed(0)
    program = world.program(posterior=family)
    loss = NegativeELBO(program, particles=2)
    optimiser = torch.optim.Adam(program.proposal.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=n_steps)
    for _ in range(n_steps):
        optimiser.zero_grad()
        loss(batch).backward()
        optimiser.step()
        schedule.step()
    direction = posterior.draw(program, 2000, seed=0).values["direction"].numpy()
    mean, covariance = world.direction_posterior(batch)
    sd = np.sqrt(np.diag(covariance)).reshape(mean.shape)
    given_others = 1 / np.sqrt(np.diag(np.linalg.inv(covariance))).reshape(mean.shape)
    assert (given_others / sd).max() < 0.65
    ratio = direction.std(0) / (given_others if family == Factors() else sd)
    assert np.abs(ratio - 1).max() < 0.1, ratio
    assert np.abs((direction.mean(0) - mean) / sd).max() < 0.25


# Density


def test_density_is_a_change_of_variables(screen):
    """With nothing in common, a normal of the logarithms is a log-normal; edges are normal as they are."""
    program = sv.SCCVAE(screen, **SMALL, posterior=LowRank(rank=2)).program
    with torch.no_grad():
        program.proposal.joint.factor_dr.zero_()
        pyro.set_rng_seed(0)
        trace = poutine.trace(program.guide_globals).get_trace()
        joint = program.proposal.joint
        position, expected = 0, 0.0
        for name, site in program.proposal.prototype_trace.iter_stochastic_nodes():
            value = trace.nodes[name]["value"]
            if name == "B":
                flat = value[torch.ones(3, 3).triu(1).bool()]
            elif name in ("direction_function_weights", "direction"):
                flat = value.reshape(-1)
            else:
                assert site["fn"].support.check(-value.abs()).logical_not().all()
                flat = value.log().reshape(-1)
                expected -= float(flat.sum())
            here = slice(position, position + len(flat))
            normal = Normal(joint.loc[here], joint.log_sd[here].exp())
            expected += float(normal.log_prob(flat).sum())
            position += len(flat)
        found = float(trace.log_prob_sum())
    assert position == len(joint.loc)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_joint_family_starts_where_the_factors_do(screen):
    of_factors = sv.SCCVAE(screen, **SMALL).program
    joint = sv.SCCVAE(screen, **SMALL, posterior="LowRank").program
    for name, value in posterior.draw(of_factors, 400, seed=0).values.items():
        error = posterior.draw(joint, 400, seed=1).values[name].mean(0) - value.mean(0)
        # Starts are means of 100 draws, compared with 400 of each.
        assert (error.abs() <= 6 * value.std(0) * math.sqrt(1 / 100 + 2 / 400)).all(), name


# The mechanics


@pytest.mark.parametrize("family", JOINT, ids=["low rank", "flow"])
@pytest.mark.parametrize("beliefs", BELIEFS, ids=named)
def test_draws_have_the_shapes_of_the_factors(screen, beliefs, family):
    expected = posterior.draw(sv.SCCVAE(screen, **SMALL, **beliefs).program, 5, seed=0)
    program = sv.SCCVAE(screen, **SMALL, **beliefs, posterior=family).program
    draws = posterior.draw(program, 5, seed=0)
    assert {name: value.shape for name, value in draws.values.items()} == {
        name: value.shape for name, value in expected.values.items()
    }
    assert draws.B.shape == expected.B.shape and draws.action_pa.shape == expected.action_pa.shape
    assert not torch.linalg.matrix_power(draws.B, 3).any()  # a DAG of three nodes has no path of three edges
    assert (draws.action_pa.std(0) > 0).all()


@pytest.mark.parametrize("family", JOINT, ids=["low rank", "flow"])
@pytest.mark.parametrize("beliefs", BELIEFS, ids=named)
def test_gradients_reach_every_parameter(screen, beliefs, family):
    model = sv.SCCVAE(screen, **SMALL, **beliefs, posterior=family)
    program = model.program
    pyro.set_rng_seed(0)
    loss = NegativeELBO(program)
    optimiser = torch.optim.SGD(program.proposal.parameters(), lr=1e-3)
    reached = {name: False for name, _ in program.proposal.named_parameters()}
    for _ in range(2):  # the last weights of a coupling are zero at first, and stop what lies behind
        optimiser.zero_grad()
        loss(model._screen[np.arange(len(model._screen))]).backward()
        for name, parameter in program.proposal.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
            reached[name] |= bool(parameter.grad.any())
        optimiser.step()
    assert all(reached.values()), reached
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("family", JOINT, ids=["low rank", "flow"])
def test_a_model_is_fitted_saved_and_asked(screen, tmp_path, family):
    model = sv.SCCVAE(screen, **SMALL, posterior=family)
    before = {name: value.clone() for name, value in model.program.proposal.named_parameters()}
    model.fit(max_epochs=1, batch_size=64, progress=False)
    assert all((value != before[name]).any() for name, value in model.program.proposal.named_parameters())
    model.save(tmp_path / "model")
    loaded = sv.SCCVAE.load(tmp_path / "model")
    assert loaded.priors.posterior == family
    labels = list(model.coding.perturbations[:2])
    found, expected = (m.predict(labels, n_samples=10).layers["delta"] for m in (loaded, model))
    np.testing.assert_array_equal(found, expected)
    assert not list(pyro.get_param_store().keys())


def test_importance_weights_take_a_joint_family(screen):
    model = sv.SCCVAE(screen, **SMALL, posterior="LowRank")
    model.fit("inference/iwae.toml", max_epochs=1, batch_size=64, progress=False)
    assert np.isfinite(model.history.to_numpy()).all()


def test_factors_are_the_default_and_taken_as_they_are(screen):
    program = sv.SCCVAE(screen, **SMALL).program
    assert program.priors.posterior == Factors()
    assert isinstance(program.proposal, OwnFactors)
    assert Factors().module(program.proposal, program.globals_, program.guide_globals) is program.proposal


# What is refused


def test_a_flow_of_many_values_is_refused(screen):
    with pytest.raises(InputError, match=rf"2 to {MOST_OF_FLOW} values.* have \d{{4}}.*LowRank"):
        sv.SCCVAE(screen, n_nodes=50, hidden=(8,), posterior="Flow")


@pytest.mark.parametrize(
    "wrong",
    [{"name": "LowRank", "rank": 0}, {"name": "LowRank", "rank": 1.5}, {"name": "Flow", "layers": -1}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError, match=list(wrong)[1]):
        sv.models.families.PosteriorFamily.from_dict(wrong)


def test_catalogue_is_complete():
    assert {"Factors", *(type(family).__name__ for family in JOINT)} == set(Member.registry["posterior"])
