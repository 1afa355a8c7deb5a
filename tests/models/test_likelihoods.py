"""Likelihoods against SciPy and numerical integration, their expected profiles against sums over counts."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import special, stats

from sccvae_pyro import SCCVAE, InputError, priors
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.objectives import NegativeELBO
from sccvae_pyro.models import distributions
from sccvae_pyro.models.count_likelihoods import log_proportions
from sccvae_pyro.models.likelihoods import (
    Likelihood,
    NegativeBinomial,
    NegativeBinomialByCovariate,
    Normal,
    Poisson,
    PoissonLogNormal,
    StudentT,
    ZeroInflatedNegativeBinomial,
)
from sccvae_pyro.models.slot import Sizes

PROPORTION = np.array([0.3, 0.1, 0.02, 0.001])  # what is not measured has the rest
LIBRARY = torch.tensor([500.0, 4000.0, 20000.0])
COVARIATES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
CHANGE = torch.tensor([[0.5, -0.3, 0.0, 1.0]]).expand(3, 4)
COUNTS = torch.tensor([[0.0, 3.0, 7.0, 0.0], [1000.0, 200.0, 50.0, 1.0], [5000.0, 0.0, 400.0, 60.0]])
VALUES = torch.tensor([[1.0, 2.5, 0.3, 3.0]] * 3)

DISPERSION = torch.tensor([0.5, 2.0, 5.0, 50.0])
DROPOUT = torch.tensor([0.01, 0.3, 0.6, 0.05])
SD = torch.tensor([0.1, 1.0, 2.0, 0.5])
LOG_R = DISPERSION.log()
OFFSET = torch.tensor([[0.0, 1.0, -0.5, 0.2], [0.3, -1.0, 0.0, 0.0]])

COUNT_MEMBERS = {  # with gene-level variables, variables x genes
    NegativeBinomial(): LOG_R[None],
    NegativeBinomialByCovariate(): torch.cat([LOG_R[None], OFFSET]),
    ZeroInflatedNegativeBinomial(): torch.stack([LOG_R, DROPOUT]),
    Poisson(): torch.zeros(0, 4),
    PoissonLogNormal(): SD[None],
}
MEMBERS = {**COUNT_MEMBERS, Normal(): SD[None], StudentT(): SD[None]}


def named(members):
    return pytest.mark.parametrize("member", members, ids=lambda member: type(member).__name__)


def baseline():
    return torch.tensor(NegativeBinomial().baseline(PROPORTION), dtype=torch.float)


def shifted():
    """Proportions after the change: a softmax in which what is not measured does not change."""
    weight = np.append(PROPORTION * np.exp(CHANGE[0].numpy()), 1 - PROPORTION.sum())
    return (weight / weight.sum())[:4]


MEAN = LIBRARY.numpy()[:, None] * shifted()


def distribution(member, cells=slice(None), base=None):
    base = baseline() if base is None else base
    return member.distribution(CHANGE[cells], base, LIBRARY[cells], COVARIATES[cells], MEMBERS[member])


def negative_binomial(r, mean=MEAN):
    return stats.nbinom(r, r / (r + mean))


# Means


def test_no_change_gives_the_control_mean():
    found = log_proportions(torch.zeros(2, 4), baseline()).exp()
    np.testing.assert_allclose(found, [PROPORTION, PROPORTION], rtol=1e-5)


def test_proportions_are_a_softmax():
    np.testing.assert_allclose(log_proportions(CHANGE, baseline()).exp()[1], shifted(), rtol=1e-5)


def test_whole_transcriptome_has_no_rest():
    everything = np.array([0.5, 0.3, 0.2])
    base = torch.tensor(NegativeBinomial().baseline(everything), dtype=torch.float)
    found = log_proportions(torch.tensor([[1.0, 0.0, 0.0]]), base).exp()
    expected = everything * [math.e, 1, 1] / (everything @ [math.e, 1, 1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


# Densities


def test_negative_binomial_density():
    found, r = distribution(NegativeBinomial()), DISPERSION.numpy()
    np.testing.assert_allclose(found.log_prob(COUNTS), negative_binomial(r).logpmf(COUNTS).sum(1), rtol=1e-4)
    np.testing.assert_allclose(found.mean, MEAN, rtol=1e-4)
    np.testing.assert_allclose(found.variance, MEAN + MEAN**2 / r, rtol=1e-3)


def test_each_batch_has_its_dispersion():
    r = DISPERSION.numpy() * np.exp(OFFSET.numpy())[[0, 1, 1]]
    found = distribution(NegativeBinomialByCovariate()).log_prob(COUNTS)
    np.testing.assert_allclose(found, negative_binomial(r).logpmf(COUNTS).sum(1), rtol=1e-4)


def test_zero_inflated_density():
    dropout = DROPOUT.numpy()
    kept = (1 - dropout) * negative_binomial(DISPERSION.numpy(), MEAN / (1 - dropout)).pmf(COUNTS)
    expected = np.log(dropout * (COUNTS.numpy() == 0) + kept).sum(1)
    np.testing.assert_allclose(
        distribution(ZeroInflatedNegativeBinomial()).log_prob(COUNTS), expected, rtol=1e-4
    )


def test_poisson_density():
    expected = stats.poisson(MEAN).logpmf(COUNTS).sum(1)
    np.testing.assert_allclose(distribution(Poisson()).log_prob(COUNTS), expected, rtol=1e-4)


def integrated(count, mean, sd):
    """Poisson log-normal log probability by a fine sum over the log rate."""
    loc, peak = math.log(mean) - sd**2 / 2, math.log(max(count, 0.5))
    eta = np.linspace(min(loc - 12 * sd, peak - 5), max(loc + 12 * sd, peak + 5), 400_000)
    density = stats.poisson.logpmf(count, np.exp(eta)) + stats.norm.logpdf(eta, loc, sd)
    return special.logsumexp(density) + math.log(eta[1] - eta[0])


def test_poisson_log_normal_density():
    found = distribution(PoissonLogNormal()).base_dist.log_prob(COUNTS)
    cells = zip(COUNTS.tolist(), MEAN.tolist(), strict=True)
    expected = [list(map(integrated, counts, mean, SD.tolist())) for counts, mean in cells]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-3)


@pytest.mark.parametrize("log_mean", [-60.0, -3.0, 9.0])
@pytest.mark.parametrize("sd", [1e-3, 0.3, 1.5])
def test_poisson_log_normal_sums_to_one(log_mean, sd):
    """Over counts up to a hundred thousand, spaced where they are many; at rates that are nil, too."""
    edges = np.unique(np.round(np.geomspace(1, 3e6, 20_000)))
    counts = torch.tensor(np.append(0.0, edges))
    found = priors.likelihood.PoissonLogNormal().counts(
        torch.tensor(log_mean, dtype=torch.double), COVARIATES, torch.tensor(sd, dtype=torch.double)
    )
    pmf = found.log_prob(counts).exp().numpy()
    total = pmf[0] + np.interp(np.arange(1, 3e6), edges, pmf[1:]).sum()
    assert total == pytest.approx(1, abs=2e-3)


def test_poisson_log_normal_gradient():
    """Nodes are taken as constants: differences of the density must agree."""
    member, counts = PoissonLogNormal(), COUNTS.double()
    log_mean, log_sd = torch.tensor(MEAN).log().requires_grad_(), SD.double().log()[None].requires_grad_()

    def total():
        return member.counts(log_mean, COVARIATES, log_sd.exp()).log_prob(counts).sum()

    for value in (log_mean, log_sd):
        slope = torch.autograd.grad(total(), value)[0].sum()
        with torch.no_grad():
            value += 1e-4
            above = total()
            value -= 2e-4
            below = total()
            value += 1e-4
        assert float(slope) == pytest.approx(float(above - below) / 2e-4, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize(
    ("member", "expected"), [(Normal(), stats.norm), (StudentT(df=3.0), lambda m, s: stats.t(3.0, m, s))]
)
def test_density_of_values(member, expected):
    base = torch.tensor([1.0, 2.0, 0.0, 3.0])
    found = member.distribution(CHANGE, base, LIBRARY, COVARIATES, SD[None])
    np.testing.assert_allclose(
        found.log_prob(VALUES), expected(base + CHANGE, SD).logpdf(VALUES).sum(1), rtol=1e-5
    )


def test_encoder_reads_log_expression():
    counts = torch.tensor([[0.0, 3.0], [10.0, 7.0], [1.0, 1.0]])
    found = NegativeBinomial().encoder_input(counts, LIBRARY)
    np.testing.assert_allclose(found, log1p_cp10k(counts.numpy(), LIBRARY.numpy()), rtol=1e-5)
    assert Normal().encoder_input(counts, LIBRARY) is counts


# Samples

MOMENTS = {
    NegativeBinomial(): (MEAN, MEAN + MEAN**2 / DISPERSION.numpy()),
    Poisson(): (MEAN, MEAN),
    ZeroInflatedNegativeBinomial(): (
        MEAN,
        MEAN + MEAN**2 * (1 / DISPERSION.numpy() + DROPOUT.numpy()) / (1 - DROPOUT.numpy()),
    ),
    PoissonLogNormal(): (MEAN, MEAN + MEAN**2 * np.expm1(SD.numpy() ** 2)),
}


@named(MOMENTS)
def test_moments_of_samples(member):
    mean, variance = MOMENTS[member]
    found = distribution(member)
    np.testing.assert_allclose(found.base_dist.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(found.base_dist.variance, variance, rtol=1e-3)
    torch.manual_seed(0)
    n = 20_000
    x = found.sample((n,)).double().numpy()
    assert x.shape == (n, 3, 4)
    np.testing.assert_array_equal(x, np.round(x))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 5 * np.sqrt(variance / n))
    light = [0, 1, 3]  # at a log-scale sd of 2 a sample's variance says nothing of the distribution's
    np.testing.assert_allclose(x.var(0)[:, light], variance[:, light], rtol=0.25)


# Profiles


@named(COUNT_MEMBERS)
def test_profile_is_the_sum_over_counts(member, monkeypatch):
    """Not the logarithm of the mean rate: each count's log1p(CP10K), weighted by its probability."""
    monkeypatch.setattr(distributions, "N_NODES", 40)  # the sum needs more digits than a fit
    counts = torch.arange(60_000.0, dtype=torch.double)
    profile = member.profile(LIBRARY.repeat(30).numpy())
    found = profile(CHANGE, baseline(), COVARIATES, COUNT_MEMBERS[member])[1].numpy()
    expected = np.mean([exact(member, counts, library) for library in LIBRARY], axis=0)
    np.testing.assert_allclose(found, expected, atol=4e-4)
    assert (np.log1p(1e4 * shifted()) - found > 0.05).any()


def exact(member, counts, library):
    """Expectation for each gene at one library size, in the second batch."""
    log_mean, gene_level = torch.tensor(shifted() * float(library)).log(), COUNT_MEMBERS[member].double()
    pmf = member.counts(log_mean, COVARIATES[[1]].double(), gene_level).log_prob(counts[:, None]).exp()
    # What lies beyond, of the heaviest tail, counts as its edge.
    beyond = (1 - pmf.sum(0)).clamp(min=0)
    value = torch.log1p(1e4 * counts / library)
    return (value @ pmf + beyond * value[-1]).numpy()


@named([Normal(), StudentT()])
def test_profile_of_values_is_the_mean(member):
    found = member.profile(LIBRARY.numpy())(CHANGE, torch.ones(4), COVARIATES, MEMBERS[member])
    torch.testing.assert_close(found, 1 + CHANGE)


@named(MEMBERS)
def test_profile_follows_the_shape_of_its_input(member):
    base = baseline() if member.kind == "counts" else torch.zeros(4)
    found = member.profile(LIBRARY.numpy())(torch.zeros(5, 2, 3, 4), base, COVARIATES, MEMBERS[member])
    assert found.shape == (5, 2, 3, 4)


# Gene-level variables

SIZES = Sizes(cells=10, genes=6, nodes=2, perturbations=1, features=0, covariates=3)


@named(MEMBERS)
def test_guide_proposes_what_the_model_samples(member):
    base = torch.zeros(6)
    with torch.no_grad():
        guide = poutine.trace(member.guide(SIZES)).get_trace()
        model = poutine.trace(poutine.replay(member.model, trace=guide)).get_trace(SIZES, base)
        densities = float(guide.log_prob_sum()), float(model.log_prob_sum())
    sites = [set(trace.stochastic_nodes) - {"genes"} for trace in (guide, model)]
    assert sites[0] == sites[1]
    for name in sites[0]:
        assert guide.nodes[name]["value"].shape == model.nodes[name]["fn"].shape()
    assert np.isfinite(densities).all()


@pytest.mark.parametrize(
    ("member", "site", "start"),
    [
        (NegativeBinomial(), "inverse_dispersion", lambda scatter: 1 / scatter),
        (NegativeBinomialByCovariate(), "inverse_dispersion", lambda scatter: 1 / scatter),
        (ZeroInflatedNegativeBinomial(), "inverse_dispersion", lambda scatter: 1 / scatter),
        (PoissonLogNormal(), "overdispersion_sd", lambda scatter: np.sqrt(np.log1p(scatter))),
        (Normal(), "residual_sd", np.sqrt),
        (StudentT(), "residual_scale", np.sqrt),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Likelihood) else "",
)
def test_guide_begins_at_the_scatter_of_the_cells(member, site, start):
    """The variance of a count is ``m + scatter m^2``, that of a value the scatter itself."""
    scatter = torch.tensor([0.01, 0.1, 0.3, 1.0, 2.0, 10.0])
    with torch.no_grad():
        drawn = poutine.trace(member.guide(SIZES, scatter)).get_trace()
    median = drawn.nodes[site]["fn"].icdf(torch.full((6,), 0.5))
    np.testing.assert_allclose(median.detach(), start(scatter.numpy()), rtol=1e-4)


def test_dropout_has_a_beta_prior():
    member = ZeroInflatedNegativeBinomial(dropout=0.2, concentration=4.0)
    trace = poutine.trace(member.model).get_trace(SIZES, torch.zeros(6))
    found = trace.nodes["dropout"]["fn"].log_prob(torch.tensor(0.3))
    np.testing.assert_allclose(found, stats.beta(0.8, 3.2).logpdf(0.3), rtol=1e-5)


def test_density_of_dispersions_by_covariate():
    """The dispersion, the spread of each covariate, and offsets of that spread."""
    r, spread = np.array([0.5, 1, 2, 5, 9, 40]), np.array([0.1, 1.0, 2.0])
    offset = np.random.default_rng(0).normal(0, 0.5, (6, 3))
    values = {"inverse_dispersion": r, "dispersion_spread": spread, "dispersion_offset": offset}
    member = NegativeBinomialByCovariate(inverse_dispersion=3.0, spread=0.2)
    given = poutine.condition(
        member.model, data={name: torch.tensor(v).float() for name, v in values.items()}
    )
    expected = (
        stats.lognorm(s=1, scale=3.0).logpdf(r).sum() + stats.lognorm(s=1, scale=0.2).logpdf(spread).sum()
    )
    expected += stats.norm(scale=spread).logpdf(offset).sum()
    found = poutine.trace(given).get_trace(SIZES, torch.zeros(6)).log_prob_sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def fitted_alone(member, x, mean, covariates):
    """Draws of the gene-level variables, fitted to counts of a known mean; ``draws x variables x genes``."""
    cells, genes = x.shape
    sizes = Sizes(cells, genes, nodes=1, perturbations=1, features=0, covariates=covariates.shape[1])
    guide, log_mean = member.guide(sizes), torch.full((cells, genes), math.log(mean))

    def model():
        gene_level = member.model(sizes, torch.zeros(genes))
        with pyro.plate("cells", cells, dim=-1):
            pyro.sample("x", member.counts(log_mean, covariates, gene_level).to_event(1), obs=x)
        return gene_level

    torch.manual_seed(0)
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        with pyro.settings.context(module_local_params=True):
            Trace_ELBO().differentiable_loss(model, guide).backward()
        optimiser.step()
    with torch.no_grad():
        return torch.stack([poutine.replay(model, poutine.trace(guide).get_trace())() for _ in range(50)])


def test_dispersion_of_each_batch_is_found():
    """Overdispersed in one batch only."""
    rng, batch = np.random.default_rng(0), torch.eye(2)[torch.arange(600) % 2]
    r = torch.where(batch[:, :1] > 0, 1.0, 50.0).numpy()
    x = torch.tensor(rng.poisson(rng.gamma(r, 20 / r, (600, 20))), dtype=torch.float)
    member = NegativeBinomialByCovariate()
    found = member.log_parameter(torch.eye(2), fitted_alone(member, x, 20, batch)).exp().mean((0, 2))
    assert 0.8 < float(found[0]) < 1.25
    assert 30 < float(found[1]) < 80


def test_dropout_of_each_gene_is_found():
    """Told apart from overdispersion, from none to most of the counts."""
    rng, dropout = np.random.default_rng(0), np.linspace(0, 0.6, 20)
    kept = rng.random((600, 20)) > dropout
    x = torch.tensor(kept * rng.poisson(rng.gamma(3, 20 / 3 / (1 - dropout), (600, 20))), dtype=torch.float)
    found = fitted_alone(ZeroInflatedNegativeBinomial(), x, 20, torch.zeros(600, 0)).mean(0)
    np.testing.assert_allclose(found[1], dropout, atol=0.06)
    np.testing.assert_allclose(found[0].exp(), np.full(20, 3.0), rtol=0.4)


@pytest.mark.parametrize(
    ("member", "setting", "message"),
    [
        (ZeroInflatedNegativeBinomial, {"dropout": 1.0}, "dropout must be below 1, not 1.0"),
        (StudentT, {"df": 1.0}, "df must be above 1"),
    ],
)
def test_settings_beyond_their_bound(member, setting, message):
    with pytest.raises(InputError, match=message):
        member(**setting)


# In the model


def tiny(member, screen, log_screen):
    return SCCVAE(
        screen if member.kind == "counts" else log_screen, n_nodes=3, hidden=(8,), likelihood=member
    )


@named(MEMBERS)
def test_gradients_are_finite(member, screen, log_screen):
    model = tiny(member, screen, log_screen)
    batch = model._screen[np.arange(40)]
    pyro.set_rng_seed(0)
    NegativeELBO(model.program)(batch).backward()
    gradients = {name: value.grad for name, value in model.program.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    own = {name: gradient for name, gradient in gradients.items() if name.startswith("proposal.gene_factor")}
    assert all((gradient != 0).any() for gradient in own.values())
    assert bool(own) == (type(member) is not Poisson)


@named(MEMBERS)
def test_every_question_has_an_answer(member, screen, log_screen, tmp_path):
    model = tiny(member, screen, log_screen).fit(max_epochs=1, batch_size=128, progress=False)
    cells = (screen if member.kind == "counts" else log_screen)[:6].copy()
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    assert loaded.priors.likelihood == member
    for question in (
        lambda model: model.predict(["G0001", "control"], n_samples=3).layers["q95"],
        lambda model: model.sample_cells("G0001", 10).X,
        lambda model: model.counterfactual(cells, "G0002", n_samples=3).X,
        lambda model: model.log_density(cells, n_samples=3),
    ):
        answer = np.asarray(question(model))
        assert np.isfinite(answer).all()
        np.testing.assert_array_equal(np.asarray(question(loaded)), answer)
    found = model.to_arviz(n_samples=3).posterior
    assert not [name for name in found.dims if name.startswith(("disp", "drop", "resid", "over"))]


def test_each_draw_has_its_own_gene_level_variables(screen, log_screen):
    """Vectorised draws keep the order of variables, and nothing is averaged on the way to a profile."""
    program = tiny(NegativeBinomialByCovariate(), screen, log_screen).program
    draws = posterior.draw(program, 11, seed=0)
    assert draws.gene_level.shape == (11, 3, 24)
    values = draws.values
    torch.testing.assert_close(draws.gene_level[:, 0], values["inverse_dispersion"].log())
    torch.testing.assert_close(draws.gene_level[:, 1:], values["dispersion_offset"].mT)
    assert (draws.gene_level.std(0) > 0).all()


@named(MEMBERS)
def test_draws_can_be_vectorised(member, screen, log_screen):
    model = tiny(member, screen, log_screen)
    batch = model._screen[np.arange(7)]
    with torch.no_grad(), pyro.plate("draws", 5, dim=-2):
        trace = poutine.trace(poutine.uncondition(model.program.model)).get_trace(batch)
    assert trace.nodes["x"]["value"].shape == (5, 7, 24)


def test_dispersion_by_covariate_needs_covariates(screen):
    cells = screen.copy()
    cells.uns["sccvae"] = {key: v for key, v in cells.uns["sccvae"].items() if key != "covariate_keys"}
    with pytest.raises(InputError, match="needs covariates"):
        SCCVAE(cells, n_nodes=2, hidden=(4,), likelihood="negative_binomial_by_covariate")


def test_catalogue_lists_all_members():
    known = {name for name in vars(priors.likelihood) if name[0].isupper()} - {"Likelihood"}
    assert known == set(Likelihood.known())
