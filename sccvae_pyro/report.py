"""A fitted model as one HTML page that a person reads: words first, then the pictures behind them.

:func:`gather` asks the model everything the page shows, :func:`render` turns that into HTML. The page
carries its pictures within itself and loads nothing.
"""

from __future__ import annotations

import base64
import datetime
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from sccvae_pyro import __version__, plots
from sccvae_pyro.assessment import MODEL, Assessment
from sccvae_pyro.data.labels import parse_targets
from sccvae_pyro.evaluate.metrics import pearson_delta
from sccvae_pyro.evaluate.results import CEILING, HELD_OUT, METRICS, TRUTH
from sccvae_pyro.inference.modules import ALONE, FEWEST_PERTURBATIONS, NONE, Modules
from sccvae_pyro.inference.uncertainty import Split
from sccvae_pyro.plots.scores import by_method
from sccvae_pyro.plots.style import UNITS, Plot
from sccvae_pyro.verdict import FEWEST, MEASURES, METHODS, UNTESTED, Verdict, deciding_target, judge

if TYPE_CHECKING:
    from sccvae_pyro.sccvae import SCCVAE

_N_CURVES = 4
_N_LARGEST, _N_RANDOM = 2, 2  # unseen perturbations that are shown one by one
_N_TOP_GENES = 4
_N_SPLIT, _N_PAIRS = 3, 32  # seen and other perturbations whose uncertainty is split, pairs of draws
_SEED = 0  # of the choice of examples
_DPI = 170

TITLES = {
    **{measure.metric: measure.title for measure in MEASURES},
    "pearson_systema": "pattern beyond the mean effect (Systema)",
    "energy_distance": "distance of cell populations (energy)",
    "crps": "forecast of the mean profile (CRPS)",
}
"""Metrics of the report in a reader's words, in the order of its table."""

_FORESTS = (*(measure.metric for measure in MEASURES), "pearson_systema")


@dataclass(frozen=True)
class Evidence:
    """Everything that a report shows.

    Parameters
    ----------
    training
        Pseudobulk of the training cells, labels x genes, control included: ``X`` means, ``obs["n"]`` cells.
    control
        Label of the control cells.
    history
        Loss of each epoch, see :func:`sccvae_pyro.plots.training_curve`.
    effects
        Predictions of the training perturbations.
    penetrance
        Index: perturbation; ``median``, ``q05``, ``q95``.
    edges
        ``source``, ``target``, ``mean``, ``q05``, ``q95``; no row, or zeros, where the model has no graph.
    curves
        Tidy: ``perturbation``, ``gene``, ``penetrance``, ``delta``, ``low``, ``high``.
    assessment
        Scores on held-out cells; ``None`` where nothing was held out.
    requested
        Predictions that the reader asked for.
    notes
        What the small print says, under its headings.
    modules
        Groups of perturbations that act alike; ``None`` where there are too few to group.
    uncertainty
        Where the uncertainty of some predictions comes from.
    """

    training: AnnData
    control: str
    history: pd.DataFrame
    effects: AnnData
    penetrance: pd.DataFrame
    edges: pd.DataFrame
    curves: pd.DataFrame
    assessment: Assessment | None = None
    requested: AnnData | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    modules: Modules | None = None
    uncertainty: Split | None = None

    @property
    def verdict(self) -> Verdict:
        """The scores in words."""
        if self.assessment is None:
            return UNTESTED
        return judge(self.assessment.scores, self.is_unseen)

    @property
    def units(self) -> str:
        """Units of the profiles."""
        return str(self.effects.uns.get("units", UNITS))

    @property
    def is_unseen(self) -> bool:
        """Whether the assessed perturbations were unseen in training, rather than only their cells."""
        return self.assessment is not None and bool(
            (self.assessment.predictions.obs["status"] == "unseen").all()
        )


def gather(
    model: SCCVAE,
    training: AnnData,
    assessment: Assessment | None = None,
    perturbations: Sequence[str] = (),
    n_samples: int = 100,
    seed: int = 0,
) -> Evidence:
    """Ask a fitted model everything that a report shows.

    Parameters
    ----------
    model
        A fitted model.
    training
        Pseudobulk of the training cells, see :class:`Evidence`.
    assessment
        Its scores on held-out cells.
    perturbations
        Further perturbations to predict, such as ones that nobody has measured.
    n_samples, seed
        Posterior draws, and their seed.
    """
    control = model.coding.schema.control
    labels = [label for label in model.coding.labels if label != control]
    effects = model.predict(labels, n_samples=n_samples, seed=seed)
    strongest = _by_strength(effects)[:_N_CURVES]
    requested = model.predict(list(perturbations), n_samples=n_samples, seed=seed) if perturbations else None
    enough = len(model.coding.perturbations) >= FEWEST_PERTURBATIONS
    return Evidence(
        training=training,
        control=control,
        history=model.history,
        effects=effects,
        penetrance=model.penetrance(n_samples, seed),
        edges=model.edges(n_samples, seed),
        curves=model.penetrance_curves(strongest, n_samples=n_samples, seed=seed),
        assessment=assessment,
        requested=requested,
        notes=_notes(model, n_samples, seed),
        modules=model.modules(n_samples, seed=seed) if enough else None,
        uncertainty=model.uncertainty_split(
            _to_split(strongest, assessment, requested), n_samples=_N_PAIRS, seed=seed
        ),
    )


def _to_split(
    strongest: Sequence[str], assessment: Assessment | None, requested: AnnData | None
) -> list[str]:
    """Labels whose uncertainty is split: strong ones of training, of those held out, of those asked for."""
    others = [] if assessment is None else _by_strength(assessment.predictions)[:_N_SPLIT]
    others += [] if requested is None else _by_strength(requested)[:_N_SPLIT]
    return list(dict.fromkeys([*strongest[:_N_SPLIT], *others]))


def _notes(model: SCCVAE, n_samples: int, seed: int) -> dict[str, str]:
    packages = ("torch", "pyro-ppl", "anndata", "numpy", "scipy", "scikit-learn")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return {
        "Model": repr(model),
        "Draws": f"{n_samples} draws from the posterior, seed {seed}",
        "Versions": f"sccvae-pyro {__version__}, Python {platform.python_version()}, {versions}",
        "Written": datetime.date.today().isoformat(),
    }


# The page


def render(evidence: Evidence, title: str = "What the perturbations do") -> str:
    """Write the report.

    Parameters
    ----------
    evidence
        What :func:`gather` found.
    title
        Heading of the page.

    Returns
    -------
    HTML without any reference to other files.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sccvae_pyro"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    page = environment.get_template("report.html.j2").render(
        title=title,
        verdict=evidence.verdict,
        screen=_screen(evidence),
        training=_picture(plots.training_curve(evidence.history), "Loss by epoch"),
        best_epoch=_best_epoch(evidence.history),
        n_epochs=len(evidence.history),
        fit=_fit_of_training(evidence),
        heatmap=_picture(plots.effect_heatmap(evidence.effects), "Heatmap of predicted effects"),
        effects=describe(evidence.effects, evidence.penetrance),
        penetrance=_picture(plots.penetrance_forest(evidence.penetrance), "Penetrance of each perturbation"),
        modules=_modules(evidence.modules),
        uncertainty=_uncertainty(evidence.uncertainty),
        graph=_graph(evidence.edges),
        curves=_curves(evidence),
        trial=_trial(evidence),
        requested=None if evidence.requested is None else describe(evidence.requested),
        notes=evidence.notes,
    )
    return page.replace(" %", "\N{NO-BREAK SPACE}%")  # a number and its sign stay on one line


def _best_epoch(history: pd.DataFrame) -> int | None:
    """Number of the epoch with the lowest loss on validation cells, counted from 1; ``None`` without such."""
    validation = history["validation_loss"].dropna()
    return None if validation.empty else int(validation.idxmin()) + 1


def _screen(evidence: Evidence) -> dict[str, Any]:
    """Count what the data summary shows."""
    n = evidence.training.obs["n"]
    perturbed = n.drop(index=evidence.control)
    n_held_out = 0 if evidence.assessment is None else evidence.assessment.predictions.n_obs
    return {
        "n_cells": int(n.sum()),
        "n_controls": int(n[evidence.control]),
        "n_genes": evidence.training.n_vars,
        "n_perturbations": len(perturbed),
        "n_combinations": sum(len(parse_targets(label, evidence.control)) > 1 for label in perturbed.index),
        "median_cells": int(perturbed.median()),
        "fewest_cells": int(perturbed.min()),
        "fewest_label": perturbed.idxmin(),
        "n_held_out": n_held_out,
        "units": evidence.units,
        "is_log": "log1p" in evidence.units,
    }


def _fit_of_training(evidence: Evidence) -> float:
    """Mean correlation of predicted and observed effects of the training perturbations."""
    observed = evidence.training[evidence.effects.obs_names, evidence.effects.var_names]
    control = np.asarray(evidence.training[evidence.control, evidence.effects.var_names].X)[0]
    predicted = control + np.asarray(evidence.effects.layers["delta"], dtype=float)
    return float(np.nanmean(pearson_delta(predicted, np.asarray(observed.X, dtype=float), control)))


def describe(predictions: AnnData, penetrance: pd.DataFrame | None = None) -> list[dict[str, Any]]:
    """Say in names and numbers what each perturbation does, strongest first.

    Only genes whose 90 % interval excludes zero are named.

    Returns
    -------
    One dictionary a perturbation: ``name``, ``n_changed`` genes, the largest ``raised`` and ``lowered`` ones
    as text, and its ``penetrance`` as text.
    """
    rows = []
    for label in _by_strength(predictions):
        delta, low, high = (
            pd.Series(np.asarray(predictions[[label]].layers[name])[0], predictions.var_names)
            for name in ("delta", "delta_q05", "delta_q95")
        )
        raised, lowered = delta[low > 0].nlargest(_N_TOP_GENES), delta[high < 0].nsmallest(_N_TOP_GENES)
        rows.append(
            {
                "name": label,
                "n_changed": int(((low > 0) | (high < 0)).sum()),
                "raised": _genes(raised),
                "lowered": _genes(lowered),
                "penetrance": _interval(penetrance, label),
            }
        )
    return rows


def _by_strength(predictions: AnnData) -> list[str]:
    strength = np.square(np.asarray(predictions.layers["delta"], dtype=float)).sum(axis=1)
    return [str(label) for label in predictions.obs_names[np.argsort(-strength, kind="stable")]]


def _genes(effects: pd.Series) -> str:
    no_break = "\N{NO-BREAK SPACE}"
    return ", ".join(f"{gene}{no_break}{_signed(value)}" for gene, value in effects.items())


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _interval(penetrance: pd.DataFrame | None, label: str) -> str:
    if penetrance is None or label not in penetrance.index:
        return ""
    row = penetrance.loc[label]
    return f"{row['median']:.2f} ({row['q05']:.2f} to {row['q95']:.2f})"


def _modules(modules: Modules | None) -> dict[str, Any] | None:
    """Count and picture the groups of perturbations; no picture where nothing has an effect."""
    if modules is None:
        return None
    module = modules.table["module"]
    pictures = []
    if (module != NONE).any():
        heatmap = _picture(plots.module_heatmap(modules), "How probably perturbations belong together")
        pictures = [_picture(plots.module_map(modules), "Map of perturbations by effect"), heatmap]
    return {
        "n": len(module),
        "n_alone": int((module == ALONE).sum()),
        "n_none": int((module == NONE).sum()),
        "rows": modules.summary.reset_index().to_dict("records"),
        "pictures": pictures,
    }


def _graph(edges: pd.DataFrame) -> dict[str, Any] | None:
    edges = edges[edges["mean"] != 0]
    if edges.empty:
        return None
    sure = (edges["q05"] > 0) | (edges["q95"] < 0)
    plot = plots.strongest_edges(edges)
    return {
        "picture": _picture(plot, "The strongest edges of the causal graph"),
        "n": len(edges),
        "n_shown": len(plot.data),
        "n_sure": int(sure.sum()),
        "n_sure_shown": int(sure.loc[plot.data.index].sum()),
    }


def _uncertainty(split: Split | None) -> dict[str, Any] | None:
    return None if split is None else _picture(plots.uncertainty_split(split), "Uncertainty by source")


def _curves(evidence: Evidence) -> list[dict[str, Any]]:
    pictures = []
    for label, part in evidence.curves.groupby("perturbation", sort=False):
        plot = plots.penetrance_curves(part, str(label), evidence.units)
        pictures.append(_picture(plot, f"Effect of {label} at growing penetrance"))
    return pictures


# The trial on held-out cells


def _trial(evidence: Evidence) -> dict[str, Any] | None:
    if evidence.assessment is None:
        return None
    scores, target = evidence.assessment.scores, deciding_target(evidence.assessment.scores)
    table = scores.table()
    readable = table.rename(columns=METHODS, level="method")
    targets = [name for name in (TRUTH, HELD_OUT) if name in table.index.unique("target")]
    return {
        "unseen": evidence.is_unseen,
        "n": scores.per_perturbation["perturbation"].nunique(),
        "few": scores.per_perturbation["perturbation"].nunique() < FEWEST,
        "target": target,
        "tables": {name: score_table(table, name) for name in targets},
        "forests": [
            _picture(plots.score_forest(readable, metric, target, MODEL, TITLES[metric]), TITLES[metric])
            for metric in _FORESTS
        ],
        "examples": _examples(evidence.assessment, evidence.units),
        "n_largest": _N_LARGEST,
        "seed_of_examples": _SEED,
        "coverage": _picture(
            plots.coverage(readable, target, _methods_with_intervals(readable, target)),
            "Coverage of the intervals",
        ),
        "pit": _picture(
            plots.pit_histogram(scores.pit, target, MODEL),
            "Histogram of where observations fall in their forecasts",
        ),
        "risk": _picture(
            plots.risk_coverage(scores.risk_coverage(), target, [MODEL]), "Giving up the unsure"
        ),
        "spread": _picture(
            plots.error_against_spread(scores.per_perturbation, target), "Error against stated uncertainty"
        ),
        "described": describe(evidence.assessment.predictions),
        "n_bootstrap": scores.n_bootstrap,
        "seed": scores.seed,
    }


def _methods_with_intervals(table: pd.DataFrame, target: str) -> list[str]:
    covered = by_method(table, target, "coverage_90")["mean"].dropna().index
    return [MODEL, *(name for name in covered if name != MODEL)]


def score_table(table: pd.DataFrame, target: str) -> dict[str, Any]:
    """Lay scores out for reading: a row per method, a column per metric of :data:`TITLES`.

    Returns
    -------
    ``columns``: metric, its title, and which is better; ``rows``: dictionaries with ``name``, ``kind``
    ("model", "baseline" or "ceiling") and ``cells``, each with ``mean``, ``interval`` and whether it is
    the ``best``.
    """
    metrics = [metric for metric in TITLES if (target, metric) in table.index]
    scores = {metric: by_method(table, target, metric) for metric in metrics}
    best = {metric: scores[metric].loc[_ranked(scores[metric], metric)[0], "mean"] for metric in metrics}
    order = _ranked(scores[metrics[0]], metrics[0])
    if scores[metrics[0]]["mean"].notna().get(CEILING, False):
        order.append(CEILING)
    return {
        "columns": [(metric, TITLES[metric], METRICS[metric].better) for metric in metrics],
        "rows": [
            {
                "name": METHODS.get(method, method),
                "kind": {MODEL: "model", CEILING: "ceiling"}.get(method, "baseline"),
                "cells": [_cell(scores[metric].loc[method], best[metric]) for metric in metrics],
            }
            for method in order
        ],
    }


def _ranked(scores: pd.DataFrame, metric: str) -> list[str]:
    """Methods that compete, best first."""
    competitors = scores["mean"].drop(CEILING, errors="ignore")
    rising = METRICS[metric].better == "higher"
    return [str(name) for name in competitors.sort_values(ascending=not rising, kind="stable").index]


def _cell(score: pd.Series, best: float) -> dict[str, Any]:
    if not np.isfinite(score["mean"]):
        return {"mean": "", "interval": "", "best": False}
    mean, low, high = (_number(score[name]) for name in ("mean", "low", "high"))
    is_best = score.name != CEILING and bool(np.isclose(score["mean"], best, rtol=1e-9))
    return {"mean": mean, "interval": f"{low} to {high}", "best": is_best}


def _number(value: float) -> str:
    text = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:#.2g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _examples(assessment: Assessment, units: str) -> list[dict[str, Any]]:
    """Pictures of the scored perturbations with the largest observed effects, and of some drawn at random."""
    labels = assessment.predictions.obs_names
    observed = assessment.observed[labels]
    strength = np.square(np.asarray(observed.layers["delta"], dtype=float)).sum(axis=1)
    order = np.argsort(-strength, kind="stable")
    rest = np.random.default_rng(_SEED).permutation(order[_N_LARGEST:])[:_N_RANDOM]
    examples = []
    for row in [*order[:_N_LARGEST], *rest]:
        label = str(labels[row])
        table = plots.compare(assessment.predictions, observed, label)
        scatter = plots.predicted_against_observed(table, "All genes", units)
        forest = plots.top_genes(table, title="Genes that changed most", units=units)
        examples.append(
            {
                "name": label,
                "n": int(observed.obs["n"].iloc[row]),
                "scatter": _picture(scatter, f"Predicted against observed effect of {label}, all genes"),
                "forest": _picture(forest, f"Genes that {label} changed most, predicted and observed"),
            }
        )
    return examples


def _picture(plot: Plot, alt: str) -> dict[str, Any]:
    """Embed a picture; its width is in CSS pixels."""
    figure = plot.ax.figure
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"src": f"data:image/png;base64,{encoded}", "alt": alt, "width": round(96 * figure.get_figwidth())}
