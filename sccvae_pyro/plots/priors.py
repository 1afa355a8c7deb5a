"""Whether the priors expect data like these."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sccvae_pyro.plots.style import FAINT, GREY, INK, MODEL, OBSERVED, ORANGE, SMALL, Plot, axes, finish

MARKS: dict[str, dict[str, Any]] = {
    "prior, median and 90 %": {"color": MODEL, "marker": "o", "linewidth": 2.4, "markersize": 6},
    "data": {"color": OBSERVED, "marker": "D", "linestyle": "", "markersize": 6},
    "data outside the prior": {"color": ORANGE, "marker": "X", "linestyle": "", "markersize": 9},
}
"""How the prior and the data are drawn; what is outside differs by shape as well as by colour."""


def prior_predictive(table: pd.DataFrame, ax: Axes | None = None) -> Plot:
    """Draw what the priors say beside the data, each quantity on a scale of its own.

    Parameters
    ----------
    table
        What :meth:`sccvae_pyro.SCCVAE.prior_predictive` returns.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    ax = axes(ax, 5.2, 1.2 + 0.62 * len(table))
    ax.set(xticks=[], yticks=[])
    finish(ax, "each quantity on its own scale, from zero", title="What the priors say")
    ax.spines[["left", "bottom"]].set_visible(False)
    height = 1.0 / len(table)
    for place, (name, row) in enumerate(table.iterrows()):
        box = (0.0, 1.0 - (place + 0.68) * height, 1.0, 0.3 * height)
        _draw_row(ax.inset_axes(box), str(name), row)
    handles = [Line2D([], [], label=label, **style) for label, style in MARKS.items()]
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=2.2,  # in lines of text: below the label of the axis
        ncols=len(handles),
        frameon=False,
        fontsize=SMALL,
    )
    return Plot(ax, table)


def _draw_row(ax: Axes, name: str, row: pd.Series) -> None:
    """Draw one quantity from zero on, which none of them passes."""
    prior, inside, outside = MARKS.values()
    ax.plot([row["q05"], row["q95"]], [0, 0], **{**prior, "marker": ""})
    ax.plot(row["median"], 0, **prior)
    if not pd.isna(row["data"]):
        ax.plot(row["data"], 0, **(inside if row["inside"] else outside))
    high = max(row[["q95", "data"]].dropna())
    ax.set(yticks=[], ylim=(-1, 1), xlim=(-0.02 * high, 1.05 * high) if high > 0 else (-0.02, 1.0))
    title = f"{name.replace('_', ' ')}: {row['unit']}"
    ax.set_title(title, fontsize=SMALL, loc="left", color=INK, parse_math=False, pad=3)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params(labelsize=SMALL, color=GREY, length=2, pad=1)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(FAINT)
