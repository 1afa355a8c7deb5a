"""The discrepancy between program and training means, against what was put in."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from screens import set_up, small_screen

import sccvae_pyro as sv
from sccvae_pyro.data.loading import Profiles
from sccvae_pyro.inference import discrepancy
from sccvae_pyro.inference.discrepancy import Discrepancy, believe, fit_discrepancy
from sccvae_pyro.inference.posterior import Push

G = 3
MEAN, SD, ERROR = np.array([0.5, 0.0, -0.2]), np.array([0.3, 0.0, 0.1]), np.array([0.1, 0.0, 0.05])
BELIEVED = Discrepancy(MEAN, SD, ERROR, np.full(G, 20.0), np.array(10.0))


def observed_profiles(n_labels, n_cells, noise_sd, seed=0, n_targets=1):
    """Means of labels whose differences to a control at 1 are the discrepancy and sampling noise."""
    rng = np.random.default_rng(seed)
    effect = MEAN + SD * np.sqrt(n_targets) * rng.normal(size=(n_labels, G))
    mean = 1.0 + effect + noise_sd / np.sqrt(n_cells) * rng.normal(size=(n_labels, G))
    index = pd.Index([f"p{i}" for i in range(n_labels)])
    var = pd.DataFrame(noise_sd**2, index=index, columns=range(G))
    return Profiles(pd.DataFrame(mean, index=index), var, pd.Series(n_cells, index=index))


def fit(observed, monkeypatch, draws=(0.0, 0.0), n_targets=1):
    """Fit to a program that predicts the same difference for all labels and genes in each draw."""
    n = len(observed.n)

    def means(program, draws_of_globals, controls, push, *_settings):
        yield from ((s, np.full((push.share.shape[1], G), value)) for s, value in enumerate(draws))

    monkeypatch.setattr(discrepancy, "population_means", means)
    controls = SimpleNamespace(mean_g=np.ones(G), library_c=torch.ones(1))
    program = SimpleNamespace(sizes=SimpleNamespace(genes=G))
    targets = np.full(n, n_targets)
    push = Push(torch.ones(2, n, 1), torch.ones(2, n))
    return fit_discrepancy(program, None, controls, push, observed, targets, 1, 0)


@pytest.mark.parametrize("n_targets", [1, 2])
def test_mean_and_spread_are_recovered(monkeypatch, n_targets):
    """4,000 labels: standard errors are 0.005 for a mean and 0.004 for a spread of 0.3."""
    observed = observed_profiles(4000, n_cells=50, noise_sd=1.0, n_targets=n_targets)
    found = fit(observed, monkeypatch, n_targets=n_targets)
    np.testing.assert_allclose(found.mean_g, MEAN, atol=0.03)
    np.testing.assert_allclose(found.sd_g[[0, 2]], SD[[0, 2]], atol=0.03)
    assert found.sd_g[1] < 0.04


def test_sampling_noise_alone_leaves_little(monkeypatch):
    """With more noise declared than the means spread, a standard error over genes is left: .15 of 1."""
    observed = observed_profiles(200, n_cells=50, noise_sd=1.0)
    declared = observed._replace(var=observed.var + 50.0)
    assert fit(declared, monkeypatch).sd_g.max() < 0.3


def test_noise_that_the_fit_took_up_is_not_expected_again(monkeypatch):
    """Posterior variance of the prediction lowers the noise expected in the residuals."""
    observed = observed_profiles(500, n_cells=50, noise_sd=1.0)
    certain = fit(observed, monkeypatch)
    unsure = fit(observed, monkeypatch, draws=(-0.05, 0.05))
    assert (unsure.sd_g**2 > certain.sd_g**2).all()
    # Up to what the other genes say, and the mean, which counts as one perturbation more.
    expected = certain.sd_g[0] ** 2 + 2 * 0.05**2
    assert unsure.sd_g[0] ** 2 == pytest.approx(expected, rel=0.01)


def test_nothing_perturbed_is_no_discrepancy(monkeypatch):
    found = fit(observed_profiles(0, n_cells=5, noise_sd=1.0), monkeypatch)
    np.testing.assert_array_equal(found[:3], np.zeros((3, G)))


def test_one_gene_by_hand():
    """Three labels of one target, no noise: the conjugate normal with a pseudo-observation at zero.

    A gene alone is pooled with itself, at eight degrees of freedom of an inverse chi-square of its mean.
    """
    found = believe(np.array([[1.0], [2.0], [6.0]]), np.zeros((3, 1)), np.ones(3))
    within, between = 4.0 + 1.0 + 9.0, 9.0 * 3 / 4
    np.testing.assert_allclose(found.mean_g, 3 * 3.0 / 4)
    np.testing.assert_allclose(found.sd_g**2, (within + between) / 3 * (8 - 2 + 3) / (8 + 3))
    np.testing.assert_allclose(found.df_g, 11)
    np.testing.assert_allclose(found.error_g, found.sd_g / 2)


def test_a_combination_tells_of_its_parts():
    """Twice the variance of a single perturbation, half the weight: as many pairs tell half of the mean."""
    rng = np.random.default_rng(0)
    left = np.sqrt(2.0) * rng.normal(size=(4000, 1))
    found = believe(left, np.zeros_like(left), np.full(4000, 2))
    np.testing.assert_allclose(found.sd_g, 1.0, rtol=0.03)
    np.testing.assert_allclose(found.error_g, 1 / np.sqrt(2001), rtol=0.03)


def test_few_cells_weigh_less():
    """Half of the labels have a hundred times the noise: without weights the error would be seven times."""
    rng = np.random.default_rng(0)
    noise = np.tile([[0.01], [1.0]], (50, 400))
    left = np.sqrt(noise) * rng.normal(size=noise.shape)
    found = believe(left, noise, np.ones(100))
    assert np.sqrt(np.square(found.mean_g).mean()) < 0.04  # 0.07 of the plain mean


@pytest.mark.parametrize("noisy", [0.5, 5.0, 20.0, 100.0])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0], ids=["one variance", "some", "many"])
@pytest.mark.parametrize("n_labels", [1, 2, 5, 30])
def test_interval_covers_what_is_left_of_another_perturbation(n_labels, spread, noisy):
    """From one training perturbation on, whatever genes have in common, whatever sampling noise hides.

    ``noisy``: sampling variance over that of what is left. Errors of a rate are under .01. Where noise hides
    it all, intervals are as wide as what could be there unseen.
    """
    hits = []
    for seed in range(40):
        rng = np.random.default_rng([seed, n_labels])
        sd = 0.1 * np.exp(spread * rng.normal(size=300))
        mean = 0.5 * sd * rng.normal(size=300)
        noise = np.tile(noisy * 0.01 * 80 / rng.integers(20, 300, size=(n_labels, 1)), (1, 300))
        left = rng.normal(mean, np.sqrt(sd**2 + noise))
        found = believe(left, noise, np.ones(n_labels))
        width = stats.t(found.df_g).ppf(0.95) * np.hypot(found.sd_g, found.error_g)
        hits.append(np.abs(rng.normal(mean, sd) - found.mean_g) <= width)
    assert 0.83 < np.mean(hits) < (0.97 if noisy < 100 else 1.0)


def test_tails_are_as_heavy_as_what_is_left_of_single_perturbations():
    """Scales of perturbations from an inverse chi-square of 12: a quarter of one perturbation's variance."""
    rng = np.random.default_rng(0)
    scale = np.sqrt(10 / rng.chisquare(12, size=(4000, 1)))
    left = scale * rng.normal(size=(4000, 400))
    noise = np.full_like(left, 0.5)
    noisy = left + np.sqrt(noise) * rng.normal(size=left.shape)
    assert float(believe(noisy, noise, np.ones(4000)).df_labels) == pytest.approx(12, rel=0.25)
    assert float(believe(left / scale, 0 * noise, np.ones(4000)).df_labels) > 100


@pytest.mark.parametrize("df", [5.0, 1000.0], ids=["heavy tails", "normal"])
def test_draws_cover_what_is_left_of_another_perturbation(df):
    """At every level, not at one: a normal of the same variance holds .6 of heavy tails at a nominal .5."""
    rng = np.random.default_rng(1)

    def labels(n):
        return np.sqrt((df - 2) / rng.chisquare(df, size=(n, 1))) * rng.normal(size=(n, 200))

    found = believe(labels(300), np.zeros((300, 200)), np.ones(300))
    drawn = np.zeros((4000, 1, 200), dtype=np.float32)
    found.add_to(drawn, 1.0, ["A"], np.array([1]), 0)
    new = labels(4000)
    for level in (0.5, 0.9, 0.95):
        low, high = np.quantile(drawn[:, 0], [0.5 - level / 2, 0.5 + level / 2], axis=0)
        assert ((new > low) & (new < high)).mean() == pytest.approx(level, abs=0.03)


def added(penetrance=1.0, labels=("control", "A", "A+B"), n_targets=(0, 1, 2), n_draws=4000, seed=0):
    deltas = np.zeros((n_draws, len(labels), G), dtype=np.float32)
    BELIEVED.add_to(deltas, penetrance, labels, np.array(n_targets), seed)
    return deltas


def test_control_is_left_alone():
    np.testing.assert_array_equal(added()[:, 0], 0.0)


@pytest.mark.parametrize("penetrance", [0.0, 0.5, 1.0])
def test_mean_counts_once_and_spread_adds_up(penetrance):
    """The spread of a sample of 4,000 has a relative standard error of 1.1 %, somewhat more for a t."""
    deltas = added(penetrance)
    for label, n in ((1, 1), (2, 2)):
        np.testing.assert_allclose(deltas[:, label].mean(0), penetrance * MEAN, atol=1e-6)
        expected = penetrance * np.sqrt(20 / 18) * np.sqrt(n * SD**2 + ERROR**2)
        np.testing.assert_allclose(deltas[:, label].std(0), expected, rtol=0.05, atol=1e-7)


def test_labels_share_the_mean_and_its_error():
    """Two labels are correlated by the error of the mean, and by no more."""
    deltas = added(labels=("A", "B"), n_targets=(1, 1))
    found = np.mean((deltas[:, 0] - MEAN) * (deltas[:, 1] - MEAN), axis=0)
    np.testing.assert_allclose(found, 20 / 18 * ERROR**2, atol=4 * 0.1 / np.sqrt(4000))


def test_spread_of_a_mean_over_genes():
    of_mean = BELIEVED.of_mean(np.array([0, 2]))
    np.testing.assert_allclose(of_mean.mean_g, [(0.5 - 0.2) / 2])
    np.testing.assert_allclose(of_mean.sd_g, [np.sqrt(0.3**2 + 0.1**2) / 2])


def test_draws_of_a_label_do_not_depend_on_the_company():
    np.testing.assert_array_equal(added()[:, 1], added(labels=("A",), n_targets=(1,))[:, 0])
    assert (added(seed=1)[:, 1, 0] != added()[:, 1, 0]).any()


@pytest.mark.filterwarnings("ignore:Labels of .* with a single cell")
@pytest.mark.parametrize("cells", [1, 2])
def test_single_cells_leave_wide_intervals(cells):
    """One cell of each perturbation tells little, not that nothing is left."""
    adata = set_up(small_screen(cells_per_perturbation=cells, n_combinations=0), library_key="total_umi")
    model = sv.SCCVAE(adata, n_nodes=3, hidden=(8,)).fit(max_epochs=2, batch_size=64, progress=False)
    found = model.predict("G0001", n_samples=100)
    width = float(np.median(found.layers["delta_q95"] - found.layers["delta_q05"]))
    scatter = float(np.sqrt(model._screen.profiles().var.loc["control"]).median())
    assert 0.1 * scatter < width < 10 * scatter


def test_variance_of_a_single_cell_is_that_of_control_cells():
    index, genes = pd.Index(["control", "A", "B"]), pd.Index(["g", "h"])
    var = pd.DataFrame([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], index, genes)
    found = Profiles(var, var, pd.Series([9, 2, 1], index)).with_variance_of("control").var
    np.testing.assert_array_equal(found, [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
