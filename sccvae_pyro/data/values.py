"""Checks of the expression values and library sizes, in one streamed pass over the matrix."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro.data.checks import beyond_single, cells, is_number, warn
from sccvae_pyro.data.matrix import Block, add_row_sums, blocks, expression_matrix, matrix_name
from sccvae_pyro.errors import InputError

logger = logging.getLogger(__name__)

Kind = Literal["counts", "continuous"]

_LARGEST_LOG_VALUE = 20.0  # log2 of a million: no log-normalised value lies above


@dataclass
class Scan:
    """What one pass over the matrix tells.

    Parameters
    ----------
    totals
        Row sums, cells.
    largest
        Largest value.
    n_nonzero, n_fractional
        Number of values that are not zero, and that are not whole.
    first_fractional
        The first value that is not whole, in words.
    """

    totals: np.ndarray
    largest: float = 0.0
    n_nonzero: int = 0
    n_fractional: int = 0
    first_fractional: str = ""


def scan_values(adata: AnnData, layer: str | None) -> Scan:
    """Walk over the matrix once; refuse values that no kind of expression can have."""
    scan = Scan(totals=np.zeros(adata.n_obs))
    for block in blocks(expression_matrix(adata, layer)):
        stored = block.stored
        if stored.size == 0:
            continue
        _check_finite(block, adata, layer)
        _check_not_negative(block, adata, layer)
        fractional = _is_fractional(stored)
        if scan.n_fractional == 0 and fractional.any():
            scan.first_fractional = _describe(block, fractional, adata.obs_names, adata.var_names)
        scan.n_fractional += int(np.count_nonzero(fractional))
        scan.n_nonzero += int(np.count_nonzero(stored))
        scan.largest = max(scan.largest, float(stored.max()))
        add_row_sums(block, scan.totals)
    return scan


def _check_finite(block: Block, adata: AnnData, layer: str | None) -> None:
    infinite = beyond_single(block.stored)
    if infinite.any():
        raise InputError(
            f"{matrix_name(layer)} holds values that are not finite in single precision: "
            f"{_describe(block, infinite, adata.obs_names, adata.var_names)}. "
            "Drop that cell or gene, or mend the step that made it."
        )


def _check_not_negative(block: Block, adata: AnnData, layer: str | None) -> None:
    stored = block.stored
    if stored.min() < 0:
        raise InputError(
            f"{matrix_name(layer)} holds negative values: "
            f"{_describe(block, stored < 0, adata.obs_names, adata.var_names)}. Expression "
            "must be counts or log-normalised values: pass the layer that holds them (layer=)."
        )


def _is_fractional(values: np.ndarray) -> np.ndarray:
    return values != np.rint(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)


def _describe(block: Block, culprits: np.ndarray, cells: pd.Index, genes: pd.Index) -> str:
    """Name the first culprit: ``3.5 in cell 'c1', gene 'g7'``."""
    entry = int(np.argmax(culprits))
    row, column = block.position(entry)
    return f"{block.stored[entry]:g} in cell {cells[row]!r}, gene {genes[column]!r}"


def check_unchanged(values: Any, kind: Kind, cells: pd.Index, genes: pd.Index) -> None:
    """Refuse values that a screen of this kind cannot have had when it was set up.

    Parameters
    ----------
    values
        Cells x genes, dense or sparse.
    kind
        What :func:`sccvae_pyro.setup_anndata` recorded.
    cells, genes
        Names of the rows and columns.

    Raises
    ------
    InputError
        If a value is negative, not finite, or not whole where they were counts.
    """
    block = Block(values, 0, 0)
    stored = block.stored
    wrong = beyond_single(stored) | (stored < 0)
    if kind == "counts":
        wrong |= _is_fractional(stored)
    if wrong.any():
        were = "counts" if kind == "counts" else "log-normalised values"
        raise InputError(
            f"The values were {were} when setup_anndata was run and have changed since: "
            f"{_describe(block, wrong, cells, genes)}. Run setup_anndata again, with layer= naming the layer "
            f"that holds the {were}."
        )


# Counts or log-normalised values


def expression_kind(scan: Scan, adata: AnnData, layer: str | None) -> Kind:
    """Tell counts (all values whole) from log-normalised values (few are); refuse what lies between."""
    name = matrix_name(layer)
    if scan.n_nonzero == 0:
        raise InputError(f"Every value of {name} is zero. Pass the layer that holds the values (layer=).")
    if scan.n_fractional == 0:
        return "counts"
    if scan.n_fractional < 0.5 * scan.n_nonzero:
        raise InputError(
            f"{name} looks like counts, but {scan.n_fractional} of {scan.n_nonzero} values are not whole: "
            f"{scan.first_fractional}. Pass the raw counts (layer=), or round corrected ones: "
            f"{name} = numpy.rint({name})."
        )
    if scan.largest > _LARGEST_LOG_VALUE:
        _warn_not_logarithmic(scan, name)
    _warn_counts_elsewhere(scan, adata, layer)
    logger.info("%s is taken as log-normalised values (kind 'continuous').", name)
    return "continuous"


def _warn_not_logarithmic(scan: Scan, name: str) -> None:
    warn(
        f"{name} is neither counts nor log-normalised values: {scan.first_fractional}, and the largest value "
        f"is {scan.largest:g}. It is taken as it is (kind 'continuous'): pass raw counts, or take log1p."
    )


def _warn_counts_elsewhere(scan: Scan, adata: AnnData, layer: str | None) -> None:
    places = _places_with_counts(adata, layer)
    if places:
        warn(
            f"{matrix_name(layer)} is not counts ({scan.first_fractional}) and is taken as log-normalised "
            f"values, but raw counts seem to be in {' and in '.join(places)}. Pass those: they say more."
        )


def _places_with_counts(adata: AnnData, layer: str | None) -> list[str]:
    """Places other than the chosen one that look like raw counts, with how to pass them."""
    others = [other for other in (None, *adata.layers) if other != layer]
    matrices = {other: adata.X if other is None else adata.layers[other] for other in others}
    places = [
        f"{matrix_name(other)} (layer={other!r})"
        for other, matrix in matrices.items()
        if _looks_like_counts(matrix)
    ]
    if adata.raw is not None and _looks_like_counts(adata.raw.X):
        places.append("adata.raw (adata.layers['counts'] = adata.raw[:, adata.var_names].X; layer='counts')")
    return places


def _looks_like_counts(matrix: Any) -> bool:
    """Whether the first block holds whole, non-negative values beyond 0 and 1."""
    if np.dtype(getattr(matrix, "dtype", object)).kind not in "iuf":
        return False
    stored = next(blocks(matrix)).stored
    return bool(stored.size and stored.min() >= 0 and stored.max() > 1 and not _is_fractional(stored).any())


# Library sizes


def check_library(adata: AnnData, key: str | None, totals: np.ndarray, kind: Kind) -> None:
    """Refuse library sizes that cannot be, given the molecules counted in each cell (``totals``)."""
    if key is not None:
        check_library_column(adata, key)
        if kind == "counts":
            _check_at_least_counted(adata, key, totals)
        else:
            _warn_library_unused(key)
    elif kind == "counts":
        check_counted(adata, totals)


def check_counted(adata: AnnData, totals: np.ndarray) -> None:
    """Refuse cells without a molecule: their library size would be zero."""
    if not totals.all():
        raise InputError(
            f"No counts at all in {cells(adata.obs_names, totals == 0)}. Drop them, or pass the library size "
            "over the whole transcriptome (library_key=)."
        )


def check_library_column(adata: AnnData, key: str) -> None:
    """Refuse library sizes that are not positive numbers."""
    column, values = f"Library size adata.obs[{key!r}]", adata.obs[key]
    if not is_number(values):
        raise InputError(
            f"{column} has dtype {values.dtype}; it must be a number of molecules per cell. Convert it."
        )
    library = values.to_numpy(dtype=np.float64)
    wrong = beyond_single(library) | (library <= 0)
    if wrong.any():
        raise InputError(
            f"{column} must be positive and finite in single precision; it is not for "
            f"{cells(adata.obs_names, wrong)} ({library[np.argmax(wrong)]:g}). "
            "Drop those cells or correct it."
        )


def _check_at_least_counted(adata: AnnData, key: str, totals: np.ndarray) -> None:
    library = adata.obs[key].to_numpy(dtype=np.float64)
    small = library < totals * (1 - 1e-6)
    if small.any():
        cell = int(np.argmax(small))
        raise InputError(
            f"Library size adata.obs[{key!r}] is less than the molecules counted in "
            f"{cells(adata.obs_names, small)} ({library[cell]:g} < {totals[cell]:g}). Pass the total over "
            "the whole transcriptome (no logarithm, no size factor), or leave library_key out."
        )


def _warn_library_unused(key: str) -> None:
    warn(
        f"Library size adata.obs[{key!r}] is not used, because the values are not counts. "
        "Pass the layer with counts (layer=), or leave library_key out."
    )
