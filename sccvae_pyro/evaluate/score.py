"""Score predictions against held-out cells, beside trivial baselines and the noise ceiling.

:func:`score` is the layer between AnnData and the pure functions of
:mod:`~sccvae_pyro.evaluate.metrics` and :mod:`~sccvae_pyro.evaluate.calibration`. Perturbations are the
unit: every metric gives one value for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sccvae_pyro.data.checks import check_counts, check_seed
from sccvae_pyro.data.counts import log1p_cp10k
from sccvae_pyro.data.labels import canonical_label, parse_targets
from sccvae_pyro.data.loading import Profiles, profiles
from sccvae_pyro.data.matrix import expression_matrix
from sccvae_pyro.data.schema import Schema, cell_labels, library_sizes
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError, InputWarning
from sccvae_pyro.evaluate import calibration, metrics
from sccvae_pyro.evaluate.baselines import BASELINES, TRIVIAL, Training
from sccvae_pyro.evaluate.calibration import LEVELS, EnsembleForecast, Forecast, NormalForecast
from sccvae_pyro.evaluate.metrics import CellDistances, squared_distances
from sccvae_pyro.evaluate.results import HELD_OUT, TOP_DE, TOP_EXPRESSED, TRUTH, Scores, percent

MAX_CELLS = 500
"""Cells of a population that are compared with another population, at most."""

FEWEST_CELLS = 4
"""Held-out cells below which a perturbation is not scored: each half of them needs two."""

N_SPLITS = 10
"""Random splits of the held-out cells behind the noise ceiling."""

N_BINS = 20
"""Bins of the histograms of the probability integral transform."""

FLOOR, _ = TRIVIAL
"""Method whose predicted cells are real control cells: the floor of all comparisons of populations."""


def score(
    predictions: Mapping[str, AnnData] | AnnData,
    held_out: AnnData,
    train: AnnData,
    truth: pd.DataFrame | None = None,
    cells: Mapping[str, AnnData] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score predicted mean profiles, and predicted cells, of held-out perturbations.

    All differences are to the mean of the real *training* control cells. The trivial baselines "control"
    and "perturbed mean" are added where they are not among the predictions. Scored are the perturbations
    with at least four held-out cells and a prediction by every method, so that all comparisons are paired.

    *Means.* DE genes are those of the held-out cells against the training control cells (Welch's t,
    FDR < 0.05, at most 20 by ``|t|``); where there are none, metrics on them are NaN and left out of
    averages. Metrics on the 1,000 most expressed genes appear when there are more genes than that. The
    weights of the weighted metrics compare with all other perturbed cells, trained on or held out.

    *Uncertainty.* The forecast of a mean is its draws (``obsm["draws"]``) where there are any, else the
    normal distribution of the layers ``mean`` and ``sd``, else a point. Held-out means are of finitely many
    cells: their known standard error is added to every forecast. Against the truth nothing is added.
    Coverage, width and spread exist for methods that state uncertainty.

    *Populations of cells.* Methods in ``cells`` are represented by the cells they sampled, all others by
    real control cells shifted by the predicted delta, which keep the spread of control cells. At most 500
    cells of a population are used, drawn by seed; column ``n`` states the number of held-out ones. Scores of
    single cells exist for the methods in ``cells`` and for "control", which resamples real control cells.

    *Noise ceiling.* Random halves of the held-out cells tell what the true mean would score against all of
    them. Errors and correlations are corrected for the halves being noisier than the whole; centroid
    accuracy is not, and its ceiling is a lower bound. Genes and weights are chosen on the same cells, which
    flatters the ceilings of the metrics on DE genes and of the weighted metrics.

    Parameters
    ----------
    predictions
        Predictions of each method (perturbations x genes, as ``predict`` returns them), or of one, which is
        then called "prediction".
    held_out, train
        Cells of the held-out perturbations, and the training cells with the controls; both set up with
        ``setup_anndata``.
    truth
        Noiseless means of log1p(CP10K), labels x genes, with a row for the control: predictions are
        scored against them too.
    cells
        Cells sampled by some of the methods, under the same names, with ``obs["perturbation"]``. With
        ``obs["library"]``, ``X`` holds counts; without, values of log1p(CP10K).
    n_bootstrap
        Resamples of perturbations behind each interval.
    seed
        Seed of resamples, splits and subsets of cells. The scores of a method do not depend on the others.

    Returns
    -------
    Scores

    Raises
    ------
    InputError
        If genes, labels or the control do not match, a held-out cell is a training cell, a prediction is
        not one finite row for each perturbation, or nothing can be scored.

    Warns
    -----
    InputWarning
        If held-out perturbations are left out, with the reason.
    """
    if not isinstance(predictions, AnnData | Mapping):
        raise InputError(
            f"predictions must be an AnnData, or one for each method by name, not {predictions!r}."
        )
    methods = {"prediction": predictions} if isinstance(predictions, AnnData) else dict(predictions)
    seed = check_seed(seed)
    check_counts(n_bootstrap=n_bootstrap)
    for name, prediction in methods.items():
        _check_layout(name, prediction)
    _check_screens(train, held_out)
    control, seen, unseen = Schema.of(train).control, profiles(train), profiles(held_out)
    training = Training.of(seen, control)
    protocol = _Protocol.of(_labels_to_score(methods, unseen, control), control, unseen, seen)
    trivial = {name: BASELINES[name].predict(training, None, protocol.labels) for name in TRIVIAL}
    methods = {name: prediction for name, prediction in trivial.items() if name not in methods} | methods
    predicted = {name: _Prediction.of(name, prediction, protocol) for name, prediction in methods.items()}

    targets = [_Target.held_out(unseen, protocol)]
    if truth is not None:
        targets.append(_Target.truth(truth, protocol))
    record = _Record(protocol.labels)
    for target in targets:
        for name, prediction in predicted.items():
            record.add(target.name, name, _mean_scores(prediction.mean, target, protocol), target.n)
            _add_uncertainty(record, name, prediction, target, seed)
    held_out_cells, train_cells = _Cells.of_screen(held_out), _Cells.of_screen(train)
    record.add_ceiling(
        _mean_ceiling(_halves(held_out_cells, protocol.labels, seed), targets[0].observed, protocol)
    )
    sampled = _sampled_cells(cells or {}, methods, protocol)
    _add_populations(record, predicted, sampled, held_out_cells, train_cells, protocol, seed)
    return record.scores(n_bootstrap, seed)


def _check_screens(train: AnnData, held_out: AnnData) -> None:
    schemas = Schema.of(train), Schema.of(held_out)
    if not train.var_names.equals(held_out.var_names):
        differing = train.var_names.symmetric_difference(held_out.var_names)
        which = listing(differing) if len(differing) else "their order"
        raise InputError(f"train and held_out differ in their genes: {which}. Take both from one AnnData.")
    for setting in ("kind", "library_key"):
        first, second = (getattr(schema, setting) for schema in schemas)
        if first != second:
            raise InputError(
                f"train and held_out were set up with different {setting}: {first!r} and {second!r}. "
                "Set both up in the same way."
            )
    controls = schemas[0].control, schemas[1].control
    if controls[0] != controls[1]:
        raise InputError(
            f"train and held_out name different controls, {controls[0]!r} and {controls[1]!r}. "
            "Set both up with the same control label."
        )
    shared = held_out.obs_names.intersection(train.obs_names)
    if len(shared):
        raise InputError(
            f"{len(shared)} of {held_out.n_obs} held-out cells are training cells too: {listing(shared)}. "
            "Drop them from one of the two, or rename them where they are other cells."
        )


def _check_layout(name: str, prediction: AnnData) -> None:
    """Refuse a prediction that is not laid out as ``predict`` does."""
    if not isinstance(prediction, AnnData):
        raise InputError(
            f"The prediction {name!r} is a {type(prediction).__name__}. "
            "Pass an AnnData, perturbations x genes."
        )
    for what, names in (("perturbations", prediction.obs_names), ("genes", prediction.var_names)):
        if names.has_duplicates:
            twice = listing(names[names.duplicated()].unique())
            raise InputError(
                f"The prediction {name!r} has the {what} {twice} more than once. Keep one of each."
            )
    if "mean" not in prediction.layers:
        raise InputError(
            f"The prediction {name!r} has no layer 'mean'. Put its means of log1p(CP10K) there: "
            "prediction.layers['mean'] = prediction.X."
        )


def _labels_to_score(methods: Mapping[str, AnnData], held_out: Profiles, control: str) -> list[str]:
    """Held-out perturbations with enough cells and a prediction by every method."""
    counts = held_out.n.drop(index=control, errors="ignore")
    few = counts.index[counts < FEWEST_CELLS]
    if len(few):
        _warn(f"{listing(few)} have fewer than {FEWEST_CELLS} held-out cells and are not scored.")
    labels = counts.index.drop(few)
    for name, prediction in methods.items():
        absent = labels.difference(prediction.obs_names)
        if len(absent):
            _warn(f"{name!r} has no prediction for {listing(absent)}; they are not scored for any method.")
        labels = labels[labels.isin(prediction.obs_names)]
    if not len(labels):
        raise InputError(
            f"None of the held-out perturbations {listing(counts.index)} can be scored. Every method must "
            "predict them, under canonical labels (targets sorted and joined by '+')."
        )
    return list(labels)


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=4)


# What is compared


@dataclass(frozen=True)
class _Protocol:
    """What all methods share: perturbations, genes, references and weights.

    Parameters
    ----------
    labels, genes
        Names of the P perturbations and G genes.
    control
        Label of control cells.
    control_mean, training_mean
        Mean of the control cells, and of the training-perturbation means (G).
    weights
        Weights of the genes of each perturbation, P x G.
    subsets
        Genes of each perturbation for every suffix of a metric.
    """

    labels: list[str]
    genes: pd.Index
    control: str
    control_mean: np.ndarray
    training_mean: np.ndarray
    weights: np.ndarray
    subsets: Mapping[str, list[Any]]

    @classmethod
    def of(cls, labels: list[str], control: str, held_out: Profiles, train: Profiles) -> _Protocol:
        control_mean = train.mean.loc[control].to_numpy(dtype=float)
        trained, tested = train.without(control), held_out.without(control)
        subsets: dict[str, list[Any]] = {"": [slice(None)] * len(labels)}
        if len(control_mean) > 1000:
            subsets[TOP_EXPRESSED] = [np.argsort(-control_mean, kind="stable")[:1000]] * len(labels)
        subsets[TOP_DE] = _de_genes(labels, control, held_out, train)
        return cls(
            labels=labels,
            genes=train.mean.columns,
            control=control,
            control_mean=control_mean,
            training_mean=trained.mean.to_numpy(dtype=float).mean(axis=0),
            weights=metrics.perturbation_weights(_statistic_against_rest(labels, tested, trained)),
            subsets=subsets,
        )

    def over(self, suffix: str, metric: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
        """Metric of each perturbation over a subset of its genes; NaN where the subset is empty.

        Arrays are perturbations x genes, or genes, or splits x perturbations x genes; a result for each split
        is averaged.
        """
        values = []
        for row, genes in enumerate(self.subsets[suffix]):
            parts = [(a if a.ndim == 1 else a[..., row, :])[..., genes] for a in arrays]
            values.append(np.mean(metric(*parts)) if parts[0].shape[-1] else np.nan)
        return np.array(values)


def _moments(profiles: Profiles, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, variances and numbers of the cells with these labels."""
    mean, var, n = (part.loc[labels].to_numpy(dtype=float) for part in profiles)
    return mean, var, n


def _de_genes(labels: list[str], control: str, held_out: Profiles, train: Profiles) -> list[np.ndarray]:
    """Find the top DE genes of each perturbation against the training control cells."""
    mean, var, n = _moments(held_out, labels)
    statistic, p_value = metrics.welch_t(mean, var, n[:, None], *_moments(train, [control]))
    return [metrics.top_de_genes(t, p) for t, p in zip(statistic, p_value, strict=True)]


def _statistic_against_rest(labels: list[str], held_out: Profiles, train: Profiles) -> np.ndarray:
    """Welch's t of each perturbation against all other perturbed cells, P x G."""
    groups = [_moments(profiles, profiles.n.index) for profiles in (held_out, train)]
    mean, var, n = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    names = np.concatenate([held_out.n.index, train.n.index])
    rest_mean, rest_var, rest_n = metrics.moments_of_rest(mean, var, n, names)
    own = held_out.n.index.get_indexer(pd.Index(labels))
    statistic, _ = metrics.welch_t(
        mean[own], var[own], n[own, None], rest_mean[own], rest_var[own], rest_n[own]
    )
    return statistic


@dataclass(frozen=True)
class _Target:
    """Means that predictions are compared with.

    Parameters
    ----------
    name
        "held-out" or "truth".
    observed
        Means, P x G.
    control_mean
        Mean of the control cells (G).
    noise_sd
        Known standard error of ``observed``, P x G; ``None`` for the truth.
    n
        Cells of each perturbation (P); ``None`` for the truth.
    """

    name: str
    observed: np.ndarray
    control_mean: np.ndarray
    noise_sd: np.ndarray | None = None
    n: np.ndarray | None = None

    @classmethod
    def held_out(cls, profiles: Profiles, protocol: _Protocol) -> _Target:
        mean, var, n = _moments(profiles, protocol.labels)
        return cls(HELD_OUT, mean, protocol.control_mean, np.sqrt(var / n[:, None]), n.astype(int))

    @classmethod
    def truth(cls, truth: pd.DataFrame, protocol: _Protocol) -> _Target:
        if not isinstance(truth, pd.DataFrame):
            raise InputError(f"truth must be a DataFrame, labels x genes, not {truth!r}.")
        rows, columns = pd.Index([protocol.control, *protocol.labels]), protocol.genes
        absent = [*rows.difference(truth.index), *columns.difference(truth.columns)]
        if absent:
            raise InputError(
                f"truth lacks {listing(absent)}. It needs a row for the control and for every scored "
                "perturbation, and a column for every gene."
            )
        truth = truth[protocol.genes]
        observed = truth.loc[protocol.labels].to_numpy(dtype=float)
        return cls(TRUTH, observed, truth.loc[protocol.control].to_numpy(dtype=float))


@dataclass(frozen=True)
class _Prediction:
    """Predictions of one method, in the order of the protocol.

    Parameters
    ----------
    mean
        P x G.
    sd
        P x G, or ``None``.
    draws
        P x draws x G, or ``None``.
    """

    mean: np.ndarray
    sd: np.ndarray | None
    draws: np.ndarray | None

    @classmethod
    def of(cls, name: str, adata: AnnData, protocol: _Protocol) -> _Prediction:
        genes = _positions(name, adata, protocol.genes)
        block = np.ix_(adata.obs_names.get_indexer(pd.Index(protocol.labels)), genes)
        draws = adata.obsm.get("draws")
        found = cls(
            mean=np.asarray(adata.layers["mean"], dtype=float)[block],
            sd=np.asarray(adata.layers["sd"], dtype=float)[block] if "sd" in adata.layers else None,
            draws=None if draws is None else np.asarray(draws)[block[0][:, 0]][:, :, genes],
        )
        found._check_values(name, protocol)
        return found

    def _check_values(self, name: str, protocol: _Protocol) -> None:
        if self.sd is not None and (self.sd < 0).any():
            raise InputError(
                f"The prediction {name!r} holds a standard deviation below zero. Correct its 'sd'."
            )
        draws = None if self.draws is None else self.draws.mean(axis=1)
        for part, values in {"mean": self.mean, "sd": self.sd, "draws": draws}.items():
            if values is None or np.isfinite(values).all():
                continue
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(
                f"The prediction {name!r} holds NaN or infinite values in {part!r}; the first is for "
                f"perturbation {protocol.labels[row]!r}, gene {protocol.genes[column]!r}. "
                "Leave out what the method cannot predict."
            )

    @property
    def is_point(self) -> bool:
        """Whether the method states no uncertainty."""
        return self.sd is None and self.draws is None

    def forecast(self, row: int) -> Forecast:
        """Forecast of the mean of one perturbation."""
        if self.draws is not None:
            return EnsembleForecast(self.draws[row].astype(float))
        return NormalForecast(
            self.mean[row], np.zeros_like(self.mean[row]) if self.sd is None else self.sd[row]
        )


def _positions(name: str, adata: AnnData, genes: pd.Index) -> np.ndarray:
    """Columns of the genes."""
    positions = adata.var_names.get_indexer(genes)
    if (positions < 0).any():
        raise InputError(f"{name!r} lacks the genes {listing(genes[positions < 0])} of the held-out cells.")
    return positions


class _Record:
    """Collects scores as they come."""

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self._scores: list[pd.DataFrame] = []
        self._ceiling: list[pd.DataFrame] = []
        self._pit: list[pd.DataFrame] = []

    def add(self, target: str, method: str, scores: Any, n: np.ndarray | None) -> None:
        """Add scores of a method, a list of P dictionaries or a dictionary of arrays (P)."""
        cells = pd.array([pd.NA] * len(self.labels) if n is None else n, dtype="Int64")
        tidy = self._tidy(scores, n=cells)
        tidy.insert(0, "target", target)
        tidy.insert(1, "method", method)
        self._scores.append(tidy)

    def add_ceiling(self, scores: Any) -> None:
        """Add what the true mean would score."""
        self._ceiling.append(self._tidy(scores))

    def add_pit(self, target: str, method: str, of: str, histograms: list[np.ndarray]) -> None:
        """Add PIT histograms of all perturbations; each counts the same."""
        edges = np.linspace(0.0, 1.0, N_BINS + 1)
        columns = {"low": edges[:-1], "high": edges[1:], "share": np.mean(histograms, axis=0)}
        self._pit.append(pd.DataFrame({"target": target, "method": method, "of": of, **columns}))

    def scores(self, n_bootstrap: int, seed: int) -> Scores:
        """Put everything together."""
        no_pit = pd.DataFrame(columns=["target", "method", "of", "low", "high", "share"])
        pit = pd.concat(self._pit, ignore_index=True) if self._pit else no_pit
        per_perturbation = pd.concat(self._scores, ignore_index=True)
        return Scores(per_perturbation, pd.concat(self._ceiling, ignore_index=True), pit, n_bootstrap, seed)

    def _tidy(self, scores: Any, **columns: Any) -> pd.DataFrame:
        wide = pd.DataFrame(scores).assign(perturbation=self.labels, **columns)
        return wide.melt(id_vars=["perturbation", *columns], var_name="metric", value_name="value")


# Scores of means


def _mean_scores(predicted: np.ndarray, target: _Target, protocol: _Protocol) -> dict[str, np.ndarray]:
    observed, reference, weights = target.observed, protocol.training_mean, protocol.weights
    scores = {}
    for suffix in protocol.subsets:
        for metric in (metrics.mse, metrics.rmse, metrics.mae):
            scores[metric.__name__ + suffix] = protocol.over(suffix, metric, predicted, observed)
    for name, center in (("pearson_delta", target.control_mean), ("pearson_systema", reference)):
        for suffix in ("", TOP_DE):
            scores[name + suffix] = protocol.over(suffix, metrics.pearson_delta, predicted, observed, center)
    scores["wmse"] = metrics.wmse(predicted, observed, weights)
    scores["weighted_r2"] = metrics.weighted_r2(predicted, observed, reference, weights)
    scores["centroid_accuracy"] = metrics.centroid_accuracy(predicted, observed)
    return scores


def _mean_ceiling(
    halves: tuple[np.ndarray, np.ndarray], observed: np.ndarray, protocol: _Protocol
) -> dict[str, np.ndarray]:
    """Ceilings of the scores of means, from means of halves (each splits x P x G)."""
    first, second = halves
    reference, weights = protocol.training_mean, protocol.weights
    ceiling = {}
    for suffix in protocol.subsets:
        ceiling["mse" + suffix] = metrics.ceiling_of_squared_error(
            protocol.over(suffix, metrics.mse, first, second)
        )
        for metric in (metrics.rmse, metrics.mae):
            between = protocol.over(suffix, metric, first, second)
            ceiling[metric.__name__ + suffix] = metrics.ceiling_of_absolute_error(between)
    for name, center in (("pearson_delta", protocol.control_mean), ("pearson_systema", reference)):
        for suffix in ("", TOP_DE):
            between = protocol.over(suffix, metrics.pearson_delta, first, second, center)
            ceiling[name + suffix] = metrics.ceiling_of_correlation(between)
    ceiling["wmse"] = metrics.ceiling_of_squared_error(metrics.wmse(first, second, weights).mean(axis=0))
    ceiling["weighted_r2"] = 1.0 - ceiling["wmse"] / metrics.weighted_variance(observed - reference, weights)
    accuracies = [metrics.centroid_accuracy(*split) for split in zip(first, second, strict=True)]
    ceiling["centroid_accuracy"] = np.mean(accuracies, axis=0)
    return ceiling


def _add_uncertainty(
    record: _Record, method: str, prediction: _Prediction, target: _Target, seed: int
) -> None:
    """Score the forecasts of the means of all perturbations."""
    scores, pit = [], []
    for row, observed in enumerate(target.observed):
        rng = np.random.default_rng([seed, 1, row])
        stated = prediction.forecast(row)
        forecast = stated if target.noise_sd is None else stated.with_noise(target.noise_sd[row], rng)
        score = {"crps": forecast.crps(observed).mean(), "energy_score": forecast.energy_score(observed, rng)}
        if not prediction.is_point:
            score |= _interval_scores(forecast, observed)
            score["spread"] = stated.spread().mean()
            error = np.abs(prediction.mean[row] - observed)
            score["spread_error_genes"] = float(calibration.spearman(stated.spread(), error))
            pit.append(calibration.pit_histogram(forecast.pit(observed, rng), N_BINS))
        scores.append(score)
    record.add(target.name, method, scores, target.n)
    if pit:
        record.add_pit(target.name, method, "means", pit)


def _interval_scores(forecast: Forecast, observed: np.ndarray) -> dict[str, float]:
    """Coverage and width of central intervals, averaged over genes."""
    scores = {}
    for level in LEVELS:
        low, high = forecast.interval(level)
        scores[f"coverage_{percent(level)}"] = calibration.covered(observed, (low, high)).mean()
        scores[f"width_{percent(level)}"] = (high - low).mean()
    return scores


# Scores of populations of cells


@dataclass(frozen=True)
class _Cells:
    """Cells of a screen, or sampled ones, read in units of log1p(CP10K).

    Parameters
    ----------
    matrix
        Cells x genes: counts if there are library sizes, else values in the right units.
    library
        Library size of each cell, or ``None``.
    rows
        Row numbers of the cells of each label.
    """

    matrix: Any
    library: np.ndarray | None
    rows: Mapping[str, np.ndarray]

    @classmethod
    def of_screen(cls, adata: AnnData) -> _Cells:
        schema = Schema.of(adata)
        library = library_sizes(adata, schema) if schema.kind == "counts" else None
        return cls(
            expression_matrix(adata, schema.layer), library, _rows_by_label(cell_labels(adata, schema))
        )

    @classmethod
    def of_samples(cls, adata: AnnData, name: str, protocol: _Protocol) -> _Cells:
        stated = adata.obs["perturbation"].astype(str)
        canonical = {
            s: canonical_label(parse_targets(s, protocol.control), protocol.control) for s in stated.unique()
        }
        rows = _rows_by_label(stated.map(canonical))
        absent = [label for label in protocol.labels if len(rows.get(label, ())) < 2]
        if absent:
            raise InputError(
                f"{name!r} sampled fewer than two cells of {listing(absent)}. "
                "Sample cells of every scored perturbation."
            )
        library = adata.obs["library"].to_numpy(dtype=float) if "library" in adata.obs else None
        return cls(adata.X[:, _positions(name, adata, protocol.genes)], library, rows)

    def all_of(self, label: str) -> Any:
        """All cells with a label, dense or sparse as they are stored."""
        return self._read(self.rows[label])

    def sample(self, label: str, rng: np.random.Generator) -> np.ndarray:
        """At most :data:`MAX_CELLS` random cells with a label, dense."""
        values = self._read(np.sort(rng.permutation(self.rows[label])[:MAX_CELLS]))
        return values.toarray() if sparse.issparse(values) else np.asarray(values, dtype=float)

    def _read(self, rows: np.ndarray) -> Any:
        values = self.matrix[rows]
        return values if self.library is None else log1p_cp10k(values, self.library[rows])


def _rows_by_label(labels: pd.Series) -> dict[str, np.ndarray]:
    codes, names = pd.factorize(labels)
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def _sampled_cells(
    cells: Mapping[str, AnnData], methods: Mapping[str, AnnData], protocol: _Protocol
) -> dict[str, _Cells]:
    unknown = [name for name in cells if name not in methods]
    if unknown:
        raise InputError(
            f"cells names {listing(unknown)}, which predicts nothing. The methods are {listing(methods)}."
        )
    return {name: _Cells.of_samples(sample, name, protocol) for name, sample in cells.items()}


def _halves(held_out: _Cells, labels: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of random halves of the held-out cells, each splits x P x G."""
    splits = [
        metrics.split_halves(held_out.all_of(label), N_SPLITS, np.random.default_rng([seed, 0, row]))
        for row, label in enumerate(labels)
    ]
    first, second = zip(*splits, strict=True)
    return np.stack(first, axis=1), np.stack(second, axis=1)


@dataclass(frozen=True)
class _Comparison:
    """Held-out cells of one perturbation and the control cells, ready to be compared with predictions.

    Parameters
    ----------
    controls, observed
        Control and held-out cells, cells x genes.
    distances
        Between the two.
    scale
        Squared length that sets the bandwidths of the MMD, the same for all methods.
    """

    controls: np.ndarray
    observed: np.ndarray
    distances: CellDistances
    scale: float

    @classmethod
    def of(cls, controls: np.ndarray, within_controls: np.ndarray, observed: np.ndarray) -> _Comparison:
        between, within = squared_distances(controls, observed), squared_distances(observed, observed)
        distances = CellDistances(within_controls, between, within)
        return cls(controls, observed, distances, metrics.median_scale(between))

    def with_shifted_controls(self, shift: np.ndarray) -> dict[str, float]:
        """Score the control cells, moved by a predicted delta."""
        moved = self.distances.shifted(self.controls @ shift, self.observed @ shift, float(shift @ shift))
        return self._scores(moved)

    def with_cells(self, cells: np.ndarray) -> dict[str, float]:
        """Score predicted cells."""
        within, between = squared_distances(cells, cells), squared_distances(cells, self.observed)
        return self._scores(CellDistances(within, between, self.distances.within_second))

    def between_halves(self, rng: np.random.Generator) -> dict[str, float]:
        """Score one half of the held-out cells as a prediction of the other."""
        order = rng.permutation(len(self.observed))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        within = self.distances.within_second
        blocks = [within[np.ix_(a, b)] for a, b in ((first, first), (first, second), (second, second))]
        return self._scores(CellDistances(*blocks))

    def _scores(self, distances: CellDistances) -> dict[str, float]:
        energy, mmd2 = metrics.energy_distance(distances), metrics.mmd2(distances, self.scale)
        return {"energy_distance": energy, "mmd2": mmd2}


def _add_populations(
    record: _Record,
    predicted: Mapping[str, _Prediction],
    sampled: Mapping[str, _Cells],
    held_out: _Cells,
    train: _Cells,
    protocol: _Protocol,
    seed: int,
) -> None:
    """Compare populations of cells, perturbation by perturbation."""
    controls = train.sample(protocol.control, np.random.default_rng([seed, 2]))
    within_controls = squared_distances(controls, controls)
    scores: dict[str, list[dict[str, float]]] = {method: [] for method in predicted}
    pit: dict[str, list[np.ndarray]] = {method: [] for method in predicted if method in {FLOOR, *sampled}}
    ceiling, n_cells = [], []
    for row, label in enumerate(protocol.labels):
        rng = np.random.default_rng([seed, 3, row])
        comparison = _Comparison.of(controls, within_controls, held_out.sample(label, rng))
        ceiling.append(comparison.between_halves(rng))
        n_cells.append(len(comparison.observed))
        for method, prediction in predicted.items():
            if method in pit:
                rng = np.random.default_rng([seed, 4, row])
                cells = sampled[method].sample(label, rng) if method in sampled else controls
                single, histogram = _cell_scores(comparison.observed, cells, rng)
                scores[method].append(comparison.with_cells(cells) | single)
                pit[method].append(histogram)
            else:
                shift = prediction.mean[row] - protocol.control_mean
                scores[method].append(comparison.with_shifted_controls(shift))
    record.add_ceiling(ceiling)
    for method, rows in scores.items():
        record.add(HELD_OUT, method, rows, np.array(n_cells))
    for method, histograms in pit.items():
        record.add_pit(HELD_OUT, method, "cells", histograms)


def _cell_scores(
    observed: np.ndarray, cells: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, float], np.ndarray]:
    """CRPS of single cells, coverage of their intervals with ties broken at random, and PIT histogram."""
    scores = {"cell_crps": float(calibration.population_crps(observed, cells).mean())}
    pit = calibration.ensemble_pit(observed, cells, rng)
    for level in LEVELS:
        scores[f"cell_coverage_{percent(level)}"] = float(np.mean(np.abs(pit - 0.5) <= level / 2))
    return scores, calibration.pit_histogram(pit, N_BINS)
