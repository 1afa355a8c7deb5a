"""Responder priors: Bayes in the guide, both values in the loss, and what can be asked of a fit."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import integrate, stats

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE, InputError, priors
from sccvae_pyro.data.loading import Batch
from sccvae_pyro.inference import posterior, results
from sccvae_pyro.inference.objectives import NegativeELBO
from sccvae_pyro.models.responders import Evidence
from sccvae_pyro.models.scm import share_of_cells
from sccvae_pyro.models.slot import Basis, Described, Perturbations

K = 3
TRUST = np.array([0.9, 0.5, 0.1])
SHIFT = np.array([1.0, -2.0, 0.5])
READ = np.array([[0.8, -1.0, 0.3], [0.1, 0.2, -1.0]])


def evidence_of(read):
    action = np.broadcast_to(SHIFT, read.shape).copy()
    return Evidence(*(torch.tensor(part) for part in (read, TRUST, np.zeros((K, K)), action)))


def test_probability_of_a_response_is_bayes_rule():
    """What is read of a node is its noise and the error of reading: a variance of 1 / trust in all."""
    found = priors.responders.Beta().expected(torch.full((2,), 0.3, dtype=torch.double), evidence_of(READ))
    responding, escaped = (stats.norm(mean, TRUST**-0.5).logpdf(READ).sum(1) for mean in (SHIFT, np.zeros(K)))
    expected = 0.3 * np.exp(responding) / (0.3 * np.exp(responding) + 0.7 * np.exp(escaped))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_expected_dose_is_a_posterior_mean():
    """Against quadrature, with the prior as a normal of the moments of the log-normal."""
    prior = priors.responders.Dose(spread=0.4)
    found = prior.expected(torch.ones(2).double(), evidence_of(READ))
    sd = np.sqrt(np.expm1(0.4**2))
    for read, dose in zip(READ, found, strict=True):

        def moment(a, power, read=read):
            return (
                a**power
                * stats.norm(1, sd).pdf(a)
                * np.exp(stats.norm(a * SHIFT, TRUST**-0.5).logpdf(read).sum())
            )

        first, zeroth = (integrate.quad(moment, -5, 7, args=(power,))[0] for power in (1, 0))
        assert float(dose) == pytest.approx(max(first / zeroth, 0.05), rel=1e-6)


def test_density_of_the_fractions():
    """Each around that of the screen, and worth as many cells as declared."""
    fractions, mean = np.array([0.1, 0.5, 0.8, 0.97]), 0.7
    prior = priors.responders.Beta(responding=3.0, escaping=2.0, alike=5.0)
    given = {"responders_mean": torch.tensor(mean), "responders": torch.tensor(fractions)}
    basis = Basis(torch.ones(4, 1), torch.zeros(4))
    seen = Perturbations.of(Described(torch.zeros(4, 0, dtype=torch.double), basis))
    model = poutine.condition(prior.model, data={name: value.double() for name, value in given.items()})
    found = poutine.trace(model).get_trace(None, seen).log_prob_sum()
    expected = stats.beta(3, 2).logpdf(mean) + stats.beta(5 * mean, 5 * (1 - mean)).logpdf(fractions).sum()
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("prior", "shares", "expected"),
    [
        (priors.responders.Beta(), [1.0, 0.0], stats.bernoulli([0.3, 0.8]).logpmf([1, 0])),
        (
            priors.responders.Dose(spread=0.4),
            [0.5, 1.2],
            stats.lognorm(s=0.4, scale=np.exp(-0.08)).logpdf([0.5, 1.2]),
        ),
    ],
    ids=["Beta", "Dose"],
)
def test_density_of_the_share(prior, shares, expected):
    model = poutine.condition(prior.share, data={"share": torch.tensor(shares)})
    trace = poutine.trace(model).get_trace(torch.tensor([0.3, 0.8]))
    trace.compute_log_prob()
    np.testing.assert_allclose(trace.nodes["share"]["log_prob"], expected, rtol=1e-5)


def test_dose_has_mean_one():
    pyro.set_rng_seed(0)
    share = priors.responders.Dose(spread=0.5).share(torch.ones(200_000))
    assert float(share.mean()) == pytest.approx(1.0, abs=4 * 0.53 / np.sqrt(200_000))


def test_share_of_a_combination_is_the_mean_and_control_cells_have_one():
    share = torch.tensor([0.2, 0.6])
    found = share_of_cells(share, torch.tensor([[0, 2], [0, 1], [2, 2]]))
    torch.testing.assert_close(found, torch.tensor([0.2, 0.4, 1.0]))


# In the program


@pytest.fixture(scope="module")
def screen():
    adata = sv.datasets.simulate(
        n_perturbations=8, cells_per_perturbation=60, n_control=200, n_genes=80, n_modules=2, seed=3
    )
    sv.setup_anndata(adata, "perturbation", "control", library_key="total_umi", feature_key="features")
    return adata


def model_with(screen, responders):
    return SCCVAE(screen, n_nodes=4, hidden=(16,), responders=responders)


@pytest.fixture(scope="module")
def escapers(screen):
    return model_with(screen, "Beta").fit(max_epochs=2, batch_size=64, progress=False)


def by_hand(program, cells, seed):
    """ELBO of one draw of the globals: both shares in turn, each weighed with its proposed probability."""
    pyro.set_rng_seed(seed)
    with torch.no_grad():
        values = program.guide_globals()
        total = 0.0
        for share in (1.0, 0.0):
            given = {**values, "share": torch.full((len(cells.library_c),), share)}
            guide = poutine.trace(poutine.condition(program.guide, data=given)).get_trace(cells)
            replayed = poutine.replay(poutine.condition(program.model, data=given), trace=guide)
            model = poutine.trace(replayed).get_trace(cells)
            for trace in (guide, model):
                trace.compute_log_prob()
            log_p, log_q = (
                sum(trace.nodes[name]["unscaled_log_prob"] for name in names)
                for trace, names in ((model, ("x", "z", "share")), (guide, ("z", "share")))
            )
            total += float((guide.nodes["share"]["unscaled_log_prob"].exp() * (log_p - log_q)).sum())
        kl = sum(
            float(guide.nodes[name]["log_prob_sum"] - model.nodes[name]["log_prob_sum"]) for name in values
        )
    return total * program.sizes.cells / len(cells.library_c) - kl


def test_loss_sums_over_both_values(escapers, screen):
    """The enumerated loss and the sum by hand agree on average over draws, and vary alike."""
    cells, loss = program_cells(escapers, screen), NegativeELBO(escapers.program)
    pyro.set_rng_seed(0)
    found = [-float(loss(cells).detach()) * escapers.program.sizes.cells for _ in range(150)]
    expected = [by_hand(escapers.program, cells, seed) for seed in range(150)]
    error = np.hypot(np.std(found), np.std(expected)) / np.sqrt(150)
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=4 * error)
    assert np.std(found) == pytest.approx(np.std(expected), rel=0.35)


def program_cells(model, screen) -> Batch:
    return model.coding.screen(screen)[np.arange(150, 200)]


def test_gradients_reach_the_fractions(escapers, screen):
    program = escapers.program
    program.zero_grad()
    NegativeELBO(program)(program_cells(escapers, screen)).backward()
    gradient = program.proposal.responders_factor.own.factor.loc.grad
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).all()
    program.zero_grad()


def test_half_of_the_cells_is_half_of_the_mean_effect(escapers):
    """Escape is averaged out exactly: the mean of a population is linear in its responding fraction."""
    draws = posterior.draw(escapers.program, 3, 0)
    push = escapers._push(draws, ["G0001"], 0)
    halved = push._replace(share=0.5 * push.share)
    full, half = (
        results.population_deltas(escapers.program, draws, escapers.controls, p, 0) for p in (push, halved)
    )
    np.testing.assert_allclose(half, 0.5 * full, rtol=1e-5)


@pytest.mark.parametrize("responders", ["Beta", "Dose"])
def test_everything_can_be_asked(screen, responders, tmp_path):
    model = model_with(screen, responders).fit(max_epochs=1, batch_size=64, progress=False)
    cells = screen[screen.obs["perturbation"].isin(["control", "G0001"])].copy()
    table = model.responders(cells, n_samples=4)
    assert list(table.index) == list(cells.obs_names[cells.obs["perturbation"] == "G0001"])
    assert (table["q05"] <= table["mean"] + 1e-9).all()
    assert np.isfinite(model.predict(["G0001", "G0001+G0002"], n_samples=4).layers["q95"]).all()
    assert np.isfinite(model.log_density(cells, n_samples=4)).all()
    assert np.isfinite(model.get_latent(cells, "u", n_samples=3)).all().all()
    assert (model.sample_cells("G0001", n=20).X >= 0).all()
    same = model.counterfactual(cells[cells.obs["perturbation"] == "G0001"].copy(), "G0001", n_samples=3)
    np.testing.assert_allclose(same.layers["effect"], 0, atol=1e-6)
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    assert loaded.priors.responders == model.priors.responders
    np.testing.assert_array_equal(
        loaded.predict(["G0001"], n_samples=4).X, model.predict(["G0001"], n_samples=4).X
    )


def test_spread_of_a_dose_is_that_of_the_cell_too(screen):
    """By the law of total variance: within draws of the globals, and between them."""
    model = model_with(screen, "Dose").fit(max_epochs=1, batch_size=64, progress=False)
    cells = screen[screen.obs["perturbation"] == "G0001"].copy()
    table = model.responders(cells, n_samples=400)
    batch = model.coding.screen(cells)[np.arange(cells.n_obs)]
    draws = posterior.draw(model.program, 400, 0)
    with torch.no_grad():
        state, trust = model.program.encode(batch)
        own = draws.push_of(batch)
        evidence = [Evidence(state, trust, draws.B[s], own.action[s]) for s in range(400)]
        mean, sd = (
            torch.stack(part) for part in zip(*map(model.priors.responders._posterior, evidence), strict=True)
        )
    sd = sd.expand_as(mean)
    np.testing.assert_allclose(table["mean"], mean.mean(0), rtol=0.05)
    np.testing.assert_allclose(table["sd"], (sd.square().mean(0) + mean.var(0)).sqrt(), rtol=0.1)
    assert (table["sd"] > 2 * mean.std(0).numpy()).mean() > 0.9
    again = model.responders(cells, n_samples=400)
    np.testing.assert_array_equal(table["q95"], again["q95"])


def test_cells_that_all_respond_have_no_table(screen):
    model = model_with(screen, "AllCells").fit(max_epochs=1, batch_size=64, progress=False)
    with pytest.raises(InputError, match="Beta"):
        model.responders(screen)
