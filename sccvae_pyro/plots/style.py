"""What all pictures share: colours that colour-blind readers can tell apart, axes, labels that keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe & Ito 2008
SKY, YELLOW = "#56B4E9", "#F0E442"  # the same; for areas, too pale for lines
INK, GREY, FAINT = "#222222", "#767676", "#DDDDDD"

MODEL, OBSERVED, BASELINE, CEILING = BLUE, INK, GREY, GREEN
"""Colour of what the model says, of what was observed, of the baselines and of the noise ceiling."""

UP, DOWN = ORANGE, BLUE
"""Colour of what rises and of what falls."""

SMALL = 8.0
"""Size of the text beside data, in points."""

UNITS = "mean log1p(CP10K)"
"""Units of profiles where nothing else is said."""

STATES = "mean state (sd of its noise)"
"""Units of the latent nodes."""


class Plot(NamedTuple):
    """Axes, and the data that they show."""

    ax: Axes
    data: pd.DataFrame


def check_table(table: object, columns: Sequence[str], name: str, source: str) -> None:
    """Refuse what is no table with rows and these columns, as its source gives them."""
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{name} must be a table, not {type(table).__name__}. Pass {source}.")
    if missing := [column for column in columns if column not in table]:
        raise InputError(
            f"{name} has no column {missing[0]!r}, its columns are {listing(table)}. Pass {source}."
        )
    if table.empty:
        raise InputError(f"{name} has no rows, so that there is nothing to draw. Pass {source}.")


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Give back the axes, or new ones on a figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot() if ax is None else ax


def change(units: str) -> str:
    """Name of an effect on an axis."""
    return f"change of {units}"


def finish(ax: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """Label axes and take away what carries no data."""
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    if title:
        ax.set_title(title, fontsize=10, loc="left", color=INK, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(labelsize=SMALL, color=GREY)


def name_ticks(axis: Axis, names: Sequence[str], **text: Any) -> None:
    """Write a name at 0, 1, 2, ... exactly as it is spelt."""
    axis.set_ticks(range(len(names)), [str(name) for name in names], parse_math=False, **text)


def rows(ax: Axes, names: Sequence[str]) -> None:
    """Name rows from top to bottom, without an axis line."""
    name_ticks(ax.yaxis, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)


def within(ax: Axes) -> None:
    """Keep the ticks that the limits show: labels of the others lie on the panels around."""
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        low, high = sorted(limits)
        axis.set_ticks([place for place in axis.get_majorticklocs() if low <= place <= high])


def whiskers(low: np.ndarray, middle: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths below and above the middle, as matplotlib wants them (2 x N)."""
    return np.maximum([np.subtract(middle, low), np.subtract(high, middle)], 0.0)


def apart(positions: Sequence[float], gap: float) -> np.ndarray:
    """Move positions as little as is needed for neighbours to be a gap apart, keeping their order.

    Runs of crowded positions are spread evenly around their mean (pool adjacent violators).
    """
    order = np.argsort(positions, kind="stable")
    runs: list[tuple[float, int]] = []  # mean of "position minus rank times gap", length
    for rank, value in enumerate(np.asarray(positions, dtype=float)[order]):
        runs.append((value - rank * gap, 1))
        while len(runs) > 1 and runs[-2][0] > runs[-1][0]:
            (first, m), (second, n) = runs[-2:]
            runs[-2:] = [((m * first + n * second) / (m + n), m + n)]
    starts = np.repeat([mean for mean, _ in runs], [n for _, n in runs])
    moved = np.empty(len(order))
    moved[order] = starts + gap * np.arange(len(order))
    return moved
