"""Whether a combination does more or less than its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sccvae_pyro.plots.style import (
    BASELINE,
    DOWN,
    FAINT,
    GREY,
    SMALL,
    UNITS,
    UP,
    Plot,
    apart,
    axes,
    change,
    finish,
)


def interaction(interactions: AnnData, label: str, n_names: int = 8, ax: Axes | None = None) -> Plot:
    """Draw every gene under a combination: what its parts add up to across, what is predicted up.

    Off the diagonal lie the genes that interact. Orange triangles change more than their parts add up to,
    blue diamonds less or the other way, each where the 90 % interval of the interaction excludes zero; grey
    dots are the others.

    Parameters
    ----------
    interactions
        What :meth:`sccvae_pyro.SCCVAE.interactions` returns.
    label
        The combination, as ``obs_names`` has it.
    n_names
        Most genes to name: those that interact most, surely.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    row = interactions[[label]]
    names = ("additive", "delta", "interaction", "interaction_q05", "interaction_q95")
    values = {name: np.asarray(row.layers[name], dtype=float)[0] for name in names}
    table = pd.DataFrame(values, index=interactions.var_names)
    sure = (table["interaction_q05"] > 0) | (table["interaction_q95"] < 0)
    more = table["interaction"] * table["additive"] > 0

    ax = axes(ax, 4.8, 4.0)
    ax.axline((0, 0), slope=1, color=FAINT, linewidth=1.4, zorder=0)
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    groups = (
        ("additive, or unsure", ~sure, BASELINE, "o", 3),
        ("more than additive", sure & more, UP, "^", 5),
        ("less than additive", sure & ~more, DOWN, "D", 4),
    )
    for name, chosen, color, marker, size in groups:
        points = table[chosen]
        style: dict[str, Any] = {"color": color, "markersize": size, "markeredgewidth": 0, "alpha": 0.8}
        ax.plot(points["additive"], points["delta"], marker, label=name, **style)
    ax.margins(0.08)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, prune="lower"))
    finish(ax, "sum of the parts", "the combination", label)
    units = change(interactions.uns.get("units", UNITS))
    ax.legend(title=units, frameon=False, fontsize=SMALL, title_fontsize=SMALL, alignment="left")
    _name_genes(ax, table[sure].reindex(table["interaction"].abs()[sure].nlargest(n_names).index))
    return Plot(ax, table)


def _name_genes(ax: Axes, genes: pd.DataFrame) -> None:
    """Write genes at the right edge, at the height of their dots where there is room."""
    low, high = ax.get_ylim()
    right = ax.get_xlim()[1]
    places = apart(genes["delta"].to_numpy(), 0.06 * (high - low))
    for gene, place, x, y in zip(genes.index, places, genes["additive"], genes["delta"], strict=True):
        ax.plot([x, right], [y, place], color=GREY, linewidth=0.5, zorder=0, clip_on=False)
        where: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(gene, (right, place), **where, fontsize=SMALL, annotation_clip=False, parse_math=False)
    ax.set(xlim=(ax.get_xlim()[0], right), ylim=(low, high))
