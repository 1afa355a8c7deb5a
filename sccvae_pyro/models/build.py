"""Assembling a program from a spec and a screen, and features in the form that is stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.features import FeatureTable, control_pca
from sccvae_pyro.data.loading import Coding, Screen
from sccvae_pyro.data.schema import feature_table
from sccvae_pyro.data.wording import listing
from sccvae_pyro.models.causal_order import suggested_order
from sccvae_pyro.models.program import Priors, Program
from sccvae_pyro.models.scm import GuideMix
from sccvae_pyro.models.slot import Sizes, own_nodes
from sccvae_pyro.models.spec import ModelSpec

logger = logging.getLogger(__name__)

LEAST_SCATTER, MOST_SCATTER = 0.01, 10.0
"""Where scatter of control cells is cut off: moments of rare genes are noisy."""

SCATTER_SHARE = 0.5
"""Share of the control cells' scatter at which the likelihood's begins; the rest is for the state."""


class GeneStatistics(NamedTuple):
    """What is known of the genes of a screen before anything is fitted, each of length ``genes``.

    ``center`` and ``scale``: mean and sd of log expression over all cells; ``control_mean``: proportion of
    the molecules of control cells, or their mean value; ``scatter``: squared coefficient of variation of
    control cells beyond that of counting at their library sizes, or the variance of their values.
    """

    center: np.ndarray
    scale: np.ndarray
    control_mean: np.ndarray
    scatter: np.ndarray


def features_of(adata: AnnData, coding: Coding) -> FeatureTable | None:
    """Features of the perturbed genes: the user's table, or the control-cell PCA of the targets.

    Without a table, and where a target is not measured, there are no features, and none are read of fewer
    than three perturbations: unseen ones are then predicted from the population of the seen.
    """
    if len(coding.perturbations) < 3:
        logger.warning(
            "%d perturbations are too few to learn from features; none are read. "
            "Unseen perturbations are predicted from the population of seen effects.",
            len(coding.perturbations),
        )
        return None
    key = coding.schema.feature_key
    if key is not None:
        table = feature_table(adata, key)
        table.columns.name = table.columns.name or key
        return FeatureTable.fit([table], genes=coding.perturbations)
    unmeasured = [target for target in coding.perturbations if target not in set(coding.genes)]
    if unmeasured:
        logger.warning(
            "No perturbation features: none given (feature_key), and targets such as %s are not measured. "
            "Unseen perturbations are predicted from the population of seen effects.",
            listing(unmeasured),
        )
        return None
    return FeatureTable.fit(
        [control_pca(adata, n_components=min(50, len(coding.genes) - 1))], genes=coding.perturbations
    )


def program_of(
    spec: ModelSpec, priors: Priors, screen: Screen, features: FeatureTable | None, seed: int
) -> Program:
    """Build a program for a screen, with fresh weights."""
    coding = screen.coding
    seen = (
        np.zeros((len(coding.perturbations), 0)) if features is None else features.rows(coding.perturbations)
    )
    placed = priors.nodes.place(coding.genes, coding.perturbations)
    sizes = Sizes(
        cells=len(screen),
        genes=len(coding.genes),
        nodes=placed.number,
        perturbations=len(coding.perturbations),
        features=seen.shape[1],
        covariates=coding.n_covariates,
        guides=len(coding.guides),
        node_names=placed.names,
        anchors=placed.anchors,
        perturbation_names=coding.perturbations,
    )
    if priors.graph.learns_order and sizes.anchors:
        own_p = own_nodes(sizes.perturbation_names, sizes).numpy()
        sizes = replace(sizes, causes_first=suggested_order(screen, sizes.anchors, own_p))
    genes = gene_statistics(screen)
    scatter = torch.as_tensor(SCATTER_SHARE * genes.scatter, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        program = empty_program(
            spec, priors, sizes, torch.as_tensor(seen, dtype=torch.float32), scatter, guide_mix(screen)
        )
    program.encoder.center.copy_(torch.as_tensor(genes.center))
    program.encoder.scale.copy_(torch.as_tensor(genes.scale))
    program.baseline.copy_(torch.as_tensor(priors.likelihood.baseline(genes.control_mean)))
    program.expression_p.copy_(expression_of(coding.perturbations, coding, program.baseline))
    program.library.start(screen.library)
    program.check(program.targets)
    return program


def empty_program(
    spec: ModelSpec,
    priors: Priors,
    sizes: Sizes,
    features: Tensor | None = None,
    scatter: Tensor | None = None,
    mix: GuideMix | None = None,
) -> Program:
    """Build a program of the right shapes; what depends on the screen is left at placeholders."""
    features = torch.zeros(sizes.perturbations, sizes.features) if features is None else features
    shape = priors.likelihood.baseline(np.full(sizes.genes, 1.0 / (sizes.genes + 1))).shape
    center, scale = torch.zeros(sizes.genes), torch.ones(sizes.genes)
    encoder = priors.nodes.encoder(center, scale, sizes, spec.hidden)
    decoder = priors.nodes.decoder(sizes, spec.hidden)
    return Program(
        priors, sizes, features, torch.zeros(shape), encoder, decoder, scatter=scatter, guide_mix=mix
    )


def guide_mix(screen: Screen) -> GuideMix:
    """Count the cells of each guide among those with its perturbation alone."""
    n_guides, n_perturbations = len(screen.coding.guides), len(screen.coding.perturbations)
    alone_c = (screen.targets < n_perturbations).sum(axis=1) == 1
    target_c = screen.targets.min(axis=1)
    cells_p = np.bincount(target_c[alone_c], minlength=n_perturbations + 1)
    target_g = np.full(n_guides + 1, n_perturbations)
    target_g[screen.guides[alone_c]] = target_c[alone_c]
    own_c = alone_c & (target_c == target_g[screen.guides])
    cells_g = np.bincount(screen.guides[own_c], minlength=n_guides + 1)
    portion_g = cells_g / np.maximum(cells_p[target_g], 1)
    return GuideMix(torch.as_tensor(target_g[:-1]), torch.as_tensor(portion_g[:-1], dtype=torch.float32))


def expression_of(names: Sequence[str], coding: Coding, baseline_g: Tensor) -> Tensor:
    """How strongly control cells express each gene, standardised over the seen targets.

    Parameters
    ----------
    names
        Names of the genes.
    coding
        Measured genes and seen perturbations.
    baseline_g
        The likelihood's baseline, its first entries those of the measured genes.

    Returns
    -------
    Tensor, ``names``; NaN where a gene is not measured.
    """
    values = baseline_g[: len(coding.genes)]  # some end with what is not measured
    measured = pd.Series(values.numpy().astype(float), index=pd.Index(coding.genes))
    seen = measured.reindex(coding.perturbations)
    spread = seen.std(ddof=0)
    standardised = (measured.reindex(names) - seen.mean()) / (spread if spread > 0 else 1.0)
    return torch.as_tensor(standardised.to_numpy(), dtype=baseline_g.dtype)


def gene_statistics(screen: Screen, block: int = 4096) -> GeneStatistics:
    """Sum over the cells of a screen, in blocks; see :class:`GeneStatistics`."""
    is_control, counts = screen.is_control, screen.coding.schema.kind == "counts"
    log_sum, log_square = np.zeros((2, len(screen.coding.genes)))
    control_sum, control_square, control_by_library = np.zeros((3, len(screen.coding.genes)))
    for rows, batch in screen.batches(np.arange(len(screen)), block):
        x_cg = batch.x_cg.double().numpy()
        log_x_cg = np.asarray(log1p_cp10k(x_cg, screen.library[rows])) if counts else x_cg
        log_sum += log_x_cg.sum(0)
        log_square += np.square(log_x_cg).sum(0)
        control_cg = x_cg[is_control[rows]]
        control_sum += control_cg.sum(0)
        control_square += np.square(control_cg).sum(0)
        control_by_library += screen.library[rows][is_control[rows]].astype(float) @ control_cg
    center = log_sum / len(screen)
    scale = np.sqrt(np.maximum(log_square / len(screen) - center**2, 0.0)) + 1e-2
    if not counts:
        mean = control_sum / is_control.sum()
        return GeneStatistics(center, scale, mean, _bounded(control_square / is_control.sum() - mean**2))
    library_c = screen.library[is_control].astype(float)
    # Half a molecule more for each gene, so that none is impossible.
    proportion = (control_sum + 0.5) / (library_c.sum() + 0.5 * len(control_sum))
    # Sums over cells of the squared distance of a count from its mean, and of squared means.
    mean_square = proportion**2 * np.square(library_c).sum()
    distance = control_square - 2 * proportion * control_by_library + mean_square
    scatter = (distance - proportion * library_c.sum()) / mean_square
    return GeneStatistics(center, scale, proportion, _bounded(scatter))


def _bounded(scatter: np.ndarray) -> np.ndarray:
    return np.clip(scatter, LEAST_SCATTER, MOST_SCATTER)


def describe_features(features: FeatureTable) -> dict[str, Any]:
    """Names of a feature table, as plain values; its numbers are :func:`feature_tensors`."""
    return {
        "genes": list(features.table.index),
        "columns": list(features.table.columns),
        "known": list(features.coverage.index),
        "sources": list(features.coverage.columns),
    }


def feature_tensors(features: FeatureTable) -> dict[str, Tensor]:
    """Numbers of a feature table, by name."""
    parts = {"table": features.table, "center": features.center, "scale": features.scale}
    numbers = {f"features.{name}": torch.as_tensor(part.to_numpy(float)) for name, part in parts.items()}
    return {**numbers, "features.coverage": torch.as_tensor(features.coverage.to_numpy(bool))}


def features_from(names: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> FeatureTable | None:
    """Put a stored feature table together again."""
    if names is None:
        return None
    columns = pd.Index(names["columns"])
    return FeatureTable(
        pd.DataFrame(tensors["features.table"].numpy(), pd.Index(names["genes"]), columns),
        pd.Series(tensors["features.center"].numpy(), columns),
        pd.Series(tensors["features.scale"].numpy(), columns),
        pd.DataFrame(
            tensors["features.coverage"].numpy(), pd.Index(names["known"]), pd.Index(names["sources"])
        ),
    )
