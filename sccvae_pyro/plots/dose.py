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
    STATES,
    UNITS,
    Plot,
    apart,
    axes,
    change,
    finish,
)

_LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (GREY, "-"))


def penetrance_curves(
    curves: pd.DataFrame, title: str = "", units: str | None = None, ax: Axes | None = None
) -> Plot:
    """Draw the predicted effect on a few genes, or nodes, at growing penetrance, with 90 % bands.

    Parameters
    ----------
    curves
        Of one perturbation, as :meth:`sccvae_pyro.SCCVAE.penetrance_curves` or ``state_curves`` gives them:
        ``gene`` or ``node``, ``penetrance``, ``delta``, ``low``, ``high``. At most five genes.
    title
        Name of the perturbation.
    units
        Units of the profiles; ``None`` is ``mean log1p(CP10K)`` for genes, and sds of the noise for nodes.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    ax = axes(ax, 4.4, 3.0)
    ax.axhline(0, color=FAINT, linewidth=1.0, zorder=0)
    ax.axvline(1, color=GREY, linestyle=":", linewidth=1.0, zorder=0)
    column = "node" if "node" in curves else "gene"
    names = list(curves[column].unique())
    for name, (color, line) in zip(names, _LINES, strict=False):
        curve = curves[curves[column] == name].sort_values("penetrance")
        ax.fill_between(
            curve["penetrance"], curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0
        )
        ax.plot(curve["penetrance"], curve["delta"], line, color=color, linewidth=1.8)
    shown = change(units or (STATES if column == "node" else UNITS))
    finish(ax, "penetrance relative to the screen (dotted: 1)", shown, title)
    _name_ends(ax, curves.set_index(column), names)
    return Plot(ax, curves)


def _name_ends(ax: Axes, curves: pd.DataFrame, names: list[str]) -> None:
    """Write each name where its curve ends."""
    low, high = ax.get_ylim()
    right = curves["penetrance"].max()
    ends = curves.loc[curves["penetrance"] == right, "delta"].reindex(names)
    ax.set_xlim(curves["penetrance"].min(), right)
    places = apart(ends.to_numpy(), 0.075 * (high - low))
    for name, place, (color, _) in zip(names, places, _LINES, strict=False):
        ax.annotate(
            name,
            (right, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=color,
            annotation_clip=False,
            parse_math=False,
        )
