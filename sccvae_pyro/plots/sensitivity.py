"""Whether answers rest on the prior."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.plots.style import (
    BASELINE,
    GREY,
    MODEL,
    SMALL,
    Plot,
    axes,
    check_table,
    finish,
    rows,
    within,
)

INTERVAL = 1.96
"""Standard errors on either side that hold 95 %."""

FAR = 10.0
"""Nats a cell beyond which their axis is logarithmic: a likelihood may cost hundreds, a prior tenths."""


def sensitivity(predictions: pd.DataFrame, density: pd.DataFrame, ax: Axes | None = None) -> Plot:
    """Draw what other beliefs change, above what a mere restart changes, in grey.

    Left: change of every perturbation's prediction, and their median, in posterior sds of the reference.
    Right: log predictive density of cells put aside, against the reference, with its 95 % interval.

    Parameters
    ----------
    predictions, density
        Tables of what :func:`sccvae_pyro.sensitivity` returns.
    ax
        Axes to draw on; ``None`` makes new ones.

    Raises
    ------
    InputError
        If they are no such tables, or not of the same specs.
    """
    _check(predictions, density)
    reference, *names = density["spec"]
    changes = predictions.groupby("spec")["in_sds"]
    half = INTERVAL * density["se"]
    shown = pd.DataFrame(
        {
            "in_sds": density["spec"].map(changes.median()),
            "difference": density["difference"],
            "low": density["difference"] - half,
            "high": density["difference"] + half,
        }
    ).set_axis(density["spec"])[1:]

    ax = axes(ax, 7.6, 1.3 + 0.34 * len(names))
    ax.set(xticks=[], yticks=[])
    finish(ax, "grey: the same belief from another seed", title=f"Other beliefs than {reference!r}")
    ax.spines[["left", "bottom"]].set_visible(False)
    colors = [MODEL] * (len(names) - 1) + [BASELINE]
    bottom = 0.5 / (1.3 + 0.34 * len(names))  # room for labels, whatever the number of rows
    left, right = (ax.inset_axes((start, bottom, 0.38, 1 - bottom)) for start in (0.17, 0.61))
    for row, (name, color) in enumerate(zip(names, colors, strict=True)):
        _changes(left, row, changes.get_group(name), color)
        _difference(right, row, shown.loc[name], color)
    left.axvline(shown["in_sds"].iloc[-1], color=GREY, linestyle=":", linewidth=1.2, zorder=0)
    right.axvline(0.0, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
    for panel in (left, right):
        rows(panel, names)
    finish(left, "change of predictions (posterior sds)")
    finish(right, "gain in log density (nats a cell, 95 %)")
    left.xaxis.set_major_locator(MaxNLocator(4))
    if shown[["low", "high"]].abs().max(axis=None) > FAR:
        right.set_xscale("symlog", linthresh=1.0)
    else:
        right.xaxis.set_major_locator(MaxNLocator(4))
    left.set_xlim(left=0.0)
    right.set_yticklabels([])
    within(left)
    within(right)
    return Plot(ax, shown)


def _check(predictions: pd.DataFrame, density: pd.DataFrame) -> None:
    columns = ("spec", "perturbation", "rms", "in_sds")  # of strengths, too, all but one
    check_table(predictions, columns, "predictions", "the table predictions of sensitivity()")
    check_table(density, ("spec", "difference", "se"), "density", "the table density of sensitivity()")
    predicted, specs = predictions["spec"].unique(), density["spec"]
    if list(predicted) != list(specs):
        raise InputError(
            f"predictions are of the specs {listing(predicted)}, density is of {listing(specs)}. "
            "Pass both tables of one sensitivity()."
        )
    if len(specs) < 2:
        raise InputError(
            f"The tables are of {listing(specs)} alone, held against nothing. Pass those of all specs."
        )


def _changes(ax: Axes, row: int, values: pd.Series, color: str) -> None:
    """Draw the change of each perturbation, and the median as a line."""
    ax.plot(values, np.full(len(values), row), "o", color=color, markersize=4, alpha=0.35, markeredgewidth=0)
    ax.plot([values.median()] * 2, [row - 0.25, row + 0.25], color=color, linewidth=2.2)


def _difference(ax: Axes, row: int, found: pd.Series, color: str) -> None:
    if np.isnan(found["difference"]):
        where = ax.get_yaxis_transform()
        ax.text(0.5, row, "not comparable", transform=where, ha="center", va="center", fontsize=SMALL)
        return
    ax.hlines(row, found["low"], found["high"], color=color, linewidth=1.8)
    ax.plot(found["difference"], row, "o", color=color, markersize=6)
