"""What the columns of a screen mean: the one door through which a user's data enters.

:func:`setup_anndata` validates a screen and records its :class:`Schema` under ``adata.uns["sccvae"]``;
everything after it trusts the data and reads them through the functions here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sccvae_pyro.data import checks
from sccvae_pyro.data.labels import (
    SEPARATOR,
    canonical_label,
    canonical_labels,
    label_strings,
    parse_targets,
)
from sccvae_pyro.data.matrix import expression_matrix, row_sums
from sccvae_pyro.data.values import (
    Kind,
    check_counted,
    check_library,
    check_library_column,
    expression_kind,
    scan_values,
)
from sccvae_pyro.data.wording import listing, suggestion
from sccvae_pyro.errors import InputError

__all__ = [
    "SEPARATOR",
    "UNS_KEY",
    "Kind",
    "Schema",
    "canonical_label",
    "cell_guides",
    "cell_labels",
    "expression_matrix",
    "feature_table",
    "library_sizes",
    "parse_targets",
    "setup_anndata",
]

UNS_KEY = "sccvae"


@dataclass(frozen=True)
class Schema:
    """Which parts of an AnnData mean what.

    Parameters
    ----------
    perturbation_key
        Column of ``obs`` with the perturbation of each cell.
    control
        Label of unperturbed cells.
    kind
        ``"counts"`` (non-negative integers) or ``"continuous"`` (log-normalised values).
    layer
        Key of ``layers`` with the expression values; ``None`` is ``X``.
    library_key
        Column of ``obs`` with the library size; ``None`` is the row sum.
    guide_key
        Column of ``obs`` with the guide of each cell.
    covariate_keys
        Columns of ``obs`` to correct for.
    feature_key
        Key of a table of perturbation features in ``uns`` or ``varm``.
    """

    perturbation_key: str
    control: str
    kind: Kind
    layer: str | None = None
    library_key: str | None = None
    guide_key: str | None = None
    covariate_keys: tuple[str, ...] = ()
    feature_key: str | None = None

    @classmethod
    def of(cls, adata: AnnData) -> Schema:
        """Read the schema that :func:`setup_anndata` recorded.

        Raises
        ------
        InputError
            If the object is no AnnData, or has not been set up.
        """
        checks.check_anndata(adata)
        if UNS_KEY not in adata.uns:
            raise InputError(
                "This AnnData has not been set up. Call "
                "sccvae_pyro.setup_anndata(adata, perturbation_key=..., control=...) first."
            )
        return cls.from_uns(adata.uns[UNS_KEY])

    def to_uns(self) -> dict[str, str | list[str]]:
        """Plain dictionary of strings and lists of strings, which h5ad and zarr can store."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v}

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> Schema:
        """Inverse of :meth:`to_uns`, also after a round trip through a file.

        Raises
        ------
        InputError
            If the dictionary is not one that :meth:`to_uns` wrote.
        """
        names = {field.name for field in fields(cls)}
        needed = {"perturbation_key", "control", "kind"}
        if not isinstance(stored, Mapping) or not needed <= set(stored) <= names:
            raise InputError(
                f"adata.uns[{UNS_KEY!r}] holds {listing(stored)}, which setup_anndata did not write. "
                "Run sccvae_pyro.setup_anndata on this AnnData again."
            )
        values = {name: str(value) for name, value in stored.items() if name != "covariate_keys"}
        covariates = tuple(str(key) for key in stored.get("covariate_keys", ()))
        return cls(**cast(dict[str, Any], values), covariate_keys=covariates)


def setup_anndata(
    adata: AnnData,
    perturbation_key: str,
    control: str,
    layer: str | None = None,
    library_key: str | None = None,
    guide_key: str | None = None,
    covariate_keys: Sequence[str] = (),
    feature_key: str | None = None,
) -> None:
    """Validate a screen and record what its columns mean under ``adata.uns["sccvae"]``.

    Nothing else of ``adata`` changes. Backed matrices are read in blocks.

    Parameters
    ----------
    adata
        Cells x genes, dense, CSR, CSC or backed; counts, or log-normalised values.
    perturbation_key
        Column of ``obs``: one label per cell. Combinations are joined by ``+`` or given as lists of targets.
    control
        Label of unperturbed cells.
    layer
        Key of ``layers`` with the expression values; ``None`` is ``adata.X``.
    library_key
        Column of ``obs`` with the molecules counted in each cell over the whole transcriptome; needed
        for gene panels. ``None`` takes the row sum.
    guide_key
        Column of ``obs`` with the guide of each cell; a guide belongs to one perturbation.
    covariate_keys
        Columns of ``obs`` to correct for. Numeric columns are numbers, all others categories.
    feature_key
        Key of ``adata.uns`` with a DataFrame of perturbation features (index: perturbed genes), or of
        ``adata.varm``.

    Raises
    ------
    InputError
        If the screen cannot be used; the message names the culprit and the remedy.

    Warns
    -----
    InputWarning
        If the screen can be used, but probably not as the user believes.
    """
    optional = {
        "layer": layer,
        "library_key": library_key,
        "guide_key": guide_key,
        "feature_key": feature_key,
    }
    chosen = {name: value for name, value in optional.items() if value is not None}
    checks.check_strings(perturbation_key=perturbation_key, control=control, **chosen)
    covariates = checks.covariate_names(covariate_keys)
    checks.check_object(adata)
    checks.check_names(adata.var_names, "gene", "var_names")
    checks.check_names(adata.obs_names, "cell", "obs_names")
    for key in (perturbation_key, library_key, guide_key, *covariates):
        if key is not None:
            checks.check_column(adata, key)

    labels = checks.check_perturbations(adata, perturbation_key, control)
    if guide_key is not None:
        checks.check_guides(adata, guide_key, labels)
    checks.check_covariate_choice(covariates, perturbation_key, guide_key)
    for key in covariates:
        checks.check_covariate(adata, key, labels)
    if feature_key is not None:
        checks.check_feature_coverage(feature_table(adata, feature_key), feature_key, labels, control)

    scan = scan_values(adata, layer)
    kind = expression_kind(scan, adata, layer)
    check_library(adata, library_key, scan.totals, kind)
    schema = Schema(perturbation_key, control, kind, layer, library_key, guide_key, covariates, feature_key)
    adata.uns[UNS_KEY] = schema.to_uns()


def cell_labels(adata: AnnData, schema: Schema | None = None) -> pd.Series:
    """Canonical perturbation label of each cell.

    Returns
    -------
    Categorical series indexed by cell name; the categories are the control label, then the sorted rest.
    """
    schema = schema or Schema.of(adata)
    checks.check_column(adata, schema.perturbation_key)
    return canonical_labels(label_strings(adata.obs[schema.perturbation_key]), schema.control)


def cell_guides(adata: AnnData, schema: Schema | None = None) -> pd.Series | None:
    """Guide of each cell as a string, indexed by cell name; ``None`` where guides are not labelled."""
    schema = schema or Schema.of(adata)
    if schema.guide_key is None:
        return None
    checks.check_column(adata, schema.guide_key)
    return label_strings(adata.obs[schema.guide_key])


def library_sizes(adata: AnnData, schema: Schema | None = None) -> np.ndarray:
    """Molecules of each cell (cells): the library column, or the row sums where none was named.

    Raises
    ------
    InputError
        If the column is missing or holds anything but positive numbers, or a cell has no counts.
    """
    schema = schema or Schema.of(adata)
    if schema.library_key is not None:
        checks.check_column(adata, schema.library_key)
        check_library_column(adata, schema.library_key)
        return adata.obs[schema.library_key].to_numpy(dtype=np.float64)
    totals = row_sums(expression_matrix(adata, schema.layer))
    if schema.kind == "counts":
        check_counted(adata, totals)
    return totals


def feature_table(adata: AnnData, key: str) -> pd.DataFrame:
    """Perturbation features of a screen, as a validated copy.

    Parameters
    ----------
    adata
        Screen with a DataFrame in ``uns[key]`` (index: perturbed genes), or an entry ``varm[key]``.
    key
        Name of the table; ``uns`` is looked up first.

    Returns
    -------
    DataFrame of doubles; index: genes; columns: features, as strings.

    Raises
    ------
    InputError
        If there is no such table, or it cannot be used.
    """
    if key in adata.uns:
        name, table = f"adata.uns[{key!r}]", adata.uns[key]
        if not isinstance(table, pd.DataFrame):
            raise InputError(
                f"{name} is a {type(table).__name__}. "
                "Make it a DataFrame whose index names the perturbed genes."
            )
    elif key in adata.varm:
        name, stored = f"adata.varm[{key!r}]", adata.varm[key]
        table = pd.DataFrame(stored.toarray() if sparse.issparse(stored) else stored, index=adata.var_names)
    else:
        tables = [name for name in adata.uns if isinstance(adata.uns[name], pd.DataFrame)] + list(adata.varm)
        raise InputError(
            f"There is no feature table {key!r} in adata.uns or adata.varm. "
            f"{suggestion(key, tables, 'tables')}"
        )
    checks.check_feature_table(table, name)
    return table.astype(float).rename(index=str, columns=str)
