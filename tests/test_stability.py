"""Restarts: what is compared, and that agreement is told from its absence."""

import numpy as np
import pandas as pd
import pytest

import sccvae_pyro as sv
from sccvae_pyro import InputError, stability

QUICK = {"max_epochs": 2, "batch_size": 128}


def answer(mean, sd=0.1):
    return pd.DataFrame({"mean": mean, "sd": sd})


def test_two_starts_of_free_nodes(screen):
    table = sv.restarts(
        screen, {"n_nodes": 3, "hidden": [8]}, seeds=[0, 1], perturbations=["G0001"], n_samples=10, **QUICK
    )
    assert list(table.index) == ["total_effects", "strengths", "predictions"]
    assert table.loc["predictions", "entries"] == screen.n_vars
    assert table.loc["strengths", "entries"] == 8
    assert (table["between_sd"] > 0).all() and np.isfinite(table["ratio"]).all()
    assert table["note"].str.contains("no names").all()


def test_two_starts_of_anchored_nodes_compare_edges(screen):
    spec = {"nodes": "Anchored", "hidden": [8], "graph": "SpikeSlab"}
    table = sv.restarts(screen, spec, seeds=[0, 1], n_samples=10, **QUICK)
    assert list(table.index) == ["edges", "inclusion", "total_effects", "strengths"]
    assert (table["note"] == "").all()
    assert np.isnan(table.loc["inclusion", "ratio"]) and table.loc["edges", "ratio"] > 0


@pytest.mark.parametrize("seeds", [[0], [1, 1]])
def test_starts_must_differ(screen, seeds):
    with pytest.raises(InputError, match="two or more different"):
        sv.restarts(screen, {}, seeds=seeds)


# Agreement, by hand


def test_starts_that_agree():
    same = answer([1.0, 2.0, 3.0])
    found = stability._compare([same, same])
    assert found["correlation"] == pytest.approx(1.0) and found["ratio"] == 0


def test_starts_that_disagree_by_more_than_the_posterior():
    found = stability._compare([answer([1.0, 2.0]), answer([2.0, 1.0]), answer([1.0, 2.0])])
    assert found["lowest_correlation"] == pytest.approx(-1.0)
    assert found["correlation"] == pytest.approx(-1 / 3)
    assert found["between_sd"] == pytest.approx(np.sqrt(1 / 3))
    assert found["ratio"] == pytest.approx(10 * np.sqrt(1 / 3))


def test_an_edge_that_a_start_never_draws_is_zero_there():
    one, other = answer(pd.Series({"a": 1.0, "b": 0.5})), answer(pd.Series({"a": 1.0}))
    found = stability._compare([one, other])
    assert found["entries"] == 2
    assert found["between_sd"] == pytest.approx(np.sqrt(0.125 / 2))


def test_nothing_that_varies_has_no_correlation():
    assert np.isnan(stability._compare([answer([1.0]), answer([2.0])])["correlation"])
