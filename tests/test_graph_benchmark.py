"""The benchmark of graph recovery: its screens keep their truth and lose their order."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sccvae_pyro.evaluate import score_graph

SMALL = {"n_perturbations": 8, "cells_per_perturbation": 60, "n_control": 200, "n_genes": 20, "n_modules": 2}


@pytest.fixture(scope="module")
def benchmark():
    """The scripts, with a small world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        patch.delitem(sys.modules, "graphs", raising=False)
        import discovery
        import graphs

        patch.setattr(graphs, "SIZES", SMALL)
        yield graphs, discovery


@pytest.fixture(scope="module")
def case(benchmark):
    return benchmark[0].Case.draw(3)


def test_names_do_not_tell_the_order(case):
    assert list(case.adata.var_names) == sorted(case.adata.var_names)
    weights = case.graph.loc[list(case.order), list(case.order)].to_numpy()
    np.testing.assert_array_equal(weights, np.triu(weights, 1))
    assert np.tril(case.graph.to_numpy(), -1).any()
    assert set(case.nodes) == set(case.adata.obs["perturbation"]) - {"control"}


def test_perturbations_change_their_own_gene_and_then_their_targets(benchmark, case):
    _, discovery = benchmark
    found = discovery.differential_expression(discovery.Cells.of(case.adata, case.nodes))
    assert (np.abs(found).argmax(1) == np.arange(len(found))).all()
    assert score_graph(found, case.graph)["directed"] > 3 * (case.graph.to_numpy() != 0).mean()


def test_noisy_list_is_part_true(case):
    told, true = case.noisy_list(3), set(case.edges)
    assert len(told) == len(set(told)) == 2 * round(0.7 * len(true))
    assert len(set(told) & true) == len(told) / 2


def test_library_is_no_less_than_what_is_counted(case):
    counted = np.asarray(case.adata[:, list(case.nodes)].X.sum(1)).ravel()
    assert (case.adata.obs["library"] >= counted).all()


def test_inverted_effects_find_a_linear_graph_without_noise(benchmark):
    _, discovery = benchmark
    B = np.array([[0, 0.5, 0], [0, 0, -0.4], [0, 0, 0]])
    total = np.linalg.inv(np.eye(3) - B)
    cells = discovery.Cells(
        np.concatenate([np.zeros((2, 3)), *(-2 * total[[k, k]] for k in range(3))]),
        np.repeat(["control", "a", "b", "c"], 2),
        ("a", "b", "c"),
    )
    np.testing.assert_allclose(discovery.inverted_effects(cells), B, atol=1e-12)
