"""Prior sensitivity: the same screen under other beliefs, and what of the answers changes.

An answer that the data decide stays where a prior is swapped; one that moves rests on the prior (Roos et al.
2015, Bayesian Anal 10:321). Every fit ends in a local optimum besides, so that a change is to be held against
that of a mere restart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro.data.checks import check_counts, check_seed
from sccvae_pyro.data.labels import as_labels, parse_targets
from sccvae_pyro.data.schema import Schema, cell_labels
from sccvae_pyro.data.splits import split_cells
from sccvae_pyro.errors import InputError, InputWarning
from sccvae_pyro.inference import psis
from sccvae_pyro.inference.posterior import summarise
from sccvae_pyro.inference.spec import InferenceSpec
from sccvae_pyro.models.nodes import Free
from sccvae_pyro.models.spec import ModelSpec
from sccvae_pyro.sccvae import SCCVAE, Perturbation
from sccvae_pyro.stability import correlation

RESTART = "restart"
"""Name of the reference fitted from another seed."""

NAMELESS = "free nodes have no names, and NoGraph has no edges: there are none to compare"
CERTAIN = "something changed of which the reference is certain, such as an edge that it never draws"
GIVEN = "library sizes are given in one fit and generated in the other: densities are not of the same thing"

POINT = 1e-12
"""Length of an interval that is a point: two that are the same overlap wholly."""

Source = str | Path | Mapping[str, Any] | ModelSpec


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Answers under several specs, against those of the first, the reference.

    All tables have a column ``spec``: the reference, the other specs in their order, and ``"restart"``, the
    reference fitted from another seed. ``difference`` is to the reference, ``in_sds`` the same in units of
    the reference's posterior sd.

    Parameters
    ----------
    predictions
        A row for each spec and ``perturbation``. Of the mean predicted changes of all genes against those of
        the reference: ``rms``, root mean square of the differences, in units of a profile; ``in_sds``,
        the same over the root mean square of the reference's posterior sds, what nodes leave unexplained
        included, so that a change of what the program says is more of its own sds; ``correlation``.
        ``along``, ``along_q05``, ``along_q95``: how far the change goes along the reference's mean change,
        which is 1, with its 90 % posterior interval: below 1 where a prior shrinks. ``inside``: share of
        genes whose mean change lies in the reference's 90 % interval; ``overlap``: length that the two
        intervals of a gene share over the length that they cover, mean over genes.
    strengths
        A row for each spec and ``perturbation``: ``mean``, ``q05``, ``q95``, ``difference``, ``in_sds``. Size
        of strength and of direction trade off: judge by predictions whether a change matters.
    edges
        A row for each spec, ``source`` and ``target``: the same columns, and ``inclusion`` where a prior
        tells it; an edge that a fit never draws is zero there. Only edges between nodes that both fits name:
        those of free nodes have no names, and are left out. ``in_sds`` is missing where the reference is
        certain, as of an edge that it never draws.
    density
        A row for each spec. ``cells`` that were put aside, ``mean`` of their log predictive density, nats;
        ``difference``, mean over the same cells, with its standard error ``se``; ``unsure``: share of cells
        with a Pareto k above 0.7, whose density is uncertain. ``difference`` is missing where one spec is
        given library sizes and the other generates them.
    """

    predictions: pd.DataFrame
    strengths: pd.DataFrame
    edges: pd.DataFrame
    density: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Say of each spec how much of the answers changed, and how much a restart changes.

        Returns
        -------
        DataFrame indexed by ``spec`` and ``quantity``: ``predictions``, ``strengths``, ``edges`` and
        ``density``. Columns ``change``: root mean square of the differences to the reference, for ``density``
        their mean; ``in_sds``: the same in units of the reference's posterior sd, for ``density`` of its
        standard error; ``correlation`` with the reference, of predictions the median over perturbations;
        ``ratio`` of the change to that of the restart, a single one; ``largest``: what changed most; and
        ``note``, why something is missing.
        """
        others = list(self.density["spec"][1:])
        rows = {
            (spec, quantity): summarised(getattr(self, quantity).query("spec == @spec"))
            for spec in others
            for quantity, summarised in _SUMMARIES.items()
        }
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.index = pd.MultiIndex.from_tuples(rows, names=["spec", "quantity"])
        restart = table.loc[RESTART, "change"].reindex(table.index, level="quantity")
        table.insert(3, "ratio", (table["change"].abs() / restart.abs()).where(restart != 0))
        return table

    def __repr__(self) -> str:
        reference, *others = self.density["spec"]
        return f"Sensitivity of {reference!r} to {', '.join(map(repr, others))}\n{self.summary().round(3)}"


def sensitivity(
    adata: AnnData,
    specs: Mapping[str, Source],
    inference: InferenceSpec | Mapping[str, Any] | str | Path | None = None,
    *,
    perturbations: Sequence[Perturbation] | str = (),
    held_out: float = 0.1,
    n_samples: int = 200,
    seed: int = 0,
    **overrides: Any,
) -> Sensitivity:
    """Fit the same cells under several beliefs, and say what of the answers changes.

    Every spec is fitted to the same cells, from the same seed and with the same settings; the first once more
    from ``seed + 1``. A share of the cells of every label is put aside before, for the predictive density:
    those that a fit keeps for validation choose its best epoch.

    Parameters
    ----------
    adata
        Screen that has been set up: training perturbations alone.
    specs
        Specs by name, two or more; the first is the reference. Each as in :meth:`SCCVAE.from_spec`; a
        mapping after the first names only what differs from it: ``{"default": {}, "sparse": {"graph":
        "Horseshoe"}}``.
    inference, overrides
        How to fit, as in :meth:`SCCVAE.fit`.
    perturbations
        What to predict, seen or unseen; by default every perturbation of the screen, alone.
    held_out
        Share of the cells of every label to put aside.
    n_samples
        Posterior draws of each fit.
    seed
        Seed of the cells put aside, of the fits and of the draws.

    Returns
    -------
    Sensitivity

    Raises
    ------
    InputError
        If there are fewer than two specs or one cannot be read, the control is among the perturbations, no
        cells are put aside or too few left, or as in :meth:`SCCVAE.fit` and :meth:`SCCVAE.predict`.
    """
    if check_seed(seed) + 1 == 2**63:
        raise InputError(f"seed={seed} leaves none above it for the restart. Give a smaller one.")
    check_counts(2, n_samples=n_samples)
    control, labels = Schema.of(adata).control, as_labels(perturbations)
    if not all(parse_targets(label, control) for label in labels):
        raise InputError("perturbations names the control, which nothing changes. Leave it out.")
    known = _known(adata, specs, labels)
    train, cells = _put_aside(adata, held_out, seed)

    def answers(spec: ModelSpec, start: int = seed, toward: np.ndarray | None = None) -> _Answers:
        model = SCCVAE.from_spec(train, spec).fit(inference, **{"progress": False, **overrides}, seed=start)
        return _ask(model, labels or model.coding.perturbations, cells, n_samples, seed, toward)

    (name, spec), *others = known.items()
    reference = answers(spec)
    again = partial(answers, toward=reference.effects.layers["delta"])
    found = {name: reference, **{other: again(changed) for other, changed in others}}
    found[RESTART] = again(spec, seed + 1)
    return Sensitivity(*(_table(compare, found, reference) for compare in _COMPARISONS))


# What is fitted


def _known(
    adata: AnnData, specs: Mapping[str, Source], labels: Sequence[Perturbation]
) -> dict[str, ModelSpec]:
    """Read all specs, and ask whether each can speak of the labels, before the first fit."""
    if not isinstance(specs, Mapping) or len(specs) < 2:
        raise InputError("specs must map two or more names to a spec each; the first is the reference.")
    if RESTART in specs:
        raise InputError(
            f"{RESTART!r} is the reference fitted from another seed. Give the spec another name."
        )
    if odd := [name for name in specs if not isinstance(name, str)]:
        raise InputError(f"Names of specs are strings, not {odd[0]!r}. Give the spec another name.")
    known: dict[str, ModelSpec] = {}
    for name, source in specs.items():
        reference = next(iter(known.values()), None)
        try:
            model = _read(adata, source, reference)
            _check_labels(model, labels)
        except InputError as error:
            raise InputError(f"specs[{name!r}]: {error}") from None
        known[name] = model.spec
    return known


def _read(adata: AnnData, source: Source, reference: ModelSpec | None) -> SCCVAE:
    if reference is not None and source is None:
        raise InputError("None is no spec. Write {} for the reference's own, or what is to differ from it.")
    if reference is None or not isinstance(source, Mapping):
        return SCCVAE.from_spec(adata, source)
    ModelSpec.read(source)  # refuses what is no setting, and as a keyword would be another argument
    return SCCVAE.from_spec(adata, reference, **source)


def _check_labels(model: SCCVAE, labels: Sequence[Perturbation]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # said when they are predicted
        model._labels(labels or model.coding.perturbations)


def _put_aside(adata: AnnData, share: float, seed: int) -> tuple[AnnData, AnnData]:
    """Cells to fit, and cells of the same labels to ask for their density."""
    if not isinstance(share, Real) or not 0 < share < 1:
        raise InputError(f"held_out must be a share between 0 and 1, not {share!r}.")
    split = split_cells(adata, {"fitted": 1 - share, "put aside": share}, seed)
    if len(split.parts["put aside"]) < 2:
        raise InputError(f"held_out={share} puts fewer than two cells aside. Give a larger share.")
    fitted = split.take(adata, "fitted")
    if not cell_labels(fitted).duplicated().any():
        raise InputError(
            f"held_out={share} leaves a single cell of every label, and none to validate on. "
            "Give a smaller share."
        )
    return fitted, split.take(adata, "put aside")


# What is asked of each fit


class _Answers(NamedTuple):
    """What one fit says.

    ``effects``: prediction, with draws of ``along`` in ``obsm``; ``nodes``: their names, none where they are
    free; ``density``: nats by cell; ``library``: name of its prior.
    """

    effects: AnnData
    strengths: pd.DataFrame
    edges: pd.DataFrame
    nodes: list[str]
    density: pd.Series
    unsure: float
    library: str


def _ask(
    model: SCCVAE,
    perturbations: Sequence[Perturbation] | str,
    cells: AnnData,
    n_samples: int,
    seed: int,
    toward: np.ndarray | None,
) -> _Answers:
    """Ask a fit; how far its effects go along ``toward``, labels x genes, by default its own mean effects."""
    effects = model.predict(perturbations, n_samples=n_samples, return_draws=True, seed=seed)
    drawn = effects.obsm.pop("draws") - effects.var["control_mean"].to_numpy()
    toward = effects.layers["delta"] if toward is None else toward
    effects.obsm["along"] = np.einsum("lsg,lg->ls", drawn, toward) / np.square(toward).sum(1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # the share of such cells is in the table
        shapes = model.psis(cells, max(n_samples, psis.FEWEST), seed).cells["pareto_k"]
    return _Answers(
        effects,
        model.penetrance(n_samples, seed),
        model.edges(n_samples, seed).set_index(["source", "target"]),
        [] if isinstance(model.priors.nodes, Free) else model.nodes,
        model.log_density(cells, n_samples, seed),
        float((shapes > psis.HIGH).mean()),
        model.spec.library["name"],
    )


# How the answers of a fit compare with those of the reference

Compare = Callable[[_Answers, _Answers], pd.DataFrame]


def _table(compare: Compare, found: Mapping[str, _Answers], reference: _Answers) -> pd.DataFrame:
    parts = [compare(answers, reference).assign(spec=name) for name, answers in found.items()]
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return table[["spec", *table.columns.drop("spec")]]


def _predictions(found: _Answers, reference: _Answers) -> pd.DataFrame:
    own, other = found.effects.layers, reference.effects.layers
    rms = np.sqrt(np.square(own["delta"] - other["delta"]).mean(1))
    inside = (own["delta"] >= other["delta_q05"]) & (own["delta"] <= other["delta_q95"])
    along = summarise(found.effects.obsm["along"].T)
    return pd.DataFrame(
        {
            "rms": rms,
            "in_sds": rms / np.sqrt(np.square(other["delta_sd"]).mean(1)),
            "correlation": [correlation(*pair) for pair in zip(own["delta"], other["delta"], strict=True)],
            "along": along["mean"],
            "along_q05": along["q05"],
            "along_q95": along["q95"],
            "inside": inside.mean(1),
            "overlap": _overlap(own, other).mean(1),
        },
        index=found.effects.obs_names.rename("perturbation"),
    ).reset_index()


def _overlap(own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> np.ndarray:
    """Length that two intervals share over the length that they cover, labels x genes."""
    starts, ends = ([part[f"delta_{q}"] for part in (own, other)] for q in ("q05", "q95"))
    shared = np.minimum(*ends) - np.maximum(*starts)
    return (np.maximum(shared, 0.0) + POINT) / (np.maximum(*ends) - np.minimum(*starts) + POINT)


def _strengths(found: _Answers, reference: _Answers) -> pd.DataFrame:
    return _differences(found.strengths, reference.strengths)


def _edges(found: _Answers, reference: _Answers) -> pd.DataFrame:
    named = set(found.nodes) & set(reference.nodes)
    own, other = (
        edges.loc[[source in named and target in named for source, target in edges.index]]
        for edges in (found.edges, reference.edges)
    )
    every = own.index.union(other.index)
    return _differences(own.reindex(every, fill_value=0.0), other.reindex(every, fill_value=0.0))


def _differences(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Posterior summaries, and how far their means are from those of the reference."""
    table = own[[name for name in ("mean", "q05", "q95", "inclusion") if name in own]].copy()
    difference = own["mean"] - other["mean"]
    table.insert(3, "difference", difference)
    table.insert(4, "in_sds", difference / other["sd"].where(other["sd"] > 0))
    return table.reset_index()


def _density(found: _Answers, reference: _Answers) -> pd.DataFrame:
    difference = found.density - (reference.density if found.library == reference.library else np.nan)
    row = {
        "cells": len(difference),
        "mean": found.density.mean(),
        "difference": difference.mean(),
        "se": difference.std() / np.sqrt(len(difference)),
        "unsure": found.unsure,
    }
    return pd.DataFrame([row])


_COMPARISONS: tuple[Compare, ...] = (_predictions, _strengths, _edges, _density)


# What is said of one spec


def _root_mean_square(values: pd.Series) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _of_predictions(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "change": _root_mean_square(rows["rms"]),
        "in_sds": _root_mean_square(rows["in_sds"]),
        "correlation": rows["correlation"].median(),
        "largest": rows.loc[rows["rms"].idxmax(), "perturbation"],
        "note": "",
    }


def _of_strengths(rows: pd.DataFrame) -> dict[str, Any]:
    return _of_entries(rows, rows["perturbation"])


def _of_edges(rows: pd.DataFrame) -> dict[str, Any]:
    if rows.empty:
        return {"change": np.nan, "in_sds": np.nan, "correlation": np.nan, "largest": "", "note": NAMELESS}
    return _of_entries(rows, rows["source"] + " -> " + rows["target"])


def _of_entries(rows: pd.DataFrame, names: pd.Series) -> dict[str, Any]:
    mean, difference = rows["mean"].to_numpy(), rows["difference"].to_numpy()
    certain = (rows["in_sds"].isna() & (rows["difference"] != 0)).any()  # the reference never draws it
    return {
        "change": _root_mean_square(rows["difference"]),
        "in_sds": np.nan if certain else _root_mean_square(rows["in_sds"]),
        "correlation": correlation(mean, mean - difference),
        "largest": names.iloc[np.abs(difference).argmax()],
        "note": CERTAIN if certain else "",
    }


def _of_density(rows: pd.DataFrame) -> dict[str, Any]:
    difference, se = rows[["difference", "se"]].iloc[0]
    return {
        "change": difference,
        "in_sds": difference / se if se > 0 else np.nan,
        "correlation": np.nan,
        "largest": "",
        "note": GIVEN if np.isnan(difference) else "",
    }


_SUMMARIES: dict[str, Callable[[pd.DataFrame], dict[str, Any]]] = {
    "predictions": _of_predictions,
    "strengths": _of_strengths,
    "edges": _of_edges,
    "density": _of_density,
}
