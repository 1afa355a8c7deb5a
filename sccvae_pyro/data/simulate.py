"""A Perturb-seq simulator whose graph, penetrance, escapers and noiseless means are known.

A :class:`World` is the truth: a latent DAG whose first genes are the nodes themselves (node ``k``
drives gene ``k``), modules of nodes that share downstream targets, a shift on the own node for
every perturbation, and the observation model. :func:`simulate` draws a screen from a world;
:meth:`World.mean_profiles` gives the noiseless mean of any perturbation or combination, so that
predictions are scored without test-set noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse, special
from scipy.linalg import solve_triangular

from sccvae_pyro.data.checks import check_seed
from sccvae_pyro.data.counts import ExpectedLogCP10K
from sccvae_pyro.errors import InputError

CONTROL = "control"


@dataclass(frozen=True)
class World:
    """Everything that decides a simulated screen, before any cell is drawn.

    Parameters
    ----------
    nodes
        Names of the ``K`` nodes; node ``k`` is anchored to the gene of the same name.
    genes
        Names of the ``G`` genes, the anchored ones first.
    adjacency
        ``K x K``, strictly upper triangular in the order of ``nodes``; ``[j, k]`` is the effect of j on k.
    loading
        ``K x G``, effect of a node on the log rate of a gene.
    baseline
        ``G``, log proportion of each gene at a latent state of zero.
    inverse_dispersion
        ``G``; variance of a count of mean m is ``m + m^2 / inverse_dispersion``.
    modules
        ``K``, module of each node.
    shift
        ``K``, shift of the own node at penetrance 1, in standard deviations of the node's noise.
    strength
        ``K``, penetrance of the perturbation of each node.
    guide_strength
        ``K x guides``, factor of each guide on the strength.
    responders
        ``K``, probability that a cell responds.
    batch_effect
        ``batches x G``, added to the log rate.
    library
        Mean and standard deviation of the log library size.
    """

    nodes: np.ndarray
    genes: np.ndarray
    adjacency: np.ndarray
    loading: np.ndarray
    baseline: np.ndarray
    inverse_dispersion: np.ndarray
    modules: np.ndarray
    shift: np.ndarray
    strength: np.ndarray
    guide_strength: np.ndarray
    responders: np.ndarray
    batch_effect: np.ndarray
    library: np.ndarray

    @classmethod
    def draw(
        cls,
        n_perturbations: int = 200,
        n_genes: int = 600,
        n_modules: int = 10,
        n_guides: int = 3,
        n_batches: int = 2,
        coherence: float = 0.0,
        null_share: float = 0.0,
        seed: int = 0,
    ) -> World:
        """Draw a world.

        Parameters
        ----------
        n_perturbations
            Perturbable genes, each a node of the DAG.
        n_genes
            All genes; must exceed ``n_perturbations``, the rest respond to the nodes.
        n_modules
            Groups of nodes that share their downstream genes.
        n_guides
            Guides of each perturbation.
        n_batches
            Batches of cells, each with its own small effect on every gene.
        coherence
            How far the perturbations of a module act alike, from 0 to 1. At 0 they share the programme of the
            module to varying degrees, have targets of their own, and edges lead to other modules; at 1
            each acts on the programme alone and on its own gene.
        null_share
            Share of perturbations that do nothing: a strength of zero.
        seed
            Seed of the world, apart from the seed of the cells.

        Returns
        -------
        World

        Raises
        ------
        InputError
            If there are fewer genes than perturbations, or a share is not between 0 and 1.
        """
        if n_genes <= n_perturbations:
            raise InputError(
                f"n_genes={n_genes} must exceed n_perturbations={n_perturbations}: nodes are genes too"
            )
        for name, share in {"coherence": coherence, "null_share": null_share}.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be between 0 and 1, not {share!r}")
        rng = np.random.default_rng(seed)
        modules = rng.integers(n_modules, size=n_perturbations)
        names = np.array([f"G{i:04d}" for i in range(n_genes)])
        return cls(
            nodes=names[:n_perturbations],
            genes=names,
            adjacency=_draw_adjacency(modules, coherence, rng),
            loading=_draw_loading(modules, n_genes, coherence, rng),
            baseline=_draw_baseline(n_genes, rng),
            inverse_dispersion=np.exp(rng.normal(1.6, 0.5, n_genes)),
            modules=modules,
            shift=-np.exp(rng.normal(0.9, 0.35, n_perturbations)),
            strength=np.where(
                _draw_null(n_perturbations, null_share, seed),
                0.0,
                np.exp(rng.normal(0.0, 0.3, n_perturbations)),
            ),
            guide_strength=np.exp(rng.normal(0.0, 0.25, (n_perturbations, n_guides))),
            responders=rng.beta(8.0, 2.0, n_perturbations),
            batch_effect=rng.normal(0.0, 0.08, (n_batches, n_genes)),
            library=np.array([np.log(6000.0), 0.35]),
        )

    @classmethod
    def from_uns(cls, truth: Mapping[str, np.ndarray]) -> World:
        """Rebuild the world from ``adata.uns["truth"]``."""
        return cls(**{field.name: np.asarray(truth[field.name]) for field in fields(cls)})

    def to_uns(self) -> dict[str, np.ndarray]:
        """Give the arrays under the names that :meth:`from_uns` reads; all can be written to h5ad."""
        return asdict(self)

    @property
    def total_effect(self) -> np.ndarray:
        """``(I - B)^-1``, ``K x K``: the effect of a unit shift of node j on node k along all paths."""
        identity = np.eye(len(self.nodes))
        return solve_triangular(identity - self.adjacency, identity, lower=False, unit_diagonal=True)

    def log_proportion(self, noise: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Expected log proportions of the genes, ``cells x G``, from shifted noise and batch codes."""
        state = noise @ self.total_effect
        logits = self.baseline + state @ self.loading + self.batch_effect[batch]
        return logits - special.logsumexp(logits, axis=1, keepdims=True)

    def mean_profiles(self, labels: Sequence[str], n_cells: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Noiseless mean of ``log1p(CP10K)`` of each perturbation.

        The expectation over counts is by quadrature, over escapers and guides by the same cells for
        every label: differences between labels carry almost no Monte Carlo noise.

        Parameters
        ----------
        labels
            Perturbations, combinations joined by ``+``, or ``"control"``.
        n_cells
            Cells to average over.
        seed
            Seed of these cells.

        Returns
        -------
        DataFrame, labels x genes.

        Raises
        ------
        KeyError
            If a label names a gene that is not a node.
        """
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(n_cells, len(self.nodes)))
        batch = rng.integers(len(self.batch_effect), size=n_cells)
        uniform = rng.uniform(size=n_cells)
        guide = rng.integers(self.guide_strength.shape[1], size=n_cells)
        expected = ExpectedLogCP10K(self.inverse_dispersion, self._libraries(rng, 20_000))
        effect = self.total_effect @ self.loading
        logits = torch.as_tensor(
            self.baseline + noise @ effect + self.batch_effect[batch], dtype=torch.float32
        )
        rows = []
        for label in labels:
            nodes, shift = self._cell_shifts(label, uniform, guide)
            change = torch.as_tensor(shift @ effect[nodes], dtype=torch.float32)
            rows.append(expected((logits + change).log_softmax(-1)).mean(0).double().numpy())
        return pd.DataFrame(rows, index=pd.Index(labels), columns=pd.Index(self.genes))

    def _cell_shifts(
        self, label: str, uniform: np.ndarray, guide: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nodes that the label pushes, and by how much in each cell (``cells x nodes``)."""
        nodes = self._nodes_of(label)
        push = self.strength[nodes] * self.shift[nodes] * self.guide_strength[nodes][:, guide].T
        return nodes, np.where(uniform[:, None] < self.response_rate(label), push, 0.0)

    def _libraries(self, rng: np.random.Generator, n_cells: int) -> np.ndarray:
        mean, sd = self.library
        return np.exp(rng.normal(mean, sd, size=n_cells))

    def response_rate(self, label: str) -> float:
        """Probability that a cell with this label responds; a combination takes the mean of its parts."""
        nodes = self._nodes_of(label)
        return float(self.responders[nodes].mean()) if len(nodes) else 1.0

    def _nodes_of(self, label: str) -> np.ndarray:
        if label == CONTROL:
            return np.zeros(0, dtype=int)
        nodes = pd.Index(self.nodes).get_indexer(label.split("+"))
        if (nodes < 0).any():
            raise KeyError(f"{label!r} names a gene that is not a node of this world")
        return nodes


def simulate(
    n_perturbations: int = 200,
    cells_per_perturbation: int = 100,
    n_control: int = 2000,
    n_genes: int = 600,
    n_modules: int = 10,
    n_combinations: int = 0,
    n_features: int = 30,
    feature_noise: float = 0.8,
    coherence: float = 0.0,
    null_share: float = 0.0,
    seed: int = 0,
) -> ad.AnnData:
    """Simulate a Perturb-seq screen with known truth.

    Parameters
    ----------
    n_perturbations, n_genes, n_modules
        Size of the world, see :meth:`World.draw`.
    cells_per_perturbation, n_control
        Cells of each perturbation (and combination), and control cells.
    n_combinations
        Pairs of perturbations measured together, drawn at random.
    n_features
        Features of each perturbed gene, a noisy random view of its true downstream effects.
    feature_noise
        Standard deviation of the noise of a feature, in units of the sd of its signal.
    coherence, null_share
        How far the perturbations of a module act alike, and the share of perturbations that do nothing, see
        :meth:`World.draw`.
    seed
        Seed of the world and of the cells.

    Returns
    -------
    AnnData
        Raw counts as CSR in ``X``; ``obs``: ``perturbation``, ``guide``, ``batch``, ``total_umi``;
        ``uns["features"]``: DataFrame of gene features; ``uns["truth"]``: the :class:`World`
        (read it with :meth:`World.from_uns`) and ``responded``, one flag a cell.

    Raises
    ------
    InputError
        If a size is impossible, or the seed is not a whole number.
    """
    check_seed(seed)
    world = World.draw(
        n_perturbations, n_genes, n_modules, coherence=coherence, null_share=null_share, seed=seed
    )
    rng = np.random.default_rng([seed, 1])
    labels = np.repeat(
        [CONTROL, *world.nodes, *_draw_pairs(world.nodes, n_combinations, rng)],
        [n_control] + [cells_per_perturbation] * (n_perturbations + n_combinations),
    )
    adata, responded = _draw_cells(world, labels, rng)
    adata.uns["features"] = _draw_features(world, n_features, feature_noise, rng)
    adata.uns["truth"] = {**world.to_uns(), "responded": responded}
    return adata


def _draw_cells(world: World, labels: np.ndarray, rng: np.random.Generator) -> tuple[ad.AnnData, np.ndarray]:
    n_cells = len(labels)
    guide = rng.integers(world.guide_strength.shape[1], size=n_cells)
    batch = rng.integers(len(world.batch_effect), size=n_cells)
    uniform = rng.uniform(size=n_cells)
    noise = rng.normal(size=(n_cells, len(world.nodes)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        nodes, shift = world._cell_shifts(label, uniform[rows], guide[rows])
        noise[np.ix_(rows, nodes)] += shift
    library = world._libraries(rng, n_cells)
    mean = library[:, None] * np.exp(world.log_proportion(noise, batch))
    rate = rng.gamma(world.inverse_dispersion, 1 / world.inverse_dispersion, mean.shape) * mean
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    rates = {label: world.response_rate(label) for label in np.unique(labels)}
    responded = uniform < np.array([rates[label] for label in labels])
    guides = [f"{s}-{g + 1}" if s != CONTROL else "non-targeting" for s, g in zip(labels, guide, strict=True)]
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(labels),
            "guide": pd.Categorical(guides),
            "batch": pd.Categorical([f"batch_{b + 1}" for b in batch]),
            "total_umi": np.asarray(counts.sum(1)).ravel(),
        },
        index=pd.Index([f"cell{i}" for i in range(n_cells)]),
    )
    order = rng.permutation(n_cells)
    adata = ad.AnnData(X=counts[order], obs=obs.iloc[order], var=pd.DataFrame(index=pd.Index(world.genes)))
    return adata, responded[order]


def _draw_null(n_perturbations: int, share: float, seed: int) -> np.ndarray:
    """Which perturbations do nothing, drawn apart so that the rest of the world is the same without them."""
    order = np.random.default_rng([seed, 2]).permutation(n_perturbations)
    return order < round(share * n_perturbations)


def _draw_adjacency(modules: np.ndarray, coherence: float, rng: np.random.Generator) -> np.ndarray:
    """Sparse weights, about two edges a node: mostly within a module, a few across."""
    n_nodes = len(modules)
    same = modules[:, None] == modules[None, :]
    probability = np.where(same, 1.5, 0.25 * (1 - coherence)) * 2.0 / np.sqrt(n_nodes) / 4.0
    edges = np.triu(rng.uniform(size=(n_nodes, n_nodes)) < probability, k=1)
    weights = rng.choice([-1.0, 1.0], p=[0.3, 0.7], size=edges.shape) * rng.uniform(0.3, 0.7, edges.shape)
    # Nodes with many parents would dominate every cell; their incoming weights share a budget.
    parents = np.maximum(edges.sum(axis=0, keepdims=True), 1)
    return np.where(edges, weights / np.sqrt(parents), 0.0)


def _draw_loading(
    modules: np.ndarray, n_genes: int, coherence: float, rng: np.random.Generator
) -> np.ndarray:
    """Own gene, the responder genes of the module, and a few private targets."""
    n_nodes = len(modules)
    n_responders = n_genes - n_nodes
    n_modules = int(modules.max()) + 1
    members = rng.uniform(size=(n_modules, n_responders)) < 0.15
    programme = np.where(members, rng.normal(0.0, 0.14, members.shape), 0.0)
    private = np.where(
        rng.uniform(size=(n_nodes, n_responders)) < 0.03, rng.normal(0.0, 0.14, (n_nodes, n_responders)), 0.0
    )
    share = rng.normal(1.0, 0.5 * (1 - coherence), size=(n_nodes, 1))
    responders = share * programme[modules] + (1 - coherence) * private
    return np.hstack([0.4 * np.eye(n_nodes), responders])


def _draw_baseline(n_genes: int, rng: np.random.Generator) -> np.ndarray:
    logits = rng.normal(0.0, 1.1, n_genes)
    return logits - special.logsumexp(logits)


def _draw_pairs(nodes: np.ndarray, n_combinations: int, rng: np.random.Generator) -> list[str]:
    possible = len(nodes) * (len(nodes) - 1) // 2
    if n_combinations > possible:
        raise InputError(
            f"n_combinations={n_combinations} exceeds the {possible} pairs of {len(nodes)} perturbations"
        )
    rows, columns = np.triu_indices(len(nodes), k=1)
    chosen = rng.choice(possible, size=n_combinations, replace=False)
    return [f"{nodes[rows[i]]}+{nodes[columns[i]]}" for i in chosen]


def _draw_features(world: World, n_features: int, noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """Random projections of each node's total effect on the genes, plus noise."""
    effect = world.total_effect @ world.loading[:, len(world.nodes) :]
    projection = rng.normal(size=(effect.shape[1], n_features))
    signal = effect @ projection
    signal /= signal.std(axis=0, keepdims=True)
    values = signal + noise * rng.normal(size=signal.shape)
    columns = pd.Index([f"feature{i + 1}" for i in range(n_features)])
    return pd.DataFrame(values, index=pd.Index(world.nodes), columns=columns)
