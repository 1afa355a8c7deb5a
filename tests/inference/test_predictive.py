"""What the priors say in the units of the data, against closed forms and absurd beliefs."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from screens import set_up, small_screen

from sccvae_pyro import SCCVAE, InputError, InputWarning, priors
from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.inference import posterior, predictive
from sccvae_pyro.models.slot import Member

SMALL = {"n_nodes": 5, "hidden": (8,)}
ANCHORED = {"nodes": "Anchored", "hidden": (8,)}
ON_GENES = [
    ("nodes", "Anchored"),
    ("direction", "OwnNode"),
    ("intervention", "Do"),
    ("intervention", "Scale"),
]
COUNT_ROWS = [
    "edges",
    "effect_median",
    "effect_q90",
    "responding_cells",
    "variance_to_mean",
    "zero_fraction",
]
BY_NAME = [
    (slot, name)
    for slot, members in Member.registry.items()
    for name, member in members.items()
    if member.__module__.startswith("sccvae_pyro.")  # other tests define members of their own
    and member is not priors.graph.KnownGraph
    and getattr(member, "kind", "counts") == "counts"
    and (slot, name) not in [*ON_GENES, ("nodes", "Free")]
]
BELIEFS = [*BY_NAME, ("graph", priors.graph.KnownGraph([("node_0", "node_1")]))]


def ask(model, **settings):
    """The table, whatever the data say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        return model.prior_predictive(**settings)


def simulated(model, n_draws, seed=0):
    """Every draw of every quantity."""
    scope = predictive.Scope.of(model._screen, seed)
    draws = posterior.draw_prior(model.program, n_draws, seed)
    push = model._push(draws, scope.labels, seed)
    return predictive.simulate(model.program, draws, push, model._screen[scope.rows], seed)


# Layout


def test_layout(fitted):
    table = ask(fitted, n_samples=10)
    assert list(table.index) == COUNT_ROWS
    assert list(table.columns) == ["q05", "median", "q95", "data", "inside", "unit"]
    assert (table["q05"] <= table["median"]).all() and (table["median"] <= table["q95"]).all()
    assert list(table.index[table["data"].isna()]) == ["edges", "responding_cells"]
    assert (table["inside"].isna() == table["data"].isna()).all()
    assert "log1p(CP10K)" in table.loc["effect_median", "unit"]


def test_values_have_a_standard_deviation_and_no_zeros(fitted_values):
    table = ask(fitted_values, n_samples=10)
    assert list(table.index) == [*COUNT_ROWS[:4], "standard_deviation"]
    assert table.loc["effect_median", "unit"].endswith("mean value")


@pytest.mark.parametrize(("slot", "belief"), BELIEFS)
def test_every_prior_can_be_asked(screen, slot, belief):
    table = ask(SCCVAE(screen, **SMALL, **{slot: belief}), n_samples=10)
    assert np.isfinite(table[["q05", "median", "q95"]]).all(axis=None)


@pytest.mark.parametrize(("slot", "belief"), ON_GENES)
def test_every_prior_of_anchored_nodes_can_be_asked(screen, slot, belief):
    table = ask(SCCVAE(screen, **{**ANCHORED, slot: belief}), n_samples=10)
    assert np.isfinite(table[["q05", "median", "q95"]]).all(axis=None)


@pytest.mark.parametrize("name", ["Normal", "StudentT"])
def test_every_likelihood_of_values_can_be_asked(log_screen, name):
    table = ask(SCCVAE(log_screen, **SMALL, likelihood=name), n_samples=10)
    assert np.isfinite(table[["q05", "median", "q95"]]).all(axis=None)


def test_the_same_seed_gives_the_same_table(fitted):
    one, two, other = (ask(fitted, n_samples=9, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(other)


def test_asking_leaves_the_random_state_alone(fitted):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    ask(fitted, n_samples=2)
    torch.testing.assert_close(torch.rand(2), expected)


def test_a_model_without_its_screen_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    with pytest.raises(InputError, match="without its screen"):
        SCCVAE.load(tmp_path / "model").prior_predictive()


# The prior, in closed form


def test_edges_are_binomial(screen):
    """Ten possible edges, each above 0.1 in size with probability exp(-0.1 / scale)."""
    model = SCCVAE(screen, graph=priors.graph.Laplace(scale=0.1), **SMALL)
    n, law = 200, stats.binom(10, np.exp(-1.0))
    B = posterior.draw_prior(model.program, n, 0).B
    edges = simulated(model, n)["edges"]
    np.testing.assert_array_equal(edges, (B.abs() > 0.1).sum((1, 2)))
    assert edges.mean() == pytest.approx(law.mean(), abs=4 * law.std() / np.sqrt(n))
    assert edges.var() == pytest.approx(law.var(), rel=0.4)
    quantiles = predictive.compare(edges.to_frame(), pd.Series(dtype=float), "mean value").loc["edges"]
    expected = law.ppf([0.05, 0.5, 0.95])
    np.testing.assert_allclose(quantiles[["q05", "median", "q95"]].astype(float), expected, atol=1)


def test_directions_of_no_size_have_no_effect(screen):
    direction = priors.direction.GaussianProcess(scale=1e-8)
    table = ask(SCCVAE(screen, direction=direction, **SMALL), n_samples=20)
    assert (table.loc[["effect_median", "effect_q90"], "q95"] < 1e-5).all()


def test_larger_directions_have_larger_effects(screen):
    """Under one decoder: it starts from the same seed."""
    small, large = (
        ask(SCCVAE(screen, direction=priors.direction.GaussianProcess(scale=scale), **SMALL), n_samples=50)
        for scale in (0.1, 1.0)
    )
    assert large.loc["effect_median", "median"] > 3 * small.loc["effect_median", "median"]


def test_shares_have_the_mean_of_their_prior(screen):
    """That of the screen, Beta(4, 1), is 0.8 with variance 4 / 150; eight perturbations scatter around it.

    Given a mean m of ten cells, the variance of a perturbation is m (1 - m) / 11, with 4 / 30 for m (1 - m).
    """
    n, sd = 200, np.sqrt(4 / 150 + 4 / 30 / 11 / 8)
    shares = simulated(SCCVAE(screen, responders="Beta", **SMALL), n)["responding_cells"]
    assert shares.mean() == pytest.approx(0.8, abs=4 * sd / np.sqrt(n))
    assert shares.std() == pytest.approx(sd, rel=0.25)


def test_fitting_does_not_move_the_globals(screen, fitted):
    """They come from the prior, not from what the guide has learned."""
    before = posterior.draw_prior(SCCVAE(screen, n_nodes=5, hidden=(16,)).program, 3, 0)
    after = posterior.draw_prior(fitted.program, 3, 0)
    torch.testing.assert_close(before.action_pa, after.action_pa)
    torch.testing.assert_close(before.gene_level, after.gene_level)
    assert set(before.values) == set(posterior.draw(fitted.program, 3, 0).values)


def test_poisson_counts_of_cells_alike_scatter_as_their_mean():
    """At one library size and without a decoder, the variance of a Poisson count is its mean."""
    cells = small_screen(n_control=300)
    cells.X.data = np.random.default_rng(0).binomial(cells.X.data.astype(int), 0.01).astype(np.float32)
    cells.X.eliminate_zeros()
    cells.obs["molecules"] = 5000.0
    screen = set_up(cells, library_key="molecules")
    model = SCCVAE(screen, likelihood="Poisson", **SMALL)
    for weight in model.program.decoder.parameters():
        torch.nn.init.zeros_(weight)
    found = simulated(model, 20)
    assert found["variance_to_mean"].mean() == pytest.approx(1.0, abs=0.05)
    rate = 5000.0 * model.program.baseline[:-1].exp().numpy()
    assert found["zero_fraction"].mean() == pytest.approx(np.exp(-rate).mean(), abs=0.01)


# The data


def test_sampling_noise_is_taken_out_of_the_effects():
    """Two thousand genes, every one changed by 0.3, means known to 0.4: the size is 0.3, not 0.64."""
    rng, genes, cells = np.random.default_rng(0), 2000, 25
    mean = pd.DataFrame({"control": np.zeros(genes), "A": np.full(genes, 0.3)}).T
    noisy = mean + 0.4 * rng.normal(size=mean.shape)
    var = pd.DataFrame(0.4**2 * cells, mean.index, mean.columns)
    screen = _profiled(Profiles(noisy, var, pd.Series(cells, mean.index)))
    assert predictive._observed_sizes(screen, ["A"]) == pytest.approx([0.3], abs=0.03)


def test_labels_of_one_cell_show_no_effect():
    frame = pd.DataFrame(1.0, index=["control", "A"], columns=range(3))
    screen = _profiled(Profiles(frame, frame, pd.Series({"control": 9, "A": 1})))
    assert len(predictive._observed_sizes(screen, ["A"])) == 0


def _profiled(profiles):
    """A screen that has these profiles and nothing else."""

    coding = SimpleNamespace(schema=SimpleNamespace(control="control"))
    return SimpleNamespace(coding=coding, profiles=lambda: profiles)


def test_the_data_are_those_of_the_control_cells(fitted, screen):
    counts = screen[screen.obs["perturbation"] == "control"].X.toarray()
    data = ask(fitted, n_samples=2)["data"]
    assert data["zero_fraction"] == pytest.approx((counts == 0).mean())
    expressed = counts.mean(0) > 0
    ratio = counts.var(0)[expressed] / counts.mean(0)[expressed]
    assert data["variance_to_mean"] == pytest.approx(np.median(ratio), rel=1e-4)


def test_what_is_simulated_is_bounded(fitted, monkeypatch):
    monkeypatch.setattr(predictive, "CONTROL_CELLS", 7)
    monkeypatch.setattr(predictive, "LABELS", 3)
    scope = predictive.Scope.of(fitted._screen, 0)
    assert len(scope.rows) == 7 and fitted._screen.is_control[scope.rows].all()
    assert len(set(scope.labels)) == 3 and "control" not in scope.labels
    assert np.isfinite(ask(fitted, n_samples=2)["median"]).all()


# Warnings


def test_an_absurd_prior_is_named(fitted, screen):
    """Dispersions that no count has, and directions too weak to see."""
    absurd = SCCVAE(
        screen,
        direction=priors.direction.GaussianProcess(scale=1e-6),
        likelihood=priors.likelihood.NegativeBinomial(inverse_dispersion=0.02),
        **SMALL,
    )
    with pytest.warns(InputWarning, match="in 'effect_median', 'effect_q90', 'variance_to_mean'") as caught:
        table = absurd.prior_predictive(n_samples=20)
    assert caught[0].filename == __file__
    assert list(table.index[~table["inside"].fillna(True)]) == COUNT_ROWS[1:3] + COUNT_ROWS[4:]


@pytest.mark.parametrize(
    "belief",
    [
        {"graph": priors.graph.Normal(1e15)},
        {"graph": priors.graph.Normal(1e4), "direction": priors.direction.GaussianProcess(scale=1e15)},
    ],
)
def test_priors_beyond_single_precision_are_refused(screen, log_screen, belief):
    for cells in (screen, log_screen):
        with pytest.raises(InputError, match="smaller scale"):
            SCCVAE(cells, **SMALL, **belief).prior_predictive(n_samples=5)


def test_a_prior_that_expects_the_data_is_silent():
    expected = pd.DataFrame({"edges": [0.0, 1.0, 2.0], "zero_fraction": [0.1, 0.5, 0.9]})
    table = predictive.compare(expected, pd.Series({"zero_fraction": 0.5}), "mean value")
    predictive.warn_outside(table)
    assert table.loc["zero_fraction", "inside"]
