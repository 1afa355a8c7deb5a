"""Which nodes drive which."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from sccvae_pyro.plots.style import DOWN, GREY, INK, SMALL, UP, Plot, axes

_WIDTH = 7.6  # inches, of a graph without long chains
_LEAST_PITCH = 1.5  # of a column, in widths of a name: what is left is for the arrows
_POINTS_PER_LETTER = 5.2
_BOX_HEIGHT = 0.56  # of the distance between rows
_SWEEPS = 12  # passes over the columns that straighten edges
_FAINTEST = 0.2  # opacity of an edge whose sign is a coin toss, or that is hardly in the graph

Node = str | tuple[str, str, int]  # a name, or source, target and layer of an edge that passes through
Layers = list[list[Node]]
Lanes = dict[tuple[str, str], list[Node]]


def strongest_edges(edges: pd.DataFrame, n: int = 25, ax: Axes | None = None) -> Plot:
    """Draw the strongest edges of the graph; causes stand to the left of their effects.

    Orange solid edges raise their target, blue dashed ones lower it; the wider, the stronger. Nodes stand in
    layers, and an edge over several layers has a lane of its own (Sugiyama, Tagawa & Toda 1981).

    Parameters
    ----------
    edges
        Columns ``source``, ``target`` and ``mean``; at least one. An edge that would close a cycle with
        stronger ones is left out: every draw of a graph is acyclic, their mean need not be.
    n
        Number of edges, by the size of their mean.
    ax
        Axes to draw on; ``None`` makes new ones.
    """
    shown = _acyclic(_named(edges), n)
    return _picture(shown, np.full(len(shown), 0.85), "Strongest edges", ax)


def plot_graph(edges: pd.DataFrame, n: int = 40, ax: Axes | None = None) -> Plot:
    """Draw the graph with how sure each edge is; causes stand to the left of their effects.

    As :func:`strongest_edges`, and the paler an edge, the less sure it is. Of a large graph only the
    strongest edges and the nodes that they join are shown, and the title counts them.

    Parameters
    ----------
    edges
        What :meth:`sccvae_pyro.SCCVAE.edges` returns: ``source``, ``target``, ``mean``, ``present``,
        ``probability_positive`` and, where the prior tells edges from none, ``inclusion``. An edge is as sure
        as it is probable, or else as it and its sign are.
    n
        Most edges to show, by the size of their mean.
    ax
        Axes to draw on; ``None`` makes new ones, as wide as the longest chain of causes needs.
    """
    known = _named(edges)
    shown = _acyclic(known, n)
    counts = [len({*table["source"], *table["target"]}) for table in (shown, known)]
    title = f"{len(shown)} strongest of {len(known):,} edges, among {counts[0]} of {counts[1]} nodes"
    if len(shown) == len(known):
        title = f"All {len(known)} edges among {counts[1]} nodes"
    plot = _picture(shown, _FAINTEST + (1 - _FAINTEST) * _sureness(shown), title, ax)
    key = "Orange raises, blue dashed lowers; the wider, the stronger; the paler, the less sure"
    plot.ax.text(0, 0, key, transform=plot.ax.transAxes, fontsize=SMALL, va="top", color=GREY)
    return plot


def _sureness(edges: pd.DataFrame) -> np.ndarray:
    """From 0 to 1: probability of each edge where the prior tells it, else its own times that of its sign."""
    if "inclusion" in edges:
        return edges["inclusion"].to_numpy()
    return (edges["present"] * np.abs(2 * edges["probability_positive"] - 1)).to_numpy()


def _named(edges: pd.DataFrame) -> pd.DataFrame:
    return edges.astype({"source": str, "target": str})


def _picture(shown: pd.DataFrame, opacity: np.ndarray, title: str, ax: Axes | None) -> Plot:
    graph = nx.DiGraph(list(zip(shown["source"], shown["target"], strict=True)))
    name_width = _POINTS_PER_LETTER * max(map(len, graph)) + 8
    place, lanes = _layout(graph, n_columns=max(2, int(72 * _WIDTH / (2.2 * name_width))))
    right, bottom = np.max(list(place.values()), axis=0)
    width = max(_WIDTH, _LEAST_PITCH * name_width * (right + 1) / 72)
    ax = axes(ax, width, 0.8 + 0.3 * bottom)
    half = name_width / 2 * (right + 1) / (72 * width)
    largest = shown["mean"].abs().max()
    for edge, alpha in zip(shown.itertuples(), opacity, strict=True):
        stops = [place[node] for node in lanes[edge.source, edge.target]]
        ax.add_patch(_arrow(stops, half, edge.mean, abs(edge.mean) / largest, alpha))
    for node, (x, y) in place.items():
        if isinstance(node, str):
            _box(ax, node, x, y, half)
    ax.set(xlim=(-0.5, right + 0.5), ylim=(bottom + 0.6, -0.6))
    ax.set_axis_off()
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    return Plot(ax, shown)


def _box(ax: Axes, name: str, x: float, y: float, half: float) -> None:
    box = FancyBboxPatch(
        (x - half, y - _BOX_HEIGHT / 2),
        2 * half,
        _BOX_HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.03",
        facecolor="white",
        edgecolor=GREY,
        linewidth=0.8,
        zorder=3,
    )
    ax.add_patch(box)
    ax.text(x, y, name, ha="center", va="center", fontsize=SMALL, color=INK, zorder=4, parse_math=False)


def _arrow(
    stops: list[tuple[float, float]], half: float, mean: float, strength: float, alpha: float
) -> FancyArrowPatch:
    """A curve from the right side of the first stop, level through those between, to the left of the last."""
    rises = mean > 0
    return FancyArrowPatch(
        path=_curve(stops, half),
        arrowstyle="-|>",
        mutation_scale=9,
        shrinkA=0,
        shrinkB=0,
        linewidth=0.7 + 2.2 * strength,
        linestyle="-" if rises else (0, (4, 2)),
        color=UP if rises else DOWN,
        alpha=alpha,
        zorder=2,
    )


def _curve(stops: list[tuple[float, float]], half: float) -> Path:
    x, y = np.array(stops, dtype=float).T
    x[0], x[-1] = x[0] + half, x[-1] - half
    points, codes = [(x[0], y[0])], [Path.MOVETO]
    for i in range(len(x) - 1):
        middle = (x[i] + x[i + 1]) / 2
        points += [(middle, y[i]), (middle, y[i + 1]), (x[i + 1], y[i + 1])]
        codes += [Path.CURVE4] * 3
    return Path(points, codes)


# Where nodes stand


def _acyclic(edges: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n strongest edges that close no cycle with stronger ones."""
    graph, kept = nx.DiGraph(), []
    for index in edges["mean"].abs().sort_values(ascending=False, kind="stable").index:
        source, target = edges.loc[index, ["source", "target"]]
        if source in graph and target in graph and nx.has_path(graph, target, source):
            continue
        graph.add_edge(source, target)
        kept.append(index)
        if len(kept) == n:
            break
    return edges.loc[kept]


def _layout(graph: nx.DiGraph, n_columns: int) -> tuple[dict[Node, tuple[float, float]], Lanes]:
    """Place nodes, and name the stops of each edge.

    Parts of the graph that are not connected stand side by side where there is room, else below.
    """
    parts = [_layers(graph.subgraph(part)) for part in nx.weakly_connected_components(graph)]
    parts.sort(key=lambda part: (-_height(part[0]), -len(part[0]), min(part[1])))
    n_columns = max([n_columns, *(len(layers) for layers, _ in parts)])
    place: dict[Node, tuple[float, float]] = {}
    lanes: Lanes = {}
    left = top = shelf = 0
    for layers, stops in parts:
        if left + len(layers) > n_columns:
            left, top, shelf = 0, top + shelf, 0
        for column, layer in enumerate(layers):
            start = top + (_height(layers) - len(layer)) / 2
            place |= {node: (float(left + column), start + row) for row, node in enumerate(layer)}
        lanes |= stops
        left, shelf = left + len(layers), max(shelf, _height(layers))
    return place, lanes


def _layers(part: nx.DiGraph) -> tuple[Layers, Lanes]:
    """Nodes and passing edges by layer, in an order that keeps edges straight; the stops of each edge."""
    layer_of = {name: i for i, names in enumerate(nx.topological_generations(part)) for name in names}
    for name in part:
        if not part.in_degree(name):  # a first cause stands right before its effects
            layer_of[name] = min(layer_of[effect] for effect in part.successors(name)) - 1
    lanes: Lanes = {
        (source, target): [
            source,
            *((source, target, i) for i in range(layer_of[source] + 1, layer_of[target])),
            target,
        ]
        for source, target in part.edges
    }
    layers: Layers = [[] for _ in range(1 + max(layer_of.values()))]
    for name in sorted(part):
        layers[layer_of[name]].append(name)
    for stops in lanes.values():
        for i, node in enumerate(stops[1:-1], start=layer_of[stops[0]] + 1):
            layers[i].append(node)
    lines = nx.Graph([pair for stops in lanes.values() for pair in pairwise(stops)])
    return _untangled(layers, lines), lanes


def _untangled(layers: Layers, lines: nx.Graph) -> Layers:
    """Order every layer by the mean height of its neighbours in the layers beside it, to and fro."""
    layers = [list(layer) for layer in layers]
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        beside = layers if forth else layers[::-1]
        for settled, layer in pairwise(beside):
            height = {node: row - len(settled) / 2 for row, node in enumerate(settled)}
            layer.sort(
                key=lambda node: np.mean([height[other] for other in lines[node] if other in height] or [0])
            )
    return layers


def _height(layers: Layers) -> int:
    return max(map(len, layers))
