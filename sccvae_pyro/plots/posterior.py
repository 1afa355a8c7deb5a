"""Whether the fitted model generates cells like the measured ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sccvae_pyro.plots.style import (
    FAINT,
    GREY,
    MODEL,
    OBSERVED,
    ORANGE,
    SMALL,
    Plot,
    axes,
    finish,
    rows,
    within,
)

SHOWN_LABELS = 12
"""Labels that are shown: those whose profile is generated worst."""

LOW = 75.0
"""Share of genes inside, in per cent, below which a label stands out."""

HANDLES = [
    Line2D([], [], color=MODEL, linewidth=1.6, alpha=0.6, label="model, 90 %"),
    Line2D([], [], color=OBSERVED, marker="o", linestyle="", markersize=3, label="data"),
    Line2D([], [], color=ORANGE, marker="X", linestyle="", markersize=6, label="data outside"),
]


def posterior_predictive(items: pd.DataFrame, ax: Axes | None = None) -> Plot:
    """Draw measured cells beside what the fitted model generates in their place, gene by gene.

    Parameters
    ----------
    items
        The table ``items`` of what :meth:`sccvae_pyro.SCCVAE.posterior_predictive` returns.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    ax = axes(ax, 8.0, 6.4)
    ax.set(xticks=[], yticks=[])
    finish(ax, "intervals hold 90 % of what the model generates", title="The fitted model and the data")
    ax.spines[["left", "bottom"]].set_visible(False)
    drawn = [(quantity, part) for quantity, part in items.groupby("quantity", sort=False) if len(part)]
    for place, (quantity, part) in enumerate(drawn):
        left, bottom = 0.1 + 0.52 * (place % 2), 0.6 - 0.51 * (place // 2)
        panel = ax.inset_axes((left, bottom, 0.38, 0.34))
        PANELS[str(quantity)](panel, part)
        within(panel)
    ax.legend(
        handles=HANDLES,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=2.2,  # in lines of text: below the label of the axis
        ncols=len(HANDLES),
        frameon=False,
        fontsize=SMALL,
    )
    return Plot(ax, items)


def _variance(ax: Axes, part: pd.DataFrame) -> None:
    """Draw the relation of variance and mean."""
    shown = part[(part["data"] > 0) & (part["median"] > 0)]
    _intervals(ax, shown, shown["expression"])
    ax.set_yscale("log")
    finish(ax, "mean profile of control cells", "variance", "Mean and variance")


def _zeros(ax: Axes, part: pd.DataFrame) -> None:
    _intervals(ax, part, part["expression"])
    finish(ax, "mean profile of control cells", "share of zero counts", "Zeros")


def _correlations(ax: Axes, part: pd.DataFrame) -> None:
    _intervals(ax, part, part["data"], linewidth=0.6)
    finish(ax, "measured correlation", "generated correlation", "Pairs of genes in control cells")


def _profiles(ax: Axes, part: pd.DataFrame) -> None:
    """Draw the share of genes of each label that lies inside, for the labels with the smallest."""
    every = 100 * part.groupby("label")["inside"].mean().sort_values(kind="stable")
    shares, row = every[:SHOWN_LABELS], np.arange(len(every[:SHOWN_LABELS]))
    low = (shares < LOW).to_numpy()
    ax.axvline(90, color=FAINT, linewidth=1.4, zorder=0)
    ax.plot(shares[~low], row[~low], "o", color=OBSERVED, markersize=3.5)
    ax.plot(shares[low], row[low], "X", color=ORANGE, markersize=6)
    ax.set(xlim=(-3, 103))
    finish(ax, "genes inside their 90 % interval (%)", title="Mean profiles")
    rows(ax, list(shares.index))
    if more := len(every) - len(shares):
        ax.text(0.02, 0.02, f"and {more} more, better", transform=ax.transAxes, fontsize=SMALL, color=GREY)


def _intervals(ax: Axes, part: pd.DataFrame, across: pd.Series, linewidth: float = 1.6) -> None:
    """Draw intervals of the model upright, and the data as points in or outside them."""
    ax.vlines(across, part["q05"], part["q95"], color=MODEL, linewidth=linewidth, alpha=0.45)
    inside = part["inside"].to_numpy(dtype=bool)
    ax.plot(across[inside], part["data"][inside], "o", color=OBSERVED, markersize=2, markeredgewidth=0)
    ax.plot(
        across[~inside],
        part["data"][~inside],
        "X",
        color=ORANGE,
        markersize=4.5,
        markeredgewidth=0,
        alpha=0.9,
    )


PANELS = {
    "variance": _variance,
    "zero_fraction": _zeros,
    "correlation": _correlations,
    "mean_profile": _profiles,
}
"""How each quantity is drawn."""
