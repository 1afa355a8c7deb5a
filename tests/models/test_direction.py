"""Direction priors: the linear one against Bayesian linear regression, the published one on the simplex."""

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


def draw_guide(prior, features, seed=0):
    """Values of all sites from the guide factor, and its trace."""
    pyro.set_rng_seed(seed)
    factor = prior.guide(SIZES, features).double()
    with torch.no_grad():
        trace = poutine.trace(factor).get_trace(Perturbations.of(features).plate)
    return values_of(trace), trace


def values_of(trace):
    return {name: site["value"] for name, site in trace.nodes.items() if name.startswith("direction")}


def trace_model(prior, features, values):
    """Trace of the model at given values."""
    with torch.no_grad():
        return poutine.trace(poutine.condition(prior.model, data=values)).get_trace(
            SIZES, Perturbations.of(features)
        )


def log_prob(trace, name):
    trace.compute_log_prob()
    return float(trace.nodes[name]["log_prob_sum"])


@pytest.fixture
def regression():
    """Features, drawn sites, and the regression that they define: design, prior sd of weights, noise sd."""
    features = features_of()
    values, guide = draw_guide(Linear(), features)
    model = trace_model(Linear(), features, values)
    prior_sd = model.nodes[WEIGHTS]["fn"].base_dist.scale.numpy()
    noise_sd = model.nodes["direction"]["fn"].base_dist.scale.numpy()[0]
    design = np.column_stack([np.ones(P), features.numpy()])
    return features, values, guide, design, prior_sd, noise_sd


def test_model_is_linear_in_features(regression):
    features, values, _, design, _, _ = regression
    model = trace_model(Linear(), features, values)
    mean = model.nodes["direction"]["fn"].base_dist.loc
    np.testing.assert_allclose(mean, design @ values[WEIGHTS].T.numpy())


def test_shared_effect_has_a_wide_prior_of_its_own():
    """The first weight is the effect that all perturbations share: as wide as declared, in residuals."""
    features = features_of()
    values, _ = draw_guide(Linear(intercept=4.0), features)
    model = trace_model(Linear(intercept=4.0), features, values)
    noise_sd = model.nodes["direction"]["fn"].base_dist.scale[0]
    torch.testing.assert_close(model.nodes[WEIGHTS]["fn"].base_dist.scale[:, 0], 4.0 * noise_sd)


def test_guide_has_the_exact_posterior_of_the_weights(regression):
    _, values, guide, design, prior_sd, noise_sd = regression
    found = guide.nodes[WEIGHTS]["fn"].base_dist
    for k in range(K):
        precision = design.T @ design / noise_sd[k] ** 2 + np.diag(prior_sd[k] ** -2.0)
        mean = np.linalg.solve(precision, design.T @ values["direction"][:, k].numpy() / noise_sd[k] ** 2)
        np.testing.assert_allclose(found.mean[k], mean, rtol=1e-8)
        np.testing.assert_allclose(found.covariance_matrix[k], np.linalg.inv(precision), rtol=1e-7)


def test_weights_cancel_to_the_marginal_likelihood(regression):
    """log p(direction | W) + log p(W) - log q(W | direction) is the same for every W."""
    features, values, guide, design, prior_sd, noise_sd = regression
    exact = sum(
        stats.multivariate_normal(
            cov=noise_sd[k] ** 2 * np.eye(P) + (design * prior_sd[k] ** 2) @ design.T
        ).logpdf(values["direction"][:, k].numpy())
        for k in range(K)
    )
    posterior = guide.nodes[WEIGHTS]["fn"]
    zero = torch.zeros_like(values[WEIGHTS])
    for weights in (values[WEIGHTS], posterior.sample(), zero, zero + 1):
        model = trace_model(Linear(), features, {**values, WEIGHTS: weights})
        contribution = log_prob(model, "direction") + log_prob(model, WEIGHTS)
        contribution -= float(posterior.log_prob(weights))
        assert contribution == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("relevance", [1e-6, 1e3])
def test_regression_is_well_conditioned(relevance):
    """Single precision, features that do not matter or all but decide: the posterior stays a distribution."""
    features = features_of().float()
    factor = Linear().guide(SIZES, features)
    values = {"direction_relevance": torch.full((E,), relevance)}
    trace = poutine.trace(poutine.condition(factor, data=values)).get_trace(Perturbations.of(features).plate)
    found = trace.nodes[WEIGHTS]["fn"]
    assert torch.isfinite(found.mean).all()
    assert torch.isfinite(found.log_prob(found.sample()))
    # Weights without relevance stay at their prior: zero, with the prior's sd.
    if relevance < 1:
        model = trace_model(Linear(), features, values_of(trace))
        prior_sd = model.nodes[WEIGHTS]["fn"].base_dist.scale[:, 1:]
        torch.testing.assert_close(found.base_dist.variance.sqrt()[:, 1:], prior_sd, rtol=1e-3, atol=0)


def test_irrelevant_features_leave_the_shared_effect():
    """An unseen perturbation is then the mean of the seen directions, up to the intercept's shrinkage."""
    features = features_of()
    values, _ = draw_guide(Linear(intercept=3.0), features)
    given = {**values, "direction_relevance": torch.full((E,), 1e-6).double()}
    del given[WEIGHTS]
    factor = Linear(intercept=3.0).guide(SIZES, features).double()
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(factor, data=given)).get_trace(
            Perturbations.of(features).plate
        )
    weights = trace.nodes[WEIGHTS]["fn"].mean
    unseen = np.column_stack([np.ones(4), features_of(4, seed=9)]) @ weights.T.numpy()
    shrinkage = P / (P + 3.0**-2)
    expected = shrinkage * values["direction"].mean(0).numpy()
    np.testing.assert_allclose(unseen, np.broadcast_to(expected, (4, K)), rtol=1e-4)


def test_draws_are_conditioned_one_by_one():
    """Vectorised draws: each set of weights belongs to its own directions."""
    features = features_of()
    factor = Linear().guide(SIZES, features).double()
    pyro.set_rng_seed(1)
    with torch.no_grad(), pyro.plate("draws", 4, dim=-2):
        together = poutine.trace(factor).get_trace(Perturbations.of(features).plate)
    found = together.nodes[WEIGHTS]["fn"].mean.reshape(4, K, 1 + E)
    for s in range(4):
        own = {
            name: value[s].reshape(value.shape[2:] if value.shape[1] == 1 else value.shape[1:])
            for name, value in values_of(together).items()
            if name != WEIGHTS
        }
        with torch.no_grad():
            alone = poutine.trace(poutine.condition(factor, data=own)).get_trace(
                Perturbations.of(features).plate
            )
        torch.testing.assert_close(found[s], alone.nodes[WEIGHTS]["fn"].mean)


# Simplex


def test_simplex_is_on_the_simplex():
    features = features_of()
    values, _ = draw_guide(Simplex(hidden=5), features)
    direction = trace_model(Simplex(hidden=5), features, values).nodes["_RETURN"]["value"]
    assert direction.shape == (P, K)
    assert (direction > 0).all()
    torch.testing.assert_close(direction.sum(-1), torch.ones(P).double())


def test_simplex_is_a_function_of_the_features():
    """Same features, same direction; other features, another."""
    features = features_of()
    values, _ = draw_guide(Simplex(hidden=5), features)
    twins = features[[0, 0, 1]]
    direction = trace_model(Simplex(hidden=5), twins, values).nodes["_RETURN"]["value"]
    torch.testing.assert_close(direction[0], direction[1])
    assert (direction[0] - direction[2]).abs().max() > 1e-3


def test_simplex_is_the_published_map():
    """Softmax of two hidden layers with leaky ReLU of slope 0.2."""
    features = features_of()
    values, _ = draw_guide(Simplex(hidden=5), features)
    hidden = np.column_stack([np.ones(P), features])
    for layer in range(3):
        hidden = hidden @ values[f"direction_layer{layer}"].numpy()
        hidden = np.where(hidden > 0, hidden, 0.2 * hidden) if layer < 2 else hidden
    expected = np.exp(hidden) / np.exp(hidden).sum(1, keepdims=True)
    direction = trace_model(Simplex(hidden=5), features, values).nodes["_RETURN"]["value"]
    np.testing.assert_allclose(direction, expected)
