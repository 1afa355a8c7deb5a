"""Restarts: the same model fitted from several seeds, and what stays the same.

Variational inference ends in a local optimum. What changes from one start to the next by more than the
posterior says is not known as well as its interval claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro.data.checks import check_seed
from sccvae_pyro.errors import InputError
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.nodes import Free
from sccvae_pyro.models.spec import ModelSpec
from sccvae_pyro.sccvae import SCCVAE, Perturbation

NAMELESS = "free nodes have no names: total effects of perturbations on genes are compared in place of edges"


def restarts(
    adata: AnnData,
    spec: str | Path | Mapping[str, Any] | ModelSpec,
    inference: InferenceSpec | Mapping[str, Any] | str | Path | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    perturbations: Sequence[Perturbation] = (),
    n_samples: int = 200,
    **overrides: Any,
) -> pd.DataFrame:
    """Fit the same model from several seeds, and say how far the answers agree.

    A seed decides initial weights, the cells kept for validation and the order of the others.

    Parameters
    ----------
    adata
        Screen that has been set up.
    spec
        Of the model, as in :meth:`SCCVAE.from_spec`; that of a model is ``model.spec``.
    inference, overrides
        How to fit, as in :meth:`SCCVAE.fit`.
    seeds
        At least two seeds, one for each start.
    perturbations
        What to predict, such as held-out perturbations; nothing by default.
    n_samples
        Posterior draws of each start.

    Returns
    -------
    DataFrame, one row for each ``quantity``:

    ``edges``, ``inclusion``
        Weights of edges, and probabilities that they are in the graph, where nodes have names.
    ``total_effects``
        Effects of the seen single perturbations on all genes.
    ``strengths``
        Strengths of the seen perturbations.
    ``predictions``
        Effects of ``perturbations`` on all genes.

    Columns ``entries`` (how many numbers are compared), ``correlation`` and ``lowest_correlation`` (of
    posterior means, over the entries: mean and least over pairs of starts), ``between_sd`` (sd of the
    posterior means over starts), ``within_sd`` (posterior sd), both root mean squares over the entries,
    ``ratio`` of the two, and ``note``. A ratio above 1 says that the start decides more than the posterior
    admits.

    Raises
    ------
    InputError
        If fewer than two different seeds are given, or as in :meth:`SCCVAE.fit` and :meth:`SCCVAE.predict`.
    """
    for seed in seeds:
        check_seed(seed)
    if len(set(seeds)) < max(2, len(seeds)):
        raise InputError(f"seeds must be two or more different numbers, not {list(seeds)!r}")
    answers = [
        _answers(
            SCCVAE.from_spec(adata, spec).fit(inference, **{"progress": False, **overrides}, seed=seed),
            perturbations,
            n_samples,
        )
        for seed in seeds
    ]
    rows = {name: _compare([answer[name] for answer in answers]) for name in answers[0]}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("quantity")
    table["note"] = "" if "edges" in table.index else NAMELESS
    return table


def _answers(model: SCCVAE, perturbations: Sequence[Perturbation], n_samples: int) -> dict[str, pd.DataFrame]:
    """Posterior ``mean`` and ``sd`` of every named number, for each quantity."""
    answers: dict[str, pd.DataFrame] = {}
    if not isinstance(model.priors.nodes, Free):
        edges = model.edges(n_samples).set_index(["source", "target"])
        answers["edges"] = edges[["mean", "sd"]]
        if "inclusion" in edges:
            answers["inclusion"] = edges[["inclusion"]].set_axis(["mean"], axis=1)
    answers["total_effects"] = _effects(model, model.coding.perturbations, n_samples)
    answers["strengths"] = model.penetrance(n_samples)[["mean", "sd"]]
    if len(perturbations):
        answers["predictions"] = _effects(model, perturbations, n_samples)
    return answers


def _effects(model: SCCVAE, perturbations: Sequence[Perturbation], n_samples: int) -> pd.DataFrame:
    """Effects on the mean profile, by label and gene."""
    prediction = model.predict(list(perturbations), n_samples=n_samples)
    layers = {"mean": "delta", "sd": "delta_sd"}
    return pd.DataFrame({name: prediction.to_df(layer).stack() for name, layer in layers.items()})


def _compare(answers: Sequence[pd.DataFrame]) -> dict[str, float]:
    """Agreement of the posterior means of starts; an edge that a start never draws has weight zero there."""
    tables = pd.concat(dict(enumerate(answers)), axis=1).fillna(0.0).swaplevel(axis=1)
    means = tables["mean"].to_numpy().T
    correlations = [correlation(one, other) for one, other in combinations(means, 2)]
    between = float(np.sqrt(means.var(axis=0, ddof=1).mean()))
    within = float(np.sqrt(np.square(tables["sd"].to_numpy()).mean())) if "sd" in tables else np.nan
    return {
        "entries": means.shape[1],
        "correlation": float(np.mean(correlations)),
        "lowest_correlation": float(np.min(correlations)),
        "between_sd": between,
        "within_sd": within,
        "ratio": between / within if within > 0 else np.nan,
    }


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation; NaN where there is nothing that varies."""
    varies = len(np.unique(one)) > 1 and len(np.unique(other)) > 1
    return float(np.corrcoef(one, other)[0, 1]) if varies else np.nan
