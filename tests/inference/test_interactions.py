"""Combinations against the sum of their parts: by hand, and where they must not interact."""

import copy

import numpy as np
import pytest
import torch
from screens import log_values, set_up, small_screen

from sccvae_pyro import SCCVAE, InputError
from sccvae_pyro.inference import interactions

LAYERS = ["additive", "delta", "interaction", "interaction_q05", "interaction_q95", "interaction_sd"]


@pytest.fixture(scope="module")
def linear(fitted_values):
    """A model of values whose decoder has no curvature."""
    model = copy.deepcopy(fitted_values)
    model.program.double()
    with torch.no_grad():
        model.program.decoder.body[-1].weight.zero_()
    model.controls = model.controls._replace(
        **{name: getattr(model.controls, name).double() for name in ("state_ck", "trust_k", "covariates_cv")}
    )
    model._drawn = None
    return model


def test_scores_by_hand():
    """Two genes; the second draw goes half as far as expected, the first a fifth farther, and aside."""
    expected = np.array([[[3.0, 4.0]], [[3.0, 4.0]]])
    deviation = np.array([[[0.6 - 4.0, 0.8 + 3.0]], [[-1.5, -2.0]]])
    found = interactions.scores(expected, deviation)
    np.testing.assert_allclose(found["projection"], [[0.2], [-0.5]])
    np.testing.assert_allclose(found["score"], [[np.sqrt(26) / 5], [0.5]])


def test_parts_are_summed_draw_by_draw():
    deltas = np.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    parsed = [("A", "C"), ("A", "B", "C")]
    assert interactions.parts(parsed) == ["A", "B", "C"]
    found = interactions.additive(deltas, parsed)
    np.testing.assert_array_equal(found[:, 0], deltas[:, 0] + deltas[:, 2])
    np.testing.assert_array_equal(found[:, 1], deltas.sum(1))


def test_layout(fitted):
    found = fitted.interactions(["G0001+G0002", ("G0003", "G0004", "G0005")], n_samples=20)
    assert list(found.obs_names) == ["G0001+G0002", "G0003+G0004+G0005"]
    assert sorted(found.layers) == LAYERS
    np.testing.assert_array_equal(found.X, found.layers["interaction"])
    np.testing.assert_allclose(
        found.layers["interaction"], found.layers["delta"] - found.layers["additive"], atol=1e-6
    )
    assert (found.layers["interaction_q05"] <= found.layers["interaction_q95"]).all()
    assert (found.obs["score"] >= found.obs["projection"].abs()).all(), "the projection is a part of it"
    assert found.obs["probability_synergistic"].between(0, 1).all()
    assert found.uns["settings"] == {"penetrance": 1.0, "n_samples": 20, "seed": 0}


def test_the_additive_effect_is_that_of_the_single_perturbations(fitted):
    """From the same draws: the program's part of predict, what all perturbations share counted in each."""
    found = fitted.interactions(["G0001+G0002"], n_samples=20)
    singles = fitted.predict(["G0001", "G0002"], n_samples=20).layers["delta"] - fitted.discrepancy.mean_g
    np.testing.assert_allclose(found.layers["additive"][0], singles.sum(0), atol=1e-5)


def test_a_linear_decoder_makes_no_interaction(linear):
    found = linear.interactions(["G0001+G0002", "G0003+G0004"], n_samples=10)
    assert np.abs(found.layers["additive"]).max() > 1e-3
    for name in ("interaction", "interaction_q05", "interaction_q95"):
        assert np.abs(found.layers[name]).max() < 1e-7  # differences are kept in single precision
    assert (found.obs["score"] < 1e-5).all()


def test_a_curved_decoder_does(fitted_values):
    found = fitted_values.interactions(["G0001+G0002"], penetrance=3.0, n_samples=10)
    assert found.obs["score"].iloc[0] > 1e-3


def test_order_does_not_matter(fitted):
    one, other = (fitted.interactions([pair], n_samples=10) for pair in ("G0001+G0002", ("G0002", "G0001")))
    assert list(one.obs_names) == list(other.obs_names)
    for name in LAYERS:
        np.testing.assert_array_equal(one.layers[name], other.layers[name])


def test_what_else_is_asked_for_does_not_matter(fitted):
    alone = fitted.interactions(["G0001+G0002"], n_samples=10)
    among = fitted.interactions(["G0003+G0004", "G0001+G0002"], n_samples=10)["G0001+G0002"]
    np.testing.assert_allclose(alone.X, among.X, atol=1e-6)


def test_without_penetrance_there_is_nothing_to_score(fitted):
    found = fitted.interactions(["G0001+G0002"], penetrance=0.0, n_samples=5)
    assert (found.X == 0).all() and found.obs["score"].isna().all()


def test_parts_that_escape_differently_interact():
    """A combination takes the mean of its parts' fractions, whatever the decoder."""
    screen = set_up(log_values(small_screen()))
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), responders="Beta").fit(max_epochs=2, progress=False)
    with torch.no_grad():
        model.program.decoder.body[-1].weight.zero_()
        model.program.proposal.responders_factor.own.factor.loc.copy_(torch.linspace(-2, 2, 8))
    found = model.interactions(["G0000+G0007"], n_samples=10)
    assert found.obs["score"].iloc[0] > 0.05


def test_single_perturbations_are_refused(fitted):
    with pytest.raises(InputError, match="'G0001' has no second target"):
        fitted.interactions(["G0001", "G0001+G0002"])
    with pytest.raises(InputError, match="Name at least one"):
        fitted.interactions([])
