"""What a weaker or stronger perturbation would do."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from sccvae_pyro.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SMALL,
    UNITS,
    Plot,
    apart,
    axes,
    change,
    finish,
)

_LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (GREY, "-"))


def penetrance_curves(
    curves: pd.DataFrame, title: str = "", units: str = UNITS, ax: Axes | None = None
) -> Plot:
    """Draw the predicted effect on a few genes at growing penetrance, with 90 % bands.

    Parameters
    ----------
    curves
        Tidy, of one perturbation: ``gene``, ``penetrance``, ``delta``, ``low``, ``high``. At most five genes.
    title
        Name of the perturbation.
    units
        Units of the profiles.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    ax = axes(ax, 4.4, 3.0)
    ax.axhline(0, color=FAINT, linewidth=1.0, zorder=0)
    ax.axvline(1, color=GREY, linestyle=":", linewidth=1.0, zorder=0)
    genes = list(curves["gene"].unique())
    for gene, (color, line) in zip(genes, _LINES, strict=False):
        curve = curves[curves["gene"] == gene].sort_values("penetrance")
        ax.fill_between(
            curve["penetrance"], curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0
        )
        ax.plot(curve["penetrance"], curve["delta"], line, color=color, linewidth=1.8)
    finish(ax, "penetrance relative to the screen (dotted: 1)", change(units), title)
    _name_ends(ax, curves, genes)
    return Plot(ax, curves)


def _name_ends(ax: Axes, curves: pd.DataFrame, genes: list[str]) -> None:
    """Write each gene where its curve ends."""
    low, high = ax.get_ylim()
    right = curves["penetrance"].max()
    ends = curves[curves["penetrance"] == right].set_index("gene")["delta"].reindex(genes)
    ax.set_xlim(curves["penetrance"].min(), right)
    places = apart(ends.to_numpy(), 0.075 * (high - low))
    for gene, place, (color, _) in zip(genes, places, _LINES, strict=False):
        ax.annotate(
            gene,
            (right, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=color,
            annotation_clip=False,
            parse_math=False,
        )
