"""The façade: what a fitted model answers, in which layout and units, and what it refuses."""

import copy
import json
import os
import subprocess
import sys
import tomllib
from fractions import Fraction
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from screens import small_screen

import sccvae_pyro as sv
from sccvae_pyro import SCCVAE, InputError, InputWarning
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.inference import posterior, results
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.spec import ModelSpec

ROOT = Path(__file__).parents[1]
LAYERS = ["delta", "delta_q05", "delta_q95", "delta_sd", "mean", "q05", "q95", "sd"]
SINGLE_PRECISION = 1e-5
QUICK = {"max_epochs": 2, "batch_size": 64, "progress": False}


@pytest.fixture(scope="session")
def held_out(screen):
    """A model that has not seen cells of G0003, alone or with others."""
    cells = screen[~screen.obs["perturbation"].str.contains("G0003")].copy()
    return SCCVAE(cells, n_nodes=5, hidden=(16,)).fit(**QUICK)


def refused(call, *parts):
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert part in str(error.value)


def pair_of(adata):
    return next(label for label in adata.obs["perturbation"].cat.categories if "+" in label)


# Prediction: layout and units


def test_layout_of_a_prediction(fitted, screen):
    pair = pair_of(screen)
    found = fitted.predict(["G0002", "control", pair], n_samples=20)
    assert list(found.obs_names) == ["G0002", "control", pair]
    assert list(found.var_names) == list(screen.var_names)
    assert list(found.obs["status"]) == ["seen", "control", "seen"]
    assert sorted(found.layers) == LAYERS
    assert found.uns["units"] == "mean log1p(CP10K)"
    assert found.uns["settings"] == {"penetrance": 1.0, "n_samples": 20, "seed": 0}
    assert all(np.isfinite(layer).all() for layer in found.layers.values())
    np.testing.assert_array_equal(found.X, found.layers["mean"])


def test_layers_belong_together(fitted):
    found = fitted.predict(["G0002", "G0005"], n_samples=50, return_draws=True)
    control = found.var["control_mean"].to_numpy()
    for name in ("mean", "q05", "q95"):
        delta = found.layers["delta" if name == "mean" else f"delta_{name}"]
        np.testing.assert_allclose(found.layers[name], control + delta, atol=SINGLE_PRECISION)
    np.testing.assert_array_equal(found.layers["sd"], found.layers["delta_sd"])
    draws = found.obsm["draws"]
    assert draws.shape == (2, 50, found.n_vars)
    np.testing.assert_allclose(draws.mean(1), found.layers["mean"], atol=SINGLE_PRECISION)
    np.testing.assert_allclose(draws.std(1, ddof=1), found.layers["sd"], atol=SINGLE_PRECISION)
    for name, level in (("q05", 0.05), ("q95", 0.95)):
        np.testing.assert_allclose(np.quantile(draws, level, 1), found.layers[name], atol=SINGLE_PRECISION)


def test_control_mean_is_that_of_the_cells(fitted, screen):
    """The observed mean of log1p(CP10K) of the control cells, at the library sizes of the screen."""
    control = screen[screen.obs["perturbation"] == "control"]
    observed = log1p_cp10k(control.X.toarray(), control.obs["total_umi"].to_numpy()).mean(0)
    found = fitted.predict("G0001", n_samples=2).var["control_mean"]
    np.testing.assert_allclose(found, observed, rtol=1e-5)


def test_values_that_are_not_counts_keep_their_units(fitted_values, log_screen):
    control = log_screen[log_screen.obs["perturbation"] == "control"].copy()
    found = fitted_values.predict(["G0001"], controls=control, n_samples=5)
    assert found.uns["units"] == "mean value"
    np.testing.assert_allclose(found.var["control_mean"], control.X.mean(0), rtol=1e-5)
    cells = fitted_values.sample_cells("G0001", 30)
    assert (np.round(cells.X) != cells.X).any()
    assert list(cells.obs.columns) == ["perturbation"]


def test_prediction_can_be_written(fitted, tmp_path):
    found = fitted.predict(["G0001"], n_samples=5, return_draws=True)
    found.write_h5ad(tmp_path / "prediction.h5ad")


def test_a_prediction_is_reproducible(fitted):
    one, two, other = (fitted.predict(["G0001"], n_samples=10, seed=seed).X for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_a_prediction_does_not_depend_on_what_else_is_asked(fitted):
    alone = fitted.predict(["G0001"], n_samples=10)
    among = fitted.predict(["G0004", "control", "G0001"], n_samples=10)
    np.testing.assert_allclose(alone.X[0], among.X[2], atol=SINGLE_PRECISION)


def test_predicting_leaves_the_random_state_alone(fitted):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fitted.predict(["G0001"], n_samples=3)
    fitted.sample_cells("G0001", 5)
    torch.testing.assert_close(torch.rand(2), expected)


# Prediction: what it means


def test_no_penetrance_is_control(fitted, screen):
    """Exactly: the same cells, the same noise, no shift."""
    labels = ["G0001", "G0006", pair_of(screen)]
    none = fitted.predict(labels, penetrance=0.0, n_samples=20, return_draws=True)
    control = fitted.predict(["control"], n_samples=20, return_draws=True)
    for name in LAYERS:
        np.testing.assert_array_equal(none.layers[name], np.repeat(control.layers[name], 3, axis=0))
    np.testing.assert_array_equal(none.layers["delta"], 0.0)
    np.testing.assert_array_equal(none.obsm["draws"], np.repeat(control.obsm["draws"], 3, axis=0))
    assert (np.abs(fitted.predict(labels, n_samples=20).layers["delta"]).max(1) > 1e-3).all()


def test_no_penetrance_is_control_for_an_unseen_perturbation(held_out):
    assert (held_out.predict(["G0003"], penetrance=0.0, n_samples=5).layers["delta"] == 0).all()


def test_penetrance_scales_the_shift(fitted):
    draws = posterior.draw(fitted.program, 7, 0)
    shift = fitted._push(draws, ["G0001"], 0).action
    deltas = [
        fitted.predict(["G0001"], penetrance=value, n_samples=7).layers["delta"] for value in (1.0, 0.5)
    ]
    assert np.abs(deltas[1]).sum() < np.abs(deltas[0]).sum()
    own = draws.values["strength"].reshape(7, -1, 1) * draws.values["direction"]
    torch.testing.assert_close(shift[:, 0], own[:, fitted.coding.perturbations.index("G0001")])


def test_shifts_of_a_combination_add_up(held_out):
    """Seen or not, in whatever order they are written."""
    draws = posterior.draw(held_out.program, 6, 0)
    labels = ["G0001", "G0002", "G0003", "G0001+G0002", "G0002+G0003", "control"]
    one, two, unseen, seen_pair, mixed_pair, control = held_out._push(draws, labels, 0).action.unbind(1)
    torch.testing.assert_close(seen_pair, one + two)
    torch.testing.assert_close(mixed_pair, two + unseen)
    torch.testing.assert_close(control, torch.zeros_like(control))
    assert (unseen != 0).all()
    orders = [held_out.predict([label], n_samples=4) for label in ("G0003+G0002", ["G0002", "G0003"])]
    assert [list(found.obs_names) for found in orders] == [["G0002+G0003"]] * 2
    np.testing.assert_array_equal(orders[0].X, orders[1].X)


def test_status_of_the_unseen(held_out):
    found = held_out.predict(["G0001", "G0003", "G0003+G0001"], n_samples=4)
    assert list(found.obs["status"]) == ["seen", "unseen", "unseen"]


def test_unseen_perturbations_keep_their_prior_spread(held_out):
    """No cells inform its residual: given the globals, it is a draw from the prior around its features."""
    n = 4000
    draws = posterior.draw(held_out.program, n, 0)
    shift = held_out._push(draws, ["G0003"], 0).action[:, 0].numpy()
    features = torch.as_tensor(held_out.features.rows(["G0003"]), dtype=torch.float32)
    functions, missed = (part[0].numpy() for part in held_out.program.basis(features))
    scale, signal, weights = (
        draws.values[f"direction_{name}"].squeeze(1).numpy()
        for name in ("scale", "signal", "function_weights")
    )
    centre = np.einsum("skb,b->sk", weights, functions)
    residual = scale**2 * (1 + signal**2 * missed)
    # Mean and mean square of the strength, LogNormal(0, s): exp(s^2 / 2) and exp(2 s^2).
    square = held_out.priors.penetrance.scale**2
    expected = np.exp(square / 2) * centre.mean(0)
    spread = np.exp(2 * square) * (residual + centre**2).mean(0)
    assert (np.abs(shift.mean(0) - expected) < 4 * shift.std(0) / np.sqrt(n)).all()
    assert (np.abs((shift**2).mean(0) - spread) < 4 * (shift**2).std(0) / np.sqrt(n)).all()


def test_controls_of_ones_own(fitted, screen):
    """Starting cells may be chosen: those of one batch have the mean of that batch."""
    control = screen[(screen.obs["perturbation"] == "control") & (screen.obs["batch"] == "batch_1")]
    found = fitted.predict(["G0001"], controls=control.copy(), n_samples=5)
    observed = log1p_cp10k(control.X.toarray(), control.obs["total_umi"].to_numpy()).mean(0)
    np.testing.assert_allclose(found.var["control_mean"], observed, rtol=1e-5)
    assert (found.layers["delta"] != fitted.predict(["G0001"], n_samples=5).layers["delta"]).any()


def test_population_mean_agrees_with_sampled_cells(fitted):
    """Two roads to one mean: the expectation over counts, and cells simulated with all uncertainty."""
    n, n_draws = 4000, 200
    draws = posterior.draw(fitted.program, n_draws, seed=1)
    push = fitted._push(draws, ["G0001"], 1)
    deltas = results.population_deltas(fitted.program, draws, fitted.controls, push, seed=1)[:, 0]
    sampled, control = (
        log1p_cp10k(cells.X, cells.obs["library"].to_numpy())
        for cells in (fitted.sample_cells(label, n) for label in ("G0001", "control"))
    )
    found = sampled.mean(0) - control.mean(0)
    # Sampled cells share 200 draws of the globals, the expectation has as many of its own.
    variance = (sampled.var(0) + control.var(0)) / n + 2 * deltas.var(0) / n_draws
    # The tabulated expectation interpolates within 0.005, on both sides of the difference.
    assert (np.abs(found - deltas.mean(0)) < 4 * np.sqrt(variance) + 0.01).all()


# Sampled cells and counterfactuals


def test_sampled_cells(fitted):
    cells = fitted.sample_cells(["G0002", "G0001"], 300)
    assert cells.shape == (300, 24)
    assert set(cells.obs["perturbation"]) == {"G0001+G0002"}
    assert (cells.X >= 0).all()
    assert (np.round(cells.X) == cells.X).all()
    assert set(cells.obs["library"]) <= set(fitted.controls.library_c.numpy())
    np.testing.assert_array_equal(cells.X, fitted.sample_cells("G0001+G0002", 300).X)
    # All of the transcriptome is measured here: each cell has about as many molecules as its library.
    assert np.corrcoef(cells.X.sum(1), cells.obs["library"])[0, 1] > 0.9


def test_counterfactual_layout(fitted, screen):
    cells = screen[:30].copy()
    found = fitted.counterfactual(cells, "G0004", n_samples=10)
    assert sorted(found.layers) == ["counterfactual", "effect", "effect_q05", "effect_q95", "factual"]
    assert list(found.obs_names) == list(cells.obs_names)
    pd.testing.assert_frame_equal(found.obs, cells.obs)
    assert (found.uns["perturbation"], found.uns["units"]) == ("G0004", "log1p(CP10K)")
    difference = found.layers["counterfactual"] - found.layers["factual"]
    np.testing.assert_allclose(difference, found.layers["effect"], atol=SINGLE_PRECISION)
    np.testing.assert_array_equal(found.X, found.layers["counterfactual"])


def test_counterfactual_of_what_happened_changes_nothing(fitted, screen):
    """The own perturbation is taken back and given again; a control cell stays one at penetrance 0."""
    own = screen[screen.obs["perturbation"] == "G0002"].copy()
    assert (fitted.counterfactual(own, "G0002", n_samples=5).layers["effect"] == 0).all()
    control = screen[screen.obs["perturbation"] == "control"].copy()
    assert (fitted.counterfactual(control, "control", n_samples=5).layers["effect"] == 0).all()
    assert (fitted.counterfactual(control, "G0002", penetrance=0, n_samples=5).layers["effect"] == 0).all()
    assert np.abs(fitted.counterfactual(own, "control", n_samples=5).layers["effect"]).max() > 1e-3


def test_counterfactual_does_not_depend_on_the_other_cells(fitted, screen, monkeypatch):
    """Walked in chunks of 5 cells, each cell is read for itself; only the draws of its noise differ."""
    cells = screen[:12].copy()
    whole = fitted.counterfactual(cells, "G0004", n_samples=60)
    monkeypatch.setattr(posterior, "CELL_CHUNK", 60 * 5 // 8 + 1)
    parts = fitted.counterfactual(cells, "G0004", n_samples=60)
    # The 90 % interval is 3.3 sd wide; two means of 60 draws differ by sd sqrt(2 / 60).
    sd = (whole.layers["effect_q95"] - whole.layers["effect_q05"]) / 3.3
    difference = np.abs(parts.layers["effect"] - whole.layers["effect"])
    assert difference.max() > 0
    assert (difference < 4 * sd * np.sqrt(2 / 60) + SINGLE_PRECISION).mean() > 0.99


def test_latent_states_fit_together(fitted, screen):
    """u and z are posterior means, cells x nodes; of control cells, u (I - B) is z draw by draw."""
    u, z = (fitted.get_latent(screen, kind, n_samples=5) for kind in ("u", "z"))
    for table in (u, z):
        assert table.shape == (screen.n_obs, 5)
        assert list(table.columns) == [f"node_{k}" for k in range(5)]
        assert list(table.index) == list(screen.obs_names)
    assert not np.allclose(u, z)
    no_graph = SCCVAE(screen, n_nodes=3, hidden=(8,), graph="NoGraph").fit(**QUICK)
    control = screen[screen.obs["perturbation"] == "control"].copy()
    u, z = (no_graph.get_latent(control, kind, n_samples=5) for kind in ("u", "z"))
    np.testing.assert_allclose(u, z, rtol=1e-5)


# Tables


def test_penetrance_table(fitted):
    table = fitted.penetrance(n_samples=400)
    assert list(table.index) == list(fitted.coding.perturbations)
    assert list(table.columns) == ["mean", "sd", "q05", "median", "q95"]
    assert (table["q05"] < table["median"]).all()
    assert (table["median"] < table["q95"]).all()
    factor = fitted.program.proposal.penetrance_factor.factor
    # The standard error of a median of n normals is 1.25 sd / sqrt(n).
    standard_error = 1.25 * factor.log_scale.detach().exp().numpy() / 20
    assert (np.abs(np.log(table["median"]) - factor.loc.detach().numpy()) < 4 * standard_error).all()


def test_known_penetrance_is_reported(screen):
    model = SCCVAE(screen, n_nodes=2, hidden=(8,), penetrance=sv.priors.penetrance.Fixed(0.5)).fit(**QUICK)
    table = model.penetrance(n_samples=10)
    assert (table[["mean", "q05", "median", "q95"]] == 0.5).all(axis=None)
    assert (table["sd"] == 0).all()


def test_edge_table(fitted):
    table = fitted.edges(n_samples=300)
    assert len(table) == 5 * 4 / 2
    order = table[["source", "target"]].apply(lambda column: column.str.removeprefix("node_").astype(int))
    assert (order["source"] < order["target"]).all()
    assert not order.duplicated().any()
    assert (table["mean"].abs().diff().dropna() <= 0).all()
    assert (table["q05"] < table["q95"]).all()
    assert table["probability_positive"].between(0, 1).all()
    assert (table["present"] == 1).all()
    B = torch.zeros(5, 5)
    B[tuple(torch.triu_indices(5, 5, 1))] = fitted.program.proposal.graph_factor.factor.loc.detach()
    found = B.numpy()[order["source"], order["target"]]
    sd = table["sd"].to_numpy()
    assert (np.abs(table["mean"] - found) < 4 * sd / np.sqrt(300)).all()


def test_no_graph_has_no_edges(screen):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), graph="NoGraph").fit(**QUICK)
    table = model.edges(n_samples=5)
    assert len(table) == 0


def test_predictable_says_why(held_out, screen):
    table = held_out.predictable(["G0001", "G0003", "Nope"]).set_index("gene")
    assert list(table["predictable"]) == [True, True, False]
    assert table.loc["G0001", "reason"] == "seen in training"
    assert "features" in table.loc["Nope", "reason"]
    refused(lambda: held_out.predict(["Nope"]), table.loc["Nope", "reason"])


# Log density


def test_log_density_knows_the_cells(fitted, screen):
    """Cells of the screen are likelier than the same cells with their genes in another order."""
    found = fitted.log_density(screen, n_samples=5)
    assert list(found.index) == list(screen.obs_names)
    assert np.isfinite(found).all()
    shuffled = screen.copy()
    shuffled.X = shuffled.X[:, np.random.default_rng(0).permutation(24)]
    assert (found > fitted.log_density(shuffled, n_samples=5)).mean() > 0.95


def test_log_density_of_the_unseen(held_out, screen):
    cells = screen[screen.obs["perturbation"] == "G0003"].copy()
    assert np.isfinite(held_out.log_density(cells, n_samples=5)).all()


# Covariates


def test_covariates_enter_encoder_and_decoder(fitted, screen):
    """The same cell in another batch: another state proposed, another profile decoded."""
    batch = fitted._screen[np.arange(20)]
    assert batch.covariates_cv.shape == (20, 2)
    other = batch._replace(covariates_cv=batch.covariates_cv.flip(-1))
    with torch.no_grad():
        state, moved = fitted.program.encode(batch)[0], fitted.program.encode(other)[0]
        assert (state != moved).any(-1).all()
        change, changed = (fitted.program.decode(state, b.covariates_cv) for b in (batch, other))
    assert (change != changed).any(-1).all()


def test_unknown_level_of_a_covariate(fitted, screen):
    cells = screen[:10].copy()
    cells.obs["batch"] = "batch_9"
    refused(lambda: fitted.get_latent(cells), "'batch'", "'batch_9'", "'batch_1'")


def test_missing_covariate(fitted, screen):
    cells = screen[:10].copy()
    del cells.obs["batch"]
    refused(lambda: fitted.get_latent(cells), "'batch'")


# Bad arguments


def test_unfitted_model_refuses(screen):
    model = SCCVAE(screen, n_nodes=2, hidden=(4,))
    calls = [
        lambda: model.predict(["G0001"]),
        lambda: model.sample_cells("G0001"),
        lambda: model.counterfactual(screen, "G0001"),
        lambda: model.get_latent(screen),
        lambda: model.log_density(screen),
        model.edges,
        model.penetrance,
        model.to_arviz,
        lambda: model.save("nowhere"),
    ]
    for call in calls:
        refused(call, "not fitted", "fit()")
    assert not model.is_fitted
    assert "not fitted" in repr(model)


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("Nope", ["'Nope'", "features"]),
        ("G0001+Nope", ["'Nope'"]),
        ("G0001+G0001", ["'G0001+G0001'", "twice"]),
        ("G0001+", ["'G0001+'", "empty"]),
        ("", ["''"]),
        (7, ["7"]),
        (["G0001", 7], ["7"]),
    ],
)
def test_bad_perturbation(fitted, screen, label, parts):
    refused(lambda: fitted.predict([label], n_samples=2), *parts)
    refused(lambda: fitted.sample_cells(label, 5), *parts)
    refused(lambda: fitted.counterfactual(screen[:5].copy(), label, n_samples=2), *parts)


def test_perturbation_asked_for_twice(fitted):
    refused(lambda: fitted.predict(["G0001+G0002", "G0002+G0001"]), "'G0001+G0002'", "twice")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, 1e20, -0.5, True, "strong", None])
def test_bad_penetrance(fitted, screen, value):
    refused(lambda: fitted.predict(["G0001"], penetrance=value, n_samples=2), "penetrance", repr(value))
    refused(lambda: fitted.sample_cells("G0001", 5, penetrance=value), "penetrance", repr(value))
    refused(
        lambda: fitted.counterfactual(screen[:5].copy(), "G0001", penetrance=value, n_samples=2),
        "penetrance",
        repr(value),
    )


@pytest.mark.parametrize("value", [0, -3, 2.5, "many"])
def test_bad_number_of_draws_or_cells(fitted, screen, value):
    refused(lambda: fitted.predict(["G0001"], n_samples=value), "n_samples", repr(value))
    refused(lambda: fitted.sample_cells("G0001", value), "n must", repr(value))
    refused(
        lambda: fitted.counterfactual(screen[:5].copy(), "G0001", n_samples=value), "n_samples", repr(value)
    )
    refused(lambda: fitted.penetrance(n_samples=value), "n_samples", repr(value))
    refused(lambda: fitted.edges(n_samples=value), "n_samples", repr(value))


@pytest.mark.parametrize("seed", [1.5, "a", -1, None, True, 2**64])
def test_bad_seed(fitted, screen, seed):
    part = screen[:5].copy()
    for ask in (
        lambda: fitted.predict(["G0001"], n_samples=2, seed=seed),
        lambda: fitted.sample_cells("G0001", 5, seed=seed),
        lambda: fitted.counterfactual(part, "G0001", n_samples=2, seed=seed),
        lambda: fitted.get_latent(part, seed=seed),
        lambda: fitted.log_density(part, seed=seed),
        lambda: fitted.edges(seed=seed),
    ):
        refused(ask, f"seed must be a whole number from 0 to 2**63 - 1, not {seed!r}")


@pytest.mark.parametrize("seed", [1.5, "1", -1, True, 2**64])
def test_bad_seed_of_a_fit(screen, seed):
    refused(lambda: SCCVAE(screen, n_nodes=2, hidden=(4,)).fit(seed=seed), f"seed = {seed!r}")


def test_numbers_of_numpy_and_fractions_are_numbers(fitted):
    one = fitted.predict(["G0001"], 0.5, n_samples=2, seed=3)
    other = fitted.predict(["G0001"], Fraction(1, 2), n_samples=np.int64(2), seed=np.int64(3))
    np.testing.assert_array_equal(one.X, other.X)
    assert one.uns["settings"] == other.uns["settings"]
    assert {type(value) for value in other.uns["settings"].values()} == {float, int}


def test_controls_must_be_control_cells(fitted, screen):
    refused(lambda: fitted.predict(["G0001"], controls=screen), "controls=", "control cells only")


def test_cells_that_do_not_fit_the_model(fitted, screen, log_screen):
    refused(lambda: fitted.counterfactual(screen[:, :20].copy(), "G0001"), "'G0020'")
    refused(lambda: fitted.get_latent(log_screen), "counts", "continuous")
    raw = screen.copy()
    del raw.uns["sccvae"]
    refused(lambda: fitted.counterfactual(raw, "G0001"), "setup_anndata")
    refused(lambda: fitted.get_latent(screen, kind="w"), "'w'", "'u'", "'z'")


def test_genes_may_come_in_another_order(fitted, screen):
    cells = screen[:20].copy()
    order = np.random.default_rng(0).permutation(24)
    pd.testing.assert_frame_equal(fitted.get_latent(cells[:, order].copy()), fitted.get_latent(cells))


def test_cells_of_an_unseen_perturbation_have_no_counterfactual(held_out, screen):
    cells = screen[screen.obs["perturbation"] == "G0003"].copy()
    refused(lambda: held_out.counterfactual(cells, "G0001", n_samples=2), "'G0003'", "not seen")


def test_screen_without_control_cells(screen):
    cells = screen[screen.obs["perturbation"] != "control"].copy()
    refused(lambda: SCCVAE(cells), "no control cells", "'control'")


# Without features


@pytest.fixture(scope="module")
def featureless(screen):
    """A model without features: the targets are not measured, and there is no table."""
    cells = screen[:, 8:].copy()
    sv.setup_anndata(cells, "perturbation", "control", library_key="total_umi")
    return SCCVAE(cells, n_nodes=3, hidden=(8,)).fit(**QUICK)


def test_without_features_the_population_is_predicted(featureless):
    """Every unseen perturbation is a draw of the population."""
    model = featureless
    assert model.features is None
    assert model.predictable(["Anything"])["predictable"].all()
    with pytest.warns(InputWarning, match="that of the population"):
        one, two = (model.predict([name], n_samples=300).layers["delta"] for name in ("Anything", "Else"))
    np.testing.assert_allclose(one, two, atol=SINGLE_PRECISION)


def test_without_features_a_typo_is_pointed_out(featureless):
    near = r"does not perturb 'G00001'.*that of the population.*Did you mean 'G0001'\?"
    for ask in (
        lambda: featureless.predict(["G0002", "G00001"], n_samples=2),
        lambda: featureless.sample_cells("G0002+G00001", 5),
    ):
        with pytest.warns(InputWarning, match=near) as caught:
            ask()
        assert [warning.filename for warning in caught] == [__file__]


def test_without_features_the_seen_are_predicted_silently(featureless):
    featureless.predict(["G0001", "control", "G0002+G0001"], n_samples=2)


@pytest.mark.parametrize("model", ["featureless", "fitted"])
@pytest.mark.parametrize(
    ("asked", "known"),
    [("g0001", "G0001"), ("G 0001", "G0001"), ("Control", "control"), ("G0002+g0001", "G0001")],
)
def test_another_spelling_of_a_known_name(model, asked, known, request):
    model = request.getfixturevalue(model)
    refused(lambda: model.predict([asked], n_samples=2), "only by case or blanks", f"Write {known!r}")


def test_features_of_measured_targets_are_found(screen):
    """Without a table, the control-cell PCA of the targets."""
    cells = screen.copy()
    sv.setup_anndata(cells, "perturbation", "control", library_key="total_umi")
    model = SCCVAE(cells, n_nodes=3, hidden=(8,))
    assert set(model.features.table.index) == set(screen.var_names)
    assert model.program.features.shape[0] == 8
    assert model.program.features.shape[1] > 2


# Saving and loading

FRESH = """
import sys
from sccvae_pyro import SCCVAE
model = SCCVAE.load(sys.argv[1])
model.predict(["G0001", "G0003"], n_samples=5).write_h5ad(sys.argv[2])
"""


def test_saved_model_answers_in_a_fresh_process_without_the_data(held_out, tmp_path):
    held_out.save(tmp_path / "model")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "model"), str(tmp_path / "prediction.h5ad")]
    run = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = anndata.read_h5ad(tmp_path / "prediction.h5ad")
    expected = held_out.predict(["G0001", "G0003"], n_samples=5)
    np.testing.assert_array_equal(found.X, expected.X)
    np.testing.assert_array_equal(found.layers["q95"], expected.layers["q95"])
    assert list(found.obs["status"]) == ["seen", "unseen"]


def test_loaded_model_is_the_saved_one(fitted, screen, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = SCCVAE.load(tmp_path / "model")
    assert repr(loaded) == repr(fitted)
    assert loaded.coding == fitted.coding
    assert loaded.spec == fitted.spec
    pd.testing.assert_frame_equal(loaded.history, fitted.history)
    pd.testing.assert_frame_equal(loaded.features.table, fitted.features.table, check_names=False)
    for question in (
        lambda model: model.sample_cells("G0001", 10).X,
        lambda model: model.counterfactual(screen[:5].copy(), "G0002", n_samples=3).X,
        lambda model: model.get_latent(screen, n_samples=2).to_numpy(),
        lambda model: model.edges(n_samples=5)["mean"].to_numpy(),
        lambda model: model.predict(["G0001"], n_samples=3).var["control_mean"].to_numpy(),
    ):
        np.testing.assert_array_equal(question(loaded), question(fitted))


def test_saving_again_replaces_the_model(fitted, fitted_values, tmp_path):
    fitted.save(tmp_path / "model")
    fitted_values.save(tmp_path / "model")
    assert repr(SCCVAE.load(tmp_path / "model")) == repr(fitted_values)


def test_a_file_in_the_way_of_a_model_stays(fitted, tmp_path):
    (tmp_path / "notes").write_text("mine")
    for folder in (tmp_path / "notes", tmp_path / "notes" / "model"):
        refused(lambda folder=folder: fitted.save(folder), "notes is a file", "another folder")
    assert (tmp_path / "notes").read_text() == "mine"


def test_saved_weights_are_plain_tensors(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    tensors = torch.load(tmp_path / "model/weights.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert not any(value.requires_grad for value in tensors.values())
    json.loads((tmp_path / "model/model.json").read_text())


def test_a_fitted_model_can_be_copied(fitted):
    twin = copy.deepcopy(fitted)
    np.testing.assert_array_equal(
        twin.predict(["G0001"], n_samples=3).X, fitted.predict(["G0001"], n_samples=3).X
    )


@pytest.fixture
def saved(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, **changes):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, **changes}))


def test_load_refuses_a_folder_without_a_model(tmp_path):
    refused(lambda: SCCVAE.load(tmp_path), str(tmp_path), "holds no model")


def test_load_refuses_another_format(saved):
    rewrite(saved, format=99)
    refused(lambda: SCCVAE.load(saved), "format 99")


def test_load_refuses_sizes_that_do_not_fit(saved, fitted):
    sizes = {**json.loads((saved / "model.json").read_text())["sizes"], "nodes": 7}
    rewrite(saved, sizes=sizes)
    refused(lambda: SCCVAE.load(saved), str(saved), "do not fit together", "size mismatch")


def test_load_refuses_a_prior_that_does_not_fit(saved):
    spec = json.loads((saved / "model.json").read_text())["spec"]
    rewrite(saved, spec={**spec, "graph": {"name": "NoGraph"}})
    refused(lambda: SCCVAE.load(saved), "do not fit together", "graph_factor")
    rewrite(saved, spec={**spec, "graph": {"name": "Wishbone"}})
    refused(lambda: SCCVAE.load(saved), "'Horseshoe'", "'Laplace'")


def test_load_refuses_genes_that_do_not_fit(saved):
    coding = json.loads((saved / "model.json").read_text())["coding"]
    rewrite(saved, coding={**coding, "genes": coding["genes"][:-1]})
    refused(lambda: SCCVAE.load(saved), "do not fit together")


def test_load_refuses_a_missing_part(saved):
    description = json.loads((saved / "model.json").read_text())
    del description["coding"]
    (saved / "model.json").write_text(json.dumps(description))
    refused(lambda: SCCVAE.load(saved), "do not fit together", "coding")


def test_load_refuses_damaged_weights(saved):
    whole = (saved / "weights.pt").read_bytes()
    (saved / "weights.pt").write_bytes(whole[: len(whole) // 2])
    refused(lambda: SCCVAE.load(saved), str(saved), "damaged")


@pytest.mark.parametrize("name", ["weights.pt", "history.csv"])
def test_load_refuses_a_missing_file(saved, name):
    (saved / name).unlink()
    refused(lambda: SCCVAE.load(saved), str(saved), "missing")


def test_load_refuses_a_damaged_description(saved):
    (saved / "model.json").write_text("{")
    refused(lambda: SCCVAE.load(saved), "model.json", "damaged")


# Specs and defaults


def test_defaults_of_the_facade_are_those_of_the_spec(screen):
    assert SCCVAE(screen).spec == ModelSpec.read().settled("counts")
    from_file = SCCVAE.from_spec(screen, ROOT / "models/default.toml")
    assert from_file.priors == SCCVAE(screen).priors
    assert from_file.program.sizes == SCCVAE(screen).program.sizes


def test_inference_file_is_the_default():
    """What inference/svi.toml spells out is what fit() does, and it spells out everything but max_epochs."""
    assert InferenceSpec.read(ROOT / "inference/svi.toml") == InferenceSpec()
    written = set(tomllib.loads((ROOT / "inference/svi.toml").read_text()))
    assert written == set(InferenceSpec.model_fields) - {"max_epochs"}


def test_bad_inference_settings(screen):
    model = SCCVAE(screen, n_nodes=2, hidden=(4,))
    refused(lambda: model.fit(batchsize=3), "'batchsize'", "'batch_size'")
    refused(lambda: model.fit(max_epochs=0), "max_epochs", "0")
    refused(lambda: model.fit(learning_rate=-1.0), "learning_rate", "-1")
    refused(lambda: model.fit("nowhere.toml"), "nowhere.toml")


# Drawing and exporting


def test_program_can_be_drawn(fitted):
    drawing = fitted.render()
    for site in ("B", "strength", "direction", "z", "x", "inverse_dispersion"):
        assert site in drawing.source
    for plate in ("cells", "perturbations", "genes"):
        assert f"label={plate}" in drawing.source


def test_loaded_program_can_be_drawn(saved, fitted):
    assert sorted(SCCVAE.load(saved).render().source) == sorted(fitted.render().source)


@pytest.mark.parametrize(
    "direction", ["GaussianProcess", "Linear", "SparseLinear", {"name": "Simplex", "hidden": 4}]
)
def test_arviz_has_named_coordinates(screen, direction):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), direction=direction).fit(**QUICK)
    found = model.to_arviz(n_samples=12).posterior
    assert found["strength"].dims == ("chain", "draw", "perturbation")
    assert found["B"].dims == ("chain", "draw", "parent", "node")
    assert found.sizes["draw"] == 12
    assert list(found["perturbation"].values) == list(model.coding.perturbations)
    assert list(found["gene"].values) == list(model.coding.genes)
    assert list(found["node"].values) == model.nodes
    if direction == "GaussianProcess":
        weights = found["direction_function_weights"]
        assert weights.dims == ("chain", "draw", "node", "function_or_constant")
        assert weights["function_or_constant"].values[0] == "constant"
    if direction in ("Linear", "SparseLinear"):
        assert found["direction"].dims == ("chain", "draw", "perturbation", "node")
        assert found["direction_weights"].dims == ("chain", "draw", "node", "feature_or_constant")
        columns = list(model.features.table.columns)
        assert list(found["feature_or_constant"].values) == ["constant", *columns]
        assert list(found["feature"].values) == columns
    if direction == "SparseLinear":
        assert found["direction_local_scale"].dims == ("chain", "draw", "node", "feature")
    if direction in ("GaussianProcess", "Linear", "SparseLinear"):
        assert not [name for name in found.dims if name.endswith(tuple("0123456789"))]
    draws = posterior.draw(model.program, 12, 0)
    np.testing.assert_allclose(found["B"].values[0], draws.B)
    np.testing.assert_allclose(
        found["strength"].sel(perturbation="G0002").values[0], draws.values["strength"][:, 2]
    )


# Any choice of priors


@pytest.mark.parametrize("graph", ["Laplace", "Normal", "NoGraph"])
@pytest.mark.parametrize("penetrance", ["LogNormal", "Fixed"])
@pytest.mark.parametrize("direction", ["GaussianProcess", "Linear", "SparseLinear", "Simplex"])
def test_every_choice_of_priors_can_be_fitted_and_asked(screen, graph, penetrance, direction, tmp_path):
    model = SCCVAE(screen, n_nodes=3, hidden=(8,), graph=graph, penetrance=penetrance, direction=direction)
    model.fit(max_epochs=1, batch_size=128, progress=False)
    found = model.predict(["G0001", pair_of(screen)], n_samples=4)
    assert np.isfinite(found.layers["q95"]).all()
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(
        SCCVAE.load(tmp_path / "model").predict(["G0001"], n_samples=4).X,
        model.predict(["G0001"], n_samples=4).X,
    )


def test_one_of_everything():
    """The smallest screen there can be: one perturbation, one node, no features, no covariates."""
    cells = small_screen(n_perturbations=2, n_combinations=0, n_modules=1)
    cells = cells[cells.obs["perturbation"] != "G0001"].copy()
    cells.obs["perturbation"] = cells.obs["perturbation"].cat.remove_unused_categories()
    sv.setup_anndata(cells, "perturbation", "control", library_key="total_umi")
    model = SCCVAE(cells, n_nodes=1, hidden=(4,)).fit(**QUICK)
    assert np.isfinite(model.predict(["G0000"], n_samples=3).X).all()
    assert len(model.edges(n_samples=3)) == 0
    assert len(model.penetrance(n_samples=3)) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, "list of labels such as .* not None"),
        (5, "list of labels such as .* not 5"),
        (np.nan, "list of labels such as .* not nan"),
        (np.array("G0001"), "list of labels"),
        (pd.DataFrame({"G0001": [1]}), "list of labels"),
        ({"G0001": 1}, "list of labels"),
        ([None], "A perturbation is a label .* not None"),
        ([np.nan], "A perturbation is a label .* not nan"),
        ([5], "A perturbation is a label .* not 5"),
    ],
    ids=repr,
)
def test_what_is_no_list_of_labels(fitted, asked, message):
    with pytest.raises(InputError, match=message):
        fitted.predict(asked, n_samples=2)
    with pytest.raises(InputError, match=message):
        fitted.predictable(asked)


def test_no_label(fitted):
    refused(lambda: fitted.predict([], n_samples=2), "No perturbation is asked for")
    assert fitted.predictable([]).empty


def test_what_can_be_predicted_is_called_predictable(held_out):
    asked = ["G0001+G0002", "control", ["G0001"], "G0001+Nope", "Nope"]
    table = held_out.predictable(asked)
    assert table["gene"].tolist() == ["G0001+G0002", "control", "G0001", "G0001+Nope", "Nope"]
    assert table["predictable"].tolist() == [True, True, True, False, False]
    assert table["reason"].iloc[3] == f"Nope: {table['reason'].iloc[4]}"
    held_out.predict(asked[:3], n_samples=2)


def test_a_drawing_needs_a_format_and_a_folder(fitted, tmp_path):
    refused(lambda: fitted.render(tmp_path / "program.foo"), "program.foo", ".pdf or .png or .svg")
    refused(lambda: fitted.render(f"{__file__}/program.pdf"), "is a file")
    refused(lambda: fitted.render(5), "not 5")
    assert not list(tmp_path.iterdir())


# Damaged models


def described(saved, part, **changes):
    """Change entries of a part of the description."""
    stored = json.loads((saved / "model.json").read_text())[part]
    rewrite(saved, **{part: {**stored, **changes}})


def weighed(saved, **changes):
    tensors = torch.load(saved / "weights.pt", weights_only=True)
    torch.save(
        {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}},
        saved / "weights.pt",
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: described(saved, "features", genes=["a"]),
        lambda saved: described(saved, "features", columns=["a"]),
        lambda saved: described(saved, "sizes", genes=-1),
        lambda saved: described(saved, "sizes", genes=10**12),
        lambda saved: described(saved, "sizes", node_names=["a"]),
        lambda saved: described(saved, "sizes", cells="x"),
        lambda saved: described(saved, "coding", genes=["a"] * 24),
        lambda saved: described(saved, "coding", labels=[]),
        lambda saved: described(saved, "coding", perturbations=["G0001"] * 8),
        lambda saved: described(saved, "coding", perturbations=[f"G{i:04}" for i in reversed(range(8))]),
        lambda saved: weighed(saved, program__origin_k=torch.full((5,), torch.nan)),
        lambda saved: weighed(saved, controls__state_ck=torch.zeros(3, 5)),
        lambda saved: weighed(saved, controls__mean_g=torch.zeros(3)),
        lambda saved: weighed(saved, discrepancy__mean_g=torch.zeros(3)),
        lambda saved: torch.save(torch.zeros(3), saved / "weights.pt"),
        lambda saved: torch.save({"a": 5}, saved / "weights.pt"),
        lambda saved: (saved / "model.json").write_text(9999 * "["),
        lambda saved: (saved / "history.csv").write_text("epoch,loss\n0,1.0\n"),
        lambda saved: (saved / "history.csv").write_text("epoch,train_loss,validation_loss\n0,1.0\n"),
        lambda saved: (saved / "history.csv").write_text("epoch,train_loss,validation_loss\n"),
    ],
    ids=range(20),
)
def test_damaged_models_are_refused(saved, damage):
    damage(saved)
    with pytest.raises(InputError, match=r"do not fit together|damaged"):
        SCCVAE.load(saved)


@pytest.mark.parametrize("place", [None, 5, "a" * 300], ids=["None", "5", "long"])
def test_what_is_no_place_for_a_model(fitted, place):
    with pytest.raises(InputError, match="path"):
        fitted.save(place)
    with pytest.raises(InputError, match="path"):
        SCCVAE.load(place)


def test_a_folder_in_the_way_of_a_part_is_seen_before_anything_is_written(fitted, tmp_path):
    (tmp_path / "model.json").mkdir()
    refused(lambda: fitted.save(tmp_path), "model.json is a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
