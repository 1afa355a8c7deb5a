"""From an AnnData to coded cells and minibatches.

A :class:`Coding` is what a model remembers of its training screen (genes, perturbations, covariate
levels); coding an AnnData with it gives a :class:`Screen`, and a screen gives :class:`Batch` es.
Sparse matrices stay sparse until the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor
from torch.utils.data import Dataset

from sccvae_pyro.data.checks import beyond_single, check_column, check_names, check_not_empty
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.matrix import BLOCK_VALUES, Columns, expression_matrix
from sccvae_pyro.data.schema import Schema, cell_guides, cell_labels, library_sizes, parse_targets
from sccvae_pyro.data.values import check_unchanged
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError


class Batch(NamedTuple):
    """Cells as the program reads them.

    ``x_cg`` cells x genes; ``library_c`` molecules of each cell; ``targets_cm`` codes of the cell's
    perturbations, padded with the number of perturbations; ``covariates_cv`` coded covariates; ``guides_c``
    code of each cell's guide, the number of guides for control cells and guides without a code.
    """

    x_cg: Tensor
    library_c: Tensor
    targets_cm: Tensor
    covariates_cv: Tensor
    guides_c: Tensor


@dataclass(frozen=True)
class Covariate:
    """How one column of ``obs`` becomes columns of numbers.

    Parameters
    ----------
    key
        Name of the column.
    levels
        Its categories, one indicator each; empty for a number.
    center, scale
        Mean and standard deviation that standardise a number.
    """

    key: str
    levels: tuple[str, ...] = ()
    center: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, key: str, column: pd.Series) -> Covariate:
        """Read the coding off the training cells."""
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            center, scale = float(column.mean()), float(column.std())
            if not scale > 0:
                raise InputError(
                    f"Covariate {key!r} has the same value in all training cells. "
                    "Leave it out of covariate_keys."
                )
            return cls(key, (), center, scale)
        return cls(key, tuple(sorted(column.astype(str).unique())))

    @property
    def width(self) -> int:
        """Number of coded columns."""
        return len(self.levels) or 1

    def code(self, column: pd.Series) -> np.ndarray:
        """Code a column, ``cells x width``.

        Raises
        ------
        InputError
            If it holds a level that training did not see.
        """
        if not self.levels:
            if beyond_single(pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)).any():
                raise InputError(
                    f"Column {self.key!r} of adata.obs must hold finite numbers, as in training."
                )
            return ((column.to_numpy(dtype=np.float32) - self.center) / self.scale)[:, None]
        codes = pd.Index(self.levels).get_indexer(column.astype(str))
        if (codes < 0).any():
            unseen = sorted(set(column.astype(str)[codes < 0]))
            raise InputError(
                f"Column {self.key!r} of adata.obs has levels that training did not see: {listing(unseen)}. "
                f"It knows {listing(self.levels)}; relabel these cells or train with them."
            )
        return np.eye(len(self.levels), dtype=np.float32)[codes]


@dataclass(frozen=True)
class Coding:
    """What a model remembers of its training screen.

    Parameters
    ----------
    schema
        What the columns mean.
    genes
        Measured genes, in order.
    perturbations
        Single perturbations with cells, sorted; their position is their code.
    labels
        Canonical labels seen in training, combinations included, control first.
    covariates
        Coding of each covariate.
    guides
        Guides of the perturbed cells, sorted; empty where guides are not labelled.
    """

    schema: Schema
    genes: tuple[str, ...]
    perturbations: tuple[str, ...]
    labels: tuple[str, ...]
    covariates: tuple[Covariate, ...]
    guides: tuple[str, ...] = ()

    @classmethod
    def of(cls, adata: AnnData) -> Coding:
        """Read the coding off a training screen that has been set up."""
        schema = Schema.of(adata)
        labels = [str(label) for label in cell_labels(adata, schema).cat.categories]
        perturbations = sorted(
            {target for label in labels for target in parse_targets(label, schema.control)}
        )
        for key in schema.covariate_keys:
            check_column(adata, key)
        covariates = tuple(Covariate.of(key, adata.obs[key]) for key in schema.covariate_keys)
        genes = tuple(adata.var_names.astype(str))
        return cls(
            schema, genes, tuple(perturbations), tuple(labels), covariates, _perturbing_guides(adata, schema)
        )

    @property
    def n_covariates(self) -> int:
        """Number of coded columns of all covariates."""
        return sum(covariate.width for covariate in self.covariates)

    def targets(self, labels: Sequence[str]) -> np.ndarray:
        """Codes of the perturbations of each label, ``labels x most targets``, padded with their number.

        Raises
        ------
        InputError
            If a label names a perturbation that training did not see.
        """
        code = {name: i for i, name in enumerate(self.perturbations)}
        parsed = [parse_targets(label, self.schema.control) for label in labels]
        if unknown := sorted({t for targets in parsed for t in targets if t not in code}):
            raise InputError(
                f"Perturbations {listing(unknown)} were not seen in training. "
                "Leave their cells out, or use predict, which handles unseen perturbations."
            )
        table = np.full((len(parsed), max(1, *map(len, parsed)) if parsed else 1), len(code))
        for row, targets in zip(table, parsed, strict=True):
            row[: len(targets)] = [code[t] for t in targets]
        return table

    def with_unseen(self, perturbations: Sequence[str]) -> Coding:
        """The same coding with perturbations that have no cells appended; codes of the seen ones stay."""
        return replace(self, perturbations=(*self.perturbations, *perturbations))

    def covariates_of(self, obs: pd.DataFrame) -> np.ndarray:
        """Coded covariates, ``cells x n_covariates``."""
        if missing := [c.key for c in self.covariates if c.key not in obs]:
            raise InputError(
                f"adata.obs lacks the covariate {listing(missing)} that the model was trained with."
            )
        coded = [c.code(obs[c.key]) for c in self.covariates]
        return np.concatenate([np.zeros((len(obs), 0), np.float32), *coded], axis=1).astype(np.float32)

    def guides_of(self, adata: AnnData, schema: Schema) -> np.ndarray:
        """Code of each cell's guide; the number of guides where it has none that training saw."""
        found = cell_guides(adata, schema)
        if found is None or not self.guides:
            return np.full(adata.n_obs, len(self.guides))
        codes = pd.Index(self.guides).get_indexer(found)
        return np.where(codes < 0, len(self.guides), codes)

    def screen(self, adata: AnnData) -> Screen:
        """Code the cells of an AnnData that has been set up like the training screen.

        Raises
        ------
        InputError
            If genes, perturbations or covariates do not fit.
        """
        schema = Schema.of(adata)
        check_not_empty(adata)
        check_names(adata.var_names, "gene", "var_names")
        if schema.kind != self.schema.kind:
            raise InputError(
                f"The model was trained on {self.schema.kind}, but these values are {schema.kind}."
            )
        if (schema.library_key is None) != (self.schema.library_key is None):
            raise InputError(
                "Library sizes must come from a column in these cells as in training, or in neither: "
                f"library_key is {schema.library_key!r} here, {self.schema.library_key!r} in training."
            )
        labels = cell_labels(adata, schema)
        matrix = _with_genes(expression_matrix(adata, schema.layer), adata.var_names, self.genes)
        return Screen(
            coding=self,
            matrix=matrix,
            library=library_sizes(adata, schema).astype(np.float32),
            labels=labels,
            targets=self.targets([str(label) for label in labels.cat.categories])[labels.cat.codes],
            covariates=self.covariates_of(adata.obs),
            guides=self.guides_of(adata, schema),
        )


def _perturbing_guides(adata: AnnData, schema: Schema) -> tuple[str, ...]:
    """Guides of the cells that are not control cells, sorted."""
    guides = cell_guides(adata, schema)
    if guides is None:
        return ()
    perturbed = (cell_labels(adata, schema) != schema.control).to_numpy()
    return tuple(sorted({str(guide) for guide in guides[perturbed]}))


@dataclass(frozen=True)
class Screen(Dataset[Batch]):
    """Coded cells; indexing with an array of rows gives a :class:`Batch`.

    Parameters
    ----------
    coding
        How the cells are coded.
    matrix
        Cells x genes: array, CSR, or backed.
    library
        Molecules of each cell.
    labels
        Canonical label of each cell, categorical.
    targets
        Codes of each cell's perturbations, padded.
    covariates
        Coded covariates.
    guides
        Code of each cell's guide.
    """

    coding: Coding
    matrix: Any
    library: np.ndarray
    labels: pd.Series
    targets: np.ndarray
    covariates: np.ndarray
    guides: np.ndarray

    def __len__(self) -> int:
        return len(self.library)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        return Batch(
            torch.from_numpy(self.rows(rows)),
            torch.from_numpy(self.library[rows]),
            torch.from_numpy(self.targets[rows]),
            torch.from_numpy(self.covariates[rows]),
            torch.from_numpy(self.guides[rows]),
        )

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Load expression of the rows, dense in single precision, ``rows x genes``."""
        if isinstance(self.matrix, np.ndarray | sparse.csr_matrix | sparse.csr_array):
            part = self.matrix[rows]
        else:  # files want increasing rows
            order = np.argsort(rows)
            part = self.matrix[rows[order]][np.argsort(order)]
        dense = part.toarray() if sparse.issparse(part) else np.asarray(part)
        return np.ascontiguousarray(dense, dtype=np.float32)

    @property
    def is_control(self) -> np.ndarray:
        """Which cells carry no perturbation."""
        return (self.targets == len(self.coding.perturbations)).all(axis=1)

    def log_expression(self, rows: np.ndarray) -> np.ndarray:
        """``log1p(CP10K)`` of the rows (values as they are where they are not counts), ``rows x genes``."""
        values = self.rows(rows)
        self._check_unchanged(values, rows)
        return (
            values
            if self.coding.schema.kind == "continuous"
            else np.asarray(log1p_cp10k(values, self.library[rows]))
        )

    def profiles(self) -> Profiles:
        """Mean and variance of log expression of each label, streamed; see :func:`profiles`."""
        labels = self.labels.cat.remove_unused_categories()
        return _pseudobulk(
            labels, self.coding.genes, lambda block: self.log_expression(np.arange(block.start, block.stop))
        )

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Walk the rows in order: their positions and the batch, its values checked."""
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            batch = self[chunk]
            self._check_unchanged(batch.x_cg.numpy(), chunk)
            yield chunk, batch

    def _check_unchanged(self, values: np.ndarray, rows: np.ndarray) -> None:
        check_unchanged(values, self.coding.schema.kind, self.labels.index[rows], pd.Index(self.coding.genes))


class Profiles(NamedTuple):
    """Pseudobulk of a screen.

    ``mean`` and ``var``: labels x genes, mean and variance over cells of ``log1p(CP10K)`` (of the
    values themselves where they are not counts); ``n``: cells of each label.
    """

    mean: pd.DataFrame
    var: pd.DataFrame
    n: pd.Series

    def without(self, label: str) -> Profiles:
        """All but one label; the same where the label is not among them."""
        return Profiles(*(table.drop(index=label, errors="ignore") for table in self))

    def with_variance_of(self, label: str) -> Profiles:
        """The same, labels of a single cell with the variance of this one: a cell cannot tell its own."""
        var = np.where(self.n.to_numpy()[:, None] > 1, self.var, self.var.loc[label])
        return self._replace(var=pd.DataFrame(var, self.var.index, self.var.columns))


def profiles(adata: AnnData) -> Profiles:
    """Mean and variance of log expression of each perturbation, streamed over blocks of cells.

    Parameters
    ----------
    adata
        Screen that has been set up, in memory or backed.

    Returns
    -------
    Profiles, indexed by canonical labels (control included) and gene names.
    """
    schema = Schema.of(adata)
    labels = cell_labels(adata, schema).cat.remove_unused_categories()
    matrix = _by_rows(expression_matrix(adata, schema.layer))
    library = library_sizes(adata, schema)

    def log_expression(block: slice) -> Any:
        part = matrix[block]
        check_unchanged(part, schema.kind, adata.obs_names[block], adata.var_names)
        return log1p_cp10k(part, library[block]) if schema.kind == "counts" else part

    return _pseudobulk(labels, adata.var_names.astype(str), log_expression)


def _pseudobulk(labels: pd.Series, genes: Sequence[str], log_expression: Callable[[slice], Any]) -> Profiles:
    """Accumulate sums and sums of squares, a block of cells at a time."""
    names, codes = [str(name) for name in labels.cat.categories], labels.cat.codes.to_numpy()
    total, square = np.zeros((len(names), len(genes))), np.zeros((len(names), len(genes)))
    step = max(1, BLOCK_VALUES // max(1, len(genes)))
    for start in range(0, len(labels), step):
        block = slice(start, min(start + step, len(labels)))
        part = log_expression(block)
        indicator = _indicator(codes[block], len(names))
        total += _dense(indicator @ part)
        square += _dense(indicator @ (part.multiply(part) if sparse.issparse(part) else np.square(part)))
    n = labels.value_counts().reindex(labels.cat.categories)
    count = n.to_numpy()[:, None]
    mean = total / count
    var = np.maximum(square - count * mean**2, 0) / np.maximum(count - 1, 1)
    frame = {"index": pd.Index(names), "columns": pd.Index(genes)}
    return Profiles(pd.DataFrame(mean, **frame), pd.DataFrame(var, **frame), n.set_axis(names))


def _indicator(codes: np.ndarray, n_labels: int) -> sparse.csr_matrix:
    n = len(codes)
    return sparse.csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(n_labels, n))


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def _by_rows(matrix: Any) -> Any:
    """Columns of a CSC matrix cannot be read a cell at a time: turn it round once."""
    return matrix.tocsr() if sparse.issparse(matrix) and matrix.format == "csc" else matrix


def _with_genes(matrix: Any, found: pd.Index, wanted: Sequence[str]) -> Any:
    """Put the columns in the model's order.

    Raises
    ------
    InputError
        If a gene of the model is not measured.
    """
    position = found.astype(str).get_indexer(list(wanted))
    if (position < 0).any():
        missing = [gene for gene, i in zip(wanted, position, strict=True) if i < 0]
        raise InputError(
            f"The model was trained on genes that this AnnData lacks: {listing(missing)}. "
            "Measure them, or train on the genes in common."
        )
    matrix = _by_rows(matrix)
    if len(wanted) == len(found) and (position == np.arange(len(found))).all():
        return matrix
    in_memory = isinstance(matrix, np.ndarray) or sparse.issparse(matrix)
    return matrix[:, position] if in_memory else Columns(matrix, position)
