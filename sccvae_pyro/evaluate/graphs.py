"""Scores of a found graph against a known one."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score


def score_graph(weights: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compare how strongly a method believes in each edge with the edges there are.

    Areas are average precisions, so that chance is the share of pairs that are edges; equal weights count as
    one step, whatever their order.

    Parameters
    ----------
    weights
        ``nodes x nodes``; ``[j, k]`` is the edge from j to k, stronger the farther from zero. The diagonal is
        not read.
    truth
        ``nodes x nodes``, zero where there is no edge.

    Returns
    -------
    ``directed``: area under the precision-recall curve of all ordered pairs. ``skeleton``: of unordered
    pairs, each with the larger of its two weights. ``orientation``: share of the true edges whose weight is
    larger than that of the same edge turned round; equal ones count half.

    Raises
    ------
    ValueError
        If there is no edge to find, or the shapes differ.
    """
    strength, edge = np.abs(np.asarray(weights, dtype=float)), np.asarray(truth) != 0
    if strength.shape != edge.shape or edge.shape[0] != edge.shape[1]:
        raise ValueError(f"weights {strength.shape} and truth {edge.shape} must be square and of one size")
    edge = edge & ~np.eye(len(edge), dtype=bool)
    if not edge.any():
        raise ValueError("the true graph has no edges")
    ordered = ~np.eye(len(edge), dtype=bool)
    pairs = np.triu(ordered)
    ahead, turned = strength[edge], strength.T[edge]
    return {
        "directed": float(average_precision_score(edge[ordered], strength[ordered])),
        "skeleton": float(
            average_precision_score((edge | edge.T)[pairs], np.maximum(strength, strength.T)[pairs])
        ),
        "orientation": float(np.mean((ahead > turned) + 0.5 * (ahead == turned))),
    }
