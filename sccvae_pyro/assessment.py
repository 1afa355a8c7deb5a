"""A model on trial: its predictions of held-out perturbations beside those of the baselines."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae_pyro.data import datasets
from sccvae_pyro.data.labels import parse_targets
from sccvae_pyro.data.loading import Profiles, profiles
from sccvae_pyro.data.schema import Schema, cell_labels
from sccvae_pyro.data.simulate import World
from sccvae_pyro.data.wording import listing
from sccvae_pyro.errors import InputError, InputWarning
from sccvae_pyro.evaluate import BASELINES, Scores, Training, predict_baselines, score
from sccvae_pyro.evaluate.baselines import TRIVIAL
from sccvae_pyro.files import read_text, write_anndata, write_text

if TYPE_CHECKING:
    from sccvae_pyro.sccvae import SCCVAE

logger = logging.getLogger(__name__)

MODEL = "SCCVAE"
"""Name of the model among the methods of a table."""

_TABLES = ("per_perturbation", "ceiling", "pit")
_SETTINGS, _SETTINGS_FILE = ("n_bootstrap", "seed"), "settings.json"  # what the intervals rest on


@dataclass(frozen=True)
class Assessment:
    """Scores of a model and of the baselines, with what is needed to look at single perturbations.

    Parameters
    ----------
    scores
        Scores on held-out cells, and on noiseless truth where the screen is simulated.
    predictions
        What the model predicted, perturbations x genes.
    observed
        Held-out cells, perturbations x genes: ``X`` mean of log1p(CP10K), layers ``delta`` (to the training
        controls) and ``se``; ``obs["n"]`` cells.
    """

    scores: Scores
    predictions: AnnData
    observed: AnnData

    @classmethod
    def of(
        cls,
        model: SCCVAE,
        held_out: AnnData,
        train: AnnData,
        n_samples: int = 200,
        n_cells: int = 100,
        seed: int = 0,
    ) -> Assessment:
        """Predict the held-out perturbations with the model and the baselines, and score all of them.

        Parameters
        ----------
        model
            A fitted model.
        held_out, train
            Cells of the held-out perturbations, and the cells that the model was trained on; both set up.
        n_samples
            Posterior draws of each mean.
        n_cells
            Cells to sample of each perturbation, to compare populations.
        seed
            Seed of draws, cells and bootstrap.

        Raises
        ------
        InputError
            If no held-out perturbation can be predicted.
        """
        labels = predictable_labels(model, held_out)
        logger.info("Predicting %d held-out perturbations.", len(labels))
        prediction = model.predict(labels, n_samples=n_samples, return_draws=True, seed=seed)
        with warnings.catch_warnings():
            # Predict has said of all labels what sampling would say again of each.
            warnings.simplefilter("ignore", InputWarning)
            cells = {label: model.sample_cells(label, n_cells, seed=seed) for label in labels}
        training = Training.from_anndata(train)
        baselines = _baselines(model, training, labels)
        logger.info("Scoring against %d held-out cells.", held_out.n_obs)
        scores = score(
            {MODEL: prediction, **baselines},
            held_out,
            train,
            truth=_noiseless(held_out, [training.control, *labels]),
            cells={MODEL: ad.concat(cells, index_unique="-")},
            seed=seed,
        )
        del prediction.obsm["draws"]
        return cls(scores, prediction, _observed(profiles(held_out), training, labels))

    def save(self, folder: str | Path) -> None:
        """Write the tables of the scores as CSV, predictions and observations as h5ad, settings as JSON."""
        folder = Path(folder)
        self.scores.to_csv(folder)
        write_anndata(self.predictions, folder / "predictions.h5ad")
        write_anndata(self.observed, folder / "observed.h5ad")
        settings = {name: getattr(self.scores, name) for name in _SETTINGS}
        write_text(json.dumps(settings), folder / _SETTINGS_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> Assessment:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            If a file is missing.
        """
        folder = Path(folder)
        tables = [_read_table(_part(folder, f"{name}.csv")) for name in _TABLES]
        predictions, observed = (
            datasets.read(_part(folder, f"{name}.h5ad")) for name in ("predictions", "observed")
        )
        path = _part(folder, _SETTINGS_FILE)
        try:
            stored = json.loads(read_text(path))
            settings = {name: stored[name] for name in _SETTINGS}
        except (json.JSONDecodeError, RecursionError, LookupError, TypeError) as error:
            raise InputError(f"{path} is damaged. Run the evaluation again.") from error
        return cls(Scores(*tables, **settings), predictions, observed)


def predictable_labels(model: SCCVAE, held_out: AnnData) -> list[str]:
    """Perturbations of the held-out cells that the model can predict; the others are logged.

    Raises
    ------
    InputError
        If there are none.
    """
    control = Schema.of(held_out).control
    labels = [str(label) for label in cell_labels(held_out).cat.categories if label != control]
    targets = sorted({target for label in labels for target in parse_targets(label, control)})
    answers = model.predictable(targets).set_index("gene")
    known = set(answers.index[answers["predictable"]])
    chosen = [label for label in labels if known.issuperset(parse_targets(label, control))]
    if left_out := [label for label in labels if label not in chosen]:
        reasons = "; ".join(f"{gene}: {answers.loc[gene, 'reason']}" for gene in targets if gene not in known)
        logger.warning("Left out of the evaluation: %s (%s).", listing(left_out), reasons)
    if not chosen:
        raise InputError(
            f"None of the held-out perturbations {listing(labels)} can be predicted. "
            "model.predictable(genes) says why; evaluate on perturbations whose targets have features."
        )
    return chosen


def _baselines(model: SCCVAE, training: Training, labels: Sequence[str]) -> dict[str, AnnData]:
    """All baselines, or the trivial ones where the model has no features that the others could learn from."""
    if model.features is None:
        return {name: BASELINES[name].predict(training, None, labels) for name in TRIVIAL}
    return predict_baselines(training, model.features, labels)


def _noiseless(held_out: AnnData, labels: Sequence[str]) -> pd.DataFrame | None:
    """Compute the true means where the screen was simulated and still has the labels of its world."""
    if "truth" not in held_out.uns:
        return None
    try:
        return World.from_uns(held_out.uns["truth"]).mean_profiles(labels)
    except (KeyError, TypeError) as error:
        message = f"uns['truth'] does not describe this screen ({error}); scored on held-out cells alone."
        warnings.warn(message, InputWarning, stacklevel=2)
        return None


def _observed(held_out: Profiles, training: Training, labels: list[str]) -> AnnData:
    mean, var, n = (part.loc[labels] for part in held_out)
    layers = {
        "delta": mean.to_numpy() - training.control_mean,
        "se": np.sqrt(var.to_numpy() / n.to_numpy()[:, None]),
    }
    genes = pd.DataFrame(index=mean.columns)
    return AnnData(mean.to_numpy(), pd.DataFrame({"n": n}), genes, layers=layers)


def _part(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        raise InputError(f"There is no file {path}. Run `sccvae evaluate` first, or check the folder.")
    return path


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, float_precision="round_trip")
    except ValueError as error:  # empty, ragged or no text
        raise InputError(f"{path} is damaged: {error}. Run the evaluation again.") from error
    names = table.columns.intersection(["target", "method", "perturbation", "metric", "of"])
    return table.astype(dict.fromkeys(names, str))
