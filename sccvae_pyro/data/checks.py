"""Every check of a screen's names, labels, covariates and feature table, one function each.

A message names the column, gene, cell or value at fault and the way out.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from numbers import Integral

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro.data.labels import SEPARATOR, as_labels, canonical_labels, label_strings, parse_targets
from sccvae_pyro.data.wording import folded, listing, nearest, question, suggestion
from sccvae_pyro.errors import InputError, InputWarning

_USUAL_CONTROLS = ("control", "ctrl", "non-targeting", "NT", "scramble", "unperturbed")

_NOT_GENES = {
    *("control", "ctrl", "ctl", "nt", "ntc", "nontargeting", "negctrl", "negcontrol", "neg", "scramble"),
    *("scrambled", "unperturbed", "untreated", "mock", "wt", "wildtype", "safetargeting", "safeharbor"),
    *("none", "nan", "na", "n/a", "null", "unknown", "unassigned", "negative", "multiplet", "ambiguous"),
}
"""Names of controls and of cells without an assigned perturbation, in small letters without signs."""

_OTHER_SEPARATORS = ";,_|/&:"


# The object and its names


def check_anndata(adata: object) -> None:
    """Refuse what is not an AnnData."""
    if not isinstance(adata, AnnData):
        raise InputError(
            f"Expected an AnnData, not {type(adata).__name__}. "
            "Read a file with sccvae_pyro.datasets.read(path) first."
        )


def check_object(adata: AnnData) -> None:
    """Refuse what is not an AnnData of its own with at least one cell and one gene."""
    check_anndata(adata)
    if adata.is_view:
        remedy = "adata.to_memory()" if adata.isbacked else "adata.copy()"
        raise InputError(
            "This AnnData is a view of another one, and setting it up would write to it. "
            f"Make it an object of its own first: adata = {remedy}."
        )
    check_not_empty(adata)


def check_not_empty(adata: AnnData) -> None:
    """Refuse an AnnData without cells or genes."""
    if 0 in adata.shape:
        empty = "cells" if adata.n_obs == 0 else "genes"
        raise InputError(
            f"The AnnData has no {empty} (shape {adata.n_obs} x {adata.n_vars}). "
            "Check the filters that were applied to it."
        )


def check_names(names: pd.Index, what: str, attribute: str) -> None:
    """Refuse duplicated gene or cell names."""
    if names.has_duplicates:
        raise InputError(
            f"Duplicated {what} names in adata.{attribute}: {listing(names[names.duplicated()].unique())}. "
            f"Drop or merge them, or call adata.{attribute}_make_unique()."
        )


def check_column(adata: AnnData, key: str) -> None:
    """Refuse a column that ``obs`` does not have."""
    if key not in adata.obs:
        raise InputError(f"adata.obs has no column {key!r}. {suggestion(key, adata.obs.columns, 'columns')}")
    n = list(adata.obs.columns).count(key)
    if n > 1:
        raise InputError(
            f"adata.obs has {n} columns named {key!r}. Keep one of them: "
            "adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]."
        )


# Arguments


def check_strings(**settings: object) -> None:
    """Refuse settings that are not strings."""
    for name, value in settings.items():
        if not isinstance(value, str):
            what = "label of unperturbed cells" if name == "control" else "name"
            raise InputError(f"{name} must be a string, not {value!r}. Pass one {what}, as adata writes it.")


def covariate_names(keys: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the covariates; refuse what is not a string or several of them."""
    names = (keys,) if isinstance(keys, str) else tuple(keys) if isinstance(keys, Iterable) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise InputError(f"covariate_keys must be names of columns, not {keys!r}. Pass a list, [] for none.")
    return names


def check_seed(seed: int) -> int:
    """Seed as a number of Python; refuse what no generator takes."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, not {seed!r}.")
    return int(seed)


def check_seeds(seeds: object) -> list[int]:
    """Seeds as a list of numbers of Python; refuse none, and what is not several of them."""
    if not isinstance(seeds, Iterable) or getattr(seeds, "ndim", 1) == 0:
        raise InputError(f"seeds must be several whole numbers, not {seeds!r}. Pass a list, or range(100).")
    found = [check_seed(seed) for seed in seeds]
    if not found:
        raise InputError(f"seeds names none: {seeds!r}. Pass one for each replicate, as in range(100).")
    return found


def check_counts(least: int = 1, **counts: int) -> None:
    """Refuse numbers of draws, cells or components that are not whole, or below the least."""
    for name, value in counts.items():
        if not (isinstance(value, Integral) and not isinstance(value, bool) and value >= least):
            raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}.")


def check_unseen(unseen: object, control: str) -> list[str]:
    """Genes to be predicted one by one; refuse what is no list of them, the control and combinations."""
    if not isinstance(unseen, Iterable):
        raise InputError(f"unseen must be a list of genes, not {unseen!r}. Pass [] for none.")
    targets = [(label, parse_targets(label, control)) for label in as_labels(unseen)]
    for label, genes in targets:
        if not genes:
            raise InputError(f"unseen names {label!r}, but the control is no perturbation. Leave it out.")
        if len(genes) > 1:
            raise InputError(f"unseen takes single genes only, not {label!r}. Pass {list(genes)}.")
    return [gene for _, (gene,) in targets]


# Perturbations and guides


def check_perturbations(adata: AnnData, key: str, control: str) -> pd.Series:
    """Run every check of the perturbation column; return the canonical label of each cell."""
    column = f"adata.obs[{key!r}]"
    written = label_strings(adata.obs[key])
    _check_labels(written, column)
    _check_spelling(written.unique(), column)
    labels = canonical_labels(written, control)
    _check_spelling({control, *_targets(labels, control)}, column)
    _check_control(labels, control, column)
    _warn_lone_cells(labels, column)
    _warn_not_genes(labels, control, column)
    _warn_other_separators(labels, control, column)
    return labels


def _check_labels(labels: pd.Series, column: str) -> None:
    """Refuse labels that are missing, blank or not strings."""
    missing = labels.isna().to_numpy()
    if missing.any():
        raise InputError(
            f"{column} is missing (NaN) for {cells(labels.index, missing)}. "
            f"Drop them: adata = adata[{column}.notna()].copy()."
        )
    other = ~labels.map(lambda label: isinstance(label, str)).to_numpy(dtype=bool)
    if other.any():  # before they are counted, which sets and dictionaries cannot be
        label = labels.iloc[int(np.argmax(other))]
        raise InputError(
            f"{column} holds {label} ({type(label).__name__}); labels must be strings. "
            f"Convert them: {column} = {column}.astype(str)."
        )
    for label in labels.unique():
        if label.strip().casefold() in ("", "nan", "<na>"):
            culprits = (labels == label).to_numpy()
            raise InputError(
                f"{column} holds the empty label {label!r} for {cells(labels.index, culprits)}. "
                "Drop those cells or give them their label."
            )


def _check_spelling(names: Iterable[str], column: str) -> None:
    """Refuse names that differ only by case or blanks."""
    spellings = defaultdict(list)
    for name in sorted(names, key=lambda name: (len(name), name)):
        spellings[folded(name)].append(name)
    alike = [same for same in spellings.values() if len(same) > 1]
    if alike:
        pairs = "; ".join(" / ".join(map(repr, same)) for same in alike[:6])
        keep, *others = alike[0]
        raise InputError(
            f"{column} holds names that differ only by case or blanks: {pairs}. Give each one spelling: "
            f"{column} = {column}.astype(str).replace({dict.fromkeys(others, keep)})."
        )


def _targets(labels: pd.Series, control: str) -> list[str]:
    """Genes that any of the labels targets, sorted."""
    return sorted({target for label in labels.cat.categories for target in parse_targets(label, control)})


def _check_control(labels: pd.Series, control: str, column: str) -> None:
    known = list(labels.cat.categories)
    if control not in known:
        near = [name for usual in (control, *_USUAL_CONTROLS) for name in nearest(usual, known)]
        raise InputError(
            f"No cell of {column} carries the control label {control!r}. {question(near)}The labels are "
            f"{listing(known, limit=12)}. Pass the one of unperturbed cells as control=."
        )
    if len(known) == 1:
        raise InputError(
            f"Every cell of {column} is a control ({control!r}), so there is no perturbation to learn. "
            "Check the column, and the filters that were applied to the cells."
        )


def _warn_lone_cells(labels: pd.Series, column: str) -> None:
    counts = labels.value_counts()
    lone = sorted(counts.index[counts == 1])
    if lone:
        warn(
            f"Labels of {column} with a single cell ({len(lone)}): {listing(lone)}. One cell cannot tell an "
            "effect from noise; their intervals will be wide. Drop these cells unless that is meant."
        )


def _warn_not_genes(labels: pd.Series, control: str, column: str) -> None:
    """Warn of perturbations whose name says that there is none: further controls, unassigned cells."""
    names = [target for target in _targets(labels, control) if _plain(target) in _NOT_GENES]
    if names:
        counted = ", ".join(f"{name!r} ({_n_cells(name, labels, control)} cells)" for name in names)
        warn(
            f"{column} holds labels that name no gene, beside the control {control!r}: {counted}. They are "
            f"taken as perturbed genes. Give controls the one label, {column} = {column}.astype(str)"
            f".replace({{{names[0]!r}: {control!r}}}), and drop cells without an assignment, "
            f"adata = adata[{column} != {names[0]!r}].copy()."
        )


def _n_cells(target: str, labels: pd.Series, control: str) -> int:
    counts = labels.value_counts()
    return sum(int(n) for label, n in counts.items() if target in parse_targets(str(label), control))


def _plain(name: str) -> str:
    """Name without case, dashes and a number behind a dash: ``nontargeting`` for ``Non-Targeting_3``.

    A number behind a letter stays: WT1 is a gene.
    """
    return re.sub(r"[-_]\d+$", "", folded(name)).replace("-", "").replace("_", "")


def _warn_other_separators(labels: pd.Series, control: str, column: str) -> None:
    """Warn of targets that are other labels joined by another sign than ``+``."""
    known = {control, *_targets(labels, control)}
    for sign in _OTHER_SEPARATORS:
        joined = [name for name in sorted(known - {control}) if sign in name and _parts(name, sign) <= known]
        if joined:
            warn(
                f"Labels of {column} look like combinations joined by {sign!r} ({len(joined)}): "
                f"{listing(joined, limit=3)}. They are taken as single genes. Join targets by {SEPARATOR!r}: "
                f"{column} = {column}.astype(str).str.replace({sign!r}, {SEPARATOR!r}, regex=False)."
            )


def _parts(name: str, sign: str) -> set[str]:
    return {part.strip() for part in name.split(sign)}


def check_guides(adata: AnnData, key: str, labels: pd.Series) -> None:
    """Refuse guides that are missing, spelt in several ways, or shared by perturbations."""
    column = f"adata.obs[{key!r}]"
    guides = label_strings(adata.obs[key])
    _check_labels(guides, column)
    _check_spelling(guides.unique(), column)
    pairs = pd.DataFrame({"guide": guides, "label": labels.astype(str)}).drop_duplicates()
    shared = pairs["guide"][pairs["guide"].duplicated()]
    if len(shared):
        guide = shared.iloc[0]
        raise InputError(
            f"Guide {guide!r} of {column} occurs with several perturbations: "
            f"{listing(pairs['label'][pairs['guide'] == guide])}. A guide belongs to one perturbation: "
            f"correct the labels, or name all guides of a cell with several, as in 'guide1{SEPARATOR}guide2'."
        )
    _check_not_identifier(guides, column)


# Covariates


def check_covariate_choice(keys: Sequence[str], perturbation_key: str, guide_key: str | None) -> None:
    """Refuse covariates that are named twice or are the perturbation itself."""
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise InputError(f"covariate_keys names {listing(twice)} twice. Name each covariate once.")
    taken = [key for key in keys if key in (perturbation_key, guide_key)]
    if taken:
        raise InputError(
            f"covariate_keys names {listing(taken)}, the column of perturbations or guides; correcting for "
            "it would remove the effects. Leave it out of covariate_keys."
        )


def check_covariate(adata: AnnData, key: str, labels: pd.Series) -> None:
    """Refuse a covariate that is missing, infinite, constant, different for every cell, or the label anew."""
    values, column = adata.obs[key], f"adata.obs[{key!r}]"
    missing = values.isna().to_numpy()
    if missing.any():
        raise InputError(
            f"Covariate {column} is missing (NaN) for {cells(values.index, missing)}. "
            "Fill it, drop those cells, or leave it out of covariate_keys."
        )
    if not values.map(lambda value: isinstance(value, Hashable)).all():
        raise InputError(f"Covariate {column} holds lists or tables. Give one number or name for each cell.")
    if values.nunique() == 1:
        raise InputError(
            f"Covariate {column} is constant ({values.iloc[0]}), so it explains nothing. "
            "Leave it out of covariate_keys."
        )
    if is_number(values):
        _check_finite(values, column)
    else:
        _check_not_identifier(values, f"Covariate {column}")
    pairs = pd.DataFrame({"value": values, "label": labels.astype(str)}).drop_duplicates()
    if len(pairs) == values.nunique() == labels.nunique():
        raise InputError(
            f"Covariate {column} tells the perturbations apart one by one, so that correcting for it would "
            "remove their effects. Leave it out of covariate_keys."
        )


def _check_finite(values: pd.Series, column: str) -> None:
    infinite = beyond_single(values.to_numpy(dtype=float))
    if infinite.any():
        raise InputError(
            f"Covariate {column} is infinite, or too large for single precision, for "
            f"{cells(values.index, infinite)}. Correct it."
        )


def _check_not_identifier(values: pd.Series, column: str) -> None:
    if values.nunique() == len(values):
        raise InputError(
            f"{column} has a level of its own for each of the {len(values)} cells, so it groups nothing. "
            "Pass a column whose levels are shared by cells."
        )


# The feature table


def check_feature_table(table: pd.DataFrame, name: str) -> None:
    """Refuse a feature table that is not one row of finite numbers per gene.

    Parameters
    ----------
    table
        Index: perturbed genes; columns: features.
    name
        What messages call the table.

    Raises
    ------
    InputError
        If the table is empty, has duplicated rows or columns, or holds anything but finite numbers.
    """
    check_is_table(table, name)
    if 0 in table.shape:
        raise InputError(
            f"{name} is empty (shape {table.shape}). "
            "It needs a row per perturbed gene and a column per feature."
        )
    for axis, names in (("rows", table.index), ("columns", table.columns)):
        if names.hasnans:
            raise InputError(f"{name} has {axis} without a name (NaN). Name or drop them.")
        written = names.map(str)
        if written.has_duplicates:
            twice = listing(written[written.duplicated()].unique())
            raise InputError(f"{name} has duplicated {axis}: {twice}. Keep one of each.")
    text = [column for column, dtype in table.dtypes.items() if not _is_real(dtype)]
    if text:
        raise InputError(f"{name} has columns that are not numbers: {listing(text)}. Drop or encode them.")
    rows, columns = np.nonzero(beyond_single(table.to_numpy(dtype=float)))
    if len(rows):
        raise InputError(
            f"{name} holds NaN or infinite values in {len(set(rows))} of {len(table)} rows (single precision "
            f"ends at {np.finfo(np.float32).max:.0e}), the first is row "
            f"{str(table.index[rows[0]])!r}, column {str(table.columns[columns[0]])!r}. Leave out the rows "
            "of genes without features; they are then reported as not predictable."
        )


def check_feature_coverage(table: pd.DataFrame, key: str, labels: pd.Series, control: str) -> None:
    """Refuse a feature table that lacks a perturbed gene of the screen."""
    targets = _targets(labels, control)
    missing = [target for target in targets if target not in table.index]
    if missing:
        near = nearest(missing[0], list(table.index), n=1)
        hint = f" (is {near[0]!r} the row of {missing[0]!r}?)" if near else ""
        raise InputError(
            f"The feature table {key!r} has no row for {len(missing)} of {len(targets)} perturbed genes: "
            f"{listing(missing)}{hint}. Add their rows, or drop the cells that carry these perturbations."
        )


def check_is_table(table: object, name: str) -> None:
    """Refuse what is not a DataFrame."""
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"{name} must be a DataFrame of genes x features, not {type(table).__name__}.")


def _is_real(dtype: object) -> bool:
    return pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


# Shared by all checks


def beyond_single(values: np.ndarray) -> np.ndarray:
    """Which values are not numbers, or infinite in the single precision that the model computes in."""
    return ~(np.abs(values) <= np.finfo(np.float32).max)


def is_number(values: pd.Series) -> bool:
    """Whether a column holds numbers; booleans are categories."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def cells(names: pd.Index, culprits: np.ndarray) -> str:
    """How many cells are at fault and which is the first: ``2 of 90 cells, the first is 'c7'``."""
    return f"{culprits.sum()} of {len(names)} cells, the first is {str(names[int(np.argmax(culprits))])!r}"


def warn(message: str) -> None:
    """Warn at the line that called ``setup_anndata``, which is two checks above."""
    warnings.warn(message, InputWarning, stacklevel=5)
