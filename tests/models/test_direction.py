"""Direction priors: the linear one against Bayesian linear regression, the published one on the simplex."""

from dataclasses import dataclass

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from sccvae_pyro.models.direction import Linear, Simplex
from sccvae_pyro.models.slot import Perturbations, Sizes

P, E, K = 7, 3, 2
SIZES = Sizes(cells=1, genes=1, nodes=K, perturbations=P, features=E, covariates=0)
WEIGHTS = "direction_weights"


def features_of(n=P, seed=0):
    return torch.randn(n, E, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


STRENGTH = torch.linspace(0.5, 2.0, P, dtype=torch.double)


def factor_of(prior, features):
    """A guide factor whose pseudo-observations are not those of the start: other means, uneven sds."""
    factor = prior.guide(SIZES, features).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (factor.trend_ek, factor.own_pk):
            parameter.normal_(generator=generator)
        factor.log_sd_pk.normal_(-1.0, 0.7, generator=generator)
    return factor


def trace_guide(factor, features, strength=STRENGTH, seed=0, **given):
    """Trace of a guide factor, at given values."""
    pyro.set_rng_seed(seed)
    with torch.no_grad():
        conditioned = poutine.condition(factor, data=given)
        return poutine.trace(conditioned).get_trace(Perturbations.of(features).plate, strength)


def values_of(trace):
    return {name: site["value"] for name, site in trace.nodes.items() if name.startswith("direction")}


def trace_model(prior, features, values):
    """Trace of the model at given values."""
    with torch.no_grad():
        return poutine.trace(poutine.condition(prior.model, data=values)).get_trace(
            SIZES, Perturbations.of(features)
        )


def log_prob(trace, *names):
    trace.compute_log_prob()
    return sum(float(trace.nodes[name]["log_prob_sum"]) for name in names)


@dataclass(frozen=True)
class Regression:
    """One draw of the guide, and in NumPy what it ought to have been drawn from."""

    prior: Linear
    features: torch.Tensor
    guide: poutine.Trace
    values: dict
    design: np.ndarray  # perturbations x (1 + features)
    seen: np.ndarray  # perturbations x nodes, observed directions
    variance: np.ndarray  # and the variance of these observations
    weights_sd: np.ndarray  # nodes x (1 + features), prior sd of the weights
    residual_sd: np.ndarray  # nodes

    @classmethod
    def of(cls, prior, seed=0):
        features = features_of()
        factor = factor_of(prior, features)
        guide = trace_guide(factor, features, seed=seed)
        values = values_of(guide)
        design = np.column_stack([np.ones(P), features])
        own, trend, log_sd = (
            parameter.detach().numpy() for parameter in (factor.own_pk, factor.trend_ek, factor.log_sd_pk)
        )
        strength, residual_sd = STRENGTH.numpy()[:, None], values["direction_scale"].numpy()
        relative = np.outer(values["direction_signal"], values["direction_relevance"])
        return cls(
            prior=prior,
            features=features,
            guide=guide,
            values=values,
            design=design,
            seen=(design @ trend + own) / strength,
            variance=(np.exp(log_sd) / strength) ** 2,
            weights_sd=residual_sd[:, None] * np.column_stack([np.full(K, prior.intercept), relative]),
            residual_sd=residual_sd,
        )


@pytest.fixture(scope="module")
def regression():
    return Regression.of(Linear())


def test_model_is_linear_in_features(regression):
    model = trace_model(Linear(), regression.features, regression.values)
    mean = model.nodes["direction"]["fn"].base_dist.loc
    np.testing.assert_allclose(mean, regression.design @ regression.values[WEIGHTS].T.numpy())


def test_prior_of_the_weights():
    """The shared effect is as wide as declared, a feature as its relevance and the signal of the node say."""
    regression = Regression.of(Linear(intercept=4.0))
    model = trace_model(regression.prior, regression.features, regression.values)
    np.testing.assert_allclose(model.nodes[WEIGHTS]["fn"].base_dist.scale, regression.weights_sd)
    np.testing.assert_allclose(regression.weights_sd[:, 0], 4.0 * regression.residual_sd)
    np.testing.assert_allclose(
        model.nodes["direction"]["fn"].base_dist.scale, np.tile(regression.residual_sd, (P, 1))
    )


def test_weights_have_their_exact_posterior(regression):
    """Whatever the directions: the noise of an observation is the residual and its own error together."""
    found = regression.guide.nodes[WEIGHTS]["fn"].base_dist
    for k in range(K):
        weight = 1 / (regression.residual_sd[k] ** 2 + regression.variance[:, k])
        precision = (regression.design.T * weight) @ regression.design + np.diag(
            regression.weights_sd[k] ** -2.0
        )
        mean = np.linalg.solve(precision, regression.design.T @ (weight * regression.seen[:, k]))
        np.testing.assert_allclose(found.mean[k], mean, rtol=1e-8)
        np.testing.assert_allclose(found.covariance_matrix[k], np.linalg.inv(precision), rtol=1e-7)


def test_directions_have_their_exact_posterior_given_the_weights(regression):
    """A normal around the regression line meets a normal around the observation: precisions add."""
    found = regression.guide.nodes["direction"]["fn"].base_dist
    line = regression.design @ regression.values[WEIGHTS].T.numpy()
    prior, own = 1 / regression.residual_sd**2, 1 / regression.variance
    np.testing.assert_allclose(found.loc, (prior * line + own * regression.seen) / (prior + own), rtol=1e-8)
    np.testing.assert_allclose(found.scale, (prior + own) ** -0.5, rtol=1e-8)


def test_weights_and_directions_cancel_to_the_marginal_likelihood(regression):
    """log p(W) + log p(s | W) + log p(seen | s) - log q(W) - log q(s | W) is the evidence, for every draw."""
    exact = sum(
        stats.multivariate_normal(
            cov=(regression.design * regression.weights_sd[k] ** 2) @ regression.design.T
            + np.diag(regression.residual_sd[k] ** 2 + regression.variance[:, k])
        ).logpdf(regression.seen[:, k])
        for k in range(K)
    )
    factor = factor_of(Linear(), regression.features)
    outer = {name: value for name, value in regression.values.items() if name not in (WEIGHTS, "direction")}
    for seed in range(4):
        guide = trace_guide(factor, regression.features, seed=seed, **outer)
        model = trace_model(Linear(), regression.features, values_of(guide))
        error = regression.seen - values_of(guide)["direction"].numpy()
        observed = stats.norm(scale=np.sqrt(regression.variance)).logpdf(error).sum()
        gap = log_prob(model, WEIGHTS, "direction") - log_prob(guide, WEIGHTS, "direction")
        assert gap + observed == pytest.approx(exact, rel=1e-8)


def test_strength_does_not_move_a_shift_that_is_seen_well():
    """The pseudo-observation is one of the shift: a direction gives way to the strength."""
    features = features_of()
    factor = factor_of(Linear(), features)
    with torch.no_grad():
        factor.log_sd_pk.fill_(-12.0)
    shift = factor.own_pk + torch.cat([torch.ones(P, 1).double(), features], -1) @ factor.trend_ek
    for strength in (STRENGTH, 3 * STRENGTH):
        direction = values_of(trace_guide(factor, features, strength))["direction"]
        torch.testing.assert_close(strength[:, None] * direction, shift.detach(), rtol=0, atol=1e-3)


def test_where_nothing_is_seen_the_guide_is_the_prior():
    features = features_of()
    factor = factor_of(Linear(), features)
    with torch.no_grad():
        factor.log_sd_pk.fill_(12.0)
    guide = trace_guide(factor, features)
    model = trace_model(Linear(), features, values_of(guide))
    for site in (WEIGHTS, "direction"):
        assert log_prob(guide, site) == pytest.approx(log_prob(model, site), abs=1e-3)


@pytest.mark.parametrize("relevance", [1e-6, 1e3])
@pytest.mark.parametrize("log_sd", [-6.0, 6.0])
def test_regression_is_well_conditioned(relevance, log_sd):
    """Single precision, features that do not matter or all but decide: the posterior stays a distribution."""
    features = features_of().float()
    factor = Linear().guide(SIZES, features)
    with torch.no_grad():
        factor.log_sd_pk.fill_(log_sd)
    given = {"direction_relevance": torch.full((E,), relevance)}
    guide = trace_guide(factor, features, STRENGTH.float(), **given)
    found = guide.nodes[WEIGHTS]["fn"]
    assert torch.isfinite(found.mean).all()
    assert torch.isfinite(found.log_prob(found.sample()))
    assert np.isfinite(log_prob(guide, "direction"))
    # Weights without relevance stay at their prior: zero, with the prior's sd.
    if relevance < 1:
        model = trace_model(Linear(), features, values_of(guide))
        prior_sd = model.nodes[WEIGHTS]["fn"].base_dist.scale[:, 1:]
        torch.testing.assert_close(found.base_dist.variance.sqrt()[:, 1:], prior_sd, rtol=1e-3, atol=0)


def test_irrelevant_features_leave_the_shared_effect():
    """An unseen perturbation is then the mean of the seen directions, each weighed by how well it is seen."""
    features = features_of()
    factor = factor_of(Linear(intercept=3.0), features)
    with torch.no_grad():
        factor.trend_ek[1:].zero_()
    guide = trace_guide(factor, features, direction_relevance=torch.full((E,), 1e-6).double())
    weights = guide.nodes[WEIGHTS]["fn"].mean.numpy()
    unseen = np.column_stack([np.ones(4), features_of(4, seed=9)]) @ weights.T
    residual = guide.nodes["direction_scale"]["value"].numpy() ** 2
    sd, seen = factor.log_sd_pk.exp().detach().numpy(), (factor.trend_ek[0] + factor.own_pk).detach().numpy()
    strength = STRENGTH.numpy()[:, None]
    weight = 1 / (residual + (sd / strength) ** 2)
    expected = (weight * seen / strength).sum(0) / (weight.sum(0) + 1 / (9.0 * residual))
    np.testing.assert_allclose(unseen, np.broadcast_to(expected, (4, K)), rtol=1e-4)


def test_draws_are_conditioned_one_by_one():
    """Vectorised draws: each set of weights and directions belongs to its own strengths and scales."""
    features = features_of()
    factor = factor_of(Linear(), features)
    strength = torch.rand(4, P, generator=torch.Generator().manual_seed(2), dtype=torch.double) + 0.5
    with pyro.plate("draws", 4, dim=-2):
        together = trace_guide(factor, features, strength)
    weights, direction = (together.nodes[name]["fn"] for name in (WEIGHTS, "direction"))
    for s in range(4):
        own = {
            name: value[s].reshape(value.shape[2:] if value.shape[1] == 1 else value.shape[1:])
            for name, value in values_of(together).items()
        }
        alone = trace_guide(factor, features, strength[s], **own)
        expected = alone.nodes[WEIGHTS]["fn"]
        torch.testing.assert_close(weights.mean[s, 0], expected.mean)
        torch.testing.assert_close(
            weights.base_dist.covariance_matrix[s, 0], expected.base_dist.covariance_matrix
        )
        torch.testing.assert_close(direction.mean[s], alone.nodes["direction"]["fn"].mean)
        torch.testing.assert_close(direction.stddev[s], alone.nodes["direction"]["fn"].stddev)


# Simplex


def draw_simplex(features):
    return values_of(trace_guide(Simplex(hidden=5).guide(SIZES, features).double(), features))


def test_simplex_is_on_the_simplex():
    features = features_of()
    values = draw_simplex(features)
    direction = trace_model(Simplex(hidden=5), features, values).nodes["_RETURN"]["value"]
    assert direction.shape == (P, K)
    assert (direction > 0).all()
    torch.testing.assert_close(direction.sum(-1), torch.ones(P).double())


def test_simplex_is_a_function_of_the_features():
    """Same features, same direction; other features, another."""
    features = features_of()
    values = draw_simplex(features)
    twins = features[[0, 0, 1]]
    direction = trace_model(Simplex(hidden=5), twins, values).nodes["_RETURN"]["value"]
    torch.testing.assert_close(direction[0], direction[1])
    assert (direction[0] - direction[2]).abs().max() > 1e-3


def test_simplex_is_the_published_map():
    """Softmax of two hidden layers with leaky ReLU of slope 0.2."""
    features = features_of()
    values = draw_simplex(features)
    hidden = np.column_stack([np.ones(P), features])
    for layer in range(3):
        hidden = hidden @ values[f"direction_layer{layer}"].numpy()
        hidden = np.where(hidden > 0, hidden, 0.2 * hidden) if layer < 2 else hidden
    expected = np.exp(hidden) / np.exp(hidden).sum(1, keepdims=True)
    direction = trace_model(Simplex(hidden=5), features, values).nodes["_RETURN"]["value"]
    np.testing.assert_allclose(direction, expected)
