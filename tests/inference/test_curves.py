"""Effects along penetrance: what they are at its ends, and closed forms of the states."""

import numpy as np
import pandas as pd
import pytest
import torch

from sccvae_pyro import InputError, plots
from sccvae_pyro.inference import curves

LABELS = ["G0001", "G0002+G0003"]


def test_a_curve_is_nothing_at_zero_and_the_prediction_at_one(fitted):
    found = fitted.penetrance_curves(LABELS, n_samples=20)
    assert (found.loc[found["penetrance"] == 0, ["delta", "low", "high"]] == 0).to_numpy().all()
    predicted = fitted.predict(LABELS, n_samples=20).to_df("delta")
    for label, part in found[found["penetrance"] == 1].groupby("perturbation"):
        at_one, expected = part.set_index("gene")["delta"], predicted.loc[label]
        pd.testing.assert_series_equal(at_one, expected[at_one.index], check_names=False)
        assert set(at_one.index) == set(expected.abs().nlargest(3).index)


def test_named_genes_are_followed_in_their_order(fitted):
    found = fitted.penetrance_curves("G0001", ["G0010", "G0004"], [0.5, 2.0], n_samples=10)
    assert list(found["gene"]) == ["G0010", "G0004"] * 2
    assert list(found["penetrance"]) == [0.5, 0.5, 2.0, 2.0]
    expected = fitted.predict("G0001", 2.0, n_samples=10)[:, ["G0010", "G0004"]].layers["delta_q95"][0]
    np.testing.assert_array_equal(found["high"].iloc[2:], expected)


def test_states_of_shifts_are_linear_in_penetrance(fitted):
    """``penetrance x share x shift (I - B)^-1``, draw by draw."""
    nodes = fitted.nodes[1:3]
    found = fitted.state_curves("G0001", nodes, [0.0, 0.5, 1.0], n_samples=30)
    draws = fitted._draws(30, 0)
    action = draws.action_pa[:, fitted.coding.perturbations.index("G0001")]
    effect = torch.linalg.solve(torch.eye(len(fitted.nodes)) - draws.B, action.unsqueeze(1), left=False)
    for step in (0.0, 0.5, 1.0):
        part = found[found["penetrance"] == step].set_index("node")
        exact = step * effect[:, 0, 1:3].double().numpy()
        np.testing.assert_allclose(part.loc[nodes, "delta"], exact.mean(0), atol=1e-5)
        np.testing.assert_allclose(part.loc[nodes, "high"], np.quantile(exact, 0.95, axis=0), atol=1e-5)


def test_nodes_that_move_most_are_followed(fitted):
    found = fitted.state_curves("G0001", n_samples=30)
    every = fitted.state_curves("G0001", fitted.nodes, [1.0], n_samples=30).set_index("node")["delta"]
    assert set(found["node"]) == set(every.abs().nlargest(3).index)
    assert sorted(found["penetrance"].unique()) == list(curves.PENETRANCES)


def test_states_are_drawn_in_their_own_units(fitted):
    plot = plots.penetrance_curves(fitted.state_curves("G0001", n_samples=10))
    assert plot.ax.get_ylabel() == "change of mean state (sd of its noise)"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"genes": ["G9"]}, "'G9' are not among the measured genes"),
        ({"genes": []}, "None of the measured genes"),
        ({"penetrances": []}, "penetrances names none"),
        ({"penetrances": [0.5, -1.0]}, r"penetrance must be .*-1\.0"),
    ],
    ids=["gene", "no gene", "no penetrance", "negative"],
)
def test_wrong_use(fitted, settings, said):
    with pytest.raises(InputError, match=said):
        fitted.penetrance_curves("G0001", **settings)


def test_there_is_no_such_node(fitted):
    with pytest.raises(InputError, match=r"'node_9' are not among the nodes.*node_"):
        fitted.state_curves("G0001", nodes=["node_9"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"penetrances": 1.0}, r"penetrances must be a list of numbers, not 1\.0"),
        ({"penetrances": None}, "penetrances must be a list of numbers, not None"),
        ({"genes": 5}, "measured genes must be a list of names, not 5"),
        ({"genes": ["G0003", "G0003"]}, "'G0003' of the measured genes are asked for twice"),
    ],
    ids=["number", "none", "position", "twice"],
)
def test_what_is_no_list_of_different_things(fitted, settings, said):
    with pytest.raises(InputError, match=said):
        fitted.penetrance_curves("G0001", **settings)
