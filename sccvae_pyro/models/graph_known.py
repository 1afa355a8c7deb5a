"""A graph prior from knowledge about single edges: a regulatory network, a pathway, an experiment."""

from __future__ import annotations

import csv
import functools
import io
import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import networkx as nx
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sccvae_pyro.data.features import read_regulons
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError, warn
from sccvae_pyro.files import read_text
from sccvae_pyro.models.graph_edges import EdgePrior, Edges, node_names
from sccvae_pyro.models.graph_sparse import MixtureFactor, responsibility, sample_mixture, spike_below_slab
from sccvae_pyro.models.slot import Sizes, share

logger = logging.getLogger(__name__)

Pair = tuple[str, str]


@dataclass(frozen=True)
class KnownGraph(EdgePrior):
    """What is known of single edges by the names of their nodes; an edge that no list names is not there.

    Each edge is there with a probability of its own, 1 if it is required and 0 if it is forbidden::

        B_e ~ (1 - probability_e) Normal(0, spike) + probability_e Normal(0, slab)

    An edge of probability 0 is exactly zero, and so are all that no list names: where the lists are not
    complete, give these a probability with ``elsewhere``. Edges whose nodes the model does not have are left
    out, and so are allowed ones against the order of the nodes; a warning names them.

    Parameters
    ----------
    allowed
        Edges that may well be: ``(source, target)``, or ``(source, target, probability)``.
    required
        Edges that are there, ``(source, target)``. They must agree with the order of the nodes.
    forbidden
        Edges that are not there, ``(source, target)``.
    probability
        Probability of an allowed edge that brings none of its own.
    elsewhere
        Probability of an edge that no list names. At 0, the default, only allowed and required edges can be.
    spike, slab
        Standard deviation of the weight of an edge that is not there, and of one that is.
    """

    allowed: tuple[tuple[str, str] | tuple[str, str, float], ...] = ()
    required: tuple[Pair, ...] = ()
    forbidden: tuple[Pair, ...] = ()
    probability: float = 0.5
    elsewhere: float = 0.0
    spike: float = 0.02
    slab: float = 0.5

    def __post_init__(self) -> None:
        share(self, probability=self.probability, elsewhere=self.elsewhere)
        spike_below_slab(self, self.spike, self.slab)
        object.__setattr__(self, "allowed", _read(self.allowed, "allowed", with_probability=True))
        for name in ("required", "forbidden"):
            object.__setattr__(self, name, _read(getattr(self, name), name))
        _refuse_contradictions(self)
        _refuse_cycles(self.required)

    @classmethod
    def from_table(cls, table: pd.DataFrame, **settings: Any) -> Self:
        """Allow the edges of a table.

        Parameters
        ----------
        table
            Columns ``source`` and ``target``, and ``probability`` where edges bring their own (missing where
            one does not). Other columns are not read.
        settings
            Any setting but ``allowed``.

        Raises
        ------
        InputError
            If a column is missing or there twice, or a row is no edge.
        """
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"KnownGraph: the table must be a DataFrame, not {table!r}")
        if missing := [name for name in ("source", "target") if name not in table]:
            raise InputError(
                f"KnownGraph: the table has no column {missing[0]!r}, its columns are {listing(table)}"
            )
        table = table[[name for name in table if name in ("source", "target", "probability")]].astype(object)
        if twice := table.columns[table.columns.duplicated()].tolist():
            raise InputError(
                f"KnownGraph: the table has more than one column {twice[0]!r}. Keep one of them."
            )
        loops = table["source"] == table["target"]
        if loops.any():
            logger.info("%d edges from a node to itself are left out: a DAG has none.", loops.sum())
        edges = table[~loops].reindex(columns=["source", "target", "probability"])
        own = edges["probability"].notna()
        rows = zip(edges.itertuples(index=False, name=None), own, strict=True)
        return cls(allowed=tuple(edge if has_own else edge[:2] for edge, has_own in rows), **settings)

    @classmethod
    def from_networkx(cls, graph: nx.DiGraph, **settings: Any) -> Self:
        """Allow the edges of a directed graph, with their attribute ``probability`` where they have it.

        Raises
        ------
        InputError
            If it is not a directed graph, or a probability is none.
        """
        if not (isinstance(graph, nx.Graph) and graph.is_directed()):
            raise InputError("KnownGraph: the graph is not directed. Give a networkx.DiGraph.")
        edges = list(graph.edges(data="probability"))
        return cls.from_table(pd.DataFrame(edges, columns=["source", "target", "probability"]), **settings)

    @classmethod
    def from_file(cls, path: str | Path, **settings: Any) -> Self:
        """Allow the edges of a file.

        Parameters
        ----------
        path
            A table, separated by commas or tabs, with columns ``source``, ``target`` and perhaps
            ``probability``, such as CollecTRI's; or TRRUST's (regulator, target, mode, reference, separated
            by tabs; no header). Other columns, and signs of edges, are not used.
        settings
            Any setting but ``allowed``.

        Raises
        ------
        InputError
            If the file is absent or is neither of these.
        """
        return cls.from_table(_table(path), **settings)

    def sample(self, edges: Edges, sizes: Sizes, zero: Tensor) -> Tensor:
        """Sample the weights, ``nodes x nodes``."""
        possible, probability_e = self._possible(edges, sizes)
        return sample_mixture(possible, probability_e.to(zero), self.spike, self.slab)

    def factor(self, edges: Edges, sizes: Sizes) -> nn.Module:
        """Mixtures of two normals, as follow from a pseudo-observation of each edge."""
        possible, probability_e = self._possible(edges, sizes)
        self._check(edges, possible, node_names(sizes))
        return MixtureFactor(possible, probability_e, self.spike, self.slab)

    def inclusion(self, B: Tensor, sizes: Sizes) -> Tensor:
        """Probability that each edge is there, ``nodes x nodes``; see :meth:`GraphPrior.inclusion`."""
        return responsibility(B, self._probability(node_names(sizes)).to(B), self.spike, self.slab)

    def _possible(self, edges: Edges, sizes: Sizes) -> tuple[Edges, Tensor]:
        """Edges of positive probability, and that probability."""
        probability_e = self._probability(node_names(sizes))[edges.sources, edges.targets]
        return edges.where(probability_e > 0), probability_e[probability_e > 0]

    def _check(self, edges: Edges, possible: Edges, names: tuple[str, ...]) -> None:
        """Compare the names and directions of the lists with those of the model.

        Raises
        ------
        InputError
            If no edge is possible, no name is known, or a required edge goes against the order.
        """
        belief = self._belief()
        if not any(belief.values()) and not self.elsewhere:
            raise InputError(
                "KnownGraph names no edge that may be. Give allowed or required ones, or a probability "
                "elsewhere."
            )
        unknown = _unknown(belief, names)
        sources, targets = edges.sources.tolist(), edges.targets.tolist()
        runs = {(names[j], names[k]) for j, k in zip(sources, targets, strict=True)}
        known = [pair for pair in belief if belief[pair] > 0 and set(pair) <= set(names)]
        against = [pair for pair in known if pair not in runs]
        _refuse_required(against, set(self.required))
        reasons = _left_out(unknown, against)
        if edges.number and not possible.number:
            raise InputError(
                f"KnownGraph leaves no edge: {'; '.join(reasons)}. Use NoGraph() if that is meant, or give a "
                "probability elsewhere."
            )
        if reasons:
            warn(f"KnownGraph leaves edges out: {'; '.join(reasons)}.")

    def _probability(self, names: tuple[str, ...]) -> Tensor:
        """Probability of each edge, ``nodes x nodes``."""
        if names not in self._looked_up:
            place = {name: k for k, name in enumerate(names)}
            table = torch.full((len(names), len(names)), float(self.elsewhere))
            for (source, target), probability in self._belief().items():
                if source in place and target in place:
                    table[place[source], place[target]] = probability
            self._looked_up[names] = table
        return self._looked_up[names]

    @functools.cached_property
    def _looked_up(self) -> dict[tuple[str, ...], Tensor]:
        """Probabilities by the names of the nodes: every step asks for them, and networks are long."""
        return {}

    def _belief(self) -> dict[Pair, float]:
        """Probability of each edge that a list names."""
        belief = dict.fromkeys(self.forbidden, 0.0)
        for source, target, *own in self.allowed:
            belief[source, target] = own[0] if own else self.probability
        return {**belief, **dict.fromkeys(self.required, 1.0)}


def _read(edges: Any, name: str, with_probability: bool = False) -> tuple[Any, ...]:
    """Edges of a setting as tuples of plain values."""
    if isinstance(edges, str | Mapping) or not isinstance(edges, Iterable):
        raise InputError(f"KnownGraph: {name} must be a list of edges (source, target), not {edges!r}")
    return tuple(dict.fromkeys(_read_edge(edge, name, with_probability) for edge in edges))


def _read_edge(edge: Any, name: str, with_probability: bool) -> tuple[Any, ...]:
    parts = tuple(edge) if isinstance(edge, tuple | list | np.ndarray) else ()
    if len(parts) not in ((2, 3) if with_probability else (2,)):
        written = (
            "(source, target) or (source, target, probability)" if with_probability else "(source, target)"
        )
        raise InputError(f"KnownGraph: an edge of {name} is {written}, not {edge!r}")
    source, target = (_read_node(part, edge) for part in parts[:2])
    if source == target:
        raise InputError(f"KnownGraph: {name} holds an edge from {source!r} to itself; a DAG has none")
    if len(parts) == 2:
        return source, target
    number = parts[2]
    if not isinstance(number, Real) or isinstance(number, bool) or not 0 <= float(number) <= 1:
        raise InputError(
            f"KnownGraph: the probability of {_arrow((source, target))} must lie between 0 and 1, "
            f"not {number!r}"
        )
    return source, target, float(number)


def _read_node(node: Any, edge: Any) -> str:
    """Name of a node; a number may be one, but neither a missing value nor a blank is."""
    is_name = isinstance(node, str | Integral) and not isinstance(node, bool) and str(node).strip()
    if not is_name:
        raise InputError(f"KnownGraph: {node!r} in the edge {edge!r} is no name of a node")
    return str(node)


def _refuse_contradictions(graph: KnownGraph) -> None:
    allowed = {(edge[0], edge[1]) for edge in graph.allowed}
    if len(allowed) < len(set(graph.allowed)):
        counted = pd.Series([edge[:2] for edge in set(graph.allowed)]).value_counts()
        raise InputError(f"KnownGraph: {_arrow(counted.index[0])} is allowed with more than one probability")
    for name, pairs in (("required", set(graph.required)), ("allowed", allowed)):
        if both := sorted(pairs & set(graph.forbidden)):
            raise InputError(f"KnownGraph: {listing(map(_arrow, both))} is both {name} and forbidden")
    if never := sorted({edge[:2] for edge in graph.allowed if edge[2:] == (0.0,)} & set(graph.required)):
        raise InputError(f"KnownGraph: {listing(map(_arrow, never))} is both required and of probability 0")


def _refuse_cycles(required: tuple[Pair, ...]) -> None:
    try:
        cycle = nx.find_cycle(nx.DiGraph(required))
    except nx.NetworkXNoCycle:
        return
    path = " -> ".join([cycle[0][0], *(target for _, target in cycle)])
    raise InputError(f"KnownGraph: the required edges form a cycle, {path}")


def _unknown(pairs: Iterable[Pair], names: tuple[str, ...]) -> list[str]:
    """Names that the model does not have; refused if it has none of them."""
    wanted = dict.fromkeys(name for pair in pairs for name in pair)
    unknown = [name for name in wanted if name not in set(names)]
    if unknown and len(unknown) == len(wanted):
        raise InputError(
            f"KnownGraph: the model has none of the nodes {listing(unknown)}. Its nodes are {listing(names)}."
        )
    return unknown


def _refuse_required(against: list[Pair], required: set[Pair]) -> None:
    """Refuse required edges against the order of the nodes."""
    if refused := [pair for pair in against if pair in required]:
        source, target = refused[0]
        raise InputError(
            f"KnownGraph: required {listing(map(_arrow, refused))} goes against the order of the nodes, in "
            f"which {target!r} stands before {source!r}. Give another order: Ordered(graph=..., order=...)."
        )


def _left_out(unknown: list[str], against: list[Pair]) -> list[str]:
    """Why edges are left out."""
    reasons = []
    if unknown:
        reasons.append(f"it names {len(unknown)} nodes that the model does not have, {listing(unknown)}")
    if against:
        reasons.append(
            f"{len(against)} go against the order of the nodes, {listing(map(_arrow, against))}, see Ordered "
            "and LearnedOrder"
        )
    return reasons


def _table(path: str | Path) -> pd.DataFrame:
    """Edges of a file with a header, separated by commas or tabs, or of signed regulons without."""
    text = read_text(path)
    separator = "\t" if "\t" in text.partition("\n")[0] else ","
    header = next(csv.reader(text.splitlines()[:1], delimiter=separator), [])
    if not {"source", "target"} <= set(header):
        return read_regulons(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(
                io.StringIO(text),
                sep=separator,
                index_col=False,  # a value too many in each row would push the sources aside
                dtype={"source": str, "target": str},
                keep_default_na=False,  # NA is a gene
                na_values={"probability": ["", "NA", "NaN", "nan"]},
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
            raise InputError(f"{path} is not a table of edges: {error}. Correct that line.") from None


def _arrow(pair: Pair) -> str:
    return f"{pair[0]} -> {pair[1]}"
