"""Baselines against closed forms, and their fall back to the mean effect."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import Ridge as SklearnRidge

from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.errors import InputError
from sccvae_pyro.evaluate import baselines
from sccvae_pyro.evaluate.baselines import BASELINES, Training

LAYERS = {"sd", "q05", "q95", "delta_q05", "delta_q95"}


@dataclass
class Table:
    """Features of some genes."""

    table: pd.DataFrame

    def predictable(self, genes):
        known = [gene in self.table.index for gene in genes]
        return pd.DataFrame({"gene": list(genes), "predictable": known})

    def rows(self, genes):
        missing = [gene for gene in genes if gene not in self.table.index]
        if missing:
            raise InputError(f"no features for {missing}")
        return self.table.loc[list(genes)].to_numpy()


def training(mean, n_cells=100, var=0.0):
    """Training profiles from a table of means."""
    n = pd.Series(n_cells, index=mean.index)
    return Training.of(Profiles(mean, mean * 0 + var, n), "control")


@pytest.fixture
def world():
    """Effects of 40 genes that are linear in three features; ten of the genes are unseen."""
    rng = np.random.default_rng(0)
    genes = [f"G{i:02d}" for i in range(40)]
    features = Table(pd.DataFrame(rng.normal(size=(40, 3)), index=genes))
    shared = rng.normal(size=50)
    delta = shared + features.table.to_numpy() @ rng.normal(size=(3, 50))
    columns = genes + [f"R{i}" for i in range(10)]
    control = pd.Series(rng.uniform(1, 3, size=50), index=columns)
    mean = pd.DataFrame(delta, index=genes, columns=columns) + control
    mean.loc["control"] = control
    return training(mean.drop(index=genes[30:])), features, mean


@pytest.fixture
def noise_world(world):
    """The same effects with features that have nothing to do with them."""
    train, features, mean = world
    shuffled = np.random.default_rng(3).normal(size=(40, 3))
    return train, Table(pd.DataFrame(shuffled, index=features.table.index)), mean


# What all have in common


@pytest.mark.parametrize("name", BASELINES)
def test_layout(world, name):
    train, features, mean = world
    prediction = BASELINES[name].predict(train, features, ["G31", "control", "G02", ("G35", "G01")])
    assert list(prediction.obs_names) == ["G31", "control", "G02", "G01+G35"]
    assert list(prediction.obs["status"]) == ["unseen", "control", "seen", "unseen"]
    assert list(prediction.var_names) == list(mean.columns)
    np.testing.assert_array_equal(prediction.X, prediction.layers["mean"])
    control = prediction.var["control_mean"].to_numpy()
    np.testing.assert_array_equal(control, mean.loc["control"])
    np.testing.assert_allclose(prediction.layers["mean"] - control, prediction.layers["delta"])
    np.testing.assert_array_equal(prediction["control"].layers["delta"], 0.0)
    assert set(prediction.layers) == {"mean", "delta"} | (LAYERS if name == "GP" else set())
    assert prediction.uns["units"] == "mean log1p(CP10K)"
    assert all(np.isfinite(layer).all() for layer in prediction.layers.values())


@pytest.mark.parametrize("name", ["ridge", "kNN", "GP"])
def test_missing_features_are_named(world, name):
    train, _, _ = world
    with pytest.raises(InputError, match="features="):
        BASELINES[name].predict(train, None, ["G31"])
    with pytest.raises(InputError, match="FOO"):
        BASELINES[name].predict(train, world[1], ["FOO"])


@pytest.mark.parametrize("name", ["ridge", "kNN", "GP"])
def test_without_signal_it_is_near_the_perturbed_mean(noise_world, name):
    train, features, _ = noise_world
    genes = [f"G{i}" for i in range(30, 40)]
    predicted = BASELINES[name].predict(train, features, genes).layers["delta"]
    distance = np.mean((predicted - train.mean_delta) ** 2)
    assert distance < 0.2 * np.var(train.delta, axis=0).mean()


@pytest.mark.parametrize("name", ["ridge", "kNN", "GP"])
def test_signal_is_used(world, name):
    train, features, mean = world
    genes = [f"G{i}" for i in range(30, 40)]
    error = BASELINES[name].predict(train, features, genes).layers["mean"] - mean.loc[genes]
    trivial = BASELINES["perturbed mean"].predict(train, None, genes).layers["mean"] - mean.loc[genes]
    assert np.mean(error**2) < {"ridge": 1e-3, "kNN": 0.6, "GP": 0.3}[name] * np.mean(trivial**2)


@pytest.mark.parametrize("name", ["additive", "bilinear", "ridge", "kNN", "GP"])
def test_effects_of_combinations_add(world, name):
    train, features, _ = world
    both = BASELINES[name].predict(train, features, ["G01+G35", "G01", "G35"])
    parts = both[["G01", "G35"]]
    np.testing.assert_allclose(both["G01+G35"].layers["delta"][0], parts.layers["delta"].sum(axis=0))
    if name == "GP":
        variance = (parts.layers["sd"] ** 2).sum(axis=0)
        np.testing.assert_allclose(both["G01+G35"].layers["sd"][0] ** 2, variance)


def test_perturbations_without_features_do_not_train(world):
    train, features, _ = world
    partial = Table(features.table.drop(index="G05"))
    without = training_without(train, "G05")
    expected = BASELINES["ridge"].predict(without, features, ["G31"])
    np.testing.assert_allclose(BASELINES["ridge"].predict(train, partial, ["G31"]).X, expected.X)


def training_without(train, gene):
    return train._subset([gene not in targets for targets in train.targets])


def test_too_few_described_perturbations(world):
    train, features, _ = world
    with pytest.raises(InputError, match="1 of 30 single training perturbations"):
        BASELINES["ridge"].predict(train, Table(features.table.iloc[[0]]), ["G00"])


def test_training_needs_control_and_perturbation():
    mean = pd.DataFrame(1.0, index=["A", "B"], columns=["x"])
    with pytest.raises(InputError, match="'control'"):
        training(mean)
    with pytest.raises(InputError, match="at least one perturbation"):
        training(mean.rename(index={"A": "control"}).loc[["control"]])


def test_predict_baselines_adds_only_where_there_is_something_to_add(world):
    train, features, _ = world
    assert "additive" not in baselines.predict_baselines(train, features, ["G31"])
    assert set(baselines.predict_baselines(train, features, ["G31+G32"])) == set(BASELINES)
    assert list(baselines.predict_baselines(train, features, "G31")["control"].obs_names) == ["G31"]


# One by one


def test_trivial_baselines():
    mean = pd.DataFrame([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]], index=["control", "A", "B"], columns=["x", "y"])
    train = training(mean)
    np.testing.assert_array_equal(BASELINES["control"].predict(train, None, ["C"]).X, [[1.0, 1.0]])
    np.testing.assert_array_equal(BASELINES["perturbed mean"].predict(train, None, ["C"]).X, [[3.0, 1.0]])
    np.testing.assert_array_equal(BASELINES["perturbed mean"].predict(train, None, ["C+D"]).X, [[3.0, 1.0]])


def test_additive_adds_observed_singles():
    mean = pd.DataFrame([[1.0], [2.0], [4.0], [9.0]], index=["control", "A", "B", "A+C"], columns=["x"])
    predicted = BASELINES["additive"].predict(training(mean), None, ["A+B", "A+D", "A", "A+C"])
    mean_single = (1.0 + 3.0) / 2
    np.testing.assert_allclose(predicted.X[:, 0], [1 + 1 + 3, 1 + 1 + mean_single, 2.0, 1 + 1 + mean_single])


@pytest.mark.parametrize("penalty", [0.0, 0.7, 30.0])
def test_ridge_is_the_closed_form(penalty):
    rng = np.random.default_rng(0)
    X, Y, X_new = rng.normal(size=(20, 4)), rng.normal(size=(20, 3)), rng.normal(size=(5, 4))
    (fit,) = baselines.ridge_path(X, Y, [penalty])
    np.testing.assert_allclose(fit(X_new), SklearnRidge(alpha=penalty).fit(X, Y).predict(X_new))


def test_ridge_at_infinite_penalty_is_the_mean():
    X, Y = np.random.default_rng(0).normal(size=(2, 20, 4))
    (fit,) = baselines.ridge_path(X, Y, [np.inf])
    np.testing.assert_allclose(fit(X), np.tile(Y.mean(axis=0), (20, 1)))


def test_neighbours_by_hand():
    distances = np.array([[0.0, 4.0, 1.0], [9.0, 1.0, 4.0]])
    weights = baselines._neighbour_weights(distances, 2)
    np.testing.assert_array_equal(weights, [[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])


def test_gaussian_process_is_the_closed_form():
    """Amplitude, share, evidence and prediction agree with scikit-learn's under the same kernel."""
    rng = np.random.default_rng(0)
    X, X_new = rng.normal(size=(15, 2)), rng.normal(size=(4, 2))
    y = np.sin(X[:, 0]) + 0.1 * rng.normal(size=15)
    kernel, shares = RBF(1.3), (0.2, 0.6, 0.9, 0.98)

    def process(share):
        covariance = share * kernel(X) + (1 - share) * np.eye(15)
        scale = y @ np.linalg.solve(covariance, y) / 15
        return GaussianProcessRegressor(
            scale * share * kernel, alpha=scale * (1 - share), optimizer=None
        ).fit(X, y)

    fit = baselines.fit_shares(kernel(X), y[:, None], shares)
    processes = {share: process(share) for share in shares}
    best = max(shares, key=lambda share: processes[share].log_marginal_likelihood_value_)
    assert fit.share[0] == best
    assert fit.log_likelihood[0] == pytest.approx(processes[best].log_marginal_likelihood_value_)
    mean, sd = processes[best].predict(X_new, return_std=True)
    predicted_mean, predicted_var = fit.predict(0, kernel(X_new, X))
    np.testing.assert_allclose(predicted_mean, mean)
    np.testing.assert_allclose(predicted_var, sd**2 + processes[best].alpha)


def test_gaussian_process_interval_covers_the_unseen():
    """With noise features the interval is the spread of the true effects, sampling noise taken out."""
    rng = np.random.default_rng(1)
    genes, spread = [f"G{i}" for i in range(150)], np.linspace(0.3, 1.0, 20)
    truth = rng.normal(size=(150, 20)) * spread
    n_cells, var = 25, 9.0
    observed = truth + np.sqrt(var / n_cells) * rng.normal(size=truth.shape)
    mean = pd.DataFrame(observed, index=genes, columns=[f"x{i}" for i in range(20)])
    mean.loc["control"] = 0.0
    features = Table(pd.DataFrame(rng.normal(size=(150, 4)), index=genes))
    train = training(mean.drop(index=genes[100:]), n_cells, var)
    prediction = BASELINES["GP"].predict(train, features, genes[100:])
    inside = (prediction.layers["q05"] <= truth[100:]) & (truth[100:] <= prediction.layers["q95"])
    assert 0.85 < inside.mean() < 0.95
    np.testing.assert_allclose(prediction.layers["sd"].mean(axis=0)[10:], spread[10:], rtol=0.2)


def test_gaussian_process_is_sure_where_it_knows(world):
    train, features, _ = world
    far = Table(pd.concat([features.table, pd.DataFrame(50.0, index=["FAR"], columns=[0, 1, 2])]))
    sd = BASELINES["GP"].predict(train, far, ["G31", "FAR"]).layers["sd"].mean(axis=1)
    assert sd[0] < 0.6 * sd[1]


def test_bilinear_is_the_published_formula(world):
    train, _, mean = world
    seen = [f"G{i:02d}" for i in range(30)]
    pseudobulk = mean.loc[["control", *seen]].to_numpy().T
    centered = pseudobulk - pseudobulk.mean(axis=0)
    G = centered @ np.linalg.svd(centered)[2][:10].T
    P, Y = G[:30], (mean.loc[seen] - mean.loc["control"]).to_numpy().T
    b, ridge = Y.mean(axis=1, keepdims=True), 0.1 * np.eye(10)
    W = np.linalg.inv(G.T @ G + ridge) @ G.T @ (Y - b) @ P @ np.linalg.inv(P.T @ P + ridge)
    expected = (G @ W @ G[[33]].T + b)[:, 0]
    prediction = BASELINES["bilinear"].predict(train, None, ["G33"])
    np.testing.assert_allclose(prediction.layers["delta"][0], expected, atol=1e-8)


def test_bilinear_places_unmeasured_targets_by_their_features(world):
    train, features, _ = world
    table = features.table.copy()
    table.loc["TWIN"] = table.loc["G33"]
    with pytest.raises(InputError, match="features="):
        BASELINES["bilinear"].predict(train, None, ["TWIN"])
    prediction = BASELINES["bilinear"].predict(train, Table(table), ["TWIN", "G33"])
    assert np.isfinite(prediction.X).all()
    with pytest.raises(InputError, match="TWIN"):
        BASELINES["bilinear"].predict(train, Table(table.loc[["TWIN"]]), ["TWIN"])
