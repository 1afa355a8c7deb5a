"""How strongly each perturbation acts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sccvae_pyro.plots.style import GREY, MODEL, Plot, axes, finish, rows, whiskers


def penetrance_forest(table: pd.DataFrame, n: int = 12, ax: Axes | None = None) -> Plot:
    """Draw the penetrance of the strongest and the weakest perturbations with 90 % intervals.

    Parameters
    ----------
    table
        Index: perturbation; columns ``median``, ``q05`` and ``q95``.
    n
        Number of perturbations at each end; where there are no more than ``2 n``, all are shown.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    ordered = table.sort_values("median", ascending=False, kind="stable")
    n_left_out = max(len(ordered) - 2 * n, 0)
    shown = pd.concat([ordered[:n], ordered[len(ordered) - n :]]) if n_left_out else ordered
    gap = [f"({n_left_out} more)"] if n_left_out else []
    names = [*shown.index[:n], *gap, *shown.index[n:]]
    row = np.array([names.index(name) for name in shown.index])

    ax = axes(ax, 4.8, 1.0 + 0.2 * len(names))
    ax.axvline(1.0, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
    low, median, high = shown[["q05", "median", "q95"]].to_numpy(dtype=float).T
    error = whiskers(low, median, high)
    ax.errorbar(median, row, xerr=error, fmt="o", color=MODEL, markersize=5, elinewidth=1.5)
    rows(ax, names)
    ax.set_xlim(left=min(0.0, low.min()))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    finish(ax, "penetrance, 90 % interval (dotted: 1)", title="Penetrance")
    return Plot(ax, shown)
