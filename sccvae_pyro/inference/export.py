"""Posterior draws for ArviZ, the graph for networkx, and a drawing of the program."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import torch

from sccvae_pyro.data.features import FeatureTable
from sccvae_pyro.data.loading import Batch, Coding, Covariate, Screen
from sccvae_pyro.errors import InputError
from sccvae_pyro.files import as_path, check_file
from sccvae_pyro.inference.posterior import Draws
from sccvae_pyro.models.graph_edges import node_names
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.slot import Sizes

DIMENSIONS = {
    "B": ["parent", "node"],
    "edge_weight": ["parent", "node"],
    "order_score": ["node"],
    "strength": ["perturbation"],
    "guide_strength": ["guide"],
    "responders": ["perturbation"],
    "direction": ["perturbation", "node"],
    "direction_own": ["perturbation"],
    "direction_scale": ["node"],
    "direction_relevance": ["feature"],
    "direction_signal": ["node"],
    "direction_global_scale": ["node"],
    "direction_local_scale": ["node", "feature"],
    "direction_weights": ["node", "feature_or_constant"],
    "direction_function_weights": ["node", "function_or_constant"],
    "inverse_dispersion": ["gene"],
    "dispersion_offset": ["gene", "covariate"],
    "dispersion_spread": ["covariate"],
    "dropout": ["gene"],
    "overdispersion_sd": ["gene"],
    "residual_sd": ["gene"],
    "residual_scale": ["gene"],
    "x": ["cell"],
    "mean_profile": ["label", "gene"],
}
"""Names of the dimensions of the documented sites, and of what is said of cells and labels."""

EQUAL = 1e-3
"""Spread of log ratios, nats, below which they only differ by rounding."""

Group = dict[str, np.ndarray]
Coords = Mapping[str, Sequence[str]]


def coordinates(
    nodes: list[str], coding: Coding, features: FeatureTable | None, draws: Draws
) -> dict[str, list[str]]:
    """Names along each dimension of the global sites.

    Parameters
    ----------
    nodes
        Names of the nodes.
    coding, features
        Names of genes, perturbations and features.
    draws
        Draws of the globals, which tell how many functions of the features there are.
    """
    columns = [] if features is None else list(features.table.columns)
    functions = draws.values.get("direction_function_weights", torch.empty(0)).shape[-1]
    return {
        "parent": nodes,
        "node": nodes,
        "perturbation": list(coding.perturbations),
        "gene": list(coding.genes),
        "guide": list(coding.guides),
        "covariate": [name for covariate in coding.covariates for name in _columns(covariate)],
        "feature": columns,
        "feature_or_constant": ["constant", *columns],
        "function_or_constant": ["constant", *map(str, range(1, functions))],
    }


def sites(draws: Draws, coords: Coords, chains: int = 1) -> Group:
    """Draws of all global sites, chain after chain, as a group of ArviZ data."""
    # Some graphs make B of other sites, and only those are drawn.
    values = {"B": draws.B, **draws.values}
    leading = (chains, len(draws) // chains)
    return {name: _event(name, value, leading, coords) for name, value in values.items()}


def to_arviz(groups: Mapping[str, Group], coords: Coords) -> Any:
    """Lay groups out as ArviZ data, an ``InferenceData`` before ArviZ 1.0 and a ``DataTree`` since.

    Parameters
    ----------
    groups
        For each group its arrays, ``chains x draws x`` the dimensions of the site; observed data have only
        the latter.
    coords
        Names along each dimension.
    """
    dims = {name: DIMENSIONS[name] for group in groups.values() for name in group if name in DIMENSIONS}
    used = {dim for names in dims.values() for dim in names}
    return _from_dict(groups, dims=dims, coords={name: coords[name] for name in used})


def _columns(covariate: Covariate) -> list[str]:
    """Names of the coded columns of a covariate."""
    return [f"{covariate.key}={level}" for level in covariate.levels] or [covariate.key]


def to_networkx(edges: pd.DataFrame, sizes: Sizes) -> nx.DiGraph:
    """Give the graph to networkx; see :meth:`sccvae_pyro.SCCVAE.to_networkx`.

    Parameters
    ----------
    edges
        What :func:`~sccvae_pyro.inference.results.edge_table` returns.
    sizes
        Names of the nodes, and which of them are genes or perturbed.

    Returns
    -------
    Graph whose attributes are plain numbers, words and truth values, which every format can store.
    """
    graph = nx.DiGraph()
    perturbed = set(sizes.perturbation_names)
    for position, name in enumerate(node_names(sizes)):
        graph.add_node(name, position=position, is_gene=bool(sizes.anchors), perturbed=name in perturbed)
    columns = edges.columns.drop(["source", "target"])
    numbers = edges[columns].to_numpy(dtype=float).tolist()
    for source, target, values in zip(edges["source"], edges["target"], numbers, strict=True):
        graph.add_edge(source, target, **dict(zip(columns, values, strict=True)))
    return graph


def _event(name: str, value: torch.Tensor, leading: tuple[int, ...], coords: Coords) -> np.ndarray:
    """Drop the singletons of vectorised plates: chains x draws x the site's own dimensions."""
    shape = [len(coords[dim]) for dim in DIMENSIONS.get(name, [])] or [d for d in value.shape[1:] if d != 1]
    return value.reshape(*leading, *shape).numpy()


def _arviz() -> tuple[Any, bool]:
    """Import ArviZ, and say whether it is 1.x: with the two that use it, all that knows its versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 at import
        import arviz
    return arviz, int(importlib.metadata.version("arviz").split(".")[0]) >= 1


def _from_dict(groups: Mapping[str, Group], **names: Any) -> Any:
    """Make ArviZ data: 1.x takes a mapping of groups, 0.x a keyword for each."""
    arviz, is_one = _arviz()
    return arviz.from_dict(groups, **names) if is_one else arviz.from_dict(**groups, **names)


PICTURES = (".pdf", ".png", ".svg")
"""Formats of a drawn program."""


def pareto_k(log_ratios: np.ndarray) -> np.ndarray:
    """Shape of the generalised Pareto distribution that the largest importance ratios follow.

    Parameters
    ----------
    log_ratios
        ``... x draws``, ``log p - log q``, up to a constant.

    Returns
    -------
    k, without the last dimension; zero where all ratios are equal, which no tail can be fitted to.
    """
    shapes = np.zeros(log_ratios.shape[:-1])
    varies = np.ptp(log_ratios, axis=-1) >= EQUAL
    if varies.any():
        shapes[varies] = _psislw(log_ratios[varies])
    return shapes


def _psislw(log_ratios: np.ndarray) -> np.ndarray:
    """Fit the tails of importance ratios: 1.x takes them as one over a likelihood, 0.x as they are."""
    arviz, is_one = _arviz()
    if not is_one:
        return arviz.psislw(log_ratios)[1]
    from arviz_stats.base import array_stats

    return array_stats.psislw(-log_ratios)[1]


def render(program: Program, screen: Screen | None, filename: str | Path | None) -> Any:
    """Draw the program with ``pyro.render_model``.

    Raises
    ------
    InputError
        If the Python package or the program graphviz is missing, or the file cannot be written.
    """
    if filename is not None and check_file(as_path(filename)).suffix not in PICTURES:
        raise InputError(f"Cannot tell the format of {filename}. Give it the suffix {' or '.join(PICTURES)}.")
    batch = example(program, screen)
    try:
        return pyro.render_model(
            program.model,
            (batch,),
            filename=None if filename is None else str(filename),
            render_distributions=True,
        )
    except ImportError as error:
        raise InputError(
            "Drawing the program needs graphviz: pip install graphviz, and the graphviz program."
        ) from error


def example(program: Program, screen: Screen | None) -> Batch:
    """Give two cells of the screen; of a program without one, cells without a molecule."""
    if screen is not None:
        return screen[torch.arange(2).numpy()]
    sizes = program.sizes
    targets = torch.full((2, 1), sizes.perturbations)
    covariates, guides = torch.zeros(2, sizes.covariates), torch.full((2,), sizes.guides)
    return Batch(torch.zeros(2, sizes.genes), torch.ones(2), targets, covariates, guides)


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = ("sccvae-pyro", "torch", "pyro-ppl", "anndata", "numpy")
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {"python": platform.python_version(), **found}
