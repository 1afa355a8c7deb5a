"""Noise priors: densities against scipy and change of variables, moments, and a step of training."""

import copy

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.models.noise import Flow, Laplace, Mixture, StandardNormal, StudentT
from sccvae_pyro.models.slot import Member, Sizes

SIZES = Sizes(cells=10, genes=6, nodes=3, perturbations=5, features=3, covariates=0)
Z = np.random.default_rng(0).normal(0, 2, (20, 3))
MEMBERS = [StandardNormal(), StudentT(), Laplace(), Mixture(), Flow()]


def distribution(prior):
    torch.manual_seed(0)
    return prior.module(SIZES).double()(torch.zeros(1).double())


@pytest.mark.parametrize(
    ("prior", "node"),
    [
        (StandardNormal(), stats.norm()),
        (StudentT(df=4.0), stats.t(df=4.0, scale=0.5**0.5)),
        (Laplace(), stats.laplace(scale=0.5**0.5)),
    ],
    ids=["normal", "t", "laplace"],
)
def test_density_of_independent_noise(prior, node):
    found = distribution(prior).log_prob(torch.tensor(Z))
    np.testing.assert_allclose(found, node.logpdf(Z).sum(1), rtol=1e-6)
    assert node.var() == pytest.approx(1.0)


def test_density_of_states():
    torch.manual_seed(0)
    module = Mixture(states=2).module(SIZES).double()
    with torch.no_grad():
        module.logits_s.copy_(torch.tensor([1.0, -0.5]))
        module.log_sd_sk.normal_(0, 0.3)
    weight, mean, sd = (
        part.detach().numpy() for part in (module.logits_s.softmax(0), module.mean_sk, module.log_sd_sk.exp())
    )
    expected = sum(w * stats.norm(m, s).pdf(Z).prod(1) for w, m, s in zip(weight, mean, sd, strict=True))
    found = module(torch.zeros(1).double()).log_prob(torch.tensor(Z))
    np.testing.assert_allclose(found.detach(), np.log(expected), rtol=1e-8)


def bent_flow():
    torch.manual_seed(0)
    module = Flow(layers=3, hidden=8).module(SIZES).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module


def test_flow_starts_at_the_normal():
    found = distribution(Flow()).log_prob(torch.tensor(Z))
    np.testing.assert_allclose(found.detach(), stats.norm.logpdf(Z).sum(1), rtol=1e-6)


def test_density_of_a_flow_is_a_change_of_variables():
    """log q(z) = log N(f^-1(z)) + log |det of the Jacobian of f^-1|, the latter by differentiation."""
    flow = bent_flow()(torch.zeros(1).double())

    def to_base(z):
        for transform in reversed(flow.transforms):
            z = transform.inv(z)
        return z

    found = flow.log_prob(torch.tensor(Z)).detach().numpy()
    for z, value in zip(torch.tensor(Z), found, strict=True):
        jacobian = torch.autograd.functional.jacobian(to_base, z)
        expected = stats.norm.logpdf(to_base(z).detach()).sum() + float(torch.linalg.slogdet(jacobian)[1])
        assert value == pytest.approx(expected, rel=1e-8)
    assert np.abs(found - stats.norm.logpdf(Z).sum(1)).max() > 0.1


def test_a_flow_can_be_copied_after_use():
    module, z = bent_flow(), torch.tensor(Z)
    density = module(z).log_prob(z)
    torch.testing.assert_close(copy.deepcopy(module)(z).log_prob(z), density)


@pytest.mark.parametrize("prior", MEMBERS, ids=str)
def test_draws_have_the_shape_of_a_cell(prior):
    pyro.set_rng_seed(0)
    assert distribution(prior).sample((7,)).shape == (7, 3)


def test_settings_are_checked():
    with pytest.raises(InputError, match="df must be above 2"):
        StudentT(df=2.0)
    with pytest.raises(InputError, match="at least 2"):
        Flow().module(Sizes(cells=1, genes=1, nodes=1, perturbations=1, features=0, covariates=0))
    with pytest.raises(InputError, match="whole number"):
        Mixture(states=1.5)


@pytest.mark.parametrize("prior", MEMBERS[1:], ids=str)
def test_a_model_is_fitted_saved_and_asked(prior, tmp_path):
    screen = sv.datasets.simulate(
        n_perturbations=4, cells_per_perturbation=20, n_control=60, n_genes=40, n_modules=2, seed=1
    )
    sv.setup_anndata(screen, "perturbation", "control", library_key="total_umi", feature_key="features")
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), noise=prior)
    before = {name: value.clone() for name, value in model.program.noise.named_parameters()}
    model.fit(max_epochs=1, batch_size=64, progress=False)
    assert all((value != before[name]).any() for name, value in model.program.noise.named_parameters())
    assert np.isfinite(model.log_density(screen, n_samples=3)).all()
    model.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    assert loaded.priors.noise == prior
    np.testing.assert_array_equal(
        loaded.log_density(screen, n_samples=3), model.log_density(screen, n_samples=3)
    )


def test_catalogue_is_complete():
    assert {type(prior).__name__ for prior in MEMBERS} == set(Member.registry["noise"])
