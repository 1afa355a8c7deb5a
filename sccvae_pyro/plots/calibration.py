"""Whether the stated uncertainty can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sccvae_pyro.evaluate.calibration import LEVELS, spearman
from sccvae_pyro.evaluate.results import HELD_OUT, percent
from sccvae_pyro.plots.style import (
    BASELINE,
    FAINT,
    GREEN,
    INK,
    MODEL,
    ORANGE,
    PINK,
    SMALL,
    Plot,
    axes,
    finish,
    whiskers,
)


def coverage(
    table: pd.DataFrame,
    target: str = HELD_OUT,
    methods: Sequence[str] = ("SCCVAE",),
    ax: Axes | None = None,
) -> Plot:
    """Draw how often intervals hold the actual mean, against how often they should.

    Below the diagonal a method is overconfident, above it is too cautious.

    Parameters
    ----------
    table
        What :meth:`sccvae_pyro.evaluate.Scores.table` returns.
    target
        ``"held-out"`` or ``"truth"``.
    methods
        Methods that state uncertainty; the first stands out.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    data = pd.concat([_coverage_of(table, target, method) for method in methods], ignore_index=True)
    ax = axes(ax, 4.0, 3.7)
    ax.axline((50, 50), slope=1, color=FAINT, linewidth=1.4, zorder=0)
    colors = [MODEL, BASELINE, GREEN, ORANGE, PINK]
    for place, method in enumerate(methods):
        points = data[data["method"] == method]
        style: dict[str, Any] = {
            "fmt": "osD^v"[place % 5] + "-",
            "color": colors[place % len(colors)],
            "markersize": 5,
        }
        error = whiskers(*points[["low", "actual", "high"]].to_numpy().T)
        across = points["nominal"] + 0.6 * (place - (len(methods) - 1) / 2)
        ax.errorbar(across, points["actual"], yerr=error, label=method, linewidth=1.2, **style)
    lowest = min(45.0, data["low"].min() - 4)
    ax.set(xlim=(45, 100), ylim=(lowest, 102), xticks=[100 * level for level in LEVELS])
    ax.legend(frameon=False, fontsize=SMALL, loc="best")
    finish(ax, "stated probability of the interval (%)", "intervals that hold the mean (%)", "Calibration")
    return Plot(ax, data)


def _coverage_of(table: pd.DataFrame, target: str, method: str) -> pd.DataFrame:
    metrics = [(target, f"coverage_{percent(level)}") for level in LEVELS]
    scores = 100 * table.loc[metrics, method]
    return pd.DataFrame(
        {
            "method": method,
            "nominal": 100 * np.array(LEVELS),
            "actual": scores["mean"].to_numpy(),
            "low": scores["low"].to_numpy(),
            "high": scores["high"].to_numpy(),
        }
    )


def error_against_spread(
    per_perturbation: pd.DataFrame,
    target: str = HELD_OUT,
    method: str = "SCCVAE",
    ax: Axes | None = None,
) -> Plot:
    """Draw the error of each perturbation against the uncertainty that was stated beforehand.

    Parameters
    ----------
    per_perturbation
        The table of that name of :class:`sccvae_pyro.evaluate.Scores`.
    target
        ``"held-out"`` or ``"truth"``.
    method
        A method that states uncertainty.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    chosen = (per_perturbation["target"] == target) & (per_perturbation["method"] == method)
    wide = per_perturbation[chosen].pivot(index="perturbation", columns="metric", values="value")
    data = wide[["spread", "rmse"]]
    ax = axes(ax, 4.0, 3.7)
    ax.plot(data["spread"], data["rmse"], "o", color=MODEL, markersize=5, alpha=0.75, markeredgewidth=0)
    if len(data) > 2:
        rank = float(spearman(data["spread"].to_numpy(), data["rmse"].to_numpy()))
        text = f"rank correlation {rank:.2f}"
        ax.text(0.03, 0.97, text, transform=ax.transAxes, fontsize=SMALL, va="top", color=INK)
    ax.margins(0.1)
    finish(ax, "stated: mean predicted sd", "actual: RMSE of the mean profile", "Error against stated spread")
    return Plot(ax, data)
