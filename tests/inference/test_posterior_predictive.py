"""What the fitted model generates, beside the cells whose place it takes."""

import warnings
from itertools import repeat

import numpy as np
import pandas as pd
import pytest
import torch
from screens import set_up, small_screen

from sccvae_pyro import SCCVAE, InputError, InputWarning
from sccvae_pyro.inference import posterior_predictive, replicates
from sccvae_pyro.inference.replicates import Cells, Part

OF_COUNTS = [
    "variance_to_mean",
    "zero_fraction",
    "correlation",
    "effect_median",
    "effect_q90",
    "profile_distance",
]


def ask(model, *args, **settings):
    """The check, whatever it finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        return model.posterior_predictive(*args, **settings)


@pytest.fixture(scope="module")
def found(fitted):
    return ask(fitted, n_samples=20)


# Layout


def test_layout(found, fitted):
    assert list(found.summary.index) == OF_COUNTS
    assert list(found.summary.columns) == ["q05", "median", "q95", "data", "inside", "unit"]
    assert found.summary.notna().all(axis=None)
    sizes = found.items.groupby("quantity").size()
    genes, labels = len(fitted.coding.genes), len(fitted.coding.labels)
    assert sizes["variance"] == sizes["zero_fraction"] == genes
    assert sizes["correlation"] == genes * (genes - 1) / 2 and sizes["mean_profile"] == genes * labels
    assert (found.items["q05"] <= found.items["q95"]).all()


def test_the_data_are_those_of_the_cells(found, screen):
    control = screen[screen.obs["perturbation"] == "control"]
    counts = control.X.toarray()
    items = found.items.set_index(["quantity", "label", "gene"]).sort_index()
    gene = screen.var_names[3]
    of_gene = counts[:, 3]
    assert items.loc[("variance", "control", gene), "data"].item() == pytest.approx(of_gene.var(), rel=1e-4)
    assert items.loc[("zero_fraction", "control", gene), "data"].item() == pytest.approx(
        (of_gene == 0).mean()
    )
    profile = np.log1p(1e4 * counts / control.obs["total_umi"].to_numpy()[:, None])
    assert items.loc[("mean_profile", "control", gene), "data"].item() == pytest.approx(
        profile[:, 3].mean(), 1e-4
    )
    pair = found.items.query("quantity == 'correlation'").iloc[5]
    first, second = (list(screen.var_names).index(pair[name]) for name in ("gene", "other"))
    assert pair["data"] == pytest.approx(np.corrcoef(profile[:, first], profile[:, second])[0, 1], abs=1e-4)


def test_values_have_a_standard_deviation(fitted_values):
    table = ask(fitted_values, n_samples=5).summary
    assert list(table.index) == ["standard_deviation", *OF_COUNTS[2:]]


def test_molecules_are_looked_at_where_they_are_generated(screen):
    model = SCCVAE(screen, n_nodes=2, hidden=(4,), library="Latent").fit(max_epochs=1, progress=False)
    assert {"molecules_median", "molecules_spread"} <= set(ask(model, n_samples=3).summary.index)


def test_the_same_seed_gives_the_same_table_and_leaves_the_random_state_alone(fitted, found):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pd.testing.assert_frame_equal(ask(fitted, n_samples=20).items, found.items)
    torch.testing.assert_close(torch.rand(2), expected)
    assert not ask(fitted, n_samples=20, seed=1).summary.equals(found.summary)


def test_control_cells_are_needed(fitted, screen):
    perturbed = screen[screen.obs["perturbation"] != "control"].copy()
    with pytest.raises(InputError, match="no control cells"):
        fitted.posterior_predictive(perturbed)


# What it finds


def test_cells_of_the_model_itself_are_as_expected(fitted):
    """Data that are one more replicate lie inside nine times in ten."""
    part = Part.of(fitted._screen, 0)
    draws = fitted._draws(101, 0)
    push = fitted._push(draws, part.labels, 0)
    first, *others = replicates.replicate(fitted.program, draws, push, fitted._screen, part, 0)
    looked = posterior_predictive.Looked.at(first, part, fitted._screen, False)
    found = posterior_predictive.check(first, others, looked, fitted.coding.genes, "")
    inside = found.items.groupby("quantity")["inside"].mean()
    assert (inside > 0.8).all() and inside.mean() == pytest.approx(0.9, abs=0.05)


def test_a_wrong_likelihood_is_named(screen):
    """Counts scatter more than Poisson counts can."""
    model = SCCVAE(screen, n_nodes=2, hidden=(8,), likelihood="Poisson")
    model.fit(max_epochs=4, batch_size=64, progress=False)
    with pytest.warns(InputWarning, match="fitted model's 90 % interval in 'variance_to_mean'") as caught:
        found = model.posterior_predictive(n_samples=20)
    assert caught[0].filename == __file__
    row = found.summary.loc["variance_to_mean"]
    assert row["data"] > row["q95"] and not row["inside"]


def test_replicates_follow_the_perturbations_of_their_cells():
    """A model that knows a strong effect generates it for the label that has it."""
    cells = small_screen(cells_per_perturbation=40, n_combinations=0)
    model = SCCVAE(set_up(cells, library_key="total_umi"), n_nodes=5, hidden=(16,))
    items = ask(model.fit(max_epochs=15, batch_size=64, progress=False), n_samples=20).items
    profiles = items.query("quantity == 'mean_profile'").pivot(index="label", columns="gene")
    changes = {name: profiles[name] - profiles[name].loc["control"] for name in ("median", "data")}
    label = np.square(changes["data"]).sum(axis=1).idxmax()
    assert changes["median"].loc[label].corr(changes["data"].loc[label]) > 0.6


def test_genes_that_never_vary_are_no_trouble(fitted):
    part = Part.of(fitted._screen, 0)
    still = Cells(*np.zeros((2, len(part.rows), len(fitted.coding.genes))))
    looked = posterior_predictive.Looked.at(still, part, fitted._screen, False)
    found = posterior_predictive.check(still, repeat(still, 3), looked, fitted.coding.genes, "")
    assert found.summary.loc["correlation", "data"] == 0 and found.items["inside"].all()
