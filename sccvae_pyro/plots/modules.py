"""Which perturbations belong together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from sccvae_pyro.errors import InputError
from sccvae_pyro.inference.modules import ALONE, NONE, Modules
from sccvae_pyro.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SMALL,
    Plot,
    axes,
    finish,
    name_ticks,
)

_COLOURS = (BLUE, ORANGE, GREEN, PINK, "#E69F00", "#56B4E9")  # Okabe & Ito 2008
_MARKERS = ("o", "s", "^", "D", "v", "P")
_NAMED = 60  # perturbations up to which a heatmap names each
_LEGEND_ROWS = 18
_LEGIBLE = 0.25  # inches that the name of a module takes


class _Look(NamedTuple):
    colour: str
    marker: str


def module_map(modules: Modules, coordinates: pd.DataFrame | None = None, ax: Axes | None = None) -> Plot:
    """Draw perturbations where effects that point the same way lie in one direction from the control cells.

    Filled markers are members of modules, told apart by colour and shape; open circles are alone, grey dots
    have no effect. Names are written where there is room, the strongest first.

    Parameters
    ----------
    modules
        What :meth:`~sccvae_pyro.sccvae.SCCVAE.modules` returns.
    coordinates
        Two columns, one row for each perturbation, from another method such as UMAP; ``None`` takes the
        principal components, whose origin is the control cells.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    is_own = coordinates is None
    at = modules.coordinates if coordinates is None else coordinates.loc[modules.table.index]
    shown = modules.table[["module", "effect"]].join(at.iloc[:, :2])
    ax = axes(ax, 6.6, 4.6)
    if is_own:
        ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        ax.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    x, y = at.columns[:2]
    looks = _looks(modules.summary.index)
    for module in [NONE, ALONE, *looks]:
        part = shown[shown["module"] == module]
        if len(part):
            ax.scatter(part[x], part[y], **_style(module, looks), label=f"{module} ({len(part)})")
    ax.margins(0.12)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, prune="lower"))  # the lowest two would meet in the corner
    n_columns = 1 + (len(looks) + 1) // _LEGEND_ROWS
    ax.legend(frameon=False, fontsize=SMALL, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=n_columns)
    first, second = (
        f", {100 * share:.0f} % of squared effects" if is_own else "" for share in modules.explained
    )
    finish(ax, f"{x}{first}", f"{y}{second}", "Modules of perturbations")
    strongest = shown[shown["module"] != NONE].sort_values("effect", ascending=False, kind="stable")
    _name_points(ax, strongest[[x, y]])
    return Plot(ax, shown)


def module_heatmap(modules: Modules, ax: Axes | None = None) -> Plot:
    """Draw how probably each two perturbations with an effect belong together, with their tree.

    Frames are modules. Up to 60 perturbations are named one by one; of more, modules that are wide enough.

    Parameters
    ----------
    modules
        What :meth:`~sccvae_pyro.sccvae.SCCVAE.modules` returns.
    ax
        Axes to draw on; ``None`` makes new ones.

    Raises
    ------
    InputError
        If no perturbation has an effect.
    """
    acting = modules.table.index[~modules.table["is_null"]]
    if not len(acting):
        raise InputError(
            "No perturbation has an effect that the posterior is sure of: there is nothing to draw."
        )
    tree = _ordered(modules.linkage, modules.co_assignment.loc[acting, acting])
    order = hierarchy.leaves_list(tree) if len(tree) else np.arange(len(acting))
    shown = modules.co_assignment.loc[acting[order], acting[order]]
    n = len(shown)

    size = 1.0 + 0.135 * min(n, _NAMED) if n <= _NAMED else 7.0
    ax = axes(ax, 3.0 + size, 1.2 + size)
    picture = ax.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    width = ax.get_window_extent().width / ax.figure.dpi / n
    _frame(ax, modules.table.loc[shown.index, "module"], width)
    ax.yaxis.tick_right()
    name_ticks(ax.yaxis, list(shown.index) if n <= _NAMED else [])
    finish(ax, "module", title="Probability of belonging together")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0, labelsize=7)
    if len(tree):
        _draw_tree(ax.inset_axes((-0.2, 0.0, 0.19, 1.0)), tree)
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.5, aspect=18, pad=0.02)
    bar.set_label("share of posterior draws", fontsize=SMALL)
    bar.ax.tick_params(labelsize=7, color=GREY)
    bar.outline.set_visible(False)
    return Plot(ax, shown)


def _looks(modules: Iterable[object]) -> dict[str, _Look]:
    """Colour and shape of each module: no two alike up to 36 of them."""
    number = len(_COLOURS)
    return {
        str(module): _Look(_COLOURS[i % number], _MARKERS[(i + i // number) % len(_MARKERS)])
        for i, module in enumerate(modules)
    }


def _style(module: str, looks: dict[str, _Look]) -> dict[str, Any]:
    if module == NONE:
        return {"s": 12, "color": "#BBBBBB", "marker": "o", "linewidths": 0, "zorder": 1}
    if module == ALONE:
        return {"s": 26, "facecolors": "none", "edgecolors": GREY, "marker": "o", "zorder": 2}
    colour, marker = looks[module]
    return {"s": 34, "color": colour, "marker": marker, "linewidths": 0, "alpha": 0.9, "zorder": 3}


def _name_points(ax: Axes, points: pd.DataFrame) -> None:
    """Write names beside points, in their order, each at the first side that is free; leave out the rest."""
    size = 7.0
    to_points = ax.figure.dpi_scale_trans.inverted().transform
    ax.figure.canvas.figure.draw_without_rendering()
    place = 72 * to_points(ax.transData.transform(points.to_numpy(dtype=float)))
    frame = 72 * to_points(ax.get_window_extent().get_points())
    dots = [(x - 3, y - 3, x + 3, y + 3) for x, y in place]
    taken: list[tuple[float, float, float, float]] = []
    for i, (name, (x, y)) in enumerate(zip(points.index, place, strict=True)):
        width, height = 0.66 * size * len(str(name)), 1.25 * size
        for dx, dy, align in ((5, 0, "left"), (-5, 0, "right"), (0, 9, "center"), (0, -9, "center")):
            left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[align]
            box = (left, y + dy - height / 2, left + width, y + dy + height / 2)
            inside = (box[:2] > frame[0]).all() and (box[2:] < frame[1]).all()
            others = dots[:i] + dots[i + 1 :]
            if inside and not any(_overlap(box, other) for other in [*taken, *others]):
                taken.append(box)
                text: dict[str, Any] = {
                    "fontsize": size,
                    "color": INK,
                    "ha": align,
                    "va": "center",
                    "parse_math": False,
                }
                ax.annotate(str(name), points.loc[name], (dx, dy), textcoords="offset points", **text)
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ordered(tree: np.ndarray, together: pd.DataFrame) -> np.ndarray:
    """Turn branches so that perturbations which are often together are neighbours."""
    if not len(tree):
        return tree
    return hierarchy.optimal_leaf_ordering(tree, squareform(1.0 - together.to_numpy(), checks=False))


def _frame(ax: Axes, module: pd.Series, width: float) -> None:
    """Frame every module and write its name below, where it fits."""
    ticks = {}
    for name in pd.unique(module[module != ALONE]):
        rows = np.flatnonzero(module == name)
        corner, side = (rows[0] - 0.5, rows[0] - 0.5), len(rows)
        ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=ORANGE, linewidth=1.2))
        if side * width >= _LEGIBLE:
            ticks[rows.mean()] = name
    ax.set_xticks(list(ticks), list(ticks.values()))


def _draw_tree(ax: Axes, tree: np.ndarray) -> None:
    """Draw a tree with its leaves to the right, at 0, 1, 2, ... from top to bottom."""
    drawn = hierarchy.dendrogram(tree, no_plot=True)
    branches = [
        np.column_stack([distance, (np.array(leaf) - 5.0) / 10.0])
        for leaf, distance in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    ax.add_collection(LineCollection(branches, colors=GREY, linewidths=0.7))
    ax.set(xlim=(1.03, 0.0), ylim=(len(tree) + 0.5, -0.5))
    ax.set_axis_off()
