"""Along which paths through the graph a perturbation reaches a gene.

In a linear structural model the effect of a push on a node is a sum over all directed paths from what is
pushed: the push, times the weights along the path (Wright 1934, Ann Math Stat 5:161). The last step, from the
state of the nodes to the gene, is the decoder; it is taken as linear around the control cells. The sum over
all paths is one linear solve, so that what a few of them leave is known without listing the rest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccvae_pyro.inference import posterior
from sccvae_pyro.inference.posterior import Controls, Draws, Push
from sccvae_pyro.models import scm
from sccvae_pyro.models.program import Program
from sccvae_pyro.models.slot import Sizes

ARROW = " -> "
"""Between the nodes of a path."""

Path = tuple[int, ...]


@dataclass(frozen=True)
class Flow:
    """What a perturbation pushes, how that spreads, and how a gene reads it, in each draw of the globals.

    Parameters
    ----------
    push_k
        ``draws x nodes``: what is added to each node.
    weight_kk
        ``draws x nodes x nodes``: weight of the edge from each row's node to each column's, acyclic.
    reading_k
        ``draws x nodes``: change of the gene for a unit change of the state of each node.
    """

    push_k: np.ndarray
    weight_kk: np.ndarray
    reading_k: np.ndarray

    def total(self) -> np.ndarray:
        """Sum over all paths, ``draws``."""
        system = np.eye(self.push_k.shape[-1]) - self.weight_kk
        change_k = np.linalg.solve(system.swapaxes(-2, -1), self.push_k[..., None])[..., 0]
        return (change_k * self.reading_k).sum(-1)

    def reaching(self, path: Path) -> np.ndarray:
        """What arrives at the last node of a path along it, ``draws``."""
        sources, targets = list(path[:-1]), list(path[1:])
        return self.push_k[:, path[0]] * self.weight_kk[:, sources, targets].prod(-1)

    def along(self, path: Path) -> np.ndarray:
        """What the gene shows of that, ``draws``."""
        return self.reaching(path) * self.reading_k[:, path[-1]]

    def strongest(self, n: int) -> list[Path]:
        """The paths of the largest mean size over draws, the largest first; those without any are left out.

        Best-first search (Hart, Nilsson & Raphael 1968): what goes along a path so far, times the largest
        that any way on can make of it in each draw, bounds all paths that begin so. The one with the
        highest bound is looked at next, and a whole path that is reached is the largest of those left.
        """
        onward_k = self._largest_onward()
        size_kk = np.abs(self.weight_kk)
        bounds = (np.abs(self.push_k) * onward_k).mean(0)
        queue: list[tuple[float, Path, bool]] = []  # its first entry is the smallest: minus the bound
        for k in np.flatnonzero(bounds):
            heapq.heappush(queue, (-bounds[k], (int(k),), False))
        found: list[Path] = []
        while queue and len(found) < n:
            _, path, is_whole = heapq.heappop(queue)
            if is_whole:
                found.append(path)
                continue
            if size := np.abs(self.along(path)).mean():
                heapq.heappush(queue, (-size, path, True))
            arriving = np.abs(self.reaching(path))[:, None]
            bounds = (arriving * size_kk[:, path[-1]] * onward_k).mean(0)
            for k in np.flatnonzero(bounds):
                heapq.heappush(queue, (-bounds[k], (*path, int(k)), False))
        return found

    def _largest_onward(self) -> np.ndarray:
        """Largest size that a unit at each node can have in the gene along one path, ``draws x nodes``."""
        size_kk = np.abs(self.weight_kk)
        largest_k = np.abs(self.reading_k)
        while True:  # one more edge a round: a longest path has as many as there are nodes
            longer_k = np.maximum(largest_k, (size_kk * largest_k[:, None, :]).max(-1))
            if np.array_equal(longer_k, largest_k):
                return largest_k
            largest_k = longer_k


@torch.no_grad()
def flow(
    program: Program, draws: Draws, controls: Controls, push: Push, gene: int, cells_per_draw: int, seed: int
) -> Flow:
    """Take the effect of a perturbation on the mean profile of a gene as linear around the control cells.

    A node that is cut or scaled keeps a part of what it has: what it loses, at the mean state of the control
    cells, is pushed as well, and what its parents send is multiplied. With that the change of the mean
    state is exact for every intervention; only the step from state to gene is not.

    Parameters
    ----------
    program, draws, controls
        Fitted program, draws of its globals, and cells to start from.
    push
        What the perturbation does; one label. Cells respond in full or not at all: doses of single cells
        count as their mean, one.
    gene
        Position of the gene. One that has a node shows that node alone; others show all nodes.
    cells_per_draw, seed
        As in :func:`~sccvae_pyro.inference.posterior.population_means`: the cells are the same.

    Returns
    -------
    Flow
    """
    profile = program.priors.likelihood.profile(controls.library_c.numpy())
    state_k, reading_k = draws.B.new_zeros((2, len(draws), program.sizes.nodes))
    cells = posterior.starting_cells(program, draws, controls, cells_per_draw, seed)
    for s, (rows, z_ck, _) in enumerate(cells):
        expected = posterior.expected_mean(program, profile, draws, s, controls.covariates_cv[rows])
        effect_k = _slope(expected, z_ck, gene)
        state_k[s] = scm.propagate(z_ck, draws.B[s]).mean(0)
        reading_k[s] = effect_k - draws.B[s] @ effect_k  # of the state itself, without what follows from it
    shift_k, keep_k = scm.shift_and_keep(push.action[:, 0], program.sizes.nodes)
    keep_k = torch.ones_like(shift_k) if keep_k is None else keep_k
    push_k = push.share * (shift_k - (1 - keep_k) * state_k)
    parts = push_k, draws.B * keep_k.unsqueeze(-2), reading_k * _shown(program.sizes, gene)
    return Flow(*(part.double().numpy() for part in parts))


def _slope(expected: Callable[[Tensor, Tensor], Tensor], z_ck: Tensor, gene: int) -> Tensor:
    """Change of the mean profile of a gene for a unit shift of each node in all cells, nodes."""
    none_k = torch.zeros_like(z_ck[0])
    return torch.func.grad(lambda shift_k: expected(z_ck, shift_k)[gene])(none_k)


def _shown(sizes: Sizes, gene: int) -> Tensor:
    """One for the nodes that the gene shows, nodes."""
    if gene not in sizes.anchors:
        return torch.ones(sizes.nodes)
    return torch.eye(sizes.nodes)[sizes.anchors.index(gene)]


def path_table(
    flow: Flow, n_paths: int, nodes: Sequence[str], gene: str, curved: np.ndarray, predicted: np.ndarray
) -> pd.DataFrame:
    """Lay out the strongest paths, and what leads from their sum to the prediction.

    Parameters
    ----------
    flow
        The linear effect.
    n_paths
        Paths to name.
    nodes
        Names of the nodes.
    gene
        Name of the gene; it ends each path, unless the path ends at a node of its name.
    curved
        Effect by the program itself, ``draws``.
    predicted
        The same with what the nodes leave unexplained, ``draws``.

    Returns
    -------
    See :meth:`sccvae_pyro.SCCVAE.paths`.
    """
    paths = flow.strongest(n_paths)
    total = flow.total()
    along = [flow.along(path) for path in paths]
    rest = total - np.sum(along, axis=0)
    shares = {_name(path, nodes, gene): values for path, values in zip(paths, along, strict=True)}
    shares |= {"all other paths": rest, "all paths": total}
    gaps = {"beyond the paths": curved - total, "beyond the nodes": predicted - curved}
    rows = {**shares, **gaps, "predicted": predicted}
    values = np.stack(list(rows.values()), axis=1)
    table = pd.DataFrame(posterior.summarise(values), index=pd.Index(list(rows), name="path"))
    table["probability_positive"] = (values > 0).mean(axis=0)
    table["share"] = (table["mean"] / table.loc["all paths", "mean"]).where(table.index.isin(list(shares)))
    lengths = [len(path) - 1 for path in paths]
    table["n_edges"] = pd.array(lengths + [None] * (len(table) - len(lengths)), dtype="Int64")
    return table


def _name(path: Path, nodes: Sequence[str], gene: str) -> str:
    names = [nodes[k] for k in path]
    return ARROW.join(names if names[-1] == gene else [*names, gene])
