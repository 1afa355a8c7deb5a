"""Perturbation labels: what a user writes, the target genes it names, and its one canonical form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError

SEPARATOR = "+"


def as_labels(perturbations: object) -> list[str | Sequence[str]]:
    """Perturbations that are asked for as a list, from one label or several of them.

    Raises
    ------
    InputError
        If they are neither: a table or mapping has labels and something else.
    """
    if isinstance(perturbations, str):
        return [perturbations]
    is_table = isinstance(perturbations, Mapping | bytes) or getattr(perturbations, "ndim", 1) != 1
    if is_table or not isinstance(perturbations, Iterable):
        raise InputError(
            f"Perturbations are a list of labels such as ['A', 'A{SEPARATOR}B'], not {perturbations!r}."
        )
    return list(perturbations)


def parse_targets(label: str | Sequence[str], control: str) -> tuple[str, ...]:
    """Target genes of a perturbation label, in canonical (sorted) order.

    ``"B+A"``, ``"A + B"`` and ``("B", "A")`` are all ``("A", "B")``. The control label has no target and
    drops out of a combination, so that ``"A+control"`` is ``("A",)``.

    Parameters
    ----------
    label
        Targets joined by ``+``, or a sequence of them.
    control
        Label of unperturbed cells.

    Raises
    ------
    InputError
        If the label is empty, has an empty part, or names a target twice.
    """
    if not isinstance(label, str) and not (
        isinstance(label, Iterable) and all(isinstance(part, str) for part in label)
    ):
        raise InputError(
            f"A perturbation is a label such as 'A' or 'A{SEPARATOR}B', or a list of targets, not {label!r}"
        )
    joined = label if isinstance(label, str) else SEPARATOR.join(label)
    if joined.strip() == control:
        return ()
    parts = [part.strip() for part in joined.split(SEPARATOR)]
    if "" in parts:
        raise InputError(f"Perturbation {joined!r} has an empty target. Write 'A', or 'A{SEPARATOR}B'.")
    targets = sorted(part for part in parts if part != control)
    twice = [target for target, count in Counter(targets).items() if count > 1]
    if twice:
        raise InputError(f"Perturbation {joined!r} names {listing(twice)} twice. Name each target once.")
    return tuple(targets)


def canonical_label(targets: Sequence[str], control: str) -> str:
    """Label of target genes: joined by ``+``, or the control label where there is none."""
    return SEPARATOR.join(targets) if targets else control


def canonical_labels(labels: pd.Series, control: str) -> pd.Series:
    """Canonical label of each cell, as a categorical: the control label first, then the sorted rest."""
    codes, written = pd.factorize(labels)
    if (codes < 0).any():
        missing = [str(cell) for cell in labels.index[codes < 0]]
        raise InputError(
            f"Column {labels.name!r} of adata.obs has no label for {listing(missing)}. "
            "Drop these cells, or run setup_anndata again after labelling them."
        )
    canonical = np.array(
        [canonical_label(parse_targets(label, control), control) for label in written], dtype=object
    )
    perturbed = sorted(set(canonical) - {control})
    categories = [control, *perturbed] if control in canonical else perturbed
    values = pd.Categorical(canonical[codes], categories=categories)
    return pd.Series(values, index=labels.index, name=labels.name)


def label_strings(column: pd.Series) -> pd.Series:
    """Labels of a column of ``obs`` as strings: lists are joined by ``+``, missing ones stay missing."""
    values = column.astype(object)
    if isinstance(column.dtype, pd.CategoricalDtype):
        return values
    return values.map(_join)


def _join(label: object) -> object:
    return SEPARATOR.join(map(str, label)) if isinstance(label, list | tuple | np.ndarray) else label
