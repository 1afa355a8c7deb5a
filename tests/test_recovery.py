"""What a model finds again in a simulated screen, scored on its noiseless truth."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from screens import small_screen

import sccvae_pyro as sv
from sccvae_pyro.data.loading import profiles
from sccvae_pyro.data.simulate import World


class Recovered(NamedTuple):
    """Differences to control, perturbations x genes: predicted, true, and of raw means."""

    model: sv.SCCVAE
    world: World
    seen: list[str]
    unseen: list[str]
    predicted: pd.DataFrame
    true: pd.DataFrame
    raw: pd.DataFrame


def recover(seed, n_genes, n_nodes, hidden, max_epochs, features=None, **priors):
    """Fit a screen of 30 perturbations, 6 of them held out; each seen one has few cells."""
    screen = small_screen(
        seed,
        n_perturbations=30,
        cells_per_perturbation=20,
        n_control=200,
        n_genes=n_genes,
        n_modules=3,
        n_combinations=0,
        n_features=5,
        feature_noise=0.3,
    )
    world = World.from_uns(screen.uns["truth"])
    if features is not None:
        screen.uns["features"] = features(world)
    unseen = list(world.nodes[::5])
    train = screen[~screen.obs["perturbation"].isin(unseen)].copy()
    train.obs["perturbation"] = train.obs["perturbation"].cat.remove_unused_categories()
    sv.setup_anndata(train, "perturbation", "control", library_key="total_umi", feature_key="features")
    model = sv.SCCVAE(train, n_nodes=n_nodes, hidden=hidden, **priors)
    model.fit(max_epochs=max_epochs, batch_size=64, progress=False)
    seen = [name for name in world.nodes if name not in unseen]
    labels = [*seen, *unseen]
    true = world.mean_profiles(["control", *labels], n_cells=1000)
    raw = profiles(train).mean
    predicted = model.predict(labels, n_samples=100)
    return Recovered(
        model,
        world,
        seen,
        unseen,
        pd.DataFrame(predicted.layers["delta"], labels, predicted.var_names),
        true.sub(true.loc["control"]).loc[labels],
        raw.sub(raw.loc["control"]).loc[seen],
    )


def correlations(one, other):
    return np.array([np.corrcoef(one.loc[name], other.loc[name])[0, 1] for name in one.index])


@pytest.fixture(scope="module")
def recovered():
    return recover(seed=1, n_genes=200, n_nodes=32, hidden=(64,), max_epochs=60)


@pytest.mark.slow
def test_seen_effects_are_recovered_at_least_as_well_as_by_their_raw_means(recovered):
    """Perturbations share cells and genes share nodes: the model must not lose what averaging finds."""
    seen = recovered.seen
    truth, predicted = recovered.true.loc[seen], recovered.predicted.loc[seen]
    model, raw = correlations(predicted, truth), correlations(recovered.raw, truth)
    assert model.mean() > raw.mean()
    errors = [np.square(found - truth).to_numpy().mean() for found in (predicted, recovered.raw)]
    assert errors[0] < errors[1]


@pytest.mark.slow
def test_unseen_effects_are_better_than_their_mean(recovered):
    """With features that know the true effects, up to some noise."""
    truth, predicted = recovered.true.loc[recovered.unseen], recovered.predicted.loc[recovered.unseen]
    shared = pd.DataFrame(
        np.tile(recovered.raw.mean(), (len(truth), 1)), index=truth.index, columns=truth.columns
    )
    gain = correlations(predicted, truth) - correlations(shared, truth)
    assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain))


@pytest.mark.slow
def test_strong_perturbations_are_found_strong(recovered):
    """Rank of the size of the effects, over all genes, against that of the true ones."""
    found, true = (
        np.linalg.norm(effects.loc[recovered.seen], axis=1)
        for effects in (recovered.predicted, recovered.true)
    )
    assert stats.spearmanr(found, true, alternative="greater").pvalue < 0.01


@pytest.mark.slow
def test_penetrance_rank_is_above_chance():
    """Where the prior lets strengths vary: by default the size of an effect is in its direction."""
    varied = sv.priors.penetrance.LogNormal(scale=0.4)
    recovered = recover(seed=1, n_genes=200, n_nodes=32, hidden=(64,), max_epochs=60, penetrance=varied)
    world, nodes = recovered.world, pd.Index(recovered.world.nodes).get_indexer(recovered.seen)
    true = (np.abs(world.strength * world.shift) * world.responders)[nodes]
    found = recovered.model.penetrance(200).loc[recovered.seen, "mean"]
    assert stats.spearmanr(found, true, alternative="greater").pvalue < 0.01


# Features of pure noise


@pytest.fixture(scope="module")
def uninformed():
    rng = np.random.default_rng(0)
    return recover(
        seed=3,
        n_genes=80,
        n_nodes=16,
        hidden=(32,),
        max_epochs=60,
        features=lambda world: pd.DataFrame(
            rng.normal(size=(30, 4)), index=world.nodes, columns=["a", "b", "c", "d"]
        ),
    )


def test_noise_features_predict_the_mean_of_the_seen_effects(uninformed):
    """In expression space; the differences between seen effects are the scale of what could go wrong.

    With 24 perturbations and 4 features of noise, a regression without shrinkage would explain
    a share 4 / 23 of the variance by chance: an rms of 0.42 of the spread. Less must be left.
    """
    seen, unseen = (uninformed.predicted.loc[names] for names in (uninformed.seen, uninformed.unseen))
    spread = np.sqrt(np.square(seen - seen.mean()).to_numpy().mean())
    error = np.sqrt(np.square(unseen - seen.mean()).to_numpy().mean())
    assert error < np.sqrt(4 / 23) * spread


def test_noise_features_leave_intervals_that_cover_the_spread(uninformed):
    """A 90 % interval of an unseen perturbation holds about 90 % of what the seen ones truly do, by gene.

    And more of what is predicted of them: means of so few cells are shrunk, to .4 of the true spread.
    """
    found = uninformed.model.predict(uninformed.unseen, n_samples=200)
    low, high = found.layers["delta_q05"][:, None], found.layers["delta_q95"][:, None]
    true, predicted = (
        effects.loc[uninformed.seen].to_numpy() for effects in (uninformed.true, uninformed.predicted)
    )
    assert 0.8 < ((true > low) & (true < high)).mean() < 0.95
    assert ((predicted > low) & (predicted < high)).mean() > 0.85
