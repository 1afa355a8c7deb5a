"""The result of :func:`sccvae_pyro.evaluate.score`: scores of every perturbation, and tables of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError
from sccvae_pyro.evaluate import calibration, metrics
from sccvae_pyro.evaluate.baselines import TRIVIAL
from sccvae_pyro.evaluate.calibration import LEVELS

HELD_OUT, TRUTH = "held-out", "truth"
"""What predictions are compared with: means of held-out cells, or noiseless means."""

CEILING = "noise ceiling"
"""Name of the ceiling among the methods of a table."""

_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Metric:
    """What a row of a score table is.

    Parameters
    ----------
    name
        Name in the tables.
    better
        ``"higher"``, ``"lower"``, or ``"nominal"`` for what should meet a stated value or only describes.
    meaning
        One line for a reader.
    """

    name: str
    better: Literal["higher", "lower", "nominal"]
    meaning: str


def percent(level: float) -> str:
    """Write a level as it stands in the names of metrics: 0.9 is ``90``."""
    return f"{round(100 * level)}"


TOP_EXPRESSED, TOP_DE = "_top1000", "_de20"
"""Suffixes of metrics over a part of the genes."""

_SUBSETS = {
    "": "all genes",
    TOP_EXPRESSED: "the 1,000 genes most expressed in control cells",
    TOP_DE: "at most 20 top DE genes",
}
_ERRORS = {"mse": "mean squared error", "rmse": "root mean squared error", "mae": "mean absolute error"}
_REFERENCES = {"pearson_delta": "control", "pearson_systema": "the mean training perturbation"}


def _catalogue() -> Iterator[Metric]:
    for error, words in _ERRORS.items():
        for suffix, genes in _SUBSETS.items():
            yield Metric(error + suffix, "lower", f"{words} of the mean profile, {genes}")
    for name, reference in _REFERENCES.items():
        for suffix in ("", TOP_DE):
            meaning = f"correlation of differences to {reference}, {_SUBSETS[suffix]}"
            yield Metric(name + suffix, "higher", meaning)
    yield Metric("wmse", "lower", "squared error weighted towards genes that set the perturbation apart")
    yield Metric("weighted_r2", "higher", "R2 of differences to the mean training perturbation, weighted so")
    yield Metric("centroid_accuracy", "higher", "share of other perturbations farther than the right one")
    yield Metric("energy_distance", "lower", "energy distance of predicted to held-out cells")
    yield Metric("mmd2", "lower", "squared maximum mean discrepancy of predicted to held-out cells")
    yield Metric("crps", "lower", "continuous ranked probability score of the mean profile, per gene")
    yield Metric("energy_score", "lower", "energy score of the mean profile, all genes together")
    for level in map(percent, LEVELS):
        yield Metric(f"coverage_{level}", "nominal", f"share of gene means inside their {level} % interval")
    for level in map(percent, LEVELS):
        yield Metric(f"width_{level}", "nominal", f"mean width of the {level} % intervals")
    yield Metric("spread", "nominal", "mean predicted standard deviation of the mean profile")
    yield Metric("spread_error_genes", "higher", "rank correlation of spread and actual error, over genes")
    yield Metric("spread_error", "higher", "rank correlation of spread and RMSE, over perturbations")
    yield Metric("aurc", "lower", "RMSE of what is kept when the least certain are given up, averaged")
    yield Metric("cell_crps", "lower", "continuous ranked probability score of single cells, per gene")
    for level in map(percent, LEVELS):
        yield Metric(f"cell_coverage_{level}", "nominal", f"share of cells inside their {level} % interval")


METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _catalogue()})
"""Every metric under its name, in the order of the tables."""


@dataclass(frozen=True)
class Scores:
    """Scores of several methods on the same perturbations.

    Parameters
    ----------
    per_perturbation
        Tidy: ``target`` ("held-out" or "truth"), ``method``, ``perturbation``, ``metric``, ``value``, and
        ``n``, the held-out cells behind the value (missing for the truth).
    ceiling
        Tidy: ``perturbation``, ``metric``, ``value``; what the true mean would score on the held-out cells,
        estimated from halves of them, see :func:`~sccvae_pyro.evaluate.score.score`.
    pit
        Histograms of the probability integral transform: ``target``, ``method``, ``of`` ("means" or "cells"),
        ``low``, ``high``, ``share``.
    n_bootstrap, seed
        Number and seed of the resamples of perturbations.
    """

    per_perturbation: pd.DataFrame
    ceiling: pd.DataFrame
    pit: pd.DataFrame
    n_bootstrap: int = 1000
    seed: int = 0

    def table(self, reference: str = "perturbed mean") -> pd.DataFrame:
        """Mean over perturbations of every metric, with 95 % intervals.

        Parameters
        ----------
        reference
            Method whose scores are subtracted for the paired differences.

        Returns
        -------
        DataFrame indexed by target and metric, with columns (method, statistic). The statistics are ``mean``,
        ``low``, ``high`` and, paired over perturbations, ``difference``, ``difference_low``,
        ``difference_high``. The noise ceiling stands among the methods. See :data:`METRICS` for the rows.
        """
        return _by_method(self._long_table(reference))

    def paired(self, reference: str) -> pd.DataFrame:
        """Mean paired difference of each method to a reference method, with 95 % intervals.

        Returns
        -------
        DataFrame indexed by target and metric, with columns (method, ``difference`` / ``low`` / ``high``).

        Raises
        ------
        InputError
            If there is no such method.
        """
        return _by_method(_summarise(self._differences(reference), "difference", "low", "high"))

    def gap_closed(self) -> pd.DataFrame:
        """Share of the gap from the better trivial baseline to the noise ceiling that each method closes.

        The trivial baselines are "control" and "perturbed mean". Metrics in which the better of them
        already reaches the ceiling are left out.

        Returns
        -------
        DataFrame indexed by metric, with columns (method, ``share`` / ``low`` / ``high``).
        """
        return _by_method(self._long_gap_closed())

    def risk_coverage(self) -> pd.DataFrame:
        """RMSE of the perturbations that are kept when the least certain are given up.

        Returns
        -------
        Tidy DataFrame: ``target``, ``method``, ``coverage``, ``risk``; only methods with uncertainty.
        """
        curves = [pd.DataFrame(columns=["target", "method", "coverage", "risk"])]
        for target, method, spread, error in self._spreads_and_errors():
            risk = calibration.risk_coverage(spread, error)
            coverage = np.arange(1, len(risk) + 1) / len(risk)
            curves.append(
                pd.DataFrame({"target": target, "method": method, "coverage": coverage, "risk": risk})
            )
        return pd.concat(curves[1:] or curves, ignore_index=True)

    def to_csv(self, directory: str | os.PathLike[str], reference: str = "perturbed mean") -> None:
        """Write all tables to a folder; each file appears whole or not at all.

        The files are ``table.csv`` (a row per target, metric and method), ``per_perturbation.csv``,
        ``ceiling.csv``, ``gap_closed.csv``, ``pit.csv`` and ``risk_coverage.csv``.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tables = {
            "table": self._long_table(reference).reset_index(),
            "per_perturbation": self.per_perturbation,
            "ceiling": self.ceiling,
            "gap_closed": self._long_gap_closed().reset_index(),
            "pit": self.pit,
            "risk_coverage": self.risk_coverage(),
        }
        for name, table in tables.items():
            _write_csv(table, folder / f"{name}.csv")

    def _long_table(self, reference: str) -> pd.DataFrame:
        means = _summarise(self._replicates, "mean", "low", "high")
        names = ("difference", "difference_low", "difference_high")
        return means.join(_summarise(self._differences(reference), *names))

    def _long_gap_closed(self) -> pd.DataFrame:
        replicates = self._replicates.loc[HELD_OUT]
        shares = [replicates.iloc[:0]]
        for metric in self.ceiling["metric"].unique():
            sign = 1.0 if METRICS[metric].better == "higher" else -1.0
            scores = replicates.xs(metric, level="metric", drop_level=False)
            row_of = {method: row for (_, method), row in zip(scores.index, scores.to_numpy(), strict=True)}
            trivial = max((row_of[name] for name in TRIVIAL), key=lambda row: sign * row[0])
            ceiling = row_of[CEILING]
            if sign * (ceiling[0] - trivial[0]) > 0:
                methods = scores.drop(index=[CEILING, *TRIVIAL], level="method")
                closed = metrics.gap_closed(methods.to_numpy(), trivial, ceiling)
                shares.append(pd.DataFrame(closed, index=methods.index))
        return _summarise(pd.concat(shares[1:] or shares), "share", "low", "high")

    @cached_property
    def _values(self) -> pd.DataFrame:
        """One row per target, metric and method, one column per perturbation."""
        ceiling = self.ceiling.assign(target=HELD_OUT, method=CEILING)
        tidy = pd.concat([self.per_perturbation.drop(columns="n"), ceiling])
        wide = tidy.pivot(index=["target", "metric", "method"], columns="perturbation", values="value")
        return _in_order(wide, tidy["method"].unique())

    @cached_property
    def _replicates(self) -> pd.DataFrame:
        """Every row of ``_values`` in summary: column 0 is the estimate, the others are resamples."""
        values = self._values
        n = values.shape[1]
        resamples = np.random.default_rng(self.seed).integers(n, size=(self.n_bootstrap, n))
        chosen = np.vstack([np.arange(n), resamples])
        parts = [pd.DataFrame(_resampled_means(values.to_numpy(), chosen), index=values.index)]
        for target, method, spread, error in self._spreads_and_errors():
            risk = calibration.risk_coverage(spread[chosen], error[chosen])
            rows = {
                (target, "spread_error", method): calibration.spearman(spread[chosen], error[chosen]),
                (target, "aurc", method): risk.mean(axis=1),
            }
            index = pd.MultiIndex.from_tuples(rows, names=values.index.names)
            parts.append(pd.DataFrame(list(rows.values()), index=index))
        return _in_order(pd.concat(parts), values.index.unique("method"))

    def _spreads_and_errors(self) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """Target, method, and spread and RMSE of each perturbation, of methods with uncertainty."""
        values = self._values
        for target, metric, method in values.index:
            if metric == "spread":
                rows = values.loc[[(target, "spread", method), (target, "rmse", method)]]
                yield target, method, *rows.to_numpy()

    def _differences(self, reference: str) -> pd.DataFrame:
        """Replicates minus those of a reference method."""
        replicates = self._replicates
        known = replicates.index.unique("method")
        if reference not in known:
            raise InputError(
                f"There is no method {reference!r} to compare with. The methods are {listing(known)}."
            )
        base = replicates.xs(reference, level="method")
        others = base.reindex([(target, metric) for target, metric, _ in replicates.index])
        return replicates - others.to_numpy()


def _in_order(table: pd.DataFrame, methods: Any) -> pd.DataFrame:
    """Sort rows by target, then metric and method in the order of their tables."""
    order = pd.MultiIndex.from_product([[HELD_OUT, TRUTH], METRICS, methods], names=table.index.names)
    return table.reindex(order[order.isin(table.index)])


def _resampled_means(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the defined entries of each row of ``values`` (R x P) over each resample (B x P): R x B."""
    counts = np.stack([np.bincount(rows, minlength=values.shape[1]) for rows in chosen]).astype(float)
    defined = np.isfinite(values)
    total, weight = np.where(defined, values, 0.0) @ counts.T, defined @ counts.T
    return np.where(weight > 0, total / np.maximum(weight, 1.0), np.nan)


def _summarise(replicates: pd.DataFrame, estimate: str, low: str, high: str) -> pd.DataFrame:
    """Estimate and percentile interval of each row of replicates."""
    bounds = replicates.iloc[:, 1:].quantile(list(_INTERVAL), axis=1)
    columns = {estimate: replicates.iloc[:, 0], low: bounds.loc[_INTERVAL[0]], high: bounds.loc[_INTERVAL[1]]}
    return pd.DataFrame(columns, index=replicates.index)


def _by_method(long: pd.DataFrame) -> pd.DataFrame:
    """Move methods to the columns, each with its statistics side by side."""
    index: Any = long.index
    blocks = {method: long.xs(method, level="method") for method in index.unique("method")}
    wide = pd.concat(blocks, axis=1, names=["method", "statistic"])
    return wide.reindex(index.droplevel("method").unique())


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write beside the file, then rename over it."""
    unfinished = path.with_name(f".{path.name}.tmp")
    table.to_csv(unfinished, index=False)
    unfinished.replace(path)
