"""A causal order of anchored genes, as a screen suggests it: where learning the order begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sccvae_pyro.data.loading import Screen

BLOCK = 4096
"""Cells that are read at a time."""

TINY = 1e-12
"""Smallest variance that is divided by."""

MOST_SWEEPS = 100
"""Sweeps of insertions after which an order is taken as it is."""


class Moments(NamedTuple):
    """What is summed over cells, for the log expression of some genes given covariates.

    ``effects_pg``: mean of the cells of one perturbation alone less that of control cells; ``size_p``: number
    of the former; ``n_control``: of the latter; ``covariance_gg``: over all cells.
    """

    effects_pg: np.ndarray
    size_p: np.ndarray
    n_control: int
    covariance_gg: np.ndarray


def suggested_order(screen: Screen, anchors: Sequence[int], own_p: np.ndarray) -> tuple[int, ...]:
    """Order the nodes so that who answers whose perturbation comes after it.

    Nodes are neighbours by their partial correlation over all cells, and the perturbation of a cause moves
    its effects, not the other way round. The order has, from earlier to later nodes, as much as local search
    finds of ``(t statistic of k in cells perturbed at j)^2 (partial correlation of j and k)^2``; orders from
    single-gene interventions as in Chevalley, Mehrjou & Schwab (2024, arXiv:2405.18314).

    Parameters
    ----------
    screen
        The training cells; read in blocks.
    anchors
        Position of the gene of each node.
    own_p
        Node of each perturbation; the number of nodes where it has none.

    Returns
    -------
    Positions of the nodes, causes first.
    """
    found = moments(screen, anchors)
    precision = np.linalg.pinv(found.covariance_gg, hermitian=True)
    scale = np.sqrt(np.maximum(np.diag(precision), TINY))  # a gene that never varies has neither
    variance = np.maximum(np.diag(found.covariance_gg), TINY)
    partial_gg = precision / np.outer(scale, scale)
    has_node = (own_p < len(anchors)) & (found.size_p > 0)
    per_cell = 1 / found.size_p[has_node] + 1 / max(found.n_control, 1)
    squared_t = np.zeros_like(partial_gg)
    squared_t[own_p[has_node]] = found.effects_pg[has_node] ** 2 / np.outer(per_cell, variance)
    return tuple(int(k) for k in order_by_insertion(squared_t * partial_gg**2))


def moments(screen: Screen, genes: Sequence[int]) -> Moments:
    """Sum over the cells of a screen, in blocks; see :class:`Moments`."""
    columns = np.asarray(genes)
    n_perturbations, n_genes = len(screen.coding.perturbations), len(columns)
    n_known = 1 + screen.covariates.shape[1]
    gram = np.zeros((n_known + n_genes,) * 2)
    sums = np.zeros((n_perturbations + 1, n_known + n_genes))
    sizes = np.zeros(n_perturbations + 1)
    single_c = (screen.targets < n_perturbations).sum(1) <= 1
    label_c = screen.targets.min(1)  # padding, and control, is the largest code
    for start in range(0, len(screen), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(screen)))
        known = np.hstack([np.ones((len(rows), 1)), screen.covariates[rows]])
        values = np.hstack([known, screen.log_expression(rows)[:, columns]])
        gram += values.T @ values
        single = single_c[rows]
        np.add.at(sums, label_c[rows][single], values[single])
        sizes += np.bincount(label_c[rows][single], minlength=len(sizes))
    # What covariates tell is taken off by regression; covariates may be redundant.
    slope = np.linalg.lstsq(gram[:n_known, :n_known], gram[:n_known, n_known:], rcond=None)[0]
    covariance = (gram[n_known:, n_known:] - gram[n_known:, :n_known] @ slope) / len(screen)
    residual = sums[:, n_known:] - sums[:, :n_known] @ slope
    mean = residual / np.maximum(sizes, 1)[:, None]
    return Moments(mean[:-1] - mean[-1], sizes[:-1], int(sizes[-1]), covariance)


def order_by_insertion(weight: np.ndarray) -> np.ndarray:
    """Order the rows so that much of the weight lies above the diagonal: the linear ordering problem.

    Every element in turn is moved to where it is best, until none moves.

    Parameters
    ----------
    weight
        ``elements x elements``: what is gained when the row comes before the column.

    Returns
    -------
    Positions of the elements in their order.
    """
    order = np.argsort(weight.sum(0) - weight.sum(1), kind="stable")
    for _ in range(MOST_SWEEPS):
        before = order
        for element in before:
            order = _inserted(element, order, weight)
        if np.array_equal(order, before):
            break
    return order


def _inserted(element: int, order: np.ndarray, weight: np.ndarray) -> np.ndarray:
    rest = order[order != element]
    # Gain of each position against the first: what is passed comes before the element instead of after it.
    passed = np.concatenate([[0.0], np.cumsum(weight[rest, element] - weight[element, rest])])
    now = int(np.flatnonzero(order == element)[0])
    best = int(passed.argmax())
    return np.insert(rest, best, element) if passed[best] > passed[now] + 1e-12 else order
