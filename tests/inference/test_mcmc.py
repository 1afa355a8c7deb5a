"""Hamiltonian Monte Carlo on the program: exact posteriors, the guide beside it, and what is refused."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model

import sccvae_pyro as sv
from sccvae_pyro import InputError
from sccvae_pyro.inference import mcmc
from sccvae_pyro.inference.spec import NUTSSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

TARGETS = np.array([[0]] * 8 + [[1]] * 6 + [[2]] * 4)


def effective_size(draws, chains):
    """Of each entry; ``draws x ...``, chain after chain."""
    entries = draws.reshape(chains, len(draws) // chains, -1)
    return np.array([arviz.ess(entries[..., i]) for i in range(entries.shape[-1])]).reshape(draws.shape[1:])


@pytest.mark.slow
def test_draws_are_those_of_the_exact_posterior():
    """Correlated nodes, few cells: a guide with independent nodes could not say this."""
    world = LinearGaussian.general(TARGETS, 2)
    batch = world.draw()
    chains = mcmc.sample(world.program(), batch, n_samples=500, warmup=250, chains=2, seed=0)
    assert not chains.diverging.any()
    direction = chains.draws.values["direction"].numpy()
    mean, covariance = world.direction_posterior(batch)
    sd = np.sqrt(np.diag(covariance)).reshape(mean.shape)
    size = effective_size(direction, 2)
    assert (size > 100).all()
    error, ratio = direction.mean(0) - mean, direction.std(0) / sd
    assert (np.abs(error) < 4 * sd / np.sqrt(size)).all(), f"errors {error}, sds {sd}, effective sizes {size}"
    assert (np.abs(ratio - 1) < 0.15).all(), f"sds over the exact ones {ratio}"
    found = np.corrcoef(direction.reshape(len(direction), -1).T)
    exact = covariance / np.outer(sd.ravel(), sd.ravel())
    np.testing.assert_allclose(found, exact, atol=0.2)


# The mechanics


@pytest.mark.parametrize(
    "priors",
    [
        {"graph": "Laplace"},
        {"graph": "Horseshoe", "penetrance": "Guides"},
        {"graph": "SpikeSlab", "direction": "Simplex"},
        {"graph": "LearnedOrder", "penetrance": "OnFeatures"},
        {"graph": "LowRank", "responders": "Dose", "noise": "StudentT"},
        {"graph": "NoGraph", "likelihood": "NegativeBinomialByCovariate"},
        {"graph": "Random", "penetrance": "HalfNormal"},
    ],
    ids=lambda priors: "-".join(priors.values()),
)
def test_compiled_density_is_the_density(screen, priors):
    """At points other than the one it was compiled at, so that no branch is frozen."""
    program = sv.SCCVAE(screen, n_nodes=3, hidden=(4,), **priors).program
    batch = sv.SCCVAE(screen, n_nodes=1)._screen[np.arange(program.sizes.cells)]
    program = mcmc._held(program, program.sizes.cells)
    found = {}
    for compiled in (True, False):
        pyro.set_rng_seed(0)
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            start, potential, _, _ = initialize_model(
                poutine.reparam(program.model, mcmc._reparam),
                model_args=(batch,),
                jit_compile=compiled,
                skip_jit_warnings=True,
            )
            generator = torch.Generator().manual_seed(0)
            moved = [
                {name: torch.randn(value.shape, generator=generator) for name, value in start.items()}
                for _ in range(3)
            ]
            found[compiled] = [float(potential(dict(point))) for point in (start, *moved)]
    np.testing.assert_allclose(found[True], found[False], rtol=1e-4)


def test_arviz_data_has_chains_and_names(fitted, screen, monkeypatch):
    monkeypatch.setattr(mcmc, "NUTS", partial(mcmc.NUTS, max_tree_depth=3))  # names, not mixing
    cells = screen[::40].copy()
    before = {name: value.clone() for name, value in fitted.program.state_dict().items()}
    n_cells = fitted.program.sizes.cells
    found = fitted.nuts(cells, n_samples=4, warmup=4, chains=2, progress=False)
    assert dict(found.posterior.sizes)["chain"] == 2
    assert dict(found.posterior.sizes)["draw"] == 4
    assert found.sample_stats["diverging"].shape == (2, 4)
    of_guide = fitted.to_arviz(n_samples=3).posterior
    assert set(found.posterior.data_vars) == set(of_guide.data_vars)
    for name in of_guide.data_vars:
        assert found.posterior[name].dims == of_guide[name].dims
    assert {"r_hat", "ess_bulk"} <= set(arviz.summary(found, var_names=["strength"]).columns)
    assert (np.tril(found.posterior["B"].to_numpy()) == 0).all()
    assert fitted.program.sizes.cells == n_cells
    for name, value in fitted.program.state_dict().items():
        assert torch.equal(value, before[name])
    assert not np.array_equal(*found.posterior["strength"])


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_unless_it_is_not_wanted(progress, fitted, screen, monkeypatch, capsys):
    monkeypatch.setattr(mcmc, "NUTS", partial(mcmc.NUTS, max_tree_depth=1))
    for name in ("CI", "PYTEST_XDIST_WORKER"):  # where Pyro shows none
        monkeypatch.delenv(name, raising=False)
    fitted.nuts(screen[::40].copy(), n_samples=4, warmup=2, chains=1, progress=progress)
    shown = capsys.readouterr().err
    assert ("Sample: 100%" in shown and "step size" in shown) == progress
    assert bool(shown) == progress


def test_many_cells_are_refused(fitted, screen, monkeypatch):
    monkeypatch.setattr(mcmc, "MOST_LATENTS", 100)
    with pytest.raises(InputError, match=r"on 5 nodes.*Pass at most 20 cells"):
        fitted.nuts(screen)


@pytest.mark.parametrize(
    "priors", [{"responders": "Beta"}, {"noise": "Mixture"}, {"graph": "LearnedOrder"}], ids=str
)
def test_what_gradients_do_not_lead_through_is_refused(screen, priors):
    model = sv.SCCVAE(screen, n_nodes=2, hidden=(4,), **priors)
    (named,) = (f"{slot}={member}" for slot, member in priors.items())
    with pytest.raises(InputError, match=named):
        mcmc.sample_screen(model.program, model._screen, 2, 2, 1, 0)


@pytest.mark.parametrize("wrong", [{"n_samples": 1}, {"chains": 0}, {"warmup": 1.5}, {"seed": -1}])
def test_wrong_numbers_are_refused(fitted, screen, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        fitted.nuts(screen[:20], **wrong)


def test_shipped_file_is_the_default():
    assert NUTSSpec.read(Path(__file__).parents[2] / "inference/nuts.toml") == NUTSSpec()
