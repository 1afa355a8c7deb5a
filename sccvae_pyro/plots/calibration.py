"""Whether the stated uncertainty can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sccvae_pyro.errors import InputError
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

COLORS = (MODEL, BASELINE, GREEN, ORANGE, PINK)
"""Colours of methods, the one that stands out first."""


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
    for place, method in enumerate(methods):
        points = data[data["method"] == method]
        style: dict[str, Any] = {
            "fmt": "osD^v"[place % 5] + "-",
            "color": COLORS[place % len(COLORS)],
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


def pit_histogram(
    pit: pd.DataFrame,
    target: str = HELD_OUT,
    method: str = "SCCVAE",
    of: str = "means",
    ax: Axes | None = None,
) -> Plot:
    """Draw where observations fall in their predictive distributions; evenly, if those are calibrated.

    High at both ends: intervals are too narrow. High in the middle: too wide. Sloping: predictions lie too
    high or too low. Source: Dawid 1984, J R Stat Soc A 147:278.

    Parameters
    ----------
    pit
        The table of that name of :class:`sccvae_pyro.evaluate.Scores`.
    target
        ``"held-out"`` or ``"truth"``.
    method
        A method that states uncertainty.
    of
        ``"means"`` of perturbations or ``"cells"``.
    ax
        Axes to draw on; ``None`` makes new ones.

    Raises
    ------
    InputError
        If the table has no such histogram.
    """
    chosen = (pit["target"] == target) & (pit["method"] == method) & (pit["of"] == of)
    data = pit.loc[chosen, ["low", "high", "share"]].sort_values("low", ignore_index=True)
    if data.empty:
        raise InputError(f"There is no histogram of {of} for {method!r} against {target!r}.")
    ax = axes(ax, 4.0, 3.7)
    width = data["high"] - data["low"]
    ax.bar(data["low"], 100 * data["share"], 0.92 * width, align="edge", color=MODEL, alpha=0.75)
    ax.axhline(100 / len(data), color=INK, linewidth=1.0, linestyle="--", label="if calibrated")
    ax.set(xlim=(0, 1), ylim=(0, 118 * data["share"].max()))  # room above the bars for the legend
    ax.legend(frameon=False, fontsize=SMALL, loc="upper right")
    xlabel = "probability below the observation (PIT)"
    finish(ax, xlabel, f"observations (%), {of}", "Where observations fall")
    return Plot(ax, data)


def risk_coverage(
    curves: pd.DataFrame,
    target: str = HELD_OUT,
    methods: Sequence[str] = ("SCCVAE",),
    ax: Axes | None = None,
) -> Plot:
    """Draw the error of the predictions that are kept when the least certain are given up.

    A curve that rises to the right says that stated uncertainty tells good predictions from bad ones.
    Source: El-Yaniv & Wiener 2010, JMLR 11:1605.

    Parameters
    ----------
    curves
        What :meth:`sccvae_pyro.evaluate.Scores.risk_coverage` returns.
    target
        ``"held-out"`` or ``"truth"``.
    methods
        Methods that state uncertainty; the first stands out.
    ax
        Axes to draw on; ``None`` makes new ones.

    Raises
    ------
    InputError
        If a method stated no uncertainty against this target.
    """
    data = curves[(curves["target"] == target) & curves["method"].isin(methods)].reset_index(drop=True)
    ax = axes(ax, 4.0, 3.7)
    for name, color in zip(methods, cycle(COLORS)):
        curve = data[data["method"] == name]
        if curve.empty:
            raise InputError(f"{name!r} states no uncertainty against {target!r}.")
        ax.plot(100 * curve["coverage"], curve["risk"], color=color, linewidth=1.6, label=name)
    ax.set(xlim=(0, 100), ylim=(0, None))
    ax.legend(frameon=False, fontsize=SMALL, loc="best")
    finish(ax, "perturbations kept, the most certain first (%)", "RMSE of those kept", "Giving up the unsure")
    return Plot(ax, data)
