"""Ways to find a graph among perturbed genes, to compare with: simple ones, and public causal discovery.

Each takes a :class:`Cells` and gives ``nodes x nodes`` weights, ``[j, k]`` for the edge from j to k. The
public methods are an optional extra, ``pip install "sccvae-pyro[bench]"``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro import InputError
from sccvae_pyro.data.counts import log1p_cp10k

CONTROL = "control"
PACKAGES = ("gies", "causal-learn", "dagma")


@dataclass(frozen=True)
class Cells:
    """Log expression of the perturbed genes.

    Parameters
    ----------
    values
        ``cells x nodes``, log1p(CP10K), centred in every batch.
    label
        Gene that is perturbed in each cell, or ``"control"``.
    nodes
        Names of the genes, in the order of the columns.
    """

    values: np.ndarray
    label: np.ndarray
    nodes: tuple[str, ...]

    @classmethod
    def of(cls, adata: AnnData, nodes: tuple[str, ...]) -> Cells:
        """Read the genes of the nodes from a simulated screen."""
        log_x = log1p_cp10k(adata[:, list(nodes)].X.toarray(), adata.obs["library"].to_numpy())
        batch = adata.obs["batch"].to_numpy()
        values = pd.DataFrame(log_x)
        centred = values - values.groupby(batch).transform("mean")
        return cls(centred.to_numpy(float), adata.obs["perturbation"].astype(str).to_numpy(), nodes)

    @property
    def control(self) -> np.ndarray:
        """Control cells."""
        return self.values[self.label == CONTROL]

    def perturbed(self, node: str) -> np.ndarray:
        """Cells of one perturbation."""
        return self.values[self.label == node]

    @property
    def effects(self) -> np.ndarray:
        """Difference of every perturbation's mean to the control mean, ``nodes x nodes``."""
        return np.stack([self.perturbed(node).mean(0) for node in self.nodes]) - self.control.mean(0)

    @property
    def effect_errors(self) -> np.ndarray:
        """Standard errors of the effects."""
        groups = [self.perturbed(node) for node in self.nodes]
        own = np.stack([group.var(0, ddof=1) / len(group) for group in groups])
        return np.sqrt(own + self.control.var(0, ddof=1) / len(self.control))


# Simple ways


def control_correlation(cells: Cells) -> np.ndarray:
    """Correlate genes over control cells."""
    return np.corrcoef(cells.control.T)


def control_partial_correlation(cells: Cells) -> np.ndarray:
    """Correlate genes over control cells, given all others."""
    return _partial_correlation(cells.control)


def effect_correlation(cells: Cells) -> np.ndarray:
    """Correlate genes over the means of perturbations."""
    return np.corrcoef(cells.effects.T)


def partial_correlation(cells: Cells) -> np.ndarray:
    """Correlate genes over all cells, given all others."""
    return _partial_correlation(cells.values)


def differential_expression(cells: Cells) -> np.ndarray:
    """Test what each perturbation changes: Welch's t against control cells."""
    return cells.effects / cells.effect_errors


def directed_partial_correlation(cells: Cells) -> np.ndarray:
    """Weigh partial correlations by how much of the differential expression runs in each direction."""
    squared = np.square(differential_expression(cells))
    return _partial_correlation(cells.values) * squared / (squared + squared.T)


def inverted_effects(cells: Cells) -> np.ndarray:
    """Solve the effects for the graph: modular response analysis (Kholodenko et al. 2002, PNAS 99:12841).

    An effect, divided by that on the own gene, is an entry of ``(I - B)^-1``.
    """
    effects = cells.effects
    total = effects / np.diag(effects)[:, None]
    return np.eye(len(total)) - np.linalg.inv(total)


def _partial_correlation(values: np.ndarray) -> np.ndarray:
    precision = np.linalg.inv(np.cov(values.T))
    scale = np.sqrt(np.diag(precision))
    return -precision / np.outer(scale, scale)


# Public causal discovery


def gies(cells: Cells) -> np.ndarray:
    """Greedy interventional equivalence search (Hauser & Bühlmann 2012, JMLR 13:2409), package gies."""
    from gies import fit_bic

    groups = [cells.control, *map(cells.perturbed, cells.nodes)]
    found, _ = fit_bic(groups, [[], *([k] for k in range(len(cells.nodes)))])
    return _coefficients(found, cells)


def ges(cells: Cells) -> np.ndarray:
    """Greedy equivalence search (Chickering 2002, JMLR 3:507), package causal-learn."""
    from causallearn.search.ScoreBased.GES import ges

    return _coefficients(ges(cells.values)["G"].graph == TAIL, cells)


def pc(cells: Cells) -> np.ndarray:
    """Test conditional independences, level 0.01 (Spirtes, Glymour & Scheines 2000), package causal-learn."""
    from causallearn.search.ConstraintBased.PC import pc

    return _coefficients(pc(cells.values, 0.01, show_progress=False).G.graph == TAIL, cells)


def direct_lingam(cells: Cells) -> np.ndarray:
    """DirectLiNGAM (Shimizu et al. 2011, JMLR 12:1225), package causal-learn."""
    from causallearn.search.FCMBased.lingam import DirectLiNGAM

    model = DirectLiNGAM()
    model.fit(cells.values)
    return model.adjacency_matrix_.T


def ica_lingam(cells: Cells) -> np.ndarray:
    """ICA-LiNGAM (Shimizu et al. 2006, JMLR 7:2003), package causal-learn."""
    from causallearn.search.FCMBased.lingam import ICALiNGAM

    model = ICALiNGAM(random_state=0)
    model.fit(cells.values)
    return model.adjacency_matrix_.T


def dagma(cells: Cells) -> np.ndarray:
    """DAGMA (Bello, Aragam & Ravikumar 2022, NeurIPS), package dagma; no threshold on weights."""
    from dagma.linear import DagmaLinear

    centred = cells.values - cells.values.mean(0)
    return DagmaLinear(loss_type="l2").fit(centred, lambda1=0.03, w_threshold=0.0)


TAIL = -1
"""Mark of causal-learn at the tail of an edge; an undirected edge has one at both ends."""


def _coefficients(graph: np.ndarray, cells: Cells) -> np.ndarray:
    """Regress every gene on its parents, in all cells in which it is not perturbed; ``nodes x nodes``.

    Gives the edges of a graph, which are there or not, an order. Neighbours whose direction is open are
    parents.
    """
    weights = np.zeros((len(cells.nodes),) * 2)
    for k, node in enumerate(cells.nodes):
        parents = np.flatnonzero(graph[:, k])
        rows = cells.values[cells.label != node]
        rows = rows - rows.mean(0)
        weights[parents, k] = np.linalg.lstsq(rows[:, parents], rows[:, k], rcond=None)[0]
    return weights


SIMPLE = {
    "correlation, control cells": control_correlation,
    "partial correlation, control cells": control_partial_correlation,
    "correlation, perturbation means": effect_correlation,
    "partial correlation, all cells": partial_correlation,
    "differential expression": differential_expression,
    "partial correlation, directed by expression": directed_partial_correlation,
    "inverted effects": inverted_effects,
}
PUBLIC = {
    "GIES": gies,
    "GES": ges,
    "PC": pc,
    "DirectLiNGAM": direct_lingam,
    "ICA-LiNGAM": ica_lingam,
    "DAGMA": dagma,
}


def check_installed() -> None:
    """Import the public packages.

    Raises
    ------
    InputError
        Naming the missing one and the extra that brings it.
    """
    try:
        import causallearn  # noqa: F401
        import dagma  # noqa: F401
        import gies  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"The package {error.name} is missing. Public causal discovery is an extra: "
            "pip install 'sccvae-pyro[bench]'."
        ) from None
