"""The simulator: its truth is consistent with its cells, and survives a file."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sccvae_pyro import InputError, setup_anndata
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.simulate import World, simulate

SMALL = {
    "n_perturbations": 6,
    "cells_per_perturbation": 10,
    "n_control": 20,
    "n_genes": 15,
    "n_modules": 2,
    "n_combinations": 2,
    "n_features": 4,
}


@pytest.fixture(scope="module")
def screen():
    return simulate(**SMALL, seed=3)


@pytest.fixture(scope="module")
def world(screen):
    return World.from_uns(screen.uns["truth"])


@pytest.fixture(scope="module")
def large():
    """Many cells of few perturbations, for what only large samples show."""
    return simulate(
        **{**SMALL, "n_perturbations": 3, "cells_per_perturbation": 4000, "n_control": 4000}, seed=3
    )


def test_layout(screen):
    assert screen.shape == (20 + 8 * 10, 15)
    assert sparse.issparse(screen.X)
    counts = screen.X.toarray()
    assert (np.round(counts) == counts).all()
    np.testing.assert_array_equal(screen.obs["total_umi"], counts.sum(1))
    sizes = screen.obs["perturbation"].value_counts()
    assert sizes["control"] == 20
    assert (sizes.drop("control") == 10).all()
    assert screen.uns["features"].shape == (6, 4)
    assert len(screen.uns["truth"]["responded"]) == screen.n_obs


def test_guides_belong_to_their_perturbation(screen):
    target = screen.obs["guide"].astype(str).str.rsplit("-", n=1).str[0]
    control = screen.obs["perturbation"] == "control"
    assert (screen.obs["guide"][control] == "non-targeting").all()
    assert (target == screen.obs["perturbation"].astype(str))[~control].all()


def test_one_seed_one_screen(screen):
    again, other = simulate(**SMALL, seed=3), simulate(**SMALL, seed=4)
    np.testing.assert_array_equal(again.X.toarray(), screen.X.toarray())
    pd.testing.assert_frame_equal(again.obs, screen.obs)
    assert (other.X != screen.X).nnz > 0


def test_screen_can_be_set_up(screen):
    setup_anndata(
        screen.copy(),
        "perturbation",
        "control",
        library_key="total_umi",
        guide_key="guide",
        covariate_keys=["batch"],
        feature_key="features",
    )


# The world


def test_graph_is_acyclic_and_its_total_effect_adds_up_paths(world):
    np.testing.assert_array_equal(world.adjacency, np.triu(world.adjacency, 1))
    paths = sum(np.linalg.matrix_power(world.adjacency, n) for n in range(len(world.nodes)))
    np.testing.assert_allclose(world.total_effect, paths, atol=1e-12)


def test_nodes_are_anchored_to_their_genes(world):
    K = len(world.nodes)
    np.testing.assert_array_equal(world.genes[:K], world.nodes)
    np.testing.assert_array_equal(world.loading[:, :K], 0.4 * np.eye(K))


def test_proportions_are_proportions(world):
    noise = np.random.default_rng(0).normal(size=(5, len(world.nodes)))
    np.testing.assert_allclose(np.exp(world.log_proportion(noise, np.zeros(5, int))).sum(1), 1.0)


def test_world_survives_a_file(screen, world, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    read = ad.read_h5ad(tmp_path / "screen.h5ad")
    found = World.from_uns(read.uns["truth"])
    for name, value in world.to_uns().items():
        np.testing.assert_array_equal(getattr(found, name), value)
    labels = ["control", "G0001"]
    pd.testing.assert_frame_equal(found.mean_profiles(labels, 200), world.mean_profiles(labels, 200))
    pd.testing.assert_frame_equal(
        read.uns["features"], screen.uns["features"], check_names=False, check_column_type=False
    )
    np.testing.assert_array_equal(read.uns["truth"]["responded"], screen.uns["truth"]["responded"])


# Noiseless means against many cells


def test_noiseless_means_are_those_of_many_cells(large):
    """Escapers, guides, batches, libraries and counts: the same in the cells and in the noiseless mean."""
    world = World.from_uns(large.uns["truth"])
    labels = list(large.obs["perturbation"].cat.categories)
    n_cells = 8000
    exact = world.mean_profiles(labels, n_cells=n_cells)
    log_x = log1p_cp10k(large.X.toarray(), large.obs["total_umi"].to_numpy())
    for label in labels:
        rows = np.flatnonzero(large.obs["perturbation"] == label)
        # Cells vary less in expectation than in counts, so that this covers the error of both means.
        standard_error = log_x[rows].std(0) * np.sqrt(1 / len(rows) + 1 / n_cells)
        # Counts are divided by their own sum, not by the library they were drawn with: below 0.01.
        assert (np.abs(log_x[rows].mean(0) - exact.loc[label]) < 4 * standard_error + 0.01).all(), label


def test_noiseless_means_of_the_same_cells_differ_by_the_effect_alone(world):
    """Another number of cells moves all labels alike, the differences to control hardly at all."""
    few, many = (world.mean_profiles(["control", "G0002"], n, seed=n) for n in (2000, 8000))
    delta = few.loc["G0002"] - few.loc["control"], many.loc["G0002"] - many.loc["control"]
    assert np.abs(delta[0] - delta[1]).max() < 0.15 * np.abs(delta[1]).max()
    assert np.abs(delta[1]).max() > 0.1


def test_escapers_are_as_frequent_as_said(large):
    world = World.from_uns(large.uns["truth"])
    responded = pd.Series(large.uns["truth"]["responded"], large.obs_names)
    for label in large.obs["perturbation"].cat.categories:
        cells = responded[large.obs["perturbation"] == label]
        rate = world.response_rate(label)
        assert cells.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / len(cells)) + 1e-12)
    assert world.response_rate("control") == 1.0


def test_a_perturbation_lowers_its_own_gene(world):
    """Shifts are negative, and the first node has no parents: its own gene falls."""
    assert (world.shift < 0).all()
    found = world.mean_profiles(["control", "G0000"], 500)
    assert found.loc["G0000", "G0000"] < found.loc["control", "G0000"]


def test_order_of_a_combination_does_not_matter(world):
    one, other = (world.mean_profiles([label], 300).to_numpy() for label in ("G0001+G0004", "G0004+G0001"))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_library_sizes_are_log_normal(large):
    world = World.from_uns(large.uns["truth"])
    log_total = np.log(large.obs["total_umi"])
    n = len(log_total)
    assert log_total.mean() == pytest.approx(world.library[0], abs=0.05)
    assert log_total.std() == pytest.approx(world.library[1], abs=0.1)
    assert n == large.n_obs


def test_features_know_the_true_effects():
    """Without noise they are a linear view of them; the noisier, the less."""
    r = []
    for noise in (0.0, 3.0):
        screen = simulate(**{**SMALL, "n_perturbations": 12, "n_genes": 40}, feature_noise=noise, seed=1)
        world = World.from_uns(screen.uns["truth"])
        effect = world.total_effect @ world.loading[:, 12:]
        features = screen.uns["features"].to_numpy()
        projected = effect @ np.linalg.lstsq(effect, features, rcond=1e-8)[0]
        r.append(np.square(features - projected).sum())
    assert r[0] < 1e-12
    assert r[0] <= r[1]


# Sizes that cannot be


def test_too_few_genes():
    with pytest.raises(InputError, match="n_genes=6 must exceed n_perturbations=6"):
        simulate(**{**SMALL, "n_genes": 6})


def test_too_many_combinations():
    with pytest.raises(InputError, match="n_combinations=16 exceeds the 15 pairs of 6"):
        simulate(**{**SMALL, "n_combinations": 16})


def test_unknown_label(world):
    with pytest.raises(KeyError, match="'G0099'"):
        world.mean_profiles(["G0099"], 10)


@pytest.mark.parametrize("seed", [1.5, "a", -1, None, True, 2**64])
def test_bad_seed(seed):
    with pytest.raises(InputError, match=f"seed must be a whole number from 0 to .* not {seed!r}"):
        simulate(**SMALL, seed=seed)


# Modules


def test_options_of_modules_leave_the_rest_of_the_world_alone():
    plain, coherent = World.draw(seed=4), World.draw(coherence=0.6, null_share=0.25, seed=4)
    np.testing.assert_array_equal(plain.modules, coherent.modules)
    np.testing.assert_array_equal(plain.baseline, coherent.baseline)
    acts = coherent.strength > 0
    assert (~acts).sum() == 50
    np.testing.assert_array_equal(plain.strength[acts], coherent.strength[acts])


def test_coherent_modules_act_alike():
    def likeness(coherence):
        world = World.draw(60, 300, 4, coherence=coherence, seed=2)
        effect = (world.total_effect @ world.loading)[:, 60:]
        unit = effect / np.linalg.norm(effect, axis=1, keepdims=True)
        same = (world.modules[:, None] == world.modules) & ~np.eye(60, dtype=bool)
        return np.abs(unit @ unit.T)[same].mean()

    assert likeness(1.0) == pytest.approx(1.0)
    assert likeness(0.0) < likeness(0.5) < likeness(1.0)


def test_what_does_nothing_has_the_mean_of_control():
    world = World.draw(8, 30, 2, null_share=0.5, seed=0)
    means = world.mean_profiles(["control", *world.nodes], n_cells=50)
    changed = (means != means.loc["control"]).any(axis=1)[world.nodes]
    np.testing.assert_array_equal(changed, world.strength > 0)


@pytest.mark.parametrize("name", ["coherence", "null_share"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_out_of_range_are_refused(name, share):
    with pytest.raises(ValueError, match=name):
        World.draw(**{name: share})
