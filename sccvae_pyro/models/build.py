"""Assembling a program from a spec and a screen, and features in the form that is stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

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
from sccvae_pyro.models.program import Priors, Program
from sccvae_pyro.models.slot import Sizes
from sccvae_pyro.models.spec import ModelSpec

logger = logging.getLogger(__name__)


def features_of(adata: AnnData, coding: Coding) -> FeatureTable | None:
    """Features of the perturbed genes: the user's table, or the control-cell PCA of the targets.

    Without a table, and where a target is not measured, there are no features: every unseen
    perturbation is then predicted from the population of the seen ones.
    """
    key = coding.schema.feature_key
    if key is not None:
        table = feature_table(adata, key)
        table.columns.name = table.columns.name or key
        return FeatureTable.fit([table], genes=coding.perturbations)
    unmeasured = [target for target in coding.perturbations if target not in set(coding.genes)]
    if unmeasured or len(coding.perturbations) < 3:
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        program = empty_program(spec, priors, sizes, torch.as_tensor(seen, dtype=torch.float32))
    center, scale, control_mean = gene_statistics(screen)
    program.encoder.center.copy_(torch.as_tensor(center))
    program.encoder.scale.copy_(torch.as_tensor(scale))
    program.baseline.copy_(torch.as_tensor(priors.likelihood.baseline(control_mean)))
    program.expression_p.copy_(expression_of(coding.perturbations, coding, program.baseline))
    program.library.start(screen.library)
    program.check(program.targets)
    return program


def empty_program(spec: ModelSpec, priors: Priors, sizes: Sizes, features: Tensor | None = None) -> Program:
    """Build a program of the right shapes; what depends on the screen is left at placeholders."""
    features = torch.zeros(sizes.perturbations, sizes.features) if features is None else features
    shape = priors.likelihood.baseline(np.full(sizes.genes, 1.0 / (sizes.genes + 1))).shape
    center, scale = torch.zeros(sizes.genes), torch.ones(sizes.genes)
    encoder = priors.nodes.encoder(center, scale, sizes, spec.hidden)
    decoder = priors.nodes.decoder(sizes, spec.hidden)
    return Program(priors, sizes, features, torch.zeros(shape), encoder, decoder)


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


def gene_statistics(screen: Screen, block: int = 4096) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sd of the log expression of each gene, and the mean of the control cells, streamed.

    The last is the proportion of molecules for counts (with half a molecule added to each gene, so that no
    gene is impossible), and the mean value otherwise.
    """
    total, square, control = (np.zeros(len(screen.coding.genes)) for _ in range(3))
    counts = screen.coding.schema.kind == "counts"
    is_control, n = screen.is_control, len(screen)
    for rows, batch in screen.batches(np.arange(n), block):
        x = batch.x_cg.double().numpy()
        control += x[is_control[rows]].sum(0)
        log_x = np.asarray(log1p_cp10k(x, screen.library[rows])) if counts else x
        total += log_x.sum(0)
        square += np.square(log_x).sum(0)
    mean = total / n
    sd = np.sqrt(np.maximum(square / n - mean**2, 0.0)) + 1e-2
    if not counts:
        return mean, sd, control / is_control.sum()
    return mean, sd, (control + 0.5) / (screen.library[is_control].sum(dtype=np.float64) + 0.5 * len(control))


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
