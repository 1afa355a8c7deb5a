"""Whether the model beats the simple baselines."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sccvae_pyro.evaluate.results import CEILING as CEILING_NAME
from sccvae_pyro.evaluate.results import HELD_OUT, METRICS
from sccvae_pyro.plots.style import BASELINE, CEILING, MODEL, Plot, axes, finish, rows, whiskers

DIRECTION = {"higher": "higher is better", "lower": "lower is better", "nominal": ""}


def score_forest(
    table: pd.DataFrame,
    metric: str,
    target: str = HELD_OUT,
    model: str = "SCCVAE",
    title: str = "",
    ax: Axes | None = None,
) -> Plot:
    """Draw one metric of every method with its interval, best on top; the dashed line is the noise ceiling.

    Parameters
    ----------
    table
        What :meth:`sccvae_pyro.evaluate.Scores.table` returns.
    metric
        Name of the metric, see :data:`sccvae_pyro.evaluate.METRICS`.
    target
        ``"held-out"`` or ``"truth"``.
    model
        Method to stand out.
    title
        Title; empty is the name of the metric.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    scores = by_method(table, target, metric).dropna()
    better = METRICS[metric].better
    methods = scores.drop(index=CEILING_NAME, errors="ignore")
    methods = methods.sort_values("mean", ascending=better != "higher", kind="stable")
    ax = axes(ax, 4.8, 1.1 + 0.26 * len(methods))
    low, mean, high = methods[["low", "mean", "high"]].to_numpy().T
    for row, name in enumerate(methods.index):
        color = MODEL if name == model else BASELINE
        error = whiskers(low[row : row + 1], mean[row : row + 1], high[row : row + 1])
        ax.errorbar(mean[row], row, xerr=error, fmt="o", color=color, markersize=6, elinewidth=1.8)
    rows(ax, list(methods.index))
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == model else "normal")
    if CEILING_NAME in scores.index:
        ax.axvline(scores.loc[CEILING_NAME, "mean"], color=CEILING, linestyle="--", linewidth=1.4)
    finish(ax, _axis_label(metric), title=title or metric)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    return Plot(ax, scores.reindex([*methods.index, *np.setdiff1d(scores.index, methods.index)]))


def by_method(table: pd.DataFrame, target: str, metric: str) -> pd.DataFrame:
    """Take one row of a table of scores apart: methods x ``mean``, ``low``, ``high``."""
    row = pd.Series(table.loc[(target, metric)])
    return pd.DataFrame(row.unstack("statistic"))[["mean", "low", "high"]].reindex(
        table.columns.unique("method")
    )


def _axis_label(metric: str) -> str:
    direction = DIRECTION[METRICS[metric].better]
    return f"mean over perturbations, 95 % interval ({direction})" if direction else "mean over perturbations"
