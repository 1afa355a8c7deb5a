"""Which nodes drive which."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from sccvae_pyro.plots.style import DOWN, GREY, INK, SMALL, UP, Plot, axes

_WIDTH = 7.6  # inches
_POINTS_PER_LETTER = 5.2


def strongest_edges(edges: pd.DataFrame, n: int = 25, ax: Axes | None = None) -> Plot:
    """Draw the strongest edges of the graph; causes stand to the left of their effects.

    Orange solid edges raise their target, blue dashed ones lower it; the wider, the stronger.

    Parameters
    ----------
    edges
        Columns ``source``, ``target`` and ``mean``, the edges of an acyclic graph; at least one.
    n
        Number of edges, by the size of their mean.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    strongest = edges["mean"].abs().sort_values(ascending=False, kind="stable").index[:n]
    shown = edges.loc[strongest].astype({"source": str, "target": str})
    graph = nx.DiGraph(list(zip(shown["source"], shown["target"], strict=True)))
    longest_name = _POINTS_PER_LETTER * max(map(len, graph))
    n_columns = max(2, round(72 * _WIDTH / (2 * longest_name + 20)))
    place = _layers(graph, n_columns)
    height = max(-y for _, y in place.values())
    ax = axes(ax, _WIDTH, 1.0 + 0.42 * height)
    largest = shown["mean"].abs().max()
    for edge in shown.itertuples():
        arrow = _arrow(place[edge.source], place[edge.target], edge.mean, abs(edge.mean) / largest)
        arrow.shrinkA = arrow.shrinkB = longest_name / 2 + 2
        ax.add_patch(arrow)
    for name, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": GREY, "linewidth": 0.8}
        ax.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            fontsize=SMALL,
            color=INK,
            bbox=box,
            zorder=3,
            parse_math=False,
        )
    columns = max([n_columns - 1.0, *(x for x, _ in place.values())])
    ax.set(xlim=(-0.4, columns + 0.4), ylim=(-height - 0.6, 0.6))
    ax.set_axis_off()
    ax.set_title("Strongest edges", fontsize=10, loc="left", color=INK)
    return Plot(ax, shown)


def _arrow(
    start: tuple[float, float], end: tuple[float, float], mean: float, strength: float
) -> FancyArrowPatch:
    rises = mean > 0
    # An edge over several columns is bent, so that it does not run through the nodes between.
    bend = 0.0 if abs(end[0] - start[0]) < 1.5 else 0.12
    return FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=9,
        connectionstyle=f"arc3,rad={bend}",
        linewidth=0.7 + 2.2 * strength,
        linestyle="-" if rises else (0, (4, 2)),
        color=UP if rises else DOWN,
        alpha=0.85,
        zorder=2,
    )


def _layers(graph: nx.DiGraph, n_columns: int) -> dict[str, tuple[float, float]]:
    """Place nodes in columns by the longest path that leads to them, near their causes.

    Parts of the graph that are not connected stand side by side where there is room, else below.
    """
    parts = [_layers_of_part(graph.subgraph(part)) for part in nx.weakly_connected_components(graph)]
    parts.sort(key=lambda part: (-_height(part), -_width(part), min(part)))
    n_columns = max([n_columns, *map(_width, parts)])
    place: dict[str, tuple[float, float]] = {}
    left = top = shelf = 0
    for part in parts:
        if left + _width(part) > n_columns:
            left, top, shelf = 0, top + shelf, 0
        place |= {name: (left + x, y - top) for name, (x, y) in part.items()}
        left, shelf = left + _width(part), max(shelf, _height(part))
    return place


def _layers_of_part(part: nx.DiGraph) -> dict[str, tuple[float, float]]:
    columns = [sorted(names) for names in nx.topological_generations(part)]
    tallest = max(map(len, columns))
    place: dict[str, tuple[float, float]] = {}
    for x, names in enumerate(columns):
        names.sort(key=lambda name: -_mean_height([place[cause] for cause in part.predecessors(name)]))
        start = -(tallest - len(names)) / 2
        place |= {name: (float(x), start - row) for row, name in enumerate(names)}
    return place


def _mean_height(places: list[tuple[float, float]]) -> float:
    return float(np.mean([y for _, y in places])) if places else 0.0


def _width(part: dict[str, tuple[float, float]]) -> int:
    return 1 + round(max(x for x, _ in part.values()))


def _height(part: dict[str, tuple[float, float]]) -> int:
    return 1 + math.ceil(-min(y for _, y in part.values()))
