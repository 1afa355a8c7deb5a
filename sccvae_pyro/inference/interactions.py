"""How far the effect of a combination is from the sum of the effects of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro.data.loading import Coding
from sccvae_pyro.inference import results
from sccvae_pyro.inference.posterior import summarise


def parts(parsed: Sequence[Sequence[str]]) -> list[str]:
    """Names of all targets of combinations, each once."""
    return sorted({target for targets in parsed for target in targets})


def additive(deltas: np.ndarray, parsed: Sequence[Sequence[str]]) -> np.ndarray:
    """Sum the effects of the parts of each combination, draw by draw.

    Parameters
    ----------
    deltas
        ``draws x parts x genes``, in the order of :func:`parts`.
    parsed
        Targets of each combination.

    Returns
    -------
    ``draws x combinations x genes``.
    """
    position = {name: i for i, name in enumerate(parts(parsed))}
    rows = [[position[target] for target in targets] for targets in parsed]
    return np.stack([deltas[:, own].sum(axis=1) for own in rows], axis=1)


def scores(expected: np.ndarray, interaction: np.ndarray) -> dict[str, np.ndarray]:
    """Summarise interactions over genes, draw by draw.

    Parameters
    ----------
    expected, interaction
        Additive expectation and deviation from it, ``draws x combinations x genes``.

    Returns
    -------
    ``score``: norm of the deviation over that of the expectation; ``projection``: part of the deviation along
    the expectation, in units of it, as 0.2 where the combination goes a fifth farther the same way. Each
    ``draws x combinations``, NaN where no effect is expected.
    """
    size = np.square(expected).sum(-1)
    size = np.where(size > 0, size, np.nan)
    return {
        "score": np.sqrt(np.square(interaction).sum(-1) / size),
        "projection": (interaction * expected).sum(-1) / size,
    }


def table(
    deltas: np.ndarray,
    parsed: Sequence[Sequence[str]],
    labels: Sequence[str],
    status: Sequence[str],
    coding: Coding,
    settings: dict[str, Any],
) -> AnnData:
    """Lay out combinations beside their additive expectation; see :meth:`sccvae_pyro.SCCVAE.interactions`.

    Parameters
    ----------
    deltas
        Effects of the combinations, then of their :func:`parts`, ``draws x labels x genes``.
    parsed
        Targets of each combination.
    labels, status
        Names of the combinations, and whether they were measured.
    coding
        Names of the genes.
    settings
        What was asked for.
    """
    together, apart = np.split(deltas, [len(labels)], axis=1)
    expected = additive(apart, parsed)
    interaction = together - expected
    deviation = summarise(interaction)
    layers = {
        "delta": together.mean(axis=0),
        "additive": expected.mean(axis=0),
        "interaction": deviation["mean"],
        "interaction_sd": deviation["sd"],
        "interaction_q05": deviation["q05"],
        "interaction_q95": deviation["q95"],
    }
    obs = pd.DataFrame({"status": pd.Categorical(status)}, index=pd.Index(labels))
    values = scores(expected, interaction)
    for name, draws in values.items():
        summary = summarise(draws)
        obs[name], obs[f"{name}_q05"], obs[f"{name}_q95"] = (summary[k] for k in ("mean", "q05", "q95"))
    obs["probability_synergistic"] = (values["projection"] > 0).mean(axis=0)
    layers = {name: np.asarray(layer, dtype=np.float32) for name, layer in layers.items()}
    var = pd.DataFrame(index=pd.Index(coding.genes))
    found = AnnData(X=layers["interaction"].copy(), obs=obs, var=var, layers=layers)
    found.uns["units"], found.uns["settings"] = results.units(coding), settings
    return found
