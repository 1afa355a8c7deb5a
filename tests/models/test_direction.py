"""Direction priors: linear ones against Bayesian linear regression, the published one on the simplex."""

from dataclasses import dataclass

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats

from sccvae_pyro import InputError
from sccvae_pyro.models.basis import KernelBasis
from sccvae_pyro.models.direction import GaussianProcess, Linear, Simplex, SparseLinear
from sccvae_pyro.models.regression import orthogonal_posterior, weights_posterior
from sccvae_pyro.models.scm import propagate
from sccvae_pyro.models.slot import Described, Given, Perturbations, Sizes

P, E, K = 7, 3, 2
SIZES = Sizes(cells=1, genes=1, nodes=K, perturbations=P, features=E, covariates=0)
WEIGHTS, FUNCTION_WEIGHTS = "direction_weights", "direction_function_weights"


def features_of(n=P, seed=0):
    return torch.randn(n, E, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


LINEAR, SPARSE = Linear(), SparseLinear(slab=1.5)
STRENGTH = torch.linspace(0.5, 2.0, P, dtype=torch.double)
NO_EDGES = torch.zeros(K, K, dtype=torch.double)
EDGES = torch.linspace(-0.9, 0.6, K * K, dtype=torch.double).reshape(K, K).triu(1)


def factor_of(prior, features):
    """A guide factor whose pseudo-observations are not those of the start: other means, uneven sds."""
    factor = prior.guide(SIZES, features).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (factor.trend_ek, factor.own_pk):
            parameter.normal_(generator=generator)
        factor.log_sd_pk.normal_(-1.0, 0.7, generator=generator)
    return factor


def described(features, prior):
    """Perturbations of these features, which are also the seen ones."""
    return Perturbations.of(Described(features, prior.basis(features)(features)))


def trace_guide(factor, features, strength=STRENGTH, seed=0, prior=LINEAR, B=NO_EDGES, **values):
    """Trace of a guide factor, at given values."""
    pyro.set_rng_seed(seed)
    with torch.no_grad():
        conditioned = poutine.condition(factor, data=values)
        given = Given(strength, B.to(features.dtype))
        return poutine.trace(conditioned).get_trace(described(features, prior), given)


def values_of(trace):
    return {name: site["value"] for name, site in trace.nodes.items() if name.startswith("direction")}


def trace_model(prior, features, values):
    """Trace of the model at given values."""
    with torch.no_grad():
        return poutine.trace(poutine.condition(prior.model, data=values)).get_trace(
            SIZES, described(features, prior)
        )


def log_prob(trace, *names):
    trace.compute_log_prob()
    return sum(float(trace.nodes[name]["log_prob_sum"]) for name in names)


@dataclass(frozen=True)
class Regression:
    """One draw of the guide, and in NumPy what it ought to have been drawn from."""

    prior: Linear | SparseLinear
    features: torch.Tensor
    guide: poutine.Trace
    values: dict
    design: np.ndarray  # perturbations x (1 + features), as the prior takes them
    seen: np.ndarray  # perturbations x nodes, observed directions
    variance: np.ndarray  # and the variance of these observations
    weights_sd: np.ndarray  # nodes x (1 + features), prior sd of the weights
    residual_sd: np.ndarray  # nodes

    @classmethod
    def of(cls, prior, seed=0):
        features = features_of()
        factor = factor_of(prior, features)
        guide = trace_guide(factor, features, seed=seed, prior=prior, B=EDGES)
        values = values_of(guide)
        own, trend, log_sd = (
            parameter.detach().numpy() for parameter in (factor.own_pk, factor.trend_ek, factor.log_sd_pk)
        )
        strength, residual_sd = STRENGTH.numpy()[:, None], values["direction_scale"].numpy()
        taken, relative = written_out(prior, features.numpy(), values)
        return cls(
            prior=prior,
            features=features,
            guide=guide,
            values=values,
            design=np.column_stack([np.ones(P), taken]),
            seen=(np.column_stack([np.ones(P), features]) @ trend + own)
            @ (np.eye(K) - EDGES.numpy())
            / strength,
            variance=(np.exp(log_sd) / strength) ** 2,
            weights_sd=residual_sd[:, None] * np.column_stack([np.full(K, prior.intercept), relative]),
            residual_sd=residual_sd,
        )


def written_out(prior, features, values):
    """Features as the prior takes them, and prior sd of their weights in units of the residual."""
    if isinstance(prior, Linear):
        return features, np.outer(values["direction_signal"], values["direction_relevance"])
    free = (values["direction_global_scale"][:, None] * values["direction_local_scale"]).numpy()
    return features / features.std(0), np.sqrt(prior.slab**2 * free**2 / (prior.slab**2 + free**2))


@pytest.fixture(scope="module", params=[LINEAR, SPARSE], ids=["Linear", "SparseLinear"])
def regression(request):
    return Regression.of(request.param)


def test_model_is_linear_in_features(regression):
    model = trace_model(regression.prior, regression.features, regression.values)
    mean = model.nodes["direction"]["fn"].base_dist.loc
    np.testing.assert_allclose(mean, regression.design @ regression.values[WEIGHTS].T.numpy())


@pytest.mark.parametrize("prior", [Linear(intercept=4.0), SparseLinear(intercept=4.0)], ids=repr)
def test_prior_of_the_weights(prior):
    """The shared effect is as wide as declared, a feature as relevances or local scales say."""
    regression = Regression.of(prior)
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
    prior = regression.prior
    factor = factor_of(prior, regression.features)
    outer = {name: value for name, value in regression.values.items() if name not in (WEIGHTS, "direction")}
    for seed in range(4):
        guide = trace_guide(factor, regression.features, seed=seed, prior=prior, B=EDGES, **outer)
        model = trace_model(prior, regression.features, values_of(guide))
        error = regression.seen - values_of(guide)["direction"].numpy()
        observed = stats.norm(scale=np.sqrt(regression.variance)).logpdf(error).sum()
        gap = log_prob(model, WEIGHTS, "direction") - log_prob(guide, WEIGHTS, "direction")
        assert gap + observed == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("B", [NO_EDGES, EDGES, -EDGES], ids=["no edges", "edges", "other edges"])
def test_neither_strength_nor_graph_moves_a_state_that_is_seen_well(B):
    """What is seen is where a perturbation takes the state: the direction gives way to both."""
    features = features_of()
    factor = factor_of(Linear(), features)
    with torch.no_grad():
        factor.log_sd_pk.fill_(-12.0)
    state = factor.own_pk + torch.cat([torch.ones(P, 1).double(), features], -1) @ factor.trend_ek
    for strength in (STRENGTH, 3 * STRENGTH):
        direction = values_of(trace_guide(factor, features, strength, B=B))["direction"]
        found = propagate(strength[:, None] * direction, B)
        torch.testing.assert_close(found, state.detach(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("prior", [LINEAR, SPARSE], ids=["Linear", "SparseLinear"])
def test_where_nothing_is_seen_the_guide_is_the_prior(prior):
    features = features_of()
    factor = factor_of(prior, features)
    with torch.no_grad():
        factor.log_sd_pk.fill_(12.0)
    guide = trace_guide(factor, features, prior=prior)
    model = trace_model(prior, features, values_of(guide))
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


@pytest.mark.parametrize(
    ("prior", "shrunk"),
    [
        (Linear(intercept=3.0), {"direction_relevance": torch.full((E,), 1e-6).double()}),
        (SparseLinear(intercept=3.0), {"direction_local_scale": torch.full((K, E), 1e-6).double()}),
    ],
    ids=["Linear", "SparseLinear"],
)
def test_irrelevant_features_leave_the_shared_effect(prior, shrunk):
    """An unseen perturbation is then the mean of the seen directions, each weighed by how well it is seen."""
    features = features_of()
    factor = factor_of(prior, features)
    with torch.no_grad():
        factor.trend_ek[1:].zero_()
    guide = trace_guide(factor, features, prior=prior, **shrunk)
    weights = guide.nodes[WEIGHTS]["fn"].mean.numpy()
    unseen = np.column_stack([np.ones(4), features_of(4, seed=9)]) @ weights.T
    residual = guide.nodes["direction_scale"]["value"].numpy() ** 2
    sd, seen = factor.log_sd_pk.exp().detach().numpy(), (factor.trend_ek[0] + factor.own_pk).detach().numpy()
    strength = STRENGTH.numpy()[:, None]
    weight = 1 / (residual + (sd / strength) ** 2)
    expected = (weight * seen / strength).sum(0) / (weight.sum(0) + 1 / (9.0 * residual))
    np.testing.assert_allclose(unseen, np.broadcast_to(expected, (4, K)), rtol=1e-4)


@pytest.mark.parametrize("prior", [LINEAR, SPARSE], ids=["Linear", "SparseLinear"])
def test_draws_are_conditioned_one_by_one(prior):
    """Vectorised draws: each set of weights and directions belongs to its own strengths and scales."""
    features = features_of()
    factor = factor_of(prior, features)
    strength = torch.rand(4, P, generator=torch.Generator().manual_seed(2), dtype=torch.double) + 0.5
    with pyro.plate("draws", 4, dim=-2):
        together = trace_guide(factor, features, strength, prior=prior)
    weights, direction = (together.nodes[name]["fn"] for name in (WEIGHTS, "direction"))
    for s in range(4):
        own = {
            name: value[s].reshape(value.shape[2:] if value.shape[1] == 1 else value.shape[1:])
            for name, value in values_of(together).items()
        }
        alone = trace_guide(factor, features, strength[s], prior=prior, **own)
        expected = alone.nodes[WEIGHTS]["fn"]
        torch.testing.assert_close(weights.mean[s, 0], expected.mean)
        torch.testing.assert_close(
            weights.base_dist.covariance_matrix[s, 0], expected.base_dist.covariance_matrix
        )
        torch.testing.assert_close(direction.mean[s], alone.nodes["direction"]["fn"].mean)
        torch.testing.assert_close(direction.stddev[s], alone.nodes["direction"]["fn"].stddev)


# Sparse weights


def test_sparse_weights_know_no_units():
    """A feature in other units has the same standardised values, for seen and unseen perturbations."""
    features, units = features_of(), torch.tensor([1e-3, 1.0, 50.0]).double()
    new = features_of(4, seed=9)
    functions, missed = SPARSE.basis(features * units)(new * units)
    torch.testing.assert_close(functions, SPARSE.basis(features)(new).functions_pb)
    assert (missed == 0).all()
    constant = torch.ones(P, 1).double()
    torch.testing.assert_close(SPARSE.basis(constant)(constant).functions_pb[:, 1:], constant)


@pytest.mark.parametrize(("expected", "n_features"), [(1, 40), (5, 40), (1, 400)])
def test_as_many_features_as_expected_escape(expected, n_features):
    """Told apart by the data of P perturbations: mean share of least squares that is kept, over the prior.

    With weights seen as well as P perturbations show them and no slab, the mean number of features that are
    not shrunk is that expected (Piironen & Vehtari 2017, section 3.3), at the typical global scale.
    """
    sizes = Sizes(1, 1, nodes=1, perturbations=50, features=n_features, covariates=0)
    typical = SparseLinear(expected_features=expected).typical(sizes)
    local = stats.halfcauchy.ppf((np.arange(100_000) + 0.5) / 100_000)
    kept = (typical * local) ** 2 / ((typical * local) ** 2 + 1 / 50)
    assert n_features * kept.mean() == pytest.approx(expected, rel=0.01)


def test_sparse_weights_start_with_room_to_move():
    """However strong the shrinkage that the prior expects: else weights never feel the data."""
    for cells in (10, 100_000):
        sizes = Sizes(1, 1, nodes=200, perturbations=cells, features=E, covariates=0)
        with torch.no_grad():
            width = SparseLinear(slab=1.0).width_factor(sizes)()
        assert float(width.median()) == pytest.approx(0.1, rel=0.1)


def test_fewer_features_must_matter_than_there_are():
    with pytest.raises(
        InputError, match=r"(?s)expected_features must be fewer than the 3 there are, not 3.*Linear"
    ):
        SparseLinear(expected_features=3).guide(SIZES, features_of())


def seen_world(seed, weights_ek):
    """Directions of 40 seen perturbations with a residual of 0.3, and those of 200 unseen without."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(240, len(weights_ek)))
    mean = 0.3 * features @ weights_ek
    seen = mean[:40] + 0.3 * rng.normal(size=(40, weights_ek.shape[1]))
    features = torch.tensor(features / np.sqrt(len(weights_ek)), dtype=torch.float)
    return features[:40], features[40:], torch.tensor(seen, dtype=torch.float), mean[40:]


def learn_scales(prior, features, seen, error=0.05, n_steps=200):
    """Fit the guide's scales to directions seen with a small error; posterior mean of the weights."""
    pyro.set_rng_seed(0)
    sizes = Sizes(1, 1, seen.shape[1], *features.shape, covariates=0)
    factor, ones = prior.guide(sizes, features), torch.ones(len(seen))
    with torch.no_grad():
        factor.own_pk.copy_(seen)
        factor.log_sd_pk.fill_(np.log(error))

    def model():
        perturbations = described(features, prior)
        direction_pk = prior.model(sizes, perturbations)
        with perturbations.plate:
            pyro.sample("seen", pyro.distributions.Normal(direction_pk, error).to_event(1), obs=seen)

    def guide():
        factor(described(features, prior), Given(ones, torch.zeros(seen.shape[1], seen.shape[1])))

    scales = [value for name, value in factor.named_parameters() if not name.endswith(("_pk", "_ek"))]
    optimiser = torch.optim.Adam(scales, lr=0.1)
    with pyro.validation_enabled(False):
        for _ in range(n_steps):
            optimiser.zero_grad()
            Trace_ELBO().differentiable_loss(model, guide).backward()
            optimiser.step()
    means = [
        trace_guide(factor, features, ones, seed=s, prior=prior).nodes[WEIGHTS]["fn"].mean for s in range(20)
    ]
    return torch.stack(means).mean(0)


def unseen_error(prior, seed, weights_ek):
    features, new, seen, truth = seen_world(seed, weights_ek)
    weights = learn_scales(prior, features, seen)
    found = (prior.basis(features)(new).functions_pb @ weights.T).numpy()
    return np.square(found - truth).mean() / 0.3**2


@pytest.mark.slow
def test_each_linear_prior_is_better_where_it_holds():
    """Two of 20 features for each node, or all of them: error of unseen directions over four seeds."""
    sparse, dense = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(20, 6)) * np.sqrt(0.1)
        dense.append([unseen_error(prior, seed, weights) for prior in (LINEAR, SparseLinear())])
        rank = rng.random(weights.shape).argsort(0)
        weights = np.where(rank < 2, np.sign(weights), 0.0)
        sparse.append([unseen_error(prior, seed, weights) for prior in (LINEAR, SparseLinear())])
    linear, shrunk = np.mean(sparse, axis=0)
    assert shrunk < 0.7 * linear
    linear, shrunk = np.mean(dense, axis=0)
    assert linear < shrunk


def density_of_scales(prior, scale, signal):
    """Log density of the residual scales and of the signals of the nodes."""
    return stats.lognorm(s=1, scale=prior.scale).logpdf(scale).sum() + stats.lognorm(s=1).logpdf(signal).sum()


def density_of_widths(prior, values):
    """Log density of the residual scales, and of all that the widths of the weights are made of."""
    names = ("signal", "relevance") if prior == LINEAR else ("global_scale", "local_scale")
    scale, node, entry = (values[f"direction_{name}"].numpy() for name in ("scale", *names))
    if prior == LINEAR:
        return density_of_scales(prior, scale, node) + stats.halfcauchy.logpdf(entry).sum()
    of_nodes = stats.halfcauchy(scale=1 / (E - 1) / np.sqrt(P)).logpdf(node).sum()
    of_scales = stats.lognorm(s=1, scale=prior.scale).logpdf(scale).sum()
    return of_scales + of_nodes + stats.halfcauchy.logpdf(entry).sum()


def test_density_of_a_linear_map(regression):
    """Of the whole prior, at a draw of the guide."""
    weights, direction = (regression.values[name].numpy() for name in (WEIGHTS, "direction"))
    expected = density_of_widths(regression.prior, regression.values)
    expected += stats.norm(scale=regression.weights_sd).logpdf(weights).sum()
    expected += stats.norm(regression.design @ weights.T, regression.residual_sd).logpdf(direction).sum()
    model = trace_model(regression.prior, regression.features, regression.values)
    assert float(model.log_prob_sum()) == pytest.approx(expected, rel=1e-8)


# Gaussian process

GP = GaussianProcess(length=1.0, intercept=4.0)


def kernel_of(rows, seen, length=1.0):
    """The rational quadratic kernel, written out."""
    within, across = (np.square(x[:, None] - seen[None]).sum(-1) for x in (seen, rows))
    return 1 / (1 + 0.5 * across / (length**2 * np.median(within[within > 0])))


def test_functions_of_the_kernel_give_it_back_centred():
    """Their inner products are the kernel of f less its mean over the seen perturbations."""
    features = features_of().numpy()
    functions, missed = KernelBasis(features_of(), 1.0, 100)(features_of())
    assert (functions[:, 0] == 1).all()
    centre = np.eye(P) - 1 / P
    gram = (functions[:, 1:] @ functions[:, 1:].T).numpy()
    np.testing.assert_allclose(gram, centre @ kernel_of(features, features) @ centre, atol=1e-3)
    np.testing.assert_allclose(missed, 0, atol=1e-3)


def test_functions_are_orthogonal_over_the_seen():
    for landmarks in (100, 4):
        functions, _ = KernelBasis(features_of(), 1.0, landmarks)(features_of())
        gram = functions.T @ functions
        torch.testing.assert_close(gram, gram.diag().diag(), atol=1e-10, rtol=0)


def test_missed_is_the_variance_that_landmarks_leave():
    """The conditional variance of a process at a new gene given its values at the seen ones."""
    seen, new = features_of(), features_of(5, seed=4)
    _, missed = KernelBasis(seen, 1.0, 100)(new)
    across = kernel_of(new.numpy(), seen.numpy())
    within = kernel_of(seen.numpy(), seen.numpy()) + 1e-4 * np.eye(P)
    expected = 1 - np.einsum("np,pq,nq->n", across, np.linalg.inv(within), across)
    np.testing.assert_allclose(missed, expected, atol=1e-8)


def test_weights_of_orthogonal_functions_are_exact_where_all_are_seen_equally():
    functions, _ = KernelBasis(features_of(), 1.0, 100)(features_of())
    generator = torch.Generator().manual_seed(2)
    seen = torch.randn(P, K, generator=generator, dtype=torch.double)
    variance = torch.tensor([0.3, 1.2], dtype=torch.double).expand(P, K)
    sd = 0.2 + torch.rand(K, functions.shape[-1], generator=generator, dtype=torch.double)
    exact = weights_posterior(functions, seen, variance, sd)
    found = orthogonal_posterior(functions, seen, variance, sd)
    torch.testing.assert_close(found.mean, exact.mean)
    torch.testing.assert_close(found.variance, exact.base_dist.variance)


def test_an_unseen_gene_is_predicted_as_by_a_process_regression():
    """Mean and variance against the closed form of the centred process with a constant."""
    features, new = features_of(), features_of(5, seed=4)
    factor = factor_of(GP, features)
    with torch.no_grad():
        factor.log_sd_pk.fill_(-1.0)
    ones = torch.ones(P, dtype=torch.double)
    guide = trace_guide(factor, features, ones, prior=GP)
    values = values_of(guide)
    basis = GP.basis(features)
    functions = basis(new).functions_pb.numpy()
    seen_functions = basis(features).functions_pb.numpy()
    trend, own = factor.trend_ek.detach().numpy(), factor.own_pk.detach().numpy()
    seen = np.column_stack([np.ones(P), features]) @ trend + own
    found = guide.nodes[FUNCTION_WEIGHTS]["fn"]
    for k in range(K):
        residual = float(values["direction_scale"][k]) ** 2
        width = np.r_[GP.intercept, np.full(P, float(values["direction_signal"][k]))]
        prior = residual * (seen_functions * width**2) @ seen_functions.T
        noise = residual * (1 + float(values["direction_signal"][k]) ** 2 * basis(features).missed_p.numpy())
        total = prior + np.diag(np.full(P, 1 / np.mean(1 / (noise + np.exp(-2.0)))))
        across = residual * (functions * width**2) @ seen_functions.T
        mean = across @ np.linalg.solve(total, seen[:, k])
        within = residual * np.einsum("nb,b->n", functions**2, width**2)
        variance = within - np.einsum("np,pq,nq->n", across, np.linalg.inv(total), across)
        np.testing.assert_allclose(functions @ found.mean[k].numpy(), mean, rtol=1e-6)
        np.testing.assert_allclose(functions**2 @ found.variance[k].numpy(), variance, rtol=1e-6)


def test_a_gene_unlike_all_seen_ones_is_uncertain():
    """All that the process could have said about it joins its residual."""
    features = features_of()
    values = values_of(trace_guide(factor_of(GP, features), features, prior=GP))
    population = {name: value for name, value in values.items() if name != "direction"}
    far = Described(features[:1] + 1e6, GP.basis(features)(features[:1] + 1e6))
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(GP.model, data=population)).get_trace(
            SIZES, Perturbations.of(far)
        )
    sd = trace.nodes["direction"]["fn"].base_dist.scale[0]
    torch.testing.assert_close(sd, values["direction_scale"] * (1 + values["direction_signal"] ** 2).sqrt())


def test_features_that_do_not_differ_leave_the_shared_effect():
    features = torch.ones(P, E, dtype=torch.double)
    functions, _ = GP.basis(features)(features)
    torch.testing.assert_close(functions[:, 1:], torch.zeros(P, P).double(), atol=1e-8, rtol=0)


def test_draws_of_a_process_are_conditioned_one_by_one():
    features = features_of()
    factor = factor_of(GP, features)
    strength = torch.rand(4, P, generator=torch.Generator().manual_seed(2), dtype=torch.double) + 0.5
    with pyro.plate("draws", 4, dim=-2):
        together = trace_guide(factor, features, strength, prior=GP)
    for s in range(4):
        own = {
            name: value[s].reshape(value.shape[2:] if value.shape[1] == 1 else value.shape[1:])
            for name, value in values_of(together).items()
        }
        alone = trace_guide(factor, features, strength[s], prior=GP, **own)
        found, expected = together.nodes[FUNCTION_WEIGHTS]["fn"], alone.nodes[FUNCTION_WEIGHTS]["fn"]
        torch.testing.assert_close(found.mean[s, 0], expected.mean)
        torch.testing.assert_close(found.stddev[s, 0], expected.stddev)
        found, expected = together.nodes["direction"]["fn"], alone.nodes["direction"]["fn"]
        torch.testing.assert_close(found.mean[s], expected.mean)
        torch.testing.assert_close(found.stddev[s], expected.stddev)


def test_density_of_a_process():
    """Of the whole prior, at a draw of the guide, for seen genes and for new ones of larger variance."""
    features = features_of()
    values = values_of(trace_guide(factor_of(GP, features), features, prior=GP))
    names = ("direction_scale", "direction_signal", FUNCTION_WEIGHTS, "direction")
    scale, signal, weights, direction = (values[name].numpy() for name in names)
    width = np.column_stack([np.full(K, GP.intercept), np.tile(signal[:, None], P)])
    of_weights = stats.norm(scale=scale[:, None] * width).logpdf(weights).sum()
    for rows in (features, features_of(seed=4)):
        basis = GP.basis(features)(rows)
        residual = scale * np.sqrt(1 + np.outer(basis.missed_p, signal**2))
        line = basis.functions_pb.numpy() @ weights.T
        expected = density_of_scales(GP, scale, signal) + of_weights
        expected += stats.norm(line, residual).logpdf(direction).sum()
        given = poutine.condition(GP.model, data=values)
        model = poutine.trace(given).get_trace(SIZES, Perturbations.of(Described(rows, basis)))
        assert float(model.log_prob_sum()) == pytest.approx(expected, rel=1e-8)


# Simplex


def draw_simplex(features):
    return values_of(trace_guide(Simplex(hidden=5).guide(SIZES, features).double(), features))


def test_density_of_a_simplex():
    """All of it is the weights of the map, in units of the root of the inputs of each layer."""
    features, prior = features_of(), Simplex(hidden=5, weight_scale=2.0)
    values = draw_simplex(features)
    expected = sum(
        stats.norm(scale=2 / np.sqrt(n)).logpdf(values[f"direction_layer{layer}"]).sum()
        for layer, n in enumerate([1 + E, 5, 5])
    )
    assert float(trace_model(prior, features, values).log_prob_sum()) == pytest.approx(expected, rel=1e-6)


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
