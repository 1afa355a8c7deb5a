"""What a perturbation would do, beside what it did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sccvae_pyro.plots.style import (
    FAINT,
    MODEL,
    OBSERVED,
    SMALL,
    UNITS,
    Plot,
    axes,
    change,
    finish,
    rows,
    whiskers,
)


def compare(predictions: AnnData, observed: AnnData, label: str) -> pd.DataFrame:
    """Put the predicted and the observed effect of a perturbation side by side.

    Parameters
    ----------
    predictions
        Layers ``delta``, ``delta_q05`` and ``delta_q95``, perturbations x genes, as ``predict`` returns them.
    observed
        Layers ``delta`` and ``se``, the observed effect and the standard error of its mean.
    label
        Name of the perturbation, in both.

    Returns
    -------
    DataFrame, a row per gene of ``predictions``: ``observed``, ``se``, ``predicted``, ``low``, ``high`` (the
    ends of the 90 % interval).
    """
    prediction, truth = predictions[[label]], observed[[label], predictions.var_names]
    columns = {
        "observed": truth.layers["delta"],
        "se": truth.layers["se"],
        "predicted": prediction.layers["delta"],
        "low": prediction.layers["delta_q05"],
        "high": prediction.layers["delta_q95"],
    }
    values = {name: np.asarray(layer, dtype=float)[0] for name, layer in columns.items()}
    return pd.DataFrame(values, index=predictions.var_names)


def predicted_against_observed(
    table: pd.DataFrame, title: str = "", units: str = UNITS, ax: Axes | None = None
) -> Plot:
    """Draw every gene: observed effect across, predicted effect with its 90 % interval up.

    Parameters
    ----------
    table
        What :func:`compare` returns.
    title
        Title.
    units
        Units of the profiles.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    ax = axes(ax, 4.2, 3.9)
    ends = table[["observed", "low", "high"]].to_numpy()
    margin = 0.05 * max(np.ptp(ends), 1e-6)
    limits = (ends.min() - margin, ends.max() + margin)
    ax.axline((0, 0), slope=1, color=FAINT, linewidth=1.2, zorder=0)
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    error = whiskers(*table[["low", "predicted", "high"]].to_numpy().T)
    ax.errorbar(
        table["observed"],
        table["predicted"],
        yerr=error,
        fmt="o",
        color=MODEL,
        markersize=3,
        elinewidth=0.7,
        alpha=0.55,
        markeredgewidth=0,
    )
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    correlation = table["observed"].corr(table["predicted"])
    text = f"r = {correlation:.2f}"
    ax.text(0.03, 0.97, text, transform=ax.transAxes, fontsize=SMALL, va="top", color=OBSERVED)
    finish(ax, f"observed {change(units)}", f"predicted {change(units)}", title)
    return Plot(ax, table)


def top_genes(
    table: pd.DataFrame, n: int = 12, title: str = "", units: str = UNITS, ax: Axes | None = None
) -> Plot:
    """Draw the genes that changed most, observed (diamonds) and predicted (dots), with 90 % intervals.

    Parameters
    ----------
    table
        What :func:`compare` returns.
    n
        Number of genes, by observed effect.
    title
        Title.
    units
        Units of the profiles.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    shown = table.reindex(table["observed"].abs().sort_values(ascending=False, kind="stable").index[:n])
    shown = shown.sort_values("observed", ascending=False, kind="stable")
    ax = axes(ax, 4.6, 1.2 + 0.225 * len(shown))
    row = np.arange(len(shown))
    error = whiskers(*shown[["low", "predicted", "high"]].to_numpy().T)
    ax.axvline(0, color=FAINT, linewidth=1.2, zorder=0)
    predicted: dict[str, Any] = {
        "fmt": "o",
        "color": MODEL,
        "markersize": 5,
        "elinewidth": 1.6,
        "label": "predicted",
    }
    ax.errorbar(shown["predicted"], row + 0.15, xerr=error, **predicted)
    actual: dict[str, Any] = {
        "fmt": "D",
        "color": OBSERVED,
        "markersize": 4,
        "elinewidth": 1.0,
        "label": "observed",
    }
    ax.errorbar(shown["observed"], row - 0.15, xerr=1.645 * shown["se"], **actual)
    rows(ax, list(shown.index))
    ax.legend(frameon=False, fontsize=SMALL, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    finish(ax, change(units), title=title)
    return Plot(ax, shown)
