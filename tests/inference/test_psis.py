"""Pareto shapes of importance ratios: small where the guide is the posterior, large where too narrow."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from linear_gaussian import LinearGaussian

from sccvae_pyro import SCCVAE, InputError, InputWarning
from sccvae_pyro.inference import posterior, psis
from sccvae_pyro.inference.export import pareto_k

TARGETS = np.array([[0]] * 8 + [[1]] * 6 + [[2]] * 6)


@pytest.fixture(scope="module")
def exact():
    """A world whose posterior the guide can express, and the program whose guide is that."""
    world = LinearGaussian.separable(TARGETS[:14], 2)
    batch = world.draw()
    return world, batch, world.exact_program(batch)


def log_ratios_of_globals(program, batch, n_draws=400):
    draws, ratio_s = posterior.draw_weighed(program, n_draws, seed=0)
    likelihood = posterior.log_likelihood(program, draws, batch, draws.push_of(batch), 1, (0, 0))
    return (ratio_s + likelihood.sum(1)).detach().numpy()


def test_a_known_tail():
    """Ratios of a generalised Pareto distribution have its shape."""
    rng = np.random.default_rng(0)
    for shape in (0.3, 1.0):
        ratios = (rng.uniform(size=(20, 4000)) ** -shape - 1) / shape + 1
        assert pareto_k(np.log(ratios)).mean() == pytest.approx(shape, abs=0.1)


def test_ratios_that_are_equal_have_no_tail():
    assert (pareto_k(np.full((3, 200), 5.0)) == 0).all()


def test_draws_are_weighed_by_the_evidence(exact):
    """Model over guide is the same number for every draw of the exact posterior: the density of all cells."""
    world, batch, program = exact
    np.testing.assert_allclose(
        log_ratios_of_globals(program, batch, 20), world.log_evidence(batch), atol=1e-6
    )


def test_weighing_leaves_the_draws_as_they_are(fitted):
    draws, ratio_s = posterior.draw_weighed(fitted.program, 11, seed=3)
    torch.testing.assert_close(draws.action_pa, posterior.draw(fitted.program, 11, seed=3).action_pa)
    assert ratio_s.shape == (11,) and ratio_s.isfinite().all()


@pytest.mark.parametrize("family", ["Factors", "LowRank"])
def test_the_mean_ratio_is_less_the_divergence_of_the_guide(screen, family):
    """Negative: no guide is nearer to the prior than the prior."""
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), posterior=family, graph="SpikeSlab")
    _, ratio_s = posterior.draw_weighed(model.program, 50, seed=0)
    assert ratio_s.mean() < 0


def test_an_exact_guide_covers_the_posterior(exact):
    _, batch, program = exact
    assert pareto_k(log_ratios_of_globals(program, batch)[None])[0] < 0.5
    draws = posterior.draw(program, 400, seed=1)
    ratio_sc = posterior.log_ratios(program, draws, batch, draws.push_of(batch), (0, 0))
    assert (pareto_k(ratio_sc.T.numpy()) < psis.HIGH).mean() > 0.9


def test_a_guide_that_is_too_narrow_does_not(exact):
    world, batch, _ = exact
    narrow = world.exact_program(batch)
    with torch.no_grad():
        narrow.proposal.direction_factor.factor.log_scale -= math.log(3)
        narrow.encoder.raw_trust += 4.0
    assert pareto_k(log_ratios_of_globals(narrow, batch)[None])[0] > psis.HIGH
    draws = posterior.draw(narrow, 1000, seed=1)
    ratio_sc = posterior.log_ratios(narrow, draws, batch, draws.push_of(batch), (0, 0))
    assert (pareto_k(ratio_sc.T.numpy()) > psis.HIGH).mean() > 0.9


# The façade


def test_layout(fitted, screen):
    with pytest.warns(InputWarning, match="globals") as caught:
        found = fitted.psis(n_samples=100)
    assert caught[0].filename == __file__
    assert list(found.cells.index) == list(screen.obs_names)
    assert set(found.perturbations.index) == set(fitted.coding.labels)
    assert found.perturbations["n"].sum() == screen.n_obs
    control = found.cells.query("perturbation == 'control'")["pareto_k"]
    assert found.perturbations.loc["control", "median"] == pytest.approx(control.median())
    assert found.perturbations.loc["control", "high"] == pytest.approx((control > 0.7).mean())
    assert found.globals_k > psis.HIGH  # a few epochs


def test_given_cells_say_nothing_of_the_globals(fitted, screen, recwarn):
    found = fitted.psis(screen[:30].copy(), n_samples=100)
    assert math.isnan(found.globals_k) and len(found.cells) == 30
    assert not any("globals" in str(one.message) for one in recwarn)


def test_a_loaded_model_asks_for_cells(fitted, screen, tmp_path, recwarn):
    fitted.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    with pytest.raises(InputError, match="adata="):
        loaded.psis()
    cells = screen[:10].copy()
    pd.testing.assert_frame_equal(loaded.psis(cells, 100).cells, fitted.psis(cells, 100).cells)


def test_few_draws_are_refused(fitted):
    with pytest.raises(InputError, match="at least 100"):
        fitted.psis(n_samples=99)


def test_warnings_name_the_perturbations():
    index = [f"c{i}" for i in range(6)]
    labels = pd.Series(["A", "A", "A", "B", "B", "B"], index)
    found = psis.tabulate(np.array([0.9, 0.8, 0.1, 0.1, 0.2, 0.3]), labels, 0.2)
    with pytest.warns(InputWarning, match=r"33% of the cells, and of most cells of 'A'"):
        psis.warn_high(found)
    psis.warn_high(psis.tabulate(np.full(6, 0.5), labels, math.nan))  # silent: warnings are errors here
