"""Where the uncertainty of a prediction comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sccvae_pyro.errors import InputError
from sccvae_pyro.inference import uncertainty
from sccvae_pyro.inference.uncertainty import Split
from sccvae_pyro.plots.style import (
    FAINT,
    GREEN,
    INK,
    MODEL,
    ORANGE,
    SKY,
    SMALL,
    YELLOW,
    Plot,
    axes,
    finish,
    rows,
)

COLORS = {
    uncertainty.TOGETHER: GREEN,
    uncertainty.GRAPH: GREEN,
    uncertainty.PENETRANCE: ORANGE,
    uncertainty.DIRECTION: SKY,
    uncertainty.LIKELIHOOD: YELLOW,
    uncertainty.DISCREPANCY: "#BBBBBB",
}
"""Colour of each source; text in dark ink can be read on all."""

LEGEND: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (0.0, 0.0),
    "borderaxespad": 3.4,  # in lines of text: below the label of the axis
    "frameon": False,
    "fontsize": SMALL,
}

END = 1.48
"""Right end of the picture, in units of the bars: the spread of cells stands there."""

WRITTEN = 0.08
"""Smallest share that is written into its bar."""


def uncertainty_split(split: Split, ax: Axes | None = None) -> Plot:
    """Draw the share of each source in the variance of predicted means, and the spread of cells beside it.

    Parameters
    ----------
    split
        What :meth:`sccvae_pyro.SCCVAE.uncertainty_split` returns.
    ax
        Axes to draw on; ``None`` makes new ones.

    Raises
    ------
    InputError
        If it is no such split.
    """
    if not isinstance(split, Split):
        raise InputError(
            f"split must be what uncertainty_split() returns, not {type(split).__name__}. Pass all of it."
        )
    shares = split.sources.pivot(index="perturbation", columns="source", values="share")
    shares = shares.loc[split.labels.index, list(split.sources["source"].unique())]
    ax = axes(ax, 6.8, 1.5 + 0.34 * len(shares))
    left = np.zeros(len(shares))
    for source, share in shares.items():
        width = share.fillna(0.0).to_numpy()
        bars = ax.barh(range(len(shares)), width, 0.72, left, color=COLORS[source], label=source)
        written = [f"{value:.0%}" if value >= WRITTEN else "" for value in width]
        ax.bar_label(bars, written, label_type="center", fontsize=SMALL, color=INK)
        left += width
    rows(ax, [f"{label} ({status})" for label, status in split.labels["status"].items()])
    ax.grid(visible=False)
    ax.set(xlim=(0, END), xticks=np.linspace(0, 1, 6))
    ax.spines["bottom"].set_bounds(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    finish(ax, "share of the variance of the predicted mean", title="Where the uncertainty comes from")
    ax.xaxis.label.set_x(0.5 / END)
    ax.legend(ncols=3, handlelength=1.0, columnspacing=1.2, **LEGEND)
    _draw_spread(ax.inset_axes((1.1 / END, 0.0, 1.0 - 1.1 / END, 1.0), sharey=ax), split)
    return Plot(ax, shares.join(split.labels[["sd", "cell_sd"]]))


def _draw_spread(ax: Axes, split: Split) -> None:
    """Draw how uncertain each mean is, and how much single cells differ, on one scale from zero."""
    row = np.arange(len(split.labels))
    sd, cell_sd = split.labels["sd"], split.labels["cell_sd"]
    ax.plot(sd, row, "o", color=MODEL, markersize=5, label="of the mean")
    ax.plot(cell_sd, row, "D", color=INK, markersize=4.5, markerfacecolor="white", label="of single cells")
    ax.set_xlim(0, 1.08 * max(sd.max(), cell_sd.max()))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="y", left=False, labelleft=False)
    finish(ax, f"sd, {split.genes.uns['units'].removeprefix('mean ')}")
    ax.spines["left"].set_color(FAINT)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(handletextpad=0.2, **LEGEND)
