"""Scores of graphs, on a graph small enough to score by hand: a -> b -> c."""

import numpy as np
import pytest

from sccvae_pyro.evaluate import score_graph

CHAIN = np.array([[0, 0.5, 0], [0, 0, -0.4], [0, 0, 0]])


def test_the_truth_scores_one_whatever_its_signs_and_sizes():
    assert score_graph(-3 * CHAIN, CHAIN) == {"directed": 1.0, "skeleton": 1.0, "orientation": 1.0}


def test_a_false_edge_in_front_and_one_turned_round():
    weights = np.array([[0, 2, 3], [0, 0, 0], [0, 1, 0]])
    found = score_graph(weights, CHAIN)
    # Ordered: a -> c (false), a -> b (true), c -> b (false), then three ties of which one is true.
    assert found["directed"] == pytest.approx(0.5 * (1 / 2) + 0.5 * (2 / 6))
    # Pairs: ac (false), ab (true), bc (true).
    assert found["skeleton"] == pytest.approx(0.5 * (1 / 2) + 0.5 * (2 / 3))
    assert found["orientation"] == 0.5


def test_equal_weights_are_chance():
    found = score_graph(np.ones((3, 3)), CHAIN)
    assert found == {"directed": pytest.approx(2 / 6), "skeleton": pytest.approx(2 / 3), "orientation": 0.5}


def test_diagonal_is_not_read():
    np.testing.assert_equal(score_graph(CHAIN + np.eye(3), CHAIN + np.eye(3)), score_graph(CHAIN, CHAIN))


def test_impossible_comparisons_are_refused():
    with pytest.raises(ValueError, match="no edges"):
        score_graph(CHAIN, np.eye(3))
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        score_graph(np.ones((2, 2)), CHAIN)
