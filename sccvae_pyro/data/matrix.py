"""The expression matrix as a stream: one walk for dense, CSR, CSC and backed matrices.

A backed matrix is never loaded whole. Rows are read in blocks, except from CSC, where only columns
are contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from sccvae_pyro.data.wording import suggestion
from sccvae_pyro.errors import InputError

BLOCK_VALUES = 2**22
"""Entries of a block, zeros included: 32 MB in double precision."""


def matrix_name(layer: str | None) -> str:
    """Name of the matrix as the user writes it."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def expression_matrix(adata: AnnData, layer: str | None = None) -> Any:
    """Matrix that holds the expression values, not copied.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed.
    layer
        Key of ``adata.layers``; ``None`` is ``adata.X``.

    Returns
    -------
    A NumPy array, a SciPy CSR or CSC matrix, or the backed counterpart of one; cells x genes.

    Raises
    ------
    InputError
        If there is no such layer, the matrix is absent, or its type cannot be streamed.
    """
    if layer is not None and layer not in adata.layers:
        raise InputError(f"adata.layers has no layer {layer!r}. {suggestion(layer, adata.layers, 'layers')}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        known = suggestion("counts", adata.layers, "layers")
        raise InputError(f"adata.X is absent. {known} Pass one as layer=.")
    _check_storage(matrix, matrix_name(layer))
    return matrix


def _check_storage(matrix: Any, name: str) -> None:
    layout = getattr(matrix, "format", "dense")
    if layout not in ("dense", "csr", "csc") or not hasattr(matrix, "dtype") or hasattr(matrix, "dask"):
        raise InputError(
            f"{name} is a {type(matrix).__name__}, which is not supported. Use a NumPy array, a CSR or CSC "
            "matrix, or an AnnData opened with backed='r'."
        )
    if matrix.dtype.kind == "b":
        raise InputError(
            f"{name} holds true and false: which genes were detected, not how many molecules. "
            "Pass the layer that holds the counts (layer=)."
        )
    if matrix.dtype.kind not in "iuf":
        raise InputError(
            f"{name} has dtype {matrix.dtype}, not numbers. Convert it: {name} = {name}.astype('float32')."
        )


@dataclass(frozen=True)
class Block:
    """A contiguous part of a matrix.

    Parameters
    ----------
    values
        The part itself, dense or sparse.
    row, column
        Where its first entry lies in the whole matrix.
    """

    values: Any
    row: int
    column: int

    @property
    def stored(self) -> np.ndarray:
        """Stored entries, in one dimension: all of a dense block, the non-zeros of a sparse one."""
        return self.values.data if sparse.issparse(self.values) else np.asarray(self.values).ravel()

    def position(self, entry: int) -> tuple[int, int]:
        """Row and column, in the whole matrix, of a stored entry."""
        if not sparse.issparse(self.values):
            row, column = divmod(entry, self.values.shape[1])
        else:
            major = int(np.searchsorted(self.values.indptr, entry, side="right")) - 1
            minor = int(self.values.indices[entry])
            row, column = (major, minor) if self.values.format == "csr" else (minor, major)
        return self.row + row, self.column + column


def blocks(matrix: Any, block_values: int = BLOCK_VALUES) -> Iterator[Block]:
    """Walk a matrix in contiguous parts: rows at a time, or columns at a time for CSC.

    Parameters
    ----------
    matrix
        What :func:`expression_matrix` returns.
    block_values
        Upper bound on the entries of a block, except that a block is never less than a row (column).

    Yields
    ------
    Block
    """
    n_rows, n_columns = matrix.shape
    if getattr(matrix, "format", "dense") == "csc":
        step = max(1, block_values // max(1, n_rows))
        for start in range(0, n_columns, step):
            yield Block(matrix[:, start : start + step], 0, start)
    else:
        step = max(1, block_values // max(1, n_columns))
        for start in range(0, n_rows, step):
            yield Block(matrix[start : start + step], start, 0)


@dataclass(frozen=True)
class Columns:
    """Chosen columns of a matrix on disk, in any order, read with the rows that are asked for.

    Parameters
    ----------
    matrix
        A backed matrix.
    chosen
        Positions of the columns.
    """

    matrix: Any
    chosen: np.ndarray

    def __getitem__(self, rows: Any) -> Any:
        return self.matrix[rows][:, self.chosen]


def add_row_sums(block: Block, totals: np.ndarray) -> None:
    """Add the row sums of a block to the totals of the whole matrix (rows), in double precision."""
    sums = np.asarray(block.values.sum(axis=1, dtype=np.float64)).ravel()
    totals[block.row : block.row + len(sums)] += sums


def row_sums(matrix: Any) -> np.ndarray:
    """Sum of each row (rows), streamed, in double precision."""
    totals = np.zeros(matrix.shape[0])
    for block in blocks(matrix):
        add_row_sums(block, totals)
    return totals


def select_rows(matrix: Any, chosen: np.ndarray) -> np.ndarray | sparse.csr_matrix:
    """Load the chosen rows (a boolean per row), streamed; dense stays dense, sparse becomes CSR."""
    if not hasattr(matrix, "format"):
        return np.concatenate([b.values[chosen[b.row : b.row + len(b.values)]] for b in blocks(matrix)])
    if matrix.format == "csc":
        return sparse.hstack([b.values[np.flatnonzero(chosen)] for b in blocks(matrix)], format="csr")
    parts = [b.values[np.flatnonzero(chosen[b.row : b.row + b.values.shape[0]])] for b in blocks(matrix)]
    return sparse.vstack(parts, format="csr")
